/* What the benchmarks that have OpenCL objects of their own share. */
#ifndef FLASHGMM_TOOLS_BENCH_OPENCL_H
#define FLASHGMM_TOOLS_BENCH_OPENCL_H

#include "cl_runtime.h"

/* Says what failed unless code is success. */
int bench_opencl_failed(cl_int code, const char *what);

/* A context and a queue on the first device of this name, or whose name holds it. @param whole 1: of this name. @return 1 after a message */
int bench_opencl_open(const char *name, int whole, cl_device_id *device, cl_context *context, cl_command_queue *queue);

#endif
