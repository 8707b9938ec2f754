/* Files: rows by blocks, arrays, models and statistics. Every reader treats its file as hostile. */
#ifndef FGMM_LIB_IO_H
#define FGMM_LIB_IO_H

#include "../context.h"

/* Arrays read from an .npz (or one .npy), all in memory. Sizes are checked against max_bytes before anything is inflated. */
typedef struct fgmm_npz fgmm_npz;

fgmm_status fgmm_npz_read(fgmm_context *ctx, fgmm_npz **out, const char *path, int64_t max_bytes);
void fgmm_npz_free(fgmm_context *ctx, fgmm_npz *npz);
/* A numeric array as doubles, converted from any numeric dtype, C order. NULL (no message) if absent.
 * @param shape [3]; owned by npz. */
const double *fgmm_npz_doubles(const fgmm_npz *npz, const char *name, int *ndim, const int64_t **shape);
/* A 0-d string array ('<U' or '|S'), UTF-8. NULL if absent or not a string. */
const char *fgmm_npz_string(const fgmm_npz *npz, const char *name);

/* One entry to write: numbers as in fgmm_array, or, with text set, a 0-d '<U' string. */
typedef struct fgmm_npz_entry {
    fgmm_array array;
    const char *text;
} fgmm_npz_entry;

/* Deterministic (fixed time stamps), written beside and renamed. */
fgmm_status fgmm_npz_write(fgmm_context *ctx, const char *path, const fgmm_npz_entry *entries, int count);

#endif
