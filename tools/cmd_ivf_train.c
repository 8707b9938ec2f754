/* flashgmm ivf train: a coarse quantizer. */
#include "cli_ivf.h"

typedef struct train_args {
    cli_session session;
    cli_compute compute;
    const char *data, *output;
    int metric, method, init;
    int64_t lists;
    int kmeans_iter, em_iter;
    uint64_t seed;
} train_args;

static void report_done(const train_args *a, const fgmm_model *model, const fgmm_report *r) {
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", r->n_rows);
        json_int(&j, "n_features", fgmm_model_features(model));
        json_int(&j, "n_lists", fgmm_model_components(model));
        json_text(&j, "metric", fgmm_metric_name((fgmm_metric)a->metric));
        json_text(&j, "method", fgmm_ivf_method_name((fgmm_ivf_method)a->method));
        json_text(&j, "device", r->device);
        json_int(&j, "n_iter", r->n_iter);
        json_real(&j, "seconds", r->seconds);
        json_int(&j, "peak_host_bytes", r->peak_host_bytes);
        json_warnings(&j, r);
        json_end(&j);
    } else if (!a->session.quiet) {
        printf("rows        %lld x %lld features\n", (long long)r->n_rows, (long long)fgmm_model_features(model));
        printf("lists       %lld by %s, %s\n", (long long)fgmm_model_components(model),
               fgmm_ivf_method_name((fgmm_ivf_method)a->method), fgmm_metric_name((fgmm_metric)a->metric));
        printf("device      %s, %d iterations, %.3f s\n", r->device, r->n_iter, r->seconds);
    }
}

static int train(const cli_command *self, train_args *a, fgmm_rows **rows, fgmm_model **model) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, rows, a->data, a->compute.format);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (cli_metric(*rows, &a->metric) != CLI_DONE) return CLI_FAILED;
    double bytes =
        cli_model_bytes(a->method == FGMM_IVF_DIAG ? FGMM_DIAG : FGMM_SPHERICAL, a->lists, fgmm_rows_features(*rows));
    int rc = cli_check_output(self, a->output, ".npz", bytes, (cli_files){{a->data}});
    if (rc != CLI_DONE) return rc;
    fgmm_ivf_train_options o = FGMM_IVF_TRAIN_OPTIONS_INIT;
    fgmm_report report = FGMM_REPORT_INIT;
    o.n_lists = a->lists;
    o.metric = (fgmm_metric)a->metric;
    o.method = (fgmm_ivf_method)a->method;
    o.init = (fgmm_ivf_init)a->init;
    o.kmeans_iter = a->kmeans_iter;
    o.em_iter = a->em_iter;
    o.seed = a->seed;
    o.compute = cli_compute_options(&a->compute);
    status = fgmm_ivf_train(s->ctx, model, *rows, &o, &report);
    if (status == FGMM_OK) status = fgmm_model_save(s->ctx, *model, a->output);
    progress_wipe();
    if (status != FGMM_OK) return cli_failed(s, status);
    report_done(a, *model, &report);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    train_args a = {.metric = CLI_METRIC_UNSAID};
    const cli_option options[] = {
        {"lists", 'k', CLI_INT64, &a.lists, 1, 9e15, "K", "number of lists"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MODEL.npz", "where the mixture goes whose means are the centroids"},
        {"metric", 0, CLI_CHOICE, &a.metric, 0, 0, CLI_METRICS, "default: the one that the file names, or l2"},
        {"method", 0, CLI_CHOICE, &a.method, 0, 0, CLI_METHODS, "default kmeans; spherical k-means where angular"},
        {"init", 0, CLI_CHOICE, &a.init, 0, 0, CLI_INITS, "start of k-means (default: a trial on a sample decides)"},
        {"kmeans-iter", 0, CLI_INT, &a.kmeans_iter, 1, 1e6, "N", "iterations of k-means (default 15; 10 before EM)"},
        {"em-iter", 0, CLI_INT, &a.em_iter, 1, 1e6, "N", "iterations of EM after them (default 15)"},
        {"seed", 0, CLI_SEED, &a.seed, 0, 0, "S", "default 0"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.lists) return cli_usage(self, "-k, the number of lists, is missing");
    if (!a.output) return cli_usage(self, "-o, where the model goes, is missing");
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    rc = train(self, &a, &rows, &model);
    fgmm_model_free(a.session.ctx, model);
    fgmm_rows_free(a.session.ctx, rows);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_ivf_train = {
    .name = "ivf train",
    .summary = "the centroids of an index's lists",
    .usage = "DATA -k K -o MODEL.npz [OPTION]...",
    .example = "  flashgmm ivf train base.npy -k 1024 --metric angular -o lists.npz\n",
    .operands = 1,
    .run = run,
};
