/* flashgmm select: how many components, of which covariance type. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli_fitting.h"
#include "select_show.h"

enum { SELECT_BIC = 0, SELECT_AIC = 1, ALL_TYPES = 1 << (FGMM_FULL + 1) };
static const int64_t k_max = 9000000000000000; /* as elsewhere; beyond a whole range of it int64 still has room */

typedef struct select_args {
    cli_session session;
    cli_compute compute;
    const char *data, *range, *output, *plot, *init, *weights;
    int64_t k_from, k_to, k_step, init_sample;
    unsigned types;
    int criterion, n_init, max_iter;
    double tol, reg_covar;
    uint64_t seed;
} select_args;

typedef struct select_work {
    cli_inputs in;
    select_list list;
    fgmm_model *best;
    double seconds;
    char device[300];
} select_work;

/* "A", "A:B" or "A:B:STEP". */
static int parse_range(const cli_command *self, select_args *a) {
    int64_t value[3] = {0, 0, 1};
    int n = 0;
    const char *at = a->range;
    for (char *end;; at = end + 1) {
        if (n == 3 || *at < '0' || *at > '9')
            return cli_usage(self, "option -k: '%s' is not A, A:B or A:B:STEP", a->range);
        value[n++] = strtoll(at, &end, 10);
        if (!*end) break;
        if (*end != ':') return cli_usage(self, "option -k: '%s' is not A, A:B or A:B:STEP", a->range);
    }
    if (n == 1) value[1] = value[0];
    if (value[1] > k_max || value[2] > k_max) {
        return cli_usage(self, "option -k: '%s' goes above %lld", a->range, (long long)k_max);
    }
    if (value[0] < 1 || value[1] < value[0] || value[2] < 1 || (value[1] - value[0]) / value[2] >= 100000) {
        return cli_usage(self, "option -k: '%s' must run upwards from at least 1", a->range);
    }
    a->k_from = value[0];
    a->k_to = value[1];
    a->k_step = value[2];
    return CLI_GO_ON;
}

static int is_asked(const select_args *a, int type) {
    return (a->types & ALL_TYPES) != 0 || (a->types >> type & 1) != 0;
}

/* Fits and scores one. What it lacks the memory for, or cannot do, is noted; the others go on. */
static fgmm_status fit_one(const select_args *a, const fgmm_fit_options *o, select_work *w, select_fit *fit) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_model *model = NULL;
    fgmm_report report = FGMM_REPORT_INIT;
    fit->criterion = NAN;
    fgmm_status status = fgmm_fit(ctx, &model, w->in.rows, o, &report);
    w->seconds += fit->seconds = report.seconds;
    if (status == FGMM_OK) status = fgmm_score(ctx, model, w->in.rows, &o->compute, &fit->score, NULL);
    if (status == FGMM_OK) {
        memcpy(w->device, report.device, sizeof w->device);
        fit->parameters = fgmm_model_parameters(model);
        fit->n_iter = report.n_iter;
        fit->converged = report.converged;
        fit->criterion = a->criterion == SELECT_BIC ? fit->score.bic : fit->score.aic;
        if (w->list.best < 0 || fit->criterion < w->list.fits[w->list.best].criterion) {
            w->list.best = fit - w->list.fits;
            fgmm_model_free(ctx, w->best);
            w->best = model;
            model = NULL;
        }
    } else {
        snprintf(fit->error, sizeof fit->error, "%.150s", fgmm_context_message(ctx));
        if (status == FGMM_ERR_INVALID || status == FGMM_ERR_MEMORY || status == FGMM_ERR_UNSUPPORTED) status = FGMM_OK;
    }
    fgmm_model_free(ctx, model);
    return status;
}

static fgmm_status fit_all(const select_args *a, fgmm_fit_options *o, select_work *w) {
    fgmm_status persists = fgmm_rows_persist(a->session.ctx, w->in.rows, 1);
    if (persists != FGMM_OK) return persists;
    for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++) {
        for (int64_t k = a->k_from; is_asked(a, type) && k <= a->k_to; k += a->k_step) {
            select_fit *fit = &w->list.fits[w->list.n++];
            *fit = (select_fit){.type = (fgmm_covariance)type, .k = k};
            o->covariance_type = fit->type;
            o->n_components = k;
            fgmm_status status = fit_one(a, o, w, fit);
            if (status != FGMM_OK) return status;
        }
    }
    return FGMM_OK;
}

static void print_json(const select_args *a, const select_work *w) {
    const select_list *list = &w->list;
    json_out j = json_begin(stdout);
    json_int(&j, "n_rows", fgmm_rows_count(w->in.rows));
    json_int(&j, "n_features", fgmm_rows_features(w->in.rows));
    json_text(&j, "criterion", list->criterion);
    json_text(&j, "device", w->device);
    select_json_fits(&j, list);
    if (list->best >= 0) {
        json_text(&j, "best_covariance_type", fgmm_covariance_name(list->fits[list->best].type));
        json_int(&j, "best_n_components", list->fits[list->best].k);
        json_real(&j, "best", list->fits[list->best].criterion);
    }
    if (a->output) json_text(&j, "output", a->output);
    json_real(&j, "seconds", w->seconds);
    json_end(&j);
}

static void print_report(const select_args *a, const select_work *w) {
    printf("data        %lld rows x %lld features, on %s, %.3f s in all\n\n", (long long)fgmm_rows_count(w->in.rows),
           (long long)fgmm_rows_features(w->in.rows), w->device, w->seconds);
    select_print_table(&w->list);
    if (w->list.best >= 0 && a->output) printf("   the best is in %s\n", a->output);
    select_print_curve(&w->list);
}

static int select_and_save(const select_args *a, fgmm_fit_options *o, select_work *w) {
    const cli_session *s = &a->session;
    fgmm_status status = fit_all(a, o, w);
    progress_wipe();
    int rc = status == FGMM_OK ? CLI_DONE : cli_failed(s, status);
    if (w->best && a->output) {
        status = fgmm_model_save(s->ctx, w->best, a->output);
        if (status != FGMM_OK) return cli_failed(s, status);
    }
    if (rc != CLI_DONE && !w->best) return rc;
    if (s->json) {
        print_json(a, w);
    } else if (!s->quiet) {
        print_report(a, w);
    }
    if (!w->best) return cli_say("no fit succeeded: %s", w->list.fits[0].error), CLI_FAILED;
    if (a->plot && select_plot(&w->list, a->plot) != CLI_DONE) return CLI_FAILED;
    return rc;
}

static int select_rows(const cli_command *self, const select_args *a, fgmm_fit_options *o, select_work *w) {
    int rc = cli_inputs_open(&a->session, &w->in, a->data, a->compute.format, a->weights, a->init);
    if (rc != CLI_DONE) return rc;
    const cli_files inputs = {{a->data, a->weights}};
    if (a->output) {
        double bytes = INFINITY; /* of the smallest: which is best is not known yet */
        for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++) {
            double one = cli_model_bytes((fgmm_covariance)type, a->k_from, fgmm_rows_features(w->in.rows));
            if (is_asked(a, type)) bytes = fmin(bytes, one);
        }
        rc = cli_check_output(self, a->output, ".npz", bytes, inputs);
    }
    if (rc == CLI_DONE && a->plot) {
        rc = cli_check_output(self, a->plot, cli_ends_with(a->plot, ".svg") ? ".svg" : ".png", 65536.0, inputs);
    }
    int64_t count = (a->k_to - a->k_from) / a->k_step + 1;
    if (rc == CLI_DONE && !(w->list.fits = cli_alloc(4 * count, sizeof *w->list.fits, "the table"))) rc = CLI_FAILED;
    return rc == CLI_DONE ? select_and_save(a, o, w) : rc;
}

static int run(const cli_command *self, int argc, char **argv) {
    select_args a = {.init = "kmeans++", .tol = NAN, .reg_covar = NAN};
    const cli_option options[] = {
        {"components", 'k', CLI_TEXT, &a.range, 0, 0, "A:B[:STEP]", "numbers of components to try"},
        {"covariance", 0, CLI_SET, &a.types, 0, 0, "spherical|diag|tied|full|all",
         "types to try, a comma-separated list (default all)"},
        {"criterion", 0, CLI_CHOICE, &a.criterion, 0, 0, "bic|aic", "what the best is the smallest by (default bic)"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MODEL.npz", "where the best model goes"},
        {"plot", 0, CLI_TEXT, &a.plot, 0, 0, "OUT.png|OUT.svg", "also draw the curve, by gnuplot"},
        {"init", 0, CLI_TEXT, &a.init, 0, 0, "NAME", "kmeans++ (default), kmeans, random or random_from_data"},
        {"init-sample", 0, CLI_INT64, &a.init_sample, 1, 9e15, "N", "rows that seeding looks at"},
        {"n-init", 0, CLI_INT, &a.n_init, 1, 1e6, "N", "restarts of each fit, the best is kept (default 1)"},
        {"max-iter", 0, CLI_INT, &a.max_iter, 1, 1e9, "N", "iterations at most (default 100)"},
        {"tol", 0, CLI_REAL, &a.tol, 0, 1e300, "T", "stop at a smaller gain, nats a row (default 1e-3; 0: never)"},
        {"reg-covar", 0, CLI_REAL, &a.reg_covar, 0, 1e300, "R", "added to each variance (default 1e-6; 0: none)"},
        {"seed", 0, CLI_SEED, &a.seed, 0, 0, "S", "default 0"},
        {"weights", 0, CLI_TEXT, &a.weights, 0, 0, "W.npy", "a weight for each row"},
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    if (!a.range) return cli_usage(self, "-k, the numbers of components, is missing");
    rc = parse_range(self, &a);
    if (rc != CLI_GO_ON) return rc;
    if (cli_is_model(a.init))
        return cli_usage(self, "--init '%s': one model cannot start fits of several kinds", a.init);
    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    rc = cli_parse_init(self, a.init, &o.init);
    if (rc != CLI_GO_ON) return rc;
    if (!a.types) a.types = ALL_TYPES;
    o.init_sample = a.init_sample;
    o.n_init = a.n_init;
    o.max_iter = a.max_iter;
    o.tol = cli_zero_is_off(a.tol);
    o.reg_covar = cli_zero_is_off(a.reg_covar);
    o.seed = a.seed;
    o.compute = cli_compute_options(&a.compute);

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    select_work w = {.list = {.best = -1, .criterion = a.criterion == SELECT_BIC ? "BIC" : "AIC"}};
    rc = select_rows(self, &a, &o, &w);
    fgmm_model_free(a.session.ctx, w.best);
    cli_inputs_free(&a.session, &w.in);
    free(w.list.fits);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_select = {
    .name = "select",
    .summary = "fit several numbers of components and covariance types, and choose",
    .usage = "DATA -k A:B[:STEP] [--covariance LIST] [-o MODEL.npz] [OPTION]...",
    .example = "  flashgmm select digits.npy -k 5:40:5 --covariance spherical,diag -o best.npz\n",
    .operands = 1,
    .run = run,
};
