/* Sums over all rows so far, added up in the order of superchunks: see cl_tally in cl_engine.h. */
#include "cl_engine.h"

#include "../lib/clones.h"

#include <math.h>

enum { READ_BYTES = 4 << 20, WIDE_READ_BYTES = 16 << 20, LEAST_LINES = 16 /* which threads share */ };

static size_t cells(const cl_tally *tally) {
    return tally->lines * tally->width;
}

void cl_tally_reset(cl_tally *tally, size_t lines, size_t width, int64_t grain, uint32_t slots) {
    tally->lines = lines;
    tally->width = width;
    tally->grain = grain;
    tally->slots = slots;
    tally->holds = 0;
    tally->started = 0;
    tally->current = -1;
}

/* Of part: those of superchunks, and the one for floats under way. */
static size_t slots_of(const cl_tally *tally) {
    return (tally->grain ? tally->slots : 0) + (size_t)tally->holds;
}

double cl_tally_bytes(const cl_tally *tally) {
    return (double)cells(tally) * sizeof(cl_float2) * (1.0 + (double)slots_of(tally));
}

static fgmm_status fold(fgmm_device *device, cl_tally *tally, cl_uint slots, cl_uint move, cl_uint held) {
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "tally", "", "fold"));
    cl_ulong count = cells(tally);
    size_t local = 64 < device->max_work_group ? 64 : 1, global = cl_round_up(count, local);
    return CL_RUN(device, kernel, "folding sums", 1, &global, &local, CL_ARG(tally->part.mem), CL_ARG(tally->total.mem),
                  CL_ARG(count), CL_ARG(slots), CL_ARG(move), CL_ARG(held));
}

static fgmm_status arrive(fgmm_device *device, cl_tally *tally) {
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "tally", "", "arrive"));
    cl_ulong count = cells(tally);
    size_t local = 64 < device->max_work_group ? 64 : 1, global = cl_round_up(count, local);
    return CL_RUN(device, kernel, "folding sums", 1, &global, &local, CL_ARG(tally->part.mem), CL_ARG(tally->total.mem),
                  CL_ARG(count));
}

/* The superchunk or, without them, the floats under way, of which no more is to come. */
static fgmm_status finish(fgmm_device *device, cl_tally *tally) {
    if (tally->current < 0) return FGMM_OK;
    if (tally->grain) CL_TRY(fold(device, tally, 1, 0, cl_tally_held(tally)));
    if (!tally->grain && tally->holds) CL_TRY(arrive(device, tally));
    tally->current = -1;
    return FGMM_OK;
}

fgmm_status cl_tally_open(fgmm_device *device, cl_tally *tally, int64_t first, cl_uint slots, cl_uint *resume,
                          cl_mem *part) {
    size_t bytes = cells(tally) * sizeof(cl_float2);
    if (!tally->started) {
        CL_TRY(cl_room_fit(device, &tally->total, bytes, "the sums"));
        CL_TRY(cl_fill(device, tally->total.mem, 0, bytes, "clearing the sums"));
        if (slots_of(tally)) CL_TRY(cl_room_fit(device, &tally->part, bytes * slots_of(tally), "partial sums"));
        if (!tally->grain && tally->holds) CL_TRY(cl_fill(device, tally->part.mem, 0, bytes, "clearing the sums"));
        tally->started = 1;
    }
    *part = tally->grain ? tally->part.mem : tally->total.mem;
    *resume = 1;
    if (tally->grain) {
        *resume = tally->current == first;
        if (!*resume) CL_TRY(finish(device, tally));
    }
    tally->current = first + slots - 1;
    return FGMM_OK;
}

fgmm_status cl_tally_close(fgmm_device *device, cl_tally *tally, cl_uint slots, int whole) {
    if (!tally->grain) return FGMM_OK;
    if (whole) tally->current = -1;
    if (whole) return fold(device, tally, slots, 0, 0);
    return slots > 1 ? fold(device, tally, slots - 1, 1, 0) : FGMM_OK;
}

static FGMM_INTO_CLONES void add_means(const cl_engine *engine, size_t c, const cl_float2 *sums, fgmm_sums *out) {
    double *s1 = out->s1 + c * engine->d;
    for (size_t f = 0; f < engine->d; f++) s1[f] += (double)sums[f].s[0] + (double)sums[f].s[1];
}

/* A component's part in the log-likelihood of its rows, and what rounds in it: see add_shares in cl_estep.c. square: a S2. */
static void set_share(const cl_engine *engine, size_t line, double s0, double square) {
    const fgmm_params *params = &engine->params;
    size_t c = (size_t)engine->ids[line];
    double norm = params->log_norm[c], log_w = params->log_weights[c];
    engine->shares[2 * line] = (norm + log_w) * s0 - square;
    engine->shares[2 * line + 1] = 32.0 * square + engine->count_units * (fabs(norm) + fabs(log_w) + 1.0) * s0;
}

/* A line [2 D + 1]. */
FGMM_CLONES static void add_diag(const cl_engine *engine, size_t line, const cl_float2 *sums, fgmm_sums *out) {
    size_t c = (size_t)engine->ids[line], d = engine->d;
    const double *a = engine->params.half_inv_var + c * d;
    double *s2 = out->s2 + c * d, s0 = (double)sums[2 * d].s[0] + (double)sums[2 * d].s[1], square = 0.0;
    add_means(engine, c, sums, out);
    for (size_t f = 0; f < d; f++) {
        double sum = (double)sums[d + f].s[0] + (double)sums[d + f].s[1];
        s2[f] += sum;
        square += a[f] * sum;
    }
    out->s0[c] += s0;
    if (engine->alone) set_share(engine, line, s0, square);
}

/* A line [D + 2]. Tied and full: the squares have sums of their own. */
FGMM_CLONES static void add_narrow(const cl_engine *engine, size_t line, const cl_float2 *sums, fgmm_sums *out) {
    size_t c = (size_t)engine->ids[line], d = engine->d;
    double s0 = (double)sums[d + 1].s[0] + (double)sums[d + 1].s[1], s2 = (double)sums[d].s[0] + (double)sums[d].s[1];
    add_means(engine, c, sums, out);
    if (!engine->tied && !engine->full) out->s2[c] += s2;
    out->s0[c] += s0;
    if (engine->alone) set_share(engine, line, s0, engine->params.half_inv_var[c] * s2);
}

/* Lines that are read, `step` at a time: `width` pairs of each. */
typedef struct reading {
    const cl_tally *tally;
    cl_kernel narrow; /* lines [2 D + 1] come as [D + 2]; or NULL */
    size_t width, step;
    cl_tally_add *add;
    fgmm_sums *out;
} reading;

static size_t lines_of(const reading *r, size_t piece) {
    size_t left = r->tally->lines - piece * r->step;
    return left < r->step ? left : r->step;
}

static fgmm_status ask_lines(fgmm_device *device, void *user, size_t piece, cl_arrival *out) {
    cl_engine *engine = device->engine;
    const reading *r = user;
    size_t row = r->width * sizeof(cl_float2), line = piece * r->step, count = lines_of(r, piece);
    size_t local = CL_NARROW, global = count * local, at = line * row;
    cl_uint line0 = (cl_uint)line;
    cl_mem from = r->tally->total.mem;
    if (r->narrow) {
        CL_TRY(cl_room_fit(device, &engine->narrow, r->step * row, "the sums"));
        CL_TRY(CL_RUN(device, r->narrow, "summing squares", 1, &global, &local, CL_ARG(from), CL_ARG(line0),
                      CL_ARG(engine->d), CL_ARG(engine->narrow.mem)));
        from = engine->narrow.mem;
        at = 0;
    }
    CL_TRY(cl_read_begin(device, out, from, at, count * row, "reading the sums"));
    /* All that the M-step takes is on its way: the device may go on. */
    return r->tally == &engine->sparse && line + count == r->tally->lines ? cl_ahead_begin(device) : FGMM_OK;
}

static void add_lines(fgmm_device *device, void *user, size_t piece, const void *from) {
    const reading *r = user;
    const cl_float2 *sums = from;
    size_t line = piece * r->step, count = lines_of(r, piece);
#pragma omp parallel for num_threads(cl_threads(device, count * r->width)) if (count > 1)
    for (size_t j = 0; j < count; j++) r->add(device->engine, line + j, sums + j * r->width, r->out);
}

static fgmm_status collect(fgmm_device *device, cl_tally *tally, cl_kernel narrow, size_t width, cl_tally_add *add,
                           fgmm_sums *out) {
    size_t lines = tally->lines, row = width * sizeof(cl_float2), fit = READ_BYTES / row;
    if (fit < LEAST_LINES) fit = WIDE_READ_BYTES / row < LEAST_LINES ? WIDE_READ_BYTES / row : LEAST_LINES;
    reading r = {tally, narrow, width, fit < 1 ? 1 : fit < lines ? fit : lines, add, out};
    CL_TRY(finish(device, tally));
    size_t ahead = r.step * row > READ_BYTES ? 2 : CL_PIECES;
    return cl_read_pieces(device, (lines + r.step - 1) / r.step, ahead, ask_lines, add_lines, &r, "reading the sums");
}

fgmm_status cl_tally_collect(fgmm_device *device, cl_tally *tally, cl_tally_add *add, fgmm_sums *out) {
    return tally->started ? collect(device, tally, NULL, tally->width, add, out) : FGMM_OK;
}

fgmm_status cl_tally_collect_components(fgmm_device *device, cl_tally *tally, fgmm_sums *out) {
    const cl_engine *engine = device->engine;
    cl_kernel narrow = NULL;
    if (engine->diag || !tally->started) return cl_tally_collect(device, tally, add_diag, out);
    CL_TRY(cl_kernel_get(device, &narrow, "tally", "", "narrow"));
    return collect(device, tally, narrow, (size_t)engine->d + 2, add_narrow, out);
}

void cl_tally_free(fgmm_device *device, cl_tally *tally) {
    cl_room_free(device, &tally->total);
    cl_room_free(device, &tally->part);
}
