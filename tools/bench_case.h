/* What the benchmarks of whole iterations share: made rows with the model a fit starts from, and the times of its
 * iterations. */
#ifndef FLASHGMM_TOOLS_BENCH_CASE_H
#define FLASHGMM_TOOLS_BENCH_CASE_H

#include "bench_data.h"
#include "cli.h"

/* Rows and start; zero-initialise. */
typedef struct bench_case {
    bench_data data;
    float *x, *means, *centres; /* [n, d] or NULL, [k, d], [k, d] */
    void *stored;               /* x as data.type has it: x itself if that is f32 */
    fgmm_rows *rows;
    fgmm_model *start; /* means, variance 1, equal weights */
} bench_case;

/* @param makers 0: rows in memory; else a source that so many threads make rows for whenever it is read. @return CLI_DONE, or CLI_FAILED after a message; bench_case_free either way. */
int bench_case_make(bench_case *c, const cli_session *s, const bench_data *data, fgmm_covariance type, int makers);
void bench_case_free(bench_case *c, const cli_session *s);

enum { BENCH_REPS_MAX = 10000 };

/* When each iteration of a fit ended, and the mean log-likelihood of its E-step. */
typedef struct bench_ticks {
    double at[BENCH_REPS_MAX + 2], lower_bound[BENCH_REPS_MAX + 2];
    int n;
} bench_ticks;

/* A fgmm_progress_fn; user is a bench_ticks. */
int bench_tick(void *user, const fgmm_progress *p);

/* Turns at[0 .. n-1] into the n-1 times between. @return n - 1 */
int bench_ticks_to_times(bench_ticks *t);

/* Multiply-adds that touch no memory, in the widest vectors of this CPU. @return FLOP/s, the best of several tries */
double bench_peak(int threads);

#endif
