/* Fits and k-means whose models keep a constraint that the public calls do not offer: for coarse quantizers. */
#ifndef FGMM_LIB_CONSTRAINTS_H
#define FGMM_LIB_CONSTRAINTS_H

#include "model.h"

enum {
    FGMM_ONE_VARIANCE = 1, /* spherical: all components have the mean of the M-step's variances, weighted by N_k, which
                              is the maximum of the likelihood under that constraint */
    FGMM_UNIT_MEANS = 2    /* means are scaled to length 1 after each iteration; a mean of zeros stays */
};

/* Brings a model to its constraints. */
void fgmm_constrain(fgmm_model *model, unsigned constraints);

/* fgmm_fit and fgmm_kmeans, every model along the way constrained. */
fgmm_status fgmm_fit_constrained(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                 const fgmm_fit_options *options, unsigned constraints, fgmm_report *report);
fgmm_status fgmm_kmeans_constrained(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                    const fgmm_kmeans_options *options, unsigned constraints,
                                    fgmm_kmeans_result *result, double *counts, fgmm_report *report);

#endif
