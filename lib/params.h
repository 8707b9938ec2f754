#ifndef FGMM_LIB_PARAMS_H
#define FGMM_LIB_PARAMS_H

#include "model.h"

/* The backend's view of a model, with the arrays it points to. */
typedef struct fgmm_prepared {
    fgmm_params params;
    double *arrays; /* one allocation behind all of params' own arrays */
} fgmm_prepared;

/* Prepares an E-step under model. params.sum_centres is the model's means; cut, precision, engine and hard are the
 * caller's to set. The model must outlive the result. */
fgmm_status fgmm_prepare(fgmm_context *ctx, fgmm_prepared *out, const fgmm_model *model);
void fgmm_prepared_free(fgmm_context *ctx, fgmm_prepared *prepared);

#endif
