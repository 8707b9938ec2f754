#include "persist.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "module.h"
#include "rows.h"

/* "auto" looks for a GPU when a call takes more multiply-adds than this: below, opening OpenCL (22-500 ms) and moving
 * the rows cost more than the CPU needs. */
static const double auto_work = 5e10;

fgmm_status fgmm_dispatch_open(fgmm_context *ctx, fgmm_target *target, const fgmm_backend *backend,
                               const fgmm_open_request *request) {
    fgmm_host host = ctx->host;
    FGMM_TRY(backend->open(&host, request, &target->device));
    target->backend = backend;
    backend->describe(target->device, &target->facts);
    if (strcmp(backend->name, "cpu") == 0)
        snprintf(target->label, sizeof target->label, "cpu (%s)", target->facts.name);
    else
        snprintf(target->label, sizeof target->label, "%s: %s", backend->name, target->facts.name);
    return FGMM_OK;
}

void fgmm_dispatch_close(fgmm_target *target) {
    if (target->backend) target->backend->close(target->device);
    *target = (fgmm_target){0};
}

fgmm_status fgmm_dispatch_cpu(fgmm_context *ctx) {
    if (ctx->cpu.backend) return FGMM_OK;
    fgmm_open_request request = {.selector = ctx->cpu_isa[0] ? ctx->cpu_isa : NULL};
    return fgmm_dispatch_open(ctx, &ctx->cpu, &fgmm_backend_cpu, &request);
}

/* What stands after "opencl" or "opencl:"; NULL for another name. */
static const char *opencl_selector(const char *device) {
    if (strncasecmp(device, "opencl", 6) != 0) return NULL;
    if (device[6] == 0) return device + 6;
    return device[6] == ':' ? device + 7 : NULL;
}

fgmm_status fgmm_dispatch_named(fgmm_context *ctx) {
    if (strcasecmp(ctx->device, "auto") == 0) return ctx->cpu_isa[0] ? fgmm_dispatch_cpu(ctx) : FGMM_OK;
    if (strcasecmp(ctx->device, "cpu") == 0) {
        FGMM_TRY(fgmm_dispatch_cpu(ctx));
        ctx->label = ctx->cpu.label;
        return FGMM_OK;
    }
    const char *selector = opencl_selector(ctx->device);
    if (!selector)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "unknown device \"%s\": use auto, cpu, opencl, opencl:NAME or opencl:PLATFORM.DEVICE",
                         ctx->device);
    char why[512] = "";
    const fgmm_backend *backend = fgmm_backend_opencl(ctx, why, sizeof why);
    if (!backend) return fgmm_fail(ctx, FGMM_ERR_DEVICE, "device \"%s\" cannot be used: %s", ctx->device, why);
    fgmm_open_request request = {.selector = *selector ? selector : NULL, .any_kind = 1};
    FGMM_TRY(fgmm_dispatch_open(ctx, &ctx->opencl, backend, &request));
    ctx->label = ctx->opencl.label;
    return FGMM_OK;
}

/* The best OpenCL device for "auto"; none, for whatever reason, is one log line and the CPU. */
static void try_opencl(fgmm_context *ctx) {
    if (ctx->opencl_tried) return;
    ctx->opencl_tried = 1;
    char why[512] = "";
    const fgmm_backend *backend = fgmm_backend_opencl(ctx, why, sizeof why);
    if (!backend) {
        fgmm_log(ctx, FGMM_LOG_INFO, "running on the CPU: %s", why);
        return;
    }
    fgmm_open_request request = {0};
    if (fgmm_dispatch_open(ctx, &ctx->opencl, backend, &request) != FGMM_OK) {
        fgmm_log(ctx, FGMM_LOG_INFO, "running on the CPU: %s", ctx->message);
        fgmm_enter(ctx);
    }
}

fgmm_status fgmm_dispatch_trust(const fgmm_target *target, int covariance, int64_t d, fgmm_dtype type) {
    return target->backend->trust ? target->backend->trust(target->device, covariance, d, type) : FGMM_OK;
}

static fgmm_status trust_opencl(fgmm_context *ctx, const fgmm_rows *rows, int covariance) {
    if (!rows) return FGMM_OK;
    fgmm_status status = fgmm_dispatch_trust(&ctx->opencl, covariance, rows->d, rows->type);
    if (fgmm_persisted_give_way(ctx, status))
        status = fgmm_dispatch_trust(&ctx->opencl, covariance, rows->d, rows->type);
    return status;
}

/* *take: whether "auto" has an OpenCL device for such covariances. */
static fgmm_status auto_opencl(fgmm_context *ctx, const fgmm_rows *rows, int covariance, int *take) {
    unsigned bit = 1u << (rows ? covariance : 31); /* 31: of what no mixture is evaluated for */
    *take = 0;
    try_opencl(ctx);
    if (!ctx->opencl.backend || ctx->opencl_distrusted & bit) return FGMM_OK;
    fgmm_status status = trust_opencl(ctx, rows, covariance);
    *take = status == FGMM_OK;
    if (status == FGMM_OK || status == FGMM_ERR_CANCELLED) return status;
    if (status == FGMM_ERR_DEVICE) ctx->opencl_distrusted |= bit;
    fgmm_log(ctx, FGMM_LOG_INFO, "running on the CPU: %s", ctx->message);
    fgmm_enter(ctx);
    return FGMM_OK;
}

fgmm_status fgmm_dispatch(fgmm_context *ctx, double work, fgmm_precision precision, const fgmm_rows *rows,
                          int covariance, const fgmm_target **out) {
    int is_auto = strcasecmp(ctx->device, "auto") == 0;
    int named_opencl = !is_auto && strcasecmp(ctx->device, "cpu") != 0;
    if (rows && rows->cl_mem && !named_opencl)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows in a cl_mem need the context that was made over its cl_context");
    if (precision == FGMM_DOUBLE && named_opencl && !ctx->opencl.facts.has_double)
        return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED, "precision double runs on the CPU only, and the device is %s",
                         ctx->opencl.label);
    int take = named_opencl;
    if (named_opencl) FGMM_TRY(trust_opencl(ctx, rows, covariance));
    if (is_auto && work > auto_work && precision != FGMM_DOUBLE) FGMM_TRY(auto_opencl(ctx, rows, covariance, &take));
    if (take) {
        *out = &ctx->opencl;
    } else {
        FGMM_TRY(fgmm_dispatch_cpu(ctx));
        *out = &ctx->cpu;
    }
    ctx->label = (*out)->label;
    return FGMM_OK;
}

int fgmm_dispatch_again(fgmm_context *ctx, fgmm_status status, const fgmm_rows *rows) {
    if (status != FGMM_ERR_DEVICE || strcasecmp(ctx->device, "auto") != 0 || ctx->label != ctx->opencl.label ||
        ctx->opencl_distrusted == ~0u || fgmm_rows_once(rows))
        return 0;
    ctx->opencl_distrusted = ~0u;
    fgmm_log(ctx, FGMM_LOG_WARNING, "once more, on the CPU: %s", ctx->message);
    return 1;
}

/* ---- the list of devices ---- */

enum { DEVICES_MAX = 64 };

fgmm_status fgmm_device_list(fgmm_context *ctx, fgmm_device_info **out, int *count, char *note, size_t note_size) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !count) return fgmm_fail(ctx, FGMM_ERR_INVALID, "device list: out and count must not be NULL");
    fgmm_status status = FGMM_OK;
    char why[256] = "";
    fgmm_device_info *list = fgmm_calloc(ctx, DEVICES_MAX, sizeof *list, "the list of devices");
    if (!list) return FGMM_ERR_MEMORY;
    int found = 0, more = 0;
    FGMM_GO(fgmm_backend_cpu.list(&ctx->host, list, DEVICES_MAX, &found, why, sizeof why));
    if (strcasecmp(ctx->device, "cpu") == 0) {
        snprintf(why, sizeof why, "OpenCL was not looked at: the device is set to \"cpu\"");
    } else {
        const fgmm_backend *backend = fgmm_backend_opencl(ctx, why, sizeof why);
        if (backend) FGMM_GO(backend->list(&ctx->host, list + found, DEVICES_MAX - found, &more, why, sizeof why));
    }
    found += more;
    int has_default = 0;
    for (int i = 0; i < found; i++) has_default |= list[i].is_default && !list[i].native;
    for (int i = 0; i < found; i++)
        if (list[i].native) list[i].is_default = !has_default;
    if (note && note_size) snprintf(note, note_size, "%s", why);
    *out = list;
    *count = found;
    list = NULL;
done:
    fgmm_free(ctx, list);
    return status;
}

void fgmm_device_list_free(fgmm_context *ctx, fgmm_device_info *list) {
    fgmm_free(ctx, list);
}
