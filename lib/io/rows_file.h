/* Kinds of rows that come from outside; fgmm_rows_open chooses. */
#ifndef FGMM_LIB_IO_ROWS_FILE_H
#define FGMM_LIB_IO_ROWS_FILE_H

#include "../rows.h"
#include "npy.h"

#define FGMM_ROWS_FORMATS "npy, fvecs, bvecs, fbin, u8bin, i8bin, hdf5"

/* Whether the ending is that of a format of rows. */
int fgmm_rows_is_name(const char *path);

/* One file. @param format NULL by extension. @param whole bytes of all files that are read with it; 0: of this one. */
fgmm_status fgmm_rows_open_file(fgmm_context *ctx, fgmm_rows **out, const char *path, const char *format,
                                int64_t whole);

/* The files of a folder, or those that a pattern names. */
fgmm_status fgmm_rows_open_shards(fgmm_context *ctx, fgmm_rows **out, const char *path, const char *format);

/* Standard input. */
fgmm_status fgmm_rows_open_pipe(fgmm_context *ctx, fgmm_rows **out, const char *format);

/* FILE or FILE:DATASET. FGMM_ERR_UNSUPPORTED in a build without HDF5. */
fgmm_status fgmm_rows_open_hdf5(fgmm_context *ctx, fgmm_rows **out, const char *path);

/* Whether the format is one of a header of two numbers and the rows behind it ("fbin" and its kin), and of which type. */
int fgmm_rows_bin_type(const char *format, fgmm_dtype *out);

/* The type of rows in an .npy; FGMM_ERR_FORMAT where it holds none. */
fgmm_status fgmm_rows_npy_type(fgmm_context *ctx, const char *label, const fgmm_npy_header *header, fgmm_dtype *out);

#endif
