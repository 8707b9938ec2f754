/*
 * What a device is trusted with: cases of the known-answer test (cl_check.c), each before what it stands for is first used with such rows, so that no
 * program is built that nobody wants: the dense engine's wait for a row that is left to it, in the middle of a pass, which then goes on or ends in an
 * error. What fails is left alone, and what can do without it goes on. Tied and full covariances have no case of their own: they share bins,
 * sums and the dense engine with spherical ones.
 */
#include "cl_engine.h"
#include "cl_program.h"

#include <string.h>

/* With less, and so with other programs, than what other cases were passed with. */
static fgmm_status answer_again(fgmm_device *device, cl_test test) {
    memset(device->passed, 0, sizeof device->passed);
    device->setbacks++;
    cl_opened_of(device)->build_failed = device->group_refused = 0;
    cl_engine_free(device);
    cl_kernels_free(device);
    return cl_known_answer(device, test);
}

/* Without settling, which goes on where that was not the reason. */
static fgmm_status answer_unsettled(fgmm_device *device, cl_test test) {
    int64_t before = device->settle_from;
    device->settle_from = INT64_MAX;
    fgmm_status status = answer_again(device, test);
    if (status == FGMM_OK)
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: all rows go through the screen: the kernels that spare them that fail the known-answer "
                         "test",
                         device->name);
    else
        device->settle_from = before;
    return status;
}

/* With squares in float-floats, as all that is tried after it. */
static fgmm_status answer_in_floats(fgmm_device *device, cl_test test) {
    device->quick_doubles = 0;
    fgmm_status status = answer_again(device, test);
    if (status == FGMM_OK)
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: squares are summed in float-floats: those in double fail the known-answer test",
                         device->name);
    return status;
}

/* Without what only spares work: settling, or screens on matrix units. */
static fgmm_status answer_plainly(fgmm_device *device, cl_test test) {
    fgmm_status status = answer_unsettled(device, test);
    while (status == FGMM_ERR_DEVICE && device->has_matrix) {
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: %s are left alone: their screen fails the known-answer test", device->name,
                         cl_matrix_name(device->has_matrix));
        device->has_matrix--;
        status = answer_again(device, test);
        if (status == FGMM_ERR_DEVICE && !device->has_matrix) status = answer_unsettled(device, test);
    }
    return status;
}

/* The user's tiles are the first to be doubted, and what only spares work is next, unless that has passed before the dense engine came. A
 * kernel may be allowed smaller work-groups than its device. Wrong numbers are most often an optimiser's doing. Each gets one more chance. */
static fgmm_status pass(fgmm_device *device, cl_test test) {
    cl_opened *opened = cl_opened_of(device);
    fgmm_status status = cl_known_answer(device, test);
    if (status == FGMM_ERR_DEVICE && device->n_tuning) {
        device->host.log(device->host.user, FGMM_LOG_WARNING,
                         "%s: the user's tuning rows are left out: it fails the known-answer test with them",
                         device->name);
        cl_tuning_free(device);
        status = answer_again(device, test);
    }
    if (status == FGMM_ERR_DEVICE && device->quick_doubles) status = answer_in_floats(device, test);
    if (status == FGMM_ERR_DEVICE && test.which < CL_CASE_DENSE_SPHERICAL) status = answer_plainly(device, test);
    if (status == FGMM_ERR_DEVICE && (device->group_refused || opened->build_failed) && device->max_work_group > 64) {
        device->host.log(device->host.user, FGMM_LOG_DEBUG, "%s: work-groups of 64", device->name);
        device->max_work_group = 64;
        status = answer_again(device, test);
    }
    if (status != FGMM_ERR_DEVICE || opened->build_failed || opened->unoptimised) return status;
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s fails the known-answer test; building its kernels again without optimisation", device->name);
    opened->unoptimised = 1;
    return answer_again(device, test);
}

/* Kernels with wrong numbers are left alone, and a build of theirs that failed says nothing about others. */
static void leave_alone(fgmm_device *device, const char *which) {
    device->host.log(device->host.user, FGMM_LOG_WARNING,
                     "%s: the dense engine leaves %s alone: it fails the known-answer test", device->name, which);
    cl_opened_of(device)->build_failed = device->group_refused = 0;
}

/* Wrong numbers cost the dense engine's kernels on matrix units alone, where the device serves without them. A level that these leave has the
 * next one tested. */
static fgmm_status pass_near(fgmm_device *device, cl_test test) {
    for (int level = CL_MATRIX_NONE; device->pairs && device->pairs != level;) {
        level = device->pairs;
        fgmm_status status = cl_known_answer(device, test);
        if (status == FGMM_OK) continue;
        if (status != FGMM_ERR_DEVICE || !device->pairs) return status;
        leave_alone(device, cl_matrix_name(device->pairs));
        device->pairs--;
    }
    return FGMM_OK;
}

/* And those of fast precision. */
static fgmm_status pass_near_fast(fgmm_device *device, cl_test test) {
    if (!device->pairs || !device->singles) return FGMM_OK;
    fgmm_status status = cl_known_answer(device, test);
    if (status != FGMM_ERR_DEVICE || !device->singles) return status;
    leave_alone(device, "single f16");
    device->singles = 0;
    return FGMM_OK;
}

/* The test has an engine of its own, beside that of a pass under way, and settles all rows that it can. */
static fgmm_status test_apart(fgmm_device *device, cl_test test) {
    cl_engine *engine = device->engine;
    cl_stretch *stretch = device->stretch;
    int64_t peak = device->peak_bytes, settle_from = device->settle_from;
    device->engine = NULL;
    device->stretch = NULL;
    if (device->settle_from < INT64_MAX) device->settle_from = 0;
    device->testing = 1;
    if (device->builds_ahead) { /* what the test will want is built side by side */
        device->asking = test.which < CL_CASE_DENSE_SPHERICAL ? 1 : 2;
        (void)cl_known_answer(device, test);
        device->asking = 0;
        cl_engine_free(device);
    }
    fgmm_status status = test.which == CL_CASE_NEAR        ? pass_near(device, test)
                         : test.which == CL_CASE_NEAR_FAST ? pass_near_fast(device, test)
                                                           : pass(device, test);
    device->testing = 0;
    cl_asked_end(device);
    /* What it used between calls is no one's concern. */
    clFinish(device->queue);
    cl_engine_free(device);
    device->engine = engine;
    device->stretch = stretch;
    if (!engine) device->peak_bytes = peak > device->bytes ? peak : device->bytes; /* else it was beside a pass */
    if (device->settle_from < INT64_MAX) device->settle_from = settle_from;
    return status;
}

fgmm_status cl_trust(fgmm_device *device, cl_case which, int64_t d, fgmm_dtype type) {
    const cl_test test = {which, type, d};
    cl_opened *opened = cl_opened_of(device);
    if (device->testing) return FGMM_OK;
    for (int i = 0; i < CL_PASSED; i++)
        if (device->passed[i].d == d && device->passed[i].type == type && device->passed[i].which == which)
            return FGMM_OK;
    int64_t settle_from = device->settle_from;
    size_t max_work_group = device->max_work_group;
    int has_matrix = device->has_matrix, quick_doubles = device->quick_doubles, unoptimised = opened->unoptimised;
    if (which < CL_CASE_ROWS_SPHERICAL) cl_engine_free(device); /* of an earlier call: the test has its room */
    fgmm_status status = test_apart(device, test);
    if (status == FGMM_OK) {
        device->passed[device->n_passed++ % CL_PASSED] = test;
        cl_forget(device);
    } else if (status == FGMM_ERR_DEVICE) { /* less did not help */
        device->failed = 1;
        device->settle_from = settle_from;
        device->max_work_group = max_work_group;
        device->has_matrix = has_matrix;
        device->quick_doubles = quick_doubles;
        opened->unoptimised = unoptimised;
        cl_kernels_free(device);
    }
    return status;
}
