/* The index's inside. */
#ifndef FGMM_LIB_IVF_INDEX_H
#define FGMM_LIB_IVF_INDEX_H

#include "ivf_choose.h"

/* A row of another list. */
typedef struct fgmm_ivf_link {
    int32_t home;  /* the list that stores it: its best one */
    int32_t place; /* its number there */
} fgmm_ivf_link;

/* Most rows a list stores. */
#define FGMM_IVF_PLACES ((int64_t)INT32_MAX)

typedef struct fgmm_ivf_store {
    int64_t n, room; /* rows stored here, and what the arrays have room for */
    char *vectors;   /* [room, D] */
    int64_t *ids;    /* [room] */
    float *inverse;  /* [room]: 1 / |x|, angular alone */
    int64_t n_links, link_room;
    fgmm_ivf_link *links; /* [link_room] */
    int32_t *between;     /* [link_room, max_lists - 2]: the row's lists after its home and before this one, then
                                -1; NULL for max_lists up to 2 */
} fgmm_ivf_store;

/* Levels of recall whose gaps calibration stores. */
enum { FGMM_IVF_LEVELS = 1024 };

struct fgmm_ivf {
    fgmm_model *model;
    fgmm_metric metric;
    fgmm_ivf_rule rule;
    int max_lists;
    double budget; /* > 0: the threshold is still to be found */
    double threshold, lambda;
    int64_t list_max; /* entries of a list at most; 0: no limit */
    int64_t k, d;
    float *centroids; /* [K, D] */
    fgmm_dtype type;
    int has_type;
    fgmm_ivf_store *lists; /* [K] */
    int64_t n_rows, next_id;
    int64_t changes; /* how often rows came or went */
    int calibrated_k;
    double gaps[FGMM_IVF_LEVELS]; /* of recall fgmm_ivf_level(i), bent */
    double bend;                  /* of calibrated gaps, ivf_calibrate.c */
    float *between;               /* [K, K]: |m_a - m_b|^(2 bend); NULL where bend is 0 */
};

/* Recall of level i: evenly spaced in log(1 - recall), from 0.3 to 0.9999. */
double fgmm_ivf_level(int i);

static inline size_t fgmm_ivf_row_bytes(const fgmm_ivf *index) {
    return (size_t)index->d * fgmm_dtype_size(index->type);
}
/* Numbers a link's `between` has. */
static inline int64_t fgmm_ivf_between(const fgmm_ivf *index) {
    return index->max_lists > 2 ? index->max_lists - 2 : 0;
}

/* An index over a copy of the model, its rule's fields still unset. */
fgmm_status fgmm_ivf_new(fgmm_context *ctx, fgmm_ivf **out, const fgmm_model *model, fgmm_metric metric, int max_lists);
/* Sets index->bend and what goes with it. bend 0, or within 0 and 1 over at most FGMM_IVF_BEND_LISTS lists. */
enum { FGMM_IVF_BEND_LISTS = 4096 };
fgmm_status fgmm_ivf_bend(fgmm_context *ctx, fgmm_ivf *index, double bend);
/* Makes room for `rows` more rows and `links` more links, exactly if the list was empty. */
fgmm_status fgmm_ivf_reserve(fgmm_context *ctx, const fgmm_ivf *index, fgmm_ivf_store *list, int64_t rows,
                             int64_t links);

/* A set of ids, to find one that comes twice. */
typedef struct fgmm_id_set {
    int64_t *slots; /* -1: free */
    int64_t mask;
} fgmm_id_set;
fgmm_status fgmm_id_set_open(fgmm_context *ctx, fgmm_id_set *set, int64_t n);
/* @return 1 if it was there already. id >= 0; at most the n of open. */
int fgmm_id_set_add(fgmm_id_set *set, int64_t id);
int fgmm_id_set_has(const fgmm_id_set *set, int64_t id);

#endif
