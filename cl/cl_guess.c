/*
 * Hints of rows that are new to the device, by guess_wgmma.cl: with one, a row can be settled (cl_settle.c), and without it takes two walks of the
 * screen. Where the guess is wrong the screen finds the rows' components as it does those of all.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <stdio.h>

enum { GAIN = 128 /* how many times more multiply-adds a dispatch may hold than in f32 */ };

static cl_uint steps_of(const cl_engine *engine) {
    return (engine->matrix.guessed + 15) / 16 * (engine->diag ? 2 : 1);
}

static size_t tiles_of(const cl_engine *engine) {
    return (engine->k + CL_GROUP_COLUMNS - 1) / CL_GROUP_COLUMNS;
}

/* Work-groups that its registers leave room for in a compute unit: a row's terms take four registers a product. */
static void guess_options(const cl_engine *engine, const fgmm_block *block, char *out, size_t size) {
    cl_uint steps = steps_of(engine);
    snprintf(out, size, "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DSTEPS=%u -DRESIDENT=%d", (int)block->type,
             cl_row_fours(engine->d, block->offset, block->pitch), engine->diag, (unsigned)steps,
             steps <= 8    ? 3
             : steps <= 16 ? 2
                           : 0);
}

/* The components as tiles of FP8. */
static fgmm_status arrange(fgmm_device *device, const char *options) {
    cl_engine *engine = device->engine;
    const cl_matrix *matrix = &engine->matrix;
    cl_kernel kernel = NULL;
    cl_mem second = engine->diag ? engine->screen_rows[1].mem : NULL;
    size_t cores = (steps_of(engine) + 1) / 2 * 2, column = cores * 16 + 2 * sizeof(cl_half), tiles = tiles_of(engine);
    size_t items[3] = {CL_GROUP_COLUMNS, cores + 1, tiles}, group[3] = {CL_GROUP_COLUMNS, 1, 1};
    CL_TRY(cl_room_fit(device, &engine->guess, tiles * CL_GROUP_COLUMNS * column, "the components in FP8"));
    CL_TRY(cl_kernel_get(device, &kernel, "guess_wgmma", options, "guess_tiles"));
    return CL_RUN(device, kernel, "arranging parameters", 3, items, group, CL_ARG(engine->screen_rows[0].mem),
                  CL_ARG(second), CL_ARG(engine->matrix_c.mem), CL_ARG(engine->columns.mem), CL_ARG(engine->k),
                  CL_ARG(matrix->dp), CL_ARG(matrix->guess_factor), CL_ARG(matrix->guess_shift),
                  CL_ARG(engine->guess.mem));
}

static fgmm_status run_guess(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    cl_uint tiles = (cl_uint)tiles_of(engine);
    cl_kernel kernel = NULL;
    char options[128];
    guess_options(engine, block, options, sizeof options);
    CL_TRY(arrange(device, options));
    CL_TRY(cl_kernel_get(device, &kernel, "guess_wgmma", options, "guess_wgmma"));
    int64_t depth = (int64_t)tiles * CL_GROUP_COLUMNS * steps_of(engine) * 16;
    size_t step = cl_round_up((size_t)(GAIN * engine->batch_budget / depth + 1), CL_GROUP_ROWS);
    for (size_t i = 0; i < (size_t)block->n; i += step) {
        if (i) CL_TRY(cl_breathe(device));
        cl_uint row0 = (cl_uint)i, n = (cl_uint)(i + step < (size_t)block->n ? step : (size_t)block->n - i);
        size_t local = 2 * CL_GROUP_ROWS, global = cl_round_up(n, CL_GROUP_ROWS) * 2;
        CL_TRY(CL_RUN(device, kernel, "guessing components", 1, &global, &local, CL_ARG(block->rows),
                      CL_ARG(block->offset), CL_ARG(block->pitch), CL_ARG(row0), CL_ARG(n), CL_ARG(engine->d),
                      CL_ARG(engine->k), CL_ARG(tiles), CL_ARG(engine->centre.mem), CL_ARG(engine->scale.mem),
                      CL_ARG(engine->guess.mem), CL_ARG(block->hints)));
    }
    return FGMM_OK;
}

/* Whether there are kernels for it, and parameters in the form of a screen on matrix units. */
static int can_guess(const fgmm_device *device) {
    const cl_matrix *matrix = &device->engine->matrix;
    return device->has_guess && matrix->on && matrix->guessed;
}

fgmm_status cl_guess(fgmm_device *device, fgmm_block *block) {
    cl_engine *engine = device->engine;
    /* The test is of what goes without. */
    if (block->hinted || device->testing || !can_guess(device) || !cl_settle_pays(device, block)) return FGMM_OK;
    CL_TRY(cl_settle_reach(device, block)); /* while the host sends what the screen takes */
    if (!engine->reached) return FGMM_OK;
    CL_TRY(cl_prepare_screen(device, 0));
    if (!can_guess(device)) return FGMM_OK;
    device->group_refused = 0;
    fgmm_status status = cl_hints_open(device, block);
    if (status == FGMM_OK) status = run_guess(device, block);
    const char *refused = cl_refusal(device, status);
    block->hinted = status == FGMM_OK;
    if (block->hinted && block->kept) cl_row_bounds_open(device, block);
    if (status == FGMM_ERR_MEMORY && !refused) { /* it goes without */
        cl_forget(device);
        cl_room_free(device, &engine->guess);
        return FGMM_OK;
    }
    if (!refused) return status;
    device->has_guess = 0;
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s: new rows go through the screen twice: the kernels that guess their components do not %s",
                     device->name, refused);
    return FGMM_OK;
}
