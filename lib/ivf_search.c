/*
 * Search. Queries go in batches, and a batch goes through the lists one after the other: each row is read once for all
 * the queries that probe its list. First each query's nearest list, so that its k best are soon near their end, then
 * the rest.
 *
 * A row that is stored in list h and linked from list l is looked at once: in h if the query probes h, else in the
 * first of its lists that is probed. So a link is passed over if any of the row's lists before this one is probed:
 * bits of a word, no sets of rows.
 */
#include "ivf_search.h"

#include <stdatomic.h>
#include <string.h>

#include "report.h"

enum {
    BATCH_MAX = 256,        /* queries of a batch */
    BATCH_FLOATS = 1 << 20, /* centroid distances of a batch, beyond which it has fewer queries */
    BEST_MAX = 1 << 20,     /* results of a batch, likewise */
    READ_QUERIES = 1 << 14  /* queries read together */
};

typedef struct {
    fgmm_context *ctx;
    const fgmm_ivf *index;
    const fgmm_target *target;
    fgmm_ivf_plan plan;
    int64_t k, batch, stride;
    fgmm_dtype query_type;
    int whole;
    const void *queries; /* of this read, packed */
    int64_t first, n;    /* their numbers */
    int64_t *ids;        /* of all queries */
    float *distances;
    atomic_llong computed, entries, probes;
    atomic_int status;
} search_call;

/* A batch and a thread's room for it. */
typedef struct {
    const search_call *call;
    int64_t n;
    fgmm_query_pack pack;
    float *to_lists;  /* [n, K] */
    float *sorting;   /* [K] */
    uint64_t *probed; /* [n, words]: bit l for list l */
    int64_t words;
    int32_t *nearest;   /* [n] */
    int32_t *starts;    /* [K + 1]: where a list's queries begin */
    int32_t *askers;    /* [n K]: queries by list */
    fgmm_best *best;    /* [n] */
    float *out;         /* [n, FGMM_SCAN_ROWS] */
    const void **query; /* [n] */
    int64_t computed, entries, probes;
} search_batch;

/* ---- a list and the queries that probe it ---- */

static int is_wanted(const search_call *call, int64_t id) {
    return !call->plan.filter || (id < call->plan.filter_size && (call->plan.filter[id >> 3] >> (id & 7) & 1));
}

static int is_probed(const search_batch *b, int64_t query, int32_t list) {
    return (int)(b->probed[query * b->words + (list >> 6)] >> (list & 63) & 1);
}

/* A tile of rows, wherever they lie. */
typedef struct {
    const void *rows[FGMM_SCAN_ROWS];
    int64_t ids[FGMM_SCAN_ROWS];
    float inverse[FGMM_SCAN_ROWS];
    int n;
} row_tile;

static void tile_add(row_tile *tile, const fgmm_ivf_store *home, int64_t place, size_t bytes) {
    tile->rows[tile->n] = home->vectors + (size_t)place * bytes;
    tile->ids[tile->n] = home->ids[place];
    if (home->inverse) tile->inverse[tile->n] = home->inverse[place];
    tile->n++;
}

/* The tile against some queries; empties it. */
static void tile_scan(search_batch *b, row_tile *tile, const int32_t *queries, int n) {
    const search_call *call = b->call;
    const fgmm_ivf *index = call->index;
    if (tile->n == 0) return;
    for (int i = 0; i < n; i++) b->query[i] = fgmm_packed_query(&b->pack, queries[i]);
    fgmm_scan scan = {.type = index->type,
                      .dot = index->metric != FGMM_L2,
                      .whole = call->whole,
                      .d = index->d,
                      .rows = tile->rows,
                      .n_rows = tile->n,
                      .queries = b->query,
                      .n_queries = n,
                      .out = b->out};
    call->target->backend->scan(call->target->device, &scan);
    for (int i = 0; i < n; i++)
        fgmm_best_take(&b->best[queries[i]], index->metric, tile->inverse, tile->ids, 0, tile->n,
                       b->out + i * FGMM_SCAN_ROWS);
    b->computed += (int64_t)tile->n * n;
    tile->n = 0;
}

/* Whether query looks at link `at` of a list: at none of the row's lists before this one. */
static int is_first(const search_batch *b, const fgmm_ivf_store *list, int64_t at, int32_t query) {
    int64_t between = fgmm_ivf_between(b->call->index);
    if (is_probed(b, query, list->links[at].home)) return 0;
    for (int64_t i = 0; i < between; i++) {
        int32_t other = list->between[at * between + i];
        if (other < 0) break;
        if (is_probed(b, query, other)) return 0;
    }
    return 1;
}

static void scan_list(search_batch *b, int64_t l, const int32_t *queries, int n) {
    const search_call *call = b->call;
    const fgmm_ivf *index = call->index;
    const fgmm_ivf_store *list = &index->lists[l];
    size_t bytes = fgmm_ivf_row_bytes(index);
    row_tile tile = {.n = 0};
    for (int64_t i = 0; i < list->n; i++) {
        if (is_wanted(call, list->ids[i])) tile_add(&tile, list, i, bytes);
        if (tile.n == FGMM_SCAN_ROWS) tile_scan(b, &tile, queries, n);
    }
    tile_scan(b, &tile, queries, n);
    /* Which links a query looks at is its own affair. */
    for (int q = 0; q < n; q++) {
        for (int64_t i = 0; i < list->n_links; i++) {
            const fgmm_ivf_store *home = &index->lists[list->links[i].home];
            if (!is_first(b, list, i, queries[q]) || !is_wanted(call, home->ids[list->links[i].place])) continue;
            tile_add(&tile, home, list->links[i].place, bytes);
            if (tile.n == FGMM_SCAN_ROWS) tile_scan(b, &tile, queries + q, 1);
        }
        tile_scan(b, &tile, queries + q, 1);
    }
    b->entries += (list->n + list->n_links) * n;
    b->probes += n;
}

/* ---- a batch ---- */

/* Queries by list: of the nearest lists, or of all others that are probed. */
static void sort_askers(search_batch *b, int others) {
    int64_t k = b->call->index->k;
    memset(b->starts, 0, (size_t)(k + 1) * sizeof *b->starts);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t q = 0; q < b->n; q++)
            for (int64_t w = 0; w < b->words; w++)
                for (uint64_t bits = b->probed[q * b->words + w]; bits; bits &= bits - 1) {
                    int64_t l = w * 64 + __builtin_ctzll(bits);
                    if ((l != b->nearest[q]) != others) continue;
                    if (pass)
                        b->askers[b->starts[l]++] = (int32_t)q;
                    else
                        b->starts[l + 1]++;
                }
        for (int64_t l = 0; l < k && !pass; l++) b->starts[l + 1] += b->starts[l];
    }
    /* Filling has moved each start to the next one's. */
    memmove(b->starts + 1, b->starts, (size_t)k * sizeof *b->starts);
    b->starts[0] = 0;
}

static fgmm_status run_batch(search_batch *b, search_call *call, int64_t from) {
    const fgmm_ivf *index = call->index;
    int64_t k = index->k;
    b->n = call->n - from < call->batch ? call->n - from : call->batch;
    const char *raw = (const char *)call->queries + (size_t)(from * index->d) * fgmm_dtype_size(call->query_type);
    FGMM_TRY(fgmm_rows_to_floats(call->ctx, call->query_type, raw, call->first + from, b->n, index->d,
                                 index->metric == FGMM_ANGULAR, b->pack.floats));
    if (call->whole) fgmm_rows_to_words(call->query_type, raw, b->n, index->d, b->pack.words);
    fgmm_ivf_to_lists(index, call->target, b->pack.floats, b->n, call->stride, b->query, b->out, b->to_lists);
    memset(b->probed, 0, (size_t)(b->n * b->words) * sizeof *b->probed);
    for (int64_t q = 0; q < b->n; q++) {
        b->nearest[q] =
            fgmm_ivf_choose_probes(&call->plan.probing, b->to_lists + q * k, k, b->sorting, b->probed + q * b->words);
        b->best[q].n = 0;
    }
    for (int others = 0; others < 2; others++) {
        sort_askers(b, others);
        for (int64_t l = 0; l < k; l++)
            if (b->starts[l + 1] > b->starts[l])
                scan_list(b, l, b->askers + b->starts[l], b->starts[l + 1] - b->starts[l]);
    }
    for (int64_t q = 0; q < b->n; q++) {
        int64_t at = (call->first + from + q) * call->k;
        fgmm_best_sort(&b->best[q]);
        fgmm_best_copy(&b->best[q], index->metric, call->ids + at, call->distances ? call->distances + at : NULL);
    }
    return FGMM_OK;
}

static fgmm_status batch_open(search_batch *b, const search_call *call) {
    fgmm_context *ctx = call->ctx;
    const char *what = "a batch of queries";
    size_t n = (size_t)call->batch, k = (size_t)call->index->k, stride = (size_t)call->stride;
    b->call = call;
    b->words = (int64_t)(k + 63) / 64;
    b->pack.stride = call->stride;
#define NEED(pointer, count)                                                                                           \
    if (!((pointer) = fgmm_calloc(ctx, (count), sizeof *(pointer), what))) return FGMM_ERR_MEMORY
    NEED(b->pack.floats, n * stride);
    if (call->whole) NEED(b->pack.words, n * stride);
    NEED(b->to_lists, n * k);
    NEED(b->sorting, k);
    NEED(b->probed, n * (size_t)b->words);
    NEED(b->nearest, n);
    NEED(b->starts, k + 1);
    NEED(b->askers, n * (k < (size_t)call->plan.probing.most ? k : (size_t)call->plan.probing.most));
    NEED(b->out, n * FGMM_SCAN_ROWS);
    NEED(b->query, n);
#undef NEED
    b->best = fgmm_bests_new(ctx, call->batch, call->k);
    return b->best ? FGMM_OK : FGMM_ERR_MEMORY;
}

static void batch_close(search_batch *b, search_call *call) {
    fgmm_context *ctx = call->ctx;
    atomic_fetch_add(&call->computed, b->computed);
    atomic_fetch_add(&call->entries, b->entries);
    atomic_fetch_add(&call->probes, b->probes);
    fgmm_bests_free(ctx, b->best);
    fgmm_free(ctx, b->query);
    fgmm_free(ctx, b->out);
    fgmm_free(ctx, b->askers);
    fgmm_free(ctx, b->starts);
    fgmm_free(ctx, b->nearest);
    fgmm_free(ctx, b->probed);
    fgmm_free(ctx, b->sorting);
    fgmm_free(ctx, b->to_lists);
    fgmm_free(ctx, b->pack.words);
    fgmm_free(ctx, b->pack.floats);
}

static fgmm_status search_block(void *user, const void *data, int64_t first, int64_t n) {
    search_call *call = user;
    call->queries = data;
    call->first = first;
    call->n = n;
    int64_t batches = (n + call->batch - 1) / call->batch;
    int threads = fgmm_threads(call->ctx);
    if (threads > batches) threads = (int)batches;
    atomic_llong next = 0;
#pragma omp parallel num_threads(threads)
    {
        search_batch batch = {0};
        fgmm_status status = batch_open(&batch, call);
        while (status == FGMM_OK && atomic_load(&call->status) == FGMM_OK) {
            int64_t at = atomic_fetch_add(&next, 1);
            if (at >= batches) break;
            if (fgmm_cancelled(call->ctx))
                status = fgmm_fail(call->ctx, FGMM_ERR_CANCELLED, "cancelled");
            else
                status = run_batch(&batch, call, at * call->batch);
        }
        if (status != FGMM_OK) atomic_store(&call->status, status);
        batch_close(&batch, call);
    }
    return (fgmm_status)atomic_load(&call->status);
}

/* ---- the call ---- */

fgmm_status fgmm_ivf_search(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_rows *queries, int64_t k,
                            const fgmm_ivf_search_options *options, int64_t *ids, float *distances,
                            fgmm_ivf_counts *counts) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !queries || !ids) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf search: a pointer is NULL");
    FGMM_TRY(fgmm_ivf_query_check(ctx, index, queries, k));
    search_call call = {
        .ctx = ctx, .index = index, .k = k, .query_type = queries->type, .ids = ids, .distances = distances};
    FGMM_TRY(fgmm_ivf_plan_read(ctx, index, options, &call.plan));
    FGMM_TRY(fgmm_dispatch_cpu(ctx));
    call.target = &ctx->cpu;
    call.stride = fgmm_scan_stride(index->d);
    call.whole = fgmm_scan_is_whole(index->metric, index->type, queries->type, index->d);
    int64_t threads = fgmm_threads(ctx), batch = (queries->n + threads - 1) / threads;
    if (batch > BATCH_FLOATS / index->k) batch = BATCH_FLOATS / index->k;
    if (batch > BEST_MAX / k) batch = BEST_MAX / k;
    call.batch = batch < 1 ? 1 : batch > BATCH_MAX ? BATCH_MAX : batch;
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, NULL));
    fgmm_status status =
        fgmm_each_block(ctx, queries, queries->n < READ_QUERIES ? queries->n : READ_QUERIES, search_block, &call);
    fgmm_report_end(&scope, status);
    if (status == FGMM_OK && counts)
        *counts = (fgmm_ivf_counts){.queries = queries->n,
                                    .distances = atomic_load(&call.computed),
                                    .entries = atomic_load(&call.entries),
                                    .centroid_distances = queries->n * index->k,
                                    .probes = atomic_load(&call.probes)};
    return status;
}
