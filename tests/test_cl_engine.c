/* The OpenCL engine through the backend's table, against sums in double: precision, order, all types of rows.
 * Device: FLASHGMM_TEST_DEVICE = "opencl:NAME", or any; FLASHGMM_TEST_SCALE bounds N * K * D. */
#include "../cl/cl_program.h"
#include "cl_problem.h"

/* ---- reference ---- */

static double logit(const problem *p, int64_t i, int64_t c) {
    if (p->weights[c] <= 0) return -INFINITY;
    double q = 0;
    for (int64_t f = 0; f < p->d; f++) {
        double t = p->x[i * p->d + f] - p->means[c * p->d + f];
        q += (p->diag ? p->half[c * p->d + f] : p->half[c]) * t * t;
    }
    return p->log_weights[c] + p->log_norm[c] - q;
}

/* log p(x_i), and its responsibilities [k]. */
static double responsibilities(const problem *p, int64_t i, double *r) {
    double best = -INFINITY, sum = 0;
    int64_t top = 0;
    for (int64_t c = 0; c < p->k; c++) {
        r[c] = logit(p, i, c);
        if (r[c] > best) best = r[c], top = c;
    }
    for (int64_t c = 0; c < p->k; c++) sum += r[c] = p->params.hard ? c == top : exp(r[c] - best);
    for (int64_t c = 0; c < p->k; c++) r[c] /= sum;
    return p->params.hard ? best : best + log(sum);
}

/* The row's cut of lib/backend.h. */
static double row_cut(const problem *p, double log_p) {
    double most = -INFINITY;
    for (int64_t c = 0; c < p->k; c++)
        if (p->weights[c] > 0) most = fmax(most, p->log_norm[c]);
    return p->params.cut / (1.0 + 2.0 * fmax(0.0, most - log_p - log(p->params.cut)));
}

static result reference(const problem *p) {
    result out = result_new(p);
    double *r = get((size_t)p->k * 8);
    const double *centres = p->params.sum_centres;
    for (int64_t i = 0; i < p->n; i++) {
        double w = p->row_weights ? p->row_weights[i] : 1.0;
        out.log_prob[i] = responsibilities(p, i, r);
        out.sums.log_likelihood += w * out.log_prob[i];
        out.sums.weight += w;
        double rho = p->params.hard ? 0.0 : row_cut(p, out.log_prob[i]);
        for (int64_t c = 0; c < p->k; c++) {
            double wr = w * r[c];
            out.sums.survivors += r[c] > rho * p->weights[c];
            if (wr <= 0) continue;
            out.s0[c] += wr;
            for (int64_t f = 0; f < p->d; f++) {
                double t = p->x[i * p->d + f] - centres[c * p->d + f];
                out.s1[c * p->d + f] += wr * t;
                out.s2[p->diag ? c * p->d + f : c] += wr * t * t;
            }
        }
    }
    free(r);
    return out;
}

static result run(const problem *p, const layout *given) {
    layout how = given ? *given : (layout){0};
    if (!how.stride) how.stride = p->d;
    if (!how.block_rows) how.block_rows = p->n;
    result out = result_new(p);
    char *data = stored(p, how.type, size_of(how.type), how.stride);
    OK(backend->begin(device, &p->params));
    for (int64_t first = 0; first < p->n; first += how.block_rows) {
        int64_t n = first + how.block_rows < p->n ? how.block_rows : p->n - first;
        fgmm_block *block = put(p, &how, data, first, n);
        OK(backend->estep(device, block, p->params.summed ? NULL : out.log_prob + first));
        backend->release(device, block);
    }
    OK(backend->collect(device, &out.sums));
    free(data);
    return out;
}

/* Rows that stay on the device through two passes, so that the second starts from what the first learned. */
static result run_again(const problem *p, int pass) {
    layout how = {.stride = p->d};
    char *data = stored(p, how.type, size_of(how.type), how.stride);
    fgmm_block *block = put(p, &how, data, 0, p->n);
    result out = {0};
    for (int i = 0; i <= pass; i++) {
        if (i) result_free(&out);
        out = result_new(p);
        OK(backend->begin(device, &p->params));
        OK(backend->estep(device, block, p->params.summed ? NULL : out.log_prob));
        OK(backend->collect(device, &out.sums));
    }
    backend->release(device, block);
    free(data);
    return out;
}

/* The contract of the precision (FGMM_EXACT, FGMM_FAST). Sums about a centre far from the new mean lose digits, which the library takes
 * back with a second pass about the new means; such components are left out here. */
static void check_contract(const problem *p, const result *got, const char *what) {
    result want = reference(p);
    const double e = p->params.precision == FGMM_FAST ? 2e-3 : 1e-5, *centres = p->params.sum_centres;
    double floor_n = p->params.cut * (double)p->n;
    ck_assert_msg(fabs(got->sums.log_likelihood - want.sums.log_likelihood) / want.sums.weight <=
                      e * fmax(1.0, fabs(want.sums.log_likelihood) / want.sums.weight),
                  "%s: likelihood %.9g, not %.9g", what, got->sums.log_likelihood, want.sums.log_likelihood);
    ck_assert_msg(fabs(got->sums.weight - want.sums.weight) <= 1e-6 * want.sums.weight, "%s: weight", what);
    /* Kept are all components with r/w above the row's cut, and no others but for rounding at the border. */
    ck_assert_msg(fabs(got->sums.survivors - want.sums.survivors) <= 2.0 + 1e-3 * want.sums.survivors,
                  "%s: %g survivors, not %g", what, got->sums.survivors, want.sums.survivors);
    for (int64_t c = 0; c < p->k; c++) {
        double n0 = got->s0[c], n1 = want.s0[c], spread = 0, sphere[2] = {0, 0};
        ck_assert_msg(fabs(n0 - n1) <= e * n1 + floor_n, "%s: N[%d] %.9g, not %.9g", what, (int)c, n0, n1);
        if (n1 < 1.0) continue;
        for (int64_t f = 0; f < p->d; f++) {
            double a = got->s1[c * p->d + f] / n0, b = want.s1[c * p->d + f] / n1;
            sphere[0] += a * a;
            sphere[1] += b * b;
        }
        if (!p->diag) spread = (want.s2[c] / n1 - sphere[1]) / (double)p->d;
        for (int64_t f = 0; f < p->d; f++) {
            double a = got->s1[c * p->d + f] / n0, b = want.s1[c * p->d + f] / n1;
            double var = p->diag ? want.s2[c * p->d + f] / n1 - b * b : spread;
            double var_got =
                p->diag ? got->s2[c * p->d + f] / n0 - a * a : (got->s2[c] / n0 - sphere[0]) / (double)p->d;
            double size = p->diag ? b * b : sphere[1] / (double)p->d;
            if (100.0 * var < size) continue; /* one row, a constant column, or a mean that moved far */
            ck_assert_msg(fabs(a - b) <= e * sqrt(var), "%s: mean[%d,%d] %.9g, not %.9g, sd %.3g, centre %.9g", what,
                          (int)c, (int)f, a, b, sqrt(var), centres[c * p->d + f]);
            if (size > 10.0 * var) continue;
            ck_assert_msg(fabs(var_got - var) <= e * var, "%s: variance[%d,%d] %.9g, not %.9g", what, (int)c, (int)f,
                          var_got, var);
        }
    }
    for (int64_t i = 0; i < p->n; i++)
        ck_assert_msg(fabs(got->log_prob[i] - want.log_prob[i]) <= e * fmax(1.0, fabs(want.log_prob[i])),
                      "%s: log p(x_%d) %.9g, not %.9g", what, (int)i, got->log_prob[i], want.log_prob[i]);
    result_free(&want);
}

static void check_both(problem *p, const char *name) {
    const fgmm_engine engines[] = {FGMM_ENGINE_SCREEN, FGMM_ENGINE_DENSE};
    for (int i = 0; i < 2; i++) {
        char what[128];
        snprintf(what, sizeof what, "%s %s %s", name, p->diag ? "diag" : "spherical", i ? "dense" : "screen");
        p->params.engine = engines[i];
        result got = run(p, NULL);
        check_contract(p, &got, what);
        if (i) ck_assert_msg(got.sums.dense_rows == (double)p->n, "%s: %g dense rows", what, got.sums.dense_rows);
        result_free(&got);
    }
}

/* ---- tests ---- */

START_TEST(shapes) {
    const int64_t sizes[][3] = {{3000, 5, 3},   {1500, 17, 33}, {700, 67, 65},  {300, 131, 129},
                                {2500, 1, 7},   {2500, 3, 1},   {40, 40, 4},    {1, 3, 5},
                                {100, 1030, 9}, {2100, 33, 16}, {1025, 64, 64}, {30, 2, 4096}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int diag = 0; diag < 2; diag++) {
            int64_t k = sizes[i][1], d = sizes[i][2], n = sized(sizes[i][0], k, d);
            char name[64];
            if ((double)(k * d) > 0.5 * scale_limit) continue; /* a simulator would take minutes */
            if (!takes(2 * i + (size_t)diag)) continue;
            snprintf(name, sizeof name, "n %d k %d d %d", (int)n, (int)k, (int)d);
            problem p = clusters(n, k, d, diag, 3.0, 1.0, 0.5);
            finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
            check_both(&p, name);
            problem_free(&p);
        }
}
END_TEST

/* Pairs of clusters of deviation 1e-3, 2e-3 apart, at distance 1e3 from the origin in six places. */
START_TEST(far_pairs) {
    for (int diag = 0; diag < 2; diag++) {
        int64_t n = sized(3000, 12, 5), k = 12, d = 5;
        problem p = problem_new(n, k, d, diag);
        for (int64_t c = 0; c < k; c++)
            for (int64_t f = 0; f < d; f++)
                p.means[c * d + f] = (f == (c / 2) % 3 ? ((c / 2) % 2 ? -1e3 : 1e3) : 0.0) + (c % 2 ? 1e-3 : -1e-3);
        for (int64_t i = 0; i < k * d; i++) p.variances[i] = 1e-6;
        for (int64_t i = 0; i < n; i++)
            for (int64_t f = 0; f < d; f++) {
                double where = p.means[(i % k) * d + f];
                p.x[i * d + f] = (float)(where + 1e-3 * normal());
            }
        for (int64_t i = 0; i < k * d; i++) p.means[i] += 2e-4 * normal();
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        check_both(&p, "far pairs");
        problem_free(&p);
    }
}
END_TEST

START_TEST(spread_variances) {
    for (int diag = 0; diag < 2; diag++) {
        int64_t n = sized(2000, 9, 6), k = 9, d = 6;
        problem p = problem_new(n, k, d, diag);
        for (int64_t c = 0; c < k; c++) {
            double deviation = pow(10.0, (double)(c % 5) - 2.0);
            for (int64_t f = 0; f < d; f++) p.means[c * d + f] = 3.0 * normal();
            for (int64_t f = 0; f < (diag ? d : 1); f++)
                p.variances[diag ? c * d + f : c] = deviation * deviation * (0.7 + 0.6 * uniform());
        }
        for (int64_t i = 0; i < n; i++)
            for (int64_t f = 0; f < d; f++)
                p.x[i * d + f] = (float)(p.means[(i % k) * d + f] + sqrt(variance_at(&p, i % k, f)) * normal());
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        check_both(&p, "variances over 8 orders");
        problem_free(&p);
    }
}
END_TEST

/* Duplicates, a constant column, weights of rows and of components that are zero. */
START_TEST(degenerate) {
    for (int diag = 0; diag < 2; diag++) {
        problem p = clusters(sized(1500, 7, 4), 7, 4, diag, 2.0, 1.0, 0.0);
        for (int64_t i = 0; i < p.n; i++) p.x[i * 4 + 1] = 5.0;
        for (int64_t i = 4; i < p.n; i += 2) memcpy(&p.x[i * 4], &p.x[(i % 4) * 4], 4 * 8);
        for (int64_t c = 0; c < p.k; c++) p.means[c * 4 + 1] = 5.0;
        p.weights[2] = 0.0;
        p.row_weights = get((size_t)p.n * 8);
        for (int64_t i = 0; i < p.n; i++) p.row_weights[i] = i % 3 ? uniform() * 3.0 : 0.0;
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        check_both(&p, "degenerate");
        problem_free(&p);
    }
}
END_TEST

/* Components so alike that lists of candidates overflow: rows go through the dense engine by themselves. */
START_TEST(overflow) {
    for (int diag = 0; diag < 2; diag++) {
        problem p = clusters(sized(2500, 70, 5), 70, 5, diag, 1.0, 0.4, 0.0);
        for (int64_t i = 0; i < 30 * 5; i++) p.means[i] = p.means[i % 5] + 0.1 * normal();
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        result got = run(&p, NULL);
        check_contract(&p, &got, "overflow");
        ck_assert_msg(got.sums.dense_rows > 0 && (p.n < 500 || got.sums.dense_rows < (double)p.n),
                      "%g of %d rows dense", got.sums.dense_rows, (int)p.n);
        result_free(&got);
        problem_free(&p);
    }
}
END_TEST

/* Sums about other centres than the means. */
START_TEST(other_centres) {
    problem p = clusters(sized(1500, 6, 9), 6, 9, 1, 2.0, 1.0, 0.0);
    double *centres = get(6 * 9 * 8);
    for (int i = 0; i < 6 * 9; i++) centres[i] = p.means[i] + 0.5;
    p.sums = centres;
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    check_both(&p, "other centres");
    problem_free(&p);
    free(centres);
}
END_TEST

START_TEST(hard) {
    for (int diag = 0; diag < 2; diag++) {
        problem p = clusters(sized(1500, 20, 6), 20, 6, diag, 2.0, 0.5, 0.0);
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        p.params.hard = 1;
        check_both(&p, "hard");
        problem_free(&p);
    }
}
END_TEST

/* The same bits, whatever the blocks; the second time with sums that have no superchunks, as of many components. */
START_TEST(blocks) {
    const fgmm_engine engines[] = {FGMM_ENGINE_SCREEN, FGMM_ENGINE_DENSE};
    device->as_of_many = _i;
    /* Of the fifth, a block goes on with a superchunk of 4096 rows and ends in the next. */
    for (int i = 0; i < 6; i++) {
        problem p = i < 2    ? clusters(sized(9000, 70, 5), 70, 5, 0, 1.0, 0.4, 0.0)
                    : i < 4  ? clusters(sized(9000, 3, 2), 3, 2, 1, 1.0, 0.4, 0.0)
                    : i == 4 ? clusters(sized(9000, 40, 2), 40, 2, 0, 9.0, 0.4, 0.0)
                             : clusters(sized(9000, 11, 8), 11, 8, 1, 4.0, 0.4, 0.0);
        for (int64_t c = 0; i < 2 && c < 30 * 5; c++) p.means[c] = p.means[c % 5] + 0.1 * normal();
        if (i == 5) weigh_rows(&p);
        finish(&p, i < 5 ? engines[i % 2] : FGMM_ENGINE_SCREEN, 1e-7);
        result one = run(&p, NULL);
        result many = run(&p, &(layout){.block_rows = 1024});
        result some = run(&p, &(layout){.block_rows = 3072});
        ck_assert(!_i == (device->engine->sparse.grain > 0));
        const result *others[] = {&many, &some};
        for (int j = 0; j < 2; j++) {
            same_bits(&p, &one, others[j], "blocks");
            ck_assert(one.sums.log_likelihood == others[j]->sums.log_likelihood);
        }
        check_contract(&p, &many, "blocks");
        result_free(&one);
        result_free(&many);
        result_free(&some);
        problem_free(&p);
    }
    device->as_of_many = 0;
}
END_TEST

/* Without the rows' own log-densities: the same sums to the bit, and a likelihood as near as it says, the same whatever the blocks and whatever was
 * learned of the rows. Some are alone with a component, some shared, and some are left to the dense engine. */
START_TEST(summed) {
    for (int i = 0; i < 4; i++) {
        problem p = clusters(sized(6000, 70, 9), 70, 9, i % 2, 1.0, 0.4, 0.0);
        for (int64_t c = 0; c < 40; c++)
            for (int f = 0; f < 9; f++) p.means[c * 9 + f] = p.means[(c < 20 ? 0 : c / 2 * 2) * 9 + f] + 0.1 * normal();
        weigh_rows(&p);
        finish(&p, FGMM_ENGINE_SCREEN, 1e-6);
        p.params.hard = i > 1;
        result exact = run(&p, NULL);
        p.params.summed = 1;
        result results[] = {run(&p, NULL), run(&p, &(layout){.block_rows = 2048}), run_again(&p, 1)};
        ck_assert(exact.sums.rounding == 0 && results[0].sums.rounding > 0);
        ck_assert(exact.sums.dense_rows < (double)p.n);
        for (int j = 0; j < 3; j++) {
            fgmm_sums *sums = &results[j].sums;
            memcpy(results[j].log_prob, exact.log_prob, (size_t)p.n * 8);
            same_bits(&p, &exact, &results[j], "summed");
            ck_assert(sums->log_likelihood == results[0].sums.log_likelihood);
            ck_assert(sums->survivors == exact.sums.survivors && sums->dense_rows == exact.sums.dense_rows);
            ck_assert(sums->dropped >= exact.sums.dropped);
        }
        double off = fabs(results[0].sums.log_likelihood - exact.sums.log_likelihood);
        ck_assert_msg(off <= results[0].sums.rounding, "%g off, %g promised", off, results[0].sums.rounding);
        for (int j = 0; j < 3; j++) result_free(&results[j]);
        result_free(&exact);
        problem_free(&p);
    }
}
END_TEST

/* Components so near to each other that f32 products tell them apart, also far from the origin, and of rows less a
 * centre; the same bits, whatever the blocks. */
START_TEST(near_components) {
    for (int i = 0; i < 4; i++) {
        double offset = i < 2 ? 0.0 : 300.0;
        problem p = clusters(sized(5000, 20, 36), 20, 36, i % 2, 0.2, 1.0, offset);
        for (int c = 0; c < 20 * 36; c++) p.means[c] = offset + 0.5 * (p.means[c] - offset); /* near, however drawn */
        p.row_weights = get((size_t)p.n * 8);
        for (int64_t j = 0; j < p.n; j++) p.row_weights[j] = 0.5 + uniform();
        finish(&p, FGMM_ENGINE_DENSE, 1e-7);
        double centre[36];
        for (int f = 0; f < 36; f++) centre[f] = i < 2 ? 0.1 : 300.1;
        result one = run(&p, NULL), many = run(&p, &(layout){.block_rows = 2048});
        result less = run(&p, &(layout){.type = FGMM_F64, .stride = 37, .centre = centre});
        ck_assert(device->engine->near);
        same_bits(&p, &one, &many, "near");
        if (p.n == 5000) { /* else a component may be hardly more than a row */
            ck_assert(!one.sums.imprecise);
            check_contract(&p, &one, "near");
            check_contract(&p, &less, "near, less a centre");
        }
        result_free(&one);
        result_free(&many);
        result_free(&less);
        problem_free(&p);
    }
}
END_TEST

/* A quick pass says that it is imprecise, and a careful one is right. */
static void check_says_so(problem *p) {
    result quick = run(p, NULL);
    ck_assert(quick.sums.imprecise);
    p->params.careful = 1;
    result careful = run(p, NULL);
    ck_assert(!careful.sums.imprecise);
    check_contract(p, &careful, "careful");
    result_free(&quick);
    result_free(&careful);
    problem_free(p);
}

/* Clusters far tighter than the model's: sums about one centre cannot tell their variance, and say so. */
START_TEST(near_but_narrow) {
    for (int diag = 0; diag < 2; diag++) {
        problem p = problem_new(sized(1000, 4, 16), 4, 16, diag);
        for (int64_t i = 0; i < 4 * 16; i++) p.means[i] = uniform() < 0.5 ? -6.0 : 6.0;
        for (int64_t i = 0; i < p.n * 16; i++) p.x[i] = (float)(p.means[i / 16 % 4 * 16 + i % 16] + 1e-3 * normal());
        for (int64_t i = 0; i < (diag ? 4 * 16 : 4); i++) p.variances[i] = 36.0;
        finish(&p, FGMM_ENGINE_DENSE, 1e-15);
        check_says_so(&p);
    }
}
END_TEST

/* Near components and a row so far off that f32 products about their centre say nothing of it: that is said, and a careful pass is
 * right. */
START_TEST(near_but_far) {
    for (int64_t k = 20; k <= 40; k += 20) { /* 40: enough for matrix units, where there are any */
        problem p = clusters(sized(3000, k, 24), k, 24, 0, 0.2, 1.0, 0.0);
        for (int64_t c = 0; k == 40 && c < k; c++) p.variances[c] = 0.9 + 0.2 * uniform();
        for (int64_t f = 0; f < 24; f++) p.x[7 * 24 + f] = (float)(1e6 * normal());
        finish(&p, FGMM_ENGINE_DENSE, 1e-7);
        result quick = run(&p, NULL);
        ck_assert(device->engine->near);
        result_free(&quick);
        check_says_so(&p);
    }
}
END_TEST

/* The dense engine on matrix units against doubles, on each kind of unit that the device has, in both precisions: depths that fill steps, blocks
 * and work-groups and that do not, one and several tiles of components, a last tile of rows that is not full; the same bits, whatever the blocks. A
 * component that has hardly more than a row makes a pass imprecise, which the library repeats: few do. */
START_TEST(near_on_matrix_units) {
    const int64_t depths[] = {16, 37, 64, 100, 128, 129, 200}, counts[] = {33, 150, 128, 130, 200, 64, 40};
    int had = device->pairs, cases = 0, compared = 0, single = 0;
    if (!had) printf("skipped: near_on_matrix_units, the device has none\n");
    for (int level = had; level > CL_MATRIX_NONE; level--)
        for (int i = 0; i < 32; i++) {
            int fast = i / 16, diag = i / 8 % 2, j = i % 8;
            int64_t d = j < 7 ? depths[j] : 20, k = j < 7 ? counts[j] : 1100, n = 2500;
            if (diag && d > 128) continue;
            double offset = j % 2 ? 300.0 : 0.0;
            problem p = clusters(n, k, d, diag, 0.2, 1.0, offset);
            char what[80];
            snprintf(what, sizeof what, "level %d, %s, diag %d, K = %d, D = %d", level, fast ? "fast" : "exact", diag,
                     (int)k, (int)d);
            for (int64_t c = 0; c < (diag ? k * d : k); c++) p.variances[c] = 0.9 + 0.2 * uniform();
            /* Diagonal ones: near in each feature, however drawn, though a component's weight make the centre its own mean. */
            for (int64_t c = 0; (fast || diag) && c < k * d; c++) p.means[c] = offset + 0.5 * (p.means[c] - offset);
            if (j == 2)
                for (int64_t c = 0; c < k; c++) p.weights[c] = exp(4.0 * normal());
            if (j == 3) p.row_weights = get((size_t)n * 8); /* the f32 kernels, in the same groups */
            for (int64_t r = 0; j == 3 && r < n; r++) p.row_weights[r] = 0.5 + uniform();
            finish(&p, FGMM_ENGINE_DENSE, fast ? 1e-6 : 1e-7);
            p.params.precision = fast ? FGMM_FAST : FGMM_EXACT;
            device->pairs = level;
            result one = run(&p, NULL), many = run(&p, &(layout){.block_rows = 1024, .stride = d + 1});
            ck_assert_msg(device->engine->pairs.on == level, "%s: did not run", what);
            ck_assert_msg(fast || device->engine->pairs.halves == 2, "%s: ran by single f16", what);
            single += device->engine->pairs.halves == 1;
            device->pairs = had;
            same_bits(&p, &one, &many, what);
            cases++;
            compared += !one.sums.imprecise;
            if (!one.sums.imprecise) check_contract(&p, &one, what);
            result_free(&one);
            result_free(&many);
            problem_free(&p);
        }
    ck_assert_msg(4 * compared >= 3 * cases, "only %d of %d could be compared", compared, cases);
    ck_assert_msg(8 * single >= 3 * cases, "only %d of %d ran by single f16", single,
                  cases); /* of which fast ones are half */
}
END_TEST

/* What single f16 round alike in all rows, in fast precision: means that differ in one to three features, of rows that are continuous; and rows of zeros
 * and ones, whose squares are a variance's. */
START_TEST(near_by_single_f16) {
    const int64_t features[] = {1, 3, 1, 0}, n = 20000, k = 64, d = 32;
    if (!device->pairs) printf("skipped: near_by_single_f16, the device has no matrix units\n");
    if (!device->pairs) return;
    for (int i = 0; i < 4; i++) {
        int ones = features[i] == 0, diag = ones || i == 2;
        problem p = problem_new(n, k, d, diag);
        for (int64_t c = 0; c < k; c++)
            for (int64_t f = 0; f < d; f++) {
                double line = (2.0 * (double)c / (double)(k - 1) - 1.0) * (diag ? 0.95 : 3.9), ring = 2.0 * normal();
                p.means[c * d + f] = ones               ? 0.2 + 0.1 * uniform()
                                     : f >= features[i] ? 0.0
                                     : features[i] == 1 ? line
                                                        : fmax(-2.0, fmin(2.0, ring));
                if (diag || f == 0) p.variances[diag ? c * d + f : c] = ones ? 0.1875 : 1.0;
            }
        for (int64_t r = 0; r < n; r++)
            for (int64_t f = 0; f < d; f++) {
                double mean = p.means[r % k * d + f];
                p.x[r * d + f] = ones ? uniform() < mean : (float)(mean + normal());
            }
        finish(&p, FGMM_ENGINE_DENSE, 1e-6);
        p.params.precision = FGMM_FAST;
        result got = run(&p, NULL);
        char what[64];
        snprintf(what, sizeof what, "means differ in %d features, diag %d", (int)features[i], diag);
        ck_assert_msg(device->engine->pairs.halves == 1, "%s: did not run by single f16", what);
        ck_assert_msg(!got.sums.imprecise, "%s: imprecise", what);
        check_contract(&p, &got, what);
        result_free(&got);
        problem_free(&p);
    }
}
END_TEST

/* Two clumps, alike but on either side of the centre: near it in each feature, and yet with products of hundreds, too large for the
 * steps of a matrix unit. */
START_TEST(near_on_two_sides) {
    int64_t k = 64, d = 128, n = 2500; /* fewer leave components with hardly more than a row */
    if (scale_limit < 5e5) return;     /* a slow device */
    problem p = clusters(n, k, d, 1, 0.0, 1.0, 0.0);
    for (int64_t c = 0; c < k; c++) {
        double radius = (c % 2 ? -1.35 : 1.35) * (0.97 + 0.06 * uniform());
        for (int64_t f = 0; f < d; f++) {
            p.means[c * d + f] = radius + 0.1 * normal();
            p.variances[c * d + f] = 0.98 + 0.04 * uniform();
        }
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t f = 0; f < d; f++) p.x[i * d + f] = (float)(p.means[i % k * d + f] + normal());
    finish(&p, FGMM_ENGINE_DENSE, 1e-7);
    result got = run(&p, NULL);
    check_contract(&p, &got, "two sides");
    result_free(&got);
    problem_free(&p);
}
END_TEST

/* The rounding bound by brute force: a component that matters and that the screen on matrix units lost would change the sums, which
 * are those of the f32 screen's lists, to the bit. Depths that a warp keeps and that it does not; likely, crowded, tight and far-off
 * clusters; some rows that f16 cannot hold. Without such units: that a second pass changes nothing. */
START_TEST(screens_agree) {
    const int64_t depths[] = {3, 17, 64, 100, 128, 129, 300};
    const double spreads[] = {2.0, 0.3, 1.0, 1.0}, noises[] = {1.0, 0.6, 1e-3, 0.3}, offsets[] = {0.0, 5.0, 30.0, 0.0};
    int had = device->has_matrix, compared = 0, cases = 0;
    for (int i = 0; i < 4 * 2 * (int)(sizeof depths / sizeof *depths); i++) {
        if (!had && !takes((size_t)i)) continue;
        cases++;
        int diag = i % 2, kind = (int)(i / 2 % 4);
        int64_t d = depths[i / 8], k = 150, n = sized(1500, k, d);
        problem p = clusters(n, k, d, diag, spreads[kind], noises[kind], offsets[kind]);
        for (int64_t j = 0; kind == 3 && j < n; j += 7) p.x[j * d] = (float)(1e3 * normal());
        if (kind == 3)
            for (int64_t c = 0; c < k; c++) p.weights[c] = exp(6.0 * normal());
        finish(&p, FGMM_ENGINE_SCREEN, 1e-8);
        char what[64];
        snprintf(what, sizeof what, "D = %d, diag %d, kind %d", (int)d, diag, kind);
        /* Half of the cases on the matrix units' other kernel, where there are two. */
        device->has_matrix = had > 1 && cases % 4 > 1 ? had - 1 : had;
        result first = run_again(&p, 0), second = run_again(&p, 1);
        device->has_matrix = 0;
        result plain = run_again(&p, 0);
        device->has_matrix = had;
        /* Which rows the dense engine takes may differ by one or two at the border, and with them the order of sums. */
        compared += first.sums.dense_rows == plain.sums.dense_rows;
        if (first.sums.dense_rows == plain.sums.dense_rows) same_bits(&p, &first, &plain, what);
        if (second.sums.dense_rows == plain.sums.dense_rows) same_bits(&p, &second, &plain, what);
        ck_assert_msg(fabs(first.sums.dense_rows - plain.sums.dense_rows) <= 2.0 + 0.02 * (double)n,
                      "%s: %g and %g dense rows", what, first.sums.dense_rows, plain.sums.dense_rows);
        if (kind == 0) check_contract(&p, &second, what);
        result_free(&first);
        result_free(&second);
        result_free(&plain);
        problem_free(&p);
    }
    ck_assert_msg(cases == 0 || 2 * compared > cases, "only %d of %d could be compared", compared, cases);
}
END_TEST

START_TEST(types) {
    const fgmm_dtype all[] = {FGMM_F32, FGMM_F64, FGMM_F16, FGMM_BF16, FGMM_U8, FGMM_I8};
    for (size_t t = 0; t < sizeof all / sizeof *all; t++) {
        int64_t d = 7;
        problem p = clusters(sized(1200, 5, d), 5, d, 1, 20.0, 6.0, 100.0);
        double centre[7];
        for (int64_t f = 0; f < d; f++) centre[f] = all[t] == FGMM_F64 ? 1e6 + 0.1 * (double)f : 0.0;
        for (int64_t i = 0; i < p.n * d; i++) {
            double x = round(p.x[i]);
            double least = all[t] == FGMM_I8 ? -128 : 0, most = all[t] == FGMM_I8 ? 127 : 255;
            p.x[i] = x < least ? least : x > most ? most : x;
            if (all[t] == FGMM_F64) p.x[i] += 1e6 + 0.1 * (double)(i % d) + 0.25;
        }
        for (int64_t i = 0; all[t] == FGMM_F64 && i < p.k * d; i++) p.means[i] += 1e6;
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        for (int e = 0; e < 2; e++) {
            p.params.engine = e ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN;
            result got = run(&p, &(layout){.type = all[t],
                                           .stride = d + 3 * (int64_t)(t % 2),
                                           .centre = all[t] == FGMM_F64 ? centre : NULL});
            char what[64];
            snprintf(what, sizeof what, "type %d, engine %d", (int)all[t], e);
            check_contract(&p, &got, what);
            result_free(&got);
        }
        problem_free(&p);
    }
}
END_TEST

/* A pass over rows of any type runs no program that the test did not. */
START_TEST(tested_programs) {
    const fgmm_dtype all[] = {FGMM_F32, FGMM_F16, FGMM_BF16, FGMM_U8, FGMM_I8};
    const int64_t k = 70, d = 24, n = 600;
    const cl_opened *opened = cl_opened_of(device);
    if (scale_limit < 1e6) return; /* a slow device */
    for (int i = 0; i < 10; i++) {
        problem p = clusters(n, k, d, i % 2, 12.0, 1.0, 0.0);
        for (int64_t j = 0; j < n * d; j++) p.x[j] = fmax(0.0, fmin(round(p.x[j] + 60.0), 120.0));
        for (int64_t j = 0; j < k * d; j++) p.means[j] += 60.0;
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        cl_engine_free(device);
        cl_kernels_free(device);
        memset(device->passed, 0, sizeof device->passed);
        OK(backend->trust(device, i % 2 ? FGMM_DIAG : FGMM_SPHERICAL, d, all[i / 2]));
        int ready = opened->programs_built + opened->cache_hits;
        for (p.params.summed = 0; p.params.summed < 2; p.params.summed++) {
            result got = run(&p, &(layout){.type = all[i / 2], .kept = 1});
            ck_assert(got.sums.dense_rows == 0);
            result_free(&got);
        }
        ck_assert_msg(opened->programs_built + opened->cache_hits == ready, "type %d: others were built",
                      (int)all[i / 2]);
        problem_free(&p);
    }
}
END_TEST

static void check_assign(const problem *p, int m) {
    size_t n = (size_t)p->n, k = (size_t)p->k, top = (size_t)m;
    int32_t *ids = get(n * top * 4);
    float *resp = get(n * top * 4);
    double *log_prob = get(n * 8), *r = get(k * 8);
    char *data = stored(p, FGMM_F32, 4, p->d);
    fgmm_block *block = put(p, &(layout){.stride = p->d}, data, 0, p->n);
    OK(backend->begin(device, &p->params));
    OK(backend->assign(device, block, m, ids, resp, log_prob));
    backend->release(device, block);
    for (size_t i = 0; i < n; i++) {
        double want = responsibilities(p, (int64_t)i, r), last = 2.0;
        ck_assert_msg(fabs(log_prob[i] - want) <= 1e-5 * fmax(1.0, fabs(want)), "row %zu: %g, not %g", i, log_prob[i],
                      want);
        for (size_t j = 0; j < top; j++) {
            int32_t id = ids[i * top + j];
            double mine = resp[i * top + j], most = 0;
            for (size_t c = 0; c < k; c++)
                if (r[c] > most) most = r[c]; /* what is left, best first */
            if (id < 0) {
                ck_assert(mine == 0.0 && j > 0);
                ck_assert_msg(most <= 2e-7, "row %zu: %g left out at place %zu", i, most, j);
                continue;
            }
            ck_assert_msg(fabs(mine - r[id]) <= 2e-6 + 1e-5 * r[id], "row %zu: r %g, not %g", i, mine, r[id]);
            ck_assert_msg(r[id] >= most - 4e-6, "row %zu: %g before %g", i, r[id], most);
            ck_assert(mine <= last);
            last = mine;
            r[id] = -1.0;
        }
    }
    free(ids);
    free(resp);
    free(log_prob);
    free(r);
    free(data);
}

START_TEST(assign) {
    for (int i = 0; i < 4; i++) {
        problem p = clusters(sized(600, i < 2 ? 70 : 5, 5), i < 2 ? 70 : 5, 5, i % 2, 1.0, 0.4, 0.0);
        for (int64_t c = 0; i < 2 && c < 30 * 5; c++) p.means[c] = p.means[c % 5] + 0.1 * normal();
        p.weights[1] = 0.0;
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        check_assign(&p, 1);
        check_assign(&p, 10);
        p.params.engine = FGMM_ENGINE_DENSE;
        check_assign(&p, 64);
        problem_free(&p);
    }
    if (scale_limit < 1e5) return;
    problem p = clusters(20, 2100, 2, 0, 1.0, 0.4, 0.0); /* three tiles of components */
    finish(&p, FGMM_ENGINE_DENSE, 1e-7);
    check_assign(&p, 20);
    problem_free(&p);
}
END_TEST

START_TEST(moments) {
    int64_t n = sized(5000, 1, 11), d = 11;
    problem p = clusters(n, 1, d, 1, 2.0, 1.0, 1e3);
    double sum[11] = {0}, square[11] = {0}, want_sum[11] = {0}, want_square[11] = {0}, weight = 0;
    p.row_weights = get((size_t)n * 8);
    for (int64_t i = 0; i < n; i++) p.row_weights[i] = uniform();
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    p.x[5 * d + 3] = NAN;
    p.x[5 * d + 7] = INFINITY;
    p.x[2 * d + 9] = -INFINITY;
    char *data = stored(&p, FGMM_F32, 4, d);
    fgmm_block *block = put(&p, &(layout){.stride = d}, data, 0, n);
    fgmm_moments io = {.sum = sum, .square = square, .bad_row = -1};
    OK(backend->moments(device, block, p.centre, &io));
    for (int64_t i = 0; i < n; i++) {
        if (i == 5 || i == 2) continue;
        weight += p.row_weights[i];
        for (int64_t f = 0; f < d; f++) {
            double t = p.x[i * d + f] - p.centre[f];
            want_sum[f] += p.row_weights[i] * t;
            want_square[f] += p.row_weights[i] * t * t;
        }
    }
    ck_assert_int_eq(io.bad_row, 2);
    ck_assert_int_eq(io.bad_column, 9);
    ck_assert_int_eq(io.bad_count, 2);
    ck_assert(fabs(io.weight - weight) <= 1e-6 * weight);
    for (int64_t f = 0; f < d; f++) {
        ck_assert(fabs(sum[f] - want_sum[f]) <= 1e-6 * sqrt(want_square[f] * weight));
        ck_assert(fabs(square[f] - want_square[f]) <= 1e-6 * want_square[f]);
    }
    const int64_t rows[] = {n - 1, 0, 7, 7};
    double out[4 * 11];
    OK(backend->gather(device, block, rows, 4, out));
    for (int i = 0; i < 4; i++)
        for (int64_t f = 0; f < d; f++) ck_assert(out[i * d + f] == p.x[rows[i] * d + f]);
    backend->release(device, block);
    free(data);
    problem_free(&p);
}
END_TEST

static void add_tests(TCase *tests) {
    tcase_add_test(tests, shapes);
    tcase_add_test(tests, far_pairs);
    tcase_add_test(tests, spread_variances);
    tcase_add_test(tests, degenerate);
    tcase_add_test(tests, overflow);
    tcase_add_test(tests, other_centres);
    tcase_add_test(tests, hard);
    tcase_add_loop_test(tests, blocks, 0, 2);
    tcase_add_test(tests, summed);
    tcase_add_test(tests, near_components);
    tcase_add_test(tests, near_but_narrow);
    tcase_add_test(tests, near_but_far);
    tcase_add_test(tests, near_on_matrix_units);
    tcase_add_test(tests, near_by_single_f16);
    tcase_add_test(tests, near_on_two_sides);
    tcase_add_test(tests, screens_agree);
    tcase_add_test(tests, types);
    tcase_add_test(tests, tested_programs);
    tcase_add_test(tests, assign);
    tcase_add_test(tests, moments);
}

int main(void) {
    return run_room("cl_engine", "engine", add_tests);
}
