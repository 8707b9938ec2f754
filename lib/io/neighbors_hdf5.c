/* Neighbours in HDF5, as ann-benchmarks has them: datasets `neighbors` and `distances`, the attribute `distance`. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hdf5_file.h"
#include "infile.h"
#include "neighbors_file.h"
#include "outfile.h"

#ifdef FGMM_HAVE_HDF5

/* What deflate can do at best: a dataset that claims more than this for each byte stored is a lie. */
enum { DEFLATE_RATIO = 1032 };

/* ---- reading ---- */

/* A two-dimensional dataset of one class. @param size its shape. */
static fgmm_status open_array(fgmm_context *ctx, const char *label, hid_t file, const char *name, H5T_class_t class,
                              hid_t *out, hsize_t size[2]) {
    hid_t space, type;
    int ndim;
    H5T_class_t found = H5T_NO_CLASS;
    hsize_t item = 0, stored;
    *out = H5Dopen2(file, name, H5P_DEFAULT);
    if (*out < 0) return fgmm_hdf5_failed(ctx, FGMM_ERR_FORMAT, label, "no such dataset");
    space = H5Dget_space(*out);
    ndim = space >= 0 ? H5Sget_simple_extent_ndims(space) : -1;
    if (ndim == 2) H5Sget_simple_extent_dims(space, size, NULL);
    if (space >= 0) H5Sclose(space);
    if (ndim != 2) return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: has %d dimensions; neighbours are [n, k]", label, ndim);
    type = H5Dget_type(*out);
    if (type >= 0) {
        found = H5Tget_class(type);
        item = H5Tget_size(type);
        H5Tclose(type);
    }
    if (found != class || item > 8)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: its elements are no %s", label,
                         class == H5T_INTEGER ? "integers" : "floats");
    /* Before memory is taken. */
    stored = H5Dget_storage_size(*out);
    if (size[0] && size[1] && (stored > INT64_MAX / DEFLATE_RATIO || size[0] > stored * DEFLATE_RATIO / size[1]))
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: claims %llu x %llu elements in %llu bytes", label,
                         (unsigned long long)size[0], (unsigned long long)size[1], (unsigned long long)stored);
    return FGMM_OK;
}

/* Distances of the ids' shape; there need be none. */
static fgmm_status read_distances(fgmm_context *ctx, const char *label, hid_t file, fgmm_neighbors_memory *made) {
    hid_t dataset = -1;
    hsize_t size[2] = {0, 0};
    fgmm_status status = open_array(ctx, label, file, "distances", H5T_FLOAT, &dataset, size);
    if (status == FGMM_OK && ((int64_t)size[0] != made->view.n || (int64_t)size[1] != made->view.k))
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: its distances are [%llu, %llu], its neighbours [%lld, %lld]",
                           label, (unsigned long long)size[0], (unsigned long long)size[1], (long long)made->view.n,
                           (long long)made->view.k);
    if (status == FGMM_OK && H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, made->distances) < 0)
        status = fgmm_hdf5_failed(ctx, FGMM_ERR_IO, label, "its distances cannot be read");
    if (dataset >= 0) H5Dclose(dataset);
    return status;
}

/* @param name NULL: ann-benchmarks' own, with the distances. */
static fgmm_status load(fgmm_context *ctx, const char *label, const char *path, const char *name,
                        fgmm_neighbors_memory **out) {
    hid_t file = -1, dataset = -1;
    hsize_t size[2] = {0, 0};
    int distances;
    fgmm_status status;
    FGMM_GO(fgmm_hdf5_open(ctx, path, &file));
    distances = !name && H5Lexists(file, "distances", H5P_DEFAULT) > 0;
    FGMM_GO(open_array(ctx, label, file, name ? name : "neighbors", H5T_INTEGER, &dataset, size));
    FGMM_GO(fgmm_neighbors_new(ctx, out, label, (int64_t)size[0], (int64_t)size[1], distances));
    fgmm_hdf5_metric(file, (*out)->metric);
    if (H5Dread(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, (*out)->ids) < 0) {
        status = fgmm_hdf5_failed(ctx, FGMM_ERR_IO, label, "cannot be read");
        goto done;
    }
    if (distances) status = read_distances(ctx, label, file, *out);
done:
    if (dataset >= 0) H5Dclose(dataset);
    if (file >= 0) H5Fclose(file);
    return status;
}

fgmm_status fgmm_neighbors_load_hdf5(fgmm_context *ctx, fgmm_neighbors_memory **out, const char *path) {
    char *file = NULL, *label = NULL;
    const char *name = NULL;
    fgmm_hdf5_silence silence;
    size_t room;
    fgmm_status status;
    FGMM_GO(fgmm_hdf5_split(ctx, path, &file, &name));
    room = strlen(path) + sizeof ":neighbors";
    label = fgmm_alloc(ctx, room, "a label");
    if (!label) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    snprintf(label, room, "%s:%s", file, name ? name : "neighbors");
    fgmm_hdf5_enter(&silence);
    status = load(ctx, label, file, name, out);
    fgmm_hdf5_leave(&silence);
done:
    fgmm_free(ctx, label);
    fgmm_free(ctx, file);
    return status;
}

/* ---- writing ---- */

static int put_array(hid_t file, const char *name, hid_t stored, hid_t memory, const fgmm_neighbors *neighbors,
                     const void *data) {
    const hsize_t size[2] = {(hsize_t)neighbors->n, (hsize_t)neighbors->k};
    hid_t space = H5Screate_simple(2, size, NULL), set = -1;
    int good;
    if (space >= 0) set = H5Dcreate2(file, name, stored, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    good = set >= 0 && H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
    if (set >= 0 && H5Dclose(set) < 0) good = 0;
    if (space >= 0) H5Sclose(space);
    return good;
}

/* As h5py does, so that its readers get a str. */
static int put_metric(hid_t file, const char *metric) {
    hid_t space = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1), attribute = -1;
    int good = space >= 0 && type >= 0 && H5Tset_size(type, H5T_VARIABLE) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0;
    if (good) attribute = H5Acreate2(file, "distance", type, space, H5P_DEFAULT, H5P_DEFAULT);
    good = attribute >= 0 && H5Awrite(attribute, type, &metric) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    return good;
}

/* @param temp the temporary file, which is there and empty. @param path for the message. */
static fgmm_status save(fgmm_context *ctx, const char *temp, const char *path, const fgmm_neighbors *neighbors) {
    hid_t file = H5Fcreate(temp, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    int good = file >= 0 && put_array(file, "neighbors", H5T_STD_I64LE, H5T_NATIVE_INT64, neighbors, neighbors->ids) &&
               (!neighbors->distances ||
                put_array(file, "distances", H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, neighbors, neighbors->distances)) &&
               (!neighbors->metric || !*neighbors->metric || put_metric(file, neighbors->metric));
    fgmm_status status = good ? FGMM_OK : fgmm_hdf5_failed(ctx, FGMM_ERR_IO, path, "cannot be written");
    if (file >= 0 && H5Fclose(file) < 0 && good) status = fgmm_hdf5_failed(ctx, FGMM_ERR_IO, path, "cannot be written");
    return status;
}

fgmm_status fgmm_neighbors_save_hdf5(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors) {
    fgmm_outfile file = {NULL, NULL, -1};
    fgmm_hdf5_silence silence;
    fgmm_status status;
    if (neighbors->metric && strlen(neighbors->metric) >= FGMM_METRIC_NAME)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving neighbours: the metric's name is too long");
    FGMM_GO(fgmm_outfile_open(ctx, &file, path));
    fgmm_hdf5_enter(&silence);
    status = save(ctx, file.temp, path, neighbors);
    fgmm_hdf5_leave(&silence);
    if (status == FGMM_OK) status = fgmm_outfile_commit(ctx, &file);
done:
    fgmm_outfile_abandon(ctx, &file);
    return status;
}

#else

fgmm_status fgmm_neighbors_load_hdf5(fgmm_context *ctx, fgmm_neighbors_memory **out, const char *path) {
    (void)out;
    return fgmm_hdf5_missing(ctx, path);
}

fgmm_status fgmm_neighbors_save_hdf5(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors) {
    (void)neighbors;
    return fgmm_hdf5_missing(ctx, path);
}

#endif
