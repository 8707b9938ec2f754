#include "checkpoint.h"

#include <math.h>
#include <string.h>

void fgmm_fit_place_free(fgmm_context *ctx, fgmm_fit_place *place) {
    fgmm_model_free(ctx, place->now.model);
    fgmm_model_free(ctx, place->best.model);
    fgmm_free(ctx, place->fates);
    *place = (fgmm_fit_place){0};
}

/* ---- a place as numbers ---- */

static void saw_numbers(const fgmm_fit_result *result, double *numbers) {
    numbers[0] = (double)result->engine;
    numbers[1] = result->counts.survivors_per_row;
    numbers[2] = result->counts.dropped_mass;
    numbers[3] = result->counts.dense_fraction;
}

static void take_saw(fgmm_fit_result *result, const double *numbers) {
    result->engine = (fgmm_engine)numbers[0];
    result->counts =
        (fgmm_pass_counts){.survivors_per_row = numbers[1], .dropped_mass = numbers[2], .dense_fraction = numbers[3]};
}

void fgmm_fit_place_numbers(const fgmm_fit_place *place, double *numbers) {
    const fgmm_model *best = place->best.model;
    numbers[FGMM_PLACE_RESTART] = place->restart;
    numbers[FGMM_PLACE_ENGINE] = (double)place->choice.now;
    numbers[FGMM_PLACE_SCREEN_FAILURES] = place->choice.screen_failures;
    numbers[FGMM_PLACE_SUMS_FAIL] = place->choice.sums_fail;
    numbers[FGMM_PLACE_CAREFUL] = place->choice.careful;
    numbers[FGMM_PLACE_CUT] = place->choice.cut;
    numbers[FGMM_PLACE_MOVED] = (double)place->moved;
    numbers[FGMM_PLACE_CHANGE] = place->change;
    numbers[FGMM_PLACE_CHANGED] = place->changed;
    saw_numbers(&place->now, numbers + FGMM_PLACE_NOW);
    saw_numbers(&place->best, numbers + FGMM_PLACE_BEST);
    numbers[FGMM_PLACE_BEST_ITERATIONS] = best ? best->n_iter : 0;
    numbers[FGMM_PLACE_BEST_BOUND] = best ? best->lower_bound : NAN;
    numbers[FGMM_PLACE_BEST_CONVERGED] = best ? best->converged : 0;
}

void fgmm_fit_place_take(fgmm_fit_place *place, const double *numbers) {
    fgmm_model *best = place->best.model;
    place->restart = (int)numbers[FGMM_PLACE_RESTART];
    place->choice.now = (fgmm_engine)numbers[FGMM_PLACE_ENGINE];
    place->choice.screen_failures = (int)numbers[FGMM_PLACE_SCREEN_FAILURES];
    place->choice.sums_fail = numbers[FGMM_PLACE_SUMS_FAIL] != 0;
    place->choice.careful = (int)numbers[FGMM_PLACE_CAREFUL];
    place->choice.cut = numbers[FGMM_PLACE_CUT];
    place->moved = (int64_t)numbers[FGMM_PLACE_MOVED];
    place->change = numbers[FGMM_PLACE_CHANGE];
    place->changed = numbers[FGMM_PLACE_CHANGED] != 0;
    take_saw(&place->now, numbers + FGMM_PLACE_NOW);
    take_saw(&place->best, numbers + FGMM_PLACE_BEST);
    if (!best) return;
    best->n_iter = (int)numbers[FGMM_PLACE_BEST_ITERATIONS];
    best->lower_bound = numbers[FGMM_PLACE_BEST_BOUND];
    best->converged = numbers[FGMM_PLACE_BEST_CONVERGED] != 0;
}

/* ---- which fit it is ---- */

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

/* ---- ranks ---- */

fgmm_status fgmm_fit_identity_meet(fgmm_group *group, const fgmm_fit_identity *identity) {
    enum { COUNT = FGMM_FIT_NUMBERS + 1 };
    fgmm_context *ctx = group->ctx;
    double *all = fgmm_alloc(ctx, (size_t)group->ranks.size * COUNT * sizeof *all, "options of the ranks");
    if (!all) return FGMM_ERR_MEMORY;
    double *own = all + (int64_t)group->ranks.rank * COUNT;
    memcpy(own, identity->numbers, sizeof identity->numbers);
    own[FGMM_FIT_ROWS] = 0;
    own[FGMM_FIT_NUMBERS] = (double)identity->d;
    fgmm_status status = fgmm_group_gather(group, FGMM_MEET_OPTIONS, all, COUNT);
    for (int i = 0; i < group->ranks.size * COUNT && status == FGMM_OK; i++) {
        const char *name = i % COUNT < FGMM_FIT_NUMBERS ? number_names[i % COUNT] : "number of features";
        if (all[i] == all[i % COUNT]) continue;
        /* All see the same and end here: there is nothing to tell. */
        group->over = 1;
        status = fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: the %s of rank %d is %.10g, that of rank 0 is %.10g", name,
                           i / COUNT, all[i], all[i % COUNT]);
    }
    fgmm_free(ctx, all);
    return status;
}

fgmm_status fgmm_model_share(fgmm_group *group, fgmm_model **model, fgmm_covariance type, int64_t k, int64_t d) {
    if (!*model) FGMM_TRY(fgmm_model_new(group->ctx, model, type, k, d));
    FGMM_TRY(fgmm_group_share(group, FGMM_MEET_MODEL, (*model)->weights, k));
    FGMM_TRY(fgmm_group_share(group, FGMM_MEET_MODEL, (*model)->means, k * d));
    return fgmm_group_share(group, FGMM_MEET_MODEL, (*model)->covariances, fgmm_covariances_size(type, k, d));
}

fgmm_status fgmm_fit_place_share(fgmm_group *group, fgmm_fit_place *place, fgmm_covariance type, int64_t d) {
    enum { NOW_K = FGMM_PLACE_NUMBERS, NOW_ITERATIONS, NOW_BOUND, NOW_CONVERGED, BEST_K, NUMBERS };
    double numbers[NUMBERS] = {0};
    const fgmm_model *now = place->now.model, *best = place->best.model;
    fgmm_fit_place_numbers(place, numbers);
    numbers[NOW_K] = now ? (double)now->k : 0;
    numbers[NOW_ITERATIONS] = now ? now->n_iter : 0;
    numbers[NOW_BOUND] = now ? now->lower_bound : 0;
    numbers[NOW_CONVERGED] = now ? now->converged : 0;
    numbers[BEST_K] = best ? (double)best->k : 0;
    FGMM_TRY(fgmm_group_share(group, FGMM_MEET_PLACE, numbers, NUMBERS));
    int64_t k = (int64_t)numbers[NOW_K], best_k = (int64_t)numbers[BEST_K];
    if (k == 0) return FGMM_OK;
    FGMM_TRY(fgmm_model_share(group, &place->now.model, type, k, d));
    place->now.model->n_iter = (int)numbers[NOW_ITERATIONS];
    place->now.model->lower_bound = numbers[NOW_BOUND];
    place->now.model->converged = (int)numbers[NOW_CONVERGED];
    if (best_k > 0) FGMM_TRY(fgmm_model_share(group, &place->best.model, type, best_k, d));
    fgmm_fit_place_take(place, numbers);
    double *fates = fgmm_alloc(group->ctx, (size_t)k * sizeof *fates, "fates of components");
    if (!fates) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < k; i++) fates[i] = place->fates ? place->fates[i] : 0;
    fgmm_status status = fgmm_group_share(group, FGMM_MEET_PLACE, fates, k);
    if (status == FGMM_OK && !place->fates) {
        place->fates = fgmm_calloc(group->ctx, (size_t)k, sizeof *place->fates, "fates of components");
        if (!place->fates) status = FGMM_ERR_MEMORY;
    }
    for (int64_t i = 0; i < k && status == FGMM_OK; i++) place->fates[i] = (fgmm_fate)fates[i];
    fgmm_free(group->ctx, fates);
    return status;
}
