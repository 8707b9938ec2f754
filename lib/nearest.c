#include "nearest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "model.h"
#include "rng.h"

const char *fgmm_metric_name(fgmm_metric metric) {
    static const char *const names[] = {"l2", "angular", "inner_product"};
    return (unsigned)metric < sizeof names / sizeof *names ? names[metric] : NULL;
}

fgmm_status fgmm_metric_check(fgmm_context *ctx, fgmm_metric metric, const fgmm_rows *rows, const char *what) {
    if (!fgmm_metric_name(metric))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: metric %d is unknown", what, (int)metric);
    if (rows && rows->cl_mem)
        return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED, "%s: rows in a cl_mem cannot be read on the host", what);
    return FGMM_OK;
}

fgmm_dtype fgmm_stored_type(fgmm_dtype type) {
    return type == FGMM_F16 || type == FGMM_U8 || type == FGMM_I8 ? type : FGMM_F32;
}

int fgmm_is_bytes(fgmm_dtype type) {
    return type == FGMM_U8 || type == FGMM_I8;
}

int fgmm_scan_is_whole(fgmm_metric metric, fgmm_dtype rows, fgmm_dtype queries, int64_t d) {
    return metric != FGMM_ANGULAR && fgmm_is_bytes(rows) && fgmm_is_bytes(queries) && d <= 8192;
}

/* ---- rows as floats ---- */

/* Through doubles, which hold every type: a double is rounded once, all else is exact. */
static void narrow(fgmm_dtype type, const void *from, int64_t n, float *to) {
    enum { STEP = 64 };
    double x[STEP];
    if (type == FGMM_F32) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; i += STEP) {
        int64_t some = n - i < STEP ? n - i : STEP;
        fgmm_widen(type, (const char *)from + (size_t)i * fgmm_dtype_size(type), some, x);
        for (int64_t j = 0; j < some; j++) to[i + j] = (float)x[j];
    }
}

/* Scales a row to length 1. @return 0 for a row of zeros. */
static int to_unit(float *row, int64_t d) {
    double square = 0;
    for (int64_t j = 0; j < d; j++) square += (double)row[j] * row[j];
    if (!(square > 0)) return 0;
    double scale = 1 / sqrt(square);
    if (!(scale < 3e38)) return 0;
    for (int64_t j = 0; j < d; j++) row[j] = (float)(row[j] * scale);
    return 1;
}

static fgmm_status fail_zeros(fgmm_context *ctx, int64_t row) {
    return fgmm_fail(ctx, FGMM_ERR_DATA, "row %lld holds zeros alone: it has no direction for the angular metric",
                     (long long)row);
}

fgmm_status fgmm_rows_to_floats(fgmm_context *ctx, fgmm_dtype type, const void *rows, int64_t first, int64_t n,
                                int64_t d, int unit, float *out) {
    int64_t stride = fgmm_scan_stride(d);
    for (int64_t i = 0; i < n; i++) {
        float *row = out + i * stride, any = 0;
        narrow(type, (const char *)rows + (size_t)(i * d) * fgmm_dtype_size(type), d, row);
        memset(row + d, 0, (size_t)(stride - d) * sizeof *row);
        for (int64_t j = 0; j < d; j++) any += row[j] * 0;
        for (int64_t j = 0; any != 0 && j < d; j++)
            if (!isfinite(row[j]))
                return fgmm_fail(ctx, FGMM_ERR_DATA,
                                 "row %lld, column %lld holds NaN, Inf or a number beyond f32 (rows and columns count "
                                 "from 0)",
                                 (long long)(first + i), (long long)j);
        if (unit && !to_unit(row, d)) return fail_zeros(ctx, first + i);
    }
    return FGMM_OK;
}

fgmm_status fgmm_rows_check(fgmm_context *ctx, fgmm_dtype type, const void *rows, int64_t first, int64_t n, int64_t d,
                            int unit) {
    float *row = fgmm_alloc(ctx, (size_t)fgmm_scan_stride(d) * sizeof *row, "a row");
    if (!row) return FGMM_ERR_MEMORY;
    size_t bytes = (size_t)d * fgmm_dtype_size(type);
    fgmm_status status = FGMM_OK;
    for (int64_t i = 0; i < n && status == FGMM_OK; i++)
        status = fgmm_rows_to_floats(ctx, type, (const char *)rows + (size_t)i * bytes, first + i, 1, d, unit, row);
    fgmm_free(ctx, row);
    return status;
}

fgmm_status fgmm_means_to_floats(fgmm_context *ctx, const fgmm_model *model, int64_t stride, float *out) {
    for (int64_t i = 0; i < model->k; i++)
        for (int64_t j = 0; j < model->d; j++) {
            out[i * stride + j] = (float)model->means[i * model->d + j];
            if (!isfinite(out[i * stride + j]))
                return fgmm_fail(ctx, FGMM_ERR_INVALID,
                                 "ivf: the mean of component %lld, feature %lld, is beyond f32: %g", (long long)i,
                                 (long long)j, model->means[i * model->d + j]);
        }
    return FGMM_OK;
}

void fgmm_rows_to_words(fgmm_dtype type, const void *rows, int64_t n, int64_t d, int16_t *out) {
    int64_t stride = fgmm_scan_stride(d);
    for (int64_t i = 0; i < n; i++, out += stride) {
        const uint8_t *row = (const uint8_t *)rows + i * d;
        for (int64_t j = 0; j < d; j++) out[j] = type == FGMM_U8 ? row[j] : (int8_t)row[j];
        memset(out + d, 0, (size_t)(stride - d) * sizeof *out);
    }
}

float fgmm_inverse_length(fgmm_dtype type, const void *row, int64_t d) {
    enum { STEP = 64 };
    double x[STEP], square = 0;
    for (int64_t from = 0; from < d; from += STEP) {
        int64_t n = d - from < STEP ? d - from : STEP;
        fgmm_widen(type, (const char *)row + (size_t)from * fgmm_dtype_size(type), n, x);
        for (int64_t j = 0; j < n; j++) square += x[j] * x[j];
    }
    double inverse = square > 0 ? 1 / sqrt(square) : 0;
    return inverse < 3e38 ? (float)inverse : 0; /* a row so short is one of zeros */
}

int64_t fgmm_block_rows(const fgmm_rows *rows) {
    int64_t n = (int64_t)(64e6 / ((double)rows->d * (double)fgmm_dtype_size(rows->type)));
    if (n < 1024) n = 1024;
    return n < rows->n ? n : rows->n;
}

fgmm_status fgmm_each_block(fgmm_context *ctx, const fgmm_rows *rows, int64_t block_rows, fgmm_block_visit visit,
                            void *user) {
    fgmm_status status = FGMM_OK;
    size_t row = (size_t)rows->d * fgmm_dtype_size(rows->type);
    void *staged = NULL;
    int in_place = rows->data && rows->stride_bytes == row;
    if (!in_place && !(staged = fgmm_alloc(ctx, (size_t)block_rows * row, "a block of rows"))) return FGMM_ERR_MEMORY;
    for (int64_t first = 0; first < rows->n; first += block_rows) {
        int64_t n = rows->n - first < block_rows ? rows->n - first : block_rows;
        const void *data = in_place ? (const char *)rows->data + (size_t)first * row : staged;
        if (!in_place) FGMM_GO(fgmm_rows_read(ctx, rows, first, n, staged));
        FGMM_GO(visit(user, data, first, n));
        if (fgmm_cancelled(ctx)) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
    }
done:
    fgmm_free(ctx, staged);
    return status;
}

fgmm_status fgmm_rows_sample(fgmm_context *ctx, const fgmm_rows *rows, int64_t n, uint64_t seed, void *to) {
    size_t bytes = (size_t)rows->d * fgmm_dtype_size(rows->type);
    fgmm_rng rng = fgmm_rng_seed(seed, 0x1f5);
    if (n == rows->n) return fgmm_rows_read(ctx, rows, 0, n, to);
    for (int64_t i = 0; i < n; i++) {
        int64_t from = (int64_t)((double)rows->n / (double)n * (double)i);
        int64_t end = (int64_t)((double)rows->n / (double)n * (double)(i + 1));
        int64_t row = from + (end > from + 1 ? fgmm_rng_below(&rng, end - from) : 0);
        FGMM_TRY(fgmm_rows_read(ctx, rows, row < rows->n ? row : rows->n - 1, 1, (char *)to + (size_t)i * bytes));
    }
    return FGMM_OK;
}

/* ---- rows of length 1 ---- */

static fgmm_status unit_read(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    const fgmm_rows *rows = state;
    int64_t d = rows->d;
    size_t bytes = (size_t)d * fgmm_dtype_size(rows->type);
    void *raw = fgmm_alloc(ctx, (size_t)n * bytes, "a block of rows");
    if (!raw) return FGMM_ERR_MEMORY;
    fgmm_status status = fgmm_rows_read(ctx, rows, first, n, raw);
    int64_t bad = n;
    int threads = fgmm_threads_over(ctx, (double)(n * d));
#pragma omp parallel for num_threads(threads) reduction(min : bad)
    for (int64_t i = 0; i < (status == FGMM_OK ? n : 0); i++) {
        float *row = (float *)dst + i * d;
        narrow(rows->type, (const char *)raw + (size_t)i * bytes, d, row);
        if (!to_unit(row, d)) {
            /* NaN is for the feed to find. */
            int zeros = 1;
            for (int64_t j = 0; j < d; j++) zeros &= row[j] == 0;
            if (zeros && i < bad) bad = i;
        }
    }
    fgmm_free(ctx, raw);
    if (status == FGMM_OK && bad < n) status = fail_zeros(ctx, first + bad);
    return status;
}

static const fgmm_rows_ops unit_ops = {.read = unit_read};

fgmm_status fgmm_rows_unit(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows *rows) {
    FGMM_TRY(fgmm_rows_new(ctx, out, &unit_ops, (void *)(uintptr_t)rows, FGMM_F32, rows->n, rows->d));
    (*out)->once = rows->once;
    (*out)->weights = rows->weights;
    return FGMM_OK;
}

/* ---- the k best ---- */

fgmm_best *fgmm_bests_new(fgmm_context *ctx, int64_t n, int64_t k) {
    const char *what = "the nearest rows";
    fgmm_best *bests = fgmm_calloc(ctx, (size_t)n, sizeof *bests, what);
    if (!bests) return NULL;
    bests->distance = fgmm_alloc(ctx, (size_t)(n * k) * sizeof *bests->distance, what);
    bests->id = fgmm_alloc(ctx, (size_t)(n * k) * sizeof *bests->id, what);
    if (!bests->distance || !bests->id) {
        fgmm_bests_free(ctx, bests);
        return NULL;
    }
    for (int64_t i = 0; i < n; i++)
        bests[i] = (fgmm_best){.k = k, .distance = bests->distance + i * k, .id = bests->id + i * k};
    return bests;
}

void fgmm_bests_free(fgmm_context *ctx, fgmm_best *bests) {
    if (!bests) return;
    fgmm_free(ctx, bests->distance);
    fgmm_free(ctx, bests->id);
    fgmm_free(ctx, bests);
}

static inline int is_worse(float a, int64_t a_id, float b, int64_t b_id) {
    return a > b || (a == b && a_id > b_id);
}

/* Moves the hole at `at` down to where (distance, id) belongs among the first n. */
static void sift_down(fgmm_best *best, int64_t n, int64_t at, float distance, int64_t id) {
    for (int64_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n &&
            is_worse(best->distance[child + 1], best->id[child + 1], best->distance[child], best->id[child]))
            child++;
        if (!is_worse(best->distance[child], best->id[child], distance, id)) break;
        best->distance[at] = best->distance[child];
        best->id[at] = best->id[child];
        at = child;
    }
    best->distance[at] = distance;
    best->id[at] = id;
}

void fgmm_best_push(fgmm_best *best, float distance, int64_t id) {
    if (best->n == best->k) {
        if (is_worse(best->distance[0], best->id[0], distance, id)) sift_down(best, best->n, 0, distance, id);
        return;
    }
    int64_t at = best->n++;
    for (; at > 0; at = (at - 1) / 2) {
        int64_t up = (at - 1) / 2;
        if (!is_worse(distance, id, best->distance[up], best->id[up])) break;
        best->distance[at] = best->distance[up];
        best->id[at] = best->id[up];
    }
    best->distance[at] = distance;
    best->id[at] = id;
}

void fgmm_best_sort(fgmm_best *best) {
    for (int64_t last = best->n - 1; last > 0; last--) {
        float distance = best->distance[last];
        int64_t id = best->id[last];
        best->distance[last] = best->distance[0];
        best->id[last] = best->id[0];
        sift_down(best, last, 0, distance, id);
    }
    for (int64_t i = best->n; i < best->k; i++) {
        best->distance[i] = INFINITY;
        best->id[i] = -1;
    }
}

void fgmm_best_copy(const fgmm_best *best, fgmm_metric metric, int64_t *ids, float *distances) {
    float sign = metric == FGMM_INNER_PRODUCT ? -1 : 1;
    memcpy(ids, best->id, (size_t)best->k * sizeof *ids);
    for (int64_t i = 0; distances && i < best->k; i++) distances[i] = sign * best->distance[i];
}

float fgmm_select(float *values, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        float pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) i++;
            while (values[j] > pivot) j--;
            if (i <= j) {
                float t = values[i];
                values[i++] = values[j];
                values[j--] = t;
            }
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return values[k];
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

void fgmm_sort_floats(float *values, int64_t n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
}
