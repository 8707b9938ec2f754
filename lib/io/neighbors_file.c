/* Neighbours in files: ids of the nearest rows of each query, for some formats with their distances.
 *
 *   ivecs    each query: int32 k, then k int32 ids                             (TexMex)
 *   ibin     uint32 n, uint32 k, int32 ids [n, k] (RAFT), and perhaps float32 distances [n, k] (big-ann-benchmarks)
 *   npy      integers [n, k]
 *   hdf5     neighbors_hdf5.c
 */
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "../dispatch.h"
#include "hdf5_file.h"
#include "infile.h"
#include "neighbors_file.h"
#include "npy.h"
#include "outfile.h"

enum { PIECE_BYTES = 1 << 18 };

/* ---- in memory ---- */

fgmm_status fgmm_neighbors_new(fgmm_context *ctx, fgmm_neighbors_memory **out, const char *path, int64_t n, int64_t k,
                               int distances) {
    int64_t count = 0;
    fgmm_neighbors_memory *made = NULL;
    if (n <= 0 || k <= 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: holds %lld queries with %lld neighbours; both must be positive",
                         path, (long long)n, (long long)k);
    if (__builtin_mul_overflow(n, k, &count) || count > INT64_MAX / 16)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: claims %lld x %lld neighbours, which overflows", path, (long long)n,
                         (long long)k);
    made = fgmm_calloc(ctx, 1, sizeof *made, "neighbours");
    if (!made) return FGMM_ERR_MEMORY;
    made->ids = fgmm_alloc(ctx, (size_t)count * sizeof *made->ids, "the ids of neighbours");
    if (made->ids && distances)
        made->distances = fgmm_alloc(ctx, (size_t)count * sizeof *made->distances, "the distances of neighbours");
    if (!made->ids || (distances && !made->distances)) {
        fgmm_neighbors_free(ctx, &made->view);
        return FGMM_ERR_MEMORY;
    }
    made->view = (fgmm_neighbors){n, k, made->ids, made->distances, made->metric};
    *out = made;
    return FGMM_OK;
}

void fgmm_neighbors_free(fgmm_context *ctx, fgmm_neighbors *neighbors) {
    fgmm_neighbors_memory *made = (fgmm_neighbors_memory *)neighbors;
    if (!made) return;
    fgmm_free(ctx, made->distances);
    fgmm_free(ctx, made->ids);
    fgmm_free(ctx, made);
}

static fgmm_status check_ids(fgmm_context *ctx, fgmm_status status, const char *path, const fgmm_neighbors *neighbors,
                             int64_t most) {
    for (int64_t i = 0; i < neighbors->n * neighbors->k; i++)
        if (neighbors->ids[i] < -1 || neighbors->ids[i] > most)
            return fgmm_fail(ctx, status, "%s: neighbour %lld of query %lld is %lld, which is no id here", path,
                             (long long)(i % neighbors->k), (long long)(i / neighbors->k),
                             (long long)neighbors->ids[i]);
    return FGMM_OK;
}

fgmm_status fgmm_neighbors_check(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors) {
    return check_ids(ctx, FGMM_ERR_FORMAT, path, neighbors, INT64_MAX);
}

/* ---- reading ---- */

/* Widens `count` integers; what is unsigned and too large becomes a negative number, which no id is. */
static void widen(const unsigned char *from, char kind, size_t item, int64_t count, int64_t *to) {
    for (int64_t i = 0; i < count; i++, from += item) {
        uint64_t bits = 0;
        memcpy(&bits, from, item);
        if (kind == 'i' && item < 8) {
            const uint64_t sign = (uint64_t)1 << (8 * item - 1);
            bits = (bits ^ sign) - sign;
        } else if (kind == 'u' && bits > INT64_MAX)
            bits = (uint64_t)INT64_MIN;
        to[i] = (int64_t)bits;
    }
}

/* `count` integers that lie side by side from `offset`. */
static fgmm_status read_integers(fgmm_context *ctx, const fgmm_infile *in, int64_t offset, char kind, size_t item,
                                 int64_t count, int64_t *to) {
    unsigned char *piece = fgmm_alloc(ctx, PIECE_BYTES, "a buffer for a file");
    int64_t at_once = PIECE_BYTES / (int64_t)item;
    fgmm_status status = piece ? FGMM_OK : FGMM_ERR_MEMORY;
    while (status == FGMM_OK && count > 0) {
        int64_t n = count < at_once ? count : at_once;
        status = fgmm_infile_read(ctx, in, piece, (size_t)n * item, offset);
        if (status == FGMM_OK) widen(piece, kind, item, n, to);
        offset += n * (int64_t)item;
        count -= n;
        to += n;
    }
    fgmm_free(ctx, piece);
    return status;
}

static fgmm_status truncated(fgmm_context *ctx, const fgmm_infile *in, int least) {
    return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: truncated: %lld bytes, less than its header of %d", in->path,
                     (long long)in->size, least);
}

static fgmm_status wrong_size(fgmm_context *ctx, const fgmm_infile *in, int64_t n, int64_t k, int64_t bytes) {
    return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                     "%s: %s: %lld queries with %lld neighbours take %lld bytes, but the file has %lld", in->path,
                     bytes > in->size ? "truncated" : "too long", (long long)n, (long long)k, (long long)bytes,
                     (long long)in->size);
}

static fgmm_status load_ivecs(fgmm_context *ctx, const fgmm_infile *in, fgmm_neighbors_memory **out) {
    int32_t k = 0;
    int64_t stride, at_once;
    unsigned char *piece = NULL;
    fgmm_status status;
    if (in->size < 4) return truncated(ctx, in, 4);
    FGMM_TRY(fgmm_infile_read(ctx, in, &k, 4, 0));
    if (k <= 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: query 0 claims %ld neighbours; there must be at least one",
                         in->path, (long)k);
    stride = 4 + 4 * (int64_t)k;
    if (in->size % stride != 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                         "%s: truncated, or not of one length: %ld neighbours take %lld bytes, and the file's %lld are "
                         "no multiple of that",
                         in->path, (long)k, (long long)stride, (long long)in->size);
    FGMM_TRY(fgmm_neighbors_new(ctx, out, in->path, in->size / stride, k, 0));
    at_once = stride < PIECE_BYTES ? PIECE_BYTES / stride : 1;
    piece = fgmm_alloc(ctx, (size_t)(at_once * stride), "a buffer for a file");
    if (!piece) return FGMM_ERR_MEMORY;
    for (int64_t first = 0; first < (*out)->view.n; first += at_once) {
        const int64_t n = (*out)->view.n - first < at_once ? (*out)->view.n - first : at_once;
        FGMM_GO(fgmm_infile_read(ctx, in, piece, (size_t)(n * stride), first * stride));
        for (int64_t i = 0; i < n; i++) {
            int32_t length;
            memcpy(&length, piece + i * stride, 4);
            if (length != k) {
                status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: query %lld has %ld neighbours; query 0 has %ld", in->path,
                                   (long long)(first + i), (long)length, (long)k);
                goto done;
            }
            widen(piece + i * stride + 4, 'i', 4, k, (*out)->ids + (first + i) * k);
        }
    }
    status = FGMM_OK;
done:
    fgmm_free(ctx, piece);
    return status;
}

static fgmm_status load_ibin(fgmm_context *ctx, const fgmm_infile *in, fgmm_neighbors_memory **out) {
    uint32_t sizes[2];
    int64_t count;
    int distances;
    if (in->size < 8) return truncated(ctx, in, 8);
    FGMM_TRY(fgmm_infile_read(ctx, in, sizes, 8, 0));
    /* Two 32-bit numbers: the product is less than 2^64, but not than 2^63. */
    if (__builtin_mul_overflow((int64_t)sizes[0], (int64_t)sizes[1], &count) || count > INT64_MAX / 16)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: claims %lu x %lu neighbours, which overflows", in->path,
                         (unsigned long)sizes[0], (unsigned long)sizes[1]);
    distances = in->size == 8 + 8 * count;
    if (!distances && in->size != 8 + 4 * count) {
        const int with = in->size > 8 + 4 * count; /* too long for ids alone */
        return wrong_size(ctx, in, sizes[0], sizes[1], 8 + (with ? 8 : 4) * count);
    }
    FGMM_TRY(fgmm_neighbors_new(ctx, out, in->path, sizes[0], sizes[1], distances));
    FGMM_TRY(read_integers(ctx, in, 8, 'i', 4, count, (*out)->ids));
    if (!distances) return FGMM_OK;
    return fgmm_infile_read(ctx, in, (*out)->distances, (size_t)count * 4, 8 + 4 * count);
}

static fgmm_status load_npy(fgmm_context *ctx, const fgmm_infile *in, fgmm_neighbors_memory **out) {
    fgmm_npy_header header;
    int64_t bytes;
    char why[128];
    FGMM_TRY(fgmm_npy_file_header(ctx, in, &header));
    if (!fgmm_npy_is_numeric(&header, why, sizeof why)) return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: %s", in->path, why);
    if (header.kind != 'i' && header.kind != 'u')
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: its dtype is %s; ids of neighbours are integers", in->path,
                         header.descr);
    if (header.ndim != 2 || (header.fortran && header.shape[0] > 1 && header.shape[1] > 1))
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: neighbours are [n, k] in C order: use numpy.ascontiguousarray",
                         in->path);
    if (__builtin_add_overflow(header.bytes, header.offset, &bytes)) bytes = INT64_MAX;
    if (bytes != in->size) return wrong_size(ctx, in, header.shape[0], header.shape[1], bytes);
    FGMM_TRY(fgmm_neighbors_new(ctx, out, in->path, header.shape[0], header.shape[1], 0));
    return read_integers(ctx, in, header.offset, header.kind, header.item, header.count, (*out)->ids);
}

static const struct neighbors_format {
    const char *name;
    fgmm_status (*load)(fgmm_context *ctx, const fgmm_infile *in, fgmm_neighbors_memory **out);
} formats[] = {{"ivecs", load_ivecs}, {"ibin", load_ibin}, {"npy", load_npy}};

static fgmm_status load_as(fgmm_context *ctx, fgmm_neighbors_memory **out, const char *path,
                           const struct neighbors_format *format) {
    fgmm_infile in = {.path = path, .fd = -1};
    struct stat info;
    fgmm_status status;
    FGMM_TRY(fgmm_infile_open(ctx, path, &in.fd, &info));
    in.size = info.st_size;
    status = format->load(ctx, &in, out);
    close(in.fd);
    return status;
}

fgmm_status fgmm_neighbors_load(fgmm_context *ctx, fgmm_neighbors **out, const char *path, const char *format) {
    static const char *const list = "ivecs, ibin, npy, hdf5";
    const struct neighbors_format *found = NULL;
    fgmm_neighbors_memory *made = NULL;
    fgmm_status status;
    const char *name = format;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "neighbours from a file: a pointer is NULL");
    *out = NULL;
    if (!name) name = fgmm_hdf5_is_path(path) ? "hdf5" : fgmm_path_ending(path);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcasecmp(name, formats[i].name) == 0) found = &formats[i];
    if (found)
        status = load_as(ctx, &made, path, found);
    else if (strcasecmp(name, "hdf5") == 0)
        status = fgmm_neighbors_load_hdf5(ctx, &made, path);
    else if (format)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "unknown format \"%s\" of neighbours; known: %s", format, list);
    else
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: the ending tells no known format of neighbours (%s)", path, list);
    if (status == FGMM_OK) status = fgmm_neighbors_check(ctx, path, &made->view);
    if (status == FGMM_OK)
        *out = &made->view;
    else if (made)
        fgmm_neighbors_free(ctx, &made->view);
    return status;
}

/* ---- writing ---- */

/* Rows of int32 ids, each behind `prefix` numbers that are k. */
static fgmm_status write_int32(fgmm_context *ctx, fgmm_outfile *file, const fgmm_neighbors *neighbors, int prefix) {
    const int64_t k = neighbors->k, stride = k + prefix;
    int64_t rows = PIECE_BYTES / 4 / stride;
    int32_t *piece = NULL;
    fgmm_status status = FGMM_OK;
    if (rows < 1) rows = 1;
    if (rows > neighbors->n) rows = neighbors->n;
    piece = fgmm_calloc(ctx, (size_t)(rows * stride), sizeof *piece, "a buffer for a file");
    if (!piece) return FGMM_ERR_MEMORY;
    for (int64_t first = 0; first < neighbors->n; first += rows) {
        const int64_t n = neighbors->n - first < rows ? neighbors->n - first : rows;
        for (int64_t i = 0; i < n; i++) {
            if (prefix) piece[i * stride] = (int32_t)k;
            for (int64_t j = 0; j < k; j++)
                piece[i * stride + prefix + j] = (int32_t)neighbors->ids[(first + i) * k + j];
        }
        FGMM_GO(fgmm_outfile_write(ctx, file, piece, (size_t)(n * stride) * sizeof *piece));
    }
done:
    fgmm_free(ctx, piece);
    return status;
}

static fgmm_status save_ivecs(fgmm_context *ctx, fgmm_outfile *file, const fgmm_neighbors *neighbors) {
    return write_int32(ctx, file, neighbors, 1);
}

static fgmm_status save_ibin(fgmm_context *ctx, fgmm_outfile *file, const fgmm_neighbors *neighbors) {
    const uint32_t sizes[2] = {(uint32_t)neighbors->n, (uint32_t)neighbors->k};
    FGMM_TRY(fgmm_outfile_write(ctx, file, sizes, sizeof sizes));
    FGMM_TRY(write_int32(ctx, file, neighbors, 0));
    if (!neighbors->distances) return FGMM_OK;
    return fgmm_outfile_write(ctx, file, neighbors->distances, (size_t)(neighbors->n * neighbors->k) * sizeof(float));
}

static fgmm_status save_as(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors,
                           fgmm_status (*save)(fgmm_context *, fgmm_outfile *, const fgmm_neighbors *)) {
    fgmm_outfile file = {NULL, NULL, -1};
    fgmm_status status;
    if (neighbors->n > INT32_MAX || neighbors->k > INT32_MAX - 1)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "cannot write %s: %lld x %lld neighbours do not fit its 32-bit sizes",
                         path, (long long)neighbors->n, (long long)neighbors->k);
    FGMM_TRY(check_ids(ctx, FGMM_ERR_INVALID, path, neighbors, INT32_MAX));
    FGMM_GO(fgmm_outfile_open(ctx, &file, path));
    FGMM_GO(save(ctx, &file, neighbors));
    status = fgmm_outfile_commit(ctx, &file);
done:
    fgmm_outfile_abandon(ctx, &file);
    return status;
}

fgmm_status fgmm_neighbors_save(fgmm_context *ctx, const char *path, const fgmm_neighbors *neighbors) {
    const char *ending;
    int64_t count;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!path || !neighbors || !neighbors->ids)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving neighbours: a pointer is NULL");
    if (neighbors->n <= 0 || neighbors->k <= 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving neighbours: n = %lld and k = %lld must be positive",
                         (long long)neighbors->n, (long long)neighbors->k);
    if (__builtin_mul_overflow(neighbors->n, neighbors->k, &count) || count > INT64_MAX / 16)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving neighbours: %lld x %lld of them overflow",
                         (long long)neighbors->n, (long long)neighbors->k);
    ending = fgmm_path_ending(path);
    if (strcasecmp(ending, "ivecs") == 0) return save_as(ctx, path, neighbors, save_ivecs);
    if (strcasecmp(ending, "ibin") == 0) return save_as(ctx, path, neighbors, save_ibin);
    FGMM_TRY(check_ids(ctx, FGMM_ERR_INVALID, path, neighbors, INT64_MAX));
    if (strcasecmp(ending, "npy") == 0) {
        const fgmm_array array = {NULL, FGMM_I64, 2, {neighbors->n, neighbors->k, 0}, neighbors->ids};
        return fgmm_arrays_save(ctx, path, &array, 1);
    }
    if (strcasecmp(ending, "hdf5") == 0 || strcasecmp(ending, "h5") == 0)
        return fgmm_neighbors_save_hdf5(ctx, path, neighbors);
    return fgmm_fail(ctx, FGMM_ERR_INVALID, "cannot write %s: neighbours go to .ivecs, .ibin, .npy or .hdf5", path);
}
