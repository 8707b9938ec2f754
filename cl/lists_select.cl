// variants: -DGROUP=64
/*
 * The k best of each query's candidates, with all that are as far as the k-th: a radix select over the bits of the distances, eight
 * at a time from the top, then one pass that collects. In no order: the host sorts the few there are, equal ones by id.
 *
 *   get_group_id(0): query
 */
// GROUP: work-items a query (default 256).
#ifndef GROUP
#define GROUP 256
#endif
#if GROUP < 1
#error "GROUP must be positive"
#endif
#define BUCKETS 256
#define NONE 0xffffffffu // what NaN is taken for: no candidate

// Numbers in the order of the floats.
static inline uint key_of(float distance)
{
    const uint bits = distance == 0.0f ? 0 : as_uint(distance); // -0 is no nearer than 0
    if (isnan(distance)) return NONE;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// starts [nq + 1]: each query's candidates. ids: of rows. best_ids, best [nq, room]; found [nq]: how many there are, more than
// room where some did not fit.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
lists_select(__global const uint *starts, __global const float *distances, __global const uint *rows_of,
             __global const long *ids, uint k, uint room, __global long *best_ids, __global float *best,
             __global uint *found)
{
    __local uint counts[BUCKETS], prefix, rank, taken;
    const uint item = get_local_id(0), query = get_group_id(0);
    const uint from = starts[query], to = starts[query + 1];
    if (item == 0) {
        prefix = taken = 0;
        rank = k;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint i = item; i < BUCKETS; i += GROUP) counts[i] = 0;
        barrier(CLK_LOCAL_MEM_FENCE);
        // Candidates whose higher bits are those of the k-th; before the first round that is all of them.
        for (uint i = from + item; i < to; i += GROUP) {
            const uint key = key_of(distances[i]);
            if (key != NONE && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)))
                atomic_inc(&counts[key >> shift & (BUCKETS - 1)]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (item == 0) {
            uint bucket = 0;
            // Fewer than k in all: the last bucket, whose end is beyond every key.
            while (bucket < BUCKETS - 1 && counts[bucket] < rank) rank -= counts[bucket++];
            prefix |= bucket << shift;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const uint last = prefix;
    for (uint i = from + item; i < to; i += GROUP) {
        const float distance = distances[i];
        const uint key = key_of(distance);
        if (key == NONE || key > last) continue;
        const uint at = atomic_inc(&taken);
        if (at < room) {
            best_ids[(ulong)query * room + at] = ids[rows_of[i]];
            best[(ulong)query * room + at] = distance;
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item == 0) found[query] = taken;
}
