/* Rows from standard input. They go by once; where they are needed again they are put aside first, in memory if they fit
 * and in a file without a name if not. */
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "../dispatch.h"
#include "npy.h"
#include "rows_file.h"

static const char label[] = "standard input";

enum { SPOOL_PIECE = 4 << 20, WAIT_MILLISECONDS = 50 };

typedef struct pipe_rows {
    fgmm_rows *self;
    fgmm_npy_source source; /* the bytes that come, for the header */
    size_t row_bytes;
    int64_t n;
    int64_t next;         /* the row that comes next; -1 where that is not known any more */
    unsigned char *aside; /* all rows, or NULL */
    char *folder;         /* where the file is, for messages */
    fgmm_infile file;     /* all rows; fd -1 if there is none */
} pipe_rows;

/* ---- the bytes that come ---- */

/* Up to that many bytes; fewer only at the end. A writer may take its time: meanwhile the call can be cancelled. */
static fgmm_status read_bytes(fgmm_context *ctx, void *dst, size_t bytes, size_t *got) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char *at = dst;
    *got = 0;
    while (*got < bytes) {
        if (fgmm_cancelled(ctx)) return fgmm_fail(ctx, FGMM_ERR_CANCELLED, "cancelled");
        if (poll(&input, 1, WAIT_MILLISECONDS) == 0) continue;
        ssize_t n = read(STDIN_FILENO, at + *got, bytes - *got);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n < 0) return fgmm_fail_errno(ctx, errno, "cannot read", label);
        if (n == 0) break;
        *got += (size_t)n;
    }
    return FGMM_OK;
}

static fgmm_status read_header_bytes(fgmm_context *ctx, fgmm_npy_source *source, void *dst, size_t bytes) {
    size_t got;
    FGMM_TRY(read_bytes(ctx, dst, bytes, &got));
    if (got == bytes) return FGMM_OK;
    return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s ends inside its header", source->label);
}

/* Rows next .. next+n-1, which must all come; behind the last of all nothing may. */
static fgmm_status read_next(fgmm_context *ctx, pipe_rows *pipe, int64_t n, void *dst) {
    size_t wanted = (size_t)n * pipe->row_bytes, got;
    int64_t next = pipe->next;
    char more;
    pipe->next = -1;
    FGMM_TRY(read_bytes(ctx, dst, wanted, &got));
    int64_t whole = next + (int64_t)(got / pipe->row_bytes);
    if (got < wanted && got % pipe->row_bytes)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s ends inside row %lld: %lld of %lld rows were whole", label,
                         (long long)whole, (long long)whole, (long long)pipe->n);
    if (got < wanted)
        return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s ends after %lld rows: its header claims %lld", label,
                         (long long)whole, (long long)pipe->n);
    if (whole == pipe->n) {
        FGMM_TRY(read_bytes(ctx, &more, 1, &got));
        if (got) return fgmm_fail(ctx, FGMM_ERR_FORMAT, "%s goes on behind its %lld rows", label, (long long)pipe->n);
    }
    pipe->next = whole;
    return FGMM_OK;
}

/* ---- putting rows aside ---- */

static fgmm_status write_all(fgmm_context *ctx, const pipe_rows *pipe, const char *data, size_t bytes) {
    while (bytes > 0) {
        ssize_t n = write(pipe->file.fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return fgmm_fail_errno(ctx, n < 0 ? errno : ENOSPC, "cannot put standard input aside in", pipe->folder);
        data += n;
        bytes -= (size_t)n;
    }
    return FGMM_OK;
}

static fgmm_status open_spool(fgmm_context *ctx, pipe_rows *pipe) {
    const char *given = getenv("TMPDIR");
    pipe->folder = fgmm_strdup(ctx, given && *given ? given : "/tmp");
    if (!pipe->folder) return FGMM_ERR_MEMORY;
    size_t size = strlen(pipe->folder) + 32;
    char *path = fgmm_alloc(ctx, size, "the name of a file");
    if (!path) return FGMM_ERR_MEMORY;
    snprintf(path, size, "%s/flashgmm-spool-XXXXXX", pipe->folder);
    pipe->file = (fgmm_infile){.path = "the file that standard input was put aside in", .fd = mkstemp(path)};
    int error = errno;
    if (pipe->file.fd >= 0) unlink(path); /* nothing is left behind, however the program ends */
    fgmm_free(ctx, path);
    if (pipe->file.fd < 0) return fgmm_fail_errno(ctx, error, "cannot put standard input aside in", pipe->folder);
    return FGMM_OK;
}

static fgmm_status spool(fgmm_context *ctx, pipe_rows *pipe) {
    int64_t rows = (int64_t)fmin(fgmm_memory_left(ctx) / 8, SPOOL_PIECE) / (int64_t)pipe->row_bytes;
    if (rows < 1) rows = 1;
    fgmm_status status = FGMM_OK;
    void *piece = fgmm_alloc(ctx, (size_t)rows * pipe->row_bytes, "rows on their way to a file");
    if (!piece) return FGMM_ERR_MEMORY;
    FGMM_GO(open_spool(ctx, pipe));
    for (int64_t i = 0; i < pipe->n; i += rows) {
        int64_t count = pipe->n - i < rows ? pipe->n - i : rows;
        FGMM_GO(read_next(ctx, pipe, count, piece));
        FGMM_GO(write_all(ctx, pipe, piece, (size_t)count * pipe->row_bytes));
    }
    pipe->file.size = pipe->n * (int64_t)pipe->row_bytes;
    fgmm_infile_streams(&pipe->file, 0);
done:
    fgmm_free(ctx, piece);
    return status;
}

static int is_aside(const pipe_rows *pipe) {
    return pipe->aside || pipe->file.size > 0;
}

static fgmm_status put_aside(fgmm_context *ctx, pipe_rows *pipe) {
    double bytes = (double)pipe->n * (double)pipe->row_bytes, left = fgmm_memory_left(ctx);
    if (pipe->next != 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "%s has been read, and comes only once: put it into a file to read it again", label);
    if (bytes > (isfinite(left) ? left / 2 : fgmm_memory_share(ctx))) return spool(ctx, pipe);
    unsigned char *aside = fgmm_alloc(ctx, (size_t)bytes, "the rows of standard input");
    if (!aside) return FGMM_ERR_MEMORY;
    fgmm_status status = read_next(ctx, pipe, pipe->n, aside);
    if (status == FGMM_OK)
        pipe->aside = aside;
    else
        fgmm_free(ctx, aside);
    return status;
}

/* ---- the rows ---- */

static fgmm_status prepare(fgmm_context *ctx, void *state, int64_t passes) {
    pipe_rows *pipe = state;
    if (is_aside(pipe)) return FGMM_OK;
    pipe->self->once = passes < 2;
    if (passes < 2) return FGMM_OK;
    FGMM_TRY(put_aside(ctx, pipe));
    pipe->self->data = pipe->aside;
    pipe->self->stride_bytes = pipe->row_bytes;
    return FGMM_OK;
}

static fgmm_status read_rows(fgmm_context *ctx, void *state, int64_t first, int64_t n, void *dst) {
    pipe_rows *pipe = state;
    if (!is_aside(pipe) && first == pipe->next) return read_next(ctx, pipe, n, dst);
    if (!is_aside(pipe)) FGMM_TRY(put_aside(ctx, pipe));
    size_t bytes = (size_t)n * pipe->row_bytes;
    int64_t at = first * (int64_t)pipe->row_bytes;
    if (!pipe->aside) return fgmm_infile_read(ctx, &pipe->file, dst, bytes, at);
    memcpy(dst, pipe->aside + at, bytes);
    return FGMM_OK;
}

static void close_pipe(fgmm_context *ctx, void *state) {
    pipe_rows *pipe = state;
    if (pipe->file.fd >= 0) close(pipe->file.fd);
    fgmm_free(ctx, pipe->folder);
    fgmm_free(ctx, pipe->aside);
    fgmm_free(ctx, pipe);
}

static const fgmm_rows_ops pipe_ops = {.read = read_rows, .close = close_pipe, .prepare = prepare};

static fgmm_status read_header(fgmm_context *ctx, pipe_rows *pipe, const char *format, fgmm_dtype *type, int64_t *d) {
    if (!format || strcasecmp(format, "npy") == 0) {
        fgmm_npy_header header;
        FGMM_TRY(fgmm_npy_read_header(ctx, &pipe->source, &header));
        FGMM_TRY(fgmm_rows_npy_type(ctx, label, &header, type));
        if (header.fortran)
            return fgmm_fail(ctx, FGMM_ERR_FORMAT,
                             "%s: is in Fortran order, row by row only at its end: write it with np.ascontiguousarray",
                             label);
        pipe->n = header.shape[0];
        *d = header.shape[1];
        return FGMM_OK;
    }
    uint32_t sizes[2];
    if (!fgmm_rows_bin_type(format, type))
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "%s: rows in the format \"%s\" do not come through a pipe: npy, fbin, u8bin and i8bin do",
                         label, format);
    FGMM_TRY(read_header_bytes(ctx, &pipe->source, sizes, sizeof sizes));
    pipe->n = sizes[0];
    *d = sizes[1];
    return FGMM_OK;
}

fgmm_status fgmm_rows_open_pipe(fgmm_context *ctx, fgmm_rows **out, const char *format) {
    fgmm_status status;
    fgmm_dtype type = FGMM_F32;
    int64_t d = 0;
    if (isatty(STDIN_FILENO)) return fgmm_fail(ctx, FGMM_ERR_IO, "cannot read %s: it is a terminal", label);
    pipe_rows *pipe = fgmm_calloc(ctx, 1, sizeof *pipe, "standard input");
    if (!pipe) return FGMM_ERR_MEMORY;
    pipe->source = (fgmm_npy_source){label, read_header_bytes};
    pipe->file.fd = -1;
    FGMM_GO(read_header(ctx, pipe, format, &type, &d));
    pipe->row_bytes = (size_t)d * fgmm_dtype_size(type);
    FGMM_TRY(fgmm_rows_new(ctx, out, &pipe_ops, pipe, type, pipe->n, d));
    pipe->self = *out;
    (*out)->readers = 1;
    return FGMM_OK;
done:
    if (status == FGMM_ERR_CANCELLED) atomic_store(&ctx->cancelled, 0);
    close_pipe(ctx, pipe);
    return status;
}
