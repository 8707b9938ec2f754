/* What a fitted model says about rows, against the reference: scores, labels, responsibilities, AIC and BIC, samples. */
#include "contract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double E = 1e-5; /* the contract of FGMM_EXACT */
static const double CUT = 1e-7;

typedef struct fixture {
    problem *p;
    reference *r;
    fgmm_rows *rows;
    fgmm_model *model;
    fgmm_compute_options options;
} fixture;

/* Cases run over problems x covariance types; the engines take turns. @return 0 if the case is too large here. */
static int fixture_make(fixture *f, int i) {
    f->p = !harness_takes(i) ? NULL : problem_make(i / 2, i % 2);
    if (!f->p) return 0;
    f->r = reference_step(f->p);
    f->rows = problem_rows(harness_context(), f->p);
    f->model = problem_model(harness_context(), f->p);
    f->options = (fgmm_compute_options)FGMM_COMPUTE_OPTIONS_INIT;
    f->options.engine = (fgmm_engine)(i / 2 % 3);
    f->options.block_rows = i % 4 == 3 ? 1024 : 0;
    return 1;
}

static void fixture_free(fixture *f) {
    fgmm_model_free(harness_context(), f->model);
    fgmm_rows_free(harness_context(), f->rows);
    reference_free(f->r);
    problem_free(f->p);
}

static void check_log_prob(const fixture *f, const double *log_prob) {
    for (int64_t i = 0; i < f->p->n; i++) {
        EXPECT(fabs(log_prob[i] - f->r->log_prob[i]) <= E * fmax(1, fabs(f->r->log_prob[i])),
               "%s: row %d scores %.17g, not %.17g", f->p->name, (int)i, log_prob[i], f->r->log_prob[i]);
    }
}

static void check_scores(const fixture *f) {
    fgmm_context *ctx = harness_context();
    double *log_prob = test_alloc((size_t)f->p->n, sizeof *log_prob);
    fgmm_score_result score;
    CHECK_OK(ctx, fgmm_score_samples(ctx, f->model, f->rows, &f->options, log_prob, NULL));
    check_log_prob(f, log_prob);

    CHECK_OK(ctx, fgmm_score(ctx, f->model, f->rows, &f->options, &score, NULL));
    double mean = f->r->log_likelihood / f->r->weight;
    ck_assert(fabs(score.weight - f->r->weight) <= 1e-12 * f->r->weight);
    EXPECT(fabs(score.log_likelihood - mean) <= E * fmax(1, fabs(mean)), "%s: mean log-likelihood %g, not %g",
           f->p->name, score.log_likelihood, mean);
    double parameters = (double)(f->p->k - 1 + f->p->k * f->p->d + (f->p->diag ? f->p->k * f->p->d : f->p->k));
    ck_assert_int_eq(fgmm_model_parameters(f->model), (int64_t)parameters);
    double twice = 2 * score.log_likelihood * score.weight, size = fabs(twice) + parameters;
    ck_assert(fabs(score.aic - (2 * parameters - twice)) <= 1e-12 * size);
    ck_assert(fabs(score.bic - (parameters * log(score.weight) - twice)) <= 1e-11 * size);
    free(log_prob);
}

/* log r of component k of a row against that of the best, from the reference. */
static double behind(const fixture *f, int64_t i, int64_t k) {
    const double *r = f->r->resp + i * f->p->k;
    double best = 0;
    for (int64_t j = 0; j < f->p->k; j++) best = fmax(best, r[j]);
    return log(best) - log(r[k]);
}

static void check_labels(const fixture *f) {
    fgmm_context *ctx = harness_context();
    int32_t *label = test_alloc((size_t)f->p->n, sizeof *label);
    CHECK_OK(ctx, fgmm_predict(ctx, f->model, f->rows, &f->options, label, NULL));
    for (int64_t i = 0; i < f->p->n; i++) {
        EXPECT(label[i] >= 0 && label[i] < f->p->k, "%s: label %d", f->p->name, label[i]);
        /* Of two that are this close either may win. */
        EXPECT(behind(f, i, label[i]) < 1e-4, "%s: row %d got component %d, %g nats behind", f->p->name, (int)i,
               label[i], behind(f, i, label[i]));
    }
    free(label);
}

static void check_assigned_row(const fixture *f, int64_t i, int m, double min_resp, const int32_t *ids,
                               const float *resp) {
    double sum = 0, last = 2;
    const double *truth = f->r->resp + i * f->p->k;
    int end = m;
    for (int j = 0; j < m; j++) {
        if (ids[j] < 0) {
            end = j < end ? j : end;
            EXPECT(ids[j] == -1 && resp[j] == 0, "%s: row %d: id %d, responsibility %g after the last", f->p->name,
                   (int)i, ids[j], resp[j]);
            continue;
        }
        EXPECT(end == m, "%s: row %d has a component after the last", f->p->name, (int)i);
        EXPECT(ids[j] < f->p->k, "%s: row %d has component %d", f->p->name, (int)i, ids[j]);
        for (int l = 0; l < j; l++) EXPECT(ids[l] != ids[j], "%s: row %d twice %d", f->p->name, (int)i, ids[j]);
        EXPECT(resp[j] <= last && resp[j] >= min_resp, "%s: row %d: %g after %g", f->p->name, (int)i, resp[j], last);
        EXPECT(fabs(resp[j] - truth[ids[j]]) <= E, "%s: r[%d][%d] is %g, not %g", f->p->name, (int)i, ids[j], resp[j],
               truth[ids[j]]);
        last = resp[j];
        sum += resp[j];
    }
    /* Nothing that counts is missing: not one that is larger than the last, and all are there if there is room. */
    double left = 0;
    for (int64_t k = 0; k < f->p->k; k++) {
        int found = 0;
        for (int j = 0; j < end; j++) found |= ids[j] == k;
        if (found) continue;
        left += truth[k];
        double floor = end == m ? fmax(last, min_resp) : fmax(min_resp, 1.01 * CUT * f->p->model_weights[k]);
        EXPECT(truth[k] <= floor + E, "%s: row %d lacks component %d of %g", f->p->name, (int)i, (int)k, truth[k]);
    }
    EXPECT(fabs(sum + left - 1) <= E, "%s: row %d: responsibilities sum to %.9g, %g left", f->p->name, (int)i, sum,
           left);
    if (min_resp == 0 && m >= f->p->k)
        EXPECT(fabs(sum - 1) <= 1e-6, "%s: row %d sums to %.9g", f->p->name, (int)i, sum);
}

static void check_assignments(const fixture *f) {
    static const int some_m[] = {1, 2, 5, 64};
    fgmm_context *ctx = harness_context();
    size_t n = (size_t)f->p->n;
    int32_t *ids = test_alloc(n * 64, sizeof *ids);
    float *resp = test_alloc(n * 64, sizeof *resp);
    double *log_prob = test_alloc(n, sizeof *log_prob);
    for (int j = 0; j < 4; j++) {
        int m = some_m[j];
        double min_resp = j == 1 ? 0.05 : 0;
        CHECK_OK(ctx, fgmm_assign(ctx, f->model, f->rows, &f->options, m, min_resp, ids, resp, j % 2 ? log_prob : NULL,
                                  NULL));
        if (j % 2) check_log_prob(f, log_prob);
        for (int64_t i = 0; i < f->p->n; i++) check_assigned_row(f, i, m, min_resp, ids + i * m, resp + i * m);
    }
    free(ids);
    free(resp);
    free(log_prob);
}

START_TEST(a_problem) {
    fixture f;
    if (!fixture_make(&f, _i)) return;
    check_scores(&f);
    check_labels(&f);
    check_assignments(&f);
    fixture_free(&f);
}
END_TEST

/* Two components alike in all: the first wins. */
START_TEST(ties_go_to_the_first) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(7, 300, 4, 3, _i, FGMM_F32);
    int64_t per = p->diag ? p->d : 1;
    memcpy(p->means + 3 * p->d, p->means + 1 * p->d, (size_t)p->d * sizeof(double));
    memcpy(p->covariances + 3 * per, p->covariances + 1 * per, (size_t)per * sizeof(double));
    p->model_weights[3] = p->model_weights[1];
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    for (int engine = 0; engine < 3; engine++) {
        fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
        int32_t label[300], ids[600], seen = 0;
        float resp[600];
        options.engine = (fgmm_engine)engine;
        CHECK_OK(ctx, fgmm_predict(ctx, model, rows, &options, label, NULL));
        CHECK_OK(ctx, fgmm_assign(ctx, model, rows, &options, 2, 0, ids, resp, NULL, NULL));
        for (int i = 0; i < 300; i++) {
            ck_assert_int_ne(label[i], 3);
            ck_assert_int_eq(label[i], ids[2 * i]);
            if (label[i] != 1) continue;
            seen++;
            ck_assert_int_eq(ids[2 * i + 1], 3);
            ck_assert(resp[2 * i] == resp[2 * i + 1]);
        }
        ck_assert_int_gt(seen, 0);
    }
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Shares, means and variances of a sample are the model's, within six standard errors. */
START_TEST(samples) {
    enum { N = 20000, K = 4, D = 3 };
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(8, 64, K, D, _i, FGMM_F32);
    fgmm_model *model = problem_model(ctx, p);
    double *x = test_alloc(N * D, sizeof *x), *again = test_alloc(N * D, sizeof *again);
    int32_t *label = test_alloc(N, sizeof *label);
    uint64_t seed = rng_bits(&(rng){(uint64_t)_i});
    CHECK_OK(ctx, fgmm_sample(ctx, model, N, seed, x, label));
    CHECK_OK(ctx, fgmm_sample(ctx, model, N, seed, again, NULL));
    ck_assert_int_eq(memcmp(x, again, N * D * sizeof *x), 0);
    CHECK_OK(ctx, fgmm_sample(ctx, model, N, seed + 1, again, NULL));
    ck_assert_int_ne(memcmp(x, again, N * D * sizeof *x), 0);
    for (int k = 0; k < K; k++) {
        double count = 0, expected = N * p->model_weights[k];
        for (int i = 0; i < N; i++) count += label[i] == k;
        EXPECT(fabs(count - expected) < 6 * sqrt(expected), "%g rows of component %d, not about %g", count, k,
               expected);
        for (int j = 0; j < D; j++) {
            double mean = p->means[k * D + j], variance = p->covariances[p->diag ? k * D + j : k], s1 = 0, s2 = 0;
            for (int i = 0; i < N; i++) {
                double t = label[i] == k ? x[i * D + j] - mean : 0;
                s1 += t;
                s2 += t * t;
            }
            EXPECT(fabs(s1 / count) < 6 * sqrt(variance / count), "mean of component %d is %g off", k, s1 / count);
            EXPECT(fabs(s2 / count / variance - 1) < 6 * sqrt(2 / count), "variance %g, not %g", s2 / count, variance);
        }
    }
    free(x);
    free(again);
    free(label);
    fgmm_model_free(ctx, model);
    problem_free(p);
}
END_TEST

static TCase *inference(void) {
    TCase *room = tcase_create("inference");
    tcase_add_loop_test(room, a_problem, 0, 2 * problem_count());
    tcase_add_loop_test(room, ties_go_to_the_first, 0, 2);
    tcase_add_loop_test(room, samples, 0, 2);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {inference};
    return harness_main("infer", rooms, 1);
}
