// variants: -DCHUNK=2048 | -DGROUP=256
/*
 * Sums over each chunk of rows of the block, those from row0 on, a multiple of CHUNK:
 * out[chunk] = (w log Z hi, lo, w hi, lo, dropped hi, lo, survivors, rows of the dense engine),
 * dropped = w rho (1 - weights of the kept components), an upper bound; rho is the row's cut. Floats are stored as their bits. What is known of
 * rows lies at their places (place, of places.clh, or NULL), and of settled ones follows from hints [block rows], kconst of refine.cl and hard;
 * log Z of all lies in row_logz [n], or NULL, and then settled ones have none. taken: how many rows took places from either end, as settle.cl counts them,
 * where sums set out before that is known: if any did, they come to nothing, for all that is read here may be anything. NULL: the host knows.
 */
#include "ff.clh"
#include "places.clh"
#include "row_cut.clh"

// CHUNK: rows a chunk, FGMM_CHUNK_ROWS (default 1024).
#ifndef CHUNK
#define CHUNK 1024
#endif
// GROUP: work-items a chunk, a power of two (default 64).
#ifndef GROUP
#define GROUP 64
#endif
#if CHUNK % GROUP || (GROUP & (GROUP - 1))
#error "GROUP must be a power of two that divides CHUNK"
#endif

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
row_sums(__global const float *weights, uint row0, uint n, float log_cut, float log_norm_max, __global const float2 *logz,
         __global const uint *kept, __global const uint *dense, __global const float *kept_weight, __global const uint *hints,
         __global const float4 *kconst, uint hard, __global const uint *place, __global const float2 *row_logz, __global const uint2 *taken,
         __global uint *out)
{
    __local ff likelihood[GROUP], weight[GROUP], dropped[GROUP];
    __local uint survivors[GROUP], dense_rows[GROUP];
    const uint lid = get_local_id(0);
    ff sum_l = (ff)(0.0f, 0.0f), sum_w = sum_l, sum_d = sum_l;
    uint sum_s = 0, sum_r = 0;
    if (taken && (taken[0].x || taken[0].y)) n = 0;
    for (uint i = lid; i < CHUNK; i += GROUP) {
        const uint row = get_group_id(0) * CHUNK + i;
        if (row >= n) break;
        const float w = weights ? weights[row0 + row] : 1.0f;
        const uint at = place_of(place, row);
        const int settled = at == SETTLED;
        float share = 1.0f; // of the weights, that the row's survivors have
        if (settled && !hard) share = kconst[hints[row0 + row]].w;
        if (!settled) share = kept_weight[at];
        const ff l = row_logz ? row_logz[row] : settled ? (ff)(0.0f, 0.0f) : logz[at];
        if (w > 0.0f) sum_l = ff_sum(sum_l, ff_scale(l, w));
        sum_w = ff_add(sum_w, w);
        const float rho = exp(row_cut(log_cut, log_norm_max, l.x));
        sum_d = ff_add(sum_d, w * rho * fmax(0.0f, 1.0f - share));
        sum_s += settled ? 1 : kept[at];
        sum_r += settled ? 0 : dense[at];
    }
    likelihood[lid] = sum_l;
    weight[lid] = sum_w;
    dropped[lid] = sum_d;
    survivors[lid] = sum_s;
    dense_rows[lid] = sum_r;
    for (uint step = GROUP / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) {
            likelihood[lid] = ff_sum(likelihood[lid], likelihood[lid + step]);
            weight[lid] = ff_sum(weight[lid], weight[lid + step]);
            dropped[lid] = ff_sum(dropped[lid], dropped[lid + step]);
            survivors[lid] += survivors[lid + step];
            dense_rows[lid] += dense_rows[lid + step];
        }
    }
    if (lid == 0) {
        __global uint *o = out + (ulong)(row0 / CHUNK + get_group_id(0)) * 8;
        o[0] = as_uint(likelihood[0].x);
        o[1] = as_uint(likelihood[0].y);
        o[2] = as_uint(weight[0].x);
        o[3] = as_uint(weight[0].y);
        o[4] = as_uint(dropped[0].x);
        o[5] = as_uint(dropped[0].y);
        o[6] = survivors[0];
        o[7] = dense_rows[0];
    }
}
