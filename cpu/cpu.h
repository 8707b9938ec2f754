/*
 * The CPU backend's own shapes. cpu_simd.c, cpu_matrix.c, cpu_product.c and cpu_scan.c are compiled once per instruction
 * set and give a cpu_kernels table each; cpu_reference.c is the scalar double reference they are tested against.
 */
#ifndef FGMM_CPU_H
#define FGMM_CPU_H

#include <stdatomic.h>

#include "../lib/backend.h"
#include "../lib/convert.h"

enum {
    CPU_TILE_ROWS = 96,   /* rows screened together: their packed form stays in the second-level cache */
    CPU_CANDIDATES = 32,  /* candidates a row may have before it goes to the dense engine */
    CPU_BATCH = 8,        /* rows the dense engine takes together */
    CPU_SHARDS = 16,      /* parts of the sums that are merged independently */
    CPU_RANK = 32,        /* rows that go into a matrix of sums together */
    CPU_STRIP_MAX = 16,   /* columns that whiten takes, at most */
    CPU_PRODUCT_ROWS = 96 /* rows the product engine takes together: a multiple of every micro-tile */
};

/* No row is further from a component than this, as half the squared Mahalanobis distance, and none nearer to padding.
 * */
#define CPU_FARTHEST 1e300
#define CPU_PADDING_LOGIT (-1.7e308)

/* Parameters of the product engine, cpu_products.c. */
typedef struct cpu_products {
    int64_t depth, stride,
        wide; /* stride: of a row: depth, a 1, its square, padding; wide: components in whole vectors and micro-tiles */
    float *coef;                     /* [panels] of [depth, panel]: what x is multiplied by */
    double *base, *slope, *part;     /* [wide] */
    float *weights;                  /* [wide] */
    double *mean_half;               /* [D]: diag: mean over components of half_inv_var / scale^2 */
    double norm_terms, square_terms; /* T <= norm_terms |xs| + square_terms |xs|^2 */
    double terms_max;                /* what T may be */
    int useful;                      /* 0: no row can be near enough */
} cpu_products;

/*
 * Means packed for an instruction set. Components of weight 0 are left out: `live` ones remain, ids gives their
 * numbers; packed component c is the c-th of them.
 *
 * Screen: panels of `panel` components, the last one as narrow as whole vectors of floats allow (`width`): coefficient
 * j of component c at coef[first * depth + j * width + c - first], where first is the panel's first component. Padding
 * never survives. Dense: groups of `lanes` components in double; feature j of component c at means_t[(c / lanes) * d *
 * lanes + j * lanes + c % lanes].
 */
typedef struct cpu_pack {
    int64_t live, d, depth;
    int32_t *ids; /* [live] */
    int diag;
    int strips;       /* 1: no screen and no dense engine, every row goes through the matrices, cpu_estep.c */
    int sparse_max;   /* rows of more components than this go to a dense engine; 0: all of them, without a screen */
    double *whitened; /* [live, D]: W (m - centre) if tied and not strips, else NULL */
    /* screen; NULL coef: not packed, every row goes dense */
    float *coef;
    float *upper;              /* [padded]: what is added for the upper score (see cpu_pack.c) */
    float *gap;                /* upper less what is added for the lower logit */
    float *two_a, *a;          /* not diag: v = two_a * (ms . xs) - a |xs|^2 + ... */
    float *centre, *scale;     /* [D] */
    float slope, top, log_cut; /* a row's threshold is made of them, see threshold_of in cpu_simd.c */
    /* dense; made when the first row needs it */
    atomic_int dense_state;               /* of cpu_once */
    double *means_t, *centres_t, *half_t; /* half_t: [groups, D, lanes] or [groups, lanes] */
    double *offset;                       /* [groups * lanes]: log_weights + log_norm, CPU_PADDING_LOGIT for padding */
    double *log_weights;                  /* [groups * lanes] */
    atomic_int products_state, product_room_state; /* of cpu_once */
    cpu_products products;
} cpu_pack;

/* Rows of a tile while they are screened. */
typedef struct cpu_screen_rows {
    float best[CPU_TILE_ROWS];                 /* running lower bound of log p(x) */
    float threshold[CPU_TILE_ROWS];            /* upper scores below it are out */
    float norm[CPU_TILE_ROWS];                 /* |xs|^2, not diag */
    int count[CPU_TILE_ROWS];                  /* candidates, CPU_CANDIDATES + 1 once there were too many */
    int32_t id[CPU_TILE_ROWS][CPU_CANDIDATES]; /* packed component numbers */
    float score[CPU_TILE_ROWS][CPU_CANDIDATES];
} cpu_screen_rows;

/* A row's share in a component. */
typedef struct cpu_entry {
    int32_t row, component; /* within the chunk; packed */
    double share;           /* w r */
} cpu_entry;

/* Sums of a chunk of rows, one a thread, that cannot go straight to the device's. Zero where not touched. */
typedef struct cpu_sums {
    double *dense_s0, *dense_s1,
        *dense_s2;                /* [groups * lanes], [groups, D, lanes], [groups (, D), lanes]; NULL until needed */
    unsigned char *dense_touched; /* [groups] */
    double *scatter;              /* tied: [D, D] of the entries */
    double *dense_scatter;        /* tied: [D, D] of the dense rows, about params->centre */
    double *product_s;            /* [wide, stride] */
    int product_touched;
} cpu_sums;

typedef struct cpu_kernels {
    const char *name;
    int panel;  /* components a screen panel */
    int floats; /* floats a vector */
    int lanes;  /* doubles a vector */
    int strip;  /* columns that whiten takes */
    int rows;   /* rows of the micro-tile */

    /* Packs n rows, row i at x + i * stride, as xs or [xs^2, xs]: packed [n, depth], norm [n]. shifted: they are less
     * the centre. */
    void (*pack_rows)(const cpu_pack *pack, const float *x, int64_t stride, int shifted, int n, float *packed,
                      float *norm);
    /* x [n] as doubles. */
    void (*widen)(const float *x, int64_t n, double *out);
    /* Screens n packed rows against all components, from the lower bounds in rows->best (-infinity: none); fills best,
     * count, id and score. packed has room for CPU_TILE_ROWS rows. */
    void (*screen)(const cpu_pack *pack, const float *packed, int n, cpu_screen_rows *rows);
    /* sum of half (x - mean)^2 over d features; half has one element if not diag. */
    double (*distance)(const double *x, const double *mean, const double *half, int64_t d, int diag);
    /* s1 += wr (x - centre), s2 += wr (x - centre)^2 (one sum if not diag). */
    void (*accumulate)(const double *x, const double *centre, double wr, int64_t d, int diag, double *s1, double *s2);
    /* log p(x, c) of CPU_BATCH rows for all groups: out [CPU_BATCH, groups * lanes]. */
    void (*dense_logits)(const cpu_pack *pack, const double *x, double *out);
    /* @return the largest of n logits, a multiple of lanes, and its place; of equal ones the first. */
    double (*largest)(const double *in, int64_t n, int64_t *place);
    /* @return sum of exp(in[c] - shift) over n, a multiple of lanes. */
    double (*exp_sum)(const double *in, int64_t n, double shift);
    /* Turns logits into responsibilities in place: exp(l - log_z), or 0 where log r/w <= log_rho. @return how many
     * stay. */
    int64_t (*responsibilities)(double *logits, const double *log_weights, int64_t n, double log_z, double log_rho);
    /* Adds CPU_BATCH rows with responsibilities r [CPU_BATCH, groups * lanes] to the dense sums. */
    void (*dense_accumulate)(const cpu_pack *pack, const double *x, const double *r, cpu_sums *sums);
    /* q [strip] = 1/2 |W t|^2 of the columns of t = x - mean [d, strip] (mean NULL: 0; room in t); y: NULL or W t.
     * Given limit [strip], it may stop once every q is beyond. */
    void (*whiten)(const double *w, const double *x, const double *mean, int64_t d, const double *limit, double *t,
                   double *y, double *q);
    /* t = x - centre, wt = share t. */
    void (*deviate)(const double *x, const double *centre, double share, int64_t d, double *t, double *wt);
    /* Rows from .. to-1 of matrix [d, d] += sum of wt t', lower triangle and a little beyond; t, wt [n, stride]. */
    void (*scatter)(const double *t, const double *wt, int64_t stride, int n, int64_t d, int64_t from, int64_t to,
                    double *matrix);
    /* The product engine: logits [n, wide] of rows x [n, depth]; exponentials and their sum; responsibilities kept and
     * how many; s [wide, depth] += r' x. */
    void (*product_logits)(const cpu_products *p, const float *x, const double *square, int n, double *out);
    double (*product_exp)(const double *logits, int64_t n, double top, float *out);
    int64_t (*product_keep)(float *e, const float *least, int64_t n, float scale, float cut);
    void (*product_sums)(const cpu_products *p, const float *x, const float *r, int n, double *s);
    /* Distances of rows to queries, lib/backend.h. */
    void (*scan)(const fgmm_scan *scan);
} cpu_kernels;

/* What a row's E-step leaves for the caller; any pointer may be NULL. */
typedef struct cpu_outputs {
    double *log_prob;
    int m;
    int32_t *ids;
    float *resp;
    float *proba; /* [n, K] */
} cpu_outputs;

struct fgmm_block {
    fgmm_block_source source;
};

/* One thread's work space. */
typedef struct cpu_worker {
    cpu_screen_rows rows;
    float *x;      /* [CPU_TILE_ROWS, D]: rows as floats */
    float *packed; /* [CPU_TILE_ROWS, depth] */
    double *wide;  /* [CPU_BATCH, D] */
    int64_t wide_row;
    double *y;                                   /* [CPU_BATCH, D]: whitened, tied */
    double *logits;                              /* [CPU_BATCH, groups * lanes], or [strip, live] for strips */
    double *columns, *deviations, *strip_y;      /* [D, strip] each, with matrices */
    double *rank;                                /* [2, CPU_RANK, D padded to strip], with matrices */
    double log_prob[FGMM_CHUNK_ROWS];            /* of the chunk's rows */
    double hint_logit[CPU_TILE_ROWS];            /* exact logits */
    double logit[CPU_TILE_ROWS][CPU_CANDIDATES]; /* of rows.id */
    int32_t *list;                               /* [live]: components of a row, strips; */
    double *list_exp;                            /* [live]: room for their exponentials */
    double *list_logit;                          /* [live]: and their logits */
    unsigned char *hinted;                       /* [live]: strips: taken already as a hint */
    int left_over;                               /* see finish_row */
    int screen_fails;                            /* most rows of this chunk's last tile had too many candidates */
    int64_t batch[CPU_BATCH];                    /* rows waiting for the dense engine */
    int batched;
    /* the product engine's batch: rows [CPU_PRODUCT_ROWS, stride], their squares and numbers, logits and
     * responsibilities [., wide] */
    float *product_x, *product_r;
    double *product_square, *product_logits;
    int64_t product_row[CPU_PRODUCT_ROWS];
    int product_rows, product_settled; /* of which the first have their responsibilities */
    cpu_sums sums;
    cpu_entry *entries, *sorted; /* [entry_room] */
    int64_t n_entries, entry_room;
    int64_t first_row; /* of the chunk */
    int64_t *starts;   /* [live + 1]: where each component's sorted entries begin */
    double log_likelihood, weight, survivors, dense_rows, dropped; /* of the chunk */
} cpu_worker;

struct fgmm_device {
    fgmm_host host;
    const char *isa;
    const cpu_kernels *kernels; /* NULL: the scalar reference */
    int threads;
    const fgmm_params *params; /* of the last begin */
    double log_cut;            /* of params; -infinity if it is 0 */
    int64_t s2_size;
    double *s0, *s1, *s2;        /* sums since begin */
    double *dense_s0, *dense_s1; /* tied: the part of s0 and s1 that dense_scatter needs; NULL until needed */
    double *dense_scatter;
    double *product_s; /* [wide, stride] of the product engine, about the screen's centre; NULL until needed */
    fgmm_sums totals;  /* their scalars */
    cpu_pack pack;
    cpu_worker *workers; /* [threads] */
};

/* One call's view, shared by its threads. */
typedef struct cpu_call {
    fgmm_device *device;
    const fgmm_block *block;
    const fgmm_block_source *source; /* the block's */
    const cpu_outputs *out;
    int accumulate;
    atomic_llong next;             /* the next chunk to take */
    atomic_llong turn[CPU_SHARDS]; /* the chunk whose sums each shard awaits */
    atomic_int status;
} cpu_call;

/* cpu_pack.c */
/* Runs make once, whoever comes first; the others wait for it. state starts at 0. */
fgmm_status cpu_once(fgmm_device *device, atomic_int *state, fgmm_status (*make)(fgmm_device *));
fgmm_status cpu_pack_begin(fgmm_device *device);
fgmm_status cpu_pack_dense(fgmm_device *device); /* once; threads may be here together */
void cpu_pack_free(fgmm_device *device);

/* cpu_estep.c: the E-step over a block. accumulate 0: only outputs. */
fgmm_status cpu_rows(fgmm_device *device, fgmm_block *block, int accumulate, const cpu_outputs *out);
void cpu_workers_free(fgmm_device *device);

fgmm_status cpu_finish_sparse(cpu_call *call, cpu_worker *worker, const int64_t *rows, int n); /* see there */
int64_t cpu_kept_exactly(cpu_call *call, cpu_worker *worker, int64_t i, float *r, double *logits);
double cpu_row_cut(const fgmm_device *device, double log_z);

/* cpu_products.c */
fgmm_status cpu_products_open(fgmm_device *device); /* once; threads may be here together */
void cpu_products_free(fgmm_device *device);
int cpu_product_fits(const fgmm_device *device, const float *xs); /* 1 if it may have this packed row */
fgmm_status cpu_product_add(cpu_call *call, cpu_worker *worker, int64_t i, const float *xs);
fgmm_status cpu_product_flush(cpu_call *call, cpu_worker *worker);
fgmm_status cpu_product_room(fgmm_device *device); /* for the device's sums; threads may be here together */
void cpu_product_merge(fgmm_device *device, cpu_sums *sums, int shard);
int cpu_product_settle(fgmm_device *device); /* 1: not exact enough */

/* cpu_merge.c: entries and chunk sums go to the device's sums, chunk after chunk. */
fgmm_status cpu_add_entry(fgmm_device *device, cpu_worker *worker, int64_t row, int32_t component, double share);
fgmm_status cpu_dense_sums(fgmm_device *device, cpu_sums *sums); /* makes room for them */
fgmm_status cpu_add_dense_rows(cpu_call *call, cpu_worker *worker,
                               const double *shares);                     /* the batch: [CPU_BATCH, groups * lanes] */
void cpu_sort_entries(cpu_call *call, cpu_worker *worker, int64_t first); /* and, tied, takes their scatter */
void cpu_merge(cpu_call *call, cpu_worker *worker, int64_t chunk);
int cpu_settle(fgmm_device *device); /* before collect: what the dense rows of tied still owe; 1: not exact enough */

/* cpu_reference.c: the same in plain double, one thread. */
fgmm_status cpu_reference_rows(fgmm_device *device, const fgmm_block *block, int accumulate, const cpu_outputs *out);
void cpu_reference_scan(const fgmm_scan *scan);

/* cpu_backend.c */
void *cpu_alloc(fgmm_device *device, size_t count, size_t size, const char *what); /* zeroed; message stored if NULL */
void cpu_free(fgmm_device *device, void *pointer);

/* Bytes of an element of rows. */
static inline size_t cpu_element_size(fgmm_dtype type) {
    return type == FGMM_F64 ? 8 : type == FGMM_F32 ? 4 : type == FGMM_F16 || type == FGMM_BF16 ? 2 : 1;
}

/* Row i of a block. */
static inline const void *cpu_row(const fgmm_block_source *source, int64_t i) {
    return (const char *)source->data + (size_t)i * source->stride_bytes;
}

static inline double cpu_row_weight(const fgmm_block_source *source, int64_t i) {
    return source->weights ? source->weights[i] : 1;
}

/* Row i in double. */
static inline void cpu_widen(const fgmm_device *device, const fgmm_block_source *source, int64_t i, double *out) {
    if (source->type == FGMM_F32)
        device->kernels->widen(cpu_row(source, i), source->d, out);
    else
        fgmm_widen(source->type, cpu_row(source, i), source->d, out);
}

/* n rounded up to a multiple of step. */
static inline int64_t cpu_multiple(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

/* n components in whole vectors of doubles. */
static inline int64_t cpu_padded(const fgmm_device *device, int64_t n) {
    return cpu_multiple(n, device->kernels->lanes);
}

/* The matrix W of packed component c; NULL without matrices. */
static inline const double *cpu_whitening(const fgmm_device *device, int64_t c) {
    const fgmm_params *params = device->params;
    return params->covariance_type == FGMM_FULL ? params->whitening + device->pack.ids[c] * params->d * params->d
                                                : params->whitening;
}

/* Sorted top m of `count` responsibilities into row `i` of out. Equal ones keep the order of their ids. */
void cpu_top(const cpu_outputs *out, int64_t i, const int32_t *ids, const double *resp, int64_t count);

extern const cpu_kernels *const cpu_kernel_tables[]; /* best first, NULL at the end; cpu_isa.c */
int cpu_isa_supported(const char *name);

#endif
