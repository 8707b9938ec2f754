/* flashgmm predict: a label, or the best components, for each row. */
#include "cli.h"

#include <stdlib.h>

typedef struct predict_args {
    cli_session session;
    cli_compute compute;
    const char *data, *model, *output;
    int top;
    double min_resp;
} predict_args;

typedef struct predict_work {
    fgmm_rows *rows;
    fgmm_model *model;
    int32_t *ids;
    float *resp;
    double *log_prob;
} predict_work;

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
    fgmm_status status =
        fgmm_assign(ctx, w->model, w->rows, o, a->top, a->min_resp, w->ids, w->resp, w->log_prob, report);
    return status == FGMM_OK ? fgmm_arrays_save(ctx, a->output, arrays, 3) : status;
}

/* Entries that hold a component, a row. */
static double mean_entries(const predict_args *a, const predict_work *w) {
    int64_t n = fgmm_rows_count(w->rows), m = a->top ? a->top : 1, held = 0;
    for (int64_t i = 0; i < n * m; i++) held += w->ids[i] >= 0;
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
        printf("rows        %lld, %.3g components listed a row, in %s\n", (long long)r->n_rows, entries, a->output);
        printf("device      %s, precision %s\n", r->device, cli_precision_name(r->precision));
        printf("time        %.3f s, %.3g rows a second\n", r->seconds, rate);
    }
}

static int predict(const cli_command *self, const predict_args *a, predict_work *w) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, &w->rows, a->data, a->compute.format);
    if (status == FGMM_OK) status = fgmm_model_load(s->ctx, &w->model, a->model);
    if (status != FGMM_OK) return cli_failed(s, status);

    int64_t n = fgmm_rows_count(w->rows), m = a->top ? a->top : 1;
    double row_bytes = a->top ? 8.0 * (double)m + 8.0 : 4.0;
    int rc = cli_check_output(self, a->output, a->top ? ".npz" : ".npy", (double)n * row_bytes + 4096.0, a->data);
    if (rc != CLI_DONE) return rc;
    w->ids = cli_alloc(n, (size_t)m * sizeof *w->ids, "labels");
    if (!w->ids) return CLI_FAILED;
    if (a->top) {
        w->resp = cli_alloc(n, (size_t)m * sizeof *w->resp, "responsibilities");
        w->log_prob = w->resp ? cli_alloc(n, sizeof *w->log_prob, "log-densities") : NULL;
        if (!w->log_prob) return CLI_FAILED;
    }
    fgmm_compute_options o = cli_compute_options(&a->compute);
    fgmm_report report = FGMM_REPORT_INIT;
    status = a->top ? predict_top(a, w, &o, &report) : predict_labels(a, w, &o, &report);
    progress_wipe();
    if (status != FGMM_OK) return cli_failed(s, status);
    report_done(a, w, &report);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    predict_args a = {.min_resp = -1.0};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "the fitted mixture"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "OUT", "labels (int32) as .npy; with --top an .npz"},
        {"top", 0, CLI_INT, &a.top, 1, 64, "M", "write ids, resp and log_prob of the M best components"},
        {"min-resp", 0, CLI_REAL, &a.min_resp, 0, 1, "R", "with --top: leave out what is below"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model) return cli_usage(self, "-m, the model, is missing");
    if (!a.output) return cli_usage(self, "-o, the file to write, is missing");
    if (a.min_resp >= 0.0 && !a.top) return cli_usage(self, "--min-resp needs --top");
    if (a.min_resp < 0.0) a.min_resp = 0.0;

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    predict_work w = {0};
    rc = predict(self, &a, &w);
    free(w.ids);
    free(w.resp);
    free(w.log_prob);
    fgmm_model_free(a.session.ctx, w.model);
    fgmm_rows_free(a.session.ctx, w.rows);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_predict = {
    .name = "predict",
    .summary = "the component of each row, or its best few with responsibilities",
    .usage = "DATA -m MODEL.npz -o OUT [--top M [--min-resp R]] [OPTION]...",
    .example = "  flashgmm predict digits.npy -m digits.npz -o labels.npy\n"
               "  flashgmm predict digits.npy -m digits.npz --top 2 --min-resp 0.01 -o top.npz\n",
    .operands = 1,
    .run = run,
};
