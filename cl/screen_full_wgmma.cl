// target: nvptx64
// variants: -DSTEPS=1 | -DSTEPS=4 -DROW_FOURS=1 | -DSTEPS=5 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 | -DROW_TYPE=4 | -DROW_TYPE=5 -DROW_FOURS=1
/*
 * The screen for full covariances by Hopper's warpgroup products, to a depth of 128: which components can matter for a row.
 *
 *   y = V t,  t = S (x - c) - S (m - c),  q = 1/2 |y|^2,  V and S of whiten.cl, c the screen's centre
 *
 *  one component a step, copied to local memory in the background, STAGES ahead: V in f16, S (c - m) and S, constants
 *
 *        outputs 0 .. 63   64 .. 127          A warpgroup has 64 rows, as floats in registers. V is triangular: outputs 0 .. 63
 *      +-----------------+                    take the first 64 features alone, and where these rule a component out for all
 *  f   |    tile 0       |                    rows of the warpgroup, the other outputs are not taken.
 *      +-----------------+-----------+
 *      |    tile 1                   |        A lane has rows g and g + 8 of its warp's 16; the four lanes of a row agree on all
 *      +-----------------------------+        that is summed over it to the bit, and so each keeps its floor and its count.
 *
 * The bound. t is made in f32 and, like V, rounded to f16: off by 2^-11 of itself, or by 2^-25 where that is more, and by
 * 2^-22 |m - c| of what f32 leaves; sums are cut off as in screen_mma.cl. So with g = 2^-10 (1 + 2^-11) + 1.25 D 2^-23 + 8 2^-24
 *   |y^ - y| <= e := g A |t| + e0,     g A >= g || |V| ||_2 + D 2^-25,     e0 >= | |V| (2^-22 S |m - c| + S delta + 2^-25) |_2
 * and, for any delta in (0, 1), which the host takes near e / |y|, by (a - b)^2 >= (1 - delta) a^2 - (1 / delta - 1) b^2
 *   q >= (1 - delta) / 2 |y^|^2 - (1 / delta - 1) / 2 e^2,    q <= (1 + delta) / 2 |y^|^2 + (1 / delta + 1) / 2 e^2,
 * with e^2 <= 2 (g A)^2 |t|^2 + 2 e0^2: a sum over the row of |y^|^2 and of |t|^2 is all there is to take, and no root. The first
 * holds of any leading outputs with the features that they take. |t| is measured of what was rounded: the slack of e0 covers that.
 *
 * known: of each row's last best component, a lower logit to start from. That one is first on the row's list, and the walk leaves it
 * out. A row without one has its best searched by a walk before. What is listed here is more than the f32 screen would list;
 * lists that overflow, and rows beyond f16, are left to it.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "listed.clh"
#include "row_cut.clh"
#include "rows.clh"

// STEPS: steps of 16 features, 1 to 8 (default 8).
#ifndef STEPS
#define STEPS 8
#endif
// CAP: most candidates of a row (default 16).
#ifndef CAP
#define CAP 16
#endif
#if STEPS < 1 || STEPS > 8 || CAP < 1
#error "STEPS must be 1 to 8 and CAP positive"
#endif

#define GROUPS 3 // warpgroups of a work-group: as many as registers allow
#define TR (64 * GROUPS)
#define GROUP (128 * GROUPS)
#define STAGES 4
#define NT 8
#define LEAD (STEPS < 4 ? STEPS : 4) // steps that outputs 0 .. 63 take
#define REST (STEPS > 4 ? STEPS : 0) // steps that the others take
#define BLOCK 128                    // uint4 of a step's part of V: 64 outputs of 16 terms in f16
#define VECTORS ((LEAD + REST) * BLOCK)
#define CONSTANTS (VECTORS + 2 * 4 * STEPS)
#define STAGE ((CONSTANTS + 2 + 7) / 8 * 8) // uint4 of a component
#include "stages.clh"
// A floor is raised for a best logit this much higher: less is not worth a logarithm.
#define RAISE 0.5f
// Of |t|^2, beyond which f16 may not hold t.
#define NORM_MAX 4e9f

// One of a lane's two rows: its number in the slice, its list, and its sums for one component.
typedef struct {
    uint at, hint, count;
    int within;
    float best, floor_v; // a lower logit, and what an upper one must reach
    float square, norm;
} full_row;

static inline full_row start_row(uint r, uint n, uint row0, uint out0, uint k, float4 bounds, __global const uint *hints,
                                 __global const float4 *known, __global uint *cand_id, __global float *cand_v)
{
    full_row row;
    row.within = r < n;
    row.at = out0 + min(r, n - 1);
    row.hint = row.within ? hints[row0 + r] : 0;
    row.best = row.within ? -3e38f : 0.0f;
    row.count = 0;
    if (row.within && row.hint < k) {
        const float start = known[row.at].z;
        if (start > -1e38f && start < 1e38f) row.best = start;
        row.count = 1;
        if (get_local_id(0) % 4 == 0) {
            cand_id[(ulong)row.at * CAP] = row.hint;
            cand_v[(ulong)row.at * CAP] = INFINITY;
        }
    }
    row.floor_v = row.best > -1e38f ? floor_below(row.best, bounds) : -3e38f;
    return row;
}

// The fragment of four features of both rows: x scaled, less the mean; and their part of the norms.
static inline uint4 fragment(float4 x, float4 y, float4 scale, float4 shift, full_row *lower, full_row *upper)
{
    const float4 t = fma(x, scale, shift), u = fma(y, scale, shift);
    lower->norm = fma(t.x, t.x, fma(t.y, t.y, fma(t.z, t.z, fma(t.w, t.w, lower->norm))));
    upper->norm = fma(u.x, u.x, fma(u.y, u.y, fma(u.z, u.z, fma(u.w, u.w, upper->norm))));
    return mma_fragment(t, u);
}

#if REST
// Whether any work-item of the warpgroup says so.
static inline int warpgroup_any(int said, uint warpgroup)
{
    int any;
    asm volatile("bar.warp.sync -1;" ::: "memory");
    asm volatile("{ .reg .pred p, q; setp.ne.s32 p, %1, 0; bar.red.or.pred q, %2, 128, p; selp.s32 %0, 1, 0, q; }"
                 : "=r"(any)
                 : "r"(said), "r"(warpgroup + 1)
                 : "memory");
    return any;
}
#endif

// The sums of squares of the lane's accumulators.
#define ADD_SQUARES(lower, upper)                                                                                      \
    _Pragma("unroll") for (uint j = 0; j < NT; j++)                                                                    \
    {                                                                                                                  \
        lower.square = fma(acc[j].x, acc[j].x, fma(acc[j].y, acc[j].y, lower.square));                                 \
        upper.square = fma(acc[j].z, acc[j].z, fma(acc[j].w, acc[j].w, upper.square));                                 \
    }

// The upper logit after the outputs so far. above: constant, factors of |y^|^2 and of |t|^2.
static inline float upper_logit(float square, float norm, float4 above)
{
    return norm < NORM_MAX ? fma(-square, above.y, fma(norm, above.z, above.x)) : INFINITY;
}

// Whether the outputs so far leave a component to a row.
static inline int is_live(const full_row *row, uint id, float square, float norm, float4 above, int searching)
{
    if (!row->within || (id == row->hint && !searching)) return 0;
    return !(upper_logit(square, norm, above) < (searching ? row->best : row->floor_v));
}

// What a component that has all its outputs does to a row. below: as above, of the lower logit.
static inline void take(full_row *row, uint id, float square, float norm, float4 above, float4 below, int searching,
                        float4 bounds, __global uint *cand_id, __global float *cand_v)
{
    const float upper = upper_logit(square, norm, above);
    const float lower = norm < NORM_MAX ? fma(-square, below.y, fma(-norm, below.z, below.x)) : -INFINITY;
    if (searching) {
        row->best = fmax(row->best, lower);
        return;
    }
    if (upper < row->floor_v) return;
    if (lower > row->best + RAISE) {
        row->best = lower;
        row->floor_v = floor_below(lower, bounds);
    }
    if (row->count < CAP && get_local_id(0) % 4 == 0) {
        cand_id[(ulong)row->at * CAP + row->count] = id;
        cand_v[(ulong)row->at * CAP + row->count] = upper;
    }
    row->count++;
}

// The row's list as it ends: what the last floor rules out goes; what cannot be trusted is listed.
static inline void finish(const full_row *row, __global uint *cand_id, __global const float *cand_v,
                          __global uint *cand_count, __global uint2 *again)
{
    const ulong list = (ulong)row->at * CAP;
    const int sound = row->best > -1e38f && row->best < 1e38f && row->count > 0 && row->count <= CAP;
    uint kept = 0;
    if (!row->within) return;
    for (uint i = 0; sound && i < row->count; i++)
        if (!(cand_v[list + i] < row->floor_v)) cand_id[list + kept++] = cand_id[list + i];
    cand_count[row->at] = sound ? kept : CAP + 1;
    if (!sound) APPEND(again, (uint2)(row->at));
}

// Candidates of rows row0 .. row0 + n - 1 of the block go to out0 of the slice. centre [16 STEPS]; hints [block rows]; known
// [slice rows]; packed [k, STAGE], as arrange_full left it; bounds as of screen_full.cl. again: a list of the rows
// that the f32 screen must take, see listed.clh.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
screen_full_wgmma(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint k,
                  __global const float *centre, __global const uint4 *packed, float4 bounds, __global const uint *hints,
                  __global const float4 *known, __global uint *cand_id, __global float *cand_v,
                  __global uint *cand_count, __global uint2 *again)
{
    __local uint4 stages[STAGES * STAGE] __attribute__((aligned(128)));
    __local ulong full[STAGES], empty[STAGES];
    __local int any_cold; // whether any row starts without a floor

    const uint lid = get_local_id(0);
    const uint lane = lid % 32, warp = lid / 32, part = lane & 3;
    const uint r0 = get_group_id(0) * TR + warp * 16 + lane / 4;

    if (lid == 0) {
        any_cold = 0;
        stages_open(full, empty);
    }
    full_row lower = start_row(r0, n, row0, out0, k, bounds, hints, known, cand_id, cand_v);
    full_row upper = start_row(r0 + 8, n, row0, out0, k, bounds, hints, known, cand_id, cand_v);
    float4 x[STEPS], y[STEPS];
    {
        const ulong x0 = offset + (ulong)(row0 + min(r0, n - 1)) * pitch, y0 = offset + (ulong)(row0 + min(r0 + 8, n - 1)) * pitch;
#pragma unroll
        for (uint s = 0; s < STEPS; s++) {
            const uint f = 16 * s + 4 * part;
            x[s] = row_four(rows, x0, f, d) - vload4(f / 4, centre);
            y[s] = row_four(rows, y0, f, d) - vload4(f / 4, centre);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lower.best < -1e38f || upper.best < -1e38f) any_cold = 1;
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint searched = any_cold ? k : 0, steps = searched + k;
    if (lid == 0)
        for (uint step = 0; step < STAGES - 1 && step < steps; step++) stage(stages, full, packed, step, k);

    for (uint step = 0; step < steps; step++) {
        const uint id = step < k ? step : step - k, s = step % STAGES;
        const int searching = step < searched;
        if (searched && step == searched) {
            lower.floor_v = floor_below(lower.best, bounds);
            upper.floor_v = floor_below(upper.best, bounds);
        }
        __local const uint4 *staged = stages + s * STAGE;
        __local const float4 *shift = (__local const float4 *)(staged + VECTORS) + part, *scale = shift + 4 * STEPS;
        float4 acc[NT];
        uint4 a[STEPS];
        lower.square = upper.square = lower.norm = upper.norm = 0.0f;
        barrier_wait(full + s, (step / STAGES) & 1);
        const float4 above = *(__local const float4 *)(staged + CONSTANTS);
        const float4 below = *(__local const float4 *)(staged + CONSTANTS + 1);
#pragma unroll
        for (uint i = 0; i < LEAD; i++) a[i] = fragment(x[i], y[i], scale[4 * i], shift[4 * i], &lower, &upper);
#pragma unroll
        for (uint j = 0; j < NT; j++) acc[j] = (float4)(0.0f);
        const ulong b = wgmma_descriptor(staged, 128, 1024);
        asm volatile("bar.warp.sync -1;" ::: "memory");
        wgmma_fence();
#pragma unroll
        for (uint i = 0; i < LEAD; i++) WGMMA(acc, a[i], b + i * BLOCK);
        wgmma_commit();
        stage_next(stages, full, empty, packed, step, steps, k, lid);
        asm volatile("bar.warp.sync -1;" ::: "memory");
        WGMMA_WAIT(acc);
        ADD_SQUARES(lower, upper)
        float square0 = mma_row_sum(lower.square), square1 = mma_row_sum(upper.square);
        float norm0 = mma_row_sum(lower.norm), norm1 = mma_row_sum(upper.norm);
        const int live0 = is_live(&lower, id, square0, norm0, above, searching);
        const int live1 = is_live(&upper, id, square1, norm1, above, searching);
#if REST
        if (warpgroup_any(live0 || live1, warp / 4)) {
#pragma unroll
            for (uint i = LEAD; i < REST; i++) a[i] = fragment(x[i], y[i], scale[4 * i], shift[4 * i], &lower, &upper);
#pragma unroll
            for (uint j = 0; j < NT; j++) acc[j] = (float4)(0.0f);
            asm volatile("bar.warp.sync -1;" ::: "memory");
            wgmma_fence();
#pragma unroll
            for (uint i = 0; i < REST; i++) WGMMA(acc, a[i], b + (LEAD + i) * BLOCK);
            wgmma_commit();
            WGMMA_WAIT(acc);
            ADD_SQUARES(lower, upper)
            square0 = mma_row_sum(lower.square);
            square1 = mma_row_sum(upper.square);
            norm0 = mma_row_sum(lower.norm);
            norm1 = mma_row_sum(upper.norm);
        }
#endif
        if (live0) take(&lower, id, square0, norm0, above, below, searching, bounds, cand_id, cand_v);
        if (live1) take(&upper, id, square1, norm1, above, below, searching, bounds, cand_id, cand_v);
        asm volatile("bar.warp.sync -1;" ::: "memory");
        if (lane == 0) barrier_arrive(empty + s);
    }
    if (part == 0) {
        finish(&lower, cand_id, cand_v, cand_count, again);
        finish(&upper, cand_id, cand_v, cand_count, again);
    }
}
