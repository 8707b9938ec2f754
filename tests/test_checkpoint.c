/* Fits that are stopped and go on: to the same bits as one that was not, and only as the fit they were. */
#include "contract.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const char *checkpoint_path(void) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/fit.npz", harness_scratch());
    return path;
}

/* Several restarts over rows that are shared, with components that die. */
static fgmm_fit_options restless(const problem *p) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.init = FGMM_INIT_RANDOM_FROM_DATA;
    options.n_init = 3;
    options.max_iter = 6;
    options.tol = -1;
    options.reg_covar = 1e-3;
    options.seed = 5;
    options.on_dead = FGMM_RESEED;
    options.checkpoint_seconds = -1;
    return options;
}

/* Stops at the n-th call of the callback, whatever that falls into. */
static int stop_after(void *user, const fgmm_progress *progress) {
    int *calls_left = user;
    (void)progress;
    return (*calls_left)-- == 0;
}

/* Stopped again and again, each time in another context, a fit comes to the model of one that was left alone. */
START_TEST(goes_on_to_the_same_bits) {
    if (!harness_is_cpu() && !harness_takes(_i)) return;
    fgmm_context *ctx = harness_context();
    const int64_t k = 12, d = 9;
    problem *p = problem_close(300 + (uint64_t)_i, harness_rows(3000, k, d), k, d, (fgmm_covariance)_i);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = restless(p);
    fgmm_model *whole = NULL, *model = NULL;
    rng random = rng_make(310 + (uint64_t)_i);
    unlink(checkpoint_path());
    CHECK_OK(ctx, fgmm_fit(ctx, &whole, rows, &options, NULL));
    options.checkpoint = checkpoint_path();
    int stops = 0;
    for (int turn = 0; !model; turn++) {
        int calls_left = turn < 200 ? (harness_is_cpu() ? 1 : 8) + (int)(rng_bits(&random) % 8) : -1;
        fgmm_context_options watched = FGMM_CONTEXT_OPTIONS_INIT;
        fgmm_context *other = NULL;
        watched.progress = stop_after;
        watched.progress_user = &calls_left;
        ck_assert_int_eq(harness_open(&other, &watched), FGMM_OK);
        fgmm_rows *again = problem_rows(other, p);
        fgmm_status status = fgmm_fit(other, &model, again, &options, NULL);
        if (status == FGMM_ERR_CANCELLED) {
            stops++;
            ck_assert_str_ne(fgmm_context_message(other), "");
            fgmm_model_free(other, model);
            model = NULL;
        } else {
            ck_assert_msg(status == FGMM_OK, "%s", fgmm_context_message(other));
            contract_check_same(whole, model);
            fgmm_model_free(other, model);
            fgmm_rows_free(other, again);
            fgmm_context_free(other);
            break;
        }
        fgmm_rows_free(other, again);
        fgmm_context_free(other);
    }
    ck_assert_int_ge(stops, 1); /* 18 iterations, each with a call at least */
    /* One that is done is done: the same model at once. */
    fgmm_report report = FGMM_REPORT_INIT;
    model = NULL;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, &report));
    contract_check_same(whole, model);
    ck_assert_int_eq(report.n_warnings, 0);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, whole);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* A checkpoint is a model too; with one restart the fit may be told to go on for longer, or to stop at a tolerance. */
START_TEST(goes_on_for_longer) {
    if (!harness_is_cpu() && !harness_takes(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_close(320 + (uint64_t)_i, 1500, 4, 3, (fgmm_covariance)_i);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = restless(p);
    fgmm_model *whole = NULL, *model = NULL, *held = NULL;
    unlink(checkpoint_path());
    options.n_init = 1;
    options.max_iter = 300;
    options.tol = 1e-4;
    CHECK_OK(ctx, fgmm_fit(ctx, &whole, rows, &options, NULL));
    options.checkpoint = checkpoint_path();
    options.max_iter = 3;
    options.tol = -1;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    CHECK_OK(ctx, fgmm_model_load(ctx, &held, checkpoint_path()));
    contract_check_same(model, held);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, held);
    options.max_iter = 300;
    options.tol = 1e-4;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    contract_check_same(whole, model);
    fgmm_model_free(ctx, model);
    options.max_iter = 2;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_fit(ctx, &model, rows, &options, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "beyond max_iter = 2"));
    fgmm_model_free(ctx, whole);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

static void refused(const problem *p, const fgmm_fit_options *options, const char *words) {
    fgmm_context *ctx = harness_context();
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = NULL;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_fit(ctx, &model, rows, options, NULL));
    ck_assert_ptr_null(model);
    ck_assert_msg(strstr(fgmm_context_message(ctx), words) && strstr(fgmm_context_message(ctx), "fit.npz"),
                  "\"%s\" lacks \"%s\"", fgmm_context_message(ctx), words);
    fgmm_rows_free(ctx, rows);
}

/* Other options, other rows: named, and the checkpoint stays as it is. */
START_TEST(belongs_to_one_fit) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_close(330, 900, 4, 3, FGMM_DIAG);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = restless(p);
    fgmm_model *model = NULL;
    unlink(checkpoint_path());
    options.checkpoint = checkpoint_path();
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    static const char *const words[] = {
        "n_components", "covariance_type", "n_init",         "max_iter",    "tol",  "reg_covar", "seed",
        "on_dead",      "precision",       "starting model", "init_sample", "init", "seed"};
    for (int i = 0; i < (int)(sizeof words / sizeof *words); i++) {
        fgmm_fit_options other = options;
        if (i == 0) other.n_components = 5;
        if (i == 1) other.covariance_type = FGMM_SPHERICAL;
        if (i == 2) other.n_init = 2;
        if (i == 3) other.max_iter = 7;
        if (i == 4) other.tol = 1e-9;
        if (i == 5) other.reg_covar = 2e-3;
        if (i == 6) other.seed = 6;
        if (i == 7) other.on_dead = FGMM_KEEP;
        if (i == 8) other.compute.precision = FGMM_FAST;
        if (i == 9) other.init_model = model;
        if (i == 9) other.n_init = 3;
        if (i == 10) other.init_sample = 800;
        if (i == 11) other.init = FGMM_INIT_KMEANS;
        if (i == 12) other.seed = options.seed + ((uint64_t)1 << 60);
        refused(p, &other, i == 9 ? "init" : words[i]);
    }
    problem *fewer = problem_close(330, 890, 4, 3, FGMM_DIAG);
    refused(fewer, &options, "number of usable rows is 900, here it is 890");
    problem *other = problem_close(331, 900, 4, 3, FGMM_DIAG);
    refused(other, &options, "made of other rows");
    problem *wider = problem_close(330, 900, 4, 4, FGMM_DIAG);
    refused(wider, &options, "features");
    fgmm_model *again = NULL;
    CHECK_OK(ctx, fgmm_fit(ctx, &again, rows, &options, NULL));
    contract_check_same(model, again);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, again);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
    problem_free(fewer);
    problem_free(other);
    problem_free(wider);
}
END_TEST

static unsigned char *take_bytes(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    unsigned char *bytes = test_alloc(1 << 16, 1);
    *size = fread(bytes, 1, 1 << 16, file);
    ck_assert_uint_lt(*size, 1 << 16);
    fclose(file);
    return bytes;
}

static void put_bytes(const char *path, const unsigned char *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

/* Whatever byte is hurt, and wherever the file ends: an error that names the file, or the same model. */
START_TEST(damaged) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_close(340, 60, 2, 2, FGMM_SPHERICAL);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = restless(p);
    fgmm_model *whole = NULL, *model = NULL;
    rng random = rng_make(341);
    size_t size;
    int refusals = 0, turns = harness_is_cpu() ? 600 : 8;
    unlink(checkpoint_path());
    options.checkpoint = checkpoint_path();
    CHECK_OK(ctx, fgmm_fit(ctx, &whole, rows, &options, NULL));
    unsigned char *good = take_bytes(checkpoint_path(), &size), *bad = test_alloc(size, 1);
    for (int turn = 0; turn < turns; turn++) {
        size_t at = (size_t)(rng_bits(&random) % size), left = turn % 4 == 0 ? at : size;
        memcpy(bad, good, size);
        bad[at] ^= (unsigned char)(1 << rng_bits(&random) % 8);
        put_bytes(checkpoint_path(), bad, left);
        fgmm_status status = fgmm_fit(ctx, &model, rows, &options, NULL);
        if (status == FGMM_OK) {
            contract_check_same(whole, model);
            fgmm_model_free(ctx, model);
        } else {
            refusals++;
            ck_assert_msg(strstr(fgmm_context_message(ctx), "fit.npz"), "byte %zu: %s", at, fgmm_context_message(ctx));
            ck_assert_msg(status == FGMM_ERR_FORMAT || status == FGMM_ERR_INVALID || status == FGMM_ERR_UNSUPPORTED ||
                              status == FGMM_ERR_MEMORY,
                          "byte %zu: %s", at, fgmm_status_name(status));
        }
        ck_assert(left == size || status != FGMM_OK);
        model = NULL;
    }
    ck_assert_int_gt(refusals, turns / (turns < 100 ? 4 : 2)); /* few turns may well meet bytes that say nothing */
    free(good);
    free(bad);
    fgmm_model_free(ctx, whole);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* A disk that fills: the fit warns and goes on, and the old checkpoint stays. */
START_TEST(full_disk) {
    fgmm_context *ctx = harness_context();
    problem *p = problem_close(350, 500, 40, 6, FGMM_DIAG);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = restless(p);
    fgmm_model *model = NULL, *whole = NULL;
    fgmm_report report = FGMM_REPORT_INIT;
    struct rlimit limit, small;
    size_t size, size_after;
    unlink(checkpoint_path());
    options.n_init = 1;
    CHECK_OK(ctx, fgmm_fit(ctx, &whole, rows, &options, NULL));
    options.checkpoint = checkpoint_path();
    options.max_iter = 2;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    fgmm_model_free(ctx, model);
    unsigned char *before = take_bytes(checkpoint_path(), &size);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = (rlim_t)(size / 2);
    options.max_iter = 6;
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    fgmm_status status = fgmm_fit(ctx, &model, rows, &options, &report);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, old);
    ck_assert_msg(status == FGMM_OK, "%s", fgmm_context_message(ctx));
    contract_check_same(whole, model);
    ck_assert_int_ge(report.n_warnings, 4);
    int said = 0;
    for (int i = 0; i < 8; i++) said |= strstr(report.warnings[i], "no checkpoint of iteration 3: ") != NULL;
    ck_assert_msg(said, "warned of \"%s\"", report.warnings[0]);
    unsigned char *after = take_bytes(checkpoint_path(), &size_after);
    ck_assert_uint_eq(size, size_after);
    ck_assert_mem_eq(before, after, size);
    fgmm_model_free(ctx, model);
    /* With room again it goes on from there. */
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    contract_check_same(whole, model);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, whole);
    free(before);
    free(after);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Where none can be written is found out before the work. */
START_TEST(nowhere_to_write) {
    problem *p = problem_close(360, 500, 4, 6, FGMM_DIAG);
    fgmm_context *ctx = harness_context();
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = restless(p);
    fgmm_model *model = NULL;
    char path[4200];
    snprintf(path, sizeof path, "%s/nowhere/fit.npz", harness_scratch());
    options.checkpoint = path;
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_fit(ctx, &model, rows, &options, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "nowhere"));
    options.checkpoint = checkpoint_path();
    options.checkpoint_seconds = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_fit(ctx, &model, rows, &options, NULL));
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

static TCase *checkpoints(void) {
    TCase *room = tcase_create("checkpoints");
    tcase_add_loop_test(room, goes_on_to_the_same_bits, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, goes_on_for_longer, 0, COVARIANCE_TYPES);
    tcase_add_test(room, belongs_to_one_fit);
    tcase_add_test(room, damaged);
    tcase_add_test(room, full_disk);
    tcase_add_test(room, nowhere_to_write);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {checkpoints};
    return harness_main("checkpoint", rooms, 1);
}
