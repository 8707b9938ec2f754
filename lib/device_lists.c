#include "device_lists.h"

#include "persist.h"

enum {
    TIES = 16,        /* results beyond k: rows as far as the k-th, of which the smallest ids count */
    RESULTS = 1 << 24 /* that come back at once where some queries have more */
};

fgmm_status fgmm_lists_put(fgmm_context *ctx, const fgmm_target *target, const fgmm_lists_source *source,
                           fgmm_lists **out) {
    fgmm_status status = target->backend->lists_put(target->device, source, out);
    if (fgmm_persisted_give_way(ctx, status)) status = target->backend->lists_put(target->device, source, out);
    return status;
}

/* Pushes what is found of the queries that have more than `known` results; fewer were pushed before. */
static fgmm_status search(fgmm_context *ctx, const fgmm_target *target, fgmm_lists *lists, fgmm_lists_query *query,
                          int64_t known, fgmm_best *best, int threads) {
    fgmm_status status = FGMM_ERR_MEMORY;
    size_t results = (size_t)query->n * (size_t)query->room;
    query->ids = fgmm_alloc(ctx, results * sizeof *query->ids, "neighbours");
    query->distances = fgmm_alloc(ctx, results * sizeof *query->distances, "neighbours");
    if (!query->ids || !query->distances) goto done;
    status = target->backend->lists_search(target->device, lists, query);
    if (fgmm_persisted_give_way(ctx, status)) status = target->backend->lists_search(target->device, lists, query);
    if (status != FGMM_OK) goto done;
#pragma omp parallel for num_threads(threads)
    for (int64_t q = 0; q < query->n; q++) {
        const int64_t found = query->found[q], at = q * query->room;
        for (int64_t i = 0; found > known && found <= query->room && i < found; i++)
            fgmm_best_push(&best[q], query->distances[at + i], query->ids[at + i]);
    }
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
    int64_t n = query->n, most = 0, *found = fgmm_alloc(ctx, (size_t)n * sizeof *found, "neighbours");
    if (!found) return FGMM_ERR_MEMORY;
    query->room = query->k + TIES;
    query->found = found;
    FGMM_GO(search(ctx, target, lists, query, 0, best, threads));
    int64_t computed = query->computed, known = query->room;
    /* Those with more ties go again: all together if they have room, else one by one. */
    for (int64_t q = 0; q < n; q++) most = found[q] > most ? found[q] : most;
    if (most > known && n <= RESULTS / most) {
        query->room = most;
        FGMM_GO(search(ctx, target, lists, query, known, best, threads));
    }
    for (int64_t q = 0; q < n; q++) {
        if (found[q] <= query->room) continue;
        fgmm_lists_query one = *query;
        one.n = 1;
        one.queries = query->queries + q * query->stride;
        one.probed = query->probed + q * query->words;
        one.room = found[q];
        one.found = &found[q];
        FGMM_GO(search(ctx, target, lists, &one, known, &best[q], 1));
    }
    query->computed = computed;
done:
    query->found = NULL;
    fgmm_free(ctx, found);
    return status;
}
