/* Scatter sums of tied and full covariances: lower triangles, [K] of them or one. */
#include "cl_engine.h"

#include <stdio.h>

enum {
    TILE = 64,            /* features of scatter.cl's tile, most often */
    LEAST_GRAIN = 1024,   /* rows of a superchunk of survivors */
    MOST_ROWS = 65536,    /* rows that the slots shall hold */
    LEAST_ROWS = 16384,   /* and shall at least, however large a triangle is */
    MOST_SLOTS = 256,     /* superchunks at a time */
    DENSE_GRAIN = 128,    /* the least rows of a superchunk of the dense engine */
    WORK_GROUPS = 1024,   /* that occupy a device */
    PART_BYTES = 32 << 20 /* of partial sums */
};

static int64_t at_least(int64_t value, int64_t least) {
    return value > least ? value : least;
}

static int64_t at_most(int64_t value, int64_t most) {
    return value < most ? value : most;
}

/*
 * Superchunks from K and D alone, so that the sums' bits depend on nothing else; as many as occupy a device where the
 * triangles alone do not. Tied sums over several tiles of components: each tile runs through a group of rows before the
 * next, so a superchunk is a chunk, which no group divides (see cl_dense_plan).
 */
void cl_scatter_plan(cl_engine *engine) {
    int64_t d = engine->d, lines = engine->full ? engine->k : 1, width = d * (d + 1) / 2;
    int64_t side = (d + TILE - 1) / TILE, work = lines * side * (side + 1) / 2;
    int64_t room = at_most(PART_BYTES / (lines * width * (int64_t)sizeof(cl_float2)), MOST_SLOTS);
    int64_t wanted = at_most(at_least(WORK_GROUPS / work, 1), MOST_ROWS / LEAST_GRAIN);
    int64_t grain = at_least(LEAST_GRAIN, cl_power_of_two(MOST_ROWS / wanted));
    if (room >= 2) grain = at_least(grain, cl_power_of_two(LEAST_ROWS / room));
    int divided = wanted > 1 && room >= 2;
    cl_tally_reset(&engine->sparse_scatter, (size_t)lines, (size_t)width, divided ? grain : 0,
                   divided ? (uint32_t)room : 1);

    int64_t group = engine->dense_group, slots = at_least(at_most(room, group / DENSE_GRAIN), 1);
    if (engine->tied && engine->k > engine->dense_width)
        grain = FGMM_CHUNK_ROWS;
    else {
        grain = at_least(DENSE_GRAIN, cl_power_of_two(group / at_most(at_least(WORK_GROUPS / work, 1), slots)));
        if (slots < 2 || grain >= group) grain = 0, slots = 1;
    }
    cl_tally_reset(&engine->dense_scatter, (size_t)lines, (size_t)width, grain, (uint32_t)slots);
}

static void tile_options(const fgmm_device *device, char *out, size_t size, const fgmm_block *block, int dense) {
    const cl_engine *engine = device->engine;
    const cl_tile *tile = &engine->scatter_tile;
    char row[64];
    cl_row_options(row, sizeof row, block);
    snprintf(out, size, "%s -DTIED=%d -DDENSE=%d -DGX=%d -DGY=%d -DRM=%d -DRN=%d", row, engine->tied, dense, tile->gx,
             tile->gy, tile->rm, tile->rn);
}

static cl_uint tile_count(const cl_engine *engine) {
    cl_uint size = (cl_uint)(engine->scatter_tile.gx * engine->scatter_tile.rn), side = (engine->d + size - 1) / size;
    return side * (side + 1) / 2;
}

fgmm_status cl_scatter_sparse(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    cl_tally *tally = &engine->sparse_scatter;
    cl_kernel kernel = NULL;
    cl_mem part = NULL;
    cl_uint slots = 1, resume = 0, tiles = tile_count(engine);
    cl_ulong grain = (cl_ulong)tally->grain, skip = 0;
    int64_t first = 0;
    if (grain) {
        first = slice->first / tally->grain;
        slots = (cl_uint)((slice->first + slice->n - 1) / tally->grain - first + 1);
        skip = (cl_ulong)(slice->first - first * tally->grain);
    }
    CL_TRY(cl_tally_open(device, tally, first, slots, &resume, &part));
    if (engine->tied)
        CL_TRY(cl_row_order(device, slice));
    else
        CL_TRY(cl_segments(device, slots, grain, skip));
    cl_mem values = engine->tied ? engine->row_values.mem : engine->values.mem;
    cl_mem starts = engine->tied ? engine->offsets.mem : engine->segments.mem;
    char options[128];
    tile_options(device, options, sizeof options, block, 0);
    CL_TRY(cl_kernel_get(device, &kernel, "scatter", options, "scatter"));
    size_t local[2] = {(size_t)engine->scatter_tile.gx, (size_t)engine->scatter_tile.gy};
    size_t global[2] = {(engine->tied ? 1 : (size_t)engine->k) * slots * tiles * local[0], local[1]};
    CL_TRY(CL_RUN(device, kernel, "scatter sums", 2, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(slice->row0), CL_ARG(engine->d), CL_ARG(engine->k), CL_ARG(slots),
                  CL_ARG(tiles), CL_ARG(engine->sum_hi_at), CL_ARG(engine->sum_lo_at), CL_ARG(block->weights),
                  CL_ARG(engine->cand_id.mem), CL_ARG(engine->cand_v.mem), CL_ARG(values), CL_ARG(starts),
                  CL_ARG(slice->n), CL_ARG(grain), CL_ARG(skip), CL_ARG(resume), CL_ARG(part)));
    return cl_tally_close(device, tally, slots, 0);
}

fgmm_status cl_scatter_dense(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                             const cl_place *place) {
    cl_engine *engine = device->engine;
    const cl_slice *slice = group->slice;
    const fgmm_block *block = slice->block;
    cl_kernel kernel = NULL;
    cl_uint tiles = tile_count(engine);
    cl_uint resume = engine->tied && k0 ? 2 : place->resume; /* a later tile adds to the same matrix */
    char options[128];
    tile_options(device, options, sizeof options, block, 1);
    CL_TRY(cl_kernel_get(device, &kernel, "scatter", options, "scatter"));
    size_t local[2] = {(size_t)engine->scatter_tile.gx, (size_t)engine->scatter_tile.gy};
    size_t global[2] = {(engine->tied ? 1 : (size_t)width) * place->slots * tiles * local[0], local[1]};
    return CL_RUN(device, kernel, "dense scatter sums", 2, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(slice->row0), CL_ARG(engine->d), CL_ARG(engine->k), CL_ARG(place->slots),
                  CL_ARG(tiles), CL_ARG(engine->sum_hi_at), CL_ARG(engine->sum_lo_at), CL_ARG(group->list),
                  CL_ARG(group->base), CL_ARG(k0), CL_ARG(width), CL_ARG(block->weights), CL_ARG(engine->cells.mem),
                  CL_ARG(engine->scatter_starts.mem), CL_ARG(resume), CL_ARG(place->part));
}

static void add_triangle(const cl_engine *engine, size_t line, const cl_float2 *sums, fgmm_sums *out) {
    size_t d = engine->d;
    double *to = out->s2 + (engine->full ? (size_t)engine->ids[line] * d * d : 0);
    for (size_t a = 0; a < d; a++)
        for (size_t b = 0; b <= a; b++, sums++) to[a * d + b] += (double)sums->s[0] + (double)sums->s[1];
}

fgmm_status cl_scatter_collect(fgmm_device *device, fgmm_sums *out) {
    CL_TRY(cl_tally_collect(device, &device->engine->sparse_scatter, add_triangle, out));
    return cl_tally_collect(device, &device->engine->dense_scatter, add_triangle, out);
}
