// variants: -DGROUP=32 -DEACH=8 | -DGROUP=512 | -DGROUP=1024
/*
 * Exclusive prefix sums of n + 1 unsigned integers, the last input taken as 0, so that out[n] is the total.
 * scan_blocks scans blocks of GROUP * EACH and leaves their totals, which the host scans in the same way; scan_add adds them.
 */
// GROUP: work-items (default 64). EACH: elements a work-item, read and written four at a time, which in and out are aligned for (default 16).
#ifndef GROUP
#define GROUP 64
#endif
#ifndef EACH
#define EACH 16
#endif
#if GROUP < 1 || EACH < 4 || EACH % 4
#error "GROUP must be positive, and EACH a multiple of 4"
#endif
#define FOURS (EACH / 4)
#define BLOCK (GROUP * EACH)

static inline uint4 four_at(__global const uint *in, uint i, uint n)
{
    if (i + 4 <= n) return *(__global const uint4 *)(in + i);
    return (uint4)(i < n ? in[i] : 0, i + 1 < n ? in[i + 1] : 0, i + 2 < n ? in[i + 2] : 0, 0);
}

// Blocks of BLOCK inputs, a work-group each; the last one writes out[n], too.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
scan_blocks(__global const uint *in, __global uint *out, __global uint *totals, uint n)
{
    __local uint sums[GROUP];
    const uint lid = get_local_id(0);
    const uint first = get_group_id(0) * BLOCK + lid * EACH;
    uint4 own[FOURS];
    uint sum = 0;
    for (uint i = 0; i < FOURS; i++) own[i] = four_at(in, first + 4 * i, n);
    for (uint i = 0; i < FOURS; i++) sum += (own[i].x + own[i].y) + (own[i].z + own[i].w);
    sums[lid] = sum;
    for (uint step = 1; step < GROUP; step *= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint before = lid < step ? 0 : sums[lid - step];
        barrier(CLK_LOCAL_MEM_FENCE);
        sums[lid] += before;
    }
    if (lid == GROUP - 1) {
        totals[get_group_id(0)] = sums[lid];
        if (n - get_group_id(0) * BLOCK <= BLOCK) out[n] = sums[lid];
    }
    uint run = sums[lid] - sum;
    for (uint i = 0; i < FOURS; i++) {
        const uint at = first + 4 * i, y = run + own[i].x, z = y + own[i].y, w = z + own[i].z;
        const uint4 four = (uint4)(run, y, z, w);
        if (at + 4 <= n) {
            *(__global uint4 *)(out + at) = four;
        } else {
            if (at < n) out[at] = four.x;
            if (at + 1 < n) out[at + 1] = four.y;
            if (at + 2 < n) out[at + 2] = four.z;
        }
        run = w + own[i].w;
    }
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void scan_add(__global uint *out,
                                                                          __global const uint *totals, uint n)
{
    const uint add = totals[get_group_id(0)];
    const uint first = get_group_id(0) * BLOCK, end = n - first <= BLOCK ? n + 1 : first + BLOCK;
    for (uint i = first + get_local_id(0); i < end; i += GROUP) out[i] += add;
}
