/* The index: making, adding, removing. Rows are stored in their best list; their other lists hold links. */
#include "ivf_index.h"

#include <limits.h>
#include <string.h>

#include "convert.h"
#include "report.h"
#include "stats.h"

/* ---- sets of ids ---- */

fgmm_status fgmm_id_set_open(fgmm_context *ctx, fgmm_id_set *set, int64_t n) {
    int64_t size = 16;
    while (size < 2 * n) size *= 2;
    set->slots = fgmm_alloc(ctx, (size_t)size * sizeof *set->slots, "a set of ids");
    if (!set->slots) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < size; i++) set->slots[i] = -1;
    set->mask = size - 1;
    return FGMM_OK;
}

static int64_t slot_of(const fgmm_id_set *set, int64_t id) {
    uint64_t hash = (uint64_t)id * 0x9e3779b97f4a7c15u;
    int64_t at = (int64_t)(hash >> 20) & set->mask;
    while (set->slots[at] >= 0 && set->slots[at] != id) at = (at + 1) & set->mask;
    return at;
}

int fgmm_id_set_has(const fgmm_id_set *set, int64_t id) {
    return id >= 0 && set->slots[slot_of(set, id)] == id;
}

int fgmm_id_set_add(fgmm_id_set *set, int64_t id) {
    int64_t at = slot_of(set, id);
    int there = set->slots[at] == id;
    set->slots[at] = id;
    return there;
}

/* ---- making ---- */

fgmm_status fgmm_ivf_new(fgmm_context *ctx, fgmm_ivf **out, const fgmm_model *model, fgmm_metric metric,
                         int max_lists) {
    fgmm_status status = FGMM_ERR_MEMORY;
    fgmm_ivf *index = fgmm_calloc(ctx, 1, sizeof *index, "an index");
    if (!index) return FGMM_ERR_MEMORY;
    index->metric = metric;
    index->max_lists = max_lists;
    index->k = model->k;
    index->d = model->d;
    FGMM_GO(fgmm_model_copy(ctx, &index->model, model));
    status = FGMM_ERR_MEMORY;
    index->lists = fgmm_calloc(ctx, (size_t)model->k, sizeof *index->lists, "lists");
    index->centroids = fgmm_calloc(ctx, (size_t)model->k * (size_t)model->d, sizeof(float), "centroids");
    if (!index->lists || !index->centroids) goto done;
    FGMM_GO(fgmm_means_to_floats(ctx, model, model->d, index->centroids));
    *out = index;
    index = NULL;
    status = FGMM_OK;
done:
    fgmm_ivf_free(ctx, index);
    return status;
}

fgmm_status fgmm_ivf_create(fgmm_context *ctx, fgmm_ivf **out, const fgmm_model *model,
                            const fgmm_ivf_options *options) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !model) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf create: a pointer is NULL");
    *out = NULL;
    fgmm_ivf_options use = FGMM_IVF_OPTIONS_INIT;
    if (options) {
        if (options->struct_size != sizeof use)
            return fgmm_fail(ctx, FGMM_ERR_INVALID,
                             "ivf create: struct_size of the options is not set: use FGMM_IVF_OPTIONS_INIT");
        use = *options;
    }
    FGMM_TRY(fgmm_metric_check(ctx, use.metric, NULL, "ivf create"));
    FGMM_TRY(fgmm_rule_check(ctx, use.rule, &use.max_lists, &use.budget, &use.threshold, &use.lambda, model->k));
    if (use.list_max < 0 || use.list_max > FGMM_IVF_PLACES)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf create: list_max = %lld must be 0 to 2^31 - 1",
                         (long long)use.list_max);
    FGMM_TRY(fgmm_ivf_new(ctx, out, model, use.metric, use.max_lists));
    (*out)->list_max = use.list_max;
    (*out)->rule = use.rule;
    (*out)->budget = use.budget;
    (*out)->threshold = use.threshold;
    (*out)->lambda = use.lambda;
    return FGMM_OK;
}

static void store_free(fgmm_context *ctx, fgmm_ivf_store *list) {
    fgmm_free(ctx, list->vectors);
    fgmm_free(ctx, list->ids);
    fgmm_free(ctx, list->inverse);
    fgmm_free(ctx, list->links);
    fgmm_free(ctx, list->between);
}

void fgmm_ivf_free(fgmm_context *ctx, fgmm_ivf *index) {
    if (!index) return;
    for (int64_t i = 0; index->lists && i < index->k; i++) store_free(ctx, &index->lists[i]);
    fgmm_free(ctx, index->lists);
    fgmm_free(ctx, index->centroids);
    fgmm_free(ctx, index->between);
    fgmm_model_free(ctx, index->model);
    fgmm_free(ctx, index);
}

/* ---- room ---- */

/* *array, of `used` bytes, moves to room for `bytes`. */
static fgmm_status regrow(fgmm_context *ctx, void *array, size_t used, size_t bytes) {
    void **at = array, *larger = fgmm_alloc(ctx, bytes, "a list");
    if (!larger) return FGMM_ERR_MEMORY;
    if (used) memcpy(larger, *at, used);
    fgmm_free(ctx, *at);
    *at = larger;
    return FGMM_OK;
}

static int64_t grown(int64_t n, int64_t more) {
    int64_t half = n + n / 2;
    return n + more > half ? n + more : half;
}

fgmm_status fgmm_ivf_reserve(fgmm_context *ctx, const fgmm_ivf *index, fgmm_ivf_store *list, int64_t rows,
                             int64_t links) {
    size_t bytes = fgmm_ivf_row_bytes(index), between = (size_t)fgmm_ivf_between(index) * sizeof *list->between;
    if (list->n + rows > FGMM_IVF_PLACES)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf: a list would store %lld rows, more than 2^31: use more lists",
                         (long long)(list->n + rows));
    if (list->n + rows > list->room) {
        int64_t room = grown(list->n, rows);
        size_t n = (size_t)list->n, to = (size_t)room;
        /* room is set last: arrays may be larger than it says, never smaller. */
        FGMM_TRY(regrow(ctx, &list->vectors, n * bytes, to * bytes));
        FGMM_TRY(regrow(ctx, &list->ids, n * sizeof *list->ids, to * sizeof *list->ids));
        if (index->metric == FGMM_ANGULAR)
            FGMM_TRY(regrow(ctx, &list->inverse, n * sizeof *list->inverse, to * sizeof *list->inverse));
        list->room = room;
    }
    if (list->n_links + links > list->link_room) {
        int64_t room = grown(list->n_links, links);
        size_t n = (size_t)list->n_links, to = (size_t)room;
        FGMM_TRY(regrow(ctx, &list->links, n * sizeof *list->links, to * sizeof *list->links));
        if (between) FGMM_TRY(regrow(ctx, &list->between, n * between, to * between));
        list->link_room = room;
    }
    return FGMM_OK;
}

/* ---- adding ---- */

typedef struct {
    fgmm_ivf *index;
    fgmm_chooser chooser;
    fgmm_compute_options compute;
    const fgmm_rows *rows;
    const int64_t *ids;  /* or NULL */
    int64_t first_id;    /* without ids */
    int32_t *lists;      /* [block, max_lists] */
    fgmm_list_room room; /* left is NULL without a limit */
    int64_t *coming;     /* [2, K]: rows and links of a block */
    char *converted;     /* a block as the stored type, or NULL */
} add_state;

/* Where each list stood, to go back to. */
static void mark(const fgmm_ivf *index, int64_t *marks) {
    for (int64_t i = 0; i < index->k; i++) {
        marks[2 * i] = index->lists[i].n;
        marks[2 * i + 1] = index->lists[i].n_links;
    }
}

static void go_back(fgmm_ivf *index, const int64_t *marks) {
    for (int64_t i = 0; i < index->k; i++) {
        index->lists[i].n = marks[2 * i];
        index->lists[i].n_links = marks[2 * i + 1];
    }
}

static void append_row(const add_state *add, const char *vector, int64_t id, const int32_t *lists) {
    fgmm_ivf *index = add->index;
    fgmm_ivf_store *home = &index->lists[lists[0]];
    size_t bytes = fgmm_ivf_row_bytes(index);
    int64_t place = home->n++, between = fgmm_ivf_between(index);
    memcpy(home->vectors + (size_t)place * bytes, vector, bytes);
    home->ids[place] = id;
    if (home->inverse) home->inverse[place] = fgmm_inverse_length(index->type, vector, index->d);
    for (int j = 1; j < index->max_lists && lists[j] >= 0; j++) {
        fgmm_ivf_store *other = &index->lists[lists[j]];
        int64_t at = other->n_links++;
        other->links[at] = (fgmm_ivf_link){lists[0], (int32_t)place};
        for (int64_t b = 0; b < between; b++) other->between[at * between + b] = b + 1 < j ? lists[b + 1] : -1;
    }
}

static fgmm_status add_block(void *user, const void *data, int64_t first, int64_t n) {
    add_state *add = user;
    fgmm_ivf *index = add->index;
    fgmm_context *ctx = add->chooser.ctx;
    int64_t m = index->max_lists, k = index->k, d = index->d;
    const fgmm_rows *rows = add->rows;
    size_t bytes = fgmm_ivf_row_bytes(index);
    FGMM_TRY(fgmm_choose(&add->chooser, rows->type, data, first, n, &add->compute, add->lists, NULL,
                         add->room.left ? &add->room : NULL));
    if (add->converted) {
        for (int64_t i = 0; i < n; i++) {
            double wide[64];
            for (int64_t from = 0; from < d; from += 64) {
                int64_t some = d - from < 64 ? d - from : 64;
                size_t at = (size_t)(i * d + from);
                fgmm_widen(rows->type, (const char *)data + at * fgmm_dtype_size(rows->type), some, wide);
                for (int64_t j = 0; j < some; j++) ((float *)add->converted)[at + (size_t)j] = (float)wide[j];
            }
        }
        data = add->converted;
    }
    memset(add->coming, 0, (size_t)(2 * k) * sizeof *add->coming);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m && add->lists[i * m + j] >= 0; j++)
            add->coming[(j > 0) * k + add->lists[i * m + j]]++;
    for (int64_t i = 0; i < k; i++)
        FGMM_TRY(fgmm_ivf_reserve(ctx, index, &index->lists[i], add->coming[i], add->coming[k + i]));
    for (int64_t i = 0; i < n; i++)
        append_row(add, (const char *)data + (size_t)i * bytes,
                   add->ids ? add->ids[first + i] : add->first_id + first + i, add->lists + i * m);
    return FGMM_OK;
}

/* Ids that are new, once each. */
static fgmm_status check_ids(fgmm_context *ctx, const fgmm_ivf *index, const int64_t *ids, int64_t n) {
    fgmm_id_set set = {0};
    fgmm_status status = fgmm_id_set_open(ctx, &set, index->n_rows + n);
    if (status != FGMM_OK) return status;
    for (int64_t i = 0; i < index->k; i++)
        for (int64_t j = 0; j < index->lists[i].n; j++) fgmm_id_set_add(&set, index->lists[i].ids[j]);
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] == INT64_MAX)
            FGMM_GO(fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: ids[%lld] = %lld must be 0 to 2^63 - 2", (long long)i,
                              (long long)ids[i]));
        if (fgmm_id_set_add(&set, ids[i]))
            FGMM_GO(fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: id %lld (ids[%lld]) is there already", (long long)ids[i],
                              (long long)i));
    }
done:
    fgmm_free(ctx, set.slots);
    return status;
}

static fgmm_status check_rows(fgmm_context *ctx, const fgmm_ivf *index, const fgmm_rows *rows) {
    FGMM_TRY(fgmm_metric_check(ctx, index->metric, rows, "ivf add"));
    if (rows->d != index->d)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: the rows have %lld features, the index %lld",
                         (long long)rows->d, (long long)index->d);
    if (index->has_type && fgmm_stored_type(rows->type) != index->type)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: the rows are of another type than those in the index");
    if (rows->n > INT64_MAX - 1 - index->next_id)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: there are no more ids after %lld", (long long)index->next_id);
    return FGMM_OK;
}

/* The index's threshold from the first rows. */
static fgmm_status settle_threshold(add_state *add) {
    fgmm_ivf *index = add->index;
    if (!(index->budget > 0)) return FGMM_OK;
    return fgmm_choose_threshold(&add->chooser, add->rows, index->budget, 0, 0, &add->compute);
}

/* What is left of list_max in each list, and in all beyond the rows to come. */
static fgmm_status open_room(fgmm_context *ctx, add_state *add) {
    const fgmm_ivf *index = add->index;
    if (!index->list_max) return FGMM_OK;
    add->room.left = fgmm_alloc(ctx, (size_t)index->k * sizeof *add->room.left, "room in lists");
    if (!add->room.left) return FGMM_ERR_MEMORY;
    int64_t total = 0;
    for (int64_t i = 0; i < index->k; i++)
        total += add->room.left[i] = index->list_max - index->lists[i].n - index->lists[i].n_links;
    add->room.spare = total - add->rows->n;
    if (add->room.spare < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: lists of at most %lld have room for %lld more rows, not %lld",
                         (long long)index->list_max, (long long)total, (long long)add->rows->n);
    return FGMM_OK;
}

static fgmm_status add_all(fgmm_context *ctx, add_state *add) {
    fgmm_ivf *index = add->index;
    int64_t block = fgmm_block_rows(add->rows);
    FGMM_TRY(fgmm_chooser_open(&add->chooser, ctx, index->model));
    FGMM_TRY(open_room(ctx, add));
    FGMM_TRY(settle_threshold(add));
    add->lists = fgmm_alloc(ctx, (size_t)(block * index->max_lists) * sizeof *add->lists, "lists of a block");
    add->coming = fgmm_alloc(ctx, (size_t)(2 * index->k) * sizeof *add->coming, "numbers of rows");
    if (!add->lists || !add->coming) return FGMM_ERR_MEMORY;
    if (add->rows->type != index->type) {
        add->converted = fgmm_alloc(ctx, (size_t)block * fgmm_ivf_row_bytes(index), "a block of rows");
        if (!add->converted) return FGMM_ERR_MEMORY;
    }
    return fgmm_each_block(ctx, add->rows, block, add_block, add);
}

/* What a whole add leaves in the index beside its lists. */
static void commit_add(add_state *add) {
    fgmm_ivf *index = add->index;
    int64_t n = add->rows->n;
    index->threshold = add->chooser.threshold;
    index->budget = 0;
    index->n_rows += n;
    index->changes++;
    for (int64_t i = 0; add->ids && i < n; i++)
        if (add->ids[i] >= index->next_id) index->next_id = add->ids[i] + 1;
    if (!add->ids) index->next_id += n;
}

fgmm_status fgmm_ivf_add(fgmm_context *ctx, fgmm_ivf *index, const fgmm_rows *rows, const int64_t *ids,
                         fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf add: a pointer is NULL");
    FGMM_TRY(check_rows(ctx, index, rows));
    fgmm_report_scope scope;
    FGMM_TRY(fgmm_report_begin(ctx, &scope, report));
    int had_type = index->has_type;
    fgmm_dtype type = index->type;
    add_state add = {.index = index,
                     .chooser = {.metric = index->metric,
                                 .rule = index->rule,
                                 .max_lists = index->max_lists,
                                 .threshold = index->threshold,
                                 .lambda = index->lambda},
                     .compute = FGMM_COMPUTE_OPTIONS_INIT,
                     .rows = rows,
                     .ids = ids,
                     .first_id = index->next_id};
    fgmm_status status = FGMM_OK;
    int64_t *marks = fgmm_alloc(ctx, (size_t)(2 * index->k) * sizeof *marks, "sizes of lists");
    if (!marks) status = FGMM_ERR_MEMORY;
    if (status == FGMM_OK && ids) status = check_ids(ctx, index, ids, rows->n);
    if (status == FGMM_OK) {
        mark(index, marks);
        index->type = fgmm_stored_type(rows->type);
        index->has_type = 1;
        status = add_all(ctx, &add);
        if (status == FGMM_OK) {
            commit_add(&add);
            if (report) report->n_rows = rows->n;
        } else {
            go_back(index, marks);
            index->has_type = had_type;
            index->type = type;
            /* Room made for another type would be too small or too large. */
            for (int64_t i = 0; !had_type && i < index->k; i++) {
                store_free(ctx, &index->lists[i]);
                index->lists[i] = (fgmm_ivf_store){0};
            }
        }
    }
    fgmm_report_end(&scope, status);
    if (add.chooser.ctx) fgmm_chooser_close(&add.chooser);
    fgmm_free(ctx, add.room.left);
    fgmm_free(ctx, add.converted);
    fgmm_free(ctx, add.coming);
    fgmm_free(ctx, add.lists);
    fgmm_free(ctx, marks);
    return status;
}

/* ---- removing ---- */

/* Closes the gaps that the rows of `set` leave in a list. places [n]: where each row goes, -1 for those removed. */
static int64_t remove_rows(const fgmm_ivf *index, fgmm_ivf_store *list, const fgmm_id_set *set, int32_t *places) {
    size_t bytes = fgmm_ivf_row_bytes(index);
    int64_t kept = 0;
    for (int64_t i = 0; i < list->n; i++) {
        places[i] = -1;
        if (fgmm_id_set_has(set, list->ids[i])) continue;
        places[i] = (int32_t)kept;
        if (kept < i) {
            memmove(list->vectors + (size_t)kept * bytes, list->vectors + (size_t)i * bytes, bytes);
            list->ids[kept] = list->ids[i];
            if (list->inverse) list->inverse[kept] = list->inverse[i];
        }
        kept++;
    }
    int64_t removed = list->n - kept;
    list->n = kept;
    return removed;
}

/* starts [K]: where the places of each list begin. */
static void remove_links(const fgmm_ivf *index, fgmm_ivf_store *list, const int64_t *starts, const int32_t *places) {
    int64_t kept = 0, between = fgmm_ivf_between(index);
    for (int64_t i = 0; i < list->n_links; i++) {
        fgmm_ivf_link link = list->links[i];
        link.place = places[starts[link.home] + link.place];
        if (link.place < 0) continue;
        list->links[kept] = link;
        if (between && kept < i)
            memcpy(list->between + kept * between, list->between + i * between,
                   (size_t)between * sizeof *list->between);
        kept++;
    }
    list->n_links = kept;
}

fgmm_status fgmm_ivf_remove(fgmm_context *ctx, fgmm_ivf *index, const int64_t *ids, int64_t n, int64_t *removed) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || (!ids && n > 0) || n < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf remove: a pointer is NULL, or n is negative");
    fgmm_status status = FGMM_OK;
    fgmm_id_set set = {0};
    int32_t *places = fgmm_alloc(ctx, (size_t)index->n_rows * sizeof *places, "places of rows");
    int64_t *starts = fgmm_calloc(ctx, (size_t)index->k + 1, sizeof *starts, "places of lists");
    int64_t gone = 0;
    if (!places || !starts) status = FGMM_ERR_MEMORY;
    if (status == FGMM_OK) status = fgmm_id_set_open(ctx, &set, n);
    if (status != FGMM_OK) goto done;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] >= 0) fgmm_id_set_add(&set, ids[i]);
    for (int64_t i = 0; i < index->k; i++) {
        starts[i + 1] = starts[i] + index->lists[i].n;
        gone += remove_rows(index, &index->lists[i], &set, places + starts[i]);
    }
    for (int64_t i = 0; gone > 0 && i < index->k; i++) remove_links(index, &index->lists[i], starts, places);
    index->n_rows -= gone;
    index->changes += gone > 0;
    if (removed) *removed = gone;
done:
    fgmm_free(ctx, set.slots);
    fgmm_free(ctx, starts);
    fgmm_free(ctx, places);
    return status;
}

/* ---- looking ---- */

void fgmm_ivf_describe(const fgmm_ivf *index, fgmm_ivf_info *out) {
    memset(out, 0, sizeof *out);
    if (!index) return;
    double vector =
        (double)fgmm_ivf_row_bytes(index) + sizeof(int64_t) + (index->metric == FGMM_ANGULAR ? sizeof(float) : 0);
    double link = sizeof(fgmm_ivf_link) + (double)fgmm_ivf_between(index) * sizeof(int32_t), rows = 0, links = 0;
    for (int64_t i = 0; i < index->k; i++) {
        const fgmm_ivf_store *list = &index->lists[i];
        int64_t entries = list->n + list->n_links;
        out->n_entries += entries;
        out->n_empty += entries == 0;
        if (entries > out->longest) out->longest = entries;
        rows += (double)list->room;
        links += (double)list->link_room;
    }
    out->n_rows = index->n_rows;
    out->n_features = index->d;
    out->n_lists = index->k;
    out->metric = index->metric;
    out->type = index->type;
    out->rule = index->rule;
    out->max_lists = index->max_lists;
    out->threshold = index->rule == FGMM_IVF_SINGLE || index->rule == FGMM_IVF_NEAREST ? 0 : index->threshold;
    out->lambda = index->lambda;
    out->list_max = index->list_max;
    out->calibrated_k = index->calibrated_k;
    if (index->n_rows > 0) {
        out->bytes_per_row = (rows * vector + links * link) / (double)index->n_rows;
        out->single_bytes_per_row = rows * vector / (double)index->n_rows;
    }
}

const float *fgmm_ivf_centroids(const fgmm_ivf *index) {
    return index ? index->centroids : NULL;
}

fgmm_status fgmm_ivf_list(fgmm_context *ctx, const fgmm_ivf *index, int64_t list, fgmm_ivf_list_view *out) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !out) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf list: a pointer is NULL");
    if (list < 0 || list >= index->k)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf list: list %lld is not one of %lld", (long long)list,
                         (long long)index->k);
    const fgmm_ivf_store *store = &index->lists[list];
    *out = (fgmm_ivf_list_view){
        .n_rows = store->n, .vectors = store->vectors, .ids = store->ids, .n_links = store->n_links};
    return FGMM_OK;
}
