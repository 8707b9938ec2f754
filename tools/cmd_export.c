/* flashgmm export: a model's means, or an index, for another program. */
#include "cli_ivf.h"

typedef struct export_args {
    cli_session session;
    const char *model, *index, *output;
    int metric;
} export_args;

static int export_means(const cli_command *self, const export_args *a) {
    static const fgmm_metric metrics[] = {FGMM_L2, FGMM_ANGULAR, FGMM_INNER_PRODUCT};
    static const char *const kinds[] = {"IndexFlatL2", "IndexFlatIP", "IndexFlatIP"};
    const cli_session *s = &a->session;
    fgmm_model *model = NULL;
    fgmm_status status = fgmm_model_load(s->ctx, &model, a->model);
    if (status != FGMM_OK) return cli_failed(s, status);
    int64_t k = fgmm_model_components(model), d = fgmm_model_features(model);
    int rc = cli_check_output(self, a->output, cli_ends_with(a->output, ".index") ? ".index" : ".faiss",
                              (double)k * (double)d * 4.0 + 64.0, (cli_files){{a->model}});
    if (rc == CLI_DONE) {
        status = fgmm_model_export_faiss(s->ctx, model, a->output, metrics[a->metric]);
        if (status != FGMM_OK) rc = cli_failed(s, status);
    }
    fgmm_model_free(s->ctx, model);
    if (rc != CLI_DONE) return rc;
    if (s->json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", kinds[a->metric]);
        json_int(&j, "n_vectors", k);
        json_int(&j, "n_features", d);
        json_text(&j, "output", a->output);
        json_end(&j);
    } else if (!s->quiet) {
        printf("means       %lld x %lld, an %s of faiss, in %s\n", (long long)k, (long long)d, kinds[a->metric],
               a->output);
    }
    return CLI_DONE;
}

static int export_index(const cli_command *self, const export_args *a) {
    const cli_session *s = &a->session;
    fgmm_ivf *index = NULL;
    fgmm_ivf_info info;
    fgmm_status status = fgmm_ivf_load(s->ctx, &index, a->index);
    if (status != FGMM_OK) return cli_failed(s, status);
    fgmm_ivf_describe(index, &info);
    double bytes = (double)(info.n_rows + info.n_lists) * ((double)info.n_features * 4.0 + 8.0) + 128.0;
    int rc = cli_check_output(self, a->output, cli_ends_with(a->output, ".index") ? ".index" : ".faiss", bytes,
                              (cli_files){{a->index}});
    if (rc == CLI_DONE) {
        status = fgmm_ivf_export_faiss(s->ctx, index, a->output);
        if (status != FGMM_OK) rc = cli_failed(s, status);
    }
    fgmm_ivf_free(s->ctx, index);
    if (rc != CLI_DONE) return rc;
    if (s->json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "IndexIVFFlat");
        json_int(&j, "n_vectors", info.n_rows);
        json_int(&j, "n_features", info.n_features);
        json_int(&j, "n_lists", info.n_lists);
        json_text(&j, "output", a->output);
        json_end(&j);
    } else if (!s->quiet) {
        printf("index       %lld x %lld in %lld lists, an IndexIVFFlat of faiss, in %s\n", (long long)info.n_rows,
               (long long)info.n_features, (long long)info.n_lists, a->output);
    }
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    export_args a = {.session.device = "cpu"};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "a mixture, of which the means are written"},
        {"index", 'i', CLI_TEXT, &a.index, 0, 0, "INDEX.ivf", "or an index with one list a row, written whole"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "OUT.faiss", "the file to write; also .index"},
        {"metric", 0, CLI_CHOICE, &a.metric, 0, 0, "l2|angular|inner_product",
         "of means, default l2; angular: means at length one"},
        {"json", 0, CLI_FLAG, &a.session.json, 0, 0, NULL, "print one JSON object on stdout"},
        {"quiet", 'q', CLI_FLAG, &a.session.quiet, 0, 0, NULL, "no report, errors only"},
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model && !a.index) return cli_usage(self, "-m, the model, is missing, or -i, the index");
    if (a.model && a.index) return cli_usage(self, "-m and -i exclude each other");
    if (!a.output) return cli_usage(self, "-o, the file to write, is missing");
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    rc = a.index ? export_index(self, &a) : export_means(self, &a);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_export = {
    .name = "export",
    .summary = "a model's means as a coarse quantizer for faiss, or an index",
    .usage = "-m MODEL.npz | -i INDEX.ivf -o OUT.faiss [OPTION]...",
    .example = "  flashgmm export -m means.npz -o means.faiss\n"
               "  flashgmm export -i base.ivf -o base.faiss\n",
    .run = run,
};
