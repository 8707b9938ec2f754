/* flashgmm kmeans: rows in, means out. */
#include <math.h>
#include <stdlib.h>

#include "cli_fitting.h"

typedef struct kmeans_args {
    cli_session session;
    cli_compute compute;
    const char *data, *output, *labels, *init, *weights;
    int64_t k, init_sample;
    int n_init, max_iter, keep_empty;
    double tol;
    uint64_t seed;
} kmeans_args;

typedef struct kmeans_work {
    cli_inputs in;
    fgmm_model *model;
    fgmm_kmeans_result result;
    double *counts; /* [K] */
    int32_t *labels;
} kmeans_work;

static void print_report(const kmeans_args *a, const kmeans_work *w, const fgmm_report *r) {
    int64_t k = fgmm_model_components(w->model);
    double low = INFINITY, high = 0.0;
    for (int64_t i = 0; i < k; i++) {
        low = fmin(low, w->counts[i]);
        high = fmax(high, w->counts[i]);
    }
    cli_print_data(&w->in, r);
    printf("means       %lld, of %.6g to %.6g rows%s%s\n", (long long)k, low, high, a->output ? ", in " : "",
           a->output ? a->output : "");
    cli_print_device(r);
    cli_print_iterations(r);
    printf("inertia     %.10g, %.6g a row\n", w->result.inertia, w->result.inertia / w->result.weight);
    cli_print_time(r);
}

static void print_json(const kmeans_work *w, const fgmm_report *r) {
    int64_t k = fgmm_model_components(w->model);
    json_out j = json_begin(stdout);
    json_int(&j, "n_rows", r->n_rows);
    json_int(&j, "n_features", fgmm_model_features(w->model));
    json_int(&j, "n_components", k);
    json_run(&j, r);
    json_real(&j, "inertia", w->result.inertia);
    json_real(&j, "weight", w->result.weight);
    json_int(&j, "n_empty", w->result.n_empty);
    json_array(&j, "counts");
    for (int64_t i = 0; i < k; i++) json_real(&j, NULL, w->counts[i]);
    json_close(&j, ']');
    json_cost(&j, r);
    json_end(&j);
}

static fgmm_status save(const kmeans_args *a, kmeans_work *w, const fgmm_compute_options *o) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_status status = a->output ? fgmm_model_save(ctx, w->model, a->output) : FGMM_OK;
    if (status != FGMM_OK || !a->labels) return status;
    fgmm_array labels = {NULL, FGMM_I32, 1, {fgmm_rows_count(w->in.rows), 0, 0}, w->labels};
    status = fgmm_predict(ctx, w->model, w->in.rows, o, w->labels, NULL);
    return status == FGMM_OK ? fgmm_arrays_save(ctx, a->labels, &labels, 1) : status;
}

static int kmeans_and_save(const kmeans_args *a, const fgmm_kmeans_options *o, kmeans_work *w) {
    const cli_session *s = &a->session;
    fgmm_report report = FGMM_REPORT_INIT;
    /* Where labels are asked for. */
    fgmm_status status = w->labels ? fgmm_rows_persist(s->ctx, w->in.rows, 1) : FGMM_OK;
    if (status == FGMM_OK) status = fgmm_kmeans(s->ctx, &w->model, w->in.rows, o, &w->result, w->counts, &report);
    progress_wipe();
    if (!w->model) return cli_failed(s, status);
    /* Cancelled with a model: the last whole iteration is worth keeping. */
    fgmm_status saved = save(a, w, &o->compute);
    if (saved != FGMM_OK) return cli_failed(s, saved);
    if (s->json) {
        print_json(w, &report);
    } else if (!s->quiet) {
        print_report(a, w, &report);
    }
    if (status == FGMM_OK) return CLI_DONE;
    if (status != FGMM_ERR_CANCELLED) return cli_failed(s, status);
    cli_say("cancelled after iteration %d", fgmm_model_iterations(w->model));
    return CLI_FAILED;
}

static int kmeans(const cli_command *self, const kmeans_args *a, fgmm_kmeans_options *o, kmeans_work *w) {
    int rc = cli_inputs_open(&a->session, &w->in, a->data, a->compute.format, a->weights, a->init);
    if (rc != CLI_DONE) return rc;
    int64_t n = fgmm_rows_count(w->in.rows), k = w->in.start ? fgmm_model_components(w->in.start) : a->k;
    const cli_files inputs = {{a->data, a->weights}};
    if (a->output) {
        double bytes = cli_model_bytes(FGMM_SPHERICAL, k, fgmm_rows_features(w->in.rows));
        rc = cli_check_output(self, a->output, ".npz", bytes, inputs);
    }
    if (rc == CLI_DONE && a->labels) {
        rc = cli_check_output(self, a->labels, ".npy", 4.0 * (double)n + 4096.0, inputs);
        if (rc == CLI_DONE && !(w->labels = cli_alloc(n, sizeof *w->labels, "labels"))) rc = CLI_FAILED;
    }
    if (rc == CLI_DONE && !(w->counts = cli_alloc(k, sizeof *w->counts, "counts"))) rc = CLI_FAILED;
    if (rc != CLI_DONE) return rc;
    o->init_model = w->in.start;
    return kmeans_and_save(a, o, w);
}

static int run(const cli_command *self, int argc, char **argv) {
    kmeans_args a = {.init = "kmeans++", .tol = NAN};
    const cli_option options[] = {
        {"components", 'k', CLI_INT64, &a.k, 1, 9e15, "K", "number of means"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "MODEL.npz",
         "where the means go: a mixture that predict gives the nearest mean of"},
        {"labels", 0, CLI_TEXT, &a.labels, 0, 0, "L.npy", "also write the nearest mean of each row, as int32"},
        {"init", 0, CLI_TEXT, &a.init, 0, 0, "NAME|MODEL.npz", CLI_INIT_HELP},
        {"init-sample", 0, CLI_INT64, &a.init_sample, 1, 9e15, "N", "rows that seeding looks at"},
        {"n-init", 0, CLI_INT, &a.n_init, 1, 1e6, "N", "restarts, the smallest inertia is kept (default 1)"},
        {"max-iter", 0, CLI_INT, &a.max_iter, 1, 1e9, "N", "iterations at most (default 300)"},
        {"tol", 0, CLI_REAL, &a.tol, 0, 1e300, "T",
         "stop when the squared moves of the means sum to no more than this much of the features' mean variance "
         "(default "
         "1e-4; 0: when nothing moves)"},
        {"seed", 0, CLI_SEED, &a.seed, 0, 0, "S", "default 0"},
        {"weights", 0, CLI_TEXT, &a.weights, 0, 0, "W.npy", "a weight for each row"},
        {"keep-empty", 0, CLI_FLAG, &a.keep_empty, 0, 0, 0, "means without rows stay; they move to far rows otherwise"},
        CLI_LOG_OPTION(&a.session),
        CLI_COMPUTE_OPTIONS(&a.compute),
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    fgmm_kmeans_options o = FGMM_KMEANS_OPTIONS_INIT;
    rc = cli_parse_init(self, a.init, &o.init);
    if (rc != CLI_GO_ON) return rc;
    if (!a.k && !cli_is_model(a.init)) return cli_usage(self, "-k, the number of means, is missing");
    o.n_components = a.k;
    o.init_sample = a.init_sample;
    o.n_init = a.n_init;
    o.max_iter = a.max_iter;
    o.tol = cli_zero_is_off(a.tol);
    o.seed = a.seed;
    o.keep_empty = a.keep_empty;
    o.compute = cli_compute_options(&a.compute);

    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    kmeans_work w = {0};
    rc = cli_log_open(self, &a.session, (cli_files){{a.data, a.weights, a.output, a.labels, a.init}});
    if (rc == CLI_DONE) rc = kmeans(self, &a, &o, &w);
    fgmm_model_free(a.session.ctx, w.model);
    cli_inputs_free(&a.session, &w.in);
    free(w.counts);
    free(w.labels);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_kmeans = {
    .name = "kmeans",
    .summary = "k-means: hard assignment by the same engine",
    .usage = "DATA -k K [-o MODEL.npz] [--labels L.npy] [OPTION]...",
    .example = "  flashgmm kmeans digits.npy -k 10 --n-init 3 -o means.npz --labels labels.npy\n",
    .operands = 1,
    .run = run,
};
