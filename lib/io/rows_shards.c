/* Several files as one source of rows: those of a folder, or those that a pattern names, in the order of their names. One
 * is open at a time; its header is read again whenever its turn comes. */
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "infile.h"
#include "npy.h"
#include "rows_file.h"

typedef struct shard {
    char *path;
    int64_t first, n; /* its rows, numbered through all shards */
} shard;

typedef struct shards {
    shard *list;
    int64_t count, room;
    char *format; /* as given, or NULL */
    fgmm_dtype type;
    int64_t d, bytes;
    fgmm_rows *open; /* of shard `at`, or NULL */
    int64_t at;
} shards;

static void close_shards(fgmm_context *ctx, void *state) {
    shards *all = state;
    fgmm_rows_free(ctx, all->open);
    for (int64_t i = 0; i < all->count; i++) fgmm_free(ctx, all->list[i].path);
    fgmm_free(ctx, all->list);
    fgmm_free(ctx, all->format);
    fgmm_free(ctx, all);
}

/* ---- finding them ---- */

/* Adds FOLDER/NAME, or NAME where folder is "". */
static fgmm_status add_path(fgmm_context *ctx, shards *all, const char *folder, const char *name) {
    if (all->count == all->room) {
        int64_t room = all->room ? 2 * all->room : 64;
        shard *list = fgmm_calloc(ctx, (size_t)room, sizeof *list, "a list of shards");
        if (!list) return FGMM_ERR_MEMORY;
        if (all->count) memcpy(list, all->list, (size_t)all->count * sizeof *list);
        fgmm_free(ctx, all->list);
        all->list = list;
        all->room = room;
    }
    size_t length = strlen(folder);
    char *path = fgmm_alloc(ctx, length + strlen(name) + 2, "the name of a shard");
    if (!path) return FGMM_ERR_MEMORY;
    memcpy(path, folder, length);
    if (length && folder[length - 1] != '/') path[length++] = '/';
    strcpy(path + length, name);
    all->list[all->count++].path = path;
    return FGMM_OK;
}

static fgmm_status list_folder(fgmm_context *ctx, shards *all, const char *path) {
    fgmm_status status = FGMM_OK;
    DIR *folder = opendir(path);
    if (!folder) return fgmm_fail_errno(ctx, errno, "cannot read", path);
    for (struct dirent *entry; status == FGMM_OK && (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        /* Other files may lie beside the rows; with a format given, all are meant. */
        if (all->format || fgmm_rows_is_name(entry->d_name)) status = add_path(ctx, all, path, entry->d_name);
    }
    closedir(folder);
    if (status == FGMM_OK && all->count == 0)
        return fgmm_fail(ctx, FGMM_ERR_IO, "cannot read %s: the folder holds no file of rows (%s)", path,
                         FGMM_ROWS_FORMATS);
    return status;
}

static fgmm_status list_pattern(fgmm_context *ctx, shards *all, const char *pattern) {
    glob_t found;
    int code = glob(pattern, GLOB_NOSORT, NULL, &found);
    fgmm_status status = FGMM_OK;
    if (code == GLOB_NOMATCH)
        status = fgmm_fail(ctx, FGMM_ERR_IO, "cannot open %s: no file has such a name", pattern);
    else if (code != 0)
        status = fgmm_fail(ctx, FGMM_ERR_IO, "cannot open %s: its folder cannot be read", pattern);
    for (size_t i = 0; code == 0 && status == FGMM_OK && i < found.gl_pathc; i++)
        status = add_path(ctx, all, "", found.gl_pathv[i]);
    globfree(&found);
    return status;
}

/* ---- their rows ---- */

static const char *type_name(fgmm_dtype type) {
    const char *name = fgmm_npy_descr(type);
    return name ? name + 1 : "bf16";
}

/* Opens shard i in place of the one before, and sees that it still is what it was. */
static fgmm_status turn_to(fgmm_context *ctx, shards *all, int64_t i) {
    if (all->open && all->at == i) return FGMM_OK;
    fgmm_rows_free(ctx, all->open);
    all->open = NULL;
    FGMM_TRY(fgmm_rows_open_file(ctx, &all->open, all->list[i].path, all->format, all->bytes));
    all->at = i;
    const fgmm_rows *rows = all->open;
    if (rows->n == all->list[i].n && rows->d == all->d && rows->type == all->type) return FGMM_OK;
    fgmm_status status = fgmm_fail(
        ctx, FGMM_ERR_IO, "%s has changed: it held %lld rows of %lld features of %s, and now %lld of %lld of %s",
        all->list[i].path, (long long)all->list[i].n, (long long)all->d, type_name(all->type), (long long)rows->n,
        (long long)rows->d, type_name(rows->type));
    fgmm_rows_free(ctx, all->open);
    all->open = NULL;
    return status;
}

static fgmm_status read_shards(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    shards *all = state;
    size_t row = (size_t)all->d * fgmm_dtype_size(all->type);
    int64_t low = 0, high = all->count - 1; /* the last shard that begins at or before `first` */
    while (low < high) {
        int64_t middle = high - (high - low) / 2;
        if (all->list[middle].first <= first)
            low = middle;
        else
            high = middle - 1;
    }
    for (char *to = dst; n > 0; low++) {
        const shard *part = &all->list[low];
        int64_t from = first - part->first, count = part->n - from < n ? part->n - from : n;
        FGMM_TRY(turn_to(ctx, all, low));
        FGMM_TRY(fgmm_rows_read(ctx, all->open, from, count, to));
        to += (size_t)count * row;
        first += count;
        n -= count;
    }
    return FGMM_OK;
}

static const fgmm_rows_ops shards_ops = {.read = read_shards, .close = close_shards};

/* Reads all headers. */
static fgmm_status measure(fgmm_context *ctx, shards *all, int64_t *n) {
    *n = 0;
    for (int64_t i = 0; i < all->count; i++) {
        shard *part = &all->list[i];
        fgmm_rows *rows = NULL;
        struct stat info;
        FGMM_TRY(fgmm_rows_open_file(ctx, &rows, part->path, all->format, 0));
        part->first = *n;
        part->n = rows->n;
        if (i == 0) {
            all->d = rows->d;
            all->type = rows->type;
        }
        int64_t d = rows->d;
        fgmm_dtype type = rows->type;
        fgmm_rows_free(ctx, rows);
        if (d != all->d || type != all->type)
            return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                             "%s holds rows of %lld features of %s, and %s, the first shard, %lld of %s", part->path,
                             (long long)d, type_name(type), all->list[0].path, (long long)all->d, type_name(all->type));
        if (__builtin_add_overflow(*n, part->n, n))
            return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: with it the shards hold more rows than can be counted",
                             part->path);
        if (stat(part->path, &info) == 0) all->bytes += info.st_size;
    }
    return FGMM_OK;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const shard *)a)->path, ((const shard *)b)->path);
}

fgmm_status fgmm_rows_open_shards(fgmm_context *ctx, fgmm_rows **out, const char *path, const char *format) {
    shards *all = fgmm_calloc(ctx, 1, sizeof *all, "a list of shards");
    fgmm_status status = FGMM_OK;
    struct stat info;
    int64_t n;
    if (!all) return FGMM_ERR_MEMORY;
    if (format && !(all->format = fgmm_strdup(ctx, format))) status = FGMM_ERR_MEMORY;
    if (status != FGMM_OK) goto done;
    int is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    FGMM_GO(is_folder ? list_folder(ctx, all, path) : list_pattern(ctx, all, path));
    qsort(all->list, (size_t)all->count, sizeof *all->list, by_path);
    FGMM_GO(measure(ctx, all, &n));
    FGMM_TRY(fgmm_rows_new(ctx, out, &shards_ops, all, all->type, n, all->d));
    (*out)->readers = 1;
    return FGMM_OK;
done:
    close_shards(ctx, all);
    return status;
}
