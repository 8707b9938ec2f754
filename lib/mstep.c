/* The M-step, in double: scikit-learn's, with the variance about the new mean. */
#include <math.h>
#include <string.h>

#include "stats.h"

double fgmm_variance_floor(double mean) {
    return fmax(0x1p-94 * mean * mean, 1e-30);
}

static double floored(double variance, double floor, double reg_covar, int *hit) {
    *hit = !(variance > floor);
    return (*hit ? floor : variance) + reg_covar;
}

/* Variances of component i about its new mean, which lies at centre + shift. @return 1 if all of them fell to the floor. */
static int update_variance(const fgmm_stats *stats, fgmm_model *model, int64_t i, double reg_covar) {
    int64_t d = model->d;
    double s0 = stats->s0[i];
    if (model->type == FGMM_SPHERICAL) {
        double variance = stats->s2[i] / s0, floor = 0;
        for (int64_t j = 0; j < d; j++) {
            double shift = stats->s1[i * d + j] / s0;
            variance -= shift * shift;
            floor += fgmm_variance_floor(stats->centres[i * d + j] + shift) / (double)d;
        }
        int hit;
        model->covariances[i] = floored(variance / (double)d, floor, reg_covar, &hit);
        return hit;
    }
    int all = 1, hit;
    for (int64_t j = 0; j < d; j++) {
        double shift = stats->s1[i * d + j] / s0;
        double variance = stats->s2[i * d + j] / s0 - shift * shift;
        model->covariances[i * d + j] =
            floored(variance, fgmm_variance_floor(stats->centres[i * d + j] + shift), reg_covar, &hit);
        all &= hit;
    }
    return all;
}

/*
 * With the means frozen the likelihood is greatest for the variance about the old mean; s1 and s2 speak of centres,
 * which equal the old means in all but rare passes.
 */
static void variance_about(const fgmm_stats *stats, fgmm_model *model, int64_t i, double reg_covar) {
    int64_t d = model->d;
    double s0 = stats->s0[i], total = 0, floor = 0;
    int hit;
    for (int64_t j = 0; j < d; j++) {
        int64_t at = i * d + j;
        double h = model->means[at] - stats->centres[at];
        double correction = h * h - 2 * h * stats->s1[at] / s0;
        if (model->type == FGMM_SPHERICAL) {
            total += correction;
            floor += fgmm_variance_floor(model->means[at]) / (double)d;
        } else {
            model->covariances[at] =
                floored(stats->s2[at] / s0 + correction, fgmm_variance_floor(model->means[at]), reg_covar, &hit);
        }
    }
    if (model->type == FGMM_SPHERICAL)
        model->covariances[i] = floored((stats->s2[i] / s0 + total) / (double)d, floor, reg_covar, &hit);
}

fgmm_status fgmm_mstep(fgmm_context *ctx, const fgmm_stats *stats, double reg_covar, unsigned freeze, fgmm_model **out,
                       fgmm_fate *fates) {
    int64_t k = stats->model->k, d = stats->model->d;
    double total = 0;
    for (int64_t i = 0; i < k; i++) total += stats->s0[i];
    if (!(total > 0) || !isfinite(total))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "the statistics hold no rows: their weights sum to %g", total);
    fgmm_model *model = NULL;
    FGMM_TRY(fgmm_model_copy(ctx, &model, stats->model));
    for (int64_t i = 0; i < k; i++) {
        fgmm_fate fate = FGMM_ALIVE;
        if (stats->s0[i] > 1e-12 * total / (double)k) {
            int freeze_means = (freeze & FGMM_FREEZE_MEANS) != 0,
                freeze_covariances = (freeze & FGMM_FREEZE_COVARIANCES) != 0;
            if (!freeze_means)
                for (int64_t j = 0; j < d; j++)
                    model->means[i * d + j] = stats->centres[i * d + j] + stats->s1[i * d + j] / stats->s0[i];
            if (!freeze_covariances && freeze_means)
                variance_about(stats, model, i, reg_covar);
            else if (!freeze_covariances && update_variance(stats, model, i, reg_covar))
                fate = FGMM_COLLAPSED;
            if (!(freeze & FGMM_FREEZE_WEIGHTS)) model->weights[i] = stats->s0[i] / total;
        } else {
            fate = FGMM_DEAD;
            if (!(freeze & FGMM_FREEZE_WEIGHTS)) model->weights[i] = 0;
        }
        if (fates) fates[i] = fate;
    }
    model->lower_bound = stats->weight > 0 ? stats->log_likelihood / stats->weight : NAN;
    model->converged = 0;
    *out = model;
    return FGMM_OK;
}
