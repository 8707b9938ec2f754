/* An index as a file of faiss. */
#include "io/faiss_file.h"
#include "ivf_index.h"

static fgmm_status write_lists(fgmm_context *ctx, fgmm_faiss_writer *writer, const fgmm_ivf *index) {
    for (int64_t i = 0; i < index->k; i++) {
        const fgmm_ivf_store *list = &index->lists[i];
        if (list->n == 0) continue;
        FGMM_TRY(fgmm_faiss_rows(ctx, writer, list->vectors, index->type, index->metric == FGMM_ANGULAR, list->n));
        FGMM_TRY(fgmm_faiss_ids(ctx, writer, list->ids, list->n));
    }
    return fgmm_faiss_commit(ctx, writer);
}

fgmm_status fgmm_ivf_export_faiss(fgmm_context *ctx, const fgmm_ivf *index, const char *path) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "export: a pointer is NULL");
    if (index->n_rows == 0) return fgmm_fail(ctx, FGMM_ERR_INVALID, "export: the index holds no rows");
    for (int64_t i = 0; i < index->k; i++)
        if (index->lists[i].n_links > 0)
            return fgmm_fail(
                ctx, FGMM_ERR_UNSUPPORTED,
                "export: rows lie in several lists, which faiss would find twice: build with one list a row");
    int64_t *sizes = fgmm_alloc(ctx, (size_t)index->k * sizeof *sizes, "lengths of lists");
    if (!sizes) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < index->k; i++) sizes[i] = index->lists[i].n;
    const fgmm_faiss_ivf shape = {.inner_product = index->metric == FGMM_INNER_PRODUCT,
                                  .d = index->d,
                                  .nlist = index->k,
                                  .centroids = index->centroids,
                                  .sizes = sizes};
    fgmm_faiss_writer writer = {0};
    fgmm_status status = fgmm_faiss_open(ctx, &writer, path, &shape);
    if (status == FGMM_OK) {
        status = write_lists(ctx, &writer, index);
        fgmm_faiss_abandon(ctx, &writer);
    }
    fgmm_free(ctx, sizes);
    return status;
}
