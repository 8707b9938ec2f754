/*
 * Which gap gives which recall. A neighbour of a query is found if and only if one of its lists is probed, that is, if
 * the gap is at least
 *     min over the row's lists l of |q - m_l|^2, less |q - m_1|^2.
 * So the recall of a gap is the share of true neighbours whose own gap is at most that: its distribution is the answer
 * for every target at once.
 *
 * A gap may be bent, divided by |m_1 - m_l|^(2 bend). With bend 1/2 it is twice the distance from q to the plane between
 * the two centroids, which is what a neighbour has to cross; with 0 it is the plain one. Which of them finds the
 * neighbours in fewer entries depends on the data, so calibration tries a few and keeps the best.
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
    *gap *= 1 + 1e-6; /* what was rounded to f32 is within it */
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
    float gap; /* the least to its lists */
} neighbour;

static int by_id(const void *a, const void *b) {
    int64_t x = ((const neighbour *)a)->id, y = ((const neighbour *)b)->id;
    return x < y ? -1 : x > y;
}

/* The row `id` is in `list`. */
static void note(neighbour *sorted, int64_t n, int64_t id, const float *gaps, int64_t k, int64_t list) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < n && sorted[low].id == id; low++) {
        float gap = gaps[sorted[low].query * k + list];
        if (gap < sorted[low].gap) sorted[low].gap = gap;
    }
}

static void note_lists(const fgmm_ivf *index, neighbour *sorted, int64_t n, const float *gaps) {
    for (int64_t l = 0; l < index->k; l++) {
        const fgmm_ivf_store *list = &index->lists[l];
        for (int64_t i = 0; i < list->n; i++) note(sorted, n, list->ids[i], gaps, index->k, l);
        for (int64_t i = 0; i < list->n_links; i++)
            note(sorted, n, index->lists[list->links[i].home].ids[list->links[i].place], gaps, index->k, l);
    }
}

/* ---- the distances to lists ---- */

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

/* ---- bent gaps ---- */

fgmm_status fgmm_ivf_bend(fgmm_context *ctx, fgmm_ivf *index, double bend) {
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t k = index->k, d = index->d, stride = fgmm_scan_stride(d);
    fgmm_free(ctx, index->between);
    index->between = NULL;
    index->bend = bend;
    if (bend == 0) return FGMM_OK;
    float *padded = fgmm_calloc(ctx, (size_t)(k * stride), sizeof *padded, "centroids");
    float *out = fgmm_alloc(ctx, FGMM_SCAN_ROWS * sizeof *out, "distances");
    index->between = fgmm_alloc(ctx, (size_t)(k * k) * sizeof(float), "distances of centroids");
    if (!padded || !out || !index->between) goto done;
    FGMM_GO(fgmm_dispatch_cpu(ctx));
    for (int64_t i = 0; i < k; i++) memcpy(padded + i * stride, index->centroids + i * d, (size_t)d * sizeof *padded);
    for (int64_t i = 0; i < k; i++) {
        const void *pointer;
        float *row = index->between + i * k;
        fgmm_ivf_to_lists(index, &ctx->cpu, padded + i * stride, 1, stride, &pointer, out, row);
        for (int64_t j = 0; j < k; j++) row[j] = (float)pow(row[j], bend);
    }
done:
    if (status != FGMM_OK) {
        fgmm_free(ctx, index->between);
        index->between = NULL;
        index->bend = 0;
    }
    fgmm_free(ctx, out);
    fgmm_free(ctx, padded);
    return status;
}

/* gaps [nq, K] of these distances, bent as the index is. */
static void bend_gaps(const fgmm_ivf *index, const float *to_lists, int64_t nq, float *gaps) {
    int64_t k = index->k;
    for (int64_t q = 0; q < nq; q++) {
        const float *distance = to_lists + q * k;
        int64_t nearest = 0;
        for (int64_t j = 1; j < k; j++)
            if (distance[j] < distance[nearest]) nearest = j;
        for (int64_t j = 0; j < k; j++) {
            double gap = (double)distance[j] - (double)distance[nearest];
            double between = index->between ? (double)index->between[nearest * k + j] : 1;
            gaps[q * k + j] = (float)(gap > 0 && between > 0 ? gap / between : gap);
        }
    }
}

/* The value that a share of the n sorted ones does not exceed. */
static float quantile(const float *sorted, int64_t n, double share) {
    int64_t at = (int64_t)ceil(share * (double)n) - 1;
    return sorted[at < 0 ? 0 : at >= n ? n - 1 : at];
}

/* What these gaps cost: the entries of all lists within, at a few recalls, as a sum of logarithms. */
static double cost_of(const fgmm_ivf *index, const float *gaps, int64_t nq, const float *sorted, int64_t n) {
    static const double recalls[] = {0.9, 0.95, 0.99};
    double cost = 0;
    for (int r = 0; r < 3; r++) {
        float limit = quantile(sorted, n, recalls[r]);
        double entries = 1;
        for (int64_t q = 0; q < nq; q++)
            for (int64_t l = 0; l < index->k; l++)
                if (gaps[q * index->k + l] <= limit) entries += (double)(index->lists[l].n + index->lists[l].n_links);
        cost += log(entries);
    }
    return cost;
}

/* ---- the call ---- */

/* Room of a calibration, and its best so far. */
typedef struct {
    const float *to_lists; /* [nq, K] */
    int64_t nq, n;
    neighbour *found; /* [n], by id */
    float *gaps;      /* [nq, K] */
    float *values;    /* [n] */
    double best_cost, best_bend;
    double levels[FGMM_IVF_LEVELS];
} bend_trial;

static fgmm_status try_bend(fgmm_context *ctx, fgmm_ivf *index, double bend, bend_trial *t) {
    FGMM_TRY(fgmm_ivf_bend(ctx, index, bend));
    bend_gaps(index, t->to_lists, t->nq, t->gaps);
    for (int64_t i = 0; i < t->n; i++) t->found[i].gap = INFINITY;
    note_lists(index, t->found, t->n, t->gaps);
    for (int64_t i = 0; i < t->n; i++) t->values[i] = t->found[i].gap;
    fgmm_sort_floats(t->values, t->n);
    double cost = cost_of(index, t->gaps, t->nq, t->values, t->n);
    if (bend > 0 && !(cost < t->best_cost)) return FGMM_OK;
    t->best_cost = cost;
    t->best_bend = bend;
    for (int i = 0; i < FGMM_IVF_LEVELS; i++) t->levels[i] = quantile(t->values, t->n, fgmm_ivf_level(i));
    return FGMM_OK;
}

static fgmm_status try_bends(fgmm_context *ctx, fgmm_ivf *index, bend_trial *t, int k) {
    static const double bends[] = {0, 0.25, 0.5};
    int count = index->metric == FGMM_INNER_PRODUCT || index->k > FGMM_IVF_BEND_LISTS ? 1 : 3;
    fgmm_status status = FGMM_OK;
    /* Until all has gone well there is no calibration: gaps of another bend mean something else. */
    index->calibrated_k = 0;
    for (int i = 0; i < count && status == FGMM_OK; i++) status = try_bend(ctx, index, bends[i], t);
    if (status == FGMM_OK) status = fgmm_ivf_bend(ctx, index, t->best_bend);
    if (status != FGMM_OK) {
        fgmm_ivf_bend(ctx, index, 0);
        return status;
    }
    memcpy(index->gaps, t->levels, sizeof t->levels);
    index->calibrated_k = k;
    return FGMM_OK;
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
    float *gaps = fgmm_alloc(ctx, (size_t)(queries->n * index->k) * sizeof *gaps, "gaps");
    float *values = fgmm_alloc(ctx, (size_t)n * sizeof *values, "gaps");
    if (!ids || !found || !state.to_lists || !gaps || !values) goto done;
    FGMM_GO(fgmm_ivf_search(ctx, index, queries, k, &all, ids, NULL, NULL));
    fgmm_report_scope scope;
    FGMM_GO(fgmm_report_begin(ctx, &scope, NULL));
    status = fgmm_each_block(ctx, queries, queries->n < 1024 ? queries->n : 1024, distance_block, &state);
    fgmm_report_end(&scope, status); /* which takes a cancel back */
    if (status != FGMM_OK) goto done;
    for (int64_t i = 0; i < n; i++) found[i] = (neighbour){ids[i], i / k, INFINITY};
    qsort(found, (size_t)n, sizeof *found, by_id);
    bend_trial trial = {
        .to_lists = state.to_lists, .nq = queries->n, .n = n, .found = found, .gaps = gaps, .values = values};
    FGMM_GO(try_bends(ctx, index, &trial, k));
done:
    fgmm_free(ctx, values);
    fgmm_free(ctx, gaps);
    fgmm_free(ctx, state.to_lists);
    fgmm_free(ctx, found);
    fgmm_free(ctx, ids);
    return status;
}
