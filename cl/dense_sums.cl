// variants: -DROW_TYPE=2 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 | -DGX=1 -DGY=1 -DAD=1 -DAM=1 | -DGX=16 -DGY=8 -DAM=1 | -DEXACT=1
/*
 * Sums over a group of rows of the dense engine: as accumulate.cl, with the responsibilities of one tile of components.
 *
 *   part[s, k, :] += sum over the group's rows in superchunk s of  w r t [D], w r t^2 [D], w r [1],   t = (x - c_hi) - c_lo
 *
 * A work-group owns GY * AM components x GX * AD features of one superchunk and takes its rows in order, 16 at a time.
 */
#include "ff.clh"
#include "rows.clh"

// GX, GY: work-group shape (default 16 x 16). AD, AM: features and components a work-item (default 2 x 2).
#ifndef GX
#define GX 16
#endif
#ifndef GY
#define GY 16
#endif
#ifndef AD
#define AD 2
#endif
#ifndef AM
#define AM 2
#endif
#if GX < 1 || GY < 1 || AD < 1 || AM < 1
#error "GX, GY, AD and AM must be positive"
#endif
// EXACT: 1 sums w r t and w r alone, every term in float-float: beside scatter sums (default 0).
#ifndef EXACT
#define EXACT 0
#endif
// Rows a step: as many terms as a float sums before it goes into the float-float.
#define STEP 16
#define TF (GX * AD)
#define TC (GY * AM)
#define GROUP (GX * GY)

// resp [n, width]: (w r, r). starts [slots + 1]: the rows of the group in each superchunk. kt0: first component within the tile.
// resume: slot 0 goes on from what it holds; the others start at zero. part [slots, k, 2 d + 1].
__kernel __attribute__((reqd_work_group_size(GX, GY, 1))) void
dense_sums(__global const row_t *rows, ulong offset, ulong pitch, uint row0, __global const uint *list, uint base,
           uint d, uint k, uint k0, uint kt0, uint width, __global const float *c_hi, __global const float *c_lo,
           __global const float2 *resp, __global const uint *starts, uint resume, __global float2 *part)
{
    __local float xs[STEP * TF];
    __local float rs[STEP * TC];
    const uint lx = get_local_id(0);
    const uint ly = get_local_id(1);
    const uint lid = ly * GX + lx;
    const uint f0 = get_group_id(0) * TF;
    const uint t0 = kt0 + get_group_id(1) * TC;
    const uint s = get_group_id(2);
    const ulong wide = 2ul * d + 1;
    const int whole = f0 == 0 && lx == 0; // sums w r too

    float hi[AM][AD], lo[AM][AD];
#if !EXACT
    float p1[AM][AD], p2[AM][AD], p0[AM];
#endif
    ff s1[AM][AD], s2[AM][AD], sw[AM];
    for (uint i = 0; i < AM; i++) {
        const uint c = t0 + ly + i * GY;
        __global float2 *out = part + ((ulong)s * k + k0 + c) * wide;
        const int go_on = c < width && s == 0 && resume;
        sw[i] = go_on && whole ? out[2ul * d] : (ff)(0.0f, 0.0f);
        for (uint j = 0; j < AD; j++) {
            const uint f = f0 + lx + j * GX;
            const int inside = c < width && f < d;
            hi[i][j] = inside ? c_hi[(ulong)(k0 + c) * d + f] : 0.0f;
            lo[i][j] = inside ? c_lo[(ulong)(k0 + c) * d + f] : 0.0f;
            s1[i][j] = go_on && f < d ? out[f] : (ff)(0.0f, 0.0f);
            s2[i][j] = go_on && f < d ? out[(ulong)d + f] : (ff)(0.0f, 0.0f);
        }
    }
    const uint end = starts[s + 1];
    for (uint r = starts[s]; r < end;) {
        // The next rows of one chunk of 1024, at most STEP.
        const uint chunk = (list ? list[base + r] : base + r) / 1024;
        uint count = 1;
        while (count < STEP && r + count < end && (list ? list[base + r + count] : base + r + count) / 1024 == chunk)
            count++;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint t = lid; t < count * TF; t += GROUP) {
            const uint f = f0 + t % TF, i = t / TF;
            const uint row = list ? list[base + r + i] : base + r + i;
            xs[t] = f < d ? ROW_AT(rows, offset + (ulong)(row0 + row) * pitch + f) : 0.0f;
        }
        for (uint t = lid; t < count * TC; t += GROUP) {
            const uint c = t0 + t % TC, i = t / TC;
            rs[t] = c < width ? resp[(ulong)(r + i) * width + c].x : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
#if EXACT
        for (uint t = 0; t < count; t++)
            for (uint i = 0; i < AM; i++) {
                const float wr = rs[t * TC + ly + i * GY];
                sw[i] = ff_add(sw[i], wr);
                for (uint j = 0; j < AD; j++) {
                    const ff gap = ff_two_sum(xs[t * TF + lx + j * GX], -hi[i][j]);
                    s1[i][j] = ff_sum(s1[i][j], ff_scale(ff_two_sum(gap.x, gap.y - lo[i][j]), wr));
                }
            }
#else
        for (uint i = 0; i < AM; i++) {
            p0[i] = 0.0f;
            for (uint j = 0; j < AD; j++) p1[i][j] = p2[i][j] = 0.0f;
        }
        for (uint t = 0; t < count; t++)
            for (uint i = 0; i < AM; i++) {
                const float wr = rs[t * TC + ly + i * GY];
                p0[i] += wr;
                for (uint j = 0; j < AD; j++) {
                    const float gap = (xs[t * TF + lx + j * GX] - hi[i][j]) - lo[i][j];
                    const float wrt = wr * gap;
                    p1[i][j] += wrt;
                    p2[i][j] = fma(wrt, gap, p2[i][j]);
                }
            }
        for (uint i = 0; i < AM; i++) {
            sw[i] = ff_add(sw[i], p0[i]);
            for (uint j = 0; j < AD; j++) {
                s1[i][j] = ff_add(s1[i][j], p1[i][j]);
                s2[i][j] = ff_add(s2[i][j], p2[i][j]);
            }
        }
#endif
        r += count;
    }
    for (uint i = 0; i < AM; i++) {
        const uint c = t0 + ly + i * GY;
        if (c >= width) continue;
        __global float2 *out = part + ((ulong)s * k + k0 + c) * wide;
        if (whole) out[2ul * d] = sw[i];
        for (uint j = 0; j < AD; j++) {
            const uint f = f0 + lx + j * GX;
            if (f >= d) continue;
            out[f] = s1[i][j];
            out[(ulong)d + f] = s2[i][j];
        }
    }
}
