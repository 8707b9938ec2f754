/* k-means: Lloyd's iterations as hard E-steps of a mixture with equal weights and one variance. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "constraints.h"
#include "laps.h"
#include "params.h"
#include "report.h"
#include "seed.h"

typedef struct {
    fgmm_context *ctx;
    const fgmm_rows *rows;
    const fgmm_kmeans_options *options;
    fgmm_compute_options compute;
    unsigned constraints;
    int n_init, max_iter;
    double tol; /* < 0: never stop early */
    int64_t k;
    const fgmm_target *target;
    fgmm_feed *feed;
    fgmm_seeder *seeder;
    double spread; /* mean variance of the features */
    /* of the restart under way */
    fgmm_engine_choice choice;
    fgmm_engine engine;
    fgmm_pass_counts counts;
    int64_t moved; /* empty means moved so far */
    double *moves; /* [K]: how far each mean has moved, squared */
} kmeans_state;

/* One restart. */
typedef struct {
    fgmm_model *model;
    fgmm_kmeans_result result;
    double *counts; /* [K] */
    fgmm_engine engine;
    fgmm_pass_counts pass;
    double seconds_per_iteration;
} kmeans_run;

static fgmm_status check_options(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_kmeans_options *o) {
    if (o->struct_size != sizeof *o)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "kmeans: struct_size of the options is not set: use FGMM_KMEANS_OPTIONS_INIT");
    if ((unsigned)o->init > FGMM_INIT_RANDOM_FROM_DATA)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: init %d is unknown", (int)o->init);
    if (o->n_init < 0 || o->max_iter < 0 || o->init_sample < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: n_init, max_iter and init_sample must not be negative");
    if (isnan(o->tol)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: tol is NaN");
    const fgmm_model *start = o->init_model;
    if (start && start->d != rows->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: the rows have %lld features, the starting model %lld",
                         (long long)rows->d, (long long)start->d);
    if (start && o->n_components && o->n_components != start->k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: n_components = %lld, but the starting model has %lld",
                         (long long)o->n_components, (long long)start->k);
    int64_t k = start ? start->k : o->n_components;
    if (k <= 0 || k > FGMM_COMPONENTS_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: n_components = %lld must be 1 to %d", (long long)k,
                         FGMM_COMPONENTS_MAX);
    if (k > rows->n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: n_components = %lld exceeds the number of rows, %lld",
                         (long long)k, (long long)rows->n);
    return FGMM_OK;
}

/* ---- models with equal weights and one variance ---- */

/* A variance that tells distances apart as far as they matter beside the spread of the data. */
static double usable_variance(const kmeans_state *state, double variance) {
    return fmax(fmax(variance, 1e-12 * state->spread), 1e-30);
}

static fgmm_status model_at(kmeans_state *state, const double *means, double variance, fgmm_model **out) {
    fgmm_context *ctx = state->ctx;
    double *variances = fgmm_alloc(ctx, (size_t)state->k * sizeof *variances, "variances");
    if (!variances) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < state->k; i++) variances[i] = usable_variance(state, variance);
    fgmm_status status = fgmm_model_create(ctx, out, FGMM_SPHERICAL, state->k, state->rows->d, NULL, means, variances);
    fgmm_free(ctx, variances);
    return status;
}

static fgmm_status start_model(kmeans_state *state, int restart, fgmm_model **out) {
    const fgmm_kmeans_options *o = state->options;
    fgmm_model *seeds = NULL;
    fgmm_init init = o->init == FGMM_INIT_RANDOM ? FGMM_INIT_RANDOM_FROM_DATA : o->init;
    if (!o->init_model) FGMM_TRY(fgmm_seed_model(state->seeder, &seeds, init, FGMM_SPHERICAL, state->k, 0, restart));
    fgmm_status status = model_at(state, (o->init_model ? o->init_model : seeds)->means, 0.01 * state->spread, out);
    if (status == FGMM_OK) fgmm_constrain(*out, state->constraints);
    fgmm_model_free(state->ctx, seeds);
    return status;
}

/* ---- one pass ---- */

/*
 * The sum of the log-probabilities of nearest means, back to squared distances:
 *     sum w (C - |x - m|^2 / 2v), with C = -log K - D/2 log(2 pi v).
 */
static double inertia_of(const fgmm_stats *stats) {
    static const double log_2pi = 1.8378770664093454836;
    const fgmm_model *model = stats->model;
    double v = model->covariances[0], c = log(model->weights[0]) - 0.5 * (double)model->d * (log_2pi + log(v));
    return fmax(2 * v * (stats->weight * c - stats->log_likelihood), 0);
}

static int64_t count_empty(const fgmm_stats *stats) {
    int64_t empty = 0;
    for (int64_t i = 0; i < stats->model->k; i++) empty += !(stats->s0[i] > 0);
    return empty;
}

/* Each row goes to its nearest mean. *out is made, or begun anew. */
static fgmm_status hard_pass(kmeans_state *state, const fgmm_model *model, fgmm_stats **out, kmeans_run *run) {
    state->engine = fgmm_engine_next(&state->choice, state->compute.precision, model->k);
    if (*out)
        fgmm_stats_restart(*out, model);
    else
        FGMM_TRY(fgmm_stats_over(state->ctx, out, model));
    FGMM_TRY(fgmm_estep_pass(state->ctx, state->feed, "kmeans", *out, state->compute.precision, 1, &state->choice,
                             &state->counts));
    run->engine = state->engine;
    run->pass = state->counts;
    run->result =
        (fgmm_kmeans_result){.inertia = inertia_of(*out), .weight = (*out)->weight, .n_empty = count_empty(*out)};
    memcpy(run->counts, (*out)->s0, (size_t)model->k * sizeof *run->counts);
    return FGMM_OK;
}

/* ---- means without rows ---- */

typedef struct {
    double log_prob;
    int64_t row;
} far_row;

/* The `room` rows of least density seen so far, as a heap with the densest of them on top. */
typedef struct {
    const fgmm_target *target;
    double *log_prob; /* of a block */
    far_row *heap;
    int64_t n, room;
} far_state;

/* Of equals the first row counts as farther. */
static int is_nearer(far_row a, far_row b) {
    return a.log_prob > b.log_prob || (a.log_prob == b.log_prob && a.row > b.row);
}

static void far_push(far_state *far, far_row row) {
    int64_t at;
    if (far->n < far->room) {
        for (at = far->n++; at > 0 && is_nearer(row, far->heap[(at - 1) / 2]); at = (at - 1) / 2)
            far->heap[at] = far->heap[(at - 1) / 2];
    } else {
        if (!is_nearer(far->heap[0], row)) return;
        at = 0;
        for (int64_t child = 1; child < far->n; child = 2 * at + 1) {
            if (child + 1 < far->n && is_nearer(far->heap[child + 1], far->heap[child])) child++;
            if (!is_nearer(far->heap[child], row)) break;
            far->heap[at] = far->heap[child];
            at = child;
        }
    }
    far->heap[at] = row;
}

static fgmm_status far_visit(void *user, const fgmm_feed_block *block) {
    far_state *far = user;
    if (block->first == 0) far->n = 0;
    FGMM_TRY(far->target->backend->assign(far->target->device, block->block, 1, NULL, NULL, far->log_prob));
    for (int64_t i = 0; i < block->n; i++)
        if (!block->weights || block->weights[i] > 0) far_push(far, (far_row){far->log_prob[i], block->first + i});
    return FGMM_OK;
}

static int by_row(const void *a, const void *b) {
    int64_t x = ((const far_row *)a)->row, y = ((const far_row *)b)->row;
    return x < y ? -1 : x > y;
}

/* The numbers, ascending, of the *count rows farthest from the means that have rows. */
static fgmm_status find_far(kmeans_state *state, const fgmm_model *living, int64_t *count, int64_t *numbers) {
    fgmm_context *ctx = state->ctx;
    fgmm_status status = FGMM_ERR_MEMORY;
    fgmm_prepared prepared = {0};
    far_state far = {.target = state->target, .room = *count};
    far.heap = fgmm_alloc(ctx, (size_t)far.room * sizeof *far.heap, "the farthest rows");
    far.log_prob = fgmm_alloc(ctx, (size_t)fgmm_feed_block_rows(state->feed) * sizeof(double), "distances of a block");
    if (!far.heap || !far.log_prob) goto done;
    FGMM_GO(fgmm_prepare(ctx, &prepared, living));
    fgmm_params *params = &prepared.params;
    params->precision = fgmm_row_precision(state->compute.precision);
    params->engine = state->engine;
    params->cut = params->precision == FGMM_DOUBLE ? 0 : 0.5 / (double)living->k;
    params->hard = 1; /* by the distance to the nearest mean */
    FGMM_GO(fgmm_feed_run(state->feed, "kmeans", params, far_visit, &far));
    qsort(far.heap, (size_t)far.n, sizeof *far.heap, by_row);
    for (int64_t i = 0; i < far.n; i++) numbers[i] = far.heap[i].row;
    *count = far.n;
done:
    fgmm_prepared_free(ctx, &prepared);
    fgmm_free(ctx, far.log_prob);
    fgmm_free(ctx, far.heap);
    return status;
}

/* Moves the means of model that got no rows in stats to the rows farthest from the others. */
static fgmm_status move_empty(kmeans_state *state, fgmm_model *model, const fgmm_stats *stats, int64_t empty) {
    fgmm_context *ctx = state->ctx;
    int64_t d = model->d, count = empty, taken = 0;
    fgmm_status status = FGMM_OK;
    fgmm_model *living = NULL;
    int64_t *numbers = fgmm_alloc(ctx, (size_t)empty * sizeof *numbers, "the farthest rows");
    double *rows = fgmm_alloc(ctx, (size_t)(empty * d) * sizeof *rows, "the farthest rows");
    if (!numbers || !rows) status = FGMM_ERR_MEMORY;
    if (status == FGMM_OK) status = fgmm_model_copy(ctx, &living, model);
    if (status != FGMM_OK) goto done;
    for (int64_t i = 0; i < model->k; i++) living->weights[i] = stats->s0[i] > 0 ? 1 / (double)(model->k - empty) : 0;
    FGMM_GO(find_far(state, living, &count, numbers));
    FGMM_GO(fgmm_feed_gather(state->feed, numbers, count, rows));
    for (int64_t i = 0; i < model->k && taken < count; i++)
        if (!(stats->s0[i] > 0)) memcpy(model->means + i * d, rows + d * taken++, (size_t)d * sizeof *rows);
    state->moved += taken;
done:
    fgmm_model_free(ctx, living);
    fgmm_free(ctx, rows);
    fgmm_free(ctx, numbers);
    return status;
}

/* ---- one restart ---- */

/* Of mean i: rounding alone moves a mean by some 1e-16 of its value; a row that changes sides moves two by far more. */
static double squared_move(const fgmm_stats *stats, const fgmm_model *next, int64_t i) {
    const fgmm_model *model = stats->model;
    int64_t d = model->d;
    double sum = 0;
    for (int64_t at = i * d; at < (i + 1) * d && stats->s0[i] > 0; at++) {
        double move = fabs(next->means[at] - model->means[at]);
        if (move > 0x1p-48 * fabs(model->means[at])) sum += move * move;
    }
    return sum;
}

/* The next model, of the means of what stats gave to each. *shift: the sum of the squared moves. */
static fgmm_status next_model(kmeans_state *state, const fgmm_stats *stats, const kmeans_run *run, fgmm_model **out,
                              double *shift) {
    const fgmm_model *model = stats->model;
    int64_t d = model->d, empty = run->result.n_empty;
    double variance = run->result.inertia / (run->result.weight * (double)d);
    int threads = fgmm_threads_over(state->ctx, (double)(model->k * d));
    fgmm_model *next = NULL;
    *shift = 0;
    FGMM_TRY(fgmm_model_copy(state->ctx, &next, model));
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < model->k; i++) {
        next->covariances[i] = usable_variance(state, variance);
        for (int64_t at = i * d; at < (i + 1) * d && stats->s0[i] > 0; at++)
            next->means[at] = stats->centres[at] + stats->s1[at] / stats->s0[i];
    }
    fgmm_constrain(next, state->constraints);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < model->k; i++) state->moves[i] = squared_move(stats, next, i);
    for (int64_t i = 0; i < model->k; i++) *shift += state->moves[i];
    if (*shift <= 1e-24 * (double)(model->k * d) * state->spread) *shift = 0;
    /* Fewer distinct rows than means would move them for ever. */
    if (empty > 0 && !state->options->keep_empty && state->moved + empty <= state->k) {
        fgmm_status status = move_empty(state, next, stats, empty);
        if (status != FGMM_OK) {
            fgmm_model_free(state->ctx, next);
            return status;
        }
        *shift = INFINITY;
    }
    *out = next;
    return FGMM_OK;
}

/* From run->model, which becomes the result; when cancelled, that of the last whole iteration. */
static fgmm_status lloyd(kmeans_state *state, kmeans_run *run) {
    fgmm_status status = FGMM_OK;
    fgmm_stats *stats = NULL;
    fgmm_progress *progress = fgmm_feed_progress(state->feed);
    fgmm_laps laps = {.n = 0};
    double shift = INFINITY, last = NAN;
    for (int it = 1; it <= state->max_iter && shift > 0; it++) {
        double began = fgmm_now();
        fgmm_model *next = NULL;
        FGMM_GO(hard_pass(state, run->model, &stats, run));
        FGMM_GO(next_model(state, stats, run, &next, &shift));
        fgmm_laps_add(&laps, fgmm_now() - began);
        next->n_iter = it;
        next->converged = shift == 0 || (state->tol >= 0 && shift <= state->tol * state->spread);
        fgmm_model_free(state->ctx, run->model);
        run->model = next;
        progress->iteration = it;
        progress->lower_bound = -run->result.inertia / run->result.weight;
        progress->change = progress->lower_bound - last;
        last = progress->lower_bound;
        FGMM_GO(fgmm_feed_report(state->feed));
        if (next->converged) break;
    }
    /* Inertia and counts about the means that are returned; without a move the last pass was about them. */
    if (shift > 0) FGMM_GO(hard_pass(state, run->model, &stats, run));
done:
    fgmm_stats_free(state->ctx, stats);
    run->seconds_per_iteration = fgmm_laps_median(&laps);
    if (run->model->n_iter > 0) {
        double v = run->result.inertia / (run->result.weight * (double)run->model->d);
        for (int64_t i = 0; i < state->k; i++) run->model->covariances[i] = usable_variance(state, v);
    }
    return status;
}

static void run_free(fgmm_context *ctx, kmeans_run *run) {
    fgmm_model_free(ctx, run->model);
    fgmm_free(ctx, run->counts);
    *run = (kmeans_run){0};
}

/* Runs one restart and keeps it in *best if it is better. */
static fgmm_status restart(kmeans_state *state, int number, kmeans_run *best) {
    fgmm_context *ctx = state->ctx;
    kmeans_run run = {0};
    state->choice = (fgmm_engine_choice){.asked = state->compute.engine};
    state->moved = 0;
    fgmm_progress *progress = fgmm_feed_progress(state->feed);
    progress->init = number;
    progress->iteration = 0;
    progress->lower_bound = progress->change = NAN;
    if (!(run.counts = fgmm_calloc(ctx, (size_t)state->k, sizeof(double), "counts"))) return FGMM_ERR_MEMORY;
    fgmm_status status = start_model(state, number, &run.model);
    if (status == FGMM_OK) status = lloyd(state, &run);
    int whole = run.model && run.model->n_iter > 0 && (status == FGMM_OK || status == FGMM_ERR_CANCELLED);
    if (whole && (!best->model || run.result.inertia < best->result.inertia)) {
        run_free(ctx, best);
        *best = run;
    } else {
        run_free(ctx, &run);
    }
    return status;
}

static fgmm_status run_all(kmeans_state *state, kmeans_run *best) {
    fgmm_context *ctx = state->ctx;
    const fgmm_rows *rows = state->rows;
    int64_t passes = 2 + (int64_t)(state->max_iter + 1) * state->n_init;
    double work = (double)rows->n * (double)rows->d * (double)state->k * (double)passes;
    FGMM_TRY(fgmm_dispatch(ctx, work, state->compute.precision, rows, FGMM_SPHERICAL, &state->target));
    FGMM_TRY(fgmm_feed_open(ctx, &state->feed, rows, state->target, &state->compute, passes));
    fgmm_progress *progress = fgmm_feed_progress(state->feed);
    progress->n_init = state->n_init;
    progress->max_iter = state->max_iter;
    FGMM_TRY(fgmm_feed_run(state->feed, "scan", NULL, NULL, NULL));
    int64_t n = rows->n - fgmm_feed_skipped(state->feed);
    if (state->k > n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "kmeans: n_components = %lld exceeds the number of rows without NaN or Inf, %lld",
                         (long long)state->k, (long long)n);
    if (!(fgmm_feed_weight(state->feed) > 0))
        return fgmm_fail(ctx, FGMM_ERR_DATA, "kmeans: the weights of the rows sum to 0");
    state->moves = fgmm_alloc(ctx, (size_t)state->k * sizeof *state->moves, "moves of the means");
    if (!state->moves) return FGMM_ERR_MEMORY;
    for (int64_t j = 0; j < rows->d; j++) state->spread += fgmm_feed_variance(state->feed)[j] / (double)rows->d;
    progress->stage = "seed";
    if (!state->options->init_model)
        FGMM_TRY(fgmm_seeder_open(ctx, &state->seeder, state->feed, rows, state->k, state->options->init_sample,
                                  state->options->seed, NULL));
    fgmm_status status = FGMM_OK;
    for (int i = 0; i < state->n_init && status == FGMM_OK; i++) status = restart(state, i, best);
    return status;
}

fgmm_status fgmm_kmeans(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows, const fgmm_kmeans_options *options,
                        fgmm_kmeans_result *result, double *counts, fgmm_report *report) {
    return fgmm_kmeans_constrained(ctx, out, rows, options, 0, result, counts, report);
}

fgmm_status fgmm_kmeans_constrained(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                    const fgmm_kmeans_options *options, unsigned constraints,
                                    fgmm_kmeans_result *result, double *counts, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !rows || !options) return fgmm_fail(ctx, FGMM_ERR_INVALID, "kmeans: a pointer is NULL");
    *out = NULL;
    FGMM_TRY(check_options(ctx, rows, options));
    kmeans_state state = {.ctx = ctx,
                          .rows = rows,
                          .options = options,
                          .constraints = constraints,
                          .n_init = options->init_model || !options->n_init ? 1 : options->n_init,
                          .max_iter = options->max_iter ? options->max_iter : 300,
                          .tol = options->tol == 0 ? 1e-4 : options->tol,
                          .k = options->init_model ? options->init_model->k : options->n_components};
    FGMM_TRY(fgmm_compute_read(ctx, &state.compute, &options->compute));
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    kmeans_run best = {0};
    fgmm_status status = run_all(&state, &best);
    if (best.model && (status == FGMM_OK || status == FGMM_ERR_CANCELLED)) {
        if (result) *result = best.result;
        if (counts) memcpy(counts, best.counts, (size_t)state.k * sizeof *counts);
        if (best.result.n_empty > 0)
            fgmm_report_warn(&scope, "%lld of %lld means are nearest to no row", (long long)best.result.n_empty,
                             (long long)state.k);
        fgmm_report_pass(&scope, state.feed, best.engine, state.compute.precision, &best.pass);
        if (report) {
            report->n_iter = best.model->n_iter;
            report->converged = best.model->converged;
            report->seconds_per_iteration = best.seconds_per_iteration;
        }
        *out = best.model;
        best.model = NULL;
    }
    run_free(ctx, &best);
    fgmm_report_end(&scope, status);
    fgmm_seeder_free(ctx, state.seeder);
    fgmm_free(ctx, state.moves);
    fgmm_feed_close(ctx, state.feed);
    int again = fgmm_dispatch_again(ctx, status, rows);
    return again ? fgmm_kmeans_constrained(ctx, out, rows, options, constraints, result, counts, report) : status;
}
