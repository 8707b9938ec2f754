/* Neighbours in HDF5, which neighbors_file.c hands on. */
#ifndef FGMM_LIB_IO_NEIGHBORS_FILE_H
#define FGMM_LIB_IO_NEIGHBORS_FILE_H

#include "../rows.h"

/* Neighbours and what they point to, in one block. */
typedef struct fgmm_neighbors_memory {
    fgmm_neighbors view; /* first: what users see */
    int64_t *ids;
    float *distances;
    char metric[FGMM_METRIC_NAME];
} fgmm_neighbors_memory;

/* Room for n x k ids, and distances if asked. @param path for messages. */
fgmm_status fgmm_neighbors_new(fgmm_context *ctx, fgmm_neighbors_memory **out, const char *path, int64_t n, int64_t k,
                               int distances);

/* FGMM_ERR_FORMAT if an id is less than -1, naming the first. */
fgmm_status fgmm_neighbors_check(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors);

/* @param path "FILE" or "FILE:DATASET". */
fgmm_status fgmm_neighbors_load_hdf5(fgmm_context *ctx, fgmm_neighbors_memory **out, const char *path);
fgmm_status fgmm_neighbors_save_hdf5(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors);

#endif
