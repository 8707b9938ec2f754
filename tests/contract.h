/* What one E-step and M-step must agree on with the reference, and how closely: DESIGN section 3. */
#ifndef FGMM_TESTS_CONTRACT_H
#define FGMM_TESTS_CONTRACT_H

#include "reference.h"

/* The tolerance e of a precision on this problem. */
double contract_tolerance(const reference *r, fgmm_precision precision);

/* Counts and likelihood of the statistics, and the statistics' own means and variances. */
void contract_check_stats(const problem *p, const reference *r, const fgmm_stats *stats, double e);

/* Weights, means, covariances and lower bound of the model after the M-step without reg_covar. */
void contract_check_model(const problem *p, const reference *r, const fgmm_model *model, double e);

#endif
