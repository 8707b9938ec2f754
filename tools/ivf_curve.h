/* What probing more and more lists finds and costs, query by query, from the lists themselves: a row is found if and
 * only if one of its lists is probed, so one pass tells every setting's recall and distances. */
#ifndef FLASHGMM_TOOLS_IVF_CURVE_H
#define FLASHGMM_TOOLS_IVF_CURVE_H

#include "cli_ivf.h"

typedef struct ivf_curve {
    int64_t queries, lists, k;
    float *gaps;      /* [queries, lists]: of the nearest list, the second nearest, ...: ascending from 0 */
    int32_t *entries; /* [queries, lists]: entries of the lists up to this one */
    int32_t *rows;    /* [queries, lists]: different rows of them */
    int32_t *ranks;   /* [queries, k]: the first list that holds each true neighbour */
} ivf_curve;

/* @param truth [queries, k] of fgmm_exact_search. @return CLI_DONE, or an exit code after a message. */
int ivf_curve_make(const cli_session *s, ivf_curve *curve, const fgmm_model *model, fgmm_metric metric,
                   const fgmm_ivf_lists *lists, const fgmm_rows *queries, const int64_t *truth, int64_t k);
void ivf_curve_free(ivf_curve *curve);

/* How a search probes. Fixed numbers of lists are whole: a share of the queries takes one more. */
typedef struct ivf_setting {
    int adaptive;
    double gap;
    int64_t probes;
    double more;
} ivf_setting;

/* The least setting that has this recall on the queries of a half: those with number % 2 == half; half 2: all. */
ivf_setting ivf_curve_tune(const ivf_curve *curve, int half, double recall, int adaptive);

typedef struct ivf_outcome {
    double found;   /* share of the true neighbours */
    double rows;    /* distances, a row once */
    double entries; /* distances if duplicates count */
    double probes;
} ivf_outcome;

ivf_outcome ivf_curve_at(const ivf_curve *curve, const ivf_setting *setting, int64_t query);

#endif
