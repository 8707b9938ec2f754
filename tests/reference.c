#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double half_value(uint16_t bits) {
    int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    double magnitude;
    if (exponent == 0)
        magnitude = ldexp(fraction, -24);
    else if (exponent == 31)
        magnitude = fraction ? NAN : INFINITY;
    else
        magnitude = ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static double bfloat_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

double reference_value(const void *data, fgmm_dtype type, int64_t i) {
    switch (type) {
    case FGMM_F32: return ((const float *)data)[i];
    case FGMM_F64: return ((const double *)data)[i];
    case FGMM_F16: return half_value(((const uint16_t *)data)[i]);
    case FGMM_BF16: return bfloat_value(((const uint16_t *)data)[i]);
    case FGMM_U8: return ((const uint8_t *)data)[i];
    case FGMM_I8: return ((const int8_t *)data)[i];
    default: return NAN;
    }
}

long double reference_factor(const double *s, int64_t d, double added, long double *whitening, double *condition) {
    long double *l = test_alloc((size_t)(d * d), sizeof *l), log_det = 0, inflation = 0;
    for (int64_t i = 0; i < d; i++) {
        for (int64_t j = 0; j <= i; j++) {
            long double sum = (long double)s[i * d + j] + (i == j ? added : 0);
            for (int64_t m = 0; m < j; m++) sum -= l[i * d + m] * l[j * d + m];
            if (i == j && !(sum > 0)) {
                free(l);
                return NAN;
            }
            l[i * d + j] = i == j ? sqrtl(sum) : sum / l[j * d + j];
        }
        log_det += 2 * logl(l[i * d + i]);
    }
    for (int64_t j = 0; j < d; j++) {
        long double inverse = 0; /* (S^-1)_jj */
        for (int64_t i = 0; i < d; i++) {
            long double sum = i == j;
            for (int64_t m = j; m < i; m++) sum -= l[i * d + m] * whitening[m * d + j];
            whitening[i * d + j] = i < j ? 0 : sum / l[i * d + i];
            inverse += whitening[i * d + j] * whitening[i * d + j];
        }
        inflation += inverse * ((long double)s[j * d + j] + added);
    }
    *condition = fmax(*condition, (double)inflation);
    free(l);
    return log_det;
}

/* What the E-step needs of a component beside its mean. */
typedef struct frame {
    long double *constant;  /* [k]: log w_k - D/2 log 2pi - 1/2 log|S_k| */
    long double *whitening; /* tied and full: shaped as the covariances */
} frame;

static const long double *whitening_of(const problem *p, const frame *f, int64_t k) {
    return f->whitening + (p->covariance == FGMM_TIED ? 0 : k * p->d * p->d);
}

static frame frame_make(const problem *p, double *condition) {
    const long double two_pi = 6.283185307179586476925286766559L;
    int64_t d = p->d;
    frame f = {test_alloc((size_t)p->k, sizeof *f.constant), NULL};
    int matrix = covariance_is_matrix(p->covariance);
    if (matrix) f.whitening = test_alloc((size_t)covariance_size(p->covariance, p->k, d), sizeof *f.whitening);
    long double log_det = 0;
    for (int64_t k = 0; k < p->k; k++) {
        if (p->covariance == FGMM_FULL || (p->covariance == FGMM_TIED && k == 0)) {
            int64_t at = covariance_index(p->covariance, d, k, 0, 0);
            log_det = reference_factor(p->covariances + at, d, 0, f.whitening + at, condition);
            ck_assert_msg(log_det == log_det, "%s: covariance %d is not positive definite", p->name, (int)k);
        }
        if (!matrix) log_det = 0;
        for (int64_t j = 0; j < d && !matrix; j++)
            log_det += logl(covariance_variance(p->covariance, p->covariances, d, k, j));
        f.constant[k] = -0.5L * ((long double)d * logl(two_pi) + log_det);
        if (p->model_weights[k] > 0) f.constant[k] += logl(p->model_weights[k]);
    }
    return f;
}

/* (x - m_k)' S_k^-1 (x - m_k). */
static long double mahalanobis(const problem *p, const frame *f, const double *x, int64_t k) {
    int64_t d = p->d;
    const double *mean = p->means + k * d;
    long double q = 0;
    for (int64_t i = 0; i < d; i++) {
        long double t = (long double)x[i] - mean[i];
        if (f->whitening) {
            const long double *w = whitening_of(p, f, k) + i * d;
            t = 0;
            for (int64_t j = 0; j <= i; j++) t += w[j] * ((long double)x[j] - mean[j]);
            q += t * t;
        } else {
            q += t * t / covariance_variance(p->covariance, p->covariances, d, k, i);
        }
    }
    return q;
}

/* log w_k - D/2 log 2pi - 1/2 log|S_k| - 1/2 (x - m_k)' S_k^-1 (x - m_k) for each k. */
static void joint_log_prob(const problem *p, const frame *f, const double *x, long double *out) {
    for (int64_t k = 0; k < p->k; k++)
        out[k] = p->model_weights[k] > 0 ? f->constant[k] - mahalanobis(p, f, x, k) / 2 : -INFINITY;
}

static void expectation(const problem *p, const double *x, reference *r) {
    frame f = frame_make(p, &r->condition);
    long double *l = test_alloc((size_t)p->k, sizeof *l);
    long double total = 0, weight = 0;
    for (int64_t i = 0; i < p->n; i++) {
        joint_log_prob(p, &f, x + i * p->d, l);
        long double best = l[0], sum = 0;
        for (int64_t k = 1; k < p->k; k++) best = l[k] > best ? l[k] : best;
        for (int64_t k = 0; k < p->k; k++) sum += expl(l[k] - best);
        for (int64_t k = 0; k < p->k; k++) r->resp[i * p->k + k] = (double)(expl(l[k] - best) / sum);
        long double w = p->weights ? p->weights[i] : 1;
        r->log_prob[i] = (double)(best + logl(sum));
        if (w > 0) r->largest = fmax(r->largest, fabs((double)best));
        total += w * (best + logl(sum));
        weight += w;
    }
    r->log_likelihood = (double)total;
    r->weight = (double)weight;
    free(f.constant);
    free(f.whitening);
    free(l);
}

/* Sums over rows of w r (x - about)^power for one component and feature. */
static long double moment(const problem *p, const double *x, const reference *r, int64_t k, int64_t j, double about,
                          int power) {
    long double sum = 0;
    for (int64_t i = 0; i < p->n; i++) {
        long double t = (long double)x[i * p->d + j] - about;
        long double w = p->weights ? p->weights[i] : 1;
        sum += w * r->resp[i * p->k + k] * (power == 2 ? t * t : t);
    }
    return sum;
}

static void update_means(const problem *p, const double *x, reference *r) {
    for (int64_t k = 0; k < p->k; k++) {
        long double count = 0;
        for (int64_t i = 0; i < p->n; i++) count += (p->weights ? p->weights[i] : 1) * r->resp[i * p->k + k];
        r->counts[k] = (double)count;
        for (int64_t j = 0; j < p->d; j++) {
            double *mean = &r->means[k * p->d + j];
            *mean = p->means[k * p->d + j];
            if (count > 0) *mean = (double)(*mean + moment(p, x, r, k, j, *mean, 1) / count);
        }
    }
}

static void update_variances(const problem *p, const double *x, reference *r) {
    for (int64_t k = 0; k < p->k; k++) {
        long double all = 0;
        if (r->counts[k] == 0) continue;
        for (int64_t j = 0; j < p->d; j++) {
            long double variance = moment(p, x, r, k, j, r->means[k * p->d + j], 2) / r->counts[k];
            if (p->covariance == FGMM_DIAG) r->covariances[k * p->d + j] = (double)variance;
            all += variance;
        }
        if (p->covariance == FGMM_SPHERICAL) r->covariances[k] = (double)(all / p->d);
    }
}

/* Adds sum of w r (x - m)(x - m)' of a component to the lower triangle of sum. */
static void add_scatter(const problem *p, const double *x, const reference *r, int64_t k, long double *sum) {
    int64_t d = p->d;
    long double *t = test_alloc((size_t)d, sizeof *t);
    for (int64_t row = 0; row < p->n; row++) {
        long double wr = (p->weights ? p->weights[row] : 1) * (long double)r->resp[row * p->k + k];
        if (wr == 0) continue;
        for (int64_t j = 0; j < d; j++) t[j] = (long double)x[row * d + j] - r->means[k * d + j];
        for (int64_t i = 0; i < d; i++) {
            for (int64_t j = 0; j <= i; j++) sum[i * d + j] += wr * t[i] * t[j];
        }
    }
    free(t);
}

static void update_matrices(const problem *p, const double *x, reference *r) {
    int64_t d = p->d;
    int tied = p->covariance == FGMM_TIED;
    long double *sum = test_alloc((size_t)(d * d), sizeof *sum), count = 0;
    for (int64_t k = 0; k < p->k; k++) {
        add_scatter(p, x, r, k, sum);
        count += r->counts[k];
        if (tied && k < p->k - 1) continue;
        for (int64_t i = 0; i < d && count > 0; i++) {
            for (int64_t j = 0; j <= i; j++) {
                double entry = (double)(sum[i * d + j] / count);
                r->covariances[covariance_index(p->covariance, d, k, i, j)] = entry;
                r->covariances[covariance_index(p->covariance, d, k, j, i)] = entry;
            }
        }
        memset(sum, 0, (size_t)(d * d) * sizeof *sum);
        count = 0;
    }
    free(sum);
}

reference *reference_step(const problem *p) {
    reference *r = test_alloc(1, sizeof *r);
    double *x = test_alloc((size_t)(p->n * p->d), sizeof *x);
    r->n = p->n;
    r->k = p->k;
    r->d = p->d;
    r->log_prob = test_alloc((size_t)p->n, sizeof(double));
    r->resp = test_alloc((size_t)(p->n * p->k), sizeof(double));
    r->counts = test_alloc((size_t)p->k, sizeof(double));
    r->means = test_alloc((size_t)(p->k * p->d), sizeof(double));
    size_t size = (size_t)covariance_size(p->covariance, p->k, p->d);
    r->covariances = test_alloc(size, sizeof(double));
    memcpy(r->covariances, p->covariances, size * sizeof(double));
    for (int64_t i = 0; i < p->n; i++) {
        for (int64_t j = 0; j < p->d; j++) x[i * p->d + j] = reference_value(p->rows, p->type, i * p->stride + j);
    }
    expectation(p, x, r);
    update_means(p, x, r);
    if (covariance_is_matrix(p->covariance))
        update_matrices(p, x, r);
    else
        update_variances(p, x, r);
    free(x);
    return r;
}

void reference_free(reference *r) {
    if (!r) return;
    free(r->log_prob);
    free(r->resp);
    free(r->counts);
    free(r->means);
    free(r->covariances);
    free(r);
}
