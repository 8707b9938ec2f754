/* The loadable module's one exported symbol. */
#include "cl_backend.h"

__attribute__((visibility("default"))) const fgmm_backend *fgmm_backend_module(unsigned abi);

const fgmm_backend *fgmm_backend_module(unsigned abi) {
    return cl_backend_entry(abi);
}
