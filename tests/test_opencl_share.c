/* An application's own OpenCL objects: its context and queue, and rows in its cl_mem with an offset, a pitch, events
 * to wait for and one back. */
#include "data_sets.h"

#include <flashgmm/opencl.h>

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct application {
    cl_context context;
    cl_device_id device;
    cl_command_queue queue, loose; /* in order and not */
    fgmm_context *ctx;
} application;

/* The device that the harness found, opened as an application would. */
static application application_open_within(size_t device_memory) {
    application app = {0};
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.device_memory_limit = device_memory;
    const char *label = fgmm_context_device(harness_context());
    cl_platform_id platforms[16];
    cl_uint n_platforms = 0;
    ck_assert_int_eq(clGetPlatformIDs(16, platforms, &n_platforms), CL_SUCCESS);
    for (cl_uint i = 0; i < n_platforms && !app.device; i++) {
        cl_device_id devices[16];
        cl_uint n = 0;
        if (clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 16, devices, &n) != CL_SUCCESS) continue;
        for (cl_uint j = 0; j < n && !app.device; j++) {
            char name[256] = "";
            clGetDeviceInfo(devices[j], CL_DEVICE_NAME, sizeof name, name, NULL);
            if (*name && strstr(label, name)) app.device = devices[j];
        }
    }
    ck_assert_msg(app.device != NULL, "no device is called as in \"%s\"", label);
    cl_int code;
    app.context = clCreateContext(NULL, 1, &app.device, NULL, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    app.queue = clCreateCommandQueue(app.context, app.device, 0, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    app.loose = clCreateCommandQueue(app.context, app.device, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, &code);
    fgmm_status status = fgmm_context_create_opencl(&app.ctx, &options, app.context, app.device, app.queue);
    ck_assert_msg(status == FGMM_OK, "%s", fgmm_status_name(status));
    return app;
}

static application application_open(void) {
    return application_open_within(0);
}

static void application_close(application *app) {
    fgmm_context_free(app->ctx);
    if (app->loose) clReleaseCommandQueue(app->loose);
    clReleaseCommandQueue(app->queue);
    clReleaseContext(app->context);
}

/* The problem's rows in a buffer, from byte `offset` on, a row each `pitch` bytes. */
static cl_mem upload(const application *app, const problem *p, size_t offset, size_t pitch) {
    size_t row = (size_t)p->d * fgmm_dtype_size(p->type), size = offset + pitch * (size_t)(p->n - 1) + row;
    char *bytes = test_alloc(size, 1);
    cl_int code;
    memset(bytes, 0xff, size); /* NaN all around */
    for (int64_t i = 0; i < p->n; i++)
        memcpy(bytes + offset + (size_t)i * pitch, (char *)p->rows + (size_t)(i * p->stride) * fgmm_dtype_size(p->type),
               row);
    cl_mem buffer = clCreateBuffer(app->context, CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR, size, bytes, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    free(bytes);
    return buffer;
}

static fgmm_stats *stats_of(fgmm_context *ctx, const problem *p, const fgmm_rows *rows) {
    fgmm_model *model = problem_model(ctx, p);
    fgmm_stats *stats = NULL;
    fgmm_compute_options options = FGMM_COMPUTE_OPTIONS_INIT;
    options.block_rows = 1024;
    CHECK_OK(ctx, fgmm_stats_create(ctx, &stats, model));
    CHECK_OK(ctx, fgmm_stats_accumulate(ctx, stats, rows, &options, NULL));
    fgmm_model_free(ctx, model);
    return stats;
}

static void check_same(const fgmm_stats *one, const fgmm_stats *other) {
    fgmm_stats_view a, b;
    fgmm_stats_export(one, &a);
    fgmm_stats_export(other, &b);
    ck_assert(a.log_likelihood == b.log_likelihood && a.weight == b.weight);
    ck_assert_int_eq(memcmp(a.s0, b.s0, (size_t)a.k * sizeof(double)), 0);
    ck_assert_int_eq(memcmp(a.s1, b.s1, (size_t)(a.k * a.d) * sizeof(double)), 0);
    ck_assert_int_eq(memcmp(a.s2, b.s2, (size_t)(a.covariance_type == FGMM_DIAG ? a.k * a.d : a.k) * sizeof(double)),
                     0);
}

/* Rows in a cl_mem and the same rows in memory give the same bits: each type, packed and with offset and pitch. */
START_TEST(as_in_memory) {
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_BF16, FGMM_U8, FGMM_I8};
    fgmm_dtype type = types[_i / 2];
    size_t element = fgmm_dtype_size(type);
    application app = application_open();
    problem *p = problem_clusters(60 + (uint64_t)_i, harness_rows(2500, 5, 7), 5, 7, (fgmm_covariance)(_i % 2), type);
    size_t offset = _i % 2 ? 5 * element : 0, pitch = _i % 2 ? 11 * element : 0;
    cl_mem buffer = upload(&app, p, offset, pitch ? pitch : (size_t)p->d * element);
    fgmm_rows *shared = NULL, *memory = problem_rows(app.ctx, p), *slice = NULL, *memory_slice = NULL;
    CHECK_OK(app.ctx, fgmm_rows_from_cl_mem(app.ctx, &shared, buffer, type, p->n, p->d, offset, pitch, 0, NULL));
    clReleaseMemObject(buffer); /* the rows hold it */
    fgmm_stats *a = stats_of(app.ctx, p, shared), *b = stats_of(app.ctx, p, memory);
    check_same(a, b);
    fgmm_stats_free(app.ctx, a);
    fgmm_stats_free(app.ctx, b);

    CHECK_OK(app.ctx, fgmm_rows_slice(app.ctx, &slice, shared, p->n / 3, p->n / 2));
    CHECK_OK(app.ctx, fgmm_rows_slice(app.ctx, &memory_slice, memory, p->n / 3, p->n / 2));
    a = stats_of(app.ctx, p, slice), b = stats_of(app.ctx, p, memory_slice);
    check_same(a, b);
    fgmm_stats_free(app.ctx, a);
    fgmm_stats_free(app.ctx, b);
    fgmm_rows_free(app.ctx, slice);
    fgmm_rows_free(app.ctx, memory_slice);
    fgmm_rows_free(app.ctx, shared);
    fgmm_rows_free(app.ctx, memory);
    problem_free(p);
    application_close(&app);
}
END_TEST

/* A whole fit in the application's buffer, its seeding on the device too. */
START_TEST(fits_in_place) {
    application app = application_open();
    problem *p = problem_clusters(70, harness_rows(2000, 4, 3), 4, 3, (fgmm_covariance)_i, FGMM_F32);
    cl_mem buffer = upload(&app, p, 0, (size_t)p->d * sizeof(float));
    fgmm_rows *shared = NULL, *memory = problem_rows(app.ctx, p);
    fgmm_model *a = NULL, *b = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = 4;
    options.covariance_type = _i ? FGMM_DIAG : FGMM_SPHERICAL;
    CHECK_OK(app.ctx, fgmm_rows_from_cl_mem(app.ctx, &shared, buffer, FGMM_F32, p->n, p->d, 0, 0, 0, NULL));
    CHECK_OK(app.ctx, fgmm_fit(app.ctx, &a, shared, &options, NULL));
    CHECK_OK(app.ctx, fgmm_fit(app.ctx, &b, memory, &options, NULL));
    ck_assert_int_eq(memcmp(fgmm_model_means(a), fgmm_model_means(b), 12 * sizeof(double)), 0);
    ck_assert(fgmm_model_lower_bound(a) == fgmm_model_lower_bound(b));
    fgmm_model_free(app.ctx, a);
    fgmm_model_free(app.ctx, b);
    fgmm_rows_free(app.ctx, shared);
    fgmm_rows_free(app.ctx, memory);
    clReleaseMemObject(buffer);
    problem_free(p);
    application_close(&app);
}
END_TEST

/* The first use waits for the application's write, which a user event holds back; after the event that comes
 * back, the buffer may be written. */
START_TEST(events) {
    application app = application_open();
    problem *p = problem_clusters(71, harness_rows(1500, 4, 3), 4, 3, FGMM_SPHERICAL, FGMM_F32);
    size_t size = (size_t)(p->n * p->d) * sizeof(float);
    cl_int code;
    cl_command_queue other = clCreateCommandQueue(app.context, app.device, 0, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    cl_mem buffer = clCreateBuffer(app.context, CL_MEM_READ_WRITE, size, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    cl_event gate = clCreateUserEvent(app.context, &code), written = NULL, used = NULL;
    fgmm_rows *shared = NULL, *memory = problem_rows(app.ctx, p);
    ck_assert_int_eq(clEnqueueWriteBuffer(other, buffer, CL_FALSE, 0, size, p->rows, 1, &gate, &written), CL_SUCCESS);
    CHECK_OK(app.ctx, fgmm_rows_from_cl_mem(app.ctx, &shared, buffer, FGMM_F32, p->n, p->d, 0, 0, 1,
                                            (struct _cl_event *const *)&written));
    clReleaseEvent(written); /* the rows hold it */
    clFlush(other);
    ck_assert_int_eq(clSetUserEventStatus(gate, CL_COMPLETE), CL_SUCCESS);
    fgmm_stats *a = stats_of(app.ctx, p, shared), *b = stats_of(app.ctx, p, memory);
    check_same(a, b);
    CHECK_OK(app.ctx, fgmm_rows_cl_event(app.ctx, shared, (struct _cl_event **)&used));
    ck_assert_ptr_nonnull(used);
    ck_assert_int_eq(clWaitForEvents(1, &used), CL_SUCCESS);
    clReleaseEvent(used);
    struct _cl_event *none = NULL;
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, fgmm_rows_cl_event(app.ctx, memory, &none));
    fgmm_stats_free(app.ctx, a);
    fgmm_stats_free(app.ctx, b);
    fgmm_rows_free(app.ctx, shared);
    fgmm_rows_free(app.ctx, memory);
    clReleaseEvent(gate);
    clReleaseMemObject(buffer);
    clReleaseCommandQueue(other);
    problem_free(p);
    application_close(&app);
}
END_TEST

START_TEST(bad_handles) {
    application app = application_open();
    fgmm_context *none = NULL, *cpu = NULL;
    fgmm_rows *rows = NULL;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    cl_int code;
    cl_mem buffer = clCreateBuffer(app.context, CL_MEM_READ_WRITE, 120, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    if (app.loose) {
        ck_assert_int_eq(fgmm_context_create_opencl(&none, NULL, app.context, app.device, app.loose),
                         FGMM_ERR_UNSUPPORTED);
        ck_assert_ptr_null(none);
    }
    ck_assert_int_ne(fgmm_context_create_opencl(&none, NULL, NULL, NULL, NULL), FGMM_OK);
#define ROWS(type, n, d, offset, pitch)                                                                                \
    fgmm_rows_from_cl_mem(app.ctx, &rows, buffer, type, n, d, offset, pitch, 0, NULL)
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, 11, 3, 0, 0)); /* 132 bytes */
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, 10, 3, 4, 0));
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, 10, 3, 2, 12)); /* offset within an element */
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, 5, 3, 0, 14));
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, 5, 3, 0, 8)); /* rows overlap */
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, 0, 3, 0, 0));
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F32, INT64_MAX / 2, 3, 0, SIZE_MAX / 8 * 4));
    CHECK_FAILS(app.ctx, FGMM_ERR_INVALID, ROWS(FGMM_F64, 5, 3, 0, 0));
#undef ROWS
    options.device = "cpu";
    ck_assert_int_eq(fgmm_context_create(&cpu, &options), FGMM_OK);
    CHECK_FAILS(cpu, FGMM_ERR_INVALID, fgmm_rows_from_cl_mem(cpu, &rows, buffer, FGMM_F32, 10, 3, 0, 0, 0, NULL));
    ck_assert_ptr_null(rows);
    fgmm_context_free(cpu);
    clReleaseMemObject(buffer);
    application_close(&app);
}
END_TEST

/* Rows in the caller's buffer cannot make way for work that has no room: an error, and soon. */
START_TEST(no_room_beside_them) {
    if (harness_is_slow()) return;
    enum { N = 3000, K = 2500, D = 256, LIMIT = 16 << 20 };
    application app = application_open_within(LIMIT);
    problem p = {.n = N, .d = D, .stride = D, .type = FGMM_F32};
    float *values = test_alloc(N * D, sizeof *values);
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    rng r = rng_make(1);
    for (int i = 0; i < N * D; i++) values[i] = (float)rng_normal(&r);
    p.rows = values;
    cl_mem buffer = upload(&app, &p, 0, D * sizeof *values);
    CHECK_OK(app.ctx, fgmm_rows_from_cl_mem(app.ctx, &rows, buffer, FGMM_F32, N, D, 0, 0, 0, NULL));
    options.n_components = K;
    options.init = FGMM_INIT_RANDOM_FROM_DATA;
    CHECK_FAILS(app.ctx, FGMM_ERR_MEMORY, fgmm_fit(app.ctx, &model, rows, &options, NULL));
    fgmm_rows_free(app.ctx, rows);
    clReleaseMemObject(buffer);
    application_close(&app);
    free(values);
}
END_TEST

static TCase *sharing(void) {
    TCase *room = tcase_create("sharing");
    tcase_add_loop_test(room, as_in_memory, 0, 10);
    tcase_add_loop_test(room, fits_in_place, 0, 2);
    tcase_add_test(room, events);
    tcase_add_test(room, no_room_beside_them);
    tcase_add_test(room, bad_handles);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {sharing};
    return harness_main("sharing OpenCL", rooms, 1);
}
