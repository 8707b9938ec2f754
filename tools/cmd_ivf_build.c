/* flashgmm ivf build: an index over rows. */
#include "cli_ivf.h"

#include <math.h>

typedef struct build_args {
    cli_session session;
    const char *data, *format, *model, *output, *calibrate;
    int metric, rule, max_lists, k;
    double budget, threshold, lambda;
    int64_t list_max;
} build_args;

typedef struct build_work {
    fgmm_rows *rows, *queries;
    fgmm_model *model;
    fgmm_ivf *index;
} build_work;

static int build(const cli_command *self, build_args *a, build_work *w) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, &w->rows, a->data, a->format);
    if (status == FGMM_OK) status = fgmm_model_load(s->ctx, &w->model, a->model);
    if (status == FGMM_OK && a->calibrate) status = fgmm_rows_open(s->ctx, &w->queries, a->calibrate, NULL);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (cli_metric(w->rows, &a->metric) != CLI_DONE) return CLI_FAILED;
    double bytes = cli_index_bytes(w->rows, fgmm_model_components(w->model), a->max_lists ? a->max_lists : 2);
    int rc = cli_check_output(self, a->output, ".ivf", bytes, (cli_files){{a->data, a->model, a->calibrate}});
    if (rc != CLI_DONE) return rc;
    fgmm_ivf_options o = FGMM_IVF_OPTIONS_INIT;
    fgmm_report report = FGMM_REPORT_INIT;
    o.metric = (fgmm_metric)a->metric;
    o.rule = (fgmm_ivf_rule)a->rule;
    o.max_lists = a->max_lists;
    o.budget = a->budget;
    o.threshold = isnan(a->threshold) ? 0 : a->threshold;
    o.lambda = a->lambda;
    o.list_max = a->list_max;
    status = fgmm_ivf_create(s->ctx, &w->index, w->model, &o);
    if (status == FGMM_ERR_INVALID) return cli_usage(self, "%s", fgmm_context_message(s->ctx));
    if (status == FGMM_OK) status = fgmm_ivf_add(s->ctx, w->index, w->rows, NULL, &report);
    if (status == FGMM_OK && a->calibrate) status = fgmm_ivf_calibrate(s->ctx, w->index, w->queries, a->k);
    if (status == FGMM_OK) status = fgmm_ivf_save(s->ctx, w->index, a->output);
    progress_wipe();
    if (status != FGMM_OK) return cli_failed(s, status);
    fgmm_ivf_info info;
    fgmm_ivf_describe(w->index, &info);
    if (s->json) {
        json_out j = json_begin(stdout);
        cli_json_index(&j, &info);
        json_real(&j, "seconds", report.seconds);
        json_int(&j, "peak_host_bytes", report.peak_host_bytes);
        json_end(&j);
    } else {
        cli_print_index(s, &info);
        if (!s->quiet) printf("time        %.3f s to fill the lists\n", report.seconds);
    }
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    build_args a = {.metric = CLI_METRIC_UNSAID, .threshold = NAN, .k = 10};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "the centroids: of ivf train, or any mixture"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "INDEX.ivf", "where the index goes"},
        {"metric", 0, CLI_CHOICE, &a.metric, 0, 0, CLI_METRICS,
         "as in training (default: the one that the file names, or l2)"},
        {"rule", 0, CLI_CHOICE, &a.rule, 0, 0, CLI_RULES, "which further lists a row goes to (default soar)"},
        {"max-lists", 0, CLI_INT, &a.max_lists, 1, FGMM_IVF_LISTS_MAX, "N", "lists a row at most (default 2)"},
        {"budget", 0, CLI_REAL, &a.budget, 1, FGMM_IVF_LISTS_MAX, "M", "lists a row on average (default 1.5)"},
        {"threshold", 0, CLI_REAL, &a.threshold, 0, 1e300, "T",
         "in place of a budget; of responsibilities (default 1/K) or squared distances"},
        {"lambda", 0, CLI_REAL, &a.lambda, 0, 1e300, "L", "of soar (default 1) and rair (default 0.75)"},
        {"list-max", 0, CLI_INT64, &a.list_max, 1, 2147483647, "N", "entries a list at most (default: no limit)"},
        {"calibrate", 0, CLI_TEXT, &a.calibrate, 0, 0, "QUERIES",
         "held-out queries to learn from which gap gives which recall"},
        {"neighbours", 0, CLI_INT, &a.k, 1, 1048576, "N", "nearest rows that the recall is of (default 10)"},
        {"format", 0, CLI_TEXT, &a.format, 0, 0, "NAME", "npy, fvecs, bvecs, fbin, u8bin, i8bin or hdf5"},
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model) return cli_usage(self, "-m, the model, is missing");
    if (!a.output) return cli_usage(self, "-o, where the index goes, is missing");
    if (a.budget > 0 && !isnan(a.threshold)) return cli_usage(self, "--budget or --threshold: choose one");
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    build_work w = {0};
    rc = build(self, &a, &w);
    fgmm_ivf_free(a.session.ctx, w.index);
    fgmm_model_free(a.session.ctx, w.model);
    fgmm_rows_free(a.session.ctx, w.queries);
    fgmm_rows_free(a.session.ctx, w.rows);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_ivf_build = {
    .name = "ivf build",
    .summary = "an index over rows, border rows in several lists",
    .usage = "DATA -m MODEL.npz -o INDEX.ivf [OPTION]...",
    .example = "  flashgmm ivf build base.npy -m lists.npz --metric angular --calibrate held-out.npy -o base.ivf\n",
    .operands = 1,
    .run = run,
};
