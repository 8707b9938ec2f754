/* One E-step over a feed, as statistics. */
#ifndef FGMM_LIB_ESTEP_H
#define FGMM_LIB_ESTEP_H

#include "feed.h"
#include "stats.h"

/* What may be dropped (backend.h, the row's cut) in a pass that nothing is known about; pass_check.c tells when it
 * was too much. */
#define FGMM_CUT 1e-8

/* The same in fast precision. A row then drops 28 times less (1 - 2 log cut) or still less: below half of an f32's last place beside
 * what it keeps, so that what of it a screen lists shows in nothing. */
#define FGMM_FAST_CUT 1e-6
/* How many times what exact precision allows its contract does. */
#define FGMM_FAST_ALLOWS 200

/* Which engine and cut to start with, from what the last pass saw. Zero-initialised at the start of a fit. */
typedef struct fgmm_engine_choice {
    fgmm_engine asked, now;
    int screen_failures;
    int careful;   /* passes still to begin careful, since the one before them was imprecise */
    int sums_fail; /* 1: rounding may show in a likelihood from sums; each row's is formed */
    double cut;    /* for the next pass; 0: the usual one */
} fgmm_engine_choice;

typedef struct fgmm_pass_counts {
    double survivors_per_row, dropped_mass, dense_fraction;
} fgmm_pass_counts;

/* Statistics without rows under model, which is copied. */
fgmm_status fgmm_stats_new(fgmm_context *ctx, fgmm_stats **out, const fgmm_model *model);
/* The same under a model that is borrowed and must outlive them. */
fgmm_status fgmm_stats_over(fgmm_context *ctx, fgmm_stats **out, const fgmm_model *model);
/* Gives such statistics to a pass to come under another model of the same shape, which fills them anew. */
void fgmm_stats_restart(fgmm_stats *stats, const fgmm_model *model);

/* Adds an E-step under stats->model over the feed, and over those of the other ranks of stats->group, whose statistics then
 * are the same to the bit. What stats held is gone, and its centres may be moved.
 * @param hard 1 for k-means: all responsibility to the best component. @param counts NULL or what the pass saw. */
fgmm_status fgmm_estep_pass(fgmm_context *ctx, fgmm_feed *feed, const char *stage, fgmm_stats *stats,
                            fgmm_precision precision, int hard, fgmm_engine_choice *choice, fgmm_pass_counts *counts);

/* What the rows' own log-densities are formed in: fast precision is for sums. */
static inline fgmm_precision fgmm_row_precision(fgmm_precision asked) {
    return asked == FGMM_DOUBLE ? FGMM_DOUBLE : FGMM_EXACT;
}

/* The engine for the next pass over a model of k components. */
fgmm_engine fgmm_engine_next(const fgmm_engine_choice *choice, fgmm_precision precision, int64_t k);

#endif
