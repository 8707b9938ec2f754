/* One iteration of EM against the reference: every case, engine and covariance type, at the contract's tolerance. */
#include "contract.h"

#include <math.h>
#include <stdlib.h>

typedef struct setting {
    fgmm_precision precision;
    fgmm_engine engine;
    int64_t block_rows;
} setting;

static const setting settings[] = {
    {FGMM_EXACT, FGMM_ENGINE_AUTO, 0},  {FGMM_EXACT, FGMM_ENGINE_SCREEN, 0}, {FGMM_EXACT, FGMM_ENGINE_DENSE, 0},
    {FGMM_DOUBLE, FGMM_ENGINE_AUTO, 0}, {FGMM_FAST, FGMM_ENGINE_AUTO, 0},    {FGMM_EXACT, FGMM_ENGINE_SCREEN, 1},
    {FGMM_EXACT, FGMM_ENGINE_DENSE, 1},
};
enum { SETTINGS = sizeof settings / sizeof *settings, SHORT_SETTINGS = 3 };

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
    ck_assert_msg(report.dropped_mass >= 0 && report.dropped_mass <= 1e-7 * (double)p->k + 1e-12, "dropped mass %g",
                  report.dropped_mass);
    /* More than was asked for is allowed, less is not. */
    ck_assert(report.precision == s->precision || (s->precision == FGMM_FAST && report.precision == FGMM_EXACT));
    double e = contract_tolerance(r, report.precision);
    contract_check_stats(p, r, stats, e);
    finalize.reg_covar = -1;
    CHECK_OK(ctx, fgmm_stats_finalize(ctx, stats, &finalize, &next));
    contract_check_model(p, r, next, e);
    fgmm_model_free(ctx, next);
    fgmm_model_free(ctx, model);
    fgmm_stats_free(ctx, stats);
    fgmm_rows_free(ctx, rows);
}

static void check_case(int which, int diag) {
    problem *p = harness_takes(2 * which + diag) ? problem_make(which, diag) : NULL;
    if (!p) return;
    reference *r = reference_step(p);
    for (int i = 0; i < SETTINGS; i++) {
        if (settings[i].precision == FGMM_DOUBLE && !harness_is_cpu()) continue;
        if (harness_is_short() && i != (which / 2 + diag) % SHORT_SETTINGS) continue;
        check_setting(p, r, &settings[i]);
    }
    reference_free(r);
    problem_free(p);
}

START_TEST(spherical_iteration) {
    check_case(_i, 0);
}
END_TEST

START_TEST(diagonal_iteration) {
    check_case(_i, 1);
}
END_TEST

/* fgmm_fit for one iteration is the same iteration. */
START_TEST(fit_is_the_same_iteration) {
    fgmm_context *ctx = harness_context();
    problem *p = !harness_takes(_i) || (harness_is_short() && _i / 2 % 4) ? NULL : problem_make(_i / 2, _i % 2);
    if (!p) return;
    reference *r = reference_step(p);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p), *next = NULL;
    options.covariance_type = p->diag ? FGMM_DIAG : FGMM_SPHERICAL;
    options.init_model = model;
    options.max_iter = 1;
    options.tol = -1;
    options.reg_covar = -1;
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
    reference_free(r);
    problem_free(p);
}
END_TEST

/* Sixty rows, each a block and a call of its own. */
START_TEST(row_by_row) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_clusters(1, 60, 3, 4, _i, FGMM_F32);
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
    finalize.reg_covar = -1;
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

static TCase *iterations(void) {
    TCase *room = tcase_create("iterations");
    tcase_add_loop_test(room, spherical_iteration, 0, problem_count());
    tcase_add_loop_test(room, diagonal_iteration, 0, problem_count());
    tcase_add_loop_test(room, fit_is_the_same_iteration, 0, 2 * problem_count());
    tcase_add_loop_test(room, row_by_row, 0, 2);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {iterations};
    return harness_main("estep", rooms, 1);
}
