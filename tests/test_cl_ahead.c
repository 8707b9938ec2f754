/* Passes, and calls over rows, that the device begins while the host still makes their parameters (cl_ahead.c), against those that it waits with: the same
 * sums and replies, to the bit, and begun so where the parameters that come are those that were expected. Between them is the library's own M-step.
 * Device: FLASHGMM_TEST_DEVICE = "opencl:NAME", or any; FLASHGMM_TEST_SCALE bounds N * K * D. */
#include "cl_problem.h"

#include "../lib/estep.h"
#include "../lib/params.h"
#include "../lib/stats.h"

static fgmm_context *ctx;
static double reg_covar = 1e-6;
static int pays; /* the device would do so unasked */

/* What happens before one of the passes. */
typedef enum surprise {
    NOTHING,
    ANOTHER_MEAN,      /* in what the device keeps of it, two floats */
    ANOTHER_VARIANCE,  /* the same; one float if diagonal */
    ANOTHER_WEIGHT,    /* much */
    ANOTHER_CUT,       /* of what may be dropped */
    ANOTHER_REG_COVAR, /* than the device was told */
    ROWS_ARE_TOLD,     /* between the passes */
    ROWS_COME_AGAIN,   /* in other buffers */
    A_PASS_IS_GIVEN_UP,
    SURPRISES,
    A_COMPONENT_DIES = SURPRISES,
    MEMORY_ENDS /* on the device, when the next one is to be begun */
} surprise;

enum { PASSES = 9, SURPRISED = 5, BLOCKS = 8 };

typedef struct trace {
    double *sums[PASSES]; /* [K + 2 K D + 1]: counts, sums, squares and log-likelihood */
    int taken[PASSES];    /* whether it was begun so */
} trace;

static void trace_free(trace *t) {
    for (int i = 0; i < PASSES; i++) free(t->sums[i]);
}

static size_t trace_size(const problem *p) {
    return (size_t)(p->k + 2 * p->k * p->d + 1);
}

static fgmm_model *model_of(const problem *p) {
    fgmm_model *model = NULL;
    OK(fgmm_model_new(ctx, &model, p->diag ? FGMM_DIAG : FGMM_SPHERICAL, p->k, p->d));
    memcpy(model->weights, p->weights, (size_t)p->k * 8);
    memcpy(model->means, p->means, (size_t)(p->k * p->d) * 8);
    memcpy(model->covariances, p->variances, (size_t)(p->diag ? p->k * p->d : p->k) * 8);
    return model;
}

static void change(const problem *p, fgmm_model *model, surprise what) {
    if (what == ANOTHER_MEAN) model->means[p->k * p->d - 1] *= 1.0 + 1e-12;
    if (what == ANOTHER_VARIANCE) model->covariances[0] *= 1.0 + (p->diag ? 1e-6 : 1e-12);
    if (what == A_COMPONENT_DIES)
        for (int64_t f = 0; f < p->d; f++) model->means[7 * p->d + f] = 4000.0;
    if (what != ANOTHER_WEIGHT) return;
    for (int64_t c = 0; c < p->k; c++) model->weights[c] = c ? 1e-6 : 1.0 - 1e-6 * (double)(p->k - 1);
}

/* EM from the problem's model. @param followed whether the device is told that M-steps follow */
static trace run(problem *p, int64_t block_rows, int followed, surprise what, int when) {
    fgmm_block *held[BLOCKS];
    trace out = {{0}, {0}};
    int64_t usual = device->settle_from;
    char *data = stored(p, p->type, size_of(p->type), p->d);
    layout how = {.type = p->type, .stride = p->d, .kept = p->diag ? 2 : 1};
    int64_t n_blocks = put_all(p, &how, data, block_rows, held);
    fgmm_model *model = model_of(p);
    device->settle_from = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        int surprised = pass == when;
        fgmm_prepared prepared = {0};
        fgmm_stats *stats = NULL;
        fgmm_model *next = NULL;
        if (surprised) change(p, model, what);
        OK(fgmm_prepare(ctx, &prepared, model));
        prepared.params.engine = FGMM_ENGINE_SCREEN;
        prepared.params.cut = surprised && what == ANOTHER_CUT ? 1e-9 : 1e-7;
        prepared.params.summed = 1;
        prepared.params.followed = followed && pass + 1 < PASSES ? FGMM_FOLLOWED_BY_PASS : FGMM_FOLLOWED_BY_NONE;
        prepared.params.reg_covar = pass == when - 1 && what == ANOTHER_REG_COVAR ? 1e3 * reg_covar : reg_covar;
        if (device->engine) device->engine->ahead.waits = 0;
        if (surprised && what == ROWS_ARE_TOLD) {
            told t = told_new(p);
            prepared.params.summed = 0;
            OK(backend->begin(device, &prepared.params));
            prepared.params.summed = 1;
            for (int64_t i = 0; i < n_blocks; i++) tell_block(&t, held[i], i * block_rows);
            told_free(&t);
        }
        if (surprised && what == ROWS_COME_AGAIN) {
            for (int64_t i = 0; i < n_blocks; i++) backend->release(device, held[i]);
            n_blocks = put_all(p, &how, data, block_rows, held);
        }
        if (surprised && what == A_PASS_IS_GIVEN_UP) {
            OK(backend->begin(device, &prepared.params));
            for (int64_t i = 0; i < (p->diag ? n_blocks : 1); i++) OK(backend->estep(device, held[i], NULL));
        }
        int64_t before = device->engine ? device->engine->ahead.begun : 0;
        begin_settling(&prepared.params);
        for (int64_t i = 0; i < n_blocks; i++) OK(backend->estep(device, held[i], NULL));
        out.taken[pass] = device->engine->ahead.begun > before;
        OK(fgmm_stats_over(ctx, &stats, model));
        fgmm_sums sums = {.s0 = stats->s0, .s1 = stats->s1, .s2 = stats->s2};
        int64_t limit = device->limit_bytes;
        if (surprised && what == MEMORY_ENDS) {
            cl_room_free(device, &device->engine->ahead.tells);
            cl_spares_free(device); /* which would make way */
            device->limit_bytes = device->bytes;
        }
        OK(backend->collect(device, &sums));
        device->limit_bytes = limit;
        if (!prepared.params.followed) ck_assert_msg(!device->engine->ahead.made, "pass %d has no follower", pass);
        stats->weight = sums.weight;
        stats->log_likelihood = sums.log_likelihood;
        double *to = out.sums[pass] = get(trace_size(p) * 8);
        memcpy(to, stats->s0, (size_t)p->k * 8);
        memcpy(to + p->k, stats->s1, (size_t)(p->k * p->d) * 8);
        memcpy(to + p->k + p->k * p->d, stats->s2, (size_t)(p->diag ? p->k * p->d : p->k) * 8);
        to[trace_size(p) - 1] = sums.log_likelihood;
        OK(fgmm_mstep(ctx, stats, reg_covar, 0, NULL, &next, NULL));
        fgmm_stats_free(ctx, stats);
        fgmm_prepared_free(ctx, &prepared);
        fgmm_model_free(ctx, model);
        model = next;
    }
    fgmm_model_free(ctx, model);
    for (int64_t i = 0; i < n_blocks; i++) backend->release(device, held[i]);
    device->settle_from = usual;
    free(data);
    return out;
}

/* @param expected passes that are begun so, a bit each */
static void same_traces(problem *p, int64_t block_rows, surprise what, int when, unsigned expected, const char *name) {
    int has = device->has_ahead;
    trace waits = run(p, block_rows, 0, what, when), goes_on = run(p, block_rows, 1, what, when);
    ck_assert_msg(device->has_ahead == has, "%s: the kernels were refused", name);
    for (int pass = 0; pass < PASSES; pass++) {
        ck_assert_msg(!waits.taken[pass], "%s: pass %d was not to be begun", name, pass);
        ck_assert_msg(memcmp(waits.sums[pass], goes_on.sums[pass], trace_size(p) * 8) == 0, "%s: sums of pass %d", name,
                      pass);
        if (has)
            ck_assert_msg(goes_on.taken[pass] == (int)(expected >> pass & 1), "%s: pass %d %s begun ahead", name, pass,
                          goes_on.taken[pass] ? "was" : "was not");
    }
    trace_free(&waits);
    trace_free(&goes_on);
}

/* The first two passes have no hints, or send what the third is to be told from. */
static const unsigned usual_passes = ((1u << PASSES) - 1) & ~3u;

static const int64_t depths[] = {1, 2, 7, 8, 9, 64, 130, 600};

/* Means and variances are the host's to the bit, whatever the number of features and rows' types, weights and scale. */
START_TEST(the_same_model_comes) {
    for (int i = 0; i < 4 * (int)(sizeof depths / sizeof *depths); i++) {
        int64_t d = depths[i / 4], k = 20, n = sized(3000, k, d);
        if (!takes((size_t)i) || n < 10 * k) continue; /* of which some component would have no rows */
        int diag = i % 2, other = i / 2 % 2;
        problem p = clusters(n, k, d, diag, d < 3 ? 100.0 : 9.0, 1.0, other ? 0.0 : 50.0);
        for (int64_t j = 0; other && j < n * d; j++) p.x[j] = (float)(1e-4 * p.x[j]);
        for (int64_t j = 0; other && j < k * d; j++) p.means[j] *= 1e-4;
        for (int64_t j = 0; other && j < k * (diag ? d : 1); j++) p.variances[j] *= 1e-8;
        p.type = FGMM_F32;
        if (other) p.row_weights = get((size_t)n * 8);
        for (int64_t j = 0; other && j < n; j++) p.row_weights[j] = 0.5 + uniform();
        char name[64];
        snprintf(name, sizeof name, "D = %d, diag %d, %s", (int)d, diag, other ? "small, weighted" : "far from 0");
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        reg_covar = other ? 1e-14 : 1e-6;
        same_traces(&p, n > 2048 ? 1024 : n, NOTHING, SURPRISED, usual_passes, name);
        reg_covar = 1e-6;
        problem_free(&p);
    }
}
END_TEST

/* The same of 20 clusters, in blocks where there are rows for some. */
static void same_with(surprise what, int when, int64_t d, int diag, double spread, unsigned expected,
                      const char *name) {
    int64_t n = sized(3000, 20, d);
    if (n < 200) return; /* of which some component would have no rows */
    problem p = clusters(n, 20, d, diag, spread, 1.0, 0.0);
    p.type = FGMM_F32;
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    same_traces(&p, n > 2048 ? 1024 : n, what, when, expected, name);
    problem_free(&p);
}

/* Anything else than what was expected is taken as if nothing had been. */
START_TEST(another_model_comes) {
    static const char *const names[] = {"nothing", "mean",      "variance",        "weight",  "cut",
                                        "reg",     "rows told", "rows come again", "given up"};
    surprise what = (surprise)(_i / 2);
    if (!takes((size_t)_i)) return;
    /* What the pass after is to be told from, the next one sends; at once where this was what had been expected. */
    unsigned lost = what == NOTHING ? 0u : what == A_PASS_IS_GIVEN_UP || what == ROWS_ARE_TOLD ? 1u : 3u;
    lost <<= SURPRISED;
    same_with(what, SURPRISED, 17, _i % 2, 9.0, usual_passes & ~lost, names[what]);
}
END_TEST

/* A component that loses its rows keeps its mean on the host, of which an M-step of its sums alone cannot know: they are 0. */
START_TEST(a_component_dies) {
    same_with(A_COMPONENT_DIES, 1, 5, _i, 20.0, 0, "dead");
}
END_TEST

/* Where there is no memory for what is made, the pass ends as it would have, and the next one begins so. */
START_TEST(memory_ends) {
    same_with(MEMORY_ENDS, SURPRISED, 17, _i, 9.0, usual_passes & ~(2u << SURPRISED), "memory");
}
END_TEST

/* An E-step over the blocks, and the model of its sums. */
static fgmm_model *next_of(fgmm_model *model, fgmm_block **held, int64_t n_blocks, fgmm_follower follower) {
    fgmm_prepared prepared = {0};
    fgmm_stats *stats = NULL;
    fgmm_model *next = NULL;
    OK(fgmm_prepare(ctx, &prepared, model));
    fgmm_params *params = &prepared.params;
    params->engine = FGMM_ENGINE_SCREEN;
    params->cut = 1e-7;
    params->summed = 1;
    params->followed = follower;
    params->reg_covar = reg_covar;
    OK(backend->begin(device, params));
    device->engine->settle_wait = device->engine->settle_rest = device->engine->ahead.waits = 0;
    for (int64_t i = 0; i < n_blocks; i++) OK(backend->estep(device, held[i], NULL));
    OK(fgmm_stats_over(ctx, &stats, model));
    fgmm_sums sums = {.s0 = stats->s0, .s1 = stats->s1, .s2 = stats->s2};
    OK(backend->collect(device, &sums));
    stats->weight = sums.weight;
    stats->log_likelihood = sums.log_likelihood;
    OK(fgmm_mstep(ctx, stats, reg_covar, 0, NULL, &next, NULL));
    fgmm_stats_free(ctx, stats);
    fgmm_prepared_free(ctx, &prepared);
    fgmm_model_free(ctx, model);
    return next;
}

/* What a call asks of rows. */
typedef enum call { LABELS, BEST_TWO, DENSITIES, SCORE, CALLS } call;

typedef struct reply {
    told t;
    double sum;
} reply;

static reply ask(const problem *p, const fgmm_params *given, fgmm_block **held, int64_t block_rows, int64_t n_blocks,
                 call what) {
    reply out = {.t = told_new(p)};
    fgmm_params params = *given;
    params.summed = what == LABELS || what == BEST_TWO;
    begin_settling(&params);
    for (int64_t i = 0; i < n_blocks; i++) {
        int64_t first = i * block_rows;
        if (what == SCORE)
            OK(backend->score(device, held[i], &out.sum));
        else if (what == DENSITIES)
            tell_block(&out.t, held[i], first);
        else
            OK(backend->assign(device, held[i], what == LABELS ? 1 : BEST, out.t.ids + BEST * first, NULL, NULL));
    }
    return out;
}

static void same_replies(const problem *p, const reply *one, const reply *other, const char *what) {
    same_told(p, &one->t, &other->t, what);
    ck_assert_msg(one->sum == other->sum, "%s: sums %.17g and %.17g", what, one->sum, other->sum);
}

/* Calls over rows that EM has been over find what the device made of its last sums, and say the same, to the bit, as of rows that are new to it; whether the
 * pass was said to be the last or, by a fit that then converged, not. Where another model comes, what is known of rows is not lost. */
START_TEST(calls_follow) {
    if (!takes((size_t)_i)) return;
    call what = (call)(_i % CALLS);
    int said = _i / CALLS % 2, diag = _i / (2 * CALLS) % 2;
    surprise comes = (surprise[]){NOTHING, ANOTHER_CUT, ANOTHER_MEAN, ANOTHER_VARIANCE}[_i / (4 * CALLS)];
    int surprised = comes != NOTHING;
    int64_t n = sized(3000, 20, 17), usual = device->settle_from, block_rows = n > 2048 && diag ? 1024 : n;
    if (n < 200) return;
    problem p = clusters(n, 20, 17, diag, 9.0, 1.0, 0.0);
    p.type = FGMM_F32;
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    char *data = stored(&p, p.type, size_of(p.type), p.d), name[64];
    snprintf(name, sizeof name, "call %d, said %d, surprise %d, diag %d", (int)what, said, (int)comes, diag);
    layout how = {.type = p.type, .stride = p.d, .kept = diag ? 2 : 1};
    fgmm_block *held[BLOCKS], *others[BLOCKS];
    int64_t n_blocks = put_all(&p, &how, data, block_rows, held);
    fgmm_model *model = model_of(&p);
    device->settle_from = 0;
    for (int pass = 0; pass < 4; pass++)
        model = next_of(model, held, n_blocks, pass < 3 || !said ? FGMM_FOLLOWED_BY_PASS : FGMM_FOLLOWED_BY_CALLS);
    if (device->has_ahead) ck_assert_msg(device->engine->ahead.made, "%s: nothing was made", name);
    fgmm_prepared prepared = {0};
    change(&p, model, comes);
    OK(fgmm_prepare(ctx, &prepared, model));
    prepared.params.engine = FGMM_ENGINE_SCREEN;
    prepared.params.cut = comes == ANOTHER_CUT ? 1e-9 : 1e-7;
    int64_t known_of = held[0]->row_bounds_of, begun = device->engine->ahead.begun;
    ck_assert_msg(known_of > 0, "%s: nothing is known of rows", name);
    reply first = ask(&p, &prepared.params, held, block_rows, n_blocks, what);
    int taken = device->engine->ahead.begun > begun;
    if (device->has_ahead) ck_assert_msg(taken == !surprised, "%s: %s", name, taken ? "taken" : "not taken");
    /* From the last pass's parameters, or from those that were made; a slice that was settled by these is of the former. */
    int64_t from = device->engine->moved_from;
    ck_assert_msg(from > 0, "%s: components have moved from nowhere", name);
    if (said || comes == ANOTHER_CUT)
        ck_assert_msg(from == known_of || comes == NOTHING, "%s: what was known of rows is lost", name);
    if (taken && !said && (what == DENSITIES || what == SCORE))
        ck_assert_msg(from == device->engine->now.number, "%s: rows were not known of by these parameters", name);
    reply again = ask(&p, &prepared.params, held, block_rows, n_blocks, what);
    ck_assert_msg(device->engine->moved_from > 0, "%s: what was known of rows is lost again", name);
    put_all(&p, &how, data, block_rows, others);
    reply fresh = ask(&p, &prepared.params, others, block_rows, n_blocks, what);
    same_replies(&p, &first, &fresh, name);
    same_replies(&p, &again, &fresh, name);
    told_free(&first.t);
    told_free(&again.t);
    told_free(&fresh.t);
    for (int64_t i = 0; i < n_blocks; i++) {
        backend->release(device, held[i]);
        backend->release(device, others[i]);
    }
    fgmm_prepared_free(ctx, &prepared);
    fgmm_model_free(ctx, model);
    device->settle_from = usual;
    free(data);
    problem_free(&p);
}
END_TEST

/* The same of other rows, of more than a slice, of which an earlier call found what it could by a model whose components lay elsewhere: that is no use now. */
START_TEST(other_rows_are_called) {
    if (!takes((size_t)_i)) return;
    call what = (call)(_i % CALLS);
    int diag = _i / CALLS;
    enum { ROWS = 140000, FITTED = 4000, K = 4 };
    if (scale_limit < ROWS * K) return;
    int64_t usual = device->settle_from;
    problem all = clusters(ROWS, K, 1, diag, 1000.0, 1.0, 0.0), few = all;
    all.type = few.type = FGMM_F32;
    few.n = FITTED;
    finish(&all, FGMM_ENGINE_SCREEN, 1e-7);
    char *data = stored(&all, FGMM_F32, 4, 1);
    layout how = {.type = FGMM_F32, .stride = 1, .kept = 1};
    fgmm_block *fitted = NULL, *called = NULL, *fresh = NULL;
    put_all(&few, &how, data, FITTED, &fitted);
    put_all(&all, &how, data, ROWS, &called);
    put_all(&all, &how, data, ROWS, &fresh);
    device->settle_from = 0;
    fgmm_prepared prepared = {0};
    fgmm_model *model = model_of(&all), *other = model_of(&all);
    for (int c = 0; c < K; c++) other->means[c] = model->means[K - 1 - c]; /* the components the other way round */
    OK(fgmm_prepare(ctx, &prepared, other));
    prepared.params.engine = FGMM_ENGINE_SCREEN;
    prepared.params.cut = 1e-7;
    for (int i = 0; i < 2; i++) { /* the second time by what the first has found */
        reply before = ask(&all, &prepared.params, &called, ROWS, 1, LABELS);
        told_free(&before.t);
    }
    fgmm_prepared_free(ctx, &prepared);
    for (int pass = 0; pass < 4; pass++)
        model = next_of(model, &fitted, 1, pass < 3 ? FGMM_FOLLOWED_BY_PASS : FGMM_FOLLOWED_BY_CALLS);
    OK(fgmm_prepare(ctx, &prepared, model));
    prepared.params.engine = FGMM_ENGINE_SCREEN;
    prepared.params.cut = 1e-7;
    device->engine->placed = 1.0; /* so that slices are short */
    int64_t begun = device->engine->ahead.begun;
    reply first = ask(&all, &prepared.params, &called, ROWS, 1, what);
    if (device->has_ahead) ck_assert_msg(device->engine->ahead.begun > begun, "call %d: not taken", (int)what);
    reply again = ask(&all, &prepared.params, &called, ROWS, 1, what);
    reply anew = ask(&all, &prepared.params, &fresh, ROWS, 1, what);
    same_replies(&all, &first, &anew, "other rows");
    same_replies(&all, &again, &anew, "other rows again");
    told_free(&first.t);
    told_free(&again.t);
    told_free(&anew.t);
    backend->release(device, fitted);
    backend->release(device, called);
    backend->release(device, fresh);
    fgmm_prepared_free(ctx, &prepared);
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, other);
    device->settle_from = usual;
    free(data);
    problem_free(&all);
}
END_TEST

static int begun_fits;

static void hear(void *user, fgmm_log_level level, const char *line) {
    (void)user;
    (void)level;
    begun_fits += strstr(line, "passes were begun") != NULL;
}

/* A fit by the library's own interface does so, on devices that it pays on. */
START_TEST(fits_are_begun) {
    int64_t n = 4000, k = 12, d = 6;
    problem p = clusters(n, k, d, 0, 9.0, 1.0, 0.0);
    float *rows = get((size_t)(n * d) * sizeof *rows);
    for (int64_t i = 0; i < n * d; i++) rows[i] = (float)p.x[i];
    fgmm_context *own = NULL;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    options.device = getenv("FLASHGMM_TEST_DEVICE") ? getenv("FLASHGMM_TEST_DEVICE") : "opencl";
    options.log = hear;
    options.log_level = FGMM_LOG_DEBUG;
    OK(fgmm_context_create(&own, &options));
    fgmm_fit_options fit = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *start = NULL, *fitted = NULL;
    fgmm_rows *source = NULL;
    p.type = FGMM_F32;
    OK(fgmm_model_create(own, &start, FGMM_SPHERICAL, k, d, NULL, p.means, p.variances));
    fit.init_model = start;
    fit.max_iter = 8;
    fit.tol = -1;
    OK(fgmm_rows_from_memory(own, &source, rows, FGMM_F32, n, d, 0));
    OK(fgmm_fit(own, &fitted, source, &fit, NULL));
    fgmm_rows_free(own, source);
    fgmm_model_free(own, fitted);
    fgmm_model_free(own, start);
    fgmm_context_free(own);
    ck_assert_int_eq(begun_fits > 0, pays);
    free(rows);
    problem_free(&p);
}
END_TEST

static void add_tests(TCase *tests) {
    pays = device->has_ahead;
    device->has_ahead = has_doubles(device->id);
    tcase_add_test(tests, the_same_model_comes);
    tcase_add_loop_test(tests, another_model_comes, 0, 2 * SURPRISES);
    tcase_add_loop_test(tests, a_component_dies, 0, 2);
    tcase_add_loop_test(tests, memory_ends, 0, 2);
    tcase_add_loop_test(tests, calls_follow, 0, 16 * CALLS);
    tcase_add_loop_test(tests, other_rows_are_called, 0, 2 * CALLS);
    tcase_add_test(tests, fits_are_begun);
}

int main(void) {
    if (fgmm_context_create(&ctx, NULL) != FGMM_OK) return 1;
    int status = run_room("cl_ahead", "ahead", add_tests);
    fgmm_context_free(ctx);
    return status;
}
