/* What is asked of rows under a model: the best components of each, all of their responsibilities, log-densities and their sums. */
#include "cl_engine.h"

#include <stdio.h>
#include <string.h>

enum {
    READ_ROWS = 4096,
    TOP_BYTES = 32 << 20, /* of the best components of a slice */
    CODED_FROM = 32,      /* rows of which one may have a place where codes are read */
    SHARE_ROWS = 1 << 14  /* of a thread, at a time */
};

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

static fgmm_status top_kernel(fgmm_device *device, cl_kernel *kernel, size_t width, const char *name) {
    char options[32] = "";
    if (width) snprintf(options, sizeof options, "-DCODES=%zu", width);
    return cl_kernel_get(device, kernel, "top", options, name);
}

/* Of all rows; or, beside codes of so many bytes, of the `rows` that have places. */
static fgmm_status run_top_sparse(fgmm_device *device, const cl_slice *slice, cl_uint m, size_t width, size_t rows) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_mem place = cl_places(engine, slice);
    size_t cells = rows * m;
    CL_TRY(cl_room_fit(device, &engine->top_ids, cells * sizeof(cl_uint), "components"));
    CL_TRY(cl_room_fit(device, &engine->top_resp, cells * sizeof(float), "responsibilities"));
    if (engine->all_dense) return FGMM_OK;
    CL_TRY(top_kernel(device, &kernel, width, "top_sparse"));
    size_t local = 64, global = cl_round_up(slice->n, local);
    return CL_RUN(device, kernel, "best components", 1, &global, &local, CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->cand_v.mem), CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem),
                  CL_ARG(slice->block->hints), CL_ARG(slice->row0), CL_ARG(place), CL_ARG(slice->n), CL_ARG(m),
                  CL_ARG(slice->listed), CL_ARG(slice->places), CL_ARG(engine->top_ids.mem),
                  CL_ARG(engine->top_resp.mem));
}

/* The best m components of a slice's rows, dense ones included, in top_ids and top_resp. */
static fgmm_status find_top(fgmm_device *device, const cl_slice *slice, cl_uint dense, cl_uint m) {
    if (m) CL_TRY(run_top_sparse(device, slice, m, 0, slice->n));
    return dense ? cl_dense_rows(device, slice, dense, &(cl_dense_use){.m = m}) : FGMM_OK;
}

/* ---- codes, where most rows are settled ---- */

/* Rows of a slice that may have places: more are read row by row. The test is of codes, too. */
static cl_uint most_placed(const fgmm_device *device, const cl_slice *slice) {
    return device->testing ? slice->n / 2 : slice->n / CODED_FROM;
}

static size_t code_width(const fgmm_device *device, const cl_slice *slice) {
    if (device->testing) return device->engine->params.summed ? 4 : 2; /* either, once */
    return (size_t)device->engine->k + most_placed(device, slice) <= 1 << 16 ? 2 : 4;
}

fgmm_status cl_codes_begin(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    engine->codes_sent = engine->coding && (device->testing || engine->placed <= 1.0 / CODED_FROM);
    if (!engine->codes_sent) return FGMM_OK;
    size_t width = code_width(device, slice), bytes = slice->n * width, local = 64,
           global = cl_round_up(slice->n, local);
    CL_TRY(cl_room_fit(device, &engine->codes, bytes, "codes of rows"));
    CL_TRY(top_kernel(device, &kernel, width, "top_codes"));
    CL_TRY(CL_RUN(device, kernel, "codes of rows", 1, &global, &local, CL_ARG(slice->block->hints), CL_ARG(slice->row0),
                  CL_ARG(engine->place.mem), CL_ARG(slice->n), CL_ARG(engine->k), CL_ARG(engine->left.mem),
                  CL_ARG(slice->places), CL_ARG(engine->codes.mem)));
    return cl_read_begin(device, &engine->coded, engine->codes.mem, 0, bytes, "codes of rows");
}

fgmm_status cl_score_begin(fgmm_device *device, const cl_slice *slice) {
    cl_engine *engine = device->engine;
    cl_slice settled = *slice;
    engine->scored = engine->scoring && engine->placed == 0.0;
    if (!engine->scored) return FGMM_OK;
    settled.settled = 1;
    CL_TRY(cl_sum_rows_if(device, &settled, engine->left.mem));
    return (int64_t)slice->row0 + slice->n < slice->block->n ? FGMM_OK : cl_sum_rows_ask(device, slice->block);
}

void cl_score_found(fgmm_device *device, int all) {
    cl_engine *engine = device->engine;
    if (!engine->scored || all) return;
    (void)cl_arrival_wait(&engine->row_sums);
    engine->chunks_summed = 0;
    engine->scored = 0;
}

/* What codes stand for. */
typedef struct spread {
    size_t width;           /* bytes of a code */
    uint32_t m, k;          /* k: of the engine's components */
    const int32_t *numbers; /* [k]: the caller's; NULL: the same */
    const int32_t *ids;     /* [rows that have places, m]; the engine's components */
    const float *resp;      /* or NULL */
    int32_t *to_ids;        /* [n, m], or NULL */
    float *to_resp;         /* or NULL */
} spread;

static inline uint32_t code_at(const void *codes, size_t width, size_t i) {
    return width == 2 ? ((const uint16_t *)codes)[i] : ((const uint32_t *)codes)[i];
}

/* As if all rows were settled. */
static inline void take_settled(const spread *s, const void *codes, size_t width, size_t row0, size_t n, uint32_t m) {
    const int32_t *numbers = s->numbers;
    int32_t *ids = s->to_ids ? s->to_ids + row0 * m : NULL;
    float *resp = s->to_resp ? s->to_resp + row0 * m : NULL;
    const uint32_t k = s->k;
    for (size_t i = 0; ids && i < n; i++) {
        uint32_t code = code_at(codes, width, i);
        ids[i * m] = !numbers ? (int32_t)code : code < k ? numbers[code] : -1;
        for (uint32_t j = 1; j < m; j++) ids[i * m + j] = -1;
    }
    for (size_t i = 0; resp && i < n; i++)
        for (uint32_t j = 0; j < m; j++) resp[i * m + j] = j ? 0.0f : 1.0f;
}

/* The others. */
static void take_found(const spread *s, const void *codes, size_t row0, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t code = code_at(codes, s->width, i);
        if (code < s->k) continue;
        size_t to = (row0 + i) * s->m, at = (size_t)(code - s->k) * s->m;
        for (size_t j = 0; j < s->m; j++) {
            int32_t id = s->ids[at + j];
            if (s->to_ids) s->to_ids[to + j] = s->numbers && id >= 0 ? s->numbers[id] : id;
            if (s->to_resp) s->to_resp[to + j] = s->resp[at + j];
        }
    }
}

/* What is most common is compiled for itself, with vectors. */
static void take_codes(const spread *s, const void *codes, size_t row0, size_t n) {
    if (s->width == 2 && s->m == 1)
        take_settled(s, codes, 2, row0, n, 1);
    else if (s->width == 2 && s->m == 2)
        take_settled(s, codes, 2, row0, n, 2);
    else
        take_settled(s, codes, s->width, row0, n, s->m);
    if (s->ids) take_found(s, codes, row0, n);
}

/* What codes on their way say to the caller, and what the few rows that have places have. */
static fgmm_status read_codes(fgmm_device *device, const cl_slice *slice, const wanted *want) {
    cl_engine *engine = device->engine;
    size_t few = (size_t)slice->listed + slice->looked, cells = few * want->m, from = (size_t)slice->row0 * want->m;
    spread s = {.width = code_width(device, slice),
                .m = want->m,
                .k = engine->k,
                .numbers = (int64_t)engine->k == engine->params.k ? NULL : engine->ids,
                .to_ids = want->ids ? want->ids + from : NULL,
                .to_resp = want->resp ? want->resp + from : NULL};
    fgmm_status status = FGMM_OK;
    int32_t *found = cl_alloc(device, cells * (sizeof *s.ids + sizeof *s.resp));
    if (!found) return FGMM_ERR_MEMORY;
    if (few || device->asking) CL_GO(run_top_sparse(device, slice, want->m, s.width, few ? few : 1));
    if (few) {
        s.ids = found;
        s.resp = (float *)(found + cells);
        CL_GO(cl_read(device, engine->top_ids.mem, cells * sizeof *s.ids, found, "components"));
        CL_GO(cl_read(device, engine->top_resp.mem, cells * sizeof *s.resp, found + cells, "responsibilities"));
    }
    CL_GO(cl_read_end(device, &engine->coded, "codes of rows"));
    const char *codes = engine->coded.pinned.at;
    size_t n = device->asking ? 0 : slice->n;
#pragma omp parallel for num_threads(cl_threads(device, n))
    for (size_t row = 0; row < n; row += SHARE_ROWS)
        take_codes(&s, codes + row * s.width, row, n - row < SHARE_ROWS ? n - row : SHARE_ROWS);
done:
    cl_release_memory(device, found);
    return status;
}

static int may_be_coded(const fgmm_device *device, const cl_slice *slice, cl_uint dense) {
    return slice->settled && device->engine->codes_sent && !dense &&
           slice->listed + slice->looked <= most_placed(device, slice);
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

/* @param each log-densities are wanted @param most rows of a slice */
static fgmm_status open_rows(fgmm_device *device, fgmm_block *block, int each, int64_t most) {
    cl_engine *engine = device->engine;
    engine->each = !engine->tied && !engine->full && each;
    engine->recall.ended = 0;
    CL_TRY(cl_ahead_take(device, block, most));
    CL_TRY(prepare(device, block));
    CL_TRY(cl_guess(device, block));
    cl_recall_keep(device); /* while the device works */
    return FGMM_OK;
}

fgmm_status cl_rows_ahead(fgmm_device *device, fgmm_block *block) {
    return open_rows(device, block, !device->engine->params.summed, INT64_MAX);
}

static fgmm_status infer_rows(fgmm_device *device, fgmm_block *block, const wanted *want) {
    cl_engine *engine = device->engine;
    int64_t fit = want->m ? TOP_BYTES / (int64_t)(want->m * (sizeof(cl_uint) + sizeof(float))) : INT64_MAX;
    engine->summing = 0;
    engine->coding = want->m > 0;
    engine->scoring = want->sums;
    CL_TRY(open_rows(device, block, want->log_prob || want->sums, fit));
    engine->tried = engine->left_over = 0.0; /* each block tells of itself */
    CL_TRY(cl_settle_begin(device, block));
    for (int64_t row0 = 0; row0 < block->n;) {
        cl_slice slice;
        cl_uint dense = 0;
        CL_TRY(cl_next_slice(device, block, row0, fit, &slice));
        CL_TRY(cl_survivors(device, &slice));
        CL_TRY(cl_dense_list(device, &slice, &dense));
        int coded = may_be_coded(device, &slice, dense);
        if (want->m && (coded || device->asking)) CL_TRY(read_codes(device, &slice, want));
        if (!coded) CL_TRY(find_top(device, &slice, dense, want->m));
        if (want->m && !coded) CL_TRY(read_top(device, &slice, want));
        if (engine->each && slice.settled && cl_has_places(device, &slice)) CL_TRY(spread_logz(device, &slice));
        if (want->sums && !(engine->scored && slice.settled)) CL_TRY(cl_sum_rows(device, &slice));
        if (want->log_prob) CL_TRY(cl_read_log_prob(device, &slice, want->log_prob));
        row0 += slice.n;
    }
    cl_settle_end(device, block);
    cl_settle_learn(device);
    engine->recall.ended = 1;
    return FGMM_OK;
}

fgmm_status cl_assign(fgmm_device *device, fgmm_block *block, int m, int32_t *ids, float *resp, double *log_prob) {
    const wanted want = {.m = ids || resp ? (cl_uint)m : 0, .ids = ids, .resp = resp, .log_prob = log_prob};
    return infer_rows(device, block, &want);
}

fgmm_status cl_score(fgmm_device *device, fgmm_block *block, double *sum) {
    cl_engine *engine = device->engine;
    const wanted want = {.sums = 1};
    CL_TRY(cl_sum_rows_begin(device, block));
    CL_TRY(infer_rows(device, block, &want));
    if (!engine->chunks_summed) CL_TRY(cl_sum_rows_ask(device, block));
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
