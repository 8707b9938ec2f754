/* Exact search against distances in double, on every backend. */
#include "ivf_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_U8, FGMM_I8, FGMM_F64, FGMM_BF16};
enum { TYPES = sizeof types / sizeof *types, METRICS = 3 };

START_TEST(exact) {
    static const int64_t ds[] = {1, 3, 16, 17, 32, 50, 100}, ns[] = {1, 7, 64, 65, 500}, ks[] = {1, 10, 70};
    if (!harness_takes(_i)) return;
    fgmm_context *ctx = harness_context();
    fgmm_metric metric = (fgmm_metric)(_i % METRICS);
    rng r = rng_make(600 + (uint64_t)_i);
    int64_t d = ds[_i % 7];
    ivf_data *base = ivf_data_make(&r, ns[_i % 5], d, types[_i % TYPES]);
    ivf_data *queries = ivf_data_make(&r, 1 + _i % 9, d, _i % 4 == 0 ? types[_i / 4 % TYPES] : types[_i % TYPES]);
    fgmm_rows *rows = ivf_data_rows(ctx, base), *asked = ivf_data_rows(ctx, queries);
    results got = results_make(queries->n, ks[_i % 3]);
    CHECK_OK(ctx, fgmm_exact_search(ctx, rows, asked, metric, got.k, got.ids, got.distances));
    check_nearest(base, queries, metric, &got, NULL);
    results_free(&got);
    fgmm_rows_free(ctx, asked);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(queries);
    ivf_data_free(base);
}
END_TEST

/* More rows than go into one block, from a callback, and more queries than a device takes at once. */
typedef struct source {
    const ivf_data *data;
    int64_t asked;
} source;

static int read_rows(void *user, int64_t first, int64_t n, void *dst) {
    source *s = user;
    memcpy(dst, (const float *)s->data->rows + first * s->data->d, (size_t)(n * s->data->d) * sizeof(float));
    s->asked += n;
    return 0;
}

START_TEST(from_a_callback) {
    fgmm_context *ctx = harness_context();
    rng r = rng_make(690);
    ivf_data *base = ivf_data_make(&r, 2500, 6, FGMM_F32), *queries = ivf_data_make(&r, 70, 6, FGMM_F32);
    source s = {.data = base};
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    fgmm_rows *rows = NULL, *asked = ivf_data_rows(ctx, queries);
    results got = results_make(70, 5);
    callback.read = read_rows;
    callback.user = &s;
    callback.n = base->n;
    callback.d = base->d;
    callback.once = 1;
    CHECK_OK(ctx, fgmm_rows_from_callback(ctx, &rows, &callback));
    CHECK_OK(ctx, fgmm_exact_search(ctx, rows, asked, FGMM_L2, 5, got.ids, got.distances));
    check_nearest(base, queries, FGMM_L2, &got, NULL);
    ck_assert_int_eq(s.asked, base->n);
    results_free(&got);
    fgmm_rows_free(ctx, asked);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(queries);
    ivf_data_free(base);
}
END_TEST

START_TEST(refused) {
    fgmm_context *ctx = harness_context();
    rng r = rng_make(691);
    ivf_data *base = ivf_data_make(&r, 20, 6, FGMM_F32), *queries = ivf_data_make(&r, 3, 5, FGMM_F32);
    fgmm_rows *rows = ivf_data_rows(ctx, base), *asked = ivf_data_rows(ctx, queries);
    results got = results_make(20, 5);
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_exact_search(ctx, rows, asked, FGMM_L2, 5, got.ids, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_exact_search(ctx, rows, rows, FGMM_L2, 0, got.ids, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_exact_search(ctx, rows, rows, (fgmm_metric)3, 5, got.ids, NULL));
    ((float *)base->rows)[6 * 4 + 1] = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_exact_search(ctx, rows, rows, FGMM_L2, 5, got.ids, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "row 4, column 1"));
    for (int j = 0; j < 6; j++) ((float *)base->rows)[6 * 4 + j] = 0;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_exact_search(ctx, rows, rows, FGMM_ANGULAR, 5, got.ids, NULL));
    CHECK_OK(ctx, fgmm_exact_search(ctx, rows, rows, FGMM_L2, 5, got.ids, NULL));
    ck_assert_int_eq(got.ids[4 * 5], 4);
    results_free(&got);
    fgmm_rows_free(ctx, asked);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(queries);
    ivf_data_free(base);
}
END_TEST

static TCase *searching(void) {
    TCase *room = tcase_create("exact search");
    tcase_add_loop_test(room, exact, 0, 126);
    tcase_add_test(room, from_a_callback);
    tcase_add_test(room, refused);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {searching};
    return harness_main("exact search", rooms, 1);
}
