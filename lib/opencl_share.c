/* flashgmm/opencl.h: handles pass through here untouched, so lib/ needs no OpenCL. */
#include <flashgmm/opencl.h>

#include <string.h>

#include "dispatch.h"
#include "module.h"
#include "rows.h"

fgmm_status fgmm_context_create_opencl(fgmm_context **out, const fgmm_context_options *options,
                                       struct _cl_context *context, struct _cl_device_id *device,
                                       struct _cl_command_queue *queue) {
    if (!out || !context || !device || !queue) return FGMM_ERR_INVALID;
    fgmm_open_request request = {.any_kind = 1, .cl_context = context, .cl_device = device, .cl_queue = queue};
    return fgmm_context_create_over(out, options, fgmm_backend_opencl, &request);
}

static void release_shared(fgmm_context *ctx, void *state) {
    fgmm_rows *rows = state;
    ctx->opencl.backend->share(ctx->opencl.device, 0, rows->cl_mem, 0, rows->wait_list, rows->n_wait);
    fgmm_free(ctx, rows->wait_list);
}

static const fgmm_rows_ops shared_ops = {.read = NULL, .close = release_shared};

fgmm_status fgmm_rows_from_cl_mem(fgmm_context *ctx, fgmm_rows **out, struct _cl_mem *buffer, fgmm_dtype type,
                                  int64_t n, int64_t d, size_t offset, size_t pitch, unsigned n_wait,
                                  struct _cl_event *const *wait_list) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !buffer || (n_wait && !wait_list))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from cl_mem: a pointer is NULL");
    *out = NULL;
    if (!ctx->opencl.backend || !ctx->opencl.backend->share)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from cl_mem: this context has no OpenCL device");
    size_t element = fgmm_dtype_size(type);
    if (type == FGMM_F64 || type > FGMM_I8)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from cl_mem: the element type must be f32, f16, bf16, u8 or i8");
    if (n <= 0 || d <= 0 || (uint64_t)d > SIZE_MAX / element)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from cl_mem: n = %lld and d = %lld must be positive",
                         (long long)n, (long long)d);
    size_t row = (size_t)d * element;
    if (!pitch) pitch = row;
    if (pitch < row || pitch % element || offset % element)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "rows from cl_mem: pitch %zu and offset %zu must be multiples of %zu, pitch at least %zu",
                         pitch, offset, element, row);
    if (offset > SIZE_MAX - row || (uint64_t)n > (SIZE_MAX - row - offset) / pitch)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from cl_mem: %lld rows overflow", (long long)n);
    size_t bytes = offset + ((size_t)n - 1) * pitch + row;

    void **events = NULL;
    if (n_wait) {
        events = fgmm_alloc(ctx, n_wait * sizeof *events, "a wait list");
        if (!events) return FGMM_ERR_MEMORY;
        for (unsigned i = 0; i < n_wait; i++) events[i] = (void *)wait_list[i];
    }
    fgmm_status status = ctx->opencl.backend->share(ctx->opencl.device, 1, buffer, bytes, events, n_wait);
    if (status != FGMM_OK) {
        fgmm_free(ctx, events);
        return status;
    }
    fgmm_rows *rows = NULL;
    status = fgmm_rows_new(ctx, &rows, NULL, NULL, type, n, d);
    if (status != FGMM_OK) {
        ctx->opencl.backend->share(ctx->opencl.device, 0, buffer, 0, events, n_wait);
        fgmm_free(ctx, events);
        return status;
    }
    rows->cl_mem = buffer;
    rows->offset = offset;
    rows->stride_bytes = pitch;
    rows->n_wait = n_wait;
    rows->wait_list = events;
    rows->ops = &shared_ops;
    rows->state = rows;
    *out = rows;
    return FGMM_OK;
}

fgmm_status fgmm_rows_cl_event(fgmm_context *ctx, const fgmm_rows *rows, struct _cl_event **event) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!rows || !event) return fgmm_fail(ctx, FGMM_ERR_INVALID, "event of rows: a pointer is NULL");
    while (rows->parent) rows = rows->parent;
    if (!rows->cl_mem) return fgmm_fail(ctx, FGMM_ERR_INVALID, "event of rows: the rows are not in a cl_mem");
    if (rows->owner != ctx) return fgmm_fail(ctx, FGMM_ERR_INVALID, "event of rows: they belong to another context");
    void *last = NULL;
    FGMM_TRY(ctx->opencl.backend->last_use(ctx->opencl.device, &last));
    *event = last;
    return FGMM_OK;
}
