#include "params.h"

#include <math.h>

static const double log_2pi = 1.8378770664093454836;

/* A power of two near 1 / sqrt(variance), kept where f32 squares stay finite. */
static double power_scale(double variance) {
    if (!(variance > 0)) return 1;
    double exponent = round(-0.5 * log2(variance));
    return ldexp(1, (int)fmax(-60, fmin(60, exponent)));
}

static void prepare_log_terms(const fgmm_model *model, double *log_weights, double *log_norm, double *half_inv_var) {
    int64_t k = model->k, d = model->d;
    for (int64_t i = 0; i < k; i++) {
        log_weights[i] = model->weights[i] > 0 ? log(model->weights[i]) : FGMM_LOG_ZERO;
        double log_det = 0;
        if (model->type == FGMM_SPHERICAL) {
            log_det = (double)d * log(model->covariances[i]);
            half_inv_var[i] = 0.5 / model->covariances[i];
        } else {
            for (int64_t j = 0; j < d; j++) {
                log_det += log(model->covariances[i * d + j]);
                half_inv_var[i * d + j] = 0.5 / model->covariances[i * d + j];
            }
        }
        log_norm[i] = -0.5 * ((double)d * log_2pi + log_det);
    }
}

/* Centre and scale from the mixture's own first two moments, which after an M-step are the data's. */
static void prepare_screen_frame(const fgmm_model *model, double *centre, double *scale) {
    int64_t k = model->k, d = model->d;
    for (int64_t j = 0; j < d; j++) centre[j] = scale[j] = 0;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < d; j++) centre[j] += model->weights[i] * model->means[i * d + j];
    for (int64_t j = 0; j < d; j++) centre[j] = (double)(float)centre[j];
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < d; j++) {
            double shift = model->means[i * d + j] - centre[j];
            double variance = model->type == FGMM_SPHERICAL ? model->covariances[i] : model->covariances[i * d + j];
            scale[j] += model->weights[i] * (variance + shift * shift);
        }
    double total = 0;
    for (int64_t j = 0; j < d; j++) total += scale[j];
    for (int64_t j = 0; j < d; j++)
        scale[j] = power_scale(model->type == FGMM_SPHERICAL ? total / (double)d : scale[j]);
}

fgmm_status fgmm_prepare(fgmm_context *ctx, fgmm_prepared *out, const fgmm_model *model) {
    int64_t k = model->k, d = model->d, half = fgmm_covariances_size(model->type, k, d);
    double *at = fgmm_calloc(ctx, (size_t)(2 * k + half + 2 * d), sizeof *at, "parameters");
    if (!at) return FGMM_ERR_MEMORY;
    double *log_weights = at, *log_norm = at + k, *half_inv_var = at + 2 * k, *centre = half_inv_var + half,
           *scale = centre + d;
    prepare_log_terms(model, log_weights, log_norm, half_inv_var);
    prepare_screen_frame(model, centre, scale);
    double log_norm_max = -INFINITY;
    for (int64_t i = 0; i < k; i++)
        if (model->weights[i] > 0) log_norm_max = fmax(log_norm_max, log_norm[i]);
    *out = (fgmm_prepared){.arrays = at,
                           .params = {.covariance_type = model->type,
                                      .k = k,
                                      .d = d,
                                      .means = model->means,
                                      .half_inv_var = half_inv_var,
                                      .log_weights = log_weights,
                                      .weights = model->weights,
                                      .log_norm = log_norm,
                                      .log_norm_max = log_norm_max,
                                      .centre = centre,
                                      .scale = scale,
                                      .sum_centres = model->means}};
    return FGMM_OK;
}

void fgmm_prepared_free(fgmm_context *ctx, fgmm_prepared *prepared) {
    fgmm_free(ctx, prepared->arrays);
    *prepared = (fgmm_prepared){0};
}
