/*
 * Seeds by k-means++ reach into sparse regions. Where rows lie in many small clusters that finds them, and lists are
 * the better for it; where a few rows lie far out it spends lists on them, the others are longer, and searches pay.
 * Neither is right for all data (measured: 6 in 100 fewer distances at random rows on images, 13 in 100 more on text
 * vectors), so a trial decides: a few iterations on a sample from both starts, and what a search costs there.
 */
#include "ivf_start.h"

#include "constraints.h"
#include "ivf_choose.h"

enum { SAMPLE_PER_LIST = 32, SAMPLE_MIN = 4096, QUERIES = 256, ITERATIONS = 4, NEIGHBOURS = 10 };

typedef struct {
    fgmm_context *ctx;
    const fgmm_ivf_train_options *options;
    unsigned constraints;
    fgmm_rows *sample, *queries;
    int64_t *ids; /* [QUERIES, NEIGHBOURS] */
} trial;

/* Distances of all queries at recall .9, where few lists decide, with lists from this start. */
static fgmm_status cost_of(const trial *t, fgmm_init init, int64_t *distances) {
    fgmm_context *ctx = t->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_model *model = NULL;
    fgmm_ivf *index = NULL;
    fgmm_kmeans_options kmeans = FGMM_KMEANS_OPTIONS_INIT;
    fgmm_ivf_options make = FGMM_IVF_OPTIONS_INIT;
    fgmm_ivf_search_options search = FGMM_IVF_SEARCH_OPTIONS_INIT;
    fgmm_ivf_counts counts;
    kmeans.n_components = t->options->n_lists;
    kmeans.init = init;
    kmeans.max_iter = ITERATIONS;
    kmeans.tol = -1;
    kmeans.seed = t->options->seed;
    kmeans.compute = t->options->compute;
    make.rule = FGMM_IVF_SINGLE;
    make.metric = t->options->metric == FGMM_INNER_PRODUCT ? FGMM_INNER_PRODUCT : FGMM_L2;
    search.target_recall = 0.9;
    FGMM_GO(fgmm_kmeans_constrained(ctx, &model, t->sample, &kmeans, t->constraints, NULL, NULL, NULL));
    FGMM_GO(fgmm_ivf_create(ctx, &index, model, &make));
    FGMM_GO(fgmm_ivf_add(ctx, index, t->sample, NULL, NULL));
    FGMM_GO(fgmm_ivf_calibrate(ctx, index, t->queries, NEIGHBOURS));
    FGMM_GO(fgmm_ivf_search(ctx, index, t->queries, NEIGHBOURS, &search, t->ids, NULL, &counts));
    *distances = counts.distances;
done:
    fgmm_ivf_free(ctx, index);
    fgmm_model_free(ctx, model);
    return status;
}

fgmm_status fgmm_ivf_start(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_ivf_train_options *options,
                           unsigned constraints, fgmm_init *out) {
    int64_t k = options->n_lists, n = SAMPLE_PER_LIST * k, cost[2];
    *out = FGMM_INIT_KMEANSPP;
    if (n < SAMPLE_MIN) n = SAMPLE_MIN;
    /* Few lists are alike from any start, few rows no sample, and a NaN is for the fit to report or to leave out. */
    if (k < 16 || n > rows->n / 2 || rows->cl_mem || options->compute.nonfinite != FGMM_NONFINITE_ERROR) return FGMM_OK;
    fgmm_status status = FGMM_ERR_MEMORY;
    trial t = {.ctx = ctx, .options = options, .constraints = constraints};
    size_t row = (size_t)rows->d * fgmm_dtype_size(rows->type);
    char *data = fgmm_alloc(ctx, (size_t)(n + QUERIES) * row, "a sample of rows");
    t.ids = fgmm_alloc(ctx, (size_t)QUERIES * NEIGHBOURS * sizeof *t.ids, "neighbours");
    if (!data || !t.ids) goto done;
    char *queries = data + (size_t)n * row;
    FGMM_GO(fgmm_rows_sample(ctx, rows, n, options->seed, data));
    FGMM_GO(fgmm_rows_sample(ctx, rows, QUERIES, options->seed + 1, queries));
    FGMM_GO(fgmm_rows_from_memory(ctx, &t.sample, data, rows->type, n, rows->d, 0));
    FGMM_GO(fgmm_rows_from_memory(ctx, &t.queries, queries, rows->type, QUERIES, rows->d, 0));
    FGMM_GO(cost_of(&t, FGMM_INIT_KMEANSPP, &cost[0]));
    FGMM_GO(cost_of(&t, FGMM_INIT_RANDOM_FROM_DATA, &cost[1]));
    if (cost[1] < cost[0]) *out = FGMM_INIT_RANDOM_FROM_DATA;
    fgmm_log(ctx, FGMM_LOG_INFO, "ivf train: a trial took %.0f distances a query from k-means++, %.0f from random rows",
             (double)cost[0] / QUERIES, (double)cost[1] / QUERIES);
done:
    if (status == FGMM_ERR_DATA) status = FGMM_OK; /* the fit names the row, which the sample cannot */
    fgmm_rows_free(ctx, t.queries);
    fgmm_rows_free(ctx, t.sample);
    fgmm_free(ctx, t.ids);
    fgmm_free(ctx, data);
    return status;
}
