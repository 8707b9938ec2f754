#include "cholesky.h"

#include <float.h>
#include <math.h>

/* Eight sums side by side, which every compiler makes vectors of. */
double fgmm_dot(const double *a, const double *b, int64_t n) {
    enum { LANES = 8 };
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += a[i + l] * b[i + l];
    for (; i < n; i++) sum += a[i] * b[i];
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

/* Rows that are taken together, so that what they share is read once and their sums do not wait for each other. */
enum { ROWS = 4 };

/* a . b of ROWS rows b, `step` apart. */
static void dots(const double *a, const double *b, int64_t step, int64_t n, double *out) {
    enum { LANES = 4 };
    double lane[ROWS][LANES] = {{0}};
    int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int r = 0; r < ROWS; r++)
            for (int l = 0; l < LANES; l++) lane[r][l] += a[i + l] * b[r * step + i + l];
    for (int r = 0; r < ROWS; r++) {
        out[r] = (lane[r][0] + lane[r][1]) + (lane[r][2] + lane[r][3]);
        for (int64_t i = whole; i < n; i++) out[r] += a[i] * b[r * step + i];
    }
}

int64_t fgmm_cholesky(double *a, int64_t d) {
    for (int64_t i = 0; i < d; i++) {
        double *row = a + i * d, diagonal = row[i], sums[ROWS];
        int64_t done = i - i % ROWS; /* columns that the first row of a block takes for all of it */
        if (i == done && i + ROWS <= d)
            for (int64_t j = 0; j < i; j++) {
                dots(a + j * d, row, d, j, sums);
                for (int r = 0; r < ROWS; r++) row[r * d + j] = (row[r * d + j] - sums[r]) / a[j * d + j];
            }
        if (done + ROWS > d) done = 0;
        for (int64_t j = done; j < i; j++) row[j] = (row[j] - fgmm_dot(row, a + j * d, j)) / a[j * d + j];
        double pivot = diagonal - fgmm_dot(row, row, i);
        /* What rounding leaves of a singular matrix is no pivot. */
        if (!(pivot > (double)(i + 1) * DBL_EPSILON * diagonal) || !isfinite(pivot)) return i;
        row[i] = sqrt(pivot);
    }
    return -1;
}

void fgmm_lower_invert(double *l, int64_t d, double *row) {
    for (int64_t i = 0; i < d; i++) {
        double *w = l + i * d, inverse = 1 / w[i];
        for (int64_t j = 0; j < i; j++) {
            row[j] = w[j];
            w[j] = 0;
        }
        int64_t k = 0;
        for (; k + ROWS <= i; k += ROWS) {
            const double *a = l + k * d, *b = a + d, *c = b + d, *e = c + d;
            double fa = -row[k] * inverse, fb = -row[k + 1] * inverse, fc = -row[k + 2] * inverse,
                   fe = -row[k + 3] * inverse;
            for (int64_t j = 0; j <= k; j++) w[j] += (fa * a[j] + fb * b[j]) + (fc * c[j] + fe * e[j]);
            w[k + 1] += fb * b[k + 1] + (fc * c[k + 1] + fe * e[k + 1]);
            w[k + 2] += fc * c[k + 2] + fe * e[k + 2];
            w[k + 3] += fe * e[k + 3];
        }
        for (; k < i; k++) {
            const double *above = l + k * d;
            double factor = -row[k] * inverse;
            for (int64_t j = 0; j <= k; j++) w[j] += factor * above[j];
        }
        w[i] = inverse;
    }
}

void fgmm_lower_gram(const double *w, int64_t d, double *a) {
    for (int64_t i = 0; i < d * d; i++) a[i] = 0;
    for (int64_t k = 0; k < d; k++)
        for (int64_t i = 0; i <= k; i++) {
            double factor = w[k * d + i];
            for (int64_t j = 0; j <= i; j++) a[i * d + j] += factor * w[k * d + j];
        }
    fgmm_lower_mirror(a, d);
}

void fgmm_lower_mirror(double *a, int64_t d) {
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < i; j++) a[j * d + i] = a[i * d + j];
}

void fgmm_scatter_move(double *t, int64_t d, int64_t from, int64_t to, double s0, const double *s1, const double *h) {
    for (int64_t i = from; i < to; i++) {
        double a = s0 * h[i] - s1[i], b = h[i];
        if (a == 0 && b == 0) continue;
        for (int64_t j = 0; j < d; j++) t[i * d + j] += a * h[j] - b * s1[j];
    }
}
