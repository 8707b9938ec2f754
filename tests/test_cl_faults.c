/*
 * A device that fails at its n-th call: whatever was running ends with an error in words, and the context is as good as
 * before. A device that says that its memory is not the host's, to which rows go through pinned memory, and one that has
 * less than it says. OpenCL's own functions are found here first, because the program exports them.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "contract.h"

#include <dlfcn.h>
#include <flashgmm/ivf.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the faults ---- */

static struct {
    int discrete;      /* the device's memory is its own, it says */
    int gpu;           /* and that it is a GPU */
    int again;         /* calls that were made again on the CPU */
    long mapped;       /* buffers mapped so far */
    long pinned;       /* buffers made over memory of the program's so far */
    size_t live, peak; /* bytes of the buffers that there are, and the most of them */
    size_t room;       /* what they may come to beside live_at_start; 0: no limit */
    size_t live_at_start;
    int lazy; /* refused at the first write, not as they are made */
    long refused;
    int fewer, halved, unsettled; /* lines of the log that say so */
    const char *refuses;          /* the kernel that the device does not start, or NULL, */
    size_t fits;                  /* in work-groups of more items */
    int refusals;
    int dense;          /* programs of the dense engine that were made from source */
    const char *spoils; /* put before each of these, or NULL */
    atomic_long calls;  /* so far */
    long fail_at;       /* which one fails, from 1; 0: none */
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

/* Buffers that the program holds: their size, and how often it holds them. */
static struct {
    cl_mem buffer;
    size_t size;
    int held;
} held[4096];

static int find_held(cl_mem buffer) {
    int i = 0;
    while (i < (int)(sizeof held / sizeof *held) - 1 && (held[i].held == 0 || held[i].buffer != buffer)) i++;
    return i;
}

static int is_too_much(size_t more) {
    int over = fault.room && fault.live + more > fault.live_at_start + fault.room;
    fault.refused += over;
    return over;
}

cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dim, const size_t *offset,
                              const size_t *global, const size_t *local, cl_uint n, const cl_event *wait,
                              cl_event *event) {
    char name[64] = "";
    if (is_now()) return fault.code;
    size_t items = 1;
    for (cl_uint i = 0; i < dim; i++) items *= local ? local[i] : 1;
    if (fault.refuses) clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof name, name, NULL);
    if (fault.refuses && strcmp(name, fault.refuses) == 0 && items > fault.fits)
        return fault.refusals++, CL_INVALID_WORK_GROUP_SIZE;
    return REAL(clEnqueueNDRangeKernel)(queue, kernel, dim, offset, global, local, n, wait, event);
}

cl_int clEnqueueWriteBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, size_t offset, size_t size,
                            const void *data, cl_uint n, const cl_event *wait, cl_event *event) {
    if (is_now()) return fault.code;
    if (fault.lazy && is_too_much(0)) return CL_MEM_OBJECT_ALLOCATION_FAILURE;
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

cl_program clCreateProgramWithSource(cl_context context, cl_uint count, const char **texts, const size_t *lengths,
                                     cl_int *code) {
    static const char *const kernels[] = {"dense_logits(", "dense_sums(", "dense_starts("};
    int dense = 0;
    for (int i = 0; i < 3; i++) dense |= strstr(texts[0], kernels[i]) != NULL;
    fault.dense += dense;
    if (!dense || !fault.spoils) return REAL(clCreateProgramWithSource)(context, count, texts, lengths, code);
    return REAL(clCreateProgramWithSource)(context, 2, (const char *[]){fault.spoils, texts[0]}, NULL, code);
}

cl_mem clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size, void *data, cl_int *code) {
    int full = !fault.lazy && is_too_much(size);
    if (is_now() || full) {
        if (code) *code = full ? CL_MEM_OBJECT_ALLOCATION_FAILURE : fault.code;
        return NULL;
    }
    cl_mem buffer = REAL(clCreateBuffer)(context, flags, size, data, code);
    int i = 0;
    if (flags & CL_MEM_USE_HOST_PTR) fault.pinned++, size = 0;
    while (held[i].held > 0) i++;
    if (buffer) held[i].buffer = buffer, held[i].size = size, held[i].held = 1, fault.live += size;
    if (fault.peak < fault.live) fault.peak = fault.live;
    return buffer;
}

cl_int clRetainMemObject(cl_mem buffer) {
    held[find_held(buffer)].held++;
    return REAL(clRetainMemObject)(buffer);
}

cl_int clReleaseMemObject(cl_mem buffer) {
    int i = find_held(buffer);
    if (held[i].buffer == buffer && --held[i].held == 0) fault.live -= held[i].size;
    return REAL(clReleaseMemObject)(buffer);
}

void *clEnqueueMapBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, cl_map_flags flags, size_t offset,
                         size_t size, cl_uint n, const cl_event *wait, cl_event *event, cl_int *code) {
    fault.mapped++;
    if (is_now()) {
        *code = fault.code;
        return NULL;
    }
    return REAL(clEnqueueMapBuffer)(queue, buffer, blocking, flags, offset, size, n, wait, event, code);
}

cl_int clGetDeviceInfo(cl_device_id device, cl_device_info what, size_t size, void *out, size_t *size_out) {
    cl_int code = REAL(clGetDeviceInfo)(device, what, size, out, size_out);
    if (code == CL_SUCCESS && what == CL_DEVICE_HOST_UNIFIED_MEMORY && out && fault.discrete)
        *(cl_bool *)out = CL_FALSE;
    if (code == CL_SUCCESS && what == CL_DEVICE_TYPE && out && fault.gpu) *(cl_device_type *)out = CL_DEVICE_TYPE_GPU;
    return code;
}

cl_int clEnqueueBarrierWithWaitList(cl_command_queue queue, cl_uint n, const cl_event *wait, cl_event *event) {
    if (is_now()) return fault.code;
    return REAL(clEnqueueBarrierWithWaitList)(queue, n, wait, event);
}
cl_int clEnqueueMarkerWithWaitList(cl_command_queue queue, cl_uint n, const cl_event *wait, cl_event *event) {
    if (is_now()) return fault.code;
    return REAL(clEnqueueMarkerWithWaitList)(queue, n, wait, event);
}

cl_int clWaitForEvents(cl_uint n, const cl_event *events) {
    cl_int code = REAL(clWaitForEvents)(n, events);
    return is_now() ? fault.code : code;
}

cl_command_queue clCreateCommandQueue(cl_context context, cl_device_id device, cl_command_queue_properties properties,
                                      cl_int *code) {
    if (is_now()) {
        if (code) *code = fault.code;
        return NULL;
    }
    return REAL(clCreateCommandQueue)(context, device, properties, code);
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

static char usual_cache[16]; /* FLASHGMM_CACHE as the program was given it; or empty */

static void cache_as_usual(void) {
    if (*usual_cache)
        setenv("FLASHGMM_CACHE", usual_cache, 1);
    else
        unsetenv("FLASHGMM_CACHE");
}

/* A context on the device under test, as that says of itself or with a memory of its own. */
static void watch(void *user, fgmm_log_level level, const char *line) {
    (void)user;
    (void)level;
    fault.fewer += strstr(line, "fewer rows stay") != NULL;
    fault.halved += strstr(line, "half the rows") != NULL;
    fault.unsettled += strstr(line, "all rows go through the screen") != NULL;
    fault.again += strstr(line, "once more, on the CPU") != NULL;
}

static fgmm_context *open_within(int discrete, size_t limit) {
    fgmm_context *ctx = NULL;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.device_memory_limit = limit;
    options.log = watch;
    options.log_level = FGMM_LOG_INFO;
    fault.discrete = discrete;
    set_fault(0, 0);
    ck_assert_int_eq(harness_open(&ctx, &options), FGMM_OK);
    fault.discrete = 0;
    return ctx;
}

static fgmm_context *open_as(int discrete) {
    return open_within(discrete, 0);
}

START_TEST(fails_at_any_call) {
    if (harness_is_cpu()) return;
    fgmm_context *ctx = open_as(_i % 2);
    problem *p = problem_close(600 + (uint64_t)_i, harness_rows(400, 12, 5), 12, 5, types[_i / 2 / TASKS]);
    task *run = tasks[_i / 2 % TASKS];
    outcome clean = {.n = 0};
    set_fault(0, 0);
    CHECK_OK(ctx, run(ctx, p, &clean)); /* the first time also builds kernels and tests them */
    outcome again = {.n = 0};
    set_fault(0, 0);
    CHECK_OK(ctx, run(ctx, p, &again));
    long calls = atomic_load(&fault.calls), step = calls / (harness_is_short() ? SHORT_POINTS : POINTS) + 1;
    ck_assert_int_gt(calls, 5);
    ck_assert(clean.n > 0 && memcmp(&clean, &again, sizeof clean) == 0);
    int reached = 0, points = 0;
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
        points++;
        reached += seen >= at; /* how many calls there are may hang on how soon a device has done its work */
        CHECK_OK(ctx, run(ctx, p, &mended));
        ck_assert_msg(memcmp(&mended, &clean, sizeof clean) == 0, "after call %ld failed, other results", at);
    }
    ck_assert_msg(2 * reached >= points, "%d of %d calls were reached", reached, points);
    problem_free(p);
    fgmm_context_free(ctx);
}
END_TEST

static int read_problem(void *user, int64_t first, int64_t n, void *dst) {
    const problem *p = user;
    size_t row = (size_t)p->d * fgmm_dtype_size(p->type);
    memcpy(dst, (const char *)p->rows + (size_t)first * row, (size_t)n * row);
    return 0;
}

/* The problem's rows, that no device can keep. */
static fgmm_rows *rows_once(fgmm_context *ctx, problem *p) {
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_rows *rows = NULL;
    callback.read = read_problem;
    callback.user = p;
    callback.type = p->type;
    callback.n = p->n;
    callback.d = p->d;
    callback.once = 1;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &rows, &callback));
    return rows;
}

/* Log-densities of rows that come in blocks, some with rows left out, and the sum of the weights: [n + 1]. */
static double *score_blocks(fgmm_context *ctx, problem *p) {
    fgmm_rows *rows = problem_rows(ctx, p), *once = rows_once(ctx, p);
    fgmm_model *model = problem_model(ctx, p);
    fgmm_compute_options compute = FGMM_COMPUTE_OPTIONS_INIT;
    compute.block_rows = 1024;
    compute.nonfinite = FGMM_NONFINITE_SKIP;
    double *log_prob = test_alloc((size_t)p->n + 1, sizeof *log_prob);
    fgmm_stats *stats = NULL;
    fgmm_stats_view view;
    CHECK_OK(ctx, fgmm_score_samples(ctx, model, rows, &compute, log_prob, NULL));
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, once, &compute, NULL));
    fgmm_stats_export(stats, &view);
    log_prob[p->n] = view.weight;
    fgmm_stats_free(ctx, stats);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, once);
    fgmm_rows_free(ctx, rows);
    return log_prob;
}

/* Rows in memory reach a device with memory of its own through pinned buffers that go round, as do buffers on the
 * device: what is in them is each time the block's. */
START_TEST(rows_are_staged) {
    if (harness_is_cpu()) return;
    problem *p = problem_clusters(620 + (uint64_t)_i, 8000, 3, 4, FGMM_DIAG, _i ? FGMM_F64 : FGMM_F32);
    double left_out = 0;
    for (int64_t i = 2048; i < p->n; i += 3100, left_out++) {
        if (_i)
            ((double *)p->rows)[i * p->stride] = NAN;
        else
            ((float *)p->rows)[i * p->stride] = NAN;
    }
    fgmm_context *own = open_as(1), *shared = open_as(0);
    fault.mapped = 0;
    double *expected = score_blocks(shared, p);
    long mapped = fault.mapped;
    ck_assert(expected[p->n] == (double)p->n - left_out);
    for (int again = 0; again < 2; again++) {
        double *log_prob = score_blocks(own, p);
        ck_assert(memcmp(log_prob, expected, (size_t)(p->n + 1) * sizeof *expected) == 0);
        free(log_prob);
    }
    if (p->type == FGMM_F32) ck_assert_int_ge(fault.mapped, 2 * mapped + 4); /* doubles are narrowed on the way */
    free(expected);
    fgmm_context_free(own);
    fgmm_context_free(shared);
    problem_free(p);
}
END_TEST

/* Rows in memory that a device cannot hold are pinned where they lie, if they are to come more than a few times. */
START_TEST(rows_are_pinned) {
    if (harness_is_cpu() || harness_is_slow()) return;
    enum { K = 4, D = 64, ROWS = 20000, LIMIT = 4 << 20 };
    float *data = test_alloc(ROWS * D, sizeof *data);
    uint32_t state = 625;
    for (int64_t i = 0; i < ROWS * D; i++) {
        state = state * 1664525u + 1013904223u; /* Knuth's */
        data[i] = (float)(i / D % K) + (float)(state >> 8) * 0x1p-24f;
    }
    const struct {
        size_t limit;
        int max_iter, pinned;
    } cases[] = {{0, 8, 0}, {LIMIT, 8, 1}, {LIMIT, 2, 0}};
    fgmm_model *models[3] = {NULL};
    fgmm_context *contexts[3];
    for (int i = 0; i < 3; i++) {
        fgmm_context *ctx = contexts[i] = open_within(1, cases[i].limit);
        fgmm_rows *rows = NULL;
        CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &rows, data, FGMM_F32, ROWS, D, 0));
        fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
        options.n_components = K;
        options.covariance_type = FGMM_DIAG;
        options.max_iter = cases[i].max_iter;
        options.tol = -1;
        options.compute.block_rows = 4096;
        fault.pinned = 0;
        CHECK_OK(ctx, fgmm_fit(ctx, &models[i], rows, &options, NULL));
        ck_assert_int_eq(fault.pinned, cases[i].pinned);
        fgmm_rows_free(ctx, rows);
    }
    contract_check_same(models[0], models[1]);
    for (int i = 0; i < 3; i++) {
        fgmm_model_free(contexts[i], models[i]);
        fgmm_context_free(contexts[i]);
    }
    free(data);
}
END_TEST

/*
 * A device that gives less than it says: as much as it takes is given up, and nothing else is different. Refused are
 * buffers as they are made, or, as by drivers that give memory late, at the first write; the scan, seeding, iterations
 * and scoring all go on.
 */
START_TEST(goes_on_with_less) {
    if (harness_is_cpu() || harness_is_slow()) return;
    enum { K = 20, D = 16, ROWS = 9000 };
    problem *p = problem_clusters(630 + (uint64_t)_i, ROWS, K, D, FGMM_DIAG, _i % 2 ? FGMM_F16 : FGMM_F32);
    int discrete = _i / 2 % 2;
    size_t before = fault.peak = fault.live;
    fgmm_context *plain = open_as(discrete);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_rows *rows = problem_rows(plain, p);
    fgmm_model *wanted = NULL, *start = problem_model(plain, p);
    fgmm_score_result score, again;
    options.n_components = K;
    options.covariance_type = FGMM_DIAG;
    options.max_iter = 2;
    options.tol = -1;
    options.compute.block_rows = _i / 4 ? 2048 : 0;
    CHECK_OK(plain, fgmm_fit(plain, &wanted, rows, &options, NULL));
    CHECK_OK(plain, fgmm_score(plain, start, rows, &options.compute, &score, NULL));
    size_t most = fault.peak - before, step = most / (harness_is_short() ? 10 : 40);
    fault.fewer = fault.halved = 0;
    int went_on = 0, ended = 0;
    /* From what it takes with all the room there is to where it ends. */
    for (size_t limit = most; limit > step && !ended; limit -= step) {
        fault.live_at_start = fault.live;
        fgmm_context *ctx = open_as(discrete);
        fgmm_rows *same = problem_rows(ctx, p);
        fgmm_model *model = NULL, *other = problem_model(ctx, p);
        fault.lazy = _i % 2;
        fault.refused = 0;
        fault.room = limit;
        fgmm_status status = fgmm_fit(ctx, &model, same, &options, &report);
        fgmm_status scored = fgmm_score(ctx, other, same, &options.compute, &again, NULL);
        fault.room = 0;
        if (status == FGMM_OK) contract_check_same(wanted, model);
        if (scored == FGMM_OK) ck_assert(memcmp(&score, &again, sizeof score) == 0);
        went_on += status == FGMM_OK && fault.refused > 0;
        ended = status != FGMM_OK;
        ck_assert(status == FGMM_OK || status == FGMM_ERR_MEMORY);
        ck_assert(scored == FGMM_OK || scored == FGMM_ERR_MEMORY);
        fgmm_model_free(ctx, model);
        fgmm_model_free(ctx, other);
        fgmm_rows_free(ctx, same);
        fgmm_context_free(ctx);
    }
    ck_assert_msg(went_on > 0 && fault.fewer > 0 && fault.halved > 0, "%d went on, %d kept fewer rows, %d halved",
                  went_on, fault.fewer, fault.halved);
    fgmm_model_free(plain, wanted);
    fgmm_model_free(plain, start);
    fgmm_rows_free(plain, rows);
    fgmm_context_free(plain);
    problem_free(p);
}
END_TEST

/* What does not fit however much is given up is an error, soon. */
START_TEST(ends_without_memory) {
    if (harness_is_cpu() || harness_is_slow()) return;
    enum { K = 20, D = 16, ROWS = 9000 };
    problem *p = problem_clusters(640, ROWS, K, D, FGMM_DIAG, FGMM_F32);
    fgmm_context *ctx = open_as(_i);
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *model = NULL;
    options.n_components = K;
    fault.live_at_start = 0;
    fault.lazy = 0;
    fault.room = 1;
    CHECK_FAILS(ctx, FGMM_ERR_MEMORY, fgmm_fit(ctx, &model, rows, &options, NULL));
    fault.room = 0;
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
    problem_free(p);
}
END_TEST

/* Kernels that only spare work, and that a device does not start, cost a warning, once. */
START_TEST(goes_without_settling) {
    if (harness_is_cpu()) return;
    static const char *const kernels[] = {"settle", "reach_between", "reach_nearest", "reach_moved"};
    fgmm_context *ctx = open_as(0);
    problem *p =
        problem_close(700 + (uint64_t)_i, harness_rows(1200, 12, 5), 12, 5, _i % 2 ? FGMM_DIAG : FGMM_SPHERICAL);
    outcome clean = {.n = 0};
    CHECK_OK(ctx, fit(ctx, p, &clean));
    fault.refuses = kernels[_i];
    fault.refusals = fault.unsettled = 0;
    for (int again = 0; again < 2; again++) {
        outcome without = {.n = 0};
        CHECK_OK(ctx, fit(ctx, p, &without));
        ck_assert_str_eq(fgmm_context_message(ctx), "");
        ck_assert(memcmp(&clean, &without, sizeof clean) == 0);
        ck_assert_int_eq(fault.refusals, 1);
        ck_assert_int_eq(fault.unsettled, 1);
    }
    fault.refuses = NULL;
    problem_free(p);
    fgmm_context_free(ctx);
}
END_TEST

/* The dense engine is built and tested when a row is first left to it, once. */
START_TEST(dense_engine_waits) {
    if (harness_is_cpu()) return;
    fgmm_covariance type = (fgmm_covariance)_i;
    problem *apart = problem_clusters(720, harness_rows(1200, 12, 5), 12, 5, type, FGMM_F32);
    problem *close = problem_close(721, harness_rows(1200, 40, 5), 40, 5, type);
    outcome o = {.n = 0};
    long calls[3];
    setenv("FLASHGMM_CACHE", "off", 1);
    fgmm_context *ctx = open_as(0);
    fault.dense = 0;
    CHECK_OK(ctx, fit(ctx, apart, &o));
    ck_assert_int_eq(fault.dense, 0);
    for (int again = 0; again < 3; again++) {
        set_fault(0, 0);
        CHECK_OK(ctx, infer(ctx, close, &o));
        calls[again] = atomic_load(&fault.calls);
        ck_assert_int_eq(fault.dense, 3);
    }
    ck_assert(calls[0] > 2 * calls[1] && calls[0] > 2 * calls[2]);
    fgmm_context_free(ctx);
    cache_as_usual();
    problem_free(apart);
    problem_free(close);
}
END_TEST

/* A dense engine that fails when it is first wanted, of all rows or in the middle of a pass, is an error, and one of each call until it is
 * right; smaller work-groups that it takes are none. */
START_TEST(dense_engine_fails) {
    if (harness_is_cpu() || harness_passes_over(_i)) return;
    fgmm_covariance type = (fgmm_covariance)(_i / 2);
    int64_t k = _i % 2 ? 40 : 5;
    problem *apart = problem_clusters(730, harness_rows(1200, 12, 5), 12, 5, type, FGMM_F32);
    problem *close = problem_close(731, harness_rows(1200, k, 5), k, 5, type);
    fgmm_context *ctx = open_as(0);
    for (int i = 0; i < 2; i++) {
        task *run = tasks[i];
        outcome clean = {.n = 0}, mended = {.n = 0}, smaller = {.n = 0}, none = {.n = 0};
        CHECK_OK(ctx, run(ctx, close, &clean));
        fgmm_context *other = open_as(0);
        fault.refuses = i ? "dense_lse" : "dense_sums";
        fault.fits = 0;
        CHECK_OK(other, fit(other, apart, &none));
        CHECK_FAILS(other, FGMM_ERR_DEVICE, run(other, close, &mended));
        ck_assert_ptr_nonnull(strstr(fgmm_context_message(other), "failed on"));
        CHECK_FAILS(other, FGMM_ERR_DEVICE, fit(other, apart, &none));
        fault.refuses = NULL;
        CHECK_OK(other, run(other, close, &mended));
        ck_assert(memcmp(&clean, &mended, sizeof clean) == 0);
        fgmm_context_free(other);
        other = open_as(0);
        fault.refuses = "dense_sums";
        fault.fits = 64;
        fault.refusals = 0;
        CHECK_OK(other, run(other, close, &smaller));
        ck_assert_int_le(fault.refusals, 1);
        for (size_t at = 0; at < clean.n; at++)
            ck_assert(fabs(smaller.numbers[at] - clean.numbers[at]) <= 1e-4 * (1 + fabs(clean.numbers[at])));
        fault.refuses = NULL;
        fault.fits = 0;
        fgmm_context_free(other);
    }
    fgmm_context_free(ctx);
    problem_free(apart);
    problem_free(close);
}
END_TEST

/* One that does not build, and one of wrong numbers. */
START_TEST(dense_engine_is_wrong) {
    if (harness_is_cpu()) return;
    static const char
        *const spoils[] = {"#error spoilt\n", "#define log(x) log2(x)\n"},
               *const words[] = {"does not build", "known-answer test of the dense engine"},
               *const options[] = {
                   "-cl-opt-disable -DSPOILT=2",
                   "-cl-opt-disable -DSPOILT=3"}; /* apart from sound ones, which are compiled for them, too: quickly */
    problem *apart = problem_clusters(740, harness_rows(1200, 12, 5), 12, 5, FGMM_DIAG, FGMM_F32);
    problem *close = problem_close(741, harness_rows(1200, 40, 5), 40, 5, FGMM_DIAG);
    outcome o = {.n = 0};
    setenv("FLASHGMM_CL_OPTIONS", options[_i], 1);
    fault.spoils = spoils[_i];
    fgmm_context *ctx = open_as(0);
    CHECK_OK(ctx, fit(ctx, apart, &o));
    for (int again = 0; again < 2; again++) {
        CHECK_FAILS(ctx, FGMM_ERR_DEVICE, fit(ctx, again ? apart : close, &o));
        ck_assert_msg(strstr(fgmm_context_message(ctx), words[_i]) != NULL, "%s", fgmm_context_message(ctx));
    }
    fgmm_context_free(ctx);
    fault.spoils = NULL;
    unsetenv("FLASHGMM_CL_OPTIONS");
    problem_free(apart);
    problem_free(close);
}
END_TEST

static void fit_on(const char *device, const problem *p, const char *on, outcome *out) {
    fgmm_context *ctx = NULL;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.device = device;
    options.log = watch;
    options.log_level = FGMM_LOG_INFO;
    ck_assert_int_eq(fgmm_context_create(&ctx, &options), FGMM_OK);
    fgmm_rows *rows = problem_rows(ctx, p);
    fgmm_model *start = problem_model(ctx, p), *model = NULL;
    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    o.init_model = start;
    o.covariance_type = p->covariance;
    o.max_iter = 1 << 20; /* much work, as far as one can tell */
    o.tol = 1e-2;
    CHECK_OK(ctx, fgmm_fit(ctx, &model, rows, &o, NULL));
    ck_assert_msg(strncmp(fgmm_context_device(ctx), on, strlen(on)) == 0, "on %s", fgmm_context_device(ctx));
    note(out, fgmm_model_means(model), p->k * p->d);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
}

/* Where "auto" took the device, a call that it fails in the middle of is made again on the CPU; what it fails at once is not begun there. */
START_TEST(auto_goes_on_with_the_cpu) {
    if (harness_is_cpu()) return;
    static const char *const refused[] = {NULL, "dense_sums", "accumulate"};
    problem *close = problem_close(750, harness_rows(1200, 40, 5), 40, 5, FGMM_DIAG);
    outcome wanted = {.n = 0};
    fit_on("cpu", close, "cpu", &wanted);
    for (int i = 0; i < 3; i++) {
        outcome got = {.n = 0};
        fault.gpu = 1;
        fault.again = 0;
        fault.refuses = refused[i];
        fault.fits = 0;
        fit_on("auto", close, i ? "cpu" : "opencl", &got);
        fault.refuses = NULL;
        fault.gpu = 0;
        ck_assert_int_eq(fault.again, i == 1);
        ck_assert(i == 0 || memcmp(&wanted, &got, sizeof wanted) == 0);
    }
    problem_free(close);
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

/* After a test, however it ended. */
static void calm(void) {
    fault.refuses = fault.spoils = NULL;
    fault.fits = 0;
    fault.gpu = fault.discrete = fault.lazy = 0;
    fault.room = 0;
    set_fault(0, 0);
    cache_as_usual();
    unsetenv("FLASHGMM_CL_OPTIONS");
}

static TCase *faults(void) {
    TCase *room = tcase_create("faults");
    tcase_add_checked_fixture(room, NULL, calm);
    tcase_add_loop_test(room, fails_at_any_call, 0, 4 * TASKS);
    tcase_add_loop_test(room, rows_are_staged, 0, 2);
    tcase_add_test(room, rows_are_pinned);
    tcase_add_loop_test(room, goes_on_with_less, 0, 8);
    tcase_add_loop_test(room, ends_without_memory, 0, 2);
    tcase_add_loop_test(room, goes_without_settling, 0, 4);
    tcase_add_loop_test(room, dense_engine_waits, 0, COVARIANCE_TYPES);
    tcase_add_loop_test(room, dense_engine_fails, 0, 2 * COVARIANCE_TYPES);
    tcase_add_loop_test(room, dense_engine_is_wrong, 0, 2);
    tcase_add_test(room, auto_goes_on_with_the_cpu);
    tcase_add_test(room, fails_while_opening);
    return room;
}

int main(void) {
    const char *cache = getenv("FLASHGMM_CACHE");
    if (cache) snprintf(usual_cache, sizeof usual_cache, "%s", cache);
    TCase *(*const rooms[])(void) = {faults};
    return harness_main("cl_faults", rooms, 1);
}
