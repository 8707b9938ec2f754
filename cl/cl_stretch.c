/*
 * Rows that stay on the device lie in one buffer, a stretch, though they come in several blocks, which staging keeps small. A pass then takes them
 * all at once, and pays once for what it would pay for each block. The blocks own parts of it: the first pass, in which they arrive, takes each
 * beside the copy of the next, which is a write to one part while kernels read another.
 */
#include "cl_engine.h"

#include <string.h>

/* Of so many bytes at most: rows beyond are another stretch. */
#define MOST_BYTES ((int64_t)1 << 30)
enum { WORD = sizeof(cl_uint) }; /* a hint, a word of bounds, a weight */

struct cl_stretch {
    cl_mem rows, hints, row_bounds, weights; /* weights: NULL as long as no block has any */
    int64_t first_row, n, d, filled;
    fgmm_dtype type;
    fgmm_block *first, *last; /* in order, by next */
    int64_t blocks;           /* that hold it */
    int broken;               /* one has been released */
};

static void stretch_free(fgmm_device *device, cl_stretch *stretch) {
    if (device->stretch == stretch) device->stretch = NULL;
    cl_buffer_free(device, stretch->rows);
    cl_buffer_free(device, stretch->hints);
    cl_buffer_free(device, stretch->row_bounds);
    cl_buffer_free(device, stretch->weights);
    cl_release_memory(device, stretch);
}

/* For whole blocks of the source's, as many as stay with it and one buffer holds. @return NULL for a single one, or without the memory */
static cl_stretch *stretch_new(fgmm_device *device, const fgmm_block_source *source, const fgmm_block *block) {
    int64_t row_bytes = source->d * (int64_t)cl_stored_size(block->type), n = source->together;
    int64_t most = device->max_alloc < (size_t)MOST_BYTES ? (int64_t)device->max_alloc : MOST_BYTES;
    int64_t widest = row_bytes < WORD ? WORD : row_bytes;
    if (n > most / widest) n = most / widest / source->n * source->n;
    if (n <= source->n || (double)n * (double)(row_bytes + 3 * WORD) > (double)(device->limit_bytes - device->bytes))
        return NULL;
    cl_stretch *stretch = cl_alloc(device, sizeof *stretch);
    if (!stretch) return NULL;
    *stretch = (cl_stretch){.first_row = source->first_row, .n = n, .d = source->d, .type = block->type};
    stretch->rows = cl_optional_buffer(device, (size_t)(n * row_bytes));
    if (stretch->rows) stretch->hints = cl_optional_buffer(device, (size_t)(n * WORD));
    if (stretch->hints) stretch->row_bounds = cl_optional_buffer(device, (size_t)(n * WORD));
    if (stretch->row_bounds) return device->stretch = stretch;
    stretch_free(device, stretch);
    return NULL;
}

/* Words `base` .. base + n - 1 of a buffer. @return NULL where the device has no such part */
static cl_mem part_of(cl_mem buffer, int64_t base, int64_t n) {
    cl_int code = CL_SUCCESS;
    cl_buffer_region region = {(size_t)(base * WORD), (size_t)(n * WORD)};
    cl_mem part = clCreateSubBuffer(buffer, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, &code);
    return code == CL_SUCCESS ? part : NULL;
}

static int follows(const cl_stretch *stretch, const fgmm_block_source *source, const fgmm_block *block) {
    return stretch && stretch->first_row + stretch->filled == source->first_row &&
           stretch->filled + source->n <= stretch->n && stretch->d == source->d && stretch->type == block->type;
}

void cl_stretch_join(fgmm_device *device, const fgmm_block_source *source, fgmm_block *block) {
    cl_stretch *stretch = device->stretch;
    if (!follows(stretch, source, block)) stretch = stretch_new(device, source, block);
    if (!stretch) return;
    int64_t base = stretch->filled;
    cl_mem hints = part_of(stretch->hints, base, source->n), row_bounds = part_of(stretch->row_bounds, base, source->n);
    cl_mem weights = NULL;
    if (source->weights && !stretch->weights)
        stretch->weights = cl_optional_buffer(device, (size_t)(stretch->n * WORD));
    if (source->weights && stretch->weights) weights = part_of(stretch->weights, base, source->n);
    if (!hints || !row_bounds || !weights != !source->weights || clRetainMemObject(stretch->rows) != CL_SUCCESS) {
        if (hints) clReleaseMemObject(hints);
        if (row_bounds) clReleaseMemObject(row_bounds);
        if (weights) clReleaseMemObject(weights);
        if (!stretch->blocks) stretch_free(device, stretch);
        return;
    }
    block->stretch = stretch;
    block->rows = stretch->rows;
    block->hints = hints;
    block->row_bounds = row_bounds;
    block->weights = weights;
    block->offset = (cl_ulong)(base * source->d);
    stretch->filled += source->n;
    stretch->blocks++;
    if (stretch->last)
        stretch->last->next = block;
    else
        stretch->first = block;
    stretch->last = block;
}

void cl_stretch_leave(fgmm_device *device, fgmm_block *block) {
    cl_stretch *stretch = block->stretch;
    fgmm_block **at = &stretch->first;
    if (device->engine && device->engine->waiting == stretch) {
        device->engine->waiting = NULL;
        device->engine->waiting_lost = 1;
    }
    if (device->stretch == stretch) device->stretch = NULL; /* none joins a stretch that has lost one */
    stretch->broken = 1;
    while (*at != block) at = &(*at)->next;
    *at = block->next;
    clReleaseMemObject(block->rows);
    clReleaseMemObject(block->hints);
    clReleaseMemObject(block->row_bounds);
    if (block->weights) clReleaseMemObject(block->weights);
    block->rows = block->hints = block->row_bounds = block->weights = NULL;
    if (--stretch->blocks == 0) stretch_free(device, stretch);
}

/* Whether a pass may take the blocks as one. */
static int is_whole(const cl_stretch *stretch) {
    const fgmm_block *first = stretch->first;
    size_t bytes = (size_t)stretch->d * sizeof(double);
    if (stretch->broken || stretch->filled < stretch->n) return 0;
    for (const fgmm_block *block = first; block; block = block->next)
        if (!block->hinted || !block->weights != !first->weights || !block->centre != !first->centre ||
            (block->centre && memcmp(block->centre, first->centre, bytes) != 0))
            return 0;
    return 1;
}

cl_turn cl_stretch_turn(cl_engine *engine, const fgmm_block *block, fgmm_block *whole) {
    cl_stretch *stretch = block->stretch;
    if (!stretch) return CL_TURN_ALONE;
    int next = engine->waiting ? engine->waiting == stretch && block == engine->waiting_to
                               : block == stretch->first && is_whole(stretch);
    if (!next) return CL_TURN_ALONE;
    engine->waiting = stretch;
    engine->waiting_to = block->next;
    if (block->next) return CL_TURN_LATER;
    engine->waiting = NULL;
    *whole = *stretch->first;
    whole->n = stretch->n;
    whole->hints = stretch->hints;
    whole->row_bounds = stretch->row_bounds;
    for (const fgmm_block *other = stretch->first; other; other = other->next)
        if (other->row_bounds_of != whole->row_bounds_of) whole->row_bounds_of = 0;
    whole->weights = stretch->first->weights ? stretch->weights : NULL;
    return CL_TURN_WHOLE;
}

void cl_stretch_tell(cl_stretch *stretch, int64_t row_bounds_of) {
    for (fgmm_block *block = stretch->first; block; block = block->next) block->row_bounds_of = row_bounds_of;
}

fgmm_block *cl_stretch_waiting(cl_engine *engine) {
    cl_stretch *stretch = engine->waiting;
    return stretch ? stretch->first : NULL;
}
