/* Stepwise EM over mini-batches. */
#include "online.h"

#include <math.h>
#include <string.h>

#include "report.h"

static const double kappa_default = 0.7, t0_default = 1;

fgmm_status fgmm_online_settle(fgmm_context *ctx, fgmm_online *online, const fgmm_online_options *o) {
    online->kappa = o->kappa == 0 ? kappa_default : o->kappa;
    online->t0 = o->t0 == 0 ? t0_default : fmax(o->t0, 0);
    online->freeze = o->freeze;
    if (!(online->kappa > 0.5 && online->kappa <= 1))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "online: kappa = %g must be above 0.5 and at most 1", o->kappa);
    if (!isfinite(o->t0)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "online: t0 = %g must be finite", o->t0);
    if (o->freeze & ~7u) return fgmm_fail(ctx, FGMM_ERR_INVALID, "online: unknown freeze flags %#x", o->freeze);
    FGMM_TRY(fgmm_reg_covar_read(ctx, o->reg_covar, &online->reg_covar));
    return fgmm_compute_read(ctx, &online->compute, &o->compute);
}

/* What the model itself would see of a unit of weight drawn from it. */
static void set_own_statistics(fgmm_stats *stats) {
    const fgmm_model *model = stats->model;
    int64_t k = model->k, d = model->d;
    for (int64_t i = 0; i < k; i++) {
        double w = stats->s0[i] = model->weights[i];
        switch (model->type) {
        case FGMM_SPHERICAL: stats->s2[i] = w * (double)d * model->covariances[i]; break;
        case FGMM_DIAG:
            for (int64_t j = 0; j < d; j++) stats->s2[i * d + j] = w * model->covariances[i * d + j];
            break;
        case FGMM_TIED: break;
        case FGMM_FULL:
            for (int64_t j = i * d * d; j < (i + 1) * d * d; j++) stats->s2[j] = w * model->covariances[j];
            break;
        }
    }
    if (model->type == FGMM_TIED) memcpy(stats->s2, model->covariances, (size_t)(d * d) * sizeof(double));
    stats->weight = stats->rows = 1;
    stats->log_likelihood = isnan(model->lower_bound) ? 0 : model->lower_bound;
}

fgmm_status fgmm_online_create(fgmm_context *ctx, fgmm_online **out, const fgmm_model *model,
                               const fgmm_online_options *given) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !model) return fgmm_fail(ctx, FGMM_ERR_INVALID, "online: a pointer is NULL");
    *out = NULL;
    fgmm_online_options options = FGMM_ONLINE_OPTIONS_INIT;
    if (given && given->struct_size != sizeof options)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "online: struct_size of the options is not set: use FGMM_ONLINE_OPTIONS_INIT");
    if (given) options = *given;
    fgmm_status status = FGMM_OK;
    fgmm_online *online = fgmm_calloc(ctx, 1, sizeof *online, "an online fit");
    if (!online) return FGMM_ERR_MEMORY;
    FGMM_GO(fgmm_online_settle(ctx, online, &options));
    FGMM_GO(fgmm_stats_new(ctx, &online->stats, model));
    online->stats->owned->n_iter = 0;
    online->stats->owned->converged = 0;
    set_own_statistics(online->stats);
    *out = online;
    return FGMM_OK;
done:
    fgmm_online_free(ctx, online);
    return status;
}

void fgmm_online_free(fgmm_context *ctx, fgmm_online *online) {
    if (!online) return;
    fgmm_stats_free(ctx, online->stats);
    fgmm_free(ctx, online);
}

const fgmm_model *fgmm_online_model(const fgmm_online *online) {
    return online ? online->stats->model : NULL;
}

int64_t fgmm_online_steps(const fgmm_online *online) {
    return online ? online->steps : 0;
}

static void blend(double *to, double to_factor, const double *from, double from_factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = to_factor * to[i] + from_factor * from[i];
}

/* batch <- rho (batch for a unit of weight) + (1 - rho) past, about the past's centres. The past stays as it is: the
 * M-step may still fail. */
static void blend_past(fgmm_stats *batch, const fgmm_stats *past, double rho) {
    int64_t k = batch->model->k, d = batch->model->d;
    double new = rho / batch->weight, old = 1 - rho;
    fgmm_stats_shift(batch, past->centres);
    blend(batch->s0, new, past->s0, old, k);
    blend(batch->s1, new, past->s1, old, k * d);
    blend(batch->s2, new, past->s2, old, fgmm_covariances_size(batch->model->type, k, d));
    /* A start that has seen no rows has no likelihood to remember. */
    double bound = batch->log_likelihood / batch->weight;
    batch->log_likelihood = isnan(past->model->lower_bound) ? bound : rho * bound + old * past->log_likelihood;
    batch->weight = batch->rows = 1;
}

/* The M-step over stats, which then speak of the new model, about its means. */
static fgmm_status step_model(fgmm_context *ctx, const fgmm_online *online, fgmm_stats *stats, int64_t step) {
    fgmm_model *model = NULL;
    FGMM_TRY(fgmm_mstep(ctx, stats, online->reg_covar, online->freeze, NULL, &model, NULL));
    model->n_iter = step < INT32_MAX ? (int)step : INT32_MAX;
    fgmm_stats_shift(stats, model->means);
    fgmm_model_free(ctx, stats->owned);
    stats->model = stats->owned = model;
    return FGMM_OK;
}

fgmm_status fgmm_partial_fit(fgmm_context *ctx, fgmm_online *online, const fgmm_rows *rows, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!online || !rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "partial_fit: a pointer is NULL");
    const fgmm_model *model = online->stats->model;
    if (rows->d != model->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "partial_fit: the rows have %lld features, the model %lld",
                         (long long)rows->d, (long long)model->d);
    fgmm_status status = FGMM_OK;
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    const fgmm_target *target = NULL;
    fgmm_feed *feed = NULL;
    fgmm_stats *batch = NULL;
    fgmm_engine_choice choice = online->choice;
    fgmm_pass_counts counts;
    double work = (double)rows->n * (double)rows->d * (double)model->k;
    choice.asked = online->compute.engine;
    FGMM_GO(fgmm_dispatch(ctx, work, online->compute.precision, rows, (int)model->type, &target));
    FGMM_GO(fgmm_feed_open(ctx, &feed, rows, target, &online->compute, 1));
    FGMM_GO(fgmm_stats_new(ctx, &batch, model));
    fgmm_engine ran = fgmm_engine_next(&choice, online->compute.precision, model->k);
    FGMM_GO(fgmm_estep_pass(ctx, feed, "fit", batch, online->compute.precision, 0, &choice, &counts));
    if (!(batch->weight > 0))
        FGMM_GO(fgmm_fail(ctx, FGMM_ERR_DATA, "partial_fit: the weights of the rows sum to %g", batch->weight));
    double bound = batch->log_likelihood / batch->weight;
    blend_past(batch, online->stats, pow((double)(online->steps + 1) + online->t0, -online->kappa));
    FGMM_GO(step_model(ctx, online, batch, online->steps + 1));
    fgmm_stats *past = online->stats;
    online->stats = batch;
    batch = past;
    online->choice = choice;
    online->steps++;
    if (report) {
        fgmm_report_pass(&scope, feed, ran, online->compute.precision, &counts);
        report->lower_bound = bound;
        report->n_iter = 1;
    }
done:
    fgmm_report_end(&scope, status);
    fgmm_stats_free(ctx, batch);
    fgmm_feed_close(ctx, feed);
    return fgmm_dispatch_again(ctx, status, rows) ? fgmm_partial_fit(ctx, online, rows, report) : status;
}
