/* Rows in files: every format comes back as it was written, and no file, however broken, does more than fail with a
 * message. */
#include <math.h>

#include "scratch.h"
#ifdef FGMM_HAVE_HDF5
#include <hdf5.h>
#endif

/* ---- making files ---- */

static const uint8_t bytes_[N][D] = {{0, 1, 2},       {255, 254, 253}, {7, 8, 9}, {10, 11, 12},
                                     {128, 127, 129}, {3, 3, 3},       {1, 0, 1}};

/* An .npy with this header text; @return bytes. */
static size_t make_npy(unsigned char *out, const char *header, const void *data, size_t bytes) {
    size_t length = strlen(header);
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (unsigned char)(length & 255);
    out[9] = (unsigned char)(length >> 8);
    memcpy(out + 10, header, length);
    if (bytes) memcpy(out + 10 + length, data, bytes);
    return 10 + length + bytes;
}

static size_t make_vecs(unsigned char *out, const void *data, size_t item) {
    const unsigned char *from = data;
    int32_t d = D;
    for (int i = 0; i < N; i++) {
        memcpy(out + (size_t)i * (4 + D * item), &d, 4);
        memcpy(out + (size_t)i * (4 + D * item) + 4, from + (size_t)i * D * item, D * item);
    }
    return N * (4 + D * item);
}

static size_t make_bin(unsigned char *out, const void *data, size_t item) {
    uint32_t header[2] = {N, D};
    memcpy(out, header, 8);
    memcpy(out + 8, data, N * D * item);
    return 8 + N * D * item;
}

static const char npy_f4[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 3), }\n";

static const struct format_case {
    const char *name;
    int is_vecs;
    const void *data;
    size_t item;
} cases[] = {{"x.npy", 0, numbers, 4},  {"x.fvecs", 1, numbers, 4}, {"x.bvecs", 1, bytes_, 1},
             {"x.fbin", 0, numbers, 4}, {"x.u8bin", 0, bytes_, 1},  {"x.i8bin", 0, bytes_, 1}};
enum { CASES = sizeof cases / sizeof *cases };

static size_t make_case(const struct format_case *c, unsigned char *out) {
    if (strcmp(c->name, "x.npy") == 0) return make_npy(out, npy_f4, numbers, sizeof numbers);
    return c->is_vecs ? make_vecs(out, c->data, c->item) : make_bin(out, c->data, c->item);
}

/* ---- rows ---- */

START_TEST(test_rows_formats) {
    unsigned char file[4096];
    for (int i = 0; i < CASES; i++) {
        size_t bytes = make_case(&cases[i], file);
        put_file(in_folder(cases[i].name), file, bytes);
        OK(read_all(in_folder(cases[i].name), NULL, cases[i].data, N, D));
        put_file(in_folder("plain"), file, bytes);
        OK(read_all(in_folder("plain"), strchr(cases[i].name, '.') + 1, cases[i].data, N, D));
    }
    FAILS(read_all(in_folder("plain"), NULL, NULL, 0, 0), FGMM_ERR_INVALID, "plain");
    FAILS(read_all(in_folder("plain"), "csv", NULL, 0, 0), FGMM_ERR_INVALID, "csv");
    FAILS(fgmm_rows_open(ctx, NULL, "x.npy", NULL), FGMM_ERR_INVALID, "NULL");
}
END_TEST

START_TEST(test_npy_types) {
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F64, FGMM_F16, FGMM_U8, FGMM_I8};
    double data[N * D];
    for (int i = 0; i < N * D; i++) data[i] = sqrt(i + 2.0);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        fgmm_array array = {"x", types[i], 2, {N, D, 0}, data};
        fgmm_rows *rows = NULL;
        OK(fgmm_arrays_save(ctx, in_folder("t.npy"), &array, 1));
        OK(read_all(in_folder("t.npy"), NULL, data, N, D));
        OK(fgmm_rows_open(ctx, &rows, in_folder("t.npy"), NULL));
        ck_assert_int_eq(fgmm_rows_type(rows), types[i]);
        fgmm_rows_free(ctx, rows);
    }
}
END_TEST

START_TEST(test_npy_fortran) {
    /* More rows and columns than the reader turns at once. */
    enum { ROWS = 5000, COLUMNS = 131 };
    float *turned = malloc(ROWS * COLUMNS * sizeof *turned), *plain = malloc(ROWS * COLUMNS * sizeof *plain);
    unsigned char *file = malloc(ROWS * COLUMNS * sizeof *turned + 200);
    ck_assert(turned && plain && file);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) turned[j * ROWS + i] = plain[i * COLUMNS + j] = (float)(i * 1000 + j);
    put_file(in_folder("f.npy"), file,
             make_npy(file, "{'shape': (5000L, 131L), 'fortran_order': True, \"descr\": '<f4'}", turned,
                      ROWS * COLUMNS * sizeof *turned));
    OK(read_all(in_folder("f.npy"), NULL, plain, ROWS, COLUMNS));
    free(turned);
    free(plain);
    free(file);
}
END_TEST

START_TEST(test_npy_bad_headers) {
    static const struct {
        const char *header, *words;
    } bad[] = {
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (7, 3), }", "big-endian"},
        {"{'descr': '<i8', 'fortran_order': False, 'shape': (7, 3), }", "<i8"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (7, 3), }", "<c8"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (7, 3), }", "|O"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (7, 3), }", "structure"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-7, 3), }", "negative"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 3), }", "fits"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "overflow"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 1), }", "overflow"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (21,), }", "reshape"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (7, 0), }", "positive"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (7, 4), }", "truncated"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (7, 2), }", "too long"},
        {"{'descr': '<f4', 'fortran_order': Maybe, 'shape': (7, 3), }", "neither"},
        {"{'descr': '<f4', 'fortran_order': False, }", "lacks"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (7, 3), }", "repeated"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (7, 3), } x", "behind"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (7, 3", "shape"},
        {"[1]", "dict"},
        {"", "dict"},
        {"{'descr': '<f4444444444444444444444444444444444444', 'fortran_order': False, 'shape': (7, 3)}", "descr"},
        {"{'descr': '', 'fortran_order': False, 'shape': (7, 3)}", "dtype"},
    };
    unsigned char file[8192];
    char header[2000];
    size_t used, bytes;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bytes = make_npy(file, bad[i].header, numbers, sizeof numbers);
        put_file(in_folder("b.npy"), file, bytes);
        FAILS(read_all(in_folder("b.npy"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, bad[i].words);
    }
    used = (size_t)snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (");
    for (int i = 0; i < 100; i++) used += (size_t)snprintf(header + used, sizeof header - used, "1, ");
    snprintf(header + used, sizeof header - used, ")}");
    put_file(in_folder("b.npy"), file, make_npy(file, header, numbers, 4));
    FAILS(read_all(in_folder("b.npy"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "64 dimensions");
    bytes = make_npy(file, npy_f4, numbers, sizeof numbers);
    file[6] = 4;
    put_file(in_folder("b.npy"), file, bytes);
    FAILS(read_all(in_folder("b.npy"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "version 4.0");
    file[6] = 2; /* whose header length has four bytes: a lie here */
    put_file(in_folder("b.npy"), file, bytes);
    FAILS(read_all(in_folder("b.npy"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "header claims");
    file[0] = 'X';
    put_file(in_folder("b.npy"), file, bytes);
    FAILS(read_all(in_folder("b.npy"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "not an .npy");
}
END_TEST

/* Cut anywhere, a file fails; only files of vectors may end behind any row. */
START_TEST(test_rows_truncated) {
    unsigned char file[4096];
    for (int i = 0; i < CASES; i++) {
        const char *path = in_folder(cases[i].name);
        size_t bytes = make_case(&cases[i], file), stride = 4 + D * cases[i].item;
        for (size_t length = 0; length < bytes; length++) {
            put_file(path, file, length);
            fgmm_status status = read_all(path, NULL, NULL, 0, 0);
            if (cases[i].is_vecs && length && length % stride == 0)
                ck_assert_int_eq(status, FGMM_OK);
            else
                ck_assert_msg(status == FGMM_ERR_FORMAT, "%s of %zu bytes: %s", cases[i].name, length,
                              fgmm_status_name(status));
        }
        put_file(path, file, bytes + 1);
        ck_assert_int_eq(read_all(path, NULL, NULL, 0, 0), FGMM_ERR_FORMAT);
    }
}
END_TEST

/* No byte of a header, whatever it becomes, does more than make the file fail. */
START_TEST(test_rows_flipped) {
    unsigned char file[4096];
    int refused = 0;
    for (int i = 0; i < CASES; i++) {
        const char *path = in_folder(cases[i].name);
        size_t bytes = make_case(&cases[i], file), header = bytes < 80 ? bytes : 80;
        for (size_t at = 0; at < header; at++)
            for (int bit = 0; bit < 9; bit++) {
                const unsigned char flip = (unsigned char)(bit < 8 ? 1 << bit : 255);
                file[at] ^= flip;
                put_file(path, file, bytes);
                refused += read_all(path, NULL, NULL, 0, 0) != FGMM_OK;
                file[at] ^= flip;
            }
    }
    ck_assert_int_gt(refused, 1000);
}
END_TEST

START_TEST(test_rows_bad_files) {
    unsigned char file[4096];
    fgmm_rows *rows = NULL;
    float got[N * D];
    FAILS(read_all(in_folder("none.npy"), NULL, NULL, 0, 0), FGMM_ERR_IO, "none.npy");
    ck_assert_int_eq(mkdir(in_folder("dir.npy"), 0700), 0);
    FAILS(read_all(in_folder("dir.npy"), NULL, NULL, 0, 0), FGMM_ERR_IO, "folder");
    ck_assert_int_eq(mkfifo(in_folder("pipe.npy"), 0600), 0);
    FAILS(read_all(in_folder("pipe.npy"), NULL, NULL, 0, 0), FGMM_ERR_IO, "regular");
    put_file(in_folder("empty.fvecs"), "", 0);
    FAILS(read_all(in_folder("empty.fvecs"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "empty");
    /* Two rows of 3 and 7 features are as long as three of 3 and look whole until read. */
    size_t bytes = make_vecs(file, numbers, 4);
    file[4 * (4 + D * 4)] = 9;
    put_file(in_folder("x.fvecs"), file, bytes);
    FAILS(read_all(in_folder("x.fvecs"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "row 4 has 9 features");
    /* A file that shrinks while open. */
    put_file(in_folder("s.npy"), file, make_npy(file, npy_f4, numbers, sizeof numbers));
    OK(fgmm_rows_open(ctx, &rows, in_folder("s.npy"), NULL));
    ck_assert_int_eq(truncate(in_folder("s.npy"), 100), 0);
    FAILS(fgmm_rows_read(ctx, rows, 0, N, got), FGMM_ERR_IO, "ends at byte 100");
    fgmm_rows_free(ctx, rows);
}
END_TEST

/* Past 4 GiB, in a file that is mostly a hole. */
START_TEST(test_npy_large) {
    static const char header[] = "{'descr': '|u1', 'fortran_order': False, 'shape': (2000000000, 3), }\n";
    unsigned char file[200], got[2][3];
    const unsigned char last[2][3] = {{1, 2, 3}, {4, 5, 6}};
    fgmm_rows *rows = NULL;
    size_t bytes = make_npy(file, header, NULL, 0);
    put_file(in_folder("l.npy"), file, bytes);
    FAILS(read_all(in_folder("l.npy"), NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "6000000079 bytes, but the file has 79");
    if (truncate(in_folder("l.npy"), (off_t)bytes + 6000000000 - 6) != 0) {
        printf("test_io: skipped the file of 6 GB: the file system refuses one\n");
        return;
    }
    FILE *stream = fopen(in_folder("l.npy"), "ab");
    ck_assert_ptr_nonnull(stream);
    ck_assert_uint_eq(fwrite(last, 1, 6, stream), 6);
    ck_assert_int_eq(fclose(stream), 0);
    OK(fgmm_rows_open(ctx, &rows, in_folder("l.npy"), NULL));
    ck_assert_int_eq(fgmm_rows_count(rows), 2000000000);
    OK(fgmm_rows_read(ctx, rows, 2000000000 - 2, 2, got));
    ck_assert_mem_eq(got, last, 6);
    fgmm_rows_free(ctx, rows);
}
END_TEST

/* ---- HDF5 ---- */

#ifdef FGMM_HAVE_HDF5
static void put_dataset(hid_t file, const char *name, hid_t type, int ndim, const void *data) {
    const hsize_t size[3] = {N, D, 1};
    hid_t space = H5Screate_simple(ndim, size, NULL);
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    ck_assert_int_ge(set, 0);
    if (data) ck_assert_int_ge(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), 0);
    H5Dclose(set);
    H5Sclose(space);
}

START_TEST(test_hdf5) {
    const char *path = in_folder("x.hdf5");
    char with_name[300];
    fgmm_rows *rows = NULL;
    size_t bytes;
    double doubles[N * D];
    for (int i = 0; i < N * D; i++) doubles[i] = sqrt(i);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    ck_assert_int_ge(file, 0);
    put_dataset(file, "train", H5T_NATIVE_FLOAT, 2, numbers);
    put_dataset(file, "bytes", H5T_NATIVE_UINT8, 2, bytes_);
    put_dataset(file, "signed", H5T_NATIVE_INT8, 2, bytes_);
    put_dataset(file, "doubles", H5T_NATIVE_DOUBLE, 2, doubles);
    put_dataset(file, "labels", H5T_NATIVE_INT, 2, NULL);
    put_dataset(file, "cube", H5T_NATIVE_FLOAT, 3, NULL);
    ck_assert_int_ge(H5Fclose(file), 0);
    OK(read_all(path, NULL, numbers, N, D));
    static const struct {
        const char *name;
        const void *data;
        fgmm_dtype type;
    } sets[] = {{"train", numbers, FGMM_F32},
                {"bytes", bytes_, FGMM_U8},
                {"signed", bytes_, FGMM_I8},
                {"doubles", NULL, FGMM_F64}};
    for (int i = 0; i < 4; i++) {
        snprintf(with_name, sizeof with_name, "%s:%s", path, sets[i].name);
        OK(read_all(with_name, NULL, sets[i].data ? sets[i].data : doubles, N, D));
        OK(fgmm_rows_open(ctx, &rows, with_name, "hdf5"));
        ck_assert_int_eq(fgmm_rows_type(rows), sets[i].type);
        fgmm_rows_free(ctx, rows);
    }
    snprintf(with_name, sizeof with_name, "%s:labels", path);
    FAILS(read_all(with_name, NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "integers of 4 bytes");
    snprintf(with_name, sizeof with_name, "%s:cube", path);
    FAILS(read_all(with_name, NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "3 dimensions");
    snprintf(with_name, sizeof with_name, "%s:absent", path);
    FAILS(read_all(with_name, NULL, NULL, 0, 0), FGMM_ERR_FORMAT, "absent");
    FAILS(read_all(in_folder("none.hdf5"), NULL, NULL, 0, 0), FGMM_ERR_IO, "none.hdf5");
    unsigned char *whole = get_file(path, &bytes);
    for (size_t length = 0; length < bytes; length += 61) {
        put_file(path, whole, length);
        ck_assert_int_ne(read_all(path, NULL, NULL, 0, 0), FGMM_OK);
    }
    free(whole);
}
END_TEST
#else
START_TEST(test_hdf5) {
    FAILS(read_all(in_folder("x.hdf5"), NULL, NULL, 0, 0), FGMM_ERR_UNSUPPORTED, "HDF5");
}
END_TEST
#endif

int main(void) {
    const TTest *const tests[] = {test_rows_formats,    test_npy_types,      test_npy_fortran,
                                  test_npy_bad_headers, test_rows_truncated, test_rows_flipped,
                                  test_rows_bad_files,  test_npy_large,      test_hdf5};
    return run_tests("io", tests, sizeof tests / sizeof *tests);
}
