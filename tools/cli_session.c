/* The session: the context with its log, bar and Ctrl-C, and checks of what will be written. */
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* A signal handler has nothing but globals to find the context by. */
static _Atomic(fgmm_context *) interrupted_context;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number; /* SA_RESETHAND: a second Ctrl-C kills */
    interrupted = 1;
    fgmm_context *ctx = atomic_load(&interrupted_context);
    if (ctx) fgmm_context_cancel(ctx);
}

void cli_at_work(fgmm_context *ctx) {
    atomic_store(&interrupted_context, ctx);
}

int cli_interrupted(void) {
    return interrupted;
}

void cli_say(const char *format, ...) {
    va_list args;
    progress_wipe();
    va_start(args, format);
    fputs("flashgmm: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static void on_log(void *user, fgmm_log_level level, const char *line) {
    const cli_session *s = user;
    if (level == FGMM_LOG_WARNING) {
        if (!s->quiet) cli_say("warning: %s", line);
    } else if (level > FGMM_LOG_WARNING) {
        if (s->verbose) cli_say("%s", line);
    }
    /* Errors come back as a status with its message, which is printed once, by cli_failed. */
}

/* What was ignored from the start stays so, as nohup and background jobs of a shell expect. */
static void catch_signal(int number, const struct sigaction *action) {
    struct sigaction old;
    if (sigaction(number, NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(number, action, NULL);
}

/* A context as the session's options have it; one beside the session's own says nothing while it runs. */
static int open_context(const cli_command *self, cli_session *s, const char *device, int threads,
                        fgmm_progress_fn progress, fgmm_context **out) {
    char why[2048] = "";
    fgmm_context_options o = FGMM_CONTEXT_OPTIONS_INIT;
    o.device = device;
    o.threads = threads;
    o.cpu_isa = s->cpu_isa;
    o.host_memory_limit = s->host_memory / (size_t)(s->sharers > 1 ? s->sharers : 1);
    o.host_sharers = s->sharers;
    o.device_memory_limit = s->device_memory;
    o.log = out == &s->ctx ? on_log : NULL;
    o.log_user = s;
    o.log_level = s->verbose ? FGMM_LOG_DEBUG : FGMM_LOG_WARNING;
    o.progress = progress;
    o.progress_user = s->progress ? s->progress_user : s;
    o.error = why;
    o.error_size = sizeof why;
    fgmm_status status = fgmm_context_create(out, &o);
    if (status == FGMM_ERR_INVALID) return cli_usage(self, "%s", why);
    if (status != FGMM_OK) {
        cli_say("%s", why[0] ? why : fgmm_status_name(status));
        return CLI_FAILED;
    }
    return CLI_DONE;
}

int cli_threads_each(const cli_session *s, int sharers) {
    if (s->threads || sharers < 2 || getenv("OMP_NUM_THREADS")) return s->threads;
    int each = (int)sysconf(_SC_NPROCESSORS_ONLN) / sharers;
#ifdef _OPENMP
    if (each > omp_get_num_procs()) each = omp_get_num_procs(); /* a rank that is bound to its share already */
#endif
    return each < 1 ? 1 : each;
}

int cli_open_another(const cli_command *self, cli_session *s, const char *device, int sharers, fgmm_context **out) {
    return open_context(self, s, device, cli_threads_each(s, sharers), NULL, out);
}

int cli_open(const cli_command *self, cli_session *s) {
    s->bar = isatty(STDERR_FILENO) && !s->quiet;
    fgmm_progress_fn progress = s->progress ? s->progress : s->bar || s->log ? cli_progress : NULL;
    int rc = open_context(self, s, s->device, s->threads, progress, &s->ctx);
    if (rc != CLI_DONE) return rc;
    cli_at_work(s->ctx);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)(SA_RESETHAND | SA_RESTART);
    catch_signal(SIGINT, &action);
    catch_signal(SIGTERM, &action);
    signal(SIGXFSZ, SIG_IGN); /* a file over the user's limit is then a failed write, with a message */
    return CLI_DONE;
}

void cli_close(cli_session *s) {
    progress_wipe();
    cli_at_work(NULL);
    fgmm_context_free(s->ctx);
    s->ctx = NULL;
    if (s->log_file) fclose(s->log_file);
    s->log_file = NULL;
}

int cli_failed(const cli_session *s, fgmm_status status) {
    const char *message = fgmm_context_message(s->ctx);
    if (status == FGMM_ERR_CANCELLED) {
        cli_say("cancelled");
    } else {
        cli_say("%s", message[0] ? message : fgmm_status_name(status));
    }
    return CLI_FAILED;
}

fgmm_compute_options cli_compute_options(const cli_compute *c) {
    fgmm_compute_options o = FGMM_COMPUTE_OPTIONS_INIT;
    o.precision = (fgmm_precision)c->precision;
    o.engine = (fgmm_engine)c->engine;
    o.nonfinite = (fgmm_nonfinite)c->nonfinite;
    o.block_rows = c->block_rows;
    return o;
}

const char *cli_precision_name(fgmm_precision precision) {
    return precision == FGMM_DOUBLE ? "double" : precision == FGMM_FAST ? "fast" : "exact";
}

const char *cli_engine_name(fgmm_engine engine) {
    return engine == FGMM_ENGINE_SCREEN ? "screen" : engine == FGMM_ENGINE_DENSE ? "dense" : "auto";
}

const char *cli_dtype_name(fgmm_dtype type) {
    static const char *const names[] = {"f32", "f64", "f16", "bf16", "u8", "i8", "i32", "i64"};
    return (unsigned)type < sizeof names / sizeof names[0] ? names[type] : "unknown";
}

int cli_ends_with(const char *text, const char *ending) {
    size_t n = strlen(text), m = strlen(ending);
    return n > m && strcmp(text + n - m, ending) == 0;
}

/* The folder that a file is in. @return to be freed, or NULL */
static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static int same_inode(const char *a, const char *b) {
    struct stat at_a, at_b;
    return stat(a, &at_a) == 0 && stat(b, &at_b) == 0 && at_a.st_dev == at_b.st_dev && at_a.st_ino == at_b.st_ino;
}

int cli_same_file(const char *a, const char *b) {
    const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
    if (same_inode(a, b)) return 1;
    if (strcmp(slash_a ? slash_a + 1 : a, slash_b ? slash_b + 1 : b) != 0) return 0;
    char *folder_a = folder_of(a), *folder_b = folder_of(b);
    int same = strcmp(a, b) == 0 || (folder_a && folder_b && same_inode(folder_a, folder_b));
    free(folder_a);
    free(folder_b);
    return same;
}

int cli_check_output(const cli_command *self, const char *path, const char *ending, double bytes, cli_files inputs) {
    struct stat at_path, at_folder;
    struct statvfs space;
    if (!cli_ends_with(path, ending)) return cli_usage(self, "the output '%s' must end in %s", path, ending);
    int exists = stat(path, &at_path) == 0;
    if (exists && S_ISDIR(at_path.st_mode)) return cli_say("cannot write '%s': it is a folder", path), CLI_FAILED;
    for (size_t i = 0; i < sizeof inputs.name / sizeof *inputs.name; i++) {
        const char *input = inputs.name[i];
        if (input && cli_same_file(path, input))
            return cli_usage(self, "the output '%s' is the input itself: '%s'", path, input);
    }
    char *folder = folder_of(path);
    if (!folder) return cli_say("no memory"), CLI_FAILED;
    int rc = CLI_FAILED;
    if (stat(folder, &at_folder) != 0) {
        cli_say("cannot write '%s': folder '%s': %s", path, folder, strerror(errno));
    } else if (!S_ISDIR(at_folder.st_mode)) {
        cli_say("cannot write '%s': '%s' is not a folder", path, folder);
    } else if (access(folder, W_OK | X_OK) != 0) {
        cli_say("cannot write '%s': folder '%s': %s", path, folder, strerror(errno));
    } else if (statvfs(folder, &space) == 0 && (double)space.f_bavail * (double)space.f_frsize < bytes) {
        cli_say("cannot write '%s': needs about %.0f bytes, and '%s' has %.0f left", path, bytes, folder,
                (double)space.f_bavail * (double)space.f_frsize);
    } else {
        rc = CLI_DONE;
    }
    free(folder);
    return rc;
}

double cli_model_bytes(fgmm_covariance type, int64_t k, int64_t d) {
    double covariances = type == FGMM_SPHERICAL ? 1.0 : (double)d * (type == FGMM_DIAG ? 1.0 : (double)d);
    double means = (double)k * (1.0 + (double)d);
    return 8.0 * (means + covariances * (type == FGMM_TIED ? 1.0 : (double)k)) + 4096.0;
}

void *cli_alloc(int64_t count, size_t size, const char *what) {
    void *p = NULL;
    if (count >= 0 && (uint64_t)count <= SIZE_MAX / size) p = malloc(count ? (size_t)count * size : 1);
    if (!p) cli_say("no memory for %s (%lld x %zu bytes)", what, (long long)count, size);
    return p;
}
