/* flashgmm info: what a data, model, statistics, partial-fit, neighbours or index file holds. */
#include "cli_ivf.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct info_args {
    cli_session session;
    const char *path, *format;
} info_args;

static void range(const double *v, int64_t n, double *low, double *high) {
    *low = *high = v[0];
    for (int64_t i = 1; i < n; i++) {
        if (v[i] < *low) *low = v[i];
        if (v[i] > *high) *high = v[i];
    }
}

static void print_model(const info_args *a, const fgmm_model *m) {
    int64_t k = fgmm_model_components(m), d = fgmm_model_features(m);
    const char *type = fgmm_covariance_name(fgmm_model_covariance_type(m));
    double weight_low, weight_high, low, high;
    range(fgmm_model_weights(m), k, &weight_low, &weight_high);
    range(fgmm_model_covariances(m), fgmm_model_covariances_size(m), &low, &high);
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "model");
        json_text(&j, "covariance_type", type);
        json_int(&j, "n_components", k);
        json_int(&j, "n_features", d);
        json_int(&j, "n_parameters", fgmm_model_parameters(m));
        json_real(&j, "weight_min", weight_low);
        json_real(&j, "weight_max", weight_high);
        json_real(&j, "covariance_min", low);
        json_real(&j, "covariance_max", high);
        json_int(&j, "n_iter", fgmm_model_iterations(m));
        json_bool(&j, "converged", fgmm_model_converged(m));
        json_real(&j, "lower_bound", fgmm_model_lower_bound(m));
        json_end(&j);
        return;
    }
    printf("model       %lld components x %lld features, %s, %lld free parameters\n", (long long)k, (long long)d, type,
           (long long)fgmm_model_parameters(m));
    printf("weights     %.6g .. %.6g\ncovariances %.6g .. %.6g\n", weight_low, weight_high, low, high);
    double bound = fgmm_model_lower_bound(m);
    if (bound == bound) { /* not NaN: it was fitted */
        printf("fit         %d iterations, %s, %.10g nats a row\n", fgmm_model_iterations(m),
               fgmm_model_converged(m) ? "converged" : "not converged", bound);
    }
}

static void print_stats(const info_args *a, const fgmm_stats *stats) {
    fgmm_stats_view v;
    fgmm_stats_export(stats, &v);
    double bound = v.weight > 0 ? v.log_likelihood / v.weight : 0;
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "statistics");
        json_text(&j, "covariance_type", fgmm_covariance_name(v.covariance_type));
        json_int(&j, "n_components", v.k);
        json_int(&j, "n_features", v.d);
        json_real(&j, "n_rows", v.rows);
        json_real(&j, "weight", v.weight);
        json_real(&j, "log_likelihood", bound);
        json_end(&j);
        return;
    }
    printf("statistics  of %.10g rows, weight %.10g, %.10g nats a row\n", v.rows, v.weight, bound);
    printf("model       %lld components x %lld features, %s\n", (long long)v.k, (long long)v.d,
           fgmm_covariance_name(v.covariance_type));
}

static void print_online(const info_args *a, const fgmm_online *online) {
    const fgmm_model *m = fgmm_online_model(online);
    const char *type = fgmm_covariance_name(fgmm_model_covariance_type(m));
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "partial fit");
        json_text(&j, "covariance_type", type);
        json_int(&j, "n_components", fgmm_model_components(m));
        json_int(&j, "n_features", fgmm_model_features(m));
        json_int(&j, "n_steps", fgmm_online_steps(online));
        json_real(&j, "lower_bound", fgmm_model_lower_bound(m));
        json_end(&j);
        return;
    }
    printf("partial fit after %lld steps, %.10g nats a row\n", (long long)fgmm_online_steps(online),
           fgmm_model_lower_bound(m));
    printf("model       %lld components x %lld features, %s\n", (long long)fgmm_model_components(m),
           (long long)fgmm_model_features(m), type);
}

static int64_t file_bytes(const char *path) {
    struct stat file;
    return stat(path, &file) == 0 ? (int64_t)file.st_size : -1; /* PATH:DATASET is no file name */
}

/* The parts of an HDF5 file beside its rows; NULL for what is not there. */
typedef struct rows_company {
    fgmm_rows *queries;
    fgmm_neighbors *neighbors;
} rows_company;

static void print_rows(const info_args *a, const fgmm_rows *rows, const rows_company *beside) {
    long long bytes = file_bytes(a->path), n = fgmm_rows_count(rows), d = fgmm_rows_features(rows);
    const char *type = cli_dtype_name(fgmm_rows_type(rows)), *metric = fgmm_rows_metric(rows);
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "data");
        json_text(&j, "type", type);
        json_int(&j, "n_rows", n);
        json_int(&j, "n_features", d);
        if (*metric) json_text(&j, "metric", metric);
        if (beside->queries) json_int(&j, "n_queries", fgmm_rows_count(beside->queries));
        if (beside->neighbors) json_int(&j, "n_neighbors", beside->neighbors->k);
        json_int(&j, "file_bytes", bytes);
        json_end(&j);
        return;
    }
    printf("data        %lld rows x %lld features, %s", n, d, type);
    if (*metric) printf(", %s", metric);
    if (bytes >= 0) printf(", %lld bytes", bytes);
    printf("\n");
    if (beside->queries)
        printf("queries     %lld x %lld features, %s\n", (long long)fgmm_rows_count(beside->queries),
               (long long)fgmm_rows_features(beside->queries), cli_dtype_name(fgmm_rows_type(beside->queries)));
    if (beside->neighbors)
        printf("neighbours  %lld of each of %lld queries%s\n", (long long)beside->neighbors->k,
               (long long)beside->neighbors->n, beside->neighbors->distances ? ", with distances" : "");
}

static void print_neighbors(const info_args *a, const fgmm_neighbors *found) {
    int64_t low = INT64_MAX, high = -1, missing = 0;
    for (int64_t i = 0; i < found->n * found->k; i++) {
        missing += found->ids[i] < 0;
        if (found->ids[i] >= 0 && found->ids[i] < low) low = found->ids[i];
        if (found->ids[i] > high) high = found->ids[i];
    }
    if (high < 0) low = -1;
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "neighbours");
        json_int(&j, "n_queries", found->n);
        json_int(&j, "n_neighbors", found->k);
        json_bool(&j, "distances", found->distances != NULL);
        if (*found->metric) json_text(&j, "metric", found->metric);
        json_int(&j, "id_min", low);
        json_int(&j, "id_max", high);
        json_int(&j, "n_missing", missing);
        json_int(&j, "file_bytes", file_bytes(a->path));
        json_end(&j);
        return;
    }
    printf("neighbours  %lld of each of %lld queries, %s distances", (long long)found->k, (long long)found->n,
           found->distances ? "with" : "without");
    if (*found->metric) printf(", %s", found->metric);
    printf("\nids         %lld .. %lld", (long long)low, (long long)high);
    if (missing) printf(", and %lld times none", (long long)missing);
    printf("\n");
}

static int info_npz(const info_args *a) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_model *model = NULL;
    fgmm_stats *stats = NULL;
    fgmm_online *online = NULL;
    if (fgmm_online_load(ctx, &online, a->path, NULL) == FGMM_OK) {
        print_online(a, online);
        fgmm_online_free(ctx, online);
        return CLI_DONE;
    }
    if (fgmm_stats_load(ctx, &stats, a->path) == FGMM_OK) {
        print_stats(a, stats);
        fgmm_stats_free(ctx, stats);
        return CLI_DONE;
    }
    fgmm_status status = fgmm_model_load(ctx, &model, a->path);
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    print_model(a, model);
    fgmm_model_free(ctx, model);
    return CLI_DONE;
}

static int info_neighbors(const info_args *a) {
    fgmm_neighbors *found = NULL;
    fgmm_status status = fgmm_neighbors_load(a->session.ctx, &found, a->path, a->format);
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    print_neighbors(a, found);
    fgmm_neighbors_free(a->session.ctx, found);
    return CLI_DONE;
}

static int is_hdf5(const info_args *a) {
    return a->format ? strcmp(a->format, "hdf5") == 0
                     : cli_ends_with(a->path, ".hdf5") || cli_ends_with(a->path, ".h5");
}

/* What ann-benchmarks puts beside the rows; a file without is as good. */
static void find_company(const info_args *a, rows_company *out) {
    size_t room = strlen(a->path) + sizeof ":test";
    char *queries = cli_alloc((int64_t)room, 1, "a name");
    if (!queries) return;
    snprintf(queries, room, "%s:test", a->path);
    if (fgmm_rows_open(a->session.ctx, &out->queries, queries, "hdf5") != FGMM_OK) out->queries = NULL;
    if (fgmm_neighbors_load(a->session.ctx, &out->neighbors, a->path, "hdf5") != FGMM_OK) out->neighbors = NULL;
    free(queries);
}

static int info_index(const info_args *a) {
    fgmm_ivf *index = NULL;
    fgmm_ivf_info info;
    fgmm_status status = fgmm_ivf_load(a->session.ctx, &index, a->path);
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    fgmm_ivf_describe(index, &info);
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_text(&j, "kind", "index");
        cli_json_index(&j, &info);
        json_end(&j);
    } else {
        cli_print_index(&a->session, &info);
    }
    fgmm_ivf_free(a->session.ctx, index);
    return CLI_DONE;
}

static int info_rows(const info_args *a) {
    fgmm_rows *rows = NULL;
    fgmm_neighbors *found = NULL;
    rows_company beside = {NULL, NULL};
    fgmm_status status = fgmm_rows_open(a->session.ctx, &rows, a->path, a->format);
    if (status == FGMM_ERR_FORMAT) { /* integers in an .npy or HDF5 file are no rows, but may be ids */
        char why[1024];
        snprintf(why, sizeof why, "%s", fgmm_context_message(a->session.ctx));
        if (fgmm_neighbors_load(a->session.ctx, &found, a->path, a->format) != FGMM_OK) {
            cli_say("%s", why);
            return CLI_FAILED;
        }
        print_neighbors(a, found);
        fgmm_neighbors_free(a->session.ctx, found);
        return CLI_DONE;
    }
    if (status != FGMM_OK) return cli_failed(&a->session, status);
    if (is_hdf5(a)) find_company(a, &beside);
    print_rows(a, rows, &beside);
    fgmm_neighbors_free(a->session.ctx, beside.neighbors);
    fgmm_rows_free(a->session.ctx, beside.queries);
    fgmm_rows_free(a->session.ctx, rows);
    return CLI_DONE;
}

/* Whether the format, or else the ending, is one that neighbours alone have. */
static int holds_neighbors(const info_args *a) {
    if (a->format) return strcmp(a->format, "ivecs") == 0 || strcmp(a->format, "ibin") == 0;
    return cli_ends_with(a->path, ".ivecs") || cli_ends_with(a->path, ".ibin");
}

static int run(const cli_command *self, int argc, char **argv) {
    info_args a = {.session.device = "cpu"};
    const cli_option options[] = {
        {"format", 0, CLI_TEXT, &a.format, 0, 0, "NAME",
         "npy, fvecs, bvecs, fbin, u8bin, i8bin or hdf5; ivecs or ibin: neighbours"},
        {"json", 0, CLI_FLAG, &a.session.json, 0, 0, NULL, "print one JSON object on stdout"},
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.path);
    if (rc != CLI_GO_ON) return rc;
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    rc = holds_neighbors(&a)                          ? info_neighbors(&a)
         : !a.format && cli_ends_with(a.path, ".ivf") ? info_index(&a)
         : !a.format && cli_ends_with(a.path, ".npz") ? info_npz(&a)
                                                      : info_rows(&a);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_info = {
    .name = "info",
    .summary = "what a data, model, statistics, partial-fit, neighbours or index file holds",
    .usage = "FILE [--format NAME] [--json]",
    .example = "  flashgmm info digits.npz\n",
    .operands = 1,
    .run = run,
};
