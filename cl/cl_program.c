/* Kernels: from the device's list, else the disk cache, else the compiler, which several threads may call for what is going to be wanted. */
#include "cl_program.h"
#include "cl_cache.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Enough of a compiler's log to see what is wrong. */
enum { LOG_KEPT = 1500 };
/* Compilers want more than some systems' threads have. */
enum { STACK_BYTES = 16 << 20, MOST_ASKED = 24 };

struct cl_kernel_slot {
    cl_kernel_slot *next;
    const char *name, *options, *kernel_name; /* behind the slot, in the same allocation */
    cl_program program;
    cl_kernel kernel;
};

/* A program on its way to its first kernel. */
typedef struct cl_build {
    fgmm_device *device;
    const cl_source *source;
    char *options; /* as given to the compiler; options_size bytes */
    size_t options_size;
    cl_cache_key key;
    cl_program program;
    int from_cache;
} cl_build;

struct cl_asked {
    cl_asked *next;
    cl_build build;
    const char *options; /* as asked for; behind it, in the same allocation */
    pthread_t thread;    /* unless the program is from the cache */
    cl_int code;         /* of its end */
};

static void info_text(cl_platform_id platform, cl_device_id id, cl_uint what, char *out, size_t size) {
    cl_int code =
        platform ? clGetPlatformInfo(platform, what, size, out, NULL) : clGetDeviceInfo(id, what, size, out, NULL);
    if (code != CL_SUCCESS) out[0] = 0;
    out[size - 1] = 0;
}

static void set_options(cl_build *build, const char *options, int unoptimised) {
    const char *extra = getenv("FLASHGMM_CL_OPTIONS");
    snprintf(build->options, build->options_size, "-cl-std=CL1.2%s%s%s%s%s", *options ? " " : "", options,
             extra && *extra ? " " : "", extra ? extra : "", unoptimised ? " -cl-opt-disable" : "");
    char platform_name[256], platform_version[256], name[256], vendor[256], device_version[256], driver[256];
    cl_platform_id platform = build->device->platform;
    cl_device_id id = build->device->id;
    info_text(platform, NULL, CL_PLATFORM_NAME, platform_name, sizeof platform_name);
    info_text(platform, NULL, CL_PLATFORM_VERSION, platform_version, sizeof platform_version);
    info_text(NULL, id, CL_DEVICE_NAME, name, sizeof name);
    info_text(NULL, id, CL_DEVICE_VENDOR, vendor, sizeof vendor);
    info_text(NULL, id, CL_DEVICE_VERSION, device_version, sizeof device_version);
    info_text(NULL, id, CL_DRIVER_VERSION, driver, sizeof driver);
    const char *parts[] = {build->source->text, build->options, platform_name, platform_version, name, vendor,
                           device_version,      driver};
    build->key = cl_cache_hash(parts, (int)(sizeof parts / sizeof *parts));
}

/* Leaves build->program NULL unless a cached binary is there and the driver takes it. */
static void load_cached(cl_build *build) {
    fgmm_device *device = build->device;
    unsigned char *bytes = NULL;
    size_t size = 0;
    if (!cl_cache_load(&device->host, build->key, &bytes, &size)) return;
    cl_int code = CL_SUCCESS, accepted = CL_SUCCESS;
    const unsigned char *binary = bytes;
    build->program = clCreateProgramWithBinary(device->context, 1, &device->id, &size, &binary, &accepted, &code);
    device->host.free(device->host.user, bytes);
    if (code == CL_SUCCESS) code = accepted;
    if (code == CL_SUCCESS) code = clBuildProgram(build->program, 1, &device->id, build->options, NULL, NULL);
    if (code == CL_SUCCESS) {
        build->from_cache = 1;
        cl_opened_of(device)->cache_hits++;
        return;
    }
    if (build->program) clReleaseProgram(build->program);
    build->program = NULL;
    device->host.log(device->host.user, FGMM_LOG_DEBUG, "%s refuses the cached binary of %s.cl (%d); building again",
                     device->name, build->source->name, (int)code);
    cl_cache_drop(build->key);
}

/* Offers the binary of a program whose kernels exist (some drivers have none before). */
static void store_cached(const cl_build *build) {
    fgmm_device *device = build->device;
    cl_uint devices = 0;
    size_t size = 0;
    if (!cl_cache_is_on()) return; /* PoCL compiles each kernel once more for a binary */
    /* In a caller's context a program may span several devices; binaries then come in a list we do not sort out. */
    if (clGetProgramInfo(build->program, CL_PROGRAM_NUM_DEVICES, sizeof devices, &devices, NULL) != CL_SUCCESS ||
        devices != 1)
        return;
    if (clGetProgramInfo(build->program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS || !size)
        return;
    unsigned char *bytes = device->host.alloc(device->host.user, size);
    if (!bytes) return;
    if (clGetProgramInfo(build->program, CL_PROGRAM_BINARIES, sizeof bytes, &bytes, NULL) == CL_SUCCESS)
        cl_cache_store(&device->host, build->key, bytes, size);
    device->host.free(device->host.user, bytes);
}

/* The compiler's log without blank ends, at most LOG_KEPT of it. NULL if there is no memory. */
static char *build_log(fgmm_device *device, cl_program program) {
    size_t size = 0;
    if (clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) != CL_SUCCESS) size = 0;
    char *text = device->host.alloc(device->host.user, size + 1);
    if (!text) return NULL;
    if (size && clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, size, text, NULL) != CL_SUCCESS)
        size = 0;
    text[size] = 0;
    size_t first = strspn(text, " \t\r\n"), length = strlen(text + first);
    memmove(text, text + first, length + 1);
    if (length > LOG_KEPT) length = LOG_KEPT;
    while (length && strchr(" \t\r\n", text[length - 1])) length--;
    text[length] = 0;
    return text;
}

static cl_int create_program(cl_build *build) {
    cl_int code = CL_SUCCESS;
    build->program =
        clCreateProgramWithSource(build->device->context, 1, (const char *[]){build->source->text}, NULL, &code);
    if (code != CL_SUCCESS) build->program = NULL;
    return code;
}

/* Builds build->program, and of a marked one what it stands for. Any thread may. */
static cl_int run_compiler(cl_build *build) {
    cl_int code = clBuildProgram(build->program, 1, &build->device->id, build->options, NULL, NULL);
    if (code != CL_SUCCESS || !cl_sm90a_marked(build->source->text)) return code;
    return cl_sm90a(build->device, &build->program, build->options);
}

/* What the compiler made of build->program, with `code`. On failure build->program is NULL and *log (unless NULL) holds the compiler's
 * words. */
static cl_int take_built(cl_build *build, cl_int code, char **log) {
    fgmm_device *device = build->device;
    if (code != CL_SUCCESS) {
        if (build->program && log && !*log) *log = build_log(device, build->program);
        if (build->program) clReleaseProgram(build->program);
        build->program = NULL;
    } else {
        cl_opened_of(device)->programs_built++;
    }
    return code;
}

/* Compiles with build->options; else as take_built. */
static cl_int compile(cl_build *build, char **log) {
    cl_int code = create_program(build);
    if (code != CL_SUCCESS) return code;
    return take_built(build, run_compiler(build), log);
}

static fgmm_status build_program(cl_build *build, const char *options) {
    fgmm_device *device = build->device;
    const fgmm_host *host = &device->host;
    const char *source_name = build->source->name;
    char *log = NULL;
    fgmm_status status = FGMM_OK;
    cl_int code = compile(build, &log);
    if (code != CL_SUCCESS && !cl_opened_of(device)->unoptimised) {
        set_options(build, options, 1);
        load_cached(build);
        code = build->program ? CL_SUCCESS : compile(build, &log);
        if (code == CL_SUCCESS)
            host->log(host->user, FGMM_LOG_WARNING, "%s.cl builds for %s only without optimisation: %.200s",
                      source_name, device->name, log ? log : "");
    }
    if (code == CL_OUT_OF_HOST_MEMORY) {
        status = host->fail(host->user, FGMM_ERR_MEMORY, "no memory to build %s.cl", source_name);
    } else if (code != CL_SUCCESS) {
        cl_opened_of(device)->build_failed = 1;
        status = host->fail(host->user, FGMM_ERR_DEVICE, "%s.cl does not build for %s (error %d, options \"%s\"): %s",
                            source_name, device->name, (int)code, build->options, log && *log ? log : "no log");
    }
    if (log) host->free(host->user, log);
    return status;
}

/* Adds a kernel of build->program, which the slot retains. */
static fgmm_status add_slot(cl_build *build, const char *options, const char *kernel, cl_kernel_slot **out) {
    fgmm_device *device = build->device;
    size_t name_size = strlen(build->source->name) + 1, options_size = strlen(options) + 1;
    size_t kernel_size = strlen(kernel) + 1;
    cl_kernel_slot *slot = device->host.alloc(device->host.user, sizeof *slot + name_size + options_size + kernel_size);
    if (!slot) return device->host.fail(device->host.user, FGMM_ERR_MEMORY, "no memory for the kernel %s", kernel);
    cl_int code = CL_SUCCESS;
    slot->kernel = clCreateKernel(build->program, kernel, &code);
    if (code == CL_SUCCESS) {
        code = clRetainProgram(build->program);
        if (code != CL_SUCCESS) clReleaseKernel(slot->kernel);
    }
    if (code != CL_SUCCESS) {
        device->host.free(device->host.user, slot);
        char what[128];
        snprintf(what, sizeof what, "making the kernel %s of %s.cl", kernel, build->source->name);
        return cl_fail(device, code, what);
    }
    char *text = (char *)(slot + 1);
    slot->name = memcpy(text, build->source->name, name_size);
    slot->options = memcpy(text + name_size, options, options_size);
    slot->kernel_name = memcpy(text + name_size + options_size, kernel, kernel_size);
    slot->program = build->program;
    slot->next = device->kernels;
    device->kernels = slot;
    *out = slot;
    return FGMM_OK;
}

static int has_kernel(cl_program program, const char *kernel) {
    cl_int code = CL_SUCCESS;
    cl_kernel probe = clCreateKernel(program, kernel, &code);
    if (code == CL_SUCCESS) clReleaseKernel(probe);
    return code == CL_SUCCESS;
}

/* Room for the compiler's options, and the cached program if there is one. @return 0 without memory */
static int start_build(cl_build *build, const char *options) {
    fgmm_device *device = build->device;
    const char *extra = getenv("FLASHGMM_CL_OPTIONS");
    build->options_size = strlen(options) + (extra ? strlen(extra) : 0) + 64;
    build->options = device->host.alloc(device->host.user, build->options_size);
    if (!build->options) return 0;
    set_options(build, options, cl_opened_of(device)->unoptimised);
    load_cached(build);
    return 1;
}

static void end_build(cl_build *build) {
    if (build->program) clReleaseProgram(build->program); /* its slots hold it */
    build->device->host.free(build->device->host.user, build->options);
}

static fgmm_status first_kernel(cl_build *build, const char *options, const char *kernel, cl_kernel_slot **out) {
    if (build->program && !has_kernel(build->program, kernel)) { /* it loads, and yet is not what was stored */
        cl_cache_drop(build->key);
        clReleaseProgram(build->program);
        build->program = NULL;
        build->from_cache = 0;
    }
    if (!build->program) CL_TRY(build_program(build, options));
    CL_TRY(add_slot(build, options, kernel, out));
    if (!build->from_cache) store_cached(build);
    return FGMM_OK;
}

static void *build_asked(void *user) {
    cl_asked *asked = user;
    asked->code = run_compiler(&asked->build);
    return NULL;
}

/* Signals are for the application's own threads. */
static int start_thread(cl_asked *asked) {
    pthread_attr_t attributes;
    sigset_t all, before;
    if (pthread_attr_init(&attributes) != 0) return 0;
    sigfillset(&all);
    int masked = pthread_sigmask(SIG_SETMASK, &all, &before) == 0;
    int started = masked && pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0 &&
                  pthread_create(&asked->thread, &attributes, build_asked, asked) == 0;
    if (masked) pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return started;
}

/* Takes what was asked for off the list, and waits for it. @return NULL if it was not */
static cl_asked *take_asked(fgmm_device *device, const cl_source *source, const char *options) {
    for (cl_asked **at = &device->asked; *at; at = &(*at)->next) {
        cl_asked *asked = *at;
        if (asked->build.source != source || strcmp(asked->options, options) != 0) continue;
        *at = asked->next;
        if (!asked->build.from_cache) pthread_join(asked->thread, NULL);
        return asked;
    }
    return NULL;
}

/* Has a program built by a thread of its own. What goes wrong is for cl_kernel_from to say, which builds it again. */
static void ask(fgmm_device *device, const cl_source *source, const char *options) {
    size_t options_size = strlen(options) + 1;
    int count = 0;
    for (const cl_asked *asked = device->asked; asked; asked = asked->next) {
        if (asked->build.source == source && strcmp(asked->options, options) == 0) return;
        count++;
    }
    if (count >= MOST_ASKED) return;
    cl_asked *asked = device->host.alloc(device->host.user, sizeof *asked + options_size);
    if (!asked) return;
    *asked = (cl_asked){.next = device->asked, .build = {.device = device, .source = source}};
    asked->options = memcpy(asked + 1, options, options_size);
    if (start_build(&asked->build, options)) {
        if (asked->build.program || (create_program(&asked->build) == CL_SUCCESS && start_thread(asked))) {
            device->asked = asked;
            return;
        }
        end_build(&asked->build);
    }
    device->host.free(device->host.user, asked);
}

fgmm_status cl_kernel_from(fgmm_device *device, cl_kernel *out, const cl_source *source, const char *options,
                           const char *kernel) {
    if (!options) options = "";
    cl_build build = {.device = device, .source = source};
    cl_kernel_slot *slot;
    for (slot = device->kernels; slot; slot = slot->next) {
        if (strcmp(slot->name, source->name) != 0 || strcmp(slot->options, options) != 0) continue;
        if (strcmp(slot->kernel_name, kernel) == 0) {
            *out = slot->kernel;
            return FGMM_OK;
        }
        build.program = slot->program;
    }
    if (build.program) {
        CL_TRY(add_slot(&build, options, kernel, &slot));
        *out = slot->kernel;
        return FGMM_OK;
    }
    if (device->asking) {
        ask(device, source, options);
        *out = NULL;
        return FGMM_OK;
    }
    cl_asked *asked = take_asked(device, source, options);
    if (asked) {
        build = asked->build;
        cl_opened_of(device)->programs_asked++;
        if (!build.from_cache) (void)take_built(&build, asked->code, NULL);
        device->host.free(device->host.user, asked);
    } else if (!start_build(&build, options)) {
        return device->host.fail(device->host.user, FGMM_ERR_MEMORY, "no memory to build %s.cl", source->name);
    }
    fgmm_status status = first_kernel(&build, options, kernel, &slot);
    end_build(&build);
    if (status == FGMM_OK) *out = slot->kernel;
    return status;
}

fgmm_status cl_kernel_get(fgmm_device *device, cl_kernel *out, const char *name, const char *options,
                          const char *kernel) {
    for (const cl_source *source = cl_sources; source->name; source++)
        if (strcmp(source->name, name) == 0) return cl_kernel_from(device, out, source, options, kernel);
    return device->host.fail(device->host.user, FGMM_ERR_INTERNAL, "no kernel source is called %s.cl", name);
}

const char *cl_refusal(fgmm_device *device, fgmm_status status) {
    cl_opened *opened = cl_opened_of(device);
    if (status != FGMM_ERR_DEVICE || (!opened->build_failed && !device->group_refused)) return NULL;
    const char *refused = opened->build_failed ? "build" : "start";
    opened->build_failed = device->group_refused = 0;
    cl_forget(device);
    return refused;
}

void cl_asked_end(fgmm_device *device) {
    while (device->asked) {
        cl_asked *asked = take_asked(device, device->asked->build.source, device->asked->options);
        end_build(&asked->build);
        device->host.free(device->host.user, asked);
    }
}

void cl_kernels_free(fgmm_device *device) {
    cl_asked_end(device);
    while (device->kernels) {
        cl_kernel_slot *slot = device->kernels;
        device->kernels = slot->next;
        clReleaseKernel(slot->kernel);
        clReleaseProgram(slot->program);
        device->host.free(device->host.user, slot);
    }
}
