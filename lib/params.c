#include "params.h"

#include <math.h>
#include <string.h>

#include "cholesky.h"
#include "clones.h"

static const double log_2pi = 1.8378770664093454836;

/* A power of two near 1 / sqrt(variance), kept where f32 squares stay finite. */
static double power_scale(double variance) {
    if (!(variance > 0)) return 1;
    double exponent = round(-0.5 * log2(variance));
    return ldexp(1, (int)fmax(-60, fmin(60, exponent)));
}

/* A logarithm of eight values at a time, where their product stays far from the ends of a double's range. */
static double sum_of_logs(const double *values, int64_t n) {
    enum { TOGETHER = 8 };
    double sum = 0;
    for (int64_t i = 0; i < n; i += TOGETHER) {
        int64_t end = i + TOGETHER < n ? i + TOGETHER : n;
        double product = 1;
        for (int64_t j = i; j < end; j++) product *= values[j];
        if (product > 1e-290 && product < 1e290)
            sum += log(product);
        else
            for (int64_t j = i; j < end; j++) sum += log(values[j]);
    }
    return sum;
}

/* Of component i: its log weight, and where it has no matrix the rest. */
static void prepare_log_terms(const fgmm_model *model, int64_t i, double *log_weights, double *log_norm,
                              double *half_inv_var) {
    int64_t d = model->d;
    double log_det = 0;
    log_weights[i] = model->weights[i] > 0 ? log(model->weights[i]) : FGMM_LOG_ZERO;
    if (fgmm_has_matrices(model->type)) return;
    if (model->type == FGMM_SPHERICAL) {
        log_det = (double)d * log(model->covariances[i]);
        half_inv_var[i] = 0.5 / model->covariances[i];
    } else {
        log_det = sum_of_logs(model->covariances + i * d, d);
        for (int64_t j = 0; j < d; j++) half_inv_var[i * d + j] = 0.5 / model->covariances[i * d + j];
    }
    log_norm[i] = -0.5 * ((double)d * log_2pi + log_det);
}

/* W = L^-1 of each matrix, log_norm from its determinant, and the condition of a tied one. */
static fgmm_status prepare_matrices(fgmm_context *ctx, const fgmm_model *model, double *whitening, double *log_norm,
                                    double *condition) {
    int64_t k = model->k, d = model->d, count = model->type == FGMM_TIED ? 1 : k, singular = INT64_MAX;
    int threads = (double)count * (double)d * (double)d * (double)d < 1e6 ? 1 : fgmm_threads(ctx);
    double *rows = fgmm_alloc(ctx, (size_t)threads * (size_t)d * sizeof *rows, "a row of a matrix");
    if (!rows) return FGMM_ERR_MEMORY;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(min : singular)
    for (int64_t i = 0; i < count; i++) {
        double *w = whitening + i * d * d, log_det = 0, factor = 0, inverse = 0;
        memcpy(w, model->covariances + i * d * d, (size_t)(d * d) * sizeof *w);
        if (fgmm_cholesky(w, d) >= 0) {
            singular = i < singular ? i : singular;
            continue;
        }
        for (int64_t j = 0; j < d; j++) {
            log_det += 2 * log(w[j * d + j]);
            for (int64_t l = 0; l <= j; l++) factor += w[j * d + l] * w[j * d + l];
            for (int64_t l = j + 1; l < d; l++) w[j * d + l] = 0;
        }
        fgmm_lower_invert(w, d, rows + fgmm_thread_number() * d);
        for (int64_t j = 0; j < d * d; j++) inverse += w[j] * w[j];
        log_norm[i] = -0.5 * ((double)d * log_2pi + log_det);
        if (count == 1) *condition = sqrt(factor) * sqrt(inverse);
    }
    fgmm_free(ctx, rows);
    for (int64_t i = count; i < k; i++) log_norm[i] = log_norm[0];
    if (singular < k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "the covariance of component %lld is not positive definite",
                         (long long)singular);
    return FGMM_OK;
}

/* sum over components of weight |W (m - centre)|^2. */
static fgmm_status whitened_spread(fgmm_context *ctx, const fgmm_model *model, const double *w, const double *centre,
                                   double *out) {
    int64_t k = model->k, d = model->d;
    int threads = fgmm_threads_over(ctx, (double)k * (double)d * (double)d);
    double *room = fgmm_alloc(ctx, (size_t)(threads * d + k) * sizeof *room, "distances of the means"), total = 0;
    if (!room) return FGMM_ERR_MEMORY;
    double *squares = room + threads * d;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < k; i++) {
        double *shift = room + fgmm_thread_number() * d;
        for (int64_t j = 0; j < d; j++) shift[j] = model->means[i * d + j] - centre[j];
        squares[i] = 0;
        for (int64_t j = 0; j < d; j++) {
            double y = fgmm_dot(w + j * d, shift, j + 1);
            squares[i] += y * y;
        }
    }
    for (int64_t i = 0; i < k; i++) total += model->weights[i] > 0 ? model->weights[i] * squares[i] : 0;
    fgmm_free(ctx, room);
    *out = total;
    return FGMM_OK;
}

/* What component i adds to the mixture's mean [D] and to its variances (of tied ones there are none to add), both about `origin`. */
FGMM_CLONES static void add_moments(const fgmm_model *model, int64_t i, const double *origin, double *mean,
                                    double *square) {
    int64_t d = model->d;
    int64_t step = model->type == FGMM_FULL ? d + 1 : model->type == FGMM_DIAG ? 1 : 0;
    int64_t size = model->type == FGMM_FULL ? d * d : model->type == FGMM_DIAG ? d : 1;
    const double *variances = model->covariances + i * size, *at = model->means + i * d;
    double weight = model->weights[i];
    if (model->type == FGMM_TIED) {
        for (int64_t j = 0; j < d; j++) mean[j] += weight * (at[j] - origin[j]);
        return;
    }
    for (int64_t j = 0; j < d; j++) {
        double shift = at[j] - origin[j];
        mean[j] += weight * shift;
        square[j] += weight * (variances[j * step] + shift * shift);
    }
}

/*
 * Log terms, and the mixture's first two moments: the mean is rounded to a float, and the variances are about that. Threads gather once. Sums
 * are about the heaviest component's mean, of whose squared distance from the mixture's the variances hold 1/K at least, and by parts that K
 * alone decides, whatever the number of threads.
 */
static fgmm_status prepare_components(fgmm_context *ctx, const fgmm_model *model, double *log_weights, double *log_norm,
                                      double *half_inv_var, double *mean, double *square) {
    enum { PARTS = 16 }; /* whatever the threads are; their sums are added by one */
    int64_t k = model->k, d = model->d;
    int threads = fgmm_threads_over(ctx, (double)(k * d));
    int64_t heaviest = 0;
    for (int64_t i = 1; i < k; i++) heaviest = model->weights[i] > model->weights[heaviest] ? i : heaviest;
    const double *origin = model->means + heaviest * d;
    double *room = fgmm_calloc(ctx, (size_t)(PARTS * 2 * d), sizeof *room, "sums of columns"), weight = 0;
    if (!room) return FGMM_ERR_MEMORY;
#pragma omp parallel for num_threads(threads)
    for (int64_t part = 0; part < PARTS; part++) {
        double *sums = room + part * 2 * d;
        for (int64_t i = part * k / PARTS; i < (part + 1) * k / PARTS; i++) {
            prepare_log_terms(model, i, log_weights, log_norm, half_inv_var);
            add_moments(model, i, origin, sums, sums + d);
        }
    }
    for (int64_t i = 0; i < k; i++) weight += model->weights[i];
    for (int64_t part = 1; part < PARTS; part++)
        for (int64_t j = 0; j < 2 * d; j++) room[j] += room[part * 2 * d + j];
    for (int64_t j = 0; j < d; j++) {
        mean[j] = (double)(float)(weight * origin[j] + room[j]);
        double shift = mean[j] - origin[j];
        square[j] = model->type == FGMM_TIED ? 0 : room[d + j] - shift * (2 * room[j] - weight * shift);
    }
    fgmm_free(ctx, room);
    return FGMM_OK;
}

/* The screen's scale from the mixture's variances, which after an M-step are the data's. */
static fgmm_status prepare_scale(fgmm_context *ctx, const fgmm_model *model, const double *whitening,
                                 const double *centre, double *scale) {
    int64_t d = model->d;
    double total = 0;
    if (model->type == FGMM_TIED) {
        FGMM_TRY(whitened_spread(ctx, model, whitening, centre, &total));
        total += (double)d;
    }
    for (int64_t j = 0; j < d; j++) total += scale[j];
    for (int64_t j = 0; j < d; j++) scale[j] = power_scale(model->type == FGMM_DIAG ? scale[j] : total / (double)d);
    return FGMM_OK;
}

fgmm_status fgmm_prepare(fgmm_context *ctx, fgmm_prepared *out, const fgmm_model *model) {
    int64_t k = model->k, d = model->d, size = fgmm_covariances_size(model->type, k, d);
    int matrices = fgmm_has_matrices(model->type);
    double *at = fgmm_alloc(ctx, (size_t)(2 * k + size + 2 * d) * sizeof *at, "parameters");
    if (!at) return FGMM_ERR_MEMORY;
    double *log_weights = at, *log_norm = at + k, *inverse = at + 2 * k, *centre = inverse + size, *scale = centre + d,
           condition = 1;
    fgmm_status status = prepare_components(ctx, model, log_weights, log_norm, inverse, centre, scale);
    if (status == FGMM_OK && matrices) status = prepare_matrices(ctx, model, inverse, log_norm, &condition);
    if (status == FGMM_OK) status = prepare_scale(ctx, model, inverse, centre, scale);
    if (status != FGMM_OK) {
        fgmm_free(ctx, at);
        return status;
    }
    double log_norm_max = -INFINITY;
    for (int64_t i = 0; i < k; i++)
        if (model->weights[i] > 0) log_norm_max = fmax(log_norm_max, log_norm[i]);
    *out = (fgmm_prepared){.arrays = at,
                           .params = {.covariance_type = model->type,
                                      .k = k,
                                      .d = d,
                                      .means = model->means,
                                      .half_inv_var = matrices ? NULL : inverse,
                                      .whitening = matrices ? inverse : NULL,
                                      .condition = condition,
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
