/* Sums over all rows so far, added up in the order of superchunks: see cl_tally in cl_engine.h. */
#include "cl_engine.h"

enum { READ_BYTES = 16 << 20 };

static size_t cells(const cl_tally *tally) {
    return tally->lines * tally->width;
}

void cl_tally_reset(cl_tally *tally, size_t lines, size_t width, int64_t grain, uint32_t slots) {
    tally->lines = lines;
    tally->width = width;
    tally->grain = grain;
    tally->slots = slots;
    tally->started = 0;
    tally->current = -1;
}

double cl_tally_bytes(const cl_tally *tally) {
    return (double)cells(tally) * sizeof(cl_float2) * (1.0 + (tally->grain ? tally->slots : 0));
}

static fgmm_status fold(fgmm_device *device, cl_tally *tally, cl_uint slots, cl_uint move) {
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "accumulate", "-DROW_TYPE=0", "fold"));
    cl_ulong count = cells(tally);
    size_t local = 64 < device->max_work_group ? 64 : 1, global = cl_round_up(count, local);
    return CL_RUN(device, kernel, "folding sums", 1, &global, &local, CL_ARG(tally->part.mem), CL_ARG(tally->total.mem),
                  CL_ARG(count), CL_ARG(slots), CL_ARG(move));
}

fgmm_status cl_tally_open(fgmm_device *device, cl_tally *tally, int64_t first, cl_uint slots, cl_uint *resume,
                          cl_mem *part) {
    size_t bytes = cells(tally) * sizeof(cl_float2);
    if (!tally->started) {
        const cl_float zero = 0.0f;
        CL_TRY(cl_room_fit(device, &tally->total, bytes, "the sums"));
        CL_CHECK(device,
                 clEnqueueFillBuffer(device->queue, tally->total.mem, &zero, sizeof zero, 0, bytes, 0, NULL, NULL),
                 "clearing the sums");
        if (tally->grain) CL_TRY(cl_room_fit(device, &tally->part, bytes * tally->slots, "partial sums"));
        tally->started = 1;
    }
    *part = tally->grain ? tally->part.mem : tally->total.mem;
    *resume = 1;
    if (!tally->grain) return FGMM_OK;
    *resume = tally->current == first;
    if (!*resume && tally->current >= 0) CL_TRY(fold(device, tally, 1, 0));
    tally->current = first + slots - 1;
    return FGMM_OK;
}

fgmm_status cl_tally_close(fgmm_device *device, cl_tally *tally, cl_uint slots) {
    if (!tally->grain || slots == 1) return FGMM_OK;
    return fold(device, tally, slots - 1, 1);
}

void cl_tally_add_component(const cl_engine *engine, size_t line, const cl_float2 *sums, fgmm_sums *out) {
    size_t c = (size_t)engine->ids[line], d = engine->d;
    for (size_t f = 0; f < d; f++) {
        const cl_float2 *s1 = &sums[f], *s2 = &sums[d + f];
        out->s1[c * d + f] += (double)s1->s[0] + (double)s1->s[1];
        if (!engine->tied && !engine->full)
            out->s2[engine->diag ? c * d + f : c] += (double)s2->s[0] + (double)s2->s[1];
    }
    out->s0[c] += (double)sums[2 * d].s[0] + (double)sums[2 * d].s[1];
}

fgmm_status cl_tally_collect(fgmm_device *device, cl_tally *tally, cl_tally_add *add, fgmm_sums *out) {
    const cl_engine *engine = device->engine;
    if (!tally->started) return FGMM_OK;
    if (tally->current >= 0) CL_TRY(fold(device, tally, 1, 0));
    tally->current = -1;
    size_t row = tally->width * sizeof(cl_float2);
    size_t step = READ_BYTES / row ? READ_BYTES / row : 1;
    if (step > tally->lines) step = tally->lines;
    cl_float2 *sums = cl_alloc(device, step * row);
    if (!sums) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_OK;
    for (size_t i = 0; i < tally->lines; i += step) {
        size_t count = i + step < tally->lines ? step : tally->lines - i;
        CL_GO(cl_read_at(device, tally->total.mem, i * row, count * row, sums, "reading the sums"));
        for (size_t j = 0; j < count; j++) add(engine, i + j, sums + j * tally->width, out);
    }
done:
    cl_release_memory(device, sums);
    return status;
}

void cl_tally_free(fgmm_device *device, cl_tally *tally) {
    cl_room_free(device, &tally->total);
    cl_room_free(device, &tally->part);
}
