/* One fit on several devices of one process: the device under test and the CPU, each with its share of the rows. */
#include "contract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 3 };

/* Contexts over shares of a problem's rows: on the device under test, but for the last, which is on the CPU. */
typedef struct team {
    int n;
    fgmm_context *contexts[MOST];
    fgmm_rows *rows[MOST];
    fgmm_report reports[MOST];
} team;

static team team_make(const problem *p, int n, fgmm_progress_fn progress) {
    team t = {.n = n};
    for (int i = 0; i < n; i++) {
        int64_t from = p->n * i * i / (n * n), to = p->n * (i + 1) * (i + 1) / (n * n);
        const char *data = (const char *)p->rows + (size_t)(from * p->stride) * fgmm_dtype_size(p->type);
        fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
        options.threads = 1;
        options.device = "cpu";
        if (i == 1) options.progress = progress;
        if (i == n - 1)
            CHECK_OK(harness_context(), fgmm_context_create(&t.contexts[i], &options));
        else
            CHECK_OK(harness_context(), harness_open(&t.contexts[i], &options));
        CHECK_OK(t.contexts[i],
                 fgmm_rows_from_memory(t.contexts[i], &t.rows[i], data, p->type, to - from, p->d, p->stride));
        t.reports[i] = (fgmm_report)FGMM_REPORT_INIT;
    }
    return t;
}

static void team_free(team *t, fgmm_model *model) {
    fgmm_model_free(t->contexts[0], model);
    for (int i = 0; i < t->n; i++) {
        fgmm_rows_free(t->contexts[i], t->rows[i]);
        fgmm_context_free(t->contexts[i]);
    }
}

static fgmm_status team_fit(team *t, fgmm_model **out, const fgmm_fit_options *options) {
    return fgmm_fit_devices(t->contexts, t->n, out, (const fgmm_rows *const *)t->rows, options, t->reports);
}

static fgmm_fit_options some_iterations(const problem *p, const fgmm_model *start) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.init_model = start;
    options.max_iter = 5;
    options.tol = -1;
    options.reg_covar = 1e-3;
    options.seed = 3;
    return options;
}

/* The devices add up what one would, each within the contract, and the same bits come again; seeded too, where the
 * devices are alike: else rounding may decide on another seed. */
START_TEST(same_as_one) {
    if (!harness_is_cpu() && _i >= COVARIANCE_TYPES) return;
    fgmm_context *ctx = harness_context();
    problem *p =
        problem_close(500 + (uint64_t)_i, harness_rows(3000, 8, 5), 8, 5, (fgmm_covariance)(_i % COVARIANCE_TYPES));
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *one = NULL, *many = NULL, *again = NULL;
    int seeded = _i >= COVARIANCE_TYPES;
    fgmm_fit_options options = some_iterations(p, seeded ? NULL : start);
    CHECK_OK(ctx, fgmm_fit(ctx, &one, rows, &options, NULL));
    for (int n = harness_is_slow() ? 2 : 1; n <= (harness_is_slow() ? 2 : MOST); n++) {
        team t = team_make(p, n, NULL);
        CHECK_OK(t.contexts[0], team_fit(&t, &many, &options));
        double off = fabs(fgmm_model_lower_bound(many) - fgmm_model_lower_bound(one));
        EXPECT(off <= (harness_is_cpu() ? 1e-10 : 1e-5) * fmax(1, fabs(fgmm_model_lower_bound(one))),
               "%d devices: %.17g, one: %.17g", n, fgmm_model_lower_bound(many), fgmm_model_lower_bound(one));
        CHECK_OK(t.contexts[0], team_fit(&t, &again, &options));
        contract_check_same(many, again);
        for (int i = 0; i < n; i++) {
            ck_assert_str_eq(t.reports[i].device, fgmm_context_device(t.contexts[i]));
            ck_assert_int_eq(t.reports[i].n_iter, 5);
        }
        fgmm_model_free(t.contexts[0], again);
        team_free(&t, many);
    }
    fgmm_model_free(ctx, one);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

static int stop_at_two(void *user, const fgmm_progress *progress) {
    (void)user;
    return strcmp(progress->stage, "fit") == 0 && progress->iteration >= 2;
}

/* What one device fails with, or is cancelled with, ends all. */
START_TEST(one_fails) {
    problem *p = problem_clusters(520, harness_rows(900, 4, 5), 4, 5, FGMM_DIAG, FGMM_F32);
    fgmm_fit_options options = some_iterations(p, NULL);
    fgmm_model *model = NULL;
    float *hurt = (float *)p->rows + (p->n / 3) * p->stride, kept = *hurt;
    *hurt = INFINITY;
    team t = team_make(p, 3, stop_at_two);
    ck_assert_int_eq(team_fit(&t, &model, &options), FGMM_ERR_DATA);
    ck_assert_msg(strstr(fgmm_context_message(t.contexts[0]), "rank 1: "), "%s", fgmm_context_message(t.contexts[0]));
    ck_assert_ptr_null(model);
    *hurt = kept;
    ck_assert_int_eq(team_fit(&t, &model, &options), FGMM_ERR_CANCELLED);
    ck_assert_ptr_nonnull(model);
    ck_assert_int_eq(fgmm_model_iterations(model), 2);
    team_free(&t, model);
    problem_free(p);
}
END_TEST

START_TEST(refused) {
    problem *p = problem_clusters(521, 300, 3, 4, FGMM_DIAG, FGMM_F32);
    fgmm_fit_options options = some_iterations(p, NULL);
    fgmm_model *model = NULL;
    team t = team_make(p, 2, NULL);
    const fgmm_rows *const *rows = (const fgmm_rows *const *)t.rows;
    fgmm_context *twice[2] = {t.contexts[0], t.contexts[0]};
    ck_assert_int_eq(fgmm_fit_devices(NULL, 2, &model, rows, &options, NULL), FGMM_ERR_INVALID);
    ck_assert_int_eq(fgmm_fit_devices(t.contexts, 0, &model, rows, &options, NULL), FGMM_ERR_INVALID);
    CHECK_FAILS(t.contexts[0], FGMM_ERR_INVALID, fgmm_fit_devices(t.contexts, 2, &model, rows, NULL, NULL));
    CHECK_FAILS(t.contexts[0], FGMM_ERR_INVALID, fgmm_fit_devices(twice, 2, &model, rows, &options, NULL));
    options.ranks.size = 2;
    CHECK_FAILS(t.contexts[0], FGMM_ERR_INVALID, fgmm_fit_devices(t.contexts, 2, &model, rows, &options, NULL));
    options.ranks.size = 0;
    options.n_components = 301;
    CHECK_FAILS(t.contexts[0], FGMM_ERR_INVALID, fgmm_fit_devices(t.contexts, 2, &model, rows, &options, NULL));
    ck_assert_ptr_null(model);
    team_free(&t, NULL);
    problem_free(p);
}
END_TEST

static TCase *devices(void) {
    TCase *room = tcase_create("devices");
    tcase_add_loop_test(room, same_as_one, 0, 2 * COVARIANCE_TYPES);
    tcase_add_test(room, one_fails);
    tcase_add_test(room, refused);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {devices};
    return harness_main("devices", rooms, 1);
}
