/* flashgmm bench em: how long whole iterations take on made data, E-step, M-step and all, beside the arithmetic they
 * hold and the rate at which this machine could do it. */
#include "bench_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct em_args {
    cli_session session;
    cli_compute compute;
    bench_data data;
    const char *write;
    int covariance, reps, first, hard, made; /* made: rows are made each time that they are read */
} em_args;

typedef struct em_result {
    fgmm_report report;
    double times[BENCH_REPS_MAX + 2],
        values[BENCH_REPS_MAX + 2]; /* seconds; log-likelihood or squared distance, mean */
    int n_times, n_values;
    double median, fastest;
    int threads;
    double peak_one, peak_all; /* of this CPU, FLOP/s; NaN where another device ran */
} em_result;

/* One fit, whose iterations the ticks see. */
static fgmm_status fit_once(const em_args *a, const bench_case *c, fgmm_report *report) {
    fgmm_context *ctx = a->session.ctx;
    int max_iter = a->first ? 1 : a->reps + 1;
    fgmm_model *fitted = NULL;
    fgmm_status status;
    *report = (fgmm_report)FGMM_REPORT_INIT;
    if (a->hard) {
        fgmm_kmeans_options o = FGMM_KMEANS_OPTIONS_INIT;
        o.init_model = c->start;
        o.max_iter = max_iter;
        o.tol = -1.0;
        o.compute = cli_compute_options(&a->compute);
        status = fgmm_kmeans(ctx, &fitted, c->rows, &o, NULL, NULL, report);
    } else {
        fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
        o.init_model = c->start;
        o.covariance_type = (fgmm_covariance)a->covariance;
        o.max_iter = max_iter;
        o.tol = -1.0;
        o.compute = cli_compute_options(&a->compute);
        status = fgmm_fit(ctx, &fitted, c->rows, &o, report);
    }
    fgmm_model_free(ctx, fitted);
    return status;
}

/* Fits from the start, again and again until there are times enough: k-means stops when no row changes its mean. */
static int measure(const em_args *a, const bench_case *c, bench_ticks *t, em_result *out) {
    out->n_times = 0;
    while (out->n_times < a->reps) {
        t->n = 0;
        fgmm_status status = fit_once(a, c, &out->report);
        if (status != FGMM_OK) return cli_failed(&a->session, status);
        out->n_values = t->n;
        for (int i = 0; i < t->n; i++) out->values[i] = a->hard ? -t->lower_bound[i] : t->lower_bound[i];
        if (a->first) {
            out->times[out->n_times++] = out->report.seconds_per_iteration; /* of the one there was */
            continue;
        }
        int n = bench_ticks_to_times(t);
        if (n < 1) return cli_say("too few iterations to time"), CLI_FAILED;
        for (int i = 0; i < n && out->n_times < a->reps; i++) out->times[out->n_times++] = t->at[i];
    }
    double sorted[BENCH_REPS_MAX];
    memcpy(sorted, out->times, (size_t)out->n_times * sizeof *sorted);
    out->median = bench_median(sorted, out->n_times);
    out->fastest = sorted[0];
    return CLI_DONE;
}

static int write_case(const em_args *a, const bench_case *c) {
    char path[3][4096];
    static const char *const names[] = {"rows.npy", "means.npy", "start.npz"};
    for (int i = 0; i < 3; i++) {
        int length = snprintf(path[i], sizeof path[i], "%s/%s", a->write, names[i]);
        if (length < 0 || (size_t)length >= sizeof path[i]) return cli_say("'%s' is too long", a->write), CLI_FAILED;
    }
    fgmm_context *ctx = a->session.ctx;
    const fgmm_array rows = {NULL, FGMM_F32, 2, {a->data.n, a->data.d}, c->x};
    const fgmm_array means = {NULL, FGMM_F32, 2, {a->data.k, a->data.d}, c->means};
    fgmm_status status = fgmm_arrays_save(ctx, path[0], &rows, 1);
    if (status == FGMM_OK) status = fgmm_arrays_save(ctx, path[1], &means, 1);
    if (status == FGMM_OK) status = fgmm_model_save(ctx, c->start, path[2]);
    return status == FGMM_OK ? CLI_DONE : cli_failed(&a->session, status);
}

static int count_threads(const em_args *a) {
    if (a->session.threads) return a->session.threads;
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* What the products of one E-step take, a multiply-add counted as two; neither exp nor the sums are counted. */
static double flops_of(const em_args *a) {
    double n = (double)a->data.n, k = (double)a->data.k, d = (double)a->data.d;
    switch ((fgmm_covariance)a->covariance) {
    case FGMM_DIAG: return 4.0 * n * k * d;                     /* x^2 and x against two coefficients */
    case FGMM_TIED: return 2.0 * n * k * d + n * d * (d + 1.0); /* whitened once by a triangle, then x.m */
    case FGMM_FULL: return n * k * d * (d + 1.0);               /* a triangle a component */
    default: return 2.0 * n * k * d;                            /* x.m */
    }
}

static const char *const type_names[] = {"f32", "f16", "bf16", "u8", "i8"};

static const char *kind_of(const em_args *a) {
    return a->hard ? "kmeans" : fgmm_covariance_name((fgmm_covariance)a->covariance);
}

static void json_reals(json_out *j, const char *key, const double *values, int n, double factor) {
    json_array(j, key);
    for (int i = 0; i < n; i++) json_real(j, NULL, factor * values[i]);
    json_close(j, ']');
}

static void print_json(const em_args *a, const em_result *b) {
    const fgmm_report *r = &b->report;
    double rate = flops_of(a) / b->median;
    json_out j = json_begin(stdout);
    json_int(&j, "n_rows", a->data.n);
    json_int(&j, "n_features", a->data.d);
    json_int(&j, "n_components", a->data.k);
    json_text(&j, a->hard ? "method" : "covariance_type", kind_of(a));
    json_text(&j, "type", type_names[a->data.type]);
    json_text(&j, "data", bench_spread_name(a->data.spread));
    json_text(&j, "rows", a->made ? "made" : "memory");
    json_text(&j, "device", r->device);
    json_text(&j, "precision", cli_precision_name(r->precision));
    json_text(&j, "engine", cli_engine_name(r->engine));
    json_int(&j, "reps", a->reps);
    json_bool(&j, "first", a->first);
    json_int(&j, "threads", b->threads);
    json_real(&j, "ms", b->median * 1e3);
    json_real(&j, "ms_fastest", b->fastest * 1e3);
    json_reals(&j, "ms_each", b->times, b->n_times, 1e3);
    json_reals(&j, a->hard ? "square_distances" : "log_likelihoods", b->values, b->n_values, 1.0);
    json_real(&j, "flops", flops_of(a));
    json_real(&j, "gflops", rate * 1e-9);
    json_real(&j, "peak_gflops_one_thread", b->peak_one * 1e-9);
    json_real(&j, "peak_gflops", b->peak_all * 1e-9);
    json_real(&j, "peak_fraction", rate / b->peak_all);
    json_real(&j, "survivors_per_row", r->survivors_per_row);
    json_real(&j, "dropped_mass", r->dropped_mass);
    json_int(&j, "peak_host_bytes", r->peak_host_bytes);
    json_int(&j, "peak_device_bytes", r->peak_device_bytes);
    json_warnings(&j, r);
    json_end(&j);
}

static void print_result(const em_args *a, const em_result *b) {
    const fgmm_report *r = &b->report;
    double rate = flops_of(a) / b->median;
    printf("data        %lld rows x %lld features (%s), %s; %lld components, %s\n", (long long)a->data.n,
           (long long)a->data.d, type_names[a->data.type], bench_spread_name(a->data.spread), (long long)a->data.k,
           kind_of(a));
    printf("device      %s, precision %s, engine %s\n", r->device, cli_precision_name(r->precision),
           cli_engine_name(r->engine));
    printf("iteration   %.4g ms, median of %d%s (fastest %.4g): %.4g rows a second%s\n", b->median * 1e3, b->n_times,
           a->first ? " first ones" : "", b->fastest * 1e3, (double)a->data.n / b->median,
           a->made ? ", made meanwhile" : "");
    printf("rate        %.4g GFLOP/s of %.4g GFLOP, the products alone\n", rate * 1e-9, flops_of(a) * 1e-9);
    if (!isnan(b->peak_all)) {
        printf("peak        %.4g GFLOP/s with 1 thread, %.4g with %d: the rate is %.3g of it\n", b->peak_one * 1e-9,
               b->peak_all * 1e-9, b->threads, rate / b->peak_all);
    }
    printf("components  %.4g evaluated exactly a row\n", r->survivors_per_row);
    printf("%s  %.10g %sa row at the start, %.10g in the last iteration\n", a->hard ? "distance  " : "likelihood",
           b->values[0], a->hard ? "(squared) " : "nats ", b->values[b->n_values - 1]);
    printf("memory      %lld bytes on the host beside the rows, %lld on the device\n", (long long)r->peak_host_bytes,
           (long long)r->peak_device_bytes);
}

static int bench(em_args *a, bench_ticks *t, em_result *out) {
    bench_case c = {0};
    int rc = bench_case_make(&c, &a->session, &a->data, (fgmm_covariance)a->covariance, a->made ? count_threads(a) : 0);
    if (rc == CLI_DONE && a->write) {
        rc = write_case(a, &c);
    } else if (rc == CLI_DONE) {
        out->threads = count_threads(a);
        out->peak_one = out->peak_all = NAN;
        rc = measure(a, &c, t, out);
        if (rc == CLI_DONE && strncmp(out->report.device, "cpu", 3) == 0) {
            out->peak_one = bench_peak(1);
            out->peak_all = bench_peak(out->threads);
        }
    }
    bench_case_free(&c, &a->session);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv) {
    em_args a = {.data = {.n = 20000, .k = 1024, .d = 128}, .covariance = FGMM_DIAG, .reps = 5};
    const cli_option options[] = {
        {"n", 'n', CLI_INT64, &a.data.n, 1, 1e12, "N", "rows (default 20000)"},
        {"k", 'k', CLI_INT64, &a.data.k, 1, 1e9, "K", "components (default 1024)"},
        {"d", 'd', CLI_INT64, &a.data.d, 1, 1e6, "D", "features (default 128)"},
        {"covariance", 0, CLI_CHOICE, &a.covariance, 0, 0, "spherical|diag|tied|full", "default diag"},
        {"hard", 0, CLI_FLAG, &a.hard, 0, 0, NULL, "k-means in place of a mixture"},
        {"data", 0, CLI_CHOICE, &a.data.spread, 0, 0, BENCH_SPREADS, "default separated"},
        {"type", 0, CLI_CHOICE, &a.data.type, 0, 0, "f32|f16|bf16|u8|i8", "of the rows (default f32)"},
        {"reps", 0, CLI_INT, &a.reps, 1, BENCH_REPS_MAX, "N", "iterations to time (default 5)"},
        {"first", 0, CLI_FLAG, &a.first, 0, 0, NULL, "time the first iteration, each time from the start"},
        {"seed", 0, CLI_SEED, &a.data.seed, 0, 0, "S", "of the data"},
        {"rows", 0, CLI_CHOICE, &a.made, 0, 0, "memory|made",
         "made: threads make rows as they are read, in each pass those that did not stay (default memory)"},
        {"write", 0, CLI_TEXT, &a.write, 0, 0, "FOLDER", "only write rows.npy, means.npy and start.npz there"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (a.hard) a.covariance = FGMM_SPHERICAL;
    if (a.made && a.write) return cli_usage(self, "--write needs rows in memory");
    if (a.data.type != BENCH_F32 && a.write) return cli_usage(self, "--write writes f32 rows");

    bench_ticks *t = cli_alloc(1, sizeof *t, "times");
    em_result *result = t ? cli_alloc(1, sizeof *result, "results") : NULL;
    if (result) {
        a.session.progress = bench_tick;
        a.session.progress_user = t;
        rc = cli_open(self, &a.session);
        if (rc == CLI_DONE) {
            rc = bench(&a, t, result);
            cli_close(&a.session);
        }
        if (rc == CLI_DONE && !a.write) {
            if (a.session.json) {
                print_json(&a, result);
            } else {
                print_result(&a, result);
            }
        }
    } else {
        rc = CLI_FAILED;
    }
    free(result);
    free(t);
    return rc;
}

const cli_command cmd_bench_em = {
    .name = "bench em",
    .summary = "time whole iterations on made data, beside the machine's peak",
    .usage = "[--n N] [--k K] [--d D] [OPTION]...",
    .example = "  flashgmm bench em --n 20000 --k 1024 --d 128 --covariance diag --device cpu\n",
    .run = run,
};
