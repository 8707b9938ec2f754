/*
 * Meetings of ranks. Each begins with three numbers a rank, so that a rank that has failed can say so wherever the
 * others are: a failure never leaves them waiting. What follows is as long on all of them.
 */
#include "ranks.h"

#include <math.h>
#include <string.h>

#include "dispatch.h"

/* What a rank says of itself. */
enum { STATUS, PLACE, CHECK, SAID };

/* A message travels as whole numbers, so many bytes in each. */
enum { MESSAGE_NUMBERS = 64, MESSAGE_BYTES = 6 };

static const char *const meeting_names[] = {"",
                                            "comparing options",
                                            "looking over the rows",
                                            "sampling the rows",
                                            "sharing a model",
                                            "going on from a checkpoint",
                                            "adding up statistics",
                                            "at the end"};

fgmm_status fgmm_group_open(fgmm_context *ctx, fgmm_group *group, const fgmm_ranks *ranks) {
    enum { MOST = 1 << 20 };
    group->ctx = ctx;
    group->over = 1;
    if (ranks->size <= 1 && ranks->rank == 0 && !ranks->sum) return FGMM_OK;
    if (ranks->size < 1 || ranks->size > MOST || ranks->rank < 0 || ranks->rank >= ranks->size)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: rank %d of %d ranks", ranks->rank, ranks->size);
    if (!ranks->sum) return fgmm_fail(ctx, FGMM_ERR_INVALID, "fit: ranks without a function that sums over them");
    /* Before anything else: without it not even a failure could be told. */
    group->said = fgmm_alloc(ctx, (size_t)ranks->size * SAID * sizeof *group->said, "what ranks say");
    if (!group->said) return FGMM_ERR_MEMORY;
    group->ranks = *ranks;
    group->over = 0;
    return FGMM_OK;
}

void fgmm_group_close(fgmm_group *group) {
    fgmm_free(group->ctx, group->moments);
    fgmm_free(group->ctx, group->said);
    *group = (fgmm_group){0};
}

static fgmm_status reduce(fgmm_group *group, double *values, int64_t count) {
    int code = group->ranks.sum(group->ranks.user, values, count);
    if (code == 0) return FGMM_OK;
    group->over = 1;
    return fgmm_fail(group->ctx, FGMM_ERR_IO, "rank %d: summing over the ranks failed with code %d", group->ranks.rank,
                     code);
}

/* ---- failures ---- */

static void pack_message(const char *text, double *numbers) {
    size_t length = strlen(text);
    for (int i = 0; i < MESSAGE_NUMBERS; i++) {
        uint64_t word = 0;
        for (int b = 0; b < MESSAGE_BYTES; b++) {
            size_t at = (size_t)(i * MESSAGE_BYTES + b);
            word |= (uint64_t)(at < length ? (unsigned char)text[at] : 0) << (8 * b);
        }
        numbers[i] = (double)word;
    }
}

static void unpack_message(const double *numbers, char *text) {
    for (int i = 0; i < MESSAGE_NUMBERS; i++)
        for (int b = 0; b < MESSAGE_BYTES; b++)
            text[i * MESSAGE_BYTES + b] = (char)((uint64_t)numbers[i] >> (8 * b) & 255);
    text[MESSAGE_NUMBERS * MESSAGE_BYTES] = '\0';
}

/* The first rank that failed, one that was cancelled only where none did otherwise; -1 for none. */
static int who_failed(const fgmm_group *group, const double *said) {
    int cancelled = -1;
    for (int r = 0; r < group->ranks.size; r++) {
        double status = said[r * SAID + STATUS];
        if (status != FGMM_OK && status != FGMM_ERR_CANCELLED) return r;
        if (status == FGMM_ERR_CANCELLED && cancelled < 0) cancelled = r;
    }
    return cancelled;
}

/* All ranks learn what rank `who` has to say. */
static fgmm_status tell_failure(fgmm_group *group, int who, fgmm_status status) {
    double numbers[MESSAGE_NUMBERS] = {0};
    char text[MESSAGE_NUMBERS * MESSAGE_BYTES + 1];
    if (who == group->ranks.rank) pack_message(fgmm_context_message(group->ctx), numbers);
    group->over = 1;
    if (reduce(group, numbers, MESSAGE_NUMBERS) != FGMM_OK) return FGMM_ERR_IO;
    if (who == group->ranks.rank) return status;
    unpack_message(numbers, text);
    fgmm_enter(group->ctx);
    return fgmm_fail(group->ctx, status, "rank %d: %s", who, text);
}

/* ---- meetings ---- */

static fgmm_status compare(fgmm_group *group, const double *said, fgmm_meeting meeting) {
    for (int r = 1; r < group->ranks.size; r++) {
        if (said[r * SAID + PLACE] != said[PLACE]) {
            group->over = 1;
            return fgmm_fail(
                group->ctx, FGMM_ERR_INVALID,
                "rank %d is not where rank 0 is: the ranks must make the same calls, with the same shapes; "
                "this one is %s",
                r, meeting_names[meeting]);
        }
        if (said[r * SAID + CHECK] != said[CHECK]) {
            group->over = 1;
            return fgmm_fail(group->ctx, FGMM_ERR_INVALID,
                             "rank %d has another model than rank 0: the function that sums must give all ranks the "
                             "same bits, and all must run the same build",
                             r);
        }
    }
    return FGMM_OK;
}

/* What all ranks say, in their order. */
static fgmm_status meet(fgmm_group *group, fgmm_meeting meeting, fgmm_status status, uint64_t check, int64_t count) {
    int64_t size = (int64_t)group->ranks.size * SAID;
    double *said = group->said;
    memset(said, 0, (size_t)size * sizeof *said);
    double *mine = said + group->ranks.rank * SAID;
    mine[STATUS] = status;
    mine[PLACE] = (double)meeting * 0x1p44 + (double)count;
    mine[CHECK] = (double)(check >> 12);
    fgmm_status met = reduce(group, said, size);
    int who = met == FGMM_OK ? who_failed(group, said) : -1;
    if (who >= 0)
        met = tell_failure(group, who, (fgmm_status)said[who * SAID + STATUS]);
    else if (met == FGMM_OK)
        met = compare(group, said, meeting);
    return met;
}

fgmm_status fgmm_group_sum(fgmm_group *group, fgmm_meeting meeting, uint64_t check, double *values, int64_t count) {
    FGMM_TRY(meet(group, meeting, FGMM_OK, check, count));
    return count > 0 ? reduce(group, values, count) : FGMM_OK;
}

fgmm_status fgmm_group_share(fgmm_group *group, fgmm_meeting meeting, double *values, int64_t count) {
    if (group->ranks.rank != 0) memset(values, 0, (size_t)count * sizeof *values);
    return fgmm_group_sum(group, meeting, 0, values, count);
}

fgmm_status fgmm_group_gather(fgmm_group *group, fgmm_meeting meeting, double *all, int64_t count) {
    for (int r = 0; r < group->ranks.size; r++)
        if (r != group->ranks.rank) memset(all + r * count, 0, (size_t)count * sizeof *all);
    return fgmm_group_sum(group, meeting, 0, all, group->ranks.size * count);
}

fgmm_status fgmm_group_end(fgmm_group *group, fgmm_status status) {
    if (group->over) return status;
    fgmm_status met = meet(group, FGMM_MEET_END, status, 0, 0);
    group->over = 1;
    return met;
}

/* Moments about the mean of all: first the mean, then what each share's variance and its distance come to. */
fgmm_status fgmm_group_rows(fgmm_group *group, int64_t n, int64_t skipped, double weight, double epsilon,
                            const double *mean, const double *variance, int64_t d) {
    enum { N, SKIPPED, WEIGHT, FACTS };
    fgmm_context *ctx = group->ctx;
    fgmm_status status = FGMM_OK;
    double *sums = fgmm_alloc(ctx, (size_t)(FACTS + d) * sizeof *sums, "sums over the ranks");
    double *epsilons = fgmm_calloc(ctx, (size_t)group->ranks.size, sizeof *epsilons, "devices of the ranks");
    group->moments = fgmm_alloc(ctx, (size_t)d * 2 * sizeof *group->moments, "moments of the rows");
    if (!sums || !epsilons || !group->moments) {
        status = FGMM_ERR_MEMORY;
        goto done;
    }
    group->mean = group->moments;
    group->variance = group->moments + d;
    epsilons[group->ranks.rank] = epsilon;
    FGMM_GO(fgmm_group_gather(group, FGMM_MEET_ROWS, epsilons, 1));
    for (int r = 0; r < group->ranks.size; r++) group->epsilon = fmax(group->epsilon, epsilons[r]);
    sums[N] = (double)n;
    sums[SKIPPED] = (double)skipped;
    sums[WEIGHT] = weight;
    for (int64_t j = 0; j < d; j++) sums[FACTS + j] = weight > 0 ? weight * mean[j] : 0;
    FGMM_GO(fgmm_group_sum(group, FGMM_MEET_ROWS, 0, sums, FACTS + d));
    group->n = (int64_t)sums[N];
    group->skipped = (int64_t)sums[SKIPPED];
    group->weight = sums[WEIGHT];
    for (int64_t j = 0; j < d; j++) {
        double all = group->mean[j] = group->weight > 0 ? sums[FACTS + j] / group->weight : 0;
        group->variance[j] = weight > 0 ? weight * (variance[j] + (mean[j] - all) * (mean[j] - all)) : 0;
    }
    FGMM_GO(fgmm_group_sum(group, FGMM_MEET_ROWS, 0, group->variance, d));
    for (int64_t j = 0; j < d && group->weight > 0; j++) {
        group->variance[j] /= group->weight;
        /* What rounding alone leaves of a column that is constant on all ranks is no variance. */
        if (!(group->variance[j] > 1e-30 * group->mean[j] * group->mean[j])) group->variance[j] = 0;
    }
done:
    fgmm_free(ctx, sums);
    fgmm_free(ctx, epsilons);
    return status;
}
