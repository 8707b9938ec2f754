/*
 * Groups of the dense engine on matrix units, by products of pairs of f16, or in fast precision of single ones: spherical and diagonal
 * components near a centre, rows in order and without weights. See near_logits.clh, near_sums.clh and near_fused.clh.
 *
 *   rows as pairs, and norms -> a tile of components: cells, and tops -> log-sum-exp (cl_dense.c)
 *                           \-> a tile of components: factors -> sums -> the rows' own outputs
 *   rows as single f16 -> log-sum-exp and factors -> a tile of components: sums
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    LEAST_COMPONENTS = 32, /* fewer leave most of a tile empty */
    LEAST_FEATURES = 16,
    MOST_STEPS = 16, /* whose fragments a warp keeps */
    BLOCK = 16,      /* components of a warp */
    SET = 64,        /* of four, which share the tops */
    TILE_ROWS = 64,
    HALF_BYTES = 2,
    PAIR_BYTES = 2 * HALF_BYTES,
    GROUP = 256
};

/* What a row's features, scaled, may come to, so that sums of a few stay within f16: MOST of near_rows.cl, and R_SCALE. */
#define HALF_RANGE 16384.0
/* How much wider the widest component may be than the narrowest, as a difference of log-densities: the cells' constants are rounded to a
 * float of that size. And what the squares' part of a diagonal logit may come to for a row at one deviation, of which sums on matrix units
 * cut off 5e-7. */
#define MOST_SPREAD 64.0
#define MOST_SQUARES 16.0
/* And what the steps of a product times sum a |m - c|^2 may: each step cuts off 2^-24 of what has come together, twice that sum, in one
 * direction, which comes to 9e-6 of a logit here. */
#define MOST_STEPS_TIMES_MEAN 256.0
/* Where values are single f16, for logits as near_fused.clh says: half of |t|^2, t the means' distances in deviations; the squares' part; and half of
 * t^2 in any feature, for a diagonal variance is what the means leave of the squares. */
#define MOST_MEAN_OF_ONE 8.0
#define MOST_SQUARES_OF_ONE 8.0
#define MOST_FEATURE_OF_ONE 0.5

void cl_pairs_choose(const fgmm_device *device, cl_engine *engine) {
    const fgmm_params *params = &engine->params;
    cl_uint d = engine->d, steps = (d + 15) / 16, blocks = (d + 63) / 64;
    engine->pairs = (cl_pairs){0};
    if (engine->diag) steps *= 2, blocks *= 2;
    /* What a screen leaves over are lists of rows, which do not come here. */
    if (params->engine != FGMM_ENGINE_DENSE || !engine->near || engine->k < LEAST_COMPONENTS || d < LEAST_FEATURES ||
        steps > MOST_STEPS)
        return;
    for (size_t i = 0; i < engine->k; i++)
        if (params->log_norm_max - params->log_norm[engine->ids[i]] > MOST_SPREAD) return;
    engine->pairs.on = device->pairs;
    engine->pairs.halves = params->precision == FGMM_FAST && device->singles ? 1 : 2;
    engine->pairs.steps = steps;
    engine->pairs.blocks = blocks > 1 ? 2 : 1;
    engine->pairs.parts = (blocks + 1) / 2;
}

fgmm_status cl_pairs_trust(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    int pairs = device->pairs, singles = device->singles;
    if (!engine->pairs.on) return FGMM_OK;
    CL_TRY(cl_trust(device, CL_CASE_NEAR, engine->d, block->type));
    if (engine->params.precision == FGMM_FAST) CL_TRY(cl_trust(device, CL_CASE_NEAR_FAST, engine->d, block->type));
    if (device->pairs == pairs && device->singles == singles) return FGMM_OK;
    cl_pairs_choose(device, engine);
    if (!engine->dense.started) cl_dense_plan(device, engine);
    return FGMM_OK;
}

size_t cl_pairs_padded(size_t components) {
    return cl_round_up(components, CL_PAIRS_COLUMNS);
}

/* ---- parameters ---- */

/* Columns of the sums: features, and behind them squares. */
static size_t columns_of(const cl_pairs *pairs) {
    return (size_t)(pairs->parts * pairs->blocks) * 64;
}

static size_t features_of(const cl_engine *engine) {
    return columns_of(&engine->pairs) / (engine->diag ? 2 : 1);
}

/* Of a row of a group: its cells, itself in both orders, its marks; single f16 take less. */
size_t cl_pairs_row_bytes(const cl_engine *engine) {
    size_t wide = cl_pairs_padded(engine->dense_width);
    return wide * sizeof(cl_float) + (engine->pairs.steps * 16 + columns_of(&engine->pairs)) * PAIR_BYTES +
           wide / BLOCK * sizeof(cl_uint);
}

/* The parts of the pinned memory. */
typedef struct pair_parts {
    float *factors, *columns, *scales, *units, *a; /* [K, terms], [padded K, 4], [D], [2, columns], [D] */
    size_t terms;
} pair_parts;

size_t cl_pairs_floats(const cl_engine *engine) {
    return engine->k * engine->pairs.steps * 16 + 4 * cl_pairs_padded(engine->k) + 2 * columns_of(&engine->pairs) +
           2 * (size_t)engine->d;
}

static double half_inverse(const cl_engine *engine, size_t i, size_t f) {
    size_t c = (size_t)engine->ids[i];
    return engine->params.half_inv_var[engine->diag ? c * engine->d + f : c];
}

/* A of a feature: the least a, or of diagonal ones the mean. */
static double shared_inverse(const cl_engine *engine, size_t f, double least) {
    double sum = 0.0;
    if (!engine->diag) return least;
    for (size_t i = 0; i < engine->k; i++) sum += half_inverse(engine, i, f);
    return sum / (double)engine->k;
}

/* A of each feature; its scale, a power of two, so that no near row exceeds HALF_RANGE; the units of its sums. */
static void scale_features(const fgmm_device *device, const cl_engine *engine, const pair_parts *p) {
    size_t k = engine->k, d = engine->d, wide = features_of(engine), columns = columns_of(&engine->pairs);
    double least = INFINITY;
    for (size_t i = 0; !engine->diag && i < k; i++) least = fmin(least, half_inverse(engine, i, 0));
#pragma omp parallel for num_threads(cl_threads(device, k *d))
    for (size_t f = 0; f < wide; f++) {
        double scale = 1.0, a = f < d ? shared_inverse(engine, f, least) : 1.0;
        if (f < d) {
            scale = exp2(floor(log2(HALF_RANGE * sqrt((engine->diag ? a : 1.0) / (double)engine->near_most))));
            p->a[f] = (float)a;
            p->scales[f] = (float)scale;
        }
        p->units[f] = (float)(1.0 / (scale * HALF_RANGE));
        if (engine->diag) p->units[wide + f] = (float)(1.0 / (scale * scale));
    }
    for (size_t c = 0; c < columns; c++) p->units[columns + c] = 1.0f / p->units[c];
}

/* Of a component. */
typedef struct pair_component {
    double l;    /* its constant L_k; NaN if it is too unlike the others */
    double most; /* the largest of its factors */
    int close;   /* as single f16 ask */
} pair_component;

/* A factor as the kernels will have it: of single f16, its scale aside, rounded here. */
static float factor_of(const cl_engine *engine, double value) {
    enum { DROPPED = 13 }; /* bits that a float's fraction has beyond an f16's */
    union {
        float f;
        uint32_t u;
    } out = {(float)value};
    if (engine->pairs.halves == 1) {
        out.u += (1u << (DROPPED - 1)) - 1 + (out.u >> DROPPED & 1);
        out.u &= ~0u << DROPPED;
    }
    return out.f;
}

/*
 * A component's factors of the rows' scaled features and squares. What is lost of them where they are rounded is the same for all rows; the
 * constant takes it back for those at the component's own mean and deviation.
 */
static pair_component form_component(const cl_engine *engine, const pair_parts *p, const double *frame,
                                     const float *centre, size_t i) {
    const fgmm_params *params = &engine->params;
    size_t c = (size_t)engine->ids[i], d = engine->d;
    float *own = p->factors + i * p->terms, *squares = own + p->terms / 2;
    double unlike = 0.0, most = 0.0, mean = 0.0, lost = 0.0, feature = 0.0;
    memset(own, 0, p->terms * sizeof *own);
    double l = params->log_norm[c] + params->log_weights[c];
    for (size_t f = 0; f < d; f++) {
        double t = params->means[c * d + f] - (frame ? frame[f] : 0.0) - (double)centre[f];
        double a = half_inverse(engine, i, f), unit = HALF_RANGE * (double)p->units[f], factor = 2.0 * a * t * unit;
        own[f] = factor_of(engine, factor);
        most = fmax(most, fabs(factor));
        mean += a * t * t;
        lost += (factor - (double)own[f]) * t / unit;
        if (!engine->diag) continue;
        double less = (double)p->a[f] - a, square = less * HALF_RANGE * unit * unit;
        squares[f] = factor_of(engine, square);
        most = fmax(most, fabs(square));
        unlike += fabs(less) * (0.5 / a + t * t);
        lost += (square - (double)squares[f]) * (0.5 / a + t * t) / (HALF_RANGE * unit * unit);
        feature = fmax(feature, a * t * t);
    }
    int alike = unlike <= MOST_SQUARES && engine->pairs.steps * mean <= MOST_STEPS_TIMES_MEAN;
    int close = mean <= MOST_MEAN_OF_ONE && unlike <= MOST_SQUARES_OF_ONE && feature <= MOST_FEATURE_OF_ONE;
    if (engine->pairs.halves == 1) mean -= lost;
    return (pair_component){alike ? l - mean : NAN, most, close};
}

/* The columns, and the scale that brings the factors to f16's range. @return 0 if they cannot be used */
static int make_columns(cl_engine *engine, const pair_parts *p, const pair_component *formed, float *scale_out) {
    const double log2_e = 1.4426950408889634;
    size_t k = engine->k, padded = cl_pairs_padded(k);
    cl_pairs *pairs = &engine->pairs;
    double most_l = -INFINITY, a = engine->diag ? 1.0 : (double)p->a[0];
    double most = 0.0;
    for (size_t i = 0; i < k; i++) {
        if (isnan(formed[i].l)) return 0;
        most_l = fmax(most_l, formed[i].l);
        most = fmax(most, formed[i].most);
    }
    double scale = most > 0.0 ? exp2(floor(log2(HALF_RANGE / most))) : 1.0;
    if (!(scale < 1e30)) return 0;
    *scale_out = (float)scale;
    for (size_t i = 0; i < padded; i++) {
        float *out = p->columns + 4 * i;
        out[0] = i < k ? (float)(fmax(formed[i].l - most_l, -1e30) * log2_e) : -3e38f;
        out[1] = i < k && !engine->diag ? (float)((a - half_inverse(engine, i, 0)) * log2_e) : 0.0f;
        out[2] = i < k ? (float)engine->params.weights[engine->ids[i]] : 0.0f;
        out[3] = 0.0f;
    }
    pairs->unit = (float)(log2_e / scale);
    cl_split(most_l, &pairs->most_l.s[0], &pairs->most_l.s[1]);
    cl_split(a, &pairs->least_a.s[0], &pairs->least_a.s[1]);
    return pairs->unit > 1e-30f && pairs->unit < 1e30f;
}

static fgmm_status arrange(fgmm_device *device, float scale) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    size_t blocks = cl_pairs_padded(engine->k) / BLOCK, steps = engine->pairs.steps;
    size_t local[3] = {32, 1, 1}, global[3] = {32, steps, blocks};
    CL_TRY(cl_room_fit(device, &engine->pair_means, blocks * steps * 64 * sizeof(cl_uint4), "the components as f16"));
    char options[16];
    snprintf(options, sizeof options, "-DHALVES=%d", engine->pairs.halves);
    CL_TRY(cl_kernel_get(device, &kernel, "near_rows", options, "near_components"));
    return CL_RUN(device, kernel, "arranging parameters", 3, global, local, CL_ARG(engine->pair_factors.mem),
                  CL_ARG(engine->k), CL_ARG(scale), CL_ARG(engine->pair_means.mem));
}

static fgmm_status send_parts(fgmm_device *device, const pair_parts *p) {
    cl_engine *engine = device->engine;
    size_t k = engine->k, d = engine->d;
    CL_TRY(cl_send_taken(device, &engine->pair_factors, p->factors, k * p->terms, "the components"));
    CL_TRY(
        cl_send_taken(device, &engine->pair_columns, p->columns, 4 * cl_pairs_padded(k), "the components' constants"));
    CL_TRY(cl_send_taken(device, &engine->pair_scales, p->scales, d, "the features' scales"));
    CL_TRY(
        cl_send_taken(device, &engine->pair_units, p->units, 2 * columns_of(&engine->pairs), "the features' scales"));
    return cl_send_taken(device, &engine->pair_a, p->a, d, "the features' scales");
}

/* Sends what the kernels want, or turns them off. centre [D]: as sent. */
static fgmm_status prepare_pairs(fgmm_device *device, const double *frame, const float *centre) {
    cl_engine *engine = device->engine;
    size_t k = engine->k, d = engine->d, terms = (size_t)engine->pairs.steps * 16;
    pair_component *formed = cl_alloc(device, k * sizeof *formed);
    if (!formed) return FGMM_ERR_MEMORY;
    const pair_parts p = {.factors = cl_take(engine, k * terms),
                          .columns = cl_take(engine, 4 * cl_pairs_padded(k)),
                          .scales = cl_take(engine, d),
                          .units = cl_take(engine, 2 * columns_of(&engine->pairs)),
                          .a = cl_take(engine, d),
                          .terms = terms};
    scale_features(device, engine, &p);
    for (;;) {
        int close = 1;
#pragma omp parallel for num_threads(cl_threads(device, k *d))
        for (size_t i = 0; i < k; i++) formed[i] = form_component(engine, &p, frame, centre, i);
        for (size_t i = 0; i < k; i++) close &= formed[i].close;
        if (close || engine->pairs.halves == 2) break;
        engine->pairs.halves = 2;
    }
    float scale = 1.0f;
    int alike = make_columns(engine, &p, formed, &scale);
    cl_release_memory(device, formed);
    if (alike) {
        CL_TRY(send_parts(device, &p));
        return arrange(device, scale);
    }
    engine->pairs.on = CL_MATRIX_NONE;
    return FGMM_OK;
}

/*
 * Spherical: with M = a |m - c|^2 of a component and P = a |x - c|^2 of a row, the terms of its product add up to at most
 * T = 2 sqrt(P M) in absolute value, and what rounding leaves where it does not all agree is about 2^-24 T / sqrt(D): under 1e-6
 * for rows of P about D / 2 + M. Then no mean is more than a few deviations from c, as sums about c need; diagonal covariances
 * need it of each feature. Rows of P beyond FAR D, where that comes to 4e-6, have the pass repeated with direct differences.
 */
enum { FAR = 35 };

static int component_near(const cl_engine *engine, size_t i, double most) {
    const fgmm_params *params = &engine->params;
    size_t c = (size_t)engine->ids[i], d = engine->d;
    double m = 0.0;
    for (size_t f = 0; f < d; f++) {
        double t = params->means[c * d + f] - params->centre[f];
        double a = params->half_inv_var[engine->diag ? c * d + f : c], term = a * t * t;
        if (!(a > 1e-30 && a < 1e30)) return 0;
        m = engine->diag ? fmax(m, term) : m + term;
    }
    return m <= most;
}

int cl_is_near(const fgmm_device *device, const cl_engine *engine) {
    const fgmm_params *params = &engine->params;
    const double d = engine->d, most = engine->diag ? 2.0 : d < 32.0 ? d : 32.0;
    size_t k = engine->k;
    int far = 0;
    if (params->careful || params->hard || engine->tied || engine->full) return 0;
    if (k > 0 && !component_near(engine, 0, most)) return 0; /* as where clusters lie apart */
#pragma omp parallel for num_threads(cl_threads(device, k * engine->d))
    for (size_t i = 1; i < k; i++)
        if (!component_near(engine, i, most)) {
#pragma omp atomic write
            far = 1;
        }
    return !far;
}

/* The centre; what cl_near.c needs; and for spherical covariances 2 a (m - c), and L - M in two floats, of each component. */
fgmm_status cl_send_near(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t k = engine->k, d = engine->d;
    float *centre = cl_take(engine, d);
    for (size_t f = 0; f < d; f++) centre[f] = cl_screen_centre(params, frame, (int64_t)f);
    CL_TRY(cl_send_taken(device, &engine->near_centre, centre, d, "the centre"));
    engine->near_most = (float)(FAR * (double)d); /* diagonal: of the norm that cl_near.c weighs */
    if (engine->diag) return engine->pairs.on ? prepare_pairs(device, frame, centre) : FGMM_OK;
    float *means = cl_take(engine, k * d), *constants = cl_take(engine, 4 * k);
    double widest = INFINITY; /* the least a: of the components that such a row may belong to */
    for (size_t i = 0; i < k; i++) widest = fmin(widest, params->half_inv_var[engine->ids[i]]);
    engine->near_most = (float)(FAR * (double)d / widest);
#pragma omp parallel for num_threads(cl_threads(device, k *d))
    for (size_t i = 0; i < k; i++) {
        size_t c = (size_t)engine->ids[i];
        double a = params->half_inv_var[c], square = 0.0;
        for (size_t f = 0; f < d; f++) {
            double t = params->means[c * d + f] - (frame ? frame[f] : 0.0) - (double)centre[f];
            means[i * d + f] = (float)(2.0 * a * t);
            square += t * t;
        }
        cl_split(params->log_norm[c] + params->log_weights[c] - a * square, &constants[4 * i], &constants[4 * i + 1]);
        constants[4 * i + 2] = constants[4 * i + 3] = 0.0f;
    }
    CL_TRY(cl_send_taken(device, &engine->near_means, means, k * d, "the means"));
    CL_TRY(cl_send_taken(device, &engine->near_constants, constants, 4 * k, "the components' constants"));
    return engine->pairs.on ? prepare_pairs(device, frame, centre) : FGMM_OK;
}

/* ---- groups ---- */

int cl_pairs_take(const cl_engine *engine, const cl_group *group) {
    return engine->pairs.on && !group->list && !group->slice->block->weights;
}

/* The tiles of rows, in pairs: near_sums takes two at a time. */
static size_t tiles_of(const cl_group *group) {
    return cl_round_up(group->n, 2 * TILE_ROWS) / TILE_ROWS;
}

static cl_uint padded_rows(const cl_group *group) {
    return (cl_uint)(tiles_of(group) * TILE_ROWS);
}

static fgmm_status fit_group(fgmm_device *device, const cl_group *group) {
    cl_engine *engine = device->engine;
    const cl_pairs *pairs = &engine->pairs;
    size_t rows = padded_rows(group), wide = cl_pairs_padded(engine->dense_width), sets = wide / SET;
    size_t value = (size_t)pairs->halves * HALF_BYTES, factors = pairs->halves > 1 ? sets + 1 : 2;
    CL_TRY(cl_room_fit(device, &engine->by_feature, rows * pairs->steps * 16 * value, "rows as f16"));
    CL_TRY(cl_room_fit(device, &engine->row_norms, rows * sizeof(cl_float), "rows as f16"));
    CL_TRY(cl_room_fit(device, &engine->factors, rows * factors * sizeof(cl_float), "a dense group"));
    if (pairs->halves == 1) return FGMM_OK;
    CL_TRY(cl_room_fit(device, &engine->marks, rows * (wide / BLOCK) * sizeof(cl_uint), "a dense group"));
    CL_TRY(cl_room_fit(device, &engine->tops, rows * sets * sizeof(cl_uint4), "a dense group"));
    CL_TRY(cl_room_fit(device, &engine->cells, rows * wide * sizeof(cl_float), "a tile of logits"));
    return cl_room_fit(device, &engine->by_row, rows * columns_of(pairs) * value, "rows as f16");
}

static fgmm_status rows_kernel(fgmm_device *device, const cl_group *group, const char *name, cl_kernel *out) {
    const fgmm_block *block = group->slice->block;
    char options[64];
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DROW_FOURS=%d -DHALVES=%d", (int)block->type,
             cl_row_fours(device->engine->d, block->offset, block->pitch), device->engine->pairs.halves);
    return cl_kernel_get(device, out, "near_rows", options, name);
}

/* That of `name`_wgmma or `name`_mma. */
static fgmm_status products_kernel(fgmm_device *device, const char *name, const char *options, cl_kernel *out) {
    char program[32];
    snprintf(program, sizeof program, "%s_%s", name,
             device->engine->pairs.on == CL_MATRIX_WARPGROUPS ? "wgmma" : "mma");
    return cl_kernel_get(device, out, program, options, name);
}

/* Work-groups that are to have room in a compute unit: registers allow two where a warp keeps few steps. */
static int resident(const cl_pairs *pairs) {
    return pairs->on == CL_MATRIX_WARPGROUPS && pairs->steps <= 8 ? 2 : 0;
}

/* near_logits or, of single f16, near_lse. */
static fgmm_status logits_kernel(fgmm_device *device, cl_kernel *out) {
    const cl_pairs *pairs = &device->engine->pairs;
    char options[64];
    snprintf(options, sizeof options, "-DSTEPS=%u -DRESIDENT=%d", (unsigned)pairs->steps, resident(pairs));
    return products_kernel(device, pairs->halves > 1 ? "near_logits" : "near_lse", options, out);
}

/* near_sums or, of single f16, near_fused. */
static fgmm_status sums_kernel(fgmm_device *device, cl_kernel *out) {
    const cl_pairs *pairs = &device->engine->pairs;
    char options[64];
    snprintf(options, sizeof options, "-DBLOCKS=%u", (unsigned)pairs->blocks);
    if (pairs->halves > 1) return products_kernel(device, "near_sums", options, out);
    snprintf(options, sizeof options, "-DSTEPS=%u -DBLOCKS=%u", (unsigned)pairs->steps, (unsigned)pairs->blocks);
    return products_kernel(device, "near_fused", options, out);
}

static fgmm_status run_pack(fgmm_device *device, const cl_group *group) {
    cl_engine *engine = device->engine;
    const cl_pairs *pairs = &engine->pairs;
    const fgmm_block *block = group->slice->block;
    cl_kernel kernel = NULL;
    cl_uint eights = 2 * pairs->steps, part = 64 * pairs->blocks, wide = (cl_uint)columns_of(pairs);
    cl_uint squares = engine->diag != 0;
    cl_mem weights = engine->diag ? engine->pair_a.mem : NULL;
    size_t local = GROUP, global = tiles_of(group) * GROUP;
    CL_TRY(rows_kernel(device, group, "near_pack", &kernel));
    return CL_RUN(device, kernel, "packing rows", 1, &global, &local, CL_ARG(block->rows), CL_ARG(block->offset),
                  CL_ARG(block->pitch), CL_ARG(group->slice->row0), CL_ARG(group->base), CL_ARG(group->n),
                  CL_ARG(engine->d), CL_ARG(squares), CL_ARG(eights), CL_ARG(wide), CL_ARG(part),
                  CL_ARG(engine->near_centre.mem), CL_ARG(engine->pair_scales.mem), CL_ARG(weights),
                  CL_ARG(engine->near_most), CL_ARG(engine->norms.mem), CL_ARG(engine->far_rows.mem),
                  CL_ARG(engine->by_feature.mem), CL_ARG(engine->by_row.mem), CL_ARG(engine->row_norms.mem));
}

static fgmm_status run_logits(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    const cl_pairs *pairs = &engine->pairs;
    cl_kernel kernel = NULL;
    size_t columns = cl_pairs_padded(width) / CL_PAIRS_COLUMNS;
    cl_uint tiles = (cl_uint)tiles_of(group), resident = 2 * (device->compute_units ? device->compute_units : 1);
    /* Tiles of rows for each work-group, so many that all run at once. */
    cl_uint span = (cl_uint)((tiles * columns + resident - 1) / resident);
    size_t local[2] = {GROUP, 1}, global[2] = {columns * GROUP, (tiles + span - 1) / span};
    CL_TRY(logits_kernel(device, &kernel));
    return CL_RUN(device, kernel, "dense logits", 2, global, local, CL_ARG(engine->by_feature.mem),
                  CL_ARG(engine->row_norms.mem), CL_ARG(engine->norms.mem), CL_ARG(group->n), CL_ARG(tiles),
                  CL_ARG(span), CL_ARG(engine->pair_means.mem), CL_ARG(engine->pair_columns.mem), CL_ARG(k0),
                  CL_ARG(pairs->unit), CL_ARG(pairs->most_l), CL_ARG(pairs->least_a), CL_ARG(engine->cells.mem),
                  CL_ARG(engine->tops.mem));
}

static fgmm_status run_factors(fgmm_device *device, const cl_group *group, cl_uint width) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_uint padded = padded_rows(group), sets = (cl_uint)(cl_pairs_padded(width) / SET);
    size_t local = TILE_ROWS, global = padded;
    CL_TRY(rows_kernel(device, group, "near_factors", &kernel));
    return CL_RUN(device, kernel, "dense responsibilities", 1, &global, &local, CL_ARG(engine->tops.mem),
                  CL_ARG(group->n), CL_ARG(padded), CL_ARG(sets), CL_ARG(group->base), CL_ARG(engine->best.mem),
                  CL_ARG(engine->sum.mem), CL_ARG(engine->resp_log_cut), CL_ARG(engine->log_norm_max),
                  CL_ARG(engine->factors.mem), CL_ARG(engine->logz.mem));
}

/* Log-densities, and factors, over all components at once. */
static fgmm_status run_lse(fgmm_device *device, const cl_group *group) {
    cl_engine *engine = device->engine;
    const cl_pairs *pairs = &engine->pairs;
    cl_kernel kernel = NULL;
    cl_uint padded = padded_rows(group);
    cl_uint tiles = (cl_uint)(cl_pairs_padded(engine->k) / SET);
    size_t local = GROUP, global = padded / (2 * TILE_ROWS) * local;
    CL_TRY(logits_kernel(device, &kernel));
    return CL_RUN(device, kernel, "dense log-densities", 1, &global, &local, CL_ARG(engine->by_feature.mem),
                  CL_ARG(engine->row_norms.mem), CL_ARG(group->n), CL_ARG(padded), CL_ARG(group->base),
                  CL_ARG(engine->pair_means.mem), CL_ARG(tiles), CL_ARG(engine->pair_columns.mem), CL_ARG(pairs->unit),
                  CL_ARG(pairs->most_l), CL_ARG(pairs->least_a), CL_ARG(engine->resp_log_cut),
                  CL_ARG(engine->log_norm_max), CL_ARG(engine->factors.mem), CL_ARG(engine->logz.mem),
                  CL_ARG(engine->kept.mem), CL_ARG(engine->kept_weight.mem));
}

static fgmm_status run_fused(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                             const cl_place *place) {
    cl_engine *engine = device->engine;
    const cl_pairs *pairs = &engine->pairs;
    cl_kernel kernel = NULL;
    cl_uint padded = padded_rows(group);
    cl_uint squares = engine->diag != 0, wide = (cl_uint)features_of(engine);
    size_t local[3] = {GROUP, 1, 1};
    size_t global[3] = {cl_pairs_padded(width) / CL_PAIRS_COLUMNS * GROUP, pairs->parts, place->slots};
    CL_TRY(sums_kernel(device, &kernel));
    return CL_RUN(device, kernel, "dense sums", 3, global, local, CL_ARG(engine->by_feature.mem),
                  CL_ARG(engine->row_norms.mem), CL_ARG(engine->factors.mem), CL_ARG(padded),
                  CL_ARG(engine->pair_means.mem), CL_ARG(engine->pair_columns.mem), CL_ARG(pairs->unit),
                  CL_ARG(engine->dense_starts.mem), CL_ARG(place->resume), CL_ARG(engine->d), CL_ARG(squares),
                  CL_ARG(wide), CL_ARG(engine->k), CL_ARG(k0), CL_ARG(width), CL_ARG(engine->pair_units.mem),
                  CL_ARG(place->part), CL_ARG(engine->kept.mem), CL_ARG(group->base));
}

static fgmm_status run_sums(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width,
                            const cl_place *place) {
    cl_engine *engine = device->engine;
    const cl_pairs *pairs = &engine->pairs;
    cl_kernel kernel = NULL;
    cl_uint padded = padded_rows(group);
    cl_uint squares = engine->diag != 0, wide = (cl_uint)features_of(engine);
    size_t local[3] = {GROUP, 1, 1};
    size_t global[3] = {cl_pairs_padded(width) / CL_PAIRS_COLUMNS * GROUP, pairs->parts, place->slots};
    CL_TRY(sums_kernel(device, &kernel));
    return CL_RUN(device, kernel, "dense sums", 3, global, local, CL_ARG(engine->by_row.mem),
                  CL_ARG(engine->row_norms.mem), CL_ARG(engine->factors.mem), CL_ARG(padded), CL_ARG(engine->cells.mem),
                  CL_ARG(engine->pair_columns.mem), CL_ARG(engine->dense_starts.mem), CL_ARG(place->resume),
                  CL_ARG(engine->d), CL_ARG(squares), CL_ARG(wide), CL_ARG(engine->k), CL_ARG(k0), CL_ARG(width),
                  CL_ARG(engine->pair_units.mem), CL_ARG(place->part), CL_ARG(engine->marks.mem));
}

static fgmm_status run_kept(fgmm_device *device, const cl_group *group, cl_uint k0, cl_uint width) {
    cl_engine *engine = device->engine;
    cl_kernel kernel = NULL;
    cl_uint padded = padded_rows(group), blocks = (cl_uint)(cl_pairs_padded(width) / BLOCK);
    size_t local = TILE_ROWS, global = padded;
    CL_TRY(rows_kernel(device, group, "near_kept", &kernel));
    return CL_RUN(device, kernel, "dense responsibilities", 1, &global, &local, CL_ARG(engine->marks.mem),
                  CL_ARG(group->n), CL_ARG(padded), CL_ARG(blocks), CL_ARG(group->base), CL_ARG(k0),
                  CL_ARG(engine->kept.mem), CL_ARG(engine->kept_weight.mem));
}

/* A group by single f16. */
static fgmm_status run_single(fgmm_device *device, const cl_group *group, const cl_place *place) {
    cl_engine *engine = device->engine;
    cl_uint wide = engine->dense_width, k = engine->k;
    CL_TRY(run_lse(device, group));
    engine->pairs.added = 1;
    for (cl_uint k0 = 0; k0 < k; k0 += wide) CL_TRY(run_fused(device, group, k0, k0 + wide < k ? wide : k - k0, place));
    return FGMM_OK;
}

static fgmm_status run_group(fgmm_device *device, const cl_group *group, const cl_place *place) {
    cl_engine *engine = device->engine;
    cl_uint wide = engine->dense_width, k = engine->k, padded = padded_rows(group);
    cl_kernel sums = NULL;
    engine->pairs.added = 0;
    CL_TRY(sums_kernel(device, &sums)); /* whether it builds is known before anything is added */
    CL_TRY(fit_group(device, group));
    CL_TRY(run_pack(device, group));
    if (engine->pairs.halves == 1) return run_single(device, group, place);
    for (cl_uint k0 = 0; k0 < k; k0 += wide) {
        cl_uint width = k0 + wide < k ? wide : k - k0;
        CL_TRY(run_logits(device, group, k0, width));
        CL_TRY(cl_dense_lse(device, group, k0, (cl_uint)(cl_pairs_padded(width) / SET), padded, 1));
    }
    for (cl_uint k0 = 0; k0 < k; k0 += wide) {
        cl_uint width = k0 + wide < k ? wide : k - k0;
        if (k > wide) CL_TRY(run_logits(device, group, k0, width));
        CL_TRY(run_factors(device, group, width));
        engine->pairs.added = 1;
        CL_TRY(run_sums(device, group, k0, width, place));
        CL_TRY(run_kept(device, group, k0, width));
    }
    return FGMM_OK;
}

/* A driver that does not take the kernels costs these alone: the group goes through the f32 ones, and the next pass tries the others. */
fgmm_status cl_pairs_try(fgmm_device *device, const cl_group *group, const cl_place *place, int *done) {
    cl_engine *engine = device->engine;
    device->group_refused = 0;
    fgmm_status status = run_group(device, group, place);
    *done = status == FGMM_OK;
    const char *refused = engine->pairs.added ? NULL : cl_refusal(device, status);
    if (!refused) return status;
    device->host.log(device->host.user, FGMM_LOG_WARNING, "%s: the dense engine leaves %s alone: its kernels do not %s",
                     device->name, engine->pairs.halves == 1 ? "single f16" : cl_matrix_name(engine->pairs.on),
                     refused);
    if (engine->pairs.halves == 1)
        device->singles = 0;
    else
        device->pairs = engine->pairs.on - 1;
    engine->pairs.on = CL_MATRIX_NONE;
    return FGMM_OK;
}
