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
    fgmm_feed *feed;               /* of the data */
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

/* n of `total` usable rows, one from each of n equal strata: numbers among the usable ones, ascending. */
static void draw_numbers(int64_t total, int64_t n, fgmm_rng *rng, int64_t *numbers) {
    for (int64_t i = 0; i < n; i++) {
        int64_t from = (int64_t)((double)i * ((double)total / (double)n));
        int64_t to = (int64_t)((double)(i + 1) * ((double)total / (double)n));
        if (i == n - 1 || to > total) to = total;
        int64_t rank = from + (to > from ? fgmm_rng_below(rng, to - from) : 0);
        int64_t least = i ? numbers[i - 1] + 1 : 0, most = total - (n - i); /* the rest must still fit */
        numbers[i] = rank < least ? least : rank > most ? most : rank;
    }
}

/* From numbers among the usable rows, `first` of which are other ranks', to row numbers. */
static void find_rows(const fgmm_feed *feed, const fgmm_rows *rows, int64_t n, int64_t first, int all_usable,
                      int64_t *numbers) {
    int64_t row = -1, number = first - 1;
    for (int64_t i = 0; i < n; i++) {
        if (all_usable) row = numbers[i] - first;
        while (number < numbers[i] && !all_usable) number += usable(feed, rows, ++row);
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

/* What of the sample is in this rank's rows. */
typedef struct {
    int64_t total, first; /* usable rows of all ranks, and of those before this one */
    int64_t own;          /* usable rows of this one */
    int64_t from, to;     /* its part of the sample */
    int weighted;         /* 1: some rank's rows have weights */
} sample_share;

static fgmm_status share_out(fgmm_context *ctx, const fgmm_feed *feed, const fgmm_rows *rows, fgmm_group *group,
                             sample_share *share) {
    enum { USABLE, WEIGHTED, TOLD };
    *share = (sample_share){.own = count_usable(feed, rows), .weighted = rows->weights != NULL};
    share->total = share->own;
    if (!group) return FGMM_OK;
    double *told = fgmm_alloc(ctx, (size_t)group->ranks.size * TOLD * sizeof *told, "usable rows of the ranks");
    if (!told) return FGMM_ERR_MEMORY;
    told[group->ranks.rank * TOLD + USABLE] = (double)share->own;
    told[group->ranks.rank * TOLD + WEIGHTED] = share->weighted;
    fgmm_status status = fgmm_group_gather(group, FGMM_MEET_SAMPLE, told, TOLD);
    share->total = share->weighted = 0;
    for (int r = 0; r < group->ranks.size && status == FGMM_OK; r++) {
        share->total += (int64_t)told[r * TOLD + USABLE];
        share->first += r < group->ranks.rank ? (int64_t)told[r * TOLD + USABLE] : 0;
        share->weighted |= told[r * TOLD + WEIGHTED] > 0;
    }
    fgmm_free(ctx, told);
    return status;
}

/* Brings in sampled rows from .. to - 1 as doubles, a weight behind each row where there are any: out [to - from, d + 1].
 * Other ranks' rows are zero until the sum. */
static fgmm_status gather_piece(fgmm_feed *feed, const fgmm_rows *rows, const sample_share *share, fgmm_group *group,
                                const int64_t *numbers, int64_t from, int64_t to, double *out) {
    int64_t d = rows->d, count = to - from;
    int64_t own = from > share->from ? from : share->from, end = to < share->to ? to : share->to;
    double *weights = out + count * d;
    memset(out, 0, (size_t)(count * (d + 1)) * sizeof *out);
    if (own < end) FGMM_TRY(fgmm_feed_gather(feed, numbers + own, end - own, out + (own - from) * d));
    for (int64_t i = own; i < end; i++) weights[i - from] = rows->weights ? rows->weights[numbers[i]] : 1;
    return group ? fgmm_group_sum(group, FGMM_MEET_SAMPLE, 0, out, count * (d + 1)) : FGMM_OK;
}

static fgmm_status gather_sample(fgmm_seeder *seeder, fgmm_feed *feed, const fgmm_rows *rows, const sample_share *share,
                                 fgmm_group *group, const int64_t *numbers, int64_t n) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    int keep = !group || group->ranks.rank == 0;
    /* A cl_mem is gathered in one go, files and memory in pieces; ranks in pieces of one size. */
    int64_t d = rows->d, most = group ? 1024 : 256, piece = (rows->cl_mem && !group) || n < most ? n : most;
    double *wide = fgmm_alloc(ctx, (size_t)(piece * (d + 1)) * sizeof *wide, "sampled rows");
    if (!wide) return FGMM_ERR_MEMORY;
    for (int64_t from = 0; from < n; from += piece) {
        int64_t to = from + piece < n ? from + piece : n;
        FGMM_GO(gather_piece(feed, rows, share, group, numbers, from, to, wide));
        if (keep) FGMM_GO(narrow_rows(seeder, wide, from, to - from));
        if (keep && seeder->weights)
            memcpy(seeder->weights + from, wide + (to - from) * d, (size_t)(to - from) * sizeof *wide);
        if (fgmm_cancelled(ctx)) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled"));
    }
done:
    fgmm_free(ctx, wide);
    return status;
}

fgmm_status fgmm_seeder_open(fgmm_context *ctx, fgmm_seeder **out, fgmm_feed *feed, const fgmm_rows *rows, int64_t k,
                             int64_t sample, uint64_t seed, fgmm_group *group) {
    fgmm_status status = FGMM_ERR_MEMORY;
    sample_share share;
    int64_t *numbers = NULL;
    *out = NULL;
    FGMM_TRY(share_out(ctx, feed, rows, group, &share));
    int64_t d = rows->d, n = sample_size(rows, share.total, k, sample);
    if (share.total < k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: n_components = %lld exceeds the number of rows with weight, %lld",
                         (long long)k, (long long)share.total);
    fgmm_seeder *seeder = fgmm_calloc(ctx, 1, sizeof *seeder, "a seeder");
    if (!seeder) return FGMM_ERR_MEMORY;
    seeder->ctx = ctx;
    seeder->target = fgmm_feed_target(feed);
    seeder->feed = feed;
    seeder->mean = group ? group->mean : fgmm_feed_mean(feed);
    seeder->variance = group ? group->variance : fgmm_feed_variance(feed);
    seeder->d = d;
    seeder->n = n;
    seeder->seed = seed;
    fgmm_rng rng = fgmm_rng_seed(seed, 0x5eed);
    if (!(numbers = fgmm_alloc(ctx, (size_t)n * sizeof *numbers, "sampled row numbers"))) goto done;
    draw_numbers(share.total, n, &rng, numbers);
    while (share.from < n && numbers[share.from] < share.first) share.from++;
    for (share.to = share.from; share.to < n && numbers[share.to] < share.first + share.own;) share.to++;
    find_rows(feed, rows, share.to - share.from, share.first, share.own == rows->n, numbers + share.from);
    if (!group || group->ranks.rank == 0) {
        if (!(seeder->rows = fgmm_alloc(ctx, (size_t)(n * d) * sizeof(float), "sampled rows"))) goto done;
        if (share.weighted && !(seeder->weights = fgmm_alloc(ctx, (size_t)n * sizeof(double), "sampled weights")))
            goto done;
    }
    FGMM_GO(gather_sample(seeder, feed, rows, &share, group, numbers, n));
    *out = seeder;
    seeder = NULL;
done:
    fgmm_free(ctx, numbers);
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

static double mean_variance(const fgmm_seeder *seeder) {
    double sum = 0;
    for (int64_t j = 0; j < seeder->d; j++) sum += seeder->variance[j];
    return fmax(sum / (double)seeder->d, 1e-30);
}

/* Means at the chosen rows (in the sample's frame), equal weights, one variance for all. */
static fgmm_status model_at_rows(fgmm_seeder *seeder, fgmm_model **out, fgmm_covariance type, int64_t k,
                                 const int64_t *chosen) {
    int64_t d = seeder->d, size = fgmm_covariances_size(type, k, d);
    fgmm_status status = FGMM_ERR_MEMORY;
    double variance = mean_variance(seeder);
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

/*
 * A component that got hardly any rows has no variance of its own to start from, and one that starts at a spike never
 * leaves it: all variances are at least a hundredth of the pooled one.
 */
static void widen_variances(const fgmm_seeder *seeder, fgmm_model *model, double reg_covar) {
    int64_t k = model->k, per = model->type == FGMM_SPHERICAL ? 1 : model->d;
    double least = 1e-12 * mean_variance(seeder), total = 0;
    for (int64_t j = 0; j < per; j++) {
        double pooled = 0;
        for (int64_t i = 0; i < k; i++) pooled += model->weights[i] * model->covariances[i * per + j];
        pooled = fmax(pooled, least);
        for (int64_t i = 0; i < k; i++) {
            double *variance = &model->covariances[i * per + j];
            if (!(model->weights[i] > 0)) *variance = pooled;
            *variance = fmax(*variance, 0.01 * pooled) + reg_covar;
        }
    }
    for (int64_t i = 0; i < k; i++) total += model->weights[i] = fmax(model->weights[i], 0.01 / (double)k);
    for (int64_t i = 0; i < k; i++) model->weights[i] /= total;
}

/* ---- the sample in clusters ---- */

typedef struct {
    fgmm_seed_rows sample;
    fgmm_rows *rows;
    float *centres; /* [k, d] */
    float *nearest; /* [n] squared distance to the nearest centre */
    int32_t *owner; /* [n] which one that is */
    int64_t *start; /* [k + 1]: cluster i is order[start[i] .. start[i + 1] - 1] */
    int64_t *order; /* [n] row numbers, ascending in each cluster */
} clustering;

static void clustering_close(fgmm_context *ctx, clustering *clusters) {
    fgmm_feed_close(ctx, clusters->sample.feed);
    fgmm_rows_free(ctx, clusters->rows);
    fgmm_free(ctx, clusters->centres);
    fgmm_free(ctx, clusters->nearest);
    fgmm_free(ctx, clusters->owner);
    fgmm_free(ctx, clusters->start);
    fgmm_free(ctx, clusters->order);
}

/* A feed over rows of the sample, every step-th of them. */
static fgmm_status open_sample(fgmm_seeder *seeder, int64_t n, int64_t step, fgmm_rows **rows, fgmm_feed **feed) {
    fgmm_compute_options compute = FGMM_COMPUTE_OPTIONS_INIT;
    FGMM_TRY(fgmm_rows_from_memory(seeder->ctx, rows, seeder->rows, FGMM_F32, n, seeder->d, step * seeder->d));
    FGMM_TRY(fgmm_feed_open(seeder->ctx, feed, *rows, seeder->target, &compute, 2));
    fgmm_feed_quiet(*feed);
    return FGMM_OK;
}

static fgmm_status clustering_open(fgmm_seeder *seeder, clustering *clusters, int64_t k) {
    fgmm_context *ctx = seeder->ctx;
    size_t n = (size_t)seeder->n;
    clusters->sample = (fgmm_seed_rows){.rows = seeder->rows,
                                        .weights = seeder->weights,
                                        .n = seeder->n,
                                        .d = seeder->d,
                                        .spread = mean_variance(seeder)};
    FGMM_TRY(open_sample(seeder, seeder->n, 1, &clusters->rows, &clusters->sample.feed));
    if (!(clusters->centres = fgmm_alloc(ctx, (size_t)(k * seeder->d) * sizeof(float), "centres")))
        return FGMM_ERR_MEMORY;
    if (!(clusters->nearest = fgmm_alloc(ctx, n * sizeof(float), "distances"))) return FGMM_ERR_MEMORY;
    if (!(clusters->owner = fgmm_alloc(ctx, n * sizeof(int32_t), "nearest centres"))) return FGMM_ERR_MEMORY;
    if (!(clusters->start = fgmm_alloc(ctx, (size_t)(k + 1) * sizeof(int64_t), "clusters"))) return FGMM_ERR_MEMORY;
    if (!(clusters->order = fgmm_alloc(ctx, n * sizeof(int64_t), "clusters"))) return FGMM_ERR_MEMORY;
    return FGMM_OK;
}

static void sort_by_owner(clustering *clusters, int64_t k) {
    int64_t n = clusters->sample.n, *start = clusters->start;
    memset(start, 0, (size_t)(k + 1) * sizeof *start);
    for (int64_t i = 0; i < n; i++) start[clusters->owner[i] + 1]++;
    for (int64_t c = 0; c < k; c++) start[c + 1] += start[c];
    for (int64_t i = 0; i < n; i++) clusters->order[start[clusters->owner[i]]++] = i;
    memmove(start + 1, start, (size_t)k * sizeof *start);
    start[0] = 0;
}

/* Cluster c as component c of model, its weight still a sum of weights. An empty one keeps its mean. */
static void cluster_moments(const clustering *clusters, int64_t c, fgmm_model *model) {
    int64_t d = model->d, from = clusters->start[c], to = clusters->start[c + 1];
    const float *rows = clusters->sample.rows;
    const double *weights = clusters->sample.weights;
    int diag = model->type == FGMM_DIAG;
    double *mean = model->means + c * d, *variance = model->covariances + (diag ? c * d : c), weight = 0;
    for (int64_t at = from; at < to; at++) weight += weights ? weights[clusters->order[at]] : 1;
    model->weights[c] = weight;
    if (!(weight > 0)) return;
    for (int64_t j = 0; j < d; j++) mean[j] = 0;
    for (int64_t j = 0; j < (diag ? d : 1); j++) variance[j] = 0;
    for (int64_t at = from; at < to; at++) {
        const float *x = rows + clusters->order[at] * d;
        double share = (weights ? weights[clusters->order[at]] : 1) / weight;
        for (int64_t j = 0; j < d; j++) mean[j] += share * x[j];
    }
    for (int64_t at = from; at < to; at++) {
        const float *x = rows + clusters->order[at] * d;
        double share = (weights ? weights[clusters->order[at]] : 1) / weight, sum = 0;
        for (int64_t j = 0; j < d; j++) {
            double t = x[j] - mean[j];
            if (diag)
                variance[j] += share * t * t;
            else
                sum += t * t;
        }
        if (!diag) variance[0] += share * sum / (double)d;
    }
    for (int64_t j = 0; j < (diag ? d : 1); j++) variance[j] = fmax(variance[j], fgmm_variance_floor(mean[j]));
}

/* Weights, means and variances of the clusters. */
static void cluster_model(fgmm_seeder *seeder, clustering *clusters, fgmm_model *model) {
    int64_t k = model->k;
    double total = 0;
    sort_by_owner(clusters, k);
#pragma omp parallel for num_threads(seeder->n * seeder->d < 1000000 ? 1 : fgmm_threads(seeder->ctx)) schedule(static)
    for (int64_t c = 0; c < k; c++) cluster_moments(clusters, c, model);
    for (int64_t c = 0; c < k; c++) total += model->weights[c];
    for (int64_t c = 0; c < k; c++) model->weights[c] /= total;
}

/* Sum of w * squared distance to the nearest centre. */
static double potential(const fgmm_seed_rows *sample, const float *nearest) {
    double sum = 0;
    for (int64_t i = 0; i < sample->n; i++) sum += (sample->weights ? sample->weights[i] : 1) * nearest[i];
    return sum;
}

static const int lloyd_iterations = 10;

/* Lloyd iterations while they still lower the potential by a thousandth. */
static fgmm_status lloyd(fgmm_seeder *seeder, clustering *clusters, fgmm_model *model, int iterations) {
    const fgmm_seed_rows *sample = &clusters->sample;
    double last = potential(sample, clusters->nearest);
    cluster_model(seeder, clusters, model);
    for (int it = 0; it < iterations; it++) {
        for (int64_t at = 0; at < model->k * model->d; at++) clusters->centres[at] = (float)model->means[at];
        for (int64_t i = 0; i < sample->n; i++) clusters->nearest[i] = INFINITY;
        memset(clusters->owner, 0, (size_t)sample->n * sizeof *clusters->owner);
        FGMM_TRY(fgmm_nearest(seeder->ctx, sample, clusters->centres, 0, model->k, clusters->nearest, clusters->owner));
        cluster_model(seeder, clusters, model);
        double now = potential(sample, clusters->nearest);
        if (!(now < 0.999 * last)) break;
        last = now;
    }
    return FGMM_OK;
}

/* k-means++, then at most so many Lloyd iterations, as a mixture. */
static fgmm_status kmeans_model(fgmm_seeder *seeder, fgmm_rng *rng, fgmm_covariance type, int64_t k, int iterations,
                                int64_t *chosen, fgmm_model **out) {
    fgmm_status status = FGMM_OK;
    clustering clusters = {0};
    FGMM_GO(clustering_open(seeder, &clusters, k));
    FGMM_GO(fgmm_kmeanspp(seeder->ctx, &clusters.sample, k, rng, chosen, clusters.centres, clusters.nearest,
                          clusters.owner));
    FGMM_GO(model_at_rows(seeder, out, type, k, chosen));
    FGMM_GO(lloyd(seeder, &clusters, *out, iterations));
done:
    clustering_close(seeder->ctx, &clusters);
    return status;
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

/* The data's variances. A tied matrix is not one component's to set. */
static void set_data_variances(const fgmm_seeder *seeder, fgmm_model *model, int64_t i, double reg_covar) {
    double spread = mean_variance(seeder);
    int64_t d = model->d;
    if (model->type == FGMM_TIED) return;
    if (model->type == FGMM_SPHERICAL) {
        model->covariances[i] = spread + reg_covar;
        return;
    }
    int64_t per = fgmm_covariances_size(model->type, 1, d), step = model->type == FGMM_FULL ? d + 1 : 1;
    memset(model->covariances + i * per, 0, (size_t)per * sizeof *model->covariances);
    for (int64_t j = 0; j < d; j++)
        model->covariances[i * per + j * step] = fmax(seeder->variance[j], 1e-12 * spread) + reg_covar;
}

static fgmm_status seed_model(fgmm_seeder *seeder, fgmm_model **out, fgmm_init init, fgmm_covariance type, int64_t k,
                              double reg_covar, int restart) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_rng rng = fgmm_rng_seed(seeder->seed, 0x1000 + (uint64_t)restart);
    fgmm_model *start = NULL, *model = NULL;
    fgmm_stats *stats = NULL;
    int64_t *chosen = fgmm_alloc(ctx, (size_t)k * sizeof *chosen, "seeds");
    if (!chosen) return FGMM_ERR_MEMORY;
    switch (init) {
    case FGMM_INIT_KMEANSPP:
    case FGMM_INIT_KMEANS:
        FGMM_GO(kmeans_model(seeder, &rng, type, k, init == FGMM_INIT_KMEANS ? lloyd_iterations : 0, chosen, &model));
        widen_variances(seeder, model, reg_covar);
        break;
    case FGMM_INIT_RANDOM:
        FGMM_GO(choose_uniform(seeder, k, &rng, chosen));
        FGMM_GO(model_at_rows(seeder, &start, type, k, chosen));
        FGMM_GO(random_stats(seeder, &rng, start, &stats));
        FGMM_GO(fgmm_mstep(ctx, stats, 0, 0, NULL, &model, NULL));
        widen_variances(seeder, model, reg_covar);
        break;
    case FGMM_INIT_RANDOM_FROM_DATA:
        FGMM_GO(choose_uniform(seeder, k, &rng, chosen));
        FGMM_GO(model_at_rows(seeder, &model, type, k, chosen));
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

/* The sample goes over the device beside the fit's own rows, which make way for it. */
fgmm_status fgmm_seed_model(fgmm_seeder *seeder, fgmm_model **out, fgmm_init init, fgmm_covariance type, int64_t k,
                            double reg_covar, int restart) {
    fgmm_status status;
    do {
        status = seed_model(seeder, out, init, type, k, reg_covar, restart);
    } while (status == FGMM_ERR_MEMORY && fgmm_feed_give_up(seeder->feed));
    return status;
}

/* ---- dead components ---- */

typedef struct {
    const fgmm_target *target;
    double *log_prob; /* [rows of the feed] */
} density_state;

static fgmm_status density_visit(void *user, const fgmm_feed_block *block) {
    density_state *state = user;
    return state->target->backend->assign(state->target->device, block->block, 1, NULL, NULL,
                                          state->log_prob + block->first);
}

/* Log-densities under model, in the data's frame, of `n` rows of the sample, every step-th. */
static fgmm_status log_densities(fgmm_seeder *seeder, const fgmm_model *model, int64_t n, int64_t step,
                                 double *log_prob) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    fgmm_model *shifted = NULL;
    fgmm_rows *rows = NULL;
    fgmm_feed *feed = NULL;
    fgmm_prepared prepared = {0};
    fgmm_engine_choice choice = {0};
    density_state state = {.target = seeder->target, .log_prob = log_prob};
    FGMM_GO(fgmm_model_copy(ctx, &shifted, model));
    for (int64_t i = 0; i < model->k; i++)
        for (int64_t j = 0; j < model->d; j++) shifted->means[i * model->d + j] -= seeder->mean[j];
    FGMM_GO(open_sample(seeder, n, step, &rows, &feed));
    FGMM_GO(fgmm_prepare(ctx, &prepared, shifted));
    prepared.params.precision = FGMM_EXACT;
    prepared.params.engine = fgmm_engine_next(&choice, FGMM_EXACT, model->k);
    prepared.params.cut = FGMM_CUT;
    FGMM_GO(fgmm_feed_run(feed, "seed", &prepared.params, density_visit, &state));
done:
    fgmm_feed_close(ctx, feed);
    fgmm_rows_free(ctx, rows);
    fgmm_prepared_free(ctx, &prepared);
    fgmm_model_free(ctx, shifted);
    return status;
}

static int by_density(const void *a, const void *b) {
    const ranked_row *x = a, *y = b;
    if (x->log_density != y->log_density) return x->log_density < y->log_density ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

fgmm_status fgmm_seed_rank(fgmm_seeder *seeder, const fgmm_model *model) {
    fgmm_context *ctx = seeder->ctx;
    fgmm_status status = FGMM_OK;
    int64_t n = seeder->n < random_rows ? seeder->n : random_rows, step = seeder->n / n;
    seeder->n_ranked = 0;
    if (!seeder->ranked) seeder->ranked = fgmm_alloc(ctx, (size_t)n * sizeof *seeder->ranked, "rows by density");
    double *log_prob = fgmm_alloc(ctx, (size_t)n * sizeof *log_prob, "log-densities");
    if (!seeder->ranked || !log_prob) {
        fgmm_free(ctx, log_prob);
        return FGMM_ERR_MEMORY;
    }
    do {
        status = log_densities(seeder, model, n, step, log_prob);
    } while (status == FGMM_ERR_MEMORY && fgmm_feed_give_up(seeder->feed));
    if (status != FGMM_OK) goto done;
    for (int64_t i = 0; i < n; i++) seeder->ranked[i] = (ranked_row){log_prob[i], i * step};
    qsort(seeder->ranked, (size_t)n, sizeof *seeder->ranked, by_density);
    seeder->n_ranked = n;
done:
    fgmm_free(ctx, log_prob);
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
