/* Host loops over all cells of a model, for what vectors the processor has. */
#ifndef FGMM_LIB_CLONES_H
#define FGMM_LIB_CLONES_H

#include <limits.h> /* the C library's own macros */

/* Before a function: it is built for AVX2 as well, and the loader picks. Results are the same to the bit: there are no fused products in
 * either, and what is added up is added in FGMM_LANES parts, whatever a vector holds. Sanitizers come too late for the picking. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&                           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FGMM_CLONES __attribute__((target_clones("avx2", "default")))
#define FGMM_INTO_CLONES __attribute__((always_inline)) inline /* what they call, as part of them */
#else
#define FGMM_CLONES
#define FGMM_INTO_CLONES inline
#endif

enum { FGMM_LANES = 8 };

/* The parts of a sum, in order. */
static inline double fgmm_add_lanes(const double *parts) {
    double sum = 0;
    for (int l = 0; l < FGMM_LANES; l++) sum += parts[l];
    return sum;
}

#endif
