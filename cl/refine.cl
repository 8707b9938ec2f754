// variants: -DDIAG=1 | -DROW_TYPE=2 -DLANES=4 | -DROW_TYPE=3 -DLANES=1 | -DROW_TYPE=4 -DDIAG=1 -DLANES=32 | -DROW_TYPE=5
/*
 * Refine: the exact logits of each row's candidates, its log-density and responsibilities.
 *
 *   t = (x - m_hi) - m_lo,  q = sum_d a t^2,  l_k = L_k - q,  log Z = log sum_k exp(l_k),  r_k = exp(l_k - log Z)
 *
 * all in float-float, so that r is right to a few 1e-7 however large |l| is. LANES work-items share a row.
 * Kept are the components with r/w above the row's cut, sorted by number; in hard passes only the best, with r = 1 and log Z = l.
 */
#include "ff.clh"
#include "rows.clh"
#include "survivors.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// LANES: work-items a row, a power of two up to 64 (default 16).
#ifndef LANES
#define LANES 16
#endif
#if LANES < 1 || LANES > 64 || (LANES & (LANES - 1))
#error "LANES must be a power of two up to 64"
#endif
#define GROUP 64
#define ROWS (GROUP / LANES)

// kconst [K]: L_hi, L_lo, log w, w. a: spherical [K, 2] hi and lo; diagonal [K, D].
// cand_count in; surv_id and surv_r (the candidates' own arrays), kept, dense, logz, kept_weight out, [n] from out0.
// hints [block rows]: the best component, for the next screen.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
refine(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d,
       __global const float *m_hi, __global const float *m_lo, __global const float *a, __global const float4 *kconst,
       float log_cut, float log_norm_max, uint hard, __global const uint *cand_count, __global uint *surv_id, __global float *surv_r,
       __global uint *kept, __global uint *dense, __global float2 *logz, __global float *kept_weight, __global uint *hints)
{
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

    if (lid == 0) most = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane == 0) atomic_max(&most, count);
    barrier(CLK_LOCAL_MEM_FENCE);

    for (uint c = 0; c < most; c++) {
        ff s = (ff)(0.0f, 0.0f);
        uint id = 0;
        if (c < count) {
            id = surv_id[(ulong)at * CAP + c];
            const ulong x0 = offset + (ulong)(row0 + r) * pitch;
            const ulong m0 = (ulong)id * d;
            for (uint i = lane; i < d; i += LANES) {
                const ff gap = ff_two_sum(ROW_AT(rows, x0 + i), -m_hi[m0 + i]);
                const ff t = ff_two_sum(gap.x, gap.y - m_lo[m0 + i]);
                const float p = t.x * t.x;
                const ff square = (ff)(p, fma(t.x, t.x, -p) + 2.0f * (t.x * t.y));
#if DIAG
                s = ff_sum(s, ff_scale(square, a[m0 + i]));
#else
                s = ff_sum(s, square);
#endif
            }
        }
        part[lid] = s;
        for (uint step = LANES / 2; step > 0; step /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            if (lane < step) part[lid] = ff_sum(part[lid], part[lid + step]);
        }
        if (lane == 0 && c < count) {
            const float4 k = kconst[id];
#if DIAG
            const ff q = ff_finite(part[lid]);
#else
            const ff q = ff_finite(ff_mul(ff_finite(part[lid]), (ff)(a[2 * id], a[2 * id + 1])));
#endif
            ls[slot * CAP + c] = ff_sub((ff)(k.x, k.y), q);
            ids[slot * CAP + c] = id;
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); // the lists are about to be overwritten
    }
    if (lane == 0 && r < n) {
        dense[at] = count == 0;
        if (count == 0)
            kept[at] = 0;
        else
            finish_row(ids + slot * CAP, ls + slot * CAP, count, at, kconst, log_cut, log_norm_max, hard, surv_id, surv_r, kept,
                       logz, kept_weight, hints + row0 + r);
    }
}
