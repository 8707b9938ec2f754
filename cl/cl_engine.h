/*
 * The engine's own state. An E-step goes through a block slice by slice:
 *
 *   screen -> refine -> compact and sort (cl_sort.c) -> sums of the survivors        cl_estep.c
 *          \-> rows with too many candidates -> dense engine (cl_dense.c)
 *          \-> log-likelihood and counts of each chunk of rows
 *
 * Sums are kept in two tallies, one for either engine, so that the order of additions is that of the rows' numbers.
 */
#ifndef FGMM_CL_ENGINE_H
#define FGMM_CL_ENGINE_H

#include "cl_runtime.h"

enum {
    CL_CAP = 16,             /* candidates of a row before it is left to the dense engine */
    CL_DEPTH_TILE = 16,      /* DT of screen.cl */
    CL_SCAN_BLOCK = 1024,    /* elements a work-group scans */
    CL_SORT_BLOCK = 1024,    /* entries a work-group sorts */
    CL_DENSE_WIDTH = 1024,   /* components of a dense tile */
    CL_DENSE_CELLS = 1 << 21 /* cells of a dense tile: rows * components */
};

struct fgmm_block {
    cl_mem rows;
    int owned;      /* rows were uploaded here; else they are the caller's buffer, retained */
    cl_mem weights; /* [n] f32, or NULL */
    cl_mem hints;   /* [n]: each row's last best component, for the screen; NULL before the first */
    void *staging[2];
    cl_event written[2]; /* of the staging copies on their way */
    fgmm_dtype type;     /* as stored: never FGMM_F64 */
    int64_t first_row, n, d;
    cl_ulong offset, pitch; /* in elements */
    double *centre;         /* [D], subtracted on the host from FGMM_F64 rows; or NULL */
};

/* Device memory that grows; its content does not survive growing. */
typedef struct cl_room {
    cl_mem mem;
    size_t bytes;
} cl_room;

/* Sums of one engine over rows so far: part holds superchunks of `grain` rows under way, total the finished ones. With
 * grain 0 everything goes straight into total. Both are [K, 2 D + 1] float-floats, part with `slots` of them. */
typedef struct cl_tally {
    int64_t grain;
    uint32_t slots;
    cl_room total, part;
    int started;     /* total holds zeros or sums */
    int64_t current; /* the superchunk in slot 0; -1 if none */
} cl_tally;

/* Work-group and micro-tile of a tiled kernel. */
typedef struct cl_tile {
    int gx, gy, rm, rn;
} cl_tile;

struct cl_engine {
    /* from begin */
    fgmm_params params;
    int begun, prepared;
    double *frame; /* [D]: the centre of the blocks the parameters were prepared for; NULL: none */
    /* prepared parameters */
    int diag, all_dense;
    cl_uint k, d, kp, dp; /* components of weight > 0, and both sizes padded for the screen */
    int32_t *ids;         /* [k]: number of each among the caller's components */
    cl_float log_norm_max;
    cl_float log_cut, resp_log_cut;   /* of the screen (0 in hard passes) and of the responsibilities */
    cl_float4 bounds;                 /* of screen.cl */
    cl_tile tile, dense_tile;         /* of screen.cl and dense.cl */
    int64_t batch_budget;             /* multiply-adds a dispatch */
    cl_uint dense_width, dense_group; /* components of a dense tile, rows of a dense group */
    cl_room centre, scale, screen_a, screen_b, screen_c, mean_hi, mean_lo, inverse, constants, sum_hi, sum_lo;
    cl_mem sum_hi_at, sum_lo_at; /* the rooms' or the means' */
    cl_tally sparse, dense;
    /* of a slice */
    cl_room cand_id, cand_v, cand_count, kept, dense_flag, logz, kept_weight, offsets, dense_offsets, dense_list;
    cl_room keys[2], values[2], histogram, digit_starts, scan_totals[4], scan_sums[4], segments, chunks;
    cl_room logits, best, best_id, sum, dense_starts;
    cl_room top_ids, top_resp;
    uint32_t *list; /* host copy of dense_list */
    size_t list_cap;
    /* sums over the rows, in row order */
    double log_likelihood, weight, survivors, dense_rows, dropped;
};

/* A slice: rows row0 .. row0 + n - 1 of a block. */
typedef struct cl_slice {
    fgmm_block *block;
    cl_uint row0, n;
    int64_t first; /* number of its first row in the pass */
} cl_slice;

#define CL_RUN(device, kernel, what, dimensions, global, local, ...)                                                   \
    cl_run(device, kernel, what, dimensions, global, local, (const cl_arg[]){__VA_ARGS__},                             \
           (int)(sizeof((const cl_arg[]){__VA_ARGS__}) / sizeof(cl_arg)))

/* cl_blocks.c */
void *cl_alloc(fgmm_device *device, size_t bytes); /* NULL with the message stored */
void cl_release_memory(fgmm_device *device, void *pointer);
fgmm_status cl_room_fit(fgmm_device *device, cl_room *room, size_t bytes, const char *what);
void cl_room_free(fgmm_device *device, cl_room *room);
fgmm_status cl_read(fgmm_device *device, cl_mem buffer, size_t bytes, void *out, const char *what);
fgmm_status cl_write(fgmm_device *device, cl_mem buffer, size_t bytes, const void *data, const char *what);
size_t cl_round_up(size_t value, size_t step);

/* Build options of the kernels that read rows, and of the tiled ones. */
typedef struct cl_tile_options {
    char text[128];
} cl_tile_options;
void cl_row_options(char *out, size_t size, const fgmm_block *block);
void cl_tiled_options(cl_tile_options *out, const cl_tile *tile, int diag, const fgmm_block *block);

/* cl_params.c: device copies of the parameters for rows from which `frame` was subtracted. */
fgmm_status cl_prepare(fgmm_device *device, const double *frame);

/* cl_sort.c */
/* Compacts the survivors of a slice into entries sorted by (component, row), in keys[*side] and values[*side], and fills
 * dense_list and its host copy. */
fgmm_status cl_compact(fgmm_device *device, const cl_slice *slice, cl_uint *entries, cl_uint *dense, int *side);
/* Adds the sums of sorted entries to the sparse tally. */
fgmm_status cl_accumulate(fgmm_device *device, const cl_slice *slice, cl_uint entries, int side);

/* cl_tally.c */
void cl_tally_reset(cl_tally *tally, int64_t grain, uint32_t slots);
/* Prepares for sums over superchunks first .. first + slots - 1, of which slot 0 goes on from earlier sums if *resume.
 * With grain 0: first 0, slots 1. @param part where the slots are. */
fgmm_status cl_tally_open(fgmm_device *device, cl_tally *tally, int64_t first, cl_uint slots, cl_uint *resume,
                          cl_mem *part);
/* After the sums: folds all slots but the last, which stays under way. */
fgmm_status cl_tally_close(fgmm_device *device, cl_tally *tally, cl_uint slots);
/* Folds what is under way and adds all of it to the caller's sums. */
fgmm_status cl_tally_collect(fgmm_device *device, cl_tally *tally, fgmm_sums *out);
void cl_tally_free(fgmm_device *device, cl_tally *tally);

/* cl_dense.c: rows list[0 .. count-1] of the slice, ascending, or its first count rows if `all`. Adds to the tally; or, if m > 0,
 * fills their part of top_ids and top_resp. */
fgmm_status cl_dense_rows(fgmm_device *device, const cl_slice *slice, cl_uint count, int all, cl_uint m);
void cl_dense_plan(cl_engine *engine); /* sizes of groups and of the tally */

/* cl_estep.c: log_z and survivors of a slice, shared by estep and assign: *entries sorted in keys[*side] and values[*side],
 * *dense rows left to the dense engine (all of them if engine->all_dense). */
fgmm_status cl_survivors(fgmm_device *device, const cl_slice *slice, cl_uint *entries, cl_uint *dense, int *side);
fgmm_status cl_read_log_prob(fgmm_device *device, const cl_slice *slice, double *log_prob);
fgmm_status cl_breathe(fgmm_device *device); /* FGMM_ERR_CANCELLED if asked to stop */
/* The next slice of a block, of at most `most` rows; ends on a multiple of the sparse tally's grain where it can. */
cl_slice cl_slice_at(const cl_engine *engine, fgmm_block *block, int64_t row0, int64_t most);
int64_t cl_slice_rows(const fgmm_device *device);

#endif
