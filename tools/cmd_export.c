/* flashgmm export: a model's means for another program. */
#include "cli.h"

typedef struct export_args {
    cli_session session;
    const char *model, *output;
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

static int run(const cli_command *self, int argc, char **argv) {
    export_args a = {.session.device = "cpu"};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "the mixture"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MEANS.faiss", "where its means go; also .index"},
        {"metric", 0, CLI_CHOICE, &a.metric, 0, 0, "l2|angular|ip", "default l2; angular: means at length one"},
        {"json", 0, CLI_FLAG, &a.session.json, 0, 0, NULL, "print one JSON object on stdout"},
        {"quiet", 'q', CLI_FLAG, &a.session.quiet, 0, 0, NULL, "no report, errors only"},
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model) return cli_usage(self, "-m, the model, is missing");
    if (!a.output) return cli_usage(self, "-o, the file to write, is missing");
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    rc = export_means(self, &a);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_export = {
    .name = "export",
    .summary = "a model's means as a coarse quantizer for faiss",
    .usage = "-m MODEL.npz -o MEANS.faiss [OPTION]...",
    .example = "  flashgmm export -m means.npz -o means.faiss\n",
    .run = run,
};
