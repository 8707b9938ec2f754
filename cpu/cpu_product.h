/* Kernels of the product engine, built once per instruction set. */
#ifndef FGMM_CPU_PRODUCT_H
#define FGMM_CPU_PRODUCT_H

#include "cpu_vector.h"

void CPU_OWN(product_logits)(const cpu_products *p, const float *x, const double *square, int n, double *out);
double CPU_OWN(product_exp)(const double *logits, int64_t n, double top, float *out);
int64_t CPU_OWN(product_keep)(float *e, const float *least, int64_t n, float scale, float cut);
void CPU_OWN(product_sums)(const cpu_products *p, const float *x, const float *r, int n, double *s);

#endif
