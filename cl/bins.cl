// variants: -DCAP=8 | -DGROUP=64 | -DHELD=1024 | -DGROUP=64 -DHELD=1024
/*
 * From survivors by row to lists of them by component: a counting sort, stable, so that each list is in the order of rows.
 *
 *   count    counts[t, c]     survivors of component c in tile t, a run of rows fixed by the rows' numbers in the pass
 *   totals   totals[c, s]     and in superchunk s, a run of tiles; the host's prefix sums of these are where each list starts
 *   starts   counts[t, c]     becomes where the tile's part of the list starts
 *   scatter  values           row * CAP + place in the row's list of survivors, tile by tile
 *
 * Row i of the slice lies in tile (i + shift) / tile_rows; tile t in superchunk (t + ahead) / per_chunk.
 */
#include "places.clh"

// GROUP: work-items that scatter a tile, and rows they take at a time, a multiple of 8 (default 128).
#ifndef GROUP
#define GROUP 128
#endif
#if GROUP < 8 || GROUP % 8
#error "GROUP must be a multiple of 8"
#endif
// HELD: components whose counts and cursors a work-group holds in local memory, at least K (default 0: they stay where they are).
#ifndef HELD
#define HELD 0
#endif
#define WORDS (GROUP / 32)
#if HELD && (GROUP % 32 || HELD * WORDS > 2 * CAP * GROUP)
#error "GROUP must be a multiple of 32, and HELD at most 64 CAP"
#endif
#define NONE 0xffffffffu
#define AT_ONCE 16 // counts that are fetched together

// The survivors of a row: those of a list, or one alone.
typedef struct {
    uint count, alone, dense; // dense: the row is left to the dense engine, and has none here
    uint hint;
    __global const uint *ids; // of a list
} survivors;

// Arguments are read outside of branches: Mesa's llvmpipe may read them wrongly inside.
static inline survivors survivors_of(uint row, __global const uint *surv_id, __global const uint *kept, __global const uint *dense,
                                     __global const uint *hints, __global const uint *place)
{
    survivors out;
    const uint at = place_of(place, row);
    out.alone = at == SETTLED;
    const uint slot = out.alone ? 0 : at, left = dense[slot], found = kept[slot];
    out.dense = !out.alone && left;
    out.count = out.alone ? 1 : left ? 0 : found;
    out.hint = hints[row];
    out.ids = surv_id + (ulong)slot * CAP;
    return out;
}

static inline uint survivor(survivors own, uint i)
{
    return own.alone ? own.hint : own.ids[i];
}

// counts [tiles, k] and dense_rows, the number of rows of the dense engine, start at zero, if HELD dense_rows alone. hints: from the slice's first
// row on; place [n]. A work-item a row; if HELD, a work-group a tile, GROUP rows of it at a time.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
bin_count(__global const uint *surv_id, __global const uint *kept, __global const uint *dense, __global const uint *hints,
          uint row0, __global const uint *place, uint n, uint shift, uint tile_rows, uint k, __global uint *counts,
          __global uint *dense_rows)
{
    __local uint sum;
    const uint lid = get_local_id(0);
#if HELD
    __local uint tile[HELD];
    const uint first = get_group_id(0) * tile_rows, last = first + tile_rows; // of rows counted from `shift` before the slice
    for (uint c = lid; c < k; c += GROUP) tile[c] = 0;
#else
    const uint first = get_group_id(0) * GROUP + shift, last = first + GROUP;
#endif
    if (lid == 0) sum = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint shifted = first + lid; shifted < last; shifted += GROUP) {
        const int within = shifted >= shift && shifted - shift < n;
        const survivors own = survivors_of(within ? shifted - shift : 0, surv_id, kept, dense, hints + row0, place);
        const uint count = within ? own.count : 0;
#if !HELD
        __global uint *tile = counts + (ulong)(shifted / tile_rows) * k;
#endif
        for (uint i = 0; i < count; i++) atomic_inc(&tile[survivor(own, i)]);
        if (within && own.dense) atomic_inc(&sum);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
#if HELD
    __global uint *told = counts + (ulong)get_group_id(0) * k;
    for (uint c = lid; c < k; c += GROUP) told[c] = tile[c];
#endif
    if (lid == 0 && sum) atomic_add(dense_rows, sum);
}

// Tiles of superchunk s.
static inline uint2 tiles_of(uint s, uint tiles, uint ahead, uint per_chunk)
{
    const int from = (int)(s * per_chunk) - (int)ahead;
    return (uint2)((uint)max(from, 0), min((uint)(from + (int)per_chunk), tiles));
}

// A component's counts in AT_ONCE tiles from t on, 0 from `end` on.
static inline void counts_of(__global const uint *counts, uint t, uint end, uint k, uint c, uint *own)
{
    for (uint i = 0; i < AT_ONCE; i++) {
        const uint count = counts[(ulong)min(t + i, end - 1) * k + c];
        own[i] = t + i < end ? count : 0;
    }
}

// totals [k, slots]. Global size: k by slots.
__kernel void bin_totals(__global const uint *counts, uint k, uint tiles, uint ahead, uint per_chunk, uint slots,
                         __global uint *totals)
{
    const uint c = get_global_id(0), s = get_global_id(1);
    if (c >= k) return;
    const uint2 part = tiles_of(s, tiles, ahead, per_chunk);
    uint sum = 0;
    for (uint t = part.x; t < part.y; t += AT_ONCE) {
        uint own[AT_ONCE];
        counts_of(counts, t, part.y, k, c, own);
        for (uint i = 0; i < AT_ONCE; i++) sum += own[i];
    }
    totals[c * slots + s] = sum;
}

// lists [k slots + 1]: the prefix sums of totals.
__kernel void bin_starts(__global uint *counts, uint k, uint tiles, uint ahead, uint per_chunk, uint slots,
                         __global const uint *lists)
{
    const uint c = get_global_id(0), s = get_global_id(1);
    if (c >= k) return;
    const uint2 part = tiles_of(s, tiles, ahead, per_chunk);
    uint at = lists[c * slots + s];
    for (uint t = part.x; t < part.y; t += AT_ONCE) {
        uint own[AT_ONCE];
        counts_of(counts, t, part.y, k, c, own);
        for (uint i = 0; i < AT_ONCE; i++) {
            if (t + i < part.y) counts[(ulong)(t + i) * k + c] = at;
            at += own[i];
        }
    }
}

// The work-item's place among the entries that the group's rows have, `count` of its own. sums [GROUP] is left with what all have in
// its last.
static inline uint entries_before(__local uint *sums, uint count, uint lid)
{
    sums[lid] = count;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint step = 1; step < GROUP; step *= 2) {
        const uint before = lid < step ? 0 : sums[lid - step];
        barrier(CLK_LOCAL_MEM_FENCE);
        sums[lid] += before;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return sums[lid] - count;
}

// Of a list's keys [padded], how many before entry e are `key`, and how many of all. Eight at a time: llvmpipe ends all loops after 65536 rounds.
static inline uint2 compared(__local const uint *keys, uint padded, uint key, uint e)
{
    uint2 out = (uint2)(0, 0);
    for (uint j = 0; j < padded; j += 8) {
        __local const uint *eight = keys + j;
        uint same = 0; // a bit each
#pragma unroll
        for (uint i = 0; i < 8; i++) same |= (uint)(eight[i] == key) << i;
        out.x += popcount(same & (j + 8 <= e ? 255u : j < e ? (1u << (e - j)) - 1 : 0));
        out.y += popcount(same);
    }
    return out;
}

// The same from bits [WORDS] of a component's rows; `lower`: those of the word that come before.
static inline uint2 counted(__local const uint *bits, uint word, uint lower)
{
    uint2 out = (uint2)(popcount(lower), 0);
    for (uint w = 0; w < WORDS; w++) {
        const uint in_word = popcount(bits[w]);
        out.x += w < word ? in_word : 0;
        out.y += in_word;
    }
    return out;
}

// The slice's row that lies there in a tile that ends at `to`, or NONE.
static inline uint row_of(uint shifted, uint to, uint shift, uint n)
{
    return shifted < to && shifted >= shift && shifted - shift < n ? shifted - shift : NONE;
}

// A work-group a tile, `rounds` times GROUP rows of it from row round0 on. An entry's place is its component's cursor, counts[t, c], and the number
// of entries before it in the round that are of the component too; the last of them moves the cursor. If HELD, all rounds are one dispatch's, and
// cursors are not left in counts.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
bin_scatter(__global const uint *surv_id, __global const uint *kept, __global const uint *dense, __global const uint *hints,
            uint row0, __global const uint *place, uint n, uint shift, uint tile_rows, uint round0, uint rounds, uint k,
            __global uint *counts, __global uint *values)
{
    // In the order of rows: component; value, then where its cursor moves. Or, if HELD, bits [HELD, WORDS]: of each component's rows in the round.
    __local uint room[2 * CAP * GROUP], *keys = room, *entries = room + CAP * GROUP;
    __local uint sums[GROUP];
    __local uint most;
    const uint lid = get_local_id(0);
    __global uint *told = counts + (ulong)get_group_id(0) * k;
#if HELD
    __local uint cursors[HELD];
    for (uint c = lid; c < k; c += GROUP) cursors[c] = told[c];
    for (uint i = lid; i < k * WORDS; i += GROUP) room[i] = 0;
#else
    __global uint *cursors = told;
#endif
    const uint from = get_group_id(0) * tile_rows, to = from + tile_rows; // of rows counted from `shift` before the slice
    uint row = row_of(from + round0 + lid, to, shift, n);
    survivors own = survivors_of(row == NONE ? 0 : row, surv_id, kept, dense, hints + row0, place);
    for (uint round = round0; round < round0 + rounds * GROUP; round += GROUP) {
        const uint this_row = row, count = row == NONE ? 0 : own.count;
        const survivors these = own;
        // What the next round takes is on its way meanwhile.
        row = row_of(from + round + GROUP + lid, to, shift, n);
        own = survivors_of(row == NONE ? 0 : row, surv_id, kept, dense, hints + row0, place);
        if (lid == 0) most = 0;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (count > 1) atomic_max(&most, count);
        barrier(CLK_LOCAL_MEM_FENCE);
        const int alike = HELD > 0 && !most; // each row has one survivor at most: bits tell which come before
        const uint own_key = count ? survivor(these, 0) : 0, word = lid / 32, bit = 1u << lid % 32;
        __local uint *bits = room + own_key * WORDS;
        // Where no row has several, each has a place of its own.
        uint first = lid, all = GROUP, lower = 0;
        uint2 own_same = (uint2)(0, 0);
        if (most) {
            first = entries_before(sums, count, lid);
            all = sums[GROUP - 1];
        }
        const uint padded = (all + 7) / 8 * 8;
        if (alike) {
            if (count) atomic_or(&bits[word], bit);
        } else {
            if (!most) keys[lid] = NONE;
            for (uint i = 0; i < count; i++) {
                keys[first + i] = survivor(these, i);
                entries[first + i] = (this_row * CAP + i) | (these.alone ? SETTLED_BIT : 0);
            }
            if (lid < padded - all) keys[all + lid] = NONE;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (alike) {
            lower = bits[word] & (bit - 1);
            own_same = counted(bits, word, lower);
            if (count) values[cursors[own_key] + own_same.x] = (this_row * CAP) | (these.alone ? SETTLED_BIT : 0);
        } else {
            for (uint e = lid; e < all; e += GROUP) {
                const uint key = keys[e];
                if (key == NONE) continue;
                const uint2 same = compared(keys, padded, key, e);
                const uint at = cursors[key];
                values[at + same.x] = entries[e];
                entries[e] = same.x + 1 == same.y ? at + same.y : NONE;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        if (alike) {
            if (count && !lower) bits[word] = 0;
            if (count && own_same.x + 1 == own_same.y) cursors[own_key] += own_same.y;
        } else {
            for (uint e = lid; e < all; e += GROUP)
                if (keys[e] != NONE && entries[e] != NONE) cursors[keys[e]] = entries[e];
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
#if HELD
        if (!alike)
            for (uint i = lid; i < k * WORDS; i += GROUP) room[i] = 0;
#endif
    }
}

// Marks the rows of the dense engine among those with places, in marks [n] that start at zero. list: of settle.cl, with `room` places.
__kernel void bin_mark(__global const uint *dense, __global const uint2 *list, uint room, __global uint *marks)
{
    const uint i = get_global_id(0), front = list[0].x, back = list[0].y;
    const uint at = i < room ? i : 0;
    const uint left = dense[at], row = list[1 + at].x;
    if (i < room && (i < front || i >= room - back) && left) marks[row] = 1;
}

// The rows of the dense engine, ascending. offsets [n + 1]: prefix sums of dense.
__kernel void bin_dense(__global const uint *dense, __global const uint *offsets, uint n, __global uint *list)
{
    const uint row = get_global_id(0);
    const uint at = row < n ? row : 0;
    const uint left = dense[at], place = offsets[at];
    if (row < n && left) list[place] = row;
}

// For sums in other superchunks: where those of row s * grain - skip on start in each component's list, starts [k * slots + 1].
// values and lists as above, lists with list_slots superchunks.
__kernel void bin_segments(__global const uint *values, __global const uint *lists, uint list_slots, uint k, uint slots,
                           ulong grain, ulong skip, __global uint *starts)
{
    const uint i = get_global_id(0);
    if (i > k * slots) return;
    const uint c = i / slots, s = i % slots;
    const ulong row = s == 0 ? 0 : s * grain - skip;
    uint lo = lists[c * list_slots], hi = c < k ? lists[(c + 1) * list_slots] : lo;
    while (lo < hi) {
        const uint mid = lo + (hi - lo) / 2;
        if (values[mid] / CAP < row)
            lo = mid + 1;
        else
            hi = mid;
    }
    starts[i] = lo;
}

// All survivors in the order of rows. offsets [n + 1]: prefix sums of kept.
__kernel void bin_rows(__global const uint *kept, __global const uint *dense, __global const uint *offsets, uint n,
                       __global uint *values)
{
    const uint row = get_global_id(0);
    if (row >= n || dense[row]) return;
    for (uint i = 0; i < kept[row]; i++) values[offsets[row] + i] = row * CAP + i;
}
