/* flashgmm merge: the statistics of shares, as one, and the model that follows. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "cli_fitting.h"

typedef struct merge_args {
    cli_session session;
    const char **files; /* [n] */
    int n;
    const char *output;
    int as_stats;
    unsigned freeze;
    double reg_covar;
} merge_args;

static void report_done(const merge_args *a, const fgmm_stats *stats) {
    fgmm_stats_view v;
    fgmm_stats_export(stats, &v);
    const char *type = fgmm_covariance_name(v.covariance_type);
    double bound = v.weight > 0 ? v.log_likelihood / v.weight : NAN;
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_files", a->n);
        json_real(&j, "n_rows", v.rows);
        json_real(&j, "weight", v.weight);
        json_int(&j, "n_features", v.d);
        json_int(&j, "n_components", v.k);
        json_text(&j, "covariance_type", type);
        json_real(&j, "lower_bound", bound);
        json_end(&j);
    } else if (!a->session.quiet) {
        printf("statistics  of %.10g rows in %d files\n", v.rows, a->n);
        printf("%s %lld components x %lld features, %s, in %s\n", a->as_stats ? "under      " : "model      ",
               (long long)v.k, (long long)v.d, type, a->output);
        printf("likelihood  %.10g nats a row, under the model that they were taken with\n", bound);
    }
}

/* Adds the files in the order they are named in. */
static int add_all(const merge_args *a, fgmm_stats **sum) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_status status = fgmm_stats_load(ctx, sum, a->files[0]);
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    for (int i = 1; i < a->n; i++) {
        fgmm_stats *more = NULL;
        status = fgmm_stats_load(ctx, &more, a->files[i]);
        if (status != FGMM_OK) return cli_failed(&a->session, status);
        status = fgmm_stats_merge(ctx, *sum, more);
        fgmm_stats_free(ctx, more);
        if (status == FGMM_OK) continue;
        cli_say("'%s' and '%s': %s", a->files[0], a->files[i], fgmm_context_message(ctx));
        return CLI_FAILED;
    }
    return CLI_DONE;
}

static int save(const merge_args *a, const fgmm_stats *sum) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_finalize_options options = FGMM_FINALIZE_OPTIONS_INIT;
    fgmm_model *model = NULL;
    fgmm_status status;
    options.reg_covar = cli_zero_is_off(a->reg_covar);
    options.freeze = a->freeze;
    if (a->as_stats) {
        status = fgmm_stats_save(ctx, sum, a->output);
    } else {
        status = fgmm_stats_finalize(ctx, sum, &options, &model);
        if (status == FGMM_OK) status = fgmm_model_save(ctx, model, a->output);
    }
    fgmm_model_free(ctx, model);
    return status == FGMM_OK ? CLI_DONE : cli_failed(&a->session, status);
}

static int check_files(const cli_command *self, const merge_args *a) {
    for (int i = 0; i < a->n; i++) {
        int rc = cli_check_output(self, a->output, ".npz", 0, (cli_files){{a->files[i]}});
        if (rc != CLI_DONE) return rc;
        for (int j = 0; j < i; j++) {
            if (cli_same_file(a->files[i], a->files[j]))
                return cli_usage(self, "'%s' is there twice: its rows would count twice", a->files[i]);
        }
    }
    return CLI_DONE;
}

static int merge(const cli_command *self, merge_args *a, int argc, char **argv) {
    const cli_option options[] = {
        {"output", 'o', CLI_TEXT, &a->output, 0, 0, "MODEL.npz", "where the model goes"},
        {"stats", 0, CLI_FLAG, &a->as_stats, 0, 0, 0, "write statistics, to be merged again, in place of a model"},
        {"reg-covar", 0, CLI_REAL, &a->reg_covar, 0, 1e300, "R", "added to each variance (default 1e-6; 0: none)"},
        {"freeze", 0, CLI_SET, &a->freeze, 0, 0, "weights|means|covariances", "keep these; a comma-separated list"},
        {"json", 0, CLI_FLAG, &a->session.json, 0, 0, 0, "print one JSON object on stdout"},
        {"quiet", 'q', CLI_FLAG, &a->session.quiet, 0, 0, 0, "no report, errors only"},
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, a->files);
    if (rc != CLI_GO_ON) return rc;
    if (!a->output) return cli_usage(self, "-o, where the model goes, is missing");
    if (a->as_stats && (a->freeze || !isnan(a->reg_covar)))
        return cli_usage(self, "--freeze and --reg-covar make a model: --stats makes none");
    while (a->files[a->n]) a->n++;
    rc = check_files(self, a);
    if (rc != CLI_DONE) return rc;
    a->session.device = "cpu"; /* nothing is computed over rows */
    rc = cli_open(self, &a->session);
    if (rc != CLI_DONE) return rc;
    fgmm_stats *sum = NULL;
    rc = add_all(a, &sum);
    if (rc == CLI_DONE) rc = save(a, sum);
    if (rc == CLI_DONE) report_done(a, sum);
    fgmm_stats_free(a->session.ctx, sum);
    cli_close(&a->session);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv) {
    merge_args a = {.reg_covar = NAN};
    a.files = cli_alloc(argc + 1, sizeof *a.files, "names of files");
    if (!a.files) return CLI_FAILED;
    for (int i = 0; i <= argc; i++) a.files[i] = NULL;
    int rc = merge(self, &a, argc, argv);
    free(a.files);
    return rc;
}

const cli_command cmd_merge = {
    .name = "merge",
    .summary = "add up the statistics of shares, and make the next model",
    .usage = "STATS.npz... -o MODEL.npz [OPTION]...",
    .example = "  flashgmm fit monday.npy --init m0.npz --stats-only -o monday.npz\n"
               "  flashgmm fit tuesday.npy --init m0.npz --stats-only -o tuesday.npz\n"
               "  flashgmm merge monday.npz tuesday.npz -o m1.npz\n",
    .operands = INT_MAX,
    .run = run,
};
