// target: nvptx64
// variants: -DDIAG=1 -DSTEPS=4 | -DSTEPS=1 -DROW_FOURS=1 | -DSTEPS=16 -DDIAG=1 -DRESIDENT=2 | -DSTEPS=31 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 -DROW_FOURS=1
/*
 * Guess: for rows that no one knows a component of, one that is likely their best, by products in FP8 (e4m3, 1 + 4 + 3 bits), which
 * warpgroups multiply at twice the rate of f16. Where clusters lie apart nearly all of them are right, and settle.cl proves it; what is
 * wrong costs a row its screen, never its result. So no bound is asked for, numbers beyond what FP8 holds are cut off, and of rows that are
 * deeper than a warpgroup can keep them the first features speak for all.
 *
 * The picture and the sums are those of screen_wgmma.cl: read that first. But logits are in f16, two in a register, which halves the
 * comparisons, and near 0 where they are likely best, since f16 is finest there: the most that a component has at its mean is taken off, and D / 2, which
 * rows of its own have less, added. The last three bits of a logit tell which of the lane's columns of a tile it is of, so that a maximum finds both.
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
#define TC 64
#define TR (64 * GROUPS)
#define GROUP (128 * GROUPS)
#define STAGES 4
#define STAGE (PRODUCTS * TC * 2 + TC / 4) // uint4 of a tile: terms, then constants
#include "stages.clh"
#define COLUMN_BITS 0x00070007u
#define NEGATIVE_INFINITIES 0xfc00fc00u

// Two f16 a register.
#if !DIAG
static inline uint halves_fma(uint x, uint y, uint z)
{
    uint out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(x), "r"(y), "r"(z));
    return out;
}
#endif

// The other where one is NaN.
static inline uint halves_max(uint x, uint y)
{
    uint out;
    asm("max.f16x2 %0, %1, %2;" : "=r"(out) : "r"(x), "r"(y));
    return out;
}

// The best logits of a row's even and odd columns among the lane's, and the tiles that they are of.
typedef struct best_pair {
    uint logits, even_tile, odd_tile;
} best_pair;

static inline void keep_best(best_pair *best, uint logits, uint tile)
{
    asm("{ .reg .pred e, o; setp.gt.f16x2 e|o, %2, %3; selp.u32 %0, %4, %0, e; selp.u32 %1, %4, %1, o; }"
        : "+r"(best->even_tile), "+r"(best->odd_tile)
        : "r"(logits), "r"(best->logits), "r"(tile));
    best->logits = halves_max(best->logits, logits);
}

// What a warpgroup knows of its 64 rows: the lane's of two, g and g + 8 of its warp.
typedef struct tile_rows {
    uint4 a[PRODUCTS];
    uint half_norms[2]; // -|x|^2 / 2, twice in a register
    best_pair best[2];
} tile_rows;

// Their terms and norms.
static inline void read_rows(tile_rows *out, __global const row_t *rows, ulong x0, ulong y0, uint d, uint c,
                             __global const float *centre, __global const float *scale)
{
    float square0 = 0.0f, square1 = 0.0f;
#pragma unroll
    for (uint s0 = 0; s0 < FOURS; s0 += BATCH) {
        float4 x[BATCH], y[BATCH];
#pragma unroll
        for (uint i = 0; i < BATCH; i++) {
            x[i] = row_four(rows, x0, 16 * (s0 + i) + 4 * c, d);
            y[i] = row_four(rows, y0, 16 * (s0 + i) + 4 * c, d);
        }
#pragma unroll
        for (uint i = 0; i < BATCH; i++) {
            const uint s = s0 + i, f = 4 * s + c;
            if (s >= FOURS) break;
#if DIAG
            const float4 by = vload4(f, scale);
#else
            const float by = scale[0]; // of all features
#endif
            const float4 lo = (x[i] - vload4(f, centre)) * by, hi = (y[i] - vload4(f, centre)) * by;
#if DIAG
            out->a[s] = (uint4)(mma_eighths(lo * lo), mma_eighths(hi * hi), mma_eighths(lo), mma_eighths(hi));
#else
            square0 = fma(lo.x, lo.x, fma(lo.y, lo.y, fma(lo.z, lo.z, fma(lo.w, lo.w, square0))));
            square1 = fma(hi.x, hi.x, fma(hi.y, hi.y, fma(hi.z, hi.z, fma(hi.w, hi.w, square1))));
            if (s % 2) {
                out->a[s / 2].z = mma_eighths(lo);
                out->a[s / 2].w = mma_eighths(hi);
            } else {
                out->a[s / 2] = (uint4)(mma_eighths(lo), mma_eighths(hi), 0, 0);
            }
#endif
        }
    }
    const float norm0 = -0.5f * mma_row_sum(square0), norm1 = -0.5f * mma_row_sum(square1);
    out->half_norms[0] = mma_halves(norm0, norm0);
    out->half_norms[1] = mma_halves(norm1, norm1);
    out->best[0] = out->best[1] = (best_pair){NEGATIVE_INFINITIES, 0, 0};
}

// Sets out to form a tile's logits, which start as what its constants make of them.
static inline void start_tile(uint2 *acc, const tile_rows *own, __local const uint4 *tile, uint lane_column)
{
    const ulong b = wgmma_descriptor(tile, 128, TC * 16);
    tile += PRODUCTS * TC * 2 + lane_column;
#pragma unroll
    for (uint j = 0; j < NT; j += 2) {
        const uint4 c = tile[2 * j]; // of two neighbouring columns multipliers and c1, and of those 8 further
#if DIAG
        acc[j] = (uint2)(c.y, c.y);
        acc[j + 1] = (uint2)(c.w, c.w);
#else
        acc[j].x = halves_fma(own->half_norms[0], c.x, c.y);
        acc[j].y = halves_fma(own->half_norms[1], c.x, c.y);
        acc[j + 1].x = halves_fma(own->half_norms[0], c.z, c.w);
        acc[j + 1].y = halves_fma(own->half_norms[1], c.z, c.w);
#endif
    }
    asm volatile("bar.warp.sync -1;" ::: "memory");
    wgmma_fence();
#pragma unroll
    for (uint i = 0; i < PRODUCTS; i++) WGMMA_EIGHTHS(acc, own->a[i], b + i * (TC * 32 / 16));
    wgmma_commit();
}

// Takes them. kept: ~COLUMN_BITS, of which the compiler does not know the last bits: one instruction takes no two numbers that it does.
static inline void end_tile(const uint2 *acc, tile_rows *own, uint tile, uint kept)
{
    uint top0 = NEGATIVE_INFINITIES, top1 = NEGATIVE_INFINITIES;
#pragma unroll
    for (uint j = 0; j < NT; j++) {
        top0 = halves_max(top0, (acc[j].x & kept) | j * 0x00010001u);
        top1 = halves_max(top1, (acc[j].y & kept) | j * 0x00010001u);
    }
    keep_best(&own->best[0], top0, tile);
    keep_best(&own->best[1], top1, tile);
}

// Of the four lanes that share a row, the best one's component. Column 8 j + 2 c + e is number j of lane c's.
static inline uint best_of_lanes(const best_pair *pair, uint c)
{
    const float2 logits = mma_floats(pair->logits);
    const uint odd = logits.y > logits.x, bits = pair->logits >> 16 * odd & COLUMN_BITS & 0xffffu;
    float best = odd ? logits.y : logits.x;
    uint id = (odd ? pair->odd_tile : pair->even_tile) * TC + 8 * bits + 2 * c + odd;
#pragma unroll
    for (uint way = 1; way < 4; way *= 2) {
        const float other = mma_across(best, way);
        const uint other_id = as_uint(mma_across(as_float(id), way));
        if (other > best || (other == best && other_id < id)) {
            best = other;
            id = other_id;
        }
    }
    return id;
}

// out [tiles, STAGE]: each tile's cores [2 PRODUCTS, TC] of 16 terms of a component, times `factor` and, unless DIAG, its multiplier; and behind them
// multipliers and c1 + w + shift, all times `factor`, as start_tile takes them. Work-item (column, core, tile), the last core for these. a, b [k, from],
// components, whose w is what a guess adds to c1, and columns of arrange_tiles; b: NULL unless DIAG.
__kernel void guess_tiles(__global const float *a, __global const float *b, __global const float4 *components,
                          __global const float2 *columns, uint k, uint from, float factor, float shift, __global uint4 *out)
{
    const uint column = get_global_id(0), core = get_global_id(1), tile = get_global_id(2), i = tile * TC + column;
    out += (ulong)tile * STAGE;
    if (core == 2 * PRODUCTS) {
        const float2 c = columns[i];
        const uint j = column / 8, at = (j / 2 * 4 + column % 8 / 2) * 8 + j % 2 * 4 + column % 2;
        __global half *to = (__global half *)(out + core * TC);
        vstore_half_rte(c.x * factor, at, to);
        vstore_half_rte((c.y + (i < k ? components[i].w : 0.0f) + shift) * factor, at + 2, to);
        return;
    }
    uint4 terms = (uint4)(0);
    if (core < STEPS && i < k) {
        __global const float *in = DIAG && core % 2 ? b : a;
        const ulong at = ((ulong)i * from + 16 * (core / (DIAG + 1))) / 4;
        const float times = DIAG ? factor : factor * components[i].x;
        terms = (uint4)(mma_eighths(vload4(at, in) * times), mma_eighths(vload4(at + 1, in) * times),
                        mma_eighths(vload4(at + 2, in) * times), mma_eighths(vload4(at + 3, in) * times));
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

    const uint lid = get_local_id(0), lane = lid % 32, warp = lid / 32, c = lane & 3;
    const uint last = row0 + n - 1;
    const uint r0 = row0 + get_group_id(0) * TR + warp * 16 + lane / 4, r1 = r0 + 8; // the lane's rows of the block

    if (lid == 0) {
        stages_open(full, empty);
        for (uint tile = 0; tile < STAGES - 1 && tile < tiles; tile++) stage(stages, full, packed, tile, tiles);
    }
    tile_rows own;
    // Rows beyond the last are the last again, and thrown away.
    read_rows(&own, rows, offset + (ulong)min(r0, last) * pitch, offset + (ulong)min(r1, last) * pitch, d, c, centre, scale);
    barrier(CLK_LOCAL_MEM_FENCE);

    const uint kept = ~COLUMN_BITS | tiles >> 29 | tiles >> 29 << 16;
    for (uint tile = 0; tile < tiles; tile++) {
        const uint s = tile % STAGES;
        uint2 acc[NT];
        barrier_wait(full + s, (tile / STAGES) & 1);
        start_tile(acc, &own, stages + s * STAGE, c);
        stage_next(stages, full, empty, packed, tile, tiles, tiles, lid);
        WGMMA_WAIT_EIGHTHS(acc);
        if (lane == 0) barrier_arrive(empty + s);
        end_tile(acc, &own, tile, kept);
    }
    const uint id0 = best_of_lanes(&own.best[0], c), id1 = best_of_lanes(&own.best[1], c);
    if (c == 0 && r0 <= last) hints[r0] = min(id0, k - 1);
    if (c == 0 && r1 <= last) hints[r1] = min(id1, k - 1);
}
