/* One iteration of EM against the reference: every case, engine and covariance type, at the contract's tolerance. */
#include "contract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct setting {
    fgmm_precision precision;
    fgmm_engine engine;
    int64_t block_rows;
} setting;

static const setting settings[] = {
    {FGMM_EXACT, FGMM_ENGINE_AUTO, 0},  {FGMM_EXACT, FGMM_ENGINE_SCREEN, 0}, {FGMM_EXACT, FGMM_ENGINE_DENSE, 0},
    {FGMM_FAST, FGMM_ENGINE_SCREEN, 0}, {FGMM_DOUBLE, FGMM_ENGINE_AUTO, 0},  {FGMM_FAST, FGMM_ENGINE_AUTO, 0},
    {FGMM_FAST, FGMM_ENGINE_DENSE, 0},  {FGMM_EXACT, FGMM_ENGINE_SCREEN, 1}, {FGMM_EXACT, FGMM_ENGINE_DENSE, 1},
};
enum { SETTINGS = sizeof settings / sizeof *settings, SHORT_SETTINGS = 4 };

static fgmm_compute_options options_of(const setting *s) {
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    options.precision = s->precision;
    options.engine = s->engine;
    options.block_rows = s->block_rows;
    return options;
}

static void check_setting(const problem *p, const reference *r, const setting *s) {
    fgmm_context *ctx = harness_context();
    fgmm_compute_options options = options_of(s);
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_finalize_options finalize = FGMM_FINALIZE_OPTIONS_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p), *next = NULL;
    fgmm_stats *stats = NULL;

    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, rows, &options, &report));
    ck_assert_int_eq(report.n_rows, p->n);
    double dropped = (s->precision == FGMM_FAST ? 1e-5 : 1e-7) * (double)p->k + 1e-12;
    ck_assert_msg(report.dropped_mass >= 0 && report.dropped_mass <= dropped, "dropped mass %g", report.dropped_mass);
    ck_assert_int_eq(report.precision, s->precision);
    double e = contract_tolerance(r, report.precision);
    contract_check_stats(p, r, stats, e);
    finalize.reg_covar = p->reg_covar > 0 ? p->reg_covar : -1;
    CHECK_OK(ctx, fgmm_stats_finalize(ctx, stats, &finalize, &next));
    contract_check_model(p, r, next, e);
    fgmm_model_free(ctx, next);
    fgmm_model_free(ctx, model);
    fgmm_stats_free(ctx, stats);
    fgmm_rows_free(ctx, rows);
}

/* fgmm_fit for one iteration is the same iteration. */
static void check_fit(const problem *p, const reference *r) {
    fgmm_context *ctx = harness_context();
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p), *next = NULL;
    options.covariance_type = p->covariance;
    options.init_model = model;
    options.max_iter = 1;
    options.tol = -1;
    options.reg_covar = p->reg_covar > 0 ? p->reg_covar : -1;
    fgmm_status status = fgmm_fit(ctx, &next, rows, &options, NULL);
    if (p->k > p->n) {
        ck_assert_int_eq(status, FGMM_ERR_INVALID);
    } else {
        ck_assert_msg(status == FGMM_OK, "%s: %s", p->name, fgmm_context_message(ctx));
        ck_assert_int_eq(fgmm_model_iterations(next), 1);
        contract_check_model(p, r, next, contract_tolerance(r, FGMM_EXACT));
    }
    fgmm_model_free(ctx, next);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
}

/*
 * llvmpipe leaves a loop nest after 65536 rounds in all (LP_MAX_TGSI_LOOP_ITERATIONS of Mesa), without a word: the
 * sums over so many components would come short.
 */
static int device_stops_loops(const problem *p) {
    return p->k > 1000 && (p->covariance == FGMM_TIED || p->covariance == FGMM_FULL) &&
           strstr(fgmm_context_device(harness_context()), "llvmpipe") != NULL;
}

static void check_case(int turn) {
    int which = turn / COVARIANCE_TYPES, covariance = turn % COVARIANCE_TYPES;
    problem *p = harness_takes(turn) ? problem_make(which, (fgmm_covariance)covariance) : NULL;
    if (!p) return;
    if (device_stops_loops(p)) {
        problem_free(p);
        return;
    }
    reference *r = reference_step(p);
    for (int i = 0; i < SETTINGS; i++) {
        if (settings[i].precision == FGMM_DOUBLE && !harness_is_cpu()) continue;
        if (harness_is_short() && i != (which / 2 + covariance) % SHORT_SETTINGS) continue;
        check_setting(p, r, &settings[i]);
    }
    if (!harness_is_short() || which % 4 == 0) check_fit(p, r);
    reference_free(r);
    problem_free(p);
}

START_TEST(one_iteration) {
    check_case(_i);
}
END_TEST

/* Few rows, each a block and a call of its own. */
START_TEST(row_by_row) {
    fgmm_context *ctx = harness_context();
    int64_t n = harness_is_simulated() ? 4 : harness_is_short() ? 12 : 60;
    problem *p = problem_clusters(1, n, 3, 4, (fgmm_covariance)_i, FGMM_F32);
    reference *r = reference_step(p);
    fgmm_finalize_options finalize = FGMM_FINALIZE_OPTIONS_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p), *next = NULL;
    fgmm_stats *stats = NULL;
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    for (int64_t i = 0; i < p->n; i++) {
        fgmm_rows *one = NULL;
        CHECK_OK(ctx, fgmm_rows_slice(ctx, &one, rows, i, 1));
        CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, one, NULL, NULL));
        fgmm_rows_free(ctx, one);
    }
    contract_check_stats(p, r, stats, 1e-5);
    finalize.reg_covar = p->reg_covar > 0 ? p->reg_covar : -1;
    CHECK_OK(ctx, fgmm_stats_finalize(ctx, stats, &finalize, &next));
    contract_check_model(p, r, next, 1e-5);
    fgmm_model_free(ctx, next);
    fgmm_model_free(ctx, model);
    fgmm_stats_free(ctx, stats);
    fgmm_rows_free(ctx, rows);
    reference_free(r);
    problem_free(p);
}
END_TEST

/* Full covariances as large as flashgmm takes them without a word about memory. */
START_TEST(a_thousand_features) {
    if (harness_scale() < 4000000) return; /* a slow device */
    problem *p = problem_clusters(2, 24, 2, 1030, FGMM_FULL, FGMM_F32);
    reference *r = reference_step(p);
    check_setting(p, r, &settings[0]);
    reference_free(r);
    problem_free(p);
}
END_TEST

/* A start so wide that every component has a part in every row: sums that suit the old variances say little of the
 * new ones. */
START_TEST(shrinking) {
    int64_t d = harness_is_simulated() ? 4 : 32; /* as in row_by_row, for a known-answer test takes a minute */
    problem *p = problem_clusters(3, harness_rows(2000, 40, d), 40, d, (fgmm_covariance)_i, FGMM_F32);
    for (int64_t i = 0; i < p->k * (_i == FGMM_SPHERICAL ? 1 : p->d); i++) p->covariances[i] *= 1e5;
    reference *r = reference_step(p);
    for (int i = 0; i < SHORT_SETTINGS; i++)
        if (i == _i || !harness_is_simulated()) check_setting(p, r, &settings[i]); /* else each takes minutes */
    check_fit(p, r);
    reference_free(r);
    problem_free(p);
}
END_TEST

/* Scales the problem so that the mean log-likelihood comes to nearly 0. */
static reference *level(problem *p) {
    reference *r = reference_step(p);
    double scale = exp(r->log_likelihood / r->weight / (double)p->d), *means = p->means, *covariances = p->covariances;
    for (int64_t i = 0; i < p->n * p->stride; i++) ((float *)p->rows)[i] *= (float)scale;
    for (int64_t i = 0; i < p->k * p->d; i++) means[i] *= scale;
    for (int64_t i = 0; i < covariance_size(p->covariance, p->k, p->d); i++) covariances[i] *= scale * scale;
    reference_free(r);
    r = reference_step(p);
    ck_assert(fabs(r->log_likelihood / r->weight) < 1);
    return r;
}

/*
 * A likelihood that terms of some 100 a row nearly cancel in cannot come from sums: as the model says; or as the rows show,
 * which lie twice as far from their components as these are wide.
 */
START_TEST(cancelling) {
    if (harness_is_simulated()) return; /* whose sums others make as well */
    const setting exact = {FGMM_EXACT, FGMM_ENGINE_SCREEN, 0}, fast = {FGMM_FAST, FGMM_ENGINE_SCREEN, 0};
    problem *p = problem_clusters(4, 16, 3, 50, (fgmm_covariance)_i, FGMM_F32);
    for (int narrowed = 0; narrowed < 2; narrowed++) {
        for (int64_t i = 0; narrowed && i < covariance_size(p->covariance, p->k, p->d); i++) p->covariances[i] *= 0.25;
        reference *r = level(p);
        check_setting(p, r, &exact);
        check_setting(p, r, &fast);
        reference_free(r);
    }
    problem_free(p);
}
END_TEST

static TCase *iterations(void) {
    TCase *room = tcase_create("iterations");
    tcase_add_loop_test(room, one_iteration, 0, COVARIANCE_TYPES * problem_count());
    tcase_add_loop_test(room, row_by_row, 0, COVARIANCE_TYPES);
    tcase_add_test(room, a_thousand_features);
    tcase_add_loop_test(room, shrinking, FGMM_SPHERICAL, FGMM_DIAG + 1);
    tcase_add_loop_test(room, cancelling, FGMM_SPHERICAL, FGMM_DIAG + 1);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {iterations};
    return harness_main("estep", rooms, 1);
}
