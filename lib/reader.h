/*
 * The reader fills staging buffers with the blocks of a source, in order, from threads of its own, while its caller
 * works on those that are there. A source that may be read from the calling thread alone is read when a block is taken.
 */
#ifndef FGMM_LIB_READER_H
#define FGMM_LIB_READER_H

#include "dispatch.h"
#include "rows.h"

typedef struct fgmm_reader fgmm_reader;

/* What reading has cost since the last start. */
typedef struct fgmm_reader_cost {
    double seconds; /* over all threads, while they read */
    double bytes;
} fgmm_reader_cost;

/* @param target whose staging memory is read into, if it has any. @param block_rows rows a block, but for the last.
 * @param buffers how many blocks may be held unkept at a time, 2 or more. */
fgmm_status fgmm_reader_open(fgmm_context *ctx, fgmm_reader **out, const fgmm_rows *rows, const fgmm_target *target,
                             int64_t block_rows, int buffers);
void fgmm_reader_close(fgmm_reader *reader);

/* Sets out for blocks first .. end-1, until stop. No buffer may be out. */
fgmm_status fgmm_reader_start(fgmm_reader *reader, int64_t first, int64_t end);
void fgmm_reader_stop(fgmm_reader *reader);

/* Whether take would not wait for a thread. */
int fgmm_reader_ready(fgmm_reader *reader);

/* The next block in order, packed, the caller's until it is given back or kept. @param idle called several times a
 * second while there is nothing but waiting; its failure ends that. @return also what reading the block failed with. */
fgmm_status fgmm_reader_take(fgmm_reader *reader, void **data, fgmm_status (*idle)(void *user), void *user);

/* Gives a block back; its buffer is filled again. */
void fgmm_reader_give(fgmm_reader *reader, void *data);

/* Leaves a block that is out to the caller for good, to be freed by fgmm_free, with a new buffer in its place if one is
 * still needed. Not where the target stages. FGMM_ERR_MEMORY: there is no other, and the block is to be given back. */
fgmm_status fgmm_reader_keep(fgmm_reader *reader);

fgmm_reader_cost fgmm_reader_spent(fgmm_reader *reader);

double fgmm_now(void); /* seconds, monotonic */

#endif
