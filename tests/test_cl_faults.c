/*
 * A device that fails at its n-th call: whatever was running ends with an error in words, and the context is as good as
 * before. OpenCL's own functions are found here first, because the program exports them.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "contract.h"

#include <dlfcn.h>
#include <flashgmm/ivf.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* ---- the faults ---- */

static struct {
    atomic_long calls; /* so far */
    long fail_at;      /* which one fails, from 1; 0: none */
    cl_int code;
} fault;

static int is_now(void) {
    return atomic_fetch_add(&fault.calls, 1) + 1 == fault.fail_at;
}

/* The loader's own function of the name, which the backend would have called. */
static void *real_function(const char *name) {
    void *found = dlsym(dlopen("libOpenCL.so.1", RTLD_NOW), name);
    if (!found) abort();
    return found;
}
#define REAL(name) ((__typeof__(name) *)(uintptr_t)real_function(#name))

cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dim, const size_t *offset,
                              const size_t *global, const size_t *local, cl_uint n, const cl_event *wait,
                              cl_event *event) {
    if (is_now()) return fault.code;
    return REAL(clEnqueueNDRangeKernel)(queue, kernel, dim, offset, global, local, n, wait, event);
}

cl_int clEnqueueWriteBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, size_t offset, size_t size,
                            const void *data, cl_uint n, const cl_event *wait, cl_event *event) {
    if (is_now()) return fault.code;
    return REAL(clEnqueueWriteBuffer)(queue, buffer, blocking, offset, size, data, n, wait, event);
}

cl_int clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, size_t offset, size_t size,
                           void *data, cl_uint n, const cl_event *wait, cl_event *event) {
    if (is_now()) return fault.code;
    return REAL(clEnqueueReadBuffer)(queue, buffer, blocking, offset, size, data, n, wait, event);
}

cl_int clEnqueueFillBuffer(cl_command_queue queue, cl_mem buffer, const void *pattern, size_t pattern_size,
                           size_t offset, size_t size, cl_uint n, const cl_event *wait, cl_event *event) {
    if (is_now()) return fault.code;
    return REAL(clEnqueueFillBuffer)(queue, buffer, pattern, pattern_size, offset, size, n, wait, event);
}

cl_mem clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size, void *data, cl_int *code) {
    if (is_now()) {
        if (code) *code = fault.code;
        return NULL;
    }
    return REAL(clCreateBuffer)(context, flags, size, data, code);
}

cl_int clFinish(cl_command_queue queue) {
    cl_int code = REAL(clFinish)(queue);
    return is_now() ? fault.code : code;
}

static void set_fault(long at, cl_int code) {
    fault.fail_at = at;
    fault.code = code;
    atomic_store(&fault.calls, 0);
}

/* ---- what runs on the device ---- */

/* What a task leaves: the same bits each time that nothing fails. */
typedef struct outcome {
    double numbers[64];
    size_t n;
} outcome;

static void note(outcome *o, const double *numbers, int64_t n) {
    for (int64_t i = 0; i < n && o->n < sizeof o->numbers / sizeof *o->numbers; i++) o->numbers[o->n++] = numbers[i];
}

typedef fgmm_status task(fgmm_context *ctx, const problem *p, outcome *o);

static fgmm_status fit(fgmm_context *ctx, const problem *p, outcome *o) {
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = p->k;
    options.covariance_type = p->covariance;
    options.max_iter = 2;
    options.tol = -1;
    options.reg_covar = 1e-3;
    fgmm_status status = fgmm_fit(ctx, &model, rows, &options, NULL);
    ck_assert_msg(status == FGMM_OK || model == NULL, "a failed fit left a model");
    if (model) note(o, fgmm_model_means(model), p->k * p->d);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status infer(fgmm_context *ctx, const problem *p, outcome *o) {
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    int32_t *ids = test_alloc((size_t)(2 * p->n), sizeof *ids);
    float *resp = test_alloc((size_t)(2 * p->n), sizeof *resp);
    double *log_prob = test_alloc((size_t)p->n, sizeof *log_prob);
    fgmm_status status = fgmm_assign(ctx, model, rows, 2, NULL, ids, resp, log_prob, NULL);
    if (status == FGMM_OK) note(o, log_prob, p->n);
    free(log_prob);
    free(resp);
    free(ids);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    return status;
}

static fgmm_status search(fgmm_context *ctx, const problem *p, outcome *o) {
    enum { NEAREST = 3 };
    fgmm_rows *rows = problem_rows(ctx, p), *asked = NULL;
    fgmm_model *model = problem_model(ctx, p);
    fgmm_ivf *index = NULL;
    fgmm_ivf_searcher *searcher = NULL;
    int64_t ids[8 * NEAREST];
    float distances[8 * NEAREST];
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &asked, rows, 0, 8));
    CHECK_OK(ctx, fgmm_ivf_create(ctx, &index, model, NULL));
    CHECK_OK(ctx, fgmm_ivf_add(ctx, index, rows, NULL, NULL));
    fgmm_status status = fgmm_ivf_searcher_create(ctx, &searcher, index);
    if (status == FGMM_OK) status = fgmm_ivf_searcher_search(ctx, searcher, asked, NEAREST, NULL, ids, distances, NULL);
    if (status == FGMM_OK) status = fgmm_exact_search(ctx, rows, asked, FGMM_L2, NEAREST, ids, distances);
    for (int i = 0; status == FGMM_OK && i < 8 * NEAREST; i++) note(o, (const double[]){(double)ids[i]}, 1);
    fgmm_ivf_searcher_free(ctx, searcher);
    fgmm_ivf_free(ctx, index);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, asked);
    fgmm_rows_free(ctx, rows);
    return status;
}

static task *const tasks[] = {fit, infer, search};
enum { TASKS = sizeof tasks / sizeof *tasks, POINTS = 25, SHORT_POINTS = 6 };
static const fgmm_covariance types[] = {FGMM_DIAG, FGMM_FULL};
static const cl_int codes[] = {CL_OUT_OF_RESOURCES, CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_HOST_MEMORY};

/* ---- the tests ---- */

START_TEST(fails_at_any_call) {
    if (harness_is_cpu()) return;
    fgmm_context *ctx = harness_context();
    problem *p = problem_close(600 + (uint64_t)_i, harness_rows(400, 12, 5), 12, 5, types[_i / TASKS]);
    task *run = tasks[_i % TASKS];
    outcome clean = {.n = 0};
    set_fault(0, 0);
    CHECK_OK(ctx, run(ctx, p, &clean)); /* the first time also builds kernels and tests them */
    outcome again = {.n = 0};
    set_fault(0, 0);
    CHECK_OK(ctx, run(ctx, p, &again));
    long calls = atomic_load(&fault.calls), step = calls / (harness_is_short() ? SHORT_POINTS : POINTS) + 1;
    ck_assert_int_gt(calls, 5);
    ck_assert(clean.n > 0 && memcmp(&clean, &again, sizeof clean) == 0);
    for (long at = 1 + _i % step; at <= calls; at += step) {
        outcome spoilt = {.n = 0}, mended = {.n = 0};
        cl_int code = codes[at % 3];
        set_fault(at, code);
        fgmm_status status = run(ctx, p, &spoilt);
        long seen = atomic_load(&fault.calls);
        const char *message = fgmm_context_message(ctx);
        set_fault(0, 0);
        /* Where there is another way, such as plain memory for pinned, nothing is lost. */
        if (status == FGMM_OK) {
            ck_assert_msg(memcmp(&spoilt, &clean, sizeof clean) == 0, "call %ld failed unnoticed", at);
        } else {
            ck_assert_msg(status == (code == CL_OUT_OF_RESOURCES ? FGMM_ERR_DEVICE : FGMM_ERR_MEMORY),
                          "call %ld of %ld: %s (%s)", at, calls, fgmm_status_name(status), message);
            ck_assert_msg(strstr(message, "failed on") && strstr(message, "CL_"), "call %ld: \"%s\"", at, message);
        }
        ck_assert_int_ge(seen, at);
        CHECK_OK(ctx, run(ctx, p, &mended));
        ck_assert_msg(memcmp(&mended, &clean, sizeof clean) == 0, "after call %ld failed, other results", at);
    }
    problem_free(p);
}
END_TEST

/* A device that fails while it is opened is an error with a reason if it was asked for by name. */
START_TEST(fails_while_opening) {
    if (harness_is_cpu()) return;
    int failed = 0;
    for (long at = 1; at < 400; at += 1 + at / 2) {
        fgmm_context *ctx = NULL;
        fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
        char error[512] = "";
        options.error = error;
        options.error_size = sizeof error;
        set_fault(at, CL_MEM_OBJECT_ALLOCATION_FAILURE);
        fgmm_status status = harness_open(&ctx, &options);
        set_fault(0, 0);
        ck_assert_msg(status == FGMM_OK || (ctx == NULL && strlen(error) > 10), "call %ld: %s \"%s\"", at,
                      fgmm_status_name(status), error);
        failed += status != FGMM_OK;
        fgmm_context_free(ctx);
    }
    ck_assert_int_gt(failed, 0);
}
END_TEST

static TCase *faults(void) {
    TCase *room = tcase_create("faults");
    tcase_add_loop_test(room, fails_at_any_call, 0, 2 * TASKS);
    tcase_add_test(room, fails_while_opening);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {faults};
    return harness_main("cl_faults", rooms, 1);
}
