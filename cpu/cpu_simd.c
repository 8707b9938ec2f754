/* The screen, the refinement and the dense engine in vector types: built once per instruction set, see cpu_vector.h. */
#include <math.h>
#include <string.h>

#include "cpu_matrix.h"
#include "cpu_product.h"
#include "cpu_scan.h"

enum { PANEL = FLOATS * CPU_VECTORS, ROWS = CPU_ROWS };

/* A bit for each lane that is not below its threshold; a NaN is not below. */
static inline unsigned not_below(vf t, vf threshold) {
#if CPU_VECTOR_BYTES == 64
    return _mm512_cmp_ps_mask((__m512)t, (__m512)threshold, _CMP_NLT_UQ);
#elif CPU_VECTOR_BYTES == 32
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)t, (__m256)threshold, _CMP_NLT_UQ));
#elif defined(__SSE2__)
    return (unsigned)_mm_movemask_ps(_mm_cmpnlt_ps((__m128)t, (__m128)threshold));
#else
    unsigned bits = 0;
    for (int i = 0; i < FLOATS; i++) bits |= (unsigned)!(t[i] < threshold[i]) << i;
    return bits;
#endif
}

/* ---- screen ---- */

static void widen(const float *x, int64_t n, double *out) {
    for (int64_t j = 0; j < n; j++) out[j] = x[j];
}

/* xs = (x - c) s, or [xs^2, xs] where diagonal. shifted: the centre has been taken off already. */
static void pack_rows(const cpu_pack *pack, const float *x, int64_t stride, int shifted, int n, float *packed,
                      float *norm) {
    int64_t d = pack->d, depth = pack->depth;
    const float *centre = pack->centre, *scale = pack->scale;
    for (int r = 0; r < n; r++) {
        const float *row = x + r * stride;
        float *square = packed + r * depth, *out = square + (pack->diag ? d : 0);
        if (shifted)
            for (int64_t j = 0; j < d; j++) out[j] = row[j] * scale[j];
        else
            for (int64_t j = 0; j < d; j++) out[j] = (row[j] - centre[j]) * scale[j];
        if (pack->diag) {
            for (int64_t j = 0; j < d; j++) square[j] = out[j] * out[j];
            continue;
        }
        vf sum = {0};
        float tail = 0;
        int64_t j = 0;
        for (; j + FLOATS <= d; j += FLOATS) {
            vf v = *(const vf_any *)(out + j);
            sum += v * v;
        }
        for (; j < d; j++) tail += out[j] * out[j];
        for (int i = 0; i < FLOATS; i++) tail += sum[i];
        norm[r] = tail;
    }
    int padded = (n + ROWS - 1) / ROWS * ROWS;
    memset(packed + n * depth, 0, (size_t)((padded - n) * depth) * sizeof *packed);
}

/* Below it a component may be dropped, given a lower bound of the row's log-density: B + log rho, less the slack of
 * cpu_pack.c. */
static float threshold_of(const cpu_pack *pack, float best) {
    float below = fabsf(pack->top - best) - pack->log_cut;
    float log_rho = pack->log_cut - logf(1 + 2 * below);
    return best + log_rho - pack->slope * (below + fabsf(best) - log_rho + 1);
}

/* Drops candidates that a higher maximum has ruled out since they came. */
static void thin_candidates(cpu_screen_rows *rows, int r) {
    int kept = 0;
    for (int i = 0; i < rows->count[r]; i++)
        if (!(rows->score[r][i] < rows->threshold[r])) {
            rows->id[r][kept] = rows->id[r][i];
            rows->score[r][kept++] = rows->score[r][i];
        }
    rows->count[r] = kept;
}

static void give_up(cpu_screen_rows *rows, int r) {
    rows->count[r] = CPU_CANDIDATES + 1;
    rows->threshold[r] = INFINITY;
}

/* The rare path: some components of a panel of `vectors` may matter for row r, whose upper scores are t. Only these
 * can raise its bound. */
static __attribute__((noinline)) void take_candidates(const cpu_pack *pack, int64_t first, int vectors, const vf *t,
                                                      cpu_screen_rows *rows, int r) {
    float best = rows->best[r];
    if (rows->count[r] > CPU_CANDIDATES) return;
    for (int v = 0; v < vectors; v++)
        for (unsigned any = not_below(t[v], splat_float(rows->threshold[r])); any; any &= any - 1) {
            int lane = __builtin_ctz(any);
            float lower = t[v][lane] - pack->gap[first + v * FLOATS + lane];
            if (!(fabsf(t[v][lane]) < 3e38f)) { /* overflow: f32 cannot judge this row */
                give_up(rows, r);
                return;
            }
            if (lower > best) best = lower;
        }
    if (best > rows->best[r]) {
        rows->best[r] = best;
        rows->threshold[r] = threshold_of(pack, best);
    }
    for (int v = 0; v < vectors; v++)
        for (unsigned any = not_below(t[v], splat_float(rows->threshold[r])); any; any &= any - 1) {
            int lane = __builtin_ctz(any);
            if (rows->count[r] == CPU_CANDIDATES) thin_candidates(rows, r);
            if (rows->count[r] == CPU_CANDIDATES) {
                give_up(rows, r);
                return;
            }
            rows->id[r][rows->count[r]] = (int32_t)(first + v * FLOATS + lane);
            rows->score[r][rows->count[r]++] = t[v][lane];
        }
}

/*
 * ROWS x `vectors` upper scores: t = upper + acc, or two_a acc - a |xs|^2 + upper where spherical; those not below a
 * row's threshold are taken. Products: x [ROWS, depth] with coefficients [depth, vectors].
 */
static inline __attribute__((always_inline)) void screen_tile(const cpu_pack *pack, const float *restrict x,
                                                              int64_t first, const int vectors, cpu_screen_rows *rows,
                                                              int from, int n) {
    const int64_t depth = pack->depth, width = vectors * FLOATS;
    const float *restrict coef = pack->coef + first * depth;
    vf t[ROWS][CPU_VECTORS];
    UNROLL(16)
    for (int r = 0; r < ROWS; r++) UNROLL(4)
    for (int v = 0; v < vectors; v++) t[r][v] = (vf){0};
    for (int64_t j = 0; j < depth; j++) {
        vf b[CPU_VECTORS];
        UNROLL(4)
        for (int v = 0; v < vectors; v++) b[v] = *(const vf *)(coef + j * width + v * FLOATS);
        UNROLL(16)
        for (int r = 0; r < ROWS; r++) {
            vf xr = splat_float(x[r * depth + j]);
            UNROLL(4)
            for (int v = 0; v < vectors; v++) t[r][v] += xr * b[v];
        }
    }
    unsigned any = 0;
    UNROLL(4)
    for (int v = 0; v < vectors; v++) {
        vf upper = *(const vf *)(pack->upper + first + v * FLOATS);
        if (pack->diag) {
            UNROLL(16)
            for (int r = 0; r < ROWS; r++) t[r][v] += upper;
        } else {
            vf two_a = *(const vf *)(pack->two_a + first + v * FLOATS), a = *(const vf *)(pack->a + first + v * FLOATS);
            UNROLL(16)
            for (int r = 0; r < ROWS; r++) t[r][v] = two_a * t[r][v] + (upper - a * rows->norm[from + r]);
        }
        UNROLL(16)
        for (int r = 0; r < ROWS; r++) any |= not_below(t[r][v], splat_float(rows->threshold[from + r]));
    }
    if (__builtin_expect(any == 0, 1)) return;
    for (int r = 0; r < ROWS && from + r < n; r++) {
        unsigned mine = 0;
        for (int v = 0; v < vectors; v++) mine |= not_below(t[r][v], splat_float(rows->threshold[from + r]));
        if (mine) take_candidates(pack, first, vectors, t[r], rows, from + r);
    }
}

/* rows->best holds a lower bound of each row's log-density, or -infinity. */
static void screen(const cpu_pack *pack, const float *packed, int n, cpu_screen_rows *rows) {
    int64_t whole = pack->live / PANEL * PANEL, rest = (pack->live - whole + FLOATS - 1) / FLOATS;
    for (int r = 0; r < n; r++) {
        rows->threshold[r] = rows->best[r] > -INFINITY ? threshold_of(pack, rows->best[r]) : -INFINITY;
        rows->count[r] = 0;
    }
    for (int r = n; r < (n + ROWS - 1) / ROWS * ROWS; r++) rows->threshold[r] = INFINITY, rows->norm[r] = 0;
    for (int64_t first = 0; first < whole; first += PANEL)
        for (int from = 0; from < n; from += ROWS)
            screen_tile(pack, packed + from * pack->depth, first, CPU_VECTORS, rows, from, n);
    for (int from = 0; rest && from < n; from += ROWS) {
        const float *x = packed + from * pack->depth;
        if (rest == 1) screen_tile(pack, x, whole, 1, rows, from, n);
#if CPU_VECTORS > 1
        if (rest == 2) screen_tile(pack, x, whole, 2, rows, from, n);
#endif
#if CPU_VECTORS > 2
        if (rest == 3) screen_tile(pack, x, whole, 3, rows, from, n);
#endif
    }
    for (int r = 0; r < n; r++)
        if (rows->count[r] <= CPU_CANDIDATES) thin_candidates(rows, r);
}

/* ---- refine and accumulate, a row and a component at a time ---- */

static double distance(const double *x, const double *mean, const double *half, int64_t d, int diag) {
    vd sum[2] = {{0}, {0}};
    double tail = 0;
    int64_t j = 0;
    if (diag) {
        for (; j + 2 * DOUBLES <= d; j += 2 * DOUBLES)
            for (int h = 0; h < 2; h++) {
                vd t = load(x + j + h * DOUBLES) - load(mean + j + h * DOUBLES);
                sum[h] += load(half + j + h * DOUBLES) * t * t;
            }
        for (; j < d; j++) tail += half[j] * (x[j] - mean[j]) * (x[j] - mean[j]);
        return sum_lanes(sum[0] + sum[1]) + tail;
    }
    for (; j + 2 * DOUBLES <= d; j += 2 * DOUBLES)
        for (int h = 0; h < 2; h++) {
            vd t = load(x + j + h * DOUBLES) - load(mean + j + h * DOUBLES);
            sum[h] += t * t;
        }
    for (; j < d; j++) tail += (x[j] - mean[j]) * (x[j] - mean[j]);
    return half[0] * (sum_lanes(sum[0] + sum[1]) + tail);
}

static void accumulate(const double *x, const double *centre, double wr, int64_t d, int diag, double *s1, double *s2) {
    vd square = {0};
    double tail = 0;
    int64_t j = 0;
    for (; j + DOUBLES <= d; j += DOUBLES) {
        vd t = load(x + j) - load(centre + j), wt = wr * t;
        store(s1 + j, load(s1 + j) + wt);
        if (diag)
            store(s2 + j, load(s2 + j) + wt * t);
        else
            square += wt * t;
    }
    for (; j < d; j++) {
        double t = x[j] - centre[j];
        s1[j] += wr * t;
        if (diag)
            s2[j] += wr * t * t;
        else
            tail += wr * t * t;
    }
    if (!diag) s2[0] += sum_lanes(square) + tail;
}

/* ---- dense: CPU_BATCH rows against all components, lanes across components ---- */

static int64_t groups_of(const cpu_pack *pack) {
    return (pack->live + DOUBLES - 1) / DOUBLES;
}

static void dense_logits(const cpu_pack *pack, const double *x, double *out) {
    int64_t d = pack->d, groups = groups_of(pack), wide = groups * DOUBLES;
    for (int64_t g = 0; g < groups; g++) {
        const double *mean = pack->means_t + g * d * DOUBLES;
        vd q[CPU_BATCH];
        UNROLL(8)
        for (int r = 0; r < CPU_BATCH; r++) q[r] = (vd){0};
        if (pack->diag) {
            const double *half = pack->half_t + g * d * DOUBLES;
            for (int64_t j = 0; j < d; j++) {
                vd m = load(mean + j * DOUBLES), a = load(half + j * DOUBLES);
                UNROLL(8)
                for (int r = 0; r < CPU_BATCH; r++) {
                    vd t = x[r * d + j] - m;
                    q[r] += a * t * t;
                }
            }
        } else {
            for (int64_t j = 0; j < d; j++) {
                vd m = load(mean + j * DOUBLES);
                UNROLL(8)
                for (int r = 0; r < CPU_BATCH; r++) {
                    vd t = x[r * d + j] - m;
                    q[r] += t * t;
                }
            }
            vd half = load(pack->half_t + g * DOUBLES);
            for (int r = 0; r < CPU_BATCH; r++) q[r] *= half;
        }
        vd offset = load(pack->offset + g * DOUBLES);
        for (int r = 0; r < CPU_BATCH; r++) {
            vd near = blend(q[r] < CPU_FARTHEST, q[r], splat(CPU_FARTHEST)); /* infinity and NaN too */
            store(out + r * wide + g * DOUBLES, offset - near);
        }
    }
}

/* The largest of n logits, a multiple of lanes, and its place; of equal ones the first. */
static double largest(const double *in, int64_t n, int64_t *place) {
    vd top = load(in);
    vl at = {0}, now = {0};
    for (int64_t c = DOUBLES; c < n; c += DOUBLES) {
        now += DOUBLES;
        vd l = load(in + c);
        vl higher = l > top;
        top = blend(higher, l, top);
        at = (higher & now) | (~higher & at);
    }
    int64_t best = 0;
    for (int64_t i = 1; i < DOUBLES; i++)
        if (top[i] > top[best] || (top[i] == top[best] && at[i] + i < at[best] + best)) best = i;
    *place = at[best] + best;
    return top[best];
}

static double exp_sum(const double *in, int64_t n, double shift) {
    vd sum = {0};
    for (int64_t c = 0; c < n; c += DOUBLES) sum += exp_vector(load(in + c) - shift);
    return sum_lanes(sum);
}

static int64_t responsibilities(double *logits, const double *log_weights, int64_t n, double log_z, double log_rho) {
    int64_t kept = 0;
    for (int64_t c = 0; c < n; c += DOUBLES) {
        vd l = load(logits + c) - log_z;
        vl keep = (l - load(log_weights + c)) > log_rho;
        vd r = blend(keep, exp_vector(l), splat(0.0));
        store(logits + c, r);
        vl count = r != 0;
        for (int i = 0; i < DOUBLES; i++) kept -= count[i];
    }
    return kept;
}

/* Of a batch and a group of components; each sum takes one row after the other, so that it does not matter which rows share a batch. */
static inline void accumulate_diag(const double *centre, const double *x, const vd *resp, int64_t d, double *s1,
                                   double *s2) {
    for (int64_t j = 0; j < d; j++) {
        vd c = load(centre + j * DOUBLES), first = load(s1 + j * DOUBLES), square = load(s2 + j * DOUBLES);
        UNROLL(8)
        for (int b = 0; b < CPU_BATCH; b++) {
            vd t = x[b * d + j] - c, wt = resp[b] * t;
            first += wt;
            square += wt * t;
        }
        store(s1 + j * DOUBLES, first);
        store(s2 + j * DOUBLES, square);
    }
}

static inline void accumulate_spherical(const double *centre, const double *x, const vd *resp, int64_t d, double *s1,
                                        double *s2) {
    vd squares[CPU_BATCH], sum = load(s2);
    for (int b = 0; b < CPU_BATCH; b++) squares[b] = splat(0.0);
    for (int64_t j = 0; j < d; j++) {
        vd c = load(centre + j * DOUBLES), first = load(s1 + j * DOUBLES);
        UNROLL(8)
        for (int b = 0; b < CPU_BATCH; b++) {
            vd t = x[b * d + j] - c, wt = resp[b] * t;
            first += wt;
            squares[b] += wt * t;
        }
        store(s1 + j * DOUBLES, first);
    }
    for (int b = 0; b < CPU_BATCH; b++) sum += squares[b];
    store(s2, sum);
}

static void dense_accumulate(const cpu_pack *pack, const double *x, const double *r, cpu_sums *sums) {
    int64_t d = pack->d, groups = groups_of(pack), wide = groups * DOUBLES;
    for (int64_t g = 0; g < groups; g++) {
        vd resp[CPU_BATCH], total = {0};
        for (int b = 0; b < CPU_BATCH; b++) total += resp[b] = load(r + b * wide + g * DOUBLES);
        if (sum_lanes(total) == 0) continue;
        sums->dense_touched[g] = 1;
        double *s0 = sums->dense_s0 + g * DOUBLES, *s1 = sums->dense_s1 + g * d * DOUBLES;
        double *s2 = sums->dense_s2 + (pack->diag ? g * d * DOUBLES : g * DOUBLES);
        const double *centre = pack->centres_t + g * d * DOUBLES;
        vd zero = load(s0);
        for (int b = 0; b < CPU_BATCH; b++) zero += resp[b];
        store(s0, zero);
        if (pack->diag)
            accumulate_diag(centre, x, resp, d, s1, s2);
        else
            accumulate_spherical(centre, x, resp, d, s1, s2);
    }
}

extern const cpu_kernels CPU_TABLE;
const cpu_kernels CPU_TABLE = {.name = CPU_NAME,
                               .panel = PANEL,
                               .floats = FLOATS,
                               .lanes = DOUBLES,
                               .strip = STRIP,
                               .rows = ROWS,
                               .widen = widen,
                               .pack_rows = pack_rows,
                               .screen = screen,
                               .distance = distance,
                               .accumulate = accumulate,
                               .dense_logits = dense_logits,
                               .largest = largest,
                               .exp_sum = exp_sum,
                               .responsibilities = responsibilities,
                               .dense_accumulate = dense_accumulate,
                               .whiten = CPU_OWN(whiten),
                               .deviate = CPU_OWN(deviate),
                               .scatter = CPU_OWN(scatter),
                               .product_logits = CPU_OWN(product_logits),
                               .product_exp = CPU_OWN(product_exp),
                               .product_keep = CPU_OWN(product_keep),
                               .product_sums = CPU_OWN(product_sums),
                               .scan = CPU_OWN(scan)};
