/*
 * What every test program stands on: the device under test, its limits, and seeded random numbers.
 *
 *   FLASHGMM_TEST_DEVICE  "cpu" (default), "opencl", or "opencl:WORD": the first device whose id, name, vendor or
 *                         kind holds WORD. A device that is not there is a skip (exit 77) that says so.
 *   FLASHGMM_CPU_ISA      the CPU path's instruction set; one the machine lacks is a skip.
 *   FLASHGMM_TEST_SCALE   most multiply-adds (rows x components x features) a case may take; default 4e6.
 *   FLASHGMM_TEST_SHORT   for a short run: every so-manieth problem, 1 for all, each in one of the settings; the seed
 *                         says which.
 *   FLASHGMM_TEST_SEED    the seed; otherwise fresh for each run. It is printed either way. tools/check.sh makes it of
 *                         the sources, so that a change is tested on data of its own, the same wherever.
 */
#ifndef FGMM_TESTS_HARNESS_H
#define FGMM_TESTS_HARNESS_H

#include <check.h>
#include <flashgmm/flashgmm.h>

/* One program a room: finds the device, prints it and the seed, runs the suite without forking (gcc's libgomp hangs
 * in a forked child). @return what main should return. */
int harness_main(const char *name, TCase *(*const *rooms)(void), int count);

/* The context under test, made by harness_main. */
fgmm_context *harness_context(void);

/* Another context on the same device. @param options NULL, or what to set beside the device. */
fgmm_status harness_open(fgmm_context **out, const fgmm_context_options *options);

int harness_is_cpu(void);
int harness_is_short(void);
/* In a short run: two turns in three of an OpenCL device, and of a slow one all but harness_takes' own. */
int harness_passes_over(int turn);
int harness_takes(int turn);    /* whether it is this problem's turn in a short run; always in a long one */
int64_t harness_scale(void);    /* most multiply-adds a case */
int harness_is_slow(void);      /* the device takes so few that each launch counts */
int harness_is_simulated(void); /* and each multiply-add */

/* Rows for a case of k x d: `want`, or fewer where the scale asks for it. */
int64_t harness_rows(int64_t want, int64_t k, int64_t d);

/* Path of a file of the source tree's tests/ folder; static storage, valid until the next call. */
const char *harness_path(const char *relative);

/* A fresh folder for files, removed with what is in it by harness_main. */
const char *harness_scratch(void);

/* Random numbers: the same on every machine for the same seed and stream. */
typedef struct rng {
    uint64_t state;
} rng;
rng rng_make(uint64_t stream);
uint64_t rng_bits(rng *r);
double rng_uniform(rng *r); /* in (0, 1) */
double rng_normal(rng *r);

/* Memory that ends the program when there is none. */
void *test_alloc(size_t count, size_t size);

/* ck_assert_msg for inner loops: Check records every assertion that holds, which takes longer than most do. */
#define EXPECT(condition, ...)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) ck_abort_msg(__VA_ARGS__);                                                                   \
    } while (0)

#define CHECK_OK(ctx, call)                                                                                            \
    do {                                                                                                               \
        fgmm_status check_status_ = (call);                                                                            \
        ck_assert_msg(check_status_ == FGMM_OK, "%s: %s: %s", #call, fgmm_status_name(check_status_),                  \
                      fgmm_context_message(ctx));                                                                      \
    } while (0)

/* The call fails with `expected` and says why. */
#define CHECK_FAILS(ctx, expected, call)                                                                               \
    do {                                                                                                               \
        fgmm_status check_status_ = (call);                                                                            \
        ck_assert_msg(check_status_ == (expected), "%s: %s (\"%s\") where %s was expected", #call,                     \
                      fgmm_status_name(check_status_), fgmm_context_message(ctx), fgmm_status_name(expected));         \
        ck_assert_msg(fgmm_context_message(ctx)[0] != '\0', "%s: no message", #call);                                  \
    } while (0)

#endif
