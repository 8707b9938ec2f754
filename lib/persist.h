/*
 * Rows that persist: their feed outlives the call, with the blocks that it keeps on the device, what devices have learned of these rows, and what
 * the scan for NaN and Inf found.
 */
#ifndef FGMM_LIB_PERSIST_H
#define FGMM_LIB_PERSIST_H

#include "feed.h"

/* Whether this context keeps what its calls over these rows leave. */
int fgmm_persists(const fgmm_context *ctx, const fgmm_rows *rows);

/* The feed that the last call left, the caller's from now on; NULL: none. */
fgmm_feed *fgmm_persisted_take(fgmm_context *ctx, const fgmm_rows *rows);
/* Leaves it for the next call. @return 0 where rows do not persist: the feed is still the caller's */
int fgmm_persisted_give(fgmm_context *ctx, const fgmm_rows *rows, fgmm_feed *feed);

/* Whether anything is kept of any rows that no call is working on. */
int fgmm_persisted_any(const fgmm_context *ctx);

/* Frees what is kept of the rows, or of all rows (NULL), which persist all the same. @return whether there was anything */
int fgmm_persisted_drop(fgmm_context *ctx, const fgmm_rows *rows);

/* After a backend's call that ended with `status`: frees what is kept of all rows where memory ran short. @return whether the call is
 * worth making again: there was something, and the message is forgotten */
int fgmm_persisted_give_way(fgmm_context *ctx, fgmm_status status);

/* Of rows that are going to be freed. */
void fgmm_persisted_forget(fgmm_rows *rows);

#endif
