/* Programs of a device: built from embedded source, cached on disk, kept. Part of cl/ only. */
#ifndef FGMM_CL_PROGRAM_H
#define FGMM_CL_PROGRAM_H

#include "cl_runtime.h"

/* Every fgmm_device of this backend is the first member of one of these. */
typedef struct cl_opened {
    fgmm_device device;
    int unoptimised;    /* build everything with -cl-opt-disable: this compiler gave wrong numbers */
    int build_failed;   /* some kernel did not build, in any way */
    int cache_hits;     /* programs loaded from the disk cache */
    int programs_built; /* programs built from source */
    int programs_asked; /* programs of both kinds that were asked for before they were wanted */
} cl_opened;

static inline cl_opened *cl_opened_of(fgmm_device *device) {
    return (cl_opened *)device;
}

/* cl_kernel_get for a source that need not be among cl_sources. */
fgmm_status cl_kernel_from(fgmm_device *device, cl_kernel *out, const cl_source *source, const char *options,
                           const char *kernel);

/* cl_sm90a.c: whether a source has Hopper's own instructions behind their mark, and the program built from one made over with them. On
 * failure *program may be NULL, or one whose log says why. */
int cl_sm90a_marked(const char *source);
cl_int cl_sm90a(fgmm_device *device, cl_program *program, const char *options);

/* What some kernel did not do that failed so: "build" or "start", and NULL for another failure. It is forgotten with that, and its message: who asks goes without. */
const char *cl_refusal(fgmm_device *device, fgmm_status status);

/* Waits for the threads that build what was asked for, and lets go what nobody took. */
void cl_asked_end(fgmm_device *device);

/* Releases every kernel and program; the next cl_kernel_get builds or loads again. */
void cl_kernels_free(fgmm_device *device);

#endif
