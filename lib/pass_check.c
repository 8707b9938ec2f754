/*
 * Whether the sums of a pass are as exact as promised, from the sums themselves.
 *
 * Two things can go wrong, both only when a component has moved or shrunk a lot in one iteration.
 *  - Sums about a centre c lose digits when the new mean lies far from c: var = s2/s0 - shift^2, and the terms of s2 carry a
 *    relative error epsilon each, so the variance is off by up to epsilon * s2/s0.
 *  - What was dropped of component k is at most cut * w_k W of its count and cut * w_k W of its *old* variance (backend.h, the row's
 *    cut; W: sum of the weights). Against N_k and the new variance that may be much.
 * The roundings of a sum of many terms are not counted: chunks of at most 1024 terms are added up in double or
 * float-float, which leaves them far below the term's own.
 * A column that is constant within a component has no variance to protect beyond the rounding of its values.
 */
#include "pass_check.h"

#include <math.h>

/* Half of the contract of exact precision is spent on what is dropped. */
static const double dropped_share = 5e-6;

/* Variance `about` (about the centre), `shift2` (square of the new mean's distance from it), `old` (of the model). */
static void check_variance(fgmm_pass_check *check, double epsilon, double tolerance, double about, double shift2,
                           double noise, double old, double promised) {
    double variance = fmax(about - shift2, noise) + 1e-300;
    if (epsilon * about > tolerance * variance) check->recentre = 1;
    check->cut = fmin(check->cut, dropped_share * fmin(1, variance / old) / promised);
}

fgmm_pass_check fgmm_check_pass(const fgmm_stats *stats, double epsilon, double tolerance) {
    const fgmm_model *model = stats->model;
    int64_t k = model->k, d = model->d;
    fgmm_pass_check check = {.cut = 1};
    for (int64_t i = 0; i < k; i++) {
        /* Less than a row's worth, by count or by weight: nothing to hold to. */
        if (!(stats->s0[i] >= fmin(1, stats->weight / stats->rows))) continue;
        double promised = model->weights[i] * stats->weight / stats->s0[i], moved = 0, noises = 0;
        for (int64_t j = 0; j < d; j++) {
            int64_t at = i * d + j;
            double shift = stats->s1[at] / stats->s0[i], value = stats->centres[at] + shift;
            double noise = fgmm_variance_floor(value);
            moved += shift * shift;
            noises += noise;
            if (model->type == FGMM_DIAG)
                check_variance(&check, epsilon, tolerance, stats->s2[at] / stats->s0[i], shift * shift, noise,
                               model->covariances[at], promised);
        }
        if (model->type == FGMM_SPHERICAL)
            check_variance(&check, epsilon, tolerance, stats->s2[i] / stats->s0[i], moved, noises,
                           model->covariances[i] * (double)d, promised);
    }
    return check;
}
