/* A file written beside its place and renamed there: until then an old file stays whole. */
#ifndef FGMM_LIB_IO_OUTFILE_H
#define FGMM_LIB_IO_OUTFILE_H

#include "../context.h"

typedef struct fgmm_outfile {
    char *path; /* where it will be, symbolic links resolved */
    char *temp; /* where it is, in the same folder */
    int fd;     /* open for writing, or -1 */
} fgmm_outfile;

/* Creates the temporary file. On failure there is nothing to abandon. */
fgmm_status fgmm_outfile_open(fgmm_context *ctx, fgmm_outfile *out, const char *path);
fgmm_status fgmm_outfile_write(fgmm_context *ctx, fgmm_outfile *out, const void *data, size_t bytes);
/* Flushes to the disk and renames. Whatever comes of it, abandon must still be called. */
fgmm_status fgmm_outfile_commit(fgmm_context *ctx, fgmm_outfile *out);
/* Removes the temporary file unless it was committed, and frees what *out holds. */
void fgmm_outfile_abandon(fgmm_context *ctx, fgmm_outfile *out);

#endif
