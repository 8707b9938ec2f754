#ifndef FGMM_LIB_KMEANSPP_H
#define FGMM_LIB_KMEANSPP_H

#include "feed.h"
#include "rng.h"

/* Rows that seeding looks at, on the host and on the device. */
typedef struct fgmm_seed_rows {
    const float *rows;     /* [n, d] */
    const double *weights; /* [n] or NULL */
    int64_t n, d;
    double spread;   /* mean variance of a feature, > 0 */
    fgmm_feed *feed; /* over rows */
} fgmm_seed_rows;

/*
 * Brings in centres first .. first+count-1: where one of them is nearer than nearest says, it takes the row over.
 * @param centres [count, d]. @param nearest [n] squared distances, INFINITY at first.
 * @param owner [n] numbers of centres, 0 at first.
 */
fgmm_status fgmm_nearest(fgmm_context *ctx, const fgmm_seed_rows *sample, const float *centres, int64_t first,
                         int64_t count, float *nearest, int32_t *owner);

/*
 * k-means++ (Arthur and Vassilvitskii 2007): each next seed is drawn with probability proportional to
 * w * (distance to the nearest seed so far)^2. nearest and owner are those of all seeds in the end.
 * @param seeds [k, d]: the seeds. @param chosen [k] their row numbers, distinct while distinct rows last.
 */
fgmm_status fgmm_kmeanspp(fgmm_context *ctx, const fgmm_seed_rows *sample, int64_t k, fgmm_rng *rng, int64_t *chosen,
                          float *seeds, float *nearest, int32_t *owner);

#endif
