// variants: -DDIAG=1 | -DROW_TYPE=2 | -DROW_TYPE=3 -DDIAG=1 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DGX=8 -DGY=8 -DRM=2 -DRN=1 | -DGX=1 -DRN=1
/*
 * Dense engine: every component for a group of rows, a tile of components at a time.
 *
 *   l[i,k] = L_k - sum_d a (x_i - m_k)^2       float-float, direct differences, kept for one tile [n, width] only
 *   per row: best l, its component, sum of exp(l - best) over the tiles so far
 *   wr[i,k] = w_i exp(l - best) / sum, 0 where r/w <= cut
 *
 * Row i of the group is row list[base + i] of the slice, or base + i without a list.
 */
#include "ff.clh"
#include "row_cut.clh"
#include "rows.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// GX, GY: work-group shape of dense_logits (default 16 x 16). RM, RN: rows and components a work-item (default 4 x 4).
#ifndef GX
#define GX 16
#endif
#ifndef GY
#define GY 16
#endif
#ifndef RM
#define RM 4
#endif
#ifndef RN
#define RN 4
#endif
#if GX < 1 || GY < 1 || RM < 1 || RN < 1
#error "GX, GY, RM and RN must be positive"
#endif
// Features a step: as many terms as a float sums before it goes into the float-float.
#define DT 16
#define TR (GY * RM)
#define TC (GX * RN)
#define GROUP (GX * GY)
#define LANES 64

static inline uint row_of(__global const uint *list, uint base, uint i)
{
    return list ? list[base + i] : base + i;
}

// Rows i0 .. i0 + get_global_size(1) / GY * TR of the group of n, components k0 .. k0 + width - 1.
// m_hi, m_lo [K, D]; a: spherical [K, 2], diagonal [K, D]; kconst [K]: L_hi, L_lo, log w, w. logits [n, width].
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
dense_logits(__global const row_t *rows, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base,
             uint i0, uint n, uint d, uint k0, uint width, __global const float *m_hi, __global const float *m_lo,
             __global const float *a, __global const float4 *kconst, __global float2 *logits)
{
    __local float xs[DT * (TR + 1)];
    __local float hs[DT * (TC + 1)];
    __local float os[DT * (TC + 1)];
#if DIAG
    __local float as[DT * (TC + 1)];
#endif
    __local uint row_ids[TR];
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint first = i0 + get_group_id(1) * TR;
    const uint c0 = get_group_id(0) * TC;

    for (uint t = lid; t < TR; t += GROUP) row_ids[t] = first + t < n ? row_of(list, base, first + t) : 0;
    ff q[RM][RN];
    for (uint i = 0; i < RM; i++)
        for (uint j = 0; j < RN; j++) q[i][j] = (ff)(0.0f, 0.0f);

    for (uint d0 = 0; d0 < d; d0 += DT) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint t = lid; t < TR * DT; t += GROUP) {
            const uint dd = t % DT, r = t / DT;
            xs[dd * (TR + 1) + r] = first + r < n && d0 + dd < d
                                        ? ROW_AT(rows, offset + (ulong)(row0 + row_ids[r]) * pitch + (d0 + dd))
                                        : 0.0f;
        }
        for (uint t = lid; t < TC * DT; t += GROUP) {
            const uint dd = t % DT, c = t / DT;
            const int inside = c0 + c < width && d0 + dd < d;
            const ulong at = (ulong)(k0 + c0 + c) * d + d0 + dd;
            hs[dd * (TC + 1) + c] = inside ? m_hi[at] : 0.0f;
            os[dd * (TC + 1) + c] = inside ? m_lo[at] : 0.0f;
#if DIAG
            as[dd * (TC + 1) + c] = inside ? a[at] : 0.0f;
#endif
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        float p[RM][RN];
        for (uint i = 0; i < RM; i++)
            for (uint j = 0; j < RN; j++) p[i][j] = 0.0f;
        for (uint dd = 0; dd < DT; dd++) {
            float xr[RM];
            for (uint i = 0; i < RM; i++) xr[i] = xs[dd * (TR + 1) + ly + i * GY];
            for (uint j = 0; j < RN; j++) {
                const uint c = dd * (TC + 1) + lx + j * GX;
                const float hi = hs[c], lo = os[c];
#if DIAG
                const float av = as[c];
#endif
                for (uint i = 0; i < RM; i++) {
                    const float t = (xr[i] - hi) - lo;
#if DIAG
                    p[i][j] = fma(av * t, t, p[i][j]);
#else
                    p[i][j] = fma(t, t, p[i][j]);
#endif
                }
            }
        }
        for (uint i = 0; i < RM; i++)
            for (uint j = 0; j < RN; j++) q[i][j] = ff_add(q[i][j], p[i][j]);
    }
    for (uint j = 0; j < RN; j++) {
        const uint c = c0 + lx + j * GX;
        if (c >= width) continue;
        const float4 k = kconst[k0 + c];
        for (uint i = 0; i < RM; i++) {
            const uint r = first + ly + i * GY;
            if (r >= n) continue;
#if DIAG
            const ff sum = ff_finite(q[i][j]);
#else
            const ff sum = ff_finite(ff_mul(ff_finite(q[i][j]), (ff)(a[2 * (k0 + c)], a[2 * (k0 + c) + 1])));
#endif
            logits[(ulong)r * width + c] = ff_sub((ff)(k.x, k.y), sum);
        }
    }
}

// One work-group a row: the running best [n], its component [n] and the sum of exponentials [n] take in a tile.
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void dense_lse(__global const float2 *logits, uint k0,
                                                                           uint width, __global float2 *best,
                                                                           __global uint *best_id,
                                                                           __global float2 *sum)
{
    __local ff tops[LANES];
    __local uint ids[LANES];
    __local float sums[LANES];
    const uint lid = get_local_id(0);
    const uint r = get_group_id(0);
    __global const float2 *row = logits + (ulong)r * width;
    ff top = (ff)(-INFINITY, 0.0f);
    uint id = 0;
    for (uint c = lid; c < width; c += LANES)
        if (ff_less(top, row[c])) {
            top = row[c];
            id = c;
        }
    tops[lid] = top;
    ids[lid] = id;
    for (uint step = LANES / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) {
            const int worse = ff_less(tops[lid], tops[lid + step]);
            const int same = !worse && !ff_less(tops[lid + step], tops[lid]);
            if (worse || (same && ids[lid + step] < ids[lid])) {
                tops[lid] = tops[lid + step];
                ids[lid] = ids[lid + step];
            }
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const ff tile = tops[0];
    float e = 0.0f;
    for (uint c = lid; c < width; c += LANES) e += ff_exp(ff_sub(row[c], tile));
    sums[lid] = e;
    for (uint step = LANES / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) sums[lid] += sums[lid + step];
    }
    if (lid > 0) return;
    if (k0 == 0) {
        best[r] = tile;
        best_id[r] = ids[0];
        sum[r] = (ff)(sums[0], 0.0f);
    } else if (ff_less(best[r], tile)) {
        sum[r] = ff_add(ff_scale(sum[r], ff_exp(ff_sub(best[r], tile))), sums[0]);
        best[r] = tile;
        best_id[r] = k0 + ids[0];
    } else {
        sum[r] = ff_add(sum[r], sums[0] * ff_exp(ff_sub(tile, best[r])));
    }
}

// One work-group a row: the tile's logits become (w r, r), and the row's own outputs are written; of the slice: logz, kept, kept_weight.
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void
dense_resp(__global float2 *logits, uint row0, __global const uint *list, uint base, uint k0, uint width,
           __global const float4 *kconst, __global const float *weights, float log_cut, float log_norm_max, uint hard,
           __global const float2 *best, __global const uint *best_id, __global const float2 *sum, __global float2 *logz,
           __global uint *kept, __global float *kept_weight)
{
    __local uint counts[LANES];
    __local float masses[LANES];
    const uint lid = get_local_id(0);
    const uint r = get_group_id(0);
    const uint at = row_of(list, base, r);
    const float w = weights ? weights[row0 + at] : 1.0f;
    const ff top = best[r];
    const float total = sum[r].x;
    const float log_sum = log(total);
    const float log_rho = row_cut(log_cut, log_norm_max, top.x + log_sum);
    __global float2 *row = logits + (ulong)r * width;
    uint count = 0;
    float mass = 0.0f;
    for (uint c = lid; c < width; c += LANES) {
        const float4 k = kconst[k0 + c];
        float resp = 0.0f;
        if (hard) {
            resp = k0 + c == best_id[r] ? 1.0f : 0.0f;
            count += resp > 0.0f;
            mass += resp;
        } else {
            const ff below = ff_sub(row[c], top);
            if ((below.x - log_sum) - k.z > log_rho) {
                resp = ff_exp(below) / total;
                count++;
                mass += k.w;
            }
        }
        row[c] = (float2)(w * resp, resp);
    }
    counts[lid] = count;
    masses[lid] = mass;
    for (uint step = LANES / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) {
            counts[lid] += counts[lid + step];
            masses[lid] += masses[lid + step];
        }
    }
    if (lid > 0) return;
    logz[at] = hard ? top : ff_add(top, log_sum);
    kept[at] = counts[0] + (k0 ? kept[at] : 0);
    kept_weight[at] = masses[0] + (k0 ? kept_weight[at] : 0.0f);
}
