/*
 * The next pass's beginning, while the host still makes its parameters. The host needs the sums, its M-step and what it checks for some 0.2 ms, and
 * more where K D is large, in which the device would wait. So it makes an M-step of its own (ahead.cl), finds the reaches of that and settles
 * rows. When parameters come that are the same to the bit, which the host finds from hashes of each component's,
 * that is done, and they need not be sent either; else the pass begins as if nothing had been. Sums have the same bits either way, for settling only
 * says where products can be spared, and is safe where the host's constants lie within those that were made (cl_ahead_matches, cl_ahead_bounds).
 *
 * It is told of a pass that an M-step follows (fgmm_params.followed), so it is left to fits; and it is for rows that stay in one buffer, all
 * components alive, and a likelihood from the sums. What it takes is built when a fit first comes to it, in the third pass or so.
 *
 * After the last pass over rows that persist it makes parameters and reaches, and leaves the rows as they are: a call that may follow, over these or
 * others, settles its own as it needs to while its parameters are being compared (cl_ahead_go_on). What is known of rows survives parameters that
 * nobody comes for: it is of the last ones still, or, where the device has settled all of them, of those that were made, from which components are then
 * said to have moved. Where a comparison fails, it is lost of the rows that were settled meanwhile.
 */
#include "cl_forms.h"
#include "cl_program.h"

#include "../lib/clones.h"

#include <string.h>

static fgmm_status run_means(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_ahead *ahead = &engine->ahead;
    cl_kernel kernel = NULL;
    size_t k = engine->k, cells = k * engine->d, local = CL_NARROW, global = k * local;
    double reg_covar = engine->params.reg_covar;
    CL_TRY(cl_fit_floats(device, &engine->mean_hi, cells, "the means"));
    CL_TRY(cl_fit_floats(device, &engine->inverse, engine->diag ? cells : 2 * k, "the inverse variances"));
    CL_TRY(cl_fit_floats(device, &engine->off, k, "the components' reaches"));
    CL_TRY(cl_room_fit(device, &ahead->terms, k * 2 * sizeof(double), "parameters made ahead"));
    CL_TRY(cl_room_fit(device, &ahead->tells, (k + 1) * sizeof(cl_told), "parameters made ahead"));
    CL_TRY(cl_kernel_get(device, &kernel, "ahead", engine->diag ? "-DDIAG=1" : "", "ahead_means"));
    return CL_RUN(device, kernel, "means made ahead", 1, &global, &local, CL_ARG(engine->sparse.total.mem),
                  CL_ARG(engine->d), CL_ARG(reg_covar), CL_ARG(engine->last_hi.mem), CL_ARG(engine->mean_hi.mem),
                  CL_ARG(engine->mean_lo.mem), CL_ARG(ahead->rest.mem), CL_ARG(engine->inverse.mem),
                  CL_ARG(engine->off.mem), CL_ARG(ahead->terms.mem), CL_ARG(ahead->tells.mem));
}

fgmm_status cl_ahead_constants(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_ahead *ahead = &engine->ahead;
    cl_kernel kernel = NULL;
    size_t group = CL_NARROW, every = cl_round_up(engine->k, group);
    cl_float log_cut = engine->log_cut, g16 = engine->bounds.s[1];
    CL_TRY(
        cl_room_fit(device, &engine->screen_c, ((size_t)engine->kp + 1) * sizeof(cl_float4), "the screen's constants"));
    CL_TRY(cl_kernel_get(device, &kernel, "ahead", engine->diag ? "-DDIAG=1" : "", "ahead_constants"));
    CL_TRY(CL_RUN(device, kernel, "constants made ahead", 1, &every, &group, CL_ARG(engine->k), CL_ARG(engine->kp),
                  CL_ARG(log_cut), CL_ARG(g16), CL_ARG(ahead->terms.mem), CL_ARG(engine->last_c.mem),
                  CL_ARG(engine->last_off.mem), CL_ARG(engine->off.mem), CL_ARG(engine->moved.mem),
                  CL_ARG(engine->screen_c.mem), CL_ARG(ahead->tells.mem)));
    return cl_read_begin(device, &ahead->arrival, ahead->tells.mem, 0, ((size_t)engine->k + 1) * sizeof(cl_told),
                         "parameters made ahead");
}

/* As key in ahead.cl. */
static uint64_t key(uint64_t i) {
    uint64_t x = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static fgmm_status fit_keys(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_ahead *ahead = &engine->ahead;
    size_t n = engine->d * (engine->diag ? 2 : 1);
    if (ahead->keys && ahead->keys_n == n) return FGMM_OK;
    cl_release_memory(device, ahead->keys);
    ahead->keys = cl_alloc(device, 2 * n * sizeof *ahead->keys);
    if (!ahead->keys) return FGMM_ERR_MEMORY;
    ahead->keys_n = n;
    for (size_t i = 0; i < 2 * n; i++) ahead->keys[i % 2 * n + i / 2] = key(i);
    return FGMM_OK;
}

/* The parameters that what is known of the rows is of from here on. */
static void set_row_bounds_of(cl_ahead *ahead, int64_t number) {
    if (ahead->whole)
        cl_stretch_tell(ahead->rows.stretch, number);
    else
        ahead->block->row_bounds_of = number;
}

/* Parameters go where the last ones were, which are then what these have moved from. */
static fgmm_status begin(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_ahead *ahead = &engine->ahead;
    fgmm_block *rows = &ahead->rows;
    cl_keep_last(engine);
    ahead->exact_of = 0; /* rest is about to change */
    ahead->all = 0;
    engine->now = engine->last;
    engine->now.number = ++device->generations;
    engine->reached = engine->prepared = 0;
    ahead->made = 1;
    ahead->log_cut = engine->log_cut;
    CL_TRY(fit_keys(device));
    CL_TRY(run_means(device));
    CL_TRY(cl_find_reaches(device));
    if (engine->params.followed == FGMM_FOLLOWED_BY_CALLS) return FGMM_OK;
    /* Of some rows what is known is of those parameters from here on, and of the others not yet, which only a pass with them goes on from. */
    set_row_bounds_of(ahead, 0);
    ahead->slice = cl_likely_slice(device, rows, 0, INT64_MAX);
    CL_TRY(cl_settle_slice(device, &ahead->slice));
    ahead->settled = 1;
    ahead->beyond = engine->last.number;
    ahead->all = ahead->slice.n == rows->n;
    if (ahead->all) set_row_bounds_of(ahead, engine->now.number);
    return FGMM_OK;
}

/* Whether the sums of this pass are all that an M-step needs, and its rows such as will be settled. */
static int suits(const fgmm_device *device) {
    const cl_engine *engine = device->engine;
    const cl_ahead *ahead = &engine->ahead;
    return engine->params.followed && ahead->exact_of && ahead->exact_of == engine->now.number && ahead->noted &&
           ahead->block && ahead->rows.row_bounds_of == engine->now.number && !engine->lower &&
           !engine->dense.started && engine->tried > 0.0 && engine->left_over < 0.5 * engine->tried;
}

fgmm_status cl_ahead_begin(fgmm_device *device) {
    if (!suits(device)) return FGMM_OK;
    device->group_refused = 0;
    fgmm_status status = begin(device);
    if (status == FGMM_OK) return FGMM_OK;
    const char *refused = cl_refusal(device, status);
    clFinish(device->queue); /* what was begun reads the caller's rows */
    cl_ahead_miss(device);
    if (!refused && status != FGMM_ERR_MEMORY) return status;
    cl_forget(device);
    cl_ahead_free(device);
    if (!refused) return FGMM_OK;
    device->has_ahead = 0;
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s: it waits for the host between passes: the kernels that go on meanwhile do not %s",
                     device->name, refused);
    return FGMM_OK;
}

void cl_ahead_drop(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_ahead *ahead = &engine->ahead;
    ahead->settled = 0;
    if (!ahead->made) return;
    (void)cl_arrival_wait(&ahead->arrival);
    (void)cl_arrival_wait(&engine->taken);
    /* What is known of rows is of the last parameters, or lost; or of these, unless others' constants may have taken the place of theirs. */
    if (!ahead->all || ahead->told) cl_return_last(engine);
    ahead->made = 0;
    ahead->told = NULL;
    engine->reached = 0;
}

void cl_ahead_miss(fgmm_device *device) {
    cl_ahead *ahead = &device->engine->ahead;
    ahead->rests = cl_next_rest(ahead->rests);
    ahead->waits = ahead->rests;
    cl_ahead_drop(device);
}

void cl_ahead_note(cl_engine *engine, fgmm_block *block, const fgmm_block *rows) {
    cl_ahead *ahead = &engine->ahead;
    if (ahead->noted) return;
    ahead->noted = 1;
    ahead->block = block;
    ahead->whole = rows != block;
    ahead->rows = *rows;
}

void cl_ahead_leave(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    if (!engine) return;
    cl_ahead *ahead = &engine->ahead;
    if (!ahead->block || (block != ahead->block && (!block->stretch || block->stretch != ahead->block->stretch)))
        return;
    if (ahead->made) clFinish(device->queue); /* the caller's buffer is the caller's again */
    cl_ahead_drop(device);
    ahead->block = NULL;
}

void cl_ahead_free(fgmm_device *device) {
    cl_ahead *ahead = &device->engine->ahead;
    cl_room_free(device, &ahead->rest);
    cl_room_free(device, &ahead->terms);
    cl_room_free(device, &ahead->tells);
    cl_release_memory(device, ahead->keys);
    ahead->keys = NULL;
    cl_arrival_free(device, &ahead->arrival);
}

/* ---- the parameters that come ---- */

/* Whether parameters for these rows may be made ahead: those that come now, or those after them. */
static int may_be_made(const fgmm_device *device, const fgmm_block *block) {
    const cl_engine *engine = device->engine;
    return (engine->alone || engine->each) && !engine->near && !engine->params.hard && !block->centre &&
           block->hinted && block->row_bounds && (int64_t)engine->k == engine->params.k &&
           cl_settle_pays(device, block);
}

int cl_ahead_wanted(const fgmm_device *device, const fgmm_block *block) {
    const cl_engine *engine = device->engine;
    return device->has_ahead && engine->params.followed && !engine->ahead.waits && may_be_made(device, block);
}

fgmm_status cl_ahead_send_rest(fgmm_device *device, const cl_split_values *split) {
    cl_engine *engine = device->engine;
    size_t cells = engine->k * engine->d;
    float *rest = cl_take(engine, cells);
#pragma omp parallel for num_threads(cl_threads(device, cells))
    for (size_t i = 0; i < cells; i++)
        rest[i] = (float)(split->values[i] - (double)split->hi[i] - (double)split->lo[i]);
    CL_TRY(cl_send_taken(device, &engine->ahead.rest, rest, cells, "the means"));
    engine->ahead.sent = 1;
    return FGMM_OK;
}

/* Whether such parameters may be those. */
static int may_come(const fgmm_device *device, const fgmm_block *block) {
    const cl_engine *engine = device->engine;
    const cl_ahead *ahead = &engine->ahead;
    return engine->params.engine != FGMM_ENGINE_DENSE && engine->now.k == engine->k && engine->now.d == engine->d &&
           engine->now.diag == engine->diag && may_be_made(device, block) && engine->log_cut == ahead->log_cut;
}

/* Whether the slice is of such rows, and nothing is asked of them that it has not found. */
static int serves(const cl_engine *engine, const fgmm_block *block, int64_t most) {
    const cl_ahead *ahead = &engine->ahead;
    const fgmm_block *rows = &ahead->rows;
    return !engine->each && ahead->slice.n <= most && block->rows == rows->rows && block->offset == rows->offset &&
           block->pitch == rows->pitch && block->n == rows->n && block->first_row == rows->first_row &&
           block->hints == rows->hints && block->row_bounds == rows->row_bounds;
}

fgmm_status cl_ahead_take(fgmm_device *device, fgmm_block *block, int64_t most) {
    cl_ahead *ahead = &device->engine->ahead;
    if (!ahead->made || ahead->told) return FGMM_OK;
    if (ahead->settled && !serves(device->engine, block, most)) ahead->settled = 0;
    if (!may_come(device, block)) {
        cl_ahead_miss(device);
        return FGMM_OK;
    }
    fgmm_status status = cl_read_end(device, &ahead->arrival, "parameters made ahead");
    if (status != FGMM_OK) {
        cl_ahead_miss(device);
        return status;
    }
    ahead->told = ahead->arrival.pinned.at;
    if (!ahead->settled) ahead->slice = cl_likely_slice(device, block, 0, most);
    return FGMM_OK;
}

fgmm_status cl_ahead_go_on(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_ahead *ahead = &engine->ahead;
    fgmm_block *block = ahead->slice.block;
    if (ahead->settled || !cl_settle_pays(device, block) || engine->now.kp != engine->kp) return FGMM_OK;
    fgmm_status status = cl_settle_early(device, &ahead->slice);
    int follows = status == FGMM_OK && block->row_bounds_of == engine->moved_from;
    ahead->settled = status == FGMM_OK && engine->reached;
    ahead->beyond = follows ? engine->moved_from : 0;
    block->row_bounds_of = 0; /* of some it is now of these parameters */
    return status;
}

/* As mark in ahead.cl, of `n` values. */
static FGMM_INTO_CLONES void add_marks(const double *values, const uint64_t *first, const uint64_t *second, size_t n,
                                       uint64_t *bits) {
    const uint64_t lower = UINT32_MAX;
    uint64_t one = 0, other = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t value, a, b;
        memcpy(&value, &values[i], sizeof value);
        a = value ^ first[i];
        b = value ^ second[i];
        one += (a >> 32) * (a & lower);
        other += (b >> 32) * (b & lower);
    }
    bits[0] += one;
    bits[1] += other;
}

/* Whether the device has component i's means and, if diagonal, factors. */
FGMM_CLONES static int has_values(const cl_engine *engine, size_t i) {
    const cl_ahead *ahead = &engine->ahead;
    const uint64_t *first = ahead->keys, *second = first + ahead->keys_n;
    size_t d = engine->d;
    uint64_t bits[2] = {0, 0};
    add_marks(engine->params.means + i * d, first, second, d, bits);
    if (engine->diag) add_marks(engine->params.half_inv_var + i * d, first + d, second + d, d, bits);
    return bits[0] == ahead->told[i].bits[0] && bits[1] == ahead->told[i].bits[1];
}

/* `off` is the device's alone: made of the same means and factors, with room for rounding. */
int cl_ahead_matches(const cl_engine *engine, size_t i, const float *constants) {
    const cl_told *told = &engine->ahead.told[i];
    float hi = 0.0f, lo = 0.0f;
    if (!engine->diag) cl_split(engine->params.half_inv_var[i], &hi, &lo);
    return has_values(engine, i) && (engine->diag || (hi == told->a_hi && lo == told->a_lo)) &&
           told->c1 <= constants[0] && told->c2 >= constants[1] && told->m >= constants[3];
}

int cl_ahead_bounds(const cl_engine *engine) {
    const cl_told *told = &engine->ahead.told[engine->k];
    return told->c1 >= engine->bounds.s[2] && told->c2 >= engine->bounds.s[3];
}
