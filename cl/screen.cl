// variants: -DDIAG=1 | -DLISTED=1 | -DROW_TYPE=2 | -DROW_TYPE=3 -DDIAG=1 | -DROW_TYPE=4 | -DROW_TYPE=5 -DDIAG=1 | -DGX=8 -DGY=8 -DRM=2 -DRN=1 | -DRM=8 -DRN=8
/*
 * Screen: which components can matter for a row.
 *
 *   v[n,k] = sum_d 2 a m x - a x^2 - a m^2 = -q[n,k],   x, m centred and scaled, a = 1 / (2 var scale^2)
 *
 * spherical: v = 2 a (m . x) - a |x|^2 - a |m|^2        depth D
 * diagonal:  v = [x^2, x] . [-a, 2 a m] - sum a m^2     depth 2D
 *
 *            k ->  GX * RN components a tile
 *        +---------------+
 *  rows  |  RM x RN a    |   a work-group owns GY * RM rows and walks all tiles of components; per row it keeps
 *  n |   |  work-item    |   the best lower logit B so far and a list of the components that still can matter.
 *    v   +---------------+
 *
 * The bound. With u = 2^-24, P = sum a x^2, M = sum a m^2, the terms of v sum to at most T = 2P + 2M in absolute
 * value, and P <= 2q + 2M, so T <= 4q + 6M. Rounding of x, m, a, of the products, of the depth-long fma chain and of the last few
 * sums perturbs each term by at most (depth + 16) u =: g (relative), so |v + q| <= g (4q + 6M).
 * Let C_k = log_norm, L_k = C_k + log w_k, l_k = L_k - q_k, p = log p(x). Component k matters if C_k - q_k > p + log rho(p), rho
 * the row's cut (lib/backend.h), which grows with p, its logarithm with a slope under 2/3 for cut <= 1/e.
 *   B = max_j v_j + L_j - 6 g M_j <= L_j - q_j (1 - 4g), so q_j <= (L_j - B) / (1 - 4g) and
 *   p >= l_j >= B - 4g / (1 - 4g) (Lmax - B).
 *   If k matters, q_k < C_k - p - log rho(p), and v_k + C_k + 6 g M_k >= C_k - q_k - 4 g q_k
 *     >= p + log rho(p) - 4g (C_k - p - log rho(p)) >= B + log rho(B) - 16 g (Cmax - B - log rho(B))     for g <= 0.05,
 * since that grows with p. The host puts 7 g M_k and the rounding of the constants into c1 and c2; so B = max v + c1, and k stays on
 * the list while v + c2 >= B + log rho(B) - 16 g (Cmax - B - log rho(B)) - pad. NaN counts as staying. Hard passes want the best alone: rho = 1.
 *
 * Each row starts from the best component of its last iteration: B0, its lower logit less twice the rounding bound, lies below whatever
 * the walk finds for that component, so it keeps lists short while B rises and changes nothing of what is on them in the end.
 *
 * The list is a set: the order in which work-items append does not matter, refine sorts it.
 * A list that outgrows CAP while B is still low is made anew in a second walk, below the final B. Lists that outgrow it again, and rows
 * without a finite B, are marked CAP + 1 for the dense engine.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "row_cut.clh"
#include "rows.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// LISTED: 1 to take the rows that another screen listed (default 0).
#ifndef LISTED
#define LISTED 0
#endif
// GX, GY: work-group shape (default 16 x 16). RM, RN: rows and components a work-item (default 4 x 4).
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
// DT: features a step (default 16).
#ifndef DT
#define DT 16
#endif
// CAP: most candidates of a row (default 16).
#ifndef CAP
#define CAP 16
#endif
#if GX < 1 || GY < 1 || RM < 1 || RN < 1 || DT < 1 || CAP < 1
#error "GX, GY, RM, RN, DT and CAP must be positive"
#endif
#if GX * GY < GY * RM
#error "a work-group needs one work-item a row"
#endif

// Work-items that share a row's hint.
#define HINT_LANES (GX / RM > 0 ? GX / RM : 1)
#define TR (GY * RM)
#define TC (GX * RN)
#define GROUP (GX * GY)
// A work-item's rows and components lie in runs of RW and CW, which local memory gives at once.
#define RW (RM % 4 == 0 ? 4 : 1)
#define CW (RN % 4 == 0 ? 4 : 1)
#define OWN_ROW(i) ((i) / RW * (GY * RW) + ly * RW + (i) % RW)
#define OWN_COLUMN(j) ((j) / CW * (GX * CW) + lx * CW + (j) % CW)
#define XS (TR + 4) // stride of a step's rows
// Row r of the group in the slice and in the block.
#if LISTED
#define SLICE_ROW(r) (list[1 + first + (r)])
#else
#define SLICE_ROW(r) (out0 + first + (r))
#endif
#define BLOCK_ROW(r) (row0 - out0 + SLICE_ROW(r))

// out = `count` values in runs of `width`, 1 or 4, that lie `stride` apart.
static inline void take(float *out, __local const float *from, uint count, uint stride, uint width)
{
    if (width == 4) {
#pragma unroll
        for (uint i = 0; i < count; i += 4) {
            const float4 v = *(__local const float4 *)(from + i / 4 * stride);
            out[i] = v.x;
            out[i + 1] = v.y;
            out[i + 2] = v.z;
            out[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (uint i = 0; i < count; i++) out[i] = from[i * stride];
    }
}

// hints [block rows]: component numbers, out of range where there is none.
// rows [n] from row0 of the block; candidates go to out0 of the slice. list [1 + n], if LISTED: how many rows, which of the slice;
// row0 and out0 then tell where the slice lies in the block. pa, pb [dp, kp]: spherical m; diagonal -a and 2 a m.
// constants [kp]: c1, c2, a, M. bounds: log cut (0 in hard passes), 16 g, Cmax, pad.
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
screen(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint dp, uint k,
       uint kp, __global const float *centre, __global const float *scale, __global const float *pa,
       __global const float *pb, __global const float4 *constants, float4 bounds, __global uint *cand_id,
       __global float *cand_v, __global uint *cand_count, __global const uint *hints, __global const uint *list)
{
    __local float xs[DT * XS] __attribute__((aligned(16)));
    __local float as[DT * TC] __attribute__((aligned(16)));
#if DIAG
    __local float bs[DT * TC] __attribute__((aligned(16)));
#else
    __local float norms[TR];
#endif
    __local float tile_best[TR * GX];
    __local float floors[TR];
    __local uint counts[TR];
    __local int again; // whether any row of this pass asks for another

    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint first = get_group_id(1) * TR;
    const uint mine = first + lid; // the row this work-item keeps the list of, if lid < TR
#if LISTED
    n = list[0];
    if (first >= n) return;
#else
    (void)list;
#endif
    float best = -3e38f;
    uint settled = CAP + 1; // length of the list after the first walk, if there is a second
#if !DIAG
    float norm = 0.0f;
    (void)pb;
#endif

    if (lid < TR) {
        counts[lid] = 0;
        floors[lid] = -3e38f;
    }

    // Unconditional, as PoCL 3.1 breaks on a barrier under an argument's condition.
    const uint hr = lid / HINT_LANES;
    const uint hint = hr < TR && first + hr < n ? hints[BLOCK_ROW(hr)] : k;
    float p = 0.0f;
    if (hint < k) {
        const ulong x0 = offset + (ulong)BLOCK_ROW(hr) * pitch;
        for (uint f = lid % HINT_LANES; f < d; f += HINT_LANES) {
            const float x = (ROW_AT(rows, x0 + f) - centre[f]) * scale[f];
#if DIAG
            p = fma(x, pb[(ulong)f * kp + hint], fma(x * x, pa[(ulong)f * kp + hint], p));
#else
            p = fma(x, 2.0f * pa[(ulong)f * kp + hint] - x, p);
#endif
        }
#if !DIAG
        p *= constants[hint].z;
#endif
    }
    tile_best[lid] = p;
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint own = lid < TR && mine < n ? hints[BLOCK_ROW(lid)] : k;
    if (own < k) {
        float v = 0.0f;
        for (uint i = 0; i < HINT_LANES; i++) v += tile_best[lid * HINT_LANES + i];
        const float4 c = constants[own];
        const float lower = (v - c.w) + c.x;
        const float start = lower - ((c.y - c.x) + bounds.y * fmax(bounds.z - lower, 0.0f) + bounds.w);
        if (start > best && start < 1e38f) {
            best = start;
            floors[lid] = floor_below(best, bounds);
        }
    }

    uint steps = kp; // through all components once, or twice if a list overflowed before its row's best was found
    for (uint step = 0; step < steps; step += TC) {
        const uint k0 = step < kp ? step : step - kp;
        if (step == kp && lid < TR) {
            // Full lists start anew under the final best; the others are done, and stay closed.
            settled = counts[lid];
            counts[lid] = settled > CAP ? 0 : CAP + 1;
        }
        float acc[RM][RN];
#pragma unroll
        for (uint i = 0; i < RM; i++)
#pragma unroll
            for (uint j = 0; j < RN; j++) acc[i][j] = 0.0f;

        for (uint d0 = 0; d0 < dp; d0 += DT) {
            barrier(CLK_LOCAL_MEM_FENCE);
            for (uint t = lid; t < TR * DT; t += GROUP) {
                const uint dd = t % DT, r = t / DT;
                float x = 0.0f;
                if (first + r < n && d0 + dd < d)
                    x = (ROW_AT(rows, offset + (ulong)BLOCK_ROW(r) * pitch + (d0 + dd)) - centre[d0 + dd]) *
                        scale[d0 + dd];
                xs[dd * XS + r] = x;
            }
            for (uint t = lid; t < TC * DT; t += GROUP) {
                const uint c = t % TC, dd = t / TC;
                const ulong at = (ulong)(d0 + dd) * kp + k0 + c;
                as[t] = pa[at];
#if DIAG
                bs[t] = pb[at];
#endif
            }
            barrier(CLK_LOCAL_MEM_FENCE);
#if !DIAG
            if (step == 0 && lid < TR)
                for (uint dd = 0; dd < DT; dd++) norm = fma(xs[dd * XS + lid], xs[dd * XS + lid], norm);
#endif
            for (uint dd = 0; dd < DT; dd++) {
                float xr[RM], av[RN];
                take(xr, xs + dd * XS + ly * RW, RM, GY * RW, RW);
                take(av, as + dd * TC + lx * CW, RN, GX * CW, CW);
#if DIAG
                float bv[RN];
                take(bv, bs + dd * TC + lx * CW, RN, GX * CW, CW);
#pragma unroll
                for (uint i = 0; i < RM; i++) {
                    const float square = xr[i] * xr[i];
#pragma unroll
                    for (uint j = 0; j < RN; j++) acc[i][j] = fma(xr[i], bv[j], fma(square, av[j], acc[i][j]));
                }
#else
#pragma unroll
                for (uint i = 0; i < RM; i++)
#pragma unroll
                    for (uint j = 0; j < RN; j++) acc[i][j] = fma(xr[i], av[j], acc[i][j]);
#endif
            }
        }
#if !DIAG
        if (step == 0 && lid < TR) norms[lid] = norm;
        barrier(CLK_LOCAL_MEM_FENCE);
#endif
        // Logits of the tile and each row's best.
#pragma unroll
        for (uint i = 0; i < RM; i++) {
            float top = -3e38f;
#pragma unroll
            for (uint j = 0; j < RN; j++) {
                const float4 c = constants[k0 + OWN_COLUMN(j)];
#if DIAG
                const float v = acc[i][j] - c.w;
#else
                const float v = (2.0f * c.z * acc[i][j] - c.z * norms[OWN_ROW(i)]) - c.w;
#endif
                top = fmax(top, v + c.x);
                acc[i][j] = v + c.y;
            }
            tile_best[OWN_ROW(i) * GX + lx] = top;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        // One work-item a row: raise the best, drop from the list what it rules out.
        if (lid < TR && mine < n && step < kp) {
            float top = best;
            for (uint i = 0; i < GX; i++) top = fmax(top, tile_best[lid * GX + i]);
            if (top > best) {
                best = top;
                const float floor_v = floor_below(best, bounds);
                const ulong at = (ulong)SLICE_ROW(lid) * CAP;
                const uint count = counts[lid];
                uint kept = 0;
                for (uint i = 0; i < count && count <= CAP; i++) {
                    const uint id = cand_id[at + i];
                    const float v = cand_v[at + i];
                    if (!(v < floor_v)) {
                        cand_id[at + kept] = id;
                        cand_v[at + kept] = v;
                        kept++;
                    }
                }
                if (count <= CAP) counts[lid] = kept;
                floors[lid] = floor_v;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
#pragma unroll
        for (uint i = 0; i < RM; i++) {
            const uint r = OWN_ROW(i);
#pragma unroll
            for (uint j = 0; j < RN; j++) {
                const uint id = k0 + OWN_COLUMN(j);
                if (id < k && first + r < n && !(acc[i][j] < floors[r])) {
                    const uint slot = atomic_inc(&counts[r]);
                    if (slot < CAP) {
                        cand_id[(ulong)SLICE_ROW(r) * CAP + slot] = id;
                        cand_v[(ulong)SLICE_ROW(r) * CAP + slot] = acc[i][j];
                    }
                }
            }
        }
        if (step + TC == kp && lid == 0) again = 0;
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        if (step + TC == kp) {
            if (lid < TR && counts[lid] > CAP) atomic_or(&again, 1);
            barrier(CLK_LOCAL_MEM_FENCE);
            if (again) steps = 2 * kp;
        }
    }
    if (lid < TR && mine < n) {
        const int sound = best > -1e38f && best < 1e38f;
        const uint count = settled > CAP ? counts[lid] : settled;
        cand_count[SLICE_ROW(lid)] = sound ? min(count, (uint)(CAP + 1)) : CAP + 1;
    }
}
