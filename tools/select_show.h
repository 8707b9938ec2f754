/* What `flashgmm select` shows of the fits it compared. */
#ifndef FLASHGMM_TOOLS_SELECT_SHOW_H
#define FLASHGMM_TOOLS_SELECT_SHOW_H

#include "cli.h"

/* One fit. */
typedef struct select_fit {
    fgmm_covariance type;
    int64_t k;
    int64_t parameters;
    fgmm_score_result score;
    int n_iter, converged;
    double seconds;
    double criterion; /* AIC or BIC: the smaller the better; NaN if the fit failed */
    char error[160];  /* why, or "" */
} select_fit;

typedef struct select_list {
    select_fit *fits; /* [n]; of one type one after another, K growing */
    int64_t n;
    int64_t best; /* -1: none */
    const char *criterion;
} select_list;

void select_print_table(const select_list *list);

/* The criterion over K, a letter for each covariance type. */
void select_print_curve(const select_list *list);

void select_json_fits(json_out *j, const select_list *list);

/* The curve as .png or .svg by gnuplot. @return CLI_DONE, or CLI_FAILED after a message. */
int select_plot(const select_list *list, const char *path);

#endif
