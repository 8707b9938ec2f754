/*
 * Problems for one EM iteration: rows as a caller would hold them, and the model to take the E-step under.
 * Rows are rounded to their type when they are made, so a reference that widens them sees what the library sees.
 */
#ifndef FGMM_TESTS_DATA_SETS_H
#define FGMM_TESTS_DATA_SETS_H

#include "harness.h"

typedef struct problem {
    const char *name;
    int64_t n, k, d;
    int64_t stride; /* elements from row to row */
    fgmm_dtype type;
    fgmm_covariance covariance;
    double reg_covar;      /* what the M-step has to add for tied and full covariances to be definite, 0 if nothing */
    void *rows;            /* [n, stride] of type; what lies between rows is NaN where the type has it */
    double *weights;       /* [n] or NULL */
    double *model_weights; /* [k] */
    double *means;         /* [k, d] */
    double *covariances;   /* [k], [k, d], [d, d] or [k, d, d] */
    double *factors;       /* lower triangular L of tied and full covariances L L', shaped alike; else NULL */
} problem;

typedef struct problem_case problem_case; /* what problem_make makes; private to data_sets.c */

/* How many there are, and their names. */
int problem_count(void);
const char *problem_name(int which);

/* @return NULL where the case is not for this type of covariance, or the scale leaves it no sensible number of rows. */
problem *problem_make(int which, fgmm_covariance covariance);
/* The one of that name. */
problem *problem_named(const char *name, fgmm_covariance covariance);

/* Well separated clusters for tests that need only some data; the model is near the truth. */
problem *problem_clusters(uint64_t stream, int64_t n, int64_t k, int64_t d, fgmm_covariance covariance,
                          fgmm_dtype type);

/* The same of float with centres so close that rows are shared, whatever d is. */
problem *problem_close(uint64_t stream, int64_t n, int64_t k, int64_t d, fgmm_covariance covariance);

void problem_free(problem *p);

/* The problem's rows (with weights) and model through the public interface; failures fail the test. */
fgmm_rows *problem_rows(fgmm_context *ctx, const problem *p);
fgmm_model *problem_model(fgmm_context *ctx, const problem *p);

enum { COVARIANCE_TYPES = 4 };

/* Whether covariances of this type are matrices: tied and full. */
int covariance_is_matrix(fgmm_covariance type);
/* Doubles in the covariances of k components in d dimensions. */
int64_t covariance_size(fgmm_covariance type, int64_t k, int64_t d);
/* Where the entry (i, j) of component k is; i == j but for matrices. */
int64_t covariance_index(fgmm_covariance type, int64_t d, int64_t k, int64_t i, int64_t j);
/* Variance of feature j of component k. */
double covariance_variance(fgmm_covariance type, const double *covariances, int64_t d, int64_t k, int64_t j);

/* value rounded to type and stored as element i. */
void store_value(void *rows, fgmm_dtype type, int64_t i, double value);

#endif
