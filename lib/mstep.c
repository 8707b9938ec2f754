/* The M-step, in double: scikit-learn's, with the variance about the new mean. */
#include <math.h>
#include <string.h>

#include "cholesky.h"
#include "clones.h"
#include "stats.h"

static FGMM_INTO_CLONES double floored(double variance, double floor, double reg_covar, int *hit) {
    *hit = !(variance > floor);
    return (*hit ? floor : variance) + reg_covar;
}

/* Variances of component i about its new mean, which lies at centre + shift. @return 1 if all of them fell to the
 * floor. */
static FGMM_INTO_CLONES int update_variance(const fgmm_stats *stats, fgmm_model *model, int64_t i, double reg_covar) {
    int64_t d = model->d;
    double per = 1 / stats->s0[i];
    if (model->type == FGMM_SPHERICAL) {
        double square, floor;
        int hit;
        fgmm_stats_moved(stats, i, &square, &floor);
        model->covariances[i] = floored((stats->s2[i] * per - square) / (double)d, floor / (double)d, reg_covar, &hit);
        return hit;
    }
    int all = 1, hit;
    for (int64_t j = 0; j < d; j++) {
        double shift = stats->s1[i * d + j] * per;
        double variance = stats->s2[i * d + j] * per - shift * shift;
        model->covariances[i * d + j] =
            floored(variance, fgmm_variance_floor(stats->centres[i * d + j] + shift), reg_covar, &hit);
        all &= hit;
    }
    return all;
}

/*
 * With the means frozen the likelihood is greatest for the variance about the old mean; s1 and s2 speak of centres,
 * which equal the old means in all but rare passes.
 */
static void variance_about(const fgmm_stats *stats, fgmm_model *model, int64_t i, double reg_covar) {
    int64_t d = model->d;
    double s0 = stats->s0[i], total = 0, floor = 0;
    int hit;
    for (int64_t j = 0; j < d; j++) {
        int64_t at = i * d + j;
        double h = model->means[at] - stats->centres[at];
        double correction = h * h - 2 * h * stats->s1[at] / s0;
        if (model->type == FGMM_SPHERICAL) {
            total += correction;
            floor += fgmm_variance_floor(model->means[at]) / (double)d;
        } else {
            model->covariances[at] =
                floored(stats->s2[at] / s0 + correction, fgmm_variance_floor(model->means[at]), reg_covar, &hit);
        }
    }
    if (model->type == FGMM_SPHERICAL)
        model->covariances[i] = floored((stats->s2[i] / s0 + total) / (double)d, floor, reg_covar, &hit);
}

/* ---- tied and full ---- */

/*
 * The matrix [d, d] = scatter / weight becomes a covariance: diagonal floored, reg_covar added, and, where what
 * rounding left of a singular matrix has no Cholesky factor, a ridge that grows until it has one. floors [d]. work [d,
 * d].
 * @return 1 if it was singular, or all variances fell to the floor; -1 if it is not finite.
 */
static int regularize(double *matrix, int64_t d, double weight, const double *floors, double reg_covar, double *work) {
    double largest = 0;
    int hit, all = 1;
    for (int64_t j = 0; j < d * d; j++) {
        matrix[j] /= weight;
        if (!isfinite(matrix[j])) return -1;
    }
    for (int64_t j = 0; j < d; j++) {
        matrix[j * d + j] = floored(matrix[j * d + j], floors[j], reg_covar, &hit);
        largest = fmax(largest, matrix[j * d + j]);
        all &= hit;
    }
    fgmm_lower_mirror(matrix, d);
    double ridge = 0;
    for (int tries = 0;; tries++) {
        memcpy(work, matrix, (size_t)(d * d) * sizeof *work);
        if (fgmm_cholesky(work, d) < 0) return all || tries > 0;
        double next = ridge > 0 ? 10 * ridge : (double)d * 0x1p-50 * largest;
        if (!isfinite(10 * next)) matrix[0] = NAN;
        if (!isfinite(matrix[0])) return -1;
        for (int64_t j = 0; j < d; j++) matrix[j * d + j] += next - ridge;
        ridge = next;
    }
}

/* Rows from .. to-1 of matrix m: the scatter of its components, first .. last-1, about model's means. h [d]. */
static void move_scatter(const fgmm_stats *stats, const fgmm_model *model, int64_t m, int64_t first, int64_t last,
                         int64_t from, int64_t to, double *h) {
    int64_t d = model->d;
    double *matrix = model->covariances + m * d * d;
    memcpy(matrix + from * d, stats->s2 + (m * d + from) * d, (size_t)((to - from) * d) * sizeof *matrix);
    for (int64_t i = first; i < last; i++) {
        for (int64_t j = 0; j < d; j++) h[j] = model->means[i * d + j] - stats->centres[i * d + j];
        fgmm_scatter_move(matrix, d, from, to, stats->s0[i], stats->s1 + i * d, h);
    }
}

/* Matrix m from its scatter. work [d * d + d]. @return as regularize. */
static int settle_matrix(const fgmm_stats *stats, fgmm_model *model, int64_t m, int64_t first, int64_t last,
                         double reg_covar, double *work) {
    int64_t d = model->d;
    double weight = 0, *floors = work + d * d;
    for (int64_t i = first; i < last; i++) weight += stats->s0[i];
    memset(floors, 0, (size_t)d * sizeof *floors);
    for (int64_t i = first; i < last; i++)
        for (int64_t j = 0; j < d; j++)
            floors[j] += stats->s0[i] / weight * fgmm_variance_floor(model->means[i * d + j]);
    return regularize(model->covariances + m * d * d, d, weight, floors, reg_covar, work);
}

/*
 * Covariance matrices about model's means, which are the new ones unless they are frozen. Dead components keep theirs.
 * A singular matrix is a collapse of its component, a tied one of the first that is alive. Threads share full matrices
 * among them, and the rows of a tied one.
 */
static fgmm_status update_matrices(fgmm_context *ctx, const fgmm_stats *stats, fgmm_model *model, double reg_covar,
                                   fgmm_fate *fates) {
    int64_t k = model->k, d = model->d, tied = model->type == FGMM_TIED, row = d * d + d;
    int threads = fgmm_threads_over(ctx, (double)k * (double)d * (double)d);
    double *room = fgmm_alloc(ctx, (size_t)threads * (size_t)row * sizeof *room, "a covariance matrix");
    if (!room) return FGMM_ERR_MEMORY;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t part = 0; part < (tied ? threads : k); part++) {
        double *work = room + fgmm_thread_number() * row;
        if (tied) {
            move_scatter(stats, model, 0, 0, k, part * d / threads, (part + 1) * d / threads, work);
        } else if (fates[part] != FGMM_DEAD) {
            move_scatter(stats, model, part, part, part + 1, 0, d, work);
            int settled = settle_matrix(stats, model, part, part, part + 1, reg_covar, work);
            if (settled > 0) fates[part] = FGMM_COLLAPSED;
        }
    }
    if (tied && settle_matrix(stats, model, 0, 0, k, reg_covar, room) > 0) {
        int64_t first = 0;
        while (first < k - 1 && fates[first] != FGMM_ALIVE) first++;
        fates[first] = FGMM_COLLAPSED;
    }
    fgmm_free(ctx, room);
    return FGMM_OK;
}

/* ---- all of it ---- */

/* What the M-step keeps of a component, where its variances are its own. */
static void take_component(const fgmm_model *from, fgmm_model *to, int64_t i, int means, int covariances) {
    int64_t d = from->d, own = fgmm_covariances_size(from->type, 1, d);
    to->weights[i] = from->weights[i];
    if (means) memcpy(to->means + i * d, from->means + i * d, (size_t)d * sizeof(double));
    if (covariances) memcpy(to->covariances + i * own, from->covariances + i * own, (size_t)own * sizeof(double));
}

/* Mean and weight of component i, and its variances where they are its own: matrices follow when all means are known.
 * */
FGMM_CLONES static fgmm_fate update_component(const fgmm_stats *stats, fgmm_model *model, int64_t i, double total,
                                              double reg_covar, unsigned freeze) {
    int64_t d = model->d;
    int freeze_means = (freeze & FGMM_FREEZE_MEANS) != 0, freeze_covariances = (freeze & FGMM_FREEZE_COVARIANCES) != 0;
    int dead = !(stats->s0[i] > 1e-12 * total / (double)model->k);
    int own = !fgmm_has_matrices(model->type) && !freeze_covariances;
    if (!fgmm_has_matrices(model->type))
        take_component(stats->model, model, i, dead || freeze_means, dead || freeze_covariances);
    if (!(freeze & FGMM_FREEZE_WEIGHTS)) model->weights[i] = dead ? 0 : stats->s0[i] / total;
    if (dead) return FGMM_DEAD;
    double *means = model->means + i * d, per = 1 / stats->s0[i];
    const double *centres = stats->centres + i * d, *s1 = stats->s1 + i * d;
    for (int64_t j = 0; j < d && !freeze_means; j++) means[j] = centres[j] + s1[j] * per;
    if (own && freeze_means) variance_about(stats, model, i, reg_covar);
    return own && !freeze_means && update_variance(stats, model, i, reg_covar) ? FGMM_COLLAPSED : FGMM_ALIVE;
}

static int all_finite(const double *values, int64_t count) {
    int finite = 1;
    for (int64_t i = 0; i < count; i++) finite &= isfinite(values[i]) != 0;
    return finite;
}

/* *model stays where it has the shape of `like`, or makes way for one: large arrays that are new cost more than what is written there. */
static fgmm_status room_like(fgmm_context *ctx, const fgmm_model *like, fgmm_model **model) {
    fgmm_model *own = *model;
    if (own && own->type == like->type && own->k == like->k && own->d == like->d) return FGMM_OK;
    *model = NULL;
    fgmm_model_free(ctx, own);
    return fgmm_model_room(ctx, model, like->type, like->k, like->d);
}

fgmm_status fgmm_mstep(fgmm_context *ctx, const fgmm_stats *stats, double reg_covar, unsigned freeze, fgmm_model *reuse,
                       fgmm_model **out, fgmm_fate *fates) {
    int64_t k = stats->model->k, d = stats->model->d;
    double total = 0;
    for (int64_t i = 0; i < k; i++) total += stats->s0[i];
    fgmm_status status = FGMM_OK;
    fgmm_model *model = reuse;
    fgmm_fate *noticed = NULL;
    if (!(total > 0) || !isfinite(total))
        FGMM_GO(fgmm_fail(ctx, FGMM_ERR_INVALID, "the statistics hold no rows: their weights sum to %g", total));
    int matrices = fgmm_has_matrices(stats->model->type), freeze_covariances = (freeze & FGMM_FREEZE_COVARIANCES) != 0;
    noticed = fgmm_calloc(ctx, (size_t)k, sizeof *noticed, "fates of components");
    if (!noticed) FGMM_GO(FGMM_ERR_MEMORY);
    FGMM_GO(room_like(ctx, stats->model, &model));
    if (matrices) fgmm_model_assign(ctx, model, stats->model);
    model->n_iter = stats->model->n_iter;
    int threads = fgmm_threads_over(ctx, (double)(k * d));
    int64_t own = matrices ? 0 : fgmm_covariances_size(model->type, 1, d);
    int finite = 1;
#pragma omp parallel for num_threads(threads) reduction(& : finite)
    for (int64_t i = 0; i < k; i++) {
        noticed[i] = update_component(stats, model, i, total, reg_covar, freeze);
        finite &= all_finite(model->covariances + i * own, own);
    }
    if (matrices && !freeze_covariances) FGMM_GO(update_matrices(ctx, stats, model, reg_covar, noticed));
    int64_t parts = !matrices ? 0 : model->type == FGMM_FULL ? k : 1;
#pragma omp parallel for num_threads(threads) reduction(& : finite) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) finite &= all_finite(model->covariances + i * d * d, d * d);
    if (!finite) FGMM_GO(fgmm_fail(ctx, FGMM_ERR_DATA, "a covariance is not finite: scale the data"));
    if (fates) memcpy(fates, noticed, (size_t)k * sizeof *fates);
    model->lower_bound = stats->weight > 0 ? stats->log_likelihood / stats->weight : NAN;
    model->converged = 0;
    *out = model;
    model = NULL;
done:
    fgmm_free(ctx, noticed);
    fgmm_model_free(ctx, model);
    return status;
}
