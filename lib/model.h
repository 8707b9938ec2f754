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
    double *covariances; /* [K], [K, D], [D, D] or [K, D, D]; matrices are symmetric and positive definite */
    double lower_bound;  /* NaN if not fitted */
    int n_iter, converged;
};

/* FGMM_ERR_INVALID for a shape that no model has. */
fgmm_status fgmm_model_check_shape(fgmm_context *ctx, fgmm_covariance type, int64_t k, int64_t d);

/* Doubles in the covariances of a model of this shape. */
int64_t fgmm_covariances_size(fgmm_covariance type, int64_t k, int64_t d);
/* Their shape: dimensions in shape, @return how many. */
int fgmm_covariances_shape(fgmm_covariance type, int64_t k, int64_t d, int64_t shape[3]);
/* 1 for tied and full. */
int fgmm_has_matrices(fgmm_covariance type);

/* Room for a model of this shape, which has been checked; its numbers are yet to be written, but for lower_bound, NaN. */
fgmm_status fgmm_model_room(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k, int64_t d);
/* The same with zeros. */
fgmm_status fgmm_model_new(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k, int64_t d);

/* The model as one of another type: a diagonal model's variances as the diagonals of tied or full matrices. @param
 * diag of type diag, its covariances finite and positive. */
fgmm_status fgmm_model_from_diag(fgmm_context *ctx, fgmm_model **out, const fgmm_model *diag, fgmm_covariance type);

#endif
