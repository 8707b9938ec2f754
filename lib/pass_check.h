#ifndef FGMM_LIB_PASS_CHECK_H
#define FGMM_LIB_PASS_CHECK_H

#include "stats.h"

/* What a pass must be repeated with to keep its contract. */
typedef struct fgmm_pass_check {
    int recentre; /* 1: sums about the new means */
    double cut;   /* the largest cut that would have kept every component within the contract */
} fgmm_pass_check;

/* @param epsilon relative rounding of one term of a sum. @param tolerance what the variances may be off by,
 * relatively: a tenth of the contract. */
fgmm_pass_check fgmm_check_pass(fgmm_context *ctx, const fgmm_stats *stats, double epsilon, double tolerance);

#endif
