/* Symmetric positive definite matrices, in double, row-major. Only lower triangles are read and written unless said
 * otherwise. */
#ifndef FGMM_LIB_CHOLESKY_H
#define FGMM_LIB_CHOLESKY_H

#include <stdint.h>

/* A = L L', L over A's lower triangle. @return -1, or the number of the first row whose pivot is not positive beyond
 * rounding: A is then spoilt. */
int64_t fgmm_cholesky(double *a, int64_t d);

/* W = L^-1 over L. @param row room for d doubles. */
void fgmm_lower_invert(double *l, int64_t d, double *row);

/* A = W' W, the inverse of the matrix whose factor W inverts; the whole of a. @param a not w. */
void fgmm_lower_gram(const double *w, int64_t d, double *a);

/* Copies the lower triangle to the upper one. */
void fgmm_lower_mirror(double *a, int64_t d);

/* a . b over n. */
double fgmm_dot(const double *a, const double *b, int64_t n);

/* Rows from .. to-1 of T += s0 h h' - h s1' - s1 h': moves T = sum w r (x - c)(x - c)' to the centre c + h, given s1
 * = sum w r (x - c). */
void fgmm_scatter_move(double *t, int64_t d, int64_t from, int64_t to, double s0, const double *s1, const double *h);

#endif
