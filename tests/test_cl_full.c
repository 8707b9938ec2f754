/* Tied and full covariances, and responsibilities of all components, of the OpenCL engine through the backend's table,
 * against sums in double. Device: FLASHGMM_TEST_DEVICE = "opencl:NAME", or any; FLASHGMM_TEST_SCALE bounds N * K * D *
 * D. */
#include "../cl/cl_engine.h"
#include "cl_host.h"

static double scale_limit = 4e7;

/* ---- problems ---- */

typedef struct problem {
    int64_t n, k, d;
    int full;
    float *x;                                      /* [n, d] */
    double *means, *weights, *factors, *whitening; /* factors, whitening: L and its inverse, [k, d, d] or [d, d] */
    double *log_weights, *log_norm, *centre, *scale, *sums, *row_weights;
    fgmm_params params;
} problem;

static void problem_free(problem *p) {
    double *all[] = {p->means,    p->weights, p->factors, p->whitening, p->log_weights,
                     p->log_norm, p->centre,  p->scale,   p->sums,      p->row_weights};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(p->x);
}

static const double *matrix_of(const problem *p, const double *all, int64_t c) {
    return all + (p->full ? c * p->d * p->d : 0);
}

/* Factors with deviations over `spread` orders of ten, features correlated; in a feature's own unit. */
static void random_factor(double *l, int64_t d, double spread, double noise) {
    for (int64_t a = 0; a < d; a++) {
        double unit = noise * pow(10.0, spread * (uniform() - 0.5));
        for (int64_t b = 0; b < a; b++) l[a * d + b] = unit * 0.7 * normal() / sqrt((double)d);
        l[a * d + a] = unit * (0.5 + uniform());
    }
}

static void invert_factor(const double *l, double *w, int64_t d) {
    memset(w, 0, (size_t)(d * d) * 8);
    for (int64_t j = 0; j < d; j++)
        for (int64_t i = j; i < d; i++) {
            double sum = i == j;
            for (int64_t f = j; f < i; f++) sum -= l[i * d + f] * w[f * d + j];
            w[i * d + j] = sum / l[i * d + i];
        }
}

/* Means, factors and weights; rows drawn from the components, whose model's means are a little off. */
static problem make(int64_t n, int64_t k, int64_t d, int full, double apart, double spread, double offset) {
    problem p = {.n = n, .k = k, .d = d, .full = full};
    rng_state = 1; /* a problem is the same whatever ran before */
    size_t dd = (size_t)(d * d), matrices = full ? (size_t)k : 1;
    p.x = get((size_t)(n * d) * 4);
    p.means = get((size_t)(k * d) * 8);
    p.factors = get(matrices * dd * 8);
    p.whitening = get(matrices * dd * 8);
    p.weights = get((size_t)k * 8);
    p.log_weights = get((size_t)k * 8);
    p.log_norm = get((size_t)k * 8);
    p.centre = get((size_t)d * 8);
    p.scale = get((size_t)d * 8);
    for (size_t i = 0; i < matrices; i++) random_factor(p.factors + i * dd, d, spread, 1.0);
    for (int64_t i = 0; i < k * d; i++) p.means[i] = offset + apart * normal();
    for (int64_t c = 0; c < k; c++) p.weights[c] = 0.2 + uniform();
    double *z = get((size_t)d * 8);
    for (int64_t i = 0; i < n; i++) {
        int64_t c = (int64_t)(uniform() * (double)k);
        const double *l = matrix_of(&p, p.factors, c);
        for (int64_t f = 0; f < d; f++) z[f] = normal();
        for (int64_t a = 0; a < d; a++) {
            double sum = p.means[c * d + a];
            for (int64_t b = 0; b <= a; b++) sum += l[a * d + b] * z[b];
            p.x[i * d + a] = (float)sum;
        }
    }
    for (int64_t c = 0; c < k; c++) {
        const double *l = matrix_of(&p, p.factors, c);
        for (int64_t f = 0; f < d; f++) z[f] = 0.3 * normal();
        for (int64_t a = 0; a < d; a++)
            for (int64_t b = 0; b <= a; b++) p.means[c * d + a] += l[a * d + b] * z[b];
    }
    free(z);
    return p;
}

static double frobenius(const double *m, int64_t d) {
    double sum = 0;
    for (int64_t i = 0; i < d * d; i++) sum += m[i] * m[i];
    return sqrt(sum);
}

/* As lib/params.c prepares them. */
static void finish(problem *p, fgmm_engine engine, double cut) {
    int64_t d = p->d, k = p->k;
    double total = 0, most = -INFINITY, square = 0;
    for (int64_t i = 0; i < (p->full ? k : 1); i++) invert_factor(p->factors + i * d * d, p->whitening + i * d * d, d);
    for (int64_t c = 0; c < k; c++) total += p->weights[c];
    for (int64_t c = 0; c < k; c++) {
        p->weights[c] /= total;
        p->log_weights[c] = p->weights[c] > 0 ? log(p->weights[c]) : FGMM_LOG_ZERO;
        p->log_norm[c] = -0.5 * (double)d * log(6.283185307179586);
        for (int64_t f = 0; f < d; f++) p->log_norm[c] -= log(matrix_of(p, p->factors, c)[f * d + f]);
        if (p->weights[c] > 0) most = fmax(most, p->log_norm[c]);
    }
    for (int64_t f = 0; f < d; f++) {
        double mean = 0;
        for (int64_t c = 0; c < k; c++) mean += p->weights[c] * p->means[c * d + f];
        p->centre[f] = (float)mean;
    }
    for (int64_t c = 0; c < k && !p->full; c++) /* of the whitened columns */
        for (int64_t a = 0; a < d; a++) {
            double y = 0;
            for (int64_t b = 0; b <= a; b++) y += p->whitening[a * d + b] * (p->means[c * d + b] - p->centre[b]);
            square += p->weights[c] * y * y / (double)d;
        }
    for (int64_t f = 0; f < d; f++) p->scale[f] = exp2(-round(0.5 * log2(1.0 + square)));
    p->params = (fgmm_params){.covariance_type = p->full ? FGMM_FULL : FGMM_TIED,
                              .k = k,
                              .d = d,
                              .means = p->means,
                              .whitening = p->whitening,
                              .condition = p->full ? 0 : frobenius(p->whitening, d) * frobenius(p->factors, d),
                              .log_weights = p->log_weights,
                              .weights = p->weights,
                              .log_norm = p->log_norm,
                              .centre = p->centre,
                              .scale = p->scale,
                              .sum_centres = p->sums ? p->sums : p->means,
                              .cut = cut,
                              .log_norm_max = most,
                              .engine = engine};
}

/* ---- results and reference ---- */

typedef struct result {
    double *s0, *s1, *s2, *log_prob;
    float *resp; /* [n, k] */
    size_t cells;
    fgmm_sums sums;
} result;

static result result_new(const problem *p) {
    result r = {.cells = (size_t)((p->full ? p->k : 1) * p->d * p->d)};
    r.s0 = get((size_t)p->k * 8);
    r.s1 = get((size_t)(p->k * p->d) * 8);
    r.s2 = get(r.cells * 8);
    r.log_prob = get((size_t)p->n * 8);
    r.resp = get((size_t)(p->n * p->k) * 4);
    r.sums = (fgmm_sums){.s0 = r.s0, .s1 = r.s1, .s2 = r.s2};
    return r;
}

static void result_free(result *r) {
    free(r->s0);
    free(r->s1);
    free(r->s2);
    free(r->log_prob);
    free(r->resp);
}

static double distance(const problem *p, int64_t i, int64_t c) {
    const double *w = matrix_of(p, p->whitening, c);
    double q = 0;
    for (int64_t a = 0; a < p->d; a++) {
        double y = 0;
        for (int64_t b = 0; b <= a; b++) y += w[a * p->d + b] * (p->x[i * p->d + b] - p->means[c * p->d + b]);
        q += 0.5 * y * y;
    }
    return q;
}

static result reference(const problem *p) {
    result out = result_new(p);
    int64_t d = p->d;
    double *r = get((size_t)p->k * 8), *t = get((size_t)d * 8);
    for (int64_t i = 0; i < p->n; i++) {
        double w = p->row_weights ? p->row_weights[i] : 1.0, best = -INFINITY, sum = 0;
        int64_t top = 0;
        for (int64_t c = 0; c < p->k; c++) {
            r[c] = p->weights[c] > 0 ? p->log_weights[c] + p->log_norm[c] - distance(p, i, c) : -INFINITY;
            if (r[c] > best) best = r[c], top = c;
        }
        for (int64_t c = 0; c < p->k; c++) sum += r[c] = p->params.hard ? c == top : exp(r[c] - best);
        out.log_prob[i] = p->params.hard ? best : best + log(sum);
        out.sums.log_likelihood += w * out.log_prob[i];
        out.sums.weight += w;
        for (int64_t c = 0; c < p->k; c++) {
            double wr = w * r[c] / sum;
            out.resp[i * p->k + c] = (float)(r[c] / sum);
            if (wr < 1e-12) continue;
            double *s2 = out.s2 + (p->full ? c * d * d : 0);
            out.s0[c] += wr;
            for (int64_t a = 0; a < d; a++) {
                t[a] = p->x[i * d + a] - p->params.sum_centres[c * d + a];
                out.s1[c * d + a] += wr * t[a];
                for (int64_t b = 0; b <= a; b++) s2[a * d + b] += wr * t[a] * t[b];
            }
        }
    }
    free(r);
    free(t);
    return out;
}

static result run(const problem *p, int64_t block_rows, int resp) {
    result out = result_new(p);
    if (!block_rows) block_rows = p->n;
    OK(backend->begin(device, &p->params));
    for (int64_t first = 0; first < p->n; first += block_rows) {
        int64_t n = first + block_rows < p->n ? block_rows : p->n - first;
        fgmm_block *block = NULL;
        fgmm_block_source source = {.data = p->x + first * p->d,
                                    .stride_bytes = (size_t)p->d * 4,
                                    .type = FGMM_F32,
                                    .first_row = first,
                                    .n = n,
                                    .d = p->d,
                                    .weights = p->row_weights ? p->row_weights + first : NULL};
        OK(backend->put(device, &source, &block));
        OK(backend->wait(device, block));
        OK(backend->estep(device, block, out.log_prob + first));
        if (resp) OK(backend->proba(device, block, out.resp + first * p->k, NULL));
        backend->release(device, block);
    }
    OK(backend->collect(device, &out.sums));
    return out;
}

/* The last of `passes` over the same block, of which each but the first starts from what the one before noted. */
static result run_again(const problem *p, int passes) {
    fgmm_block *block = NULL;
    fgmm_block_source source = {
        .data = p->x, .stride_bytes = (size_t)p->d * 4, .type = FGMM_F32, .n = p->n, .d = p->d, .kept = 1};
    result out = {0};
    OK(backend->put(device, &source, &block));
    OK(backend->wait(device, block));
    for (int i = 0; i < passes; i++) {
        result_free(&out);
        out = result_new(p);
        OK(backend->begin(device, &p->params));
        OK(backend->estep(device, block, out.log_prob));
        OK(backend->collect(device, &out.sums));
    }
    backend->release(device, block);
    return out;
}

static void same_bits(const problem *p, const result *one, const result *other, const char *what) {
    ck_assert_msg(memcmp(one->s0, other->s0, (size_t)p->k * 8) == 0, "%s: counts", what);
    ck_assert_msg(memcmp(one->s1, other->s1, (size_t)(p->k * p->d) * 8) == 0, "%s: means", what);
    ck_assert_msg(memcmp(one->s2, other->s2, one->cells * 8) == 0, "%s: scatter", what);
    ck_assert_msg(memcmp(one->log_prob, other->log_prob, (size_t)p->n * 8) == 0, "%s: log-densities", what);
}

/* The covariance about the new mean, whitened by the model's own W, so that a tight direction counts as much as a
 * wide one. */
static void whitened(const problem *p, const result *r, int64_t c, double *out) {
    int64_t d = p->d;
    double *s = get((size_t)(d * d) * 8), *half = get((size_t)(d * d) * 8), n = p->full ? r->s0[c] : 0;
    const double *w = matrix_of(p, p->whitening, c), *s2 = r->s2 + (p->full ? c * d * d : 0);
    for (int64_t i = 0; i < p->k && !p->full; i++) n += r->s0[i];
    for (int64_t a = 0; a < d; a++)
        for (int64_t b = 0; b <= a; b++) {
            double value = s2[a * d + b];
            for (int64_t i = p->full ? c : 0; i < (p->full ? c + 1 : p->k); i++)
                if (r->s0[i] > 0) value -= r->s1[i * d + a] * r->s1[i * d + b] / r->s0[i];
            s[a * d + b] = s[b * d + a] = value / n;
        }
    for (int64_t a = 0; a < d; a++)
        for (int64_t b = 0; b < d; b++)
            for (int64_t f = 0; f <= a; f++) half[a * d + b] += w[a * d + f] * s[f * d + b];
    for (int64_t a = 0; a < d; a++)
        for (int64_t b = 0; b < d; b++) {
            out[a * d + b] = 0;
            for (int64_t f = 0; f <= b; f++) out[a * d + b] += half[a * d + f] * w[b * d + f];
        }
    free(s);
    free(half);
}

static void check_covariances(const problem *p, const result *got, const result *want, const char *what) {
    int64_t d = p->d;
    double *a = get((size_t)(d * d) * 8), *b = get((size_t)(d * d) * 8);
    for (int64_t c = 0; c < (p->full ? p->k : 1); c++) {
        if (p->full && want->s0[c] < 1.0) continue;
        whitened(p, got, c, a);
        whitened(p, want, c, b);
        for (int64_t f = 0; f < d * d; f++) {
            double size = sqrt(b[f / d * d + f / d] * b[f % d * d + f % d]);
            ck_assert_msg(fabs(a[f] - b[f]) <= 1e-5 * fmax(size, 1e-3), "%s: covariance %d [%d,%d] %.9g, not %.9g",
                          what, (int)c, (int)(f / d), (int)(f % d), a[f], b[f]);
        }
    }
    free(a);
    free(b);
}

/* The contract of precision "exact" in include/flashgmm/flashgmm.h. */
static void check_contract(const problem *p, const result *got, const char *what) {
    result want = reference(p);
    const double e = 1e-5;
    double n = want.sums.weight;
    ck_assert_msg(fabs(got->sums.log_likelihood - want.sums.log_likelihood) / n <=
                      e * fmax(1.0, fabs(want.sums.log_likelihood) / n),
                  "%s: likelihood %.9g, not %.9g", what, got->sums.log_likelihood, want.sums.log_likelihood);
    for (int64_t i = 0; i < p->n; i++)
        ck_assert_msg(fabs(got->log_prob[i] - want.log_prob[i]) <= e * fmax(1.0, fabs(want.log_prob[i])),
                      "%s: log p(x_%d) %.9g, not %.9g", what, (int)i, got->log_prob[i], want.log_prob[i]);
    for (int64_t c = 0; c < p->k; c++) {
        const double *l = matrix_of(p, p->factors, c);
        ck_assert_msg(fabs(got->s0[c] - want.s0[c]) <= e * want.s0[c] + p->params.cut * n, "%s: N[%d] %.9g, not %.9g",
                      what, (int)c, got->s0[c], want.s0[c]);
        if (want.s0[c] < 1.0) continue;
        for (int64_t f = 0; f < p->d; f++) {
            double a = got->s1[c * p->d + f] / got->s0[c], b = want.s1[c * p->d + f] / want.s0[c], variance = 0;
            for (int64_t g = 0; g <= f; g++) variance += l[f * p->d + g] * l[f * p->d + g];
            ck_assert_msg(fabs(a - b) <= e * sqrt(variance), "%s: mean[%d,%d] %.9g, not %.9g, sd %.3g", what, (int)c,
                          (int)f, a, b, sqrt(variance));
        }
    }
    check_covariances(p, got, &want, what);
    result_free(&want);
}

static void check_both(problem *p, const char *name) {
    const fgmm_engine engines[] = {FGMM_ENGINE_SCREEN, FGMM_ENGINE_DENSE};
    for (int i = 0; i < 2; i++) {
        char what[128];
        snprintf(what, sizeof what, "%s %s %s", name, p->full ? "full" : "tied", i ? "dense" : "screen");
        p->params.engine = engines[i];
        result got = run(p, 0, 0);
        check_contract(p, &got, what);
        if (i) ck_assert_msg(got.sums.dense_rows == (double)p->n, "%s: %g dense rows", what, got.sums.dense_rows);
        result_free(&got);
    }
}

static int64_t sized(int64_t n, int64_t k, int64_t d) {
    double most = scale_limit / (double)(k * d * d);
    return (double)n <= most ? n : most < 8 ? 8 : (int64_t)most;
}

/* ---- tests ---- */

START_TEST(shapes) {
    const int64_t sizes[][3] = {{3000, 5, 3},  {1500, 17, 33}, {500, 20, 65}, {200, 9, 129},  {2500, 1, 7},
                                {2500, 3, 1},  {40, 40, 4},    {1, 3, 5},     {100, 1030, 2}, {2100, 33, 16},
                                {700, 30, 20}, {1025, 12, 64}, {30, 2, 300}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int full = 0; full < 2; full++) {
            int64_t k = sizes[i][1], d = sizes[i][2], n = sized(sizes[i][0], k, d);
            char name[64];
            /* A simulator would take minutes; llvmpipe ends a work-item's loops after 65535 rounds in all. */
            if ((double)(k * d * d) > 0.5 * scale_limit || (double)k * 1e4 > scale_limit) continue;
            if (!takes(2 * i + (size_t)full)) continue;
            snprintf(name, sizeof name, "n %d k %d d %d", (int)n, (int)k, (int)d);
            problem p = make(n, k, d, full, k < 1000 ? 3.0 : 40.0, 0.5, 0.5);
            finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
            check_both(&p, name);
            problem_free(&p);
        }
}
END_TEST

/* Components far apart, for their size, are screened: nothing is left to the dense engine, and about one survives a
 * row. */
START_TEST(screened) {
    for (int full = 0; full < 2; full++) {
        problem p = make(sized(2000, 40, 24), 40, 24, full, 6.0, 1.0, 3.0);
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        result got = run(&p, 0, 0), again = run(&p, 0, 0);
        ck_assert_msg(got.sums.dense_rows == 0, "%g dense rows", got.sums.dense_rows);
        ck_assert(got.sums.survivors < 2.0 * (double)p.n);
        ck_assert_mem_eq(got.s2, again.s2, got.cells * 8);
        result_free(&got);
        result_free(&again);
        problem_free(&p);
    }
}
END_TEST

/* The rounding bound by brute force: a component that matters and that the screen on matrix units lost would change the sums, which are
 * those of the f32 screen's lists, to the bit. Clusters apart, crowded, in units four orders apart far from the origin, and one
 * of rows that f16 cannot hold. Without such units: that a second pass, which starts from the rows' best, changes nothing. */
START_TEST(screens_agree) {
    const int64_t depths[] = {1, 17, 40, 64, 65, 90, 100, 128};
    const double aparts[] = {3.0, 0.5, 30.0, 2.0}, spreads[] = {0.5, 0.5, 4.0, 0.5}, offsets[] = {0.0, 1.0, 1e3, 0.0};
    int had = device->has_matrix, compared = 0, cases = 0;
    for (int i = 0; i < 4 * (int)(sizeof depths / sizeof *depths); i++) {
        int kind = i % 4;
        int64_t d = depths[i / 4], k = 40, n = had ? 700 : sized(1500, k, d); /* several work-groups on matrix units */
        if (!had && (!takes((size_t)i) || (double)(k * d * d) > 0.1 * scale_limit)) continue;
        problem p = make(n, k, d, 1, aparts[kind], spreads[kind], offsets[kind]);
        for (int64_t j = 0; kind == 3 && j < n; j += 5) p.x[j * d] = (float)(1e6 * normal());
        finish(&p, FGMM_ENGINE_SCREEN, 1e-8);
        char what[64];
        snprintf(what, sizeof what, "D = %d, kind %d", (int)d, kind);
        result first = run_again(&p, 1), third = run_again(&p, 3);
        device->has_matrix = 0;
        result plain = run_again(&p, 1);
        device->has_matrix = had;
        cases++;
        /* Which rows the dense engine takes may differ by one or two at the border, and with them the order of sums. */
        compared += first.sums.dense_rows == plain.sums.dense_rows;
        if (first.sums.dense_rows == plain.sums.dense_rows) same_bits(&p, &first, &plain, what);
        if (third.sums.dense_rows == plain.sums.dense_rows) same_bits(&p, &third, &plain, what);
        if (kind != 3) check_contract(&p, &third, what);
        result_free(&first);
        result_free(&third);
        result_free(&plain);
        problem_free(&p);
    }
    ck_assert_msg(cases == 0 || 2 * compared > cases, "only %d of %d could be compared", compared, cases);
}
END_TEST

/* Which rows the dense engine takes, and all sums, are the same whatever a block's rows were last seen under: here components half as wide.
 * Many rows have about as many candidates as a list holds. */
START_TEST(hints_do_not_show) {
    for (int i = 0; i < 2; i++) {
        int64_t k = 60, d = 16, n = sized(4000, k, d);
        double spacing = i ? 2.0 : 1.4, y[16];
        problem p = make(n, k, d, 1, 1.0, 0.0, 0.0);
        for (int64_t c = 0; c < k; c++)
            for (int64_t f = 0; f < d; f++) {
                double *row = p.factors + (c * d + f) * d;
                memset(row, 0, (size_t)d * sizeof *row);
                row[0] = 100.0;
                row[f] = f ? 1.0 : 100.0;
                p.means[c * d + f] = spacing * normal(); /* whitened */
            }
        for (int64_t j = 0; j < n; j++) {
            for (int64_t f = 0; f < d; f++) y[f] = p.means[j % k * d + f] + normal();
            for (int64_t f = 0; f < d; f++) p.x[j * d + f] = (float)(100.0 * y[0] + (f ? y[f] : 0.0));
        }
        for (int64_t c = 0; c < k; c++)
            for (int64_t f = d; f-- > 0;) p.means[c * d + f] = 100.0 * p.means[c * d] + (f ? p.means[c * d + f] : 0.0);
        finish(&p, FGMM_ENGINE_SCREEN, 1e-8);
        result cold = run_again(&p, 1), after = result_new(&p);
        fgmm_block *block = NULL;
        fgmm_block_source source = {
            .data = p.x, .stride_bytes = (size_t)d * 4, .type = FGMM_F32, .n = n, .d = d, .kept = 1};
        OK(backend->put(device, &source, &block));
        OK(backend->wait(device, block));
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t f = 0; f < k * d * d; f++) p.factors[f] *= pass ? 2.0 : 0.5;
            finish(&p, FGMM_ENGINE_SCREEN, 1e-8);
            result_free(&after);
            after = result_new(&p);
            OK(backend->begin(device, &p.params));
            OK(backend->estep(device, block, after.log_prob));
            OK(backend->collect(device, &after.sums));
        }
        backend->release(device, block);
        ck_assert_msg(cold.sums.dense_rows == after.sums.dense_rows, "%g dense rows, then %g", cold.sums.dense_rows,
                      after.sums.dense_rows);
        same_bits(&p, &cold, &after, "hints");
        result_free(&cold);
        result_free(&after);
        problem_free(&p);
    }
}
END_TEST

/* A component so tight that what it says of the rows is beyond f16, also of the last row of a work-group that is not full. */
START_TEST(beyond_halves) {
    const int64_t counts[] = {1, 193, 385};
    for (int i = 0; i < 3; i++) {
        int64_t d = 4, n = counts[i];
        problem p = make(n, 2, d, 1, 1.0, 0.0, 0.0);
        for (int64_t f = 0; f < d * d; f++) {
            p.factors[f] = f % (d + 1) == 0;
            p.factors[d * d + f] = f % (d + 1) == 0 ? 1e-3 : 0.0;
        }
        for (int64_t f = 0; f < d; f++) {
            p.means[f] = 0.0;
            p.means[d + f] = 100.0;
        }
        for (int64_t j = 0; j < n * d; j++) p.x[j] = (float)normal();
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        for (int passes = 1; passes < 3; passes++) {
            result got = run_again(&p, passes);
            check_contract(&p, &got, "a tight component");
            result_free(&got);
        }
        problem_free(&p);
    }
}
END_TEST

/* Features in units six orders apart, far from the origin, and one direction a thousand times tighter than its
 * features. */
START_TEST(tight) {
    for (int full = 0; full < 2; full++) {
        int64_t k = 6, d = 7;
        problem p = make(sized(3000, k, d), k, d, full, 5.0, 0.0, 100.0);
        for (int64_t i = 0; i < (full ? k : 1); i++) {
            double *l = p.factors + i * d * d;
            l[6 * d + 5] = 0.8;
            l[6 * d + 6] = 1e-3;
        }
        for (int64_t i = 0; i < p.n; i++) { /* the last feature follows the others */
            const double *l = matrix_of(&p, p.factors, i % k);
            double z[7];
            for (int64_t f = 0; f < d; f++) {
                double x = p.means[(i % k) * d + f];
                z[f] = normal();
                for (int64_t g = 0; g <= f; g++) x += l[f * d + g] * z[g];
                p.x[i * d + f] = (float)x;
            }
        }
        for (int64_t i = 0; i < p.n; i++) p.x[i * d + 2] *= 1024.0f, p.x[i * d + 4] /= 1024.0f;
        for (int64_t c = 0; c < k; c++) p.means[c * d + 2] *= 1024.0, p.means[c * d + 4] /= 1024.0;
        for (int64_t i = 0; i < (full ? k : 1); i++)
            for (int64_t g = 0; g < d; g++)
                p.factors[(i * d + 2) * d + g] *= 1024.0, p.factors[(i * d + 4) * d + g] /= 1024.0;
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        check_both(&p, "tight");
        problem_free(&p);
    }
}
END_TEST

/* Weights of rows and of components that are zero, a constant column, sums about other centres, hard assignment. */
START_TEST(degenerate) {
    for (int full = 0; full < 2; full++)
        for (int hard = 0; hard < 2; hard++) {
            problem p = make(sized(1500, 7, 5), 7, 5, full, 2.0, 1.0, 0.0);
            for (int64_t i = 0; i < p.n; i++) p.x[i * 5 + 1] = 5.0f;
            for (int64_t c = 0; c < p.k; c++) p.means[c * 5 + 1] = 5.0;
            p.weights[2] = 0.0;
            p.row_weights = get((size_t)p.n * 8);
            for (int64_t i = 0; i < p.n; i++) p.row_weights[i] = i % 3 ? uniform() * 3.0 : 0.0;
            p.sums = get((size_t)(p.k * 5) * 8);
            for (int64_t i = 0; i < p.k * 5; i++) p.sums[i] = p.means[i] + 0.1;
            finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
            p.params.hard = hard;
            check_both(&p, "degenerate");
            problem_free(&p);
        }
}
END_TEST

static void check_blocks(const problem *p, double least_dense, double most_dense) {
    result one = run(p, 0, 0), many = run(p, 1024, 0), some = run(p, 3072, 0);
    const result *others[] = {&many, &some};
    ck_assert_msg(one.sums.dense_rows >= least_dense && one.sums.dense_rows <= most_dense, "%g dense rows",
                  one.sums.dense_rows);
    for (int i = 0; i < 2; i++) {
        ck_assert_mem_eq(one.s0, others[i]->s0, (size_t)p->k * 8);
        ck_assert_mem_eq(one.s1, others[i]->s1, (size_t)(p->k * p->d) * 8);
        ck_assert_mem_eq(one.s2, others[i]->s2, one.cells * 8);
        ck_assert_mem_eq(one.log_prob, others[i]->log_prob, (size_t)p->n * 8);
        ck_assert(one.sums.log_likelihood == others[i]->sums.log_likelihood);
    }
    result_free(&one);
    result_free(&many);
    result_free(&some);
}

/* The same bits, whatever the blocks; with rows that overflow their lists, and more components than a dense tile has. */
START_TEST(blocks) {
    const int64_t sizes[][3] = {{5000, 70, 5}, {9000, 3, 2}, {3500, 6, 24}, {2500, 1100, 2}};
    for (int i = 0; i < 16; i++) {
        int64_t k = sizes[i / 4][1], d = sizes[i / 4][2], n = sizes[i / 4][0];
        if ((double)(n * k * d * d) > 4.0 * scale_limit || !takes((size_t)i)) continue;
        problem p = make(n, k, d, i % 2, 1.0, 0.3, 0.0);
        for (int64_t c = 0; k >= 70 && c < 30 * d; c++) p.means[c] = p.means[c % d] + 0.1 * normal();
        finish(&p, i / 2 % 2 ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN, 1e-7);
        check_blocks(&p, 0.0, (double)n);
        problem_free(&p);
    }
}
END_TEST

/* Tied sums over two dense tiles of components, for some rows, the first of them in the midst of a chunk. */
START_TEST(tied_tiles) {
    int64_t n = 3500, k = 1100, d = 8, lonely = 300;
    if ((double)(n * k * d) > 4.0 * scale_limit || !takes(0)) return;
    problem p = make(n, k, d, 0, 3.5, 0.3, 0.0);
    for (int64_t i = 0; i < lonely * d; i++) p.x[i] = 200.0f + (float)uniform();
    for (int64_t i = d; i < 30 * d; i++) p.means[i] = p.means[i % d] + 0.1 * normal();
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    check_blocks(&p, 500.0, (double)(n - lonely));
    problem_free(&p);
}
END_TEST

/* Responsibilities of all components, from survivors and from the dense engine. */
START_TEST(proba) {
    for (int i = 0; i < 4; i++) {
        problem p = make(sized(600, 60, 6), 60, 6, i % 2, 1.0, 0.3, 0.0);
        for (int64_t c = 0; c < 30 * 6; c++) p.means[c] = p.means[c % 6] + 0.1 * normal();
        p.weights[3] = 0.0;
        finish(&p, i < 2 ? FGMM_ENGINE_SCREEN : FGMM_ENGINE_DENSE, 1e-7);
        result got = run(&p, 0, 1), want = reference(&p);
        for (int64_t j = 0; j < p.n * p.k; j++)
            ck_assert_msg(fabs((double)got.resp[j] - (double)want.resp[j]) <= 1e-5, "row %d, component %d: %g, not %g",
                          (int)(j / p.k), (int)(j % p.k), (double)got.resp[j], (double)want.resp[j]);
        result_free(&got);
        result_free(&want);
        problem_free(&p);
    }
}
END_TEST

/* A device too small says what would be needed. */
START_TEST(too_large) {
    problem p = make(8, 2, 2, 1, 1.0, 0.0, 0.0);
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    p.params.k = 2;
    p.params.d = 16384;
    OK(backend->begin(device, &p.params));
    fgmm_block *block = NULL;
    fgmm_block_source source = {
        .data = get(8 * 16384 * 4), .stride_bytes = 16384 * 4, .type = FGMM_F32, .n = 8, .d = 16384};
    OK(backend->put(device, &source, &block));
    ck_assert_int_eq(backend->estep(device, block, NULL), FGMM_ERR_MEMORY);
    ck_assert_msg(strstr(message, "need") != NULL && strstr(message, "MiB") != NULL, "%s", message);
    backend->release(device, block);
    free((void *)source.data);
    problem_free(&p);
}
END_TEST

int main(void) {
    const char *limit = getenv("FLASHGMM_TEST_SCALE");
    if (limit) scale_limit = 10.0 * atof(limit);
    int refused = open_device();
    if (refused) return refused;
    Suite *suite = suite_create("cl_full");
    TCase *tests = tcase_create("full");
    tcase_set_timeout(tests, 0);
    tcase_add_test(tests, shapes);
    tcase_add_test(tests, screened);
    tcase_add_test(tests, screens_agree);
    tcase_add_test(tests, hints_do_not_show);
    tcase_add_test(tests, beyond_halves);
    tcase_add_test(tests, tight);
    tcase_add_test(tests, degenerate);
    tcase_add_test(tests, blocks);
    tcase_add_test(tests, tied_tiles);
    tcase_add_test(tests, proba);
    tcase_add_test(tests, too_large);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
