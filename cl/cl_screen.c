/*
 * The screens, of spherical, diagonal and (about whitened rows) tied covariances, and of full ones: in f16 on matrix units where the
 * device has them, and then in f32 for the rows that this could not settle; else in f32.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <stdio.h>
#include <string.h>

enum {
    WHITE_ROWS_BYTES = 64 << 20,
    PACKED_ROWS_BYTES = 48 << 20,
    FEW_ROWS = 2,      /* a work-item, where few are left to the f32 screen */
    PACKED_TIMES = 32, /* bytes for each of a component's features */
    WARPS_GAIN = 8,    /* how many times more multiply-adds a dispatch may hold on matrix units */
    WARPGROUPS_GAIN =
        64 /* and so many by warpgroups: 5 ms on an H200, of which the last round of work-groups is little */
};

static void matrix_options(const cl_engine *engine, const cl_part *part, char *out, size_t size) {
    int fours = cl_row_fours(engine->d, part->offset, part->pitch);
    snprintf(out, size, "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DSTEPS=%u -DNT=%u", part->type, fours, engine->diag,
             (unsigned)engine->matrix.kept, (unsigned)engine->matrix.nt);
}

const char *cl_matrix_name(int level) {
    return level == CL_MATRIX_WARPGROUPS ? "warpgroup products" : "matrix units";
}

/* Fragments of the rows, where a warp cannot keep its own. */
static fgmm_status pack_rows(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    const cl_matrix *matrix = &engine->matrix;
    cl_kernel kernel = NULL;
    char options[160];
    size_t rows = cl_round_up(part->n, CL_MATRIX_ROWS), local = CL_MATRIX_ROWS, global = rows / 16 * 32;
    matrix_options(engine, part, options, sizeof options);
    CL_TRY(cl_room_fit(device, &engine->packed_rows, rows * matrix->steps * 32, "rows as fragments"));
    CL_TRY(cl_room_fit(device, &engine->row_starts, rows * sizeof(cl_float2), "the rows' floors"));
    CL_TRY(cl_kernel_get(device, &kernel, "pack_rows", options, "pack_rows"));
    return CL_RUN(device, kernel, "packing rows", 1, &global, &local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(matrix->dp), CL_ARG(engine->k), CL_ARG(engine->centre.mem), CL_ARG(engine->scale.mem),
                  CL_ARG(engine->screen_rows[0].mem), CL_ARG(engine->screen_rows[1].mem), CL_ARG(hints),
                  CL_ARG(engine->matrix_c.mem), CL_ARG(engine->packed_rows.mem), CL_ARG(engine->row_starts.mem),
                  CL_ARG(part->list));
}

static fgmm_status screen_f32(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    cl_tile own = engine->tile, *tile = &own;
    cl_kernel kernel = NULL;
    cl_tile_options options;
    const fgmm_block form = {.type = (fgmm_dtype)part->type};
    /* Few rows are then spread over more work-groups, and the program is built in a third of the time. */
    if (part->few_listed && tile->rm > FEW_ROWS) tile->rm = FEW_ROWS;
    cl_tiled_options(&options, tile, engine->diag, &form);
    size_t used = strlen(options.text);
    snprintf(options.text + used, sizeof options.text - used, " -DROW_FOURS=%d -DDT=%d",
             cl_row_fours(engine->d, part->offset, part->pitch), tile->dt);
    CL_TRY(cl_kernel_get(device, &kernel, "screen", options.text, "screen"));
    cl_mem screen_b = engine->diag ? engine->screen_b.mem : engine->screen_a.mem;
    cl_mem hint_b = engine->screen_rows[engine->diag].mem;
    size_t rows = (size_t)(tile->gy * tile->rm), local[2] = {(size_t)tile->gx, (size_t)tile->gy};
    size_t global[2] = {local[0], cl_round_up(part->n, rows) / rows * local[1]};
    return CL_RUN(device, kernel, "the screen", 2, global, local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(engine->dp), CL_ARG(engine->k), CL_ARG(engine->kp), CL_ARG(engine->centre.mem),
                  CL_ARG(engine->scale.mem), CL_ARG(engine->screen_a.mem), CL_ARG(screen_b),
                  CL_ARG(engine->screen_rows[0].mem), CL_ARG(hint_b), CL_ARG(engine->rows_from),
                  CL_ARG(engine->screen_c.mem), CL_ARG(engine->bounds), CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->cand_v.mem), CL_ARG(engine->cand_count.mem), CL_ARG(hints), CL_ARG(part->list),
                  CL_ARG(part->row_bounds));
}

static fgmm_status screen_warpgroups(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    const cl_matrix *matrix = &engine->matrix;
    cl_kernel kernel = NULL;
    char options[160];
    int fours = cl_row_fours(engine->d, part->offset, part->pitch);
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DSTEPS=%u -DRESIDENT=%d", part->type,
             fours, engine->diag, (unsigned)matrix->steps, matrix->steps <= 16 ? 2 : 0);
    CL_TRY(cl_kernel_get(device, &kernel, "screen_wgmma", options, "screen_wgmma"));
    size_t local = 2 * CL_GROUP_ROWS, global = cl_round_up(part->n, CL_GROUP_ROWS) * 2;
    return CL_RUN(device, kernel, "the screen", 1, &global, &local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(matrix->dp), CL_ARG(engine->k), CL_ARG(matrix->tiles), CL_ARG(engine->centre.mem),
                  CL_ARG(engine->scale.mem), CL_ARG(engine->screen_rows[0].mem), CL_ARG(engine->screen_rows[1].mem),
                  CL_ARG(hints), CL_ARG(engine->fragments.mem), CL_ARG(engine->matrix_c.mem), CL_ARG(matrix->bounds),
                  CL_ARG(matrix->slack), CL_ARG(engine->cand_id.mem), CL_ARG(engine->cand_v.mem),
                  CL_ARG(engine->cand_count.mem), CL_ARG(engine->again.mem), CL_ARG(part->list),
                  CL_ARG(part->row_bounds));
}

static fgmm_status screen_warps(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    const cl_matrix *matrix = &engine->matrix;
    cl_kernel kernel = NULL;
    char options[160];
    if (!matrix->kept) CL_TRY(pack_rows(device, part, hints));
    matrix_options(engine, part, options, sizeof options);
    CL_TRY(cl_kernel_get(device, &kernel, "screen_mma", options, "screen_mma"));
    size_t local = CL_MATRIX_ROWS, global = cl_round_up(part->n, CL_MATRIX_ROWS);
    return CL_RUN(device, kernel, "the screen", 1, &global, &local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(matrix->dp), CL_ARG(engine->k), CL_ARG(matrix->tiles), CL_ARG(matrix->chunks),
                  CL_ARG(engine->centre.mem), CL_ARG(engine->scale.mem), CL_ARG(engine->screen_rows[0].mem),
                  CL_ARG(engine->screen_rows[1].mem), CL_ARG(hints), CL_ARG(engine->packed_rows.mem),
                  CL_ARG(engine->row_starts.mem), CL_ARG(engine->fragments.mem), CL_ARG(engine->columns.mem),
                  CL_ARG(engine->matrix_c.mem), CL_ARG(matrix->bounds), CL_ARG(matrix->slack),
                  CL_ARG(engine->cand_id.mem), CL_ARG(engine->cand_v.mem), CL_ARG(engine->cand_count.mem),
                  CL_ARG(engine->again.mem), CL_ARG(part->list));
}

static fgmm_status screen_full_f32(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    const cl_tile *tile = &engine->white_tile;
    cl_kernel kernel = NULL;
    char options[160];
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DGX=%d -DGY=%d -DRM=%d -DRN=%d -DDT=%d", part->type, tile->gx,
             tile->gy, tile->rm, tile->rn, tile->dt);
    CL_TRY(cl_kernel_get(device, &kernel, "screen_full", options, "screen_full"));
    size_t rows = (size_t)(tile->gy * tile->rm), local[2] = {(size_t)tile->gx, (size_t)tile->gy};
    size_t global[2] = {local[0], cl_round_up(part->n, rows) / rows * local[1]};
    return CL_RUN(device, kernel, "the screen", 2, global, local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(engine->k), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->mean_lo.mem),
                  CL_ARG(engine->white_hi.mem), CL_ARG(engine->white_scale.mem), CL_ARG(engine->screen_c.mem),
                  CL_ARG(engine->bounds), CL_ARG(engine->white_eta), CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->cand_v.mem), CL_ARG(engine->cand_count.mem), CL_ARG(hints), CL_ARG(engine->known.mem),
                  CL_ARG(part->list));
}

static fgmm_status screen_full_warpgroups(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    char options[96];
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DROW_FOURS=%d -DSTEPS=%u", part->type,
             cl_row_fours(engine->d, part->offset, part->pitch), (unsigned)engine->matrix.steps);
    CL_TRY(cl_kernel_get(device, &kernel, "screen_full_wgmma", options, "screen_full_wgmma"));
    size_t local = 2 * CL_FULL_ROWS, global = cl_round_up(part->n, CL_FULL_ROWS) * 2;
    return CL_RUN(device, kernel, "the screen", 1, &global, &local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(engine->k), CL_ARG(engine->centre.mem), CL_ARG(engine->fragments.mem), CL_ARG(engine->bounds),
                  CL_ARG(hints), CL_ARG(engine->known.mem), CL_ARG(engine->cand_id.mem), CL_ARG(engine->cand_v.mem),
                  CL_ARG(engine->cand_count.mem), CL_ARG(engine->again.mem));
}

static fgmm_status run_f32(fgmm_device *device, const cl_part *part, cl_mem hints) {
    return (device->engine->full ? screen_full_f32 : screen_f32)(device, part, hints);
}

/* slice0: of the slice, in the block. */
static fgmm_status screen_matrix(fgmm_device *device, const cl_part *part, cl_uint slice0, cl_mem hints) {
    cl_engine *engine = device->engine;
    CL_TRY(cl_room_fit(device, &engine->again, ((size_t)part->n + 1) * sizeof(cl_uint2), "rows to screen again"));
    CL_TRY(cl_fill(device, engine->again.mem, 0, sizeof(cl_uint), "clearing a count"));
    CL_TRY((engine->full                                ? screen_full_warpgroups
            : engine->matrix.on == CL_MATRIX_WARPGROUPS ? screen_warpgroups
                                                        : screen_warps)(device, part, hints));
    cl_part again = *part;
    again.row0 = slice0;
    again.out0 = 0;
    again.list = engine->again.mem;
    again.few_listed = 1;
    return run_f32(device, &again, hints);
}

/* A driver that does not take the kernels costs these, not the fit: the f32 screen goes on, and the next pass tries the others. */
static fgmm_status try_matrix(fgmm_device *device, const cl_part *part, cl_uint slice0, cl_mem hints) {
    int level = device->engine->matrix.on;
    device->group_refused = 0;
    fgmm_status status = screen_matrix(device, part, slice0, hints);
    const char *refused = cl_refusal(device, status);
    if (!refused) return status;
    device->host.log(device->host.user, FGMM_LOG_WARNING, "%s: %s are left alone: their kernels do not %s",
                     device->name, cl_matrix_name(level), refused);
    if (device->engine->full)
        device->has_full = 0;
    else {
        device->has_warps = level != CL_MATRIX_WARPS && device->has_warps;
        if (device->has_matrix == level) device->has_matrix--;
    }
    device->engine->matrix.on = CL_MATRIX_NONE;
    device->setbacks++;
    return FGMM_OK;
}

/* Of rows as fragments: where the components take as much, enough for several work-groups a compute unit. */
static size_t packed_bytes(const fgmm_device *device) {
    size_t parameters = (size_t)device->engine->k * device->engine->dp * PACKED_TIMES,
           most = (size_t)device->limit_bytes / 64;
    if (parameters > most) parameters = most;
    return parameters > PACKED_ROWS_BYTES ? parameters : PACKED_ROWS_BYTES;
}

/* Rows a dispatch. */
static size_t rows_at_once(const fgmm_device *device) {
    const cl_engine *engine = device->engine;
    int64_t d = engine->d, depth = (int64_t)engine->kp * engine->dp * (engine->diag ? 2 : 1),
            budget = engine->batch_budget;
    if (engine->full) depth = engine->k * (engine->matrix.on ? 1024 * (int64_t)cl_full_blocks(engine) : d * d / 4 + 1);
    if (engine->matrix.on) budget *= engine->matrix.on == CL_MATRIX_WARPGROUPS ? WARPGROUPS_GAIN : WARPS_GAIN;
    if (engine->tied) depth += d * d;
    size_t step = (size_t)(budget / depth + 1), room = SIZE_MAX;
    if (engine->tied) room = WHITE_ROWS_BYTES / ((size_t)d * sizeof(float));
    if (engine->matrix.on && !engine->matrix.kept && packed_bytes(device) / (engine->matrix.steps * 32) < room)
        room = packed_bytes(device) / (engine->matrix.steps * 32);
    if (step > room) step = room;
    const cl_tile *tile = engine->full ? &engine->white_tile : &engine->tile;
    size_t unit = !engine->matrix.on ? (size_t)(tile->gy * tile->rm) : engine->full ? CL_FULL_ROWS : CL_MATRIX_ROWS;
    return cl_round_up(step, unit);
}

fgmm_status cl_screen(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    const fgmm_block *block = slice->block;
    size_t rows = slice->settled ? slice->listed : slice->n;
    if (!rows) return cl_has_places(device, slice) ? cl_send_lower(device) : FGMM_OK;
    CL_TRY(engine->full ? cl_known_full(device, slice) : cl_prepare_screen(device, 0));
    size_t step = rows_at_once(device);
    for (size_t i = 0; i < rows; i += step) {
        if (i) CL_TRY(cl_breathe(device));
        cl_uint n = (cl_uint)(i + step < rows ? step : rows - i), out0 = (cl_uint)i;
        cl_part part = {.rows = block->rows,
                        .offset = block->offset,
                        .pitch = block->pitch,
                        .row0 = slice->row0 + (slice->settled ? 0 : out0),
                        .out0 = out0,
                        .n = n,
                        .type = block->type,
                        .list = cl_left(engine, slice),
                        .row_bounds = slice->settled ? block->row_bounds : NULL};
        if (engine->tied) {
            /* Row row0 of the block is row 0 of the whitened ones: the offset wraps round, as unsigned sums do. */
            CL_TRY(cl_white_rows(device, block, part.row0, n));
            part.rows = engine->white_rows.mem;
            part.pitch = engine->d;
            part.offset = 0 - (cl_ulong)part.row0 * part.pitch;
            part.type = FGMM_F32;
        }
        if (engine->matrix.on) CL_TRY(try_matrix(device, &part, slice->row0, block->hints));
        if (!engine->matrix.on) CL_TRY(run_f32(device, &part, block->hints));
    }
    return FGMM_OK;
}
