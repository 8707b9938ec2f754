/*
 * Thirty iterations against scikit-learn from the same start: real data, all types of covariance; likelihood, AIC, BIC,
 * responsibilities. expected/ was made by make_expected.py, which says what its files hold; expected/made_by.json
 * names the versions.
 */
#include "data_sets.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *rows;
} sets[] = {
    {"iris", "data/iris.npy"},
    {"wine", "data/wine.npy"},
    {"digits", "../data/digits/X.npy"},
    {"breast-cancer", "data/breast-cancer.npy"},
    {"old-faithful", "data/old-faithful.npy"},
};
enum { SETS = sizeof sets / sizeof *sets, ITERATIONS = 30, PROBA_ROWS = 300 };

typedef struct fixture {
    const char *name, *data; /* data: the path of the rows */
    fgmm_covariance type;
    fgmm_rows *rows;
    fgmm_model *start, *end; /* full: the end is of type diag */
    double *score;           /* [ITERATIONS] lower bounds, AIC, BIC */
    float *proba;            /* [proba_rows, k] */
    int64_t step, proba_rows;
} fixture;

static const char *expected_path(const fixture *f, const char *which) {
    char path[128];
    snprintf(path, sizeof path, "expected/%s-%s-%s", f->name, fgmm_covariance_name(f->type), which);
    return harness_path(path);
}

/* The `count` items of `size` bytes that end a file of ours. */
static void *read_tail(const char *path, size_t count, size_t size) {
    void *values = test_alloc(count, size);
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s is not there", path);
    ck_assert_int_eq(fseek(file, -(long)(count * size), SEEK_END), 0);
    ck_assert_uint_eq(fread(values, size, count, file), count);
    fclose(file);
    return values;
}

static void fixture_free(fixture *f) {
    fgmm_model_free(harness_context(), f->start);
    fgmm_model_free(harness_context(), f->end);
    fgmm_rows_free(harness_context(), f->rows);
    free(f->score);
    free(f->proba);
}

/* @return 0 where the data are too large for the device, or a short run passes it over. */
static int fixture_make(fixture *f, int i) {
    fgmm_context *ctx = harness_context();
    if (!harness_takes(i)) return 0;
    *f = (fixture){.name = sets[i / COVARIANCE_TYPES].name,
                   .data = sets[i / COVARIANCE_TYPES].rows,
                   .type = (fgmm_covariance)(i % COVARIANCE_TYPES)};
    CHECK_OK(ctx, fgmm_rows_open(ctx, &f->rows, harness_path(f->data), NULL));
    CHECK_OK(ctx, fgmm_model_load(ctx, &f->start, expected_path(f, "start.npz")));
    CHECK_OK(ctx, fgmm_model_load(ctx, &f->end, expected_path(f, "end.npz")));
    int64_t n = fgmm_rows_count(f->rows), k = fgmm_model_components(f->end), d = fgmm_model_features(f->end);
    double work = (double)n * (double)(k * d) * (covariance_is_matrix(f->type) ? (double)(d + 15) / 16 : 1);
    if (work > 10.0 * (double)harness_scale()) {
        printf("%s is too large for FLASHGMM_TEST_SCALE\n", f->name);
        fixture_free(f);
        return 0;
    }
    f->step = (n + PROBA_ROWS - 1) / PROBA_ROWS;
    f->proba_rows = (n + f->step - 1) / f->step;
    f->score = read_tail(expected_path(f, "score.npy"), ITERATIONS + 2, sizeof *f->score);
    f->proba = read_tail(expected_path(f, "proba.npy"), (size_t)(f->proba_rows * k), sizeof *f->proba);
    return 1;
}

static fgmm_model *fit(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_model *start, int iterations,
                       fgmm_precision precision) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *model = NULL;
    options.init_model = start;
    options.max_iter = iterations;
    options.tol = -1;
    options.reg_covar = 1e-6;
    options.compute.precision = precision;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    ck_assert_int_eq(fgmm_model_iterations(model), iterations);
    return model;
}

/* Deviation of each column: the one-component model says it. */
static fgmm_model *column_deviations(const fgmm_rows *rows) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *model = NULL;
    options.n_components = 1;
    options.covariance_type = FGMM_DIAG;
    options.max_iter = 1;
    CHECK_OK(harness_context(), fgmm_fit(harness_context(), &model, rows, &options, NULL));
    return model;
}

/* The columns of wine and breast cancer differ by 1e4 in scale: e of a column's deviation, or e where it has none. */
static void check_parameters(const fixture *f, const fgmm_model *model, double e) {
    int64_t k = fgmm_model_components(f->end), d = fgmm_model_features(f->end);
    fgmm_model *column = column_deviations(f->rows);
    fgmm_covariance end_type = fgmm_model_covariance_type(f->end);
    for (int64_t i = 0; i < k; i++) {
        double weight = fgmm_model_weights(model)[i], expected_weight = fgmm_model_weights(f->end)[i];
        EXPECT(fabs(weight - expected_weight) <= e, "%s: weight[%d] is %.9g, scikit-learn's %.9g", f->name, (int)i,
               weight, expected_weight);
        for (int64_t j = 0; j < d; j++) {
            double deviation = sqrt(fgmm_model_covariances(column)[j]), unit = deviation > 0.01 ? deviation : 1;
            double mean = fgmm_model_means(model)[i * d + j], expected = fgmm_model_means(f->end)[i * d + j];
            EXPECT(fabs(mean - expected) <= e * unit, "%s: mean[%d][%d] is %.12g, scikit-learn's %.12g", f->name,
                   (int)i, (int)j, mean, expected);
            double variance = covariance_variance(f->type, fgmm_model_covariances(model), d, i, j);
            expected = covariance_variance(end_type, fgmm_model_covariances(f->end), d, i, j);
            EXPECT(fabs(variance - expected) <= e * fmax(unit * unit, expected),
                   "%s: variance[%d][%d] is %.12g, scikit-learn's %.12g", f->name, (int)i, (int)j, variance, expected);
        }
    }
    fgmm_model_free(harness_context(), column);
}

static void check_scores(const fixture *f, const fgmm_model *model, fgmm_precision precision, double e) {
    fgmm_context *ctx = harness_context();
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_score_result score;
    options.precision = precision;
    CHECK_OK(ctx, fgmm_score(ctx, model, f->rows, &options, &score, NULL));
    EXPECT(fabs(score.aic - f->score[ITERATIONS]) <= e * fabs(score.aic), "%s: AIC %.15g, scikit-learn's %.15g",
           f->name, score.aic, f->score[ITERATIONS]);
    EXPECT(fabs(score.bic - f->score[ITERATIONS + 1]) <= e * fabs(score.bic), "%s: BIC %.15g, scikit-learn's %.15g",
           f->name, score.bic, f->score[ITERATIONS + 1]);
}

static void check_fit(const fixture *f, fgmm_precision precision) {
    static const int stops[] = {3, ITERATIONS};
    fgmm_context *ctx = harness_context();
    int exact = precision == FGMM_EXACT;
    for (int i = harness_is_cpu() ? 0 : 1; i < 2; i++) { /* a slow device: the last alone */
        fgmm_model *model = fit(ctx, f->rows, f->start, stops[i], precision);
        double got = fgmm_model_lower_bound(model), want = f->score[stops[i] - 1];
        ck_assert_msg(fabs(got - want) <= (exact ? 1e-6 : 1e-11) * fabs(want),
                      "%s, %s: mean log-likelihood %.15g in iteration %d, scikit-learn's %.15g: relatively %.3g off",
                      f->name, fgmm_covariance_name(f->type), got, stops[i], want, fabs(got / want - 1));
        if (stops[i] == ITERATIONS) {
            ck_assert(fgmm_model_lower_bound(f->end) == want);
            check_parameters(f, model, exact ? 1e-4 : 1e-8);
            check_scores(f, model, precision, exact ? 1e-6 : 1e-11);
        }
        fgmm_model_free(ctx, model);
    }
}

START_TEST(thirty_iterations) {
    fixture f;
    if (!fixture_make(&f, _i)) return;
    check_fit(&f, FGMM_EXACT);
    if (harness_is_cpu()) check_fit(&f, FGMM_DOUBLE);
    fixture_free(&f);
}
END_TEST

/* scikit-learn's end, which a fit in double on the CPU is to 1e-8; made anew in the context under test. */
static fgmm_model *end_model(const fixture *f) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_context *cpu = NULL, *ctx = harness_context();
    fgmm_model *start = NULL, *end = NULL, *model = NULL;
    fgmm_rows *rows = NULL;
    options.device = "cpu";
    ck_assert_int_eq(fgmm_context_create(&cpu, &options), FGMM_OK);
    CHECK_OK(cpu, fgmm_rows_open(cpu, &rows, harness_path(f->data), NULL));
    CHECK_OK(cpu, fgmm_model_load(cpu, &start, expected_path(f, "start.npz")));
    end = fit(cpu, rows, start, ITERATIONS, FGMM_DOUBLE);
    CHECK_OK(ctx, fgmm_model_create(ctx, &model, f->type, fgmm_model_components(end), fgmm_model_features(end),
                                    fgmm_model_weights(end), fgmm_model_means(end), fgmm_model_covariances(end)));
    fgmm_model_free(cpu, start);
    fgmm_model_free(cpu, end);
    fgmm_rows_free(cpu, rows);
    fgmm_context_free(cpu);
    return model;
}

START_TEST(responsibilities) {
    fixture f;
    if (!fixture_make(&f, _i)) return;
    fgmm_context *ctx = harness_context();
    fgmm_model *model = end_model(&f);
    size_t n = (size_t)fgmm_rows_count(f.rows), k = (size_t)fgmm_model_components(model);
    float *proba = test_alloc(n * k, sizeof *proba);
    CHECK_OK(ctx, fgmm_predict_proba(ctx, model, f.rows, NULL, proba, NULL, NULL));
    for (size_t i = 0; i < (size_t)f.proba_rows; i++) {
        const float *got = proba + i * (size_t)f.step * k, *want = f.proba + i * k;
        for (size_t j = 0; j < k; j++)
            EXPECT(fabs((double)got[j] - want[j]) <= 1e-5, "%s, %s: r[%d][%d] is %.9g, scikit-learn's %.9g", f.name,
                   fgmm_covariance_name(f.type), (int)i * (int)f.step, (int)j, got[j], want[j]);
    }
    check_scores(&f, model, FGMM_EXACT, 1e-6);
    free(proba);
    fgmm_model_free(ctx, model);
    fixture_free(&f);
}
END_TEST

static TCase *sklearn(void) {
    TCase *room = tcase_create("scikit-learn");
    tcase_add_loop_test(room, thirty_iterations, 0, SETS * COVARIANCE_TYPES);
    tcase_add_loop_test(room, responsibilities, 0, SETS * COVARIANCE_TYPES);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {sklearn};
    return harness_main("scikit-learn", rooms, 1);
}
