/*
 * Means packed for the kernels, with the rigorous bound of the screen.
 *
 * The screen works on rows and means shifted by a common centre and scaled by powers of two: xs = (x - c) s,
 * ms = (m - c) s, a = 1 / (2 var s^2). With P = sum a xs^2, Q = sum 2 a ms xs, M = sum a ms^2, the half squared Mahalanobis distance
 * is q = P - Q + M. In f32 (unit roundoff u = 2^-24) each term of the three sums carries at most 4 roundings of its
 * factors (x - c, ms, a, xs^2) and, summed one after the other, at most `depth` more; so with
 * T = P + sum |2 a ms xs| + M
 *     |q^ - q| <= g T,   g = (depth + 8) u (1 + small).
 * sqrt(P) <= sqrt(q) + sqrt(M) gives P <= 2q + 2M, and |Q| terms sum to at most P + M, hence
 * T <= 2P + 2M <= 4q + 6M and
 *     |q^ - q| <= g (4q + 6M).
 * Write C = log_norm (no weight), e = 7 g M + rounding of the constants. The kernel forms
 *     upper score  t = C + e - q^          lower logit  t - gap = C + log w - e - q^
 * and B = max over components of the lower logit. With Cmax = max C:
 *     log p(x) >= B - 5 g (Cmax - B)                        (q^ of the best is at most Cmax - B)
 *     log p(x|k) > p + log rho(p)  implies  t > B + log rho(B) - 16 g (Cmax - B + |log rho(B)|),
 * where p = log p(x) and rho is the row's cut (lib/backend.h), whose logarithm grows with p with a slope under 2/3.
 * So a component whose t lies below that threshold may go. Nothing here assumes an order of summation;
 * fused multiply-adds only round less. tests/test_screen.c checks the bound by brute force.
 *
 * Tied: S = L L', W = L^-1, and everything above speaks of the whitened rows y = W (x - c) and means, with a = 1/2. A
 * row y formed in double and rounded to f32 is off by u |y| and by d 2^-53 |W| |x - c| <= d 2^-53 condition |y|, which
 * is less where the matrix is not too ill-conditioned; an error of u |y| in the norm costs sum a |xs - ms|^2 no more
 * than one rounding of each factor does.
 */
#include <float.h>
#include <math.h>
#include <sched.h>

#include "cpu.h"

/* A bound looser than this would keep nearly everything; the derivation above needs g well below 1. */
static const double bound_max = 0.02;

/* With fewer numbers in the means than this, screening and finishing row by row costs more than all differences do. */
static const int64_t sparse_cells = 512;

static fgmm_status pack_ids(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack *pack = &device->pack;
    pack->ids = cpu_alloc(device, (size_t)params->k, sizeof *pack->ids, "component numbers");
    if (!pack->ids) return FGMM_ERR_MEMORY;
    for (int64_t k = 0; k < params->k; k++)
        if (params->log_weights[k] > FGMM_LOG_ZERO) pack->ids[pack->live++] = (int32_t)k;
    return FGMM_OK;
}

/* ---- tied ---- */

/* What a coordinate of a whitened row may be off by against the distance to the mean it belongs to: far less than the
 * contract of exact precision. */
static const double whitened_error_max = 1e-9;

/* Whitened means, or NULL where rounding in W (x - c), next to means this far from the centre, would be felt. */
static fgmm_status pack_whitened(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack *pack = &device->pack;
    int64_t d = pack->d;
    double farthest = (double)d;
    pack->strips = 1;
    if (params->covariance_type != FGMM_TIED || params->precision == FGMM_DOUBLE || params->careful) return FGMM_OK;
    double *whitened = cpu_alloc(device, (size_t)(pack->live * d), sizeof *whitened, "whitened means");
    if (!whitened) return FGMM_ERR_MEMORY;
    int threads = (double)pack->live * (double)d * (double)d < 1 << 17 ? 1 : device->threads;
#pragma omp parallel for num_threads(threads) reduction(max : farthest)
    for (int64_t c = 0; c < pack->live; c++) {
        const double *mean = params->means + pack->ids[c] * d;
        double square = 0;
        for (int64_t i = 0; i < d; i++) {
            const double *row = params->whitening + i * d;
            double lane[4] = {0};
            for (int64_t j = 0; j <= i; j++) lane[j % 4] += row[j] * (mean[j] - params->centre[j]);
            double y = (lane[0] + lane[1]) + (lane[2] + lane[3]);
            whitened[c * d + i] = y;
            square += y * y;
        }
        farthest = fmax(farthest, square);
    }
    pack->strips = !((double)d * 0x1p-53 * params->condition * sqrt(farthest) < whitened_error_max);
    if (pack->strips)
        cpu_free(device, whitened);
    else
        pack->whitened = whitened;
    return FGMM_OK;
}

/* The mean of packed component c in the coordinates of the screen before scaling, less their centre where it has one.
 * */
static const double *mean_of(const fgmm_device *device, int64_t c) {
    const cpu_pack *pack = &device->pack;
    return pack->whitened ? pack->whitened + c * pack->d : device->params->means + pack->ids[c] * pack->d;
}

static double half_of(const fgmm_device *device, int64_t c, int64_t j) {
    const cpu_pack *pack = &device->pack;
    if (pack->whitened) return 0.5;
    return device->params->half_inv_var[pack->diag ? pack->ids[c] * pack->d + j : pack->ids[c]];
}

/* ---- dense ---- */

static void transpose(const cpu_pack *pack, int64_t lanes, const double *from, int64_t c, double *to) {
    for (int64_t j = 0; j < pack->d; j++) to[(c / lanes) * pack->d * lanes + j * lanes + c % lanes] = from[j];
}

static fgmm_status pack_dense(fgmm_device *device) {
    const fgmm_params *params = device->params;
    cpu_pack *pack = &device->pack;
    int64_t lanes = device->kernels->lanes, wide = cpu_padded(device, pack->live), d = pack->d;
    int own_centres = pack->whitened || params->sum_centres != params->means;
    const char *what = "packed means";
    if (!(pack->means_t = cpu_alloc(device, (size_t)(wide * d), sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(pack->half_t = cpu_alloc(device, (size_t)(pack->diag ? wide * d : wide), sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    if (!(pack->offset = cpu_alloc(device, (size_t)wide, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(pack->log_weights = cpu_alloc(device, (size_t)wide, sizeof(double), what))) return FGMM_ERR_MEMORY;
    pack->centres_t = pack->means_t;
    if (own_centres && !(pack->centres_t = cpu_alloc(device, (size_t)(wide * d), sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    for (int64_t c = 0; c < wide; c++) {
        int64_t k = c < pack->live ? pack->ids[c] : -1;
        pack->offset[c] = k < 0 ? CPU_PADDING_LOGIT : params->log_weights[k] + params->log_norm[k];
        if (k < 0) continue;
        pack->log_weights[c] = params->log_weights[k];
        transpose(pack, lanes, mean_of(device, c), c, pack->means_t);
        if (own_centres) transpose(pack, lanes, params->sum_centres + k * d, c, pack->centres_t);
        if (pack->diag)
            transpose(pack, lanes, params->half_inv_var + k * d, c, pack->half_t);
        else
            pack->half_t[c] = half_of(device, c, 0);
    }
    return FGMM_OK;
}

fgmm_status cpu_once(fgmm_device *device, atomic_int *state, fgmm_status (*make)(fgmm_device *)) {
    enum { NOT_YET, UNDER_WAY, MADE, FAILED };
    int now = NOT_YET;
    if (atomic_load(state) == MADE) return FGMM_OK;
    if (atomic_compare_exchange_strong(state, &now, UNDER_WAY)) {
        fgmm_status status = make(device);
        atomic_store(state, status == FGMM_OK ? MADE : FAILED);
        return status;
    }
    while ((now = atomic_load(state)) == UNDER_WAY) sched_yield();
    return now == MADE ? FGMM_OK : FGMM_ERR_MEMORY; /* the thread that made it has stored the message */
}

fgmm_status cpu_pack_dense(fgmm_device *device) {
    return cpu_once(device, &device->pack.dense_state, pack_dense);
}

/* ---- screen ---- */

/* Where coefficient 0 of packed component c lies, and the step from one to the next. */
static float *coefficients(const fgmm_device *device, int64_t c, int64_t *width) {
    const cpu_pack *pack = &device->pack;
    int64_t panel = device->kernels->panel, floats = device->kernels->floats, first = c / panel * panel;
    *width = first + panel <= pack->live ? panel : (pack->live - first + floats - 1) / floats * floats;
    return pack->coef + first * pack->depth + (c - first);
}

/* Coefficients of one component; @return its M. */
static double pack_component(const fgmm_device *device, int64_t c) {
    const fgmm_params *params = device->params;
    const cpu_pack *pack = &device->pack;
    int64_t d = pack->d, width;
    float *coef = coefficients(device, c, &width);
    const double *mean = mean_of(device, c);
    double m = 0;
    for (int64_t j = 0; j < d; j++) {
        double scale = params->scale[j], ms = (mean[j] - (pack->whitened ? 0 : params->centre[j])) * scale;
        double a = half_of(device, c, j) / (scale * scale);
        m += a * ms * ms;
        if (pack->diag) {
            coef[j * width] = (float)-a;
            coef[(d + j) * width] = (float)(2 * a * ms);
        } else {
            coef[j * width] = (float)ms;
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
    int64_t floats = device->kernels->floats, wide = cpu_multiple(pack->live, floats), d = pack->d, depth = pack->depth;
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
    int threads = pack->live * depth < 1 << 15 ? 1 : device->threads;
#pragma omp parallel for num_threads(threads) reduction(max : cmax)
    for (int64_t c = 0; c < wide; c++) {
        if (c >= pack->live) {
            pack->upper[c] = -1e38f;
            continue;
        }
        int64_t k = pack->ids[c];
        double m = pack_component(device, c), log_norm = params->log_norm[k], log_weight = params->log_weights[k];
        double e = 7 * g * m + 4 * u * (fabs(log_norm) + fabs(log_weight) + m) + 1e-6;
        pack->upper[c] = (float)(log_norm + e - m);
        pack->gap[c] = (float)(2 * e - log_weight);
        if (!pack->diag) {
            pack->a[c] = (float)(half_of(device, c, 0) / (params->scale[0] * params->scale[0]));
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
    if (status == FGMM_OK && params->whitening) status = pack_whitened(device);
    /* A dense engine does whole vectors of components at a time, a sparse row one by one. */
    if (pack->live * pack->d >= sparse_cells)
        pack->sparse_max = (int)fmin(CPU_CANDIDATES, fmax(1, (double)(pack->live / 4)));
    if (status == FGMM_OK && params->cut > 0 && !pack->strips && pack->sparse_max > 0) status = pack_screen(device);
    return status;
}

void cpu_pack_free(fgmm_device *device) {
    cpu_pack *pack = &device->pack;
    cpu_free(device, pack->ids);
    cpu_free(device, pack->whitened);
    cpu_free(device, pack->coef);
    cpu_free(device, pack->upper);
    if (pack->centres_t != pack->means_t) cpu_free(device, pack->centres_t);
    cpu_free(device, pack->means_t);
    cpu_free(device, pack->half_t);
    cpu_free(device, pack->offset);
    cpu_free(device, pack->log_weights);
    cpu_products_free(device);
    *pack = (cpu_pack){0};
}
