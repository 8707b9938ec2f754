// variants: -DDOT=1 | -DROW_TYPE=4
/*
 * Distances of rows to queries: out[q, i] = sum_j (x_ij - y_qj)^2, or sum_j x_ij y_qj.
 *
 *   get_group_id(0): tile of rows     get_group_id(1): tile of queries
 */
#include "distance_tile.clh"

// rows: row i at offset + i pitch. queries [nq, d]. out [nq, n].
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
distances(__global const row_t *rows, ulong offset, ulong pitch, uint n, uint d, __global const float *queries, uint nq,
          __global float *out)
{
    __local term_t x[STEP][TILE + 1], y[STEP][TILE + 1];
    __local ulong row_at[TILE], query_at[TILE];
    const uint a = get_local_id(0), b = get_local_id(1), item = b * SIDE + a;
    const uint row0 = get_group_id(0) * TILE, query0 = get_group_id(1) * TILE;
    const uint n_rows = min((uint)TILE, n - row0), n_queries = min((uint)TILE, nq - query0);
    term_t sum[MICRO][MICRO];
    if (item < TILE) {
        row_at[item] = offset + (row0 + item) * pitch;
        query_at[item] = (ulong)(query0 + item) * d;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    distance_tile(rows, row_at, n_rows, queries, query_at, n_queries, d, x, y, sum);
    for (uint q = 0; q < MICRO; q++)
        for (uint r = 0; r < MICRO; r++) {
            const uint query = q * SIDE + b, row = r * SIDE + a;
            if (query < n_queries && row < n_rows) out[(ulong)(query0 + query) * n + row0 + row] = (float)sum[q][r];
        }
}
