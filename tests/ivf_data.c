#include "ivf_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data_sets.h"
#include "reference.h"

ivf_data *ivf_data_make(rng *r, int64_t n, int64_t d, fgmm_dtype type) {
    enum { CENTRES = 12 };
    ivf_data *data = test_alloc(1, sizeof *data);
    *data = (ivf_data){.n = n, .d = d, .type = type};
    data->rows = test_alloc((size_t)(n * d), fgmm_dtype_size(type));
    data->values = test_alloc((size_t)(n * d), sizeof(double));
    double *centres = test_alloc((size_t)(CENTRES * d), sizeof *centres);
    int bytes = type == FGMM_U8 || type == FGMM_I8;
    for (int64_t i = 0; i < CENTRES * d; i++) centres[i] = bytes ? 90 * rng_uniform(r) - 20 : rng_normal(r);
    for (int64_t i = 0; i < n; i++) {
        const double *centre = centres + (int64_t)(rng_uniform(r) * CENTRES) * d;
        for (int64_t j = 0; j < d; j++) {
            double value = centre[j] + (bytes ? 12 : 0.5) * rng_normal(r);
            if (type == FGMM_U8) value = fmin(255, fmax(0, value + 60));
            /* No row of zeros alone: it has no angle. */
            if (bytes && j == 0 && fabs(value) < 1) value = 1;
            store_value(data->rows, type, i * d + j, value);
            data->values[i * d + j] = reference_value(data->rows, type, i * d + j);
        }
    }
    free(centres);
    return data;
}

void ivf_data_free(ivf_data *data) {
    if (!data) return;
    free(data->rows);
    free(data->values);
    free(data);
}

fgmm_rows *ivf_data_rows(fgmm_context *ctx, const ivf_data *data) {
    fgmm_rows *rows = NULL;
    CHECK_OK(ctx, fgmm_rows_from_memory(ctx, &rows, data->rows, data->type, data->n, data->d, 0));
    return rows;
}

double ivf_distance(fgmm_metric metric, const double *x, const double *q, int64_t d) {
    double l2 = 0, dot = 0, xx = 0, qq = 0;
    for (int64_t j = 0; j < d; j++) {
        l2 += (x[j] - q[j]) * (x[j] - q[j]);
        dot += x[j] * q[j];
        xx += x[j] * x[j];
        qq += q[j] * q[j];
    }
    return metric == FGMM_L2 ? l2 : metric == FGMM_ANGULAR ? 1 - dot / sqrt(xx * qq) : -dot;
}

double ivf_tolerance(fgmm_metric metric, const double *x, const double *q, int64_t d) {
    double terms = 0;
    for (int64_t j = 0; j < d; j++) terms += metric == FGMM_L2 ? (x[j] - q[j]) * (x[j] - q[j]) : fabs(x[j] * q[j]);
    /* Up to d roundings of 2^-24 each, and as many of the differences. */
    double off = 2 * ((double)d + 8) * 0x1p-24;
    return metric == FGMM_ANGULAR ? 2 * off : off * terms + 1e-30;
}

fgmm_model *ivf_model(fgmm_context *ctx, rng *r, const ivf_data *data, int64_t k, fgmm_metric metric) {
    int64_t d = data->d;
    double *means = test_alloc((size_t)(k * d), sizeof *means), *variances = test_alloc((size_t)k, sizeof *variances);
    double spread = 0;
    for (int64_t i = 0; i < k; i++) {
        double square = 0;
        const double *row = data->values + (int64_t)(rng_uniform(r) * (double)data->n) * d;
        for (int64_t j = 0; j < d; j++) {
            means[i * d + j] = (float)(row[j] * (1 + 0.1 * rng_normal(r)) + 0.01 * rng_normal(r));
            square += means[i * d + j] * means[i * d + j];
        }
        for (int64_t j = 0; j < d && metric == FGMM_ANGULAR; j++)
            means[i * d + j] = (float)(means[i * d + j] / sqrt(square));
        spread += metric == FGMM_ANGULAR ? 1.0 / (double)(k * d) : square / (double)(k * d);
    }
    for (int64_t i = 0; i < k; i++) variances[i] = 0.2 * spread;
    fgmm_model *model = NULL;
    CHECK_OK(ctx, fgmm_model_create(ctx, &model, FGMM_SPHERICAL, k, d, NULL, means, variances));
    free(means);
    free(variances);
    return model;
}

void ivf_list_distances(const ivf_data *data, int64_t row, const fgmm_model *model, fgmm_metric metric, double *out) {
    int64_t d = data->d;
    const double *x = data->values + row * d;
    double square = 0;
    for (int64_t j = 0; j < d; j++) square += x[j] * x[j];
    double scale = metric == FGMM_ANGULAR ? 1 / sqrt(square) : 1;
    for (int64_t k = 0; k < fgmm_model_components(model); k++) {
        out[k] = 0;
        for (int64_t j = 0; j < d; j++) {
            double t = x[j] * scale - fgmm_model_means(model)[k * d + j];
            out[k] += t * t;
        }
    }
}

results results_make(int64_t nq, int64_t k) {
    results out = {.nq = nq, .k = k};
    out.ids = test_alloc((size_t)(nq * k), sizeof *out.ids);
    out.distances = test_alloc((size_t)(nq * k), sizeof *out.distances);
    return out;
}

void results_free(results *r) {
    free(r->ids);
    free(r->distances);
}

ivf_fixture ivf_fixture_make(fgmm_context *ctx, const ivf_recipe *of) {
    rng r = rng_make(of->stream);
    ivf_fixture f = {.metric = of->metric};
    f.base = ivf_data_make(&r, of->n, of->d, of->type);
    f.queries = ivf_data_make(&r, of->nq, of->d, of->asked);
    f.rows = ivf_data_rows(ctx, f.base);
    f.asked = ivf_data_rows(ctx, f.queries);
    f.model = ivf_model(ctx, &r, f.base, of->n_lists, f.metric);
    fgmm_ivf_options o = FGMM_IVF_OPTIONS_INIT;
    o.metric = f.metric;
    o.rule = of->rule;
    o.max_lists = of->max_lists;
    CHECK_OK(ctx, fgmm_ivf_create(ctx, &f.index, f.model, &o));
    f.want = results_make(of->nq, 10);
    f.got = results_make(of->nq, 10);
    return f;
}

void ivf_fixture_free(fgmm_context *ctx, ivf_fixture *f) {
    results_free(&f->got);
    results_free(&f->want);
    fgmm_ivf_searcher_free(ctx, f->searcher);
    fgmm_ivf_free(ctx, f->index);
    fgmm_model_free(ctx, f->model);
    fgmm_rows_free(ctx, f->asked);
    fgmm_rows_free(ctx, f->rows);
    ivf_data_free(f->queries);
    ivf_data_free(f->base);
}

void check_nearest(const ivf_data *base, const ivf_data *queries, fgmm_metric metric, const results *r,
                   const unsigned char *wanted) {
    for (int64_t q = 0; q < r->nq; q++) {
        const double *query = queries->values + q * base->d;
        double sign = metric == FGMM_INNER_PRODUCT ? -1 : 1, last = -INFINITY;
        int64_t found = 0, there = 0, nearer = 0;
        for (int64_t i = 0; i < base->n; i++) there += !wanted || wanted[i];
        for (int64_t i = 0; i < r->k; i++) {
            int64_t id = r->ids[q * r->k + i];
            double told = sign * (double)r->distances[q * r->k + i];
            if (id < 0) {
                EXPECT(id == -1 && told == INFINITY, "query %d: id %lld at %g", (int)q, (long long)id, told);
                continue;
            }
            EXPECT(found == i && id < base->n && (!wanted || wanted[id]), "query %d: id %lld", (int)q, (long long)id);
            found++;
            const double *row = base->values + id * base->d;
            double truth = ivf_distance(metric, row, query, base->d);
            EXPECT(fabs(told - truth) <= ivf_tolerance(metric, row, query, base->d),
                   "query %d, row %lld: %.9g, not %.9g", (int)q, (long long)id, told, truth);
            EXPECT(told >= last, "query %d: out of order", (int)q);
            for (int64_t j = 0; j < i; j++)
                EXPECT(r->ids[q * r->k + j] != id, "query %d: id %lld comes twice", (int)q, (long long)id);
            last = told;
        }
        EXPECT(found == (there < r->k ? there : r->k), "query %d: %d of %d found", (int)q, (int)found, (int)there);
        if (found == there) continue;
        for (int64_t i = 0; i < base->n; i++) {
            const double *row = base->values + i * base->d;
            nearer += (!wanted || wanted[i]) &&
                      ivf_distance(metric, row, query, base->d) < last - 2 * ivf_tolerance(metric, row, query, base->d);
        }
        EXPECT(nearer <= r->k - 1, "query %d: %d rows are nearer than the last", (int)q, (int)nearer);
    }
}
