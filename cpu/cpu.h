/*
 * The CPU backend's own shapes. One source, cpu_simd.c, is compiled once per instruction set and gives a
 * cpu_kernels table each; cpu_reference.c is the scalar double reference they are tested against.
 */
#ifndef FGMM_CPU_H
#define FGMM_CPU_H

#include "../lib/backend.h"

enum {
    CPU_TILE_ROWS = 96,  /* rows screened together: their packed form stays in the second-level cache */
    CPU_CANDIDATES = 32, /* survivors a row may have before it goes to the dense engine */
    CPU_BATCH = 8,       /* rows the dense engine takes together */
    CPU_SHARDS = 16      /* parts of the components whose sums are merged independently */
};

/* No row is further from a component than this, as half the squared Mahalanobis distance, and none nearer to padding. */
#define CPU_FARTHEST 1e300
#define CPU_PADDING_LOGIT (-1.7e308)

/*
 * Means packed for an instruction set. Components of weight 0 are left out: `live` ones remain, ids gives their numbers.
 *
 * Screen: panels of `panel` components; coefficient j of component c at coef[(c / panel) * depth * panel + j * panel + c % panel].
 * Padding components have upper = -big, so they never survive.
 * Dense: groups of `lanes` components in double; feature j of component c at means_t[(c / lanes) * d * lanes + j * lanes + c % lanes].
 */
typedef struct cpu_pack {
    int64_t live, d, depth;
    int64_t *ids; /* [live] */
    int diag;
    /* screen; NULL coef: not packed, every row goes dense */
    float *coef;
    float *upper;              /* [panels * panel]: what is added for the upper score (see cpu_pack.c) */
    float *gap;                /* upper less what is added for the lower logit */
    float *two_a, *a;          /* spherical: v = two_a * (ms . xs) - a |xs|^2 + ... */
    float *centre, *scale;     /* [D] */
    float slope, top, log_cut; /* a row's threshold is made of them, see threshold_of in cpu_simd.c */
    /* dense */
    double *means_t, *centres_t, *half_t; /* half_t: [groups, D, lanes] or [groups, lanes] */
    double *offset;                       /* [groups * lanes]: log_weights + log_norm, CPU_PADDING_LOGIT for padding */
} cpu_pack;

/* Rows of a tile while they are screened. */
typedef struct cpu_screen_rows {
    float best[CPU_TILE_ROWS];                 /* running max of the lower logits */
    float threshold[CPU_TILE_ROWS];            /* upper scores below it are out */
    float norm[CPU_TILE_ROWS];                 /* |xs|^2, spherical */
    int count[CPU_TILE_ROWS];                  /* candidates, CPU_CANDIDATES + 1 once there were too many */
    int32_t id[CPU_TILE_ROWS][CPU_CANDIDATES]; /* packed component numbers */
    float score[CPU_TILE_ROWS][CPU_CANDIDATES];
} cpu_screen_rows;

/* Sums of a chunk of rows, one a thread. Sparse rows add to [K, D] arrays, dense ones to transposed groups. */
typedef struct cpu_sums {
    double *s0, *s1, *s2;   /* [K], [K, D], [K] or [K, D]; zero where not touched */
    unsigned char *touched; /* [K] */
    double *dense_s0, *dense_s1,
        *dense_s2;                /* [groups * lanes], [groups, D, lanes], [groups (, D), lanes]; NULL until needed */
    unsigned char *dense_touched; /* [groups] */
} cpu_sums;

typedef struct cpu_kernels {
    const char *name;
    int panel; /* components a screen panel */
    int lanes; /* doubles a vector */

    /* Packs n rows (widened to float by the caller: x [n, d]) as xs, or [xs^2, xs], interleaved by row_step; fills norm. */
    void (*pack_rows)(const cpu_pack *pack, const float *x, int n, float *packed, float *norm);
    /* Screens n packed rows against all components; fills best, count, id and score of rows. */
    void (*screen)(const cpu_pack *pack, const float *packed, int n, cpu_screen_rows *rows);
    /* sum of half (x - mean)^2 over d features; half has one element if spherical. */
    double (*distance)(const double *x, const double *mean, const double *half, int64_t d, int diag);
    /* s1 += wr (x - centre), s2 += wr (x - centre)^2 (one sum if spherical). */
    void (*accumulate)(const double *x, const double *centre, double wr, int64_t d, int diag, double *s1, double *s2);
    /* log p(x, c) of CPU_BATCH rows for all groups: out [CPU_BATCH, groups * lanes]. */
    void (*dense_logits)(const cpu_pack *pack, const double *x, double *out);
    /* @return sum of exp(in[c] - shift) over n, a multiple of lanes. */
    double (*exp_sum)(const double *in, int64_t n, double shift);
    /* Turns logits into responsibilities in place: exp(l - log_z), or 0 where log r/w <= log_rho. @return how many stay. */
    int64_t (*responsibilities)(double *logits, const double *log_weights, int64_t n, double log_z, double log_rho);
    /* Adds CPU_BATCH rows with responsibilities r [CPU_BATCH, groups * lanes] to the dense sums. */
    void (*dense_accumulate)(const cpu_pack *pack, const double *x, const double *r, cpu_sums *sums);
} cpu_kernels;

/* What a row's E-step leaves for the caller; any pointer may be NULL. */
typedef struct cpu_outputs {
    double *log_prob;
    int m;
    int32_t *ids;
    float *resp;
} cpu_outputs;

struct fgmm_block {
    fgmm_block_source source;
};

struct fgmm_device {
    fgmm_host host;
    const char *isa;
    const cpu_kernels *kernels; /* NULL: the scalar reference */
    int threads;
    const fgmm_params *params; /* of the last begin */
    double log_cut;            /* of params; -infinity if it is 0 */
    int64_t s2_size;
    double *s0, *s1, *s2; /* sums since begin */
    fgmm_sums totals;     /* their scalars */
    cpu_pack pack;
    double *log_weights_packed; /* [groups * lanes] */
    struct cpu_worker *workers; /* [threads] */
};

/* cpu_pack.c */
fgmm_status cpu_pack_begin(fgmm_device *device);
void cpu_pack_free(fgmm_device *device);

/* cpu_estep.c: the E-step over a block. accumulate 0: only outputs. */
fgmm_status cpu_rows(fgmm_device *device, const fgmm_block *block, int accumulate, const cpu_outputs *out);
void cpu_workers_free(fgmm_device *device);

/* cpu_reference.c: the same in plain double, one thread. */
fgmm_status cpu_reference_rows(fgmm_device *device, const fgmm_block *block, int accumulate, const cpu_outputs *out);

/* cpu_backend.c */
void *cpu_alloc(fgmm_device *device, size_t count, size_t size, const char *what); /* zeroed; message stored if NULL */
void cpu_free(fgmm_device *device, void *pointer);

/* Row i of a block. */
static inline const void *cpu_row(const fgmm_block_source *source, int64_t i) {
    return (const char *)source->data + (size_t)i * source->stride_bytes;
}

/* Sorted top m of `count` responsibilities into row `i` of out. Equal ones keep the order of their ids. */
void cpu_top(const cpu_outputs *out, int64_t i, const int64_t *ids, const double *resp, int64_t count);

extern const cpu_kernels *const cpu_kernel_tables[]; /* best first, NULL at the end; cpu_isa.c */
int cpu_isa_supported(const char *name);

#endif
