/*
 * A model that comes again: calls that tell of rows are often many under one model. What the device needs of it, parameters formed and sent and reaches
 * found, is still there after the last call. The doubles that it was made of are kept, and where a call's are the same to the bit, it serves: of
 * spherical and diagonal covariances that are not near (cl_near.c), of rows that come as they are (not f64, which come less a centre of each call's), after
 * a call that came to its end, where the host's memory is not limited. Fits go without, for their parameters do not come twice, and so does the first
 * call after one, which takes what was made ahead (cl_ahead.c): its results would wait for the copy.
 */
#include "cl_engine.h"

#include <string.h>

enum {
    ARRAYS = 7,
    SHARE = 1 << 14,     /* doubles of a thread, at a time */
    MOST_BYTES = 1 << 28 /* where the device's work leaves what this spares far behind */
};

typedef struct array {
    const double *from;
    size_t n;
} array;

/* The arrays that parameters on the device are made of; first what differs where models do. */
static void list_arrays(const fgmm_params *params, array out[ARRAYS]) {
    size_t k = (size_t)params->k, d = (size_t)params->d, cells = k * d;
    const array arrays[ARRAYS] = {
        {params->log_norm, k}, {params->log_weights, k},
        {params->weights, k},  {params->centre, d},
        {params->scale, d},    {params->half_inv_var, params->covariance_type == FGMM_DIAG ? cells : k},
        {params->means, cells}};
    memcpy(out, arrays, sizeof arrays);
}

static int same_array(const fgmm_device *device, const array *one, const double *kept) {
    int other = 0;
#pragma omp parallel for num_threads(cl_threads(device, one->n))
    for (size_t at = 0; at < one->n; at += SHARE) {
        size_t n = one->n - at < SHARE ? one->n - at : SHARE;
        if (memcmp(kept + at, one->from + at, n * sizeof *kept) == 0) continue;
#pragma omp atomic write
        other = 1;
    }
    return !other;
}

static void keep_array(const fgmm_device *device, const array *one, double *kept) {
#pragma omp parallel for num_threads(cl_threads(device, one->n))
    for (size_t at = 0; at < one->n; at += SHARE) {
        size_t n = one->n - at < SHARE ? one->n - at : SHARE;
        memcpy(kept + at, one->from + at, n * sizeof *kept);
    }
}

static int same_arrays(const fgmm_device *device, const fgmm_params *params, const double *kept) {
    array arrays[ARRAYS];
    list_arrays(params, arrays);
    for (int i = 0; i < ARRAYS; kept += arrays[i++].n)
        if (!same_array(device, &arrays[i], kept)) return 0;
    return 1;
}

static int may_be_recalled(const fgmm_params *params) {
    return (params->covariance_type == FGMM_SPHERICAL || params->covariance_type == FGMM_DIAG) && !params->followed &&
           !params->careful && params->sum_centres == params->means;
}

/* What else decides what is on the device. */
static int alike(const fgmm_params *a, const fgmm_params *b) {
    return a->covariance_type == b->covariance_type && a->k == b->k && a->d == b->d && a->precision == b->precision &&
           a->engine == b->engine && a->cut == b->cut && a->hard == b->hard;
}

void cl_recall_begin(cl_engine *engine) {
    cl_recall *recall = &engine->recall;
    recall->likely = recall->ended && engine->prepared && recall->number && recall->number == engine->now.number;
    recall->ended = 0;
    engine->prepared = 0;
}

void cl_recall_take(fgmm_device *device, const fgmm_block *block) {
    cl_engine *engine = device->engine;
    cl_recall *recall = &engine->recall;
    const fgmm_params *params = &engine->params;
    if (recall->likely && !block->centre && may_be_recalled(params) && alike(params, &recall->params) &&
        recall->setbacks == device->setbacks && same_arrays(device, params, recall->kept))
        engine->prepared = engine->sent = 1; /* of what is not sent yet, some may be */
    recall->likely = 0;
}

/* Near components (cl_near.c) have one form for sums and another for what is told of rows, which do not serve each other. */
static int is_worth_it(const fgmm_device *device) {
    const cl_engine *engine = device->engine;
    return may_be_recalled(&engine->params) && !engine->frame && engine->ahead.exact_of != engine->now.number &&
           !device->testing && !device->host.memory_limited && !cl_is_near(device, engine);
}

/* Room for so many. @return 0 if there is none */
static int make_room(fgmm_device *device, size_t bytes) {
    cl_recall *recall = &device->engine->recall;
    recall->number = 0;
    if (recall->bytes >= bytes) return 1;
    cl_recall_free(device);
    if (bytes > MOST_BYTES) return 0;
    recall->kept = cl_alloc(device, bytes);
    if (!recall->kept) cl_forget(device); /* it goes without */
    recall->bytes = recall->kept ? bytes : 0;
    return recall->kept != NULL;
}

void cl_recall_keep(fgmm_device *device) {
    cl_engine *engine = device->engine;
    cl_recall *recall = &engine->recall;
    array arrays[ARRAYS];
    size_t count = 0;
    if (recall->asked == engine->now.number) return;
    recall->asked = engine->now.number;
    if (!is_worth_it(device)) return;
    list_arrays(&engine->params, arrays);
    for (int i = 0; i < ARRAYS; i++) count += arrays[i].n;
    if (!make_room(device, count * sizeof *recall->kept)) return;
    double *kept = recall->kept;
    for (int i = 0; i < ARRAYS; kept += arrays[i++].n) keep_array(device, &arrays[i], kept);
    recall->params = engine->params;
    recall->setbacks = device->setbacks;
    recall->number = engine->now.number;
}

void cl_recall_free(fgmm_device *device) {
    cl_recall *recall = &device->engine->recall;
    cl_release_memory(device, recall->kept);
    recall->kept = NULL;
    recall->bytes = 0;
    recall->number = 0;
}
