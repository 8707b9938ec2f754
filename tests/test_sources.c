/* Rows in several files, and through pipes: they are those of one file, or what is wrong with them is said by name. */
#include "streamed.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- shards ---- */

enum { SHARDS = 5 };
static const int64_t shard_ends[SHARDS + 1] = {0, 1, 2500, 2501, 7000, N};

static const char *shard_name(int i) {
    static char name[8][32];
    snprintf(name[i % 8], sizeof name[0], "part-%d.npy", i);
    return name[i % 8];
}

/* A folder of its own: a pattern, and the folder itself, name the same. */
static const char *save_shards(void) {
    static char folder[600];
    snprintf(folder, sizeof folder, "%s", in_scratch("shards-XXXXXX"));
    ck_assert_ptr_nonnull(mkdtemp(folder));
    for (int i = 0; i < SHARDS; i++) {
        char to[700];
        snprintf(to, sizeof to, "%s/%s", folder, shard_name(i));
        ck_assert_int_eq(rename(save_part("shard.npy", shard_ends[i], shard_ends[i + 1]), to), 0);
    }
    return folder;
}

static const char *shard_path(const char *folder, const char *name) {
    static char path[4][700];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[0], "%s/%s", folder, name);
    return path[next];
}

static void remove_shards(const char *folder) {
    for (int i = 0; i < SHARDS; i++) unlink(shard_path(folder, shard_name(i)));
    unlink(shard_path(folder, "notes.txt"));
    unlink(shard_path(folder, "other.fbin"));
    ck_assert_int_eq(rmdir(folder), 0);
}

static void put_bytes(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    ck_assert_int_eq(fclose(file), 0);
}

/* Shards of any lengths are the rows of one file, in the order of their names. */
START_TEST(shards) {
    fgmm_context *ctx = harness_context();
    const char *folder = save_shards();
    result wanted = fit_in_memory();
    put_bytes(shard_path(folder, "notes.txt"), "no rows\n", 8);
    const char *names[] = {folder, shard_path(folder, "part-*.npy"), shard_path(folder, "part-[0-4].np?")};
    for (int i = 0; i < 3; i++) {
        fgmm_rows *rows = NULL;
        CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, names[i], NULL));
        ck_assert_int_eq(fgmm_rows_count(rows), N);
        result got = fit_of(ctx, rows, 1024, NULL);
        SAME(got, wanted);
        fgmm_rows_free(ctx, rows);
    }
    remove_shards(folder);
}
END_TEST

/* A message names the shard that is not like the first. */
START_TEST(shards_that_differ) {
    fgmm_context *ctx = harness_context();
    const char *folder = save_shards();
    const uint32_t wide[2 + 9] = {1, 9}, bytes[2 + 2] = {1, D};
    fgmm_rows *rows = NULL;
    put_bytes(shard_path(folder, "other.fbin"), wide, sizeof wide);
    CHECK_FAILS(ctx, FGMM_ERR_FORMAT, fgmm_rows_open(ctx, &rows, folder, NULL));
    ck_assert_msg(strstr(fgmm_context_message(ctx), "other.fbin holds rows of 9 features") ||
                      strstr(fgmm_context_message(ctx), "other.fbin, the first shard, 9"),
                  "%s", fgmm_context_message(ctx));
    unlink(shard_path(folder, "other.fbin"));
    put_bytes(shard_path(folder, "part-2.npy"), bytes, sizeof bytes);
    CHECK_FAILS(ctx, FGMM_ERR_FORMAT, fgmm_rows_open(ctx, &rows, folder, NULL));
    ck_assert_msg(strstr(fgmm_context_message(ctx), "part-2.npy") != NULL, "%s", fgmm_context_message(ctx));
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_rows_open(ctx, &rows, shard_path(folder, "absent-*.npy"), NULL));
    remove_shards(folder);
    ck_assert_int_eq(mkdir(folder, 0700), 0);
    CHECK_FAILS(ctx, FGMM_ERR_IO, fgmm_rows_open(ctx, &rows, folder, NULL));
    ck_assert_int_eq(rmdir(folder), 0);
    ck_assert_ptr_null(rows);
}
END_TEST

typedef struct saboteur {
    const char *path;
    int truncates, done;
} saboteur;

/* Once an iteration is whole, takes a shard away or cuts it. */
static int sabotage(void *user, const fgmm_progress *progress) {
    saboteur *s = user;
    if (s->done || progress->iteration < 1) return 0;
    s->done = 1;
    return s->truncates ? truncate(s->path, 3000) : unlink(s->path);
}

/* A shard that is gone or cut during the run ends it, and is named. */
START_TEST(shards_that_go) {
    const char *folder = save_shards();
    saboteur s = {.path = shard_path(folder, "part-3.npy"), .truncates = _i};
    /* Too little for rows to stay on a CPU, so that the shard is read in each iteration. */
    fgmm_context *ctx = context_with(harness_is_cpu() ? 230000 : 0, sabotage, &s);
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_fit_options options = fit_options(1024);
    CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, folder, NULL));
    fgmm_status status = fgmm_fit(ctx, &model, rows, &options, NULL);
    if (harness_is_cpu()) {
        ck_assert_msg(status == FGMM_ERR_IO || status == FGMM_ERR_FORMAT, "%s: %s", fgmm_status_name(status),
                      fgmm_context_message(ctx));
        ck_assert_msg(strstr(fgmm_context_message(ctx), "part-3.npy") != NULL, "%s", fgmm_context_message(ctx));
        ck_assert_ptr_null(model);
    } else { /* all rows are on the device */
        ck_assert_int_eq(status, FGMM_OK);
        fgmm_model_free(ctx, model);
    }
    ck_assert_int_eq(s.done, 1);
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
    remove_shards(folder);
}
END_TEST

/* ---- pipes ---- */

typedef struct writer {
    pthread_t thread;
    int to, saved; /* the pipe's end; standard input as it was */
    const char *data;
    size_t bytes;
} writer;

static void *write_pipe(void *user) {
    writer *w = user;
    size_t done = 0;
    while (done < w->bytes) {
        size_t piece = w->bytes - done < 7777 ? w->bytes - done : 7777;
        ssize_t n = write(w->to, w->data + done, piece);
        if (n <= 0) break; /* the reader has seen enough */
        done += (size_t)n;
    }
    close(w->to);
    return NULL;
}

/* Standard input becomes a pipe that brings these bytes. */
static void pipe_open(writer *w, const void *data, size_t bytes) {
    int ends[2];
    *w = (writer){.data = data, .bytes = bytes, .saved = dup(STDIN_FILENO)};
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
    close(ends[0]);
    w->to = ends[1];
    signal(SIGPIPE, SIG_IGN);
    ck_assert_int_eq(pthread_create(&w->thread, NULL, write_pipe, w), 0);
}

static void pipe_close(writer *w) {
    int nothing = open("/dev/null", O_RDONLY);
    dup2(w->saved >= 0 ? w->saved : nothing, STDIN_FILENO);
    close(nothing);
    if (w->saved >= 0) close(w->saved);
    pthread_join(w->thread, NULL);
}

/* The rows as an .fbin. @return to be freed */
static char *make_fbin(size_t *bytes) {
    const uint32_t header[2] = {N, D};
    *bytes = 8 + N * D * sizeof(float);
    char *data = test_alloc(*bytes + 1, 1);
    memcpy(data, header, 8);
    for (int64_t i = 0; i < N; i++) memcpy(data + 8 + (size_t)i * D * sizeof(float), row_of(i), D * sizeof(float));
    return data;
}

/* One pass takes the rows as they come; several put them aside, in memory or, where that is too little, in a file. */
START_TEST(pipes) {
    size_t bytes, file_bytes = N * D * sizeof(float);
    char *data = make_fbin(&bytes);
    result wanted = fit_in_memory();
    /* Half of the limit is more than the rows, or less. */
    for (int in_file = 0; in_file < 2; in_file++) {
        fgmm_context *ctx = context_with(harness_is_cpu() && in_file ? file_bytes * 3 / 2 : 0, NULL, NULL);
        fgmm_rows *rows = NULL;
        writer w;
        pipe_open(&w, data, bytes);
        CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, "-", "fbin"));
        for (int again = 0; again < 2; again++) {
            result got = fit_of(ctx, rows, 1024, NULL);
            SAME(got, wanted);
        }
        fgmm_rows_free(ctx, rows);
        pipe_close(&w);
        fgmm_context_free(ctx);
    }
    free(data);
}
END_TEST

START_TEST(pipes_once) {
    size_t bytes;
    char *data = make_fbin(&bytes);
    fgmm_context *ctx = harness_context();
    fgmm_compute_options blocks = FGMM_COMPUTE_OPTIONS_INIT;
    double *once = test_alloc(N, sizeof *once), *in_memory = test_alloc(N, sizeof *in_memory);
    fgmm_rows *rows = NULL, *memory = problem_rows(ctx, p);
    writer w;
    blocks.block_rows = 1024;
    CHECK_OK(ctx, fgmm_score_samples(ctx, start, memory, NULL, in_memory, NULL));
    pipe_open(&w, data, bytes);
    CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, "-", "fbin"));
    CHECK_OK(ctx, fgmm_score_samples(ctx, start, rows, &blocks, once, NULL));
    ck_assert_int_eq(memcmp(once, in_memory, N * sizeof *once), 0);
    CHECK_FAILS(ctx, FGMM_ERR_INVALID, fgmm_score_samples(ctx, start, rows, &blocks, once, NULL));
    ck_assert_ptr_nonnull(strstr(fgmm_context_message(ctx), "only once"));
    fgmm_rows_free(ctx, rows);
    pipe_close(&w);
    fgmm_rows_free(ctx, memory);
    free(once);
    free(in_memory);
    free(data);
}
END_TEST

/* An .npy comes through a pipe as it lies in a file. */
START_TEST(pipes_npy) {
    fgmm_context *ctx = harness_context();
    result wanted = fit_in_memory();
    FILE *file = fopen(save_rows("pipe.npy"), "rb");
    char *data = test_alloc(N * D * sizeof(float) + 4096, 1);
    fgmm_rows *rows = NULL;
    writer w;
    ck_assert_ptr_nonnull(file);
    size_t bytes = fread(data, 1, N * D * sizeof(float) + 4096, file);
    fclose(file);
    pipe_open(&w, data, bytes);
    CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, "-", NULL));
    result got = fit_of(ctx, rows, 1024, NULL);
    SAME(got, wanted);
    fgmm_rows_free(ctx, rows);
    pipe_close(&w);
    free(data);
}
END_TEST

/* A pipe that ends early says how many rows were whole; one that goes on is not what its header says. */
START_TEST(pipes_that_end) {
    size_t bytes;
    char *data = make_fbin(&bytes);
    fgmm_context *ctx = harness_context();
    double *log_prob = test_alloc(N, sizeof *log_prob);
    const int64_t row = D * sizeof(float), whole = 4321;
    const struct {
        size_t bytes;
        const char *words;
    } cases[] = {{8 + whole * row + 3, "ends inside row 4321: 4321 of"},
                 {8 + whole * row, "ends after 4321 rows"},
                 {bytes + 1, "goes on behind its"}};
    for (int i = 0; i < 6; i++) {
        fgmm_rows *rows = NULL;
        fgmm_model *model = NULL;
        fgmm_fit_options options = fit_options(1024);
        writer w;
        pipe_open(&w, data, cases[i % 3].bytes);
        CHECK_OK(ctx, fgmm_rows_open(ctx, &rows, "-", "fbin"));
        if (i < 3)
            CHECK_FAILS(ctx, FGMM_ERR_FORMAT, fgmm_score_samples(ctx, start, rows, &options.compute, log_prob, NULL));
        else
            CHECK_FAILS(ctx, FGMM_ERR_FORMAT, fgmm_fit(ctx, &model, rows, &options, NULL));
        ck_assert_msg(strstr(fgmm_context_message(ctx), cases[i % 3].words) != NULL, "%s", fgmm_context_message(ctx));
        fgmm_rows_free(ctx, rows);
        pipe_close(&w);
    }
    for (size_t length = 0; length < 8; length++) {
        fgmm_rows *rows = NULL;
        writer w;
        pipe_open(&w, data, length);
        CHECK_FAILS(ctx, FGMM_ERR_FORMAT, fgmm_rows_open(ctx, &rows, "-", "fbin"));
        pipe_close(&w);
    }
    free(log_prob);
    free(data);
}
END_TEST

static TCase *sources(void) {
    TCase *room = tcase_create("sources");
    tcase_add_checked_fixture(room, set_up, tear_down);
    tcase_set_timeout(room, 300);
    tcase_add_test(room, shards);
    tcase_add_test(room, shards_that_differ);
    tcase_add_loop_test(room, shards_that_go, 0, 2);
    tcase_add_test(room, pipes);
    tcase_add_test(room, pipes_once);
    tcase_add_test(room, pipes_npy);
    tcase_add_test(room, pipes_that_end);
    return room;
}

int main(void) {
    TCase *(*const rooms[])(void) = {sources};
    return harness_main("sources", rooms, 1);
}
