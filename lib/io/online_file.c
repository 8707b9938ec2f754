/* The state of stepwise EM: the file of its statistics with one more array. */
#include <limits.h>
#include <math.h>

#include "../dispatch.h"
#include "../online.h"
#include "../report.h"
#include "stats_file.h"

/* What the array 'online' holds, as doubles. The last three let the next pass choose its engine as if nothing had been saved. */
enum { STEPS, KAPPA, T0, REG_COVAR, FREEZE, LOWER_BOUND, ENGINE, SCREEN_FAILURES, CUT, N_NUMBERS };

fgmm_status fgmm_online_save(fgmm_context *ctx, const fgmm_online *online, const char *path) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!online || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "saving an online fit: a pointer is NULL");
    const double numbers[N_NUMBERS] = {[STEPS] = (double)online->steps,
                                       [KAPPA] = online->kappa,
                                       [T0] = online->t0,
                                       [REG_COVAR] = online->reg_covar,
                                       [FREEZE] = online->freeze,
                                       [LOWER_BOUND] = online->stats->model->lower_bound,
                                       [ENGINE] = online->choice.now,
                                       [SCREEN_FAILURES] = online->choice.screen_failures,
                                       [CUT] = online->choice.cut};
    const fgmm_array extra = {"online", FGMM_F64, 1, {N_NUMBERS, 0, 0}, numbers};
    return fgmm_stats_write(ctx, online->stats, &extra, path);
}

/* A whole number of 0 .. most. */
static int is_count(double value, double most) {
    return value >= 0 && value <= most && value == floor(value);
}

static fgmm_status read_numbers(fgmm_context *ctx, const double *numbers, const char *path, fgmm_online *online) {
    const fgmm_online_options options = {
        .struct_size = sizeof options,
        .kappa = numbers[KAPPA],
        /* As stored 0 is 0, as an option it is the default. */
        .t0 = numbers[T0] == 0 ? -1 : numbers[T0],
        .reg_covar = numbers[REG_COVAR] == 0 ? -1 : numbers[REG_COVAR],
        .freeze = is_count(numbers[FREEZE], 7) ? (unsigned)numbers[FREEZE] : UINT_MAX,
        .compute = online->compute,
    };
    fgmm_status status = fgmm_online_settle(ctx, online, &options);
    if (status == FGMM_OK &&
        (!is_count(numbers[STEPS], 0x1p53) || !(numbers[T0] >= 0) || !(numbers[KAPPA] > 0) ||
         !(numbers[REG_COVAR] >= 0) || !is_count(numbers[ENGINE], FGMM_ENGINE_DENSE) ||
         !is_count(numbers[SCREEN_FAILURES], INT_MAX) || !(numbers[CUT] >= 0 && numbers[CUT] < 1) ||
         isinf(numbers[LOWER_BOUND]) || !(fabs(online->stats->weight - 1) <= 1e-6)))
        status = fgmm_fail(ctx, FGMM_ERR_INVALID, "its numbers cannot be");
    if (status != FGMM_OK) return fgmm_fail_at(ctx, FGMM_ERR_FORMAT, path);
    online->steps = (int64_t)numbers[STEPS];
    online->choice.now = (fgmm_engine)numbers[ENGINE];
    online->choice.screen_failures = (int)numbers[SCREEN_FAILURES];
    online->choice.cut = numbers[CUT];
    fgmm_model *model = online->stats->owned;
    model->n_iter = online->steps < INT_MAX ? (int)online->steps : INT_MAX;
    model->lower_bound = numbers[LOWER_BOUND];
    return FGMM_OK;
}

fgmm_status fgmm_online_load(fgmm_context *ctx, fgmm_online **out, const char *path,
                             const fgmm_compute_options *compute) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "loading an online fit: a pointer is NULL");
    *out = NULL;
    fgmm_status status = FGMM_OK;
    fgmm_npz *npz = NULL;
    const int64_t shape[1] = {N_NUMBERS};
    const double *numbers;
    fgmm_online *online = fgmm_calloc(ctx, 1, sizeof *online, "an online fit");
    if (!online) return FGMM_ERR_MEMORY;
    FGMM_GO(fgmm_compute_read(ctx, &online->compute, compute));
    FGMM_GO(fgmm_npz_read(ctx, &npz, path, FGMM_NPZ_LIMIT));
    FGMM_GO(fgmm_npz_need(npz, path, "online", 1, shape, &numbers));
    FGMM_GO(fgmm_stats_from_npz(ctx, npz, path, &online->stats));
    FGMM_GO(read_numbers(ctx, numbers, path, online));
    *out = online;
    online = NULL;
done:
    fgmm_npz_free(ctx, npz);
    fgmm_online_free(ctx, online);
    return status;
}
