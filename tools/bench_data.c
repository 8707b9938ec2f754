/* Made data: every number is a function of (seed, stream, index), so threads need no order. */
#include "bench_data.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

enum { CENTRES = 1, NOISE = 2, LABELS = 3, START = 4 };

/* splitmix64's finalizer over a counter. */
static uint64_t hash(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + (stream << 56) + index;
    for (int round = 0; round < 2; round++) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return z;
}

/* out[i] = scale * N(0, 1), row `row` of a stream: Box-Muller, two numbers a hash. */
static void normal_row(const bench_data *b, uint64_t stream, int64_t row, float scale, float *out) {
    uint64_t pairs = ((uint64_t)b->d + 1) / 2, first = (uint64_t)row * pairs;
    for (uint64_t p = 0; p < pairs; p++) {
        uint64_t h = hash(b->seed, stream, first + p);
        float u = ((float)(uint32_t)(h >> 40) + 1.0f) * 0x1p-24f; /* (0, 1] */
        float angle = (float)(uint32_t)(h & 0xffffff) * (0x1p-24f * 6.28318531f);
        float radius = scale * sqrtf(-2.0f * logf(u));
        out[2 * p] = radius * cosf(angle);
        if (2 * p + 1 < (uint64_t)b->d) out[2 * p + 1] = radius * sinf(angle);
    }
}

static float spread(const bench_data *b) {
    return b->overlapping ? 0.1f : 2.0f;
}

void bench_centres(const bench_data *b, float *centres) {
    for (int64_t k = 0; k < b->k; k++) normal_row(b, CENTRES, k, spread(b), centres + k * b->d);
}

void bench_some_rows(const bench_data *b, const float *centres, int64_t first, int64_t n, float *x) {
    for (int64_t i = first; i < first + n; i++, x += b->d) {
        const float *centre = centres + (int64_t)(hash(b->seed, LABELS, (uint64_t)i) % (uint64_t)b->k) * b->d;
        normal_row(b, NOISE, i, 1.0f, x);
        for (int64_t j = 0; j < b->d; j++) x[j] += centre[j];
    }
}

void bench_rows(const bench_data *b, const float *centres, float *x) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int64_t i = 0; i < b->n; i++) bench_some_rows(b, centres, i, 1, x + i * b->d);
}

void bench_start(const bench_data *b, const float *centres, float *means) {
    for (int64_t k = 0; k < b->k; k++) {
        normal_row(b, START, k, 0.15f * spread(b), means + k * b->d);
        for (int64_t j = 0; j < b->d; j++) means[k * b->d + j] += centres[k * b->d + j];
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
