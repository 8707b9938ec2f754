/* What the rooms inside the OpenCL backend share: a host that counts what it gives, the device under test, random
 * numbers. */
#ifndef FGMM_TESTS_CL_HOST_H
#define FGMM_TESTS_CL_HOST_H

#include <check.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../cl/cl_backend.h"

/* ---- host ---- */

static char message[4096];
static atomic_int live; /* a driver's compilers run in threads */

static inline void *host_alloc(void *user, size_t bytes) {
    (void)user;
    void *pointer = NULL;
    if (posix_memalign(&pointer, 64, bytes ? bytes : 1) != 0) return NULL;
    live++;
    return pointer;
}

static inline void host_free(void *user, void *pointer) {
    (void)user;
    live -= pointer != NULL;
    free(pointer);
}

__attribute__((format(printf, 3, 4))) static inline fgmm_status host_fail(void *user, fgmm_status status,
                                                                          const char *format, ...) {
    (void)user;
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    return status;
}

__attribute__((format(printf, 3, 4))) static inline void host_log(void *user, fgmm_log_level level, const char *format,
                                                                  ...) {
    (void)user;
    va_list list;
    if (level > FGMM_LOG_WARNING) return;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}

static inline int host_cancelled(void *user) {
    (void)user;
    return 0;
}

static const fgmm_host host = {.alloc = host_alloc,
                               .free = host_free,
                               .fail = host_fail,
                               .log = host_log,
                               .cancelled = host_cancelled,
                               .device_memory_limit = (size_t)1 << 30};
static const fgmm_backend *backend;
static fgmm_device *device;

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        fgmm_status ok_ = (call);                                                                                      \
        ck_assert_msg(ok_ == FGMM_OK, "%s: %d %s", #call, (int)ok_, message);                                          \
    } while (0)

/* Opens "opencl:NAME" of FLASHGMM_TEST_DEVICE, or any device. @return 0, or the status that the program shall end
 * with. */
static inline int open_device(void) {
    const char *name = getenv("FLASHGMM_TEST_DEVICE");
    if (name && strncmp(name, "opencl:", 7) == 0) name += 7;
    backend = cl_backend_entry(FGMM_BACKEND_ABI);
    fgmm_status status = backend->open(&host, &(fgmm_open_request){.selector = name, .any_kind = 1}, &device);
    if (status != FGMM_OK) {
        printf("skipped: %s\n", message);
        return strstr(message, "known-answer") ? 1 : 77;
    }
    fgmm_device_facts facts;
    backend->describe(device, &facts);
    printf("device: %s\n", facts.name);
    return 0;
}

/* Runs the tests in this process and closes the device. @return the program's status. */
static inline int run_suite(Suite *suite) {
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    backend->close(device);
    if (live != 0) printf("%d allocations left\n", live);
    return failed || live ? 1 : 0;
}

static inline int has_doubles(cl_device_id id) {
    cl_device_fp_config doubles = 0;
    clGetDeviceInfo(id, CL_DEVICE_DOUBLE_FP_CONFIG, sizeof doubles, &doubles, NULL);
    return doubles != 0;
}

/* Whether a problem's turn has come, of the many of which a short run takes a part: as harness_takes. */
static inline int takes(size_t turn) {
    const char *every = getenv("FLASHGMM_TEST_SHORT"), *seed = getenv("FLASHGMM_TEST_SEED");
    if (!every || atoi(every) < 2) return 1;
    return (turn + (seed ? strtoull(seed, NULL, 10) : 0)) % (unsigned)atoi(every) == 0;
}

/* ---- random numbers and memory ---- */

static uint64_t rng_state = 1;

static inline double uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = rng_state ^ (rng_state >> 33);
    x *= 0xff51afd7ed558ccdu;
    return ((double)((x ^ (x >> 33)) >> 11) + 0.5) * 0x1p-53;
}

static inline double normal(void) {
    return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static inline void *get(size_t bytes) {
    void *pointer = calloc(bytes ? bytes : 1, 1);
    ck_assert_ptr_nonnull(pointer);
    return pointer;
}

#endif
