/*
 * An index on the device, and searches of it. Queries go in groups whose candidates fit in memory; a group takes two
 * launches of lists_scan.cl, over the tiles of the lists' rows and over those of their links, and one of
 * lists_select.cl. What each launch works on is laid out here.
 */
#include "cl_engine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TILE = CL_DISTANCE_TILE, SIDE = CL_DISTANCE_SIDE, CANDIDATES = 1 << 25 };
/* Of lists_scan.cl. */
enum { ANGULAR = 1, LINKS = 2, FILTER = 4 };

struct fgmm_lists {
    fgmm_dtype type;
    fgmm_metric metric;
    int64_t d, n_lists, n_links;
    int depth;
    int64_t *row_starts, *link_starts; /* [n_lists + 1] */
    cl_mem rows, ids, inverse, links, before;
    /* of a group */
    cl_room queries, probed, filter, tasks, askers, starts, distances, rows_of, counts, best_ids, best, found;
};

/* ---- bringing it there ---- */

static fgmm_status send_rows(fgmm_device *device, fgmm_lists *lists, const fgmm_lists_source *source) {
    size_t row = (size_t)source->d * (source->type == FGMM_F32 ? 4 : source->type == FGMM_F16 ? 2 : 1);
    size_t n = (size_t)lists->row_starts[lists->n_lists];
    CL_TRY(cl_buffer(device, &lists->rows, n * row, "the rows of an index"));
    CL_TRY(cl_buffer(device, &lists->ids, n * sizeof(cl_long), "the ids of an index"));
    if (source->metric == FGMM_ANGULAR)
        CL_TRY(cl_buffer(device, &lists->inverse, n * sizeof(float), "the lengths of an index's rows"));
    for (int64_t l = 0; l < source->n_lists; l++) {
        size_t at = (size_t)lists->row_starts[l], some = (size_t)source->lists[l].n;
        if (some == 0) continue;
        CL_TRY(cl_write_at(device, lists->rows, at * row, some * row, source->lists[l].vectors, "sending an index"));
        CL_TRY(cl_write_at(device, lists->ids, at * sizeof(cl_long), some * sizeof(cl_long), source->lists[l].ids,
                           "sending an index"));
        if (lists->inverse)
            CL_TRY(cl_write_at(device, lists->inverse, at * sizeof(float), some * sizeof(float),
                               source->lists[l].inverse, "sending an index"));
    }
    return FGMM_OK;
}

static fgmm_status send_links(fgmm_device *device, fgmm_lists *lists, const fgmm_lists_source *source) {
    size_t n = (size_t)lists->n_links;
    if (n == 0) return FGMM_OK;
    CL_TRY(cl_buffer(device, &lists->links, n * sizeof(cl_uint), "the links of an index"));
    CL_TRY(cl_buffer(device, &lists->before, n * (size_t)lists->depth * sizeof(cl_int), "the links of an index"));
    CL_TRY(cl_write(device, lists->links, n * sizeof(cl_uint), source->links, "sending an index"));
    return cl_write(device, lists->before, n * (size_t)lists->depth * sizeof(cl_int), source->before,
                    "sending an index");
}

fgmm_status cl_lists_put(fgmm_device *device, const fgmm_lists_source *source, fgmm_lists **out) {
    fgmm_status status = FGMM_ERR_MEMORY;
    size_t k = (size_t)source->n_lists;
    *out = NULL;
    CL_TRY(cl_lists_known_answer(device));
    fgmm_lists *lists = cl_alloc(device, sizeof *lists);
    if (!lists) return FGMM_ERR_MEMORY;
    memset(lists, 0, sizeof *lists);
    lists->type = source->type;
    lists->metric = source->metric;
    lists->d = source->d;
    lists->n_lists = source->n_lists;
    lists->n_links = source->link_starts[k];
    lists->depth = source->depth;
    lists->row_starts = cl_alloc(device, (k + 1) * sizeof *lists->row_starts);
    lists->link_starts = cl_alloc(device, (k + 1) * sizeof *lists->link_starts);
    if (!lists->row_starts || !lists->link_starts) goto done;
    memcpy(lists->link_starts, source->link_starts, (k + 1) * sizeof *lists->link_starts);
    lists->row_starts[0] = 0;
    for (size_t l = 0; l < k; l++) lists->row_starts[l + 1] = lists->row_starts[l] + source->lists[l].n;
    CL_GO(send_rows(device, lists, source));
    CL_GO(send_links(device, lists, source));
    *out = lists;
    lists = NULL;
done:
    cl_lists_release(device, lists);
    return status;
}

void cl_lists_release(fgmm_device *device, fgmm_lists *lists) {
    if (!lists) return;
    cl_room *const rooms[] = {&lists->queries, &lists->probed,   &lists->filter, &lists->tasks,
                              &lists->askers,  &lists->starts,   &lists->counts, &lists->distances,
                              &lists->rows_of, &lists->best_ids, &lists->best,   &lists->found};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) cl_room_free(device, rooms[i]);
    cl_buffer_free(device, lists->rows);
    cl_buffer_free(device, lists->ids);
    cl_buffer_free(device, lists->inverse);
    cl_buffer_free(device, lists->links);
    cl_buffer_free(device, lists->before);
    cl_release_memory(device, lists->row_starts);
    cl_release_memory(device, lists->link_starts);
    cl_release_memory(device, lists);
}

/* ---- a group of queries ---- */

/* Queries first .. first + n - 1, their pairs with the lists that they probe, by list, and the tasks. */
typedef struct {
    const fgmm_lists_query *query;
    int64_t first, n, pairs;
    size_t n_tasks[2];  /* of rows, of links */
    cl_uint *starts;    /* [n + 1]: candidates of each query */
    int64_t *list_pair; /* [n_lists + 1]: where each list's pairs start */
    cl_uint2 *askers;   /* [pairs] */
    cl_uint4 *tasks;    /* those of rows, then those of links */
} query_group;

static int64_t list_rows(const fgmm_lists *lists, int64_t l) {
    return lists->row_starts[l + 1] - lists->row_starts[l];
}
static int64_t list_links(const fgmm_lists *lists, int64_t l) {
    return lists->link_starts[l + 1] - lists->link_starts[l];
}

static uint64_t probed_word(const fgmm_lists_query *query, int64_t q, int64_t w) {
    return query->probed[q * query->words + w];
}

/* For each list that query q probes, ascending. */
#define EACH_PROBED(query, q, l)                                                                                       \
    for (int64_t w_ = 0, l; w_ < (query)->words; w_++)                                                                 \
        for (uint64_t bits_ = probed_word(query, q, w_); bits_ && (l = w_ * 64 + __builtin_ctzll(bits_), 1);           \
             bits_ &= bits_ - 1)

/* How many queries from `first` on go together, at least one: those whose candidates, of two words each, take half of the
 * memory that is left, and what else is sent and read the other half. */
static fgmm_status take_queries(fgmm_device *device, const fgmm_lists *lists, query_group *g) {
    const fgmm_lists_query *query = g->query;
    const fgmm_host *host = &device->host;
    double held = (double)(lists->distances.bytes + lists->rows_of.bytes);
    double left = ((double)(device->limit_bytes - device->bytes) + held) / 2, buffer = (double)device->max_alloc;
    double candidate = 2 * sizeof(float), most = fmin(fmin(CANDIDATES, buffer / sizeof(float)), left / candidate);
    double each = (double)lists->d * sizeof(float) + (double)query->words * sizeof *query->probed +
                  (double)query->room * (sizeof(cl_long) + sizeof(float));
    double total = 0, others = 0;
    g->n = g->pairs = 0;
    for (int64_t q = g->first; q < query->n; q++) {
        double own = 0;
        int64_t pairs = 0;
        EACH_PROBED(query, q, l) {
            own += (double)(list_rows(lists, l) + list_links(lists, l));
            pairs++;
        }
        others += each + (double)pairs * sizeof *g->askers;
        if (g->n > 0 && (total + own > most || others > left)) break;
        /* Alone it may have all of it; the places of candidates are 32-bit, with room for a stride. */
        if (own > fmin(UINT32_MAX - 4096.0, fmin(buffer / sizeof(float), 2 * left / candidate)))
            return host->fail(host->user, FGMM_ERR_MEMORY,
                              "a query is to look at %.0f entries at once, more than %s has memory for", own,
                              device->name);
        total += own;
        g->pairs += pairs;
        g->n++;
    }
    return FGMM_OK;
}

static size_t tiles(int64_t n) {
    return (size_t)(n + TILE - 1) / TILE;
}

/* The tasks of one kind, from `at` on. @return one past the last. */
static size_t lay_tasks(const fgmm_lists *lists, const query_group *g, int links, size_t at) {
    for (int64_t l = 0; l < lists->n_lists; l++) {
        int64_t rows = list_rows(lists, l), n = links ? list_links(lists, l) : rows;
        int64_t first = links ? lists->link_starts[l] : lists->row_starts[l];
        for (int64_t row = 0; row < n; row += TILE)
            for (int64_t pair = g->list_pair[l]; pair < g->list_pair[l + 1]; pair += TILE) {
                int64_t some = n - row < TILE ? n - row : TILE, pairs = g->list_pair[l + 1] - pair;
                if (pairs > TILE) pairs = TILE;
                g->tasks[at++] = (cl_uint4){{(cl_uint)(first + row), (cl_uint)pair, (cl_uint)(links ? rows + row : row),
                                             (cl_uint)(some | pairs << 16)}};
            }
    }
    return at;
}

static void group_free(fgmm_device *device, query_group *g) {
    cl_release_memory(device, g->tasks);
    cl_release_memory(device, g->askers);
    cl_release_memory(device, g->list_pair);
    cl_release_memory(device, g->starts);
}

/* Pairs by list, and where each one's candidates lie. */
static fgmm_status lay_group(fgmm_device *device, const fgmm_lists *lists, query_group *g) {
    const fgmm_lists_query *query = g->query;
    size_t k = (size_t)lists->n_lists, n = (size_t)g->n;
    g->starts = cl_alloc(device, (n + 1) * sizeof *g->starts);
    g->list_pair = cl_alloc(device, (k + 1) * sizeof *g->list_pair);
    g->askers = cl_alloc(device, (size_t)g->pairs * sizeof *g->askers);
    if (!g->starts || !g->list_pair || !g->askers) return FGMM_ERR_MEMORY;
    memset(g->list_pair, 0, (k + 1) * sizeof *g->list_pair);
    for (int64_t q = 0; q < g->n; q++) EACH_PROBED(query, g->first + q, l) g->list_pair[l + 1]++;
    for (size_t l = 0; l < k; l++) {
        g->n_tasks[0] += tiles(list_rows(lists, (int64_t)l)) * tiles(g->list_pair[l + 1]);
        g->n_tasks[1] += tiles(list_links(lists, (int64_t)l)) * tiles(g->list_pair[l + 1]);
        g->list_pair[l + 1] += g->list_pair[l];
    }
    cl_uint at = 0;
    for (int64_t q = 0; q < g->n; q++) {
        g->starts[q] = at;
        EACH_PROBED(query, g->first + q, l) {
            /* Filling moves each start to the next one's. */
            g->askers[g->list_pair[l]++] = (cl_uint2){{(cl_uint)q, at}};
            at += (cl_uint)(list_rows(lists, l) + list_links(lists, l));
        }
    }
    g->starts[n] = at;
    memmove(g->list_pair + 1, g->list_pair, k * sizeof *g->list_pair);
    g->list_pair[0] = 0;
    g->tasks = cl_alloc(device, (g->n_tasks[0] + g->n_tasks[1]) * sizeof *g->tasks);
    if (!g->tasks) return FGMM_ERR_MEMORY;
    lay_tasks(lists, g, 1, lay_tasks(lists, g, 0, 0));
    return FGMM_OK;
}

static fgmm_status send_group(fgmm_device *device, fgmm_lists *lists, const query_group *g) {
    const fgmm_lists_query *query = g->query;
    size_t n = (size_t)g->n, d = (size_t)lists->d, words = (size_t)query->words, candidates = g->starts[n];
    size_t room = (size_t)query->room, tasks = g->n_tasks[0] + g->n_tasks[1];
    float *packed = cl_alloc(device, n * d * sizeof *packed);
    if (!packed) return FGMM_ERR_MEMORY;
    for (size_t i = 0; i < n; i++)
        memcpy(packed + i * d, query->queries + (g->first + (int64_t)i) * query->stride, d * sizeof *packed);
    fgmm_status status = cl_send(device, &lists->queries, n * d * sizeof *packed, packed, "queries");
    cl_release_memory(device, packed);
    CL_TRY(status);
    CL_TRY(cl_send(device, &lists->probed, n * words * sizeof *query->probed, query->probed + g->first * query->words,
                   "the lists to probe"));
    CL_TRY(cl_send(device, &lists->askers, (size_t)g->pairs * sizeof *g->askers, g->askers, "the lists to probe"));
    CL_TRY(cl_send(device, &lists->tasks, tasks * sizeof *g->tasks, g->tasks, "the lists to probe"));
    CL_TRY(cl_send(device, &lists->starts, (n + 1) * sizeof *g->starts, g->starts, "the lists to probe"));
    CL_TRY(cl_room_fit(device, &lists->counts, tasks * sizeof(cl_uint), "counts of distances"));
    CL_TRY(cl_room_fit(device, &lists->distances, candidates * sizeof(float), "distances"));
    CL_TRY(cl_room_fit(device, &lists->rows_of, candidates * sizeof(cl_uint), "distances"));
    CL_TRY(cl_room_fit(device, &lists->best_ids, n * room * sizeof(cl_long), "results"));
    CL_TRY(cl_room_fit(device, &lists->best, n * room * sizeof(float), "results"));
    return cl_room_fit(device, &lists->found, n * sizeof(cl_uint), "results");
}

/* ---- launches ---- */

static fgmm_status scan(fgmm_device *device, fgmm_lists *lists, const query_group *g, int links) {
    const fgmm_lists_query *query = g->query;
    cl_kernel kernel = NULL;
    char options[128];
    cl_uint about = (lists->metric == FGMM_ANGULAR ? ANGULAR : 0) | (links ? LINKS : 0) | (query->filter ? FILTER : 0);
    snprintf(options, sizeof options, "-DROW_TYPE=%d -DDOT=%d -DWHOLE=%d", (int)lists->type, lists->metric != FGMM_L2,
             query->whole);
    CL_TRY(cl_kernel_get(device, &kernel, "lists_scan", options, "lists_scan"));
    cl_mem any = lists->rows; /* where an argument is not looked at */
    cl_mem inverse = lists->inverse ? lists->inverse : any, filter = query->filter ? lists->filter.mem : any;
    cl_mem link_rows = links ? lists->links : any, before = links ? lists->before : any;
    cl_uint d = (cl_uint)lists->d, depth = (cl_uint)lists->depth, words = (cl_uint)query->words;
    cl_long filter_size = query->filter_size;
    /* A tile takes as long half empty as full. */
    size_t most = (size_t)fmax(1, CL_DISTANCE_WORK / ((double)TILE * TILE * (double)lists->d));
    for (size_t at = 0; at < g->n_tasks[links]; at += most) {
        size_t some = g->n_tasks[links] - at < most ? g->n_tasks[links] - at : most;
        size_t local[2] = {SIDE, SIDE}, global[2] = {some * SIDE, SIDE};
        cl_uint first = (cl_uint)(at + (links ? g->n_tasks[0] : 0));
        CL_TRY(CL_RUN(device, kernel, "scanning lists", 2, global, local, CL_ARG(about), CL_ARG(lists->rows), CL_ARG(d),
                      CL_ARG(lists->ids), CL_ARG(inverse), CL_ARG(link_rows), CL_ARG(before), CL_ARG(depth),
                      CL_ARG(filter), CL_ARG(filter_size), CL_ARG(lists->queries.mem), CL_ARG(lists->probed.mem),
                      CL_ARG(words), CL_ARG(lists->tasks.mem), CL_ARG(first), CL_ARG(lists->askers.mem),
                      CL_ARG(lists->distances.mem), CL_ARG(lists->rows_of.mem), CL_ARG(lists->counts.mem)));
    }
    return FGMM_OK;
}

static fgmm_status select_best(fgmm_device *device, fgmm_lists *lists, const query_group *g) {
    cl_kernel kernel = NULL;
    char options[32];
    size_t group = device->max_work_group < 256 ? 64 : 256;
    snprintf(options, sizeof options, "-DGROUP=%d", (int)group);
    CL_TRY(cl_kernel_get(device, &kernel, "lists_select", options, "lists_select"));
    size_t global = (size_t)g->n * group;
    cl_uint k = (cl_uint)g->query->k, room = (cl_uint)g->query->room;
    return CL_RUN(device, kernel, "selecting neighbours", 1, &global, &group, CL_ARG(lists->starts.mem),
                  CL_ARG(lists->distances.mem), CL_ARG(lists->rows_of.mem), CL_ARG(lists->ids), CL_ARG(k), CL_ARG(room),
                  CL_ARG(lists->best_ids.mem), CL_ARG(lists->best.mem), CL_ARG(lists->found.mem));
}

/* Results of the group, and how many distances it took. */
static fgmm_status read_group(fgmm_device *device, fgmm_lists *lists, const query_group *g, fgmm_lists_query *query) {
    size_t n = (size_t)g->n, room = (size_t)query->room, tasks = g->n_tasks[0] + g->n_tasks[1];
    size_t words = tasks > n ? tasks : n;
    cl_uint *numbers = cl_alloc(device, words * sizeof *numbers);
    if (!numbers) return FGMM_ERR_MEMORY;
    fgmm_status status = FGMM_OK;
    CL_GO(cl_read(device, lists->best_ids.mem, n * room * sizeof(cl_long), query->ids + g->first * query->room,
                  "reading neighbours"));
    CL_GO(cl_read(device, lists->best.mem, n * room * sizeof(float), query->distances + g->first * query->room,
                  "reading neighbours"));
    CL_GO(cl_read(device, lists->found.mem, n * sizeof *numbers, numbers, "reading neighbours"));
    for (size_t i = 0; i < n; i++) query->found[g->first + (int64_t)i] = numbers[i];
    if (tasks) CL_GO(cl_read(device, lists->counts.mem, tasks * sizeof *numbers, numbers, "reading neighbours"));
    for (size_t i = 0; i < tasks; i++) query->computed += numbers[i];
done:
    cl_release_memory(device, numbers);
    return status;
}

/* The queries of one group, from g->first on. */
static fgmm_status search_group(fgmm_device *device, fgmm_lists *lists, query_group *g, fgmm_lists_query *query) {
    fgmm_status status = FGMM_OK;
    CL_GO(take_queries(device, lists, g));
    CL_GO(lay_group(device, lists, g));
    CL_GO(send_group(device, lists, g));
    CL_GO(scan(device, lists, g, 0));
    CL_GO(scan(device, lists, g, 1));
    CL_GO(select_best(device, lists, g));
    CL_GO(read_group(device, lists, g, query));
done:
    group_free(device, g);
    return status;
}

fgmm_status cl_lists_search(fgmm_device *device, fgmm_lists *lists, fgmm_lists_query *query) {
    if (query->filter)
        CL_TRY(cl_send(device, &lists->filter, (size_t)(query->filter_size + 7) / 8, query->filter, "the filter"));
    for (int64_t first = 0; first < query->n;) {
        query_group g = {.query = query, .first = first};
        CL_TRY(search_group(device, lists, &g, query));
        CL_TRY(cl_breathe(device));
        first += g.n;
    }
    return FGMM_OK;
}
