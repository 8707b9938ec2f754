/* Rows in HDF5: a two-dimensional dataset, read by hyperslabs. */
#include <stdio.h>
#include <string.h>

#include "hdf5_file.h"
#include "rows_file.h"

#ifdef FGMM_HAVE_HDF5

typedef struct hdf5_rows {
    char *path; /* "FILE:DATASET", for messages */
    hid_t file, dataset, space, memory_type;
    hsize_t n, d;
    fgmm_dtype type;
    char metric[FGMM_METRIC_NAME];
} hdf5_rows;

static fgmm_status find_type(fgmm_context *ctx, hdf5_rows *rows) {
    hid_t type = H5Dget_type(rows->dataset);
    H5T_class_t class;
    size_t size;
    H5T_sign_t sign;
    if (type < 0) return fgmm_hdf5_failed(ctx, FGMM_ERR_FORMAT, rows->path, "its type cannot be read");
    class = H5Tget_class(type);
    size = H5Tget_size(type);
    sign = class == H5T_INTEGER ? H5Tget_sign(type) : H5T_SGN_ERROR;
    H5Tclose(type);
    if (class == H5T_FLOAT && (size == 4 || size == 8)) {
        rows->type = size == 4 ? FGMM_F32 : FGMM_F64;
        rows->memory_type = size == 4 ? H5T_NATIVE_FLOAT : H5T_NATIVE_DOUBLE;
    } else if (class == H5T_INTEGER && size == 1) {
        rows->type = sign == H5T_SGN_NONE ? FGMM_U8 : FGMM_I8;
        rows->memory_type = sign == H5T_SGN_NONE ? H5T_NATIVE_UINT8 : H5T_NATIVE_INT8;
    } else
        return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                         "%s: its elements are %s of %zu bytes; rows are float32, float64, uint8 or int8", rows->path,
                         class == H5T_FLOAT     ? "floats"
                         : class == H5T_INTEGER ? "integers"
                                                : "no numbers",
                         size);
    return FGMM_OK;
}

/* Within fgmm_hdf5_enter and _leave. */
static fgmm_status open_dataset(fgmm_context *ctx, hdf5_rows *rows, const char *file, const char *dataset) {
    const size_t cache_bytes = (size_t)32 << 20; /* chunks of a row block are often larger than the default of 1 MiB */
    hsize_t size[2];
    hid_t access;
    FGMM_TRY(fgmm_hdf5_open(ctx, file, &rows->file));
    fgmm_hdf5_metric(rows->file, rows->metric);
    access = H5Pcreate(H5P_DATASET_ACCESS);
    if (access >= 0) H5Pset_chunk_cache(access, 12421, cache_bytes, 1.0);
    rows->dataset = H5Dopen2(rows->file, dataset, access >= 0 ? access : H5P_DEFAULT);
    if (access >= 0) H5Pclose(access);
    if (rows->dataset < 0) return fgmm_hdf5_failed(ctx, FGMM_ERR_FORMAT, rows->path, "no such dataset");
    rows->space = H5Dget_space(rows->dataset);
    if (rows->space < 0) return fgmm_hdf5_failed(ctx, FGMM_ERR_FORMAT, rows->path, "its shape cannot be read");
    if (H5Sget_simple_extent_ndims(rows->space) != 2)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: has %d dimensions; rows are [N, D]", rows->path,
                         H5Sget_simple_extent_ndims(rows->space));
    H5Sget_simple_extent_dims(rows->space, size, NULL);
    rows->n = size[0];
    rows->d = size[1];
    if (size[0] == 0 || size[1] == 0 || size[1] > INT32_MAX || size[0] > INT64_MAX / 8 / size[1])
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: holds %llu rows of %llu features, which cannot be used", rows->path,
                         (unsigned long long)size[0], (unsigned long long)size[1]);
    return find_type(ctx, rows);
}

static fgmm_status read_slab(fgmm_context *ctx, const hdf5_rows *rows, int64_t first, int64_t n, void *dst) {
    hsize_t start[2] = {(hsize_t)first, 0}, count[2] = {(hsize_t)n, rows->d};
    hid_t memory = H5Screate_simple(2, count, NULL);
    fgmm_status status = FGMM_OK;
    if (memory < 0 || H5Sselect_hyperslab(rows->space, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
        H5Dread(rows->dataset, rows->memory_type, memory, rows->space, H5P_DEFAULT, dst) < 0)
        status = fgmm_hdf5_failed(ctx, FGMM_ERR_IO, rows->path, "cannot be read");
    if (memory >= 0) H5Sclose(memory);
    return status;
}

static fgmm_status read_rows(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    fgmm_hdf5_silence silence;
    fgmm_status status;
    fgmm_hdf5_enter(&silence);
    status = read_slab(ctx, state, first, n, dst);
    fgmm_hdf5_leave(&silence);
    return status;
}

static void close_rows(fgmm_context *ctx, void *state) {
    hdf5_rows *rows = state;
    fgmm_hdf5_silence silence;
    fgmm_hdf5_enter(&silence);
    if (rows->space >= 0) H5Sclose(rows->space);
    if (rows->dataset >= 0) H5Dclose(rows->dataset);
    if (rows->file >= 0) H5Fclose(rows->file);
    fgmm_hdf5_leave(&silence);
    fgmm_free(ctx, rows->path);
    fgmm_free(ctx, rows);
}

static const fgmm_rows_ops hdf5_ops = {.read = read_rows, .close = close_rows};

fgmm_status fgmm_rows_open_hdf5(fgmm_context *ctx, fgmm_rows **out, const char *path) {
    char *file = NULL;
    const char *dataset = NULL;
    hdf5_rows *rows = NULL;
    fgmm_hdf5_silence silence;
    char metric[FGMM_METRIC_NAME];
    size_t label;
    fgmm_status status;
    FGMM_GO(fgmm_hdf5_split(ctx, path, &file, &dataset));
    if (!dataset) dataset = "train";
    rows = fgmm_calloc(ctx, 1, sizeof *rows, "an HDF5 dataset");
    if (!rows) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    rows->file = rows->dataset = rows->space = -1;
    label = strlen(file) + strlen(dataset) + 2;
    rows->path = fgmm_alloc(ctx, label, "a label");
    if (!rows->path) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    snprintf(rows->path, label, "%s:%s", file, dataset);
    fgmm_hdf5_enter(&silence);
    status = open_dataset(ctx, rows, file, dataset);
    fgmm_hdf5_leave(&silence);
    if (status != FGMM_OK) goto done;
    memcpy(metric, rows->metric, sizeof metric);
    status = fgmm_rows_new(ctx, out, &hdf5_ops, rows, rows->type, (int64_t)rows->n, (int64_t)rows->d);
    rows = NULL; /* owned by *out, or closed already */
    if (status == FGMM_OK) memcpy((*out)->metric, metric, sizeof metric);
    if (status == FGMM_OK) (*out)->readers = 1;
done:
    if (rows) close_rows(ctx, rows);
    fgmm_free(ctx, file);
    return status;
}

#else

fgmm_status fgmm_rows_open_hdf5(fgmm_context *ctx, fgmm_rows **out, const char *path) {
    (void)out;
    return fgmm_hdf5_missing(ctx, path);
}

#endif
