/* Kernels for tied and full covariances, built once per instruction set. */
#ifndef FGMM_CPU_MATRIX_H
#define FGMM_CPU_MATRIX_H

#include "cpu_vector.h"

/* Columns that whiten takes together. */
enum { STRIP = 2 * DOUBLES };
_Static_assert((int)STRIP <= (int)CPU_STRIP_MAX, "arrays of a strip are sized by CPU_STRIP_MAX");
_Static_assert(CPU_PRODUCT_ROWS <= CPU_TILE_ROWS, "the product engine's rows use the screen's slots");

void CPU_OWN(whiten)(const double *w, const double *x, const double *mean, int64_t d, const double *limit, double *t,
                     double *y, double *q);
void CPU_OWN(deviate)(const double *x, const double *centre, double share, int64_t d, double *t, double *wt);
void CPU_OWN(scatter)(const double *t, const double *wt, int64_t stride, int n, int64_t d, int64_t from, int64_t to,
                      double *matrix);

#endif
