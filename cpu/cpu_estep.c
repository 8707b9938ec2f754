/*
 * The E-step over a block. Threads take chunks of FGMM_CHUNK_ROWS rows; each chunk's sums are added to the
 * device's in chunk order, so the bits do not depend on the number of threads.
 */
#include "cpu.h"

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../lib/convert.h"

typedef struct cpu_worker {
    cpu_screen_rows rows;
    float *x;                 /* [CPU_TILE_ROWS, D]: rows less the centre */
    float *packed;            /* [CPU_TILE_ROWS, depth] */
    double *wide;             /* [CPU_BATCH, D] */
    double *logits;           /* [CPU_BATCH, groups * lanes] */
    int64_t batch[CPU_BATCH]; /* rows waiting for the dense engine */
    int batched;
    cpu_sums sums;
    double log_likelihood, weight, survivors, dense_rows, dropped; /* of the chunk */
} cpu_worker;

/* One call's view, shared by its threads. */
typedef struct {
    fgmm_device *device;
    const fgmm_block_source *source;
    const cpu_outputs *out;
    int accumulate;
    atomic_llong next;             /* the next chunk to take */
    atomic_llong turn[CPU_SHARDS]; /* the chunk whose sums each shard awaits */
    atomic_int status;
} cpu_call;

static int cpu_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int64_t padded(const fgmm_device *device, int64_t n) {
    int64_t lanes = device->kernels->lanes;
    return (n + lanes - 1) / lanes * lanes;
}

/* ---- workers ---- */

static fgmm_status worker_open(fgmm_device *device, cpu_worker *worker) {
    const fgmm_params *params = device->params;
    const char *what = "work space of a thread";
    size_t k = (size_t)params->k, d = (size_t)params->d;
    *worker = (cpu_worker){0};
    if (!(worker->x = cpu_alloc(device, CPU_TILE_ROWS * d, sizeof(float), what))) return FGMM_ERR_MEMORY;
    if (!(worker->packed = cpu_alloc(device, CPU_TILE_ROWS * (size_t)device->pack.depth, sizeof(float), what)))
        return FGMM_ERR_MEMORY;
    if (!(worker->wide = cpu_alloc(device, CPU_BATCH * d, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(worker->logits =
              cpu_alloc(device, CPU_BATCH * (size_t)padded(device, device->pack.live), sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    cpu_sums *sums = &worker->sums;
    if (!(sums->s0 = cpu_alloc(device, k, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(sums->s1 = cpu_alloc(device, k * d, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(sums->s2 = cpu_alloc(device, (size_t)device->s2_size, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!(sums->touched = cpu_alloc(device, k, 1, what))) return FGMM_ERR_MEMORY;
    return FGMM_OK;
}

static void worker_close(fgmm_device *device, cpu_worker *worker) {
    cpu_sums *sums = &worker->sums;
    void *held[] = {worker->x, worker->packed, worker->wide,   worker->logits, sums->s0,       sums->s1,
                    sums->s2,  sums->touched,  sums->dense_s0, sums->dense_s1, sums->dense_s2, sums->dense_touched};
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
        if (!device->workers[i].sums.touched && worker_open(device, &device->workers[i]) != FGMM_OK) {
            worker_close(device, &device->workers[i]);
            return FGMM_ERR_MEMORY;
        }
    return FGMM_OK;
}

/* Only where a row needs the dense engine; threads may be here at the same time. */
static fgmm_status dense_sums_open(fgmm_device *device, cpu_sums *sums) {
    if (sums->dense_touched) return FGMM_OK;
    const char *what = "sums of the dense engine";
    size_t wide = (size_t)padded(device, device->pack.live), d = (size_t)device->params->d;
    if (!sums->dense_s0 && !(sums->dense_s0 = cpu_alloc(device, wide, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!sums->dense_s1 && !(sums->dense_s1 = cpu_alloc(device, wide * d, sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    if (!sums->dense_s2 &&
        !(sums->dense_s2 = cpu_alloc(device, device->pack.diag ? wide * d : wide, sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    sums->dense_touched = cpu_alloc(device, wide / (size_t)device->kernels->lanes + 1, 1, what);
    return sums->dense_touched ? FGMM_OK : FGMM_ERR_MEMORY;
}

/* ---- rows ---- */

static double row_weight(const cpu_call *call, int64_t i) {
    return call->source->weights ? call->source->weights[i] : 1;
}

/* Rows less the screen's centre in f32: one rounding, of the difference. */
static void shift_rows(const cpu_call *call, int64_t first, int n, cpu_worker *worker) {
    int64_t d = call->source->d;
    const float *centre = call->device->pack.centre;
    for (int i = 0; i < n; i++) {
        const void *row = cpu_row(call->source, first + i);
        float *x = worker->x + i * d;
        if (call->source->type == FGMM_F32) {
            for (int64_t j = 0; j < d; j++) x[j] = ((const float *)row)[j] - centre[j];
            continue;
        }
        fgmm_widen(call->source->type, row, d, worker->wide);
        for (int64_t j = 0; j < d; j++) x[j] = (float)(worker->wide[j] - centre[j]);
    }
}

void cpu_top(const cpu_outputs *out, int64_t i, const int64_t *ids, const double *resp, int64_t count) {
    int m = out->m, filled = 0;
    double best[FGMM_TOP_MAX];
    int64_t best_id[FGMM_TOP_MAX];
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
        if (out->ids) out->ids[i * m + j] = j < filled ? (int32_t)best_id[j] : -1;
        if (out->resp) out->resp[i * m + j] = j < filled ? (float)best[j] : 0;
    }
}

/* The logarithm of the row's cut, lib/backend.h. */
static double row_cut(const fgmm_device *device, double log_z) {
    return device->log_cut - log(1 + 2 * fmax(0, device->params->log_norm_max - log_z - device->log_cut));
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

/* A row with few candidates: evaluated exactly, in double. */
static void refine_row(cpu_call *call, cpu_worker *worker, int64_t i, int32_t *candidates, int count) {
    fgmm_device *device = call->device;
    const fgmm_params *params = device->params;
    const cpu_kernels *kernels = device->kernels;
    int64_t d = params->d, ids[CPU_CANDIDATES];
    int diag = device->pack.diag, best = 0;
    double *x = worker->wide, l[CPU_CANDIDATES] = {0}, r[CPU_CANDIDATES], sum = 0, weight = row_weight(call, i),
           kept_share = 0;
    fgmm_widen(call->source->type, cpu_row(call->source, i), d, x);
    sort_candidates(candidates, count);
    for (int c = 0; c < count; c++) {
        int64_t k = ids[c] = device->pack.ids[candidates[c]];
        l[c] = params->log_weights[k] + params->log_norm[k] -
               fmin(kernels->distance(x, params->means + k * d, params->half_inv_var + (diag ? k * d : k), d, diag),
                    CPU_FARTHEST);
        if (l[c] > l[best]) best = c;
    }
    for (int c = 0; c < count; c++) sum += exp(l[c] - l[best]);
    double log_z = l[best] + log(sum);
    if (params->hard) log_z = l[best];
    double log_rho = row_cut(device, log_z);
    for (int c = 0; c < count; c++) {
        int keep = params->hard ? c == best : l[c] - params->log_weights[ids[c]] - log_z > log_rho;
        r[c] = !keep ? 0 : params->hard ? 1 : exp(l[c] - log_z);
        if (!keep) continue;
        kept_share += params->weights[ids[c]];
        worker->survivors++;
        if (!call->accumulate || weight == 0) continue;
        cpu_sums *sums = &worker->sums;
        sums->touched[ids[c]] = 1;
        sums->s0[ids[c]] += weight * r[c];
        kernels->accumulate(x, params->sum_centres + ids[c] * d, weight * r[c], d, diag, sums->s1 + ids[c] * d,
                            sums->s2 + (diag ? ids[c] * d : ids[c]));
    }
    worker->log_likelihood += weight > 0 ? weight * log_z : 0;
    worker->weight += weight;
    worker->dropped += params->hard ? 0 : weight * exp(log_rho) * fmax(0, 1 - kept_share);
    if (call->out->log_prob) call->out->log_prob[i] = log_z;
    if (call->out->m) cpu_top(call->out, i, ids, r, count);
}

/* Logits of one batched row become responsibilities times its weight. */
static void finish_dense_row(cpu_call *call, cpu_worker *worker, int64_t i, double *logits, int64_t wide) {
    fgmm_device *device = call->device;
    const fgmm_params *params = device->params;
    double weight = row_weight(call, i);
    int64_t best = 0;
    for (int64_t c = 1; c < device->pack.live; c++)
        if (logits[c] > logits[best]) best = c;
    double top = logits[best], log_z = top;
    if (params->hard) {
        memset(logits, 0, (size_t)wide * sizeof *logits);
        logits[best] = 1;
        worker->survivors++;
    } else {
        log_z = top + log(device->kernels->exp_sum(logits, wide, top));
        double log_rho = row_cut(device, log_z);
        worker->survivors +=
            (double)device->kernels->responsibilities(logits, device->log_weights_packed, wide, log_z, log_rho);
        worker->dropped += weight * exp(log_rho);
    }
    if (call->out->m) cpu_top(call->out, i, device->pack.ids, logits, device->pack.live);
    if (call->accumulate && weight != 1)
        for (int64_t c = 0; c < wide; c++) logits[c] *= weight;
    worker->log_likelihood += weight > 0 ? weight * log_z : 0;
    worker->weight += weight;
    worker->dense_rows++;
    if (call->out->log_prob) call->out->log_prob[i] = log_z;
}

static fgmm_status flush_dense(cpu_call *call, cpu_worker *worker) {
    fgmm_device *device = call->device;
    int64_t d = call->source->d, wide = padded(device, device->pack.live);
    if (worker->batched == 0) return FGMM_OK;
    for (int b = 0; b < CPU_BATCH; b++) {
        if (b < worker->batched)
            fgmm_widen(call->source->type, cpu_row(call->source, worker->batch[b]), d, worker->wide + b * d);
        else
            memset(worker->wide + b * d, 0, (size_t)d * sizeof(double));
    }
    device->kernels->dense_logits(&device->pack, worker->wide, worker->logits);
    for (int b = 0; b < CPU_BATCH; b++) {
        double *logits = worker->logits + b * wide;
        if (b < worker->batched)
            finish_dense_row(call, worker, worker->batch[b], logits, wide);
        else
            memset(logits, 0, (size_t)wide * sizeof *logits);
    }
    worker->batched = 0;
    if (!call->accumulate) return FGMM_OK;
    fgmm_status status = dense_sums_open(device, &worker->sums);
    if (status == FGMM_OK)
        device->kernels->dense_accumulate(&device->pack, worker->wide, worker->logits, &worker->sums);
    return status;
}

static fgmm_status add_dense(cpu_call *call, cpu_worker *worker, int64_t i) {
    worker->batch[worker->batched++] = i;
    return worker->batched == CPU_BATCH ? flush_dense(call, worker) : FGMM_OK;
}

static fgmm_status do_tile(cpu_call *call, cpu_worker *worker, int64_t first, int n) {
    fgmm_device *device = call->device;
    const cpu_pack *pack = &device->pack;
    fgmm_status status = FGMM_OK;
    if (!pack->coef) {
        for (int i = 0; i < n && status == FGMM_OK; i++) status = add_dense(call, worker, first + i);
        return status;
    }
    shift_rows(call, first, n, worker);
    device->kernels->pack_rows(pack, worker->x, n, worker->packed, worker->rows.norm);
    device->kernels->screen(pack, worker->packed, n, &worker->rows);
    int dense[CPU_TILE_ROWS], n_dense = 0;
    for (int i = 0; i < n; i++) {
        if (worker->rows.count[i] > CPU_CANDIDATES || worker->rows.count[i] == 0)
            dense[n_dense++] = i;
        else
            refine_row(call, worker, first + i, worker->rows.id[i], worker->rows.count[i]);
    }
    for (int i = 0; i < n_dense && status == FGMM_OK; i++) status = add_dense(call, worker, first + dense[i]);
    return status;
}

/* ---- chunks ---- */

static fgmm_status do_chunk(cpu_call *call, cpu_worker *worker, int64_t chunk) {
    int64_t first = chunk * FGMM_CHUNK_ROWS, last = first + FGMM_CHUNK_ROWS;
    if (last > call->source->n) last = call->source->n;
    worker->log_likelihood = worker->weight = worker->survivors = worker->dense_rows = worker->dropped = 0;
    for (int64_t at = first; at < last; at += CPU_TILE_ROWS) {
        fgmm_status status = do_tile(call, worker, at, (int)(last - at < CPU_TILE_ROWS ? last - at : CPU_TILE_ROWS));
        if (status != FGMM_OK) return status;
    }
    return flush_dense(call, worker);
}

/* Sparse sums of one component. */
static void merge_component(fgmm_device *device, cpu_sums *sums, int64_t k) {
    int64_t d = device->pack.d, per = device->pack.diag ? d : 1;
    if (!sums->touched[k]) return;
    device->s0[k] += sums->s0[k];
    for (int64_t j = 0; j < d; j++) device->s1[k * d + j] += sums->s1[k * d + j];
    for (int64_t j = 0; j < per; j++) device->s2[k * per + j] += sums->s2[k * per + j];
    sums->s0[k] = 0;
    sums->touched[k] = 0;
    memset(sums->s1 + k * d, 0, (size_t)d * sizeof(double));
    memset(sums->s2 + k * per, 0, (size_t)per * sizeof(double));
}

/* Dense sums of one group of lanes. */
static void merge_group(fgmm_device *device, cpu_sums *sums, int64_t g) {
    const cpu_pack *pack = &device->pack;
    int64_t d = pack->d, lanes = device->kernels->lanes, per = pack->diag ? d : 1;
    if (!sums->dense_touched || !sums->dense_touched[g]) return;
    for (int64_t lane = 0; lane < lanes && g * lanes + lane < pack->live; lane++) {
        int64_t k = pack->ids[g * lanes + lane];
        device->s0[k] += sums->dense_s0[g * lanes + lane];
        for (int64_t j = 0; j < d; j++) device->s1[k * d + j] += sums->dense_s1[(g * d + j) * lanes + lane];
        for (int64_t j = 0; j < per; j++) device->s2[k * per + j] += sums->dense_s2[(g * per + j) * lanes + lane];
    }
    sums->dense_touched[g] = 0;
    memset(sums->dense_s0 + g * lanes, 0, (size_t)lanes * sizeof(double));
    memset(sums->dense_s1 + g * d * lanes, 0, (size_t)(d * lanes) * sizeof(double));
    memset(sums->dense_s2 + g * per * lanes, 0, (size_t)(per * lanes) * sizeof(double));
}

/* Adds a worker's sums of the components in one shard, a range of groups, to the device's and clears them. */
static void merge_shard(fgmm_device *device, cpu_worker *worker, int shard) {
    const cpu_pack *pack = &device->pack;
    int64_t lanes = device->kernels->lanes, groups = padded(device, pack->live) / lanes;
    for (int64_t g = shard * groups / CPU_SHARDS; g < (shard + 1) * groups / CPU_SHARDS; g++) {
        for (int64_t c = g * lanes; c < (g + 1) * lanes && c < pack->live; c++)
            merge_component(device, &worker->sums, pack->ids[c]);
        merge_group(device, &worker->sums, g);
    }
}

static void merge_scalars(fgmm_device *device, const cpu_worker *worker) {
    fgmm_sums *totals = &device->totals;
    totals->log_likelihood += worker->log_likelihood;
    totals->weight += worker->weight;
    totals->survivors += worker->survivors;
    totals->dense_rows += worker->dense_rows;
    totals->dropped += worker->dropped;
}

/*
 * Chunks are merged in order, shard by shard: one thread may merge shard 0 of chunk 8 while another merges shard 2 of
 * chunk 7.
 */
static void merge_in_turn(cpu_call *call, cpu_worker *worker, int64_t chunk) {
    for (int shard = 0; shard < CPU_SHARDS; shard++) {
        while (atomic_load_explicit(&call->turn[shard], memory_order_acquire) != chunk) sched_yield();
        if (shard == 0) merge_scalars(call->device, worker);
        if (call->accumulate) merge_shard(call->device, worker, shard);
        atomic_store_explicit(&call->turn[shard], chunk + 1, memory_order_release);
    }
}

fgmm_status cpu_rows(fgmm_device *device, const fgmm_block *block, int accumulate, const cpu_outputs *out) {
    cpu_call call = {.device = device, .source = &block->source, .out = out, .accumulate = accumulate};
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
            merge_in_turn(&call, worker, chunk);
        }
    }
    fgmm_status status = (fgmm_status)atomic_load(&call.status);
    /* A chunk that was given up leaves sums behind. */
    if (status != FGMM_OK) cpu_workers_free(device);
    if (status == FGMM_ERR_CANCELLED) return device->host.fail(device->host.user, status, "cancelled");
    return status;
}
