// variants: -DROW_TYPE=2 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DGX=8 -DGY=8 -DDT=8 | -DGX=8 -DGY=16 -DDT=8 | -DGX=8 -DGY=8 -DRM=8 -DRN=1 -DDT=8
/*
 * Screen for full covariances: which components can matter for a row.
 *
 *   y = V S t,  t = (x - m_hi) - m_lo in one float each,  q = 1/2 |y|^2,  V and S of whiten.cl, V rounded to f32
 *
 * A work-group owns GY * RM rows and walks the components one by one, each in tiles of GX * RN outputs. |y|^2 only
 * grows from tile to tile, and V is triangular, so a component that no row of the group can still take is left after
 * its first, cheapest tiles.
 *
 * The bound. With u = 2^-24: t is off by 2u of itself and by delta = 2^-48 |m| (of m_lo), V by u of itself, S is exact,
 * and y_j is summed in steps of DT features, so with g = (DT + D / DT + 8) u
 *   |y^_j - y_j| <= g sum_i |V_ji| |S t_i| + sum_i |V_ji| S_i delta_i,    hence
 *   |y^ - y|_2   <= g A |S t|_2 + e0 =: e,    A >= || |V| ||_2,  e0 >= | |V| S delta |_2,
 * where the same holds of any leading block of V, so the least upper logit of all tiles counts. |S t|_2 is at hand for
 * every row and component, so that nothing is assumed of how well S_k is conditioned. With eta for the rounding of the
 * sums of squares and of the logits,
 *   upper = C_k - 1/2 max(0, (1 - eta) |y^| - e)^2,   lower = L_k - 1/2 ((1 + eta) |y^| + e)^2
 * bound the exact C_k - q and L_k - q, so component k stays while upper >= B + log rho(B), B = max lower <= log p(x)
 * (see screen.cl).
 *
 * Each row starts from a lower logit of the best component of its last iteration (known, see refine_full.cl), which lies below
 * what the walk finds for that component, and so changes nothing of what is on the list in the end. Lists that outgrow CAP, and what
 * compares with NaN, are treated as in screen.cl.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "listed.clh"
#include "row_cut.clh"
#include "rows.clh"

// GX, GY: work-group shape (default 16 x 16). RM, RN: rows and outputs a work-item (default 4 x 4).
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
#if GX * RN % DT
#error "DT must divide GX * RN"
#endif
#if GY * RM > GX * GY
#error "a work-group needs one work-item a row"
#endif

#define TR (GY * RM)
#define TJ (GX * RN)
#define GROUP (GX * GY)

// Half of (x)^2.
static inline float half_square(float x)
{
    return 0.5f * x * x;
}

// hints [block rows]: component numbers, out of range where there is none; known [slice rows]: ., ., a lower logit of theirs.
// Rows and the places of their candidates are listed.clh's; list: or NULL. m_hi, m_lo, scale [K, D]; v [K, D, D].
// constants [K]: C_k and L_k with their rounding, g A, e0. bounds: log cut (0 in hard passes), slack, Cmax, pad.
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
screen_full(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint k,
            __global const float *m_hi, __global const float *m_lo, __global const float *v,
            __global const float *scale, __global const float4 *constants, float4 bounds, float eta,
            __global uint *cand_id, __global float *cand_v, __global uint *cand_count, __global const uint *hints,
            __global const float4 *known, __global const uint2 *list)
{
    __local float ts[DT * (TR + 1)];
    __local float vs[DT * TJ];
    __local float part[TR * GX];
    __local ulong starts[TR];
    __local int live;  // whether any row can still take this component
    __local int again; // whether any list has to be made anew

    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint first = get_group_id(1) * TR;
    LISTED_FROM(first);
    const int owner = lid < TR && first + lid < n; // whether this work-item keeps the list of row lid
    const uint at = owner ? PLACE(lid) : 0;
    const ulong slot0 = (ulong)at * CAP;
    float best = -3e38f, least = -3e38f; // B, and what an upper logit must reach
    uint count = 0;
    uint settled = CAP + 1; // length of the list after the first walk, if there is a second

    if (lid == 0) again = 0;
    for (uint t = lid; t < TR; t += GROUP)
        if (first + t < n) starts[t] = offset + (ulong)BLOCK_ROW(t) * pitch;
    if (owner && hints[BLOCK_ROW(lid)] < k) {
        const float start = known[at].z;
        if (start > best && start < 1e38f) {
            best = start;
            least = floor_below(best, bounds);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    uint steps = k; // all components once, or twice if a list overflowed before its row's best was found
    for (uint step = 0; step < steps; step++) {
        const uint id = step < k ? step : step - k;
        const float4 c = constants[id];
        const ulong m0 = (ulong)id * d;
        if (step == k && owner) {
            // Full lists start anew under the final best; the others are done, and stay closed.
            settled = count;
            count = settled > CAP ? 0 : CAP + 1;
        }
        float squares[RM];
        for (uint i = 0; i < RM; i++) squares[i] = 0.0f;
        float norm = 0.0f, upper = c.x, lower = -3e38f;
        uint stop = d;
        for (uint j0 = 0; j0 < stop; j0 += TJ) {
            const uint end = min(j0 + TJ, d);
            float y[RM][RN];
            for (uint i = 0; i < RM; i++)
                for (uint j = 0; j < RN; j++) y[i][j] = 0.0f;
            for (uint i0 = 0; i0 < end; i0 += DT) {
                barrier(CLK_LOCAL_MEM_FENCE);
                for (uint t = lid; t < TR * DT; t += GROUP) {
                    const uint dd = t % DT, r = t / DT, i = i0 + dd;
                    float x = 0.0f;
                    if (first + r < n && i < end)
                        x = ((ROW_AT(rows, starts[r] + i) - m_hi[m0 + i]) - m_lo[m0 + i]) * scale[m0 + i];
                    ts[dd * (TR + 1) + r] = x;
                }
                for (uint t = lid; t < TJ * DT; t += GROUP) {
                    const uint j = t % TJ, dd = t / TJ;
                    vs[t] = i0 + dd < end && j0 + j < d ? v[(m0 + i0 + dd) * d + j0 + j] : 0.0f;
                }
                barrier(CLK_LOCAL_MEM_FENCE);
                if (i0 >= j0 && lid < TR) // the features that this tile is the first to reach
                    for (uint dd = 0; dd < DT; dd++)
                        norm = fma(ts[dd * (TR + 1) + lid], ts[dd * (TR + 1) + lid], norm);
                float p[RM][RN];
                for (uint i = 0; i < RM; i++)
                    for (uint j = 0; j < RN; j++) p[i][j] = 0.0f;
                for (uint dd = 0; dd < DT; dd++) {
                    float tr[RM];
                    for (uint i = 0; i < RM; i++) tr[i] = ts[dd * (TR + 1) + ly + i * GY];
                    for (uint j = 0; j < RN; j++) {
                        const float vj = vs[dd * TJ + lx + j * GX];
                        for (uint i = 0; i < RM; i++) p[i][j] = fma(tr[i], vj, p[i][j]);
                    }
                }
                for (uint i = 0; i < RM; i++)
                    for (uint j = 0; j < RN; j++) y[i][j] += p[i][j];
            }
            for (uint i = 0; i < RM; i++) {
                for (uint j = 0; j < RN; j++) squares[i] = fma(y[i][j], y[i][j], squares[i]);
                part[(ly + i * GY) * GX + lx] = squares[i];
            }
            if (lid == 0) live = 0;
            barrier(CLK_LOCAL_MEM_FENCE);
            if (owner) {
                float sum = 0.0f;
                for (uint i = 0; i < GX; i++) sum += part[lid * GX + i];
                const float e = c.z * sqrt(norm) + c.w, length = sqrt(sum);
                upper = fmin(upper, c.x - half_square(fmax(0.0f, (1.0f - eta) * length - e)));
                lower = c.y - half_square((1.0f + eta) * length + e);
                if (!(upper < least) && settled > CAP) atomic_or(&live, 1);
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            if (!live) stop = 0;
        }
        // One work-item a row: raise the best, drop from the list what it rules out, add to it.
        if (owner && stop) {
            if (step < k && lower > best) {
                best = lower;
                least = floor_below(best, bounds);
                uint kept = 0;
                for (uint i = 0; i < count && count <= CAP; i++)
                    if (!(cand_v[slot0 + i] < least)) {
                        cand_id[slot0 + kept] = cand_id[slot0 + i];
                        cand_v[slot0 + kept] = cand_v[slot0 + i];
                        kept++;
                    }
                if (count <= CAP) count = kept;
            }
            if (!(upper < least)) {
                if (count < CAP) {
                    cand_id[slot0 + count] = id;
                    cand_v[slot0 + count] = upper;
                }
                count = min(count + 1, (uint)(CAP + 1));
            }
        }
        if (owner && step + 1 == k && count > CAP) atomic_or(&again, 1);
        barrier(CLK_LOCAL_MEM_FENCE);
        if (again) steps = 2 * k;
    }
    if (owner) {
        const int sound = best > -1e38f && best < 1e38f;
        cand_count[at] = sound ? (settled > CAP ? count : settled) : CAP + 1;
    }
}
