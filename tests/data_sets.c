#include "data_sets.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum shape {
    PLAIN,      /* overlapping or separated clusters of deviation about 1 */
    PAIRS,      /* overlapping pairs of deviation 1e-3 in six places, 1e3 from the origin */
    SCALES,     /* variances from 1e-4 to 1e4, one inside the other */
    DUPLICATES, /* few distinct rows, many times each */
    CONSTANT,   /* one column the same for all rows, the model's mean and variance there off */
    ZERO_MODEL, /* a component of weight 0 in the model */
    FAR_START,  /* the model's mean hundreds of deviations from the data */
    OFFSET,     /* all rows about 1e6 */
    BYTES       /* for u8 and i8 */
} shape;

typedef enum row_weights { NONE, SOME_ZERO, COMPONENT_ZERO, HEAVY } row_weights;

struct problem_case {
    const char *name;
    int64_t n, k, d;
    shape shape;
    fgmm_dtype type;
    int64_t gap; /* elements between rows */
    row_weights weights;
    double spread; /* distance of the centres, in deviations a feature; 0: 3 */
};

static const problem_case cases[] = {
    {"clusters", 3000, 7, 5, PLAIN, FGMM_F32, 0, NONE, 0},
    {"overlapping clusters", 3000, 9, 3, PLAIN, FGMM_F32, 0, NONE, 0.7},
    {"one component", 2500, 1, 6, PLAIN, FGMM_F32, 0, NONE, 0},
    {"one feature", 2500, 5, 1, PLAIN, FGMM_F32, 0, NONE, 1},
    {"one row", 1, 3, 4, PLAIN, FGMM_F32, 0, NONE, 0.5},
    {"one row of weight 7", 1, 3, 4, PLAIN, FGMM_F32, 0, HEAVY, 0.5},
    {"as many components as rows", 37, 37, 2, PLAIN, FGMM_F32, 0, NONE, 1},
    {"K 17, D 33", 2100, 17, 33, PLAIN, FGMM_F32, 0, NONE, 0.5},
    {"K 67, D 65", 1500, 67, 65, PLAIN, FGMM_F32, 0, NONE, 0.3},
    {"K 131, D 129", 1100, 131, 129, PLAIN, FGMM_F32, 0, NONE, 0.2},
    {"K 17, D 257", 1100, 17, 257, PLAIN, FGMM_F32, 0, NONE, 0.1},
    {"K 1030, D 3", 1200, 1030, 3, PLAIN, FGMM_F32, 0, NONE, 3},
    {"K 5, D 1030", 800, 5, 1030, PLAIN, FGMM_F32, 0, NONE, 0.05},
    {"K 3, D 4096", 300, 3, 4096, PLAIN, FGMM_F32, 0, NONE, 0.03},
    {"K 65536, D 2", 30, 65536, 2, PLAIN, FGMM_F32, 0, NONE, 30},
    {"pairs far from the origin, D 8", 3000, 12, 8, PAIRS, FGMM_F32, 0, NONE, 0},
    {"pairs far from the origin, D 33", 2000, 12, 33, PAIRS, FGMM_F32, 0, NONE, 0},
    {"variances over 8 orders", 4000, 9, 4, SCALES, FGMM_F32, 0, NONE, 0},
    {"variances over 8 orders, D 40", 2000, 9, 40, SCALES, FGMM_F32, 0, NONE, 0},
    {"duplicates", 2000, 6, 4, DUPLICATES, FGMM_F32, 0, NONE, 0},
    {"a constant column", 2000, 4, 5, CONSTANT, FGMM_F32, 0, NONE, 0},
    {"a component of weight 0", 2000, 6, 5, ZERO_MODEL, FGMM_F32, 0, NONE, 1},
    {"a start far away", 2000, 3, 5, FAR_START, FGMM_F32, 0, NONE, 0},
    {"rows of weight 0", 3000, 6, 5, PLAIN, FGMM_F32, 0, SOME_ZERO, 1},
    {"a component whose rows have weight 0", 3000, 6, 5, PLAIN, FGMM_F32, 0, COMPONENT_ZERO, 0},
    {"strided rows", 2000, 6, 5, PLAIN, FGMM_F32, 3, SOME_ZERO, 1},
    {"f64", 2000, 6, 9, PLAIN, FGMM_F64, 0, NONE, 1},
    {"f64 about 1e6", 2000, 6, 5, OFFSET, FGMM_F64, 2, NONE, 1},
    {"f16", 2000, 6, 9, PLAIN, FGMM_F16, 0, NONE, 1},
    {"bf16", 2000, 6, 9, PLAIN, FGMM_BF16, 1, NONE, 1},
    {"u8", 2000, 6, 9, BYTES, FGMM_U8, 0, NONE, 0},
    {"i8", 2000, 6, 9, BYTES, FGMM_I8, 3, NONE, 0},
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

/* ---- making a problem ---- */

static problem *problem_new(const char *name, int64_t n, int64_t k, int64_t d, int diag, fgmm_dtype type, int64_t gap) {
    problem *p = test_alloc(1, sizeof *p);
    *p = (problem){.name = name, .n = n, .k = k, .d = d, .stride = d + gap, .type = type, .diag = diag};
    p->rows = test_alloc((size_t)(n * p->stride), fgmm_dtype_size(type));
    p->model_weights = test_alloc((size_t)k, sizeof(double));
    p->means = test_alloc((size_t)(k * d), sizeof(double));
    p->covariances = test_alloc((size_t)(diag ? k * d : k), sizeof(double));
    return p;
}

void problem_free(problem *p) {
    if (!p) return;
    free(p->rows);
    free(p->weights);
    free(p->model_weights);
    free(p->means);
    free(p->covariances);
    free(p);
}

static double deviation(const problem *p, int64_t k, int64_t j) {
    return sqrt(p->covariances[p->diag ? k * p->d + j : k]);
}

/* One component of the truth: centre + spread * deviation * N(0, I), variances about deviation^2. */
static void place(problem *p, rng *r, int64_t k, const double *centre, double size, double spread) {
    double own = size * exp(0.2 * rng_normal(r));
    if (!p->diag) p->covariances[k] = own * own;
    for (int64_t j = 0; j < p->d; j++) {
        double along = own * exp(0.3 * rng_normal(r));
        if (p->diag) p->covariances[k * p->d + j] = along * along;
        p->means[k * p->d + j] = (centre ? centre[j] : 0.0) + spread * size * rng_normal(r);
    }
    p->model_weights[k] = 0.5 + rng_uniform(r);
}

/* Six places, 1e3 from the origin, each with overlapping components 1.5 deviations apart in all. */
static void place_pairs(problem *p, rng *r) {
    double centre[64], length;
    for (int64_t k = 0; k < p->k; k++) {
        if (k % 2 == 0) {
            length = 0;
            for (int64_t j = 0; j < p->d; j++) {
                centre[j] = rng_normal(r);
                length += centre[j] * centre[j];
            }
            for (int64_t j = 0; j < p->d; j++) centre[j] *= 1e3 / sqrt(length);
        }
        place(p, r, k, centre, 1e-3, 1.5 / sqrt(2.0 * (double)p->d));
    }
}

static void place_all(problem *p, rng *r, const problem_case *c) {
    double spread = c->spread > 0 ? c->spread : 3.0;
    double *centre = test_alloc((size_t)p->d, sizeof *centre);
    for (int64_t j = 0; j < p->d; j++) {
        if (c->shape == OFFSET) centre[j] = 1e6 * (j % 2 ? -1 : 1);
        if (c->shape == BYTES) centre[j] = p->type == FGMM_U8 ? 128 : 0;
    }
    for (int64_t k = 0; k < p->k; k++) {
        if (c->shape == SCALES)
            place(p, r, k, NULL, pow(10.0, 0.5 * (double)(k % 9 - 4)), 0.7);
        else if (c->shape == BYTES)
            place(p, r, k, centre, 12.0, 2.5);
        else
            place(p, r, k, centre, 1.0, spread);
    }
    if (c->shape == PAIRS) place_pairs(p, r);
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

static void draw_row(problem *p, rng *r, const problem_case *c, int64_t i, int64_t k) {
    for (int64_t j = 0; j < p->stride; j++) {
        double value = NAN;
        if (j < p->d) value = p->means[k * p->d + j] + deviation(p, k, j) * rng_normal(r);
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
    if (c->weights != NONE) p->weights = test_alloc((size_t)p->n, sizeof(double));
    for (int64_t i = 0; i < p->n; i++) {
        /* As many components as rows: one of each, so that none is far from every row. */
        int64_t k = p->k == p->n ? i : pick(p, r);
        if (i < distinct) {
            draw_row(p, r, c, i, k);
        } else { /* again one of the first rows, some more often than others */
            int64_t from = (int64_t)((double)distinct * pow(rng_uniform(r), 2));
            memcpy((char *)p->rows + (size_t)i * row_bytes, (char *)p->rows + (size_t)from * row_bytes, row_bytes);
        }
        if (p->weights) p->weights[i] = draw_weight(r, c, i, k);
    }
}

/* From the truth to a model that EM would still move: a fifth of a deviation and of a variance off. */
static void perturb(problem *p, rng *r, const problem_case *c) {
    double total = 0, mean_step = c->shape == FAR_START ? 300.0 : 0.2;
    /* In many dimensions a variance that is off the same way in all of them decides everything. */
    double variance_step = 0.2 / sqrt((double)p->d);
    for (int64_t k = 0; k < p->k; k++) {
        for (int64_t j = 0; j < p->d; j++) p->means[k * p->d + j] += mean_step * deviation(p, k, j) * rng_normal(r);
        if (!p->diag) p->covariances[k] *= exp(variance_step * rng_normal(r));
        for (int64_t j = 0; p->diag && j < p->d; j++) p->covariances[k * p->d + j] *= exp(0.2 * rng_normal(r));
        p->model_weights[k] *= exp(0.2 * rng_normal(r));
        if (c->shape == FAR_START && !p->diag) p->covariances[k] *= 1e4;
        for (int64_t j = 0; c->shape == FAR_START && p->diag && j < p->d; j++) p->covariances[k * p->d + j] *= 1e4;
        if (c->shape == CONSTANT) p->means[k * p->d + p->d / 2] = 3.7 + 0.1 * rng_normal(r);
        if (c->shape == ZERO_MODEL && k == 1) p->model_weights[k] = 0;
        total += p->model_weights[k];
    }
    for (int64_t k = 0; k < p->k; k++) p->model_weights[k] /= total;
}

static problem *make(const problem_case *c, uint64_t stream, int diag) {
    int64_t n = harness_rows(c->n, c->k, c->d);
    if (n < c->n && (n < 20 || c->n == c->k)) {
        printf("%s: too large for FLASHGMM_TEST_SCALE\n", c->name);
        return NULL;
    }
    rng r = rng_make(stream * 2 + (uint64_t)diag);
    problem *p = problem_new(c->name, n, c->k, c->d, diag, c->type, c->gap);
    place_all(p, &r, c);
    draw_rows(p, &r, c);
    perturb(p, &r, c);
    return p;
}

problem *problem_make(int which, int diag) {
    return make(&cases[which], (uint64_t)which + 1, diag);
}

problem *problem_named(const char *name, int diag) {
    for (int i = 0; i < problem_count(); i++) {
        if (strcmp(cases[i].name, name) == 0) return problem_make(i, diag);
    }
    ck_abort_msg("no problem is called %s", name);
    return NULL;
}

problem *problem_clusters(uint64_t stream, int64_t n, int64_t k, int64_t d, int diag, fgmm_dtype type) {
    int bytes = type == FGMM_U8 || type == FGMM_I8;
    problem_case c = {"clusters", n, k, d, bytes ? BYTES : PLAIN, type, 0, NONE, 0};
    problem *p = make(&c, 1000 + stream, diag);
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
    CHECK_OK(ctx, fgmm_model_create(ctx, &model, p->diag ? FGMM_DIAG : FGMM_SPHERICAL, p->k, p->d, p->model_weights,
                                    p->means, p->covariances));
    return model;
}
