/*
 * Whether the sums of a pass are as exact as promised, from the sums themselves.
 *
 * Two things can go wrong, both only when a component has moved or shrunk a lot in one iteration.
 *  - Sums about a centre c lose digits when the new mean lies far from c: var = s2/s0 - shift^2, and the terms of s2
 *    carry a relative error epsilon each, so the variance is off by up to epsilon * s2/s0.
 *  - What was dropped of component k is at most cut * w_k W of its count and cut * w_k W of its *old* variance
 *    (backend.h, the row's cut; W: sum of the weights). Against N_k and the new variance that may be much.
 * The roundings of a sum of many terms are not counted: chunks of at most 1024 terms are added up in double or
 * float-float, which leaves them far below the term's own. A column that is constant within a component has no
 * variance to protect beyond the rounding of its values.
 */
#include "pass_check.h"

#include <math.h>

#include "clones.h"

/* Half of a contract is spent on what is dropped; a tenth of it is what the variances may be off by. */
static const double dropped_share = 5;

/* The least share of a row, by count or by weight, that is held to: the contract begins at one, but sums may be merged
 * with others that hold the rest of it. */
static const double least_row = 0.5;

/* Of a term of a matrix sum, whatever the backend: products of two floats, as two floats. */
static const double matrix_epsilon = 0x1p-44;

/* Variances of a component: the least against what it was, at most 1, and whether one may be off by too much. */
typedef struct {
    double shrunk;
    int coarse;
} variance_check;

/* Variance `about` (about the centre), `shift2` (square of the new mean's distance from it), `old` (of the model). */
static FGMM_INTO_CLONES void check_variance(variance_check *check, double epsilon, double tolerance, double about,
                                            double shift2, double noise, double old) {
    /* Comparisons in place of fmax and fmin, which are calls: this runs for each cell. NaN takes the other side here, too. */
    double left = about - shift2, variance = (left > noise ? left : noise) + 1e-300, shrunk = variance / old;
    check->coarse |= epsilon * about > tolerance * variance;
    check->shrunk = shrunk < check->shrunk ? shrunk : check->shrunk;
}

static fgmm_pass_check checked(const variance_check *variances, double tolerance, double promised) {
    return (fgmm_pass_check){.cut = fmin(1, dropped_share * tolerance * variances->shrunk / promised),
                             .recentre = variances->coarse};
}

static int is_held_to(const fgmm_stats *stats, int64_t i) {
    return stats->s0[i] >= least_row * fmin(1, stats->weight / stats->rows);
}

/* The largest share that a component was promised against what it got. */
static double largest_promise(const fgmm_stats *stats) {
    double promised = 0;
    for (int64_t i = 0; i < stats->model->k; i++)
        if (is_held_to(stats, i)) promised = fmax(promised, stats->model->weights[i] * stats->weight / stats->s0[i]);
    return promised;
}

/* Tied: column j over all components. */
static fgmm_pass_check check_tied(const fgmm_stats *stats, double epsilon, double tolerance, double promised,
                                  int64_t j) {
    variance_check check = {.shrunk = 1};
    const fgmm_model *model = stats->model;
    int64_t k = model->k, d = model->d;
    double shift2 = 0, noise = 0, total = 0;
    for (int64_t i = 0; i < k; i++) {
        if (!(stats->s0[i] > 0)) continue;
        double shift = stats->s1[i * d + j] / stats->s0[i];
        shift2 += stats->s0[i] * shift * shift;
        noise = fmax(noise, fgmm_variance_floor(stats->centres[i * d + j] + shift));
        total += stats->s0[i];
    }
    if (!(total > 0 && promised > 0)) return (fgmm_pass_check){.cut = 1};
    check_variance(&check, epsilon, tolerance, stats->s2[j * d + j] / total, shift2 / total, noise,
                   model->covariances[j * d + j]);
    return checked(&check, tolerance, promised);
}

FGMM_CLONES static fgmm_pass_check check_component(const fgmm_stats *stats, double epsilon, double tolerance,
                                                   int64_t i) {
    variance_check check = {.shrunk = 1};
    const fgmm_model *model = stats->model;
    int64_t d = model->d;
    double s0 = stats->s0[i], per = 1 / s0;
    if (!is_held_to(stats, i)) return (fgmm_pass_check){.cut = 1};
    double promised = model->weights[i] * stats->weight / s0;
    if (model->type == FGMM_SPHERICAL) {
        double moved, noises;
        fgmm_stats_moved(stats, i, &moved, &noises);
        check_variance(&check, epsilon, tolerance, stats->s2[i] / s0, moved, noises, model->covariances[i] * (double)d);
        return checked(&check, tolerance, promised);
    }
    for (int64_t j = 0; j < d; j++) {
        int64_t at = i * d + j, diagonal = model->type == FGMM_FULL ? at * d + j : at;
        double shift = stats->s1[at] * per;
        check_variance(&check, epsilon, tolerance, stats->s2[diagonal] * per, shift * shift,
                       fgmm_variance_floor(stats->centres[at] + shift), model->covariances[diagonal]);
    }
    return checked(&check, tolerance, promised);
}

fgmm_pass_check fgmm_check_pass(fgmm_context *ctx, const fgmm_stats *stats, double epsilon, double tolerance) {
    const fgmm_model *model = stats->model;
    int64_t k = model->k, d = model->d, tied = model->type == FGMM_TIED, count = tied ? d : k;
    int threads = fgmm_threads_over(ctx, (double)(k * d)), recentre = 0;
    double cut = 1, promised = tied ? largest_promise(stats) : 0;
    if (fgmm_has_matrices(model->type)) epsilon = fmin(epsilon, matrix_epsilon);
#pragma omp parallel for num_threads(threads) reduction(min : cut) reduction(| : recentre)
    for (int64_t i = 0; i < count; i++) {
        fgmm_pass_check check =
            tied ? check_tied(stats, epsilon, tolerance, promised, i) : check_component(stats, epsilon, tolerance, i);
        cut = fmin(cut, check.cut);
        recentre |= check.recentre;
    }
    return (fgmm_pass_check){.cut = cut, .recentre = recentre};
}
