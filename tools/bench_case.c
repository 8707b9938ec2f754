#include "bench_case.h"

#include <stdlib.h>
#include <string.h>

/* Every covariance the identity. @return NULL if there is no memory */
static double *unit_covariances(fgmm_covariance type, int64_t k, int64_t d, size_t *count) {
    int64_t matrices = type == FGMM_FULL ? k : 1;
    int is_matrix = type == FGMM_TIED || type == FGMM_FULL;
    *count = (size_t)(is_matrix ? matrices * d * d : type == FGMM_DIAG ? k * d : k);
    double *out = calloc(*count, sizeof *out);
    if (!out) return NULL;
    if (!is_matrix) {
        for (size_t i = 0; i < *count; i++) out[i] = 1.0;
        return out;
    }
    for (int64_t i = 0; i < matrices; i++) {
        for (int64_t j = 0; j < d; j++) out[(i * d + j) * d + j] = 1.0;
    }
    return out;
}

static int make_start(bench_case *c, const cli_session *s, const bench_data *data, fgmm_covariance type) {
    int64_t kd = data->k * data->d;
    size_t count;
    double scale = (double)bench_scale(data), offset = (double)bench_offset(data);
    double *covariances = unit_covariances(type, data->k, data->d, &count);
    double *means = covariances ? cli_alloc(kd, sizeof *means, "means") : NULL;
    int rc = CLI_FAILED;
    if (means) {
        for (int64_t i = 0; i < kd; i++) means[i] = scale * (double)c->means[i] + offset;
        for (size_t i = 0; i < count; i++) covariances[i] *= scale * scale;
        fgmm_status status = fgmm_model_create(s->ctx, &c->start, type, data->k, data->d, NULL, means, covariances);
        rc = status == FGMM_OK ? CLI_DONE : cli_failed(s, status);
    } else if (!covariances) {
        cli_say("no memory for covariances (%zu x %zu bytes)", count, sizeof *covariances);
    }
    free(means);
    free(covariances);
    return rc;
}

static int make_some(void *user, int64_t first, int64_t n, void *x) {
    enum { ROWS = 64 };
    const bench_case *c = user;
    const bench_data *data = &c->data;
    if (data->type == BENCH_F32) {
        bench_some_rows(data, c->centres, first, n, x);
        return 0;
    }
    float *some = malloc((size_t)(ROWS * data->d) * sizeof *some);
    for (int64_t i = 0; some && i < n; i += ROWS) {
        int64_t count = n - i < ROWS ? n - i : ROWS;
        bench_some_rows(data, c->centres, first + i, count, some);
        bench_store(data, some, count * data->d, (char *)x + i * data->d * bench_type_size(data));
    }
    free(some);
    return some == NULL;
}

static const fgmm_dtype dtypes[] = {FGMM_F32, FGMM_F16, FGMM_BF16, FGMM_U8, FGMM_I8};

static fgmm_status open_rows(bench_case *c, const cli_session *s, int makers) {
    const bench_data *data = &c->data;
    if (!makers) return fgmm_rows_from_memory(s->ctx, &c->rows, c->stored, dtypes[data->type], data->n, data->d, 0);
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    callback.read = make_some;
    callback.user = c;
    callback.type = dtypes[data->type];
    callback.n = data->n;
    callback.d = data->d;
    callback.threads = makers;
    return fgmm_rows_from_callback(s->ctx, &c->rows, &callback);
}

int bench_case_make(bench_case *c, const cli_session *s, const bench_data *data, fgmm_covariance type, int makers) {
    int64_t n = data->n, k = data->k, d = data->d;
    int64_t wide = type == FGMM_TIED || type == FGMM_FULL ? d : 1, deep = type == FGMM_FULL ? k : 1;
    if (d > INT64_MAX / 8 / n || d > INT64_MAX / 8 / k || wide > INT64_MAX / 8 / d || deep > INT64_MAX / 8 / d / wide) {
        return cli_say("--n, --k and --d are too large"), CLI_FAILED;
    }
    int rc = CLI_FAILED;
    c->data = *data;
    c->centres = cli_alloc(k * d, sizeof *c->centres, "centres");
    c->means = c->centres ? cli_alloc(k * d, sizeof *c->means, "means") : NULL;
    if (c->means && !makers) c->x = cli_alloc(n * d, sizeof *c->x, "rows");
    if (c->means && (c->x || makers)) {
        bench_centres(data, c->centres);
        if (c->x) bench_rows(data, c->centres, c->x);
        c->stored = c->x;
        if (c->x && data->type != BENCH_F32) {
            c->stored = cli_alloc(n * d, (size_t)bench_type_size(data), "rows");
            if (!c->stored) return CLI_FAILED;
            bench_store(data, c->x, n * d, c->stored);
        }
        bench_start(data, c->centres, c->means);
        rc = make_start(c, s, data, type);
    }
    if (rc == CLI_DONE) {
        fgmm_status status = open_rows(c, s, makers);
        if (status != FGMM_OK) rc = cli_failed(s, status);
    }
    return rc;
}

void bench_case_free(bench_case *c, const cli_session *s) {
    fgmm_rows_free(s->ctx, c->rows);
    fgmm_model_free(s->ctx, c->start);
    free(c->centres);
    free(c->means);
    if (c->stored != c->x) free(c->stored);
    free(c->x);
    *c = (bench_case){0};
}

int bench_tick(void *user, const fgmm_progress *p) {
    bench_ticks *t = user;
    int iterates = strcmp(p->stage, "fit") == 0 || strcmp(p->stage, "kmeans") == 0;
    if (iterates && p->iteration == t->n + 1 && t->n < BENCH_REPS_MAX + 2) {
        t->lower_bound[t->n] = p->lower_bound;
        t->at[t->n++] = bench_clock();
    }
    return 0;
}

int bench_ticks_to_times(bench_ticks *t) {
    for (int i = 0; i + 1 < t->n; i++) t->at[i] = t->at[i + 1] - t->at[i];
    return t->n - 1;
}
