#include "feed.h"

#include <math.h>
#include <string.h>

#include "bad_rows.h"
#include "convert.h"
#include "persist.h"
#include "row_room.h"

/* A block where it is: on the device, perhaps with its rows and weights staged on the host. */
typedef struct {
    fgmm_block *block;
    void *staged;
    int lent; /* staged is the reader's */
    double *weights;
    int64_t first, n;
    int64_t bad_from, bad_to; /* its part of feed->bad */
} feed_slot;

struct fgmm_feed {
    fgmm_context *ctx;
    const fgmm_rows *rows;
    const fgmm_target *target;
    fgmm_nonfinite nonfinite;
    int64_t block_rows; /* asked for; 0: room's choice */
    fgmm_row_room room;
    fgmm_reader *reader; /* NULL for rows that are used where they lie in memory */
    void *pin;           /* of such rows, where the device copies them from there; or NULL */
    int64_t passes, runs;
    feed_slot *kept;  /* [room.n_blocks], or NULL if none stay */
    int64_t keep;     /* blocks 0 .. keep-1 stay on the device between runs */
    int64_t resident; /* blocks 0 .. resident-1 were there when the run began */
    feed_slot *now;   /* on its way or being visited; NULL once that is over */
    int32_t *hints;   /* [rows], or NULL where they take too much or serve nobody */
    double *centre, *mean, *variance;
    int has_centre, quiet;
    int looked;      /* bad is known */
    int has_moments; /* and the moments */
    int no_moments;  /* which are not wanted */
    int failed;
    fgmm_moments moments;
    fgmm_bad_rows bad;
    fgmm_progress progress;
    double began, pass_began, reported;
    double iterations_began;             /* 0 before the first iteration */
    double copied_rows, compute_seconds; /* of the pass */
    double copy_began;                   /* what all copies had taken before it */
};

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

/* Hints are little beside the rows, and worth a tenth of an iteration; without room for them there are none. */
static void open_hints(fgmm_feed *feed) {
    enum { ROW_BYTES = 32, SHARE = 3 };
    const fgmm_rows *rows = feed->rows;
    size_t row_bytes = (size_t)rows->d * fgmm_dtype_size(rows->type), bytes = (size_t)rows->n * sizeof *feed->hints;
    double left = fmin(fgmm_memory_left(feed->ctx), fgmm_memory_share(feed->ctx));
    if (feed->passes < 2 || !feed->target->facts.zero_copy || row_bytes < ROW_BYTES || (double)bytes > left / SHARE)
        return;
    feed->hints = fgmm_alloc(feed->ctx, bytes, "the rows' best components");
    if (feed->hints)
        memset(feed->hints, 0xff, bytes);
    else
        fgmm_enter(feed->ctx);
}

static void slot_unstage(fgmm_feed *feed, feed_slot *slot) {
    if (slot->lent)
        fgmm_reader_give(feed->reader, slot->staged);
    else
        fgmm_free(feed->ctx, slot->staged);
    slot->staged = NULL;
    slot->lent = 0;
}

static void slot_free(fgmm_feed *feed, feed_slot *slot) {
    if (slot->block) feed->target->backend->release(feed->target->device, slot->block);
    slot_unstage(feed, slot);
    fgmm_free(feed->ctx, slot->weights);
    *slot = (feed_slot){0};
}

/* What depends on the size of blocks. */
static fgmm_status open_blocks(fgmm_feed *feed) {
    if (feed->passes < 2) return FGMM_OK;
    feed->kept = fgmm_calloc(feed->ctx, (size_t)feed->room.n_blocks, sizeof *feed->kept, "a list of blocks");
    return feed->kept ? FGMM_OK : FGMM_ERR_MEMORY;
}

static void close_reader(fgmm_feed *feed) {
    fgmm_reader_close(feed->reader);
    feed->reader = NULL;
}

static void close_blocks(fgmm_feed *feed) {
    for (int64_t i = 0; feed->kept && i < feed->room.n_blocks; i++) slot_free(feed, &feed->kept[i]);
    fgmm_free(feed->ctx, feed->kept);
    feed->kept = NULL;
    close_reader(feed);
}

/* Passes from which rows are worth more trouble; and of rows that persist, which may come to any number. */
enum { LEAST_PASSES = 6 };

/* Rows in memory that are streamed many times are pinned where they lie, in place of being staged each time. Half of the machine's
 * memory may well be pinned. */
static void pin_rows(fgmm_feed *feed) {
    const fgmm_rows *rows = feed->rows;
    const fgmm_target *target = feed->target;
    size_t row_bytes = (size_t)rows->d * fgmm_dtype_size(rows->type);
    double bytes = (double)row_bytes * (double)rows->n;
    if (!target->backend->pin || !feed->room.staged || !rows->data || rows->stride_bytes != row_bytes ||
        feed->passes < LEAST_PASSES || bytes > 2 * fgmm_memory_share(feed->ctx) ||
        fgmm_row_room_holds(rows, &target->facts))
        return;
    feed->pin = target->backend->pin(target->device, rows->data, (size_t)rows->n * row_bytes);
    if (feed->pin) feed->room.staged = 0;
}

/* Whether all that is wanted of a scan is known. */
static int is_scanned(const fgmm_feed *feed) {
    return feed->looked && (feed->no_moments || feed->has_moments);
}

/* Whether a feed that was kept would do what a new one does. */
static int serves(const fgmm_feed *feed, const fgmm_target *target, const fgmm_compute_options *compute) {
    return feed && feed->target == target && feed->nonfinite == compute->nonfinite &&
           feed->block_rows == compute->block_rows;
}

/* What copies to the device have taken so far. */
static double copy_seconds(const fgmm_target *target) {
    fgmm_device_facts facts;
    target->backend->describe(target->device, &facts);
    return facts.copy_seconds;
}

/* What a pass's rates are counted from. */
static void begin_rates(fgmm_feed *feed) {
    feed->copied_rows = feed->compute_seconds = 0;
    feed->copy_began = copy_seconds(feed->target);
    feed->pass_began = fgmm_now();
}

/* What is of one call alone. */
static void begin_call(fgmm_feed *feed) {
    feed->no_moments = feed->quiet = 0;
    feed->iterations_began = feed->reported = 0;
    begin_rates(feed);
    feed->progress = (fgmm_progress){
        .stage = "", .lower_bound = NAN, .change = NAN, .rows_total = feed->rows->n, .seconds_left = NAN};
    feed->began = feed->pass_began;
}

static fgmm_status feed_new(fgmm_context *ctx, fgmm_feed **out, const fgmm_rows *rows, const fgmm_target *target,
                            const fgmm_compute_options *compute, int64_t passes) {
    fgmm_status status = FGMM_OK;
    fgmm_feed *feed = fgmm_calloc(ctx, 1, sizeof *feed, "a feed");
    if (!feed) return FGMM_ERR_MEMORY;
    feed->ctx = ctx;
    feed->rows = rows;
    feed->target = target;
    feed->nonfinite = compute->nonfinite;
    feed->block_rows = compute->block_rows;
    feed->passes = passes;
    FGMM_GO(fgmm_row_room_choose(ctx, &feed->room, rows, &target->facts, compute->block_rows));
    pin_rows(feed);
    FGMM_GO(open_blocks(feed));
    open_hints(feed);
    status = FGMM_ERR_MEMORY;
    double *vectors = fgmm_calloc(ctx, (size_t)rows->d * 5, sizeof *vectors, "column sums");
    if (!vectors) goto done;
    feed->centre = vectors;
    feed->mean = vectors + rows->d;
    feed->variance = vectors + 2 * rows->d;
    feed->moments = (fgmm_moments){.sum = vectors + 3 * rows->d, .square = vectors + 4 * rows->d, .bad_row = -1};
    *out = feed;
    feed = NULL;
    status = FGMM_OK;
done:
    fgmm_feed_free(feed);
    return status;
}

fgmm_status fgmm_feed_open(fgmm_context *ctx, fgmm_feed **out, const fgmm_rows *rows, const fgmm_target *target,
                           const fgmm_compute_options *compute, int64_t passes) {
    *out = NULL;
    int persistent = fgmm_persists(ctx, rows);
    if (persistent && passes < LEAST_PASSES) passes = LEAST_PASSES;
    FGMM_TRY(fgmm_rows_prepare(ctx, rows, passes));
    if (fgmm_rows_once(rows) && passes > 1)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "these rows can be read only once: they cannot be fitted, only accumulated");
    if (rows->cl_mem && rows->owner != ctx)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "rows in a cl_mem can only be used with the context they were made with");
    FGMM_TRY(check_weights(ctx, rows, target));
    if (rows->cl_mem && compute->nonfinite == FGMM_NONFINITE_SKIP)
        return fgmm_fail(ctx, FGMM_ERR_UNSUPPORTED,
                         "rows in a cl_mem are used in place: rows with NaN or Inf cannot be left out");
    fgmm_feed *feed = fgmm_persisted_take(ctx, rows);
    if (!serves(feed, target, compute)) {
        fgmm_feed_free(feed);
        /* Rows of one source at a time are kept in the host's memory. */
        if (target->facts.zero_copy && !rows->data) fgmm_persisted_drop(ctx, NULL);
        FGMM_TRY(feed_new(ctx, &feed, rows, target, compute, passes));
    }
    begin_call(feed);
    *out = feed;
    return FGMM_OK;
}

void fgmm_feed_close(fgmm_context *ctx, fgmm_feed *feed) {
    if (!feed) return;
    const fgmm_target *target = feed->target;
    /* What is known of the host's memory under a limit is what a call takes, and the next may be another. */
    int limited = target->facts.zero_copy && ctx->bytes_limit;
    if (!feed->failed && !limited && fgmm_persisted_give(ctx, feed->rows, feed))
        close_reader(feed);
    else
        fgmm_feed_free(feed);
    if (target->backend->end) target->backend->end(target->device);
}

void fgmm_feed_free(fgmm_feed *feed) {
    if (!feed) return;
    fgmm_context *ctx = feed->ctx;
    close_blocks(feed);
    if (feed->pin) feed->target->backend->unpin(feed->target->device, feed->pin);
    fgmm_free(ctx, feed->hints);
    fgmm_free(ctx, feed->centre);
    fgmm_free(ctx, feed->bad.rows);
    fgmm_free(ctx, feed);
}

/* ---- rows that hold NaN or Inf ---- */

/* Finds the slot's rows that are to be left out: on the first run by looking, later in the list. */
static fgmm_status find_bad(fgmm_feed *feed, feed_slot *slot, const char *data, size_t stride) {
    if (!feed->looked) {
        slot->bad_from = feed->bad.count;
        for (int64_t i = 0; i < slot->n; i++)
            if (fgmm_bad_column(data + (size_t)i * stride, feed->rows->type, feed->rows->d) >= 0)
                FGMM_TRY(fgmm_bad_rows_add(feed->ctx, &feed->bad, slot->first + i));
        slot->bad_to = feed->bad.count;
        return FGMM_OK;
    }
    slot->bad_from = fgmm_bad_rows_before(&feed->bad, slot->first);
    slot->bad_to = fgmm_bad_rows_before(&feed->bad, slot->first + slot->n);
    return FGMM_OK;
}

/* Left-out rows become zeros of weight 0 in a copy; the caller's rows are never written. */
static fgmm_status blank_bad(fgmm_feed *feed, feed_slot *slot, size_t row_bytes) {
    slot->weights = fgmm_alloc(feed->ctx, (size_t)slot->n * sizeof(double), "weights of a block");
    if (!slot->weights) return FGMM_ERR_MEMORY;
    const double *weights = feed->rows->weights;
    for (int64_t i = 0; i < slot->n; i++) slot->weights[i] = weights ? weights[slot->first + i] : 1;
    for (int64_t at = slot->bad_from; at < slot->bad_to; at++) {
        int64_t i = feed->bad.rows[at] - slot->first;
        memset((char *)slot->staged + (size_t)i * row_bytes, 0, row_bytes);
        slot->weights[i] = 0;
    }
    return FGMM_OK;
}

/* ---- blocks ---- */

/* What a wait for rows does meanwhile. */
static fgmm_status while_waiting(void *user) {
    fgmm_feed *feed = user;
    if (fgmm_cancelled(feed->ctx) || fgmm_now() - feed->reported > 0.1) return fgmm_feed_report(feed);
    return FGMM_OK;
}

/* Rows in memory that cannot be used in place. */
static fgmm_status slot_copy(fgmm_feed *feed, feed_slot *slot, size_t row_bytes) {
    slot->staged = fgmm_alloc(feed->ctx, (size_t)slot->n * row_bytes, "a block of rows");
    if (!slot->staged) return FGMM_ERR_MEMORY;
    return fgmm_rows_read(feed->ctx, feed->rows, slot->first, slot->n, slot->staged);
}

/* Takes the block's rows from the reader. Where a block that should stay on the host cannot, it and those behind it are
 * streamed. */
static fgmm_status slot_take(fgmm_feed *feed, feed_slot *slot, int64_t index) {
    FGMM_TRY(fgmm_reader_take(feed->reader, &slot->staged, while_waiting, feed));
    slot->lent = 1;
    if (index >= feed->keep || !feed->target->facts.zero_copy) return FGMM_OK;
    fgmm_status status = fgmm_reader_keep(feed->reader);
    slot->lent = status != FGMM_OK;
    if (status != FGMM_ERR_MEMORY) return status;
    feed->keep = index;
    fgmm_enter(feed->ctx);
    return FGMM_OK;
}

/* f64 rows are narrowed about the first sound one. */
static void set_centre(fgmm_feed *feed, const char *data, size_t stride, int64_t n) {
    if (feed->has_centre || feed->rows->type != FGMM_F64) return;
    for (int64_t i = 0; i < n && !feed->has_centre; i++) {
        const void *row = data + (size_t)i * stride;
        feed->has_centre = fgmm_bad_column(row, FGMM_F64, feed->rows->d) < 0;
        if (feed->has_centre) memcpy(feed->centre, row, (size_t)feed->rows->d * sizeof(double));
    }
}

/* Finds rows in memory, or takes them from the reader, and puts aside those to be left out. */
static fgmm_status slot_fill(fgmm_feed *feed, feed_slot *slot, int64_t index, fgmm_block_source *source) {
    const fgmm_rows *rows = feed->rows;
    size_t row_bytes = (size_t)rows->d * fgmm_dtype_size(rows->type);
    slot->first = index * feed->room.block_rows;
    slot->n = rows->n - slot->first < feed->room.block_rows ? rows->n - slot->first : feed->room.block_rows;
    *source = (fgmm_block_source){.stride_bytes = rows->stride_bytes,
                                  .type = rows->type,
                                  .first_row = slot->first,
                                  .n = slot->n,
                                  .d = rows->d,
                                  .weights = rows->weights ? rows->weights + slot->first : NULL,
                                  .hints = feed->hints ? feed->hints + slot->first : NULL,
                                  .centre = rows->type == FGMM_F64 ? feed->centre : NULL};
    if (rows->cl_mem) {
        source->cl_mem = rows->cl_mem;
        source->offset = rows->offset + (size_t)slot->first * rows->stride_bytes;
        source->n_wait = rows->n_wait;
        source->wait_list = rows->wait_list;
        return FGMM_OK;
    }
    if (!feed->reader) {
        source->data = (const char *)rows->data + (size_t)slot->first * rows->stride_bytes;
    } else {
        FGMM_TRY(slot_take(feed, slot, index));
        source->data = slot->staged;
        source->stride_bytes = row_bytes;
    }
    set_centre(feed, source->data, source->stride_bytes, slot->n);
    if (feed->nonfinite == FGMM_NONFINITE_SKIP) {
        FGMM_TRY(find_bad(feed, slot, source->data, source->stride_bytes));
        if (slot->bad_to > slot->bad_from) {
            if (!slot->staged) FGMM_TRY(slot_copy(feed, slot, row_bytes));
            FGMM_TRY(blank_bad(feed, slot, row_bytes));
            source->data = slot->staged;
            source->stride_bytes = row_bytes;
            source->weights = slot->weights;
        }
    }
    return FGMM_OK;
}

static fgmm_status slot_put(fgmm_feed *feed, feed_slot *slot, int64_t index, fgmm_block_source *source) {
    const fgmm_target *target = feed->target;
    int64_t kept = feed->keep * feed->room.block_rows;
    source->kept = index < feed->keep;
    source->together = !source->kept ? 0 : (kept < feed->rows->n ? kept : feed->rows->n) - slot->first;
    fgmm_status status = target->backend->put(target->device, source, &slot->block);
    /* The run begins anew, without what others left. */
    if (status == FGMM_ERR_MEMORY && fgmm_persisted_any(feed->ctx) && !fgmm_rows_once(feed->rows)) return status;
    if (fgmm_persisted_give_way(feed->ctx, status)) status = target->backend->put(target->device, source, &slot->block);
    if (status == FGMM_ERR_MEMORY && index < feed->keep && index > 1) {
        /* No room to keep one more: fewer stay, which leaves the streamed ones theirs, and the rest is streamed. Where blocks share a buffer that
         * leaves nothing yet, and the run begins anew with fewer. */
        for (int64_t i = index - 2; i < index; i++)
            if (&feed->kept[i] != feed->now) slot_free(feed, &feed->kept[i]);
        feed->keep = index - 2;
        feed->room.kept_rows_max = feed->keep * feed->room.block_rows;
        fgmm_log(feed->ctx, FGMM_LOG_INFO, "the rows do not all fit on %s: streaming the rest", target->label);
        fgmm_enter(feed->ctx);
        source->kept = 0;
        status = target->backend->put(target->device, source, &slot->block);
    }
    if (status == FGMM_OK && !target->facts.zero_copy && !feed->rows->cl_mem) feed->copied_rows += (double)slot->n;
    return status;
}

/* Starts bringing block `index`. */
static fgmm_status slot_open(fgmm_feed *feed, feed_slot *slot, int64_t index) {
    fgmm_block_source source;
    FGMM_TRY(slot_fill(feed, slot, index, &source));
    return slot_put(feed, slot, index, &source);
}

static fgmm_status slot_scan(fgmm_feed *feed, feed_slot *slot) {
    fgmm_moments *moments = &feed->moments;
    const double *centre = feed->no_moments ? NULL : feed->centre;
    if (centre && slot->first == 0 && feed->rows->type != FGMM_F64) {
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

/* What a run found that did not end. */
static void forget_scan(fgmm_feed *feed) {
    fgmm_moments *moments = &feed->moments;
    memset(moments->sum, 0, (size_t)feed->rows->d * sizeof(double));
    memset(moments->square, 0, (size_t)feed->rows->d * sizeof(double));
    *moments = (fgmm_moments){.sum = moments->sum, .square = moments->square, .bad_row = -1};
    if (!feed->looked) feed->bad.count = 0;
}

/* Where moments are wanted, they tell more. */
static fgmm_status check_squares(fgmm_feed *feed) {
    if (!feed->no_moments || !feed->moments.overflows) return FGMM_OK;
    return fgmm_fail(feed->ctx, FGMM_ERR_UNSUPPORTED,
                     "the rows hold values whose squares overflow: %s computes in f32; use the cpu device, or "
                     "scale the data",
                     feed->target->label);
}

static fgmm_status finish_scan(fgmm_feed *feed) {
    feed->looked = 1;
    FGMM_TRY(check_squares(feed));
    if (feed->no_moments) return FGMM_OK;
    feed->has_moments = 1;
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

/* Seconds to the end of the pass, or of all iterations. */
static double seconds_left(const fgmm_feed *feed, double now) {
    const fgmm_progress *p = &feed->progress;
    double done = (double)p->rows_done / (double)p->rows_total, spent = now - feed->pass_began;
    if (feed->iterations_began > 0 && p->max_iter > 0) {
        /* Between iterations rows_done tells of the one before, which is counted. */
        double part = p->rows_done < p->rows_total ? done : 0;
        done = fmin(((double)p->iteration + part) / p->max_iter, 1);
        if (p->n_init > 1) done = (p->init + done) / p->n_init;
        spent = now - feed->iterations_began;
    }
    return done > 0 ? spent * (1 - done) / done : NAN;
}

static double gbs(double bytes, double seconds) {
    return bytes > 0 && seconds > 0 ? 1e-9 * bytes / seconds : 0;
}

static void tell_rates(fgmm_feed *feed, double now) {
    fgmm_progress *progress = &feed->progress;
    double row_bytes = (double)feed->rows->d * (double)fgmm_dtype_size(feed->rows->type);
    fgmm_reader_cost read = feed->reader ? fgmm_reader_spent(feed->reader) : (fgmm_reader_cost){0};
    progress->read_gbs = gbs(read.bytes, read.seconds);
    progress->copy_gbs = gbs(feed->copied_rows * row_bytes, copy_seconds(feed->target) - feed->copy_began);
    progress->compute_gbs = gbs((double)progress->rows_done * row_bytes, feed->compute_seconds);
    progress->seconds_left = seconds_left(feed, now);
}

fgmm_status fgmm_feed_report(fgmm_feed *feed) {
    double now = fgmm_now();
    fgmm_progress *progress = &feed->progress;
    tell_rates(feed, now);
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
    if (!feed->target->facts.zero_copy) slot_unstage(feed, slot);
    double began = fgmm_now();
    if (!is_scanned(feed)) FGMM_TRY(slot_scan(feed, slot));
    if (visit) {
        fgmm_feed_block block = {.block = slot->block,
                                 .first = slot->first,
                                 .n = slot->n,
                                 .bad = feed->bad.rows ? feed->bad.rows + slot->bad_from : NULL,
                                 .n_bad = slot->bad_to - slot->bad_from,
                                 .weights = slot->weights         ? slot->weights
                                            : feed->rows->weights ? feed->rows->weights + slot->first
                                                                  : NULL};
        FGMM_TRY(visit(user, &block));
    }
    feed->progress.rows_done = slot->first + slot->n;
    feed->compute_seconds += fgmm_now() - began;
    return while_waiting(feed);
}

/* Says how many blocks stay from now on, and sets the reader on its way to those that are not there. */
static fgmm_status begin_run(fgmm_feed *feed, const char *stage) {
    const fgmm_rows *rows = feed->rows;
    feed->progress.stage = stage;
    feed->progress.rows_done = 0;
    if (is_scanned(feed))
        FGMM_TRY(check_squares(feed)); /* by an earlier call */
    else
        forget_scan(feed);
    begin_rates(feed);
    int iterates = strcmp(stage, "fit") == 0 || strcmp(stage, "kmeans") == 0;
    if (iterates && feed->iterations_began == 0) feed->iterations_began = feed->pass_began;
    feed->keep = fgmm_row_room_keep(feed->ctx, &feed->room, rows, &feed->target->facts, feed->passes, feed->runs);
    feed->resident = 0;
    while (feed->resident < feed->keep && feed->kept[feed->resident].block) feed->resident++;
    for (int64_t i = feed->resident; feed->kept && i < feed->room.n_blocks; i++) slot_free(feed, &feed->kept[i]);
    if (!feed->room.staged || (!feed->reader && feed->resident == feed->room.n_blocks)) return FGMM_OK;
    if (!feed->reader)
        FGMM_TRY(
            fgmm_reader_open(feed->ctx, &feed->reader, rows, feed->target, feed->room.block_rows, feed->room.buffers));
    return fgmm_reader_start(feed->reader, feed->resident, feed->room.n_blocks);
}

/* Whether block `index` can set out before the one in front of it is worked on: a device that copies does so beside its
 * work, and must not be kept waiting for rows. */
static int goes_ahead(const fgmm_feed *feed, int64_t index) {
    if (!feed->now || index < feed->resident || !feed->reader) return 1;
    return !feed->target->facts.zero_copy && fgmm_reader_ready(feed->reader);
}

/* One attempt at a run. */
static fgmm_status run_blocks(fgmm_feed *feed, const char *stage, fgmm_feed_visit visit, void *user) {
    fgmm_status status = FGMM_OK;
    feed_slot ring[2] = {{0}, {0}};
    int64_t n_blocks = feed->room.n_blocks;
    feed->now = NULL;
    FGMM_GO(begin_run(feed, stage));
    for (int64_t i = -1; i < n_blocks; i++) {
        feed_slot *next = NULL;
        int ahead = 0;
        if (i + 1 < n_blocks) {
            ahead = goes_ahead(feed, i + 1);
            next = i + 1 < feed->keep ? &feed->kept[i + 1] : &ring[(i + 1) & 1];
            if (ahead && !next->block) FGMM_GO(slot_open(feed, next, i + 1));
        }
        if (feed->now) {
            FGMM_GO(visit_slot(feed, feed->now, visit, user));
            if (i >= feed->keep) slot_free(feed, feed->now);
            feed->now = NULL;
        }
        if (next && !ahead) FGMM_GO(slot_open(feed, next, i + 1));
        feed->now = next;
    }
    if (!is_scanned(feed)) FGMM_GO(finish_scan(feed));
    feed->progress.rows_done = feed->rows->n;
    feed->runs++;
done:
    feed->now = NULL;
    slot_free(feed, &ring[0]);
    slot_free(feed, &ring[1]);
    if (feed->reader) fgmm_reader_stop(feed->reader);
    return status;
}

int fgmm_feed_give_up(fgmm_feed *feed) {
    const fgmm_target *target = feed->target;
    fgmm_row_room *room = &feed->room;
    fgmm_context *ctx = feed->ctx;
    int keeps = feed->keep > 0 && !feed->rows->cl_mem;
    if (fgmm_rows_once(feed->rows) || fgmm_cancelled(ctx)) return 0;
    if (fgmm_persisted_give_way(ctx,
                                FGMM_ERR_MEMORY)) { /* what other rows left goes first, and these have all the room */
        close_blocks(feed);
        return open_blocks(feed) == FGMM_OK;
    }
    if (target->facts.zero_copy) return 0;
    if (atomic_load(&ctx->host_short) || (!keeps && room->block_rows <= FGMM_CHUNK_ROWS)) return 0;
    fgmm_log(ctx, FGMM_LOG_INFO, "out of memory on %s: %s", target->label,
             keeps ? "fewer rows stay there" : "blocks of half the rows");
    close_blocks(feed);
    room->kept_rows_max = keeps ? feed->keep * 3 / 4 * room->block_rows : 0;
    if (!keeps) fgmm_row_room_halve(room, feed->rows);
    feed->keep = room->kept_rows_max / room->block_rows;
    if (target->backend->trim) target->backend->trim(target->device);
    fgmm_enter(ctx);
    return open_blocks(feed) == FGMM_OK;
}

fgmm_status fgmm_feed_run(fgmm_feed *feed, const char *stage, const fgmm_params *params, fgmm_feed_visit visit,
                          void *user) {
    const fgmm_target *target = feed->target;
    fgmm_status status;
    if (!params && !visit && is_scanned(feed)) return FGMM_OK;
    do {
        status = params ? target->backend->begin(target->device, params) : FGMM_OK;
        if (status == FGMM_OK) status = run_blocks(feed, stage, visit, user);
    } while (status == FGMM_ERR_MEMORY && fgmm_feed_give_up(feed));
    feed->failed |= status != FGMM_OK;
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
    if (block->first == 0) state->at = 0;
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
        FGMM_GO(fgmm_feed_run(feed, "seed", NULL, gather_visit, &state));
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
    return feed->room.block_rows;
}
int fgmm_feed_once(const fgmm_feed *feed) {
    return fgmm_rows_once(feed->rows);
}
void fgmm_feed_no_moments(fgmm_feed *feed) {
    feed->no_moments = 1;
}

void fgmm_feed_quiet(fgmm_feed *feed) {
    feed->quiet = 1;
}

int64_t fgmm_feed_rows(const fgmm_feed *feed) {
    return feed->rows->n;
}

int64_t fgmm_feed_skipped(const fgmm_feed *feed) {
    return feed->bad.count;
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
    int64_t at = fgmm_bad_rows_before(&feed->bad, row);
    return at < feed->bad.count && feed->bad.rows[at] == row;
}
