/* HDF5 files, opened and asked for their metric. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hdf5_file.h"
#include "infile.h"

int fgmm_hdf5_is_path(const char *path) {
    static const char *const endings[] = {".h5", ".hdf5"};
    return fgmm_path_ends(path, endings, 2);
}

fgmm_status fgmm_hdf5_missing(fgmm_context *ctx, const char *path) {
    return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED,
                     "%s: this build of flashgmm reads and writes no HDF5 (Meson option hdf5)", path);
}

#ifdef FGMM_HAVE_HDF5

#include <pthread.h>

static pthread_mutex_t hdf5_lock = PTHREAD_MUTEX_INITIALIZER;

void fgmm_hdf5_enter(fgmm_hdf5_silence *silence) {
    pthread_mutex_lock(&hdf5_lock);
    H5Eget_auto2(H5E_DEFAULT, &silence->function, &silence->data);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void fgmm_hdf5_leave(const fgmm_hdf5_silence *silence) {
    H5Eset_auto2(H5E_DEFAULT, silence->function, silence->data);
    pthread_mutex_unlock(&hdf5_lock);
}

/* The innermost entry of HDF5's error stack says what happened; those above it only who asked. */
static herr_t innermost(unsigned depth, const H5E_error2_t *error, void *user) {
    char *reason = user;
    (void)depth;
    if (error->desc && *error->desc) snprintf(reason, 256, "%s", error->desc);
    return 0;
}

fgmm_status fgmm_hdf5_failed(fgmm_context *ctx, fgmm_status status, const char *path, const char *what) {
    char reason[256] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, innermost, reason);
    return fgmm_fail(ctx, status, "%s: %s: %s", path, what, reason);
}

fgmm_status fgmm_hdf5_split(fgmm_context *ctx, const char *path, char **file, const char **dataset) {
    const char *colon = strrchr(path, ':');
    *dataset = NULL;
    *file = fgmm_strdup(ctx, path);
    if (!*file) return FGMM_ERR_MEMORY;
    if (!colon || access(path, F_OK) == 0) return FGMM_OK;
    (*file)[colon - path] = '\0';
    if (colon[1]) *dataset = colon + 1;
    return FGMM_OK;
}

fgmm_status fgmm_hdf5_open(fgmm_context *ctx, const char *file, hid_t *out) {
    struct stat info;
    int fd;
    FGMM_TRY(fgmm_infile_open(ctx, file, &fd, &info));
    close(fd);
    *out = H5Fopen(file, H5F_ACC_RDONLY, H5P_DEFAULT);
    return *out < 0 ? fgmm_hdf5_failed(ctx, FGMM_ERR_FORMAT, file, "not a whole HDF5 file") : FGMM_OK;
}

/* @param type the attribute's own, a string: h5py makes them of variable length, others of a fixed one. */
static void read_text(hid_t attribute, hid_t type, char metric[FGMM_METRIC_NAME]) {
    enum { LONGEST = 256 };
    char fixed[LONGEST + 1] = "", *variable = NULL;
    hid_t space, base;
    if (H5Tis_variable_str(type) > 0) {
        /* A damaged type may have characters of any size, and HDF5 takes memory for them. */
        size_t character = 0;
        base = H5Tget_super(type);
        if (base >= 0) character = H5Tget_size(base);
        if (base >= 0) H5Tclose(base);
        if (character != 1 || H5Aread(attribute, type, &variable) < 0) return;
        if (variable) snprintf(metric, FGMM_METRIC_NAME, "%s", variable);
        space = H5Aget_space(attribute);
        if (space >= 0) {
            H5Dvlen_reclaim(type, space, H5P_DEFAULT, &variable);
            H5Sclose(space);
        }
    } else if (H5Tget_size(type) <= LONGEST && H5Aread(attribute, type, fixed) >= 0)
        snprintf(metric, FGMM_METRIC_NAME, "%s", fixed);
}

void fgmm_hdf5_metric(hid_t file, char metric[FGMM_METRIC_NAME]) {
    hid_t attribute = -1, type = -1, space = -1;
    metric[0] = '\0';
    if (H5Aexists(file, "distance") <= 0) return;
    attribute = H5Aopen(file, "distance", H5P_DEFAULT);
    if (attribute >= 0) type = H5Aget_type(attribute);
    if (attribute >= 0) space = H5Aget_space(attribute);
    if (type >= 0 && space >= 0 && H5Tget_class(type) == H5T_STRING && H5Sget_simple_extent_npoints(space) == 1)
        read_text(attribute, type, metric);
    for (char *c = metric; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~') *c = '?'; /* it may be printed */
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attribute >= 0) H5Aclose(attribute);
}

#endif
