/* Arrays, models and statistics in files: what is written comes back and opens in numpy, what numpy writes is read,
 * and a broken file fails with a message. */
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "../lib/io/io.h"
#include "scratch.h"

static fgmm_model *make_model(fgmm_covariance type, int64_t k, int64_t d) {
    int64_t vectors = k + 2 * k * d;
    double *values = malloc((size_t)(vectors + k * d * d) * sizeof *values);
    fgmm_model *model = NULL;
    ck_assert_ptr_nonnull(values);
    for (int64_t i = 0; i < vectors; i++) values[i] = 0.5 + sin((double)(i + 1)) * 0.4;
    for (int64_t i = 0; i < k * d * d && (type == FGMM_TIED || type == FGMM_FULL); i++) {
        int64_t a = i / d % d, b = i % d;
        values[k + k * d + i] = (a == b ? (double)d : 0) + cos((double)(i / (d * d) + a * b));
    }
    OK(fgmm_model_create(ctx, &model, type, k, d, values, values + k, values + k + k * d));
    free(values);
    return model;
}

/* ---- arrays and models ---- */

START_TEST(test_arrays_refused) {
    fgmm_array a[2] = {{"x", FGMM_F32, 2, {N, D, 0}, numbers}, {"x", FGMM_F32, 2, {N, D, 0}, numbers}};
    FAILS(fgmm_arrays_save(ctx, in_folder("a.csv"), a, 1), FGMM_ERR_INVALID, ".npy or .npz");
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npy"), a, 2), FGMM_ERR_INVALID, "one array");
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npz"), a, 2), FGMM_ERR_INVALID, "named 'x'");
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npz"), a, 0), FGMM_ERR_INVALID, "no arrays");
    a[0].name = "../x";
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npz"), a, 1), FGMM_ERR_INVALID, "name");
    a[0].type = FGMM_BF16;
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npy"), a, 1), FGMM_ERR_INVALID, "type");
    a[0].type = (fgmm_dtype)100;
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npy"), a, 1), FGMM_ERR_INVALID, "type");
    a[0].type = FGMM_F32;
    a[0].shape[0] = -1;
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npy"), a, 1), FGMM_ERR_INVALID, "negative");
    a[0].shape[0] = INT64_MAX;
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npy"), a, 1), FGMM_ERR_INVALID, "overflow");
    a[0].ndim = 4;
    FAILS(fgmm_arrays_save(ctx, in_folder("a.npy"), a, 1), FGMM_ERR_INVALID, "dimensions");
    ck_assert_int_eq(count_files(), 0);
}
END_TEST

START_TEST(test_model_round_trip) {
    for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++) {
        fgmm_model *model = make_model((fgmm_covariance)type, 5, 4), *back = NULL;
        OK(fgmm_model_save(ctx, model, in_folder("m.npz")));
        OK(fgmm_model_load(ctx, &back, in_folder("m.npz")));
        ck_assert_int_eq(fgmm_model_covariance_type(back), type);
        ck_assert_int_eq(fgmm_model_components(back), 5);
        ck_assert_int_eq(fgmm_model_features(back), 4);
        ck_assert(isnan(fgmm_model_lower_bound(back)));
        ck_assert_mem_eq(fgmm_model_weights(back), fgmm_model_weights(model), 5 * sizeof(double));
        ck_assert_mem_eq(fgmm_model_means(back), fgmm_model_means(model), 20 * sizeof(double));
        ck_assert_mem_eq(fgmm_model_covariances(back), fgmm_model_covariances(model),
                         (size_t)fgmm_model_covariances_size(model) * sizeof(double));
        fgmm_model_free(ctx, back);
        fgmm_model_free(ctx, model);
    }
    ck_assert_int_eq(count_files(), 1);
}
END_TEST

START_TEST(test_equal_models_equal_files) {
    static const char *const zones[] = {"UTC", "Pacific/Auckland", "America/New_York", "Asia/Kolkata"};
    fgmm_model *model = make_model(FGMM_DIAG, 3, 2);
    size_t first_bytes, bytes;
    const char *zone = getenv("TZ");
    char *before = zone ? strdup(zone) : NULL;
    unsigned char *first = NULL;
    for (int i = 0; i < 4; i++) {
        setenv("TZ", zones[i], 1);
        OK(fgmm_model_save(ctx, model, in_folder("m.npz")));
        unsigned char *file = get_file(in_folder("m.npz"), &bytes);
        if (!first) {
            first = file;
            first_bytes = bytes;
            continue;
        }
        ck_assert_uint_eq(bytes, first_bytes);
        ck_assert_mem_eq(file, first, bytes);
        free(file);
    }
    if (before)
        setenv("TZ", before, 1);
    else
        unsetenv("TZ");
    free(before);
    free(first);
    fgmm_model_free(ctx, model);
}
END_TEST

/* Loads what the entries make, out of a file. */
static fgmm_status load_entries(const fgmm_npz_entry *entries, int count) {
    fgmm_model *model = NULL;
    OK(fgmm_npz_write(ctx, in_folder("e.npz"), entries, count));
    fgmm_status status = fgmm_model_load(ctx, &model, in_folder("e.npz"));
    ck_assert_int_eq(status == FGMM_OK, model != NULL);
    fgmm_model_free(ctx, model);
    return status;
}

START_TEST(test_model_refused) {
    double weights[2] = {0.5, 0.5}, means[6] = {1, 2, 3, 4, 5, 6}, variances[2] = {1, 1}, square[9];
    const double infinite = INFINITY, fine = 3;
    for (int i = 0; i < 9; i++) square[i] = i % 4 == 0;
    fgmm_npz_entry e[5] = {{{"weights", FGMM_F64, 1, {2, 0, 0}, weights}, NULL},
                           {{"means", FGMM_F64, 2, {2, 3, 0}, means}, NULL},
                           {{"covariances", FGMM_F64, 1, {2, 0, 0}, variances}, NULL},
                           {{"covariance_type", FGMM_U8, 0, {0, 0, 0}, NULL}, "spherical"},
                           {{"n_iter", FGMM_F64, 0, {0, 0, 0}, &fine}, NULL}};
    ck_assert_int_eq(load_entries(e, 5), FGMM_OK);
    ck_assert_int_eq(load_entries(e, 4), FGMM_OK);
    ck_assert_int_eq(load_entries(e, 3), FGMM_OK);
    FAILS(load_entries(e, 2), FGMM_ERR_FORMAT, "no array 'covariances'");
    FAILS(load_entries(e, 1), FGMM_ERR_FORMAT, "no array 'means'");
    e[4].array.data = &infinite;
    FAILS(load_entries(e, 5), FGMM_ERR_FORMAT, "n_iter");
    e[3].text = "round";
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "round");
    e[3].text = "diag";
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "'covariances' has shape [2]; it should be [2, 3]");
    e[3].text = "tied";
    e[2].array.ndim = 2;
    e[2].array.shape[0] = e[2].array.shape[1] = 3;
    e[2].array.data = square;
    ck_assert_int_eq(load_entries(e, 4), FGMM_OK);
    square[1] = 0.5;
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "covariances is not symmetric");
    square[3] = 0.5;
    ck_assert_int_eq(load_entries(e, 4), FGMM_OK);
    square[1] = square[3] = 1.5;
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "covariances is not positive definite");
    e[3].text = "full";
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "'covariances' has shape [3, 3]; it should be [2, 3, 3]");
    e[3].text = "spherical";
    e[2].array = (fgmm_array){"covariances", FGMM_F64, 1, {2, 0, 0}, variances};
    variances[1] = -1;
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "covariances");
    variances[1] = 1;
    weights[0] = -0.5;
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "weights");
    weights[0] = 0.5;
    means[5] = NAN;
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "means");
    means[5] = 6;
    e[0].array.shape[0] = 1;
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "'weights' has shape [1]; it should be [2]");
    e[0].array = (fgmm_array){"weights", FGMM_U8, 0, {0, 0, 0}, NULL};
    e[0].text = "heavy";
    FAILS(load_entries(e, 4), FGMM_ERR_FORMAT, "string");
}
END_TEST

/* Replaces text by text of the same length, all over a file. */
static void replace(unsigned char *file, size_t bytes, const char *from, const char *to) {
    size_t length = strlen(from), found = 0;
    for (size_t i = 0; i + length <= bytes; i++)
        if (memcmp(file + i, from, length) == 0) {
            memcpy(file + i, to, length);
            found++;
        }
    ck_assert_uint_gt(found, 0);
}

START_TEST(test_npz_hostile) {
    fgmm_model *model = make_model(FGMM_DIAG, 3, 2), *back = NULL;
    fgmm_npz *npz = NULL;
    const char *path = in_folder("m.npz");
    size_t bytes;
    OK(fgmm_model_save(ctx, model, path));
    FAILS(fgmm_npz_read(ctx, &npz, path, 20), FGMM_ERR_FORMAT, "more than");
    unsigned char *good = get_file(path, &bytes), *file = malloc(bytes);
    ck_assert_ptr_nonnull(file);
    /* Cut anywhere, it fails. */
    for (size_t length = 0; length < bytes; length++) {
        put_file(path, good, length);
        ck_assert_int_eq(fgmm_model_load(ctx, &back, path), FGMM_ERR_FORMAT);
        ck_assert_ptr_null(back);
    }
    /* Any byte changed, it loads or fails. */
    memcpy(file, good, bytes);
    for (size_t at = 0; at < bytes; at++)
        for (int bit = 0; bit < 9; bit++) {
            file[at] ^= (unsigned char)(bit < 8 ? 1 << bit : 255);
            put_file(path, file, bytes);
            if (fgmm_model_load(ctx, &back, path) != FGMM_OK) ck_assert_str_ne(fgmm_context_message(ctx), "");
            fgmm_model_free(ctx, back);
            back = NULL;
            file[at] = good[at];
        }
    replace(file, bytes, "'<f8'", "'>f8'");
    put_file(path, file, bytes);
    FAILS(fgmm_model_load(ctx, &back, path), FGMM_ERR_FORMAT, "big-endian");
    replace(file, bytes, "'>f8'", "'|O8'");
    put_file(path, file, bytes);
    FAILS(fgmm_model_load(ctx, &back, path), FGMM_ERR_FORMAT, "|O8");
    memcpy(file, good, bytes);
    replace(file, bytes, "(3, 2)", "(9, 9)");
    put_file(path, file, bytes);
    FAILS(fgmm_model_load(ctx, &back, path), FGMM_ERR_FORMAT, "claims 648 bytes of data, but 48 follow");
    memcpy(file, good, bytes);
    replace(file, bytes, "weights", "covaria"); /* no array is called so: something is now missing */
    put_file(path, file, bytes);
    FAILS(fgmm_model_load(ctx, &back, path), FGMM_ERR_FORMAT, "'weights'");
    memcpy(file, good, bytes);
    for (size_t i = 0; i + 10 < bytes; i++) { /* the flag for encryption, in both headers of each member */
        if (memcmp(file + i, "PK\3\4", 4) == 0) file[i + 6] |= 1;
        if (memcmp(file + i, "PK\1\2", 4) == 0) file[i + 8] |= 1;
    }
    put_file(path, file, bytes);
    FAILS(fgmm_model_load(ctx, &back, path), FGMM_ERR_UNSUPPORTED, "encrypted");
    put_file(path, "no zip at all", 13);
    FAILS(fgmm_model_load(ctx, &back, path), FGMM_ERR_FORMAT, "neither");
    FAILS(fgmm_model_load(ctx, &back, in_folder("none.npz")), FGMM_ERR_IO, "none.npz");
    free(good);
    free(file);
    fgmm_model_free(ctx, model);
}
END_TEST

/* ---- writing where it cannot be done ---- */

START_TEST(test_write_failures) {
    fgmm_model *model = make_model(FGMM_DIAG, 8, 4);
    fgmm_array array = {"x", FGMM_F32, 2, {N, D, 0}, numbers};
    const char *path = in_folder("m.npz"), *npy = in_folder("a.npy");
    struct rlimit limit, small;
    size_t before_bytes, bytes;
    struct stat info;
    OK(fgmm_model_save(ctx, model, path));
    unsigned char *before = get_file(path, &before_bytes), *after;
    /* A full disk, as far as a program can make one. */
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = limit;
    small.rlim_cur = 100;
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    fgmm_status saved = fgmm_model_save(ctx, model, path);
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "File too large"));
    fgmm_status array_saved = fgmm_arrays_save(ctx, npy, &array, 1);
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "File too large"));
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(saved, FGMM_ERR_IO);
    ck_assert_int_eq(array_saved, FGMM_ERR_IO);
    after = get_file(path, &bytes);
    ck_assert_uint_eq(bytes, before_bytes);
    ck_assert_mem_eq(after, before, bytes);
    ck_assert_int_eq(count_files(), 1);
    FAILS(fgmm_model_save(ctx, model, in_folder("no/m.npz")), FGMM_ERR_IO, "no/ does not exist");
    FAILS(fgmm_model_save(ctx, model, folder), FGMM_ERR_IO, "folder");
    FAILS(fgmm_model_save(ctx, model, ""), FGMM_ERR_INVALID, "no file");
    FAILS(fgmm_model_save(ctx, model, "/dev/null"), FGMM_ERR_IO, "regular");
    ck_assert_int_eq(stat("/dev/null", &info), 0);
    ck_assert(S_ISCHR(info.st_mode));
    /* A link stays a link. */
    ck_assert_int_eq(symlink("m.npz", in_folder("link.npz")), 0);
    fgmm_model_free(ctx, model);
    model = make_model(FGMM_SPHERICAL, 2, 2);
    OK(fgmm_model_save(ctx, model, in_folder("link.npz")));
    ck_assert_int_eq(lstat(in_folder("link.npz"), &info), 0);
    ck_assert(S_ISLNK(info.st_mode));
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_uint_ne((size_t)info.st_size, before_bytes);
    ck_assert_int_eq(count_files(), 2);
    free(before);
    free(after);
    fgmm_model_free(ctx, model);
}
END_TEST

/* ---- memory ---- */

typedef struct scarce {
    int left;
    long held;
} scarce;

static void *scarce_alloc(void *user, size_t bytes) {
    scarce *s = user;
    if (s->left == 0) return NULL;
    s->left--;
    void *pointer = malloc(bytes);
    s->held += pointer != NULL;
    return pointer;
}

static void scarce_free(void *user, void *pointer) {
    scarce *s = user;
    s->held -= pointer != NULL;
    free(pointer);
}

START_TEST(test_no_memory) {
    fgmm_model *model = make_model(FGMM_DIAG, 3, 2);
    fgmm_stats *stats = NULL;
    const fgmm_array array = {"x", FGMM_F32, 2, {N, D, 0}, numbers};
    OK(fgmm_model_save(ctx, model, in_folder("m.npz")));
    OK(fgmm_stats_create(ctx, &stats, model));
    OK(fgmm_stats_save(ctx, stats, in_folder("s.npz")));
    OK(fgmm_arrays_save(ctx, in_folder("x.npy"), &array, 1));
    fgmm_stats_free(ctx, stats);
    fgmm_model_free(ctx, model);
    for (int call = 0; call < 4; call++) {
        int failures = 0;
        for (int nth = 0;; nth++) {
            scarce s = {-1, 0};
            fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
            fgmm_context *other = NULL;
            fgmm_model *loaded = NULL;
            fgmm_rows *rows = NULL;
            fgmm_status status;
            options.device = "cpu";
            options.allocator = (fgmm_allocator){scarce_alloc, scarce_free, &s};
            ck_assert_int_eq(fgmm_context_create(&other, &options), FGMM_OK);
            if (call == 3) ck_assert_int_eq(fgmm_model_load(other, &loaded, in_folder("m.npz")), FGMM_OK);
            s.left = nth;
            stats = NULL;
            if (call == 0)
                status = fgmm_model_load(other, &loaded, in_folder("m.npz"));
            else if (call == 1)
                status = fgmm_stats_load(other, &stats, in_folder("s.npz"));
            else if (call == 2)
                status = fgmm_rows_open(other, &rows, in_folder("x.npy"), NULL);
            else
                status = fgmm_model_save(other, loaded, in_folder("n.npz"));
            ck_assert(status == FGMM_OK || status == FGMM_ERR_MEMORY);
            if (status != FGMM_OK) ck_assert_ptr_nonnull(strstr(fgmm_context_message(other), "no memory"));
            fgmm_model_free(other, loaded);
            fgmm_stats_free(other, stats);
            fgmm_rows_free(other, rows);
            fgmm_context_free(other);
            ck_assert_int_eq(s.held, 0);
            if (status == FGMM_OK) break;
            failures++;
        }
        ck_assert_int_gt(failures, 1);
    }
    ck_assert_int_eq(count_files(), 4);
}
END_TEST

/* ---- statistics ---- */

START_TEST(test_stats_round_trip) {
    for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++) {
        fgmm_model *model = make_model((fgmm_covariance)type, 3, 2);
        fgmm_stats *stats = NULL, *back = NULL, *bad = NULL;
        fgmm_stats_view a, b;
        size_t bytes;
        OK(fgmm_stats_create(ctx, &stats, model));
        fgmm_stats_export(stats, &a);
        for (int i = 0; i < 6; i++) ((double *)(uintptr_t)a.s1)[i] = sin(i);
        OK(fgmm_stats_save(ctx, stats, in_folder("s.npz")));
        OK(fgmm_stats_load(ctx, &back, in_folder("s.npz")));
        fgmm_stats_export(back, &b);
        ck_assert_uint_eq(a.fingerprint, b.fingerprint);
        ck_assert_int_eq(a.covariance_type, b.covariance_type);
        ck_assert_mem_eq(a.s1, b.s1, 6 * sizeof(double));
        ck_assert_mem_eq(a.centres, b.centres, 6 * sizeof(double));
        OK(fgmm_stats_merge(ctx, back, stats)); /* they are of the same model, then */
        FAILS(fgmm_stats_load(ctx, &bad, in_folder("none.npz")), FGMM_ERR_IO, "none.npz");
        OK(fgmm_model_save(ctx, model, in_folder("m.npz")));
        FAILS(fgmm_stats_load(ctx, &bad, in_folder("m.npz")), FGMM_ERR_FORMAT, "kind");
        unsigned char *file = get_file(in_folder("s.npz"), &bytes);
        for (size_t at = 0; at < bytes; at += 3) {
            put_file(in_folder("s.npz"), file, at);
            ck_assert_int_eq(fgmm_stats_load(ctx, &bad, in_folder("s.npz")), FGMM_ERR_FORMAT);
        }
        for (size_t at = 0; at < bytes; at++) {
            file[at] ^= 0x15;
            put_file(in_folder("s.npz"), file, bytes);
            (void)fgmm_stats_load(ctx, &bad, in_folder("s.npz"));
            fgmm_stats_free(ctx, bad);
            bad = NULL;
            file[at] ^= 0x15;
        }
        free(file);
        fgmm_stats_free(ctx, stats);
        fgmm_stats_free(ctx, back);
        fgmm_model_free(ctx, model);
    }
}
END_TEST

/* ---- numpy ---- */

static int has_numpy(void) {
    return system("python3 -c 'import numpy' >/dev/null 2>&1") == 0;
}

static void run_python(const char *script) {
    char command[512];
    put_file(in_folder("script.py"), script, strlen(script));
    snprintf(command, sizeof command, "cd %s && python3 script.py", folder);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(test_numpy) {
    if (!has_numpy()) {
        printf("test_npz: skipped the exchange with numpy: python3 with numpy is not installed\n");
        return;
    }
    fgmm_model *model = NULL;
    run_python(
        "import numpy as np\n"
        "x = np.arange(21).reshape(7, 3)\n"
        "for t in ['f4', 'f8', 'f2', 'u1', 'i1']:\n"
        "    np.save(t + '.npy', x.astype(t)); np.save(t + 'F.npy', np.asfortranarray(x.astype(t)))\n"
        "w = np.array([1, 3], '<f4') / 4; m = np.arange(6.).reshape(2, 3); c = np.full((2, 3), 2)\n"
        "np.savez('a.npz', weights=w, means=np.asfortranarray(m), covariances=c, covariance_type='diag')\n"
        "np.savez_compressed('b.npz', weights=w.astype('f2'), means=m.astype('i2'), covariances=c.astype('u8'),\n"
        "    covariance_type=np.bytes_('diag'), converged=True, n_iter=12, lower_bound=-1.5, note=np.array(None))\n"
        "f = np.stack([np.eye(3) * 2, np.eye(3) + 0.25])\n"
        "np.savez_compressed('full.npz', weights=w, means=m, covariances=np.asfortranarray(f),\n"
        "    covariance_type='full')\n"
        "np.savez('tied.npz', weights=w, means=m, covariances=f[1], covariance_type='tied')\n"
        "np.savez('big.npz', weights=w.astype('>f4'), means=m, covariances=c, covariance_type='diag')\n"
        "np.savez('object.npz', weights=np.array([None, 1]), means=m, covariances=c, covariance_type='diag')\n");
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F64, FGMM_F16, FGMM_U8, FGMM_I8};
    static const char *const names[] = {"f4", "f8", "f2", "u1", "i1"};
    for (int i = 0; i < 5; i++) {
        unsigned char plain[7 * 3 * 8];
        char name[16];
        fgmm_rows *rows = NULL;
        snprintf(name, sizeof name, "%s.npy", names[i]);
        OK(fgmm_rows_open(ctx, &rows, in_folder(name), NULL));
        ck_assert_int_eq(fgmm_rows_type(rows), types[i]);
        OK(fgmm_rows_read(ctx, rows, 0, 7, plain));
        fgmm_rows_free(ctx, rows);
        snprintf(name, sizeof name, "%sF.npy", names[i]);
        OK(read_all(in_folder(name), NULL, plain, 7, 3));
    }
    for (int i = 0; i < 2; i++) {
        OK(fgmm_model_load(ctx, &model, in_folder(i ? "b.npz" : "a.npz")));
        ck_assert_double_eq(fgmm_model_weights(model)[1], 0.75);
        for (int j = 0; j < 6; j++) ck_assert_double_eq(fgmm_model_means(model)[j], j);
        ck_assert_double_eq(fgmm_model_covariances(model)[5], 2);
        ck_assert_int_eq(fgmm_model_iterations(model), i ? 12 : 0);
        ck_assert_int_eq(fgmm_model_converged(model), i);
        if (i)
            ck_assert_double_eq(fgmm_model_lower_bound(model), -1.5);
        else
            ck_assert(isnan(fgmm_model_lower_bound(model)));
        if (i) OK(fgmm_model_save(ctx, model, in_folder("out.npz")));
        fgmm_model_free(ctx, model);
    }
    for (int i = 0; i < 2; i++) {
        OK(fgmm_model_load(ctx, &model, in_folder(i ? "full.npz" : "tied.npz")));
        ck_assert_int_eq(fgmm_model_covariance_type(model), i ? FGMM_FULL : FGMM_TIED);
        const double *covariances = fgmm_model_covariances(model) + (i ? 9 : 0);
        for (int j = 0; j < 9; j++) ck_assert_double_eq(covariances[j], j % 4 == 0 ? 1.25 : 0.25);
        OK(fgmm_model_save(ctx, model, in_folder(i ? "full-out.npz" : "tied-out.npz")));
        fgmm_model_free(ctx, model);
    }
    FAILS(fgmm_model_load(ctx, &model, in_folder("big.npz")), FGMM_ERR_FORMAT, "big-endian");
    FAILS(fgmm_model_load(ctx, &model, in_folder("object.npz")), FGMM_ERR_FORMAT, "|O");
    const int32_t ids[4] = {1, 2, 3, -1};
    const fgmm_array arrays[] = {{"ids", FGMM_I32, 2, {2, 2, 0}, ids},
                                 {"none", FGMM_F64, 1, {0, 0, 0}, NULL},
                                 {"one", FGMM_F32, 0, {0, 0, 0}, numbers},
                                 {"cube", FGMM_F32, 3, {7, 3, 1}, numbers}};
    OK(fgmm_arrays_save(ctx, in_folder("arrays.npz"), arrays, 4));
    OK(fgmm_arrays_save(ctx, in_folder("ids.npy"), arrays, 1));
    run_python(
        "import numpy as np, zipfile\n"
        "m = np.load('out.npz')\n"
        "assert m['covariance_type'] == 'diag' and m['covariance_type'].shape == ()\n"
        "assert m['converged'].dtype == bool and m['converged'] and m['n_iter'] == 12 and m['lower_bound'] == -1.5\n"
        "assert m['means'].dtype == np.float64 and (m['means'] == np.arange(6).reshape(2, 3)).all()\n"
        "assert m['covariances'].shape == (2, 3) and m['weights'].shape == (2,)\n"
        "assert zipfile.ZipFile('out.npz').testzip() is None\n"
        "t = np.load('tied-out.npz'); f = np.load('full-out.npz')\n"
        "assert t['covariance_type'] == 'tied' and f['covariance_type'] == 'full'\n"
        "assert t['covariances'].shape == (3, 3) and f['covariances'].shape == (2, 3, 3)\n"
        "assert (f['covariances'][1] == t['covariances']).all() and (f['covariances'][0] == 2 * np.eye(3)).all()\n"
        "a = np.load('arrays.npz')\n"
        "assert a['ids'].dtype == np.int32 and a['ids'].tolist() == [[1, 2], [3, -1]]\n"
        "assert a['none'].shape == (0,) and a['one'] == 1 and a['cube'].shape == (7, 3, 1)\n"
        "i = np.load('ids.npy'); assert (i == a['ids']).all()\n"
        "b = open('ids.npy', 'rb').read(); assert len(b) == 128 + 16\n");
}
END_TEST

int main(void) {
    const TTest *const tests[] = {test_arrays_refused, test_model_round_trip, test_equal_models_equal_files,
                                  test_model_refused,  test_npz_hostile,      test_write_failures,
                                  test_no_memory,      test_stats_round_trip, test_numpy};
    return run_tests("npz", tests, sizeof tests / sizeof *tests);
}
