/* Rows that the OpenCL engine settles without a screen, against the same rows with one, to the bit.
 * Device: FLASHGMM_TEST_DEVICE = "opencl:NAME", or any; FLASHGMM_TEST_SCALE bounds N * K * D. */
#include "cl_problem.h"

/* depths.clh as C. */
typedef struct float4 {
    float x, y, z, w;
} float4;

static uint32_t as_uint(float value) {
    uint32_t out;
    memcpy(&out, &value, sizeof out);
    return out;
}

static float as_float(uint32_t value) {
    float out;
    memcpy(&out, &value, sizeof out);
    return out;
}
#define uint uint32_t
#define fmax fmaxf
#define fmin fminf
#define fabs fabsf
#include "../cl/depths.clh"
#undef uint
#undef fmax
#undef fmin
#undef fabs

/* The order of a model's components turned round, so that what was learned of rows is of other components. */
static void turn_round(problem *p) {
    for (int64_t c = 0; c < p->k / 2; c++) {
        int64_t other = p->k - 1 - c;
        for (int64_t f = 0; f < p->d; f++) {
            double mean = p->means[c * p->d + f];
            p->means[c * p->d + f] = p->means[other * p->d + f];
            p->means[other * p->d + f] = mean;
        }
    }
}

/* The model after so many passes, by turns: all moves a little; means move more; every other variance shrinks; all grow, as they do before the last pass. */
static void move_on(problem *p, int pass) {
    uint32_t state = 1000003u * (uint32_t)pass;
    double size = pass % 5 == 2 ? 0.3 : 0.01, grown = pass % 5 == 0 ? 1.7 : 1.0;
    for (int64_t i = 0; i < p->k * p->d; i++) {
        state = state * 1664525u + 1013904223u;
        double part = (state >> 8) * 0x1p-24 - 0.5, deviation = sqrt(variance_at(p, i / p->d, i % p->d));
        double factor = pass % 5 == 3 && i / p->d % 2 ? 0.25 : grown;
        p->means[i] += size * part * deviation;
        if (p->diag || i % p->d == 0) p->variances[p->diag ? i : i / p->d] *= factor * (1.0 + size * part);
    }
    fgmm_params old = p->params;
    finish(p, old.engine, old.cut);
    p->params.hard = old.hard;
    p->params.summed = old.summed;
}

enum { PASSES = 6 };

/* A model that passes move, as it was. */
typedef struct kept_model {
    double *means, *variances, *weights;
} kept_model;

static kept_model keep_model(const problem *p) {
    size_t cells = (size_t)(p->k * p->d) * 8, k = (size_t)p->k * 8;
    kept_model kept = {get(cells), get(cells), get(k)};
    memcpy(kept.means, p->means, cells);
    memcpy(kept.variances, p->variances, cells);
    memcpy(kept.weights, p->weights, k);
    return kept;
}

static void give_back(problem *p, kept_model *kept) {
    size_t cells = (size_t)(p->k * p->d) * 8;
    memcpy(p->means, kept->means, cells);
    memcpy(p->variances, kept->variances, cells);
    memcpy(p->weights, kept->weights, (size_t)p->k * 8);
    free(kept->means);
    free(kept->variances);
    free(kept->weights);
}

/* Passes over blocks that stay on the device, each from what the one before learned, as the model moves on; the last of one with other numbers if
 * `turned`. *tried, *left: rows that might have been settled in it, and were not. */
static result run_settling(problem *p, int64_t from, int64_t block_rows, int turned, double *tried, double *left) {
    enum { BLOCKS = 8 };
    fgmm_block *held[BLOCKS];
    layout how = {.type = p->type, .stride = p->d, .kept = p->diag ? 2 : 1};
    int64_t usual = device->settle_from;
    char *data = stored(p, how.type, size_of(how.type), how.stride);
    kept_model kept = keep_model(p);
    result out = {0};
    device->settle_from = from;
    int64_t n_blocks = put_all(p, &how, data, block_rows, held);
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass) result_free(&out);
        out = result_new(p);
        if (pass) move_on(p, pass);
        if (pass == PASSES - 1 && turned) turn_round(p);
        begin_settling(&p->params);
        for (int64_t i = 0; i < n_blocks; i++)
            OK(backend->estep(device, held[i], p->params.summed ? NULL : out.log_prob + i * block_rows));
        *tried = device->engine->tried;
        OK(backend->collect(device, &out.sums));
        *left = device->engine->left_over;
    }
    give_back(p, &kept);
    for (int64_t i = 0; i < n_blocks; i++) backend->release(device, held[i]);
    device->settle_from = usual;
    free(data);
    return out;
}

/* What is kept of a row is no less than its distance and no more than its depth, by little, and nothing where a word cannot hold that. */
START_TEST(words_keep_bounds) {
    const float ends[] = {0.0f,     0x1p-9f,  0x1p-8f, 1.0f,  0x1.fffffep0f, 254.9999f, 255.0f, 65519.0f,
                          65520.0f, 65535.0f, 7e4f,    3e38f, INFINITY,      NAN,       -1.0f};
    enum { ENDS = sizeof ends / sizeof *ends, COUNT = 20000 };
    for (int i = 0; i < COUNT; i++) {
        float s = i < ENDS * ENDS ? ends[i / ENDS] : (float)exp2(20.0 * uniform() - 10.0);
        float z = i < ENDS * ENDS ? ends[i % ENDS] : (float)exp2(20.0 * uniform() - 2.0);
        float far = kept_s(keep(s, z)), deep = kept_z(keep(s, z));
        if (s < 255.0f)
            ck_assert_msg(far >= s && far <= fmaxf(s, 0x1p-8f) * (1.0f + 0x1p-13f), "s %a: %a", s, far);
        else
            ck_assert_msg(far == INFINITY, "s %a: %a", s, far);
        if (z >= 1.0f + 0x1p-11f)
            ck_assert_msg(deep <= z && deep >= fminf(z, 65535.0f) * (1.0f - 0x1p-11f), "z %a: %a", z, deep);
        else
            ck_assert_msg(isnan(deep), "z %a: %a", z, deep);
        if (z >= 1.0f + 0x1p-11f) ck_assert(depth_bucket(deep) < DEPTHS && depth_edge(depth_bucket(deep)) <= deep);
    }
}
END_TEST

static const int64_t settled_depths[] = {1, 2, 3, 17, 64, 130, 600};

/* Rows of which a few lie far from everything; by turns components up to 11 times as wide as others, tight clusters far from the
 * origin, or of 1e-6 of their distance from it, very unlike weights, few components, rows of weight and rows stored as bf16 or u8. */
static problem settled_problem(int i) {
    int diag = i % 2, kind = i / 2 % 7;
    int64_t d = settled_depths[i / 14], k = kind == 6 ? 1 + i / 14 % 3 : d < 3 ? 40 : 90, n = sized(3000, k, d);
    double spread = (d < 3 ? 100.0 : d == 3 ? 12.0 : 3.0) * (kind == 1 ? 0.3 : 1.0);
    double noise = kind == 3 ? 1e-3 : kind == 5 ? 1e-4 : 1.0, offset = kind == 3 ? 9.0 : kind == 5 ? 90.0 : 0.0;
    fgmm_dtype type = kind == 1 ? FGMM_BF16 : kind == 0 && i / 14 % 2 ? FGMM_U8 : FGMM_F32;
    if (type == FGMM_U8) spread *= 9.0, noise = 4.0, offset = 120.0;
    if (noise < 1.0) spread *= noise;
    problem p = clusters(n, k, d, diag, spread, noise, offset);
    p.type = type;
    for (int64_t j = 0; j < n; j += 9)
        for (int64_t f = 0; f < d; f++) p.x[j * d + f] += 8.0 * noise * normal();
    for (int64_t j = 0; type != FGMM_F32 && j < n * d; j++) p.x[j] = fmin(255.0, fmax(0.0, round(p.x[j])));
    for (int64_t j = 0; kind == 2 && j < k * (diag ? d : 1); j++) p.variances[j] *= exp2(floor(8.0 * uniform()));
    for (int64_t c = 0; kind == 4 && c < k; c++) p.weights[c] = exp(9.0 * normal());
    if (kind == 4) weigh_rows(&p);
    finish(&p, FGMM_ENGINE_SCREEN, kind == 2 ? 1e-20 : 1e-7);
    p.params.hard = i % 3 == 0;
    p.params.summed = 1;
    return p;
}

/* Runs passes with and without settling, which must give the same sums and totals, to the bit. *tried, *left: as of run_settling, with it. */
static void settles_alike(problem *p, int64_t block_rows, int turned, const char *what, double *tried, double *left) {
    result screened = run_settling(p, INT64_MAX, p->n, turned, tried, left);
    ck_assert_msg(*tried == 0.0, "%s: tried", what);
    result got = run_settling(p, 0, block_rows, turned, tried, left);
    same_bits(p, &screened, &got, what);
    ck_assert_msg(memcmp(&screened.sums.log_likelihood, &got.sums.log_likelihood, sizeof(double)) == 0 &&
                      screened.sums.survivors == got.sums.survivors && screened.sums.dense_rows == got.sums.dense_rows,
                  "%s: other totals", what);
    result_free(&screened);
    result_free(&got);
}

/* Rows that are settled without a screen have the sums that they have with one, to the bit, whatever the blocks and whether what was
 * learned is of the same model: brute force for the bounds of reach.cl and settle.cl. In one dimension they are tight, and rows lie on both sides.
 */
START_TEST(settled) {
    int had = device->has_matrix, cases = 0;
    double near = 0.0, left = 0.0;
    for (int i = 0; i < 14 * (int)(sizeof settled_depths / sizeof *settled_depths); i++) {
        if (!takes((size_t)i)) continue;
        problem p = settled_problem(i);
        char what[64];
        snprintf(what, sizeof what, "D = %d, diag %d, kind %d", (int)p.d, p.diag, i / 2 % 7);
        /* Some of the cases on the matrix units' other kernel, where there are two. */
        device->has_matrix = had > 1 && i % 4 > 1 ? had - 1 : had;
        /* And some with sums that have no superchunks, as of many components. */
        device->as_of_many = i % 5 == 0;
        for (int turned = 0; turned < 2; turned++) {
            double tried, kept;
            settles_alike(&p, p.n > 2048 ? 1024 : p.n, turned, what, &tried, &kept);
            ck_assert_msg(tried == (double)p.n, "%s: %g rows tried", what, tried);
            if (!turned) near += tried - kept, left += kept;
        }
        device->has_matrix = had;
        device->as_of_many = 0;
        cases++;
        problem_free(&p);
    }
    if (cases < 30) return; /* a short run */
    ck_assert_msg(near > 0.25 * (near + left) && left > 0.05 * (near + left), "%g rows settled, %g left", near, left);
}
END_TEST

/* Distances between components that no float holds settle nothing, nor do rows so far from one or two that squares overflow. */
START_TEST(settling_overflows) {
    problem p = problem_new(64, 1 + _i / 2, 1, 0);
    for (int64_t c = 0; c < p.k; c++) p.means[c] = 1.9e19 * (double)c, p.variances[c] = _i % 2 ? 2.5e37 : 1.0;
    for (int64_t i = 0; i < 64; i++) p.x[i] = (float)(9.5e18 * (1.0 + 0.1 * normal()));
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    double tried, left;
    p.params.summed = 1;
    settles_alike(&p, p.n, 0, "overflow", &tried, &left);
    problem_free(&p);
}
END_TEST

/* A slice grows where few of its rows take places, and where more do than there are is cut again: of eight parts of these rows, two lie between
 * their components. */
START_TEST(settling_makes_room) {
    problem one = clusters(64, 24, 2, _i, 90.0, 1.0, 0.0);
    finish(&one, FGMM_ENGINE_SCREEN, 1e-7);
    OK(backend->begin(device, &one.params));
    int64_t places = cl_slice_rows(device), n = 5 * places + 1000;
    problem_free(&one);
    if (sized(n, 24, 2) < n) return;
    problem p = clusters(n, 24, 2, _i, 90.0, 1.0, 0.0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t f = 0; f < 2 && 8 * i / n % 4 == 2; f++)
            p.x[2 * i + f] = 0.5 * (p.means[2 * (i % 24) + f] + p.means[2 * ((i + 1 + i % 3) % 24) + f]) + normal();
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    p.params.summed = 1;
    double tried, left;
    settles_alike(&p, n, 0, "long slices", &tried, &left);
    ck_assert_msg(tried == (double)n, "%g of %g rows tried", tried, (double)n);
    ck_assert_msg(left < 0.5 * tried, "%g of %g rows left", left, tried);
    problem_free(&p);
}
END_TEST

/* Whatever length is asked for, and whatever sums are kept, slices end with chunks of rows. */
START_TEST(slices_end_with_chunks) {
    cl_engine engine = {.k = 1};
    fgmm_block block = {.n = 5000000, .first_row = 3 * 1024};
    for (int64_t most = 1024; most < 1200000; most += 100001)
        for (engine.sparse.grain = 0; engine.sparse.grain <= 65536;
             engine.sparse.grain = engine.sparse.grain ? 8 * engine.sparse.grain : 1024) {
            cl_slice slice = cl_slice_at(&engine, &block, 7 * 1024, most);
            ck_assert(slice.n > 0 && slice.n <= most && slice.n % 1024 == 0);
        }
}
END_TEST

enum { PARTS = 4 };

/* Sums of a pass over blocks in this order, -1 where it ends, after one over all of them. */
static result run_parts(problem *p, const layout *how, const char *data, const int *order, int64_t from) {
    fgmm_block *parts[PARTS];
    int64_t usual = device->settle_from;
    result out = {0};
    device->settle_from = from;
    for (int64_t i = 0; i < PARTS; i++) {
        int64_t first = i * how->block_rows, left = p->n - first;
        parts[i] = put(p, how, data, first, left < how->block_rows ? left : how->block_rows);
    }
    for (int pass = 0; pass < 2; pass++) {
        if (pass) result_free(&out);
        out = result_new(p);
        begin_settling(&p->params);
        for (int i = 0; i < PARTS && (!pass || order[i] >= 0); i++)
            OK(backend->estep(device, parts[pass ? order[i] : i], NULL));
        OK(backend->collect(device, &out.sums));
    }
    /* A pass may be given up, with blocks that it had been given. */
    OK(backend->begin(device, &p->params));
    OK(backend->estep(device, parts[0], NULL));
    for (int i = 0; i < PARTS; i++) backend->release(device, parts[i]);
    device->settle_from = usual;
    return out;
}

/* Blocks that stay are taken as one where a pass goes through them, and one by one where it does not: the sums are the same. */
START_TEST(stretches) {
    static const int orders[][PARTS] = {{0, 1, 2, 3}, {0, 1, -1, 0}, {1, 2, 3, -1}, {2, 3, 0, 1}, {0, 2, 1, 3}};
    enum { ORDERS = sizeof orders / sizeof *orders };
    int weighted = _i / ORDERS % 2, f64 = _i % 2;
    problem p = clusters(PARTS * 1024 - 100, 20, 17, _i % 2, 9.0, 1.0, 0.0);
    double centre[17];
    for (int f = 0; f < 17; f++) centre[f] = p.x[f];
    if (weighted) p.row_weights = get((size_t)p.n * 8);
    for (int64_t i = 0; weighted && i < p.n; i++) p.row_weights[i] = 0.5 + uniform();
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    p.params.summed = 1;
    fgmm_dtype type = f64 ? FGMM_F64 : FGMM_F32;
    char *data = stored(&p, type, size_of(type), p.d);
    layout own = {.type = type, .stride = p.d, .block_rows = 1024, .centre = f64 ? centre : NULL}, kept = own;
    kept.kept = 2;
    for (int settles = 0; settles < 2; settles++) {
        int64_t before = device->bytes, from = settles ? 0 : INT64_MAX;
        result apart = run_parts(&p, &own, data, orders[_i % ORDERS], from);
        result together = run_parts(&p, &kept, data, orders[_i % ORDERS], from);
        same_bits(&p, &apart, &together, "a stretch");
        ck_assert(apart.sums.log_likelihood == together.sums.log_likelihood);
        ck_assert(apart.sums.weight == together.sums.weight);
        if (settles) ck_assert_msg(device->bytes - before < 1 << 20, "%lld bytes", (long long)(device->bytes - before));
        result_free(&apart);
        result_free(&together);
    }
    free(data);
    problem_free(&p);
}
END_TEST

/* What rows are told, and of all three times that they are: rows that might have been settled, and those that were not. */
typedef struct answers {
    told best;
    int32_t *labels; /* [n] of a pass that forms no log-density */
    double sum, tried, left;
} answers;

static void count_settled(answers *out) {
    out->tried += device->engine->tried;
    out->left += device->engine->left_over;
}

/* @param learned whether a pass of sums came before, so that components are known; else the device may guess them */
static answers tell(problem *p, int64_t from, int64_t block_rows, int learned) {
    layout how = {.type = p->type, .stride = p->d, .kept = p->diag ? 2 : 1};
    answers out = {.best = told_new(p), .labels = get((size_t)p->n * 4)};
    char *data = stored(p, how.type, size_of(how.type), how.stride);
    int64_t usual = device->settle_from;
    device->settle_from = from;
    for (int64_t first = 0; first < p->n; first += block_rows) {
        int64_t n = first + block_rows < p->n ? block_rows : p->n - first;
        fgmm_block *block = put(p, &how, data, first, n);
        result sums = result_new(p);
        p->params.summed = learned;
        begin_settling(&p->params);
        if (learned) OK(backend->estep(device, block, NULL));
        if (learned) OK(backend->collect(device, &sums.sums));
        for (int summed = 0; summed < 2; summed++) {
            p->params.summed = summed;
            begin_settling(&p->params);
            if (summed)
                OK(backend->assign(device, block, 1, out.labels + first, NULL, NULL));
            else
                tell_block(&out.best, block, first);
            count_settled(&out);
            device->engine->settle_wait = device->engine->settle_rest = 0;
            if (summed) continue;
            OK(backend->score(device, block, &out.sum));
            count_settled(&out);
        }
        result_free(&sums);
        backend->release(device, block);
    }
    device->settle_from = usual;
    free(data);
    return out;
}

static void answers_free(answers *a) {
    told_free(&a->best);
    free(a->labels);
}

static void same_answers(const problem *p, const answers *one, const answers *other, const char *what) {
    same_told(p, &one->best, &other->best, what);
    for (size_t i = 0; i < (size_t)p->n; i++)
        ck_assert_msg(one->labels[i] == other->labels[i] && one->best.ids[BEST * i] == one->labels[i],
                      "%s: labels of row %zu", what, i);
    ck_assert_msg(one->sum == other->sum, "%s: sums %.17g and %.17g", what, one->sum, other->sum);
}

/* Rows are told the same, to the bit, whether they were settled or not, whatever the blocks, and whether their components were known or guessed. */
START_TEST(settled_rows_are_told) {
    double tried = 0.0, left = 0.0;
    int64_t rows = 0, cases = 0;
    int doubles = has_doubles(device->id), usual = device->quick_doubles;
    for (int i = 0; i < 14 * (int)(sizeof settled_depths / sizeof *settled_depths); i++) {
        if (!takes((size_t)i)) continue;
        problem p = settled_problem(i);
        char what[64];
        snprintf(what, sizeof what, "D = %d, diag %d, kind %d", (int)p.d, p.diag, i / 2 % 7);
        p.params.hard = 0;
        device->quick_doubles = doubles && cases % 2; /* sums either way, whichever is the device's */
        answers screened = tell(&p, INT64_MAX, p.n, 0);
        for (int learned = 0; learned < 2; learned++) {
            answers got = tell(&p, 0, i % 3 ? p.n : 1024, learned);
            same_answers(&p, &screened, &got, what);
            if (learned) tried += got.tried, left += got.left, rows += p.n;
            answers_free(&got);
        }
        answers_free(&screened);
        problem_free(&p);
        cases++;
    }
    device->quick_doubles = usual;
    ck_assert_msg(tried == 3.0 * (double)rows, "%g of %g rows tried", tried, 3.0 * (double)rows);
    /* Of a short run all cases may be hard ones. */
    ck_assert_msg(cases < 30 || left < 0.75 * tried, "%g rows tried, %g left", tried, left);
}
END_TEST

/* Clusters of which every other is `wide` times as wide, so far apart that this matters little. */
static problem uneven(int64_t n, int64_t k, int64_t d, int diag, double spread, double wide) {
    problem p = problem_new(n, k, d, diag);
    for (int64_t i = 0; i < k * d; i++) p.means[i] = spread * normal();
    for (int64_t c = 0; c < k; c++) p.weights[c] = 0.2 + uniform();
    for (int64_t i = 0; i < k * (diag ? d : 1); i++) p.variances[i] = (diag ? i / d : i) % 2 ? wide * wide : 1.0;
    for (int64_t i = 0; i < n; i++) {
        int64_t c = i % k;
        for (int64_t f = 0; f < d; f++) p.x[i * d + f] = (float)(p.means[c * d + f] + (c % 2 ? wide : 1.0) * normal());
    }
    return p;
}

/* Clusters that differ more in the features beyond `first`: means of two sizes there and, diagonal, variances of two. */
static problem lopsided(int64_t n, int64_t k, int64_t d, int diag, int64_t first) {
    problem p = problem_new(n, k, d, diag);
    for (int64_t i = 0; i < k * d; i++) p.means[i] = (i % d < first ? 0.5 : i / d % 2 ? 60.0 : 6.0) * normal();
    for (int64_t i = 0; i < k * (diag ? d : 1); i++)
        p.variances[i] = diag && i % d >= first && i / d % 3 == 0 ? 2.0 : 1.0;
    for (int64_t i = 0; i < n * d; i++) {
        int64_t c = i / d % k, f = i % d;
        p.x[i] = (float)(p.means[c * d + f] + sqrt(variance_at(&p, c, f)) * normal());
    }
    return p;
}

/* The device's guesses settle nearly all rows that are new to it, where it has kernels for that: `most` are left. The first of the three passes over the
 * block guesses, and from then on components are known. */
static void guesses_settle_of(problem *p, double most) {
    int had = device->has_guess, guesses = had && device->has_matrix == CL_MATRIX_WARPGROUPS;
    finish(p, FGMM_ENGINE_SCREEN, 1e-7);
    answers got = tell(p, 0, p->n, 0);
    ck_assert_msg(got.tried == (guesses ? 3.0 : 2.0) * (double)p->n && got.left < most * got.tried,
                  "D = %d, diag %d: %g rows tried, %g left", (int)p->d, p->diag, got.tried, got.left);
    ck_assert_int_eq(device->has_guess, had);
    answers_free(&got);
    problem_free(p);
}

/* Of clusters far apart: all depths that the kernels take, with odd numbers of steps among them, and rows of other types. */
START_TEST(guesses_settle) {
    static const int64_t depths[] = {17, 48, 64, 130, 250, 300, 500, 1000, 784, 515, 2000};
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F16, FGMM_U8};
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        int diag = i % 2;
        fgmm_dtype type = types[i % 3];
        if (!device->has_guess && !takes(i)) continue;
        int64_t k = depths[i] > 512 ? 17 : 70;
        problem p = clusters(sized(3000, k, depths[i]), k, depths[i], diag, type == FGMM_U8 ? 40.0 : 8.0,
                             type == FGMM_U8 ? 4.0 : 1.0, type == FGMM_U8 ? 120.0 : 0.0);
        p.type = type;
        for (int64_t j = 0; type == FGMM_U8 && j < p.n * p.d; j++) p.x[j] = fmin(255.0, fmax(0.0, round(p.x[j])));
        guesses_settle_of(&p, 0.25);
    }
}
END_TEST

/* A guess by the first features takes into account what of a component's log-density the others have. */
START_TEST(guesses_leave_features_out) {
    for (int diag = 0; diag < 2; diag++) {
        if (!device->has_guess && !takes((size_t)diag)) continue;
        problem p = lopsided(sized(3000, 17, 784), 17, 784, diag, diag ? 256 : 512);
        guesses_settle_of(&p, 0.05);
    }
}
END_TEST

/* And where numbers come near to the ends of FP8's and f16's ranges: of clusters hundreds of deviations apart, of some that are far from all others, and
 * of such as are much wider than others. */
START_TEST(guesses_settle_at_the_ends) {
    for (int i = 0; i < 9; i++) { /* the ninth is deeper than a guess looks */
        int deep = i == 8, diag = i % 2, kind = deep ? 2 : i / 2;
        if (!device->has_guess && !takes((size_t)i)) continue;
        int64_t d = deep ? 784 : diag ? 40 : 100, k = deep ? 17 : 70, n = sized(3000, k, d);
        double wide = deep ? 2.0 : kind == 2 ? 8.0 : 0.5;
        problem p = kind < 2 ? clusters(n, k, d, diag, kind ? 8.0 : 400.0, 1.0, kind ? 2000.0 : 0.0)
                             : uneven(n, k, d, diag, 200.0, wide);
        for (int64_t f = 0; kind == 1 && f < d; f++) { /* one that is alone */
            p.means[f] += 500.0;
            p.x[f] = (float)p.means[f];
        }
        guesses_settle_of(&p, 0.25);
    }
}
END_TEST

static void move_little(problem *p, int pass) {
    for (int64_t i = 0; i < p->k * p->d; i++) p->means[i] += 1e-4 * sin((double)(i + pass));
}

/* Each of PASSES passes over one block, whose sums are then in got, and rows that were not settled in left. */
static void run_passes(problem *p, int64_t from, void (*move)(problem *p, int pass), result *got, double *left) {
    kept_model kept = keep_model(p);
    char *data = stored(p, p->type, size_of(p->type), p->d);
    fgmm_block *block = put(p, &(layout){.type = p->type, .stride = p->d, .kept = 1}, data, 0, p->n);
    int64_t usual = device->settle_from;
    device->settle_from = from;
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass) move(p, pass);
        begin_settling(&p->params);
        got[pass] = result_new(p);
        OK(backend->estep(device, block, NULL));
        OK(backend->collect(device, &got[pass].sums));
        left[pass] = device->engine->left_over;
    }
    device->settle_from = usual;
    give_back(p, &kept);
    backend->release(device, block);
    free(data);
}

/* All by a tenth of a deviation, in one direction: of rows between two components those of one side come to the other, and bounds lose most. */
static void move_along(problem *p, int pass) {
    (void)pass;
    for (int64_t i = 0; i < p->k * p->d; i++) p->means[i] += 0.1 * cos((double)(i % p->d)) * sqrt(2.0 / (double)p->d);
}

/* Two groups of components, those of one all as far from each other, where about every other row has a second candidate. */
static problem simplices(int64_t n, int64_t k, int diag) {
    int64_t half = k / 2, d = half;
    problem p = problem_new(n, k, d, diag);
    for (int64_t c = 0; c < k; c++)
        for (int64_t f = 0; f < d; f++) p.means[c * d + f] = (c < half ? 0.0 : 50.0) + (c % half == f ? 6.0 : 0.0);
    for (int64_t i = 0; i < k * (diag ? d : 1); i++) p.variances[i] = 1.0;
    for (int64_t i = 0; i < n * d; i++) p.x[i] = (float)(p.means[i / d % k * d + i % d] + normal());
    return p;
}

/* Components so near to each other that most rows lie beyond more reaches than are looked at. What the screen finds of such rows in one pass settles them
 * in those after it while components move little; and of any moves the sums are those that a screen each time gives, to the bit. Of hard passes, where a
 * row has one candidate however near the next, the bounds are tight. */
START_TEST(depths_settle) {
    static const int64_t features[] = {48, 48, 20, 2, 3, 17, 130};
    static const double spreads[] = {1.6, 1.9, 0.0, 4.0, 2.0, 1.0, 0.7}; /* of means, in deviations */
    if (!takes((size_t)_i)) return;
    int which = _i / 2, counted = which < 2, along = which == 2;
    int64_t k = counted ? 60 : along ? 40 : 90, d = features[which], n = sized(4000, k, d);
    problem p = along ? simplices(n, k, _i % 2) : clusters(n, k, d, _i % 2, spreads[which], 1.0, 0.0);
    p.type = FGMM_F32;
    result got[2][PASSES];
    double left[2][PASSES];
    for (int settles = 0; settles < 2; settles++) {
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        p.params.summed = 1;
        p.params.hard = !counted && !along && _i % 4 < 2;
        run_passes(&p, settles ? 0 : INT64_MAX,
                   counted ? move_little
                   : along ? move_along
                           : move_on,
                   got[settles], left[settles]);
    }
    for (int pass = 0; pass < PASSES; pass++) {
        char what[64];
        snprintf(what, sizeof what, "D = %d, diag %d, pass %d", (int)d, p.diag, pass);
        same_bits(&p, &got[0][pass], &got[1][pass], what);
        for (int settles = 0; settles < 2; settles++) result_free(&got[settles][pass]);
    }
    double first = left[1][1], last = left[1][PASSES - 1], rows = (double)n;
    /* Warps screen without telling how far others lie. */
    if (counted && n >= 1000 && device->has_matrix != CL_MATRIX_WARPS)
        ck_assert_msg(first > 0.3 * rows && last < 0.1 * first, "%g rows left, then %g", first, last);
    problem_free(&p);
}
END_TEST

/* Where too few rows can be, that is tried more and more rarely: here, where none can, in passes 1, 2, 4, 8, 16. */
START_TEST(settling_rests) {
    problem p = clusters(sized(3000, 20, 8), 20, 8, 0, 0.2, 1.0, 0.0);
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    p.params.summed = 1;
    char *data = stored(&p, FGMM_F32, 4, p.d);
    fgmm_block *block = put(&p, &(layout){.stride = p.d}, data, 0, p.n);
    int64_t from = device->settle_from;
    device->settle_from = 0;
    for (int pass = 0; pass < 18; pass++) {
        result got = result_new(&p);
        if (pass == 1) device->engine->settle_wait = device->engine->settle_rest = 0;
        OK(backend->begin(device, &p.params));
        OK(backend->estep(device, block, NULL));
        OK(backend->collect(device, &got.sums));
        ck_assert_msg(!pass || (device->engine->tried > 0) == !(pass & (pass - 1)), "pass %d", pass);
        result_free(&got);
    }
    device->settle_from = from;
    backend->release(device, block);
    free(data);
    problem_free(&p);
}
END_TEST

static void add_tests(TCase *tests) {
    tcase_add_test(tests, words_keep_bounds);
    tcase_add_test(tests, settled);
    tcase_add_loop_test(tests, settling_overflows, 0, 4);
    tcase_add_loop_test(tests, settling_makes_room, 0, 2);
    tcase_add_test(tests, slices_end_with_chunks);
    tcase_add_loop_test(tests, stretches, 0, 10);
    tcase_add_test(tests, settled_rows_are_told);
    tcase_add_test(tests, guesses_settle);
    tcase_add_test(tests, guesses_leave_features_out);
    tcase_add_test(tests, guesses_settle_at_the_ends);
    tcase_add_test(tests, settling_rests);
    tcase_add_loop_test(tests, depths_settle, 0, 14);
}

int main(void) {
    return run_room("cl_settle", "settle", add_tests);
}
