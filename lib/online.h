/* The state of stepwise EM. */
#ifndef FGMM_LIB_ONLINE_H
#define FGMM_LIB_ONLINE_H

#include "estep.h"

struct fgmm_online {
    fgmm_stats *stats; /* S, of one unit of weight, about the means of its model, which is the current one */
    int64_t steps;
    double kappa, t0, reg_covar; /* as they are, defaults filled in */
    unsigned freeze;
    fgmm_compute_options compute;
    fgmm_engine_choice choice; /* carried from batch to batch */
};

/* Checks the options and fills in their defaults. */
fgmm_status fgmm_online_settle(fgmm_context *ctx, fgmm_online *online, const fgmm_online_options *options);

#endif
