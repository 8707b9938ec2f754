/* Products with triangular and symmetric matrices in double: built once per instruction set, see cpu_vector.h. */
#include "cpu_matrix.h"

/* Rows of a matrix a micro-tile takes: with STRIP columns they fill half of the registers or more. */
enum { TILE = CPU_VECTOR_BYTES == 64 ? 8 : 4 };

/* ---- whiten: STRIP columns, a column a lane ---- */

/* y = rows j0 .. j0 + rows - 1 of W t; adds their squares to q. */
static inline __attribute__((always_inline)) void whiten_tile(const double *restrict w, const double *restrict t,
                                                              int64_t d, int64_t j0, const int rows, double *y,
                                                              vd q[2]) {
    vd sum[TILE][2];
    UNROLL(8)
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vd){0};
    for (int64_t l = 0; l < j0 + rows; l++) { /* the zeros above the diagonal make the last tile whole */
        vd a = load(t + l * STRIP), b = load(t + l * STRIP + DOUBLES);
        UNROLL(8)
        for (int i = 0; i < rows; i++) {
            vd factor = splat(w[(j0 + i) * d + l]);
            sum[i][0] += factor * a;
            sum[i][1] += factor * b;
        }
    }
    UNROLL(8)
    for (int i = 0; i < rows; i++) {
        q[0] += sum[i][0] * sum[i][0];
        q[1] += sum[i][1] * sum[i][1];
        if (y) {
            store(y + (j0 + i) * STRIP, sum[i][0]);
            store(y + (j0 + i) * STRIP + DOUBLES, sum[i][1]);
        }
    }
}

/* Rows from .. to-1 of t = x - mean. */
static inline void subtract(const double *x, const double *mean, int64_t from, int64_t to, double *t) {
    for (int64_t j = from; j < to; j++) {
        vd m = splat(mean ? mean[j] : 0);
        store(t + j * STRIP, load(x + j * STRIP) - m);
        store(t + j * STRIP + DOUBLES, load(x + j * STRIP + DOUBLES) - m);
    }
}

static int all_beyond(const vd q[2], const double *limit) {
    vl beyond = (0.5 * q[0] > load(limit)) & (0.5 * q[1] > load(limit + DOUBLES));
    int64_t all = -1;
    for (int i = 0; i < DOUBLES; i++) all &= beyond[i];
    return all != 0;
}

/* q [STRIP] = 1/2 |W (x - mean)|^2 of each column of x [d, STRIP], W lower triangular; mean NULL: 0; t: room for x -
 * mean; y: NULL or W (x - mean) [d, STRIP]. The sum only grows with the rows of W: with a limit [STRIP] it stops when
 * every column is beyond its own. */
void CPU_OWN(whiten)(const double *w, const double *x, const double *mean, int64_t d, const double *limit, double *t,
                     double *y, double *q) {
    vd sum[2] = {{0}, {0}};
    int64_t j = 0;
    for (; j + TILE <= d; j += TILE) {
        subtract(x, mean, j, j + TILE, t);
        whiten_tile(w, t, d, j, TILE, y, sum);
        if (limit && all_beyond(sum, limit)) break;
    }
    if (j + TILE > d) {
        subtract(x, mean, j, d, t);
#if CPU_VECTOR_BYTES == 64
        if (d - j >= 4) whiten_tile(w, t, d, j, 4, y, sum), j += 4;
#endif
        if (d - j >= 2) whiten_tile(w, t, d, j, 2, y, sum), j += 2;
        if (d - j >= 1) whiten_tile(w, t, d, j, 1, y, sum);
    }
    store(q, 0.5 * sum[0]);
    store(q + DOUBLES, 0.5 * sum[1]);
}

/* ---- scatter ---- */

/* t = x - centre and wt = share t. */
void CPU_OWN(deviate)(const double *x, const double *centre, double share, int64_t d, double *t, double *wt) {
    int64_t j = 0;
    for (; j + DOUBLES <= d; j += DOUBLES) {
        vd v = load(x + j) - load(centre + j);
        store(t + j, v);
        store(wt + j, share * v);
    }
    for (; j < d; j++) {
        t[j] = x[j] - centre[j];
        wt[j] = share * t[j];
    }
}

/* `rows` rows from j0, STRIP columns from l0, of sum over n of wt t'. Columns from d on are not there. */
static inline __attribute__((always_inline)) void scatter_tile(const double *restrict t, const double *restrict wt,
                                                               int64_t stride, int n, int64_t d, int64_t j0,
                                                               const int rows, int64_t l0, double *matrix) {
    vd sum[TILE][2];
    UNROLL(8)
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vd){0};
    for (int e = 0; e < n; e++) {
        vd a = load(t + e * stride + l0), b = load(t + e * stride + l0 + DOUBLES);
        UNROLL(8)
        for (int i = 0; i < rows; i++) {
            vd factor = splat(wt[e * stride + j0 + i]);
            sum[i][0] += factor * a;
            sum[i][1] += factor * b;
        }
    }
    for (int i = 0; i < rows; i++) {
        double *out = matrix + (j0 + i) * d + l0;
        for (int h = 0; h < 2; h++, out += DOUBLES) {
            int64_t left = d - l0 - h * DOUBLES;
            if (left >= DOUBLES)
                store(out, load(out) + sum[i][h]);
            else
                for (int64_t lane = 0; lane < left; lane++) out[lane] += sum[i][h][lane];
        }
    }
}

/* Rows from .. to-1 of matrix [d, d] += sum over n rows of wt t', up to the diagonal and a little beyond. t and wt [n,
 * stride], zeros from d on, stride a multiple of STRIP. */
void CPU_OWN(scatter)(const double *t, const double *wt, int64_t stride, int n, int64_t d, int64_t from, int64_t to,
                      double *matrix) {
    int64_t j = from;
    for (; j + TILE <= to; j += TILE)
        for (int64_t l = 0; l < j + TILE; l += STRIP) scatter_tile(t, wt, stride, n, d, j, TILE, l, matrix);
    for (; j < to; j++)
        for (int64_t l = 0; l <= j; l += STRIP) scatter_tile(t, wt, stride, n, d, j, 1, l, matrix);
}
