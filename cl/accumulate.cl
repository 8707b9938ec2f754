// variants: -DROW_FOURS=1 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 -DROW_FOURS=1 | -DROW_TYPE=5 -DROW_FOURS=1 | -DEXACT=1 | -DROW_TYPE=2 -DEXACT=1
/*
 * Sums of the sparse survivors.
 *
 *   part[s, k, :] = sums over the entries of component k in superchunk s, in row order, of
 *                   w r t [D], w r t^2 [D], w r [1],   t = (x - c_hi) - c_lo
 *
 * A work-item owns one (s, k, feature or four of them). Floats are added 16 at a time, then go into a float-float. Where a launch ends within a
 * superchunk, floats under way go on in the next; or, without room for them, none is added across a chunk of 1024 rows, where launches end. So the
 * sums depend on the rows' numbers, not on how they were cut into blocks.
 */
#include "ff.clh"
#include "places.clh"
#include "rows.clh"

// BATCH: entries that are fetched together (default 8).
#ifndef BATCH
#define BATCH 8
#endif

// EXACT: 1 sums w r t and w r alone, every term in float-float: beside scatter sums (default 0).
#ifndef EXACT
#define EXACT 0
#endif

// Features of a work-item: four at once where rows can be read so, which stay as they are stored until they are added.
#if ROW_FOURS && !EXACT
typedef float4 some;
typedef four_t stored;
#define WIDTH 4
#define STORED_AT(rows, i) ROW_STORED_FOUR(rows, i)
#define FLOATS_OF(x) FOUR_FLOATS(x)
#define FLOATS_AT(values, i) (*(__global const float4 *)((values) + (i)))
#define ELEMENT(v, i) ((i) == 0 ? (v).x : (i) == 1 ? (v).y : (i) == 2 ? (v).z : (v).w)
#else
typedef float some, stored;
#define WIDTH 1
#define STORED_AT(rows, i) ROW_AT(rows, i)
#define FLOATS_OF(x) (x)
#define FLOATS_AT(values, i) ((values)[i])
#define ELEMENT(v, i) (v)
#endif

// A float-float of each.
typedef struct {
    some hi, lo;
} some_sums;

#if !EXACT
static inline some_sums some_add(some_sums a, some b)
{
    const some s = a.hi + b;
    const some t = s - a.hi;
    const some e = ((a.hi - (s - t)) + (b - t)) + a.lo;
    some_sums out;
    out.hi = s + e;
    out.lo = e - (out.hi - s);
    return out;
}
#endif

static inline some_sums some_load(__global const float2 *from)
{
    some_sums out;
#if WIDTH == 4
    out.hi = (float4)(from[0].x, from[1].x, from[2].x, from[3].x);
    out.lo = (float4)(from[0].y, from[1].y, from[2].y, from[3].y);
#else
    out.hi = from[0].x;
    out.lo = from[0].y;
#endif
    return out;
}

// r of an entry of bins.cl. Settled rows need not be looked for.
static inline float resp_of(uint value, __global const uint *place, __global const float *surv_r)
{
    if (!place) return surv_r[value];
    return value & SETTLED_BIT ? 1.0f : surv_r[place[value / CAP] * CAP + value % CAP];
}

static inline void some_store(some_sums s, uint count, __global float2 *to)
{
    for (uint i = 0; i < count; i++) to[i] = (float2)(ELEMENT(s.hi, i), ELEMENT(s.lo, i));
}

// Of a line [2 d + 1] what is of feature f and so on, or, in s1, what is of w r alone.
static inline void line_load(__global const float2 *line, uint f, uint d, int whole, some_sums *s1, some_sums *s2)
{
    if (whole) {
        s1->hi = (some)(line[2ul * d].x);
        s1->lo = (some)(line[2ul * d].y);
    } else {
        *s1 = some_load(line + f);
        *s2 = some_load(line + d + f);
    }
}

static inline void line_store(some_sums s1, some_sums s2, uint f, uint d, int whole, __global float2 *line)
{
    if (whole) {
        some_store(s1, 1, line + 2ul * d);
    } else {
        some_store(s1, WIDTH, line + f);
        some_store(s2, WIDTH, line + d + f);
    }
}

// starts [k * chunks + 1]: the lists of bins.cl, of which those of superchunks chunk0 .. chunk0 + slots - 1 are summed. resume: slot 0 goes
// on from what it holds. row0 is a multiple of 1024. part [slots, k, 2 d + 1]. held: a slot of part for floats under way and how many were
// added in each, of slot 0 if it resumes and of the last if it goes on; 0: there is none. place: of places.clh, or NULL; surv_r is kept at the
// places. Work-items: d / WIDTH to each of k slots lists, then one each for w r.
__kernel void accumulate(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint d, uint k, uint slots,
                         uint chunk0, uint chunks, __global const uint *place, __global const float *c_hi,
                         __global const float *c_lo, __global const float *weights, __global const uint *values,
                         __global const float *surv_r, __global const uint *starts, uint resume, uint held, uint goes_on, __global float2 *part)
{
    const ulong i = get_global_id(0), lists = (ulong)k * slots, runs = d / WIDTH;
    const int whole = i >= lists * runs; // sums w r alone
    const ulong pair = whole ? i - lists * runs : i / runs;
    const uint f = whole ? 0 : (uint)(i % runs) * WIDTH;
    const uint c = (uint)(pair % k);
    const uint s = (uint)(pair / k);
    if (s >= slots) return;

    const ulong width = 2ul * d + 1;
    __global float2 *out = part + ((ulong)s * k + c) * width, *way = part + ((ulong)held * k + c) * width;
    some_sums s1, s2, way1, way2; // way: a float each, and how many it is made of
    s1.hi = s1.lo = s2.hi = s2.lo = way1.hi = way1.lo = way2.hi = way2.lo = (some)(0.0f);
    if (s == 0 && resume) {
        line_load(out, f, d, whole, &s1, &s2);
        if (held) line_load(way, f, d, whole, &way1, &way2);
    }
    const some hi = whole ? (some)(0.0f) : FLOATS_AT(c_hi, (ulong)c * d + f);
    const some lo = whole ? (some)(0.0f) : FLOATS_AT(c_lo, (ulong)c * d + f);
    const uint list = c * chunks + chunk0 + s, from = starts[list], end = starts[list + 1];
    rows += offset + f;
#if EXACT
    for (uint e = from; e < end; e++) {
        const uint value = values[e];
        const uint row = value / CAP;
        const float wr = resp_of(value, place, surv_r) * (weights ? weights[row0 + row] : 1.0f);
        ff t = (ff)(1.0f, 0.0f);
        if (!whole) {
            const ff gap = ff_two_sum(STORED_AT(rows, (ulong)(row0 + row) * pitch), -hi);
            t = ff_two_sum(gap.x, gap.y - lo);
        }
        const ff sum = ff_sum((ff)(s1.hi, s1.lo), ff_scale(t, wr));
        s1.hi = sum.x;
        s1.lo = sum.y;
    }
#else
    const uint chunk_shift = held ? 31 : 10;
    some p1 = way1.hi, p2 = way2.hi;
    uint terms = (uint)ELEMENT(way1.lo, 0), chunk = 0, value[BATCH];
    // What a batch of entries needs is on its way before the first of it is added, and so is where the next one's rows lie.
    for (uint b = 0; b < BATCH && from < end; b++) value[b] = values[min(from + b, end - 1)];
    for (uint e0 = from; e0 < end; e0 += BATCH) {
        uint row[BATCH];
        float wr[BATCH];
        stored x[BATCH];
        for (uint b = 0; b < BATCH; b++) {
            row[b] = (value[b] & ~SETTLED_BIT) / CAP;
            wr[b] = resp_of(value[b], place, surv_r);
            if (weights) wr[b] *= weights[row0 + row[b]];
            x[b] = whole ? (stored)(0) : STORED_AT(rows, (ulong)(row0 + row[b]) * pitch);
        }
        for (uint b = 0; b < BATCH; b++) value[b] = values[min(e0 + BATCH + b, end - 1)];
        for (uint b = 0; b < BATCH; b++) {
            if (e0 + b >= end) break;
            const uint row_chunk = row[b] >> chunk_shift;
            if (terms == 16 || (terms > 0 && chunk != row_chunk)) {
                s1 = some_add(s1, p1);
                s2 = some_add(s2, p2);
                p1 = p2 = (some)(0.0f);
                terms = 0;
            }
            chunk = row_chunk;
            terms++;
            const some t = whole ? (some)(1.0f) : (FLOATS_OF(x[b]) - hi) - lo;
            const some wrt = wr[b] * t;
            p1 += wrt;
            p2 = fma(wrt, t, p2);
        }
    }
    if (goes_on && s == slots - 1) {
        way1.hi = p1;
        way2.hi = p2;
        way1.lo = way2.lo = (some)((float)terms);
        line_store(way1, way2, f, d, whole, way);
    } else {
        s1 = some_add(s1, p1);
        s2 = some_add(s2, p2);
    }
#endif
    line_store(s1, s2, f, d, whole, out);
}
