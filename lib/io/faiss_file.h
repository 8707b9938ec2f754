/* Indexes in the files of faiss, which faiss.read_index reads: written, never read.
 *
 * The layout is faiss's own serialization (little-endian, packed, sizes of 64 bits):
 *
 *   index      four letters; int32 d; int64 vectors; int64 1048576, twice, for fields that are no more; uint8 trained;
 *              int32 metric (0 inner product, 1 squared L2)
 *   flat       index "IxF2" or "IxFI"; uint64 n * d; float32 [n, d]
 *   IVF flat   index "IwFl"; uint64 nlist; uint64 nprobe; the quantizer, a flat index of the centroids;
 *              uint8 0 and uint64 0: no map from ids to lists; the lists
 *   lists      "ilar"; uint64 nlist; uint64 bytes a vector; "full"; uint64 nlist; uint64 sizes [nlist];
 *              for each list float32 vectors [size, d], then int64 ids [size]
 */
#ifndef FGMM_LIB_IO_FAISS_FILE_H
#define FGMM_LIB_IO_FAISS_FILE_H

#include "outfile.h"

typedef struct fgmm_faiss_ivf {
    int inner_product;      /* 0: squared L2 distances, less is nearer; 1: inner products, more is nearer */
    int64_t d, nlist;       /* each at most INT32_MAX */
    int64_t nprobe;         /* lists that a search probes unless told otherwise; 0: 1 */
    const float *centroids; /* [nlist, d] */
    const int64_t *sizes;   /* [nlist] vectors in each list */
} fgmm_faiss_ivf;

/* An IndexIVFFlat that is written list by list, none of them held. Zero-initialise. */
typedef struct fgmm_faiss_writer {
    fgmm_outfile file;
    int64_t d, nlist;
    const int64_t *sizes; /* the caller's, until commit */
    int64_t list;         /* being written */
    int64_t vectors, ids; /* of it, so far */
} fgmm_faiss_writer;

/* Opens the file and writes all that stands before the lists. @return FGMM_ERR_INVALID for sizes that cannot be. On
 * failure there is nothing to abandon. */
fgmm_status fgmm_faiss_open(fgmm_context *ctx, fgmm_faiss_writer *writer, const char *path,
                            const fgmm_faiss_ivf *index);
/* The next n vectors of the list, in as many calls as is convenient; then its ids. Empty lists are passed by.
 * @return FGMM_ERR_INTERNAL where more or other is given than the sizes say. */
fgmm_status fgmm_faiss_vectors(fgmm_context *ctx, fgmm_faiss_writer *writer, const float *vectors, int64_t n);
/* The same of vectors [n, d] of any type that rows have. @param unit 1: at length one; then FGMM_ERR_INVALID for a
 * vector of zeros. */
fgmm_status fgmm_faiss_rows(fgmm_context *ctx, fgmm_faiss_writer *writer, const void *vectors, fgmm_dtype type,
                            int unit, int64_t n);
fgmm_status fgmm_faiss_ids(fgmm_context *ctx, fgmm_faiss_writer *writer, const int64_t *ids, int64_t n);
/* Puts the file in its place; FGMM_ERR_INTERNAL if lists are missing. Abandon must be called all the same. */
fgmm_status fgmm_faiss_commit(fgmm_context *ctx, fgmm_faiss_writer *writer);
void fgmm_faiss_abandon(fgmm_context *ctx, fgmm_faiss_writer *writer);

#endif
