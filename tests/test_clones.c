/* Host loops that are built for several instruction sets add up alike: lib/clones.h. */
#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lib/stats.h"

#if defined(__x86_64__) && defined(__GNUC__)

enum { MOST = 700, TIMES = 2000 };

__attribute__((target("avx2"))) static void moved_avx2(const fgmm_stats *stats, double *square, double *floor) {
    fgmm_stats_moved(stats, 0, square, floor);
}

__attribute__((noinline)) static void moved_default(const fgmm_stats *stats, double *square, double *floor) {
    fgmm_stats_moved(stats, 0, square, floor);
}

/* In [-1, 1), times a power of two: sums of such depend on their order. */
static double next_value(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    double value = (double)(int64_t)(*state & ~UINT64_C(2047)) * 0x1p-63;
    return (*state >> 11) % 7 ? value : 1024 * value;
}

START_TEST(sums_are_the_same) {
    const char *asked = getenv("FLASHGMM_TEST_SEED");
    uint64_t state = asked ? strtoull(asked, NULL, 10) : 1;
    static double centres[MOST], s1[MOST];
    if (!__builtin_cpu_supports("avx2")) return;
    for (int i = 0; i < TIMES; i++) {
        double s0 = 1 + 10 * next_value(&state) * next_value(&state), square[2], floor[2];
        fgmm_model model = {.type = FGMM_SPHERICAL, .k = 1, .d = 1 + i % MOST};
        const fgmm_stats stats = {.model = &model, .centres = centres, .s0 = &s0, .s1 = s1};
        for (int j = 0; j < model.d; j++) {
            centres[j] = next_value(&state);
            s1[j] = next_value(&state);
        }
        moved_avx2(&stats, &square[0], &floor[0]);
        moved_default(&stats, &square[1], &floor[1]);
        ck_assert_msg(memcmp(&square[0], &square[1], sizeof *square) == 0, "%lld features: %a and %a",
                      (long long)model.d, square[0], square[1]);
        ck_assert_msg(memcmp(&floor[0], &floor[1], sizeof *floor) == 0, "%lld features: %a and %a", (long long)model.d,
                      floor[0], floor[1]);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("clones");
    TCase *room = tcase_create("clones");
    tcase_add_test(room, sums_are_the_same);
    suite_add_tcase(suite, room);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#else

int main(void) {
    puts("skipped: host loops are built once on this processor");
    return 77;
}

#endif
