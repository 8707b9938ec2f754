/* An index copied to a device against the index itself and against distances in double. */
#include "ivf_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_U8, FGMM_I8, FGMM_F64, FGMM_BF16};
enum { TYPES = sizeof types / sizeof *types, METRICS = 3, LISTS = 13, NEIGHBOURS = 10 };

/* How many of the comparisons that rounding may spoil were made. */
static struct { int compared; } test;

/* With the rows added, and a searcher. */
static ivf_fixture fixture_of(fgmm_context *ctx, const ivf_recipe *of) {
    ivf_fixture f = ivf_fixture_make(ctx, of);
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    CHECK_OK(ctx, fgmm_ivf_searcher_create(ctx, &f.searcher, f.index));
    return f;
}

/* All metrics, types and some numbers of features in turn. */
static ivf_fixture fixture_make(fgmm_context *ctx, int which, int64_t n, int64_t nq, fgmm_ivf_rule rule,
                                int max_lists) {
    static const int64_t ds[] = {5, 14, 23, 32, 1};
    ivf_recipe of = {.stream = 900 + (uint64_t)which,
                     .metric = (fgmm_metric)(which % METRICS),
                     .n = n,
                     .nq = nq,
                     .d = ds[which % 5],
                     .n_lists = LISTS,
                     .rule = rule,
                     .max_lists = max_lists};
    if (of.d == 1 && of.metric == FGMM_ANGULAR) of.d = 2; /* a row of zeros would be likely */
    of.type = types[which / 3 % TYPES];
    of.asked = which % 2 ? of.type : types[which / 2 % TYPES];
    return fixture_of(ctx, &of);
}

static void search(fgmm_context *ctx, ivf_fixture *f, const fgmm_ivf_search_options *o, fgmm_ivf_counts *counts) {
    CHECK_OK(ctx,
             fgmm_ivf_searcher_search(ctx, f->searcher, f->asked, NEIGHBOURS, o, f->got.ids, f->got.distances, counts));
}

static void search_host(fgmm_context *ctx, ivf_fixture *f, const fgmm_ivf_search_options *o, fgmm_ivf_counts *counts) {
    CHECK_OK(ctx, fgmm_ivf_search(ctx, f->index, f->asked, NEIGHBOURS, o, f->want.ids, f->want.distances, counts));
}

static double tolerance(const ivf_fixture *f, int64_t q, int64_t id) {
    int64_t d = f->base->d;
    return 2 * ivf_tolerance(f->metric, f->base->values + id * d, f->queries->values + q * d, d);
}

/* Distance by distance the same but for rounding, and the same ids but where distances are too close to call. */
static void check_same(const ivf_fixture *f) {
    for (int64_t q = 0; q < f->got.nq; q++) {
        const int64_t *a = f->want.ids + q * NEIGHBOURS, *b = f->got.ids + q * NEIGHBOURS;
        const float *x = f->want.distances + q * NEIGHBOURS, *y = f->got.distances + q * NEIGHBOURS;
        for (int i = 0; i < NEIGHBOURS; i++) {
            EXPECT((a[i] < 0) == (b[i] < 0), "query %d, neighbour %d: id %lld, not %lld", (int)q, i, (long long)b[i],
                   (long long)a[i]);
            if (a[i] < 0) continue;
            double off = fmax(tolerance(f, q, a[i]), tolerance(f, q, b[i]));
            EXPECT(fabs((double)x[i] - (double)y[i]) <= off, "query %d, neighbour %d: %.9g, not %.9g", (int)q, i, y[i],
                   x[i]);
            int close = (i > 0 && fabs((double)x[i] - (double)x[i - 1]) <= off) ||
                        (i < NEIGHBOURS - 1 && fabs((double)x[i + 1] - (double)x[i]) <= off) || i == NEIGHBOURS - 1;
            EXPECT(a[i] == b[i] || close, "query %d, neighbour %d: id %lld, not %lld", (int)q, i, (long long)b[i],
                   (long long)a[i]);
        }
    }
}

static void check_counts(const fgmm_ivf_counts *got, const fgmm_ivf_counts *host) {
    ck_assert_int_eq(got->queries, host->queries);
    ck_assert_int_eq(got->probes, host->probes);
    ck_assert_int_eq(got->entries, host->entries);
    ck_assert_int_eq(got->distances, host->distances);
    ck_assert_int_eq(got->centroid_distances, host->centroid_distances);
}

/* How far query q is from centroid j, smaller nearer, as probing has it. */
static void list_distances(const ivf_fixture *f, int64_t q, double *out) {
    int64_t d = f->base->d;
    if (f->metric != FGMM_INNER_PRODUCT) {
        ivf_list_distances(f->queries, q, f->model, f->metric, out);
        return;
    }
    for (int j = 0; j < LISTS; j++)
        out[j] = ivf_distance(f->metric, fgmm_model_means(f->model) + j * d, f->queries->values + q * d, d);
}

/* Whether rounding may decide which lists some query probes: two centroids, or a centroid and the gap, too close. */
static int is_close_call(const ivf_fixture *f, double gap) {
    for (int64_t q = 0; q < f->queries->n; q++) {
        double distance[LISTS], least = INFINITY, size = 0;
        list_distances(f, q, distance);
        for (int j = 0; j < LISTS; j++) {
            least = fmin(least, distance[j]);
            size = fmax(size, fabs(distance[j]));
        }
        for (int j = 0; j < LISTS; j++) {
            if (gap > 0 && fabs(distance[j] - least - gap) <= 1e-5 * size) return 1;
            for (int i = 0; i < j; i++)
                if (fabs(distance[i] - distance[j]) <= 1e-5 * fmin(size, fabs(distance[j]) + 1e-3 * size)) return 1;
        }
    }
    return 0;
}

static const struct {
    fgmm_ivf_rule rule;
    int max_lists;
} rules[] = {{FGMM_IVF_SINGLE, 1}, {FGMM_IVF_SOAR, 2}, {FGMM_IVF_NEAREST, 3}, {FGMM_IVF_GAP, 8}};

/* All lists: the nearest rows there are, each looked at once, however many lists it is in. */
START_TEST(all_lists) {
    if (!harness_takes(_i)) return;
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, _i, 300 + _i, 33, rules[_i % 4].rule, rules[_i % 4].max_lists);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    fgmm_ivf_counts counts, host;
    o.n_probe = LISTS;
    search(ctx, &f, &o, &counts);
    search_host(ctx, &f, &o, &host);
    check_nearest(f.base, f.queries, f.metric, &f.got, NULL);
    check_same(&f);
    check_counts(&counts, &host);
    ck_assert_int_eq(counts.distances, f.base->n * f.queries->n);
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* Some lists, by number, by a gap, and under a filter: what the index itself finds, and counts. */
START_TEST(some_lists) {
    if (!harness_takes(_i)) return;
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 100 + _i, 400, 21, rules[_i % 4].rule, rules[_i % 4].max_lists);
    fgmm_ivf_counts counts, host;
    rng r = rng_make(1000 + (uint64_t)_i);
    uint8_t filter[40]; /* of the first 320 ids: the rest is not wanted */
    for (size_t i = 0; i < sizeof filter; i++) filter[i] = (uint8_t)rng_bits(&r);
    double distance[LISTS], least = INFINITY, most = -INFINITY;
    list_distances(&f, 0, distance);
    for (int j = 0; j < LISTS; j++) {
        least = fmin(least, distance[j]);
        most = fmax(most, distance[j]);
    }
    int compared = 0;
    for (int turn = 0; turn < 4; turn++) {
        fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
        if (turn == 0) o.n_probe = 1;
        if (turn >= 1) o.n_probe = 4;
        if (turn == 2) o.gap = 0.3 * (most - least);
        if (turn == 3) o.filter = filter;
        if (turn == 3) o.filter_size = 8 * sizeof filter;
        search(ctx, &f, &o, &counts);
        search_host(ctx, &f, &o, &host);
        if (is_close_call(&f, o.gap)) continue;
        compared++;
        check_same(&f);
        check_counts(&counts, &host);
        for (int64_t i = 0; turn == 3 && i < f.got.nq * f.got.k; i++) {
            int64_t id = f.got.ids[i];
            ck_assert(id == -1 || (id < 320 && (filter[id / 8] >> (id % 8) & 1)));
        }
    }
    test.compared += compared;
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* Bytes among bytes are whole numbers: the same bits on every device. */
START_TEST(bytes_are_exact) {
    static const fgmm_dtype bytes[] = {FGMM_U8, FGMM_I8};
    fgmm_context *ctx = harness_context();
    ivf_recipe of = {.stream = 950 + (uint64_t)_i, .n = 500, .nq = 40, .d = 23, .n_lists = LISTS, .max_lists = 2};
    of.metric = _i / 4 ? FGMM_INNER_PRODUCT : FGMM_L2;
    of.type = bytes[_i % 2];
    of.asked = bytes[_i / 2 % 2];
    ivf_fixture f = fixture_of(ctx, &of);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    o.n_probe = LISTS;
    search(ctx, &f, &o, NULL);
    search_host(ctx, &f, &o, NULL);
    ck_assert_mem_eq(f.got.ids, f.want.ids, (size_t)(40 * NEIGHBOURS) * sizeof *f.got.ids);
    ck_assert_mem_eq(f.got.distances, f.want.distances, (size_t)(40 * NEIGHBOURS) * sizeof(float));
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* A thousand copies of a row are as near as each other: those with the smallest ids are found. */
START_TEST(ties) {
    fgmm_context *ctx = harness_context();
    rng r = rng_make(990);
    ivf_data *base = ivf_data_make(&r, 1000, 6, FGMM_F32);
    for (int64_t i = 1; i < base->n; i++) memcpy((float *)base->rows + 6 * i, base->rows, 6 * sizeof(float));
    fgmm_rows *rows = ivf_data_rows(ctx, base);
    fgmm_model *model = ivf_model(ctx, &r, base, 5, FGMM_L2);
    fgmm_ivf *index = NULL;
    fgmm_ivf_searcher *searcher = NULL;
    fgmm_rows *asked = NULL;
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    int64_t ids[3 * NEIGHBOURS], given[1000];
    float distances[3 * NEIGHBOURS];
    for (int64_t i = 0; i < 1000; i++) given[i] = 5 * ((i * 337) % 1000) + 2;
    CHECK_OK(ctx, fgmm_ivf_create(ctx, &index, model, NULL));
    CHECK_OK(ctx, fgmm_ivf_add(ctx, index, rows, given, NULL));
    CHECK_OK(ctx, fgmm_ivf_searcher_create(ctx, &searcher, index));
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &asked, rows, 0, 3));
    o.n_probe = 5;
    CHECK_OK(ctx, fgmm_ivf_searcher_search(ctx, searcher, asked, NEIGHBOURS, &o, ids, distances, NULL));
    for (int i = 0; i < 3 * NEIGHBOURS; i++) {
        ck_assert_int_eq(ids[i], 5 * (i % NEIGHBOURS) + 2);
        ck_assert(distances[i] == 0);
    }
    fgmm_ivf_searcher_free(ctx, searcher);
    fgmm_ivf_free(ctx, index);
    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, asked);
    fgmm_rows_free(ctx, rows);
    ivf_data_free(base);
}
END_TEST

/* More queries than a batch takes, and the same results whatever goes together. */
START_TEST(batches) {
    if (harness_is_slow()) return;
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 1, 200, 4500, FGMM_IVF_SOAR, 2);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    int64_t ids[NEIGHBOURS];
    float distances[NEIGHBOURS];
    o.n_probe = 3;
    search(ctx, &f, &o, NULL);
    for (int64_t q = 0; q < f.queries->n; q += 499) {
        fgmm_rows *one = NULL;
        CHECK_OK(ctx, fgmm_rows_slice(ctx, &one, f.asked, q, 1));
        CHECK_OK(ctx, fgmm_ivf_searcher_search(ctx, f.searcher, one, NEIGHBOURS, &o, ids, distances, NULL));
        ck_assert(memcmp(ids, f.got.ids + q * NEIGHBOURS, sizeof ids) == 0);
        ck_assert(memcmp(distances, f.got.distances + q * NEIGHBOURS, sizeof distances) == 0);
        fgmm_rows_free(ctx, one);
    }
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* More neighbours than rows, and nothing to find. */
START_TEST(few_rows) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 0, 4, 9, FGMM_IVF_SINGLE, 1);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    const uint8_t none = 0;
    fgmm_ivf_counts counts;
    o.n_probe = LISTS;
    search(ctx, &f, &o, NULL);
    check_nearest(f.base, f.queries, f.metric, &f.got, NULL);
    o.filter = &none;
    search(ctx, &f, &o, &counts);
    ck_assert_int_eq(counts.distances, 0);
    for (int i = 0; i < 9 * NEIGHBOURS; i++) ck_assert(f.got.ids[i] == -1 && f.got.distances[i] == INFINITY);
    /* And an index without rows. */
    fgmm_ivf *index = NULL;
    fgmm_ivf_searcher *searcher = NULL;
    CHECK_OK(ctx, fgmm_ivf_create(ctx, &index, f.model, NULL));
    CHECK_OK(ctx, fgmm_ivf_searcher_create(ctx, &searcher, index));
    CHECK_OK(ctx, fgmm_ivf_searcher_search(ctx, searcher, f.asked, NEIGHBOURS, NULL, f.got.ids, NULL, NULL));
    for (int i = 0; i < 9 * NEIGHBOURS; i++) ck_assert_int_eq(f.got.ids[i], -1);
    fgmm_ivf_searcher_free(ctx, searcher);
    fgmm_ivf_free(ctx, index);
    ivf_fixture_free(ctx, &f);
}
END_TEST

START_TEST(refused) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 0, 50, 3, FGMM_IVF_SOAR, 2);
    fgmm_ivf_searcher *searcher = NULL;
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    int64_t *ids = f.got.ids;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_searcher_create(ctx, &searcher, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_searcher_search(ctx, NULL, f.asked, 1, NULL, ids, NULL, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_searcher_search(ctx, f.searcher, f.asked, 0, NULL, ids, NULL, NULL));
    o.target_recall = 0.9; /* not calibrated */
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_searcher_search(ctx, f.searcher, f.asked, 1, &o, ids, NULL, NULL));
    float bad[5] = {0, 1, NAN, 2, 3};
    fgmm_rows *rows = NULL;
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &rows, bad, FGMM_F32, 1, 5, 0));
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_ivf_searcher_search(ctx, f.searcher, rows, 1, NULL, ids, NULL, NULL));
    fgmm_rows_free(ctx, rows);
    /* Rows that came or went make it out of date. */
    const int64_t gone[] = {7};
    int64_t removed = 0;
    CHECK_OK(ctx, fgmm_ivf_remove(ctx, f.index, gone, 1, &removed));
    ck_assert_int_eq(removed, 1);
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_searcher_search(ctx, f.searcher, f.asked, 1, NULL, ids, NULL, NULL));
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* With little memory queries go in smaller groups, to the same results; without room for the index it is refused. */
START_TEST(little_room) {
    if (harness_is_cpu()) return;
    enum { OPENING = 8 << 20 }; /* what opening a device takes */
    fgmm_context *ctx = harness_context();
    ivf_recipe of = {.stream = 980, .n = 8000, .nq = 600, .d = 23, .n_lists = LISTS, .max_lists = 2};
    ivf_fixture f = fixture_of(ctx, &of);
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_context *small = NULL;
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    o.n_probe = LISTS; /* 600 x 12000 candidates of 8 bytes */
    search(ctx, &f, &o, NULL);
    options.device_memory_limit = OPENING;
    CHECK_OK(ctx, harness_open(&small, &options));
    fgmm_ivf_searcher *searcher = NULL;
    fgmm_rows *asked = ivf_data_rows(small, f.queries);
    CHECK_OK(small, fgmm_ivf_searcher_create(small, &searcher, f.index));
    CHECK_OK(small,
             fgmm_ivf_searcher_search(small, searcher, asked, NEIGHBOURS, &o, f.want.ids, f.want.distances, NULL));
    ck_assert_mem_eq(f.got.ids, f.want.ids, (size_t)(600 * NEIGHBOURS) * sizeof *f.got.ids);
    ck_assert_mem_eq(f.got.distances, f.want.distances, (size_t)(600 * NEIGHBOURS) * sizeof(float));
    fgmm_ivf_searcher_free(small, searcher);
    ivf_fixture_free(ctx, &f);
    of.stream = 981;
    of.n = 100000;
    of.nq = 3;
    of.max_lists = 1;
    of.rule = FGMM_IVF_SINGLE;
    f = fixture_of(ctx, &of);
    fgmm_status status = fgmm_ivf_searcher_create(small, &searcher, f.index);
    ck_assert_msg(status == FGMM_ERR_MEMORY && strstr(fgmm_context_message(small), "the rows of an index"), "%s",
                  fgmm_context_message(small));
    ck_assert_ptr_null(searcher);
    /* A searcher is its context's alone. */
    CHECK_FAILS(small, FGMM_ERR_INVALID,
                fgmm_ivf_searcher_search(small, f.searcher, asked, 1, NULL, f.got.ids, NULL, NULL));
    fgmm_rows_free(small, asked);
    fgmm_context_free(small);
    ivf_fixture_free(ctx, &f);
}
END_TEST

START_TEST(comparisons_were_made) {
    ck_assert_int_ge(test.compared, harness_is_short() ? 1 : 100);
}
END_TEST

static TCase *searchers(void) {
    TCase *room = tcase_create("searchers");
    tcase_add_loop_test(room, all_lists, 0, 36);
    tcase_add_loop_test(room, some_lists, 0, 36);
    tcase_add_test(room, comparisons_were_made);
    tcase_add_loop_test(room, bytes_are_exact, 0, 8);
    tcase_add_test(room, ties);
    tcase_add_test(room, batches);
    tcase_add_test(room, few_rows);
    tcase_add_test(room, refused);
    tcase_add_test(room, little_room);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {searchers};
    return harness_main("ivf_searcher", rooms, 1);
}
