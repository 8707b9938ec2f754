/*
 * Tied and full covariances: W = V S on the device, and the kernels that whiten. Tied rows are whitened once and
 * screened as spherical ones; full covariances have a screen of their own. Refining and the dense engine whiten
 * x - m_k, in float-float.
 */
#include "cl_engine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    FF_COST = 8,           /* a float-float multiply-add in plain ones */
    BATCH_BYTES = 16 << 20 /* of matrices that are sent together */
};

double cl_white_error(const fgmm_params *params) {
    return params->condition * ((double)params->d + 4.0) * 0x1p-46;
}

/* A matrix as it is sent: V transposed, in two floats, its column scales; and what the screen's bound needs of it. */
typedef struct white_matrix {
    float *hi, *lo, *scale;
    double *row_sums;           /* [D] of |V| */
    double *row_errors;         /* [D] of |W| delta, see screen_full.cl */
    double *row_shifts;         /* [D] of |W| |m - c| */
    double norm, error;         /* A and e0 */
    double most, shift, spread; /* of |V|; the norms of row_shifts and row_sums */
    int sound;
} white_matrix;

/* LEAD, REST and COMPONENT of screen_full_wgmma.cl. */
static size_t lead_steps(const cl_engine *engine) {
    return engine->matrix.steps < 4 ? engine->matrix.steps : 4;
}

size_t cl_full_blocks(const cl_engine *engine) {
    return lead_steps(engine) + (engine->matrix.steps > 4 ? engine->matrix.steps : 0);
}

static size_t full_floats(const cl_engine *engine) {
    return cl_round_up(cl_full_blocks(engine) * 512 + 32 * (size_t)engine->matrix.steps + CL_FULL_CONSTANTS, 32);
}

/* A power of two near the norm of a column of W, where it is not beyond all measure. */
static double column_scale(const double *w, size_t d, size_t i) {
    double sum = 0.0;
    for (size_t j = i; j < d; j++) sum += w[j * d + i] * w[j * d + i];
    if (!(sum > 1e-60 && sum < 1e60)) return 1.0;
    return ldexp(1.0, (int)round(0.5 * log2(sum)));
}

static void split_matrix(white_matrix *out, const double *w, size_t d) {
    memset(out->hi, 0, d * d * sizeof *out->hi);
    memset(out->lo, 0, d * d * sizeof *out->lo);
    for (size_t i = 0; i < d; i++) {
        double scale = column_scale(w, d, i);
        out->scale[i] = (float)scale;
        for (size_t j = i; j < d; j++) cl_split(w[j * d + i] / scale, &out->hi[i * d + j], &out->lo[i * d + j]);
    }
}

static double length_of(const double *x, size_t d) {
    double sum = 0.0;
    for (size_t i = 0; i < d; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* The bound's A: the least of two bounds on the largest singular value of |V|; and e0, for a mean in two floats. */
static void measure_matrix(white_matrix *out, const double *w, const double *mean, const double *centre,
                           const double *frame, size_t d) {
    double most_column = 0.0, most_row = 0.0, squares = 0.0;
    out->sound = 1;
    out->most = 0.0;
    for (size_t j = 0; j < d; j++) out->row_sums[j] = out->row_errors[j] = out->row_shifts[j] = 0.0;
    for (size_t i = 0; i < d; i++) {
        double column = 0.0, delta = 0x1p-47 * fabs(mean[i] - (frame ? frame[i] : 0.0)) + 1e-44;
        double shift = fabs(mean[i] - centre[i]);
        for (size_t j = i; j < d; j++) {
            double v = fabs((double)out->hi[i * d + j]);
            column += v;
            squares += v * v;
            out->row_sums[j] += v;
            out->row_errors[j] += fabs(w[j * d + i]) * delta;
            out->row_shifts[j] += fabs(w[j * d + i]) * shift;
            out->most = fmax(out->most, v);
            if (!(v < 1e15)) out->sound = 0;
        }
        most_column = fmax(most_column, column);
    }
    for (size_t j = 0; j < d; j++) most_row = fmax(most_row, out->row_sums[j]);
    out->norm = fmin(sqrt(squares), sqrt(most_column * most_row));
    out->error = length_of(out->row_errors, d);
    out->shift = length_of(out->row_shifts, d);
    out->spread = length_of(out->row_sums, d);
}

/* C_k and L_k with their rounding, g A, e0: see screen_full.cl. */
static int full_constants(const cl_engine *engine, size_t i, const white_matrix *matrix, float *out) {
    const fgmm_params *params = &engine->params;
    const double unit = 0x1p-24, dt = engine->white_tile.dt;
    double norm = params->log_norm[engine->ids[i]], log_w = params->log_weights[engine->ids[i]];
    double g = (dt + (double)engine->d / dt + 8.0) * unit, pad = 8.0 * unit * (fabs(norm) + fabs(log_w)) + 1e-6;
    out[0] = (float)(norm + pad);
    out[1] = (float)(norm + log_w - pad);
    out[2] = (float)(1.01 * g * matrix->norm);
    out[3] = (float)(1.01 * matrix->error + 1e-12);
    return matrix->sound && fabs(norm) < 1e30 && out[2] < 1.0f && out[3] < 1e15f;
}

/* Of screen_full_wgmma.cl: constant and factors of |y^|^2 and |t|^2 of the upper logit, then of the lower. @return whether that
 * component can be screened there: loosely, where its bound is no small part of |y|. */
static int matrix_constants(const cl_engine *engine, size_t i, const white_matrix *matrix, float *out) {
    const fgmm_params *params = &engine->params;
    const double unit = 0x1p-24, eta = (0.5 * (double)engine->d + 24.0) * unit;
    double norm = params->log_norm[engine->ids[i]], log_w = params->log_weights[engine->ids[i]];
    double g = 0x1p-10 * (1.0 + 0x1p-11) + 1.25 * 16.0 * (double)engine->matrix.steps * 0x1p-23 + 8.0 * unit;
    double ga = 1.01 * (g * matrix->norm + (double)engine->d * 0x1p-25);
    double e0 = 1.01 * (0x1p-22 * matrix->shift + 0x1p-25 * matrix->spread + matrix->error) + 1e-12;
    double delta = fmin(0.5, fmax(0x1p-7, ga)), squares = 1.0 / delta - 1.0;
    double pad = 16.0 * unit * (fabs(norm) + fabs(log_w)) + 1e-6;
    out[0] = (float)(norm + pad + 1.01 * squares * e0 * e0);
    out[1] = (float)(0.5 * (1.0 - delta) * (1.0 - 4.0 * eta));
    out[2] = (float)(1.01 * squares * ga * ga);
    out[3] = 0.0f;
    squares = 1.0 / delta + 1.0;
    out[4] = (float)(norm + log_w - pad - 1.01 * squares * e0 * e0);
    out[5] = (float)(0.5 * (1.0 + delta) * (1.0 + 4.0 * eta));
    out[6] = (float)(1.01 * squares * ga * ga);
    out[7] = 0.0f;
    return matrix->most < 6e4 && ga < 0.5 && fabs(out[0]) < 1e30 && fabs(out[4]) < 1e30;
}

fgmm_status cl_fit_white(fgmm_device *device, int sound) {
    cl_engine *engine = device->engine;
    size_t matrices = engine->full ? engine->k : 1;
    const fgmm_host *host = &device->host;
    double d = engine->d, room = (double)device->limit_bytes, need = (double)matrices * (2.0 * d + 1.0) * d * 4.0;
    need += cl_tally_bytes(&engine->sparse_scatter) + cl_tally_bytes(&engine->dense_scatter);
    if (need > room)
        return host->fail(host->user, FGMM_ERR_MEMORY,
                          "%s covariances of %u components in %u features need %.0f MiB, and %s has %.0f MiB",
                          engine->full ? "full" : "tied", engine->k, engine->d, need / 0x1p20, device->name,
                          room / 0x1p20);
    /* Without room for the tiles the f32 screen serves. */
    if (engine->full && (!sound || need + (double)matrices * (double)full_floats(engine) * 4.0 > room))
        engine->matrix.on = CL_MATRIX_NONE;
    CL_TRY(cl_room_fit(device, &engine->white_hi, matrices * engine->d * engine->d * sizeof(float), "whitening"));
    CL_TRY(cl_room_fit(device, &engine->white_lo, matrices * engine->d * engine->d * sizeof(float), "whitening"));
    return cl_room_fit(device, &engine->white_scale, matrices * engine->d * sizeof(float), "whitening");
}

/* Where the matrices of a batch lie on their way: hi and lo [count, D, D], scale [count, D]. */
typedef struct white_batch {
    size_t first, count;
    float *hi, *lo, *scale;
} white_batch;

/* Makes the matrices, and of full covariances their constants [matrices, 4], and [matrices, 8] of the screen on matrix units.
 * doubles: room for [3, D] a thread. Clears *sound, or *on_matrix, where that screen cannot be trusted. */
static void make_batch(const fgmm_device *device, const white_batch *batch, const double *centre, const double *frame,
                       double *doubles, int threads, float *constants, float *bounds, int *sound, int *on_matrix) {
    const cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t d = engine->d, cells = d * d;
#pragma omp parallel for num_threads(threads)
    for (size_t i = 0; i < batch->count; i++) {
        size_t at = batch->first + i, c = engine->full ? (size_t)engine->ids[at] : 0;
        const double *w = params->whitening + c * cells;
#ifdef _OPENMP
        double *room = doubles + (size_t)omp_get_thread_num() * 3 * d;
#else
        double *room = doubles;
#endif
        white_matrix matrix = {.hi = batch->hi + i * cells,
                               .lo = batch->lo + i * cells,
                               .scale = batch->scale + i * d,
                               .row_sums = room,
                               .row_errors = room + d,
                               .row_shifts = room + 2 * d};
        split_matrix(&matrix, w, d);
        if (!engine->full) continue;
        measure_matrix(&matrix, w, params->means + c * d, centre, frame, d);
        /* A reduction would have clang export a name. */
        if (!full_constants(engine, at, &matrix, constants + 4 * at)) {
#pragma omp atomic write
            *sound = 0;
        }
        if (!matrix_constants(engine, at, &matrix, bounds + CL_FULL_CONSTANTS * at)) {
#pragma omp atomic write
            *on_matrix = 0;
        }
    }
}

static fgmm_status send_floats(fgmm_device *device, cl_mem to, size_t first, size_t count, const float *from) {
    CL_CHECK(device,
             clEnqueueWriteBuffer(device->queue, to, CL_FALSE, first * sizeof *from, count * sizeof *from, from, 0,
                                  NULL, NULL),
             "whitening");
    return FGMM_OK;
}

/* The full screen's bounds: log cut, slack, Cmax, pad; and eta. */
static void full_bounds(cl_engine *engine) {
    const double unit = 0x1p-24;
    double most = engine->log_norm_max;
    engine->bounds.s[0] = engine->log_cut;
    engine->bounds.s[1] = (float)(32.0 * unit);
    engine->bounds.s[2] = (float)most;
    engine->bounds.s[3] = (float)(16.0 * unit * (fabs(most) + fabs((double)engine->log_cut)) + 1e-6);
    engine->white_eta = (float)((0.5 * engine->d + 16.0) * unit);
}

/* What the screens of full covariances take besides: constants [K, 4]; bounds [K, 8] and centre, padded, where matrix units serve. */
static fgmm_status prepare_full(fgmm_device *device, const float *constants, const float *bounds, const float *centre) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t k = engine->k, vector = 16 * (size_t)engine->matrix.steps;
    full_bounds(engine);
    CL_TRY(cl_send(device, &engine->screen_c, 4 * k * sizeof *constants, constants, "the screen's constants"));
    if (!engine->matrix.on) return FGMM_OK;
    cl_uint lead = (cl_uint)lead_steps(engine), from = (cl_uint)vector, floats = (cl_uint)full_floats(engine);
    size_t global[3] = {CL_GROUP_COLUMNS, 2 * cl_full_blocks(engine) + 1, k}, local[3] = {CL_GROUP_COLUMNS, 1, 1};
    CL_TRY(cl_send(device, &engine->white_bounds, CL_FULL_CONSTANTS * k * sizeof *bounds, bounds,
                   "the screen's constants"));
    CL_TRY(cl_send(device, &engine->centre, vector * sizeof *centre, centre, "the screen's centre"));
    CL_TRY(cl_room_fit(device, &engine->fragments, k * full_floats(engine) * sizeof(float), "whitening as tiles"));
    CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_full"));
    return CL_RUN(device, kernel, "arranging parameters", 3, global, local, CL_ARG(engine->white_hi.mem),
                  CL_ARG(engine->white_scale.mem), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem),
                  CL_ARG(engine->centre.mem), CL_ARG(engine->white_bounds.mem), CL_ARG(engine->d), CL_ARG(lead),
                  CL_ARG(from), CL_ARG(floats), CL_ARG(engine->fragments.mem));
}

fgmm_status cl_prepare_white(fgmm_device *device, const double *frame, int *sound) {
    cl_engine *engine = device->engine;
    size_t d = engine->d, matrices = engine->full ? engine->k : 1, cells = d * d, each = 2 * cells + d;
    size_t most = BATCH_BYTES / (each * sizeof(float)) ? BATCH_BYTES / (each * sizeof(float)) : 1;
    size_t vector = cl_round_up(d, 16), numbers = 4 + CL_FULL_CONSTANTS;
    if (most > matrices) most = matrices;
    int threads = most > 1 ? cl_threads(device, matrices * cells) : 1, on_matrix = engine->matrix.on;
    fgmm_status status = FGMM_OK;
    CL_TRY(cl_pin(device, &engine->white_pinned, most * each * sizeof(float)));
    float *at = engine->white_pinned.at,
          *constants = cl_alloc(device, (numbers * matrices + vector) * sizeof *constants);
    if (!constants) return FGMM_ERR_MEMORY;
    float *bounds = constants + 4 * matrices, *centre = constants + numbers * matrices;
    double *doubles = cl_alloc(device, (1 + 3 * (size_t)threads) * d * sizeof *doubles), *middle = doubles;
    if (!doubles) CL_GO(FGMM_ERR_MEMORY);
    for (size_t f = 0; f < vector; f++) centre[f] = f < d ? cl_screen_centre(&engine->params, frame, (int64_t)f) : 0.0f;
    for (size_t f = 0; f < d; f++) middle[f] = (double)centre[f] + (frame ? frame[f] : 0.0);
    for (size_t first = 0; first < matrices; first += most) {
        white_batch batch = {.first = first, .count = matrices - first < most ? matrices - first : most};
        batch.hi = at;
        batch.lo = at + most * cells;
        batch.scale = at + 2 * most * cells;
        cl_int code = first ? clFinish(device->queue) : CL_SUCCESS; /* the batch before lies there still */
        if (code != CL_SUCCESS) CL_GO(cl_fail(device, code, "whitening"));
        make_batch(device, &batch, middle, frame, doubles + d, threads, constants, bounds, sound, &on_matrix);
        CL_GO(send_floats(device, engine->white_hi.mem, first * cells, batch.count * cells, batch.hi));
        CL_GO(send_floats(device, engine->white_lo.mem, first * cells, batch.count * cells, batch.lo));
        CL_GO(send_floats(device, engine->white_scale.mem, first * d, batch.count * d, batch.scale));
    }
    if (engine->full) {
        engine->matrix.on = *sound ? on_matrix : CL_MATRIX_NONE;
        CL_GO(prepare_full(device, constants, bounds, centre));
    } else {
        CL_GO(cl_send(device, &engine->white_centre, d * sizeof(float), centre, "the screen's centre"));
    }
done:
    cl_release_memory(device, doubles);
    cl_release_memory(device, constants);
    return status;
}

static void white_options(const cl_engine *engine, char *out, size_t size, const fgmm_block *block) {
    const cl_tile *tile = &engine->white_tile;
    char row[64];
    cl_row_options(row, sizeof row, block);
    snprintf(out, size, "%s -DGX=%d -DGY=%d -DRM=%d -DRN=%d -DDT=%d", row, tile->gx, tile->gy, tile->rm, tile->rn,
             tile->dt);
}

fgmm_status cl_white_rows(fgmm_device *device, const fgmm_block *block, cl_uint row0, cl_uint n) {
    cl_engine *engine = device->engine;
    const cl_tile *tile = &engine->white_tile;
    cl_kernel kernel = NULL;
    char options[128];
    white_options(engine, options, sizeof options, block);
    CL_TRY(cl_room_fit(device, &engine->white_rows, (size_t)n * engine->d * sizeof(float), "whitened rows"));
    CL_TRY(cl_kernel_get(device, &kernel, "whiten", options, "whiten_rows"));
    size_t rows = (size_t)(tile->gy * tile->rm), outputs = (size_t)(tile->gx * tile->rn);
    size_t local[2] = {(size_t)tile->gx, (size_t)tile->gy};
    size_t global[2] = {cl_round_up(engine->d, outputs) / outputs * local[0], cl_round_up(n, rows) / rows * local[1]};
    return CL_RUN(device, kernel, "whitening rows", 2, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(row0), CL_ARG(n), CL_ARG(engine->d), CL_ARG(engine->white_centre.mem),
                  CL_ARG(engine->white_hi.mem), CL_ARG(engine->white_lo.mem), CL_ARG(engine->white_scale.mem),
                  CL_ARG(engine->white_rows.mem));
}

/* What is formed exactly goes a row at a time, over so many work-items. */
static size_t exact_lanes(const cl_engine *engine) {
    return engine->d >= 64 ? 64 : engine->d >= 16 ? 16 : engine->d >= 4 ? 4 : 1;
}

static void exact_options(const cl_engine *engine, char *out, size_t size, const fgmm_block *block) {
    size_t lanes = exact_lanes(engine), outputs = engine->d >= 256 ? 4 : (engine->d + lanes - 1) / lanes;
    char row[64];
    cl_row_options(row, sizeof row, block);
    snprintf(out, size, "%s -DLANES=%u -DRJ=%u", row, (unsigned)lanes, (unsigned)outputs);
}

/* Rows of a dispatch. */
static size_t exact_step(const cl_engine *engine, size_t rows) {
    return cl_round_up((size_t)(engine->batch_budget / FF_COST / ((int64_t)engine->d * engine->d) + 1), rows);
}

fgmm_status cl_known_full(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_kernel kernel = NULL;
    char options[128];
    exact_options(engine, options, sizeof options, block);
    CL_TRY(cl_kernel_get(device, &kernel, "refine_full", options, "known_full"));
    size_t local = 64, rows = local / exact_lanes(engine), step = exact_step(engine, rows);
    for (size_t i = 0; i < slice->n; i += step) {
        if (i) CL_TRY(cl_breathe(device));
        cl_uint n = (cl_uint)(i + step < slice->n ? step : slice->n - i), out0 = (cl_uint)i, row0 = slice->row0 + out0;
        size_t global = cl_round_up(n, rows) / rows * local;
        CL_TRY(CL_RUN(device, kernel, "refining", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(row0), CL_ARG(out0), CL_ARG(n), CL_ARG(engine->d), CL_ARG(engine->k),
                      CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem), CL_ARG(engine->white_hi.mem),
                      CL_ARG(engine->white_lo.mem), CL_ARG(engine->white_scale.mem), CL_ARG(engine->constants.mem),
                      CL_ARG(engine->screen_c.mem), CL_ARG(engine->white_eta), CL_ARG(block->hints),
                      CL_ARG(engine->known.mem)));
    }
    return FGMM_OK;
}

fgmm_status cl_refine_full(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_kernel kernel = NULL;
    char options[128];
    exact_options(engine, options, sizeof options, block);
    CL_TRY(cl_kernel_get(device, &kernel, "refine_full", options, "refine_full"));
    cl_uint hard = engine->params.hard != 0, tied = (cl_uint)engine->tied;
    cl_mem known = engine->full ? engine->known.mem : NULL;
    size_t local = 64, rows = local / exact_lanes(engine), step = exact_step(engine, rows);
    for (size_t i = 0; i < slice->n; i += step) {
        if (i) CL_TRY(cl_breathe(device));
        cl_uint n = (cl_uint)(i + step < slice->n ? step : slice->n - i), out0 = (cl_uint)i, row0 = slice->row0 + out0;
        size_t global = cl_round_up(n, rows) / rows * local;
        CL_TRY(CL_RUN(device, kernel, "refining", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(row0), CL_ARG(out0), CL_ARG(n), CL_ARG(engine->d), CL_ARG(engine->k),
                      CL_ARG(tied), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem),
                      CL_ARG(engine->white_hi.mem), CL_ARG(engine->white_lo.mem), CL_ARG(engine->white_scale.mem),
                      CL_ARG(engine->constants.mem), CL_ARG(engine->resp_log_cut), CL_ARG(engine->log_norm_max),
                      CL_ARG(hard), CL_ARG(known), CL_ARG(engine->cand_count.mem), CL_ARG(engine->cand_id.mem),
                      CL_ARG(engine->cand_v.mem), CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem),
                      CL_ARG(engine->logz.mem), CL_ARG(engine->kept_weight.mem), CL_ARG(block->hints)));
    }
    return FGMM_OK;
}

fgmm_status cl_white_logits(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    const cl_slice *slice = group->slice;
    const fgmm_block *block = slice->block;
    const cl_tile *tile = &engine->white_tile;
    cl_kernel kernel = NULL;
    char options[128];
    white_options(engine, options, sizeof options, block);
    CL_TRY(cl_kernel_get(device, &kernel, "whiten", options, "whiten_logits"));
    size_t rows = (size_t)(tile->gy * tile->rm);
    int64_t most = engine->batch_budget / FF_COST / ((int64_t)engine->d * engine->d) + 1; /* cells a dispatch */
    size_t step = cl_round_up((size_t)(most / width + 1), rows), columns = (size_t)most / step + 1;
    cl_uint tied = (cl_uint)engine->tied;
    for (size_t i = 0; i < group->n; i += step)
        for (size_t c = 0; c < width; c += columns) {
            if (i || c) CL_TRY(cl_breathe(device));
            size_t count = i + step < group->n ? step : group->n - i, wide = c + columns < width ? columns : width - c;
            cl_uint i0 = (cl_uint)i, c0 = (cl_uint)c;
            size_t local[2] = {(size_t)tile->gx, (size_t)tile->gy};
            size_t global[2] = {wide * local[0], cl_round_up(count, rows) / rows * local[1]};
            CL_TRY(CL_RUN(device, kernel, "dense logits", 2, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                          CL_ARG(block->pitch), CL_ARG(slice->row0), CL_ARG(group->list), CL_ARG(group->base),
                          CL_ARG(i0), CL_ARG(group->n), CL_ARG(engine->d), CL_ARG(k0), CL_ARG(c0), CL_ARG(width),
                          CL_ARG(tied), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem),
                          CL_ARG(engine->white_hi.mem), CL_ARG(engine->white_lo.mem), CL_ARG(engine->white_scale.mem),
                          CL_ARG(engine->constants.mem), CL_ARG(engine->white_logits.mem)));
        }
    return FGMM_OK;
}
