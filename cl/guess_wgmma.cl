// target: nvptx64
// variants: -DDIAG=1 -DSTEPS=4 | -DSTEPS=1 -DROW_FOURS=1 | -DSTEPS=16 -DDIAG=1 -DRESIDENT=2 | -DSTEPS=31 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 -DROW_FOURS=1
/*
 * Guess: for rows that no one knows a component of, one that is likely their best, by products in FP8 (e4m3, 1 + 4 + 3 bits), which
 * warpgroups multiply at twice the rate of f16. Where clusters lie apart nearly all of them are right, and settle.cl proves it; what is
 * wrong costs a row its screen, never its result. So no bound is asked for, and numbers beyond what FP8 holds are cut off.
 *
 * The picture and the sums are those of screen_wgmma.cl: read that first. A logit's last four bits tell which of the lane's columns of a
 * tile it is of, so that a maximum finds both.
 */
#include "rows.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// STEPS: cores of 16 terms of a product: of features 16 s .., if DIAG first of their squares and then of themselves (default 8).
#ifndef STEPS
#define STEPS 8
#endif
// RESIDENT: as of screen_wgmma.cl (default 0).
#ifndef RESIDENT
#define RESIDENT 0
#endif
#if STEPS < 1 || STEPS > 32 || (DIAG && STEPS % 2)
#error "STEPS must be 1 to 32 (even if DIAG)"
#endif

#define GROUPS 2 // warpgroups of a work-group
#define NT 8
#define PRODUCTS ((STEPS + 1) / 2) // of 32 terms
#define FOURS (STEPS / (DIAG + 1)) // of features that a lane has of a row
#define BATCH (FOURS < 4 ? FOURS : 4)
#define AT_ONCE 2 // constants that are on their way together
#define TC 64
#define TR (64 * GROUPS)
#define GROUP (128 * GROUPS)
#define STAGES 4
#define STAGE (PRODUCTS * TC * 2 + TC / 2) // uint4 of a tile: terms, then constants
#include "stages.clh"
#define COLUMN_BITS 15u
// Diagonal factors lie in [2^14, 2^15), beyond FP8's 448.
#define SMALLER (DIAG ? 0x1p-7f : 1.0f)

// The lane's logits of a row, each with its column's number among the lane's.
#define BEST_OF(top, half_x, half_y)                                                                                   \
    _Pragma("unroll") for (uint j = 0; j < NT; j++)                                                                    \
    {                                                                                                                  \
        top = fmax(top, as_float((as_uint(acc[j].half_x) & kept_bits) | (2 * j)));                                     \
        top = fmax(top, as_float((as_uint(acc[j].half_y) & kept_bits) | (2 * j + 1)));                                 \
    }

// Of the four lanes that share a row, the best one's component.
static inline uint best_of_lanes(float best, uint id)
{
#pragma unroll
    for (uint bits = 1; bits < 4; bits *= 2) {
        const float other = mma_across(best, bits);
        const uint other_id = as_uint(mma_across(as_float(id), bits));
        if (other > best || (other == best && other_id < id)) {
            best = other;
            id = other_id;
        }
    }
    return id;
}

// out [tiles, STAGE]: each tile's cores [2 PRODUCTS, TC] of 16 terms of a component, and behind them multiplier and c1. Work-item (column,
// core, tile), the last core for these. a, b [k, from], components and columns of arrange_tiles; b: NULL unless DIAG.
__kernel void guess_tiles(__global const float *a, __global const float *b, __global const float4 *components,
                          __global const float2 *columns, uint k, uint from, __global uint4 *out)
{
    const uint column = get_global_id(0), core = get_global_id(1), tile = get_global_id(2), i = tile * TC + column;
    out += (ulong)tile * STAGE;
    if (core == 2 * PRODUCTS) {
        const float2 c = columns[i];
        ((__global float2 *)(out + core * TC))[column] = (float2)(c.x / SMALLER, c.y);
        return;
    }
    uint4 terms = (uint4)(0);
    if (core < STEPS && i < k) {
        __global const float *in = DIAG && core % 2 ? b : a;
        const ulong at = ((ulong)i * from + 16 * (core / (DIAG + 1))) / 4;
        const float factor = DIAG ? SMALLER / components[i].x : 1.0f;
        terms = (uint4)(mma_eighths(vload4(at, in) * factor), mma_eighths(vload4(at + 1, in) * factor),
                        mma_eighths(vload4(at + 2, in) * factor), mma_eighths(vload4(at + 3, in) * factor));
    }
    out[core * TC + column] = terms;
}

// Rows row0 .. row0 + n - 1 of the block. packed: of guess_tiles. centre, scale: 0 from d to the padded number of features. hints [block rows] out.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
guess_wgmma(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint n, uint d, uint k, uint tiles,
            __global const float *centre, __global const float *scale, __global const uint4 *packed, __global uint *hints)
{
    __local uint4 stages[STAGES * STAGE] __attribute__((aligned(128)));
    __local ulong full[STAGES], empty[STAGES];

    const uint lid = get_local_id(0), lane = lid % 32, warp = lid / 32;
    const uint first = row0 + get_group_id(0) * TR, last = row0 + n - 1;
    const uint r0 = first + warp * 16 + lane / 4, r1 = r0 + 8; // the lane's rows of the block

    if (lid == 0) {
        stages_open(full, empty);
        for (uint tile = 0; tile < STAGES - 1 && tile < tiles; tile++) stage(stages, full, packed, tile, tiles);
    }

    uint4 a[PRODUCTS];
    float half_norm0, half_norm1;
    {
        // Rows beyond the last are the last again, and thrown away.
        const ulong x0 = offset + (ulong)min(r0, last) * pitch, y0 = offset + (ulong)min(r1, last) * pitch;
        float square0 = 0.0f, square1 = 0.0f;
#pragma unroll
        for (uint s0 = 0; s0 < FOURS; s0 += BATCH) {
            float4 x[BATCH], y[BATCH];
#pragma unroll
            for (uint i = 0; i < BATCH; i++) {
                x[i] = row_four(rows, x0, 16 * (s0 + i) + 4 * (lane & 3), d);
                y[i] = row_four(rows, y0, 16 * (s0 + i) + 4 * (lane & 3), d);
            }
#pragma unroll
            for (uint i = 0; i < BATCH; i++) {
                const uint s = s0 + i, f = 4 * s + (lane & 3);
                if (s >= FOURS) break;
                const float4 lo = (x[i] - vload4(f, centre)) * vload4(f, scale);
                const float4 hi = (y[i] - vload4(f, centre)) * vload4(f, scale);
#if DIAG
                a[s] = (uint4)(mma_eighths(lo * lo), mma_eighths(hi * hi), mma_eighths(lo), mma_eighths(hi));
#else
                square0 = fma(lo.x, lo.x, fma(lo.y, lo.y, fma(lo.z, lo.z, fma(lo.w, lo.w, square0))));
                square1 = fma(hi.x, hi.x, fma(hi.y, hi.y, fma(hi.z, hi.z, fma(hi.w, hi.w, square1))));
                if (s % 2) {
                    a[s / 2].z = mma_eighths(lo);
                    a[s / 2].w = mma_eighths(hi);
                } else {
                    a[s / 2] = (uint4)(mma_eighths(lo), mma_eighths(hi), 0, 0);
                }
#endif
            }
        }
        half_norm0 = -0.5f * mma_row_sum(square0);
        half_norm1 = -0.5f * mma_row_sum(square1);
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    // Not known to the compiler: one instruction takes no two numbers that are.
    const uint kept_bits = ~COLUMN_BITS | tiles >> 31;
    float best0 = -INFINITY, best1 = -INFINITY;
    uint tile0 = 0, tile1 = 0; // of these
    for (uint tile = 0; tile < tiles; tile++) {
        const uint s = tile % STAGES;
        __local const uint4 *staged = stages + s * STAGE;
        float4 acc[NT];
#pragma unroll
        for (uint j = 0; j < NT; j++) acc[j] = (float4)(half_norm0, half_norm0, half_norm1, half_norm1);
        barrier_wait(full + s, (tile / STAGES) & 1);
        const ulong b = wgmma_descriptor(staged, 128, TC * 16);
        asm volatile("bar.warp.sync -1;" ::: "memory");
        wgmma_fence();
#pragma unroll
        for (uint i = 0; i < PRODUCTS; i++) WGMMA_EIGHTHS(acc, a[i], b + i * (TC * 32 / 16));
        wgmma_commit();
        stage_next(stages, full, empty, packed, tile, tiles, tiles, lid);
        __local const float4 *own = (__local const float4 *)(staged + PRODUCTS * TC * 2) + (lane & 3);
        float4 constants[AT_ONCE];
#pragma unroll
        for (uint j = 0; j < AT_ONCE; j++) constants[j] = own[4 * j];
        WGMMA_WAIT(acc);
#pragma unroll
        for (uint j = 0; j < NT; j++) {
            const float4 c = constants[j % AT_ONCE];
            if (j + AT_ONCE < NT) constants[j % AT_ONCE] = own[4 * (j + AT_ONCE)];
            acc[j].x = fma(acc[j].x, c.x, c.y);
            acc[j].y = fma(acc[j].y, c.z, c.w);
            acc[j].z = fma(acc[j].z, c.x, c.y);
            acc[j].w = fma(acc[j].w, c.z, c.w);
        }
        asm volatile("bar.warp.sync -1;" ::: "memory");
        if (lane == 0) barrier_arrive(empty + s);
        float top0 = -INFINITY, top1 = -INFINITY;
        BEST_OF(top0, x, y)
        BEST_OF(top1, z, w)
        if (top0 > best0) {
            best0 = top0;
            tile0 = tile;
        }
        if (top1 > best1) {
            best1 = top1;
            tile1 = tile;
        }
    }
    // Column 8 j + 2 c + e is number 2 j + e of lane c.
    const uint at0 = as_uint(best0) & COLUMN_BITS, at1 = as_uint(best1) & COLUMN_BITS, own0 = 2 * (lane & 3);
    const uint id0 = best_of_lanes(best0, tile0 * TC + 4 * (at0 & ~1u) + own0 + (at0 & 1));
    const uint id1 = best_of_lanes(best1, tile1 * TC + 4 * (at1 & ~1u) + own0 + (at1 & 1));
    if ((lane & 3) == 0 && r0 <= last) hints[r0] = min(id0, k - 1);
    if ((lane & 3) == 0 && r1 <= last) hints[r1] = min(id1, k - 1);
}
