/* Whole files or none. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "infile.h"
#include "outfile.h"

/* Bytes of the folder's part of a path, its last slash included. */
static size_t folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* The file that a link leads to is replaced, not the link; a device or a folder never is. */
static fgmm_status resolve(fgmm_context *ctx, const char *path, char **out) {
    struct stat info;
    char *real = NULL;
    if (lstat(path, &info) == 0 && S_ISLNK(info.st_mode)) real = realpath(path, NULL);
    *out = fgmm_strdup(ctx, real ? real : path);
    free(real);
    if (!*out) return FGMM_ERR_MEMORY;
    if (stat(*out, &info) == 0 && !S_ISREG(info.st_mode)) {
        fgmm_free(ctx, *out);
        *out = NULL;
        return fgmm_fail(ctx, FGMM_ERR_IO, "cannot write %s: it is %s", path,
                         S_ISDIR(info.st_mode) ? "a folder" : "not a regular file");
    }
    return FGMM_OK;
}

fgmm_status fgmm_outfile_open(fgmm_context *ctx, fgmm_outfile *out, const char *path) {
    enum { NAME_ROOM = 64, ATTEMPTS = 1000 };
    size_t folder;
    fgmm_status status;
    int error;
    *out = (fgmm_outfile){NULL, NULL, -1};
    if (!*path || path[strlen(path) - 1] == '/')
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "cannot write \"%s\": it names no file", path);
    FGMM_GO(resolve(ctx, path, &out->path));
    folder = folder_length(out->path);
    out->temp = fgmm_alloc(ctx, folder + NAME_ROOM, "a file name");
    if (!out->temp) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    memcpy(out->temp, out->path, folder);
    for (int i = 0; i < ATTEMPTS && out->fd < 0; i++) {
        snprintf(out->temp + folder, NAME_ROOM, ".flashgmm-%ld-%d.tmp", (long)getpid(), i);
        out->fd = open(out->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (out->fd < 0 && errno != EEXIST) break;
    }
    if (out->fd < 0) {
        error = errno;
        out->temp[folder] = '\0'; /* not ours to remove; what is left names the folder */
        status = error == ENOENT ? fgmm_fail(ctx, FGMM_ERR_IO, "cannot write %s: the folder %s does not exist", path,
                                             folder ? out->temp : ".")
                                 : fgmm_fail_errno(ctx, error, "cannot write", path);
        fgmm_free(ctx, out->temp);
        out->temp = NULL;
    }
done:
    if (status != FGMM_OK) fgmm_outfile_abandon(ctx, out);
    return status;
}

fgmm_status fgmm_outfile_write(fgmm_context *ctx, fgmm_outfile *out, const void *data, size_t bytes) {
    const char *at = data;
    while (bytes > 0) {
        ssize_t n = write(out->fd, at, bytes < (1u << 30) ? bytes : 1u << 30);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fgmm_fail_errno(ctx, errno, "cannot write", out->path);
        at += n;
        bytes -= (size_t)n;
    }
    return FGMM_OK;
}

/* Makes the rename last; a file system that cannot sync a folder loses nothing by it. */
static void sync_folder(char *temp) {
    size_t folder = folder_length(temp);
    int fd;
    temp[folder] = '\0';
    fd = open(folder ? temp : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

fgmm_status fgmm_outfile_commit(fgmm_context *ctx, fgmm_outfile *out) {
    int fd = out->fd;
    if (fsync(fd) != 0 && errno != EINVAL) return fgmm_fail_errno(ctx, errno, "cannot write", out->path);
    out->fd = -1;
    if (close(fd) != 0) return fgmm_fail_errno(ctx, errno, "cannot write", out->path);
    if (rename(out->temp, out->path) != 0) return fgmm_fail_errno(ctx, errno, "cannot write", out->path);
    sync_folder(out->temp);
    fgmm_free(ctx, out->temp);
    out->temp = NULL;
    return FGMM_OK;
}

void fgmm_outfile_abandon(fgmm_context *ctx, fgmm_outfile *out) {
    if (out->fd >= 0) close(out->fd);
    if (out->temp) unlink(out->temp);
    fgmm_free(ctx, out->temp);
    fgmm_free(ctx, out->path);
    *out = (fgmm_outfile){NULL, NULL, -1};
}
