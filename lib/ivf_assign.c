/* Lists of row numbers. */
#include <string.h>

#include "ivf_choose.h"
#include "report.h"

typedef struct {
    fgmm_chooser chooser;
    fgmm_compute_options compute;
    const fgmm_rows *rows;
    int32_t *lists;      /* [N, max_lists] */
    fgmm_list_room room; /* left is NULL without a cap */
} assign_state;

static fgmm_status assign_block(void *user, const void *data, int64_t first, int64_t n) {
    assign_state *state = user;
    return fgmm_choose(&state->chooser, state->rows->type, data, first, n, &state->compute,
                       state->lists + first * state->chooser.max_lists, NULL, state->room.left ? &state->room : NULL);
}

/* Rows of rank 0 of a list come before the others. */
static fgmm_status gather_lists(fgmm_context *ctx, const assign_state *state, fgmm_ivf_lists *out) {
    int64_t n = state->rows->n, k = state->chooser.k, m = state->chooser.max_lists;
    int64_t *next = fgmm_calloc(ctx, (size_t)k, sizeof *next, "places in lists");
    if (!next) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_ERR_MEMORY;
    out->n_lists = k;
    out->n_rows = n;
    if (!(out->offsets = fgmm_calloc(ctx, (size_t)k + 1, sizeof(int64_t), "offsets of lists"))) goto done;
    for (int64_t i = 0; i < n * m; i++)
        if (state->lists[i] >= 0) out->offsets[state->lists[i] + 1]++;
    for (int64_t i = 0; i < k; i++) out->offsets[i + 1] += out->offsets[i];
    out->n_entries = out->offsets[k];
    if (!(out->rows = fgmm_alloc(ctx, (size_t)out->n_entries * sizeof(int64_t), "rows of lists"))) goto done;
    if (!(out->ranks = fgmm_alloc(ctx, (size_t)out->n_entries, "ranks of rows"))) goto done;
    memcpy(next, out->offsets, (size_t)k * sizeof *next);
    for (int later = 0; later < 2; later++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = later; j < (later ? m : 1); j++) {
                int32_t list = state->lists[i * m + j];
                if (list < 0) continue;
                out->ranks[next[list]] = (uint8_t)j;
                out->rows[next[list]++] = i;
            }
    status = FGMM_OK;
done:
    fgmm_free(ctx, next);
    return status;
}

static fgmm_status read_options(fgmm_context *ctx, const fgmm_ivf_assign_options *given, const fgmm_model *model,
                                const fgmm_rows *rows, fgmm_ivf_assign_options *use, assign_state *state) {
    *use = (fgmm_ivf_assign_options)FGMM_IVF_ASSIGN_OPTIONS_INIT;
    if (given) {
        if (given->struct_size != sizeof *use)
            return fgmm_fail(ctx, FGMM_ERR_INVALID,
                             "ivf assign: struct_size of the options is not set: use FGMM_IVF_ASSIGN_OPTIONS_INIT");
        *use = *given;
    }
    FGMM_TRY(fgmm_metric_check(ctx, use->metric, rows, "ivf assign"));
    FGMM_TRY(fgmm_compute_read(ctx, &state->compute, &use->compute));
    FGMM_TRY(fgmm_rule_check(ctx, use->rule, &use->max_lists, &use->budget, &use->threshold, &use->lambda, model->k));
    if (rows->d != model->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf assign: the rows have %lld features, the model %lld",
                         (long long)rows->d, (long long)model->d);
    if (use->list_max < 0 || use->sample_rows < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf assign: list_max and sample_rows must not be negative");
    if (use->list_max > rows->n) use->list_max = rows->n;
    if (use->list_max && (double)use->list_max * (double)model->k < (double)rows->n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf assign: %lld lists of at most %lld do not hold %lld rows",
                         (long long)model->k, (long long)use->list_max, (long long)rows->n);
    state->chooser = (fgmm_chooser){.metric = use->metric,
                                    .rule = use->rule,
                                    .max_lists = use->max_lists,
                                    .threshold = use->threshold,
                                    .lambda = use->lambda};
    return FGMM_OK;
}

static fgmm_status assign_all(fgmm_context *ctx, assign_state *state, const fgmm_model *model,
                              const fgmm_ivf_assign_options *use, fgmm_ivf_lists *lists) {
    int64_t n = state->rows->n;
    FGMM_TRY(fgmm_chooser_open(&state->chooser, ctx, model));
    if (use->budget > 0)
        FGMM_TRY(fgmm_choose_threshold(&state->chooser, state->rows, use->budget, use->sample_rows, use->seed,
                                       &state->compute));
    state->lists = fgmm_alloc(ctx, (size_t)(n * use->max_lists) * sizeof(int32_t), "lists of rows");
    if (!state->lists) return FGMM_ERR_MEMORY;
    if (use->list_max) {
        if (!(state->room.left = fgmm_calloc(ctx, (size_t)model->k, sizeof(int64_t), "room in lists")))
            return FGMM_ERR_MEMORY;
        for (int64_t i = 0; i < model->k; i++) state->room.left[i] = use->list_max;
        state->room.spare = use->list_max * model->k - n;
    }
    FGMM_TRY(fgmm_each_block(ctx, state->rows, fgmm_block_rows(state->rows), assign_block, state));
    int has_threshold = use->rule != FGMM_IVF_SINGLE && use->rule != FGMM_IVF_NEAREST;
    lists->threshold = has_threshold ? state->chooser.threshold : 0;
    return gather_lists(ctx, state, lists);
}

fgmm_status fgmm_ivf_assign(fgmm_context *ctx, fgmm_ivf_lists **out, const fgmm_model *model, const fgmm_rows *rows,
                            const fgmm_ivf_assign_options *options, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !model || !rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf assign: a pointer is NULL");
    *out = NULL;
    assign_state state = {.rows = rows};
    fgmm_ivf_assign_options use;
    FGMM_TRY(read_options(ctx, options, model, rows, &use, &state));
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    fgmm_ivf_lists *lists = fgmm_calloc(ctx, 1, sizeof *lists, "lists");
    fgmm_status status = lists ? assign_all(ctx, &state, model, &use, lists) : FGMM_ERR_MEMORY;
    if (status == FGMM_OK && report) report->n_rows = rows->n;
    fgmm_report_end(&scope, status);
    if (status == FGMM_OK) {
        *out = lists;
        lists = NULL;
    }
    fgmm_ivf_lists_free(ctx, lists);
    fgmm_free(ctx, state.room.left);
    fgmm_free(ctx, state.lists);
    if (state.chooser.ctx) fgmm_chooser_close(&state.chooser);
    return status;
}

void fgmm_ivf_lists_free(fgmm_context *ctx, fgmm_ivf_lists *lists) {
    if (!lists) return;
    fgmm_free(ctx, lists->offsets);
    fgmm_free(ctx, lists->rows);
    fgmm_free(ctx, lists->ranks);
    fgmm_free(ctx, lists);
}
