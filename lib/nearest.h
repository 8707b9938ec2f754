/* What searches share: rows as floats, the k best, and distances of rows to queries. */
#ifndef FGMM_LIB_NEAREST_H
#define FGMM_LIB_NEAREST_H

#include <flashgmm/ivf.h>
#include <math.h>

#include "dispatch.h"
#include "rows.h"

/* ---- rows as floats ---- */

/* Elements from row to row of packed floats or words. */
static inline int64_t fgmm_scan_stride(int64_t d) {
    return (d + FGMM_SCAN_PAD - 1) / FGMM_SCAN_PAD * FGMM_SCAN_PAD;
}

/* Checks the metric and that the rows can be read on the host. @param what names the call. */
fgmm_status fgmm_metric_check(fgmm_context *ctx, fgmm_metric metric, const fgmm_rows *rows, const char *what);

/*
 * n packed rows of a type as floats, out [n, stride], zeros behind each; of length 1 if unit. Threads may call it
 * together. @param first number of row 0, for messages. @return FGMM_ERR_DATA for NaN, Inf (also of f32, for values
 * beyond it) and, if unit, a row of zeros.
 */
fgmm_status fgmm_rows_to_floats(fgmm_context *ctx, fgmm_dtype type, const void *rows, int64_t first, int64_t n,
                                int64_t d, int unit, float *out);
/* The failure that fgmm_rows_to_floats would report of such rows, for a message about them alone; FGMM_OK if none. */
fgmm_status fgmm_rows_check(fgmm_context *ctx, fgmm_dtype type, const void *rows, int64_t first, int64_t n, int64_t d,
                            int unit);
/* The same of u8 and i8 rows as int16, not checked. */
void fgmm_rows_to_words(fgmm_dtype type, const void *rows, int64_t n, int64_t d, int16_t *out);

/* The means as floats, rows `stride` apart. @return FGMM_ERR_INVALID naming one that is beyond them. */
fgmm_status fgmm_means_to_floats(fgmm_context *ctx, const fgmm_model *model, int64_t stride, float *out);

/* What an angular distance multiplies the product with a unit query by: 1 / |x|. 0 for a row of zeros. */
float fgmm_inverse_length(fgmm_dtype type, const void *row, int64_t d);

/* Rows of length 1 over other rows, which must outlive them: f32. Their weights come along. */
fgmm_status fgmm_rows_unit(fgmm_context *ctx, fgmm_rows **out, const fgmm_rows *rows);

/* Blocks of rows in order, packed, in place where they can be. @param visit gets rows first .. first+n-1. */
typedef fgmm_status (*fgmm_block_visit)(void *user, const void *data, int64_t first, int64_t n);
fgmm_status fgmm_each_block(fgmm_context *ctx, const fgmm_rows *rows, int64_t block_rows, fgmm_block_visit visit,
                            void *user);
/* Rows that take about 64 MB. */
int64_t fgmm_block_rows(const fgmm_rows *rows);

/* n rows spread evenly, each at random within its share, packed; all of them if n is their number. */
fgmm_status fgmm_rows_sample(fgmm_context *ctx, const fgmm_rows *rows, int64_t n, uint64_t seed, void *to);

/* The type that rows are stored and scanned as. */
fgmm_dtype fgmm_stored_type(fgmm_dtype type);
int fgmm_is_bytes(fgmm_dtype type);

/* ---- the k best ---- */

/* The k smallest (distance, id) seen so far, as a heap with the largest of them on top. */
typedef struct fgmm_best {
    int64_t n, k;
    float *distance; /* [k] */
    int64_t *id;     /* [k] */
} fgmm_best;

/* n of them, empty, with room for k each; to be freed with fgmm_bests_free, which takes NULL. @return NULL for no memory. */
fgmm_best *fgmm_bests_new(fgmm_context *ctx, int64_t n, int64_t k);
void fgmm_bests_free(fgmm_context *ctx, fgmm_best *bests);

/* Nothing larger gets in. */
static inline float fgmm_best_bound(const fgmm_best *best) {
    return best->n < best->k ? INFINITY : best->distance[0];
}
void fgmm_best_push(fgmm_best *best, float distance, int64_t id);
/* Puts them in order, smallest first, and fills up to k with infinity and -1. */
void fgmm_best_sort(fgmm_best *best);

/* The k-th smallest (from 0) of n values, which are reordered. */
float fgmm_select(float *values, int64_t n, int64_t k);
/* n values into order, smallest first. */
void fgmm_sort_floats(float *values, int64_t n);

/* ---- distances ---- */

/* Queries of one call, packed for scans. */
typedef struct fgmm_query_pack {
    float *floats;  /* [n, stride]: unit where angular */
    int16_t *words; /* [n, stride], or NULL: not bytes on both sides */
    int64_t stride;
} fgmm_query_pack;

/* Whether rows and queries of these types go through words. */
int fgmm_scan_is_whole(fgmm_metric metric, fgmm_dtype rows, fgmm_dtype queries, int64_t d);

static inline const void *fgmm_packed_query(const fgmm_query_pack *pack, int64_t i) {
    return pack->words ? (const void *)(pack->words + i * pack->stride) : pack->floats + i * pack->stride;
}

/* A scan's outputs as distances that are smaller the better: of rows with these inverse lengths (angular). */
static inline void fgmm_scan_settle(fgmm_metric metric, const float *inverse, int n, float *out) {
    if (metric == FGMM_ANGULAR)
        for (int i = 0; i < n; i++) out[i] = fmaxf(0, 1 - out[i] * inverse[i]);
    if (metric == FGMM_INNER_PRODUCT)
        for (int i = 0; i < n; i++) out[i] = -out[i];
}

/* A scan's outputs, of n rows to one query, settled and into its best. @param ids NULL: first, first + 1, ... */
static inline void fgmm_best_take(fgmm_best *best, fgmm_metric metric, const float *inverse, const int64_t *ids,
                                  int64_t first, int n, float *out) {
    float bound = fgmm_best_bound(best);
    fgmm_scan_settle(metric, inverse, n, out);
    for (int i = 0; i < n; i++)
        if (out[i] <= bound) {
            fgmm_best_push(best, out[i], ids ? ids[i] : first + i);
            bound = fgmm_best_bound(best);
        }
}

/* Results of n queries into the caller's arrays: signs as the metric has them. */
void fgmm_best_copy(const fgmm_best *best, fgmm_metric metric, int64_t *ids, float *distances);

#endif
