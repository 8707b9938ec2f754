/* Rows in files, read by pread, a range at a time.
 *
 *   npy                 NumPy's header, then [N, D] (or [D, N] in memory, for Fortran order)
 *   fbin u8bin i8bin    uint32 N, uint32 D, then [N, D]             (big-ann-benchmarks)
 *   fvecs bvecs         each row: int32 D, then D elements          (TexMex)
 */
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "../dispatch.h"
#include "hdf5_file.h"
#include "infile.h"
#include "npy.h"
#include "rows_file.h"

typedef enum layout { PACKED, PREFIXED, COLUMNS } layout;

typedef struct file_rows {
    fgmm_infile in;
    char *path; /* in.path, owned */
    layout layout;
    fgmm_dtype type;
    int64_t offset; /* bytes before the rows */
    int64_t n, d;
    size_t item;
    unsigned char *buffer; /* for layouts that need rearranging */
    size_t buffer_bytes;
} file_rows;

/* ---- reading ---- */

static fgmm_status read_packed(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    const file_rows *file = state;
    size_t row = file->item * (size_t)file->d;
    return fgmm_infile_read(ctx, &file->in, dst, (size_t)n * row, file->offset + first * (int64_t)row);
}

/* Drops the int32 before each row, having seen that it is still D. */
static fgmm_status read_prefixed(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    const file_rows *file = state;
    size_t row = file->item * (size_t)file->d, stride = row + 4;
    int64_t at_once = (int64_t)(file->buffer_bytes / stride);
    unsigned char *to = dst;
    while (n > 0) {
        int64_t count = n < at_once ? n : at_once;
        FGMM_TRY(fgmm_infile_read(ctx, &file->in, file->buffer, (size_t)count * stride, first * (int64_t)stride));
        for (int64_t i = 0; i < count; i++) {
            const unsigned char *from = file->buffer + (size_t)i * stride;
            int32_t d;
            memcpy(&d, from, 4);
            if (d != file->d)
                return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: row %lld has %ld features; row 0 has %lld", file->path,
                                 (long long)(first + i), (long)d, (long long)file->d);
            memcpy(to, from + 4, row);
            to += row;
        }
        first += count;
        n -= count;
    }
    return FGMM_OK;
}

/* Turns a piece of each column; several columns a piece, so that a write touches whole stretches of a row. */
static fgmm_status read_columns(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    enum { GROUP = 64 };
    const file_rows *file = state;
    size_t item = file->item, row = item * (size_t)file->d;
    int64_t at_once = (int64_t)(file->buffer_bytes / (GROUP * item));
    for (int64_t done = 0; done < n; done += at_once) {
        int64_t count = n - done < at_once ? n - done : at_once;
        for (int64_t c0 = 0; c0 < file->d; c0 += GROUP) {
            int64_t columns = file->d - c0 < GROUP ? file->d - c0 : GROUP;
            unsigned char *to = (unsigned char *)dst + (size_t)done * row + (size_t)c0 * item;
            for (int64_t c = 0; c < columns; c++)
                FGMM_TRY(fgmm_infile_read(ctx, &file->in, file->buffer + (size_t)(c * count) * item,
                                          (size_t)count * item,
                                          file->offset + ((c0 + c) * file->n + first + done) * (int64_t)item));
            for (int64_t i = 0; i < count; i++)
                for (int64_t c = 0; c < columns; c++)
                    memcpy(to + (size_t)i * row + (size_t)c * item, file->buffer + (size_t)(c * count + i) * item,
                           item);
        }
    }
    return FGMM_OK;
}

static void close_file(fgmm_context *ctx, void *state) {
    file_rows *file = state;
    if (file->in.fd >= 0) close(file->in.fd);
    fgmm_free(ctx, file->buffer);
    fgmm_free(ctx, file->path);
    fgmm_free(ctx, file);
}

static const fgmm_rows_ops layouts[] = {
    [PACKED] = {.read = read_packed, .close = close_file},
    [PREFIXED] = {.read = read_prefixed, .close = close_file},
    [COLUMNS] = {.read = read_columns, .close = close_file},
};

/* ---- headers ---- */

static fgmm_status no_rows(fgmm_context *ctx, const file_rows *file) {
    return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: holds %lld rows of %lld features; both must be positive", file->path,
                     (long long)file->n, (long long)file->d);
}

/* The file must be exactly as long as header and rows. */
static fgmm_status check_size(fgmm_context *ctx, const file_rows *file) {
    int64_t bytes;
    if (file->n <= 0 || file->d <= 0 || file->d > INT32_MAX) return no_rows(ctx, file);
    if (__builtin_mul_overflow(file->n, file->d, &bytes) ||
        __builtin_mul_overflow(bytes, (int64_t)file->item, &bytes) ||
        __builtin_add_overflow(bytes, file->offset, &bytes))
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: its header claims %lld x %lld elements, which overflows",
                         file->path, (long long)file->n, (long long)file->d);
    if (bytes != file->in.size)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                         "%s: %s: its header claims %lld x %lld elements, %lld bytes, but the file has %lld",
                         file->path, bytes > file->in.size ? "truncated" : "too long", (long long)file->n,
                         (long long)file->d, (long long)bytes, (long long)file->in.size);
    return FGMM_OK;
}

fgmm_status fgmm_rows_npy_type(fgmm_context *ctx, const char *label, const fgmm_npy_header *header, fgmm_dtype *out) {
    static const fgmm_dtype rows_types[] = {FGMM_F32, FGMM_F64, FGMM_F16, FGMM_U8, FGMM_I8};
    char why[128];
    bool known = false;
    for (size_t i = 0; i < sizeof rows_types / sizeof *rows_types; i++) {
        const char *descr = fgmm_npy_descr(rows_types[i]);
        if (header->order != '>' && header->kind == descr[1] && (int)header->item == descr[2] - '0') {
            *out = rows_types[i];
            known = true;
        }
    }
    if (!known) {
        if (fgmm_npy_is_numeric(header, why, sizeof why) || header->order != '>')
            return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                             "%s: its dtype is %s; rows are f4, f8, f2, u1 or i1: convert it with x.astype('float32')",
                             label, header->descr);
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: %s", label, why);
    }
    if (header->ndim != 2)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: has %d dimensions; rows are [N, D]: use x.reshape(len(x), -1)",
                         label, header->ndim);
    return FGMM_OK;
}

static fgmm_status open_npy(fgmm_context *ctx, file_rows *file) {
    fgmm_npy_header header;
    FGMM_TRY(fgmm_npy_file_header(ctx, &file->in, &header));
    FGMM_TRY(fgmm_rows_npy_type(ctx, file->path, &header, &file->type));
    file->layout = header.fortran ? COLUMNS : PACKED;
    file->offset = header.offset;
    file->n = header.shape[0];
    file->d = header.shape[1];
    file->item = header.item;
    return check_size(ctx, file);
}

static fgmm_status open_bin(fgmm_context *ctx, file_rows *file) {
    uint32_t sizes[2];
    if (file->in.size < 8)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: truncated: %lld bytes, less than its header of 8", file->path,
                         (long long)file->in.size);
    FGMM_TRY(fgmm_infile_read(ctx, &file->in, sizes, 8, 0));
    file->layout = PACKED;
    file->offset = 8;
    file->n = sizes[0];
    file->d = sizes[1];
    return check_size(ctx, file);
}

static fgmm_status open_vecs(fgmm_context *ctx, file_rows *file) {
    int32_t d;
    int64_t stride;
    if (file->in.size < 4)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: truncated: %lld bytes, less than a row's header of 4", file->path,
                         (long long)file->in.size);
    FGMM_TRY(fgmm_infile_read(ctx, &file->in, &d, 4, 0));
    stride = 4 + (int64_t)file->item * d;
    if (d <= 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: row 0 claims %ld features; there must be at least one", file->path,
                         (long)d);
    file->layout = PREFIXED;
    file->d = d;
    file->n = file->in.size / stride;
    if (file->in.size % stride != 0)
        return fgmm_fail(
            ctx, FGMM_ERR_FORMAT,
            "%s: truncated, or not of one dimension: rows of %ld features take %lld bytes, and the file's %lld are no "
            "multiple of that",
            file->path, (long)d, (long long)stride, (long long)file->in.size);
    return FGMM_OK;
}

static const struct file_format {
    const char *name;
    fgmm_status (*open)(fgmm_context *ctx, file_rows *file);
    fgmm_dtype type;
} formats[] = {
    {"npy", open_npy, FGMM_F32},  {"fvecs", open_vecs, FGMM_F32}, {"bvecs", open_vecs, FGMM_U8},
    {"fbin", open_bin, FGMM_F32}, {"u8bin", open_bin, FGMM_U8},   {"i8bin", open_bin, FGMM_I8},
};

/* ---- opening ---- */

static fgmm_status make_buffer(fgmm_context *ctx, file_rows *file) {
    size_t row = file->item * (size_t)file->d + 4;
    if (file->layout == PACKED) return FGMM_OK;
    file->buffer_bytes = (size_t)1 << 20;
    if (file->layout == PREFIXED && file->buffer_bytes < row) file->buffer_bytes = row;
    file->buffer = fgmm_alloc(ctx, file->buffer_bytes, "a buffer for a file");
    return file->buffer ? FGMM_OK : FGMM_ERR_MEMORY;
}

static fgmm_status open_as(fgmm_context *ctx, fgmm_rows **out, const char *path, const struct file_format *format,
                           int64_t whole) {
    file_rows *file = fgmm_calloc(ctx, 1, sizeof *file, "a file of rows");
    struct stat info;
    fgmm_status status;
    if (!file) return FGMM_ERR_MEMORY;
    file->in.fd = -1;
    file->path = fgmm_strdup(ctx, path);
    if (!file->path) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    file->in.path = file->path;
    FGMM_GO(fgmm_infile_open(ctx, path, &file->in.fd, &info));
    file->in.size = info.st_size;
    file->type = format->type;
    file->item = fgmm_dtype_size(format->type);
    FGMM_GO(format->open(ctx, file));
    FGMM_GO(make_buffer(ctx, file));
    fgmm_infile_streams(&file->in, whole);
    int readers = file->layout == PACKED ? 2 : 1; /* the other layouts are turned in a buffer, which is one */
    FGMM_TRY(fgmm_rows_new(ctx, out, &layouts[file->layout], file, file->type, file->n, file->d));
    (*out)->readers = readers;
    return FGMM_OK;
done:
    close_file(ctx, file);
    return status;
}

int fgmm_rows_bin_type(const char *format, fgmm_dtype *out) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (formats[i].open != open_bin || strcasecmp(format, formats[i].name) != 0) continue;
        *out = formats[i].type;
        return 1;
    }
    return 0;
}

int fgmm_rows_is_name(const char *path) {
    if (fgmm_hdf5_is_path(path)) return 1;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcasecmp(fgmm_path_ending(path), formats[i].name) == 0) return 1;
    return 0;
}

fgmm_status fgmm_rows_open_file(fgmm_context *ctx, fgmm_rows **out, const char *path, const char *format,
                                int64_t whole) {
    const char *name = format ? format : fgmm_hdf5_is_path(path) ? "hdf5" : fgmm_path_ending(path);
    if (strcasecmp(name, "hdf5") == 0) return fgmm_rows_open_hdf5(ctx, out, path);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcasecmp(name, formats[i].name) == 0) return open_as(ctx, out, path, &formats[i], whole);
    if (format)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "unknown format \"%s\" of rows; known: %s", format, FGMM_ROWS_FORMATS);
    return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: the ending tells no known format of rows (%s)", path,
                     FGMM_ROWS_FORMATS);
}

fgmm_status fgmm_rows_open(fgmm_context *ctx, fgmm_rows **out, const char *path, const char *format) {
    struct stat info;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows from a file: a pointer is NULL");
    *out = NULL;
    if (strcmp(path, "-") == 0) return fgmm_rows_open_pipe(ctx, out, format);
    int there = stat(path, &info) == 0;
    /* A name with such characters may be a file's own. */
    if (there ? S_ISDIR(info.st_mode) : strpbrk(path, "*?[") != NULL)
        return fgmm_rows_open_shards(ctx, out, path, format);
    return fgmm_rows_open_file(ctx, out, path, format, 0);
}
