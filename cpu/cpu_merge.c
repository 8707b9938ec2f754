/*
 * From a chunk's rows to the device's sums. Chunks come in order, and within one each component's rows do, so the bits
 * depend on the rows' numbers alone. The sums are cut into CPU_SHARDS parts that wait for their turn separately: one
 * thread may be at shard 0 of chunk 8 while another is at shard 2 of chunk 7.
 *
 * Entries go straight into the device's sums. Only what all components share (tied: the scatter) and what comes by
 * groups of components (rows of the dense engine) is summed by chunk first.
 */
#include <sched.h>
#include <string.h>

#include "cpu.h"

/* ---- entries ---- */

fgmm_status cpu_add_entry(fgmm_device *device, cpu_worker *worker, int64_t row, int32_t component, double share) {
    if (worker->n_entries == worker->entry_room) {
        int64_t room = worker->entry_room ? 2 * worker->entry_room : 2 * FGMM_CHUNK_ROWS;
        cpu_entry *entries = cpu_alloc(device, (size_t)room, sizeof *entries, "survivors of a chunk");
        cpu_entry *sorted = cpu_alloc(device, (size_t)room, sizeof *sorted, "survivors of a chunk");
        if (!entries || !sorted) {
            cpu_free(device, entries);
            cpu_free(device, sorted);
            return FGMM_ERR_MEMORY;
        }
        if (worker->n_entries) memcpy(entries, worker->entries, (size_t)worker->n_entries * sizeof *entries);
        cpu_free(device, worker->entries);
        cpu_free(device, worker->sorted);
        worker->entries = entries;
        worker->sorted = sorted;
        worker->entry_room = room;
    }
    worker->entries[worker->n_entries++] = (cpu_entry){(int32_t)row, component, share};
    return FGMM_OK;
}

/* Stable, by row and then by component: sorted holds them, starts where each component's begin. */
static void sort_by_component(const fgmm_device *device, cpu_worker *worker) {
    int64_t live = device->pack.live, n = worker->n_entries, at[FGMM_CHUNK_ROWS + 1] = {0};
    for (int64_t e = 0; e < n; e++) at[worker->entries[e].row + 1]++;
    for (int r = 0; r < FGMM_CHUNK_ROWS; r++) at[r + 1] += at[r];
    for (int64_t e = 0; e < n; e++) worker->sorted[at[worker->entries[e].row]++] = worker->entries[e];
    cpu_entry *by_row = worker->sorted;
    worker->sorted = worker->entries;
    worker->entries = by_row;
    int64_t *starts = worker->starts;
    memset(starts, 0, (size_t)(live + 1) * sizeof *starts);
    for (int64_t e = 0; e < n; e++) starts[by_row[e].component + 1]++;
    for (int64_t c = 0; c < live; c++) starts[c + 1] += starts[c];
    for (int64_t e = 0; e < n; e++) worker->sorted[starts[by_row[e].component]++] = by_row[e];
    for (int64_t c = live; c > 0; c--) starts[c] = starts[c - 1];
    starts[0] = 0;
}

/* t = x - c and w r t of up to CPU_RANK entries of one component, as rows of worker->rank. */
static void fill_rank(const fgmm_device *device, const cpu_call *call, cpu_worker *worker, int64_t first,
                      const cpu_entry *entries, int n) {
    int64_t d = device->params->d, strip = device->kernels->strip, stride = cpu_multiple(d, strip);
    double *t = worker->rank, *wt = worker->rank + CPU_RANK * stride;
    for (int e = 0; e < n; e++, t += stride, wt += stride) {
        const double *centre = device->params->sum_centres + device->pack.ids[entries[e].component] * d;
        cpu_widen(call->device, call->source, first + entries[e].row, worker->wide);
        device->kernels->deviate(worker->wide, centre, entries[e].share, d, t, wt);
    }
}

/* Rows from .. to-1 of matrix += scatter of entries. */
static void add_scatter(const cpu_call *call, cpu_worker *worker, int64_t first, const cpu_entry *entries, int64_t n,
                        int64_t from, int64_t to, double *matrix) {
    const fgmm_device *device = call->device;
    int64_t d = device->params->d, strip = device->kernels->strip, stride = cpu_multiple(d, strip);
    for (int64_t e = 0; e < n; e += CPU_RANK) {
        int count = (int)(n - e < CPU_RANK ? n - e : CPU_RANK);
        fill_rank(device, call, worker, first, entries + e, count);
        device->kernels->scatter(worker->rank, worker->rank + CPU_RANK * stride, stride, count, d, from, to, matrix);
    }
}

void cpu_sort_entries(cpu_call *call, cpu_worker *worker, int64_t first) {
    sort_by_component(call->device, worker);
    worker->first_row = first;
    if (call->device->params->covariance_type == FGMM_TIED)
        add_scatter(call, worker, first, worker->sorted, worker->n_entries, 0, call->device->params->d,
                    worker->sums.scatter);
}

/* Entries of packed component c. */
static void merge_entries(const cpu_call *call, cpu_worker *worker, int64_t c) {
    fgmm_device *device = call->device;
    const fgmm_params *params = device->params;
    int64_t d = params->d, k = device->pack.ids[c];
    int diag = device->pack.diag;
    double ignored = 0, *s2 = params->whitening ? &ignored : device->s2 + (diag ? k * d : k);
    for (int64_t e = worker->starts[c]; e < worker->starts[c + 1]; e++) {
        const cpu_entry *entry = &worker->sorted[e];
        cpu_widen(call->device, call->source, worker->first_row + entry->row, worker->wide);
        device->s0[k] += entry->share;
        device->kernels->accumulate(worker->wide, params->sum_centres + k * d, entry->share, d, diag,
                                    device->s1 + k * d, s2);
    }
}

/* Full: a shard is a range of rows of all matrices, so that few components are shared among threads too. */
static void merge_full(const cpu_call *call, cpu_worker *worker, int shard) {
    fgmm_device *device = call->device;
    int64_t d = device->params->d, rows = device->pack.live * d;
    int64_t from = shard * rows / CPU_SHARDS, to = (shard + 1) * rows / CPU_SHARDS;
    for (int64_t c = from / d; c * d < to; c++) {
        int64_t begin = worker->starts[c], n = worker->starts[c + 1] - begin;
        int64_t j0 = from > c * d ? from - c * d : 0, j1 = to < (c + 1) * d ? to - c * d : d;
        if (n)
            add_scatter(call, worker, worker->first_row, worker->sorted + begin, n, j0, j1,
                        device->s2 + device->pack.ids[c] * d * d);
    }
}

/* ---- rows of the dense engine ---- */

fgmm_status cpu_dense_sums(fgmm_device *device, cpu_sums *sums) {
    if (sums->dense_touched) return FGMM_OK;
    const char *what = "sums of the dense engine";
    size_t wide = (size_t)cpu_padded(device, device->pack.live), d = (size_t)device->params->d;
    if (!sums->dense_s0 && !(sums->dense_s0 = cpu_alloc(device, wide, sizeof(double), what))) return FGMM_ERR_MEMORY;
    if (!sums->dense_s1 && !(sums->dense_s1 = cpu_alloc(device, wide * d, sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    if (!sums->dense_s2 &&
        !(sums->dense_s2 = cpu_alloc(device, device->pack.diag ? wide * d : wide, sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    if (device->pack.whitened && !sums->dense_scatter &&
        !(sums->dense_scatter = cpu_alloc(device, d * d, sizeof(double), what)))
        return FGMM_ERR_MEMORY;
    sums->dense_touched = cpu_alloc(device, wide / (size_t)device->kernels->lanes + 1, 1, what);
    return sums->dense_touched ? FGMM_OK : FGMM_ERR_MEMORY;
}

/*
 * Tied: the scatter of a row that many components share would cost a matrix each. With u = x - c0 about one centre,
 * v_k = c_k - c0,
 *   sum_k r_k (x - c_k)(x - c_k)' = r u u' - sum_k (s1_k v_k' + v_k s1_k' + s0_k v_k v_k'),   r = sum_k r_k,
 * where s0_k and s1_k (about c_k) are the row's own; so the first term is summed by rows, the rest once in cpu_settle.
 */
static void add_common_scatter(cpu_worker *worker, const fgmm_device *device, const double *shares) {
    const fgmm_params *params = device->params;
    int64_t d = params->d, strip = device->kernels->strip, stride = cpu_multiple(d, strip);
    int64_t wide = cpu_padded(device, device->pack.live);
    double *t = worker->rank, *wt = worker->rank + CPU_RANK * stride;
    for (int b = 0; b < CPU_BATCH; b++) { /* one by one: which rows share a batch must not be seen in the sums */
        double total = 0;
        for (int64_t c = 0; c < wide; c++) total += shares[b * wide + c];
        if (total == 0) continue;
        device->kernels->deviate(worker->wide + b * d, params->centre, total, d, t, wt);
        device->kernels->scatter(t, wt, stride, 1, d, 0, d, worker->sums.dense_scatter);
    }
}

fgmm_status cpu_add_dense_rows(cpu_call *call, cpu_worker *worker, const double *shares) {
    fgmm_device *device = call->device;
    fgmm_status status = cpu_dense_sums(device, &worker->sums);
    if (status != FGMM_OK) return status;
    device->kernels->dense_accumulate(&device->pack, worker->wide, shares, &worker->sums);
    if (device->pack.whitened) add_common_scatter(worker, device, shares);
    return FGMM_OK;
}

/* Dense sums of one group of lanes. */
static void merge_group(fgmm_device *device, cpu_sums *sums, int64_t g) {
    const cpu_pack *pack = &device->pack;
    int64_t d = pack->d, lanes = device->kernels->lanes, per = pack->diag ? d : 1;
    if (!sums->dense_touched || !sums->dense_touched[g]) return;
    for (int64_t lane = 0; lane < lanes && g * lanes + lane < pack->live; lane++) {
        int64_t k = pack->ids[g * lanes + lane];
        device->s0[k] += sums->dense_s0[g * lanes + lane];
        if (device->dense_s0) device->dense_s0[k] += sums->dense_s0[g * lanes + lane];
        for (int64_t j = 0; j < d; j++) {
            double first = sums->dense_s1[(g * d + j) * lanes + lane];
            device->s1[k * d + j] += first;
            if (device->dense_s0) device->dense_s1[k * d + j] += first;
        }
        for (int64_t j = 0; j < per && !pack->whitened; j++)
            device->s2[k * per + j] += sums->dense_s2[(g * per + j) * lanes + lane];
    }
    sums->dense_touched[g] = 0;
    memset(sums->dense_s0 + g * lanes, 0, (size_t)lanes * sizeof(double));
    memset(sums->dense_s1 + g * d * lanes, 0, (size_t)(d * lanes) * sizeof(double));
    memset(sums->dense_s2 + g * per * lanes, 0, (size_t)(per * lanes) * sizeof(double));
}

/* ---- in turn ---- */

static void merge_rows(double *to, double *from, int64_t d, int shard) {
    int64_t begin = shard * d / CPU_SHARDS * d, end = (shard + 1) * d / CPU_SHARDS * d;
    for (int64_t i = begin; from && i < end; i++) {
        to[i] += from[i];
        from[i] = 0;
    }
}

static void merge_shard(cpu_call *call, cpu_worker *worker, int shard) {
    fgmm_device *device = call->device;
    const cpu_pack *pack = &device->pack;
    int64_t lanes = device->kernels->lanes, groups = cpu_padded(device, pack->live) / lanes, d = pack->d;
    for (int64_t g = shard * groups / CPU_SHARDS; g < (shard + 1) * groups / CPU_SHARDS; g++) {
        for (int64_t c = g * lanes; c < (g + 1) * lanes && c < pack->live; c++) merge_entries(call, worker, c);
        merge_group(device, &worker->sums, g);
    }
    cpu_product_merge(device, &worker->sums, shard);
    if (device->params->covariance_type == FGMM_FULL) merge_full(call, worker, shard);
    if (device->params->covariance_type != FGMM_TIED) return;
    merge_rows(device->s2, worker->sums.scatter, d, shard);
    if (pack->whitened) merge_rows(device->dense_scatter, worker->sums.dense_scatter, d, shard);
}

static void merge_scalars(fgmm_device *device, const cpu_worker *worker) {
    fgmm_sums *totals = &device->totals;
    totals->log_likelihood += worker->log_likelihood;
    totals->weight += worker->weight;
    totals->survivors += worker->survivors;
    totals->dense_rows += worker->dense_rows;
    totals->dropped += worker->dropped;
}

void cpu_merge(cpu_call *call, cpu_worker *worker, int64_t chunk) {
    int sound = atomic_load(&call->status) == FGMM_OK;
    for (int shard = 0; shard < CPU_SHARDS; shard++) {
        while (atomic_load_explicit(&call->turn[shard], memory_order_acquire) != chunk) sched_yield();
        if (shard == 0 && sound) merge_scalars(call->device, worker);
        if (call->accumulate && sound) merge_shard(call, worker, shard);
        atomic_store_explicit(&call->turn[shard], chunk + 1, memory_order_release);
    }
}

int cpu_settle(fgmm_device *device) {
    const double tolerance = 1e-7, rounding = 16 * 0x1p-53;
    const fgmm_params *params = device->params;
    int64_t k = params->k, d = params->d;
    int coarse = 0;
    if (!device->dense_scatter) return 0;
    for (int64_t i = 0; i < d * d; i++) device->s2[i] += device->dense_scatter[i];
    for (int64_t c = 0; c < k; c++) {
        const double *s1 = device->dense_s1 + c * d, s0 = device->dense_s0[c];
        if (s0 == 0) continue;
        for (int64_t i = 0; i < d; i++) {
            double v = params->sum_centres[c * d + i] - params->centre[i], a = s1[i] + s0 * v;
            for (int64_t j = 0; j <= i; j++) {
                double u = params->sum_centres[c * d + j] - params->centre[j];
                device->s2[i * d + j] -= a * u + v * s1[j];
            }
        }
    }
    for (int64_t i = 0; i < d; i++) {
        double about = device->dense_scatter[i * d + i];
        coarse |= rounding * about > tolerance * device->s2[i * d + i];
    }
    memset(device->dense_scatter, 0, (size_t)(d * d) * sizeof(double));
    memset(device->dense_s0, 0, (size_t)k * sizeof(double));
    memset(device->dense_s1, 0, (size_t)(k * d) * sizeof(double));
    return coarse;
}
