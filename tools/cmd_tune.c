/*
 * flashgmm tune: tries the tiles of the OpenCL kernels on a device and writes those that are faster to the user's rows,
 * which the library reads when it opens one (cl/cl_tuning.c). A candidate is a file of one row in FLASHGMM_TUNING and a
 * context of its own; it is timed only if an iteration with it keeps the contract of exact precision against doubles
 * on the CPU.
 */
#include "bench_case.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct tile {
    int gx, gy, rm, rn, dt;
} tile;

/* What a row is for, and the work that it is measured on. */
typedef struct task {
    const char *kernel, *k_range, *d_range;
    fgmm_covariance covariance;
    fgmm_engine engine;
    int64_t k, d;
    tile start;
} task;

static const task tasks[] = {
    {"screen", "17-2147483647", "*", FGMM_SPHERICAL, FGMM_ENGINE_SCREEN, 512, 64, {16, 16, 4, 4, 0}},
    {"dense", "17-2147483647", "*", FGMM_SPHERICAL, FGMM_ENGINE_DENSE, 256, 16, {16, 16, 4, 4, 0}},
    {"whiten", "*", "1-8", FGMM_FULL, FGMM_ENGINE_SCREEN, 64, 8, {8, 8, 8, 1, 8}},
    {"whiten", "*", "9-32", FGMM_FULL, FGMM_ENGINE_SCREEN, 32, 24, {8, 16, 4, 4, 8}},
    {"whiten", "*", "33-2147483647", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 96, {16, 16, 4, 4, 16}},
    {"scatter", "*", "1-16", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 16, {8, 8, 2, 2, 0}},
    {"scatter", "*", "17-32", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 24, {8, 8, 4, 4, 0}},
    {"scatter", "*", "33-2147483647", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 96, {16, 16, 4, 4, 0}},
};
enum { TASKS = sizeof tasks / sizeof *tasks, REPS = 5 };

static volatile sig_atomic_t stopped;

/* Ctrl-C ends the search; what was found is written already. A second one kills. */
static void stop(int number) {
    stopped = 1;
    signal(number, SIG_DFL);
}

/* A task's data, the model that doubles make of it in one iteration, and what was found. */
typedef struct trial {
    const task *task;
    bench_data data;
    bench_case made;
    fgmm_model *reference;
    tile best;
    double before, after; /* seconds an iteration: with the library's own tile and with the best */
    int tried, wrong;
} trial;

typedef struct tuner {
    cli_session *session; /* its context is the CPU's */
    const char *device;   /* as asked for */
    char name[256];       /* what the rows call it */
    char scratch[4096];   /* the file of the row under trial */
    int says;             /* a line a task */
    trial trials[TASKS];
} tuner;

/* ---- one candidate ---- */

static void print_row(FILE *file, const char *device, const task *t, const tile *c) {
    fprintf(file, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\n", device, t->kernel, t->k_range, t->d_range, c->gx, c->gy,
            c->rm, c->rn, c->dt);
}

/* What the library asks of a tile, and a work-group that every device with tiles has. */
static int is_sound(const task *t, const tile *c) {
    int whitens = strcmp(t->kernel, "whiten") == 0, scatters = strcmp(t->kernel, "scatter") == 0;
    if (c->gx < 4 || c->gy < 4 || c->rm < 1 || c->rn < 1 || c->gx * c->gy < 32 || c->gx * c->gy > 256) return 0;
    if (c->gx > 32 || c->gy > 32 || c->rm > 8 || c->rn > 8) return 0;
    if (scatters) return c->gx * c->rn == c->gy * c->rm;
    if (whitens && (c->dt < 8 || c->dt > 32 || c->gx * c->rn % c->dt != 0)) return 0;
    return strcmp(t->kernel, "dense") == 0 || c->gx >= c->rm;
}

static fgmm_context *open_with(const tuner *u, const char *tuning) {
    fgmm_context_options o = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_context *ctx = NULL;
    setenv("FLASHGMM_TUNING", tuning, 1);
    o.device = u->device;
    o.threads = u->session->threads;
    o.device_memory_limit = u->session->device_memory;
    o.log_level = FGMM_LOG_ERROR;
    return fgmm_context_create(&ctx, &o) == FGMM_OK ? ctx : NULL;
}

static fgmm_status iterate(fgmm_context *ctx, const trial *r, int iterations, fgmm_precision precision,
                           fgmm_model **out, fgmm_report *report) {
    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    fgmm_model *start = NULL;
    fgmm_status status = fgmm_rows_from_memory(ctx, &rows, r->made.x, FGMM_F32, r->data.n, r->data.d, 0);
    if (status == FGMM_OK)
        status = fgmm_model_create(ctx, &start, r->task->covariance, r->data.k, r->data.d, NULL,
                                   fgmm_model_means(r->made.start), fgmm_model_covariances(r->made.start));
    o.init_model = start;
    o.covariance_type = r->task->covariance;
    o.max_iter = iterations;
    o.tol = -1;
    o.compute.engine = precision == FGMM_DOUBLE ? FGMM_ENGINE_AUTO : r->task->engine;
    o.compute.precision = precision;
    if (status == FGMM_OK) status = fgmm_fit(ctx, out, rows, &o, report);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    return status;
}

static double variance_of(const trial *r, const fgmm_model *model, int64_t k, int64_t j) {
    const double *all = fgmm_model_covariances(model);
    int64_t d = r->data.d;
    return r->task->covariance == FGMM_FULL ? all[(k * d + j) * d + j] : all[k];
}

/* The contract of exact precision for one iteration: 1e-5 of the count, of a deviation, of a variance. */
static int keeps_contract(const trial *r, const fgmm_model *got) {
    const fgmm_model *want = r->reference;
    const double e = 1e-5;
    double bound = fgmm_model_lower_bound(want);
    if (!(fabs(fgmm_model_lower_bound(got) - bound) <= e * fmax(1, fabs(bound)))) return 0;
    for (int64_t k = 0; k < r->data.k; k++) {
        double count = fgmm_model_weights(want)[k] * (double)r->data.n;
        if (count < 1) continue;
        if (!(fabs(fgmm_model_weights(got)[k] * (double)r->data.n - count) <= e * count)) return 0;
        for (int64_t j = 0; j < r->data.d; j++) {
            double variance = variance_of(r, want, k, j), off = variance_of(r, got, k, j) - variance;
            double mean = fgmm_model_means(got)[k * r->data.d + j] - fgmm_model_means(want)[k * r->data.d + j];
            if (!(fabs(mean) <= e * sqrt(variance)) || !(fabs(off) <= 2 * e * variance)) return 0;
        }
    }
    return 1;
}

/* Seconds an iteration, or NAN: the candidate does not run, or is wrong. */
static double time_with(const tuner *u, trial *r, const char *tuning) {
    double each[REPS], spent = 0;
    int times = 0;
    fgmm_context *ctx = open_with(u, tuning);
    fgmm_model *model = NULL;
    r->tried++;
    if (!ctx) return NAN;
    fgmm_status status = iterate(ctx, r, 1, FGMM_EXACT, &model, NULL); /* also builds the kernels */
    int right = status == FGMM_OK && keeps_contract(r, model);
    r->wrong += !right;
    fgmm_model_free(ctx, model);
    while (right && times < REPS && (times < 3 || spent < 0.5)) {
        fgmm_report report = FGMM_REPORT_INIT;
        model = NULL;
        if (iterate(ctx, r, 1, FGMM_EXACT, &model, &report) != FGMM_OK) right = 0;
        spent += each[times++] = report.seconds_per_iteration;
        fgmm_model_free(ctx, model);
    }
    fgmm_context_free(ctx);
    return right ? bench_median(each, times) : NAN;
}

static double time_tile(const tuner *u, trial *r, const tile *c) {
    FILE *file = fopen(u->scratch, "w");
    if (!file) return NAN;
    print_row(file, u->name, r->task, c);
    return fclose(file) == 0 ? time_with(u, r, u->scratch) : NAN;
}

/* ---- the search ---- */

/* Neighbours of a tile: one number twice or half as large; of square tiles, two. */
static int neighbour(const tile *from, int which, tile *out) {
    enum { STEPS = 14 };
    static const int steps[STEPS][5] = {{1, 0, 0, 0, 0}, {-1, 0, 0, 0, 0}, {0, 1, 0, 0, 0},   {0, -1, 0, 0, 0},
                                        {0, 0, 1, 0, 0}, {0, 0, -1, 0, 0}, {0, 0, 0, 1, 0},   {0, 0, 0, -1, 0},
                                        {0, 0, 0, 0, 1}, {0, 0, 0, 0, -1}, {1, 1, -1, -1, 0}, {-1, -1, 1, 1, 0},
                                        {0, 0, 1, 1, 0}, {0, 0, -1, -1, 0}};
    const int values[5] = {from->gx, from->gy, from->rm, from->rn, from->dt};
    int now[5];
    if (which >= STEPS) return 0;
    for (int i = 0; i < 5; i++)
        now[i] = steps[which][i] > 0 ? 2 * values[i] : steps[which][i] < 0 ? values[i] / 2 : values[i];
    *out = (tile){now[0], now[1], now[2], now[3], now[4]};
    return 1;
}

/* A twentieth is what runs of one tile differ by. */
static const double worthwhile = 0.95;

/* Goes to the best neighbour until there is none, or no time. */
static void climb(const tuner *u, trial *r, double until) {
    tile from = r->best;
    for (int moved = 1; moved && cli_now() < until && !stopped;) {
        tile next;
        moved = 0;
        for (int i = 0; neighbour(&from, i, &next) && cli_now() < until && !stopped; i++) {
            if (memcmp(&next, &from, sizeof next) == 0 || !is_sound(r->task, &next)) continue;
            double seconds = time_tile(u, r, &next);
            if (!(seconds < worthwhile * r->after)) continue;
            r->after = seconds;
            r->best = next;
            moved = 1;
        }
        from = r->best;
    }
}

/* Rows enough for about a thirtieth of a second an iteration, and the doubles' model of them. */
static int prepare(const tuner *u, trial *r) {
    enum { LEAST = 2048, MOST = 1 << 20 };
    const task *t = r->task;
    const double wanted = 0.03;
    fgmm_context *ctx = open_with(u, "/dev/null");
    if (!ctx) return CLI_FAILED;
    int rc = CLI_DONE;
    for (int64_t n = LEAST; rc == CLI_DONE; n *= 4) {
        fgmm_report report = FGMM_REPORT_INIT;
        fgmm_model *model = NULL;
        bench_case_free(&r->made, u->session);
        r->data = (bench_data){.n = n, .k = t->k, .d = t->d, .seed = 1};
        rc = bench_case_make(&r->made, u->session, &r->data, t->covariance, 0);
        for (int turn = 0; turn < 2 && rc == CLI_DONE; turn++) { /* the first builds kernels */
            fgmm_model_free(ctx, model);
            model = NULL;
            if (iterate(ctx, r, 1, FGMM_EXACT, &model, &report) == FGMM_OK) continue;
            cli_say("%s: %s", t->kernel, fgmm_context_message(ctx));
            rc = CLI_FAILED;
        }
        fgmm_model_free(ctx, model);
        if (report.seconds_per_iteration >= wanted || n >= MOST) break;
    }
    fgmm_context_free(ctx);
    fgmm_report report = FGMM_REPORT_INIT;
    if (rc != CLI_DONE) return rc;
    fgmm_status status = iterate(u->session->ctx, r, 1, FGMM_DOUBLE, &r->reference, &report);
    return status == FGMM_OK ? CLI_DONE : cli_failed(u->session, status);
}

/* ---- the rows ---- */

static int default_output(char *out, size_t size) {
    const char *own = getenv("FLASHGMM_TUNING"), *xdg = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    int length = own && *own            ? snprintf(out, size, "%s", own)
                 : xdg && *xdg == '/'   ? snprintf(out, size, "%s/flashgmm/tuning.tsv", xdg)
                 : home && *home == '/' ? snprintf(out, size, "%s/.config/flashgmm/tuning.tsv", home)
                                        : -1;
    return length > 0 && (size_t)length < size;
}

/* The folders above a file. */
static void make_folders(const char *path) {
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *at = strchr(folder + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(folder, 0777); /* what is there is no failure, and what cannot be made is told by fopen */
        *at = '/';
    }
}

/* Before any work: whether rows can be written there. */
static int check_output(const char *path) {
    int there = access(path, F_OK) == 0;
    make_folders(path);
    FILE *file = fopen(path, "a");
    if (!file) return cli_say("cannot write %s: %s", path, strerror(errno)), CLI_FAILED;
    fclose(file);
    if (!there) unlink(path);
    return CLI_DONE;
}

/* Whether a line of the file is the row of this device that r would write. */
static int is_replaced(const tuner *u, const trial *r, const char *line) {
    char key[512];
    int length =
        snprintf(key, sizeof key, "%s\t%s\t%s\t%s\t", u->name, r->task->kernel, r->task->k_range, r->task->d_range);
    return strncmp(line, key, (size_t)length) == 0;
}

/* The old file without the row that r replaces, and r's row if it is worth one. */
static int write_row(const tuner *u, const trial *r, const char *path) {
    char beside[4200], line[1024], date[16];
    time_t now = time(NULL);
    struct tm day;
    snprintf(beside, sizeof beside, "%s.tmp%ld", path, (long)getpid());
    strftime(date, sizeof date, "%Y-%m-%d", localtime_r(&now, &day));
    FILE *out = fopen(beside, "w"), *old = fopen(path, "r");
    if (!out) {
        cli_say("cannot write %s: %s", beside, strerror(errno));
        if (old) fclose(old);
        return CLI_FAILED;
    }
    if (!old)
        fprintf(out,
                "# DEVICE\tKERNEL\tK\tD\tGX\tGY\tRM\tRN\tDT, with tabs between: tiles of flashgmm's OpenCL kernels\n");
    while (old && fgets(line, sizeof line, old))
        if (!is_replaced(u, r, line)) fputs(line, out);
    if (old) fclose(old);
    if (r->after < worthwhile * r->before) {
        fprintf(out, "# %s: %.3g ms in place of %.3g ms, %lld rows, K = %lld, D = %lld\n", date, 1e3 * r->after,
                1e3 * r->before, (long long)r->data.n, (long long)r->data.k, (long long)r->data.d);
        print_row(out, u->name, r->task, &r->best);
    }
    int failed = ferror(out) || fflush(out) != 0 || fsync(fileno(out)) != 0;
    failed |= fclose(out) != 0;
    if (!failed && rename(beside, path) == 0) return CLI_DONE;
    cli_say("cannot write %s: %s", path, strerror(errno));
    unlink(beside);
    return CLI_FAILED;
}

static int tune_one(tuner *u, trial *r, double until, const char *path) {
    int rc = prepare(u, r);
    if (rc != CLI_DONE) return rc;
    r->best = r->task->start;
    r->before = time_with(u, r, "/dev/null");
    if (isnan(r->before))
        return cli_say("%s: the library's own tile fails on %s", r->task->kernel, u->name), CLI_FAILED;
    r->after = r->before;
    climb(u, r, until);
    if (r->after < r->before) { /* the best of many is partly luck: once more, side by side */
        r->before = time_with(u, r, "/dev/null");
        r->after = time_tile(u, r, &r->best);
        if (isnan(r->after)) r->after = r->before;
    }
    return write_row(u, r, path);
}

static void print_trial(const trial *r) {
    const tile *b = &r->best;
    printf("%-8s K %-14s D %-14s %8.3g ms", r->task->kernel, r->task->k_range, r->task->d_range, 1e3 * r->before);
    if (r->after < worthwhile * r->before)
        printf(" -> %.3g ms with %d x %d of %d x %d", 1e3 * r->after, b->gx, b->gy, b->rm, b->rn);
    else
        printf(", the library's own stays");
    printf(" (%d tried, %d failed)\n", r->tried, r->wrong);
    fflush(stdout);
}

static void print_json(const tuner *u, int count, const char *path) {
    json_out j = json_begin(stdout);
    json_text(&j, "device", u->name);
    json_text(&j, "file", path);
    json_int(&j, "not_reached", TASKS - count);
    json_array(&j, "rows");
    for (int i = 0; i < count; i++) {
        const trial *r = &u->trials[i];
        json_object(&j);
        json_text(&j, "kernel", r->task->kernel);
        json_text(&j, "k", r->task->k_range);
        json_text(&j, "d", r->task->d_range);
        json_real(&j, "ms_before", 1e3 * r->before);
        json_real(&j, "ms", 1e3 * r->after);
        json_bool(&j, "written", r->after < worthwhile * r->before);
        json_int(&j, "gx", r->best.gx);
        json_int(&j, "gy", r->best.gy);
        json_int(&j, "rm", r->best.rm);
        json_int(&j, "rn", r->best.rn);
        json_int(&j, "dt", r->best.dt);
        json_int(&j, "tried", r->tried);
        json_int(&j, "failed", r->wrong);
        json_close(&j, '}');
    }
    json_close(&j, ']');
    json_end(&j);
}

/* What the rows call the device. */
static int name_device(const cli_command *self, tuner *u) {
    fgmm_context *ctx = NULL;
    int rc = cli_open_another(self, u->session, u->device, 1, &ctx);
    if (rc != CLI_DONE) return rc;
    const char *label = fgmm_context_device(ctx), *name = strstr(label, ": ");
    snprintf(u->name, sizeof u->name, "%s", name ? name + 2 : label);
    fgmm_context_free(ctx);
    return CLI_DONE;
}

static void trial_free(const tuner *u, trial *r) {
    bench_case_free(&r->made, u->session);
    fgmm_model_free(u->session->ctx, r->reference);
}

static int tune_all(const cli_command *self, tuner *u, double seconds, const char *path) {
    int rc = name_device(self, u), done = 0;
    double until = cli_now() + seconds;
    if (rc == CLI_DONE && u->says) printf("device   %s\n", u->name);
    for (; done < TASKS && rc == CLI_DONE && !stopped && cli_now() < until; done++) {
        trial *r = &u->trials[done];
        r->task = &tasks[done];
        /* What one leaves of its time the others have. */
        double now = cli_now();
        rc = tune_one(u, r, now + (until - now) / (TASKS - done), path);
        if (rc == CLI_DONE && u->says) print_trial(r);
        trial_free(u, r);
    }
    if (rc == CLI_DONE && u->session->json) print_json(u, done, path);
    if (rc == CLI_DONE && u->says && done < TASKS)
        printf("%d of %d were not reached in the time given\n", TASKS - done, TASKS);
    if (rc == CLI_DONE && u->says) printf("rows     %s\n", path);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv) {
    cli_session s = {0};
    double seconds = 300;
    const char *output = NULL;
    char path[4096];
    const cli_option options[] = {
        {"seconds", 0, CLI_REAL, &seconds, 0, 1e7, "S", "how long to search (default 300)"},
        {"output", 'o', CLI_TEXT, &output, 0, 0, "FILE",
         "where the rows go (default: where the library looks for them)"},
        CLI_SESSION_OPTIONS(&s),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (s.device && strncmp(s.device, "opencl", 6) != 0)
        return cli_usage(self, "'%s' has no tiles: --device opencl", s.device);
    if (!output && !default_output(path, sizeof path)) return cli_usage(self, "there is no HOME: -o FILE");
    if (!output) output = path;
    if (check_output(output) != CLI_DONE) return CLI_FAILED;
    tuner *u = cli_alloc(1, sizeof *u, "trials");
    if (!u) return CLI_FAILED;
    u->session = &s;
    u->device = s.device ? s.device : "opencl";
    u->says = !s.json && !s.quiet;
    s.device = "cpu"; /* the session's context is the judge, which has nothing to say of its models */
    s.quiet = 1;
    const char *folder = getenv("TMPDIR");
    int length =
        snprintf(u->scratch, sizeof u->scratch, "%s/flashgmm-tune-XXXXXX", folder && *folder ? folder : "/tmp");
    int file = length > 0 && (size_t)length < sizeof u->scratch ? mkstemp(u->scratch) : -1;
    rc = file < 0 ? (cli_say("cannot make a file in TMPDIR: %s", strerror(errno)), CLI_FAILED) : cli_open(self, &s);
    signal(SIGINT, stop);
    if (rc == CLI_DONE) rc = tune_all(self, u, seconds, output);
    cli_close(&s);
    if (file >= 0) {
        close(file);
        unlink(u->scratch);
    }
    free(u);
    return stopped && rc == CLI_DONE ? CLI_FAILED : rc;
}

const cli_command cmd_tune = {
    .name = "tune",
    .summary = "find faster tiles of the OpenCL kernels for a device",
    .usage = "[--device opencl:NAME] [--seconds S] [OPTION]...",
    .example = "  flashgmm tune --device opencl --seconds 300\n",
    .run = run,
};
