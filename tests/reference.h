/*
 * One E-step and M-step written as the formulas stand, in double with long double sums, and sharing nothing with
 * the library. It stores all N x K responsibilities, which only a test may.
 */
#ifndef FGMM_TESTS_REFERENCE_H
#define FGMM_TESTS_REFERENCE_H

#include "data_sets.h"

typedef struct reference {
    int64_t n, k, d;
    double *log_prob;      /* [n] */
    double *resp;          /* [n, k] */
    double *counts;        /* [k]: sum of w r */
    double *means;         /* [k, d]; the old ones where counts is 0 */
    double *covariances;   /* as the type says, about the new mean, nothing added; the old ones where counts is 0 */
    double log_likelihood; /* sum of w log p(x) */
    double weight;         /* sum of w */
    double largest;        /* largest |log p(x, best k)|: how well conditioned the responsibilities are */
    double condition;      /* of the model's covariances, see reference_factor; 0 for spherical and diag */
} reference;

/* Element i of an array of rows, widened. */
double reference_value(const void *data, fgmm_dtype type, int64_t i);

reference *reference_step(const problem *p);

/*
 * S = L L' in long double: whitening = L^-1, lower triangular, [d, d]. @return log|S|; NAN if S is not positive
 * definite.
 * @param condition raised to the sum over the features of S_jj (S^-1)_jj, the variance inflation factors, if that is
 * larger. A relative rounding u of what differs from the mean moves log p by about u sqrt(condition). It does not
 * change with the scale of a feature, and is d where the features are independent.
 */
long double reference_factor(const double *s, int64_t d, double added, long double *whitening, double *condition);
void reference_free(reference *r);

#endif
