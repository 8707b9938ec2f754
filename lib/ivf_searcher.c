/*
 * Searching an index on a device: a copy of its lists there, and batches of queries. The host decides which lists a query
 * probes, from distances to the centroids that the device has computed; the device looks at the lists and keeps the k
 * best; the host puts them in order. On the CPU a searcher is the index itself.
 */
#include <string.h>

#include "device_lists.h"
#include "ivf_search.h"
#include "report.h"

enum {
    BATCH_MAX = 4096,       /* queries that go together */
    BATCH_FLOATS = 1 << 24, /* centroid distances of a batch, beyond which it has fewer queries */
    BATCH_RESULTS = 1 << 22 /* results of a batch, likewise */
};

struct fgmm_ivf_searcher {
    fgmm_context *ctx;
    const fgmm_ivf *index;
    int64_t changes;           /* the index's, when it was copied */
    const fgmm_target *target; /* NULL: the CPU */
    fgmm_lists *lists;
    fgmm_block *centroids;
};

/* ---- the copy ---- */

/* Links as numbers of rows, with the lists that come before each. */
static void flatten_links(const fgmm_ivf *index, const int64_t *row_starts, int64_t *link_starts, uint32_t *links,
                          int32_t *before) {
    int64_t between = fgmm_ivf_between(index), depth = between + 1, at = 0;
    for (int64_t l = 0; l < index->k; l++) {
        const fgmm_ivf_store *list = &index->lists[l];
        link_starts[l] = at;
        for (int64_t i = 0; i < list->n_links; i++, at++) {
            links[at] = (uint32_t)(row_starts[list->links[i].home] + list->links[i].place);
            before[at * depth] = list->links[i].home;
            if (between) memcpy(before + at * depth + 1, list->between + i * between, (size_t)between * sizeof *before);
        }
    }
    link_starts[index->k] = at;
}

static fgmm_status copy_lists(fgmm_context *ctx, fgmm_ivf_searcher *searcher) {
    const fgmm_ivf *index = searcher->index;
    const fgmm_target *target = searcher->target;
    size_t k = (size_t)index->k, depth = (size_t)fgmm_ivf_between(index) + 1, n_links = 0;
    fgmm_status status = FGMM_ERR_MEMORY;
    uint32_t *links = NULL;
    int32_t *before = NULL;
    struct fgmm_list_rows *lists = fgmm_alloc(ctx, k * sizeof *lists, "lists");
    int64_t *starts = fgmm_calloc(ctx, 2 * (k + 1), sizeof *starts, "lists");
    if (!lists || !starts) goto done;
    int64_t *row_starts = starts, *link_starts = starts + k + 1;
    for (size_t l = 0; l < k; l++) {
        const fgmm_ivf_store *list = &index->lists[l];
        lists[l] = (struct fgmm_list_rows){list->n, list->vectors, list->ids, list->inverse};
        row_starts[l + 1] = row_starts[l] + list->n;
        n_links += (size_t)list->n_links;
    }
    if (row_starts[k] >= UINT32_MAX || n_links >= UINT32_MAX) {
        status = fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED, "ivf searcher: %lld rows and %zu links are more than 2^32 - 2",
                           (long long)row_starts[k], n_links);
        goto done;
    }
    links = fgmm_alloc(ctx, n_links * sizeof *links, "links");
    before = fgmm_alloc(ctx, n_links * depth * sizeof *before, "links");
    if (!links || !before) goto done;
    flatten_links(index, row_starts, link_starts, links, before);
    fgmm_lists_source source = {.type = index->type,
                                .metric = index->metric,
                                .d = index->d,
                                .n_lists = index->k,
                                .lists = lists,
                                .link_starts = link_starts,
                                .links = links,
                                .before = before,
                                .depth = (int)depth};
    status = fgmm_lists_put(ctx, target, &source, &searcher->lists);
done:
    fgmm_free(ctx, before);
    fgmm_free(ctx, links);
    fgmm_free(ctx, starts);
    fgmm_free(ctx, lists);
    return status;
}

static fgmm_status copy_centroids(fgmm_ivf_searcher *searcher) {
    const fgmm_ivf *index = searcher->index;
    const fgmm_target *target = searcher->target;
    fgmm_block_source source = {.data = index->centroids,
                                .stride_bytes = (size_t)index->d * sizeof(float),
                                .type = FGMM_F32,
                                .n = index->k,
                                .d = index->d,
                                .kept = 1};
    FGMM_TRY(target->backend->put(target->device, &source, &searcher->centroids));
    return target->backend->wait(target->device, searcher->centroids);
}

fgmm_status fgmm_ivf_searcher_create(fgmm_context *ctx, fgmm_ivf_searcher **out, const fgmm_ivf *index) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !index) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf searcher: a pointer is NULL");
    *out = NULL;
    const fgmm_target *target = NULL;
    fgmm_status status = FGMM_OK;
    fgmm_ivf_searcher *searcher = NULL;
    /* For "auto": who makes a searcher means to ask it much. */
    FGMM_TRY(fgmm_dispatch(ctx, 1e15, FGMM_EXACT, NULL, -1, &target));
    if (!(searcher = fgmm_calloc(ctx, 1, sizeof *searcher, "a searcher"))) return FGMM_ERR_MEMORY;
    searcher->ctx = ctx;
    searcher->index = index;
    searcher->changes = index->changes;
    if (target->backend->lists_put && index->n_rows > 0) {
        searcher->target = target;
        FGMM_GO(copy_lists(ctx, searcher));
        FGMM_GO(copy_centroids(searcher));
    }
    *out = searcher;
    return FGMM_OK;
done:
    fgmm_ivf_searcher_free(ctx, searcher);
    return status;
}

void fgmm_ivf_searcher_free(fgmm_context *ctx, fgmm_ivf_searcher *searcher) {
    if (!searcher) return;
    if (searcher->target) {
        searcher->target->backend->lists_release(searcher->target->device, searcher->lists);
        searcher->target->backend->release(searcher->target->device, searcher->centroids);
    }
    fgmm_free(ctx, searcher);
}

/* ---- a batch ---- */

typedef struct {
    fgmm_context *ctx;
    const fgmm_ivf_searcher *searcher;
    fgmm_ivf_plan plan;
    fgmm_dtype type; /* of the queries */
    int threads;
    int64_t batch, k;
    int64_t *ids;
    float *distances;
    fgmm_lists_query query;
    float *floats, *to_lists, *sorting; /* [batch, stride], [batch, K], [threads, K] */
    uint64_t *probed;                   /* [batch, words] */
    fgmm_best *best;                    /* [batch] */
    fgmm_ivf_counts counts;
} device_search;

static fgmm_status search_open(device_search *s) {
    fgmm_context *ctx = s->ctx;
    const char *what = "a batch of queries";
    size_t n = (size_t)s->batch, k = (size_t)s->searcher->index->k, threads = (size_t)s->threads;
#define NEED(pointer, count)                                                                                           \
    if (!((pointer) = fgmm_calloc(ctx, (count), sizeof *(pointer), what))) return FGMM_ERR_MEMORY
    NEED(s->floats, n * (size_t)s->query.stride);
    NEED(s->to_lists, n * k);
    NEED(s->sorting, threads * k);
    NEED(s->probed, n * (size_t)s->query.words);
#undef NEED
    s->best = fgmm_bests_new(ctx, s->batch, s->k);
    return s->best ? FGMM_OK : FGMM_ERR_MEMORY;
}

static void search_close(device_search *s) {
    fgmm_context *ctx = s->ctx;
    fgmm_bests_free(ctx, s->best);
    fgmm_free(ctx, s->probed);
    fgmm_free(ctx, s->sorting);
    fgmm_free(ctx, s->to_lists);
    fgmm_free(ctx, s->floats);
}

/* Which lists the batch's queries probe. */
static fgmm_status choose_lists(device_search *s) {
    const fgmm_ivf *index = s->searcher->index;
    const fgmm_target *target = s->searcher->target;
    int64_t k = index->k, words = s->query.words, n = s->query.n, probes = 0, entries = 0;
    int dot = index->metric == FGMM_INNER_PRODUCT;
    FGMM_TRY(target->backend->distances(target->device, s->searcher->centroids, s->floats, s->query.stride, n, dot,
                                        s->to_lists));
    memset(s->probed, 0, (size_t)(n * words) * sizeof *s->probed);
#pragma omp parallel for num_threads(s->threads) reduction(+ : probes, entries)
    for (int64_t q = 0; q < n; q++) {
        float *to_lists = s->to_lists + q * k;
        for (int64_t j = 0; j < k; j++) to_lists[j] = fgmm_ivf_to_list(to_lists[j], dot);
        fgmm_ivf_choose_probes(&s->plan.probing, to_lists, k, s->sorting + fgmm_thread_number() * k,
                               s->probed + q * words);
        for (int64_t l = 0; l < k; l++) {
            if (!(s->probed[q * words + (l >> 6)] >> (l & 63) & 1)) continue;
            probes++;
            entries += index->lists[l].n + index->lists[l].n_links;
        }
    }
    s->counts.probes += probes;
    s->counts.entries += entries;
    return FGMM_OK;
}

static fgmm_status search_batch(void *user, const void *data, int64_t first, int64_t n) {
    device_search *s = user;
    const fgmm_ivf *index = s->searcher->index;
    size_t bytes = (size_t)index->d * fgmm_dtype_size(s->type);
    int failed = FGMM_OK;
#pragma omp parallel for num_threads(s->threads) reduction(max : failed)
    for (int part = 0; part < s->threads; part++) {
        int64_t from = part * n / s->threads, to = (part + 1) * n / s->threads;
        fgmm_status status =
            fgmm_rows_to_floats(s->ctx, s->type, (const char *)data + (size_t)from * bytes, first + from, to - from,
                                index->d, index->metric == FGMM_ANGULAR, s->floats + from * s->query.stride);
        failed = (int)status > failed ? (int)status : failed;
    }
    if (failed != FGMM_OK) return (fgmm_status)failed;
    s->query.n = n;
    s->query.queries = s->floats;
    s->query.probed = s->probed;
    s->query.computed = 0;
    FGMM_TRY(choose_lists(s));
    for (int64_t q = 0; q < n; q++) s->best[q].n = 0;
    FGMM_TRY(fgmm_lists_best(s->ctx, s->searcher->target, s->searcher->lists, &s->query, s->best, s->threads));
    s->counts.distances += s->query.computed;
#pragma omp parallel for num_threads(s->threads)
    for (int64_t q = 0; q < n; q++) {
        int64_t at = (first + q) * s->k;
        fgmm_best_sort(&s->best[q]);
        fgmm_best_copy(&s->best[q], index->metric, s->ids + at, s->distances ? s->distances + at : NULL);
    }
    return FGMM_OK;
}

/* ---- the call ---- */

fgmm_status fgmm_ivf_searcher_search(fgmm_context *ctx, fgmm_ivf_searcher *searcher, const fgmm_rows *queries,
                                     int64_t k, const fgmm_ivf_search_options *options, int64_t *ids, float *distances,
                                     fgmm_ivf_counts *counts) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!searcher || !queries || !ids) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf searcher: a pointer is NULL");
    const fgmm_ivf *index = searcher->index;
    if (searcher->ctx != ctx) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf searcher: it belongs to another context");
    if (searcher->changes != index->changes)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf searcher: rows came or went since it was made: make another");
    if (!searcher->target) return fgmm_ivf_search(ctx, index, queries, k, options, ids, distances, counts);
    FGMM_TRY(fgmm_ivf_query_check(ctx, index, queries, k));
    device_search s = {.ctx = ctx,
                       .searcher = searcher,
                       .type = queries->type,
                       .threads = fgmm_threads(ctx),
                       .k = k,
                       .ids = ids,
                       .distances = distances,
                       .query = {.stride = fgmm_scan_stride(index->d),
                                 .whole = fgmm_scan_is_whole(index->metric, index->type, queries->type, index->d),
                                 .words = (index->k + 63) / 64,
                                 .k = k}};
    FGMM_TRY(fgmm_ivf_plan_read(ctx, index, options, &s.plan));
    s.query.filter = s.plan.filter;
    s.query.filter_size = s.plan.filter_size < index->next_id ? s.plan.filter_size : index->next_id;
    s.batch = BATCH_FLOATS / index->k < BATCH_RESULTS / k ? BATCH_FLOATS / index->k : BATCH_RESULTS / k;
    s.batch = s.batch < 1 ? 1 : s.batch > BATCH_MAX ? BATCH_MAX : s.batch;
    if (s.batch > queries->n) s.batch = queries->n;
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, NULL));
    fgmm_status status = search_open(&s);
    if (status == FGMM_OK) status = fgmm_each_block(ctx, queries, s.batch, search_batch, &s);
    search_close(&s);
    fgmm_report_end(&scope, status);
    if (status == FGMM_OK && counts) {
        s.counts.queries = queries->n;
        s.counts.centroid_distances = queries->n * index->k;
        *counts = s.counts;
    }
    return status;
}
