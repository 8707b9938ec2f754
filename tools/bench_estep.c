/* flashgmm bench estep: how long one iteration takes on made data, and what it does in that time.
 *
 * The parameters are frozen, so that every iteration is the same E-step with its statistics; the first one, which
 * brings the rows to the device, is not counted. */
#include "bench_case.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

typedef struct bench_args {
    cli_session session;
    cli_compute compute;
    bench_data data;
    int covariance, reps, baseline;
} bench_args;

typedef struct bench_result {
    fgmm_report report;
    double median, fastest; /* seconds an iteration */
} bench_result;

static int measure(const bench_args *a, const fgmm_rows *rows, const fgmm_model *start, bench_ticks *t,
                   bench_result *out) {
    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    o.init_model = start;
    o.covariance_type = (fgmm_covariance)a->covariance;
    o.max_iter = a->reps + 1;
    o.tol = -1.0;
    o.reg_covar = -1.0;
    o.freeze = FGMM_FREEZE_WEIGHTS | FGMM_FREEZE_MEANS | FGMM_FREEZE_COVARIANCES;
    o.compute = cli_compute_options(&a->compute);
    out->report = (fgmm_report)FGMM_REPORT_INIT;
    fgmm_model *fitted = NULL;
    fgmm_status status = fgmm_fit(a->session.ctx, &fitted, rows, &o, &out->report);
    fgmm_model_free(a->session.ctx, fitted);
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    int n = bench_ticks_to_times(t);
    if (n < 1) return cli_say("too few iterations to time"), CLI_FAILED;
    out->median = bench_median(t->at, n);
    out->fastest = t->at[0]; /* bench_median has sorted them */
    return CLI_DONE;
}

static int bench(const bench_args *a, bench_ticks *t, bench_result *out) {
    bench_case c = {0};
    int rc = bench_case_make(&c, &a->session, &a->data, (fgmm_covariance)a->covariance, 0);
    if (rc == CLI_DONE) rc = measure(a, c.rows, c.start, t, out);
    bench_case_free(&c, &a->session);
    return rc;
}

/* The program beside this one; else where it is installed. */
static int find_baseline(char *out, size_t size) {
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = 0;
        *strrchr(self, '/') = 0;
        snprintf(out, size, "%s/flashgmm-bench-clblast", self);
        if (access(out, X_OK) == 0) return 1;
    }
    snprintf(out, size, "%s/flashgmm-bench-clblast", FLASHGMM_LIBEXECDIR);
    return access(out, X_OK) == 0;
}

/* Runs a program and fetches its standard output. @return 0, or an errno value */
static int run_and_read(const char *const *argv, char *out, size_t size, int *wait_status) {
    int ends[2];
    if (pipe(ends) != 0) return errno;
    pid_t child;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    int failed = posix_spawn(&child, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    size_t got = 0;
    ssize_t part = 1;
    while (!failed && got + 1 < size && part > 0) {
        part = read(ends[0], out + got, size - 1 - got);
        if (part > 0) got += (size_t)part;
    }
    close(ends[0]);
    out[got] = 0;
    if (!failed && waitpid(child, wait_status, 0) < 0) failed = errno;
    return failed;
}

/* Runs the unfused baseline on the same device and data. @param out its one line, or why there is none */
static int run_baseline(const bench_args *a, const char *device, char *out, size_t size) {
    char path[4200], n[24], k[24], d[24], reps[16], seed[24], data[32];
    const char *name = strncmp(device, "opencl: ", 8) == 0 ? device + 8 : NULL;
    if (!name) return snprintf(out, size, "the baseline runs on OpenCL devices only: give --device opencl"), 0;
    if (!find_baseline(path, sizeof path)) {
        return snprintf(out, size, "flashgmm-bench-clblast is not installed: it is built where CLBlast is found"), 0;
    }
    snprintf(n, sizeof n, "-n%lld", (long long)a->data.n);
    snprintf(k, sizeof k, "-k%lld", (long long)a->data.k);
    snprintf(d, sizeof d, "-d%lld", (long long)a->data.d);
    snprintf(reps, sizeof reps, "--reps=%d", a->reps);
    snprintf(seed, sizeof seed, "--seed=%llu", (unsigned long long)a->data.seed);
    snprintf(data, sizeof data, "--data=%s", bench_spread_name(a->data.spread));
    const char *form = a->session.json ? "--json" : NULL; /* last, so that NULL may stand for it */
    const char *const argv[] = {path, n, k, d, reps, seed, data, "--name", name, form, NULL};
    int wait_status = 0, failed = run_and_read(argv, out, size, &wait_status);
    if (failed) return snprintf(out, size, "flashgmm-bench-clblast: %s", strerror(failed)), 0;
    out[strcspn(out, "\n")] = 0;
    if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0 && out[0]) return 1;
    return snprintf(out, size, "flashgmm-bench-clblast failed"), 0;
}

static void print_result(const bench_args *a, const bench_result *b, int has_baseline, const char *baseline) {
    const bench_data *s = &a->data;
    const fgmm_report *r = &b->report;
    double flops = 2.0 * (double)s->n * (double)s->k * (double)s->d, bytes = 4.0 * (double)s->n * (double)s->d;
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", s->n);
        json_int(&j, "n_features", s->d);
        json_int(&j, "n_components", s->k);
        json_text(&j, "covariance_type", fgmm_covariance_name((fgmm_covariance)a->covariance));
        json_text(&j, "data", bench_spread_name(s->spread));
        json_text(&j, "device", r->device);
        json_text(&j, "precision", cli_precision_name(r->precision));
        json_text(&j, "engine", cli_engine_name(r->engine));
        json_int(&j, "reps", a->reps);
        json_real(&j, "ms", b->median * 1e3);
        json_real(&j, "ms_fastest", b->fastest * 1e3);
        json_real(&j, "gflops", flops / b->median * 1e-9);
        json_real(&j, "row_bytes_read", bytes);
        json_real(&j, "survivors_per_row", r->survivors_per_row);
        json_real(&j, "dropped_mass", r->dropped_mass);
        json_real(&j, "lower_bound", r->lower_bound);
        json_int(&j, "peak_host_bytes", r->peak_host_bytes);
        json_int(&j, "peak_device_bytes", r->peak_device_bytes);
        if (a->baseline) {
            if (has_baseline) {
                json_raw(&j, "baseline", baseline);
            } else {
                json_text(&j, "baseline_missing", baseline);
            }
        }
        json_warnings(&j, r);
        json_end(&j);
        return;
    }
    printf("data        %lld rows x %lld features (f32), %s; %lld %s components\n", (long long)s->n, (long long)s->d,
           bench_spread_name(s->spread), (long long)s->k, fgmm_covariance_name((fgmm_covariance)a->covariance));
    printf("device      %s, precision %s, engine %s\n", r->device, cli_precision_name(r->precision),
           cli_engine_name(r->engine));
    printf("iteration   %.4g ms, median of %d (fastest %.4g)\n", b->median * 1e3, a->reps, b->fastest * 1e3);
    printf("rate        %.4g GFLOP/s, counting 2 N K D: one product, whatever else was done\n",
           flops / b->median * 1e-9);
    printf("rows        %.4g MB read an iteration, %.4g GB/s\n", bytes * 1e-6, bytes / b->median * 1e-9);
    printf("components  %.4g evaluated exactly a row\n", r->survivors_per_row);
    printf("memory      %lld bytes on the host beside the rows, %lld on the device\n", (long long)r->peak_host_bytes,
           (long long)r->peak_device_bytes);
    if (a->baseline) printf("baseline    %s\n", baseline);
}

static int run(const cli_command *self, int argc, char **argv) {
    bench_args a = {.data = {.n = 100000, .k = 256, .d = 64}, .reps = 5};
    bench_result result;
    const cli_option options[] = {
        {"n", 'n', CLI_INT64, &a.data.n, 1, 1e12, "N", "rows (default 100000)"},
        {"k", 'k', CLI_INT64, &a.data.k, 1, 1e9, "K", "components (default 256)"},
        {"d", 'd', CLI_INT64, &a.data.d, 1, 1e6, "D", "features (default 64)"},
        {"covariance", 0, CLI_CHOICE, &a.covariance, 0, 0, "spherical|diag|tied|full", "default spherical"},
        {"data", 0, CLI_CHOICE, &a.data.spread, 0, 0, BENCH_SPREADS, "default separated"},
        {"reps", 0, CLI_INT, &a.reps, 1, BENCH_REPS_MAX, "N", "iterations to time after one that is not (default 5)"},
        {"seed", 0, CLI_SEED, &a.data.seed, 0, 0, "S", "of the data"},
        {"baseline", 0, CLI_FLAG, &a.baseline, 0, 0, NULL, "also CLBlast's product and a log-sum-exp, unfused"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;

    bench_ticks *t = cli_alloc(1, sizeof *t, "times");
    if (!t) return CLI_FAILED;
    t->n = 0;
    a.session.progress = bench_tick;
    a.session.progress_user = t;
    rc = cli_open(self, &a.session);
    if (rc == CLI_DONE) {
        char baseline[1024] = "";
        rc = bench(&a, t, &result);
        cli_close(&a.session); /* gives the device's memory back before the baseline wants it */
        int has_baseline =
            rc == CLI_DONE && a.baseline && run_baseline(&a, result.report.device, baseline, sizeof baseline);
        if (rc == CLI_DONE) print_result(&a, &result, has_baseline, baseline);
    }
    free(t);
    return rc;
}

const cli_command cmd_bench_estep = {
    .name = "bench estep",
    .summary = "time one E-step with its statistics on made data",
    .usage = "[--n N] [--k K] [--d D] [OPTION]...",
    .example = "  flashgmm bench estep --n 1000000 --k 1024 --d 128 --device opencl --baseline\n",
    .run = run,
};
