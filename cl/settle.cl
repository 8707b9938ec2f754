// variants: -DDIAG=1 -DLANES=1 | -DROW_FOURS=1 -DLANES=8 -DGROUP=128 | -DROW_TYPE=2 -DROW_FOURS=1 | -DROW_TYPE=3 -DDIAG=1 | -DROW_TYPE=4 -DLANES=32 | -DROW_TYPE=5 -DROW_FOURS=1 -DDIAG=1 -DNEAREST=3 | -DLOGZ=1 -DROW_FOURS=1 | -DLOGZ=1 -DDOUBLES=1 | -DLOGZ=1 -DDIAG=1 -DDOUBLES=1 -DROW_TYPE=4 | -DLOGZ=1 -DDIAG=1 -DLANES=32
/*
 * Settle: rows that lie near to their last best component h, without a screen. Within the reach of h before all others (reach.cl), h alone
 * is a candidate, and the row is settled. Beyond it the few whose reaches are passed are looked at one by one: where one of them stays,
 * the row gets a place for its candidates (places.clh), from the last down. Rows that pass more than NEAREST get places from the first on, and are
 * the list for the screen.
 *
 *   q_k = sum a (x - m_hi)^2, k = h and those others
 *
 * All terms are positive, so f32 is off by (depth + 32) 2^-24 at most, and m_hi moves a root by e_k. As in reach.cl, k stays where the screen
 * might list it: where c2_k + 6 g M_k - (1 - 4 g) q_k may reach the floor below c1_h - 6 g M_h - (1 + 4 g) q_h. NaN counts as staying,
 * or as beyond reach.
 *
 * A row need not even be read where what is kept of it (depths.clh) says enough. With s' the norm by the new a of the distance to the new m_hi,
 *
 *   s' <= ratio s + |m_hi' - m_hi|',   ratio^2 the largest a' / a of h (reach_moved in reach.cl),
 *
 * and that bound is kept until the row is read again. Beyond a reach the row is settled all the same while all others, as deep as its z says after
 * they have moved (reach_depths), cannot come to its floor: a second bound, as Hamerly's for k-means (2010).
 *
 * The depth of a row for which others were looked at: u - (1 - 4 g) q of each of these; and of all whose reaches are r or more, the floor of a row
 * with q_h = r^2. For of these H >= E + (beta + nu) r^2 (reach.cl), so where q_h <= r^2, q_j >= H - nu q_h >= E + beta r^2.
 *
 * Where each row's log p(x) is asked for, all rows are read, and that of a settled one follows from the same sum, which is then one of squares.clh
 * about the mean itself: its root is off by less than what is allowed for above.
 *
 * LANES work-items share a row, four features at a time; a work-group takes GROUP rows, ROWS at a time.
 */
#pragma OPENCL FP_CONTRACT OFF
#include "depths.clh"
#include "places.clh"
#include "row_cut.clh"
#include "squares.clh"

// LANES: work-items a row, a power of two up to 64 (default 8).
#ifndef LANES
#define LANES 8
#endif
#if LANES < 1 || LANES > 64 || (LANES & (LANES - 1))
#error "LANES must be a power of two up to 64"
#endif
// NEAREST: as of reach.cl (default 15).
#ifndef NEAREST
#define NEAREST 15
#endif
#if NEAREST < 1 || CAP <= NEAREST
#error "CAP must be larger than NEAREST, which must be positive"
#endif
// LOGZ: 1 if log p(x) of settled rows is asked for (default 0).
#ifndef LOGZ
#define LOGZ 0
#endif
#if LOGZ
typedef square_t part_t;
#else
typedef float part_t;
#endif
// GROUP: work-items of a work-group, which takes as many rows, a multiple of LANES (default 64).
#ifndef GROUP
#define GROUP 64
#endif
#if GROUP < 1 || GROUP % LANES
#error "GROUP must be a multiple of LANES"
#endif
#define ROWS (GROUP / LANES)
#define AT_ONCE (LANES < 4 ? LANES : 4) // rounds of rows on their way together

// What is left of z once components have moved; NaN where it is not known.
static inline float moved_depth(float z, __global const float *lost)
{
    if (!lost || !(z >= 1.0f)) return NAN;
    const float less = lost[depth_bucket(z)];
    return (z - less) - 0x1p-22f * (fabs(less) + z);
}

// What the upper logit of another must reach, where q_h is at most `most` squared.
static inline float row_floor(float most, float4 ch, float4 bounds)
{
    const float g = bounds.y / 16.0f, q = (1.0f + 4.0f * g) * (most * most);
    const float best = (ch.x - 6.0f * g * ch.w) - q;
    return floor_below(best - (1e-4f + 0x1p-22f * (fabs(ch.x) + q)), bounds);
}

// Whether all others lie below that, as far as z and `most` are known.
static inline int is_alone(float z, float most, float4 ch, float4 bounds)
{
    return z >= 1.0f && most < INFINITY &&
           (bounds.z - z) + 0x1p-22f * (fabs(bounds.z) + z) < row_floor(most, ch, bounds);
}

// How deep those lie whose reaches are r or more.
static inline float depth_beyond(float r, float4 ch, float4 bounds)
{
    if (!(r < INFINITY)) return INFINITY; // there are none
    const float size = fabs(ch.x) + r * r;
    return depth_below(row_floor(r, ch, bounds), 3e-4f + 0x1p-20f * size, bounds);
}

// At least s, which is about m_hi; sums for log-densities are about the mean.
static inline float s_from(float most, float off_h)
{
    return LOGZ ? most + off_h : most;
}

// A lane's part of q of a row and component.
static inline float lane_sum(__global const row_t *rows, ulong x0, __global const float *m_hi, __global const float *a,
                             uint c, uint d, uint lane)
{
    const ulong m0 = (ulong)c * d;
    float4 sum = (float4)(0.0f);
    for (uint f = 4 * lane; f < d; f += 4 * LANES) {
        const float4 t = row_four(rows, x0, f, d) - float_four(m_hi, m0, f, d);
#if DIAG
        sum = fma(float_four(a, m0, f, d) * t, t, sum);
#else
        sum = fma(t, t, sum);
#endif
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// A lane's part of the sum that is wanted of a row and its own component.
static inline part_t own_sum(__global const row_t *rows, ulong x0, __global const float *m_hi, __global const float *m_lo,
                             __global const float *a, uint c, uint d, uint lane)
{
#if LOGZ
    squares_t sum = NO_SQUARES;
    for (uint f = 4 * lane; f < d; f += 4 * LANES) add_squares_of(&sum, row_four(rows, x0, f, d), m_hi, m_lo, a, c, f, d);
    return squares_total(sum);
#else
    return lane_sum(rows, x0, m_hi, a, c, d, lane);
#endif
}

// The sum of the lanes' parts.
static inline float q_of(__local const float *part, __global const float *a, uint c)
{
    float q = 0.0f;
    for (uint i = 0; i < LANES; i++) q += part[i];
#if !DIAG
    q *= a[2 * c];
#endif
    return q;
}

// Rows row0 .. row0 + n - 1 of the block, from out0 on of the slice. hints [block rows]; m_hi [k, d]; a: spherical
// [k, 2], of which the first counts, diagonal [k, d]. constants [k], and at bounds_at bounds, of screen.cl; off and nearest of reach.cl.
// place [slice rows]: of each row, or SETTLED. list: how many places were taken from either end, which may be more than there are, `room`;
// and of each place the slice's row and itself, as listed.clh takes them. row_bounds [block rows]: what is kept of each row; NULL: nothing.
// moved [k]: ratio, how far h has moved, and the least ratio, since that was written; NULL: it says nothing. lost [DEPTHS]: what
// depths have lost meanwhile; NULL: there are none. m_lo, kconst: of refine.cl, and row_logz [slice rows]: log p(x), all rows', which counts of
// settled ones alone; only with LOGZ.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void
settle(__global const row_t *rows, ulong offset, ulong pitch, uint row0, uint out0, uint n, uint d, uint k,
       __global const float *m_hi, __global const float *a, __global const float4 *constants, uint bounds_at,
       __global const float *off, __global const uint2 *nearest, __global const uint *hints, __global uint *cand_id,
       __global uint *cand_count, __global uint *place, __global uint2 *list, uint room, __global uint *row_bounds,
       __global const float4 *moved, __global const float *lost, __global const float *m_lo, __global const float4 *kconst,
       __global float2 *row_logz)
{
    __local part_t part[GROUP * (LANES + 1)];         // [row that is read, lane]
    __local float others[ROWS * NEAREST * LANES];    // [row, other, lane]
    __local float roots[GROUP];                      // of q_h of the rows that are read
    __local float depths[GROUP];                     // of all rows, as far as they are known
    __local uint passed[GROUP];                      // reaches that they pass
    __local uint reads[GROUP];                       // the rows that are read
    __local uint left[GROUP], looked[GROUP];         // of them, those for the screen, and those to look at
    __local uint n_reads, n_left, n_looked, list0;
    const uint lid = get_local_id(0), slot = lid / LANES, lane = lid % LANES;
    const uint first = get_group_id(0) * GROUP, last = n - 1 - first; // row of the group
    const float rounds = (float)(d + 32) * 0x1p-24f, root_most = sqrt(2.0f * (float)d + 64.0f);
    const float4 bounds = constants[bounds_at];

    if (lid == 0) n_reads = n_left = n_looked = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid <= last) {
        const uint row = row0 + first + lid, kept = moved ? row_bounds[row] : keep(INFINITY, NAN);
        depths[lid] = moved_depth(kept_z(kept), lost);
#if LOGZ
        reads[lid] = lid;
        if (lid == 0) n_reads = min(last + 1, (uint)GROUP);
#else
        const uint hint = hints[row], h = min(hint, k - 1);
        const float reach = fmin(root_most, as_float(nearest[(ulong)h * (NEAREST + 1)].x)), z = depths[lid];
        const float most = moved ? fma(moved[h].x, kept_s(kept), moved[h].y) * (1.0f + 0x1p-20f) : INFINITY;
        if (hint < k && (most < reach || is_alone(z, most + off[h], constants[h], bounds))) {
            place[out0 + first + lid] = SETTLED;
            row_bounds[row] = keep(most, z);
        } else {
            reads[atomic_inc(&n_reads)] = lid;
        }
#endif
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); // another work-item will write what is kept
    uint done = 0;
    for (; done + ROWS < n_reads; done += AT_ONCE * ROWS)
#pragma unroll
        for (uint i = 0; i < AT_ONCE; i++) {
            const uint at = min(done + i * ROWS + slot, n_reads - 1), row = row0 + first + reads[at];
            const part_t sum = own_sum(rows, offset + (ulong)row * pitch, m_hi, m_lo, a, min(hints[row], k - 1), d, lane);
            if (done + i * ROWS + slot < n_reads) part[at * (LANES + 1) + lane] = sum;
        }
    if (done + slot < n_reads) { // the last round alone, often the only one
        const uint at = done + slot, row = row0 + first + reads[at];
        part[at * (LANES + 1) + lane] =
            own_sum(rows, offset + (ulong)row * pitch, m_hi, m_lo, a, min(hints[row], k - 1), d, lane);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < n_reads) {
        const uint row = row0 + first + reads[lid], at = out0 + first + reads[lid], hint = hints[row], h = min(hint, k - 1);
#if LOGZ
        square_t sum = NO_SQUARE;
        for (uint i = 0; i < LANES; i++) sum = square_sum(sum, part[lid * (LANES + 1) + i]);
        const ff q = whole_square(sum, a, h);
        row_logz[at] = ff_sub((ff)(kconst[h].x, kconst[h].y), q);
        const float root = sqrt(q.x);
#else
        const float root = sqrt(q_of(part + lid * (LANES + 1), a, h));
#endif
        __global const uint2 *near = nearest + (ulong)h * (NEAREST + 1);
        // Beyond sqrt(Q) no reach says anything, of however few components.
        uint beyond = hint < k && root < root_most ? 0 : NEAREST + 1;
        while (beyond <= NEAREST && !(root < as_float(near[beyond].x))) beyond++;
        const float most = root * (1.0f + rounds), z = depths[reads[lid]];
        if (beyond && hint < k && is_alone(z, most + off[h], constants[h], bounds)) beyond = 0;
        roots[lid] = root;
        passed[lid] = beyond;
        if (beyond == 0)
            place[at] = SETTLED;
        else if (beyond <= NEAREST)
            looked[atomic_inc(&n_looked)] = lid;
        else
            left[atomic_inc(&n_left)] = at;
        // Each is written once: those of rows to look at below.
        if (row_bounds && (beyond == 0 || beyond > NEAREST)) row_bounds[row] = beyond ? keep(INFINITY, NAN) : keep(s_from(most, off[h]), z);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (done = 0; done < n_looked; done += ROWS) {
        const int within = done + slot < n_looked;
        const uint r = looked[within ? done + slot : 0], row = row0 + first + reads[r], h = hints[row];
        const uint all = within ? passed[r] : 0;
        __global const uint2 *near = nearest + (ulong)h * (NEAREST + 1);
        for (uint i = 0; i < all; i++)
            others[(slot * NEAREST + i) * LANES + lane] =
                lane_sum(rows, offset + (ulong)row * pitch, m_hi, a, near[i].y, d, lane);
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane == 0 && within) {
            const float g = bounds.y / 16.0f, most = roots[r] * (1.0f + rounds);
            const float floor_v = row_floor(most + off[h], constants[h], bounds);
            const uint at = out0 + first + reads[r];
            float z = depth_beyond(as_float(near[all].x), constants[h], bounds);
            uint stay = 0; // a bit each
            for (uint i = 0; i < all; i++) {
                const uint c = near[i].y;
                const float4 cc = constants[c];
                const float root = sqrt(q_of(others + (slot * NEAREST + i) * LANES, a, c)) * (1.0f - rounds) - off[c];
                const float q = root > 0.0f ? (1.0f - 4.0f * g) * (root * root) : 0.0f;
                const float upper = (cc.y + 6.0f * g * cc.w) - q, pad = 0x1p-22f * (fabs(cc.y) + q);
                if (!(upper + pad < floor_v)) stay |= 1u << i;
                z = fmin(z, depth_below(upper, pad, bounds));
            }
            if (row_bounds) row_bounds[row] = stay ? keep(INFINITY, NAN) : keep(s_from(most, off[h]), z);
            if (stay == 0) {
                place[at] = SETTLED;
            } else {
                const uint taken = atomic_inc((volatile __global uint *)list + 1), to = room - 1 - min(taken, room - 1);
                uint found = 1;
                place[at] = to;
                list[1 + to] = (uint2)(at, to);
                cand_id[(ulong)to * CAP] = h;
                for (uint i = 0; i < all; i++)
                    if (stay >> i & 1) cand_id[(ulong)to * CAP + found++] = near[i].y;
                cand_count[to] = found;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (lid == 0 && n_left) list0 = atomic_add((volatile __global uint *)list, n_left);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lid < n_left && list0 + lid < room) {
        place[left[lid]] = list0 + lid;
        list[1 + list0 + lid] = (uint2)(left[lid], list0 + lid);
    }
}
