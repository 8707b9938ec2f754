/* Several ranks, as threads with a context each: the model of all rows, the same on every rank, and failures that end all. */
#include "contract.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 4 };

/* ---- ranks in one process ---- */

/* Adds up in the order of ranks. A rank waits until all have come; those that never come are never missed. */
typedef struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    int size, here;
    int64_t turn, calls, largest;
    double *values[MOST];
    int64_t counts[MOST];
    int fail_at;  /* the reducer fails in this call, from 0; -1: never */
    int drift_at; /* and gives rank 1 other sums in this one */
} meeting;

typedef struct member {
    meeting *with;
    int rank;
    double *room;
    int64_t calls;
} member;

static void wait_for_all(meeting *m) {
    pthread_mutex_lock(&m->lock);
    int64_t turn = m->turn;
    if (++m->here == m->size) {
        m->here = 0;
        m->turn++;
        pthread_cond_broadcast(&m->all_here);
    }
    while (m->turn == turn) pthread_cond_wait(&m->all_here, &m->lock);
    pthread_mutex_unlock(&m->lock);
}

static int add_up(void *user, double *values, int64_t count) {
    member *self = user;
    meeting *m = self->with;
    int64_t call = self->calls++;
    if (call == m->fail_at) return 7;
    m->values[self->rank] = values;
    m->counts[self->rank] = count;
    self->room = realloc(self->room, (size_t)count * sizeof *self->room);
    wait_for_all(m);
    for (int r = 0; r < m->size; r++)
        if (m->counts[r] != count) return 8;
    for (int64_t i = 0; i < count; i++) {
        double sum = 0;
        for (int r = 0; r < m->size; r++) sum += m->values[r][i];
        self->room[i] = sum;
    }
    if (self->rank == 0) {
        m->calls = call + 1;
        m->largest = count > m->largest ? count : m->largest;
    }
    wait_for_all(m);
    memcpy(values, self->room, (size_t)count * sizeof *values);
    if (call == m->drift_at && self->rank == 1)
        for (int64_t i = 0; i < count; i++) values[i] *= 1 + 0x1p-40;
    return 0;
}

/* What one rank is given, and what came of it. */
typedef struct rank_job {
    fgmm_fit_options options;
    const problem *p;
    int64_t first, n;
    fgmm_read_fn read; /* rows through this instead of from memory */
    void *read_user;
    fgmm_progress_fn progress;
    void *progress_user;
    int64_t allocations; /* that work in the fit, before one that does not; 0: all do */
    member self;
    /* filled in */
    fgmm_context *ctx;
    fgmm_model *model;
    fgmm_report report;
    fgmm_status status;
    char message[512];
    pthread_t thread;
} rank_job;

/* An allocator whose memory ends with one call, and is there again after. */
static void *short_alloc(void *user, size_t bytes) {
    int64_t *calls_left = user;
    return (*calls_left)-- == 0 ? NULL : malloc(bytes);
}

static void plain_free(void *user, void *pointer) {
    (void)user;
    free(pointer);
}

static void *run_rank(void *user) {
    rank_job *job = user;
    const problem *p = job->p;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    options.progress = job->progress;
    options.progress_user = job->progress_user;
    options.threads = 1;
    int64_t calls_left = -1;
    if (job->allocations) options.allocator = (fgmm_allocator){short_alloc, plain_free, &calls_left};
    job->report = (fgmm_report)FGMM_REPORT_INIT;
    job->status = harness_open(&job->ctx, &options);
    if (job->status != FGMM_OK) return NULL;
    if (job->read) {
        fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
        callback.read = job->read;
        callback.user = job->read_user;
        callback.type = p->type;
        callback.n = job->n;
        callback.d = p->d;
        job->status = fgmm_rows_from_callback(job->ctx, &rows, &callback);
    } else {
        const char *data = (const char *)p->rows + (size_t)(job->first * p->stride) * fgmm_dtype_size(p->type);
        job->status = fgmm_rows_from_memory(job->ctx, &rows, data, p->type, job->n, p->d, p->stride);
        if (job->status == FGMM_OK && p->weights)
            job->status = fgmm_rows_set_weights(job->ctx, rows, p->weights + job->first, job->n);
    }
    calls_left = job->allocations ? job->allocations : -1;
    if (job->status == FGMM_OK) job->status = fgmm_fit(job->ctx, &job->model, rows, &job->options, &job->report);
    snprintf(job->message, sizeof job->message, "%s", fgmm_context_message(job->ctx));
    fgmm_rows_free(job->ctx, rows);
    /* The model outlives this function, the allocator's count does not. */
    if (job->allocations) {
        job->allocations = calls_left;
        fgmm_model_free(job->ctx, job->model);
        job->model = NULL;
        fgmm_context_free(job->ctx);
        job->ctx = NULL;
    }
    return NULL;
}

/* Rows of the problem shared out, unevenly where there are many. */
static void share_out(rank_job *jobs, int size, const problem *p, const fgmm_fit_options *options) {
    memset(jobs, 0, (size_t)size * sizeof *jobs);
    for (int r = 0; r < size; r++) {
        int64_t from = r == 0 ? 0 : p->n * (2 * r + 1) / (2 * size + 1), to = p->n * (2 * r + 3) / (2 * size + 1);
        jobs[r].options = *options;
        jobs[r].p = p;
        jobs[r].first = from;
        jobs[r].n = (r == size - 1 ? p->n : to) - from;
    }
}

static void run_ranks(rank_job *jobs, int size, meeting *m) {
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->all_here, NULL);
    m->size = size;
    for (int r = 0; r < size; r++) {
        jobs[r].self = (member){.with = m, .rank = r};
        jobs[r].options.ranks = (fgmm_ranks){add_up, &jobs[r].self, r, size};
        ck_assert_int_eq(pthread_create(&jobs[r].thread, NULL, run_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < size; r++) pthread_join(jobs[r].thread, NULL);
    for (int r = 0; r < size; r++) free(jobs[r].self.room);
    pthread_cond_destroy(&m->all_here);
    pthread_mutex_destroy(&m->lock);
}

static const meeting sound = {.fail_at = -1, .drift_at = -1};

static void free_ranks(rank_job *jobs, int size) {
    for (int r = 0; r < size; r++) {
        fgmm_model_free(jobs[r].ctx, jobs[r].model);
        fgmm_context_free(jobs[r].ctx);
    }
}

/* ---- comparisons ---- */

static void check_all_well(const rank_job *jobs, int size) {
    for (int r = 0; r < size; r++)
        ck_assert_msg(jobs[r].status == FGMM_OK, "rank %d of %d: %s", r, size, jobs[r].message);
    for (int r = 1; r < size; r++) {
        contract_check_same(jobs[0].model, jobs[r].model);
        ck_assert_int_eq(jobs[r].report.n_rows, jobs[0].report.n_rows);
    }
}

static problem *shared_rows(uint64_t stream, int turn) {
    const int64_t k = 10, d = 6;
    return problem_close(stream, harness_rows(4000, k, d), k, d, (fgmm_covariance)(turn % COVARIANCE_TYPES));
}

/* Ten iterations from one start: P ranks add up what one would, and each P repeats to the bit. */
START_TEST(same_as_alone) {
    if (!harness_is_cpu() && !harness_takes(_i)) return;
    fgmm_context *ctx = harness_context();
    problem *p = shared_rows(400 + (uint64_t)_i, _i);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *alone = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.init_model = start;
    options.max_iter = 10;
    options.tol = -1;
    options.reg_covar = 1e-3;
    CHECK_OK(ctx, fgmm_fit(ctx, &alone, rows, &options, NULL));
    double bound = fgmm_model_lower_bound(alone);
    /* Sums in double, rounded in another order. On a device a term is rounded to f32 within chunks of rows, which shares
     * cut elsewhere: a part of what exact precision promises, 1e-5. */
    double e = harness_is_cpu() ? 1e-12 : 1e-6;
    for (int size = 1; size <= MOST; size += harness_is_cpu() ? 1 : 2) {
        rank_job jobs[MOST], again[MOST];
        meeting m = sound, second = sound;
        share_out(jobs, size, p, &options);
        run_ranks(jobs, size, &m);
        check_all_well(jobs, size);
        double got = fgmm_model_lower_bound(jobs[0].model);
        ck_assert_msg(fabs(got - bound) <= e * fabs(bound), "%d ranks: %.17g, alone %.17g: %g off", size, got, bound,
                      fabs(got - bound) / fabs(bound));
        ck_assert_int_eq(jobs[0].report.n_rows, p->n);
        share_out(again, size, p, &options);
        run_ranks(again, size, &second);
        check_all_well(again, size);
        contract_check_same(jobs[0].model, again[0].model);
        free_ranks(jobs, size);
        free_ranks(again, size);
    }
    fgmm_model_free(ctx, alone);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Rank 0 seeds from a sample of the rows of all, the one that a fit alone would draw: the whole fit comes out the same
 * but for rounding, also where weights leave rows out, a rank has fewer rows than there are components, and components move. */
START_TEST(seeds_from_all_rows) {
    if (!harness_is_cpu() && !harness_takes(_i)) return;
    static const fgmm_init inits[] = {FGMM_INIT_KMEANSPP, FGMM_INIT_KMEANS, FGMM_INIT_RANDOM_FROM_DATA,
                                      FGMM_INIT_RANDOM};
    fgmm_context *ctx = harness_context();
    problem *p = shared_rows(410 + (uint64_t)_i, _i);
    rng random = rng_make(420 + (uint64_t)_i);
    p->weights = test_alloc((size_t)p->n, sizeof *p->weights);
    for (int64_t i = 0; i < p->n; i++) p->weights[i] = _i < 4 ? 1 : (double)(rng_bits(&random) % 3);
    p->weights[p->n - 1] = p->weights[0] = 1; /* no share is without weight */
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *alone = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.init = inits[(_i / COVARIANCE_TYPES + _i) % 4];
    options.init_sample = 300;
    options.n_init = 2;
    options.max_iter = 5;
    options.tol = -1;
    options.reg_covar = 1e-3;
    options.on_dead = FGMM_RESEED;
    CHECK_OK(ctx, fgmm_fit(ctx, &alone, rows, &options, NULL));
    for (int size = 2; size <= MOST; size += 2) {
        rank_job jobs[MOST];
        meeting m = sound;
        share_out(jobs, size, p, &options);
        jobs[size - 2].n += jobs[size - 1].n - 3; /* fewer rows than components */
        jobs[size - 1].first += jobs[size - 1].n - 3;
        jobs[size - 1].n = 3;
        run_ranks(jobs, size, &m);
        check_all_well(jobs, size);
        double got = fgmm_model_lower_bound(jobs[0].model), bound = fgmm_model_lower_bound(alone);
        /* Seeds are rounded to f32 about a mean that is not the same to the last bit. */
        ck_assert_msg(fabs(got - bound) <= 1e-4 * fmax(1, fabs(bound)), "%d ranks: %.12g, alone %.12g", size, got,
                      bound);
        free_ranks(jobs, size);
    }
    fgmm_model_free(ctx, alone);
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* Where components hardly move any more, so that no pass has to be repeated. */
static fgmm_model *settled_model(fgmm_context *ctx, const problem *p) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    options.init_model = start;
    options.max_iter = 20;
    options.tol = -1;
    options.reg_covar = 1e-3;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &options, NULL));
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    return model;
}

/* One all-reduce of the statistics an iteration, and three numbers a rank before it. */
START_TEST(one_sum_an_iteration) {
    fgmm_context *ctx = harness_context();
    problem *p = shared_rows(430, FGMM_DIAG);
    fgmm_model *start = settled_model(ctx, p);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.init_model = start;
    options.tol = -1;
    int64_t calls[2];
    for (int i = 0; i < 2; i++) {
        rank_job jobs[2];
        meeting m = sound;
        options.max_iter = 2 + 10 * i;
        share_out(jobs, 2, p, &options);
        run_ranks(jobs, 2, &m);
        check_all_well(jobs, 2);
        calls[i] = m.calls;
        ck_assert_int_eq(m.largest, p->k * (2 * p->d + 1) + 8);
        free_ranks(jobs, 2);
    }
    ck_assert_int_eq(calls[1] - calls[0], 2 * 10);
    fgmm_model_free(ctx, start);
    problem_free(p);
}
END_TEST

/* ---- failures ---- */

typedef struct failing_rows {
    const problem *p;
    int64_t first, rows_left;
} failing_rows;

static int read_or_fail(void *user, int64_t first, int64_t n, void *dst) {
    failing_rows *rows = user;
    const problem *p = rows->p;
    size_t element = fgmm_dtype_size(p->type);
    if ((rows->rows_left -= n) < 0) return 5;
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)dst + (size_t)(i * p->d) * element,
               (const char *)p->rows + (size_t)((rows->first + first + i) * p->stride) * element,
               (size_t)p->d * element);
    return 0;
}

static int stop_at_two(void *user, const fgmm_progress *progress) {
    (void)user;
    return strcmp(progress->stage, "fit") == 0 && progress->iteration >= 2;
}

enum { READ_SCAN, READ_SAMPLE, OTHER_K, OTHER_SEED, OTHER_D, BAD_OPTION, NOT_FINITE, CANCELLED, TOO_FEW, FAULTS };

/* Whatever goes wrong on one rank ends all of them, with the same status and a message that names the rank. */
START_TEST(one_fails_all_end) {
    if (!harness_is_cpu() && !harness_takes(_i)) return;
    static const char *const words[FAULTS] = {"code 5",    "code 5",     "n_components", "seed",   "number of features",
                                              "reg_covar", "NaN or Inf", "cancelled",    "exceeds"};
    static const fgmm_status expected[FAULTS] = {FGMM_ERR_IO,      FGMM_ERR_IO,        FGMM_ERR_INVALID,
                                                 FGMM_ERR_INVALID, FGMM_ERR_INVALID,   FGMM_ERR_INVALID,
                                                 FGMM_ERR_DATA,    FGMM_ERR_CANCELLED, FGMM_ERR_INVALID};
    int fault = _i % FAULTS, culprit = _i / FAULTS;
    problem *p = shared_rows(440 + (uint64_t)_i, _i), *other = problem_close(441, 500, 10, 5, FGMM_DIAG);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    rank_job jobs[3];
    meeting m = sound;
    failing_rows failing = {.p = p};
    options.n_components = fault == TOO_FEW ? p->n + 1 : p->k;
    options.covariance_type = p->covariance;
    options.max_iter = 4;
    options.tol = -1;
    options.reg_covar = 1e-3;
    share_out(jobs, 3, p, &options);
    rank_job *job = &jobs[culprit];
    failing.first = job->first;
    failing.rows_left = fault == READ_SCAN ? job->n / 2 : job->n + 20;
    if (fault == READ_SCAN || fault == READ_SAMPLE) job->read = read_or_fail;
    job->read_user = &failing;
    if (fault == OTHER_K) job->options.n_components = p->k + 1;
    if (fault == OTHER_SEED) job->options.seed = 99;
    if (fault == OTHER_D) job->p = other, job->first = 0, job->n = 500;
    if (fault == BAD_OPTION) job->options.reg_covar = NAN;
    if (fault == CANCELLED) job->progress = stop_at_two;
    float *hurt = (float *)p->rows + (job->first + job->n / 2) * p->stride;
    if (fault == NOT_FINITE) *hurt = NAN;
    run_ranks(jobs, 3, &m);
    for (int r = 0; r < 3; r++) {
        char name[32];
        snprintf(name, sizeof name, "rank %d", culprit);
        ck_assert_msg(jobs[r].status == expected[fault], "fault %d, rank %d: %s (%s)", fault, r,
                      fgmm_status_name(jobs[r].status), jobs[r].message);
        ck_assert_msg(strstr(jobs[r].message, words[fault]), "fault %d, rank %d: \"%s\"", fault, r, jobs[r].message);
        int tells = fault != TOO_FEW && (r != culprit || fault == OTHER_K || fault == OTHER_SEED || fault == OTHER_D) &&
                    !(culprit == 0 && (fault == OTHER_K || fault == OTHER_SEED || fault == OTHER_D));
        ck_assert_msg(!tells || strstr(jobs[r].message, name), "fault %d, rank %d: \"%s\"", fault, r, jobs[r].message);
        if (fault == CANCELLED) {
            ck_assert_ptr_nonnull(jobs[r].model);
            ck_assert_int_eq(fgmm_model_iterations(jobs[r].model), 2);
            contract_check_same(jobs[0].model, jobs[r].model);
        } else {
            ck_assert_ptr_null(jobs[r].model);
        }
    }
    free_ranks(jobs, 3);
    problem_free(p);
    problem_free(other);
}
END_TEST

/* Memory that ends on one rank, at whatever point of the fit, ends all, and nobody waits for it. */
START_TEST(memory_ends_on_one) {
    const int culprit = _i % 2;
    problem *p = problem_close(460 + (uint64_t)_i, 300, 3, 3, (fgmm_covariance)(_i / 2));
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.max_iter = 2;
    options.tol = -1;
    options.reg_covar = 1e-3;
    options.on_dead = FGMM_RESEED;
    /* The first allocation of a fit is of what it takes to tell of a failure. */
    for (int64_t after = 1, all_well = 0; !all_well; after++) {
        rank_job jobs[2];
        meeting m = sound;
        share_out(jobs, 2, p, &options);
        jobs[culprit].allocations = after;
        run_ranks(jobs, 2, &m);
        all_well = jobs[culprit].allocations >= 0; /* it never came to the one that fails */
        for (int r = 0; r < 2; r++) {
            if (all_well) ck_assert_msg(jobs[r].status == FGMM_OK, "%s", jobs[r].message);
            if (jobs[0].status == FGMM_OK && jobs[1].status == FGMM_OK) continue; /* it could do without */
            ck_assert_msg(jobs[r].status == FGMM_ERR_MEMORY, "allocation %d, rank %d: %s", (int)after, r,
                          jobs[r].message);
            ck_assert_ptr_nonnull(strstr(jobs[r].message, "memory"));
            ck_assert(r == culprit || strncmp(jobs[r].message, culprit ? "rank 1: " : "rank 0: ", 8) == 0);
        }
        free_ranks(jobs, 2);
        ck_assert_int_lt(after, 100000);
    }
    problem_free(p);
}
END_TEST

/* A reducer that fails, in whichever call, and one that gives a rank other sums. */
START_TEST(reducer_fails) {
    problem *p = shared_rows(470, FGMM_FULL);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = FGMM_FULL;
    options.max_iter = 4;
    options.tol = -1;
    options.reg_covar = 1e-3;
    rank_job jobs[3];
    meeting m = sound;
    share_out(jobs, 3, p, &options);
    run_ranks(jobs, 3, &m);
    check_all_well(jobs, 3);
    free_ranks(jobs, 3);
    int64_t calls = m.calls;
    for (int64_t call = 0; call < calls; call += harness_is_cpu() ? 1 : 25) {
        m = sound;
        m.fail_at = (int)call;
        share_out(jobs, 3, p, &options);
        run_ranks(jobs, 3, &m);
        for (int r = 0; r < 3; r++) {
            ck_assert_msg(jobs[r].status == FGMM_ERR_IO, "call %d: %s", (int)call, jobs[r].message);
            ck_assert_ptr_nonnull(strstr(jobs[r].message, "failed with code 7"));
        }
        free_ranks(jobs, 3);
    }
    /* The statistics of the first iteration: the model of the second is not the same everywhere. */
    fgmm_model *start = settled_model(harness_context(), p);
    options.init_model = start;
    m = sound;
    share_out(jobs, 3, p, &options);
    run_ranks(jobs, 3, &m);
    check_all_well(jobs, 3);
    free_ranks(jobs, 3);
    calls = m.calls;
    m = sound;
    m.drift_at = (int)calls - 2 - 2 * 3; /* two calls an iteration, one at the end */
    share_out(jobs, 3, p, &options);
    run_ranks(jobs, 3, &m);
    for (int r = 0; r < 3; r++) {
        ck_assert_msg(jobs[r].status == FGMM_ERR_INVALID, "rank %d: %s", r, jobs[r].message);
        ck_assert_ptr_nonnull(strstr(jobs[r].message, "rank 1 has another model"));
    }
    free_ranks(jobs, 3);
    fgmm_model_free(harness_context(), start);
    problem_free(p);
}
END_TEST

/* Ranks that were stopped go on from rank 0's checkpoint, to the same bits, and to the same model but for rounding where
 * there are more of them. */
START_TEST(checkpoint_of_ranks) {
    if (!harness_is_cpu() && !harness_takes(_i)) return;
    problem *p = shared_rows(480 + (uint64_t)_i, _i);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    rank_job jobs[MOST], whole[MOST];
    meeting m = sound;
    char path[4096];
    snprintf(path, sizeof path, "%s/ranks.npz", harness_scratch());
    unlink(path);
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.n_init = 2;
    options.max_iter = 4;
    options.tol = -1;
    options.reg_covar = 1e-3;
    options.on_dead = FGMM_RESEED;
    share_out(whole, 2, p, &options);
    run_ranks(whole, 2, &m);
    check_all_well(whole, 2);
    options.checkpoint = path;
    options.checkpoint_seconds = -1;
    for (int stop = 0; stop < 2; stop++) {
        m = sound;
        share_out(jobs, 2, p, &options);
        if (stop == 0) jobs[1].progress = stop_at_two;
        run_ranks(jobs, 2, &m);
        if (stop == 0) {
            ck_assert_int_eq(jobs[0].status, FGMM_ERR_CANCELLED);
        } else {
            check_all_well(jobs, 2);
            contract_check_same(jobs[0].model, whole[0].model);
        }
        free_ranks(jobs, 2);
        if (stop == 0) {
            /* Rank 0 alone looks at the file; what it finds wrong, all are told. */
            m = sound;
            share_out(jobs, 2, p, &options);
            jobs[0].options.seed = jobs[1].options.seed = 3;
            run_ranks(jobs, 2, &m);
            for (int r = 0; r < 2; r++) {
                ck_assert_int_eq(jobs[r].status, FGMM_ERR_INVALID);
                ck_assert_ptr_nonnull(strstr(jobs[r].message, "its seed is 0, here it is 3"));
            }
            free_ranks(jobs, 2);
        }
    }
    free_ranks(whole, 2);
    problem_free(p);
}
END_TEST

START_TEST(bad_ranks) {
    fgmm_context *ctx = harness_context();
    problem *p = shared_rows(490, FGMM_DIAG);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *model = NULL;
    options.n_components = p->k;
    const fgmm_ranks bad[] = {
        {NULL, NULL, 0, 2}, {add_up, NULL, 2, 2}, {add_up, NULL, -1, 2}, {add_up, NULL, 0, -1}, {add_up, NULL, 1, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        options.ranks = bad[i];
        CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_fit(ctx, &model, rows, &options, NULL));
        ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "ranks"));
    }
    fgmm_rows_free(ctx, rows);
    problem_free(p);
}
END_TEST

/* On a device that is slow to open a part of the turns will do: what ranks tell each other is not its affair. */
static TCase *ranks(void) {
    TCase *room = tcase_create("ranks");
    int more = harness_is_cpu();
    tcase_add_loop_test(room, same_as_alone, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, seeds_from_all_rows, 0, (1 + more) * COVARIANCE_TYPES);
    tcase_add_test(room, one_sum_an_iteration);
    tcase_add_loop_test(room, one_fails_all_end, more ? 0 : FAULTS, (more ? 3 : 2) * FAULTS);
    if (more) tcase_add_loop_test(room, memory_ends_on_one, 0, 2 * COVARIANCE_TYPES);
    tcase_add_test(room, reducer_fails);
    tcase_add_loop_test(room, checkpoint_of_ranks, more ? 0 : 1, more ? COVARIANCE_TYPES : 2);
    tcase_add_test(room, bad_ranks);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {ranks};
    return harness_main("ranks", rooms, 1);
}
