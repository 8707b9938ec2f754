#include "mini_batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int mini_batch_check_kappa(const cli_command *self, double kappa) {
    if (kappa == 0.5) return cli_usage(self, "option --kappa: it must be above 0.5 and at most 1");
    return CLI_GO_ON;
}

int mini_batch_progress(void *user, const fgmm_progress *p) {
    const mini_batch *m = user;
    fgmm_progress shown = *p;
    if (m->online && strcmp(p->stage, "fit") == 0) {
        shown.iteration = m->passes;
        shown.max_iter = m->max_passes;
        shown.n_init = 1;
        shown.rows_done = m->rows_done + p->rows_done;
        shown.rows_total = fgmm_rows_count(m->rows);
        shown.seconds = m->seconds + p->seconds;
        shown.lower_bound = m->passes ? m->bound : NAN;
        shown.change = m->change;
        double done = (m->passes + (double)shown.rows_done / (double)shown.rows_total) / m->max_passes;
        shown.seconds_left = done > 0.0 ? shown.seconds * (1.0 - done) / done : NAN;
    }
    return progress_draw(NULL, &shown);
}

/* Steele, Lea and Flood's splitmix64. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(int64_t *order, int64_t n, uint64_t seed, int pass) {
    uint64_t state = seed + (uint64_t)pass * 0xd1342543de82ef95u;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)(next_random(&state) % (uint64_t)(i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

static double weight_of(const mini_batch *m, int64_t from, int64_t to) {
    double sum = 0;
    for (int64_t i = from; m->weights && i < to; i++) sum += m->weights[i];
    return m->weights ? sum : (double)(to - from);
}

/* Adds what a step reported. */
static void add_report(const mini_batch *m, fgmm_report *sum, const fgmm_report *step) {
    fgmm_report old = *sum;
    *sum = *step;
    sum->n_rows = m->passes ? old.n_rows : old.n_rows + step->n_rows;
    sum->n_skipped = m->passes ? old.n_skipped : old.n_skipped + step->n_skipped;
    sum->seconds = old.seconds + step->seconds;
    if (old.peak_host_bytes > sum->peak_host_bytes) sum->peak_host_bytes = old.peak_host_bytes;
    if (old.peak_device_bytes > sum->peak_device_bytes) sum->peak_device_bytes = old.peak_device_bytes;
    if (old.n_warnings) { /* those of the first step that had any */
        sum->n_warnings = old.n_warnings;
        memcpy(sum->warnings, old.warnings, sizeof sum->warnings);
    }
}

static fgmm_status step(mini_batch *m, int64_t from, int64_t to, fgmm_report *report) {
    fgmm_context *ctx = m->session->ctx;
    fgmm_rows *batch = NULL;
    fgmm_status status = fgmm_rows_slice(ctx, &batch, m->rows, from, to - from);
    if (status == FGMM_OK) status = fgmm_partial_fit(ctx, m->online, batch, report);
    fgmm_rows_free(ctx, batch);
    return status;
}

fgmm_status mini_batch_pass(mini_batch *m, fgmm_report *report) {
    int64_t n = fgmm_rows_count(m->rows), size = m->batch_rows > 0 && m->batch_rows < n ? m->batch_rows : n;
    int64_t count = (n + size / 2) / size;
    int64_t *order = cli_alloc(count, sizeof *order, "the order of the batches");
    if (!order) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < count; i++) order[i] = i;
    if (m->shuffle) shuffle(order, count, m->seed, m->passes);
    double sum = 0, weight = 0;
    fgmm_status status = FGMM_OK, nothing = FGMM_OK;
    m->rows_done = 0;
    for (int64_t i = 0; i < count && status == FGMM_OK; i++) {
        /* Even batches: a short last one would weigh as much as the others. */
        int64_t from = (int64_t)((double)n * (double)order[i] / (double)count);
        int64_t to = order[i] + 1 == count ? n : (int64_t)((double)n * (double)(order[i] + 1) / (double)count);
        fgmm_report one = FGMM_REPORT_INIT;
        double batch = weight_of(m, from, to);
        if (!(batch > 0)) continue;
        status = step(m, from, to, &one);
        if (status == FGMM_ERR_DATA && m->skip) { /* no row of it can be used */
            nothing = status;
            status = FGMM_OK;
            if (!m->passes) report->n_skipped += to - from;
        } else if (status == FGMM_OK) {
            add_report(m, report, &one);
            /* Which rows were left out is not known: they are taken to weigh what the others do. */
            batch *= (double)one.n_rows / (double)(one.n_rows + one.n_skipped);
            sum += batch * one.lower_bound;
            weight += batch;
        }
        m->rows_done += to - from;
        m->seconds += one.seconds;
    }
    free(order);
    if (status == FGMM_OK && !(weight > 0)) return nothing;
    if (weight > 0) {
        report->lower_bound = sum / weight;
        report->n_iter = m->passes + (status == FGMM_OK);
    }
    return status;
}

static void log_pass(const mini_batch *m) {
    double rows = (double)m->rows_done * m->passes;
    fgmm_progress p = {.stage = "fit",
                       .iteration = m->passes,
                       .lower_bound = m->bound,
                       .change = m->change,
                       .rows_total = m->rows_done,
                       .rows_per_second = m->seconds > 0.0 ? rows / m->seconds : 0.0,
                       .seconds = m->seconds,
                       .seconds_left = m->seconds * (m->max_passes - m->passes) / m->passes};
    cli_log_iteration(m->session, &p);
}

fgmm_status mini_batch_run(mini_batch *m, double tol, fgmm_report *report) {
    fgmm_status status = FGMM_OK;
    m->bound = m->change = NAN;
    for (m->passes = 0; m->passes < m->max_passes && status == FGMM_OK && !report->converged;) {
        status = mini_batch_pass(m, report);
        m->change = report->lower_bound - m->bound;
        m->bound = report->lower_bound;
        if (status != FGMM_OK) break;
        m->passes++;
        report->converged = tol > 0 && fabs(m->change) < tol;
        log_pass(m);
    }
    if (m->passes) report->seconds_per_iteration = m->seconds / m->passes;
    return status;
}
