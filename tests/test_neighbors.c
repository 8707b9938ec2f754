/* Neighbours in files: what is written comes back and has the bytes the format asks for; a broken file fails with a
 * message. */
#include <math.h>

#include "scratch.h"
#ifdef FGMM_HAVE_HDF5
#include <hdf5.h>
#endif

enum { K = 4, COUNT = N * K };

static int64_t ids[COUNT];
static float distances[COUNT];
static fgmm_neighbors all = {N, K, ids, distances, "angular"};

static void fill(void) {
    for (int i = 0; i < COUNT; i++) {
        ids[i] = i % 11 == 10 ? -1 : i * i * 70001 % INT32_MAX;
        distances[i] = (float)sqrt(i);
    }
    ids[3] = INT32_MAX;
}

/* Loads and compares. @param with_distances whether the file should have any. */
static void comes_back(const char *path, const char *format, int with_distances, const char *metric) {
    fgmm_neighbors *got = NULL;
    OK(fgmm_neighbors_load(ctx, &got, path, format));
    ck_assert_int_eq(got->n, N);
    ck_assert_int_eq(got->k, K);
    ck_assert_mem_eq(got->ids, ids, sizeof ids);
    ck_assert_int_eq(got->distances != NULL, with_distances);
    if (with_distances) ck_assert_mem_eq(got->distances, distances, sizeof distances);
    ck_assert_str_eq(got->metric, metric);
    fgmm_neighbors_free(ctx, got);
}

/* @return the status of a load whose result is thrown away. */
static fgmm_status load(const char *path) {
    fgmm_neighbors *got = NULL;
    fgmm_status status = fgmm_neighbors_load(ctx, &got, path, NULL);
    ck_assert_int_eq(status == FGMM_OK, got != NULL);
    if (status != FGMM_OK) ck_assert_str_ne(fgmm_context_message(ctx), "");
    fgmm_neighbors_free(ctx, got);
    return status;
}

/* ---- formats ---- */

START_TEST(test_ivecs) {
    size_t bytes;
    OK(fgmm_neighbors_save(ctx, in_folder("a.ivecs"), &all));
    comes_back(in_folder("a.ivecs"), NULL, 0, "");
    unsigned char *file = get_file(in_folder("a.ivecs"), &bytes);
    ck_assert_uint_eq(bytes, N * (K + 1) * 4);
    for (int i = 0; i < N * (K + 1); i++) {
        int32_t value;
        memcpy(&value, file + 4 * i, 4);
        ck_assert_int_eq(value, i % (K + 1) == 0 ? K : ids[i / (K + 1) * K + i % (K + 1) - 1]);
    }
    put_file(in_folder("plain"), file, bytes);
    comes_back(in_folder("plain"), "ivecs", 0, "");
    free(file);
}
END_TEST

/* More queries, and longer ones, than a piece of the reader or the writer holds. */
START_TEST(test_large) {
    static const char *const names[] = {"l.ivecs", "l.ibin", "l.npy"};
    static const int64_t shapes[2][2] = {{70001, 3}, {2, 200003}};
    for (int s = 0; s < 2; s++) {
        int64_t n = shapes[s][0], k = shapes[s][1];
        int64_t *many = malloc((size_t)(n * k) * sizeof *many);
        ck_assert_ptr_nonnull(many);
        for (int64_t i = 0; i < n * k; i++) many[i] = i * 7919 % 1000003;
        for (int f = 0; f < 3; f++) {
            fgmm_neighbors *got = NULL;
            OK(fgmm_neighbors_save(ctx, in_folder(names[f]), &(fgmm_neighbors){n, k, many, NULL, NULL}));
            OK(fgmm_neighbors_load(ctx, &got, in_folder(names[f]), NULL));
            ck_assert(got->n == n && got->k == k && !got->distances);
            ck_assert_mem_eq(got->ids, many, (size_t)(n * k) * sizeof *many);
            fgmm_neighbors_free(ctx, got);
        }
        free(many);
    }
}
END_TEST

START_TEST(test_ibin) {
    const uint32_t header[2] = {N, K};
    size_t bytes;
    fgmm_neighbors bare = all;
    OK(fgmm_neighbors_save(ctx, in_folder("a.ibin"), &all));
    comes_back(in_folder("a.ibin"), NULL, 1, "");
    unsigned char *file = get_file(in_folder("a.ibin"), &bytes);
    ck_assert_uint_eq(bytes, 8 + COUNT * 8);
    ck_assert_mem_eq(file, header, 8);
    for (int i = 0; i < COUNT; i++) {
        int32_t value;
        memcpy(&value, file + 8 + 4 * i, 4);
        ck_assert_int_eq(value, ids[i]);
    }
    ck_assert_mem_eq(file + 8 + COUNT * 4, distances, sizeof distances);
    free(file);
    bare.distances = NULL;
    OK(fgmm_neighbors_save(ctx, in_folder("b.ibin"), &bare));
    comes_back(in_folder("b.ibin"), NULL, 0, "");
    file = get_file(in_folder("b.ibin"), &bytes);
    ck_assert_uint_eq(bytes, 8 + COUNT * 4);
    free(file);
}
END_TEST

START_TEST(test_npy) {
    int32_t narrow[COUNT];
    const uint64_t huge = UINT64_MAX;
    OK(fgmm_neighbors_save(ctx, in_folder("a.npy"), &all));
    comes_back(in_folder("a.npy"), NULL, 0, "");
    for (int i = 0; i < COUNT; i++) narrow[i] = (int32_t)ids[i];
    fgmm_array array = {NULL, FGMM_I32, 2, {N, K, 0}, narrow};
    OK(fgmm_arrays_save(ctx, in_folder("b.npy"), &array, 1));
    comes_back(in_folder("b.npy"), NULL, 0, "");
    array.ndim = 1;
    OK(fgmm_arrays_save(ctx, in_folder("c.npy"), &array, 1));
    FAILS(load(in_folder("c.npy")), FGMM_ERR_FORMAT, "[n, k]");
    array = (fgmm_array){NULL, FGMM_F32, 2, {N, K, 0}, distances};
    OK(fgmm_arrays_save(ctx, in_folder("d.npy"), &array, 1));
    FAILS(load(in_folder("d.npy")), FGMM_ERR_FORMAT, "<f4");
    array = (fgmm_array){NULL, FGMM_U8, 2, {2, 2, 0}, "\1\2\3\377"};
    OK(fgmm_arrays_save(ctx, in_folder("e.npy"), &array, 1));
    OK(load(in_folder("e.npy")));
    array = (fgmm_array){NULL, FGMM_I64, 2, {1, 1, 0}, &huge};
    OK(fgmm_arrays_save(ctx, in_folder("f.npy"), &array, 1)); /* -1: none */
    OK(load(in_folder("f.npy")));
    size_t bytes;
    unsigned char *file = get_file(in_folder("f.npy"), &bytes);
    char *descr = strstr((char *)file + 10, "<i8");
    ck_assert_ptr_nonnull(descr);
    descr[1] = 'u';
    put_file(in_folder("g.npy"), file, bytes);
    FAILS(load(in_folder("g.npy")), FGMM_ERR_FORMAT, "no id");
    descr[0] = '>';
    put_file(in_folder("g.npy"), file, bytes);
    FAILS(load(in_folder("g.npy")), FGMM_ERR_FORMAT, "big-endian");
    free(file);
}
END_TEST

/* ---- what is refused ---- */

START_TEST(test_save_refused) {
    fgmm_neighbors bad = all;
    FAILS(fgmm_neighbors_save(ctx, in_folder("a.csv"), &all), FGMM_ERR_INVALID, ".ivecs");
    FAILS(fgmm_neighbors_save(ctx, in_folder("a.ivecs"), NULL), FGMM_ERR_INVALID, "NULL");
    bad.n = 0;
    FAILS(fgmm_neighbors_save(ctx, in_folder("a.ivecs"), &bad), FGMM_ERR_INVALID, "positive");
    bad.n = INT64_MAX / 2;
    FAILS(fgmm_neighbors_save(ctx, in_folder("a.ivecs"), &bad), FGMM_ERR_INVALID, "overflow");
    ids[5] = (int64_t)INT32_MAX + 1;
    FAILS(fgmm_neighbors_save(ctx, in_folder("a.ivecs"), &all), FGMM_ERR_INVALID, "neighbour 1 of query 1");
    FAILS(fgmm_neighbors_save(ctx, in_folder("a.ibin"), &all), FGMM_ERR_INVALID, "no id");
    OK(fgmm_neighbors_save(ctx, in_folder("a.npy"), &all));
    comes_back(in_folder("a.npy"), NULL, 0, "");
    ids[5] = -2;
    FAILS(fgmm_neighbors_save(ctx, in_folder("b.npy"), &all), FGMM_ERR_INVALID, "is -2");
    FAILS(fgmm_neighbors_save(ctx, in_folder("none/b.ibin"), &all), FGMM_ERR_INVALID, "is -2");
    fill();
    FAILS(fgmm_neighbors_save(ctx, in_folder("none/b.ibin"), &all), FGMM_ERR_IO, "does not exist");
    ck_assert_int_eq(count_files(), 1);
}
END_TEST

START_TEST(test_load_refused) {
    const int32_t lengths[] = {2, 5, 6, 3, 7, 8, 2, 9, 10, -1, 3, 3};
    const int32_t negative[] = {2, 5, -6};
    const uint32_t lies[3] = {UINT32_MAX, UINT32_MAX, 0};
    fgmm_neighbors *got = NULL;
    FAILS(load(in_folder("none.ivecs")), FGMM_ERR_IO, "none.ivecs");
    FAILS(load(in_folder("none.csv")), FGMM_ERR_INVALID, "ivecs");
    FAILS(fgmm_neighbors_load(ctx, &got, in_folder("x"), "csv"), FGMM_ERR_INVALID, "csv");
    FAILS(fgmm_neighbors_load(ctx, NULL, in_folder("x"), "npy"), FGMM_ERR_INVALID, "NULL");
    put_file(in_folder("a.ivecs"), lengths, 36);
    FAILS(load(in_folder("a.ivecs")), FGMM_ERR_FORMAT, "query 1 has 3");
    put_file(in_folder("a.ivecs"), lengths + 9, 12);
    FAILS(load(in_folder("a.ivecs")), FGMM_ERR_FORMAT, "query 0 claims -1");
    put_file(in_folder("a.ivecs"), negative, 12);
    FAILS(load(in_folder("a.ivecs")), FGMM_ERR_FORMAT, "neighbour 1 of query 0 is -6");
    put_file(in_folder("a.ibin"), lies, 12);
    FAILS(load(in_folder("a.ibin")), FGMM_ERR_FORMAT, "overflows");
    put_file(in_folder("a.ibin"), lies + 1, 8);
    FAILS(load(in_folder("a.ibin")), FGMM_ERR_FORMAT, "positive");
    ck_assert_int_eq(mkdir(in_folder("dir.ibin"), 0700), 0);
    FAILS(load(in_folder("dir.ibin")), FGMM_ERR_IO, "folder");
}
END_TEST

/* Cut anywhere, a file fails; only ivecs may end behind any query, and ground truth behind its ids. */
START_TEST(test_truncated) {
    static const char *const names[] = {"t.ivecs", "t.ibin", "t.npy"};
    for (int f = 0; f < 3; f++) {
        size_t bytes;
        OK(fgmm_neighbors_save(ctx, in_folder(names[f]), &all));
        unsigned char *file = get_file(in_folder(names[f]), &bytes);
        for (size_t length = 0; length < bytes; length++) {
            int whole = f == 0 ? length && length % ((K + 1) * 4) == 0 : f == 1 && length == 8 + 4 * COUNT;
            put_file(in_folder(names[f]), file, length);
            fgmm_status status = load(in_folder(names[f]));
            ck_assert_msg(status == (whole ? FGMM_OK : FGMM_ERR_FORMAT), "%s of %zu bytes: %s", names[f], length,
                          fgmm_status_name(status));
        }
        put_file(in_folder(names[f]), file, bytes + 1);
        FAILS(load(in_folder(names[f])), FGMM_ERR_FORMAT, names[f]);
        free(file);
    }
}
END_TEST

/* No bit of a header does more than make the file fail; the ids may be any. */
START_TEST(test_flipped) {
    static const char *const names[] = {"f.ivecs", "f.ibin", "f.npy"};
    int refused = 0;
    for (int f = 0; f < 3; f++) {
        size_t bytes;
        OK(fgmm_neighbors_save(ctx, in_folder(names[f]), &all));
        unsigned char *file = get_file(in_folder(names[f]), &bytes);
        for (size_t at = 0; at < 128 && at < bytes; at++)
            for (int bit = 0; bit < 8; bit++) {
                file[at] ^= (unsigned char)(1 << bit);
                put_file(in_folder(names[f]), file, bytes);
                refused += load(in_folder(names[f])) != FGMM_OK;
                file[at] ^= (unsigned char)(1 << bit);
            }
        free(file);
    }
    ck_assert_int_gt(refused, 300);
}
END_TEST

/* ---- HDF5 ---- */

#ifdef FGMM_HAVE_HDF5
static void put_set(hid_t file, const char *name, hid_t type, int64_t n, int64_t k, const void *data) {
    const hsize_t size[2] = {(hsize_t)n, (hsize_t)k};
    hid_t space = H5Screate_simple(2, size, NULL);
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    ck_assert_int_ge(set, 0);
    if (data) ck_assert_int_ge(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), 0);
    H5Dclose(set);
    H5Sclose(space);
}

/* As h5py writes a string: one of variable length. */
static void put_words(hid_t file, const char *name, const char *words) {
    hid_t space = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1);
    ck_assert_int_ge(H5Tset_size(type, H5T_VARIABLE), 0);
    hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    ck_assert_int_ge(attribute, 0);
    ck_assert_int_ge(H5Awrite(attribute, type, &words), 0);
    H5Aclose(attribute);
    H5Tclose(type);
    H5Sclose(space);
}

/* A file as ann-benchmarks has them, its neighbours int32 and its distances double. */
START_TEST(test_hdf5) {
    const char *path = in_folder("x.hdf5");
    int32_t narrow[COUNT];
    double wide[COUNT];
    char with_name[600];
    size_t bytes;
    fgmm_rows *rows = NULL, *part = NULL;
    for (int i = 0; i < COUNT; i++) {
        narrow[i] = (int32_t)ids[i];
        wide[i] = (double)distances[i];
    }
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    ck_assert_int_ge(file, 0);
    put_words(file, "distance", "euclidean");
    put_set(file, "train", H5T_NATIVE_FLOAT, N, D, numbers);
    put_set(file, "test", H5T_NATIVE_FLOAT, N, D, numbers);
    put_set(file, "neighbors", H5T_NATIVE_INT, N, K, narrow);
    put_set(file, "distances", H5T_NATIVE_DOUBLE, N, K, wide);
    put_set(file, "unwritten", H5T_NATIVE_INT, 1 << 20, 1 << 20, NULL);
    ck_assert_int_ge(H5Fclose(file), 0);
    comes_back(path, NULL, 1, "euclidean");
    snprintf(with_name, sizeof with_name, "%s:neighbors", path);
    comes_back(with_name, "hdf5", 0, "euclidean");
    snprintf(with_name, sizeof with_name, "%s:test", path);
    FAILS(load(with_name), FGMM_ERR_FORMAT, "integers");
    OK(fgmm_rows_open(ctx, &rows, with_name, NULL));
    OK(fgmm_rows_slice(ctx, &part, rows, 1, 2));
    ck_assert_str_eq(fgmm_rows_metric(rows), "euclidean");
    ck_assert_str_eq(fgmm_rows_metric(part), "euclidean");
    fgmm_rows_free(ctx, part);
    fgmm_rows_free(ctx, rows);
    snprintf(with_name, sizeof with_name, "%s:absent", path);
    FAILS(load(with_name), FGMM_ERR_FORMAT, "absent");
    snprintf(with_name, sizeof with_name, "%s:unwritten", path);
    FAILS(load(with_name), FGMM_ERR_FORMAT, "in 0 bytes");
    OK(fgmm_neighbors_save(ctx, in_folder("y.h5"), &all));
    comes_back(in_folder("y.h5"), NULL, 1, "angular");
    OK(fgmm_neighbors_save(ctx, in_folder("z.h5"), &(fgmm_neighbors){N, K, ids, NULL, NULL}));
    comes_back(in_folder("z.h5"), NULL, 0, "");
    unsigned char *whole = get_file(in_folder("y.h5"), &bytes);
    for (size_t length = 0; length < bytes; length += 61) {
        put_file(in_folder("y.h5"), whole, length);
        ck_assert_int_ne(load(in_folder("y.h5")), FGMM_OK);
    }
    free(whole);
}
END_TEST
#else
START_TEST(test_hdf5) {
    FAILS(load(in_folder("x.hdf5")), FGMM_ERR_UNSUPPORTED, "HDF5");
    FAILS(fgmm_neighbors_save(ctx, in_folder("x.h5"), &all), FGMM_ERR_UNSUPPORTED, "HDF5");
}
END_TEST
#endif

int main(void) {
    const TTest *const tests[] = {test_ivecs,        test_large,     test_ibin,    test_npy, test_save_refused,
                                  test_load_refused, test_truncated, test_flipped, test_hdf5};
    fill();
    return run_tests("neighbors", tests, sizeof tests / sizeof *tests);
}
