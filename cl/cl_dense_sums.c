/* Sums of the dense engine: superchunks of a group, slot by slot, then moved to the components' own centres. */
#include "cl_engine.h"

#include <math.h>
#include <stdio.h>

enum {
    CELLS = 1 << 24,       /* of a tile: rows * components */
    WHITE_CELLS = 1 << 21, /* the same of whitened logits, which take longer */
    MOST_ROWS = 65536,     /* of a group */
    WORK_GROUPS = 1024,    /* that occupy a device */
    MOST_SLOTS = 128,      /* small sums: more would be no small part of a small device's memory */
    SIDE = 64,             /* components, and features, of one */
    GROUPS_A_UNIT = 4,     /* of a device, that keep it busy */
    LEAST_GRAIN = 128,     /* rows of a superchunk */
    PART_OF_GRAIN = 8,     /* of the sparse sums' superchunks */
    PART_BYTES = 64 << 20, /* of partial sums */
    PAIRS_CELLS = 1 << 27, /* on matrix units */
    PAIRS_ROWS = 131072,
    PAIRS_GROUPS = 128, /* of 128 components that occupy a device there: superchunks of 1024 to 8192 rows */
    SHARE = 16          /* of a device's memory, which a tile or partial sums may take there */
};

/* Squares are kept by feature where the covariances ask for it, or the centres differ. */
static int has_squares(const cl_engine *engine) {
    return engine->diag || !(engine->near || engine->tied || engine->full);
}

/* On matrix units a work-group takes all features of 128 components. Superchunks depend on K alone; only their number and the groups depend
 * on the memory. @return 0 where two are large, as K and D alone say, too: sums then take one */
static int plan_pairs(const fgmm_device *device, cl_engine *engine) {
    int64_t padded = (int64_t)cl_pairs_padded(engine->dense_width), columns = padded / CL_PAIRS_COLUMNS;
    int64_t most = PAIRS_CELLS / padded < PAIRS_ROWS ? PAIRS_CELLS / padded : PAIRS_ROWS;
    int64_t grain = cl_power_of_two(most * columns / PAIRS_GROUPS);
    int64_t share = device->limit_bytes / SHARE, room = share / (int64_t)cl_pairs_row_bytes(engine);
    int64_t group = (room < most ? room : most) / grain * grain;
    int64_t width = has_squares(engine) ? 2 * (int64_t)engine->d + 1 : (int64_t)engine->d + 2;
    if (group < grain) group = grain;
    int64_t slots = group / grain + 1;
    int64_t slot_bytes = engine->k * width * (int64_t)sizeof(cl_float2);
    if (2 * slot_bytes > PART_BYTES) return 0;
    room = (share > PART_BYTES ? share : PART_BYTES) / slot_bytes;
    if (slots > room) slots = room;
    engine->dense_group = (cl_uint)group;
    cl_tally_reset(&engine->dense, engine->k, (size_t)width, grain, (uint32_t)slots);
    return 1;
}

/*
 * Groups depend on K, superchunks on K and D alone, so that the sums' bits do. Superchunks are made small enough that
 * a group of them occupies a device, where K and D alone do not; but tied sums over several tiles take whole chunks,
 * since a group may end with any superchunk and adds tile after tile to the one matrix.
 */
void cl_dense_plan(const fgmm_device *device, cl_engine *engine) {
    int64_t k = engine->k, d = engine->d, cells = engine->tied || engine->full ? WHITE_CELLS : CELLS;
    engine->dense_width = k < CL_DENSE_WIDTH ? (cl_uint)k : CL_DENSE_WIDTH;
    if (engine->pairs.on && plan_pairs(device, engine)) return;
    engine->pairs.on = CL_MATRIX_NONE;
    int64_t group = cells / engine->dense_width;
    if (group > MOST_ROWS) group = MOST_ROWS;
    group -= group % FGMM_CHUNK_ROWS; /* at least 2048: whole chunks, within which floats are added up */
    engine->dense_group = (cl_uint)group;
    int64_t width = has_squares(engine) ? 2 * d + 1 : d + 2,
            room = PART_BYTES / (k * width * (int64_t)sizeof(cl_float2));
    int64_t tiles = ((k + SIDE - 1) / SIDE) * ((d + SIDE - 1) / SIDE), slots = (WORK_GROUPS + tiles - 1) / tiles;
    if (slots > MOST_SLOTS) slots = MOST_SLOTS;
    if (slots > room) slots = room;
    int64_t least = engine->tied && k > CL_DENSE_WIDTH ? FGMM_CHUNK_ROWS : LEAST_GRAIN;
    int64_t grain = slots < 2 ? 0 : cl_power_of_two(group / slots);
    if (grain && grain < least) grain = least;
    if (grain >= group) grain = 0;
    slots = grain ? (group + grain - 1) / grain + 1 : 1;
    if (slots > room) slots = room;
    if (slots < 2) grain = 0, slots = 1;
    /* The rows that a screen leaves over may be few and lie far apart: in superchunks so large, those of a slice make one group. */
    if (engine->params.engine != FGMM_ENGINE_DENSE && !engine->tied && !engine->full && grain && engine->sparse.grain) {
        grain = engine->sparse.grain / PART_OF_GRAIN;
        if (grain < FGMM_CHUNK_ROWS) grain = FGMM_CHUNK_ROWS;
        slots = cl_slice_rows(device) / grain + 1;
        if (slots > room) slots = room;
    }
    cl_tally_reset(&engine->dense, (size_t)k, (size_t)width, grain, (uint32_t)slots);
}

int64_t cl_superchunk(const cl_group *group, int64_t grain, cl_uint i) {
    cl_uint row = group->list ? group->rows[group->base + i] : group->base + i;
    return (group->slice->first + row) / grain;
}

/* Where the rows of each superchunk start within the group. */
static fgmm_status run_starts(fgmm_device *device, const cl_group *group, int64_t grain, int64_t first, cl_uint slots,
                              cl_room *starts) {
    cl_kernel kernel = NULL;
    cl_ulong row0 = (cl_ulong)group->slice->first, rows = (cl_ulong)grain, from = (cl_ulong)first;
    CL_TRY(cl_room_fit(device, starts, ((size_t)slots + 1) * sizeof(cl_uint), "superchunks"));
    CL_TRY(cl_kernel_get(device, &kernel, "dense_starts", "", "dense_starts"));
    size_t local = device->max_work_group >= 64 ? 64 : 1, global = cl_round_up((size_t)slots + 1, local);
    return CL_RUN(device, kernel, "superchunks", 1, &global, &local, CL_ARG(group->list), CL_ARG(group->base),
                  CL_ARG(group->n), CL_ARG(row0), CL_ARG(rows), CL_ARG(from), CL_ARG(slots), CL_ARG(starts->mem));
}

fgmm_status cl_group_open(fgmm_device *device, const cl_group *group, cl_tally *tally, cl_room *starts, cl_place *out) {
    int64_t first = 0;
    *out = (cl_place){.slots = 1};
    if (tally->grain) {
        first = cl_superchunk(group, tally->grain, 0);
        out->slots = (cl_uint)(cl_superchunk(group, tally->grain, group->n - 1) - first + 1);
    }
    CL_TRY(run_starts(device, group, tally->grain, first, out->slots, starts));
    return cl_tally_open(device, tally, first, out->slots, &out->resume, &out->part);
}

/* Sums of squares take twice the registers. Where few work-groups would have so large a tile, it is smaller. */
static cl_tile sums_tile(const fgmm_device *device, cl_uint width, cl_uint slots) {
    const cl_engine *engine = device->engine;
    int is_gpu = device->type == CL_DEVICE_TYPE_GPU;
    int gx = device->max_work_group < 128 ? 8 : 16, gy = device->max_work_group < 256 || is_gpu ? 8 : 16;
    int rm = has_squares(engine) || engine->tied || engine->full ? 4 : 8;
    while (rm > 1 && (cl_uint)(gy * rm) >= 2 * engine->k) rm /= 2;
    int rn = engine->d > (cl_uint)gx ? 4 : 1;
    cl_uint across = (engine->d + (cl_uint)(gx * rn) - 1) / (cl_uint)(gx * rn) * slots;
    while (is_gpu && rm > 1 && width / (cl_uint)(gy * rm) * across < GROUPS_A_UNIT * device->compute_units) rm /= 2;
    return (cl_tile){.gx = gx, .gy = gy, .rm = rm, .rn = rn};
}

fgmm_status cl_dense_sums(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                          const cl_place *place) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = group->slice->block;
    const cl_tile tile = sums_tile(device, width, place->slots);
    cl_mem centres = engine->near ? engine->near_centre.mem : engine->sum_hi_at;
    cl_kernel kernel = NULL;
    char options[192];
    snprintf(options, sizeof options,
             "-DROW_TYPE=%d -DROW_FOURS=%d -DNEAR=%d -DSQUARES=%d -DEXACT=%d -DGX=%d -DGY=%d -DRM=%d -DRN=%d",
             (int)block->type, cl_row_fours(engine->d, block->offset, block->pitch), engine->near, has_squares(engine),
             engine->tied || engine->full, tile.gx, tile.gy, tile.rm, tile.rn);
    CL_TRY(cl_kernel_get(device, &kernel, "dense_sums", options, "dense_sums"));
    size_t columns = (size_t)(tile.gx * tile.rn), components = (size_t)(tile.gy * tile.rm);
    size_t step = (size_t)(engine->batch_budget / 2 / ((int64_t)group->n * engine->d) + 1);
    step = cl_round_up(step, components);
    for (size_t k = 0; k < width; k += step) {
        size_t count = k + step < width ? step : width - k;
        cl_uint kt0 = (cl_uint)k;
        size_t local[3] = {(size_t)tile.gx, (size_t)tile.gy, 1};
        size_t global[3] = {cl_round_up(engine->d, columns) / columns * local[0],
                            cl_round_up(count, components) / components * local[1], place->slots};
        CL_TRY(CL_RUN(device, kernel, "dense sums", 3, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(group->slice->row0), CL_ARG(group->list), CL_ARG(group->base),
                      CL_ARG(engine->d), CL_ARG(engine->k), CL_ARG(k0), CL_ARG(kt0), CL_ARG(width), CL_ARG(centres),
                      CL_ARG(engine->sum_lo_at), CL_ARG(engine->norms.mem), CL_ARG(block->weights),
                      CL_ARG(engine->cells.mem), CL_ARG(engine->dense_starts.mem), CL_ARG(place->resume),
                      CL_ARG(place->part)));
    }
    return FGMM_OK;
}

/* ---- what the host makes of them ---- */

static double both(cl_float2 sum) {
    return (double)sum.s[0] + (double)sum.s[1];
}

/* A component's centre less the one that its sums were taken about. */
static double centre_gap(const cl_engine *engine, size_t c, size_t f) {
    const double *frame = engine->frame;
    double centre = engine->params.sum_centres[c * engine->d + f] - (frame ? frame[f] : 0.0);
    float hi, lo;
    if (engine->tied || engine->full) return 0.0;
    if (engine->near) return centre - (double)cl_screen_centre(&engine->params, frame, (int64_t)f);
    cl_split(centre, &hi, &lo);
    return centre - (double)hi;
}

/*
 * Whether sums of `count` rows, whose terms are rounded about a shared centre, say too little of a variance: `about` the centre, `variance` about the
 * new mean. Single f16 are rounded at random, but for whole numbers, say, which are rounded alike in all rows: that shows in squares that are f16 too.
 */
static int too_coarse(const cl_engine *engine, double count, double about, double variance) {
    int single = engine->pairs.on && engine->pairs.halves == 1;
    double tolerance = single ? 2e-3 : 2e-6, rounding = single ? 0x1p-10 / sqrt(fmax(1.0, count)) : 4 * 0x1p-24;
    if (single && engine->diag) rounding = 0x1p-10;
    return rounding * about > tolerance * variance;
}

/* s1 = s1' - s0 v, s2 = s2' - 2 v s1' + s0 v^2 from sums about a centre that lies v before the component's own. */
static void add_moved(const cl_engine *engine, size_t line, const cl_float2 *sums, fgmm_sums *out) {
    size_t c = (size_t)engine->ids[line], d = engine->d, width = engine->dense.width;
    int squares = has_squares(engine), coarse = 0;
    double s0 = both(sums[width - 1]), *all_s0 = &out->s0[c], about = 0.0, moved = 0.0;
    if (s0 == 0.0) return;
    *all_s0 += s0;
    for (size_t f = 0; f < d; f++) {
        double v = centre_gap(engine, c, f), s1 = both(sums[f]), square = squares ? both(sums[d + f]) : 0.0;
        double *all_s1 = &out->s1[c * d + f];
        *all_s1 += s1 - s0 * v;
        moved += *all_s1 * *all_s1 / *all_s0;
        if (engine->tied || engine->full) continue;
        double *all_s2 = &out->s2[engine->diag ? c * d + f : c];
        *all_s2 += square + v * (s0 * v - 2.0 * s1);
        if (engine->near && engine->diag)
            coarse |= too_coarse(engine, *all_s0, square, *all_s2 - *all_s1 * *all_s1 / *all_s0);
    }
    if (!squares && engine->near) {
        about = both(sums[d]);
        out->s2[c] += about;
        coarse |= too_coarse(engine, *all_s0, about, out->s2[c] - moved);
    }
    if (coarse) {
#pragma omp atomic write
        out->imprecise = 1;
    }
}

fgmm_status cl_dense_collect(fgmm_device *device, fgmm_sums *out) {
    cl_engine *engine = device->engine;
    cl_uint far = 0;
    if (engine->far_asked) CL_TRY(cl_read(device, engine->far_rows.mem, sizeof far, &far, "a mark of far rows"));
    if (far) out->imprecise = 1;
    return cl_tally_collect(device, &engine->dense, add_moved, out);
}
