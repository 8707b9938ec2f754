#include "persist.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

const char *fgmm_status_name(fgmm_status status) {
    static const char *const names[] = {
        "ok",           "invalid argument", "out of memory", "input or output error", "bad file format", "bad data",
        "device error", "unsupported",      "cancelled",     "internal error"};
    return (unsigned)status < sizeof names / sizeof *names ? names[status] : "unknown status";
}

#define FGMM_TEXT_(x) #x
#define FGMM_TEXT(x) FGMM_TEXT_(x)

const char *fgmm_version(void) {
    return FGMM_TEXT(FGMM_VERSION_MAJOR) "." FGMM_TEXT(FGMM_VERSION_MINOR) "." FGMM_TEXT(FGMM_VERSION_PATCH);
}

size_t fgmm_dtype_size(fgmm_dtype type) {
    static const unsigned char sizes[] = {4, 8, 2, 2, 1, 1, 4, 8};
    return (unsigned)type < sizeof sizes ? sizes[type] : 0;
}

/* ---- messages and log ---- */

static fgmm_status fail_with(fgmm_context *ctx, fgmm_status status, const char *format, va_list arguments) {
    if (!ctx) return status;
    /* Of several failures, the first is the cause. Worker threads may fail at once. */
    if (atomic_exchange(&ctx->failing, 1) != 0) return status;
    int length = vsnprintf(ctx->message, sizeof ctx->message, format, arguments);
    long long needed = atomic_load(&ctx->bytes_refused);
    if (status == FGMM_ERR_MEMORY && needed && length >= 0 && (size_t)length < sizeof ctx->message)
        snprintf(ctx->message + length, sizeof ctx->message - (size_t)length,
                 ": the limit on host memory is %lld bytes, and at least %lld are needed", ctx->bytes_limit, needed);
    return status;
}

fgmm_status fgmm_fail(fgmm_context *ctx, fgmm_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail_with(ctx, status, format, arguments);
    va_end(arguments);
    return status;
}

static void log_with(fgmm_context *ctx, fgmm_log_level level, const char *format, va_list arguments) {
    if (!ctx || !ctx->log || level > ctx->log_level) return;
    char line[1024];
    vsnprintf(line, sizeof line, format, arguments);
    ctx->log(ctx->log_user, level, line);
}

void fgmm_log(fgmm_context *ctx, fgmm_log_level level, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    log_with(ctx, level, format, arguments);
    va_end(arguments);
}

void fgmm_enter(fgmm_context *ctx) {
    ctx->message[0] = 0;
    atomic_store(&ctx->bytes_refused, 0);
    atomic_store(&ctx->host_short, 0);
    atomic_store(&ctx->failing, 0);
}

int64_t fgmm_thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

int fgmm_threads(const fgmm_context *ctx) {
#ifdef _OPENMP
    return ctx->host.threads > 0 ? ctx->host.threads : omp_get_max_threads();
#else
    (void)ctx;
    return 1;
#endif
}

/* One or all: where a team is smaller than the last, libgomp ends the threads left over, and makes them again for the next. */
int fgmm_threads_over(const fgmm_context *ctx, double cells) {
    enum { LEAST_CELLS = 1 << 15 };
    return cells < LEAST_CELLS ? 1 : fgmm_threads(ctx);
}

enum { COPY_BLOCK = 8192 }; /* doubles that a thread takes at a time */

void fgmm_copy(fgmm_context *ctx, double *to, const double *from, int64_t count) {
    int threads = fgmm_threads_over(ctx, (double)count);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i += COPY_BLOCK)
        memcpy(to + i, from + i, (size_t)(count - i < COPY_BLOCK ? count - i : COPY_BLOCK) * sizeof *to);
}

void fgmm_zero(fgmm_context *ctx, double *to, int64_t count) {
    int threads = fgmm_threads_over(ctx, (double)count);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i += COPY_BLOCK)
        memset(to + i, 0, (size_t)(count - i < COPY_BLOCK ? count - i : COPY_BLOCK) * sizeof *to);
}

int fgmm_cancelled(fgmm_context *ctx) {
    return atomic_load_explicit(&ctx->cancelled, memory_order_relaxed);
}

/* ---- memory ---- */

/* Before each aligned block: where it came from and how large it is. */
typedef struct {
    void *raw;
    size_t bytes;
} alloc_header;

enum { ALLOC_ALIGN = 64 };

/* Adds to what is held, if the limit allows. */
static int count_bytes(fgmm_context *ctx, size_t bytes) {
    long long now = atomic_fetch_add(&ctx->bytes, (long long)bytes) + (long long)bytes;
    if (!ctx->bytes_limit || now <= ctx->bytes_limit) return 1;
    atomic_store(&ctx->bytes_refused, now);
    atomic_store(&ctx->host_short, 1);
    fgmm_memory_drop(ctx, bytes);
    return 0;
}

static void raise_peak(fgmm_context *ctx) {
    long long now = atomic_load(&ctx->bytes), peak = atomic_load(&ctx->peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&ctx->peak_bytes, &peak, now)) {
    }
}

int fgmm_memory_hold(fgmm_context *ctx, size_t bytes) {
    if (ctx->root) ctx = ctx->root;
    if (!count_bytes(ctx, bytes)) return 0;
    raise_peak(ctx);
    return 1;
}

void fgmm_memory_drop(fgmm_context *ctx, size_t bytes) {
    if (ctx->root) ctx = ctx->root;
    atomic_fetch_sub(&ctx->bytes, (long long)bytes);
}

static void *alloc_counted(fgmm_context *ctx, size_t bytes) {
    if (ctx->root) ctx = ctx->root;
    if (bytes > SIZE_MAX - 2 * ALLOC_ALIGN - sizeof(alloc_header)) return NULL;
    size_t whole = bytes + ALLOC_ALIGN + sizeof(alloc_header);
    if (!count_bytes(ctx, whole)) return NULL;
    char *raw = ctx->allocator.alloc(ctx->allocator.user, whole);
    if (!raw) {
        atomic_store(&ctx->host_short, 1);
        fgmm_memory_drop(ctx, whole);
        return NULL;
    }
    raise_peak(ctx);
    uintptr_t at = ((uintptr_t)raw + sizeof(alloc_header) + ALLOC_ALIGN - 1) & ~(uintptr_t)(ALLOC_ALIGN - 1);
    *((alloc_header *)at - 1) = (alloc_header){raw, whole};
    return (void *)at;
}

void fgmm_free(fgmm_context *ctx, void *pointer) {
    if (!pointer) return;
    if (ctx->root) ctx = ctx->root;
    alloc_header header = *((alloc_header *)pointer - 1);
    fgmm_memory_drop(ctx, header.bytes);
    ctx->allocator.free(ctx->allocator.user, header.raw);
}

void *fgmm_alloc(fgmm_context *ctx, size_t bytes, const char *what) {
    void *pointer = alloc_counted(ctx, bytes);
    if (!pointer) fgmm_fail(ctx, FGMM_ERR_MEMORY, "no memory for %s (%zu bytes)", what, bytes);
    return pointer;
}

void *fgmm_calloc(fgmm_context *ctx, size_t count, size_t size, const char *what) {
    if (size && count > SIZE_MAX / size) {
        fgmm_fail(ctx, FGMM_ERR_MEMORY, "no memory for %s (%zu x %zu bytes)", what, count, size);
        return NULL;
    }
    void *pointer = fgmm_alloc(ctx, count * size, what);
    if (pointer) memset(pointer, 0, count * size);
    return pointer;
}

char *fgmm_strdup(fgmm_context *ctx, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = fgmm_alloc(ctx, size, "a string");
    return copy ? memcpy(copy, text, size) : NULL;
}

double fgmm_memory_left(const fgmm_context *ctx) {
    if (ctx->root) ctx = ctx->root;
    return ctx->bytes_limit ? (double)(ctx->bytes_limit - atomic_load(&ctx->bytes)) : INFINITY;
}

double fgmm_memory_quarter(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? 0.25 * (double)pages * (double)page : 1e9;
}

double fgmm_memory_share(const fgmm_context *ctx) {
    if (ctx->root) ctx = ctx->root;
    return fgmm_memory_quarter() / ctx->sharers;
}

/* ---- the services of a backend ---- */

static void *host_alloc(void *user, size_t bytes) {
    return alloc_counted(user, bytes);
}
static void host_free(void *user, void *pointer) {
    fgmm_free(user, pointer);
}
/* Not that memory of the host ran short, which is for who asked for it to say: threads may read meanwhile. */
static void host_forget(void *user) {
    fgmm_context *ctx = user;
    ctx->message[0] = 0;
    atomic_store(&ctx->failing, 0);
}
static int host_cancelled(void *user) {
    return fgmm_cancelled(user);
}

static fgmm_status host_fail(void *user, fgmm_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail_with(user, status, format, arguments);
    va_end(arguments);
    return status;
}

static void host_log(void *user, fgmm_log_level level, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    log_with(user, level, format, arguments);
    va_end(arguments);
}

/* ---- the context ---- */

/* A large block is new to the process each time, and first use of its pages took half of an iteration of full covariances: where the
 * system has larger pages, it is asked for these. */
static void *system_alloc(void *user, size_t bytes) {
    (void)user;
#ifdef MADV_HUGEPAGE
    enum { HUGE_PAGE = 2 << 20 };
    void *block = NULL;
    if (bytes >= 4 * (size_t)HUGE_PAGE) {
        if (posix_memalign(&block, HUGE_PAGE, bytes) != 0) return NULL;
        (void)madvise(block, bytes, MADV_HUGEPAGE);
        return block;
    }
#endif
    return malloc(bytes);
}

static void system_free(void *user, void *pointer) {
    (void)user;
    free(pointer);
}

static fgmm_status creation_failed(const fgmm_context_options *options, fgmm_status status, const char *message) {
    if (options && options->error && options->error_size) snprintf(options->error, options->error_size, "%s", message);
    return status;
}

/* The caller's options, or the defaults. */
static fgmm_status read_options(fgmm_context_options *to, const fgmm_context_options *from) {
    *to = (fgmm_context_options)FGMM_CONTEXT_OPTIONS_INIT;
    if (!from) return FGMM_OK;
    if (from->struct_size != sizeof *to) return FGMM_ERR_INVALID; /* where an error message should go cannot be known */
    *to = *from;
    return FGMM_OK;
}

/* Makes a context that has no device yet. */
static fgmm_status context_new(fgmm_context **out, const fgmm_context_options *options) {
    fgmm_allocator allocator = options->allocator;
    if (!allocator.alloc != !allocator.free)
        return creation_failed(options, FGMM_ERR_INVALID, "the allocator has one of alloc and free without the other");
    if (!allocator.alloc) allocator = (fgmm_allocator){system_alloc, system_free, NULL};
    if (options->threads < 0) return creation_failed(options, FGMM_ERR_INVALID, "threads is negative");
    if (options->host_sharers < 0) return creation_failed(options, FGMM_ERR_INVALID, "host_sharers is negative");
    const char *device = options->device ? options->device : getenv("FLASHGMM_DEVICE");
    const char *isa = options->cpu_isa ? options->cpu_isa : getenv("FLASHGMM_CPU_ISA");
    if (!device || !*device) device = "auto";
    fgmm_context *ctx = allocator.alloc(allocator.user, sizeof *ctx);
    if (!ctx) return creation_failed(options, FGMM_ERR_MEMORY, "no memory for a context");
    memset(ctx, 0, sizeof *ctx);
    ctx->allocator = allocator;
    ctx->log = options->log;
    ctx->log_user = options->log_user;
    ctx->log_level = options->log_level ? options->log_level : FGMM_LOG_INFO;
    ctx->progress = options->progress;
    ctx->progress_user = options->progress_user;
    ctx->label = "";
    ctx->bytes_limit = options->host_memory_limit < LLONG_MAX ? (long long)options->host_memory_limit : LLONG_MAX;
    ctx->sharers = options->host_sharers > 1 ? options->host_sharers : 1;
    snprintf(ctx->device, sizeof ctx->device, "%s", device);
    snprintf(ctx->cpu_isa, sizeof ctx->cpu_isa, "%s", isa ? isa : "");
    ctx->host = (fgmm_host){.user = ctx,
                            .alloc = host_alloc,
                            .free = host_free,
                            .fail = host_fail,
                            .log = host_log,
                            .forget = host_forget,
                            .cancelled = host_cancelled,
                            .threads = options->threads,
                            .device_memory_limit = options->device_memory_limit,
                            .memory_limited = options->host_memory_limit > 0};
    *out = ctx;
    return FGMM_OK;
}

static fgmm_status context_finish(fgmm_context **out, fgmm_context *ctx, const fgmm_context_options *options,
                                  fgmm_status status) {
    if (status == FGMM_OK) {
        *out = ctx;
        return FGMM_OK;
    }
    creation_failed(options, status, ctx->message);
    fgmm_context_free(ctx);
    return status;
}

fgmm_status fgmm_context_create(fgmm_context **out, const fgmm_context_options *given) {
    if (!out) return FGMM_ERR_INVALID;
    *out = NULL;
    fgmm_context_options options;
    fgmm_context *ctx = NULL;
    FGMM_TRY(read_options(&options, given));
    FGMM_TRY(context_new(&ctx, &options));
    return context_finish(out, ctx, &options, fgmm_dispatch_named(ctx));
}

fgmm_status fgmm_context_create_over(fgmm_context **out, const fgmm_context_options *given,
                                     const fgmm_backend *(*find)(fgmm_context *, char *, size_t),
                                     const fgmm_open_request *request) {
    *out = NULL;
    fgmm_context_options options;
    fgmm_context *ctx = NULL;
    FGMM_TRY(read_options(&options, given));
    FGMM_TRY(context_new(&ctx, &options));
    snprintf(ctx->device, sizeof ctx->device, "opencl");
    char why[512] = "";
    const fgmm_backend *backend = find(ctx, why, sizeof why);
    fgmm_status status = backend ? fgmm_dispatch_open(ctx, &ctx->opencl, backend, request)
                                 : fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED, "%s", why);
    return context_finish(out, ctx, &options, status);
}

void fgmm_context_free(fgmm_context *ctx) {
    if (!ctx) return;
    while (ctx->persisted) fgmm_persisted_forget(ctx->persisted);
    fgmm_dispatch_close(&ctx->opencl);
    fgmm_dispatch_close(&ctx->cpu);
    fgmm_allocator allocator = ctx->allocator;
    allocator.free(allocator.user, ctx);
}

const char *fgmm_context_message(const fgmm_context *ctx) {
    return ctx ? ctx->message : "no context";
}
const char *fgmm_context_device(const fgmm_context *ctx) {
    return ctx ? ctx->label : "";
}

void fgmm_context_cancel(fgmm_context *ctx) {
    if (ctx) atomic_store(&ctx->cancelled, 1);
}
