/**
 * flashgmm: Gaussian mixtures on data of any size, on any OpenCL device or a plain CPU,
 * without ever holding the N x K responsibility matrix.
 *
 * Conventions that hold for every call below.
 *  - Every call that can fail returns an fgmm_status; the reason, in words, is
 *    fgmm_context_message(). Handles and scalars are written only on FGMM_OK unless said otherwise; what a failed or
 *    cancelled call left in a caller's array is unspecified.
 *  - Constructors put the new handle in `*out` and have a twin `_free` that takes NULL.
 *  - Option structs start with `struct_size` (use the `_INIT` macro); zero means default and a
 *    NULL pointer means all defaults.
 *  - Matrices are row-major (C order). N rows, D features, K components.
 *  - Nothing prints, exits or aborts. A context and what was made with it belong to one thread at a
 *    time (fgmm_context_cancel() excepted); two contexts in two threads are independent.
 *  - Log-likelihoods and log-probabilities are natural logarithms (nats).
 */
#ifndef FLASHGMM_FLASHGMM_H
#define FLASHGMM_FLASHGMM_H

#include <stddef.h>
#include <stdint.h>

#define FGMM_VERSION_MAJOR 0
#define FGMM_VERSION_MINOR 1
#define FGMM_VERSION_PATCH 0

#if defined(__GNUC__)
#define FGMM_API __attribute__((visibility("default")))
#else
#define FGMM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ------------------------------------------------------------------------------ */

typedef enum fgmm_status {
    FGMM_OK = 0,
    FGMM_ERR_INVALID = 1,     /**< an argument is wrong: shape, range, option, mismatch */
    FGMM_ERR_MEMORY = 2,      /**< no memory, on the host or on the device */
    FGMM_ERR_IO = 3,          /**< a file cannot be opened, read, written or renamed */
    FGMM_ERR_FORMAT = 4,      /**< a file's content is not what its format promises */
    FGMM_ERR_DATA = 5,        /**< the rows hold NaN or Inf, or weights that cannot be used */
    FGMM_ERR_DEVICE = 6,      /**< no such device, a kernel does not build, a device call failed */
    FGMM_ERR_UNSUPPORTED = 7, /**< asked for something this build or backend does not do */
    FGMM_ERR_CANCELLED = 8,   /**< stopped by fgmm_context_cancel() or the progress callback */
    FGMM_ERR_INTERNAL = 9     /**< a bug in flashgmm: please report the message */
} fgmm_status;

/** Short name of a status, such as "invalid argument". Never NULL; static. */
FGMM_API const char *fgmm_status_name(fgmm_status status);

/** Library version as "major.minor.patch". Static. */
FGMM_API const char *fgmm_version(void);

/* ---- context ----------------------------------------------------------------------------- */

typedef struct fgmm_context fgmm_context;

typedef enum fgmm_log_level {
    FGMM_LOG_ERROR = 0,
    FGMM_LOG_WARNING = 1,
    FGMM_LOG_INFO = 2,
    FGMM_LOG_DEBUG = 3
} fgmm_log_level;

/** One line of log, no newline. Called from the thread that called into flashgmm. */
typedef void (*fgmm_log_fn)(void *user, fgmm_log_level level, const char *line);

/** What the progress callback is told, a few times a second at most, and once per iteration. */
typedef struct fgmm_progress {
    const char *stage;      /**< "scan", "seed", "fit", "kmeans", "accumulate", "score", "predict" */
    int init;               /**< which restart, from 0 */
    int n_init;             /**< how many restarts */
    int iteration;          /**< iterations whole so far */
    int max_iter;           /**< the limit, 0 where there is none */
    double lower_bound;     /**< mean log-likelihood of the last whole E-step, nats; of fgmm_kmeans minus the mean
                                 squared distance; NaN before one */
    double change;          /**< its change against the one before; NaN before two */
    int64_t rows_done;      /**< rows done in this pass */
    int64_t rows_total;     /**< rows in a pass */
    double rows_per_second; /**< over the pass so far */
    double seconds;         /**< since the call began */
    double seconds_left;    /**< to the end of the pass, or of max_iter iterations, which a fit that converges does not
                                 need; NaN where it cannot be told yet */
    double read_gbs;    /**< 1e9 bytes of rows a second, in this pass, while they were read from a file or callback; 0
                                 if none were. Stages run beside each other, so the slowest sets the pace */
    double copy_gbs;    /**< the same while they were brought to a device; 0 where rows are used in place */
    double compute_gbs; /**< the same while they were worked on */
} fgmm_progress;

/** @return 0 to go on, anything else to cancel (the call returns FGMM_ERR_CANCELLED). */
typedef int (*fgmm_progress_fn)(void *user, const fgmm_progress *progress);

/** Memory functions of the caller. alloc returns NULL when there is none; free takes NULL. Both may be
 *  called from worker threads. Large blocks are zeroed by flashgmm itself where it needs zeros. */
typedef struct fgmm_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void (*free)(void *user, void *pointer);
    void *user;
} fgmm_allocator;

typedef struct fgmm_context_options {
    size_t struct_size;
    /** NULL or "auto": by the work and the devices present; "cpu"; "opencl": the best OpenCL device;
     *  "opencl:NAME": the first whose name holds NAME, case aside; "opencl:P.D": platform P, device D.
     *  The environment variable FLASHGMM_DEVICE is used where this is NULL. A named device is opened at
     *  once and its absence is an error; "auto" opens OpenCL only for work that pays for it. What the device fails of
     *  fits, k-means, statistics, predict and score is then made again on the CPU, with a warning in the log, but of
     *  rows that can be read only once and of ranks. */
    const char *device;
    int threads;         /**< CPU threads; 0: all that OpenMP would use */
    const char *cpu_isa; /**< NULL: best; "scalar", "baseline", "avx2", "avx512", "neon"; FLASHGMM_CPU_ISA likewise */
    fgmm_log_fn log;     /**< NULL: no log */
    void *log_user;
    fgmm_log_level log_level;  /**< most detailed level passed on; 0 means FGMM_LOG_INFO */
    fgmm_progress_fn progress; /**< NULL: none */
    void *progress_user;
    fgmm_allocator allocator;   /**< all zero: malloc and free */
    size_t device_memory_limit; /**< bytes flashgmm may hold on a device; 0: 80% of it */
    char *error;                /**< where fgmm_context_create writes its message when it fails; may be NULL */
    size_t error_size;          /**< bytes at `error` */
    /** Bytes that everything made with the context may hold in the host's memory together, the caller's own arrays
     *  aside; 0: no limit, and rows of files and callbacks take at most a quarter of the machine's. Rows that do not
     *  fit are read again in each iteration. What cannot be done within it is FGMM_ERR_MEMORY, and the message says
     *  what is needed. Libraries that flashgmm calls (OpenCL, libzip, HDF5, OpenMP) take what they take beside it. */
    size_t host_memory_limit;
    /** How many contexts of this machine share its memory, this one and those of other processes that fit with it; 0
     *  or 1: this alone; fgmm_fit_devices counts its own. Without a limit each takes its part of the quarter. */
    int host_sharers;
} fgmm_context_options;

#define FGMM_CONTEXT_OPTIONS_INIT                                                                                      \
    { sizeof(fgmm_context_options), 0, 0, 0, 0, 0, (fgmm_log_level)0, 0, 0, {0, 0, 0}, 0, 0, 0, 0, 0 }

/** Makes a context. @param options NULL for defaults. @return FGMM_ERR_DEVICE if a named device is absent
 *  or cannot be opened, FGMM_ERR_INVALID for an unknown name, FGMM_ERR_MEMORY; `*out` is then NULL. */
FGMM_API fgmm_status fgmm_context_create(fgmm_context **out, const fgmm_context_options *options);

/** Frees a context. Everything made with it must be freed first. NULL is ignored. */
FGMM_API void fgmm_context_free(fgmm_context *ctx);

/** What went wrong in the last failed call on this context; "" if nothing. Owned by the context, valid
 *  until its next call. */
FGMM_API const char *fgmm_context_message(const fgmm_context *ctx);

/** Asks the running call to stop; it returns FGMM_ERR_CANCELLED within one block of rows. Safe from
 *  any thread and from a signal handler. The request is cleared when a call returns FGMM_ERR_CANCELLED;
 *  made while no call runs, it stops the next one. */
FGMM_API void fgmm_context_cancel(fgmm_context *ctx);

/** The device of the last computing call, or the one named at creation: "cpu (avx512)", "opencl: NAME";
 *  "" for "auto" before the first. Owned by the context. */
FGMM_API const char *fgmm_context_device(const fgmm_context *ctx);

typedef struct fgmm_device_info {
    char id[32];       /**< what to give as `device`: "cpu", "opencl:0.0" */
    char name[256];    /**< the CPU's instruction sets or the OpenCL device's name */
    char vendor[128];  /**< OpenCL platform vendor; "" for the CPU */
    char driver[128];  /**< OpenCL driver version; "" for the CPU */
    char kind[16];     /**< "cpu", "gpu", "accelerator" */
    int native;        /**< 1 for flashgmm's own CPU path */
    int usable;        /**< 0 if it can be seen but not used: `note` says why */
    int is_default;    /**< 1 for what "auto" takes for large work */
    int fp64;          /**< 1 if the device has double precision */
    int compute_units; /**< threads on the CPU */
    int64_t memory_bytes;
    int64_t max_alloc_bytes;
    int64_t local_bytes;
    char note[256]; /**< empty, or one line a user should know */
} fgmm_device_info;

/** Lists the CPU and every OpenCL device. Never fails for want of OpenCL: `note`, if given, then says why
 *  there is none. @param out array to be freed with fgmm_device_list_free. @param count its length.
 *  @param note NULL, or room for `note_size` bytes. */
FGMM_API fgmm_status fgmm_device_list(fgmm_context *ctx, fgmm_device_info **out, int *count, char *note,
                                      size_t note_size);
FGMM_API void fgmm_device_list_free(fgmm_context *ctx, fgmm_device_info *list);

/* ---- rows -------------------------------------------------------------------------------- */

typedef enum fgmm_dtype {
    FGMM_F32 = 0,
    FGMM_F64 = 1,
    FGMM_F16 = 2,
    FGMM_BF16 = 3,
    FGMM_U8 = 4,
    FGMM_I8 = 5,
    FGMM_I32 = 6, /**< arrays only, never rows */
    FGMM_I64 = 7  /**< arrays only, never rows */
} fgmm_dtype;

/** Bytes of one element; 0 for an unknown type. */
FGMM_API size_t fgmm_dtype_size(fgmm_dtype type);

/** A source of N rows of D features. It is read, never written. */
typedef struct fgmm_rows fgmm_rows;

/** Rows in the caller's memory, borrowed until fgmm_rows_free. @param data [n, d], row i at element
 *  i * stride. @param stride elements from row to row, 0 for d. @return FGMM_ERR_INVALID if n or d is 0 or
 *  less, stride < d, or the size overflows. */
FGMM_API fgmm_status fgmm_rows_from_memory(fgmm_context *ctx, fgmm_rows **out, const void *data, fgmm_dtype type,
                                           int64_t n, int64_t d, int64_t stride);

/** Rows in a file, read by blocks while the device computes. Between the iterations of a fit as many are kept as fit
 *  in a quarter of the memory or within host_memory_limit; the others are read again.
 *  @param format NULL by extension, else "npy", "fvecs", "bvecs", "fbin", "u8bin", "i8bin", "hdf5".
 *  @param path a file; a folder, or a pattern such as "part-*.npy" (glob(7)), for all files in or of it as one
 *  source of rows in the order of their names, any number of rows each, of the same type and number of features (of
 *  a folder without a format, those whose ending is one of these); or "-" for standard input: "npy" (the default),
 *  "fbin", "u8bin" or "i8bin" through a pipe. A pipe comes once: rows that a call needs several times are put aside
 *  first, in memory if they take less than a quarter of it or half of what host_memory_limit leaves, else in a file
 *  without a name in TMPDIR. An HDF5 path may end in ":DATASET" (default "train"). Every other format is read as if
 *  its writer meant harm; HDF5 is parsed by libhdf5, which a file made for it can crash.
 *  @return FGMM_ERR_IO, FGMM_ERR_FORMAT (the message names what is wrong with the file). */
FGMM_API fgmm_status fgmm_rows_open(fgmm_context *ctx, fgmm_rows **out, const char *path, const char *format);

/** Fills dst with rows first .. first+n-1, packed [n, d] of the declared type. @return 0, or anything else
 *  to fail the call with FGMM_ERR_IO. */
typedef int (*fgmm_read_fn)(void *user, int64_t first, int64_t n, void *dst);

typedef struct fgmm_rows_callback {
    size_t struct_size;
    fgmm_read_fn read;
    void *user;
    fgmm_dtype type;
    int64_t n; /**< rows */
    int64_t d; /**< features */
    /**  1: each range can be asked for only once, in order: accumulate, score, predict, but not fit. A pass over such
     *  rows cannot be repeated where a component turns out to have moved very far: a warning then says so. */
    int once;
    /** 0: `read` is called from the thread that called into flashgmm alone. 1 or more: also from threads of
     *  flashgmm's own, at most so many at once, while the device computes; at most 1 with `once`. The ranges, and
     *  with more than 1 their order, are flashgmm's choice. */
    int threads;
} fgmm_rows_callback;

#define FGMM_ROWS_CALLBACK_INIT                                                                                        \
    { sizeof(fgmm_rows_callback), 0, 0, FGMM_F32, 0, 0, 0, 0 }

/** Rows that a function delivers. The struct is copied. @return FGMM_ERR_INVALID for a missing function, size or type,
 *  or threads that cannot be. */
FGMM_API fgmm_status fgmm_rows_from_callback(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows_callback *callback);

/** Rows first .. first+n-1 of another source, which must outlive the slice. Weights come along as they are now. */
FGMM_API fgmm_status fgmm_rows_slice(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows *rows, int64_t first,
                                     int64_t n);

/** Gives each row a weight >= 0, finite, not all zero; a weight of 2 is the row twice. Borrowed until the rows and
 *  the slices made since are freed; earlier slices do not see them. NULL takes them away. @param weights [n]. @return
 *  FGMM_ERR_DATA naming the first bad one. */
FGMM_API fgmm_status fgmm_rows_set_weights(fgmm_context *ctx, fgmm_rows *rows, const double *weights, int64_t n);

/** Says that these rows and their weights do not change, so that calls over them with this context leave for the next what it
 *  would find anew: the rows on the device, as far as they fit, or those of a file in memory, as between the iterations of a fit;
 *  whether there is NaN or Inf among them; and the component each row lay in, and how safely. A fit and the predict, assign or
 *  score after it then pay for that once. Results are the same to the bit. Memory and buffers of the caller's must stay until the
 *  rows are freed, or persist no more. What was left is freed when device memory runs short, when a call fails while it reads
 *  these rows, when other rows that lie in no memory are used on the CPU, and with the rows or the context; with host_memory_limit
 *  the CPU leaves nothing. Not while a call of this context runs.
 *  @param persist 1; again 1: they have changed, and what was left is freed; 0: they may change from now on.
 *  @return FGMM_ERR_INVALID for rows of another context, or such as can be read only once. */
FGMM_API fgmm_status fgmm_rows_persist(fgmm_context *ctx, fgmm_rows *rows, int persist);

FGMM_API int64_t fgmm_rows_count(const fgmm_rows *rows);
FGMM_API int64_t fgmm_rows_features(const fgmm_rows *rows);
FGMM_API fgmm_dtype fgmm_rows_type(const fgmm_rows *rows);
/** The distance that the file names for its rows, in its own word: "angular" or "euclidean" in ann-benchmarks' HDF5
 *  files, whose attribute `distance` it is; "" if there is none. Nothing is done about it. Owned by the rows, never
 *  NULL. */
FGMM_API const char *fgmm_rows_metric(const fgmm_rows *rows);
FGMM_API void fgmm_rows_free(fgmm_context *ctx, fgmm_rows *rows);

/* ---- model ------------------------------------------------------------------------------- */

typedef enum fgmm_covariance {
    FGMM_SPHERICAL = 0, /**< one variance a component, [K] */
    FGMM_DIAG = 1,      /**< one a component and feature, [K, D] */
    FGMM_TIED = 2,      /**< one matrix for all, [D, D] */
    FGMM_FULL = 3       /**< one matrix a component, [K, D, D] */
} fgmm_covariance;

/** "spherical", "diag", "tied", "full"; NULL for an unknown value. Static. */
FGMM_API const char *fgmm_covariance_name(fgmm_covariance type);

typedef struct fgmm_model fgmm_model;

/**  A model from arrays, which are copied. @param weights [K] >= 0, normalised here; NULL: equal.
 *  @param means [K, D]. @param covariances shaped as the type says: variances of at least 1e-36; matrices symmetric
 *  and positive definite. @return FGMM_ERR_INVALID naming what is wrong, FGMM_ERR_MEMORY. */
FGMM_API fgmm_status fgmm_model_create(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k, int64_t d,
                                       const double *weights, const double *means, const double *covariances);

/**  A model from precisions, the inverses of covariances: scikit-learn's precisions_init. They are inverted in double.
 *  @param weights, means as for fgmm_model_create. @param precisions spherical [K], diag [K, D], tied [D, D], full [K,
 *  D, D]; matrices symmetric and positive definite.
 *  @return FGMM_ERR_INVALID naming the one that is not, FGMM_ERR_MEMORY. */
FGMM_API fgmm_status fgmm_model_create_from_precisions(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type,
                                                       int64_t k, int64_t d, const double *weights, const double *means,
                                                       const double *precisions);
FGMM_API void fgmm_model_free(fgmm_context *ctx, fgmm_model *model);

FGMM_API int64_t fgmm_model_components(const fgmm_model *model);
FGMM_API int64_t fgmm_model_features(const fgmm_model *model);
FGMM_API fgmm_covariance fgmm_model_covariance_type(const fgmm_model *model);
FGMM_API const double *fgmm_model_weights(const fgmm_model *model); /**< [K], owned by the model */
FGMM_API const double *fgmm_model_means(const fgmm_model *model);   /**< [K, D], owned by the model */
FGMM_API const double *
fgmm_model_covariances(const fgmm_model *model); /**< shaped as the type says, owned by the model */
FGMM_API int64_t fgmm_model_covariances_size(const fgmm_model *model); /**< doubles in covariances */
FGMM_API double
fgmm_model_lower_bound(const fgmm_model *model); /**< of the fit's last E-step, nats a row; NaN if not fitted */
FGMM_API int fgmm_model_iterations(const fgmm_model *model);
FGMM_API int fgmm_model_converged(const fgmm_model *model);

/** Free parameters: K-1 weights, K*D means and the covariances; what AIC and BIC count. */
FGMM_API int64_t fgmm_model_parameters(const fgmm_model *model);

/** An .npz with scikit-learn's names and shapes: weights, means, covariances (double), covariance_type, n_iter,
 *  lower_bound, converged. Written beside and renamed, so an old file stays whole until the new one is;
 *  equal models make equal files. */
FGMM_API fgmm_status fgmm_model_save(fgmm_context *ctx, const fgmm_model *model, const char *path);
/** A file with `precisions` in place of `covariances` will do as well.
 *  @return FGMM_ERR_IO, FGMM_ERR_FORMAT naming the array at fault. */
FGMM_API fgmm_status fgmm_model_load(fgmm_context *ctx, fgmm_model **out, const char *path);

/** What nearness of vectors means. */
typedef enum fgmm_metric {
    FGMM_L2 = 0,           /**< |x - q|^2 */
    FGMM_ANGULAR = 1,      /**< 1 - cos(x, q) */
    FGMM_INNER_PRODUCT = 2 /**< x . q, the largest first */
} fgmm_metric;

/**  The means as a flat index in faiss's format, which faiss.read_index opens: a coarse quantizer to put before any IVF
 *  index of faiss. Component k is vector k. Weights and covariances stay behind, so faiss gives a row to its nearest
 *  mean; that is the most responsible component too where the weights are equal and one variance is shared.
 *  @param path written beside and renamed; faiss cares for no ending. @param metric FGMM_L2: an IndexFlatL2.
 *  FGMM_INNER_PRODUCT: an IndexFlatIP. FGMM_ANGULAR: an IndexFlatIP of the means at length one, for vectors at length
 *  one. Means become float32.
 *  @return FGMM_ERR_INVALID for a mean that does not fit a float or, where angular, is zero; FGMM_ERR_IO. */
FGMM_API fgmm_status fgmm_model_export_faiss(fgmm_context *ctx, const fgmm_model *model, const char *path,
                                             fgmm_metric metric);

/* ---- computing: options shared by every call that reads rows ------------------------------ */

typedef enum fgmm_precision {
    FGMM_EXACT = 0, /**< one iteration within 1e-5 of double: counts, means in deviations, variances, likelihood */
    /** Within 2e-3 of double: more may be dropped, and a GPU may multiply 16-bit floats. Of fits, k-means and statistics; elsewhere exact runs, and the report
     *  says so. */
    FGMM_FAST = 1,
    FGMM_DOUBLE = 2 /**< CPU only, all in double: within 1e-12 of the scalar reference */
} fgmm_precision;

typedef enum fgmm_engine {
    FGMM_ENGINE_AUTO = 0,   /**< by the counts of the last iteration */
    FGMM_ENGINE_SCREEN = 1, /**< screen by one matrix product, refine the survivors */
    FGMM_ENGINE_DENSE = 2   /**< every component for every row, by direct differences */
} fgmm_engine;

typedef enum fgmm_nonfinite {
    FGMM_NONFINITE_ERROR = 0, /**< a row with NaN or Inf is FGMM_ERR_DATA, row and column named */
    FGMM_NONFINITE_SKIP = 1   /**< such rows are left out and counted; their labels are -1, their scores NaN;
                                   FGMM_ERR_UNSUPPORTED for rows in a cl_mem */
} fgmm_nonfinite;

typedef struct fgmm_compute_options {
    size_t struct_size;
    fgmm_precision precision;
    fgmm_engine engine;
    fgmm_nonfinite nonfinite;
    int64_t block_rows; /**< rows a block, rounded up to a multiple of 1024; 0: from the device's memory */
} fgmm_compute_options;

#define FGMM_COMPUTE_OPTIONS_INIT                                                                                      \
    { sizeof(fgmm_compute_options), FGMM_EXACT, FGMM_ENGINE_AUTO, FGMM_NONFINITE_ERROR, 0 }

/* ---- fit --------------------------------------------------------------------------------- */

typedef enum fgmm_init {
    FGMM_INIT_KMEANSPP = 0,        /**< k-means++ seeds, then one hard assignment for the variances */
    FGMM_INIT_KMEANS = 1,          /**< k-means++ and Lloyd iterations */
    FGMM_INIT_RANDOM = 2,          /**< random responsibilities */
    FGMM_INIT_RANDOM_FROM_DATA = 3 /**< K distinct rows, the data's variances */
} fgmm_init;

/** What to do with a component whose share of the data vanishes, or whose variance falls to the floor. */
typedef enum fgmm_policy {
    FGMM_KEEP = 0,   /**< dead: keeps its place with weight 0; collapsed: its variance stays at the floor */
    FGMM_RESEED = 1, /**< dead: moved to a badly explained row, with the data's variances; at most K moves a restart */
    FGMM_DROP = 2    /**< removed: the model comes back with fewer components */
} fgmm_policy;

enum { FGMM_FREEZE_WEIGHTS = 1, FGMM_FREEZE_MEANS = 2, FGMM_FREEZE_COVARIANCES = 4 };

/** Adds up `count` numbers over all ranks, in place: each then has the same sums, to the bit, which repeat if they
 *  are added in the same order each time. All ranks call it equally often with the same counts, from the thread that
 *  called into flashgmm. MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM, comm) is one, in pieces of
 *  at most INT_MAX.
 *  @return 0, or anything else to fail the call with FGMM_ERR_IO. */
typedef int (*fgmm_sum_fn)(void *user, double *values, int64_t count);

/** Processes that fit one mixture together, each on its share of the rows and its own device. Zeroed: one alone. */
typedef struct fgmm_ranks {
    fgmm_sum_fn sum;
    void *user;
    int rank; /**< this one's, from 0 */
    int size; /**< how many there are; 0, or 1 without `sum`: one alone */
} fgmm_ranks;

typedef struct fgmm_fit_options {
    size_t struct_size;
    int64_t n_components; /**< K; needed unless init_model gives it */
    fgmm_covariance covariance_type;
    fgmm_init init;
    const fgmm_model *init_model; /**< NULL, or the start: covariance_type, init and n_init are then unused */
    int64_t init_sample;          /**< rows that seeding looks at, at least K; 0: max(8192, 16 K), at most N */
    int n_init;                   /**< restarts, the best lower bound is kept; 0: 1 */
    int max_iter;                 /**< 0: 100 */
    double tol;       /**< stop when the lower bound changes by less, nats a row; 0: 1e-3; negative: never */
    double reg_covar; /**< added to every variance; 0: 1e-6; negative: none */
    uint64_t seed;
    unsigned freeze;              /**< FGMM_FREEZE_* */
    fgmm_policy on_dead;          /**< RESEED and DROP only with freeze 0 */
    fgmm_policy on_collapse;      /**< KEEP or DROP; collapsed: every variance of a component at the floor */
    fgmm_compute_options compute; /**< zeroed: defaults */
    /** NULL, or a file (an .npz) that fgmm_fit keeps its place in, and goes on from if it is there. A fit that was
     *  killed and is called again with the same options, rows, device and ranks gives the model, to the bit, that it
     *  would have given. Written beside, flushed and renamed, so that there is always a whole one; where writing
     *  fails a warning says so, the old one stays, and the fit goes on. Written for the last time when the fit is
     *  done or cancelled, and never removed. max_iter and tol may have changed since where n_init is 1. Also a model
     *  file, of the iteration it was written in.
     *  @return FGMM_ERR_INVALID if it belongs to other options or rows, naming what differs (of the rows their
     *  number, weight, means and variances are compared); FGMM_ERR_FORMAT if it is damaged; FGMM_ERR_IO if none can
     *  be written there. fgmm_initial_model leaves it alone. */
    const char *checkpoint;
    double checkpoint_seconds; /**< between two; 0: 60; negative: after each iteration */
    /** Ranks: all call fgmm_fit (or fgmm_initial_model) with the same options and get the same model, of the rows of
     *  all. The order of rows is that of ranks. A rank needs a row, but may have fewer than K. One all-reduce of the
     *  statistics an iteration. Rank 0 seeds, reads and writes the checkpoint. What a rank fails with, or is
     *  cancelled with, comes back on all of them, behind "rank N: "; a rank that ends without calling is for `sum`
     *  to notice. */
    fgmm_ranks ranks;
} fgmm_fit_options;

#define FGMM_FIT_OPTIONS_INIT                                                                                          \
    {                                                                                                                  \
        sizeof(fgmm_fit_options), 0, FGMM_SPHERICAL, FGMM_INIT_KMEANSPP, 0, 0, 0, 0, 0.0, 0.0, 0, 0, FGMM_KEEP,        \
            FGMM_KEEP, FGMM_COMPUTE_OPTIONS_INIT, 0, 0.0, {                                                            \
            0, 0, 0, 0                                                                                                 \
        }                                                                                                              \
    }

/** How a call went. Strings are static or inside the struct. */
typedef struct fgmm_report {
    size_t struct_size;
    int64_t n_rows;
    int64_t n_skipped;        /**< rows left out because of NaN or Inf */
    char device[300];         /**< "cpu (avx512)", "opencl: NAME" */
    fgmm_precision precision; /**< what ran, which may be more than what was asked for */
    fgmm_engine engine;       /**< of the last iteration */
    int n_iter;
    int converged;
    double lower_bound; /**< nats a row */
    double seconds;
    double seconds_per_iteration; /**< median over the iterations; 0 if none */
    double survivors_per_row;     /**< components evaluated exactly, mean over the last iteration */
    double dropped_mass;     /**< upper bound on the responsibility left out, mean a row, last iteration; looser by some
                                       tens of times where rows are left unevaluated */
    int64_t peak_host_bytes; /**< flashgmm's own, beyond the caller's rows */
    int64_t peak_device_bytes; /**< 0 on the CPU */
    int n_warnings;            /**< all of them, also those that did not fit below */
    char warnings[8][160];     /**< the first few, a line each; the last says how many more */
} fgmm_report;

#define FGMM_REPORT_INIT                                                                                               \
    {                                                                                                                  \
        sizeof(fgmm_report), 0, 0, {0}, FGMM_EXACT, FGMM_ENGINE_AUTO, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {                  \
            { 0 }                                                                                                      \
        }                                                                                                              \
    }

/**  Fits a mixture by expectation-maximization: scikit-learn's EM, iteration by iteration (variances about the new
 *  mean, reg_covar added; lower_bound is the mean log-likelihood of the last E-step). Variances have a floor before
 *  reg_covar is added, max(1e-30, 2^-94 mean^2): about what rounding leaves of a constant column.
 *  @param report NULL, or an initialised report. When the call is cancelled after a whole iteration, `*out` is
 *  the model of that iteration all the same and the status is FGMM_ERR_CANCELLED.
 *  @return FGMM_ERR_INVALID (K > N, bad option, shape mismatch with init_model), FGMM_ERR_DATA (NaN or Inf, zero total
 *  weight), FGMM_ERR_IO, FGMM_ERR_MEMORY, FGMM_ERR_DEVICE, FGMM_ERR_CANCELLED. */
FGMM_API fgmm_status fgmm_fit(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                              const fgmm_fit_options *options, fgmm_report *report);

/** fgmm_fit on several devices at once: each context runs on its share of the rows, in a thread of its own, and its
 *  sums are added in memory, in the order of the contexts. With the same shares and devices the same bits each time.
 *  @param contexts [n], each another one. Those on the CPU share its cores: give them threads. All that a context
 *  calls (progress, log) and all that delivers its rows is called from the thread of that context, at the
 *  same time as the others', its allocator from others too; fgmm_context_cancel on any of them ends all.
 *  @param rows [n]: rows[i], made with contexts[i], is its share; their order is that of the shares.
 *  @param out belongs to contexts[0]. @param options init_model may be of any context; ranks must be zeroed.
 *  @param reports NULL, or [n] initialised, one a device; n_rows and n_skipped are those of all.
 *  @return as fgmm_fit, with the message in contexts[0]; what another device failed with stands behind "rank i: ".
 *  FGMM_ERR_INVALID also for one context twice, FGMM_ERR_MEMORY where no thread is to be had. */
FGMM_API fgmm_status fgmm_fit_devices(fgmm_context *const *contexts, int n, fgmm_model **out,
                                      const fgmm_rows *const *rows, const fgmm_fit_options *options,
                                      fgmm_report *reports);

/**  The model that fgmm_fit with these options would start its first restart from: a start for fgmm_online, or to look
 *  at. Rows are scanned once and a sample of them is seeded from. @return as fgmm_fit. */
FGMM_API fgmm_status fgmm_initial_model(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                        const fgmm_fit_options *options);

/* ---- k-means: the same engine with hard assignment ----------------------------------------- */

typedef struct fgmm_kmeans_options {
    size_t struct_size;
    int64_t n_components;         /**< K; needed unless init_model gives it */
    fgmm_init init;               /**< as for fgmm_fit; FGMM_INIT_RANDOM starts at K random rows too */
    const fgmm_model *init_model; /**< NULL, or the means to start from: init and n_init are then unused */
    int64_t init_sample;          /**< as for fgmm_fit */
    int n_init;                   /**< restarts, the smallest inertia is kept; 0: 1 */
    int max_iter;                 /**< 0: 300 */
    /**  Stop when the squared moves of the means sum to this much of the features' mean variance, or less; 0: 1e-4;
     *  negative: never. Without any move the iterations always stop. */
    double tol;
    uint64_t seed;
    int keep_empty; /**< 0: a mean without rows moves to the row farthest from its mean, at most K moves a restart; 1: it
                         stays where it is */
    fgmm_compute_options compute; /**< zeroed: defaults */
} fgmm_kmeans_options;

#define FGMM_KMEANS_OPTIONS_INIT                                                                                       \
    { sizeof(fgmm_kmeans_options), 0, FGMM_INIT_KMEANSPP, 0, 0, 0, 0, 0.0, 0, 0, FGMM_COMPUTE_OPTIONS_INIT }

typedef struct fgmm_kmeans_result {
    double inertia;  /**< sum of w |x - nearest mean|^2 over the rows, about the means returned */
    double weight;   /**< sum of the weights; N without weights */
    int64_t n_empty; /**< means that are nearest to no row */
} fgmm_kmeans_result;

/**  k-means by Lloyd's iterations. Each pass over the rows is an E-step that gives a row to its nearest mean (of equal
 *  ones, to the first) and costs one matrix product.
 *  @param out a spherical mixture with *equal* weights and one variance for all, inertia / (sum of w * D), so that
 *  fgmm_predict gives the nearest mean, fgmm_score_samples a falling function of the distances, and fgmm_fit can start
 *  from it. The variance is at least 1e-12 of the data's.
 *  @param counts NULL, or [K]: the weight of the rows nearest to each mean.
 *  @param report as for fgmm_fit; lower_bound is NaN. Cancelled after a whole iteration, the call gives the means of
 *  that iteration and the inertia and counts of the pass that led to them, with FGMM_ERR_CANCELLED.
 *  @return as fgmm_fit. Source: Lloyd 1982; empty means as in scikit-learn. */
FGMM_API fgmm_status fgmm_kmeans(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                 const fgmm_kmeans_options *options, fgmm_kmeans_result *result, double *counts,
                                 fgmm_report *report);

/* ---- statistics: what fit, streaming, mini-batches, devices and processes share ------------ */

/** Sufficient statistics of rows under a model: N_k, and the first and second moments about a centre of each component.
 *  They hold a copy of the model and its fingerprint. */
typedef struct fgmm_stats fgmm_stats;

FGMM_API fgmm_status fgmm_stats_create(fgmm_context *ctx, fgmm_stats **out, const fgmm_model *model);
FGMM_API void fgmm_stats_free(fgmm_context *ctx, fgmm_stats *stats);

/** Back to no rows. @param model the model to take from now on; NULL: the same. */
FGMM_API fgmm_status fgmm_stats_reset(fgmm_context *ctx, fgmm_stats *stats, const fgmm_model *model);

/** One E-step over rows (with their weights), added. On failure the statistics are as they were.
 *  @param report NULL, or initialised; its lower_bound is that of all rows so far. */
FGMM_API fgmm_status fgmm_stats_accumulate(fgmm_context *ctx, fgmm_stats *stats, const fgmm_rows *rows,
                                           const fgmm_compute_options *options, fgmm_report *report);

/** Adds src to dst. @return FGMM_ERR_INVALID if they were taken under different models. */
FGMM_API fgmm_status fgmm_stats_merge(fgmm_context *ctx, fgmm_stats *dst, const fgmm_stats *src);

/** Multiplies all sums by factor, for decay; finite and >= 0. */
FGMM_API fgmm_status fgmm_stats_scale(fgmm_context *ctx, fgmm_stats *stats, double factor);

typedef struct fgmm_finalize_options {
    size_t struct_size;
    double reg_covar; /**< 0: 1e-6; negative: none */
    unsigned freeze;  /**< FGMM_FREEZE_* */
} fgmm_finalize_options;

#define FGMM_FINALIZE_OPTIONS_INIT                                                                                     \
    { sizeof(fgmm_finalize_options), 0.0, 0 }

/** The M-step: a new model from the statistics, lower_bound set to their mean log-likelihood. A component
 *  without rows keeps its mean and covariance and gets weight 0. @return FGMM_ERR_INVALID if there are no rows. */
FGMM_API fgmm_status fgmm_stats_finalize(fgmm_context *ctx, const fgmm_stats *stats,
                                         const fgmm_finalize_options *options, fgmm_model **out);

/** An .npz with the model, the centres and the sums. @return FGMM_ERR_IO; load also FGMM_ERR_FORMAT, naming the
 *  array. */
FGMM_API fgmm_status fgmm_stats_save(fgmm_context *ctx, const fgmm_stats *stats, const char *path);
FGMM_API fgmm_status fgmm_stats_load(fgmm_context *ctx, fgmm_stats **out, const char *path);

/** The sums as flat doubles, owned by the statistics, valid until they change. */
typedef struct fgmm_stats_view {
    int64_t k, d;
    fgmm_covariance covariance_type;
    const double *centres; /**< [K, D], what s1 and s2 are about */
    const double *s0;      /**< [K], sum of w r */
    const double *s1;      /**< [K, D], sum of w r (x - centre) */
    const double *s2;      /**< sum of w r (x - centre)^2: [K, D] for diag, [K] summed over features for spherical; of
                              w r (x - centre)(x - centre)', symmetric: [K, D, D] for full, [D, D] over all components for tied */
    double log_likelihood; /**< sum of w log p(x), nats */
    double weight;         /**< sum of w */
    double rows;           /**< rows seen, scaled likewise */
    uint64_t fingerprint;  /**< of the model */
} fgmm_stats_view;

FGMM_API void fgmm_stats_export(const fgmm_stats *stats, fgmm_stats_view *out);

/* ---- mini-batches: partial_fit -------------------------------------------------------------- */

/** Stepwise EM over batches of rows (Cappe and Moulines 2009): with the statistics s of batch t, a unit of weight, and
 *  rho_t = (t + t0)^-kappa,
 *      S <- (1 - rho_t) S + rho_t s,      model <- M-step(S),      t = 1, 2, ...
 *  S starts as the statistics of the starting model itself, so a component that a batch misses fades and does not
 *  die. */
typedef struct fgmm_online fgmm_online;

typedef struct fgmm_online_options {
    size_t struct_size;
    double kappa;     /**< within (0.5, 1]; smaller forgets faster; 0: 0.7 */
    double t0;        /**< larger trusts the start more; 0: 1; negative: 0, the first batch replaces the start */
    double reg_covar; /**< 0: 1e-6; negative: none */
    unsigned freeze;  /**< FGMM_FREEZE_* */
    fgmm_compute_options compute; /**< zeroed: defaults */
} fgmm_online_options;

#define FGMM_ONLINE_OPTIONS_INIT                                                                                       \
    { sizeof(fgmm_online_options), 0.0, 0.0, 0.0, 0, FGMM_COMPUTE_OPTIONS_INIT }

/** @param model the start, copied: of fgmm_initial_model, a fit or the caller's. @param options NULL for defaults. */
FGMM_API fgmm_status fgmm_online_create(fgmm_context *ctx, fgmm_online **out, const fgmm_model *model,
                                        const fgmm_online_options *options);
FGMM_API void fgmm_online_free(fgmm_context *ctx, fgmm_online *online);

/**  One step: an E-step over a batch of rows (with their weights) and an M-step. Rows may be read only once. Batches
 *  should be drawn at random from the data, and hold several rows a component. On failure the state is as it was.
 *  @param report NULL, or initialised; its lower_bound is the batch's mean log-likelihood before the step, in nats a
 *  row.
 *  @return FGMM_ERR_INVALID, FGMM_ERR_DATA (NaN or Inf, no weight), FGMM_ERR_IO, FGMM_ERR_MEMORY, FGMM_ERR_DEVICE,
 *  FGMM_ERR_CANCELLED. */
FGMM_API fgmm_status fgmm_partial_fit(fgmm_context *ctx, fgmm_online *online, const fgmm_rows *rows,
                                      fgmm_report *report);

/**  The model after the last step, owned by `online`, valid until its next step. Its lower_bound is a mean over the
 *  batches weighted as S; n_iter counts the steps. */
FGMM_API const fgmm_model *fgmm_online_model(const fgmm_online *online);
FGMM_API int64_t fgmm_online_steps(const fgmm_online *online);

/**  The state as an .npz: what fgmm_stats_save writes (of S), with the step and the options but for `compute`. After
 *  load the steps go on as if there had been no file. @return FGMM_ERR_IO; load also FGMM_ERR_FORMAT, naming the
 *  array. */
FGMM_API fgmm_status fgmm_online_save(fgmm_context *ctx, const fgmm_online *online, const char *path);
/** @param compute NULL for defaults. */
FGMM_API fgmm_status fgmm_online_load(fgmm_context *ctx, fgmm_online **out, const char *path,
                                      const fgmm_compute_options *compute);

/* ---- inference --------------------------------------------------------------------------- */

/** Log-density of each row. @param log_prob [n]. Also with zero weight. */
FGMM_API fgmm_status fgmm_score_samples(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                                        const fgmm_compute_options *options, double *log_prob, fgmm_report *report);

typedef struct fgmm_score_result {
    double log_likelihood; /**< weighted mean of log p(x), nats a row */
    double aic;            /**< 2 p - 2 sum of w log p(x); p = fgmm_model_parameters */
    double bic;            /**< p log(sum of w) - 2 sum of w log p(x) */
    double weight;         /**< sum of the weights; N without weights */
} fgmm_score_result;

/** Mean log-likelihood and information criteria of rows with their weights. @return FGMM_ERR_DATA if no weight is
 *  left. */
FGMM_API fgmm_status fgmm_score(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                                const fgmm_compute_options *options, fgmm_score_result *out, fgmm_report *report);

/** The most responsible component of each row; of equal ones, the first. @param labels [n]; -1 for rows left out. */
FGMM_API fgmm_status fgmm_predict(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                                  const fgmm_compute_options *options, int32_t *labels, fgmm_report *report);

/**  The responsibility of every component for each row. Large: ask for a slice of the rows at a time.
 *  @param resp [n, K]; rows sum to one but for rounding. Components with r/w below about 1e-10, which are not looked
 *  at in exact precision, and rows left out are 0. @param log_prob NULL, or [n]: the log-density, NaN for rows left
 *  out. */
FGMM_API fgmm_status fgmm_predict_proba(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                                        const fgmm_compute_options *options, float *resp, double *log_prob,
                                        fgmm_report *report);

typedef struct fgmm_assign_options {
    size_t struct_size;
    double min_resp; /**< entries with less responsibility are left out; 0: none */
    /** 0: responsibilities as they are. 1: those listed are scaled to sum to one, and the best is listed whatever its
     *  responsibility, as in Kaldi's top-n with min-post. */
    int renormalise;
    fgmm_compute_options compute; /**< zeroed: defaults */
} fgmm_assign_options;

#define FGMM_ASSIGN_OPTIONS_INIT                                                                                       \
    { sizeof(fgmm_assign_options), 0.0, 0, FGMM_COMPUTE_OPTIONS_INIT }

/**  The m most responsible components of each row, best first. Entries after the last component with responsibility >=
 *  min_resp are id -1 and responsibility 0; so are components with r/w below about 1e-10, which are not looked at in
 *  exact precision, and all of a row left out.
 *  @param m 1 .. 64. @param options NULL for defaults. @param ids [n, m]. @param resp [n, m].
 *  @param log_prob NULL, or [n]: the log-density under the whole mixture. */
FGMM_API fgmm_status fgmm_assign(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows, int m,
                                 const fgmm_assign_options *options, int32_t *ids, float *resp, double *log_prob,
                                 fgmm_report *report);

/** Draws n rows from the mixture. The same seed gives the same rows. @param x [n, d]. @param labels NULL, or [n]. */
FGMM_API fgmm_status fgmm_sample(fgmm_context *ctx, const fgmm_model *model, int64_t n, uint64_t seed, double *x,
                                 int32_t *labels);

/* ---- arrays in files ---------------------------------------------------------------------- */

typedef struct fgmm_array {
    const char *name; /**< its name in an .npz; unused in an .npy */
    fgmm_dtype type;  /**< not BF16, which NumPy lacks */
    int ndim;         /**< 0 .. 3 */
    int64_t shape[3];
    const void *data; /**< C order */
} fgmm_array;

/** Writes arrays for numpy.load: one to "*.npy", one or more to "*.npz". Written beside and renamed. */
FGMM_API fgmm_status fgmm_arrays_save(fgmm_context *ctx, const char *path, const fgmm_array *arrays, int count);

/* ---- neighbours in files: what a search found, or should have found ----------------------- */

/** The rows nearest to each of n queries, nearest first. */
typedef struct fgmm_neighbors {
    int64_t n;              /**< queries */
    int64_t k;              /**< neighbours of each */
    const int64_t *ids;     /**< [n, k], from 0; -1 where there are fewer than k */
    const float *distances; /**< [n, k] in the file's own measure, or NULL */
    const char *metric;     /**< the file's own word for it, such as "angular"; NULL or "" if it names none */
} fgmm_neighbors;

/** Reads neighbours, all of them into memory.
 *   - "ivecs": for each query int32 k, then int32 ids (TexMex);
 *   - "ibin": uint32 n, uint32 k, then int32 [n, k]; behind them, in a ground truth of big-ann-benchmarks, float32
 *     distances [n, k]. The length of the file tells which it is;
 *   - "npy": integers [n, k];
 *   - "hdf5": the dataset `neighbors` of ann-benchmarks, with `distances` if they are there and the attribute
 *     `distance`; a path "FILE:DATASET" reads the ids of another dataset.
 *  @param format NULL by extension, else one of these names. @param out to be freed with fgmm_neighbors_free.
 *  @return FGMM_ERR_IO, FGMM_ERR_FORMAT naming what is wrong, FGMM_ERR_UNSUPPORTED for HDF5 in a build without it. */
FGMM_API fgmm_status fgmm_neighbors_load(fgmm_context *ctx, fgmm_neighbors **out, const char *path, const char *format);
FGMM_API void fgmm_neighbors_free(fgmm_context *ctx, fgmm_neighbors *neighbors);

/** Writes neighbours as "*.ivecs", "*.ibin", "*.npy", "*.hdf5" or "*.h5", as described for load, beside and renamed.
 *  Ids are int64 in npy and HDF5 and must fit int32 in the others. Distances, if there are any, go to ibin and HDF5,
 *  the metric to HDF5; the others hold ids alone.
 *  @return FGMM_ERR_INVALID for an id below -1 or too large, FGMM_ERR_IO, FGMM_ERR_UNSUPPORTED. */
FGMM_API fgmm_status fgmm_neighbors_save(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors);

#ifdef __cplusplus
}
#endif
#endif
