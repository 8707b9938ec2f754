/* Blocks of rows on a device, and the engine's memory. */
#include "cl_engine.h"

#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

void *cl_alloc(fgmm_device *device, size_t bytes) {
    void *pointer = device->host.alloc(device->host.user, bytes ? bytes : 1);
    if (!pointer) device->host.fail(device->host.user, FGMM_ERR_MEMORY, "no memory for %zu bytes", bytes);
    return pointer;
}

void cl_release_memory(fgmm_device *device, void *pointer) {
    if (pointer) device->host.free(device->host.user, pointer);
}

int cl_threads(const fgmm_device *device, size_t cells) {
#ifdef _OPENMP
    enum { CELLS_A_THREAD = 4096 };
    int most = device->host.threads > 0 ? device->host.threads : omp_get_max_threads();
    size_t wanted = cells / CELLS_A_THREAD;
    return wanted < 1 ? 1 : wanted < (size_t)most ? (int)wanted : most;
#else
    (void)device;
    (void)cells;
    return 1;
#endif
}

size_t cl_round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

int64_t cl_power_of_two(int64_t least) {
    int64_t power = 1;
    while (power < least) power *= 2;
    return power;
}

fgmm_status cl_room_fit(fgmm_device *device, cl_room *room, size_t bytes, const char *what) {
    if (room->mem && room->bytes >= bytes) return FGMM_OK;
    cl_room_free(device, room);
    CL_TRY(cl_buffer(device, &room->mem, bytes, what));
    room->bytes = bytes;
    return FGMM_OK;
}

void cl_room_free(fgmm_device *device, cl_room *room) {
    cl_buffer_free(device, room->mem);
    room->mem = NULL;
    room->bytes = 0;
}

fgmm_status cl_fill(fgmm_device *device, cl_mem buffer, cl_uint word, size_t bytes, const char *what) {
    CL_CHECK(device, clEnqueueFillBuffer(device->queue, buffer, &word, sizeof word, 0, bytes, 0, NULL, NULL), what);
    return FGMM_OK;
}

/* Leaves pinned->mem NULL where there is no pinned memory to be had. */
static void try_pinned(fgmm_device *device, cl_pinned *pinned, size_t bytes) {
    enum { MOST_BYTES = 64 << 20 }; /* more than this is no small part of what a system pins */
    if (bytes > MOST_BYTES || bytes > device->max_alloc || (int64_t)bytes > device->limit_bytes - device->bytes) return;
    cl_int code = CL_SUCCESS;
    cl_mem mem = clCreateBuffer(device->context, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, bytes, NULL, &code);
    if (code != CL_SUCCESS) return;
    void *at =
        clEnqueueMapBuffer(device->queue, mem, CL_TRUE, CL_MAP_READ | CL_MAP_WRITE, 0, bytes, 0, NULL, NULL, &code);
    if (code != CL_SUCCESS) {
        clReleaseMemObject(mem);
        return;
    }
    device->bytes += (int64_t)bytes;
    if (device->peak_bytes < device->bytes) device->peak_bytes = device->bytes;
    *pinned = (cl_pinned){.mem = mem, .at = at, .bytes = bytes};
}

fgmm_status cl_pin(fgmm_device *device, size_t bytes) {
    cl_pinned *pinned = &device->engine->pinned;
    pinned->used = 0;
    if (pinned->at && pinned->bytes >= bytes) return FGMM_OK;
    cl_pinned_free(device);
    try_pinned(device, pinned, bytes);
    if (pinned->mem) return FGMM_OK;
    pinned->at = cl_alloc(device, bytes);
    if (!pinned->at) return FGMM_ERR_MEMORY;
    pinned->bytes = bytes;
    return FGMM_OK;
}

void cl_pinned_free(fgmm_device *device) {
    cl_pinned *pinned = &device->engine->pinned;
    if (pinned->mem) {
        clEnqueueUnmapMemObject(device->queue, pinned->mem, pinned->at, 0, NULL, NULL);
        clFinish(device->queue);
        cl_buffer_free(device, pinned->mem);
    } else if (pinned->at) {
        clFinish(device->queue); /* transfers from it may be under way */
        cl_release_memory(device, pinned->at);
    }
    *pinned = (cl_pinned){0};
}

fgmm_status cl_read_at(fgmm_device *device, cl_mem buffer, size_t at, size_t bytes, void *out, const char *what) {
    CL_CHECK(device, clEnqueueReadBuffer(device->queue, buffer, CL_TRUE, at, bytes, out, 0, NULL, NULL), what);
    return FGMM_OK;
}

fgmm_status cl_read(fgmm_device *device, cl_mem buffer, size_t bytes, void *out, const char *what) {
    return cl_read_at(device, buffer, 0, bytes, out, what);
}

fgmm_status cl_write_at(fgmm_device *device, cl_mem buffer, size_t at, size_t bytes, const void *data,
                        const char *what) {
    CL_CHECK(device, clEnqueueWriteBuffer(device->queue, buffer, CL_TRUE, at, bytes, data, 0, NULL, NULL), what);
    return FGMM_OK;
}

fgmm_status cl_write(fgmm_device *device, cl_mem buffer, size_t bytes, const void *data, const char *what) {
    return cl_write_at(device, buffer, 0, bytes, data, what);
}

fgmm_status cl_send(fgmm_device *device, cl_room *room, size_t bytes, const void *data, const char *what) {
    CL_TRY(cl_room_fit(device, room, bytes, what));
    return bytes ? cl_write(device, room->mem, bytes, data, what) : FGMM_OK;
}

/* Rows of f64, as f32 about the centre. */
static void narrow(float *out, const fgmm_block_source *source) {
    for (int64_t i = 0; i < source->n; i++) {
        const double *row = (const double *)((const char *)source->data + (size_t)i * source->stride_bytes);
        float *to = out + i * source->d;
        for (int64_t f = 0; f < source->d; f++) to[f] = (float)(source->centre ? row[f] - source->centre[f] : row[f]);
    }
}

static fgmm_status upload(fgmm_device *device, fgmm_block *block, int which, cl_mem buffer, size_t bytes,
                          const void *data) {
    CL_CHECK(device,
             clEnqueueWriteBuffer(device->queue, buffer, CL_FALSE, 0, bytes, data, 0, NULL, &block->written[which]),
             "bringing rows to the device");
    return FGMM_OK;
}

static fgmm_status put_host_rows(fgmm_device *device, fgmm_block *block, const fgmm_block_source *source) {
    size_t row_bytes = (size_t)source->d * (block->type == FGMM_F32                               ? 4
                                            : block->type == FGMM_F16 || block->type == FGMM_BF16 ? 2
                                                                                                  : 1);
    size_t bytes = row_bytes * (size_t)source->n;
    const void *data = source->data;
    CL_TRY(cl_buffer(device, &block->rows, bytes, "a block of rows"));
    block->owned = 1;
    block->pitch = (cl_ulong)source->d;
    if (source->type == FGMM_F64 || source->stride_bytes != row_bytes) {
        char *staging = block->staging[0] = cl_alloc(device, bytes);
        if (!staging) return FGMM_ERR_MEMORY;
        if (source->type == FGMM_F64)
            narrow((float *)block->staging[0], source);
        else
            for (int64_t i = 0; i < source->n; i++)
                memcpy(staging + (size_t)i * row_bytes, (const char *)data + (size_t)i * source->stride_bytes,
                       row_bytes);
        data = staging;
    }
    return upload(device, block, 0, block->rows, bytes, data);
}

static fgmm_status use_cl_rows(fgmm_device *device, fgmm_block *block, const fgmm_block_source *source) {
    size_t size = block->type == FGMM_F32 ? 4 : block->type == FGMM_F16 || block->type == FGMM_BF16 ? 2 : 1;
    CL_CHECK(device, clRetainMemObject(source->cl_mem), "retaining the caller's buffer");
    block->rows = source->cl_mem;
    block->offset = source->offset / size;
    block->pitch = source->stride_bytes / size;
    if (source->n_wait)
        CL_CHECK(device,
                 clEnqueueBarrierWithWaitList(device->queue, source->n_wait, (const cl_event *)source->wait_list, NULL),
                 "waiting for the caller's events");
    return FGMM_OK;
}

fgmm_status cl_put(fgmm_device *device, const fgmm_block_source *source, fgmm_block **out) {
    fgmm_status status = FGMM_OK;
    *out = NULL;
    fgmm_block *block = cl_alloc(device, sizeof *block);
    if (!block) return FGMM_ERR_MEMORY;
    memset(block, 0, sizeof *block);
    block->type = source->type == FGMM_F64 ? FGMM_F32 : source->type;
    block->first_row = source->first_row;
    block->n = source->n;
    block->d = source->d;
    if (source->type == FGMM_F64 && source->centre) {
        size_t bytes = (size_t)source->d * sizeof(double);
        block->centre = cl_alloc(device, bytes);
        if (!block->centre) CL_GO(FGMM_ERR_MEMORY);
        memcpy(block->centre, source->centre, bytes);
    }
    CL_GO(source->cl_mem ? use_cl_rows(device, block, source) : put_host_rows(device, block, source));
    if (source->weights) {
        size_t bytes = (size_t)source->n * sizeof(float);
        float *weights = block->staging[1] = cl_alloc(device, bytes);
        if (!weights) CL_GO(FGMM_ERR_MEMORY);
        for (int64_t i = 0; i < source->n; i++) weights[i] = (float)source->weights[i];
        CL_GO(cl_buffer(device, &block->weights, bytes, "the weights of a block"));
        CL_GO(upload(device, block, 1, block->weights, bytes, weights));
    }
    clFlush(device->queue);
    *out = block;
done:
    if (status != FGMM_OK) cl_release(device, block);
    return status;
}

fgmm_status cl_wait(fgmm_device *device, fgmm_block *block) {
    for (int i = 0; i < 2; i++) {
        if (!block->written[i]) continue;
        cl_int code = clWaitForEvents(1, &block->written[i]);
        clReleaseEvent(block->written[i]);
        block->written[i] = NULL;
        CL_CHECK(device, code, "bringing rows to the device");
    }
    for (int i = 0; i < 2; i++) {
        cl_release_memory(device, block->staging[i]);
        block->staging[i] = NULL;
    }
    return FGMM_OK;
}

void cl_release(fgmm_device *device, fgmm_block *block) {
    if (!block) return;
    /* The runtime keeps buffers until the work on them ends; the host's copies are ours to keep. */
    for (int i = 0; i < 2; i++) {
        if (!block->written[i]) continue;
        clWaitForEvents(1, &block->written[i]);
        clReleaseEvent(block->written[i]);
    }
    for (int i = 0; i < 2; i++) cl_release_memory(device, block->staging[i]);
    if (block->owned)
        cl_buffer_free(device, block->rows);
    else if (block->rows)
        clReleaseMemObject(block->rows);
    cl_buffer_free(device, block->weights);
    cl_buffer_free(device, block->hints);
    cl_release_memory(device, block->centre);
    cl_release_memory(device, block);
}
