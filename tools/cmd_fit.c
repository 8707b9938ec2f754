/* flashgmm fit: rows in, model out. */

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli_devices.h"
#include "cli_fitting.h"
#include "cli_ranks.h"
#include "mini_batch.h"

typedef struct fit_args {
    cli_session session;
    cli_compute compute;
    const char *data, *output, *init, *weights, *checkpoint, *shares;
    int64_t k, init_sample, mini_batch;
    int covariance, n_init, max_iter, on_dead, on_collapse, stats_only;
    unsigned freeze;
    double tol, reg_covar, kappa, t0, every;
    uint64_t seed;
    cli_ranks ranks;
    cli_devices devices;
} fit_args;

/* What is held while fitting. */
typedef struct fit_work {
    cli_inputs in;
    fgmm_rows *share; /* this rank's, of in.rows */
    fgmm_model *fitted;
    mini_batch batches;
    const fgmm_model *model; /* the result: `fitted`, or what the batches made */
} fit_work;

static void print_report(const fit_args *a, const fit_work *w, const fgmm_report *r) {
    const fgmm_model *m = w->model;
    cli_print_data(&w->in, r);
    if (cli_ranks_count(&a->ranks) > 1) printf("ranks       %d\n", cli_ranks_count(&a->ranks));
    printf("model       %lld components, %s%s%s\n", (long long)fgmm_model_components(m),
           fgmm_covariance_name(fgmm_model_covariance_type(m)), a->output ? ", in " : "", a->output ? a->output : "");
    cli_print_device(r);
    cli_devices_print(&a->devices);
    cli_print_iterations(r);
    printf("likelihood  %.10g nats a row\n", r->lower_bound);
    cli_print_time(r);
}

static void print_json(const fit_args *a, const fit_work *w, const fgmm_report *r) {
    const fgmm_model *m = w->model;
    json_out j = json_begin(stdout);
    json_int(&j, "n_rows", r->n_rows);
    json_int(&j, "n_features", fgmm_model_features(m));
    json_int(&j, "n_components", fgmm_model_components(m));
    json_text(&j, "covariance_type", fgmm_covariance_name(fgmm_model_covariance_type(m)));
    json_run(&j, r);
    if (cli_ranks_count(&a->ranks) > 1) json_int(&j, "n_ranks", cli_ranks_count(&a->ranks));
    json_devices(&j, &a->devices);
    if (w->batches.online) json_int(&j, "n_steps", fgmm_online_steps(w->batches.online));
    json_real(&j, "lower_bound", r->lower_bound);
    json_cost(&j, r);
    json_end(&j);
}

static fgmm_status fit_in_batches(const fit_args *a, const fgmm_fit_options *o, fit_work *w, fgmm_report *report) {
    fgmm_context *ctx = a->session.ctx;
    mini_batch *m = &w->batches;
    fgmm_online_options online = FGMM_ONLINE_OPTIONS_INIT;
    online.kappa = a->kappa;
    online.t0 = cli_zero_is_off(a->t0);
    online.reg_covar = o->reg_covar;
    online.freeze = o->freeze;
    online.compute = o->compute;
    m->rows = w->in.rows;
    m->weights = w->in.weights;
    m->batch_rows = a->mini_batch;
    m->seed = a->seed;
    m->skip = a->compute.nonfinite == FGMM_NONFINITE_SKIP;
    m->shuffle = 1;
    m->max_passes = o->max_iter ? o->max_iter : 100;
    fgmm_status status = FGMM_OK;
    if (!w->in.start) status = fgmm_initial_model(ctx, &w->fitted, w->in.rows, o);
    if (status == FGMM_OK) status = fgmm_online_create(ctx, &m->online, w->in.start ? w->in.start : w->fitted, &online);
    if (status == FGMM_OK) status = mini_batch_run(m, o->tol == 0 ? 1e-3 : o->tol, report);
    if (fgmm_online_steps(m->online) > 0 && (status == FGMM_OK || status == FGMM_ERR_CANCELLED))
        w->model = fgmm_online_model(m->online);
    return status;
}

/* Saves and tells what came of a fit that has a model. */
static int save_and_tell(const fit_args *a, const fit_work *w, const fgmm_report *report, fgmm_status status) {
    const cli_session *s = &a->session;
    /* Cancelled with a model: the last whole iteration is worth keeping. */
    if (a->output) {
        fgmm_status saved = fgmm_model_save(s->ctx, w->model, a->output);
        if (saved != FGMM_OK) return cli_failed(s, saved);
    }
    if (s->json) {
        print_json(a, w, report);
    } else if (!s->quiet) {
        print_report(a, w, report);
    }
    if (status == FGMM_OK) return CLI_DONE;
    if (status != FGMM_ERR_CANCELLED) return cli_failed(s, status);
    if (a->checkpoint && access(a->checkpoint, F_OK) == 0) cli_say("the same command goes on from '%s'", a->checkpoint);
    const char *what = a->mini_batch ? "step" : "iteration";
    if (a->output) {
        cli_say("cancelled; '%s' holds the model of %s %d", a->output, what, fgmm_model_iterations(w->model));
    } else {
        cli_say("cancelled after %s %d", what, fgmm_model_iterations(w->model));
    }
    return CLI_FAILED;
}

static int fit_and_save(fit_args *a, const fgmm_fit_options *o, fit_work *w) {
    const cli_session *s = &a->session;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_status status;
    if (a->mini_batch) {
        status = fit_in_batches(a, o, w, &report);
    } else if (a->devices.n > 0) {
        int rc = cli_devices_fit(s, &a->devices, &w->in, o, &w->fitted, &report, &status);
        if (rc != CLI_DONE) return rc;
        w->model = w->fitted;
    } else {
        status = fgmm_fit(s->ctx, &w->fitted, w->share ? w->share : w->in.rows, o, &report);
        w->model = w->fitted;
    }
    progress_wipe();
    /* All ranks have the same model, or the same reason not to; one of them says so. */
    if (!cli_ranks_is_root(&a->ranks)) return status == FGMM_OK ? CLI_DONE : CLI_FAILED;
    if (w->model) return save_and_tell(a, w, &report, status);
    int rc = cli_failed(s, status);
    if (status == FGMM_ERR_CANCELLED && a->output) cli_say("no iteration was whole: '%s' not written", a->output);
    return rc;
}

/* The half of an iteration that looks at rows, for `flashgmm merge`. */
static int save_stats(const fit_args *a, const fgmm_fit_options *o, const fit_work *w) {
    const cli_session *s = &a->session;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_stats *stats = NULL;
    fgmm_status status = fgmm_stats_create(s->ctx, &stats, w->in.start);
    if (status == FGMM_OK) status = fgmm_stats_accumulate(s->ctx, stats, w->in.rows, &o->compute, &report);
    progress_wipe();
    if (status == FGMM_OK) status = fgmm_stats_save(s->ctx, stats, a->output);
    fgmm_stats_free(s->ctx, stats);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (s->json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", report.n_rows);
        json_int(&j, "n_features", fgmm_rows_features(w->in.rows));
        json_int(&j, "n_components", fgmm_model_components(w->in.start));
        json_run(&j, &report);
        json_real(&j, "lower_bound", report.lower_bound);
        json_cost(&j, &report);
        json_end(&j);
    } else if (!s->quiet) {
        cli_print_data(&w->in, &report);
        printf("statistics  under %s, in %s\n", a->init, a->output);
        cli_print_device(&report);
        printf("likelihood  %.10g nats a row\n", report.lower_bound);
    }
    return CLI_DONE;
}

/* The rows of this rank. */
static int take_share(const fit_args *a, fit_work *w) {
    int64_t first, n;
    if (cli_ranks_count(&a->ranks) == 1) return CLI_DONE;
    int rc = cli_ranks_share(&a->ranks, fgmm_rows_count(w->in.rows), &first, &n);
    if (rc != CLI_DONE) return rc;
    fgmm_status status = fgmm_rows_slice(a->session.ctx, &w->share, w->in.rows, first, n);
    return status == FGMM_OK ? CLI_DONE : cli_failed(&a->session, status);
}

static int check_outputs(const cli_command *self, const fit_args *a, const fgmm_fit_options *o, const fit_work *w) {
    int64_t k = w->in.start ? fgmm_model_components(w->in.start) : a->k;
    /* Statistics come with their model and their centres. */
    double bytes = cli_model_bytes(o->covariance_type, k, fgmm_rows_features(w->in.rows)) * (a->stats_only ? 3 : 1);
    cli_files inputs = {{a->data, a->weights, a->stats_only ? a->init : NULL}};
    int rc = CLI_DONE;
    if (a->output) rc = cli_check_output(self, a->output, ".npz", bytes, inputs);
    if (rc != CLI_DONE || !a->checkpoint) return rc;
    /* A full disk is no reason not to begin: it may have room by then, and is warned of otherwise. */
    const char *start = w->in.start ? a->init : NULL;
    return cli_check_output(self, a->checkpoint, ".npz", 0, (cli_files){{a->data, a->weights, a->output, start}});
}

static int fit(const cli_command *self, fit_args *a, fgmm_fit_options *o, fit_work *w) {
    int rc = cli_inputs_open(&a->session, &w->in, a->data, a->compute.format, a->weights, a->init);
    /* A model to start from says what kind it is. */
    int start_type = w->in.start ? (int)fgmm_model_covariance_type(w->in.start) : FGMM_SPHERICAL;
    o->covariance_type = (fgmm_covariance)(a->covariance >= 0 ? a->covariance : start_type);
    if (rc == CLI_DONE && w->in.start && o->covariance_type != (fgmm_covariance)start_type) {
        rc = cli_usage(self, "'%s' is %s: --covariance cannot make it %s", a->init,
                       fgmm_covariance_name((fgmm_covariance)start_type), fgmm_covariance_name(o->covariance_type));
    }
    if (rc == CLI_DONE && cli_ranks_is_root(&a->ranks)) rc = check_outputs(self, a, o, w);
    if (rc == CLI_DONE) rc = take_share(a, w);
    if (rc == CLI_DONE) rc = cli_devices_open(self, &a->session, &a->devices, &w->in, a->data, a->compute.format);
    rc = cli_ranks_agree(&a->ranks, rc);
    if (rc == CLI_DONE) {
        o->init_model = w->in.start;
        o->ranks = a->ranks.ranks;
        rc = a->stats_only ? save_stats(a, o, w) : fit_and_save(a, o, w);
    }
    fgmm_online_free(a->session.ctx, w->batches.online);
    fgmm_model_free(a->session.ctx, w->fitted);
    cli_devices_close(&a->devices);
    fgmm_rows_free(a->session.ctx, w->share);
    cli_inputs_free(&a->session, &w->in);
    return rc;
}

/* What of the options goes with what. @return CLI_GO_ON, or an exit code after a message. */
static int check_args(const cli_command *self, const fit_args *a) {
    int is_model = cli_is_model(a->init);
    if (!a->k && !is_model) return cli_usage(self, "-k, the number of components, is missing");
    if (a->freeze && !is_model) {
        return cli_usage(self, "--freeze keeps parts of a model started from: give one with --init MODEL.npz");
    }
    if (a->freeze && (a->on_dead || a->on_collapse)) {
        return cli_usage(self, "--freeze goes with --on-dead keep and --on-collapse keep only");
    }
    if (a->mini_batch && (a->on_dead || a->on_collapse || a->n_init)) {
        return cli_usage(self, "--mini-batch has neither restarts nor policies: leave out --n-init and --on-...");
    }
    if (!a->mini_batch && (a->kappa > 0 || !isnan(a->t0))) return cli_usage(self, "--kappa and --t0 need --mini-batch");
    if (a->mini_batch && a->checkpoint) {
        return cli_usage(self, "--mini-batch keeps no checkpoints: 'flashgmm partial-fit' keeps a state");
    }
    if (!isnan(a->every) && !a->checkpoint) return cli_usage(self, "--every needs --checkpoint FILE.npz");
    if (a->stats_only && (!is_model || !a->output)) {
        return cli_usage(self, "--stats-only needs --init MODEL.npz and -o STATS.npz");
    }
    if (a->stats_only && (a->n_init || a->max_iter || a->freeze || a->on_dead || a->on_collapse || a->mini_batch ||
                          a->checkpoint || a->k || a->init_sample || !isnan(a->tol) || !isnan(a->reg_covar))) {
        return cli_usage(self, "--stats-only makes no model: 'flashgmm merge' takes --reg-covar and --freeze");
    }
    return mini_batch_check_kappa(self, a->kappa);
}

static int run_rank(const cli_command *self, fit_args *a, fgmm_fit_options *o) {
    char id[32];
    cli_session *s = &a->session;
    fit_work w = {.batches.session = s};
    if (!cli_ranks_is_root(&a->ranks)) {
        s->quiet = 1;
        s->json = 0;
        s->log = NULL;
    }
    const char *alone = a->mini_batch      ? "--mini-batch"
                        : a->stats_only    ? "--stats-only"
                        : a->devices.n > 0 ? "a list of devices"
                                           : NULL;
    if (cli_ranks_agree(&a->ranks, alone && cli_ranks_count(&a->ranks) > 1 ? CLI_USAGE : CLI_DONE) != CLI_DONE) {
        if (cli_ranks_is_root(&a->ranks))
            cli_usage(self, "%s is for one rank alone", alone ? alone : "what another was given");
        return CLI_USAGE;
    }
    if (a->mini_batch && isatty(STDERR_FILENO) && !s->quiet) {
        s->progress = mini_batch_progress;
        s->progress_user = &w.batches;
    }
    s->device = cli_ranks_device(&a->ranks, s->device, id);
    s->threads = a->devices.n > 0 ? cli_devices_threads(s, &a->devices) : cli_threads_each(s, a->ranks.locals);
    s->sharers = a->devices.n > 0 ? a->devices.n : a->ranks.locals;
    int rc = cli_open(self, s);
    if (rc == CLI_DONE)
        rc = cli_log_open(self, s, (cli_files){{a->data, a->weights, a->output, a->init, a->checkpoint}});
    rc = cli_ranks_agree(&a->ranks, rc);
    if (rc == CLI_DONE) rc = fit(self, a, o, &w);
    rc = cli_ranks_agree(&a->ranks, rc);
    cli_close(s);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv) {
    fit_args a = {.init = "kmeans++", .tol = NAN, .reg_covar = NAN, .t0 = NAN, .every = NAN, .covariance = -1};
    const cli_option options[] = {
        {"components", 'k', CLI_INT64, &a.k, 1, 9e15, "K", "number of components"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MODEL.npz", "where the model goes"},
        {"covariance", 0, CLI_CHOICE, &a.covariance, 0, 0, "spherical|diag|tied|full", "default spherical"},
        {"init", 0, CLI_TEXT, &a.init, 0, 0, "NAME|MODEL.npz", CLI_INIT_HELP},
        {"init-sample", 0, CLI_INT64, &a.init_sample, 1, 9e15, "N", "rows that seeding looks at"},
        {"n-init", 0, CLI_INT, &a.n_init, 1, 1e6, "N", "restarts, the best is kept (default 1)"},
        {"max-iter", 0, CLI_INT, &a.max_iter, 1, 1e9, "N", "iterations at most (default 100)"},
        {"tol", 0, CLI_REAL, &a.tol, 0, 1e300, "T", "stop at a smaller gain, nats a row (default 1e-3; 0: never)"},
        {"reg-covar", 0, CLI_REAL, &a.reg_covar, 0, 1e300, "R", "added to each variance (default 1e-6; 0: none)"},
        {"seed", 0, CLI_SEED, &a.seed, 0, 0, "S", "default 0"},
        {"weights", 0, CLI_TEXT, &a.weights, 0, 0, "W.npy", "a weight for each row"},
        {"freeze", 0, CLI_SET, &a.freeze, 0, 0, "weights|means|covariances",
         "keep these of the --init MODEL.npz; a comma-separated list"},
        {"on-dead", 0, CLI_CHOICE, &a.on_dead, 0, 0, "keep|reseed|drop",
         "components without rows (default keep; others not with --freeze)"},
        {"on-collapse", 0, CLI_CHOICE, &a.on_collapse, 0, 0, "keep|drop",
         "components without variance (default keep; drop not with --freeze)"},
        {"mini-batch", 0, CLI_INT64, &a.mini_batch, 1, 9e15, "ROWS",
         "a step after each so many rows: stepwise EM; --max-iter then counts passes"},
        MINI_BATCH_OPTIONS(&a),
        {"checkpoint", 0, CLI_TEXT, &a.checkpoint, 0, 0, "FILE.npz",
         "keep the place of the fit here; where FILE is there already, go on from it"},
        {"every", 0, CLI_REAL, &a.every, 0, 1e9, "SECONDS", "between checkpoints (default 60; 0: each iteration)"},
        {"shares", 0, CLI_TEXT, &a.shares, 0, 0, "A,B,...",
         "of the rows, to each device of --device A,B,... or all (default: by their speeds, measured)"},
        {"stats-only", 0, CLI_FLAG, &a.stats_only, 0, 0, 0,
         "write the statistics under --init MODEL.npz for 'flashgmm merge', not a model"},
        CLI_LOG_OPTION(&a.session),
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;

    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    rc = cli_parse_init(self, a.init, &o.init);
    if (rc != CLI_GO_ON) return rc;
    rc = check_args(self, &a);
    if (rc == CLI_GO_ON) rc = cli_devices_parse(self, &a.devices, &a.session.device, a.shares);
    if (rc == CLI_GO_ON && a.devices.n > 0 && (a.mini_batch || a.stats_only))
        rc = cli_usage(self, "%s is for one device", a.mini_batch ? "--mini-batch" : "--stats-only");
    if (rc == CLI_GO_ON && a.devices.n > 0 && a.checkpoint && !a.shares)
        rc = cli_usage(self, "--checkpoint on several devices needs --shares: measured ones are others each time");
    if (rc != CLI_GO_ON) return rc;
    o.n_components = a.k;
    o.init_sample = a.init_sample;
    o.n_init = a.n_init;
    o.max_iter = a.max_iter;
    o.tol = cli_zero_is_off(a.tol);
    o.reg_covar = cli_zero_is_off(a.reg_covar);
    o.seed = a.seed;
    o.freeze = a.freeze;
    o.on_dead = (fgmm_policy)a.on_dead;
    o.on_collapse = a.on_collapse ? FGMM_DROP : FGMM_KEEP;
    o.compute = cli_compute_options(&a.compute);
    o.checkpoint = a.checkpoint;
    o.checkpoint_seconds = cli_zero_is_off(a.every);

    rc = cli_ranks_open(self, &a.ranks);
    if (rc != CLI_DONE) return rc;
    rc = run_rank(self, &a, &o);
    cli_ranks_close(&a.ranks);
    return rc;
}

const cli_command cmd_fit = {
    .name = "fit",
    .summary = "fit a mixture to rows in a file",
    .usage = "DATA -k K [-o MODEL.npz] [OPTION]...",
    .example = "  flashgmm fit digits.npy -k 10 --covariance diag --seed 1 -o digits.npz\n",
    .operands = 1,
    .run = run,
};
