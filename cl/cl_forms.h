/* Parameters as the device takes them, formed on the host: cl_forms.c, for cl_params.c alone. */
#ifndef FGMM_CL_FORMS_H
#define FGMM_CL_FORMS_H

#include "cl_engine.h"

/* Values [K, D] in two floats each: upper and lower, in pinned memory. */
typedef struct cl_split_values {
    const double *values, *frame;
    float *hi, *lo;
    float *off; /* [K] of means, or NULL: e of reach.cl */
} cl_split_values;

/* cl_ahead.c: what they leave of the values, to engine->ahead.rest. */
fgmm_status cl_ahead_send_rest(fgmm_device *device, const cl_split_values *split);

void cl_split_all(fgmm_device *device, const cl_split_values *split);
/* The screens' form of all components, and engine->screen_totals. @param frame of the block, or NULL @param split formed with them; or NULL
 * @param constants [kp, 4] of the f32 screen, or NULL @param rows of engine->forms, with matrix units' constants in engine->multipliers and tiled; or
 * NULL: of matrix units the totals then say nothing */
fgmm_status cl_form_components(fgmm_device *device, const double *frame, const cl_split_values *split, float *constants,
                               float *rows[2]);
/* What components have in common: bounds of the f32 screen, and what engine->matrix holds. Return whether a screen with these may be trusted. */
int cl_screen_bounds(cl_engine *engine);
int cl_matrix_bounds(cl_engine *engine);

#endif
