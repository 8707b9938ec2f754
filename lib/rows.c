#include "rows.h"

#include <math.h>
#include <string.h>

#include "persist.h"

fgmm_status fgmm_rows_new(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows_ops *ops, void *state, fgmm_dtype type,
                          int64_t n, int64_t d) {
    *out = NULL;
    fgmm_status status = FGMM_OK;
    size_t element = type <= FGMM_I8 ? fgmm_dtype_size(type) : 0;
    if (!element)
        status = fgmm_fail(ctx, FGMM_ERR_INVALID, "rows: element type %d cannot be used for rows", (int)type);
    else if (n <= 0 || d <= 0)
        status = fgmm_fail(ctx, FGMM_ERR_INVALID, "rows: n = %lld and d = %lld must be positive", (long long)n,
                           (long long)d);
    else if (d > INT32_MAX || (uint64_t)n > INT64_MAX / element / (uint64_t)d)
        status = fgmm_fail(ctx, FGMM_ERR_INVALID, "rows: %lld x %lld elements overflow", (long long)n, (long long)d);
    fgmm_rows *rows = status == FGMM_OK ? fgmm_calloc(ctx, 1, sizeof *rows, "rows") : NULL;
    if (!rows) {
        if (ops && ops->close) ops->close(ctx, state);
        return status == FGMM_OK ? FGMM_ERR_MEMORY : status;
    }
    rows->owner = ctx;
    rows->type = type;
    rows->n = n;
    rows->d = d;
    rows->ops = ops;
    rows->state = state;
    *out = rows;
    return FGMM_OK;
}

void fgmm_rows_free(fgmm_context *ctx, fgmm_rows *rows) {
    if (!rows) return;
    fgmm_persisted_forget(rows);
    if (rows->ops && rows->ops->close) rows->ops->close(ctx, rows->state);
    fgmm_free(ctx, rows);
}

int64_t fgmm_rows_count(const fgmm_rows *rows) {
    return rows ? rows->n : 0;
}
int64_t fgmm_rows_features(const fgmm_rows *rows) {
    return rows ? rows->d : 0;
}
fgmm_dtype fgmm_rows_type(const fgmm_rows *rows) {
    return rows ? rows->type : FGMM_F32;
}

const char *fgmm_rows_metric(const fgmm_rows *rows) {
    while (rows && rows->parent) rows = rows->parent;
    return rows ? rows->metric : "";
}

fgmm_status fgmm_rows_from_memory(fgmm_context *ctx, fgmm_rows **out, const void *data, fgmm_dtype type, int64_t n,
                                  int64_t d, int64_t stride) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !data) return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from memory: a pointer is NULL");
    *out = NULL;
    if (stride == 0) stride = d;
    if (stride < d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from memory: stride = %lld is less than d = %lld",
                         (long long)stride, (long long)d);
    if (n > 0 && stride > 0 && (uint64_t)n > PTRDIFF_MAX / 8 / (uint64_t)stride)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from memory: %lld rows of stride %lld overflow", (long long)n,
                         (long long)stride);
    FGMM_TRY(fgmm_rows_new(ctx, out, NULL, NULL, type, n, d));
    (*out)->data = data;
    (*out)->stride_bytes = (size_t)stride * fgmm_dtype_size(type);
    return FGMM_OK;
}

/* ---- callback ---- */

typedef struct {
    fgmm_rows_callback callback;
    int64_t next; /* for `once`: the row that must be asked for next */
} callback_state;

static fgmm_status callback_read(fgmm_context *ctx, void *opaque, int64_t first, int64_t n, void *dst) {
    callback_state *state = opaque;
    if (state->callback.once && first != state->next)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from callback: these rows can be read only once, in order");
    int code = state->callback.read(state->callback.user, first, n, dst);
    if (code != 0)
        return fgmm_fail(ctx, FGMM_ERR_IO, "rows from callback: reading rows %lld to %lld failed with code %d",
                         (long long)first, (long long)(first + n - 1), code);
    if (state->callback.once) state->next = first + n; /* read by one thread at a time */
    return FGMM_OK;
}

static void callback_close(fgmm_context *ctx, void *state) {
    fgmm_free(ctx, state);
}

static const fgmm_rows_ops callback_ops = {.read = callback_read, .close = callback_close};

fgmm_status fgmm_rows_from_callback(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows_callback *callback) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !callback) return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from callback: a pointer is NULL");
    *out = NULL;
    if (callback->struct_size != sizeof *callback || !callback->read)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from callback: struct_size or read is not set");
    if (callback->threads < 0 || (callback->once && callback->threads > 1))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from callback: threads = %d%s", callback->threads,
                         callback->threads < 0 ? " is negative"
                                               : ": rows that are read once, in order, are read by one");
    callback_state *state = fgmm_calloc(ctx, 1, sizeof *state, "a callback");
    if (!state) return FGMM_ERR_MEMORY;
    state->callback = *callback;
    FGMM_TRY(fgmm_rows_new(ctx, out, &callback_ops, state, callback->type, callback->n, callback->d));
    (*out)->once = callback->once != 0;
    (*out)->readers = callback->threads;
    return FGMM_OK;
}

/* ---- slices and weights ---- */

fgmm_status fgmm_rows_slice(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows *rows, int64_t first, int64_t n) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "slice of rows: a pointer is NULL");
    *out = NULL;
    if (first < 0 || n <= 0 || first > rows->n || n > rows->n - first)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "slice of rows: %lld rows from row %lld of %lld", (long long)n,
                         (long long)first, (long long)rows->n);
    FGMM_TRY(fgmm_rows_new(ctx, out, NULL, NULL, rows->type, n, rows->d));
    fgmm_rows *slice = *out;
    slice->parent = rows;
    slice->parent_first = first;
    slice->once = rows->once;
    slice->stride_bytes = rows->stride_bytes;
    slice->n_wait = rows->n_wait;
    slice->wait_list = rows->wait_list;
    slice->cl_mem = rows->cl_mem;
    slice->offset = rows->offset + (size_t)first * rows->stride_bytes;
    if (rows->data) slice->data = (const char *)rows->data + (size_t)first * rows->stride_bytes;
    if (rows->weights) slice->weights = rows->weights + first;
    return FGMM_OK;
}

fgmm_status fgmm_rows_set_weights(fgmm_context *ctx, fgmm_rows *rows, const double *weights, int64_t n) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "weights: rows is NULL");
    if (weights) {
        if (n != rows->n)
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "weights: %lld weights for %lld rows", (long long)n,
                             (long long)rows->n);
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            if (!(weights[i] >= 0) || !isfinite(weights[i]))
                return fgmm_fail(ctx, FGMM_ERR_DATA,
                                 "weights: the weight of row %lld is %g; weights must be finite and >= 0", (long long)i,
                                 weights[i]);
            sum += weights[i];
        }
        if (!(sum > 0) || !isfinite(sum))
            return fgmm_fail(ctx, FGMM_ERR_DATA, "weights: they sum to %g; at least one must be positive", sum);
    }
    if (rows->persistent) fgmm_persisted_drop(rows->owner, rows); /* a device has the old ones */
    rows->weights = weights;
    return FGMM_OK;
}

static const fgmm_rows *whole_of(const fgmm_rows *rows) {
    while (rows->parent) rows = rows->parent;
    return rows;
}

int fgmm_rows_readers(const fgmm_rows *rows) {
    return whole_of(rows)->readers;
}

int fgmm_rows_once(const fgmm_rows *rows) {
    return whole_of(rows)->once;
}

fgmm_status fgmm_rows_prepare(fgmm_context *ctx, const fgmm_rows *rows, int64_t passes) {
    const fgmm_rows *whole = whole_of(rows);
    return whole->ops && whole->ops->prepare ? whole->ops->prepare(ctx, whole->state, passes) : FGMM_OK;
}

fgmm_status fgmm_rows_read(fgmm_context *ctx, const fgmm_rows *rows, int64_t first, int64_t n, void *dst) {
    while (rows->parent && !rows->data) {
        first += rows->parent_first;
        rows = rows->parent;
    }
    if (rows->data) {
        size_t row = (size_t)rows->d * fgmm_dtype_size(rows->type);
        const char *src = (const char *)rows->data + (size_t)first * rows->stride_bytes;
        if (row == rows->stride_bytes)
            memcpy(dst, src, (size_t)n * row);
        else
            for (int64_t i = 0; i < n; i++)
                memcpy((char *)dst + (size_t)i * row, src + (size_t)i * rows->stride_bytes, row);
        return FGMM_OK;
    }
    if (!rows->ops || !rows->ops->read)
        return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED, "rows in a cl_mem cannot be read on the host");
    return rows->ops->read(ctx, rows->state, first, n, dst);
}
