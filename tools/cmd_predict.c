/* flashgmm predict: a label, the best components, or the responsibilities of all of them, for each row. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct predict_args {
    cli_session session;
    cli_compute compute;
    const char *data, *model, *output;
    int top, proba, renormalise;
    double min_resp;
} predict_args;

typedef struct predict_work {
    fgmm_rows *rows;
    fgmm_model *model;
    int32_t *ids;
    float *resp;
    double *log_prob;
    float *proba; /* a mapping of proba_bytes */
    size_t proba_bytes;
} predict_work;

/* All responsibilities may be more than memory holds: room for them on disk, in a nameless file beside the output. */
static int map_proba(const char *output, int64_t n, int64_t k, predict_work *w) {
    const char *slash = strrchr(output, '/');
    size_t folder = slash ? (size_t)(slash - output) + 1 : 0;
    char *name = cli_alloc((int64_t)folder + 32, 1, "a file name");
    if (!name) return CLI_FAILED;
    snprintf(name, folder + 32, "%.*s.flashgmm-XXXXXX", (int)folder, output);
    int error = 0, fd = mkstemp(name);
    if (fd < 0) {
        error = errno;
    } else {
        unlink(name);
        if (__builtin_mul_overflow((size_t)n * sizeof(float), (size_t)k, &w->proba_bytes)) error = EFBIG;
        if (!error) error = posix_fallocate(fd, 0, (off_t)w->proba_bytes);
        void *map = error ? NULL : mmap(NULL, w->proba_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) error = errno;
        if (!error) w->proba = map;
        close(fd);
    }
    free(name);
    if (error)
        cli_say("cannot write '%s': room for %lld x %lld responsibilities: %s", output, (long long)n, (long long)k,
                strerror(error));
    return error ? CLI_FAILED : CLI_DONE;
}

static fgmm_status predict_labels(const predict_args *a, predict_work *w, const fgmm_compute_options *o,
                                  fgmm_report *report) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_array labels = {NULL, FGMM_I32, 1, {fgmm_rows_count(w->rows), 0, 0}, w->ids};
    fgmm_status status = fgmm_predict(ctx, w->model, w->rows, o, w->ids, report);
    return status == FGMM_OK ? fgmm_arrays_save(ctx, a->output, &labels, 1) : status;
}

static fgmm_status predict_top(const predict_args *a, predict_work *w, const fgmm_compute_options *o,
                               fgmm_report *report) {
    fgmm_context *ctx = a->session.ctx;
    int64_t n = fgmm_rows_count(w->rows);
    fgmm_array arrays[] = {
        {"ids", FGMM_I32, 2, {n, a->top, 0}, w->ids},
        {"resp", FGMM_F32, 2, {n, a->top, 0}, w->resp},
        {"log_prob", FGMM_F64, 1, {n, 0, 0}, w->log_prob},
    };
    fgmm_assign_options assign = FGMM_ASSIGN_OPTIONS_INIT;
    assign.min_resp = a->min_resp;
    assign.renormalise = a->renormalise;
    assign.compute = *o;
    fgmm_status status = fgmm_assign(ctx, w->model, w->rows, a->top, &assign, w->ids, w->resp, w->log_prob, report);
    return status == FGMM_OK ? fgmm_arrays_save(ctx, a->output, arrays, 3) : status;
}

static fgmm_status predict_proba(const predict_args *a, predict_work *w, const fgmm_compute_options *o,
                                 fgmm_report *report) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_array resp = {NULL, FGMM_F32, 2, {fgmm_rows_count(w->rows), fgmm_model_components(w->model), 0}, w->proba};
    fgmm_status status = fgmm_predict_proba(ctx, w->model, w->rows, o, w->proba, NULL, report);
    return status == FGMM_OK ? fgmm_arrays_save(ctx, a->output, &resp, 1) : status;
}

/* Entries that hold a component, a row. */
static double mean_entries(const predict_args *a, const predict_work *w) {
    int64_t n = fgmm_rows_count(w->rows), k = fgmm_model_components(w->model), held = 0;
    int64_t m = a->proba ? k : a->top ? a->top : 1;
    for (int64_t i = 0; i < n * m; i++) held += a->proba ? w->proba[i] > 0 : w->ids[i] >= 0;
    return (double)held / (double)n;
}

static void report_done(const predict_args *a, const predict_work *w, const fgmm_report *r) {
    int64_t k = fgmm_model_components(w->model);
    double entries = mean_entries(a, w), rate = r->seconds > 0 ? (double)r->n_rows / r->seconds : 0;
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", r->n_rows);
        json_int(&j, "n_features", fgmm_rows_features(w->rows));
        json_int(&j, "n_components", k);
        json_int(&j, "top", a->top);
        json_real(&j, "entries_per_row", entries);
        json_text(&j, "device", r->device);
        json_text(&j, "precision", cli_precision_name(r->precision));
        json_real(&j, "seconds", r->seconds);
        json_real(&j, "rows_per_second", rate);
        json_text(&j, "output", a->output);
        json_warnings(&j, r);
        json_end(&j);
    } else if (!a->session.quiet) {
        printf("rows        %lld, %.3g components %s a row, in %s\n", (long long)r->n_rows, entries,
               a->proba ? "above zero" : "listed", a->output);
        printf("device      %s, precision %s\n", r->device, cli_precision_name(r->precision));
        printf("time        %.3f s, %.3g rows a second\n", r->seconds, rate);
    }
}

static int predict(const cli_command *self, const predict_args *a, predict_work *w) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, &w->rows, a->data, a->compute.format);
    if (status == FGMM_OK) status = fgmm_model_load(s->ctx, &w->model, a->model);
    if (status != FGMM_OK) return cli_failed(s, status);

    int64_t n = fgmm_rows_count(w->rows), m = a->proba ? fgmm_model_components(w->model) : a->top ? a->top : 1;
    double row_bytes = a->top ? 8.0 * (double)m + 8.0 : 4.0 * (double)m;
    int rc =
        cli_check_output(self, a->output, a->top ? ".npz" : ".npy",
                         (double)n * row_bytes * (a->proba ? 2.0 : 1.0) + 4096.0, (cli_files){{a->data, a->model}});
    if (rc == CLI_DONE && a->proba) rc = map_proba(a->output, n, m, w);
    if (rc != CLI_DONE) return rc;
    if (!a->proba && !(w->ids = cli_alloc(n, (size_t)m * sizeof *w->ids, "labels"))) return CLI_FAILED;
    if (a->top && !(w->resp = cli_alloc(n, (size_t)m * sizeof *w->resp, "responsibilities"))) return CLI_FAILED;
    if (a->top && !(w->log_prob = cli_alloc(n, sizeof *w->log_prob, "log-densities"))) return CLI_FAILED;
    fgmm_compute_options o = cli_compute_options(&a->compute);
    fgmm_report report = FGMM_REPORT_INIT;
    status = a->proba ? predict_proba(a, w, &o, &report)
             : a->top ? predict_top(a, w, &o, &report)
                      : predict_labels(a, w, &o, &report);
    progress_wipe();
    if (status != FGMM_OK) return cli_failed(s, status);
    report_done(a, w, &report);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    predict_args a = {.min_resp = -1.0};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "the fitted mixture"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "OUT", "labels (int32) or --proba as .npy; with --top an .npz"},
        {"top", 0, CLI_INT, &a.top, 1, 64, "M", "write ids, resp and log_prob of the M best components"},
        {"min-resp", 0, CLI_REAL, &a.min_resp, 0, 1, "R", "with --top: leave out what is below"},
        {"renormalise", 0, CLI_FLAG, &a.renormalise, 0, 0, 0, "with --top: what is listed of a row sums to one"},
        {"proba", 0, CLI_FLAG, &a.proba, 0, 0, 0, "write the responsibility of every component, [n, K] float32"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model) return cli_usage(self, "-m, the model, is missing");
    if (!a.output) return cli_usage(self, "-o, the file to write, is missing");
    if (a.min_resp >= 0.0 && !a.top) return cli_usage(self, "--min-resp needs --top");
    if (a.renormalise && !a.top) return cli_usage(self, "--renormalise needs --top");
    if (a.proba && a.top) return cli_usage(self, "--proba writes all components, --top the best: choose one");
    if (a.min_resp < 0.0) a.min_resp = 0.0;

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    predict_work w = {0};
    rc = predict(self, &a, &w);
    free(w.ids);
    free(w.resp);
    free(w.log_prob);
    if (w.proba) munmap(w.proba, w.proba_bytes);
    fgmm_model_free(a.session.ctx, w.model);
    fgmm_rows_free(a.session.ctx, w.rows);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_predict = {
    .name = "predict",
    .summary = "the component of each row, its best few, or all responsibilities",
    .usage = "DATA -m MODEL.npz -o OUT [--top M [--min-resp R] [--renormalise] | --proba] [OPTION]...",
    .example = "  flashgmm predict digits.npy -m digits.npz -o labels.npy\n"
               "  flashgmm predict digits.npy -m digits.npz --top 2 --min-resp 0.01 --renormalise -o top.npz\n",
    .operands = 1,
    .run = run,
};
