/*
 * Several devices in one process: ranks that are threads, each with a context of its own. They meet in memory, where sums
 * are added in the order of ranks.
 */
#include <pthread.h>
#include <string.h>

#include "dispatch.h"

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t news;
    int size, here;
    int64_t turn;
    int gone;        /* a rank has left: nobody need wait for it */
    int started;     /* 1: go; -1: there are not as many threads as ranks */
    double **values; /* [size] of this meeting */
    int64_t *counts; /* [size] */
} meeting;

typedef struct {
    meeting *with;
    int rank;
    pthread_t thread;
    fgmm_context *ctx;
    const fgmm_rows *rows;
    fgmm_fit_options options;
    fgmm_report *report;
    double *sums;
    int64_t room; /* of sums */
    int short_of_memory;
    int sharers; /* the context's own, before and after */
    fgmm_model *model;
    fgmm_status status;
} member;

/* Until all ranks have come. @return 0, or 1 where one has left that they would wait for for ever. */
static int wait_for_all(meeting *m) {
    pthread_mutex_lock(&m->lock);
    int64_t turn = m->turn;
    if (++m->here == m->size) {
        m->here = 0;
        m->turn++;
        pthread_cond_broadcast(&m->news);
    }
    while (m->turn == turn && !m->gone) pthread_cond_wait(&m->news, &m->lock);
    int alone = m->turn == turn;
    pthread_mutex_unlock(&m->lock);
    return alone;
}

/* A fgmm_sum_fn. Each rank adds up for itself, so that nobody waits for one to finish before it may start. */
static int add_up(void *user, double *values, int64_t count) {
    member *self = user;
    meeting *m = self->with;
    if (count > self->room) {
        fgmm_free(self->ctx, self->sums);
        self->sums = fgmm_alloc(self->ctx, (size_t)count * sizeof *self->sums, "sums over the devices");
        self->room = self->sums ? count : 0;
        self->short_of_memory = !self->sums;
    }
    m->values[self->rank] = values;
    m->counts[self->rank] = self->sums ? count : -1;
    if (wait_for_all(m)) return 1;
    int alike = 1;
    for (int r = 0; r < m->size; r++) alike &= m->counts[r] == count;
    for (int64_t i = 0; alike && i < count; i++) {
        double sum = 0;
        for (int r = 0; r < m->size; r++) sum += m->values[r][i];
        self->sums[i] = sum;
    }
    if (wait_for_all(m)) return 1;
    if (!alike) return 2;
    memcpy(values, self->sums, (size_t)count * sizeof *values);
    return 0;
}

static void *run_member(void *user) {
    member *self = user;
    meeting *m = self->with;
    pthread_mutex_lock(&m->lock);
    while (!m->started) pthread_cond_wait(&m->news, &m->lock);
    int go = m->started > 0;
    pthread_mutex_unlock(&m->lock);
    if (!go) return NULL;
    self->status = fgmm_fit(self->ctx, &self->model, self->rows, &self->options, self->report);
    pthread_mutex_lock(&m->lock);
    m->gone = 1;
    pthread_cond_broadcast(&m->news);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* Runs all members to their end. */
static fgmm_status run_team(member *members, meeting *m) {
    fgmm_context *ctx = members[0].ctx;
    int made = 0;
    while (made < m->size && pthread_create(&members[made].thread, NULL, run_member, &members[made]) == 0) made++;
    pthread_mutex_lock(&m->lock);
    m->started = made == m->size ? 1 : -1;
    pthread_cond_broadcast(&m->news);
    pthread_mutex_unlock(&m->lock);
    for (int r = 0; r < made; r++) pthread_join(members[r].thread, NULL);
    if (made < m->size)
        return fgmm_fail(ctx, FGMM_ERR_MEMORY, "fit on devices: no thread for device %d of %d", made, m->size);
    /* The sum failed for want of memory, or because a device had left for want of it. */
    for (int r = 0; r < m->size && members[0].status == FGMM_ERR_IO; r++) {
        if (!members[r].short_of_memory && members[r].status != FGMM_ERR_MEMORY) continue;
        fgmm_enter(ctx);
        return fgmm_fail(ctx, FGMM_ERR_MEMORY, "rank %d: no memory for the sums over the devices", r);
    }
    return members[0].status;
}

static fgmm_status check_arguments(fgmm_context *const *contexts, int n, fgmm_model **out, const fgmm_rows *const *rows,
                                   const fgmm_fit_options *options) {
    fgmm_context *ctx = contexts[0];
    if (!out || !rows || !options) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit on devices: a pointer is NULL");
    if (options->struct_size != sizeof *options)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "fit on devices: struct_size of the options is not set: use FGMM_FIT_OPTIONS_INIT");
    if (options->ranks.size || options->ranks.sum)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit on devices: ranks of their own are for fgmm_fit");
    for (int r = 0; r < n; r++) {
        if (!contexts[r] || !rows[r]) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit on devices: a pointer is NULL");
        for (int other = 0; other < r; other++)
            if (contexts[other] == contexts[r])
                return fgmm_fail(ctx, FGMM_ERR_INVALID,
                                 "fit on devices: devices %d and %d are one context: each needs its own", other, r);
    }
    return FGMM_OK;
}

fgmm_status fgmm_fit_devices(fgmm_context *const *contexts, int n, fgmm_model **out, const fgmm_rows *const *rows,
                             const fgmm_fit_options *options, fgmm_report *reports) {
    if (!contexts || n < 1 || !contexts[0]) return FGMM_ERR_INVALID;
    fgmm_context *ctx = contexts[0];
    fgmm_enter(ctx);
    if (out) *out = NULL;
    FGMM_TRY(check_arguments(contexts, n, out, rows, options));
    fgmm_status status = FGMM_ERR_MEMORY;
    meeting m = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER, .size = n};
    member *members = fgmm_calloc(ctx, (size_t)n, sizeof *members, "devices");
    m.values = fgmm_calloc(ctx, (size_t)n, sizeof *m.values, "devices");
    m.counts = fgmm_calloc(ctx, (size_t)n, sizeof *m.counts, "devices");
    if (!members || !m.values || !m.counts) goto done;
    for (int r = 0; r < n; r++) {
        members[r] = (member){.with = &m,
                              .rank = r,
                              .ctx = contexts[r],
                              .rows = rows[r],
                              .options = *options,
                              .report = reports ? &reports[r] : NULL};
        members[r].options.ranks = (fgmm_ranks){add_up, &members[r], r, n};
    }
    for (int r = 0; r < n; r++) {
        members[r].sharers = contexts[r]->sharers;
        if (contexts[r]->sharers < n) contexts[r]->sharers = n;
    }
    status = run_team(members, &m);
    for (int r = 0; r < n; r++) contexts[r]->sharers = members[r].sharers;
    for (int r = 0; r < n; r++) {
        fgmm_free(contexts[r], members[r].sums);
        if (r > 0) fgmm_model_free(contexts[r], members[r].model);
    }
    *out = members[0].model;
done:
    fgmm_free(ctx, m.counts);
    fgmm_free(ctx, m.values);
    fgmm_free(ctx, members);
    pthread_cond_destroy(&m.news);
    pthread_mutex_destroy(&m.lock);
    return status;
}
