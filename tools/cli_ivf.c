#include "cli_ivf.h"

#include <math.h>
#include <string.h>

int cli_metric(const fgmm_rows *rows, int *metric) {
    static const struct {
        const char *name;
        fgmm_metric metric;
    } named[] = {{"", FGMM_L2},
                 {"euclidean", FGMM_L2},
                 {"l2", FGMM_L2},
                 {"angular", FGMM_ANGULAR},
                 {"cosine", FGMM_ANGULAR},
                 {"inner_product", FGMM_INNER_PRODUCT},
                 {"dot", FGMM_INNER_PRODUCT},
                 {"ip", FGMM_INNER_PRODUCT}};
    if (*metric != CLI_METRIC_UNSAID) return CLI_DONE;
    const char *name = fgmm_rows_metric(rows);
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (strcmp(name, named[i].name) == 0) *metric = (int)named[i].metric;
    if (*metric != CLI_METRIC_UNSAID) return CLI_DONE;
    cli_say("the data's file names the distance '%s', which is not known here: give --metric", name);
    return CLI_FAILED;
}

double cli_index_bytes(const fgmm_rows *rows, int64_t lists, int max_lists) {
    double n = (double)fgmm_rows_count(rows), d = (double)fgmm_rows_features(rows);
    double row = d * (double)fgmm_dtype_size(fgmm_rows_type(rows)) + 8, link = max_lists > 2 ? 4.0 * max_lists : 8.0;
    return n * (row + link * (max_lists - 1)) + (double)lists * (8 * d + 32) + 65536;
}

void cli_print_index(const cli_session *s, const fgmm_ivf_info *info) {
    if (s->quiet) return;
    double n = info->n_rows > 0 ? (double)info->n_rows : 1;
    printf("index       %lld rows x %lld features, %s, %s\n", (long long)info->n_rows, (long long)info->n_features,
           cli_dtype_name(info->type), fgmm_metric_name(info->metric));
    printf("lists       %lld, %lld empty, the longest of %lld entries\n", (long long)info->n_lists,
           (long long)info->n_empty, (long long)info->longest);
    printf("rule        %s, at most %d lists a row, %.4g on average\n", fgmm_ivf_rule_name(info->rule), info->max_lists,
           (double)info->n_entries / n);
    printf("memory      %.1f bytes a row, %.4f of what single lists take\n", info->bytes_per_row,
           info->single_bytes_per_row > 0 ? info->bytes_per_row / info->single_bytes_per_row : 1);
    if (info->calibrated_k) printf("calibrated  for the %d nearest\n", info->calibrated_k);
}

void cli_json_index(json_out *j, const fgmm_ivf_info *info) {
    json_int(j, "n_rows", info->n_rows);
    json_int(j, "n_features", info->n_features);
    json_int(j, "n_lists", info->n_lists);
    json_int(j, "n_entries", info->n_entries);
    json_int(j, "n_empty", info->n_empty);
    json_int(j, "longest", info->longest);
    json_text(j, "type", cli_dtype_name(info->type));
    json_text(j, "metric", fgmm_metric_name(info->metric));
    json_text(j, "rule", fgmm_ivf_rule_name(info->rule));
    json_int(j, "max_lists", info->max_lists);
    json_int(j, "list_max", info->list_max);
    json_real(j, "threshold", info->threshold);
    json_real(j, "lambda", info->lambda);
    json_real(j, "bytes_per_row", info->bytes_per_row);
    json_real(j, "single_bytes_per_row", info->single_bytes_per_row);
    json_int(j, "calibrated_k", info->calibrated_k);
}

int cli_truth(const cli_session *s, const char *path, int64_t n, int64_t k, int64_t rows, int64_t *out) {
    fgmm_neighbors *found = NULL;
    int rc = CLI_DONE;
    fgmm_status status = fgmm_neighbors_load(s->ctx, &found, path, NULL);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (found->n < n || found->k < k) {
        cli_say("%s: %lld neighbours of %lld queries, where %lld of %lld are wanted", path, (long long)found->k,
                (long long)found->n, (long long)k, (long long)n);
        rc = CLI_FAILED;
    }
    for (int64_t i = 0; i < n * k && rc == CLI_DONE; i++) {
        out[i] = found->ids[i / k * found->k + i % k];
        if (out[i] < rows) continue;
        cli_say("%s: query %lld has row %lld for a neighbour, where there are %lld rows", path, (long long)(i / k),
                (long long)out[i], (long long)rows);
        rc = CLI_FAILED;
    }
    fgmm_neighbors_free(s->ctx, found);
    return rc;
}

double cli_recall(const int64_t *found, const int64_t *truth, int64_t queries, int64_t k) {
    int64_t hits = 0, there = 0;
    for (int64_t q = 0; q < queries; q++, found += k, truth += k)
        for (int64_t i = 0; i < k && truth[i] >= 0; i++) {
            there++;
            for (int64_t j = 0; j < k; j++)
                if (found[j] == truth[i]) {
                    hits++;
                    break;
                }
        }
    return there > 0 ? (double)hits / (double)there : NAN;
}
