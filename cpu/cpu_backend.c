/* The CPU backend's table: opening, blocks, moments; the E-step is in cpu_estep.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../lib/convert.h"
#include "cpu.h"

/* ---- memory ---- */

void *cpu_alloc(fgmm_device *device, size_t count, size_t size, const char *what) {
    void *pointer = count && size > SIZE_MAX / count ? NULL : device->host.alloc(device->host.user, count * size);
    if (!pointer) {
        device->host.fail(device->host.user, FGMM_ERR_MEMORY, "no memory for %s (%zu x %zu bytes)", what, count, size);
        return NULL;
    }
    return memset(pointer, 0, count * size);
}

void cpu_free(fgmm_device *device, void *pointer) {
    device->host.free(device->host.user, pointer);
}

/* ---- devices ---- */

static int default_threads(int asked) {
#ifdef _OPENMP
    return asked > 0 ? asked : omp_get_max_threads();
#else
    (void)asked;
    return 1;
#endif
}

static const char *best_isa(void) {
    for (int i = 0; cpu_kernel_tables[i]; i++)
        if (cpu_isa_supported(cpu_kernel_tables[i]->name)) return cpu_kernel_tables[i]->name;
    return "scalar";
}

static fgmm_status cpu_list(const fgmm_host *host, fgmm_device_info *infos, int cap, int *n, char *why,
                            size_t why_size) {
    (void)why;
    (void)why_size;
    *n = 0;
    if (cap < 1) return FGMM_OK;
    fgmm_device_info *info = &infos[0];
    memset(info, 0, sizeof *info);
    snprintf(info->id, sizeof info->id, "cpu");
    snprintf(info->kind, sizeof info->kind, "cpu");
    snprintf(info->name, sizeof info->name, "%s", best_isa());
    info->native = info->usable = info->fp64 = 1;
    info->compute_units = default_threads(host->threads);
    info->memory_bytes = info->max_alloc_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    *n = 1;
    return FGMM_OK;
}

static fgmm_status find_isa(const fgmm_host *host, const char *selector, fgmm_device *device) {
    const char *name = selector ? selector : best_isa();
    if (strcmp(name, "scalar") == 0) {
        device->isa = "scalar";
        return FGMM_OK;
    }
    char known[128] = "scalar";
    for (int i = 0; cpu_kernel_tables[i]; i++) {
        const char *isa = cpu_kernel_tables[i]->name;
        if (strcmp(name, isa) == 0) {
            if (!cpu_isa_supported(isa))
                return host->fail(host->user, FGMM_ERR_DEVICE, "this CPU does not have the instruction set \"%s\"",
                                  isa);
            device->kernels = cpu_kernel_tables[i];
            device->isa = isa;
            return FGMM_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, ", %s", isa);
    }
    return host->fail(host->user, FGMM_ERR_INVALID, "unknown CPU instruction set \"%s\": this build has %s", name,
                      known);
}

static fgmm_status cpu_open(const fgmm_host *host, const fgmm_open_request *request, fgmm_device **out) {
    fgmm_device found = {.host = *host};
    fgmm_status status = find_isa(host, request->selector, &found);
    if (status != FGMM_OK) return status;
    found.threads = found.kernels ? default_threads(host->threads) : 1;
    fgmm_device *device = host->alloc(host->user, sizeof *device);
    if (!device) return host->fail(host->user, FGMM_ERR_MEMORY, "no memory for a device");
    *device = found;
    *out = device;
    return FGMM_OK;
}

static void cpu_end(fgmm_device *device) {
    if (device->kernels) {
        cpu_workers_free(device);
        cpu_pack_free(device);
    }
    cpu_free(device, device->s0);
    cpu_free(device, device->s1);
    cpu_free(device, device->s2);
    cpu_free(device, device->dense_s0);
    cpu_free(device, device->dense_s1);
    cpu_free(device, device->dense_scatter);
    cpu_free(device, device->product_s);
    device->product_s = NULL;
    device->s0 = device->s1 = device->s2 = device->dense_s0 = device->dense_s1 = device->dense_scatter = NULL;
    device->params = NULL;
}

static void cpu_close(fgmm_device *device) {
    cpu_end(device);
    cpu_free(device, device);
}

static void cpu_describe(const fgmm_device *device, fgmm_device_facts *out) {
    *out = (fgmm_device_facts){.zero_copy = 1, .sum_epsilon = 0x1p-53, .has_double = 1};
    snprintf(out->name, sizeof out->name, "%s", device->isa);
}

/* ---- blocks ---- */

static fgmm_status cpu_put(fgmm_device *device, const fgmm_block_source *source, fgmm_block **out) {
    fgmm_block *block = cpu_alloc(device, 1, sizeof *block, "a block");
    if (!block) return FGMM_ERR_MEMORY;
    block->source = *source;
    *out = block;
    return FGMM_OK;
}

static fgmm_status cpu_wait(fgmm_device *device, fgmm_block *block) {
    (void)device;
    (void)block;
    return FGMM_OK;
}

static void cpu_release(fgmm_device *device, fgmm_block *block) {
    cpu_free(device, block);
}

static fgmm_status cpu_gather(fgmm_device *device, fgmm_block *block, const int64_t *rows, int64_t count, double *out) {
    (void)device;
    for (int64_t i = 0; i < count; i++)
        fgmm_widen(block->source.type, cpu_row(&block->source, rows[i]), block->source.d, out + i * block->source.d);
    return FGMM_OK;
}

/* ---- moments ---- */

/* One chunk: sums of its finite rows. part is [2 D]: sum, square. */
static void chunk_moments(const fgmm_block_source *source, const double *centre, int64_t chunk, double *x, double *part,
                          fgmm_moments *found) {
    int64_t d = source->d, first = chunk * FGMM_CHUNK_ROWS, last = first + FGMM_CHUNK_ROWS;
    if (last > source->n) last = source->n;
    memset(part, 0, (size_t)(2 * d) * sizeof *part);
    *found = (fgmm_moments){.bad_row = -1};
    for (int64_t i = first; i < last; i++) {
        fgmm_widen(source->type, cpu_row(source, i), d, x);
        int64_t bad = -1;
        double any = 0;
        for (int64_t j = 0; j < d; j++) any += x[j] * 0;
        for (int64_t j = 0; any != 0 && j < d && bad < 0; j++)
            if (!isfinite(x[j])) bad = j;
        if (bad >= 0) {
            if (found->bad_row < 0) {
                found->bad_row = source->first_row + i;
                found->bad_column = bad;
            }
            found->bad_count++;
            continue;
        }
        double weight = source->weights ? source->weights[i] : 1;
        found->weight += weight;
        for (int64_t j = 0; j < d && centre; j++) {
            double t = x[j] - centre[j];
            part[j] += weight * t;
            part[d + j] += weight * t * t;
        }
    }
}

static fgmm_status cpu_moments(fgmm_device *device, fgmm_block *block, const double *centre, fgmm_moments *io) {
    const fgmm_block_source *source = &block->source;
    int64_t d = source->d, chunks = (source->n + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS;
    int threads = source->n * d < 1000000 ? 1 : chunks < device->threads ? (int)chunks : device->threads;
    double *room = cpu_alloc(device, (size_t)threads * (size_t)(3 * d), sizeof *room, "column sums");
    if (!room) return FGMM_ERR_MEMORY;
#pragma omp parallel for ordered schedule(static, 1) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
#ifdef _OPENMP
        double *x = room + omp_get_thread_num() * 3 * d;
#else
        double *x = room;
#endif
        fgmm_moments found;
        chunk_moments(source, centre, chunk, x, x + d, &found);
#pragma omp ordered
        {
            io->weight += found.weight;
            io->bad_count += found.bad_count;
            if (io->bad_row < 0 && found.bad_row >= 0) {
                io->bad_row = found.bad_row;
                io->bad_column = found.bad_column;
            }
            for (int64_t j = 0; j < d; j++) {
                io->sum[j] += x[d + j];
                io->square[j] += x[2 * d + j];
            }
        }
    }
    cpu_free(device, room);
    return FGMM_OK;
}

/* ---- the E-step ---- */

static fgmm_status cpu_begin(fgmm_device *device, const fgmm_params *params) {
    cpu_end(device);
    int64_t k = params->k, d = params->d;
    device->params = params;
    device->log_cut = params->cut > 0 ? log(params->cut) : -INFINITY;
    switch (params->covariance_type) {
    case FGMM_SPHERICAL: device->s2_size = k; break;
    case FGMM_DIAG: device->s2_size = k * d; break;
    case FGMM_TIED: device->s2_size = d * d; break;
    case FGMM_FULL: device->s2_size = k * d * d; break;
    }
    device->totals = (fgmm_sums){0};
    if (!(device->s0 = cpu_alloc(device, (size_t)k, sizeof(double), "sums"))) return FGMM_ERR_MEMORY;
    if (!(device->s1 = cpu_alloc(device, (size_t)(k * d), sizeof(double), "sums"))) return FGMM_ERR_MEMORY;
    if (!(device->s2 = cpu_alloc(device, (size_t)device->s2_size, sizeof(double), "sums"))) return FGMM_ERR_MEMORY;
    if (!device->kernels) return FGMM_OK;
    fgmm_status status = cpu_pack_begin(device);
    if (status != FGMM_OK || !device->pack.whitened) return status;
    if (!(device->dense_s0 = cpu_alloc(device, (size_t)k, sizeof(double), "sums"))) return FGMM_ERR_MEMORY;
    if (!(device->dense_s1 = cpu_alloc(device, (size_t)(k * d), sizeof(double), "sums"))) return FGMM_ERR_MEMORY;
    device->dense_scatter = cpu_alloc(device, (size_t)(d * d), sizeof(double), "sums");
    return device->dense_scatter ? FGMM_OK : FGMM_ERR_MEMORY;
}

static fgmm_status run_rows(fgmm_device *device, fgmm_block *block, int accumulate, const cpu_outputs *out) {
    return device->kernels ? cpu_rows(device, block, accumulate, out)
                           : cpu_reference_rows(device, block, accumulate, out);
}

static fgmm_status cpu_estep(fgmm_device *device, fgmm_block *block, double *log_prob) {
    cpu_outputs out = {.log_prob = log_prob};
    return run_rows(device, block, 1, &out);
}

static fgmm_status cpu_assign(fgmm_device *device, fgmm_block *block, int m, int32_t *ids, float *resp,
                              double *log_prob) {
    cpu_outputs out = {.log_prob = log_prob, .m = m, .ids = ids, .resp = resp};
    return run_rows(device, block, 0, &out);
}

static fgmm_status cpu_proba(fgmm_device *device, fgmm_block *block, float *resp, double *log_prob) {
    cpu_outputs out = {.log_prob = log_prob, .proba = resp};
    return run_rows(device, block, 0, &out);
}

static fgmm_status cpu_collect(fgmm_device *device, fgmm_sums *out) {
    int64_t k = device->params->k, d = device->params->d;
    if (cpu_settle(device)) out->imprecise = 1;
    if (cpu_product_settle(device)) out->imprecise = 1;
    for (int64_t i = 0; i < k; i++) out->s0[i] += device->s0[i];
    for (int64_t i = 0; i < k * d; i++) out->s1[i] += device->s1[i];
    for (int64_t i = 0; i < device->s2_size; i++) out->s2[i] += device->s2[i];
    out->log_likelihood += device->totals.log_likelihood;
    out->weight += device->totals.weight;
    out->survivors += device->totals.survivors;
    out->dense_rows += device->totals.dense_rows;
    out->dropped += device->totals.dropped;
    return FGMM_OK;
}

static void cpu_scan(const fgmm_device *device, const fgmm_scan *scan) {
    if (device->kernels)
        device->kernels->scan(scan);
    else
        cpu_reference_scan(scan);
}

const fgmm_backend fgmm_backend_cpu = {.abi = FGMM_BACKEND_ABI,
                                       .name = "cpu",
                                       .list = cpu_list,
                                       .open = cpu_open,
                                       .close = cpu_close,
                                       .describe = cpu_describe,
                                       .put = cpu_put,
                                       .wait = cpu_wait,
                                       .release = cpu_release,
                                       .moments = cpu_moments,
                                       .gather = cpu_gather,
                                       .begin = cpu_begin,
                                       .estep = cpu_estep,
                                       .collect = cpu_collect,
                                       .assign = cpu_assign,
                                       .proba = cpu_proba,
                                       .scan = cpu_scan,
                                       .end = cpu_end};
