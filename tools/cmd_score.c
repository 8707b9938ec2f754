/* flashgmm score: how well a mixture explains rows. */
#include "cli.h"

#include <stdlib.h>

typedef struct score_args {
    cli_session session;
    cli_compute compute;
    const char *data, *model, *output;
} score_args;

static void report_done(const score_args *a, const fgmm_model *model, const fgmm_score_result *score,
                        const fgmm_report *r) {
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", r->n_rows);
        json_int(&j, "n_features", fgmm_model_features(model));
        json_int(&j, "n_components", fgmm_model_components(model));
        json_int(&j, "n_parameters", fgmm_model_parameters(model));
        json_real(&j, "log_likelihood", score->log_likelihood);
        json_real(&j, "aic", score->aic);
        json_real(&j, "bic", score->bic);
        json_text(&j, "device", r->device);
        json_text(&j, "precision", cli_precision_name(r->precision));
        json_real(&j, "seconds", r->seconds);
        json_warnings(&j, r);
        json_end(&j);
    } else if (!a->session.quiet) {
        printf("rows        %lld", (long long)r->n_rows);
        if (r->n_skipped) printf(", %lld left out", (long long)r->n_skipped);
        printf("\nlikelihood  %.10g nats a row\n", score->log_likelihood);
        printf("AIC         %.10g\nBIC         %.10g\n", score->aic, score->bic);
        printf("device      %s, %.3f s\n", r->device, r->seconds);
    }
}

static fgmm_status save_samples(const score_args *a, const fgmm_model *model, const fgmm_rows *rows,
                                const fgmm_compute_options *o, double *log_prob) {
    fgmm_array array = {NULL, FGMM_F64, 1, {fgmm_rows_count(rows), 0, 0}, log_prob};
    fgmm_status status = fgmm_score_samples(a->session.ctx, model, rows, o, log_prob, NULL);
    return status == FGMM_OK ? fgmm_arrays_save(a->session.ctx, a->output, &array, 1) : status;
}

static int score(const cli_command *self, const score_args *a, fgmm_rows **rows, fgmm_model **model) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, rows, a->data, a->compute.format);
    if (status == FGMM_OK) status = fgmm_model_load(s->ctx, model, a->model);
    if (status != FGMM_OK) return cli_failed(s, status);

    double *log_prob = NULL;
    if (a->output) {
        int64_t n = fgmm_rows_count(*rows);
        int rc = cli_check_output(self, a->output, ".npy", (double)n * 8.0 + 4096.0, (cli_files){{a->data, a->model}});
        if (rc != CLI_DONE) return rc;
        log_prob = cli_alloc(n, sizeof *log_prob, "log-densities");
        if (!log_prob) return CLI_FAILED;
    }
    fgmm_compute_options o = cli_compute_options(&a->compute);
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_score_result result;
    status = fgmm_score(s->ctx, *model, *rows, &o, &result, &report);
    if (status == FGMM_OK && a->output) status = save_samples(a, *model, *rows, &o, log_prob);
    free(log_prob);
    progress_wipe();
    if (status != FGMM_OK) return cli_failed(s, status);
    report_done(a, *model, &result, &report);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    score_args a = {0};
    const cli_option options[] = {
        {"model", 'm', CLI_TEXT, &a.model, 0, 0, "MODEL.npz", "the fitted mixture"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "OUT.npy", "also write the log-density of each row"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.model) return cli_usage(self, "-m, the model, is missing");

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    rc = score(self, &a, &rows, &model);
    fgmm_model_free(a.session.ctx, model);
    fgmm_rows_free(a.session.ctx, rows);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_score = {
    .name = "score",
    .summary = "mean log-likelihood, AIC and BIC of rows under a model",
    .usage = "DATA -m MODEL.npz [-o OUT.npy] [OPTION]...",
    .example = "  flashgmm score held-out.npy -m digits.npz\n",
    .operands = 1,
    .run = run,
};
