/* Tests of files: a context, a folder of their own that is removed in the end, and calls that must fail with the
 * right words. */
#ifndef FGMM_TESTS_SCRATCH_H
#define FGMM_TESTS_SCRATCH_H

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../lib/rows.h"

static fgmm_context *ctx;
static char folder[64];

/* ---- set-up and small tools ---- */

static inline const char *in_folder(const char *name) {
    static char paths[64][512];
    static int next;
    char *path = paths[next++ % 64];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline int count_files(void) {
    DIR *dir = opendir(folder);
    int count = 0;
    ck_assert_ptr_nonnull(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) count += strcmp(entry->d_name, ".") != 0;
    closedir(dir);
    return count - 1; /* ".." */
}

static inline void empty_folder(void) {
    DIR *dir = opendir(folder);
    ck_assert_ptr_nonnull(dir);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        const char *path = in_folder(entry->d_name);
        if (entry->d_name[0] == '.' && strncmp(entry->d_name, ".flash", 6) != 0) continue;
        if (unlink(path) != 0) rmdir(path);
    }
    closedir(dir);
}

static inline void set_up(void) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.device = "cpu";
    strcpy(folder, "/tmp/flashgmm-io-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(fgmm_context_create(&ctx, &options), FGMM_OK);
}

static inline void tear_down(void) {
    fgmm_context_free(ctx);
    empty_folder();
    ck_assert_int_eq(rmdir(folder), 0);
}

static inline void put_file(const char *path, const void *data, size_t bytes) {
    unlink(path); /* some file systems flush a file that is cut and written anew */
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    ck_assert_int_eq(fclose(file), 0);
}

/* @return the whole file, to be freed. */
static inline unsigned char *get_file(const char *path, size_t *bytes) {
    struct stat info;
    ck_assert_int_eq(stat(path, &info), 0);
    unsigned char *data = malloc((size_t)info.st_size + 1);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(data);
    ck_assert_ptr_nonnull(file);
    *bytes = fread(data, 1, (size_t)info.st_size, file);
    fclose(file);
    ck_assert_uint_eq(*bytes, (size_t)info.st_size);
    return data;
}

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        fgmm_status ok_ = (call);                                                                                      \
        ck_assert_msg(ok_ == FGMM_OK, "%s: %s", fgmm_status_name(ok_), fgmm_context_message(ctx));                     \
    } while (0)

/* The call fails with this status and a message that holds `words`. */
#define FAILS(call, wanted, words)                                                                                     \
    do {                                                                                                               \
        fgmm_status got_ = (call);                                                                                     \
        ck_assert_msg(got_ == (wanted), "%s, not %s: %s", fgmm_status_name(got_), fgmm_status_name(wanted),            \
                      fgmm_context_message(ctx));                                                                      \
        ck_assert_msg(strstr(fgmm_context_message(ctx), words) != NULL, "\"%s\" lacks \"%s\"",                         \
                      fgmm_context_message(ctx), words);                                                               \
    } while (0)

/* Opens rows and reads all of them in two parts. @param data NULL, or what the whole should be. */
static inline fgmm_status read_all(const char *path, const char *format, const void *data, int64_t n, int64_t d) {
    fgmm_rows *rows = NULL;
    fgmm_status status = fgmm_rows_open(ctx, &rows, path, format);
    if (status != FGMM_OK) {
        ck_assert_ptr_null(rows);
        ck_assert_str_ne(fgmm_context_message(ctx), "");
        return status;
    }
    size_t row = (size_t)rows->d * fgmm_dtype_size(rows->type);
    unsigned char *got = malloc((size_t)rows->n * row);
    int64_t half = rows->n / 2;
    ck_assert_ptr_nonnull(got);
    status = fgmm_rows_read(ctx, rows, half, rows->n - half, got + (size_t)half * row);
    if (status == FGMM_OK && half) status = fgmm_rows_read(ctx, rows, 0, half, got);
    if (status == FGMM_OK && data) {
        ck_assert_int_eq(rows->n, n);
        ck_assert_int_eq(rows->d, d);
        ck_assert_mem_eq(got, data, (size_t)n * row);
    }
    free(got);
    fgmm_rows_free(ctx, rows);
    return status;
}

/* Rows to write. */
enum { N = 7, D = 3 };
static const float numbers[N][D] = {{1, 2, 3},    {4, 5, 6},        {-7, 8.5f, 9},  {0, -0.25f, 1e-3f},
                                    {1e9f, 2, 1}, {5, 5.5f, 5.25f}, {11, 12, 13.5f}};

/* Runs the tests in this process: a child that forks cannot run OpenMP's threads. @return what main returns. */
static inline int run_tests(const char *name, const TTest *const *tests, size_t count) {
    Suite *suite = suite_create(name);
    TCase *cases = tcase_create("files");
    tcase_add_checked_fixture(cases, set_up, tear_down);
    tcase_set_timeout(cases, 300);
    for (size_t i = 0; i < count; i++) tcase_add_test(cases, tests[i]);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
