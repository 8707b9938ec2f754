/**
 * flashgmm beside an application's own OpenCL code: a context over the caller's cl_context and queue, and rows in the
 * caller's cl_mem.
 *
 * The handles are declared as the pointers they are, so this header needs no OpenCL headers and
 * mixes with them in any order.
 */
#ifndef FLASHGMM_OPENCL_H
#define FLASHGMM_OPENCL_H

#include <flashgmm/flashgmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct _cl_context;
struct _cl_device_id;
struct _cl_command_queue;
struct _cl_mem;
struct _cl_event;

/** A context over the caller's OpenCL objects, which are retained until fgmm_context_free.
 *  @param queue an in-order queue of `device` in `context`; flashgmm enqueues on it from the calling
 *  thread only, and its calls return when their results are on the host. Rows of the host's are copied by a second queue, which
 *  flashgmm makes in `context`.
 *  @param options as for fgmm_context_create; `device` is ignored.
 *  @return FGMM_ERR_UNSUPPORTED in a build without OpenCL or for an out-of-order queue, FGMM_ERR_DEVICE. */
FGMM_API fgmm_status fgmm_context_create_opencl(fgmm_context **out, const fgmm_context_options *options,
                                                struct _cl_context *context, struct _cl_device_id *device,
                                                struct _cl_command_queue *queue);

/**  Rows in a buffer of the context's cl_context, used in place, retained until fgmm_rows_free.
 *  @param type not FGMM_F64. @param offset bytes to row 0. @param pitch bytes from row to row, 0 for packed; both
 *  multiples of the element size. @param wait_list events the first use waits for, retained; NULL if n_wait is 0.
 *  @return FGMM_ERR_INVALID if the buffer is too small, or this context has no OpenCL device. */
FGMM_API fgmm_status fgmm_rows_from_cl_mem(fgmm_context *ctx, fgmm_rows **out, struct _cl_mem *buffer, fgmm_dtype type,
                                           int64_t n, int64_t d, size_t offset, size_t pitch, unsigned n_wait,
                                           struct _cl_event *const *wait_list);

/** An event that completes when the last use of these rows so far has ended: after it the buffer may be written, unless the rows persist.
 *  @param event to be released by the caller. @return FGMM_ERR_INVALID if the rows are not a cl_mem. */
FGMM_API fgmm_status fgmm_rows_cl_event(fgmm_context *ctx, const fgmm_rows *rows, struct _cl_event **event);

#ifdef __cplusplus
}
#endif
#endif
