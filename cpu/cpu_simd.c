/*
 * The kernels, in vector types of the compiler: built once per instruction set with
 *   CPU_TABLE         name of the table
 *   CPU_NAME          name of the instruction set
 *   CPU_VECTOR_BYTES  16, 32 or 64
 *   CPU_ROWS, CPU_VECTORS  the micro-tile of the screen: rows x vectors of components kept in registers
 */
#include <math.h>
#include <string.h>

#include "cpu.h"

#if CPU_VECTOR_BYTES != 16 && CPU_VECTOR_BYTES != 32 && CPU_VECTOR_BYTES != 64
#error "CPU_VECTOR_BYTES must be 16, 32 or 64"
#endif
#if CPU_VECTOR_BYTES > 16
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { FLOATS = CPU_VECTOR_BYTES / 4, DOUBLES = CPU_VECTOR_BYTES / 8, PANEL = FLOATS * CPU_VECTORS, ROWS = CPU_ROWS };

typedef float vf __attribute__((vector_size(CPU_VECTOR_BYTES)));
typedef double vd __attribute__((vector_size(CPU_VECTOR_BYTES)));
typedef double vd_any __attribute__((vector_size(CPU_VECTOR_BYTES), aligned(8), may_alias));
typedef int64_t vl __attribute__((vector_size(CPU_VECTOR_BYTES)));

#define UNROLL(n) _Pragma(UNROLL_TEXT(GCC unroll n))
#define UNROLL_TEXT(x) #x

static inline vd load(const double *p) {
    return *(const vd_any *)p;
}
static inline void store(double *p, vd v) {
    *(vd_any *)p = v;
}
static inline vd splat(double x) {
    return x - (vd){0};
}
static inline vd blend(vl mask, vd yes, vd no) {
    return (vd)((mask & (vl)yes) | (~mask & (vl)no));
}

/* Lanes in a fixed order. */
static inline double sum_lanes(vd v) {
    double sum = 0;
    for (int i = 0; i < DOUBLES; i++) sum += v[i];
    return sum;
}

/* 1 if any lane is not below its threshold; a NaN is not below. */
static inline int any_not_below(vf t, vf threshold) {
#if CPU_VECTOR_BYTES == 64
    return _mm512_cmp_ps_mask((__m512)t, (__m512)threshold, _CMP_NLT_UQ) != 0;
#elif CPU_VECTOR_BYTES == 32
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)t, (__m256)threshold, _CMP_NLT_UQ)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps(_mm_cmpnlt_ps((__m128)t, (__m128)threshold)) != 0;
#else
    int any = 0;
    for (int i = 0; i < FLOATS; i++) any |= !(t[i] < threshold[i]);
    return any;
#endif
}

/* ---- screen ---- */

static void pack_rows(const cpu_pack *pack, const float *x, int n, float *packed, float *norm) {
    int64_t d = pack->d, depth = pack->depth;
    for (int from = 0; from < n; from += ROWS) {
        float *out = packed + from * depth;
        for (int r = 0; r < ROWS; r++) {
            const float *row = x + (int64_t)(from + r) * d;
            float sum = 0;
            if (from + r >= n) {
                for (int64_t j = 0; j < depth; j++) out[j * ROWS + r] = 0;
                continue;
            }
            for (int64_t j = 0; j < d; j++) {
                float xs = row[j] * pack->scale[j];
                if (pack->diag) {
                    out[j * ROWS + r] = xs * xs;
                    out[(d + j) * ROWS + r] = xs;
                } else {
                    out[j * ROWS + r] = xs;
                    sum += xs * xs;
                }
            }
            norm[from + r] = sum;
        }
    }
}

/* Below it a component may be dropped, given the row's best lower logit: B + log rho, less the slack of cpu_pack.c. */
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

/* The rare path: some component of the panel may matter for row r. */
static void take_candidates(const cpu_pack *pack, int64_t first, const float *t, cpu_screen_rows *rows, int r) {
    int64_t live = pack->live - first < PANEL ? pack->live - first : PANEL;
    if (rows->count[r] > CPU_CANDIDATES) return;
    for (int64_t c = 0; c < live; c++) {
        float lower = t[c] - pack->gap[first + c];
        if (!(fabsf(lower) < 3e38f)) { /* overflow: f32 cannot judge this row */
            rows->count[r] = CPU_CANDIDATES + 1;
            rows->threshold[r] = INFINITY;
            return;
        }
        if (lower > rows->best[r]) rows->best[r] = lower;
    }
    rows->threshold[r] = threshold_of(pack, rows->best[r]);
    for (int64_t c = 0; c < live; c++) {
        if (t[c] < rows->threshold[r]) continue;
        if (rows->count[r] == CPU_CANDIDATES) thin_candidates(rows, r);
        if (rows->count[r] == CPU_CANDIDATES) {
            rows->count[r] = CPU_CANDIDATES + 1;
            rows->threshold[r] = INFINITY;
            return;
        }
        rows->id[r][rows->count[r]] = (int32_t)(first + c);
        rows->score[r][rows->count[r]++] = t[c];
    }
}

/* ROWS x PANEL upper scores: t = upper + acc, or two_a acc - a |xs|^2 + upper where spherical. */
static inline void micro_tile(const cpu_pack *pack, const float *restrict packed, const float *restrict coef,
                              int64_t first, const float *norm, vf t[ROWS][CPU_VECTORS]) {
    vf acc[ROWS][CPU_VECTORS];
    UNROLL(16)
    for (int r = 0; r < ROWS; r++) UNROLL(4)
    for (int v = 0; v < CPU_VECTORS; v++) acc[r][v] = (vf){0};
    for (int64_t j = 0; j < pack->depth; j++) {
        vf b[CPU_VECTORS];
        UNROLL(4)
        for (int v = 0; v < CPU_VECTORS; v++) b[v] = *(const vf *)(coef + j * PANEL + v * FLOATS);
        UNROLL(16)
        for (int r = 0; r < ROWS; r++) {
            vf x = packed[j * ROWS + r] - (vf){0};
            UNROLL(4)
            for (int v = 0; v < CPU_VECTORS; v++) acc[r][v] += x * b[v];
        }
    }
    for (int v = 0; v < CPU_VECTORS; v++) {
        vf upper = *(const vf *)(pack->upper + first + v * FLOATS);
        if (pack->diag) {
            UNROLL(16)
            for (int r = 0; r < ROWS; r++) t[r][v] = acc[r][v] + upper;
        } else {
            vf two_a = *(const vf *)(pack->two_a + first + v * FLOATS), a = *(const vf *)(pack->a + first + v * FLOATS);
            UNROLL(16)
            for (int r = 0; r < ROWS; r++) t[r][v] = two_a * acc[r][v] + (upper - a * norm[r]);
        }
    }
}

static void screen(const cpu_pack *pack, const float *packed, int n, cpu_screen_rows *rows) {
    for (int r = 0; r < n; r++) {
        rows->best[r] = rows->threshold[r] = -INFINITY;
        rows->count[r] = 0;
    }
    for (int64_t first = 0; first < pack->live; first += PANEL) {
        const float *coef = pack->coef + first * pack->depth;
        for (int from = 0; from < n; from += ROWS) {
            vf t[ROWS][CPU_VECTORS];
            micro_tile(pack, packed + from * pack->depth, coef, first, rows->norm + from, t);
            for (int r = 0; r < ROWS && from + r < n; r++) {
                vf threshold = rows->threshold[from + r] - (vf){0};
                int any = 0;
                for (int v = 0; v < CPU_VECTORS; v++) any |= any_not_below(t[r][v], threshold);
                if (any) take_candidates(pack, first, (const float *)t[r], rows, from + r);
            }
        }
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

/*
 * exp in double: x = n log 2 + r with |r| <= log(2)/2, a Taylor polynomial of degree 13 (remainder below 5e-18), and
 * 2^n put into the exponent. Within 2 ulp; 0 below -708, for x <= 709.
 */
static inline vd exp_vector(vd x) {
    const double log2e = 1.4426950408889634074, ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45,
                 magic = 0x1.8p52;
    vl tiny = x < -708.0;
    x = blend(tiny, splat(-708.0), x);
    vd shifted = x * log2e + magic, n = shifted - magic;
    vd r = (x - n * ln2_high) - n * ln2_low;
    vd p = splat(1.0 / 6227020800.0);
    static const double inverse_factorial[] = {1.0 / 479001600.0,
                                               1.0 / 39916800.0,
                                               1.0 / 3628800.0,
                                               1.0 / 362880.0,
                                               1.0 / 40320.0,
                                               1.0 / 5040.0,
                                               1.0 / 720.0,
                                               1.0 / 120.0,
                                               1.0 / 24.0,
                                               1.0 / 6.0,
                                               0.5,
                                               1.0,
                                               1.0};
    UNROLL(16)
    for (int i = 0; i < 13; i++) p = p * r + inverse_factorial[i];
    vl exponent = ((vl)shifted << 52) + ((vl)splat(1.0));
    return blend(tiny, splat(0.0), p * (vd)exponent);
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
        vd zero = load(s0), square = load(s2);
        for (int b = 0; b < CPU_BATCH; b++) zero += resp[b];
        store(s0, zero);
        for (int64_t j = 0; j < d; j++) {
            vd c = load(centre + j * DOUBLES), first = load(s1 + j * DOUBLES);
            if (pack->diag) square = load(s2 + j * DOUBLES);
            UNROLL(8)
            for (int b = 0; b < CPU_BATCH; b++) {
                vd t = x[b * d + j] - c, wt = resp[b] * t;
                first += wt;
                square += wt * t;
            }
            store(s1 + j * DOUBLES, first);
            if (pack->diag) store(s2 + j * DOUBLES, square);
        }
        if (!pack->diag) store(s2, square);
    }
}

extern const cpu_kernels CPU_TABLE;
const cpu_kernels CPU_TABLE = {.name = CPU_NAME,
                               .panel = PANEL,
                               .lanes = DOUBLES,
                               .pack_rows = pack_rows,
                               .screen = screen,
                               .distance = distance,
                               .accumulate = accumulate,
                               .dense_logits = dense_logits,
                               .exp_sum = exp_sum,
                               .responsibilities = responsibilities,
                               .dense_accumulate = dense_accumulate};
