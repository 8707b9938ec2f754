#include "seed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kmeanspp.h"
#include "params.h"
#include "rng.h"

typedef struct {
    double log_density;
    int64_t row;
} ranked_row;

struct fgmm_seeder {
    fgmm_context *ctx;
    const fgmm_target *target;
    const double *mean, *variance; /* of the data: the feed's */
    int64_t n, d;
    float *rows;     /* [n, d]: sampled rows less the data's mean */
    double *weights; /* [n] or NULL */
    uint64_t seed;
    ranked_row *ranked; /* [n_ranked] of fgmm_seed_rank, worst explained first */
    int64_t n_ranked;
};

/* Sampling stops growing where its rows would take more than this many bytes. */
static const double sample_bytes = 256e6;

static int64_t sample_size(const fgmm_rows *rows, int64_t total, int64_t k, int64_t asked) {
    int64_t n = asked > 0 ? asked : k * 16 > 8192 ? k * 16 : 8192;
    int64_t room = (int64_t)(sample_bytes / (4.0 * (double)rows->d));
    if (asked <= 0 && n > room) n = room;
    if (n < k) n = k;
    return n < total ? n : total;
}

/* Rows that can be sampled: not left out, of positive weight. */
static int usable(const fgmm_feed *feed, const fgmm_rows *rows, int64_t row) {
    return (!rows->weights || rows->weights[row] > 0) && !fgmm_feed_is_bad(feed, row);
}

static int64_t count_usable(const fgmm_feed *feed, const fgmm_rows *rows) {
    if (!rows->weights) return rows->n - fgmm_feed_skipped(feed);
    int64_t count = 0;
    for (int64_t row = 0; row < rows->n; row++) count += usable(feed, rows, row);
    return count;
}

/* The numbers of n usable rows of `total`, one from each of n equal strata, ascending. */
static void draw_numbers(const fgmm_feed *feed, const fgmm_rows *rows, int64_t total, int64_t n, fgmm_rng *rng,
                         int64_t *numbers) {
    for (int64_t i = 0; i < n; i++) {
        int64_t from = (int64_t)((double)i * ((double)total / (double)n));
        int64_t to = (int64_t)((double)(i + 1) * ((double)total / (double)n));
        if (i == n - 1 || to > total) to = total;
        int64_t rank = from + (to > from ? fgmm_rng_below(rng, to - from) : 0);
        int64_t least = i ? numbers[i - 1] + 1 : 0, most = total - (n - i); /* the rest must still fit */
        numbers[i] = rank < least ? least : rank > most ? most : rank;
    }
    if (total == rows->n) return;
    /* From ranks among the usable rows to row numbers. */
    int64_t row = -1, rank = -1;
    for (int64_t i = 0; i < n; i++) {
        while (rank < numbers[i]) rank += usable(feed, rows, ++row);
        numbers[i] = row;
    }
}

/* Sampled rows less the data's mean, in f32. */
static fgmm_status narrow_rows(fgmm_seeder *seeder, const double *wide, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < seeder->d; j++) {
            float value = (float)(wide[i * seeder->d + j] - seeder->mean[j]);
            if (!isfinite(value))
                return fgmm_fail(seeder->ctx, FGMM_ERR_DATA, "column %lld spans more than f32 can hold: scale the data",
                                 (long long)j);
            seeder->rows[(first + i) * seeder->d + j] = value;
        }
    return FGMM_OK;
}

fgmm_status fgmm_seeder_open(fgmm_context *ctx, fgmm_seeder **out, fgmm_feed *feed, const fgmm_rows *rows, int64_t k,
                             int64_t sample, uint64_t seed) {
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t d = rows->d, total = count_usable(feed, rows), n = sample_size(rows, total, k, sample);
    int64_t *numbers = NULL;
    double *wide = NULL;
    *out = NULL;
    if (total < k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld exceeds the number of rows with weight, %lld",
                         (long long)k, (long long)total);
    fgmm_seeder *seeder = fgmm_calloc(ctx, 1, sizeof *seeder, "a seeder");
    if (!seeder) return FGMM_ERR_MEMORY;
    seeder->ctx = ctx;
    seeder->target = fgmm_feed_target(feed);
    seeder->mean = fgmm_feed_mean(feed);
    seeder->variance = fgmm_feed_variance(feed);
    seeder->d = d;
    seeder->n = n;
    seeder->seed = seed;
    fgmm_rng rng = fgmm_rng_seed(seed, 0x5eed);
    if (!(numbers = fgmm_alloc(ctx, (size_t)n * sizeof *numbers, "sampled row numbers"))) goto done;
    draw_numbers(feed, rows, total, n, &rng, numbers);
    if (!(seeder->rows = fgmm_alloc(ctx, (size_t)(n * d) * sizeof(float), "sampled rows"))) goto done;
    if (rows->weights) {
        if (!(seeder->weights = fgmm_alloc(ctx, (size_t)n * sizeof(double), "sampled weights"))) goto done;
        for (int64_t i = 0; i < n; i++) seeder->weights[i] = rows->weights[numbers[i]];
    }
    /* A cl_mem is gathered in one go, files and memory in pieces. */
    int64_t piece = rows->cl_mem ? n : 256 < n ? 256 : n;
    if (!(wide = fgmm_alloc(ctx, (size_t)(piece * d) * sizeof *wide, "sampled rows"))) goto done;
    for (int64_t from = 0; from < n; from += piece) {
        int64_t count = n - from < piece ? n - from : piece;
        FGMM_GO(fgmm_feed_gather(feed, numbers + from, count, wide));
        FGMM_GO(narrow_rows(seeder, wide, from, count));
        if (fgmm_cancelled(ctx)) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
    }
    *out = seeder;
    seeder = NULL;
    status = FGMM_OK;
done:
    fgmm_free(ctx, numbers);
    fgmm_free(ctx, wide);
    fgmm_seeder_free(ctx, seeder);
    return status;
}

void fgmm_seeder_free(fgmm_context *ctx, fgmm_seeder *seeder) {
    if (!seeder) return;
    fgmm_free(ctx, seeder->rows);
    fgmm_free(ctx, seeder->weights);
    fgmm_free(ctx, seeder->ranked);
    fgmm_free(ctx, seeder);
}

/* ---- seeds ---- */

/* K distinct rows, by a partial shuffle. */
static fgmm_status choose_uniform(fgmm_seeder *seeder, int64_t k, fgmm_rng *rng, int64_t *chosen) {
    int64_t *order = fgmm_alloc(seeder->ctx, (size_t)seeder->n * sizeof *order, "a shuffle");
    if (!order) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < seeder->n; i++) order[i] = i;
    for (int64_t i = 0; i < k; i++) {
        int64_t pick = i + fgmm_rng_below(rng, seeder->n - i), held = order[i];
        chosen[i] = order[i] = order[pick];
        order[pick] = held;
    }
    fgmm_free(seeder->ctx, order);
    return FGMM_OK;
}

/* Means at the chosen rows (in the sample's frame), equal weights, one variance for all. */
static fgmm_status model_at_rows(fgmm_seeder *seeder, fgmm_model **out, fgmm_covariance type, int64_t k,
                                 const int64_t *chosen, double variance) {
    int64_t d = seeder->d, size = fgmm_covariances_size(type, k, d);
    fgmm_status status = FGMM_ERR_MEMORY;
    double *means = fgmm_alloc(seeder->ctx, (size_t)(k * d) * sizeof *means, "means");
    double *covariances = fgmm_alloc(seeder->ctx, (size_t)size * sizeof *covariances, "covariances");
    if (!means || !covariances) goto done;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < d; j++) means[i * d + j] = seeder->rows[chosen[i] * d + j];
    for (int64_t i = 0; i < size; i++) covariances[i] = variance;
    status = fgmm_model_create(seeder->ctx, out, type, k, d, NULL, means, covariances);
done:
    fgmm_free(seeder->ctx, means);
    fgmm_free(seeder->ctx, covariances);
    return status;
}

static double mean_variance(const fgmm_seeder *seeder) {
    double sum = 0;
    for (int64_t j = 0; j < seeder->d; j++) sum += seeder->variance[j];
    return fmax(sum / (double)seeder->d, 1e-30);
}

/* ---- hard assignment of the sample ---- */

/* Statistics of the sample with each row given to its nearest mean. The model's variances are all equal. */
static fgmm_status hard_stats(fgmm_seeder *seeder, const fgmm_model *model, fgmm_stats **out) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_rows *rows = NULL;
    fgmm_feed *feed = NULL;
    fgmm_engine_choice choice = {0};
    fgmm_compute_options compute = FGMM_COMPUTE_OPTIONS_INIT;
    FGMM_GO(fgmm_rows_from_memory(ctx, &rows, seeder->rows, FGMM_F32, seeder->n, seeder->d, 0));
    rows->weights = seeder->weights;
    FGMM_GO(fgmm_feed_open(ctx, &feed, rows, seeder->target, &compute, 1));
    fgmm_feed_quiet(feed);
    FGMM_GO(fgmm_stats_new(ctx, out, model));
    FGMM_GO(fgmm_estep_pass(ctx, feed, "seed", *out, FGMM_EXACT, 1, &choice, NULL));
done:
    fgmm_feed_close(ctx, feed);
    fgmm_rows_free(ctx, rows);
    return status;
}

static const int lloyd_iterations = 10;

/* Lloyd iterations while they still move the objective (the mean log-probability at one variance) by a thousandth. */
static fgmm_status lloyd(fgmm_seeder *seeder, fgmm_model *model, int iterations, fgmm_stats **out) {
    double last = -INFINITY;
    for (int it = 0;; it++) {
        FGMM_TRY(hard_stats(seeder, model, out));
        fgmm_stats *stats = *out;
        double now = stats->log_likelihood / stats->weight;
        if (it >= iterations || now - last <= 1e-3 * fabs(now)) return FGMM_OK;
        last = now;
        for (int64_t i = 0; i < model->k; i++)
            for (int64_t j = 0; j < model->d && stats->s0[i] > 0; j++)
                model->means[i * model->d + j] =
                    stats->centres[i * model->d + j] + stats->s1[i * model->d + j] / stats->s0[i];
        fgmm_stats_free(seeder->ctx, stats);
        *out = NULL;
    }
}

/* Sum over components of the scatter about their new means, a row: the variance of one feature, or of all. */
static double pooled_variance(const fgmm_stats *stats, int64_t feature) {
    int64_t k = stats->model->k, d = stats->model->d;
    double sum = 0;
    for (int64_t i = 0; i < k; i++) {
        if (!(stats->s0[i] > 0)) continue;
        if (stats->model->type == FGMM_SPHERICAL) {
            double about = stats->s2[i];
            for (int64_t j = 0; j < d; j++) about -= stats->s1[i * d + j] * stats->s1[i * d + j] / stats->s0[i];
            sum += about / (double)d;
        } else {
            int64_t at = i * d + feature;
            sum += stats->s2[at] - stats->s1[at] * stats->s1[at] / stats->s0[i];
        }
    }
    return fmax(sum / stats->weight, 0);
}

/*
 * A component that got hardly any rows has no variance of its own to start from, and one that starts at a spike never leaves it: all
 * variances are at least a hundredth of the pooled one.
 */
static fgmm_status model_from_hard(fgmm_seeder *seeder, const fgmm_stats *stats, double reg_covar, fgmm_model **out) {
    fgmm_model *model = NULL;
    FGMM_TRY(fgmm_mstep(seeder->ctx, stats, 0, 0, &model, NULL));
    int64_t k = model->k, d = model->d, per = model->type == FGMM_SPHERICAL ? 1 : d;
    double spread = mean_variance(seeder), total = 0;
    for (int64_t j = 0; j < per; j++) {
        double pooled = pooled_variance(stats, j);
        if (!(pooled > 1e-12 * spread)) pooled = 1e-12 * spread;
        for (int64_t i = 0; i < k; i++) {
            double *variance = &model->covariances[i * per + j];
            if (!(stats->s0[i] > 0)) *variance = pooled;
            *variance = fmax(*variance, 0.01 * pooled) + reg_covar;
        }
    }
    for (int64_t i = 0; i < k; i++) total += model->weights[i] = fmax(model->weights[i], 0.01 / (double)k);
    for (int64_t i = 0; i < k; i++) model->weights[i] /= total;
    *out = model;
    return FGMM_OK;
}

/* ---- random responsibilities ---- */

/* Rows that random responsibilities are drawn for: their means differ by about a deviation over the root of this. */
static const int64_t random_rows = 1024;

static fgmm_status random_stats(fgmm_seeder *seeder, fgmm_rng *rng, const fgmm_model *model, fgmm_stats **out) {
    fgmm_context *ctx = seeder->ctx;
    int64_t k = model->k, d = seeder->d, n = seeder->n < random_rows ? seeder->n : random_rows;
    double *resp = fgmm_alloc(ctx, (size_t)k * sizeof *resp, "random responsibilities of a row");
    if (!resp) return FGMM_ERR_MEMORY;
    fgmm_status status = fgmm_stats_new(ctx, out, model);
    for (int64_t r = 0; r < n && status == FGMM_OK; r++) {
        fgmm_stats *stats = *out;
        int64_t row = r * seeder->n / n;
        const float *x = seeder->rows + row * d;
        double weight = seeder->weights ? seeder->weights[row] : 1, sum = 0;
        for (int64_t i = 0; i < k; i++) sum += resp[i] = fgmm_rng_uniform(rng) + 1e-12;
        for (int64_t i = 0; i < k; i++) {
            double wr = weight * resp[i] / sum;
            stats->s0[i] += wr;
            for (int64_t j = 0; j < d; j++) {
                double t = x[j] - stats->centres[i * d + j];
                stats->s1[i * d + j] += wr * t;
                stats->s2[model->type == FGMM_SPHERICAL ? i : i * d + j] += wr * t * t;
            }
        }
        stats->weight += weight;
        if (fgmm_cancelled(ctx)) status = fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled");
    }
    fgmm_free(ctx, resp);
    return status;
}

/* ---- models ---- */

static void set_data_variances(const fgmm_seeder *seeder, fgmm_model *model, int64_t i, double reg_covar) {
    double spread = mean_variance(seeder);
    if (model->type == FGMM_SPHERICAL) {
        model->covariances[i] = spread + reg_covar;
        return;
    }
    for (int64_t j = 0; j < model->d; j++)
        model->covariances[i * model->d + j] = fmax(seeder->variance[j], 1e-12 * spread) + reg_covar;
}

fgmm_status fgmm_seed_model(fgmm_seeder *seeder, fgmm_model **out, fgmm_init init, fgmm_covariance type, int64_t k,
                            double reg_covar, int restart) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_rng rng = fgmm_rng_seed(seeder->seed, 0x1000 + (uint64_t)restart);
    fgmm_model *start = NULL, *model = NULL;
    fgmm_stats *stats = NULL;
    int64_t *chosen = fgmm_alloc(ctx, (size_t)k * sizeof *chosen, "seeds");
    if (!chosen) return FGMM_ERR_MEMORY;
    int plus = init == FGMM_INIT_KMEANSPP || init == FGMM_INIT_KMEANS;
    if (plus && fgmm_kmeanspp_work(seeder->n, seeder->d, k) > FGMM_KMEANSPP_MAX) {
        fgmm_log(ctx, FGMM_LOG_INFO,
                 "k-means++ over %lld rows and %lld components would dominate the fit: seeds drawn uniformly",
                 (long long)seeder->n, (long long)k);
        plus = 0;
    }
    if (plus)
        FGMM_GO(fgmm_kmeanspp(ctx, seeder->rows, seeder->weights, seeder->n, seeder->d, k, &rng, chosen));
    else
        FGMM_GO(choose_uniform(seeder, k, &rng, chosen));
    /* One small variance for all: the nearest mean is then the likeliest, and far ones are screened out. */
    FGMM_GO(model_at_rows(seeder, &start, type, k, chosen, 0.01 * mean_variance(seeder)));
    switch (init) {
    case FGMM_INIT_KMEANSPP:
    case FGMM_INIT_KMEANS:
        FGMM_GO(lloyd(seeder, start, init == FGMM_INIT_KMEANS ? lloyd_iterations : 0, &stats));
        FGMM_GO(model_from_hard(seeder, stats, reg_covar, &model));
        break;
    case FGMM_INIT_RANDOM:
        FGMM_GO(random_stats(seeder, &rng, start, &stats));
        FGMM_GO(model_from_hard(seeder, stats, reg_covar, &model));
        break;
    case FGMM_INIT_RANDOM_FROM_DATA:
        model = start;
        start = NULL;
        for (int64_t i = 0; i < k; i++) set_data_variances(seeder, model, i, reg_covar);
        break;
    }
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < seeder->d; j++) model->means[i * seeder->d + j] += seeder->mean[j];
    model->lower_bound = NAN;
    *out = model;
    model = NULL;
done:
    fgmm_free(ctx, chosen);
    fgmm_model_free(ctx, start);
    fgmm_model_free(ctx, model);
    fgmm_stats_free(ctx, stats);
    return status;
}

/* ---- dead components ---- */

/* Log-density of a sampled row. */
static double log_density(const fgmm_params *params, const float *x, const double *mean) {
    double best = FGMM_LOG_ZERO, sum = 0;
    for (int64_t i = 0; i < params->k; i++) {
        const double *half = params->half_inv_var + (params->covariance_type == FGMM_DIAG ? i * params->d : i);
        double q = 0;
        if (!(params->log_weights[i] > FGMM_LOG_ZERO)) continue;
        for (int64_t j = 0; j < params->d; j++) {
            double t = x[j] + mean[j] - params->means[i * params->d + j];
            q += half[params->covariance_type == FGMM_DIAG ? j : 0] * t * t;
        }
        double l = params->log_weights[i] + params->log_norm[i] - q;
        sum = l > best ? sum * exp(best - l) + 1 : sum + exp(l - best);
        best = fmax(best, l);
    }
    return best + log(sum);
}

static int by_density(const void *a, const void *b) {
    const ranked_row *x = a, *y = b;
    if (x->log_density != y->log_density) return x->log_density < y->log_density ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

fgmm_status fgmm_seed_rank(fgmm_seeder *seeder, const fgmm_model *model) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_prepared prepared = {0};
    int64_t n = seeder->n < random_rows ? seeder->n : random_rows;
    seeder->n_ranked = 0;
    if (!seeder->ranked) seeder->ranked = fgmm_alloc(ctx, (size_t)n * sizeof *seeder->ranked, "rows by density");
    if (!seeder->ranked) return FGMM_ERR_MEMORY;
    FGMM_GO(fgmm_prepare(ctx, &prepared, model));
    for (int64_t r = 0; r < n; r++) {
        int64_t row = r * seeder->n / n;
        seeder->ranked[r] =
            (ranked_row){log_density(&prepared.params, seeder->rows + row * seeder->d, seeder->mean), row};
        if (fgmm_cancelled(ctx)) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
    }
    qsort(seeder->ranked, (size_t)n, sizeof *seeder->ranked, by_density);
    seeder->n_ranked = n;
done:
    fgmm_prepared_free(ctx, &prepared);
    return status;
}

void fgmm_seed_move(fgmm_seeder *seeder, fgmm_model *model, int64_t i, double reg_covar, int64_t *used) {
    int64_t d = model->d;
    const float *x = seeder->rows + seeder->ranked[(*used)++ % seeder->n_ranked].row * d;
    for (int64_t j = 0; j < d; j++) model->means[i * d + j] = x[j] + seeder->mean[j];
    set_data_variances(seeder, model, i, reg_covar);
    double total = 0;
    model->weights[i] = 1 / (double)model->k;
    for (int64_t c = 0; c < model->k; c++) total += model->weights[c];
    for (int64_t c = 0; c < model->k; c++) model->weights[c] /= total;
}
