// variants: -DALONE=1 -DHELD=4 -DROW_FOURS=1 -DDOUBLES=1 | -DDIAG=1 -DDOUBLES=1 -DROW_TYPE=2 | -DALONE=1 -DHELD=4 -DROW_FOURS=1 | -DALONE=1 -DDIAG=1 -DLANES=1 | -DDIAG=1 | -DHELD=4 -DROW_FOURS=1 | -DHELD=2 -DDIAG=1 -DROW_TYPE=2 | -DROW_FOURS=1 | -DROW_TYPE=2 -DROW_FOURS=1 -DDIAG=1 | -DROW_TYPE=3 -DROW_FOURS=1 | -DROW_TYPE=4 -DROW_FOURS=1 | -DROW_TYPE=5 -DROW_FOURS=1 | -DROW_TYPE=2 -DLANES=4 | -DROW_TYPE=3 -DLANES=1 | -DROW_TYPE=4 -DDIAG=1 -DLANES=32 | -DROW_TYPE=5
/*
 * Refine: the exact logits of each row's candidates, its log-density and responsibilities.
 *
 *   t = (x - m_hi) - m_lo,  q = sum_d a t^2,  l_k = L_k - q,  log Z = log sum_k exp(l_k),  r_k = exp(l_k - log Z)
 *
 * q in float-float or in double (squares.clh) and the rest in float-float, so that r is right to a few 1e-7 however large |l| is. LANES
 * work-items share a row, four features at a time.
 * Kept are the components with r/w above the row's cut, sorted by number; in hard passes only the best, with r = 1 and log Z = l.
 *
 * With a list the rows are those with places in the list of settle.cl.
 *
 * With ALONE a row of one candidate, which would be kept with r = 1 whatever its logit, is not read at all: a work-group takes GROUP
 * rows, a work-item one each, and together they evaluate those that have several candidates.
 */
#include "ff.clh"
#include "places.clh"
#include "rows.clh"
#include "squares.clh"
#include "survivors.clh"

// LANES: work-items a row, a power of two up to 64 (default 8).
#ifndef LANES
#define LANES 8
#endif
#if LANES < 1 || LANES > 64 || (LANES & (LANES - 1))
#error "LANES must be a power of two up to 64"
#endif
// HELD: fours of features that a work-item holds of its row, as many as there are; 0: it reads them for each candidate (default).
#ifndef HELD
#define HELD 0
#endif
#define GROUP 64
#define ROWS (GROUP / LANES)
// The slice's row whose place is i, if out0 is 0.
#define ROW(i) (list ? list[1 + (i)].x : (i))
// Whether it is taken.
#define TAKEN(i) ((i) < n && (!list || (i) < list[0].x || (i) >= n - list[0].y))

// kconst [K]: L_hi, L_lo, log w, w. a: spherical [K, 2] hi and lo; diagonal [K, D].
// cand_count in; surv_id and surv_r (the candidates' own arrays), kept, dense, logz, kept_weight out, of the rows' places from out0 on.
// list: of settle.cl, of n places; or NULL. hints [block rows]: the best component, for the next screen. m_hi, m_lo, a may be read three elements beyond their ends.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
refine(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d,
       __global const float *m_hi, __global const float *m_lo, __global const float *a, __global const float4 *kconst,
       float log_cut, float log_norm_max, uint hard, __global const uint *cand_count, __global uint *surv_id, __global float *surv_r,
       __global uint *kept, __global uint *dense, __global float2 *logz, __global float *kept_weight, __global uint *hints,
       __global const uint2 *list)
{
    __local square_t part[CAP * GROUP]; // [slot, candidate, lane]
    __local ff ls[ROWS * CAP];
    __local uint ids[ROWS * CAP];

    const uint lid = get_local_id(0);
    const uint slot = lid / LANES;
    const uint lane = lid % LANES;
    uint left = ROWS; // rows to evaluate
#if ALONE
    __local uint several[GROUP], n_several;
    const uint own = get_group_id(0) * GROUP + lid, own_at = out0 + min(own, n - 1);
    const uint own_found = cand_count[own_at], only = surv_id[(ulong)own_at * CAP];
    const int within = TAKEN(own);
    if (lid == 0) n_several = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (within && own_found == 1) {
        surv_r[(ulong)own_at * CAP] = 1.0f;
        kept[own_at] = 1;
        dense[own_at] = 0;
        logz[own_at] = (float2)(0.0f);
        kept_weight[own_at] = hard ? 1.0f : kconst[only].w;
        hints[row0 + ROW(own)] = only;
    } else if (within) {
        several[atomic_inc(&n_several)] = own;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    left = n_several;
#endif
    for (uint done = 0; done < left; done += ROWS) {
#if ALONE
        const int is_row = done + slot < left;
        const uint r = several[min(done + slot, left - 1)];
#else
        const uint r = min((uint)get_group_id(0) * ROWS + slot, n - 1);
        const int is_row = get_group_id(0) * ROWS + slot < n && TAKEN(r);
#endif
        const uint at = out0 + r;
        const uint row = row0 + (is_row ? ROW(r) : 0); // of the block
        const ulong x0 = offset + (ulong)row * pitch;
#if HELD
        // The row's own numbers, on their way before it is known what for.
        float4 held[HELD];
#pragma unroll
        for (uint i = 0; i < HELD; i++) held[i] = row_four(rows, x0, 4 * (lane + i * LANES), d);
#endif
        const uint found = is_row ? cand_count[at] : 0;
        const uint count = found > CAP ? 0 : found;

        for (uint c = 0; c < count; c++) {
            const uint id = surv_id[(ulong)at * CAP + c];
            squares_t s = NO_SQUARES;
#if HELD
#pragma unroll
            for (uint i = 0; i < HELD; i++) {
                const uint f = 4 * (lane + i * LANES);
                if (f >= d) break;
                const float4 x = held[i];
#else
            for (uint f = 4 * lane; f < d; f += 4 * LANES) {
                const float4 x = row_four(rows, x0, f, d);
#endif
                add_squares_of(&s, x, m_hi, m_lo, a, id, f, d);
            }
            part[(slot * CAP + c) * LANES + lane] = squares_total(s);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint c = lane; c < count; c += LANES) {
            square_t q = NO_SQUARE;
            for (uint i = 0; i < LANES; i++) q = square_sum(q, part[(slot * CAP + c) * LANES + i]);
            const uint id = surv_id[(ulong)at * CAP + c];
            const float4 k = kconst[id];
            ls[slot * CAP + c] = ff_sub((ff)(k.x, k.y), whole_square(q, a, id));
            ids[slot * CAP + c] = id;
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); // the lists are about to be overwritten
        if (lane == 0 && is_row) {
            dense[at] = count == 0;
            if (count == 0)
                kept[at] = 0;
            else
                finish_row(ids + slot * CAP, ls + slot * CAP, count, at, kconst, log_cut, log_norm_max, hard, surv_id, surv_r, kept,
                           logz, kept_weight, hints + row);
        }
#if ALONE
        barrier(CLK_LOCAL_MEM_FENCE); // the next rows come where these were
#endif
    }
}
