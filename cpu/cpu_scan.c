/*
 * Distances of a few rows to a few queries: built once per instruction set, see cpu_vector.h.
 *
 * A tile of rows x queries keeps its sums in registers, so that a row is read and widened once for several queries.
 * Differences are taken before they are squared: a product form would lose digits far from the origin. Each sum has
 * one accumulator and one order, whatever the tile, so that a row and a query give the same bits in any company.
 * Rows and queries of bytes go through 16-bit differences and 32-bit sums, which are exact.
 */
#include <string.h>

#include "cpu_scan.h"

/* One query alone is bound by loads of rows: more of these at once hide the latency of the sums. */
enum {
    QUERIES = CPU_VECTOR_BYTES == 64 ? 4 : 2,
    FEW_ROWS = CPU_VECTOR_BYTES == 64 ? 4 : 2, /* of the tile with QUERIES queries */
    MANY_ROWS = 8,                             /* of the tile with one */
    ROWS_MAX = 8,
    WORDS = CPU_VECTOR_BYTES / 2
};

typedef int16_t vs __attribute__((vector_size(CPU_VECTOR_BYTES)));
typedef int16_t vs_any __attribute__((vector_size(CPU_VECTOR_BYTES), aligned(2), may_alias));

/* ---- elements as floats ---- */

static inline __attribute__((always_inline)) vf bytes_as_floats(const void *p, const int is_signed) {
#if CPU_VECTOR_BYTES == 64
    __m128i b = _mm_loadu_si128(p);
    return (vf)_mm512_cvtepi32_ps(is_signed ? _mm512_cvtepi8_epi32(b) : _mm512_cvtepu8_epi32(b));
#elif CPU_VECTOR_BYTES == 32
    __m128i b = _mm_loadl_epi64(p);
    return (vf)_mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(b) : _mm256_cvtepu8_epi32(b));
#else
    vi v;
    for (int i = 0; i < FLOATS; i++) v[i] = is_signed ? ((const int8_t *)p)[i] : ((const uint8_t *)p)[i];
    return __builtin_convertvector(v, vf);
#endif
}

/* Finite halves: exponent and fraction moved into place, and the bias made up for by an exact product. */
static inline __attribute__((always_inline)) vf halves_as_floats(const void *p) {
#if CPU_VECTOR_BYTES == 64
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#else
    vi v;
#if CPU_VECTOR_BYTES == 32
    v = (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(p));
#else
    uint16_t half[FLOATS];
    memcpy(half, p, sizeof half);
    for (int i = 0; i < FLOATS; i++) v[i] = half[i];
#endif
    vf magnitude = (vf)((v & 0x7fff) << 13) * 0x1p112f;
    return (vf)((vi)magnitude | ((v & 0x8000) << 16));
#endif
}

static inline __attribute__((always_inline)) vf row_at(const char *row, int64_t j, const fgmm_dtype type) {
    switch (type) {
    case FGMM_F16: return halves_as_floats(row + 2 * j);
    case FGMM_U8: return bytes_as_floats(row + j, 0);
    case FGMM_I8: return bytes_as_floats(row + j, 1);
    default: return *(const vf_any *)(row + 4 * j);
    }
}

/* ---- sums ---- */

#if CPU_VECTOR_BYTES >= 32
static inline __m128 quarter(vf v) {
#if CPU_VECTOR_BYTES == 64
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 half = (__m256)v;
#endif
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#endif

/* out[i * step] = the sum of v[i]'s lanes, for four of them. */
static inline void four_sums(const vf *v, float *out) {
#if CPU_VECTOR_BYTES >= 32
    __m128 ab = _mm_hadd_ps(quarter(v[0]), quarter(v[1])), cd = _mm_hadd_ps(quarter(v[2]), quarter(v[3]));
    _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
#else
    for (int i = 0; i < 4; i++) out[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
#endif
}

/* The last d % FLOATS elements: of the vector that ends with the row those are kept, or, in a row shorter than a
 * vector, of a copy. */
static inline __attribute__((always_inline)) vf row_tail(const char *row, int64_t d, const fgmm_dtype type) {
    if (d >= FLOATS) return row_at(row, d - FLOATS, type);
    char copy[4 * FLOATS] = {0};
    memcpy(copy, row, (size_t)d * cpu_element_size(type));
    return row_at(copy, 0, type);
}

static inline vi tail_mask(int64_t d) {
    vi mask;
    int64_t rest = d % FLOATS;
    for (int i = 0; i < FLOATS; i++) mask[i] = d < FLOATS ? -(i < rest) : -(i >= FLOATS - rest);
    return mask;
}

static inline __attribute__((always_inline)) void add_term(vf *sum, vf x, vf q, vi mask, const int dot,
                                                           const int masked) {
    vf t = dot ? x : x - q;
    if (masked) t = (vf)((vi)t & mask);
    *sum += dot ? t * q : t * t;
}

static inline __attribute__((always_inline)) void float_tile(const fgmm_scan *s, const char *const *rows, int first,
                                                             const int n_rows, const int n_queries,
                                                             const fgmm_dtype type, const int dot, float *out) {
    const int64_t d = s->d, whole = d / FLOATS * FLOATS;
    const float *query[QUERIES];
    vf sum[QUERIES][ROWS_MAX];
    UNROLL(4)
    for (int b = 0; b < n_queries; b++) {
        query[b] = s->queries[first + b < s->n_queries ? first + b : s->n_queries - 1];
        UNROLL(8)
        for (int r = 0; r < n_rows; r++) sum[b][r] = (vf){0};
    }
    for (int64_t j = 0; j < whole; j += FLOATS) {
        vf q[QUERIES];
        UNROLL(4)
        for (int b = 0; b < n_queries; b++) q[b] = *(const vf_any *)(query[b] + j);
        UNROLL(8)
        for (int r = 0; r < n_rows; r++) {
            vf x = row_at(rows[r], j, type);
            UNROLL(4)
            for (int b = 0; b < n_queries; b++) add_term(&sum[b][r], x, q[b], (vi){0}, dot, 0);
        }
    }
    if (whole < d) {
        vi mask = tail_mask(d);
        int64_t at = d < FLOATS ? 0 : d - FLOATS;
        for (int r = 0; r < n_rows; r++) {
            vf x = row_tail(rows[r], d, type);
            for (int b = 0; b < n_queries; b++) add_term(&sum[b][r], x, *(const vf_any *)(query[b] + at), mask, dot, 1);
        }
    }
    for (int b = 0; b < n_queries && first + b < s->n_queries; b++) {
        float four[ROWS_MAX];
        for (int r = n_rows; r < 4; r++) sum[b][r] = (vf){0};
        for (int r = 0; r < n_rows; r += 4) four_sums(sum[b] + r, four + r);
        memcpy(out + (first + b) * FGMM_SCAN_ROWS, four, (size_t)n_rows * sizeof *four);
    }
}

/* ---- bytes ---- */

#if defined(__SSE2__)

static inline __attribute__((always_inline)) vs words_at(const char *p, const int is_signed) {
#if CPU_VECTOR_BYTES == 64
    __m256i b = _mm256_loadu_si256((const void *)p);
    return (vs)(is_signed ? _mm512_cvtepi8_epi16(b) : _mm512_cvtepu8_epi16(b));
#elif CPU_VECTOR_BYTES == 32
    __m128i b = _mm_loadu_si128((const void *)p);
    return (vs)(is_signed ? _mm256_cvtepi8_epi16(b) : _mm256_cvtepu8_epi16(b));
#else
    __m128i b = _mm_loadl_epi64((const void *)p), zero = _mm_setzero_si128();
    return (vs)(is_signed ? _mm_srai_epi16(_mm_unpacklo_epi8(zero, b), 8) : _mm_unpacklo_epi8(b, zero));
#endif
}

/* Sums of neighbouring products. */
static inline vi products(vs a, vs b) {
#if CPU_VECTOR_BYTES == 64
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif CPU_VECTOR_BYTES == 32
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
}

static inline int32_t sum_words(vi v) {
    int32_t sum = 0;
#if CPU_VECTOR_BYTES == 64
    sum = _mm512_reduce_add_epi32((__m512i)v);
#else
    for (int i = 0; i < FLOATS; i++) sum += v[i];
#endif
    return sum;
}

static inline __attribute__((always_inline)) void word_tile(const fgmm_scan *s, const char *const *rows, int first,
                                                            const int n_rows, const int n_queries, const int is_signed,
                                                            const int dot, float *out) {
    const int64_t d = s->d, whole = d / WORDS * WORDS;
    const int16_t *query[QUERIES];
    vi sum[QUERIES][ROWS_MAX];
    UNROLL(4)
    for (int b = 0; b < n_queries; b++) {
        query[b] = s->queries[first + b < s->n_queries ? first + b : s->n_queries - 1];
        UNROLL(8)
        for (int r = 0; r < n_rows; r++) sum[b][r] = (vi){0};
    }
    for (int64_t j = 0; j < whole; j += WORDS) {
        vs q[QUERIES];
        UNROLL(4)
        for (int b = 0; b < n_queries; b++) q[b] = *(const vs_any *)(query[b] + j);
        UNROLL(8)
        for (int r = 0; r < n_rows; r++) {
            vs x = words_at(rows[r] + j, is_signed);
            UNROLL(4)
            for (int b = 0; b < n_queries; b++) {
                vs t = dot ? x : x - q[b];
                sum[b][r] += products(t, dot ? q[b] : t);
            }
        }
    }
    for (int b = 0; b < n_queries && first + b < s->n_queries; b++)
        for (int r = 0; r < n_rows; r++) {
            int32_t total = sum_words(sum[b][r]);
            for (int64_t j = whole; j < d; j++) {
                int32_t x = is_signed ? ((const int8_t *)rows[r])[j] : ((const uint8_t *)rows[r])[j], q = query[b][j];
                total += dot ? x * q : (x - q) * (x - q);
            }
            out[(first + b) * FGMM_SCAN_ROWS + r] = (float)total;
        }
}

#else

static inline __attribute__((always_inline)) void word_tile(const fgmm_scan *s, const char *const *rows, int first,
                                                            const int n_rows, const int n_queries, const int is_signed,
                                                            const int dot, float *out) {
    for (int b = 0; b < n_queries && first + b < s->n_queries; b++)
        for (int r = 0; r < n_rows; r++) {
            const int16_t *query = s->queries[first + b];
            int32_t total = 0;
            for (int64_t j = 0; j < s->d; j++) {
                int32_t x = is_signed ? ((const int8_t *)rows[r])[j] : ((const uint8_t *)rows[r])[j], q = query[j];
                total += dot ? x * q : (x - q) * (x - q);
            }
            out[(first + b) * FGMM_SCAN_ROWS + r] = (float)total;
        }
}

#endif

/* ---- tiles ---- */

/* n_rows rows against all queries. `whole` and `dot` are constants where this is called. */
static inline __attribute__((always_inline)) void all_queries(const fgmm_scan *s, const char *const *rows, float *out,
                                                              const int n_rows, const int n_queries,
                                                              const fgmm_dtype type, const int whole, const int dot) {
    for (int b = 0; b < s->n_queries; b += n_queries) {
        if (whole)
            word_tile(s, rows, b, n_rows, n_queries, type == FGMM_I8, dot, out);
        else
            float_tile(s, rows, b, n_rows, n_queries, type, dot, out);
    }
}

/* Rows that lie anywhere are on their way before their turn comes. */
static inline void fetch(const fgmm_scan *s, int first, int n) {
    int64_t bytes = s->d * (int64_t)cpu_element_size(s->type);
    for (int r = first; r < first + n && r < s->n_rows; r++)
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)s->rows[r] + at);
}

/* Rows in groups; the last one is filled up with its last row, into room that out has beyond n_rows. */
static inline __attribute__((always_inline)) void scan_as(const fgmm_scan *s, const fgmm_dtype type, const int whole,
                                                          const int dot) {
    const int alone = s->n_queries == 1, step = alone ? MANY_ROWS : FEW_ROWS;
    for (int first = 0; first < s->n_rows; first += step) {
        const char *rows[ROWS_MAX];
        for (int r = 0; r < step; r++) rows[r] = s->rows[first + r < s->n_rows ? first + r : s->n_rows - 1];
        fetch(s, first + step, step);
        if (alone)
            all_queries(s, rows, s->out + first, MANY_ROWS, 1, type, whole, dot);
        else
            all_queries(s, rows, s->out + first, FEW_ROWS, QUERIES, type, whole, dot);
    }
}

static void scan_f32(const fgmm_scan *s) {
    s->dot ? scan_as(s, FGMM_F32, 0, 1) : scan_as(s, FGMM_F32, 0, 0);
}
static void scan_f16(const fgmm_scan *s) {
    s->dot ? scan_as(s, FGMM_F16, 0, 1) : scan_as(s, FGMM_F16, 0, 0);
}
static void scan_u8(const fgmm_scan *s) {
    s->dot ? scan_as(s, FGMM_U8, 0, 1) : scan_as(s, FGMM_U8, 0, 0);
}
static void scan_i8(const fgmm_scan *s) {
    s->dot ? scan_as(s, FGMM_I8, 0, 1) : scan_as(s, FGMM_I8, 0, 0);
}
static void scan_u8_whole(const fgmm_scan *s) {
    s->dot ? scan_as(s, FGMM_U8, 1, 1) : scan_as(s, FGMM_U8, 1, 0);
}
static void scan_i8_whole(const fgmm_scan *s) {
    s->dot ? scan_as(s, FGMM_I8, 1, 1) : scan_as(s, FGMM_I8, 1, 0);
}

void CPU_OWN(scan)(const fgmm_scan *s) {
    switch (s->type) {
    case FGMM_F16: scan_f16(s); break;
    case FGMM_U8: s->whole ? scan_u8_whole(s) : scan_u8(s); break;
    case FGMM_I8: s->whole ? scan_i8_whole(s) : scan_i8(s); break;
    default: scan_f32(s); break;
    }
}
