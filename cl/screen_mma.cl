// target: nvptx64
// variants: -DDIAG=1 -DSTEPS=4 | -DSTEPS=0 -DNT=16 | -DSTEPS=1 -DROW_FOURS=1 | -DSTEPS=0 -DNT=16 -DDIAG=1 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 -DROW_FOURS=1
/*
 * The screen on matrix units: which components can matter for a row. What screen.cl does, its bound included, with products in
 * f16; read that first. NVIDIA GPUs only.
 *
 *   spherical: v = 2 a (m . x - |x|^2 / 2) - a |m|^2        depth D
 *   diagonal:  v = 2^e [x^2, x] . 2^-e [-a, 2 a m] - M      depth 2D, in steps of 16 features: first x^2, then x
 *
 *            components ->  8 NT a tile, in packed fragments through local memory, two stages
 *        +----------------------+
 *  rows  | warp 0: 32 rows      |   a warp keeps the fragments of its rows (depth up to 128) or fetches them step by step
 *   |    | warp 1               |   from where pack_rows left them; a lane has four rows, g, g + 8, g + 16, g + 24 of the
 *   v    | ...                  |   warp's, and columns 2 c, 2 c + 1 of each 8: of these it compares the best of a tile
 *        +----------------------+   with the row's floor, and looks closer only where it is reached
 *
 * The bound is that of screen.cl with a larger g. Each factor is rounded to f16, 2^-11 relative, so each term is off by at most
 * 2^-10 (1 + 2^-11) of itself; sums of 16 products are cut off, not rounded, at 2^-23 of the largest magnitude in them, at most
 * 20 times a step: 1.25 depth 2^-23 of the sum of all terms' magnitudes, |x|^2 / 2 included, which is in f32. f16 below 2^-14 is
 * off by 2^-25 absolute: the host adds what that makes of each component to its constants. Rows beyond f16's range are found by
 * their norm.
 *
 * Here v is compared as a lower logit, l = v + c1, so that one constant is enough for a column: component k stays on the row's
 * list while l + (c2 - c1) reaches the floor. The walk lists all with l + slack above it, slack the largest c2 - c1, and the list is
 * gone through at the end. Lists that overflow, and rows beyond f16, are listed for the f32 screen.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "listed.clh"
#include "screen_rows.clh"

// STEPS: steps of 16 terms whose fragments a warp keeps, 1 to 8; 0: rows come from pack_rows, any depth (default 8).
#ifndef STEPS
#define STEPS 8
#endif
// NT: tiles of 8 components at a time, even, at most 16 (default 8).
#ifndef NT
#define NT 8
#endif
// CHUNK: steps a stage of local memory holds where STEPS is 0 (default 4).
#ifndef CHUNK
#define CHUNK 4
#endif
#if STEPS < 0 || STEPS > 8 || NT < 2 || NT > 16 || NT % 2 || CHUNK < 1 || (DIAG && STEPS % 2)
#error "STEPS must be 0 to 8 (even if DIAG), NT even and at most 16, CHUNK positive"
#endif
#if STEPS > 0
#undef CHUNK
#define CHUNK STEPS
#endif

#define GROUP 128
#define TR 128
#define TC (8 * NT)
#define STAGE (CHUNK * NT * 16) // uint4 of a stage

#define ROW_STAGE (STEPS ? 0 : CHUNK * TR * 2) // uint4 of rows in a stage

// Starts copying what the walk's chunk q needs: the components' fragments, the rows' where a warp has not kept its own, and with the
// first chunk of a tile its constants. packed_rows: the group's.
static inline void stage(__local uint4 *factors, __local float2 *columns, __global const uint4 *packed_rows,
                         __global const uint4 *packed, __global const float2 *constants, uint q, uint chunks, uint tiles,
                         uint lid)
{
    const uint step = STEPS ? q : q / chunks, tile = step < tiles ? step : step - tiles, chunk = q - step * chunks;
    __local uint4 *to = factors + (q & 1) * (STAGE + ROW_STAGE);
    __global const uint4 *from = packed + ((ulong)tile * chunks + chunk) * STAGE;
    for (uint i = lid; i < STAGE; i += GROUP) copy_16(to + i, from + i);
#if STEPS == 0
    for (uint i = lid; i < ROW_STAGE; i += GROUP) {
        const uint strip = i / (CHUNK * 32), at = i % (CHUNK * 32);
        copy_16(to + STAGE + i, packed_rows + ((ulong)strip * chunks + chunk) * (CHUNK * 32) + at);
    }
#endif
    if (chunk == 0 && lid < TC / 2)
        copy_16(columns + (step & 1) * TC + 2 * lid, constants + (ulong)tile * TC + 2 * lid);
}

// Row slot s of a lane: x, y are its halves of accumulator half s / 2.
#define ROW_SLOT(s, half_x, half_y)                                                                                    \
    {                                                                                                                  \
        const uint r = r0 + 8 * (s);                                                                                   \
        float floor_v = floors[r], top = tops[s];                                                                      \
        if (step < searched) {                                                                                         \
            top = mma_row_max(top);                                                                                    \
            if (top > best[r]) best[r] = top;                                                                          \
        } else if (!(top + slack < floor_v)) {                                                                         \
            if (top > best[r] + RAISE) {                                                                               \
                best[r] = top;                                                                                         \
                floor_v = floor_below(top, bounds);                                                                    \
                floors[r] = floor_v;                                                                                   \
            }                                                                                                          \
            const float quick = floor_v - slack;                                                                       \
            uint reached = 0;                                                                                          \
            _Pragma("unroll") for (uint j = 0; j < NT; j++)                                                            \
            {                                                                                                          \
                reached |= acc[(s) / 2][j].half_x < quick ? 0 : 1u << (2 * j);                                         \
                reached |= acc[(s) / 2][j].half_y < quick ? 0 : 2u << (2 * j);                                         \
            }                                                                                                          \
            const ulong at = (ulong)PLACE(min(r, last)) * CAP;                                                     \
            list_columns(reached, top, tile * TC + 2 * (lane & 3), k, counts + r, cand_id + at, cand_v + at);          \
        }                                                                                                              \
    }

// Rows and the places of their candidates are listed.clh's. hints [block rows]; hint_a, hint_b [k, dp], as in
// screen_rows.clh. packed_rows, row_starts (norm, start): what pack_rows made of these rows, where STEPS is 0.
// packed [tiles, chunks, CHUNK, NT / 2, 32]: two registers each of two tiles of 8. constants [tiles TC]: multiplier, c1; components
// [k]: multiplier, c1, c2 - c1, of guess_tiles. bounds: log cut (0 in hard passes), 16 g, Cmax, pad. again: a list of the rows
// that the f32 screen must take. list: or NULL.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
screen_mma(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint dp, uint k,
           uint tiles, uint chunks, __global const float *centre, __global const float *scale,
           __global const float *hint_a, __global const float *hint_b, __global const uint *hints,
           __global const uint4 *packed_rows, __global const float2 *row_starts, __global const uint4 *packed,
           __global const float2 *constants, __global const float4 *components, float4 bounds, float slack,
           __global uint *cand_id, __global float *cand_v, __global uint *cand_count, __global uint2 *again,
           __global const uint2 *list)
{
    __local uint4 factors[2 * (STAGE + ROW_STAGE)] __attribute__((aligned(16)));
    __local float2 columns[2 * TC] __attribute__((aligned(16)));
    __local float best[TR], floors[TR];
    __local uint counts[TR];
    __local int any_cold; // whether any row starts without a floor

    const uint lid = get_local_id(0);
    const uint lane = lid % 32;
    const uint r0 = lid / 32 * 32 + lane / 4; // the lane's first row of the group's; the others lie 8, 16, 24 further
    const uint first = get_group_id(0) * TR;
    float half_norm[4];
    LISTED_FROM(first);
    const uint last = n - 1 - first; // row of the group

#if STEPS == 0
    packed_rows += (ulong)get_group_id(0) * (TR * 2) * (chunks * CHUNK);
#endif
    stage(factors, columns, packed_rows, packed, constants, 0, chunks, tiles, lid);
    counts[lid] = lid <= last ? 0 : CAP; // a row beyond the last has no list to write
    if (lid == 0) any_cold = 0;
#if STEPS > 0
    uint4 a[2][STEPS];
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        screen_row lower, upper;
        const uint rl = r0 + 16 * i, ru = rl + 8;
        // Rows beyond the last are the last again, and thrown away.
        const uint nl = BLOCK_ROW(min(rl, last)), nu = BLOCK_ROW(min(ru, last));
        lower.x0 = offset + (ulong)nl * pitch;
        upper.x0 = offset + (ulong)nu * pitch;
        lower.hint = hints[nl];
        upper.hint = hints[nu];
        lower.square = lower.product = upper.square = upper.product = 0.0f;
#pragma unroll
        for (uint s = 0; s < STEPS / (DIAG + 1); s++) {
            const uint f = 16 * s + 4 * (lane & 3);
            const float4 x = screen_four(&lower, rows, f, d, dp, k, centre, scale, hint_a, hint_b);
            const float4 y = screen_four(&upper, rows, f, d, dp, k, centre, scale, hint_a, hint_b);
#if DIAG
            a[i][2 * s] = mma_fragment(x * x, y * y);
            a[i][2 * s + 1] = mma_fragment(x, y);
#else
            a[i][s] = mma_fragment(x, y);
#endif
        }
        lower.square = mma_row_sum(lower.square);
        upper.square = mma_row_sum(upper.square);
        lower.product = mma_row_sum(lower.product);
        upper.product = mma_row_sum(upper.product);
        half_norm[2 * i] = -0.5f * lower.square;
        half_norm[2 * i + 1] = -0.5f * upper.square;
        if ((lane & 3) == 0) {
            best[rl] = rl <= last ? screen_start(&lower, k, components) : INFINITY;
            best[ru] = ru <= last ? screen_start(&upper, k, components) : INFINITY;
        }
    }
#else
    for (uint s = 0; s < 4; s++) half_norm[s] = -0.5f * row_starts[first + r0 + 8 * s].x;
    best[lid] = row_starts[first + lid].y;
#endif
    barrier(CLK_LOCAL_MEM_FENCE);
    // A row that starts infinite is left to the f32 screen, whatever it lists.
    floors[lid] = best[lid] > -1e38f ? floor_below(best[lid], bounds) : -3e38f;
    if (best[lid] < -1e38f) any_cold = 1;
    barrier(CLK_LOCAL_MEM_FENCE);
    // Lists would overflow while such a row's floor rises: a walk for its best component goes before.
    const uint searched = any_cold ? tiles : 0, total = (searched + tiles) * chunks;

    for (uint q = 0, step = 0; step < searched + tiles; step++) {
        const uint tile = step < tiles ? step : step - tiles;
        if (searched && step == searched) {
            barrier(CLK_LOCAL_MEM_FENCE);
            floors[lid] = floor_below(best[lid], bounds);
        }
        float4 acc[2][NT];
#pragma unroll
        for (uint i = 0; i < 2; i++)
#pragma unroll
            for (uint j = 0; j < NT; j++)
#if DIAG
                acc[i][j] = (float4)(0.0f);
#else
                acc[i][j] = (float4)(half_norm[2 * i], half_norm[2 * i], half_norm[2 * i + 1], half_norm[2 * i + 1]);
#endif
#if STEPS == 0
        for (uint chunk = 0; chunk < chunks; chunk++)
#endif
        {
            copies_done();
            barrier(CLK_LOCAL_MEM_FENCE);
            if (q + 1 < total) stage(factors, columns, packed_rows, packed, constants, q + 1, chunks, tiles, lid);
            __local const uint4 *b = factors + (q & 1) * (STAGE + ROW_STAGE) + lane;
#pragma unroll
            for (uint s = 0; s < CHUNK; s++) {
#if STEPS > 0
                const uint4 a0 = a[0][s], a1 = a[1][s];
#else
                __local const uint4 *own_rows = b + STAGE + (lid / 32 * 2 * CHUNK + s) * 32;
                const uint4 a0 = own_rows[0], a1 = own_rows[CHUNK * 32];
#endif
#pragma unroll
                for (uint j = 0; j < NT / 2; j++) {
                    const uint4 f = b[(s * (NT / 2) + j) * 32];
                    MMA(acc[0][2 * j], a0, f.x, f.y);
                    MMA(acc[1][2 * j], a1, f.x, f.y);
                    MMA(acc[0][2 * j + 1], a0, f.z, f.w);
                    MMA(acc[1][2 * j + 1], a1, f.z, f.w);
                }
            }
            q++;
        }
        float tops[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        __local const float2 *own = columns + (step & 1) * TC + 2 * (lane & 3);
#pragma unroll
        for (uint j = 0; j < NT; j++) {
            const float4 c = *(__local const float4 *)(own + 8 * j);
#pragma unroll
            for (uint i = 0; i < 2; i++) {
                acc[i][j].x = fma(acc[i][j].x, c.x, c.y);
                acc[i][j].y = fma(acc[i][j].y, c.z, c.w);
                acc[i][j].z = fma(acc[i][j].z, c.x, c.y);
                acc[i][j].w = fma(acc[i][j].w, c.z, c.w);
                tops[2 * i] = fmax(tops[2 * i], fmax(acc[i][j].x, acc[i][j].y));
                tops[2 * i + 1] = fmax(tops[2 * i + 1], fmax(acc[i][j].z, acc[i][j].w));
            }
        }
        ROW_SLOT(0, x, y)
        ROW_SLOT(1, z, w)
        ROW_SLOT(2, x, y)
        ROW_SLOT(3, z, w)
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);

    // One work-item a row: what the final floor rules out goes; what cannot be trusted is listed.
    if (lid > last) return;
    const uint at = PLACE(lid);
    const uint kept = screen_kept(counts[lid], floors[lid], components, cand_id + (ulong)at * CAP, cand_v + (ulong)at * CAP);
    const int sound = best[lid] > -1e38f && best[lid] < 1e38f && kept > 0;
    cand_count[at] = sound ? kept : CAP + 1;
    if (!sound) APPEND(again, ENTRY(lid));
}
