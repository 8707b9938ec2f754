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
    int diag;
    void *rows;            /* [n, stride] of type; what lies between rows is NaN where the type has it */
    double *weights;       /* [n] or NULL */
    double *model_weights; /* [k] */
    double *means;         /* [k, d] */
    double *covariances;   /* [k] or [k, d] */
} problem;

typedef struct problem_case problem_case; /* what problem_make makes; private to data_sets.c */

/* How many there are, and their names. */
int problem_count(void);
const char *problem_name(int which);

/* @param diag 1 for diagonal, 0 for spherical. @return NULL where the scale leaves the case no sensible number of rows. */
problem *problem_make(int which, int diag);
/* The one of that name. */
problem *problem_named(const char *name, int diag);

/* Well separated clusters, n x d of float, for tests that need only some data; the model is near the truth. */
problem *problem_clusters(uint64_t stream, int64_t n, int64_t k, int64_t d, int diag, fgmm_dtype type);

void problem_free(problem *p);

/* The problem's rows (with weights) and model through the public interface; failures fail the test. */
fgmm_rows *problem_rows(fgmm_context *ctx, const problem *p);
fgmm_model *problem_model(fgmm_context *ctx, const problem *p);

/* value rounded to type and stored as element i. */
void store_value(void *rows, fgmm_dtype type, int64_t i, double value);

#endif
