/* Exact search: blocks of rows against batches of queries, on the CPU tile by tile, on another device block by block. */
#include <stdatomic.h>
#include <string.h>

#include "device_lists.h"
#include "ivf_search.h"
#include "report.h"

enum {
    BATCH = 64,             /* queries a thread takes together */
    GROUP_ROOM = 256 << 20, /* bytes that the queries of one pass over the rows, and their best, may take */
    RESULTS = 1 << 22       /* neighbours that come from a device together */
};

typedef struct {
    fgmm_context *ctx;
    const fgmm_target *target;
    const fgmm_rows *rows, *queries;
    fgmm_metric metric;
    fgmm_dtype type; /* that rows are scanned as */
    int whole;
    int64_t d, k, stride;
    int64_t n; /* queries of this group */
    fgmm_query_pack pack;
    fgmm_best *best;  /* [n] */
    float *out;       /* [threads, BATCH, FGMM_SCAN_ROWS] */
    float *converted; /* a block as floats, where it has another type */
    float *inverse;   /* of a block's rows; angular */
    int threads;
} exact_call;

/* A tile of the block against one batch of queries. */
static void scan_tile(exact_call *call, const char *data, int64_t first, int64_t from, int n, int64_t query,
                      float *out) {
    const void *rows[FGMM_SCAN_ROWS], *queries[BATCH];
    int some = (int)(call->n - query < BATCH ? call->n - query : BATCH);
    size_t bytes = (size_t)call->d * fgmm_dtype_size(call->type);
    for (int r = 0; r < n; r++) rows[r] = data + (size_t)(from + r) * bytes;
    for (int q = 0; q < some; q++) queries[q] = fgmm_packed_query(&call->pack, query + q);
    fgmm_scan scan = {.type = call->type,
                      .dot = call->metric != FGMM_L2,
                      .whole = call->whole,
                      .d = call->d,
                      .rows = rows,
                      .n_rows = n,
                      .queries = queries,
                      .n_queries = some,
                      .out = out};
    call->target->backend->scan(call->target->device, &scan);
    for (int q = 0; q < some; q++)
        fgmm_best_take(&call->best[query + q], call->metric, call->inverse ? call->inverse + from : NULL, NULL,
                       first + from, n, out + q * FGMM_SCAN_ROWS);
}

/* Checks a block's rows and brings them to the type that is scanned. */
static fgmm_status prepare_block(exact_call *call, const void **data, int64_t first, int64_t n) {
    fgmm_dtype type = call->rows->type;
    size_t bytes = (size_t)call->d * fgmm_dtype_size(type);
    atomic_int failed = FGMM_OK;
    int64_t parts = call->threads;
#pragma omp parallel for num_threads(call->threads)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t i = part * n / parts; i < (part + 1) * n / parts && atomic_load(&failed) == FGMM_OK; i++) {
            const char *row = (const char *)*data + (size_t)i * bytes;
            fgmm_status status = FGMM_OK;
            if (!fgmm_is_bytes(type) || call->metric == FGMM_ANGULAR) {
                float *spare = call->converted + (type == call->type ? part * call->stride : i * call->stride);
                status = fgmm_rows_to_floats(call->ctx, type, row, first + i, 1, call->d, 0, spare);
                /* Of what is scanned. */
                if (call->inverse)
                    call->inverse[i] = type == call->type ? fgmm_inverse_length(type, row, call->d)
                                                          : fgmm_inverse_length(FGMM_F32, spare, call->d);
                if (status == FGMM_OK && call->inverse && call->inverse[i] == 0)
                    status = fgmm_rows_to_floats(call->ctx, type, row, first + i, 1, call->d, 1, spare);
            }
            if (status != FGMM_OK) atomic_store(&failed, status);
        }
    if (type != call->type && atomic_load(&failed) == FGMM_OK) {
        for (int64_t i = 0; i < n; i++)
            memmove(call->converted + i * call->d, call->converted + i * call->stride, (size_t)call->d * sizeof(float));
        *data = call->converted;
    }
    return (fgmm_status)atomic_load(&failed);
}

/* The block on a device that is not the CPU: one list, which all queries probe. */
static fgmm_status device_block(exact_call *call, const void *data, int64_t first, int64_t n) {
    fgmm_context *ctx = call->ctx;
    const fgmm_target *target = call->target;
    fgmm_status status = FGMM_ERR_MEMORY;
    fgmm_lists *lists = NULL;
    int64_t most = RESULTS / call->k < 1 ? 1 : RESULTS / call->k;
    if (most > call->n) most = call->n;
    int64_t *ids = fgmm_alloc(ctx, (size_t)n * sizeof *ids, "numbers of rows");
    uint64_t *probed = fgmm_alloc(ctx, (size_t)most * sizeof *probed, "queries");
    if (!ids || !probed) goto done;
    for (int64_t i = 0; i < n; i++) ids[i] = first + i;
    for (int64_t i = 0; i < most; i++) probed[i] = 1;
    const struct fgmm_list_rows list = {n, data, ids, call->inverse};
    const int64_t no_links[2] = {0, 0};
    fgmm_lists_source source = {.type = call->type,
                                .metric = call->metric,
                                .d = call->d,
                                .n_lists = 1,
                                .lists = &list,
                                .link_starts = no_links};
    FGMM_GO(fgmm_lists_put(ctx, target, &source, &lists));
    for (int64_t query = 0; query < call->n; query += most) {
        fgmm_lists_query some = {.n = call->n - query < most ? call->n - query : most,
                                 .stride = call->stride,
                                 .queries = call->pack.floats + query * call->stride,
                                 .whole = call->whole,
                                 .probed = probed,
                                 .words = 1,
                                 .k = call->k};
        FGMM_GO(fgmm_lists_best(ctx, target, lists, &some, call->best + query, call->threads));
    }
done:
    target->backend->lists_release(target->device, lists);
    fgmm_free(ctx, probed);
    fgmm_free(ctx, ids);
    return status;
}

static fgmm_status exact_block(void *user, const void *data, int64_t first, int64_t n) {
    exact_call *call = user;
    FGMM_TRY(prepare_block(call, &data, first, n));
    if (!call->target->backend->scan) return device_block(call, data, first, n);
    int64_t batches = (call->n + BATCH - 1) / BATCH;
#pragma omp parallel for schedule(dynamic, 1) num_threads(call->threads)
    for (int64_t batch = 0; batch < batches; batch++) {
        float *out = call->out + fgmm_thread_number() * BATCH * FGMM_SCAN_ROWS;
        for (int64_t from = 0; from < n && !fgmm_cancelled(call->ctx); from += FGMM_SCAN_ROWS) {
            int some = (int)(n - from < FGMM_SCAN_ROWS ? n - from : FGMM_SCAN_ROWS);
            scan_tile(call, data, first, from, some, batch * BATCH, out);
        }
    }
    return FGMM_OK;
}

/* One pass over the rows for a group of queries. */
static fgmm_status search_group(exact_call *call, const void *queries, int64_t first, int64_t *ids, float *distances) {
    fgmm_context *ctx = call->ctx;
    fgmm_status status = FGMM_ERR_MEMORY;
    size_t n = (size_t)call->n, k = (size_t)call->k;
    /* On a device a row also takes its number, its length and, for one query at least, a candidate of two words. */
    int64_t block = fgmm_block_rows(call->rows), most = call->target->facts.max_block_bytes, row = call->d * 4 + 20;
    if (most > 0 && block > most / 2 / row) block = most / 2 / row < 1 ? 1 : most / 2 / row;
    const char *what = "queries";
    call->best = fgmm_bests_new(ctx, call->n, call->k);
    call->pack = (fgmm_query_pack){.stride = call->stride};
    call->pack.floats = fgmm_alloc(ctx, n * (size_t)call->stride * sizeof(float), what);
    call->out = fgmm_alloc(ctx, (size_t)call->threads * BATCH * FGMM_SCAN_ROWS * sizeof(float), what);
    int64_t converted = call->type == call->rows->type ? call->threads : block;
    call->converted = fgmm_alloc(ctx, (size_t)(converted * call->stride) * sizeof(float), "a block as floats");
    if (!call->best || !call->pack.floats || !call->out || !call->converted) goto done;
    /* Only the host's scan takes words. */
    int words = call->whole && call->target->backend->scan;
    if (words && !(call->pack.words = fgmm_alloc(ctx, n * (size_t)call->stride * sizeof(int16_t), what))) goto done;
    if (call->metric == FGMM_ANGULAR &&
        !(call->inverse = fgmm_alloc(ctx, (size_t)block * sizeof(float), "lengths of rows")))
        goto done;
    FGMM_GO(fgmm_rows_to_floats(ctx, call->queries->type, queries, first, call->n, call->d,
                                call->metric == FGMM_ANGULAR, call->pack.floats));
    if (words) fgmm_rows_to_words(call->queries->type, queries, call->n, call->d, call->pack.words);
    FGMM_GO(fgmm_each_block(ctx, call->rows, block, exact_block, call));
    for (size_t i = 0; i < n; i++) {
        size_t at = ((size_t)first + i) * k;
        fgmm_best_sort(&call->best[i]);
        fgmm_best_copy(&call->best[i], call->metric, ids + at, distances ? distances + at : NULL);
    }
done:
    fgmm_free(ctx, call->inverse);
    fgmm_free(ctx, call->pack.words);
    fgmm_free(ctx, call->converted);
    fgmm_free(ctx, call->out);
    fgmm_free(ctx, call->pack.floats);
    fgmm_bests_free(ctx, call->best);
    call->inverse = NULL;
    return status;
}

typedef struct {
    exact_call *call;
    int64_t *ids;
    float *distances;
} group_state;

static fgmm_status visit_group(void *user, const void *data, int64_t first, int64_t n) {
    group_state *state = user;
    state->call->n = n;
    return search_group(state->call, data, first, state->ids, state->distances);
}

fgmm_status fgmm_exact_search(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_rows *queries, fgmm_metric metric,
                              int64_t k, int64_t *ids, float *distances) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!rows || !queries || !ids) return fgmm_fail(ctx, FGMM_ERR_INVALID, "exact search: a pointer is NULL");
    FGMM_TRY(fgmm_metric_check(ctx, metric, rows, "exact search"));
    FGMM_TRY(fgmm_metric_check(ctx, metric, queries, "exact search"));
    if (rows->d != queries->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "exact search: the rows have %lld features, the queries %lld",
                         (long long)rows->d, (long long)queries->d);
    if (k < 1 || k > FGMM_NEAREST_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "exact search: k = %lld must be 1 to %d", (long long)k,
                         FGMM_NEAREST_MAX);
    int64_t stride = fgmm_scan_stride(rows->d), each = stride * 6 + k * 12 + 64, group = GROUP_ROOM / each;
    if (group < 1) group = 1;
    if (group > queries->n) group = queries->n;
    if (rows->once && group < queries->n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "exact search: rows that can be read only once take at most %lld queries "
                         "of this size",
                         (long long)group);
    const fgmm_target *target;
    double work = (double)rows->n * (double)queries->n * (double)rows->d;
    FGMM_TRY(fgmm_dispatch(ctx, work, FGMM_EXACT, NULL, -1, &target));
    if (!target->backend->scan && !target->backend->lists_search) {
        FGMM_TRY(fgmm_dispatch_cpu(ctx));
        target = &ctx->cpu;
    }
    exact_call call = {.ctx = ctx,
                       .target = target,
                       .rows = rows,
                       .queries = queries,
                       .metric = metric,
                       .type = fgmm_stored_type(rows->type),
                       .whole = fgmm_scan_is_whole(metric, rows->type, queries->type, rows->d),
                       .d = rows->d,
                       .k = k,
                       .stride = stride,
                       .threads = fgmm_threads(ctx)};
    group_state state = {.call = &call, .ids = ids, .distances = distances};
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, NULL));
    fgmm_status status = fgmm_each_block(ctx, queries, group, visit_group, &state);
    fgmm_report_end(&scope, status);
    return status;
}
