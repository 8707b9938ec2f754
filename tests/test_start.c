/* Where a fit starts: from precisions, and from the model that the seeding makes. */
#include "contract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Inverses of the problem's covariances, by the reference's factor. @param condition what errors may grow by. */
static double *precisions_of(const problem *p, double *condition) {
    int64_t d = p->d;
    size_t size = (size_t)covariance_size(p->covariance, p->k, d);
    double *out = test_alloc(size, sizeof *out);
    *condition = 1;
    if (!covariance_is_matrix(p->covariance)) {
        for (size_t i = 0; i < size; i++) out[i] = 1 / p->covariances[i];
        return out;
    }
    long double *w = test_alloc((size_t)(d * d), sizeof *w);
    for (int64_t k = 0; k < (p->covariance == FGMM_TIED ? 1 : p->k); k++) {
        int64_t at = covariance_index(p->covariance, d, k, 0, 0);
        reference_factor(p->covariances + at, d, 0, w, condition);
        for (int64_t i = 0; i < d * d; i++) {
            long double sum = 0;
            for (int64_t m = 0; m < d; m++) sum += w[m * d + i / d] * w[m * d + i % d];
            out[at + i] = (double)sum;
        }
    }
    free(w);
    return out;
}

static const char *const names[] = {"clusters",           "one feature", "columns over 4 orders",
                                    "correlated columns", "K 17, D 33",  "pairs at distance 1"};
enum { NAMES = sizeof names / sizeof *names };

/* The covariances are the inverses', symmetric, and the model is like one made of them. */
START_TEST(from_precisions) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_named(names[_i / COVARIANCE_TYPES], (fgmm_covariance)(_i % COVARIANCE_TYPES));
    if (!p) return;
    double condition, *precisions = precisions_of(p, &condition);
    fgmm_model *model = NULL;
    CHECK_OK(ctx, fgmm_model_create_from_precisions(ctx, &model, p->covariance, p->k, p->d, p->model_weights, p->means,
                                                    precisions));
    const double *got = fgmm_model_covariances(model);
    ck_assert_int_eq(fgmm_model_covariances_size(model), covariance_size(p->covariance, p->k, p->d));
    ck_assert_mem_eq(fgmm_model_means(model), p->means, (size_t)(p->k * p->d) * sizeof(double));
    for (int64_t k = 0; k < p->k; k++) {
        for (int64_t i = 0; i < p->d; i++) {
            for (int64_t j = 0; j < p->d; j++) {
                if (i != j && !covariance_is_matrix(p->covariance)) continue;
                int64_t at = covariance_index(p->covariance, p->d, k, i, j);
                double scale = sqrt(covariance_variance(p->covariance, p->covariances, p->d, k, i)) *
                               sqrt(covariance_variance(p->covariance, p->covariances, p->d, k, j));
                EXPECT(fabs(got[at] - p->covariances[at]) <= 1e-14 * condition * scale,
                       "%s: covariance[%d][%d][%d] is %.17g, not %.17g", p->name, (int)k, (int)i, (int)j, got[at],
                       p->covariances[at]);
                EXPECT(got[at] == got[covariance_index(p->covariance, p->d, k, j, i)], "%s: not symmetric", p->name);
            }
        }
    }
    free(precisions);
    fgmm_model_free(ctx, model);
    problem_free(p);
}
END_TEST

START_TEST(bad_precisions) {
    static const double bad[][4] = {{1, 0.5, 0.25, 1}, {1, 2, 2, 1}, {0, 0, 0, 1},       {1, 0, 0, -1},
                                    {1, NAN, NAN, 1},  {1, 1, 1, 1}, {INFINITY, 0, 0, 1}};
    fgmm_context *ctx = harness_context();
    const double means[4] = {0, 1, 2, 3}, good[4] = {2, 0.5, 0.5, 1};
    double both[8];
    fgmm_model *none = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(both, good, sizeof good);
        memcpy(both + 4, bad[i], sizeof bad[i]);
        CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                    fgmm_model_create_from_precisions(ctx, &none, FGMM_FULL, 2, 2, NULL, means, both));
        ck_assert_msg(strstr(fgmm_context_message(ctx), "matrix 1 ") != NULL, "\"%s\" does not name matrix 1",
                      fgmm_context_message(ctx));
        CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                    fgmm_model_create_from_precisions(ctx, &none, FGMM_TIED, 2, 2, NULL, means, bad[i]));
        ck_assert_ptr_null(none);
    }
    for (int i = 0; i < 4; i++) {
        double variances[2] = {1, (const double[]){0, -1, NAN, INFINITY}[i]};
        CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                    fgmm_model_create_from_precisions(ctx, &none, FGMM_SPHERICAL, 2, 2, NULL, means, variances));
        CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                    fgmm_model_create_from_precisions(ctx, &none, FGMM_DIAG, 1, 2, NULL, means, variances));
    }
    CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                fgmm_model_create_from_precisions(ctx, &none, FGMM_DIAG, 1, 2, NULL, means, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                fgmm_model_create_from_precisions(ctx, &none, (fgmm_covariance)9, 1, 2, NULL, means, good));
    ck_assert_ptr_null(none);
}
END_TEST

/* One iteration from the initial model is the first iteration of the fit. */
START_TEST(initial_model) {
    static const fgmm_init inits[] = {FGMM_INIT_KMEANSPP, FGMM_INIT_KMEANS, FGMM_INIT_RANDOM,
                                      FGMM_INIT_RANDOM_FROM_DATA};
    fgmm_context *ctx = harness_context();
    fgmm_covariance type = (fgmm_covariance)(_i % COVARIANCE_TYPES);
    problem *p = problem_clusters(110 + (uint64_t)_i, 1500, 5, 4, type, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = NULL, *fitted = NULL, *continued = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = 5;
    options.covariance_type = type;
    options.init = inits[_i / COVARIANCE_TYPES];
    options.seed = 11;
    options.max_iter = 1;
    CHECK_OK(ctx, fgmm_initial_model(ctx, &start, rows, &options));
    CHECK_OK(ctx, fgmm_fit(ctx, &fitted, rows, &options, NULL));
    options.init_model = start;
    CHECK_OK(ctx, fgmm_fit(ctx, &continued, rows, &options, NULL));
    ck_assert_int_eq(fgmm_model_covariance_type(start), type);
    ck_assert_mem_eq(fgmm_model_means(fitted), fgmm_model_means(continued), 20 * sizeof(double));
    ck_assert_mem_eq(fgmm_model_covariances(fitted), fgmm_model_covariances(continued),
                     (size_t)fgmm_model_covariances_size(fitted) * sizeof(double));
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, fitted);
    fgmm_model_free(ctx, continued);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

static TCase *starts(void) {
    TCase *room = tcase_create("starts");
    tcase_add_loop_test(room, from_precisions, 0, NAMES * COVARIANCE_TYPES);
    tcase_add_test(room, bad_precisions);
    tcase_add_loop_test(room, initial_model, 0, 4 * COVARIANCE_TYPES);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {starts};
    return harness_main("starts", rooms, 1);
}
