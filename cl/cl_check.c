/*
 * Known-answer test of a small mixture against double: of moments and E-steps (of parameters that move); of rows, their log-densities and labels; or
 * of all that where the dense engine takes part. It has as many features as what the device is tested for, 16 at least, and rows of the same type,
 * so that the very programs that these will take are put to it. Some components lie so close together that the rows near them have several
 * candidates, or for the dense engine more than their lists hold, so that both engines run; pairs of others are what settling has to look at. For
 * the dense engine on matrix units, components near a centre.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <math.h>
#include <string.h>

enum { ROWS = 140, COMPONENTS = 70, PAIRED = 50, LEAST_FEATURES = 16, MOST_FEATURES = 1024 };
enum { SEVERAL = CL_CAP - 4, TOO_MANY = 30 }; /* components that lie close together */
static const double TOLERANCE = 1e-4, FAST_TOLERANCE = 2e-3;

/* How a type of rows stores the case, which is made for f32. */
typedef struct check_form {
    double unit, zero; /* 1 and 0 of the case */
    double step;       /* rows are multiples of it, which the type stores as they are; 0: any */
} check_form;

typedef struct check_case {
    int d, own; /* features, and variances of a component: these, or 1 */
    int dense;  /* it is for the dense engine */
    fgmm_dtype type;
    check_form form;
    float *x; /* [ROWS, D]: the values that the type stores */
    double weights[COMPONENTS], log_weights[COMPONENTS], log_norm[COMPONENTS];
    double *means, *inverse, *centre, *scale; /* [COMPONENTS, D], [COMPONENTS, own], [D], [D] */
    double s0[COMPONENTS], *s1, *s2, log_prob[ROWS];
    double want_resp[ROWS][COMPONENTS], want_log_prob[ROWS];
    double *want_s1, *want_s2;                     /* [D], [own]: of one component at a time */
    double *sum, *square, *want_sum, *want_square; /* [D] */
    int32_t best[ROWS], want_best[ROWS];
    float resp[ROWS];
    fgmm_params params;
    double room[]; /* what the pointers point into */
} check_case;

/* Of programs for d features. With few there are no components as near to some and as far from others as these, so it is somewhat more than a
 * step of the tiles; beyond the most, more make no other programs. */
static int features(int64_t d) {
    return (int)(d < LEAST_FEATURES ? LEAST_FEATURES + 4 + d % 4 : d <= MOST_FEATURES ? d : MOST_FEATURES + 4 + d % 4);
}

/* In [0, 1): the multiplier is Knuth's. */
static double next_value(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) * 0x1p-24;
}

/* What follows from the inverse variances. */
static void set_norms(check_case *c) {
    double most = -INFINITY;
    for (int k = 0; k < COMPONENTS; k++) {
        double log_det = 0.0;
        for (int f = 0; f < c->d; f++) log_det -= log(2.0 * c->inverse[k * c->own + f % c->own]);
        c->log_norm[k] = -0.5 * (c->d * log(6.283185307179586) + log_det);
        most = fmax(most, c->log_norm[k]);
    }
    c->params.log_norm_max = most;
}

/* With room for all, which is little beside a model of so many features. */
static check_case *new_case(fgmm_device *device, int d, int diag) {
    size_t features = (size_t)d, own = diag ? features : 1, rows = (ROWS * features + 1) / 2;
    size_t count = rows + COMPONENTS * (2 * features + 2 * own) + 8 * features;
    size_t bytes = sizeof(check_case) + count * sizeof(double);
    check_case *c = cl_alloc(device, bytes);
    if (!c) return NULL;
    memset(c, 0, bytes);
    c->d = d;
    c->own = (int)own;
    c->x = (float *)(void *)c->room;
    double *at = c->room + rows;
    double **const of_cells[] = {&c->means, &c->s1}, **const of_own[] = {&c->inverse, &c->s2};
    double **const of_features[] = {&c->centre,  &c->scale,   &c->sum,      &c->square,
                                    &c->want_s1, &c->want_s2, &c->want_sum, &c->want_square};
    for (int i = 0; i < 2; i++, at += COMPONENTS * features) *of_cells[i] = at;
    for (int i = 0; i < 2; i++, at += COMPONENTS * own) *of_own[i] = at;
    for (int i = 0; i < 8; i++, at += features) *of_features[i] = at;
    return c;
}

static int is_diag(cl_case which) {
    return which == CL_CASE_DIAGONAL || which == CL_CASE_ROWS_DIAGONAL || which == CL_CASE_DENSE_DIAGONAL;
}

static check_form form_of(fgmm_dtype type) {
    static const check_form forms[] = {[FGMM_F32] = {1.0, 0.0, 0.0},
                                       [FGMM_F16] = {1.0, 0.0, 0x1p-8},
                                       [FGMM_BF16] = {1.0, 0.0, 0x1p-5},
                                       [FGMM_U8] = {32.0, 32.0, 1.0},
                                       [FGMM_I8] = {32.0, -96.0, 1.0}};
    return forms[type];
}

static void take_form(check_case *c) {
    double unit = c->form.unit, zero = c->form.zero, step = c->form.step;
    for (int i = 0; i < COMPONENTS * c->d; i++) c->means[i] = zero + unit * c->means[i];
    for (int i = 0; i < COMPONENTS * c->own; i++) c->inverse[i] /= unit * unit;
    for (int f = 0; f < c->d; f++) {
        c->centre[f] = zero + unit * c->centre[f];
        c->scale[f] /= unit;
    }
    for (int i = 0; i < ROWS * c->d; i++) {
        double x = zero + unit * (double)c->x[i];
        c->x[i] = (float)(step > 0.0 ? step * rint(x / step) : x);
    }
}

/* The rows as their type stores them, until s1 is wanted. */
static const void *stored_rows(check_case *c) {
    uint16_t *halves = (void *)c->s1;
    uint8_t *bytes = (void *)c->s1;
    if (c->type == FGMM_F32) return c->x;
    for (int i = 0; i < ROWS * c->d; i++) {
        float x = c->type == FGMM_F16 ? 0x1p-112f * c->x[i] : c->x[i]; /* which has the exponent's bits of f16 */
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if (c->type == FGMM_F16)
            halves[i] = (uint16_t)((bits >> 16 & 0x8000u) | (bits & 0x7fffffffu) >> 13);
        else if (c->type == FGMM_BF16)
            halves[i] = (uint16_t)(bits >> 16);
        else
            bytes[i] = (uint8_t)(int)x;
    }
    return c->s1;
}

/* Of the last rows, a round of bin_scatter (bins.cl), none has several candidates, and some have the same. */
static int component_of(int row) {
    return row < 128 ? row % COMPONENTS : SEVERAL + row % 5;
}

static void make_case(check_case *c, cl_test test) {
    cl_case which = test.which;
    uint32_t state = 7;
    int diag = is_diag(which), d = c->d, alike = which < CL_CASE_DENSE_SPHERICAL ? SEVERAL : TOO_MANY;
    double near = sqrt(17.0 / d); /* components are as near whatever d is */
    c->dense = alike == TOO_MANY;
    c->type = test.type;
    c->form = form_of(test.type);
    for (int k = 0; k < COMPONENTS; k++) {
        for (int f = 0; f < d; f++) {
            double inverse = 10.0 + 4.0 * (diag ? 1.0 : near) * (next_value(&state) - 0.5),
                   *mean = c->means + k * d + f;
            *mean = k && k < alike ? c->means[f] + 0.05 * near * next_value(&state) : 6.0 * next_value(&state);
            if (k >= PAIRED && k % 2) *mean = mean[-d] + 0.1 * near * next_value(&state);
            if (which >= CL_CASE_NEAR) *mean = 3.0 + 0.2 * near * (next_value(&state) - 0.5);
            if (f < c->own) c->inverse[k * c->own + f] = inverse;
            c->centre[f] = 3.0;
            c->scale[f] = 0.5;
        }
        c->weights[k] = 1.0 / COMPONENTS;
        c->log_weights[k] = log(c->weights[k]);
    }
    for (int i = 0; i < ROWS; i++)
        for (int f = 0; f < d; f++)
            c->x[i * d + f] = (float)(c->means[component_of(i) * d + f] + 0.4 * (next_value(&state) - 0.5));
    c->params = (fgmm_params){.covariance_type = diag ? FGMM_DIAG : FGMM_SPHERICAL,
                              .k = COMPONENTS,
                              .d = d,
                              .means = c->means,
                              .half_inv_var = c->inverse,
                              .log_weights = c->log_weights,
                              .weights = c->weights,
                              .log_norm = c->log_norm,
                              .centre = c->centre,
                              .scale = c->scale,
                              .sum_centres = c->means,
                              .cut = 1e-7,
                              .precision = which == CL_CASE_NEAR_FAST ? FGMM_FAST : FGMM_EXACT,
                              .engine = which >= CL_CASE_NEAR ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN};
    take_form(c);
    set_norms(c);
}

/* As an M-step might, so that what is kept of rows is of other parameters. */
static void move_case(check_case *c) {
    double far = 0.003 * c->form.unit * sqrt(17.0 / c->d);
    for (int i = 0; i < COMPONENTS * c->d; i++) c->means[i] += far * (i % 3 - 1);
    for (int i = 0; i < COMPONENTS * c->own; i++) c->inverse[i] *= 1.0 + 0.01 * (i % 2);
    set_norms(c);
}

static void clear(double *values, int count) {
    memset(values, 0, (size_t)count * sizeof *values);
}

static void expect(check_case *c) {
    int d = c->d;
    clear(c->want_sum, d);
    clear(c->want_square, d);
    for (int i = 0; i < ROWS; i++) {
        const float *x = c->x + i * d;
        double *l = c->want_resp[i], best = -INFINITY, sum = 0.0;
        for (int k = 0; k < COMPONENTS; k++) {
            l[k] = c->log_weights[k] + c->log_norm[k];
            for (int f = 0; f < d; f++) {
                double t = x[f] - c->means[k * d + f];
                l[k] -= c->inverse[k * c->own + f % c->own] * t * t;
            }
            if (l[k] > best) {
                best = l[k];
                c->want_best[i] = k;
            }
        }
        for (int f = 0; f < d; f++) {
            double t = x[f] - c->centre[f];
            c->want_sum[f] += t;
            c->want_square[f] += t * t;
        }
        for (int k = 0; k < COMPONENTS; k++) sum += exp(l[k] - best);
        c->want_log_prob[i] = best + log(sum);
        for (int k = 0; k < COMPONENTS; k++) l[k] = exp(l[k] - c->want_log_prob[i]);
    }
}

/* unit: of the values. */
static int differ(const double *got, const double *want, int count, double unit, double tolerance) {
    for (int i = 0; i < count; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * (unit + fabs(want[i])))) return 1;
    return 0;
}

static double tolerance_of(const check_case *c) {
    return c->params.precision == FGMM_FAST ? FAST_TOLERANCE : TOLERANCE;
}

/* Which of a component's sums differ from those expected; NULL: none. */
static const char *wrong_component(check_case *c, int k) {
    int d = c->d, own = c->own;
    double want_s0 = 0.0, unit = c->form.unit, by = tolerance_of(c);
    clear(c->want_s1, d);
    clear(c->want_s2, own);
    for (int i = 0; i < ROWS; i++) {
        double r = c->want_resp[i][k];
        want_s0 += r;
        for (int f = 0; f < d && r > 0.0; f++) {
            double t = c->x[i * d + f] - c->means[k * d + f];
            c->want_s1[f] += r * t;
            c->want_s2[f % own] += r * t * t;
        }
    }
    return differ(c->s0 + k, &want_s0, 1, 1.0, by)                     ? "counts"
           : differ(c->s1 + k * d, c->want_s1, d, unit, by)            ? "means"
           : differ(c->s2 + k * own, c->want_s2, own, unit * unit, by) ? "variances"
                                                                       : NULL;
}

/* An E-step's sums, of which *wrong names one that differs. */
static fgmm_status run_estep(fgmm_device *device, fgmm_block *block, check_case *c, int summed, const char **wrong) {
    fgmm_sums sums = {.s0 = c->s0, .s1 = c->s1, .s2 = c->s2};
    double want = 0.0;
    for (int i = 0; i < ROWS; i++) want += c->want_log_prob[i];
    clear(c->s0, COMPONENTS);
    clear(c->s1, COMPONENTS * c->d);
    clear(c->s2, COMPONENTS * c->own);
    c->params.summed = summed;
    CL_TRY(cl_begin(device, &c->params));
    CL_TRY(cl_estep(device, block, summed ? NULL : c->log_prob));
    CL_TRY(cl_collect(device, &sums));
    *wrong = NULL;
    for (int k = 0; k < COMPONENTS && !*wrong; k++) *wrong = wrong_component(c, k);
    if (!*wrong && differ(&sums.log_likelihood, &want, 1, 1.0, tolerance_of(c))) *wrong = "log-likelihood";
    if (!*wrong && !summed && differ(c->log_prob, c->want_log_prob, ROWS, 1.0, tolerance_of(c)))
        *wrong = "log-densities";
    int some = sums.dense_rows > 0, all = sums.dense_rows > ROWS - 1;
    if (!*wrong && (some != c->dense || all != (c->params.engine == FGMM_ENGINE_DENSE))) *wrong = "choice of engines";
    return FGMM_OK;
}

/* Counts and cursors of survivors where they are with more components, too (bins.cl), and sums that go straight into their total. */
static fgmm_status run_as_of_many(fgmm_device *device, fgmm_block *block, check_case *c, const char **wrong) {
    device->as_of_many = 1;
    fgmm_status status = run_estep(device, block, c, 0, wrong);
    device->as_of_many = 0;
    return status;
}

/* Labels, log-densities and, unless `summed`, their sum, of which *wrong names one that differs. */
static fgmm_status run_rows(fgmm_device *device, fgmm_block *block, check_case *c, int summed, const char **wrong) {
    double want = 0.0, sum = 0.0;
    for (int i = 0; i < ROWS; i++) want += c->want_log_prob[i];
    c->params.summed = summed;
    CL_TRY(cl_begin(device, &c->params));
    CL_TRY(cl_assign(device, block, 1, c->best, c->resp, summed ? NULL : c->log_prob));
    if (!summed) CL_TRY(cl_score(device, block, &sum));
    *wrong = memcmp(c->best, c->want_best, sizeof c->best)                       ? "labels"
             : summed                                                            ? NULL
             : differ(c->log_prob, c->want_log_prob, ROWS, 1.0, tolerance_of(c)) ? "log-densities"
             : differ(&sum, &want, 1, 1.0, tolerance_of(c))                      ? "sum of log-densities"
                                                                                 : NULL;
    return FGMM_OK;
}

/* What stops at the first wrong one. */
#define CL_CHECKED(call)                                                                                               \
    do {                                                                                                               \
        if (!*wrong || device->asking) CL_TRY(call);                                                                   \
    } while (0)

/* Rows that nothing is known of; then as far as possible settled, by what the passes before learned. */
static fgmm_status check_rows(fgmm_device *device, fgmm_block *block, check_case *c, const char **wrong) {
    CL_CHECKED(run_rows(device, block, c, 0, wrong));
    CL_CHECKED(run_rows(device, block, c, 0, wrong));
    CL_CHECKED(run_rows(device, block, c, 1, wrong));
    return FGMM_OK;
}

/* The same of sums: the last pass goes by how far rows were before parameters moved. */
static fgmm_status check_sums(fgmm_device *device, fgmm_block *block, check_case *c, const char **wrong) {
    fgmm_moments moments = {.sum = c->sum, .square = c->square, .bad_row = -1};
    double unit = c->form.unit;
    CL_TRY(cl_moments(device, block, c->centre, &moments));
    *wrong = differ(c->sum, c->want_sum, c->d, unit, TOLERANCE)                ? "column sums"
             : differ(c->square, c->want_square, c->d, unit * unit, TOLERANCE) ? "column squares"
             : moments.bad_count != 0                                          ? "search for NaN"
                                                                               : NULL;
    CL_CHECKED(run_as_of_many(device, block, c, wrong));
    CL_CHECKED(run_estep(device, block, c, 1, wrong));
    move_case(c);
    expect(c);
    CL_CHECKED(run_estep(device, block, c, 1, wrong));
    return FGMM_OK;
}

static fgmm_status run_case(fgmm_device *device, check_case *c, cl_case which) {
    const fgmm_host *host = &device->host;
    fgmm_block *block = NULL;
    const char *wrong = NULL;
    fgmm_block_source source = {.data = stored_rows(c),
                                .stride_bytes = (size_t)c->d * cl_stored_size(c->type),
                                .type = c->type,
                                .n = ROWS,
                                .d = c->d,
                                .kept = 1};
    fgmm_status status = FGMM_OK;
    CL_GO(cl_put(device, &source, &block));
    CL_GO(cl_wait(device, block));
    /* The near engine is for sums alone. */
    if (which >= CL_CASE_ROWS_SPHERICAL && which < CL_CASE_NEAR) CL_GO(check_rows(device, block, c, &wrong));
    int sums = which < CL_CASE_ROWS_SPHERICAL || which >= CL_CASE_DENSE_SPHERICAL;
    if (sums && (!wrong || device->asking)) CL_GO(check_sums(device, block, c, &wrong));
    if (wrong && !device->asking)
        CL_GO(host->fail(host->user, FGMM_ERR_DEVICE, "%s fails the known-answer test%s: wrong %s", device->name,
                         c->dense ? " of the dense engine" : "", wrong));
done:
    cl_release(device, block);
    return status;
}

fgmm_status cl_known_answer(fgmm_device *device, cl_test test) {
    check_case *c = new_case(device, features(test.d), is_diag(test.which));
    if (!c) return FGMM_ERR_MEMORY;
    make_case(c, test);
    expect(c);
    fgmm_status status = run_case(device, c, test.which);
    cl_release_memory(device, c);
    return status;
}

/* ---- searching lists ---- */

enum { LIST_ROWS = 40, LISTS = 2, LIST_FEATURES = 21, QUERIES = 3, NEAREST = 4, ROOM = 8 };

/*
 * Whole numbers, which f32 adds exactly: row i lies at i + 1 from the origin along feature i mod 21, and half of the second
 * list's rows are linked from the first. Query q is the origin and probes list q, or both lists if q is 2.
 */
static fgmm_status search_lists(fgmm_device *device, int *right) {
    float rows[LIST_ROWS][LIST_FEATURES] = {{0}}, queries[QUERIES][LIST_FEATURES] = {{0}};
    int64_t numbers[LIST_ROWS], found[QUERIES], ids[QUERIES * ROOM];
    float distances[QUERIES * ROOM];
    uint32_t links[LIST_ROWS / 4];
    int32_t before[LIST_ROWS / 4];
    const int64_t link_starts[LISTS + 1] = {0, LIST_ROWS / 4, LIST_ROWS / 4};
    const uint64_t probed[QUERIES] = {1, 2, 3};
    for (int i = 0; i < LIST_ROWS; i++) {
        numbers[i] = 100 + i;
        rows[i][i % LIST_FEATURES] = (float)(i + 1);
    }
    for (int i = 0; i < LIST_ROWS / 4; i++) {
        links[i] = (uint32_t)(LIST_ROWS / 2 + 2 * i);
        before[i] = 1;
    }
    const struct fgmm_list_rows lists[LISTS] = {{LIST_ROWS / 2, rows, numbers, NULL},
                                                {LIST_ROWS / 2, rows[LIST_ROWS / 2], numbers + LIST_ROWS / 2, NULL}};
    const fgmm_lists_source source = {.type = FGMM_F32,
                                      .metric = FGMM_L2,
                                      .d = LIST_FEATURES,
                                      .n_lists = LISTS,
                                      .lists = lists,
                                      .link_starts = link_starts,
                                      .links = links,
                                      .before = before,
                                      .depth = 1};
    fgmm_lists_query query = {.n = QUERIES,
                              .stride = LIST_FEATURES,
                              .queries = queries[0],
                              .probed = probed,
                              .words = 1,
                              .k = NEAREST,
                              .room = ROOM,
                              .ids = ids,
                              .distances = distances,
                              .found = found};
    fgmm_lists *there = NULL;
    fgmm_status status = FGMM_OK;
    *right = 0;
    CL_GO(cl_lists_put(device, &source, &there));
    CL_GO(cl_lists_search(device, there, &query));
    /* 20 rows and 10 links, 20 rows, and 40 rows of which links show none twice. */
    *right = query.computed == 30 + 20 + 40;
    for (int q = 0; q < QUERIES; q++) {
        int first = q == 1 ? LIST_ROWS / 2 : 0, sum = 0;
        *right = *right && found[q] == NEAREST;
        for (int i = 0; *right && i < NEAREST; i++) {
            int row = (int)ids[q * ROOM + i] - 100;
            *right = row >= first && row < first + NEAREST && distances[q * ROOM + i] == (float)((row + 1) * (row + 1));
            sum += 1 << (row - first);
        }
        *right = *right && sum == (1 << NEAREST) - 1;
    }
done:
    cl_lists_release(device, there);
    return status;
}

fgmm_status cl_lists_known_answer(fgmm_device *device) {
    const fgmm_host *host = &device->host;
    int right = 0;
    if (device->searches) return FGMM_OK;
    device->searches = 1; /* the test itself puts lists */
    fgmm_status status = search_lists(device, &right);
    if (status == FGMM_ERR_DEVICE && device->max_work_group > 64) {
        device->max_work_group = 64;
        status = search_lists(device, &right);
    }
    if (status == FGMM_OK && !right)
        status =
            host->fail(host->user, FGMM_ERR_DEVICE, "%s fails the known-answer test of searching lists", device->name);
    device->searches = status == FGMM_OK;
    return status;
}
