/* Expectation-maximization. */
#include <math.h>
#include <string.h>

#include "constraints.h"
#include "laps.h"
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
    fgmm_seeder *seeder;
    fgmm_report_scope *scope;
    /* of the restart under way */
    fgmm_engine engine;
    fgmm_pass_counts counts;
    int64_t moved;     /* components reseeded so far */
    fgmm_stats *stats; /* of the last pass, kept for the next of the same shape: its model may be gone */
    fgmm_laps laps;
} fit_state;

/* One fitted restart. */
typedef struct {
    fgmm_model *model;
    fgmm_engine engine;
    fgmm_pass_counts counts;
    double seconds_per_iteration;
} fit_result;

static fgmm_status check_options(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_fit_options *o) {
    if (o->struct_size != sizeof *o)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "fit: struct_size of the options is not set: use FGMM_FIT_OPTIONS_INIT");
    if (!fgmm_covariance_name(o->covariance_type))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: covariance_type %d is unknown", (int)o->covariance_type);
    if ((unsigned)o->init > FGMM_INIT_RANDOM_FROM_DATA)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: init %d is unknown", (int)o->init);
    if ((unsigned)o->on_dead > FGMM_DROP || (unsigned)o->on_collapse > FGMM_DROP || o->on_collapse == FGMM_RESEED)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: on_dead is keep, reseed or drop, on_collapse keep or drop");
    if (o->n_init < 0 || o->max_iter < 0 || o->init_sample < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_init, max_iter and init_sample must not be negative");
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
    if (k > rows->n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld exceeds the number of rows, %lld",
                         (long long)k, (long long)rows->n);
    return FGMM_OK;
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
static fgmm_status apply_policies(fit_state *fit, fgmm_model *model, const fgmm_fate *fates, const fgmm_fate *before,
                                  int iteration, int *changed) {
    int64_t original = model->k, removed = 0;
    int ranked = 0;
    for (int64_t i = 0; i < original; i++) {
        if (fates[i] == FGMM_ALIVE) continue;
        int dead = fates[i] == FGMM_DEAD;
        fgmm_policy policy = dead ? fit->options->on_dead : fit->options->on_collapse;
        /* A shared covariance cannot be dropped with one component. */
        if (!dead && model->type == FGMM_TIED) policy = FGMM_KEEP;
        /* Data with fewer clusters than components would move them for ever; one component has to remain. */
        if (policy == FGMM_RESEED && fit->moved >= fit->k) policy = FGMM_KEEP;
        if (policy == FGMM_DROP && model->k == 1) policy = FGMM_KEEP;
        const char *done = policy == FGMM_DROP ? "dropped" : policy == FGMM_RESEED ? "moved" : "kept";
        if (policy != FGMM_KEEP || before[i] != fates[i])
            fgmm_report_warn(fit->scope, "component %lld %s in iteration %d (%s): %s", (long long)i,
                             dead ? "died" : "collapsed", iteration,
                             dead ? "no row is near it" : collapse_causes[model->type], done);
        if (policy == FGMM_RESEED) {
            if (!ranked) FGMM_TRY(fgmm_seed_rank(fit->seeder, model));
            ranked = 1;
            fgmm_seed_move(fit->seeder, model, i - removed, fit->reg_covar, &fit->moved);
            *changed = 1;
        } else if (policy == FGMM_DROP) {
            remove_component(model, i - removed++);
            *changed = 1;
        }
    }
    if (removed) normalise_weights(model);
    return FGMM_OK;
}

/* ---- one restart ---- */

static void drop_stats(fit_state *fit) {
    fgmm_stats_free(fit->ctx, fit->stats);
    fit->stats = NULL;
}

/* Statistics for a pass under `model`. */
static fgmm_status fit_stats(fit_state *fit, const fgmm_model *model) {
    if (!fit->stats) return fgmm_stats_over(fit->ctx, &fit->stats, model);
    fgmm_stats_restart(fit->ctx, fit->stats, model);
    return FGMM_OK;
}

/* Iteration `it` (from 1): *model becomes the next one. *fates is [k], of the iteration before and then of this one. */
static fgmm_status iterate(fit_state *fit, fgmm_model **model, fgmm_fate *fates, int it, fgmm_engine_choice *choice,
                           int *changed) {
    fgmm_context *ctx = fit->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_model *next = NULL;
    fgmm_fate *now = fgmm_calloc(ctx, (size_t)(*model)->k, sizeof *now, "fates of components");
    if (!now) return FGMM_ERR_MEMORY;
    fit->engine = fgmm_engine_next(choice, fgmm_precision_on(fit->target, fit->compute.precision), (*model)->k);
    FGMM_GO(fit_stats(fit, *model));
    FGMM_GO(fgmm_estep_pass(ctx, fit->feed, "fit", fit->stats, fit->compute.precision, 0, choice, &fit->counts));
    FGMM_GO(fgmm_mstep(ctx, fit->stats, fit->reg_covar, fit->options->freeze, &next, now));
    fgmm_constrain(next, fit->constraints);
    FGMM_GO(apply_policies(fit, next, now, fates, it, changed));
    /* After a drop the places have shifted: every fate still to come is news. */
    if (next->k == (*model)->k) {
        memcpy(fates, now, (size_t)next->k * sizeof *now);
    } else {
        memset(fates, 0, (size_t)next->k * sizeof *now);
        drop_stats(fit);
    }
    next->n_iter = it;
    fgmm_model_free(ctx, *model);
    *model = next;
    next = NULL;
done:
    fgmm_free(ctx, now);
    fgmm_model_free(ctx, next);
    return status;
}

/* Runs EM from *model, which becomes the result; when cancelled, the last whole iteration's. */
static fgmm_status run_em(fit_state *fit, fgmm_model **model, double *seconds_per_iteration) {
    fgmm_status status = FGMM_OK;
    fgmm_engine_choice choice = {.asked = fit->compute.engine};
    fgmm_progress *progress = fgmm_feed_progress(fit->feed);
    double last = NAN;
    fit->laps.n = 0;
    fgmm_fate *fates = fgmm_calloc(fit->ctx, (size_t)(*model)->k, sizeof *fates, "fates of components");
    if (!fates) return FGMM_ERR_MEMORY;
    progress->iteration = 0;
    progress->lower_bound = progress->change = NAN;
    for (int it = 1; it <= fit->max_iter; it++) {
        double began = fgmm_now();
        int changed = 0;
        FGMM_GO(iterate(fit, model, fates, it, &choice, &changed));
        fgmm_laps_add(&fit->laps, fgmm_now() - began);
        double bound = (*model)->lower_bound, change = bound - last;
        progress->iteration = it;
        progress->lower_bound = bound;
        progress->change = change;
        last = bound;
        /* A model that a policy has changed has not been seen by an E-step: it cannot have converged. */
        (*model)->converged = !changed && fit->tol > 0 && fabs(change) < fit->tol;
        FGMM_GO(fgmm_feed_report(fit->feed));
        if ((*model)->converged) break;
    }
done:
    drop_stats(fit);
    fgmm_free(fit->ctx, fates);
    *seconds_per_iteration = fgmm_laps_median(&fit->laps);
    return status;
}

static fgmm_status start_model(fit_state *fit, int restart, fgmm_model **out) {
    const fgmm_model *given = fit->options->init_model;
    if (!given) {
        fgmm_covariance type = fit->options->covariance_type;
        /* Matrices start as diagonals: seeds have too few rows each for more, and the first M-step fills them in. */
        int matrices = fgmm_has_matrices(type);
        fgmm_model *seed = NULL;
        FGMM_TRY(fgmm_seed_model(fit->seeder, &seed, fit->options->init, matrices ? FGMM_DIAG : type, fit->k,
                                 fit->reg_covar, restart));
        if (matrices) {
            fgmm_status status = fgmm_model_from_diag(fit->ctx, out, seed, type);
            fgmm_model_free(fit->ctx, seed);
            return status;
        }
        *out = seed;
        return FGMM_OK;
    }
    FGMM_TRY(fgmm_model_copy(fit->ctx, out, given));
    (*out)->lower_bound = NAN;
    (*out)->n_iter = 0;
    (*out)->converged = 0;
    return FGMM_OK;
}

/* Runs one restart and keeps it in *best if it is better. On cancel a restart with a whole iteration counts too. */
static fgmm_status restart_fit(fit_state *fit, int restart, fit_result *best) {
    fit_result result = {0};
    fgmm_progress *progress = fgmm_feed_progress(fit->feed);
    progress->init = restart;
    fit->moved = 0;
    FGMM_TRY(start_model(fit, restart, &result.model));
    if (restart == fit->n_init - 1 && fit->options->on_dead != FGMM_RESEED) {
        /* Its sample would stay beside the work space of EM. */
        fgmm_seeder_free(fit->ctx, fit->seeder);
        fit->seeder = NULL;
    }
    fgmm_status status = run_em(fit, &result.model, &result.seconds_per_iteration);
    result.engine = fit->engine;
    result.counts = fit->counts;
    int whole = result.model->n_iter > 0 && (status == FGMM_OK || status == FGMM_ERR_CANCELLED);
    if (whole && (!best->model || result.model->lower_bound > best->model->lower_bound)) {
        fgmm_model_free(fit->ctx, best->model);
        *best = result;
    } else {
        fgmm_model_free(fit->ctx, result.model);
    }
    return status;
}

/* Opens the feed and looks the rows over; the seeder too, where one is needed. */
static fgmm_status fit_open(fit_state *fit, int64_t iterations) {
    fgmm_context *ctx = fit->ctx;
    const fgmm_rows *rows = fit->rows;
    double work = (double)rows->n * (double)rows->d * (double)fit->k * (double)iterations;
    FGMM_TRY(fgmm_dispatch(ctx, work, fit->compute.precision, rows->cl_mem != NULL, &fit->target));
    FGMM_TRY(fgmm_feed_open(ctx, &fit->feed, rows, fit->target, &fit->compute, 2 + iterations));
    fgmm_progress *progress = fgmm_feed_progress(fit->feed);
    progress->n_init = fit->n_init;
    progress->max_iter = fit->max_iter;
    FGMM_TRY(fgmm_feed_run(fit->feed, "scan", NULL, NULL));
    int64_t n = rows->n - fgmm_feed_skipped(fit->feed);
    if (fit->k > n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "fit: n_components = %lld exceeds the number of rows without NaN or Inf, %lld",
                         (long long)fit->k, (long long)n);
    if (!(fgmm_feed_weight(fit->feed) > 0))
        return fgmm_fail(ctx, FGMM_ERR_DATA, "fit: the weights of the rows sum to 0");
    progress->stage = "seed";
    if (!fit->options->init_model || fit->options->on_dead == FGMM_RESEED)
        FGMM_TRY(fgmm_seeder_open(ctx, &fit->seeder, fit->feed, rows, fit->k, fit->options->init_sample,
                                  fit->options->seed));
    return FGMM_OK;
}

static void fit_close(fit_state *fit) {
    fgmm_seeder_free(fit->ctx, fit->seeder);
    fgmm_feed_close(fit->ctx, fit->feed);
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
    FGMM_TRY(read_options(&fit, options));
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    fit.scope = &scope;
    fit_result best = {0};
    fgmm_status status = fit_open(&fit, (int64_t)fit.max_iter * fit.n_init);
    for (int restart = 0; restart < fit.n_init && status == FGMM_OK; restart++)
        status = restart_fit(&fit, restart, &best);
    if (best.model && (status == FGMM_OK || status == FGMM_ERR_CANCELLED)) {
        *out = best.model;
        fgmm_report_pass(&scope, fit.feed, best.engine, fit.compute.precision, &best.counts);
        if (report) {
            report->n_iter = best.model->n_iter;
            report->converged = best.model->converged;
            report->lower_bound = best.model->lower_bound;
            report->seconds_per_iteration = best.seconds_per_iteration;
        }
    } else {
        fgmm_model_free(ctx, best.model);
    }
    fgmm_report_end(&scope, status);
    fit_close(&fit);
    return status;
}

fgmm_status fgmm_initial_model(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                               const fgmm_fit_options *options) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !rows || !options) return fgmm_fail(ctx, FGMM_ERR_INVALID, "initial model: a pointer is NULL");
    *out = NULL;
    fit_state fit = {.ctx = ctx, .rows = rows};
    FGMM_TRY(read_options(&fit, options));
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, NULL));
    fit.scope = &scope;
    fgmm_status status = fit_open(&fit, 0);
    if (status == FGMM_OK) status = start_model(&fit, 0, out);
    fgmm_report_end(&scope, status);
    fit_close(&fit);
    return status;
}
