/* What the benchmarks' peers in C and C++ share. Each is a program
 *
 *     PEER ROWS.npy MEANS.npy N K D ITERATIONS
 *
 * that runs so many iterations from these means (variance 1, equal weights) and prints one JSON object: {"peer": name
 * and version, "ms_each": [time of an iteration, ...], "values": [log-likelihood a row at the start, after one
 * iteration, ...]}; k-means gives its objective a row for the likelihood. Threads come from the environment. */
#ifndef FLASHGMM_TOOLS_BENCH_PEER_H
#define FLASHGMM_TOOLS_BENCH_PEER_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { PEER_TICKS_MAX = 1000 };

typedef struct peer_job {
    size_t n, k, d;
    int iterations;
    float *rows, *means; /* [n, d], [k, d] */
} peer_job;

/* When each iteration ended, and the value it had. */
typedef struct peer_ticks {
    double at[PEER_TICKS_MAX], value[PEER_TICKS_MAX];
    int n;
} peer_ticks;

static inline double peer_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The last `count` floats of a file: what an .npy of that many ends with. */
static inline float *peer_read(const char *path, size_t count) {
    float *out = (float *)malloc(count * sizeof *out);
    FILE *f = fopen(path, "rb");
    if (!out || !f || fseek(f, -(long)(count * sizeof *out), SEEK_END) != 0 ||
        fread(out, sizeof *out, count, f) != count) {
        fprintf(stderr, "cannot read %zu floats from '%s'\n", count, path);
        exit(1);
    }
    fclose(f);
    return out;
}

static inline peer_job peer_start(int argc, char **argv) {
    peer_job job;
    if (argc != 7) {
        fprintf(stderr, "usage: %s ROWS.npy MEANS.npy N K D ITERATIONS\n", argv[0]);
        exit(2);
    }
    job.n = strtoul(argv[3], NULL, 10);
    job.k = strtoul(argv[4], NULL, 10);
    job.d = strtoul(argv[5], NULL, 10);
    job.iterations = atoi(argv[6]);
    job.rows = peer_read(argv[1], job.n * job.d);
    job.means = peer_read(argv[2], job.k * job.d);
    return job;
}

static inline void peer_tick(peer_ticks *t, double value) {
    if (t->n == PEER_TICKS_MAX) return;
    t->value[t->n] = value;
    t->at[t->n++] = peer_clock();
}

/* The times are those between ticks, so what comes before the first tick is not counted. @param blas NULL, or the
 * processor that OpenBLAS has taken this one for */
static inline void peer_print(const char *name, const char *blas, const peer_ticks *t) {
    printf("{\"peer\": \"%s\", ", name);
    if (blas) printf("\"blas\": \"%s\", ", blas);
    printf("\"ms_each\": [");
    for (int i = 1; i < t->n; i++) printf("%s%.6f", i > 1 ? ", " : "", (t->at[i] - t->at[i - 1]) * 1e3);
    printf("], \"values\": [");
    for (int i = 0; i < t->n; i++) printf("%s%.17g", i ? ", " : "", t->value[i]);
    printf("]}\n");
}

#endif
