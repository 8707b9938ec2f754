/* Expectation-maximization. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint.h"
#include "constraints.h"
#include "laps.h"
#include "persist.h"
#include "report.h"
#include "seed.h"

typedef struct {
    fgmm_context *ctx;
    const fgmm_rows *rows;
    const fgmm_fit_options *options;
    fgmm_compute_options compute;
    unsigned constraints;
    int n_init, max_iter;
    double tol, reg_covar; /* tol < 0: never stop early */
    int64_t k;
    const fgmm_target *target;
    fgmm_feed *feed;
    fgmm_seeder *seeder; /* of rank 0 */
    fgmm_group meeting;
    fgmm_group *group; /* meeting, or NULL: one rank alone */
    fgmm_report_scope *scope;
    fgmm_fit_place place;
    double saved;      /* when the last checkpoint was written, or tried */
    int unsaved;       /* 1: the place has moved since a checkpoint was written */
    fgmm_stats *stats; /* of the last pass, kept for the next of the same shape: its model may be gone */
    fgmm_model *last;  /* of the iteration before, whose room the next M-step takes */
    fgmm_laps laps;
} fit_state;

static fgmm_status check_options(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_fit_options *o) {
    if (!fgmm_covariance_name(o->covariance_type))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: covariance_type %d is unknown", (int)o->covariance_type);
    if ((unsigned)o->init > FGMM_INIT_RANDOM_FROM_DATA)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: init %d is unknown", (int)o->init);
    if ((unsigned)o->on_dead > FGMM_DROP || (unsigned)o->on_collapse > FGMM_DROP || o->on_collapse == FGMM_RESEED)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: on_dead is keep, reseed or drop, on_collapse keep or drop");
    if (o->n_init < 0 || o->max_iter < 0 || o->init_sample < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_init, max_iter and init_sample must not be negative");
    if (isnan(o->checkpoint_seconds)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: checkpoint_seconds is NaN");
    if (isnan(o->tol)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: tol is NaN");
    if (o->freeze && (o->on_dead != FGMM_KEEP || o->on_collapse != FGMM_KEEP))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: reseed and drop change what freeze holds: use one or the other");
    if (o->freeze & ~7u) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: unknown freeze flags %#x", o->freeze);
    const fgmm_model *start = o->init_model;
    if (start && start->d != rows->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: the rows have %lld features, the starting model %lld",
                         (long long)rows->d, (long long)start->d);
    if (start && o->n_components && o->n_components != start->k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld, but the starting model has %lld",
                         (long long)o->n_components, (long long)start->k);
    int64_t k = start ? start->k : o->n_components;
    if (k <= 0) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld must be positive", (long long)k);
    if (k > FGMM_COMPONENTS_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld: at most %d", (long long)k,
                         FGMM_COMPONENTS_MAX);
    if (k > rows->n && o->ranks.size <= 1)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld exceeds the number of rows, %lld",
                         (long long)k, (long long)rows->n);
    return FGMM_OK;
}

static int is_root(const fit_state *fit) {
    return !fit->group || fit->group->ranks.rank == 0;
}

static fgmm_status read_options(fit_state *fit, const fgmm_fit_options *o) {
    FGMM_TRY(check_options(fit->ctx, fit->rows, o));
    FGMM_TRY(fgmm_compute_read(fit->ctx, &fit->compute, &o->compute));
    FGMM_TRY(fgmm_reg_covar_read(fit->ctx, o->reg_covar, &fit->reg_covar));
    fit->options = o;
    fit->k = o->init_model ? o->init_model->k : o->n_components;
    fit->n_init = o->init_model || o->n_init == 0 ? 1 : o->n_init;
    fit->max_iter = o->max_iter ? o->max_iter : 100;
    fit->tol = o->tol == 0 ? 1e-3 : o->tol;
    return FGMM_OK;
}

/* ---- components that die or collapse ---- */

static void remove_component(fgmm_model *model, int64_t i) {
    int64_t d = model->d, last = model->k - 1;
    int64_t per = model->type == FGMM_TIED ? 0 : fgmm_covariances_size(model->type, 1, d);
    memmove(model->weights + i, model->weights + i + 1, (size_t)(last - i) * sizeof(double));
    memmove(model->means + i * d, model->means + (i + 1) * d, (size_t)((last - i) * d) * sizeof(double));
    memmove(model->covariances + i * per, model->covariances + (i + 1) * per,
            (size_t)((last - i) * per) * sizeof(double));
    model->k = last;
}

static void normalise_weights(fgmm_model *model) {
    double total = 0;
    for (int64_t i = 0; i < model->k; i++) total += model->weights[i];
    for (int64_t i = 0; i < model->k && total > 0; i++) model->weights[i] /= total;
}

static const char *const collapse_causes[] = {[FGMM_SPHERICAL] = "its rows are identical",
                                              [FGMM_DIAG] = "its rows are identical",
                                              [FGMM_TIED] = "the shared covariance is singular",
                                              [FGMM_FULL] = "its covariance is singular"};

/* Lets the policies act. *changed tells that the model is no longer what the M-step made. */
static fgmm_status apply_policies(fit_state *fit, fgmm_model *model, const fgmm_fate *fates, int iteration,
                                  int64_t *moved, int *changed) {
    const fgmm_fate *before = fit->place.fates;
    int64_t original = model->k, removed = 0;
    int ranked = 0;
    for (int64_t i = 0; i < original; i++) {
        if (fates[i] == FGMM_ALIVE) continue;
        int dead = fates[i] == FGMM_DEAD;
        fgmm_policy policy = dead ? fit->options->on_dead : fit->options->on_collapse;
        /* A shared covariance cannot be dropped with one component. */
        if (!dead && model->type == FGMM_TIED) policy = FGMM_KEEP;
        /* Data with fewer clusters than components would move them for ever; one component has to remain. */
        if (policy == FGMM_RESEED && *moved >= fit->k) policy = FGMM_KEEP;
        if (policy == FGMM_DROP && model->k == 1) policy = FGMM_KEEP;
        const char *done = policy == FGMM_DROP ? "dropped" : policy == FGMM_RESEED ? "moved" : "kept";
        if (policy != FGMM_KEEP || before[i] != fates[i])
            fgmm_report_warn(fit->scope, "component %lld %s in iteration %d (%s): %s", (long long)i,
                             dead ? "died" : "collapsed", iteration,
                             dead ? "no row is near it" : collapse_causes[model->type], done);
        if (policy == FGMM_RESEED) {
            if (is_root(fit) && !ranked) FGMM_TRY(fgmm_seed_rank(fit->seeder, model));
            ranked = 1;
            if (is_root(fit))
                fgmm_seed_move(fit->seeder, model, i - removed, fit->reg_covar, moved);
            else
                ++*moved;
            *changed = 1;
        } else if (policy == FGMM_DROP) {
            remove_component(model, i - removed++);
            *changed = 1;
        }
    }
    if (removed) normalise_weights(model);
    return ranked && fit->group ? fgmm_model_share(fit->group, &model, model->type, model->k, model->d) : FGMM_OK;
}

/* ---- checkpoints ---- */

/* A model that a policy has changed has not been seen by an E-step: it cannot have converged. */
static int has_converged(const fit_state *fit) {
    return !fit->place.changed && fit->tol > 0 && fabs(fit->place.change) < fit->tol;
}

/* What the fit under way is, but for its rows. */
static fgmm_fit_identity identify_options(const fit_state *fit) {
    const fgmm_fit_options *o = fit->options;
    fgmm_fit_identity identity = {.numbers = {[FGMM_FIT_COMPONENTS] = (double)fit->k,
                                              [FGMM_FIT_COVARIANCE] = o->covariance_type,
                                              [FGMM_FIT_INIT] = o->init,
                                              [FGMM_FIT_INIT_SAMPLE] = (double)o->init_sample,
                                              [FGMM_FIT_N_INIT] = fit->n_init,
                                              [FGMM_FIT_MAX_ITER] = fit->max_iter,
                                              [FGMM_FIT_TOL] = fit->tol < 0 ? -1 : fit->tol,
                                              [FGMM_FIT_REG_COVAR] = fit->reg_covar,
                                              [FGMM_FIT_FREEZE] = o->freeze,
                                              [FGMM_FIT_ON_DEAD] = o->on_dead,
                                              [FGMM_FIT_ON_COLLAPSE] = o->on_collapse,
                                              [FGMM_FIT_PRECISION] = fit->compute.precision,
                                              [FGMM_FIT_ENGINE] = fit->compute.engine,
                                              [FGMM_FIT_CONSTRAINTS] = fit->constraints},
                                  .d = fit->rows->d};
    fgmm_fit_halves(o->seed, &identity.numbers[FGMM_FIT_SEED]);
    if (o->init_model) {
        identity.numbers[FGMM_FIT_COVARIANCE] = o->init_model->type;
        identity.numbers[FGMM_FIT_INIT] = 0;
        fgmm_fit_halves(fgmm_model_fingerprint(o->init_model), &identity.numbers[FGMM_FIT_START]);
    }
    return identity;
}

/* All of it, with pointers into the feed or the group. */
static fgmm_fit_identity identify(const fit_state *fit) {
    fgmm_fit_identity identity = identify_options(fit);
    const fgmm_group *group = fit->group;
    identity.numbers[FGMM_FIT_ROWS] = (double)(group ? group->n : fit->rows->n - fgmm_feed_skipped(fit->feed));
    identity.weight = group ? group->weight : fgmm_feed_weight(fit->feed);
    identity.mean = group ? group->mean : fgmm_feed_mean(fit->feed);
    identity.variance = group ? group->variance : fgmm_feed_variance(fit->feed);
    return identity;
}

static double checkpoint_seconds(const fit_state *fit) {
    double asked = fit->options->checkpoint_seconds;
    return asked < 0 ? 0 : asked == 0 ? 60 : asked;
}

/* Writes a checkpoint where the place has moved since the last; the fit goes on without. */
static void save_place(fit_state *fit) {
    const char *path = fit->options->checkpoint;
    if (!path || !fit->unsaved || !is_root(fit)) return;
    const fgmm_fit_identity identity = identify(fit);
    if (fgmm_checkpoint_save(fit->ctx, path, &identity, &fit->place) == FGMM_OK) {
        fit->unsaved = 0;
    } else {
        fgmm_report_warn(fit->scope, "no checkpoint of iteration %d: %s", fit->place.now.model->n_iter,
                         fgmm_context_message(fit->ctx));
        fgmm_enter(fit->ctx);
    }
    fit->saved = fgmm_now();
}

/* Goes to the place that the checkpoint holds, if there is one. */
static fgmm_status resume(fit_state *fit) {
    const char *path = fit->options->checkpoint;
    fit->saved = fgmm_now();
    if (!path) return FGMM_OK;
    const fgmm_fit_identity identity = identify(fit);
    if (is_root(fit)) FGMM_TRY(fgmm_checkpoint_load(fit->ctx, path, &identity, &fit->place));
    fgmm_covariance type = (fgmm_covariance)identity.numbers[FGMM_FIT_COVARIANCE];
    if (fit->group) FGMM_TRY(fgmm_fit_place_share(fit->group, &fit->place, type, identity.d));
    fgmm_model *model = fit->place.now.model;
    if (!model) return FGMM_OK;
    fit->place.choice.asked = fit->compute.engine;
    model->converged = has_converged(fit);
    fgmm_log(fit->ctx, FGMM_LOG_INFO, "going on from %s, iteration %d of restart %d", path, model->n_iter,
             fit->place.restart);
    return FGMM_OK;
}

/* ---- one restart ---- */

static void drop_stats(fit_state *fit) {
    fgmm_stats_free(fit->ctx, fit->stats);
    fit->stats = NULL;
}

/* Where memory is short, another model is too much. */
static void keep_last(fit_state *fit, fgmm_model *model) {
    fgmm_model_free(fit->ctx, fit->last);
    fit->last = isinf(fgmm_memory_left(fit->ctx)) ? model : NULL;
    if (!fit->last) fgmm_model_free(fit->ctx, model);
}

/* What the device may begin with while the host makes the next model: the next pass, or, after the last, what calls over the same rows take. */
static fgmm_follower follower_of(const fit_state *fit, const fgmm_model *model) {
    if (fit->options->freeze || fit->constraints || fit->group) return FGMM_FOLLOWED_BY_NONE;
    if (model->n_iter + 1 < fit->max_iter) return FGMM_FOLLOWED_BY_PASS;
    int last = fit->place.restart == fit->n_init - 1;
    return last && fgmm_persists(fit->ctx, fit->rows) ? FGMM_FOLLOWED_BY_CALLS : FGMM_FOLLOWED_BY_NONE;
}

/* Statistics for a pass under `model`. */
static fgmm_status fit_stats(fit_state *fit, const fgmm_model *model) {
    if (fit->stats)
        fgmm_stats_restart(fit->stats, model);
    else
        FGMM_TRY(fgmm_stats_over(fit->ctx, &fit->stats, model));
    fit->stats->group = fit->group;
    fit->stats->followed = follower_of(fit, model);
    fit->stats->reg_covar = fit->reg_covar;
    return FGMM_OK;
}

/* One iteration. Only a whole one moves the place. */
static fgmm_status iterate(fit_state *fit) {
    fgmm_context *ctx = fit->ctx;
    fgmm_fit_place *place = &fit->place;
    const fgmm_model *model = place->now.model;
    const int it = model->n_iter + 1;
    fgmm_status status = FGMM_OK;
    fgmm_model *next = NULL;
    fgmm_engine_choice choice = place->choice;
    fgmm_pass_counts counts;
    int64_t moved = place->moved;
    int changed = 0;
    fgmm_fate *fates = fgmm_calloc(ctx, (size_t)model->k, sizeof *fates, "fates of components");
    if (!fates) return FGMM_ERR_MEMORY;
    fgmm_engine engine = fgmm_engine_next(&choice, fit->compute.precision, model->k);
    FGMM_GO(fit_stats(fit, model));
    FGMM_GO(fgmm_estep_pass(ctx, fit->feed, "fit", fit->stats, fit->compute.precision, 0, &choice, &counts));
    fgmm_model *reuse = fit->last;
    fit->last = NULL;
    FGMM_GO(fgmm_mstep(ctx, fit->stats, fit->reg_covar, fit->options->freeze, reuse, &next, fates));
    fgmm_constrain(next, fit->constraints);
    FGMM_GO(apply_policies(fit, next, fates, it, &moved, &changed));
    if (next->k != model->k) {
        /* After a drop the places have shifted: every fate still to come is news. */
        memset(fates, 0, (size_t)next->k * sizeof *fates);
        drop_stats(fit);
    }
    next->n_iter = it;
    place->change = next->lower_bound - model->lower_bound;
    place->changed = changed;
    place->moved = moved;
    place->choice = choice;
    place->now.engine = engine;
    place->now.counts = counts;
    keep_last(fit, place->now.model);
    place->now.model = next;
    next = NULL;
    fgmm_free(ctx, place->fates);
    place->fates = fates;
    fates = NULL;
done:
    fgmm_free(ctx, fates);
    fgmm_model_free(ctx, next);
    return status;
}

/* Runs EM from the place on; when cancelled, to the last whole iteration. */
static fgmm_status run_em(fit_state *fit) {
    fgmm_status status = FGMM_OK;
    fgmm_fit_result *now = &fit->place.now;
    fgmm_progress *progress = fgmm_feed_progress(fit->feed);
    fit->laps.n = 0;
    progress->iteration = now->model->n_iter;
    progress->lower_bound = now->model->lower_bound;
    progress->change = fit->place.change;
    while (now->model->n_iter < fit->max_iter && !now->model->converged) {
        double began = fgmm_now();
        FGMM_GO(iterate(fit));
        fgmm_laps_add(&fit->laps, fgmm_now() - began);
        progress->iteration = now->model->n_iter;
        progress->lower_bound = now->model->lower_bound;
        progress->change = fit->place.change;
        now->model->converged = has_converged(fit);
        fit->unsaved = 1;
        if (fgmm_now() - fit->saved >= checkpoint_seconds(fit)) save_place(fit);
        FGMM_GO(fgmm_feed_report(fit->feed));
    }
done:
    drop_stats(fit);
    fgmm_model_free(fit->ctx, fit->last);
    fit->last = NULL;
    now->seconds_per_iteration = fgmm_laps_median(&fit->laps);
    if (status == FGMM_OK) save_place(fit);
    if (status == FGMM_ERR_CANCELLED || status == FGMM_ERR_DEVICE) {
        char who[128];
        snprintf(who, sizeof who, "%s", fgmm_context_message(fit->ctx));
        fgmm_enter(fit->ctx);
        save_place(fit);
        fgmm_fail(fit->ctx, status, "%s", who);
    }
    return status;
}

static fgmm_status start_model(fit_state *fit, int restart, fgmm_model **out) {
    const fgmm_model *given = fit->options->init_model;
    if (!given) {
        fgmm_covariance type = fit->options->covariance_type;
        /* Matrices start as diagonals: seeds have too few rows each for more, and the first M-step fills them in. */
        int matrices = fgmm_has_matrices(type);
        fgmm_covariance seeded = matrices ? FGMM_DIAG : type;
        fgmm_model *seed = NULL;
        fgmm_status status = FGMM_OK;
        if (is_root(fit))
            FGMM_TRY(fgmm_seed_model(fit->seeder, &seed, fit->options->init, seeded, fit->k, fit->reg_covar, restart));
        if (fit->group) status = fgmm_model_share(fit->group, &seed, seeded, fit->k, fit->rows->d);
        if (status == FGMM_OK && matrices) {
            status = fgmm_model_from_diag(fit->ctx, out, seed, type);
        } else if (status == FGMM_OK) {
            *out = seed;
            seed = NULL;
        }
        fgmm_model_free(fit->ctx, seed);
        return status;
    }
    FGMM_TRY(fgmm_model_copy(fit->ctx, out, given));
    (*out)->lower_bound = NAN;
    (*out)->n_iter = 0;
    (*out)->converged = 0;
    return FGMM_OK;
}

/* The first restart's model, or one more's. */
static fgmm_status start_restart(fit_state *fit) {
    fgmm_fit_place *place = &fit->place;
    place->choice = (fgmm_engine_choice){.asked = fit->compute.engine};
    fit->unsaved = 0; /* what came before is not where the fit stands now */
    place->moved = 0;
    place->change = NAN;
    place->changed = 0;
    FGMM_TRY(start_model(fit, place->restart, &place->now.model));
    fgmm_free(fit->ctx, place->fates);
    place->fates = fgmm_calloc(fit->ctx, (size_t)place->now.model->k, sizeof *place->fates, "fates of components");
    return place->fates ? FGMM_OK : FGMM_ERR_MEMORY;
}

/* Runs one restart, or what is left of it, and keeps it if it is better than those before. On cancel a restart with a
 * whole iteration counts too. */
static fgmm_status run_restart(fit_state *fit) {
    fgmm_fit_place *place = &fit->place;
    fgmm_feed_progress(fit->feed)->init = place->restart;
    if (!place->now.model) FGMM_TRY(start_restart(fit));
    if (place->restart == fit->n_init - 1 && fit->options->on_dead != FGMM_RESEED) {
        /* Its sample would stay beside the work space of EM. */
        fgmm_seeder_free(fit->ctx, fit->seeder);
        fit->seeder = NULL;
    }
    fgmm_status status = run_em(fit);
    const fgmm_model *now = place->now.model, *best = place->best.model;
    int whole = now->n_iter > 0 && (status == FGMM_OK || status == FGMM_ERR_CANCELLED);
    if (whole && (!best || now->lower_bound > best->lower_bound)) {
        fgmm_model_free(fit->ctx, place->best.model);
        place->best = place->now;
    } else {
        fgmm_model_free(fit->ctx, place->now.model);
    }
    place->now = (fgmm_fit_result){0};
    return status;
}

/* Opens the feed and looks the rows over. */
static fgmm_status fit_open(fit_state *fit, int64_t iterations) {
    fgmm_context *ctx = fit->ctx;
    const fgmm_rows *rows = fit->rows;
    double work = (double)rows->n * (double)rows->d * (double)fit->k * (double)iterations;
    const fgmm_model *start = fit->options->init_model;
    FGMM_TRY(fgmm_dispatch(ctx, work, fit->compute.precision, rows,
                           (int)(start ? start->type : fit->options->covariance_type), &fit->target));
    FGMM_TRY(fgmm_feed_open(ctx, &fit->feed, rows, fit->target, &fit->compute, 2 + iterations));
    fgmm_progress *progress = fgmm_feed_progress(fit->feed);
    progress->n_init = fit->n_init;
    progress->max_iter = fit->max_iter;
    FGMM_TRY(fgmm_feed_run(fit->feed, "scan", NULL, NULL, NULL));
    int64_t skipped = fgmm_feed_skipped(fit->feed), n = rows->n - skipped;
    double weight = fgmm_feed_weight(fit->feed);
    if (fit->group) {
        FGMM_TRY(fgmm_group_rows(fit->group, n, skipped, weight, fit->target->facts.sum_epsilon,
                                 fgmm_feed_mean(fit->feed), fgmm_feed_variance(fit->feed), rows->d));
        n = fit->group->n;
        weight = fit->group->weight;
    }
    if (fit->k > n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "fit: n_components = %lld exceeds the number of rows without NaN or Inf, %lld",
                         (long long)fit->k, (long long)n);
    if (!(weight > 0)) return fgmm_fail(ctx, FGMM_ERR_DATA, "fit: the weights of the rows sum to 0");
    return FGMM_OK;
}

/* The seeder, where a start is still to be made or a component may have to move. */
static fgmm_status open_seeder(fit_state *fit) {
    const fgmm_fit_options *o = fit->options;
    int starts = !o->init_model && (!fit->place.now.model || fit->place.restart < fit->n_init - 1);
    if (!starts && o->on_dead != FGMM_RESEED) return FGMM_OK;
    fgmm_feed_progress(fit->feed)->stage = "seed";
    return fgmm_seeder_open(fit->ctx, &fit->seeder, fit->feed, fit->rows, fit->k, o->init_sample, o->seed, fit->group);
}

static void fit_close(fit_state *fit) {
    fgmm_fit_place_free(fit->ctx, &fit->place);
    fgmm_seeder_free(fit->ctx, fit->seeder);
    fgmm_feed_close(fit->ctx, fit->feed);
    fgmm_group_close(&fit->meeting);
}

/* Joins the other ranks; from here on a failure has to be told to them, by fgmm_group_end. */
static fgmm_status join_ranks(fit_state *fit, const fgmm_fit_options *o) {
    if (o->struct_size != sizeof *o)
        return fgmm_fail(fit->ctx, FGMM_ERR_INVALID,
                         "fit: struct_size of the options is not set: use FGMM_FIT_OPTIONS_INIT");
    FGMM_TRY(fgmm_group_open(fit->ctx, &fit->meeting, &o->ranks));
    if (!fit->meeting.over) fit->group = &fit->meeting;
    return FGMM_OK;
}

/* Everything before the first model. @param initial 1: one model is all that is wanted. */
static fgmm_status fit_begin(fit_state *fit, const fgmm_fit_options *o, int initial) {
    FGMM_TRY(read_options(fit, o));
    const fgmm_fit_identity identity = identify_options(fit);
    if (fit->group) FGMM_TRY(fgmm_fit_identity_meet(fit->group, &identity));
    if (o->checkpoint && !initial && is_root(fit)) FGMM_TRY(fgmm_checkpoint_try(fit->ctx, o->checkpoint));
    FGMM_TRY(fit_open(fit, initial ? 0 : (int64_t)fit->max_iter * fit->n_init));
    if (!initial) FGMM_TRY(resume(fit));
    return open_seeder(fit);
}

fgmm_status fgmm_fit(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows, const fgmm_fit_options *options,
                     fgmm_report *report) {
    return fgmm_fit_constrained(ctx, out, rows, options, 0, report);
}

fgmm_status fgmm_fit_constrained(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                 const fgmm_fit_options *options, unsigned constraints, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !rows || !options) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: a pointer is NULL");
    *out = NULL;
    fit_state fit = {.ctx = ctx, .rows = rows, .constraints = constraints};
    FGMM_TRY(join_ranks(&fit, options));
    fgmm_report_scope scope;
    fit.scope = &scope;
    fgmm_status begun = fgmm_report_begin(ctx, &scope, report), status = begun;
    if (status == FGMM_OK) status = fit_begin(&fit, options, 0);
    for (; fit.place.restart < fit.n_init && status == FGMM_OK; fit.place.restart++) status = run_restart(&fit);
    if (fit.group) status = fgmm_group_end(fit.group, status);
    fgmm_fit_result *best = &fit.place.best;
    if (best->model && (status == FGMM_OK || status == FGMM_ERR_CANCELLED)) {
        fgmm_report_pass(&scope, fit.feed, best->engine, fit.compute.precision, &best->counts);
        if (report) {
            report->n_iter = best->model->n_iter;
            report->converged = best->model->converged;
            report->lower_bound = best->model->lower_bound;
            report->seconds_per_iteration = best->seconds_per_iteration;
        }
        if (report && fit.group) {
            report->n_rows = fit.group->n;
            report->n_skipped = fit.group->skipped;
        }
        *out = best->model;
        best->model = NULL;
    }
    if (begun == FGMM_OK) fgmm_report_end(&scope, status);
    fit_close(&fit);
    /* A rank that began anew would be alone. */
    int again = !options->ranks.sum && fgmm_dispatch_again(ctx, status, rows);
    return again ? fgmm_fit_constrained(ctx, out, rows, options, constraints, report) : status;
}

fgmm_status fgmm_initial_model(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                               const fgmm_fit_options *options) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !rows || !options) return fgmm_fail(ctx, FGMM_ERR_INVALID, "initial model: a pointer is NULL");
    *out = NULL;
    fit_state fit = {.ctx = ctx, .rows = rows};
    FGMM_TRY(join_ranks(&fit, options));
    fgmm_report_scope scope;
    fit.scope = &scope;
    fgmm_model *model = NULL;
    fgmm_status status = fgmm_report_begin(ctx, &scope, NULL);
    if (status == FGMM_OK) status = fit_begin(&fit, options, 1);
    if (status == FGMM_OK) status = start_model(&fit, 0, &model);
    if (fit.group) status = fgmm_group_end(fit.group, status);
    if (status == FGMM_OK)
        *out = model;
    else
        fgmm_model_free(ctx, model);
    fgmm_report_end(&scope, status);
    fit_close(&fit);
    return status;
}
