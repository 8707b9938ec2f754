/* What the readers of models and statistics ask of an .npz: an array of a known shape, or a message that says what is wrong with it. */
#ifndef FGMM_LIB_IO_NPZ_H
#define FGMM_LIB_IO_NPZ_H

#include <stdbool.h>

#include "io.h"

/* The most that a model or statistics may take in memory. */
#define FGMM_NPZ_LIMIT ((int64_t)64 << 30)

bool fgmm_npz_has(const fgmm_npz *npz, const char *name);

/* Numbers of exactly this shape. @param path for the message. */
fgmm_status fgmm_npz_need(const fgmm_npz *npz, const char *path, const char *name, int ndim, const int64_t *shape,
                          const double **out);

/* The shape of a numeric array with that many dimensions. */
fgmm_status fgmm_npz_shape(const fgmm_npz *npz, const char *path, const char *name, int ndim, const int64_t **out);

/* Fails again with the status, the last message behind "PATH: ". */
fgmm_status fgmm_fail_at(fgmm_context *ctx, fgmm_status status, const char *path);

#endif
