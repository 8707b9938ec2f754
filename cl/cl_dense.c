/* The dense engine: groups of rows by tiles of components. */
#include "cl_engine.h"

#include <stdio.h>

enum { LANES = 64, LEAST_GRAIN = 128, SPREAD = 1 << 17, PART_BYTES = 32 << 20, READ_CELLS = 1 << 18 };

/*
 * Groups depend on K, superchunks on K and D alone, so that the sums' bits do. Superchunks are made small enough that
 * a group of them occupies a device, where K and D alone do not; but tied sums over several tiles take whole chunks,
 * since a group may end with any superchunk and adds tile after tile to the one matrix.
 */
void cl_dense_plan(cl_engine *engine) {
    int64_t k = engine->k, d = engine->d;
    engine->dense_width = k < CL_DENSE_WIDTH ? (cl_uint)k : CL_DENSE_WIDTH;
    int64_t group = CL_DENSE_CELLS / engine->dense_width;
    if (group > 65536) group = 65536;
    group -= group % FGMM_CHUNK_ROWS; /* at least 2048: whole chunks, within which floats are added up */
    engine->dense_group = (cl_uint)group;
    int64_t sums = k * (2 * d + 1) * (int64_t)sizeof(cl_float2);
    int64_t grain = k * d >= SPREAD ? group : cl_power_of_two(group * k * d / SPREAD);
    int64_t least = engine->tied && k > CL_DENSE_WIDTH ? FGMM_CHUNK_ROWS : LEAST_GRAIN;
    if (grain < least) grain = least;
    int64_t slots = group / grain;
    if (slots > PART_BYTES / sums) slots = PART_BYTES / sums;
    if (slots < 2) grain = 0, slots = 1;
    cl_tally_reset(&engine->dense, (size_t)k, 2 * (size_t)d + 1, grain, (uint32_t)slots);
}

int64_t cl_superchunk(const cl_group *group, int64_t grain, cl_uint i) {
    cl_uint row = group->list ? group->rows[group->base + i] : group->base + i;
    return (group->slice->first + row) / grain;
}

static fgmm_status run_logits(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    if (engine->tied || engine->full) return cl_white_logits(device, group, k0, width);
    const fgmm_block *block = group->slice->block;
    const cl_tile *tile = &engine->dense_tile;
    cl_kernel kernel = NULL;
    cl_tile_options options;
    cl_tiled_options(&options, tile, engine->diag, block);
    CL_TRY(cl_kernel_get(device, &kernel, "dense", options.text, "dense_logits"));
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
                      CL_ARG(i0), CL_ARG(group->n), CL_ARG(engine->d), CL_ARG(k0), CL_ARG(width),
                      CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem), CL_ARG(engine->inverse.mem),
                      CL_ARG(engine->constants.mem), CL_ARG(engine->logits.mem)));
    }
    return FGMM_OK;
}

static fgmm_status run_lse(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_tile_options options;
    cl_tiled_options(&options, &engine->dense_tile, engine->diag, group->slice->block);
    CL_TRY(cl_kernel_get(device, &kernel, "dense", options.text, "dense_lse"));
    size_t local = LANES, global = (size_t)group->n * LANES;
    return CL_RUN(device, kernel, "dense log-densities", 1, &global, &local, CL_ARG(engine->logits.mem), CL_ARG(k0),
                  CL_ARG(width), CL_ARG(engine->best.mem), CL_ARG(engine->best_id.mem), CL_ARG(engine->sum.mem));
}

static fgmm_status run_resp(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_tile_options options;
    cl_tiled_options(&options, &engine->dense_tile, engine->diag, group->slice->block);
    CL_TRY(cl_kernel_get(device, &kernel, "dense", options.text, "dense_resp"));
    size_t local = LANES, global = (size_t)group->n * LANES;
    cl_uint hard = engine->params.hard != 0;
    cl_float log_cut = engine->resp_log_cut;
    return CL_RUN(device, kernel, "dense responsibilities", 1, &global, &local, CL_ARG(engine->logits.mem),
                  CL_ARG(group->slice->row0), CL_ARG(group->list), CL_ARG(group->base), CL_ARG(k0), CL_ARG(width),
                  CL_ARG(engine->constants.mem), CL_ARG(group->slice->block->weights), CL_ARG(log_cut),
                  CL_ARG(engine->log_norm_max), CL_ARG(hard), CL_ARG(engine->best.mem), CL_ARG(engine->best_id.mem),
                  CL_ARG(engine->sum.mem), CL_ARG(engine->logz.mem), CL_ARG(engine->kept.mem),
                  CL_ARG(engine->kept_weight.mem));
}

static fgmm_status run_top(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width, cl_uint m) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "top", "", "top_dense"));
    size_t local = LANES, global = (size_t)group->n * LANES;
    return CL_RUN(device, kernel, "best components", 1, &global, &local, CL_ARG(engine->logits.mem),
                  CL_ARG(group->list), CL_ARG(group->base), CL_ARG(k0), CL_ARG(width), CL_ARG(m),
                  CL_ARG(engine->top_ids.mem), CL_ARG(engine->top_resp.mem));
}

static fgmm_status send_starts(fgmm_device *device, const cl_group *group, int64_t grain, int64_t first, cl_uint slots,
                               cl_room *room) {
    size_t bytes = ((size_t)slots + 1) * sizeof(cl_uint);
    cl_uint *starts = cl_alloc(device, bytes);
    if (!starts) return FGMM_ERR_MEMORY;
    cl_uint i = 0;
    for (cl_uint s = 0; s < slots; s++) {
        if (grain)
            while (i < group->n && cl_superchunk(group, grain, i) < first + s) i++;
        starts[s] = i;
    }
    starts[slots] = group->n;
    fgmm_status status = cl_send(device, room, bytes, starts, "superchunks");
    cl_release_memory(device, starts);
    return status;
}

fgmm_status cl_group_open(fgmm_device *device, const cl_group *group, cl_tally *tally, cl_room *starts, cl_place *out) {
    int64_t first = 0;
    *out = (cl_place){.slots = 1};
    if (tally->grain) {
        first = cl_superchunk(group, tally->grain, 0);
        out->slots = (cl_uint)(cl_superchunk(group, tally->grain, group->n - 1) - first + 1);
    }
    CL_TRY(send_starts(device, group, tally->grain, first, out->slots, starts));
    return cl_tally_open(device, tally, first, out->slots, &out->resume, &out->part);
}

static fgmm_status run_sums(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                            const cl_place *place) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = group->slice->block;
    cl_kernel kernel = NULL;
    char row[64], options[192];
    cl_row_options(row, sizeof row, block);
    int side = device->max_work_group >= 256 ? 16 : 8;
    int gx = engine->d > 4 ? side : 4, gy = engine->k > 4 ? side : 4;
    int ad = engine->d > (cl_uint)side ? 2 : 1, am = engine->k > (cl_uint)side ? 2 : 1;
    snprintf(options, sizeof options, "%s -DGX=%d -DGY=%d -DAD=%d -DAM=%d -DEXACT=%d", row, gx, gy, ad, am,
             engine->tied || engine->full);
    CL_TRY(cl_kernel_get(device, &kernel, "dense_sums", options, "dense_sums"));
    size_t columns = (size_t)(gx * ad), components = (size_t)(gy * am);
    size_t step = (size_t)(engine->batch_budget / 2 / ((int64_t)group->n * engine->d) + 1);
    step = cl_round_up(step, components);
    for (size_t k = 0; k < width; k += step) {
        size_t count = k + step < width ? step : width - k;
        cl_uint kt0 = (cl_uint)k;
        size_t local[3] = {(size_t)gx, (size_t)gy, 1};
        size_t global[3] = {cl_round_up(engine->d, columns) / columns * local[0],
                            cl_round_up(count, components) / components * local[1], place->slots};
        CL_TRY(CL_RUN(device, kernel, "dense sums", 3, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(group->slice->row0), CL_ARG(group->list), CL_ARG(group->base),
                      CL_ARG(engine->d), CL_ARG(engine->k), CL_ARG(k0), CL_ARG(kt0), CL_ARG(width),
                      CL_ARG(engine->sum_hi_at), CL_ARG(engine->sum_lo_at), CL_ARG(engine->logits.mem),
                      CL_ARG(engine->dense_starts.mem), CL_ARG(place->resume), CL_ARG(place->part)));
    }
    return FGMM_OK;
}

/* The caller's share of a tile: resp [slice rows, K] of the caller. */
static fgmm_status read_tile(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width, float *resp) {
    const cl_engine *engine = device->engine;
    size_t count = (size_t)group->n * width, step = READ_CELLS / width ? READ_CELLS / width : 1;
    if (step > group->n) step = group->n;
    cl_float2 *cells = cl_alloc(device, step * width * sizeof *cells);
    if (!cells) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_OK;
    for (size_t i = 0; i < group->n; i += step) {
        size_t at = i * width, most = count - at < step * width ? count - at : step * width;
        CL_GO(cl_read_at(device, engine->logits.mem, at * sizeof *cells, most * sizeof *cells, cells,
                         "reading responsibilities"));
        for (size_t j = 0; j < most; j++) {
            size_t r = group->base + i + j / width, row = group->list ? group->rows[r] : r;
            resp[row * (size_t)engine->params.k + (size_t)engine->ids[k0 + j % width]] = cells[j].s[1];
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
static fgmm_status use_tile(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width, cl_uint m,
                            float *resp, const cl_place places[2]) {
    const cl_engine *engine = device->engine;
    if (m) return run_top(device, group, k0, width, m);
    if (resp) return read_tile(device, group, k0, width, resp);
    CL_TRY(run_sums(device, group, k0, width, &places[0]));
    return engine->tied || engine->full ? cl_scatter_dense(device, group, k0, width, &places[1]) : FGMM_OK;
}

static fgmm_status run_group(fgmm_device *device, const cl_group *group, cl_uint m, float *resp) {
    const cl_engine *engine = device->engine;
    cl_uint wide = engine->dense_width, k = engine->k;
    cl_place places[2] = {{0}};
    int sums = !m && !resp;
    if (sums) CL_TRY(open_places(device, group, places));
    for (cl_uint k0 = 0; k0 < k; k0 += wide) {
        cl_uint width = k0 + wide < k ? wide : k - k0;
        CL_TRY(run_logits(device, group, k0, width));
        CL_TRY(run_lse(device, group, k0, width));
    }
    for (cl_uint k0 = 0; k0 < k; k0 += wide) {
        cl_uint width = k0 + wide < k ? wide : k - k0;
        if (k > wide) CL_TRY(run_logits(device, group, k0, width));
        CL_TRY(run_resp(device, group, k0, width));
        CL_TRY(use_tile(device, group, k0, width, m, resp, places));
    }
    return sums ? close_places(device, places) : FGMM_OK;
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

fgmm_status cl_dense_rows(fgmm_device *device, const cl_slice *slice, cl_uint count, int all, cl_uint m, float *resp) {
    cl_engine *engine = device->engine;
    const fgmm_host *host = &device->host;
    size_t most = count < engine->dense_group ? count : engine->dense_group;
    CL_TRY(cl_room_fit(device, &engine->logits, most * engine->dense_width * sizeof(cl_float2), "a tile of logits"));
    CL_TRY(cl_room_fit(device, &engine->best, most * sizeof(cl_float2), "a dense group"));
    CL_TRY(cl_room_fit(device, &engine->best_id, most * sizeof(cl_uint), "a dense group"));
    CL_TRY(cl_room_fit(device, &engine->sum, most * sizeof(cl_float2), "a dense group"));
    cl_group group = {.slice = slice, .list = all ? NULL : engine->dense_list.mem, .rows = engine->list};
    for (; group.base < count; group.base += group.n) {
        if (host->cancelled(host->user)) return host->fail(host->user, FGMM_ERR_CANCELLED, "cancelled");
        group.n = group_rows(engine, &group, count - group.base, !m && !resp);
        CL_TRY(run_group(device, &group, m, resp));
    }
    return FGMM_OK;
}
