#include "cli_fitting.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int cli_is_model(const char *init) {
    return cli_ends_with(init, ".npz");
}

int cli_parse_init(const cli_command *self, const char *init, fgmm_init *out) {
    static const char *const names[] = {"kmeans++", "kmeans", "random", "random_from_data"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(init, names[i]) == 0) {
            *out = (fgmm_init)i;
            return CLI_GO_ON;
        }
    }
    if (cli_is_model(init)) return CLI_GO_ON;
    return cli_usage(self, "option --init: '%s' is not kmeans++, kmeans, random, random_from_data or a MODEL.npz",
                     init);
}

double cli_zero_is_off(double value) {
    return isnan(value) ? 0.0 : value == 0.0 ? -1.0 : value;
}

static int read_weights(const cli_session *s, cli_inputs *in, const char *path) {
    char why[512];
    int64_t n;
    if (npy_read_column(path, &in->weights, &n, why, sizeof why)) return cli_say("weights %s", why), CLI_FAILED;
    fgmm_status status = fgmm_rows_set_weights(s->ctx, in->rows, in->weights, n);
    return status == FGMM_OK ? CLI_DONE : cli_failed(s, status);
}

int cli_inputs_open(const cli_session *s, cli_inputs *in, const char *data, const char *format, const char *weights,
                    const char *init) {
    fgmm_status status = fgmm_rows_open(s->ctx, &in->rows, data, format);
    if (status == FGMM_OK && cli_is_model(init)) status = fgmm_model_load(s->ctx, &in->start, init);
    if (status != FGMM_OK) return cli_failed(s, status);
    return weights ? read_weights(s, in, weights) : CLI_DONE;
}

void cli_inputs_free(const cli_session *s, cli_inputs *in) {
    fgmm_model_free(s->ctx, in->start);
    fgmm_rows_free(s->ctx, in->rows);
    free(in->weights);
    *in = (cli_inputs){0};
}

void cli_print_data(const cli_inputs *in, const fgmm_report *r) {
    printf("data        %lld rows x %lld features (%s)", (long long)r->n_rows, (long long)fgmm_rows_features(in->rows),
           cli_dtype_name(fgmm_rows_type(in->rows)));
    if (r->n_skipped) printf(", %lld left out", (long long)r->n_skipped);
    printf("\n");
}

void cli_print_device(const fgmm_report *r) {
    printf("device      %s, precision %s, engine %s\n", r->device, cli_precision_name(r->precision),
           cli_engine_name(r->engine));
}

void cli_print_iterations(const fgmm_report *r) {
    printf("iterations  %d, %s\n", r->n_iter, r->converged ? "converged" : "not converged");
}

void cli_print_time(const fgmm_report *r) {
    printf("time        %.3f s, %.3g ms an iteration\n", r->seconds, r->seconds_per_iteration * 1e3);
    printf("components  %.3g evaluated exactly a row\n", r->survivors_per_row);
}

void json_run(json_out *j, const fgmm_report *r) {
    json_text(j, "device", r->device);
    json_text(j, "precision", cli_precision_name(r->precision));
    json_text(j, "engine", cli_engine_name(r->engine));
    json_int(j, "n_iter", r->n_iter);
    json_bool(j, "converged", r->converged);
}

void json_cost(json_out *j, const fgmm_report *r) {
    json_real(j, "seconds", r->seconds);
    json_real(j, "seconds_per_iteration", r->seconds_per_iteration);
    json_real(j, "survivors_per_row", r->survivors_per_row);
    json_real(j, "dropped_mass", r->dropped_mass);
    json_int(j, "peak_host_bytes", r->peak_host_bytes);
    json_int(j, "peak_device_bytes", r->peak_device_bytes);
    json_warnings(j, r);
}
