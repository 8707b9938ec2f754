/* flashgmm fit: rows in, model out. */
#include "cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct fit_args {
    cli_session session;
    cli_compute compute;
    const char *data, *output, *init, *weights;
    int64_t k, init_sample;
    int covariance, n_init, max_iter, on_dead, on_collapse;
    unsigned freeze;
    double tol, reg_covar;
    uint64_t seed;
} fit_args;

/* What is held while fitting. */
typedef struct fit_work {
    fgmm_rows *rows;
    double *weights;
    fgmm_model *start, *model;
} fit_work;

static int starts_from_model(const fit_args *a) {
    return cli_ends_with(a->init, ".npz");
}

static int parse_init(const cli_command *self, const fit_args *a, fgmm_fit_options *o) {
    static const char *const names[] = {"kmeans++", "kmeans", "random", "random_from_data"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(a->init, names[i]) == 0) {
            o->init = (fgmm_init)i;
            return CLI_GO_ON;
        }
    }
    if (starts_from_model(a)) return CLI_GO_ON;
    return cli_usage(self, "option --init: '%s' is not kmeans++, kmeans, random, random_from_data or a MODEL.npz",
                     a->init);
}

/* The interface's zero means "default"; on the command line a zero is a zero. */
static double zero_is_off(double value) {
    return isnan(value) ? 0.0 : value == 0.0 ? -1.0 : value;
}

static int read_weights(const fit_args *a, fit_work *w) {
    char why[512];
    int64_t n;
    if (npy_read_column(a->weights, &w->weights, &n, why, sizeof why)) return cli_say("weights %s", why), CLI_FAILED;
    fgmm_status status = fgmm_rows_set_weights(a->session.ctx, w->rows, w->weights, n);
    return status == FGMM_OK ? CLI_DONE : cli_failed(&a->session, status);
}

static int open_inputs(const fit_args *a, fit_work *w) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_status status = fgmm_rows_open(ctx, &w->rows, a->data, a->compute.format);
    if (status == FGMM_OK && starts_from_model(a)) status = fgmm_model_load(ctx, &w->start, a->init);
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    return a->weights ? read_weights(a, w) : CLI_DONE;
}

static void print_report(const fit_args *a, const fit_work *w, const fgmm_report *r) {
    const fgmm_model *m = w->model;
    printf("data        %lld rows x %lld features (%s)", (long long)r->n_rows, (long long)fgmm_rows_features(w->rows),
           cli_dtype_name(fgmm_rows_type(w->rows)));
    if (r->n_skipped) printf(", %lld left out", (long long)r->n_skipped);
    printf("\nmodel       %lld components, %s%s%s\n", (long long)fgmm_model_components(m),
           fgmm_covariance_name(fgmm_model_covariance_type(m)), a->output ? ", in " : "", a->output ? a->output : "");
    printf("device      %s, precision %s, engine %s\n", r->device, cli_precision_name(r->precision),
           cli_engine_name(r->engine));
    printf("iterations  %d, %s\n", r->n_iter, r->converged ? "converged" : "not converged");
    printf("likelihood  %.10g nats a row\n", r->lower_bound);
    printf("time        %.3f s, %.3g ms an iteration\n", r->seconds, r->seconds_per_iteration * 1e3);
    printf("components  %.3g evaluated exactly a row\n", r->survivors_per_row);
}

static void print_json(const fit_work *w, const fgmm_report *r) {
    const fgmm_model *m = w->model;
    json_out j = json_begin(stdout);
    json_int(&j, "n_rows", r->n_rows);
    json_int(&j, "n_features", fgmm_model_features(m));
    json_int(&j, "n_components", fgmm_model_components(m));
    json_text(&j, "covariance_type", fgmm_covariance_name(fgmm_model_covariance_type(m)));
    json_text(&j, "device", r->device);
    json_text(&j, "precision", cli_precision_name(r->precision));
    json_text(&j, "engine", cli_engine_name(r->engine));
    json_int(&j, "n_iter", r->n_iter);
    json_bool(&j, "converged", r->converged);
    json_real(&j, "lower_bound", r->lower_bound);
    json_real(&j, "seconds", r->seconds);
    json_real(&j, "seconds_per_iteration", r->seconds_per_iteration);
    json_real(&j, "survivors_per_row", r->survivors_per_row);
    json_real(&j, "dropped_mass", r->dropped_mass);
    json_int(&j, "peak_host_bytes", r->peak_host_bytes);
    json_int(&j, "peak_device_bytes", r->peak_device_bytes);
    json_warnings(&j, r);
    json_end(&j);
}

static int fit_and_save(const fit_args *a, const fgmm_fit_options *o, fit_work *w) {
    const cli_session *s = &a->session;
    fgmm_report report = FGMM_REPORT_INIT;
    fgmm_status status = fgmm_fit(s->ctx, &w->model, w->rows, o, &report);
    progress_wipe();
    if (!w->model) {
        int rc = cli_failed(s, status);
        if (status == FGMM_ERR_CANCELLED && a->output) cli_say("no iteration was whole: '%s' not written", a->output);
        return rc;
    }
    /* Cancelled with a model: the last whole iteration is worth keeping. */
    if (a->output) {
        fgmm_status saved = fgmm_model_save(s->ctx, w->model, a->output);
        if (saved != FGMM_OK) return cli_failed(s, saved);
    }
    if (s->json) {
        print_json(w, &report);
    } else if (!s->quiet) {
        print_report(a, w, &report);
    }
    if (status == FGMM_OK) return CLI_DONE;
    if (status != FGMM_ERR_CANCELLED) return cli_failed(s, status);
    if (a->output) {
        cli_say("cancelled; '%s' holds the model of iteration %d", a->output, fgmm_model_iterations(w->model));
    } else {
        cli_say("cancelled after iteration %d", fgmm_model_iterations(w->model));
    }
    return CLI_FAILED;
}

static int fit(const cli_command *self, const fit_args *a, fgmm_fit_options *o) {
    fit_work w = {0};
    int rc = open_inputs(a, &w);
    /* A model to start from says what kind it is. */
    int start_type = w.start ? (int)fgmm_model_covariance_type(w.start) : FGMM_SPHERICAL;
    o->covariance_type = (fgmm_covariance)(a->covariance >= 0 ? a->covariance : start_type);
    if (rc == CLI_DONE && a->output) {
        int64_t k = w.start ? fgmm_model_components(w.start) : a->k;
        double d = (double)fgmm_rows_features(w.rows);
        double covariances = o->covariance_type == FGMM_SPHERICAL ? 1.0 : d;
        rc = cli_check_output(self, a->output, ".npz", (double)k * (1.0 + d + covariances) * 8.0 + 4096.0, a->data);
    }
    if (rc == CLI_DONE) {
        o->init_model = w.start;
        rc = fit_and_save(a, o, &w);
    }
    fgmm_model_free(a->session.ctx, w.model);
    fgmm_model_free(a->session.ctx, w.start);
    fgmm_rows_free(a->session.ctx, w.rows);
    free(w.weights);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv) {
    fit_args a = {.init = "kmeans++", .tol = NAN, .reg_covar = NAN, .covariance = -1};
    const cli_option options[] = {
        {"components", 'k', CLI_INT64, &a.k, 1, 9e15, "K", "number of components"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MODEL.npz", "where the model goes"},
        {"covariance", 0, CLI_CHOICE, &a.covariance, 0, 0, "spherical|diag|tied|full", "default spherical"},
        {"init", 0, CLI_TEXT, &a.init, 0, 0, "NAME|MODEL.npz",
         "kmeans++ (default), kmeans, random, random_from_data, or a model to start from"},
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
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;

    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    rc = parse_init(self, &a, &o);
    if (rc != CLI_GO_ON) return rc;
    if (!a.k && !starts_from_model(&a)) return cli_usage(self, "-k, the number of components, is missing");
    if (a.freeze && !starts_from_model(&a)) {
        return cli_usage(self, "--freeze keeps parts of a model started from: give one with --init MODEL.npz");
    }
    if (a.freeze && (a.on_dead || a.on_collapse)) {
        return cli_usage(self, "--freeze goes with --on-dead keep and --on-collapse keep only");
    }
    o.n_components = a.k;
    o.init_sample = a.init_sample;
    o.n_init = a.n_init;
    o.max_iter = a.max_iter;
    o.tol = zero_is_off(a.tol);
    o.reg_covar = zero_is_off(a.reg_covar);
    o.seed = a.seed;
    o.freeze = a.freeze;
    o.on_dead = (fgmm_policy)a.on_dead;
    o.on_collapse = a.on_collapse ? FGMM_DROP : FGMM_KEEP;
    o.compute = cli_compute_options(&a.compute);

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    rc = fit(self, &a, &o);
    cli_close(&a.session);
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
