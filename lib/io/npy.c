/* .npy headers and numbers. A header is a Python dict in text; this parser takes the three keys that NumPy writes, in any order, and nothing else. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "npy.h"

/* NumPy refuses longer headers too unless told otherwise. */
enum { HEADER_LIMIT = 65536, DIMENSIONS_LIMIT = 64 };

typedef struct cursor {
    const char *at, *end;
} cursor;

static void skip_space(cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r')) c->at++;
}

/* Takes the character, after white space, if it comes next. */
static bool take(cursor *c, char wanted) {
    skip_space(c);
    if (c->at >= c->end || *c->at != wanted) return false;
    c->at++;
    return true;
}

static bool take_word(cursor *c, const char *word) {
    size_t length = strlen(word);
    skip_space(c);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0) return false;
    c->at += length;
    return true;
}

/* A quoted string without escapes that fits. */
static bool take_string(cursor *c, char *out, size_t size) {
    char quote;
    const char *start;
    skip_space(c);
    if (c->at >= c->end || (*c->at != '\'' && *c->at != '"')) return false;
    quote = *c->at++;
    start = c->at;
    while (c->at < c->end && *c->at != quote) {
        if (*c->at == '\\' || (unsigned char)*c->at < ' ') return false;
        c->at++;
    }
    if (c->at >= c->end || (size_t)(c->at - start) >= size) return false;
    memcpy(out, start, (size_t)(c->at - start));
    out[c->at - start] = '\0';
    c->at++;
    return true;
}

/* A whole number that fits, with the 'L' that Python 2 put after long ones. */
static bool take_size(cursor *c, int64_t *out) {
    int64_t value = 0;
    const char *start;
    skip_space(c);
    start = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *c->at - '0', &value))
            return false;
        c->at++;
    }
    if (c->at == start) return false;
    if (c->at < c->end && *c->at == 'L') c->at++;
    *out = value;
    return true;
}

/* A list of fields, balanced: skipped, as no structure is read. */
static bool skip_list(cursor *c) {
    int depth = 0;
    do {
        if (c->at >= c->end) return false;
        if (*c->at == '[' || *c->at == '(') depth++;
        if (*c->at == ']' || *c->at == ')') depth--;
        c->at++;
    } while (depth > 0);
    return true;
}

/* Splits a dtype such as "<f4" into order, kind and bytes. */
static void classify(fgmm_npy_header *h) {
    const char *p = h->descr;
    int64_t size = 0;
    cursor digits;
    h->kind = '?';
    h->order = '|';
    h->item = 0;
    if (*p == '<' || *p == '>' || *p == '|' || *p == '=') h->order = *p++;
    if (*p == '\0' || !strchr("fiubUS", *p)) return;
    digits.at = p + 1;
    digits.end = h->descr + strlen(h->descr);
    if (!take_size(&digits, &size) || digits.at != digits.end || size > HEADER_LIMIT) return;
    switch (*p) {
    case 'f':
        if (size != 2 && size != 4 && size != 8) return;
        break;
    case 'i':
    case 'u':
        if (size != 1 && size != 2 && size != 4 && size != 8) return;
        break;
    case 'b':
        if (size != 1) return;
        break;
    case 'U': size *= 4; break;
    default: break;
    }
    h->kind = *p;
    h->item = (size_t)size;
}

static fgmm_status bad_header(fgmm_context *ctx, const char *label, const char *what) {
    return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: the .npy header %s", label, what);
}

static fgmm_status take_shape(fgmm_context *ctx, const char *label, cursor *c, fgmm_npy_header *h) {
    bool zero = false;
    h->ndim = 0;
    h->count = 1;
    if (!take(c, '(')) return bad_header(ctx, label, "has a 'shape' that is not a tuple");
    while (!take(c, ')')) {
        int64_t size;
        if (take(c, '-')) return bad_header(ctx, label, "has a negative size in 'shape'");
        if (!take_size(c, &size)) return bad_header(ctx, label, "has a size in 'shape' that is not a number that fits");
        if (h->ndim == DIMENSIONS_LIMIT) return bad_header(ctx, label, "has more than 64 dimensions in 'shape'");
        if (h->ndim < 3) h->shape[h->ndim] = size;
        h->ndim++;
        if (size == 0)
            zero = true;
        else if (__builtin_mul_overflow(h->count, size, &h->count))
            return bad_header(ctx, label, "has a 'shape' whose product overflows");
        if (!take(c, ',')) {
            if (!take(c, ')')) return bad_header(ctx, label, "has a 'shape' that does not end");
            break;
        }
    }
    if (zero) h->count = 0;
    return FGMM_OK;
}

static fgmm_status parse(fgmm_context *ctx, const char *label, cursor c, fgmm_npy_header *h) {
    bool descr = false, order = false, shape = false;
    if (!take(&c, '{')) return bad_header(ctx, label, "is not a dict");
    while (!take(&c, '}')) {
        char key[32];
        if (!take_string(&c, key, sizeof key) || !take(&c, ':')) return bad_header(ctx, label, "has a malformed key");
        if (strcmp(key, "descr") == 0 && !descr) {
            descr = true;
            skip_space(&c);
            if (c.at < c.end && *c.at == '[') {
                if (!skip_list(&c)) return bad_header(ctx, label, "has a 'descr' that does not end");
                strcpy(h->descr, "a structure");
            } else if (!take_string(&c, h->descr, sizeof h->descr))
                return bad_header(ctx, label, "has a malformed 'descr'");
        } else if (strcmp(key, "fortran_order") == 0 && !order) {
            order = true;
            h->fortran = take_word(&c, "True");
            if (!h->fortran && !take_word(&c, "False"))
                return bad_header(ctx, label, "has a 'fortran_order' that is neither True nor False");
        } else if (strcmp(key, "shape") == 0 && !shape) {
            shape = true;
            FGMM_TRY(take_shape(ctx, label, &c, h));
        } else
            return bad_header(ctx, label, "has an unknown or repeated key");
        if (!take(&c, ',')) {
            if (!take(&c, '}')) return bad_header(ctx, label, "does not end with }");
            break;
        }
    }
    skip_space(&c);
    if (c.at != c.end) return bad_header(ctx, label, "has something behind its }");
    if (!descr || !order || !shape) return bad_header(ctx, label, "lacks 'descr', 'fortran_order' or 'shape'");
    return FGMM_OK;
}

fgmm_status fgmm_npy_read_header(fgmm_context *ctx, fgmm_npy_source *source, fgmm_npy_header *out) {
    unsigned char prefix[12];
    uint32_t length;
    size_t prefix_bytes = 10;
    char *text = NULL;
    fgmm_status status;
    memset(out, 0, sizeof *out);
    FGMM_TRY(source->read(ctx, source, prefix, 10));
    if (memcmp(prefix, "\x93NUMPY", 6) != 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: not an .npy: it does not begin with \\x93NUMPY", source->label);
    if (prefix[6] < 1 || prefix[6] > 3 || prefix[7] != 0)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: .npy version %d.%d is not known (1.0, 2.0 and 3.0 are)",
                         source->label, prefix[6], prefix[7]);
    length = (uint32_t)prefix[8] | (uint32_t)prefix[9] << 8;
    if (prefix[6] > 1) {
        FGMM_TRY(source->read(ctx, source, prefix + 10, 2));
        length |= (uint32_t)prefix[10] << 16 | (uint32_t)prefix[11] << 24;
        prefix_bytes = 12;
    }
    if (length > HEADER_LIMIT)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: the .npy header claims %lu bytes; at most %d are read",
                         source->label, (unsigned long)length, HEADER_LIMIT);
    text = fgmm_alloc(ctx, length, "an .npy header");
    if (!text) return FGMM_ERR_MEMORY;
    FGMM_GO(source->read(ctx, source, text, length));
    FGMM_GO(parse(ctx, source->label, (cursor){text, text + length}, out));
    classify(out);
    out->offset = (int64_t)(prefix_bytes + length);
    if (__builtin_mul_overflow(out->count, (int64_t)out->item, &out->bytes))
        status = bad_header(ctx, source->label, "has a 'shape' whose bytes overflow");
done:
    fgmm_free(ctx, text);
    return status;
}

typedef struct file_source {
    fgmm_npy_source base;
    const fgmm_infile *file;
    int64_t at;
} file_source;

static fgmm_status read_file(fgmm_context *ctx, fgmm_npy_source *base, void *dst, size_t bytes) {
    file_source *source = (file_source *)base;
    if ((int64_t)bytes > source->file->size - source->at)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s: truncated: its %lld bytes end inside the .npy header", base->label,
                         (long long)source->file->size);
    FGMM_TRY(fgmm_infile_read(ctx, source->file, dst, bytes, source->at));
    source->at += (int64_t)bytes;
    return FGMM_OK;
}

fgmm_status fgmm_npy_file_header(fgmm_context *ctx, const fgmm_infile *file, fgmm_npy_header *out) {
    file_source source = {{file->path, read_file}, file, 0};
    return fgmm_npy_read_header(ctx, &source.base, out);
}

bool fgmm_npy_is_numeric(const fgmm_npy_header *h, char *why, size_t why_size) {
    if (h->kind == '?' || h->kind == 'U' || h->kind == 'S') {
        snprintf(why, why_size, "its dtype is %s, not one of f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1", h->descr);
        return false;
    }
    if (h->order == '>' && h->item > 1) {
        snprintf(why, why_size, "its dtype %s is big-endian; convert it with x.astype('<%c%d')", h->descr, h->kind,
                 (int)h->item);
        return false;
    }
    return true;
}

static double half_value(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value;
    if (exponent == 31)
        value = fraction ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        value = ldexp(fraction, -24);
    else
        value = ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -value : value;
}

#define CONVERT(type, expression)                                                                                      \
    for (size_t i = 0; i < n; i++) {                                                                                   \
        type v;                                                                                                        \
        memcpy(&v, raw + i * sizeof v, sizeof v);                                                                      \
        dst[i] = (expression);                                                                                         \
    }

static void to_doubles(char kind, size_t item, const unsigned char *raw, size_t n, double *dst) {
    switch (kind) {
    case 'f':
        if (item == 2)
            CONVERT(uint16_t, half_value(v))
        else if (item == 4)
            CONVERT(float, (double)v)
        else
            memcpy(dst, raw, n * sizeof *dst);
        break;
    case 'i':
        if (item == 1)
            CONVERT(int8_t, v)
        else if (item == 2)
            CONVERT(int16_t, v)
        else if (item == 4)
            CONVERT(int32_t, v)
        else
            CONVERT(int64_t, (double)v)
        break;
    case 'b': CONVERT(uint8_t, v != 0) break;
    default:
        if (item == 1)
            CONVERT(uint8_t, v)
        else if (item == 2)
            CONVERT(uint16_t, v)
        else if (item == 4)
            CONVERT(uint32_t, v)
        else
            CONVERT(uint64_t, (double)v)
        break;
    }
}

fgmm_status fgmm_npy_read_doubles(fgmm_context *ctx, fgmm_npy_source *source, const fgmm_npy_header *h, double *dst) {
    enum { PIECE = 1024 };
    unsigned char raw[PIECE * 8];
    double values[PIECE];
    int64_t shape[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, at[3] = {0, 0, 0}, done = 0;
    for (int i = 0; i < h->ndim && i < 3; i++) shape[i] = h->shape[i];
    stride[1] = shape[2];
    stride[0] = shape[1] * shape[2];
    while (done < h->count) {
        size_t n = (size_t)(h->count - done < PIECE ? h->count - done : PIECE);
        FGMM_TRY(source->read(ctx, source, raw, n * h->item));
        if (!h->fortran)
            to_doubles(h->kind, h->item, raw, n, dst + done);
        else {
            to_doubles(h->kind, h->item, raw, n, values);
            for (size_t i = 0; i < n; i++) { /* the first index runs fastest */
                dst[at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2]] = values[i];
                for (int a = 0; a < 3 && ++at[a] == shape[a]; a++) at[a] = 0;
            }
        }
        done += (int64_t)n;
    }
    return FGMM_OK;
}

size_t fgmm_npy_format(char header[FGMM_NPY_HEADER_MAX], const char *descr, int ndim, const int64_t *shape) {
    char *text = header + 10;
    size_t room = FGMM_NPY_HEADER_MAX - 10, used, total;
    used = (size_t)snprintf(text, room, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < ndim; i++)
        used += (size_t)snprintf(text + used, room - used,
                                 i + 1 < ndim ? "%lld, "
                                 : ndim == 1  ? "%lld,"
                                              : "%lld",
                                 (long long)shape[i]);
    used += (size_t)snprintf(text + used, room - used, "), }");
    total = (10 + used + 1 + 63) / 64 * 64;
    memset(text + used, ' ', total - 10 - used);
    header[total - 1] = '\n';
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(unsigned char)((total - 10) & 255);
    header[9] = (char)(unsigned char)((total - 10) >> 8);
    return total;
}

const char *fgmm_npy_descr(fgmm_dtype type) {
    static const char *const names[] = {[FGMM_F32] = "<f4", [FGMM_F64] = "<f8", [FGMM_F16] = "<f2", [FGMM_BF16] = NULL,
                                        [FGMM_U8] = "|u1",  [FGMM_I8] = "|i1",  [FGMM_I32] = "<i4", [FGMM_I64] = "<i8"};
    if (type == FGMM_NPY_BOOL) return "|b1";
    return (unsigned)type < sizeof names / sizeof *names ? names[type] : NULL;
}
