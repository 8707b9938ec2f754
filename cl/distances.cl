// variants: -DDOT=1 | -DROW_TYPE=4
/*
 * Distances of rows to queries: out[q, i] = sum_j (x_ij - y_qj)^2, or sum_j x_ij y_qj.
 *
 * A work-group takes a tile of SIDE x MICRO rows by as many queries, STEP features at a time through local memory; a
 * work-item keeps MICRO x MICRO sums in registers. Differences are taken before they are squared, so nothing is lost
 * far from the origin.
 *
 *   get_group_id(0): tile of rows     get_group_id(1): tile of queries
 */
#include "rows.clh"
// DOT: 1 for inner products (default 0).
#ifndef DOT
#define DOT 0
#endif
#define SIDE 8
#define MICRO 4
#define STEP 16
#define TILE (SIDE * MICRO)

// rows: row i at offset + i pitch. queries [nq, d]. out [nq, n].
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
distances(__global const row_t *rows, ulong offset, ulong pitch, uint n, uint d, __global const float *queries, uint nq,
          __global float *out)
{
    __local float x[STEP][TILE + 1], y[STEP][TILE + 1];
    const uint a = get_local_id(0), b = get_local_id(1), item = b * SIDE + a;
    const uint row0 = get_group_id(0) * TILE, query0 = get_group_id(1) * TILE;
    float sum[MICRO][MICRO];
    for (uint q = 0; q < MICRO; q++)
        for (uint r = 0; r < MICRO; r++) sum[q][r] = 0.0f;
    for (uint j0 = 0; j0 < d; j0 += STEP) {
        for (uint at = item; at < TILE * STEP; at += SIDE * SIDE) {
            const uint line = at / STEP, j = at % STEP;
            const int in = j0 + j < d;
            x[j][line] = in && row0 + line < n ? ROW_AT(rows, offset + (row0 + line) * pitch + j0 + j) : 0.0f;
            y[j][line] = in && query0 + line < nq ? queries[(ulong)(query0 + line) * d + j0 + j] : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint j = 0; j < STEP; j++)
            for (uint q = 0; q < MICRO; q++)
                for (uint r = 0; r < MICRO; r++) {
                    const float xr = x[j][r * SIDE + a], yq = y[j][q * SIDE + b];
#if DOT
                    sum[q][r] += xr * yq;
#else
                    sum[q][r] += (xr - yq) * (xr - yq);
#endif
                }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (uint q = 0; q < MICRO; q++)
        for (uint r = 0; r < MICRO; r++) {
            const uint query = query0 + q * SIDE + b, row = row0 + r * SIDE + a;
            if (query < nq && row < n) out[(ulong)query * n + row] = sum[q][r];
        }
}
