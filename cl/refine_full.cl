// variants: -DROW_TYPE=2 -DLANES=4 -DRJ=2 | -DROW_TYPE=3 -DLANES=1 -DRJ=8 | -DROW_TYPE=4 -DLANES=64 | -DROW_TYPE=5
/*
 * Refine for tied and full covariances: as refine.cl, with
 *
 *   q = 1/2 |V S t|^2,  t = (x - m_hi) - m_lo,  V and S of whiten.cl
 *
 * in float-float. LANES work-items share a row: each has RJ outputs at a time, and all bring t.
 *
 * The screens of full covariances start from each row's last best component: known_full forms its logit beforehand, and a bound on what
 * the f32 screen will find for it; refine_full takes the logit from there.
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

// Where the matrices and means of all components lie: see refine_full.
typedef struct {
    __global const float *m_hi, *m_lo, *v_hi, *v_lo, *scale;
} white_set;

// What a row is to a component: its logit, |V S t|^2 and |S t|^2.
typedef struct {
    ff logit;
    float square, norm;
} white_row;

// Of component id and the row that starts at x0, in all its lanes: every row of the group takes part.
static inline white_row whiten_row(__global const row_t *rows, ulong x0, uint d, uint id, uint tied, const white_set *of,
                                   float4 kconst, __local ff *ts, __local ff *part, __local float *norms)
{
    const uint lid = get_local_id(0);
    const uint lane = lid % LANES;
    const ulong m0 = (ulong)id * d;
    const ulong s0 = tied ? 0 : m0;
    ts += lid / LANES * TS;
    ff s = (ff)(0.0f, 0.0f);
    float norm = 0.0f;
    for (uint j0 = 0; j0 < d; j0 += LANES * RJ) {
        const uint end = min(j0 + LANES * RJ, d);
        ff y[RJ];
        for (uint a = 0; a < RJ; a++) y[a] = (ff)(0.0f, 0.0f);
        for (uint i0 = 0; i0 < end; i0 += TI) {
            barrier(CLK_LOCAL_MEM_FENCE);
            for (uint i = lane; i < TI; i += LANES)
                if (i0 + i < end) {
                    const ff gap = ff_two_sum(ROW_AT(rows, x0 + i0 + i), -of->m_hi[m0 + i0 + i]);
                    const ff t = ff_two_sum(gap.x, gap.y - of->m_lo[m0 + i0 + i]) * of->scale[s0 + i0 + i];
                    ts[i] = t;
                    if (i0 >= j0) norm = fma(t.x, t.x, norm); // the features that these outputs are the first to reach
                }
            barrier(CLK_LOCAL_MEM_FENCE);
            // V is triangular: outputs before all features of the step have none of them.
            const uint from = i0 > j0 ? (i0 - j0) / LANES : 0;
            for (uint i = 0; i < TI && i0 + i < end; i++) {
                const ff t = ts[i];
                const ulong v0 = (s0 + i0 + i) * d + j0 + lane;
                for (uint a = 0; a < RJ; a++) {
                    if (a < from || j0 + lane + a * LANES >= d) continue;
                    y[a] = ff_gather_product(y[a], t, (ff)(of->v_hi[v0 + a * LANES], of->v_lo[v0 + a * LANES]));
                }
            }
        }
        for (uint a = 0; a < RJ; a++) s = ff_sum(s, ff_square(ff_quick(y[a].x, y[a].y)));
    }
    part[lid] = s;
    norms[lid] = norm;
    for (uint step = LANES / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < step) {
            part[lid] = ff_sum(part[lid], part[lid + step]);
            norms[lid] += norms[lid + step];
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    white_row out;
    out.square = part[lid - lane].x;
    out.norm = norms[lid - lane];
    out.logit = ff_sub(kconst.xy, ff_finite(part[lid - lane]) * 0.5f);
    return out;
}

// known [slice rows]: of each row's hint, where it has one, the logit, and a lower one than screen_full.cl will find: with over 3 e.
// constants, eta: as there; the rest as of refine_full.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
known_full(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint k,
           __global const float *m_hi, __global const float *m_lo, __global const float *v_hi,
           __global const float *v_lo, __global const float *scale, __global const float4 *kconst,
           __global const float4 *constants, float eta, __global const uint *hints, __global float4 *known)
{
    __local ff ts[ROWS * TS];
    __local ff part[GROUP];
    __local float norms[GROUP];
    __local uint any;
    const uint lid = get_local_id(0);
    const uint r = get_group_id(0) * ROWS + lid / LANES;
    const uint row = row0 + min(r, n - 1);
    const uint hint = hints[row], id = min(hint, k - 1); // a row without a hint goes along with any
    const white_set of = {m_hi, m_lo, v_hi, v_lo, scale};
    if (lid == 0) any = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (hint < k) atomic_or(&any, 1u);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (!any) return;
    const white_row l = whiten_row(rows, offset + (ulong)row * pitch, d, id, 0, &of, kconst[id], ts, part, norms);
    if (lid % LANES == 0 && r < n && hint < k) {
        const float4 c = constants[id];
        const float length = (1.0f + 3.0f * eta) * sqrt(l.square) + 3.1f * (c.z * sqrt(l.norm) + c.w);
        known[out0 + r] = (float4)(l.logit, c.y - 0.5f * length * length, 0.0f);
    }
}

// Arguments as of refine.cl; v_hi, v_lo [K, D, D] and scale [K, D], or of one matrix if tied. known, or NULL: as known_full left it of
// rows with a hint.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
refine_full(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint k, uint tied,
            __global const float *m_hi, __global const float *m_lo, __global const float *v_hi,
            __global const float *v_lo, __global const float *scale, __global const float4 *kconst, float log_cut,
            float log_norm_max, uint hard, __global const float4 *known, __global const uint *cand_count,
            __global uint *surv_id, __global float *surv_r, __global uint *kept, __global uint *dense,
            __global float2 *logz, __global float *kept_weight, __global uint *hints)
{
    __local ff ts[ROWS * TS];
    __local ff part[GROUP];
    __local float norms[GROUP];
    __local ff ls[ROWS * CAP];
    __local uint ids[ROWS * CAP];
    __local uint most; // candidates of a row that are to be evaluated

    const uint lid = get_local_id(0);
    const uint slot = lid / LANES;
    const uint lane = lid % LANES;
    const uint r = get_group_id(0) * ROWS + slot;
    const uint at = out0 + r, row = row0 + min(r, n - 1);
    const uint found = r < n ? cand_count[at] : 0;
    const uint count = found > CAP ? 0 : found;
    const uint hint = known ? hints[row] : k;
    const white_set of = {m_hi, m_lo, v_hi, v_lo, scale};

    // The row's candidates to evaluate, then its hint, whose logit is known.
    uint unknown = count;
    if (lane == 0) {
        unknown = 0;
        for (uint c = 0; c < count; c++) {
            const uint id = surv_id[(ulong)at * CAP + c];
            if (id != hint) ids[slot * CAP + unknown++] = id;
        }
        if (unknown < count) {
            ids[slot * CAP + unknown] = hint;
            ls[slot * CAP + unknown] = known[at].xy;
        }
    }
    if (lid == 0) most = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane == 0) atomic_max(&most, unknown);
    barrier(CLK_LOCAL_MEM_FENCE);

    for (uint c = 0; c < most; c++) {
        // A row without more candidates goes along with any: a condition here breaks PoCL 3.1.
        const uint id = c < count ? ids[slot * CAP + c] : 0;
        const white_row l = whiten_row(rows, offset + (ulong)row * pitch, d, id, tied, &of, kconst[id], ts, part, norms);
        if (lane == 0 && c < unknown) ls[slot * CAP + c] = l.logit;
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); // the lists are about to be overwritten
    if (lane == 0 && r < n) {
        dense[at] = count == 0;
        if (count == 0)
            kept[at] = 0;
        else
            finish_row(ids + slot * CAP, ls + slot * CAP, count, at, kconst, log_cut, log_norm_max, hard, surv_id, surv_r,
                       kept, logz, kept_weight, hints + row);
    }
}
