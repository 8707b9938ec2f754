/* flashgmm-bench-clblast: the unfused way, to be measured against. The product of rows and means by CLBlast into a
 * stored block of N x K logits, then a row log-sum-exp over it; no statistics. A program of its own, because
 * `flashgmm` itself must start without OpenCL. */
#include "bench_data.h"
#include "bench_opencl.h"
#include "cli.h"

#include <clblast_c.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = 64, BLOCKS_MAX = 4096 };

typedef struct baseline {
    bench_data data;
    const char *name;
    int reps, json;
    cl_context context;
    cl_command_queue queue;
    cl_program program;
    cl_kernel lse;
    cl_mem x[BLOCKS_MAX], means, half_norm, logits, out;
    int64_t block_rows;
    int blocks;
} baseline;

static int open_device(baseline *b) {
    cl_int code = CL_SUCCESS;
    cl_device_id device = NULL;
    if (bench_opencl_open(b->name, 1, &device, &b->context, &b->queue)) return 1;
    const char *text = cl_sources[0].text;
    b->program = clCreateProgramWithSource(b->context, 1, &text, NULL, &code);
    if (bench_opencl_failed(code, "clCreateProgramWithSource")) return 1;
    code = clBuildProgram(b->program, 1, &device, "-cl-std=CL1.2 -DGROUP=64", NULL, NULL);
    if (bench_opencl_failed(code, "clBuildProgram")) return 1;
    b->lse = clCreateKernel(b->program, "bench_lse", &code);
    if (bench_opencl_failed(code, "clCreateKernel")) return 1;

    /* As large a block of logits as a quarter of what one buffer may be, and no more than 1 GiB. */
    cl_ulong max_alloc = 0;
    clGetDeviceInfo(device, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof max_alloc, &max_alloc, NULL);
    double room = max_alloc / 4.0 < 0x1p30 ? max_alloc / 4.0 : 0x1p30;
    int64_t wider = b->data.k > b->data.d ? b->data.k : b->data.d;
    b->block_rows = (int64_t)(room / 4.0 / (double)wider);
    if (b->block_rows > b->data.n) b->block_rows = b->data.n;
    if (b->block_rows < 1 || (b->data.n - 1) / b->block_rows >= BLOCKS_MAX) {
        return bench_opencl_failed(CL_MEM_OBJECT_ALLOCATION_FAILURE, "fitting a block of logits");
    }
    b->blocks = (int)((b->data.n - 1) / b->block_rows + 1);
    return 0;
}

static cl_mem new_buffer(const baseline *b, cl_mem_flags flags, int64_t floats, const float *from, cl_int *code) {
    if (*code != CL_SUCCESS) return NULL;
    return clCreateBuffer(b->context, flags | (from ? CL_MEM_COPY_HOST_PTR : 0), (size_t)floats * sizeof(float),
                          (void *)(uintptr_t)from, code);
}

static int64_t rows_in(const baseline *b, int block) {
    int64_t left = b->data.n - block * b->block_rows;
    return left < b->block_rows ? left : b->block_rows;
}

/* Makes the data and brings it over. */
static int load(baseline *b) {
    int64_t n = b->data.n, k = b->data.k, d = b->data.d;
    cl_int code = CL_OUT_OF_HOST_MEMORY;
    float *x = malloc((size_t)(n * d) * sizeof *x), *centres = malloc((size_t)(k * d) * sizeof *centres);
    float *means = malloc((size_t)(k * d) * sizeof *means), *half_norm = malloc((size_t)k * sizeof *half_norm);
    if (x && centres && means && half_norm) {
        bench_centres(&b->data, centres);
        bench_rows(&b->data, centres, x);
        bench_start(&b->data, centres, means);
        for (int64_t i = 0; i < k; i++) {
            double sum = 0;
            for (int64_t j = 0; j < d; j++) sum += (double)means[i * d + j] * means[i * d + j];
            half_norm[i] = (float)(0.5 * sum);
        }
        code = CL_SUCCESS;
        for (int i = 0; i < b->blocks; i++) {
            b->x[i] = new_buffer(b, CL_MEM_READ_ONLY, rows_in(b, i) * d, x + i * b->block_rows * d, &code);
        }
        b->means = new_buffer(b, CL_MEM_READ_ONLY, k * d, means, &code);
        b->half_norm = new_buffer(b, CL_MEM_READ_ONLY, k, half_norm, &code);
        b->logits = new_buffer(b, CL_MEM_READ_WRITE, b->block_rows * k, NULL, &code);
        b->out = new_buffer(b, CL_MEM_WRITE_ONLY, b->block_rows, NULL, &code);
    }
    free(half_norm);
    free(means);
    free(centres);
    free(x);
    return bench_opencl_failed(code, "bringing the data to the device");
}

static int run_block(const baseline *b, int block) {
    size_t n = (size_t)rows_in(b, block), k = (size_t)b->data.k, d = (size_t)b->data.d;
    cl_command_queue queue = b->queue;
    CLBlastStatusCode product =
        CLBlastSgemm(CLBlastLayoutRowMajor, CLBlastTransposeNo, CLBlastTransposeYes, n, k, d, 1.0f, b->x[block], 0, d,
                     b->means, 0, d, 0.0f, b->logits, 0, k, &queue, NULL);
    if (bench_opencl_failed((cl_int)product, "CLBlastSgemm")) return 1;
    cl_int ki = (cl_int)k, di = (cl_int)d;
    cl_float rest = (cl_float)(-0.5 * (double)d * log(2.0 * 3.14159265358979323846) - log((double)k));
    const struct {
        size_t size;
        const void *value;
    } args[] = {{sizeof(cl_mem), &b->logits},
                {sizeof(cl_mem), &b->half_norm},
                {sizeof(cl_mem), &b->x[block]},
                {sizeof ki, &ki},
                {sizeof di, &di},
                {sizeof rest, &rest},
                {sizeof(cl_mem), &b->out}};
    cl_int code = CL_SUCCESS;
    for (cl_uint i = 0; i < sizeof args / sizeof args[0]; i++)
        code |= clSetKernelArg(b->lse, i, args[i].size, args[i].value);
    if (bench_opencl_failed(code, "clSetKernelArg")) return 1;
    size_t global = n * GROUP, local = GROUP;
    return bench_opencl_failed(clEnqueueNDRangeKernel(queue, b->lse, 1, NULL, &global, &local, 0, NULL, NULL),
                               "bench_lse");
}

/* One pass over all rows. @param mean NULL, or where the mean log-likelihood goes (the values are then fetched) */
static int pass(const baseline *b, double *mean) {
    float *values = mean ? malloc((size_t)b->block_rows * sizeof *values) : NULL;
    double sum = 0;
    int failed = mean && !values;
    for (int i = 0; i < b->blocks && !failed; i++) {
        failed = run_block(b, i);
        if (!mean || failed) continue;
        size_t n = (size_t)rows_in(b, i);
        failed = bench_opencl_failed(
            clEnqueueReadBuffer(b->queue, b->out, CL_TRUE, 0, n * sizeof *values, values, 0, NULL, NULL),
            "clEnqueueReadBuffer");
        for (size_t r = 0; r < n && !failed; r++) sum += values[r];
    }
    free(values);
    if (mean) *mean = sum / (double)b->data.n;
    return failed || bench_opencl_failed(clFinish(b->queue), "clFinish");
}

static void print_result(const baseline *b, double seconds, double gflops, double mean) {
    static const char what[] = "CLBlast product and log-sum-exp over stored logits, no statistics";
    if (!b->json) {
        printf("%.4g ms, %.4g GFLOP/s: %s\n", seconds * 1e3, gflops, what);
        return;
    }
    json_out j = json_begin(stdout);
    json_text(&j, "what", what);
    json_text(&j, "device", b->name);
    json_real(&j, "ms", seconds * 1e3);
    json_real(&j, "gflops", gflops);
    json_int(&j, "logit_bytes", b->block_rows * b->data.k * 4);
    json_real(&j, "log_likelihood", mean);
    json_end(&j);
}

static int measure(const baseline *b) {
    double mean = 0, *times = malloc((size_t)b->reps * sizeof *times);
    int failed = !times || pass(b, &mean); /* the first pass builds CLBlast's kernels */
    for (int i = 0; i < b->reps && !failed; i++) {
        double start = bench_clock();
        failed = pass(b, NULL);
        times[i] = bench_clock() - start;
    }
    if (!failed) {
        double t = bench_median(times, b->reps);
        double flops = 2.0 * (double)b->data.n * (double)b->data.k * (double)b->data.d;
        print_result(b, t, flops / t * 1e-9, mean);
    }
    free(times);
    return failed;
}

static void close_device(baseline *b) {
    for (int i = 0; i < b->blocks; i++) {
        if (b->x[i]) clReleaseMemObject(b->x[i]);
    }
    cl_mem rest[] = {b->means, b->half_norm, b->logits, b->out};
    for (int i = 0; i < 4; i++) {
        if (rest[i]) clReleaseMemObject(rest[i]);
    }
    if (b->lse) clReleaseKernel(b->lse);
    if (b->program) clReleaseProgram(b->program);
    if (b->queue) clReleaseCommandQueue(b->queue);
    if (b->context) clReleaseContext(b->context);
}

static const cli_command command = {
    .name = "bench-clblast",
    .summary = "the unfused baseline of `flashgmm bench estep`",
    .usage = "--name DEVICE [OPTION]...",
    .example = "  flashgmm bench estep --device opencl --baseline\n",
};

int main(int argc, char **argv) {
    baseline b = {.data = {.n = 100000, .k = 256, .d = 64}, .reps = 5};
    const cli_option options[] = {
        {"name", 0, CLI_TEXT, &b.name, 0, 0, "DEVICE", "the device's whole name"},
        {"n", 'n', CLI_INT64, &b.data.n, 1, 1e12, "N", "rows"},
        {"k", 'k', CLI_INT64, &b.data.k, 1, 1e9, "K", "components"},
        {"d", 'd', CLI_INT64, &b.data.d, 1, 1e6, "D", "features"},
        {"data", 0, CLI_CHOICE, &b.data.spread, 0, 0, BENCH_SPREADS, "default separated"},
        {"reps", 0, CLI_INT, &b.reps, 1, 10000, "N", "passes to time"},
        {"seed", 0, CLI_SEED, &b.data.seed, 0, 0, "S", "of the data"},
        {"json", 0, CLI_FLAG, &b.json, 0, 0, NULL, "print one JSON object on stdout"},
        {0},
    };
    int rc = cli_parse(&command, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;
    if (!b.name) return cli_usage(&command, "--name is missing");
    int failed = open_device(&b) || load(&b) || measure(&b);
    close_device(&b);
    return failed ? CLI_FAILED : CLI_DONE;
}
