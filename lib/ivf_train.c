/* Coarse quantizers: k-means, then EM under the constraints of the metric. */
#include "constraints.h"
#include "ivf_start.h"
#include "nearest.h"
#include "report.h"

const char *fgmm_ivf_method_name(fgmm_ivf_method method) {
    static const char *const names[] = {"kmeans", "tied-spherical", "spherical", "diag"};
    return (unsigned)method < sizeof names / sizeof *names ? names[method] : NULL;
}

static fgmm_status check_options(fgmm_context *ctx, const fgmm_rows *rows, const fgmm_ivf_train_options *o) {
    if (o->struct_size != sizeof *o)
        return fgmm_fail(ctx, FGMM_ERR_INVALID,
                         "ivf train: struct_size of the options is not set: use FGMM_IVF_TRAIN_OPTIONS_INIT");
    if (!fgmm_ivf_method_name(o->method))
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf train: method %d is unknown", (int)o->method);
    if ((unsigned)o->init > FGMM_IVF_INIT_RANDOM)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf train: init %d is unknown", (int)o->init);
    if (o->kmeans_iter < 0 || o->em_iter < 0)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf train: numbers of iterations must not be negative");
    if (o->n_lists <= 0 || o->n_lists > rows->n)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf train: n_lists = %lld must be 1 to the number of rows, %lld",
                         (long long)o->n_lists, (long long)rows->n);
    if (o->metric == FGMM_ANGULAR) return fgmm_metric_check(ctx, o->metric, rows, "ivf train");
    return fgmm_metric_check(ctx, o->metric, NULL, "ivf train");
}

static fgmm_status start_means(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                               const fgmm_ivf_train_options *o, unsigned constraints, fgmm_report *report) {
    fgmm_kmeans_options options = FGMM_KMEANS_OPTIONS_INIT;
    options.n_components = o->n_lists;
    options.max_iter = o->kmeans_iter ? o->kmeans_iter : o->method == FGMM_IVF_KMEANS ? 15 : 10;
    options.tol = -1;
    options.init = o->init == FGMM_IVF_INIT_RANDOM ? FGMM_INIT_RANDOM_FROM_DATA : FGMM_INIT_KMEANSPP;
    if (o->init == FGMM_IVF_INIT_TRIAL) FGMM_TRY(fgmm_ivf_start(ctx, rows, o, constraints, &options.init));
    options.seed = o->seed;
    options.compute = o->compute;
    return fgmm_kmeans_constrained(ctx, out, rows, &options, constraints, NULL, NULL, report);
}

static fgmm_status mix(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows, const fgmm_ivf_train_options *o,
                       const fgmm_model *start, unsigned constraints, fgmm_report *report) {
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    fgmm_model *own = NULL;
    options.covariance_type = o->method == FGMM_IVF_DIAG ? FGMM_DIAG : FGMM_SPHERICAL;
    options.max_iter = o->em_iter ? o->em_iter : 15;
    options.tol = -1;
    /* Features of unit rows vary by far less than 1e-6 where they are many. */
    options.reg_covar = o->metric == FGMM_ANGULAR ? 1e-9 : 0;
    options.seed = o->seed;
    options.compute = o->compute;
    if (o->method == FGMM_IVF_DIAG) {
        fgmm_status status = FGMM_OK;
        int64_t k = start->k, d = start->d;
        double *variances = fgmm_calloc(ctx, (size_t)(k * d), sizeof *variances, "variances");
        if (!variances) return FGMM_ERR_MEMORY;
        for (int64_t i = 0; i < k * d; i++) variances[i] = start->covariances[i / d];
        status = fgmm_model_create(ctx, &own, FGMM_DIAG, k, d, start->weights, start->means, variances);
        fgmm_free(ctx, variances);
        FGMM_TRY(status);
    }
    options.init_model = own ? own : start;
    if (o->method == FGMM_IVF_TIED_SPHERICAL) constraints |= FGMM_ONE_VARIANCE;
    fgmm_status status = fgmm_fit_constrained(ctx, out, rows, &options, constraints, report);
    fgmm_model_free(ctx, own);
    return status;
}

fgmm_status fgmm_ivf_train(fgmm_context *ctx, fgmm_model **out, const fgmm_rows *rows,
                           const fgmm_ivf_train_options *options, fgmm_report *report) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!out || !rows || !options) return fgmm_fail(ctx, FGMM_ERR_INVALID, "ivf train: a pointer is NULL");
    *out = NULL;
    FGMM_TRY(check_options(ctx, rows, options));
    fgmm_status status = FGMM_OK;
    double began = fgmm_now();
    fgmm_rows *unit = NULL;
    fgmm_model *start = NULL, *model = NULL;
    unsigned constraints = options->metric == FGMM_ANGULAR ? FGMM_UNIT_MEANS : 0;
    if (options->metric == FGMM_ANGULAR) FGMM_GO(fgmm_rows_unit(ctx, &unit, rows));
    FGMM_GO(start_means(ctx, &start, unit ? unit : rows, options, constraints, report));
    if (options->method == FGMM_IVF_KMEANS) {
        *out = start;
        start = NULL;
        goto done;
    }
    int iterations = start->n_iter;
    FGMM_GO(mix(ctx, &model, unit ? unit : rows, options, start, constraints, report));
    model->n_iter += iterations;
    if (report) report->n_iter = model->n_iter;
    *out = model;
    model = NULL;
done:
    /* The trial of starts included. */
    if (report && report->struct_size == sizeof *report) report->seconds = fgmm_now() - began;
    /* What a cancelled part leaves is not a trained quantizer. */
    fgmm_model_free(ctx, model);
    fgmm_model_free(ctx, start);
    fgmm_rows_free(ctx, unit);
    return status;
}
