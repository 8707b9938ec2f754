/* The context's state, and the choice of a device for a call. */
#ifndef FGMM_LIB_DISPATCH_H
#define FGMM_LIB_DISPATCH_H

#include <stdatomic.h>

#include "context.h"

/* An opened device. */
typedef struct fgmm_target {
    const fgmm_backend *backend; /* NULL: not opened */
    fgmm_device *device;
    fgmm_device_facts facts;
    char label[300]; /* "cpu (avx512)", "opencl: NAME" */
} fgmm_target;

struct fgmm_context {
    fgmm_allocator allocator;
    fgmm_log_fn log;
    void *log_user;
    fgmm_log_level log_level;
    fgmm_progress_fn progress;
    void *progress_user;
    fgmm_host host;
    char device[256]; /* "auto", "cpu", "opencl", "opencl:..." */
    char cpu_isa[32]; /* "" for the best */
    char message[2048];
    const char *label;
    atomic_int cancelled;
    struct fgmm_context
        *root; /* NULL, or whose memory and options this stand-in uses: a reader thread's, for its messages */
    atomic_llong bytes, peak_bytes;
    long long bytes_limit;      /* what bytes may come to; 0: no limit */
    atomic_llong bytes_refused; /* what they would have come to in a request that the limit refused; 0: none */
    atomic_int host_short;      /* the host's memory was refused in this call, by the limit or by the system */
    atomic_int failing;         /* guards message: the first failure of a call, from whatever thread, is kept */
    fgmm_target cpu, opencl;
    int opencl_tried; /* "auto" looked for a device already */
    unsigned
        opencl_distrusted; /* 1 << fgmm_covariance: those that the device was found wrong in, of whatever rows; all once a call failed */
    struct fgmm_rows *persisted; /* rows of which calls leave something for the next (persist.h), by next_persisted */
    int sharers;                 /* contexts that fit together and share the machine's memory; 1: alone */
};

/* Starts a public call: forgets the last message. */
void fgmm_enter(fgmm_context *ctx);

/* The device for a call. @param work multiply-adds the call is likely to take, for "auto".
 * @param rows that it evaluates mixtures of the fgmm_covariance on; a caller's cl_mem only the context's OpenCL device can read. NULL: it evaluates
 * none, and covariance is not looked at */
fgmm_status fgmm_dispatch(fgmm_context *ctx, double work, fgmm_precision precision, const fgmm_rows *rows,
                          int covariance, const fgmm_target **out);

/* At the end of a call, with its status. @return 1 if a device that "auto" took has failed, whose results are then lost: the call is to be made again,
 * which will be on the CPU. Not of rows that can be read only once. */
int fgmm_dispatch_again(fgmm_context *ctx, fgmm_status status, const fgmm_rows *rows);

/* Whether the device of a call may be used for other covariances or rows, too. */
fgmm_status fgmm_dispatch_trust(const fgmm_target *target, int covariance, int64_t d, fgmm_dtype type);

/* Opens ctx->cpu, for what runs on the CPU whatever the device is. */
fgmm_status fgmm_dispatch_cpu(fgmm_context *ctx);

/* Opens what fgmm_context_options.device names; "auto" opens nothing yet. */
fgmm_status fgmm_dispatch_named(fgmm_context *ctx);
fgmm_status fgmm_dispatch_open(fgmm_context *ctx, fgmm_target *target, const fgmm_backend *backend,
                               const fgmm_open_request *request);
void fgmm_dispatch_close(fgmm_target *target);

/* A context over an application's own device handles. `find` gives the backend, or NULL and why. */
fgmm_status fgmm_context_create_over(fgmm_context **out, const fgmm_context_options *options,
                                     const fgmm_backend *(*find)(fgmm_context *, char *, size_t),
                                     const fgmm_open_request *request);

#endif
