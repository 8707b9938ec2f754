/*
 * The CPU screen's promise, by brute force: every component whose r/w lies above its row's cut is on the row's list,
 * or the row is left to the dense engine. Each instruction set this machine has; both covariance types; data on which
 * f32 rounds badly. And the product engine's: the logits of the rows it takes are within its bound, and far within it
 * as a rule.
 */
#include <check.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../cpu/cpu.h"

static void *host_alloc(void *user, size_t bytes) {
    (void)user;
    return aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
}
static void host_free(void *user, void *pointer) {
    (void)user;
    free(pointer);
}
static fgmm_status host_fail(void *user, fgmm_status status, const char *format, ...) {
    (void)user;
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    return status;
}

static uint64_t state;

static double uniform(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}

static double normal(void) {
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

/* A mixture and rows for it. */
typedef struct {
    int64_t n, k, d;
    int diag;
    double *means, *variances, *weights, *log_weights, *half, *log_norm, *centre, *scale;
    float *x;
    fgmm_params params;
} problem;

static double *doubles(int64_t n) {
    double *p = calloc((size_t)n, sizeof *p);
    ck_assert_ptr_nonnull(p);
    return p;
}

/* Means spread by `spread` about `offset`; deviations over `orders` orders of magnitude from `deviation` down. */
static problem make(int64_t n, int64_t k, int64_t d, int diag, double offset, double spread, double deviation,
                    double orders) {
    int64_t per = diag ? d : 1;
    problem p = {.n = n,
                 .k = k,
                 .d = d,
                 .diag = diag,
                 .means = doubles(k * d),
                 .variances = doubles(k * per),
                 .weights = doubles(k),
                 .log_weights = doubles(k),
                 .half = doubles(k * per),
                 .log_norm = doubles(k),
                 .centre = doubles(d),
                 .scale = doubles(d),
                 .x = calloc((size_t)(n * d), sizeof(float))};
    double total = 0, widest = 0, log_norm_max = -INFINITY;
    for (int64_t i = 0; i < k * d; i++) p.means[i] = offset + spread * normal();
    for (int64_t i = 0; i < k * per; i++) p.variances[i] = pow(deviation * pow(10, -orders * uniform()), 2);
    for (int64_t i = 0; i < k; i++) total += p.weights[i] = i == 1 ? 0 : 0.01 + uniform();
    for (int64_t i = 0; i < k; i++) {
        p.weights[i] /= total;
        p.log_weights[i] = p.weights[i] > 0 ? log(p.weights[i]) : FGMM_LOG_ZERO;
        double log_det = 0;
        for (int64_t j = 0; j < d; j++) {
            double variance = p.variances[diag ? i * d + j : i];
            log_det += log(variance);
            p.half[diag ? i * d + j : i] = 0.5 / variance;
        }
        p.log_norm[i] = -0.5 * (1.8378770664093455 * (double)d + log_det);
        if (p.weights[i] > 0) log_norm_max = fmax(log_norm_max, p.log_norm[i]);
    }
    for (int64_t j = 0; j < d; j++) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < k; i++) mean += p.weights[i] * p.means[i * d + j];
        p.centre[j] = (float)mean;
        for (int64_t i = 0; i < k; i++) square += p.weights[i] * pow(p.means[i * d + j] - p.centre[j], 2);
        p.scale[j] = exp2(-round(0.5 * log2(square + 1e-30)));
        widest = fmax(widest, square);
    }
    for (int64_t j = 0; !diag && j < d; j++) p.scale[j] = exp2(-round(0.5 * log2(widest + 1e-30)));
    for (int64_t i = 0; i < n; i++) {
        int64_t c = (int64_t)(uniform() * (double)k), other = (int64_t)(uniform() * (double)k);
        double share = i % 3 ? 0 : uniform(); /* every third row lies between two clusters */
        for (int64_t j = 0; j < d; j++) {
            double mean = (1 - share) * p.means[c * d + j] + share * p.means[other * d + j];
            p.x[i * d + j] = (float)(mean + sqrt(p.variances[diag ? c * d + j : c]) * normal());
        }
    }
    p.params = (fgmm_params){.covariance_type = diag ? FGMM_DIAG : FGMM_SPHERICAL,
                             .k = k,
                             .d = d,
                             .means = p.means,
                             .half_inv_var = p.half,
                             .log_weights = p.log_weights,
                             .weights = p.weights,
                             .log_norm = p.log_norm,
                             .centre = p.centre,
                             .scale = p.scale,
                             .sum_centres = p.means,
                             .cut = 1e-8,
                             .log_norm_max = log_norm_max,
                             .engine = FGMM_ENGINE_SCREEN};
    return p;
}

static void drop(problem *p) {
    void *held[] = {p->means,  p->variances, p->weights, p->log_weights, p->half, p->log_norm,
                    p->centre, p->scale,     p->x};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) free(held[i]);
}

/* Logits of a row in long double, -HUGE_VALL for weight 0. @return log p(x). */
static long double exact_logits(const problem *p, const float *x, long double *l) {
    long double best = -HUGE_VALL, sum = 0;
    for (int64_t k = 0; k < p->k; k++) {
        long double q = 0;
        for (int64_t j = 0; j < p->d; j++) {
            long double t = (long double)x[j] - p->means[k * p->d + j];
            q += p->half[p->diag ? k * p->d + j : k] * t * t;
        }
        l[k] = p->weights[k] > 0 ? (long double)p->log_weights[k] + p->log_norm[k] - q : -HUGE_VALL;
        if (l[k] > best) best = l[k];
    }
    for (int64_t k = 0; k < p->k; k++) sum += expl(l[k] - best);
    return best + logl(sum);
}

/* Checks one instruction set on a problem; *listed counts rows that the screen judged. */
static void check_screen(const problem *p, const cpu_kernels *kernels, int64_t *listed) {
    fgmm_device device = {
        .host = {.alloc = host_alloc, .free = host_free, .fail = host_fail}, .kernels = kernels, .params = &p->params};
    ck_assert_int_eq(cpu_pack_begin(&device), FGMM_OK);
    const cpu_pack *pack = &device.pack;
    if (pack->sparse_max == 0) { /* too small a model for a screen */
        ck_assert_int_lt(p->k * p->d, 512);
        cpu_pack_free(&device);
        return;
    }
    ck_assert_ptr_nonnull(pack->coef);
    cpu_screen_rows *rows = aligned_alloc(64, (sizeof *rows + 63) / 64 * 64);
    float *x = calloc((size_t)(CPU_TILE_ROWS * p->d), sizeof *x),
          *packed = calloc((size_t)(CPU_TILE_ROWS * pack->depth), sizeof *packed);
    long double *l = calloc((size_t)p->k, sizeof *l);
    for (int64_t first = 0; first < p->n; first += CPU_TILE_ROWS) {
        int n = (int)(p->n - first < CPU_TILE_ROWS ? p->n - first : CPU_TILE_ROWS);
        /* Half of the rows start from a lower bound of their log-density, as after a first pass. */
        for (int i = 0; i < n; i++) {
            long double log_p = exact_logits(p, p->x + (first + i) * p->d, l);
            rows->best[i] = i % 2 ? (float)(log_p - 0.7L - 1e-6L * fabsl(log_p)) : -INFINITY;
        }
        for (int64_t i = 0; i < n * p->d; i++) x[i] = p->x[first * p->d + i] - pack->centre[i % p->d];
        int shifted = first % (2 * CPU_TILE_ROWS) != 0;
        kernels->pack_rows(pack, shifted ? x : p->x + first * p->d, p->d, shifted, n, packed, rows->norm);
        kernels->screen(pack, packed, n, rows);
        for (int i = 0; i < n; i++) {
            if (rows->count[i] > CPU_CANDIDATES) continue;
            ++*listed;
            long double log_p = exact_logits(p, p->x + (first + i) * p->d, l), log_cut = logl(p->params.cut);
            long double log_rho = log_cut - logl(1 + 2 * fmaxl(0, p->params.log_norm_max - log_p - log_cut));
            for (int64_t c = 0; c < pack->live; c++) {
                int64_t k = pack->ids[c];
                int on_list = 0;
                for (int at = 0; at < rows->count[i]; at++) on_list |= rows->id[i][at] == c;
                ck_assert_msg(
                    on_list || l[k] - p->log_weights[k] - log_p <= log_rho,
                    "%s, K %lld, D %lld, %s: component %lld of row %lld was screened out with log r/w %Lg, cut %Lg",
                    kernels->name, (long long)p->k, (long long)p->d, p->diag ? "diag" : "spherical", (long long)k,
                    (long long)(first + i), l[k] - p->log_weights[k] - log_p, log_rho);
            }
        }
    }
    free(rows);
    free(x);
    free(packed);
    free(l);
    cpu_pack_free(&device);
}

/* offset, spread, deviation, orders of magnitude; the last ones leave f32 few or no digits of the logits */
static const double settings[][4] = {{0, 1, 1, 0},     {0, 3, 1, 0},        {0, 1, 1, 4},
                                     {1e3, 1, 0.3, 1}, {1e3, 100, 1e-3, 0}, {-50, 1e-2, 1e-2, 2}};

START_TEST(nothing_that_matters_is_screened_out) {
    const double *s = settings[_i / 2];
    const int64_t shapes[][2] = {{530, 1}, {180, 3}, {67, 17}, {131, 64}, {50, 300}};
    int64_t listed = 0;
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        problem p = make(400, shapes[shape][0], shapes[shape][1], _i % 2, s[0], s[1], s[2], s[3]);
        for (int isa = 0; cpu_kernel_tables[isa]; isa++)
            if (cpu_isa_supported(cpu_kernel_tables[isa]->name)) check_screen(&p, cpu_kernel_tables[isa], &listed);
        drop(&p);
    }
    /* A screen that leaves everything to the dense engine would pass the check above. */
    ck_assert_int_gt(listed, 0);
}
END_TEST

/* The product engine on clusters that lie within each other. @return rows it took; *worst: the largest error of a
 * logit. */
static int64_t check_products(const problem *p, const cpu_kernels *kernels, double *worst) {
    fgmm_device device = {
        .host = {.alloc = host_alloc, .free = host_free, .fail = host_fail}, .kernels = kernels, .params = &p->params};
    ck_assert_int_eq(cpu_pack_begin(&device), FGMM_OK);
    ck_assert_int_eq(cpu_products_open(&device), FGMM_OK);
    const cpu_products *products = &device.pack.products;
    int64_t taken = 0, rows = kernels->rows, depth = device.pack.depth;
    float *packed = calloc((size_t)(CPU_TILE_ROWS * depth), sizeof *packed), norm[CPU_TILE_ROWS];
    float *x = aligned_alloc(64, (size_t)(rows * products->stride) * sizeof *x / 64 * 64 + 64);
    double *square = doubles(rows), *out = doubles(rows * products->wide);
    long double *l = calloc((size_t)p->k, sizeof *l);
    memset(x, 0, (size_t)(rows * products->stride) * sizeof *x);
    for (int64_t i = 0; i < p->n; i++) {
        kernels->pack_rows(&device.pack, p->x + i * p->d, p->d, 0, 1, packed, norm);
        if (!cpu_product_fits(&device, packed)) continue;
        taken++;
        memcpy(x, packed, (size_t)depth * sizeof *x);
        square[0] = 0;
        for (int64_t j = 0; j < p->d; j++) {
            double value = packed[depth - p->d + j];
            square[0] += (p->diag ? products->mean_half[j] : 1) * value * value;
        }
        kernels->product_logits(products, x, square, (int)rows, out);
        exact_logits(p, p->x + i * p->d, l);
        for (int64_t c = 0; c < device.pack.live; c++) {
            double error = fabs((double)(out[c] - l[device.pack.ids[c]]));
            *worst = fmax(*worst, error);
            ck_assert_msg(error <= 5e-5, "%s, K %lld, D %lld: logit %lld of row %lld is off by %g", kernels->name,
                          (long long)p->k, (long long)p->d, (long long)c, (long long)i, error);
        }
    }
    free(packed);
    free(x);
    free(square);
    free(out);
    free(l);
    cpu_pack_free(&device);
    return taken;
}

START_TEST(products_are_near_enough) {
    const int64_t shapes[][2] = {{600, 1}, {200, 3}, {67, 17}, {131, 64}, {90, 300}};
    int64_t taken = 0;
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        int64_t d = shapes[shape][1];
        problem p = make(400, shapes[shape][0], d, _i % 2, _i < 2 ? 0 : 1e3, 0.7 / sqrt((double)d), 1, 0.05);
        for (int isa = 0; cpu_kernel_tables[isa]; isa++) {
            double worst = 0;
            if (!cpu_isa_supported(cpu_kernel_tables[isa]->name)) continue;
            taken += check_products(&p, cpu_kernel_tables[isa], &worst);
            /* What the sums over rows rely on: roundings that do not agree. */
            ck_assert_msg(worst <= 5e-6, "%s, D %lld: a logit is off by %g", cpu_kernel_tables[isa]->name, (long long)d,
                          worst);
        }
        drop(&p);
    }
    ck_assert_int_gt(taken, 1000);
}
END_TEST

int main(void) {
    const char *seed = getenv("FLASHGMM_TEST_SEED");
    state = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
    printf("screen, FLASHGMM_TEST_SEED=%llu\n", (unsigned long long)state);
    Suite *suite = suite_create("screen");
    TCase *room = tcase_create("bound");
    tcase_set_timeout(room, 0);
    tcase_add_loop_test(room, nothing_that_matters_is_screened_out, 0, (int)(2 * sizeof settings / sizeof *settings));
    tcase_add_loop_test(room, products_are_near_enough, 0, 4);
    suite_add_tcase(suite, room);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
