/*
 * How rows come to the device: by a queue of their own, so that kernels work on the block before meanwhile; from pinned
 * memory, which a device of its own memory reads several times as fast; into buffers that go from block to block, since
 * freeing one may wait for all that the device does.
 */
#include "cl_engine.h"

#include <string.h>

/* ---- staging ---- */

/* The caller counts it with the host's memory. */
void *cl_stage(fgmm_device *device, size_t bytes) {
    for (int i = 0; i < CL_STAGES && !device->unified; i++) {
        if (device->stage[i].mem) continue;
        cl_pinned_open(device, &device->stage[i], bytes);
        return device->stage[i].at;
    }
    return NULL;
}

int cl_unstage(fgmm_device *device, void *pointer) {
    for (int i = 0; i < CL_STAGES && pointer; i++) {
        if (device->stage[i].at != pointer) continue;
        cl_pinned_close(device, &device->stage[i]);
        return 1;
    }
    return 0;
}

/* A buffer over memory pins it on NVIDIA's devices, and takes memory of theirs at its first use only: this one is not used. */
void *cl_pin_rows(fgmm_device *device, const void *data, size_t bytes) {
    if (device->unified || bytes > device->max_alloc) return NULL;
    cl_int code = CL_SUCCESS;
    void *memory = (void *)(uintptr_t)data; /* which CL_MEM_READ_ONLY leaves as it is */
    cl_mem pin = clCreateBuffer(device->context, CL_MEM_READ_ONLY | CL_MEM_USE_HOST_PTR, bytes, memory, &code);
    return code == CL_SUCCESS ? pin : NULL;
}

void cl_unpin_rows(fgmm_device *device, void *pin) {
    if (!pin) return;
    clFinish(device->copies);
    clReleaseMemObject(pin);
}

/* ---- buffers that go round ---- */

static void spare_free(fgmm_device *device, cl_spare *spare) {
    if (spare->last_use) clReleaseEvent(spare->last_use);
    cl_buffer_free(device, spare->rows);
    cl_buffer_free(device, spare->weights);
    cl_buffer_free(device, spare->hints);
    *spare = (cl_spare){0};
}

/* The list's first is the next to come again, as long as blocks come in their order. */
static cl_mem noted_take(fgmm_device *device, int64_t first_row, int64_t n) {
    cl_noted **at = &device->noted;
    while (*at && ((*at)->first_row != first_row || (*at)->n != n)) at = &(*at)->next;
    cl_noted *found = *at;
    if (!found) return NULL;
    cl_mem hints = found->hints;
    *at = found->next;
    if (device->noted_end == &found->next) device->noted_end = at;
    device->noted_bytes -= n * (int64_t)sizeof(cl_uint);
    cl_release_memory(device, found);
    return hints;
}

/* Keeps the block's hints, which are a small part of its rows, unless they come to much all the same. */
static void noted_give(fgmm_device *device, fgmm_block *block) {
    enum { SHARE = 16 };
    int64_t bytes = block->n * (int64_t)sizeof(cl_uint);
    if (!block->hinted || device->noted_bytes + bytes > device->limit_bytes / SHARE) return;
    cl_noted *noted = cl_alloc(device, sizeof *noted);
    if (!noted) return;
    *noted = (cl_noted){.hints = block->hints, .first_row = block->first_row, .n = block->n};
    if (!device->noted_end) device->noted_end = &device->noted;
    *device->noted_end = noted;
    device->noted_end = &noted->next;
    device->noted_bytes += bytes;
    block->hints = NULL;
}

static void block_spares_free(fgmm_device *device) {
    while (device->noted) cl_buffer_free(device, noted_take(device, device->noted->first_row, device->noted->n));
    for (int i = 0; i < CL_SPARES; i++) spare_free(device, &device->spare[i]);
}

void cl_spares_free(fgmm_device *device) {
    cl_buffer_free(device, device->spare_hints);
    device->spare_hints = NULL;
    block_spares_free(device);
}

/* Gives a block the buffers of one before it, if any are large enough. @param after what must be over first, or NULL */
static void spare_take(fgmm_device *device, fgmm_block *block, size_t bytes, cl_event *after) {
    *after = NULL;
    for (int i = 0; i < CL_SPARES; i++) {
        cl_spare *spare = &device->spare[i];
        if (!spare->rows || spare->bytes < bytes || spare->n < block->n) continue;
        block->rows = spare->rows;
        block->weights = spare->weights;
        block->hints = spare->hints;
        block->bytes = spare->bytes;
        block->room = spare->n;
        *after = spare->last_use;
        *spare = (cl_spare){0};
        return;
    }
}

/* Puts a block's buffers aside; without a place for them they stay the block's. */
static void spare_give(fgmm_device *device, fgmm_block *block) {
    for (int i = 0; i < CL_SPARES; i++) {
        cl_spare *spare = &device->spare[i];
        if (spare->rows) continue;
        cl_event last = NULL;
        if (clEnqueueMarkerWithWaitList(device->queue, 0, NULL, &last) != CL_SUCCESS) return;
        clFlush(device->queue); /* the other queue will wait for it */
        *spare = (cl_spare){.rows = block->rows,
                            .weights = block->weights,
                            .hints = block->hints,
                            .bytes = block->bytes,
                            .n = block->room,
                            .last_use = last};
        block->rows = block->weights = block->hints = NULL;
        return;
    }
}

/* Hints stay for the next call: a buffer of 4 MB costs NVIDIA's driver 0.08 ms at its first use and 0.07 to free, half of what it takes to
 * guess a million rows. */
void cl_transfer_end(fgmm_device *device) {
    block_spares_free(device);
}

static size_t buffer_bytes(cl_mem buffer) {
    size_t bytes = 0;
    return buffer && clGetMemObjectInfo(buffer, CL_MEM_SIZE, sizeof bytes, &bytes, NULL) == CL_SUCCESS ? bytes : 0;
}

fgmm_status cl_hints_open(fgmm_device *device, fgmm_block *block) {
    size_t room = (size_t)(block->owned ? block->room : block->n) * sizeof(cl_uint);
    if (block->hints) return FGMM_OK;
    if (buffer_bytes(device->spare_hints) >= room) {
        block->hints = device->spare_hints;
        device->spare_hints = NULL;
        return FGMM_OK;
    }
    return cl_buffer(device, &block->hints, room, "the rows' best components");
}

void cl_row_bounds_open(fgmm_device *device, fgmm_block *block) {
    if (!block->row_bounds) block->row_bounds = cl_optional_buffer(device, (size_t)block->n * sizeof(cl_uint));
}

/* The larger of two stays. */
static void hints_close(fgmm_device *device, fgmm_block *block) {
    if (buffer_bytes(block->hints) > buffer_bytes(device->spare_hints)) {
        cl_buffer_free(device, device->spare_hints);
        device->spare_hints = block->hints;
    } else {
        cl_buffer_free(device, block->hints);
    }
    block->hints = NULL;
}

/* ---- blocks ---- */

fgmm_dtype cl_stored_type(fgmm_dtype type) {
    return type == FGMM_F64 ? FGMM_F32 : type;
}

size_t cl_stored_size(fgmm_dtype stored) {
    return stored == FGMM_F32 ? 4 : stored == FGMM_F16 || stored == FGMM_BF16 ? 2 : 1;
}

/* Rows of f64, as f32 about the centre. */
static void narrow(float *out, const fgmm_block_source *source) {
    for (int64_t i = 0; i < source->n; i++) {
        const double *row = (const double *)((const char *)source->data + (size_t)i * source->stride_bytes);
        float *to = out + i * source->d;
        for (int64_t f = 0; f < source->d; f++) to[f] = (float)(source->centre ? row[f] - source->centre[f] : row[f]);
    }
}

static fgmm_status upload(fgmm_device *device, fgmm_block *block, int which, cl_mem buffer, size_t at, size_t bytes,
                          const void *data, const cl_event *after) {
    CL_CHECK(device,
             clEnqueueWriteBuffer(device->copies, buffer, CL_FALSE, at, bytes, data, after ? 1 : 0, after,
                                  &block->written[which]),
             "bringing rows to the device");
    return FGMM_OK;
}

static fgmm_status put_rows(fgmm_device *device, fgmm_block *block, const fgmm_block_source *source,
                            const cl_event *after) {
    size_t row_bytes = (size_t)source->d * cl_stored_size(block->type), bytes = row_bytes * (size_t)source->n;
    const void *data = source->data;
    if (!block->rows) {
        CL_TRY(cl_buffer(device, &block->rows, bytes, "a block of rows"));
        block->bytes = bytes;
        block->room = source->n;
    }
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
    return upload(device, block, 0, block->rows, block->offset * cl_stored_size(block->type), bytes, data, after);
}

static fgmm_status put_weights(fgmm_device *device, fgmm_block *block, const fgmm_block_source *source) {
    size_t bytes = (size_t)source->n * sizeof(float);
    float *weights = block->staging[1] = cl_alloc(device, bytes);
    if (!weights) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < source->n; i++) weights[i] = (float)source->weights[i];
    size_t room = (size_t)(block->owned ? block->room : source->n) * sizeof(float);
    if (!block->weights) CL_TRY(cl_buffer(device, &block->weights, room, "the weights of a block"));
    return upload(device, block, 1, block->weights, 0, bytes, weights, NULL);
}

static fgmm_status use_cl_rows(fgmm_device *device, fgmm_block *block, const fgmm_block_source *source) {
    size_t size = cl_stored_size(block->type);
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

static fgmm_status put_host_rows(fgmm_device *device, fgmm_block *block, const fgmm_block_source *source) {
    cl_event after = NULL;
    block->owned = 1;
    block->pitch = (cl_ulong)source->d;
    if (source->kept) {
        cl_stretch_join(device, source, block);
        block->owned = !block->stretch;
    } else {
        spare_take(device, block, (size_t)source->d * cl_stored_size(block->type) * (size_t)source->n, &after);
        cl_mem hints = noted_take(device, block->first_row, block->n);
        if (hints) {
            cl_buffer_free(device, block->hints);
            block->hints = hints;
            block->hinted = block->noted = 1;
        }
    }
    fgmm_status status = put_rows(device, block, source, after ? &after : NULL);
    if (after) clReleaseEvent(after);
    if (source->weights) return status;
    cl_buffer_free(device, block->weights);
    block->weights = NULL;
    return status;
}

fgmm_status cl_put(fgmm_device *device, const fgmm_block_source *source, fgmm_block **out) {
    fgmm_status status = FGMM_OK;
    *out = NULL;
    fgmm_block *block = cl_alloc(device, sizeof *block);
    if (!block) return FGMM_ERR_MEMORY;
    memset(block, 0, sizeof *block);
    block->type = cl_stored_type(source->type);
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
    if (source->weights) CL_GO(put_weights(device, block, source));
    clFlush(device->copies);
    /* A buffer that was refused its memory at the first write is no one else's. */
    block->passing = block->owned && !source->kept;
    block->kept = source->kept;
    *out = block;
done:
    if (status != FGMM_OK) cl_release(device, block);
    return status;
}

/* Adds what a copy took, where the queue tells. */
static void count_seconds(fgmm_device *device, cl_event copy) {
    cl_ulong from = 0, to = 0;
    if (clGetEventProfilingInfo(copy, CL_PROFILING_COMMAND_START, sizeof from, &from, NULL) == CL_SUCCESS &&
        clGetEventProfilingInfo(copy, CL_PROFILING_COMMAND_END, sizeof to, &to, NULL) == CL_SUCCESS && to > from)
        device->copy_seconds += 1e-9 * (double)(to - from);
}

/* Waits for the copies and frees what they were made from. */
static cl_int await_copies(fgmm_device *device, fgmm_block *block) {
    cl_int failed = CL_SUCCESS;
    for (int i = 0; i < 2; i++) {
        if (block->written[i]) {
            cl_int code = clWaitForEvents(1, &block->written[i]), said = code;
            if (code == CL_SUCCESS) {
                count_seconds(device, block->written[i]);
            } else { /* the event says why it failed, the wait only that it did */
                clGetEventInfo(block->written[i], CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof said, &said, NULL);
                failed = said < 0 ? said : code;
            }
            clReleaseEvent(block->written[i]);
            block->written[i] = NULL;
        }
        cl_release_memory(device, block->staging[i]);
        block->staging[i] = NULL;
    }
    return failed;
}

fgmm_status cl_wait(fgmm_device *device, fgmm_block *block) {
    cl_int failed = await_copies(device, block);
    if (failed != CL_SUCCESS) block->passing = 0; /* its buffers are no one else's */
    CL_CHECK(device, failed, "bringing rows to the device");
    return FGMM_OK;
}

void cl_release(fgmm_device *device, fgmm_block *block) {
    if (!block) return;
    cl_ahead_leave(device, block);
    /* The runtime keeps buffers until the work on them ends; the host's copies are ours to keep. */
    cl_int failed = await_copies(device, block);
    if (block->passing && block->rows && failed == CL_SUCCESS) {
        noted_give(device, block);
        if (block->noted) { /* too small for another block, if they are still its own */
            cl_buffer_free(device, block->hints);
            block->hints = NULL;
        }
        spare_give(device, block);
    }
    if (block->stretch)
        cl_stretch_leave(device, block);
    else if (block->owned)
        cl_buffer_free(device, block->rows);
    else if (block->rows)
        clReleaseMemObject(block->rows);
    cl_buffer_free(device, block->weights);
    hints_close(device, block);
    cl_buffer_free(device, block->row_bounds);
    cl_release_memory(device, block->centre);
    cl_release_memory(device, block);
}
