/* How to seed the k-means of a coarse quantizer. */
#ifndef FGMM_LIB_IVF_START_H
#define FGMM_LIB_IVF_START_H

#include "nearest.h"

/* Of k-means++ and random rows, the one whose lists ask for fewer distances at recall .9 in a trial on a sample of the
 * rows. @param rows of length 1 where the metric is angular. @param constraints of lib/constraints.h. */
fgmm_status fgmm_ivf_start(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_ivf_train_options *options,
                           unsigned constraints, fgmm_init *out);

#endif
