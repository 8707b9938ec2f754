/*
 * Checkpoints of fits, as .npz. The model under way has the names that a model file gives it, so that a checkpoint can be
 * looked at, scored and started from like a model. Every member of the archive carries its CRC-32.
 */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../checkpoint.h"
#include "../dispatch.h"
#include "npy.h"
#include "npz.h"
#include "outfile.h"

/* Says in a word what kind of file this is, and its version. */
static const char checkpoint_kind[] = "flashgmm checkpoint 1";

/* ---- saving ---- */

fgmm_status fgmm_checkpoint_try(fgmm_context *ctx, const char *path) {
    fgmm_outfile file;
    FGMM_TRY(fgmm_outfile_open(ctx, &file, path));
    fgmm_outfile_abandon(ctx, &file);
    return FGMM_OK;
}

/* Three arrays of a model under their names. */
static void model_entries(fgmm_npz_entry *entries, const fgmm_model *model, const char *weights, const char *means,
                          const char *covariances) {
    int64_t shape[3];
    int ndim = fgmm_covariances_shape(model->type, model->k, model->d, shape);
    entries[0] = (fgmm_npz_entry){{weights, FGMM_F64, 1, {model->k, 0, 0}, model->weights}, NULL};
    entries[1] = (fgmm_npz_entry){{means, FGMM_F64, 2, {model->k, model->d, 0}, model->means}, NULL};
    entries[2] =
        (fgmm_npz_entry){{covariances, FGMM_F64, ndim, {shape[0], shape[1], shape[2]}, model->covariances}, NULL};
}

fgmm_status fgmm_checkpoint_save(fgmm_context *ctx, const char *path, const fgmm_fit_identity *identity,
                                 const fgmm_fit_place *place) {
    const fgmm_model *model = place->now.model;
    const int64_t k = model->k, d = model->d, n_iter = model->n_iter;
    const uint8_t converged = model->converged != 0;
    double state[FGMM_PLACE_NUMBERS];
    fgmm_npz_entry entries[18];
    int count = 0;
    double *fates = fgmm_alloc(ctx, (size_t)k * sizeof *fates, "fates of components");
    if (!fates) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < k; i++) fates[i] = (double)place->fates[i];
    fgmm_fit_place_numbers(place, state);
    const fgmm_npz_entry plain[] = {
        {{"kind", FGMM_U8, 0, {0, 0, 0}, NULL}, checkpoint_kind},
        {{"covariance_type", FGMM_U8, 0, {0, 0, 0}, NULL}, fgmm_covariance_name(model->type)},
        {{"n_iter", FGMM_I64, 0, {0, 0, 0}, &n_iter}, NULL},
        {{"lower_bound", FGMM_F64, 0, {0, 0, 0}, &model->lower_bound}, NULL},
        {{"converged", FGMM_NPY_BOOL, 0, {0, 0, 0}, &converged}, NULL},
        {{"fit", FGMM_F64, 1, {FGMM_FIT_NUMBERS, 0, 0}, identity->numbers}, NULL},
        {{"rows_weight", FGMM_F64, 0, {0, 0, 0}, &identity->weight}, NULL},
        {{"rows_mean", FGMM_F64, 1, {d, 0, 0}, identity->mean}, NULL},
        {{"rows_variance", FGMM_F64, 1, {d, 0, 0}, identity->variance}, NULL},
        {{"state", FGMM_F64, 1, {FGMM_PLACE_NUMBERS, 0, 0}, state}, NULL},
        {{"fates", FGMM_F64, 1, {k, 0, 0}, fates}, NULL},
    };
    for (; count < (int)(sizeof plain / sizeof *plain); count++) entries[count] = plain[count];
    model_entries(entries + count, model, "weights", "means", "covariances");
    count += 3;
    if (place->best.model) {
        model_entries(entries + count, place->best.model, "best_weights", "best_means", "best_covariances");
        count += 3;
    }
    fgmm_status status = fgmm_npz_write(ctx, path, entries, count);
    fgmm_free(ctx, fates);
    return status;
}

/* ---- loading ---- */

typedef struct {
    fgmm_context *ctx;
    const fgmm_npz *npz;
    const char *path;
} checkpoint_file;

static fgmm_status impossible(const checkpoint_file *file, const char *name, int64_t i, double value) {
    return fgmm_fail(file->ctx, FGMM_ERR_FORMAT, "%s: element %lld of '%s' is %g, which cannot be", file->path,
                     (long long)i, name, value);
}

/* A whole number of least .. most. */
static int is_count(double value, double least, double most) {
    return value >= least && value <= most && value == floor(value);
}

/* @param k_most components at most. @param d features. */
static fgmm_status load_model(const checkpoint_file *file, const char *const names[3], fgmm_covariance type,
                              int64_t k_most, int64_t d, fgmm_model **out) {
    const int64_t *shape;
    const double *weights, *means, *covariances;
    int64_t covariances_shape[3];
    FGMM_TRY(fgmm_npz_shape(file->npz, file->path, names[1], 2, &shape));
    int64_t k = shape[0];
    if (k < 1 || k > k_most || shape[1] != d)
        return fgmm_fail(file->ctx, FGMM_ERR_FORMAT, "%s: '%s' has shape [%lld, %lld]; at most [%lld, %lld] can be",
                         file->path, names[1], (long long)k, (long long)shape[1], (long long)k_most, (long long)d);
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, names[1], 2, shape, &means));
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, names[0], 1, &k, &weights));
    int ndim = fgmm_covariances_shape(type, k, d, covariances_shape);
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, names[2], ndim, covariances_shape, &covariances));
    fgmm_status status = fgmm_model_create(file->ctx, out, type, k, d, weights, means, covariances);
    if (status != FGMM_OK)
        return fgmm_fail_at(file->ctx, status == FGMM_ERR_INVALID ? FGMM_ERR_FORMAT : status, file->path);
    /* Bit for bit: they are not to be normalised again. */
    memcpy((*out)->weights, weights, (size_t)k * sizeof *weights);
    return FGMM_OK;
}

static fgmm_status check_saw(const checkpoint_file *file, const double *state, int from) {
    if (!is_count(state[from], 0, FGMM_ENGINE_DENSE)) return impossible(file, "state", from, state[from]);
    for (int i = from + 1; i < from + FGMM_PLACE_SAW; i++)
        if (!(state[i] >= 0) || isinf(state[i])) return impossible(file, "state", i, state[i]);
    return FGMM_OK;
}

static fgmm_status check_state(const checkpoint_file *file, const double *fit, const double *state) {
    const struct {
        int at;
        double least, most;
    } counts[] = {{FGMM_PLACE_RESTART, 0, fit[FGMM_FIT_N_INIT] - 1},
                  {FGMM_PLACE_ENGINE, 0, FGMM_ENGINE_DENSE},
                  {FGMM_PLACE_SCREEN_FAILURES, 0, INT_MAX},
                  {FGMM_PLACE_MOVED, 0, fit[FGMM_FIT_COMPONENTS]},
                  {FGMM_PLACE_CHANGED, 0, 1},
                  {FGMM_PLACE_BEST_ITERATIONS, 0, INT_MAX},
                  {FGMM_PLACE_BEST_CONVERGED, 0, 1}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (!is_count(state[counts[i].at], counts[i].least, counts[i].most))
            return impossible(file, "state", counts[i].at, state[counts[i].at]);
    double cut = state[FGMM_PLACE_CUT], best = state[FGMM_PLACE_BEST_ITERATIONS];
    if (!(cut >= 0 && cut < 1)) return impossible(file, "state", FGMM_PLACE_CUT, cut);
    if (isinf(state[FGMM_PLACE_CHANGE])) return impossible(file, "state", FGMM_PLACE_CHANGE, state[FGMM_PLACE_CHANGE]);
    if ((state[FGMM_PLACE_RESTART] > 0) != (best > 0))
        return impossible(file, "state", FGMM_PLACE_BEST_ITERATIONS, best);
    if (best > 0 && !isfinite(state[FGMM_PLACE_BEST_BOUND]))
        return impossible(file, "state", FGMM_PLACE_BEST_BOUND, state[FGMM_PLACE_BEST_BOUND]);
    FGMM_TRY(check_saw(file, state, FGMM_PLACE_NOW));
    return check_saw(file, state, FGMM_PLACE_BEST);
}

static fgmm_status load_state(const checkpoint_file *file, const fgmm_fit_identity *identity, fgmm_fit_place *place) {
    static const char *const names[3] = {"best_weights", "best_means", "best_covariances"};
    const double *state, *fit = identity->numbers;
    const int64_t shape[1] = {FGMM_PLACE_NUMBERS};
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "state", 1, shape, &state));
    FGMM_TRY(check_state(file, fit, state));
    if (state[FGMM_PLACE_BEST_ITERATIONS] > 0)
        FGMM_TRY(load_model(file, names, (fgmm_covariance)fit[FGMM_FIT_COVARIANCE], (int64_t)fit[FGMM_FIT_COMPONENTS],
                            identity->d, &place->best.model));
    fgmm_fit_place_take(place, state);
    return FGMM_OK;
}

static fgmm_status load_now(const checkpoint_file *file, const fgmm_fit_identity *identity, fgmm_fit_place *place) {
    static const char *const names[3] = {"weights", "means", "covariances"};
    const double *fit = identity->numbers, *fates, *n_iter, *bound, *converged;
    FGMM_TRY(load_model(file, names, (fgmm_covariance)fit[FGMM_FIT_COVARIANCE], (int64_t)fit[FGMM_FIT_COMPONENTS],
                        identity->d, &place->now.model));
    fgmm_model *model = place->now.model;
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "n_iter", 0, NULL, &n_iter));
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "lower_bound", 0, NULL, &bound));
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "converged", 0, NULL, &converged));
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "fates", 1, &model->k, &fates));
    if (!is_count(*n_iter, 1, INT_MAX)) return impossible(file, "n_iter", 0, *n_iter);
    if (!isfinite(*bound)) return impossible(file, "lower_bound", 0, *bound);
    if (*n_iter > fit[FGMM_FIT_MAX_ITER])
        return fgmm_fail(file->ctx, FGMM_ERR_INVALID, "%s: it is at iteration %.0f, beyond max_iter = %.0f", file->path,
                         *n_iter, fit[FGMM_FIT_MAX_ITER]);
    model->n_iter = (int)*n_iter;
    model->lower_bound = *bound;
    model->converged = *converged != 0;
    place->fates = fgmm_calloc(file->ctx, (size_t)model->k, sizeof *place->fates, "fates of components");
    if (!place->fates) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < model->k; i++) {
        if (!is_count(fates[i], FGMM_ALIVE, FGMM_COLLAPSED)) return impossible(file, "fates", i, fates[i]);
        place->fates[i] = (fgmm_fate)fates[i];
    }
    return FGMM_OK;
}

static fgmm_status load_identity(const checkpoint_file *file, const fgmm_fit_identity *ours) {
    const char *kind = fgmm_npz_string(file->npz, "kind");
    const double *numbers, *weight;
    const int64_t shape[1] = {FGMM_FIT_NUMBERS}, *columns;
    fgmm_fit_identity theirs;
    if (!kind || strcmp(kind, checkpoint_kind) != 0)
        return fgmm_fail(file->ctx, FGMM_ERR_FORMAT,
                         "%s: not a checkpoint that this version reads: 'kind' is %s%.40s%s", file->path,
                         kind ? "\"" : "missing", kind ? kind : "", kind ? "\"" : "");
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "fit", 1, shape, &numbers));
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "rows_weight", 0, NULL, &weight));
    FGMM_TRY(fgmm_npz_shape(file->npz, file->path, "rows_mean", 1, &columns));
    if (*columns != ours->d)
        return fgmm_fail(file->ctx, FGMM_ERR_INVALID,
                         "%s: its rows have %lld features, these %lld: it is the checkpoint of another fit; remove it "
                         "to begin anew",
                         file->path, (long long)*columns, (long long)ours->d);
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "rows_mean", 1, &ours->d, &theirs.mean));
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "rows_variance", 1, &ours->d, &theirs.variance));
    memcpy(theirs.numbers, numbers, sizeof theirs.numbers);
    theirs.d = ours->d;
    theirs.weight = *weight;
    return fgmm_fit_identity_check(file->ctx, file->path, ours, &theirs);
}

fgmm_status fgmm_checkpoint_load(fgmm_context *ctx, const char *path, const fgmm_fit_identity *identity,
                                 fgmm_fit_place *place) {
    fgmm_npz *npz = NULL;
    struct stat info;
    fgmm_status status = FGMM_OK;
    if (stat(path, &info) != 0 && errno == ENOENT) return FGMM_OK;
    FGMM_TRY(fgmm_npz_read(ctx, &npz, path, FGMM_NPZ_LIMIT));
    const checkpoint_file file = {ctx, npz, path};
    FGMM_GO(load_identity(&file, identity));
    FGMM_GO(load_state(&file, identity, place));
    FGMM_GO(load_now(&file, identity, place));
done:
    fgmm_npz_free(ctx, npz);
    return status;
}
