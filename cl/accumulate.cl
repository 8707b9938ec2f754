// variants: -DROW_FOURS=1 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 -DROW_FOURS=1 | -DROW_TYPE=5 -DROW_FOURS=1 | -DEXACT=1 | -DROW_TYPE=2 -DEXACT=1
/*
 * Sums of the sparse survivors.
 *
 *   part[s, k, :] = sums over the entries of component k in superchunk s, in row order, of
 *                   w r t [D], w r t^2 [D], w r [1],   t = (x - c_hi) - c_lo
 *
 * A work-item owns one (s, k, feature or four of them). Floats are added 16 at a time, then go into a float-float. Where a launch ends within a
 * superchunk, floats under way go on in the next. So the sums depend on the rows' numbers, not on how they were cut into blocks.
 */
#include "ff.clh"
#include "places.clh"
#include "rows.clh"

// BATCH: entries that are fetched together, 8 or 16 (default 8 of f32 rows, 16 of narrower ones).
#ifndef BATCH
#define BATCH (ROW_TYPE == 0 ? 8 : 16)
#endif
#if BATCH != 8 && BATCH != 16
#error "BATCH must be 8 or 16"
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

static inline void some_store(some_sums s, __global float2 *to)
{
    for (uint i = 0; i < WIDTH; i++) to[i] = (float2)(ELEMENT(s.hi, i), ELEMENT(s.lo, i));
}

// starts [k * chunks + 1]: the lists of bins.cl, of which those of superchunks chunk0 .. chunk0 + slots - 1 are summed. resume: slot 0 goes
// on from what it holds. part [slots, k, 2 d + 1]. way: as many slots, of which number `held` is for floats under way, of slot 0 if it resumes and
// of the last if it goes on, and beside those of w r t for how many were added; not with EXACT. place: of places.clh, or NULL; surv_r is kept at
// the places. Work-items: d / WIDTH to each of k slots lists, of which the first sums w r, too.
__kernel void accumulate(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint d, uint k, uint slots,
                         uint chunk0, uint chunks, __global const uint *place, __global const float *c_hi,
                         __global const float *c_lo, __global const float *weights, __global const uint *values,
                         __global const float *surv_r, __global const uint *starts, uint resume, uint held, uint goes_on,
                         __global float2 *way, __global float2 *part)
{
    const uint runs = d / WIDTH, f = (uint)(get_global_id(0) % runs) * WIDTH;
    const ulong pair = get_global_id(0) / runs;
    const uint c = (uint)(pair % k), s = (uint)(pair / k);
    if (s >= slots) return;

    const ulong width = 2ul * d + 1;
    __global float2 *out = part + ((ulong)s * k + c) * width;
    ff s0 = (ff)(0.0f, 0.0f);
    some_sums s1, s2;
    s1.hi = s1.lo = s2.hi = s2.lo = (some)(0.0f);
    if (s == 0 && resume) {
        if (f == 0) s0 = out[2ul * d];
        s1 = some_load(out + f);
        s2 = some_load(out + d + f);
    }
    const some hi = FLOATS_AT(c_hi, (ulong)c * d + f);
    const some lo = FLOATS_AT(c_lo, (ulong)c * d + f);
    const uint list = c * chunks + chunk0 + s, end = starts[list + 1];
    uint e = starts[list];
    rows += offset + f;
#if EXACT
    for (; e < end; e++) {
        const uint value = values[e];
        const uint row = value / CAP;
        const float wr = resp_of(value, place, surv_r) * (weights ? weights[row0 + row] : 1.0f);
        const ff gap = ff_two_sum(STORED_AT(rows, (ulong)(row0 + row) * pitch), -hi);
        const ff sum = ff_sum((ff)(s1.hi, s1.lo), ff_scale(ff_two_sum(gap.x, gap.y - lo), wr));
        s0 = ff_add(s0, wr);
        s1.hi = sum.x;
        s1.lo = sum.y;
    }
#else
    // Floats under way, and how many each is made of.
    float p0 = 0.0f;
    some p1 = (some)(0.0f), p2 = p1;
    uint terms = 0, value[BATCH];
    way += ((ulong)held * k + c) * width;
    if (s == 0 && resume) {
        if (f == 0) p0 = way[2ul * d].x;
        const some_sums way1 = some_load(way + f);
        p1 = way1.hi;
        p2 = some_load(way + d + f).hi;
        terms = (uint)ELEMENT(way1.lo, 0);
    }
    // What a batch of entries needs is on its way before the first of it is added, and so is where the next one's rows lie.
    for (uint b = 0; b < BATCH && e < end; b++) value[b] = values[min(e + b, end - 1)];
    while (e < end) {
        if (terms == 16) {
            s0 = ff_add(s0, p0);
            s1 = some_add(s1, p1);
            s2 = some_add(s2, p2);
            p0 = 0.0f;
            p1 = p2 = (some)(0.0f);
            terms = 0;
        }
        // A batch ends where sixteen do: what is beyond has no weight.
        const uint count = min(BATCH - terms % BATCH, end - e);
        float wr[BATCH];
        stored x[BATCH];
        for (uint b = 0; b < BATCH; b++) {
            const uint row = row0 + (value[b] & ~SETTLED_BIT) / CAP;
            wr[b] = b < count ? resp_of(value[b], place, surv_r) : 0.0f;
            if (weights) wr[b] *= weights[row];
            x[b] = STORED_AT(rows, row * pitch);
        }
        e += count;
        terms += count;
        for (uint b = 0; b < BATCH; b++) value[b] = values[min(e + b, end - 1)];
        for (uint b = 0; b < BATCH; b++) {
            const some t = (FLOATS_OF(x[b]) - hi) - lo;
            const some wrt = wr[b] * t;
            p0 += wr[b];
            p1 += wrt;
            p2 = fma(wrt, t, p2);
        }
    }
    if (goes_on && s == slots - 1) {
        if (f == 0) way[2ul * d] = (float2)(p0, 0.0f);
        some_store((some_sums){p1, (some)((float)terms)}, way + f);
        some_store((some_sums){p2, (some)(0.0f)}, way + d + f);
    } else {
        s0 = ff_add(s0, p0);
        s1 = some_add(s1, p1);
        s2 = some_add(s2, p2);
    }
#endif
    if (f == 0) out[2ul * d] = s0;
    some_store(s1, out + f);
    some_store(s2, out + d + f);
}
