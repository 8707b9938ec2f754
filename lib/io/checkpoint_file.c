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

/* What the array 'state' holds, as doubles. */
enum {
    RESTART,
    ENGINE,
    SCREEN_FAILURES,
    CUT,
    MOVED,
    CHANGE,
    CHANGED,
    NOW, /* what the last pass saw */
    SAW = 4,
    BEST = NOW + SAW,
    BEST_ITERATIONS = BEST + SAW, /* 0: there is no best yet */
    BEST_BOUND,
    BEST_CONVERGED,
    N_NUMBERS
};

static void saw_numbers(const fgmm_fit_result *result, double *numbers) {
    numbers[0] = (double)result->engine;
    numbers[1] = result->counts.survivors_per_row;
    numbers[2] = result->counts.dropped_mass;
    numbers[3] = result->counts.dense_fraction;
}

static void state_numbers(const fgmm_fit_place *place, double *numbers) {
    const fgmm_model *best = place->best.model;
    numbers[RESTART] = place->restart;
    numbers[ENGINE] = (double)place->choice.now;
    numbers[SCREEN_FAILURES] = place->choice.screen_failures;
    numbers[CUT] = place->choice.cut;
    numbers[MOVED] = (double)place->moved;
    numbers[CHANGE] = place->change;
    numbers[CHANGED] = place->changed;
    saw_numbers(&place->now, numbers + NOW);
    saw_numbers(&place->best, numbers + BEST);
    numbers[BEST_ITERATIONS] = best ? best->n_iter : 0;
    numbers[BEST_BOUND] = best ? best->lower_bound : NAN;
    numbers[BEST_CONVERGED] = best ? best->converged : 0;
}

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
    double state[N_NUMBERS];
    fgmm_npz_entry entries[18];
    int count = 0;
    double *fates = fgmm_alloc(ctx, (size_t)k * sizeof *fates, "fates of components");
    if (!fates) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < k; i++) fates[i] = (double)place->fates[i];
    state_numbers(place, state);
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
        {{"state", FGMM_F64, 1, {N_NUMBERS, 0, 0}, state}, NULL},
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

static fgmm_status load_saw(const checkpoint_file *file, const double *state, int from, fgmm_fit_result *result) {
    if (!is_count(state[from], 0, FGMM_ENGINE_DENSE)) return impossible(file, "state", from, state[from]);
    for (int i = 1; i < SAW; i++)
        if (!(state[from + i] >= 0) || isinf(state[from + i]))
            return impossible(file, "state", from + i, state[from + i]);
    result->engine = (fgmm_engine)state[from];
    result->counts = (fgmm_pass_counts){
        .survivors_per_row = state[from + 1], .dropped_mass = state[from + 2], .dense_fraction = state[from + 3]};
    return FGMM_OK;
}

static fgmm_status load_state(const checkpoint_file *file, const fgmm_fit_identity *identity, fgmm_fit_place *place) {
    const double *state, *fit = identity->numbers;
    const int64_t shape[1] = {N_NUMBERS};
    const struct {
        int at;
        double least, most;
    } counts[] = {{RESTART, 0, fit[FGMM_FIT_N_INIT] - 1},
                  {ENGINE, 0, FGMM_ENGINE_DENSE},
                  {SCREEN_FAILURES, 0, INT_MAX},
                  {MOVED, 0, fit[FGMM_FIT_COMPONENTS]},
                  {CHANGED, 0, 1},
                  {BEST_ITERATIONS, 0, INT_MAX},
                  {BEST_CONVERGED, 0, 1}};
    FGMM_TRY(fgmm_npz_need(file->npz, file->path, "state", 1, shape, &state));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (!is_count(state[counts[i].at], counts[i].least, counts[i].most))
            return impossible(file, "state", counts[i].at, state[counts[i].at]);
    if (!(state[CUT] >= 0 && state[CUT] < 1)) return impossible(file, "state", CUT, state[CUT]);
    if (isinf(state[CHANGE])) return impossible(file, "state", CHANGE, state[CHANGE]);
    if ((state[RESTART] > 0) != (state[BEST_ITERATIONS] > 0))
        return impossible(file, "state", BEST_ITERATIONS, state[BEST_ITERATIONS]);
    place->restart = (int)state[RESTART];
    place->choice = (fgmm_engine_choice){
        .now = (fgmm_engine)state[ENGINE], .screen_failures = (int)state[SCREEN_FAILURES], .cut = state[CUT]};
    place->moved = (int64_t)state[MOVED];
    place->change = state[CHANGE];
    place->changed = state[CHANGED] != 0;
    FGMM_TRY(load_saw(file, state, NOW, &place->now));
    FGMM_TRY(load_saw(file, state, BEST, &place->best));
    if (state[BEST_ITERATIONS] == 0) return FGMM_OK;
    if (!isfinite(state[BEST_BOUND])) return impossible(file, "state", BEST_BOUND, state[BEST_BOUND]);
    static const char *const names[3] = {"best_weights", "best_means", "best_covariances"};
    FGMM_TRY(load_model(file, names, (fgmm_covariance)fit[FGMM_FIT_COVARIANCE], (int64_t)fit[FGMM_FIT_COMPONENTS],
                        identity->d, &place->best.model));
    place->best.model->n_iter = (int)state[BEST_ITERATIONS];
    place->best.model->lower_bound = state[BEST_BOUND];
    place->best.model->converged = state[BEST_CONVERGED] != 0;
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
