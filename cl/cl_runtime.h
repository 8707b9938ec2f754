/*
 * What the OpenCL backend's engine stands on: an opened device, its programs (built once, cached, checked)
 * and its memory. Part of cl/ only.
 */
#ifndef FGMM_CL_RUNTIME_H
#define FGMM_CL_RUNTIME_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "../lib/backend.h"

#define CL_TRY(call)                                                                                                   \
    do {                                                                                                               \
        fgmm_status cl_try_ = (call);                                                                                  \
        if (cl_try_ != FGMM_OK) return cl_try_;                                                                        \
    } while (0)

#define CL_GO(call)                                                                                                    \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != FGMM_OK) goto done;                                                                              \
    } while (0)

typedef struct cl_engine cl_engine; /* the E-step's own state: cl_estep.c */
typedef struct cl_kernel_slot cl_kernel_slot;
typedef struct cl_asked cl_asked;           /* cl_program.c */
typedef struct cl_stretch cl_stretch;       /* cl_stretch.c */
typedef struct cl_tuning_row cl_tuning_row; /* cl_tuning.h */

/* A kernel's source, embedded by the build from cl/NAME.cl. */
typedef struct cl_source {
    const char *name; /* "screen" */
    const char *text; /* NUL-terminated */
} cl_source;
extern const cl_source cl_sources[]; /* ends with a NULL name */

/* The buffers of a block that came and went, for the next one. */
typedef struct cl_spare {
    cl_mem rows, weights, hints; /* rows NULL: none; the others may be */
    size_t bytes;                /* of rows */
    int64_t n;                   /* rows that weights and hints are for */
    cl_event last_use;
} cl_spare;

/* The hints of a block that came and went, for when it comes again. */
typedef struct cl_noted {
    struct cl_noted *next;
    cl_mem hints;
    int64_t first_row, n;
} cl_noted;

/* Host memory that a device reads and writes at full speed. */
typedef struct cl_pinned {
    cl_mem mem; /* mapped for good, or over pages of ours; NULL: plain memory */
    void *at;
    size_t bytes, used;
    int pages; /* ours */
} cl_pinned;

enum { CL_SPARES = 2, CL_STAGES = 8 };

/* Each is left for the one before where it fails. */
enum { CL_MATRIX_NONE, CL_MATRIX_WARPS /* screen_mma.cl */, CL_MATRIX_WARPGROUPS /* screen_wgmma.cl */ };

/* Cases of the known-answer test: what fits take but for the dense engine; what rows are told but for it; all that with it; and it on matrix
 * units, in either precision, of spherical covariances. */
typedef enum cl_case {
    CL_CASE_SPHERICAL,
    CL_CASE_DIAGONAL,
    CL_CASE_ROWS_SPHERICAL,
    CL_CASE_ROWS_DIAGONAL,
    CL_CASE_DENSE_SPHERICAL,
    CL_CASE_DENSE_DIAGONAL,
    CL_CASE_NEAR,
    CL_CASE_NEAR_FAST
} cl_case;
static inline cl_case cl_rows_case(int diag) {
    return diag ? CL_CASE_ROWS_DIAGONAL : CL_CASE_ROWS_SPHERICAL;
}
static inline cl_case cl_dense_case(int diag) {
    return diag ? CL_CASE_DENSE_DIAGONAL : CL_CASE_DENSE_SPHERICAL;
}
typedef struct cl_test {
    cl_case which;
    fgmm_dtype type; /* of the rows, as they are stored */
    int64_t d;       /* 0: none */
} cl_test;
enum { CL_PASSED = 128 };

enum { CL_HELD = 1024 }; /* HELD of bins.cl: components whose counts a work-group may hold */

struct fgmm_device {
    fgmm_host host;
    cl_platform_id platform;
    cl_device_id id;
    cl_context context;
    cl_command_queue queue;  /* in order */
    cl_command_queue copies; /* in order: rows on their way to the device, beside what the other queue does */
    char name[256];
    cl_device_type type;
    int group_refused;   /* a work-group was larger than some kernel allows here */
    int has_matrix;      /* CL_MATRIX_*: how it runs the screen on matrix units, 0 if it does not */
    int has_full;        /* screen_full_wgmma.cl runs */
    int has_guess;       /* guess_wgmma.cl runs */
    int has_ahead;       /* ahead.cl runs, which takes doubles, and pays */
    int quick_doubles;   /* it adds doubles as quickly as it reads what they come of (squares.clh) */
    int pins;            /* a buffer over memory pins it (cl_pin_rows) */
    int has_warps;       /* CL_MATRIX_WARPS runs, where another serves but not all depths */
    int pairs;           /* the same for the dense engine: near_logits.clh */
    int singles;         /* near_lse.clh and near_fused.clh run too, where pairs do */
    int as_of_many;      /* in a part of a test: counts of survivors, and their sums, are kept as of many components */
    int64_t settle_from; /* rows a component from which rows are settled before the screen (cl_settle.c); 0 in a test */
    cl_test passed[CL_PASSED]; /* the oldest overwritten */
    int n_passed;
    int failed;  /* a case: from then on the dense engine is tested with the rest */
    int testing; /* it is being put to one */
    int setbacks; /* times that it went on with less than before, as other tiles or no matrix units, since it was opened */
    int searches; /* the kernels that search lists have passed their known-answer test */
    int unified;  /* its memory is the host's */
    size_t local_bytes, max_work_group, max_alloc;
    int64_t global_bytes;
    cl_uint compute_units;
    int64_t bytes, peak_bytes; /* device memory held through cl_buffer */
    int64_t limit_bytes;       /* what cl_buffer may hold in all */
    double copy_seconds;       /* that the copies of rows have taken */
    cl_spare spare[CL_SPARES];
    cl_noted *noted, **noted_end; /* in the order of blocks; noted_end NULL: none so far */
    int64_t noted_bytes;
    cl_mem spare_hints;  /* of a block that went, for one to come; or NULL */
    int64_t generations; /* of parameters so far */
    cl_stretch *stretch; /* that the next block to stay may join; owned by those that have */
    cl_pinned stage[CL_STAGES];
    cl_tuning_row *tuning; /* the user's rows, NULL if there are none */
    size_t n_tuning;
    cl_kernel_slot *kernels; /* built so far */
    cl_asked *asked;         /* programs that are being built by threads of their own */
    int builds_ahead;        /* they may be */
    int asking;              /* no kernel is run: those that would be are built, and all that is read is 0; 2: and the
                                dense engine's are among them */
    cl_engine *engine;       /* owned by cl_estep.c; NULL until its first use */
};

/* Stores "WHAT failed on DEVICE: CL_OUT_OF_RESOURCES (-5)" and returns FGMM_ERR_MEMORY for the out-of-memory codes,
 * else FGMM_ERR_DEVICE. */
fgmm_status cl_fail(fgmm_device *device, cl_int code, const char *what);
#define CL_CHECK(device, code, what)                                                                                   \
    do {                                                                                                               \
        cl_int cl_check_ = (code);                                                                                     \
        if (cl_check_ != CL_SUCCESS) return cl_fail(device, cl_check_, what);                                          \
    } while (0)

/* A device buffer, counted; fails with FGMM_ERR_MEMORY naming `what` when over the limit or max_alloc. bytes 0 gives 16. */
fgmm_status cl_buffer(fgmm_device *device, cl_mem *out, size_t bytes, const char *what);
/* One that can be done without: NULL, and no message, where it does not fit. */
cl_mem cl_optional_buffer(fgmm_device *device, size_t bytes);
void cl_buffer_free(fgmm_device *device, cl_mem buffer); /* NULL is ignored */

/* What failed has been put right, or can be done without: its message is no one's. */
void cl_forget(fgmm_device *device);

/* Frees the buffers that wait for the next block, and what was noted of those before. */
void cl_spares_free(fgmm_device *device);

/* A kernel of program `name`.cl built with `options` ("-DROW_TYPE=2 -DDIAG=1"); built, cached on disk and
 * kept for the life of the device. One cl_kernel per (name, options, kernel): arguments must be set before each enqueue.
 * A build that fails gives FGMM_ERR_DEVICE with the compiler's log in the message. */
fgmm_status cl_kernel_get(fgmm_device *device, cl_kernel *out, const char *name, const char *options,
                          const char *kernel);
/* Sets arguments 0.. in order and enqueues (local NULL: the driver chooses): cl_run(dev, k, "screen", 2, global, local, CL_ARGS(A(buf), A(n), ...)). */
typedef struct cl_arg {
    size_t size;
    const void *value;
} cl_arg;
#define CL_ARG(variable) ((cl_arg){sizeof(variable), &(variable)})
fgmm_status cl_run(fgmm_device *device, cl_kernel kernel, const char *what, cl_uint dimensions, const size_t *global,
                   const size_t *local, const cl_arg *arguments, int count);

/* Rows on their way (cl_transfer.c). */
void *cl_stage(fgmm_device *device, size_t bytes);
int cl_unstage(fgmm_device *device, void *pointer);
void *cl_pin_rows(fgmm_device *device, const void *data, size_t bytes);
void cl_unpin_rows(fgmm_device *device, void *pin);
void cl_transfer_end(fgmm_device *device);
fgmm_status cl_put(fgmm_device *device, const fgmm_block_source *source, fgmm_block **out);
fgmm_status cl_wait(fgmm_device *device, fgmm_block *block);
void cl_release(fgmm_device *device, fgmm_block *block);

/* The engine's part (cl_estep.c and its siblings), called by the table in cl_backend.c. */
fgmm_status cl_moments(fgmm_device *device, fgmm_block *block, const double *centre, fgmm_moments *io);
fgmm_status cl_gather(fgmm_device *device, fgmm_block *block, const int64_t *rows, int64_t count, double *out);
fgmm_status cl_begin(fgmm_device *device, const fgmm_params *params);
fgmm_status cl_estep(fgmm_device *device, fgmm_block *block, double *log_prob);
fgmm_status cl_collect(fgmm_device *device, fgmm_sums *out);
fgmm_status cl_assign(fgmm_device *device, fgmm_block *block, int m, int32_t *ids, float *resp, double *log_prob);
fgmm_status cl_score(fgmm_device *device, fgmm_block *block, double *sum);
fgmm_status cl_proba(fgmm_device *device, fgmm_block *block, float *resp, double *log_prob);
fgmm_status cl_distances(fgmm_device *device, fgmm_block *block, const float *queries, int64_t stride,
                         int64_t n_queries, int dot, float *out);
fgmm_status cl_lists_put(fgmm_device *device, const fgmm_lists_source *source, fgmm_lists **out);
fgmm_status cl_lists_search(fgmm_device *device, fgmm_lists *lists, fgmm_lists_query *query);
void cl_lists_release(fgmm_device *device, fgmm_lists *lists);
void cl_engine_free(fgmm_device *device); /* frees device->engine; before the context goes */

/* A CL_MATRIX_* in messages. */
const char *cl_matrix_name(int level);

/* Known-answer test of the engine, in the programs that rows of such a type and so many features take (cl_check.c). */
fgmm_status cl_known_answer(fgmm_device *device, cl_test test);
/* The same of the kernels that search lists, run before the first index is put (cl_check.c). */
fgmm_status cl_lists_known_answer(fgmm_device *device);
/* Puts the device to a case that it has not passed yet; FGMM_ERR_DEVICE if it cannot be used (cl_trust.c). */
fgmm_status cl_trust(fgmm_device *device, cl_case which, int64_t d, fgmm_dtype type);

#endif
