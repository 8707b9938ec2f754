/*
 * The product engine: rows that many components share, when these lie so near to each other that f32 products tell
 * them apart.
 *
 * With xs = (x - c) s and ms = (m - c) s about the screen's centre c, a = 1 / (2 var s^2) and abar the mean of a over
 * the components (spherical: a itself, which is one number a component),
 *     q = part P + slope dot',  spherical: P = |xs|^2, part = a,     dot = xs . ms,                       q = a (P -
 *     2 dot) + M
 *                               diag:      P = sum abar xs^2, part = 1, dot = sum (abar - a) xs^2 + 2 a ms xs,  q = P
 *                               - dot + M
 * P and M are formed in double, once a row or component; dot, the only part that differs from component to component
 * of a row, in f32: runs of 16 terms, then the sums of the runs. With T the sum of its terms' magnitudes it is off by
 * less than (16 + depth/16 + 6) u T, and
 *     T <= |xs| max |2 a ms| + |xs|^2 max |abar - a|   (twice that over two for spherical, whose slope is 2a).
 * A row comes here if this bound is under worst_error and u T / sqrt(D), what is left when the roundings do not all
 * agree, under likely_error: a fiftieth of the contract of exact precision.
 *
 * The sums are taken about c over CPU_PRODUCT_ROWS rows in f32, then in double, and moved to the components' own
 * centres at the end. Under the bound no mean is more than a few deviations from c; where the pass finds new variances
 * so much smaller that something cancels, it is repeated without this engine (fgmm_sums.imprecise).
 */
#include <math.h>
#include <string.h>

#include "cpu.h"

static const double worst_error = 4e-5, likely_error = 2e-7;

/* ---- parameters ---- */

/* Coefficients, constants and bounds of packed component c. */
static void pack_component(const fgmm_device *device, cpu_products *p, int64_t c) {
    const fgmm_params *params = device->params;
    const cpu_pack *pack = &device->pack;
    int64_t d = pack->d, k = pack->ids[c], panel = device->kernels->panel, first = c / panel * panel;
    int64_t width = first + panel <= p->wide ? panel : p->wide - first;
    float *coef = p->coef + first * p->depth + (c - first);
    double m = 0, cross = 0;
    for (int64_t j = 0; j < d; j++) {
        double scale = params->scale[j], ms = (params->means[k * d + j] - params->centre[j]) * scale;
        double a = params->half_inv_var[pack->diag ? k * d + j : k] / (scale * scale);
        m += a * ms * ms;
        cross += 4 * a * a * ms * ms;
        if (pack->diag) {
            coef[j * width] = (float)(p->mean_half[j] - a);
            coef[(d + j) * width] = (float)(2 * a * ms);
            p->square_terms = fmax(p->square_terms, fabs(p->mean_half[j] - a));
        } else {
            coef[j * width] = (float)ms;
            p->slope[c] = 2 * a;
            p->part[c] = a;
        }
    }
    p->norm_terms = fmax(p->norm_terms, sqrt(cross));
    p->base[c] = params->log_weights[k] + params->log_norm[k] - m;
    p->weights[c] = (float)params->weights[k];
}

static fgmm_status pack_products(fgmm_device *device) {
    const fgmm_params *params = device->params;
    const cpu_pack *pack = &device->pack;
    cpu_products *p = &device->pack.products;
    const char *what = "parameters of the product engine";
    int64_t d = pack->d, step = cpu_multiple(device->kernels->rows, device->kernels->floats);
    while (step % device->kernels->rows) step += device->kernels->floats;
    p->depth = pack->depth;
    p->stride = cpu_multiple(pack->depth + 2, device->kernels->floats);
    p->wide = cpu_multiple(pack->live, step);
    size_t wide = (size_t)p->wide;
    if (!(p->coef = cpu_alloc(device, wide * (size_t)p->depth, sizeof *p->coef, what))) return FGMM_ERR_MEMORY;
    if (!(p->weights = cpu_alloc(device, wide, sizeof *p->weights, what))) return FGMM_ERR_MEMORY;
    if (!(p->base = cpu_alloc(device, 3 * wide + (size_t)d, sizeof *p->base, what))) return FGMM_ERR_MEMORY;
    p->slope = p->base + wide;
    p->part = p->slope + wide;
    p->mean_half = p->part + wide;
    for (int64_t c = 0; pack->diag && c < pack->live; c++)
        for (int64_t j = 0; j < d; j++)
            p->mean_half[j] +=
                params->half_inv_var[pack->ids[c] * d + j] / (params->scale[j] * params->scale[j] * (double)pack->live);
    for (int64_t c = 0; c < p->wide; c++) {
        p->base[c] = CPU_PADDING_LOGIT;
        p->slope[c] = p->part[c] = pack->diag;
        if (c < pack->live) pack_component(device, p, c);
    }
    const double u = 0x1p-24;
    p->terms_max = fmin(worst_error / (u * (16 + (double)p->depth / 16 + 6)), likely_error * sqrt((double)d) / u);
    p->useful = params->precision != FGMM_DOUBLE && isfinite(p->norm_terms) && isfinite(p->square_terms);
    return FGMM_OK;
}

fgmm_status cpu_products_open(fgmm_device *device) {
    return cpu_once(device, &device->pack.products_state, pack_products);
}

void cpu_products_free(fgmm_device *device) {
    cpu_products *p = &device->pack.products;
    cpu_free(device, p->coef);
    cpu_free(device, p->weights);
    cpu_free(device, p->base);
    *p = (cpu_products){0};
}

int cpu_product_fits(const fgmm_device *device, const float *xs) {
    const cpu_products *p = &device->pack.products;
    double square = 0;
    if (!p->useful) return 0;
    for (int64_t j = p->depth - device->pack.d; j < p->depth; j++) square += (double)xs[j] * xs[j];
    return p->norm_terms * sqrt(square) + p->square_terms * square < p->terms_max;
}

/* ---- rows ---- */

static fgmm_status open_batch(fgmm_device *device, cpu_worker *worker) {
    const cpu_products *p = &device->pack.products;
    const char *what = "a batch of the product engine";
    size_t rows = CPU_PRODUCT_ROWS + (size_t)device->kernels->rows, wide = (size_t)p->wide, stride = (size_t)p->stride;
    if (worker->sums.product_s) return FGMM_OK;
#define NEED(pointer, count)                                                                                           \
    if (!(pointer) && !((pointer) = cpu_alloc(device, count, sizeof *(pointer), what))) return FGMM_ERR_MEMORY
    NEED(worker->product_x, rows * stride);
    NEED(worker->product_r, rows * wide);
    NEED(worker->product_square, rows);
    NEED(worker->product_logits, rows * wide);
    NEED(worker->sums.product_s, wide * stride);
#undef NEED
    return FGMM_OK;
}

static fgmm_status settle_fresh(cpu_call *call, cpu_worker *worker);

fgmm_status cpu_product_add(cpu_call *call, cpu_worker *worker, int64_t i, const float *xs) {
    const cpu_pack *pack = &call->device->pack;
    const cpu_products *p = &pack->products;
    int64_t d = pack->d;
    fgmm_status status = open_batch(call->device, worker);
    if (status != FGMM_OK) return status;
    float *x = worker->product_x + worker->product_rows * p->stride;
    double square = 0;
    memcpy(x, xs, (size_t)p->depth * sizeof *x);
    for (int64_t j = 0; j < d; j++) {
        double value = xs[p->depth - d + j];
        square += (pack->diag ? p->mean_half[j] : 1) * value * value;
    }
    x[p->depth] = 1;
    x[p->depth + 1] = (float)square;
    worker->product_square[worker->product_rows] = square;
    worker->product_row[worker->product_rows++] = i;
    return worker->product_rows == CPU_PRODUCT_ROWS ? settle_fresh(call, worker) : FGMM_OK;
}

/* A responsibility is compared with the row's cut less this, for f32 cannot say which side of the cut a component
 * lies on. */
static const double cut_margin = 1e-3;

/* How many components the row keeps, of those that have an r. Where no more than sparse_max lie clearly above the cut the exact
 * logits decide, in place of the row's, as they do for a row from the screen: its way must not depend on where it comes from. */
static int64_t count_kept(cpu_call *call, cpu_worker *worker, int64_t i, float *r, double cut, double *logits) {
    const cpu_pack *pack = &call->device->pack;
    const cpu_products *p = &pack->products;
    int64_t clear = 0;
    float most = (float)(cut * (1 + cut_margin) / (1 - cut_margin));
    for (int64_t c = 0; c < p->wide; c++) clear += r[c] > most * p->weights[c];
    return clear > pack->sparse_max ? clear : cpu_kept_exactly(call, worker, i, r, logits);
}

/* Logits of the fresh row b become responsibilities times its weight, in place b of the waiting ones' r. A row that
 * few components share is left to cpu_finish_sparse. @return 1 if so. */
static int settle_row(cpu_call *call, cpu_worker *worker, int b, int64_t i, float *r) {
    const fgmm_device *device = call->device;
    const cpu_pack *pack = &device->pack;
    const cpu_products *p = &pack->products;
    int64_t best, padded = cpu_padded(device, pack->live);
    double *logits = worker->product_logits + b * p->wide;
    double weight = cpu_row_weight(call->source, i), top = device->kernels->largest(logits, padded, &best);
    double sum = device->kernels->product_exp(logits, p->wide, top, r);
    double cut = exp(cpu_row_cut(device, top)) / sum * (1 - cut_margin);
    int64_t kept = device->kernels->product_keep(r, p->weights, p->wide, (float)(1 / sum), (float)cut);
    worker->dense_rows++;
    worker->rows.count[b] = 0;
    if (kept <= pack->sparse_max || count_kept(call, worker, i, r, cut, logits) <= pack->sparse_max) {
        int count = 0;
        for (int64_t c = 0; c < pack->live; c++)
            if (r[c] != 0) worker->rows.id[b][count++] = (int32_t)c;
        if (count == 0) worker->rows.id[b][count++] = (int32_t)best;
        worker->rows.count[b] = count;
        return 1;
    }
    worker->survivors += (double)kept;
    worker->dropped += weight * device->params->cut;
    worker->log_prob[i % FGMM_CHUNK_ROWS] = top + log(sum);
    if (call->source->hints) call->source->hints[i] = (int32_t)best;
    for (int64_t c = 0; weight != 1 && c < p->wide; c++) r[c] *= (float)weight;
    return 0;
}

/* Rows of the batch that have their responsibilities go into the sums. */
static void sum_settled(cpu_call *call, cpu_worker *worker) {
    const cpu_products *p = &call->device->pack.products;
    if (worker->product_settled == 0) return;
    call->device->kernels->product_sums(p, worker->product_x, worker->product_r, worker->product_settled,
                                        worker->sums.product_s);
    worker->sums.product_touched = 1;
    worker->product_rows = worker->product_settled = 0;
}

/*
 * The batch holds rows that are settled, then fresh ones. Those of the fresh rows that stay move up to the settled
 * ones, so that sums are taken over CPU_PRODUCT_ROWS rows that stayed, whatever others came between.
 */
static fgmm_status settle_fresh(cpu_call *call, cpu_worker *worker) {
    const cpu_kernels *kernels = call->device->kernels;
    const cpu_products *p = &call->device->pack.products;
    int first = worker->product_settled, n = worker->product_rows - first, padded = (int)cpu_multiple(n, kernels->rows);
    int64_t numbers[CPU_PRODUCT_ROWS];
    float *x = worker->product_x + first * p->stride;
    if (n == 0) return FGMM_OK;
    memcpy(numbers, worker->product_row + first, (size_t)n * sizeof *numbers);
    memset(x + n * p->stride, 0, (size_t)((padded - n) * p->stride) * sizeof(float));
    for (int b = n; b < padded; b++) worker->product_square[first + b] = 0;
    kernels->product_logits(p, x, worker->product_square + first, padded, worker->product_logits);
    for (int b = 0; b < n; b++) {
        int at = worker->product_settled;
        if (settle_row(call, worker, b, numbers[b], worker->product_r + at * p->wide)) continue;
        memmove(worker->product_x + at * p->stride, x + b * p->stride, (size_t)p->stride * sizeof *x);
        worker->product_settled++;
    }
    worker->product_rows = worker->product_settled;
    if (worker->product_settled == CPU_PRODUCT_ROWS) sum_settled(call, worker);
    return cpu_finish_sparse(call, worker, numbers, n);
}

fgmm_status cpu_product_flush(cpu_call *call, cpu_worker *worker) {
    fgmm_status status = settle_fresh(call, worker);
    if (status == FGMM_OK) sum_settled(call, worker);
    return status;
}

/* ---- sums ---- */

static fgmm_status make_room(fgmm_device *device) {
    const cpu_products *p = &device->pack.products;
    const char *what = "sums of the product engine";
    device->product_s = cpu_alloc(device, (size_t)p->wide * (size_t)p->stride, sizeof(double), what);
    return device->product_s ? FGMM_OK : FGMM_ERR_MEMORY;
}

fgmm_status cpu_product_room(fgmm_device *device) {
    return cpu_once(device, &device->pack.product_room_state, make_room);
}

void cpu_product_merge(fgmm_device *device, cpu_sums *sums, int shard) {
    const cpu_products *p = &device->pack.products;
    if (!sums->product_touched) return;
    for (int64_t c = shard * p->wide / CPU_SHARDS; c < (shard + 1) * p->wide / CPU_SHARDS; c++) {
        double *from = sums->product_s + c * p->stride, *to = device->product_s + c * p->stride;
        for (int64_t j = 0; j < p->depth + 2; j++) to[j] += from[j];
        memset(from, 0, (size_t)p->stride * sizeof *from);
    }
    if (shard == CPU_SHARDS - 1) sums->product_touched = 0;
}

/* 1 if sums whose terms are rounded to f32 about the screen's centre say too little of a variance: `about` the centre,
 * `variance` about the new mean, both times the same sum of weights. */
static int too_coarse(double about, double variance) {
    const double tolerance = 2e-6, rounding = 4 * 0x1p-24;
    return rounding * about > tolerance * variance;
}

/* From sums about the screen's centre, scaled, to sums about the components' own:
 *   s1 = s1' - s0 v,  s2 = s2' - 2 v s1' + s0 v^2,  v = sum_centre - c.
 * @return 1 if a component has become so narrow that they are not exact enough. */
int cpu_product_settle(fgmm_device *device) {
    const fgmm_params *params = device->params;
    const cpu_pack *pack = &device->pack;
    const cpu_products *p = &pack->products;
    int64_t d = pack->d;
    int coarse = 0;
    if (!device->product_s) return 0;
    for (int64_t c = 0; c < pack->live; c++) {
        double *sums = device->product_s + c * p->stride, s0 = sums[p->depth], about = 0, moved = 0;
        int64_t k = pack->ids[c];
        if (s0 == 0) continue;
        device->s0[k] += s0;
        if (!pack->diag) about = sums[p->depth + 1] / (params->scale[0] * params->scale[0]);
        if (!pack->diag) device->s2[k] += about;
        for (int64_t j = 0; j < d; j++) {
            double scale = params->scale[j], v = params->sum_centres[k * d + j] - params->centre[j];
            double s1 = sums[p->depth - d + j] / scale, square = pack->diag ? sums[j] / (scale * scale) : 0;
            double *s2 = pack->diag ? &device->s2[k * d + j] : &device->s2[k];
            *s2 += v * (s0 * v - 2 * s1) + square;
            double *sum = &device->s1[k * d + j];
            *sum += s1 - s0 * v;
            moved += *sum * *sum / device->s0[k];
            if (pack->diag) coarse |= too_coarse(square, *s2 - *sum * *sum / device->s0[k]);
        }
        if (!pack->diag) coarse |= too_coarse(about, device->s2[k] - moved);
        memset(sums, 0, (size_t)p->stride * sizeof *sums);
    }
    return coarse;
}
