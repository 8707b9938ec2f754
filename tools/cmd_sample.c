/* flashgmm sample: rows drawn from a mixture. */
#include "cli.h"

#include <stdlib.h>

typedef struct sample_args {
    cli_session session;
    const char *model, *output, *labels;
    int64_t n;
    uint64_t seed;
} sample_args;

static fgmm_status draw_and_save(const sample_args *a, const fgmm_model *model, double *x, int32_t *labels) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_array rows = {NULL, FGMM_F64, 2, {a->n, fgmm_model_features(model), 0}, x};
    fgmm_array column = {NULL, FGMM_I32, 1, {a->n, 0, 0}, labels};
    fgmm_status status = fgmm_sample(ctx, model, a->n, a->seed, x, labels);
    if (status == FGMM_OK) status = fgmm_arrays_save(ctx, a->output, &rows, 1);
    if (status == FGMM_OK && a->labels) status = fgmm_arrays_save(ctx, a->labels, &column, 1);
    return status;
}

static int sample(const cli_command *self, const sample_args *a, fgmm_model **model) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_model_load(s->ctx, model, a->model);
    if (status != FGMM_OK) return cli_failed(s, status);
    size_t row = (size_t)fgmm_model_features(*model) * sizeof(double);
    int rc = cli_check_output(self, a->output, ".npy", (double)a->n * (double)row + 4096.0, (cli_files){{a->model}});
    if (rc == CLI_DONE && a->labels)
        rc = cli_check_output(self, a->labels, ".npy", (double)a->n * 4.0 + 4096.0, (cli_files){{a->model}});
    if (rc != CLI_DONE) return rc;

    double *x = cli_alloc(a->n, row, "rows");
    int32_t *labels = a->labels && x ? cli_alloc(a->n, sizeof *labels, "labels") : NULL;
    if (!x || (a->labels && !labels)) {
        rc = CLI_FAILED;
    } else {
        status = draw_and_save(a, *model, x, labels);
        if (status != FGMM_OK) rc = cli_failed(s, status);
    }
    free(labels);
    free(x);
    if (rc != CLI_DONE) return rc;
    if (s->json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", a->n);
        json_int(&j, "n_features", fgmm_model_features(*model));
        json_text(&j, "output", a->output);
        json_end(&j);
    } else if (!s->quiet) {
        printf("rows        %lld x %lld features (f64), in %s\n", (long long)a->n,
               (long long)fgmm_model_features(*model), a->output);
    }
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    sample_args a = {.session.device = "cpu"};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "the mixture"},
        {"rows", 'n', CLI_INT64, &a.n, 1, 9e15, "N", "how many rows"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "X.npy", "where they go (f64)"},
        {"labels", 0, CLI_TEXT, &a.labels, 0, 0, "Y.npy", "also write the component of each (i32)"},
        {"seed", 0, CLI_SEED, &a.seed, 0, 0, "S", "default 0"},
        {"json", 0, CLI_FLAG, &a.session.json, 0, 0, NULL, "print one JSON object on stdout"},
        {"quiet", 'q', CLI_FLAG, &a.session.quiet, 0, 0, NULL, "no report, errors only"},
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model) return cli_usage(self, "-m, the model, is missing");
    if (!a.n) return cli_usage(self, "-n, the number of rows, is missing");
    if (!a.output) return cli_usage(self, "-o, the file to write, is missing");
    if (a.labels && cli_same_file(a.output, a.labels)) {
        return cli_usage(self, "the rows (-o '%s') and their labels (--labels '%s') cannot be one file", a.output,
                         a.labels);
    }

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    fgmm_model *model = NULL;
    rc = sample(self, &a, &model);
    fgmm_model_free(a.session.ctx, model);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_sample = {
    .name = "sample",
    .summary = "draw rows from a model",
    .usage = "-m MODEL.npz -n N -o X.npy [OPTION]...",
    .example = "  flashgmm sample -m digits.npz -n 1000 --seed 7 -o drawn.npy\n",
    .run = run,
};
