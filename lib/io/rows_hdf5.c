/* Rows in HDF5: a two-dimensional dataset, read by hyperslabs. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "infile.h"
#include "rows_file.h"

#ifdef FGMM_HAVE_HDF5

#include <hdf5.h>
#include <pthread.h>

/* HDF5 is one for the whole process and seldom built thread-safe; two contexts in two threads must be independent all the same. */
static pthread_mutex_t hdf5_lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct hdf5_rows {
    char *path; /* "FILE:DATASET", for messages */
    hid_t file, dataset, space, memory_type;
    hsize_t n, d;
    fgmm_dtype type;
} hdf5_rows;

/* The innermost entry of HDF5's error stack says what happened; those above it only who asked. */
static herr_t innermost(unsigned depth, const H5E_error2_t *error, void *user) {
    char *reason = user;
    (void)depth;
    if (error->desc && *error->desc) snprintf(reason, 256, "%s", error->desc);
    return 0;
}

static fgmm_status hdf5_failed(fgmm_context *ctx, fgmm_status status, const char *path, const char *what) {
    char reason[256] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, innermost, reason);
    return fgmm_fail(ctx, status, "%s: %s: %s", path, what, reason);
}

static fgmm_status find_type(fgmm_context *ctx, hdf5_rows *rows) {
    hid_t type = H5Dget_type(rows->dataset);
    H5T_class_t class;
    size_t size;
    H5T_sign_t sign;
    if (type < 0) return hdf5_failed(ctx, FGMM_ERR_FORMAT, rows->path, "its type cannot be read");
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

/* With the lock held and HDF5 silent. */
static fgmm_status open_dataset(fgmm_context *ctx, hdf5_rows *rows, const char *file, const char *dataset) {
    const size_t cache_bytes = (size_t)32 << 20; /* chunks of a row block are often larger than the default of 1 MiB */
    hsize_t size[2];
    hid_t access;
    rows->file = H5Fopen(file, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (rows->file < 0) return hdf5_failed(ctx, FGMM_ERR_FORMAT, file, "not a whole HDF5 file");
    access = H5Pcreate(H5P_DATASET_ACCESS);
    if (access >= 0) H5Pset_chunk_cache(access, 12421, cache_bytes, 1.0);
    rows->dataset = H5Dopen2(rows->file, dataset, access >= 0 ? access : H5P_DEFAULT);
    if (access >= 0) H5Pclose(access);
    if (rows->dataset < 0) return hdf5_failed(ctx, FGMM_ERR_FORMAT, rows->path, "no such dataset");
    rows->space = H5Dget_space(rows->dataset);
    if (rows->space < 0) return hdf5_failed(ctx, FGMM_ERR_FORMAT, rows->path, "its shape cannot be read");
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
        status = hdf5_failed(ctx, FGMM_ERR_IO, rows->path, "cannot be read");
    if (memory >= 0) H5Sclose(memory);
    return status;
}

static fgmm_status read_rows(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    fgmm_status status;
    pthread_mutex_lock(&hdf5_lock);
    H5E_BEGIN_TRY {
        status = read_slab(ctx, state, first, n, dst);
    }
    H5E_END_TRY
    pthread_mutex_unlock(&hdf5_lock);
    return status;
}

static void close_rows(fgmm_context *ctx, void *state) {
    hdf5_rows *rows = state;
    pthread_mutex_lock(&hdf5_lock);
    H5E_BEGIN_TRY {
        if (rows->space >= 0) H5Sclose(rows->space);
        if (rows->dataset >= 0) H5Dclose(rows->dataset);
        if (rows->file >= 0) H5Fclose(rows->file);
    }
    H5E_END_TRY
    pthread_mutex_unlock(&hdf5_lock);
    fgmm_free(ctx, rows->path);
    fgmm_free(ctx, rows);
}

static const fgmm_rows_ops hdf5_ops = {.read = read_rows, .close = close_rows};

/* Splits "FILE:DATASET"; a file of the whole name comes first, as names may hold colons. @param file to be freed. */
static fgmm_status split(fgmm_context *ctx, const char *path, char **file, const char **dataset) {
    const char *colon = strrchr(path, ':');
    *dataset = "train";
    *file = fgmm_strdup(ctx, path);
    if (!*file) return FGMM_ERR_MEMORY;
    if (!colon || access(path, F_OK) == 0) return FGMM_OK;
    (*file)[colon - path] = '\0';
    if (colon[1]) *dataset = colon + 1;
    return FGMM_OK;
}

fgmm_status fgmm_rows_open_hdf5(fgmm_context *ctx, fgmm_rows **out, const char *path) {
    char *file = NULL;
    const char *dataset = NULL;
    hdf5_rows *rows = NULL;
    struct stat info;
    size_t label;
    int fd;
    fgmm_status status;
    FGMM_GO(split(ctx, path, &file, &dataset));
    FGMM_GO(fgmm_infile_open(ctx, file, &fd, &info)); /* says better than HDF5 why a file cannot be opened */
    close(fd);
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
    pthread_mutex_lock(&hdf5_lock);
    H5E_BEGIN_TRY {
        status = open_dataset(ctx, rows, file, dataset);
    }
    H5E_END_TRY
    pthread_mutex_unlock(&hdf5_lock);
    if (status != FGMM_OK) goto done;
    status = fgmm_rows_new(ctx, out, &hdf5_ops, rows, rows->type, (int64_t)rows->n, (int64_t)rows->d);
    rows = NULL; /* owned by *out, or closed already */
done:
    if (rows) close_rows(ctx, rows);
    fgmm_free(ctx, file);
    return status;
}

#else

fgmm_status fgmm_rows_open_hdf5(fgmm_context *ctx, fgmm_rows **out, const char *path) {
    (void)out;
    return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED, "%s: this build of flashgmm reads no HDF5 (Meson option hdf5)", path);
}

#endif
