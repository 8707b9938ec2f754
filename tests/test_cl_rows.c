/* What the OpenCL backend is asked of rows beside sums: a look at them before a pass, and results that come in pieces.
 * Device: FLASHGMM_TEST_DEVICE = "opencl:NAME", or any; FLASHGMM_TEST_SCALE bounds N * K * D. */
#include "cl_problem.h"

/* In blocks; first looked at, as a pass of the library does, if `look`. */
static told tell(problem *p, fgmm_dtype type, const char *data, int64_t block_rows, int look) {
    told out = told_new(p);
    int64_t usual = device->settle_from;
    device->settle_from = 0;
    begin_settling(&p->params);
    for (int64_t first = 0; first < p->n; first += block_rows) {
        int64_t n = first + block_rows < p->n ? block_rows : p->n - first;
        double *centre = get((size_t)p->d * 8);
        for (int64_t f = 0; f < p->d; f++) centre[f] = (double)p->x[first * p->d + f];
        layout how = {.type = type, .stride = p->d, .centre = type == FGMM_F64 ? centre : NULL};
        fgmm_block *block = put(p, &how, data, first, n);
        fgmm_moments io = {.bad_row = -1};
        if (look) OK(backend->moments(device, block, NULL, &io));
        ck_assert(io.bad_count == 0 && io.bad_row == -1 && io.overflows == 0);
        tell_block(&out, block, first);
        backend->release(device, block);
        free(centre);
    }
    backend->end(device); /* nothing is known of the rows when they come again */
    device->settle_from = usual;
    return out;
}

/* What is prepared while a device looks is what a pass would have prepared, whatever the blocks, and the centres that f64 rows come about. */
START_TEST(looking_changes_nothing) {
    static const fgmm_dtype types[] = {FGMM_F32, FGMM_F64, FGMM_BF16};
    for (int i = 0; i < 12; i++) {
        if (!takes((size_t)i)) continue;
        fgmm_dtype type = types[i % 3];
        int diag = i / 3 % 2;
        problem p = clusters(sized(700, 20, 9), 20, 9, diag, i < 6 ? 6.0 : 0.3, 1.0, type == FGMM_F64 ? 1e3 : 0.0);
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        char *data = stored(&p, type, size_of(type), p.d);
        told plain = tell(&p, type, data, p.n, 0);
        for (int parts = 1; parts < 4; parts += 2) {
            int64_t rows = (p.n + parts - 1) / parts;
            told blind = tell(&p, type, data, rows, 0), looked = tell(&p, type, data, rows, 1);
            char what[32];
            snprintf(what, sizeof what, "case %d, %d blocks", i, parts);
            same_told(&p, &looked, &blind, what);
            /* Each block of f64 rows has a centre of its own, and so other roundings. */
            if (type != FGMM_F64) same_told(&p, &looked, &plain, what);
            told_free(&blind);
            told_free(&looked);
        }
        told_free(&plain);
        free(data);
        problem_free(&p);
    }
}
END_TEST

/* Rows that hold NaN or infinities are counted and the first is named, in any row and column; values beyond the device's squares count where their rows
 * have weight. */
START_TEST(bad_rows_are_named) {
    enum { N = 150, D = 5, FIRST = 1000 };
    static const struct {
        int rows[3], columns[3], n, distinct;
    } bad[] = {{{0}, {0}, 0, 0},         {{0}, {0}, 1, 1},
               {{N - 1}, {D - 1}, 1, 1}, {{70, 66, 149}, {4, 2, 0}, 3, 3},
               {{63, 64}, {1, 3}, 2, 2}, {{64, 5, 5}, {0, 3, 1}, 3, 2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad * 2; i++) {
        size_t c = i / 2;
        problem p = clusters(N, 3, D, 0, 3.0, 1.0, 0.0);
        p.row_weights = get(N * 8);
        for (int j = 0; j < N; j++) p.row_weights[j] = j == 9 ? 0.0 : 1.0;
        finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
        for (int j = 0; j < bad[c].n; j++)
            p.x[bad[c].rows[j] * D + bad[c].columns[j]] = j == 0 ? NAN : j == 1 ? -INFINITY : INFINITY;
        p.x[(i % 2 ? 10 : 9) * D] = 1e30f;
        char *data = stored(&p, FGMM_F32, 4, D);
        fgmm_block_source source = {
            .data = data, .stride_bytes = D * 4, .first_row = FIRST, .n = N, .d = D, .weights = p.row_weights};
        fgmm_block *block = NULL;
        OK(backend->put(device, &source, &block));
        OK(backend->wait(device, block));
        OK(backend->begin(device, &p.params));
        fgmm_moments io = {.bad_row = -1};
        OK(backend->moments(device, block, NULL, &io));
        int first = 0;
        for (int j = 1; j < bad[c].n; j++)
            if (bad[c].rows[j] * D + bad[c].columns[j] < bad[c].rows[first] * D + bad[c].columns[first]) first = j;
        ck_assert_int_eq(io.bad_count, bad[c].distinct);
        ck_assert_int_eq(io.bad_row, bad[c].n ? FIRST + bad[c].rows[first] : -1);
        if (bad[c].n) ck_assert_int_eq(io.bad_column, bad[c].columns[first]);
        ck_assert_int_eq(io.overflows, (int)(i % 2));
        backend->release(device, block);
        free(data);
        problem_free(&p);
    }
}
END_TEST

/* ---- results in pieces ---- */

/* A buffer of words 0, 1, 2 ..., and an engine to read it. */
static cl_mem words_on_device(problem *p, size_t count) {
    cl_mem out = NULL;
    uint32_t *words = get(count * 4);
    for (size_t i = 0; i < count; i++) words[i] = (uint32_t)i;
    finish(p, FGMM_ENGINE_SCREEN, 1e-7);
    OK(backend->begin(device, &p->params));
    OK(cl_buffer(device, &out, count * 4, "words"));
    OK(cl_write(device, out, count * 4, words, "words"));
    free(words);
    return out;
}

enum { WORDS = 25 /* a piece */ };

typedef struct reading {
    cl_mem from;
    size_t taken, refused_from, refused_to; /* pieces of these are refused memory, if any is on its way */
    size_t on_their_way;
} reading;

static fgmm_status ask(fgmm_device *of, void *user, size_t piece, cl_arrival *out) {
    reading *r = user;
    if (piece >= r->refused_from && piece < r->refused_to && r->on_their_way) return FGMM_ERR_MEMORY;
    r->on_their_way++;
    return cl_read_begin(of, out, r->from, piece * WORDS * 4, WORDS * 4, "words");
}

static void take(fgmm_device *of, void *user, size_t piece, const void *from) {
    reading *r = user;
    const uint32_t *words = from;
    (void)of;
    ck_assert_uint_eq(piece, r->taken);
    for (size_t i = 0; i < WORDS; i++) ck_assert_uint_eq(words[i], piece * WORDS + i);
    r->taken++;
    r->on_their_way--;
}

/* Pieces come whole and in order, however many are on their way, and where memory is refused for some of them. */
START_TEST(pieces_come_in_order) {
    enum { MOST = 40 };
    problem p = clusters(20, 2, 3, 0, 3.0, 1.0, 0.0);
    cl_mem words = words_on_device(&p, MOST * WORDS);
    for (size_t ahead = 1; ahead <= CL_PIECES; ahead++)
        for (size_t count = 0; count <= MOST; count += count < 12 ? 1 : 7) {
            reading all = {.from = words}, some = {.from = words, .refused_from = 3, .refused_to = 17};
            OK(cl_read_pieces(device, count, ahead, ask, take, &all, "words"));
            OK(cl_read_pieces(device, count, ahead, ask, take, &some, "words"));
            ck_assert_uint_eq(all.taken, count);
            ck_assert_uint_eq(some.taken, count);
        }
    reading none = {.from = words, .refused_to = 1, .on_their_way = 1};
    ck_assert_int_eq(cl_read_pieces(device, 3, CL_PIECES, ask, take, &none, "words"), FGMM_ERR_MEMORY);
    cl_buffer_free(device, words);
    problem_free(&p);
}
END_TEST

static void add_one(void *out, const void *from, size_t at, size_t bytes) {
    const uint64_t *values = from;
    for (size_t i = 0; i < bytes / 8; i++) ((uint64_t *)out)[at / 8 + i] = values[i] + 1;
}

/* Transfers of many pieces and of none, one after the other, with parts of pieces at their ends. */
START_TEST(fetches_are_whole) {
    static const size_t sizes[] = {8, 0, (5 << 20) + 24, 2 << 20, (13 << 20) - 8};
    enum { FETCHES = sizeof sizes / sizeof *sizes };
    problem p = clusters(20, 2, 3, 0, 3.0, 1.0, 0.0);
    cl_mem words = words_on_device(&p, (13 << 20) / 4);
    cl_fetch fetches[FETCHES];
    for (int plain = 0; plain < 2; plain++) {
        for (int i = 0; i < FETCHES; i++)
            fetches[i] = (cl_fetch){.buffer = words,
                                    .bytes = sizes[i],
                                    .out = get(sizes[i] + 8),
                                    .what = "words",
                                    .take = plain ? NULL : add_one};
        OK(cl_fetch_all(device, fetches, FETCHES));
        for (int i = 0; i < FETCHES; i++) {
            const uint64_t *out = fetches[i].out;
            for (uint64_t j = 0; j < sizes[i] / 8; j++) {
                uint64_t want = (2 * j | (2 * j + 1) << 32) + (plain ? 0 : 1);
                ck_assert_msg(out[j] == want, "fetch %d, value %d", i, (int)j);
            }
            ck_assert_msg(out[sizes[i] / 8] == 0, "fetch %d is too long", i);
            free(fetches[i].out);
        }
    }
    cl_buffer_free(device, words);
    problem_free(&p);
}
END_TEST

/* ---- a model that comes again (cl_recall.c) ---- */

/* The arrays of a model's parameters, in one order throughout. */
enum { MEANS, HALF, LOG_WEIGHTS, WEIGHTS, LOG_NORM, CENTRE, SCALE, ARRAYS };
typedef struct arrays {
    double *at[ARRAYS];
    int64_t n[ARRAYS];
} arrays;

static arrays arrays_of(const problem *p) {
    int64_t k = p->k, d = p->d;
    return (arrays){{p->means, p->half, p->log_weights, p->weights, p->log_norm, p->centre, p->scale},
                    {k * d, p->diag ? k * d : k, k, k, k, d, d}};
}

/* Copies of them, which a call has for itself. */
static fgmm_params lend(const problem *p, arrays *lent) {
    fgmm_params params = p->params;
    *lent = arrays_of(p);
    for (int i = 0; i < ARRAYS; i++) {
        size_t bytes = (size_t)lent->n[i] * 8;
        lent->at[i] = memcpy(get(bytes), lent->at[i], bytes);
    }
    params.means = params.sum_centres = lent->at[MEANS];
    params.half_inv_var = lent->at[HALF];
    params.log_weights = lent->at[LOG_WEIGHTS];
    params.weights = lent->at[WEIGHTS];
    params.log_norm = lent->at[LOG_NORM];
    params.centre = lent->at[CENTRE];
    params.scale = lent->at[SCALE];
    return params;
}

/* Nobody finds anything there any more. */
static void take_back(arrays *lent) {
    for (int i = 0; i < ARRAYS; i++) {
        *(volatile double *)lent->at[i] = NAN;
        free(lent->at[i]);
    }
}

/* What rows are told, and the sum of their log-densities. */
typedef struct answer {
    told told;
    double sum;
} answer;

static void answer_free(answer *a) {
    told_free(&a->told);
}

/* A call each. @return whether the second, of a score, found its parameters there */
static int call(const problem *p, fgmm_block *block, answer *out) {
    *out = (answer){.told = told_new(p)};
    int64_t made = 0;
    for (int way = 0; way < 2; way++) {
        arrays lent;
        fgmm_params params = lend(p, &lent);
        begin_settling(&params);
        made = device->generations;
        if (way == 0) tell_block(&out->told, block, 0);
        if (way == 1) OK(backend->score(device, block, &out->sum));
        take_back(&lent);
    }
    return device->generations == made;
}

static void same_answer(const problem *p, const answer *one, const answer *other, const char *what) {
    same_told(p, &one->told, &other->told, what);
    ck_assert_msg(one->sum == other->sum, "%s: sums %.17g and %.17g", what, one->sum, other->sum);
}

/* As of a device that knows of nothing; of rows that are new to it. */
static answer call_first(const problem *p, const char *data) {
    answer out;
    layout how = {.stride = p->d};
    backend->trim(device);
    fgmm_block *block = put(p, &how, data, 0, p->n);
    call(p, block, &out);
    backend->release(device, block);
    return out;
}

/* A model that comes a second time is not prepared again, whatever memory it comes in, and tells rows the same to the bit, be they those of the last call or
 * new; one that differs in a bit is. */
START_TEST(models_come_again) {
    int64_t usual = device->settle_from, made = 0;
    device->settle_from = 0;
    for (int i = 0; i < 8; i++) {
        if (!takes((size_t)i)) continue;
        int diag = i % 2, dense = i / 2 % 2, near = i / 4 % 2;
        problem p = clusters(sized(900, 24, 17), 24, 17, diag, near ? 0.2 : 5.0, 1.0, 0.0);
        finish(&p, dense ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN, 1e-7);
        layout kept = {.stride = p.d, .kept = 1}, passing = {.stride = p.d};
        char *data = stored(&p, FGMM_F32, 4, p.d);
        answer first = call_first(&p, data), again;
        fgmm_block *held = put(&p, &kept, data, 0, p.n);
        for (int turn = 0; turn < 4; turn++) {
            char what[48];
            snprintf(what, sizeof what, "case %d, call %d", i, turn);
            fgmm_block *fresh = put(&p, &passing, data, 0, p.n);
            made = device->generations;
            int found = call(&p, turn % 2 ? fresh : held, &again);
            ck_assert_msg(found || near, "%s: prepared again", what);
            ck_assert_msg(device->generations == made || near, "%s: prepared once more", what);
            same_answer(&p, &again, &first, what);
            answer_free(&again);
            backend->release(device, fresh);
        }
        arrays all = arrays_of(&p);
        for (int which = 0; which < ARRAYS; which++) {
            double *number = &all.at[which][(int64_t)(uniform() * (double)all.n[which])], was = *number;
            *number = which == SCALE ? 2.0 * was : nextafter(was, 1.0);
            made = device->generations;
            ck_assert_msg(call(&p, held, &again) || near, "case %d: not the same as itself", i);
            ck_assert_msg(device->generations > made, "case %d: array %d was taken for another", i, which);
            answer_free(&again);
            *number = was;
        }
        for (int turn = 0; turn < 2; turn++) {
            made = device->generations;
            device->setbacks += turn; /* as if it had left something alone */
            call(&p, held, &again);
            ck_assert(device->generations > made);
            same_answer(&p, &again, &first, "as it was");
            answer_free(&again);
        }
        /* What only the screen takes was not sent for rows that are all settled, and is now, from the second call's memory. */
        if (!dense && !near) ck_assert_msg(device->engine->unsent, "case %d: rows were not settled", i);
        fgmm_block *fresh = put(&p, &passing, data, 0, p.n);
        call(&p, fresh, &again);
        same_answer(&p, &again, &first, "new rows");
        answer_free(&again);
        answer_free(&first);
        backend->release(device, fresh);
        backend->release(device, held);
        free(data);
        problem_free(&p);
    }
    device->settle_from = usual;
}
END_TEST

static void pass(problem *p, fgmm_block *block, result *out) {
    p->params.summed = 1;
    begin_settling(&p->params);
    OK(backend->estep(device, block, NULL));
    OK(backend->collect(device, &out->sums));
    p->params.summed = 0;
}

/* What comes between two calls: a pass for sums, also of near components, which then have another form; a pass that is begun and given up; a call whose
 * parameters are not kept. Each under the same model or another. */
START_TEST(models_come_again_after_others) {
    enum { SUMS, SUMS_NEAR, GIVEN_UP, NOT_KEPT, KINDS };
    int64_t usual = device->settle_from;
    device->settle_from = 0;
    for (int i = 0; i < 4 * KINDS; i++) {
        if (!takes((size_t)i)) continue;
        int64_t n = sized(900, 24, 17);
        int kind = i / 4, near = kind == SUMS_NEAR, same = i / 2 % 2;
        double spread = near ? 0.2 : 5.0;
        problem p = clusters(n, 24, 17, i % 2, spread, 1.0, 0.0), q = clusters(n, 24, 17, i % 2, spread, 1.0, 0.0);
        problem *of = same ? &p : &q;
        finish(&p, near ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN, 1e-7);
        finish(&q, near ? FGMM_ENGINE_DENSE : FGMM_ENGINE_SCREEN, 1e-7);
        layout kept = {.stride = p.d, .kept = 1};
        char *data = stored(&p, FGMM_F32, 4, p.d);
        answer first = call_first(&p, data), again;
        result sums = result_new(of), after = result_new(of);
        fgmm_block *held = put(&p, &kept, data, 0, p.n);
        pass(of, held, &sums);
        call(&p, held, &again);
        answer_free(&again);
        ck_assert(call(&p, held, &again) || near);
        answer_free(&again);
        int64_t made = device->generations;
        if (kind == SUMS || kind == SUMS_NEAR) {
            pass(of, held, &after);
            same_sums(&p, &sums, &after, "sums after calls");
        } else if (kind == GIVEN_UP) {
            OK(backend->begin(device, &of->params));
        } else {
            of->params.careful = 1;
            call(of, held, &again);
            answer_free(&again);
            of->params.careful = 0;
        }
        ck_assert(same || kind == GIVEN_UP || device->generations > made);
        ck_assert(!same || kind != SUMS || device->generations == made);
        call(&p, held, &again);
        ck_assert_msg(device->generations > made, "case %d: not prepared again", i);
        same_answer(&p, &again, &first, "after another pass");
        answer_free(&again);
        answer_free(&first);
        result_free(&sums);
        result_free(&after);
        backend->release(device, held);
        free(data);
        problem_free(&p);
        problem_free(&q);
    }
    device->settle_from = usual;
}
END_TEST

/* Small batches, for which reaches that are there are taken, leave it to those that have them found to say whether that pays. */
START_TEST(small_batches_are_settled) {
    enum { N = 960, FEW = 60 };
    int64_t usual = device->settle_from;
    problem p = clusters(N, 24, 17, 0, 5.0, 1.0, 0.0);
    finish(&p, FGMM_ENGINE_SCREEN, 1e-7);
    char *data = stored(&p, FGMM_F32, 4, p.d);
    layout kept = {.stride = p.d, .kept = 1};
    fgmm_block *all = put(&p, &kept, data, 0, N), *few = put(&p, &kept, data, 0, FEW);
    told out = told_new(&p);
    backend->trim(device);
    device->settle_from = 36;
    for (int turn = 0; turn < 13; turn++) { /* blocks that are new, then again */
        fgmm_block *block = turn < 2 || turn == 12 ? all : few;
        OK(backend->begin(device, &p.params));
        tell_block(&out, block, 0);
        if (turn == 1 || turn > 2)
            ck_assert_msg(device->engine->tried == (double)(block == all ? N : FEW), "call %d: %g rows tried", turn,
                          device->engine->tried);
    }
    device->settle_from = usual;
    backend->release(device, few);
    backend->release(device, all);
    told_free(&out);
    free(data);
    problem_free(&p);
}
END_TEST

static void add_rows_tests(TCase *tests) {
    tcase_add_test(tests, looking_changes_nothing);
    tcase_add_test(tests, bad_rows_are_named);
    tcase_add_test(tests, pieces_come_in_order);
    tcase_add_test(tests, fetches_are_whole);
    tcase_add_test(tests, models_come_again);
    tcase_add_test(tests, models_come_again_after_others);
    tcase_add_test(tests, small_batches_are_settled);
}

int main(void) {
    return run_room("cl_rows", "rows", add_rows_tests);
}
