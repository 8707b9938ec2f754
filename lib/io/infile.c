/* Refuses by name what is not a file that can be read, and reads what is. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
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

void fgmm_infile_streams(fgmm_infile *file, int64_t whole) {
    file->passing = (double)(whole ? whole : file->size) > fgmm_memory_quarter();
#ifdef POSIX_FADV_SEQUENTIAL
    posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* advice: it changes nothing but the speed */
#endif
}

fgmm_status fgmm_infile_read(fgmm_context *ctx, const fgmm_infile *file, void *dst, size_t bytes, int64_t offset) {
    char *at = dst;
    int64_t from = offset;
    while (bytes > 0) {
        ssize_t n = pread(file->fd, at, bytes < (1u << 30) ? bytes : 1u << 30, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fgmm_fail_errno(ctx, errno, "cannot read", file->path);
        if (n == 0)
            return fgmm_fail(ctx, FGMM_ERR_IO, "cannot read %s: it ends at byte %lld; it had %lld when it was opened",
                             file->path, (long long)offset, (long long)file->size);
        at += n;
        offset += n;
        bytes -= (size_t)n;
    }
#ifdef POSIX_FADV_DONTNEED
    if (file->passing) posix_fadvise(file->fd, from, offset - from, POSIX_FADV_DONTNEED);
#else
    (void)from;
#endif
    return FGMM_OK;
}

int fgmm_path_ends(const char *path, const char *const *endings, int count) {
    const char *colon = strrchr(path, ':');
    size_t whole = strlen(path), lengths[2] = {whole, colon ? (size_t)(colon - path) : whole};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < count; j++) {
            size_t ending = strlen(endings[j]);
            if (lengths[i] > ending && strncasecmp(path + lengths[i] - ending, endings[j], ending) == 0) return 1;
        }
    return 0;
}

const char *fgmm_path_ending(const char *path) {
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
    return dot ? dot + 1 : "";
}
