/* Models as .npz, under scikit-learn's names and shapes. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../dispatch.h"
#include "../model.h"
#include "npy.h"
#include "npz.h"

fgmm_status fgmm_fail_at(fgmm_context *ctx, fgmm_status status, const char *path) {
    char message[1024];
    snprintf(message, sizeof message, "%s", fgmm_context_message(ctx));
    fgmm_enter(ctx); /* or the message that is there would stay */
    return fgmm_fail(ctx, status, "%s: %s", path, message);
}

/* ---- saving ---- */

fgmm_status fgmm_model_save(fgmm_context *ctx, const fgmm_model *model, const char *path) {
    int64_t n_iter;
    uint8_t converged;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!model || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving a model: a pointer is NULL");
    int64_t shape[3];
    int ndim = fgmm_covariances_shape(model->type, model->k, model->d, shape);
    n_iter = model->n_iter;
    converged = model->converged != 0;
    const fgmm_npz_entry entries[] = {
        {{"weights", FGMM_F64, 1, {model->k, 0, 0}, model->weights}, NULL},
        {{"means", FGMM_F64, 2, {model->k, model->d, 0}, model->means}, NULL},
        {{"covariances", FGMM_F64, ndim, {shape[0], shape[1], shape[2]}, model->covariances}, NULL},
        {{"covariance_type", FGMM_U8, 0, {0, 0, 0}, NULL}, fgmm_covariance_name(model->type)},
        {{"n_iter", FGMM_I64, 0, {0, 0, 0}, &n_iter}, NULL},
        {{"lower_bound", FGMM_F64, 0, {0, 0, 0}, &model->lower_bound}, NULL},
        {{"converged", FGMM_NPY_BOOL, 0, {0, 0, 0}, &converged}, NULL},
    };
    return fgmm_npz_write(ctx, path, entries, (int)(sizeof entries / sizeof *entries));
}

/* ---- loading ---- */

/* A number, alone or in an array of one; *out stays as it is if there is none of that name. */
static fgmm_status optional_number(fgmm_context *ctx, const fgmm_npz *npz, const char *path, const char *name,
                                   double *out) {
    const int64_t *shape;
    const double *values;
    int ndim;
    if (!fgmm_npz_has(npz, name)) return FGMM_OK;
    values = fgmm_npz_doubles(npz, name, &ndim, &shape);
    if (!values) return fgmm_npz_need(npz, path, name, 0, NULL, &values);
    for (int i = 0; i < ndim; i++)
        if (shape[i] != 1) return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: '%s' is not a single number", path, name);
    *out = *values;
    return FGMM_OK;
}

/* From 'covariance_type', or, if there is none, from the shape where that leaves no doubt.
 * @param matrices "covariances" or "precisions". */
static fgmm_status find_covariance_type(fgmm_context *ctx, const fgmm_npz *npz, const char *path, const char *matrices,
                                        int64_t k, int64_t d, fgmm_covariance *out) {
    const char *text = fgmm_npz_string(npz, "covariance_type");
    const int64_t *shape;
    const double *values, *unused;
    int ndim;
    if (text) {
        for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++)
            if (strcmp(text, fgmm_covariance_name((fgmm_covariance)type)) == 0) {
                *out = (fgmm_covariance)type;
                return FGMM_OK;
            }
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'covariance_type' is \"%.40s\", not spherical, diag, tied or full",
                         path, text);
    }
    if (fgmm_npz_has(npz, "covariance_type"))
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'covariance_type' is not a string", path);
    values = fgmm_npz_doubles(npz, matrices, &ndim, &shape);
    if (!values) return fgmm_npz_need(npz, path, matrices, 1, &k, &unused);
    if (ndim == 2 && k == d && shape[0] == k && shape[1] == d)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                         "%s: has no 'covariance_type', and '%s' [%lld, %lld] may be diag or tied", path, matrices,
                         (long long)k, (long long)d);
    *out = ndim == 1                    ? FGMM_SPHERICAL
           : ndim == 3                  ? FGMM_FULL
           : ndim == 2 && shape[0] == k ? FGMM_DIAG
           : ndim == 2 && shape[0] == d ? FGMM_TIED
                                        : FGMM_DIAG;
    return FGMM_OK;
}

static fgmm_status make_model(fgmm_context *ctx, const fgmm_npz *npz, const char *path, fgmm_model **out) {
    const int64_t *shape;
    const double *weights, *means, *values;
    fgmm_covariance type = FGMM_SPHERICAL;
    const int inverse = !fgmm_npz_has(npz, "covariances") && fgmm_npz_has(npz, "precisions");
    const char *matrices = inverse ? "precisions" : "covariances";
    double lower_bound = NAN, n_iter = 0, converged = 0;
    fgmm_status status;
    FGMM_TRY(fgmm_npz_shape(npz, path, "means", 2, &shape));
    int64_t k = shape[0], d = shape[1], covariances_shape[3];
    if (k == 0 || d == 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'means' has shape [%lld, %lld]; both must be positive", path,
                         (long long)k, (long long)d);
    FGMM_TRY(fgmm_npz_need(npz, path, "means", 2, shape, &means));
    FGMM_TRY(fgmm_npz_need(npz, path, "weights", 1, shape, &weights));
    FGMM_TRY(find_covariance_type(ctx, npz, path, matrices, k, d, &type));
    int ndim = fgmm_covariances_shape(type, k, d, covariances_shape);
    FGMM_TRY(fgmm_npz_need(npz, path, matrices, ndim, covariances_shape, &values));
    FGMM_TRY(optional_number(ctx, npz, path, "lower_bound", &lower_bound));
    FGMM_TRY(optional_number(ctx, npz, path, "n_iter", &n_iter));
    FGMM_TRY(optional_number(ctx, npz, path, "converged", &converged));
    if (!(n_iter >= 0 && n_iter <= INT_MAX)) return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: 'n_iter' is %g", path, n_iter);
    status = inverse ? fgmm_model_create_from_precisions(ctx, out, type, k, d, weights, means, values)
                     : fgmm_model_create(ctx, out, type, k, d, weights, means, values);
    if (status != FGMM_OK) return fgmm_fail_at(ctx, status == FGMM_ERR_INVALID ? FGMM_ERR_FORMAT : status, path);
    (*out)->lower_bound = lower_bound;
    (*out)->n_iter = (int)n_iter;
    (*out)->converged = converged != 0;
    return FGMM_OK;
}

fgmm_status fgmm_model_load(fgmm_context *ctx, fgmm_model **out, const char *path) {
    fgmm_npz *npz = NULL;
    fgmm_status status;
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "loading a model: a pointer is NULL");
    *out = NULL;
    FGMM_TRY(fgmm_npz_read(ctx, &npz, path, FGMM_NPZ_LIMIT));
    status = make_model(ctx, npz, path, out);
    fgmm_npz_free(ctx, npz);
    return status;
}
