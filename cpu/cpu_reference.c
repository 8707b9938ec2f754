/*
 * The E-step as the equations say it, in double, one row and one component after the other. Everything else is tested
 * against this; it has no screen, no packing and no threads.
 *
 *   l_k = log w_k + log_norm_k - q_k,   q_k = sum_d half_inv_var (x_d - m_kd)^2 or 1/2 |W_k (x - m_k)|^2,   log p(x)
 *   = log sum_k exp(l_k),   r_k = exp(l_k - log p(x))
 */
#include <math.h>

#include "../lib/convert.h"
#include "cpu.h"

/* CPU_PADDING_LOGIT for a component of weight 0. */
static double logit(const fgmm_params *params, const double *x, int64_t k) {
    int diag = params->covariance_type == FGMM_DIAG;
    int64_t d = params->d;
    double q = 0;
    if (!(params->log_weights[k] > FGMM_LOG_ZERO)) return CPU_PADDING_LOGIT;
    if (params->whitening) {
        const double *w = params->whitening + (params->covariance_type == FGMM_FULL ? k * d * d : 0);
        for (int64_t i = 0; i < d; i++) {
            double y = 0;
            for (int64_t j = 0; j <= i; j++) y += w[i * d + j] * (x[j] - params->means[k * d + j]);
            q += 0.5 * y * y;
        }
        return params->log_weights[k] + params->log_norm[k] - fmin(q, CPU_FARTHEST);
    }
    for (int64_t j = 0; j < params->d; j++) {
        double t = x[j] - params->means[k * params->d + j];
        q += params->half_inv_var[diag ? k * params->d + j : k] * t * t;
    }
    return params->log_weights[k] + params->log_norm[k] - fmin(q, CPU_FARTHEST);
}

static void add_row(fgmm_device *device, const double *x, const double *r, double weight) {
    const fgmm_params *params = device->params;
    int64_t d = params->d;
    int diag = params->covariance_type == FGMM_DIAG;
    for (int64_t k = 0; k < params->k; k++) {
        if (r[k] == 0) continue;
        const double *centre = params->sum_centres + k * d;
        double *matrix = device->s2 + (params->covariance_type == FGMM_FULL ? k * d * d : 0);
        device->s0[k] += weight * r[k];
        for (int64_t j = 0; j < d; j++) {
            double t = x[j] - centre[j], wrt = weight * r[k] * t;
            device->s1[k * d + j] += wrt;
            if (!params->whitening) device->s2[diag ? k * d + j : k] += wrt * t;
            for (int64_t i = 0; params->whitening && i <= j; i++) matrix[j * d + i] += wrt * (x[i] - centre[i]);
        }
    }
}

/* r holds logits and becomes responsibilities; @return log p(x). */
static double finish_row(const fgmm_params *params, double *r, fgmm_sums *totals) {
    int64_t best = 0;
    for (int64_t k = 1; k < params->k; k++)
        if (r[k] > r[best]) best = k;
    double top = r[best], sum = 0, log_z = top;
    for (int64_t k = 0; k < params->k; k++) sum += exp(r[k] - top);
    if (!params->hard) log_z = top + log(sum);
    for (int64_t k = 0; k < params->k; k++) {
        r[k] = params->hard ? k == best : exp(r[k] - log_z);
        totals->survivors += r[k] > 0;
    }
    return log_z;
}

fgmm_status cpu_reference_rows(fgmm_device *device, const fgmm_block *block, int accumulate, const cpu_outputs *out) {
    const fgmm_params *params = device->params;
    const fgmm_block_source *source = &block->source;
    fgmm_status status = FGMM_OK;
    int32_t *ids = cpu_alloc(device, (size_t)params->k, sizeof *ids, "component numbers");
    double *x = cpu_alloc(device, (size_t)params->d, sizeof *x, "a row");
    double *r = cpu_alloc(device, (size_t)params->k, sizeof *r, "responsibilities of a row");
    if (!ids || !x || !r) status = FGMM_ERR_MEMORY;
    for (int64_t k = 0; ids && k < params->k; k++) ids[k] = (int32_t)k;
    for (int64_t i = 0; i < source->n && status == FGMM_OK; i++) {
        double weight = source->weights ? source->weights[i] : 1;
        fgmm_widen(source->type, cpu_row(source, i), params->d, x);
        for (int64_t k = 0; k < params->k; k++) r[k] = logit(params, x, k);
        double log_z = finish_row(params, r, &device->totals);
        if (accumulate && weight > 0) add_row(device, x, r, weight);
        device->totals.log_likelihood += weight > 0 ? weight * log_z : 0;
        device->totals.weight += weight;
        device->totals.dense_rows++;
        if (out->log_prob) out->log_prob[i] = log_z;
        if (out->m) cpu_top(out, i, ids, r, params->k);
        for (int64_t k = 0; out->proba && k < params->k; k++) out->proba[i * params->k + k] = (float)r[k];
        if (i % FGMM_CHUNK_ROWS == 0 && device->host.cancelled(device->host.user))
            status = device->host.fail(device->host.user, FGMM_ERR_CANCELLED, "cancelled");
    }
    cpu_free(device, ids);
    cpu_free(device, x);
    cpu_free(device, r);
    return status;
}

void cpu_reference_scan(const fgmm_scan *scan) {
    size_t size = cpu_element_size(scan->type);
    for (int i = 0; i < scan->n_rows; i++)
        for (int b = 0; b < scan->n_queries; b++) {
            double sum = 0;
            for (int64_t j = 0; j < scan->d; j++) {
                double x,
                    q = scan->whole ? ((const int16_t *)scan->queries[b])[j] : ((const float *)scan->queries[b])[j];
                fgmm_widen(scan->type, (const char *)scan->rows[i] + (size_t)j * size, 1, &x);
                sum += scan->dot ? x * q : (x - q) * (x - q);
            }
            scan->out[b * FGMM_SCAN_ROWS + i] = (float)sum;
        }
}
