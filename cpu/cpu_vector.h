/*
 * Vector types of the compiler for the sources that are built once per instruction set, with
 *   CPU_TABLE         name of the table
 *   CPU_NAME          name of the instruction set
 *   CPU_VECTOR_BYTES  16, 32 or 64
 *   CPU_ROWS, CPU_VECTORS  the micro-tile of the screen: rows x vectors of components kept in registers
 */
#ifndef FGMM_CPU_VECTOR_H
#define FGMM_CPU_VECTOR_H

#include "cpu.h"

#if CPU_VECTOR_BYTES != 16 && CPU_VECTOR_BYTES != 32 && CPU_VECTOR_BYTES != 64
#error "CPU_VECTOR_BYTES must be 16, 32 or 64"
#endif
#if CPU_VECTOR_BYTES > 16
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { FLOATS = CPU_VECTOR_BYTES / 4, DOUBLES = CPU_VECTOR_BYTES / 8 };

typedef float vf __attribute__((vector_size(CPU_VECTOR_BYTES)));
typedef double vd __attribute__((vector_size(CPU_VECTOR_BYTES)));
typedef float vf_any __attribute__((vector_size(CPU_VECTOR_BYTES), aligned(4), may_alias));
typedef double vd_any __attribute__((vector_size(CPU_VECTOR_BYTES), aligned(8), may_alias));
typedef int32_t vi __attribute__((vector_size(CPU_VECTOR_BYTES)));
typedef int64_t vl __attribute__((vector_size(CPU_VECTOR_BYTES)));

#define UNROLL(n) _Pragma(UNROLL_TEXT(GCC unroll n))
#define UNROLL_TEXT(x) #x

static inline vd load(const double *p) {
    return *(const vd_any *)p;
}
static inline void store(double *p, vd v) {
    *(vd_any *)p = v;
}
static inline vd splat(double x) {
    return x - (vd){0};
}
static inline vd blend(vl mask, vd yes, vd no) {
    return (vd)((mask & (vl)yes) | (~mask & (vl)no));
}

/* Lanes in a fixed order. */
static inline double sum_lanes(vd v) {
    double sum = 0;
    for (int i = 0; i < DOUBLES; i++) sum += v[i];
    return sum;
}

static inline vf splat_float(float x) {
    return x - (vf){0};
}

/*
 * exp in double: x = n log 2 + r with |r| <= log(2)/2, a Taylor polynomial of degree 13 (remainder below 5e-18), and
 * 2^n put into the exponent. Within 2 ulp; 0 below -708, for x <= 709.
 */
static inline vd exp_vector(vd x) {
    const double log2e = 1.4426950408889634074, ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45,
                 magic = 0x1.8p52;
    vl tiny = x < -708.0;
    x = blend(tiny, splat(-708.0), x);
    vd shifted = x * log2e + magic, n = shifted - magic;
    vd r = (x - n * ln2_high) - n * ln2_low;
    vd p = splat(1.0 / 6227020800.0);
    static const double inverse_factorial[] = {1.0 / 479001600.0,
                                               1.0 / 39916800.0,
                                               1.0 / 3628800.0,
                                               1.0 / 362880.0,
                                               1.0 / 40320.0,
                                               1.0 / 5040.0,
                                               1.0 / 720.0,
                                               1.0 / 120.0,
                                               1.0 / 24.0,
                                               1.0 / 6.0,
                                               0.5,
                                               1.0,
                                               1.0};
    UNROLL(16)
    for (int i = 0; i < 13; i++) p = p * r + inverse_factorial[i];
    vl exponent = ((vl)shifted << 52) + ((vl)splat(1.0));
    return blend(tiny, splat(0.0), p * (vd)exponent);
}

#define CPU_JOIN_(a, b) a##_##b
#define CPU_JOIN(a, b) CPU_JOIN_(a, b)
/* A function of this instruction set. */
#define CPU_OWN(name) CPU_JOIN(CPU_TABLE, name)

#endif
