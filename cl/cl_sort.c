/* From the survivors of each row to sums by component: prefix sums, compaction, stable sort, segmented sums. */
#include "cl_engine.h"

#include <stdio.h>

enum { GROUP = 64, DIGIT_BITS = 4, DIGITS = 1 << DIGIT_BITS, SCAN_LEVELS = 4 };

static fgmm_status scan_level(fgmm_device *device, cl_mem in, cl_mem out, cl_uint n, int level) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t blocks = ((size_t)n + 1 + CL_SCAN_BLOCK - 1) / CL_SCAN_BLOCK;
    size_t local = GROUP, global = blocks * GROUP;
    cl_room *totals = &engine->scan_totals[level], *sums = &engine->scan_sums[level];
    CL_TRY(cl_room_fit(device, totals, blocks * sizeof(cl_uint), "prefix sums"));
    CL_TRY(cl_kernel_get(device, &kernel, "scan", "", "scan_blocks"));
    CL_TRY(CL_RUN(device, kernel, "prefix sums", 1, &global, &local, CL_ARG(in), CL_ARG(out), CL_ARG(totals->mem),
                  CL_ARG(n)));
    if (blocks == 1) return FGMM_OK;
    CL_TRY(cl_room_fit(device, sums, (blocks + 1) * sizeof(cl_uint), "prefix sums"));
    CL_TRY(scan_level(device, totals->mem, sums->mem, (cl_uint)blocks, level + 1));
    CL_TRY(cl_kernel_get(device, &kernel, "scan", "", "scan_add"));
    return CL_RUN(device, kernel, "prefix sums", 1, &global, &local, CL_ARG(out), CL_ARG(sums->mem), CL_ARG(n));
}

/* in [n], out [n + 1]; SCAN_LEVELS levels reach 2^40 elements. */
static fgmm_status scan(fgmm_device *device, cl_mem in, cl_mem out, cl_uint n) {
    return scan_level(device, in, out, n, 0);
}

static fgmm_status sort_entries(fgmm_device *device, cl_uint entries, int *side) {
    cl_engine *engine = device->engine;
    cl_kernel count = NULL, scatter = NULL;
    size_t groups = ((size_t)entries + CL_SORT_BLOCK - 1) / CL_SORT_BLOCK;
    size_t local = GROUP, global = groups * GROUP;
    *side = 0;
    CL_TRY(cl_kernel_get(device, &count, "sort", "", "sort_count"));
    CL_TRY(cl_kernel_get(device, &scatter, "sort", "", "sort_scatter"));
    CL_TRY(cl_room_fit(device, &engine->histogram, groups * DIGITS * sizeof(cl_uint), "a histogram"));
    CL_TRY(cl_room_fit(device, &engine->digit_starts, (groups * DIGITS + 1) * sizeof(cl_uint), "a histogram"));
    for (cl_uint shift = 0; shift < 32 && (engine->k - 1) >> shift; shift += DIGIT_BITS) {
        int from = *side, to = 1 - from;
        CL_TRY(CL_RUN(device, count, "counting digits", 1, &global, &local, CL_ARG(engine->keys[from].mem),
                      CL_ARG(entries), CL_ARG(shift), CL_ARG(engine->histogram.mem)));
        CL_TRY(scan(device, engine->histogram.mem, engine->digit_starts.mem, (cl_uint)(groups * DIGITS)));
        CL_TRY(CL_RUN(device, scatter, "sorting", 1, &global, &local, CL_ARG(engine->keys[from].mem),
                      CL_ARG(engine->values[from].mem), CL_ARG(entries), CL_ARG(shift),
                      CL_ARG(engine->digit_starts.mem), CL_ARG(engine->keys[to].mem), CL_ARG(engine->values[to].mem)));
        *side = to;
    }
    return FGMM_OK;
}

/* Totals of the two prefix sums, with one wait. */
static fgmm_status read_totals(fgmm_device *device, cl_uint n, cl_uint *entries, cl_uint *dense) {
    cl_engine *engine = device->engine;
    size_t at = (size_t)n * sizeof(cl_uint);
    CL_CHECK(
        device,
        clEnqueueReadBuffer(device->queue, engine->offsets.mem, CL_FALSE, at, sizeof *entries, entries, 0, NULL, NULL),
        "reading counts");
    cl_int code =
        clEnqueueReadBuffer(device->queue, engine->dense_offsets.mem, CL_TRUE, at, sizeof *dense, dense, 0, NULL, NULL);
    if (code != CL_SUCCESS) clFinish(device->queue);
    CL_CHECK(device, code, "reading counts");
    return FGMM_OK;
}

static fgmm_status read_list(fgmm_device *device, cl_uint dense) {
    cl_engine *engine = device->engine;
    if (engine->list_cap < dense) {
        cl_release_memory(device, engine->list);
        engine->list_cap = 0;
        engine->list = cl_alloc(device, (size_t)dense * sizeof *engine->list);
        if (!engine->list) return FGMM_ERR_MEMORY;
        engine->list_cap = dense;
    }
    return cl_read(device, engine->dense_list.mem, (size_t)dense * sizeof *engine->list, engine->list,
                   "reading the dense rows");
}

fgmm_status cl_emit(fgmm_device *device, const cl_slice *slice, int side) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "sort", "", "emit"));
    size_t local = GROUP, global = cl_round_up(slice->n, local);
    return CL_RUN(device, kernel, "compacting survivors", 1, &global, &local, CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem), CL_ARG(engine->offsets.mem),
                  CL_ARG(engine->dense_offsets.mem), CL_ARG(slice->n), CL_ARG(engine->keys[side].mem),
                  CL_ARG(engine->values[side].mem), CL_ARG(engine->dense_list.mem));
}

fgmm_status cl_segments(fgmm_device *device, cl_uint entries, int side, cl_uint slots, cl_ulong grain, cl_ulong skip) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t pairs = (size_t)engine->k * slots, local = GROUP, global = cl_round_up(pairs + 1, local);
    CL_TRY(cl_room_fit(device, &engine->segments, (pairs + 1) * sizeof(cl_uint), "segments"));
    CL_TRY(cl_kernel_get(device, &kernel, "sort", "", "segments"));
    return CL_RUN(device, kernel, "finding segments", 1, &global, &local, CL_ARG(engine->keys[side].mem),
                  CL_ARG(engine->values[side].mem), CL_ARG(entries), CL_ARG(engine->k), CL_ARG(slots), CL_ARG(grain),
                  CL_ARG(skip), CL_ARG(engine->segments.mem));
}

fgmm_status cl_compact(fgmm_device *device, const cl_slice *slice, cl_uint *entries, cl_uint *dense, int *side) {
    cl_engine *engine = device->engine;
    cl_uint n = slice->n;
    size_t room = ((size_t)n + 1) * sizeof(cl_uint);
    CL_TRY(cl_room_fit(device, &engine->offsets, room, "offsets of survivors"));
    CL_TRY(cl_room_fit(device, &engine->dense_offsets, room, "offsets of dense rows"));
    CL_TRY(scan(device, engine->kept.mem, engine->offsets.mem, n));
    CL_TRY(scan(device, engine->dense_flag.mem, engine->dense_offsets.mem, n));
    CL_TRY(read_totals(device, n, entries, dense));

    for (int i = 0; i < 2; i++) {
        CL_TRY(cl_room_fit(device, &engine->keys[i], *entries * sizeof(cl_uint), "survivors"));
        CL_TRY(cl_room_fit(device, &engine->values[i], *entries * sizeof(cl_uint), "survivors"));
    }
    CL_TRY(cl_room_fit(device, &engine->dense_list, *dense * sizeof(cl_uint), "dense rows"));
    CL_TRY(cl_emit(device, slice, 0));
    *side = 0;
    if (*dense) CL_TRY(read_list(device, *dense));
    return *entries ? sort_entries(device, *entries, side) : FGMM_OK;
}

fgmm_status cl_accumulate(fgmm_device *device, const cl_slice *slice, cl_uint entries, int side) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_tally *tally = &engine->sparse;
    cl_kernel kernel = NULL;
    cl_mem part = NULL;
    cl_uint slots = 1, resume = 0, k = engine->k, d = engine->d;
    int64_t first = 0;
    cl_ulong grain = (cl_ulong)tally->grain, skip = 0;
    if (grain) {
        first = slice->first / tally->grain;
        slots = (cl_uint)((slice->first + slice->n - 1) / tally->grain - first + 1);
        skip = (cl_ulong)(slice->first - first * tally->grain);
    }
    CL_TRY(cl_tally_open(device, tally, first, slots, &resume, &part));

    CL_TRY(cl_segments(device, entries, side, slots, grain, skip));

    char row[64], options[96];
    cl_row_options(row, sizeof row, block);
    snprintf(options, sizeof options, "%s -DEXACT=%d", row, engine->tied || engine->full);
    CL_TRY(cl_kernel_get(device, &kernel, "accumulate", options, "accumulate"));
    size_t local = GROUP, global = cl_round_up((size_t)k * slots * (d + 1), local);
    CL_TRY(CL_RUN(device, kernel, "summing survivors", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(slice->row0), CL_ARG(d), CL_ARG(k), CL_ARG(slots),
                  CL_ARG(engine->sum_hi_at), CL_ARG(engine->sum_lo_at), CL_ARG(block->weights),
                  CL_ARG(engine->values[side].mem), CL_ARG(engine->cand_v.mem), CL_ARG(engine->segments.mem),
                  CL_ARG(resume), CL_ARG(part)));
    return cl_tally_close(device, tally, slots);
}
