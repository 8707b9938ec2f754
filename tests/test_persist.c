/* Rows that persist: the same results as of others, to the bit, whatever calls came before; and nothing kept that must not be. */
#include "contract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOP = 3 };

/* All that may be asked of rows under a model. */
typedef struct answers {
    int64_t n, k;
    int32_t *labels, *ids;
    float *resp, *proba;
    double *log_prob;
    fgmm_score_result score;
} answers;

static answers answers_of(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                          const fgmm_compute_options *options) {
    answers a = {.n = fgmm_rows_count(rows), .k = fgmm_model_components(model)};
    size_t n = (size_t)a.n;
    fgmm_assign_options assign = FGMM_ASSIGN_OPTIONS_INIT;
    assign.compute = *options;
    a.labels = test_alloc(n, sizeof *a.labels);
    a.ids = test_alloc(n * TOP, sizeof *a.ids);
    a.resp = test_alloc(n * TOP, sizeof *a.resp);
    a.proba = test_alloc(n * (size_t)a.k, sizeof *a.proba);
    a.log_prob = test_alloc(n, sizeof *a.log_prob);
    CHECK_OK(ctx, fgmm_predict(ctx, model, rows, options, a.labels, NULL));
    CHECK_OK(ctx, fgmm_assign(ctx, model, rows, TOP, &assign, a.ids, a.resp, NULL, NULL));
    CHECK_OK(ctx, fgmm_score(ctx, model, rows, options, &a.score, NULL));
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, options, a.log_prob, NULL));
    CHECK_OK(ctx, fgmm_predict_proba(ctx, model, rows, options, a.proba, NULL, NULL));
    return a;
}

static void answers_free(answers *a) {
    free(a->labels);
    free(a->ids);
    free(a->resp);
    free(a->proba);
    free(a->log_prob);
}

static void check_same(const answers *a, const answers *b, const char *name, const char *when) {
    size_t n = (size_t)a->n;
    ck_assert_msg(memcmp(a->labels, b->labels, n * sizeof *a->labels) == 0, "%s, %s: other labels", name, when);
    ck_assert_msg(memcmp(a->ids, b->ids, n * TOP * sizeof *a->ids) == 0, "%s, %s: other components", name, when);
    ck_assert_msg(memcmp(a->resp, b->resp, n * TOP * sizeof *a->resp) == 0, "%s, %s: other best", name, when);
    ck_assert_msg(memcmp(&a->score, &b->score, sizeof a->score) == 0, "%s, %s: scores %.17g, not %.17g", name, when,
                  a->score.log_likelihood, b->score.log_likelihood);
    ck_assert_msg(memcmp(a->log_prob, b->log_prob, n * sizeof *a->log_prob) == 0, "%s, %s: other log-densities", name,
                  when);
    ck_assert_msg(memcmp(a->proba, b->proba, n * (size_t)a->k * sizeof *a->proba) == 0,
                  "%s, %s: other responsibilities", name, when);
}

static fgmm_model *fit_on(fgmm_context *ctx, const fgmm_model *start, const fgmm_rows *rows, int iterations,
                          const fgmm_compute_options *compute) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *model = NULL;
    options.init_model = start;
    options.max_iter = iterations;
    options.tol = -1;
    options.compute = *compute;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    return model;
}

/* A problem's rows twice, of which the first persist, and a model to start from. */
typedef struct twins {
    fgmm_context *ctx;
    const problem *p;
    fgmm_model *start;
    fgmm_rows *kept, *fresh;
} twins;

static twins twins_of(fgmm_context *ctx, const problem *p) {
    twins t = {ctx, p, problem_model(ctx, p), problem_rows(ctx, p), problem_rows(ctx, p)};
    CHECK_OK(ctx, fgmm_rows_persist(ctx, t.kept, 1));
    return t;
}

static void twins_free(twins *t) {
    fgmm_rows_free(t->ctx, t->kept);
    fgmm_rows_free(t->ctx, t->fresh);
    fgmm_model_free(t->ctx, t->start);
}

/* The same questions of both. */
static void check_answers(const twins *t, const fgmm_model *model, const fgmm_compute_options *options,
                          const char *when) {
    answers got = answers_of(t->ctx, model, t->kept, options), want = answers_of(t->ctx, model, t->fresh, options);
    check_same(&got, &want, t->p->name, when);
    answers_free(&got);
    answers_free(&want);
}

/* The model that both are fitted by. */
static fgmm_model *fit_both(const twins *t, int iterations, const fgmm_compute_options *options) {
    fgmm_model *want = fit_on(t->ctx, t->start, t->fresh, iterations, options);
    fgmm_model *got = fit_on(t->ctx, t->start, t->kept, iterations, options);
    contract_check_same(got, want);
    fgmm_model_free(t->ctx, want);
    return got;
}

/* Questions, fits, and the questions again under what they made and under what there was before: of fresh rows and of some that persist. */
static void check_turns(fgmm_context *ctx, const problem *p, const fgmm_compute_options *options) {
    twins t = twins_of(ctx, p);
    answers want = answers_of(ctx, t.start, t.fresh, options), got = answers_of(ctx, t.start, t.kept, options);
    check_same(&got, &want, p->name, "before a fit");
    answers_free(&got);
    fgmm_model *fitted = fit_both(&t, 3, options);
    check_answers(&t, fitted, options, "after one");
    got = answers_of(ctx, t.start, t.kept, options);
    check_same(&got, &want, p->name, "under the first model again");
    answers_free(&got);
    answers_free(&want);
    fgmm_model_free(ctx, fitted);
    twins_free(&t);
}

START_TEST(same_answers) {
    problem *p =
        harness_takes(_i) ? problem_make(_i / COVARIANCE_TYPES, (fgmm_covariance)(_i % COVARIANCE_TYPES)) : NULL;
    if (!p) return;
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    options.block_rows = _i % 3 == 1 ? 1024 : 0;
    options.engine = (fgmm_engine)(_i / COVARIANCE_TYPES % 3);
    if (p->reg_covar == 0 && p->k <= p->n) check_turns(harness_context(), p, &options);
    problem_free(p);
}
END_TEST

/* Clusters so far apart that rows have one candidate, a few rows between two, and a component that none is of. */
static problem *clusters_and_strays(int which) {
    const int64_t k = 6, d = 16;
    problem *p = problem_clusters(7, harness_rows(which ? 9000 : 6000, k, d), k, d,
                                  which % 2 ? FGMM_DIAG : FGMM_SPHERICAL, FGMM_F32);
    rng random = rng_make(7);
    for (int64_t i = 0; i < k * d; i++) p->means[i] = 12 * rng_normal(&random);
    for (int64_t i = 0; i < covariance_size(p->covariance, k, d); i++) p->covariances[i] = 1;
    if (which > 1) p->model_weights[k / 2] = 0;
    for (int64_t i = 0; i < p->n; i++) {
        int64_t c = i % (k / 2), other = i % 61 ? c : c + k / 2 + 1;
        for (int64_t j = 0; j < d && other < k; j++)
            store_value(p->rows, p->type, i * p->stride + j,
                        (p->means[c * d + j] + p->means[other * d + j]) / 2 + rng_normal(&random));
        for (int64_t j = 0; j < d && other == k; j++) store_value(p->rows, p->type, i * p->stride + j, p->means[j]);
    }
    return p;
}

/* A row far from all means tells them apart by small differences of large numbers, and of two alike either may be first. */
static void check_row(int64_t i, const answers *got, const answers *want) {
    const int32_t *ids = got->ids + i * TOP, *wanted = want->ids + i * TOP;
    const float *resp = got->resp + i * TOP, *r = want->resp + i * TOP;
    EXPECT(got->labels[i] == ids[0], "row %d: label %d, and component %d first", (int)i, got->labels[i], ids[0]);
    for (int j = 0; j < TOP; j++) {
        int apart = r[j] > 0.01 && (j == 0 || r[j - 1] > r[j] + 0.01) && (j + 1 == TOP || r[j] > r[j + 1] + 0.01);
        EXPECT(fabs(resp[j] - r[j]) < 1e-3 && (!apart || ids[j] == wanted[j]), "row %d: component %d, %g, not %d, %g",
               (int)i, ids[j], resp[j], wanted[j], r[j]);
    }
}

/* Enough rows a component that a device settles them, in one block and in a stretch of several. The dense engine, which settles none,
 * says the same of all. */
START_TEST(same_answers_of_settled_rows) {
    fgmm_context *ctx = NULL; /* of its own, whose device has not seen rows that it could not settle */
    ck_assert_int_eq(harness_open(&ctx, NULL), FGMM_OK);
    problem *p = clusters_and_strays(_i);
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT, dense = FGMM_COMPUTE_OPTIONS_INIT;
    options.block_rows = _i ? 1024 : 0;
    options.engine = FGMM_ENGINE_SCREEN;
    dense.engine = FGMM_ENGINE_DENSE;
    check_turns(ctx, p, &options);
    twins t = twins_of(ctx, p);
    answers want = answers_of(ctx, t.start, t.fresh, &dense);
    for (int turn = 0; turn < 2; turn++) {
        answers got = answers_of(ctx, t.start, t.kept, &options);
        for (int64_t i = 0; i < p->n; i++) check_row(i, &got, &want);
        answers_free(&got);
    }
    answers_free(&want);
    twins_free(&t);
    fgmm_context_free(ctx);
    problem_free(p);
}
END_TEST

typedef struct counted {
    const problem *p;
    int reads;
} counted;

static int read_counted(void *user, int64_t first, int64_t n, void *dst) {
    counted *c = user;
    size_t row = (size_t)c->p->d * fgmm_dtype_size(c->p->type);
    c->reads++;
    memcpy(dst, (const char *)c->p->rows + (size_t)first * row, (size_t)n * row);
    return 0;
}

static fgmm_rows *counted_rows(fgmm_context *ctx, counted *source, const problem *p) {
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_rows *rows = NULL;
    *source = (counted){p, 0};
    callback.read = read_counted;
    callback.user = source;
    callback.n = p->n;
    callback.d = p->d;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &rows, &callback));
    return rows;
}

/* Rows are read once for all calls; and again once they may have changed. */
START_TEST(read_once) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(8, 3000, 4, 5, FGMM_SPHERICAL, FGMM_F32);
    counted source;
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_rows *rows = counted_rows(ctx, &source, p);
    fgmm_model *start = problem_model(ctx, p);
    options.block_rows = 1024;
    CHECK_OK(ctx, fgmm_rows_persist(ctx, rows, 1));
    answers first = answers_of(ctx, start, rows, &options);
    ck_assert_int_eq(source.reads, 3);
    fgmm_model *model = fit_on(ctx, start, rows, 2, &options);
    fgmm_model_free(ctx, model);
    ck_assert_int_eq(source.reads, 3);
    /* Other rows, of which the context is told. */
    for (int64_t i = 0; i < p->n * p->d; i++) ((float *)p->rows)[i] += 1;
    CHECK_OK(ctx, fgmm_rows_persist(ctx, rows, 0));
    answers moved = answers_of(ctx, start, rows, &options);
    ck_assert_int_gt(source.reads, 3);
    ck_assert(moved.score.log_likelihood != first.score.log_likelihood);
    answers_free(&moved);
    answers_free(&first);
    fgmm_rows_free(ctx, rows);
    fgmm_model_free(ctx, start);
    problem_free(p);
}
END_TEST

/* Weights are the rows' own, whenever they are set. */
START_TEST(other_weights) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(9, 2500, 3, 4, FGMM_DIAG, FGMM_F32);
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    twins t = twins_of(ctx, p);
    double *weights = test_alloc((size_t)p->n, sizeof *weights);
    rng random = rng_make(9);
    for (int64_t i = 0; i < p->n; i++) weights[i] = rng_uniform(&random);
    for (int turn = 0; turn < 3; turn++) {
        fgmm_model *fitted = fit_both(&t, 2, &options);
        check_answers(&t, fitted, &options, turn == 1 ? "with weights" : "without");
        fgmm_model_free(ctx, fitted);
        CHECK_OK(ctx, fgmm_rows_set_weights(ctx, t.kept, turn ? NULL : weights, p->n));
        CHECK_OK(ctx, fgmm_rows_set_weights(ctx, t.fresh, turn ? NULL : weights, p->n));
    }
    free(weights);
    twins_free(&t);
    problem_free(p);
}
END_TEST

/* A start is made of the columns' variances, which no question needs. */
START_TEST(fitted_from_nothing) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(13, 2500, 3, 4, FGMM_DIAG, FGMM_F32);
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_fit_options fit = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *got = NULL, *want = NULL;
    twins t = twins_of(ctx, p);
    fit.n_components = 3;
    fit.covariance_type = FGMM_DIAG;
    fit.init = FGMM_INIT_RANDOM_FROM_DATA;
    fit.max_iter = 1;
    answers before = answers_of(ctx, t.start, t.kept, &options);
    CHECK_OK(ctx, fgmm_fit(ctx, &got, t.kept, &fit, NULL));
    CHECK_OK(ctx, fgmm_fit(ctx, &want, t.fresh, &fit, NULL));
    contract_check_same(got, want);
    answers_free(&before);
    fgmm_model_free(ctx, got);
    fgmm_model_free(ctx, want);
    twins_free(&t);
    problem_free(p);
}
END_TEST

/* Rows that are left out stay so, and what one call says of them does the next; where they are an error they are one each time. */
START_TEST(rows_left_out) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(10, 2500, 3, 4, FGMM_SPHERICAL, FGMM_F32);
    fgmm_compute_options skip = FGMM_COMPUTE_OPTIONS_INIT, strict = FGMM_COMPUTE_OPTIONS_INIT;
    const int64_t bad[2] = {7, 2111};
    int32_t *labels = test_alloc((size_t)p->n, sizeof *labels);
    for (int i = 0; i < 2; i++) ((float *)p->rows)[bad[i] * p->stride + 1] = i ? NAN : INFINITY;
    skip.nonfinite = FGMM_NONFINITE_SKIP;
    skip.block_rows = strict.block_rows = 1024;
    twins t = twins_of(ctx, p);
    for (int turn = 0; turn < 2; turn++) {
        answers a = answers_of(ctx, t.start, t.kept, &skip), b = answers_of(ctx, t.start, t.fresh, &skip);
        check_same(&a, &b, p->name, "rows left out");
        for (int i = 0; i < 2; i++) ck_assert_int_eq(a.labels[bad[i]], -1);
        answers_free(&a);
        answers_free(&b);
        fgmm_model_free(ctx, fit_both(&t, 2, &skip));
        fgmm_report report = FGMM_REPORT_INIT;
        CHECK_OK(ctx, fgmm_predict(ctx, t.start, t.kept, &skip, labels, &report));
        ck_assert_int_eq(report.n_skipped, 2);
        CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_predict(ctx, t.start, t.kept, &strict, labels, NULL));
    }
    free(labels);
    twins_free(&t);
    problem_free(p);
}
END_TEST

/* At the report before which *user is 1. */
static int stop(void *user, const fgmm_progress *progress) {
    (void)progress;
    return (*(int *)user)-- == 1;
}

/* A call that was cancelled, before or between its passes, leaves nothing that the next could stumble over. */
START_TEST(cancelled) {
    problem *p = problem_clusters(11, 5000, 4, 8, FGMM_SPHERICAL, FGMM_F32);
    fgmm_context_options own = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_fit_options fit = FGMM_FIT_OPTIONS_INIT;
    fgmm_context *ctx = NULL;
    fgmm_model *none = NULL;
    int now = 0;
    own.progress = stop;
    own.progress_user = &now;
    ck_assert_int_eq(harness_open(&ctx, &own), FGMM_OK);
    twins t = twins_of(ctx, p);
    options.block_rows = 1024;
    fit.compute = options;
    fit.init_model = t.start;
    answers want = answers_of(ctx, t.start, t.fresh, &options);
    for (int turn = 0; turn < 3; turn++) {
        answers got = answers_of(ctx, t.start, t.kept, &options);
        check_same(&got, &want, p->name, turn ? "after a cancel" : "before it");
        answers_free(&got);
        if (turn == 1) fgmm_context_cancel(ctx);
        if (turn != 1) now = 2;
        fgmm_status status = fgmm_fit(ctx, &none, t.kept, &fit, NULL);
        ck_assert_int_eq(status, FGMM_ERR_CANCELLED);
        fgmm_model_free(ctx, none);
        none = NULL;
    }
    answers_free(&want);
    twins_free(&t);
    fgmm_context_free(ctx);
    problem_free(p);
}
END_TEST

/* What a device holds at most for all questions of rows that persist. */
static size_t device_bytes(const problem *p, const fgmm_compute_options *options) {
    fgmm_context *ctx = NULL;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_score_result score;
    ck_assert_int_eq(harness_open(&ctx, NULL), FGMM_OK);
    fgmm_model *model = problem_model(ctx, p);
    fgmm_rows *rows = problem_rows(ctx, p);
    CHECK_OK(ctx, fgmm_rows_persist(ctx, rows, 1));
    answers all = answers_of(ctx, model, rows, options);
    CHECK_OK(ctx, fgmm_score(ctx, model, rows, options, &score, &report));
    answers_free(&all);
    fgmm_rows_free(ctx, rows);
    fgmm_model_free(ctx, model);
    fgmm_context_free(ctx);
    return (size_t)report.peak_device_bytes;
}

/* More rows persist than a context may hold: what was kept of some makes way for others, in either memory, and of those that were asked last all is
 * there. */
START_TEST(short_of_memory) {
    enum { SETS = 3 };
    fgmm_context_options own = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_context *ctx = NULL;
    fgmm_model *start = NULL;
    problem *p[SETS];
    fgmm_rows *kept[SETS];
    counted sources[SETS];
    answers want[SETS];
    options.block_rows = 1024;
    options.nonfinite = FGMM_NONFINITE_SKIP;
    for (int i = 0; i < SETS; i++)
        p[i] = problem_clusters((uint64_t)(20 + i), harness_rows(20480, 2, 64), 2, 64, FGMM_SPHERICAL, FGMM_F32);
    for (int i = 0; i < SETS; i++) ((float *)p[i]->rows)[3 * p[i]->stride] = NAN; /* in the first block */
    size_t bytes = (size_t)(p[0]->n * p[0]->d) * sizeof(float), device = device_bytes(p[0], &options);
    if (_i)
        own.host_memory_limit = 24 << 20;
    else if (device)
        own.device_memory_limit = device + bytes + bytes / 2; /* of two sets, and of three not */
    ck_assert_int_eq(harness_open(&ctx, &own), FGMM_OK);
    for (int i = 0; i < SETS; i++) {
        if (!i) start = problem_model(ctx, p[i]);
        kept[i] = counted_rows(ctx, &sources[i], p[i]);
        want[i] = answers_of(harness_context(), start, kept[i], &options);
        CHECK_OK(ctx, fgmm_rows_persist(ctx, kept[i], 1));
    }
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < SETS; i++) {
            answers got = answers_of(ctx, start, kept[i], &options);
            check_same(&got, &want[i], p[i]->name, "where memory is short");
            int reads = sources[i].reads;
            fgmm_report report = FGMM_REPORT_INIT;
            CHECK_OK(ctx, fgmm_predict(ctx, start, kept[i], &options, got.labels, &report));
            ck_assert_int_eq(report.n_skipped, 1);
            if (!_i) ck_assert_int_eq(sources[i].reads, reads);
            answers_free(&got);
        }
    for (int i = 0; i < SETS; i++) {
        fgmm_rows_free(ctx, kept[i]);
        answers_free(&want[i]);
    }
    fgmm_model_free(ctx, start);
    fgmm_context_free(ctx);
    for (int i = 0; i < SETS; i++) problem_free(p[i]);
}
END_TEST

START_TEST(refused) {
    fgmm_context *ctx = harness_context(), *other = NULL;
    problem *p = problem_clusters(12, 1500, 2, 3, FGMM_SPHERICAL, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p), *once = NULL, *slice = NULL;
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    ck_assert_int_eq(harness_open(&other, NULL), FGMM_OK);
    callback.read = read_counted; /* never */
    callback.n = 10;
    callback.d = 1;
    callback.once = 1;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &once, &callback));
    ck_assert_int_eq(fgmm_rows_persist(NULL, rows, 1), FGMM_ERR_INVALID);
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_persist(ctx, NULL, 1));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_persist(ctx, once, 1));
    CHECK_FAILS(other, FGMM_ERR_INVALID, fgmm_rows_persist(other, rows, 1));
    /* Twice is once, and taking back what was not said is nothing. A slice is a source of its own. */
    for (int i = 0; i < 4; i++) CHECK_OK(ctx, fgmm_rows_persist(ctx, rows, i < 2));
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &slice, rows, 100, 1200));
    CHECK_OK(ctx, fgmm_rows_persist(ctx, slice, 1));
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_model *start = problem_model(ctx, p);
    const twins one = {ctx, p, start, slice, slice};
    check_answers(&one, start, &options, "a slice");
    fgmm_rows_free(ctx, slice);
    fgmm_rows_free(ctx, once);
    fgmm_rows_free(ctx, rows);
    fgmm_model_free(ctx, start);
    fgmm_context_free(other);
    problem_free(p);
}
END_TEST

static TCase *answers_room(void) {
    TCase *room = tcase_create("answers");
    tcase_set_timeout(room, 600);
    tcase_add_loop_test(room, same_answers, 0, problem_count() * COVARIANCE_TYPES);
    tcase_add_loop_test(room, same_answers_of_settled_rows, 0, 4);
    return room;
}

static TCase *changes_room(void) {
    TCase *room = tcase_create("changes");
    tcase_set_timeout(room, 600);
    tcase_add_test(room, read_once);
    tcase_add_test(room, other_weights);
    tcase_add_test(room, fitted_from_nothing);
    tcase_add_test(room, rows_left_out);
    tcase_add_test(room, cancelled);
    tcase_add_loop_test(room, short_of_memory, 0, 2);
    tcase_add_test(room, refused);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {answers_room, changes_room};
    return harness_main("persist", rooms, 2);
}
