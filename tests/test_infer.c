/* What a fitted model says about rows, against the reference: scores, labels, responsibilities, AIC and BIC, samples.
 * */
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
    f->p = !harness_takes(i) ? NULL : problem_make(i / COVARIANCE_TYPES, (fgmm_covariance)(i % COVARIANCE_TYPES));
    if (!f->p) return 0;
    f->r = reference_step(f->p);
    f->rows = problem_rows(harness_context(), f->p);
    f->model = problem_model(harness_context(), f->p);
    f->options = (fgmm_compute_options)FGMM_COMPUTE_OPTIONS_INIT;
    f->options.engine = (fgmm_engine)(i / COVARIANCE_TYPES % 3);
    f->options.block_rows = i % 5 == 3 ? 1024 : 0;
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

static double free_parameters(const problem *p) {
    double k = (double)p->k, d = (double)p->d, covariances = k;
    if (p->covariance == FGMM_DIAG) covariances = k * d;
    if (p->covariance == FGMM_TIED) covariances = d * (d + 1) / 2;
    if (p->covariance == FGMM_FULL) covariances = k * d * (d + 1) / 2;
    return k - 1 + k * d + covariances;
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
    double parameters = free_parameters(f->p);
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
        fgmm_assign_options options = FGMM_ASSIGN_OPTIONS_INIT;
        options.min_resp = min_resp;
        options.compute = f->options;
        CHECK_OK(ctx, fgmm_assign(ctx, f->model, f->rows, m, &options, ids, resp, j % 2 ? log_prob : NULL, NULL));
        if (j % 2) check_log_prob(f, log_prob);
        for (int64_t i = 0; i < f->p->n; i++) check_assigned_row(f, i, m, min_resp, ids + i * m, resp + i * m);
    }
    free(ids);
    free(resp);
    free(log_prob);
}

/* Dense responsibilities are the reference's, row by row and by slices. */
static void check_proba(const fixture *f) {
    fgmm_context *ctx = harness_context();
    int64_t n = f->p->n, k = f->p->k, half = n / 2;
    float *resp = test_alloc((size_t)(n * k), sizeof *resp), *part = test_alloc((size_t)(n * k), sizeof *part);
    double *log_prob = test_alloc((size_t)n, sizeof *log_prob);
    fgmm_rows *slice = NULL;
    CHECK_OK(ctx, fgmm_predict_proba(ctx, f->model, f->rows, &f->options, resp, log_prob, NULL));
    check_log_prob(f, log_prob);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < k; j++) {
            double got = resp[i * k + j], truth = f->r->resp[i * k + j];
            EXPECT(got >= 0 && fabs(got - truth) <= E, "%s: r[%d][%d] is %.9g, not %.9g", f->p->name, (int)i, (int)j,
                   got, truth);
            sum += got;
        }
        EXPECT(fabs(sum - 1) <= 1e-6, "%s: row %d sums to %.9g", f->p->name, (int)i, sum);
    }
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &slice, f->rows, half, n - half));
    CHECK_OK(ctx, fgmm_predict_proba(ctx, f->model, slice, &f->options, part, NULL, NULL));
    for (int64_t i = 0; i < (n - half) * k; i++)
        EXPECT(fabs(part[i] - resp[half * k + i]) <= 2 * E, "%s: a slice differs at %d", f->p->name, (int)i);
    fgmm_rows_free(ctx, slice);
    free(resp);
    free(part);
    free(log_prob);
}

START_TEST(a_problem) {
    fixture f;
    if (!fixture_make(&f, _i)) return;
    check_scores(&f);
    check_labels(&f);
    check_assignments(&f);
    if (f.p->n * f.p->k <= 1000000) check_proba(&f);
    fixture_free(&f);
}
END_TEST

/* As many features as Fashion-MNIST has, in components close enough that rows are shared. */
START_TEST(seven_hundred_features) {
    fgmm_covariance type = (fgmm_covariance)_i;
    fixture f = {0};
    if (harness_scale() < (covariance_is_matrix(type) ? 4000000 : 400000)) return; /* a slow device */
    f.p = problem_close(9, 60, 3, 784, type);
    f.r = reference_step(f.p);
    f.rows = problem_rows(harness_context(), f.p);
    f.model = problem_model(harness_context(), f.p);
    f.options = (fgmm_compute_options)FGMM_COMPUTE_OPTIONS_INIT;
    double shared = 0;
    for (int64_t i = 0; i < f.p->n * f.p->k; i++) shared += f.r->resp[i] > 0.01 && f.r->resp[i] < 0.99;
    ck_assert_msg(shared > 10, "%g responsibilities tell anything", shared);
    check_proba(&f);
    fixture_free(&f);
}
END_TEST

static int falling(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* A responsibility that about one row in ten has for its second component, of resp [n, 3]; more where fewer have one. */
static float usual_second(const float *resp, size_t n) {
    float *seconds = test_alloc(n, sizeof *seconds);
    for (size_t i = 0; i < n; i++) seconds[i] = resp[3 * i + 1];
    qsort(seconds, n, sizeof *seconds, falling);
    size_t at = n / 10;
    while (at > 0 && !(seconds[at] > 0)) at /= 2;
    float usual = seconds[at];
    free(seconds);
    ck_assert_msg(usual > 0, "no row has a second component");
    return usual;
}

/* Kaldi's top-n and min-post: what is listed sums to one, in proportion; the best is always listed. */
START_TEST(renormalised) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_named("overlapping clusters", (fgmm_covariance)_i);
    if (!p) return;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    fgmm_assign_options plain = FGMM_ASSIGN_OPTIONS_INIT, scaled = FGMM_ASSIGN_OPTIONS_INIT;
    size_t n = (size_t)p->n;
    int32_t *ids = test_alloc(3 * n, sizeof *ids), *again = test_alloc(3 * n, sizeof *again);
    float *resp = test_alloc(3 * n, sizeof *resp), *shares = test_alloc(3 * n, sizeof *shares);
    double listed = 0;
    scaled.renormalise = 1;
    CHECK_OK(ctx, fgmm_assign(ctx, model, rows, 3, &plain, ids, resp, NULL, NULL));
    const float least = usual_second(resp, n);
    scaled.min_resp = least;
    CHECK_OK(ctx, fgmm_assign(ctx, model, rows, 3, &scaled, again, shares, NULL, NULL));
    for (size_t i = 0; i < n; i++) {
        const float *from = resp + 3 * i, *to = shares + 3 * i;
        double sum = 0, kept = 0;
        for (int j = 0; j < 3; j++) kept += j == 0 || from[j] >= least ? from[j] : 0;
        for (int j = 0; j < 3; j++) {
            int stays = j == 0 || from[j] >= least;
            ck_assert_int_eq(again[3 * i + (size_t)j], stays ? ids[3 * i + (size_t)j] : -1);
            EXPECT(fabs(to[j] - (stays ? from[j] / kept : 0)) <= 1e-6, "row %d: %g of %g", (int)i, to[j], kept);
            sum += to[j];
            listed += stays;
        }
        EXPECT(fabs(sum - 1) <= 1e-6, "row %d sums to %.9g", (int)i, sum);
    }
    ck_assert_msg(listed > (double)n && listed < 3 * (double)n, "%g entries are listed: nothing was dropped", listed);
    free(ids);
    free(again);
    free(resp);
    free(shares);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Two components alike in all: the first wins. It is the one of components 0 to 2 that most rows are labelled with. */
START_TEST(ties_go_to_the_first) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(7, 300, 4, 3, (fgmm_covariance)_i, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *untied = problem_model(ctx, p);
    int32_t before[300], count[4] = {0}, first = 0;
    CHECK_OK(ctx, fgmm_predict(ctx, untied, rows, NULL, before, NULL));
    fgmm_model_free(ctx, untied);
    for (int i = 0; i < 300; i++) count[before[i]]++;
    for (int32_t i = 1; i < 3; i++)
        if (count[i] > count[first]) first = i;
    int64_t per = covariance_index(p->covariance, p->d, 1, 0, 0); /* 0 if tied */
    memcpy(p->means + 3 * p->d, p->means + first * p->d, (size_t)p->d * sizeof(double));
    memcpy(p->covariances + 3 * per, p->covariances + first * per, (size_t)per * sizeof(double));
    p->model_weights[3] = p->model_weights[first];
    fgmm_model *model = problem_model(ctx, p);
    for (int engine = 0; engine < 3; engine++) {
        fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
        int32_t label[300], ids[600], seen = 0;
        float resp[600];
        options.engine = (fgmm_engine)engine;
        CHECK_OK(ctx, fgmm_predict(ctx, model, rows, &options, label, NULL));
        fgmm_assign_options assign = FGMM_ASSIGN_OPTIONS_INIT;
        assign.compute = options;
        CHECK_OK(ctx, fgmm_assign(ctx, model, rows, 2, &assign, ids, resp, NULL, NULL));
        for (int i = 0; i < 300; i++) {
            ck_assert_int_ne(label[i], 3);
            ck_assert_int_eq(label[i], ids[2 * i]);
            if (label[i] != first) continue;
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

/* Fast precision is for sums over rows: what is asked of each row is exact, and the report says so. */
START_TEST(fast_runs_exact) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(5, harness_rows(900, 40, 9), 40, 9, FGMM_DIAG, FGMM_F32);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    double *exact = test_alloc((size_t)p->n, sizeof *exact), *fast = test_alloc((size_t)p->n, sizeof *fast);
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    fgmm_report report = FGMM_REPORT_INIT;
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, &options, exact, &report));
    ck_assert_int_eq(report.n_warnings, 0);
    options.precision = FGMM_FAST;
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, &options, fast, &report));
    ck_assert_int_eq(report.precision, FGMM_EXACT);
    ck_assert_int_eq(report.n_warnings, 1);
    ck_assert_ptr_nonnull(strstr(report.warnings[0], "ran exact"));
    ck_assert_int_eq(memcmp(exact, fast, (size_t)p->n * sizeof *exact), 0);
    free(exact);
    free(fast);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Weights that no float holds: the same score to the bit, whatever the blocks. */
START_TEST(weighted_in_blocks) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(13, harness_rows(20000, 6, 4), 6, 4, FGMM_SPHERICAL, FGMM_F32);
    static const int64_t block_rows[] = {0, 1024, 2048, 5120, 16384};
    fgmm_score_result first, score;
    p->weights = test_alloc((size_t)p->n, sizeof *p->weights);
    for (int64_t i = 0; i < p->n; i++) p->weights[i] = exp(-8.0 * (double)(i * 7919 % p->n) / (double)p->n);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    for (int i = 0; i < 5; i++) {
        fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
        options.block_rows = block_rows[i];
        CHECK_OK(ctx, fgmm_score(ctx, model, rows, &options, i ? &score : &first, NULL));
        ck_assert(!i || memcmp(&score, &first, sizeof score) == 0);
    }
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* A row whose squares no float holds is told by double alone; others say so. What floats do hold, they tell. */
START_TEST(beyond_floats) {
    fgmm_context *ctx = harness_context();
    int64_t d = _i % 3 ? 1 + 40 * (_i % 3) : 1;
    problem *p = problem_clusters(11, 500, 5, d, _i / 3 ? FGMM_DIAG : FGMM_SPHERICAL, FGMM_F32);
    fgmm_model *model = problem_model(ctx, p);
    float *x = p->rows;
    for (int large = 0; large < 3; large++) {
        x[271 * p->stride + d - 1] = large == 0 ? 1e16f : large == 1 ? -1e19f : NAN;
        fgmm_rows *rows = problem_rows(ctx, p);
        fgmm_score_result score;
        int32_t labels[500];
        double log_prob[500];
        if (large == 0 || (large == 1 && harness_is_cpu())) {
            CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, NULL, log_prob, NULL));
            CHECK_OK(ctx, fgmm_predict(ctx, model, rows, NULL, labels, NULL));
            ck_assert(log_prob[271] < -1e28 && isfinite(log_prob[271]));
            ck_assert(labels[271] >= 0 && labels[271] < 5);
        } else {
            fgmm_status status = large == 1 ? FGMM_ERR_UNSUPPORTED : FGMM_ERR_DATA;
            CHECK_FAILS(ctx, status, fgmm_score(ctx, model, rows, NULL, &score, NULL));
            CHECK_FAILS(ctx, status, fgmm_score_samples(ctx, model, rows, NULL, log_prob, NULL));
            CHECK_FAILS(ctx, status, fgmm_predict(ctx, model, rows, NULL, labels, NULL));
        }
        fgmm_rows_free(ctx, rows);
    }
    fgmm_model_free(ctx, model);
    problem_free(p);
}
END_TEST

/* Share, mean and covariance of component k in a sample are the model's, within six standard errors. */
static void check_sampled_component(const problem *p, const double *x, const int32_t *label, int64_t n, int64_t k) {
    int64_t d = p->d;
    double count = 0, expected = (double)n * p->model_weights[k], *s1 = test_alloc((size_t)d, sizeof *s1);
    for (int64_t i = 0; i < n; i++) count += label[i] == k;
    EXPECT(fabs(count - expected) < 6 * sqrt(expected), "%g rows of component %d, not about %g", count, (int)k,
           expected);
    for (int64_t a = 0; a < d; a++) {
        double va = covariance_variance(p->covariance, p->covariances, d, k, a);
        for (int64_t i = 0; i < n; i++) s1[a] += label[i] == k ? x[i * d + a] - p->means[k * d + a] : 0;
        EXPECT(fabs(s1[a] / count) < 6 * sqrt(va / count), "mean of component %d is %g off", (int)k, s1[a] / count);
        for (int64_t b = 0; b <= a; b++) {
            double vb = covariance_variance(p->covariance, p->covariances, d, k, b), s2 = 0, cov = a == b ? va : 0;
            if (covariance_is_matrix(p->covariance)) cov = p->covariances[covariance_index(p->covariance, d, k, a, b)];
            for (int64_t i = 0; i < n; i++)
                if (label[i] == k) s2 += (x[i * d + a] - p->means[k * d + a]) * (x[i * d + b] - p->means[k * d + b]);
            /* var of (x_a - m_a)(x_b - m_b) is v_a v_b + cov^2 */
            EXPECT(fabs(s2 / count - cov) < 6 * sqrt((va * vb + cov * cov) / count),
                   "covariance[%d][%d][%d] is %g, not %g", (int)k, (int)a, (int)b, s2 / count, cov);
        }
    }
    free(s1);
}

START_TEST(samples) {
    enum { N = 100000, K = 4, D = 3 };
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(8, 64, K, D, (fgmm_covariance)_i, FGMM_F32);
    fgmm_model *model = problem_model(ctx, p);
    double *x = test_alloc(N * D, sizeof *x), *again = test_alloc(N * D, sizeof *again);
    int32_t *label = test_alloc(N, sizeof *label);
    uint64_t seed = rng_bits(&(rng){(uint64_t)_i});
    CHECK_OK(ctx, fgmm_sample(ctx, model, N, seed, x, label));
    CHECK_OK(ctx, fgmm_sample(ctx, model, N, seed, again, NULL));
    ck_assert_int_eq(memcmp(x, again, N * D * sizeof *x), 0);
    CHECK_OK(ctx, fgmm_sample(ctx, model, N, seed + 1, again, NULL));
    ck_assert_int_ne(memcmp(x, again, N * D * sizeof *x), 0);
    for (int k = 0; k < K; k++) check_sampled_component(p, x, label, N, k);
    free(x);
    free(again);
    free(label);
    fgmm_model_free(ctx, model);
    problem_free(p);
}
END_TEST

static TCase *inference(void) {
    TCase *room = tcase_create("inference");
    tcase_add_loop_test(room, a_problem, 0, COVARIANCE_TYPES * problem_count());
    tcase_add_loop_test(room, seven_hundred_features, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, renormalised, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, ties_go_to_the_first, 0, COVARIANCE_TYPES);
    tcase_add_test(room, fast_runs_exact);
    tcase_add_test(room, weighted_in_blocks);
    tcase_add_loop_test(room, beyond_floats, 0, 6);
    tcase_add_loop_test(room, samples, 0, COVARIANCE_TYPES);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {inference};
    return harness_main("infer", rooms, 1);
}
