/* Checked options, and the report of a call. */
#ifndef FGMM_LIB_REPORT_H
#define FGMM_LIB_REPORT_H

#include "estep.h"

typedef struct fgmm_report_scope {
    fgmm_context *ctx;
    fgmm_report *report; /* may be NULL */
    double began;
    long long bytes; /* held when the call began */
    int n_warnings;
} fgmm_report_scope;

/* Clears *report (keeping struct_size) and starts the clock and the memory count. */
fgmm_status fgmm_report_begin(fgmm_context *ctx, fgmm_report_scope *scope, fgmm_report *report);
/* What one pass saw. */
void fgmm_report_pass(fgmm_report_scope *scope, const fgmm_feed *feed, fgmm_engine engine, fgmm_precision asked,
                      const fgmm_pass_counts *counts);
void fgmm_report_warn(fgmm_report_scope *scope, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fills seconds and peaks, and clears a cancel that `status` says was obeyed. */
void fgmm_report_end(fgmm_report_scope *scope, fgmm_status status);

fgmm_status fgmm_compute_read(fgmm_context *ctx, fgmm_compute_options *to, const fgmm_compute_options *from);
/* 0: 1e-6; negative: 0. */
fgmm_status fgmm_reg_covar_read(fgmm_context *ctx, double given, double *out);

#endif
