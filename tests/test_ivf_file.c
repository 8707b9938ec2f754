/* Index files: what is saved comes back whole, and a file that is cut, damaged or lies is refused in words. */
#include <flashgmm/ivf.h>
#include <math.h>
#include <stddef.h>

#include "../lib/io/checksum.h"
#include "scratch.h"

enum { ROWS = 90, FEATURES = 6, LISTS = 5, QUERIES = 12 };

static uint32_t next_random(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u;
}

static fgmm_rows *make_rows(fgmm_dtype type, int64_t n, uint32_t seed, void *room) {
    fgmm_rows *rows = NULL;
    for (int64_t i = 0; i < n * FEATURES; i++) {
        uint32_t r = next_random(&seed) >> 24;
        if (type == FGMM_F32)
            ((float *)room)[i] = (float)r - 100;
        else if (type == FGMM_F16)
            ((uint16_t *)room)[i] = (uint16_t)(0x3000 + r * 8);
        else
            ((uint8_t *)room)[i] = (uint8_t)r;
    }
    OK(fgmm_rows_from_memory(ctx, &rows, room, type, n, FEATURES, 0));
    return rows;
}

static fgmm_ivf *make_index(fgmm_dtype type, fgmm_metric metric, int max_lists, int calibrated) {
    float base[ROWS * FEATURES], asked[QUERIES * FEATURES];
    fgmm_rows *rows = make_rows(type, ROWS, 7, base), *queries = make_rows(FGMM_F32, QUERIES, 99, asked);
    fgmm_model *model = NULL;
    fgmm_ivf *index = NULL;
    fgmm_ivf_train_options train = FGMM_IVF_TRAIN_OPTIONS_INIT;
    fgmm_ivf_options options = FGMM_IVF_OPTIONS_INIT;
    train.n_lists = LISTS;
    train.metric = options.metric = metric;
    train.kmeans_iter = 3;
    options.max_lists = max_lists;
    OK(fgmm_ivf_train(ctx, &model, rows, &train, NULL));
    OK(fgmm_ivf_create(ctx, &index, model, &options));
    OK(fgmm_ivf_add(ctx, index, rows, NULL, NULL));
    if (calibrated) OK(fgmm_ivf_calibrate(ctx, index, queries, 5));
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    fgmm_rows_free(ctx, queries);
    return index;
}

/* Both indexes say the same of everything. */
static void check_same(const fgmm_ivf *a, const fgmm_ivf *b) {
    float asked[QUERIES * FEATURES], distances[2][QUERIES * 5];
    int64_t ids[2][QUERIES * 5];
    fgmm_rows *queries = make_rows(FGMM_F32, QUERIES, 4, asked);
    fgmm_ivf_info info[2];
    fgmm_ivf_describe(a, &info[0]);
    fgmm_ivf_describe(b, &info[1]);
    ck_assert_int_eq(info[0].n_rows, info[1].n_rows);
    ck_assert_int_eq(info[0].n_entries, info[1].n_entries);
    ck_assert_int_eq(info[0].type, info[1].type);
    ck_assert_int_eq(info[0].calibrated_k, info[1].calibrated_k);
    ck_assert(info[0].threshold == info[1].threshold && info[0].lambda == info[1].lambda);
    for (int probe = 1; probe <= LISTS; probe++) {
        fgmm_ivf_search_options options = FGMM_IVF_SEARCH_OPTIONS_INIT;
        options.n_probe = probe;
        if (probe == 2 && info[0].calibrated_k) options.target_recall = 0.9;
        OK(fgmm_ivf_search(ctx, a, queries, 5, &options, ids[0], distances[0], NULL));
        OK(fgmm_ivf_search(ctx, b, queries, 5, &options, ids[1], distances[1], NULL));
        ck_assert_mem_eq(ids[0], ids[1], sizeof ids[0]);
        ck_assert_mem_eq(distances[0], distances[1], sizeof distances[0]);
    }
    fgmm_rows_free(ctx, queries);
}

/* Whatever its links say, no search finds a row twice. */
static void check_once(const fgmm_ivf *index) {
    float asked[QUERIES * FEATURES];
    int64_t ids[QUERIES * ROWS];
    fgmm_rows *queries = make_rows(FGMM_F32, QUERIES, 4, asked);
    for (int probe = 2; probe <= LISTS; probe++) {
        fgmm_ivf_search_options options = FGMM_IVF_SEARCH_OPTIONS_INIT;
        options.n_probe = probe;
        OK(fgmm_ivf_search(ctx, index, queries, ROWS, &options, ids, NULL, NULL));
        for (int q = 0; q < QUERIES; q++)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < i; j++) ck_assert(ids[q * ROWS + i] < 0 || ids[q * ROWS + i] != ids[q * ROWS + j]);
    }
    fgmm_rows_free(ctx, queries);
}

START_TEST(test_round_trip) {
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_U8, FGMM_I8};
    for (int i = 0; i < 24; i++) {
        fgmm_ivf *index = make_index(types[i % 4], (fgmm_metric)(i % 3), 1 + i % 4, i % 2), *back = NULL;
        size_t bytes, again;
        OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
        OK(fgmm_ivf_load(ctx, &back, in_folder("a.ivf")));
        check_same(index, back);
        OK(fgmm_ivf_save(ctx, back, in_folder("b.ivf")));
        unsigned char *one = get_file(in_folder("a.ivf"), &bytes), *two = get_file(in_folder("b.ivf"), &again);
        ck_assert_uint_eq(bytes, again);
        ck_assert_mem_eq(one, two, bytes);
        free(one);
        free(two);
        fgmm_ivf_free(ctx, back);
        fgmm_ivf_free(ctx, index);
    }
    ck_assert_int_eq(count_files(), 2);
}
END_TEST

/* An index without rows, and one that goes on growing after it was loaded. */
START_TEST(test_going_on) {
    float base[ROWS * FEATURES];
    int64_t gone[2] = {3, 50};
    fgmm_rows *rows = make_rows(FGMM_F32, ROWS, 7, base);
    fgmm_ivf *index = make_index(FGMM_F32, FGMM_L2, 3, 0), *back = NULL;
    OK(fgmm_ivf_remove(ctx, index, gone, 2, NULL));
    OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
    OK(fgmm_ivf_load(ctx, &back, in_folder("a.ivf")));
    OK(fgmm_ivf_add(ctx, index, rows, NULL, NULL));
    OK(fgmm_ivf_add(ctx, back, rows, NULL, NULL));
    check_same(index, back);
    fgmm_ivf_info info;
    fgmm_ivf_describe(back, &info);
    ck_assert_int_eq(info.n_rows, 2 * ROWS - 2);
    fgmm_ivf_free(ctx, back);
    fgmm_ivf_free(ctx, index);
    fgmm_model *model = NULL;
    double means[2 * FEATURES] = {0, 1}, variances[2] = {1, 1};
    OK(fgmm_model_create(ctx, &model, FGMM_SPHERICAL, 2, FEATURES, NULL, means, variances));
    OK(fgmm_ivf_create(ctx, &index, model, NULL));
    OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
    OK(fgmm_ivf_load(ctx, &back, in_folder("a.ivf")));
    OK(fgmm_ivf_add(ctx, index, rows, NULL, NULL));
    OK(fgmm_ivf_add(ctx, back, rows, NULL, NULL));
    check_same(index, back);
    fgmm_ivf_free(ctx, back);
    fgmm_ivf_free(ctx, index);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
}
END_TEST

static fgmm_status load_bytes(const void *data, size_t bytes) {
    fgmm_ivf *index = NULL;
    put_file(in_folder("h.ivf"), data, bytes);
    fgmm_status status = fgmm_ivf_load(ctx, &index, in_folder("h.ivf"));
    ck_assert_int_eq(status == FGMM_OK, index != NULL);
    if (status != FGMM_OK) ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "h.ivf"));
    fgmm_ivf_free(ctx, index);
    return status;
}

/* A valid checksum over whatever the bytes are now. */
static void seal(unsigned char *file, size_t bytes) {
    fgmm_checksum sum;
    fgmm_checksum_begin(&sum);
    fgmm_checksum_add(&sum, file, bytes - 4);
    uint32_t value = fgmm_checksum_end(&sum);
    memcpy(file + bytes - 4, &value, 4);
}

START_TEST(test_cut_and_flipped) {
    fgmm_ivf *index = make_index(FGMM_F32, FGMM_L2, 3, 0);
    size_t bytes;
    OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
    unsigned char *file = get_file(in_folder("a.ivf"), &bytes);
    ck_assert_int_eq(load_bytes(file, bytes), FGMM_OK);
    for (size_t cut = 0; cut < bytes; cut += cut < 256 ? 1 : 37) FAILS(load_bytes(file, cut), FGMM_ERR_FORMAT, "h.ivf");
    unsigned char *longer = calloc(bytes + 1, 1);
    ck_assert_ptr_nonnull(longer);
    memcpy(longer, file, bytes);
    FAILS(load_bytes(longer, bytes + 1), FGMM_ERR_FORMAT, "its header asks for");
    free(longer);
    for (size_t at = 0; at < bytes; at += at < 256 ? 1 : 29) {
        unsigned char bit = (unsigned char)(1u << at % 8);
        file[at] ^= bit;
        FAILS(load_bytes(file, bytes), FGMM_ERR_FORMAT, "h.ivf");
        file[at] ^= bit;
    }
    free(file);
    fgmm_ivf_free(ctx, index);
}
END_TEST

/* Every number of the header takes values that lie, under a checksum that does not. */
START_TEST(test_lies) {
    static const int64_t values[] = {-1, 0, 1, 2, 3, 4, 6, 100, INT32_MAX, (int64_t)1 << 32, INT64_MAX, INT64_MIN};
    fgmm_ivf *index = make_index(FGMM_F32, FGMM_L2, 3, 1);
    size_t bytes;
    OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
    unsigned char *file = get_file(in_folder("a.ivf"), &bytes), *kept = malloc(bytes);
    ck_assert_ptr_nonnull(kept);
    memcpy(kept, file, bytes);
    for (size_t at = 0; at < 128; at += 4)
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
            memcpy(file + at, &values[i], at + 8 <= 128 && i % 2 ? 8 : 4);
            seal(file, bytes);
            fgmm_status status = load_bytes(file, bytes);
            ck_assert_msg(status == FGMM_OK || status == FGMM_ERR_FORMAT, "byte %d: %s", (int)at,
                          fgmm_context_message(ctx));
            memcpy(file, kept, bytes);
        }
    /* Behind the header: anything, anywhere. A search of what passes must not go astray. */
    uint32_t state = 5;
    for (int i = 0; i < 3000; i++) {
        size_t at = 128 + next_random(&state) % (bytes - 132);
        file[at] = (unsigned char)(next_random(&state) >> 24);
        seal(file, bytes);
        fgmm_ivf *other = NULL;
        put_file(in_folder("h.ivf"), file, bytes);
        fgmm_status status = fgmm_ivf_load(ctx, &other, in_folder("h.ivf"));
        ck_assert(status == FGMM_OK || status == FGMM_ERR_FORMAT);
        if (status == FGMM_OK && i % 30 == 0) check_once(other);
        fgmm_ivf_free(ctx, other);
        memcpy(file, kept, bytes);
    }
    free(kept);
    free(file);
    fgmm_ivf_free(ctx, index);
}
END_TEST

/* Links that a search would follow to one row twice, under a checksum that fits: the last list's, where the file ends. */
START_TEST(test_links_that_disagree) {
    for (int max_lists = 2; max_lists <= 4; max_lists++) {
        fgmm_ivf *index = make_index(FGMM_F32, FGMM_L2, max_lists, 0);
        fgmm_ivf_list_view last;
        size_t bytes;
        OK(fgmm_ivf_list(ctx, index, LISTS - 1, &last));
        OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
        unsigned char *file = get_file(in_folder("a.ivf"), &bytes);
        size_t n = (size_t)last.n_links, between = 4 * (size_t)(max_lists - 2) * n;
        unsigned char *links = file + bytes - 4 - between - 8 * n;
        ck_assert_uint_ge(n, 2);
        memcpy(links, links + 8, 8); /* the second link twice */
        memcpy(links + 8 * n, links + 8 * n + between / n, between / n);
        seal(file, bytes);
        FAILS(load_bytes(file, bytes), FGMM_ERR_FORMAT, "do not agree");
        free(file);
        fgmm_ivf_free(ctx, index);
    }
}
END_TEST

START_TEST(test_not_an_index) {
    fgmm_ivf *index = make_index(FGMM_U8, FGMM_L2, 2, 0), *back = NULL;
    char text[400];
    memset(text, 'x', sizeof text);
    FAILS(load_bytes(text, sizeof text), FGMM_ERR_FORMAT, "not an index file");
    FAILS(load_bytes(text, 20), FGMM_ERR_FORMAT, "too short");
    FAILS(fgmm_ivf_load(ctx, &back, in_folder("none.ivf")), FGMM_ERR_IO, "none.ivf");
    FAILS(fgmm_ivf_load(ctx, &back, folder), FGMM_ERR_IO, "folder");
    FAILS(fgmm_ivf_save(ctx, index, in_folder("no/a.ivf")), FGMM_ERR_IO, "does not exist");
    ck_assert_int_eq(count_files(), 1);
    OK(fgmm_ivf_save(ctx, index, in_folder("a.ivf")));
    ck_assert_int_eq(count_files(), 2); /* nothing is left of what was written beside */
    fgmm_ivf_free(ctx, index);
}
END_TEST

/* The check value of CRC-32C. */
START_TEST(test_checksum) {
    fgmm_checksum sum;
    fgmm_checksum_begin(&sum);
    fgmm_checksum_add(&sum, "123456789", 9);
    ck_assert_uint_eq(fgmm_checksum_end(&sum), 0xe3069283u);
    fgmm_checksum_begin(&sum);
    for (int i = 0; i < 9; i++) fgmm_checksum_add(&sum, &"123456789"[i], 1);
    ck_assert_uint_eq(fgmm_checksum_end(&sum), 0xe3069283u);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {test_round_trip,          test_going_on,     test_cut_and_flipped, test_lies,
                                  test_links_that_disagree, test_not_an_index, test_checksum};
    return run_tests("ivf files", tests, sizeof tests / sizeof *tests);
}
