#include "bench_opencl.h"

#include <stdio.h>
#include <string.h>

enum { PLATFORMS_MAX = 16, DEVICES_MAX = 64 };

int bench_opencl_failed(cl_int code, const char *what) {
    if (code != CL_SUCCESS) fprintf(stderr, "flashgmm bench: %s failed (%d)\n", what, (int)code);
    return code != CL_SUCCESS;
}

static cl_device_id find_device(const char *name, int whole) {
    cl_platform_id platforms[PLATFORMS_MAX];
    cl_device_id devices[DEVICES_MAX];
    cl_uint n_platforms = 0, n_devices = 0;
    if (clGetPlatformIDs(PLATFORMS_MAX, platforms, &n_platforms) != CL_SUCCESS) return NULL;
    for (cl_uint p = 0; p < n_platforms && p < PLATFORMS_MAX; p++) {
        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, DEVICES_MAX, devices, &n_devices) != CL_SUCCESS) continue;
        for (cl_uint i = 0; i < n_devices && i < DEVICES_MAX; i++) {
            char found[256] = "";
            clGetDeviceInfo(devices[i], CL_DEVICE_NAME, sizeof found - 1, found, NULL);
            if (whole ? strcmp(found, name) == 0 : strstr(found, name) != NULL) return devices[i];
        }
    }
    return NULL;
}

int bench_opencl_open(const char *name, int whole, cl_device_id *device, cl_context *context, cl_command_queue *queue) {
    cl_int code = CL_SUCCESS;
    *device = find_device(name, whole);
    if (!*device) return bench_opencl_failed(CL_DEVICE_NOT_FOUND, "finding the device");
    *context = clCreateContext(NULL, 1, device, NULL, NULL, &code);
    if (bench_opencl_failed(code, "clCreateContext")) return 1;
    *queue = clCreateCommandQueue(*context, *device, 0, &code);
    return bench_opencl_failed(code, "clCreateCommandQueue");
}
