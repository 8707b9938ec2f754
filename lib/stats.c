#include "stats.h"

#include <math.h>
#include <string.h>

#include "cholesky.h"
#include "dispatch.h"
#include "estep.h"
#include "report.h"

fgmm_status fgmm_stats_over(fgmm_context *ctx, fgmm_stats **out, const fgmm_model *model) {
    int64_t k = model->k, d = model->d, size = fgmm_covariances_size(model->type, k, d);
    fgmm_status status = FGMM_ERR_MEMORY;
    *out = NULL;
    fgmm_stats *stats = fgmm_calloc(ctx, 1, sizeof *stats, "statistics");
    if (!stats) return FGMM_ERR_MEMORY;
    stats->model = model;
    if (!(stats->centres = fgmm_alloc(ctx, (size_t)(k * d) * sizeof(double), "statistics"))) goto done;
    if (!(stats->s0 = fgmm_calloc(ctx, (size_t)(k + k * d + size + FGMM_STATS_TAIL), sizeof(double), "statistics")))
        goto done;
    stats->s1 = stats->s0 + k;
    stats->s2 = stats->s1 + k * d;
    fgmm_copy(ctx, stats->centres, model->means, k * d);
    stats->about_means = 1;
    *out = stats;
    return FGMM_OK;
done:
    fgmm_stats_free(ctx, stats);
    return status;
}

void fgmm_stats_restart(fgmm_stats *stats, const fgmm_model *model) {
    stats->model = model;
    stats->about_means = 1;
}

void fgmm_stats_start(fgmm_context *ctx, fgmm_stats *stats) {
    const fgmm_model *model = stats->model;
    const double *means = stats->about_means ? model->means : NULL;
    int64_t k = model->k, d = model->d, own = model->type == FGMM_TIED ? 0 : fgmm_covariances_size(model->type, 1, d);
    stats->log_likelihood = stats->weight = stats->rows = 0;
#pragma omp parallel for num_threads(fgmm_threads_over(ctx, (double)(k * (2 * d + own))))
    for (int64_t i = 0; i < k; i++) {
        if (means) memcpy(stats->centres + i * d, means + i * d, (size_t)d * sizeof(double));
        stats->s0[i] = 0;
        memset(stats->s1 + i * d, 0, (size_t)d * sizeof(double));
        memset(stats->s2 + i * own, 0, (size_t)own * sizeof(double));
    }
    if (!own) fgmm_zero(ctx, stats->s2, fgmm_covariances_size(model->type, k, d));
}

fgmm_status fgmm_stats_new(fgmm_context *ctx, fgmm_stats **out, const fgmm_model *model) {
    fgmm_model *copy = NULL;
    FGMM_TRY(fgmm_model_copy(ctx, &copy, model));
    fgmm_status status = fgmm_stats_over(ctx, out, copy);
    if (status == FGMM_OK)
        (*out)->owned = copy;
    else
        fgmm_model_free(ctx, copy);
    return status;
}

fgmm_status fgmm_stats_create(fgmm_context *ctx, fgmm_stats **out, const fgmm_model *model) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !model) return fgmm_fail(ctx, FGMM_ERR_INVALID, "statistics: a pointer is NULL");
    return fgmm_stats_new(ctx, out, model);
}

void fgmm_stats_free(fgmm_context *ctx, fgmm_stats *stats) {
    if (!stats) return;
    fgmm_model_free(ctx, stats->owned);
    fgmm_free(ctx, stats->centres);
    fgmm_free(ctx, stats->s0);
    fgmm_free(ctx, stats);
}

/* Gives `to` what `from` holds and frees what it held. */
static void stats_replace(fgmm_context *ctx, fgmm_stats *to, fgmm_stats *from) {
    fgmm_stats held = *to;
    *to = *from;
    *from = held;
    fgmm_stats_free(ctx, from);
}

fgmm_status fgmm_stats_reset(fgmm_context *ctx, fgmm_stats *stats, const fgmm_model *model) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!stats) return fgmm_fail(ctx, FGMM_ERR_INVALID, "statistics: a pointer is NULL");
    fgmm_stats *fresh = NULL;
    FGMM_TRY(fgmm_stats_new(ctx, &fresh, model ? model : stats->model));
    stats_replace(ctx, stats, fresh);
    return FGMM_OK;
}

/* sum w r (x - c')   = s1 - s0 h                with h = c' - c
 * sum w r (x - c')^2 = s2 - 2 h s1 + s0 h^2, and so for matrices */
void fgmm_stats_shift(fgmm_stats *stats, const double *centres) {
    int64_t k = stats->model->k, d = stats->model->d;
    fgmm_covariance type = stats->model->type;
    stats->about_means = 0;
    for (int64_t i = 0; i < k; i++) {
        double *h = stats->centres + i * d, s0 = stats->s0[i];
        int moved = 0;
        for (int64_t j = 0; j < d; j++) {
            h[j] = centres[i * d + j] - h[j];
            moved |= h[j] != 0;
        }
        if (moved && fgmm_has_matrices(type))
            fgmm_scatter_move(stats->s2 + (type == FGMM_FULL ? i * d * d : 0), d, 0, d, s0, stats->s1 + i * d, h);
        for (int64_t j = 0; j < d; j++) {
            int64_t at = i * d + j;
            if (!fgmm_has_matrices(type))
                stats->s2[type == FGMM_SPHERICAL ? i : at] += h[j] * (s0 * h[j] - 2 * stats->s1[at]);
            stats->s1[at] -= s0 * h[j];
            h[j] = centres[at];
        }
    }
}

/* dst += src, same model. Where dst has no rows yet it takes src's centres, which suit them. */
static void stats_add(fgmm_stats *dst, fgmm_stats *src) {
    int64_t k = dst->model->k, d = dst->model->d;
    if (dst->weight == 0) fgmm_stats_shift(dst, src->centres);
    fgmm_stats_shift(src, dst->centres);
    for (int64_t i = 0; i < k; i++) dst->s0[i] += src->s0[i];
    for (int64_t i = 0; i < k * d; i++) dst->s1[i] += src->s1[i];
    for (int64_t i = 0; i < fgmm_covariances_size(dst->model->type, k, d); i++) dst->s2[i] += src->s2[i];
    dst->log_likelihood += src->log_likelihood;
    dst->weight += src->weight;
    dst->rows += src->rows;
}

fgmm_status fgmm_stats_accumulate(fgmm_context *ctx, fgmm_stats *stats, const fgmm_rows *rows,
                                  const fgmm_compute_options *given, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!stats || !rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "accumulate: a pointer is NULL");
    fgmm_compute_options compute;
    FGMM_TRY(fgmm_compute_read(ctx, &compute, given));
    if (rows->d != stats->model->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "accumulate: the rows have %lld features, the model %lld",
                         (long long)rows->d, (long long)stats->model->d);
    fgmm_status status = FGMM_OK;
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    const fgmm_target *target = NULL;
    fgmm_feed *feed = NULL;
    fgmm_stats *added = NULL;
    fgmm_engine_choice choice = {.asked = compute.engine};
    fgmm_pass_counts counts;
    double work = (double)rows->n * (double)rows->d * (double)stats->model->k;
    FGMM_GO(fgmm_dispatch(ctx, work, compute.precision, rows, (int)stats->model->type, &target));
    /* 1: keeping rows for the rare second pass would cost more than reading them again. */
    FGMM_GO(fgmm_feed_open(ctx, &feed, rows, target, &compute, 1));
    FGMM_GO(fgmm_stats_new(ctx, &added, stats->model));
    fgmm_engine ran = fgmm_engine_next(&choice, compute.precision, stats->model->k);
    FGMM_GO(fgmm_estep_pass(ctx, feed, "accumulate", added, compute.precision, 0, &choice, &counts));
    stats_add(stats, added);
    if (report) {
        fgmm_report_pass(&scope, feed, ran, compute.precision, &counts);
        report->lower_bound = stats->weight > 0 ? stats->log_likelihood / stats->weight : NAN;
        report->n_iter = 1;
    }
done:
    fgmm_report_end(&scope, status);
    fgmm_stats_free(ctx, added);
    fgmm_feed_close(ctx, feed);
    return fgmm_dispatch_again(ctx, status, rows) ? fgmm_stats_accumulate(ctx, stats, rows, given, report) : status;
}

fgmm_status fgmm_stats_merge(fgmm_context *ctx, fgmm_stats *dst, const fgmm_stats *src) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!dst || !src) return fgmm_fail(ctx, FGMM_ERR_INVALID, "merge: a pointer is NULL");
    if (fgmm_model_fingerprint(dst->model) != fgmm_model_fingerprint(src->model) || dst->model->k != src->model->k ||
        dst->model->d != src->model->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "merge: the statistics were taken under different models");
    fgmm_stats *copy = NULL;
    FGMM_TRY(fgmm_stats_new(ctx, &copy, src->model));
    int64_t k = src->model->k, d = src->model->d;
    copy->about_means = src->about_means;
    memcpy(copy->centres, src->centres, (size_t)(k * d) * sizeof(double));
    memcpy(copy->s0, src->s0, (size_t)k * sizeof(double));
    memcpy(copy->s1, src->s1, (size_t)(k * d) * sizeof(double));
    memcpy(copy->s2, src->s2, (size_t)fgmm_covariances_size(src->model->type, k, d) * sizeof(double));
    copy->log_likelihood = src->log_likelihood;
    copy->weight = src->weight;
    copy->rows = src->rows;
    stats_add(dst, copy);
    fgmm_stats_free(ctx, copy);
    return FGMM_OK;
}

fgmm_status fgmm_stats_scale(fgmm_context *ctx, fgmm_stats *stats, double factor) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!stats) return fgmm_fail(ctx, FGMM_ERR_INVALID, "scale: a pointer is NULL");
    if (!(factor >= 0) || !isfinite(factor))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "scale: the factor is %g; it must be finite and >= 0", factor);
    int64_t k = stats->model->k, d = stats->model->d;
    for (int64_t i = 0; i < k; i++) stats->s0[i] *= factor;
    for (int64_t i = 0; i < k * d; i++) stats->s1[i] *= factor;
    for (int64_t i = 0; i < fgmm_covariances_size(stats->model->type, k, d); i++) stats->s2[i] *= factor;
    stats->log_likelihood *= factor;
    stats->weight *= factor;
    stats->rows *= factor;
    return FGMM_OK;
}

fgmm_status fgmm_stats_finalize(fgmm_context *ctx, const fgmm_stats *stats, const fgmm_finalize_options *options,
                                fgmm_model **out) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!stats || !out) return fgmm_fail(ctx, FGMM_ERR_INVALID, "finalize: a pointer is NULL");
    fgmm_finalize_options use = FGMM_FINALIZE_OPTIONS_INIT;
    if (options) {
        if (options->struct_size != sizeof use)
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "finalize: struct_size of the options is not set");
        use = *options;
    }
    *out = NULL;
    if (use.freeze & ~7u) return fgmm_fail(ctx, FGMM_ERR_INVALID, "finalize: unknown freeze flags %#x", use.freeze);
    double reg_covar;
    FGMM_TRY(fgmm_reg_covar_read(ctx, use.reg_covar, &reg_covar));
    return fgmm_mstep(ctx, stats, reg_covar, use.freeze, NULL, out, NULL);
}

void fgmm_stats_export(const fgmm_stats *stats, fgmm_stats_view *out) {
    if (!stats || !out) return;
    *out = (fgmm_stats_view){.k = stats->model->k,
                             .d = stats->model->d,
                             .covariance_type = stats->model->type,
                             .centres = stats->centres,
                             .s0 = stats->s0,
                             .s1 = stats->s1,
                             .s2 = stats->s2,
                             .log_likelihood = stats->log_likelihood,
                             .weight = stats->weight,
                             .rows = stats->rows,
                             .fingerprint = fgmm_model_fingerprint(stats->model)};
}
