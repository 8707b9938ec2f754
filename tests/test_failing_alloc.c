/*
 * Memory that runs out at the n-th request, for every n: nothing crashes, nothing leaks, and the call says
 * FGMM_ERR_MEMORY or, where it could do without, succeeds. Only our own allocator fails; a third party's malloc may
 * abort by its own choice.
 */
#include "data_sets.h"

#include <flashgmm/ivf.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct scarce {
    atomic_long asked, live, foreign;
    long fail_at; /* this request and none other; 0: never */
} scarce;

typedef struct stamp {
    scarce *owner;
    char pad[56];
} stamp;

static void *scarce_alloc(void *user, size_t bytes) {
    scarce *s = user;
    if (atomic_fetch_add(&s->asked, 1) + 1 == s->fail_at) return NULL;
    stamp *block = malloc(sizeof *block + bytes);
    if (!block) return NULL;
    block->owner = s;
    atomic_fetch_add(&s->live, 1);
    return block + 1;
}

static void scarce_free(void *user, void *pointer) {
    scarce *s = user;
    if (!pointer) return;
    stamp *block = (stamp *)pointer - 1;
    if (block->owner != s) atomic_fetch_add(&s->foreign, 1);
    atomic_fetch_sub(&s->live, 1);
    free(block);
}

typedef fgmm_status (*task)(fgmm_context *ctx, const problem *p);

static fgmm_status rows_and_model(fgmm_context *ctx, const problem *p, fgmm_rows **rows, fgmm_model **model) {
    fgmm_status status = fgmm_rows_from_memory(ctx, rows, p->rows, p->type, p->n, p->d, p->stride);
    if (status != FGMM_OK) return status;
    return fgmm_model_create(ctx, model, p->covariance, p->k, p->d, p->model_weights, p->means, p->covariances);
}

static fgmm_status fit_from(fgmm_context *ctx, const problem *p, fgmm_init init) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.init = init;
    options.n_init = 2;
    options.max_iter = 2;
    options.tol = -1;
    options.compute.block_rows = 1024;
    fgmm_status status = fgmm_rows_from_memory(ctx, &rows, p->rows, p->type, p->n, p->d, p->stride);
    if (status == FGMM_OK) status = fgmm_fit(ctx, &model, rows, &options, NULL);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status fit_kmeanspp(fgmm_context *ctx, const problem *p) {
    return fit_from(ctx, p, FGMM_INIT_KMEANSPP);
}
static fgmm_status fit_kmeans(fgmm_context *ctx, const problem *p) {
    return fit_from(ctx, p, FGMM_INIT_KMEANS);
}
static fgmm_status fit_random(fgmm_context *ctx, const problem *p) {
    return fit_from(ctx, p, FGMM_INIT_RANDOM);
}
static fgmm_status fit_rows(fgmm_context *ctx, const problem *p) {
    return fit_from(ctx, p, FGMM_INIT_RANDOM_FROM_DATA);
}

static fgmm_status infer(fgmm_context *ctx, const problem *p) {
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    size_t n = (size_t)p->n;
    double *log_prob = test_alloc(n, sizeof *log_prob), *x = test_alloc(10 * (size_t)p->d, sizeof *x);
    int32_t *ids = test_alloc(2 * n, sizeof *ids);
    float *resp = test_alloc(2 * n, sizeof *resp), *proba = test_alloc(n * (size_t)p->k, sizeof *proba);
    fgmm_status status = rows_and_model(ctx, p, &rows, &model);
    if (status == FGMM_OK) status = fgmm_score_samples(ctx, model, rows, NULL, log_prob, NULL);
    if (status == FGMM_OK) status = fgmm_predict(ctx, model, rows, NULL, ids, NULL);
    if (status == FGMM_OK) status = fgmm_assign(ctx, model, rows, 2, NULL, ids, resp, log_prob, NULL);
    if (status == FGMM_OK) status = fgmm_predict_proba(ctx, model, rows, NULL, proba, log_prob, NULL);
    if (status == FGMM_OK) status = fgmm_sample(ctx, model, 10, 1, x, NULL);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    free(log_prob);
    free(x);
    free(ids);
    free(resp);
    free(proba);
    return status;
}

static fgmm_status save_and_load(fgmm_context *ctx, const problem *p) {
    char path[512];
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL, *loaded = NULL;
    fgmm_stats *stats = NULL, *again = NULL;
    fgmm_status status = rows_and_model(ctx, p, &rows, &model);
    snprintf(path, sizeof path, "%s/model.npz", harness_scratch());
    if (status == FGMM_OK) status = fgmm_model_save(ctx, model, path);
    if (status == FGMM_OK) status = fgmm_model_load(ctx, &loaded, path);
    if (status == FGMM_OK) status = fgmm_stats_create(ctx, &stats, model);
    if (status == FGMM_OK) status = fgmm_stats_accumulate(ctx, stats, rows, NULL, NULL);
    snprintf(path, sizeof path, "%s/stats.npz", harness_scratch());
    if (status == FGMM_OK) status = fgmm_stats_save(ctx, stats, path);
    if (status == FGMM_OK) status = fgmm_stats_load(ctx, &again, path);
    if (status == FGMM_OK) status = fgmm_stats_merge(ctx, again, stats);
    fgmm_stats_free(ctx, stats);
    fgmm_stats_free(ctx, again);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, loaded);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status read_file(fgmm_context *ctx, const problem *p) {
    fgmm_rows *rows = NULL, *slice = NULL;
    fgmm_model *model = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    (void)p;
    options.n_components = 2;
    options.max_iter = 1;
    fgmm_status status = fgmm_rows_open(ctx, &rows, harness_path("data/iris.npy"), NULL);
    if (status == FGMM_OK) status = fgmm_rows_slice(ctx, &slice, rows, 10, 100);
    if (status == FGMM_OK) status = fgmm_fit(ctx, &model, slice, &options, NULL);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, slice);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status hard_assignment(fgmm_context *ctx, const problem *p) {
    fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    options.n_components = p->k;
    options.n_init = 2;
    options.max_iter = 2;
    fgmm_status status = fgmm_rows_from_memory(ctx, &rows, p->rows, p->type, p->n, p->d, p->stride);
    if (status == FGMM_OK) status = fgmm_kmeans(ctx, &model, rows, &options, NULL, NULL, NULL);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status by_batches(fgmm_context *ctx, const problem *p) {
    char path[512];
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_online *online = NULL, *again = NULL;
    fgmm_status status = rows_and_model(ctx, p, &rows, &model);
    snprintf(path, sizeof path, "%s/online.npz", harness_scratch());
    if (status == FGMM_OK) status = fgmm_online_create(ctx, &online, model, NULL);
    if (status == FGMM_OK) status = fgmm_partial_fit(ctx, online, rows, NULL);
    if (status == FGMM_OK) status = fgmm_online_save(ctx, online, path);
    if (status == FGMM_OK) status = fgmm_online_load(ctx, &again, path, NULL);
    fgmm_online_free(ctx, online);
    fgmm_online_free(ctx, again);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status starts(fgmm_context *ctx, const problem *p) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL, *first = NULL;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    fgmm_status status = fgmm_rows_from_memory(ctx, &rows, p->rows, p->type, p->n, p->d, p->stride);
    if (status == FGMM_OK) status = fgmm_initial_model(ctx, &first, rows, &options);
    /* Covariances are as good precisions as any. */
    if (status == FGMM_OK)
        status = fgmm_model_create_from_precisions(ctx, &model, p->covariance, p->k, p->d, p->model_weights, p->means,
                                                   p->covariances);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, first);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status searched_elsewhere(fgmm_context *ctx, const problem *p) {
    static const char *const names[] = {"found.ivecs", "found.ibin", "found.npy"};
    const int64_t ids[4] = {1, 2, 3, -1};
    const float distances[4] = {1, 2, 3, 4};
    const fgmm_neighbors found = {2, 2, ids, distances, NULL};
    char path[512];
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_status status = rows_and_model(ctx, p, &rows, &model);
    snprintf(path, sizeof path, "%s/means.faiss", harness_scratch());
    if (status == FGMM_OK) status = fgmm_model_export_faiss(ctx, model, path, FGMM_ANGULAR);
    for (int i = 0; i < 3 && status == FGMM_OK; i++) {
        fgmm_neighbors *again = NULL;
        snprintf(path, sizeof path, "%s/%s", harness_scratch(), names[i]);
        status = fgmm_neighbors_save(ctx, path, &found);
        if (status == FGMM_OK) status = fgmm_neighbors_load(ctx, &again, path, NULL);
        fgmm_neighbors_free(ctx, again);
    }
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    return status;
}

/* An index of rows of length 1 in up to three lists: trained, filled, changed, saved, loaded, searched, copied to the
 * device and searched there. */
static fgmm_status index_of(fgmm_context *ctx, const problem *p) {
    char path[512];
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_ivf *index = NULL, *again = NULL;
    fgmm_ivf_searcher *searcher = NULL;
    fgmm_ivf_lists *lists = NULL;
    fgmm_ivf_train_options train = FGMM_IVF_TRAIN_OPTIONS_INIT;
    fgmm_ivf_options options = FGMM_IVF_OPTIONS_INIT;
    fgmm_ivf_search_options search = FGMM_IVF_SEARCH_OPTIONS_INIT;
    int64_t *ids = test_alloc((size_t)p->n * 3, sizeof *ids);
    train.n_lists = p->k;
    train.method = (fgmm_ivf_method)p->covariance;
    train.metric = options.metric = FGMM_ANGULAR;
    train.kmeans_iter = train.em_iter = 1;
    options.max_lists = 3;
    search.target_recall = 0.9;
    snprintf(path, sizeof path, "%s/index.ivf", harness_scratch());
    fgmm_status status = fgmm_rows_from_memory(ctx, &rows, p->rows, p->type, p->n, p->d, p->stride);
    if (status == FGMM_OK) status = fgmm_ivf_train(ctx, &model, rows, &train, NULL);
    if (status == FGMM_OK) status = fgmm_ivf_assign(ctx, &lists, model, rows, NULL, NULL);
    if (status == FGMM_OK) status = fgmm_ivf_create(ctx, &index, model, &options);
    if (status == FGMM_OK) status = fgmm_ivf_add(ctx, index, rows, NULL, NULL);
    if (status == FGMM_OK) status = fgmm_ivf_calibrate(ctx, index, rows, 2);
    if (status == FGMM_OK) status = fgmm_ivf_remove(ctx, index, (int64_t[]){1, 2}, 2, NULL);
    if (status == FGMM_OK) status = fgmm_ivf_save(ctx, index, path);
    if (status == FGMM_OK) status = fgmm_ivf_load(ctx, &again, path);
    if (status == FGMM_OK) status = fgmm_ivf_search(ctx, again, rows, 3, &search, ids, NULL, NULL);
    if (status == FGMM_OK) status = fgmm_ivf_searcher_create(ctx, &searcher, again);
    if (status == FGMM_OK) status = fgmm_ivf_searcher_search(ctx, searcher, rows, 3, &search, ids, NULL, NULL);
    if (status == FGMM_OK) status = fgmm_exact_search(ctx, rows, rows, FGMM_L2, 3, ids, NULL);
    fgmm_ivf_searcher_free(ctx, searcher);
    fgmm_ivf_lists_free(ctx, lists);
    fgmm_ivf_free(ctx, again);
    fgmm_ivf_free(ctx, index);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    free(ids);
    return status;
}

static const task tasks[] = {fit_kmeanspp, fit_kmeans,    fit_random,         fit_rows,
                             infer,        save_and_load, read_file,          hard_assignment,
                             by_batches,   starts,        searched_elsewhere, index_of};
enum { TASKS = sizeof tasks / sizeof *tasks };

static task task_of(int i) {
    return tasks[i / COVARIANCE_TYPES];
}
static fgmm_covariance type_of(int i) {
    return (fgmm_covariance)(i % COVARIANCE_TYPES);
}

static fgmm_status open_scarce(fgmm_context **ctx, scarce *s) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.allocator = (fgmm_allocator){scarce_alloc, scarce_free, s};
    return harness_open(ctx, &options);
}

static void check_outcome(fgmm_status status, const scarce *s, int which) {
    ck_assert_msg(status == FGMM_OK || status == FGMM_ERR_MEMORY, "task %d, request %ld failing: %s", which, s->fail_at,
                  fgmm_status_name(status));
}

/* A fresh context each time, its own making included. */
START_TEST(from_the_first_request) {
    problem *p = problem_clusters(50, 300, 3, 2, type_of(_i), _i % 2 ? FGMM_F64 : FGMM_F32);
    long requests = 1;
    for (long n = 1; n <= requests; n++) {
        scarce s = {.fail_at = n};
        fgmm_context *ctx = NULL;
        fgmm_status status = open_scarce(&ctx, &s);
        ck_assert(status == FGMM_OK || ctx == NULL);
        if (status == FGMM_OK) status = task_of(_i)(ctx, p);
        check_outcome(status, &s, _i);
        fgmm_context_free(ctx);
        ck_assert_msg(s.live == 0, "task %d, request %ld failing: %ld blocks leak", _i, n, (long)s.live);
        ck_assert_msg(s.foreign == 0, "task %d: a block went back to another allocator", _i);
        if (s.asked >= n) requests = n + 1; /* it failed; the next may too */
    }
    ck_assert_int_gt(requests, 3);
    problem_free(p);
}
END_TEST

/* One context that lives through them all: what is left of a failure may not spoil the next call. */
START_TEST(in_a_context_that_lives) {
    int on_device = !harness_is_cpu() && !harness_is_slow() && task_of(_i) == index_of && type_of(_i) == FGMM_SPHERICAL;
    if (harness_is_short() && task_of(_i) != fit_kmeanspp && task_of(_i) != infer && !on_device) return;
    /* Most of an index is the CPU's whatever the device. */
    if (!harness_is_cpu() && task_of(_i) == index_of && type_of(_i) != FGMM_SPHERICAL) return;
    problem *p = problem_clusters(51, 300, 3, 2, type_of(_i), FGMM_F32);
    scarce s = {0};
    fgmm_context *ctx = NULL;
    ck_assert_int_eq(open_scarce(&ctx, &s), FGMM_OK);
    long requests = 1;
    for (long n = 1; n <= requests; n++) {
        atomic_store(&s.asked, 0);
        s.fail_at = n;
        check_outcome(task_of(_i)(ctx, p), &s, _i);
        if (s.asked >= n) requests = n + 1;
    }
    s.fail_at = 0;
    CHECK_OK(ctx, task_of(_i)(ctx, p));
    fgmm_context_free(ctx);
    ck_assert_msg(s.live == 0, "%ld blocks leak", (long)s.live);
    problem_free(p);
}
END_TEST

static TCase *failing_alloc(void) {
    TCase *room = tcase_create("failing allocations");
    /* Opening an OpenCL device takes long; there the context that lives must do. */
    if (harness_is_cpu()) tcase_add_loop_test(room, from_the_first_request, 0, TASKS * COVARIANCE_TYPES);
    tcase_add_loop_test(room, in_a_context_that_lives, 0, TASKS * COVARIANCE_TYPES);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {failing_alloc};
    return harness_main("failing allocations", rooms, 1);
}
