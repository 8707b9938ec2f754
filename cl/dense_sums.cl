// variants: -DNEAR=1 | -DNEAR=1 -DSQUARES=0 | -DNEAR=1 -DSQUARES=0 -DROW_FOURS=1 -DRM=8 | -DROW_TYPE=2 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DGX=4 -DGY=4 -DRM=1 -DRN=1 | -DGX=16 -DGY=8 -DRM=2 | -DEXACT=1
/*
 * Sums over a group of rows of the dense engine, with the responsibilities of one tile of components.
 *
 *   part[s, k, :] += sum over the group's rows in superchunk s of  w r t [D], w r t^2 [D], w r [1],   t = x - c_k
 *
 *            f ->  GX * RN features
 *        +---------------+
 *     k  |  RM x RN a    |   a work-group owns a tile of the sums of one superchunk and takes its rows in order, STEP at a time
 *        |   work-item   |
 *  GY*RM +---------------+
 *
 * The centres c_k are floats, or one that all components share (NEAR): the host moves the sums to the components' own. Spherical
 * covariances need the squares about a shared centre only summed over the features: w r |t|^2 [1] in place of w r t^2 [D].
 */
#include "ff.clh"
#include "group_row.clh"
#include "rows.clh"
#include "tile.clh"

// GX, GY: work-group shape (default 16 x 16). RM, RN: components and features a work-item (default 4 x 4).
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
#if GX < 1 || GY < 1 || RM < 1 || RN < 1
#error "GX, GY, RM and RN must be positive"
#endif
#if GX % RM != 0 || GX * RN % 4 != 0
#error "RM must divide GX, and four GX * RN"
#endif
// NEAR: 1 for one centre [D] (default 0).
#ifndef NEAR
#define NEAR 0
#endif
// EXACT: 1 sums w r t and w r alone, every term in float-float, about c_hi + c_lo: beside scatter sums (default 0).
#ifndef EXACT
#define EXACT 0
#endif
// SQUARES: 1 for those of each feature, 0 for their sum, or none if EXACT (default 1, or 0).
#ifndef SQUARES
#define SQUARES !EXACT
#endif
#if !SQUARES && !NEAR && !EXACT || EXACT && (NEAR || SQUARES)
#error "sums of squares over all features are about one centre, and exact sums are without squares"
#endif
// Rows a step: as many terms as a float sums before it goes into the float-float.
#define STEP 32
#define TF (GX * RN)
#define TC (GY * RM)
#define GROUP (GX * GY)
// From the first of a work-item's components and features to the others.
#define STEP_OF_COMPONENT(i) OWN(i, 0, GY, RM)
#define STEP_OF_FEATURE(j) OWN(j, 0, GX, RN)

// resp [n, width]: r. norms [n]: |t|^2, if NEAR. c_hi, c_lo [k, d], or c_hi [d] if NEAR. kt0: first component within the tile.
// resume: slot 0 goes on from what it holds; the others start at zero. part [slots, k, 2 d + 1], or [slots, k, d + 2].
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
dense_sums(__global const row_t *rows, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base,
           uint d, uint k, uint k0, uint kt0, uint width, __global const float *c_hi, __global const float *c_lo,
           __global const ff *norms, __global const float *weights, __global const float *resp,
           __global const uint *starts, uint resume, __global ff *part)
{
    __local float xs[STEP * TF] __attribute__((aligned(16)));
    __local float rs[STEP * TC] __attribute__((aligned(16)));
    __local float shares[2 * GROUP];
    __local uint row_ids[STEP];
    __local float row_weights[STEP], row_norms[STEP];
    __local uint step_rows;
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint f0 = get_group_id(0) * TF;
    const uint t0 = kt0 + get_group_id(1) * TC;
    const uint s = get_group_id(2);
    const ulong line = SQUARES ? 2ul * d + 1 : d + 2ul;
    const int go_on = s == 0 && resume;
    const uint c1 = t0 + ly * RUN(RM), f1 = f0 + lx * RUN(RN); // its first component and feature
    __global ff *sums = part + ((ulong)s * k + k0 + c1) * line + f1;
    // A work-item stages rows of one component; the first TC sum its w r and w r |t|^2.
    const uint own = t0 + lid % TC;
    __global ff *out = part + ((ulong)s * k + k0 + own) * line + (line - 1);
    const int whole = f0 == 0 && lid < TC && own < width;
    ff sw = whole && go_on ? out[0] : (ff)(0.0f, 0.0f);
#if !SQUARES
    ff sn = whole && go_on ? *(out - 1) : (ff)(0.0f, 0.0f);
#endif
#if EXACT || !NEAR
    (void)norms;
#endif
#if !EXACT
    (void)c_lo;
#endif

    ff s1[RM][RN];
#if SQUARES
    ff s2[RM][RN];
#endif
#if !NEAR
    float hi[RM][RN];
#endif
#if EXACT
    float lo[RM][RN];
#endif
#pragma unroll
    for (uint i = 0; i < RM; i++)
#pragma unroll
        for (uint j = 0; j < RN; j++) {
            const int inside = c1 + STEP_OF_COMPONENT(i) < width && f1 + STEP_OF_FEATURE(j) < d;
            const ulong at = STEP_OF_COMPONENT(i) * line + STEP_OF_FEATURE(j);
            s1[i][j] = inside && go_on ? sums[at] : (ff)(0.0f, 0.0f);
#if SQUARES
            s2[i][j] = inside && go_on ? sums[at + d] : (ff)(0.0f, 0.0f);
#endif
#if !NEAR
            hi[i][j] = inside ? c_hi[(ulong)(k0 + c1 + STEP_OF_COMPONENT(i)) * d + f1 + STEP_OF_FEATURE(j)] : 0.0f;
#endif
#if EXACT
            lo[i][j] = inside ? c_lo[(ulong)(k0 + c1 + STEP_OF_COMPONENT(i)) * d + f1 + STEP_OF_FEATURE(j)] : 0.0f;
#endif
        }
    const uint end = starts[s + 1];
    for (uint r = starts[s]; r < end;) {
        // The next rows of one chunk of 1024, at most STEP.
        const uint most = min((uint)STEP, end - r), chunk = row_of(list, base, r) / 1024;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint t = lid; t < most; t += GROUP) {
            const uint row = row_of(list, base, r + t);
            row_ids[t] = row;
            row_weights[t] = weights ? weights[row0 + row] : 1.0f;
#if NEAR
            row_norms[t] = norms[r + t].x;
#else
            row_norms[t] = 0.0f;
#endif
            if (row / 1024 == chunk && (t + 1 == most || row_of(list, base, r + t + 1) / 1024 != chunk)) step_rows = t + 1;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint count = step_rows;
        for (uint t = lid; t < STEP * TF / 4; t += GROUP) {
            const uint f = t % (TF / 4) * 4, i = t / (TF / 4);
            float4 x = (float4)(0.0f);
            if (i < count) {
                x = row_four(rows, offset + (ulong)(row0 + row_ids[i]) * pitch, f0 + f, d);
#if NEAR
                x -= float_four(c_hi, 0, f0 + f, d);
#endif
            }
            *(__local float4 *)(xs + i * TF + f) = x;
        }
        float w = 0.0f, wn = 0.0f;
        for (uint t = lid; t < STEP * TC; t += GROUP) {
            const uint i = t / TC;
            float wr = 0.0f;
            if (i < count && own < width) {
                wr = resp[(ulong)(r + i) * width + own] * row_weights[i];
                w += wr;
                wn = fma(wr, row_norms[i], wn);
            }
            rs[t] = wr;
        }
        shares[lid] = w;
        shares[GROUP + lid] = wn;
        barrier(CLK_LOCAL_MEM_FENCE);
#if EXACT
        if (lid < TC)
            for (uint t = 0; t < count; t++) sw = ff_add(sw, rs[t * TC + lid]);
        for (uint t = 0; t < count; t++) {
            float wr[RM], x[RN];
            TAKE(wr, rs + t * TC, ly, GY, RM);
            TAKE(x, xs + t * TF, lx, GX, RN);
            for (uint i = 0; i < RM; i++)
                for (uint j = 0; j < RN; j++) {
                    const ff gap = ff_two_sum(x[j], -hi[i][j]);
                    s1[i][j] = ff_sum(s1[i][j], ff_scale(ff_two_sum(gap.x, gap.y - lo[i][j]), wr[i]));
                }
        }
#else
        if (lid < TC) {
            for (uint i = lid + TC; i < GROUP; i += TC) w += shares[i];
            sw = ff_gather(sw, w);
#if !SQUARES
            for (uint i = lid + TC; i < GROUP; i += TC) wn += shares[GROUP + i];
            sn = ff_gather(sn, wn);
#endif
        }
        float p1[RM][RN];
#if SQUARES
        float p2[RM][RN];
#endif
#pragma unroll
        for (uint i = 0; i < RM; i++)
#pragma unroll
            for (uint j = 0; j < RN; j++) {
                p1[i][j] = 0.0f;
#if SQUARES
                p2[i][j] = 0.0f;
#endif
            }
#pragma unroll 4
        for (uint t = 0; t < STEP; t++) {
            float wr[RM], x[RN];
            TAKE(wr, rs + t * TC, ly, GY, RM);
            TAKE(x, xs + t * TF, lx, GX, RN);
#pragma unroll
            for (uint j = 0; j < RN; j++) {
#if NEAR && SQUARES
                const float square = x[j] * x[j];
#endif
#pragma unroll
                for (uint i = 0; i < RM; i++) {
#if NEAR
                    p1[i][j] = fma(wr[i], x[j], p1[i][j]);
#if SQUARES
                    p2[i][j] = fma(wr[i], square, p2[i][j]);
#endif
#else
                    const float gap = x[j] - hi[i][j];
                    p1[i][j] = fma(wr[i], gap, p1[i][j]);
                    p2[i][j] = fma(wr[i] * gap, gap, p2[i][j]);
#endif
                }
            }
        }
#pragma unroll
        for (uint i = 0; i < RM; i++)
#pragma unroll
            for (uint j = 0; j < RN; j++) {
                s1[i][j] = ff_gather(s1[i][j], p1[i][j]);
#if SQUARES
                s2[i][j] = ff_gather(s2[i][j], p2[i][j]);
#endif
            }
#endif
        r += count;
    }
#pragma unroll
    for (uint i = 0; i < RM; i++)
#pragma unroll
        for (uint j = 0; j < RN; j++) {
            const ulong at = STEP_OF_COMPONENT(i) * line + STEP_OF_FEATURE(j);
            if (c1 + STEP_OF_COMPONENT(i) >= width || f1 + STEP_OF_FEATURE(j) >= d) continue;
            sums[at] = s1[i][j];
#if SQUARES
            sums[at + d] = s2[i][j];
#endif
        }
    if (!whole) return;
    out[0] = sw;
#if !SQUARES
    *(out - 1) = sn;
#endif
}
