/* Made data for benchmarks: the same numbers in every program, on every machine, for any number of threads. */
#ifndef FLASHGMM_TOOLS_BENCH_DATA_H
#define FLASHGMM_TOOLS_BENCH_DATA_H

#include <stdint.h>

/* Bytes hold 12 times the number, u8 128 more, rounded and cut. */
typedef enum bench_type { BENCH_F32, BENCH_F16, BENCH_BF16, BENCH_U8, BENCH_I8 } bench_type;

/* Centres are 2 N(0, I); 0.1 N(0, I), so that all components count for each row; or 0.8 N(0, I), so that one does but
 * distances between centres do not tell which. */
typedef enum bench_spread { BENCH_SEPARATED, BENCH_OVERLAPPING, BENCH_CLOSE } bench_spread;
#define BENCH_SPREADS "separated|overlapping|close"
const char *bench_spread_name(int spread);

typedef struct bench_data {
    int64_t n, k, d;
    int spread; /* bench_spread */
    int type;   /* bench_type: what rows are stored as */
    uint64_t seed;
} bench_data;

/* @param centres [k, d] */
void bench_centres(const bench_data *b, float *centres);

/* Rows x = c_label + N(0, I). @param x [n, d] */
void bench_rows(const bench_data *b, const float *centres, float *x);

/* Rows first .. first + n - 1 of these, in the calling thread. @param x [n, d] */
void bench_some_rows(const bench_data *b, const float *centres, int64_t first, int64_t n, float *x);

/* Stores n numbers as the type has them. @param out n elements of it */
void bench_store(const bench_data *b, const float *x, int64_t n, void *out);
int64_t bench_type_size(const bench_data *b);
/* What the type makes of a number, before it is rounded: scale x + offset. */
float bench_scale(const bench_data *b);
float bench_offset(const bench_data *b);

/* Where an iteration starts: the centres moved by 0.15 of their spread. @param means [k, d] */
void bench_start(const bench_data *b, const float *centres, float *means);

double bench_clock(void); /* seconds */

/* Sorts v and returns its median. @param n at least 1 */
double bench_median(double *v, int n);

#endif
