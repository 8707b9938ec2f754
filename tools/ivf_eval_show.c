/* Table, JSON and picture of `flashgmm ivf eval`. */
#include "ivf_eval.h"

#include <errno.h>
#include <string.h>

const char *eval_case_name(const eval_case *c) {
    static char name[128];
    int used = snprintf(name, sizeof name, "%s %lld, %s", fgmm_ivf_method_name((fgmm_ivf_method)c->method),
                        (long long)c->lists, fgmm_ivf_rule_name((fgmm_ivf_rule)c->rule));
    if (c->rule == FGMM_IVF_RESPONSIBILITY && c->budget == 0)
        used += snprintf(name + used, sizeof name - (size_t)used, " 1/K");
    if (c->budget > 0) used += snprintf(name + used, sizeof name - (size_t)used, " m=%g", c->budget);
    snprintf(name + used, sizeof name - (size_t)used, "%s", c->adaptive ? ", adaptive" : "");
    return name;
}

void eval_print(const eval_table *t) {
    printf("%s: %lld rows x %lld features, %s; recall of the %lld nearest; %lld queries, tuned on one half and told of "
           "the other; %d seed%s\n",
           t->data, (long long)t->rows, (long long)t->features, t->metric, (long long)t->k, (long long)t->queries,
           t->seeds, t->seeds > 1 ? "s" : "");
    printf("Distances a query: 'once' counts a row once, 'dup.' as often as a probed list holds it; '+K' counts the "
           "centroids too.\n'fewer' is how many times fewer than the first line's, without and with centroids (rows "
           "once); '+-' the\nstandard error of the paired difference, in distances.\n");
    for (int r = 0; r < t->n_recalls; r++) {
        printf("\nrecall %.3g asked for\n%-42s %6s %7s %8s %8s %8s %8s %7s %6s %6s %6s %9s\n", t->recalls[r], "",
               "lists", "recall", "once", "dup.", "once+K", "dup.+K", "probes", "fewer", "+K", "+-", "queries/s");
        const eval_result *base = &t->cases[0].at[r];
        double base_lists = (double)t->cases[0].lists;
        for (int i = 0; i < t->n_cases; i++) {
            const eval_case *c = &t->cases[i];
            const eval_result *e = &c->at[r];
            double lists = (double)c->lists;
            printf("%-42s %6.3f %7.4f %8.0f %8.0f %8.0f %8.0f %7.1f %6.2f %6.2f %6.0f", eval_case_name(c),
                   c->lists_per_row, e->recall, e->rows, e->entries, e->rows + lists, e->entries + lists, e->probes,
                   base->rows / e->rows, (base->rows + base_lists) / (e->rows + lists), e->less_error);
            if (e->queries_per_second > 0)
                printf(" %9.0f\n", e->queries_per_second);
            else
                printf(" %9s\n", "-");
        }
    }
}

static void json_case(json_out *j, const eval_table *t, const eval_case *c) {
    json_object(j);
    json_text(j, "method", fgmm_ivf_method_name((fgmm_ivf_method)c->method));
    json_int(j, "n_lists", c->lists);
    json_text(j, "rule", fgmm_ivf_rule_name((fgmm_ivf_rule)c->rule));
    json_real(j, "budget", c->budget > 0 ? c->budget : 1);
    json_real(j, "lists_per_row", c->lists_per_row);
    json_bool(j, "adaptive", c->adaptive);
    json_array(j, "at");
    for (int r = 0; r < t->n_recalls; r++) {
        const eval_result *e = &c->at[r];
        json_object(j);
        json_real(j, "target", t->recalls[r]);
        json_real(j, "recall", e->recall);
        json_real(j, "recall_error", e->recall_error);
        json_real(j, "distances", e->rows);
        json_real(j, "entries", e->entries);
        json_real(j, "centroid_distances", (double)c->lists);
        json_real(j, "probes", e->probes);
        json_real(j, "fewer_than_baseline", e->less);
        json_real(j, "fewer_error", e->less_error);
        if (e->queries_per_second > 0) json_real(j, "queries_per_second", e->queries_per_second);
        json_close(j, '}');
    }
    json_close(j, ']');
    json_array(j, "curve");
    for (int p = 0; p < EVAL_POINTS; p++) {
        json_object(j);
        json_real(j, "recall", c->curve_recall[p]);
        json_real(j, "distances", c->curve_rows[p]);
        json_real(j, "entries", c->curve_entries[p]);
        json_close(j, '}');
    }
    json_close(j, ']');
    json_close(j, '}');
}

void eval_json(const eval_table *t) {
    json_out j = json_begin(stdout);
    json_text(&j, "data", t->data);
    json_text(&j, "metric", t->metric);
    json_int(&j, "n_rows", t->rows);
    json_int(&j, "n_features", t->features);
    json_int(&j, "n_queries", t->queries);
    json_int(&j, "k", t->k);
    json_int(&j, "seeds", t->seeds);
    json_text(&j, "distances", "each row once a query, without centroids");
    json_text(&j, "entries", "rows as often as a probed list holds them, without centroids");
    json_array(&j, "cases");
    for (int i = 0; i < t->n_cases; i++) json_case(&j, t, &t->cases[i]);
    json_close(&j, ']');
    json_end(&j);
}

static void write_script(FILE *f, const eval_table *t, const char *path) {
    fprintf(f, "set terminal %s\n", cli_ends_with(path, ".svg") ? "svg size 900,600" : "pngcairo size 1000,650");
    if (!cli_ends_with(path, ".gp")) fprintf(f, "set output '%s'\n", path);
    for (int i = 0; i < t->n_cases; i++) {
        const eval_case *c = &t->cases[i];
        fprintf(f, "$case%d << EOD\n", i);
        for (int p = 0; p < EVAL_POINTS; p++)
            fprintf(f, "%.1f %.6f\n", c->curve_rows[p] + (double)c->lists, c->curve_recall[p]);
        fputs("EOD\n", f);
    }
    fprintf(f,
            "set title \"%lld x %lld, %s: recall of the %lld nearest\"\nset xlabel 'distances a query, centroids "
            "counted, duplicates not'\nset ylabel 'recall'\nset logscale x\nset grid\nset key bottom right\nplot ",
            (long long)t->rows, (long long)t->features, t->metric, (long long)t->k);
    for (int i = 0; i < t->n_cases; i++)
        fprintf(f, "%s$case%d using 1:2 with lines %s lw 2 title '%s'", i ? ", \\\n     " : "", i,
                t->cases[i].adaptive ? "" : "dashtype 2", eval_case_name(&t->cases[i]));
    fputc('\n', f);
}

int eval_picture(const eval_table *t, const char *path) {
    int is_script = cli_ends_with(path, ".gp");
    FILE *f = is_script ? fopen(path, "w") : popen("gnuplot", "w");
    if (!f) {
        cli_say("cannot %s: %s", is_script ? "write the script" : "run gnuplot", strerror(errno));
        return CLI_FAILED;
    }
    write_script(f, t, path);
    int failed = ferror(f), closed = is_script ? fclose(f) : pclose(f);
    if (failed || closed != 0) {
        cli_say("cannot write '%s'%s", path, is_script ? "" : ": is gnuplot installed?");
        return CLI_FAILED;
    }
    return CLI_DONE;
}
