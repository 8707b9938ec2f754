/* Sources of rows. */
#ifndef FGMM_LIB_ROWS_H
#define FGMM_LIB_ROWS_H

#include "context.h"

/* How a kind of rows is read; lib/io/ adds kinds through fgmm_rows_new. */
typedef struct fgmm_rows_ops {
    /* Fills dst with rows first .. first+n-1, packed, of the rows' type. Called in any order, and by as many threads at a
     * time as fgmm_rows.readers says; ctx is the calling thread's own. */
    fgmm_status (*read)(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst);
    void (*close)(fgmm_context *ctx, void *state); /* NULL if nothing to free */
    /* Told, before rows are read, how often they will be; NULL where that makes no difference. */
    fgmm_status (*prepare)(fgmm_context *ctx, void *state, int64_t passes);
} fgmm_rows_ops;

/* Room for the name of a distance, in a file's own words. */
enum { FGMM_METRIC_NAME = 32 };

struct fgmm_rows {
    fgmm_context *owner;
    fgmm_dtype type;
    int64_t n, d;
    const void *data; /* host memory, row i at data + i * stride_bytes; NULL for the other kinds */
    size_t stride_bytes;
    void *cl_mem; /* a caller's buffer (retained), or NULL */
    size_t offset;
    unsigned n_wait;
    void **wait_list;         /* retained events */
    const fgmm_rows_ops *ops; /* file or callback; NULL for memory and cl_mem */
    void *state;
    int once;                /* ranges can be read only once, in order */
    int readers;             /* threads that may read at a time: 0, the caller's alone; 1 or more, others too */
    const fgmm_rows *parent; /* a slice reads through its parent */
    int64_t parent_first;
    const double *weights;         /* [n] borrowed, or NULL */
    char metric[FGMM_METRIC_NAME]; /* the distance that the file names, or "" */
    int persistent;                /* among the owner's persisted rows (persist.h) */
    struct fgmm_rows *next_persisted;
    struct fgmm_feed *feed; /* of the last call, or NULL */
};

/* Rows over ops; on failure state is closed. */
fgmm_status fgmm_rows_new(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows_ops *ops, void *state, fgmm_dtype type,
                          int64_t n, int64_t d);

/* Gets ready for so many passes over the rows or a slice of them. */
fgmm_status fgmm_rows_prepare(fgmm_context *ctx, const fgmm_rows *rows, int64_t passes);

/* The same as fgmm_rows.once, of what a slice is of now. */
int fgmm_rows_once(const fgmm_rows *rows);

/* The same as fgmm_rows.readers, of what a slice is of too. */
int fgmm_rows_readers(const fgmm_rows *rows);

/* Packed copy of a range, for host kinds (memory, file, callback, slices of them). */
fgmm_status fgmm_rows_read(fgmm_context *ctx, const fgmm_rows *rows, int64_t first, int64_t n, void *dst);

#endif
