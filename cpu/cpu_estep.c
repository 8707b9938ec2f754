/*
 * The E-step over a block. Threads take chunks of FGMM_CHUNK_ROWS rows. Of each row the components that matter are
 * found and evaluated exactly, and leave an entry (row, component, w r) each; cpu_merge.c takes the entries of chunk
 * after chunk into the device's sums, so the bits do not depend on the number of threads.
 *
 * How the components that matter are found, three ways:
 *  - screen: products in f32 with a bound (cpu_pack.c). Each row starts from the exact logit of its best component of
 *    the last pass. Tied: the rows are whitened first.
 *  - dense engines: all logits, in double or (cpu_products.c) by f32 products; for rows that more than sparse_max
 *    components share. A row that turns out to have few is finished like a screened one, and a screened one with many
 *    goes there, so neither the engine nor the hints change a bit.
 *  - strips: full covariances, and tied ones too ill-conditioned to whiten first. `strip` rows at a time against one
 *    component's matrix, which is left as soon as all of them are too far from it.
 */
#include <math.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu.h"

static int cpu_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* ---- workers ---- */

static fgmm_status worker_open(fgmm_device *device, cpu_worker *worker) {
    const fgmm_params *params = device->params;
    const cpu_pack *pack = &device->pack;
    const char *what = "work space of a thread";
    size_t live = (size_t)pack->live, d = (size_t)params->d, strip = (size_t)device->kernels->strip;
    *worker = (cpu_worker){.wide_row = -1};
#define NEED(pointer, count)                                                                                           \
    if (!((pointer) = cpu_alloc(device, count, sizeof *(pointer), what))) return FGMM_ERR_MEMORY
    NEED(worker->wide, CPU_BATCH * d);
    NEED(worker->starts, live + 1);
    if (pack->coef) {
        NEED(worker->x, CPU_TILE_ROWS * d);
        NEED(worker->packed, CPU_TILE_ROWS * (size_t)pack->depth);
    }
    if (params->whitening) {
        NEED(worker->columns, d * strip);
        NEED(worker->deviations, d * strip);
        NEED(worker->strip_y, d * strip);
        NEED(worker->rank, 2 * CPU_RANK * (cpu_multiple(d, (int64_t)strip)));
    }
    if (pack->whitened) NEED(worker->y, CPU_BATCH * d);
    if (params->covariance_type == FGMM_TIED) NEED(worker->sums.scatter, d * d);
    if (pack->strips) {
        NEED(worker->logits, strip * live);
        NEED(worker->list, live);
        NEED(worker->list_logit, live);
        NEED(worker->list_exp, live);
        NEED(worker->hinted, live);
    }
#undef NEED
    return FGMM_OK;
}

static void worker_close(fgmm_device *device, cpu_worker *worker) {
    cpu_sums *sums = &worker->sums;
    void *held[] = {worker->x,         worker->packed,         worker->wide,          worker->y,
                    worker->logits,    worker->columns,        worker->rank,          worker->deviations,
                    worker->strip_y,   worker->list,           worker->hinted,        worker->entries,
                    worker->sorted,    worker->starts,         worker->list_logit,    worker->list_exp,
                    sums->dense_s0,    sums->dense_s1,         sums->dense_s2,        sums->dense_touched,
                    sums->scatter,     sums->dense_scatter,    sums->product_s,       worker->product_x,
                    worker->product_r, worker->product_square, worker->product_logits};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) cpu_free(device, held[i]);
    *worker = (cpu_worker){0};
}

void cpu_workers_free(fgmm_device *device) {
    for (int i = 0; device->workers && i < device->threads; i++) worker_close(device, &device->workers[i]);
    cpu_free(device, device->workers);
    device->workers = NULL;
}

/* Work space for this many threads; what earlier blocks of the pass opened is kept. */
static fgmm_status workers_open(fgmm_device *device, int threads) {
    if (!device->workers)
        device->workers = cpu_alloc(device, (size_t)device->threads, sizeof *device->workers, "work space of threads");
    if (!device->workers) return FGMM_ERR_MEMORY;
    for (int i = 0; i < threads; i++)
        if (!device->workers[i].wide && worker_open(device, &device->workers[i]) != FGMM_OK) {
            worker_close(device, &device->workers[i]);
            return FGMM_ERR_MEMORY;
        }
    return FGMM_OK;
}

/* ---- rows ---- */

void cpu_top(const cpu_outputs *out, int64_t i, const int32_t *ids, const double *resp, int64_t count) {
    int m = out->m, filled = 0;
    double best[FGMM_TOP_MAX];
    int32_t best_id[FGMM_TOP_MAX];
    for (int64_t c = 0; c < count; c++) {
        if (!(resp[c] > 0) || (filled == m && resp[c] <= best[m - 1])) continue;
        int at = filled < m ? filled++ : m - 1;
        for (; at > 0 && best[at - 1] < resp[c]; at--) {
            best[at] = best[at - 1];
            best_id[at] = best_id[at - 1];
        }
        best[at] = resp[c];
        best_id[at] = ids[c];
    }
    for (int j = 0; j < m; j++) {
        if (out->ids) out->ids[i * m + j] = j < filled ? best_id[j] : -1;
        if (out->resp) out->resp[i * m + j] = j < filled ? (float)best[j] : 0;
    }
}

/* The logarithm of the row's cut, lib/backend.h. */
double cpu_row_cut(const fgmm_device *device, double log_z) {
    return device->log_cut - log(1 + 2 * fmax(0, device->params->log_norm_max - log_z - device->log_cut));
}

/* Row i in double. */
static const double *wide_row(const cpu_call *call, cpu_worker *worker, int64_t i) {
    if (worker->wide_row != i) cpu_widen(call->device, call->source, i, worker->wide);
    worker->wide_row = i;
    return worker->wide;
}

/* Whether a row of such a logit under packed component c keeps it, by its cut (log p(x) + log rho). */
static int is_above(const fgmm_device *device, int64_t c, double logit, double log_rho) {
    return logit - device->params->log_weights[device->pack.ids[c]] > log_rho;
}

static double logit_from(const fgmm_device *device, int64_t c, double q) {
    int64_t k = device->pack.ids[c];
    return device->params->log_weights[k] + device->params->log_norm[k] - fmin(q, CPU_FARTHEST);
}

/* Pairs of a row and a packed component whose exact logits are wanted; tied matrices take a strip of them at a time. */
typedef struct {
    cpu_call *call;
    cpu_worker *worker;
    int n;
    int64_t row[CPU_STRIP_MAX];
    int32_t component[CPU_STRIP_MAX];
    double *out[CPU_STRIP_MAX];
} pair_list;

static void flush_pairs(pair_list *pairs) {
    fgmm_device *device = pairs->call->device;
    const fgmm_params *params = device->params;
    cpu_worker *worker = pairs->worker;
    int64_t d = params->d, strip = device->kernels->strip;
    double q[CPU_STRIP_MAX];
    if (pairs->n == 0) return;
    for (int p = 0; p < strip; p++) {
        if (p >= pairs->n) {
            for (int64_t j = 0; j < d; j++) worker->columns[j * strip + p] = 0;
            continue;
        }
        const double *x = wide_row(pairs->call, worker, pairs->row[p]);
        const double *mean = params->means + device->pack.ids[pairs->component[p]] * d;
        for (int64_t j = 0; j < d; j++) worker->columns[j * strip + p] = x[j] - mean[j];
    }
    device->kernels->whiten(params->whitening, worker->columns, NULL, d, NULL, worker->deviations, NULL, q);
    for (int p = 0; p < pairs->n; p++) *pairs->out[p] = logit_from(device, pairs->component[p], q[p]);
    pairs->n = 0;
}

/* *out becomes the exact logit, at flush_pairs at the latest. */
static void evaluate(pair_list *pairs, int64_t i, int32_t c, double *out) {
    const fgmm_device *device = pairs->call->device;
    const fgmm_params *params = device->params;
    int64_t k = device->pack.ids[c], d = params->d;
    if (!params->whitening) {
        int diag = device->pack.diag;
        const double *x = wide_row(pairs->call, pairs->worker, i);
        *out = logit_from(
            device, c,
            device->kernels->distance(x, params->means + k * d, params->half_inv_var + (diag ? k * d : k), d, diag));
        return;
    }
    pairs->row[pairs->n] = i;
    pairs->component[pairs->n] = c;
    pairs->out[pairs->n++] = out;
    if (pairs->n == device->kernels->strip) flush_pairs(pairs);
}

/*
 * The row's outputs and entries from the exact logits of its candidates (packed numbers, ascending), which become
 * responsibilities of components. What is kept, and so log p(x), depends on the best of them alone, not on which
 * others were candidates: the row's cut is taken at the best logit, below log p(x).
 * @param most a row that keeps more is left as it was, worker->left_over set.
 */
static fgmm_status finish_row(cpu_call *call, cpu_worker *worker, int64_t i, int32_t *ids, double *logits,
                              int64_t count, int64_t most) {
    fgmm_device *device = call->device;
    const fgmm_params *params = device->params;
    const cpu_outputs *out = call->out;
    fgmm_status status = FGMM_OK;
    double weight = cpu_row_weight(call->source, i), sum = 1, kept_share = 0, few[CPU_CANDIDATES];
    double *e = count <= CPU_CANDIDATES ? few : worker->list_exp; /* exp(logit - best) */
    int64_t best = 0, kept = 1;
    for (int64_t c = 1; c < count; c++)
        if (logits[c] > logits[best]) best = c;
    double top = logits[best], log_rho = INFINITY;
    if (count > 1 && !params->hard) {
        log_rho = top + cpu_row_cut(device, top);
        sum = 0;
        kept = 0;
        for (int64_t c = 0; c < count; c++) {
            if (c != best && !is_above(device, ids[c], logits[c], log_rho)) continue;
            sum += e[c] = exp(logits[c] - top);
            kept++;
        }
    }
    worker->left_over = kept > most;
    if (worker->left_over) return FGMM_OK;
    if (call->source->hints) call->source->hints[i] = ids[best];
    for (int64_t c = 0; c < count && status == FGMM_OK; c++) {
        int32_t packed = ids[c], k = device->pack.ids[packed];
        int keep = c == best || is_above(device, packed, logits[c], log_rho);
        double r = !keep ? 0 : c == best ? 1 / sum : e[c] / sum;
        ids[c] = k;
        logits[c] = r;
        if (r == 0) continue;
        kept_share += params->weights[k];
        if (out->proba) out->proba[i * params->k + k] = (float)r;
        if (call->accumulate && weight > 0)
            status = cpu_add_entry(device, worker, i % FGMM_CHUNK_ROWS, packed, weight * r);
    }
    worker->survivors += (double)kept;
    if (!params->hard) worker->dropped += weight * params->cut * fmax(0, 1 - kept_share);
    worker->log_prob[i % FGMM_CHUNK_ROWS] = top + log(sum);
    if (out->m) cpu_top(out, i, ids, logits, count);
    return status;
}

/* ---- the dense engine ---- */

static fgmm_status open_dense(fgmm_device *device, cpu_worker *worker) {
    fgmm_status status = cpu_pack_dense(device);
    if (status != FGMM_OK || worker->logits) return status;
    size_t wide = (size_t)cpu_padded(device, device->pack.live);
    worker->logits = cpu_alloc(device, CPU_BATCH * wide, sizeof *worker->logits, "logits of a batch of rows");
    return worker->logits ? FGMM_OK : FGMM_ERR_MEMORY;
}

/* W (x - centre) of the batch, tied. */
static void whiten_batch(cpu_call *call, cpu_worker *worker) {
    const fgmm_params *params = call->device->params;
    int64_t d = params->d, strip = call->device->kernels->strip;
    double q[CPU_STRIP_MAX];
    memset(worker->columns, 0, (size_t)(d * strip) * sizeof(double));
    for (int at = 0; at < CPU_BATCH; at += (int)strip) {
        int n = CPU_BATCH - at < strip ? CPU_BATCH - at : (int)strip;
        for (int b = 0; b < n; b++)
            for (int64_t j = 0; j < d; j++)
                worker->columns[j * strip + b] = worker->wide[(at + b) * d + j] - params->centre[j];
        call->device->kernels->whiten(params->whitening, worker->columns, NULL, d, NULL, worker->deviations,
                                      worker->strip_y, q);
        for (int b = 0; b < n; b++)
            for (int64_t j = 0; j < d; j++) worker->y[(at + b) * d + j] = worker->strip_y[j * strip + b];
    }
}

/* Logits of one row of the batch become responsibilities. A row that few components share is left for the way of
 * screened rows: its components go to worker->rows, slot b. @return 1 if so. */
static int settle_dense_row(cpu_call *call, cpu_worker *worker, int64_t i, int b, double *logits, int64_t wide) {
    fgmm_device *device = call->device;
    const cpu_pack *pack = &device->pack;
    const cpu_outputs *out = call->out;
    double weight = cpu_row_weight(call->source, i);
    int64_t best = 0, kept = 1, live = pack->live;
    double top = device->kernels->largest(logits, wide, &best), log_z = top;
    if (!device->params->hard) {
        log_z += log(device->kernels->exp_sum(logits, wide, top));
        kept = device->kernels->responsibilities(logits, pack->log_weights, wide, log_z,
                                                 top + cpu_row_cut(device, top) - log_z);
    }
    worker->dense_rows++;
    if (device->params->hard || kept <= pack->sparse_max) {
        int32_t *ids = worker->rows.id[b];
        int count = 0;
        for (int64_t c = 0; c < live; c++)
            if (device->params->hard ? c == best : logits[c] != 0) ids[count++] = (int32_t)c;
        if (count == 0) ids[count++] = (int32_t)best;
        worker->rows.count[b] = count;
        memset(logits, 0, (size_t)wide * sizeof *logits);
        return 1;
    }
    worker->survivors += (double)kept;
    worker->dropped += weight * device->params->cut;
    worker->log_prob[i % FGMM_CHUNK_ROWS] = log_z;
    if (out->m) cpu_top(out, i, pack->ids, logits, live);
    for (int64_t c = 0; out->proba && c < live; c++)
        out->proba[i * device->params->k + pack->ids[c]] = (float)logits[c];
    if (call->source->hints) call->source->hints[i] = (int32_t)best;
    for (int64_t c = 0; call->accumulate && weight != 1 && c < wide; c++) logits[c] *= weight;
    return 0;
}

/* How many components row i keeps, of those with r [live] > 0, as finish_row finds; the others' r becomes 0. Of covariances that are no matrices.
 * logits [live] take the exact ones. */
int64_t cpu_kept_exactly(cpu_call *call, cpu_worker *worker, int64_t i, float *r, double *logits) {
    const fgmm_device *device = call->device;
    pair_list pairs = {.call = call, .worker = worker};
    int64_t best = -1, kept = 0, live = device->pack.live;
    for (int64_t c = 0; c < live; c++) {
        if (r[c] == 0) continue;
        evaluate(&pairs, i, (int32_t)c, &logits[c]);
        if (best < 0 || logits[c] > logits[best]) best = c;
    }
    double log_rho = best < 0 ? 0 : logits[best] + cpu_row_cut(device, logits[best]);
    for (int64_t c = 0; c < live; c++) {
        if (r[c] == 0) continue;
        int keep = c == best || is_above(device, c, logits[c], log_rho);
        if (!keep) r[c] = 0;
        kept += keep;
    }
    return kept;
}

/* Rows whose few components a dense engine left in worker->rows, rows[b] in slot b; slots without any are passed
 * over. */
fgmm_status cpu_finish_sparse(cpu_call *call, cpu_worker *worker, const int64_t *rows, int n) {
    fgmm_status status = FGMM_OK;
    pair_list pairs = {.call = call, .worker = worker};
    for (int b = 0; b < n; b++)
        for (int c = 0; c < worker->rows.count[b]; c++)
            evaluate(&pairs, rows[b], worker->rows.id[b][c], &worker->logit[b][c]);
    flush_pairs(&pairs);
    for (int b = 0; b < n && status == FGMM_OK; b++)
        if (worker->rows.count[b])
            status = finish_row(call, worker, rows[b], worker->rows.id[b], worker->logit[b], worker->rows.count[b],
                                INT64_MAX);
    return status;
}

static fgmm_status flush_dense(cpu_call *call, cpu_worker *worker) {
    fgmm_device *device = call->device;
    int64_t d = call->source->d, wide = cpu_padded(device, device->pack.live);
    int any_dense = 0;
    if (worker->batched == 0) return FGMM_OK;
    fgmm_status status = open_dense(device, worker);
    if (status != FGMM_OK) return status;
    worker->wide_row = -1;
    for (int b = 0; b < CPU_BATCH; b++) {
        if (b < worker->batched)
            cpu_widen(call->device, call->source, worker->batch[b], worker->wide + b * d);
        else
            memset(worker->wide + b * d, 0, (size_t)d * sizeof(double));
    }
    if (device->pack.whitened) whiten_batch(call, worker);
    device->kernels->dense_logits(&device->pack, device->pack.whitened ? worker->y : worker->wide, worker->logits);
    for (int b = 0; b < CPU_BATCH; b++) {
        double *logits = worker->logits + b * wide;
        worker->rows.count[b] = 0;
        if (b < worker->batched)
            any_dense |= !settle_dense_row(call, worker, worker->batch[b], b, logits, wide);
        else
            memset(logits, 0, (size_t)wide * sizeof *logits);
    }
    if (call->accumulate && any_dense) status = cpu_add_dense_rows(call, worker, worker->logits);
    if (status == FGMM_OK) status = cpu_finish_sparse(call, worker, worker->batch, worker->batched);
    worker->batched = 0;
    return status;
}

/* Row i goes to a dense engine: to products in f32 where they are exact enough, else to differences in double. @param
 * xs packed, or NULL. */
static fgmm_status add_dense(cpu_call *call, cpu_worker *worker, int64_t i, const float *xs) {
    const fgmm_params *params = call->device->params;
    if (xs && call->accumulate && !params->hard && !params->whitening && !params->careful) {
        fgmm_status status = cpu_products_open(call->device);
        if (status != FGMM_OK) return status;
        if (cpu_product_fits(call->device, xs)) return cpu_product_add(call, worker, i, xs);
    }
    worker->batch[worker->batched++] = i;
    return worker->batched == CPU_BATCH ? flush_dense(call, worker) : FGMM_OK;
}

/* ---- the screen ---- */

/* The tile's rows packed: f32 rows straight from their place, others as floats first. */
static void pack_tile(cpu_call *call, cpu_worker *worker, int64_t first, int n) {
    const fgmm_block_source *source = call->source;
    const fgmm_params *params = call->device->params;
    const cpu_pack *pack = &call->device->pack;
    const cpu_kernels *kernels = call->device->kernels;
    int64_t d = source->d, strip = kernels->strip;
    double q[CPU_STRIP_MAX];
    if (pack->whitened) {
        for (int at = 0; at < n; at += (int)strip) {
            int count = n - at < strip ? n - at : (int)strip;
            for (int b = 0; b < count; b++) {
                const double *x = wide_row(call, worker, first + at + b);
                for (int64_t j = 0; j < d; j++) worker->columns[j * strip + b] = x[j] - params->centre[j];
            }
            kernels->whiten(params->whitening, worker->columns, NULL, d, NULL, worker->deviations, worker->strip_y, q);
            for (int b = 0; b < count; b++)
                for (int64_t j = 0; j < d; j++) worker->x[(at + b) * d + j] = (float)worker->strip_y[j * strip + b];
        }
    } else if (source->type == FGMM_F32) {
        kernels->pack_rows(pack, cpu_row(source, first), (int64_t)(source->stride_bytes / sizeof(float)), 0, n,
                           worker->packed, worker->rows.norm);
        return;
    } else {
        for (int i = 0; i < n; i++) {
            const double *x = wide_row(call, worker, first + i);
            for (int64_t j = 0; j < d; j++) worker->x[i * d + j] = (float)(x[j] - params->centre[j]);
        }
    }
    kernels->pack_rows(pack, worker->x, d, 1, n, worker->packed, worker->rows.norm);
}

/* Exact logits of the rows' last best components, and from them the screen's lower bounds. */
static void take_hints(cpu_call *call, cpu_worker *worker, int64_t first, int n) {
    const int32_t *hints = call->source->hints;
    pair_list pairs = {.call = call, .worker = worker};
    for (int i = 0; i < n; i++) {
        worker->rows.best[i] = -INFINITY;
        if (hints && hints[first + i] >= 0 && hints[first + i] < call->device->pack.live)
            evaluate(&pairs, first + i, hints[first + i], &worker->hint_logit[i]);
    }
    flush_pairs(&pairs);
    for (int i = 0; hints && i < n; i++) {
        double logit = worker->hint_logit[i];
        if (hints[first + i] < 0 || hints[first + i] >= call->device->pack.live) continue;
        float best = (float)(logit - 0x1p-22 * fabs(logit)); /* rounded down */
        if (best > -1e37f) worker->rows.best[i] = best;
    }
}

/* Candidates of a row by component number, so that nothing depends on the order in which they came. */
static void sort_candidates(int32_t *ids, int count) {
    for (int i = 1; i < count; i++) {
        int32_t id = ids[i];
        int at = i;
        for (; at > 0 && ids[at - 1] > id; at--) ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

static fgmm_status screen_tile(cpu_call *call, cpu_worker *worker, int64_t first, int n) {
    fgmm_device *device = call->device;
    cpu_screen_rows *rows = &worker->rows;
    fgmm_status status = FGMM_OK;
    const int32_t *hints = call->source->hints;
    pair_list pairs = {.call = call, .worker = worker};
    unsigned char dense[CPU_TILE_ROWS] = {0};
    int n_dense = 0;
    pack_tile(call, worker, first, n);
    take_hints(call, worker, first, n);
    device->kernels->screen(&device->pack, worker->packed, n, rows);
    for (int i = 0; i < n; i++) {
        if (rows->count[i] > CPU_CANDIDATES || rows->count[i] == 0) {
            dense[i] = 1;
            rows->count[i] = 0;
            continue;
        }
        sort_candidates(rows->id[i], rows->count[i]);
        for (int c = 0; c < rows->count[i]; c++) {
            if (hints && hints[first + i] == rows->id[i][c])
                worker->logit[i][c] = worker->hint_logit[i];
            else
                evaluate(&pairs, first + i, rows->id[i][c], &worker->logit[i][c]);
        }
    }
    flush_pairs(&pairs);
    for (int i = 0; i < n && status == FGMM_OK; i++) {
        if (rows->count[i] == 0) continue;
        status =
            finish_row(call, worker, first + i, rows->id[i], worker->logit[i], rows->count[i], device->pack.sparse_max);
        dense[i] = (unsigned char)worker->left_over;
    }
    for (int i = 0; i < n && status == FGMM_OK; i++) {
        if (!dense[i]) continue;
        n_dense++;
        status = add_dense(call, worker, first + i, worker->packed + i * device->pack.depth);
    }
    worker->screen_fails = 2 * n_dense > n;
    return status;
}

static fgmm_status tile_rows(cpu_call *call, cpu_worker *worker, int64_t first, int n) {
    const cpu_pack *pack = &call->device->pack;
    fgmm_status status = FGMM_OK;
    int screened = pack->coef && call->device->params->engine != FGMM_ENGINE_DENSE;
    /* Where one tile of a chunk was screened in vain, the others of the chunk would be. */
    if (screened && !worker->screen_fails) return screen_tile(call, worker, first, n);
    if (pack->coef) pack_tile(call, worker, first, n);
    for (int i = 0; i < n && status == FGMM_OK; i++)
        status = add_dense(call, worker, first + i, pack->coef ? worker->packed + i * pack->depth : NULL);
    return status;
}

/* ---- strips ---- */

/* Logits of a strip's rows under component c, where they may matter: lists grow, `above` (log p(x) + log rho, from
 * below) rises. */
static void strip_component(cpu_call *call, cpu_worker *worker, int n, int32_t c, double *bound, double *above) {
    const fgmm_device *device = call->device;
    const fgmm_params *params = device->params;
    int64_t d = params->d, strip = device->kernels->strip, live = device->pack.live, k = device->pack.ids[c];
    const double *mean = params->means + k * d;
    double limit[CPU_STRIP_MAX], q[CPU_STRIP_MAX];
    for (int b = 0; b < strip; b++) limit[b] = b < n ? params->log_norm[k] - above[b] : -INFINITY;
    device->kernels->whiten(cpu_whitening(device, c), worker->columns, mean, d, limit, worker->deviations, NULL, q);
    for (int b = 0; b < n; b++) {
        double *logit = &worker->logits[b * live + c];
        *logit = CPU_PADDING_LOGIT;
        if (q[b] > limit[b]) continue;
        *logit = logit_from(device, c, q[b]);
        if (!(*logit > bound[b])) continue;
        bound[b] = *logit;
        above[b] = bound[b] + cpu_row_cut(device, bound[b]);
        above[b] -= 1e-12 * fabs(above[b]);
    }
}

static fgmm_status strip_rows(cpu_call *call, cpu_worker *worker, int64_t first, int n) {
    fgmm_device *device = call->device;
    int64_t d = call->source->d, strip = device->kernels->strip, live = device->pack.live;
    const int32_t *hints = call->source->hints;
    double bound[CPU_STRIP_MAX], above[CPU_STRIP_MAX];
    fgmm_status status = FGMM_OK;
    for (int b = 0; b < strip; b++) {
        const double *x = wide_row(call, worker, first + (b < n ? b : 0));
        bound[b] = above[b] = -INFINITY;
        for (int64_t j = 0; j < d; j++) worker->columns[j * strip + b] = x[j];
    }
    for (int b = 0; hints && b < n; b++) {
        int32_t c = hints[first + b];
        if (c < 0 || c >= live || worker->hinted[c]) continue;
        worker->hinted[c] = 1;
        strip_component(call, worker, n, c, bound, above);
    }
    for (int32_t c = 0; c < live; c++)
        if (!worker->hinted[c]) strip_component(call, worker, n, c, bound, above);
    for (int b = 0; hints && b < n; b++)
        if (hints[first + b] >= 0 && hints[first + b] < live) worker->hinted[hints[first + b]] = 0;
    for (int b = 0; b < n && status == FGMM_OK; b++) {
        int64_t count = 0, best = 0;
        for (int32_t c = 0; c < live; c++) {
            double logit = worker->logits[b * live + c];
            if (logit > worker->logits[b * live + best]) best = c;
            if (!(logit > CPU_PADDING_LOGIT)) continue;
            worker->list[count] = c;
            worker->list_logit[count++] = logit;
        }
        if (count == 0) { /* farther from all than a double can say */
            worker->list[0] = (int32_t)best;
            worker->list_logit[count++] = logit_from(device, best, CPU_FARTHEST);
        }
        if (count > CPU_CANDIDATES) worker->dense_rows++;
        status = finish_row(call, worker, first + b, worker->list, worker->list_logit, count, INT64_MAX);
    }
    return status;
}

/* ---- chunks ---- */

/* In row order, whatever the order in which rows were finished. */
static void sum_log_prob(const cpu_call *call, cpu_worker *worker, int64_t first, int64_t last) {
    worker->log_likelihood = worker->weight = 0;
    for (int64_t i = first; i < last; i++) {
        double weight = cpu_row_weight(call->source, i), log_prob = worker->log_prob[i - first];
        worker->log_likelihood += weight > 0 ? weight * log_prob : 0;
        worker->weight += weight;
        if (call->out->log_prob) call->out->log_prob[i] = log_prob;
    }
}

static fgmm_status do_chunk(cpu_call *call, cpu_worker *worker, int64_t chunk) {
    const cpu_pack *pack = &call->device->pack;
    int64_t first = chunk * FGMM_CHUNK_ROWS, last = first + FGMM_CHUNK_ROWS;
    int64_t step = pack->strips ? call->device->kernels->strip : CPU_TILE_ROWS;
    fgmm_status status = FGMM_OK;
    if (last > call->source->n) last = call->source->n;
    worker->survivors = worker->dense_rows = worker->dropped = 0;
    worker->n_entries = worker->screen_fails = 0;
    worker->wide_row = -1;
    for (int64_t at = first; at < last && status == FGMM_OK; at += step) {
        int n = (int)(last - at < step ? last - at : step);
        if (call->out->proba)
            memset(call->out->proba + at * call->device->params->k, 0,
                   (size_t)(n * call->device->params->k) * sizeof(float));
        status = pack->strips ? strip_rows(call, worker, at, n) : tile_rows(call, worker, at, n);
    }
    if (status == FGMM_OK) status = flush_dense(call, worker);
    if (status == FGMM_OK) status = cpu_product_flush(call, worker);
    if (status == FGMM_OK && worker->sums.product_touched) status = cpu_product_room(call->device);
    if (status != FGMM_OK) return status;
    sum_log_prob(call, worker, first, last);
    if (call->accumulate) cpu_sort_entries(call, worker, first);
    return FGMM_OK;
}

fgmm_status cpu_rows(fgmm_device *device, fgmm_block *block, int accumulate, const cpu_outputs *out) {
    cpu_call call = {.device = device, .block = block, .source = &block->source, .out = out, .accumulate = accumulate};
    int64_t chunks = (block->source.n + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS;
    /* Waking a thread costs what a few million multiply-adds do. */
    double work = (double)block->source.n * (double)device->params->k * (double)device->params->d;
    int threads = work < 4e6 ? 1 : chunks < device->threads ? (int)chunks : device->threads;
    fgmm_status opened = workers_open(device, threads);
    if (opened != FGMM_OK) return opened;
#pragma omp parallel num_threads(threads)
    {
        cpu_worker *worker = &device->workers[cpu_thread()];
        for (;;) {
            int64_t chunk = atomic_fetch_add(&call.next, 1);
            if (chunk >= chunks) break;
            fgmm_status status = FGMM_OK;
            if (atomic_load(&call.status) != FGMM_OK)
                status = atomic_load(&call.status);
            else if (device->host.cancelled(device->host.user))
                status = FGMM_ERR_CANCELLED;
            else
                status = do_chunk(&call, worker, chunk);
            if (status != FGMM_OK) atomic_store(&call.status, status);
            cpu_merge(&call, worker, chunk);
        }
    }
    fgmm_status status = (fgmm_status)atomic_load(&call.status);
    /* A chunk that was given up leaves sums behind. */
    if (status != FGMM_OK) cpu_workers_free(device);
    if (status == FGMM_ERR_CANCELLED) return device->host.fail(device->host.user, status, "cancelled");
    return status;
}
