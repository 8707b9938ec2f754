/* Which lists a query probes, and what a search's options say of it. */
#include "ivf_search.h"

/* ---- distances to lists ---- */

void fgmm_ivf_to_lists(const fgmm_ivf *index, const fgmm_target *target, const float *queries, int64_t n,
                       int64_t stride, const void **pointers, float *out, float *to_lists) {
    const void *rows[FGMM_SCAN_ROWS];
    int dot = index->metric == FGMM_INNER_PRODUCT;
    for (int64_t i = 0; i < n; i++) pointers[i] = queries + i * stride;
    for (int64_t j = 0; j < index->k; j += FGMM_SCAN_ROWS) {
        int some = index->k - j < FGMM_SCAN_ROWS ? (int)(index->k - j) : FGMM_SCAN_ROWS;
        for (int r = 0; r < some; r++) rows[r] = index->centroids + (j + r) * index->d;
        fgmm_scan scan = {.type = FGMM_F32,
                          .dot = dot,
                          .d = index->d,
                          .rows = rows,
                          .n_rows = some,
                          .queries = pointers,
                          .n_queries = (int)n,
                          .out = out};
        target->backend->scan(target->device, &scan);
        for (int64_t i = 0; i < n; i++)
            for (int r = 0; r < some; r++)
                to_lists[i * index->k + j + r] = fgmm_ivf_to_list(out[i * FGMM_SCAN_ROWS + r], dot);
    }
}

/* ---- probes ---- */

/* Whether list j is within the gap of a query with these distances. */
static int is_within(const fgmm_ivf_probing *probing, const float *distance, int64_t nearest, int64_t j, int64_t k) {
    double gap = (double)distance[j] - (double)distance[nearest];
    if (!probing->adaptive) return 1;
    return gap <= probing->gap * (probing->between ? (double)probing->between[nearest * k + j] : 1);
}

int32_t fgmm_ivf_choose_probes(const fgmm_ivf_probing *probing, const float *distance, int64_t k, float *sorting,
                               uint64_t *probed) {
    int64_t nearest = 0, within = 0;
    for (int64_t j = 1; j < k; j++)
        if (distance[j] < distance[nearest]) nearest = j;
    for (int64_t j = 0; j < k; j++) within += is_within(probing, distance, nearest, j, k);
    float last = INFINITY;
    int64_t ties = k;
    int cut = within > probing->most;
    if (cut) {
        /* The most nearest of these: of those as far as the last, the first. */
        for (int64_t j = 0, at = 0; j < k; j++)
            if (is_within(probing, distance, nearest, j, k)) sorting[at++] = distance[j];
        last = fgmm_select(sorting, within, probing->most - 1);
        ties = probing->most;
        for (int64_t j = 0; j < k; j++) ties -= is_within(probing, distance, nearest, j, k) && distance[j] < last;
    }
    for (int64_t j = 0; j < k; j++) {
        int in = is_within(probing, distance, nearest, j, k) &&
                 (!cut || distance[j] < last || (distance[j] == last && ties-- > 0));
        if (in || j == nearest) probed[j >> 6] |= (uint64_t)1 << (j & 63);
    }
    return (int32_t)nearest;
}

/* ---- options ---- */

fgmm_status fgmm_ivf_query_check(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_rows *queries, int64_t k) {
    FGMM_TRY(fgmm_metric_check(ctx, index->metric, queries, "ivf search"));
    if (queries->d != index->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf search: the queries have %lld features, the index %lld",
                         (long long)queries->d, (long long)index->d);
    if (k < 1 || k > FGMM_NEAREST_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf search: k = %lld must be 1 to %d", (long long)k, FGMM_NEAREST_MAX);
    return FGMM_OK;
}

fgmm_status fgmm_ivf_plan_read(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_ivf_search_options *o,
                               fgmm_ivf_plan *plan) {
    fgmm_ivf_search_options use = FGMM_IVF_SEARCH_OPTIONS_INIT;
    if (o) {
        if (o->struct_size != sizeof use)
            return fgmm_fail(ctx, FGMM_ERR_INVALID,
                             "ivf search: struct_size of the options is not set: use FGMM_IVF_SEARCH_OPTIONS_INIT");
        use = *o;
    }
    if (use.n_probe < 0 || !(use.gap >= 0) || !(use.target_recall >= 0 && use.target_recall < 1))
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "ivf search: n_probe and gap must not be negative, target_recall must be below 1");
    if (use.gap > 0 && use.target_recall > 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf search: give a gap or a target recall, not both");
    if (use.filter && use.filter_size < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf search: filter_size is negative");
    plan->probing.adaptive = use.gap > 0 || use.target_recall > 0;
    plan->probing.gap = use.gap;
    if (use.target_recall > 0) {
        FGMM_TRY(fgmm_ivf_gap_of(ctx, index, use.target_recall, &plan->probing.gap));
        plan->probing.between = index->between;
    }
    int64_t most = use.n_probe ? use.n_probe : plan->probing.adaptive ? index->k : 1;
    plan->probing.most = most < index->k ? most : index->k;
    plan->filter = use.filter;
    plan->filter_size = use.filter_size;
    return FGMM_OK;
}
