/* Statistics as .npz: the sums, and the model that they were taken under. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../dispatch.h"
#include "stats_file.h"

/* Says in a word what kind of file this is, and its version. */
static const char stats_kind[] = "flashgmm statistics 1";

fgmm_status fgmm_stats_write(fgmm_context *ctx, const fgmm_stats *stats, const fgmm_array *extra, const char *path) {
    char fingerprint[24];
    const fgmm_model *model = stats->model;
    const int64_t k = model->k, d = model->d;
    int64_t shape[3]; /* of covariances and s2 */
    const int ndim = fgmm_covariances_shape(model->type, k, d, shape);
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, fgmm_model_fingerprint(model));
    fgmm_npz_entry entries[] = {
        {{"kind", FGMM_U8, 0, {0, 0, 0}, NULL}, stats_kind},
        {{"fingerprint", FGMM_U8, 0, {0, 0, 0}, NULL}, fingerprint},
        {{"covariance_type", FGMM_U8, 0, {0, 0, 0}, NULL}, fgmm_covariance_name(model->type)},
        {{"weights", FGMM_F64, 1, {k, 0, 0}, model->weights}, NULL},
        {{"means", FGMM_F64, 2, {k, d, 0}, model->means}, NULL},
        {{"covariances", FGMM_F64, ndim, {shape[0], shape[1], shape[2]}, model->covariances}, NULL},
        {{"centres", FGMM_F64, 2, {k, d, 0}, stats->centres}, NULL},
        {{"s0", FGMM_F64, 1, {k, 0, 0}, stats->s0}, NULL},
        {{"s1", FGMM_F64, 2, {k, d, 0}, stats->s1}, NULL},
        {{"s2", FGMM_F64, ndim, {shape[0], shape[1], shape[2]}, stats->s2}, NULL},
        {{"log_likelihood", FGMM_F64, 0, {0, 0, 0}, &stats->log_likelihood}, NULL},
        {{"weight", FGMM_F64, 0, {0, 0, 0}, &stats->weight}, NULL},
        {{"rows", FGMM_F64, 0, {0, 0, 0}, &stats->rows}, NULL},
        {{NULL, FGMM_F64, 0, {0, 0, 0}, NULL}, NULL}, /* extra */
    };
    const int count = (int)(sizeof entries / sizeof *entries);
    if (extra) entries[count - 1].array = *extra;
    return fgmm_npz_write(ctx, path, entries, extra ? count : count - 1);
}

fgmm_status fgmm_stats_save(fgmm_context *ctx, const fgmm_stats *stats, const char *path) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!stats || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving statistics: a pointer is NULL");
    return fgmm_stats_write(ctx, stats, NULL, path);
}

/* Finite numbers of that shape; @param least the smallest that will do. */
static fgmm_status need_finite(fgmm_context *ctx, const fgmm_npz *npz, const char *path, const char *name, int ndim,
                               const int64_t *shape, double least, double *out) {
    const double *values;
    int64_t count = 1;
    FGMM_TRY(fgmm_npz_need(npz, path, name, ndim, shape, &values));
    for (int i = 0; i < ndim; i++) count *= shape[i];
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i]) || values[i] < least)
            return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: element %lld of '%s' is %g, which cannot be", path,
                             (long long)i, name, values[i]);
    memcpy(out, values, (size_t)count * sizeof *out);
    return FGMM_OK;
}

static fgmm_status fill(fgmm_context *ctx, const fgmm_npz *npz, const char *path, fgmm_stats *stats) {
    const int64_t k = stats->model->k, d = stats->model->d, shape[2] = {k, d};
    int64_t s2_shape[3];
    const int ndim = fgmm_covariances_shape(stats->model->type, k, d, s2_shape);
    stats->about_means = 0;
    FGMM_TRY(need_finite(ctx, npz, path, "centres", 2, shape, -INFINITY, stats->centres));
    FGMM_TRY(need_finite(ctx, npz, path, "s0", 1, shape, 0, stats->s0));
    FGMM_TRY(need_finite(ctx, npz, path, "s1", 2, shape, -INFINITY, stats->s1));
    FGMM_TRY(
        need_finite(ctx, npz, path, "s2", ndim, s2_shape, -INFINITY, stats->s2)); /* moved sums may round below 0 */
    FGMM_TRY(need_finite(ctx, npz, path, "log_likelihood", 0, NULL, -INFINITY, &stats->log_likelihood));
    FGMM_TRY(need_finite(ctx, npz, path, "weight", 0, NULL, 0, &stats->weight));
    return need_finite(ctx, npz, path, "rows", 0, NULL, 0, &stats->rows);
}

fgmm_status fgmm_stats_from_npz(fgmm_context *ctx, const fgmm_npz *npz, const char *path, fgmm_stats **out) {
    const char *kind = fgmm_npz_string(npz, "kind"), *type = fgmm_npz_string(npz, "covariance_type");
    const char *fingerprint = fgmm_npz_string(npz, "fingerprint");
    const int64_t *shape;
    const double *weights, *means, *covariances;
    fgmm_model *model = NULL;
    fgmm_stats *stats = NULL;
    fgmm_status status;
    char *end;
    if (!kind || strcmp(kind, stats_kind) != 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: not statistics that this version reads: 'kind' is %s%.40s%s", path,
                         kind ? "\"" : "missing", kind ? kind : "", kind ? "\"" : "");
    int found = FGMM_FULL;
    while (type && found >= 0 && strcmp(type, fgmm_covariance_name((fgmm_covariance)found)) != 0) found--;
    if (!type || found < 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'covariance_type' is not spherical, diag, tied or full", path);
    FGMM_TRY(fgmm_npz_shape(npz, path, "means", 2, &shape));
    FGMM_TRY(fgmm_npz_need(npz, path, "means", 2, shape, &means));
    FGMM_TRY(fgmm_npz_need(npz, path, "weights", 1, shape, &weights));
    int64_t k = shape[0], d = shape[1], covariances_shape[3];
    int ndim = fgmm_covariances_shape((fgmm_covariance)found, k, d, covariances_shape);
    FGMM_TRY(fgmm_npz_need(npz, path, "covariances", ndim, covariances_shape, &covariances));
    status = fgmm_model_create(ctx, &model, (fgmm_covariance)found, k, d, weights, means, covariances);
    if (status != FGMM_OK) return fgmm_fail_at(ctx, status == FGMM_ERR_INVALID ? FGMM_ERR_FORMAT : status, path);
    for (int64_t i = 0; i < model->k && status == FGMM_OK; i++)
        if (fabs(model->weights[i] - weights[i]) > 1e-9)
            status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: the 'weights' do not sum to 1", path);
    if (status != FGMM_OK) goto done;
    /* Bit for bit, or the fingerprint would differ. */
    memcpy(model->weights, weights, (size_t)model->k * sizeof *weights);
    FGMM_GO(fgmm_stats_create(ctx, &stats, model));
    uint64_t found_fingerprint = fgmm_model_fingerprint(stats->model);
    if (!fingerprint || strlen(fingerprint) != 16 || strtoull(fingerprint, &end, 16) != found_fingerprint || *end) {
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'fingerprint' is not that of the model inside", path);
        goto done;
    }
    status = fill(ctx, npz, path, stats);
done:
    fgmm_model_free(ctx, model);
    if (status == FGMM_OK)
        *out = stats;
    else
        fgmm_stats_free(ctx, stats);
    return status;
}

fgmm_status fgmm_stats_load(fgmm_context *ctx, fgmm_stats **out, const char *path) {
    fgmm_npz *npz = NULL;
    fgmm_status status;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "loading statistics: a pointer is NULL");
    *out = NULL;
    FGMM_TRY(fgmm_npz_read(ctx, &npz, path, FGMM_NPZ_LIMIT));
    status = fgmm_stats_from_npz(ctx, npz, path, out);
    fgmm_npz_free(ctx, npz);
    return status;
}
