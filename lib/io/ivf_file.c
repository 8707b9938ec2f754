/*
 * Index files, little-endian:
 *   header    see below; says the shape of everything, and the file's size
 *   model     weights [K], means [K, D], covariances: f64
 *   gaps      [FGMM_IVF_LEVELS] f64, if calibrated
 *   sizes     rows of each list [K], links of each list [K]: i64
 *   lists     one after the other: vectors, ids i64, links (i32, i32), between i32
 *   checksum  CRC-32C of all before it
 * A reader believes nothing: shapes are checked against the file's size before memory is taken, then the checksum, then
 * every number that is used as an index.
 */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "../ivf_index.h"
#include "checksum.h"
#include "infile.h"
#include "npz.h"
#include "outfile.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "index files are written as the memory of a little-endian machine"
#endif

static const char magic[8] = {'F', 'G', 'M', 'M', 'I', 'V', 'F', '\n'};
enum { VERSION = 1 };

typedef struct {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t file_bytes;
    int64_t k, d, n_rows, n_links, next_id;
    double threshold, lambda, budget, bend;
    uint32_t type, has_type, metric, rule, max_lists, covariance, calibrated_k, list_max;
} header;

_Static_assert(sizeof(header) == 128, "the header has no holes");

/* ---- sizes ---- */

/* Adds count * size to *total. @return 0 if that is no size a file has. */
static int add_bytes(uint64_t *total, uint64_t count, uint64_t size) {
    uint64_t bytes;
    return !__builtin_mul_overflow(count, size, &bytes) && !__builtin_add_overflow(*total, bytes, total) &&
           *total <= INT64_MAX;
}

static uint64_t link_bytes(uint32_t max_lists) {
    return sizeof(fgmm_ivf_link) + (max_lists > 2 ? max_lists - 2 : 0) * sizeof(int32_t);
}

/* What a file of this shape takes; 0 if it is beyond any file. */
static uint64_t file_size(const header *h) {
    uint64_t total = sizeof *h, k = (uint64_t)h->k, d = (uint64_t)h->d, cells = 0, square = 0, covariances = k;
    if (!add_bytes(&cells, k, d) || !add_bytes(&square, d, d)) return 0;
    if (h->covariance == FGMM_DIAG) covariances = cells;
    if (h->covariance == FGMM_TIED) covariances = square;
    if (h->covariance == FGMM_FULL) {
        covariances = 0;
        if (!add_bytes(&covariances, k, square)) return 0;
    }
    if (!add_bytes(&total, k, 8) || !add_bytes(&total, cells, 8) || !add_bytes(&total, covariances, 8)) return 0;
    if (h->calibrated_k && !add_bytes(&total, FGMM_IVF_LEVELS, 8)) return 0;
    if (!add_bytes(&total, k, 16)) return 0;
    uint64_t row = 0;
    if (!add_bytes(&row, d, fgmm_dtype_size((fgmm_dtype)h->type)) || !add_bytes(&row, 1, 8)) return 0;
    if (!add_bytes(&total, (uint64_t)h->n_rows, row)) return 0;
    if (!add_bytes(&total, (uint64_t)h->n_links, link_bytes(h->max_lists))) return 0;
    return add_bytes(&total, 1, 4) ? total : 0;
}

/* ---- writing ---- */

typedef struct {
    fgmm_context *ctx;
    fgmm_outfile file;
    fgmm_checksum sum;
} writer;

static fgmm_status put(writer *w, const void *data, size_t bytes) {
    fgmm_checksum_add(&w->sum, data, bytes);
    return fgmm_outfile_write(w->ctx, &w->file, data, bytes);
}

static fgmm_status put_index(writer *w, const fgmm_ivf *index, const header *h, const int64_t *sizes) {
    const fgmm_model *model = index->model;
    size_t k = (size_t)index->k, d = (size_t)index->d;
    FGMM_TRY(put(w, h, sizeof *h));
    FGMM_TRY(put(w, model->weights, k * sizeof(double)));
    FGMM_TRY(put(w, model->means, k * d * sizeof(double)));
    FGMM_TRY(
        put(w, model->covariances, (size_t)fgmm_covariances_size(model->type, model->k, model->d) * sizeof(double)));
    if (index->calibrated_k) FGMM_TRY(put(w, index->gaps, sizeof index->gaps));
    FGMM_TRY(put(w, sizes, 2 * k * sizeof *sizes));
    for (int64_t i = 0; i < index->k; i++) {
        const fgmm_ivf_store *list = &index->lists[i];
        size_t links = (size_t)list->n_links;
        FGMM_TRY(put(w, list->vectors, (size_t)list->n * fgmm_ivf_row_bytes(index)));
        FGMM_TRY(put(w, list->ids, (size_t)list->n * sizeof *list->ids));
        FGMM_TRY(put(w, list->links, links * sizeof *list->links));
        FGMM_TRY(put(w, list->between, links * (size_t)fgmm_ivf_between(index) * sizeof *list->between));
    }
    uint32_t sum = fgmm_checksum_end(&w->sum);
    return put(w, &sum, sizeof sum);
}

fgmm_status fgmm_ivf_save(fgmm_context *ctx, const fgmm_ivf *index, const char *path) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!index || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf save: a pointer is NULL");
    fgmm_status status = FGMM_OK;
    writer w = {.ctx = ctx, .file = {NULL, NULL, -1}};
    header h = {.version = VERSION,
                .header_bytes = sizeof h,
                .k = index->k,
                .d = index->d,
                .n_rows = index->n_rows,
                .next_id = index->next_id,
                .threshold = index->threshold,
                .lambda = index->lambda,
                .budget = index->budget,
                .bend = index->bend,
                .type = (uint32_t)index->type,
                .has_type = (uint32_t)index->has_type,
                .metric = (uint32_t)index->metric,
                .rule = (uint32_t)index->rule,
                .max_lists = (uint32_t)index->max_lists,
                .covariance = (uint32_t)index->model->type,
                .calibrated_k = (uint32_t)index->calibrated_k,
                .list_max = (uint32_t)index->list_max};
    memcpy(h.magic, magic, sizeof magic);
    int64_t *sizes = fgmm_alloc(ctx, (size_t)(2 * index->k) * sizeof *sizes, "sizes of lists");
    if (!sizes) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < index->k; i++) {
        sizes[i] = index->lists[i].n;
        sizes[index->k + i] = index->lists[i].n_links;
        h.n_links += index->lists[i].n_links;
    }
    h.file_bytes = file_size(&h);
    fgmm_checksum_begin(&w.sum);
    FGMM_GO(fgmm_outfile_open(ctx, &w.file, path));
    FGMM_GO(put_index(&w, index, &h, sizes));
    FGMM_GO(fgmm_outfile_commit(ctx, &w.file));
done:
    fgmm_outfile_abandon(ctx, &w.file);
    fgmm_free(ctx, sizes);
    return status;
}

/* ---- reading ---- */

typedef struct {
    fgmm_context *ctx;
    const char *path;
    int fd;
    fgmm_checksum sum;
    header h;
} reader;

static fgmm_status bad(const reader *r, const char *what) {
    return fgmm_fail(r->ctx, FGMM_ERR_FORMAT, "%s: %s", r->path, what);
}

static fgmm_status get(reader *r, void *data, size_t bytes) {
    char *at = data;
    for (size_t left = bytes; left > 0;) {
        ssize_t n = read(r->fd, at, left < (1u << 30) ? left : 1u << 30);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fgmm_fail_errno(r->ctx, errno, "cannot read", r->path);
        if (n == 0) return bad(r, "the file ends too early");
        at += n;
        left -= (size_t)n;
    }
    fgmm_checksum_add(&r->sum, data, bytes);
    return FGMM_OK;
}

/* Allocates and reads. */
static fgmm_status get_array(reader *r, void *array, size_t count, size_t size, const char *what) {
    void **at = array;
    if (!(*at = fgmm_calloc(r->ctx, count, size, what))) return FGMM_ERR_MEMORY;
    return get(r, *at, count * size);
}

static fgmm_status check_header(const reader *r, uint64_t bytes) {
    const header *h = &r->h;
    if (memcmp(h->magic, magic, sizeof magic) != 0) return bad(r, "is not an index file of flashgmm");
    if (h->version != VERSION || h->header_bytes != sizeof *h)
        return fgmm_fail(r->ctx, FGMM_ERR_FORMAT, "%s: an index file of version %u; this flashgmm reads version %d",
                         r->path, h->version, VERSION);
    if (h->n_rows < 0 || h->n_links < 0 || h->next_id < 0) return bad(r, "its header holds sizes that no index has");
    if (fgmm_model_check_shape(r->ctx, (fgmm_covariance)h->covariance, h->k, h->d) != FGMM_OK)
        return fgmm_fail_at(r->ctx, FGMM_ERR_FORMAT, r->path);
    fgmm_dtype type = (fgmm_dtype)h->type;
    if (!(type == FGMM_F32 || type == FGMM_F16 || type == FGMM_U8 || type == FGMM_I8) || h->has_type > 1 ||
        (!h->has_type && h->n_rows > 0) || !fgmm_metric_name((fgmm_metric)h->metric) ||
        !fgmm_ivf_rule_name((fgmm_ivf_rule)h->rule) || h->max_lists < 1 || h->max_lists > FGMM_IVF_LISTS_MAX ||
        h->max_lists > h->k || h->calibrated_k > INT32_MAX || h->list_max > INT32_MAX || isnan(h->threshold) ||
        !isfinite(h->lambda) || h->lambda < 0 || !(h->budget == 0 || (h->budget >= 1 && h->budget <= h->max_lists)) ||
        (h->rule == FGMM_IVF_SINGLE && h->max_lists > 1) ||
        (h->budget > 0 && (h->rule == FGMM_IVF_SINGLE || h->rule == FGMM_IVF_NEAREST)) ||
        !(h->bend >= 0 && h->bend <= 1) ||
        (h->bend > 0 && (!h->calibrated_k || h->metric == FGMM_INNER_PRODUCT || h->k > FGMM_IVF_BEND_LISTS)))
        return bad(r, "its header holds options that no index has");
    if (h->file_bytes != bytes || file_size(h) != bytes)
        return fgmm_fail(r->ctx, FGMM_ERR_FORMAT, "%s: has %llu bytes where its header asks for %llu", r->path,
                         (unsigned long long)bytes, (unsigned long long)file_size(h));
    return FGMM_OK;
}

static fgmm_status get_model(reader *r, fgmm_model **out) {
    fgmm_context *ctx = r->ctx;
    fgmm_status status = FGMM_OK;
    int64_t k = r->h.k, d = r->h.d;
    fgmm_covariance type = (fgmm_covariance)r->h.covariance;
    double *weights = NULL, *means = NULL, *covariances = NULL;
    FGMM_GO(get_array(r, &weights, (size_t)k, sizeof(double), "weights"));
    FGMM_GO(get_array(r, &means, (size_t)(k * d), sizeof(double), "means"));
    FGMM_GO(get_array(r, &covariances, (size_t)fgmm_covariances_size(type, k, d), sizeof(double), "covariances"));
    status = fgmm_model_create(ctx, out, type, k, d, weights, means, covariances);
    if (status == FGMM_ERR_INVALID) status = fgmm_fail_at(ctx, FGMM_ERR_FORMAT, r->path);
done:
    fgmm_free(ctx, covariances);
    fgmm_free(ctx, means);
    fgmm_free(ctx, weights);
    return status;
}

static fgmm_status get_list(reader *r, const fgmm_ivf *index, fgmm_ivf_store *list, int64_t rows, int64_t links) {
    size_t between = (size_t)fgmm_ivf_between(index);
    FGMM_TRY(get_array(r, &list->vectors, (size_t)rows, fgmm_ivf_row_bytes(index), "a list"));
    FGMM_TRY(get_array(r, &list->ids, (size_t)rows, sizeof *list->ids, "a list"));
    FGMM_TRY(get_array(r, &list->links, (size_t)links, sizeof *list->links, "a list"));
    if (between) FGMM_TRY(get_array(r, &list->between, (size_t)links, between * sizeof *list->between, "a list"));
    list->n = list->room = rows;
    list->n_links = list->link_room = links;
    if (index->metric != FGMM_ANGULAR) return FGMM_OK;
    list->inverse = fgmm_calloc(r->ctx, (size_t)rows, sizeof(float), "a list");
    if (!list->inverse) return FGMM_ERR_MEMORY;
    for (int64_t i = 0; i < rows; i++)
        list->inverse[i] =
            fgmm_inverse_length(index->type, list->vectors + (size_t)i * fgmm_ivf_row_bytes(index), index->d);
    return FGMM_OK;
}

static fgmm_status get_sizes(reader *r, int64_t **out) {
    int64_t k = r->h.k, rows = 0, links = 0;
    FGMM_TRY(get_array(r, out, (size_t)(2 * k), sizeof **out, "sizes of lists"));
    for (int64_t i = 0; i < k; i++) {
        int64_t n = (*out)[i], m = (*out)[k + i];
        if (n < 0 || n > r->h.n_rows - rows || n > FGMM_IVF_PLACES || m < 0 || m > r->h.n_links - links)
            return bad(r, "the sizes of its lists do not add up");
        if (r->h.list_max && n + m > r->h.list_max) return bad(r, "a list is longer than the index allows");
        rows += n;
        links += m;
    }
    if (rows != r->h.n_rows || links != r->h.n_links) return bad(r, "the sizes of its lists do not add up");
    return FGMM_OK;
}

/* Everything that is used as an index, every vector, and ids that are unlike each other. */
static fgmm_status check_lists(const reader *r, const fgmm_ivf *index) {
    fgmm_context *ctx = r->ctx;
    fgmm_status status = FGMM_ERR_MEMORY;
    fgmm_id_set set = {0};
    float *row = fgmm_alloc(ctx, (size_t)fgmm_scan_stride(index->d) * sizeof *row, "a row");
    if (!row) return FGMM_ERR_MEMORY;
    FGMM_GO(fgmm_id_set_open(ctx, &set, index->n_rows));
    for (int64_t l = 0; l < index->k; l++) {
        const fgmm_ivf_store *list = &index->lists[l];
        for (int64_t i = 0; i < list->n; i++) {
            int64_t id = list->ids[i];
            if (id < 0 || id >= index->next_id || fgmm_id_set_add(&set, id))
                FGMM_GO(bad(r, "an id is out of range or comes twice"));
            if (!fgmm_is_bytes(index->type) &&
                fgmm_rows_to_floats(ctx, index->type, list->vectors + (size_t)i * fgmm_ivf_row_bytes(index), i, 1,
                                    index->d, 0, row) != FGMM_OK)
                FGMM_GO(fgmm_fail_at(ctx, FGMM_ERR_FORMAT, r->path));
        }
    }
done:
    fgmm_free(ctx, set.slots);
    fgmm_free(ctx, row);
    return status;
}

/* How many lists link i says come between its row's best one and its own; -1 if no order of lists could be that. */
static int links_before(const fgmm_ivf *index, const fgmm_ivf_store *list, int64_t i) {
    int64_t between = fgmm_ivf_between(index);
    int n = 0;
    for (int64_t b = 0; b < between; b++) {
        int32_t other = list->between[i * between + b];
        if (other < -1 || other >= index->k || (other >= 0 && n < b)) return -1;
        n += other >= 0;
    }
    return n;
}

/* Link i of list l is the row's list number `before` + 1: 0 if that place, or another of the row's, has a list already
 * that it may not have. of_row [further]: the row's lists after its best one so far. */
static int note_link(int32_t *of_row, int64_t further, int before, int64_t l) {
    if (of_row[before] >= 0) return 0;
    for (int64_t b = 0; b < further; b++)
        if (of_row[b] == (int32_t)l) return 0;
    of_row[before] = (int32_t)l;
    return 1;
}

/* Whether the lists that a link says come before it are those that the row's other links are in. */
static int same_before(const int32_t *of_row, const int32_t *between, int before) {
    for (int b = 0; b < before; b++)
        if (between[b] != of_row[b]) return 0;
    return 1;
}

/*
 * Links lead to rows, and those of one row tell of different lists in one order: a search that goes by them looks at
 * no row twice. order [n_rows, max_lists - 1]: each row's lists after its best one, -1 where none was seen.
 */
static fgmm_status check_links(const reader *r, const fgmm_ivf *index) {
    fgmm_context *ctx = r->ctx;
    fgmm_status status = FGMM_ERR_MEMORY;
    int64_t k = index->k, further = index->max_lists - 1, n_rows = 0;
    int64_t *starts = fgmm_alloc(ctx, (size_t)k * sizeof *starts, "places of lists");
    int32_t *order = fgmm_alloc(ctx, (size_t)(index->n_rows * further) * sizeof *order, "lists of rows");
    if (!starts || !order) goto done;
    for (int64_t l = 0; l < k; n_rows += index->lists[l++].n) starts[l] = n_rows;
    for (int64_t i = 0; i < n_rows * further; i++) order[i] = -1;
    /* First where each stands, then whether all say the same. */
    for (int noted = 0; noted < 2; noted++)
        for (int64_t l = 0; l < k; l++) {
            const fgmm_ivf_store *list = &index->lists[l];
            for (int64_t i = 0; i < list->n_links; i++) {
                fgmm_ivf_link link = list->links[i];
                int before = links_before(index, list, i);
                if (link.home < 0 || link.home >= k || link.home == l || link.place < 0 ||
                    link.place >= index->lists[link.home].n || before < 0 || before >= further)
                    FGMM_GO(bad(r, "a link leads nowhere"));
                int32_t *of_row = order + (starts[link.home] + link.place) * further;
                int fine =
                    noted ? same_before(of_row, before ? list->between + i * fgmm_ivf_between(index) : NULL, before)
                          : note_link(of_row, further, before, l);
                if (!fine) FGMM_GO(bad(r, "the links to a row do not agree"));
            }
        }
    status = FGMM_OK;
done:
    fgmm_free(ctx, order);
    fgmm_free(ctx, starts);
    return status;
}

static fgmm_status get_index(reader *r, fgmm_ivf **out) {
    fgmm_context *ctx = r->ctx;
    fgmm_status status = FGMM_OK;
    const header *h = &r->h;
    fgmm_model *model = NULL;
    int64_t *sizes = NULL;
    uint32_t told, sum;
    FGMM_GO(get_model(r, &model));
    status = fgmm_ivf_new(ctx, out, model, (fgmm_metric)h->metric, (int)h->max_lists);
    if (status == FGMM_ERR_INVALID) status = fgmm_fail_at(ctx, FGMM_ERR_FORMAT, r->path);
    if (status != FGMM_OK) goto done;
    fgmm_ivf *index = *out;
    index->rule = (fgmm_ivf_rule)h->rule;
    index->budget = h->budget;
    index->threshold = h->threshold;
    index->lambda = h->lambda;
    index->type = (fgmm_dtype)h->type;
    index->has_type = (int)h->has_type;
    index->n_rows = h->n_rows;
    index->next_id = h->next_id;
    index->calibrated_k = (int)h->calibrated_k;
    index->list_max = h->list_max;
    if (index->calibrated_k) FGMM_GO(get(r, index->gaps, sizeof index->gaps));
    FGMM_GO(get_sizes(r, &sizes));
    for (int64_t i = 0; i < index->k; i++) FGMM_GO(get_list(r, index, &index->lists[i], sizes[i], sizes[index->k + i]));
    sum = fgmm_checksum_end(&r->sum);
    FGMM_GO(get(r, &told, sizeof told));
    if (told != sum) FGMM_GO(bad(r, "is damaged: its checksum does not match"));
    for (int i = 0; index->calibrated_k && i < FGMM_IVF_LEVELS; i++)
        if (!(index->gaps[i] >= (i ? index->gaps[i - 1] : 0))) FGMM_GO(bad(r, "its calibration is not ascending"));
    FGMM_GO(check_lists(r, index));
    FGMM_GO(check_links(r, index));
    FGMM_GO(fgmm_ivf_bend(ctx, index, h->bend));
done:
    fgmm_free(ctx, sizes);
    fgmm_model_free(ctx, model);
    return status;
}

fgmm_status fgmm_ivf_load(fgmm_context *ctx, fgmm_ivf **out, const char *path) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !path) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf load: a pointer is NULL");
    *out = NULL;
    struct stat info;
    fgmm_ivf *index = NULL;
    reader r = {.ctx = ctx, .path = path, .fd = -1};
    FGMM_TRY(fgmm_infile_open(ctx, path, &r.fd, &info));
    fgmm_status status = FGMM_OK;
    fgmm_checksum_begin(&r.sum);
    if ((uint64_t)info.st_size < sizeof r.h) FGMM_GO(bad(&r, "is too short for an index file"));
    FGMM_GO(get(&r, &r.h, sizeof r.h));
    FGMM_GO(check_header(&r, (uint64_t)info.st_size));
    FGMM_GO(get_index(&r, &index));
    *out = index;
    index = NULL;
done:
    fgmm_ivf_free(ctx, index);
    close(r.fd);
    return status;
}
