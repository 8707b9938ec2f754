/* Stepwise EM over batches: its steps against the formula, what it must not forget, and its file. */
#include "contract.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Statistics a unit of weight about the origin, [k], [k, d] and as full or diagonal second moments [k, d, d]. */
typedef struct moments {
    int64_t k, d;
    long double *s0, *s1, *s2;
} moments;

static moments moments_new(int64_t k, int64_t d) {
    moments m = {k, d, NULL, NULL, NULL};
    m.s0 = test_alloc((size_t)k, sizeof *m.s0);
    m.s1 = test_alloc((size_t)(k * d), sizeof *m.s1);
    m.s2 = test_alloc((size_t)(k * d * d), sizeof *m.s2);
    return m;
}

static void moments_free(moments *m) {
    free(m->s0);
    free(m->s1);
    free(m->s2);
}

/* Those that components of these shares, means and covariances have; S <- (1 - rho) S + rho s. */
static void blend(moments *m, double rho, fgmm_covariance type, const double *shares, const double *means,
                  const double *covariances) {
    int64_t d = m->d;
    for (int64_t k = 0; k < m->k; k++) {
        m->s0[k] = (1 - rho) * m->s0[k] + rho * shares[k];
        for (int64_t a = 0; a < d; a++) {
            m->s1[k * d + a] = (1 - rho) * m->s1[k * d + a] + rho * shares[k] * means[k * d + a];
            for (int64_t b = 0; b < d; b++) {
                long double entry = (long double)means[k * d + a] * means[k * d + b];
                if (a == b || covariance_is_matrix(type)) entry += covariances[covariance_index(type, d, k, a, b)];
                long double *s2 = &m->s2[(k * d + a) * d + b];
                *s2 = (1 - rho) * *s2 + rho * shares[k] * entry;
            }
        }
    }
}

/* The M-step on S, into the problem's model. */
static void maximize(const moments *m, problem *p) {
    int64_t d = m->d;
    memset(p->covariances, 0, (size_t)covariance_size(p->covariance, p->k, d) * sizeof(double));
    for (int64_t k = 0; k < m->k; k++) {
        p->model_weights[k] = (double)m->s0[k];
        for (int64_t a = 0; a < d; a++) p->means[k * d + a] = (double)(m->s1[k * d + a] / m->s0[k]);
        for (int64_t a = 0; a < d; a++) {
            for (int64_t b = 0; b < d; b++) {
                long double mean_a = m->s1[k * d + a] / m->s0[k], mean_b = m->s1[k * d + b] / m->s0[k];
                double entry = (double)(m->s2[(k * d + a) * d + b] / m->s0[k] - mean_a * mean_b);
                double *to = &p->covariances[covariance_index(p->covariance, d, k, a, b)];
                if (p->covariance == FGMM_TIED) *to += (double)m->s0[k] * entry;
                if (p->covariance == FGMM_FULL || (p->covariance == FGMM_DIAG && a == b)) *to = entry;
                if (p->covariance == FGMM_SPHERICAL && a == b) *to += entry / (double)d;
            }
        }
    }
}

/* What a reference step found in a batch. A spherical variance and a tied matrix stand for the sums they came from. */
static void blend_batch(moments *m, double rho, const problem *batch) {
    reference *r = reference_step(batch);
    double *shares = test_alloc((size_t)m->k, sizeof *shares);
    for (int64_t k = 0; k < m->k; k++) shares[k] = r->counts[k] / r->weight;
    blend(m, rho, batch->covariance, shares, r->means, r->covariances);
    free(shares);
    reference_free(r);
}

static void check_model(const problem *p, const fgmm_model *model, int step) {
    double e = 1e-4; /* a few steps of 1e-5 each, which are not independent */
    int64_t d = p->d;
    for (int64_t k = 0; k < p->k; k++) {
        EXPECT(fabs(fgmm_model_weights(model)[k] - p->model_weights[k]) <= e, "step %d: weight[%d] is %g, not %g", step,
               (int)k, fgmm_model_weights(model)[k], p->model_weights[k]);
        for (int64_t a = 0; a < d; a++) {
            double va = covariance_variance(p->covariance, p->covariances, d, k, a);
            double off = fabs(fgmm_model_means(model)[k * d + a] - p->means[k * d + a]);
            EXPECT(off <= e * sqrt(va), "step %d: mean[%d][%d] is %g deviations off", step, (int)k, (int)a,
                   off / sqrt(va));
            for (int64_t b = 0; b < d; b++) {
                if (a != b && !covariance_is_matrix(p->covariance)) continue;
                int64_t at = covariance_index(p->covariance, d, k, a, b);
                double vb = covariance_variance(p->covariance, p->covariances, d, k, b);
                double got = fgmm_model_covariances(model)[at];
                EXPECT(fabs(got - p->covariances[at]) <= e * sqrt(va * vb),
                       "step %d: covariance[%d][%d][%d] is %g, not %g", step, (int)k, (int)a, (int)b, got,
                       p->covariances[at]);
            }
        }
    }
}

/* Rows first .. first+n-1 of the problem, under its model. */
static problem batch_of(const problem *p, int64_t first, int64_t n) {
    problem batch = *p;
    batch.rows = (char *)p->rows + (size_t)(first * p->stride) * fgmm_dtype_size(p->type);
    batch.n = n;
    batch.reg_covar = 0;
    return batch;
}

static fgmm_online *online_from(const problem *p, const fgmm_online_options *options) {
    fgmm_context *ctx = harness_context();
    fgmm_model *model = problem_model(ctx, p);
    fgmm_online *online = NULL;
    CHECK_OK(ctx, fgmm_online_create(ctx, &online, model, options));
    fgmm_model_free(ctx, model);
    return online;
}

static void step_over(fgmm_online *online, const problem *batch) {
    fgmm_context *ctx = harness_context();
    fgmm_rows *rows = problem_rows(ctx, batch);
    CHECK_OK(ctx, fgmm_partial_fit(ctx, online, rows, NULL));
    fgmm_rows_free(ctx, rows);
}

/* S <- (1 - rho) S + rho s with rho = (t + t0)^-kappa, step by step; t0 negative means 0, for which the first batch
 * is all. */
START_TEST(steps_are_the_formula) {
    static const double kappas[] = {0.7, 1.0}, t0s[] = {3.0, -1};
    fgmm_covariance type = (fgmm_covariance)(_i % COVARIANCE_TYPES);
    double kappa = kappas[_i / COVARIANCE_TYPES], t0 = t0s[_i / COVARIANCE_TYPES];
    problem *p = problem_clusters(90 + (uint64_t)_i, 1200, 3, 4, type, FGMM_F32);
    fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
    options.kappa = kappa;
    options.t0 = t0;
    options.reg_covar = -1;
    fgmm_online *online = online_from(p, &options);
    moments s = moments_new(p->k, p->d);
    blend(&s, 1, type, p->model_weights, p->means, p->covariances);
    ck_assert_int_eq(fgmm_online_steps(online), 0);
    for (int t = 1; t <= 4; t++) {
        problem batch = batch_of(p, (t - 1) * 300, 300);
        blend_batch(&s, pow(t + fmax(t0, 0), -kappa), &batch);
        step_over(online, &batch);
        maximize(&s, p);
        check_model(p, fgmm_online_model(online), t);
        ck_assert_int_eq(fgmm_online_steps(online), t);
        ck_assert_int_eq(fgmm_model_iterations(fgmm_online_model(online)), t);
    }
    moments_free(&s);
    fgmm_online_free(harness_context(), online);
    problem_free(p);
}
END_TEST

/* A first batch that replaces the start is one iteration of EM. */
START_TEST(one_batch_is_one_iteration) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(100, 1500, 4, 3, (fgmm_covariance)_i, FGMM_F32);
    fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
    options.kappa = 1;
    options.t0 = -1;
    options.reg_covar = p->reg_covar > 0 ? p->reg_covar : -1;
    fgmm_online *online = online_from(p, &options);
    reference *r = reference_step(p);
    step_over(online, p);
    contract_check_model(p, r, fgmm_online_model(online), contract_tolerance(r, FGMM_EXACT));
    reference_free(r);
    fgmm_online_free(ctx, online);
    problem_free(p);
}
END_TEST

static double likelihood(const fgmm_model *model, const problem *p) {
    fgmm_context *ctx = harness_context();
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_score_result score;
    CHECK_OK(ctx, fgmm_score(ctx, model, rows, NULL, &score, NULL));
    fgmm_rows_free(ctx, rows);
    return score.log_likelihood;
}

/* A few passes by batches gain most of what EM over all rows does. */
START_TEST(passes_come_near_em) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(101, 2000, 4, 3, (fgmm_covariance)_i, FGMM_F32);
    fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
    fgmm_fit_options fit = FGMM_FIT_OPTIONS_INIT;
    for (int64_t j = 0; j < p->d; j++)
        p->means[j] += 2 * sqrt(covariance_variance(p->covariance, p->covariances, p->d, 0, j));
    fgmm_online *online = online_from(p, &options);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    fgmm_rows *rows = problem_rows(ctx, p);
    fit.init_model = start;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &fit, NULL));
    for (int t = 0; t < 200; t++) {
        problem batch = batch_of(p, t % 10 * 200, 200);
        step_over(online, &batch);
    }
    double before = likelihood(start, p), got = likelihood(fgmm_online_model(online), p), want = likelihood(model, p);
    ck_assert_msg(got > want - 0.25 * (want - before), "log-likelihood %g by batches, %g by EM, %g before", got, want,
                  before);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    fgmm_online_free(ctx, online);
    problem_free(p);
}
END_TEST

static void check_same_model(const fgmm_model *a, const fgmm_model *b) {
    size_t k = (size_t)fgmm_model_components(a), d = (size_t)fgmm_model_features(a);
    ck_assert_mem_eq(fgmm_model_weights(a), fgmm_model_weights(b), k * sizeof(double));
    ck_assert_mem_eq(fgmm_model_means(a), fgmm_model_means(b), k * d * sizeof(double));
    ck_assert_mem_eq(fgmm_model_covariances(a), fgmm_model_covariances(b),
                     (size_t)fgmm_model_covariances_size(a) * sizeof(double));
    ck_assert_int_eq(fgmm_model_iterations(a), fgmm_model_iterations(b));
}

/* Saved in the middle and loaded, the steps go on as if nothing had happened. */
START_TEST(file_goes_on) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(102, 900, 3, 4, (fgmm_covariance)_i, FGMM_F32);
    fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
    char path[512];
    options.kappa = 0.6;
    options.t0 = 2;
    options.reg_covar = 1e-4;
    options.freeze = FGMM_FREEZE_WEIGHTS;
    fgmm_online *online = online_from(p, &options), *other = NULL;
    snprintf(path, sizeof path, "%s/online.npz", harness_scratch());
    for (int t = 0; t < 2; t++) {
        problem batch = batch_of(p, t * 300, 300);
        step_over(online, &batch);
    }
    CHECK_OK(ctx, fgmm_online_save(ctx, online, path));
    CHECK_OK(ctx, fgmm_online_load(ctx, &other, path, NULL));
    check_same_model(fgmm_online_model(online), fgmm_online_model(other));
    problem batch = batch_of(p, 600, 300);
    step_over(online, &batch);
    step_over(other, &batch);
    check_same_model(fgmm_online_model(online), fgmm_online_model(other));
    ck_assert_int_eq(fgmm_online_steps(other), 3);
    for (int k = 0; k < 3; k++) /* the freezing came along */
        ck_assert(fabs(fgmm_model_weights(fgmm_online_model(other))[k] - p->model_weights[k]) <= 1e-12);
    fgmm_online_free(ctx, online);
    fgmm_online_free(ctx, other);
    problem_free(p);
}
END_TEST

/* Weights of rows count, freezing holds, and a batch that fails changes nothing. */
START_TEST(weights_freezing_and_failure) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(103, 400, 3, 3, (fgmm_covariance)_i, FGMM_F32);
    fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
    options.freeze = FGMM_FREEZE_MEANS;
    fgmm_online *online = online_from(p, &options), *same = online_from(p, &options);
    p->weights = test_alloc((size_t)p->n, sizeof(double));
    for (int64_t i = 0; i < p->n; i++) p->weights[i] = i < 200 ? 2.5 : 0;
    step_over(online, p);
    free(p->weights);
    p->weights = NULL;
    problem half = batch_of(p, 0, 200);
    step_over(same, &half);
    for (int64_t k = 0; k < 3; k++)
        ck_assert(fabs(fgmm_model_weights(fgmm_online_model(online))[k] -
                       fgmm_model_weights(fgmm_online_model(same))[k]) <= 1e-5);
    ck_assert_mem_eq(fgmm_model_means(fgmm_online_model(online)), p->means, 9 * sizeof(double));

    double weight = fgmm_model_weights(fgmm_online_model(online))[0];
    ((float *)p->rows)[17 * 3 + 1] = NAN;
    fgmm_rows *rows = problem_rows(ctx, p);
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_partial_fit(ctx, online, rows, NULL));
    ck_assert_msg(strstr(fgmm_context_message(ctx), "17") != NULL, "\"%s\"", fgmm_context_message(ctx));
    ck_assert(fgmm_model_weights(fgmm_online_model(online))[0] == weight);
    ck_assert_int_eq(fgmm_online_steps(online), 1);
    fgmm_rows_free(ctx, rows);
    fgmm_online_free(ctx, online);
    fgmm_online_free(ctx, same);
    problem_free(p);
}
END_TEST

START_TEST(bad_input) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(104, 100, 2, 3, FGMM_DIAG, FGMM_F32),
            *flat = problem_clusters(105, 100, 2, 2, FGMM_DIAG, FGMM_F32);
    fgmm_model *model = problem_model(ctx, p);
    fgmm_online *none = NULL;
    static const struct {
        double kappa, t0, reg_covar;
        unsigned freeze;
    } wrong[] = {{0.5, 0, 0, 0}, {1.01, 0, 0, 0},     {-1, 0, 0, 0},  {NAN, 0, 0, 0},
                 {0, NAN, 0, 0}, {0, INFINITY, 0, 0}, {0, 0, NAN, 0}, {0, 0, 0, 64}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
        options.kappa = wrong[i].kappa;
        options.t0 = wrong[i].t0;
        options.reg_covar = wrong[i].reg_covar;
        options.freeze = wrong[i].freeze;
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_online_create(ctx, &none, model, &options));
        ck_assert_ptr_null(none);
    }
    CHECK_OK(ctx, fgmm_online_create(ctx, &none, model, NULL));
    fgmm_rows *rows = problem_rows(ctx, flat);
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_partial_fit(ctx, none, rows, NULL));
    fgmm_online_free(ctx, none);
    none = NULL;
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_online_load(ctx, &none, "/no/such/online.npz", NULL));
    ck_assert_ptr_null(none);
    fgmm_online_free(ctx, NULL);
    fgmm_rows_free(ctx, rows);
    fgmm_model_free(ctx, model);
    problem_free(p);
    problem_free(flat);
}
END_TEST

static TCase *online(void) {
    TCase *room = tcase_create("online");
    tcase_add_loop_test(room, steps_are_the_formula, 0, 2 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, one_batch_is_one_iteration, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, passes_come_near_em, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, file_goes_on, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, weights_freezing_and_failure, 0, COVARIANCE_TYPES);
    tcase_add_test(room, bad_input);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {online};
    return harness_main("online", rooms, 1);
}
