/* Column sums, the scan for NaN and Inf, and single rows. */
#include "cl_engine.h"

#include <math.h>
#include <stdio.h>

enum {
    SUM_BYTES = 16 << 20,
    GATHER_BYTES = 16 << 20,
    SCAN_BYTES = 1 << 30 /* under 100 ms on a slow GPU */,
    FOUND_BYTES = 3 * sizeof(cl_uint)
};

static void moments_options(char *out, size_t size, const fgmm_block *block) {
    snprintf(out, size, "-DROW_TYPE=%d -DROW_FOURS=%d", (int)block->type,
             cl_row_fours((cl_uint)block->d, block->offset, block->pitch));
}

static int may_be_bad(const fgmm_block *block) {
    return block->type != FGMM_U8 && block->type != FGMM_I8;
}

/* found [3], bad [n] or NULL: of find_bad in moments.cl. */
static fgmm_status run_find_bad(fgmm_device *device, const fgmm_block *block, cl_mem bad, cl_mem found) {
    cl_kernel kernel = NULL;
    char options[64];
    cl_uint d = (cl_uint)block->d;
    cl_float most = 0x1p62f / sqrtf((float)d); /* a row of these has a squared norm of 2^124 */
    moments_options(options, sizeof options, block);
    CL_TRY(cl_kernel_get(device, &kernel, "moments", options, "find_bad"));
    CL_TRY(cl_fill(device, found, 0, FOUND_BYTES, "clearing counts"));
    int64_t row_bytes = block->d * (int64_t)cl_stored_size(block->type), step = (SCAN_BYTES / row_bytes / 64 + 1) * 64;
    for (int64_t row = 0; row < block->n; row += step) {
        if (row) CL_TRY(cl_breathe(device));
        cl_uint first = (cl_uint)row, n = (cl_uint)(block->n - row < step ? block->n - row : step);
        size_t local = 64, global = cl_round_up(n, 64 /* rows a work-group */) / 64 * local;
        CL_TRY(CL_RUN(device, kernel, "looking for NaN", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                      CL_ARG(block->pitch), CL_ARG(first), CL_ARG(n), CL_ARG(d), CL_ARG(most), CL_ARG(block->weights),
                      CL_ARG(bad), CL_ARG(found)));
    }
    return FGMM_OK;
}

static fgmm_status tell_bad(fgmm_device *device, fgmm_block *block, const cl_uint *found, fgmm_moments *io) {
    io->bad_count += found[0];
    if (found[2]) io->overflows = 1;
    if (!found[0] || io->bad_row >= 0) return FGMM_OK;
    int64_t row = (cl_uint)~found[1];
    double *values = cl_alloc(device, (size_t)block->d * sizeof *values);
    if (!values) return FGMM_ERR_MEMORY;
    fgmm_status status = cl_gather(device, block, &row, 1, values);
    if (status == FGMM_OK) {
        int64_t column = 0;
        while (column < block->d - 1 && isfinite(values[column])) column++;
        io->bad_row = block->first_row + row;
        io->bad_column = column;
    }
    cl_release_memory(device, values);
    return status;
}

/* *bad: marks for column_sums, or NULL where the type has no NaN. */
static fgmm_status find_bad(fgmm_device *device, fgmm_block *block, cl_mem *bad, fgmm_moments *io) {
    cl_mem found_mem = NULL;
    cl_uint found[FOUND_BYTES / sizeof(cl_uint)];
    fgmm_status status = FGMM_OK;
    *bad = NULL;
    if (!may_be_bad(block)) return FGMM_OK;
    CL_GO(cl_buffer(device, bad, (size_t)block->n * sizeof(cl_uint), "marks of bad rows"));
    CL_GO(cl_buffer(device, &found_mem, sizeof found, "marks of bad rows"));
    CL_GO(run_find_bad(device, block, *bad, found_mem));
    CL_GO(cl_read(device, found_mem, sizeof found, found, "marks of bad rows"));
    status = tell_bad(device, block, found, io);
done:
    cl_buffer_free(device, found_mem);
    return status;
}

/* Without moments. While the device looks, the host makes ready what comes next of these rows. */
static fgmm_status look(fgmm_device *device, fgmm_block *block, fgmm_moments *io) {
    cl_engine *engine = device->engine;
    if (!may_be_bad(block)) return FGMM_OK;
    CL_TRY(cl_room_fit(device, &engine->found, FOUND_BYTES, "marks of bad rows"));
    CL_TRY(run_find_bad(device, block, NULL, engine->found.mem));
    CL_TRY(cl_read_begin(device, &engine->looked, engine->found.mem, 0, FOUND_BYTES, "marks of bad rows"));
    CL_TRY(cl_rows_ahead(device, block));
    CL_TRY(cl_read_end(device, &engine->looked, "marks of bad rows"));
    return tell_bad(device, block, engine->looked.pinned.at, io);
}

/* The centre as two floats, as the block's rows see it. */
static fgmm_status send_centre(fgmm_device *device, const fgmm_block *block, const double *centre, cl_mem out[2]) {
    size_t d = (size_t)block->d;
    fgmm_status status = FGMM_OK;
    float *parts = cl_alloc(device, 2 * d * sizeof *parts);
    if (!parts) return FGMM_ERR_MEMORY;
    for (size_t f = 0; f < d; f++) {
        double value = centre[f] - (block->centre ? block->centre[f] : 0.0);
        parts[f] = (float)value;
        parts[d + f] = (float)(value - (double)parts[f]);
    }
    for (int i = 0; i < 2; i++) {
        CL_GO(cl_buffer(device, &out[i], d * sizeof *parts, "a centre"));
        CL_GO(cl_write(device, out[i], d * sizeof *parts, parts + (size_t)i * d, "a centre"));
    }
done:
    cl_release_memory(device, parts);
    return status;
}

static void add_chunks(const cl_float4 *sums, size_t chunks, size_t d, fgmm_moments *io) {
    for (size_t i = 0; i < chunks; i++, sums += d + 1) {
        for (size_t f = 0; f < d; f++) {
            io->sum[f] += (double)sums[f].s[0] + (double)sums[f].s[1];
            io->square[f] += (double)sums[f].s[2] + (double)sums[f].s[3];
        }
        io->weight += (double)sums[d].s[0] + (double)sums[d].s[1];
    }
}

fgmm_status cl_moments(fgmm_device *device, fgmm_block *block, const double *centre, fgmm_moments *io) {
    if (!centre) return look(device, block, io);
    cl_kernel kernel = NULL;
    cl_mem bad = NULL, centres[2] = {NULL, NULL}, out = NULL;
    cl_float4 *sums = NULL;
    char options[64];
    cl_uint d = (cl_uint)block->d;
    fgmm_status status = FGMM_OK;
    size_t width = ((size_t)d + 1) * sizeof *sums, chunks = ((size_t)block->n + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS;
    size_t step = SUM_BYTES / width ? SUM_BYTES / width : 1;
    if (step > chunks) step = chunks;
    moments_options(options, sizeof options, block);
    CL_GO(find_bad(device, block, &bad, io));
    CL_GO(send_centre(device, block, centre, centres));
    CL_GO(cl_buffer(device, &out, step * width, "column sums"));
    sums = cl_alloc(device, step * width);
    if (!sums) CL_GO(FGMM_ERR_MEMORY);
    CL_GO(cl_kernel_get(device, &kernel, "moments", options, "column_sums"));
    for (size_t i = 0; i < chunks; i += step) {
        size_t count = i + step < chunks ? step : chunks - i, local = 64, global = cl_round_up(count * (d + 1u), local);
        int64_t rest = block->n - (int64_t)i * FGMM_CHUNK_ROWS, most = (int64_t)count * FGMM_CHUNK_ROWS;
        cl_uint first = (cl_uint)(i * FGMM_CHUNK_ROWS), n = (cl_uint)(rest < most ? rest : most);
        CL_GO(CL_RUN(device, kernel, "column sums", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                     CL_ARG(block->pitch), CL_ARG(first), CL_ARG(n), CL_ARG(d), CL_ARG(centres[0]), CL_ARG(centres[1]),
                     CL_ARG(block->weights), CL_ARG(bad), CL_ARG(out)));
        CL_GO(cl_read(device, out, count * width, sums, "column sums"));
        add_chunks(sums, count, d, io);
    }
done:
    cl_release_memory(device, sums);
    cl_buffer_free(device, out);
    cl_buffer_free(device, centres[0]);
    cl_buffer_free(device, centres[1]);
    cl_buffer_free(device, bad);
    return status;
}

/* One batch: numbers and values are scratch of `count` rows on the host, mems on the device. */
static fgmm_status gather_batch(fgmm_device *device, const fgmm_block *block, cl_kernel kernel, const int64_t *rows,
                                size_t count, cl_uint *numbers, float *values, const cl_mem mems[2], double *out) {
    cl_uint d = (cl_uint)block->d;
    cl_ulong many = count;
    for (size_t i = 0; i < count; i++) numbers[i] = (cl_uint)rows[i];
    CL_TRY(cl_write(device, mems[0], count * sizeof *numbers, numbers, "gathering rows"));
    size_t local = 64, global = cl_round_up(count * d, local);
    CL_TRY(CL_RUN(device, kernel, "gathering rows", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(d), CL_ARG(mems[0]), CL_ARG(many), CL_ARG(mems[1])));
    CL_TRY(cl_read(device, mems[1], count * d * sizeof *values, values, "gathering rows"));
    for (size_t i = 0; i < count; i++)
        for (size_t f = 0; f < d; f++)
            out[i * d + f] = (double)values[i * d + f] + (block->centre ? block->centre[f] : 0.0);
    return FGMM_OK;
}

fgmm_status cl_gather(fgmm_device *device, fgmm_block *block, const int64_t *rows, int64_t count, double *out) {
    cl_kernel kernel = NULL;
    cl_mem mems[2] = {NULL, NULL};
    char options[64];
    size_t d = (size_t)block->d, total = (size_t)count, step = GATHER_BYTES / (d * sizeof(float)) + 1;
    fgmm_status status = FGMM_OK;
    if (total == 0) return FGMM_OK;
    if (step > total) step = total;
    moments_options(options, sizeof options, block);
    float *values = cl_alloc(device, step * (d + 1) * sizeof *values);
    if (!values) return FGMM_ERR_MEMORY;
    cl_uint *numbers = (cl_uint *)(values + step * d);
    CL_GO(cl_kernel_get(device, &kernel, "moments", options, "gather"));
    CL_GO(cl_buffer(device, &mems[0], step * sizeof *numbers, "gathering rows"));
    CL_GO(cl_buffer(device, &mems[1], step * d * sizeof *values, "gathering rows"));
    for (size_t i = 0; i < total; i += step) {
        size_t many = i + step < total ? step : total - i;
        CL_GO(gather_batch(device, block, kernel, rows + i, many, numbers, values, mems, out + i * d));
    }
done:
    cl_buffer_free(device, mems[0]);
    cl_buffer_free(device, mems[1]);
    cl_release_memory(device, values);
    return status;
}
