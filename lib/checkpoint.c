#include "checkpoint.h"

#include <math.h>

void fgmm_fit_place_free(fgmm_context *ctx, fgmm_fit_place *place) {
    fgmm_model_free(ctx, place->now.model);
    fgmm_model_free(ctx, place->best.model);
    fgmm_free(ctx, place->fates);
    *place = (fgmm_fit_place){0};
}

void fgmm_fit_halves(uint64_t value, double *low_then_high) {
    low_then_high[0] = (double)(value & UINT32_MAX);
    low_then_high[1] = (double)(value >> 32);
}

static const char *const number_names[FGMM_FIT_NUMBERS] = {[FGMM_FIT_COMPONENTS] = "n_components",
                                                           [FGMM_FIT_COVARIANCE] = "covariance_type",
                                                           [FGMM_FIT_INIT] = "init",
                                                           [FGMM_FIT_INIT_SAMPLE] = "init_sample",
                                                           [FGMM_FIT_N_INIT] = "n_init",
                                                           [FGMM_FIT_MAX_ITER] = "max_iter",
                                                           [FGMM_FIT_TOL] = "tol",
                                                           [FGMM_FIT_REG_COVAR] = "reg_covar",
                                                           [FGMM_FIT_SEED] = "seed",
                                                           [FGMM_FIT_SEED_HIGH] = "seed",
                                                           [FGMM_FIT_FREEZE] = "freeze",
                                                           [FGMM_FIT_ON_DEAD] = "on_dead",
                                                           [FGMM_FIT_ON_COLLAPSE] = "on_collapse",
                                                           [FGMM_FIT_PRECISION] = "precision",
                                                           [FGMM_FIT_ENGINE] = "engine",
                                                           [FGMM_FIT_CONSTRAINTS] = "constraint",
                                                           [FGMM_FIT_START] = "starting model",
                                                           [FGMM_FIT_START_HIGH] = "starting model",
                                                           [FGMM_FIT_ROWS] = "number of usable rows"};

/* A fit of one restart may be told to go on for longer, or to stop at another tolerance: it passes the same models. */
static int may_differ(const fgmm_fit_identity *ours, int number) {
    return (number == FGMM_FIT_MAX_ITER || number == FGMM_FIT_TOL) && ours->numbers[FGMM_FIT_N_INIT] == 1;
}

/* What different devices may make of the moments of the same rows: in deviations, and relatively. */
static const double mean_slack = 1e-4, variance_slack = 1e-3;

static int same_moments(const fgmm_fit_identity *a, const fgmm_fit_identity *b, int64_t j) {
    double deviation = sqrt(fmax(a->variance[j], b->variance[j]));
    /* A constant column has no deviation to measure by. */
    double slack = fmax(mean_slack * deviation, 1e-7 * fabs(a->mean[j]));
    return fabs(a->mean[j] - b->mean[j]) <= slack &&
           fabs(a->variance[j] - b->variance[j]) <= variance_slack * deviation * deviation + slack * slack;
}

fgmm_status fgmm_fit_identity_check(fgmm_context *ctx, const char *path, const fgmm_fit_identity *ours,
                                    const fgmm_fit_identity *theirs) {
    static const char *const other = "it is the checkpoint of another fit; remove it to begin anew";
    for (int i = 0; i < FGMM_FIT_NUMBERS; i++)
        if (ours->numbers[i] != theirs->numbers[i] && !may_differ(ours, i))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: its %s is %.10g, here it is %.10g: %s", path, number_names[i],
                             theirs->numbers[i], ours->numbers[i], other);
    if (!(fabs(ours->weight - theirs->weight) <= 1e-6 * ours->weight))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: its rows weigh %.10g, these %.10g: %s", path, theirs->weight,
                         ours->weight, other);
    for (int64_t j = 0; j < ours->d; j++)
        if (!same_moments(ours, theirs, j))
            return fgmm_fail(ctx, FGMM_ERR_INVALID,
                             "%s: it was made of other rows, whose column %lld has mean %.7g and variance %.7g, here "
                             "%.7g and %.7g: %s",
                             path, (long long)j, theirs->mean[j], theirs->variance[j], ours->mean[j], ours->variance[j],
                             other);
    return FGMM_OK;
}
