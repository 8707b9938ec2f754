/* Refuses by name what is not a file that can be read. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "infile.h"

fgmm_status fgmm_fail_errno(fgmm_context *ctx, int error, const char *what, const char *path) {
    char reason[128] = "unknown error";
    if (strerror_r(error, reason, sizeof reason) != 0) snprintf(reason, sizeof reason, "error %d", error);
    return fgmm_fail(ctx, FGMM_ERR_IO, "%s %s: %s", what, path, reason);
}

fgmm_status fgmm_infile_open(fgmm_context *ctx, const char *path, int *out, struct stat *info) {
    /* Not blocking: a pipe without a writer would wait for ever. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    fgmm_status status = FGMM_OK;
    if (fd < 0) return fgmm_fail_errno(ctx, errno, "cannot open", path);
    if (fstat(fd, info) != 0)
        status = fgmm_fail_errno(ctx, errno, "cannot read", path);
    else if (S_ISDIR(info->st_mode))
        status = fgmm_fail(ctx, FGMM_ERR_IO, "cannot read %s: it is a folder", path);
    else if (!S_ISREG(info->st_mode))
        status = fgmm_fail(ctx, FGMM_ERR_IO, "cannot read %s: it is not a regular file", path);
    else if (info->st_size == 0)
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: is empty", path);
    if (status == FGMM_OK)
        *out = fd;
    else
        close(fd);
    return status;
}
