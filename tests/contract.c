#include "contract.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Responsibilities with r/w below this may be left out (lib/backend.h): so much of W w_k may be missing from N_k. */
static double cut_of(double e) {
    return e < 1e-6 ? 0 : e < 2e-3 ? 1e-7 : 1e-5;
}

double contract_tolerance(const reference *r, fgmm_precision precision) {
    /* In double a log-probability is off by a few units of its last place, and so are responsibilities relatively. */
    if (precision == FGMM_DOUBLE) return 1e-12 + DBL_EPSILON * (4 * r->largest + r->condition);
    return fmax(precision == FGMM_FAST ? 2e-3 : 1e-5, 1e-7 * sqrt(r->condition));
}

static double count_tolerance(const problem *p, const reference *r, int64_t k, double e) {
    return e * r->counts[k] + cut_of(e) * p->model_weights[k] * r->weight + 1e-290; /* denormal numbers aside */
}

static double column_size(const problem *p, int64_t j) {
    double largest = 0;
    for (int64_t i = 0; i < p->n; i++)
        largest = fmax(largest, fabs(reference_value(p->rows, p->type, i * p->stride + j)));
    return largest;
}

static double row_value(const problem *p, int64_t i, int64_t j) {
    return reference_value(p->rows, p->type, i * p->stride + j);
}

/* What the rows that the cut may leave out of component k add to its mean (power 1: of column a) and covariance
 * (2: of columns a and b). */
static double share_of_cut(const problem *p, const reference *r, int64_t k, int64_t a, int64_t b, int power, double e) {
    double share = 0;
    for (int64_t i = 0; i < p->n && e > 1e-6; i++) {
        double resp = r->resp[i * p->k + k], w = p->weights ? p->weights[i] : 1;
        if (resp > 1.001 * cut_of(e) * p->model_weights[k]) continue;
        double t = fabs(row_value(p, i, a) - r->means[k * p->d + a]);
        share += w * resp * t * (power == 2 ? fabs(row_value(p, i, b) - r->means[k * p->d + b]) : 1);
    }
    return share;
}

/*
 * What a component of less than a row, to which nothing is promised, may leave in a tied matrix: the rounding of its
 * scatter about the old mean, from which the shift to the new one is taken off, or all of that where its share is
 * below 1e-12 of an equal one: then it counts as dead and keeps its mean.
 */
static double share_of_small(const problem *p, const reference *r, int64_t k, int64_t a, int64_t b, double e) {
    double share = 0, rounding = e < 1e-6 ? 8 * DBL_EPSILON : 1e-12;
    const double *mean = p->means + k * p->d;
    if (r->counts[k] <= 1.001e-12 * r->weight / (double)p->k) rounding = 1;
    for (int64_t i = 0; i < p->n && r->counts[k] < 1; i++) {
        double w = p->weights ? p->weights[i] : 1;
        share += w * r->resp[i * p->k + k] * fabs(row_value(p, i, a) - mean[a]) * fabs(row_value(p, i, b) - mean[b]);
    }
    return share * rounding;
}

/*
 * The second moment of column j about the component's old mean, as the type has it. Sums are taken about the old means
 * and moved to the new ones, so they hold the variance beside the square of the way: what the moment's own rounding
 * leaves of a variance is all that sums that may be merged with others can tell. Rounding is taken as 8 units of the
 * last place of a double: a term, its square, the weight, the sum, the division and the square of the way each give one.
 */
static double old_moment(const problem *p, const reference *r, int64_t k, int64_t j) {
    int spherical = p->covariance == FGMM_SPHERICAL, tied = p->covariance == FGMM_TIED;
    double moved = 0;
    for (int64_t i = tied ? 0 : k; i < (tied ? p->k : k + 1); i++) {
        for (int64_t m = spherical ? 0 : j; m < (spherical ? p->d : j + 1); m++) {
            double way = r->means[i * p->d + m] - p->means[i * p->d + m];
            moved += way * way * (tied ? r->counts[i] / r->weight : 1);
        }
    }
    return covariance_variance(p->covariance, r->covariances, p->d, k, j) + moved / (spherical ? (double)p->d : 1);
}

/*
 * What is forgiven a variance or covariance beside e, as the type has it: a spherical one is of all columns, a tied one
 * of all components.
 */
static double variance_share(const problem *p, const reference *r, int64_t k, int64_t a, int64_t b, double e) {
    double share = 0, count = r->counts[k];
    if (p->covariance == FGMM_SPHERICAL) {
        for (int64_t j = 0; j < p->d; j++) share += share_of_cut(p, r, k, j, j, 2, e) / (double)p->d;
    } else if (p->covariance == FGMM_TIED) {
        for (int64_t i = 0; i < p->k; i++)
            share += share_of_cut(p, r, i, a, b, 2, e) + share_of_small(p, r, i, a, b, e);
        count = r->weight;
    } else {
        share = share_of_cut(p, r, k, a, b, 2, e);
    }
    /* Sums may have been taken a row at a time, and each merged. */
    double rounding = 32 * DBL_EPSILON * sqrt(old_moment(p, r, k, a) * old_moment(p, r, k, b));
    return share / count + rounding;
}

/*
 * A mean and a variance against the reference's. A component whose rows coincide has no deviation to measure by: what
 * is left then is the rounding of x - m, where m is a double or, on a device without them, at least as good as 1e-9 of
 * x. A variance below 1e-9 of the mean's size is lifted to that (lib/mstep.c), so this much is forgiven too. A
 * component that is hardly more than one row owes its variance to responsibilities so small that the cut is seen in it.
 */
static void check_mean(const problem *p, const reference *r, int64_t k, int64_t j, double mean, double size, double e) {
    double expected = r->means[k * p->d + j];
    double deviation = sqrt(covariance_variance(p->covariance, r->covariances, p->d, k, j));
    /* A new mean is a centre and a shift: it also has the old one's rounding. */
    double rounding = fmax(size, fabs(p->means[k * p->d + j])) * (e < 1e-6 ? 1e-15 : 1e-9);
    double error = fabs(mean - expected);
    if (error <= e * deviation + rounding) return;
    double share = share_of_cut(p, r, k, j, j, 1, e) / r->counts[k];
    EXPECT(error <= e * deviation + rounding + share,
           "%s: mean[%d][%d] is %.17g, not %.17g: %.3g deviations off, N_k = %g", p->name, (int)k, (int)j, mean,
           expected, error / deviation, r->counts[k]);
}

/* An entry (a, b) of component k; size holds those of the columns. */
static void check_covariance(const problem *p, const reference *r, int64_t k, int64_t a, int64_t b, double got,
                             const double *size, double e) {
    int64_t at = covariance_index(p->covariance, p->d, k, a, b);
    double expected = r->covariances[at], error = fabs(got - expected - (a == b ? p->reg_covar : 0));
    double deviation_a = sqrt(covariance_variance(p->covariance, r->covariances, p->d, k, a));
    double deviation_b = sqrt(covariance_variance(p->covariance, r->covariances, p->d, k, b)),
           scale = deviation_a * deviation_b;
    double forgiven = 1.01e-18 * size[a] * size[b] + 1e-30 + 4 * DBL_EPSILON * p->reg_covar;
    /* The mean of a constant column is rounded too: to 2^-48 of itself where it is two floats. */
    forgiven += 0x1p-47 * (size[a] * deviation_b + size[b] * deviation_a);
    if (error <= e * scale + forgiven) return;
    EXPECT(error <= e * scale + forgiven + variance_share(p, r, k, a, b, e),
           "%s: covariance[%d][%d][%d] is %.17g, not %.17g and %.3g added: %.3g off, relatively %.3g, N_k = %g",
           p->name, (int)k, (int)a, (int)b, got, expected, p->reg_covar, error, error / scale, r->counts[k]);
}

/*
 * The new covariance in the frame where the reference's is I. Errors of responsibilities look there as they do
 * elsewhere; the rounding of the entries themselves, which are doubles, grows by the condition.
 */
static void check_whitened(const problem *p, const reference *r, int64_t k, const double *got, double e) {
    int64_t d = p->d, at = covariance_index(p->covariance, d, k, 0, 0);
    size_t size = (size_t)(d * d);
    long double *w = test_alloc(size, sizeof *w);
    double *half = test_alloc(size, sizeof *half), *off = test_alloc(size, sizeof *off);
    double condition = 0, worst = 0, share = 0;
    long double log_det = reference_factor(r->covariances + at, d, p->reg_covar, w, &condition);
    ck_assert_msg(log_det == log_det, "%s: the test's covariance %d is not definite", p->name, (int)k);
    for (size_t i = 0; i < size; i++) {
        long double added = i % (size_t)(d + 1) == 0 ? p->reg_covar : 0;
        off[i] = (double)(got[i] - (r->covariances[(size_t)at + i] + added));
    }
    for (int64_t i = 0; i < d; i++) { /* half = W dS */
        for (int64_t m = 0; m <= i; m++) {
            double factor = (double)w[i * d + m];
            for (int64_t j = 0; j < d; j++) half[i * d + j] += factor * off[m * d + j];
        }
    }
    for (int64_t i = 0; i < d; i++) {
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t m = 0; m <= j; m++) sum += half[i * d + m] * (double)w[j * d + m];
            worst = fmax(worst, fabs(sum));
        }
    }
    double tolerance = e + 16 * DBL_EPSILON * condition;
    for (int64_t i = 0; i < d && worst > tolerance; i++) {
        double deviation = 0; /* of the cut's share in the whitened feature i, were all features to conspire */
        for (int64_t m = 0; m <= i; m++)
            deviation += (double)fabsl(w[i * d + m]) * sqrt(variance_share(p, r, k, m, m, e));
        share = fmax(share, deviation * deviation);
    }
    EXPECT(worst <= tolerance + share, "%s: whitened covariance %d is %.3g off, condition %.3g, N_k = %g", p->name,
           (int)k, worst, condition, r->counts[k]);
    free(w);
    free(half);
    free(off);
}

void contract_check_stats(const problem *p, const reference *r, const fgmm_stats *stats, double e) {
    fgmm_stats_view view;
    fgmm_stats_export(stats, &view);
    ck_assert_int_eq(view.k, p->k);
    ck_assert_int_eq(view.d, p->d);
    /* A device that computes in f32 keeps the rows' weights so. */
    EXPECT(fabs(view.weight - r->weight) <= (harness_is_cpu() ? 1e-12 : 6e-8) * r->weight,
           "%s: the weights sum to %.17g, not %.17g", p->name, view.weight, r->weight);
    EXPECT(fabs(view.rows - (double)p->n) < 0.5, "%s: %g rows seen of %g", p->name, view.rows, (double)p->n);
    double mean = r->log_likelihood / r->weight, got = view.log_likelihood / view.weight;
    EXPECT(fabs(got - mean) <= e * fmax(1, fabs(mean)), "%s: log-likelihood %.17g, not %.17g: %.3g off", p->name, got,
           mean, fabs(got - mean));
    for (int64_t k = 0; k < p->k; k++) {
        EXPECT(fabs(view.s0[k] - r->counts[k]) <= count_tolerance(p, r, k, e),
               "%s: N[%d] is %.17g, not %.17g: relatively %.3g off", p->name, (int)k, view.s0[k], r->counts[k],
               fabs(view.s0[k] / r->counts[k] - 1));
    }
}

/* The covariance of component k, or of all. */
static void check_component(const problem *p, const reference *r, int64_t k, const double *covariances,
                            const double *size, double e) {
    int64_t d = p->d;
    int matrix = covariance_is_matrix(p->covariance);
    for (int64_t i = 0; i < (p->covariance == FGMM_SPHERICAL ? 1 : d); i++) {
        for (int64_t j = matrix ? 0 : i; j < (matrix ? d : i + 1); j++) {
            double got = covariances[covariance_index(p->covariance, d, k, i, j)];
            check_covariance(p, r, k, i, j, got, size, e);
            if (matrix)
                EXPECT(got == covariances[covariance_index(p->covariance, d, k, j, i)],
                       "%s: covariance %d is not symmetric at %d, %d", p->name, (int)k, (int)i, (int)j);
        }
    }
    if (matrix) check_whitened(p, r, k, covariances + covariance_index(p->covariance, d, k, 0, 0), e);
}

void contract_check_same(const fgmm_model *a, const fgmm_model *b) {
    size_t k = (size_t)fgmm_model_components(a), d = (size_t)fgmm_model_features(a);
    ck_assert_uint_eq(k, (size_t)fgmm_model_components(b));
    ck_assert_mem_eq(fgmm_model_weights(a), fgmm_model_weights(b), k * sizeof(double));
    ck_assert_mem_eq(fgmm_model_means(a), fgmm_model_means(b), k * d * sizeof(double));
    ck_assert_mem_eq(fgmm_model_covariances(a), fgmm_model_covariances(b),
                     (size_t)fgmm_model_covariances_size(a) * sizeof(double));
    ck_assert(fgmm_model_lower_bound(a) == fgmm_model_lower_bound(b));
    ck_assert_int_eq(fgmm_model_iterations(a), fgmm_model_iterations(b));
    ck_assert_int_eq(fgmm_model_converged(a), fgmm_model_converged(b));
}

void contract_check_model(const problem *p, const reference *r, const fgmm_model *model, double e) {
    const double *weights = fgmm_model_weights(model), *means = fgmm_model_means(model);
    const double *covariances = fgmm_model_covariances(model);
    ck_assert_int_eq(fgmm_model_components(model), p->k);
    ck_assert_int_eq(fgmm_model_covariance_type(model), p->covariance);
    ck_assert_int_eq(fgmm_model_covariances_size(model), covariance_size(p->covariance, p->k, p->d));
    double mean = r->log_likelihood / r->weight;
    EXPECT(fabs(fgmm_model_lower_bound(model) - mean) <= e * fmax(1, fabs(mean)), "%s: lower bound %.17g, not %.17g",
           p->name, fgmm_model_lower_bound(model), mean);
    double *size = test_alloc((size_t)p->d, sizeof *size), total = 0;
    for (int64_t j = 0; j < p->d; j++) size[j] = column_size(p, j);
    /* A spherical variance is of all columns, and so is what is forgiven it. */
    for (int64_t j = 1; j < p->d && p->covariance == FGMM_SPHERICAL; j++) size[0] = fmax(size[0], size[j]);
    for (int64_t j = 1; j < p->d && p->covariance == FGMM_SPHERICAL; j++) size[j] = size[0];
    for (int64_t k = 0; k < p->k; k++) {
        /* Weights are N_k over their sum, both within the bound; a share below 1e-12 of an equal one is none. */
        EXPECT(fabs(weights[k] - r->counts[k] / r->weight) <=
                   2 * count_tolerance(p, r, k, e) / r->weight + e * weights[k] + 1e-12 / (double)p->k,
               "%s: weight[%d] is %.17g, not %.17g", p->name, (int)k, weights[k], r->counts[k] / r->weight);
        total += weights[k];
        for (int64_t j = 0; j < p->d; j++) {
            double variance = covariance_variance(p->covariance, covariances, p->d, k, j);
            EXPECT(isfinite(means[k * p->d + j]) && isfinite(variance) && variance > 0,
                   "%s: mean[%d][%d] = %g, variance %g", p->name, (int)k, (int)j, means[k * p->d + j], variance);
        }
        for (int64_t j = 0; j < p->d && r->counts[k] >= 1; j++) check_mean(p, r, k, j, means[k * p->d + j], size[j], e);
        if (p->covariance == FGMM_TIED ? k == 0 && r->weight >= 1 : r->counts[k] >= 1)
            check_component(p, r, k, covariances, size, e);
    }
    EXPECT(fabs(total - 1) <= 1e-12, "%s: the weights sum to %.17g", p->name, total);
    free(size);
}
