/* Indexes for faiss, taken apart by a reader of its own; faiss itself reads them in check_faiss.py, for which
 *
 *   test_faiss --write FOLDER
 *
 * puts an index of each metric there, with the arrays it was made of. */
#include <math.h>

#include "../lib/dispatch.h"
#include "../lib/io/faiss_file.h"
#include "../lib/model.h"
#include "scratch.h"

/* ---- a reader ---- */

typedef struct reader {
    const unsigned char *at, *end;
} reader;

static void take(reader *r, void *to, size_t bytes) {
    ck_assert_uint_ge((size_t)(r->end - r->at), bytes);
    memcpy(to, r->at, bytes);
    r->at += bytes;
}

static uint64_t take_u64(reader *r) {
    uint64_t value;
    take(r, &value, 8);
    return value;
}

static int32_t take_i32(reader *r) {
    int32_t value;
    take(r, &value, 4);
    return value;
}

static void take_word(reader *r, const char *word) {
    char found[5] = "";
    take(r, found, 4);
    ck_assert_str_eq(found, word);
}

static void take_index(reader *r, const char *word, int64_t d, int64_t n, int inner_product) {
    unsigned char trained;
    take_word(r, word);
    ck_assert_int_eq(take_i32(r), d);
    ck_assert_uint_eq(take_u64(r), n);
    ck_assert_uint_eq(take_u64(r), 1 << 20);
    ck_assert_uint_eq(take_u64(r), 1 << 20);
    take(r, &trained, 1);
    ck_assert_int_eq(trained, 1);
    ck_assert_int_eq(take_i32(r), inner_product ? 0 : 1);
}

static void take_flat(reader *r, int64_t d, int64_t n, int inner_product, const float *vectors) {
    float value;
    take_index(r, inner_product ? "IxFI" : "IxF2", d, n, inner_product);
    ck_assert_uint_eq(take_u64(r), d * n);
    for (int64_t i = 0; i < d * n; i++) {
        take(r, &value, 4);
        ck_assert(value == vectors[i]);
    }
}

/* ---- an index to write ---- */

typedef struct sample {
    fgmm_faiss_ivf index;
    int64_t total;
    float *centroids, *vectors;
    int64_t *sizes, *ids;
} sample;

/* Clustered numbers; every third list empty, the others of different lengths. */
static sample make_sample(int inner_product, int64_t d, int64_t nlist) {
    sample s = {.index = {inner_product, d, nlist, 3, NULL, NULL}};
    s.centroids = malloc((size_t)(nlist * d) * sizeof *s.centroids);
    s.sizes = malloc((size_t)nlist * sizeof *s.sizes);
    ck_assert(s.centroids && s.sizes);
    for (int64_t j = 0; j < nlist; j++) s.total += s.sizes[j] = j % 3 == 2 ? 0 : 5 + j * 7 % 11;
    s.vectors = malloc((size_t)(s.total * d) * sizeof *s.vectors);
    s.ids = malloc((size_t)s.total * sizeof *s.ids);
    ck_assert(s.vectors && s.ids);
    for (int64_t i = 0; i < nlist * d; i++) s.centroids[i] = (float)(4 * sin((double)(i * i + 1)));
    for (int64_t j = 0, i = 0; j < nlist; j++)
        for (int64_t n = 0; n < s.sizes[j]; n++, i++) {
            s.ids[i] = ((int64_t)1 << 33) + i * 37 % s.total; /* no 32 bits would do */
            for (int64_t c = 0; c < d; c++)
                s.vectors[i * d + c] = s.centroids[j * d + c] + (float)cos((double)(i * d + c));
        }
    s.index.centroids = s.centroids;
    s.index.sizes = s.sizes;
    return s;
}

static void free_sample(sample *s) {
    free(s->centroids);
    free(s->sizes);
    free(s->vectors);
    free(s->ids);
}

/* @param piece vectors and ids a call at most. */
static fgmm_status write_sample(const sample *s, const char *path, int64_t piece) {
    fgmm_faiss_writer writer;
    const float *vectors = s->vectors;
    const int64_t *ids = s->ids;
    fgmm_status status = fgmm_faiss_open(ctx, &writer, path, &s->index);
    if (status != FGMM_OK) return status;
    for (int64_t j = 0; j < s->index.nlist; j++) {
        for (int64_t n, left = s->sizes[j]; left > 0 && status == FGMM_OK; left -= n) {
            n = left < piece ? left : piece;
            status = fgmm_faiss_vectors(ctx, &writer, vectors, n);
            vectors += n * s->index.d;
        }
        for (int64_t n, left = s->sizes[j]; left > 0 && status == FGMM_OK; left -= n) {
            n = left < piece ? left : piece;
            status = fgmm_faiss_ids(ctx, &writer, ids, n);
            ids += n;
        }
    }
    if (status == FGMM_OK) status = fgmm_faiss_commit(ctx, &writer);
    fgmm_faiss_abandon(ctx, &writer);
    return status;
}

/* ---- tests ---- */

START_TEST(test_ivf_layout) {
    for (int inner_product = 0; inner_product < 2; inner_product++) {
        sample s = make_sample(inner_product, 5, 8);
        const int64_t d = s.index.d, nlist = s.index.nlist;
        size_t bytes;
        unsigned char map;
        float *vectors = s.vectors;
        int64_t *ids = s.ids;
        OK(write_sample(&s, in_folder("i.faiss"), inner_product ? 4 : 1000));
        unsigned char *file = get_file(in_folder("i.faiss"), &bytes);
        reader r = {file, file + bytes};
        take_index(&r, "IwFl", d, s.total, inner_product);
        ck_assert_uint_eq(take_u64(&r), nlist);
        ck_assert_uint_eq(take_u64(&r), 3);
        take_flat(&r, d, nlist, inner_product, s.centroids);
        take(&r, &map, 1);
        ck_assert_int_eq(map, 0);
        ck_assert_uint_eq(take_u64(&r), 0);
        take_word(&r, "ilar");
        ck_assert_uint_eq(take_u64(&r), nlist);
        ck_assert_uint_eq(take_u64(&r), 4 * d);
        take_word(&r, "full");
        ck_assert_uint_eq(take_u64(&r), nlist);
        for (int64_t j = 0; j < nlist; j++) ck_assert_uint_eq(take_u64(&r), s.sizes[j]);
        for (int64_t j = 0; j < nlist; j++) {
            size_t part = (size_t)(s.sizes[j] * d) * sizeof(float);
            ck_assert_uint_ge((size_t)(r.end - r.at), part);
            ck_assert_mem_eq(r.at, vectors, part);
            r.at += part;
            vectors += s.sizes[j] * d;
            for (int64_t i = 0; i < s.sizes[j]; i++) ck_assert_uint_eq(take_u64(&r), *ids++);
        }
        ck_assert_ptr_eq(r.at, r.end);
        free(file);
        free_sample(&s);
    }
    ck_assert_int_eq(count_files(), 1);
}
END_TEST

/* The writer stands behind the interface, whose calls forget the last message. */
#define REFUSED(call, wanted, words)                                                                                   \
    do {                                                                                                               \
        fgmm_enter(ctx);                                                                                               \
        FAILS(call, wanted, words);                                                                                    \
    } while (0)

/* What does not fit the sizes is a fault of the caller's, and the old file stays. */
START_TEST(test_ivf_refused) {
    sample s = make_sample(0, 3, 3);
    fgmm_faiss_writer w;
    const char *path = in_folder("i.faiss");
    put_file(path, "old", 3);
    s.index.d = 0;
    REFUSED(fgmm_faiss_open(ctx, &w, path, &s.index), FGMM_ERR_INVALID, "d = 0");
    s.index.d = 3;
    s.sizes[1] = -1;
    REFUSED(fgmm_faiss_open(ctx, &w, path, &s.index), FGMM_ERR_INVALID, "list 1");
    s.sizes[1] = INT64_MAX;
    REFUSED(fgmm_faiss_open(ctx, &w, path, &s.index), FGMM_ERR_INVALID, "list 1");
    s.sizes[1] = INT64_MAX / 8;
    REFUSED(fgmm_faiss_open(ctx, &w, path, &s.index), FGMM_ERR_INVALID, "overflows");
    s.sizes[0] = 2, s.sizes[1] = 0, s.sizes[2] = 1;
    REFUSED(fgmm_faiss_open(ctx, &w, in_folder("none/i.faiss"), &s.index), FGMM_ERR_IO, "does not exist");
    OK(fgmm_faiss_open(ctx, &w, path, &s.index));
    REFUSED(fgmm_faiss_ids(ctx, &w, s.ids, 1), FGMM_ERR_INTERNAL, "list 0");
    REFUSED(fgmm_faiss_vectors(ctx, &w, s.vectors, 3), FGMM_ERR_INTERNAL, "list 0");
    OK(fgmm_faiss_vectors(ctx, &w, s.vectors, 2));
    REFUSED(fgmm_faiss_vectors(ctx, &w, s.vectors, 1), FGMM_ERR_INTERNAL, "list 0");
    OK(fgmm_faiss_ids(ctx, &w, s.ids, 1));
    REFUSED(fgmm_faiss_vectors(ctx, &w, s.vectors, 1), FGMM_ERR_INTERNAL, "list 0");
    REFUSED(fgmm_faiss_commit(ctx, &w), FGMM_ERR_INTERNAL, "list 0 of a faiss index is not whole");
    OK(fgmm_faiss_ids(ctx, &w, s.ids, 1));
    REFUSED(fgmm_faiss_commit(ctx, &w), FGMM_ERR_INTERNAL, "list 2");
    OK(fgmm_faiss_vectors(ctx, &w, s.vectors, 1));
    OK(fgmm_faiss_ids(ctx, &w, s.ids, 1));
    REFUSED(fgmm_faiss_vectors(ctx, &w, s.vectors, 1), FGMM_ERR_INTERNAL, "list 3");
    fgmm_faiss_abandon(ctx, &w);
    ck_assert_int_eq(count_files(), 1);
    size_t bytes;
    unsigned char *file = get_file(path, &bytes);
    ck_assert_uint_eq(bytes, 3);
    free(file);
    free_sample(&s);
}
END_TEST

/* Vectors of every type, as they are and at length one, in more pieces than one. */
START_TEST(test_rows) {
    enum { ROWS = 5000, WIDE = 19, COUNT = ROWS * WIDE };
    static int8_t bytes[COUNT];
    static float due[COUNT], got[COUNT];
    static int64_t ids[ROWS];
    const int64_t size = ROWS;
    const float centroid[WIDE] = {0};
    const uint16_t half[WIDE] = {0x3c00, 0xc000}; /* 1, -2 */
    const fgmm_faiss_ivf one = {0, WIDE, 1, 0, centroid, &size};
    fgmm_faiss_writer w;
    size_t length;
    for (int i = 0; i < COUNT; i++) bytes[i] = (int8_t)(i * 37 % 251 - 125);
    for (int unit = 0; unit < 2; unit++) {
        for (int i = 0; i < ROWS; i++) {
            double square = 0;
            const int8_t *row = bytes + i * WIDE;
            for (int j = 0; j < WIDE; j++) square += row[j] * row[j];
            for (int j = 0; j < WIDE; j++) due[i * WIDE + j] = (float)(unit ? row[j] / sqrt(square) : row[j]);
        }
        for (int j = 0; j < WIDE; j++) due[j] = (float)(j == 0 ? 1 : j == 1 ? -2 : 0) / (unit ? sqrtf(5) : 1);
        OK(fgmm_faiss_open(ctx, &w, in_folder("r.faiss"), &one));
        OK(fgmm_faiss_rows(ctx, &w, half, FGMM_F16, unit, 1));
        OK(fgmm_faiss_rows(ctx, &w, bytes + WIDE, FGMM_I8, unit, ROWS - 1));
        OK(fgmm_faiss_ids(ctx, &w, ids, ROWS));
        OK(fgmm_faiss_commit(ctx, &w));
        fgmm_faiss_abandon(ctx, &w);
        unsigned char *file = get_file(in_folder("r.faiss"), &length);
        ck_assert_uint_gt(length, sizeof ids + sizeof got);
        memcpy(got, file + length - sizeof ids - sizeof got, sizeof got);
        free(file);
        for (int i = 0; i < COUNT; i++)
            if (!(fabsf(got[i] - due[i]) <= (unit ? 1.2e-7f : 0))) /* at length one: a unit in the last place */
                ck_abort_msg("number %d is %g, not %g", i, (double)got[i], (double)due[i]);
    }
    OK(fgmm_faiss_open(ctx, &w, in_folder("r.faiss"), &one));
    REFUSED(fgmm_faiss_rows(ctx, &w, centroid, FGMM_F32, 1, 1), FGMM_ERR_INVALID, "vector 0 is zero");
    REFUSED(fgmm_faiss_rows(ctx, &w, ids, FGMM_I64, 0, 1), FGMM_ERR_INVALID, "type 7");
    fgmm_faiss_abandon(ctx, &w);
}
END_TEST

START_TEST(test_means) {
    enum { COMPONENTS = 4, FEATURES = 6 };
    double means[COMPONENTS * FEATURES], covariances[COMPONENTS] = {1, 2, 3, 4};
    float narrow[COMPONENTS * FEATURES], unit[COMPONENTS * FEATURES];
    fgmm_model *model = NULL;
    for (int k = 0; k < COMPONENTS; k++) {
        double square = 0;
        for (int j = 0; j < FEATURES; j++) {
            int i = k * FEATURES + j;
            means[i] = sin(i + 1.0) * (k + 1);
            narrow[i] = (float)means[i];
            square += means[i] * means[i];
        }
        for (int j = 0; j < FEATURES; j++) unit[k * FEATURES + j] = (float)(means[k * FEATURES + j] / sqrt(square));
    }
    OK(fgmm_model_create(ctx, &model, FGMM_SPHERICAL, COMPONENTS, FEATURES, NULL, means, covariances));
    for (int metric = FGMM_L2; metric <= FGMM_INNER_PRODUCT; metric++) {
        size_t bytes;
        OK(fgmm_model_export_faiss(ctx, model, in_folder("m.faiss"), (fgmm_metric)metric));
        unsigned char *file = get_file(in_folder("m.faiss"), &bytes);
        reader r = {file, file + bytes};
        if (metric == FGMM_ANGULAR) { /* rounded in another order: a unit in the last place */
            const size_t head = bytes - sizeof unit;
            float got[COMPONENTS * FEATURES];
            memcpy(got, file + head, sizeof got);
            for (int i = 0; i < COMPONENTS * FEATURES; i++) ck_assert(fabsf(got[i] - unit[i]) < 1.2e-7f);
            take_flat(&r, FEATURES, COMPONENTS, 1, got);
        } else
            take_flat(&r, FEATURES, COMPONENTS, metric == FGMM_INNER_PRODUCT, narrow);
        ck_assert_ptr_eq(r.at, r.end);
        free(file);
    }
    FAILS(fgmm_model_export_faiss(ctx, model, in_folder("m.faiss"), (fgmm_metric)3), FGMM_ERR_INVALID, "no metric");
    FAILS(fgmm_model_export_faiss(ctx, NULL, in_folder("m.faiss"), FGMM_L2), FGMM_ERR_INVALID, "NULL");
    FAILS(fgmm_model_export_faiss(ctx, model, in_folder("none/m.faiss"), FGMM_L2), FGMM_ERR_IO, "does not exist");
    fgmm_model_free(ctx, model);
    /* What no float holds, or has no direction, is named; the old file stays. */
    means[7] = 1e39;
    OK(fgmm_model_create(ctx, &model, FGMM_SPHERICAL, COMPONENTS, FEATURES, NULL, means, covariances));
    FAILS(fgmm_model_export_faiss(ctx, model, in_folder("m.faiss"), FGMM_L2), FGMM_ERR_INVALID, "mean 1, feature 1");
    OK(fgmm_model_export_faiss(ctx, model, in_folder("n.faiss"), FGMM_ANGULAR));
    fgmm_model_free(ctx, model);
    for (int j = 0; j < FEATURES; j++) means[2 * FEATURES + j] = 0;
    OK(fgmm_model_create(ctx, &model, FGMM_SPHERICAL, COMPONENTS, FEATURES, NULL, means, covariances));
    FAILS(fgmm_model_export_faiss(ctx, model, in_folder("m.faiss"), FGMM_ANGULAR), FGMM_ERR_INVALID, "mean 2 is zero");
    fgmm_model_free(ctx, model);
    ck_assert_int_eq(count_files(), 2);
}
END_TEST

/* ---- for faiss ---- */

static const char *where;

START_TEST(write_for_faiss) {
    static const char *const names[] = {"l2", "ip"};
    for (int inner_product = 0; inner_product < 2; inner_product++) {
        sample s = make_sample(inner_product, 24, 40);
        char path[600];
        const fgmm_array arrays[] = {
            {"centroids", FGMM_F32, 2, {s.index.nlist, s.index.d, 0}, s.centroids},
            {"sizes", FGMM_I64, 1, {s.index.nlist, 0, 0}, s.sizes},
            {"vectors", FGMM_F32, 2, {s.total, s.index.d, 0}, s.vectors},
            {"ids", FGMM_I64, 1, {s.total, 0, 0}, s.ids},
        };
        snprintf(path, sizeof path, "%s/%s.npz", where, names[inner_product]);
        OK(fgmm_arrays_save(ctx, path, arrays, 4));
        snprintf(path, sizeof path, "%s/%s.faiss", where, names[inner_product]);
        OK(write_sample(&s, path, 7));
        free_sample(&s);
    }
}
END_TEST

int main(int argc, char **argv) {
    const TTest *const tests[] = {test_ivf_layout, test_ivf_refused, test_rows, test_means};
    const TTest *const write[] = {write_for_faiss};
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        where = argv[2];
        return run_tests("faiss", write, 1);
    }
    return run_tests("faiss", tests, sizeof tests / sizeof *tests);
}
