/* The OpenCL backend's ground floor: choice of device, counted buffers, programs and their disk cache.
 * Device: FLASHGMM_TEST_DEVICE = "opencl:NAME", or any. */
#include <check.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../cl/cl_backend.h"
#include "../cl/cl_cache.h"
#include "../cl/cl_devices.h"
#include "../cl/cl_engine.h"
#include "../cl/cl_program.h"
#include "../cl/cl_tuning.h"

/* ---- a host that counts, remembers and can run out of memory ---- */

static struct {
    atomic_int live, calls; /* a driver's compilers run in threads */
    int fail_at;            /* fail_at: this allocation fails, counted from 1; 0: none */
    char message[8192];
    int warnings;
} state;

static void *host_alloc(void *user, size_t bytes) {
    (void)user;
    if (++state.calls == state.fail_at) return NULL;
    void *pointer = NULL;
    if (posix_memalign(&pointer, 64, bytes ? bytes : 1) != 0) return NULL;
    state.live++;
    return pointer;
}

static void host_free(void *user, void *pointer) {
    (void)user;
    if (pointer) state.live--;
    free(pointer);
}

__attribute__((format(printf, 3, 4))) static fgmm_status host_fail(void *user, fgmm_status status, const char *format,
                                                                   ...) {
    (void)user;
    va_list list;
    va_start(list, format);
    vsnprintf(state.message, sizeof state.message, format, list);
    va_end(list);
    return status;
}

__attribute__((format(printf, 3, 4))) static void host_log(void *user, fgmm_log_level level, const char *format, ...) {
    (void)user;
    (void)format;
    if (level <= FGMM_LOG_WARNING) state.warnings++;
}

static int host_cancelled(void *user) {
    (void)user;
    return 0;
}

static void host_forget(void *user) {
    (void)user;
    state.message[0] = 0;
}

static fgmm_host host = {.alloc = host_alloc,
                         .free = host_free,
                         .fail = host_fail,
                         .log = host_log,
                         .forget = host_forget,
                         .cancelled = host_cancelled};

static char selector_text[128];
static fgmm_open_request request = {.any_kind = 1};
static char platform_name[128];
static char folder[64] = "/tmp/flashgmm-test-XXXXXX";
/* With other programs: the cache of tests that are about something else, and build much. */
static const char *shared_cache = folder;

static fgmm_device *open_device(void) {
    fgmm_device *device = NULL;
    fgmm_status status = cl_device_open(&host, &request, &device);
    ck_assert_msg(status == FGMM_OK, "%s", state.message);
    return device;
}

/* ---- kernels of the tests ---- */

static const cl_source good = {"good", "#ifndef BY\n#define BY 2.0f\n#endif\n"
                                       "kernel void scale(global const float *x, global float *y, float a, uint n) {\n"
                                       "    uint i = get_global_id(0);\n"
                                       "    if (i < n) y[i] = BY * a * x[i];\n"
                                       "}\n"
                                       "kernel void fill(global float *y, uint n) {\n"
                                       "    uint i = get_global_id(0);\n"
                                       "    if (i < n) y[i] = 7.0f;\n"
                                       "}\n"};
static const cl_source broken = {"broken", "kernel void f(global float *y) { y[0] = an_unknown_name_in_here; }\n"};

enum { N = 1000 };

/* Runs scale on the device: y = by * 3 * i exactly. */
static void check_scale(fgmm_device *device, const char *options, float by) {
    cl_kernel kernel = NULL;
    cl_mem x = NULL, y = NULL;
    float values[N], a = 3.0f;
    cl_uint n = N;
    for (int i = 0; i < N; i++) values[i] = (float)i;
    fgmm_status status = cl_kernel_from(device, &kernel, &good, options, "scale");
    ck_assert_msg(status == FGMM_OK, "%s", state.message);
    ck_assert_int_eq(cl_buffer(device, &x, sizeof values, "x"), FGMM_OK);
    ck_assert_int_eq(cl_buffer(device, &y, sizeof values, "y"), FGMM_OK);
    ck_assert_int_eq(clEnqueueWriteBuffer(device->queue, x, CL_TRUE, 0, sizeof values, values, 0, NULL, NULL), 0);
    size_t global = N + 24;
    cl_arg arguments[] = {CL_ARG(x), CL_ARG(y), CL_ARG(a), CL_ARG(n)};
    status = cl_run(device, kernel, "scale", 1, &global, NULL, arguments, 4);
    ck_assert_msg(status == FGMM_OK, "%s", state.message);
    ck_assert_int_eq(clEnqueueReadBuffer(device->queue, y, CL_TRUE, 0, sizeof values, values, 0, NULL, NULL), 0);
    for (int i = 0; i < N; i++) ck_assert(values[i] == by * 3.0f * (float)i);
    cl_buffer_free(device, x);
    cl_buffer_free(device, y);
    ck_assert_int_eq(device->bytes, 0);
}

/* ---- the cache as files ---- */

static int count_entries(char *last, size_t size) {
    int count = 0;
    DIR *listing = opendir(folder);
    if (!listing) return 0;
    for (struct dirent *entry; (entry = readdir(listing));) {
        if (entry->d_name[0] == '.') continue;
        count++;
        if (last) snprintf(last, size, "%s/%s", folder, entry->d_name);
    }
    closedir(listing);
    return count;
}

static void empty_folder(void) {
    char path[512];
    while (count_entries(path, sizeof path) && unlink(path) == 0) continue;
}

static void change_byte(const char *path, long at) {
    FILE *file = fopen(path, "r+b");
    ck_assert_ptr_nonnull(file);
    fseek(file, at, SEEK_SET);
    int byte = fgetc(file);
    fseek(file, at, SEEK_SET);
    fputc(byte ^ 0x10, file);
    fclose(file);
}

static cl_cache_key key_of(const char *a, const char *b) {
    return cl_cache_hash((const char *const[]){a, b}, 2);
}

static int same_key(cl_cache_key a, cl_cache_key b) {
    return a.word[0] == b.word[0] && a.word[1] == b.word[1];
}

START_TEST(keys_differ) {
    ck_assert(same_key(key_of("ab", "c"), key_of("ab", "c")));
    ck_assert(!same_key(key_of("ab", "c"), key_of("a", "bc")));
    ck_assert(!same_key(key_of("ab", "c"), key_of("ab", "d")));
    ck_assert(!same_key(key_of("", ""), cl_cache_hash((const char *const[]){""}, 1)));
    /* every one of a few thousand near neighbours has both halves of its own */
    enum { MANY = 2000 };
    static cl_cache_key keys[MANY];
    for (int i = 0; i < MANY; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        keys[i] = key_of("-DROW_TYPE", number);
        for (int j = 0; j < i; j++) ck_assert(keys[i].word[0] != keys[j].word[0] && keys[i].word[1] != keys[j].word[1]);
    }
}
END_TEST

START_TEST(entry_round_trip) {
    unsigned char content[300], *back = NULL;
    size_t size = 0;
    char path[512];
    for (size_t i = 0; i < sizeof content; i++) content[i] = (unsigned char)(i * 7);
    cl_cache_key key = key_of("source", "options");
    empty_folder();
    ck_assert(!cl_cache_load(&host, key, &back, &size));
    ck_assert(cl_cache_store(&host, key, content, sizeof content));
    ck_assert_int_eq(count_entries(path, sizeof path), 1); /* nothing left beside it */
    ck_assert(cl_cache_load(&host, key, &back, &size));
    ck_assert_uint_eq(size, sizeof content);
    ck_assert_mem_eq(back, content, size);
    host_free(NULL, back);

    struct stat facts;
    ck_assert_int_eq(stat(path, &facts), 0);
    ck_assert_uint_eq(facts.st_mode & 077, 0);
    for (long at = 0; at < (long)facts.st_size; at++) { /* each byte of it counts */
        change_byte(path, at);
        ck_assert_msg(!cl_cache_load(&host, key, &back, &size), "byte %ld", at);
        change_byte(path, at);
    }
    ck_assert(cl_cache_load(&host, key, &back, &size));
    host_free(NULL, back);
    for (off_t length = facts.st_size - 1; length >= 0; length -= 13) {
        ck_assert_int_eq(truncate(path, length), 0);
        ck_assert(!cl_cache_load(&host, key, &back, &size));
    }
    ck_assert(cl_cache_store(&host, key, content, sizeof content)); /* a bad one is replaced */
    ck_assert(cl_cache_load(&host, key, &back, &size));
    host_free(NULL, back);
    cl_cache_drop(key);
    ck_assert_int_eq(count_entries(NULL, 0), 0);
}
END_TEST

START_TEST(folders_of_others_are_left_alone) {
    unsigned char content[4] = {1, 2, 3, 4}, *back = NULL;
    size_t size = 0;
    cl_cache_key key = key_of("a", "b");
    ck_assert(cl_cache_store(&host, key, content, sizeof content));
    ck_assert_int_eq(chmod(folder, 0777), 0);
    ck_assert(!cl_cache_load(&host, key, &back, &size));
    ck_assert(!cl_cache_store(&host, key, content, sizeof content));
    ck_assert_int_eq(chmod(folder, 0700), 0);
    ck_assert(cl_cache_load(&host, key, &back, &size));
    host_free(NULL, back);
    setenv("FLASHGMM_CACHE", "off", 1);
    ck_assert(!cl_cache_load(&host, key, &back, &size));
    ck_assert(!cl_cache_store(&host, key, content, sizeof content));
    unsetenv("FLASHGMM_CACHE");
    empty_folder();
}
END_TEST

START_TEST(folder_is_made) {
    char deep[128], path[256];
    unsigned char content[4] = {1, 2, 3, 4};
    struct stat facts;
    snprintf(deep, sizeof deep, "%s/x/y", folder);
    unsetenv("FLASHGMM_CACHE_DIR");
    setenv("XDG_CACHE_HOME", deep, 1);
    ck_assert(cl_cache_folder(path, sizeof path));
    ck_assert_int_eq(strncmp(path, deep, strlen(deep)), 0);
    ck_assert(cl_cache_store(&host, key_of("a", "b"), content, sizeof content));
    ck_assert_int_eq(stat(path, &facts), 0);
    ck_assert_uint_eq(facts.st_mode & 0777, 0700);
    cl_cache_drop(key_of("a", "b"));
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(rmdir(deep), 0);
    *strrchr(deep, '/') = 0;
    ck_assert_int_eq(rmdir(deep), 0);
    unsetenv("XDG_CACHE_HOME");
    setenv("FLASHGMM_CACHE_DIR", folder, 1);
}
END_TEST

START_TEST(choice) {
    cl_found found[5];
    char why[512];
    memset(found, 0, sizeof found);
    static const struct {
        const char *name, *platform, *note;
        int usable, order[4];
    } rows[5] = {{"pthread-haswell", "Portable Computing Language", "", 1, {0, 0, 0, 90}},
                 {"Radeon RX", "rusticl", "", 1, {2, 1, 0, 80}},
                 {"Iris", "Intel(R) OpenCL", "", 1, {2, 0, 1, 99}},
                 {"Radeon RX", "AMD APP", "", 1, {2, 1, 1, 50}},
                 {"Old card", "AMD APP", "its driver has no compiler", 0, {2, 1, 1, 500}}};
    for (int i = 0; i < 5; i++) {
        snprintf(found[i].info.id, sizeof found[i].info.id, "opencl:%d.0", i);
        snprintf(found[i].info.name, sizeof found[i].info.name, "%s", rows[i].name);
        snprintf(found[i].info.note, sizeof found[i].info.note, "%s", rows[i].note);
        snprintf(found[i].platform_name, sizeof found[i].platform_name, "%s", rows[i].platform);
        found[i].info.usable = rows[i].usable;
        memcpy(found[i].order, rows[i].order, sizeof rows[i].order);
    }
    ck_assert_int_eq(cl_devices_choose(found, 5, NULL, 0, why, sizeof why), 3); /* the maker's own platform */
    ck_assert_int_eq(cl_devices_choose(found, 3, NULL, 0, why, sizeof why), 1); /* discrete before integrated */
    ck_assert_int_eq(cl_devices_choose(found, 1, NULL, 0, why, sizeof why), -1);
    ck_assert_ptr_nonnull(strstr(why, "no OpenCL GPU"));
    ck_assert_int_eq(cl_devices_choose(found, 1, NULL, 1, why, sizeof why), 0);
    ck_assert_int_eq(cl_devices_choose(found, 5, "rAdEoN", 0, why, sizeof why), 1); /* first by that name */
    ck_assert_int_eq(cl_devices_choose(found, 5, "portable", 0, why, sizeof why), 0);
    ck_assert_int_eq(cl_devices_choose(found, 5, "2.0", 0, why, sizeof why), 2);
    ck_assert_int_eq(cl_devices_choose(found, 5, "9.0", 0, why, sizeof why), -1);
    ck_assert_int_eq(cl_devices_choose(found, 5, "Old", 0, why, sizeof why), -1);
    ck_assert_ptr_nonnull(strstr(why, "no compiler"));
    ck_assert_int_eq(cl_devices_choose(found, 5, "GeForce", 0, why, sizeof why), -1);
    ck_assert_ptr_nonnull(strstr(why, "GeForce"));
    ck_assert_ptr_nonnull(strstr(why, "Iris"));
    char small[24]; /* and never over the end */
    ck_assert_int_eq(cl_devices_choose(found, 5, "GeForce", 0, small, sizeof small), -1);
    ck_assert_uint_lt(strlen(small), sizeof small);
}
END_TEST

START_TEST(absent_device) {
    fgmm_device *device = NULL;
    fgmm_open_request absent = {.selector = "no such card"};
    ck_assert_int_eq(cl_device_open(&host, &absent, &device), FGMM_ERR_DEVICE);
    ck_assert_ptr_null(device);
    ck_assert_ptr_nonnull(strstr(state.message, "no such card"));
    ck_assert_int_eq(state.live, 0);
}
END_TEST

START_TEST(buffers_are_counted) {
    cl_mem a = NULL, b = NULL, c = NULL;
    host.device_memory_limit = 1 << 20;
    fgmm_device *device = open_device();
    host.device_memory_limit = 0;
    ck_assert_int_eq(device->limit_bytes, 1 << 20);
    ck_assert_int_eq(cl_buffer(device, &a, 600000, "the first"), FGMM_OK);
    ck_assert_int_eq(cl_buffer(device, &b, 600000, "the second"), FGMM_ERR_MEMORY);
    ck_assert_ptr_null(b);
    ck_assert_ptr_nonnull(strstr(state.message, "the second"));
    ck_assert_int_eq(cl_buffer(device, &c, 0, "nothing"), FGMM_OK);
    ck_assert_int_eq(device->bytes, 600016);
    cl_buffer_free(device, a);
    cl_buffer_free(device, NULL);
    ck_assert_int_eq(device->bytes, 16);
    ck_assert_int_eq(cl_buffer(device, &b, (1 << 20) - 16, "all the rest"), FGMM_OK);
    ck_assert_int_eq(device->peak_bytes, 1 << 20);
    cl_buffer_free(device, b);
    cl_buffer_free(device, c);
    ck_assert_int_eq(device->bytes, 0);
    ck_assert_int_eq(cl_buffer(device, &a, SIZE_MAX, "too much"), FGMM_ERR_MEMORY);
    ck_assert_int_eq(cl_buffer(device, &a, device->max_alloc + 1, "too much"), FGMM_ERR_MEMORY);
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

/* Pinned memory carries what is sent and read, whether the driver made it or pages of ours are pinned. */
START_TEST(pinned_memory_carries) {
    enum { BYTES = 3 << 20, WORDS = BYTES / 4 };
    for (int pages = 0; pages < 2; pages++) {
        fgmm_device *device = open_device();
        cl_mem buffer = NULL;
        cl_pinned pinned[2];
        if (device->type == CL_DEVICE_TYPE_CPU) device->unified = !(device->pins = pages);
        for (int i = 0; i < 2; i++) {
            cl_pinned_open(device, &pinned[i], BYTES);
            ck_assert_ptr_nonnull(pinned[i].mem);
            ck_assert_int_eq(pinned[i].pages, device->pins);
        }
        uint32_t *out = pinned[0].at, *in = pinned[1].at;
        for (uint32_t i = 0; i < WORDS; i++) out[i] = 2654435761u * (i + 1);
        ck_assert_int_eq(cl_buffer(device, &buffer, BYTES, "a test"), FGMM_OK);
        ck_assert_int_eq(clEnqueueWriteBuffer(device->queue, buffer, CL_FALSE, 0, BYTES, out, 0, NULL, NULL),
                         CL_SUCCESS);
        ck_assert_int_eq(clEnqueueReadBuffer(device->queue, buffer, CL_TRUE, 0, BYTES, in, 0, NULL, NULL), CL_SUCCESS);
        ck_assert_int_eq(memcmp(in, out, BYTES), 0);
        for (int i = 0; i < 2; i++) cl_pinned_close(device, &pinned[i]);
        cl_buffer_free(device, buffer);
        cl_device_close(device);
        ck_assert_int_eq(state.live, 0);
    }
}
END_TEST

START_TEST(failures_have_words) {
    fgmm_device *device = open_device();
    ck_assert_int_eq(cl_fail(device, CL_OUT_OF_RESOURCES, "screen"), FGMM_ERR_DEVICE);
    ck_assert_ptr_nonnull(strstr(state.message, "screen failed on "));
    ck_assert_ptr_nonnull(strstr(state.message, "CL_OUT_OF_RESOURCES (-5)"));
    ck_assert_int_eq(cl_fail(device, CL_MEM_OBJECT_ALLOCATION_FAILURE, "rows"), FGMM_ERR_MEMORY);
    cl_kernel kernel = NULL;
    ck_assert_int_eq(cl_kernel_get(device, &kernel, "no_such_program", "", "f"), FGMM_ERR_INTERNAL);
    ck_assert_int_eq(cl_kernel_from(device, &kernel, &good, "", "no_such_kernel"), FGMM_ERR_DEVICE);
    ck_assert_ptr_nonnull(strstr(state.message, "no_such_kernel"));
    ck_assert_int_eq(cl_kernel_from(device, &kernel, &good, "", "scale"), FGMM_OK);
    size_t global = 1;
    char wrong[3] = {0};
    ck_assert_int_eq(cl_run(device, kernel, "scale", 1, &global, NULL, &CL_ARG(wrong), 1), FGMM_ERR_DEVICE);
    ck_assert_ptr_nonnull(strstr(state.message, "argument 0"));
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

START_TEST(build_failure_shows_the_log) {
    fgmm_device *device = open_device();
    cl_kernel kernel = NULL;
    ck_assert_int_eq(cl_kernel_from(device, &kernel, &broken, "", "f"), FGMM_ERR_DEVICE);
    ck_assert_msg(strstr(state.message, "broken.cl does not build") != NULL, "%s", state.message);
    ck_assert_msg(strstr(state.message, "an_unknown_name_in_here") != NULL, "%s", state.message);
    ck_assert_uint_lt(strlen(state.message), 2000);
    ck_assert(cl_opened_of(device)->build_failed);
    setenv("FLASHGMM_CL_OPTIONS", "-DBY=garbage", 1);
    ck_assert_int_eq(cl_kernel_from(device, &kernel, &good, "", "scale"), FGMM_ERR_DEVICE);
    ck_assert_ptr_nonnull(strstr(state.message, "garbage"));
    unsetenv("FLASHGMM_CL_OPTIONS");
    check_scale(device, "", 2.0f); /* a failure leaves nothing behind */
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

START_TEST(kernels_are_kept) {
    empty_folder();
    fgmm_device *device = open_device();
    cl_opened *opened = cl_opened_of(device);
    cl_kernel a = NULL, b = NULL;
    ck_assert_int_eq(cl_kernel_from(device, &a, &good, "", "scale"), FGMM_OK);
    ck_assert_int_eq(cl_kernel_from(device, &b, &good, "", "scale"), FGMM_OK);
    ck_assert_ptr_eq(a, b);
    ck_assert_int_eq(cl_kernel_from(device, &b, &good, "", "fill"), FGMM_OK);
    ck_assert_ptr_ne(a, b);
    ck_assert_int_eq(opened->programs_built, 1); /* two kernels, one program */
    check_scale(device, "-DBY=5.0f", 5.0f);
    check_scale(device, "", 2.0f);
    ck_assert_int_eq(opened->programs_built, 2);
    cl_kernels_free(device);
    opened->unoptimised = 1; /* its own entry in the cache */
    check_scale(device, "", 2.0f);
    ck_assert_int_eq(opened->programs_built, 3);
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

/* Opens, runs, closes; says how the program came. */
static void run_once(int expect_hits, int expect_built) {
    fgmm_device *device = open_device();
    check_scale(device, "", 2.0f);
    cl_kernel other = NULL; /* every kernel of a program comes with it */
    ck_assert_int_eq(cl_kernel_from(device, &other, &good, "", "fill"), FGMM_OK);
    ck_assert_int_eq(cl_opened_of(device)->cache_hits, expect_hits);
    ck_assert_int_eq(cl_opened_of(device)->programs_built, expect_built);
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}

START_TEST(programs_come_from_the_disk) {
    char path[512];
    unsigned char rubbish[4096];
    empty_folder();
    run_once(0, 1);
    if (count_entries(path, sizeof path) == 0) return; /* a driver without binaries, as Oclgrind may be */
    ck_assert_int_eq(count_entries(path, sizeof path), 1);
    run_once(1, 0);
    change_byte(path, 200);
    run_once(0, 1); /* damaged: built again and replaced */
    run_once(1, 0);
    ck_assert_int_eq(truncate(path, 30), 0);
    run_once(0, 1);
    run_once(1, 0);

    /* a whole entry that the driver refuses */
    if (strstr(platform_name, "rusticl")) {
        printf("cl runtime: refused binaries SKIPPED: this rusticl aborts the process on one\n");
        return;
    }
    cl_cache_key key;
    ck_assert_int_eq(sscanf(strrchr(path, '/') + 1, "%16" SCNx64 "%16" SCNx64, &key.word[0], &key.word[1]), 2);
    memset(rubbish, 0x5a, sizeof rubbish);
    ck_assert(cl_cache_store(&host, key, rubbish, sizeof rubbish));
    run_once(0, 1);
    run_once(1, 0);
    setenv("FLASHGMM_CACHE", "off", 1);
    run_once(0, 1);
    unsetenv("FLASHGMM_CACHE");
    ck_assert_int_eq(state.warnings, 0);
}
END_TEST

START_TEST(shared_handles) {
    fgmm_device *owner = open_device(), *device = NULL;
    cl_int code = CL_SUCCESS;
    cl_uint before = 0, during = 0, after = 0;
    fgmm_open_request shared = {.cl_context = owner->context, .cl_device = owner->id, .cl_queue = owner->queue};
    clGetContextInfo(owner->context, CL_CONTEXT_REFERENCE_COUNT, sizeof before, &before, NULL);
    ck_assert_int_eq(cl_device_open(&host, &shared, &device), FGMM_OK);
    clGetContextInfo(owner->context, CL_CONTEXT_REFERENCE_COUNT, sizeof during, &during, NULL);
    ck_assert_uint_gt(during, before);
    ck_assert_str_eq(device->name, owner->name);
    check_scale(device, "", 2.0f);
    cl_device_close(device);
    /* A driver's own thread may let go of finished commands a little later (rusticl). */
    for (int tries = 0; tries < 200; tries++) {
        clFinish(owner->queue);
        clGetContextInfo(owner->context, CL_CONTEXT_REFERENCE_COUNT, sizeof after, &after, NULL);
        if (after == before) break;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    ck_assert_uint_eq(before, after);
    check_scale(owner, "", 2.0f);

    cl_command_queue loose =
        clCreateCommandQueue(owner->context, owner->id, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, &code);
    if (code == CL_SUCCESS) {
        shared.cl_queue = loose;
        ck_assert_int_eq(cl_device_open(&host, &shared, &device), FGMM_ERR_UNSUPPORTED);
        ck_assert_ptr_null(device);
        clReleaseCommandQueue(loose);
    }
    fgmm_device *other = open_device();
    shared.cl_queue = other->queue;
    ck_assert_int_eq(cl_device_open(&host, &shared, &device), FGMM_ERR_INVALID);
    cl_device_close(other);
    cl_device_close(owner);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

START_TEST(handshake) {
    const fgmm_backend *backend = cl_backend_entry(FGMM_BACKEND_ABI);
    ck_assert_ptr_nonnull(backend);
    ck_assert_uint_eq(backend->abi, FGMM_BACKEND_ABI);
    ck_assert_str_eq(backend->name, "opencl");
    ck_assert_ptr_null(cl_backend_entry(FGMM_BACKEND_ABI + 1));

    fgmm_device_info infos[16];
    int n = 0;
    ck_assert_int_eq(backend->list(&host, infos, 16, &n, NULL, 0), FGMM_OK);
    ck_assert_int_ge(n, 1);
    for (int i = 0; i < n; i++) ck_assert_int_eq(strncmp(infos[i].id, "opencl:", 7), 0);
    int all = n;
    ck_assert_int_eq(backend->list(&host, infos, 0, &n, NULL, 0), FGMM_OK); /* room for none */
    ck_assert_int_eq(n, 0);
    ck_assert_int_ge(all, 1);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

static cl_uint references(cl_mem buffer) {
    cl_uint count = 0;
    clGetMemObjectInfo(buffer, CL_MEM_REFERENCE_COUNT, sizeof count, &count, NULL);
    return count;
}

START_TEST(shared_buffers) {
    const fgmm_backend *backend = cl_backend_entry(FGMM_BACKEND_ABI);
    fgmm_device *device = open_device(), *other = open_device();
    cl_int code = CL_SUCCESS;
    cl_mem buffer = clCreateBuffer(device->context, CL_MEM_READ_ONLY, 1000, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    cl_mem blind = clCreateBuffer(device->context, CL_MEM_WRITE_ONLY, 1000, NULL, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    cl_event ready = clCreateUserEvent(device->context, &code);
    ck_assert_int_eq(code, CL_SUCCESS);
    void *const events[] = {ready};
    cl_uint before = references(buffer);
    ck_assert_int_eq(backend->share(device, 1, buffer, 1001, NULL, 0), FGMM_ERR_INVALID); /* too small */
    ck_assert_int_eq(backend->share(other, 1, buffer, 1000, NULL, 0), FGMM_ERR_INVALID);  /* another context */
    ck_assert_int_eq(backend->share(device, 1, blind, 1000, NULL, 0), FGMM_ERR_INVALID);
    ck_assert_uint_eq(references(buffer), before);
    ck_assert_int_eq(backend->share(device, 1, buffer, 1000, events, 1), FGMM_OK);
    ck_assert_uint_eq(references(buffer), before + 1);
    ck_assert_int_eq(backend->share(device, 0, buffer, 0, events, 1), FGMM_OK);
    ck_assert_uint_eq(references(buffer), before);
    void *last = NULL;
    ck_assert_int_eq(backend->last_use(device, &last), FGMM_OK);
    cl_event event = last;
    ck_assert_int_eq(clWaitForEvents(1, &event), CL_SUCCESS);
    clReleaseEvent(event);
    clSetUserEventStatus(ready, CL_COMPLETE);
    clReleaseEvent(ready);
    clReleaseMemObject(blind);
    clReleaseMemObject(buffer);
    cl_device_close(other);
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

START_TEST(every_allocation_may_fail) {
    cl_kernel kernel = NULL;
    for (int n = 1;; n++) {
        ck_assert_int_lt(n, 100);
        if (n % 2) empty_folder(); /* both ways: building, loading */
        fgmm_device *device = NULL;
        state.calls = 0;
        state.fail_at = n;
        fgmm_status status = cl_device_open(&host, &request, &device);
        if (status == FGMM_OK) status = cl_kernel_from(device, &kernel, &good, "", "scale");
        int failed = state.calls >= n;
        state.fail_at = 0;
        ck_assert(status == FGMM_OK || status == FGMM_ERR_MEMORY);
        cl_device_close(device);
        ck_assert_int_eq(state.live, 0);
        if (!failed) break;
    }
}
END_TEST

/* ---- tuning ---- */

static void check_tile(const fgmm_device *device, cl_tuned kernel, cl_uint k, cl_uint d, cl_tile want) {
    cl_tile got = cl_tuning_tile(device, kernel, k, d);
    ck_assert_msg(memcmp(&got, &want, sizeof got) == 0, "K %u D %u: %d %d %d %d %d", k, d, got.gx, got.gy, got.rm,
                  got.rn, got.dt);
}

/* What a file gives a device. @param path NULL: none is asked for */
static void check_file(const char *path, size_t rows, int warnings) {
    if (path)
        setenv("FLASHGMM_TUNING", path, 1);
    else
        unsetenv("FLASHGMM_TUNING");
    state.warnings = 0;
    fgmm_device *device = open_device();
    ck_assert_uint_eq(device->n_tuning, rows);
    ck_assert_int_eq(state.warnings, warnings);
    cl_device_close(device);
}

/* The first row that fits is taken; lines that are no rows are left out, each with a warning, and nothing else is. */
START_TEST(tuning_rows) {
    char path[128];
    snprintf(path, sizeof path, "%s.tsv", folder);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs("# a comment\n\n", file);
    fputs("another device\tscreen\t*\t*\t8\t8\t1\t1\t8\n"
          "*\tscreen\t1-9\t*\t8\t4\t2\t2\t4\r\n"
          "*\tscreen\t*\t5-7\t4\t8\t2\t4\t8\n"
          "*\twhiten\t*\t8-8\t64\t64\t16\t16\t64\n" /* few devices have the memory */
          "*\twhiten\t*\t*\t8\t8\t4\t2\t16\n",
          file);
    static const char *const wrong[] = {"*",
                                        "*\tscreen\t*\t*\t8\t8\t1\t1",
                                        "*\tscreen\t*\t*\t8\t8\t1\t1\t8\t8",
                                        "\tscreen\t*\t*\t8\t8\t1\t1\t8",
                                        "*\tsieve\t*\t*\t8\t8\t1\t1\t8",
                                        "*\tscreen\t9-1\t*\t8\t8\t1\t1\t8",
                                        "*\tscreen\t1-2x\t*\t8\t8\t1\t1\t8",
                                        "*\tscreen\t*\t*\t12\t8\t1\t1\t8",
                                        "*\tscreen\t*\t*\t-8\t8\t1\t1\t8",
                                        "*\tscreen\t*\t*\t8\t8\t\t1\t8",
                                        "*\tscreen\t*\t*\t8\t8\t1\t1\t12",
                                        "*\tdense\t*\t*\t8\t8\t1\t1\t8",
                                        "*\tscreen\t*\t*\t4\t8\t8\t1\t8",
                                        "*\twhiten\t*\t*\t4\t8\t1\t1\t16",
                                        "*\tscatter\t*\t*\t8\t8\t4\t2\t0",
                                        "*\tscreen\t*\t*\t99999999999999999999\t8\t1\t1\t8"};
    enum { WRONG = sizeof wrong / sizeof *wrong };
    for (int i = 0; i < WRONG; i++) fprintf(file, "%s\n", wrong[i]);
    for (int i = 0; i < 2000; i++) fputc('x', file); /* more than a line holds, at once */
    fclose(file);
    setenv("FLASHGMM_TUNING", path, 1);
    state.warnings = 0;
    fgmm_device *device = open_device();
    ck_assert_uint_eq(device->n_tuning, 4);
    ck_assert_int_gt(state.warnings, WRONG); /* a long line is cut, and told piece by piece */
    size_t most = device->max_work_group, room = device->local_bytes;
    device->max_work_group = 256;
    device->local_bytes = 1 << 16;
    check_tile(device, CL_TUNED_SCREEN, 9, 6, (cl_tile){8, 4, 2, 2, 4});
    check_tile(device, CL_TUNED_SCREEN, 10, 6, (cl_tile){4, 8, 2, 4, 8});
    check_tile(device, CL_TUNED_WHITEN, 10, 6, (cl_tile){8, 8, 4, 2, 16});
    check_tile(device, CL_TUNED_DENSE, 10, 6, (cl_tile){16, 16, 4, 1, 0});
    cl_tile beyond = cl_tuning_tile(device, CL_TUNED_SCREEN, 40, 8);
    ck_assert_int_eq(beyond.gx, 16);
    device->max_work_group = 64; /* as a kernel may turn out to need */
    check_tile(device, CL_TUNED_SCREEN, 40, 40, (cl_tile){8, 8, 4, 4, 16});
    device->max_work_group = most;
    device->local_bytes = room;
    unlink(path);
    setenv("XDG_CONFIG_HOME", folder, 1);
    check_file(NULL, 0, 0);
    check_file("", 0, 0);
    setenv("XDG_CONFIG_HOME", "/dev/null", 1);
    check_file(NULL, 0, 0);
    unsetenv("XDG_CONFIG_HOME");
    check_file(path, 0, 1); /* asked for, and not there */
    check_file(folder, 0, 1);

    char name[96];
    snprintf(name, sizeof name, "%.95s", device->name);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fprintf(file, "%s\tdense\t*\t*\t8\t8\t2\t2\t0\n%s\twhiten\t*\t*\t64\t64\t16\t16\t64\n", name, name);
    fclose(file);
    /* A row of this device that most cannot run: 1.7 MiB of local memory, which PoCL has where a core's cache is as large. */
    int runs = most >= 4096 && room >= 8 * (64 * 2049 + 1024 * 65) / 8 * 9;
    check_file(path, 1 + (size_t)runs, !runs);
    file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 300; i++) fputs("*\tdense\t*\t*\t8\t8\t2\t2\t0\n", file);
    fclose(file);
    check_file(path, 256, 1);
    unlink(path);
    setenv("FLASHGMM_TUNING", "/dev/null", 1);
    cl_device_close(device);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

/* Options that hold the kernels to the library's own work-group are none for the user's: rows of the screen, and of the dense engine, which
 * has a test of its own. */
START_TEST(tuning_rows_that_fail) {
    char path[128];
    const fgmm_backend *backend = cl_backend_entry(FGMM_BACKEND_ABI);
    fgmm_device *device = open_device();
    int has_own = device->max_work_group >= 256 && device->type == CL_DEVICE_TYPE_CPU;
    cl_device_close(device);
    if (!has_own) return;
    setenv("FLASHGMM_CACHE_DIR", shared_cache, 1);
    snprintf(path, sizeof path, "%s.tsv", folder);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(_i ? "*\tdense\t*\t*\t8\t8\t4\t4\t0\n" : "*\tscreen\t*\t*\t8\t8\t4\t4\t8\n", file);
    fclose(file);
    setenv("FLASHGMM_TUNING", path, 1);
    for (int held = 0; held < 2; held++) {
        if (held) setenv("FLASHGMM_CL_OPTIONS", "-DGX=16 -DGY=16", 1);
        state.warnings = 0;
        ck_assert_int_eq(backend->open(&host, &request, &device), FGMM_OK);
        ck_assert_int_eq(backend->trust(device, FGMM_SPHERICAL, 20, FGMM_F32), FGMM_OK);
        ck_assert_int_eq(state.warnings, held && !_i);
        ck_assert_int_eq(cl_trust(device, CL_CASE_DENSE_SPHERICAL, 20, FGMM_F32), FGMM_OK);
        ck_assert_int_eq(state.warnings, held);
        ck_assert_str_eq(state.message, ""); /* of what was put right */
        ck_assert_uint_eq(device->n_tuning, !held);
        backend->close(device);
    }
    unsetenv("FLASHGMM_CL_OPTIONS");
    setenv("FLASHGMM_TUNING", "/dev/null", 1);
    setenv("FLASHGMM_CACHE_DIR", folder, 1);
    unlink(path);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

static fgmm_status trust_all(fgmm_device *device, int covariance, int64_t d, fgmm_dtype type) {
    int diag = covariance == FGMM_DIAG;
    fgmm_status status = cl_backend_entry(FGMM_BACKEND_ABI)->trust(device, covariance, d, type);
    if (status == FGMM_OK) status = cl_trust(device, cl_rows_case(diag), d, cl_stored_type(type));
    return status == FGMM_OK ? cl_trust(device, cl_dense_case(diag), d, cl_stored_type(type)) : status;
}

/* It passes, and is not asked again. */
static void check_trust(fgmm_device *device, int covariance, int64_t d, fgmm_dtype type) {
    state.warnings = 0;
    fgmm_status status = trust_all(device, covariance, d, type);
    ck_assert_msg(status == FGMM_OK && !state.warnings, "%lld features of type %d, covariance %d: %s", (long long)d,
                  (int)type, covariance, state.message);
    int built = cl_opened_of(device)->programs_built, asked = device->n_passed;
    int64_t peak = device->peak_bytes;
    ck_assert_int_eq(trust_all(device, covariance, d, type), FGMM_OK);
    ck_assert_int_eq(cl_opened_of(device)->programs_built, built);
    ck_assert_int_eq(device->n_passed, asked);
    ck_assert_int_eq(device->peak_bytes, peak);
}

/* The test has as many features as what it is for, and rows of the same type, and is asked once; whether compilers work side by side is all the
 * same. What f64 becomes has been asked of f32. */
START_TEST(known_answers) {
    static const int64_t features[] = {20, 33, 1, 2, 3, 7, 15, 100, 300, 513, 1027, 4096};
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F64, FGMM_F16, FGMM_BF16, FGMM_U8, FGMM_I8};
    enum { FEATURES = sizeof features / sizeof *features, TYPES = sizeof types / sizeof *types, SHORT = 3 };
    int is_short = getenv("FLASHGMM_TEST_SHORT") != NULL; /* of these numbers of features the first, and f16 alone */
    const fgmm_backend *backend = cl_backend_entry(FGMM_BACKEND_ABI);
    fgmm_device *device = NULL;
    setenv("FLASHGMM_CACHE_DIR", shared_cache, 1);
    setenv("FLASHGMM_BUILD_AHEAD", _i ? "1" : "0", 1);
    ck_assert_int_eq(backend->open(&host, &request, &device), FGMM_OK);
    for (int i = 0; i < FEATURES * TYPES; i++) {
        int at = i / TYPES, type = i % TYPES, asked = device->n_passed;
        if (types[type] > FGMM_F64 && at != type % 2) continue; /* of these 20 or 33: PoCL builds for minutes */
        if (is_short && (at >= SHORT || types[type] > FGMM_F16)) continue;
        for (int covariance = 0; covariance < 4; covariance++)
            check_trust(device, covariance, features[at], types[type]);
        ck_assert_int_eq(device->n_passed - asked, types[type] == FGMM_F64 ? 0 : 6);
    }
    ck_assert_int_eq(cl_opened_of(device)->programs_asked > 0, _i);
    ck_assert_ptr_null(device->asked);
    backend->close(device);
    unsetenv("FLASHGMM_BUILD_AHEAD");
    setenv("FLASHGMM_CACHE_DIR", folder, 1);
    ck_assert_int_eq(state.live, 0);
}
END_TEST

int main(void) {
    const char *asked = getenv("FLASHGMM_TEST_DEVICE");
    if (asked && strncmp(asked, "opencl:", 7) == 0) {
        snprintf(selector_text, sizeof selector_text, "%s", asked + 7);
        request.selector = selector_text;
    }
    fgmm_device *device = NULL;
    if (cl_device_open(&host, &request, &device) != FGMM_OK) {
        printf("cl runtime: SKIPPED: %s\n", state.message);
        return 77;
    }
    clGetPlatformInfo(device->platform, CL_PLATFORM_NAME, sizeof platform_name - 1, platform_name, NULL);
    printf("cl runtime: %s (%s)\n", device->name, platform_name);
    cl_device_close(device);
    static char others[512];
    const char *given = getenv("FLASHGMM_CACHE_DIR");
    if (!mkdtemp(folder)) return 1;
    if (given && (size_t)snprintf(others, sizeof others, "%s", given) < sizeof others) shared_cache = others;
    setenv("FLASHGMM_CACHE_DIR", folder, 1);
    unsetenv("FLASHGMM_CACHE");

    Suite *suite = suite_create("cl_runtime");
    TCase *room = tcase_create("cl_runtime");
    tcase_set_timeout(room, 300);
    tcase_add_test(room, keys_differ);
    tcase_add_test(room, entry_round_trip);
    tcase_add_test(room, folders_of_others_are_left_alone);
    tcase_add_test(room, folder_is_made);
    tcase_add_test(room, choice);
    tcase_add_test(room, absent_device);
    tcase_add_test(room, buffers_are_counted);
    tcase_add_test(room, pinned_memory_carries);
    tcase_add_test(room, failures_have_words);
    tcase_add_test(room, build_failure_shows_the_log);
    tcase_add_test(room, kernels_are_kept);
    tcase_add_test(room, programs_come_from_the_disk);
    tcase_add_test(room, shared_handles);
    tcase_add_test(room, handshake);
    tcase_add_test(room, shared_buffers);
    tcase_add_test(room, tuning_rows);
    tcase_add_loop_test(room, tuning_rows_that_fail, 0, 2);
    tcase_add_loop_test(room, known_answers, 0, 2);
    tcase_add_test(room, every_allocation_may_fail);
    suite_add_tcase(suite, room);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    empty_folder();
    rmdir(folder);
    return failed != 0;
}
