/* The index against distances in double and against exact search, and its laws. */
#include "ivf_data.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_U8, FGMM_I8, FGMM_F64, FGMM_BF16};
enum { TYPES = sizeof types / sizeof *types, METRICS = 3 };

/* ---- an index to try things on ---- */

static ivf_fixture fixture_make(fgmm_context *ctx, int which, int64_t n, int64_t k_lists, fgmm_ivf_rule rule,
                                int max_lists) {
    const ivf_recipe of = {.stream = 700 + (uint64_t)which,
                           .metric = (fgmm_metric)(which % METRICS),
                           .type = types[which % TYPES],
                           .asked = types[which / 2 % TYPES],
                           .n = n,
                           .nq = 37,
                           .d = 5 + which % 4 * 9,
                           .n_lists = k_lists,
                           .rule = rule,
                           .max_lists = max_lists};
    return ivf_fixture_make(ctx, &of);
}

static void search(fgmm_context *ctx, ivf_fixture *f, const fgmm_ivf_search_options *o, fgmm_ivf_counts *counts) {
    CHECK_OK(ctx, fgmm_ivf_search(ctx, f->index, f->asked, f->got.k, o, f->got.ids, f->got.distances, counts));
}

static fgmm_ivf_search_options all_lists(const ivf_fixture *f) {
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    o.n_probe = fgmm_model_components(f->model);
    return o;
}

static int same(const results *a, const results *b) {
    size_t n = (size_t)(a->nq * a->k);
    return memcmp(a->ids, b->ids, n * sizeof *a->ids) == 0 &&
           memcmp(a->distances, b->distances, n * sizeof *a->distances) == 0;
}

/* With all lists probed the index is exact search, to the last bit, and looks at each row once. */
START_TEST(full_probing_is_exact) {
    static const struct {
        fgmm_ivf_rule rule;
        int max_lists;
    } cases[] = {{FGMM_IVF_SINGLE, 1}, {FGMM_IVF_SOAR, 2}, {FGMM_IVF_NEAREST, 3},
                 {FGMM_IVF_RAIR, 2},   {FGMM_IVF_GAP, 8},  {FGMM_IVF_RESPONSIBILITY, 2}};
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, _i, 700, 15, cases[_i % 6].rule, cases[_i % 6].max_lists);
    fgmm_ivf_search_options o = all_lists(&f);
    fgmm_ivf_counts counts;
    fgmm_ivf_info info;
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    CHECK_OK(ctx, fgmm_exact_search(ctx, f.rows, f.asked, f.metric, 10, f.want.ids, f.want.distances));
    search(ctx, &f, &o, &counts);
    check_nearest(f.base, f.queries, f.metric, &f.got, NULL);
    ck_assert(same(&f.got, &f.want));
    fgmm_ivf_describe(f.index, &info);
    ck_assert_int_eq(info.n_rows, 700);
    ck_assert_int_eq(counts.distances, 700 * counts.queries);
    ck_assert_int_eq(counts.entries, info.n_entries * counts.queries);
    ck_assert_int_eq(counts.probes, 15 * counts.queries);
    ck_assert_int_eq(counts.centroid_distances, 15 * counts.queries);
    ck_assert(info.bytes_per_row >= info.single_bytes_per_row);
    /* A gap beyond all is all lists. */
    o.n_probe = 0;
    o.gap = 1e30;
    search(ctx, &f, &o, NULL);
    ck_assert(same(&f.got, &f.want));
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* What few probes find is what the lists probed hold: recomputed from fgmm_ivf_assign and the distances to centroids. */
START_TEST(some_lists) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 3 * _i + _i / 3 % 2, 500, 12, FGMM_IVF_SOAR, 2 + _i % 2);
    if (f.metric != FGMM_L2 || f.queries->type == FGMM_F64) {
        ivf_fixture_free(ctx, &f);
        return;
    }
    fgmm_ivf_assign_options a = FGMM_IVF_ASSIGN_OPTIONS_INIT;
    fgmm_ivf_lists *lists = NULL;
    fgmm_ivf_counts counts, sum = {0};
    a.metric = f.metric;
    a.max_lists = 2 + _i % 2;
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    CHECK_OK(ctx, fgmm_ivf_assign(ctx, &lists, f.model, f.rows, &a, NULL));
    for (int64_t probe = 1; probe <= 5; probe += 2) {
        fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
        o.n_probe = probe;
        search(ctx, &f, &o, &counts);
        int unsure = 0;
        memset(&sum, 0, sizeof sum);
        for (int64_t q = 0; q < f.queries->n; q++) {
            double distance[12];
            unsigned char *wanted = test_alloc((size_t)f.base->n, 1);
            ivf_list_distances(f.queries, q, f.model, f.metric, distance);
            for (int64_t l = 0; l < 12; l++) {
                int nearer = 0;
                for (int j = 0; j < 12; j++) {
                    nearer += distance[j] < distance[l];
                    /* Rounding to f32 may turn these round. */
                    unsure |= j != l && fabs(distance[j] - distance[l]) < 1e-5 * distance[l];
                }
                if (nearer >= probe) continue;
                sum.probes++;
                sum.entries += lists->offsets[l + 1] - lists->offsets[l];
                for (int64_t i = lists->offsets[l]; i < lists->offsets[l + 1]; i++) {
                    sum.distances += !wanted[lists->rows[i]];
                    wanted[lists->rows[i]] = 1;
                }
            }
            ivf_data one = *f.queries;
            results mine = {1, f.got.k, f.got.ids + q * f.got.k, f.got.distances + q * f.got.k};
            one.values += q * one.d;
            if (!unsure) check_nearest(f.base, &one, f.metric, &mine, wanted);
            free(wanted);
        }
        if (unsure) continue;
        ck_assert_int_eq(counts.probes, sum.probes);
        ck_assert_int_eq(counts.entries, sum.entries);
        ck_assert_int_eq(counts.distances, sum.distances);
    }
    fgmm_ivf_lists_free(ctx, lists);
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* Added in parts under ids of one's own, removed in parts: what is left is found, and nothing else. */
START_TEST(add_and_remove) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, _i, 600, 11, FGMM_IVF_SOAR, 1 + _i % 4);
    int64_t ids[600], gone[300], removed = -1;
    unsigned char *wanted = test_alloc(600, 1);
    fgmm_rows *part = NULL;
    fgmm_ivf_search_options o = all_lists(&f);
    fgmm_ivf_info info;
    for (int64_t i = 0; i < 600; i++) ids[i] = i;
    for (int64_t first = 0; first < 600; first += 200) {
        CHECK_OK(ctx, fgmm_rows_slice(ctx, &part, f.rows, first, 200));
        CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, part, first == 200 ? NULL : ids + first, NULL));
        fgmm_rows_free(ctx, part);
    }
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_add(ctx, f.index, f.rows, ids, NULL));
    memset(wanted, 1, 600);
    search(ctx, &f, &o, NULL);
    check_nearest(f.base, f.queries, f.metric, &f.got, wanted);
    for (int64_t i = 0; i < 300; i++) {
        gone[i] = i * 2 + (i % 3 == 0);
        wanted[gone[i]] = 0;
    }
    gone[7] = gone[8]; /* one twice */
    wanted[gone[8]] = 0;
    wanted[7 * 2] = 1;
    CHECK_OK(ctx, fgmm_ivf_remove(ctx, f.index, gone, 300, &removed));
    ck_assert_int_eq(removed, 299);
    CHECK_OK(ctx, fgmm_ivf_remove(ctx, f.index, gone, 300, &removed));
    ck_assert_int_eq(removed, 0);
    fgmm_ivf_describe(f.index, &info);
    ck_assert_int_eq(info.n_rows, 301);
    search(ctx, &f, &o, NULL);
    check_nearest(f.base, f.queries, f.metric, &f.got, wanted);
    /* Back again. */
    CHECK_OK(ctx, fgmm_rows_slice(ctx, &part, f.rows, gone[0], 1));
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, part, gone, NULL));
    wanted[gone[0]] = 1;
    search(ctx, &f, &o, NULL);
    check_nearest(f.base, f.queries, f.metric, &f.got, wanted);
    fgmm_rows_free(ctx, part);
    free(wanted);
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* A filter leaves what it names, in every list and behind every link. */
START_TEST(filters) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, _i, 400, 9, FGMM_IVF_SOAR, 1 + _i % 3);
    unsigned char *wanted = test_alloc(400, 1);
    uint8_t bits[50] = {0};
    rng r = rng_make(800 + (uint64_t)_i);
    for (int i = 0; i < 390; i++)
        if (rng_uniform(&r) < 0.05 + 0.4 * (_i % 2)) {
            wanted[i] = 1;
            bits[i / 8] |= (uint8_t)(1 << i % 8);
        }
    bits[49] |= 0xff; /* beyond filter_size */
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    fgmm_ivf_search_options o = all_lists(&f);
    o.filter = bits;
    o.filter_size = 390;
    search(ctx, &f, &o, NULL);
    check_nearest(f.base, f.queries, f.metric, &f.got, wanted);
    free(wanted);
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* Calibrated on some queries, the target is met on them: the quantiles are of the very neighbours. */
START_TEST(targets) {
    static const double wanted[] = {0.5, 0.8, 0.9, 0.95, 0.99};
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, _i, 900, 30, FGMM_IVF_SOAR, 2);
    double before = 0, gap = 0;
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    o.target_recall = 0.9;
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID,
                fgmm_ivf_search(ctx, f.index, f.asked, 10, &o, f.got.ids, f.got.distances, NULL));
    CHECK_OK(ctx, fgmm_ivf_calibrate(ctx, f.index, f.asked, 10));
    CHECK_OK(ctx, fgmm_exact_search(ctx, f.rows, f.asked, f.metric, 10, f.want.ids, f.want.distances));
    for (int t = 0; t < 5; t++) {
        int64_t hits = 0;
        o.target_recall = wanted[t];
        search(ctx, &f, &o, NULL);
        for (int64_t i = 0; i < 370; i++)
            for (int64_t j = 0; j < 10; j++) hits += f.got.ids[i] == f.want.ids[i / 10 * 10 + j];
        /* One neighbour of 370 more or less, and half the step of the levels between which gaps are interpolated. */
        ck_assert_msg((double)hits / 370 >= wanted[t] - 2.0 / 370 - 0.003, "recall %g where %g was asked for",
                      (double)hits / 370, wanted[t]);
        CHECK_OK(ctx, fgmm_ivf_target_gap(ctx, f.index, wanted[t], &gap));
        ck_assert(gap >= before);
        before = gap;
    }
    ivf_fixture_free(ctx, &f);
}
END_TEST

/* The result depends neither on the threads nor on who asks with whom. */
START_TEST(alone_and_together) {
    fgmm_context *ctx = harness_context(), *other = NULL;
    ivf_fixture f = fixture_make(ctx, _i, 800, 14, FGMM_IVF_SOAR, 2);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.threads = 3;
    o.n_probe = 4;
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    search(ctx, &f, &o, NULL);
    for (int64_t q = 0; q < f.queries->n; q++) {
        fgmm_rows *one = NULL;
        CHECK_OK(ctx, fgmm_rows_slice(ctx, &one, f.asked, q, 1));
        CHECK_OK(ctx, fgmm_ivf_search(ctx, f.index, one, 10, &o, f.want.ids + q * 10, f.want.distances + q * 10, NULL));
        fgmm_rows_free(ctx, one);
    }
    ck_assert(same(&f.got, &f.want));
    CHECK_OK(ctx, harness_open(&other, &options));
    fgmm_rows *asked = ivf_data_rows(other, f.queries);
    CHECK_OK(other, fgmm_ivf_search(other, f.index, asked, 10, &o, f.want.ids, f.want.distances, NULL));
    ck_assert(same(&f.got, &f.want));
    fgmm_rows_free(other, asked);
    fgmm_context_free(other);
    ivf_fixture_free(ctx, &f);
}
END_TEST

typedef struct asker {
    ivf_fixture *f;
    results got;
    fgmm_status status;
} asker;

static void *ask(void *user) {
    asker *a = user;
    fgmm_context *ctx = NULL;
    fgmm_rows *asked = NULL;
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.threads = 1;
    o.n_probe = 5;
    a->status = harness_open(&ctx, &options);
    if (a->status == FGMM_OK)
        a->status = fgmm_rows_from_memory(ctx, &asked, a->f->queries->rows, a->f->queries->type, a->f->queries->n,
                                          a->f->queries->d, 0);
    for (int i = 0; i < 20 && a->status == FGMM_OK; i++)
        a->status = fgmm_ivf_search(ctx, a->f->index, asked, 10, &o, a->got.ids, a->got.distances, NULL);
    fgmm_rows_free(ctx, asked);
    fgmm_context_free(ctx);
    return NULL;
}

/* Several contexts in several threads search one index. */
START_TEST(many_searchers) {
    enum { ASKERS = 4 };
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 6, 800, 14, FGMM_IVF_SOAR, 2);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    pthread_t threads[ASKERS];
    asker askers[ASKERS];
    o.n_probe = 5;
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    search(ctx, &f, &o, NULL);
    for (int i = 0; i < ASKERS; i++) {
        askers[i] = (asker){.f = &f, .got = results_make(f.queries->n, 10)};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, ask, &askers[i]), 0);
    }
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(askers[i].status, FGMM_OK);
        ck_assert(same(&askers[i].got, &f.got));
        results_free(&askers[i].got);
    }
    ivf_fixture_free(ctx, &f);
}
END_TEST

START_TEST(beyond_f32) {
    enum { N = 300, D = 4, K = 40, FAR = 64 };
    const fgmm_metric metric = _i ? FGMM_INNER_PRODUCT : FGMM_L2;
    fgmm_context *ctx = harness_context();
    rng r = rng_make(950 + (uint64_t)_i);
    ivf_data *base = ivf_data_make(&r, N, D, FGMM_F32);
    /* Squares that overflow, and products that overflow both ways. */
    float far[FAR][D], *row = base->rows;
    for (int i = 0; i < FAR; i++)
        for (int j = 0; j < D; j++) far[i][j] = (j % 2 ? -1.0f : 1.0f) * (i % 3 ? 1e20f : 1e30f);
    for (int i = 0; _i && i < N; i += 5)
        for (int j = 0; j < D; j++) row[i * D + j] = 1e30f;
    fgmm_model *model = ivf_model(ctx, &r, base, K, metric);
    fgmm_ivf_options options = FGMM_IVF_OPTIONS_INIT;
    options.metric = metric;
    options.rule = FGMM_IVF_SINGLE;
    fgmm_ivf *index = NULL;
    fgmm_rows *rows = ivf_data_rows(ctx, base), *queries = NULL;
    int64_t ids[FAR * 3];
    CHECK_OK(ctx, fgmm_ivf_create(ctx, &index, model, &options));
    CHECK_OK(ctx, fgmm_ivf_add(ctx, index, rows, NULL, NULL));
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &queries, far, FGMM_F32, FAR, D, 0));
    for (int probe = 1; probe < K; probe += 6) {
        fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
        o.n_probe = probe;
        o.gap = probe > 20 ? 1e3 : 0;
        CHECK_OK(ctx, fgmm_ivf_search(ctx, index, queries, 3, &o, ids, NULL, NULL));
        for (int i = 0; i < FAR * 3; i++) ck_assert(ids[i] >= -1 && ids[i] < N);
    }
    fgmm_rows_free(ctx, queries);
    fgmm_rows_free(ctx, rows);
    fgmm_ivf_free(ctx, index);
    fgmm_model_free(ctx, model);
    ivf_data_free(base);
}
END_TEST

/* No list grows beyond its limit, in whatever portions rows come; what is full refuses, and all lists still hold all. */
START_TEST(limited_lists) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, _i, 300, 8, FGMM_IVF_SOAR, 1 + _i % 3);
    fgmm_ivf_options options = FGMM_IVF_OPTIONS_INIT;
    fgmm_ivf_search_options all = all_lists(&f);
    fgmm_ivf_info info;
    fgmm_ivf *index = NULL;
    fgmm_rows *part = NULL;
    options.metric = f.metric;
    options.rule = 1 + _i % 3 > 1 ? FGMM_IVF_SOAR : FGMM_IVF_SINGLE;
    options.max_lists = 1 + _i % 3;
    options.list_max = options.max_lists > 1 ? 64 : 300 / 8 + 1;
    CHECK_OK(ctx, fgmm_ivf_create(ctx, &index, f.model, &options));
    for (int64_t first = 0; first < 300; first += 100) {
        CHECK_OK(ctx, fgmm_rows_slice(ctx, &part, f.rows, first, 100));
        CHECK_OK(ctx, fgmm_ivf_add(ctx, index, part, NULL, NULL));
        fgmm_rows_free(ctx, part);
        fgmm_ivf_describe(index, &info);
        ck_assert_int_le(info.longest, options.list_max);
        ck_assert_int_eq(info.list_max, options.list_max);
    }
    CHECK_OK(ctx, fgmm_exact_search(ctx, f.rows, f.asked, f.metric, 10, f.want.ids, f.want.distances));
    CHECK_OK(ctx, fgmm_ivf_search(ctx, index, f.asked, 10, &all, f.got.ids, f.got.distances, NULL));
    ck_assert(same(&f.got, &f.want));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_add(ctx, index, f.rows, NULL, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "have room for"));
    fgmm_ivf_info after;
    fgmm_ivf_describe(index, &after);
    ck_assert_int_eq(after.n_entries, info.n_entries);
    fgmm_ivf_free(ctx, index);
    options.list_max = -1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_create(ctx, &index, f.model, &options));
    ivf_fixture_free(ctx, &f);
}
END_TEST

START_TEST(refused) {
    fgmm_context *ctx = harness_context();
    ivf_fixture f = fixture_make(ctx, 0, 60, 4, FGMM_IVF_SINGLE, 1);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    int64_t negative[60] = {0};
    CHECK_OK(ctx, fgmm_ivf_search(ctx, f.index, f.asked, 10, NULL, f.got.ids, f.got.distances, NULL));
    ck_assert_int_eq(f.got.ids[0], -1);
    negative[5] = -5;
    for (int i = 0; i < 60; i++) negative[i] += i;
    negative[5] = -5;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_add(ctx, f.index, f.rows, negative, NULL));
    negative[5] = 4;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_add(ctx, f.index, f.rows, negative, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "id 4 (ids[5])"));
    float *values = f.base->rows, kept = values[11 * f.base->d];
    values[11 * f.base->d] = INFINITY;
    CHECK_FAILS(ctx, FGMM_ERR_DATA, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    fgmm_ivf_info info;
    fgmm_ivf_describe(f.index, &info);
    ck_assert_int_eq(info.n_rows + info.n_entries, 0);
    values[11 * f.base->d] = kept;
    CHECK_OK(ctx, fgmm_ivf_add(ctx, f.index, f.rows, NULL, NULL));
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_search(ctx, f.index, f.asked, 0, &o, f.got.ids, NULL, NULL));
    o.gap = -1;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_search(ctx, f.index, f.asked, 10, &o, f.got.ids, NULL, NULL));
    o.gap = NAN;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_search(ctx, f.index, f.asked, 10, &o, f.got.ids, NULL, NULL));
    o.gap = 1;
    o.target_recall = 0.9;
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_ivf_search(ctx, f.index, f.asked, 10, &o, f.got.ids, NULL, NULL));
    ivf_fixture_free(ctx, &f);
}
END_TEST

static TCase *searching(void) {
    TCase *room = tcase_create("searching");
    tcase_add_loop_test(room, full_probing_is_exact, 0, 36);
    tcase_add_loop_test(room, some_lists, 0, 12);
    tcase_add_loop_test(room, alone_and_together, 0, 6);
    tcase_add_loop_test(room, filters, 0, 9);
    tcase_add_loop_test(room, targets, 0, 6);
    tcase_add_test(room, many_searchers);
    return room;
}

static TCase *changing(void) {
    TCase *room = tcase_create("changing");
    tcase_add_loop_test(room, add_and_remove, 0, 12);
    tcase_add_loop_test(room, beyond_f32, 0, 2);
    tcase_add_loop_test(room, limited_lists, 0, 6);
    tcase_add_test(room, refused);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {searching, changing};
    return harness_main("ivf index", rooms, 2);
}
