/* A whole fit: seeding, stopping, restarts, freezing, components that die or collapse, progress and cancelling. */
#include "contract.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static fgmm_fit_options options_for(const problem *p) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.seed = 7;
    return options;
}

/* Mean log-likelihood of the rows under the model that made them. */
static double true_likelihood(const problem *p) {
    reference *r = reference_step(p);
    double mean = r->log_likelihood / r->weight;
    reference_free(r);
    return mean;
}

/*
 * Whether k-means too would part the rows as they were drawn: to give two components one mean costs it
 * w_a w_b / (w_a + w_b) |m_a - m_b|^2 a row, and a second mean within one gains at most 2/pi of its largest eigenvalue,
 * which is at most its trace.
 */
static int stands_apart(const problem *p) {
    double most_gained = 0, least_cost = INFINITY;
    for (int64_t a = 0; a < p->k; a++) {
        double trace = 0;
        for (int64_t j = 0; j < p->d; j++) trace += covariance_variance(p->covariance, p->covariances, p->d, a, j);
        most_gained = fmax(most_gained, p->model_weights[a] * 2 / M_PI * trace);
        for (int64_t b = 0; b < a; b++) {
            double way = 0, wa = p->model_weights[a], wb = p->model_weights[b];
            for (int64_t j = 0; j < p->d; j++) {
                double t = p->means[a * p->d + j] - p->means[b * p->d + j];
                way += t * t;
            }
            least_cost = fmin(least_cost, wa * wb / (wa + wb) * way);
        }
    }
    return least_cost > 1.5 * most_gained;
}

static problem *planted_clusters(int turn, fgmm_covariance covariance, fgmm_dtype type) {
    for (uint64_t stream = 20 + (uint64_t)turn;; stream += 100) {
        problem *p = problem_clusters(stream, harness_rows(2000, 3, 6), 3, 6, covariance, type);
        if (stands_apart(p)) return p;
        problem_free(p);
    }
}

/* Every seeding with a few restarts explains planted clusters about as well as the truth does, whatever the rows'
 * type. */
START_TEST(finds_planted_clusters) {
    static const fgmm_init inits[] = {FGMM_INIT_KMEANSPP, FGMM_INIT_KMEANS, FGMM_INIT_RANDOM_FROM_DATA};
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F64, FGMM_F16, FGMM_BF16, FGMM_U8, FGMM_I8};
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = planted_clusters(_i, (fgmm_covariance)(_i % COVARIANCE_TYPES), types[_i % 6]);
    fgmm_fit_options options = options_for(p);
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = NULL;
    options.init = inits[_i % (harness_is_slow() ? 2 : 3)]; /* the third takes many restarts */
    /* A start from random rows has two in one cluster four times of five; of the others, five all end somewhere else once in some hundred problems. */
    options.n_init = options.init == FGMM_INIT_RANDOM_FROM_DATA ? 40 : harness_is_slow() ? 8 : 20;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, &report));
    double truth = true_likelihood(p);
    ck_assert_msg(report.lower_bound > truth - 0.1, "lower bound %g, of the truth %g", report.lower_bound, truth);
    ck_assert_int_eq(report.converged, 1);
    ck_assert_int_eq(fgmm_model_converged(model), 1);
    ck_assert_int_eq(report.n_iter, fgmm_model_iterations(model));
    ck_assert(report.lower_bound == fgmm_model_lower_bound(model));
    ck_assert_str_eq(report.device, fgmm_context_device(ctx));
    ck_assert_int_eq(report.n_rows, p->n);
    ck_assert_int_eq(report.n_skipped, 0);
    ck_assert(report.survivors_per_row > 0.99 && report.survivors_per_row <= (double)p->k + 1e-9);
    ck_assert(report.seconds > 0 && report.peak_host_bytes > 0);
    ck_assert(harness_is_cpu() ? report.peak_device_bytes == 0 : report.peak_device_bytes > 0);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Random responsibilities start from one blurred cluster, so only that EM climbs from there is certain. */
START_TEST(random_start_climbs) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(30, 1500, 3, 4, (fgmm_covariance)_i, FGMM_F32);
    fgmm_fit_options options = options_for(p);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *one = NULL, *many = NULL;
    options.init = FGMM_INIT_RANDOM;
    options.max_iter = 1;
    CHECK_OK(ctx, fgmm_fit(ctx, &one, rows, &options, NULL));
    options.max_iter = harness_is_short() ? 20 : 60;
    options.tol = -1;
    CHECK_OK(ctx, fgmm_fit(ctx, &many, rows, &options, NULL));
    ck_assert(fgmm_model_lower_bound(many) > fgmm_model_lower_bound(one));
    ck_assert_int_eq(fgmm_model_iterations(many), options.max_iter);
    ck_assert_int_eq(fgmm_model_converged(many), 0);
    fgmm_model_free(ctx, one);
    fgmm_model_free(ctx, many);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Old Faithful's short and long eruptions, as Azzalini and Bowman (1990) tell them. */
START_TEST(old_faithful) {
    fgmm_context *ctx = harness_context();
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, harness_path("data/old-faithful.npy"), NULL));
    options.n_components = 2;
    options.covariance_type = FGMM_DIAG;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    const double *means = fgmm_model_means(model);
    int brief = means[0] < means[2] ? 0 : 1;
    ck_assert(fabs(fgmm_model_weights(model)[brief] - 0.36) < 0.02);
    ck_assert(fabs(means[2 * brief] - 2.04) < 0.05 && fabs(means[2 * brief + 1] - 54.5) < 0.5);
    ck_assert(fabs(means[2 - 2 * brief] - 4.29) < 0.05 && fabs(means[3 - 2 * brief] - 80.0) < 0.5);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
}
END_TEST

/* More restarts never end lower; a lower tol never stops earlier. */
START_TEST(restarts_and_tolerance) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(31, 1200, 6, 2, (fgmm_covariance)_i, FGMM_F32);
    fgmm_fit_options options = options_for(p);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *once = NULL, *often = NULL, *longer = NULL;
    options.init = FGMM_INIT_RANDOM_FROM_DATA;
    options.max_iter = harness_is_slow() ? 15 : 0;
    CHECK_OK(ctx, fgmm_fit(ctx, &once, rows, &options, NULL));
    options.n_init = harness_is_slow() ? 2 : 5;
    CHECK_OK(ctx, fgmm_fit(ctx, &often, rows, &options, NULL));
    ck_assert(fgmm_model_lower_bound(often) >= fgmm_model_lower_bound(once));
    options.n_init = 1;
    options.tol = 1e-6;
    CHECK_OK(ctx, fgmm_fit(ctx, &longer, rows, &options, NULL));
    ck_assert_int_ge(fgmm_model_iterations(longer), fgmm_model_iterations(once));
    fgmm_model_free(ctx, once);
    fgmm_model_free(ctx, often);
    fgmm_model_free(ctx, longer);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* What is frozen stays to the bit; what is not moves. */
START_TEST(freezing) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    unsigned freeze = (unsigned)(_i / COVARIANCE_TYPES);
    problem *p = problem_clusters(32, 800, 4, 3, (fgmm_covariance)(_i % COVARIANCE_TYPES), FGMM_F32);
    fgmm_fit_options options = options_for(p);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    options.init_model = start;
    options.max_iter = 3;
    options.tol = -1;
    options.freeze = freeze;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    size_t k = (size_t)p->k, kd = (size_t)(p->k * p->d), size = sizeof(double);
    int same_weights = !memcmp(fgmm_model_weights(start), fgmm_model_weights(model), k * size);
    int same_means = !memcmp(fgmm_model_means(start), fgmm_model_means(model), kd * size);
    int same_covariances = !memcmp(fgmm_model_covariances(start), fgmm_model_covariances(model),
                                   (size_t)fgmm_model_covariances_size(start) * size);
    ck_assert_int_eq(same_weights, !!(freeze & FGMM_FREEZE_WEIGHTS));
    ck_assert_int_eq(same_means, !!(freeze & FGMM_FREEZE_MEANS));
    ck_assert_int_eq(same_covariances, !!(freeze & FGMM_FREEZE_COVARIANCES));
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

static void check_definite(const fgmm_model *model) {
    fgmm_covariance type = fgmm_model_covariance_type(model);
    int64_t k = fgmm_model_components(model), d = fgmm_model_features(model);
    if (!covariance_is_matrix(type)) return;
    long double *w = test_alloc((size_t)(d * d), sizeof *w);
    double condition = 0;
    for (int64_t i = 0; i < (type == FGMM_TIED ? 1 : k); i++) {
        const double *matrix = fgmm_model_covariances(model) + covariance_index(type, d, i, 0, 0);
        long double log_det = reference_factor(matrix, d, 0, w, &condition);
        ck_assert_msg(log_det == log_det, "covariance %d is not positive definite", (int)i);
    }
    free(w);
}

/* Whether "component WHICH ... in iteration IT (cause)" is among the warnings. */
static int warned(const fgmm_report *report, int which, int iteration) {
    char component[32], when[32];
    snprintf(component, sizeof component, "component %d ", which);
    snprintf(when, sizeof when, "in iteration %d (", iteration);
    for (int i = 0; i < report->n_warnings && i < 8; i++)
        if (strstr(report->warnings[i], component) && strstr(report->warnings[i], when)) return 1;
    return 0;
}

static void check_sane(const fgmm_model *model) {
    int64_t k = fgmm_model_components(model), d = fgmm_model_features(model);
    double total = 0;
    for (int64_t i = 0; i < k; i++) total += fgmm_model_weights(model)[i];
    ck_assert(fabs(total - 1) < 1e-12);
    ck_assert(isfinite(fgmm_model_lower_bound(model)));
    for (int64_t i = 0; i < k * d; i++) ck_assert(isfinite(fgmm_model_means(model)[i]));
    for (int64_t i = 0; i < fgmm_model_covariances_size(model); i++)
        ck_assert(isfinite(fgmm_model_covariances(model)[i]));
    for (int64_t i = 0; i < k * d; i++)
        ck_assert(
            covariance_variance(fgmm_model_covariance_type(model), fgmm_model_covariances(model), d, i / d, i % d) > 0);
    check_definite(model);
}

/* Component 2 starts where no row is. */
START_TEST(dead_component) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    fgmm_policy policy = (fgmm_policy)(_i / COVARIANCE_TYPES);
    problem *p = problem_clusters(33, 900, 4, 3, (fgmm_covariance)(_i % COVARIANCE_TYPES), FGMM_F32);
    fgmm_fit_options options = options_for(p);
    fgmm_report report = FGMM_REPORT_INIT;
    for (int64_t j = 0; j < p->d; j++) p->means[2 * p->d + j] = 1e6;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    options.init_model = start;
    options.on_dead = policy;
    options.max_iter = 10;
    options.tol = -1;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, &report));
    check_sane(model);
    ck_assert_int_eq(fgmm_model_components(model), policy == FGMM_DROP ? 3 : 4);
    if (policy == FGMM_KEEP) {
        ck_assert(fgmm_model_weights(model)[2] == 0);
        ck_assert(fgmm_model_means(model)[2 * p->d] == 1e6);
    }
    if (policy == FGMM_RESEED) ck_assert(fgmm_model_weights(model)[2] > 0);
    ck_assert_msg(warned(&report, 2, 1), "the warning \"%s\" does not name component 2 and iteration 1",
                  report.warnings[0]);
    ck_assert_msg(strstr(report.warnings[0], "no row is near it") != NULL, "\"%s\" does not say why",
                  report.warnings[0]);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Component 1 sits on forty copies of one row. Two iterations: once it is gone, another may settle there. A tied matrix
 * is also of the other rows and does not collapse. */
START_TEST(collapsed_component) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    fgmm_policy policy = _i / COVARIANCE_TYPES ? FGMM_DROP : FGMM_KEEP;
    problem *p = problem_clusters(34, 600, 3, 3, (fgmm_covariance)(_i % COVARIANCE_TYPES), FGMM_F32);
    int tied = p->covariance == FGMM_TIED;
    fgmm_fit_options options = options_for(p);
    fgmm_report report = FGMM_REPORT_INIT;
    for (int64_t i = 0; i < 40 * p->d; i++) ((float *)p->rows)[i] = 1000.0f + 0.5f * (float)(i % p->d);
    for (int64_t j = 0; j < p->d; j++) p->means[p->d + j] = 1000.0 + 0.5 * (double)j + 0.01;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    options.init_model = start;
    options.on_collapse = policy;
    options.max_iter = 2;
    options.tol = -1;
    options.reg_covar = -1;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, &report));
    check_sane(model);
    ck_assert_int_eq(fgmm_model_components(model), policy == FGMM_DROP && !tied ? 2 : 3);
    if (tied) {
        ck_assert_int_eq(report.n_warnings, 0);
    } else {
        ck_assert_msg(warned(&report, 1, 1), "the warning \"%s\" does not name component 1 and iteration 1",
                      report.warnings[0]);
        ck_assert_msg(strstr(report.warnings[0], policy == FGMM_DROP ? "dropped" : "kept") != NULL,
                      "\"%s\" does not say what was done", report.warnings[0]);
    }
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Data that leave nothing to fit: the copies of one row, two rows, columns that are all the same, one feature of one
 * value. */
static fgmm_rows *degenerate_rows(fgmm_context *ctx, float *x, int which, int64_t *k) {
    static const int64_t shapes[][3] = {{10, 3, 1}, {10, 3, 3}, {2, 3, 2}, {60, 4, 2}, {20, 1, 2}, {1, 3, 1}};
    int64_t n = shapes[which][0], d = shapes[which][1];
    rng r = rng_make(37);
    *k = shapes[which][2];
    for (int64_t i = 0; i < n; i++) {
        double same = rng_normal(&r);
        for (int64_t j = 0; j < d; j++) {
            x[i * d + j] = 5.25f + (float)j;
            if (which == 2) x[i * d + j] += (float)i;
            if (which == 3) x[i * d + j] = (float)same;
        }
    }
    fgmm_rows *rows = NULL;
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &rows, x, FGMM_F32, n, d, 0));
    return rows;
}
enum { DEGENERATE = 6, POLICIES = 3 };

/* Any policy and start, with reg_covar a finite model; without, that or a clear error. */
START_TEST(degenerate) {
    if (harness_passes_over(_i)) return;
    static const fgmm_policy dead[POLICIES] = {FGMM_KEEP, FGMM_RESEED, FGMM_DROP};
    static const fgmm_policy collapse[POLICIES] = {FGMM_KEEP, FGMM_KEEP, FGMM_DROP};
    fgmm_context *ctx = harness_context();
    fgmm_covariance type = (fgmm_covariance)(_i % COVARIANCE_TYPES);
    float x[256];
    int64_t k;
    fgmm_rows *rows = degenerate_rows(ctx, x, _i / COVARIANCE_TYPES, &k);
    for (int turn = 0; turn < 4 * POLICIES * 2; turn++) {
        if (harness_is_short() && turn % 5 != _i % 5) continue;
        fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
        fgmm_report report = FGMM_REPORT_INIT;
        fgmm_model *model = NULL;
        options.n_components = k;
        options.covariance_type = type;
        options.init = (fgmm_init)(turn % 4);
        options.on_dead = dead[turn / 4 % POLICIES];
        options.on_collapse = collapse[turn / 4 % POLICIES];
        options.reg_covar = turn / (4 * POLICIES) ? -1 : 0;
        options.max_iter = 20;
        fgmm_status status = fgmm_fit(ctx, &model, rows, &options, &report);
        if (status == FGMM_OK) {
            check_sane(model);
            ck_assert_int_le(fgmm_model_components(model), k);
            ck_assert_int_eq(report.n_rows, fgmm_rows_count(rows));
        } else {
            ck_assert_msg(options.reg_covar < 0, "data %d, %s: %s", _i / COVARIANCE_TYPES, fgmm_covariance_name(type),
                          fgmm_context_message(ctx));
            ck_assert(status == FGMM_ERR_DATA || status == FGMM_ERR_INVALID);
            ck_assert_str_ne(fgmm_context_message(ctx), "");
            ck_assert_ptr_null(model);
        }
        /* Without reg_covar one component on copies of one row has collapsed, and the report says so. */
        if (status == FGMM_OK && _i / COVARIANCE_TYPES == 0 && options.reg_covar < 0)
            ck_assert_msg(warned(&report, 0, 1), "no warning of component 0 in iteration 1, but \"%s\"",
                          report.warnings[0]);
        fgmm_model_free(ctx, model);
    }
    fgmm_rows_free(ctx, rows);
}
END_TEST

/* reg_covar is added to each variance, nothing else changes. */
START_TEST(regularised) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(35, 800, 3, 3, (fgmm_covariance)_i, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *plain = NULL, *more = NULL;
    fgmm_stats *stats = NULL;
    fgmm_finalize_options finalize = FGMM_FINALIZE_OPTIONS_INIT;
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, start));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, rows, NULL, NULL));
    finalize.reg_covar = -1;
    CHECK_OK(ctx, fgmm_stats_finalize(ctx, stats, &finalize, &plain));
    finalize.reg_covar = 0.25;
    CHECK_OK(ctx, fgmm_stats_finalize(ctx, stats, &finalize, &more));
    for (int64_t i = 0; i < p->k * p->d * p->d; i++) {
        int64_t a = i % p->d, b = i / p->d % p->d;
        if (a != b && !covariance_is_matrix(p->covariance)) continue;
        int64_t at = covariance_index(p->covariance, p->d, i / (p->d * p->d), a, b);
        ck_assert(fabs(fgmm_model_covariances(more)[at] - fgmm_model_covariances(plain)[at] - 0.25 * (a == b)) < 1e-12);
    }
    ck_assert(!memcmp(fgmm_model_means(plain), fgmm_model_means(more), (size_t)(p->k * p->d) * sizeof(double)));
    fgmm_stats_free(ctx, stats);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, plain);
    fgmm_model_free(ctx, more);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

typedef struct watcher {
    int cancel_at; /* whole iterations; -1: never */
    int calls, last_iteration;
} watcher;

static int watch(void *user, const fgmm_progress *progress) {
    watcher *w = user;
    w->calls++;
    if (strcmp(progress->stage, "fit") != 0) return w->cancel_at == 0;
    w->last_iteration = progress->iteration;
    if (progress->iteration >= 2 && (isnan(progress->lower_bound) || isnan(progress->change)))
        w->last_iteration = -1000;
    return w->cancel_at >= 0 && progress->iteration >= w->cancel_at;
}

/* The callback sees each iteration; when it cancels, the last whole one comes back and the context lives on. */
START_TEST(progress_and_cancel) {
    problem *p = problem_clusters(36, 1500, 4, 3, FGMM_SPHERICAL, FGMM_F32);
    fgmm_context_options context = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_fit_options options = options_for(p);
    fgmm_context *ctx = NULL;
    fgmm_model *start = NULL, *model = NULL;
    watcher w = {_i == 0 ? -1 : _i == 1 ? 3 : 0, 0, 0};
    context.progress = watch;
    context.progress_user = &w;
    ck_assert_int_eq(harness_open(&ctx, &context), FGMM_OK);
    fgmm_rows *rows = problem_rows(ctx, p);
    start = problem_model(ctx, p);
    options.init_model = start;
    options.max_iter = 6;
    options.tol = -1;
    if (_i == 0) {
        CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
        ck_assert_int_eq(w.last_iteration, 6);
        ck_assert_int_ge(w.calls, 6);
    } else {
        CHECK_FAILS(ctx, FGMM_ERR_CANCELLED, fgmm_fit(ctx, &model, rows, &options, NULL));
        if (_i == 1) {
            ck_assert_ptr_nonnull(model);
            ck_assert_int_eq(fgmm_model_iterations(model), 3);
            check_sane(model);
        } else {
            ck_assert_ptr_null(model);
        }
    }
    fgmm_model_free(ctx, model);
    model = NULL;
    w.cancel_at = -1;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    fgmm_model_free(ctx, model);

    /* fgmm_context_cancel before a call stops that call, and only that one. */
    double *log_prob = test_alloc((size_t)p->n, sizeof *log_prob);
    fgmm_context_cancel(ctx);
    CHECK_FAILS(ctx, FGMM_ERR_CANCELLED, fgmm_score_samples(ctx, start, rows, NULL, log_prob, NULL));
    CHECK_OK(ctx, fgmm_score_samples(ctx, start, rows, NULL, log_prob, NULL));
    free(log_prob);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
    problem_free(p);
}
END_TEST

static TCase *fits(void) {
    TCase *room = tcase_create("fit");
    tcase_add_loop_test(room, finds_planted_clusters, 0, 12);
    tcase_add_loop_test(room, random_start_climbs, 0, COVARIANCE_TYPES);
    tcase_add_test(room, old_faithful);
    tcase_add_loop_test(room, restarts_and_tolerance, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, freezing, 0, 8 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, dead_component, 0, 3 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, collapsed_component, 0, 2 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, degenerate, 0, DEGENERATE * COVARIANCE_TYPES);
    tcase_add_loop_test(room, regularised, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, progress_and_cancel, 0, 3);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {fits};
    return harness_main("fit", rooms, 1);
}
