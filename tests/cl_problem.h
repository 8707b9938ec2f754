/* Problems for the OpenCL engine through the backend's table, spherical and diagonal: models, rows, how these are stored, and what
 * comes of a pass. */
#ifndef FGMM_TESTS_CL_PROBLEM_H
#define FGMM_TESTS_CL_PROBLEM_H

#include "../cl/cl_engine.h"
#include "cl_host.h"

/* Bounds N K D: FLASHGMM_TEST_SCALE. */
static double scale_limit = 4e6;

/* ---- problems ---- */

typedef struct problem {
    int64_t n, k, d;
    int diag;
    double *x;                                                     /* [n, d] as stored */
    double *means, *variances, *weights;                           /* the model; variances [k] or [k, d] */
    double *half, *log_weights, *log_norm, *centre, *scale, *sums; /* fgmm_params */
    double *row_weights;                                           /* [n], or NULL */
    fgmm_dtype type;                                               /* that some tests store it as */
    fgmm_params params;
} problem;

static inline void problem_free(problem *p) {
    double *all[] = {p->x,           p->means,    p->variances, p->weights, p->half,
                     p->log_weights, p->log_norm, p->centre,    p->scale,   p->row_weights};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static inline double variance_at(const problem *p, int64_t c, int64_t f) {
    return p->diag ? p->variances[c * p->d + f] : p->variances[c];
}

/* Room for a problem; the caller fills x, means, variances and weights, then calls finish. */
static inline problem problem_new(int64_t n, int64_t k, int64_t d, int diag) {
    problem p = {.n = n, .k = k, .d = d, .diag = diag};
    size_t kd = (size_t)(k * d);
    p.x = get((size_t)(n * d) * 8);
    p.means = get(kd * 8);
    p.variances = get(kd * 8);
    p.weights = get((size_t)k * 8);
    p.half = get(kd * 8);
    p.log_weights = get((size_t)k * 8);
    p.log_norm = get((size_t)k * 8);
    p.centre = get((size_t)d * 8);
    p.scale = get((size_t)d * 8);
    for (int64_t c = 0; c < k; c++) p.weights[c] = 1.0;
    return p;
}

/* Weights of rows, of which one in seven is 0. */
static inline void weigh_rows(problem *p) {
    p->row_weights = get((size_t)p->n * 8);
    for (int64_t i = 0; i < p->n; i++) p->row_weights[i] = i % 7 == 0 ? 0.0 : 0.5 + uniform();
}

static inline void finish(problem *p, fgmm_engine engine, double cut) {
    double total = 0;
    for (int64_t c = 0; c < p->k; c++) total += p->weights[c];
    for (int64_t c = 0; c < p->k; c++) {
        p->weights[c] /= total;
        p->log_weights[c] = p->weights[c] > 0 ? log(p->weights[c]) : FGMM_LOG_ZERO;
        double log_det = 0;
        for (int64_t f = 0; f < p->d; f++) {
            log_det += log(variance_at(p, c, f));
            if (p->diag) p->half[c * p->d + f] = 0.5 / variance_at(p, c, f);
        }
        if (!p->diag) p->half[c] = 0.5 / p->variances[c];
        p->log_norm[c] = -0.5 * (double)p->d * log(6.283185307179586) - 0.5 * log_det;
    }
    double widest = 0, log_norm_max = -INFINITY;
    for (int64_t c = 0; c < p->k; c++)
        if (p->weights[c] > 0) log_norm_max = fmax(log_norm_max, p->log_norm[c]);
    for (int64_t f = 0; f < p->d; f++) {
        double mean = 0, square = 0;
        for (int64_t c = 0; c < p->k; c++) mean += p->weights[c] * p->means[c * p->d + f];
        for (int64_t c = 0; c < p->k; c++) {
            double gap = p->means[c * p->d + f] - mean;
            square += p->weights[c] * (gap * gap + variance_at(p, c, f));
        }
        p->centre[f] = (float)mean;
        p->scale[f] = exp2(-round(0.5 * log2(square > 0 ? square : 1.0)));
        widest = fmax(widest, square);
    }
    if (!p->diag)
        for (int64_t f = 0; f < p->d; f++) p->scale[f] = exp2(-round(0.5 * log2(widest > 0 ? widest : 1.0)));
    p->params = (fgmm_params){.covariance_type = p->diag ? FGMM_DIAG : FGMM_SPHERICAL,
                              .k = p->k,
                              .d = p->d,
                              .means = p->means,
                              .half_inv_var = p->half,
                              .log_weights = p->log_weights,
                              .weights = p->weights,
                              .log_norm = p->log_norm,
                              .centre = p->centre,
                              .scale = p->scale,
                              .sum_centres = p->sums ? p->sums : p->means,
                              .cut = cut,
                              .log_norm_max = log_norm_max,
                              .engine = engine};
}

/* Clusters of deviation `noise` whose means spread by `spread` about `offset`; the model's means are a little off. */
static inline problem clusters(int64_t n, int64_t k, int64_t d, int diag, double spread, double noise, double offset) {
    problem p = problem_new(n, k, d, diag);
    for (int64_t i = 0; i < k * d; i++) p.means[i] = offset + spread * normal();
    for (int64_t i = 0; i < k * (diag ? d : 1); i++) p.variances[i] = noise * noise * (0.5 + uniform());
    for (int64_t c = 0; c < k; c++) p.weights[c] = 0.2 + uniform();
    for (int64_t i = 0; i < n; i++) {
        int64_t c = (int64_t)(uniform() * (double)k);
        for (int64_t f = 0; f < d; f++) p.x[i * d + f] = (float)(p.means[c * d + f] + noise * normal());
    }
    for (int64_t i = 0; i < k * d; i++) p.means[i] += 0.3 * noise * normal();
    return p;
}

/* Begins a pass whose rows are settled, whatever those before it found of that. */
static inline void begin_settling(const fgmm_params *params) {
    OK(backend->begin(device, params));
    device->engine->settle_wait = device->engine->settle_rest = 0;
}

/* ---- results ---- */

typedef struct result {
    double *s0, *s1, *s2, *log_prob; /* s1 [k, d]; s2 [k, d] or [k] */
    fgmm_sums sums;
} result;

static inline result result_new(const problem *p) {
    result r = {.s0 = get((size_t)p->k * 8),
                .s1 = get((size_t)(p->k * p->d) * 8),
                .s2 = get((size_t)(p->k * p->d) * 8),
                .log_prob = get((size_t)p->n * 8)};
    r.sums = (fgmm_sums){.s0 = r.s0, .s1 = r.s1, .s2 = r.s2};
    return r;
}

static inline void result_free(result *r) {
    free(r->s0);
    free(r->s1);
    free(r->s2);
    free(r->log_prob);
}

static inline void same_sums(const problem *p, const result *one, const result *other, const char *what) {
    size_t k = (size_t)p->k, kd = k * (size_t)p->d;
    ck_assert_msg(memcmp(one->s0, other->s0, k * 8) == 0, "%s: counts", what);
    ck_assert_msg(memcmp(one->s1, other->s1, kd * 8) == 0, "%s: means", what);
    ck_assert_msg(memcmp(one->s2, other->s2, (p->diag ? kd : k) * 8) == 0, "%s: variances", what);
}

static inline void same_bits(const problem *p, const result *one, const result *other, const char *what) {
    same_sums(p, one, other, what);
    for (int64_t i = 0; i < p->n; i++)
        ck_assert_msg(memcmp(one->log_prob + i, other->log_prob + i, 8) == 0, "%s: log p(x_%d) is %.17g and %.17g",
                      what, (int)i, one->log_prob[i], other->log_prob[i]);
}

/* What rows are told by assign: [n, BEST], [n, BEST], [n]. */
enum { BEST = 2 };
typedef struct told {
    int32_t *ids;
    float *resp;
    double *log_prob;
} told;

static inline told told_new(const problem *p) {
    size_t n = (size_t)p->n;
    return (told){get(n * BEST * 4), get(n * BEST * 4), get(n * 8)};
}

static inline void told_free(told *t) {
    free(t->ids);
    free(t->resp);
    free(t->log_prob);
}

/* A block's, which starts at row `first`. */
static inline void tell_block(const told *t, fgmm_block *block, int64_t first) {
    OK(backend->assign(device, block, BEST, t->ids + BEST * first, t->resp + BEST * first, t->log_prob + first));
}

static inline void same_told(const problem *p, const told *one, const told *other, const char *what) {
    size_t n = (size_t)p->n;
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(one->log_prob[i] == other->log_prob[i] && memcmp(one->log_prob + i, other->log_prob + i, 8) == 0,
                      "%s: log p(x) of row %zu: %.17g and %.17g", what, i, one->log_prob[i], other->log_prob[i]);
    ck_assert_msg(memcmp(one->ids, other->ids, n * BEST * 4) == 0, "%s: components", what);
    ck_assert_msg(memcmp(one->resp, other->resp, n * BEST * 4) == 0, "%s: responsibilities", what);
}

/* ---- rows on the device ---- */

/* binary16 of an integer of magnitude 0 .. 2048. */
static inline uint16_t half_of(float x) {
    int exponent = 0;
    float fraction = frexpf(fabsf(x), &exponent);
    if (x == 0.0f) return 0;
    return (uint16_t)((x < 0 ? 0x8000 : 0) | (unsigned)(exponent + 14) << 10 | ((int)(fraction * 2048.0f) & 0x3ff));
}

/* The rows of a problem as `type`, row i at element i * stride. */
static inline void *stored(const problem *p, fgmm_dtype type, size_t size, int64_t stride) {
    char *out = get((size_t)(p->n * stride) * size);
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t f = 0; f < p->d; f++) {
            char *at = out + (size_t)(i * stride + f) * size;
            double x = p->x[i * p->d + f];
            float narrow = (float)x;
            uint32_t bits;
            memcpy(&bits, &narrow, 4);
            uint16_t high = (uint16_t)(bits >> 16);
            uint16_t half = type == FGMM_F16 ? half_of(narrow) : 0;
            uint8_t u8 = (uint8_t)(type == FGMM_U8 ? x : 0);
            int8_t i8 = (int8_t)(type == FGMM_I8 ? x : 0);
            switch (type) {
            case FGMM_F64: memcpy(at, &x, 8); break;
            case FGMM_F16: memcpy(at, &half, 2); break;
            case FGMM_BF16: memcpy(at, &high, 2); break;
            case FGMM_U8: memcpy(at, &u8, 1); break;
            case FGMM_I8: memcpy(at, &i8, 1); break;
            default: memcpy(at, &narrow, 4); break;
            }
        }
    return out;
}

static inline size_t size_of(fgmm_dtype type) {
    return type == FGMM_F64 ? 8 : type == FGMM_F32 ? 4 : type == FGMM_F16 || type == FGMM_BF16 ? 2 : 1;
}

typedef struct layout {
    fgmm_dtype type;
    int64_t stride, block_rows;
    const double *centre;
    int kept; /* the blocks stay; 2: and lie together */
} layout;

static inline fgmm_block *put(const problem *p, const layout *how, const char *data, int64_t first, int64_t n) {
    fgmm_block *block = NULL;
    size_t pitch = (size_t)how->stride * size_of(how->type);
    fgmm_block_source source = {.data = data + (size_t)first * pitch,
                                .stride_bytes = pitch,
                                .type = how->type,
                                .first_row = first,
                                .n = n,
                                .d = p->d,
                                .weights = p->row_weights ? p->row_weights + first : NULL,
                                .kept = how->kept > 0,
                                .together = how->kept > 1 ? p->n - first : 0,
                                .centre = how->centre};
    OK(backend->put(device, &source, &block));
    OK(backend->wait(device, block));
    return block;
}

/* All rows in blocks of so many. @return how many are held */
static inline int64_t put_all(const problem *p, const layout *how, const char *data, int64_t block_rows,
                              fgmm_block **held) {
    int64_t count = 0;
    for (int64_t first = 0; first < p->n; first += block_rows)
        held[count++] = put(p, how, data, first, first + block_rows < p->n ? block_rows : p->n - first);
    return count;
}

static inline int64_t sized(int64_t n, int64_t k, int64_t d) {
    double most = scale_limit / (double)(k * d);
    return (double)n <= most ? n : most < 8 ? 8 : (int64_t)most;
}

/* ---- a room ---- */

/* Runs the tests that `add` adds. @return as main */
static inline int run_room(const char *name, const char *group, void (*add)(TCase *tests)) {
    const char *limit = getenv("FLASHGMM_TEST_SCALE");
    if (limit) scale_limit = atof(limit);
    int refused = open_device();
    if (refused) return refused;
    Suite *suite = suite_create(name);
    TCase *tests = tcase_create(group);
    tcase_set_timeout(tests, 0);
    add(tests);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}

#endif
