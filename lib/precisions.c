/* Models from precisions, inverted in double. */
#include <math.h>
#include <stdio.h>

#include "cholesky.h"
#include "dispatch.h"
#include "model.h"

static fgmm_status invert_numbers(fgmm_context *ctx, const double *precisions, int64_t count, double *covariances) {
    for (int64_t i = 0; i < count; i++) {
        if (!(precisions[i] > 0) || !isfinite(precisions[i]))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: precisions[%lld] = %g must be finite and positive",
                             (long long)i, precisions[i]);
        covariances[i] = 1 / precisions[i];
    }
    return FGMM_OK;
}

/* Two halves of a matrix that differ by more than this, relative to the diagonal, are no rounding of one another. */
static const double asymmetry_max = 1e-6;

/* The mean of both halves, as a lower triangle. */
static fgmm_status symmetric_part(fgmm_context *ctx, const double *p, int64_t d, const char *name, double *out) {
    for (int64_t i = 0; i < d; i++) {
        for (int64_t j = 0; j <= i; j++) {
            double below = p[i * d + j], above = p[j * d + i];
            if (!isfinite(below) || !isfinite(above))
                return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: %s holds NaN or Inf at [%lld, %lld]", name,
                                 (long long)i, (long long)j);
            if (!(fabs(below - above) <= asymmetry_max * sqrt(fabs(p[i * d + i] * p[j * d + j]))) && i != j)
                return fgmm_fail(ctx, FGMM_ERR_INVALID,
                                 "model: %s is not symmetric: %g at [%lld, %lld], %g across the diagonal", name, below,
                                 (long long)i, (long long)j, above);
            out[i * d + j] = 0.5 * (below + above);
        }
    }
    return FGMM_OK;
}

static fgmm_status invert_matrices(fgmm_context *ctx, const double *precisions, int64_t count, int64_t d,
                                   double *covariances) {
    fgmm_status status = FGMM_OK;
    double *row = NULL, *matrix = fgmm_alloc(ctx, (size_t)(d * d) * sizeof *matrix, "a precision matrix");
    if (!matrix) return FGMM_ERR_MEMORY;
    if (!(row = fgmm_alloc(ctx, (size_t)d * sizeof *row, "a row of a precision matrix"))) status = FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < count && status == FGMM_OK; i++) {
        char name[48] = "the precision matrix";
        if (count > 1) snprintf(name, sizeof name, "precision matrix %lld", (long long)i);
        FGMM_GO(symmetric_part(ctx, precisions + i * d * d, d, name, matrix));
        int64_t bad = fgmm_cholesky(matrix, d);
        if (bad >= 0)
            FGMM_GO(fgmm_fail(ctx, FGMM_ERR_INVALID, "model: %s is not positive definite (at row %lld)", name,
                              (long long)bad));
        fgmm_lower_invert(matrix, d, row);
        fgmm_lower_gram(matrix, d, covariances + i * d * d);
    }
done:
    fgmm_free(ctx, row);
    fgmm_free(ctx, matrix);
    return status;
}

fgmm_status fgmm_model_create_from_precisions(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k,
                                              int64_t d, const double *weights, const double *means,
                                              const double *precisions) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !means || !precisions) return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: a pointer is NULL");
    *out = NULL;
    FGMM_TRY(fgmm_model_check_shape(ctx, type, k, d));
    int64_t size = fgmm_covariances_size(type, k, d);
    double *covariances = fgmm_calloc(ctx, (size_t)size, sizeof *covariances, "covariances");
    if (!covariances) return FGMM_ERR_MEMORY;
    fgmm_status status = type == FGMM_SPHERICAL || type == FGMM_DIAG
                             ? invert_numbers(ctx, precisions, size, covariances)
                             : invert_matrices(ctx, precisions, type == FGMM_FULL ? k : 1, d, covariances);
    if (status == FGMM_OK) status = fgmm_model_create(ctx, out, type, k, d, weights, means, covariances);
    fgmm_free(ctx, covariances);
    return status;
}
