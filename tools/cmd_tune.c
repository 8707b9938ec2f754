/*
 * flashgmm tune: tries the tiles of the OpenCL kernels on a device and writes those that are faster to the user's rows,
 * which the library reads when it opens one (cl/cl_tuning.c). A candidate is a file of one row in FLASHGMM_TUNING and a
 * context of its own; it is timed only if the library takes the row without a warning and an iteration keeps the contract
 * of exact precision against doubles on the CPU.
 */
#include "bench_case.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
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
    tile starts[2]; /* what the library takes, by the kind of device; gx 0: none */
} task;

static const task tasks[] = {
    {"screen", "17-64", "*", FGMM_SPHERICAL, FGMM_ENGINE_SCREEN, 64, 64, {{16, 16, 4, 4, 16}}},
    {"screen",
     "65-2147483647",
     "*",
     FGMM_SPHERICAL,
     FGMM_ENGINE_SCREEN,
     512,
     64,
     {{16, 8, 8, 8, 8}, {16, 16, 4, 4, 16}}},
    {"dense", "17-2147483647", "*", FGMM_SPHERICAL, FGMM_ENGINE_DENSE, 256, 16, {{16, 8, 8, 4, 0}, {16, 16, 4, 4, 0}}},
    {"whiten", "*", "1-8", FGMM_FULL, FGMM_ENGINE_SCREEN, 64, 8, {{8, 8, 8, 1, 8}}},
    {"whiten", "*", "9-32", FGMM_FULL, FGMM_ENGINE_SCREEN, 32, 24, {{8, 16, 4, 4, 8}}},
    {"whiten", "*", "33-2147483647", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 96, {{16, 16, 4, 4, 16}}},
    {"scatter", "*", "1-16", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 16, {{8, 8, 2, 2, 0}}},
    {"scatter", "*", "17-32", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 24, {{8, 8, 4, 4, 0}}},
    {"scatter", "*", "33-2147483647", FGMM_FULL, FGMM_ENGINE_SCREEN, 16, 96, {{16, 16, 4, 4, 0}}},
};
enum { TASKS = sizeof tasks / sizeof *tasks, REPS = 5, ENOUGH = 8192 /* rows, to be right */ };

/* Ctrl-C cancels the call that runs and ends the search; what was found before is written already. */
static int is_over(double until) {
    return cli_interrupted() || cli_now() >= until;
}

/* A task's data, the model that doubles make of it in one iteration, and what was found. */
typedef struct trial {
    const task *task;
    bench_case made;
    fgmm_model *reference;
    tile best;
    double before, after; /* seconds an iteration: with the library's own tile and with the best */
    int tried, failed;    /* tiles */
    int finished;         /* no neighbour was better */
} trial;

typedef struct tuner {
    cli_session *session; /* its context is the CPU's */
    const char *device;   /* as asked for */
    char name[96];        /* what the rows call it: no more than the library reads of a row */
    char path[4096];      /* where the rows go, no symbolic link */
    char scratch[4096];   /* the file of the row under trial */
    char why[512];        /* the last context did not open */
    int said, warnings;   /* warnings of the last context, and as one without rows opens */
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
    if (strcmp(t->kernel, "screen") == 0 && (c->dt < 4 || c->dt > 16)) return 0;
    if (whitens && (c->dt < 8 || c->dt > 32 || c->gx * c->rn % c->dt != 0)) return 0;
    return strcmp(t->kernel, "dense") == 0 || c->gx >= c->rm;
}

static void on_log(void *user, fgmm_log_level level, const char *line) {
    (void)level, (void)line;
    ++*(int *)user;
}

/* A context whose only row is the tile; without a tile it has none. @return NULL also where the library warns of the row, as
 * it does of one that it leaves out: of the device itself it warns without a row, too. Else see u->why. */
static fgmm_context *open_with(tuner *u, const task *t, const tile *c) {
    fgmm_context_options o = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_context *ctx = NULL;
    FILE *file = fopen(u->scratch, "w");
    if (file && c) print_row(file, u->name, t, c);
    if (!file || fclose(file) != 0) {
        snprintf(u->why, sizeof u->why, "cannot write the row under trial: %s", strerror(errno));
        return NULL;
    }
    setenv("FLASHGMM_TUNING", u->scratch, 1);
    o.device = u->device;
    o.threads = u->session->threads;
    o.device_memory_limit = u->session->device_memory;
    o.log = on_log;
    o.log_user = &u->said;
    o.log_level = FGMM_LOG_WARNING;
    o.error = u->why;
    o.error_size = sizeof u->why;
    u->said = 0;
    if (fgmm_context_create(&ctx, &o) != FGMM_OK) return NULL;
    if (!c) u->warnings = u->said;
    if (u->said <= u->warnings) return ctx;
    fgmm_context_free(ctx);
    return NULL;
}

/* One iteration; doubles choose their engine. */
static fgmm_status iterate(fgmm_context *ctx, const bench_case *c, fgmm_engine engine, fgmm_precision precision,
                           fgmm_model **out, fgmm_report *report) {
    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    fgmm_rows *rows = NULL;
    fgmm_model *start = NULL;
    cli_at_work(ctx);
    fgmm_status status = cli_interrupted() ? FGMM_ERR_CANCELLED : FGMM_OK;
    o.covariance_type = fgmm_model_covariance_type(c->start);
    if (status == FGMM_OK) status = fgmm_rows_from_memory(ctx, &rows, c->x, FGMM_F32, c->data.n, c->data.d, 0);
    if (status == FGMM_OK)
        status = fgmm_model_create(ctx, &start, o.covariance_type, c->data.k, c->data.d, NULL,
                                   fgmm_model_means(c->start), fgmm_model_covariances(c->start));
    o.init_model = start;
    o.max_iter = 1;
    o.tol = -1;
    o.compute.engine = precision == FGMM_DOUBLE ? FGMM_ENGINE_AUTO : engine;
    o.compute.precision = precision;
    if (status == FGMM_OK) status = fgmm_fit(ctx, out, rows, &o, report);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, rows);
    cli_at_work(NULL);
    return status;
}

static double covariance_of(const fgmm_model *model, int64_t k, int64_t i, int64_t j) {
    const double *all = fgmm_model_covariances(model);
    int64_t d = fgmm_model_features(model);
    switch (fgmm_model_covariance_type(model)) {
    case FGMM_SPHERICAL: return i == j ? all[k] : 0;
    case FGMM_DIAG: return i == j ? all[k * d + i] : 0;
    case FGMM_TIED: return all[i * d + j];
    default: return all[(k * d + i) * d + j];
    }
}

/* The contract of exact precision for one iteration: 1e-5 of the likelihood, of a count, of a deviation, of deviations'
 * product. */
static int keeps_contract(const fgmm_model *got, const fgmm_model *want, int64_t n) {
    const double e = 1e-5, bound = fgmm_model_lower_bound(want);
    int64_t d = fgmm_model_features(want);
    if (!(fabs(fgmm_model_lower_bound(got) - bound) <= e * fmax(1, fabs(bound)))) return 0;
    for (int64_t k = 0; k < fgmm_model_components(want); k++) {
        double weight = fgmm_model_weights(want)[k];
        if (weight * (double)n < 1) continue; /* nothing is promised of less than a row */
        if (!(fabs(fgmm_model_weights(got)[k] - weight) <= e * weight)) return 0;
        for (int64_t i = 0; i < d; i++) {
            double variance = covariance_of(want, k, i, i);
            double mean = fgmm_model_means(got)[k * d + i] - fgmm_model_means(want)[k * d + i];
            if (!(fabs(mean) <= e * sqrt(variance))) return 0;
            for (int64_t j = 0; j <= i; j++) {
                double off = covariance_of(got, k, i, j) - covariance_of(want, k, i, j);
                if (!(fabs(off) <= e * sqrt(variance * covariance_of(want, k, j, j)))) return 0;
            }
        }
    }
    return 1;
}

/* Whether an iteration keeps the contract; it also builds the kernels. */
static int is_right(fgmm_context *ctx, const bench_case *c, fgmm_engine engine, const fgmm_model *reference) {
    fgmm_model *model = NULL;
    int right =
        iterate(ctx, c, engine, FGMM_EXACT, &model, NULL) == FGMM_OK && keeps_contract(model, reference, c->data.n);
    fgmm_model_free(ctx, model);
    return right;
}

/* Seconds an iteration with a tile, or with the library's own for NULL. NAN: it does not run, or is wrong. */
static double time_with(tuner *u, trial *r, const tile *c) {
    double each[REPS], spent = 0;
    int times = 0;
    fgmm_context *ctx = open_with(u, r->task, c);
    int right = ctx && is_right(ctx, &r->made, r->task->engine, r->reference);
    while (right && times < REPS && (times < 3 || spent < 0.5)) {
        fgmm_report report = FGMM_REPORT_INIT;
        fgmm_model *model = NULL;
        right = iterate(ctx, &r->made, r->task->engine, FGMM_EXACT, &model, &report) == FGMM_OK;
        spent += each[times++] = report.seconds_per_iteration;
        fgmm_model_free(ctx, model);
    }
    fgmm_context_free(ctx);
    return right ? bench_median(each, times) : NAN;
}

/* Whether the best tile keeps the contract in every kernel that is built with it. */
static int is_right_everywhere(tuner *u, trial *r) {
    const fgmm_covariance simple[] = {FGMM_SPHERICAL, FGMM_DIAG}, matrices[] = {FGMM_FULL, FGMM_TIED};
    const fgmm_engine engines[] = {FGMM_ENGINE_SCREEN, FGMM_ENGINE_DENSE};
    bench_data data = r->made.data;
    int is_simple = r->task->covariance == FGMM_SPHERICAL, right = 1;
    if (data.n > ENOUGH) data.n = ENOUGH;
    for (int i = 0; i < 2 && right; i++) {
        bench_case made = {0};
        fgmm_model *reference = NULL;
        right = bench_case_make(&made, u->session, &data, is_simple ? simple[i] : matrices[i], 0) == CLI_DONE &&
                iterate(u->session->ctx, &made, FGMM_ENGINE_AUTO, FGMM_DOUBLE, &reference, NULL) == FGMM_OK;
        for (int j = 0; j < 2 && right; j++) {
            if (is_simple && engines[j] != r->task->engine) continue;
            fgmm_context *ctx = open_with(u, r->task, &r->best);
            right = ctx && is_right(ctx, &made, engines[j], reference);
            fgmm_context_free(ctx);
        }
        fgmm_model_free(u->session->ctx, reference);
        bench_case_free(&made, u->session);
    }
    return right;
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

static int is_same(const tile *a, const tile *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

/* Keeps a tile that takes less than such a share of the best's time. */
static void try_tile(tuner *u, trial *r, const tile *c, double share) {
    double seconds = time_with(u, r, c);
    if (cli_interrupted()) return;
    r->tried++;
    r->failed += isnan(seconds);
    if (!(seconds < share * r->after)) return;
    r->after = seconds;
    r->best = *c;
}

/* Goes from the best of the starts to the best neighbour until there is none, or no time. @param row the user's, or gx 0 */
static void climb(tuner *u, trial *r, const tile *row, double until) {
    const tile *starts[] = {row, &r->task->starts[0], &r->task->starts[1]};
    r->after = INFINITY;
    for (int i = 0; i < 3; i++)
        if (starts[i]->gx && !is_over(until)) try_tile(u, r, starts[i], 1);
    if (isinf(r->after)) {
        r->after = r->before;
        r->best = r->task->starts[0];
    }
    while (!r->finished) {
        tile from = r->best, next;
        for (int i = 0; neighbour(&from, i, &next); i++) {
            if (is_same(&next, &from) || !is_sound(r->task, &next)) continue;
            if (is_over(until)) return;
            try_tile(u, r, &next, worthwhile);
        }
        r->finished = is_same(&r->best, &from);
    }
}

/* Rows enough for about a thirtieth of a second an iteration, and the doubles' model of them. */
static int prepare(tuner *u, trial *r, double until) {
    enum { LEAST = 2048, MOST = 1 << 20 };
    const task *t = r->task;
    const double wanted = 0.03;
    double seconds = 0;
    fgmm_context *ctx = open_with(u, t, NULL);
    if (!ctx) return cli_say("%s", u->why), CLI_FAILED;
    int rc = CLI_DONE;
    for (int64_t n = LEAST; rc == CLI_DONE && n <= MOST && seconds < wanted && !is_over(until); n *= 4) {
        const bench_data data = {.n = n, .k = t->k, .d = t->d, .seed = 1};
        bench_case_free(&r->made, u->session);
        rc = bench_case_make(&r->made, u->session, &data, t->covariance, 0);
        for (int turn = 0; turn < 2 && rc == CLI_DONE && !cli_interrupted(); turn++) { /* the first builds kernels */
            fgmm_report report = FGMM_REPORT_INIT;
            fgmm_model *model = NULL;
            fgmm_status status = iterate(ctx, &r->made, t->engine, FGMM_EXACT, &model, &report);
            seconds = report.seconds_per_iteration;
            fgmm_model_free(ctx, model);
            if (status == FGMM_OK || cli_interrupted()) continue;
            cli_say("%s: %s", t->kernel, fgmm_context_message(ctx));
            rc = CLI_FAILED;
        }
    }
    fgmm_context_free(ctx);
    if (rc != CLI_DONE || is_over(until)) return rc;
    fgmm_status status = iterate(u->session->ctx, &r->made, FGMM_ENGINE_AUTO, FGMM_DOUBLE, &r->reference, NULL);
    return status == FGMM_OK || cli_interrupted() ? CLI_DONE : cli_failed(u->session, status);
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

/* A new file beside the rows, to take their place. @return NULL after a message */
static FILE *open_beside(const tuner *u, char *name, size_t size) {
    snprintf(name, size, "%s.tmp%ld", u->path, (long)getpid());
    int file = open(name, O_WRONLY | O_CREAT | O_EXCL, 0666);
    struct stat old;
    if (file >= 0 && stat(u->path, &old) == 0) (void)!fchmod(file, old.st_mode & 0777);
    FILE *out = file >= 0 ? fdopen(file, "w") : NULL;
    if (!out) cli_say("cannot write %s: %s", name, strerror(errno));
    return out;
}

/* Before any work: where the rows go, and whether they can be written there. */
static int check_output(tuner *u, const char *path) {
    char name[4200];
    struct stat at;
    if (stat(path, &at) != 0 && errno != ENOENT)
        return cli_say("cannot write %s: %s", path, strerror(errno)), CLI_FAILED;
    if (stat(path, &at) != 0) {
        if (lstat(path, &at) == 0) return cli_say("cannot write %s: it links to no file", path), CLI_FAILED;
        snprintf(u->path, sizeof u->path, "%s", path);
        make_folders(path);
    } else if (!S_ISREG(at.st_mode)) {
        return cli_say("cannot write %s: it is no regular file", path), CLI_FAILED;
    } else {
        char *real = realpath(path, NULL);
        if (!real || access(real, R_OK | W_OK) != 0) {
            cli_say("cannot write %s: %s", path, strerror(errno));
            free(real);
            return CLI_FAILED;
        }
        snprintf(u->path, sizeof u->path, "%s", real);
        free(real);
    }
    FILE *file = open_beside(u, name, sizeof name);
    if (!file) return CLI_FAILED;
    fclose(file);
    unlink(name);
    return CLI_DONE;
}

static const char head[] =
    "# DEVICE\tKERNEL\tK\tD\tGX\tGY\tRM\tRN\tDT, with tabs between: tiles of flashgmm's OpenCL kernels\n";

static int is_worthwhile(const trial *r) {
    return r->after < worthwhile * r->before;
}

/* Whether a line of the file is the row of this device that r would write. @param out NULL, or the row's tile */
static int is_replaced(const tuner *u, const trial *r, const char *line, tile *out) {
    char key[256];
    tile t;
    int length =
        snprintf(key, sizeof key, "%s\t%s\t%s\t%s\t", u->name, r->task->kernel, r->task->k_range, r->task->d_range);
    if (strncmp(line, key, (size_t)length) != 0) return 0;
    if (out && sscanf(line + length, "%d\t%d\t%d\t%d\t%d", &t.gx, &t.gy, &t.rm, &t.rn, &t.dt) == 5) *out = t;
    return 1;
}

/* The comment above a row of ours. */
static int is_note(const char *line) {
    char last = 0;
    return sscanf(line, "# %*4d-%*2d-%*2d: %*g ms in place of %*g m%c", &last) == 1 && last == 's';
}

/* Goes through the old rows. @param found NULL, or the tile of the row that r would replace @param out NULL, or where all
 * other lines go @return CLI_FAILED after a message */
static int read_rows(const tuner *u, const trial *r, tile *found, FILE *out) {
    FILE *old = fopen(u->path, "r");
    if (!old && errno == ENOENT) return CLI_DONE;
    char *line = NULL, *note = NULL;
    size_t room = 0;
    while (old && getline(&line, &room, old) > 0) {
        int replaced = is_replaced(u, r, line, found);
        if (out && note && !replaced) fputs(note, out);
        free(note);
        note = NULL;
        if (is_note(line)) {
            note = line;
            line = NULL;
            room = 0;
        } else if (out && !replaced && strcmp(line, head) != 0) {
            fprintf(out, "%s%s", line, strchr(line, '\n') ? "" : "\n");
        }
    }
    if (out && note) fputs(note, out);
    int rc = old && feof(old) && !ferror(old) ? CLI_DONE : CLI_FAILED;
    if (rc != CLI_DONE) cli_say("cannot read %s: %s", u->path, strerror(errno));
    free(line);
    free(note);
    if (old) fclose(old);
    return rc;
}

/* r's row if it is worth one, before all others since the first is taken, and the old file without the row it replaces. */
static int write_row(const tuner *u, const trial *r) {
    char beside[4200], date[16];
    time_t now = time(NULL);
    struct tm day;
    strftime(date, sizeof date, "%Y-%m-%d", localtime_r(&now, &day));
    FILE *out = open_beside(u, beside, sizeof beside);
    if (!out) return CLI_FAILED;
    fputs(head, out);
    if (is_worthwhile(r)) {
        fprintf(out, "# %s: %.3g ms in place of %.3g ms, %lld rows, K = %lld, D = %lld\n", date, 1e3 * r->after,
                1e3 * r->before, (long long)r->made.data.n, (long long)r->task->k, (long long)r->task->d);
        print_row(out, u->name, r->task, &r->best);
    }
    int rc = read_rows(u, r, NULL, out);
    int failed = ferror(out) || fflush(out) != 0 || fsync(fileno(out)) != 0;
    failed |= fclose(out) != 0;
    if (rc == CLI_DONE && !failed && rename(beside, u->path) == 0) return CLI_DONE;
    if (rc == CLI_DONE) cli_say("cannot write %s: %s", u->path, strerror(errno));
    unlink(beside);
    return CLI_FAILED;
}

/* The best of many is partly luck: once more, side by side, and in all kernels. */
static void confirm(tuner *u, trial *r) {
    double before = time_with(u, r, NULL), after = time_with(u, r, &r->best);
    int better = after < worthwhile * before, right = better ? is_right_everywhere(u, r) : !isnan(after);
    if (cli_interrupted())
        r->finished = 0;
    else
        r->failed += !right;
    if (better && right) r->before = before;
    r->after = better && right ? after : r->before;
}

/* Leaves the file alone unless the search found a better tile, or has ended and found that the user's row is none. */
static int tune_one(tuner *u, trial *r, double until) {
    tile row = {0};
    int rc = read_rows(u, r, &row, NULL);
    if (rc == CLI_DONE) rc = prepare(u, r, until);
    if (rc != CLI_DONE || !r->reference || is_over(until)) return rc;
    r->before = time_with(u, r, NULL);
    if (cli_interrupted()) return CLI_DONE;
    if (isnan(r->before))
        return cli_say("%s: the library's own tile fails on %s", r->task->kernel, u->name), CLI_FAILED;
    climb(u, r, &row, until);
    if (is_worthwhile(r)) confirm(u, r);
    return is_worthwhile(r) || (r->finished && row.gx) ? write_row(u, r) : CLI_DONE;
}

static void print_trial(const trial *r) {
    const tile *b = &r->best;
    printf("%-8s K %-14s D %-14s %8.3g ms", r->task->kernel, r->task->k_range, r->task->d_range, 1e3 * r->before);
    if (is_worthwhile(r))
        printf(" -> %.3g ms with %d x %d of %d x %d", 1e3 * r->after, b->gx, b->gy, b->rm, b->rn);
    else
        printf(", nothing better");
    printf(" (%d tried, %d failed%s)\n", r->tried, r->failed, r->finished ? "" : ", not finished");
    fflush(stdout);
}

static void print_json(const tuner *u, int not_reached) {
    json_out j = json_begin(stdout);
    json_text(&j, "device", u->name);
    json_text(&j, "file", u->path);
    json_int(&j, "not_reached", not_reached);
    json_bool(&j, "interrupted", cli_interrupted());
    json_array(&j, "rows");
    for (const trial *r = u->trials; r < u->trials + TASKS; r++) {
        if (!r->tried) continue;
        json_object(&j);
        json_text(&j, "kernel", r->task->kernel);
        json_text(&j, "k", r->task->k_range);
        json_text(&j, "d", r->task->d_range);
        json_real(&j, "ms_before", 1e3 * r->before);
        json_real(&j, "ms", 1e3 * r->after);
        json_bool(&j, "written", is_worthwhile(r));
        json_int(&j, "gx", r->best.gx);
        json_int(&j, "gy", r->best.gy);
        json_int(&j, "rm", r->best.rm);
        json_int(&j, "rn", r->best.rn);
        json_int(&j, "dt", r->best.dt);
        json_int(&j, "tried", r->tried);
        json_int(&j, "failed", r->failed);
        json_bool(&j, "finished", r->finished);
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
    snprintf(u->name, sizeof u->name, "%.*s", (int)sizeof u->name - 1, name ? name + 2 : label);
    fgmm_context_free(ctx);
    return CLI_DONE;
}

static void trial_free(const tuner *u, trial *r) {
    bench_case_free(&r->made, u->session);
    fgmm_model_free(u->session->ctx, r->reference);
}

static int tune_all(const cli_command *self, tuner *u, double seconds) {
    int rc = name_device(self, u), not_reached = TASKS;
    double until = cli_now() + seconds;
    if (rc == CLI_DONE && u->says) printf("device   %s\n", u->name);
    for (int i = 0; i < TASKS && rc == CLI_DONE && !is_over(until); i++) {
        trial *r = &u->trials[i];
        r->task = &tasks[i];
        /* What one leaves of its time the others have. */
        double now = cli_now();
        rc = tune_one(u, r, now + (until - now) / (TASKS - i));
        not_reached -= r->tried > 0;
        if (rc == CLI_DONE && u->says && r->tried) print_trial(r);
        trial_free(u, r);
    }
    if (rc != CLI_DONE) return rc;
    if (u->session->json) print_json(u, not_reached);
    if (u->says && not_reached)
        printf("%d of %d were not reached%s\n", not_reached, TASKS, cli_interrupted() ? "" : " in the time given");
    if (u->says) printf("rows     %s\n", u->path);
    return cli_interrupted() ? cli_say("interrupted"), CLI_FAILED : CLI_DONE;
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
    const char *device = s.device ? s.device : getenv("FLASHGMM_DEVICE");
    if (!device || !*device || strcasecmp(device, "auto") == 0) device = "opencl";
    if (strncasecmp(device, "opencl", 6) != 0) return cli_usage(self, "'%s' has no tiles: --device opencl", device);
    if (!output && !default_output(path, sizeof path)) return cli_usage(self, "there is no HOME: -o FILE");
    tuner *u = cli_alloc(1, sizeof *u, "trials");
    if (!u) return CLI_FAILED;
    *u = (tuner){.session = &s, .device = device, .says = !s.json && !s.quiet};
    s.device = "cpu"; /* the session's context is the judge, which has nothing to say of its models */
    s.quiet = 1;
    setenv("FLASHGMM_CL_PORTABLE", "1", 1); /* matrix units have no tiles, and would run the screen in their place */
    const char *folder = getenv("TMPDIR");
    int file = -1, length = snprintf(u->scratch, sizeof u->scratch, "%s/flashgmm-tune-XXXXXX",
                                     folder && *folder ? folder : "/tmp");
    rc = check_output(u, output ? output : path);
    if (rc == CLI_DONE) {
        file = length > 0 && (size_t)length < sizeof u->scratch ? mkstemp(u->scratch) : -1;
        rc = file < 0 ? (cli_say("cannot make a file in TMPDIR: %s", strerror(errno)), CLI_FAILED) : cli_open(self, &s);
    }
    if (rc == CLI_DONE) rc = tune_all(self, u, seconds);
    cli_close(&s);
    if (file >= 0) {
        close(file);
        unlink(u->scratch);
    }
    free(u);
    return rc;
}

const cli_command cmd_tune = {
    .name = "tune",
    .summary = "find faster tiles of the OpenCL kernels for a device",
    .usage = "[--device opencl:NAME] [--seconds S] [OPTION]...",
    .example = "  flashgmm tune --device opencl --seconds 300\n",
    .run = run,
};
