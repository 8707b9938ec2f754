/* Scores and assignments of rows under a model. */
#include <math.h>
#include <string.h>

#include "params.h"
#include "report.h"

typedef struct {
    const fgmm_target *target;
    int m; /* entries a row of ids and resp: the m best; K for all of them in order, where proba is set */
    int proba;
    double min_resp;
    int renormalise;
    int32_t *ids;
    float *resp;
    double *log_prob;
    /* for fgmm_score: the sums, with log_prob as room for one block where the backend has none of its own */
    int scoring;
    double sum, weight;
} infer_state;

/* Of a block's rows, in chunks, so that a sum does not depend on the size of blocks: of their weights, and of w log p(x) where log_prob is given. */
static void add_scores(infer_state *state, const fgmm_feed_block *block, const double *log_prob) {
    if (!block->weights && !log_prob) {
        state->weight += (double)block->n;
        return;
    }
    for (int64_t from = 0; from < block->n; from += FGMM_CHUNK_ROWS) {
        int64_t to = from + FGMM_CHUNK_ROWS < block->n ? from + FGMM_CHUNK_ROWS : block->n;
        double sum = 0, weight = 0;
        for (int64_t i = from; i < to; i++) {
            double w = block->weights ? block->weights[i] : 1;
            if (log_prob && w > 0) sum += w * log_prob[i];
            weight += w;
        }
        state->sum += sum;
        state->weight += weight;
    }
}

static fgmm_status score_visit(infer_state *state, const fgmm_feed_block *block) {
    const fgmm_target *target = state->target;
    double *log_prob = target->backend->score ? NULL : state->log_prob;
    if (log_prob)
        FGMM_TRY(target->backend->assign(target->device, block->block, 0, NULL, NULL, log_prob));
    else
        FGMM_TRY(target->backend->score(target->device, block->block, &state->sum));
    add_scores(state, block, log_prob);
    return FGMM_OK;
}

/* Entries below min_resp go; with renormalise the best stays all the same, and the rest is scaled to sum to one. */
static void keep_responsible(const infer_state *state, int64_t n, int32_t *ids, float *resp) {
    int64_t m = state->m;
    for (int64_t i = 0; i < n; i++, ids += m, resp += m) {
        double sum = 0;
        for (int64_t j = 0; j < m; j++) {
            if (resp[j] < state->min_resp && !(state->renormalise && j == 0)) {
                resp[j] = 0;
                ids[j] = -1;
            }
            sum += resp[j];
        }
        for (int64_t j = 0; j < m && state->renormalise && sum > 0; j++) resp[j] = (float)(resp[j] / sum);
    }
}

static fgmm_status infer_visit(void *user, const fgmm_feed_block *block) {
    infer_state *state = user;
    int64_t m = state->m;
    if (block->first == 0) state->sum = state->weight = 0;
    const fgmm_target *target = state->target;
    int32_t *ids = state->ids ? state->ids + block->first * m : NULL;
    float *resp = state->resp ? state->resp + block->first * m : NULL;
    if (state->scoring) return score_visit(state, block);
    double *log_prob = state->log_prob ? state->log_prob + block->first : NULL;
    if (state->proba)
        FGMM_TRY(target->backend->proba(target->device, block->block, resp, log_prob));
    else
        FGMM_TRY(target->backend->assign(target->device, block->block, (int)m, ids, resp, log_prob));
    for (int64_t b = 0; b < block->n_bad; b++) {
        int64_t i = block->bad[b] - block->first;
        for (int64_t j = 0; j < m; j++) {
            if (ids) ids[i * m + j] = -1;
            if (resp) resp[i * m + j] = 0;
        }
        if (log_prob) log_prob[i] = NAN;
    }
    if (ids && resp && (state->min_resp > 0 || state->renormalise)) keep_responsible(state, block->n, ids, resp);
    return FGMM_OK;
}

/* One pass over rows under model. */
static fgmm_status infer(fgmm_context *ctx, const char *stage, const fgmm_model *model, const fgmm_rows *rows,
                         const fgmm_compute_options *given, infer_state *state, fgmm_report *report) {
    if (!model || !rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: a pointer is NULL", stage);
    fgmm_compute_options compute;
    FGMM_TRY(fgmm_compute_read(ctx, &compute, given));
    if (rows->d != model->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "%s: the rows have %lld features, the model %lld", stage,
                         (long long)rows->d, (long long)model->d);
    fgmm_status status = FGMM_OK;
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    fgmm_feed *feed = NULL;
    fgmm_prepared prepared = {0};
    double *room = NULL;
    double work = (double)rows->n * (double)rows->d * (double)model->k;
    FGMM_GO(fgmm_dispatch(ctx, work, compute.precision, rows, (int)model->type, &state->target));
    FGMM_GO(fgmm_feed_open(ctx, &feed, rows, state->target, &compute, 1));
    fgmm_feed_no_moments(feed);
    if (state->scoring && !state->target->backend->score) {
        room = fgmm_alloc(ctx, (size_t)fgmm_feed_block_rows(feed) * sizeof *room, "log-probabilities of a block");
        if (!room) status = FGMM_ERR_MEMORY;
        if (!room) goto done;
        state->log_prob = room;
    }
    FGMM_GO(fgmm_prepare(ctx, &prepared, model));
    fgmm_engine_choice choice = {.asked = compute.engine};
    fgmm_params *params = &prepared.params;
    params->precision = fgmm_row_precision(compute.precision);
    params->engine = fgmm_engine_next(&choice, params->precision, model->k);
    params->cut = params->precision == FGMM_DOUBLE ? 0 : FGMM_CUT;
    params->summed = !state->log_prob && !state->scoring;
    FGMM_GO(fgmm_feed_run(feed, stage, params, infer_visit, state));
    fgmm_report_pass(&scope, feed, params->engine, compute.precision, NULL);
done:
    fgmm_report_end(&scope, status);
    fgmm_prepared_free(ctx, &prepared);
    if (room) state->log_prob = NULL;
    fgmm_free(ctx, room);
    fgmm_feed_close(ctx, feed);
    if (!fgmm_dispatch_again(ctx, status, rows)) return status;
    fgmm_enter(ctx);
    return infer(ctx, stage, model, rows, given, state, report);
}

fgmm_status fgmm_score_samples(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                               const fgmm_compute_options *options, double *log_prob, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!log_prob) return fgmm_fail(ctx, FGMM_ERR_INVALID, "score_samples: log_prob is NULL");
    infer_state state = {.log_prob = log_prob};
    return infer(ctx, "score", model, rows, options, &state, report);
}

fgmm_status fgmm_score(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                       const fgmm_compute_options *options, fgmm_score_result *out, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out) return fgmm_fail(ctx, FGMM_ERR_INVALID, "score: out is NULL");
    infer_state state = {.scoring = 1};
    FGMM_TRY(infer(ctx, "score", model, rows, options, &state, report));
    if (!(state.weight > 0))
        return fgmm_fail(ctx, FGMM_ERR_DATA, "score: no rows are left to score: the weights sum to %g", state.weight);
    double parameters = (double)fgmm_model_parameters(model);
    *out = (fgmm_score_result){.log_likelihood = state.sum / state.weight,
                               .aic = 2 * parameters - 2 * state.sum,
                               .bic = parameters * log(state.weight) - 2 * state.sum,
                               .weight = state.weight};
    if (report) report->lower_bound = out->log_likelihood;
    return FGMM_OK;
}

fgmm_status fgmm_predict(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                         const fgmm_compute_options *options, int32_t *labels, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!labels) return fgmm_fail(ctx, FGMM_ERR_INVALID, "predict: labels is NULL");
    infer_state state = {.m = 1, .ids = labels};
    return infer(ctx, "predict", model, rows, options, &state, report);
}

fgmm_status fgmm_predict_proba(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows,
                               const fgmm_compute_options *options, float *resp, double *log_prob,
                               fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!resp || !model) return fgmm_fail(ctx, FGMM_ERR_INVALID, "predict_proba: a pointer is NULL");
    infer_state state = {.m = (int)model->k, .proba = 1, .resp = resp, .log_prob = log_prob};
    return infer(ctx, "predict", model, rows, options, &state, report);
}

fgmm_status fgmm_assign(fgmm_context *ctx, const fgmm_model *model, const fgmm_rows *rows, int m,
                        const fgmm_assign_options *options, int32_t *ids, float *resp, double *log_prob,
                        fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!ids || !resp) return fgmm_fail(ctx, FGMM_ERR_INVALID, "assign: ids or resp is NULL");
    if (m < 1 || m > FGMM_TOP_MAX)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "assign: m = %d must be 1 to %d", m, FGMM_TOP_MAX);
    fgmm_assign_options use = FGMM_ASSIGN_OPTIONS_INIT;
    if (options) {
        if (options->struct_size != sizeof use)
            return fgmm_fail(ctx, FGMM_ERR_INVALID,
                             "assign: struct_size of the options is not set: use FGMM_ASSIGN_OPTIONS_INIT");
        use = *options;
    }
    if (!(use.min_resp >= 0 && use.min_resp <= 1))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "assign: min_resp = %g must be within 0 and 1", use.min_resp);
    infer_state state = {.m = m,
                         .min_resp = use.min_resp,
                         .renormalise = use.renormalise != 0,
                         .ids = ids,
                         .resp = resp,
                         .log_prob = log_prob};
    return infer(ctx, "predict", model, rows, &use.compute, &state, report);
}
