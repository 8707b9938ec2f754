#include "report.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Of the lines in a report the last is kept free for how many more there were. */
enum { WARNINGS_KEPT = 7 };

fgmm_status fgmm_report_begin(fgmm_context *ctx, fgmm_report_scope *scope, fgmm_report *report) {
    *scope = (fgmm_report_scope){.ctx = ctx, .report = report, .began = fgmm_now()};
    if (report) {
        if (report->struct_size != sizeof *report)
            return fgmm_fail(ctx, FGMM_ERR_INVALID, "report: struct_size is not set: use FGMM_REPORT_INIT");
        *report = (fgmm_report)FGMM_REPORT_INIT;
        report->lower_bound = NAN;
    }
    scope->bytes = atomic_load(&ctx->bytes);
    atomic_store(&ctx->peak_bytes, scope->bytes);
    return FGMM_OK;
}

void fgmm_report_pass(fgmm_report_scope *scope, const fgmm_feed *feed, fgmm_engine engine, fgmm_precision asked,
                      const fgmm_pass_counts *counts) {
    fgmm_report *report = scope->report;
    if (!report) return;
    const fgmm_target *target = fgmm_feed_target(feed);
    fgmm_device_facts facts;
    target->backend->describe(target->device, &facts);
    snprintf(report->device, sizeof report->device, "%s", target->label);
    report->n_skipped = fgmm_feed_skipped(feed);
    report->n_rows = fgmm_feed_rows(feed) - report->n_skipped;
    report->precision = counts ? asked : fgmm_row_precision(asked);
    /* A screen that could not be trusted leaves its rows to the dense engine. */
    report->engine = counts && counts->dense_fraction > 0.5 ? FGMM_ENGINE_DENSE : engine;
    report->peak_device_bytes = facts.peak_bytes;
    if (counts) {
        report->survivors_per_row = counts->survivors_per_row;
        report->dropped_mass = counts->dropped_mass;
    }
    if (report->precision != asked) fgmm_report_warn(scope, "precision fast is for fits: ran exact");
}

void fgmm_report_warn(fgmm_report_scope *scope, const char *format, ...) {
    char line[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    int at = scope->n_warnings++;
    if (at >= WARNINGS_KEPT) return;
    fgmm_log(scope->ctx, FGMM_LOG_WARNING, "%s", line);
    if (scope->report) memcpy(scope->report->warnings[at], line, sizeof line);
}

void fgmm_report_end(fgmm_report_scope *scope, fgmm_status status) {
    if (status == FGMM_ERR_CANCELLED) atomic_store(&scope->ctx->cancelled, 0);
    int unsaid = scope->n_warnings - WARNINGS_KEPT;
    char line[160];
    snprintf(line, sizeof line, "and %d more warnings like these", unsaid);
    if (unsaid > 0) fgmm_log(scope->ctx, FGMM_LOG_WARNING, "%s", line);
    if (!scope->report) return;
    scope->report->n_warnings = scope->n_warnings;
    if (unsaid > 0) memcpy(scope->report->warnings[WARNINGS_KEPT], line, sizeof line);
    scope->report->seconds = fgmm_now() - scope->began;
    scope->report->peak_host_bytes = atomic_load(&scope->ctx->peak_bytes) - scope->bytes;
}

fgmm_status fgmm_compute_read(fgmm_context *ctx, fgmm_compute_options *to, const fgmm_compute_options *from) {
    *to = (fgmm_compute_options)FGMM_COMPUTE_OPTIONS_INIT;
    if (!from) return FGMM_OK;
    /* Inside zeroed fit options struct_size is 0 and so is everything else. */
    if (from->struct_size != 0 && from->struct_size != sizeof *to)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "compute options: struct_size is not set: use FGMM_COMPUTE_OPTIONS_INIT");
    *to = *from;
    if ((unsigned)to->precision > FGMM_DOUBLE)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "precision %d is unknown", (int)to->precision);
    if ((unsigned)to->engine > FGMM_ENGINE_DENSE)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "engine %d is unknown", (int)to->engine);
    if ((unsigned)to->nonfinite > FGMM_NONFINITE_SKIP)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "nonfinite %d is unknown", (int)to->nonfinite);
    if (to->block_rows < 0) return fgmm_fail(ctx, FGMM_ERR_INVALID, "block_rows is negative");
    return FGMM_OK;
}

fgmm_status fgmm_reg_covar_read(fgmm_context *ctx, double given, double *out) {
    if (!isfinite(given)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "reg_covar = %g must be finite", given);
    *out = given < 0 ? 0 : given == 0 ? 1e-6 : given;
    return FGMM_OK;
}
