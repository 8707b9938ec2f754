/* Arrays from an .npz or a single .npy. Whatever a file claims is weighed against its own size and the caller's
 * limit before memory is taken or anything is inflated. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>

#include "infile.h"
#include "npy.h"
#include "npz.h"

enum {
    MEMBERS_LIMIT = 4096,
    TEXT_LIMIT = 4096,    /* characters of a string array */
    DEFLATE_RATIO = 1032, /* zlib's best */
};

typedef struct npz_array {
    char *name;
    char *text;     /* of a string */
    double *values; /* of numbers; both NULL if refused */
    int ndim;
    int64_t shape[3];
    char refused[160]; /* why it cannot be used; it is no error until somebody asks for it */
} npz_array;

struct fgmm_npz {
    fgmm_context *ctx;
    npz_array *arrays;
    int count;
    int64_t room; /* bytes that may still be taken */
};

/* A member of a zip, or an open file. */
typedef struct byte_source {
    fgmm_npy_source base;
    zip_file_t *member;
    int fd;
    int64_t size; /* bytes in all */
} byte_source;

static fgmm_status read_bytes(fgmm_context *ctx, fgmm_npy_source *base, void *dst, size_t bytes) {
    byte_source *source = (byte_source *)base;
    char *at = dst;
    while (bytes > 0) {
        size_t piece = bytes < (1u << 30) ? bytes : 1u << 30;
        int64_t n = source->member ? zip_fread(source->member, at, piece) : read(source->fd, at, piece);
        if (n < 0 && source->member)
            return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: %s", base->label,
                             zip_error_strerror(zip_file_get_error(source->member)));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fgmm_fail_errno(ctx, errno, "cannot read", base->label);
        if (n == 0) return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: truncated: it ends inside the array", base->label);
        at += n;
        bytes -= (size_t)n;
    }
    return FGMM_OK;
}

static fgmm_status take_room(fgmm_npz *npz, const char *label, int64_t bytes) {
    if (bytes > npz->room)
        return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: needs %lld bytes, more than the %lld that may be read", label,
                         (long long)bytes, (long long)npz->room);
    npz->room -= bytes;
    return FGMM_OK;
}

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* A single '<U' or '|S' string, NULs at its end dropped. */
static fgmm_status read_text(fgmm_npz *npz, byte_source *source, const fgmm_npy_header *header, npz_array *array) {
    unsigned char raw[TEXT_LIMIT * 4];
    size_t used = 0, step = header->kind == 'U' ? 4 : 1;
    if (header->count != 1 || header->item > (size_t)TEXT_LIMIT * step || (step == 4 && header->order == '>')) {
        snprintf(array->refused, sizeof array->refused, "its dtype is %s: only a single little-endian string is read",
                 header->descr);
        return FGMM_OK;
    }
    FGMM_TRY(read_bytes(npz->ctx, &source->base, raw, header->item));
    array->text = fgmm_alloc(npz->ctx, header->item + 1, "a string array");
    if (!array->text) return FGMM_ERR_MEMORY;
    for (size_t i = 0; i < header->item; i += step) {
        uint32_t c = raw[i];
        if (step == 4) memcpy(&c, raw + i, 4);
        if (c == 0) break;
        if (step == 4 && (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)))
            return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: holds a code point that Unicode lacks",
                             source->base.label);
        if (step == 4)
            used += put_utf8(array->text + used, c);
        else
            array->text[used++] = (char)c;
    }
    array->text[used] = '\0';
    return FGMM_OK;
}

/* One .npy, whose size is known. */
static fgmm_status read_array(fgmm_npz *npz, byte_source *source, npz_array *array) {
    fgmm_context *ctx = npz->ctx;
    fgmm_npy_header header;
    bool numeric;
    FGMM_TRY(fgmm_npy_read_header(ctx, &source->base, &header));
    array->ndim = header.ndim;
    memcpy(array->shape, header.shape, sizeof array->shape);
    numeric = fgmm_npy_is_numeric(&header, array->refused, sizeof array->refused);
    if (header.kind == '?') return FGMM_OK;
    if (header.bytes != source->size - header.offset)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: its header claims %lld bytes of data, but %lld follow",
                         source->base.label, (long long)header.bytes, (long long)(source->size - header.offset));
    if (header.kind == 'U' || header.kind == 'S') return read_text(npz, source, &header, array);
    if (header.ndim > 3) {
        numeric = false;
        snprintf(array->refused, sizeof array->refused, "it has %d dimensions; at most 3 are read", header.ndim);
    }
    if (!numeric) return FGMM_OK;
    if (header.count > INT64_MAX / 8) return take_room(npz, source->base.label, INT64_MAX);
    FGMM_TRY(take_room(npz, source->base.label, header.count * 8));
    array->values = fgmm_alloc(ctx, (size_t)header.count * 8, "an array of a file");
    if (!array->values) return FGMM_ERR_MEMORY;
    return fgmm_npy_read_doubles(ctx, &source->base, &header, array->values);
}

/* "PATH: 'NAME'", to be freed. */
static char *member_label(fgmm_context *ctx, const char *path, const char *name) {
    size_t size = strlen(path) + strlen(name) + 6;
    char *label = fgmm_alloc(ctx, size, "a label");
    if (label) snprintf(label, size, "%s: '%s'", path, name);
    return label;
}

static fgmm_status check_member(fgmm_npz *npz, const char *label, const zip_stat_t *info, int64_t file_bytes) {
    const zip_uint64_t needed = ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    if ((info->valid & needed) != needed)
        return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: its size is not told", label);
    if (info->encryption_method != ZIP_EM_NONE)
        return fgmm_fail(npz->ctx, FGMM_ERR_UNSUPPORTED, "%s: is encrypted, which is not read", label);
    if (info->comp_method != ZIP_CM_STORE && info->comp_method != ZIP_CM_DEFLATE)
        return fgmm_fail(npz->ctx, FGMM_ERR_UNSUPPORTED,
                         "%s: is compressed with method %d; only stored and deflated arrays are read", label,
                         (int)info->comp_method);
    if (info->comp_size > (zip_uint64_t)file_bytes ||
        (info->comp_method == ZIP_CM_STORE && info->size != info->comp_size) ||
        info->size / DEFLATE_RATIO > info->comp_size)
        return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT,
                         "%s: claims %llu bytes out of %llu in a file of %lld, which cannot be", label,
                         (unsigned long long)info->size, (unsigned long long)info->comp_size, (long long)file_bytes);
    if (info->size > (zip_uint64_t)npz->room)
        return take_room(npz, label, info->size < INT64_MAX ? (int64_t)info->size : INT64_MAX);
    return FGMM_OK;
}

static fgmm_status read_member(fgmm_npz *npz, zip_t *zip, zip_uint64_t index, const char *path, int64_t file_bytes) {
    fgmm_context *ctx = npz->ctx;
    npz_array *array = &npz->arrays[npz->count];
    byte_source source = {{NULL, read_bytes}, NULL, -1, 0};
    zip_stat_t info;
    fgmm_status status;
    size_t length;
    char *label = NULL, extra;
    zip_stat_init(&info);
    if (zip_stat_index(zip, index, 0, &info) != 0 || !(info.valid & ZIP_STAT_NAME))
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: %s", path, zip_strerror(zip));
    length = strlen(info.name);
    if (length < 4 || strcmp(info.name + length - 4, ".npy") != 0) return FGMM_OK; /* not an array */
    array->name = fgmm_strdup(ctx, info.name);
    if (!array->name) return FGMM_ERR_MEMORY;
    npz->count++;
    array->name[length - 4] = '\0';
    for (int i = 0; i + 1 < npz->count; i++)
        if (strcmp(npz->arrays[i].name, array->name) == 0)
            return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: holds '%s' twice", path, array->name);
    label = member_label(ctx, path, array->name);
    if (!label) return FGMM_ERR_MEMORY;
    FGMM_GO(check_member(npz, label, &info, file_bytes));
    source.base.label = label;
    source.size = (int64_t)info.size;
    source.member = zip_fopen_index(zip, index, 0);
    if (!source.member) {
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: %s", label, zip_strerror(zip));
        goto done;
    }
    FGMM_GO(read_array(npz, &source, array));
    /* Reading to the very end makes libzip compare the checksum. */
    if ((array->values || array->text) && zip_fread(source.member, &extra, 1) != 0)
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: damaged: %s", label,
                           zip_error_strerror(zip_file_get_error(source.member)));
done:
    if (source.member) zip_fclose(source.member);
    fgmm_free(ctx, label);
    return status;
}

static fgmm_status read_zip(fgmm_npz *npz, const char *path, int64_t file_bytes) {
    int code = 0;
    zip_t *zip = zip_open(path, ZIP_RDONLY, &code);
    zip_int64_t members;
    fgmm_status status = FGMM_OK;
    if (!zip) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: not a whole .npz: %s", path, zip_error_strerror(&error));
        zip_error_fini(&error);
        return FGMM_ERR_FORMAT;
    }
    members = zip_get_num_entries(zip, 0);
    if (members > MEMBERS_LIMIT) {
        status = fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: holds %lld members; at most %d are read", path,
                           (long long)members, MEMBERS_LIMIT);
        goto done;
    }
    npz->arrays = fgmm_calloc(npz->ctx, (size_t)members, sizeof *npz->arrays, "the list of arrays");
    if (!npz->arrays) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    for (zip_int64_t i = 0; i < members; i++) FGMM_GO(read_member(npz, zip, (zip_uint64_t)i, path, file_bytes));
done:
    zip_discard(zip);
    return status;
}

static fgmm_status read_npy(fgmm_npz *npz, const char *path, int fd, int64_t file_bytes) {
    byte_source source = {{path, read_bytes}, NULL, fd, file_bytes};
    npz->arrays = fgmm_calloc(npz->ctx, 1, sizeof *npz->arrays, "the list of arrays");
    if (!npz->arrays) return FGMM_ERR_MEMORY;
    npz->arrays[0].name = fgmm_strdup(npz->ctx, "");
    if (!npz->arrays[0].name) return FGMM_ERR_MEMORY;
    npz->count = 1;
    return read_array(npz, &source, npz->arrays);
}

fgmm_status fgmm_npz_read(fgmm_context *ctx, fgmm_npz **out, const char *path, int64_t max_bytes) {
    /* An honest file of numbers deflates little; one that swells further than this is a bomb. */
    const int64_t free_bytes = (int64_t)256 << 20, swell = 64;
    fgmm_npz *npz = NULL;
    struct stat info;
    char magic[2] = "";
    ssize_t got;
    fgmm_status status = FGMM_OK;
    int fd = -1;
    *out = NULL;
    FGMM_TRY(fgmm_infile_open(ctx, path, &fd, &info));
    npz = fgmm_calloc(ctx, 1, sizeof *npz, "the arrays of a file");
    if (!npz) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    npz->ctx = ctx;
    npz->room = max_bytes;
    if (info.st_size < INT64_MAX / 128 && npz->room > free_bytes + swell * info.st_size)
        npz->room = free_bytes + swell * info.st_size;
    got = pread(fd, magic, 2, 0);
    if (got < 0)
        status = fgmm_fail_errno(ctx, errno, "cannot read", path);
    else if (got == 2 && memcmp(magic, "PK", 2) == 0)
        status = read_zip(npz, path, info.st_size);
    else if (got == 2 && memcmp(magic, "\x93N", 2) == 0)
        status = read_npy(npz, path, fd, info.st_size);
    else
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: neither an .npz nor an .npy", path);
done:
    close(fd);
    if (status == FGMM_OK)
        *out = npz;
    else
        fgmm_npz_free(ctx, npz);
    return status;
}

void fgmm_npz_free(fgmm_context *ctx, fgmm_npz *npz) {
    if (!npz) return;
    for (int i = 0; i < npz->count; i++) {
        fgmm_free(ctx, npz->arrays[i].name);
        fgmm_free(ctx, npz->arrays[i].text);
        fgmm_free(ctx, npz->arrays[i].values);
    }
    fgmm_free(ctx, npz->arrays);
    fgmm_free(ctx, npz);
}

static const npz_array *find(const fgmm_npz *npz, const char *name) {
    for (int i = 0; i < npz->count; i++)
        if (strcmp(npz->arrays[i].name, name) == 0) return &npz->arrays[i];
    return NULL;
}

const double *fgmm_npz_doubles(const fgmm_npz *npz, const char *name, int *ndim, const int64_t **shape) {
    const npz_array *array = find(npz, name);
    if (!array || !array->values) return NULL;
    *ndim = array->ndim;
    *shape = array->shape;
    return array->values;
}

const char *fgmm_npz_string(const fgmm_npz *npz, const char *name) {
    const npz_array *array = find(npz, name);
    return array ? array->text : NULL;
}

bool fgmm_npz_has(const fgmm_npz *npz, const char *name) {
    return find(npz, name) != NULL;
}

/* "[3, 4]". */
static void shape_text(char *out, size_t size, int ndim, const int64_t *shape) {
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < ndim && i < 3; i++)
        used += (size_t)snprintf(out + used, size - used, i ? ", %lld" : "%lld", (long long)shape[i]);
    snprintf(out + used, size - used, "]");
}

fgmm_status fgmm_npz_need(const fgmm_npz *npz, const char *path, const char *name, int ndim, const int64_t *shape,
                          const double **out) {
    const npz_array *array = find(npz, name);
    char got[96], wanted[96];
    if (!array) return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: has no array '%s'", path, name);
    if (!array->values)
        return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: '%s' cannot be used: %s", path, name,
                         array->text ? "it is a string" : array->refused);
    if (array->ndim == ndim && (ndim == 0 || memcmp(array->shape, shape, (size_t)ndim * sizeof *shape) == 0)) {
        *out = array->values;
        return FGMM_OK;
    }
    shape_text(got, sizeof got, array->ndim, array->shape);
    shape_text(wanted, sizeof wanted, ndim, shape);
    return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: '%s' has shape %s; it should be %s", path, name, got, wanted);
}

fgmm_status fgmm_npz_shape(const fgmm_npz *npz, const char *path, const char *name, int ndim, const int64_t **out) {
    const npz_array *array = find(npz, name);
    if (array && array->values && array->ndim != ndim)
        return fgmm_fail(npz->ctx, FGMM_ERR_FORMAT, "%s: '%s' has %d dimensions; it should have %d", path, name,
                         array->ndim, ndim);
    if (array && array->values) {
        *out = array->shape;
        return FGMM_OK;
    }
    return fgmm_npz_need(npz, path, name, 0, NULL, &(const double *){NULL}); /* has the right message */
}
