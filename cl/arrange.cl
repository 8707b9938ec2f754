/*
 * Parameters of a screen, sent as rows in [k, from], in the order that its kernels read: transposed for screen.cl, as fragments
 * for screen_mma.cl, as tiles for screen_wgmma.cl, whitening matrices as tiles for screen_full_wgmma.cl.
 */
#define LANES 32

// out [to, kp]: 0 beyond in's k and `from`.
__kernel void arrange_columns(__global const float *in, uint k, uint from, uint to, uint kp, __global float *out)
{
    const uint i = get_global_id(0), f = get_global_id(1);
    if (i < kp && f < to) out[(ulong)f * kp + i] = i < k && f < from ? in[(ulong)i * from + f] : 0.0f;
}

// B's registers of mma.clh in f16. Work-item (lane + 32 pair, step, tile) writes 8 of out [tiles, steps, nt / 2, 32, 8]: four terms
// of one component in two registers, then of the component 8 further. Step s holds features 16 s .. of a or, where there are two
// (b not NULL), s / 2 of a and b in turn. components [k]: with two, the factor's inverse is the multiplier.
__kernel void arrange_fragments(__global const float *a, __global const float *b, __global const float4 *components, uint k,
                                uint from, uint nt, __global half *out)
{
    const uint lane = get_global_id(0) % LANES, pair = get_global_id(0) / LANES;
    const uint step = get_global_id(1), tile = get_global_id(2);
    if (pair >= nt / 2) return;
    __global const float *in = b && step % 2 ? b : a;
    const uint f = 16 * (b ? step / 2 : step) + 4 * (lane % 4);
    const ulong at = (((ulong)tile * get_global_size(1) + step) * (nt / 2) + pair) * LANES + lane;
    for (uint j = 0; j < 2; j++) {
        const uint i = 8 * (nt * tile + 2 * pair + j) + lane / 4;
        const float factor = b && i < k ? 1.0f / components[i].x : 1.0f;
        for (uint e = 0; e < 4; e++)
            vstore_half_rte(i < k ? in[(ulong)i * from + f + e] * factor : 0.0f, at * 8 + 4 * j + e, out);
    }
}

// Tiles of wgmma.clh's cores in f16, each with its constants behind: out [tiles], of [2 steps, 64, 8] and [64] float2. Work-item
// (column, eight, tile) writes eight terms of a component, or at last its multiplier and c1. Step s holds features as above, and its terms lie as the
// rows' fragments have them: of features 4 c .. 4 c + 3 two at 2 c, two at 8 + 2 c.
__kernel void arrange_tiles(__global const float *a, __global const float *b, __global const float4 *components,
                            __global const float2 *columns, uint k, uint from, __global half *out)
{
    const uint column = get_global_id(0), eight = get_global_id(1), tile = get_global_id(2);
    const uint wide = get_global_size(0), eights = get_global_size(1) - 1;
    const uint i = wide * tile + column, step = eight / 2;
    out += (ulong)tile * wide * (8 * eights + 4);
    if (eight == eights) {
        ((__global float2 *)(out + 8 * wide * eights))[column] = columns[i];
        return;
    }
    __global const float *in = b && step % 2 ? b : a;
    const float factor = b && i < k ? 1.0f / components[i].x : 1.0f;
    const ulong f0 = (ulong)i * from + 16 * (b ? step / 2 : step) + 2 * (eight % 2);
    for (uint t = 0; t < 8; t++)
        vstore_half_rte(i < k ? in[f0 + 4 * (t / 2) + t % 2] * factor : 0.0f, (eight * wide + column) * 8 + t, out);
}

// A component of screen_full_wgmma.cl: out [k], of its V in f16 as cores of wgmma.clh [2 blocks, 64, 8], of S (centre - m) and S
// [vector] each, and of its constants [8]. v, scale: V and S of whiten.cl, [k, d, d] and [k, d]; m_hi, m_lo [k, d]; centre [vector].
// Blocks are steps of 16 features: `lead` of outputs 0 .., then others of outputs 64 ... Work-item (column, eight, component), with
// terms as above; the last eight writes the vectors and the constants.
__kernel void arrange_full(__global const float *v, __global const float *scale, __global const float *m_hi,
                           __global const float *m_lo, __global const float *centre, __global const float *constants,
                           uint d, uint lead, uint vector, uint component_floats, __global float *out)
{
    const uint column = get_global_id(0), eight = get_global_id(1), i = get_global_id(2);
    const uint wide = get_global_size(0), eights = get_global_size(1) - 1;
    out += (ulong)i * component_floats;
    if (eight == eights) {
        out += wide * eights * 4;
        for (uint f = column; f < vector; f += wide) {
            const ulong at = (ulong)i * d + f;
            out[f] = f < d ? ((centre[f] - m_hi[at]) - m_lo[at]) * scale[at] : 0.0f;
            out[vector + f] = f < d ? scale[at] : 0.0f;
        }
        if (column < 8) out[2 * vector + column] = constants[8 * i + column];
        return;
    }
    const uint block = eight / 2, step = block < lead ? block : block - lead;
    const uint output = column + (block < lead ? 0 : wide);
    for (uint t = 0; t < 8; t++) {
        const uint f = 16 * step + 2 * (eight % 2) + 4 * (t / 2) + t % 2;
        const float value = f < d && output < d ? v[((ulong)i * d + f) * d + output] : 0.0f;
        vstore_half_rte(value, (eight * wide + column) * 8 + t, (__global half *)out);
    }
}
