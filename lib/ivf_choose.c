/*
 * Lists of a row. The distances of a tile of rows to all centroids are held, no more. Losses that need r_1 . r_j take
 * it from
 *     r_1 . r_j = (|r_1|^2 + |r_j|^2 - |m_1 - m_j|^2) / 2,
 * three distances formed by differences, so that nothing is lost far from the origin. Such a loss is looked up only for
 * centroids that could win: SOAR's is at least |r_j|^2, RAIR's at least |r_j| (|r_j| - lambda |r_1|).
 */
#include "ivf_choose.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    TILE_ROWS_MAX = 64,
    TILE_FLOATS = 1 << 18, /* distances of a tile, beyond which it has fewer rows */
    NEAR = 16              /* nearest centroids whose loss is always looked up */
};

/* ---- options ---- */

const char *fgmm_ivf_rule_name(fgmm_ivf_rule rule) {
    static const char *const names[] = {"soar", "single", "nearest", "gap", "responsibility", "rair"};
    return (unsigned)rule < sizeof names / sizeof *names ? names[rule] : NULL;
}

fgmm_status fgmm_rule_check(fgmm_context *ctx, fgmm_ivf_rule rule, int *max_lists, double *budget, double *threshold,
                            double *lambda, int64_t k) {
    if (!fgmm_ivf_rule_name(rule)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: rule %d is unknown", (int)rule);
    if (*max_lists < 0 || *max_lists > FGMM_IVF_LISTS_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: max_lists = %d must be 1 to %d, or 0", *max_lists,
                         FGMM_IVF_LISTS_MAX);
    if (rule == FGMM_IVF_SINGLE && *max_lists > 1)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: max_lists = %d, but the rule is single", *max_lists);
    if (*max_lists == 0) *max_lists = rule == FGMM_IVF_SINGLE ? 1 : 2;
    if (*max_lists > k) *max_lists = (int)k;
    if (*budget != 0 && (rule == FGMM_IVF_SINGLE || rule == FGMM_IVF_NEAREST))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: the rule %s has no threshold that a budget could set",
                         fgmm_ivf_rule_name(rule));
    if (*budget != 0 && !(*budget >= 1 && *budget <= *max_lists))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: budget = %g must be 1 to max_lists, %d", *budget, *max_lists);
    if (isnan(*threshold) || (rule == FGMM_IVF_RESPONSIBILITY && !(*threshold >= 0 && *threshold <= 1)))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: threshold = %g does not go with the rule %s", *threshold,
                         fgmm_ivf_rule_name(rule));
    if (!isfinite(*lambda) || *lambda < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: lambda = %g must be finite and >= 0", *lambda);
    if (*lambda == 0) *lambda = rule == FGMM_IVF_RAIR ? 0.75 : 1;
    if (rule == FGMM_IVF_RESPONSIBILITY && *threshold == 0) *threshold = 1 / (double)k;
    if (rule != FGMM_IVF_SINGLE && rule != FGMM_IVF_NEAREST && *threshold == 0 && *budget == 0)
        *budget = *max_lists > 1 ? 1.5 : 1;
    return FGMM_OK;
}

fgmm_status fgmm_chooser_open(fgmm_chooser *chooser, fgmm_context *ctx, const fgmm_model *model) {
    int64_t k = model->k, d = model->d, stride = fgmm_scan_stride(d);
    chooser->ctx = ctx;
    chooser->model = model;
    chooser->k = k;
    chooser->d = d;
    chooser->stride = stride;
    FGMM_TRY(fgmm_dispatch_cpu(ctx));
    chooser->target = &ctx->cpu;
    chooser->centroids = fgmm_calloc(ctx, (size_t)k * (size_t)stride, sizeof(float), "centroids");
    if (!chooser->centroids) return FGMM_ERR_MEMORY;
    fgmm_status status = fgmm_means_to_floats(ctx, model, stride, chooser->centroids);
    if (status != FGMM_OK) fgmm_chooser_close(chooser);
    return status;
}

void fgmm_chooser_close(fgmm_chooser *chooser) {
    fgmm_free(chooser->ctx, chooser->centroids);
    chooser->centroids = NULL;
}

/* ---- one row ---- */

/* A list that a row could go to. */
typedef struct {
    float loss;
    int32_t list;
} candidate;

/* Keeps the n best of what has come, in order; of equal ones the first list. */
static void insert(candidate *best, int *count, int n, candidate c) {
    if (*count == n && !(c.loss < best[n - 1].loss || (c.loss == best[n - 1].loss && c.list < best[n - 1].list)))
        return;
    int at = *count < n ? (*count)++ : n - 1;
    for (; at > 0 && (c.loss < best[at - 1].loss || (c.loss == best[at - 1].loss && c.list < best[at - 1].list)); at--)
        best[at] = best[at - 1];
    best[at] = c;
}

static void nearest(const float *distance, int64_t k, candidate *best, int *count, int n) {
    *count = 0;
    for (int64_t j = 0; j < k; j++)
        if (*count < n || distance[j] < best[n - 1].loss) insert(best, count, n, (candidate){distance[j], (int32_t)j});
}

static float loss_of(const fgmm_chooser *c, float first, float other, float between) {
    double product = 0.5 * ((double)first + other - between), loss = other;
    if (c->rule == FGMM_IVF_RAIR) return (float)(loss + c->lambda * product);
    return (float)(loss + (first > 0 ? c->lambda * product * product / first : 0));
}

/* The least that a loss can be for a centroid at squared distance `other`. */
static float loss_least(const fgmm_chooser *c, float first, float other) {
    if (c->rule != FGMM_IVF_RAIR) return other;
    double least = (double)other - c->lambda * sqrt((double)first * other);
    /* Beyond half of that its bound only grows; nearer ones can win. */
    return other > 0.25 * c->lambda * c->lambda * first ? (float)least : -INFINITY;
}

/* Adds the losses of `n` centroids to best. */
static void look_up(const fgmm_chooser *c, const float *distance, int32_t first, const int32_t *lists, int n,
                    candidate *best, int *count, int keep) {
    const void *rows[FGMM_SCAN_ROWS], *query = c->centroids + first * c->stride;
    float between[FGMM_SCAN_ROWS];
    for (int i = 0; i < n; i++) rows[i] = c->centroids + lists[i] * c->stride;
    fgmm_scan scan = {
        .type = FGMM_F32, .d = c->d, .rows = rows, .n_rows = n, .queries = &query, .n_queries = 1, .out = between};
    if (n > 0) c->target->backend->scan(c->target->device, &scan);
    for (int i = 0; i < n; i++)
        insert(best, count, keep, (candidate){loss_of(c, distance[first], distance[lists[i]], between[i]), lists[i]});
}

/* The best lists after the first by loss, at most keep. */
static void by_loss(const fgmm_chooser *c, const float *distance, candidate *best, int *count, int keep) {
    candidate near[NEAR];
    int n_near, n = 0;
    int32_t lists[FGMM_SCAN_ROWS];
    nearest(distance, c->k, near, &n_near, NEAR);
    int32_t first = near[0].list;
    *count = 0;
    for (int i = 1; i < n_near; i++) lists[n++] = near[i].list;
    look_up(c, distance, first, lists, n, best, count, keep);
    if (n_near == c->k) return;
    if (*count == keep && loss_least(c, distance[first], near[n_near - 1].loss) > best[keep - 1].loss) return;
    n = 0;
    for (int64_t j = 0; j < c->k; j++) {
        int seen = 0;
        for (int i = 0; i < n_near; i++) seen |= near[i].list == j;
        if (seen || (*count == keep && loss_least(c, distance[first], distance[j]) > best[keep - 1].loss)) continue;
        lists[n++] = (int32_t)j;
        if (n < FGMM_SCAN_ROWS) continue;
        look_up(c, distance, first, lists, n, best, count, keep);
        n = 0;
    }
    look_up(c, distance, first, lists, n, best, count, keep);
}

/* lists [max_lists] and values (or NULL) of a row by its distances to all centroids. */
static void choose_row(const fgmm_chooser *c, const float *distance, int32_t *lists, float *values) {
    int m = c->max_lists, count, has_loss = c->rule == FGMM_IVF_SOAR || c->rule == FGMM_IVF_RAIR;
    candidate best[FGMM_IVF_LISTS_MAX + 1];
    nearest(distance, c->k, best, &count, has_loss ? 1 : m);
    float first = best[0].loss;
    if (has_loss && m > 1) {
        by_loss(c, distance, best + 1, &count, m - 1);
        count++;
    }
    lists[0] = best[0].list;
    for (int i = 1; i < m; i++) {
        float value = i < count ? best[i].loss - first : INFINITY;
        int taken = i < count && (c->rule == FGMM_IVF_NEAREST || value <= c->threshold);
        lists[i] = taken ? best[i].list : -1;
        if (values) values[i - 1] = value;
    }
}

/* ---- tiles of rows ---- */

typedef struct {
    const fgmm_chooser *chooser;
    fgmm_dtype type;
    const void *rows;
    int64_t first, n, tile_rows;
    int32_t *lists;
    float *values;
    float *room; /* a thread's floats, [tile_rows, stride + K + FGMM_SCAN_ROWS] */
    atomic_int status;
} tile_call;

static int64_t tile_floats(const fgmm_chooser *c) {
    return c->stride + c->k + FGMM_SCAN_ROWS;
}

/* distance [n, K] of n float rows x [n, stride]; out: room for [n, FGMM_SCAN_ROWS]. */
static void distances_of(const fgmm_chooser *c, const float *x, int n, float *out, float *distance) {
    const void *queries[TILE_ROWS_MAX], *rows[FGMM_SCAN_ROWS];
    for (int i = 0; i < n; i++) queries[i] = x + i * c->stride;
    for (int64_t j = 0; j < c->k; j += FGMM_SCAN_ROWS) {
        int some = c->k - j < FGMM_SCAN_ROWS ? (int)(c->k - j) : FGMM_SCAN_ROWS;
        for (int r = 0; r < some; r++) rows[r] = c->centroids + (j + r) * c->stride;
        fgmm_scan scan = {
            .type = FGMM_F32, .d = c->d, .rows = rows, .n_rows = some, .queries = queries, .n_queries = n, .out = out};
        c->target->backend->scan(c->target->device, &scan);
        for (int i = 0; i < n; i++)
            memcpy(distance + i * c->k + j, out + i * FGMM_SCAN_ROWS, (size_t)some * sizeof *out);
    }
}

static fgmm_status choose_tile(const tile_call *call, int64_t from, float *room) {
    const fgmm_chooser *c = call->chooser;
    int64_t m = c->max_lists;
    int n = (int)(call->n - from < call->tile_rows ? call->n - from : call->tile_rows);
    float *x = room, *out = x + call->tile_rows * c->stride, *distance = out + call->tile_rows * FGMM_SCAN_ROWS;
    const char *rows = (const char *)call->rows + (size_t)(from * c->d) * fgmm_dtype_size(call->type);
    FGMM_TRY(fgmm_rows_to_floats(c->ctx, call->type, rows, call->first + from, n, c->d, c->metric == FGMM_ANGULAR, x));
    distances_of(c, x, n, out, distance);
    for (int i = 0; i < n; i++)
        choose_row(c, distance + i * c->k, call->lists + (from + i) * m,
                   call->values ? call->values + (from + i) * (m - 1) : NULL);
    return FGMM_OK;
}

static fgmm_status choose_tiles(tile_call *call) {
    const fgmm_chooser *c = call->chooser;
    fgmm_context *ctx = c->ctx;
    int64_t rows = TILE_FLOATS / c->k;
    call->tile_rows = rows < 4 ? 4 : rows > TILE_ROWS_MAX ? TILE_ROWS_MAX : rows;
    int64_t tiles = (call->n + call->tile_rows - 1) / call->tile_rows;
    int threads = (double)call->n * (double)c->k * (double)c->d < 1e6 ? 1 : fgmm_threads(ctx);
    if (threads > tiles) threads = (int)tiles;
    int64_t each = call->tile_rows * tile_floats(c);
    float *room = fgmm_alloc(ctx, (size_t)threads * (size_t)each * sizeof *room, "distances of a tile");
    if (!room) return FGMM_ERR_MEMORY;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        if (atomic_load(&call->status) != FGMM_OK || fgmm_cancelled(ctx)) continue;
        fgmm_status status = choose_tile(call, tile * call->tile_rows, room + fgmm_thread_number() * each);
        if (status != FGMM_OK) atomic_store(&call->status, status);
    }
    fgmm_free(ctx, room);
    if (atomic_load(&call->status) == FGMM_OK && fgmm_cancelled(ctx))
        return fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled");
    return (fgmm_status)atomic_load(&call->status);
}

/* ---- responsibilities ---- */

/* The engine of fgmm_assign; values are minus the responsibilities, so that here too the smaller is taken first. */
static fgmm_status choose_responsible(const fgmm_chooser *c, fgmm_dtype type, const void *data, int64_t first,
                                      int64_t n, const fgmm_compute_options *compute, int32_t *lists, float *values) {
    fgmm_context *ctx = c->ctx;
    fgmm_status status = FGMM_ERR_MEMORY;
    fgmm_rows *rows = NULL;
    fgmm_assign_options options = FGMM_ASSIGN_OPTIONS_INIT;
    int64_t m = c->max_lists;
    float *resp = fgmm_alloc(ctx, (size_t)(n * m) * sizeof *resp, "responsibilities");
    float *floats = NULL;
    options.compute = *compute;
    options.compute.nonfinite = FGMM_NONFINITE_ERROR;
    if (!resp) goto done;
    if (c->metric == FGMM_ANGULAR) {
        floats = fgmm_alloc(ctx, (size_t)(n * c->stride) * sizeof *floats, "rows of length 1");
        if (!floats) goto done;
        FGMM_GO(fgmm_rows_to_floats(ctx, type, data, first, n, c->d, 1, floats));
        FGMM_GO(fgmm_rows_from_memory(ctx, &rows, floats, FGMM_F32, n, c->d, c->stride));
    } else {
        /* The E-step takes more than the f32 that an index holds. */
        if (type == FGMM_F64) FGMM_GO(fgmm_rows_check(ctx, type, data, first, n, c->d, 0));
        FGMM_GO(fgmm_rows_from_memory(ctx, &rows, data, type, n, c->d, 0));
    }
    status = fgmm_assign(ctx, c->model, rows, (int)m, &options, lists, resp, NULL, NULL);
    /* Its message counts rows of this block. */
    if (status == FGMM_ERR_DATA) FGMM_GO(fgmm_rows_check(ctx, type, data, first, n, c->d, 0));
    if (status != FGMM_OK) goto done;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 1; j < m; j++) {
            if (values) values[i * (m - 1) + j - 1] = lists[i * m + j] >= 0 ? -resp[i * m + j] : INFINITY;
            if (!(resp[i * m + j] >= c->threshold)) lists[i * m + j] = -1;
        }
done:
    fgmm_rows_free(ctx, rows);
    fgmm_free(ctx, floats);
    fgmm_free(ctx, resp);
    return status;
}

/* ---- lists that are full ---- */

/* Moves rows on from full lists: the first list to the nearest with room, others are dropped. */
static fgmm_status make_fit(const fgmm_chooser *c, fgmm_dtype type, const void *data, int64_t first, int64_t n,
                            int32_t *lists, fgmm_list_room *room) {
    fgmm_context *ctx = c->ctx;
    fgmm_status status = FGMM_OK;
    int m = c->max_lists;
    float *work = fgmm_alloc(ctx, (size_t)tile_floats(c) * sizeof *work, "distances of a row");
    if (!work) return FGMM_ERR_MEMORY;
    float *x = work, *out = x + c->stride, *distance = out + FGMM_SCAN_ROWS;
    for (int64_t i = 0; i < n; i++) {
        int32_t *mine = lists + i * m;
        if (room->left[mine[0]] == 0) {
            const char *row = (const char *)data + (size_t)(i * c->d) * fgmm_dtype_size(type);
            FGMM_GO(fgmm_rows_to_floats(ctx, type, row, first + i, 1, c->d, c->metric == FGMM_ANGULAR, x));
            distances_of(c, x, 1, out, distance);
            int64_t to = -1;
            for (int64_t j = 0; j < c->k; j++)
                if (room->left[j] > 0 && (to < 0 || distance[j] < distance[to])) to = j;
            if (to < 0) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: all lists are full"));
            mine[0] = (int32_t)to;
        }
        room->left[mine[0]]--;
        int kept = 1;
        for (int j = 1; j < m; j++) {
            int32_t list = mine[j];
            if (list >= 0 && list != mine[0] && room->left[list] > 0 && room->spare > 0) {
                room->left[list]--;
                room->spare--;
                mine[kept++] = list;
            }
        }
        for (; kept < m; kept++) mine[kept] = -1;
    }
done:
    fgmm_free(ctx, work);
    return status;
}

fgmm_status fgmm_choose(const fgmm_chooser *c, fgmm_dtype type, const void *rows, int64_t first, int64_t n,
                        const fgmm_compute_options *compute, int32_t *lists, float *values, fgmm_list_room *room) {
    if (c->rule == FGMM_IVF_RESPONSIBILITY) {
        FGMM_TRY(choose_responsible(c, type, rows, first, n, compute, lists, values));
    } else {
        tile_call call = {
            .chooser = c, .type = type, .rows = rows, .first = first, .n = n, .lists = lists, .values = values};
        FGMM_TRY(choose_tiles(&call));
    }
    return room ? make_fit(c, type, rows, first, n, lists, room) : FGMM_OK;
}

/* ---- budgets ---- */

typedef struct {
    const fgmm_chooser *chooser;
    fgmm_dtype type;
} row_check;

static fgmm_status check_block(void *user, const void *data, int64_t first, int64_t n) {
    const row_check *check = user;
    const fgmm_chooser *c = check->chooser;
    return fgmm_rows_check(c->ctx, check->type, data, first, n, c->d, c->metric == FGMM_ANGULAR);
}

fgmm_status fgmm_choose_threshold(fgmm_chooser *c, const fgmm_rows *rows, double budget, int64_t sample_rows,
                                  uint64_t seed, const fgmm_compute_options *compute) {
    fgmm_context *ctx = c->ctx;
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t sample = sample_rows ? sample_rows : 16384, m = c->max_lists, more = m - 1;
    if (more == 0) return FGMM_OK;
    if (rows->once)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "ivf: rows that can be read only once cannot be sampled for a budget: "
                         "give a threshold");
    if (sample > rows->n) sample = rows->n;
    int32_t *lists = fgmm_alloc(ctx, (size_t)(sample * m) * sizeof *lists, "lists of a sample");
    float *values = fgmm_alloc(ctx, (size_t)(sample * more) * sizeof *values, "losses of a sample");
    char *data = fgmm_alloc(ctx, (size_t)(sample * rows->d) * fgmm_dtype_size(rows->type), "a sample of rows");
    if (!lists || !values || !data) goto done;
    FGMM_GO(fgmm_rows_sample(ctx, rows, sample, seed, data));
    status = fgmm_choose(c, rows->type, data, 0, sample, compute, lists, values, NULL);
    if (status == FGMM_ERR_DATA) { /* its message counts rows of the sample */
        row_check check = {.chooser = c, .type = rows->type};
        fgmm_status named = fgmm_each_block(ctx, rows, fgmm_block_rows(rows), check_block, &check);
        if (named != FGMM_OK) status = named;
    }
    if (status != FGMM_OK) goto done;
    fgmm_sort_floats(values, sample * more);
    int64_t wanted = (int64_t)llround((budget - 1) * (double)sample), at = wanted < 0               ? 0
                                                                           : wanted < sample * more ? wanted
                                                                                                    : sample * more;
    /* Between the last value that is taken and the first that is not: values are rounded. */
    double low = at > 0 ? values[at - 1] : -INFINITY, high = at < sample * more ? values[at] : INFINITY;
    c->threshold = isfinite(low) && isfinite(high) ? 0.5 * (low + high) : at > 0 ? high : low;
    if (c->rule == FGMM_IVF_RESPONSIBILITY) c->threshold = at == 0 ? 2 : fmax(0, -c->threshold);
done:
    fgmm_free(ctx, data);
    fgmm_free(ctx, values);
    fgmm_free(ctx, lists);
    return status;
}
