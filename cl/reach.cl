// variants: -DDIAG=1 | -DNEAREST=3 -DBUCKETS=4
/*
 * Reach: how far from its component a row may lie before the screen might list another for it, and which others come first. That takes no
 * product with the row, as in k-means by distances between means (Elkan 2003): settle.cl spares most rows the screen.
 *
 * Let row x have q_h = s^2 <= Q. Feature by feature a_j (x - m_j)^2 + nu a_h (x - m_h)^2 is at least what it is between the means, so for
 * any nu > 0
 *   q_j + nu q_h >= H = sum (m_h - m_j)^2 / (1 / a_j + 1 / (nu a_h)).
 * By the bounds of screen.cl, with its g and constants, v_k + q_k lies within g (4 q_k + 6 M_k). So the best lower logit is at least
 *   b - (1 + 4 g) q_h, b = c1_h - 6 g M_h,   and j is not listed if   u - (1 - 4 g) q_j, u = c2_j + 6 g M_j,
 * lies below its floor, (1 + 16 g) (B + log rho(B)) - 16 g Cmax - pad at a best B, which grows with B. With log rho taken at q_h = Q it is
 * enough that
 *   q_j - beta q_h >= E,   beta = (1 + 16 g) (1 + 4 g) / (1 - 4 g),   E = (u - (floor at q_h = 0)) / (1 - 4 g),
 * and for that, that H - (beta + nu) s^2 >= E. The root of (H - E) / (beta + nu), or of Q where it is less, is the reach of h before j.
 * What is listed could also matter, so a row within reach has no other candidate; and it is never one whose list in the screen overflows:
 * which rows are the dense engine's does not depend on settling. Q = 2 D + 64, as a row of h has q about D / 2. The best nu is near 1.2
 * sqrt(a_j / a_h), by the features' mean logarithms of a, which are 2 C / D but for a constant: another costs some reach, no more.
 *
 * Rounding. Means are taken as their m_hi, which moves m_k by e_k = |m_lo|_k in the norm sqrt(sum a_k t^2). H is a norm's square, too,
 * and no more than either's share in it, so sqrt(H) less e_j and sqrt(nu) e_h is sound, and so is s less e_h for a row's |x - m_hi|_h. All
 * else is sums, products and quotients of positive numbers, each off by (depth + 32) 2^-24 at most; roots halve that. Constants
 * are off by 2^-22 of their size and log rho by less than 1e-4. Where H overflows, or is no number, the reach is 0.
 *
 *             j ->  TILE components
 *        +------------+
 *   h |  | MICRO^2 a  |   a work-group of SIDE x SIDE; features pass through local memory, STEP at a time
 *     v  | work-item  |
 *        +------------+
 */
#pragma OPENCL FP_CONTRACT OFF
#include "depths.clh"
#include "row_cut.clh"

// DIAG: 1 for diagonal covariances (default 0).
#ifndef DIAG
#define DIAG 0
#endif
// NEAREST: others of a component that are told (default 15).
#ifndef NEAREST
#define NEAREST 15
#endif
#define SIDE 8
#define MICRO 4
#define STEP 32
#define TILE (SIDE * MICRO)
#define GROUP 64
// BUCKETS: of depths, that a work-group takes, a power of two up to 64 (default 1).
#ifndef BUCKETS
#define BUCKETS 1
#endif
#define SHARE (GROUP / BUCKETS)

// moved [k]: of each component the root of the largest new a over the old, the norm of its move by the new a, and the root of the least. A work-group
// each. m_hi, last_hi [k, d]; a, last_a: spherical [k, 2], of which the first counts; diagonal [k, d]. Roundings are those of the settled rows' own sums; what
// underflows is under 1e-16.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
reach_moved(uint d, __global const float *m_hi, __global const float *last_hi, __global const float *a, __global const float *last_a,
            __global float4 *moved)
{
    __local float part[GROUP], most[GROUP], least[GROUP];
    const uint lid = get_local_id(0), c = get_group_id(0);
    float sum = 0.0f, largest = 0.0f, smallest = INFINITY;
    for (uint f = lid; f < d; f += GROUP) {
        const ulong at = (ulong)c * d + f, at_a = DIAG ? at : 2 * c;
        const float t = m_hi[at] - last_hi[at], ratio = a[at_a] / last_a[at_a];
        sum += a[at_a] * t * t;
        largest = ratio > largest || ratio != ratio ? ratio : largest;
        smallest = ratio < smallest ? ratio : smallest;
    }
    part[lid] = sum;
    most[lid] = largest;
    least[lid] = smallest;
    for (uint step = GROUP / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < step) {
            part[lid] += part[lid + step];
            most[lid] = most[lid + step] > most[lid] || most[lid + step] != most[lid + step] ? most[lid + step] : most[lid];
            least[lid] = fmin(least[lid], least[lid + step]);
        }
    }
    if (lid == 0)
        moved[c] = (float4)(sqrt(most[0]) * (1.0f + 0x1p-20f),
                            sqrt(part[0]) * (1.0f + (float)(d + 32) * 0x1p-24f) + 1e-16f,
                            sqrt(least[0]) * (1.0f - 0x1p-20f), 0.0f);
}

// lost [DEPTHS]: what a row's depth (depths.clh) loses at most, by its bucket, as components go from the last parameters to these. SHARE work-items a
// bucket. last_c, constants: constants of screen.cl; last_bounds, bounds: theirs; last_off, off [k]: e_k; moved: of reach_moved.
//
// A component of C_k - q_k <= Cmax - z has q_k >= t = z - (Cmax - C_k), and its new root is at least s = r sqrt(t) - v, r the least ratio and v what
// means have moved by, their lower floats included. So its upper logit, as settle.cl has it, is c2 + 6 g M - (1 - 4 g) s^2 at most, and the loss is
// that less Cmax' plus z. Between a bucket's ends z - (1 - 4 g) r^2 t is linear, and 2 r v sqrt(t) grows.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
reach_depths(uint k, uint bounds_at, __global const float4 *last_c, __global const float *last_off,
             __global const float4 *constants, __global const float *off, __global const float4 *moved,
             __global float *lost)
{
    __local float most[GROUP];
    const uint lid = get_local_id(0), lane = lid % SHARE, bucket = get_group_id(0) * BUCKETS + lid / SHARE;
    const float4 last_bounds = last_c[bounds_at], bounds = constants[bounds_at];
    const float z0 = depth_edge(bucket), z1 = depth_edge(bucket + 1), g = bounds.y / 16.0f;
    float largest = -INFINITY;
    for (uint c = lane; c < k; c += SHARE) {
        const float4 was = last_c[c], now = constants[c], by = moved[c];
        const float size = fabs(was.x) + fabs(was.y) + fabs(last_bounds.z) + fabs(now.y) + fabs(bounds.z) + z1;
        // c2 is above C by 7 g M and rounding. A largest C that was made ahead (ahead.cl) is above the host's by less than 2^-21 of itself and 2e-6.
        const float below = last_bounds.z - was.y + 7.5f / 16.0f * last_bounds.y * was.w + 0x1p-20f * size + 1e-5f;
        const float t0 = fmax(z0 - below, 0.0f), t1 = fmax(z1 - below, 0.0f);
        const float v = (by.y + off[c] + by.x * last_off[c]) * (1.0f + 0x1p-20f), squared = (1.0f - 4.0f * g) * (by.z * by.z);
        float loss = z1;
        if (by.z * sqrt(t0) > v)
            loss = fmax(z0 - squared * t0, z1 - squared * t1) + (2.0f * by.z * v * sqrt(t1) - (1.0f - 5.0f * g) * v * v);
        loss += (now.y - bounds.z) + 6.0f * g * now.w + 0x1p-20f * size + 1e-5f;
        largest = loss > largest || loss != loss ? loss : largest;
    }
    most[lid] = largest;
    for (uint step = SHARE / 2; step > 0; step /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane < step) most[lid] = most[lid + step] > most[lid] || most[lid + step] != most[lid + step] ? most[lid + step] : most[lid];
    }
    if (lane == 0) lost[bucket] = most[lid];
}

// nu. ch, cj: screen.cl's constants c1, c2, a, M, here and below.
static inline float balance(float4 ch, float4 cj, uint d)
{
    return 1.2f * exp(clamp((cj.y - ch.y) / (float)d, -20.0f, 20.0f));
}

// The reach of h before j: square = H.
static inline float reach_before(float square, float nu, float4 ch, float4 cj, float eh, float ej, uint d, float4 bounds)
{
    const float rounds = (float)(d + 32) * 0x1p-24f, q_most = 2.0f * (float)d + 64.0f, g = bounds.y / 16.0f;
    const float apart = sqrt(square) * (1.0f - rounds) - (ej + sqrt(nu) * eh) * (1.0f + rounds);
    const float b = ch.x - 6.0f * g * ch.w, u = cj.y + 6.0f * g * cj.w;
    const float log_rho = bounds.x < 0.0f ? row_cut(bounds.x, bounds.z, b - (1.0f + 4.0f * g) * q_most) : 0.0f;
    const float floor_v = (1.0f + bounds.y) * (b + log_rho) - bounds.y * bounds.z - bounds.w;
    const float pad = 1e-4f + 0x1p-22f * (fabs(b) + fabs(u) + fabs(log_rho) + fabs(bounds.z));
    const float e = (u - floor_v + pad) / (1.0f - 4.0f * g);
    const float beta = (1.0f + bounds.y) * (1.0f + 4.0f * g) / (1.0f - 4.0f * g) * (1.0f + 0x1p-20f);
    const float most = (apart * apart - e) / (beta + nu);
    const float left = sqrt(q_most < most ? q_most : most) * (1.0f - 2.0f * rounds) - eh;
    return square < 1e37f && apart > 0.0f && left > 0.0f ? left : 0.0f;
}

// between [h_n, k]: of components h0 .. h0 + h_n - 1. m_hi [k, d]; a as above; constants [k], and at bounds_at bounds, of screen.cl; off [k]: e_k.
// Global size: k by h_n, MICRO each.
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
reach_between(uint h0, uint h_n, uint k, uint d, __global const float *m_hi, __global const float *a,
              __global const float4 *constants, uint bounds_at, __global const float *off, __global float *between)
{
    __local float mh[STEP][TILE + 1], mj[STEP][TILE + 1];
#if DIAG
    __local float ah[STEP][TILE + 1], aj[STEP][TILE + 1]; // 1 / a
#endif
    __local float squares[TILE][TILE + 1];
    const uint lx = get_local_id(0), ly = get_local_id(1), lid = ly * SIDE + lx;
    const uint first_h = h0 + get_group_id(1) * TILE, first_j = get_group_id(0) * TILE;
    float square[MICRO][MICRO];
#if DIAG
    float inverse[MICRO][MICRO]; // of nu
#endif
#pragma unroll
    for (uint i = 0; i < MICRO; i++)
#pragma unroll
        for (uint j = 0; j < MICRO; j++) {
            square[i][j] = 0.0f;
#if DIAG
            inverse[i][j] = 1.0f / balance(constants[min(first_h + ly + i * SIDE, k - 1)], constants[min(first_j + lx + j * SIDE, k - 1)], d);
#endif
        }
    for (uint f0 = 0; f0 < d; f0 += STEP) {
        for (uint at = lid; at < TILE * STEP; at += SIDE * SIDE) {
            // Components and features beyond the last are the last again: no such component is asked for, nor adds such a feature.
            const uint line = at / STEP, f = at % STEP;
            const int in = f0 + f < d;
            const ulong at_h = (ulong)min(first_h + line, k - 1) * d + min(f0 + f, d - 1);
            const ulong at_j = (ulong)min(first_j + line, k - 1) * d + min(f0 + f, d - 1);
            mh[f][line] = in ? m_hi[at_h] : 0.0f;
            mj[f][line] = in ? m_hi[at_j] : 0.0f;
#if DIAG
            ah[f][line] = 1.0f / a[at_h];
            aj[f][line] = 1.0f / a[at_j];
#endif
        }
        barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll 4
        for (uint f = 0; f < STEP; f++)
#pragma unroll
            for (uint i = 0; i < MICRO; i++)
#pragma unroll
                for (uint j = 0; j < MICRO; j++) {
                    const float t = mh[f][ly + i * SIDE] - mj[f][lx + j * SIDE];
#if DIAG
                    square[i][j] += t * t / (aj[f][lx + j * SIDE] + inverse[i][j] * ah[f][ly + i * SIDE]);
#else
                    square[i][j] = fma(t, t, square[i][j]);
#endif
                }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
#pragma unroll
    for (uint i = 0; i < MICRO; i++)
#pragma unroll
        for (uint j = 0; j < MICRO; j++) squares[ly + i * SIDE][lx + j * SIDE] = square[i][j];
    barrier(CLK_LOCAL_MEM_FENCE);
    const float4 bounds = constants[bounds_at];
    for (uint at = lid; at < TILE * TILE; at += SIDE * SIDE) {
        const uint h = first_h + at / TILE, c = first_j + at % TILE;
        if (c >= k || h >= h0 + h_n) continue;
        const float4 ch = constants[h], cj = constants[c];
        const float nu = balance(ch, cj, d);
        float apart = squares[at / TILE][at % TILE];
#if !DIAG
        apart /= 1.0f / a[2 * c] + 1.0f / nu / a[2 * h];
#endif
        between[(ulong)(h - h0) * k + c] = c == h ? INFINITY : reach_before(apart, nu, ch, cj, off[h], off[c], d, bounds);
    }
}

// nearest [k, NEAREST + 1], of components h0 ..: (reach before it, as its bits, and its number) of the others, the least reaches first,
// those of one reach by number; infinite reaches where there are no more. A work-group a component.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
reach_nearest(uint h0, uint k, __global const float *between, __global uint2 *nearest)
{
    __local float reaches[GROUP];
    __local uint ids[GROUP];
    const uint lid = get_local_id(0);
    __global const float *row = between + (ulong)get_group_id(0) * k;
    __global uint2 *out = nearest + (ulong)(h0 + get_group_id(0)) * (NEAREST + 1);
    float last = -1.0f; // the one before
    uint last_id = 0;
    for (uint i = 0; i <= NEAREST; i++) {
        float best = INFINITY;
        uint best_id = k;
        for (uint j = lid; j < k; j += GROUP) {
            const float v = row[j];
            if (v < best && (v > last || (v == last && j > last_id))) {
                best = v;
                best_id = j;
            }
        }
        reaches[lid] = best;
        ids[lid] = best_id;
        for (uint step = GROUP / 2; step > 0; step /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            if (lid < step && (reaches[lid + step] < reaches[lid] ||
                               (reaches[lid + step] == reaches[lid] && ids[lid + step] < ids[lid]))) {
                reaches[lid] = reaches[lid + step];
                ids[lid] = ids[lid + step];
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        last = reaches[0];
        last_id = ids[0];
        if (lid == 0) out[i] = (uint2)(as_uint(last), last_id);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}
