#include "data_sets.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum data_shape {
    PLAIN,      /* overlapping or separated clusters of deviation about 1 */
    PAIRS,      /* overlapping pairs of deviation 1e-3 in six places, 1e3 from the origin */
    SCALES,     /* variances from 1e-4 to 1e4, one inside the other */
    DUPLICATES, /* few distinct rows, many times each */
    CONSTANT,   /* one column the same for all rows, the model's mean and variance there off */
    ZERO_MODEL, /* a component of weight 0 in the model */
    FAR_START,  /* the model's mean hundreds of deviations from the data */
    OFFSET,     /* all rows about 1e6 */
    BYTES,      /* for u8 and i8 */
    CORRELATED, /* neighbouring columns correlated by 0.999 */
    CLOSE,      /* centres and covariances so close that rows are shared even in many dimensions */
    COLUMNS,    /* deviations of columns from 1e-2 to 1e2 */
    LOW_RANK    /* fewer rows a component than features; the model's covariances are those of the rows */
} data_shape;

/* Which types of covariance a case is for. */
enum {
    ALL = 0,
    VECTORS = 1 << FGMM_SPHERICAL | 1 << FGMM_DIAG,
    MATRICES = 1 << FGMM_TIED | 1 << FGMM_FULL,
    NOT_SPHERICAL = MATRICES | 1 << FGMM_DIAG
};

typedef enum row_weights { NONE, SOME_ZERO, COMPONENT_ZERO, HEAVY } row_weights;

struct problem_case {
    const char *name;
    int64_t n, k, d;
    data_shape shape;
    fgmm_dtype type;
    int64_t gap; /* elements between rows */
    row_weights weights;
    double spread; /* distance of the centres, in deviations a feature; 0: 3. PAIRS: from the origin; 0: 1e3 */
    int types;     /* ALL or a set */
    double reg;    /* reg_covar for tied and full, in variances */
};

static const problem_case cases[] = {
    {"clusters", 3000, 7, 5, PLAIN, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"overlapping clusters", 3000, 9, 3, PLAIN, FGMM_F32, 0, NONE, 0.7, ALL, 0},
    {"one component", 2500, 1, 6, PLAIN, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"one feature", 2500, 5, 1, PLAIN, FGMM_F32, 0, NONE, 1, ALL, 0},
    {"two features", 2500, 6, 2, PLAIN, FGMM_F32, 0, NONE, 1, MATRICES, 0},
    {"one row", 1, 3, 4, PLAIN, FGMM_F32, 0, NONE, 0.5, ALL, 1e-2},
    {"one row of weight 7", 1, 3, 4, PLAIN, FGMM_F32, 0, HEAVY, 0.5, ALL, 1e-2},
    {"as many components as rows", 37, 37, 2, PLAIN, FGMM_F32, 0, NONE, 1, ALL, 1e-2},
    {"K 5, D 13", 1500, 5, 13, PLAIN, FGMM_F32, 0, NONE, 0.4, MATRICES, 0},
    {"K 70, D 9", 1500, 70, 9, PLAIN, FGMM_F32, 0, NONE, 0.6, MATRICES, 1e-2},
    {"K 17, D 33", 2100, 17, 33, PLAIN, FGMM_F32, 0, NONE, 0.5, ALL, 0},
    {"K 67, D 65", 1500, 67, 65, PLAIN, FGMM_F32, 0, NONE, 0.3, ALL, 1e-2},
    {"K 131, D 129", 1100, 131, 129, PLAIN, FGMM_F32, 0, NONE, 0.2, VECTORS, 0},
    {"K 5, D 130", 500, 5, 130, PLAIN, FGMM_F32, 0, NONE, 0.15, MATRICES, 1e-3},
    {"K 17, D 257", 1100, 17, 257, PLAIN, FGMM_F32, 0, NONE, 0.1, VECTORS, 0},
    {"K 1030, D 3", 1200, 1030, 3, PLAIN, FGMM_F32, 0, NONE, 3, ALL, 1e-2},
    {"K 5, D 1030", 800, 5, 1030, PLAIN, FGMM_F32, 0, NONE, 0.05, VECTORS, 0},
    {"K 3, D 4096", 300, 3, 4096, PLAIN, FGMM_F32, 0, NONE, 0.03, VECTORS, 0},
    {"K 65536, D 2", 30, 65536, 2, PLAIN, FGMM_F32, 0, NONE, 30, ALL, 1e-2},
    {"pairs far from the origin, D 8", 3000, 12, 8, PAIRS, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"pairs far from the origin, D 33", 2000, 12, 33, PAIRS, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"pairs at distance 1", 2000, 12, 5, PAIRS, FGMM_F32, 0, NONE, 1, ALL, 0},
    {"variances over 8 orders", 4000, 9, 4, SCALES, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"variances over 8 orders, D 40", 2000, 9, 40, SCALES, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"columns over 4 orders", 2000, 5, 7, COLUMNS, FGMM_F32, 0, NONE, 1, NOT_SPHERICAL, 0},
    {"correlated columns", 3000, 4, 6, CORRELATED, FGMM_F32, 0, NONE, 1, MATRICES, 0},
    {"correlated columns, D 33", 2000, 5, 33, CORRELATED, FGMM_F32, 0, NONE, 0.3, MATRICES, 0},
    {"fewer rows than features", 40, 5, 17, LOW_RANK, FGMM_F32, 0, NONE, 0.4, MATRICES, 1e-4},
    {"duplicates", 2000, 6, 4, DUPLICATES, FGMM_F32, 0, NONE, 0, ALL, 1e-3},
    {"a constant column", 2000, 4, 5, CONSTANT, FGMM_F32, 0, NONE, 0, ALL, 1e-3},
    {"a component of weight 0", 2000, 6, 5, ZERO_MODEL, FGMM_F32, 0, NONE, 1, ALL, 0},
    {"a start far away", 2000, 3, 5, FAR_START, FGMM_F32, 0, NONE, 0, ALL, 0},
    {"rows of weight 0", 3000, 6, 5, PLAIN, FGMM_F32, 0, SOME_ZERO, 1, ALL, 0},
    {"a component whose rows have weight 0", 3000, 6, 5, PLAIN, FGMM_F32, 0, COMPONENT_ZERO, 0, ALL, 1e-3},
    {"strided rows", 2000, 6, 5, PLAIN, FGMM_F32, 3, SOME_ZERO, 1, ALL, 0},
    {"f64", 2000, 6, 9, PLAIN, FGMM_F64, 0, NONE, 1, ALL, 0},
    {"f64 about 1e6", 2000, 6, 5, OFFSET, FGMM_F64, 2, NONE, 1, ALL, 0},
    {"f16", 2000, 6, 9, PLAIN, FGMM_F16, 0, NONE, 1, ALL, 0},
    {"bf16", 2000, 6, 9, PLAIN, FGMM_BF16, 1, NONE, 1, ALL, 0},
    {"u8", 2000, 6, 9, BYTES, FGMM_U8, 0, NONE, 0, ALL, 0},
    {"i8", 2000, 6, 9, BYTES, FGMM_I8, 3, NONE, 0, ALL, 0},
};

int problem_count(void) {
    return (int)(sizeof cases / sizeof *cases);
}
const char *problem_name(int which) {
    return cases[which].name;
}

/* ---- narrowing ---- */

static double clamp(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

/* Finite values within the type's normal range or 0; NaN stays. */
static uint16_t half_bits(double value) {
    if (isnan(value)) return 0x7e00;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fmin(fabs(value), 65504.0);
    if (magnitude < 0x1p-14) return (uint16_t)(sign | (uint16_t)nearbyint(ldexp(magnitude, 24)));
    int exponent;
    double fraction = frexp(magnitude, &exponent); /* in [0.5, 1) */
    uint32_t steps = (uint32_t)nearbyint(ldexp(fraction, 11));
    /* A fraction that rounds up to 2048 carries into the exponent, as the encoding means it to. */
    return (uint16_t)(sign | (uint16_t)((uint32_t)(exponent + 13) * 1024u + steps));
}

static uint16_t bfloat_bits(double value) {
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    if (isnan(value)) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void store_value(void *rows, fgmm_dtype type, int64_t i, double value) {
    switch (type) {
    case FGMM_F32: ((float *)rows)[i] = (float)value; break;
    case FGMM_F64: ((double *)rows)[i] = value; break;
    case FGMM_F16: ((uint16_t *)rows)[i] = half_bits(value); break;
    case FGMM_BF16: ((uint16_t *)rows)[i] = bfloat_bits(value); break;
    case FGMM_U8: ((uint8_t *)rows)[i] = isnan(value) ? 255 : (uint8_t)nearbyint(clamp(value, 0, 255)); break;
    case FGMM_I8: ((int8_t *)rows)[i] = isnan(value) ? 127 : (int8_t)nearbyint(clamp(value, -128, 127)); break;
    default: ck_abort_msg("no rows of this type");
    }
}

/* ---- covariances ---- */

int covariance_is_matrix(fgmm_covariance type) {
    return type == FGMM_TIED || type == FGMM_FULL;
}

int64_t covariance_size(fgmm_covariance type, int64_t k, int64_t d) {
    return (type == FGMM_TIED ? 1 : k) * (type == FGMM_SPHERICAL ? 1 : d) * (covariance_is_matrix(type) ? d : 1);
}

int64_t covariance_index(fgmm_covariance type, int64_t d, int64_t k, int64_t i, int64_t j) {
    if (type == FGMM_SPHERICAL) return k;
    if (type == FGMM_DIAG) return k * d + j;
    return ((type == FGMM_TIED ? 0 : k) * d + i) * d + j;
}

double covariance_variance(fgmm_covariance type, const double *covariances, int64_t d, int64_t k, int64_t j) {
    return covariances[covariance_index(type, d, k, j, j)];
}

/* ---- making a problem ---- */

static problem *problem_new(const problem_case *c, int64_t n, fgmm_covariance covariance) {
    problem *p = test_alloc(1, sizeof *p);
    size_t size = (size_t)covariance_size(covariance, c->k, c->d);
    *p = (problem){.name = c->name, .n = n, .k = c->k, .d = c->d, .stride = c->d + c->gap, .type = c->type};
    p->covariance = covariance;
    p->rows = test_alloc((size_t)(n * p->stride), fgmm_dtype_size(p->type));
    p->model_weights = test_alloc((size_t)p->k, sizeof(double));
    p->means = test_alloc((size_t)(p->k * p->d), sizeof(double));
    p->covariances = test_alloc(size, sizeof(double));
    if (covariance_is_matrix(covariance)) p->factors = test_alloc(size, sizeof(double));
    return p;
}

void problem_free(problem *p) {
    if (!p) return;
    free(p->rows);
    free(p->weights);
    free(p->model_weights);
    free(p->means);
    free(p->covariances);
    free(p->factors);
    free(p);
}

/* L of a component's covariance L L'. */
static double *factor(const problem *p, int64_t k) {
    return p->factors + (p->covariance == FGMM_TIED ? 0 : k * p->d * p->d);
}

static void multiply_factor(problem *p, int64_t k) {
    int64_t d = p->d;
    const double *l = factor(p, k);
    for (int64_t i = 0; i < d; i++) {
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t m = 0; m <= j; m++) sum += l[i * d + m] * l[j * d + m];
            p->covariances[covariance_index(p->covariance, d, k, i, j)] = sum;
            p->covariances[covariance_index(p->covariance, d, k, j, i)] = sum;
        }
    }
}

/* A deviation of the component: z drawn from N(0, I), then scaled, or multiplied by the factor. */
static void draw_deviation(const problem *p, rng *r, int64_t k, double *out) {
    for (int64_t j = 0; j < p->d; j++) out[j] = rng_normal(r);
    for (int64_t j = p->d; j-- > 0;) {
        if (!p->factors) {
            out[j] *= sqrt(covariance_variance(p->covariance, p->covariances, p->d, k, j));
            continue;
        }
        double sum = 0;
        for (int64_t m = 0; m <= j; m++) sum += factor(p, k)[j * p->d + m] * out[m];
        out[j] = sum;
    }
}

/* Deviation of a column beside the component's own. */
static double column_scale(const problem *p, data_shape shape, int64_t j) {
    if (shape == CLOSE) return 1 + 0.3 * sin((double)j);
    return shape == COLUMNS ? pow(10.0, 4.0 * (double)j / (double)(p->d - 1) - 2.0) : 1;
}

/* What a component's deviations differ by from the others'. */
static double variation(rng *r, data_shape shape, double step) {
    return shape == CLOSE ? 1 : exp(step * rng_normal(r));
}

static void place_matrix(problem *p, rng *r, int64_t k, double own, data_shape shape) {
    const double neighbours = 0.999;
    double *l = factor(p, k);
    if (shape == CLOSE && k > 0) {
        memcpy(l, factor(p, 0), (size_t)(p->d * p->d) * sizeof *l);
        multiply_factor(p, k);
        return;
    }
    for (int64_t i = 0; i < p->d; i++) {
        double along = own * variation(r, shape, 0.3) * column_scale(p, shape, i);
        for (int64_t j = 0; j <= i; j++) {
            double entry = i == j ? 1 : 0.5 * rng_normal(r) / sqrt((double)p->d);
            /* x_i = rho x_i-1 + sqrt(1 - rho^2) z_i */
            if (shape == CORRELATED)
                entry = pow(neighbours, (double)(i - j)) * (j == 0 ? 1 : sqrt(1 - neighbours * neighbours));
            l[i * p->d + j] = along * entry;
        }
    }
    multiply_factor(p, k);
}

/* One component of the truth: centre + spread * deviation * N(0, I), variances about deviation^2. */
static void place(problem *p, rng *r, int64_t k, const double *centre, double size, double spread, data_shape shape) {
    double own = size * variation(r, shape, 0.2);
    if (p->covariance == FGMM_SPHERICAL) p->covariances[k] = own * own;
    if (p->covariance == FGMM_FULL || (p->covariance == FGMM_TIED && k == 0)) place_matrix(p, r, k, own, shape);
    double *mean = p->means + k * p->d;
    for (int64_t j = 0; j < p->d; j++) {
        double along = own * variation(r, shape, 0.3) * column_scale(p, shape, j);
        if (p->covariance == FGMM_DIAG) p->covariances[k * p->d + j] = along * along;
        mean[j] = spread * size * rng_normal(r) * column_scale(p, shape, j);
    }
    if (shape == CORRELATED) { /* else no two components would overlap */
        draw_deviation(p, r, k, mean);
        for (int64_t j = 0; j < p->d; j++) mean[j] *= spread;
    }
    for (int64_t j = 0; j < p->d; j++) mean[j] += centre ? centre[j] : 0.0;
    p->model_weights[k] = 0.5 + rng_uniform(r);
}

/* Six places, some way from the origin, each with overlapping components 1.5 deviations apart in all. */
static void place_pairs(problem *p, rng *r, double distance) {
    double centre[64], length;
    for (int64_t k = 0; k < p->k; k++) {
        if (k % 2 == 0) {
            length = 0;
            for (int64_t j = 0; j < p->d; j++) {
                centre[j] = rng_normal(r);
                length += centre[j] * centre[j];
            }
            for (int64_t j = 0; j < p->d; j++) centre[j] *= distance / sqrt(length);
        }
        place(p, r, k, centre, 1e-3, 1.5 / sqrt(2.0 * (double)p->d), PAIRS);
    }
}

static void place_all(problem *p, rng *r, const problem_case *c) {
    double spread = c->spread > 0 ? c->spread : 3.0;
    double *centre = test_alloc((size_t)p->d, sizeof *centre);
    for (int64_t j = 0; j < p->d; j++) {
        if (c->shape == OFFSET) centre[j] = 1e6 * (j % 2 ? -1 : 1);
        if (c->shape == BYTES) centre[j] = p->type == FGMM_U8 ? 128 : 0;
    }
    for (int64_t k = 0; k < p->k && c->shape != PAIRS; k++) {
        if (c->shape == SCALES)
            place(p, r, k, NULL, pow(10.0, 0.5 * (double)(k % 9 - 4)), 0.7, SCALES);
        else if (c->shape == BYTES)
            place(p, r, k, centre, 12.0, 2.5, BYTES);
        else
            place(p, r, k, centre, 1.0, spread, c->shape);
    }
    if (c->shape == PAIRS) place_pairs(p, r, c->spread > 0 ? c->spread : 1e3);
    /* Few rows a component may not span all dimensions. */
    double reg = c->reg == 0 && p->n < 10 * p->k * p->d ? 1e-2 : c->reg;
    if (covariance_is_matrix(p->covariance)) p->reg_covar = reg * p->covariances[0];
    free(centre);
}

/* Component of a row, in the proportions of the weights. */
static int64_t pick(const problem *p, rng *r) {
    double total = 0;
    for (int64_t k = 0; k < p->k; k++) total += p->model_weights[k];
    double at = total * rng_uniform(r);
    for (int64_t k = 0; k < p->k; k++) {
        at -= p->model_weights[k];
        if (at < 0) return k;
    }
    return p->k - 1;
}

static void draw_row(problem *p, rng *r, const problem_case *c, int64_t i, int64_t k, double *deviation) {
    draw_deviation(p, r, k, deviation);
    for (int64_t j = 0; j < p->stride; j++) {
        double value = NAN;
        if (j < p->d) value = p->means[k * p->d + j] + deviation[j];
        if (c->shape == CONSTANT && j == p->d / 2) value = 3.7;
        store_value(p->rows, p->type, i * p->stride + j, value);
    }
}

static double draw_weight(rng *r, const problem_case *c, int64_t i, int64_t k) {
    double weight = 3.0 * rng_uniform(r);
    if (c->weights == HEAVY) weight = 7.0;
    if (c->weights == SOME_ZERO && i % 3 == 1) weight = 0;
    if (c->weights == COMPONENT_ZERO && k == 0) weight = 0;
    return weight;
}

static void draw_rows(problem *p, rng *r, const problem_case *c) {
    size_t row_bytes = (size_t)p->stride * fgmm_dtype_size(p->type);
    int64_t distinct = c->shape == DUPLICATES ? 8 * p->k : p->n;
    double *deviation = test_alloc((size_t)p->d, sizeof *deviation);
    if (c->weights != NONE) p->weights = test_alloc((size_t)p->n, sizeof(double));
    for (int64_t i = 0; i < p->n; i++) {
        /* As many components as rows: one of each, so that none is far from every row. */
        int64_t k = p->k == p->n || c->shape == LOW_RANK ? i % p->k : pick(p, r);
        if (i < distinct) {
            draw_row(p, r, c, i, k, deviation);
        } else { /* again one of the first rows, some more often than others */
            int64_t from = (int64_t)((double)distinct * pow(rng_uniform(r), 2));
            memcpy((char *)p->rows + (size_t)i * row_bytes, (char *)p->rows + (size_t)from * row_bytes, row_bytes);
        }
        if (p->weights) p->weights[i] = draw_weight(r, c, i, k);
    }
    free(deviation);
}

/* S becomes A A' with A = scale L exp(step N(0, I)): what EM would still change, in the frame where S is round. */
static void perturb_matrix(problem *p, rng *r, int64_t k, double step, double scale) {
    double *l = factor(p, k);
    for (int64_t j = 0; j < p->d; j++) {
        double by = scale * exp(step * rng_normal(r));
        for (int64_t i = j; i < p->d; i++) l[i * p->d + j] *= by;
    }
    multiply_factor(p, k);
}

static void perturb_covariance(problem *p, rng *r, int64_t k, double step, double scale) {
    /* In many dimensions a variance that is off the same way in all of them decides everything. */
    double variance_step = step / sqrt((double)p->d);
    if (p->covariance == FGMM_SPHERICAL) p->covariances[k] *= scale * scale * exp(variance_step * rng_normal(r));
    for (int64_t j = 0; p->covariance == FGMM_DIAG && j < p->d; j++)
        p->covariances[k * p->d + j] *= scale * scale * exp(step * rng_normal(r));
    if (p->covariance == FGMM_FULL || (p->covariance == FGMM_TIED && k == 0)) perturb_matrix(p, r, k, step / 2, scale);
}

/* The covariances that EM would have come to: those of each component's rows, and reg_covar, which alone makes them
 * definite. */
static void fit_covariances(problem *p, const problem_case *c) {
    int64_t d = p->d;
    const float *x = p->rows;
    for (int64_t k = 0; k < (p->covariance == FGMM_TIED ? 1 : p->k); k++) {
        double count = 0;
        for (int64_t i = 0; i < p->n; i++) count += p->covariance == FGMM_TIED || i % p->k == k;
        for (int64_t a = 0; a < d; a++) {
            for (int64_t b = 0; b < d; b++) {
                double sum = 0;
                for (int64_t i = 0; i < p->n; i++) {
                    const double *mean = p->means + i % p->k * d;
                    if (p->covariance == FGMM_TIED || i % p->k == k)
                        sum += (x[i * d + a] - mean[a]) * (x[i * d + b] - mean[b]);
                }
                p->covariances[covariance_index(p->covariance, d, k, a, b)] = sum / count + (a == b) * c->reg;
            }
        }
    }
}

/* From the truth to a model that EM would still move: a fifth of a deviation and of a variance off. */
static void perturb(problem *p, rng *r, const problem_case *c) {
    double total = 0, mean_step = 0.2, step = 0.2, scale = 1;
    if (c->shape == FAR_START) mean_step = 300, scale = 100;
    if (c->shape == CLOSE) mean_step = 0.5 / sqrt((double)p->d), step = 0.02;
    double *deviation = test_alloc((size_t)p->d, sizeof *deviation);
    for (int64_t k = 0; k < p->k; k++) {
        draw_deviation(p, r, k, deviation);
        for (int64_t j = 0; j < p->d; j++) p->means[k * p->d + j] += mean_step * deviation[j];
        p->model_weights[k] *= exp(0.2 * rng_normal(r));
        if (c->shape == CONSTANT) p->means[k * p->d + p->d / 2] = 3.7 + 0.1 * rng_normal(r);
        if (c->shape == ZERO_MODEL && k == 1) p->model_weights[k] = 0;
        total += p->model_weights[k];
    }
    for (int64_t k = 0; k < p->k; k++) perturb_covariance(p, r, k, step, scale);
    for (int64_t k = 0; k < p->k; k++) p->model_weights[k] /= total;
    if (c->shape == LOW_RANK) fit_covariances(p, c);
    free(deviation);
}

/* Work on a matrix grows with the square of d; so much of it is well spent. */
static int64_t rows_of_case(const problem_case *c, fgmm_covariance covariance) {
    int64_t d = covariance_is_matrix(covariance) ? c->d * ((c->d + 15) / 16) : c->d;
    return harness_rows(c->n, c->k, d);
}

static problem *make(const problem_case *c, uint64_t stream, fgmm_covariance covariance) {
    if (c->types != ALL && !(c->types & 1 << covariance)) return NULL;
    int64_t n = rows_of_case(c, covariance);
    if (n < c->n && (n < 20 || c->n == c->k)) {
        printf("%s: too large for FLASHGMM_TEST_SCALE\n", c->name);
        return NULL;
    }
    rng r = rng_make(stream * COVARIANCE_TYPES + (uint64_t)covariance);
    problem *p = problem_new(c, n, covariance);
    place_all(p, &r, c);
    draw_rows(p, &r, c);
    perturb(p, &r, c);
    return p;
}

problem *problem_make(int which, fgmm_covariance covariance) {
    return make(&cases[which], (uint64_t)which + 1, covariance);
}

problem *problem_named(const char *name, fgmm_covariance covariance) {
    for (int i = 0; i < problem_count(); i++) {
        if (strcmp(cases[i].name, name) == 0) return problem_make(i, covariance);
    }
    ck_abort_msg("no problem is called %s", name);
    return NULL;
}

problem *problem_clusters(uint64_t stream, int64_t n, int64_t k, int64_t d, fgmm_covariance covariance,
                          fgmm_dtype type) {
    int bytes = type == FGMM_U8 || type == FGMM_I8;
    problem_case c = {"clusters", n, k, d, bytes ? BYTES : PLAIN, type, 0, NONE, 0, ALL, 0};
    problem *p = make(&c, 1000 + stream, covariance);
    ck_assert_msg(p != NULL, "FLASHGMM_TEST_SCALE leaves too few rows");
    return p;
}

problem *problem_close(uint64_t stream, int64_t n, int64_t k, int64_t d, fgmm_covariance covariance) {
    double spread = 1 / sqrt((double)d);
    problem_case c = {"close clusters", n, k, d, CLOSE, FGMM_F32, 0, NONE, spread, ALL, 0};
    problem *p = make(&c, 2000 + stream, covariance);
    ck_assert_msg(p != NULL, "FLASHGMM_TEST_SCALE leaves too few rows");
    return p;
}

/* ---- through the public interface ---- */

fgmm_rows *problem_rows(fgmm_context *ctx, const problem *p) {
    fgmm_rows *rows = NULL;
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &rows, p->rows, p->type, p->n, p->d, p->stride));
    if (p->weights) CHECK_OK(ctx, fgmm_rows_set_weights(ctx, rows, p->weights, p->n));
    return rows;
}

fgmm_model *problem_model(fgmm_context *ctx, const problem *p) {
    fgmm_model *model = NULL;
    CHECK_OK(ctx,
             fgmm_model_create(ctx, &model, p->covariance, p->k, p->d, p->model_weights, p->means, p->covariances));
    return model;
}
