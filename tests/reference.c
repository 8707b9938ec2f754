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

/* log w_k - D/2 log 2pi - 1/2 log|S_k| - 1/2 (x - m_k)' S_k^-1 (x - m_k) for each k. */
static void joint_log_prob(const problem *p, const double *x, const long double *constant, long double *out) {
    for (int64_t k = 0; k < p->k; k++) {
        long double q = 0;
        for (int64_t j = 0; j < p->d; j++) {
            long double t = (long double)x[j] - p->means[k * p->d + j];
            q += t * t / p->covariances[p->diag ? k * p->d + j : k];
        }
        out[k] = p->model_weights[k] > 0 ? constant[k] - q / 2 : -INFINITY;
    }
}

static void component_constants(const problem *p, long double *constant) {
    const long double two_pi = 6.283185307179586476925286766559L;
    for (int64_t k = 0; k < p->k; k++) {
        long double log_det = 0;
        for (int64_t j = 0; j < p->d; j++) log_det += logl(p->covariances[p->diag ? k * p->d + j : k]);
        constant[k] = -0.5L * ((long double)p->d * logl(two_pi) + log_det);
        if (p->model_weights[k] > 0) constant[k] += logl(p->model_weights[k]);
    }
}

static void expectation(const problem *p, const double *x, reference *r) {
    long double *constant = test_alloc((size_t)p->k, sizeof *constant), *l = test_alloc((size_t)p->k, sizeof *l);
    long double total = 0, weight = 0;
    component_constants(p, constant);
    for (int64_t i = 0; i < p->n; i++) {
        joint_log_prob(p, x + i * p->d, constant, l);
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
    free(constant);
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

static void maximization(const problem *p, const double *x, reference *r) {
    for (int64_t k = 0; k < p->k; k++) {
        long double count = 0, all = 0;
        for (int64_t i = 0; i < p->n; i++) count += (p->weights ? p->weights[i] : 1) * r->resp[i * p->k + k];
        r->counts[k] = (double)count;
        for (int64_t j = 0; j < p->d; j++) {
            double *mean = &r->means[k * p->d + j];
            *mean = p->means[k * p->d + j];
            if (count == 0) {
                if (p->diag) r->covariances[k * p->d + j] = p->covariances[k * p->d + j];
                continue;
            }
            *mean = (double)(*mean + moment(p, x, r, k, j, *mean, 1) / count);
            long double variance = moment(p, x, r, k, j, *mean, 2) / count;
            if (p->diag) r->covariances[k * p->d + j] = (double)variance;
            all += variance;
        }
        if (!p->diag) r->covariances[k] = count == 0 ? p->covariances[k] : (double)(all / p->d);
    }
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
    r->covariances = test_alloc((size_t)(p->diag ? p->k * p->d : p->k), sizeof(double));
    for (int64_t i = 0; i < p->n; i++) {
        for (int64_t j = 0; j < p->d; j++) x[i * p->d + j] = reference_value(p->rows, p->type, i * p->stride + j);
    }
    expectation(p, x, r);
    maximization(p, x, r);
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
