/*
 * Which gap gives which recall. A neighbour of a query is found if and only if one of its lists is probed, that is, if
 * the gap is at least
 *     min over the row's lists l of |q - m_l|^2, less |q - m_1|^2.
 * So the recall of a gap is the share of true neighbours whose own gap is at most that: its distribution is the answer
 * for every target at once.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ivf_search.h"
#include "report.h"

double fgmm_ivf_level(int i) {
    return 1 - exp(log(0.7) + (log(1e-4) - log(0.7)) * (double)i / (FGMM_IVF_LEVELS - 1));
}

fgmm_status fgmm_ivf_gap_of(fgmm_context *ctx, const fgmm_ivf *index, double target, double *gap) {
    if (!index->calibrated_k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: a target recall needs an index that has been calibrated");
    int level = 0;
    while (level < FGMM_IVF_LEVELS - 1 && fgmm_ivf_level(level) < target) level++;
    double high = index->gaps[level];
    *gap = high;
    if (level > 0 && fgmm_ivf_level(level) >= target) {
        double below = fgmm_ivf_level(level - 1), share = (target - below) / (fgmm_ivf_level(level) - below);
        *gap = index->gaps[level - 1] + share * (high - index->gaps[level - 1]);
    }
    /* 0 would mean no gap at all. */
    if (!(*gap > 0)) *gap = 1e-30;
    return FGMM_OK;
}

fgmm_status fgmm_ivf_target_gap(fgmm_context *ctx, const fgmm_ivf *index, double target, double *gap) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !gap) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf target: a pointer is NULL");
    if (!(target > 0 && target < 1))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf target: a recall of %g is not between 0 and 1", target);
    return fgmm_ivf_gap_of(ctx, index, target, gap);
}

/* ---- the lists of the neighbours ---- */

/* A neighbour of a query by id, with the least distance from the query to its lists. */
typedef struct {
    int64_t id;
    int64_t query;
    double least; /* then the gap */
} neighbour;

static int by_id(const void *a, const void *b) {
    int64_t x = ((const neighbour *)a)->id, y = ((const neighbour *)b)->id;
    return x < y ? -1 : x > y;
}

static int by_gap(const void *a, const void *b) {
    double x = ((const neighbour *)a)->least, y = ((const neighbour *)b)->least;
    return x < y ? -1 : x > y;
}

/* The row `id` is in `list`. */
static void note(neighbour *sorted, int64_t n, int64_t id, const float *to_lists, int64_t k, int64_t list) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < n && sorted[low].id == id; low++) {
        float distance = to_lists[sorted[low].query * k + list];
        if (distance < sorted[low].least) sorted[low].least = distance;
    }
}

static void note_lists(const fgmm_ivf *index, neighbour *sorted, int64_t n, const float *to_lists) {
    for (int64_t l = 0; l < index->k; l++) {
        const fgmm_ivf_store *list = &index->lists[l];
        for (int64_t i = 0; i < list->n; i++) note(sorted, n, list->ids[i], to_lists, index->k, l);
        for (int64_t i = 0; i < list->n_links; i++)
            note(sorted, n, index->lists[list->links[i].home].ids[list->links[i].place], to_lists, index->k, l);
    }
}

/* ---- the call ---- */

typedef struct {
    fgmm_context *ctx;
    const fgmm_ivf *index;
    const fgmm_rows *queries;
    float *to_lists; /* [nq, K] */
} distance_state;

static fgmm_status distance_block(void *user, const void *data, int64_t first, int64_t n) {
    distance_state *state = user;
    fgmm_context *ctx = state->ctx;
    const fgmm_ivf *index = state->index;
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t stride = fgmm_scan_stride(index->d);
    float *floats = fgmm_alloc(ctx, (size_t)(n * stride) * sizeof *floats, "queries");
    float *out = fgmm_alloc(ctx, (size_t)n * FGMM_SCAN_ROWS * sizeof *out, "distances");
    const void **pointers = fgmm_alloc(ctx, (size_t)n * sizeof *pointers, "queries");
    if (!floats || !out || !pointers) goto done;
    FGMM_GO(fgmm_rows_to_floats(ctx, state->queries->type, data, first, n, index->d, index->metric == FGMM_ANGULAR,
                                floats));
    fgmm_ivf_to_lists(index, &ctx->cpu, floats, n, stride, pointers, out, state->to_lists + first * index->k);
done:
    fgmm_free(ctx, pointers);
    fgmm_free(ctx, out);
    fgmm_free(ctx, floats);
    return status;
}

static void store_levels(fgmm_ivf *index, const neighbour *sorted, int64_t n, int k) {
    for (int i = 0; i < FGMM_IVF_LEVELS; i++) {
        int64_t at = (int64_t)ceil(fgmm_ivf_level(i) * (double)n) - 1;
        at = at < 0 ? 0 : at >= n ? n - 1 : at;
        index->gaps[i] = sorted[at].least > 0 ? sorted[at].least : 0;
    }
    index->calibrated_k = k;
}

fgmm_status fgmm_ivf_calibrate(fgmm_context *ctx, fgmm_ivf *index, const fgmm_rows *queries, int k) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !queries) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf calibrate: a pointer is NULL");
    FGMM_TRY(fgmm_ivf_query_check(ctx, index, queries, k));
    if (queries->once || k > index->n_rows || (double)queries->n * (double)index->k > 2e9)
        return fgmm_fail(
            ctx, FGMM_ERR_INVALID,
            "ivf calibrate: needs queries that can be read twice, at least k = %d rows in the index, and at "
            "most 2e9 queries x lists",
            k);
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t n = queries->n * k;
    distance_state state = {.ctx = ctx, .index = index, .queries = queries};
    fgmm_ivf_search_options all = FGMM_IVF_SEARCH_OPTIONS_INIT;
    all.n_probe = index->k;
    int64_t *ids = fgmm_alloc(ctx, (size_t)n * sizeof *ids, "neighbours");
    neighbour *found = fgmm_alloc(ctx, (size_t)n * sizeof *found, "neighbours");
    state.to_lists = fgmm_alloc(ctx, (size_t)(queries->n * index->k) * sizeof(float), "distances to lists");
    if (!ids || !found || !state.to_lists) goto done;
    FGMM_GO(fgmm_ivf_search(ctx, index, queries, k, &all, ids, NULL, NULL));
    fgmm_report_scope scope;
    FGMM_GO(fgmm_report_begin(ctx, &scope, NULL));
    status = fgmm_each_block(ctx, queries, queries->n < 1024 ? queries->n : 1024, distance_block, &state);
    fgmm_report_end(&scope, status); /* which takes a cancel back */
    if (status != FGMM_OK) goto done;
    for (int64_t i = 0; i < n; i++) found[i] = (neighbour){ids[i], i / k, INFINITY};
    qsort(found, (size_t)n, sizeof *found, by_id);
    note_lists(index, found, n, state.to_lists);
    for (int64_t i = 0; i < n; i++) {
        const float *mine = state.to_lists + found[i].query * index->k;
        float nearest = mine[0];
        for (int64_t j = 1; j < index->k; j++) nearest = mine[j] < nearest ? mine[j] : nearest;
        found[i].least = nearest < INFINITY ? found[i].least - nearest : INFINITY;
    }
    qsort(found, (size_t)n, sizeof *found, by_gap);
    store_levels(index, found, n, k);
done:
    fgmm_free(ctx, state.to_lists);
    fgmm_free(ctx, found);
    fgmm_free(ctx, ids);
    return status;
}
