/* Passes of stepwise EM over rows by batches: `flashgmm fit --mini-batch` and `flashgmm partial-fit`. */
#ifndef FLASHGMM_TOOLS_MINI_BATCH_H
#define FLASHGMM_TOOLS_MINI_BATCH_H

#include "cli.h"

#define MINI_BATCH_OPTIONS(o)                                                                                          \
    {"kappa", 0, CLI_REAL, &(o)->kappa, 0.5, 1, "KAPPA", "step t takes (t + T0)^-KAPPA; above 0.5 (default 0.7)"}, {   \
        "t0", 0, CLI_REAL, &(o)->t0, 0, 1e15, "T0", "larger trusts the start more (default 1)"                         \
    }

/* What the table's range cannot say of --kappa. @return CLI_GO_ON, or an exit code after a message. */
int mini_batch_check_kappa(const cli_command *self, double kappa);

/* What a run is made of; the caller sets the first part and keeps it until the end. */
typedef struct mini_batch {
    cli_session *session;
    const fgmm_rows *rows;
    const double *weights; /* of the rows, or NULL: batches without weight are passed over */
    int64_t batch_rows;    /* about so many a batch; 0: all of them */
    uint64_t seed;
    int skip;    /* 1: rows with NaN or Inf are left out, and so are batches of nothing else */
    int shuffle; /* 1: each pass takes the batches in an order of its own */
    int max_passes;
    fgmm_online *online;
    /* what the bar shows */
    int passes;
    int64_t rows_done;
    double bound, change, seconds;
} mini_batch;

/* The context's progress callback while a run is under way; user is the mini_batch. */
int mini_batch_progress(void *user, const fgmm_progress *p);

/* One pass. *report sums up the passes so far; its lower_bound is this pass's. */
fgmm_status mini_batch_pass(mini_batch *m, fgmm_report *report);

/* Passes until the mean log-likelihood of one differs by less than tol from the last; tol <= 0: all of them. */
fgmm_status mini_batch_run(mini_batch *m, double tol, fgmm_report *report);

#endif
