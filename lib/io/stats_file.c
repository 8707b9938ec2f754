/* Statistics as .npz: the sums, and the model that they were taken under. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../dispatch.h"
#include "../stats.h"
#include "npz.h"

/* Says in a word what kind of file this is, and its version. */
static const char stats_kind[] = "flashgmm statistics 1";

fgmm_status fgmm_stats_save(fgmm_context *ctx, const fgmm_stats *stats, const char *path) {
    char fingerprint[24];
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!stats || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving statistics: a pointer is NULL");
    const fgmm_model *model = stats->model;
    const int ndim = model->type == FGMM_DIAG ? 2 : 1; /* of covariances and s2 */
    const int64_t k = model->k, d = model->d;
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, stats->fingerprint);
    const fgmm_npz_entry entries[] = {
        {{"kind", FGMM_U8, 0, {0, 0, 0}, NULL}, stats_kind},
        {{"fingerprint", FGMM_U8, 0, {0, 0, 0}, NULL}, fingerprint},
        {{"covariance_type", FGMM_U8, 0, {0, 0, 0}, NULL}, fgmm_covariance_name(model->type)},
        {{"weights", FGMM_F64, 1, {k, 0, 0}, model->weights}, NULL},
        {{"means", FGMM_F64, 2, {k, d, 0}, model->means}, NULL},
        {{"covariances", FGMM_F64, ndim, {k, d, 0}, model->covariances}, NULL},
        {{"centres", FGMM_F64, 2, {k, d, 0}, stats->centres}, NULL},
        {{"s0", FGMM_F64, 1, {k, 0, 0}, stats->s0}, NULL},
        {{"s1", FGMM_F64, 2, {k, d, 0}, stats->s1}, NULL},
        {{"s2", FGMM_F64, ndim, {k, d, 0}, stats->s2}, NULL},
        {{"log_likelihood", FGMM_F64, 0, {0, 0, 0}, &stats->log_likelihood}, NULL},
        {{"weight", FGMM_F64, 0, {0, 0, 0}, &stats->weight}, NULL},
        {{"rows", FGMM_F64, 0, {0, 0, 0}, &stats->rows}, NULL},
    };
    return fgmm_npz_write(ctx, path, entries, (int)(sizeof entries / sizeof *entries));
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

static fgmm_status fill(fgmm_context *ctx, const fgmm_npz *npz, const char *path, int64_t k, int64_t d, int ndim,
                        fgmm_stats *stats) {
    const int64_t shape[2] = {k, d};
    FGMM_TRY(need_finite(ctx, npz, path, "centres", 2, shape, -INFINITY, stats->centres));
    FGMM_TRY(need_finite(ctx, npz, path, "s0", 1, shape, 0, stats->s0));
    FGMM_TRY(need_finite(ctx, npz, path, "s1", 2, shape, -INFINITY, stats->s1));
    FGMM_TRY(need_finite(ctx, npz, path, "s2", ndim, shape, -INFINITY, stats->s2)); /* moved sums may round below 0 */
    FGMM_TRY(need_finite(ctx, npz, path, "log_likelihood", 0, NULL, -INFINITY, &stats->log_likelihood));
    FGMM_TRY(need_finite(ctx, npz, path, "weight", 0, NULL, 0, &stats->weight));
    return need_finite(ctx, npz, path, "rows", 0, NULL, 0, &stats->rows);
}

static fgmm_status make_stats(fgmm_context *ctx, const fgmm_npz *npz, const char *path, fgmm_stats **out) {
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
    if (!type || (strcmp(type, "spherical") != 0 && strcmp(type, "diag") != 0))
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'covariance_type' is neither spherical nor diag", path);
    const bool diag = strcmp(type, "diag") == 0;
    FGMM_TRY(fgmm_npz_shape(npz, path, "means", 2, &shape));
    FGMM_TRY(fgmm_npz_need(npz, path, "means", 2, shape, &means));
    FGMM_TRY(fgmm_npz_need(npz, path, "weights", 1, shape, &weights));
    FGMM_TRY(fgmm_npz_need(npz, path, "covariances", diag ? 2 : 1, shape, &covariances));
    status = fgmm_model_create(ctx, &model, diag ? FGMM_DIAG : FGMM_SPHERICAL, shape[0], shape[1], weights, means,
                               covariances);
    if (status != FGMM_OK) return fgmm_fail_at(ctx, status == FGMM_ERR_INVALID ? FGMM_ERR_FORMAT : status, path);
    for (int64_t i = 0; i < model->k && status == FGMM_OK; i++)
        if (fabs(model->weights[i] - weights[i]) > 1e-9)
            status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: the 'weights' do not sum to 1", path);
    if (status != FGMM_OK) goto done;
    /* Bit for bit, or the fingerprint would differ. */
    memcpy(model->weights, weights, (size_t)model->k * sizeof *weights);
    FGMM_GO(fgmm_stats_create(ctx, &stats, model));
    stats->fingerprint = fgmm_model_fingerprint(stats->model);
    if (!fingerprint || strlen(fingerprint) != 16 || strtoull(fingerprint, &end, 16) != stats->fingerprint || *end) {
        status = fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'fingerprint' is not that of the model inside", path);
        goto done;
    }
    status = fill(ctx, npz, path, model->k, model->d, diag ? 2 : 1, stats);
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
    status = make_stats(ctx, npz, path, out);
    fgmm_npz_free(ctx, npz);
    return status;
}
