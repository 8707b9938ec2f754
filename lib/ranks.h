/* Several processes that fit one mixture, each with its share of the rows: what they tell each other. */
#ifndef FGMM_LIB_RANKS_H
#define FGMM_LIB_RANKS_H

#include "context.h"

/* Where in a fit the ranks are. They must all be at the same place. */
typedef enum fgmm_meeting {
    FGMM_MEET_OPTIONS = 1,
    FGMM_MEET_ROWS,
    FGMM_MEET_SAMPLE,
    FGMM_MEET_MODEL,
    FGMM_MEET_PLACE,
    FGMM_MEET_STATISTICS,
    FGMM_MEET_END
} fgmm_meeting;

/* The ranks as one of them sees them, and the rows of all. Where a pointer to a group is NULL there is one rank. */
typedef struct fgmm_group {
    fgmm_context *ctx;
    fgmm_ranks ranks;
    double *said;            /* room for what all say in a meeting */
    int over;                /* 1: a failure has been told or the reducer has failed: nobody listens any more */
    double epsilon;          /* the largest sum_epsilon of the devices */
    int64_t n, skipped;      /* rows used and rows left out */
    double weight;           /* sum of the weights */
    double *moments;         /* [2, d] */
    double *mean, *variance; /* within moments */
} fgmm_group;

/* @param group zeroed; `over` stays 1 where there is nobody to meet. */
fgmm_status fgmm_group_open(fgmm_context *ctx, fgmm_group *group, const fgmm_ranks *ranks);
void fgmm_group_close(fgmm_group *group);

/*
 * Sums values [count] over the ranks, in place. First each tells whether all is well with it, where it is and, in
 * `check`, a hash of what must be the same everywhere.
 * @return what a rank has failed with, on all of them, its message behind "rank N: "; FGMM_ERR_INVALID where they are
 * not at the same place or their hashes differ; FGMM_ERR_IO where the reducer failed.
 */
fgmm_status fgmm_group_sum(fgmm_group *group, fgmm_meeting meeting, uint64_t check, double *values, int64_t count);

/* Gives values [count] of rank 0 to all. */
fgmm_status fgmm_group_share(fgmm_group *group, fgmm_meeting meeting, double *values, int64_t count);

/* Every rank's `count` values, in the order of ranks. @param all [size, count], this rank's own part filled in. */
fgmm_status fgmm_group_gather(fgmm_group *group, fgmm_meeting meeting, double *all, int64_t count);

/* The last meeting, in whatever state a rank comes to it. @return that of the call, the same on all ranks. */
fgmm_status fgmm_group_end(fgmm_group *group, fgmm_status status);

/* Fills in the rows of all from the share of each. @param mean, variance [d] of this rank's share. */
fgmm_status fgmm_group_rows(fgmm_group *group, int64_t n, int64_t skipped, double weight, double epsilon,
                            const double *mean, const double *variance, int64_t d);

#endif
