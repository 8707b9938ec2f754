/*
 * Before the screen: rows so near to their last best component that few others or none can be candidates (reach.cl, settle.cl). Where
 * clusters lie apart these are all but a few rows, and a pass then costs what reading them does. Where they do not, it is tried ever
 * more rarely. Sums have the same bits either way.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <stdio.h>

enum {
    MOST_REST = 8,
    TILE = 32, /* of reach.cl, as is SIDE */
    SIDE = 8,
    BETWEEN_BYTES = 16 << 20
};

/* Less than this part of the rows is not worth reading them once more. */
static const double worthwhile = 0.25;

/* A run of components at a time, so that neither memory nor a dispatch grows with K; of memory, what a slice's lists will take. */
static fgmm_status find_reaches(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    char options[64];
    /* A row that has many to be looked at for costs more than the screen on matrix units. */
    engine->n_nearest = engine->matrix.on ? 3 : CL_CAP - 1;
    snprintf(options, sizeof options, "-DDIAG=%d -DNEAREST=%u", engine->diag, engine->n_nearest);
    size_t k = engine->k, group = 64, every = k * group, local[2] = {SIDE, SIDE};
    size_t fit = BETWEEN_BYTES / (k * sizeof(cl_float)), quick = (size_t)engine->batch_budget / (k * engine->d);
    size_t most = (fit < quick ? fit : quick) / TILE * TILE, step = most < TILE ? TILE : most < k ? most : k;
    CL_TRY(cl_room_fit(device, &engine->off, k * sizeof(cl_float), "the components' reaches"));
    CL_TRY(cl_room_fit(device, &engine->nearest, k * (engine->n_nearest + 1) * sizeof(cl_uint2),
                       "the components' reaches"));
    CL_TRY(cl_room_fit(device, &engine->values, step * k * sizeof(cl_float), "the components' reaches"));
    CL_TRY(cl_kernel_get(device, &kernel, "reach", options, "reach_off"));
    CL_TRY(CL_RUN(device, kernel, "finding reaches", 1, &every, &group, CL_ARG(engine->d), CL_ARG(engine->mean_lo.mem),
                  CL_ARG(engine->inverse.mem), CL_ARG(engine->off.mem)));
    for (size_t i = 0; i < k; i += step) {
        if (i) CL_TRY(cl_breathe(device));
        cl_uint h0 = (cl_uint)i, n = (cl_uint)(i + step < k ? step : k - i);
        size_t square[2] = {cl_round_up(k, TILE) / TILE * SIDE, cl_round_up(n, TILE) / TILE * SIDE}, each = n * group;
        CL_TRY(cl_kernel_get(device, &kernel, "reach", options, "reach_between"));
        CL_TRY(CL_RUN(device, kernel, "finding reaches", 2, square, local, CL_ARG(h0), CL_ARG(n), CL_ARG(engine->k),
                      CL_ARG(engine->d), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->inverse.mem),
                      CL_ARG(engine->screen_c.mem), CL_ARG(engine->bounds), CL_ARG(engine->off.mem),
                      CL_ARG(engine->values.mem)));
        CL_TRY(cl_kernel_get(device, &kernel, "reach", options, "reach_nearest"));
        CL_TRY(CL_RUN(device, kernel, "finding reaches", 1, &each, &group, CL_ARG(h0), CL_ARG(engine->k),
                      CL_ARG(engine->values.mem), CL_ARG(engine->nearest.mem)));
    }
    engine->reached = 1;
    return FGMM_OK;
}

/* A device that refuses the kernels, or has no memory for them, goes without. @return other failures */
static fgmm_status go_without(fgmm_device *device, fgmm_status status) {
    cl_engine *engine = device->engine;
    const char *refused = cl_refusal(device, status);
    if (!refused && status != FGMM_ERR_MEMORY) return status;
    engine->settling = engine->reached = 0;
    engine->tried = 0.0;
    engine->settle_wait = engine->settle_rest = MOST_REST;
    cl_room_free(device, &engine->off);
    cl_room_free(device, &engine->nearest);
    if (!refused) return FGMM_OK;
    device->settle_from = INT64_MAX;
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s: all rows go through the screen: the kernels that spare them that do not %s", device->name,
                     refused);
    return FGMM_OK;
}

fgmm_status cl_settle_begin(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    if (engine->all_dense || engine->tied || engine->full || !block->hinted || engine->settle_wait ||
        block->n / (int64_t)engine->k < device->settle_from ||
        (double)TILE * (double)engine->k * (double)engine->d > (double)engine->batch_budget)
        return FGMM_OK;
    device->group_refused = 0;
    fgmm_status status = engine->reached ? FGMM_OK : find_reaches(device);
    if (status != FGMM_OK) return go_without(device, status);
    engine->settling = 1;
    engine->tried += (double)block->n;
    return FGMM_OK;
}

static fgmm_status run_settle(fgmm_device *device, const cl_part *part, cl_mem hints) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    char options[112];
    int lanes = engine->d >= 256 ? 16 : engine->d >= 64 ? 8 : engine->d >= 16 ? 4 : 1;
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DROW_FOURS=%d -DDIAG=%d -DLANES=%d -DNEAREST=%u", part->type,
             cl_row_fours(engine, part->offset, part->pitch), engine->diag, lanes, engine->n_nearest);
    CL_TRY(cl_kernel_get(device, &kernel, "settle", options, "settle"));
    CL_TRY(cl_room_fit(device, &engine->unsettled, ((size_t)part->n + 1) * sizeof(cl_uint), "rows to screen"));
    CL_TRY(cl_fill(device, engine->unsettled.mem, 0, sizeof(cl_uint), "clearing a count"));
    size_t local = 64, global = cl_round_up(part->n, local);
    return CL_RUN(device, kernel, "settling rows", 1, &global, &local, CL_ARG(part->rows), CL_ARG(part->offset),
                  CL_ARG(part->pitch), CL_ARG(part->row0), CL_ARG(part->out0), CL_ARG(part->n), CL_ARG(engine->d),
                  CL_ARG(engine->k), CL_ARG(engine->mean_hi.mem), CL_ARG(engine->inverse.mem),
                  CL_ARG(engine->screen_c.mem), CL_ARG(engine->bounds), CL_ARG(engine->off.mem),
                  CL_ARG(engine->nearest.mem), CL_ARG(hints), CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->cand_count.mem), CL_ARG(engine->unsettled.mem), CL_ARG(engine->chunks.mem));
}

fgmm_status cl_settle(fgmm_device *device, const cl_part *part, cl_mem hints, cl_mem *list) {
    device->group_refused = 0;
    fgmm_status status = run_settle(device, part, hints);
    *list = status == FGMM_OK ? device->engine->unsettled.mem : NULL;
    return status == FGMM_OK ? FGMM_OK : go_without(device, status);
}

/* Finding the reaches costs what the screen of some rows a component does. */
void cl_settle_learn(fgmm_device *device) {
    cl_engine *engine = device->engine;
    if (!(engine->tried > 0.0)) return;
    double cost = worthwhile * engine->tried + (double)(device->settle_from / 4) * (double)engine->k;
    int rest = engine->settle_rest ? 2 * engine->settle_rest : 1;
    engine->settle_rest = engine->tried - engine->left_over > cost ? 0 : rest < MOST_REST ? rest : MOST_REST;
    engine->settle_wait = engine->settle_rest;
}
