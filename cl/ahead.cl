// variants: -DDIAG=1
/*
 * Ahead: the M-step of lib/mstep.c from the sums where they are, in double and in its order, so that the next pass begins while the host makes its
 * own. What the host makes counts: it compares (cl_ahead.c), and these are the next parameters only where means and a are the same to the bit. The
 * rest is made so that settling by it is safe: constants, M and bounds of screen.cl with more room for rounding than the host's.
 *
 * The host's operations are sums, products, quotients and comparisons, which are rounded in one way everywhere, but for logarithms, which go into
 * constants alone. A mean is m_hi + m_lo + rest, all of a double that is no smaller than 2^-97; of others the host finds that they differ.
 */
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#pragma OPENCL FP_CONTRACT OFF
#include "narrow.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
#define GROUP NARROW
#define LANES 8 // FGMM_LANES of lib/clones.h: parts of the host's sums over features

// What the host compares of a component: cl_told of cl_engine.h.
typedef struct {
    ulong bits[2];     // hashes of its means, and if diagonal of a
    float a_hi, a_lo;  // spherical
    float c1, c2, m;   // of screen.cl; of the entry behind the last component the largest C, and pad, in c1 and c2
} told_t;

// As key in cl_ahead.c.
static inline ulong key(ulong i)
{
    ulong x = (i + 1) * 0x9e3779b97f4a7c15ul;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ul;
    x = (x ^ x >> 27) * 0x94d049bb133111ebul;
    return x ^ x >> 31;
}

// Of value i of a component, to two sums that tell, as far as 128 bits can, whether all are the host's: products of a value's halves, each with a key
// of its own, in the manner of NH (Black and others, UMAC, 1999).
static inline ulong2 mark(double value, ulong i)
{
    const ulong a = as_ulong(value) ^ key(2 * i), b = as_ulong(value) ^ key(2 * i + 1);
    return (ulong2)((a >> 32) * (a & 0xfffffffful), (b >> 32) * (b & 0xfffffffful));
}

// As fgmm_variance_floor.
static inline double variance_floor(double mean)
{
    const double floor_v = 0x1p-94 * mean * mean;
    return floor_v > 1e-30 ? floor_v : 1e-30;
}

// How far the mean of feature f lies from the old one.
static inline double shift_of(__global const float2 *sums, uint f, double per)
{
    return ((double)sums[f].x + (double)sums[f].y) * per;
}

static inline double old_mean(__global const float *hi, __global const float *lo, __global const float *rest, ulong at)
{
    return ((double)hi[at] + (double)lo[at]) + (double)rest[at];
}

// As fgmm_mstep: floored, and reg_covar added.
static inline double variance_of(double variance, double floor_v, double reg_covar)
{
    return (variance > floor_v ? variance : floor_v) + reg_covar;
}

// A work-group a component. total [k, 2 d + 1]: sums about the old means, last_hi + m_lo + rest [k, d]. m_hi, m_lo, rest: the new ones. a: spherical
// [k, 2], diagonal [k, d]; off [k]: of reach.cl. terms [k]: the count and log_norm. told [k + 1].
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
ahead_means(__global const float2 *total, uint d, double reg_covar, __global const float *last_hi,
            __global float *m_hi, __global float *m_lo, __global float *rest, __global float *a, __global float *off,
            __global double2 *terms, __global told_t *told)
{
    __local ulong2 bits[GROUP];
    __local double lost[GROUP]; // a m_lo^2, spherical without a
#if DIAG
    __local double logs[GROUP]; // logarithms of variances
#endif
    const uint lid = get_local_id(0), c = get_group_id(0);
    __global const float2 *sums = total + c * (2ul * d + 1);
    const double s0 = (double)sums[2 * d].x + (double)sums[2 * d].y, per = 1.0 / s0;
    const ulong first = (ulong)c * d;
#if !DIAG
    __local ff part[NARROW];
    __local double squares[LANES], floors[LANES];
    const ff s2 = sum_of_squares(sums, d, lid, part);
    if (lid < LANES) {
        const uint whole = d / LANES * LANES;
        double square = 0.0, floor_v = 0.0;
        for (uint f = lid; f < d; f = f < whole ? f + LANES : f + 1) {
            if (f >= whole && lid > 0) break; // what the lanes leave over is the first one's
            const double shift = shift_of(sums, f, per);
            square += shift * shift;
            floor_v += variance_floor(old_mean(last_hi, m_lo, rest, first + f) + shift);
        }
        squares[lid] = square;
        floors[lid] = floor_v;
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); // m_lo and rest are about to change
    double moved = 0.0, floor_all = 0.0;
    for (uint l = 0; l < LANES; l++) {
        moved += squares[l];
        floor_all += floors[l];
    }
    const double all = (double)d;
    const double variance = variance_of((((double)s2.x + (double)s2.y) * per - moved) / all, floor_all / all, reg_covar);
    const double own = 0.5 / variance;
#endif
    ulong2 hash = (ulong2)(0, 0);
    double left = 0.0, log_det = 0.0;
    for (uint f = lid; f < d; f += GROUP) {
        const double shift = shift_of(sums, f, per), mean = old_mean(last_hi, m_lo, rest, first + f) + shift;
        const float hi = (float)mean, lo = (float)(mean - (double)hi);
        m_hi[first + f] = hi;
        m_lo[first + f] = lo;
        rest[first + f] = (float)(mean - (double)hi - (double)lo);
        hash += mark(mean, f);
        double weight = 1.0;
#if DIAG
        const double s2 = (double)sums[d + f].x + (double)sums[d + f].y;
        const double variance = variance_of(s2 * per - shift * shift, variance_floor(mean), reg_covar);
        weight = 0.5 / variance;
        a[first + f] = (float)weight;
        hash += mark(weight, (ulong)d + f);
        log_det += log(variance);
#endif
        left += weight * (double)lo * (double)lo;
    }
    bits[lid] = hash;
    lost[lid] = left;
#if DIAG
    logs[lid] = log_det;
#endif
    for (uint step = GROUP / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) {
            bits[lid] += bits[lid + step];
            lost[lid] += lost[lid + step];
#if DIAG
            logs[lid] += logs[lid + step];
#endif
        }
    }
    if (lid > 0) return;
#if DIAG
    off[c] = (float)(sqrt(lost[0]) * (1.0 + 0x1p-20));
    log_det = logs[0];
#else
    const float own_hi = (float)own, own_lo = (float)(own - (double)own_hi);
    a[2 * c] = told[c].a_hi = own_hi;
    a[2 * c + 1] = told[c].a_lo = own_lo;
    off[c] = (float)(sqrt(own * lost[0]) * (1.0 + 0x1p-20));
    log_det = (double)d * log(variance);
#endif
    told[c].bits[0] = bits[0].x;
    told[c].bits[1] = bits[0].y;
    terms[c] = (double2)(s0, -0.5 * ((double)d * 1.8378770664093454836 + log_det));
}

// Constants of screen.cl, but for the third, of GROUP components a work-group, and behind them, at bounds_at, their bounds; told gets what they say. Each
// group sums and compares all terms, in one order. log_cut, g16: bounds.x and bounds.y. last_c, last_off, off, moved: of reach.cl.
//
// M = |m' - c|^2 by the new a, which is at most (r |m - c| + v)^2, r the largest ratio and v what means have moved by; the screen's own centre moves
// as well, hence 2% and a thousandth. Logarithms are not the host's to the bit: errors and the largest C have room for that.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
ahead_constants(uint k, uint bounds_at, float log_cut, float g16, __global const double2 *terms,
                __global const float4 *last_c, __global const float *last_off, __global const float *off,
                __global const float4 *moved, __global float4 *constants, __global told_t *told)
{
    __local double weights[GROUP], most[GROUP];
    const uint lid = get_local_id(0), c = get_global_id(0);
    double weight = 0.0, largest = -INFINITY;
    for (uint i = lid; i < k; i += GROUP) {
        weight += terms[i].x;
        largest = fmax(largest, terms[i].y);
    }
    weights[lid] = weight;
    most[lid] = largest;
    for (uint step = GROUP / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) {
            weights[lid] += weights[lid + step];
            most[lid] = fmax(most[lid], most[lid + step]);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (c < k) {
        const double g = (double)g16 / 16.0, norm = terms[c].y, log_w = log(terms[c].x / weights[0]);
        const float4 by = moved[c];
        const float root = by.x * sqrt(last_c[c].w) + by.y + off[c] + by.x * last_off[c], m = 1.02f * root * root + 1e-3f;
        const double error = 7.0 * g * (double)m + 16.0 * 0x1p-24 * (fabs(norm) + fabs(log_w)) + 2e-6;
        const float4 out = (float4)((float)(norm + log_w - error), (float)(norm + error), 0.0f, m);
        constants[c] = out;
        told[c].c1 = out.x;
        told[c].c2 = out.y;
        told[c].m = out.w;
    }
    if (c > 0) return;
    const double c_most = most[0], size = fabs(c_most) + fabs((double)log_cut);
    const float4 bounds = (float4)(log_cut, g16, (float)(c_most + 0x1p-22 * fabs(c_most) + 1e-6), (float)(20.0 * 0x1p-24 * size + 2e-6));
    constants[bounds_at] = bounds;
    told[k].c1 = bounds.z;
    told[k].c2 = bounds.w;
}
