// variants: -DDIAG=1 | -DROW_FOURS=1 -DRM=8 -DRN=8 | -DROW_TYPE=2 -DDT=16 | -DROW_TYPE=3 -DDIAG=1 | -DROW_TYPE=4 -DROW_FOURS=1 | -DROW_TYPE=5 -DDIAG=1 -DDT=4 | -DGX=8 -DGY=8 -DRM=2 -DRN=1 | -DGX=8 -DRM=8 -DRN=16
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
 * Upper logits are taken as w + (c2 - M), lower ones as those less c2 - c1: of |C| and |log w| that is off by no more than the 8 u the
 * host allows. A lower logit above B has its upper one above the floor, so only there is B looked for.
 *
 * Each row starts from the best component of its last iteration: B0, its lower logit less twice the rounding bound, lies below whatever
 * the walk finds for that component, so it keeps lists short while B rises and changes nothing of what is on them in the end.
 *
 * The list is a set: the order in which work-items append does not matter, refine sorts it.
 * A list that outgrows CAP while B is still low is made anew in a second walk, below the final B. Lists that outgrow it again, and rows
 * without a finite B, are marked CAP + 1 for the dense engine.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "depths.clh"
#include "listed.clh"
#include "row_cut.clh"
#include "rows.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// GX, GY: work-group shape (default 16 x 16). RM, RN: rows and components a work-item (default 4 x 4, at most 32).
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
// DT: features a step: 4, 8 or 16 (default 8).
#ifndef DT
#define DT 8
#endif
// CAP: most candidates of a row (default 16).
#ifndef CAP
#define CAP 16
#endif
#if GX < 1 || GY < 1 || RM < 1 || RN < 1 || CAP < 1
#error "GX, GY, RM, RN and CAP must be positive"
#endif
#if RM > 32 || RN > 32
#error "RM and RN must be at most 32"
#endif
#if DT != 4 && DT != 8 && DT != 16
#error "DT must be 4, 8 or 16"
#endif
#if GX * RN % 4 != 0
#error "GX * RN must be a multiple of 4"
#endif
#if GX * GY < GY * RM
#error "a work-group needs one work-item a row"
#endif

// Work-items that share a row's norm and hint.
#define HINT_LANES (GX / RM < 4 ? GX / RM : 4)
#define TR (GY * RM)
#define TC (GX * RN)
#define GROUP (GX * GY)
// A work-item's rows and components lie in runs of RW and CW, which local memory gives at once.
#define RW (RM % 4 == 0 ? 4 : 1)
#define CW (RN % 4 == 0 ? 4 : 1)
#define OWN_ROW(i) ((i) / RW * (GY * RW) + ly * RW + (i) % RW)
#define OWN_COLUMN(j) ((j) / CW * (GX * CW) + lx * CW + (j) % CW)
#define XS (TR + 4) // stride of a step's rows
// Runs of four that a step has of rows and of components, and how many of them a work-item fetches.
#define ROW_RUNS (TR * (DT / 4))
#define COLUMN_RUNS (TC / 4 * DT)
#define ROW_SHARE ((ROW_RUNS + GROUP - 1) / GROUP)
#define COLUMN_SHARE ((COLUMN_RUNS + GROUP - 1) / GROUP)

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

static inline float4 four(__global const float *from, ulong i)
{
    return *(__global const float4 *)(from + i);
}

// Floats as ints of the same order, for atomic_max, and back.
static inline int ordered(float v)
{
    const int bits = as_int(v);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float unordered(int v)
{
    return as_float(v ^ (v >> 31 & 0x7fffffff));
}

// What a work-item fetches of a step: runs of four features of rows, of four components of a feature.
typedef struct {
    float4 x[ROW_SHARE], a[COLUMN_SHARE];
#if DIAG
    float4 b[COLUMN_SHARE];
#endif
} share;

// The step of features d0 .. and components k0 ... x0 [ROW_SHARE]: where the share's rows start.
static inline share fetch(__global const row_t *rows, const ulong *x0, __global const float *pa, __global const float *pb,
                          uint d0, uint k0, uint d, uint kp, uint lid)
{
    share s;
#pragma unroll
    for (uint i = 0; i < ROW_SHARE; i++) s.x[i] = row_four(rows, x0[i], d0 + (lid + i * GROUP) % (DT / 4) * 4, d);
#pragma unroll
    for (uint i = 0; i < COLUMN_SHARE; i++) {
        const uint t = lid + i * GROUP;
        if (COLUMN_RUNS % GROUP == 0 || t < COLUMN_RUNS) {
            const ulong at = (ulong)(d0 + t / (TC / 4)) * kp + k0 + t % (TC / 4) * 4;
            s.a[i] = four(pa, at);
#if DIAG
            s.b[i] = four(pb, at);
#endif
        }
    }
    return s;
}

// Puts it into a step's local memory: rows centred, scaled and transposed.
static inline void put(const share *s, __global const float *centre, __global const float *scale, uint d0, uint lid,
                       __local float *xs, __local float *as, __local float *bs)
{
#pragma unroll
    for (uint i = 0; i < ROW_SHARE; i++) {
        const uint t = lid + i * GROUP, f = t % (DT / 4) * 4;
        if (ROW_RUNS % GROUP == 0 || t < ROW_RUNS) {
            const float4 x = (s->x[i] - four(centre, d0 + f)) * four(scale, d0 + f);
            __local float *to = xs + f * XS + t / (DT / 4);
            to[0] = x.x;
            to[XS] = x.y;
            to[2 * XS] = x.z;
            to[3 * XS] = x.w;
        }
    }
#pragma unroll
    for (uint i = 0; i < COLUMN_SHARE; i++) {
        const uint t = lid + i * GROUP;
        if (COLUMN_RUNS % GROUP == 0 || t < COLUMN_RUNS) {
            *(__local float4 *)(as + 4 * t) = s->a[i];
#if DIAG
            *(__local float4 *)(bs + 4 * t) = s->b[i];
#endif
        }
    }
}

// hints [block rows]: component numbers, out of range where there is none.
// Rows and the places of their candidates are listed.clh's; list: or NULL. pa, pb [dp, kp]: spherical m; diagonal -a and 2 a m. hint_a,
// hint_b [k, hint_pitch]: the same, a component a row. centre, scale: 0 from d to dp.
// constants [kp]: c1, c2, a, M. bounds: log cut (0 in hard passes), 16 g, Cmax, pad. row_bounds [block rows]: as settle.cl has it;
// depths go there of rows whose hint has no rival; NULL: not kept.
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
screen(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint dp, uint k,
       uint kp, __global const float *centre, __global const float *scale, __global const float *pa,
       __global const float *pb, __global const float *hint_a, __global const float *hint_b, uint hint_pitch,
       __global const float4 *constants, float4 bounds, __global uint *cand_id, __global float *cand_v,
       __global uint *cand_count, __global const uint *hints, __global const uint2 *list, __global uint *row_bounds)
{
    // Two stages: one step is multiplied while the next is put beside it.
    __local float xs[2 * DT * XS] __attribute__((aligned(16)));
    __local float as[2 * DT * TC] __attribute__((aligned(16)));
#if DIAG
    __local float bs[2 * DT * TC] __attribute__((aligned(16)));
#else
    __local float *bs = as;
    __local float norms[TR];
    __local float factors[TC] __attribute__((aligned(16))); // a
#endif
    __local float floors[TR];
    __local float uppers[TC] __attribute__((aligned(16))); // of the tile's columns: c2 - M, c2 - c1
    __local float gaps[TC] __attribute__((aligned(16)));
    __local int tops[TR], bests[TR]; // best lower logits, ordered: with this tile's, and those that the floors are of
    __local uint counts[TR];
    __local uint known[TR];  // hints
    __local int others[TR];  // the best upper logits but for these, ordered, where depths are kept
    __local int again; // whether any row of this pass asks for another

    const uint lid = get_local_id(1) * GX + get_local_id(0);
#if GX % 8 == 0 && GY % 4 == 0
    // 32 neighbours are 4 x 8 such that a run of four is read in two goes: pairs of lanes share components, pairs of pairs rows.
    const uint lx = lid / 32 % (GX / 8) * 8 + lid / 2 % 8;
    const uint ly = lid / 32 / (GX / 8) * 4 + lid / 16 % 2 * 2 + lid % 2;
#else
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
#endif
    const uint first = get_group_id(1) * TR;
    LISTED_FROM(first);
    const uint last = n - 1 - first;          // row of the group
    const uint own = lid < TR && lid <= last; // whether this work-item keeps the list of row lid
    (void)pb;
    (void)hint_b;

    // Norms and hints. Rows beyond the last are the last again.
    if (lid < TR * HINT_LANES) {
        const uint block_row = BLOCK_ROW(min(lid / HINT_LANES, last));
        const uint hint = hints[block_row];
        const ulong row_at = offset + (ulong)block_row * pitch, hint_at = (ulong)(hint < k ? hint : 0) * hint_pitch;
        float product = 0.0f, norm = 0.0f;
        for (uint f = lid % HINT_LANES * 4; f < d; f += HINT_LANES * 4) {
            const float4 x = (row_four(rows, row_at, f, d) - four(centre, f)) * four(scale, f);
#if DIAG
            const float4 m = fma(x, four(hint_a, hint_at + f), four(hint_b, hint_at + f));
#else
            const float4 m = four(hint_a, hint_at + f);
#endif
            product = fma(x.x, m.x, fma(x.y, m.y, fma(x.z, m.z, fma(x.w, m.w, product))));
            norm = fma(x.x, x.x, fma(x.y, x.y, fma(x.z, x.z, fma(x.w, x.w, norm))));
        }
        xs[lid] = product;
        xs[TR * HINT_LANES + lid] = norm;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < TR) {
        float v = 0.0f, best = -3e38f, floor_v = -3e38f;
        for (uint i = 0; i < HINT_LANES; i++) v += xs[lid * HINT_LANES + i];
#if !DIAG
        float norm = 0.0f;
        for (uint i = 0; i < HINT_LANES; i++) norm += xs[(TR + lid) * HINT_LANES + i];
        norms[lid] = norm;
#endif
        const uint hint = own ? hints[BLOCK_ROW(lid)] : k;
        if (hint < k) {
            const float4 c = constants[hint];
#if !DIAG
            v = c.z * fma(2.0f, v, -norm);
#endif
            const float lower = (v - c.w) + c.x;
            const float start = lower - ((c.y - c.x) + bounds.y * fmax(bounds.z - lower, 0.0f) + bounds.w);
            if (start > best && start < 1e38f) {
                best = start;
                floor_v = floor_below(best, bounds);
            }
        }
        counts[lid] = 0;
        known[lid] = hint;
        others[lid] = ordered(-3e38f);
        tops[lid] = bests[lid] = ordered(best);
        floors[lid] = own ? floor_v : INFINITY;
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    ulong x0[ROW_SHARE];
#pragma unroll
    for (uint i = 0; i < ROW_SHARE; i++)
        x0[i] = offset + (ulong)BLOCK_ROW(min((lid + i * GROUP) / (DT / 4), last)) * pitch;
    {
        const share s = fetch(rows, x0, pa, pb, 0, 0, d, kp, lid);
        put(&s, centre, scale, 0, lid, xs, as, bs);
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    uint stage = 0;  // which of the two is multiplied
    uint steps = kp; // through all components once, or twice if a list overflowed before its row's best was found
    for (uint step = 0; step < steps; step += TC) {
        const uint k0 = step < kp ? step : step - kp;
        float acc[RM][RN];
#pragma unroll
        for (uint i = 0; i < RM; i++)
#pragma unroll
            for (uint j = 0; j < RN; j++) acc[i][j] = 0.0f;
        for (uint c = lid; c < TC; c += GROUP) {
            const float4 column = constants[k0 + c];
            uppers[c] = column.y - column.w;
            gaps[c] = column.y - column.x;
#if !DIAG
            factors[c] = column.z;
#endif
        }

        for (uint d0 = 0; d0 < dp; d0 += DT) {
            // The next step is on its way while this one is multiplied. After the last comes the first: a second walk may follow.
            const uint d1 = d0 + DT < dp ? d0 + DT : 0;
            const uint k1 = d1 ? k0 : k0 + TC < kp ? k0 + TC : 0;
            const share s = fetch(rows, x0, pa, pb, d1, k1, d, kp, lid);
            __local const float *x_at = xs + stage * (DT * XS) + ly * RW;
            __local const float *a_at = as + stage * (DT * TC) + lx * CW;
#if DIAG
            __local const float *b_at = bs + stage * (DT * TC) + lx * CW;
#endif
#pragma unroll
            for (uint dd = 0; dd < DT; dd++) {
                float xr[RM], av[RN];
                take(xr, x_at + dd * XS, RM, GY * RW, RW);
                take(av, a_at + dd * TC, RN, GX * CW, CW);
#if DIAG
                float bv[RN];
                take(bv, b_at + dd * TC, RN, GX * CW, CW);
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
            stage ^= 1;
            put(&s, centre, scale, d1, lid, xs + stage * (DT * XS), as + stage * (DT * TC), bs + stage * (DT * TC));
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        // Upper logits of the tile. Few rows have one that reaches the floor; only such a tile can raise the best.
        uint reached = 0;
        {
            float upper[RN];
            take(upper, uppers + lx * CW, RN, GX * CW, CW);
#if !DIAG
            float a[RN];
            take(a, factors + lx * CW, RN, GX * CW, CW);
#endif
#pragma unroll
            for (uint i = 0; i < RM; i++) {
                const float floor_v = floors[OWN_ROW(i)];
                uint any = 0;
#pragma unroll
                for (uint j = 0; j < RN; j++) {
#if DIAG
                    acc[i][j] += upper[j];
#else
                    acc[i][j] = fma(a[j], fma(2.0f, acc[i][j], -norms[OWN_ROW(i)]), upper[j]);
#endif
                    any |= !(acc[i][j] < floor_v);
                }
                if (row_bounds && step < kp) {
                    const uint hint = known[OWN_ROW(i)] - k0;
                    float top = -3e38f;
#pragma unroll
                    for (uint j = 0; j < RN; j++)
                        if (OWN_COLUMN(j) != hint) top = fmax(top, acc[i][j]);
                    atomic_max(&others[OWN_ROW(i)], ordered(top));
                }
                if (any && OWN_ROW(i) <= last) {
                    reached |= 1u << i;
                    float gap[RN], top = -3e38f;
                    take(gap, gaps + lx * CW, RN, GX * CW, CW);
#pragma unroll
                    for (uint j = 0; j < RN; j++) top = fmax(top, acc[i][j] - gap[j]);
                    atomic_max(&tops[OWN_ROW(i)], ordered(top));
                }
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        // One work-item a row: raise the best, drop from the list what it rules out.
        if (own) {
            const int top = tops[lid];
            if (top > bests[lid]) {
                const float floor_v = floor_below(unordered(top), bounds);
                const uint at = PLACE(lid) * CAP;
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
                bests[lid] = top;
                floors[lid] = floor_v;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
#pragma unroll
        for (uint i = 0; i < RM; i++) {
            const uint r = OWN_ROW(i);
            if (reached >> i & 1) {
                const float floor_v = floors[r];
                uint columns = 0;
#pragma unroll
                for (uint j = 0; j < RN; j++) columns |= acc[i][j] < floor_v ? 0 : 1u << j;
                while (columns) {
                    const uint bit = 31 - clz(columns);
                    columns ^= 1u << bit;
                    float v = acc[i][0];
#pragma unroll
                    for (uint j = 1; j < RN; j++) v = bit == j ? acc[i][j] : v;
                    const uint id = k0 + OWN_COLUMN(bit);
                    if (id >= k) continue;
                    const uint slot = atomic_inc(&counts[r]);
                    if (slot < CAP) {
                        cand_id[PLACE(r) * CAP + slot] = id;
                        cand_v[PLACE(r) * CAP + slot] = v;
                    }
                }
            }
        }
        if (k0 + TC == kp) {
            if (lid == 0) again = 0;
            barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
            if (own && (step < kp || floors[lid] < INFINITY)) {
                const float best = unordered(bests[lid]);
                const int sound = best > -1e38f && best < 1e38f;
                const uint count = counts[lid];
                cand_count[PLACE(lid)] = sound ? min(count, (uint)(CAP + 1)) : CAP + 1;
                if (row_bounds && step < kp && sound && count == 1 && cand_id[PLACE(lid) * CAP] == known[lid])
                    row_bounds[BLOCK_ROW(lid)] = keep(INFINITY, depth_below(unordered(others[lid]), 0.0f, bounds));
                // Full lists start anew under the final best; the others are done.
                if (sound && count > CAP) {
                    counts[lid] = 0;
                    atomic_or(&again, 1);
                } else {
                    floors[lid] = INFINITY;
                }
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            if (again) steps = 2 * kp;
        }
    }
}
