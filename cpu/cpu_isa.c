#include <string.h>

#include "cpu.h"

#ifdef CPU_HAVE_AVX512
extern const cpu_kernels cpu_kernels_avx512;
#endif
#ifdef CPU_HAVE_AVX2
extern const cpu_kernels cpu_kernels_avx2;
#endif
#ifdef CPU_HAVE_BASELINE
extern const cpu_kernels cpu_kernels_baseline;
#endif
#ifdef CPU_HAVE_NEON
extern const cpu_kernels cpu_kernels_neon;
#endif

const cpu_kernels *const cpu_kernel_tables[] = {
#ifdef CPU_HAVE_AVX512
    &cpu_kernels_avx512,
#endif
#ifdef CPU_HAVE_AVX2
    &cpu_kernels_avx2,
#endif
#ifdef CPU_HAVE_BASELINE
    &cpu_kernels_baseline,
#endif
#ifdef CPU_HAVE_NEON
    &cpu_kernels_neon,
#endif
    NULL};

int cpu_isa_supported(const char *name) {
#if defined(__x86_64__) || defined(__i386__)
    if (strcmp(name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("fma");
    if (strcmp(name, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    (void)name;
    return 1;
}
