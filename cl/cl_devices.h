/* Devices of this machine: what there is, which one to take, opening it. Part of cl/ only. */
#ifndef FGMM_CL_DEVICES_H
#define FGMM_CL_DEVICES_H

#include "cl_runtime.h"

/* A device seen on this machine. */
typedef struct cl_found {
    cl_platform_id platform;
    cl_device_id id;
    char platform_name[128];
    int order[4]; /* the larger, the better, first entry first: kind, discrete, vendor's own platform, speed */
    fgmm_device_info info;
} cl_found;

/* Every device of every platform, in the loader's order; *out is freed with host->free. None at all is no failure:
 * *count is then 0 and `why` says why. */
fgmm_status cl_devices_find(const fgmm_host *host, cl_found **out, int *count, char *why, size_t why_size);

/* Index of the device that a selector (NULL, "NAME" or "P.D") and any_kind ask for, or -1 and a line in `why`. */
int cl_devices_choose(const cl_found *found, int count, const char *selector, int any_kind, char *why, size_t why_size);

/* Opens what is asked for, without the known-answer test. */
fgmm_status cl_device_open(const fgmm_host *host, const fgmm_open_request *request, fgmm_device **out);
void cl_device_close(fgmm_device *device);

#endif
