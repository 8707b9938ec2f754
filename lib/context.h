/* The context: messages, memory, log, cancel, and the opened device. */
#ifndef FGMM_LIB_CONTEXT_H
#define FGMM_LIB_CONTEXT_H

#include "backend.h"

/* Forwards a failure. */
#define FGMM_TRY(call)                                                                                                 \
    do {                                                                                                               \
        fgmm_status fgmm_try_ = (call);                                                                                \
        if (fgmm_try_ != FGMM_OK) return fgmm_try_;                                                                    \
    } while (0)

/* Forwards a failure to the single exit of a function that holds something: `done:` returns `status`. */
#define FGMM_GO(call)                                                                                                  \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != FGMM_OK) goto done;                                                                              \
    } while (0)

/* Stores a message and returns status. ctx may be NULL (the message is then lost). */
fgmm_status fgmm_fail(fgmm_context *ctx, fgmm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void fgmm_log(fgmm_context *ctx, fgmm_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* 64-byte aligned memory through the caller's allocator; counted for peak_host_bytes. NULL only with the message
 * "no memory for ..." stored; bytes 0 gives a valid pointer. */
void *fgmm_alloc(fgmm_context *ctx, size_t bytes, const char *what);
/* count * size with an overflow check, zeroed. */
void *fgmm_calloc(fgmm_context *ctx, size_t count, size_t size, const char *what);
void fgmm_free(fgmm_context *ctx, void *pointer);
/* Counts memory that another allocates; 0 if the limit has no room for it. */
int fgmm_memory_hold(fgmm_context *ctx, size_t bytes);
void fgmm_memory_drop(fgmm_context *ctx, size_t bytes);
char *fgmm_strdup(fgmm_context *ctx, const char *text);

/* A quarter of the machine's memory in bytes: what rows may take of it. */
double fgmm_memory_quarter(void);
/* The context's part of that. */
double fgmm_memory_share(const fgmm_context *ctx);
/* What the context's limit on host memory leaves; infinite without one. */
double fgmm_memory_left(const fgmm_context *ctx);

int fgmm_cancelled(fgmm_context *ctx);

/* Threads that loops of lib/ may use: the option, else what OpenMP would. */
int fgmm_threads(const fgmm_context *ctx);
/* As many of them as a loop over so many numbers keeps busy: bringing them together takes longer than few numbers. */
int fgmm_threads_over(const fgmm_context *ctx, double cells);
/* Copies or clears `count` doubles, with those threads where there are many. */
void fgmm_copy(fgmm_context *ctx, double *to, const double *from, int64_t count);
void fgmm_zero(fgmm_context *ctx, double *to, int64_t count);
/* Of the thread that asks, in a parallel loop. */
int64_t fgmm_thread_number(void);

#endif
