// variants: -DCAP=8 | -DCODES=2 | -DCODES=4
/*
 * The best m components of each row by responsibility, of equal ones the first; component NONE and responsibility 0 after the last.
 *
 * Where most rows are settled, a code of each is less to read, and there as soon as it is known which are: of a settled row its component, and of the
 * others k and more: which of those rows it is, by its place (settle.cl), those from the first on before those from the last down.
 */
#include "group_row.clh"
#include "places.clh"

#define NONE 0xffffffffu
#define LANES 64
#define TOP_MAX 64
// CODES: bytes of a row's code; 0: there are none (default 0).
#ifndef CODES
#define CODES 0
#endif
#if CODES == 2
typedef ushort code_t;
#else
typedef uint code_t;
#endif

// Whether (r, id) stands before (s, other).
static inline int before(float r, uint id, float s, uint other)
{
    return r > s || (r == s && id < other);
}

#if CODES
// Of rows that have places, `listed` of them from the first of all `places` on.
static inline uint number_of(uint at, uint listed, uint places)
{
    return at < listed ? at : listed + (places - 1 - at);
}

// codes [n] of the slice. place, hints: as below; taken: list of settle.cl, which tells how many places were taken from the first on.
__kernel void top_codes(__global const uint *hints, uint row0, __global const uint *place, uint n, uint k,
                        __global const uint2 *taken, uint places, __global code_t *codes)
{
    const uint row = get_global_id(0);
    if (row >= n) return;
    codes[row] = (code_t)(place[row] == SETTLED ? hints[row0 + row] : k + number_of(place[row], taken[0].x, places));
}
#endif

// Rows that the dense engine does not take. What is known of rows lies at their places (place, of places.clh, or NULL); hints [block rows] has the
// settled ones' component. ids, resp [n, m] of the slice; or, where there are codes, [rows that have places, m].
__kernel void top_sparse(__global const uint *surv_id, __global const float *surv_r, __global const uint *kept,
                         __global const uint *dense, __global const uint *hints, uint row0, __global const uint *place,
                         uint n, uint m, uint listed, uint places, __global uint *ids, __global float *resp)
{
    const uint row = get_global_id(0);
    if (row >= n) return;
    const uint at = place_of(place, row);
#if CODES
    const uint to = number_of(at, listed, places);
    if (at == SETTLED) return;
#else
    const uint to = row;
    if (at == SETTLED) {
        for (uint j = 0; j < m; j++) {
            ids[(ulong)row * m + j] = j ? NONE : hints[row0 + row];
            resp[(ulong)row * m + j] = j ? 0.0f : 1.0f;
        }
        return;
    }
    if (dense[at]) return;
#endif
    const uint count = kept[at];
    float last_r = INFINITY;
    uint last_id = 0;
    for (uint j = 0; j < m; j++) {
        float r = -1.0f;
        uint id = NONE;
        for (uint i = 0; i < count && j < count; i++) {
            const float ri = surv_r[(ulong)at * CAP + i];
            const uint ki = surv_id[(ulong)at * CAP + i];
            if (before(last_r, last_id, ri, ki) && before(ri, ki, r, id)) {
                r = ri;
                id = ki;
            }
        }
        ids[(ulong)to * m + j] = id;
        resp[(ulong)to * m + j] = id == NONE ? 0.0f : r;
        last_r = r;
        last_id = id;
    }
}

// One work-group a row of a dense group: merges a tile's responsibilities resp_tile [n, width] into the row's list.
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void
top_dense(__global const float *resp_tile, __global const uint *list, uint base, uint k0, uint width, uint m,
          __global uint *ids, __global float *resp)
{
    __local float old_r[TOP_MAX], best_r[LANES];
    __local uint old_id[TOP_MAX], best_id[LANES];
    const uint lid = get_local_id(0);
    const uint at = row_of(list, base, get_group_id(0));
    __global const float *row = resp_tile + (ulong)get_group_id(0) * width;
    __global uint *row_ids = ids + (ulong)at * m;
    __global float *row_resp = resp + (ulong)at * m;
    if (lid < m) {
        old_id[lid] = k0 ? row_ids[lid] : NONE;
        old_r[lid] = k0 ? row_resp[lid] : 0.0f;
    }
    float last_r = INFINITY;
    uint last_id = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint j = 0; j < m; j++) {
        float r = 0.0f;
        uint id = NONE;
        if (lid < m && old_id[lid] != NONE && before(last_r, last_id, old_r[lid], old_id[lid])) {
            r = old_r[lid];
            id = old_id[lid];
        }
        for (uint c = lid; c < width; c += LANES) {
            const float rc = row[c];
            if (rc > 0.0f && before(last_r, last_id, rc, k0 + c) && before(rc, k0 + c, r, id)) {
                r = rc;
                id = k0 + c;
            }
        }
        best_r[lid] = r;
        best_id[lid] = id;
        for (uint step = LANES / 2; step > 0; step /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            if (lid < step && before(best_r[lid + step], best_id[lid + step], best_r[lid], best_id[lid])) {
                best_r[lid] = best_r[lid + step];
                best_id[lid] = best_id[lid + step];
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        last_r = best_r[0];
        last_id = best_id[0];
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid == 0) {
            row_ids[j] = last_id;
            row_resp[j] = last_id == NONE ? 0.0f : last_r;
        }
    }
}

// row_logz [n]: log p(x) of a slice's rows, of which settled ones have theirs: the others' from their places.
__kernel void spread_logz(__global const uint *place, __global const float2 *logz, uint n, __global float2 *row_logz)
{
    const uint row = get_global_id(0);
    if (row < n && place[row] != SETTLED) row_logz[row] = logz[place[row]];
}
