// variants: -DTIED=1 | -DDENSE=1 | -DDENSE=1 -DTIED=1 | -DROW_TYPE=2 -DTIED=1 | -DROW_TYPE=3 | -DROW_TYPE=4 -DDENSE=1 | -DROW_TYPE=5 | -DGX=8 -DGY=8 -DRM=2 -DRN=2
/*
 * Scatter sums for tied and full covariances, in float-float with exact products: a direction may be so tight that its
 * variance is one part in millions of the features' own.
 *
 *   full:  part[s, k, (a, b)] = sum over the rows of superchunk s of w r_k t_a t_b,  t = (x - c_hi_k) - c_lo_k,  a >= b
 *   tied:  part[s, (a, b)]    = the same, summed over each row's components too, in the order of rows, then components
 *
 *               b ->  GX * RN features a tile
 *           +-----------+
 *    a      |  RM x RN  |      a work-group owns one tile of the lower triangle in one superchunk (of one
 *  GY * RM  |           |      component, if full) and takes its entries in order, STEP at a time
 *           +-----------+
 *
 * Entries are the survivors of rows, or (DENSE) cells of a dense tile of responsibilities. Those of w r = 0 are passed
 * over. Every term is added to a normalised float-float, so the bits do not depend on where steps, groups, slices or
 * blocks end.
 */
#include "ff.clh"
#include "group_row.clh"
#include "rows.clh"

// TIED: 1 for one matrix over all components (default 0). DENSE: 1 for a dense tile (default 0).
#ifndef TIED
#define TIED 0
#endif
#ifndef DENSE
#define DENSE 0
#endif
// GX, GY: work-group shape (default 16 x 16). RM, RN: features a work-item, with GY * RM = GX * RN (default 4 x 4).
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
// CAP: most survivors of a row (default 16).
#ifndef CAP
#define CAP 16
#endif
#if GX < 1 || GY < 1 || RM < 1 || RN < 1 || CAP < 1
#error "GX, GY, RM, RN and CAP must be positive"
#endif
#if GY * RM != GX * RN
#error "a tile must be square"
#endif
#define STEP 8
#define TF (GX * RN)
#define GROUP (GX * GY)

// An entry: a row of the slice, its component and w r.
typedef struct entry {
    uint row, component;
    float wr;
} entry;

#if DENSE
// Row r of the group and column c of resp [., width]; row r of the group is row list[base + r] of the slice, or base + r.
static inline entry entry_at(__global const uint *list, uint base, uint k0, uint width, __global const float *weights,
                             __global const float *resp, uint row0, uint r, uint c)
{
    const uint row = row_of(list, base, r);
    return (entry){row, k0 + c, resp[(ulong)r * width + c] * (weights ? weights[row0 + row] : 1.0f)};
}
#else
static inline entry entry_at(__global const float *weights, __global const uint *surv_id, __global const float *surv_r,
                             uint row0, uint value)
{
    const uint row = value / CAP;
    return (entry){row, surv_id[value], surv_r[value] * (weights ? weights[row0 + row] : 1.0f)};
}
#endif

// A group's number is (pair * tiles + tile), pair = component * slots + s, or s if tied.
// resume: 1 where slot 0 goes on from what it holds, 2 where all do; else they start at zero.
// part [slots, matrices, d (d + 1) / 2], where matrices is k, or 1 if tied.
// DENSE: starts [slots + 1] are the rows of the group in each superchunk; full takes the tile's components, whose first
// is k0.
// else full: starts [k * slots + 1] from segments(), of sorted values; tied: starts [n + 1] are each row's first entry,
// values in order of rows, and superchunk s holds the rows from s * grain - skip on, all rows if grain is 0.
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
scatter(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint d, uint k, uint slots, uint tiles,
        __global const float *c_hi, __global const float *c_lo,
#if DENSE
        __global const uint *list, uint base, uint k0, uint width, __global const float *weights,
        __global const float *resp, __global const uint *starts,
#else
        __global const float *weights, __global const uint *surv_id, __global const float *surv_r,
        __global const uint *values, __global const uint *starts, uint n, ulong grain, ulong skip,
#endif
        uint resume, __global float2 *part)
{
    __local float2 as[STEP * TF], bs[STEP * TF]; // w r t of the rows' features a, t of the features b
    __local uint queue_row[GROUP], queue_component[GROUP], wanted[GROUP];
    __local float queue_wr[GROUP];

    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint pair = get_group_id(0) / tiles;
    uint ta = 0, tb = get_group_id(0) % tiles; // the tile's row and column in the triangle of tiles
    while (tb > ta) tb -= ++ta;
    const uint s = pair % slots;
    const uint c = pair / slots; // 0 if tied

#if DENSE
    const uint begin = starts[s] * (TIED ? width : 1), end = starts[s + 1] * (TIED ? width : 1);
    const uint matrix = TIED ? 0 : k0 + c;
#elif TIED
    const uint begin = starts[s == 0 ? 0 : min((ulong)n, s * grain - skip)];
    const uint end = starts[s + 1 == slots ? n : min((ulong)n, (s + 1) * grain - skip)];
    const uint matrix = c;
#else
    const uint begin = starts[pair], end = starts[pair + 1];
    const uint matrix = c;
#endif
    const ulong cells = (ulong)d * (d + 1) / 2;
    __global float2 *out = part + ((ulong)s * (TIED ? 1 : k) + matrix) * cells;
    const int go_on = resume == 2 || (resume == 1 && s == 0);

    ff sum[RM][RN];
    for (uint i = 0; i < RM; i++)
        for (uint j = 0; j < RN; j++) {
            const uint a = ta * TF + ly + i * GY, b = tb * TF + lx + j * GX;
            sum[i][j] = go_on && a < d && b <= a ? out[(ulong)a * (a + 1) / 2 + b] : (ff)(0.0f, 0.0f);
        }

    for (uint first = begin; first < end; first += GROUP) {
        const uint at = min(first + lid, end - 1);
#if DENSE
        entry mine = entry_at(list, base, k0, width, weights, resp, row0, TIED ? at / width : at, TIED ? at % width : c);
#else
        entry mine = entry_at(weights, surv_id, surv_r, row0, values[at]);
#endif
        if (first + lid >= end) mine.wr = 0.0f;
        // Prefix sums of what is wanted give each entry its place.
        barrier(CLK_LOCAL_MEM_FENCE);
        uint place = mine.wr != 0.0f;
        wanted[lid] = place;
        for (uint step = 1; step < GROUP; step *= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            const uint before = lid >= step ? wanted[lid - step] : 0;
            barrier(CLK_LOCAL_MEM_FENCE);
            place += before;
            wanted[lid] = place;
        }
        if (mine.wr != 0.0f) {
            queue_row[place - 1] = mine.row;
            queue_component[place - 1] = mine.component;
            queue_wr[place - 1] = mine.wr;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint total = wanted[GROUP - 1];
        for (uint e0 = 0; e0 < total; e0 += STEP) {
            const uint count = min((uint)STEP, total - e0);
            for (uint t = lid; t < 2 * count * TF; t += GROUP) {
                const uint e = t / TF % count, f = (t < count * TF ? ta : tb) * TF + t % TF;
                ff v = (ff)(0.0f, 0.0f);
                if (f < d) {
                    const ulong m = (ulong)queue_component[e0 + e] * d + f;
                    const float x = ROW_AT(rows, offset + (ulong)(row0 + queue_row[e0 + e]) * pitch + f);
                    const ff gap = ff_two_sum(x, -c_hi[m]);
                    v = ff_two_sum(gap.x, gap.y - c_lo[m]);
                }
                if (t < count * TF)
                    as[t] = ff_scale(v, queue_wr[e0 + e]);
                else
                    bs[t - count * TF] = v;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            for (uint e = 0; e < count; e++)
                for (uint i = 0; i < RM; i++) {
                    const ff g = as[e * TF + ly + i * GY];
                    for (uint j = 0; j < RN; j++) {
                        const ff t = bs[e * TF + lx + j * GX];
                        const float p = g.x * t.x;
                        sum[i][j] = ff_sum(sum[i][j], (ff)(p, fma(g.x, t.x, -p) + (g.x * t.y + g.y * t.x)));
                    }
                }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
    }
    for (uint i = 0; i < RM; i++)
        for (uint j = 0; j < RN; j++) {
            const uint a = ta * TF + ly + i * GY, b = tb * TF + lx + j * GX;
            if (a < d && b <= a) out[(ulong)a * (a + 1) / 2 + b] = sum[i][j];
        }
}
