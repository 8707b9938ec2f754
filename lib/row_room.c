#include "row_room.h"

#include <math.h>

/* Of a limit on memory, the share a block takes at most; with its buffers and what a backend adds this is a third. */
static const double block_share = 1.0 / 16;
/* The share that rows take at most, and how much more than so far work space may come to need. */
static const double rows_share = 0.75, work_growth = 1.25;
/* Work space is known when a pass of each kind has been: looking the rows over, and an iteration. */
enum { RUNS_BEFORE_KEEPING = 2 };
/* A component and a distance. */
enum { FOUND_BYTES = sizeof(int32_t) + sizeof(float) };
enum { BUFFERS = 3, SLICE_ROWS = 1 << 16 };

static double row_bytes(const fgmm_rows *rows) {
    return (double)rows->d * (double)fgmm_dtype_size(rows->type);
}

static int64_t choose_block_rows(const fgmm_context *ctx, const fgmm_rows *rows, const fgmm_device_facts *facts,
                                 int staged, int64_t asked) {
    int64_t block = asked, bytes_a_row = (int64_t)row_bytes(rows);
    if (block <= 0) {
        /* Streamed blocks are small enough to overlap, rows in place are cut only for progress and cancel. */
        double bytes = facts->zero_copy ? 64e6 : staged ? 0x1p27 : 0x1p29;
        if (facts->memory_bytes > 0) bytes = fmin(bytes, 0.2 * (double)facts->memory_bytes);
        block = (int64_t)(bytes / (double)bytes_a_row);
        /* A device takes whole slices of a power of two of rows. */
        if (block > 2 * SLICE_ROWS) block -= block % SLICE_ROWS;
    }
    if (facts->max_block_bytes > 0 && !rows->cl_mem && block > facts->max_block_bytes / bytes_a_row)
        block = facts->max_block_bytes / bytes_a_row / FGMM_CHUNK_ROWS * FGMM_CHUNK_ROWS;
    double most = block_share * fgmm_memory_left(ctx) / (double)bytes_a_row;
    if ((double)block > most) block = (int64_t)most / FGMM_CHUNK_ROWS * FGMM_CHUNK_ROWS;
    /* Per-row results of a block are held by its caller. */
    if (block > (int64_t)1 << 22) block = (int64_t)1 << 22;
    if (block > rows->n) block = rows->n;
    int64_t chunks = (block + FGMM_CHUNK_ROWS - 1) / FGMM_CHUNK_ROWS;
    return (chunks > 0 ? chunks : 1) * FGMM_CHUNK_ROWS;
}

fgmm_status fgmm_row_room_choose(fgmm_context *ctx, fgmm_row_room *out, const fgmm_rows *rows,
                                 const fgmm_device_facts *facts, int64_t asked) {
    /* Rows in memory are staged too where that is the fastest way to the device and something is won by it: doubles are
     * narrowed into a copy of their own. */
    int stages = facts->stages && rows->type != FGMM_F64;
    *out = (fgmm_row_room){.staged = !rows->cl_mem && (!rows->data || stages), .kept_rows_max = -1};
    out->block_rows = choose_block_rows(ctx, rows, facts, out->staged, asked);
    out->n_blocks = (rows->n + out->block_rows - 1) / out->block_rows;
    double rows_in_block = (double)(rows->n < out->block_rows ? rows->n : out->block_rows);
    double block = row_bytes(rows) * rows_in_block, left = fgmm_memory_left(ctx);
    out->buffers = BUFFERS * block < 0.5 * left ? BUFFERS : 2;
    int needed = out->n_blocks < 2 ? 1 : 2;
    if (rows->data && (out->n_blocks < 2 || out->buffers < BUFFERS)) out->staged = 0;
    if (out->staged && needed * block > left)
        return fgmm_fail(ctx, FGMM_ERR_MEMORY,
                         "the limit on host memory is %lld bytes, and %lld are in use: %d block%s of %.0f rows of %lld "
                         "features need %.0f more, and the work on them its own",
                         ctx->bytes_limit, (long long)atomic_load(&ctx->bytes), needed, needed > 1 ? "s" : "",
                         rows_in_block, (long long)rows->d, needed * block);
    return FGMM_OK;
}

void fgmm_row_room_halve(fgmm_row_room *room, const fgmm_rows *rows) {
    int64_t chunks = room->block_rows / FGMM_CHUNK_ROWS;
    room->block_rows = (chunks + 1) / 2 * FGMM_CHUNK_ROWS;
    room->n_blocks = (rows->n + room->block_rows - 1) / room->block_rows;
}

/* What rows may take of the host's memory now. */
static double host_room(fgmm_context *ctx, fgmm_row_room *room, int64_t run) {
    if (!ctx->bytes_limit) return fgmm_memory_share(ctx);
    double beside = (double)atomic_load(&ctx->peak_bytes) - room->held;
    if (room->beside < beside) room->beside = beside;
    double limit = (double)ctx->bytes_limit;
    return run < RUNS_BEFORE_KEEPING ? 0 : fmin(rows_share * limit, limit - work_growth * room->beside);
}

static double device_room(const fgmm_device_facts *facts) {
    return facts->memory_bytes > 0 ? 0.6 * (double)facts->memory_bytes : INFINITY;
}

int fgmm_row_room_holds(const fgmm_rows *rows, const fgmm_device_facts *facts) {
    return (row_bytes(rows) + FOUND_BYTES) * (double)rows->n <= device_room(facts);
}

int64_t fgmm_row_room_keep(fgmm_context *ctx, fgmm_row_room *room, const fgmm_rows *rows,
                           const fgmm_device_facts *facts, int64_t passes, int64_t run) {
    int in_place = rows->cl_mem || (facts->zero_copy && rows->data);
    if (passes < 2 || fgmm_rows_once(rows)) return 0;
    if (in_place) return room->n_blocks;
    /* Of a block that stays, a device remembers what it found for each row; the host has its own list of that. */
    double a_row = row_bytes(rows) + (facts->zero_copy ? 0 : FOUND_BYTES);
    double block = a_row * (double)room->block_rows, whole = a_row * (double)rows->n;
    double most = device_room(facts);
    if (facts->zero_copy) most = host_room(ctx, room, run);
    /* The blocks that come and go take their part where not all can stay. */
    double blocks = whole <= most ? (double)room->n_blocks : floor(most / block) - room->buffers;
    int64_t keep = blocks > 0 ? (int64_t)blocks : 0;
    if (room->kept_rows_max >= 0 && keep * room->block_rows > room->kept_rows_max)
        keep = room->kept_rows_max / room->block_rows;
    if (facts->zero_copy) room->held = keep == room->n_blocks ? whole : block * (double)(keep + room->buffers);
    return keep;
}
