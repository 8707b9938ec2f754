/**
 * flashgmm/ivf.h: the mixture as coarse quantizer of an inverted-file index, with border rows in several lists.
 *
 * The conventions of flashgmm.h hold. Three layers, each of use without the next:
 *   fgmm_ivf_train    rows -> K centroids
 *   fgmm_ivf_assign   rows and centroids -> lists of row numbers (CSR), a row in one list or several
 *   fgmm_ivf          an index over lists: add, remove, search, save, load
 * and fgmm_exact_search, the ground truth. Training, responsibilities, exact search and an fgmm_ivf_searcher run where
 * the context's other calls do; all else runs on the CPU's threads, whatever the device of the context is.
 *
 * Distances. FGMM_L2: |x - q|^2. FGMM_ANGULAR: 1 - cos(x, q); rows are normalised on the way in, and inside the
 * geometry is that of unit vectors. FGMM_INNER_PRODUCT: x . q, the largest first; lists are formed as for L2. Results
 * are sorted best first, equal ones by id.
 */
#ifndef FLASHGMM_IVF_H
#define FLASHGMM_IVF_H

#include <flashgmm/flashgmm.h>

#ifdef __cplusplus
extern "C" {
#endif

/** "l2", "angular", "inner_product"; NULL for an unknown value. Static. */
FGMM_API const char *fgmm_metric_name(fgmm_metric metric);

/* ---- train ------------------------------------------------------------------------------- */

typedef enum fgmm_ivf_method {
    FGMM_IVF_KMEANS = 0,         /**< k-means alone; spherical k-means where the metric is angular */
    FGMM_IVF_TIED_SPHERICAL = 1, /**< a mixture with one variance for all components, from a k-means start */
    FGMM_IVF_SPHERICAL = 2,      /**< one variance a component, as in the paper */
    FGMM_IVF_DIAG = 3            /**< one variance a component and feature */
} fgmm_ivf_method;

/** "kmeans", "tied-spherical", "spherical", "diag"; NULL for an unknown value. Static. */
FGMM_API const char *fgmm_ivf_method_name(fgmm_ivf_method method);

typedef enum fgmm_ivf_init {
    FGMM_IVF_INIT_TRIAL = 0,    /**< of the two below, the one that asks for fewer distances in a trial on a sample */
    FGMM_IVF_INIT_KMEANSPP = 1, /**< finds small clusters, and spends lists on far rows */
    FGMM_IVF_INIT_RANDOM = 2    /**< K random rows */
} fgmm_ivf_init;

typedef struct fgmm_ivf_train_options {
    size_t struct_size;
    int64_t n_lists; /**< K; needed */
    fgmm_metric metric;
    fgmm_ivf_method method;
    fgmm_ivf_init init; /**< of the k-means that every method starts with */
    int kmeans_iter;    /**< iterations of k-means, the start of a mixture or all; 0: 10 before a mixture, else 15 */
    int em_iter;        /**< iterations of EM after them, of a mixture; 0: 15 */
    uint64_t seed;
    fgmm_compute_options compute; /**< zeroed: defaults */
} fgmm_ivf_train_options;

#define FGMM_IVF_TRAIN_OPTIONS_INIT                                                                                    \
    {                                                                                                                  \
        sizeof(fgmm_ivf_train_options), 0, FGMM_L2, FGMM_IVF_KMEANS, FGMM_IVF_INIT_TRIAL, 0, 0, 0,                     \
            FGMM_COMPUTE_OPTIONS_INIT                                                                                  \
    }

/**  A coarse quantizer: a mixture whose means are the centroids of the lists. Angular: rows are normalised on the way
 *  in, and so are the means after every iteration (spherical k-means, Dhillon and Modha 2001).
 *  @param rows from any source that can be read again, but cl_mem only with FGMM_L2 and FGMM_INNER_PRODUCT.
 *  @param out to be freed with fgmm_model_free. @param report NULL or initialised; n_iter counts both parts.
 *  @return as fgmm_fit; FGMM_ERR_DATA also for a row of zeros where the metric is angular.
 *  Source: Flash-GMM, arXiv 2606.10896 (k-means, then EM). */
FGMM_API fgmm_status fgmm_ivf_train(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                                    const fgmm_ivf_train_options *options, fgmm_report *report);

/* ---- assign ------------------------------------------------------------------------------ */

/** Which lists hold a row beside its best one. With r_j = x - m_j, and list 1 the best, list j is taken in the order
 *  of a loss while loss_j - |r_1|^2 is at most a threshold. */
typedef enum fgmm_ivf_rule {
    FGMM_IVF_SOAR = 0,           /**< loss |r_j|^2 + lambda (r_1 . r_j / |r_1|)^2; arXiv 2404.00774 */
    FGMM_IVF_SINGLE = 1,         /**< none */
    FGMM_IVF_NEAREST = 2,        /**< the max_lists nearest, always: loss |r_j|^2 without a threshold */
    FGMM_IVF_GAP = 3,            /**< loss |r_j|^2 */
    FGMM_IVF_RESPONSIBILITY = 4, /**< in the order of responsibilities, those of at least a threshold; the best list is
                                      the most responsible one; arXiv 2606.10896 */
    FGMM_IVF_RAIR = 5            /**< loss |r_j|^2 + lambda r_1 . r_j; arXiv 2601.07183 */
} fgmm_ivf_rule;

/** "soar", "single", "nearest", "gap", "responsibility", "rair"; NULL for an unknown value. Static. */
FGMM_API const char *fgmm_ivf_rule_name(fgmm_ivf_rule rule);

enum { FGMM_IVF_LISTS_MAX = 8 };

typedef struct fgmm_ivf_assign_options {
    size_t struct_size;
    fgmm_metric metric; /**< must be that of training */
    fgmm_ivf_rule rule;
    int max_lists; /**< lists a row, 1 .. FGMM_IVF_LISTS_MAX; 0: 2, or 1 for FGMM_IVF_SINGLE */
    /** Mean lists a row, 1 .. max_lists: the threshold is then the quantile that meets it on a sample of the rows.
     *  0: by `threshold`. Not with SINGLE and NEAREST. */
    double budget;
    /** Without a budget. Responsibility: 0 means 1/K, the paper's. SOAR, GAP and RAIR: of loss_j - |r_1|^2, in squared
     *  distance (of unit vectors where angular); infinity lists every row max_lists times, and 0 means a budget of 1.5
     *  (1 if max_lists is 1). */
    double threshold;
    double lambda;       /**< of SOAR and RAIR; 0: 1.0 and 0.75 */
    int64_t list_max;    /**< most rows a list; a full one sends rows to the next nearest with room; 0: no limit */
    int64_t sample_rows; /**< rows the budget's sample takes; 0: 16384 */
    uint64_t seed;       /**< of the sample */
    fgmm_compute_options compute; /**< zeroed: defaults */
} fgmm_ivf_assign_options;

#define FGMM_IVF_ASSIGN_OPTIONS_INIT                                                                                   \
    { sizeof(fgmm_ivf_assign_options), FGMM_L2, FGMM_IVF_SOAR, 0, 0.0, 0.0, 0.0, 0, 0, 0, FGMM_COMPUTE_OPTIONS_INIT }

/** Lists of row numbers. All arrays are owned by it. */
typedef struct fgmm_ivf_lists {
    int64_t n_lists;   /**< K */
    int64_t n_rows;    /**< N */
    int64_t n_entries; /**< offsets[K]: at least N */
    double threshold;  /**< what was used; 0 for SINGLE and NEAREST */
    int64_t *offsets;  /**< [K + 1]: list k is rows[offsets[k] .. offsets[k+1] - 1] */
    int64_t *rows;  /**< [n_entries]: row numbers, ascending within a list's rows of rank 0, then within the others */
    uint8_t *ranks; /**< [n_entries]: 0 where the list is the row's best one, 1 for its second, ... */
} fgmm_ivf_lists;

/** Gives each row its lists in one pass over the rows; beside the result it holds N x max_lists list numbers and a
 *  tile of distances.
 *  @param model of fgmm_ivf_train, or any mixture of `rows`' features; responsibilities need the whole of it, the
 *  other rules its means. @param options NULL for defaults. @param report NULL or initialised.
 *  @return FGMM_ERR_INVALID (bad option, shapes, list_max * K < N), FGMM_ERR_DATA (NaN or Inf, a row of zeros where
 *  angular), FGMM_ERR_IO, FGMM_ERR_MEMORY, FGMM_ERR_CANCELLED, FGMM_ERR_UNSUPPORTED for rows in a cl_mem. */
FGMM_API fgmm_status fgmm_ivf_assign(fgmm_context *ctx, fgmm_ivf_lists **out, const fgmm_model *model,
                                     const fgmm_rows *rows, const fgmm_ivf_assign_options *options,
                                     fgmm_report *report);
FGMM_API void fgmm_ivf_lists_free(fgmm_context *ctx, fgmm_ivf_lists *lists);

/* ---- the index --------------------------------------------------------------------------- */

/** An inverted-file index. A row's vector is stored once, in its best list, as it was given; its other lists hold a
 *  link to it. A search computes the distance of a row at most once, whatever the number of its lists probed.
 *  Searches of one index from several contexts in several threads may run together; what changes it may not. */
typedef struct fgmm_ivf fgmm_ivf;

typedef struct fgmm_ivf_options {
    size_t struct_size;
    fgmm_metric metric;
    fgmm_ivf_rule rule;
    int max_lists; /**< as in fgmm_ivf_assign_options, with those below */
    double budget; /**< the threshold is found on the first rows added and stays */
    double threshold;
    double lambda;
    int64_t list_max; /**< most entries a list, up to 2^31 - 1, as in fgmm_ivf_assign_options; 0: no limit */
} fgmm_ivf_options;

#define FGMM_IVF_OPTIONS_INIT                                                                                          \
    { sizeof(fgmm_ivf_options), FGMM_L2, FGMM_IVF_SOAR, 0, 0.0, 0.0, 0.0, 0 }

/** An empty index over the means of a model, which is copied. @param options NULL for defaults. @return
 *  FGMM_ERR_INVALID, FGMM_ERR_MEMORY. */
FGMM_API fgmm_status fgmm_ivf_create(fgmm_context *ctx, fgmm_ivf **out, const fgmm_model *model,
                                     const fgmm_ivf_options *options);
FGMM_API void fgmm_ivf_free(fgmm_context *ctx, fgmm_ivf *index);

/**  Adds rows. The first ones decide the type that is stored: f32, f16, u8 and i8 stay as they are, bf16 and f64 become
 *  f32; later ones must have a type that is stored as that. On failure the index is as it was.
 *  @param ids [n], >= 0, none twice and none that is there; NULL: the next numbers after the largest so far.
 *  @return as fgmm_ivf_assign; FGMM_ERR_INVALID names an id that is negative or there already, or says that the lists
 *  have no room for so many rows under list_max. Takes O(N) with ids. */
FGMM_API fgmm_status fgmm_ivf_add(fgmm_context *ctx, fgmm_ivf *index, const fgmm_rows *rows, const int64_t *ids,
                                  fgmm_report *report);

/** Takes out the rows with these ids; ids that are not there are passed over. @param removed NULL, or how many were
 *  there. Takes O(N) a call. @return FGMM_ERR_MEMORY, with the index as it was. */
FGMM_API fgmm_status fgmm_ivf_remove(fgmm_context *ctx, fgmm_ivf *index, const int64_t *ids, int64_t n,
                                     int64_t *removed);

typedef struct fgmm_ivf_info {
    int64_t n_rows, n_features, n_lists;
    int64_t n_entries;        /**< rows and links */
    int64_t longest, n_empty; /**< entries of the longest list; lists without */
    fgmm_metric metric;
    fgmm_dtype type; /**< of the vectors; f32 while there are none */
    fgmm_ivf_rule rule;
    int max_lists;
    double threshold, lambda;
    int64_t list_max;            /**< 0: no limit */
    double bytes_per_row;        /**< held for a row: vector, id, links */
    double single_bytes_per_row; /**< the same without links: what an index with one list a row holds */
    int calibrated_k;            /**< what fgmm_ivf_calibrate was run for; 0: not yet */
} fgmm_ivf_info;

FGMM_API void fgmm_ivf_describe(const fgmm_ivf *index, fgmm_ivf_info *out);

/** Centroids as they are used: [K, D], owned by the index. */
FGMM_API const float *fgmm_ivf_centroids(const fgmm_ivf *index);

/** A list as it is stored, for export; valid until the index changes. */
typedef struct fgmm_ivf_list_view {
    int64_t n_rows;      /**< rows stored here */
    const void *vectors; /**< [n_rows, D] of the index's type, as given (angular: not normalised) */
    const int64_t *ids;  /**< [n_rows] */
    int64_t n_links;     /**< rows stored in other lists that are in this one as well */
} fgmm_ivf_list_view;

/** @return FGMM_ERR_INVALID unless 0 <= list < K. */
FGMM_API fgmm_status fgmm_ivf_list(fgmm_context *ctx, const fgmm_ivf *index, int64_t list, fgmm_ivf_list_view *out);

/** An own format, versioned, with a checksum; written beside and renamed. @return FGMM_ERR_IO; load also
 *  FGMM_ERR_FORMAT saying what is wrong with the file, before memory is taken for what it claims to hold. */
FGMM_API fgmm_status fgmm_ivf_save(fgmm_context *ctx, const fgmm_ivf *index, const char *path);
FGMM_API fgmm_status fgmm_ivf_load(fgmm_context *ctx, fgmm_ivf **out, const char *path);

/**  The index in faiss's format, an IndexIVFFlat of f32 vectors that faiss.read_index opens and searches with the same
 *  results, for an index with one list a row. FGMM_L2 and FGMM_INNER_PRODUCT keep their metric; FGMM_ANGULAR becomes
 *  squared L2 of vectors at length one, 2 (1 - cos), for queries at length one. @return FGMM_ERR_UNSUPPORTED where rows
 *  lie in several lists, FGMM_ERR_INVALID for an index without rows, FGMM_ERR_IO, FGMM_ERR_MEMORY. */
FGMM_API fgmm_status fgmm_ivf_export_faiss(fgmm_context *ctx, const fgmm_ivf *index, const char *path);

/* ---- search ------------------------------------------------------------------------------ */

typedef struct fgmm_ivf_search_options {
    size_t struct_size;
    /** Lists a query; with a gap or a target, at most as many, 0: all. Without: 0 means 1. */
    int64_t n_probe;
    /** > 0: probe every list with |q - m_j|^2 - |q - m_1|^2 <= gap (inner product: q . m_1 - q . m_j). */
    double gap;
    /** 0 < target < 1: the gap that gave this recall when the index was calibrated. */
    double target_recall;
    const uint8_t *filter; /**< NULL, or bits: id i is wanted if filter[i / 8] >> (i % 8) & 1 */
    int64_t filter_size;   /**< ids the filter speaks of; larger ones are not wanted */
} fgmm_ivf_search_options;

#define FGMM_IVF_SEARCH_OPTIONS_INIT                                                                                   \
    { sizeof(fgmm_ivf_search_options), 0, 0.0, 0.0, 0, 0 }

/** Sums over the queries of a call. */
typedef struct fgmm_ivf_counts {
    int64_t queries;
    int64_t distances;          /**< computed: each row once a query, filtered rows left out */
    int64_t entries;            /**< entries of the lists probed: the distances if duplicates counted */
    int64_t centroid_distances; /**< queries * K */
    int64_t probes;             /**< lists */
} fgmm_ivf_counts;

/** The k best rows for each query among those in the lists probed. Queries go in batches, list by list; threads
 *  share the batches. The result does not depend on either.
 *  @param queries of any type. @param k 1 .. 2^20. @param options NULL: one list. @param ids [nq, k], -1 where there
 *  are fewer. @param distances [nq, k] or NULL: infinity there (-infinity for inner products). @param counts NULL,
 *  or set.
 *  @return FGMM_ERR_INVALID (options, shapes, a target without calibration), FGMM_ERR_DATA (NaN or Inf, zeros where
 *  angular), FGMM_ERR_IO, FGMM_ERR_MEMORY, FGMM_ERR_CANCELLED. */
FGMM_API fgmm_status fgmm_ivf_search(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_rows *queries, int64_t k,
                                     const fgmm_ivf_search_options *options, int64_t *ids, float *distances,
                                     fgmm_ivf_counts *counts);

/** A copy of an index on the context's device, for many queries at a time. On the CPU it is the index itself. */
typedef struct fgmm_ivf_searcher fgmm_ivf_searcher;

/**  Copies an index to the device that the context names, or, where it names none, to what "auto" takes for large work.
 *  It holds there what the index's vectors, ids and links take here, and, from the first search on, room for queries,
 *  candidates and results: for candidates up to half of what is left of the context's device memory, or all of it where
 *  one query's need that.
 *  @param ctx and index must outlive the searcher.
 *  @return FGMM_ERR_INVALID, FGMM_ERR_MEMORY (naming what does not fit on the device; one buffer holds all vectors),
 *  FGMM_ERR_UNSUPPORTED for 2^32 - 1 rows or links or more, FGMM_ERR_DEVICE. */
FGMM_API fgmm_status fgmm_ivf_searcher_create(fgmm_context *ctx, fgmm_ivf_searcher **out, const fgmm_ivf *index);
FGMM_API void fgmm_ivf_searcher_free(fgmm_context *ctx, fgmm_ivf_searcher *searcher);

/** fgmm_ivf_search on the searcher's device, with its arguments and results; distances are in f32 there too, in
 *  whole numbers where rows and queries are bytes, and may be rounded otherwise. @param ctx the one that made the
 *  searcher.
 *  @return also FGMM_ERR_INVALID for another context, and where rows were added to the index or removed since the
 *  searcher was made, FGMM_ERR_DEVICE. */
FGMM_API fgmm_status fgmm_ivf_searcher_search(fgmm_context *ctx, fgmm_ivf_searcher *searcher, const fgmm_rows *queries,
                                              int64_t k, const fgmm_ivf_search_options *options, int64_t *ids,
                                              float *distances, fgmm_ivf_counts *counts);

/**  Learns which gap gives which recall of the k nearest, from queries that are like those to come and are not rows of
 *  the index: a row is found if and only if one of its lists is probed, so the quantiles of the gaps to the true
 *  neighbours' lists are the answer. A gap may be measured against a power of the distance of the two centroids, where
 *  that finds the neighbours in fewer entries. At least 100 queries make sense. Stored in the index and its file, where
 *  it stays when rows are added or removed; on failure the index may be left uncalibrated. Takes queries x K floats
 *  twice.
 *  @param k at most the rows of the index. @return as fgmm_ivf_search, whose price with all lists probed this is;
 *  FGMM_ERR_INVALID also for queries that can be read only once, or more than 2e9 queries x lists. */
FGMM_API fgmm_status fgmm_ivf_calibrate(fgmm_context *ctx, fgmm_ivf *index, const fgmm_rows *queries, int k);

/** The gap that a target stands for, in the measure that calibration chose; of targets beyond .9999 that of .9999.
 *  @return FGMM_ERR_INVALID unless calibrated and 0 < target < 1. */
FGMM_API fgmm_status fgmm_ivf_target_gap(fgmm_context *ctx, const fgmm_ivf *index, double target, double *gap);

/** The k nearest of all rows, by blocks; nothing is built or kept. Sums are in f32 of differences, in whole numbers
 *  where rows and queries are bytes; devices may round those in f32 differently.
 *  @param rows, queries from any source but cl_mem. @param ids [nq, k]: row numbers, -1 where there are fewer than
 *  k.
 *  @param distances [nq, k] or NULL. @return as fgmm_ivf_search; FGMM_ERR_UNSUPPORTED for rows in a cl_mem,
 *  FGMM_ERR_DEVICE. */
FGMM_API fgmm_status fgmm_exact_search(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_rows *queries,
                                       fgmm_metric metric, int64_t k, int64_t *ids, float *distances);

#ifdef __cplusplus
}
#endif
#endif
