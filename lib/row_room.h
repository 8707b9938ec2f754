/* How much memory rows take: the size of their blocks, and how many blocks stay between runs. */
#ifndef FGMM_LIB_ROW_ROOM_H
#define FGMM_LIB_ROW_ROOM_H

#include "dispatch.h"
#include "rows.h"

typedef struct fgmm_row_room {
    int64_t block_rows, n_blocks;
    int buffers; /* blocks staged at a time */
    int staged;  /* 1: rows go through staging buffers; 0: they are used, or copied to the device, where they lie */
    int64_t kept_rows_max; /* rows that may stay on the device at most, since it refused more; -1: not known */
    double held;           /* bytes of the blocks that stay and of the buffers, in the host's memory */
    double beside;         /* the most that work space has taken beside them so far */
} fgmm_row_room;

/* @param asked rows a block, 0 for a choice. */
fgmm_status fgmm_row_room_choose(fgmm_context *ctx, fgmm_row_room *out, const fgmm_rows *rows,
                                 const fgmm_device_facts *facts, int64_t asked);

/* Blocks of half the rows. */
void fgmm_row_room_halve(fgmm_row_room *room, const fgmm_rows *rows);

/* Whether the device may hold all rows. */
int fgmm_row_room_holds(const fgmm_rows *rows, const fgmm_device_facts *facts);

/* How many blocks, from the first, may stay now. @param passes all that will be run; @param run how many have been. */
int64_t fgmm_row_room_keep(fgmm_context *ctx, fgmm_row_room *room, const fgmm_rows *rows,
                           const fgmm_device_facts *facts, int64_t passes, int64_t run);

#endif
