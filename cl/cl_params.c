/*
 * Parameters on the device, from the doubles of fgmm_params: in the screen's form (rows and means centred and scaled,
 * constants with their error bounds, see screen.cl) and in the exact form (means and sum centres as two floats).
 */
#include "cl_engine.h"

#include "../lib/clones.h"

#include <math.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

void cl_split(double value, float *hi, float *lo) {
    *hi = (float)value;
    *lo = isfinite(*hi) ? (float)(value - (double)*hi) : 0.0f;
}

float cl_screen_centre(const fgmm_params *params, const double *frame, int64_t feature) {
    return (float)(params->centre[feature] - (frame ? frame[feature] : 0.0));
}

static void choose_tiles(const fgmm_device *device, cl_engine *engine) {
    cl_uint k = engine->k, d = engine->d;
    engine->tile = cl_tuning_tile(device, CL_TUNED_SCREEN, k, d);
    engine->white_tile = cl_tuning_tile(device, CL_TUNED_WHITEN, k, d);
    engine->scatter_tile = cl_tuning_tile(device, CL_TUNED_SCATTER, k, d);
    engine->batch_budget = (int64_t)200000000 * (device->compute_units ? device->compute_units : 1);
}

/* A warpgroup keeps the fragments of its rows up to a depth of 512; a warp keeps its own up to 128; beyond, it fetches them, and takes
 * twice as many components at a time to make that pay. Full covariances have one kernel, for warpgroups. */
static void choose_matrix(const fgmm_device *device, cl_engine *engine) {
    cl_uint parts = engine->diag ? 2 : 1, steps = (engine->d + 15) / 16 * parts;
    int on = device->has_matrix;
    if (engine->full && (on != CL_MATRIX_WARPGROUPS || !device->has_full || steps > CL_FULL_STEPS)) on = CL_MATRIX_NONE;
    if (on == CL_MATRIX_WARPGROUPS && steps > 32) on = CL_MATRIX_WARPS;
    if (on == CL_MATRIX_WARPS && !device->has_warps) on = CL_MATRIX_NONE;
    int kept = on == CL_MATRIX_WARPGROUPS || steps <= 8;
    if (!kept) steps = (cl_uint)cl_round_up(steps, CL_MATRIX_CHUNK);
    engine->matrix = (cl_matrix){.on = on,
                                 .dp = steps / parts * 16,
                                 .steps = steps,
                                 .kept = kept ? steps : 0,
                                 .nt = kept ? 8 : 16,
                                 .chunks = kept ? 1 : steps / CL_MATRIX_CHUNK};
    engine->matrix.tiles = (engine->k + 8 * engine->matrix.nt - 1) / (8 * engine->matrix.nt);
}

/* ---- what is sent ---- */

float *cl_take(cl_engine *engine, size_t count) {
    float *out = (float *)(void *)((char *)engine->pinned.at + engine->pinned.used);
    engine->pinned.used += cl_round_up(count * sizeof *out, 64);
    return out;
}

/* Kernels that read four at a time may read beyond the last. */
static fgmm_status fit_floats(fgmm_device *device, cl_room *room, size_t count, const char *what) {
    return cl_room_fit(device, room, (count + 3) * sizeof(float), what);
}

fgmm_status cl_send_taken(fgmm_device *device, cl_room *room, const float *from, size_t count, const char *what) {
    CL_TRY(fit_floats(device, room, count, what));
    CL_CHECK(device,
             clEnqueueWriteBuffer(device->queue, room->mem, CL_FALSE, 0, count * sizeof *from, from, 0, NULL, NULL),
             what);
    return FGMM_OK;
}

/* A row of doubles less `frame` (or NULL), as two floats each. */
static FGMM_INTO_CLONES void split_row(const double *row, const double *frame, size_t d, float *hi, float *lo) {
    float check = 0.0f; /* not finite where a value is beyond a float */
    for (size_t f = 0; f < d; f++) {
        double value = row[f] - (frame ? frame[f] : 0.0);
        hi[f] = (float)value;
        lo[f] = (float)(value - (double)hi[f]);
    }
#pragma omp simd reduction(+ : check)
    for (size_t f = 0; f < d; f++) check += lo[f];
    if (isfinite(check)) return;
    for (size_t f = 0; f < d; f++) cl_split(row[f] - (frame ? frame[f] : 0.0), &hi[f], &lo[f]);
}

/* Values [K, D] in two floats each: upper and lower, in pinned memory. */
typedef struct split_rows {
    const double *values, *frame;
    float *hi, *lo;
    float *off; /* [K] of means, or NULL: e of reach.cl */
} split_rows;

static split_rows take_split(cl_engine *engine, const double *values, const double *frame) {
    size_t cells = engine->k * engine->d;
    split_rows out = {values, frame, cl_take(engine, cells), NULL, NULL};
    out.lo = cl_take(engine, cells);
    return out;
}

/* The norm of what a component's upper floats leave of its mean. */
static FGMM_INTO_CLONES float norm_off(const cl_engine *engine, size_t i, const float *lo) {
    size_t c = (size_t)engine->ids[i], d = engine->d;
    const double *a = engine->params.half_inv_var + (engine->diag ? c * d : c);
    double sums[FGMM_LANES] = {0}, sum;
    size_t f = 0;
    for (; f + FGMM_LANES <= d; f += FGMM_LANES)
#pragma omp simd
        for (int l = 0; l < FGMM_LANES; l++) {
            double t = lo[f + l];
            sums[l] += (engine->diag ? a[f + l] : 1.0) * t * t;
        }
    for (; f < d; f++) sums[0] += (engine->diag ? a[f] : 1.0) * (double)lo[f] * (double)lo[f];
    sum = fgmm_add_lanes(sums);
    return (float)(sqrt(engine->diag ? sum : a[0] * sum) * (1.0 + 0x1p-20));
}

FGMM_CLONES static void split_component(const cl_engine *engine, const split_rows *split, size_t i) {
    size_t d = engine->d;
    float *lo = split->lo + i * d;
    split_row(split->values + (size_t)engine->ids[i] * d, split->frame, d, split->hi + i * d, lo);
    if (split->off) split->off[i] = norm_off(engine, i, lo);
}

static fgmm_status send_split(fgmm_device *device, const split_rows *split, cl_room *hi, cl_room *lo,
                              const char *what) {
    cl_engine *engine = device->engine;
    size_t cells = engine->k * engine->d;
    CL_TRY(cl_send_taken(device, hi, split->hi, cells, what));
    return cl_send_taken(device, lo, split->lo, cells, what);
}

static fgmm_status split_and_send(fgmm_device *device, const double *values, const double *frame, cl_room *hi,
                                  cl_room *lo, const char *what) {
    cl_engine *engine = device->engine;
    split_rows split = take_split(engine, values, frame);
#pragma omp parallel for num_threads(cl_threads(device, engine->k * engine->d))
    for (size_t i = 0; i < engine->k; i++) split_component(engine, &split, i);
    return send_split(device, &split, hi, lo, what);
}

/* ---- the screens' parameters ---- */

/* What the screens know of a component: M = sum a m^2 of its scaled mean; the scaled a (the last, where there are several), their sums, and
 * of diagonal ones the largest of a and 2 a |m|. */
typedef struct screen_component {
    double norm, log_w, m, a, most_a, sum_a, sum_am;
    int sound;        /* within what floats hold with room to spare */
    int suits_matrix; /* within what f16 does */
} screen_component;

/* Columns of the screens: where they lie, what they are scaled by, and 1 / scale^2. */
typedef struct screen_frame {
    double *centre, *scale, *inverse_square; /* [D] each */
} screen_frame;

/* Sums of squares and of sizes. */
static FGMM_INTO_CLONES void add_sizes(const double *values, size_t d, double *square, double *sum) {
    double squares[FGMM_LANES] = {0}, sums[FGMM_LANES] = {0};
    size_t f = 0;
    for (; f + FGMM_LANES <= d; f += FGMM_LANES)
#pragma omp simd
        for (int l = 0; l < FGMM_LANES; l++) {
            squares[l] += values[f + l] * values[f + l];
            sums[l] += fabs(values[f + l]);
        }
    for (; f < d; f++) {
        squares[0] += values[f] * values[f];
        sums[0] += fabs(values[f]);
    }
    *square = fgmm_add_lanes(squares);
    *sum = fgmm_add_lanes(sums);
}

/* One component's rows of screen_rows, where there are any: its mean about the centre (whitened if tied) and scaled; diagonal: -a and 2 a m
 * of it. mean: room for [D]. */
FGMM_CLONES static screen_component form_component(const cl_engine *engine, const screen_frame *frame, size_t i,
                                                   double *mean, float *first, float *second) {
    const fgmm_params *params = &engine->params;
    int64_t c = engine->ids[i];
    size_t d = engine->d;
    const double *at = params->means + (size_t)c * d;
    const double *inverse = engine->diag ? params->half_inv_var + (size_t)c * d : NULL;
    screen_component out = {.norm = params->log_norm[c], .log_w = params->log_weights[c], .sound = 1};
    double square = 0.0, sum = 0.0, most = 0.0, least_a = INFINITY, largest_a = 0.0;
    for (size_t f = 0; f < d; f++) mean[f] = at[f] - frame->centre[f];
    if (engine->tied)
        for (size_t f = d; f-- > 0;) { /* from the last, since y_f needs t_0 .. t_f */
            double y = 0.0;
            for (size_t g = 0; g <= f; g++) y += params->whitening[f * d + g] * mean[g];
            mean[f] = y;
        }
    for (size_t f = 0; f < d; f++) mean[f] *= frame->scale[f];
    if (inverse) {
        for (size_t f = 0; f < d; f++) most = mean[f] > most ? mean[f] : -mean[f] > most ? -mean[f] : most;
        for (size_t f = 0; f < d; f++) {
            double a = inverse[f] * frame->inverse_square[f], am = 2.0 * a * mean[f], size = fabs(am);
            if (first) {
                first[f] = (float)-a;
                second[f] = (float)am;
            }
            square += am * mean[f];
            out.sum_a += a;
            sum += size;
            least_a = a < least_a ? a : least_a;
            largest_a = a > largest_a ? a : largest_a;
            out.most_a = size > out.most_a ? size : out.most_a;
            out.a = a;
        }
        out.m = 0.5 * square;
        out.sum_am = sum;
        out.most_a = fmax(out.most_a, largest_a);
    } else {
        double a = (params->half_inv_var ? params->half_inv_var[c] : 0.5) * frame->inverse_square[0];
        for (size_t f = 0; f < d && first; f++) first[f] = (float)mean[f];
        add_sizes(mean, d, &square, &sum);
        most = sqrt(square); /* at most */
        out.a = least_a = largest_a = a;
        out.m = a * square;
        out.sum_a = (double)d * a;
        out.sum_am = 2.0 * a * sum;
    }
    /* Outside these a float's relative rounding no longer holds, or products overflow. */
    out.sound = least_a > 1e-30 && largest_a < 1e30 && most < 1e18 && out.m < 1e30 && fabs(out.norm) < 1e30;
    return out;
}

/* Rounding of the constants themselves. */
static double constant_error(const screen_component *c) {
    return 8.0 * 0x1p-24 * (fabs(c->norm) + fabs(c->log_w)) + 1e-6;
}

/* bounds of screen.cl and screen_mma.cl for a relative rounding g of each term. */
static cl_float4 screen_bounds(const cl_engine *engine, double g) {
    double most = engine->params.log_norm_max;
    cl_float4 out;
    out.s[0] = engine->log_cut;
    out.s[1] = (float)(16.0 * g);
    out.s[2] = (float)most;
    out.s[3] = (float)(16.0 * 0x1p-24 * (fabs(most) + fabs((double)engine->log_cut)) + 1e-6);
    return out;
}

/* Tied: rows off by an error in norm, too, of which their square takes 2 P and the product with the means P + M. */
static double row_error(const cl_engine *engine) {
    return engine->tied ? 2.0 * cl_white_error(&engine->params) : 0.0;
}

/* The f32 screen's constants c1, c2, a, M of each component, and its bounds. Returns whether it can be trusted. */
static int screen_constants(cl_engine *engine, const screen_component *measured, float *out) {
    double depth = engine->diag ? 2.0 * engine->d : engine->d;
    double g = (depth + 16.0) * 0x1p-24 + row_error(engine);
    int sound = g < 0.05;
    memset(out, 0, (size_t)engine->kp * 4 * sizeof *out);
    for (size_t i = engine->k; i < engine->kp; i++) out[4 * i] = out[4 * i + 1] = -3e38f;
    for (size_t i = 0; i < engine->k; i++) {
        const screen_component *c = &measured[i];
        double error = 7.0 * g * c->m + constant_error(c);
        if (!c->sound || !(error < 1e30)) sound = 0;
        out[4 * i] = (float)(c->norm + c->log_w - error);
        out[4 * i + 1] = (float)(c->norm + error);
        out[4 * i + 2] = (float)c->a;
        out[4 * i + 3] = (float)c->m;
    }
    engine->bounds = screen_bounds(engine, g);
    return sound;
}

/*
 * The same for screen_mma.cl: multiplier, c1, c2 - c1 of each component, from which columns follow. f16 below 2^-14 is off by
 * 2^-25: of the rows' terms that makes 2^-25 of the sum of the components' factors, of the components' 2^-25 of the sum of the
 * rows', which the norm that a row may have bounds. Spherical factors are as large as means, and 2 |x| <= 1 + |x|^2 brings the
 * rows' under g; diagonal ones are brought to [2^14, 2^15) by a multiplier.
 */
static double matrix_rounding(const cl_engine *engine) {
    double depth = 16.0 * engine->matrix.steps;
    return 0x1.008p-10 + (1.25 * depth + 64.0) * 2.0 * 0x1p-24 + 0x1p-25 * sqrt((double)engine->d) + row_error(engine);
}

/* Of component i. Returns whether they can be trusted. */
static int matrix_component(const cl_engine *engine, double g, const screen_component *c, size_t i) {
    const double unit = 0x1p-24, tiny = 0x1p-25, d = engine->d, norm_most = 60000.0;
    double multiplier = engine->diag ? ldexp(1.0, ilogb(c->most_a) - 14) : 2.0 * c->a;
    double tail = engine->diag ? tiny * (c->sum_a + c->sum_am + multiplier * (1.5 * norm_most + 0.5 * d))
                               : tiny * (c->sum_am + c->a * sqrt(d));
    double error = (7.0 * g * c->m + 8.0 * unit * c->m + constant_error(c) + tail) * (1.0 + 8.0 * unit);
    float *out = engine->multipliers + 4 * i, *column = engine->tiled + 2 * i;
    out[0] = column[0] = (float)multiplier;
    out[1] = column[1] = (float)(c->norm + c->log_w - error - c->m);
    out[2] = (float)(2.0 * error - c->log_w);
    out[3] = 0.0f;
    if (!engine->diag && !(c->m < c->a * norm_most)) return 0; /* the mean's norm, as a row's */
    return c->sound && error < 1e15 && multiplier > 1e-15 && multiplier < 1e15;
}

static int matrix_constants(cl_engine *engine) {
    cl_matrix *matrix = &engine->matrix;
    double slack = 0.0, g = matrix_rounding(engine);
    size_t padded = (size_t)matrix->tiles * matrix->nt * 8;
    for (size_t i = engine->k; i < padded; i++) engine->tiled[2 * i] = 0.0f, engine->tiled[2 * i + 1] = -3e38f;
    for (size_t i = 0; i < engine->k; i++) {
        if (!engine->measured[i].suits_matrix) return 0;
        slack = fmax(slack, (double)engine->multipliers[4 * i + 2]);
    }
    matrix->slack = (float)(slack + 1e-6 * fabs(slack));
    matrix->bounds = screen_bounds(engine, g);
    return g < 0.05;
}

/* The columns in the order of screen.cl. */
static fgmm_status arrange_columns(fgmm_device *device, size_t rows_from) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_uint from = (cl_uint)rows_from;
    size_t bytes = (size_t)engine->dp * engine->kp * sizeof(cl_float);
    size_t local[2] = {device->max_work_group >= 64 ? 64 : 1, 1};
    size_t global[2] = {cl_round_up(engine->kp, local[0]), engine->dp};
    CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_columns"));
    for (int part = 0; part < (engine->diag ? 2 : 1); part++) {
        cl_room *out = part ? &engine->screen_b : &engine->screen_a;
        CL_TRY(cl_room_fit(device, out, bytes, "the screen's parameters"));
        CL_TRY(CL_RUN(device, kernel, "arranging parameters", 2, global, local, CL_ARG(engine->screen_rows[part].mem),
                      CL_ARG(engine->k), CL_ARG(from), CL_ARG(engine->dp), CL_ARG(engine->kp), CL_ARG(out->mem)));
    }
    return FGMM_OK;
}

/* Features of screen_rows, centre and scale: padded as the screen needs. */
static size_t padded_features(const cl_engine *engine) {
    return engine->matrix.on ? engine->matrix.dp : engine->dp;
}

static size_t padded_columns(const cl_engine *engine) {
    return (size_t)engine->matrix.tiles * engine->matrix.nt * 8;
}

/* And of screen_mma.cl or screen_wgmma.cl. */
static fgmm_status arrange_fragments(fgmm_device *device) {
    cl_engine *engine = device->engine;
    const cl_matrix *matrix = &engine->matrix;
    cl_kernel kernel = NULL;
    cl_mem second = engine->diag ? engine->screen_rows[1].mem : NULL;
    size_t bytes = (size_t)matrix->tiles * matrix->steps * matrix->nt * 8 * 32;
    if (matrix->on == CL_MATRIX_WARPGROUPS) {
        size_t items[3] = {CL_GROUP_COLUMNS, 2 * (size_t)matrix->steps + 1, matrix->tiles};
        size_t group[3] = {CL_GROUP_COLUMNS, 1, 1};
        bytes += padded_columns(engine) * sizeof(cl_float2);
        CL_TRY(cl_room_fit(device, &engine->fragments, bytes, "the components as tiles"));
        CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_tiles"));
        return CL_RUN(device, kernel, "arranging parameters", 3, items, group, CL_ARG(engine->screen_rows[0].mem),
                      CL_ARG(second), CL_ARG(engine->matrix_c.mem), CL_ARG(engine->columns.mem), CL_ARG(engine->k),
                      CL_ARG(matrix->dp), CL_ARG(engine->fragments.mem));
    }
    size_t local[3] = {32, 1, 1}, global[3] = {16 * (size_t)matrix->nt, matrix->steps, matrix->tiles};
    CL_TRY(cl_room_fit(device, &engine->fragments, bytes, "the components as fragments"));
    CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_fragments"));
    return CL_RUN(device, kernel, "arranging parameters", 3, global, local, CL_ARG(engine->screen_rows[0].mem),
                  CL_ARG(second), CL_ARG(engine->matrix_c.mem), CL_ARG(engine->k), CL_ARG(matrix->dp),
                  CL_ARG(matrix->nt), CL_ARG(engine->fragments.mem));
}

static fgmm_status send_frame(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    size_t from = padded_features(engine);
    float *centre = cl_take(engine, from), *scale = cl_take(engine, from);
    for (size_t f = 0; f < from; f++) {
        int within = f < engine->d;
        /* Whitened rows are about the centre already. */
        centre[f] = within && !engine->tied ? cl_screen_centre(&engine->params, frame, (int64_t)f) : 0.0f;
        scale[f] = within ? (float)engine->params.scale[f] : 0.0f;
    }
    CL_TRY(cl_send_taken(device, &engine->centre, centre, from, "the screen's centre"));
    return cl_send_taken(device, &engine->scale, scale, from, "the screen's scale");
}

static void drop_measured(fgmm_device *device) {
    cl_release_memory(device, device->engine->measured);
    device->engine->measured = NULL;
}

/* Fills engine->measured; rows[0 .. 1] and matrix units' constants (NULL: not these); and splits the means (NULL: not these). */
static fgmm_status form_components(fgmm_device *device, const double *frame, const split_rows *split, float *rows[2]) {
    const cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t d = engine->d, from = engine->rows_from;
    int threads = cl_threads(device, engine->k * d * (engine->tied ? d : 1));
    double *room = cl_alloc(device, (3 + (size_t)threads) * d * sizeof *room);
    if (!room) return FGMM_ERR_MEMORY;
    screen_frame columns = {room, room + d, room + 2 * d};
    double g = matrix_rounding(engine);
    for (size_t f = 0; f < d; f++) {
        columns.centre[f] = cl_screen_centre(params, frame, (int64_t)f) + (frame ? frame[f] : 0.0);
        columns.scale[f] = params->scale[f];
        columns.inverse_square[f] = 1.0 / (params->scale[f] * params->scale[f]);
    }
#pragma omp parallel for num_threads(threads)
    for (size_t i = 0; i < engine->k; i++) {
#ifdef _OPENMP
        double *mean = room + (3 + (size_t)omp_get_thread_num()) * d;
#else
        double *mean = room + 3 * d;
#endif
        float *first = rows ? rows[0] + i * from : NULL, *second = rows && rows[1] ? rows[1] + i * from : NULL;
        if (split) split_component(engine, split, i);
        screen_component *c = &engine->measured[i];
        *c = form_component(engine, &columns, i, mean, first, second);
        c->suits_matrix = first && engine->matrix.on && matrix_component(engine, g, c, i);
        for (size_t f = d; f < from && first; f++) {
            first[f] = 0.0f;
            if (second) second[f] = 0.0f;
        }
    }
    cl_release_memory(device, room);
    return FGMM_OK;
}

/* Of spherical, diagonal and (about whitened rows) tied covariances. *sound: whether the screen can be trusted. Sends the constants that
 * settling takes, too. What the screens alone take is formed when it is wanted, but where means are dear. */
static fgmm_status form_screen(fgmm_device *device, const double *frame, const split_rows *split, int *sound) {
    cl_engine *engine = device->engine;
    size_t k = engine->k, from = padded_features(engine);
    float *constants = cl_take(engine, 4 * (size_t)engine->kp);
    engine->multipliers = cl_take(engine, 4 * k);
    engine->tiled = cl_take(engine, 2 * padded_columns(engine));
    fgmm_status status = FGMM_OK;
    engine->measured = cl_alloc(device, k * sizeof *engine->measured);
    if (!engine->measured) return FGMM_ERR_MEMORY;
    for (int part = 0; part < 2; part++)
        engine->forms[part] = part == 0 || engine->diag ? cl_take(engine, k * from) : NULL;
    engine->rows_from = (cl_uint)from;
    CL_GO(form_components(device, frame, split, engine->tied ? engine->forms : NULL));
    if (split) CL_GO(cl_send_taken(device, &engine->mean_hi, split->hi, k * engine->d, "the means"));
    if (!screen_constants(engine, engine->measured, constants)) *sound = 0;
    if (*sound)
        CL_GO(cl_send_taken(device, &engine->screen_c, constants, (size_t)engine->kp * 4, "the screen's constants"));
    if (*sound && split) status = cl_send_taken(device, &engine->off, split->off, k, "the components' reaches");
done:
    if (status != FGMM_OK || !*sound) drop_measured(device);
    return status;
}

fgmm_status cl_send_lower(fgmm_device *device) {
    cl_engine *engine = device->engine;
    const float *lower = engine->lower;
    engine->lower = NULL;
    return lower ? cl_send_taken(device, &engine->mean_lo, lower, engine->k * engine->d, "the means") : FGMM_OK;
}

static fgmm_status send_forms(fgmm_device *device) {
    cl_engine *engine = device->engine;
    size_t from = engine->rows_from;
    for (int part = 0; part < (engine->diag ? 2 : 1); part++)
        CL_TRY(cl_send_taken(device, &engine->screen_rows[part], engine->forms[part], engine->k * from,
                             "the screen's parameters"));
    CL_TRY(cl_send_lower(device));
    return arrange_columns(device, from);
}

/* Through the other queue. *sent: when that is done. */
static fgmm_status send_forms_beside(fgmm_device *device, cl_event *sent) {
    cl_command_queue work = device->queue;
    device->queue = device->copies;
    fgmm_status status = send_forms(device);
    device->queue = work;
    CL_TRY(status);
    CL_CHECK(device, clEnqueueMarkerWithWaitList(device->copies, 0, NULL, sent), "sending the screen's parameters");
    CL_CHECK(device, clFlush(device->copies), "sending the screen's parameters");
    return FGMM_OK;
}

static fgmm_status send_screen(fgmm_device *device, cl_event *sent) {
    cl_engine *engine = device->engine;
    cl_matrix *matrix = &engine->matrix;
    if (!engine->tied) CL_TRY(form_components(device, engine->frame, NULL, engine->forms));
    CL_TRY(sent ? send_forms_beside(device, sent) : send_forms(device));
    if (matrix->on && !matrix_constants(engine)) matrix->on = CL_MATRIX_NONE;
    if (matrix->on) {
        CL_TRY(cl_send_taken(device, &engine->matrix_c, engine->multipliers, 4 * (size_t)engine->k,
                             "the screen's constants"));
        CL_TRY(cl_send_taken(device, &engine->columns, engine->tiled, 2 * padded_columns(engine),
                             "the screen's constants"));
    }
    CL_TRY(send_frame(device, engine->frame));
    if (sent)
        CL_CHECK(device, clEnqueueBarrierWithWaitList(device->queue, 1, sent, NULL),
                 "waiting for the screen's parameters");
    return matrix->on ? arrange_fragments(device) : FGMM_OK;
}

fgmm_status cl_prepare_screen(fgmm_device *device, int beside) {
    cl_event sent = NULL;
    if (!device->engine->measured) return FGMM_OK;
    fgmm_status status = send_screen(device, beside ? &sent : NULL);
    if (sent) clReleaseEvent(sent);
    if (status != FGMM_OK) {
        clFinish(device->copies); /* nothing of it is under way any more */
        return status;
    }
    drop_measured(device);
    return FGMM_OK;
}

/* ---- the exact parameters ---- */

/* Constants of the exact form: L_hi, L_lo, log w, w of each component; and 1 / (2 var). */
static fgmm_status send_exact(fgmm_device *device) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t k = engine->k, d = engine->d;
    float *constants = cl_take(engine, 4 * k);
    for (size_t i = 0; i < k; i++) {
        int64_t c = engine->ids[i];
        cl_split(params->log_norm[c] + params->log_weights[c], &constants[4 * i], &constants[4 * i + 1]);
        constants[4 * i + 2] = (float)params->log_weights[c];
        constants[4 * i + 3] = (float)params->weights[c];
    }
    CL_TRY(cl_send_taken(device, &engine->constants, constants, 4 * k, "the components' constants"));
    if (engine->tied || engine->full) return FGMM_OK;
    size_t count = engine->diag ? k * d : 2 * k;
    float *inverse = cl_take(engine, count);
    if (engine->diag) {
#pragma omp parallel for num_threads(cl_threads(device, count))
        for (size_t i = 0; i < k; i++) {
            const double *from = params->half_inv_var + (size_t)engine->ids[i] * d;
            for (size_t f = 0; f < d; f++) inverse[i * d + f] = (float)from[f];
        }
    } else {
        for (size_t i = 0; i < k; i++)
            cl_split(params->half_inv_var[engine->ids[i]], &inverse[2 * i], &inverse[2 * i + 1]);
    }
    return cl_send_taken(device, &engine->inverse, inverse, count, "the inverse variances");
}

static fgmm_status keep_frame(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    cl_release_memory(device, engine->frame);
    engine->frame = NULL;
    if (!frame) return FGMM_OK;
    size_t bytes = engine->d * sizeof(double);
    engine->frame = cl_alloc(device, bytes);
    if (!engine->frame) return FGMM_ERR_MEMORY;
    memcpy(engine->frame, frame, bytes);
    return FGMM_OK;
}

/* What mean_hi and inverse hold goes where reach_moved finds it. */
static void keep_last(cl_engine *engine) {
    cl_room means = engine->last_hi, inverse = engine->last_inverse;
    engine->last = engine->now;
    engine->last_hi = engine->mean_hi;
    engine->last_inverse = engine->inverse;
    engine->mean_hi = means;
    engine->inverse = inverse;
    engine->now = (cl_generation){0};
}

/* Room for all that a preparation takes. Earlier transfers have ended: each pass is collected, or was given up, before the next.
 * @param screens whether parameters of a screen are among it */
static fgmm_status fit_pinned(fgmm_device *device, int screens) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t k = engine->k, d = engine->d, most = padded_features(engine), columns = padded_columns(engine);
    size_t floats = (params->sum_centres == params->means ? 2 : 4) * k * d + 5 * k + (engine->diag ? k * d : 2 * k);
    if (engine->near) floats += k * d + 4 * k + d;
    if (engine->pairs.on) floats += cl_pairs_floats(engine);
    if (screens) floats += (engine->diag ? 2 : 1) * k * most + 4 * (size_t)engine->kp + 4 * k + 2 * columns + 2 * most;
    CL_CHECK(device, clFinish(device->queue), "waiting for the device");
    return cl_pin(device, &engine->pinned, floats * sizeof(float) + 32 * 64); /* each part on a line of its own */
}

fgmm_status cl_prepare(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    const double *frame = block->centre;
    if (engine->prepared && !frame == !engine->frame &&
        (!frame || memcmp(frame, engine->frame, engine->d * sizeof(double)) == 0))
        return FGMM_OK;
    engine->prepared = engine->reached = 0;
    engine->lower = NULL;
    drop_measured(device);

    CL_TRY(cl_pairs_trust(device, block));
    choose_tiles(device, engine);
    choose_matrix(device, engine);
    engine->kp = (cl_uint)cl_round_up(engine->k, (size_t)(engine->tile.gx * engine->tile.rn));
    engine->dp = (cl_uint)cl_round_up(engine->d, CL_DEPTH_TILE);

    int sound = params->engine != FGMM_ENGINE_DENSE && engine->log_cut > -1e30f;
    CL_TRY(fit_pinned(device, sound && !engine->full));
    if (engine->tied || engine->full) CL_TRY(cl_fit_white(device, sound));
    keep_last(engine);
    if (engine->tied || engine->full) {
        CL_TRY(split_and_send(device, params->means, frame, &engine->mean_hi, &engine->mean_lo, "the means"));
        CL_TRY(cl_prepare_white(device, frame, &sound));
        if (sound && !engine->full) CL_TRY(form_screen(device, frame, NULL, &sound));
    } else if (sound) {
        split_rows split = take_split(engine, params->means, frame);
        split.off = cl_take(engine, engine->k);
        CL_TRY(form_screen(device, frame, &split, &sound));
        CL_TRY(fit_floats(device, &engine->mean_lo, engine->k * engine->d, "the means"));
        engine->lower = split.lo;
        if (!sound) CL_TRY(cl_send_lower(device));
    } else {
        CL_TRY(split_and_send(device, params->means, frame, &engine->mean_hi, &engine->mean_lo, "the means"));
    }
    engine->all_dense = !sound;
    CL_TRY(send_exact(device));
    engine->sum_hi_at = engine->mean_hi.mem;
    engine->sum_lo_at = engine->mean_lo.mem;
    if (params->sum_centres != params->means) {
        CL_TRY(
            split_and_send(device, params->sum_centres, frame, &engine->sum_hi, &engine->sum_lo, "the sums' centres"));
        engine->sum_hi_at = engine->sum_hi.mem;
        engine->sum_lo_at = engine->sum_lo.mem;
    }
    if (engine->near) CL_TRY(cl_send_near(device, frame));
    CL_TRY(keep_frame(device, frame));
    /* Matrices are not among what moves. */
    if (!engine->tied && !engine->full)
        engine->now =
            (cl_generation){.number = ++device->generations, .k = engine->k, .d = engine->d, .diag = engine->diag};
    engine->prepared = 1;
    return FGMM_OK;
}
