// variants: -DGROUP=32 -DEACH=8 | -DGROUP=512 | -DGROUP=1024
/*
 * Exclusive prefix sums of n + 1 unsigned integers, the last input taken as 0, so that out[n] is the total.
 * scan_blocks scans blocks of GROUP * EACH and leaves their totals, which the host scans in the same way; scan_add adds them.
 */
// GROUP: work-items (default 64). EACH: elements a work-item (default 17).
#ifndef GROUP
#define GROUP 64
#endif
#ifndef EACH
#define EACH 17
#endif
#if GROUP < 1 || EACH < 1
#error "GROUP and EACH must be positive"
#endif

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
scan_blocks(__global const uint *in, __global uint *out, __global uint *totals, uint n)
{
    __local uint sums[GROUP];
    const uint lid = get_local_id(0);
    const uint first = (get_group_id(0) * GROUP + lid) * EACH;
    uint sum = 0;
    for (uint i = first; i < first + EACH; i++)
        if (i < n) sum += in[i];
    sums[lid] = sum;
    for (uint step = 1; step < GROUP; step *= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint before = lid < step ? 0 : sums[lid - step];
        barrier(CLK_LOCAL_MEM_FENCE);
        sums[lid] += before;
    }
    if (lid == GROUP - 1) totals[get_group_id(0)] = sums[lid];
    uint run = sums[lid] - sum;
    for (uint i = first; i < first + EACH; i++) {
        if (i <= n) out[i] = run;
        if (i < n) run += in[i];
    }
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void scan_add(__global uint *out,
                                                                          __global const uint *totals, uint n)
{
    const uint add = totals[get_group_id(0)];
    const uint first = get_group_id(0) * GROUP * EACH;
    for (uint i = get_local_id(0); i < GROUP * EACH; i += GROUP)
        if (first + i <= n) out[first + i] += add;
}
