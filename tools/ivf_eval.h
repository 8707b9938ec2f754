/* The results of `flashgmm ivf eval`, and how they are shown. */
#ifndef FLASHGMM_TOOLS_IVF_EVAL_H
#define FLASHGMM_TOOLS_IVF_EVAL_H

#include "ivf_curve.h"

enum { EVAL_RECALLS = 8, EVAL_BUDGETS = 8, EVAL_POINTS = 28 };

/* Sums over seeds at one target, of the half that the setting was not tuned on. */
typedef struct eval_result {
    double recall, recall_error; /* mean over queries, and its standard error */
    double rows, entries, probes;
    double *rows_of;           /* [queries]: a query's distances, mean over seeds */
    double less, less_error;   /* distances less than the baseline's, paired, with the standard error */
    double queries_per_second; /* 0: not measured */
} eval_result;

/* A way to index: the mean over seeds. */
typedef struct eval_case {
    int method, rule;
    int64_t lists;
    double budget; /* asked for; 0: none */
    int adaptive;
    double lists_per_row;
    eval_result at[EVAL_RECALLS];
    double curve_recall[EVAL_POINTS], curve_rows[EVAL_POINTS], curve_entries[EVAL_POINTS];
} eval_case;

typedef struct eval_table {
    const char *data, *metric;
    int64_t rows, features, queries, k;
    int seeds, n_recalls, n_cases;
    double recalls[EVAL_RECALLS];
    eval_case *cases; /* case 0 is the baseline: k-means, one list, fixed */
} eval_table;

/* "soar m=1.5, adaptive"; static storage, valid until the next call. */
const char *eval_case_name(const eval_case *c);

void eval_print(const eval_table *table);
void eval_json(const eval_table *table);
/* A gnuplot script at path, or through gnuplot a picture where path ends in .png or .svg. @return an exit code. */
int eval_picture(const eval_table *table, const char *path);

#endif
