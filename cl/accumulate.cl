// variants: -DROW_TYPE=2 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DEXACT=1
/*
 * Sums of the sparse survivors, and the folding of partial sums.
 *
 *   part[s, k, :] = sums over the entries of component k in superchunk s, in row order, of
 *                   w r t [D], w r t^2 [D], w r [1],   t = (x - c_hi) - c_lo
 *
 * A work-item owns one (s, k, feature). Floats are added at most 16 at a time and never across a chunk of 1024 rows, then go
 * into a float-float; so the sums depend on the rows' numbers, not on how they were cut into blocks.
 */
#include "ff.clh"
#include "rows.clh"

// CAP: most survivors of a row (default 16).
#ifndef CAP
#define CAP 16
#endif
#if CAP < 1
#error "CAP must be positive"
#endif

// BATCH: entries that are fetched together (default 8).
#ifndef BATCH
#define BATCH 8
#endif

// EXACT: 1 sums w r t and w r alone, every term in float-float: beside scatter sums (default 0).
#ifndef EXACT
#define EXACT 0
#endif

// starts [k * slots + 1]: the lists of bins.cl. resume: slot 0 goes on from what it holds. row0 is a multiple of 1024.
// part [slots, k, 2 d + 1].
__kernel void accumulate(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint d, uint k, uint slots,
                         __global const float *c_hi, __global const float *c_lo, __global const float *weights,
                         __global const uint *values, __global const float *surv_r, __global const uint *starts,
                         uint resume, __global float2 *part)
{
    const ulong i = get_global_id(0);
    const uint f = (uint)(i % (d + 1));
    const ulong pair = i / (d + 1);
    const uint c = (uint)(pair % k);
    const uint s = (uint)(pair / k);
    if (s >= slots) return;

    const ulong width = 2ul * d + 1;
    __global float2 *out = part + ((ulong)s * k + c) * width;
    const int whole = f == d; // the work-item that sums w r alone
    ff s1 = (ff)(0.0f, 0.0f), s2 = (ff)(0.0f, 0.0f);
    if (s == 0 && resume) {
        s1 = whole ? out[2ul * d] : out[f];
        if (!whole) s2 = out[(ulong)d + f];
    }
    const float hi = whole ? 0.0f : c_hi[(ulong)c * d + f];
    const float lo = whole ? 0.0f : c_lo[(ulong)c * d + f];
    const uint end = starts[c * slots + s + 1];
#if EXACT
    for (uint e = starts[c * slots + s]; e < end; e++) {
        const uint value = values[e];
        const uint row = value / CAP;
        const float wr = surv_r[value] * (weights ? weights[row0 + row] : 1.0f);
        ff t = (ff)(1.0f, 0.0f);
        if (!whole) {
            const ff gap = ff_two_sum(ROW_AT(rows, offset + (ulong)(row0 + row) * pitch + f), -hi);
            t = ff_two_sum(gap.x, gap.y - lo);
        }
        s1 = ff_sum(s1, ff_scale(t, wr));
    }
#else
    float p1 = 0.0f, p2 = 0.0f;
    uint terms = 0, chunk = 0;
    // What a batch of entries needs is on its way before the first of it is added.
    for (uint e0 = starts[c * slots + s]; e0 < end; e0 += BATCH) {
        uint value[BATCH];
        float wr[BATCH], x[BATCH];
        for (uint b = 0; b < BATCH; b++) value[b] = values[min(e0 + b, end - 1)];
        for (uint b = 0; b < BATCH; b++) {
            const uint row = value[b] / CAP;
            wr[b] = surv_r[value[b]];
            if (weights) wr[b] *= weights[row0 + row];
            x[b] = whole ? 0.0f : ROW_AT(rows, offset + (ulong)(row0 + row) * pitch + f);
        }
        for (uint b = 0; b < BATCH; b++) {
            if (e0 + b >= end) break;
            const uint row_chunk = value[b] / CAP / 1024;
            if (terms == 16 || (terms > 0 && chunk != row_chunk)) {
                s1 = ff_add(s1, p1);
                s2 = ff_add(s2, p2);
                p1 = p2 = 0.0f;
                terms = 0;
            }
            chunk = row_chunk;
            terms++;
            const float t = whole ? 1.0f : (x[b] - hi) - lo;
            const float wrt = wr[b] * t;
            p1 += wrt;
            p2 = fma(wrt, t, p2);
        }
    }
    s1 = ff_add(s1, p1);
    s2 = ff_add(s2, p2);
#endif
    if (whole) {
        out[2ul * d] = s1;
    } else {
        out[f] = s1;
        out[(ulong)d + f] = s2;
    }
}

// Adds the first `slots` slots of part [., count] to total [count], in order; `move`: slot `slots` becomes slot 0.
__kernel void fold(__global float2 *part, __global float2 *total, ulong count, uint slots, uint move)
{
    const ulong i = get_global_id(0);
    if (i >= count) return;
    ff sum = total[i];
    for (uint s = 0; s < slots; s++) sum = ff_sum(sum, part[s * count + i]);
    total[i] = sum;
    if (move) part[i] = part[slots * count + i];
}

// Lines line0 .. line0 + lines - 1 of total [., 2 d + 1] without the features of their squares: out [lines, d + 2] of w r t, the sum
// of w r t^2 over them, w r.
__kernel void narrow(__global const float2 *total, uint line0, uint lines, uint d, __global float2 *out)
{
    const ulong i = get_global_id(0);
    const uint f = (uint)(i % (d + 2));
    const ulong line = i / (d + 2);
    if (line >= lines) return;
    __global const float2 *in = total + (line0 + line) * (2ul * d + 1);
    ff sum = in[f < d ? f : 2 * d];
    if (f == d) {
        sum = in[d];
        for (uint j = 1; j < d; j++) sum = ff_sum(sum, in[d + j]);
    }
    out[i] = sum;
}
