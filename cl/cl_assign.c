/* What is asked of rows under a model: the best components of each, all of their responsibilities, log-densities and their sums. */
#include "cl_engine.h"

#include <string.h>

enum { READ_ROWS = 4096, TOP_BYTES = 32 << 20 /* of the best components of a slice */ };

/* What is wanted of each row; NULL, or m = 0: not that. */
typedef struct wanted {
    cl_uint m;
    int32_t *ids;     /* [n, m] */
    float *resp;      /* [n, m] */
    double *log_prob; /* [n] */
    int sums;         /* of the log-densities, as row_sums.cl leaves them */
} wanted;

/* The near engine is for sums alone. */
static fgmm_status prepare(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    CL_TRY(cl_trust(device, cl_rows_case(engine->diag), engine->d, block->type));
    if (engine->near && !engine->prepared) {
        engine->near = 0;
        engine->pairs = (cl_pairs){0};
        cl_dense_plan(device, engine);
    }
    return cl_prepare(device, block);
}

static fgmm_status run_top_sparse(fgmm_device *device, const cl_slice *slice, cl_uint m) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_mem place = cl_places(engine, slice);
    CL_TRY(cl_kernel_get(device, &kernel, "top", "", "top_sparse"));
    size_t local = 64, global = cl_round_up(slice->n, local);
    return CL_RUN(device, kernel, "best components", 1, &global, &local, CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->cand_v.mem), CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem),
                  CL_ARG(slice->block->hints), CL_ARG(slice->row0), CL_ARG(place), CL_ARG(slice->n), CL_ARG(m),
                  CL_ARG(engine->top_ids.mem), CL_ARG(engine->top_resp.mem));
}

/* The best m components of a slice's rows, dense ones included, in top_ids and top_resp. */
static fgmm_status find_top(fgmm_device *device, const cl_slice *slice, cl_uint dense, cl_uint m) {
    cl_engine *engine = device->engine;
    size_t cells = (size_t)slice->n * m;
    if (m) {
        CL_TRY(cl_room_fit(device, &engine->top_ids, cells * sizeof(cl_uint), "components"));
        CL_TRY(cl_room_fit(device, &engine->top_resp, cells * sizeof(float), "responsibilities"));
        if (!engine->all_dense) CL_TRY(run_top_sparse(device, slice, m));
    }
    return dense ? cl_dense_rows(device, slice, dense, &(cl_dense_use){.m = m}) : FGMM_OK;
}

/* The other rows' log-densities beside those of the settled ones. */
static fgmm_status spread_logz(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t local = 64, global = cl_round_up(slice->n, local);
    CL_TRY(cl_kernel_get(device, &kernel, "top", "", "spread_logz"));
    return CL_RUN(device, kernel, "log-densities", 1, &global, &local, CL_ARG(engine->place.mem),
                  CL_ARG(engine->logz.mem), CL_ARG(slice->n), CL_ARG(engine->row_logz.mem));
}

/* Results of a slice to the caller, with the caller's numbers of components. */
static fgmm_status read_top(fgmm_device *device, const cl_slice *slice, const wanted *want) {
    const cl_engine *engine = device->engine;
    size_t count = (size_t)slice->n * want->m, at = (size_t)slice->row0 * want->m, n = 0;
    int32_t *ids = want->ids ? want->ids + at : NULL;
    cl_fetch fetches[2];
    if (want->resp)
        fetches[n++] = (cl_fetch){.buffer = engine->top_resp.mem,
                                  .bytes = count * sizeof(float),
                                  .out = want->resp + at,
                                  .what = "responsibilities"};
    if (ids)
        fetches[n++] =
            (cl_fetch){.buffer = engine->top_ids.mem, .bytes = count * sizeof *ids, .out = ids, .what = "components"};
    CL_TRY(cl_fetch_all(device, fetches, n));
    if (!ids) return FGMM_OK;
    if ((int64_t)engine->k == engine->params.k) return FGMM_OK;
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= 0) ids[i] = engine->ids[ids[i]];
    return FGMM_OK;
}

/* @param each log-densities are wanted */
static fgmm_status open_rows(fgmm_device *device, fgmm_block *block, int each) {
    cl_engine *engine = device->engine;
    CL_TRY(prepare(device, block));
    engine->each = !engine->tied && !engine->full && each;
    return cl_guess(device, block);
}

fgmm_status cl_rows_ahead(fgmm_device *device, fgmm_block *block) {
    return open_rows(device, block, !device->engine->params.summed);
}

static fgmm_status infer_rows(fgmm_device *device, fgmm_block *block, const wanted *want) {
    cl_engine *engine = device->engine;
    int64_t fit = want->m ? TOP_BYTES / (int64_t)(want->m * (sizeof(cl_uint) + sizeof(float))) : INT64_MAX;
    CL_TRY(open_rows(device, block, want->log_prob || want->sums));
    engine->tried = engine->left_over = 0.0; /* each block tells of itself */
    CL_TRY(cl_settle_begin(device, block));
    for (int64_t row0 = 0; row0 < block->n;) {
        cl_slice slice;
        cl_uint dense = 0;
        CL_TRY(cl_next_slice(device, block, row0, fit, &slice));
        CL_TRY(cl_survivors(device, &slice));
        CL_TRY(cl_dense_list(device, &slice, &dense));
        CL_TRY(find_top(device, &slice, dense, want->m));
        if (engine->each && slice.settled) CL_TRY(spread_logz(device, &slice));
        if (want->m) CL_TRY(read_top(device, &slice, want));
        if (want->sums) CL_TRY(cl_sum_rows(device, &slice));
        if (want->log_prob) CL_TRY(cl_read_log_prob(device, &slice, want->log_prob));
        row0 += slice.n;
    }
    cl_settle_end(device, block);
    cl_settle_learn(device);
    return FGMM_OK;
}

fgmm_status cl_assign(fgmm_device *device, fgmm_block *block, int m, int32_t *ids, float *resp, double *log_prob) {
    const wanted want = {.m = (cl_uint)m, .ids = ids, .resp = resp, .log_prob = log_prob};
    return infer_rows(device, block, &want);
}

fgmm_status cl_score(fgmm_device *device, fgmm_block *block, double *sum) {
    cl_engine *engine = device->engine;
    const wanted want = {.sums = 1};
    CL_TRY(cl_sum_rows_begin(device, block));
    CL_TRY(infer_rows(device, block, &want));
    CL_TRY(cl_sum_rows_ask(device, block));
    engine->log_likelihood = *sum; /* in the order of rows, whatever the blocks */
    CL_TRY(cl_sum_rows_end(device));
    *sum = engine->log_likelihood;
    return FGMM_OK;
}

/* Responsibilities of the survivors, into resp [slice rows, the caller's K] of zeros. */
static fgmm_status read_survivors(fgmm_device *device, const cl_slice *slice, float *resp) {
    const cl_engine *engine = device->engine;
    size_t most = READ_ROWS < slice->n ? READ_ROWS : slice->n, cells = most * CL_CAP;
    fgmm_status status = FGMM_OK;
    cl_uint *kept = cl_alloc(device, (most + cells) * sizeof *kept + cells * sizeof(float));
    if (!kept) return FGMM_ERR_MEMORY;
    cl_uint *ids = kept + most;
    float *r = (float *)(ids + cells);
    for (size_t i = 0; i < slice->n; i += most) {
        size_t n = slice->n - i < most ? slice->n - i : most, at = i * CL_CAP * sizeof(cl_uint);
        CL_GO(cl_read_at(device, engine->kept.mem, i * sizeof *kept, n * sizeof *kept, kept, "survivors"));
        CL_GO(cl_read_at(device, engine->cand_id.mem, at, n * CL_CAP * sizeof *ids, ids, "survivors"));
        CL_GO(cl_read_at(device, engine->cand_v.mem, at, n * CL_CAP * sizeof *r, r, "survivors"));
        for (size_t j = 0; j < n; j++)
            for (size_t s = j * CL_CAP; s < j * CL_CAP + kept[j]; s++)
                resp[(i + j) * (size_t)engine->params.k + (size_t)engine->ids[ids[s]]] = r[s];
    }
done:
    cl_release_memory(device, kept);
    return status;
}

fgmm_status cl_proba(fgmm_device *device, fgmm_block *block, float *resp, double *log_prob) {
    cl_engine *engine = device->engine;
    size_t k = (size_t)engine->params.k;
    CL_TRY(prepare(device, block));
    for (int64_t row0 = 0; row0 < block->n;) {
        cl_slice slice = cl_slice_at(engine, block, row0, cl_slice_rows(device));
        cl_uint dense = 0;
        float *out = resp + slice.row0 * k;
        memset(out, 0, slice.n * k * sizeof *out);
        CL_TRY(cl_survivors(device, &slice));
        CL_TRY(cl_dense_list(device, &slice, &dense));
        if (!engine->all_dense) CL_TRY(read_survivors(device, &slice, out));
        if (dense) CL_TRY(cl_dense_rows(device, &slice, dense, &(cl_dense_use){.resp = out}));
        if (log_prob) CL_TRY(cl_read_log_prob(device, &slice, log_prob));
        row0 += slice.n;
    }
    return FGMM_OK;
}
