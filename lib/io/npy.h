/* The .npy format, alone or inside an .npz: its header, its numbers, and the dtypes that flashgmm reads and writes.
 * NumPy's own description: numpy.lib.format (NEP 1). */
#ifndef FGMM_LIB_IO_NPY_H
#define FGMM_LIB_IO_NPY_H

#include <stdbool.h>

#include "infile.h"
#include "io.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file formats are little-endian and are read as they are"
#endif

/* Bytes that an .npy comes from. */
typedef struct fgmm_npy_source fgmm_npy_source;
struct fgmm_npy_source {
    const char *label; /* what messages call it: "x.npy", "m.npz: 'means'" */
    /* Exactly that many bytes, or a failure with its message. */
    fgmm_status (*read)(fgmm_context *ctx, fgmm_npy_source *source, void *dst, size_t bytes);
};

enum { FGMM_NPY_DESCR = 24 };

typedef struct fgmm_npy_header {
    char descr[FGMM_NPY_DESCR]; /* dtype as in the file; "a structure" for a list of fields */
    char order;                 /* '<', '>', '|', '=' */
    char kind;                  /* 'f', 'i', 'u', 'b', 'U', 'S'; '?' for any other */
    size_t item;                /* bytes an element; 0 if kind is '?' */
    bool fortran;
    int ndim;
    int64_t shape[3]; /* the first three */
    int64_t count;    /* elements, over all dimensions */
    int64_t offset;   /* bytes before the data */
    int64_t bytes;    /* of data; 0 if kind is '?' */
} fgmm_npy_header;

/* Reads and checks a header; the source is then at the data. */
fgmm_status fgmm_npy_read_header(fgmm_context *ctx, fgmm_npy_source *source, fgmm_npy_header *out);

/* The same of a file, whose data is then at out->offset. */
fgmm_status fgmm_npy_file_header(fgmm_context *ctx, const fgmm_infile *file, fgmm_npy_header *out);

/* Whether the elements are numbers that fgmm_npy_read_doubles takes; if not, why and what to do about it, in words. */
bool fgmm_npy_is_numeric(const fgmm_npy_header *header, char *why, size_t why_size);

/* The data of a numeric array of at most three dimensions as doubles in C order. @param dst [header->count]. */
fgmm_status fgmm_npy_read_doubles(fgmm_context *ctx, fgmm_npy_source *source, const fgmm_npy_header *header,
                                  double *dst);

/* Room for any header that fgmm_npy_format writes. */
enum { FGMM_NPY_HEADER_MAX = 256 };

/* A version 1.0 header of a C-order array. @return its bytes, a multiple of 64. */
size_t fgmm_npy_format(char header[FGMM_NPY_HEADER_MAX], const char *descr, int ndim, const int64_t *shape);

/* NumPy's name of a type, such as "<f4"; NULL for one that it lacks. */
const char *fgmm_npy_descr(fgmm_dtype type);

/* A truth value, one byte, in an fgmm_npz_entry: not a type of the interface. */
#define FGMM_NPY_BOOL ((fgmm_dtype)100)

#endif
