/* Statistics in files that hold more than statistics. */
#ifndef FGMM_LIB_IO_STATS_FILE_H
#define FGMM_LIB_IO_STATS_FILE_H

#include "../stats.h"
#include "npz.h"

/* @param extra NULL, or one more array. */
fgmm_status fgmm_stats_write(fgmm_context *ctx, const fgmm_stats *stats, const fgmm_array *extra, const char *path);
fgmm_status fgmm_stats_from_npz(fgmm_context *ctx, const fgmm_npz *npz, const char *path, fgmm_stats **out);

#endif
