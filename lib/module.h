/* How lib/ reaches the OpenCL backend: a module loaded at run time, linked in, or left out. */
#ifndef FGMM_LIB_MODULE_H
#define FGMM_LIB_MODULE_H

#include "context.h"

/* The OpenCL backend's table, valid for the life of the process; or NULL, with one line in `why` (room for why_size
 * bytes; may be NULL). No OpenCL device is looked for. Safe from several threads. */
const fgmm_backend *fgmm_backend_opencl(fgmm_context *ctx, char *why, size_t why_size);

#endif
