/* Opening a file to be read. */
#ifndef FGMM_LIB_IO_INFILE_H
#define FGMM_LIB_IO_INFILE_H

#include <sys/stat.h>

#include "../context.h"

/* A regular, non-empty file, open for reading. @param info its fstat. */
fgmm_status fgmm_infile_open(fgmm_context *ctx, const char *path, int *fd, struct stat *info);

/* A file that is read at any place. */
typedef struct fgmm_infile {
    const char *path;
    int fd;
    int64_t size; /* bytes when it was opened */
    int passing;  /* 1: what has been read is let go from the system's cache */
} fgmm_infile;

/* Says that the file will be read from front to back. One that takes more than a quarter of the memory passes through: it
 * would push out of the system's cache what is used again, and itself with it. @param whole bytes of all files that are
 * read with it; 0: of this one. */
void fgmm_infile_streams(fgmm_infile *file, int64_t whole);

/* Exactly that many bytes; FGMM_ERR_IO if the file has shrunk since. */
fgmm_status fgmm_infile_read(fgmm_context *ctx, const fgmm_infile *file, void *dst, size_t bytes, int64_t offset);

/* Whether the path ends in one of `count` endings, case aside; what may follow a last colon is no part of the path
 * for this. */
int fgmm_path_ends(const char *path, const char *const *endings, int count);

/* The characters behind the last dot of a path's last part; "" if it has none. */
const char *fgmm_path_ending(const char *path);

/* FGMM_ERR_IO, "WHAT PATH: the system's reason". */
fgmm_status fgmm_fail_errno(fgmm_context *ctx, int error, const char *what, const char *path);

#endif
