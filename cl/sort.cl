// variants: -DCAP=8
/*
 * From survivors by row to entries sorted by (component, row): compaction by the rows' prefix sums, then a stable
 * radix sort on the component, 4 bits a pass. A work-group owns BLOCK consecutive entries; work-item i its EACH consecutive ones, so
 * the order of equal digits is kept.
 *
 * An entry is key = component, value = row * CAP + place in the row's list of survivors.
 */
// CAP: most survivors of a row (default 16).
#ifndef CAP
#define CAP 16
#endif
#if CAP < 1
#error "CAP must be positive"
#endif
#define GROUP 64
#define EACH 16
#define BLOCK (GROUP * EACH)
#define DIGITS 16

// offsets, dense_offsets [n + 1]: prefix sums of kept and dense. dense_rows lists the rows of the dense engine, ascending.
__kernel void emit(__global const uint *surv_id, __global const uint *kept, __global const uint *dense,
                   __global const uint *offsets, __global const uint *dense_offsets, uint n, __global uint *keys,
                   __global uint *values, __global uint *dense_rows)
{
    const uint row = get_global_id(0);
    if (row >= n) return;
    if (dense[row]) dense_rows[dense_offsets[row]] = row;
    const uint count = kept[row];
    for (uint i = 0; i < count; i++) {
        keys[offsets[row] + i] = surv_id[(ulong)row * CAP + i];
        values[offsets[row] + i] = row * CAP + i;
    }
}

// Counts of each digit of each work-item's entries.
static void count_digits(__global const uint *keys, uint n, uint shift, __local uint *counts)
{
    const uint lid = get_local_id(0);
    const uint first = get_group_id(0) * BLOCK + lid * EACH;
    for (uint i = 0; i < DIGITS; i++) counts[i * GROUP + lid] = 0;
    for (uint i = first; i < first + EACH && i < n; i++) counts[((keys[i] >> shift) & (DIGITS - 1)) * GROUP + lid]++;
}

// histogram [DIGITS, groups]
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void sort_count(__global const uint *keys, uint n,
                                                                            uint shift, __global uint *histogram)
{
    __local uint counts[DIGITS * GROUP];
    count_digits(keys, n, shift, counts);
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint lid = get_local_id(0);
    if (lid < DIGITS) {
        uint sum = 0;
        for (uint i = 0; i < GROUP; i++) sum += counts[lid * GROUP + i];
        histogram[lid * get_num_groups(0) + get_group_id(0)] = sum;
    }
}

// starts: the histogram's prefix sums.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
sort_scatter(__global const uint *keys, __global const uint *values, uint n, uint shift, __global const uint *starts,
             __global uint *keys_out, __global uint *values_out)
{
    __local uint counts[DIGITS * GROUP];
    count_digits(keys, n, shift, counts);
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint lid = get_local_id(0);
    if (lid < DIGITS) {
        uint run = starts[lid * get_num_groups(0) + get_group_id(0)];
        for (uint i = 0; i < GROUP; i++) {
            const uint next = counts[lid * GROUP + i];
            counts[lid * GROUP + i] = run;
            run += next;
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint first = get_group_id(0) * BLOCK + lid * EACH;
    for (uint i = first; i < first + EACH && i < n; i++) {
        const uint at = counts[((keys[i] >> shift) & (DIGITS - 1)) * GROUP + lid]++;
        keys_out[at] = keys[i];
        values_out[at] = values[i];
    }
}

// segments [k * slots + 1]: where the entries of component c in slot s start, at c * slots + s; slot s holds the rows
// from s * grain - skip (of the slice) on.
__kernel void segments(__global const uint *keys, __global const uint *values, uint n, uint k, uint slots, ulong grain,
                       ulong skip, __global uint *starts)
{
    const uint i = get_global_id(0);
    if (i > k * slots) return;
    const uint component = i / slots;
    const ulong s = i % slots;
    const ulong row = s == 0 ? 0 : s * grain - skip;
    uint lo = 0, hi = n;
    while (lo < hi) {
        const uint mid = lo + (hi - lo) / 2;
        if (keys[mid] < component || (keys[mid] == component && values[mid] / CAP < row))
            lo = mid + 1;
        else
            hi = mid;
    }
    starts[i] = lo;
}
