/*
 * Means packed for the kernels, with the rigorous bound of the screen.
 *
 * The screen works on rows and means shifted by a common centre and scaled by powers of two: xs = (x - c) s, ms = (m - c) s,
 * a = 1 / (2 var s^2). With P = sum a xs^2, Q = sum 2 a ms xs, M = sum a ms^2, the half squared Mahalanobis distance is q = P - Q + M.
 * In f32 (unit roundoff u = 2^-24) each term of the three sums carries at most 4 roundings of its factors (x - c, ms, a, xs^2) and,
 * summed one after the other, at most `depth` more; so with T = P + sum |2 a ms xs| + M
 *     |q^ - q| <= g T,   g = (depth + 8) u (1 + small).
 * sqrt(P) <= sqrt(q) + sqrt(M) gives P <= 2q + 2M, and |Q| terms sum to at most P + M, hence T <= 2P + 2M <= 4q + 6M and
 *     |q^ - q| <= g (4q + 6M).
 * Write C = log_norm (no weight), e = 7 g M + rounding of the constants. The kernel forms
 *     upper score  t = C + e - q^          lower logit  t - gap = C + log w - e - q^
 * and B = max over components of the lower logit. With Cmax = max C:
 *     log p(x) >= B - 5 g (Cmax - B)                        (q^ of the best is at most Cmax - B)
 *     log p(x|k) > p + log rho(p)  implies  t > B + log rho(B) - 16 g (Cmax - B + |log rho(B)|),
 * where p = log p(x) and rho is the row's cut (lib/backend.h), whose logarithm grows with p with a slope under 2/3. So a component whose t lies below that threshold may go. Nothing here assumes an order of summation;
 * fused multiply-adds only round less. tests/test_screen.c checks the bound by brute force.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "cpu.h"

/* A bound looser than this would keep nearly everything; the derivation above needs g well below 1. */
static const double bound_max = 0.02;

static int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

static fgmm_status pack_ids(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack *pack = &device->pack;
    pack->ids = cpu_alloc(device, (size_t)params->k, sizeof *pack->ids, "component numbers");
    if (!pack->ids) return FGMM_ERR_MEMORY;
    for (int64_t k = 0; k < params->k; k++)
        if (params->log_weights[k] > FGMM_LOG_ZERO) pack->ids[pack->live++] = k;
    return FGMM_OK;
}

/* ---- dense ---- */

static void transpose(const cpu_pack *pack, int64_t lanes, const double *from, double *to) {
    for (int64_t c = 0; c < pack->live; c++)
        for (int64_t j = 0; j < pack->d; j++)
            to[(c / lanes) * pack->d * lanes + j * lanes + c % lanes] = from[pack->ids[c] * pack->d + j];
}

static fgmm_status pack_dense(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack *pack = &device->pack;
    int64_t lanes = device->kernels->lanes, wide = round_up(pack->live, lanes), d = pack->d;
    int own_centres = params->sum_centres != params->means;
    const char *what = "packed means";
    if (!(pack->means_t = cpu_alloc(device, (size_t)(wide * d), sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(pack->half_t = cpu_alloc(device, (size_t)(pack->diag ? wide * d : wide), sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    if (!(pack->offset = cpu_alloc(device, (size_t)wide, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(device->log_weights_packed = cpu_alloc(device, (size_t)wide, sizeof(double), what))) return FGMM_ERR_MEMORY;
    transpose(pack, lanes, params->means, pack->means_t);
    pack->centres_t = pack->means_t;
    if (own_centres) {
        if (!(pack->centres_t = cpu_alloc(device, (size_t)(wide * d), sizeof(double), what))) return FGMM_ERR_MEMORY;
        transpose(pack, lanes, params->sum_centres, pack->centres_t);
    }
    if (pack->diag) transpose(pack, lanes, params->half_inv_var, pack->half_t);
    for (int64_t c = 0; c < wide; c++) {
        int64_t k = c < pack->live ? pack->ids[c] : -1;
        pack->offset[c] = k < 0 ? CPU_PADDING_LOGIT : params->log_weights[k] + params->log_norm[k];
        device->log_weights_packed[c] = k < 0 ? 0 : params->log_weights[k];
        if (!pack->diag) pack->half_t[c] = k < 0 ? 0 : params->half_inv_var[k];
    }
    return FGMM_OK;
}

/* ---- screen ---- */

/* Coefficients of one component; @return its M. */
static double pack_component(const fgmm_device *device, int64_t c, float *coef) {
    const fgmm_params *params = device->params;
    const cpu_pack *pack = &device->pack;
    int64_t k = pack->ids[c], d = pack->d, panel = device->kernels->panel;
    double m = 0;
    for (int64_t j = 0; j < d; j++) {
        double scale = params->scale[j], ms = (params->means[k * d + j] - params->centre[j]) * scale;
        double a = params->half_inv_var[pack->diag ? k * d + j : k] / (scale * scale);
        m += a * ms * ms;
        if (pack->diag) {
            coef[j * panel] = (float)-a;
            coef[(d + j) * panel] = (float)(2 * a * ms);
        } else {
            coef[j * panel] = (float)ms;
        }
    }
    return m;
}

static int all_finite(const float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i])) return 0;
    return 1;
}

static void drop_screen(fgmm_device *device) {
    cpu_free(device, device->pack.coef);
    device->pack.coef = NULL;
}

static fgmm_status pack_screen(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack *pack = &device->pack;
    int64_t panel = device->kernels->panel, wide = round_up(pack->live, panel), d = pack->d, depth = pack->depth;
    const double u = 0x1p-24, g = ((double)depth + 8) * u * 1.02;
    const char *what = "packed means";
    if (g > bound_max) return FGMM_OK;
    if (!(pack->coef = cpu_alloc(device, (size_t)(wide * depth), sizeof(float), what))) return FGMM_ERR_MEMORY;
    if (!(pack->upper = cpu_alloc(device, (size_t)(4 * wide + 2 * d), sizeof(float), what))) return FGMM_ERR_MEMORY;
    pack->gap = pack->upper + wide;
    pack->two_a = pack->upper + 2 * wide;
    pack->a = pack->upper + 3 * wide;
    pack->centre = pack->upper + 4 * wide;
    pack->scale = pack->centre + d;
    double cmax = -DBL_MAX;
    for (int64_t j = 0; j < d; j++) {
        pack->centre[j] = (float)params->centre[j];
        pack->scale[j] = (float)params->scale[j];
    }
    for (int64_t c = 0; c < wide; c++) {
        if (c >= pack->live) {
            pack->upper[c] = -3e38f;
            continue;
        }
        int64_t k = pack->ids[c];
        double m = pack_component(device, c, pack->coef + (c / panel) * depth * panel + c % panel);
        double log_norm = params->log_norm[k], log_weight = params->log_weights[k];
        double e = 7 * g * m + 4 * u * (fabs(log_norm) + fabs(log_weight) + m) + 1e-6;
        pack->upper[c] = (float)(log_norm + e - m);
        pack->gap[c] = (float)(2 * e - log_weight);
        if (!pack->diag) {
            pack->a[c] = (float)(params->half_inv_var[k] / (params->scale[0] * params->scale[0]));
            pack->two_a[c] = 2 * pack->a[c];
        }
        cmax = fmax(cmax, log_norm);
    }
    double log_cut = log(params->cut);
    /* Rounded outwards: the threshold itself is formed in f32 from numbers of the size of B. */
    pack->slope = (float)(16 * g + 16 * u);
    pack->top = (float)(cmax + 1e-6 * fabs(cmax));
    pack->log_cut = (float)(log_cut * (1 + 1e-6));
    if (!all_finite(pack->coef, wide * depth) || !all_finite(pack->upper, 4 * wide + 2 * d)) drop_screen(device);
    return FGMM_OK;
}

fgmm_status cpu_pack_begin(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack_free(device);
    cpu_pack *pack = &device->pack;
    pack->d = params->d;
    pack->diag = params->covariance_type == FGMM_DIAG;
    pack->depth = pack->diag ? 2 * params->d : params->d;
    fgmm_status status = pack_ids(device);
    if (status == FGMM_OK) status = pack_dense(device);
    if (status == FGMM_OK && params->engine != FGMM_ENGINE_DENSE && params->cut > 0) status = pack_screen(device);
    return status;
}

void cpu_pack_free(fgmm_device *device) {
    cpu_pack *pack = &device->pack;
    cpu_free(device, pack->ids);
    cpu_free(device, pack->coef);
    cpu_free(device, pack->upper);
    if (pack->centres_t != pack->means_t) cpu_free(device, pack->centres_t);
    cpu_free(device, pack->means_t);
    cpu_free(device, pack->half_t);
    cpu_free(device, pack->offset);
    cpu_free(device, device->log_weights_packed);
    device->log_weights_packed = NULL;
    *pack = (cpu_pack){0};
}
