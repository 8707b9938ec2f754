/* A column of numbers from an .npy: row weights and labels, which the library takes only as arrays. */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_MAX = 65536, CHUNK_BYTES = 65536 };

typedef struct column {
    char kind; /* 'f', 'i', 'u', 'b' */
    int size;  /* bytes an element */
    int64_t n;
} column;

/* The text after 'key': in the header's dictionary, blanks skipped; NULL if it is not there. */
static const char *find_key(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (!at) return NULL;
    at += strlen(key);
    return at + strspn(at, " ");
}

static const char *parse_header(const char *header, column *c) {
    const char *descr = find_key(header, "'descr':"), *shape = find_key(header, "'shape':");
    if (!descr || !shape || *shape != '(') return "its header is not that of an .npy file";
    /* Each character is looked at only after the one before it was found not to be the end. */
    if (descr[0] != '\'' || (descr[1] != '<' && descr[1] != '|')) return "it holds no little-endian numbers";
    int ok = descr[2] && descr[3] && descr[4] == '\'';
    if (ok) {
        c->kind = descr[2];
        c->size = descr[3] - '0';
        ok = (c->kind == 'f' && (c->size == 4 || c->size == 8)) ||
             ((c->kind == 'i' || c->kind == 'u') && (c->size == 1 || c->size == 2 || c->size == 4 || c->size == 8)) ||
             (c->kind == 'b' && c->size == 1);
    }
    if (!ok) return "its numbers are not of a type that can be used here (f4, f8, integers)";

    char *end;
    errno = 0;
    c->n = strtoll(shape + 1, &end, 10);
    if (end == shape + 1 || errno || c->n < 0) return "its shape is not that of a column";
    end += strspn(end, " ,");
    if (*end == '1' && strspn(end + 1, " ,") == strcspn(end + 1, ")")) end = strchr(end, ')'); /* (n, 1) */
    if (!end || *end != ')') return "its shape is not (n,) or (n, 1)";
    return NULL;
}

static double widen(const unsigned char *p, const column *c) {
    union {
        float f;
        double d;
        int16_t s;
        uint16_t us;
        int32_t i;
        uint32_t u;
        int64_t l;
        uint64_t ul;
    } v;
    memcpy(&v, p, (size_t)c->size);
    if (c->kind == 'f') return c->size == 4 ? (double)v.f : v.d;
    switch (c->size) {
    case 1: return c->kind == 'i' ? (double)(signed char)*p : (double)*p;
    case 2: return c->kind == 'i' ? (double)v.s : (double)v.us;
    case 4: return c->kind == 'i' ? (double)v.i : (double)v.u;
    default: return c->kind == 'i' ? (double)v.l : (double)v.ul;
    }
}

/* Reads the header up to the first number. @param header room for HEADER_MAX + 1 */
static const char *read_header(FILE *f, char *header) {
    unsigned char start[12];
    if (fread(start, 1, 8, f) != 8 || memcmp(start, "\x93NUMPY", 6) != 0) return "it is not an .npy file";
    size_t wide = start[6] == 1 ? 2 : 4, length = 0;
    if (fread(start, 1, wide, f) != wide) return "it ends within its header";
    for (size_t i = wide; i-- > 0;) length = length << 8 | start[i];
    if (length > HEADER_MAX) return "its header is too long";
    if (fread(header, 1, length, f) != length) return "it ends within its header";
    header[length] = 0;
    return NULL;
}

static const char *read_values(FILE *f, const column *c, double **out) {
    unsigned char chunk[CHUNK_BYTES];
    long here = ftell(f);
    if (here < 0 || fseek(f, 0, SEEK_END) != 0) return strerror(errno);
    long size = ftell(f);
    /* Before any memory is asked for: a header may claim what the file does not hold. */
    if (size < 0 || c->n != (size - here) / c->size || (size - here) % c->size) {
        return "its size is not what its header says";
    }
    if (fseek(f, here, SEEK_SET) != 0) return strerror(errno);
    double *values = malloc(c->n ? (size_t)c->n * sizeof *values : 1);
    if (!values) return "no memory for it";
    int64_t step = CHUNK_BYTES / c->size;
    for (int64_t i = 0; i < c->n; i += step) {
        int64_t n = c->n - i < step ? c->n - i : step;
        if (fread(chunk, (size_t)c->size, (size_t)n, f) != (size_t)n) {
            free(values);
            return "it cannot be read to its end";
        }
        for (int64_t j = 0; j < n; j++) values[i + j] = widen(chunk + j * c->size, c);
    }
    *out = values;
    return NULL;
}

const char *npy_read_column(const char *path, double **out, int64_t *n, char *error, size_t error_size) {
    const char *why = NULL;
    column c = {0, 0, 0};
    char *header = malloc(HEADER_MAX + 1);
    FILE *f = fopen(path, "rb");
    *out = NULL;
    if (!f) {
        why = strerror(errno);
    } else if (!header) {
        why = "no memory";
    } else {
        why = read_header(f, header);
        if (!why) why = parse_header(header, &c);
        if (!why) why = read_values(f, &c, out);
    }
    if (f) fclose(f);
    free(header);
    if (!why) {
        *n = c.n;
        return NULL;
    }
    snprintf(error, error_size, "'%s': %s", path, why);
    return error;
}
