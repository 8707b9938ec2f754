#ifndef FGMM_LIB_MODEL_H
#define FGMM_LIB_MODEL_H

#include "context.h"

/* Limits of this version: labels are int32, kernels index features with 32 bits. */
enum { FGMM_COMPONENTS_MAX = 1 << 24, FGMM_FEATURES_MAX = 1 << 20 };

struct fgmm_model {
    fgmm_covariance type;
    int64_t k, d;
    double *weights;     /* [K] */
    double *means;       /* [K, D] */
    double *covariances; /* [K] or [K, D] */
    double lower_bound;  /* NaN if not fitted */
    int n_iter, converged;
};

/* Doubles in the covariances of a model of this shape. */
int64_t fgmm_covariances_size(fgmm_covariance type, int64_t k, int64_t d);

#endif
