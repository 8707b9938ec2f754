/* flashgmm ivf search: the nearest rows of queries, by an index or exactly. */
#include "cli_ivf.h"

#include <stdlib.h>
#include <string.h>

typedef struct search_args {
    cli_session session;
    const char *queries, *format, *index, *data, *truth, *output;
    int metric;
    int64_t k, n_probe;
    double gap, recall;
} search_args;

typedef struct search_work {
    fgmm_rows *queries, *data;
    fgmm_ivf *index;
    int64_t *ids, *truth;
    float *distances;
    fgmm_metric metric;
    fgmm_ivf_counts counts;
    double seconds, copy_seconds, recall;
} search_work;

static int is_npz(const char *path) {
    return cli_ends_with(path, ".npz");
}

/* The ending that an output must have: one of those there are, and .npz where it has another. */
static const char *ending_of(const char *path) {
    static const char *const endings[] = {".ivecs", ".ibin", ".npy", ".hdf5"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (cli_ends_with(path, endings[i])) return endings[i];
    return ".npz";
}

static void report_done(const search_args *a, const search_work *w) {
    double n = (double)fgmm_rows_count(w->queries);
    if (a->session.json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_queries", fgmm_rows_count(w->queries));
        json_int(&j, "k", a->k);
        json_text(&j, "device", fgmm_context_device(a->session.ctx));
        json_real(&j, "seconds", w->seconds);
        if (w->copy_seconds > 0) json_real(&j, "seconds_to_copy_the_index", w->copy_seconds);
        json_real(&j, "queries_per_second", n / w->seconds);
        if (w->index) {
            json_real(&j, "probes", (double)w->counts.probes / n);
            json_real(&j, "distances", (double)w->counts.distances / n);
            json_real(&j, "entries", (double)w->counts.entries / n);
            json_real(&j, "centroid_distances", (double)w->counts.centroid_distances / n);
        }
        if (w->truth) json_real(&j, "recall", w->recall);
        json_end(&j);
    } else if (!a->session.quiet) {
        printf("queries     %.0f, the %lld nearest of each\n", n, (long long)a->k);
        if (w->index)
            printf("a query     %.1f lists, %.0f distances (%.0f with duplicates), %.0f to centroids\n",
                   (double)w->counts.probes / n, (double)w->counts.distances / n, (double)w->counts.entries / n,
                   (double)w->counts.centroid_distances / n);
        if (w->truth) printf("recall      %.4f\n", w->recall);
        if (w->copy_seconds > 0)
            printf("device      %s, the index copied there in %.3f s\n", fgmm_context_device(a->session.ctx),
                   w->copy_seconds);
        printf("time        %.3f s, %.0f queries a second\n", w->seconds, n / w->seconds);
    }
}

/* By the index: on the device where one was asked for, which takes a copy of the index first. */
static fgmm_status find_by_index(const search_args *a, search_work *w) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_status status = FGMM_OK;
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    o.n_probe = a->n_probe;
    o.gap = a->gap;
    o.target_recall = a->recall;
    double began = cli_now();
    /* A context says what it was opened on at once only where that was named. */
    if (strncmp(fgmm_context_device(ctx), "opencl", 6) == 0) {
        fgmm_ivf_searcher *searcher = NULL;
        status = fgmm_ivf_searcher_create(ctx, &searcher, w->index);
        w->copy_seconds = cli_now() - began;
        began = cli_now();
        if (status == FGMM_OK)
            status = fgmm_ivf_searcher_search(ctx, searcher, w->queries, a->k, &o, w->ids, w->distances, &w->counts);
        fgmm_ivf_searcher_free(ctx, searcher);
    } else {
        status = fgmm_ivf_search(ctx, w->index, w->queries, a->k, &o, w->ids, w->distances, &w->counts);
    }
    w->seconds = cli_now() - began;
    return status;
}

static fgmm_status find(const search_args *a, search_work *w) {
    fgmm_context *ctx = a->session.ctx;
    if (w->index) {
        fgmm_ivf_info info;
        fgmm_ivf_describe(w->index, &info);
        w->metric = info.metric;
        fgmm_status status = find_by_index(a, w);
        if (status == FGMM_OK && w->truth && !a->truth)
            status = fgmm_exact_search(ctx, w->data, w->queries, w->metric, a->k, w->truth, NULL);
        return status;
    }
    w->metric = (fgmm_metric)a->metric;
    double began = cli_now();
    fgmm_status status = fgmm_exact_search(ctx, w->data, w->queries, w->metric, a->k, w->ids, w->distances);
    w->seconds = cli_now() - began;
    return status;
}

/* Both arrays in an .npz file; else what the format of neighbours that the ending names has room for. */
static fgmm_status write_found(const search_args *a, const search_work *w, int64_t n) {
    if (is_npz(a->output)) {
        fgmm_array arrays[] = {{"ids", FGMM_I64, 2, {n, a->k, 0}, w->ids},
                               {"distances", FGMM_F32, 2, {n, a->k, 0}, w->distances}};
        return fgmm_arrays_save(a->session.ctx, a->output, arrays, 2);
    }
    /* Of the names that ann-benchmarks has, the one whose distances these are: its euclidean ones are not squared. */
    const char *metric = w->metric == FGMM_ANGULAR ? "angular" : NULL;
    const fgmm_neighbors found = {n, a->k, w->ids, w->distances, metric};
    return fgmm_neighbors_save(a->session.ctx, a->output, &found);
}

static int search(const cli_command *self, search_args *a, search_work *w) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, &w->queries, a->queries, a->format);
    if (status == FGMM_OK && a->index) status = fgmm_ivf_load(s->ctx, &w->index, a->index);
    if (status == FGMM_OK && a->data) status = fgmm_rows_open(s->ctx, &w->data, a->data, NULL);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (w->data && !w->index && cli_metric(w->data, &a->metric) != CLI_DONE) return CLI_FAILED;
    int64_t n = fgmm_rows_count(w->queries);
    if (a->output) {
        int rc = cli_check_output(self, a->output, ending_of(a->output), (double)n * (double)a->k * 12.0 + 4096.0,
                                  (cli_files){{a->queries, a->index, a->data, a->truth}});
        if (rc != CLI_DONE) return rc;
    }
    if (!(w->ids = cli_alloc(n * a->k, sizeof *w->ids, "ids"))) return CLI_FAILED;
    if (!(w->distances = cli_alloc(n * a->k, sizeof *w->distances, "distances"))) return CLI_FAILED;
    if (a->truth || (a->index && a->data))
        if (!(w->truth = cli_alloc(n * a->k, sizeof *w->truth, "true ids"))) return CLI_FAILED;
    if (a->truth) {
        int rc = cli_truth(s, a->truth, n, a->k, INT64_MAX, w->truth);
        if (rc != CLI_DONE) return rc;
    }
    status = find(a, w);
    if (status == FGMM_OK && w->truth) w->recall = cli_recall(w->ids, w->truth, n, a->k);
    if (status == FGMM_OK && a->output) status = write_found(a, w, n);
    progress_wipe();
    if (status != FGMM_OK) return cli_failed(s, status);
    report_done(a, w);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv) {
    search_args a = {.metric = CLI_METRIC_UNSAID, .k = 10};
    const cli_option options[] = {
        {"index", 'i', CLI_TEXT, &a.index, 0, 0, "INDEX.ivf", "the index to search"},
        {"exact", 0, CLI_TEXT, &a.data, 0, 0, "DATA",
         "rows to search one by one; beside an index: what it was built over, to tell the recall"},
        {"neighbours", 'k', CLI_INT64, &a.k, 1, 1048576, "N", "nearest rows of a query (default 10)"},
        {"nprobe", 0, CLI_INT64, &a.n_probe, 1, 9e15, "N", "lists a query, at most where there is a gap (default 1)"},
        {"gap", 0, CLI_REAL, &a.gap, 1e-300, 1e300, "G",
         "probe the lists no farther than this beyond the nearest, in squared distance"},
        {"recall", 0, CLI_REAL, &a.recall, 1e-3, 0.9999, "R", "the gap that gave this recall in calibration"},
        {"metric", 0, CLI_CHOICE, &a.metric, 0, 0, CLI_METRICS,
         "without an index (default: the one that DATA names, or l2)"},
        {"truth", 0, CLI_TEXT, &a.truth, 0, 0, "FILE",
         "the true neighbours, to tell the recall: .ivecs, .ibin, .npy or HDF5"},
        {"output", 'o', CLI_TEXT, &a.output, 0, 0, "OUT.npz",
         "where ids [n, N] and distances go; also .ivecs, .ibin, .npy, .hdf5"},
        {"format", 0, CLI_TEXT, &a.format, 0, 0, "NAME",
         "of the queries: npy, fvecs, bvecs, fbin, u8bin, i8bin or hdf5"},
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.queries);
    if (rc != CLI_GO_ON) return rc;
    if (!a.index && !a.data) return cli_usage(self, "-i, the index, is missing, or --exact, the rows");
    if (!a.index && (a.n_probe || a.gap > 0 || a.recall > 0))
        return cli_usage(self, "--nprobe, --gap and --recall need an index");
    if (a.gap > 0 && a.recall > 0) return cli_usage(self, "--gap or --recall: choose one");
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    search_work w = {0};
    rc = search(self, &a, &w);
    free(w.ids);
    free(w.truth);
    free(w.distances);
    fgmm_ivf_free(a.session.ctx, w.index);
    fgmm_rows_free(a.session.ctx, w.data);
    fgmm_rows_free(a.session.ctx, w.queries);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_ivf_search = {
    .name = "ivf search",
    .summary = "the nearest rows of queries, by an index or exactly",
    .usage = "QUERIES -i INDEX.ivf [-k N] [-o OUT.npz] [OPTION]...",
    .example = "  flashgmm ivf search queries.npy -i base.ivf --recall 0.95 -o found.npz\n"
               "  flashgmm ivf search queries.npy --exact base.npy --metric angular -o truth.npz\n",
    .operands = 1,
    .run = run,
};
