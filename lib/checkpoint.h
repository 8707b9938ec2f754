/* Where a fit stands, and the file that it can go on from. */
#ifndef FGMM_LIB_CHECKPOINT_H
#define FGMM_LIB_CHECKPOINT_H

#include "estep.h"
#include "ranks.h"

/* A restart as far as it has come. */
typedef struct fgmm_fit_result {
    fgmm_model *model; /* NULL: there is none; n_iter counts its whole iterations */
    fgmm_engine engine;
    fgmm_pass_counts counts;
    double seconds_per_iteration;
} fgmm_fit_result;

/* All that the iterations to come depend on. */
typedef struct fgmm_fit_place {
    int restart;          /* the one under way */
    fgmm_fit_result now;  /* of it */
    fgmm_fit_result best; /* of those before */
    fgmm_fate *fates;     /* [now.model->k] of its components in the last iteration */
    fgmm_engine_choice choice;
    int64_t moved; /* components reseeded so far */
    double change; /* of the lower bound in the last iteration */
    int changed;   /* 1: a policy has changed the model since its E-step */
} fgmm_fit_place;

void fgmm_fit_place_free(fgmm_context *ctx, fgmm_fit_place *place);

/* A place as numbers, but for its models and fates: of the best model what goes with the arrays. */
enum {
    FGMM_PLACE_RESTART,
    FGMM_PLACE_ENGINE,
    FGMM_PLACE_SCREEN_FAILURES,
    FGMM_PLACE_SUMS_FAIL,
    FGMM_PLACE_CAREFUL,
    FGMM_PLACE_CUT,
    FGMM_PLACE_MOVED,
    FGMM_PLACE_CHANGE,
    FGMM_PLACE_CHANGED,
    FGMM_PLACE_NOW, /* what the last pass saw: an engine and three numbers */
    FGMM_PLACE_SAW = 4,
    FGMM_PLACE_BEST = FGMM_PLACE_NOW + FGMM_PLACE_SAW,
    FGMM_PLACE_BEST_ITERATIONS = FGMM_PLACE_BEST + FGMM_PLACE_SAW, /* 0: there is no best yet */
    FGMM_PLACE_BEST_BOUND,
    FGMM_PLACE_BEST_CONVERGED,
    FGMM_PLACE_NUMBERS
};

void fgmm_fit_place_numbers(const fgmm_fit_place *place, double *numbers);
/* The other way round; the best model must be there by then if there is one. */
void fgmm_fit_place_take(fgmm_fit_place *place, const double *numbers);

/* What makes a fit this fit: numbers that must be equal, and the rows by their moments, which must be close. */
enum {
    FGMM_FIT_COMPONENTS,
    FGMM_FIT_COVARIANCE,
    FGMM_FIT_INIT,
    FGMM_FIT_INIT_SAMPLE,
    FGMM_FIT_N_INIT,
    FGMM_FIT_MAX_ITER,
    FGMM_FIT_TOL,
    FGMM_FIT_REG_COVAR,
    FGMM_FIT_SEED, /* low and high half */
    FGMM_FIT_SEED_HIGH,
    FGMM_FIT_FREEZE,
    FGMM_FIT_ON_DEAD,
    FGMM_FIT_ON_COLLAPSE,
    FGMM_FIT_PRECISION,
    FGMM_FIT_ENGINE,
    FGMM_FIT_CONSTRAINTS,
    FGMM_FIT_START, /* fingerprint of init_model, low and high half */
    FGMM_FIT_START_HIGH,
    FGMM_FIT_ROWS, /* not counting those left out */
    FGMM_FIT_NUMBERS
};

typedef struct fgmm_fit_identity {
    double numbers[FGMM_FIT_NUMBERS];
    int64_t d;
    double weight;                 /* sum of the rows' weights */
    const double *mean, *variance; /* [d] of the rows */
} fgmm_fit_identity;

/* A 64-bit number in two doubles. */
void fgmm_fit_halves(uint64_t value, double *low_then_high);

/* FGMM_ERR_INVALID naming what differs. @param theirs of the file at `path`. */
fgmm_status fgmm_fit_identity_check(fgmm_context *ctx, const char *path, const fgmm_fit_identity *ours,
                                    const fgmm_fit_identity *theirs);

/* Whether all ranks have the same options and number of features. @param identity its rows are not known yet. */
fgmm_status fgmm_fit_identity_meet(fgmm_group *group, const fgmm_fit_identity *identity);

/* Gives the place of rank 0 to all. @param place of the others: zeroed. */
fgmm_status fgmm_fit_place_share(fgmm_group *group, fgmm_fit_place *place, fgmm_covariance type, int64_t d);

/* Gives the numbers of a model of rank 0 to all. @param model of rank 0, NULL elsewhere; k as rank 0 has it. */
fgmm_status fgmm_model_share(fgmm_group *group, fgmm_model **model, fgmm_covariance type, int64_t k, int64_t d);

/* Finds out whether checkpoints can be written there, before the work. */
fgmm_status fgmm_checkpoint_try(fgmm_context *ctx, const char *path);

/* Replaces the file when all of the new one is on the disk; until then the old one stays. */
fgmm_status fgmm_checkpoint_save(fgmm_context *ctx, const char *path, const fgmm_fit_identity *identity,
                                 const fgmm_fit_place *place);

/* @param place zeroed; it stays so if there is no such file. On failure it may hold something to be freed. */
fgmm_status fgmm_checkpoint_load(fgmm_context *ctx, const char *path, const fgmm_fit_identity *identity,
                                 fgmm_fit_place *place);

#endif
