/* flashgmm partial-fit: one more batch, or more, for a fit that goes on. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli_fitting.h"
#include "mini_batch.h"

typedef struct partial_args {
    cli_session session;
    cli_compute compute;
    const char *data, *state, *start, *output, *weights;
    int64_t mini_batch;
    unsigned freeze;
    double reg_covar, kappa, t0;
} partial_args;

static int state_exists(const partial_args *a) {
    return access(a->state, F_OK) == 0;
}

static fgmm_status open_state(const partial_args *a, const cli_inputs *in, fgmm_online **online) {
    fgmm_online_options o = FGMM_ONLINE_OPTIONS_INIT;
    o.compute = cli_compute_options(&a->compute);
    if (!in->start) return fgmm_online_load(a->session.ctx, online, a->state, &o.compute);
    o.kappa = a->kappa;
    o.t0 = cli_zero_is_off(a->t0);
    o.reg_covar = cli_zero_is_off(a->reg_covar);
    o.freeze = a->freeze;
    return fgmm_online_create(a->session.ctx, online, in->start, &o);
}

static void report_done(const partial_args *a, const cli_inputs *in, const fgmm_online *online, const fgmm_report *r) {
    const fgmm_model *m = fgmm_online_model(online);
    const char *type = fgmm_covariance_name(fgmm_model_covariance_type(m));
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", r->n_rows);
        json_int(&j, "n_features", fgmm_model_features(m));
        json_int(&j, "n_components", fgmm_model_components(m));
        json_text(&j, "covariance_type", type);
        json_text(&j, "device", r->device);
        json_text(&j, "precision", cli_precision_name(r->precision));
        json_int(&j, "n_steps", fgmm_online_steps(online));
        json_real(&j, "lower_bound", r->lower_bound);
        json_cost(&j, r);
        json_end(&j);
    } else if (!a->session.quiet) {
        cli_print_data(in, r);
        printf("state       %lld components, %s, after %lld steps, in %s\n", (long long)fgmm_model_components(m), type,
               (long long)fgmm_online_steps(online), a->state);
        printf("likelihood  %.10g nats a row, each batch's before its step\n", r->lower_bound);
        printf("device      %s, %.3f s\n", r->device, r->seconds);
    }
}

static int partial_fit(const cli_command *self, const partial_args *a, mini_batch *m, cli_inputs *in) {
    const cli_session *s = &a->session;
    int rc = cli_inputs_open(s, in, a->data, a->compute.format, a->weights, a->start ? a->start : "");
    if (rc != CLI_DONE) return rc;
    fgmm_status status = open_state(a, in, &m->online);
    if (status != FGMM_OK) return cli_failed(s, status);
    const fgmm_model *model = fgmm_online_model(m->online);
    double bytes =
        cli_model_bytes(fgmm_model_covariance_type(model), fgmm_model_components(model), fgmm_model_features(model));
    rc = cli_check_output(self, a->state, ".npz", 3 * bytes, (cli_files){{a->data, a->weights}});
    if (rc == CLI_DONE && a->output)
        rc = cli_check_output(self, a->output, ".npz", bytes, (cli_files){{a->data, a->weights, a->state}});
    if (rc != CLI_DONE) return rc;
    fgmm_report report = FGMM_REPORT_INIT;
    int64_t before = fgmm_online_steps(m->online);
    m->rows = in->rows;
    m->weights = in->weights;
    m->batch_rows = a->mini_batch;
    m->skip = a->compute.nonfinite == FGMM_NONFINITE_SKIP;
    m->max_passes = 1;
    status = mini_batch_pass(m, &report);
    report.seconds_per_iteration = report.seconds;
    progress_wipe();
    int64_t steps = fgmm_online_steps(m->online) - before;
    if (status != FGMM_OK && (status != FGMM_ERR_CANCELLED || steps == 0)) return cli_failed(s, status);
    /* Cancelled between steps: those that are whole count. */
    fgmm_status saved = fgmm_online_save(s->ctx, m->online, a->state);
    if (saved == FGMM_OK && a->output) saved = fgmm_model_save(s->ctx, fgmm_online_model(m->online), a->output);
    if (saved != FGMM_OK) return cli_failed(s, saved);
    report_done(a, in, m->online, &report);
    if (status == FGMM_OK) return CLI_DONE;
    cli_say("cancelled; '%s' holds %lld steps of this run", a->state, (long long)steps);
    return CLI_FAILED;
}

static int run(const cli_command *self, int argc, char **argv) {
    partial_args a = {.reg_covar = NAN, .t0 = NAN};
    const cli_option options[] = {
        {"state", 's', CLI_TEXT, &a.state, 0, 0, "STATE.npz", "what to go on from, and where it goes"},
        {"start", 0, CLI_TEXT, &a.start, 0, 0, "MODEL.npz", "begin a new state at this model"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MODEL.npz", "also write the model as it is then"},
        {"weights", 0, CLI_TEXT, &a.weights, 0, 0, "W.npy", "a weight for each row"},
        {"mini-batch", 0, CLI_INT64, &a.mini_batch, 1, 9e15, "ROWS", "a step after each so many rows (default: all)"},
        MINI_BATCH_OPTIONS(&a),
        {"reg-covar", 0, CLI_REAL, &a.reg_covar, 0, 1e300, "R", "added to each variance (default 1e-6; 0: none)"},
        {"freeze", 0, CLI_SET, &a.freeze, 0, 0, "weights|means|covariances", "keep these; a comma-separated list"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.state) return cli_usage(self, "-s, the state to go on from, is missing");
    if (a.start && !cli_is_model(a.start)) return cli_usage(self, "--start '%s' is no MODEL.npz", a.start);
    if (a.start && state_exists(&a))
        return cli_usage(self, "'%s' is there already: --start would begin it anew", a.state);
    if (!a.start && !state_exists(&a))
        return cli_usage(self, "there is no '%s' yet: begin it with --start MODEL.npz", a.state);
    if (!a.start && (a.kappa > 0 || !isnan(a.t0) || !isnan(a.reg_covar) || a.freeze)) {
        return cli_usage(self, "the state holds --kappa, --t0, --reg-covar and --freeze: they go with --start");
    }
    rc = mini_batch_check_kappa(self, a.kappa);
    if (rc != CLI_GO_ON) return rc;
    mini_batch m = {.session = &a.session};
    if (isatty(STDERR_FILENO) && !a.session.quiet) {
        a.session.progress = mini_batch_progress;
        a.session.progress_user = &m;
    }
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    cli_inputs in = {0};
    rc = partial_fit(self, &a, &m, &in);
    fgmm_online_free(a.session.ctx, m.online);
    cli_inputs_free(&a.session, &in);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_partial_fit = {
    .name = "partial-fit",
    .summary = "take more rows into a fit that goes on",
    .usage = "DATA -s STATE.npz [--start MODEL.npz] [-o MODEL.npz] [OPTION]...",
    .example = "  flashgmm partial-fit monday.npy -s state.npz --start model.npz\n"
               "  flashgmm partial-fit tuesday.npy -s state.npz -o model.npz\n",
    .operands = 1,
    .run = run,
};
