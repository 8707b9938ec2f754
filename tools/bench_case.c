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
    double *covariances = unit_covariances(type, data->k, data->d, &count);
    double *means = covariances ? cli_alloc(kd, sizeof *means, "means") : NULL;
    int rc = CLI_FAILED;
    if (means) {
        for (int64_t i = 0; i < kd; i++) means[i] = c->means[i];
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
    const bench_case *c = user;
    bench_some_rows(&c->data, c->centres, first, n, x);
    return 0;
}

static fgmm_status open_rows(bench_case *c, const cli_session *s, int makers) {
    const bench_data *data = &c->data;
    if (!makers) return fgmm_rows_from_memory(s->ctx, &c->rows, c->x, FGMM_F32, data->n, data->d, 0);
    fgmm_rows_callback callback = FGMM_ROWS_CALLBACK_INIT;
    callback.read = make_some;
    callback.user = c;
    callback.type = FGMM_F32;
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
