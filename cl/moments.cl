// variants: -DROW_FOURS=1 | -DROW_TYPE=2 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5
/*
 * Looking at rows: which hold NaN or Inf, column sums about a centre, single rows.
 */
#include "ff.clh"
#include "rows.clh"

// CHUNK: rows a chunk, FGMM_CHUNK_ROWS (default 1024).
#ifndef CHUNK
#define CHUNK 1024
#endif
#if CHUNK < 1
#error "CHUNK must be positive"
#endif
#define GROUP 64
#define LANES 8     // work-items that share a row
#define EACH 8      // rows that they take together
#define ROUND (GROUP / LANES)

static inline int is_bad(float x)
{
    return (as_uint(x) & 0x7f800000u) == 0x7f800000u;
}

// Rows first .. first + n - 1, ROUND EACH of them a work-group: bad[row] = 1 if it holds NaN or Inf, else 0; bad may be NULL. found, of
// zeros: [0] how many rows have any, [1] the first of them, all its bits turned over, [2] whether a row of weight (all, without weights)
// has a finite value of `most` or more, which is at most 2^120.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
find_bad(__global const row_t *rows, ulong offset, ulong pitch, uint first, uint n, uint d, float most,
         __global const float *weights, __global uint *bad, __global uint *found)
{
    __local uint marks[ROUND * EACH];
    const uint lid = get_local_id(0), lane = lid % LANES, row0 = get_group_id(0) * (ROUND * EACH);
    marks[lid] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint f = 4 * lane; f < d; f += 4 * LANES) {
        float4 x[EACH];
#pragma unroll
        for (uint i = 0; i < EACH; i++) {
            const uint row = min(row0 + i * ROUND + lid / LANES, n - 1);
            x[i] = row_four(rows, offset + (ulong)(first + row) * pitch, f, d);
        }
#pragma unroll
        for (uint i = 0; i < EACH; i++) {
            const float4 size = fabs(x[i]);
            if ((size.x + size.y) + (size.z + size.w) < most) continue;
            if (is_bad(x[i].x) || is_bad(x[i].y) || is_bad(x[i].z) || is_bad(x[i].w))
                marks[i * ROUND + lid / LANES] = 1; // whoever writes it
            else if (!(fmax(fmax(size.x, size.y), fmax(size.z, size.w)) < most) &&
                     !(weights && weights[first + min(row0 + i * ROUND + lid / LANES, n - 1)] == 0.0f))
                found[2] = 1;
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (row0 + lid >= n) return;
    if (bad) bad[first + row0 + lid] = marks[lid];
    if (marks[lid]) {
        atomic_inc(&found[0]);
        atomic_max(&found[1], ~(first + row0 + lid));
    }
}

// One work-item a (chunk, column), column d summing the weights: out[chunk, column] = sum of w t (hi, lo), of w t^2 (hi, lo),
// t = (x - c_hi) - c_lo. Rows with bad[row] are left out; bad may be NULL. first: a multiple of CHUNK.
__kernel void column_sums(__global const row_t *rows, ulong offset, ulong pitch, uint first, uint n, uint d,
                          __global const float *c_hi, __global const float *c_lo, __global const float *weights,
                          __global const uint *bad, __global float4 *out)
{
    const ulong i = get_global_id(0);
    const uint f = (uint)(i % (d + 1));
    const uint chunk = (uint)(i / (d + 1));
    const uint begin = chunk * CHUNK;
    if (begin >= n) return;
    const uint end = min(n, begin + CHUNK);
    const float hi = f < d ? c_hi[f] : 0.0f;
    const float lo = f < d ? c_lo[f] : 0.0f;
    ff s1 = (ff)(0.0f, 0.0f), s2 = (ff)(0.0f, 0.0f);
    float p1 = 0.0f, p2 = 0.0f;
    for (uint r = begin; r < end; r++) {
        const uint row = first + r;
        if (!bad || !bad[row]) {
            const float w = weights ? weights[row] : 1.0f;
            const float t = f < d ? (ROW_AT(rows, offset + (ulong)row * pitch + f) - hi) - lo : 1.0f;
            p1 += w * t;
            p2 = fma(w * t, t, p2);
        }
        if (r % 16 == 15) {
            s1 = ff_add(s1, p1);
            s2 = ff_add(s2, p2);
            p1 = p2 = 0.0f;
        }
    }
    s1 = ff_add(s1, p1);
    s2 = ff_add(s2, p2);
    out[i] = (float4)(s1.x, s1.y, s2.x, s2.y);
}

// out [count, d] = rows numbers[.] of the block.
__kernel void gather(__global const row_t *rows, ulong offset, ulong pitch, uint d, __global const uint *numbers,
                     ulong count, __global float *out)
{
    const ulong i = get_global_id(0);
    if (i >= count * d) return;
    out[i] = ROW_AT(rows, offset + (ulong)numbers[i / d] * pitch + i % d);
}
