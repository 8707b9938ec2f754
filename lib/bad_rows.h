/* Rows that are left out because they hold NaN or Inf: their numbers, ascending. */
#ifndef FGMM_LIB_BAD_ROWS_H
#define FGMM_LIB_BAD_ROWS_H

#include "context.h"

typedef struct fgmm_bad_rows {
    int64_t *rows; /* NULL if there are none */
    int64_t count, room;
} fgmm_bad_rows;

/* The first non-finite element of a row on the host, or -1. Integers have none. */
int64_t fgmm_bad_column(const void *row, fgmm_dtype type, int64_t d);

/* Adds a row behind all others. */
fgmm_status fgmm_bad_rows_add(fgmm_context *ctx, fgmm_bad_rows *bad, int64_t row);

/* How many have numbers below `row`. */
int64_t fgmm_bad_rows_before(const fgmm_bad_rows *bad, int64_t row);

#endif
