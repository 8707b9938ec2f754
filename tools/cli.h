/* What the commands of `flashgmm` share: options, the session with its bar, JSON. */
#ifndef FLASHGMM_TOOLS_CLI_H
#define FLASHGMM_TOOLS_CLI_H

#include <flashgmm/flashgmm.h>

#include <stdio.h>

/* Exit codes; CLI_GO_ON is for cli_parse alone: the command has its options and may start. */
enum { CLI_GO_ON = -1, CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* ---- options ----------------------------------------------------------------------------- */

typedef enum cli_kind {
    CLI_FLAG,   /* int, set to 1 */
    CLI_INT,    /* int */
    CLI_INT64,  /* int64_t */
    CLI_SEED,   /* uint64_t, the whole range */
    CLI_REAL,   /* double, finite */
    CLI_BYTES,  /* size_t: a number with K, M, G or T (of 1024) behind it, or without */
    CLI_TEXT,   /* const char * */
    CLI_CHOICE, /* int: which of `hint` */
    CLI_SET     /* unsigned: bit i for the i-th of `hint`; given as a comma-separated list */
} cli_kind;

typedef struct cli_option {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* short form, or 0 */
    cli_kind kind;
    void *value;
    double low, high; /* numbers: what is accepted */
    const char *hint; /* the choices as "a|b|c", or what stands for the value in the help */
    const char *help;
} cli_option;

typedef struct cli_command {
    const char *name;    /* "fit", "bench estep" */
    const char *summary; /* one line */
    const char *usage;   /* what follows the name */
    const char *example;
    int operands; /* how many file names it takes: 0, 1, or any number from 1 to this */
    int (*run)(const struct cli_command *self, int argc, char **argv);
} cli_command;

extern const cli_command cmd_devices, cmd_fit, cmd_kmeans, cmd_merge, cmd_partial_fit, cmd_select, cmd_predict,
    cmd_score, cmd_sample, cmd_export, cmd_info, cmd_tune, cmd_bench_estep, cmd_bench_em, cmd_ivf_train, cmd_ivf_build,
    cmd_ivf_search, cmd_ivf_eval;

/* Reads argv[1..] into the table's values. @param operand where the file names go, NULL if it takes none; as many as there are arguments.
 * @return CLI_GO_ON, or the exit code: CLI_DONE after --help, CLI_USAGE after a message. */
int cli_parse(const cli_command *self, const cli_option *options, int argc, char **argv, const char **operand);

/* A message about wrong usage with the way to the help. @return CLI_USAGE */
int cli_usage(const cli_command *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A message on stderr, "flashgmm: ..."; the bar is wiped first. */
void cli_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- session ----------------------------------------------------------------------------- */

/* Zero-initialise; the first part is filled by CLI_SESSION_OPTIONS. */
typedef struct cli_session {
    const char *device, *cpu_isa;
    int threads, quiet, json, verbose;
    size_t host_memory, device_memory;
    int sharers;               /* contexts on this machine that share host_memory; 0: one */
    const char *log;           /* filled by CLI_LOG_OPTION */
    fgmm_progress_fn progress; /* in place of cli_progress */
    void *progress_user;
    fgmm_context *ctx;
    int bar;                        /* a bar is drawn */
    FILE *log_file;                 /* NULL where there is no log, or no more */
    int log_restart, log_iteration; /* the last one logged */
} cli_session;

#define CLI_SESSION_OPTIONS(s)                                                                                         \
    {"device", 0, CLI_TEXT, &(s)->device, 0, 0, "NAME", "auto, cpu, opencl, opencl:NAME or opencl:P.D"},               \
        {"threads", 0, CLI_INT, &(s)->threads, 1, 65536, "N", "CPU threads (default: all)"},                           \
        {"host-memory",                                                                                                \
         0,                                                                                                            \
         CLI_BYTES,                                                                                                    \
         &(s)->host_memory,                                                                                            \
         0,                                                                                                            \
         0,                                                                                                            \
         "BYTES",                                                                                                      \
         "hold no more in the host's memory, e.g. 4G (default: no limit)"},                                            \
        {"device-memory",                                                                                              \
         0,                                                                                                            \
         CLI_BYTES,                                                                                                    \
         &(s)->device_memory,                                                                                          \
         0,                                                                                                            \
         0,                                                                                                            \
         "BYTES",                                                                                                      \
         "hold no more on an OpenCL device (default: 80% of it)"},                                                     \
        {"cpu-isa", 0, CLI_TEXT, &(s)->cpu_isa, 0, 0, "NAME", "scalar, baseline, avx2, avx512 or neon"},               \
        {"json", 0, CLI_FLAG, &(s)->json, 0, 0, 0, "print one JSON object on stdout"},                                 \
        {"quiet", 'q', CLI_FLAG, &(s)->quiet, 0, 0, 0, "no bar, no report, errors only"}, {                            \
        "verbose", 'v', CLI_FLAG, &(s)->verbose, 0, 0, 0, "say what is being done"                                     \
    }

#define CLI_LOG_OPTION(s)                                                                                              \
    { "log", 0, CLI_TEXT, &(s)->log, 0, 0, "FILE", "write a line of JSON an iteration" }

#define CLI_COMPUTE_OPTIONS(c)                                                                                         \
    {"precision", 0, CLI_CHOICE, &(c)->precision, 0, 0, "exact|fast|double", "default exact"},                         \
        {"engine", 0, CLI_CHOICE, &(c)->engine, 0, 0, "auto|screen|dense", "default auto"},                            \
        {"on-nonfinite", 0, CLI_CHOICE, &(c)->nonfinite, 0, 0, "error|skip", "rows with NaN or Inf (default error)"},  \
        {"block-rows", 0, CLI_INT64, &(c)->block_rows, 1, 9e15, "N", "rows a block (default: by the memory)"}, {       \
        "format", 0, CLI_TEXT, &(c)->format, 0, 0, "NAME", "npy, fvecs, bvecs, fbin, u8bin, i8bin or hdf5"             \
    }

/* What CLI_COMPUTE_OPTIONS fills. */
typedef struct cli_compute {
    int precision, engine, nonfinite;
    int64_t block_rows;
    const char *format;
} cli_compute;

fgmm_compute_options cli_compute_options(const cli_compute *c);
const char *cli_precision_name(fgmm_precision precision);
const char *cli_engine_name(fgmm_engine engine);
const char *cli_dtype_name(fgmm_dtype type);

/* Opens the context; from here Ctrl-C cancels the running call and a second one kills.
 * @param self for a device that has no such form: wrong usage. @return CLI_DONE, or an exit code after a message. */
int cli_open(const cli_command *self, cli_session *s);
void cli_close(cli_session *s);

/* Whose call Ctrl-C cancels, where that is not the session's; NULL: nobody's. */
void cli_at_work(fgmm_context *ctx);
/* Whether Ctrl-C or SIGTERM came. */
int cli_interrupted(void);

/* A context on another device with the session's options, to be freed with fgmm_context_free. @param sharers how many
 * such share the CPU's threads. @return CLI_DONE, or an exit code after a message. */
int cli_open_another(const cli_command *self, cli_session *s, const char *device, int sharers, fgmm_context **out);
/* CPU threads of each of so many contexts; 0: all. */
int cli_threads_each(const cli_session *s, int sharers);

/* Says why the last call on the context failed. @return CLI_FAILED */
int cli_failed(const cli_session *s, fgmm_status status);

/* One file under two names, also "s.npy" and "./s.npy". */
int cli_same_file(const char *a, const char *b);

/* Names of files, NULL where there is none. */
typedef struct cli_files {
    const char *name[5];
} cli_files;

/* Finds what would make writing `path` fail before the work is done: wrong ending, missing folder, no right, no
 * room for `bytes`, or an input itself. @param inputs not to write over. A model that a fit starts
 * from is none: it may go on in place.
 * @return CLI_DONE, or an exit code after a message. */
int cli_check_output(const cli_command *self, const char *path, const char *ending, double bytes, cli_files inputs);

/* Opens the log, if one is asked for, before any work. @return CLI_DONE, or an exit code after a message. */
int cli_log_open(const cli_command *self, cli_session *s, cli_files inputs);
/* Writes what p tells of an iteration; a log that cannot be written ends with a warning. */
void cli_log_iteration(cli_session *s, const fgmm_progress *p);

int cli_ends_with(const char *text, const char *ending);

/* What a model file of this shape takes. */
double cli_model_bytes(fgmm_covariance type, int64_t k, int64_t d);

/* count * size bytes. @return NULL after a message. */
void *cli_alloc(int64_t count, size_t size, const char *what);

/* ---- arrays the library's interface does not read ---------------------------------------- */

/* A numeric .npy of shape (n,) or (n, 1), as doubles. @param out to be freed with free().
 * @return NULL, or why not (text in `error`). */
const char *npy_read_column(const char *path, double **out, int64_t *n, char *error, size_t error_size);

/* Seconds of a clock that only goes forward. */
double cli_now(void);

/* ---- progress bar ------------------------------------------------------------------------ */

/* A fgmm_progress_fn: draws on stderr, which the caller has found to be a terminal. */
int progress_draw(void *user, const fgmm_progress *p);
void progress_wipe(void);
/* The context's progress callback: the log and the bar. user is the cli_session. */
int cli_progress(void *user, const fgmm_progress *p);

/* ---- JSON: one object on stdout ---------------------------------------------------------- */

typedef struct json_out {
    FILE *file;
    int items; /* written so far at this depth */
} json_out;

json_out json_begin(FILE *file);
void json_end(json_out *j); /* closes the object and the line */
void json_text(json_out *j, const char *key, const char *value);
void json_int(json_out *j, const char *key, int64_t value);
void json_real(json_out *j, const char *key, double value); /* null if not finite */
void json_bool(json_out *j, const char *key, int value);
void json_warnings(json_out *j, const fgmm_report *report);
void json_raw(json_out *j, const char *key, const char *value); /* value is JSON already */
/* An array of objects under key: open the array, begin and end each object, close the array. */
void json_array(json_out *j, const char *key);
void json_object(json_out *j);
void json_close(json_out *j, char bracket);

#endif
