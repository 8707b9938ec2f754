#include "contract.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Responsibilities with r/w below this may be left out (lib/backend.h): so much of W w_k may be missing from N_k. */
static const double CUT = 1e-7;

double contract_tolerance(const reference *r, fgmm_precision precision) {
    /* In double a log-probability is off by a few units of its last place, and so are responsibilities relatively. */
    if (precision == FGMM_DOUBLE) return 1e-12 + 4 * DBL_EPSILON * r->largest;
    return precision == FGMM_FAST ? 2e-3 : 1e-5;
}

static double count_tolerance(const problem *p, const reference *r, int64_t k, double e) {
    double cut = e < 1e-6 ? 0 : CUT;
    return e * r->counts[k] + cut * p->model_weights[k] * r->weight + 1e-290; /* denormal numbers aside */
}

static double column_size(const problem *p, int64_t j) {
    double largest = 0;
    for (int64_t i = 0; i < p->n; i++)
        largest = fmax(largest, fabs(reference_value(p->rows, p->type, i * p->stride + j)));
    return largest;
}

/* What the rows that the cut may leave out of component k add to its mean and variance. */
typedef struct cut_share {
    double mean, variance;
} cut_share;

static cut_share share_of_cut(const problem *p, const reference *r, int64_t k, int64_t j, double e) {
    cut_share share = {0, 0};
    int64_t first = p->diag ? j : 0, last = p->diag ? j : p->d - 1; /* a spherical variance is of all columns */
    for (int64_t i = 0; i < p->n && e > 1e-6; i++) {
        double resp = r->resp[i * p->k + k], w = p->weights ? p->weights[i] : 1;
        if (resp > 1.001 * CUT * p->model_weights[k]) continue;
        for (int64_t column = first; column <= last; column++) {
            double t = reference_value(p->rows, p->type, i * p->stride + column) - r->means[k * p->d + column];
            if (column == j) share.mean += w * resp * fabs(t) / r->counts[k];
            share.variance += w * resp * t * t / r->counts[k] / (double)(last - first + 1);
        }
    }
    return share;
}

/*
 * A mean and a variance against the reference's. A component whose rows coincide has no deviation to measure by: what
 * is left then is the rounding of x - m, where m is a double or, on a device without them, at least as good as 1e-9 of
 * x. A variance below 1e-9 of the mean's size is lifted to that (lib/mstep.c), so this much is forgiven too. A
 * component that is hardly more than one row owes its variance to responsibilities so small that the cut is seen in it.
 */
static void check_moments(const problem *p, const reference *r, int64_t k, int64_t j, double mean, double variance,
                          double size, double e) {
    double true_mean = r->means[k * p->d + j], true_variance = r->covariances[p->diag ? k * p->d + j : k];
    /* A new mean is a centre and a shift: it also has the old one's rounding. */
    double rounding = fmax(size, fabs(p->means[k * p->d + j])) * (e < 1e-6 ? 1e-15 : 1e-9);
    double mean_error = fabs(mean - true_mean) - e * sqrt(true_variance) - rounding;
    double variance_error = fabs(variance - true_variance) - e * true_variance - 1.01e-18 * size * size - 1e-30;
    if (mean_error <= 0 && variance_error <= 0) return;
    cut_share cut = share_of_cut(p, r, k, j, e);
    EXPECT(mean_error <= cut.mean, "%s: mean[%d][%d] is %.17g, not %.17g: %.3g deviations off, N_k = %g", p->name,
           (int)k, (int)j, mean, true_mean, fabs(mean - true_mean) / sqrt(true_variance), r->counts[k]);
    EXPECT(variance_error <= cut.variance, "%s: variance[%d][%d] is %.17g, not %.17g: relatively %.3g off, N_k = %g",
           p->name, (int)k, (int)j, variance, true_variance, fabs(variance / true_variance - 1), r->counts[k]);
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

void contract_check_model(const problem *p, const reference *r, const fgmm_model *model, double e) {
    const double *weights = fgmm_model_weights(model), *means = fgmm_model_means(model);
    const double *covariances = fgmm_model_covariances(model);
    ck_assert_int_eq(fgmm_model_components(model), p->k);
    ck_assert_int_eq(fgmm_model_covariance_type(model), p->diag ? FGMM_DIAG : FGMM_SPHERICAL);
    double mean = r->log_likelihood / r->weight;
    EXPECT(fabs(fgmm_model_lower_bound(model) - mean) <= e * fmax(1, fabs(mean)), "%s: lower bound %.17g, not %.17g",
           p->name, fgmm_model_lower_bound(model), mean);
    double *size = test_alloc((size_t)p->d, sizeof *size), total = 0;
    for (int64_t j = 0; j < p->d; j++) size[j] = column_size(p, j);
    /* A spherical variance is of all columns, and so is what is forgiven it. */
    for (int64_t j = 0; j < p->d && !p->diag; j++) size[0] = fmax(size[0], size[j]);
    for (int64_t k = 0; k < p->k; k++) {
        /* Weights are N_k over their sum, both within the bound; a share below 1e-12 of an equal one is none. */
        EXPECT(fabs(weights[k] - r->counts[k] / r->weight) <=
                   2 * count_tolerance(p, r, k, e) / r->weight + e * weights[k] + 1e-12 / (double)p->k,
               "%s: weight[%d] is %.17g, not %.17g", p->name, (int)k, weights[k], r->counts[k] / r->weight);
        total += weights[k];
        for (int64_t j = 0; j < p->d; j++) {
            double variance = covariances[p->diag ? k * p->d + j : k];
            EXPECT(isfinite(means[k * p->d + j]) && isfinite(variance) && variance > 0,
                   "%s: mean[%d][%d] = %g, variance %g", p->name, (int)k, (int)j, means[k * p->d + j], variance);
            if (r->counts[k] >= 1) check_moments(p, r, k, j, means[k * p->d + j], variance, size[p->diag ? j : 0], e);
        }
    }
    EXPECT(fabs(total - 1) <= 1e-12, "%s: the weights sum to %.17g", p->name, total);
    free(size);
}
