/* Hard assignment: Lloyd's iterations against ones written as they stand, and the laws of k-means. */
#include "data_sets.h"
#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct lloyd {
    double *means;  /* [k, d] */
    double *counts; /* [k]: weight of the rows nearest to each */
    double inertia, weight;
    double unsure; /* weight of the rows that are as near to another mean, to 1e-5 of the squared distance */
} lloyd;

static lloyd *lloyd_new(const problem *p) {
    lloyd *l = test_alloc(1, sizeof *l);
    l->means = test_alloc((size_t)(p->k * p->d), sizeof(double));
    l->counts = test_alloc((size_t)p->k, sizeof(double));
    return l;
}

static void lloyd_free(lloyd *l) {
    free(l->means);
    free(l->counts);
    free(l);
}

static int64_t nearest(const problem *p, const double *means, int64_t row, double *first, double *second) {
    int64_t best = 0;
    *first = *second = INFINITY;
    for (int64_t k = 0; k < p->k; k++) {
        double sum = 0;
        for (int64_t j = 0; j < p->d; j++) {
            double t = reference_value(p->rows, p->type, row * p->stride + j) - means[k * p->d + j];
            sum += t * t;
        }
        if (sum < *first) {
            *second = *first;
            *first = sum;
            best = k;
        } else if (sum < *second) {
            *second = sum;
        }
    }
    return best;
}

/* Counts and inertia about `means`, and in l->means where Lloyd's step takes them. */
static lloyd *lloyd_step(const problem *p, const double *means) {
    lloyd *l = lloyd_new(p);
    for (int64_t i = 0; i < p->n; i++) {
        double first, second, w = p->weights ? p->weights[i] : 1;
        int64_t k = nearest(p, means, i, &first, &second);
        for (int64_t j = 0; j < p->d; j++)
            l->means[k * p->d + j] += w * (reference_value(p->rows, p->type, i * p->stride + j) - means[k * p->d + j]);
        l->counts[k] += w;
        l->inertia += w * first;
        l->weight += w;
        if (second - first <= 1e-5 * second) l->unsure += w;
    }
    for (int64_t i = 0; i < p->k * p->d; i++) {
        double count = l->counts[i / p->d];
        l->means[i] = means[i] + (count > 0 ? l->means[i] / count : 0);
    }
    return l;
}

static fgmm_kmeans_options options_from(const fgmm_model *start, int max_iter) {
    fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;
    options.init_model = start;
    options.max_iter = max_iter;
    options.tol = -1;
    return options;
}

/* The model, result and counts that a call gives, against what its own means say. */
static void check_outcome(const problem *p, const fgmm_model *model, const fgmm_kmeans_result *result,
                          const double *counts) {
    const double *means = fgmm_model_means(model);
    lloyd *l = lloyd_step(p, means);
    ck_assert_int_eq(fgmm_model_covariance_type(model), FGMM_SPHERICAL);
    ck_assert_int_eq(fgmm_model_components(model), p->k);
    ck_assert_msg(fabs(result->inertia - l->inertia) <= 1e-5 * l->inertia + 1e-12, "%s: inertia %.12g, not %.12g",
                  p->name, result->inertia, l->inertia);
    /* A device that computes in f32 keeps the rows' weights so. */
    ck_assert(fabs(result->weight - l->weight) <= (harness_is_cpu() ? 1e-12 : 6e-8) * l->weight);
    double empty = 0, variance = l->inertia / (l->weight * (double)p->d);
    for (int64_t k = 0; k < p->k; k++) {
        EXPECT(fabs(counts[k] - l->counts[k]) <= l->unsure + 1e-6 * l->weight,
               "%s: %g rows are nearest to mean %d, not %g", p->name, counts[k], (int)k, l->counts[k]);
        EXPECT(fabs(fgmm_model_weights(model)[k] - 1.0 / (double)p->k) <= 1e-15, "%s: weight[%d] is %g", p->name,
               (int)k, fgmm_model_weights(model)[k]);
        EXPECT(fgmm_model_covariances(model)[k] == fgmm_model_covariances(model)[0], "two variances");
        empty += counts[k] == 0;
    }
    EXPECT(fabs(fgmm_model_covariances(model)[0] - variance) <= 1e-5 * variance + 1e-30, "%s: variance %g, not %g",
           p->name, fgmm_model_covariances(model)[0], variance);
    ck_assert_int_eq(result->n_empty, (int64_t)empty);
    lloyd_free(l);
}

static const char *const names[] = {"clusters",      "overlapping clusters",
                                    "K 17, D 33",    "rows of weight 0",
                                    "strided rows",  "pairs far from the origin, D 8",
                                    "f64 about 1e6", "f16",
                                    "K 67, D 65",    "one feature",
                                    "one component", "K 5, D 1030"};
enum { NAMES = sizeof names / sizeof *names };

/* Three iterations are Lloyd's three; predict gives the nearest mean. */
START_TEST(three_iterations) {
    fgmm_context *ctx = harness_context();
    problem *p = harness_takes(_i) ? problem_named(names[_i], FGMM_SPHERICAL) : NULL;
    if (!p) return;
    if (p->n < p->k) {
        printf("%s: FLASHGMM_TEST_SCALE leaves fewer rows than components\n", p->name);
        problem_free(p);
        return;
    }
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    fgmm_kmeans_options options = options_from(start, 3);
    fgmm_kmeans_result result;
    fgmm_report report = FGMM_REPORT_INIT;
    double *counts = test_alloc((size_t)p->k, sizeof *counts),
           *means = test_alloc((size_t)(p->k * p->d), sizeof *means);
    int32_t *label = test_alloc((size_t)p->n, sizeof *label);
    double unsure = 0;
    memcpy(means, p->means, (size_t)(p->k * p->d) * sizeof *means);
    int empty = 0;
    for (int i = 0; i < 3; i++) {
        lloyd *l = lloyd_step(p, means);
        unsure += l->unsure;
        for (int64_t k = 0; k < p->k; k++) empty |= l->counts[k] == 0;
        memcpy(means, l->means, (size_t)(p->k * p->d) * sizeof *means);
        lloyd_free(l);
    }
    CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, &result, counts, &report));
    check_outcome(p, model, &result, counts);
    ck_assert_int_le(report.n_iter, 3);
    ck_assert_int_eq(report.n_rows, p->n);
    double deviation = sqrt(fgmm_model_covariances(model)[0]);
    for (int64_t i = 0; i < p->k * p->d && unsure == 0 && !empty; i++)
        EXPECT(fabs(fgmm_model_means(model)[i] - means[i]) <= 1e-5 * deviation + 1e-9 * fabs(means[i]),
               "%s: mean[%d][%d] is %.12g, not %.12g", p->name, (int)(i / p->d), (int)(i % p->d),
               fgmm_model_means(model)[i], means[i]);
    CHECK_OK(ctx, fgmm_predict(ctx, model, rows, NULL, label, NULL));
    for (int64_t i = 0; i < p->n; i++) {
        double first, second;
        int64_t k = nearest(p, fgmm_model_means(model), i, &first, &second);
        EXPECT(label[i] == k || second - first <= 1e-5 * second, "%s: row %d got mean %d, not %d", p->name, (int)i,
               label[i], (int)k);
    }
    free(counts);
    free(means);
    free(label);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* The inertia never rises with the iterations, more restarts never end higher, and the end is a fixed point. */
START_TEST(descends_to_a_fixed_point) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(80, 1200, 6, 2, FGMM_SPHERICAL, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;
    fgmm_kmeans_result result, often;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_model *model = NULL;
    double counts[6], before = INFINITY;
    options.n_components = 6;
    options.init = FGMM_INIT_RANDOM_FROM_DATA;
    options.seed = 3;
    options.tol = -1;
    for (int iterations = 1; iterations < 9; iterations++) {
        options.max_iter = iterations;
        CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, &result, counts, NULL));
        check_outcome(p, model, &result, counts);
        /* Lloyd's fixed point, where rows as far from two means as from each other go either way: rounding is all that is
         * left, that of f32 on a device without doubles. */
        ck_assert_msg(result.inertia <= before * (1 + (harness_is_cpu() ? 1e-9 : 1e-7)), "inertia %.12g after %.12g",
                      result.inertia, before);
        before = result.inertia;
        fgmm_model_free(ctx, model);
        model = NULL;
    }
    options.max_iter = 0;
    options.tol = 1e-12;
    CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, &result, counts, &report));
    ck_assert_int_eq(report.converged, 1);
    lloyd *l = lloyd_step(p, fgmm_model_means(model));
    for (int i = 0; i < 12; i++) ck_assert(fabs(l->means[i] - fgmm_model_means(model)[i]) <= 1e-6);
    lloyd_free(l);
    fgmm_model_free(ctx, model);
    options.n_init = 5;
    CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, &often, NULL, NULL));
    ck_assert(often.inertia <= result.inertia * (1 + 1e-9));
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* A row of weight 2 is the row twice. */
START_TEST(weights_count_rows) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(81, 600, 5, 4, FGMM_SPHERICAL, FGMM_F32);
    float *several = test_alloc((size_t)(3 * p->n * p->d), sizeof *several);
    int64_t n = 0;
    p->weights = test_alloc((size_t)p->n, sizeof(double));
    for (int64_t i = 0; i < p->n; i++) {
        p->weights[i] = (double)(i % 4);
        for (int copy = 0; copy < (int)(i % 4); copy++, n++)
            memcpy(several + n * p->d, (float *)p->rows + i * p->d, (size_t)p->d * sizeof *several);
    }
    fgmm_rows *rows = problem_rows(ctx, p), *copies = NULL;
    fgmm_model *start = problem_model(ctx, p), *a = NULL, *b = NULL;
    fgmm_kmeans_options options = options_from(start, 4);
    fgmm_kmeans_result one, other;
    double counts_a[5], counts_b[5];
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &copies, several, FGMM_F32, n, p->d, 0));
    CHECK_OK(ctx, fgmm_kmeans(ctx, &a, rows, &options, &one, counts_a, NULL));
    CHECK_OK(ctx, fgmm_kmeans(ctx, &b, copies, &options, &other, counts_b, NULL));
    ck_assert(fabs(one.weight - other.weight) <= 1e-9 && fabs(other.weight - (double)n) <= 1e-9);
    ck_assert_msg(fabs(one.inertia - other.inertia) <= 1e-5 * other.inertia, "inertia %g and %g", one.inertia,
                  other.inertia);
    for (int k = 0; k < 5; k++) ck_assert(fabs(counts_a[k] - counts_b[k]) <= 1e-6 * (double)n);
    for (int64_t i = 0; i < p->k * p->d; i++) ck_assert(fabs(fgmm_model_means(a)[i] - fgmm_model_means(b)[i]) <= 1e-5);
    free(several);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, a);
    fgmm_model_free(ctx, b);
    fgmm_rows_free(ctx, rows);
    fgmm_rows_free(ctx, copies);
    problem_free(p);
}
END_TEST

/* A mean that no row is near moves to a far row, or stays where it is on request. */
START_TEST(empty_means) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(82, 900, 4, 3, FGMM_SPHERICAL, FGMM_F32);
    for (int64_t j = 0; j < p->d; j++) p->means[2 * p->d + j] = 1e4;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    fgmm_kmeans_options options = options_from(start, 20);
    fgmm_kmeans_result result;
    double counts[4];
    options.keep_empty = _i;
    CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, &result, counts, NULL));
    check_outcome(p, model, &result, counts);
    ck_assert_int_eq(result.n_empty, _i);
    ck_assert((counts[2] == 0) == (_i == 1));
    ck_assert((fgmm_model_means(model)[2 * p->d] == 1e4) == (_i == 1));
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* The same seed gives the same bits for any block size and number of threads. */
START_TEST(same_bits) {
    problem *p = problem_clusters(83, harness_rows(5000, 7, 5), 7, 5, FGMM_SPHERICAL, FGMM_F32);
    double *first = test_alloc((size_t)(p->k * p->d), sizeof *first);
    for (int way = 0; way < 3; way++) {
        fgmm_context_options context = FGMM_CONTEXT_OPTIONS_INIT;
        fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;
        fgmm_context *ctx = harness_is_cpu() ? NULL : harness_context();
        fgmm_model *model = NULL;
        context.threads = way == 1 ? 2 : 1;
        if (harness_is_cpu()) ck_assert_int_eq(harness_open(&ctx, &context), FGMM_OK);
        fgmm_rows *rows = problem_rows(ctx, p);
        options.n_components = 7;
        options.seed = 5;
        options.max_iter = 5;
        options.compute.block_rows = way == 2 ? 3072 : 1024;
        CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, NULL, NULL, NULL));
        size_t bytes = (size_t)(p->k * p->d) * sizeof *first;
        if (way == 0) memcpy(first, fgmm_model_means(model), bytes);
        ck_assert_mem_eq(first, fgmm_model_means(model), bytes);
        fgmm_model_free(ctx, model);
        fgmm_rows_free(ctx, rows);
        if (harness_is_cpu()) fgmm_context_free(ctx);
    }
    free(first);
    problem_free(p);
}
END_TEST

/* Ten copies of a row, two rows for two means, one row for one: finite, and no distance is left. */
START_TEST(degenerate_rows) {
    fgmm_context *ctx = harness_context();
    float x[30];
    static const int64_t shapes[][2] = {{10, 1}, {10, 3}, {2, 2}, {1, 1}};
    int64_t n = shapes[_i][0], k = shapes[_i][1];
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;
    fgmm_kmeans_result result;
    for (int i = 0; i < 30; i++) x[i] = 5.0f + (float)(i % 3) + (n == 2 && i >= 3 ? 1.0f : 0.0f);
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &rows, x, FGMM_F32, n, 3, 0));
    options.n_components = k;
    CHECK_OK(ctx, fgmm_kmeans(ctx, &model, rows, &options, &result, NULL, NULL));
    ck_assert_msg(result.inertia >= 0 && result.inertia <= 1e-9, "inertia %g", result.inertia);
    for (int64_t i = 0; i < 3 * k; i++) ck_assert(isfinite(fgmm_model_means(model)[i]));
    ck_assert(fgmm_model_covariances(model)[0] > 0 && isfinite(fgmm_model_covariances(model)[0]));
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
}
END_TEST

#define KMEANS_FAILS(expected, ...)                                                                                    \
    do {                                                                                                               \
        fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;                                                        \
        fgmm_model *none = NULL;                                                                                       \
        options.n_components = 3;                                                                                      \
        __VA_ARGS__;                                                                                                   \
        CHECK_FAILS(ctx, expected, fgmm_kmeans(ctx, &none, rows, &options, NULL, NULL, NULL));                         \
        ck_assert_ptr_null(none);                                                                                      \
    } while (0)

START_TEST(bad_input) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(84, 200, 3, 3, FGMM_SPHERICAL, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *flat = NULL;
    const double means[2] = {0, 1}, one = 1;
    CHECK_OK(ctx, fgmm_model_create(ctx, &flat, FGMM_SPHERICAL, 1, 2, NULL, means, &one));
    KMEANS_FAILS(FGMM_ERR_INVALID, options.n_components = 0);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.n_components = 201);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.init = (fgmm_init)17);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.max_iter = -1);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.n_init = -1);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.init_sample = -1);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.tol = NAN);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.n_components = 0; options.init_model = flat);
    KMEANS_FAILS(FGMM_ERR_INVALID, options.struct_size = 3);
    ((float *)p->rows)[7] = NAN;
    KMEANS_FAILS(FGMM_ERR_DATA, (void)0);
    ck_assert_msg(strstr(fgmm_context_message(ctx), "2") != NULL, "\"%s\" does not name row 2",
                  fgmm_context_message(ctx));
    fgmm_model_free(ctx, flat);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

static TCase *kmeans(void) {
    TCase *room = tcase_create("k-means");
    tcase_add_loop_test(room, three_iterations, 0, NAMES);
    tcase_add_test(room, descends_to_a_fixed_point);
    tcase_add_test(room, weights_count_rows);
    tcase_add_loop_test(room, empty_means, 0, 2);
    tcase_add_test(room, same_bits);
    tcase_add_loop_test(room, degenerate_rows, 0, 4);
    tcase_add_test(room, bad_input);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {kmeans};
    return harness_main("k-means", rooms, 1);
}
