/* Rows and queries for tests of indexes, with distances as they are written, in double. */
#ifndef FGMM_TESTS_IVF_DATA_H
#define FGMM_TESTS_IVF_DATA_H

#include "harness.h"

#include <flashgmm/ivf.h>

/* n rows of d features of a type, drawn about a few centres. */
typedef struct ivf_data {
    int64_t n, d;
    fgmm_dtype type;
    void *rows;     /* [n, d] */
    double *values; /* [n, d]: what the rows hold */
} ivf_data;

ivf_data *ivf_data_make(rng *r, int64_t n, int64_t d, fgmm_dtype type);
void ivf_data_free(ivf_data *data);
fgmm_rows *ivf_data_rows(fgmm_context *ctx, const ivf_data *data);

/* Smaller is nearer: |x - q|^2, 1 - cos, or -x.q. */
double ivf_distance(fgmm_metric metric, const double *x, const double *q, int64_t d);
/* How far f32 may be off: of the size of what is added up. */
double ivf_tolerance(fgmm_metric metric, const double *x, const double *q, int64_t d);

/* A model of k means drawn among the rows, of length 1 where angular; one variance. */
fgmm_model *ivf_model(fgmm_context *ctx, rng *r, const ivf_data *data, int64_t k, fgmm_metric metric);

/* |x - m_j|^2 of a row (of length 1 where angular) to all k means: out [k]. */
void ivf_list_distances(const ivf_data *data, int64_t row, const fgmm_model *model, fgmm_metric metric, double *out);

/* Results [nq, k] and what they should be. */
typedef struct results {
    int64_t nq, k;
    int64_t *ids;
    float *distances;
} results;

results results_make(int64_t nq, int64_t k);
void results_free(results *r);

/* What an index to try things on, and its queries, are of. */
typedef struct ivf_recipe {
    uint64_t stream; /* of random numbers */
    fgmm_metric metric;
    fgmm_dtype type, asked;
    int64_t n, nq, d, n_lists;
    fgmm_ivf_rule rule;
    int max_lists;
} ivf_recipe;

typedef struct ivf_fixture {
    fgmm_metric metric;
    ivf_data *base, *queries;
    fgmm_rows *rows, *asked; /* of them */
    fgmm_model *model;
    fgmm_ivf *index;             /* still empty */
    fgmm_ivf_searcher *searcher; /* NULL, for those who make one */
    results want, got;           /* [nq, 10] */
} ivf_fixture;

ivf_fixture ivf_fixture_make(fgmm_context *ctx, const ivf_recipe *of);
void ivf_fixture_free(fgmm_context *ctx, ivf_fixture *f);

/*
 * ids must be k different rows that are the nearest but for rounding, in order, with their distances. wanted: NULL, or
 * which rows may be found at all, by number. ids are row numbers.
 */
void check_nearest(const ivf_data *base, const ivf_data *queries, fgmm_metric metric, const results *r,
                   const unsigned char *wanted);

#endif
