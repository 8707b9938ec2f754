/* Parts of a search that calibration and searches on a device need too. */
#ifndef FGMM_LIB_IVF_SEARCH_H
#define FGMM_LIB_IVF_SEARCH_H

#include "ivf_index.h"

/* Most neighbours a query. */
enum { FGMM_NEAREST_MAX = 1 << 20 };

/* Which lists a query probes: the `most` nearest, of these only those within a gap of the nearest one if adaptive. */
typedef struct fgmm_ivf_probing {
    int adaptive;
    double gap;
    int64_t most;
    const float *between; /* NULL, or index->between: the gap is a bent one */
} fgmm_ivf_probing;

/* A scan's output for a centroid as a distance, smaller nearer. */
static inline float fgmm_ivf_to_list(float x, int dot) {
    if (x != x) return INFINITY; /* sums that overflowed either way: far */
    return dot ? -x : x;
}

/* What the options of a search come to. */
typedef struct fgmm_ivf_plan {
    fgmm_ivf_probing probing;
    const uint8_t *filter; /* or NULL */
    int64_t filter_size;
} fgmm_ivf_plan;

fgmm_status fgmm_ivf_plan_read(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_ivf_search_options *options,
                               fgmm_ivf_plan *plan);

/* Marks the lists that a query with these distances to all k of them probes, in bits that are zero. sorting [k]: room.
 * @return the nearest list. */
int32_t fgmm_ivf_choose_probes(const fgmm_ivf_probing *probing, const float *distance, int64_t k, float *sorting,
                               uint64_t *probed);

fgmm_status fgmm_ivf_query_check(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_rows *queries, int64_t k);

/* The gap that gives a recall, 0 < target < 1, in a calibrated index. */
fgmm_status fgmm_ivf_gap_of(fgmm_context *ctx, const fgmm_ivf *index, double target, double *gap);

/* Distances of n packed float queries [n, stride] to all centroids, smaller nearer: to_lists [n, K]. pointers [n] and
 * out [n, FGMM_SCAN_ROWS] are room. */
void fgmm_ivf_to_lists(const fgmm_ivf *index, const fgmm_target *target, const float *queries, int64_t n,
                       int64_t stride, const void **pointers, float *out, float *to_lists);

#endif
