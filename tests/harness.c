#include "harness.h"

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_SKIP = 77, TAKEN = 3 /* turns of an OpenCL device, of which one is taken in a short run */ };

static struct {
    char device[64];
    int is_cpu, every;
    int64_t scale;
    uint64_t seed;
    fgmm_context *ctx;
    char scratch[PATH_MAX];
} test;

void *test_alloc(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (!p) {
        fprintf(stderr, "the test itself has no memory for %zu x %zu bytes\n", count, size);
        exit(EXIT_FAILURE);
    }
    return p;
}

/* ---- random numbers ---- */

/* SplitMix64 (Steele, Lea, Flood 2014). */
uint64_t rng_bits(rng *r) {
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

rng rng_make(uint64_t stream) {
    rng r = {test.seed ^ (stream * 0xd1342543de82ef95u)};
    r.state = rng_bits(&r);
    return r;
}

double rng_uniform(rng *r) {
    return ((double)(rng_bits(r) >> 11) + 0.5) * 0x1p-53;
}

double rng_normal(rng *r) {
    double radius = sqrt(-2.0 * log(rng_uniform(r)));
    return radius * cos(6.283185307179586 * rng_uniform(r));
}

/* ---- the device under test ---- */

static int holds(const char *text, const char *word) {
    size_t n = strlen(word);
    for (; *text; text++) {
        size_t i = 0;
        while (i < n && text[i] && tolower((unsigned char)text[i]) == tolower((unsigned char)word[i])) i++;
        if (i == n) return 1;
    }
    return n == 0;
}

/* The id of the first OpenCL device that matches; 0 with the reason printed if there is none. */
static int find_opencl(const char *word) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    fgmm_context *ctx = NULL;
    fgmm_device_info *list = NULL;
    char note[256] = "";
    int count = 0, found = 0;

    options.device = "auto";
    if (fgmm_context_create(&ctx, &options) != FGMM_OK) return 0;
    if (fgmm_device_list(ctx, &list, &count, note, sizeof note) == FGMM_OK) {
        for (int i = 0; i < count && !found; i++) {
            if (list[i].native || !list[i].usable) continue;
            if (!holds(list[i].id, word) && !holds(list[i].name, word) && !holds(list[i].vendor, word) &&
                !holds(list[i].kind, word))
                continue;
            snprintf(test.device, sizeof test.device, "%s", list[i].id);
            found = 1;
        }
    }
    if (!found) printf("skipped: no usable OpenCL device matches \"%s\"%s%s\n", word, *note ? ": " : "", note);
    fgmm_device_list_free(ctx, list);
    fgmm_context_free(ctx);
    return found;
}

fgmm_status harness_open(fgmm_context **out, const fgmm_context_options *options) {
    fgmm_context_options mine = FGMM_CONTEXT_OPTIONS_INIT;
    if (options) mine = *options;
    mine.device = test.device;
    return fgmm_context_create(out, &mine);
}

/* @return 0 to go on, else what main returns. */
static int open_device(void) {
    const char *want = getenv("FLASHGMM_TEST_DEVICE");
    const char *isa = getenv("FLASHGMM_CPU_ISA");
    char error[512] = "";
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;

    if (!want || !*want) want = "cpu";
    if (strncmp(want, "opencl", 6) == 0) {
        if (!find_opencl(want[6] == ':' ? want + 7 : "")) return EXIT_SKIP;
    } else {
        test.is_cpu = strcmp(want, "cpu") == 0;
        snprintf(test.device, sizeof test.device, "%s", want);
    }
    options.error = error;
    options.error_size = sizeof error;
    fgmm_status status = harness_open(&test.ctx, &options);
    if (status == FGMM_OK) return 0;
    /* The machine or the build may lack an instruction set, but for these two. */
    int may_miss = test.is_cpu && isa && strcmp(isa, "scalar") != 0 && strcmp(isa, "baseline") != 0;
    printf("%s: %s%s%s: %s\n", may_miss ? "skipped" : "cannot open", test.device, isa ? " " : "", isa ? isa : "",
           error);
    return may_miss ? EXIT_SKIP : EXIT_FAILURE;
}

fgmm_context *harness_context(void) {
    return test.ctx;
}
int harness_is_short(void) {
    return test.every > 0;
}
static int is_one_in(int every, int turn) {
    return ((uint64_t)turn + test.seed) % (uint64_t)every == 0;
}
int harness_takes(int turn) {
    return test.every == 0 || is_one_in(test.every, turn);
}
int harness_is_cpu(void) {
    return test.is_cpu;
}
int64_t harness_scale(void) {
    return test.scale;
}
int harness_is_slow(void) {
    return test.scale < 1000000;
}

int harness_is_simulated(void) {
    return test.scale < 10000;
}

int harness_passes_over(int turn) {
    if (harness_is_slow()) return !harness_takes(turn);
    return !test.is_cpu && harness_is_short() && !is_one_in(TAKEN, turn);
}

int64_t harness_rows(int64_t want, int64_t k, int64_t d) {
    int64_t most = test.scale / (k * d);
    if (most < 1) most = 1;
    return want < most ? want : most;
}

/* ---- files ---- */

const char *harness_path(const char *relative) {
    static char path[PATH_MAX];
    const char *root = getenv("FLASHGMM_TEST_SOURCE");
    snprintf(path, sizeof path, "%s/%s", root ? root : FGMM_TEST_SOURCE, relative);
    return path;
}

const char *harness_scratch(void) {
    if (!test.scratch[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(test.scratch, sizeof test.scratch, "%s/flashgmm-test-XXXXXX", base && *base ? base : "/tmp");
        if (!mkdtemp(test.scratch)) {
            perror(test.scratch);
            exit(EXIT_FAILURE);
        }
    }
    return test.scratch;
}

static void remove_scratch(void) {
    if (!test.scratch[0]) return;
    DIR *folder = opendir(test.scratch);
    if (folder) {
        for (struct dirent *entry; (entry = readdir(folder));) {
            if (entry->d_name[0] != '.') unlinkat(dirfd(folder), entry->d_name, 0);
        }
        closedir(folder);
    }
    rmdir(test.scratch);
}

/* ---- the program ---- */

int harness_main(const char *name, TCase *(*const *rooms)(void), int count) {
    const char *scale = getenv("FLASHGMM_TEST_SCALE");
    const char *every = getenv("FLASHGMM_TEST_SHORT");
    const char *seed = getenv("FLASHGMM_TEST_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);

    setvbuf(stdout, NULL, _IOLBF, 0);
    test.scale = scale && *scale ? (int64_t)strtod(scale, NULL) : 4000000;
    test.every = every && *every ? atoi(every) : 0;
    test.seed = seed && *seed ? strtoull(seed, NULL, 10) : (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
    int stop = open_device();
    if (stop) return stop;
    printf("%s on %s, FLASHGMM_TEST_SEED=%" PRIu64 "\n", name, fgmm_context_device(test.ctx), test.seed);

    Suite *suite = suite_create(name);
    for (int i = 0; i < count; i++) suite_add_tcase(suite, rooms[i]());
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    fgmm_context_free(test.ctx);
    remove_scratch();
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
