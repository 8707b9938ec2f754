/*
 * Made data: every number is a function of (seed, stream, index), so threads need no order. Billions of rows are made as they are
 * read, so the loops are such that compilers vectorise them, and the functions in them polynomials (least-squares fits on Chebyshev
 * points, 3e-8), which are the same on every machine.
 */
#include "bench_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CENTRES = 1, NOISE = 2, LABELS = 3, START = 4 };

/* splitmix64's finalizer over a counter. */
static inline uint64_t hash(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + (stream << 56) + index;
    for (int round = 0; round < 2; round++) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return z;
}

/* Clones for the instruction sets that have 64-bit products in vectors. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&                           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VECTORISED __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define VECTORISED
#endif

static inline float as_float(uint32_t bits) {
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* log of u / 2^24, u from 1 to 2^24. */
static inline float log_fraction(int32_t u) {
    float value = (float)u;
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    /* value = 2^e m, m from sqrt(1/2) on */
    int32_t shifted = bits - 0x3f3504f3, e = shifted >> 23;
    float f = as_float((uint32_t)(shifted & 0x7fffff) + 0x3f3504f3u) - 1.0f;
    float p = 0.087439455f;
    p = p * f - 0.143773306f;
    p = p * f + 0.149490954f;
    p = p * f - 0.16560696f;
    p = p * f + 0.199569775f;
    p = p * f - 0.250021535f;
    p = p * f + 0.333341833f;
    p = p * f - 0.49999987f;
    p = p * f + 0.999999974f;
    return p * f + (float)(e - 24) * 0.693147181f;
}

enum { PAIRS = 64 };

/* Box-Muller, two numbers a hash: out[2 p], out[2 p + 1] for PAIRS pairs from `first` on. */
VECTORISED static void normal_pairs(uint64_t seed, uint64_t stream, uint64_t first, float scale, float *restrict out) {
    int32_t radii[PAIRS], angles[PAIRS];
    for (int p = 0; p < PAIRS; p++) {
        uint64_t h = hash(seed, stream, first + (uint64_t)p);
        radii[p] = (int32_t)(h >> 40) + 1;
        angles[p] = (int32_t)(h & 0xffffff);
    }
    for (int p = 0; p < PAIRS; p++) {
        float radius = scale * sqrtf(-2.0f * log_fraction(radii[p]));
        /* Turns of a circle: the nearest quarter, and what is left, r. */
        int32_t quarter = (angles[p] + (1 << 21)) >> 22;
        float r = (float)(angles[p] - (quarter << 22)) * 0x1p-24f, r2 = r * r;
        float sine = r * (((-75.4018402f * r2 + 81.5925482f) * r2 - 41.3416626f) * r2 + 6.28318529f);
        float cosine = (((59.2202928f * r2 - 85.4428485f) * r2 + 64.9393162f) * r2 - 19.7392087f) * r2 + 1.0f;
        float x = quarter & 1 ? sine : cosine, y = quarter & 1 ? cosine : sine;
        out[2 * p] = radius * ((quarter + 1) & 2 ? -x : x);
        out[2 * p + 1] = radius * (quarter & 2 ? -y : y);
    }
}

/* out [n, d] = scale * N(0, 1), rows first .. first + n - 1 of a stream: of short ones as many at once as have PAIRS pairs. */
static void normal_rows(const bench_data *b, uint64_t stream, int64_t first, int64_t n, float scale, float *out) {
    int64_t d = b->d, pairs = (d + 1) / 2, at_once = pairs < PAIRS ? PAIRS / pairs : 1;
    float some[2 * PAIRS];
    for (int64_t i = 0; i < n; i += at_once)
        for (int64_t p = 0; p < pairs; p += PAIRS) {
            int64_t count = d - 2 * p < 2 * PAIRS ? d - 2 * p : 2 * PAIRS;
            normal_pairs(b->seed, stream, (uint64_t)((first + i) * pairs + p), scale, some);
            for (int64_t j = 0; j < at_once && i + j < n; j++)
                memcpy(out + (i + j) * d + 2 * p, some + 2 * j * pairs, (size_t)count * sizeof *out);
        }
}

const char *bench_spread_name(int spread) {
    static const char *const names[] = {"separated", "overlapping", "close"};
    return names[spread];
}

static float spread(const bench_data *b) {
    static const float factors[] = {2.0f, 0.1f, 0.8f};
    return factors[b->spread];
}

void bench_centres(const bench_data *b, float *centres) {
    normal_rows(b, CENTRES, 0, b->k, spread(b), centres);
}

void bench_some_rows(const bench_data *b, const float *centres, int64_t first, int64_t n, float *x) {
    normal_rows(b, NOISE, first, n, 1.0f, x);
    for (int64_t i = first; i < first + n; i++, x += b->d) {
        const float *centre = centres + (int64_t)(hash(b->seed, LABELS, (uint64_t)i) % (uint64_t)b->k) * b->d;
        for (int64_t j = 0; j < b->d; j++) x[j] += centre[j];
    }
}

void bench_rows(const bench_data *b, const float *centres, float *x) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int64_t i = 0; i < b->n; i += PAIRS)
        bench_some_rows(b, centres, i, b->n - i < PAIRS ? b->n - i : PAIRS, x + i * b->d);
}

void bench_start(const bench_data *b, const float *centres, float *means) {
    normal_rows(b, START, 0, b->k, 0.15f * spread(b), means);
    for (int64_t i = 0; i < b->k * b->d; i++) means[i] += centres[i];
}

int64_t bench_type_size(const bench_data *b) {
    return b->type == BENCH_F32 ? 4 : b->type == BENCH_F16 || b->type == BENCH_BF16 ? 2 : 1;
}

float bench_scale(const bench_data *b) {
    return bench_type_size(b) == 1 ? 12.0f : 1.0f;
}

float bench_offset(const bench_data *b) {
    return b->type == BENCH_U8 ? 128.0f : 0.0f;
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* To nearest, ties to even; numbers below f16's normal ones become 0. |x| < 65504. */
static uint16_t half_of(float x) {
    uint32_t bits = bits_of(x), size = bits & 0x7fffffff;
    size += 0xfff + (size >> 13 & 1);
    return (uint16_t)((bits >> 16 & 0x8000) | (size < 0x38800000 ? 0 : (size - 0x38000000) >> 13));
}

static float cut(float x, float least, float most) {
    return x < least ? least : x > most ? most : x;
}

void bench_store(const bench_data *b, const float *x, int64_t n, void *out) {
    float scale = bench_scale(b), offset = bench_offset(b);
    for (int64_t i = 0; i < n; i++) {
        switch ((bench_type)b->type) {
        case BENCH_F32: ((float *)out)[i] = x[i]; break;
        case BENCH_F16: ((uint16_t *)out)[i] = half_of(x[i]); break;
        case BENCH_BF16:
            ((uint16_t *)out)[i] = (uint16_t)((bits_of(x[i]) + 0x7fff + (bits_of(x[i]) >> 16 & 1)) >> 16);
            break;
        case BENCH_U8: ((uint8_t *)out)[i] = (uint8_t)cut(rintf(scale * x[i] + offset), 0.0f, 255.0f); break;
        case BENCH_I8: ((int8_t *)out)[i] = (int8_t)cut(rintf(scale * x[i]), -128.0f, 127.0f); break;
        }
    }
}

double bench_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *v, int n) {
    qsort(v, (size_t)n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}
