/* Devices of this machine: what there is, which one to take, opening it. */
#include "cl_devices.h"
#include "cl_program.h"
#include "cl_tuning.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The loader's own answer where no driver is installed (cl_khr_icd). */
#define PLATFORM_NOT_FOUND (-1001)

enum { PLATFORMS_MAX = 64, DEVICES_MAX = 256 };

/* Drivers pad names with blanks. */
static void trim(char *text) {
    size_t first = strspn(text, " \t"), length = strlen(text + first);
    memmove(text, text + first, length + 1);
    while (length && isspace((unsigned char)text[length - 1])) text[--length] = 0;
}

static void device_text(cl_device_id id, cl_device_info what, char *out, size_t size) {
    char text[1024] = "";
    if (clGetDeviceInfo(id, what, sizeof text, text, NULL) != CL_SUCCESS) text[0] = 0;
    text[sizeof text - 1] = 0;
    trim(text);
    snprintf(out, size, "%.*s", (int)size - 1, text);
}

static void platform_text(cl_platform_id platform, cl_platform_info what, char *out, size_t size) {
    char text[1024] = "";
    if (clGetPlatformInfo(platform, what, sizeof text, text, NULL) != CL_SUCCESS) text[0] = 0;
    text[sizeof text - 1] = 0;
    trim(text);
    snprintf(out, size, "%.*s", (int)size - 1, text);
}

static cl_uint device_uint(cl_device_id id, cl_device_info what) {
    cl_uint value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static cl_ulong device_ulong(cl_device_id id, cl_device_info what) {
    cl_ulong value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static size_t device_size(cl_device_id id, cl_device_info what) {
    size_t value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static cl_device_type device_type(cl_device_id id) {
    cl_device_type type = 0;
    return clGetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, NULL) == CL_SUCCESS ? type : 0;
}

static int64_t to_int64(uint64_t value) {
    return value > INT64_MAX ? INT64_MAX : (int64_t)value;
}

/* Simulators call themselves every kind at once; the CPU is what they run on. */
static const char *kind_of(cl_device_type type) {
    if (type & CL_DEVICE_TYPE_CPU) return "cpu";
    return type & CL_DEVICE_TYPE_GPU ? "gpu" : "accelerator";
}

/* NULL if the device can run our kernels, else the reason why not. */
static const char *unusable_because(cl_device_id id) {
    char version[128], profile[64];
    int major = 0, minor = 0;
    device_text(id, CL_DEVICE_VERSION, version, sizeof version);
    device_text(id, CL_DEVICE_PROFILE, profile, sizeof profile);
    if (!device_uint(id, CL_DEVICE_AVAILABLE)) return "the driver says that the device is not available";
    if (!device_uint(id, CL_DEVICE_COMPILER_AVAILABLE)) return "its driver has no compiler";
    if (!device_uint(id, CL_DEVICE_ENDIAN_LITTLE)) return "it is big-endian";
    if (sscanf(version, "OpenCL %d.%d", &major, &minor) != 2 || major < 1 || (major == 1 && minor < 2))
        return "it is older than OpenCL 1.2";
    if (strcmp(profile, "FULL_PROFILE") != 0) return "it has the embedded profile only";
    return NULL;
}

/* Drivers for everyone's hardware stand behind the maker's own for the same card. */
static int is_makers_own(const char *platform_name) {
    static const char *const generic[] = {"Portable Computing Language", "rusticl", "Clover", "Oclgrind", "CLVK"};
    for (size_t i = 0; i < sizeof generic / sizeof *generic; i++)
        if (strcmp(platform_name, generic[i]) == 0) return 0;
    return 1;
}

/* Mesa's LP_MAX_TGSI_LOOP_ITERATIONS. */
static const char *loops_note(const char *name) {
    return strstr(name, "llvmpipe") ? "; ends loops after 65536 rounds, so sums over many components may come short"
                                    : "";
}

static void describe(cl_found *found, int platform, int index) {
    cl_device_id id = found->id;
    fgmm_device_info *info = &found->info;
    cl_device_type type = device_type(id);
    memset(info, 0, sizeof *info);
    platform_text(found->platform, CL_PLATFORM_NAME, found->platform_name, sizeof found->platform_name);
    platform_text(found->platform, CL_PLATFORM_VENDOR, info->vendor, sizeof info->vendor);
    snprintf(info->id, sizeof info->id, "opencl:%d.%d", platform, index);
    device_text(id, CL_DEVICE_NAME, info->name, sizeof info->name);
    device_text(id, CL_DRIVER_VERSION, info->driver, sizeof info->driver);
    snprintf(info->kind, sizeof info->kind, "%s", kind_of(type));
    info->fp64 = device_ulong(id, CL_DEVICE_DOUBLE_FP_CONFIG) != 0;
    info->compute_units = (int)device_uint(id, CL_DEVICE_MAX_COMPUTE_UNITS);
    info->memory_bytes = to_int64(device_ulong(id, CL_DEVICE_GLOBAL_MEM_SIZE));
    info->max_alloc_bytes = to_int64(device_ulong(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE));
    info->local_bytes = to_int64(device_ulong(id, CL_DEVICE_LOCAL_MEM_SIZE));
    const char *why = unusable_because(id);
    info->usable = why == NULL;
    int is_cpu = strcmp(info->kind, "cpu") == 0;
    if (why)
        snprintf(info->note, sizeof info->note, "%s", why);
    else if (is_cpu)
        snprintf(info->note, sizeof info->note, "a CPU behind OpenCL (%.100s): taken only when asked for%s",
                 found->platform_name, loops_note(info->name));
    uint64_t speed = (uint64_t)info->compute_units * device_uint(id, CL_DEVICE_MAX_CLOCK_FREQUENCY);
    found->order[0] = is_cpu ? 0 : strcmp(info->kind, "gpu") == 0 ? 2 : 1;
    found->order[1] = !device_uint(id, CL_DEVICE_HOST_UNIFIED_MEMORY);
    found->order[2] = is_makers_own(found->platform_name);
    found->order[3] = speed > INT32_MAX ? INT32_MAX : (int)speed;
}

/* Adds a platform's devices to the list, which has room for DEVICES_MAX. */
static void add_platform(cl_found *found, int *count, cl_platform_id platform, int number) {
    cl_device_id ids[DEVICES_MAX];
    cl_uint n = 0;
    if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, DEVICES_MAX, ids, &n) != CL_SUCCESS) return;
    for (cl_uint i = 0; i < n && i < DEVICES_MAX && *count < DEVICES_MAX; i++) {
        cl_found *one = &found[(*count)++];
        memset(one, 0, sizeof *one);
        one->platform = platform;
        one->id = ids[i];
        describe(one, number, (int)i);
    }
}

fgmm_status cl_devices_find(const fgmm_host *host, cl_found **out, int *count, char *why, size_t why_size) {
    cl_platform_id platforms[PLATFORMS_MAX];
    cl_uint n = 0;
    *out = NULL;
    *count = 0;
    cl_int code = clGetPlatformIDs(PLATFORMS_MAX, platforms, &n);
    if (code != CL_SUCCESS) n = 0;
    if (n > PLATFORMS_MAX) n = PLATFORMS_MAX;
    *out = host->alloc(host->user, DEVICES_MAX * sizeof **out);
    if (!*out) return host->fail(host->user, FGMM_ERR_MEMORY, "no memory for the list of OpenCL devices");
    for (cl_uint i = 0; i < n; i++) add_platform(*out, count, platforms[i], (int)i);
    if (why_size) why[0] = 0;
    if (*count) return FGMM_OK;
    if (code != CL_SUCCESS && code != PLATFORM_NOT_FOUND) {
        snprintf(why, why_size, "the OpenCL loader fails (%d)", (int)code);
    } else if (n == 0) {
        snprintf(why, why_size, "no OpenCL driver is installed");
    } else {
        size_t used = (size_t)snprintf(why, why_size, "no device under the OpenCL platform%s", n > 1 ? "s" : "");
        for (cl_uint i = 0; i < n && used < why_size; i++) {
            char name[128];
            platform_text(platforms[i], CL_PLATFORM_NAME, name, sizeof name);
            used += (size_t)snprintf(why + used, why_size - used, "%s %s", i ? "," : "", name);
        }
    }
    return FGMM_OK;
}

static int holds(const char *text, const char *part) {
    size_t length = strlen(part);
    for (; *text; text++) {
        size_t i = 0;
        while (i < length && text[i] && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) i++;
        if (i == length) return 1;
    }
    return length == 0;
}

static int is_better(const cl_found *a, const cl_found *b) {
    for (int i = 0; i < 4; i++)
        if (a->order[i] != b->order[i]) return a->order[i] > b->order[i];
    return 0;
}

static int choose_best(const cl_found *found, int count, int any_kind, char *why, size_t why_size) {
    int best = -1;
    for (int i = 0; i < count; i++) {
        if (!found[i].info.usable || (found[i].order[0] == 0 && !any_kind)) continue;
        if (best < 0 || is_better(&found[i], &found[best])) best = i;
    }
    if (best < 0 && why_size)
        snprintf(why, why_size, "%s",
                 any_kind ? "no OpenCL device here can be used" : "no OpenCL GPU or accelerator here can be used");
    return best;
}

/* Whether the selector is "P.D". */
static int is_number_pair(const char *selector) {
    char *end = NULL;
    if (!isdigit((unsigned char)*selector)) return 0;
    strtol(selector, &end, 10);
    if (*end != '.' || !isdigit((unsigned char)end[1])) return 0;
    strtol(end + 1, &end, 10);
    return *end == 0;
}

static int matches(const cl_found *found, const char *selector, int pass) {
    if (is_number_pair(selector)) return strcmp(found->info.id + strlen("opencl:"), selector) == 0;
    return holds(pass == 0 ? found->info.name : found->platform_name, selector);
}

int cl_devices_choose(const cl_found *found, int count, const char *selector, int any_kind, char *why,
                      size_t why_size) {
    if (why_size) why[0] = 0;
    if (!selector || !*selector) return choose_best(found, count, any_kind, why, why_size);
    int refused = -1;
    for (int pass = 0; pass < 2; pass++) { /* the device's name before its platform's */
        for (int i = 0; i < count; i++) {
            if (!matches(&found[i], selector, pass)) continue;
            if (found[i].info.usable) return i;
            if (refused < 0) refused = i;
        }
    }
    if (!why_size) return -1;
    if (refused >= 0) {
        snprintf(why, why_size, "%s cannot be used: %s", found[refused].info.name, found[refused].info.note);
        return -1;
    }
    size_t used = (size_t)snprintf(why, why_size, "no OpenCL device is called \"%.64s\"; there %s", selector,
                                   count > 1 ? "are" : "is");
    for (int i = 0; i < count && used < why_size; i++)
        used += (size_t)snprintf(why + used, why_size - used, "%s %s (%s)", i ? "," : "", found[i].info.id,
                                 found[i].info.name);
    if (!count && used < why_size) snprintf(why + used, why_size - used, " none");
    return -1;
}

static int is_nvidia(cl_device_id id) {
    char extensions[4096];
    device_text(id, CL_DEVICE_EXTENSIONS, extensions, sizeof extensions);
    return strstr(extensions, "cl_nv_device_attribute_query") != NULL;
}

enum { COMPUTE_CAPABILITY_MAJOR_NV = 0x4000, COMPUTE_CAPABILITY_MINOR_NV = 0x4001 };

/* Which kernels in NVIDIA's own instructions can be tried: from compute capability 8.0 on, and on 9.0. FLASHGMM_CL_PORTABLE=1
 * leaves them. */
static int likely_matrix(cl_device_id id) {
    const char *portable = getenv("FLASHGMM_CL_PORTABLE");
    if (portable && *portable && strcmp(portable, "0") != 0) return CL_MATRIX_NONE;
    if (!is_nvidia(id)) return CL_MATRIX_NONE;
    cl_uint major = device_uint(id, COMPUTE_CAPABILITY_MAJOR_NV);
    return major == 9 ? CL_MATRIX_WARPGROUPS : major >= 8 ? CL_MATRIX_WARPS : CL_MATRIX_NONE;
}

/* NVIDIA's chips for data centres are, whose compute capabilities are 6.0 to 10.0; its others have a 32nd or a 64th of their floats' rate. Of the rest
 * nothing is known: float-floats serve. */
static int is_quick_at_doubles(cl_device_id id) {
    if (!is_nvidia(id) || device_uint(id, COMPUTE_CAPABILITY_MINOR_NV) != 0) return 0;
    cl_uint major = device_uint(id, COMPUTE_CAPABILITY_MAJOR_NV);
    return major >= 6 && major <= 10;
}

/* Finding the reaches takes some of what the screen takes for so many rows a component. */
static int64_t settle_from(const fgmm_device *device) {
    return device->has_matrix ? 128 : 32;
}

/* Whether compilers of its driver are called from several threads. FLASHGMM_BUILD_AHEAD=0 or 1 says so of any device. */
static int builds_ahead(const fgmm_device *device) {
    const char *asked = getenv("FLASHGMM_BUILD_AHEAD");
    if (asked && *asked) return strcmp(asked, "0") != 0;
    return device->type == CL_DEVICE_TYPE_GPU;
}

/* What the engine asks about a device. */
static void learn(fgmm_device *device) {
    cl_device_id id = device->id;
    device_text(id, CL_DEVICE_NAME, device->name, sizeof device->name);
    device->type = device_type(id);
    device->local_bytes = (size_t)device_ulong(id, CL_DEVICE_LOCAL_MEM_SIZE);
    device->max_work_group = device_size(id, CL_DEVICE_MAX_WORK_GROUP_SIZE);
    device->max_alloc = (size_t)device_ulong(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
    device->global_bytes = to_int64(device_ulong(id, CL_DEVICE_GLOBAL_MEM_SIZE));
    device->compute_units = device_uint(id, CL_DEVICE_MAX_COMPUTE_UNITS);
    device->unified = device_uint(id, CL_DEVICE_HOST_UNIFIED_MEMORY) != 0;
    device->pins = is_nvidia(id) && !device->unified;
    device->has_matrix = likely_matrix(id);
    device->has_full = device->has_guess = device->has_matrix == CL_MATRIX_WARPGROUPS;
    device->has_warps = device->has_matrix != CL_MATRIX_NONE;
    /* A CPU has no time that the host does not need. */
    device->has_ahead = device->type != CL_DEVICE_TYPE_CPU && device_ulong(id, CL_DEVICE_DOUBLE_FP_CONFIG) != 0;
    device->quick_doubles = is_quick_at_doubles(id);
    device->pairs = device->has_matrix;
    device->singles = 1;
    device->settle_from = settle_from(device);
    device->builds_ahead = builds_ahead(device);
    device->limit_bytes =
        device->host.device_memory_limit ? to_int64(device->host.device_memory_limit) : device->global_bytes / 5 * 4;
}

static fgmm_status open_chosen(fgmm_device *device, const fgmm_open_request *request) {
    const fgmm_host *host = &device->host;
    cl_found *found = NULL;
    char none[256], why[1024];
    int count = 0;
    CL_TRY(cl_devices_find(host, &found, &count, none, sizeof none));
    int chosen = cl_devices_choose(found, count, request->selector, request->any_kind, why, sizeof why);
    if (chosen >= 0) {
        device->platform = found[chosen].platform;
        device->id = found[chosen].id;
    }
    host->free(host->user, found);
    if (chosen < 0) return host->fail(host->user, FGMM_ERR_DEVICE, "%s", count ? why : none);
    learn(device);

    cl_int code = CL_SUCCESS;
    cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform, 0};
    device->context = clCreateContext(properties, 1, &device->id, NULL, NULL, &code);
    CL_CHECK(device, code, "making an OpenCL context");
    device->queue = clCreateCommandQueue(device->context, device->id, 0, &code);
    CL_CHECK(device, code, "making a command queue");
    return FGMM_OK;
}

/* Takes over an application's handles: retains them, and refuses what cannot be worked with. */
static fgmm_status open_shared(fgmm_device *device, const fgmm_open_request *request) {
    const fgmm_host *host = &device->host;
    cl_context context = request->cl_context, queue_context = NULL;
    cl_command_queue queue = request->cl_queue;
    cl_device_id queue_device = NULL;
    cl_command_queue_properties properties = 0;
    device->id = request->cl_device;
    if (clGetDeviceInfo(device->id, CL_DEVICE_PLATFORM, sizeof device->platform, &device->platform, NULL) != CL_SUCCESS)
        return host->fail(host->user, FGMM_ERR_INVALID, "this is not an OpenCL device");
    learn(device);
    if (clGetCommandQueueInfo(queue, CL_QUEUE_CONTEXT, sizeof queue_context, &queue_context, NULL) != CL_SUCCESS ||
        clGetCommandQueueInfo(queue, CL_QUEUE_DEVICE, sizeof queue_device, &queue_device, NULL) != CL_SUCCESS ||
        clGetCommandQueueInfo(queue, CL_QUEUE_PROPERTIES, sizeof properties, &properties, NULL) != CL_SUCCESS)
        return host->fail(host->user, FGMM_ERR_INVALID, "this is not an OpenCL command queue");
    if (queue_context != context || queue_device != device->id)
        return host->fail(host->user, FGMM_ERR_INVALID, "the command queue is of another OpenCL context or device");
    if (properties & ~(cl_command_queue_properties)CL_QUEUE_PROFILING_ENABLE)
        return host->fail(host->user, FGMM_ERR_UNSUPPORTED, "the command queue must be in order and on the host");
    const char *why = unusable_because(device->id);
    if (why) return host->fail(host->user, FGMM_ERR_DEVICE, "%s cannot be used: %s", device->name, why);
    CL_CHECK(device, clRetainContext(context), "retaining the context");
    device->context = context;
    CL_CHECK(device, clRetainCommandQueue(queue), "retaining the command queue");
    device->queue = queue;
    return FGMM_OK;
}

/* A queue for copies, beside the work, if possible with a clock; one for both where there is no second. */
static fgmm_status open_copies(fgmm_device *device) {
    static const cl_command_queue_properties wishes[] = {CL_QUEUE_PROFILING_ENABLE, 0};
    for (int i = 0; i < 2; i++) {
        cl_int code = CL_SUCCESS;
        device->copies = clCreateCommandQueue(device->context, device->id, wishes[i], &code);
        if (code == CL_SUCCESS) return FGMM_OK;
        device->copies = NULL;
    }
    CL_CHECK(device, clRetainCommandQueue(device->queue), "retaining the command queue");
    device->copies = device->queue;
    return FGMM_OK;
}

fgmm_status cl_device_open(const fgmm_host *host, const fgmm_open_request *request, fgmm_device **out) {
    *out = NULL;
    cl_opened *opened = host->alloc(host->user, sizeof *opened);
    if (!opened) return host->fail(host->user, FGMM_ERR_MEMORY, "no memory for an OpenCL device");
    memset(opened, 0, sizeof *opened);
    fgmm_device *device = &opened->device;
    device->host = *host;
    fgmm_status status = request->cl_context ? open_shared(device, request) : open_chosen(device, request);
    if (status == FGMM_OK) status = open_copies(device);
    if (status == FGMM_OK) status = cl_tuning_load(device);
    if (status != FGMM_OK) {
        cl_device_close(device);
        return status;
    }
    *out = device;
    return FGMM_OK;
}

void cl_device_close(fgmm_device *device) {
    if (!device) return;
    fgmm_host host = device->host;
    cl_kernels_free(device);
    cl_spares_free(device);
    cl_tuning_free(device);
    cl_command_queue queues[] = {device->copies, device->queue};
    for (int i = 0; i < 2; i++) {
        if (!queues[i]) continue;
        clFinish(queues[i]);
        clReleaseCommandQueue(queues[i]);
    }
    if (device->context) clReleaseContext(device->context);
    host.free(host.user, device);
}
