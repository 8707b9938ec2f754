#include "ivf_curve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ivf_curve_free(ivf_curve *curve) {
    free(curve->gaps);
    free(curve->entries);
    free(curve->rows);
    free(curve->ranks);
    *curve = (ivf_curve){0};
}

/* ---- making ---- */

/* Lists of each query by distance: an exact search among the centroids. */
static int sort_lists(const cli_session *s, ivf_curve *curve, const fgmm_model *model, fgmm_metric metric,
                      const fgmm_rows *queries, int64_t *order) {
    int64_t k = curve->lists, d = fgmm_model_features(model), n = curve->queries;
    float *centroids = cli_alloc(k * d, sizeof *centroids, "centroids");
    fgmm_rows *rows = NULL;
    if (!centroids) return CLI_FAILED;
    for (int64_t i = 0; i < k * d; i++) centroids[i] = (float)fgmm_model_means(model)[i];
    fgmm_status status = fgmm_rows_from_memory(s->ctx, &rows, centroids, FGMM_F32, k, d, 0);
    if (status == FGMM_OK) status = fgmm_exact_search(s->ctx, rows, queries, metric, k, order, curve->gaps);
    fgmm_rows_free(s->ctx, rows);
    free(centroids);
    if (status != FGMM_OK) return cli_failed(s, status);
    for (int64_t q = 0; q < n; q++) {
        float *gaps = curve->gaps + q * k, nearest = gaps[0];
        /* |q - m|^2 = 2 (1 - cos) of unit vectors; inner products fall. */
        float scale = metric == FGMM_ANGULAR ? 2 : metric == FGMM_INNER_PRODUCT ? -1 : 1;
        for (int64_t i = 0; i < k; i++) gaps[i] = fmaxf(0, scale * (gaps[i] - nearest));
    }
    return CLI_DONE;
}

/* One query: rows seen are stamped with its number + 1. wanted [rows]: 1 + which neighbour, of this query. */
static void walk_lists(ivf_curve *curve, const fgmm_ivf_lists *lists, int64_t q, const int64_t *order,
                       const int64_t *truth, int32_t *stamps, int32_t *wanted) {
    int64_t k = curve->lists, n = curve->k;
    int32_t entries = 0, rows = 0, stamp = (int32_t)(q + 1);
    for (int64_t i = 0; i < n; i++) {
        curve->ranks[q * n + i] = -1;
        if (truth[q * n + i] >= 0) wanted[truth[q * n + i]] = (int32_t)i + 1;
    }
    for (int64_t p = 0; p < k; p++) {
        int64_t list = order[q * k + p];
        if (list < 0) { /* no distance could be told */
            curve->entries[q * k + p] = entries;
            curve->rows[q * k + p] = rows;
            continue;
        }
        for (int64_t at = lists->offsets[list]; at < lists->offsets[list + 1]; at++) {
            int64_t row = lists->rows[at];
            if (stamps[row] == stamp) continue;
            stamps[row] = stamp;
            rows++;
            if (wanted[row]) curve->ranks[q * n + wanted[row] - 1] = (int32_t)p;
        }
        entries += (int32_t)(lists->offsets[list + 1] - lists->offsets[list]);
        curve->entries[q * k + p] = entries;
        curve->rows[q * k + p] = rows;
    }
    for (int64_t i = 0; i < n; i++)
        if (truth[q * n + i] >= 0) wanted[truth[q * n + i]] = 0;
}

int ivf_curve_make(const cli_session *s, ivf_curve *curve, const fgmm_model *model, fgmm_metric metric,
                   const fgmm_ivf_lists *lists, const fgmm_rows *queries, const int64_t *truth, int64_t k) {
    int64_t n = fgmm_rows_count(queries);
    *curve = (ivf_curve){.queries = n, .lists = lists->n_lists, .k = k};
    int64_t cells = n * curve->lists;
    int rc = CLI_FAILED;
    int64_t *order = cli_alloc(cells, sizeof *order, "lists of queries");
    int32_t *stamps = cli_alloc(lists->n_rows, sizeof *stamps, "marks of rows");
    int32_t *wanted = cli_alloc(lists->n_rows, sizeof *wanted, "marks of rows");
    curve->gaps = cli_alloc(cells, sizeof *curve->gaps, "gaps");
    curve->entries = cli_alloc(cells, sizeof *curve->entries, "numbers of entries");
    curve->rows = cli_alloc(cells, sizeof *curve->rows, "numbers of rows");
    curve->ranks = cli_alloc(n * k, sizeof *curve->ranks, "ranks of neighbours");
    if (order && stamps && wanted && curve->gaps && curve->entries && curve->rows && curve->ranks)
        rc = sort_lists(s, curve, model, metric, queries, order);
    if (rc == CLI_DONE) {
        memset(stamps, 0, (size_t)lists->n_rows * sizeof *stamps);
        memset(wanted, 0, (size_t)lists->n_rows * sizeof *wanted);
        for (int64_t q = 0; q < n; q++) walk_lists(curve, lists, q, order, truth, stamps, wanted);
    }
    free(wanted);
    free(stamps);
    free(order);
    return rc;
}

/* ---- settings ---- */

static int is_in(int64_t query, int half) {
    return half == 2 || query % 2 == half;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

ivf_setting ivf_curve_tune(const ivf_curve *curve, int half, double recall, int adaptive) {
    ivf_setting setting = {.adaptive = adaptive, .probes = 1};
    int64_t n = 0, k = curve->k;
    float *values = cli_alloc(curve->queries * k, sizeof *values, "gaps");
    if (!values) return setting;
    for (int64_t q = 0; q < curve->queries; q++)
        for (int64_t i = 0; i < k && is_in(q, half); i++) {
            int32_t rank = curve->ranks[q * k + i];
            if (rank >= 0) values[n++] = adaptive ? curve->gaps[q * curve->lists + rank] : (float)rank;
        }
    qsort(values, (size_t)n, sizeof *values, by_value);
    int64_t need = (int64_t)ceil(recall * (double)n);
    need = need < 1 ? 1 : need > n ? n : need;
    if (n > 0 && adaptive) setting.gap = values[need - 1];
    if (n > 0 && !adaptive) {
        /* Rank r needs r + 1 lists. */
        int64_t rank = (int64_t)values[need - 1], below = 0, upto = 0;
        while (below < n && values[below] < (float)rank) below++;
        upto = below;
        while (upto < n && values[upto] == (float)rank) upto++;
        setting.probes = rank > 0 ? rank : 1;
        if (rank > 0) setting.more = (recall * (double)n - (double)below) / (double)(upto - below);
        if (setting.more < 0) setting.more = 0;
    }
    free(values);
    return setting;
}

static ivf_outcome at_probes(const ivf_curve *curve, int64_t query, int64_t probes) {
    int64_t at = query * curve->lists + probes - 1, found = 0, there = 0;
    for (int64_t i = 0; i < curve->k; i++) {
        int32_t rank = curve->ranks[query * curve->k + i];
        there += rank >= 0;
        found += rank >= 0 && rank < probes;
    }
    return (ivf_outcome){.found = there ? (double)found / (double)there : 1,
                         .rows = curve->rows[at],
                         .entries = curve->entries[at],
                         .probes = (double)probes};
}

ivf_outcome ivf_curve_at(const ivf_curve *curve, const ivf_setting *setting, int64_t query) {
    int64_t probes = setting->probes;
    if (setting->adaptive) {
        const float *gaps = curve->gaps + query * curve->lists;
        for (probes = 1; probes < curve->lists && gaps[probes] <= (float)setting->gap;) probes++;
        return at_probes(curve, query, probes);
    }
    ivf_outcome low = at_probes(curve, query, probes);
    if (setting->more <= 0 || probes == curve->lists) return low;
    ivf_outcome high = at_probes(curve, query, probes + 1);
    double w = setting->more;
    return (ivf_outcome){.found = low.found + w * (high.found - low.found),
                         .rows = low.rows + w * (high.rows - low.rows),
                         .entries = low.entries + w * (high.entries - low.entries),
                         .probes = low.probes + w};
}
