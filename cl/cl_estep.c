/* An E-step: begin, blocks slice by slice, collect. */
#include "cl_engine.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    LEAST_GRAIN = 1024,
    MOST_GRAIN = 65536,
    MOST_SLICE = 1 << 17,
    PART_BYTES = 32 << 20,
    SLOTS_BYTES = 26 << 20, /* where a slice's rows are settled, and it lies in many superchunks: so much, */
    MOST_SLOTS = 64,        /* and so many, are summed by a launch */
    ROW_SUMS = 8,
    MOST_HELD = 8
};

void cl_row_options(char *out, size_t size, const fgmm_block *block) {
    snprintf(out, size, "-DROW_TYPE=%d", (int)block->type);
}

int cl_row_fours(cl_uint d, cl_ulong offset, cl_ulong pitch) {
    return offset % 4 == 0 && pitch % 4 == 0 && d % 4 == 0;
}

void cl_tiled_options(cl_tile_options *out, const cl_tile *tile, int diag, const fgmm_block *block) {
    snprintf(out->text, sizeof out->text, "-DROW_TYPE=%d -DDIAG=%d -DGX=%d -DGY=%d -DRM=%d -DRN=%d", (int)block->type,
             diag, tile->gx, tile->gy, tile->rm, tile->rn);
}

/* Superchunks of the sparse sums: their grain is from K and D alone, so that the sums' bits do not depend on blocks. Of many components there are none:
 * their sums take as much memory again for floats under way. */
static void plan_sparse(const fgmm_device *device, cl_engine *engine) {
    int64_t sums = (int64_t)engine->k * (2 * (int64_t)engine->d + 1) * (int64_t)sizeof(cl_float2);
    int64_t grain = LEAST_GRAIN;
    while (grain < MOST_GRAIN && grain < 64 * (int64_t)engine->k) grain *= 2;
    int64_t slots = PART_BYTES / sums, holds = !engine->tied && !engine->full;
    if (slots < 2 || device->as_of_many) grain = 0, slots = 1 + holds;
    slots -= holds; /* of large ones with superchunks one is left, so that they take no more memory */
    int64_t touched = grain ? MOST_SLICE / grain + 1 : 1;
    int64_t bytes = SLOTS_BYTES < device->limit_bytes / 16 ? SLOTS_BYTES : device->limit_bytes / 16;
    int64_t fit = (bytes / sums < MOST_SLOTS ? bytes / sums : MOST_SLOTS) - holds;
    if (touched < fit) touched = fit;
    if (slots > touched) slots = touched;
    cl_tally_reset(&engine->sparse, engine->k, 2 * (size_t)engine->d + 1, grain, (uint32_t)slots);
    engine->sparse.holds = (int)holds;
}

/* No more of them than such a block lies in. */
static void bound_slots(cl_tally *tally, int64_t rows) {
    int64_t touched = tally->grain ? rows / tally->grain + 2 : 1;
    if (!tally->started && tally->slots > touched) tally->slots = (uint32_t)touched;
}

fgmm_status cl_begin(fgmm_device *device, const fgmm_params *params) {
    cl_engine *engine = device->engine;
    if (!engine) {
        engine = cl_alloc(device, sizeof *engine);
        if (!engine) return FGMM_ERR_MEMORY;
        memset(engine, 0, sizeof *engine);
        engine->placed = 1.0;
        engine->screened = 1;
        device->engine = engine;
    }
    if (engine->ahead.told) cl_ahead_drop(device); /* by a preparation that failed */
    /* Parameters may be under way to it; but no longer where it has given all its sums and gone on. */
    if (!engine->ahead.made) CL_CHECK(device, clFinish(device->queue), "waiting for the device");
    engine->ahead.noted = 0;
    if (engine->ahead.waits > 0) engine->ahead.waits--;
    cl_release_memory(device, engine->ids);
    engine->ids = cl_alloc(device, (size_t)params->k * sizeof *engine->ids);
    if (!engine->ids) return FGMM_ERR_MEMORY;
    cl_recall_begin(engine);
    /* Of a pass that was given up, whatever became of it. */
    (void)cl_arrival_wait(&engine->looked);
    if (!engine->ahead.made) (void)cl_arrival_wait(&engine->taken);
    (void)cl_arrival_wait(&engine->coded);
    (void)cl_arrival_wait(&engine->dense_left);
    (void)cl_arrival_wait(&engine->row_sums);
    for (int i = 0; i < CL_PIECES; i++) (void)cl_arrival_wait(&engine->pieces[i]);
    engine->chunks_summed = 0;
    engine->params = *params;
    engine->diag = params->covariance_type == FGMM_DIAG;
    engine->tied = params->covariance_type == FGMM_TIED;
    engine->full = params->covariance_type == FGMM_FULL;
    engine->d = (cl_uint)params->d;
    engine->k = 0;
    for (int64_t i = 0; i < params->k; i++)
        if (params->log_weights[i] > FGMM_LOG_ZERO) engine->ids[engine->k++] = (int32_t)i;
    engine->resp_log_cut = params->cut > 0 ? (float)log(params->cut) : -INFINITY;
    engine->log_norm_max = (float)params->log_norm_max;
    engine->log_cut = params->hard ? 0.0f : engine->resp_log_cut;
    /* Where centres are not the means, nothing is said about what rounding leaves of squares about these. */
    engine->alone =
        params->summed && !params->careful && params->sum_centres == params->means && !engine->tied && !engine->full;
    cl_release_memory(device, engine->shares);
    engine->shares = NULL;
    if (engine->alone) {
        engine->shares = cl_alloc(device, 2 * (size_t)params->k * sizeof *engine->shares);
        if (!engine->shares) return FGMM_ERR_MEMORY;
        memset(engine->shares, 0, 2 * (size_t)params->k * sizeof *engine->shares);
    }
    engine->count_units = params->hard ? 0.0 : 32.0;
    engine->near = cl_is_near(device, engine);
    engine->far_asked = 0;
    engine->waiting = NULL;
    engine->waiting_lost = 0;
    engine->settling = engine->each = engine->sent = engine->summing = engine->coding = engine->scoring = 0;
    engine->tried = engine->left_over = 0.0;
    if (engine->settle_wait > 0) engine->settle_wait--;
    plan_sparse(device, engine);
    cl_pairs_choose(device, engine);
    cl_dense_plan(device, engine);
    if (engine->tied || engine->full) cl_scatter_plan(engine);
    engine->log_likelihood = engine->weight = engine->survivors = engine->dense_rows = engine->dropped = 0.0;
    return FGMM_OK;
}

int64_t cl_slice_rows(const fgmm_device *device) {
    const cl_engine *engine = device->engine;
    const cl_tally *tally = &engine->sparse;
    int64_t most =
        device->global_bytes > ((int64_t)4 << 30) && device->type != CL_DEVICE_TYPE_CPU ? MOST_SLICE : 1 << 16;
    if (tally->grain && most > tally->grain * tally->slots) most = tally->grain * tally->slots;
    if (!engine->tied && !engine->full) return most;
    tally = &engine->sparse_scatter;
    if (tally->grain && most > tally->grain * tally->slots) most = tally->grain * tally->slots;
    /* A dispatch of scatter sums takes a whole slice. */
    while (most > 4 * FGMM_CHUNK_ROWS && most / 8 * engine->d * engine->d > engine->batch_budget) most /= 2;
    return most;
}

cl_slice cl_slice_at(const cl_engine *engine, fgmm_block *block, int64_t row0, int64_t most) {
    int64_t first = block->first_row + row0, end = first + most;
    int64_t grain = engine->sparse.grain <= most ? engine->sparse.grain : 0;
    int64_t other = engine->tied || engine->full ? engine->sparse_scatter.grain : 0;
    if (other > grain && other <= most) grain = other;
    if (!grain) grain = most < FGMM_CHUNK_ROWS ? 1 : FGMM_CHUNK_ROWS;
    end = end / grain * grain;
    int64_t n = end - first < block->n - row0 ? end - first : block->n - row0;
    return (cl_slice){.block = block, .row0 = (cl_uint)row0, .n = (cl_uint)n, .first = first, .places = (cl_uint)n};
}

fgmm_status cl_fit_places(fgmm_device *device, size_t n) {
    cl_engine *engine = device->engine;
    if (!engine->all_dense) {
        CL_TRY(cl_room_fit(device, &engine->cand_id, n * CL_CAP * sizeof(cl_uint), "candidates"));
        CL_TRY(cl_room_fit(device, &engine->cand_v, n * CL_CAP * sizeof(cl_float), "candidates"));
        CL_TRY(cl_room_fit(device, &engine->cand_count, n * sizeof(cl_uint), "candidates"));
        if (engine->full) CL_TRY(cl_room_fit(device, &engine->known, n * sizeof(cl_float4), "log-densities"));
    }
    CL_TRY(cl_room_fit(device, &engine->kept, n * sizeof(cl_uint), "survivors"));
    CL_TRY(cl_room_fit(device, &engine->dense_flag, n * sizeof(cl_uint), "survivors"));
    CL_TRY(cl_room_fit(device, &engine->logz, n * sizeof(cl_float2), "log-densities"));
    return cl_room_fit(device, &engine->kept_weight, n * sizeof(cl_float), "survivors");
}

/* Between dispatches of about a tenth of a second: lets a cancel in before more work is queued. */
fgmm_status cl_breathe(fgmm_device *device) {
    const fgmm_host *host = &device->host;
    CL_CHECK(device, clFinish(device->queue), "waiting for the device");
    if (host->cancelled(host->user)) return host->fail(host->user, FGMM_ERR_CANCELLED, "cancelled");
    return FGMM_OK;
}

static fgmm_status run_refine(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_kernel kernel = NULL;
    char options[128];
    int lanes = cl_refine_lanes(engine->d);
    /* A CPU has its rows in a cache. */
    cl_uint fours =
        device->type == CL_DEVICE_TYPE_CPU ? 0 : (engine->d + 4 * (cl_uint)lanes - 1) / (4 * (cl_uint)lanes);
    snprintf(options, sizeof options,
             "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DLANES=%d -DHELD=%u -DALONE=%d -DDOUBLES=%d", (int)block->type,
             cl_row_fours(engine->d, block->offset, block->pitch), engine->diag, lanes, fours > MOST_HELD ? 0 : fours,
             engine->alone, device->quick_doubles);
    CL_TRY(cl_kernel_get(device, &kernel, "refine", options, "refine"));
    cl_uint out0 = 0, hard = engine->params.hard != 0;
    cl_mem list = cl_left(engine, slice);
    size_t local = 64, rows = engine->alone ? local : local / (size_t)lanes,
           global = cl_round_up(slice->places, rows) / rows * local;
    return CL_RUN(device, kernel, "refining", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(slice->row0), CL_ARG(out0), CL_ARG(slice->places), CL_ARG(engine->d),
                  CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem), CL_ARG(engine->inverse.mem),
                  CL_ARG(engine->constants.mem), CL_ARG(engine->resp_log_cut), CL_ARG(engine->log_norm_max),
                  CL_ARG(hard), CL_ARG(engine->cand_count.mem), CL_ARG(engine->cand_id.mem), CL_ARG(engine->cand_v.mem),
                  CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem), CL_ARG(engine->logz.mem),
                  CL_ARG(engine->kept_weight.mem), CL_ARG(block->hints), CL_ARG(list));
}

/* Hints start as none; refine fills them in. */
static fgmm_status fit_hints(fgmm_device *device, fgmm_block *block) {
    const cl_engine *engine = device->engine;
    if (block->hinted) return FGMM_OK;
    CL_TRY(cl_hints_open(device, block));
    CL_TRY(cl_fill(device, block->hints, UINT32_MAX, (size_t)block->n * sizeof(cl_uint),
                   "clearing the rows' best components"));
    block->hinted = 1;
    if (!block->passing && !engine->tied && !engine->full) cl_row_bounds_open(device, block);
    return FGMM_OK;
}

fgmm_status cl_survivors(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_host *host = &device->host;
    if (host->cancelled(host->user)) return host->fail(host->user, FGMM_ERR_CANCELLED, "cancelled");
    CL_TRY(cl_fit_places(device, slice->places));
    if (engine->all_dense)
        return cl_fill(device, engine->dense_flag.mem, 1, slice->n * sizeof(cl_uint), "marking dense rows");
    CL_TRY(fit_hints(device, slice->block));
    if (!slice->settled) slice->block->row_bounds_of = 0;
    CL_TRY(cl_screen(device, slice));
    int some = cl_has_places(device, slice);
    if (some) CL_TRY(engine->tied || engine->full ? cl_refine_full(device, slice) : run_refine(device, slice));
    return some || engine->summing ? cl_count(device, slice) : FGMM_OK;
}

fgmm_status cl_sum_rows(fgmm_device *device, const cl_slice *slice) {
    return cl_sum_rows_if(device, slice, NULL);
}

fgmm_status cl_sum_rows_if(fgmm_device *device, const cl_slice *slice, cl_mem taken) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_mem row_logz = slice->settled && engine->each ? engine->row_logz.mem : NULL;
    size_t local = device->max_work_group >= 256 ? 256 : 64,
           global = ((size_t)slice->n + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS * local;
    /* log p(x) is not known of each row: the row's cut is then at its largest. */
    cl_float log_norm_max = engine->alone ? -FLT_MAX : engine->log_norm_max;
    cl_uint hard = engine->params.hard != 0;
    cl_mem place = cl_places(engine, slice);
    char options[48];
    snprintf(options, sizeof options, "-DGROUP=%d", (int)local);
    CL_TRY(cl_kernel_get(device, &kernel, "row_sums", options, "row_sums"));
    return CL_RUN(device, kernel, "sums over rows", 1, &global, &local, CL_ARG(slice->block->weights),
                  CL_ARG(slice->row0), CL_ARG(slice->n), CL_ARG(engine->resp_log_cut), CL_ARG(log_norm_max),
                  CL_ARG(engine->logz.mem), CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem),
                  CL_ARG(engine->kept_weight.mem), CL_ARG(slice->block->hints), CL_ARG(engine->constants.mem),
                  CL_ARG(hard), CL_ARG(place), CL_ARG(row_logz), CL_ARG(taken), CL_ARG(engine->chunks.mem));
}

static size_t chunk_bytes(const fgmm_block *block) {
    return ((size_t)block->n + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS * ROW_SUMS * sizeof(cl_uint);
}

fgmm_status cl_sum_rows_begin(fgmm_device *device, const fgmm_block *block) {
    return cl_room_fit(device, &device->engine->chunks, chunk_bytes(block), "sums over rows");
}

fgmm_status cl_sum_rows_ask(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    CL_TRY(cl_read_begin(device, &engine->row_sums, engine->chunks.mem, 0, chunk_bytes(block), "sums over rows"));
    engine->chunks_summed = chunk_bytes(block) / (ROW_SUMS * sizeof(cl_uint));
    return FGMM_OK;
}

fgmm_status cl_sum_rows_end(fgmm_device *device) {
    cl_engine *engine = device->engine;
    size_t count = engine->chunks_summed * ROW_SUMS;
    engine->chunks_summed = 0;
    CL_TRY(cl_read_end(device, &engine->row_sums, "sums over rows"));
    const union {
        uint32_t u;
        float f;
    } *sums = engine->row_sums.pinned.at;
    for (size_t i = 0; i < count; i += ROW_SUMS) {
        engine->log_likelihood += (double)sums[i].f + (double)sums[i + 1].f;
        engine->weight += (double)sums[i + 2].f + (double)sums[i + 3].f;
        engine->dropped += (double)sums[i + 4].f + (double)sums[i + 5].f;
        engine->survivors += sums[i + 6].u;
        engine->dense_rows += sums[i + 7].u;
    }
    return FGMM_OK;
}

/* Pairs of floats as doubles: of cl_fetch. */
static void add_pairs(void *out, const void *from, size_t at, size_t bytes) {
    const cl_float2 *pairs = from;
    double *to = (double *)out + at / sizeof *pairs;
    for (size_t i = 0; i < bytes / sizeof *pairs; i++) to[i] = (double)pairs[i].s[0] + (double)pairs[i].s[1];
}

fgmm_status cl_read_log_prob(fgmm_device *device, const cl_slice *slice, double *log_prob) {
    const cl_engine *engine = device->engine;
    cl_fetch fetch = {.buffer = slice->settled ? engine->row_logz.mem : engine->logz.mem,
                      .bytes = (size_t)slice->n * sizeof(cl_float2),
                      .out = log_prob + slice->row0,
                      .what = "log-densities",
                      .take = add_pairs};
    return cl_fetch_all(device, &fetch, 1);
}

static fgmm_status estep_rows(fgmm_device *device, fgmm_block *block, double *log_prob) {
    cl_engine *engine = device->engine;
    engine->summing = 1;
    engine->coding = engine->scoring = 0;
    if (engine->params.hard && block->weights) engine->count_units = 20.0;
    CL_TRY(cl_ahead_take(device, block, INT64_MAX));
    CL_TRY(cl_prepare(device, block));
    bound_slots(&engine->sparse, block->n);
    bound_slots(&engine->dense, block->n);
    CL_TRY(cl_settle_begin(device, block));
    CL_TRY(cl_sum_rows_begin(device, block));
    for (int64_t row0 = 0; row0 < block->n;) {
        cl_slice slice;
        cl_uint dense = 0;
        CL_TRY(cl_next_slice(device, block, row0, INT64_MAX, &slice));
        CL_TRY(cl_survivors(device, &slice));
        if (!engine->all_dense) {
            CL_TRY(cl_lists(device, &slice));
            CL_TRY(cl_accumulate(device, &slice));
            if (engine->tied || engine->full) CL_TRY(cl_scatter_sparse(device, &slice));
        }
        CL_TRY(cl_dense_list(device, &slice, &dense));
        if (dense) CL_TRY(cl_dense_rows(device, &slice, dense, &(cl_dense_use){.sums = 1}));
        CL_TRY(cl_sum_rows(device, &slice));
        if (log_prob) CL_TRY(cl_read_log_prob(device, &slice, log_prob));
        row0 += slice.n;
    }
    cl_settle_end(device, block);
    CL_TRY(cl_sum_rows_end(device));
    return cl_sum_rows_ask(device, block);
}

/* Blocks of a stretch that the pass did not go through. */
static fgmm_status estep_waiting(fgmm_device *device) {
    cl_engine *engine = device->engine;
    for (fgmm_block *block = cl_stretch_waiting(engine); block && block != engine->waiting_to; block = block->next) {
        CL_TRY(estep_rows(device, block, NULL));
        cl_ahead_note(engine, block, block);
    }
    engine->waiting = NULL;
    return FGMM_OK;
}

fgmm_status cl_estep(fgmm_device *device, fgmm_block *block, double *log_prob) {
    cl_engine *engine = device->engine;
    fgmm_block whole;
    cl_turn turn = log_prob ? CL_TURN_ALONE : cl_stretch_turn(engine, block, &whole);
    if (turn == CL_TURN_LATER) return FGMM_OK;
    if (turn == CL_TURN_WHOLE) {
        fgmm_status status = estep_rows(device, &whole, NULL);
        cl_stretch_tell(block->stretch, status == FGMM_OK ? whole.row_bounds_of : 0);
        CL_TRY(status);
        cl_ahead_note(engine, block, &whole);
        return FGMM_OK;
    }
    CL_TRY(estep_waiting(device));
    CL_TRY(estep_rows(device, block, log_prob));
    cl_ahead_note(engine, block, block);
    return FGMM_OK;
}

/*
 * The log-likelihood of rows from their sums. With l = L_k - a |x - m_k|^2, log Z = sum_k r (l - log r) for each row, so over the rows
 * it is sum_k (L_k S0 - a S2) and what row_sums made of -sum r log r. A term of a sum is rounded in t twice and so in t^2 four times, in r and
 * w r once, in the product once, and up to 16 times on its way: 32 units cover these, and those of r log r. In hard passes r is 1, so counts of rows without
 * weights are exact, and others off by 20 units at most.
 */
static void add_shares(const cl_engine *engine, fgmm_sums *out) {
    for (size_t i = 0; i < engine->k; i++) {
        out->log_likelihood += engine->shares[2 * i];
        out->rounding += 0x1p-24 * engine->shares[2 * i + 1];
    }
}

fgmm_status cl_collect(fgmm_device *device, fgmm_sums *out) {
    cl_engine *engine = device->engine;
    const fgmm_host *host = &device->host;
    if (engine->waiting_lost)
        return host->fail(host->user, FGMM_ERR_DEVICE, "rows were let go in the middle of a pass");
    CL_TRY(estep_waiting(device));
    if (engine->unsent) engine->prepared = 0; /* nothing more is formed of these parameters */
    CL_TRY(cl_tally_collect_components(device, &engine->sparse, out));
    CL_TRY(cl_sum_rows_end(device));
    cl_settle_learn(device);
    if (engine->alone) add_shares(engine, out);
    CL_TRY(cl_dense_collect(device, out));
    if (engine->tied || engine->full) CL_TRY(cl_scatter_collect(device, out));
    out->log_likelihood += engine->log_likelihood;
    out->weight += engine->weight;
    out->survivors += engine->survivors;
    out->dense_rows += engine->dense_rows;
    out->dropped += engine->dropped;
    return FGMM_OK;
}

void cl_engine_free(fgmm_device *device) {
    cl_engine *engine = device->engine;
    if (!engine) return;
    cl_room *rooms[] = {
        &engine->centre,         &engine->scale,          &engine->screen_a,      &engine->screen_b,
        &engine->screen_c,       &engine->mean_hi,        &engine->mean_lo,       &engine->inverse,
        &engine->constants,      &engine->sum_hi,         &engine->sum_lo,        &engine->cand_id,
        &engine->cand_v,         &engine->cand_count,     &engine->kept,          &engine->dense_flag,
        &engine->logz,           &engine->kept_weight,    &engine->offsets,       &engine->dense_list,
        &engine->counts,         &engine->dense_count,    &engine->totals,        &engine->lists,
        &engine->values,         &engine->row_values,     &engine->segments,      &engine->chunks,
        &engine->cells,          &engine->tops,           &engine->norms,         &engine->near_means,
        &engine->near_constants, &engine->near_centre,    &engine->far_rows,      &engine->white_logits,
        &engine->best,           &engine->best_id,        &engine->sum,           &engine->dense_starts,
        &engine->top_ids,        &engine->top_resp,       &engine->white_hi,      &engine->white_lo,
        &engine->white_scale,    &engine->white_centre,   &engine->white_rows,    &engine->scatter_starts,
        &engine->screen_rows[0], &engine->screen_rows[1], &engine->fragments,     &engine->columns,
        &engine->matrix_c,       &engine->packed_rows,    &engine->row_starts,    &engine->again,
        &engine->narrow,         &engine->known,          &engine->white_bounds,  &engine->pair_factors,
        &engine->pair_means,     &engine->pair_scales,    &engine->pair_units,    &engine->pair_a,
        &engine->pair_columns,   &engine->by_feature,     &engine->by_row,        &engine->row_norms,
        &engine->factors,        &engine->marks,          &engine->nearest,       &engine->off,
        &engine->place,          &engine->left,           &engine->marks_of_rows, &engine->moved,
        &engine->last_hi,        &engine->last_inverse,   &engine->guess,         &engine->row_logz,
        &engine->found,          &engine->last_off,       &engine->last_c,        &engine->lost,
        &engine->codes};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) cl_room_free(device, rooms[i]);
    cl_pinned_free(device, &engine->pinned);
    cl_pinned_free(device, &engine->white_pinned);
    if (engine->ahead.begun)
        device->host.log(device->host.user, FGMM_LOG_DEBUG,
                         "%s: %lld passes were begun while the host made their parameters", device->name,
                         (long long)engine->ahead.begun);
    cl_ahead_free(device);
    cl_recall_free(device);
    cl_arrival_free(device, &engine->looked);
    cl_arrival_free(device, &engine->taken);
    cl_arrival_free(device, &engine->coded);
    cl_arrival_free(device, &engine->dense_left);
    cl_arrival_free(device, &engine->row_sums);
    for (int i = 0; i < CL_PIECES; i++) cl_arrival_free(device, &engine->pieces[i]);
    for (int i = 0; i < 4; i++) {
        cl_room_free(device, &engine->scan_totals[i]);
        cl_room_free(device, &engine->scan_sums[i]);
    }
    cl_tally_free(device, &engine->sparse);
    cl_tally_free(device, &engine->dense);
    cl_tally_free(device, &engine->sparse_scatter);
    cl_tally_free(device, &engine->dense_scatter);
    cl_release_memory(device, engine->ids);
    cl_release_memory(device, engine->shares);
    cl_release_memory(device, engine->frame);
    cl_release_memory(device, engine->list);
    cl_release_memory(device, engine);
    device->engine = NULL;
}
