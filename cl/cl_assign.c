/* The best components of each row, and all of their responsibilities. */
#include "cl_engine.h"

#include <string.h>

enum { READ_ROWS = 4096 };

static fgmm_status run_top_sparse(fgmm_device *device, const cl_slice *slice, cl_uint m) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    CL_TRY(cl_kernel_get(device, &kernel, "top", "", "top_sparse"));
    size_t local = 64, global = cl_round_up(slice->n, local);
    return CL_RUN(device, kernel, "best components", 1, &global, &local, CL_ARG(engine->cand_id.mem),
                  CL_ARG(engine->cand_v.mem), CL_ARG(engine->kept.mem), CL_ARG(engine->dense_flag.mem),
                  CL_ARG(slice->n), CL_ARG(m), CL_ARG(engine->top_ids.mem), CL_ARG(engine->top_resp.mem));
}

/* Results of a slice to the caller, with the caller's numbers of components. */
static fgmm_status read_top(fgmm_device *device, const cl_slice *slice, size_t m, int32_t *ids, float *resp) {
    const cl_engine *engine = device->engine;
    size_t count = slice->n * m, at = slice->row0 * m;
    if (resp) CL_TRY(cl_read(device, engine->top_resp.mem, count * sizeof *resp, resp + at, "responsibilities"));
    if (!ids) return FGMM_OK;
    CL_TRY(cl_read(device, engine->top_ids.mem, count * sizeof *ids, ids + at, "components"));
    for (size_t i = at; i < at + count; i++)
        if (ids[i] >= 0) ids[i] = engine->ids[ids[i]];
    return FGMM_OK;
}

fgmm_status cl_assign(fgmm_device *device, fgmm_block *block, int m, int32_t *ids, float *resp, double *log_prob) {
    cl_engine *engine = device->engine;
    cl_uint best = (cl_uint)m;
    CL_TRY(cl_prepare(device, block->centre));
    int64_t most = cl_slice_rows(device) < 1 << 16 ? cl_slice_rows(device) : 1 << 16;
    for (int64_t row0 = 0; row0 < block->n;) {
        cl_slice slice = cl_slice_at(engine, block, row0, most);
        cl_uint dense = 0;
        CL_TRY(cl_survivors(device, &slice));
        CL_TRY(cl_dense_list(device, &slice, &dense));
        CL_TRY(cl_room_fit(device, &engine->top_ids, (size_t)slice.n * best * sizeof(cl_uint), "components"));
        CL_TRY(cl_room_fit(device, &engine->top_resp, (size_t)slice.n * best * sizeof(float), "responsibilities"));
        if (!engine->all_dense) CL_TRY(run_top_sparse(device, &slice, best));
        if (dense) CL_TRY(cl_dense_rows(device, &slice, dense, engine->all_dense, best, NULL));
        CL_TRY(read_top(device, &slice, best, ids, resp));
        if (log_prob) CL_TRY(cl_read_log_prob(device, &slice, log_prob));
        row0 += slice.n;
    }
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
    CL_TRY(cl_prepare(device, block->centre));
    for (int64_t row0 = 0; row0 < block->n;) {
        cl_slice slice = cl_slice_at(engine, block, row0, cl_slice_rows(device));
        cl_uint dense = 0;
        float *out = resp + slice.row0 * k;
        memset(out, 0, slice.n * k * sizeof *out);
        CL_TRY(cl_survivors(device, &slice));
        CL_TRY(cl_dense_list(device, &slice, &dense));
        if (!engine->all_dense) CL_TRY(read_survivors(device, &slice, out));
        if (dense) CL_TRY(cl_dense_rows(device, &slice, dense, engine->all_dense, 0, out));
        if (log_prob) CL_TRY(cl_read_log_prob(device, &slice, log_prob));
        row0 += slice.n;
    }
    return FGMM_OK;
}
