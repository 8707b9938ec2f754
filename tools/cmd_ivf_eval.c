/* flashgmm ivf eval: rules side by side, at equal recall on the same queries. */
#include "ivf_eval.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef struct eval_args {
    cli_session session;
    const char *data, *format, *queries, *truth, *picture, *recalls_text, *budgets_text;
    int metric, seeds, speed, more_lists;
    unsigned methods, rules;
    int64_t lists, k, limit;
    double lambda;
    int n_budgets;
    double budgets[EVAL_BUDGETS];
} eval_args;

typedef struct eval_work {
    fgmm_rows *data, *all_queries, *queries;
    int64_t *truth;
    eval_table table;
} eval_work;

enum { BITS_KMEANS = 1u << FGMM_IVF_KMEANS, BITS_SINGLE = 1u << FGMM_IVF_SINGLE, CASES_MAX = 256 };

/* "1,1.5,2" @return how many, -1 after a message. */
static int read_list(const cli_command *self, const char *option, const char *text, double low, double high, int room,
                     double *out) {
    int n = 0;
    for (const char *c = text;; c++) {
        char *end;
        double value = strtod(c, &end);
        if (end == c || (*end && *end != ',') || !(value >= low && value <= high) || n == room) {
            cli_usage(self, "option --%s: '%s' is not a list of up to %d numbers from %g to %g", option, text, room,
                      low, high);
            return -1;
        }
        out[n++] = value;
        c = end;
        if (!*c) return n;
    }
}

/* ---- one case, one seed ---- */

static fgmm_ivf_assign_options rule_options(const eval_args *a, const eval_case *c) {
    fgmm_ivf_assign_options o = FGMM_IVF_ASSIGN_OPTIONS_INIT;
    o.metric = (fgmm_metric)a->metric;
    o.rule = (fgmm_ivf_rule)c->rule;
    o.max_lists = c->rule == FGMM_IVF_SINGLE ? 1 : 2;
    if (c->rule != FGMM_IVF_SINGLE && c->rule != FGMM_IVF_NEAREST) o.budget = c->budget;
    o.lambda = a->lambda;
    return o;
}

/* Queries a second of the setting, through an index: the best of three. Of fixed numbers of lists the larger. */
static fgmm_status measure(const eval_args *a, const eval_work *w, const fgmm_ivf *index, const ivf_setting *setting,
                           double *out) {
    int64_t n = fgmm_rows_count(w->queries);
    int64_t *ids = malloc((size_t)(n * a->k) * sizeof *ids);
    fgmm_ivf_search_options o = FGMM_IVF_SEARCH_OPTIONS_INIT;
    fgmm_status status = ids ? FGMM_OK : FGMM_ERR_MEMORY;
    double best = INFINITY;
    if (setting->adaptive)
        o.gap = fmax(setting->gap, 1e-30);
    else
        o.n_probe = setting->probes + (setting->more > 0);
    for (int i = 0; i < 3 && status == FGMM_OK; i++) {
        double began = cli_now();
        status = fgmm_ivf_search(a->session.ctx, index, w->queries, a->k, &o, ids, NULL, NULL);
        best = fmin(best, cli_now() - began);
    }
    free(ids);
    *out = (double)n / best;
    return status;
}

static void add_outcomes(const eval_args *a, const ivf_curve *curve, const ivf_setting *setting, eval_result *e) {
    int64_t n = curve->queries;
    double sum = 0, squares = 0, count = 0;
    for (int64_t q = 1; q < n; q += 2) {
        ivf_outcome o = ivf_curve_at(curve, setting, q);
        sum += o.found;
        squares += o.found * o.found;
        count++;
        e->rows += o.rows / (double)(n / 2) / a->seeds;
        e->entries += o.entries / (double)(n / 2) / a->seeds;
        e->probes += o.probes / (double)(n / 2) / a->seeds;
        e->rows_of[q] += o.rows / a->seeds;
    }
    e->recall += sum / count / a->seeds;
    e->recall_error += sqrt(fmax(0, squares / count - sum / count * (sum / count)) / count) / a->seeds;
}

static void add_curve(const eval_args *a, const ivf_curve *curve, eval_case *c) {
    for (int p = 0; p < EVAL_POINTS; p++) {
        /* Evenly in log(1 - recall), 0.7 to 0.995. */
        double recall = 1 - 0.3 * exp(log(0.005 / 0.3) * p / (EVAL_POINTS - 1)), n = (double)curve->queries;
        ivf_setting setting = ivf_curve_tune(curve, 2, recall, c->adaptive);
        for (int64_t q = 0; q < curve->queries; q++) {
            ivf_outcome o = ivf_curve_at(curve, &setting, q);
            c->curve_recall[p] += o.found / n / a->seeds;
            c->curve_rows[p] += o.rows / n / a->seeds;
            c->curve_entries[p] += o.entries / n / a->seeds;
        }
    }
}

/* Cases `first` and the one after it: fixed and adaptive probing of the same lists. */
static int run_pair(const eval_args *a, eval_work *w, const fgmm_model *model, eval_case *pair) {
    const cli_session *s = &a->session;
    fgmm_ivf_lists *lists = NULL;
    fgmm_ivf *index = NULL;
    ivf_curve curve = {0};
    fgmm_ivf_assign_options o = rule_options(a, pair);
    fgmm_ivf_options make = FGMM_IVF_OPTIONS_INIT;
    fgmm_status status = fgmm_ivf_assign(s->ctx, &lists, model, w->data, &o, NULL);
    if (status != FGMM_OK) return cli_failed(s, status);
    double per_row = (double)lists->n_entries / (double)lists->n_rows;
    int rc = ivf_curve_make(s, &curve, model, (fgmm_metric)a->metric, lists, w->queries, w->truth, a->k);
    fgmm_ivf_lists_free(s->ctx, lists);
    if (rc == CLI_DONE && a->speed) {
        make.metric = o.metric;
        make.rule = o.rule;
        make.max_lists = o.max_lists;
        make.budget = o.budget;
        make.lambda = o.lambda;
        status = fgmm_ivf_create(s->ctx, &index, model, &make);
        if (status == FGMM_OK) status = fgmm_ivf_add(s->ctx, index, w->data, NULL, NULL);
    }
    for (int i = 0; i < 2 && rc == CLI_DONE && status == FGMM_OK; i++) {
        pair[i].lists_per_row += per_row / a->seeds;
        for (int r = 0; r < w->table.n_recalls && status == FGMM_OK; r++) {
            ivf_setting setting = ivf_curve_tune(&curve, 0, w->table.recalls[r], pair[i].adaptive);
            double speed = 0;
            add_outcomes(a, &curve, &setting, &pair[i].at[r]);
            if (index) status = measure(a, w, index, &setting, &speed);
            pair[i].at[r].queries_per_second += speed / a->seeds;
        }
        add_curve(a, &curve, &pair[i]);
    }
    fgmm_ivf_free(s->ctx, index);
    ivf_curve_free(&curve);
    return rc != CLI_DONE || status == FGMM_OK ? rc : cli_failed(s, status);
}

/* ---- all cases ---- */

/* Cases come in pairs of fixed and adaptive probing. @return CLI_FAILED without memory. */
static int add_case(eval_work *w, int method, int64_t lists, int rule, double budget) {
    eval_table *t = &w->table;
    for (int i = 0; i < t->n_cases; i++)
        if (t->cases[i].method == method && t->cases[i].lists == lists && t->cases[i].rule == rule &&
            t->cases[i].budget == budget)
            return CLI_DONE;
    if (t->n_cases + 2 > CASES_MAX) return cli_say("more than %d cases", CASES_MAX), CLI_FAILED;
    for (int adaptive = 0; adaptive < 2; adaptive++) {
        eval_case *c = &t->cases[t->n_cases++];
        *c = (eval_case){.method = method, .rule = rule, .lists = lists, .budget = budget, .adaptive = adaptive};
        for (int r = 0; r < t->n_recalls; r++) {
            if (!(c->at[r].rows_of = cli_alloc(t->queries, sizeof(double), "distances of queries"))) return CLI_FAILED;
            memset(c->at[r].rows_of, 0, (size_t)t->queries * sizeof(double));
        }
    }
    return CLI_DONE;
}

/* The rules of a method; k-means with m times the lists for what the same number of entries would do. */
static int list_cases(const eval_args *a, eval_work *w) {
    int rc = add_case(w, FGMM_IVF_KMEANS, a->lists, FGMM_IVF_SINGLE, 0);
    for (int m = 0; m < a->n_budgets && a->more_lists && rc == CLI_DONE; m++)
        rc = add_case(w, FGMM_IVF_KMEANS, llround(a->budgets[m] * (double)a->lists), FGMM_IVF_SINGLE, 0);
    for (int method = 0; method <= FGMM_IVF_DIAG; method++)
        for (int rule = 0; rule <= FGMM_IVF_RAIR && (a->methods >> method & 1); rule++) {
            if (!(a->rules >> rule & 1)) continue;
            if (rule == FGMM_IVF_SINGLE || rule == FGMM_IVF_NEAREST) {
                if (rc == CLI_DONE) rc = add_case(w, method, a->lists, rule, 0);
                continue;
            }
            /* The paper's 1/K. */
            if (rule == FGMM_IVF_RESPONSIBILITY && rc == CLI_DONE) rc = add_case(w, method, a->lists, rule, 0);
            for (int m = 0; m < a->n_budgets && rc == CLI_DONE; m++)
                if (a->budgets[m] > 1) rc = add_case(w, method, a->lists, rule, a->budgets[m]);
        }
    return rc;
}

/* All cases of a method and number of lists under one seed. */
static int run_model(const eval_args *a, eval_work *w, int method, int64_t lists, int seed) {
    const cli_session *s = &a->session;
    fgmm_model *model = NULL;
    fgmm_ivf_train_options o = FGMM_IVF_TRAIN_OPTIONS_INIT;
    int rc = CLI_DONE;
    o.n_lists = lists;
    o.metric = (fgmm_metric)a->metric;
    o.method = (fgmm_ivf_method)method;
    o.seed = (uint64_t)seed;
    if (s->verbose) cli_say("%s, %lld lists, seed %d", fgmm_ivf_method_name(o.method), (long long)lists, seed);
    fgmm_status status = fgmm_ivf_train(s->ctx, &model, w->data, &o, NULL);
    if (status != FGMM_OK) return cli_failed(s, status);
    for (int i = 0; i < w->table.n_cases && rc == CLI_DONE; i += 2)
        if (w->table.cases[i].method == method && w->table.cases[i].lists == lists)
            rc = run_pair(a, w, model, &w->table.cases[i]);
    fgmm_model_free(s->ctx, model);
    return rc;
}

static int run_cases(const eval_args *a, eval_work *w) {
    int rc = CLI_DONE;
    for (int seed = 0; seed < a->seeds && rc == CLI_DONE; seed++)
        for (int i = 0; i < w->table.n_cases && rc == CLI_DONE; i += 2) {
            const eval_case *c = &w->table.cases[i];
            int done = 0;
            for (int j = 0; j < i; j++)
                done |= w->table.cases[j].method == c->method && w->table.cases[j].lists == c->lists;
            if (!done) rc = run_model(a, w, c->method, c->lists, seed);
        }
    return rc;
}

/* Differences to the first case, query by query. */
static void compare(eval_table *t) {
    for (int i = 0; i < t->n_cases; i++)
        for (int r = 0; r < t->n_recalls; r++) {
            double sum = 0, squares = 0, n = 0;
            for (int64_t q = 1; q < t->queries; q += 2) {
                double less = t->cases[0].at[r].rows_of[q] - t->cases[i].at[r].rows_of[q];
                sum += less;
                squares += less * less;
                n++;
            }
            t->cases[i].at[r].less = sum / n;
            t->cases[i].at[r].less_error = sqrt(fmax(0, squares / n - sum / n * (sum / n)) / n);
        }
}

/* ---- the command ---- */

static int evaluate(eval_args *a, eval_work *w) {
    const cli_session *s = &a->session;
    fgmm_status status = fgmm_rows_open(s->ctx, &w->data, a->data, a->format);
    if (status == FGMM_OK) status = fgmm_rows_open(s->ctx, &w->all_queries, a->queries, NULL);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (cli_metric(w->data, &a->metric) != CLI_DONE) return CLI_FAILED;
    int64_t n = fgmm_rows_count(w->all_queries);
    if (a->limit && a->limit < n) n = a->limit;
    if (n < 4) return cli_say("%lld queries are too few to tune on one half of", (long long)n), CLI_FAILED;
    status = fgmm_rows_slice(s->ctx, &w->queries, w->all_queries, 0, n);
    if (status != FGMM_OK) return cli_failed(s, status);
    if (!(w->truth = cli_alloc(n * a->k, sizeof *w->truth, "true neighbours"))) return CLI_FAILED;
    if (a->truth) {
        int read = cli_truth(s, a->truth, n, a->k, fgmm_rows_count(w->data), w->truth);
        if (read != CLI_DONE) return read;
    } else {
        status = fgmm_exact_search(s->ctx, w->data, w->queries, (fgmm_metric)a->metric, a->k, w->truth, NULL);
        if (status != FGMM_OK) return cli_failed(s, status);
    }
    eval_table *t = &w->table;
    t->data = a->data;
    t->metric = fgmm_metric_name((fgmm_metric)a->metric);
    t->rows = fgmm_rows_count(w->data);
    t->features = fgmm_rows_features(w->data);
    t->queries = n;
    t->k = a->k;
    t->seeds = a->seeds;
    if (!(t->cases = cli_alloc(CASES_MAX, sizeof *t->cases, "cases"))) return CLI_FAILED;
    int rc = list_cases(a, w);
    if (rc == CLI_DONE) rc = run_cases(a, w);
    if (rc != CLI_DONE) return rc;
    compare(t);
    progress_wipe();
    if (s->json)
        eval_json(t);
    else if (!s->quiet)
        eval_print(t);
    return a->picture ? eval_picture(t, a->picture) : CLI_DONE;
}

static void work_free(const eval_args *a, eval_work *w) {
    for (int i = 0; i < w->table.n_cases; i++)
        for (int r = 0; r < w->table.n_recalls; r++) free(w->table.cases[i].at[r].rows_of);
    free(w->table.cases);
    free(w->truth);
    fgmm_rows_free(a->session.ctx, w->queries);
    fgmm_rows_free(a->session.ctx, w->all_queries);
    fgmm_rows_free(a->session.ctx, w->data);
}

static int run(const cli_command *self, int argc, char **argv) {
    eval_args a = {.metric = CLI_METRIC_UNSAID,
                   .k = 10,
                   .seeds = 1,
                   .methods = BITS_KMEANS,
                   .rules = BITS_SINGLE | 1u << FGMM_IVF_SOAR,
                   .recalls_text = "0.9,0.95,0.99",
                   .budgets_text = "1.5,2"};
    const cli_option options[] = {
        {"queries", 0, CLI_TEXT, &a.queries, 0, 0, "QUERIES", "held-out rows: half to tune on, half to tell of"},
        {"truth", 0, CLI_TEXT, &a.truth, 0, 0, "FILE",
         "their true neighbours (default: searched): .ivecs, .ibin, .npy or HDF5"},
        {"lists", 'k', CLI_INT64, &a.lists, 1, 9e15, "K", "number of lists"},
        {"metric", 0, CLI_CHOICE, &a.metric, 0, 0, CLI_METRICS, "default: the one that the file names, or l2"},
        {"methods", 0, CLI_SET, &a.methods, 0, 0, CLI_METHODS, "any of them with commas between (default kmeans)"},
        {"rules", 0, CLI_SET, &a.rules, 0, 0, CLI_RULES, "likewise (default single,soar)"},
        {"budgets", 0, CLI_TEXT, &a.budgets_text, 0, 0, "M,...", "lists a row on average (default 1.5,2)"},
        {"more-lists", 0, CLI_FLAG, &a.more_lists, 0, 0, 0, "also k-means with M times the lists, one a row"},
        {"lambda", 0, CLI_REAL, &a.lambda, 0, 1e300, "L", "of soar (default 1) and rair (default 0.75)"},
        {"recall", 0, CLI_TEXT, &a.recalls_text, 0, 0, "R,...", "targets (default 0.9,0.95,0.99)"},
        {"neighbours", 0, CLI_INT64, &a.k, 1, 10000, "N", "nearest rows that the recall is of (default 10)"},
        {"limit", 0, CLI_INT64, &a.limit, 4, 9e15, "N", "take so many queries at most"},
        {"seeds", 0, CLI_INT, &a.seeds, 1, 1000, "N", "trainings to take the mean of (default 1)"},
        {"speed", 0, CLI_FLAG, &a.speed, 0, 0, 0, "build each index and measure its queries a second"},
        {"picture", 0, CLI_TEXT, &a.picture, 0, 0, "OUT.png", "recall against distances, by gnuplot; or .svg, .gp"},
        {"format", 0, CLI_TEXT, &a.format, 0, 0, "NAME", "npy, fvecs, bvecs, fbin, u8bin, i8bin or hdf5"},
        CLI_SESSION_OPTIONS(&a.session),
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, &a.data);
    if (rc != CLI_GO_ON) return rc;
    eval_work w = {0};
    if (!a.queries) return cli_usage(self, "--queries, the held-out rows, is missing");
    if (!a.lists) return cli_usage(self, "-k, the number of lists, is missing");
    if (a.picture && !cli_ends_with(a.picture, ".png") && !cli_ends_with(a.picture, ".svg") &&
        !cli_ends_with(a.picture, ".gp"))
        return cli_usage(self, "the picture '%s' must end in .png, .svg or .gp", a.picture);
    a.n_budgets = read_list(self, "budgets", a.budgets_text, 1, 2, EVAL_BUDGETS, a.budgets);
    w.table.n_recalls = read_list(self, "recall", a.recalls_text, 0.01, 0.9999, EVAL_RECALLS, w.table.recalls);
    if (a.n_budgets < 0 || w.table.n_recalls < 0) return CLI_USAGE;
    rc = cli_open(self, &a.session);
    if (rc != CLI_DONE) return rc;
    signal(SIGPIPE, SIG_IGN); /* a gnuplot that is not there is a failed write */
    rc = evaluate(&a, &w);
    work_free(&a, &w);
    cli_close(&a.session);
    return rc;
}

const cli_command cmd_ivf_eval = {
    .name = "ivf eval",
    .summary = "rules side by side: recall against distances and queries a second",
    .usage = "DATA --queries QUERIES -k K [OPTION]...",
    .example =
        "  flashgmm ivf eval base.npy --queries held-out.npy -k 256 --metric angular --rules single,soar,gap \\\n"
        "      --budgets 1.5,2 --more-lists --picture curves.png\n",
    .operands = 1,
    .run = run,
};
