/*
 * Parameters on the device, from the doubles of fgmm_params: in the screen's form (rows and means centred and scaled,
 * constants with their error bounds: cl_forms.c) and in the exact form (means and sum centres as two floats).
 */
#include "cl_forms.h"

#include <string.h>

float cl_screen_centre(const fgmm_params *params, const double *frame, int64_t feature) {
    return (float)(params->centre[feature] - (frame ? frame[feature] : 0.0));
}

static void choose_tiles(const fgmm_device *device, cl_engine *engine) {
    cl_uint k = engine->k, d = engine->d;
    engine->tile = cl_tuning_tile(device, CL_TUNED_SCREEN, k, d);
    engine->white_tile = cl_tuning_tile(device, CL_TUNED_WHITEN, k, d);
    engine->scatter_tile = cl_tuning_tile(device, CL_TUNED_SCATTER, k, d);
    engine->batch_budget = (int64_t)200000000 * (device->compute_units ? device->compute_units : 1);
}

/* A warpgroup keeps the fragments of its rows up to a depth of 512; a warp keeps its own up to 128; beyond, it fetches them, and takes
 * twice as many components at a time to make that pay. Full covariances have one kernel, for warpgroups. */
static void choose_matrix(const fgmm_device *device, cl_engine *engine) {
    cl_uint parts = engine->diag ? 2 : 1, steps = (engine->d + 15) / 16 * parts;
    int on = device->has_matrix;
    if (engine->full && (on != CL_MATRIX_WARPGROUPS || !device->has_full || steps > CL_FULL_STEPS)) on = CL_MATRIX_NONE;
    if (on == CL_MATRIX_WARPGROUPS && steps > 32) on = CL_MATRIX_WARPS;
    if (on == CL_MATRIX_WARPS && !device->has_warps) on = CL_MATRIX_NONE;
    int kept = on == CL_MATRIX_WARPGROUPS || steps <= 8;
    if (!kept) steps = (cl_uint)cl_round_up(steps, CL_MATRIX_CHUNK);
    engine->matrix = (cl_matrix){.on = on,
                                 .dp = steps / parts * 16,
                                 .steps = steps,
                                 .kept = kept ? steps : 0,
                                 .nt = kept ? 8 : 16,
                                 .chunks = kept ? 1 : steps / CL_MATRIX_CHUNK};
    engine->matrix.tiles = (engine->k + 8 * engine->matrix.nt - 1) / (8 * engine->matrix.nt);
    if (!on || !device->has_guess || device->has_matrix != CL_MATRIX_WARPGROUPS || engine->tied || engine->full) return;
    cl_uint most = 16 * CL_GUESS_STEPS / parts;
    engine->matrix.guessed = engine->d < most ? engine->d : most;
}

/* ---- what is sent ---- */

float *cl_take(cl_engine *engine, size_t count) {
    float *out = (float *)(void *)((char *)engine->pinned.at + engine->pinned.used);
    engine->pinned.used += cl_round_up(count * sizeof *out, 64);
    return out;
}

fgmm_status cl_fit_floats(fgmm_device *device, cl_room *room, size_t count, const char *what) {
    return cl_room_fit(device, room, (count + 3) * sizeof(float), what);
}

fgmm_status cl_send_taken(fgmm_device *device, cl_room *room, const float *from, size_t count, const char *what) {
    CL_TRY(cl_fit_floats(device, room, count, what));
    CL_CHECK(device,
             clEnqueueWriteBuffer(device->queue, room->mem, CL_FALSE, 0, count * sizeof *from, from, 0, NULL, NULL),
             what);
    return FGMM_OK;
}

static cl_split_values take_split(cl_engine *engine, const double *values, const double *frame) {
    size_t cells = engine->k * engine->d;
    cl_split_values out = {values, frame, cl_take(engine, cells), NULL, NULL};
    out.lo = cl_take(engine, cells);
    return out;
}

static fgmm_status send_split(fgmm_device *device, const cl_split_values *split, cl_room *hi, cl_room *lo,
                              const char *what) {
    cl_engine *engine = device->engine;
    size_t cells = engine->k * engine->d;
    CL_TRY(cl_send_taken(device, hi, split->hi, cells, what));
    return cl_send_taken(device, lo, split->lo, cells, what);
}

static fgmm_status split_and_send(fgmm_device *device, const double *values, const double *frame, cl_room *hi,
                                  cl_room *lo, const char *what) {
    cl_engine *engine = device->engine;
    cl_split_values split = take_split(engine, values, frame);
    cl_split_all(device, &split);
    return send_split(device, &split, hi, lo, what);
}

/* ---- the screens' parameters ---- */

/* The columns in the order of screen.cl. */
static fgmm_status arrange_columns(fgmm_device *device, size_t rows_from) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_uint from = (cl_uint)rows_from;
    size_t bytes = (size_t)engine->dp * engine->kp * sizeof(cl_float);
    size_t local[2] = {device->max_work_group >= 64 ? 64 : 1, 1};
    size_t global[2] = {cl_round_up(engine->kp, local[0]), engine->dp};
    CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_columns"));
    for (int part = 0; part < (engine->diag ? 2 : 1); part++) {
        cl_room *out = part ? &engine->screen_b : &engine->screen_a;
        CL_TRY(cl_room_fit(device, out, bytes, "the screen's parameters"));
        CL_TRY(CL_RUN(device, kernel, "arranging parameters", 2, global, local, CL_ARG(engine->screen_rows[part].mem),
                      CL_ARG(engine->k), CL_ARG(from), CL_ARG(engine->dp), CL_ARG(engine->kp), CL_ARG(out->mem)));
    }
    return FGMM_OK;
}

/* Features of screen_rows, centre and scale: padded as the screen needs. */
static size_t padded_features(const cl_engine *engine) {
    return engine->matrix.on ? engine->matrix.dp : engine->dp;
}

static size_t padded_columns(const cl_engine *engine) {
    return (size_t)engine->matrix.tiles * engine->matrix.nt * 8;
}

/* And of screen_mma.cl or screen_wgmma.cl. */
static fgmm_status arrange_fragments(fgmm_device *device) {
    cl_engine *engine = device->engine;
    const cl_matrix *matrix = &engine->matrix;
    cl_kernel kernel = NULL;
    cl_mem second = engine->diag ? engine->screen_rows[1].mem : NULL;
    size_t bytes = (size_t)matrix->tiles * matrix->steps * matrix->nt * 8 * 32;
    if (matrix->on == CL_MATRIX_WARPGROUPS) {
        size_t items[3] = {CL_GROUP_COLUMNS, 2 * (size_t)matrix->steps + 1, matrix->tiles};
        size_t group[3] = {CL_GROUP_COLUMNS, 1, 1};
        bytes += padded_columns(engine) * sizeof(cl_float2);
        CL_TRY(cl_room_fit(device, &engine->fragments, bytes, "the components as tiles"));
        CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_tiles"));
        return CL_RUN(device, kernel, "arranging parameters", 3, items, group, CL_ARG(engine->screen_rows[0].mem),
                      CL_ARG(second), CL_ARG(engine->matrix_c.mem), CL_ARG(engine->columns.mem), CL_ARG(engine->k),
                      CL_ARG(matrix->dp), CL_ARG(engine->fragments.mem));
    }
    size_t local[3] = {32, 1, 1}, global[3] = {16 * (size_t)matrix->nt, matrix->steps, matrix->tiles};
    CL_TRY(cl_room_fit(device, &engine->fragments, bytes, "the components as fragments"));
    CL_TRY(cl_kernel_get(device, &kernel, "arrange", "", "arrange_fragments"));
    return CL_RUN(device, kernel, "arranging parameters", 3, global, local, CL_ARG(engine->screen_rows[0].mem),
                  CL_ARG(second), CL_ARG(engine->matrix_c.mem), CL_ARG(engine->k), CL_ARG(matrix->dp),
                  CL_ARG(matrix->nt), CL_ARG(engine->fragments.mem));
}

static fgmm_status send_frame(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    size_t from = padded_features(engine);
    float *centre = cl_take(engine, from), *scale = cl_take(engine, from);
    for (size_t f = 0; f < from; f++) {
        int within = f < engine->d;
        /* Whitened rows are about the centre already. */
        centre[f] = within && !engine->tied ? cl_screen_centre(&engine->params, frame, (int64_t)f) : 0.0f;
        scale[f] = within ? (float)engine->params.scale[f] : 0.0f;
    }
    CL_TRY(cl_send_taken(device, &engine->centre, centre, from, "the screen's centre"));
    return cl_send_taken(device, &engine->scale, scale, from, "the screen's scale");
}

/* Of spherical, diagonal and (about whitened rows) tied covariances. *sound: whether the screen can be trusted. Sends the constants that
 * settling takes, too. What the screens alone take is formed when it is wanted, unless engine->formed. */
static fgmm_status form_screen(fgmm_device *device, const double *frame, const cl_split_values *split, int *sound) {
    cl_engine *engine = device->engine;
    size_t k = engine->k, from = padded_features(engine);
    float *constants = cl_take(engine, 4 * ((size_t)engine->kp + 1)); /* and their bounds */
    engine->multipliers = cl_take(engine, 4 * k);
    engine->tiled = cl_take(engine, 2 * padded_columns(engine));
    int bound = cl_screen_bounds(engine);
    for (int part = 0; part < 2; part++)
        engine->forms[part] = part == 0 || engine->diag ? cl_take(engine, k * from) : NULL;
    engine->rows_from = (cl_uint)from;
    memset(constants + 4 * k, 0, 4 * (engine->kp - k) * sizeof *constants);
    for (size_t i = k; i < engine->kp; i++) constants[4 * i] = constants[4 * i + 1] = -3e38f;
    CL_TRY(cl_form_components(device, frame, split, constants, engine->formed ? engine->forms : NULL));
    if (split) CL_TRY(cl_send_taken(device, &engine->mean_hi, split->hi, k * engine->d, "the means"));
    *sound = *sound && engine->screen_totals.sound && bound;
    if (!*sound) return FGMM_OK;
    memcpy(constants + 4 * (size_t)engine->kp, &engine->bounds, sizeof engine->bounds);
    CL_TRY(cl_send_taken(device, &engine->screen_c, constants, 4 * ((size_t)engine->kp + 1), "the screen's constants"));
    if (split) CL_TRY(cl_send_taken(device, &engine->off, split->off, k, "the components' reaches"));
    engine->unsent = 1;
    return FGMM_OK;
}

fgmm_status cl_send_lower(fgmm_device *device) {
    cl_engine *engine = device->engine;
    const float *lower = engine->lower;
    engine->lower = NULL;
    return lower ? cl_send_taken(device, &engine->mean_lo, lower, engine->k * engine->d, "the means") : FGMM_OK;
}

static fgmm_status send_forms(fgmm_device *device) {
    cl_engine *engine = device->engine;
    size_t from = engine->rows_from;
    for (int part = 0; part < (engine->diag ? 2 : 1); part++)
        CL_TRY(cl_send_taken(device, &engine->screen_rows[part], engine->forms[part], engine->k * from,
                             "the screen's parameters"));
    CL_TRY(cl_send_lower(device));
    return arrange_columns(device, from);
}

/* Through the other queue. *sent: when that is done. */
static fgmm_status send_forms_beside(fgmm_device *device, cl_event *sent) {
    cl_command_queue work = device->queue;
    device->queue = device->copies;
    fgmm_status status = send_forms(device);
    device->queue = work;
    CL_TRY(status);
    CL_CHECK(device, clEnqueueMarkerWithWaitList(device->copies, 0, NULL, sent), "sending the screen's parameters");
    CL_CHECK(device, clFlush(device->copies), "sending the screen's parameters");
    return FGMM_OK;
}

static fgmm_status send_screen(fgmm_device *device, cl_event *sent) {
    cl_engine *engine = device->engine;
    cl_matrix *matrix = &engine->matrix;
    if (!engine->formed) CL_TRY(cl_form_components(device, engine->frame, NULL, NULL, engine->forms));
    CL_TRY(sent ? send_forms_beside(device, sent) : send_forms(device));
    if (matrix->on && !cl_matrix_bounds(engine)) matrix->on = CL_MATRIX_NONE;
    if (matrix->on) {
        CL_TRY(cl_send_taken(device, &engine->matrix_c, engine->multipliers, 4 * (size_t)engine->k,
                             "the screen's constants"));
        CL_TRY(cl_send_taken(device, &engine->columns, engine->tiled, 2 * padded_columns(engine),
                             "the screen's constants"));
    }
    CL_TRY(send_frame(device, engine->frame));
    if (sent)
        CL_CHECK(device, clEnqueueBarrierWithWaitList(device->queue, 1, sent, NULL),
                 "waiting for the screen's parameters");
    return matrix->on ? arrange_fragments(device) : FGMM_OK;
}

fgmm_status cl_prepare_screen(fgmm_device *device, int beside) {
    cl_event sent = NULL;
    if (!device->engine->unsent) return FGMM_OK;
    fgmm_status status = send_screen(device, beside ? &sent : NULL);
    if (sent) clReleaseEvent(sent);
    if (status != FGMM_OK) {
        clFinish(device->copies); /* nothing of it is under way any more */
        return status;
    }
    device->engine->unsent = 0;
    return FGMM_OK;
}

/* ---- the exact parameters ---- */

/* Constants of the exact form: L_hi, L_lo, log w, w of each component; and 1 / (2 var). */
static fgmm_status send_exact(fgmm_device *device) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t k = engine->k, d = engine->d;
    float *constants = cl_take(engine, 4 * k);
    for (size_t i = 0; i < k; i++) {
        int64_t c = engine->ids[i];
        cl_split(params->log_norm[c] + params->log_weights[c], &constants[4 * i], &constants[4 * i + 1]);
        constants[4 * i + 2] = (float)params->log_weights[c];
        constants[4 * i + 3] = (float)params->weights[c];
    }
    CL_TRY(cl_send_taken(device, &engine->constants, constants, 4 * k, "the components' constants"));
    if (engine->tied || engine->full || engine->ahead.told) return FGMM_OK;
    size_t count = engine->diag ? k * d : 2 * k;
    float *inverse = cl_take(engine, count);
    if (engine->diag) {
#pragma omp parallel for num_threads(cl_threads(device, count))
        for (size_t i = 0; i < k; i++) {
            const double *from = params->half_inv_var + (size_t)engine->ids[i] * d;
            for (size_t f = 0; f < d; f++) inverse[i * d + f] = (float)from[f];
        }
    } else {
        for (size_t i = 0; i < k; i++)
            cl_split(params->half_inv_var[engine->ids[i]], &inverse[2 * i], &inverse[2 * i + 1]);
    }
    return cl_send_taken(device, &engine->inverse, inverse, count, "the inverse variances");
}

static fgmm_status keep_frame(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    cl_release_memory(device, engine->frame);
    engine->frame = NULL;
    if (!frame) return FGMM_OK;
    size_t bytes = engine->d * sizeof(double);
    engine->frame = cl_alloc(device, bytes);
    if (!engine->frame) return FGMM_ERR_MEMORY;
    memcpy(engine->frame, frame, bytes);
    return FGMM_OK;
}

static void exchange(cl_room *a, cl_room *b) {
    cl_room was = *a;
    *a = *b;
    *b = was;
}

static void exchange_last(cl_engine *engine) {
    exchange(&engine->last_hi, &engine->mean_hi);
    exchange(&engine->last_inverse, &engine->inverse);
    exchange(&engine->last_off, &engine->off);
    exchange(&engine->last_c, &engine->screen_c);
}

void cl_keep_last(cl_engine *engine) {
    exchange_last(engine);
    engine->last = engine->now;
    engine->now = (cl_generation){0};
}

void cl_return_last(cl_engine *engine) {
    exchange_last(engine);
    engine->now = engine->last;
    engine->last = (cl_generation){0};
}

/* Room for all that a preparation takes, once earlier transfers have ended.
 * @param screens whether parameters of a screen are among it @param rest whether cl_ahead_send_rest's are */
static fgmm_status fit_pinned(fgmm_device *device, int screens, int rest) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t k = engine->k, d = engine->d, most = padded_features(engine), columns = padded_columns(engine);
    size_t floats = (params->sum_centres == params->means ? 2 : 4) * k * d + 5 * k + (engine->diag ? k * d : 2 * k);
    if (engine->near) floats += k * d + 4 * k + d;
    if (rest) floats += k * d;
    if (engine->pairs.on) floats += cl_pairs_floats(engine);
    if (screens)
        floats += (engine->diag ? 2 : 1) * k * most + 4 * ((size_t)engine->kp + 1) + 4 * k + 2 * columns + 2 * most;
    if (engine->sent) CL_CHECK(device, clFinish(device->queue), "waiting for the device");
    engine->sent = 1;
    return cl_pin(device, &engine->pinned, floats * sizeof(float) + 32 * 64); /* each part on a line of its own */
}

fgmm_status cl_prepare(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    const double *frame = block->centre;
    cl_recall_take(device, block);
    if (engine->prepared && !frame == !engine->frame &&
        (!frame || memcmp(frame, engine->frame, engine->d * sizeof(double)) == 0))
        return FGMM_OK;
    const int ahead = engine->ahead.told != NULL;
    if (!ahead) cl_ahead_drop(device);
    engine->prepared = engine->unsent = engine->ahead.sent = 0;
    if (!ahead) engine->reached = 0;
    /* Whitened means are dear, and rows that nothing is known of will be guessed or screened. */
    engine->formed = engine->tied || !block->hinted;
    engine->lower = NULL;

    CL_TRY(cl_pairs_trust(device, block));
    choose_tiles(device, engine);
    choose_matrix(device, engine);
    engine->kp = (cl_uint)cl_round_up(engine->k, (size_t)(engine->tile.gx * engine->tile.rn));
    engine->dp = (cl_uint)cl_round_up(engine->d, CL_DEPTH_TILE);

    int sound = params->engine != FGMM_ENGINE_DENSE && engine->log_cut > -1e30f;
    int rest = sound && !ahead && cl_ahead_wanted(device, block);
    CL_TRY(fit_pinned(device, sound && !engine->full, rest));
    if (engine->tied || engine->full) CL_TRY(cl_fit_white(device, sound));
    if (!ahead) cl_keep_last(engine);
    if (engine->tied || engine->full) {
        CL_TRY(split_and_send(device, params->means, frame, &engine->mean_hi, &engine->mean_lo, "the means"));
        CL_TRY(cl_prepare_white(device, frame, &sound));
        if (sound && !engine->full) CL_TRY(form_screen(device, frame, NULL, &sound));
    } else if (ahead) {
        CL_TRY(send_exact(device));
        CL_TRY(cl_ahead_go_on(device));
        CL_TRY(form_screen(device, frame, NULL, &sound));
        if (!sound || !engine->screen_totals.expected || !cl_ahead_bounds(engine)) {
            cl_ahead_miss(device);
            return cl_prepare(device, block); /* for which nothing has been made ahead now */
        }
    } else if (sound) {
        cl_split_values split = take_split(engine, params->means, frame);
        split.off = cl_take(engine, engine->k);
        CL_TRY(form_screen(device, frame, &split, &sound));
        CL_TRY(cl_fit_floats(device, &engine->mean_lo, engine->k * engine->d, "the means"));
        engine->lower = split.lo;
        if (!sound) CL_TRY(cl_send_lower(device));
        if (rest && sound) CL_TRY(cl_ahead_send_rest(device, &split));
    } else {
        CL_TRY(split_and_send(device, params->means, frame, &engine->mean_hi, &engine->mean_lo, "the means"));
    }
    engine->all_dense = !sound;
    if (!ahead) CL_TRY(send_exact(device));
    engine->sum_hi_at = engine->mean_hi.mem;
    engine->sum_lo_at = engine->mean_lo.mem;
    if (params->sum_centres != params->means) {
        CL_TRY(
            split_and_send(device, params->sum_centres, frame, &engine->sum_hi, &engine->sum_lo, "the sums' centres"));
        engine->sum_hi_at = engine->sum_hi.mem;
        engine->sum_lo_at = engine->sum_lo.mem;
    }
    if (engine->near) CL_TRY(cl_send_near(device, frame));
    CL_TRY(keep_frame(device, frame));
    /* Matrices are not among what moves. */
    if (!engine->tied && !engine->full && !ahead)
        engine->now = (cl_generation){.number = ++device->generations,
                                      .k = engine->k,
                                      .kp = engine->kp,
                                      .d = engine->d,
                                      .diag = engine->diag,
                                      .sound = sound};
    engine->now.kp = engine->kp;
    engine->ahead.exact_of = ahead || engine->ahead.sent ? engine->now.number : 0;
    engine->ahead.made = 0;
    if (ahead) engine->ahead.rests = 0, engine->ahead.begun++;
    engine->ahead.told = NULL;
    engine->prepared = 1;
    return FGMM_OK;
}
