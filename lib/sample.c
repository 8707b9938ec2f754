#include <math.h>

#include "dispatch.h"
#include "model.h"
#include "rng.h"

fgmm_status fgmm_sample(fgmm_context *ctx, const fgmm_model *model, int64_t n, uint64_t seed, double *x,
                        int32_t *labels) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!model || !x) return fgmm_fail(ctx, FGMM_ERR_INVALID, "sample: a pointer is NULL");
    if (n <= 0) return fgmm_fail(ctx, FGMM_ERR_INVALID, "sample: n = %lld must be positive", (long long)n);
    int64_t k = model->k, d = model->d;
    double *cumulative = fgmm_alloc(ctx, (size_t)k * sizeof *cumulative, "cumulative weights");
    if (!cumulative) return FGMM_ERR_MEMORY;
    double sum = 0;
    for (int64_t i = 0; i < k; i++) cumulative[i] = sum += model->weights[i];
    fgmm_rng rng = fgmm_rng_seed(seed, 0x5a);
    for (int64_t row = 0; row < n; row++) {
        if (row % 4096 == 0 && fgmm_cancelled(ctx)) {
            fgmm_free(ctx, cumulative);
            atomic_store(&ctx->cancelled, 0);
            return fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled");
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
        double normals[2] = {0, 0};
        for (int64_t j = 0; j < d; j++) {
            if (j % 2 == 0) fgmm_rng_normals(&rng, normals);
            double variance = model->type == FGMM_SPHERICAL ? model->covariances[low] : model->covariances[low * d + j];
            x[row * d + j] = model->means[low * d + j] + sqrt(variance) * normals[j % 2];
        }
        if (labels) labels[row] = (int32_t)low;
    }
    fgmm_free(ctx, cumulative);
    return FGMM_OK;
}
