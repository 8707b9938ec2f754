/*
 * The seam: what a device must do for flashgmm. Start reading here.
 *
 *   rows --block--> backend --> sums (double, on the host) --M-step (lib)--> parameters --> backend ...
 *
 * A backend is one const table of operations shaped like the problem. lib/ validates every argument before
 * it gets here; a backend re-checks nothing. A new backend is one folder and one line in lib/dispatch.c.
 *
 * How an E-step must behave, whatever runs it:
 *  - Rows are numbered through the whole pass (fgmm_block_source.first_row); blocks come in order, each but the last a
 *    multiple of FGMM_CHUNK_ROWS long. All partial sums are formed on chunks fixed by that number and combined in row
 *    order, so the same device gives the same bits for any block size and number of threads.
 *  - Screen, then refine: a cheap product gives each logit with a rigorous bound and names the components that could
 *    hold r/w above the row's cut; only these are evaluated exactly. A row with too many survivors goes to the dense
 *    engine.
 *  - The row's cut. Dropping component k from row x takes r from N_k, at most r sqrt(2q) deviations from its mean and
 *    r 2q variances from its variance (q: half the squared Mahalanobis distance). So a component may go only if
 *    r/w (1 + 2q) <= cut; since q = C_k - log p(x) - log(r/w) for C_k = log_norm[k], the rule, with C the largest C_k,
 *        log(r/w) <= log cut - log(1 + 2 (C - log p(x) - log cut)).
 *    makes it at most 1.2 cut (1 at q >> 1). All that is lost of component k is then at most 1.2 cut * w_k N, of its
 *    variance as of its count. (A lower bound of log p(x) in its place, such as the best logit, only keeps more.)
 *  - The N x K responsibilities are never stored; a tile of fixed size may be.
 */
#ifndef FGMM_LIB_BACKEND_H
#define FGMM_LIB_BACKEND_H

#include <flashgmm/flashgmm.h>

/* Changes whenever anything in this file does: the handshake with a backend loaded at run time. */
#define FGMM_BACKEND_ABI 15

/* Rows a chunk: the grain of partial sums and the unit of block sizes. */
enum { FGMM_CHUNK_ROWS = 1024 };

/* Most components that fgmm_assign returns a row. */
enum { FGMM_TOP_MAX = 64 };

/* Services of the context for a backend, which links to nothing of lib/. */
typedef struct fgmm_host {
    void *user;
    void *(*alloc)(void *user, size_t bytes); /* 64-byte aligned, not zeroed; NULL if none */
    void (*free)(void *user, void *pointer);
    /* Stores the message and returns status: `return host->fail(host->user, FGMM_ERR_DEVICE, "...", ...)`. */
    fgmm_status (*fail)(void *user, fgmm_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
    void (*log)(void *user, fgmm_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
    void (*forget)(void *user);   /* what failed so far has been put right: its message is no one's; or NULL */
    int (*cancelled)(void *user); /* nonzero: give up soon, with FGMM_ERR_CANCELLED */
    int threads;                  /* 0: as many as OpenMP would use */
    size_t device_memory_limit;   /* 0: the backend's own choice */
    int memory_limited;           /* 1: what the host's memory may hold is limited, and `alloc` counts */
} fgmm_host;

typedef struct fgmm_device fgmm_device; /* an opened device; each backend defines its own */
typedef struct fgmm_block fgmm_block;   /* rows on a device; each backend defines its own */

/* What to open: by selector, or over handles that the application owns. */
typedef struct fgmm_open_request {
    const char
        *selector; /* cpu: the instruction set or NULL; opencl: NULL (best GPU, then accelerator), "NAME", "P.D" */
    int any_kind;  /* opencl: 1 if a CPU OpenCL device will do (the caller asked for "opencl" by name) */
    void *cl_context, *cl_device, *cl_queue; /* opencl: all or none */
} fgmm_open_request;

typedef struct fgmm_device_facts {
    char name[256];          /* "avx512", "NVIDIA H200" */
    int64_t memory_bytes;    /* what blocks and work space may take together; 0: host memory, no limit of its own */
    int64_t max_block_bytes; /* one block's rows at most; 0: no limit */
    int64_t peak_bytes;      /* most device memory held so far; 0 on the CPU */
    int zero_copy;           /* 1: put only borrows host rows, which must then stay until release */
    int stages;              /* 1: rows are copied fastest from memory that `stage` gives */
    double copy_seconds;     /* that copies of rows have taken so far, as the device tells; 0: it does not */
    double sum_epsilon;      /* relative rounding of one term of a sum: 2^-53 or 2^-24 */
    int has_double;          /* whether FGMM_DOUBLE has kernels here */
} fgmm_device_facts;

/* A block of rows on its way to a device. Exactly one of data and cl_mem is set. */
typedef struct fgmm_block_source {
    const void *data; /* host rows, row i at data + i * stride_bytes */
    void *cl_mem;     /* or a buffer of the device's own context, row i at offset + i * stride_bytes */
    size_t offset;
    unsigned n_wait; /* events to wait for before the first use of cl_mem */
    void *const *wait_list;
    size_t stride_bytes;
    fgmm_dtype type;   /* any of the row types */
    int64_t first_row; /* number of row 0 in the pass, a multiple of FGMM_CHUNK_ROWS */
    int64_t n, d;
    const double *weights; /* [n] on the host, or NULL for all 1 */
    int kept;              /* 1: the block stays for several passes, so that what one learns may serve the next */
    int64_t together;      /* kept: rows that are to stay of this block and those that come behind it; 0: n */
    int32_t *hints; /* [n] or NULL, for backends that use host memory in place: what one pass may leave for the next
                               of each row, -1 at first; outlives the block */
    const double *centre; /* [D] or NULL: FGMM_F64 rows are narrowed to f32 after this is subtracted, where the
                               device cannot keep them as they are; everything else then speaks of x itself */
} fgmm_block_source;

/* What follows a pass: nothing that is known of; an E-step; calls over rows that persist, of whichever kind. */
typedef enum fgmm_follower { FGMM_FOLLOWED_BY_NONE, FGMM_FOLLOWED_BY_PASS, FGMM_FOLLOWED_BY_CALLS } fgmm_follower;

/* Parameters of an E-step, prepared by lib/params.c; all arrays owned by the caller and valid until collect, the last
 * assign, or a
   failure. */
typedef struct fgmm_params {
    fgmm_covariance covariance_type;
    int64_t k, d;
    const double *means;        /* [K, D] */
    const double *half_inv_var; /* spherical, diag: 1 / (2 var), [K] or [K, D]; finite, > 0 */
    const double
        *whitening;   /* tied, full: W = L^-1 of S = L L', lower triangular with zeros above, row-major: [D, D] or
                                   [K, D, D]; q = 1/2 |W (x - mean)|^2 */
    double condition; /* tied: |W|_F |L|_F >= the condition number of W; what rounding in W x may cost */
    const double *log_weights; /* [K]; FGMM_LOG_ZERO for weight 0: such a component is left out everywhere */
    const double *weights;     /* [K] */
    const double *log_norm;    /* [K]: -D/2 log 2pi - 1/2 log|S_k|, so that log p(x, k) = log_weights + log_norm - q,
                                  q = sum_d half_inv_var (x_d - mean_d)^2 or 1/2 |W (x - mean)|^2 */
    const double
        *centre; /* [D]: weighted mean of the means, rounded to f32: what a screen subtracts from rows and means */
    const double *
        scale; /* [D]: powers of two near 1 / (deviation of the column), for a screen; all equal but for diag. Tied: the
                   whitened columns', W (x - centre) is what is scaled */
    const double
        *sum_centres;    /* [K, D]: what the sums are taken about; the same pointer as means in all but rare passes */
    double cut;          /* what may be dropped, see the row's cut above; 0: keep all */
    double log_norm_max; /* the largest log_norm of a component with weight */
    /* FGMM_FAST: a cut 100 times that of FGMM_EXACT, and arithmetic that is within 2e-3, where a backend wins by it. */
    fgmm_precision precision;
    /* 1: no row's log p(x) is asked for, neither by estep nor by assign or proba, so that a backend may spare itself a row's
     * logits where it knows the one component that is kept, and take log_likelihood from the sums. */
    int summed;
    fgmm_engine engine; /* SCREEN or DENSE: what to start a row with */
    int careful;        /* 1: nothing that fgmm_sums.imprecise was set for */
    int hard;           /* 1: responsibility 1 for the best component, 0 for the others (k-means) */
    /* What is likely to be of the parameters that an M-step, which adds reg_covar to variances, makes of this pass's sums: a backend may begin with it. */
    fgmm_follower followed;
    double reg_covar;
} fgmm_params;

/* The finite stand-in for log 0. */
#define FGMM_LOG_ZERO (-1e30)

/* Sums of an E-step; a backend adds to them. */
typedef struct fgmm_sums {
    double *s0; /* [K]: sum of w r */
    double *s1; /* [K, D]: sum of w r (x - sum_centre) */
    double
        *s2; /* sum of w r (x - sum_centre)^2: [K] if spherical, [K, D] if diag; sum of w r (x - c)(x - c)', the lower
                              triangle alone: [K, D, D] if full, [D, D] over all components if tied */
    double log_likelihood; /* sum of w log p(x); of hard passes: sum of w max_k log p(x, k) */
    double rounding;       /* summed: bound on what the rounding of sums leaves in it; else 0 */
    double weight;         /* sum of w */
    double survivors;      /* components evaluated exactly and kept, over all rows */
    double dense_rows;     /* rows that went through the dense engine */
    double dropped;        /* bound on the dropped responsibility, over all rows */
    int imprecise; /* set to 1: rounding in some sums exceeds the contract; the pass must be repeated, with params.careful */
} fgmm_sums;

/* Column sums about a centre, with the first row that holds NaN or Inf. */
typedef struct fgmm_moments {
    double *sum;        /* [D]: sum of w (x - centre) */
    double *square;     /* [D]: sum of w (x - centre)^2 */
    double weight;      /* sum of w */
    int64_t bad_row;    /* number (through the pass) of the first row with NaN or Inf; -1 if none so far */
    int64_t bad_column; /* its first such column */
    int64_t bad_count;  /* rows with any; their values are kept out of the sums */
    int overflows; /* 1: some row's squares are beyond the device's arithmetic, or near to that; doubles have none */
} fgmm_moments;

/* Rows a scan takes at most, and what its queries are padded to, in elements. */
enum { FGMM_SCAN_ROWS = 64, FGMM_SCAN_PAD = 32 };

/* Distances of rows to queries, for nearest neighbours. */
typedef struct fgmm_scan {
    fgmm_dtype type; /* of the rows: F32, F16, U8 or I8; finite */
    int dot;         /* 1: inner products; 0: squared distances */
    int whole; /* 1: the rows are U8 or I8, the queries int16 with such values, and d is at most 8192: exact sums */
    int64_t d;
    const void *const *rows; /* [n_rows] */
    int n_rows;              /* 1 .. FGMM_SCAN_ROWS */
    const void *const
        *queries; /* [n_queries]: f32 or int16, d elements, then zeros up to a multiple of FGMM_SCAN_PAD */
    int n_queries;
    float *out; /* [n_queries, FGMM_SCAN_ROWS]; the same bits for a row and a query in whatever company */
} fgmm_scan;

/* An index on its way to a device: the rows of each list, and links to rows of other lists that are in it as well. */
typedef struct fgmm_lists_source {
    fgmm_dtype type; /* of the rows: F32, F16, U8 or I8; finite */
    fgmm_metric metric;
    int64_t d, n_lists;
    const struct fgmm_list_rows {
        int64_t n;
        const void *vectors;    /* [n, d] */
        const int64_t *ids;     /* [n] */
        const float *inverse;   /* [n]: 1 / |x|; angular alone */
    } * lists;                  /* [n_lists]; their rows are numbered through, fewer than 2^32 - 1 */
    const int64_t *link_starts; /* [n_lists + 1] */
    const uint32_t *links;      /* [n_links]: numbers of rows */
    const int32_t *before;      /* [n_links, depth]: the row's lists that come before this one, then -1 */
    int depth;
} fgmm_lists_source;

typedef struct fgmm_lists fgmm_lists; /* an index on a device; each backend defines its own */

/* Queries and the lists each of them probes; all arrays are on the host. */
typedef struct fgmm_lists_query {
    int64_t n, stride;
    const float *queries;   /* [n, stride]; of length 1 where angular */
    int whole;              /* rows and queries are bytes, and sums of d such terms fit an int: exact */
    const uint64_t *probed; /* [n, words]: bit l for list l */
    int64_t words;
    const uint8_t *filter; /* NULL, or bits of the ids that are wanted, those below filter_size */
    int64_t filter_size;
    int64_t k, room;  /* at most room >= k results a query */
    int64_t *ids;     /* [n, room] */
    float *distances; /* [n, room]: smaller the nearer, so inner products are negated */
    int64_t *found;   /* [n]: results: the k best and all that are as far as the k-th, in no order. More than room: the
                         query's are not complete */
    int64_t computed; /* distances: added to */
} fgmm_lists_query;

/* Every function returns a status with its message already stored through host->fail. */
typedef struct fgmm_backend {
    unsigned abi;     /* FGMM_BACKEND_ABI */
    const char *name; /* "cpu", "opencl" */

    /* Fills infos (room for cap) and *n; *n may be 0. @param why_none room for why_size bytes, may stay empty.
     * Required. */
    fgmm_status (*list)(const fgmm_host *host, fgmm_device_info *infos, int cap, int *n, char *why_none,
                        size_t why_size);
    /* Opens a device; the host table is copied. Required. */
    fgmm_status (*open)(const fgmm_host *host, const fgmm_open_request *request, fgmm_device **out);
    /* Before E-steps or assignments of such covariances, of rows of d features of such a type: whether the device gets known answers right.
     * FGMM_ERR_DEVICE if not; FGMM_ERR_MEMORY and FGMM_ERR_CANCELLED say nothing about that. It is asked each time, and may remember. Optional. */
    fgmm_status (*trust)(fgmm_device *device, int covariance, int64_t d, fgmm_dtype type);
    void (*close)(fgmm_device *device);
    void (*describe)(const fgmm_device *device, fgmm_device_facts *out);

    /* Host memory that the device copies rows from at full speed; NULL: none, and any other serves. unstage frees it,
     * or returns 0 for memory that is not stage's. Optional: opencl; both or none. */
    void *(*stage)(fgmm_device *device, size_t bytes);
    int (*unstage)(fgmm_device *device, void *pointer);
    /* Has the device copy from memory of the caller's at that speed too, until unpin: which takes as long as to read it a few
     * times. NULL: it does not. Optional: opencl; both or none. */
    void *(*pin)(fgmm_device *device, const void *data, size_t bytes);
    void (*unpin)(fgmm_device *device, void *pin);

    /* Starts bringing a block to the device. The source's host memory must stay until wait (zero_copy: until
     * release). */
    fgmm_status (*put)(fgmm_device *device, const fgmm_block_source *source, fgmm_block **out);
    fgmm_status (*wait)(fgmm_device *device, fgmm_block *block);
    void (*release)(fgmm_device *device, fgmm_block *block); /* NULL is ignored; also while work on it is under way */

    /* Adds to *io. centre: [D]; or NULL in a pass of assign, score or proba, before the block is given to these: it is looked at for NaN, Inf and
     * overflows alone. Required. */
    fgmm_status (*moments)(fgmm_device *device, fgmm_block *block, const double *centre, fgmm_moments *io);
    /* Copies rows (numbers within the block, any order) as double: out [count, d]. Required. */
    fgmm_status (*gather)(fgmm_device *device, fgmm_block *block, const int64_t *rows, int64_t count, double *out);

    /* Sets the parameters for estep and assign, and starts the device's sums at zero. Required. */
    fgmm_status (*begin)(fgmm_device *device, const fgmm_params *params);
    /* E-step over a block. log_prob: NULL or [n] for log p(x). May be asynchronous unless log_prob is given.
     * Required. */
    fgmm_status (*estep)(fgmm_device *device, fgmm_block *block, double *log_prob);
    /* Adds the sums since begin to *out and waits for them. Required; once after the last estep. */
    fgmm_status (*collect)(fgmm_device *device, fgmm_sums *out);
    /* The best m components of each row, best first, ids -1 for those below the row's cut. ids, resp [n, m], log_prob
     * [n]: each may be NULL. Required. */
    fgmm_status (*assign)(fgmm_device *device, fgmm_block *block, int m, int32_t *ids, float *resp, double *log_prob);

    /* Adds the sum of w log p(x) over the rows of positive weight, as the device keeps weights, to *sum: the same whatever blocks they come in.
     * Optional: else the caller sums what assign finds. */
    fgmm_status (*score)(fgmm_device *device, fgmm_block *block, double *sum);

    /* Responsibilities of each row: resp [n, K], 0 for those below the row's cut; log_prob [n] or NULL. Required. */
    fgmm_status (*proba)(fgmm_device *device, fgmm_block *block, float *resp, double *log_prob);

    /* Distances of a few rows in host memory; needs no begin, cannot fail, and threads may call it together. Optional:
     * the CPU has it, and lib/ uses no other's. */
    void (*scan)(const fgmm_device *device, const fgmm_scan *scan);

    /* Distances of a block's rows to queries [n_queries, stride] of f32 on the host, inner products if dot, summed in
     * f32: out [n_queries, n of the block] on the host. Needs no begin. Optional: with lists_put. */
    fgmm_status (*distances)(fgmm_device *device, fgmm_block *block, const float *queries, int64_t stride,
                             int64_t n_queries, int dot, float *out);

    /* An index on the device, and searches of it: the same results whatever queries go together. Needs no begin.
     * Optional: opencl; all three or none. */
    fgmm_status (*lists_put)(fgmm_device *device, const fgmm_lists_source *source, fgmm_lists **out);
    fgmm_status (*lists_search)(fgmm_device *device, fgmm_lists *lists, fgmm_lists_query *query);
    void (*lists_release)(fgmm_device *device, fgmm_lists *lists); /* NULL is ignored */

    /* Frees the work space of passes but for what the next call takes at once; a public call ends with it. Optional. */
    void (*end)(fgmm_device *device);
    /* Frees all that can be made again, because memory ran out: blocks and lists stay, what begin prepared and all sums
     * since are lost. Optional. */
    void (*trim)(fgmm_device *device);
    /* Keeps (keep 1) or lets go (keep 0) a caller's buffer and events; keep checks that it holds `bytes`. Optional:
     * opencl. */
    fgmm_status (*share)(fgmm_device *device, int keep, void *cl_mem, size_t bytes, void *const *events,
                         unsigned count);
    /* An event after all work enqueued so far, retained for the caller. Optional: opencl. */
    fgmm_status (*last_use)(fgmm_device *device, void **event);
} fgmm_backend;

/* The backend that is always there. */
extern const fgmm_backend fgmm_backend_cpu;

/* A loadable backend's one exported symbol. @return NULL if it was built for another abi. */
typedef const fgmm_backend *(*fgmm_backend_entry)(unsigned abi);
#define FGMM_BACKEND_ENTRY "fgmm_backend_module"

#endif
