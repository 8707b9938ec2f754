// variants: -DROW_TYPE=2 -DLANES=4 -DRJ=2 | -DROW_TYPE=3 -DLANES=1 -DRJ=8 | -DROW_TYPE=4 -DLANES=64 | -DROW_TYPE=5
/*
 * Refine for tied and full covariances: as refine.cl, with
 *
 *   q = 1/2 |V S t|^2,  t = (x - m_hi) - m_lo,  V and S of whiten.cl
 *
 * in float-float. LANES work-items share a row: each has RJ outputs at a time, and all bring t.
 */
#include "ff.clh"
#include "rows.clh"
#include "survivors.clh"

// LANES: work-items a row, a power of two up to 64 (default 16). RJ: outputs a work-item (default 4).
#ifndef LANES
#define LANES 16
#endif
#ifndef RJ
#define RJ 4
#endif
#if LANES < 1 || LANES > 64 || (LANES & (LANES - 1))
#error "LANES must be a power of two up to 64"
#endif
#if RJ < 1
#error "RJ must be positive"
#endif
#define GROUP 64
#define ROWS (GROUP / LANES)
// Features a step.
#define TI (LANES > 8 ? LANES : 8)
// The step's stride in local memory, which keeps the rows apart.
#define TS (TI + 1)

// Arguments as of refine.cl; v_hi, v_lo [K, D, D] and scale [K, D], or of one matrix if tied.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
refine_full(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint tied,
            __global const float *m_hi, __global const float *m_lo, __global const float *v_hi,
            __global const float *v_lo, __global const float *scale, __global const float4 *kconst, float log_cut,
            float log_norm_max, uint hard, __global const uint *cand_count, __global uint *surv_id,
            __global float *surv_r, __global uint *kept, __global uint *dense, __global float2 *logz,
            __global float *kept_weight, __global uint *hints)
{
    __local ff ts[ROWS * TS];
    __local ff part[GROUP];
    __local ff ls[ROWS * CAP];
    __local uint ids[ROWS * CAP];
    __local uint most;

    const uint lid = get_local_id(0);
    const uint slot = lid / LANES;
    const uint lane = lid % LANES;
    const uint r = get_group_id(0) * ROWS + slot;
    const uint at = out0 + r;
    const uint found = r < n ? cand_count[at] : 0;
    const uint count = found > CAP ? 0 : found;
    const ulong x0 = offset + (ulong)(row0 + min(r, n - 1)) * pitch;

    if (lid == 0) most = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane == 0) atomic_max(&most, count);
    barrier(CLK_LOCAL_MEM_FENCE);

    for (uint c = 0; c < most; c++) {
        // A row without more candidates goes along with any: a condition here breaks PoCL 3.1.
        const uint id = c < count ? surv_id[(ulong)at * CAP + c] : 0;
        const ulong m0 = (ulong)id * d;
        const ulong s0 = tied ? 0 : m0;
        ff s = (ff)(0.0f, 0.0f);
        for (uint j0 = 0; j0 < d; j0 += LANES * RJ) {
            const uint end = min(j0 + LANES * RJ, d);
            ff y[RJ];
            for (uint a = 0; a < RJ; a++) y[a] = (ff)(0.0f, 0.0f);
            for (uint i0 = 0; i0 < end; i0 += TI) {
                barrier(CLK_LOCAL_MEM_FENCE);
                for (uint i = lane; i < TI; i += LANES)
                    if (i0 + i < end) {
                        const ff gap = ff_two_sum(ROW_AT(rows, x0 + i0 + i), -m_hi[m0 + i0 + i]);
                        ts[slot * TS + i] = ff_two_sum(gap.x, gap.y - m_lo[m0 + i0 + i]) * scale[s0 + i0 + i];
                    }
                barrier(CLK_LOCAL_MEM_FENCE);
                for (uint i = 0; i < TI && i0 + i < end; i++) {
                    const ff t = ts[slot * TS + i];
                    const ulong v0 = (s0 + i0 + i) * d + j0 + lane;
                    for (uint a = 0; a < RJ; a++) {
                        if (j0 + lane + a * LANES >= d) break;
                        const float hi = v_hi[v0 + a * LANES];
                        const float p = t.x * hi;
                        const float e = fma(t.x, hi, -p) + (t.x * v_lo[v0 + a * LANES] + t.y * hi);
                        y[a] = ff_sum(y[a], (ff)(p, e));
                    }
                }
            }
            for (uint a = 0; a < RJ; a++) s = ff_sum(s, ff_square(y[a]));
        }
        part[lid] = s;
        for (uint step = LANES / 2; step > 0; step /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            if (lane < step) part[lid] = ff_sum(part[lid], part[lid + step]);
        }
        if (lane == 0 && c < count) {
            const float4 k = kconst[id];
            ls[slot * CAP + c] = ff_sub((ff)(k.x, k.y), ff_finite(part[lid]) * 0.5f);
            ids[slot * CAP + c] = id;
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); // the lists are about to be overwritten
    }
    if (lane == 0 && r < n) {
        dense[at] = count == 0;
        if (count == 0)
            kept[at] = 0;
        else
            finish_row(ids + slot * CAP, ls + slot * CAP, count, at, kconst, log_cut, log_norm_max, hard, surv_id, surv_r,
                       kept, logz, kept_weight, hints + row0 + r);
    }
}
