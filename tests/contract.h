/* What one E-step and M-step must agree on with the reference, and how closely: DESIGN section 3. */
#ifndef FGMM_TESTS_CONTRACT_H
#define FGMM_TESTS_CONTRACT_H

#include "reference.h"

/*
 * The tolerance e of a precision on this problem: what DESIGN promises, and for tied and full covariances what their
 * condition allows. Where x - m is rounded to 2^-24 of itself, log p moves by about 2^-24 sqrt(condition), so exact and
 * fast owe no less than 1e-7 sqrt(condition), which exceeds 1e-5 where the condition does 1e4. In double the factor of
 * a covariance is right to 2^-52 condition, and so are quadratic forms.
 */
double contract_tolerance(const reference *r, fgmm_precision precision);

/* Counts and likelihood of the statistics, and the statistics' own means and variances. */
void contract_check_stats(const problem *p, const reference *r, const fgmm_stats *stats, double e);

/*
 * Weights, means, covariances and lower bound of the model after the M-step with the problem's reg_covar. An entry of a
 * covariance matrix is right to e of the two deviations, and the matrix to e also in the frame where it is I.
 */
void contract_check_model(const problem *p, const reference *r, const fgmm_model *model, double e);

/* Both models are the same to the bit. */
void contract_check_same(const fgmm_model *a, const fgmm_model *b);

#endif
