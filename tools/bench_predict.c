/* flashgmm-bench-predict: predict and score beside an iteration of EM, over rows that an application has in a buffer on the device. A
 * program of its own, because `flashgmm` itself must start without OpenCL. */
#include "bench_case.h"
#include "bench_opencl.h"

#include <flashgmm/opencl.h>
#include <stdlib.h>
#include <string.h>

enum { TOP = 2, WAYS = 4 };
static const struct {
    const char *name, *key;
} ways[WAYS] = {{"predict", "predict_ms"},
                {"predict_top2", "predict_top2_ms"},
                {"score", "score_ms"},
                {"score_samples", "score_samples_ms"}};

typedef struct predict_args {
    bench_data data;
    const char *name;
    int covariance, reps, json, host, persist;
    cl_context context;
    cl_command_queue queue;
    cl_mem buffer;
    cli_session session;
    fgmm_rows *rows;
    bench_ticks ticks;
    double ms[WAYS], iteration, likelihood;
} predict_args;

static int open_device(predict_args *a) {
    cl_device_id device = NULL;
    if (bench_opencl_open(a->name, 0, &device, &a->context, &a->queue)) return 1;
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    char message[512] = "";
    options.progress = bench_tick;
    options.progress_user = &a->ticks;
    options.error = message;
    options.error_size = sizeof message;
    if (fgmm_context_create_opencl(&a->session.ctx, &options, a->context, device, a->queue) == FGMM_OK) return 0;
    cli_say("%s", message);
    return 1;
}

/* Brings the rows there. */
static int load(predict_args *a, const bench_case *c) {
    int64_t n = a->data.n, d = a->data.d;
    cl_int code = CL_SUCCESS;
    fgmm_status status = FGMM_OK;
    if (a->host) {
        status = fgmm_rows_from_memory(a->session.ctx, &a->rows, c->x, FGMM_F32, n, d, 0);
        return status != FGMM_OK && cli_failed(&a->session, status);
    }
    a->buffer = clCreateBuffer(a->context, CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR, (size_t)(n * d) * sizeof *c->x,
                               c->x, &code);
    if (bench_opencl_failed(code, "clCreateBuffer")) return 1;
    status = fgmm_rows_from_cl_mem(a->session.ctx, &a->rows, a->buffer, FGMM_F32, n, d, 0, 0, 0, NULL);
    return status != FGMM_OK && cli_failed(&a->session, status);
}

static int persist(predict_args *a) {
    fgmm_status status = a->persist ? fgmm_rows_persist(a->session.ctx, a->rows, 1) : FGMM_OK;
    return status != FGMM_OK && cli_failed(&a->session, status);
}

static int fit(predict_args *a, const fgmm_model *start, int iterations, fgmm_model **out) {
    fgmm_fit_options o = FGMM_FIT_OPTIONS_INIT;
    o.init_model = start;
    o.covariance_type = (fgmm_covariance)a->covariance;
    o.max_iter = iterations;
    o.tol = -1.0;
    fgmm_status status = fgmm_fit(a->session.ctx, out, a->rows, &o, NULL);
    return status != FGMM_OK && cli_failed(&a->session, status);
}

/* Iterations of EM; the model that they end with is what rows are predicted by. */
static int iterate(predict_args *a, const fgmm_model *start, fgmm_model **out) {
    if (fit(a, start, a->reps + 1, out)) return 1;
    int n = bench_ticks_to_times(&a->ticks);
    if (n < 1) return cli_say("too few iterations to time"), 1;
    a->iteration = 1e3 * bench_median(a->ticks.at, n);
    return 0;
}

static fgmm_status go(predict_args *a, int way, const fgmm_model *model, int32_t *ids, float *resp, double *log_prob) {
    fgmm_context *ctx = a->session.ctx;
    fgmm_score_result score = {0};
    fgmm_status status = FGMM_OK;
    switch (way) {
    case 0: return fgmm_predict(ctx, model, a->rows, NULL, ids, NULL);
    case 1: return fgmm_assign(ctx, model, a->rows, TOP, NULL, ids, resp, NULL, NULL);
    case 2:
        status = fgmm_score(ctx, model, a->rows, NULL, &score, NULL);
        a->likelihood = score.log_likelihood;
        return status;
    default: return fgmm_score_samples(ctx, model, a->rows, NULL, log_prob, NULL);
    }
}

/* The model of one iteration more. */
static int go_on(predict_args *a, fgmm_model **model) {
    fgmm_model *next = NULL;
    if (fit(a, *model, 1, &next)) return 1;
    fgmm_model_free(a->session.ctx, *model);
    *model = next;
    return 0;
}

/* Rows that persist are predicted by a model that they have just been fitted by; those that do not, by one and the same. */
static int measure(predict_args *a, fgmm_model **model) {
    double *log_prob = cli_alloc(a->data.n, sizeof *log_prob, "log-densities");
    double *times = log_prob ? cli_alloc(a->reps, sizeof *times, "times") : NULL;
    int32_t *ids = times ? cli_alloc(TOP * a->data.n, sizeof *ids, "components") : NULL;
    float *resp = ids ? cli_alloc(TOP * a->data.n, sizeof *resp, "responsibilities") : NULL;
    int failed = !resp;
    for (int way = 0; way < WAYS && !failed; way++) {
        for (int i = -1; i < a->reps && !failed; i++) { /* the first is not counted */
            if (a->persist && go_on(a, model)) {
                failed = 1;
                break;
            }
            double start = bench_clock();
            fgmm_status status = go(a, way, *model, ids, resp, log_prob);
            if (i >= 0) times[i] = bench_clock() - start;
            failed = status != FGMM_OK && cli_failed(&a->session, status);
        }
        if (!failed) a->ms[way] = 1e3 * bench_median(times, a->reps);
    }
    free(resp);
    free(ids);
    free(times);
    free(log_prob);
    return failed;
}

static void print_result(const predict_args *a) {
    const bench_data *data = &a->data;
    if (a->json) {
        json_out j = json_begin(stdout);
        json_int(&j, "n_rows", data->n);
        json_int(&j, "n_features", data->d);
        json_int(&j, "n_components", data->k);
        json_text(&j, "covariance_type", fgmm_covariance_name((fgmm_covariance)a->covariance));
        json_text(&j, "data", bench_spread_name(data->spread));
        json_text(&j, "rows", a->host ? "host" : "device");
        json_int(&j, "persist", a->persist);
        json_text(&j, "device", fgmm_context_device(a->session.ctx));
        json_int(&j, "reps", a->reps);
        json_real(&j, "iteration_ms", a->iteration);
        for (int i = 0; i < WAYS; i++) json_real(&j, ways[i].key, a->ms[i]);
        json_real(&j, "log_likelihood", a->likelihood);
        json_end(&j);
        return;
    }
    printf("data           %lld rows x %lld features (f32), %s; %lld components, %s; rows on the %s%s\n",
           (long long)data->n, (long long)data->d, bench_spread_name(data->spread), (long long)data->k,
           fgmm_covariance_name((fgmm_covariance)a->covariance), a->host ? "host" : "device",
           a->persist ? ", which persist" : "");
    printf("device         %s\n", fgmm_context_device(a->session.ctx));
    printf("iteration      %.4g ms, median of %d\n", a->iteration, a->reps);
    for (int i = 0; i < WAYS; i++)
        printf("%-14s %.4g ms, %.3g of an iteration\n", ways[i].name, a->ms[i], a->ms[i] / a->iteration);
    printf("likelihood     %.10g nats a row\n", a->likelihood);
}

static int run(predict_args *a) {
    bench_case c = {0};
    fgmm_model *model = NULL;
    int failed = open_device(a);
    if (!failed)
        failed = bench_case_make(&c, &a->session, &a->data, (fgmm_covariance)a->covariance, 0) != CLI_DONE ||
                 load(a, &c) || persist(a) || iterate(a, c.start, &model) || measure(a, &model);
    if (!failed) print_result(a);
    fgmm_model_free(a->session.ctx, model);
    fgmm_rows_free(a->session.ctx, a->rows);
    bench_case_free(&c, &a->session);
    fgmm_context_free(a->session.ctx);
    if (a->buffer) clReleaseMemObject(a->buffer);
    if (a->queue) clReleaseCommandQueue(a->queue);
    if (a->context) clReleaseContext(a->context);
    return failed;
}

static const cli_command command = {
    .name = "bench-predict",
    .summary = "time predict and score of rows on an OpenCL device, beside iterations of EM",
    .usage = "--name DEVICE [OPTION]...",
    .example = "  flashgmm-bench-predict --name NVIDIA --n 1000000 --k 1024 --d 128\n",
};

int main(int argc, char **argv) {
    static predict_args a = {.data = {.n = 20000, .k = 256, .d = 64}, .covariance = FGMM_SPHERICAL, .reps = 20};
    const cli_option options[] = {
        {"name", 0, CLI_TEXT, &a.name, 0, 0, "NAME", "the first device whose name holds this"},
        {"n", 'n', CLI_INT64, &a.data.n, 1, 1e12, "N", "rows (default 20000)"},
        {"k", 'k', CLI_INT64, &a.data.k, 1, 1e9, "K", "components (default 256)"},
        {"d", 'd', CLI_INT64, &a.data.d, 1, 1e6, "D", "features (default 64)"},
        {"covariance", 0, CLI_CHOICE, &a.covariance, 0, 0, "spherical|diag|tied|full", "default spherical"},
        {"data", 0, CLI_CHOICE, &a.data.spread, 0, 0, BENCH_SPREADS, "default separated"},
        {"host", 0, CLI_FLAG, &a.host, 0, 0, NULL, "rows in the host's memory, brought over by each call"},
        {"persist", 0, CLI_FLAG, &a.persist, 0, 0, NULL, "rows that persist, each call after an iteration of EM"},
        {"reps", 0, CLI_INT, &a.reps, 1, BENCH_REPS_MAX, "N", "calls to time, and iterations (default 20)"},
        {"seed", 0, CLI_SEED, &a.data.seed, 0, 0, "S", "of the data"},
        {"json", 0, CLI_FLAG, &a.json, 0, 0, NULL, "print one JSON object on stdout"},
        {0},
    };
    int rc = cli_parse(&command, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (!a.name) return cli_usage(&command, "--name is missing");
    return run(&a) ? CLI_FAILED : CLI_DONE;
}
