/* The dense engine: groups of rows by tiles of components. */
#include "cl_engine.h"

#include <math.h>
#include <stdio.h>

enum { LANES = 64, ROW_LANES = 8 /* of dense.cl */, READ_CELLS = 1 << 18 };

static void dense_options(const cl_engine *engine, char *out, size_t size, const fgmm_block *block) {
    const cl_tile *tile = &engine->dense_tile;
    snprintf(out, size, "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DNEAR=%d -DGX=%d -DGY=%d -DRM=%d -DRN=%d",
             (int)block->type, cl_row_fours(engine->d, block->offset, block->pitch), engine->diag,
             engine->near && !engine->diag, tile->gx, tile->gy, tile->rm, tile->rn);
}

static fgmm_status dense_kernel(fgmm_device *device, const cl_group *group, const char *name, cl_kernel *out) {
    char options[160];
    dense_options(device->engine, options, sizeof options, group->slice->block);
    return cl_kernel_get(device, out, "dense", options, name);
}

/* Components of a tile of dense.cl; whitened logits have one tile. */
static cl_uint tile_width(const cl_engine *engine, cl_uint width) {
    return engine->tied || engine->full ? width : (cl_uint)(engine->dense_tile.gx * engine->dense_tile.rn);
}

static cl_uint tile_count(const cl_engine *engine, cl_uint width) {
    return (width + tile_width(engine, width) - 1) / tile_width(engine, width);
}

/* Squared distances of the group's rows to the centre. */
static fgmm_status run_norms(fgmm_device *device, const cl_group *group) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = group->slice->block;
    cl_kernel kernel = NULL;
    cl_float most = engine->diag ? INFINITY : engine->near_most;
    CL_TRY(dense_kernel(device, group, "dense_norms", &kernel));
    size_t local = LANES, global = cl_round_up((size_t)group->n * ROW_LANES, LANES);
    return CL_RUN(device, kernel, "dense rows", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(group->slice->row0), CL_ARG(group->list), CL_ARG(group->base),
                  CL_ARG(group->n), CL_ARG(engine->d), CL_ARG(engine->near_centre.mem), CL_ARG(most),
                  CL_ARG(engine->norms.mem), CL_ARG(engine->far_rows.mem));
}

/* Whitened logits, as one tile. */
static fgmm_status run_white(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(cl_white_logits(device, group, k0, width));
    CL_TRY(dense_kernel(device, group, "dense_tops", &kernel));
    size_t local = LANES, global = (size_t)group->n * LANES;
    return CL_RUN(device, kernel, "dense logits", 1, &global, &local, CL_ARG(engine->white_logits.mem), CL_ARG(k0),
                  CL_ARG(width), CL_ARG(engine->cells.mem), CL_ARG(engine->tops.mem));
}

static fgmm_status run_logits(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    if (engine->tied || engine->full) return run_white(device, group, k0, width);
    const fgmm_block *block = group->slice->block;
    const cl_tile *tile = &engine->dense_tile;
    int near = engine->near && !engine->diag;
    cl_mem means = near ? engine->near_means.mem : engine->mean_hi.mem;
    cl_mem constants = near ? engine->near_constants.mem : engine->constants.mem;
    cl_kernel kernel = NULL;
    CL_TRY(dense_kernel(device, group, "dense_logits", &kernel));
    size_t rows = (size_t)(tile->gy * tile->rm), columns = (size_t)(tile->gx * tile->rn);
    size_t step = (size_t)(engine->batch_budget / 2 / ((int64_t)width * engine->d) + 1);
    step = cl_round_up(step, rows);
    for (size_t i = 0; i < group->n; i += step) {
        if (i) CL_TRY(cl_breathe(device));
        size_t count = i + step < group->n ? step : group->n - i;
        cl_uint i0 = (cl_uint)i;
        size_t local[2] = {(size_t)tile->gx, (size_t)tile->gy};
        size_t global[2] = {cl_round_up(width, columns) / columns * local[0],
                            cl_round_up(count, rows) / rows * local[1]};
        CL_TRY(CL_RUN(device, kernel, "dense logits", 2, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(group->slice->row0), CL_ARG(group->list), CL_ARG(group->base),
                      CL_ARG(i0), CL_ARG(group->n), CL_ARG(engine->d), CL_ARG(k0), CL_ARG(width), CL_ARG(means),
                      CL_ARG(engine->mean_lo.mem), CL_ARG(engine->inverse.mem), CL_ARG(constants),
                      CL_ARG(engine->near_centre.mem), CL_ARG(engine->norms.mem), CL_ARG(engine->cells.mem),
                      CL_ARG(engine->tops.mem)));
    }
    return FGMM_OK;
}

fgmm_status cl_dense_lse(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint tiles, cl_uint tile_step,
                         cl_uint row_step) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(dense_kernel(device, group, "dense_lse", &kernel));
    size_t local = device->max_work_group >= LANES ? LANES : 1, global = cl_round_up(group->n, local);
    return CL_RUN(device, kernel, "dense log-densities", 1, &global, &local, CL_ARG(engine->tops.mem), CL_ARG(group->n),
                  CL_ARG(tiles), CL_ARG(tile_step), CL_ARG(row_step), CL_ARG(k0), CL_ARG(engine->best.mem),
                  CL_ARG(engine->best_id.mem), CL_ARG(engine->sum.mem));
}

static fgmm_status run_resp(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(dense_kernel(device, group, "dense_resp", &kernel));
    size_t local = LANES, global = (size_t)group->n * LANES;
    cl_uint hard = engine->params.hard != 0, columns = tile_width(engine, width);
    cl_mem place = group->slice->settled ? engine->place.mem : NULL;
    cl_float log_cut = engine->resp_log_cut;
    return CL_RUN(device, kernel, "dense responsibilities", 1, &global, &local, CL_ARG(engine->cells.mem),
                  CL_ARG(engine->tops.mem), CL_ARG(columns), CL_ARG(group->list), CL_ARG(group->base), CL_ARG(k0),
                  CL_ARG(width), CL_ARG(engine->constants.mem), CL_ARG(log_cut), CL_ARG(engine->log_norm_max),
                  CL_ARG(hard), CL_ARG(engine->best.mem), CL_ARG(engine->best_id.mem), CL_ARG(engine->sum.mem),
                  CL_ARG(engine->logz.mem), CL_ARG(engine->kept.mem), CL_ARG(engine->kept_weight.mem), CL_ARG(place));
}

static fgmm_status run_top(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width, cl_uint m) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "top", "", "top_dense"));
    size_t local = LANES, global = (size_t)group->n * LANES;
    return CL_RUN(device, kernel, "best components", 1, &global, &local, CL_ARG(engine->cells.mem), CL_ARG(group->list),
                  CL_ARG(group->base), CL_ARG(k0), CL_ARG(width), CL_ARG(m), CL_ARG(engine->top_ids.mem),
                  CL_ARG(engine->top_resp.mem));
}

/* The caller's share of a tile: resp [slice rows, K] of the caller. */
static fgmm_status read_tile(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width, float *resp) {
    const cl_engine *engine = device->engine;
    size_t count = (size_t)group->n * width, step = READ_CELLS / width ? READ_CELLS / width : 1;
    if (step > group->n) step = group->n;
    float *cells = cl_alloc(device, step * width * sizeof *cells);
    if (!cells) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_OK;
    for (size_t i = 0; i < group->n; i += step) {
        size_t at = i * width, most = count - at < step * width ? count - at : step * width;
        CL_GO(cl_read_at(device, engine->cells.mem, at * sizeof *cells, most * sizeof *cells, cells,
                         "reading responsibilities"));
        for (size_t j = 0; j < most; j++) {
            size_t r = group->base + i + j / width, row = group->list ? group->rows[r] : r;
            resp[row * (size_t)engine->params.k + (size_t)engine->ids[k0 + j % width]] = cells[j];
        }
    }
done:
    cl_release_memory(device, cells);
    return status;
}

/* One or two places: of the sums, and of the scatter. */
static fgmm_status open_places(fgmm_device *device, const cl_group *group, cl_place places[2]) {
    cl_engine *engine = device->engine;
    CL_TRY(cl_group_open(device, group, &engine->dense, &engine->dense_starts, &places[0]));
    if (!engine->tied && !engine->full) return FGMM_OK;
    return cl_group_open(device, group, &engine->dense_scatter, &engine->scatter_starts, &places[1]);
}

static fgmm_status close_places(fgmm_device *device, const cl_place places[2]) {
    cl_engine *engine = device->engine;
    CL_TRY(cl_tally_close(device, &engine->dense, places[0].slots, 0));
    if (!engine->tied && !engine->full) return FGMM_OK;
    return cl_tally_close(device, &engine->dense_scatter, places[1].slots, 0);
}

/* What is wanted of a tile of responsibilities. */
static fgmm_status use_tile(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                            const cl_dense_use *use, const cl_place places[2]) {
    const cl_engine *engine = device->engine;
    if (use->m) CL_TRY(run_top(device, group, k0, width, use->m));
    if (use->resp) CL_TRY(read_tile(device, group, k0, width, use->resp));
    if (!use->sums) return FGMM_OK;
    CL_TRY(cl_dense_sums(device, group, k0, width, &places[0]));
    return engine->tied || engine->full ? cl_scatter_dense(device, group, k0, width, &places[1]) : FGMM_OK;
}

static fgmm_status fit_tile(fgmm_device *device, size_t rows) {
    cl_engine *engine = device->engine;
    size_t cells = rows * engine->dense_width, tops = rows * tile_count(engine, engine->dense_width);
    CL_TRY(cl_room_fit(device, &engine->cells, cells * sizeof(float), "a tile of logits"));
    CL_TRY(cl_room_fit(device, &engine->tops, tops * sizeof(cl_uint4), "a dense group"));
    if (!engine->tied && !engine->full) return FGMM_OK;
    return cl_room_fit(device, &engine->white_logits, cells * sizeof(cl_float2), "a tile of logits");
}

static fgmm_status run_group(fgmm_device *device, const cl_group *group, const cl_dense_use *use) {
    const cl_engine *engine = device->engine;
    cl_uint wide = engine->dense_width, k = engine->k;
    cl_place places[2] = {{0}};
    if (use->sums) CL_TRY(open_places(device, group, places));
    if (use->sums && cl_pairs_take(engine, group)) {
        int done = 0;
        CL_TRY(cl_pairs_try(device, group, &places[0], &done));
        if (done) return close_places(device, places);
    }
    CL_TRY(fit_tile(device, group->n));
    if (engine->near) CL_TRY(run_norms(device, group));
    for (cl_uint k0 = 0; k0 < k; k0 += wide) {
        cl_uint width = k0 + wide < k ? wide : k - k0;
        CL_TRY(run_logits(device, group, k0, width));
        cl_uint tiles = tile_count(engine, width);
        CL_TRY(cl_dense_lse(device, group, k0, tiles, 1, tiles));
    }
    for (cl_uint k0 = 0; k0 < k; k0 += wide) {
        cl_uint width = k0 + wide < k ? wide : k - k0;
        if (k > wide) CL_TRY(run_logits(device, group, k0, width));
        CL_TRY(run_resp(device, group, k0, width));
        CL_TRY(use_tile(device, group, k0, width, use, places));
    }
    return use->sums ? close_places(device, places) : FGMM_OK;
}

/* How many of the group's n rows fit the slots of a tally. */
static cl_uint rows_within(const cl_group *group, const cl_tally *tally, cl_uint n) {
    if (!tally->grain) return n;
    int64_t most = cl_superchunk(group, tally->grain, 0) + tally->slots;
    cl_uint low = 0, high = n; /* the first row beyond the slots */
    while (low < high) {
        cl_uint middle = low + (high - low) / 2;
        if (cl_superchunk(group, tally->grain, middle) < most)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/*
 * Rows of the group that starts at group->base. It ends with a chunk of rows, or with a superchunk where no more fit
 * the slots. Which of them depends on blocks and slices too, so sums must not depend on it.
 */
static cl_uint group_rows(const cl_engine *engine, cl_group *group, cl_uint left, int sums) {
    cl_uint n = left < engine->dense_group ? left : engine->dense_group;
    if (n < left && group->list)
        while (group->rows[group->base + n - 1] / FGMM_CHUNK_ROWS == group->rows[group->base + n] / FGMM_CHUNK_ROWS)
            n--;
    if (!sums) return n;
    n = rows_within(group, &engine->dense, n);
    return engine->tied || engine->full ? rows_within(group, &engine->dense_scatter, n) : n;
}

fgmm_status cl_dense_rows(fgmm_device *device, const cl_slice *slice, cl_uint count, const cl_dense_use *use) {
    cl_engine *engine = device->engine;
    const fgmm_host *host = &device->host;
    size_t most = count < engine->dense_group ? count : engine->dense_group;
    CL_TRY(cl_trust(device, cl_rows_case(engine->diag), engine->d, slice->block->type));
    CL_TRY(cl_trust(device, cl_dense_case(engine->diag), engine->d, slice->block->type));
    engine->dense_tile = cl_tuning_tile(device, CL_TUNED_DENSE, engine->k, engine->d); /* which the test may change */
    if (!use->sums) engine->near = 0; /* a row that is far cannot be repeated */
    if (engine->near) CL_TRY(cl_room_fit(device, &engine->norms, most * sizeof(cl_float2), "a dense group"));
    if (engine->near && !engine->far_asked) {
        CL_TRY(cl_room_fit(device, &engine->far_rows, sizeof(cl_uint), "a mark of far rows"));
        CL_TRY(cl_fill(device, engine->far_rows.mem, 0, sizeof(cl_uint), "clearing a mark"));
        engine->far_asked = 1;
    }
    CL_TRY(cl_room_fit(device, &engine->best, most * sizeof(cl_float2), "a dense group"));
    CL_TRY(cl_room_fit(device, &engine->best_id, most * sizeof(cl_uint), "a dense group"));
    CL_TRY(cl_room_fit(device, &engine->sum, most * sizeof(cl_float2), "a dense group"));
    cl_group group = {.slice = slice, .list = engine->all_dense ? NULL : engine->dense_list.mem, .rows = engine->list};
    for (; group.base < count; group.base += group.n) {
        if (host->cancelled(host->user)) return host->fail(host->user, FGMM_ERR_CANCELLED, "cancelled");
        group.n = group_rows(engine, &group, count - group.base, use->sums);
        CL_TRY(run_group(device, &group, use));
    }
    return FGMM_OK;
}
