/* Distances of a block's rows to queries, for exact search. */
#include "cl_engine.h"

#include <math.h>
#include <string.h>

enum { TILE = CL_DISTANCE_TILE, SIDE = CL_DISTANCE_SIDE, OUT_FLOATS = 1 << 24 };

/* Queries that go together. */
static int64_t queries_at_once(const fgmm_device *device, const fgmm_block *block) {
    double cells = (double)block->n, most = fmin(OUT_FLOATS, (double)device->max_alloc / sizeof(float));
    double queries = fmin(most / cells, CL_DISTANCE_WORK / (cells * (double)block->d));
    int64_t whole = (int64_t)(queries / TILE) * TILE;
    return whole < TILE ? TILE : whole;
}

fgmm_status cl_distances(fgmm_device *device, fgmm_block *block, const float *queries, int64_t stride,
                         int64_t n_queries, int dot, float *out) {
    cl_kernel kernel = NULL;
    cl_mem from = NULL, to = NULL;
    char options[96];
    fgmm_status status = FGMM_OK;
    size_t d = (size_t)block->d, n = (size_t)block->n, some = (size_t)queries_at_once(device, block);
    cl_uint n_rows = (cl_uint)n, features = (cl_uint)d;
    if (some > (size_t)n_queries) some = (size_t)n_queries;
    cl_row_options(options, sizeof options - 16, block);
    if (dot) strcat(options, " -DDOT=1");
    float *packed = cl_alloc(device, some * d * sizeof *packed);
    if (!packed) return FGMM_ERR_MEMORY;
    CL_GO(cl_kernel_get(device, &kernel, "distances", options, "distances"));
    CL_GO(cl_buffer(device, &from, some * d * sizeof(float), "queries"));
    CL_GO(cl_buffer(device, &to, some * n * sizeof(float), "distances"));
    for (size_t first = 0; first < (size_t)n_queries; first += some) {
        size_t count = (size_t)n_queries - first < some ? (size_t)n_queries - first : some;
        cl_uint taken = (cl_uint)count;
        size_t local[2] = {SIDE, SIDE},
               global[2] = {cl_round_up(n, TILE) / TILE * SIDE, cl_round_up(count, TILE) / TILE * SIDE};
        for (size_t i = 0; i < count; i++)
            memcpy(packed + i * d, queries + (first + i) * (size_t)stride, d * sizeof *packed);
        CL_GO(cl_write(device, from, count * d * sizeof *packed, packed, "queries"));
        CL_GO(CL_RUN(device, kernel, "distances", 2, global, local, CL_ARG(block->rows), CL_ARG(block->offset),
                     CL_ARG(block->pitch), CL_ARG(n_rows), CL_ARG(features), CL_ARG(from), CL_ARG(taken), CL_ARG(to)));
        CL_GO(cl_read(device, to, count * n * sizeof *out, out + first * n, "distances"));
    }
done:
    cl_buffer_free(device, to);
    cl_buffer_free(device, from);
    cl_release_memory(device, packed);
    return status;
}
