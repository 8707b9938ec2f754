#include "device_lists.h"

/* Results beyond k: rows as far as the k-th, of which the smallest ids count. */
enum { TIES = 16 };

static fgmm_status search(fgmm_context *ctx, const fgmm_target *target, fgmm_lists *lists, fgmm_lists_query *query,
                          fgmm_best *best, int threads) {
    fgmm_status status = FGMM_ERR_MEMORY;
    size_t n = (size_t)query->n, results = n * (size_t)query->room;
    query->ids = fgmm_alloc(ctx, results * sizeof *query->ids, "neighbours");
    query->distances = fgmm_alloc(ctx, results * sizeof *query->distances, "neighbours");
    if (!query->ids || !query->distances) goto done;
    FGMM_GO(target->backend->lists_search(target->device, lists, query));
#pragma omp parallel for num_threads(threads)
    for (int64_t q = 0; q < query->n; q++)
        for (int64_t i = q * query->room; query->found[q] <= query->room && i < q * query->room + query->found[q]; i++)
            fgmm_best_push(&best[q], query->distances[i], query->ids[i]);
done:
    fgmm_free(ctx, query->distances);
    fgmm_free(ctx, query->ids);
    query->ids = NULL;
    query->distances = NULL;
    return status;
}

fgmm_status fgmm_lists_best(fgmm_context *ctx, const fgmm_target *target, fgmm_lists *lists, fgmm_lists_query *query,
                            fgmm_best *best, int threads) {
    fgmm_status status = FGMM_OK;
    int64_t n = query->n, *found = fgmm_alloc(ctx, (size_t)n * sizeof *found, "neighbours");
    if (!found) return FGMM_ERR_MEMORY;
    query->room = query->k + TIES;
    query->found = found;
    FGMM_GO(search(ctx, target, lists, query, best, threads));
    /* One with more ties goes again, by itself. */
    for (int64_t q = 0; q < n; q++) {
        if (found[q] <= query->room) continue;
        fgmm_lists_query one = *query;
        one.n = 1;
        one.queries = query->queries + q * query->stride;
        one.probed = query->probed + q * query->words;
        one.room = found[q];
        one.found = &found[q];
        FGMM_GO(search(ctx, target, lists, &one, &best[q], 1));
    }
done:
    query->found = NULL;
    fgmm_free(ctx, found);
    return status;
}
