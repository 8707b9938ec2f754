/*
 * Before the screen: rows so near to their last best component that no other can be a candidate (reach.cl, settle.cl). Where
 * clusters lie apart these are all but a few rows, and a pass then costs what reading them does. Where they do not, it is tried ever
 * more rarely. Sums have the same bits either way.
 *
 * Two bounds are kept of a row (depths.clh), by which it is settled unread while components move little: settle.cl finds them of the rows that
 * it reads, and screen.cl and screen_wgmma.cl the second of those that they leave to their component.
 * The first slice of a pass may have been settled before its parameters came (cl_ahead.c).
 *
 * What a slice keeps of a row is kept of the others alone (places.clh), so a slice is as long as these are few.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <stdio.h>

enum {
    MOST_TIMES = 8, /* a slice may have so many times the rows that there are places */
    MOST_ALONE = 2, /* and so many where one work-item sums all of a component's */
    TILE = 32,      /* of reach.cl, as is SIDE */
    SIDE = 8,
    BETWEEN_BYTES = 16 << 20,
    DEPTHS = 256,    /* of depths.clh */
    SLOW_BUCKETS = 4 /* BUCKETS of reach.cl where a work-item costs time: on a CPU */
};

/* Less than this part of the rows is not worth reading them once more. */
static const double worthwhile = 0.25;

static size_t buckets_of(const fgmm_device *device) {
    return device->type == CL_DEVICE_TYPE_CPU ? SLOW_BUCKETS : 1;
}

typedef struct reach_options {
    char text[64];
} reach_options;

static reach_options options_of(const fgmm_device *device) {
    const cl_engine *engine = device->engine;
    reach_options out;
    snprintf(out.text, sizeof out.text, "-DDIAG=%d -DNEAREST=%u -DBUCKETS=%u", engine->diag, engine->n_nearest,
             (unsigned)buckets_of(device));
    return out;
}

/* Parameters that these have moved from. */
typedef struct origin {
    cl_generation of;
    cl_mem hi, inverse, off, c;
} origin;

/* How far each component is from where it was then, if that may serve. */
static fgmm_status find_moves(fgmm_device *device, const reach_options *options, const origin *from) {
    cl_engine *engine = device->engine;
    const cl_generation *now = &engine->now, *last = &from->of;
    cl_kernel kernel = NULL;
    size_t group = 64, every = engine->k * group;
    engine->moved_from = 0;
    if (!last->number || !last->sound || last->k != now->k || last->kp != engine->kp || last->d != now->d ||
        last->diag != now->diag)
        return FGMM_OK;
    CL_TRY(cl_room_fit(device, &engine->moved, engine->k * sizeof(cl_float4), "the components' moves"));
    CL_TRY(cl_kernel_get(device, &kernel, "reach", options->text, "reach_moved"));
    CL_TRY(CL_RUN(device, kernel, "finding moves", 1, &every, &group, CL_ARG(engine->d), CL_ARG(engine->mean_hi.mem),
                  CL_ARG(from->hi), CL_ARG(engine->inverse.mem), CL_ARG(from->inverse), CL_ARG(engine->moved.mem)));
    engine->moved_from = last->number;
    return FGMM_OK;
}

/* And what rows' depths lose by that. */
static fgmm_status find_depths(fgmm_device *device, const reach_options *options, const origin *from) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t group = 64, buckets = DEPTHS / buckets_of(device) * group;
    if (!engine->moved_from) return FGMM_OK;
    CL_TRY(cl_room_fit(device, &engine->lost, DEPTHS * sizeof(cl_float), "the components' moves"));
    CL_TRY(cl_kernel_get(device, &kernel, "reach", options->text, "reach_depths"));
    return CL_RUN(device, kernel, "finding moves", 1, &buckets, &group, CL_ARG(engine->k), CL_ARG(engine->kp),
                  CL_ARG(from->c), CL_ARG(from->off), CL_ARG(engine->screen_c.mem), CL_ARG(engine->off.mem),
                  CL_ARG(engine->moved.mem), CL_ARG(engine->lost.mem));
}

/* What is known of rows by these very parameters stays, but for rounding. */
static fgmm_status find_stays(fgmm_device *device, const fgmm_block *block) {
    const cl_engine *engine = device->engine;
    const origin here = {engine->now, engine->mean_hi.mem, engine->inverse.mem, engine->off.mem, engine->screen_c.mem};
    if (block->row_bounds_of != engine->now.number || engine->moved_from == engine->now.number) return FGMM_OK;
    const reach_options options = options_of(device);
    CL_TRY(find_moves(device, &options, &here));
    return find_depths(device, &options, &here);
}

/* A run of components at a time, so that neither memory nor a dispatch grows with K; of memory, what a slice's lists will take. */
fgmm_status cl_find_reaches(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    /* Beside matrix units a row that has many others to be looked at for is better screened. */
    engine->n_nearest = engine->matrix.on ? 3 : CL_CAP - 1;
    const reach_options options = options_of(device);
    const origin last = {engine->last, engine->last_hi.mem, engine->last_inverse.mem, engine->last_off.mem,
                         engine->last_c.mem};
    size_t k = engine->k, group = 64, local[2] = {SIDE, SIDE};
    size_t fit = BETWEEN_BYTES / (k * sizeof(cl_float)), quick = (size_t)engine->batch_budget / (k * engine->d);
    size_t most = (fit < quick ? fit : quick) / TILE * TILE, step = most < TILE ? TILE : most < k ? most : k;
    CL_TRY(cl_room_fit(device, &engine->nearest, k * (engine->n_nearest + 1) * sizeof(cl_uint2),
                       "the components' reaches"));
    CL_TRY(cl_room_fit(device, &engine->values, step * k * sizeof(cl_float), "the components' reaches"));
    CL_TRY(find_moves(device, &options, &last));
    if (engine->ahead.made) CL_TRY(cl_ahead_constants(device));
    for (size_t i = 0; i < k; i += step) {
        if (i && !engine->ahead.made)
            CL_TRY(cl_breathe(device)); /* the host does not wait for what it has not asked for */
        cl_uint h0 = (cl_uint)i, n = (cl_uint)(i + step < k ? step : k - i);
        size_t square[2] = {cl_round_up(k, TILE) / TILE * SIDE, cl_round_up(n, TILE) / TILE * SIDE}, each = n * group;
        CL_TRY(cl_kernel_get(device, &kernel, "reach", options.text, "reach_between"));
        CL_TRY(CL_RUN(device, kernel, "finding reaches", 2, square, local, CL_ARG(h0), CL_ARG(n), CL_ARG(engine->k),
                      CL_ARG(engine->d), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->inverse.mem),
                      CL_ARG(engine->screen_c.mem), CL_ARG(engine->kp), CL_ARG(engine->off.mem),
                      CL_ARG(engine->values.mem)));
        CL_TRY(cl_kernel_get(device, &kernel, "reach", options.text, "reach_nearest"));
        CL_TRY(CL_RUN(device, kernel, "finding reaches", 1, &each, &group, CL_ARG(h0), CL_ARG(engine->k),
                      CL_ARG(engine->values.mem), CL_ARG(engine->nearest.mem)));
    }
    CL_TRY(find_depths(device, &options, &last));
    engine->reached = engine->reach_due = 1;
    return FGMM_OK;
}

/* A device that refuses the kernels, or has no memory for them, goes without. @return other failures */
static fgmm_status go_without(fgmm_device *device, fgmm_block *block, fgmm_status status) {
    cl_engine *engine = device->engine;
    const char *refused = cl_refusal(device, status);
    if (!refused && status != FGMM_ERR_MEMORY) return status;
    cl_forget(device);
    cl_room *const rooms[] = {&engine->nearest, &engine->moved, &engine->lost, &engine->place, &engine->left};
    engine->settling = engine->reached = 0;
    engine->tried = 0.0;
    engine->settle_wait = engine->settle_rest = CL_MOST_REST;
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) cl_room_free(device, rooms[i]);
    block->row_bounds_of = 0;
    if (!block->stretch) {
        cl_buffer_free(device, block->row_bounds);
        block->row_bounds = NULL;
    }
    if (!refused) return FGMM_OK;
    device->settle_from = INT64_MAX;
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s: all rows go through the screen: the kernels that spare them that do not %s", device->name,
                     refused);
    return FGMM_OK;
}

/* Rows a component from which finding the reaches pays, which takes what the screen of a quarter of them does. Warps screen half as fast as warpgroups, and half
 * as fast again where they cannot keep their rows. */
static int64_t rows_from(const fgmm_device *device) {
    const cl_matrix *matrix = &device->engine->matrix;
    if (matrix->on != CL_MATRIX_WARPS) return device->settle_from;
    return matrix->kept ? device->settle_from / 2 : device->settle_from / 4;
}

int cl_settle_pays(const fgmm_device *device, const fgmm_block *block) {
    const cl_engine *engine = device->engine;
    int few = !engine->reached && block->n / (int64_t)engine->k < rows_from(device);
    return device->settle_from < INT64_MAX && !engine->all_dense && (engine->alone || engine->each) &&
           !engine->settle_wait && !few &&
           (double)TILE * (double)engine->k * (double)engine->d <= (double)engine->batch_budget;
}

fgmm_status cl_settle_reach(fgmm_device *device, fgmm_block *block) {
    if (device->engine->reached) return FGMM_OK;
    device->group_refused = 0;
    fgmm_status status = cl_find_reaches(device);
    return status == FGMM_OK ? FGMM_OK : go_without(device, block, status);
}

fgmm_status cl_settle_begin(fgmm_device *device, fgmm_block *block) {
    cl_engine *engine = device->engine;
    if (block->hinted && cl_settle_pays(device, block)) {
        CL_TRY(cl_settle_reach(device, block));
        engine->settling = engine->reached;
    }
    if (!engine->settling) engine->ahead.settled = 0;
    /* Of the slices after the one that is settled; cl_settle_end tells of all. */
    if (engine->ahead.settled) block->row_bounds_of = engine->ahead.beyond;
    device->group_refused = 0;
    fgmm_status status = engine->settling ? find_stays(device, block) : FGMM_OK;
    return status == FGMM_OK ? FGMM_OK : go_without(device, block, status);
}

/* Settles a slice's rows, and asks for the number of places taken from either end, more than there are if both meet. */
fgmm_status cl_settle_slice(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_kernel kernel = NULL;
    char options[128];
    int follows = block->row_bounds && block->row_bounds_of && block->row_bounds_of == engine->moved_from;
    cl_mem moved = follows ? engine->moved.mem : NULL, lost = moved ? engine->lost.mem : NULL;
    int lanes = engine->each       ? cl_refine_lanes(engine->d)
                : engine->d >= 256 ? 16
                : engine->d >= 64  ? 8
                : engine->d >= 16  ? 4
                                   : 1;
    /* Where log-densities are asked for, parts of sums take more local memory. */
    size_t local = device->type == CL_DEVICE_TYPE_CPU || device->max_work_group < 128 || engine->each ? 64 : 128;
    snprintf(options, sizeof options,
             "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DLANES=%d -DNEAREST=%u -DLOGZ=%d -DGROUP=%d -DDOUBLES=%d",
             (int)block->type, cl_row_fours(engine->d, block->offset, block->pitch), engine->diag, lanes,
             engine->n_nearest, engine->each, (int)local, engine->each && device->quick_doubles);
    CL_TRY(cl_kernel_get(device, &kernel, "settle", options, "settle"));
    if (engine->each) {
        CL_TRY(cl_send_lower(device));
        CL_TRY(cl_room_fit(device, &engine->row_logz, (size_t)slice->n * sizeof(cl_float2), "log-densities"));
    }
    CL_TRY(cl_fit_places(device, slice->places));
    CL_TRY(cl_room_fit(device, &engine->place, (size_t)slice->n * sizeof(cl_uint), "places of rows"));
    CL_TRY(cl_room_fit(device, &engine->left, ((size_t)slice->places + 1) * sizeof(cl_uint2), "rows to screen"));
    CL_TRY(cl_fill(device, engine->left.mem, 0, sizeof(cl_uint2), "clearing a count"));
    size_t step = cl_round_up((size_t)(engine->batch_budget / engine->d / 8 + 1), local);
    for (size_t i = 0; i < slice->n; i += step) {
        if (i && !engine->ahead.made) CL_TRY(cl_breathe(device)); /* as for reaches */
        cl_uint n = (cl_uint)(i + step < slice->n ? step : slice->n - i), out0 = (cl_uint)i, row0 = slice->row0 + out0;
        size_t global = cl_round_up(n, local);
        CL_TRY(CL_RUN(device, kernel, "settling rows", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(row0), CL_ARG(out0), CL_ARG(n), CL_ARG(engine->d), CL_ARG(engine->k),
                      CL_ARG(engine->mean_hi.mem), CL_ARG(engine->inverse.mem), CL_ARG(engine->screen_c.mem),
                      CL_ARG(engine->kp), CL_ARG(engine->off.mem), CL_ARG(engine->nearest.mem), CL_ARG(block->hints),
                      CL_ARG(engine->cand_id.mem), CL_ARG(engine->cand_count.mem), CL_ARG(engine->place.mem),
                      CL_ARG(engine->left.mem), CL_ARG(slice->places), CL_ARG(block->row_bounds), CL_ARG(moved),
                      CL_ARG(lost), CL_ARG(engine->mean_lo.mem), CL_ARG(engine->constants.mem),
                      CL_ARG(engine->row_logz.mem)));
    }
    return cl_read_begin(device, &engine->taken, engine->left.mem, 0, sizeof(cl_uint2), "a count of rows");
}

/* Rows of which about as many as there are places for will take one, by the last slice's. */
static int64_t likely_rows(const cl_engine *engine, int64_t places) {
    double times = 1.0 / (1.1 * engine->placed + 0.005), most = engine->sparse.grain ? MOST_TIMES : MOST_ALONE;
    return (int64_t)((double)places * (times < 1.0 ? 1.0 : times < most ? times : most));
}

static cl_slice slice_of(const cl_engine *engine, fgmm_block *block, int64_t row0, int64_t most, int64_t places) {
    cl_slice slice = cl_slice_at(engine, block, row0, most);
    slice.places = slice.n < places ? slice.n : (cl_uint)places;
    return slice;
}

cl_slice cl_likely_slice(const fgmm_device *device, fgmm_block *block, int64_t row0, int64_t most) {
    const cl_engine *engine = device->engine;
    int64_t places = cl_slice_rows(device) < most ? cl_slice_rows(device) : most;
    int64_t rows = likely_rows(engine, places);
    return slice_of(engine, block, row0, rows < most ? rows : most, places);
}

fgmm_status cl_settle_early(fgmm_device *device, const cl_slice *slice) {
    device->group_refused = 0;
    fgmm_status status = find_stays(device, slice->block);
    if (status == FGMM_OK) status = cl_settle_slice(device, slice);
    return status == FGMM_OK ? FGMM_OK : go_without(device, slice->block, status);
}

/* A slice of as many rows as leave no more than there are places for. Where settling is over instead, engine->settling is 0. */
static fgmm_status settle(fgmm_device *device, fgmm_block *block, int64_t row0, int64_t most, cl_slice *out) {
    cl_engine *engine = device->engine;
    int64_t places = cl_slice_rows(device);
    device->group_refused = 0;
    if (places > most) places = most;
    cl_slice slice = cl_likely_slice(device, block, row0, most);
    for (;; slice = slice_of(engine, block, row0, places, places)) {
        fgmm_status status = FGMM_OK;
        if (engine->ahead.settled) {
            slice = engine->ahead.slice;
            slice.block = block;
            engine->ahead.settled = 0;
        } else {
            status = cl_settle_slice(device, &slice);
        }
        if (status != FGMM_OK) return go_without(device, block, status);
        CL_TRY(cl_codes_begin(device, &slice));
        CL_TRY(cl_score_begin(device, &slice));
        /* Meanwhile: what the rows that are left will take, if there are going to be any, or the sums. */
        if (engine->screened) CL_TRY(cl_prepare_screen(device, !block->passing));
        if (engine->summing) CL_TRY(cl_send_lower(device));
        CL_TRY(cl_read_end(device, &engine->taken, "a count of rows"));
        cl_uint2 taken = *(const cl_uint2 *)engine->taken.pinned.at;
        double all = (double)taken.s[0] + (double)taken.s[1];
        engine->placed = all / (double)slice.n;
        cl_score_found(device, all == 0.0);
        if (all > (double)slice.places) { /* not where every row has one */
            block->row_bounds_of = 0;     /* what was known has been moved for some rows, and must not be twice */
            continue;
        }
        slice.settled = 1;
        slice.listed = taken.s[0];
        slice.looked = taken.s[1];
        engine->screened = slice.listed > 0;
        engine->tried += (double)slice.n;
        engine->left_over += (double)slice.listed;
        *out = slice;
        return FGMM_OK;
    }
}

fgmm_status cl_next_slice(fgmm_device *device, fgmm_block *block, int64_t row0, int64_t most, cl_slice *out) {
    const cl_engine *engine = device->engine;
    int64_t rows = cl_slice_rows(device);
    if (engine->settling) CL_TRY(settle(device, block, row0, most, out));
    if (!engine->settling) *out = cl_slice_at(engine, block, row0, rows < most ? rows : most);
    return FGMM_OK;
}

void cl_settle_end(fgmm_device *device, fgmm_block *block) {
    cl_engine *engine = device->engine;
    if (engine->settling) block->row_bounds_of = engine->now.number;
    engine->settling = 0;
}

/* Finding the reaches, where that was done, costs what the screen of some rows a component does. */
void cl_settle_learn(fgmm_device *device) {
    cl_engine *engine = device->engine;
    double cost = worthwhile * engine->tried;
    if (engine->reach_due) cost += (double)(rows_from(device) / 4) * (double)engine->k;
    engine->reach_due = 0;
    if (!(engine->tried > 0.0)) return;
    engine->settle_rest = engine->tried - engine->left_over > cost ? 0 : cl_next_rest(engine->settle_rest);
    engine->settle_wait = engine->settle_rest;
}
