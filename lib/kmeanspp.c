#include "kmeanspp.h"

#include <math.h>
#include <string.h>

#include "estep.h"
#include "params.h"

/* Rows a partial sum: what makes drawing a row cheap, and the sums the same for any number of threads. */
enum { PART_ROWS = 256, LANES = 16 };

static float squared_distance(const float *a, const float *b, int64_t d) {
    float part[LANES] = {0}, sum = 0;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES)
        for (int l = 0; l < LANES; l++) {
            float t = a[j + l] - b[j + l];
            part[l] += t * t;
        }
    for (; j < d; j++) sum += (a[j] - b[j]) * (a[j] - b[j]);
    for (int l = 0; l < LANES; l++) sum += part[l];
    return sum;
}

/* ---- the nearest centre of every row ---- */

/* A pass over the device costs about what this many multiply-adds do on the host. */
static const double host_work_max = 1e7;

static void nearest_on_host(const fgmm_seed_rows *sample, const float *centres, int64_t first, int64_t count,
                            int threads, float *nearest, int32_t *owner) {
    int64_t d = sample->d;
    double work = (double)sample->n * (double)count * (double)d;
    if (work < 1e6) threads = 1; /* waking another costs more */
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < sample->n; i++)
        for (int64_t c = 0; c < count; c++) {
            float distance = squared_distance(sample->rows + i * d, centres + c * d, d);
            if (!(distance < nearest[i])) continue;
            nearest[i] = distance;
            owner[i] = (int32_t)(first + c);
        }
}

typedef struct {
    const fgmm_target *target;
    int64_t first;
    double norm, variance; /* log p(x) = norm - distance / (2 variance) */
    int32_t *ids;
    double *log_prob; /* both [rows of a block] */
    float *nearest;
    int32_t *owner;
} nearest_state;

static fgmm_status nearest_visit(void *user, const fgmm_feed_block *block) {
    nearest_state *state = user;
    float *nearest = state->nearest + block->first;
    int32_t *owner = state->owner + block->first;
    FGMM_TRY(state->target->backend->assign(state->target->device, block->block, 1, state->ids, NULL, state->log_prob));
    for (int64_t i = 0; i < block->n; i++) {
        float distance = (float)fmax(2 * state->variance * (state->norm - state->log_prob[i]), 0);
        if (!(distance < nearest[i]) || state->ids[i] < 0) continue;
        nearest[i] = distance;
        owner[i] = (int32_t)state->first + state->ids[i];
    }
    return FGMM_OK;
}

/* The centres as a mixture with one variance, so small that the nearest is the likeliest and a screen leaves few
 * others. */
static fgmm_status nearest_on_device(fgmm_context *ctx, const fgmm_seed_rows *sample, const float *centres,
                                     int64_t first, int64_t count, float *nearest, int32_t *owner) {
    int64_t d = sample->d, block_rows = fgmm_feed_block_rows(sample->feed);
    fgmm_status status = FGMM_ERR_MEMORY;
    fgmm_prepared prepared = {0};
    fgmm_engine_choice choice = {0};
    nearest_state state = {.target = fgmm_feed_target(sample->feed),
                           .first = first,
                           .variance = fmax(1e-5 * sample->spread, 1e-32),
                           .nearest = nearest,
                           .owner = owner};
    FGMM_TRY(fgmm_dispatch_trust(state.target, FGMM_SPHERICAL, d, FGMM_F32));
    double *shape = fgmm_alloc(ctx, (size_t)(count * (d + 2)) * sizeof *shape, "centres");
    fgmm_model model = {.type = FGMM_SPHERICAL, .k = count, .d = d};
    if (!shape) return FGMM_ERR_MEMORY;
    model.weights = shape;
    model.covariances = shape + count;
    model.means = shape + 2 * count;
    for (int64_t c = 0; c < count; c++) {
        model.weights[c] = 1 / (double)count;
        model.covariances[c] = state.variance;
    }
    for (int64_t at = 0; at < count * d; at++) model.means[at] = centres[at];
    if (!(state.ids = fgmm_alloc(ctx, (size_t)block_rows * sizeof *state.ids, "nearest centres"))) goto done;
    if (!(state.log_prob = fgmm_alloc(ctx, (size_t)block_rows * sizeof(double), "distances"))) goto done;
    FGMM_GO(fgmm_prepare(ctx, &prepared, &model));
    fgmm_params *params = &prepared.params;
    params->precision = FGMM_EXACT;
    params->engine = fgmm_engine_next(&choice, FGMM_EXACT, count);
    params->cut = 0.5 / (double)count;
    params->hard = 1;
    state.norm = params->log_norm[0] + params->log_weights[0];
    FGMM_GO(fgmm_feed_run(sample->feed, "seed", params, nearest_visit, &state));
done:
    fgmm_prepared_free(ctx, &prepared);
    fgmm_free(ctx, state.ids);
    fgmm_free(ctx, state.log_prob);
    fgmm_free(ctx, shape);
    return status;
}

fgmm_status fgmm_nearest(fgmm_context *ctx, const fgmm_seed_rows *sample, const float *centres, int64_t first,
                         int64_t count, float *nearest, int32_t *owner) {
    double work = (double)sample->n * (double)count * (double)sample->d;
    if (work > host_work_max) return nearest_on_device(ctx, sample, centres, first, count, nearest, owner);
    nearest_on_host(sample, centres, first, count, fgmm_threads(ctx), nearest, owner);
    return FGMM_OK;
}

/* ---- k-means++ ---- */

/*
 * Drawing by exact distances would take a pass over the rows for every seed. Instead each row keeps the distance to
 * the seeds it has seen, an upper bound; a row is proposed in proportion to that and accepted with probability
 * true / bound, which draws by the true distances all the same. All rows catch up in one pass over a batch of seeds as
 * soon as the proposals since the last one have cost about what the pass does beside its products, which have to be
 * done once anyway: the whole is one product of rows and seeds, less than an iteration of EM.
 */
typedef struct {
    const fgmm_seed_rows *sample;
    const float *seeds; /* [count, d] */
    int64_t count;
    int64_t parts;
    float *nearest;   /* [n] squared distance to the nearest of the seeds that the row has seen */
    int32_t *owner;   /* [n] which seed that is */
    int32_t *seen;    /* [n] seeds that the row has seen */
    double *part_sum; /* [parts] of w * nearest */
} plus_state;

static void sum_part(plus_state *state, int64_t part) {
    int64_t from = part * PART_ROWS, to = from + PART_ROWS;
    if (to > state->sample->n) to = state->sample->n;
    const double *weights = state->sample->weights;
    double sum = 0;
    for (int64_t i = from; i < to; i++) sum += (weights ? weights[i] : 1) * state->nearest[i];
    state->part_sum[part] = sum;
}

static int64_t draw_first(const fgmm_seed_rows *sample, fgmm_rng *rng) {
    const double *weights = sample->weights;
    if (!weights) return fgmm_rng_below(rng, sample->n);
    double total = 0;
    for (int64_t i = 0; i < sample->n; i++) total += weights[i];
    double at = fgmm_rng_uniform(rng) * total;
    int64_t last = 0;
    for (int64_t i = 0; i < sample->n; i++) {
        if (weights[i] > 0) last = i;
        if (at < weights[i]) return i;
        at -= weights[i];
    }
    return last;
}

/* A row with probability proportional to its share of the sum; -1 where the sum is of no use. */
static int64_t draw(const plus_state *state, fgmm_rng *rng) {
    const double *weights = state->sample->weights;
    double total = 0;
    for (int64_t part = 0; part < state->parts; part++) total += state->part_sum[part];
    if (!(total > 0) || !isfinite(total)) return -1;
    double at = fgmm_rng_uniform(rng) * total;
    int64_t part = 0, last = -1;
    while (part + 1 < state->parts && at >= state->part_sum[part]) at -= state->part_sum[part++];
    /* Rounding may carry past the end of a part, even of the last. */
    while (part > 0 && !(state->part_sum[part] > 0)) part--;
    int64_t from = part * PART_ROWS, to = from + PART_ROWS;
    if (to > state->sample->n) to = state->sample->n;
    for (int64_t i = from; i < to; i++) {
        double share = (weights ? weights[i] : 1) * state->nearest[i];
        if (share > 0) last = i;
        if (at < share) return i;
        at -= share;
    }
    return last;
}

/* Shows row i the seeds it has not seen; its distance is then that of the host's arithmetic, whatever the device's
 * said. */
static void catch_up(plus_state *state, int64_t i) {
    int64_t d = state->sample->d;
    const float *x = state->sample->rows + i * d;
    float nearest = squared_distance(x, state->seeds + state->owner[i] * d, d);
    for (int64_t c = state->seen[i]; c < state->count; c++) {
        float distance = squared_distance(x, state->seeds + c * d, d);
        if (!(distance < nearest)) continue;
        nearest = distance;
        state->owner[i] = (int32_t)c;
    }
    state->nearest[i] = nearest;
    state->seen[i] = (int32_t)state->count;
    sum_part(state, i / PART_ROWS);
}

static void take_seed(plus_state *state, int64_t i, float *seeds, int64_t *chosen) {
    int64_t d = state->sample->d;
    memcpy(seeds + state->count * d, state->sample->rows + i * d, (size_t)d * sizeof *seeds);
    chosen[state->count] = i;
    state->owner[i] = (int32_t)state->count;
    state->seen[i] = (int32_t)++state->count;
    state->nearest[i] = 0;
    if (state->count > 1) sum_part(state, i / PART_ROWS);
}

/* Shows all rows the seeds since `from`. */
static fgmm_status catch_all_up(fgmm_context *ctx, plus_state *state, int64_t from) {
    const fgmm_seed_rows *sample = state->sample;
    FGMM_TRY(fgmm_nearest(ctx, sample, state->seeds + from * sample->d, from, state->count - from, state->nearest,
                          state->owner));
    for (int64_t i = 0; i < sample->n; i++) state->seen[i] = (int32_t)state->count;
    for (int64_t part = 0; part < state->parts; part++) sum_part(state, part);
    return FGMM_OK;
}

/* What a pass costs beside its products: so many distances on the host, a row. */
static const double pass_cost = 6;

fgmm_status fgmm_kmeanspp(fgmm_context *ctx, const fgmm_seed_rows *sample, int64_t k, fgmm_rng *rng, int64_t *chosen,
                          float *seeds, float *nearest, int32_t *owner) {
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t n = sample->n, shown = 0;                /* seeds that every row has seen */
    double spent = 0, limit = pass_cost * (double)n; /* distances taken for proposals since */
    plus_state state = {
        .sample = sample, .seeds = seeds, .parts = (n + PART_ROWS - 1) / PART_ROWS, .nearest = nearest, .owner = owner};
    state.seen = fgmm_calloc(ctx, (size_t)n, sizeof(int32_t), "seeds seen");
    state.part_sum = fgmm_alloc(ctx, (size_t)state.parts * sizeof(double), "sums of distances");
    if (!state.seen || !state.part_sum) goto done;
    for (int64_t i = 0; i < n; i++) {
        nearest[i] = INFINITY;
        owner[i] = 0;
    }
    take_seed(&state, draw_first(sample, rng), seeds, chosen);
    while (state.count < k) {
        if (shown == 0 || (spent >= limit && shown < state.count)) {
            FGMM_GO(catch_all_up(ctx, &state, shown));
            shown = state.count;
            spent = 0;
        }
        int64_t row = draw(&state, rng);
        if (row < 0) {
            take_seed(&state, fgmm_rng_below(rng, n), seeds, chosen);
            continue;
        }
        float bound = nearest[row];
        spent += 2 + (double)(state.count - state.seen[row]);
        catch_up(&state, row);
        if (fgmm_rng_uniform(rng) * bound < nearest[row]) take_seed(&state, row, seeds, chosen);
        if (fgmm_cancelled(ctx)) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
    }
    FGMM_GO(catch_all_up(ctx, &state, shown));
    status = FGMM_OK;
done:
    fgmm_free(ctx, state.seen);
    fgmm_free(ctx, state.part_sum);
    return status;
}
