/* Flat and IVF flat indexes as faiss writes them. */
#include <math.h>
#include <string.h>

#include "../convert.h"
#include "../dispatch.h"
#include "../model.h"
#include "faiss_file.h"
#include "npy.h" /* the byte order */

/* ---- parts of a file ---- */

/* What is small is gathered here and written at once. */
typedef struct gather {
    unsigned char bytes[256];
    size_t used;
} gather;

static void put(gather *g, const void *data, size_t bytes) {
    memcpy(g->bytes + g->used, data, bytes);
    g->used += bytes;
}

static void put_u64(gather *g, int64_t value) {
    put(g, &value, sizeof value);
}

static void put_index(gather *g, const char letters[4], int64_t d, int64_t n, int inner_product) {
    const int32_t width = (int32_t)d, metric = !inner_product;
    const uint8_t trained = 1;
    put(g, letters, 4);
    put(g, &width, sizeof width);
    put_u64(g, n);
    put_u64(g, 1 << 20);
    put_u64(g, 1 << 20);
    put(g, &trained, 1);
    put(g, &metric, sizeof metric);
}

/* All of a flat index but its vectors. */
static void put_flat(gather *g, int64_t d, int64_t n, int inner_product) {
    put_index(g, inner_product ? "IxFI" : "IxF2", d, n, inner_product);
    put_u64(g, n * d);
}

static fgmm_status flush(fgmm_context *ctx, fgmm_outfile *file, gather *g) {
    fgmm_status status = fgmm_outfile_write(ctx, file, g->bytes, g->used);
    g->used = 0;
    return status;
}

/* A vector in single precision; of length one if asked. @param what, number: what messages call it. */
static fgmm_status narrow(fgmm_context *ctx, const char *what, int64_t number, const double *from, int64_t d, int unit,
                          float *to) {
    double largest = 0, sum = 0, scale = 1;
    for (int64_t j = 0; j < d; j++)
        if (fabs(from[j]) > largest) largest = fabs(from[j]);
    if (unit) { /* in two steps: squares may not fit */
        if (!(largest > 0))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s %lld is zero: it has no direction", what, (long long)number);
        for (int64_t j = 0; j < d; j++) sum += from[j] / largest * (from[j] / largest);
        scale = 1 / sqrt(sum);
    }
    for (int64_t j = 0; j < d; j++) {
        to[j] = (float)(unit ? from[j] / largest * scale : from[j]);
        if (!isfinite(to[j]))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s %lld, feature %lld: %g does not fit a float", what,
                             (long long)number, (long long)j, from[j]);
    }
    return FGMM_OK;
}

/* ---- IVF flat ---- */

static fgmm_status check_index(fgmm_context *ctx, const fgmm_faiss_ivf *index, int64_t *total) {
    int64_t bytes;
    *total = 0;
    if (index->d <= 0 || index->d > INT32_MAX || index->nlist <= 0 || index->nlist > INT32_MAX || index->nprobe < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "a faiss index cannot have d = %lld, nlist = %lld, nprobe = %lld",
                         (long long)index->d, (long long)index->nlist, (long long)index->nprobe);
    for (int64_t i = 0; i < index->nlist; i++)
        if (index->sizes[i] < 0 || __builtin_add_overflow(*total, index->sizes[i], total))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "list %lld of a faiss index cannot have %lld vectors", (long long)i,
                             (long long)index->sizes[i]);
    if (__builtin_mul_overflow(*total, 4 * index->d + 8, &bytes))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "a faiss index of %lld vectors of %lld features overflows",
                         (long long)*total, (long long)index->d);
    return FGMM_OK;
}

fgmm_status fgmm_faiss_open(fgmm_context *ctx, fgmm_faiss_writer *writer, const char *path,
                            const fgmm_faiss_ivf *index) {
    gather g = {.used = 0};
    const uint8_t no_map = 0;
    int64_t total;
    fgmm_status status;
    *writer = (fgmm_faiss_writer){{NULL, NULL, -1}, index->d, index->nlist, index->sizes, 0, 0, 0};
    FGMM_TRY(check_index(ctx, index, &total));
    FGMM_TRY(fgmm_outfile_open(ctx, &writer->file, path));
    put_index(&g, "IwFl", index->d, total, index->inner_product);
    put_u64(&g, index->nlist);
    put_u64(&g, index->nprobe ? index->nprobe : 1);
    put_flat(&g, index->d, index->nlist, index->inner_product);
    FGMM_GO(flush(ctx, &writer->file, &g));
    FGMM_GO(fgmm_outfile_write(ctx, &writer->file, index->centroids,
                               (size_t)(index->nlist * index->d) * sizeof *index->centroids));
    put(&g, &no_map, 1);
    put_u64(&g, 0);
    put(&g, "ilar", 4);
    put_u64(&g, index->nlist);
    put_u64(&g, index->d * (int64_t)sizeof(float));
    put(&g, "full", 4);
    put_u64(&g, index->nlist);
    FGMM_GO(flush(ctx, &writer->file, &g));
    FGMM_GO(fgmm_outfile_write(ctx, &writer->file, index->sizes, (size_t)index->nlist * sizeof *index->sizes));
done:
    if (status != FGMM_OK) fgmm_faiss_abandon(ctx, writer);
    return status;
}

/* Goes to the list that is next to be written. */
static void pass_whole(fgmm_faiss_writer *writer) {
    while (writer->list < writer->nlist && writer->ids == writer->sizes[writer->list]) {
        writer->list++;
        writer->vectors = writer->ids = 0;
    }
}

static fgmm_status wrong_piece(fgmm_context *ctx, const fgmm_faiss_writer *writer, const char *what, int64_t n) {
    return fgmm_fail(ctx, FGMM_ERR_INTERNAL, "%lld %s do not fit list %lld of a faiss index, which has %lld and %lld",
                     (long long)n, what, (long long)writer->list, (long long)writer->vectors, (long long)writer->ids);
}

fgmm_status fgmm_faiss_vectors(fgmm_context *ctx, fgmm_faiss_writer *writer, const float *vectors, int64_t n) {
    if (n == 0) return FGMM_OK;
    pass_whole(writer);
    if (n < 0 || writer->list == writer->nlist || writer->ids > 0 || n > writer->sizes[writer->list] - writer->vectors)
        return wrong_piece(ctx, writer, "vectors", n);
    writer->vectors += n;
    return fgmm_outfile_write(ctx, &writer->file, vectors, (size_t)(n * writer->d) * sizeof *vectors);
}

fgmm_status fgmm_faiss_rows(fgmm_context *ctx, fgmm_faiss_writer *writer, const void *vectors, fgmm_dtype type,
                            int unit, int64_t n) {
    enum { PIECE_BYTES = 1 << 18 };
    const int64_t d = writer->d;
    const size_t row = (size_t)d * fgmm_dtype_size(type);
    const unsigned char *from = vectors;
    int64_t at_once = PIECE_BYTES / 4 / d;
    double *wide = NULL;
    float *piece = NULL;
    fgmm_status status = FGMM_OK;
    if (type == FGMM_F32 && !unit) return fgmm_faiss_vectors(ctx, writer, vectors, n);
    if (!row || type > FGMM_I8) return fgmm_fail(ctx, FGMM_ERR_INVALID, "vectors cannot have type %d", (int)type);
    if (at_once < 1) at_once = 1;
    wide = fgmm_alloc(ctx, (size_t)d * sizeof *wide, "a vector");
    piece = fgmm_alloc(ctx, (size_t)(at_once * d) * sizeof *piece, "a buffer for a file");
    if (!wide || !piece) status = FGMM_ERR_MEMORY;
    for (int64_t first = 0; first < n && status == FGMM_OK; first += at_once) {
        const int64_t count = n - first < at_once ? n - first : at_once;
        for (int64_t i = 0; i < count; i++, from += row) {
            fgmm_widen(type, from, d, wide);
            FGMM_GO(narrow(ctx, "vector", first + i, wide, d, unit, piece + i * d));
        }
        status = fgmm_faiss_vectors(ctx, writer, piece, count);
    }
done:
    fgmm_free(ctx, piece);
    fgmm_free(ctx, wide);
    return status;
}

fgmm_status fgmm_faiss_ids(fgmm_context *ctx, fgmm_faiss_writer *writer, const int64_t *ids, int64_t n) {
    if (n == 0) return FGMM_OK;
    pass_whole(writer);
    if (n < 0 || writer->list == writer->nlist || writer->vectors < writer->sizes[writer->list] ||
        n > writer->sizes[writer->list] - writer->ids)
        return wrong_piece(ctx, writer, "ids", n);
    writer->ids += n;
    return fgmm_outfile_write(ctx, &writer->file, ids, (size_t)n * sizeof *ids);
}

fgmm_status fgmm_faiss_commit(fgmm_context *ctx, fgmm_faiss_writer *writer) {
    pass_whole(writer);
    if (writer->list < writer->nlist)
        return fgmm_fail(ctx, FGMM_ERR_INTERNAL, "list %lld of a faiss index is not whole", (long long)writer->list);
    return fgmm_outfile_commit(ctx, &writer->file);
}

void fgmm_faiss_abandon(fgmm_context *ctx, fgmm_faiss_writer *writer) {
    fgmm_outfile_abandon(ctx, &writer->file);
}

/* ---- a model's means ---- */

fgmm_status fgmm_model_export_faiss(fgmm_context *ctx, const fgmm_model *model, const char *path, fgmm_metric metric) {
    fgmm_outfile file = {NULL, NULL, -1};
    gather g = {.used = 0};
    float *mean = NULL;
    fgmm_status status;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!model || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "exporting a model: a pointer is NULL");
    if ((unsigned)metric > FGMM_INNER_PRODUCT)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "exporting a model: %d is no metric", (int)metric);
    if (model->d > INT32_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "exporting a model: %lld features are more than faiss can take",
                         (long long)model->d);
    mean = fgmm_alloc(ctx, (size_t)model->d * sizeof *mean, "a mean");
    if (!mean) return FGMM_ERR_MEMORY;
    FGMM_GO(fgmm_outfile_open(ctx, &file, path));
    put_flat(&g, model->d, model->k, metric != FGMM_L2);
    FGMM_GO(flush(ctx, &file, &g));
    for (int64_t k = 0; k < model->k; k++) {
        FGMM_GO(narrow(ctx, "mean", k, model->means + k * model->d, model->d, metric == FGMM_ANGULAR, mean));
        FGMM_GO(fgmm_outfile_write(ctx, &file, mean, (size_t)model->d * sizeof *mean));
    }
    status = fgmm_outfile_commit(ctx, &file);
done:
    fgmm_outfile_abandon(ctx, &file);
    fgmm_free(ctx, mean);
    return status;
}
