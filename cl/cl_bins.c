/* From the survivors of each row to sums by component: counts, lists in the order of rows, and their sums. See bins.cl. */
#include "cl_engine.h"

#include <stdio.h>

enum {
    GROUP = 64,
    WIDE_GROUP = 1024, /* of a scan, on GPUs */
    SCAN_LEVELS = 4,
    COUNT_BYTES = 8 << 20,
    MOST_SCATTERED = 1024 /* rows of a tile that a dispatch takes: bounds its time, and its loops for llvmpipe */
};

/* How a slice lies in tiles and superchunks. */
typedef struct bin_plan {
    cl_uint tile_rows, shift, tiles, ahead, per_chunk, slots;
    int64_t first; /* number of the first superchunk */
} bin_plan;

/* A work-group scatters a tile: there are as many as memory for their counts allows. */
static bin_plan plan_bins(const cl_engine *engine, const cl_slice *slice) {
    int64_t grain = engine->sparse.grain, rows = FGMM_CHUNK_ROWS, line = engine->k * (int64_t)sizeof(cl_uint);
    while (rows < slice->n && (slice->n / rows + 2) * line > COUNT_BYTES && (!grain || rows < grain)) rows *= 2;
    bin_plan out = {.tile_rows = (cl_uint)rows, .shift = (cl_uint)(slice->first % rows), .slots = 1};
    out.tiles = (cl_uint)((out.shift + slice->n + rows - 1) / rows);
    out.per_chunk = out.tiles;
    if (!grain) return out;
    out.first = slice->first / grain;
    out.per_chunk = (cl_uint)(grain / rows);
    out.ahead = (cl_uint)(slice->first % grain / rows);
    out.slots = (cl_uint)((slice->first + slice->n - 1) / grain - out.first + 1);
    return out;
}

static fgmm_status scan_level(fgmm_device *device, cl_mem in, cl_mem out, cl_uint n, int level) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t widest = device->type == CL_DEVICE_TYPE_CPU ? GROUP : device->max_work_group;
    size_t local = widest >= WIDE_GROUP ? WIDE_GROUP : widest >= WIDE_GROUP / 2 ? WIDE_GROUP / 2 : GROUP;
    const char *options = local == WIDE_GROUP ? "-DGROUP=1024" : local > GROUP ? "-DGROUP=512" : "";
    size_t block = local * CL_SCAN_EACH, blocks = n ? ((size_t)n + block - 1) / block : 1;
    size_t global = blocks * local;
    cl_room *totals = &engine->scan_totals[level], *sums = &engine->scan_sums[level];
    CL_TRY(cl_room_fit(device, totals, blocks * sizeof(cl_uint), "prefix sums"));
    CL_TRY(cl_kernel_get(device, &kernel, "scan", options, "scan_blocks"));
    CL_TRY(CL_RUN(device, kernel, "prefix sums", 1, &global, &local, CL_ARG(in), CL_ARG(out), CL_ARG(totals->mem),
                  CL_ARG(n)));
    if (blocks == 1) return FGMM_OK;
    CL_TRY(cl_room_fit(device, sums, (blocks + 1) * sizeof(cl_uint), "prefix sums"));
    CL_TRY(scan_level(device, totals->mem, sums->mem, (cl_uint)blocks, level + 1));
    CL_TRY(cl_kernel_get(device, &kernel, "scan", options, "scan_add"));
    return CL_RUN(device, kernel, "prefix sums", 1, &global, &local, CL_ARG(out), CL_ARG(sums->mem), CL_ARG(n));
}

/* in [n], out [n + 1]; SCAN_LEVELS levels reach 2^40 elements. */
static fgmm_status scan(fgmm_device *device, cl_mem in, cl_mem out, cl_uint n) {
    return scan_level(device, in, out, n, 0);
}

/* A flag for each row of the slice, where flags are kept at the rows' places. */
static fgmm_status mark_dense(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t local = GROUP, global = cl_round_up(slice->places, local), bytes = (size_t)slice->n * sizeof(cl_uint);
    CL_TRY(cl_room_fit(device, &engine->marks_of_rows, bytes, "marks of rows"));
    CL_TRY(cl_fill(device, engine->marks_of_rows.mem, 0, bytes, "clearing marks"));
    CL_TRY(cl_kernel_get(device, &kernel, "bins", "", "bin_mark"));
    return CL_RUN(device, kernel, "marking dense rows", 1, &global, &local, CL_ARG(engine->dense_flag.mem),
                  CL_ARG(engine->left.mem), CL_ARG(slice->places), CL_ARG(engine->marks_of_rows.mem));
}

/* The dense rows' list, on the device and on the host. */
static fgmm_status list_dense(fgmm_device *device, const cl_slice *slice, cl_uint dense) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t local = GROUP, global = cl_round_up(slice->n, local), bytes = (size_t)dense * sizeof(cl_uint);
    CL_TRY(cl_room_fit(device, &engine->offsets, ((size_t)slice->n + 1) * sizeof(cl_uint), "offsets of dense rows"));
    CL_TRY(cl_room_fit(device, &engine->dense_list, bytes, "dense rows"));
    if (slice->settled) CL_TRY(mark_dense(device, slice));
    cl_mem flags = slice->settled ? engine->marks_of_rows.mem : engine->dense_flag.mem;
    CL_TRY(scan(device, flags, engine->offsets.mem, slice->n));
    CL_TRY(cl_kernel_get(device, &kernel, "bins", "", "bin_dense"));
    CL_TRY(CL_RUN(device, kernel, "listing dense rows", 1, &global, &local, CL_ARG(flags), CL_ARG(engine->offsets.mem),
                  CL_ARG(slice->n), CL_ARG(engine->dense_list.mem)));
    if (engine->list_cap < dense) {
        cl_release_memory(device, engine->list);
        engine->list_cap = 0;
        engine->list = cl_alloc(device, bytes);
        if (!engine->list) return FGMM_ERR_MEMORY;
        engine->list_cap = dense;
    }
    return cl_read(device, engine->dense_list.mem, bytes, engine->list, "reading the dense rows");
}

/* GROUP and HELD of the kernels that go through tiles. */
typedef struct tile_options {
    char text[32];
    size_t group;
    int held;
} tile_options;

static tile_options options_of(const fgmm_device *device, const bin_plan *plan) {
    tile_options out = {.group = device->max_work_group >= 128 ? 128 : GROUP};
    out.held = device->engine->k <= CL_HELD && !device->as_of_many && plan->tile_rows <= MOST_SCATTERED;
    /* As few programs as there can be. */
    const char *group = out.group == 128 ? "" : "-DGROUP=64 ";
    snprintf(out.text, sizeof out.text, out.held ? "%s-DHELD=%d" : "%s", group, CL_HELD);
    return out;
}

fgmm_status cl_count(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    bin_plan plan = plan_bins(engine, slice);
    tile_options options = options_of(device, &plan);
    cl_mem place = cl_places(engine, slice);
    size_t bytes = (size_t)plan.tiles * engine->k * sizeof(cl_uint), local = options.group,
           global = options.held ? plan.tiles * local : cl_round_up(slice->n, local);
    CL_TRY(cl_room_fit(device, &engine->counts, bytes, "counts of survivors"));
    CL_TRY(cl_room_fit(device, &engine->dense_count, sizeof(cl_uint), "a count of rows"));
    if (!options.held) CL_TRY(cl_fill(device, engine->counts.mem, 0, bytes, "clearing counts"));
    int may_be_dense = cl_has_places(device, slice);
    if (may_be_dense) CL_TRY(cl_fill(device, engine->dense_count.mem, 0, sizeof(cl_uint), "clearing counts"));
    CL_TRY(cl_kernel_get(device, &kernel, "bins", options.text, "bin_count"));
    CL_TRY(CL_RUN(device, kernel, "counting survivors", 1, &global, &local, CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem), CL_ARG(slice->block->hints),
                  CL_ARG(slice->row0), CL_ARG(place), CL_ARG(slice->n), CL_ARG(plan.shift), CL_ARG(plan.tile_rows),
                  CL_ARG(engine->k), CL_ARG(engine->counts.mem), CL_ARG(engine->dense_count.mem)));
    if (!may_be_dense) return FGMM_OK;
    return cl_read_begin(device, &engine->dense_left, engine->dense_count.mem, 0, sizeof(cl_uint), "a count of rows");
}

fgmm_status cl_dense_list(fgmm_device *device, const cl_slice *slice, cl_uint *dense) {
    cl_engine *engine = device->engine;
    *dense = slice->n;
    if (engine->all_dense) return FGMM_OK;
    *dense = 0;
    if (!cl_has_places(device, slice)) return FGMM_OK;
    CL_TRY(cl_read_end(device, &engine->dense_left, "a count of rows"));
    *dense = *(const cl_uint *)engine->dense_left.pinned.at;
    if (device->asking > 1) *dense = 1;
    return *dense ? list_dense(device, slice, *dense) : FGMM_OK;
}

fgmm_status cl_lists(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    bin_plan plan = plan_bins(engine, slice);
    tile_options options = options_of(device, &plan);
    cl_uint pairs = engine->k * plan.slots;
    size_t local[2] = {GROUP, 1}, global[2] = {cl_round_up(engine->k, GROUP), plan.slots};
    size_t several = slice->settled ? (size_t)slice->listed + slice->looked : slice->n; /* rows that may have */
    size_t most = slice->n + several * (CL_CAP - 1);
    cl_mem place = cl_places(engine, slice);
    CL_TRY(cl_room_fit(device, &engine->totals, (size_t)pairs * sizeof(cl_uint), "lengths of lists"));
    CL_TRY(cl_room_fit(device, &engine->lists, ((size_t)pairs + 1) * sizeof(cl_uint), "starts of lists"));
    CL_TRY(cl_room_fit(device, &engine->values, most * sizeof(cl_uint), "survivors"));
    engine->list_slots = plan.slots;
    CL_TRY(cl_kernel_get(device, &kernel, "bins", options.text, "bin_totals"));
    CL_TRY(CL_RUN(device, kernel, "measuring lists", 2, global, local, CL_ARG(engine->counts.mem), CL_ARG(engine->k),
                  CL_ARG(plan.tiles), CL_ARG(plan.ahead), CL_ARG(plan.per_chunk), CL_ARG(plan.slots),
                  CL_ARG(engine->totals.mem)));
    CL_TRY(scan(device, engine->totals.mem, engine->lists.mem, pairs));
    CL_TRY(cl_kernel_get(device, &kernel, "bins", options.text, "bin_starts"));
    CL_TRY(CL_RUN(device, kernel, "placing lists", 2, global, local, CL_ARG(engine->counts.mem), CL_ARG(engine->k),
                  CL_ARG(plan.tiles), CL_ARG(plan.ahead), CL_ARG(plan.per_chunk), CL_ARG(plan.slots),
                  CL_ARG(engine->lists.mem)));
    size_t all = options.group * plan.tiles;
    cl_uint rounds = MOST_SCATTERED / (cl_uint)options.group;
    CL_TRY(cl_kernel_get(device, &kernel, "bins", options.text, "bin_scatter"));
    for (cl_uint round0 = 0; round0 < plan.tile_rows; round0 += MOST_SCATTERED)
        CL_TRY(CL_RUN(device, kernel, "listing survivors", 1, &all, &options.group, CL_ARG(engine->cand_id.mem),
                      CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem), CL_ARG(slice->block->hints),
                      CL_ARG(slice->row0), CL_ARG(place), CL_ARG(slice->n), CL_ARG(plan.shift), CL_ARG(plan.tile_rows),
                      CL_ARG(round0), CL_ARG(rounds), CL_ARG(engine->k), CL_ARG(engine->counts.mem),
                      CL_ARG(engine->values.mem)));
    return FGMM_OK;
}

fgmm_status cl_segments(fgmm_device *device, cl_uint slots, cl_ulong grain, cl_ulong skip) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t pairs = (size_t)engine->k * slots, local = GROUP, global = cl_round_up(pairs + 1, local);
    CL_TRY(cl_room_fit(device, &engine->segments, (pairs + 1) * sizeof(cl_uint), "segments"));
    CL_TRY(cl_kernel_get(device, &kernel, "bins", "", "bin_segments"));
    return CL_RUN(device, kernel, "finding segments", 1, &global, &local, CL_ARG(engine->values.mem),
                  CL_ARG(engine->lists.mem), CL_ARG(engine->list_slots), CL_ARG(engine->k), CL_ARG(slots),
                  CL_ARG(grain), CL_ARG(skip), CL_ARG(engine->segments.mem));
}

fgmm_status cl_row_order(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t local = GROUP, global = cl_round_up(slice->n, local);
    CL_TRY(cl_room_fit(device, &engine->offsets, ((size_t)slice->n + 1) * sizeof(cl_uint), "offsets of survivors"));
    CL_TRY(cl_room_fit(device, &engine->row_values, (size_t)slice->n * CL_CAP * sizeof(cl_uint), "survivors"));
    CL_TRY(scan(device, engine->kept.mem, engine->offsets.mem, slice->n));
    CL_TRY(cl_kernel_get(device, &kernel, "bins", "", "bin_rows"));
    return CL_RUN(device, kernel, "listing survivors", 1, &global, &local, CL_ARG(engine->kept.mem),
                  CL_ARG(engine->dense_flag.mem), CL_ARG(engine->offsets.mem), CL_ARG(slice->n),
                  CL_ARG(engine->row_values.mem));
}

/* As many superchunks at a time as the tally has slots for. Of floats under way there is room for one's: where the first goes on with some, and
 * the last is to leave some, they are not one launch's. */
fgmm_status cl_accumulate(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_tally *tally = &engine->sparse;
    cl_kernel kernel = NULL;
    cl_mem place = cl_places(engine, slice);
    bin_plan plan = plan_bins(engine, slice);
    cl_uint k = engine->k, d = engine->d, most = tally->grain ? tally->slots : plan.slots;
    char options[96];
    int exact = engine->tied || engine->full, fours = !exact && cl_row_fours(engine->d, block->offset, block->pitch);
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DROW_FOURS=%d -DEXACT=%d", (int)block->type, fours, exact);
    CL_TRY(cl_kernel_get(device, &kernel, "accumulate", options, "accumulate"));
    int ends_within = tally->grain && (slice->first + slice->n) % tally->grain != 0;
    for (cl_uint chunk0 = 0, slots = 0; chunk0 < plan.slots; chunk0 += slots) {
        cl_mem part = NULL;
        cl_uint resume = 0;
        slots = plan.slots - chunk0 < most ? plan.slots - chunk0 : most;
        if (tally->holds && ends_within && chunk0 + slots == plan.slots && tally->current == plan.first + chunk0)
            slots = 1;
        int whole = tally->grain && (chunk0 + slots < plan.slots || !ends_within);
        cl_uint held = cl_tally_held(tally), goes_on = tally->holds && !whole;
        CL_TRY(cl_tally_open(device, tally, plan.first + chunk0, slots, &resume, &part));
        size_t local = GROUP, global = cl_round_up((size_t)k * slots * (d / (fours ? 4 : 1)), local);
        CL_TRY(CL_RUN(device, kernel, "summing survivors", 1, &global, &local, CL_ARG(block->rows),
                      CL_ARG(block->offset), CL_ARG(block->pitch), CL_ARG(slice->row0), CL_ARG(d), CL_ARG(k),
                      CL_ARG(slots), CL_ARG(chunk0), CL_ARG(plan.slots), CL_ARG(place), CL_ARG(engine->sum_hi_at),
                      CL_ARG(engine->sum_lo_at), CL_ARG(block->weights), CL_ARG(engine->values.mem),
                      CL_ARG(engine->cand_v.mem), CL_ARG(engine->lists.mem), CL_ARG(resume), CL_ARG(held),
                      CL_ARG(goes_on), CL_ARG(tally->part.mem), CL_ARG(part)));
        CL_TRY(cl_tally_close(device, tally, slots, whole));
    }
    return FGMM_OK;
}
