/* The machine's multiply-add peak: chains of multiply-adds that are independent of each other and touch no memory.
 * Twelve chains cover the latency (4 cycles) of two units and leave registers for the rest. */
#include "bench_case.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { CHAINS = 12, TRIES = 15 };

/* What a function is compiled for. */
#define FOR_AVX512 __attribute__((target("avx512f")))
#define FOR_AVX2 __attribute__((target("avx2,fma")))
#define FOR_BASE

/* Defines `float name(int64_t steps)`, which does `steps` multiply-adds in each chain and returns what depends on
 * all. */
#define DEFINE_CHAINS(compiled_for, name, vector, splat, multiply_add)                                                 \
    compiled_for static float name(int64_t steps) {                                                                    \
        vector sum[CHAINS], factor = splat(0.999f), term = splat(1e-3f);                                               \
        _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) sum[c] = splat((float)c);                            \
        for (int64_t i = 0; i < steps; i++) {                                                                          \
            _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) sum[c] = multiply_add(sum[c], factor, term);     \
        }                                                                                                              \
        _Pragma("GCC unroll 12") for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];                                    \
        return sum[0][0];                                                                                              \
    }

#if defined(__x86_64__)
DEFINE_CHAINS(FOR_AVX512, chains_avx512, __m512, _mm512_set1_ps, _mm512_fmadd_ps)
DEFINE_CHAINS(FOR_AVX2, chains_avx2, __m256, _mm256_set1_ps, _mm256_fmadd_ps)
#endif

typedef float base_vector __attribute__((vector_size(16)));

static base_vector base_splat(float x) {
    return x - (base_vector){0};
}

static inline base_vector base_multiply_add(base_vector a, base_vector b, base_vector c) {
#if defined(__aarch64__)
    return (base_vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

DEFINE_CHAINS(FOR_BASE, chains_base, base_vector, base_splat, base_multiply_add)

typedef struct chains {
    float (*run)(int64_t steps);
    int floats; /* in a vector */
} chains;

static chains widest(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return (chains){chains_avx512, 16};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return (chains){chains_avx2, 8};
#endif
    return (chains){chains_base, 4};
}

static double seconds_of(const chains *use, int64_t steps, int threads) {
    volatile float sink = 0;
    double start = bench_clock();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
    {
        float value = use->run(steps);
        if (value == 0.5f) sink = value; /* so that the work is not removed */
    }
    (void)sink;
    (void)threads;
    return bench_clock() - start;
}

/* The fastest of several tries. */
static double fastest(const chains *use, int64_t steps, int threads, int tries) {
    double best = seconds_of(use, steps, threads);
    for (int i = 1; i < tries; i++) {
        double again = seconds_of(use, steps, threads);
        if (again < best) best = again;
    }
    return best;
}

double bench_peak(int threads) {
    chains use = widest();
    int64_t steps = 1 << 12;
    /* About 10 ms a try: long against starting the threads, short against what else a machine does. */
    while (fastest(&use, steps, 1, 3) < 0.01) steps *= 2;
    return 2.0 * CHAINS * use.floats * (double)steps * threads / fastest(&use, steps, threads, TRIES);
}
