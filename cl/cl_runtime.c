/* Failures in words, counted buffers, launches. */
#include "cl_runtime.h"

#include <inttypes.h>
#include <stdio.h>

#define NAMED(code)                                                                                                    \
    case code: return #code

static const char *code_name(cl_int code) {
    switch (code) {
        NAMED(CL_DEVICE_NOT_FOUND);
        NAMED(CL_DEVICE_NOT_AVAILABLE);
        NAMED(CL_COMPILER_NOT_AVAILABLE);
        NAMED(CL_MEM_OBJECT_ALLOCATION_FAILURE);
        NAMED(CL_OUT_OF_RESOURCES);
        NAMED(CL_OUT_OF_HOST_MEMORY);
        NAMED(CL_PROFILING_INFO_NOT_AVAILABLE);
        NAMED(CL_MEM_COPY_OVERLAP);
        NAMED(CL_BUILD_PROGRAM_FAILURE);
        NAMED(CL_MAP_FAILURE);
        NAMED(CL_MISALIGNED_SUB_BUFFER_OFFSET);
        NAMED(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST);
        NAMED(CL_INVALID_VALUE);
        NAMED(CL_INVALID_PLATFORM);
        NAMED(CL_INVALID_DEVICE);
        NAMED(CL_INVALID_CONTEXT);
        NAMED(CL_INVALID_QUEUE_PROPERTIES);
        NAMED(CL_INVALID_COMMAND_QUEUE);
        NAMED(CL_INVALID_MEM_OBJECT);
        NAMED(CL_INVALID_BINARY);
        NAMED(CL_INVALID_BUILD_OPTIONS);
        NAMED(CL_INVALID_PROGRAM);
        NAMED(CL_INVALID_PROGRAM_EXECUTABLE);
        NAMED(CL_INVALID_KERNEL_NAME);
        NAMED(CL_INVALID_KERNEL_DEFINITION);
        NAMED(CL_INVALID_KERNEL);
        NAMED(CL_INVALID_ARG_INDEX);
        NAMED(CL_INVALID_ARG_VALUE);
        NAMED(CL_INVALID_ARG_SIZE);
        NAMED(CL_INVALID_KERNEL_ARGS);
        NAMED(CL_INVALID_WORK_DIMENSION);
        NAMED(CL_INVALID_WORK_GROUP_SIZE);
        NAMED(CL_INVALID_WORK_ITEM_SIZE);
        NAMED(CL_INVALID_GLOBAL_OFFSET);
        NAMED(CL_INVALID_EVENT_WAIT_LIST);
        NAMED(CL_INVALID_EVENT);
        NAMED(CL_INVALID_OPERATION);
        NAMED(CL_INVALID_BUFFER_SIZE);
        NAMED(CL_INVALID_GLOBAL_WORK_SIZE);
        NAMED(CL_INVALID_PROPERTY);
    case -1001: return "CL_PLATFORM_NOT_FOUND_KHR";
    default: return "OpenCL error";
    }
}

fgmm_status cl_fail(fgmm_device *device, cl_int code, const char *what) {
    /* CL_OUT_OF_RESOURCES is left out: on most drivers it is a kernel's fault, not memory's end. */
    int memory =
        code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY || code == CL_INVALID_BUFFER_SIZE;
    return device->host.fail(device->host.user, memory ? FGMM_ERR_MEMORY : FGMM_ERR_DEVICE, "%s failed on %s: %s (%d)",
                             what, device->name, code_name(code), (int)code);
}

void cl_forget(fgmm_device *device) {
    if (device->host.forget) device->host.forget(device->host.user);
}

static void count_buffer(fgmm_device *device, size_t bytes) {
    device->bytes += (int64_t)bytes;
    if (device->peak_bytes < device->bytes) device->peak_bytes = device->bytes;
}

fgmm_status cl_buffer(fgmm_device *device, cl_mem *out, size_t bytes, const char *what) {
    const fgmm_host *host = &device->host;
    *out = NULL;
    if (bytes == 0) bytes = 16;
    if (bytes > device->max_alloc)
        return host->fail(host->user, FGMM_ERR_MEMORY, "%s: %zu bytes are more than one buffer holds on %s (%zu)", what,
                          bytes, device->name, device->max_alloc);
    if (bytes > (uint64_t)(device->limit_bytes - device->bytes)) cl_spares_free(device);
    if (bytes > (uint64_t)(device->limit_bytes - device->bytes))
        return host->fail(host->user, FGMM_ERR_MEMORY,
                          "%s: no room for %zu bytes on %s: %" PRId64 " of %" PRId64 " are taken", what, bytes,
                          device->name, device->bytes, device->limit_bytes);
    cl_int code = CL_SUCCESS;
    cl_mem buffer = clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, NULL, &code);
    if (code != CL_SUCCESS && clFinish(device->queue) == CL_SUCCESS) { /* what was released is then free */
        cl_spares_free(device);
        buffer = clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, NULL, &code);
    }
    if (code != CL_SUCCESS) return cl_fail(device, code, what);
    count_buffer(device, bytes);
    *out = buffer;
    return FGMM_OK;
}

cl_mem cl_optional_buffer(fgmm_device *device, size_t bytes) {
    cl_int code = CL_SUCCESS;
    if (bytes == 0 || bytes > device->max_alloc || bytes > (uint64_t)(device->limit_bytes - device->bytes)) return NULL;
    cl_mem buffer = clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, NULL, &code);
    if (code != CL_SUCCESS) return NULL;
    count_buffer(device, bytes);
    return buffer;
}

void cl_buffer_free(fgmm_device *device, cl_mem buffer) {
    if (!buffer) return;
    size_t bytes = 0;
    if (clGetMemObjectInfo(buffer, CL_MEM_SIZE, sizeof bytes, &bytes, NULL) == CL_SUCCESS)
        device->bytes -= (int64_t)bytes;
    clReleaseMemObject(buffer);
}

fgmm_status cl_run(fgmm_device *device, cl_kernel kernel, const char *what, cl_uint dimensions, const size_t *global,
                   const size_t *local, const cl_arg *arguments, int count) {
    if (device->asking) return FGMM_OK;
    for (int i = 0; i < count; i++) {
        cl_int code = clSetKernelArg(kernel, (cl_uint)i, arguments[i].size, arguments[i].value);
        if (code != CL_SUCCESS) {
            char where[128];
            snprintf(where, sizeof where, "%s, argument %d,", what, i);
            return cl_fail(device, code, where);
        }
    }
    cl_int code = clEnqueueNDRangeKernel(device->queue, kernel, dimensions, NULL, global, local, 0, NULL, NULL);
    if (code == CL_INVALID_WORK_GROUP_SIZE || code == CL_OUT_OF_RESOURCES) device->group_refused = 1;
    return code == CL_SUCCESS ? FGMM_OK : cl_fail(device, code, what);
}
