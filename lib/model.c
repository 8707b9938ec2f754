#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cholesky.h"
#include "dispatch.h"
#include "stats.h"

const char *fgmm_covariance_name(fgmm_covariance type) {
    static const char *const names[] = {"spherical", "diag", "tied", "full"};
    return (unsigned)type < sizeof names / sizeof *names ? names[type] : NULL;
}

int64_t fgmm_covariances_size(fgmm_covariance type, int64_t k, int64_t d) {
    switch (type) {
    case FGMM_SPHERICAL: return k;
    case FGMM_DIAG: return k * d;
    case FGMM_TIED: return d * d;
    case FGMM_FULL: return k * d * d;
    }
    return 0;
}

int fgmm_covariances_shape(fgmm_covariance type, int64_t k, int64_t d, int64_t shape[3]) {
    shape[0] = type == FGMM_TIED ? d : k;
    shape[1] = shape[2] = d;
    return type == FGMM_SPHERICAL ? 1 : type == FGMM_FULL ? 3 : 2;
}

int fgmm_has_matrices(fgmm_covariance type) {
    return type == FGMM_TIED || type == FGMM_FULL;
}

fgmm_status fgmm_model_check_shape(fgmm_context *ctx, fgmm_covariance type, int64_t k, int64_t d) {
    if (!fgmm_covariance_name(type))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: covariance type %d is unknown", (int)type);
    if (k <= 0 || d <= 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: k = %lld and d = %lld must be positive", (long long)k,
                         (long long)d);
    if (k > FGMM_COMPONENTS_MAX || d > FGMM_FEATURES_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: k = %lld, d = %lld: at most %d components of %d features",
                         (long long)k, (long long)d, FGMM_COMPONENTS_MAX, FGMM_FEATURES_MAX);
    double matrices = type == FGMM_FULL ? (double)k : 1;
    if (fgmm_has_matrices(type) && matrices * (double)d * (double)d > (double)(PTRDIFF_MAX / 64))
        return fgmm_fail(ctx, FGMM_ERR_MEMORY, "model: %s covariances of k = %lld, d = %lld would take %.3g bytes",
                         fgmm_covariance_name(type), (long long)k, (long long)d, 8 * matrices * (double)d * (double)d);
    return FGMM_OK;
}

fgmm_status fgmm_model_room(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k, int64_t d) {
    fgmm_model *model = fgmm_calloc(ctx, 1, sizeof *model, "a model");
    if (!model) return FGMM_ERR_MEMORY;
    model->type = type;
    model->k = k;
    model->d = d;
    model->lower_bound = NAN;
    size_t size = (size_t)fgmm_covariances_size(type, k, d);
    model->weights = fgmm_alloc(ctx, (size_t)k * sizeof(double), "weights");
    model->means = fgmm_alloc(ctx, (size_t)(k * d) * sizeof(double), "means");
    model->covariances = fgmm_alloc(ctx, size * sizeof(double), "covariances");
    if (!model->weights || !model->means || !model->covariances) {
        fgmm_model_free(ctx, model);
        return FGMM_ERR_MEMORY;
    }
    *out = model;
    return FGMM_OK;
}

fgmm_status fgmm_model_new(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k, int64_t d) {
    FGMM_TRY(fgmm_model_room(ctx, out, type, k, d));
    fgmm_zero(ctx, (*out)->weights, k);
    fgmm_zero(ctx, (*out)->means, k * d);
    fgmm_zero(ctx, (*out)->covariances, fgmm_covariances_size(type, k, d));
    return FGMM_OK;
}

/* Variances below this have a reciprocal that f32 cannot hold. */
static const double variance_min = 1e-36;

/* One matrix: finite, symmetric to rounding, positive definite. work [d, d]. `which` names it in messages. */
static fgmm_status check_matrix(fgmm_context *ctx, const double *matrix, int64_t d, double *work, const char *which) {
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            double value = matrix[i * d + j], other = matrix[j * d + i];
            if (!isfinite(value) || (i == j && !(value >= variance_min)))
                return fgmm_fail(ctx, FGMM_ERR_INVALID,
                                 "model: %s[%lld, %lld] = %g: a covariance must be finite, a variance at least %g",
                                 which, (long long)i, (long long)j, value, variance_min);
            double scale = sqrt(fabs(matrix[i * d + i])) * sqrt(fabs(matrix[j * d + j]));
            if (fabs(value - other) > 1e-9 * scale)
                return fgmm_fail(ctx, FGMM_ERR_INVALID,
                                 "model: %s is not symmetric: [%lld, %lld] = %g, [%lld, %lld] = %g", which,
                                 (long long)i, (long long)j, value, (long long)j, (long long)i, other);
        }
    memcpy(work, matrix, (size_t)(d * d) * sizeof *work);
    int64_t row = fgmm_cholesky(work, d);
    if (row >= 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: %s is not positive definite (row %lld)", which, (long long)row);
    return FGMM_OK;
}

static fgmm_status check_matrices(fgmm_context *ctx, fgmm_covariance type, int64_t k, int64_t d,
                                  const double *covariances) {
    int64_t count = type == FGMM_FULL ? k : 1;
    double *work = fgmm_calloc(ctx, (size_t)d * (size_t)d, sizeof *work, "a covariance matrix");
    if (!work) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_OK;
    for (int64_t i = 0; i < count && status == FGMM_OK; i++) {
        char which[64] = "covariances";
        if (type == FGMM_FULL) snprintf(which, sizeof which, "covariances[%lld]", (long long)i);
        status = check_matrix(ctx, covariances + i * d * d, d, work, which);
    }
    fgmm_free(ctx, work);
    return status;
}

static fgmm_status check_values(fgmm_context *ctx, fgmm_covariance type, int64_t k, int64_t d, const double *weights,
                                const double *means, const double *covariances) {
    double sum = 0;
    for (int64_t i = 0; weights && i < k; i++) {
        if (!(weights[i] >= 0) || !isfinite(weights[i]))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: weights[%lld] = %g must be finite and >= 0", (long long)i,
                             weights[i]);
        sum += weights[i];
    }
    if (weights && !(sum > 0 && isfinite(sum)))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: the weights sum to %g", sum);
    for (int64_t i = 0; i < k * d; i++)
        if (!isfinite(means[i]))
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: means[%lld, %lld] = %g", (long long)(i / d),
                             (long long)(i % d), means[i]);
    if (fgmm_has_matrices(type)) return check_matrices(ctx, type, k, d, covariances);
    for (int64_t i = 0; i < fgmm_covariances_size(type, k, d); i++)
        if (!(covariances[i] >= variance_min) || !isfinite(covariances[i]))
            return fgmm_fail(ctx, FGMM_ERR_INVALID,
                             "model: covariances[%lld] = %g: variances must be finite and at least %g", (long long)i,
                             covariances[i], variance_min);
    return FGMM_OK;
}

fgmm_status fgmm_model_create(fgmm_context *ctx, fgmm_model **out, fgmm_covariance type, int64_t k, int64_t d,
                              const double *weights, const double *means, const double *covariances) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !means || !covariances) return fgmm_fail(ctx, FGMM_ERR_INVALID, "model: a pointer is NULL");
    *out = NULL;
    FGMM_TRY(fgmm_model_check_shape(ctx, type, k, d));
    FGMM_TRY(check_values(ctx, type, k, d, weights, means, covariances));
    fgmm_model *model = NULL;
    FGMM_TRY(fgmm_model_new(ctx, &model, type, k, d));
    double sum = 0;
    for (int64_t i = 0; i < k; i++) sum += weights ? weights[i] : 1;
    /* Weights that already sum to one but for rounding stay as they are, so that load(save(m)) is m. */
    double scale = fabs(sum - 1) <= 1e-12 ? 1 : sum;
    for (int64_t i = 0; i < k; i++) model->weights[i] = (weights ? weights[i] : 1) / scale;
    memcpy(model->means, means, (size_t)(k * d) * sizeof(double));
    memcpy(model->covariances, covariances, (size_t)fgmm_covariances_size(type, k, d) * sizeof(double));
    *out = model;
    return FGMM_OK;
}

void fgmm_model_assign(fgmm_context *ctx, fgmm_model *to, const fgmm_model *model) {
    memcpy(to->weights, model->weights, (size_t)model->k * sizeof(double));
    fgmm_copy(ctx, to->means, model->means, model->k * model->d);
    fgmm_copy(ctx, to->covariances, model->covariances, fgmm_covariances_size(model->type, model->k, model->d));
    to->lower_bound = model->lower_bound;
    to->n_iter = model->n_iter;
    to->converged = model->converged;
}

fgmm_status fgmm_model_copy(fgmm_context *ctx, fgmm_model **out, const fgmm_model *model) {
    fgmm_model *copy = NULL;
    FGMM_TRY(fgmm_model_room(ctx, &copy, model->type, model->k, model->d));
    fgmm_model_assign(ctx, copy, model);
    *out = copy;
    return FGMM_OK;
}

fgmm_status fgmm_model_from_diag(fgmm_context *ctx, fgmm_model **out, const fgmm_model *diag, fgmm_covariance type) {
    int64_t k = diag->k, d = diag->d;
    fgmm_model *model = NULL;
    FGMM_TRY(fgmm_model_check_shape(ctx, type, k, d));
    FGMM_TRY(fgmm_model_new(ctx, &model, type, k, d));
    memcpy(model->weights, diag->weights, (size_t)k * sizeof(double));
    memcpy(model->means, diag->means, (size_t)(k * d) * sizeof(double));
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < d; j++) {
            double variance = diag->covariances[i * d + j];
            switch (type) {
            case FGMM_SPHERICAL: model->covariances[i] += variance / (double)d; break;
            case FGMM_DIAG: model->covariances[i * d + j] = variance; break;
            case FGMM_TIED: model->covariances[j * d + j] += diag->weights[i] * variance; break;
            case FGMM_FULL: model->covariances[(i * d + j) * d + j] = variance; break;
            }
        }
    *out = model;
    return FGMM_OK;
}

void fgmm_model_free(fgmm_context *ctx, fgmm_model *model) {
    if (!model) return;
    fgmm_free(ctx, model->weights);
    fgmm_free(ctx, model->means);
    fgmm_free(ctx, model->covariances);
    fgmm_free(ctx, model);
}

int64_t fgmm_model_components(const fgmm_model *model) {
    return model ? model->k : 0;
}
int64_t fgmm_model_features(const fgmm_model *model) {
    return model ? model->d : 0;
}
fgmm_covariance fgmm_model_covariance_type(const fgmm_model *model) {
    return model ? model->type : FGMM_SPHERICAL;
}
const double *fgmm_model_weights(const fgmm_model *model) {
    return model ? model->weights : NULL;
}
const double *fgmm_model_means(const fgmm_model *model) {
    return model ? model->means : NULL;
}
const double *fgmm_model_covariances(const fgmm_model *model) {
    return model ? model->covariances : NULL;
}
double fgmm_model_lower_bound(const fgmm_model *model) {
    return model ? model->lower_bound : NAN;
}
int fgmm_model_iterations(const fgmm_model *model) {
    return model ? model->n_iter : 0;
}
int fgmm_model_converged(const fgmm_model *model) {
    return model ? model->converged : 0;
}

int64_t fgmm_model_covariances_size(const fgmm_model *model) {
    return model ? fgmm_covariances_size(model->type, model->k, model->d) : 0;
}

int64_t fgmm_model_parameters(const fgmm_model *model) {
    if (!model) return 0;
    int64_t k = model->k, d = model->d, covariances = 0;
    switch (model->type) {
    case FGMM_SPHERICAL: covariances = k; break;
    case FGMM_DIAG: covariances = k * d; break;
    case FGMM_TIED: covariances = d * (d + 1) / 2; break;
    case FGMM_FULL: covariances = k * d * (d + 1) / 2; break;
    }
    return k - 1 + k * d + covariances;
}

/* FNV-1a over whole 8-byte words: a fingerprint, not a defence. */
static uint64_t hash_words(uint64_t hash, const void *data, int64_t count) {
    const unsigned char *bytes = data;
    for (int64_t i = 0; i < count; i++) {
        uint64_t word;
        memcpy(&word, bytes + 8 * i, 8);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    return hash;
}

uint64_t fgmm_model_fingerprint(const fgmm_model *model) {
    int64_t shape[3] = {(int64_t)model->type, model->k, model->d};
    uint64_t hash = hash_words(0xcbf29ce484222325u, shape, 3);
    hash = hash_words(hash, model->weights, model->k);
    hash = hash_words(hash, model->means, model->k * model->d);
    return hash_words(hash, model->covariances, fgmm_covariances_size(model->type, model->k, model->d));
}
