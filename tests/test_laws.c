/* Laws that hold for every backend and all data, whatever the numbers are. */
#include "contract.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Two results, each within e of the truth. */
static const double TWICE_E = 2e-5;

static fgmm_fit_options fit_options(const problem *p, const fgmm_model *start, int max_iter) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.init_model = start;
    options.max_iter = max_iter;
    options.tol = -1;
    options.reg_covar = p->reg_covar > 0 ? p->reg_covar : -1;
    return options;
}

static const char *const climbing[] = {
    "clusters",         "overlapping clusters", "K 17, D 33",         "variances over 8 orders", "duplicates",
    "a start far away", "rows of weight 0",     "correlated columns", "columns over 4 orders"};
enum { CLIMBING = sizeof climbing / sizeof *climbing };

/* The likelihood of the rows never falls from one EM iteration to the next. */
START_TEST(em_never_descends) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    const char *name = climbing[_i / COVARIANCE_TYPES];
    problem *p = problem_named(name, (fgmm_covariance)(_i % COVARIANCE_TYPES));
    if (!p || p->reg_covar > 0) { /* with reg_covar the M-step does not maximise the likelihood */
        problem_free(p);
        return;
    }
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    double before = -INFINITY;
    for (int iteration = 0; iteration < 15; iteration++) {
        fgmm_fit_options options = fit_options(p, model, 1);
        fgmm_model *next = NULL;
        fgmm_report report = FGMM_REPORT_INIT;
        CHECK_OK(ctx, fgmm_fit(ctx, &next, rows, &options, &report));
        double now = fgmm_model_lower_bound(next);
        /* The M-step's own error costs its square; what is left is the rounding of a mean of log-likelihoods. */
        ck_assert_msg(now >= before - 1e-6 * fmax(1, fabs(now)) || report.n_warnings > 0,
                      "%s: %.12g after %.12g in iteration %d", p->name, now, before, iteration);
        before = now;
        fgmm_model_free(ctx, model);
        model = next;
        if (report.n_warnings > 0) break; /* something was floored */
    }
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Second moments, of matrices the lower triangle, each within the bound of the variances of its features. */
static void check_close_squares(const char *what, const fgmm_stats_view *a, const fgmm_stats_view *b, double least) {
    fgmm_covariance type = a->covariance_type;
    int64_t last_k = type == FGMM_TIED ? 1 : a->k, last_d = type == FGMM_SPHERICAL ? 1 : a->d;
    for (int64_t k = 0; k < last_k; k++) {
        for (int64_t i = 0; i < last_d; i++) {
            for (int64_t j = covariance_is_matrix(type) ? 0 : i; j <= i; j++) {
                int64_t at = covariance_index(type, a->d, k, i, j);
                double scale = sqrt(covariance_variance(type, a->s2, a->d, k, i)) *
                               sqrt(covariance_variance(type, a->s2, a->d, k, j));
                EXPECT(fabs(a->s2[at] - b->s2[at]) <= TWICE_E * fmax(scale, least), "%s: S2[%d] %.12g and %.12g", what,
                       (int)at, a->s2[at], b->s2[at]);
            }
        }
    }
}

static void check_close_stats(const char *what, const fgmm_stats *one, const fgmm_stats *other) {
    fgmm_stats_view a, b;
    fgmm_stats_export(one, &a);
    fgmm_stats_export(other, &b);
    ck_assert_msg(fabs(a.weight - b.weight) <= 1e-12 * fabs(a.weight), "%s: weights %g and %g", what, a.weight,
                  b.weight);
    ck_assert_msg(fabs(a.rows - b.rows) <= 1e-9 * fabs(a.rows), "%s: rows %g and %g", what, a.rows, b.rows);
    ck_assert(a.fingerprint == b.fingerprint);
    ck_assert_msg(fabs(a.log_likelihood - b.log_likelihood) <= TWICE_E * fmax(a.weight, fabs(a.log_likelihood)),
                  "%s: likelihoods %.12g and %.12g", what, a.log_likelihood, b.log_likelihood);
    for (int64_t k = 0; k < a.k; k++)
        ck_assert_msg(fabs(a.s0[k] - b.s0[k]) <= TWICE_E * (a.s0[k] + 1e-2), "%s: N[%d] %.12g and %.12g", what, (int)k,
                      a.s0[k], b.s0[k]);
    check_close_squares(what, &a, &b, 1e-6);
    for (int64_t i = 0; i < a.k * a.d; i++) {
        double spread = sqrt(a.s0[i / a.d] * covariance_variance(a.covariance_type, a.s2, a.d, i / a.d, i % a.d));
        ck_assert(a.centres[i] == b.centres[i]);
        ck_assert_msg(fabs(a.s1[i] - b.s1[i]) <= TWICE_E * (spread + 1e-3), "%s: S1[%d] %.12g and %.12g", what, (int)i,
                      a.s1[i], b.s1[i]);
    }
}

static fgmm_stats *stats_of(const fgmm_model *model, const fgmm_rows *rows, int64_t first, int64_t n) {
    fgmm_context *ctx = harness_context();
    fgmm_stats *stats = NULL;
    fgmm_rows *part = NULL;
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &part, rows, first, n));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, part, NULL, NULL));
    fgmm_rows_free(ctx, part);
    return stats;
}

/* Statistics of parts, merged or accumulated in turn, are those of the whole; scaling is linear. */
START_TEST(merging) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_named(_i / COVARIANCE_TYPES ? "rows of weight 0" : "overlapping clusters",
                               (fgmm_covariance)(_i % COVARIANCE_TYPES));
    if (!p) return;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    int64_t cut = p->n * 2 / 5 + 1; /* of no special length */
    fgmm_stats *whole = stats_of(model, rows, 0, p->n), *a = stats_of(model, rows, 0, cut);
    fgmm_stats *b = stats_of(model, rows, cut, p->n - cut), *twice = stats_of(model, rows, 0, p->n);
    fgmm_rows *rest = NULL;

    CHECK_OK(ctx, fgmm_stats_merge(ctx, a, b));
    check_close_stats("merge", whole, a);
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &rest, rows, 0, cut));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, b, rest, NULL, NULL));
    check_close_stats("accumulate in turn", whole, b);

    CHECK_OK(ctx, fgmm_stats_merge(ctx, twice, whole));
    CHECK_OK(ctx, fgmm_stats_scale(ctx, twice, 0.5));
    check_close_stats("scale", whole, twice);

    CHECK_OK(ctx, fgmm_stats_reset(ctx, a, NULL));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, a, rows, NULL, NULL));
    check_close_stats("reset", whole, a);
    fgmm_rows_free(ctx, rest);
    fgmm_stats_free(ctx, whole);
    fgmm_stats_free(ctx, a);
    fgmm_stats_free(ctx, b);
    fgmm_stats_free(ctx, twice);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* A row of weight 2 is the row twice; of weight 0, not there. */
START_TEST(weights_count_rows) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(3, 900, 5, 4, (fgmm_covariance)_i, FGMM_F32);
    float *several = test_alloc((size_t)(3 * p->n * p->d), sizeof *several);
    int64_t n = 0;
    p->weights = test_alloc((size_t)p->n, sizeof(double));
    for (int64_t i = 0; i < p->n; i++) {
        p->weights[i] = (double)(i * 7 % 4 > 2 ? 0 : i * 7 % 4);
        for (int copy = 0; copy < (int)p->weights[i]; copy++, n++)
            memcpy(several + n * p->d, (float *)p->rows + i * p->d, (size_t)p->d * sizeof *several);
    }
    fgmm_rows *rows = problem_rows(ctx, p), *copies = NULL;
    fgmm_model *model = problem_model(ctx, p);
    fgmm_stats_view view;
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &copies, several, FGMM_F32, n, p->d, 0));
    fgmm_stats *weighted = stats_of(model, rows, 0, p->n), *repeated = stats_of(model, copies, 0, n);
    fgmm_stats_export(repeated, &view);
    ck_assert(fabs(view.rows - (double)n) < 0.5);
    CHECK_OK(ctx, fgmm_stats_scale(ctx, repeated, 1)); /* changes nothing */
    fgmm_stats_view a, b;
    fgmm_stats_export(weighted, &a);
    fgmm_stats_export(repeated, &b);
    ck_assert(fabs(a.weight - b.weight) <= 1e-9);
    ck_assert(fabs(a.log_likelihood - b.log_likelihood) <= TWICE_E * fabs(b.log_likelihood));
    for (int64_t k = 0; k < p->k; k++) ck_assert(fabs(a.s0[k] - b.s0[k]) <= TWICE_E * (b.s0[k] + 1e-2));
    check_close_squares("weights", &a, &b, 1e-2);
    fgmm_stats_free(ctx, weighted);
    fgmm_stats_free(ctx, repeated);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    fgmm_rows_free(ctx, copies);
    free(several);
    problem_free(p);
}
END_TEST

/*
 * A fit from its seeding on, in a context of its own unless *ctx is set. Asserts nothing: it also runs outside Check's
 * thread.
 */
static fgmm_status fit_the_way(fgmm_context **ctx, fgmm_model **model, const problem *p, int threads,
                               int64_t block_rows, fgmm_engine engine, fgmm_precision precision, fgmm_init init) {
    fgmm_context_options context = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_fit_options options = fit_options(p, NULL, 4);
    fgmm_rows *rows = NULL;
    context.threads = threads;
    options.init = init;
    options.reg_covar = fmax(p->reg_covar, 1e-6);
    options.seed = 42;
    options.compute.engine = engine;
    options.compute.precision = precision;
    options.compute.block_rows = block_rows;
    fgmm_status status = *ctx ? FGMM_OK : harness_open(ctx, &context);
    if (status != FGMM_OK) return status;
    status = fgmm_rows_from_memory(*ctx, &rows, p->rows, p->type, p->n, p->d, p->stride);
    if (status == FGMM_OK) status = fgmm_fit(*ctx, model, rows, &options, NULL);
    fgmm_rows_free(*ctx, rows);
    return status;
}

static void check_same_bits(const fgmm_model *a, const fgmm_model *b, const char *what) {
    size_t k = (size_t)fgmm_model_components(a), d = (size_t)fgmm_model_features(a);
    double la = fgmm_model_lower_bound(a), lb = fgmm_model_lower_bound(b);
    ck_assert_msg(memcmp(fgmm_model_weights(a), fgmm_model_weights(b), k * sizeof(double)) == 0, "%s: weights", what);
    ck_assert_msg(memcmp(fgmm_model_means(a), fgmm_model_means(b), k * d * sizeof(double)) == 0, "%s: means", what);
    ck_assert_msg(memcmp(fgmm_model_covariances(a), fgmm_model_covariances(b),
                         (size_t)fgmm_model_covariances_size(a) * sizeof(double)) == 0,
                  "%s: covariances", what);
    ck_assert_msg(memcmp(&la, &lb, sizeof la) == 0, "%s: lower bound", what);
}

typedef struct way {
    int threads;
    int64_t block_rows;
    const char *what;
} way;

/* Threads are the CPU path's; on another device, which takes long to open, one context serves. */
static void check_ways(const problem *p, fgmm_engine engine, fgmm_precision precision, fgmm_init init) {
    static const way ways[] = {{1, 1024, ""},
                               {2, 1024, "2 threads"},
                               {2, 3072, "2 threads, larger blocks"},
                               {1, 3072, "larger blocks"},
                               {1, 0, "own block size"}};
    fgmm_context *first = harness_is_cpu() ? NULL : harness_context();
    fgmm_model *model = NULL;
    CHECK_OK(first, fit_the_way(&first, &model, p, 1, 1024, engine, precision, init));
    for (int i = 1; i < 5; i++) {
        fgmm_context *ctx = harness_is_cpu() ? NULL : first;
        fgmm_model *other = NULL;
        if (ctx && ways[i].threads > 1) continue;
        CHECK_OK(ctx, fit_the_way(&ctx, &other, p, ways[i].threads, ways[i].block_rows, engine, precision, init));
        check_same_bits(model, other, ways[i].what);
        fgmm_model_free(ctx, other);
        if (ctx != first) fgmm_context_free(ctx);
    }
    fgmm_model_free(first, model);
    if (harness_is_cpu()) fgmm_context_free(first);
}

/* The same seed gives the same bits, whatever the number of threads and the block size. */
START_TEST(same_bits) {
    if (harness_passes_over(_i)) return;
    static const fgmm_init inits[] = {FGMM_INIT_KMEANSPP, FGMM_INIT_KMEANS, FGMM_INIT_RANDOM,
                                      FGMM_INIT_RANDOM_FROM_DATA};
    int64_t k = _i % 2 ? 40 : 6, d = _i % 2 ? 37 : 5;
    problem *p =
        problem_clusters(4, harness_rows(9000, k, d), k, d, (fgmm_covariance)(_i / 2), _i % 2 ? FGMM_F16 : FGMM_F32);
    static const fgmm_engine engines[] = {FGMM_ENGINE_AUTO, FGMM_ENGINE_SCREEN, FGMM_ENGINE_DENSE, FGMM_ENGINE_SCREEN};
    for (int i = 0; i < 4; i++) {
        if (harness_is_short() && i != _i % 4) continue;
        check_ways(p, engines[i], i == 3 ? FGMM_FAST : FGMM_EXACT, inits[(_i + i) % 4]);
    }
    problem_free(p);
}
END_TEST

/* Also where a block holds several of the groups of rows that the dense engine of a device takes at a time: K of 400
 * makes them small. */
START_TEST(same_bits_across_groups) {
    if (harness_passes_over(_i)) return;
    int64_t rows = harness_rows(9000, 400, 1);
    if (rows < 9000) return; /* a slow device: too few rows for two groups */
    problem *p = problem_clusters(4, rows, 400, 1, (fgmm_covariance)_i, FGMM_F32);
    /* Random responsibilities give every component a share of every row, so that the order of additions tells. */
    check_ways(p, FGMM_ENGINE_DENSE, FGMM_EXACT, FGMM_INIT_RANDOM);
    check_ways(p, FGMM_ENGINE_SCREEN, FGMM_EXACT, FGMM_INIT_RANDOM);
    check_ways(p, FGMM_ENGINE_SCREEN, FGMM_FAST, FGMM_INIT_RANDOM);
    problem_free(p);
}
END_TEST

/* Ten iterations and ten more are twenty. */
START_TEST(warm_start_continues) {
    if (harness_passes_over(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(5, 1500, 5, 4, (fgmm_covariance)_i, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *whole = NULL, *half = NULL, *rest = NULL;
    fgmm_fit_options options = fit_options(p, start, 20);
    CHECK_OK(ctx, fgmm_fit(ctx, &whole, rows, &options, NULL));
    options.max_iter = 10;
    CHECK_OK(ctx, fgmm_fit(ctx, &half, rows, &options, NULL));
    options.init_model = half;
    CHECK_OK(ctx, fgmm_fit(ctx, &rest, rows, &options, NULL));
    ck_assert_int_eq(fgmm_model_iterations(whole), 20);
    ck_assert(fabs(fgmm_model_lower_bound(whole) - fgmm_model_lower_bound(rest)) <= 1e-6);
    for (int64_t i = 0; i < p->k * p->d; i++) {
        double deviation =
            sqrt(covariance_variance(p->covariance, fgmm_model_covariances(whole), p->d, i / p->d, i % p->d));
        ck_assert_msg(fabs(fgmm_model_means(whole)[i] - fgmm_model_means(rest)[i]) <= 1e-4 * deviation,
                      "mean %d: %.9g and %.9g", (int)i, fgmm_model_means(whole)[i], fgmm_model_means(rest)[i]);
    }
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, whole);
    fgmm_model_free(ctx, half);
    fgmm_model_free(ctx, rest);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

typedef struct worker {
    const problem *p;
    fgmm_context *ctx;
    fgmm_model *model;
    fgmm_status status;
} worker;

static void *fit_in_thread(void *argument) {
    worker *w = argument;
    w->status = fit_the_way(&w->ctx, &w->model, w->p, 1, 1024, FGMM_ENGINE_AUTO, FGMM_EXACT, FGMM_INIT_KMEANSPP);
    return NULL;
}

/* Two contexts in two threads are independent. */
START_TEST(two_contexts_in_two_threads) {
    problem *p = problem_clusters(6, 2500, 6, 5, FGMM_SPHERICAL, FGMM_F32);
    worker workers[2] = {{.p = p}, {.p = p}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, fit_in_thread, &workers[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) CHECK_OK(workers[i].ctx, workers[i].status);
    check_same_bits(workers[0].model, workers[1].model, "two threads");
    for (int i = 0; i < 2; i++) {
        fgmm_model_free(workers[i].ctx, workers[i].model);
        fgmm_context_free(workers[i].ctx);
    }
    problem_free(p);
}
END_TEST

static TCase *laws(void) {
    TCase *room = tcase_create("laws");
    tcase_add_loop_test(room, em_never_descends, 0, COVARIANCE_TYPES * CLIMBING);
    tcase_add_loop_test(room, merging, 0, 2 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, weights_count_rows, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, same_bits, 0, 2 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, same_bits_across_groups, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, warm_start_continues, 0, COVARIANCE_TYPES);
    tcase_add_test(room, two_contexts_in_two_threads);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {laws};
    return harness_main("laws", rooms, 1);
}
