#include <math.h>
#include <string.h>

#include "cholesky.h"
#include "dispatch.h"
#include "model.h"
#include "rng.h"

/* L of each covariance S = L L'. @return NULL with the message stored. */
static double *factor_covariances(fgmm_context *ctx, const fgmm_model *model) {
    int64_t d = model->d, count = fgmm_covariances_size(model->type, model->k, d);
    double *factors = fgmm_alloc(ctx, (size_t)count * sizeof *factors, "factors of covariances");
    if (!factors) return NULL;
    memcpy(factors, model->covariances, (size_t)count * sizeof *factors);
    for (int64_t at = 0; at < count; at += d * d) fgmm_cholesky(factors + at, d); /* of a model: they have one */
    return factors;
}

fgmm_status fgmm_sample(fgmm_context *ctx, const fgmm_model *model, int64_t n, uint64_t seed, double *x,
                        int32_t *labels) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!model || !x) return fgmm_fail(ctx, FGMM_ERR_INVALID, "sample: a pointer is NULL");
    if (n <= 0) return fgmm_fail(ctx, FGMM_ERR_INVALID, "sample: n = %lld must be positive", (long long)n);
    int64_t k = model->k, d = model->d, matrices = fgmm_has_matrices(model->type);
    fgmm_status status = FGMM_ERR_MEMORY;
    double *cumulative = fgmm_alloc(ctx, (size_t)k * sizeof *cumulative, "cumulative weights");
    double *z = fgmm_alloc(ctx, (size_t)(d + 1) * sizeof *z, "a row"), *factors = NULL;
    if (!cumulative || !z) goto done;
    if (matrices && !(factors = factor_covariances(ctx, model))) goto done;
    double sum = 0;
    for (int64_t i = 0; i < k; i++) cumulative[i] = sum += model->weights[i];
    fgmm_rng rng = fgmm_rng_seed(seed, 0x5a);
    for (int64_t row = 0; row < n; row++) {
        if (row % 4096 == 0 && fgmm_cancelled(ctx)) {
            atomic_store(&ctx->cancelled, 0);
            FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
        }
        double at = fgmm_rng_uniform(&rng) * sum;
        int64_t low = 0, high = k - 1; /* the first component with cumulative > at: never one of weight 0 */
        while (low < high) {
            int64_t middle = low + (high - low) / 2;
            if (cumulative[middle] > at)
                high = middle;
            else
                low = middle + 1;
        }
        for (int64_t j = 0; j < d; j += 2) fgmm_rng_normals(&rng, z + j);
        for (int64_t j = 0; j < d; j++) {
            double deviation = 0;
            const double *l = matrices ? factors + (model->type == FGMM_FULL ? low * d * d : 0) + j * d : NULL;
            if (matrices)
                for (int64_t i = 0; i <= j; i++) deviation += l[i] * z[i];
            else
                deviation = sqrt(model->covariances[model->type == FGMM_SPHERICAL ? low : low * d + j]) * z[j];
            x[row * d + j] = model->means[low * d + j] + deviation;
        }
        if (labels) labels[row] = (int32_t)low;
    }
    status = FGMM_OK;
done:
    fgmm_free(ctx, cumulative);
    fgmm_free(ctx, z);
    fgmm_free(ctx, factors);
    return status;
}
