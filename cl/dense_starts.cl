// Where superchunks of rows start within a group of the dense engine.
#include "group_row.clh"

// starts [slots + 1]: the first row of the group of n in each of the superchunks first .. first + slots - 1, and n. Row i of the
// slice is row row0 + i of the pass. grain 0: all rows are in one.
__kernel void dense_starts(__global const uint *list, uint base, uint n, ulong row0, ulong grain, ulong first, uint slots,
                           __global uint *starts)
{
    const uint s = get_global_id(0);
    if (s > slots) return;
    uint low = 0, high = s == slots ? 0 : n;
    if (grain == 0) high = 0;
    while (low < high) {
        const uint middle = low + (high - low) / 2;
        if ((row0 + row_of(list, base, middle)) / grain < first + s)
            low = middle + 1;
        else
            high = middle;
    }
    starts[s] = s == slots ? n : low;
}
