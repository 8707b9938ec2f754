/* The OpenCL backend's table, and opening with the known-answer test. */
#include "cl_backend.h"
#include "cl_devices.h"
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

static fgmm_status answer_again(fgmm_device *device) {
    cl_opened_of(device)->build_failed = device->group_refused = 0;
    cl_engine_free(device);
    cl_kernels_free(device);
    return cl_known_answer(device);
}

/* Without settling, which goes on where that was not the reason. */
static fgmm_status answer_unsettled(fgmm_device *device) {
    device->settle_from = INT64_MAX;
    fgmm_status status = answer_again(device);
    if (status == FGMM_OK)
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: all rows go through the screen: the kernels that spare them that fail the known-answer "
                         "test",
                         device->name);
    else
        device->settle_from = 0;
    return status;
}

/* The user's tiles are the first to be doubted. A kernel may be allowed smaller work-groups than its device. Wrong numbers are most often
 * an optimiser's doing. Each gets one more chance. */
static fgmm_status pass_known_answer(fgmm_device *device) {
    cl_opened *opened = cl_opened_of(device);
    fgmm_status status = cl_known_answer(device);
    if (status == FGMM_ERR_DEVICE && device->n_tuning) {
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: the user's tuning rows are left out: it fails the known-answer test with them",
                         device->name);
        cl_tuning_free(device);
        status = answer_again(device);
    }
    if (status == FGMM_ERR_DEVICE) status = answer_unsettled(device);
    while (status == FGMM_ERR_DEVICE && device->has_matrix) {
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: %s are left alone: their screen fails the known-answer test", device->name,
                         cl_matrix_name(device->has_matrix));
        device->has_matrix--;
        status = answer_again(device);
        if (status == FGMM_ERR_DEVICE && !device->has_matrix) status = answer_unsettled(device);
    }
    if (status == FGMM_ERR_DEVICE && (device->group_refused || opened->build_failed) && device->max_work_group > 64) {
        device->host.log(device->host.user, FGMM_LOG_DEBUG, "%s: work-groups of 64", device->name);
        device->max_work_group = 64;
        status = answer_again(device);
    }
    if (status != FGMM_ERR_DEVICE || opened->build_failed || opened->unoptimised) return status;
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s fails the known-answer test; building its kernels again without optimisation", device->name);
    opened->unoptimised = 1;
    return answer_again(device);
}

static void backend_close(fgmm_device *device) {
    if (!device) return;
    cl_engine_free(device);
    cl_device_close(device);
}

static fgmm_status backend_open(const fgmm_host *host, const fgmm_open_request *request, fgmm_device **out) {
    fgmm_device *device = NULL;
    *out = NULL;
    CL_TRY(cl_device_open(host, request, &device));
    fgmm_status status = pass_known_answer(device);
    if (status != FGMM_OK) {
        backend_close(device);
        return status;
    }
    /* Finding the reaches takes some of what the screen takes for so many rows a component. */
    if (!device->settle_from) device->settle_from = device->has_matrix ? 128 : 32;
    /* The test's own use is no one's concern. */
    clFinish(device->queue);
    cl_engine_free(device);
    device->peak_bytes = device->bytes;
    *out = device;
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
    .open = backend_open,
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
