#include "estep.h"

#include <math.h>
#include <string.h>

#include "cholesky.h"
#include "params.h"
#include "pass_check.h"

/* Below this many components a screen saves nothing over direct differences. */
static const int64_t dense_components = 8;

fgmm_engine fgmm_engine_next(const fgmm_engine_choice *choice, fgmm_precision precision, int64_t k) {
    if (precision == FGMM_DOUBLE) return FGMM_ENGINE_DENSE;
    if (choice->asked != FGMM_ENGINE_AUTO) return choice->asked;
    if (k <= dense_components) return FGMM_ENGINE_DENSE;
    return choice->now == FGMM_ENGINE_AUTO ? FGMM_ENGINE_SCREEN : choice->now;
}

/* Screening pays while most rows pass it; after two failures it is not tried again in this fit. */
static void engine_learn(fgmm_engine_choice *choice, fgmm_engine ran, const fgmm_pass_counts *counts) {
    choice->now = ran;
    if (ran == FGMM_ENGINE_SCREEN && counts->dense_fraction > 0.25) {
        choice->screen_failures++;
        choice->now = FGMM_ENGINE_DENSE;
    } else if (ran == FGMM_ENGINE_DENSE && counts->survivors_per_row < 6 && choice->screen_failures < 2) {
        choice->now = FGMM_ENGINE_SCREEN;
    }
}

typedef struct {
    const fgmm_target *target;
    double weight, rows;
} estep_state;

static fgmm_status estep_visit(void *user, const fgmm_feed_block *block) {
    estep_state *state = user;
    if (block->first == 0) state->rows = 0;
    state->rows += (double)(block->n - block->n_bad);
    return state->target->backend->estep(state->target->device, block->block, NULL);
}

/* So many passes after an imprecise one, what was too quick for it is not tried. */
static const int careful_passes = 7;

/* The lowest cut: e^-69. */
static const double cut_min = 1e-30;

/*
 * A likelihood from sums, of L S0 - a S2 over the components, is off in proportion to these terms, not to what they come to. Half of a
 * contract is spent on that.
 */
static const double sums_share = 5e-6;

/* Whether the rows that a model stands for would leave it well within the contract. */
static int sums_suffice(const fgmm_params *params, double allows) {
    double half = 0.5 * (double)params->d, terms = 0, total = 0;
    for (int64_t i = 0; i < params->k; i++) {
        if (!(params->weights[i] > 0)) continue;
        double l = params->log_norm[i] + params->log_weights[i];
        terms += params->weights[i] * (fabs(l) + 1 + half);
        total += params->weights[i] * (l - half);
    }
    return 0x1p-19 * terms < 0.7 * sums_share * allows * fmax(1, fabs(total));
}

/* Whether these rows did not. Of hard passes the squares alone are asked for. Neither side is a number where sums overflow. */
static int is_lost(const fgmm_params *params, const fgmm_stats *stats, const fgmm_sums *sums, double allows) {
    double size = stats->log_likelihood;
    for (int64_t i = 0; params->hard && i < params->k; i++)
        if (stats->s0[i] > 0) size -= (params->log_norm[i] + params->log_weights[i]) * stats->s0[i];
    return sums->rounding != 0 && !(sums->rounding < sums_share * allows * fmax(stats->weight, fabs(size)));
}

/* To the new means. */
static void move_centres(fgmm_stats *stats) {
    int64_t k = stats->model->k, d = stats->model->d;
    stats->about_means = 0;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < d && stats->s0[i] > 0; j++)
            stats->centres[i * d + j] += stats->s1[i * d + j] / stats->s0[i];
}

/* The sums of all ranks. */
static fgmm_status add_ranks(fgmm_stats *stats, fgmm_sums *sums) {
    if (!stats->group) return FGMM_OK;
    int64_t k = stats->model->k, d = stats->model->d, size = fgmm_covariances_size(stats->model->type, k, d);
    double *tail = stats->s2 + size, imprecise = sums->imprecise != 0;
    double *const numbers[FGMM_STATS_TAIL] = {&stats->log_likelihood, &stats->weight, &stats->rows,    &sums->survivors,
                                              &sums->dense_rows,      &sums->dropped, &sums->rounding, &imprecise};
    for (int i = 0; i < FGMM_STATS_TAIL; i++) tail[i] = *numbers[i];
    FGMM_TRY(fgmm_group_sum(stats->group, FGMM_MEET_STATISTICS, fgmm_model_fingerprint(stats->model), stats->s0,
                            k + k * d + size + FGMM_STATS_TAIL));
    for (int i = 0; i < FGMM_STATS_TAIL; i++) *numbers[i] = tail[i];
    sums->imprecise = imprecise > 0;
    sums->weight = stats->weight;
    sums->log_likelihood = stats->log_likelihood;
    return FGMM_OK;
}

static fgmm_status run_once(fgmm_context *ctx, fgmm_feed *feed, const char *stage, const fgmm_target *target,
                            const fgmm_params *params, fgmm_stats *stats, fgmm_sums *sums) {
    estep_state state = {.target = target};
    for (;;) {
        *sums = (fgmm_sums){.s0 = stats->s0, .s1 = stats->s1, .s2 = stats->s2};
        fgmm_status status = fgmm_feed_run(feed, stage, params, estep_visit, &state);
        if (status == FGMM_OK) {
            fgmm_stats_start(ctx, stats); /* while the device works */
            status = target->backend->collect(target->device, sums);
        }
        if (status == FGMM_OK) break;
        if (status != FGMM_ERR_MEMORY || !fgmm_feed_give_up(feed)) return status;
    }
    const fgmm_model *model = stats->model;
    int64_t d = model->d, matrices = !fgmm_has_matrices(model->type) ? 0 : model->type == FGMM_FULL ? model->k : 1;
    int threads = fgmm_threads_over(ctx, (double)(matrices * d * d));
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < matrices; i++) fgmm_lower_mirror(stats->s2 + i * d * d, d);
    stats->log_likelihood = sums->log_likelihood;
    stats->weight = sums->weight;
    stats->rows = state.rows;
    return add_ranks(stats, sums);
}

/* And once more, row by row, where a likelihood from sums is lost: later passes begin so. */
static fgmm_status run_pass(fgmm_context *ctx, fgmm_feed *feed, const char *stage, fgmm_params *params, double allows,
                            fgmm_engine_choice *choice, fgmm_stats *stats, fgmm_sums *sums) {
    const fgmm_target *target = fgmm_feed_target(feed);
    FGMM_TRY(run_once(ctx, feed, stage, target, params, stats, sums));
    if (!is_lost(params, stats, sums, allows)) return FGMM_OK;
    choice->sums_fail = 1;
    params->summed = 0;
    return run_once(ctx, feed, stage, target, params, stats, sums);
}

fgmm_status fgmm_estep_pass(fgmm_context *ctx, fgmm_feed *feed, const char *stage, fgmm_stats *stats,
                            fgmm_precision precision, int hard, fgmm_engine_choice *choice, fgmm_pass_counts *counts) {
    const fgmm_target *target = fgmm_feed_target(feed);
    const fgmm_model *model = stats->model;
    fgmm_prepared prepared = {0};
    fgmm_status status = FGMM_OK;
    fgmm_sums sums;
    fgmm_pass_counts seen = {0};
    double allows = precision == FGMM_FAST ? FGMM_FAST_ALLOWS : 1,
           usual_cut = precision == FGMM_FAST ? FGMM_FAST_CUT : FGMM_CUT;
    FGMM_GO(fgmm_prepare(ctx, &prepared, model));
    fgmm_params *params = &prepared.params;
    params->precision = precision;
    params->summed = !choice->sums_fail && (hard || sums_suffice(params, allows));
    params->engine = fgmm_engine_next(choice, params->precision, model->k);
    /* A hard pass needs the best component alone, whose r is at least 1/K. Rows that cannot be read again get the
     * lowest cut. */
    params->cut = params->precision == FGMM_DOUBLE ? 0
                  : hard                           ? 0.5 / (double)model->k
                  : fgmm_feed_once(feed)           ? cut_min
                  : choice->cut > 0                ? choice->cut
                                                   : usual_cut;
    params->hard = hard;
    params->followed = stats->followed;
    params->reg_covar = stats->reg_covar;
    params->careful = fgmm_feed_once(feed) || choice->careful > 0;
    if (choice->careful > 0) choice->careful--;
    params->sum_centres = stats->about_means ? model->means : stats->centres;
    FGMM_GO(run_pass(ctx, feed, stage, params, allows, choice, stats, &sums));
    double tolerance = precision == FGMM_DOUBLE ? 1e-15 : 1e-6 * allows;
    /* k-means has no use for variances. */
    fgmm_pass_check check = {.cut = 1};
    double epsilon = stats->group ? stats->group->epsilon : target->facts.sum_epsilon;
    if (!hard) check = fgmm_check_pass(ctx, stats, epsilon, tolerance);
    int too_much_dropped = !hard && params->cut > check.cut && params->cut > cut_min;
    if (fgmm_feed_once(feed) && check.recentre)
        fgmm_log(ctx, FGMM_LOG_WARNING,
                 "a component moved so far that its variance may be off by more than 1e-5, and these rows cannot be "
                 "read again");
    if (!fgmm_feed_once(feed) && (check.recentre || too_much_dropped || sums.imprecise)) {
        if (check.recentre) {
            move_centres(stats);
            params->sum_centres = stats->centres;
        }
        /* Variances that small may also be lost to what a backend does quickly about centres of its own. */
        params->careful = sums.imprecise || check.recentre;
        if (sums.imprecise) choice->careful = careful_passes;
        if (too_much_dropped) params->cut = fmax(0.1 * check.cut, cut_min);
        FGMM_GO(run_pass(ctx, feed, stage, params, allows, choice, stats, &sums));
    }
    /* The next pass starts where this one ended, and comes back to the usual cut as the components settle. */
    if (!hard) choice->cut = fmin(5 * params->cut, usual_cut);
    if (stats->rows > 0) {
        seen.survivors_per_row = sums.survivors / stats->rows;
        seen.dropped_mass = sums.weight > 0 ? sums.dropped / sums.weight : 0;
        seen.dense_fraction = sums.dense_rows / stats->rows;
    }
    engine_learn(choice, params->engine, &seen);
    if (counts) *counts = seen;
done:
    fgmm_prepared_free(ctx, &prepared);
    return status;
}
