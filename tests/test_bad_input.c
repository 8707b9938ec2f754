/* What bad input gets: the status the header promises, a message that names what is wrong, and no output. */
#include "data_sets.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHECK_SAYS(ctx, words)                                                                                         \
    ck_assert_msg(strstr(fgmm_context_message(ctx), words) != NULL, "the message \"%s\" does not say \"%s\"",          \
                  fgmm_context_message(ctx), words)

static fgmm_context *ctx;
static problem *p;
static fgmm_rows *rows;
static fgmm_model *model;

static void setup(void) {
    ctx = harness_context();
    p = problem_clusters(40, 1500, 4, 3, FGMM_SPHERICAL, FGMM_F32);
    rows = problem_rows(ctx, p);
    model = problem_model(ctx, p);
}

static void teardown(void) {
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}

START_TEST(contexts) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    char error[300];
    fgmm_context *none;
    static const struct {
        const char *device;
        fgmm_status status;
    } wrong[] = {
        {"tpu", FGMM_ERR_INVALID}, {"opencl:no such device", FGMM_ERR_DEVICE}, {"opencl:97.0", FGMM_ERR_DEVICE}};
    options.error = error;
    options.error_size = sizeof error;
    for (int i = 0; i < 3; i++) {
        error[0] = 0;
        none = (fgmm_context *)&options;
        options.device = wrong[i].device;
        fgmm_status status = fgmm_context_create(&none, &options);
        /* A build or a machine without OpenCL has other words for it. */
        ck_assert_msg(status == wrong[i].status || (i > 0 && status == FGMM_ERR_UNSUPPORTED), "\"%s\": %s",
                      wrong[i].device, fgmm_status_name(status));
        ck_assert_ptr_null(none);
        ck_assert_msg(error[0] != 0, "\"%s\": no message", wrong[i].device);
    }
    options.device = "cpu";
    options.cpu_isa = "mmx";
    ck_assert_int_ne(fgmm_context_create(&none, &options), FGMM_OK);
    ck_assert_msg(strstr(error, "mmx") != NULL, "the message \"%s\" does not name the instruction set", error);
    options.cpu_isa = NULL;
    options.threads = -1;
    ck_assert_int_eq(fgmm_context_create(&none, &options), FGMM_ERR_INVALID);
    fgmm_context_free(NULL);
}
END_TEST

static int fails(void *user, int64_t first, int64_t n, void *dst) {
    (void)n;
    memset(dst, 0, sizeof(float));
    return first >= *(int64_t *)user;
}

START_TEST(row_sources) {
    static const float data[4] = {1, 2, 3, 4};
    fgmm_rows *none = NULL;
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    int64_t from = 0;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, FGMM_F32, 0, 2, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, FGMM_F32, 2, 0, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, FGMM_F32, -2, 2, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, FGMM_F32, 2, 2, 1));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                fgmm_rows_from_memory(ctx, &none, data, FGMM_F32, INT64_MAX / 2, INT64_MAX / 2, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, FGMM_F32, 2, 2, INT64_MAX));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, NULL, FGMM_F32, 2, 2, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, FGMM_I32, 2, 2, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_memory(ctx, &none, data, (fgmm_dtype)99, 2, 2, 0));
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_rows_open(ctx, &none, "/no/such/file.npy", NULL));
    CHECK_SAYS(ctx, "/no/such/file.npy");
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_slice(ctx, &none, rows, 1400, 101));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_slice(ctx, &none, rows, -1, 10));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_slice(ctx, &none, rows, 10, 0));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_slice(ctx, &none, rows, INT64_MAX, 2));
    callback.n = callback.d = 5;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_callback(ctx, &none, &callback));
    callback.read = fails;
    callback.user = &from;
    callback.n = -5;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_callback(ctx, &none, &callback));
    ck_assert_ptr_null(none);
    ck_assert_int_eq(fgmm_rows_count(rows), 1500);
    ck_assert_int_eq(fgmm_rows_features(rows), 3);
    ck_assert_int_eq(fgmm_rows_type(rows), FGMM_F32);
    fgmm_rows_free(ctx, NULL);
}
END_TEST

START_TEST(row_weights) {
    double *w = test_alloc(1500, sizeof *w);
    fgmm_model *none = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_rows_set_weights(ctx, rows, w, 1500)); /* all zero */
    w[3] = 1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_set_weights(ctx, rows, w, 1499));
    CHECK_OK(ctx, fgmm_rows_set_weights(ctx, rows, w, 1500));
    CHECK_OK(ctx, fgmm_rows_set_weights(ctx, rows, NULL, 1500));
    w[1234] = -1e-9;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_rows_set_weights(ctx, rows, w, 1500));
    CHECK_SAYS(ctx, "1234");
    w[1234] = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_rows_set_weights(ctx, rows, w, 1500));
    w[1234] = INFINITY;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_rows_set_weights(ctx, rows, w, 1500));
    /* A slice may be left with weights that are all zero. */
    w[1234] = 0;
    fgmm_rows *slice = NULL;
    CHECK_OK(ctx, fgmm_rows_set_weights(ctx, rows, w, 1500));
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &slice, rows, 100, 200));
    options.n_components = 2;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_fit(ctx, &none, slice, &options, NULL));
    ck_assert_ptr_null(none);
    fgmm_rows_free(ctx, slice);
    free(w);
}
END_TEST

START_TEST(models) {
    fgmm_model *none = NULL;
    double weights[2] = {0.5, 0.5}, means[4] = {0, 1, 2, 3}, cov[4] = {1, 1, 1, 1};
    const fgmm_covariance s = FGMM_SPHERICAL, diag = FGMM_DIAG;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 0, 2, weights, means, cov));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, 0, weights, means, cov));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, -1, weights, means, cov));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, INT64_MAX, INT64_MAX, weights, means, cov));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, 2, weights, NULL, cov));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, (fgmm_covariance)9, 2, 2, weights, means, cov));
    static const double bad[] = {0, -1, NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        cov[1] = bad[i];
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, 2, weights, means, cov));
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, diag, 2, 2, weights, means, cov));
        cov[1] = 1;
        if (i == 0) continue;
        weights[1] = bad[i];
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, 2, weights, means, cov));
        weights[1] = 0.5;
        if (i == 1) continue;
        means[3] = bad[i];
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, 2, weights, means, cov));
        means[3] = 3;
    }
    weights[0] = weights[1] = 0;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, s, 2, 2, weights, means, cov));
    ck_assert_ptr_null(none);
    weights[0] = 3, weights[1] = 1;
    CHECK_OK(ctx, fgmm_model_create(ctx, &none, s, 2, 2, weights, means, cov));
    ck_assert(fgmm_model_weights(none)[0] == 0.75);
    ck_assert(isnan(fgmm_model_lower_bound(none)));
    fgmm_model_free(ctx, none);
    CHECK_OK(ctx, fgmm_model_create(ctx, &none, diag, 2, 2, NULL, means, cov));
    ck_assert(fgmm_model_weights(none)[0] == 0.5);
    fgmm_model_free(ctx, none);
    fgmm_model_free(ctx, NULL);
}
END_TEST

/* Covariance matrices: finite, symmetric, positive definite; the message names the one at fault. */
START_TEST(matrices) {
    static const double bad[][4] = {{1, 0.5, 0.25, 1}, {1, 2, 2, 1}, {0, 0, 0, 1},        {1, 0, 0, -1},
                                    {1, NAN, NAN, 1},  {1, 1, 1, 1}, {INFINITY, 0, 0, 1}, {-1, 0, 0, -1}};
    const double means[4] = {0, 1, 2, 3};
    double cov[8] = {2, 0.5, 0.5, 1, 2, 0.5, 0.5, 1};
    fgmm_model *none = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(cov + 4, bad[i], sizeof bad[i]);
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, FGMM_FULL, 2, 2, NULL, means, cov));
        CHECK_SAYS(ctx, "covariances[1");
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_model_create(ctx, &none, FGMM_TIED, 2, 2, NULL, means, bad[i]));
        CHECK_SAYS(ctx, "covariances");
        ck_assert_ptr_null(none);
    }
    /* More than can be addressed is refused before it is asked for. */
    CHECK_FAILS(ctx, FGMM_ERR_MEMORY, fgmm_model_create(ctx, &none, FGMM_FULL, 1 << 20, 1 << 20, NULL, means, cov));
    for (int type = FGMM_TIED; type <= FGMM_FULL; type++) {
        memcpy(cov + 4, cov, 4 * sizeof *cov);
        CHECK_OK(ctx, fgmm_model_create(ctx, &none, (fgmm_covariance)type, 2, 2, NULL, means, cov));
        ck_assert_int_eq(fgmm_model_covariances_size(none), type == FGMM_TIED ? 4 : 8);
        ck_assert_mem_eq(fgmm_model_covariances(none), cov, (type == FGMM_TIED ? 4 : 8) * sizeof *cov);
        fgmm_model_free(ctx, none);
    }
}
END_TEST

#define FIT_FAILS(expected, ...)                                                                                       \
    do {                                                                                                               \
        fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;                                                              \
        fgmm_model *none = NULL;                                                                                       \
        options.n_components = 3;                                                                                      \
        __VA_ARGS__;                                                                                                   \
        CHECK_FAILS(ctx, expected, fgmm_fit(ctx, &none, rows, &options, NULL));                                        \
        ck_assert_ptr_null(none);                                                                                      \
    } while (0)

START_TEST(fit_options) {
    FIT_FAILS(FGMM_ERR_INVALID, options.n_components = 1501);
    CHECK_SAYS(ctx, "1501");
    CHECK_SAYS(ctx, "1500");
    FIT_FAILS(FGMM_ERR_INVALID, options.n_components = 0);
    FIT_FAILS(FGMM_ERR_INVALID, options.n_components = -4);
    FIT_FAILS(FGMM_ERR_INVALID, options.covariance_type = (fgmm_covariance)17);
    FIT_FAILS(FGMM_ERR_INVALID, options.init = (fgmm_init)17);
    FIT_FAILS(FGMM_ERR_INVALID, options.max_iter = -1);
    FIT_FAILS(FGMM_ERR_INVALID, options.n_init = -1);
    FIT_FAILS(FGMM_ERR_INVALID, options.init_sample = -1);
    FIT_FAILS(FGMM_ERR_INVALID, options.tol = NAN);
    FIT_FAILS(FGMM_ERR_INVALID, options.reg_covar = NAN);
    FIT_FAILS(FGMM_ERR_INVALID, options.reg_covar = INFINITY);
    FIT_FAILS(FGMM_ERR_INVALID, options.freeze = 64);
    FIT_FAILS(FGMM_ERR_INVALID, options.on_dead = (fgmm_policy)17);
    FIT_FAILS(FGMM_ERR_INVALID, options.on_collapse = FGMM_RESEED);
    FIT_FAILS(FGMM_ERR_INVALID, options.compute.engine = (fgmm_engine)17);
    FIT_FAILS(FGMM_ERR_INVALID, options.compute.precision = (fgmm_precision)17);
    FIT_FAILS(FGMM_ERR_INVALID, options.compute.nonfinite = (fgmm_nonfinite)17);
    FIT_FAILS(FGMM_ERR_INVALID, options.compute.block_rows = -1);
    FIT_FAILS(FGMM_ERR_INVALID, options.struct_size = 3);
    if (!harness_is_cpu()) FIT_FAILS(FGMM_ERR_UNSUPPORTED, options.compute.precision = FGMM_DOUBLE);
}
END_TEST

/* Rows of another number of features than the model, in every call that takes both. */
START_TEST(shapes) {
    static const float two[8] = {0};
    fgmm_rows *flat = NULL;
    fgmm_stats *stats = NULL, *other_stats = NULL;
    fgmm_model *none = NULL, *other = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_score_result score;
    double log_prob[4], x[8], means[3] = {0}, one = 1;
    int32_t ids[512];
    float resp[512];
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &flat, two, FGMM_F32, 4, 2, 0));
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_stats_accumulate(ctx, stats, flat, NULL, NULL));
    CHECK_SAYS(ctx, "2");
    CHECK_SAYS(ctx, "3");
    options.init_model = model;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_fit(ctx, &none, flat, &options, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_score_samples(ctx, model, flat, NULL, log_prob, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_score(ctx, model, flat, NULL, &score, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_predict(ctx, model, flat, NULL, ids, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_assign(ctx, model, flat, 2, NULL, ids, resp, NULL, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_assign(ctx, model, rows, 0, NULL, ids, resp, NULL, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_assign(ctx, model, rows, 65, NULL, ids, resp, NULL, NULL));
    fgmm_assign_options bad_share = FGMM_ASSIGN_OPTIONS_INIT;
    bad_share.min_resp = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_assign(ctx, model, rows, 2, &bad_share, ids, resp, NULL, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_sample(ctx, model, -1, 0, x, NULL));

    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_stats_finalize(ctx, stats, NULL, &none)); /* no rows yet */
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_stats_scale(ctx, stats, -1));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_stats_scale(ctx, stats, NAN));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_stats_scale(ctx, stats, INFINITY));
    CHECK_OK(ctx, fgmm_model_create(ctx, &other, FGMM_SPHERICAL, 1, 3, NULL, means, &one));
    CHECK_OK(ctx, fgmm_stats_create(ctx, &other_stats, other));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_stats_merge(ctx, stats, other_stats));
    ck_assert_ptr_null(none);
    fgmm_stats_free(ctx, stats);
    fgmm_stats_free(ctx, other_stats);
    fgmm_stats_free(ctx, NULL);
    fgmm_model_free(ctx, other);
    fgmm_rows_free(ctx, flat);
}
END_TEST

/* NaN or Inf: row and column named, in each call; the statistics stay as they were. */
START_TEST(nonfinite_is_an_error) {
    float *x = p->rows;
    fgmm_stats *stats = NULL;
    fgmm_stats_view before, after;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *none = NULL;
    double log_prob[1500];
    int32_t label[1500];
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, rows, NULL, NULL));
    fgmm_stats_export(stats, &before);
    double s0 = before.s0[0], likelihood = before.log_likelihood;
    x[1234 * 3 + 2] = _i ? INFINITY : NAN;
    x[1400 * 3 + 1] = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_stats_accumulate(ctx, stats, rows, NULL, NULL));
    CHECK_SAYS(ctx, "1234");
    CHECK_SAYS(ctx, "2");
    fgmm_stats_export(stats, &after);
    ck_assert(after.s0[0] == s0 && after.log_likelihood == likelihood);
    options.n_components = 2;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_fit(ctx, &none, rows, &options, NULL));
    CHECK_SAYS(ctx, "1234");
    options.n_components = 0;
    options.init_model = model;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_fit(ctx, &none, rows, &options, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_score_samples(ctx, model, rows, NULL, log_prob, NULL));
    CHECK_SAYS(ctx, "1234");
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_predict(ctx, model, rows, NULL, label, NULL));
    CHECK_SAYS(ctx, "1234");
    ck_assert_ptr_null(none);
    fgmm_stats_free(ctx, stats);
}
END_TEST

/* Skipped on request: counted, label -1, score NaN, and the sums are those of the other rows. */
START_TEST(nonfinite_is_skipped) {
    float *x = p->rows;
    fgmm_compute_options skip = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *good = NULL;
    fgmm_stats *all = NULL, *part = NULL;
    fgmm_stats_view a, b;
    fgmm_model *fitted = NULL;
    double log_prob[1500];
    int32_t label[1500];
    skip.nonfinite = FGMM_NONFINITE_SKIP;
    skip.engine = (fgmm_engine)_i;
    x[0] = NAN;
    x[1100 * 3 + 2] = INFINITY;
    x[1499 * 3 + 1] = -INFINITY;
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, &skip, log_prob, &report));
    ck_assert_int_eq(report.n_skipped, 3);
    CHECK_OK(ctx, fgmm_predict(ctx, model, rows, &skip, label, &report));
    ck_assert_int_eq(report.n_skipped, 3);
    for (int i = 0; i < 1500; i++) {
        int bad = i == 0 || i == 1100 || i == 1499;
        ck_assert_msg((isnan(log_prob[i]) != 0) == bad, "row %d scores %g", i, log_prob[i]);
        ck_assert_msg((label[i] == -1) == bad, "row %d has label %d", i, label[i]);
    }
    CHECK_OK(ctx, fgmm_stats_create(ctx, &all, model));
    CHECK_OK(ctx, fgmm_stats_create(ctx, &part, model));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, all, rows, &skip, &report));
    ck_assert_int_eq(report.n_skipped, 3);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ctx, fgmm_rows_slice(ctx, &good, rows, i ? 1101 : 1, i ? 398 : 1099));
        CHECK_OK(ctx, fgmm_stats_accumulate(ctx, part, good, NULL, NULL));
        fgmm_rows_free(ctx, good);
        good = NULL;
    }
    fgmm_stats_export(all, &a);
    fgmm_stats_export(part, &b);
    ck_assert(a.weight == b.weight && a.rows == b.rows);
    ck_assert(fabs(a.log_likelihood - b.log_likelihood) <= 2e-5 * fabs(b.log_likelihood));
    for (int k = 0; k < 4; k++) ck_assert(fabs(a.s0[k] - b.s0[k]) <= 2e-5 * (b.s0[k] + 1e-2));
    options.n_components = 3;
    options.compute = skip;
    CHECK_OK(ctx, fgmm_fit(ctx, &fitted, rows, &options, &report));
    ck_assert_int_eq(report.n_skipped, 3);
    ck_assert(isfinite(fgmm_model_lower_bound(fitted)));
    fgmm_model_free(ctx, fitted);
    fgmm_stats_free(ctx, all);
    fgmm_stats_free(ctx, part);
}
END_TEST

typedef struct source {
    const float *x;
    int64_t d, fail_from, next;
    int out_of_order;
} source;

static int read_source(void *user, int64_t first, int64_t n, void *dst) {
    source *s = user;
    if (first != s->next) s->out_of_order = 1;
    s->next = first + n;
    memcpy(dst, s->x + first * s->d, (size_t)(n * s->d) * sizeof(float));
    return s->fail_from >= 0 && first + n > s->fail_from;
}

/* A callback is rows like any other; when it fails, so does the call; one that reads only once cannot be fitted. */
START_TEST(callbacks) {
    source s = {p->rows, 3, -1, 0, 0};
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_compute_options blocks = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_rows *read = NULL;
    fgmm_model *none = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    double *from_memory = test_alloc(1500, sizeof(double)), *from_callback = test_alloc(1500, sizeof(double));
    callback.read = read_source;
    callback.user = &s;
    callback.n = 1500;
    callback.d = 3;
    callback.once = _i;
    blocks.block_rows = 1024;
    options.n_components = 3;
    options.compute = blocks;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &read, &callback));
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, &blocks, from_memory, NULL));
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, read, &blocks, from_callback, NULL));
    ck_assert_int_eq(memcmp(from_memory, from_callback, 1500 * sizeof(double)), 0);
    if (_i) {
        ck_assert_int_eq(s.out_of_order, 0);
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_fit(ctx, &none, read, &options, NULL));
    } else {
        CHECK_OK(ctx, fgmm_fit(ctx, &none, read, &options, NULL));
        fgmm_model_free(ctx, none);
        none = NULL;
        s.fail_from = 1200;
        CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_fit(ctx, &none, read, &options, NULL));
        CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_score_samples(ctx, model, read, &blocks, from_callback, NULL));
        s.fail_from = -1;
        CHECK_OK(ctx, fgmm_score_samples(ctx, model, read, &blocks, from_callback, NULL));
    }
    ck_assert_ptr_null(none);
    fgmm_rows_free(ctx, read);
    free(from_memory);
    free(from_callback);
}
END_TEST

START_TEST(files) {
    fgmm_model *none = NULL;
    fgmm_stats *stats = NULL;
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_model_load(ctx, &none, "/no/such/model.npz"));
    CHECK_SAYS(ctx, "/no/such/model.npz");
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_model_save(ctx, model, "/no/such/folder/model.npz"));
    CHECK_SAYS(ctx, "/no/such/folder");
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_stats_load(ctx, &stats, "/no/such/stats.npz"));
    ck_assert_ptr_null(none);
    ck_assert_ptr_null(stats);
}
END_TEST

static TCase *bad_input(void) {
    TCase *room = tcase_create("bad input");
    tcase_add_checked_fixture(room, setup, teardown);
    tcase_add_test(room, contexts);
    tcase_add_test(room, row_sources);
    tcase_add_test(room, row_weights);
    tcase_add_test(room, models);
    tcase_add_test(room, matrices);
    tcase_add_test(room, fit_options);
    tcase_add_test(room, shapes);
    tcase_add_loop_test(room, nonfinite_is_an_error, 0, 2);
    tcase_add_loop_test(room, nonfinite_is_skipped, 0, 3);
    tcase_add_loop_test(room, callbacks, 0, 2);
    tcase_add_test(room, files);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {bad_input};
    return harness_main("bad input", rooms, 1);
}
