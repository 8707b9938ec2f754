/* What the tests of streamed rows share: the rows, a short fit of them, and files of their own. */
#ifndef FGMM_TESTS_STREAMED_H
#define FGMM_TESTS_STREAMED_H

#include "data_sets.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 9 * 1024 + 77, D = 5, K = 4 };

static problem *p;
static fgmm_model *start;

static inline void set_up(void) {
    p = problem_clusters(71, N, K, D, FGMM_DIAG, FGMM_F32);
    start = problem_model(harness_context(), p);
}

static inline void tear_down(void) {
    fgmm_model_free(harness_context(), start);
    problem_free(p);
}

static inline const float *row_of(int64_t i) {
    return (const float *)p->rows + i * p->stride;
}

/* ---- results ---- */

typedef struct result {
    double weights[K], means[K * D], covariances[K * D], lower_bound;
} result;

static inline fgmm_fit_options fit_options(int64_t block_rows) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.init_model = start;
    options.max_iter = 4;
    options.tol = -1;
    options.compute.block_rows = block_rows;
    return options;
}

static inline result fit_of(fgmm_context *ctx, const fgmm_rows *rows, int64_t block_rows, fgmm_report *report) {
    result r;
    fgmm_model *model = NULL;
    fgmm_fit_options options = fit_options(block_rows);
    memset(&r, 0, sizeof r);
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, report));
    memcpy(r.weights, fgmm_model_weights(model), sizeof r.weights);
    memcpy(r.means, fgmm_model_means(model), sizeof r.means);
    memcpy(r.covariances, fgmm_model_covariances(model), sizeof r.covariances);
    r.lower_bound = fgmm_model_lower_bound(model);
    fgmm_model_free(ctx, model);
    return r;
}

static inline result fit_in_memory(void) {
    fgmm_rows *rows = problem_rows(harness_context(), p);
    result r = fit_of(harness_context(), rows, 0, NULL);
    fgmm_rows_free(harness_context(), rows);
    return r;
}

static inline fgmm_context *context_with(size_t host_memory, fgmm_progress_fn progress, void *user) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_context *ctx = NULL;
    options.host_memory_limit = host_memory;
    options.progress = progress;
    options.progress_user = user;
    ck_assert_int_eq(harness_open(&ctx, &options), FGMM_OK);
    return ctx;
}

static inline const char *in_scratch(const char *name) {
    static char paths[8][600];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", harness_scratch(), name);
    return path;
}

/* Rows from .. to-1 in an .npy of the test's own folder. */
static inline const char *save_part(const char *name, int64_t from, int64_t to) {
    const char *path = in_scratch(name);
    fgmm_array array = {NULL, FGMM_F32, 2, {to - from, D, 0}, NULL};
    float *packed = test_alloc((size_t)(to - from) * D, sizeof *packed);
    for (int64_t i = from; i < to; i++) memcpy(packed + (i - from) * D, row_of(i), D * sizeof *packed);
    array.data = packed;
    CHECK_OK(harness_context(), fgmm_arrays_save(harness_context(), path, &array, 1));
    free(packed);
    return path;
}

static inline const char *save_rows(const char *name) {
    return save_part(name, 0, N);
}

#define SAME(a, b)                                                                                                     \
    ck_assert_msg(memcmp(&(a), &(b), sizeof(result)) == 0, "results differ: %.17g, %.17g", (a).lower_bound,            \
                  (b).lower_bound)

#endif
