/* The OpenCL backend's table. */
#include "cl_backend.h"
#include "cl_devices.h"
#include "cl_engine.h"
#include "cl_program.h"
#include "cl_tuning.h"

#include <stdio.h>
#include <string.h>

static fgmm_status backend_list(const fgmm_host *host, fgmm_device_info *infos, int cap, int *n, char *why_none,
                                size_t why_size) {
    cl_found *found = NULL;
    char why[256] = "";
    int count = 0;
    *n = 0;
    CL_TRY(cl_devices_find(host, &found, &count, why, sizeof why));
    int chosen = cl_devices_choose(found, count, NULL, 0, NULL, 0);
    for (int i = 0; i < count && i < cap; i++) {
        infos[i] = found[i].info;
        infos[i].is_default = i == chosen;
        *n = i + 1;
    }
    if (why_none && why_size) snprintf(why_none, why_size, "%s", why);
    host->free(host->user, found);
    return FGMM_OK;
}

static void backend_close(fgmm_device *device) {
    if (!device) return;
    cl_engine_free(device);
    cl_device_close(device);
}

static fgmm_status backend_trust(fgmm_device *device, int covariance, int64_t d, fgmm_dtype type) {
    int diag = covariance == FGMM_DIAG;
    fgmm_dtype stored = cl_stored_type(type);
    CL_TRY(cl_trust(device, diag ? CL_CASE_DIAGONAL : CL_CASE_SPHERICAL, d, stored));
    if (!device->failed) return FGMM_OK;
    CL_TRY(cl_trust(device, cl_rows_case(diag), d, stored));
    CL_TRY(cl_trust(device, cl_dense_case(diag), d, stored));
    device->failed = 0;
    return FGMM_OK;
}

/* What is freed counts once the work with it has ended. */
static void backend_trim(fgmm_device *device) {
    clFinish(device->copies);
    clFinish(device->queue);
    cl_spares_free(device);
    cl_engine_free(device);
}

static void backend_describe(const fgmm_device *device, fgmm_device_facts *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", device->name);
    out->memory_bytes = device->limit_bytes;
    int64_t block = device->max_alloc > INT64_MAX ? INT64_MAX : (int64_t)device->max_alloc;
    if (block > device->limit_bytes) block = device->limit_bytes;
    out->max_block_bytes = block & ~(int64_t)255;
    out->peak_bytes = device->peak_bytes;
    out->sum_epsilon = 0x1p-24;
    out->stages = !device->unified;
    out->copy_seconds = device->copy_seconds;
}

static void let_go(void *cl_mem_object, void *const *events, unsigned count) {
    for (unsigned i = 0; i < count; i++) clReleaseEvent((cl_event)events[i]);
    clReleaseMemObject((cl_mem)cl_mem_object);
}

static fgmm_status backend_share(fgmm_device *device, int keep, void *cl_mem_object, size_t bytes, void *const *events,
                                 unsigned count) {
    const fgmm_host *host = &device->host;
    cl_mem buffer = cl_mem_object;
    cl_context context = NULL;
    cl_mem_object_type type = 0;
    cl_mem_flags flags = 0;
    size_t size = 0;
    if (!keep) {
        let_go(buffer, events, count);
        return FGMM_OK;
    }
    if (clGetMemObjectInfo(buffer, CL_MEM_TYPE, sizeof type, &type, NULL) != CL_SUCCESS ||
        clGetMemObjectInfo(buffer, CL_MEM_CONTEXT, sizeof context, &context, NULL) != CL_SUCCESS ||
        clGetMemObjectInfo(buffer, CL_MEM_FLAGS, sizeof flags, &flags, NULL) != CL_SUCCESS ||
        clGetMemObjectInfo(buffer, CL_MEM_SIZE, sizeof size, &size, NULL) != CL_SUCCESS || type != CL_MEM_OBJECT_BUFFER)
        return host->fail(host->user, FGMM_ERR_INVALID, "the rows' cl_mem is not an OpenCL buffer");
    if (context != device->context)
        return host->fail(host->user, FGMM_ERR_INVALID, "the rows' buffer belongs to another OpenCL context");
    if (flags & CL_MEM_WRITE_ONLY)
        return host->fail(host->user, FGMM_ERR_INVALID, "the rows' buffer is CL_MEM_WRITE_ONLY and cannot be read");
    if (size < bytes)
        return host->fail(host->user, FGMM_ERR_INVALID, "the rows take %zu bytes and their buffer has %zu", bytes,
                          size);
    CL_CHECK(device, clRetainMemObject(buffer), "retaining the rows' buffer");
    for (unsigned i = 0; i < count; i++) {
        if (clRetainEvent((cl_event)events[i]) == CL_SUCCESS) continue;
        let_go(buffer, events, i);
        return host->fail(host->user, FGMM_ERR_INVALID, "event %u of the rows' wait list is not an OpenCL event", i);
    }
    return FGMM_OK;
}

/* The queue is in order, so a marker comes after every use so far. */
static fgmm_status backend_last_use(fgmm_device *device, void **event) {
    cl_event marker = NULL;
    CL_CHECK(device, clEnqueueMarkerWithWaitList(device->queue, 0, NULL, &marker), "marking the last use of a buffer");
    *event = marker;
    cl_int code = clFlush(device->queue);
    if (code != CL_SUCCESS) {
        clReleaseEvent(marker);
        *event = NULL;
        return cl_fail(device, code, "marking the last use of a buffer");
    }
    return FGMM_OK;
}

static const fgmm_backend opencl_backend = {
    .abi = FGMM_BACKEND_ABI,
    .name = "opencl",
    .list = backend_list,
    .open = cl_device_open,
    .trust = backend_trust,
    .close = backend_close,
    .describe = backend_describe,
    .stage = cl_stage,
    .unstage = cl_unstage,
    .pin = cl_pin_rows,
    .unpin = cl_unpin_rows,
    .put = cl_put,
    .wait = cl_wait,
    .release = cl_release,
    .moments = cl_moments,
    .gather = cl_gather,
    .begin = cl_begin,
    .estep = cl_estep,
    .collect = cl_collect,
    .assign = cl_assign,
    .score = cl_score,
    .proba = cl_proba,
    .distances = cl_distances,
    .lists_put = cl_lists_put,
    .lists_search = cl_lists_search,
    .lists_release = cl_lists_release,
    .end = cl_transfer_end,
    .trim = backend_trim,
    .share = backend_share,
    .last_use = backend_last_use,
};

const fgmm_backend *cl_backend_entry(unsigned abi) {
    return abi == FGMM_BACKEND_ABI ? &opencl_backend : NULL;
}
