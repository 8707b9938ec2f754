/*
 * Known-answer test: moments, E-steps (row by row and summed, of parameters that move) and assignments of a small mixture, spherical and diagonal, against double. Many
 * components lie so close together that the rows near them overflow their lists of candidates, so both engines run; pairs of
 * others are what settling has to look at; the features take several steps of every tile, and lanes that share a row. Then, where the dense engine may run on matrix units, components
 * near a centre.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <math.h>
#include <string.h>

enum { ROWS = 200, COMPONENTS = 70, ALIKE = 30, PAIRED = 50, FEATURES = 17, CELLS = COMPONENTS * FEATURES };
static const double TOLERANCE = 1e-4, FAST_TOLERANCE = 2e-3;

typedef struct check_case {
    float x[ROWS][FEATURES];
    double means[COMPONENTS][FEATURES], inverse[CELLS], weights[COMPONENTS], log_weights[COMPONENTS];
    double log_norm[COMPONENTS], centre[FEATURES], scale[FEATURES];
    double s0[COMPONENTS], s1[CELLS], s2[CELLS], log_prob[ROWS];
    double want_s0[COMPONENTS], want_s1[CELLS], want_s2[CELLS], want_log_prob[ROWS];
    double sum[FEATURES], square[FEATURES], want_sum[FEATURES], want_square[FEATURES];
    int32_t best[ROWS], want_best[ROWS];
    float resp[ROWS];
    fgmm_params params;
} check_case;

/* In [0, 1): the multiplier is Knuth's. */
static double next_value(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) * 0x1p-24;
}

enum { SPHERICAL, DIAGONAL, NEAR /* spherical, for the dense engine on matrix units */, NEAR_FAST };

/* What follows from the inverse variances. */
static void set_norms(check_case *c, int diag) {
    double most = -INFINITY;
    for (int k = 0; k < COMPONENTS; k++) {
        double log_det = 0.0;
        for (int f = 0; f < FEATURES; f++) log_det -= log(2.0 * c->inverse[diag ? k * FEATURES + f : k]);
        c->log_norm[k] = -0.5 * (FEATURES * log(6.283185307179586) + log_det);
        most = fmax(most, c->log_norm[k]);
    }
    c->params.log_norm_max = most;
}

static void make_case(check_case *c, int kind) {
    uint32_t state = 7;
    int diag = kind == DIAGONAL;
    memset(c, 0, sizeof *c);
    for (int k = 0; k < COMPONENTS; k++) {
        for (int f = 0; f < FEATURES; f++) {
            double inverse = 8.0 + 4.0 * next_value(&state);
            c->means[k][f] = k && k < ALIKE ? c->means[0][f] + 0.05 * next_value(&state) : 6.0 * next_value(&state);
            if (k >= PAIRED && k % 2) c->means[k][f] = c->means[k - 1][f] + 0.1 * next_value(&state);
            if (kind >= NEAR) c->means[k][f] = 3.0 + 0.2 * (next_value(&state) - 0.5);
            if (diag || f == 0) c->inverse[diag ? k * FEATURES + f : k] = inverse;
            c->centre[f] = 3.0;
            c->scale[f] = 0.5;
        }
        c->weights[k] = 1.0 / COMPONENTS;
        c->log_weights[k] = log(c->weights[k]);
    }
    for (int i = 0; i < ROWS; i++)
        for (int f = 0; f < FEATURES; f++)
            c->x[i][f] = (float)(c->means[i % COMPONENTS][f] + 0.4 * (next_value(&state) - 0.5));
    c->params = (fgmm_params){.covariance_type = diag ? FGMM_DIAG : FGMM_SPHERICAL,
                              .k = COMPONENTS,
                              .d = FEATURES,
                              .means = c->means[0],
                              .half_inv_var = c->inverse,
                              .log_weights = c->log_weights,
                              .weights = c->weights,
                              .log_norm = c->log_norm,
                              .centre = c->centre,
                              .scale = c->scale,
                              .sum_centres = c->means[0],
                              .cut = 1e-7,
                              .precision = kind == NEAR_FAST ? FGMM_FAST : FGMM_EXACT,
                              .engine = kind >= NEAR ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN};
    set_norms(c, diag);
}

/* As an M-step might, so that distances known of rows are of other parameters. */
static void move_case(check_case *c, int diag) {
    for (int i = 0; i < CELLS; i++) c->means[i / FEATURES][i % FEATURES] += 0.003 * (i % 3 - 1);
    for (int i = 0; i < (diag ? CELLS : COMPONENTS); i++) c->inverse[i] *= 1.0 + 0.01 * (i % 2);
    set_norms(c, diag);
}

static void expect(check_case *c, int diag) {
    memset(c->want_s0, 0, sizeof c->want_s0);
    memset(c->want_s1, 0, sizeof c->want_s1);
    memset(c->want_s2, 0, sizeof c->want_s2);
    memset(c->want_sum, 0, sizeof c->want_sum);
    memset(c->want_square, 0, sizeof c->want_square);
    for (int i = 0; i < ROWS; i++) {
        double l[COMPONENTS], best = -INFINITY, sum = 0.0;
        for (int k = 0; k < COMPONENTS; k++) {
            l[k] = c->log_weights[k] + c->log_norm[k];
            for (int f = 0; f < FEATURES; f++) {
                double t = c->x[i][f] - c->means[k][f];
                l[k] -= c->inverse[diag ? k * FEATURES + f : k] * t * t;
            }
            if (l[k] > best) {
                best = l[k];
                c->want_best[i] = k;
            }
        }
        for (int f = 0; f < FEATURES; f++) {
            double t = c->x[i][f] - c->centre[f];
            c->want_sum[f] += t;
            c->want_square[f] += t * t;
        }
        for (int k = 0; k < COMPONENTS; k++) sum += exp(l[k] - best);
        c->want_log_prob[i] = best + log(sum);
        for (int k = 0; k < COMPONENTS; k++) {
            double r = exp(l[k] - c->want_log_prob[i]);
            c->want_s0[k] += r;
            for (int f = 0; f < FEATURES; f++) {
                double t = c->x[i][f] - c->means[k][f];
                c->want_s1[k * FEATURES + f] += r * t;
                c->want_s2[diag ? k * FEATURES + f : k] += r * t * t;
            }
        }
    }
}

static int differ(const double *got, const double *want, int count, double tolerance) {
    for (int i = 0; i < count; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * (1.0 + fabs(want[i])))) return 1;
    return 0;
}

static double tolerance_of(const check_case *c) {
    return c->params.precision == FGMM_FAST ? FAST_TOLERANCE : TOLERANCE;
}

/* An E-step's sums, of which *wrong names one that differs. */
static fgmm_status run_estep(fgmm_device *device, fgmm_block *block, check_case *c, int summed, const char **wrong) {
    fgmm_sums sums = {.s0 = c->s0, .s1 = c->s1, .s2 = c->s2};
    double want = 0.0;
    for (int i = 0; i < ROWS; i++) want += c->want_log_prob[i];
    memset(c->s0, 0, sizeof c->s0);
    memset(c->s1, 0, sizeof c->s1);
    memset(c->s2, 0, sizeof c->s2);
    c->params.summed = summed;
    CL_TRY(cl_begin(device, &c->params));
    CL_TRY(cl_estep(device, block, summed ? NULL : c->log_prob));
    CL_TRY(cl_collect(device, &sums));
    double by = tolerance_of(c);
    *wrong = differ(c->s0, c->want_s0, COMPONENTS, by)    ? "counts"
             : differ(c->s1, c->want_s1, CELLS, by)       ? "means"
             : differ(c->s2, c->want_s2, CELLS, by)       ? "variances"
             : differ(&sums.log_likelihood, &want, 1, by) ? "log-likelihood"
             : c->params.engine == FGMM_ENGINE_SCREEN && (sums.dense_rows < 1 || sums.dense_rows > ROWS - 1)
                 ? "choice of engines"
                 : NULL;
    return FGMM_OK;
}

static fgmm_status run_case(fgmm_device *device, check_case *c, int diag) {
    const fgmm_host *host = &device->host;
    fgmm_block *block = NULL;
    const char *wrong_sums[4] = {NULL};
    fgmm_block_source source = {
        .data = c->x, .stride_bytes = sizeof c->x[0], .type = FGMM_F32, .n = ROWS, .d = FEATURES, .kept = 1};
    fgmm_moments moments = {.sum = c->sum, .square = c->square, .bad_row = -1};
    fgmm_status status = FGMM_OK;
    CL_GO(cl_put(device, &source, &block));
    CL_GO(cl_wait(device, block));
    CL_GO(cl_moments(device, block, c->centre, &moments));
    CL_GO(run_estep(device, block, c, 0, &wrong_sums[0]));
    CL_GO(run_estep(device, block, c, 1, &wrong_sums[1])); /* settles rows by what the first learned */
    move_case(c, diag);
    expect(c, diag);
    CL_GO(run_estep(device, block, c, 1, &wrong_sums[2])); /* and by how far they were */
    CL_GO(run_estep(device, block, c, 0, &wrong_sums[3]));
    CL_GO(cl_assign(device, block, 1, c->best, c->resp, NULL));
    const char *wrong = NULL;
    for (int i = 0; i < 4 && !wrong; i++) wrong = wrong_sums[i];
    if (!wrong)
        wrong = differ(c->log_prob, c->want_log_prob, ROWS, tolerance_of(c)) ? "log-densities"
                : differ(c->sum, c->want_sum, FEATURES, TOLERANCE)           ? "column sums"
                : differ(c->square, c->want_square, FEATURES, TOLERANCE)     ? "column squares"
                : moments.bad_count != 0                                     ? "search for NaN"
                : memcmp(c->best, c->want_best, sizeof c->best)              ? "labels"
                                                                             : NULL;
    if (wrong)
        CL_GO(host->fail(host->user, FGMM_ERR_DEVICE, "%s fails the known-answer test: wrong %s", device->name, wrong));
done:
    cl_release(device, block);
    return status;
}

static fgmm_status check_kind(fgmm_device *device, check_case *c, int kind) {
    make_case(c, kind);
    expect(c, kind == DIAGONAL);
    return run_case(device, c, kind == DIAGONAL);
}

/* Kernels with wrong numbers are left alone, and a build of theirs that failed says nothing about others. */
static void leave_alone(fgmm_device *device, const char *which) {
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s: the dense engine leaves %s alone: it fails the known-answer test", device->name, which);
    cl_opened_of(device)->build_failed = device->group_refused = 0;
}

/* Wrong numbers cost the dense engine's kernels on matrix units alone, where the device serves without them. A level that these leave has the
 * next one tested. */
static fgmm_status check_pairs(fgmm_device *device, check_case *c) {
    for (int level = CL_MATRIX_NONE; device->pairs && device->pairs != level;) {
        level = device->pairs;
        fgmm_status status = check_kind(device, c, NEAR);
        if (status == FGMM_OK) continue;
        if (status != FGMM_ERR_DEVICE || !device->pairs) return status;
        leave_alone(device, cl_matrix_name(device->pairs));
        device->pairs--;
    }
    return FGMM_OK;
}

/* And those of fast precision. */
static fgmm_status check_singles(fgmm_device *device, check_case *c) {
    if (!device->pairs || !device->singles) return FGMM_OK;
    fgmm_status status = check_kind(device, c, NEAR_FAST);
    if (status != FGMM_ERR_DEVICE || !device->singles) return status;
    leave_alone(device, "single f16");
    device->singles = 0;
    return FGMM_OK;
}

fgmm_status cl_known_answer(fgmm_device *device) {
    check_case *c = cl_alloc(device, sizeof *c);
    if (!c) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_OK;
    for (int kind = SPHERICAL; kind <= DIAGONAL && status == FGMM_OK; kind++) status = check_kind(device, c, kind);
    if (status == FGMM_OK) status = check_pairs(device, c);
    if (status == FGMM_OK) status = check_singles(device, c);
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
