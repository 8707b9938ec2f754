/* The one file that differs between the libraries: FGMM_OPENCL_MODE_MODULE, _BUILTIN or _DISABLED. */
#define _GNU_SOURCE /* dladdr */
#include "module.h"

#include <stdio.h>

#if defined(FGMM_OPENCL_MODE_MODULE)

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __APPLE__
#define MODULE_FILE "libflashgmm_opencl.dylib"
#else
#define MODULE_FILE "libflashgmm_opencl.so"
#endif

enum { PATH_SIZE = 4096 };

/* Code is not loaded from where an environment variable says in a program with raised rights. */
static const char *module_variable(void) {
#ifdef __GLIBC__
    return secure_getenv("FLASHGMM_MODULE_PATH");
#else
    return getenv("FLASHGMM_MODULE_PATH");
#endif
}

/* The folder of the library that this code runs in, without the last slash. @return 0 if unknown. */
static int own_folder(char *out, size_t size) {
    static const char here;
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname) return 0;
    const char *slash = strrchr(info.dli_fname, '/');
    if (!slash || (size_t)(slash - info.dli_fname) >= size) return 0;
    memcpy(out, info.dli_fname, (size_t)(slash - info.dli_fname));
    out[slash - info.dli_fname] = 0;
    return 1;
}

static int is_there(char *path, const char *folder, const char *under) {
    int length = snprintf(path, PATH_SIZE, "%s%s/" MODULE_FILE, folder, under);
    return length > 0 && length < PATH_SIZE && access(path, R_OK) == 0;
}

/* Path of the module: where FLASHGMM_MODULE_PATH says and nowhere else, or installed beside the library, in the
 * build folder, or where it was to be installed. @return 0 and a line in why. */
static int find_module(char *path, char *why, size_t why_size) {
    const char *asked = module_variable();
    if (asked && *asked) {
        if (is_there(path, asked, "")) return 1;
        int length = snprintf(path, PATH_SIZE, "%s", asked);
        const char *name = strrchr(asked, '/');
        if (length < PATH_SIZE && strstr(name ? name : asked, "flashgmm_opencl") && access(path, R_OK) == 0) return 1;
        snprintf(why, why_size, "no OpenCL module at FLASHGMM_MODULE_PATH = %s", asked);
        return 0;
    }
    char folder[PATH_SIZE] = "";
    if (own_folder(folder, sizeof folder)) {
        if (is_there(path, folder, "/flashgmm")) return 1;
        if (is_there(path, folder, "")) return 1;
    }
#ifdef FGMM_MODULE_DIR
    if (is_there(path, FGMM_MODULE_DIR, "")) return 1;
#endif
    snprintf(why, why_size,
             "no OpenCL module (" MODULE_FILE ") in %s/flashgmm: the part of flashgmm for OpenCL is not installed",
             folder);
    return 0;
}

const fgmm_backend *fgmm_backend_opencl(fgmm_context *ctx, char *why, size_t why_size) {
    char path[PATH_SIZE];
    if (!why) why_size = 0;
    if (!find_module(path, why, why_size)) return NULL;
    /* Never unloaded: drivers leave threads and exit handlers behind. The loader counts and keeps it. */
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!module) {
        const char *reason = dlerror();
        if (!reason) reason = "unknown reason";
        if (strstr(reason, "libOpenCL"))
            snprintf(why, why_size, "no OpenCL loader on this system (%s)", reason);
        else
            snprintf(why, why_size, "the OpenCL module does not load: %s", reason);
        return NULL;
    }
    fgmm_backend_entry entry = NULL;
    void *symbol = dlsym(module, FGMM_BACKEND_ENTRY);
    memcpy(&entry, &symbol, sizeof entry);
    const fgmm_backend *backend = entry ? entry(FGMM_BACKEND_ABI) : NULL;
    if (!backend || backend->abi != FGMM_BACKEND_ABI) {
        snprintf(why, why_size, "%s belongs to another version of flashgmm", path);
        return NULL;
    }
    fgmm_log(ctx, FGMM_LOG_DEBUG, "OpenCL module: %s", path);
    return backend;
}

#elif defined(FGMM_OPENCL_MODE_BUILTIN)

const fgmm_backend *cl_backend_entry(unsigned abi); /* cl/cl_backend.c, the only name of it that lib/ knows */

const fgmm_backend *fgmm_backend_opencl(fgmm_context *ctx, char *why, size_t why_size) {
    (void)ctx;
    const fgmm_backend *backend = cl_backend_entry(FGMM_BACKEND_ABI);
    if (!backend && why) snprintf(why, why_size, "the OpenCL part belongs to another version of flashgmm");
    return backend;
}

#elif defined(FGMM_OPENCL_MODE_DISABLED)

const fgmm_backend *fgmm_backend_opencl(fgmm_context *ctx, char *why, size_t why_size) {
    (void)ctx;
    if (why) snprintf(why, why_size, "this build of flashgmm has no OpenCL");
    return NULL;
}

#else
#error "one of FGMM_OPENCL_MODE_MODULE, FGMM_OPENCL_MODE_BUILTIN, FGMM_OPENCL_MODE_DISABLED must be defined"
#endif
