// variants: -DROW_TYPE=2 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DGX=8 -DGY=8 -DDT=8 | -DGX=8 -DGY=8 -DRM=8 -DRN=1 -DDT=8
/*
 * Whitening in float-float: y = W t, t = (x - c_hi) - c_lo, for tied and full covariances.
 *
 *   whiten_rows     y of each row about the screen's centre, rounded once to f32: what screen.cl runs on (tied)
 *   whiten_logits   l[i,k] = L_k - 1/2 |W_k (x_i - m_k)|^2, the dense engine's logits of a tile of components
 *
 * W = V S, with S = diag(s) powers of two near the norms of W's columns, so that what is multiplied, V and S t, is of ordinary size
 * whatever the features' units. V is stored transposed, [D, D] with features i down and outputs j along, zero where i > j.
 *
 *                 outputs j ->  GX * RN a tile
 *            +-------------------+
 *   rows     |  RM x RN a        |   features i up to the tile's last output: beyond it V is zero
 *   GY * RM  |  work-item        |
 *            +-------------------+
 *
 * Every product is exact to 2^-46 of itself and every sum to 2^-46 of its terms: |error of y| <= (D + 4) 2^-46 |W| |t|.
 */
#include "ff.clh"
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
#if GX < 1 || GY < 1 || RM < 1 || RN < 1 || DT < 1
#error "GX, GY, RM, RN and DT must be positive"
#endif
#define TR (GY * RM)
#define TJ (GX * RN)
#define GROUP (GX * GY)

// y of the group's rows, which start at starts [TR], for outputs j0 .. j0 + TJ - 1. c_lo may be NULL.
static void outputs(__global const row_t *rows, __local const ulong *starts, __global const float *c_hi,
                    __global const float *c_lo, __global const float *v_hi, __global const float *v_lo,
                    __global const float *scale, uint d, uint j0, __local ff *ts, __local float *hs, __local float *ls,
                    ff y[RM][RN])
{
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    for (uint i = 0; i < RM; i++)
        for (uint j = 0; j < RN; j++) y[i][j] = (ff)(0.0f, 0.0f);
    const uint end = min(j0 + TJ, d);
    for (uint i0 = 0; i0 < end; i0 += DT) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint t = lid; t < TR * DT; t += GROUP) {
            const uint dd = t % DT, r = t / DT, i = i0 + dd;
            ff v = (ff)(0.0f, 0.0f);
            if (i < end) {
                const ff gap = ff_two_sum(ROW_AT(rows, starts[r] + i), -c_hi[i]);
                v = ff_two_sum(gap.x, c_lo ? gap.y - c_lo[i] : gap.y) * scale[i];
            }
            ts[dd * (TR + 1) + r] = v;
        }
        for (uint t = lid; t < TJ * DT; t += GROUP) {
            const uint j = t % TJ, dd = t / TJ;
            const int inside = i0 + dd < end && j0 + j < d;
            const ulong at = (ulong)(i0 + dd) * d + j0 + j;
            hs[t] = inside ? v_hi[at] : 0.0f;
            ls[t] = inside ? v_lo[at] : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint dd = 0; dd < DT; dd++)
            for (uint i = 0; i < RM; i++) {
                const ff t = ts[dd * (TR + 1) + ly + i * GY];
                for (uint j = 0; j < RN; j++) {
                    const float hi = hs[dd * TJ + lx + j * GX];
                    const float p = t.x * hi;
                    const float e = fma(t.x, hi, -p) + (t.x * ls[dd * TJ + lx + j * GX] + t.y * hi);
                    y[i][j] = ff_sum(y[i][j], (ff)(p, e));
                }
            }
    }
}

// Where the group's rows start; those past the end are the last one again.
static void find_rows(__local ulong *starts, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base,
                      uint first, uint n)
{
    const uint lid = get_local_id(1) * GX + get_local_id(0);
    for (uint t = lid; t < TR; t += GROUP) {
        const uint at = base + min(first + t, n - 1);
        starts[t] = offset + (ulong)(row0 + (list ? list[at] : at)) * pitch;
    }
}

// Rows row0 .. row0 + n - 1. out [n, d].
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
whiten_rows(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint n, uint d,
            __global const float *centre, __global const float *v_hi, __global const float *v_lo,
            __global const float *scale, __global float *out)
{
    __local ulong starts[TR];
    __local ff ts[DT * (TR + 1)];
    __local float hs[DT * TJ], ls[DT * TJ];
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint j0 = get_group_id(0) * TJ;
    const uint first = get_group_id(1) * TR;
    ff y[RM][RN];
    find_rows(starts, offset, pitch, row0, 0, 0, first, n);
    outputs(rows, starts, centre, 0, v_hi, v_lo, scale, d, j0, ts, hs, ls, y);
    for (uint i = 0; i < RM; i++)
        for (uint j = 0; j < RN; j++) {
            const uint r = first + ly + i * GY, f = j0 + lx + j * GX;
            if (r < n && f < d) out[(ulong)r * d + f] = y[i][j].x;
        }
}

// Rows i0 .. of the group of n, row i being row list[base + i] of the slice, or base + i without a list; components k0 + c0 ..,
// one a work-group. m_hi, m_lo [K, D]; v_hi, v_lo [K, D, D] and scale [K, D], or of one matrix if tied; kconst [K]: L_hi, L_lo, log w, w.
// logits [n, width], of components k0 .. k0 + width - 1.
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
whiten_logits(__global const row_t *rows, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base,
              uint i0, uint n, uint d, uint k0, uint c0, uint width, uint tied, __global const float *m_hi,
              __global const float *m_lo, __global const float *v_hi, __global const float *v_lo,
              __global const float *scale, __global const float4 *kconst, __global float2 *logits)
{
    __local ulong starts[TR];
    __local ff ts[DT * (TR + 1)];
    __local float hs[DT * TJ], ls[DT * TJ];
    __local ff part[TR * GX];
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint c = c0 + get_group_id(0);
    const uint first = i0 + get_group_id(1) * TR;
    const ulong m0 = (ulong)(k0 + c) * d;
    const ulong s0 = tied ? 0 : m0;
    ff q[RM], y[RM][RN];
    for (uint i = 0; i < RM; i++) q[i] = (ff)(0.0f, 0.0f);
    find_rows(starts, offset, pitch, row0, list, base, first, n);
    for (uint j0 = 0; j0 < d; j0 += TJ) {
        outputs(rows, starts, m_hi + m0, m_lo + m0, v_hi + s0 * d, v_lo + s0 * d, scale + s0, d, j0, ts, hs, ls, y);
        for (uint i = 0; i < RM; i++)
            for (uint j = 0; j < RN; j++) q[i] = ff_sum(q[i], ff_square(y[i][j]));
    }
    for (uint i = 0; i < RM; i++) part[(ly + i * GY) * GX + lx] = q[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint r = lid; r < TR; r += GROUP) {
        if (first + r >= n) continue;
        ff sum = part[r * GX];
        for (uint i = 1; i < GX; i++) sum = ff_sum(sum, part[r * GX + i]);
        const float4 k = kconst[k0 + c];
        logits[(ulong)(first + r) * width + c] = ff_sub((ff)(k.x, k.y), ff_finite(sum) * 0.5f);
    }
}
