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
    double *covariances;   /* [k] or [k, d], about the new mean, nothing added; the old ones where counts is 0 */
    double log_likelihood; /* sum of w log p(x) */
    double weight;         /* sum of w */
    double largest;        /* largest |log p(x, best k)|: how well conditioned the responsibilities are */
} reference;

/* Element i of an array of rows, widened. */
double reference_value(const void *data, fgmm_dtype type, int64_t i);

reference *reference_step(const problem *p);
void reference_free(reference *r);

#endif
