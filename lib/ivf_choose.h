/* Which lists a row goes to: the rules of fgmm_ivf_assign_options, over blocks of rows. */
#ifndef FGMM_LIB_IVF_CHOOSE_H
#define FGMM_LIB_IVF_CHOOSE_H

#include "model.h"
#include "nearest.h"

/* Centroids and a rule. */
typedef struct fgmm_chooser {
    fgmm_context *ctx;
    const fgmm_target *target; /* the CPU */
    const fgmm_model *model;   /* borrowed; for responsibilities */
    fgmm_metric metric;
    fgmm_ivf_rule rule;
    int max_lists;
    double threshold, lambda;
    int64_t k, d, stride;
    float *centroids; /* [K, stride] */
} fgmm_chooser;

/* Checks rule, max_lists, budget, threshold and lambda, and fills in their defaults. */
fgmm_status fgmm_rule_check(fgmm_context *ctx, fgmm_ivf_rule rule, int *max_lists, double *budget, double *threshold,
                            double *lambda, int64_t k);

/* The rule's fields must be set; ctx, target, shapes and centroids are filled in. @param model means, and for
 * responsibilities all of it. */
fgmm_status fgmm_chooser_open(fgmm_chooser *chooser, fgmm_context *ctx, const fgmm_model *model);
void fgmm_chooser_close(fgmm_chooser *chooser);

/* Room in lists that may grow full: [K] rows each, and how many more than there are rows to come. */
typedef struct fgmm_list_room {
    int64_t *left;
    int64_t spare; /* what rows may take beside their first list */
} fgmm_list_room;

/*
 * Lists of n packed rows of a type, best first, -1 behind the last: lists [n, max_lists]. The threshold is applied.
 * @param first number of row 0, for messages. @param values NULL, or [n, max_lists - 1]: what is compared with the
 * threshold, of each list after the first that could be taken, infinity where there is none. @param room NULL, or what
 * there is; it is updated, row after row. @param compute for responsibilities.
 */
fgmm_status fgmm_choose(const fgmm_chooser *chooser, fgmm_dtype type, const void *rows, int64_t first, int64_t n,
                        const fgmm_compute_options *compute, int32_t *lists, float *values, fgmm_list_room *room);

/* The threshold at which a sample of the rows takes `budget` lists each: into chooser->threshold. */
fgmm_status fgmm_choose_threshold(fgmm_chooser *chooser, const fgmm_rows *rows, double budget, int64_t sample_rows,
                                  uint64_t seed, const fgmm_compute_options *compute);

#endif
