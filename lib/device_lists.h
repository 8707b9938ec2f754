/* Searching lists of rows on a device: an index, or a block of rows as one list. */
#ifndef FGMM_LIB_DEVICE_LISTS_H
#define FGMM_LIB_DEVICE_LISTS_H

#include "nearest.h"

/* As the backend's lists_put; what rows that persist have left on the device makes way. */
fgmm_status fgmm_lists_put(fgmm_context *ctx, const fgmm_target *target, const fgmm_lists_source *source,
                           fgmm_lists **out);

/*
 * Pushes the best rows of the lists that each query probes onto its best: best [query->n], each with room for query->k.
 * The query's room, ids, distances and found are set here; computed is added to.
 */
fgmm_status fgmm_lists_best(fgmm_context *ctx, const fgmm_target *target, fgmm_lists *lists, fgmm_lists_query *query,
                            fgmm_best *best, int threads);

#endif
