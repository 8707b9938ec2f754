/*
 * The engine's own state. An E-step goes through a block slice by slice:
 *
 *   settle (cl_settle.c) -> screen of the rest (cl_screen.c) -> refine of these
 *   refine -> lists (cl_bins.c) -> sums of the survivors                              cl_estep.c, cl_scatter.c
 *          \-> rows with too many candidates -> dense engine (cl_dense.c)
 *          \-> log-likelihood and counts of each chunk of rows
 *
 * Sums are kept in two tallies, one for either engine, so that the order of additions is that of the rows' numbers.
 * Tied and full covariances have two more for their scatter, and kernels of their own where a row is whitened
 * (cl_whiten.c).
 */
#ifndef FGMM_CL_ENGINE_H
#define FGMM_CL_ENGINE_H

#include "cl_runtime.h"
#include "cl_tuning.h"

enum {
    CL_CAP = 16,            /* candidates of a row before it is left to the dense engine */
    CL_DEPTH_TILE = 16,     /* the largest DT of screen.cl */
    CL_MATRIX_ROWS = 128,   /* rows, and work-items, of a group of screen_mma.cl */
    CL_MATRIX_CHUNK = 4,    /* CHUNK of screen_mma.cl */
    CL_GROUP_ROWS = 128,    /* TR of screen_wgmma.cl: rows of a work-group */
    CL_GROUP_COLUMNS = 64,  /* TC, components of a tile there; outputs of a tile of screen_full_wgmma.cl */
    CL_FULL_ROWS = 192,     /* TR of screen_full_wgmma.cl */
    CL_FULL_STEPS = 8,      /* the most STEPS there */
    CL_FULL_CONSTANTS = 8,  /* floats of a component's constants there */
    CL_GUESS_STEPS = 32,    /* the most STEPS of guess_wgmma.cl */
    CL_DISTANCE_SIDE = 8,   /* SIDE of distance_tile.clh: a work-group is so many items square */
    CL_DISTANCE_TILE = 32,  /* TILE */
    CL_SCAN_EACH = 16,      /* EACH of scan.cl: elements a work-item scans */
    CL_DENSE_WIDTH = 1024,  /* components of a dense tile */
    CL_PAIRS_COLUMNS = 128, /* components of a work-group of near_logits.clh */
    CL_NARROW = 64,         /* NARROW of narrow.clh: work-items of a component */
    CL_MOST_REST = 8        /* passes that what did not pay is left alone for, at most */
};

/* Multiply-adds of a launch of distances: well under 100 ms on a slow GPU. */
#define CL_DISTANCE_WORK 4e9

struct fgmm_block {
    cl_mem rows;
    int owned;    /* rows are the block's alone; else the caller's buffer or a stretch's, retained */
    int passing;  /* uploaded for one pass: the next block may have the buffers */
    int kept;     /* said to stay for several */
    size_t bytes; /* of rows, and the rows that weights and hints have room for, if owned */
    int64_t room;
    cl_mem weights;        /* [n] f32, or NULL */
    cl_mem hints;          /* [n]: each row's last best component, for the screen; or NULL before the first */
    int hinted;            /* hints are this block's */
    int noted;             /* and were when it came before */
    cl_mem row_bounds;     /* [n]: what is kept of each row from pass to pass (depths.clh); or NULL */
    int64_t row_bounds_of; /* the generation of parameters that they are of; 0: none */
    void *staging[2];
    cl_event written[2]; /* of the staging copies on their way */
    fgmm_dtype type;     /* as stored: never FGMM_F64 */
    int64_t first_row, n, d;
    cl_ulong offset, pitch; /* in elements */
    double *centre;         /* [D], subtracted on the host from FGMM_F64 rows; or NULL */
    cl_stretch *stretch;    /* or NULL: the block's own buffers */
    fgmm_block *next;       /* of the stretch */
};

/* Device memory that grows; its content does not survive growing. */
typedef struct cl_room {
    cl_mem mem;
    size_t bytes;
} cl_room;

enum { CL_PIECES = 8 };

/* What a device is sending while it goes on. */
typedef struct cl_arrival {
    cl_pinned pinned;
    cl_event event; /* NULL: nothing is on its way */
} cl_arrival;

/* Sums of one engine over rows so far: part holds superchunks of `grain` rows under way, total the finished ones. With
 * grain 0 everything goes straight into total. Both are [lines, width] float-floats, part with `slots` of them and, if it holds, one for floats under
 * way, which is alone with grain 0: [K, 2 D + 1], or lower triangles [K or 1, D (D + 1) / 2]. */
typedef struct cl_tally {
    size_t lines, width;
    int64_t grain;
    uint32_t slots;
    int holds; /* floats that launches of accumulate.cl leave under way */
    cl_room total, part;
    int started;     /* total holds zeros or sums */
    int64_t current; /* the superchunk in slot 0, 0 with grain 0; -1 if none */
} cl_tally;

/* The screen on matrix units: see screen_mma.cl, screen_wgmma.cl and, of full covariances, screen_full_wgmma.cl. */
typedef struct cl_matrix {
    int on;                  /* CL_MATRIX_* */
    cl_uint dp, steps, kept; /* features padded; steps of 16 terms; the same if a warp keeps its rows, else 0 */
    cl_uint nt, tiles, chunks;
    cl_float slack;
    cl_float4 bounds;
    cl_uint guessed; /* features that guesses go by: all, or of deep rows the first; 0: there are no guesses */
    cl_float guess_factor, guess_shift; /* of guess_tiles */
} cl_matrix;

/* Of all components: whether each is sound, and within what f16 holds; the largest c2 - c1; and of the features that guesses go by the largest M, and factor
 * that a row meets, and between which bounds rows at their means have their logits. */
typedef struct cl_screen_totals {
    int sound, suits_matrix;
    double slack, m, factor, top, bottom;
    int expected; /* they are those that were made ahead */
} cl_screen_totals;

/* The dense engine on matrix units: see near_logits.clh and near_fused.clh. */
typedef struct cl_pairs {
    int on;         /* CL_MATRIX_* */
    int halves;     /* f16 that a value is made of: 2; or 1, where fast precision allows it: see near_fused.clh */
    cl_uint steps;  /* of 16 terms of a product */
    cl_uint blocks; /* of 64 columns of the sums, that a work-group takes */
    cl_uint parts;  /* work-groups that take all */
    cl_float unit;  /* of the products, in binary digits of a density */
    int added;      /* sums of the group at hand are in the tally */
    cl_float2 most_l, least_a;
} cl_pairs;

/* Parameters that were sent: their number among all, and their form. */
typedef struct cl_generation {
    int64_t number; /* 0: none */
    cl_uint k, kp, d;
    int diag;
    int sound; /* screen_c, of kp components and their bounds, and off are of it, too */
} cl_generation;

/* What ahead.cl says of a component, as told_t there. */
typedef struct cl_told {
    cl_ulong bits[2];
    cl_float a_hi, a_lo, c1, c2, m;
} cl_told;

/* A slice: rows row0 .. row0 + n - 1 of a block. */
typedef struct cl_slice {
    fgmm_block *block;
    cl_uint row0, n;
    int64_t first;          /* number of its first row in the pass */
    int settled;            /* rows were settled: those left have places, the others need none (places.clh) */
    cl_uint places;         /* that there are: n if not settled */
    cl_uint listed, looked; /* places taken from the first on, by rows for the screen, and from the last down */
} cl_slice;

/* Of cl_ahead.c: parameters that are likely to come, and the rows that are settled by them meanwhile. */
typedef struct cl_ahead {
    int noted;         /* block and rows are of this pass, the first that it was given */
    fgmm_block *block; /* or the last of a stretch; NULL: it has gone */
    int whole;         /* of a stretch, which was taken as one */
    fgmm_block rows;   /* the block as it was, or all its stretch */
    cl_room rest;      /* [k, d]: what two floats leave of the means */
    int sent;          /* by this preparation */
    int64_t exact_of;  /* the generation that rest is of; 0: none */
    int made;          /* parameters were made, in mean_hi and so on, and are engine->now */
    int settled;       /* and a slice settled by them, which is still to be given */
    cl_slice slice;
    int all;        /* it was all rows, and what is known of each is of those parameters */
    int64_t beyond; /* the parameters that what is known of the block's rows beyond it is of; 0: lost */
    cl_float log_cut;
    cl_room terms, tells;
    uint64_t *keys; /* [2, keys_n] of the hashes: host memory; or NULL */
    size_t keys_n;
    cl_arrival arrival;  /* of tells */
    const cl_told *told; /* what came of it, while parameters are compared with it; NULL: not now */
    int waits, rests;    /* passes before it is tried again: now, and after the last time that other parameters came */
    int64_t begun;       /* passes that have begun so, for tests and the log */
} cl_ahead;

/* Of cl_recall.c: what the prepared parameters were made of. */
typedef struct cl_recall {
    double *kept; /* the arrays, one after the other: host memory; or NULL */
    size_t bytes;
    fgmm_params params; /* the rest; its pointers are others' */
    int setbacks;       /* of the device, then */
    int64_t number;     /* their generation; 0: none is kept */
    int64_t asked;      /* the generation that was last asked whether it is to be kept */
    int ended;          /* the last call with them came to its end */
    int likely;         /* they are still there for the pass that begins, if its own are the same */
} cl_recall;

struct cl_engine {
    /* from begin */
    fgmm_params params;
    int prepared;
    double *frame; /* [D]: the centre of the blocks the parameters were prepared for; NULL: none */
    /* prepared parameters */
    cl_generation now, last; /* of mean_hi and what goes with it, and of last_hi and so on */
    cl_room last_hi, last_inverse, last_off, last_c;
    int diag, tied, full, all_dense; /* tied or full: rows are whitened */
    int each;   /* each row's log p(x) is asked for of rows that may be settled: it then goes to row_logz */
    int alone;  /* rows of one candidate are not evaluated: the likelihood of sparse rows comes from their sums */
    int near;   /* the dense engine takes products and sums about the screen's centre */
    int coding; /* the best components are: codes of settled slices are read where few rows are likely to have places */
    int scoring; /* the sum of log-densities is: it sets out where no row is likely to have a place */
    int summing; /* sums are asked for: lists and the means' lower floats will be needed though all rows be settled */
    cl_uint k, d, kp, dp; /* components of weight > 0, and both sizes padded for the screen */
    int32_t *ids;         /* [k]: number of each among the caller's components */
    double *shares; /* [k, 2]: log-likelihood of each one's sums, and what rounds in it, in units of 2^-24; if alone */
    double count_units; /* that the counts among these may be off by, of their size */
    cl_float log_norm_max;
    cl_float log_cut, resp_log_cut;   /* of the screen (0 in hard passes) and of the responsibilities */
    cl_float4 bounds;                 /* of screen.cl */
    cl_tile tile, dense_tile;         /* of screen.cl and dense.cl */
    cl_tile white_tile, scatter_tile; /* of whiten.cl and screen_full.cl, and of scatter.cl */
    int64_t batch_budget;             /* multiply-adds a dispatch */
    cl_uint dense_width, dense_group; /* components of a dense tile, rows of a dense group */
    cl_room centre, scale, screen_a, screen_b, screen_c, mean_hi, mean_lo, inverse, constants, sum_hi, sum_lo;
    cl_mem sum_hi_at, sum_lo_at; /* the rooms' or the means' */
    cl_matrix matrix;
    cl_pinned pinned, white_pinned;
    int unsent; /* what the screens alone take; 0 also where there is no screen */
    int sent;   /* parameters of this pass were: their pinned memory may be under way */
    /* In pinned memory until they are sent: of mean_lo, screen_rows, matrix_c, columns. */
    float *lower, *forms[2], *multipliers, *tiled;
    int formed; /* screen_rows' were formed with what settling takes */
    cl_screen_totals screen_totals;
    cl_uint rows_from; /* features of screen_rows, centre and scale, padded */
    cl_room screen_rows[2], fragments, columns, matrix_c;
    cl_room near_means, near_constants, near_centre, far_rows;
    cl_float near_most; /* squared distance to the centre beyond which a row is marked in far_rows */
    int far_asked;      /* far_rows is of this pass */
    cl_pairs pairs;
    cl_room pair_factors, pair_means, pair_columns, pair_scales, pair_units, pair_a;
    cl_room by_feature, by_row, row_norms, factors, marks;
    cl_room white_hi, white_lo, white_scale, white_centre, white_rows, white_logits;
    cl_room white_bounds, known; /* of screen_full_wgmma.cl, and what known_full left */
    cl_float white_eta;          /* of screen_full.cl */
    cl_tally sparse, dense, sparse_scatter, dense_scatter;
    /* of cl_settle.c */
    cl_uint n_nearest;           /* others of a component that rows are looked at for */
    cl_room off, nearest, moved; /* of the components, for reach.cl and of it */
    cl_room lost;                /* what rows' depths lose, by their bucket */
    int64_t moved_from;          /* the generation that they have moved from; 0: none */
    cl_room place,
        left; /* of a slice's rows, of settle.cl: where each one's candidates are, and those that have places */
    int settling, reached;        /* rows of this block are settled; reaches are of these parameters */
    int reach_due;                /* and were found since it was last asked whether that paid */
    int settle_wait, settle_rest; /* passes until it is tried again: now, and after the last time that too few were */
    double tried, left_over;      /* rows of this pass, and those of them that were left to the screen */
    double placed;                /* share of the last slice's rows that took places */
    int screened;                 /* and some were for the screen */
    cl_ahead ahead;
    cl_recall recall;
    /* of cl_stretch.c */
    cl_stretch *waiting;          /* blocks of it that this pass has been given, up to waiting_to; NULL: none */
    const fgmm_block *waiting_to; /* NULL: all */
    int waiting_lost;             /* some were released */
    /* of a slice */
    cl_room packed_rows, row_starts, again, narrow, guess, row_logz;
    cl_room cand_id, cand_v, cand_count, kept, dense_flag, logz, kept_weight; /* at the rows' places */
    cl_room marks_of_rows, offsets, dense_list;
    cl_room counts, dense_count, totals, lists, values, row_values, scan_totals[4], scan_sums[4], segments, chunks;
    cl_uint list_slots; /* superchunks that the lists are in */
    cl_room cells, tops, norms, best, best_id, sum, dense_starts, scatter_starts;
    cl_room top_ids, top_resp, codes;
    uint32_t *list; /* host copy of dense_list */
    size_t list_cap;
    cl_room found; /* of find_bad in moments.cl; and what it holds, on its way */
    cl_arrival looked;
    cl_arrival taken;      /* how many places a slice's rows took */
    cl_arrival coded;      /* codes of its rows */
    int codes_sent;        /* they are, or were, on their way */
    cl_arrival dense_left; /* how many rows of the slice are left to the dense engine */
    cl_arrival row_sums;   /* of the last block's chunks */
    size_t chunks_summed;  /* that row_sums will hold; 0: they have been added */
    int scored; /* a slice's rows are summed if all are settled, and all the block's asked for with its last */
    cl_arrival pieces[CL_PIECES]; /* of what is read some at a time */
    /* sums over the rows, in row order */
    double log_likelihood, weight, survivors, dense_rows, dropped;
};

/* Where what is known of its rows lies, and which these are (places.clh, listed.clh); NULL: at their own numbers, all. */
static inline cl_mem cl_places(const cl_engine *engine, const cl_slice *slice) {
    return slice->settled ? engine->place.mem : NULL;
}
static inline cl_mem cl_left(const cl_engine *engine, const cl_slice *slice) {
    return slice->settled ? engine->left.mem : NULL;
}
/* Whether any of its rows has a place, as far as is known. */
static inline int cl_has_places(const fgmm_device *device, const cl_slice *slice) {
    return device->asking || !slice->settled || slice->listed || slice->looked;
}
/* Work-items a row of refine.cl, and of settle.cl where its sums must be those. */
static inline int cl_refine_lanes(cl_uint d) {
    return d >= 1024 ? 32 : d >= 512 ? 16 : d >= 64 ? 8 : d >= 16 ? 4 : 1;
}

/* Rows of a dispatch as listed.clh has them: in a row, or of a list. */
typedef struct cl_part {
    cl_mem rows;
    cl_ulong offset, pitch;
    cl_uint row0, out0, n;
    int type;          /* fgmm_dtype */
    int few_listed;    /* 1: the list is likely to be short; how long it is, the device knows */
    cl_mem list;       /* or NULL */
    cl_mem row_bounds; /* of the block's rows, for depths; or NULL */
} cl_part;

/* Where a tally takes sums: slots 0 .. slots - 1 of part, of which slot 0 goes on from earlier sums if `resume`. */
typedef struct cl_place {
    cl_uint slots, resume;
    cl_mem part;
} cl_place;

/* A group of the dense engine: rows base .. base + n - 1 of the list, or of the slice without one. */
typedef struct cl_group {
    const cl_slice *slice;
    cl_mem list;          /* NULL: all rows of the slice */
    const uint32_t *rows; /* the list on the host */
    cl_uint base, n;
} cl_group;

#define CL_RUN(device, kernel, what, dimensions, global, local, ...)                                                   \
    cl_run(device, kernel, what, dimensions, global, local, (const cl_arg[]){__VA_ARGS__},                             \
           (int)(sizeof((const cl_arg[]){__VA_ARGS__}) / sizeof(cl_arg)))

/* cl_blocks.c */
void *cl_alloc(fgmm_device *device, size_t bytes); /* NULL with the message stored */
void cl_release_memory(fgmm_device *device, void *pointer);
fgmm_status cl_room_fit(fgmm_device *device, cl_room *room, size_t bytes, const char *what);
void cl_room_free(fgmm_device *device, cl_room *room);
/* `bytes` of whole words, each `word`. @param what for the message: "clearing ..." */
fgmm_status cl_fill(fgmm_device *device, cl_mem buffer, cl_uint word, size_t bytes, const char *what);
/* Pinned memory, if there is any to be had: else pinned->mem stays NULL. */
void cl_pinned_open(fgmm_device *device, cl_pinned *pinned, size_t bytes);
/* Once no transfer from or to it is under way. */
void cl_pinned_close(fgmm_device *device, cl_pinned *pinned);
/* At least `bytes`, pinned or plain, none of it used. No transfer from or to it may be under way. */
fgmm_status cl_pin(fgmm_device *device, cl_pinned *pinned, size_t bytes);
void cl_pinned_free(fgmm_device *device, cl_pinned *pinned);
fgmm_status cl_read(fgmm_device *device, cl_mem buffer, size_t bytes, void *out, const char *what);
fgmm_status cl_read_at(fgmm_device *device, cl_mem buffer, size_t at, size_t bytes, void *out, const char *what);
/* The same in two: what was begun is at arrival->pinned.at after the end, which does nothing where nothing was begun. */
fgmm_status cl_read_begin(fgmm_device *device, cl_arrival *arrival, cl_mem buffer, size_t at, size_t bytes,
                          const char *what);
fgmm_status cl_read_end(fgmm_device *device, cl_arrival *arrival, const char *what);
/* Reads much in pieces 0 .. count - 1: ask begins to read one, `ahead` of them (CL_PIECES at most) before the first has come, and take gets each in
 * order. Of two at a time NVIDIA's driver copies none while one is taken: 16 MB in pieces of 2 MB took 0.82 ms of an H200, and with eight 0.37. */
typedef fgmm_status cl_piece_asked(fgmm_device *device, void *user, size_t piece, cl_arrival *out);
typedef void cl_piece_taken(fgmm_device *device, void *user, size_t piece, const void *from);
fgmm_status cl_read_pieces(fgmm_device *device, size_t count, size_t ahead, cl_piece_asked *ask, cl_piece_taken *take,
                           void *user, const char *what);
/* `bytes` from the start of a buffer, to be copied to `out`; or for `take`, of whole values of 8 bytes: it gets so many that are from `at` on, and
 * threads do so together. */
typedef struct cl_fetch {
    cl_mem buffer;
    size_t bytes;
    void *out;
    const char *what; /* for messages */
    void (*take)(void *out, const void *from, size_t at, size_t bytes);
} cl_fetch;
fgmm_status cl_fetch_all(fgmm_device *device, cl_fetch *fetches, size_t count);
/* The end without a message, for what nobody wants any more. */
cl_int cl_arrival_wait(cl_arrival *arrival);
void cl_arrival_free(fgmm_device *device, cl_arrival *arrival);
fgmm_status cl_write(fgmm_device *device, cl_mem buffer, size_t bytes, const void *data, const char *what);
fgmm_status cl_write_at(fgmm_device *device, cl_mem buffer, size_t at, size_t bytes, const void *data,
                        const char *what);
/* Makes room for `bytes` and writes them there. */
fgmm_status cl_send(fgmm_device *device, cl_room *room, size_t bytes, const void *data, const char *what);
int cl_threads(const fgmm_device *device, size_t cells); /* of the host that work on so many cells pays for */
size_t cl_round_up(size_t value, size_t step);
int64_t cl_power_of_two(int64_t least); /* the first that is not less */

/* Build options of the kernels that read rows, and of the tiled ones. */
typedef struct cl_tile_options {
    char text[128];
} cl_tile_options;
void cl_row_options(char *out, size_t size, const fgmm_block *block);
int cl_row_fours(cl_uint d, cl_ulong offset, cl_ulong pitch); /* ROW_FOURS of rows.clh */
void cl_tiled_options(cl_tile_options *out, const cl_tile *tile, int diag, const fgmm_block *block);

/* cl_params.c: device copies of the parameters for such a block's rows, from which its centre was subtracted. */
fgmm_status cl_prepare(fgmm_device *device, const fgmm_block *block);
/* What nothing takes before the screens: sent, and unless engine->formed formed, when it is first wanted, which settling puts off. @param beside
 * most of it through the other queue, while this one works; where that brings rows, it would come after these */
fgmm_status cl_prepare_screen(fgmm_device *device, int beside);
/* What the next parameters are about to replace goes where reach_moved and reach_depths find it. */
void cl_keep_last(cl_engine *engine);
void cl_return_last(
    cl_engine *
        engine); /* and comes back, as what the next ones have moved from: not all that a pass takes of them is there */
/* Of these, what sums of rows take that no screen has seen: the means' lower floats. */
fgmm_status cl_send_lower(fgmm_device *device);
/* `count` floats of the engine's pinned memory, which cl_prepare has made large enough; room for so many on the device, where kernels that read four at
 * a time may read beyond the last; and sends the former to the latter. */
float *cl_take(cl_engine *engine, size_t count);
fgmm_status cl_fit_floats(fgmm_device *device, cl_room *room, size_t count, const char *what);
fgmm_status cl_send_taken(fgmm_device *device, cl_room *room, const float *from, size_t count, const char *what);
/* Where the screen's centre lies, once the frame is taken off: an exact float. */
float cl_screen_centre(const fgmm_params *params, const double *frame, int64_t feature);
/* cl_forms.c: a double as two floats. */
void cl_split(double value, float *hi, float *lo);

/* cl_transfer.c: room for a block's hints; and for what else is kept of its rows, where there is memory for it and they stay. */
fgmm_status cl_hints_open(fgmm_device *device, fgmm_block *block);
void cl_row_bounds_open(fgmm_device *device, fgmm_block *block);
/* As what a device stores rows of a type, and the bytes of a feature of those. */
fgmm_dtype cl_stored_type(fgmm_dtype type);
size_t cl_stored_size(fgmm_dtype stored);

/* cl_stretch.c: blocks that stay, in one buffer. */
/* Gives a block to come its part of one: rows, hints, row bounds and weights. Without one it has block->stretch NULL. */
void cl_stretch_join(fgmm_device *device, const fgmm_block_source *source, fgmm_block *block);
void cl_stretch_leave(fgmm_device *device, fgmm_block *block);
/* What an E-step does when it is given a block: takes it on its own, after those that wait; leaves it to wait; or takes *whole, which has all
 * blocks of its stretch, this one the last. */
typedef enum cl_turn { CL_TURN_ALONE, CL_TURN_LATER, CL_TURN_WHOLE } cl_turn;
cl_turn cl_stretch_turn(cl_engine *engine, const fgmm_block *block, fgmm_block *whole);
void cl_stretch_tell(cl_stretch *stretch, int64_t row_bounds_of); /* what came of it */
fgmm_block *cl_stretch_waiting(cl_engine *engine);                /* the first that waits; NULL: none */

/* So many after `rest` the last time: 1, 2, 4, 8, 8, ... */
static inline int cl_next_rest(int rest) {
    return rest == 0 ? 1 : rest < CL_MOST_REST ? 2 * rest : CL_MOST_REST;
}

/* cl_settle.c: candidates of rows that lie near to their last best component. */
fgmm_status cl_find_reaches(fgmm_device *device); /* of parameters that are there */
/* Finds the reaches of these parameters, unless they are known or the device goes without: engine->reached. */
fgmm_status cl_settle_reach(fgmm_device *device, fgmm_block *block);
/* Whether this pass's rows of the block are settled first, in engine->settling: to be asked before their hints are cleared. */
fgmm_status cl_settle_begin(fgmm_device *device, fgmm_block *block);
/* The slice of the rows from row0 of the block on, of `most` at most: where rows are settled, so many as leave no more than there are places for. */
fgmm_status cl_next_slice(fgmm_device *device, fgmm_block *block, int64_t row0, int64_t most, cl_slice *out);

/* After the block's last. */
void cl_settle_end(fgmm_device *device, fgmm_block *block);
/* At the end of a pass: whether that paid. */
void cl_settle_learn(fgmm_device *device);
/* Whether rows of this block that have hints are worth settling in this pass. */
int cl_settle_pays(const fgmm_device *device, const fgmm_block *block);

/* A slice from row0 on of as many rows, `most` at most, as are likely to leave no more than there are places for; and settling it before cl_next_slice asks for
 * it, which then finds it in engine->ahead. Of the two the second has a device that refuses it go without. */
cl_slice cl_likely_slice(const fgmm_device *device, fgmm_block *block, int64_t row0, int64_t most);
fgmm_status cl_settle_slice(fgmm_device *device, const cl_slice *slice);
fgmm_status cl_settle_early(fgmm_device *device, const cl_slice *slice);

/* cl_ahead.c: the next pass's beginning. */
void cl_ahead_note(cl_engine *engine, fgmm_block *block, const fgmm_block *rows); /* what an E-step was given */
/* Once all sums of a pass are on the device, and the host has been sent them. It never fails for want of memory, or of what a device takes. */
fgmm_status cl_ahead_begin(fgmm_device *device);
fgmm_status cl_ahead_constants(fgmm_device *device); /* a part of it, when it is known how far components move */
/* Before parameters are prepared for a block: whether they may be those, in ahead.told; nothing is left of any others. A slice that is settled is given up
 * where it is of other rows or has more than `most`; cl_ahead_go_on then settles one of this block. */
fgmm_status cl_ahead_take(fgmm_device *device, fgmm_block *block, int64_t most);
fgmm_status cl_ahead_go_on(fgmm_device *device); /* while they are compared */
/* Whether component i, and its constants of screen.cl, are those; and the bounds. */
int cl_ahead_matches(const cl_engine *engine, size_t i, const float *constants);
int cl_ahead_bounds(const cl_engine *engine);
/* As if nothing had been made; and because other parameters came, or it failed. */
void cl_ahead_drop(fgmm_device *device);
void cl_ahead_miss(fgmm_device *device);
void cl_ahead_leave(fgmm_device *device, const fgmm_block *block); /* before its rows go */
void cl_ahead_free(fgmm_device *device);
/* Whether this pass may be followed by one whose parameters are made ahead. */
int cl_ahead_wanted(const fgmm_device *device, const fgmm_block *block);

/* cl_recall.c: at the beginning of a pass, which leaves nothing prepared; where parameters are to be prepared for a block, unless those that are there are the
 * same; and what tells that, kept for the next pass. */
void cl_recall_begin(cl_engine *engine);
void cl_recall_take(fgmm_device *device, const fgmm_block *block);
void cl_recall_keep(fgmm_device *device);
void cl_recall_free(fgmm_device *device);

/* cl_assign.c: what a pass that tells of a block's rows begins with, parameters and guesses: before it, or as its first part. */
fgmm_status cl_rows_ahead(fgmm_device *device, fgmm_block *block);
/* Sets out with the codes of a slice whose rows have been settled, before it is known how many have places, if codes are likely to
 * serve. */
fgmm_status cl_codes_begin(fgmm_device *device, const cl_slice *slice);
/* The same for a score: with the sums over the slice, and where it is the last with reading those of the block; and when that is known, whether all its rows
 * were settled. */
fgmm_status cl_score_begin(fgmm_device *device, const cl_slice *slice);
void cl_score_found(fgmm_device *device, int all);

/* cl_guess.c: hints of rows that have none, where settling them would then pay and there are kernels for it; else it does nothing. */
fgmm_status cl_guess(fgmm_device *device, fgmm_block *block);

/* cl_screen.c: candidates of the rows of a slice. */
fgmm_status cl_screen(fgmm_device *device, const cl_slice *slice);

/* cl_whiten.c: tied and full covariances. */
/* Counts whitening matrices and all that the scatter sums of both engines may come to hold, so that a refusal comes before the work
 * and says how much it is, and makes room for the first. @param sound whether a screen may be wanted */
fgmm_status cl_fit_white(fgmm_device *device, int sound);
/* In that room: sends the whitening matrices, and of full covariances the screen's constants. *sound: whether that screen can be
 * trusted. */
fgmm_status cl_prepare_white(fgmm_device *device, const double *frame, int *sound);
/* Bound on the relative error, in norm, of the rows that whiten_rows makes (tied), before they are rounded to f32. */
double cl_white_error(const fgmm_params *params);
/* n rows from row0 of the block, whitened into white_rows (tied). */
fgmm_status cl_white_rows(fgmm_device *device, const fgmm_block *block, cl_uint row0, cl_uint n);
/* Steps of 16 features by 64 outputs that a component takes in screen_full_wgmma.cl. */
size_t cl_full_blocks(const cl_engine *engine);
/* Exact logits of the rows' hints, where the screen of full covariances starts and what cl_refine_full need not form again. */
fgmm_status cl_known_full(fgmm_device *device, const cl_slice *slice);
fgmm_status cl_refine_full(fgmm_device *device, const cl_slice *slice);
/* Logits of components k0 .. k0 + width - 1 for a dense group. */
fgmm_status cl_white_logits(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width);

/* cl_scatter.c: their scatter sums, of the survivors of a slice or of a dense group's tiles of responsibilities. */
void cl_scatter_plan(cl_engine *engine); /* after cl_dense_plan */
fgmm_status cl_scatter_sparse(fgmm_device *device, const cl_slice *slice);
fgmm_status cl_scatter_dense(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                             const cl_place *place);
fgmm_status cl_scatter_collect(fgmm_device *device, fgmm_sums *out);

/* cl_bins.c: lists of the survivors of a slice. Each step needs the ones before; only cl_dense_list waits for the device. */
fgmm_status cl_count(fgmm_device *device, const cl_slice *slice);
/* How many rows are the dense engine's: these in dense_list and its host copy. */
fgmm_status cl_dense_list(fgmm_device *device, const cl_slice *slice, cl_uint *dense);
/* Fills values and lists: each component's survivors in each superchunk of the sparse tally, in the order of rows. */
fgmm_status cl_lists(fgmm_device *device, const cl_slice *slice);
/* Adds their sums to that tally. */
fgmm_status cl_accumulate(fgmm_device *device, const cl_slice *slice);
/* Where other superchunks start in the lists, in engine->segments. */
fgmm_status cl_segments(fgmm_device *device, cl_uint slots, cl_ulong grain, cl_ulong skip);
/* All survivors in the order of rows: row_values, each row's at offsets. */
fgmm_status cl_row_order(fgmm_device *device, const cl_slice *slice);

/* cl_tally.c */
void cl_tally_reset(cl_tally *tally, size_t lines, size_t width, int64_t grain, uint32_t slots);
/* Of total and part, once both are held. */
double cl_tally_bytes(const cl_tally *tally);
/* The slot of part for floats under way; 0: there is none, or no other. */
static inline cl_uint cl_tally_held(const cl_tally *tally) {
    return tally->grain && tally->holds ? tally->slots : 0;
}
/* Prepares for sums over superchunks first .. first + slots - 1, of which slot 0 goes on from earlier sums if *resume.
 * With grain 0: first 0, slots 1. @param part where the slots are. */
fgmm_status cl_tally_open(fgmm_device *device, cl_tally *tally, int64_t first, cl_uint slots, cl_uint *resume,
                          cl_mem *part);
/* After the sums: folds all slots but the last, which stays under way unless it is `whole`, too. */
fgmm_status cl_tally_close(fgmm_device *device, cl_tally *tally, cl_uint slots, int whole);
/* Folds what is under way and gives each line of all of it to `add`, several at a time where lines are many. */
typedef void cl_tally_add(const cl_engine *engine, size_t line, const cl_float2 *sums, fgmm_sums *out);
fgmm_status cl_tally_collect(fgmm_device *device, cl_tally *tally, cl_tally_add *add, fgmm_sums *out);
/* The same for a tally of lines [2 D + 1]: sums of w r t, w r t^2, w r of each component. */
fgmm_status cl_tally_collect_components(fgmm_device *device, cl_tally *tally, fgmm_sums *out);
void cl_tally_free(fgmm_device *device, cl_tally *tally);

/* What dense rows are wanted for, besides their log-densities and numbers of components kept. */
typedef struct cl_dense_use {
    int sums;    /* they add to the tallies */
    cl_uint m;   /* and fill their part of top_ids and top_resp; 0: not that */
    float *resp; /* and of this [slice rows, the caller's K], which holds zeros; or NULL */
} cl_dense_use;
/* cl_dense.c: rows list[0 .. count-1] of the slice, ascending, or its first count rows if engine->all_dense. The device is put to the dense engine's
 * test before the first of them. */
fgmm_status cl_dense_rows(fgmm_device *device, const cl_slice *slice, cl_uint count, const cl_dense_use *use);
/* Log-sum-exp of the group's rows takes in components k0 .. of the tile: `tiles` tops a row, that of tile t and row r at t tile_step + r
 * row_step. */
fgmm_status cl_dense_lse(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint tiles, cl_uint tile_step,
                         cl_uint row_step);
/* cl_dense_sums.c */
void cl_dense_plan(const fgmm_device *device, cl_engine *engine); /* sizes of groups and of the tally */
fgmm_status cl_dense_sums(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width, const cl_place *place);
fgmm_status cl_dense_collect(fgmm_device *device, fgmm_sums *out); /* after the sparse tally's */
/* Number of the superchunk that row i of a group lies in. */
int64_t cl_superchunk(const cl_group *group, int64_t grain, cl_uint i);
/* Opens the tally for a group; `starts` gets where the rows of each superchunk start within the group. */
fgmm_status cl_group_open(fgmm_device *device, const cl_group *group, cl_tally *tally, cl_room *starts, cl_place *out);

/* cl_near.c: whether all components lie so near to the screen's centre that f32 products tell them apart, and what is sent then. */
int cl_is_near(const fgmm_device *device, const cl_engine *engine);
fgmm_status cl_send_near(fgmm_device *device, const double *frame);
/* Whether groups may go through matrix units, from what cl_begin knows. */
void cl_pairs_choose(const fgmm_device *device, cl_engine *engine);
/* And from what the test says, of such rows, before the first of the pass. */
fgmm_status cl_pairs_trust(fgmm_device *device, const fgmm_block *block);
size_t cl_pairs_padded(size_t components);
size_t cl_pairs_row_bytes(const cl_engine *engine); /* of memory that a row of a group takes */
size_t cl_pairs_floats(const cl_engine *engine);    /* of pinned memory that this takes */
/* Whether it takes such a group. */
int cl_pairs_take(const cl_engine *engine, const cl_group *group);
/* Such a group, whose norms are there. *done: 0 where it is the f32 kernels' after all. */
fgmm_status cl_pairs_try(fgmm_device *device, const cl_group *group, const cl_place *place, int *done);

/* cl_estep.c: log_z and survivors of a slice, shared by estep and assign. Which rows are left to the dense engine (all of them if
 * engine->all_dense) cl_dense_list says. */
fgmm_status cl_survivors(fgmm_device *device, const cl_slice *slice);
fgmm_status cl_read_log_prob(fgmm_device *device, const cl_slice *slice, double *log_prob);
/* Sums over rows: room for a block's; those of a slice, chunk by chunk; asks for the block's; adds what was asked for, in the order of rows. The
 * device may then be busy with another block. */
fgmm_status cl_sum_rows_begin(fgmm_device *device, const fgmm_block *block);
fgmm_status cl_sum_rows(fgmm_device *device, const cl_slice *slice);
fgmm_status cl_sum_rows_ask(fgmm_device *device, const fgmm_block *block);
fgmm_status cl_sum_rows_end(fgmm_device *device);
/* The same over a slice of which it is not known yet how many rows took a place, which `taken` will hold: nothing, if any did. */
fgmm_status cl_sum_rows_if(fgmm_device *device, const cl_slice *slice, cl_mem taken);
fgmm_status cl_breathe(fgmm_device *device); /* FGMM_ERR_CANCELLED if asked to stop */
/* The next slice of a block, of at most `most` rows; ends on a multiple of the sparse tallies' grains where it can. */
cl_slice cl_slice_at(const cl_engine *engine, fgmm_block *block, int64_t row0, int64_t most);
/* Rows of a slice of which none is settled; and the places there are for those left of one. */
int64_t cl_slice_rows(const fgmm_device *device);
fgmm_status cl_fit_places(fgmm_device *device, size_t places); /* room for so many */

#endif
