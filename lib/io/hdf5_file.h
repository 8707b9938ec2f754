/* What rows and neighbours in HDF5 share: the lock, the path, and words for what went wrong. */
#ifndef FGMM_LIB_IO_HDF5_FILE_H
#define FGMM_LIB_IO_HDF5_FILE_H

#include "../rows.h"

/* ".h5" or ".hdf5", with or without ":DATASET". In builds without HDF5 too. */
int fgmm_hdf5_is_path(const char *path);

/* FGMM_ERR_UNSUPPORTED, of a build without HDF5. */
fgmm_status fgmm_hdf5_missing(fgmm_context *ctx, const char *path);

#ifdef FGMM_HAVE_HDF5

#include <hdf5.h>

/* HDF5 is one for the whole process and seldom built thread-safe; two contexts in two threads must be independent all
 * the same. Every call into HDF5 stands between these two, which also keep it from printing. */
typedef struct fgmm_hdf5_silence {
    H5E_auto2_t function;
    void *data;
} fgmm_hdf5_silence;

void fgmm_hdf5_enter(fgmm_hdf5_silence *silence);
void fgmm_hdf5_leave(const fgmm_hdf5_silence *silence);

/* "PATH: WHAT: HDF5's reason". */
fgmm_status fgmm_hdf5_failed(fgmm_context *ctx, fgmm_status status, const char *path, const char *what);

/* Splits "FILE:DATASET"; a file of the whole name comes first, as names may hold colons.
 * @param file to be freed. @param dataset within path; NULL if none is named. */
fgmm_status fgmm_hdf5_split(fgmm_context *ctx, const char *path, char **file, const char **dataset);

/* Opens a file to be read, saying better than HDF5 why it cannot be. */
fgmm_status fgmm_hdf5_open(fgmm_context *ctx, const char *file, hid_t *out);

/* The attribute `distance` of ann-benchmarks' files, such as "angular"; "" if there is none that can be used. */
void fgmm_hdf5_metric(hid_t file, char metric[FGMM_METRIC_NAME]);

#endif
#endif
