#include "reader.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    BUFFERS_MAX = 8,
    THREADS_MAX = 64,
    PIECE_BYTES = 8 << 20, /* read at a time: enough for a disk, soon enough over for a cancel */
    WAIT_NANOSECONDS = 50 * 1000 * 1000
};

/* A block on its way. */
typedef struct {
    int64_t first, n; /* rows */
    int64_t handed;   /* how many of them threads have taken on */
    int pending;      /* pieces being read */
    unsigned char *data;
} reader_job;

typedef struct {
    fgmm_reader *reader;
    pthread_t thread;
    fgmm_context voice; /* takes the messages of this thread, which the caller's context could not */
} reader_worker;

struct fgmm_reader {
    fgmm_context *ctx;
    const fgmm_rows *rows;
    const fgmm_target *target;
    int64_t block_rows, piece_rows;
    size_t row_bytes;
    int most_buffers, most_threads;
    reader_worker *workers; /* [most_threads], NULL if the calling thread reads */
    int n_workers;          /* running */
    pthread_mutex_t lock;
    pthread_cond_t work, done; /* for threads; for the caller */
    /* Under the lock from here. Jobs are a ring: blocks head .. begun-1 are on their way. */
    reader_job jobs[BUFFERS_MAX];
    int64_t head, begun, end;
    void *idle[BUFFERS_MAX];
    int n_idle, n_buffers; /* buffers that are not kept: idle, in jobs, or with the caller */
    int stopping;
    fgmm_status failed;
    int64_t failed_row; /* of several failures the first row's counts */
    char message[2048];
    fgmm_reader_cost cost;
};

double fgmm_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Threads that copy rows from memory: together they reach its speed. */
enum { COPIERS = 8 };

static int threads_for(const fgmm_context *ctx, const fgmm_rows *rows) {
    int threads = rows->data ? fgmm_threads(ctx) : fgmm_rows_readers(rows), most = rows->data ? COPIERS : THREADS_MAX;
    return threads < most ? threads : most;
}

fgmm_status fgmm_reader_open(fgmm_context *ctx, fgmm_reader **out, const fgmm_rows *rows, const fgmm_target *target,
                             int64_t block_rows, int buffers) {
    *out = NULL;
    fgmm_reader *reader = fgmm_calloc(ctx, 1, sizeof *reader, "a reader");
    if (!reader) return FGMM_ERR_MEMORY;
    int threads = threads_for(ctx, rows);
    reader->ctx = ctx;
    reader->rows = rows;
    reader->target = target;
    reader->block_rows = block_rows;
    reader->row_bytes = (size_t)rows->d * fgmm_dtype_size(rows->type);
    reader->most_buffers = buffers < 2 ? 2 : buffers > BUFFERS_MAX ? BUFFERS_MAX : buffers;
    reader->most_threads = threads;
    int64_t piece = PIECE_BYTES / (int64_t)reader->row_bytes;
    /* Threads that read together share out even a small block. */
    if (threads > 1 && piece > block_rows / threads) piece = block_rows / threads;
    reader->piece_rows = piece > 0 ? piece : 1;
    if (threads > 0) {
        reader->workers = fgmm_calloc(ctx, (size_t)reader->most_threads, sizeof *reader->workers, "readers");
        if (!reader->workers) {
            fgmm_free(ctx, reader);
            return FGMM_ERR_MEMORY;
        }
    }
    pthread_mutex_init(&reader->lock, NULL);
    pthread_cond_init(&reader->work, NULL);
    pthread_cond_init(&reader->done, NULL);
    *out = reader;
    return FGMM_OK;
}

/* ---- buffers ---- */

static size_t buffer_bytes(const fgmm_reader *reader) {
    int64_t rows = reader->rows->n < reader->block_rows ? reader->rows->n : reader->block_rows;
    return (size_t)rows * reader->row_bytes;
}

static void *buffer_new(fgmm_reader *reader) {
    const fgmm_target *target = reader->target;
    size_t bytes = buffer_bytes(reader);
    int stages = target->facts.stages && reader->rows->type != FGMM_F64 && reader->rows->n > reader->block_rows;
    if (stages && fgmm_memory_hold(reader->ctx, bytes)) {
        void *staged = target->backend->stage(target->device, bytes);
        if (staged) return staged;
        fgmm_memory_drop(reader->ctx, bytes);
    }
    return fgmm_alloc(reader->ctx, bytes, "a block of rows");
}

static void buffer_free(fgmm_reader *reader, void *buffer) {
    const fgmm_target *target = reader->target;
    if (target->facts.stages && target->backend->unstage(target->device, buffer))
        fgmm_memory_drop(reader->ctx, buffer_bytes(reader));
    else
        fgmm_free(reader->ctx, buffer);
}

void fgmm_reader_close(fgmm_reader *reader) {
    if (!reader) return;
    fgmm_reader_stop(reader);
    while (reader->n_idle > 0) buffer_free(reader, reader->idle[--reader->n_idle]);
    pthread_cond_destroy(&reader->done);
    pthread_cond_destroy(&reader->work);
    pthread_mutex_destroy(&reader->lock);
    fgmm_free(reader->ctx, reader->workers);
    fgmm_free(reader->ctx, reader);
}

/* ---- threads ---- */

static reader_job *job_of(fgmm_reader *reader, int64_t block) {
    return &reader->jobs[block % reader->most_buffers];
}

/* Puts an idle buffer to the next block, if there are both. */
static reader_job *begin_job(fgmm_reader *reader) {
    if (reader->begun == reader->end || reader->n_idle == 0) return NULL;
    reader_job *job = job_of(reader, reader->begun);
    int64_t first = reader->begun * reader->block_rows, left = reader->rows->n - first;
    *job = (reader_job){.first = first,
                        .n = left < reader->block_rows ? left : reader->block_rows,
                        .data = reader->idle[--reader->n_idle]};
    reader->begun++;
    return job;
}

/* The block that rows are to be read of next; NULL if there is nothing to do now. */
static reader_job *next_job(fgmm_reader *reader) {
    if (reader->failed) return NULL;
    if (reader->begun > reader->head) {
        reader_job *last = job_of(reader, reader->begun - 1);
        if (last->handed < last->n) return last;
    }
    return begin_job(reader);
}

/* Reads one piece of job, without the lock. */
static void read_piece(reader_worker *worker, reader_job *job) {
    fgmm_reader *reader = worker->reader;
    int64_t from = job->handed, n = job->n - from < reader->piece_rows ? job->n - from : reader->piece_rows;
    int64_t first = job->first + from;
    unsigned char *to = job->data + (size_t)from * reader->row_bytes;
    job->handed += n;
    job->pending++;
    pthread_mutex_unlock(&reader->lock);
    double began = fgmm_now();
    fgmm_status status = fgmm_rows_read(&worker->voice, reader->rows, first, n, to);
    double seconds = fgmm_now() - began;
    pthread_mutex_lock(&reader->lock);
    job->pending--;
    reader->cost.seconds += seconds;
    if (status == FGMM_OK) {
        reader->cost.bytes += (double)n * (double)reader->row_bytes;
    } else if (!reader->failed || first < reader->failed_row) {
        reader->failed = status;
        reader->failed_row = first;
        snprintf(reader->message, sizeof reader->message, "%s", worker->voice.message);
    }
    if (job->pending == 0 && (job->handed == job->n || reader->failed)) pthread_cond_signal(&reader->done);
}

static void *run_worker(void *user) {
    reader_worker *worker = user;
    fgmm_reader *reader = worker->reader;
    pthread_mutex_lock(&reader->lock);
    while (!reader->stopping) {
        reader_job *job = next_job(reader);
        if (!job) {
            pthread_cond_wait(&reader->work, &reader->lock);
            continue;
        }
        /* The others may begin the next piece. */
        pthread_cond_signal(&reader->work);
        read_piece(worker, job);
    }
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

static fgmm_status fit_buffers(fgmm_reader *reader, int64_t blocks) {
    int wanted = blocks < reader->most_buffers ? (int)blocks : reader->most_buffers;
    while (reader->n_buffers < wanted) {
        void *buffer = buffer_new(reader);
        if (!buffer) return FGMM_ERR_MEMORY;
        reader->idle[reader->n_idle++] = buffer;
        reader->n_buffers++;
    }
    return FGMM_OK;
}

fgmm_status fgmm_reader_start(fgmm_reader *reader, int64_t first, int64_t end) {
    reader->head = reader->begun = first;
    reader->end = end;
    reader->failed = FGMM_OK;
    reader->stopping = 0;
    reader->cost = (fgmm_reader_cost){0};
    /* Nothing more to read: pinned memory is dear. */
    while (end == first && reader->n_idle > 0) {
        buffer_free(reader, reader->idle[--reader->n_idle]);
        reader->n_buffers--;
    }
    FGMM_TRY(fit_buffers(reader, end - first));
    reader->n_workers = 0;
    for (int i = 0; reader->workers && i < reader->most_threads && end > first; i++) {
        reader_worker *worker = &reader->workers[i];
        memset(worker, 0, sizeof *worker);
        worker->reader = reader;
        worker->voice.root = reader->ctx;
        /* With fewer threads, or none, the rows are read all the same. */
        if (pthread_create(&worker->thread, NULL, run_worker, worker) != 0) break;
        reader->n_workers++;
    }
    return FGMM_OK;
}

void fgmm_reader_stop(fgmm_reader *reader) {
    pthread_mutex_lock(&reader->lock);
    reader->stopping = 1;
    for (int i = 0; i < reader->n_workers; i++) fgmm_context_cancel(&reader->workers[i].voice);
    pthread_cond_broadcast(&reader->work);
    pthread_mutex_unlock(&reader->lock);
    for (int i = 0; i < reader->n_workers; i++) pthread_join(reader->workers[i].thread, NULL);
    reader->n_workers = 0;
    for (; reader->head < reader->begun; reader->head++)
        reader->idle[reader->n_idle++] = job_of(reader, reader->head)->data;
}

/* ---- the caller ---- */

static int head_is_done(const fgmm_reader *reader) {
    if (reader->head == reader->begun) return reader->failed != FGMM_OK;
    const reader_job *job = &reader->jobs[reader->head % reader->most_buffers];
    return job->pending == 0 && (job->handed == job->n || reader->failed);
}

int fgmm_reader_ready(fgmm_reader *reader) {
    if (reader->n_workers == 0) return 1;
    pthread_mutex_lock(&reader->lock);
    int ready = head_is_done(reader);
    pthread_mutex_unlock(&reader->lock);
    return ready;
}

/* Reads the block in the calling thread. */
static fgmm_status read_now(fgmm_reader *reader) {
    reader_job *job = begin_job(reader);
    if (!job) return fgmm_fail(reader->ctx, FGMM_ERR_INTERNAL, "a block is read while all buffers are out");
    double began = fgmm_now();
    FGMM_TRY(fgmm_rows_read(reader->ctx, reader->rows, job->first, job->n, job->data));
    job->handed = job->n;
    reader->cost.seconds += fgmm_now() - began;
    reader->cost.bytes += (double)job->n * (double)reader->row_bytes;
    return FGMM_OK;
}

/* Waits until the first block under way is whole, or cannot become so. */
static fgmm_status await_head(fgmm_reader *reader, fgmm_status (*idle)(void *user), void *user) {
    fgmm_status status = FGMM_OK;
    pthread_mutex_lock(&reader->lock);
    while (status == FGMM_OK && !head_is_done(reader)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_NANOSECONDS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&reader->done, &reader->lock, &until) == 0) continue;
        pthread_mutex_unlock(&reader->lock);
        status = idle(user);
        pthread_mutex_lock(&reader->lock);
    }
    pthread_mutex_unlock(&reader->lock);
    return status;
}

fgmm_status fgmm_reader_take(fgmm_reader *reader, void **data, fgmm_status (*idle)(void *user), void *user) {
    FGMM_TRY(reader->n_workers == 0 ? read_now(reader) : await_head(reader, idle, user));
    pthread_mutex_lock(&reader->lock);
    reader_job *job = job_of(reader, reader->head);
    int whole = reader->head < reader->begun && job->handed == job->n &&
                (!reader->failed || reader->failed_row >= job->first + job->n);
    if (whole) {
        *data = job->data;
        reader->head++;
    }
    pthread_mutex_unlock(&reader->lock);
    /* Nobody writes the message once the block that failed is done. */
    return whole ? FGMM_OK : fgmm_fail(reader->ctx, reader->failed, "%s", reader->message);
}

void fgmm_reader_give(fgmm_reader *reader, void *data) {
    pthread_mutex_lock(&reader->lock);
    reader->idle[reader->n_idle++] = data;
    pthread_cond_signal(&reader->work);
    pthread_mutex_unlock(&reader->lock);
}

fgmm_status fgmm_reader_keep(fgmm_reader *reader) {
    pthread_mutex_lock(&reader->lock);
    int64_t left = reader->end - reader->head; /* blocks that are still to be taken */
    int spare = reader->n_buffers - 1 >= left;
    if (spare) reader->n_buffers--;
    pthread_mutex_unlock(&reader->lock);
    if (spare) return FGMM_OK;
    void *other = buffer_new(reader);
    if (!other) return FGMM_ERR_MEMORY;
    fgmm_reader_give(reader, other);
    return FGMM_OK;
}

fgmm_reader_cost fgmm_reader_spent(fgmm_reader *reader) {
    pthread_mutex_lock(&reader->lock);
    fgmm_reader_cost cost = reader->cost;
    pthread_mutex_unlock(&reader->lock);
    return cost;
}
