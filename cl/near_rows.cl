// target: nvptx64
// variants: -DROW_FOURS=1 | -DHALVES=1 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5
/*
 * What near_logits.clh and near_sums.clh, or in fast precision near_lse.clh and near_fused.clh, take and leave: components and rows as pairs of f16, or
 * as single ones, in the order that matrix units take them, and the rows' own outputs. NVIDIA GPUs only.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "mma.clh"
#include "row_cut.clh"
#include "rows.clh"
#include "tops.clh"

// HALVES: f16 that near_pack makes of a value: 2, in the order of both products, or 1, for near_fused.clh (default 2).
#ifndef HALVES
#define HALVES 2
#endif
#if HALVES < 1 || HALVES > 2
#error "HALVES must be 1 or 2"
#endif

#define GROUP 256
#define TR 64
#define FEATURES 64
#define STRIDE (FEATURES + 1)
#define LANES (FEATURES / 4) // of a row
#define MOST 16384.0f              // of a row's features, scaled: f16 holds four times that
#define SQUARE_SCALE (1.0f / MOST) // of their squares
#define R_SCALE 16384.0f // of responsibilities
#define MARK_BITS 27     // of near_sums.clh
#define MARK_WEIGHT 67108864.0f

// A's registers of mma.clh, scaled. Work-item (lane, step, block): of components 16 block .., terms 16 step .. of `factors` [k, 16 steps]; out
// [blocks, steps, HALVES, 32]. Of one half, behind that: the same as near_pack has rows, [blocks / 4, 2 steps, 64].
__kernel void near_components(__global const float *factors, uint k, float scale, __global uint4 *out)
{
    const uint lane = get_global_id(0), step = get_global_id(1), block = get_global_id(2);
    const uint steps = get_global_size(1);
    uint upper[4], lower[4];
    for (uint i = 0; i < 4; i++) {
        const uint c = 16 * block + lane / 4 + i % 2 * 8, f = 16 * step + 2 * (lane % 4) + i / 2 * 8;
        __global const float *from = factors + (ulong)c * (16 * steps) + f;
        const uint2 pair = mma_pairs(c < k ? from[0] * scale : 0.0f, c < k ? from[1] * scale : 0.0f);
        upper[i] = pair.x;
        lower[i] = pair.y;
#if HALVES == 1
        __global uint *by_feature = (__global uint *)(out + get_global_size(2) * steps * 32);
        by_feature[(((ulong)(c / 64) * steps * 2 + f / 8) * 64 + c % 64) * 4 + lane % 4] = pair.x;
#endif
    }
    out += ((ulong)block * steps + step) * (32 * HALVES) + lane;
    out[0] = (uint4)(upper[0], upper[1], upper[2], upper[3]);
#if HALVES == 2
    out[32] = (uint4)(lower[0], lower[1], lower[2], lower[3]);
#endif
}

// Eight values, `stride` apart, or their scaled squares, as upper and, of two, lower halves.
static inline void put_eight(__local const float *from, uint stride, int squares, __global uint4 *upper, __global uint4 *lower)
{
    float v[8];
    for (uint i = 0; i < 8; i++) {
        v[i] = from[i * stride];
        if (squares) v[i] *= v[i] * SQUARE_SCALE;
    }
    const uint2 a = mma_pairs(v[0], v[1]), b = mma_pairs(v[2], v[3]), c = mma_pairs(v[4], v[5]), e = mma_pairs(v[6], v[7]);
    *upper = (uint4)(a.x, b.x, c.x, e.x);
#if HALVES == 2
    *lower = (uint4)(a.y, b.y, c.y, e.y);
#endif
}

// One work-group a tile of 64 rows: rows row0 + base + i, i < n, of the block less the centre, scaled; 0 beyond n; then, for diagonal covariances, the
// squares of that. by_feature [tiles, HALVES, eights, 64]: 8 features of each row. by_row (of two halves) [tiles, wide / part_wide, 2, 8, part_wide]: 8
// rows of each feature. eights and wide are of both together. scales: [d]. norms [n] (of two halves): the sum of a y^2 of a row, y before scaling, a [d] (NULL: 1). far is
// set where one exceeds `most`: such rows need only stay finite, and row_norms are norms, at most `most`.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
near_pack(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint base, uint n, uint d, uint squares, uint eights,
          uint wide, uint part_wide, __global const float *centre, __global const float *scales, __global const float *a, float most,
          __global ff *norms, __global uint *far, __global uint4 *by_feature, __global uint4 *by_row, __global float *row_norms)
{
    __local float ys[TR * STRIDE] __attribute__((aligned(8)));
    const uint lid = get_local_id(0), tile = get_group_id(0);
    const uint own_eights = squares ? eights / 2 : eights, own_wide = squares ? wide / 2 : wide;
    const uint own_row = lid / LANES, own_f = lid % LANES * 4;
    ff sums[TR * LANES / GROUP];
    for (uint i = 0; i < TR * LANES / GROUP; i++) sums[i] = (ff)(0.0f, 0.0f);
    for (uint f0 = 0; f0 < max(8 * own_eights, own_wide); f0 += FEATURES) {
        const float4 c = float_four(centre, 0, f0 + own_f, d), scale = float_four(scales, 0, f0 + own_f, d);
        const float4 weight = a ? float_four(a, 0, f0 + own_f, d) : (float4)(1.0f);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint i = 0; i < TR * LANES / GROUP; i++) {
            const uint r = own_row + i * (GROUP / LANES);
            float4 y = (float4)(0.0f);
            if (tile * TR + r < n)
                y = row_four(rows, offset + (ulong)(row0 + base + tile * TR + r) * pitch, f0 + own_f, d) - c;
            const float4 ay = weight * y;
            sums[i] = ff_gather(sums[i], fma(ay.x, y.x, ay.y * y.y));
            sums[i] = ff_gather(sums[i], fma(ay.z, y.z, ay.w * y.w));
            y = fmax(fmin(y * scale, MOST), -MOST);
            __local float *to = ys + r * STRIDE + own_f;
            to[0] = y.x;
            to[1] = y.y;
            to[2] = y.z;
            to[3] = y.w;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint t = lid; t < TR * FEATURES / 8; t += GROUP) {
            const uint r = t % TR, eight = f0 / 8 + t / TR;
            if (eight >= own_eights) continue;
            for (uint q = 0; q <= squares; q++) {
                __global uint4 *to = by_feature + ((ulong)tile * HALVES * eights + q * own_eights + eight) * TR + r;
                put_eight(ys + r * STRIDE + t / TR * 8, 1, q, to, to + eights * TR);
            }
        }
#if HALVES == 2
        for (uint t = lid; t < TR * FEATURES / 8; t += GROUP) {
            const uint i = t % FEATURES, eight = t / FEATURES;
            if (f0 + i >= own_wide) continue;
            for (uint q = 0; q <= squares; q++) {
                const uint f = q * own_wide + f0 + i;
                __global uint4 *to = by_row + (((ulong)tile * (wide / part_wide) + f / part_wide) * 16 + eight) * part_wide + f % part_wide;
                put_eight(ys + eight * 8 * STRIDE + i, STRIDE, q, to, to + 8 * part_wide);
            }
        }
#else
        (void)part_wide, (void)by_row;
#endif
    }
    __local ff *parts = (__local ff *)ys;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint i = 0; i < TR * LANES / GROUP; i++)
        parts[(own_row + i * (GROUP / LANES)) * (LANES + 1) + lid % LANES] = ff_quick(sums[i].x, sums[i].y);
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint r = tile * TR + lid;
    if (lid >= TR) return;
    ff sum = parts[lid * (LANES + 1)];
    for (uint i = 1; i < LANES; i++) sum = ff_sum(sum, parts[lid * (LANES + 1) + i]);
    row_norms[r] = r < n ? fmin(sum.x, most) : 0.0f;
    if (r >= n) return;
#if HALVES == 2
    norms[r] = ff_finite(sum);
#else
    (void)norms;
#endif
    if (!(sum.x <= most)) atomic_or(far, 1u);
}

// A row's log-density, and what its cells are to be multiplied by: factors [sets + 1, padded], see near_sums.clh. tops [sets, padded].
__kernel void near_factors(__global const uint4 *tops, uint n, uint padded, uint sets, uint base, __global const ff *best,
                           __global const ff *sum, float log_cut, float log_norm_max, __global float *factors, __global ff *logz)
{
    const uint r = get_global_id(0);
    if (r >= padded) return;
    const int within = r < n;
    const uint own = min(r, n - 1);
    const ff top = best[own];
    const float total = sum[own].x, log_sum = log(total);
    for (uint t = 0; t < sets; t++) {
        const float share = ff_exp(ff_sub(unpack_top(tops[(ulong)t * padded + own]), top)) / total;
        factors[(ulong)t * padded + r] = within ? share * R_SCALE : 0.0f;
    }
    factors[(ulong)sets * padded + r] = within ? exp(row_cut(log_cut, log_norm_max, top.x + log_sum)) * R_SCALE : 0.0f;
    if (within) logz[base + r] = ff_add(top, log_sum);
}

// How many components rows keep, and what these weigh: marks [blocks, padded] of near_sums, for components k0 .. of K.
__kernel void near_kept(__global const uint *marks, uint n, uint padded, uint blocks, uint base, uint k0, __global uint *kept,
                        __global float *kept_weight)
{
    const uint r = get_global_id(0);
    if (r >= n) return;
    uint count = 0, weight = 0;
    for (uint b = 0; b < blocks; b++) {
        const uint mark = marks[(ulong)b * padded + r];
        count += mark >> MARK_BITS;
        weight += mark & ((1u << MARK_BITS) - 1);
    }
    kept[base + r] = count + (k0 ? kept[base + r] : 0);
    kept_weight[base + r] = (float)weight / MARK_WEIGHT + (k0 ? kept_weight[base + r] : 0.0f);
}
