#include "feed.h"

#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "convert.h"

/* A block where it is: on the device, perhaps with a staged copy of its rows and weights on the host. */
typedef struct {
    fgmm_block *block;
    void *staged;
    double *weights;
    int64_t first, n;
    int64_t bad_from, bad_to; /* its part of feed->bad */
} feed_slot;

struct fgmm_feed {
    fgmm_context *ctx;
    const fgmm_rows *rows;
    const fgmm_target *target;
    fgmm_nonfinite nonfinite;
    int64_t block_rows, n_blocks;
    feed_slot *kept; /* [n_blocks], or NULL if none stay */
    int64_t keep;    /* blocks 0 .. keep-1 stay on the device between runs */
    double *centre, *mean, *variance;
    int has_centre, scanned, quiet;
    fgmm_moments moments;
    int64_t *bad; /* rows left out, ascending */
    int64_t n_bad, bad_room;
    fgmm_progress progress;
    double began, pass_began, reported;
};

double fgmm_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Memory that kept or staged rows may take on the host: a quarter of the machine's. */
static double host_room(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? 0.25 * (double)pages * (double)page : 1e9;
}

static int64_t choose_block_rows(const fgmm_feed *feed, int64_t asked, size_t row_bytes) {
    const fgmm_device_facts *facts = &feed->target->facts;
    int64_t rows = asked;
    if (rows <= 0) {
        /* Streamed blocks are small enough to overlap, rows in place are cut only for progress and cancel. */
        double bytes = facts->zero_copy ? 64e6 : feed->rows->data || feed->rows->cl_mem ? 512e6 : 128e6;
        if (facts->memory_bytes > 0) bytes = fmin(bytes, 0.2 * (double)facts->memory_bytes);
        rows = (int64_t)(bytes / (double)row_bytes);
    }
    if (facts->max_block_bytes > 0 && !feed->rows->cl_mem && rows > facts->max_block_bytes / (int64_t)row_bytes)
        rows = facts->max_block_bytes / (int64_t)row_bytes / FGMM_CHUNK_ROWS * FGMM_CHUNK_ROWS;
    /* Per-row results of a block are held by its caller. */
    if (rows > (int64_t)1 << 22) rows = (int64_t)1 << 22;
    if (rows > feed->rows->n) rows = feed->rows->n;
    int64_t chunks = (rows + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS;
    return (chunks > 0 ? chunks : 1) * FGMM_CHUNK_ROWS;
}

static int rows_can_stay(const fgmm_feed *feed, size_t row_bytes, int64_t passes) {
    if (passes < 2 || feed->rows->once) return 0;
    double bytes = (double)row_bytes * (double)feed->rows->n;
    if (feed->target->facts.zero_copy && feed->rows->data) return 1;
    if (feed->rows->cl_mem) return 1;
    if (!feed->rows->data && bytes > host_room()) return 0;
    return feed->target->facts.memory_bytes <= 0 || bytes < 0.6 * (double)feed->target->facts.memory_bytes;
}

/* A device that computes in f32 squares and scales these; beyond, f32 overflows or loses digits. */
static const double f32_value_max = 1e17, f32_weight_max = 1e30, f32_weight_min = 1e-30;

static int computes_in_f32(const fgmm_target *target) {
    return target->facts.sum_epsilon > 0x1p-50;
}

static fgmm_status check_weights(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_target *target) {
    if (!rows->weights || !computes_in_f32(target)) return FGMM_OK;
    for (int64_t i = 0; i < rows->n; i++)
        if (rows->weights[i] > f32_weight_max || (rows->weights[i] > 0 && rows->weights[i] < f32_weight_min))
            return fgmm_fail(
                ctx, FGMM_ERR_UNSUPPORTED,
                "the weight of row %lld is %g: %s computes in f32; use the cpu device, or scale the weights",
                (long long)i, rows->weights[i], target->label);
    return FGMM_OK;
}

fgmm_status fgmm_feed_open(fgmm_context *ctx, fgmm_feed **out, const fgmm_rows *rows, const fgmm_target *target,
                           const fgmm_compute_options *compute, int64_t passes) {
    fgmm_status status = FGMM_OK;
    *out = NULL;
    if (rows->once && passes > 1)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "these rows can be read only once: they cannot be fitted, only accumulated");
    if (rows->cl_mem && rows->owner != ctx)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "rows in a cl_mem can only be used with the context they were made with");
    FGMM_TRY(check_weights(ctx, rows, target));
    if (rows->cl_mem && compute->nonfinite == FGMM_NONFINITE_SKIP)
        return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED,
                         "rows in a cl_mem are used in place: rows with NaN or Inf cannot be left out");
    fgmm_feed *feed = fgmm_calloc(ctx, 1, sizeof *feed, "a feed");
    if (!feed) return FGMM_ERR_MEMORY;
    feed->ctx = ctx;
    feed->rows = rows;
    feed->target = target;
    feed->nonfinite = compute->nonfinite;
    size_t row_bytes = (size_t)rows->d * fgmm_dtype_size(rows->type);
    feed->block_rows = choose_block_rows(feed, compute->block_rows, row_bytes);
    feed->n_blocks = (rows->n + feed->block_rows - 1) / feed->block_rows;
    status = FGMM_ERR_MEMORY;
    double *vectors = fgmm_calloc(ctx, (size_t)rows->d * 5, sizeof *vectors, "column sums");
    if (!vectors) goto done;
    feed->centre = vectors;
    feed->mean = vectors + rows->d;
    feed->variance = vectors + 2 * rows->d;
    feed->moments = (fgmm_moments){.sum = vectors + 3 * rows->d, .square = vectors + 4 * rows->d, .bad_row = -1};
    if (rows_can_stay(feed, row_bytes, passes)) {
        feed->kept = fgmm_calloc(ctx, (size_t)feed->n_blocks, sizeof *feed->kept, "a list of blocks");
        if (!feed->kept) goto done;
        feed->keep = feed->n_blocks;
    }
    feed->progress = (fgmm_progress){.stage = "", .lower_bound = NAN, .change = NAN, .rows_total = rows->n};
    feed->began = fgmm_now();
    *out = feed;
    feed = NULL;
    status = FGMM_OK;
done:
    fgmm_feed_close(ctx, feed);
    return status;
}

static void slot_free(fgmm_feed *feed, feed_slot *slot) {
    if (slot->block) feed->target->backend->release(feed->target->device, slot->block);
    fgmm_free(feed->ctx, slot->staged);
    fgmm_free(feed->ctx, slot->weights);
    *slot = (feed_slot){0};
}

static void kept_free(fgmm_feed *feed) {
    for (int64_t i = 0; feed->kept && i < feed->n_blocks; i++) slot_free(feed, &feed->kept[i]);
    fgmm_free(feed->ctx, feed->kept);
    feed->kept = NULL;
}

void fgmm_feed_close(fgmm_context *ctx, fgmm_feed *feed) {
    if (!feed) return;
    kept_free(feed);
    if (feed->target->backend->end) feed->target->backend->end(feed->target->device);
    fgmm_free(ctx, feed->centre);
    fgmm_free(ctx, feed->bad);
    fgmm_free(ctx, feed);
}

/* ---- rows that hold NaN or Inf ---- */

/* The first non-finite element of a row on the host, or -1. Integers have none. */
static int64_t first_bad_column(const void *row, fgmm_dtype type, int64_t d) {
    for (int64_t j = 0; j < d; j++) {
        switch (type) {
        case FGMM_F32:
            if (!isfinite(((const float *)row)[j])) return j;
            break;
        case FGMM_F64:
            if (!isfinite(((const double *)row)[j])) return j;
            break;
        case FGMM_F16:
            if ((((const uint16_t *)row)[j] & 0x7c00u) == 0x7c00u) return j;
            break;
        case FGMM_BF16:
            if ((((const uint16_t *)row)[j] & 0x7f80u) == 0x7f80u) return j;
            break;
        default: return -1;
        }
    }
    return -1;
}

static fgmm_status remember_bad(fgmm_feed *feed, int64_t row) {
    if (feed->n_bad == feed->bad_room) {
        int64_t room = feed->bad_room ? 2 * feed->bad_room : 64;
        int64_t *bad = fgmm_alloc(feed->ctx, (size_t)room * sizeof *bad, "a list of rows with NaN or Inf");
        if (!bad) return FGMM_ERR_MEMORY;
        if (feed->n_bad) memcpy(bad, feed->bad, (size_t)feed->n_bad * sizeof *bad);
        fgmm_free(feed->ctx, feed->bad);
        feed->bad = bad;
        feed->bad_room = room;
    }
    feed->bad[feed->n_bad++] = row;
    return FGMM_OK;
}

/* How many rows left out have numbers below `row`. */
static int64_t bad_before(const fgmm_feed *feed, int64_t row) {
    int64_t low = 0, high = feed->n_bad;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (feed->bad[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Finds the slot's rows that are to be left out: on the first run by looking, later in the list. */
static fgmm_status find_bad(fgmm_feed *feed, feed_slot *slot, const char *data, size_t stride) {
    if (!feed->scanned) {
        slot->bad_from = feed->n_bad;
        for (int64_t i = 0; i < slot->n; i++)
            if (first_bad_column(data + (size_t)i * stride, feed->rows->type, feed->rows->d) >= 0)
                FGMM_TRY(remember_bad(feed, slot->first + i));
        slot->bad_to = feed->n_bad;
        return FGMM_OK;
    }
    slot->bad_from = bad_before(feed, slot->first);
    slot->bad_to = bad_before(feed, slot->first + slot->n);
    return FGMM_OK;
}

/* Left-out rows become zeros of weight 0 in a copy; the caller's rows are never written. */
static fgmm_status blank_bad(fgmm_feed *feed, feed_slot *slot, size_t row_bytes) {
    slot->weights = fgmm_alloc(feed->ctx, (size_t)slot->n * sizeof(double), "weights of a block");
    if (!slot->weights) return FGMM_ERR_MEMORY;
    const double *weights = feed->rows->weights;
    for (int64_t i = 0; i < slot->n; i++) slot->weights[i] = weights ? weights[slot->first + i] : 1;
    for (int64_t at = slot->bad_from; at < slot->bad_to; at++) {
        int64_t i = feed->bad[at] - slot->first;
        memset((char *)slot->staged + (size_t)i * row_bytes, 0, row_bytes);
        slot->weights[i] = 0;
    }
    return FGMM_OK;
}

/* ---- blocks ---- */

static fgmm_status slot_stage(fgmm_feed *feed, feed_slot *slot, size_t row_bytes) {
    slot->staged = fgmm_alloc(feed->ctx, (size_t)slot->n * row_bytes, "a block of rows");
    if (!slot->staged) return FGMM_ERR_MEMORY;
    return fgmm_rows_read(feed->ctx, feed->rows, slot->first, slot->n, slot->staged);
}

/* f64 rows are narrowed about the first sound one. */
static void set_centre(fgmm_feed *feed, const char *data, size_t stride, int64_t n) {
    if (feed->has_centre || feed->rows->type != FGMM_F64) return;
    for (int64_t i = 0; i < n && !feed->has_centre; i++) {
        const void *row = data + (size_t)i * stride;
        feed->has_centre = first_bad_column(row, FGMM_F64, feed->rows->d) < 0;
        if (feed->has_centre) memcpy(feed->centre, row, (size_t)feed->rows->d * sizeof(double));
    }
}

static fgmm_status slot_fill(fgmm_feed *feed, feed_slot *slot, int64_t index) {
    const fgmm_rows *rows = feed->rows;
    size_t row_bytes = (size_t)rows->d * fgmm_dtype_size(rows->type);
    slot->first = index * feed->block_rows;
    slot->n = rows->n - slot->first < feed->block_rows ? rows->n - slot->first : feed->block_rows;
    fgmm_block_source source = {.stride_bytes = rows->stride_bytes,
                                .type = rows->type,
                                .first_row = slot->first,
                                .n = slot->n,
                                .d = rows->d,
                                .weights = rows->weights ? rows->weights + slot->first : NULL,
                                .kept = index < feed->keep,
                                .centre = rows->type == FGMM_F64 ? feed->centre : NULL};
    if (rows->cl_mem) {
        source.cl_mem = rows->cl_mem;
        source.offset = rows->offset + (size_t)slot->first * rows->stride_bytes;
        source.n_wait = rows->n_wait;
        source.wait_list = rows->wait_list;
        return feed->target->backend->put(feed->target->device, &source, &slot->block);
    }
    if (rows->data) {
        source.data = (const char *)rows->data + (size_t)slot->first * rows->stride_bytes;
    } else {
        FGMM_TRY(slot_stage(feed, slot, row_bytes));
        source.data = slot->staged;
        source.stride_bytes = row_bytes;
    }
    set_centre(feed, source.data, source.stride_bytes, slot->n);
    if (feed->nonfinite == FGMM_NONFINITE_SKIP) {
        FGMM_TRY(find_bad(feed, slot, source.data, source.stride_bytes));
        if (slot->bad_to > slot->bad_from) {
            if (!slot->staged) FGMM_TRY(slot_stage(feed, slot, row_bytes));
            FGMM_TRY(blank_bad(feed, slot, row_bytes));
            source.data = slot->staged;
            source.stride_bytes = row_bytes;
            source.weights = slot->weights;
        }
    }
    return feed->target->backend->put(feed->target->device, &source, &slot->block);
}

/* Starts bringing block `index`. When the device has no room to keep one more, fewer stay and the rest are streamed. */
static fgmm_status slot_open(fgmm_feed *feed, feed_slot *slot, int64_t index) {
    int64_t n_bad = feed->n_bad;
    fgmm_status status = slot_fill(feed, slot, index);
    if (status != FGMM_ERR_MEMORY || index >= feed->keep || index < 2) return status;
    slot_free(feed, slot);
    feed->keep = index - 2;
    slot_free(feed, &feed->kept[feed->keep]);
    fgmm_log(feed->ctx, FGMM_LOG_INFO, "the rows do not all fit on %s: streaming the rest", feed->target->label);
    fgmm_enter(feed->ctx);
    if (!feed->scanned) feed->n_bad = n_bad;
    return slot_fill(feed, slot, index);
}

static fgmm_status slot_scan(fgmm_feed *feed, feed_slot *slot) {
    fgmm_moments *moments = &feed->moments;
    const double *centre = feed->centre;
    if (slot->first == 0 && feed->rows->type != FGMM_F64) {
        int64_t zero = 0;
        FGMM_TRY(feed->target->backend->gather(feed->target->device, slot->block, &zero, 1, feed->centre));
        for (int64_t j = 0; j < feed->rows->d; j++)
            if (!isfinite(feed->centre[j])) feed->centre[j] = 0;
    }
    FGMM_TRY(feed->target->backend->moments(feed->target->device, slot->block, centre, moments));
    if (moments->bad_count > 0)
        return fgmm_fail(feed->ctx, FGMM_ERR_DATA,
                         "row %lld, column %lld holds NaN or Inf (rows and columns count from 0)",
                         (long long)moments->bad_row, (long long)moments->bad_column);
    return FGMM_OK;
}

static fgmm_status finish_scan(fgmm_feed *feed) {
    feed->scanned = 1;
    double weight = feed->moments.weight;
    for (int64_t j = 0; j < feed->rows->d; j++) {
        double shift = weight > 0 ? feed->moments.sum[j] / weight : 0;
        double variance = weight > 0 ? feed->moments.square[j] / weight - shift * shift : 0;
        feed->mean[j] = feed->centre[j] + shift;
        /* What rounding alone leaves of a constant column is no variance. */
        double noise = 1e-14 * (shift * shift + feed->mean[j] * feed->mean[j] * 1e-16);
        feed->variance[j] = variance > noise ? variance : 0;
        if (computes_in_f32(feed->target) && !(fabs(feed->mean[j]) + sqrt(feed->variance[j]) < f32_value_max))
            return fgmm_fail(feed->ctx, FGMM_ERR_UNSUPPORTED,
                             "column %lld reaches %g: %s computes in f32; use the cpu device, or scale the data",
                             (long long)j, fabs(feed->mean[j]) + sqrt(feed->variance[j]), feed->target->label);
    }
    return FGMM_OK;
}

fgmm_status fgmm_feed_report(fgmm_feed *feed) {
    double now = fgmm_now();
    fgmm_progress *progress = &feed->progress;
    progress->seconds = now - feed->began;
    progress->rows_per_second = now > feed->pass_began ? (double)progress->rows_done / (now - feed->pass_began) : 0;
    feed->reported = now;
    if (!feed->quiet && feed->ctx->progress && feed->ctx->progress(feed->ctx->progress_user, progress) != 0)
        fgmm_context_cancel(feed->ctx);
    if (fgmm_cancelled(feed->ctx)) return fgmm_fail(feed->ctx, FGMM_ERR_CANCELLED, "cancelled");
    return FGMM_OK;
}

static fgmm_status visit_slot(fgmm_feed *feed, feed_slot *slot, fgmm_feed_visit visit, void *user) {
    FGMM_TRY(feed->target->backend->wait(feed->target->device, slot->block));
    if (!feed->target->facts.zero_copy) {
        fgmm_free(feed->ctx, slot->staged);
        slot->staged = NULL;
    }
    if (!feed->scanned) FGMM_TRY(slot_scan(feed, slot));
    if (visit) {
        fgmm_feed_block block = {.block = slot->block,
                                 .first = slot->first,
                                 .n = slot->n,
                                 .bad = feed->bad ? feed->bad + slot->bad_from : NULL,
                                 .n_bad = slot->bad_to - slot->bad_from,
                                 .weights = slot->weights         ? slot->weights
                                            : feed->rows->weights ? feed->rows->weights + slot->first
                                                                  : NULL};
        FGMM_TRY(visit(user, &block));
    }
    feed->progress.rows_done = slot->first + slot->n;
    if (fgmm_cancelled(feed->ctx) || fgmm_now() - feed->reported > 0.1) return fgmm_feed_report(feed);
    return FGMM_OK;
}

fgmm_status fgmm_feed_run(fgmm_feed *feed, const char *stage, fgmm_feed_visit visit, void *user) {
    fgmm_status status = FGMM_OK;
    feed->progress.stage = stage;
    feed->progress.rows_done = 0;
    feed->pass_began = fgmm_now();
    feed_slot ring[2] = {{0}, {0}}, *now = NULL, *next = NULL;
    for (int64_t i = -1; i < feed->n_blocks; i++) {
        /* Block i + 1 sets out before block i is worked on. */
        next = NULL;
        if (i + 1 < feed->n_blocks) {
            next = i + 1 < feed->keep ? &feed->kept[i + 1] : &ring[(i + 1) & 1];
            if (!next->block) FGMM_GO(slot_open(feed, next, i + 1));
        }
        if (now) {
            FGMM_GO(visit_slot(feed, now, visit, user));
            if (i >= feed->keep) slot_free(feed, now);
        }
        now = next;
    }
    if (!feed->scanned) FGMM_GO(finish_scan(feed));
    feed->progress.rows_done = feed->rows->n;
done:
    slot_free(feed, &ring[0]);
    slot_free(feed, &ring[1]);
    return status;
}

/* ---- rows by number ---- */

typedef struct {
    fgmm_feed *feed;
    const int64_t *rows;
    int64_t count, at;
    int64_t *local;
    double *out;
} gather_state;

static fgmm_status gather_visit(void *user, const fgmm_feed_block *block) {
    gather_state *state = user;
    int64_t from = state->at;
    while (state->at < state->count && state->rows[state->at] < block->first + block->n) {
        state->local[state->at - from] = state->rows[state->at] - block->first;
        state->at++;
    }
    if (state->at == from) return FGMM_OK;
    const fgmm_target *target = state->feed->target;
    return target->backend->gather(target->device, block->block, state->local, state->at - from,
                                   state->out + from * state->feed->rows->d);
}

fgmm_status fgmm_feed_gather(fgmm_feed *feed, const int64_t *rows, int64_t count, double *out) {
    const fgmm_rows *source = feed->rows;
    int64_t d = source->d;
    fgmm_status status = FGMM_OK;
    size_t row_bytes = (size_t)d * fgmm_dtype_size(source->type);
    void *buffer = fgmm_alloc(feed->ctx, source->cl_mem ? (size_t)count * sizeof(int64_t) : row_bytes, "sampled rows");
    if (!buffer) return FGMM_ERR_MEMORY;
    if (source->cl_mem) {
        gather_state state = {.feed = feed, .rows = rows, .count = count, .local = buffer, .out = out};
        FGMM_GO(fgmm_feed_run(feed, "seed", gather_visit, &state));
    } else {
        for (int64_t i = 0; i < count; i++) {
            FGMM_GO(fgmm_rows_read(feed->ctx, source, rows[i], 1, buffer));
            fgmm_widen(source->type, buffer, d, out + i * d);
        }
    }
done:
    fgmm_free(feed->ctx, buffer);
    return status;
}

const fgmm_target *fgmm_feed_target(const fgmm_feed *feed) {
    return feed->target;
}
int64_t fgmm_feed_block_rows(const fgmm_feed *feed) {
    return feed->block_rows;
}
int fgmm_feed_once(const fgmm_feed *feed) {
    return feed->rows->once;
}
void fgmm_feed_quiet(fgmm_feed *feed) {
    feed->quiet = 1;
}

int64_t fgmm_feed_rows(const fgmm_feed *feed) {
    return feed->rows->n;
}

int64_t fgmm_feed_skipped(const fgmm_feed *feed) {
    return feed->n_bad;
}
double fgmm_feed_weight(const fgmm_feed *feed) {
    return feed->moments.weight;
}
const double *fgmm_feed_mean(const fgmm_feed *feed) {
    return feed->mean;
}
const double *fgmm_feed_variance(const fgmm_feed *feed) {
    return feed->variance;
}
fgmm_progress *fgmm_feed_progress(fgmm_feed *feed) {
    return &feed->progress;
}
int fgmm_feed_is_bad(const fgmm_feed *feed, int64_t row) {
    int64_t at = bad_before(feed, row);
    return at < feed->n_bad && feed->bad[at] == row;
}
