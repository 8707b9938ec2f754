/* Kinds of rows in files that rows_file.c hands on. */
#ifndef FGMM_LIB_IO_ROWS_FILE_H
#define FGMM_LIB_IO_ROWS_FILE_H

#include "../rows.h"

/* @param path as the user gave it: "PATH" or "PATH:DATASET". */
fgmm_status fgmm_rows_open_hdf5(fgmm_context *ctx, fgmm_rows **out, const char *path);

#endif
