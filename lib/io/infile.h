/* Opening a file to be read. */
#ifndef FGMM_LIB_IO_INFILE_H
#define FGMM_LIB_IO_INFILE_H

#include <sys/stat.h>

#include "../context.h"

/* A regular, non-empty file, open for reading. @param info its fstat. */
fgmm_status fgmm_infile_open(fgmm_context *ctx, const char *path, int *fd, struct stat *info);

/* FGMM_ERR_IO, "WHAT PATH: the system's reason". */
fgmm_status fgmm_fail_errno(fgmm_context *ctx, int error, const char *what, const char *path);

#endif
