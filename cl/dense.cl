// variants: -DDIAG=1 | -DNEAR=1 | -DNEAR=1 -DROW_FOURS=1 | -DROW_TYPE=2 | -DROW_TYPE=3 -DDIAG=1 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DGX=8 -DGY=8 -DRM=2 -DRN=1 | -DGX=1 -DRN=1
/*
 * Dense engine: every component for a group of rows, a tile of components at a time.
 *
 *   l[i,k] = L_k - sum_d a (x_i - m_k)^2              float-float, direct differences; or, of components NEAR a centre c
 *   l[i,k] = (L_k - a |m_k - c|^2) - a |x_i - c|^2 + (x_i - c) . 2 a (m_k - c)
 *
 *            k ->  GX * RN components a tile
 *        +---------------+
 *  rows  |  RM x RN a    |   cells[i,k] = l[i,k] - top, the best l of the row in the tile; tops[i,tile]: top, its component, the
 *  i |   |  work-item    |   sum of exp(l - top). A cell is off by 2^-25 of what it lies below the top, which weighs e to it less.
 *    v   +---------------+
 *
 *   per row: best l, its component, sum of exp(l - best) over the tiles so far
 *   r[i,k] = exp(l - best) / sum, 0 where r/w <= cut
 *
 * Row i of the group is row list[base + i] of the slice, or base + i without a list. A tile's logits are kept for at most `width`
 * components of the group.
 */
#include "ff.clh"
#include "group_row.clh"
#include "row_cut.clh"
#include "rows.clh"
#include "tile.clh"
#include "tops.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// NEAR: 1 for products about a centre, of spherical covariances (default 0).
#ifndef NEAR
#define NEAR 0
#endif
// GX, GY: work-group shape of dense_logits (default 16 x 16). RM, RN: rows and components a work-item (default 4 x 8).
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
#define RN 8
#endif
#if GX < 1 || GY < 1 || RM < 1 || RN < 1
#error "GX, GY, RM and RN must be positive"
#endif
#if NEAR && DIAG
#error "NEAR is for spherical covariances"
#endif
// Features a step.
#define DT 16
// Terms that a float sums before it goes into the float-float: differences of a row far from a component are all large.
#define CHAIN (NEAR ? 2 * DT : DT)
#define TR (GY * RM)
#define TC (GX * RN)
#define GROUP (GX * GY)
#define XS (TR + 4) // strides of a step's rows and components
#define CS (TC + 4)
#define STEP_FLOATS (DT * (XS + (NEAR ? 1 : 2 + DIAG) * CS))
#define END_FLOATS (3 * TR * (GX + 1))
#define OWN_ROW(i) OWN(i, ly, GY, RM)
#define OWN_COLUMN(j) OWN(j, lx, GX, RN)
#define LANES 64

// The better of two logits, of equal ones that of the lower component.
static inline int is_better(ff a, uint a_id, ff b, uint b_id)
{
    return ff_less(b, a) || (!ff_less(a, b) && a_id < b_id);
}

#define ROW_LANES 8

// |x - centre|^2 of the group's rows: norms [n]. far is set where one exceeds `most`: its products cannot be told apart.
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void
dense_norms(__global const row_t *rows, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base, uint n,
            uint d, __global const float *centre, float most, __global ff *norms, __global uint *far)
{
    __local ff parts[LANES];
    const uint lid = get_local_id(0);
    const uint r = get_global_id(0) / ROW_LANES;
    ff sum = (ff)(0.0f, 0.0f);
    if (r < n) {
        const ulong x0 = offset + (ulong)(row0 + row_of(list, base, r)) * pitch;
        for (uint f = 4 * (lid % ROW_LANES); f < d; f += 4 * ROW_LANES) {
            const float4 y = row_four(rows, x0, f, d) - float_four(centre, 0, f, d);
            sum = ff_gather(sum, fma(y.x, y.x, y.y * y.y));
            sum = ff_gather(sum, fma(y.z, y.z, y.w * y.w));
        }
    }
    parts[lid] = ff_quick(sum.x, sum.y);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid % ROW_LANES > 0 || r >= n) return;
    sum = parts[lid];
    for (uint i = 1; i < ROW_LANES; i++) sum = ff_sum(sum, parts[lid + i]);
    norms[r] = ff_finite(sum);
    if (!(sum.x <= most)) atomic_or(far, 1u);
}

// Rows i0 .. i0 + get_global_size(1) / GY * TR of the group of n, components k0 .. k0 + width - 1.
// m [K, D]: the means' upper floats, or 2 a (m - c) if NEAR; m_lo [K, D]; a: spherical [K, 2], diagonal [K, D]; kconst [K]: L_hi,
// L_lo of the logits' formula. centre [D] and norms [n] if NEAR. cells [n, width], tops [n, tiles].
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
dense_logits(__global const row_t *rows, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base,
             uint i0, uint n, uint d, uint k0, uint width, __global const float *m, __global const float *m_lo,
             __global const float *a, __global const float4 *kconst, __global const float *centre,
             __global const ff *norms, __global float *cells, __global uint4 *tops)
{
    __local float room[STEP_FLOATS > END_FLOATS ? STEP_FLOATS : END_FLOATS] __attribute__((aligned(16)));
    __local float *xs = room, *hs = xs + DT * XS;
#if !NEAR
    __local float *os = hs + DT * CS;
#endif
#if DIAG
    __local float *as = os + DT * CS;
#endif
    __local ff *best = (__local ff *)room; // once the steps are done
    __local uint *best_id = (__local uint *)(room + 2 * TR * (GX + 1));
    __local ulong starts[TR];
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint first = i0 + get_group_id(1) * TR;
    const uint c0 = get_group_id(0) * TC;
#if NEAR
    (void)m_lo;
#else
    (void)centre, (void)norms;
#endif

    for (uint t = lid; t < TR; t += GROUP)
        starts[t] = offset + (ulong)(row0 + (first + t < n ? row_of(list, base, first + t) : 0)) * pitch;
    ff q[RM][RN];
    float p[RM][RN];
#pragma unroll
    for (uint i = 0; i < RM; i++)
#pragma unroll
        for (uint j = 0; j < RN; j++) {
            q[i][j] = (ff)(0.0f, 0.0f);
            p[i][j] = 0.0f;
        }

    for (uint d0 = 0; d0 < d; d0 += DT) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint t = lid; t < TR * DT / 4; t += GROUP) {
            const uint dd = t % (DT / 4) * 4, r = t / (DT / 4);
            float4 x = (float4)(0.0f);
            if (first + r < n) x = row_four(rows, starts[r], d0 + dd, d);
#if NEAR
            x -= float_four(centre, 0, d0 + dd, d);
#endif
            put_four(xs + dd * XS + r, XS, x);
        }
        for (uint t = lid; t < TC * DT / 4; t += GROUP) {
            const uint dd = t % (DT / 4) * 4, c = t / (DT / 4);
            const uint end = c0 + c < width ? d : 0;
            const ulong at = (ulong)(k0 + c0 + c) * d;
            put_four(hs + dd * CS + c, CS, float_four(m, at, d0 + dd, end));
#if !NEAR
            put_four(os + dd * CS + c, CS, float_four(m_lo, at, d0 + dd, end));
#endif
#if DIAG
            put_four(as + dd * CS + c, CS, float_four(a, at, d0 + dd, end));
#endif
        }
        barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll 4
        for (uint dd = 0; dd < DT; dd++) {
            float xr[RM], hi[RN];
            TAKE(xr, xs + dd * XS, ly, GY, RM);
            TAKE(hi, hs + dd * CS, lx, GX, RN);
#if !NEAR
            float lo[RN];
            TAKE(lo, os + dd * CS, lx, GX, RN);
#endif
#if DIAG
            float av[RN];
            TAKE(av, as + dd * CS, lx, GX, RN);
#endif
#pragma unroll
            for (uint i = 0; i < RM; i++)
#pragma unroll
                for (uint j = 0; j < RN; j++) {
#if NEAR
                    p[i][j] = fma(xr[i], hi[j], p[i][j]);
#else
                    const float t = (xr[i] - hi[j]) - lo[j];
#if DIAG
                    p[i][j] = fma(av[j] * t, t, p[i][j]);
#else
                    p[i][j] = fma(t, t, p[i][j]);
#endif
#endif
                }
        }
        if (d0 + DT >= d || d0 % CHAIN == CHAIN - DT) {
#pragma unroll
            for (uint i = 0; i < RM; i++)
#pragma unroll
                for (uint j = 0; j < RN; j++) {
                    q[i][j] = ff_gather(q[i][j], p[i][j]);
                    p[i][j] = 0.0f;
                }
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    // The logits, in place of the sums, and each row's best.
#pragma unroll
    for (uint i = 0; i < RM; i++) {
        ff top = (ff)(-INFINITY, 0.0f);
        uint id = 0;
#if NEAR
        const ff norm = norms[min(first + OWN_ROW(i), n - 1)];
#endif
#pragma unroll
        for (uint j = 0; j < RN; j++) {
            const uint c = k0 + min(c0 + OWN_COLUMN(j), width - 1);
            const ff base_l = kconst[c].xy;
#if !DIAG
            const ff scale = (ff)(a[2 * c], a[2 * c + 1]);
#endif
#if NEAR
            ff l = near_logit(base_l, norm, scale, q[i][j]);
#elif DIAG
            ff l = ff_sub(base_l, ff_finite(ff_quick(q[i][j].x, q[i][j].y)));
#else
            ff l = ff_sub(base_l, ff_finite(ff_mul(ff_finite(ff_quick(q[i][j].x, q[i][j].y)), scale)));
#endif
            if (c0 + OWN_COLUMN(j) >= width) l = (ff)(-INFINITY, 0.0f);
            q[i][j] = l;
            if (ff_less(top, l)) {
                top = l;
                id = c0 + OWN_COLUMN(j);
            }
        }
        best[OWN_ROW(i) * (GX + 1) + lx] = top;
        best_id[OWN_ROW(i) * (GX + 1) + lx] = id;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint r = lid; r < TR; r += GROUP) {
        const uint at = r * (GX + 1);
        ff top = best[at];
        uint id = best_id[at];
        for (uint i = 1; i < GX; i++)
            if (is_better(best[at + i], best_id[at + i], top, id)) {
                top = best[at + i];
                id = best_id[at + i];
            }
        best[at + GX] = top;
        best_id[at + GX] = id;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll
    for (uint i = 0; i < RM; i++) {
        const uint at = OWN_ROW(i) * (GX + 1), r = first + OWN_ROW(i);
        const ff top = best[at + GX];
        float e = 0.0f;
        __global float *row = cells + (ulong)r * width + c0;
#pragma unroll
        for (uint j = 0; j < RN; j++) {
            p[i][j] = (q[i][j].x - top.x) + (q[i][j].y - top.y);
            e += exp(p[i][j]);
        }
        best[at + lx].x = e;
        if (r >= n) continue;
#if RUN(RN) == 4
        if (width % 4 == 0) {
#pragma unroll
            for (uint j = 0; j < RN; j += 4)
                if (c0 + OWN_COLUMN(j) < width)
                    *(__global float4 *)(row + OWN_COLUMN(j)) = (float4)(p[i][j], p[i][j + 1], p[i][j + 2], p[i][j + 3]);
            continue;
        }
#endif
#pragma unroll
        for (uint j = 0; j < RN; j++)
            if (c0 + OWN_COLUMN(j) < width) row[OWN_COLUMN(j)] = p[i][j];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint r = lid; r < TR; r += GROUP) {
        const uint at = r * (GX + 1);
        if (first + r >= n) continue;
        float e = best[at].x;
        for (uint i = 1; i < GX; i++) e += best[at + i].x;
        tops[(ulong)(first + r) * ((width + TC - 1) / TC) + get_group_id(0)] = pack_top(best[at + GX], k0 + best_id[at + GX], e);
    }
}

// One work-group a row: logits [n, width] of components k0 .. as one tile, for those that are formed elsewhere. cells [n, width], tops [n].
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void
dense_tops(__global const ff *logits, uint k0, uint width, __global float *cells, __global uint4 *tops)
{
    __local ff best[LANES];
    __local uint best_id[LANES];
    __local float sums[LANES];
    const uint lid = get_local_id(0);
    const ulong r = get_group_id(0);
    __global const ff *row = logits + r * width;
    ff top = (ff)(-INFINITY, 0.0f);
    uint id = 0;
    for (uint c = lid; c < width; c += LANES)
        if (ff_less(top, row[c])) {
            top = row[c];
            id = c;
        }
    best[lid] = top;
    best_id[lid] = id;
    for (uint step = LANES / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step && is_better(best[lid + step], best_id[lid + step], best[lid], best_id[lid])) {
            best[lid] = best[lid + step];
            best_id[lid] = best_id[lid + step];
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    top = best[0];
    float e = 0.0f;
    for (uint c = lid; c < width; c += LANES) {
        const float below = (row[c].x - top.x) + (row[c].y - top.y);
        cells[r * width + c] = below;
        e += exp(below);
    }
    sums[lid] = e;
    for (uint step = LANES / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) sums[lid] += sums[lid + step];
    }
    if (lid == 0) tops[r] = pack_top(top, k0 + best_id[0], sums[0]);
}

// The running best [n], its component [n] and the sum of exponentials [n] take in the tiles of components k0 .., of which that of tile t
// and row r lies at tops [t tile_step + r row_step].
__kernel void dense_lse(__global const uint4 *tops, uint n, uint tiles, uint tile_step, uint row_step, uint k0, __global ff *best,
                        __global uint *best_id, __global ff *sum)
{
    const uint r = get_global_id(0);
    if (r >= n) return;
    ff top = (ff)(-INFINITY, 0.0f), total = (ff)(0.0f, 0.0f);
    uint id = 0;
    if (k0 > 0) {
        top = best[r];
        total = sum[r];
        id = best_id[r];
    }
    for (uint t = 0; t < tiles; t++) {
        const uint4 packed = tops[(ulong)r * row_step + (ulong)t * tile_step];
        const ff tile = unpack_top(packed);
        const float tile_sum = as_float(packed.w);
        if (k0 + t == 0) {
            top = tile;
            id = packed.z;
            total = (ff)(tile_sum, 0.0f);
        } else if (ff_less(top, tile)) {
            total = ff_add(ff_scale(total, ff_exp(ff_sub(top, tile))), tile_sum);
            top = tile;
            id = packed.z;
        } else {
            total = ff_add(total, tile_sum * ff_exp(ff_sub(tile, top)));
        }
    }
    best[r] = top;
    best_id[r] = id;
    sum[r] = total;
}

// One work-group a row: the cells, in tiles of tile_width components, become responsibilities, and the row's own outputs are
// written, at its place (NULL: its number in the slice): logz, kept, kept_weight.
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void
dense_resp(__global float *cells, __global const uint4 *tops, uint tile_width, __global const uint *list, uint base,
           uint k0, uint width, __global const float4 *kconst, float log_cut, float log_norm_max, uint hard,
           __global const ff *best, __global const uint *best_id, __global const ff *sum, __global ff *logz,
           __global uint *kept, __global float *kept_weight, __global const uint *place)
{
    __local uint counts[LANES];
    __local float masses[LANES];
    const uint lid = get_local_id(0);
    const uint r = get_group_id(0);
    const uint row_at = row_of(list, base, r), at = place ? place[row_at] : row_at;
    const uint tiles = (width + tile_width - 1) / tile_width;
    const ff top = best[r];
    const float total = sum[r].x;
    const float log_sum = log(total);
    const float log_rho = row_cut(log_cut, log_norm_max, top.x + log_sum);
    __global float *row = cells + (ulong)r * width;
    uint count = 0;
    float mass = 0.0f;
    for (uint t = 0; t < tiles; t++) {
        const ff tile = unpack_top(tops[(ulong)r * tiles + t]);
        const float tile_below = (tile.x - top.x) + (tile.y - top.y);
        const uint end = min(width, (t + 1) * tile_width);
        for (uint c = t * tile_width + lid; c < end; c += LANES) {
            const float4 k = kconst[k0 + c];
            const float below = tile_below + row[c];
            float resp = 0.0f;
            if (hard) {
                resp = k0 + c == best_id[r] ? 1.0f : 0.0f;
                count += resp > 0.0f;
                mass += resp;
            } else if ((below - log_sum) - k.z > log_rho) {
                resp = exp(below) / total;
                count++;
                mass += k.w;
            }
            row[c] = resp;
        }
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
