/*
 * The feed brings rows to a device block by block, as often as asked: kept on the device when they fit, streamed with
 * the next block under way otherwise. The first run looks for NaN and Inf.
 */
#ifndef FGMM_LIB_FEED_H
#define FGMM_LIB_FEED_H

#include "dispatch.h"
#include "reader.h"

/* A block as its visitor sees it. */
typedef struct fgmm_feed_block {
    fgmm_block *block;
    int64_t first, n;      /* rows of the source */
    const double *weights; /* [n] or NULL: with rows left out at weight 0 */
    const int64_t *bad;    /* rows left out (numbers of the source), sorted */
    int64_t n_bad;
} fgmm_feed_block;

typedef fgmm_status (*fgmm_feed_visit)(void *user, const fgmm_feed_block *block);

typedef struct fgmm_feed fgmm_feed;

/* @param passes how often the rows will be run through; 2 or more may keep them on the device. Of rows that persist, what the last call's
 * feed had learned and kept is there. */
fgmm_status fgmm_feed_open(fgmm_context *ctx, fgmm_feed **out, const fgmm_rows *rows, const fgmm_target *target,
                           const fgmm_compute_options *compute, int64_t passes);
void fgmm_feed_close(fgmm_context *ctx, fgmm_feed *feed);
/* The same of one that no next call is to have. */
void fgmm_feed_free(fgmm_feed *feed);

/* Visits every block in order. Where the device turns out to have less memory than it says, less is kept there or
 * blocks become smaller (fgmm_feed_give_up), and the run begins anew: a visitor that is given row 0 starts over. @param params what the
 * backend begins with, each time; or NULL. @param visit NULL: only the scan for bad rows runs. */
fgmm_status fgmm_feed_run(fgmm_feed *feed, const char *stage, const fgmm_params *params, fgmm_feed_visit visit,
                          void *user);

/* After FGMM_ERR_MEMORY, where it was the device's: fewer rows stay on it from now on, or, if none did, blocks have half
 * the rows, and all that can be made again is freed. @return 1 if it is worth another try; 0: nothing is left to give up. */
int fgmm_feed_give_up(fgmm_feed *feed);

/* Copies rows by number, ascending, as doubles: out [count, d]. */
fgmm_status fgmm_feed_gather(fgmm_feed *feed, const int64_t *rows, int64_t count, double *out);

/* Before the first run, which then looks for NaN and Inf alone: no mean and no variance are found. */
void fgmm_feed_no_moments(fgmm_feed *feed);

/* Says nothing to the progress callback: a feed inside another call. */
void fgmm_feed_quiet(fgmm_feed *feed);

int64_t fgmm_feed_rows(const fgmm_feed *feed); /* of the source */

/* Known after the first run. */
int64_t fgmm_feed_skipped(const fgmm_feed *feed);
int fgmm_feed_is_bad(const fgmm_feed *feed, int64_t row); /* 1 if the row is left out */
double fgmm_feed_weight(const fgmm_feed *feed);           /* sum of the weights */
const double *fgmm_feed_mean(const fgmm_feed *feed);      /* [D] */
const double *fgmm_feed_variance(const fgmm_feed *feed);  /* [D] */

const fgmm_target *fgmm_feed_target(const fgmm_feed *feed);
int64_t fgmm_feed_block_rows(const fgmm_feed *feed); /* rows of the largest block */
int fgmm_feed_once(const fgmm_feed *feed);           /* 1 if the rows can be read only once */

/* What progress callbacks say; the caller keeps it up to date. */
fgmm_progress *fgmm_feed_progress(fgmm_feed *feed);
/* Calls the progress callback; FGMM_ERR_CANCELLED if it, or fgmm_context_cancel, says stop. */
fgmm_status fgmm_feed_report(fgmm_feed *feed);

#endif
