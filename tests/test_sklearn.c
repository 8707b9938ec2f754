/*
 * Twenty iterations against scikit-learn from the same start: real data, spherical and diagonal. expected/ was made
 * by make_expected.py, and expected/made_by.json names the versions.
 */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *name, *rows;
} sets[] = {
    {"iris", "data/iris.npy"},
    {"wine", "data/wine.npy"},
    {"digits", "../data/digits/X.npy"},
    {"breast-cancer", "data/breast-cancer.npy"},
};

static fgmm_model *expected_model(const char *set, int diag, const char *which) {
    fgmm_model *model = NULL;
    char path[128];
    snprintf(path, sizeof path, "expected/%s-%s-%s.npz", set, diag ? "diag" : "spherical", which);
    CHECK_OK(harness_context(), fgmm_model_load(harness_context(), &model, harness_path(path)));
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

START_TEST(twenty_iterations) {
    fgmm_context *ctx = harness_context();
    const char *name = sets[_i / 2].name;
    int diag = _i % 2;
    fgmm_rows *rows = NULL;
    fgmm_model *start = expected_model(name, diag, "start"), *end = expected_model(name, diag, "end"), *model = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, harness_path(sets[_i / 2].rows), NULL));
    int64_t k = fgmm_model_components(end), d = fgmm_model_features(end);
    if ((double)fgmm_rows_count(rows) * (double)(k * d) > 10.0 * (double)harness_scale()) {
        printf("%s is too large for FLASHGMM_TEST_SCALE\n", name);
        goto done;
    }
    options.init_model = start;
    options.covariance_type = diag ? FGMM_DIAG : FGMM_SPHERICAL;
    options.max_iter = 20;
    options.tol = -1;
    options.reg_covar = 1e-6;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    double got = fgmm_model_lower_bound(model), want = fgmm_model_lower_bound(end);
    ck_assert_msg(fabs(got - want) <= 1e-6 * fabs(want), "%s: mean log-likelihood %.12g, scikit-learn's %.12g", name,
                  got, want);
    /* The columns of wine and breast cancer differ by 1e4 in scale: 1e-4 of a column's deviation, or 1e-4 where it has none. */
    fgmm_model *column = column_deviations(rows);
    for (int64_t i = 0; i < k * d; i++) {
        double off = fabs(fgmm_model_means(model)[i] - fgmm_model_means(end)[i]);
        double deviation = sqrt(fgmm_model_covariances(column)[i % d]);
        ck_assert_msg(off <= 1e-4 * (deviation > 0.01 ? deviation : 1), "%s: mean[%d][%d] is %.9g, scikit-learn's %.9g",
                      name, (int)(i / d), (int)(i % d), fgmm_model_means(model)[i], fgmm_model_means(end)[i]);
    }
    fgmm_model_free(ctx, column);
done:
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, end);
    fgmm_rows_free(ctx, rows);
}
END_TEST

static TCase *sklearn(void) {
    TCase *room = tcase_create("scikit-learn");
    tcase_add_loop_test(room, twenty_iterations, 0, 8);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {sklearn};
    return harness_main("scikit-learn", rooms, 1);
}
