/* Arrays to .npy and .npz. Members are stored, not deflated, with NumPy's own fixed date: equal arrays make equal
 * files, whatever zlib is at hand, and numbers hardly deflate. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <zip.h>

#include "../dispatch.h"
#include "infile.h"
#include "npy.h"
#include "outfile.h"

/* What goes before the data, ready to be written. */
typedef struct prepared {
    char header[FGMM_NPY_HEADER_MAX];
    zip_buffer_fragment_t part[2];
    uint32_t *text; /* UTF-32 of a string */
} prepared;

static fgmm_status bad_array(fgmm_context *ctx, const fgmm_array *array, const char *what) {
    return fgmm_fail(ctx, FGMM_ERR_INVALID, "array '%s' %s", array->name ? array->name : "", what);
}

static fgmm_status prepare_numbers(fgmm_context *ctx, const fgmm_array *array, prepared *out) {
    const char *descr = fgmm_npy_descr(array->type);
    size_t bytes = array->type == FGMM_NPY_BOOL ? 1 : fgmm_dtype_size(array->type);
    bool zero = false;
    if (!descr) return bad_array(ctx, array, "has a type that NumPy lacks");
    if (array->ndim < 0 || array->ndim > 3) return bad_array(ctx, array, "has other than 0 to 3 dimensions");
    for (int i = 0; i < array->ndim; i++) {
        if (array->shape[i] < 0) return bad_array(ctx, array, "has a negative size");
        if (array->shape[i] == 0)
            zero = true;
        else if (__builtin_mul_overflow(bytes, (size_t)array->shape[i], &bytes) || bytes > INT64_MAX)
            return bad_array(ctx, array, "has a size that overflows");
    }
    if (zero) bytes = 0;
    if (bytes && !array->data) return bad_array(ctx, array, "has no data");
    out->part[0].length = fgmm_npy_format(out->header, descr, array->ndim, array->shape);
    out->part[1] = (zip_buffer_fragment_t){(zip_uint8_t *)(uintptr_t)array->data, bytes};
    return FGMM_OK;
}

static fgmm_status prepare_text(fgmm_context *ctx, const char *text, prepared *out) {
    size_t length = strlen(text);
    char descr[24];
    /* NumPy stores an empty string as one NUL. */
    size_t stored = length ? length : 1;
    out->text = fgmm_calloc(ctx, stored, sizeof *out->text, "a string to write");
    if (!out->text) return FGMM_ERR_MEMORY;
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] > 127)
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "a string to write is not plain ASCII");
        out->text[i] = (unsigned char)text[i];
    }
    snprintf(descr, sizeof descr, "<U%zu", stored);
    out->part[0].length = fgmm_npy_format(out->header, descr, 0, NULL);
    out->part[1] = (zip_buffer_fragment_t){(zip_uint8_t *)out->text, stored * sizeof *out->text};
    return FGMM_OK;
}

static fgmm_status prepare(fgmm_context *ctx, const fgmm_npz_entry *entry, prepared *out) {
    out->text = NULL;
    out->part[0].data = (zip_uint8_t *)out->header;
    return entry->text ? prepare_text(ctx, entry->text, out) : prepare_numbers(ctx, &entry->array, out);
}

static fgmm_status zip_failed(fgmm_context *ctx, const char *path, zip_error_t *error) {
    fgmm_status status = zip_error_code_zip(error) == ZIP_ER_MEMORY ? FGMM_ERR_MEMORY : FGMM_ERR_IO;
    return fgmm_fail(ctx, status, "cannot write %s: %s", path, zip_error_strerror(error));
}

static fgmm_status add_member(fgmm_context *ctx, zip_t *zip, const char *path, const char *name,
                              const prepared *member) {
    char *file = NULL;
    size_t size = strlen(name) + 5;
    zip_source_t *source = NULL;
    zip_int64_t index;
    fgmm_status status = FGMM_OK;
    file = fgmm_alloc(ctx, size, "a member's name");
    if (!file) return FGMM_ERR_MEMORY;
    snprintf(file, size, "%s.npy", name);
    source = zip_source_buffer_fragment(zip, member->part, member->part[1].length ? 2 : 1, 0);
    index = source ? zip_file_add(zip, file, source, ZIP_FL_ENC_UTF_8) : -1;
    if (index < 0) {
        zip_source_free(source);
        status = zip_failed(ctx, path, zip_get_error(zip));
    } else if (zip_set_file_compression(zip, (zip_uint64_t)index, ZIP_CM_STORE, 0) != 0 ||
               zip_file_set_dostime(zip, (zip_uint64_t)index, 0, 1 << 5 | 1, 0) != 0) /* 1980-01-01 */
        status = zip_failed(ctx, path, zip_get_error(zip));
    fgmm_free(ctx, file);
    return status;
}

/* libzip writes beside our temporary file and renames onto it, so that is opened afresh to be flushed. */
static fgmm_status write_zip(fgmm_context *ctx, fgmm_outfile *file, const fgmm_npz_entry *entries,
                             const prepared *members, int count) {
    int code = 0;
    zip_t *zip = zip_open(file->temp, ZIP_CREATE | ZIP_TRUNCATE, &code);
    fgmm_status status = FGMM_OK;
    if (!zip) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        status = zip_failed(ctx, file->path, &error);
        zip_error_fini(&error);
        return status;
    }
    for (int i = 0; i < count; i++) FGMM_GO(add_member(ctx, zip, file->path, entries[i].array.name, &members[i]));
    if (zip_close(zip) != 0) {
        status = zip_failed(ctx, file->path, zip_get_error(zip));
        goto done;
    }
    zip = NULL;
    close(file->fd);
    file->fd = open(file->temp, O_WRONLY | O_CLOEXEC);
    if (file->fd < 0) status = fgmm_fail_errno(ctx, errno, "cannot write", file->path);
done:
    if (zip) zip_discard(zip);
    return status;
}

static fgmm_status check_names(fgmm_context *ctx, const fgmm_npz_entry *entries, int count) {
    for (int i = 0; i < count; i++) {
        const char *name = entries[i].array.name;
        if (!name || !*name || strlen(name) > 1000 || strpbrk(name, "/\\"))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "array %d of an .npz has no usable name", i);
        for (int j = 0; j < i; j++)
            if (strcmp(entries[j].array.name, name) == 0)
                return fgmm_fail(ctx, FGMM_ERR_INVALID, "two arrays of an .npz are named '%s'", name);
    }
    return FGMM_OK;
}

/* @param alone 1: the one entry as an .npy. */
static fgmm_status write_entries(fgmm_context *ctx, const char *path, const fgmm_npz_entry *entries, int count,
                                 bool alone) {
    prepared *members = NULL;
    fgmm_outfile file = {NULL, NULL, -1};
    fgmm_status status;
    if (!alone) FGMM_TRY(check_names(ctx, entries, count));
    members = fgmm_calloc(ctx, (size_t)count, sizeof *members, "the members of a file");
    if (!members) return FGMM_ERR_MEMORY;
    for (int i = 0; i < count; i++) FGMM_GO(prepare(ctx, &entries[i], &members[i]));
    FGMM_GO(fgmm_outfile_open(ctx, &file, path));
    if (alone) {
        FGMM_GO(fgmm_outfile_write(ctx, &file, members[0].part[0].data, members[0].part[0].length));
        FGMM_GO(fgmm_outfile_write(ctx, &file, members[0].part[1].data, members[0].part[1].length));
    } else
        FGMM_GO(write_zip(ctx, &file, entries, members, count));
    status = fgmm_outfile_commit(ctx, &file);
done:
    fgmm_outfile_abandon(ctx, &file);
    for (int i = 0; i < count; i++) fgmm_free(ctx, members[i].text);
    fgmm_free(ctx, members);
    return status;
}

fgmm_status fgmm_npz_write(fgmm_context *ctx, const char *path, const fgmm_npz_entry *entries, int count) {
    return write_entries(ctx, path, entries, count, false);
}

fgmm_status fgmm_arrays_save(fgmm_context *ctx, const char *path, const fgmm_array *arrays, int count) {
    fgmm_npz_entry *entries = NULL;
    const char *dot;
    bool npy, npz;
    fgmm_status status = FGMM_OK;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!path || !arrays || count < 1) return fgmm_fail(ctx, FGMM_ERR_INVALID, "no path or no arrays to save");
    dot = strrchr(path, '.');
    npy = dot && strcasecmp(dot, ".npy") == 0;
    npz = dot && strcasecmp(dot, ".npz") == 0;
    if (!npy && !npz) return fgmm_fail(ctx, FGMM_ERR_INVALID, "cannot write %s: arrays go to .npy or .npz files", path);
    if (npy && count != 1)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "cannot write %s: an .npy holds one array, not %d; use .npz", path,
                         count);
    entries = fgmm_calloc(ctx, (size_t)count, sizeof *entries, "the list of arrays");
    if (!entries) return FGMM_ERR_MEMORY;
    for (int i = 0; i < count; i++) {
        entries[i].array = arrays[i];
        if (!fgmm_dtype_size(arrays[i].type)) FGMM_GO(bad_array(ctx, &arrays[i], "has an unknown type"));
    }
    status = write_entries(ctx, path, entries, count, npy);
done:
    fgmm_free(ctx, entries);
    return status;
}
