// target: nvptx64
// variants: -DDIAG=1 | -DROW_FOURS=1 | -DROW_TYPE=2 | -DROW_TYPE=3 -DROW_FOURS=1 | -DROW_TYPE=4 -DDIAG=1 | -DROW_TYPE=5
/*
 * Rows as fragments for screen_mma.cl, for depths at which a warp cannot keep its own. NVIDIA GPUs only.
 *
 *   packed_rows [row / 16, step, lane]: mma.clh's A of rows 16 i .. 16 i + 15, `steps` steps of 16 terms
 *   row_starts [row]: (|x|^2, the lower logit to start from)
 *
 * A warp owns 16 rows and walks the features. Rows from n to the end of the last 128 are written as rows without a floor.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "listed.clh"
#include "screen_rows.clh"
#define GROUP 128 // work-items, for half as many rows
#define TR 128    // rows of a group of screen_mma.cl

// Arguments as of screen_mma.cl.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
pack_rows(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint dp, uint k,
          __global const float *centre, __global const float *scale, __global const float *hint_a,
          __global const float *hint_b, __global const uint *hints, __global const float4 *components,
          __global uint4 *packed_rows, __global float2 *row_starts, __global const uint2 *list)
{
    const uint lane = get_local_id(0) % 32;
    const uint warp = get_group_id(0) * (GROUP / 32) + get_local_id(0) / 32;
    const uint rl = warp * 16 + lane / 4, ru = rl + 8;
    const uint first = 0; // row of listed.clh's group, which is all rows here
    LISTED_FROM(warp * 16 / TR * TR); // of the last TR all are written
    const uint nl = BLOCK_ROW(min(rl, n - 1)), nu = BLOCK_ROW(min(ru, n - 1));
    screen_row lower, upper;
    lower.x0 = offset + (ulong)nl * pitch;
    upper.x0 = offset + (ulong)nu * pitch;
    lower.hint = hints[nl];
    upper.hint = hints[nu];
    lower.square = lower.product = upper.square = upper.product = 0.0f;
    __global uint4 *out = packed_rows + (ulong)warp * (dp / 16 * (DIAG + 1)) * 32 + lane;
#pragma unroll 4
    for (uint s = 0; s < dp / 16; s++) {
        const uint f = 16 * s + 4 * (lane & 3);
        const float4 x = screen_four(&lower, rows, f, d, dp, k, centre, scale, hint_a, hint_b);
        const float4 y = screen_four(&upper, rows, f, d, dp, k, centre, scale, hint_a, hint_b);
#if DIAG
        out[64 * s] = mma_fragment(x * x, y * y);
        out[64 * s + 32] = mma_fragment(x, y);
#else
        out[32 * s] = mma_fragment(x, y);
#endif
    }
    lower.square = mma_row_sum(lower.square);
    upper.square = mma_row_sum(upper.square);
    lower.product = mma_row_sum(lower.product);
    upper.product = mma_row_sum(upper.product);
    if ((lane & 3) == 0) {
        row_starts[rl] = (float2)(lower.square, rl < n ? screen_start(&lower, k, components) : INFINITY);
        row_starts[ru] = (float2)(upper.square, ru < n ? screen_start(&upper, k, components) : INFINITY);
    }
}
