#ifndef FGMM_LIB_KMEANSPP_H
#define FGMM_LIB_KMEANSPP_H

#include "context.h"
#include "rng.h"

/* Multiply-adds that seeding may take before it is given up for a uniform draw. */
#define FGMM_KMEANSPP_MAX 5e11

static inline double fgmm_kmeanspp_work(int64_t n, int64_t d, int64_t k) {
    return (double)n * (double)d * (double)k;
}

/*
 * k-means++ (Arthur and Vassilvitskii 2007): each next seed is drawn with probability proportional to
 * w * (distance to the nearest seed so far)^2.
 * @param rows [n, d]. @param weights [n] or NULL. @param chosen [k] row numbers, distinct while distinct rows last.
 */
fgmm_status fgmm_kmeanspp(fgmm_context *ctx, const float *rows, const double *weights, int64_t n, int64_t d, int64_t k,
                          fgmm_rng *rng, int64_t *chosen);

#endif
