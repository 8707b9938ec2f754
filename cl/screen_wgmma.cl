// target: nvptx64
// variants: -DDIAG=1 -DSTEPS=4 | -DSTEPS=1 -DROW_FOURS=1 | -DSTEPS=16 -DDIAG=1 -DRESIDENT=2 | -DSTEPS=32 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 -DROW_FOURS=1
/*
 * The screen of screen_mma.cl by Hopper's warpgroup products: read that first, the bound included, which holds for these as well.
 *
 *            components ->  64 a tile, with their constants, copied to local memory in the background, STAGES tiles ahead
 *        +--------------------------+
 *  rows  | warpgroup 0: 64 rows     |   A warpgroup keeps its rows as fragments in registers, and waits for a tile alone: while one
 *   |    | warpgroup 1              |   compares, the others multiply. A lane has rows g and g + 8 of its warp's 16.
 *   v    | ...                      |
 *        +--------------------------+
 */
#pragma OPENCL FP_CONTRACT OFF
#include "depths.clh"
#include "listed.clh"
#include "screen_rows.clh"

// STEPS: steps of 16 terms of a product (default 8).
#ifndef STEPS
#define STEPS 8
#endif
// RESIDENT: work-groups that are to have room in a compute unit, registers included; 0: as the compiler likes (cl_sm90a.c; default 0).
#ifndef RESIDENT
#define RESIDENT 0
#endif
#if STEPS < 1 || STEPS > 32 || (DIAG && STEPS % 2)
#error "STEPS must be 1 to 32 (even if DIAG)"
#endif

#define GROUPS 2 // warpgroups of a work-group
#define NT 8
// Fours, and constants, that are on their way together: as registers allow.
#define BATCH (STEPS > 8 ? 1 : 4)
#define AT_ONCE (STEPS > 8 ? 2 : 4)
#define FOURS (STEPS / (DIAG + 1)) // of features that a lane has of a row
#define TC 64
#define TR (64 * GROUPS)
#define GROUP (128 * GROUPS)
#define STAGES (STEPS > 8 ? 3 : 4)
#define STAGE (STEPS * TC * 2 + TC / 2) // uint4 of a tile: fragments, then constants
#include "stages.clh"
// A hint below this is known to the walk, by the number of its tile in 16 bits.
#define KNOWN_MOST (0xffffu * TC)

// Where a row's walk starts: at the lower logit of its last best component, which is listed at once.
static inline void start_row(uint r, uint at, int within, const screen_row *row, uint k, __global const float4 *components,
                             __local float *best, __local uint *counts, __global uint *cand_id, __global float *cand_v)
{
    const float start = within ? screen_start(row, k, components) : INFINITY;
    const int listed = start > -1e38f && start < 1e38f && row->hint < KNOWN_MOST;
    best[r] = start;
    counts[r] = within ? listed : CAP; // a row beyond the last has no list to write
    if (listed) {
        cand_id[(ulong)at * CAP] = row->hint;
        cand_v[(ulong)at * CAP] = start;
    }
}

// That component as the walk meets it: its tile, and its bit of `reached` in the one lane of four whose column it is.
static inline uint known_column(uint hint, uint part)
{
    const uint column = hint % TC;
    return hint < KNOWN_MOST && column % 8 / 2 == part ? hint / TC << 16 | 1u << (column / 8 * 2 + column % 2) : ~0u << 16;
}

// In its tile it is met no more: it is listed and has raised the floor, or lies further than floats tell.
#define FORGET(known, half_x, half_y)                                                                                  \
    if (known >> 16 == tile) {                                                                                         \
        _Pragma("unroll") for (uint j = 0; j < NT; j++)                                                                \
        {                                                                                                              \
            if (known >> (2 * j) & 1) acc[j].half_x = -INFINITY;                                                       \
            if (known >> (2 * j) & 2) acc[j].half_y = -INFINITY;                                                       \
        }                                                                                                              \
    }

// Row r of the lane's two: x, y are its halves of an accumulator.
#define ROW(r, top, quick, half_x, half_y)                                                                             \
    if (!(top < quick)) {                                                                                              \
        float floor_v = floors[r];                                                                                     \
        if (top > best[r] + RAISE) {                                                                                   \
            best[r] = top;                                                                                             \
            floor_v = floor_below(top, bounds);                                                                        \
            floors[r] = floor_v;                                                                                       \
        }                                                                                                              \
        quick = floor_v - slack;                                                                                       \
        uint reached = 0;                                                                                              \
        _Pragma("unroll") for (uint j = 0; j < NT; j++)                                                                \
        {                                                                                                              \
            reached |= acc[j].half_x < quick ? 0 : 1u << (2 * j);                                                      \
            reached |= acc[j].half_y < quick ? 0 : 2u << (2 * j);                                                      \
        }                                                                                                              \
        const ulong at = (ulong)PLACE(min(r, last)) * CAP;                                                         \
        list_columns(reached, top, tile * TC + 2 * (lane & 3), k, counts + r, cand_id + at, cand_v + at);              \
    }

// Arguments as of screen_mma.cl, but packed [tiles, STAGE]: each tile's fragments and constants, as arrange_tiles left them. row_bounds [block
// rows]: as settle.cl has it; depths go there of rows whose hint has no rival; NULL: not kept.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
screen_wgmma(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint dp, uint k,
             uint tiles, __global const float *centre, __global const float *scale, __global const float *hint_a,
             __global const float *hint_b, __global const uint *hints, __global const uint4 *packed,
             __global const float4 *components, float4 bounds, float slack, __global uint *cand_id, __global float *cand_v,
             __global uint *cand_count, __global uint2 *again, __global const uint2 *list, __global uint *row_bounds)
{
    __local uint4 stages[STAGES * STAGE] __attribute__((aligned(128)));
    __local ulong full[STAGES], empty[STAGES];
    __local float best[TR], floors[TR], others[TR]; // others: the best logit but for the hint's
    __local uint counts[TR];
    __local int any_cold; // whether any row starts without a floor

    const uint lid = get_local_id(0);
    const uint lane = lid % 32, warp = lid / 32;
    const uint r0 = warp * 16 + lane / 4, r1 = r0 + 8; // the lane's rows of the group's
    const uint first = get_group_id(0) * TR;
    LISTED_FROM(first);
    const uint last = n - 1 - first; // row of the group

    if (lid == 0) {
        any_cold = 0;
        stages_open(full, empty);
        for (uint step = 0; step < STAGES - 1 && step < tiles; step++) stage(stages, full, packed, step, tiles);
    }

    uint4 a[STEPS];
    float half_norm0, half_norm1;
    uint known0, known1; // of the two rows
    {
        // Rows beyond the last are the last again, and thrown away.
        const uint at0 = PLACE(min(r0, last)), at1 = PLACE(min(r1, last));
        const uint n0 = BLOCK_ROW(min(r0, last)), n1 = BLOCK_ROW(min(r1, last));
        screen_row lower = screen_row_at(offset + (ulong)n0 * pitch, hints[n0]);
        screen_row upper = screen_row_at(offset + (ulong)n1 * pitch, hints[n1]);
#pragma unroll
        for (uint s0 = 0; s0 < FOURS; s0 += BATCH) {
            float4 x[BATCH], y[BATCH];
#pragma unroll
            for (uint i = 0; i < BATCH; i++) {
                const uint f = 16 * (s0 + i) + 4 * (lane & 3);
                x[i] = row_four(rows, lower.x0, f, d);
                y[i] = row_four(rows, upper.x0, f, d);
            }
#pragma unroll
            for (uint i = 0; i < BATCH; i++) {
                const uint s = s0 + i, f = 16 * s + 4 * (lane & 3);
                if (s >= FOURS) break;
                const float4 lo = (x[i] - vload4(f / 4, centre)) * vload4(f / 4, scale);
                const float4 hi = (y[i] - vload4(f / 4, centre)) * vload4(f / 4, scale);
                screen_sums(&lower, lo, f, dp, k, hint_a, hint_b);
                screen_sums(&upper, hi, f, dp, k, hint_a, hint_b);
#if DIAG
                a[2 * s] = mma_fragment(lo * lo, hi * hi);
                a[2 * s + 1] = mma_fragment(lo, hi);
#else
                a[s] = mma_fragment(lo, hi);
#endif
            }
        }
        lower.square = mma_row_sum(lower.square);
        upper.square = mma_row_sum(upper.square);
        lower.product = mma_row_sum(lower.product);
        upper.product = mma_row_sum(upper.product);
        half_norm0 = DIAG ? 0.0f : -0.5f * lower.square;
        half_norm1 = DIAG ? 0.0f : -0.5f * upper.square;
        if ((lane & 3) == 0) {
            start_row(r0, at0, r0 <= last, &lower, k, components, best, counts, cand_id, cand_v);
            start_row(r1, at1, r1 <= last, &upper, k, components, best, counts, cand_id, cand_v);
        }
        known0 = known_column(lower.hint, lane & 3);
        known1 = known_column(upper.hint, lane & 3);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < TR) {
        // A row that starts infinite is left to the f32 screen, whatever it lists.
        floors[lid] = best[lid] > -1e38f ? floor_below(best[lid], bounds) : -3e38f;
        if (best[lid] < -1e38f) any_cold = 1;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    // Lists would overflow while such a row's floor rises: a walk for its best component goes before.
    const uint searched = any_cold ? tiles : 0, steps = searched + tiles;
    if (lid == 0)
        for (uint step = tiles; step < STAGES - 1 && step < steps; step++) stage(stages, full, packed, step, tiles);
    float quick0 = floors[r0] - slack, quick1 = floors[r1] - slack;
    float others0 = -INFINITY, others1 = -INFINITY;

    for (uint step = 0; step < steps; step++) {
        const uint tile = step < tiles ? step : step - tiles, s = step % STAGES;
        if (searched && step == searched) {
            // Its rows are the warp's own. Lanes of a row race for its floor, here and below: whichever wins is sound.
            asm volatile("bar.warp.sync -1;" ::: "memory");
            if (lane < 16) floors[warp * 16 + lane] = floor_below(best[warp * 16 + lane], bounds);
            asm volatile("bar.warp.sync -1;" ::: "memory");
            quick0 = floors[r0] - slack;
            quick1 = floors[r1] - slack;
        }
        __local const uint4 *staged = stages + s * STAGE;
        float4 acc[NT];
#pragma unroll
        for (uint j = 0; j < NT; j++) acc[j] = (float4)(half_norm0, half_norm0, half_norm1, half_norm1);
        barrier_wait(full + s, (step / STAGES) & 1);
        const ulong b = wgmma_descriptor(staged, 128, TC * 16);
        asm volatile("bar.warp.sync -1;" ::: "memory");
        wgmma_fence();
#pragma unroll
        for (uint i = 0; i < STEPS; i++) WGMMA(acc, a[i], b + i * (TC * 32 / 16));
        wgmma_commit();
        stage_next(stages, full, empty, packed, step, steps, tiles, lid);
        __local const float4 *own = (__local const float4 *)(staged + STEPS * TC * 2) + (lane & 3);
        float4 constants[AT_ONCE];
#pragma unroll
        for (uint j = 0; j < AT_ONCE; j++) constants[j] = own[4 * j];
        WGMMA_WAIT(acc);
        float top0 = -INFINITY, top1 = -INFINITY;
#pragma unroll
        for (uint j = 0; j < NT; j++) {
            const float4 c = constants[j % AT_ONCE];
            if (j + AT_ONCE < NT) constants[j % AT_ONCE] = own[4 * (j + AT_ONCE)];
            acc[j].x = fma(acc[j].x, c.x, c.y);
            acc[j].y = fma(acc[j].y, c.z, c.w);
            acc[j].z = fma(acc[j].z, c.x, c.y);
            acc[j].w = fma(acc[j].w, c.z, c.w);
        }
        FORGET(known0, x, y)
        FORGET(known1, z, w)
#pragma unroll
        for (uint j = 0; j < NT; j++) {
            top0 = fmax(top0, fmax(acc[j].x, acc[j].y));
            top1 = fmax(top1, fmax(acc[j].z, acc[j].w));
        }
        asm volatile("bar.warp.sync -1;" ::: "memory");
        if (lane == 0) barrier_arrive(empty + s);
        if (step < searched) {
            top0 = mma_row_max(top0);
            top1 = mma_row_max(top1);
            if (top0 > best[r0]) best[r0] = top0;
            if (top1 > best[r1]) best[r1] = top1;
        } else {
            others0 = fmax(others0, top0);
            others1 = fmax(others1, top1);
            ROW(r0, top0, quick0, x, y)
            ROW(r1, top1, quick1, z, w)
        }
    }
    others0 = mma_row_max(others0);
    others1 = mma_row_max(others1);
    if ((lane & 3) == 0) {
        others[r0] = others0;
        others[r1] = others1;
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);

    // One work-item a row: what the final floor rules out goes; what cannot be trusted is listed.
    if (lid >= TR || lid > last) return;
    const uint at = PLACE(lid);
    const uint kept = screen_kept(counts[lid], floors[lid], components, cand_id + (ulong)at * CAP, cand_v + (ulong)at * CAP);
    const int sound = best[lid] > -1e38f && best[lid] < 1e38f && kept > 0;
    cand_count[at] = sound ? kept : CAP + 1;
    if (!sound) APPEND(again, ENTRY(lid));
    if (row_bounds && sound && counts[lid] == 1 && cand_id[(ulong)at * CAP] == hints[BLOCK_ROW(lid)])
        row_bounds[BLOCK_ROW(lid)] = keep(INFINITY, depth_below(others[lid], slack, bounds));
}
