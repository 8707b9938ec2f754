// variants: -DDOT=1 | -DROW_TYPE=2 | -DROW_TYPE=4 -DWHOLE=1 | -DROW_TYPE=5 -DWHOLE=1 -DDOT=1
/*
 * A search's distances: each work-group takes a tile of a list's rows, or of its links to rows of other lists, by a tile of the
 * queries that probe the list.
 *
 *   query q's candidates:  [list 3: rows, links][list 8: rows, links] ...     at askers[pair].y for its pair with each list
 *
 * A link is passed over where the query probes one of the row's earlier lists, so that each row is looked at once; so is a
 * row that the filter does not want. Such a candidate is NaN.
 *
 *   get_group_id(0): task, from first_task on
 */
#include "distance_tile.clh"
// What a launch is about.
#define ANGULAR 1 // distances are 1 - cos, to queries of length 1; else, with DOT, negated inner products
#define LINKS 2   // rows are links
#define FILTER 4  // a filter says which ids are wanted

// Whether query probes one of the lists that come before link `at` in the row's order; before [links, depth], -1 fills.
static inline int is_elsewhere(__global const int *before, uint depth, uint at, __global const ulong *probed, uint words,
                               uint query)
{
    for (uint i = 0; i < depth; i++) {
        const int list = before[(ulong)at * depth + i];
        if (list < 0) return 0;
        if (probed[(ulong)query * words + (uint)list / 64] >> ((uint)list % 64) & 1) return 1;
    }
    return 0;
}

// about: ANGULAR, LINKS, FILTER. rows [n, d]; ids, inverse (1 / |x|, angular alone) [n]; links [n_links]: numbers of rows. filter: bits, of ids below
// filter_size. queries [nq, d]; probed [nq, words]: bit l for list l. tasks: (first row or link, first pair, place of that row or
// link in its list's candidates, rows + 65536 pairs). askers: (query, place of the list's candidates).
// distances, rows_of: the candidates. counts: how many of each task were looked at.
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
lists_scan(uint about, __global const row_t *rows, uint d, __global const long *ids, __global const float *inverse,
           __global const uint *links, __global const int *before, uint depth, __global const uchar *filter,
           long filter_size, __global const float *queries, __global const ulong *probed, uint words,
           __global const uint4 *tasks, uint first_task, __global const uint2 *askers, __global float *distances,
           __global uint *rows_of, __global uint *counts)
{
    __local term_t x[STEP][TILE + 1], y[STEP][TILE + 1];
    __local ulong row_at[TILE], query_at[TILE];
    __local uint number[TILE], wanted[TILE], looked_at;
    const uint a = get_local_id(0), b = get_local_id(1), item = b * SIDE + a;
    const uint number_of_task = first_task + get_group_id(0);
    const uint4 task = tasks[number_of_task];
    const uint n_rows = task.w & 0xffff, n_pairs = task.w >> 16;
    term_t sum[MICRO][MICRO];
    if (item == 0) looked_at = 0;
    if (item < n_rows) {
        number[item] = about & LINKS ? links[task.x + item] : task.x + item;
        row_at[item] = (ulong)number[item] * d;
        wanted[item] = 1;
        if (about & FILTER) {
            const long id = ids[number[item]];
            wanted[item] = id < filter_size && (filter[id >> 3] >> (id & 7) & 1);
        }
    }
    if (item < n_pairs) query_at[item] = (ulong)askers[task.y + item].x * d;
    barrier(CLK_LOCAL_MEM_FENCE);
    distance_tile(rows, row_at, n_rows, queries, query_at, n_pairs, d, x, y, sum);
    uint seen = 0;
    for (uint q = 0; q < MICRO; q++)
        for (uint r = 0; r < MICRO; r++) {
            const uint pair = q * SIDE + b, row = r * SIDE + a;
            if (pair >= n_pairs || row >= n_rows) continue;
            const uint2 asker = askers[task.y + pair];
            float distance = (float)sum[q][r];
#if DOT
            distance = about & ANGULAR ? fmax(0.0f, 1.0f - distance * inverse[number[row]]) : -distance;
#endif
            const int look = wanted[row] && !(about & LINKS &&
                                              is_elsewhere(before, depth, task.x + row, probed, words, asker.x));
            seen += look ? 1 : 0;
            const uint at = asker.y + task.z + row;
            distances[at] = look ? distance : NAN;
            rows_of[at] = number[row];
        }
    if (seen) atomic_add(&looked_at, seen);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item == 0) counts[number_of_task] = looked_at;
}
