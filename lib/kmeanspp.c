#include "kmeanspp.h"

#include <math.h>

#include "dispatch.h"

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

typedef struct {
    const float *rows;
    const double *weights;
    int64_t n, d, parts;
    float *nearest;   /* [n] squared distance to the nearest seed */
    int32_t *owner;   /* [n] which seed that is */
    double *part_sum; /* [parts] */
    float *between;   /* [k] squared distance from the newest seed to the others */
    int threads;
} plus_state;

/* A row whose seed is more than twice as far from the new seed as from the row keeps it (triangle inequality). */
static void add_seed(plus_state *state, const int64_t *chosen, int64_t count) {
    const float *seed = state->rows + chosen[count] * state->d;
    for (int64_t i = 0; i < count; i++)
        state->between[i] = squared_distance(seed, state->rows + chosen[i] * state->d, state->d);
#pragma omp parallel for num_threads(state->threads) schedule(static)
    for (int64_t part = 0; part < state->parts; part++) {
        int64_t from = part * PART_ROWS, to = from + PART_ROWS < state->n ? from + PART_ROWS : state->n;
        double sum = 0;
        for (int64_t i = from; i < to; i++) {
            /* The factor leaves room for the rounding of both distances. */
            if (count == 0 || state->between[state->owner[i]] < 4.001f * state->nearest[i]) {
                float distance = squared_distance(seed, state->rows + i * state->d, state->d);
                if (count == 0 || distance < state->nearest[i]) {
                    state->nearest[i] = distance;
                    state->owner[i] = (int32_t)count;
                }
            }
            sum += (state->weights ? state->weights[i] : 1) * state->nearest[i];
        }
        state->part_sum[part] = sum;
    }
}

/* A row with probability proportional to its share of the sum; uniform where all shares are 0. */
static int64_t draw(const plus_state *state, fgmm_rng *rng) {
    double total = 0;
    for (int64_t part = 0; part < state->parts; part++) total += state->part_sum[part];
    if (!(total > 0) || !isfinite(total)) return fgmm_rng_below(rng, state->n);
    double at = fgmm_rng_uniform(rng) * total;
    int64_t part = 0;
    while (part + 1 < state->parts && at >= state->part_sum[part]) at -= state->part_sum[part++];
    int64_t from = part * PART_ROWS, to = from + PART_ROWS < state->n ? from + PART_ROWS : state->n, last = from;
    for (int64_t i = from; i < to; i++) {
        double share = (state->weights ? state->weights[i] : 1) * state->nearest[i];
        if (share > 0) last = i;
        if (at < share) return i;
        at -= share;
    }
    return last;
}

static int64_t draw_first(const plus_state *state, fgmm_rng *rng) {
    if (!state->weights) return fgmm_rng_below(rng, state->n);
    double total = 0;
    for (int64_t i = 0; i < state->n; i++) total += state->weights[i];
    double at = fgmm_rng_uniform(rng) * total;
    int64_t last = 0;
    for (int64_t i = 0; i < state->n; i++) {
        if (state->weights[i] > 0) last = i;
        if (at < state->weights[i]) return i;
        at -= state->weights[i];
    }
    return last;
}

fgmm_status fgmm_kmeanspp(fgmm_context *ctx, const float *rows, const double *weights, int64_t n, int64_t d, int64_t k,
                          fgmm_rng *rng, int64_t *chosen) {
    fgmm_status status = FGMM_ERR_MEMORY;
    plus_state state = {.rows = rows,
                        .weights = weights,
                        .n = n,
                        .d = d,
                        .parts = (n + PART_ROWS - 1) / PART_ROWS,
                        .threads = fgmm_threads(ctx)};
    state.nearest = fgmm_alloc(ctx, (size_t)n * sizeof(float), "distances");
    state.owner = fgmm_alloc(ctx, (size_t)n * sizeof(int32_t), "nearest seeds");
    state.part_sum = fgmm_alloc(ctx, (size_t)state.parts * sizeof(double), "sums of distances");
    state.between = fgmm_alloc(ctx, (size_t)k * sizeof(float), "distances between seeds");
    if (!state.nearest || !state.owner || !state.part_sum || !state.between) goto done;
    for (int64_t i = 0; i < k; i++) {
        chosen[i] = i ? draw(&state, rng) : draw_first(&state, rng);
        add_seed(&state, chosen, i);
        if (fgmm_cancelled(ctx)) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
    }
    status = FGMM_OK;
done:
    fgmm_free(ctx, state.nearest);
    fgmm_free(ctx, state.owner);
    fgmm_free(ctx, state.part_sum);
    fgmm_free(ctx, state.between);
    return status;
}
