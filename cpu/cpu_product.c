/* The product engine's kernels in f32: built once per instruction set, see cpu_vector.h; what they compute is in
 * cpu_products.c. */
#include <math.h>

#include "cpu_product.h"

/* Terms that are added up in one f32 before they go into the next. */
enum { RUN = 16, ROWS = CPU_ROWS };

static inline vd low_half(vf v) {
#if CPU_VECTOR_BYTES == 64
    return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
#elif CPU_VECTOR_BYTES == 32
    return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
#else
    vd out;
    for (int i = 0; i < DOUBLES; i++) out[i] = v[i];
    return out;
#endif
}

static inline vd high_half(vf v) {
#if CPU_VECTOR_BYTES == 64
    return (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif CPU_VECTOR_BYTES == 32
    return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    vd out;
    for (int i = 0; i < DOUBLES; i++) out[i] = v[DOUBLES + i];
    return out;
#endif
}

/* ---- logits ---- */

/* ROWS rows x `vectors` vectors of components from `first`: out = base + slope dot - part square, dot summed in two
 * levels. */
static inline __attribute__((always_inline)) void logits_tile(const cpu_products *p, const float *restrict x,
                                                              int64_t first, const int vectors, const double *square,
                                                              double *out) {
    const int64_t depth = p->depth, stride = p->stride, wide = p->wide;
    const float *restrict coef = p->coef + first * depth;
    vf sum[ROWS][CPU_VECTORS], total[ROWS][CPU_VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) total[r][v] = (vf){0};
    for (int64_t from = 0; from < depth; from += RUN) {
        int64_t to = from + RUN < depth ? from + RUN : depth;
        UNROLL(16)
        for (int r = 0; r < ROWS; r++) UNROLL(4)
        for (int v = 0; v < vectors; v++) sum[r][v] = (vf){0};
        for (int64_t j = from; j < to; j++) {
            vf b[CPU_VECTORS];
            UNROLL(4)
            for (int v = 0; v < vectors; v++) b[v] = *(const vf *)(coef + (j * vectors + v) * FLOATS);
            UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                vf xr = splat_float(x[r * stride + j]);
                UNROLL(4)
                for (int v = 0; v < vectors; v++) sum[r][v] += xr * b[v];
            }
        }
        UNROLL(16)
        for (int r = 0; r < ROWS; r++) UNROLL(4)
        for (int v = 0; v < vectors; v++) total[r][v] += sum[r][v];
    }
    for (int v = 0; v < vectors; v++)
        for (int h = 0; h < 2; h++) {
            int64_t at = first + v * FLOATS + h * DOUBLES;
            vd base = load(p->base + at), slope = load(p->slope + at), part = load(p->part + at);
            UNROLL(16)
            for (int r = 0; r < ROWS; r++) {
                vd dot = h ? high_half(total[r][v]) : low_half(total[r][v]);
                store(out + r * wide + at, (base - part * square[r]) + slope * dot);
            }
        }
}

/* Logits [n, wide] of n rows x [n, stride], n a multiple of ROWS. square [n]. */
void CPU_OWN(product_logits)(const cpu_products *p, const float *x, const double *square, int n, double *out) {
    enum { PANEL = FLOATS * CPU_VECTORS };
    int64_t whole = p->wide / PANEL * PANEL, rest = (p->wide - whole) / FLOATS;
    for (int64_t first = 0; first < whole; first += PANEL)
        for (int r = 0; r < n; r += ROWS)
            logits_tile(p, x + r * p->stride, first, CPU_VECTORS, square + r, out + r * p->wide);
    for (int r = 0; rest && r < n; r += ROWS) {
        if (rest == 1) logits_tile(p, x + r * p->stride, whole, 1, square + r, out + r * p->wide);
#if CPU_VECTORS > 2
        if (rest == 2) logits_tile(p, x + r * p->stride, whole, 2, square + r, out + r * p->wide);
#endif
    }
}

/* ---- responsibilities ---- */

static inline vf join(vd low, vd high) {
#if CPU_VECTOR_BYTES == 64
    return (vf)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)low)), _mm512_cvtpd_ps((__m512d)high),
                                  1);
#elif CPU_VECTOR_BYTES == 32
    return (vf)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)low)),
                                    _mm256_cvtpd_ps((__m256d)high), 1);
#else
    vf out;
    for (int i = 0; i < DOUBLES; i++) out[i] = (float)low[i], out[DOUBLES + i] = (float)high[i];
    return out;
#endif
}

/* out [n] = exp(logits - top), n a multiple of FLOATS. @return their sum. */
double CPU_OWN(product_exp)(const double *logits, int64_t n, double top, float *out) {
    vd sum = {0};
    for (int64_t c = 0; c < n; c += FLOATS) {
        vd low = exp_vector(load(logits + c) - top), high = exp_vector(load(logits + c + DOUBLES) - top);
        sum += low + high;
        *(vf_any *)(out + c) = join(low, high);
    }
    return sum_lanes(sum);
}

/* e [n] times scale, or 0 where that is not above cut * least. @return how many stay. */
int64_t CPU_OWN(product_keep)(float *e, const float *least, int64_t n, float scale, float cut) {
    vi kept = {0};
    for (int64_t c = 0; c < n; c += FLOATS) {
        vf r = *(const vf_any *)(e + c) * scale;
        vi keep = r > cut * *(const vf_any *)(least + c);
        *(vf_any *)(e + c) = (vf)(keep & (vi)r);
        kept -= keep;
    }
    int64_t count = 0;
    for (int i = 0; i < FLOATS; i++) count += kept[i];
    return count;
}

/* ---- sums ---- */

/* s [ROWS, columns] of components from c0 += sum over n rows of r x: f32 over the rows of a batch, then double. */
static inline __attribute__((always_inline)) void sums_tile(const cpu_products *p, const float *restrict x,
                                                            const float *restrict r, int n, int64_t c0,
                                                            const int components, int64_t j0, const int vectors,
                                                            double *s) {
    const int64_t stride = p->stride, wide = p->wide;
    vf sum[ROWS][CPU_VECTORS];
    UNROLL(16)
    for (int c = 0; c < components; c++) UNROLL(4)
    for (int v = 0; v < vectors; v++) sum[c][v] = (vf){0};
    for (int i = 0; i < n; i++) {
        vf b[CPU_VECTORS];
        UNROLL(4)
        for (int v = 0; v < vectors; v++) b[v] = *(const vf_any *)(x + i * stride + j0 + v * FLOATS);
        UNROLL(16)
        for (int c = 0; c < components; c++) {
            vf rc = splat_float(r[i * wide + c0 + c]);
            UNROLL(4)
            for (int v = 0; v < vectors; v++) sum[c][v] += rc * b[v];
        }
    }
    for (int c = 0; c < components; c++)
        for (int v = 0; v < vectors; v++) {
            double *at = s + (c0 + c) * stride + j0 + v * FLOATS;
            store(at, load(at) + low_half(sum[c][v]));
            store(at + DOUBLES, load(at + DOUBLES) + high_half(sum[c][v]));
        }
}

/* s [wide, stride] += r' x over n rows: r [n, wide], x [n, stride]; wide a multiple of ROWS. */
void CPU_OWN(product_sums)(const cpu_products *p, const float *x, const float *r, int n, double *s) {
    enum { PANEL = FLOATS * CPU_VECTORS };
    for (int64_t c = 0; c < p->wide; c += ROWS) {
        int64_t j = 0;
        for (; j + PANEL <= p->stride; j += PANEL) sums_tile(p, x, r, n, c, ROWS, j, CPU_VECTORS, s);
        for (; j < p->stride; j += FLOATS) sums_tile(p, x, r, n, c, ROWS, j, 1, s);
    }
}
