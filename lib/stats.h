#ifndef FGMM_LIB_STATS_H
#define FGMM_LIB_STATS_H

#include "clones.h"
#include "ranks.h"
#include "model.h"

struct fgmm_stats {
    const fgmm_model *model; /* what the responsibilities were taken under */
    fgmm_model *owned;       /* the same, or NULL where it is borrowed */
    double *centres;         /* [K, D] */
    int about_means;         /* 1: they are the model's means, or a pass is to make them so */
    fgmm_group *group;       /* the ranks that the rows are shared among, or NULL: what the sums are over */
    /* s0, s1, s2 and room for FGMM_STATS_TAIL numbers more lie one behind the other: ranks add them up as one. */
    double *s0; /* [K] */
    double *s1; /* [K, D] */
    double *s2; /* [K], [K, D], [D, D] (over all components) or [K, D, D]: fgmm_covariances_size(model) doubles */
    double log_likelihood, weight, rows;
    /* What follows under the model that an M-step makes of them, which freezes nothing and adds reg_covar to variances. */
    fgmm_follower followed;
    double reg_covar;
};

enum { FGMM_STATS_TAIL = 8 };

/* A hash of the shape and of every number of a model: fgmm_stats_view.fingerprint. */
uint64_t fgmm_model_fingerprint(const fgmm_model *model);
fgmm_status fgmm_model_copy(fgmm_context *ctx, fgmm_model **out, const fgmm_model *model);
/* The same into a model of that shape. */
void fgmm_model_assign(fgmm_context *ctx, fgmm_model *to, const fgmm_model *model);

/* Sums at zero, about the model's means if they are said to be: threads gather once. */
void fgmm_stats_start(fgmm_context *ctx, fgmm_stats *stats);

/* Moves the sums to other centres, exactly up to rounding in double. @param centres [K, D], not the statistics' own. */
void fgmm_stats_shift(fgmm_stats *stats, const double *centres);

/* The floor under a variance about this mean: what rounding may leave of identical values. A mean is held to 2^-53 of
 * itself on the host and, as two floats, to 2^-48 on a device; nothing below (2^-47 |mean|)^2 can be told from 0. */
static inline double fgmm_variance_floor(double mean) {
    double floor = 0x1p-94 * mean * mean;
    return floor > 1e-30 ? floor : 1e-30;
}

/* Of component i: the square of its new mean's distance from its centre, and the sum of the floors of its variances. */
static FGMM_INTO_CLONES void fgmm_stats_moved(const fgmm_stats *stats, int64_t i, double *square, double *floor) {
    int64_t d = stats->model->d;
    const double *s1 = stats->s1 + i * d, *centres = stats->centres + i * d, per = 1 / stats->s0[i];
    double squares[FGMM_LANES] = {0}, floors[FGMM_LANES] = {0};
    int64_t j = 0;
    for (; j + FGMM_LANES <= d; j += FGMM_LANES)
#pragma omp simd
        for (int l = 0; l < FGMM_LANES; l++) {
            double shift = s1[j + l] * per;
            squares[l] += shift * shift;
            floors[l] += fgmm_variance_floor(centres[j + l] + shift);
        }
    for (; j < d; j++) {
        double shift = s1[j] * per;
        squares[0] += shift * shift;
        floors[0] += fgmm_variance_floor(centres[j] + shift);
    }
    *square = fgmm_add_lanes(squares);
    *floor = fgmm_add_lanes(floors);
}

/* What an M-step noticed about a component. */
typedef enum fgmm_fate { FGMM_ALIVE = 0, FGMM_DEAD = 1, FGMM_COLLAPSED = 2 } fgmm_fate;

/* The M-step. reg_covar >= 0 is added. @param reuse taken: becomes the new model where it has the shape, else freed; may be NULL.
 * @param fates [K], or NULL. */
fgmm_status fgmm_mstep(fgmm_context *ctx, const fgmm_stats *stats, double reg_covar, unsigned freeze, fgmm_model *reuse,
                       fgmm_model **out, fgmm_fate *fates);

#endif
