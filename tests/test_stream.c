/*
 * Rows that come by and by: whoever reads them, in whatever blocks and however few of them fit, the results are those
 * of rows in memory, bit for bit; what goes wrong on the way ends the call with its reason.
 */
#include "streamed.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

/* ---- a source that watches how it is read ---- */

typedef struct source {
    pthread_t caller;
    atomic_int strangers, at_once, most_at_once; /* calls from other threads; calls now, and the most of them */
    atomic_llong rows;                           /* delivered */
    int64_t fail_from;                           /* rows from this on cannot be read; -1: all can */
    atomic_int hanging, released;                /* a read that waits until it is released */
    int64_t hang_at;
} source;

static int read_source(void *user, int64_t first, int64_t n, void *dst) {
    source *s = user;
    int now = atomic_fetch_add(&s->at_once, 1) + 1, most = atomic_load(&s->most_at_once), code = 0;
    while (now > most && !atomic_compare_exchange_weak(&s->most_at_once, &most, now)) {
    }
    if (!pthread_equal(pthread_self(), s->caller)) atomic_fetch_add(&s->strangers, 1);
    if (s->hang_at >= first && s->hang_at < first + n) {
        atomic_store(&s->hanging, 1);
        while (!atomic_load(&s->released)) usleep(1000);
    }
    if (s->fail_from >= 0 && first + n > s->fail_from) code = 7;
    for (int64_t i = 0; i < n && code == 0; i++) memcpy((float *)dst + i * D, row_of(first + i), D * sizeof(float));
    atomic_fetch_add(&s->rows, n);
    atomic_fetch_sub(&s->at_once, 1);
    return code;
}

static source source_make(void) {
    return (source){.caller = pthread_self(), .fail_from = -1, .hang_at = -1};
}

static fgmm_rows *rows_of(fgmm_context *ctx, source *s, int threads) {
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_rows *rows = NULL;
    callback.read = read_source;
    callback.user = s;
    callback.n = N;
    callback.d = D;
    callback.threads = threads;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &rows, &callback));
    return rows;
}

/* ---- who reads ---- */

/* Threads are used only where the source allows them, no more than it allows, and every row is read once a pass. */
START_TEST(callbacks) {
    static const int threads[] = {0, 1, 3};
    fgmm_context *ctx = harness_context();
    result wanted = fit_in_memory();
    double *log_prob = test_alloc(N, sizeof *log_prob), *in_memory = test_alloc(N, sizeof *log_prob);
    fgmm_rows *memory = problem_rows(ctx, p);
    CHECK_OK(ctx, fgmm_score_samples(ctx, start, memory, NULL, in_memory, NULL));
    for (int i = 0; i < 3; i++) {
        source s = source_make();
        fgmm_rows *rows = rows_of(ctx, &s, threads[i]);
        fgmm_compute_options blocks = FGMM_COMPUTE_OPTIONS_INIT;
        blocks.block_rows = 1024;
        CHECK_OK(ctx, fgmm_score_samples(ctx, start, rows, &blocks, log_prob, NULL));
        ck_assert_int_eq(memcmp(log_prob, in_memory, N * sizeof *log_prob), 0);
        ck_assert_int_eq(s.rows, N);
        ck_assert_int_le(s.most_at_once, threads[i] ? threads[i] : 1);
        ck_assert_int_eq(s.strangers > 0, threads[i] > 0);
        for (int64_t block_rows = 1024; block_rows <= 16384; block_rows *= 4) {
            result got = fit_of(ctx, rows, block_rows, NULL);
            SAME(got, wanted);
        }
        fgmm_rows_free(ctx, rows);
    }
    fgmm_rows_free(ctx, memory);
    free(log_prob);
    free(in_memory);
}
END_TEST

/* A slice is read as its whole is, in the slice's own place. */
START_TEST(slices) {
    enum { FROM = 1500, COUNT = 6000 };
    fgmm_context *ctx = harness_context();
    source s = source_make();
    fgmm_rows *rows = rows_of(ctx, &s, 2), *memory = problem_rows(ctx, p), *parts[2] = {NULL, NULL};
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &parts[0], rows, FROM, COUNT));
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &parts[1], memory, FROM, COUNT));
    result got = fit_of(ctx, parts[0], 1024, NULL), wanted = fit_of(ctx, parts[1], 0, NULL);
    SAME(got, wanted);
    ck_assert_int_gt(s.strangers, 0);
    for (int i = 0; i < 2; i++) fgmm_rows_free(ctx, parts[i]);
    fgmm_rows_free(ctx, rows);
    fgmm_rows_free(ctx, memory);
}
END_TEST

/* Threads that the struct cannot mean are refused. */
START_TEST(threads_refused) {
    fgmm_context *ctx = harness_context();
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_rows *rows = NULL;
    callback.read = read_source;
    callback.n = N;
    callback.d = D;
    callback.threads = -1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_callback(ctx, &rows, &callback));
    callback.threads = 2;
    callback.once = 1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_rows_from_callback(ctx, &rows, &callback));
    ck_assert_ptr_null(rows);
}
END_TEST

/* Rows with NaN are left out wherever they come from. */
START_TEST(skipped_rows) {
    fgmm_context *ctx = harness_context();
    ((float *)p->rows)[3 * p->stride + 1] = NAN;
    ((float *)p->rows)[5000 * p->stride] = INFINITY;
    fgmm_compute_options skip = FGMM_COMPUTE_OPTIONS_INIT;
    skip.nonfinite = FGMM_NONFINITE_SKIP;
    int32_t *a = test_alloc(N, sizeof *a), *b = test_alloc(N, sizeof *b);
    source s = source_make();
    fgmm_rows *rows = rows_of(ctx, &s, 3), *memory = problem_rows(ctx, p);
    CHECK_OK(ctx, fgmm_predict(ctx, start, memory, &skip, a, NULL));
    skip.block_rows = 1024;
    CHECK_OK(ctx, fgmm_predict(ctx, start, rows, &skip, b, NULL));
    ck_assert_int_eq(memcmp(a, b, N * sizeof *a), 0);
    ck_assert_int_eq(b[3], -1);
    ck_assert_int_eq(b[5000], -1);
    fgmm_rows_free(ctx, rows);
    fgmm_rows_free(ctx, memory);
    free(a);
    free(b);
}
END_TEST

/* ---- what goes wrong ---- */

/* Of several reads that fail, the first row's is told, and the context lives on. */
START_TEST(failing_reads) {
    fgmm_context *ctx = harness_context();
    fgmm_compute_options blocks = FGMM_COMPUTE_OPTIONS_INIT;
    double *log_prob = test_alloc(N, sizeof *log_prob);
    blocks.block_rows = 1024;
    for (int threads = 0; threads <= 3; threads++) {
        source s = source_make();
        fgmm_rows *rows = rows_of(ctx, &s, threads);
        s.fail_from = 5000;
        long long from = -1, to = -1;
        CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_score_samples(ctx, start, rows, &blocks, log_prob, NULL));
        ck_assert_int_eq(sscanf(fgmm_context_message(ctx), "rows from callback: reading rows %lld to %lld", &from, &to),
                         2);
        ck_assert_msg(from <= 5000 && to >= 5000, "%s", fgmm_context_message(ctx));
        ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "code 7"));
        s.fail_from = -1;
        CHECK_OK(ctx, fgmm_score_samples(ctx, start, rows, &blocks, log_prob, NULL));
        fgmm_rows_free(ctx, rows);
    }
    free(log_prob);
}
END_TEST

static int cancel_when_hanging(void *user, const fgmm_progress *progress) {
    source *s = user;
    (void)progress;
    if (!atomic_load(&s->hanging)) return 0;
    atomic_store(&s->released, 1);
    return 1;
}

/* While a read takes its time the call is alive: progress is told, and may cancel. The read ends only after that. */
START_TEST(cancelled_in_a_slow_read) {
    source s = source_make();
    fgmm_context *ctx = context_with(0, cancel_when_hanging, &s);
    fgmm_compute_options blocks = FGMM_COMPUTE_OPTIONS_INIT;
    double *log_prob = test_alloc(N, sizeof *log_prob);
    fgmm_rows *rows = rows_of(ctx, &s, 1);
    blocks.block_rows = 1024;
    s.hang_at = 4000;
    CHECK_FAILS(ctx, FGMM_ERR_CANCELLED, fgmm_score_samples(ctx, start, rows, &blocks, log_prob, NULL));
    ck_assert_int_lt(s.rows, N);
    s = source_make();
    CHECK_OK(ctx, fgmm_score_samples(ctx, start, rows, &blocks, log_prob, NULL));
    ck_assert_int_eq(s.rows, N);
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
    free(log_prob);
}
END_TEST

typedef struct stages {
    int told;
    double read, copy, compute;
} stages;

static int watch_stages(void *user, const fgmm_progress *progress) {
    stages *s = user;
    if (progress->iteration < 2) return 0;
    s->told++;
    s->read = progress->read_gbs;
    s->copy = progress->copy_gbs;
    s->compute = progress->compute_gbs;
    EXPECT(progress->seconds_left >= 0, "%g s left", progress->seconds_left);
    EXPECT(progress->iteration < 4 || progress->seconds_left == 0, "%g s left of nothing", progress->seconds_left);
    return 0;
}

/* Progress tells of the stages that there were: rows that stay are not read again, and a CPU copies none. */
START_TEST(stages_of_progress) {
    for (int streams = 0; streams < 2; streams++) {
        stages s = {0};
        fgmm_context *ctx = context_with(streams && harness_is_cpu() ? 230000 : 0, watch_stages, &s);
        fgmm_rows *rows = NULL;
        CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, save_rows("stages.npy"), NULL));
        fit_of(ctx, rows, 1024, NULL);
        ck_assert_int_ge(s.told, 3);
        ck_assert_int_eq(s.read > 0, streams && harness_is_cpu());
        ck_assert(s.copy == 0);
        ck_assert(s.compute > 0);
        fgmm_rows_free(ctx, rows);
        fgmm_context_free(ctx);
    }
}
END_TEST

/* ---- budgets ---- */

/* A file several times the limit gives the bits of rows in memory, and the report's peak is within the limit. The file's
 * rows alone are most of a limit so large that part of them stays. */
START_TEST(within_a_limit) {
    const char *path = save_rows("limit.npy");
    result wanted = fit_in_memory();
    size_t file = N * D * sizeof(float), least = harness_is_cpu() ? file / 2 : 4 * file; /* OpenCL's own things */
    int fitted = 0;
    for (size_t limit = least; limit <= 64 * file; limit += limit / 2) {
        fgmm_context *ctx = context_with(limit, NULL, NULL);
        fgmm_rows *rows = NULL;
        fgmm_model *model = NULL;
        fgmm_report report = FGMM_REPORT_INIT;
        fgmm_fit_options options = fit_options(1024);
        CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, path, NULL));
        fgmm_status status = fgmm_fit(ctx, &model, rows, &options, &report);
        if (status == FGMM_OK) {
            fitted++;
            ck_assert_int_le(report.peak_host_bytes, (int64_t)limit);
            fgmm_model_free(ctx, model);
            result got = fit_of(ctx, rows, 0, NULL);
            SAME(got, wanted);
        } else {
            ck_assert_msg(status == FGMM_ERR_MEMORY, "%s", fgmm_context_message(ctx));
            ck_assert_msg(strstr(fgmm_context_message(ctx), "limit on host memory"), "%s", fgmm_context_message(ctx));
            ck_assert_int_eq(fitted, 0);
        }
        fgmm_rows_free(ctx, rows);
        fgmm_context_free(ctx);
    }
    ck_assert_int_gt(fitted, 0);
}
END_TEST

/* Rows that one context keeps are read again in each pass by one that shares the memory with very many. */
START_TEST(sharers) {
    if (!harness_is_cpu()) return; /* a device's memory is its own */
    int64_t read[2];
    for (int i = 0; i < 2; i++) {
        fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
        fgmm_context *ctx = NULL;
        source s = source_make();
        options.host_sharers = i ? 1 << 30 : 0;
        ck_assert_int_eq(harness_open(&ctx, &options), FGMM_OK);
        fgmm_rows *rows = rows_of(ctx, &s, 1);
        result got = fit_of(ctx, rows, 1024, NULL), wanted = fit_in_memory();
        SAME(got, wanted);
        read[i] = s.rows;
        fgmm_rows_free(ctx, rows);
        fgmm_context_free(ctx);
    }
    ck_assert_int_eq(read[0], N);
    ck_assert_int_gt(read[1], 3 * (int64_t)N);
}
END_TEST

/* Too little for two blocks is refused before anything is read. */
START_TEST(limit_too_small) {
    source s = source_make();
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_context *ctx = context_with(4000000, NULL, NULL);
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    callback.read = read_source;
    callback.user = &s;
    callback.n = N;
    callback.d = 1000;
    options.n_components = K;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &rows, &callback));
    CHECK_FAILS(ctx, FGMM_ERR_MEMORY, fgmm_fit(ctx, &model, rows, &options, NULL));
    ck_assert_msg(strstr(fgmm_context_message(ctx), "limit on host memory is 4000000 bytes") != NULL &&
                      strstr(fgmm_context_message(ctx), "need 8192000 more") != NULL,
                  "%s", fgmm_context_message(ctx));
    ck_assert_int_eq(s.rows, 0);
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
}
END_TEST

static TCase *readers(void) {
    TCase *room = tcase_create("readers");
    tcase_add_checked_fixture(room, set_up, tear_down);
    tcase_set_timeout(room, 300);
    tcase_add_test(room, callbacks);
    tcase_add_test(room, slices);
    tcase_add_test(room, threads_refused);
    tcase_add_test(room, skipped_rows);
    tcase_add_test(room, failing_reads);
    tcase_add_test(room, cancelled_in_a_slow_read);
    tcase_add_test(room, stages_of_progress);
    return room;
}

static TCase *budgets(void) {
    TCase *room = tcase_create("budgets");
    tcase_add_checked_fixture(room, set_up, tear_down);
    tcase_set_timeout(room, 300);
    tcase_add_test(room, within_a_limit);
    tcase_add_test(room, sharers);
    tcase_add_test(room, limit_too_small);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {readers, budgets};
    return harness_main("stream", rooms, 2);
}
