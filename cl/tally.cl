/*
 * Sums over all rows so far (cl_tally of cl_engine.h), in float-floats:
 *
 *   total[i] += part[0, i] + part[1, i] + ..., slots in order     part [slots, count], total [count]: of superchunks, and of those done
 *   out[line] = total[line] with the sums of squares added up     [., 2 d + 1] to [., d + 2]
 */
#include "narrow.clh"

// Adds the first `slots` slots of part [., count] to total [count], in order; `move`: slot `slots` becomes slot 0. held: a slot of floats that are
// under way to slot 0 (accumulate.cl); 0: none are.
__kernel void fold(__global float2 *part, __global float2 *total, ulong count, uint slots, uint move, uint held)
{
    const ulong i = get_global_id(0);
    if (i >= count) return;
    ff sum = total[i];
    if (held) part[i] = ff_add(part[i], part[held * count + i].x);
    for (uint s = 0; s < slots; s++) sum = ff_sum(sum, part[s * count + i]);
    total[i] = sum;
    if (move) part[i] = part[slots * count + i];
}

// The same of floats that are under way to total itself: way [count], where none are then.
__kernel void arrive(__global float2 *way, __global float2 *total, ulong count)
{
    const ulong i = get_global_id(0);
    if (i >= count) return;
    total[i] = ff_add(total[i], way[i].x);
    way[i] = (float2)(0.0f, 0.0f);
}

// Lines from line0 on, a work-group each, of total [., 2 d + 1] without the features of their squares: out [lines, d + 2] of w r t, the sum
// of w r t^2 over them, w r.
__kernel __attribute__((reqd_work_group_size(NARROW, 1, 1))) void
narrow(__global const float2 *total, uint line0, uint d, __global float2 *out)
{
    __local ff part[NARROW];
    const uint lid = get_local_id(0), line = get_group_id(0);
    __global const float2 *in = total + (line0 + line) * (2ul * d + 1);
    out += line * (d + 2ul);
    for (uint f = lid; f < d; f += NARROW) out[f] = in[f];
    const ff sum = sum_of_squares(in, d, lid, part);
    if (lid > 0) return;
    out[d] = sum;
    out[d + 1] = in[2 * d];
}
