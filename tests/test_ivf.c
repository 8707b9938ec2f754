/* Coarse quantizers, and the rules that give rows their lists, each recomputed in double from the equation. */
#include "ivf_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_U8, FGMM_I8, FGMM_F64, FGMM_BF16};
enum { TYPES = sizeof types / sizeof *types, RULES = FGMM_IVF_RAIR + 1, METRICS = 3 };

/* ---- train ---- */

static double inertia(const ivf_data *data, const fgmm_model *model, fgmm_metric metric) {
    int64_t k = fgmm_model_components(model);
    double *distance = test_alloc((size_t)k, sizeof *distance), sum = 0;
    for (int64_t i = 0; i < data->n; i++) {
        double least = INFINITY;
        ivf_list_distances(data, i, model, metric, distance);
        for (int64_t j = 0; j < k; j++) least = fmin(least, distance[j]);
        sum += least;
    }
    free(distance);
    return sum;
}

/* Every method serves: far nearer to the rows than random centroids, finite, and of the shape asked for. */
START_TEST(quantizers) {
    fgmm_context *ctx = harness_context();
    fgmm_metric metric = (fgmm_metric)(_i % METRICS);
    rng r = rng_make(100 + (uint64_t)_i);
    ivf_data *data = ivf_data_make(&r, 600, 9, types[_i % 4]);
    fgmm_rows *rows = ivf_data_rows(ctx, data);
    fgmm_model *model = NULL, *again = NULL, *random = ivf_model(ctx, &r, data, 12, metric);
    fgmm_ivf_train_options options = FGMM_IVF_TRAIN_OPTIONS_INIT;
    fgmm_report report = FGMM_REPORT_INIT;
    options.n_lists = 12;
    options.metric = metric;
    options.method = (fgmm_ivf_method)(_i / METRICS);
    options.em_iter = 3;
    options.kmeans_iter = 6;
    options.seed = (uint64_t)_i;
    CHECK_OK(ctx, fgmm_ivf_train(ctx, &model, rows, &options, &report));
    ck_assert_int_eq(fgmm_model_components(model), 12);
    ck_assert_int_eq(fgmm_model_covariance_type(model), options.method == FGMM_IVF_DIAG ? FGMM_DIAG : FGMM_SPHERICAL);
    ck_assert_int_eq(report.n_iter, fgmm_model_iterations(model));
    double mine = inertia(data, model, metric), theirs = inertia(data, random, metric);
    ck_assert_msg(mine < theirs, "%s: inertia %g, of rows as centroids %g", fgmm_ivf_method_name(options.method), mine,
                  theirs);
    for (int64_t k = 0; k < 12; k++) {
        double square = 0;
        for (int64_t j = 0; j < 9; j++) square += pow(fgmm_model_means(model)[k * 9 + j], 2);
        if (metric == FGMM_ANGULAR) ck_assert_msg(fabs(square - 1) < 1e-12, "a mean of length %g", sqrt(square));
        if (options.method == FGMM_IVF_TIED_SPHERICAL || options.method == FGMM_IVF_KMEANS)
            ck_assert(fgmm_model_covariances(model)[k] == fgmm_model_covariances(model)[0]);
    }
    CHECK_OK(ctx, fgmm_ivf_train(ctx, &again, rows, &options, NULL));
    ck_assert_mem_eq(fgmm_model_means(model), fgmm_model_means(again), 12 * 9 * sizeof(double));
    fgmm_model_free(ctx, again);
    fgmm_model_free(ctx, random);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

/* Either start serves, a trial takes one of them, and another number of threads takes the same. */
START_TEST(starts) {
    enum { N = 8500, K = 20, D = 5 };
    fgmm_context *ctx = harness_context(), *other = NULL;
    fgmm_metric metric = (fgmm_metric)_i;
    rng r = rng_make(150 + (uint64_t)_i);
    ivf_data *data = ivf_data_make(&r, N, D, FGMM_F32);
    fgmm_rows *rows = ivf_data_rows(ctx, data), *theirs = NULL;
    fgmm_model *models[4] = {NULL};
    fgmm_ivf_train_options options = FGMM_IVF_TRAIN_OPTIONS_INIT;
    fgmm_context_options three = FGMM_CONTEXT_OPTIONS_INIT;
    size_t bytes = K * D * sizeof(double);
    options.n_lists = K;
    options.metric = metric;
    options.kmeans_iter = 3;
    for (int init = FGMM_IVF_INIT_TRIAL; init <= FGMM_IVF_INIT_RANDOM; init++) {
        options.init = (fgmm_ivf_init)init;
        CHECK_OK(ctx, fgmm_ivf_train(ctx, &models[init], rows, &options, NULL));
    }
    const double *tried = fgmm_model_means(models[FGMM_IVF_INIT_TRIAL]);
    int first = memcmp(tried, fgmm_model_means(models[FGMM_IVF_INIT_KMEANSPP]), bytes) == 0;
    int second = memcmp(tried, fgmm_model_means(models[FGMM_IVF_INIT_RANDOM]), bytes) == 0;
    ck_assert_int_eq(first + second, 1);
    three.threads = 3;
    options.init = FGMM_IVF_INIT_TRIAL;
    CHECK_OK(ctx, harness_open(&other, &three));
    theirs = ivf_data_rows(other, data);
    CHECK_OK(other, fgmm_ivf_train(other, &models[3], theirs, &options, NULL));
    ck_assert_mem_eq(tried, fgmm_model_means(models[3]), bytes);
    fgmm_rows_free(other, theirs);
    fgmm_model_free(other, models[3]);
    fgmm_context_free(other);
    for (int i = 0; i < 3; i++) fgmm_model_free(ctx, models[i]);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

/* One variance for all is the weighted mean of the M-step's, which maximises the likelihood: no other does better. */
START_TEST(one_variance_is_the_best) {
    fgmm_context *ctx = harness_context();
    rng r = rng_make(140);
    ivf_data *data = ivf_data_make(&r, 500, 4, FGMM_F32);
    fgmm_rows *rows = ivf_data_rows(ctx, data);
    fgmm_model *model = NULL;
    fgmm_ivf_train_options options = FGMM_IVF_TRAIN_OPTIONS_INIT;
    options.n_lists = 5;
    options.method = FGMM_IVF_TIED_SPHERICAL;
    options.em_iter = 200;
    CHECK_OK(ctx, fgmm_ivf_train(ctx, &model, rows, &options, NULL));
    double scores[3];
    for (int i = 0; i < 3; i++) {
        double variances[5];
        fgmm_model *other = NULL;
        fgmm_score_result result;
        for (int k = 0; k < 5; k++) variances[k] = fgmm_model_covariances(model)[k] * (0.9 + 0.1 * i);
        CHECK_OK(ctx, fgmm_model_create(ctx, &other, FGMM_SPHERICAL, 5, 4, fgmm_model_weights(model),
                                        fgmm_model_means(model), variances));
        CHECK_OK(ctx, fgmm_score(ctx, other, rows, NULL, &result, NULL));
        scores[i] = result.log_likelihood;
        fgmm_model_free(ctx, other);
    }
    ck_assert_msg(scores[1] > scores[0] && scores[1] > scores[2], "%.9g between %.9g and %.9g", scores[1], scores[0],
                  scores[2]);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

/* ---- assign ---- */

/* A rule's loss of list j for a row with these distances, from the definition: residuals and their products. */
static double loss(fgmm_ivf_rule rule, double lambda, const ivf_data *data, int64_t row, const fgmm_model *model,
                   fgmm_metric metric, int64_t first, int64_t other) {
    int64_t d = data->d;
    const double *x = data->values + row * d, *m = fgmm_model_means(model);
    double square = 0, dot = 0, one = 0, two = 0;
    for (int64_t j = 0; j < d; j++) square += x[j] * x[j];
    double scale = metric == FGMM_ANGULAR ? 1 / sqrt(square) : 1;
    for (int64_t j = 0; j < d; j++) {
        double a = x[j] * scale - m[first * d + j], b = x[j] * scale - m[other * d + j];
        dot += a * b;
        one += a * a;
        two += b * b;
    }
    if (rule == FGMM_IVF_SOAR) return two + (one > 0 ? lambda * dot * dot / one : 0);
    if (rule == FGMM_IVF_RAIR) return two + lambda * dot;
    return two;
}

/* The lists of each row, by rank: [n, 8], -1 behind the last. Complete: every row is in a list, none twice. */
static int32_t *by_row(const fgmm_ivf_lists *lists) {
    int32_t *out = test_alloc((size_t)lists->n_rows * 8, sizeof *out);
    memset(out, -1, (size_t)lists->n_rows * 8 * sizeof *out);
    ck_assert_int_eq(lists->offsets[0], 0);
    ck_assert_int_eq(lists->offsets[lists->n_lists], lists->n_entries);
    for (int64_t k = 0; k < lists->n_lists; k++)
        for (int64_t i = lists->offsets[k]; i < lists->offsets[k + 1]; i++) {
            int64_t row = lists->rows[i];
            EXPECT(row >= 0 && row < lists->n_rows && lists->ranks[i] < 8, "row %d", (int)row);
            EXPECT(out[row * 8 + lists->ranks[i]] == -1, "row %d has two lists of rank %d", (int)row, lists->ranks[i]);
            out[row * 8 + lists->ranks[i]] = (int32_t)k;
            if (i > lists->offsets[k] && (lists->ranks[i] == 0) == (lists->ranks[i - 1] == 0))
                EXPECT(row > lists->rows[i - 1], "rows of a list do not ascend");
        }
    for (int64_t i = 0; i < lists->n_rows; i++) {
        EXPECT(out[i * 8] >= 0, "row %d is in no list", (int)i);
        for (int a = 1; a < 8; a++)
            for (int b = 0; b < a; b++)
                EXPECT(out[i * 8 + a] < 0 || (out[i * 8 + b] >= 0 && out[i * 8 + b] != out[i * 8 + a]),
                       "lists of row %d have a gap or come twice", (int)i);
    }
    return out;
}

/* The lists that a row has are those of least loss, up to the threshold, but for what rounding cannot tell apart. */
static void check_row(const ivf_data *data, const fgmm_model *model, const fgmm_ivf_assign_options *o, double threshold,
                      int64_t row, const int32_t *mine, double *distance) {
    int64_t k = fgmm_model_components(model);
    double lambda = o->lambda > 0 ? o->lambda : o->rule == FGMM_IVF_RAIR ? 0.75 : 1, first = INFINITY;
    ivf_list_distances(data, row, model, o->metric, distance);
    for (int64_t j = 0; j < k; j++) first = fmin(first, distance[j]);
    /* Rows and centroids are f32 here, and their losses products of distances. */
    double slack = 1e-4 * first + 1e-9;
    EXPECT(distance[mine[0]] <= first + slack, "row %d: list %d at %g, the nearest at %g", (int)row, mine[0],
           distance[mine[0]], first);
    int taken = 1;
    while (taken < o->max_lists && mine[taken] >= 0) taken++;
    for (int64_t j = 0; j < k; j++) {
        double value = loss(o->rule, lambda, data, row, model, o->metric, mine[0], j);
        int rank = -1, better = 0;
        slack = 1e-4 * (value + first) + 1e-9;
        for (int i = 0; i < taken; i++)
            if (mine[i] == j) rank = i;
        if (rank == 0) continue;
        for (int64_t other = 0; other < k; other++)
            better +=
                other != mine[0] && loss(o->rule, lambda, data, row, model, o->metric, mine[0], other) < value - slack;
        double over = o->rule == FGMM_IVF_NEAREST ? -INFINITY : value - distance[mine[0]] - threshold;
        if (rank > 0)
            EXPECT(over <= slack && better < rank, "row %d: list %lld of rank %d: %g over, %d better", (int)row,
                   (long long)j, rank, over, better);
        else
            EXPECT(over >= -slack || taken == o->max_lists, "row %d lacks list %lld: %g under the threshold", (int)row,
                   (long long)j, -over);
        if (rank < 0 && taken == o->max_lists && taken > 1) {
            double last = loss(o->rule, lambda, data, row, model, o->metric, mine[0], mine[taken - 1]);
            EXPECT(value >= last - slack, "row %d has a list of loss %g, not that of %g", (int)row, last, value);
        }
    }
}

START_TEST(rules) {
    static const int64_t ks[] = {3, 20, 70}, ds[] = {1, 5, 16, 33};
    fgmm_context *ctx = harness_context();
    fgmm_ivf_rule rule = (fgmm_ivf_rule)(_i % RULES);
    if (rule == FGMM_IVF_RESPONSIBILITY) return;
    rng r = rng_make(200 + (uint64_t)_i);
    int64_t k = ks[_i / RULES % 3], d = ds[_i % 4];
    fgmm_ivf_assign_options o = FGMM_IVF_ASSIGN_OPTIONS_INIT;
    o.metric = (fgmm_metric)(_i / 2 % METRICS);
    o.rule = rule;
    o.max_lists = rule == FGMM_IVF_SINGLE ? 1 : 2 + _i % 3 * (k > 3);
    if (rule != FGMM_IVF_SINGLE && rule != FGMM_IVF_NEAREST) o.budget = 1 + 0.9 * rng_uniform(&r);
    if (_i % 2) o.lambda = 2 * rng_uniform(&r);
    ivf_data *data = ivf_data_make(&r, 300, d, types[_i % TYPES]);
    fgmm_rows *rows = ivf_data_rows(ctx, data);
    fgmm_model *model = ivf_model(ctx, &r, data, k, o.metric);
    fgmm_ivf_lists *lists = NULL;
    CHECK_OK(ctx, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    int32_t *mine = by_row(lists);
    double *distance = test_alloc((size_t)k, sizeof *distance);
    for (int64_t i = 0; i < data->n; i++) check_row(data, model, &o, lists->threshold, i, mine + i * 8, distance);
    /* The sample is all of the rows here: the budget is met but for equal values. */
    if (o.budget > 0 && d > 1 && data->type != FGMM_U8 && data->type != FGMM_I8)
        ck_assert_int_le(llabs(lists->n_entries - llround(o.budget * (double)data->n)), 3);
    free(distance);
    free(mine);
    fgmm_ivf_lists_free(ctx, lists);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

/* A row goes where its responsibility is large, with the paper's 1/K where nothing else is said. */
START_TEST(responsibilities) {
    enum { N = 400, K = 9, D = 3 };
    fgmm_context *ctx = harness_context();
    rng r = rng_make(300);
    ivf_data *data = ivf_data_make(&r, N, D, FGMM_F32);
    fgmm_rows *rows = ivf_data_rows(ctx, data);
    fgmm_model *model = ivf_model(ctx, &r, data, K, FGMM_L2);
    float *resp = test_alloc(N * K, sizeof *resp);
    CHECK_OK(ctx, fgmm_predict_proba(ctx, model, rows, NULL, resp, NULL, NULL));
    for (int budget = 0; budget < 2; budget++) {
        fgmm_ivf_assign_options o = FGMM_IVF_ASSIGN_OPTIONS_INIT;
        fgmm_ivf_lists *lists = NULL;
        o.rule = FGMM_IVF_RESPONSIBILITY;
        o.max_lists = 3;
        o.budget = budget ? 1.3 : 0;
        CHECK_OK(ctx, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
        int32_t *mine = by_row(lists);
        if (budget)
            ck_assert_int_le(llabs(lists->n_entries - llround(1.3 * N)), 2);
        else
            ck_assert(fabs(lists->threshold - 1.0 / K) < 1e-15);
        for (int64_t i = 0; i < N; i++) {
            int above = 0, taken = 0;
            for (int k = 0; k < K; k++) {
                int is_mine = mine[i * 8] == k || mine[i * 8 + 1] == k || mine[i * 8 + 2] == k;
                above += resp[i * K + k] > lists->threshold + 1e-5;
                taken += is_mine;
                EXPECT(!is_mine || mine[i * 8] == k || resp[i * K + k] >= lists->threshold - 1e-5,
                       "row %d is in list %d with r = %g", (int)i, k, resp[i * K + k]);
                EXPECT(resp[i * K + k] <= resp[i * K + mine[i * 8]] + 1e-5, "row %d: not its best list", (int)i);
            }
            EXPECT(taken >= above || taken == 3, "row %d is in %d lists, not %d", (int)i, taken, above);
        }
        free(mine);
        fgmm_ivf_lists_free(ctx, lists);
    }
    free(resp);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

/* Budgets from a sample are met within its error; a full list sends rows on. */
START_TEST(budgets_and_caps) {
    enum { N = 6000, K = 24, D = 6 };
    fgmm_context *ctx = harness_context();
    rng r = rng_make(400);
    ivf_data *data = ivf_data_make(&r, N, D, FGMM_F32);
    fgmm_rows *rows = ivf_data_rows(ctx, data);
    fgmm_model *model = ivf_model(ctx, &r, data, K, FGMM_L2);
    fgmm_ivf_assign_options o = FGMM_IVF_ASSIGN_OPTIONS_INIT;
    fgmm_ivf_lists *lists = NULL;
    o.budget = 1.5;
    o.sample_rows = 1500;
    CHECK_OK(ctx, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    /* Five deviations of a share of one half. */
    double m = (double)lists->n_entries / N;
    ck_assert_msg(fabs(m - 1.5) < 5 * 0.5 / sqrt(1500), "%g lists a row", m);
    fgmm_ivf_lists_free(ctx, lists);
    o.list_max = N / K + 40;
    CHECK_OK(ctx, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    free(by_row(lists));
    for (int k = 0; k < K; k++) ck_assert_int_le(lists->offsets[k + 1] - lists->offsets[k], o.list_max);
    fgmm_ivf_lists_free(ctx, lists);
    o.list_max = N / K - 1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

START_TEST(refused) {
    fgmm_context *ctx = harness_context();
    rng r = rng_make(500);
    ivf_data *data = ivf_data_make(&r, 50, 4, FGMM_F32), *wide = ivf_data_make(&r, 50, 5, FGMM_F32);
    float *values = data->rows;
    fgmm_rows *rows = ivf_data_rows(ctx, data), *wider = ivf_data_rows(ctx, wide);
    fgmm_model *model = ivf_model(ctx, &r, data, 5, FGMM_L2), *out = NULL;
    fgmm_ivf_lists *lists = NULL;
    fgmm_ivf_train_options train = FGMM_IVF_TRAIN_OPTIONS_INIT;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_train(ctx, &out, rows, &train, NULL));
    train.n_lists = 51;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_train(ctx, &out, rows, &train, NULL));
    train.n_lists = 5;
    train.metric = (fgmm_metric)9;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_train(ctx, &out, rows, &train, NULL));
    fgmm_ivf_assign_options o = FGMM_IVF_ASSIGN_OPTIONS_INIT;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_assign(ctx, &lists, model, wider, &o, NULL));
    o.budget = 3;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    o.budget = 0.5;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    o.budget = 0;
    o.max_lists = 9;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    o.max_lists = 0;
    o.lambda = -1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    o.lambda = 0;
    values[4 * 7 + 2] = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "row 7, column 2"));
    for (int j = 0; j < 4; j++) values[4 * 7 + j] = 0;
    CHECK_OK(ctx, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    fgmm_ivf_lists_free(ctx, lists);
    o.metric = train.metric = FGMM_ANGULAR;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_ivf_assign(ctx, &lists, model, rows, &o, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_ivf_train(ctx, &out, rows, &train, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "row 7"));
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, wider);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(wide);
    ivf_data_free(data);
}
END_TEST

/* A trial on a sample leaves the message to the fit, which knows the row's number. */
START_TEST(bad_row_is_named) {
    enum { N = 8500, D = 4, K = 20, BAD = 8 };
    fgmm_context *ctx = harness_context();
    rng r = rng_make(510);
    ivf_data *data = ivf_data_make(&r, N, D, FGMM_F32);
    float *values = data->rows;
    fgmm_rows *rows = ivf_data_rows(ctx, data);
    fgmm_model *out = NULL;
    fgmm_ivf_train_options train = FGMM_IVF_TRAIN_OPTIONS_INIT;
    train.n_lists = K;
    for (int64_t i = BAD; i < N; i++) values[i * D + 1] = NAN; /* some are in any sample */
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_ivf_train(ctx, &out, rows, &train, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "row 8, column 1 "));
    fgmm_rows_free(ctx, rows);
    ivf_data_free(data);
}
END_TEST

static TCase *training(void) {
    TCase *room = tcase_create("training");
    tcase_add_loop_test(room, quantizers, 0, 4 * METRICS);
    tcase_add_loop_test(room, starts, 0, METRICS);
    tcase_add_test(room, one_variance_is_the_best);
    tcase_add_test(room, bad_row_is_named);
    return room;
}

static TCase *assigning(void) {
    TCase *room = tcase_create("assigning");
    tcase_add_loop_test(room, rules, 0, 12 * RULES);
    tcase_add_test(room, responsibilities);
    tcase_add_test(room, budgets_and_caps);
    tcase_add_test(room, refused);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {training, assigning};
    return harness_main("ivf", rooms, 2);
}
