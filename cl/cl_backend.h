/* The one way into this folder. */
#ifndef FGMM_CL_BACKEND_H
#define FGMM_CL_BACKEND_H

#include "../lib/backend.h"

/* The OpenCL backend's table, or NULL if `abi` is not the one it was built for. */
const fgmm_backend *cl_backend_entry(unsigned abi);

#endif
