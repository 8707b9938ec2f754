/* Starting models, from a bounded sample of the rows. */
#ifndef FGMM_LIB_SEED_H
#define FGMM_LIB_SEED_H

#include "estep.h"

typedef struct fgmm_seeder fgmm_seeder;

/* Draws the sample from the rows of all ranks of `group` (NULL: there is one); only rank 0 then has it, and is the one to
 * call the functions below. Which rows are drawn does not depend on how they are shared. At most `sample` rows (0:
 * max(8192, 16 K)), at least k, spread evenly over the rows with weight.
 * The feed must have run once.
 * @return FGMM_ERR_INVALID if fewer than k rows have weight. */
fgmm_status fgmm_seeder_open(fgmm_context *ctx, fgmm_seeder **out, fgmm_feed *feed, const fgmm_rows *rows, int64_t k,
                             int64_t sample, uint64_t seed, fgmm_group *group);
void fgmm_seeder_free(fgmm_context *ctx, fgmm_seeder *seeder);

/* A starting model; the same (seed, restart) gives the same one. @param type spherical or diag. */
fgmm_status fgmm_seed_model(fgmm_seeder *seeder, fgmm_model **out, fgmm_init init, fgmm_covariance type, int64_t k,
                            double reg_covar, int restart);

/* Ranks rows of the sample by how badly model explains them, for fgmm_seed_move. */
fgmm_status fgmm_seed_rank(fgmm_seeder *seeder, const fgmm_model *model);

/* Moves component i of model to the worst explained of the ranked rows, with the data's variances. *used counts the
 * rows that earlier calls took. */
void fgmm_seed_move(fgmm_seeder *seeder, fgmm_model *model, int64_t i, double reg_covar, int64_t *used);

#endif
