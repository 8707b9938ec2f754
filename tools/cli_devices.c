#include "cli_devices.h"

#include <stdlib.h>
#include <string.h>

/* ---- what was asked for ---- */

static int add_name(const cli_command *self, cli_devices *d, const char *name, size_t length) {
    if (d->n == CLI_DEVICES_MAX) return cli_usage(self, "more than %d devices", CLI_DEVICES_MAX);
    if (length == 0 || length >= CLI_DEVICE_NAME) return cli_usage(self, "--device: a name is empty or too long");
    memcpy(d->list[d->n].name, name, length);
    d->n++;
    return CLI_GO_ON;
}

int cli_list_gpus(char (*ids)[32], int most) {
    fgmm_context_options options = FGMM_CONTEXT_OPTIONS_INIT;
    const char *kept = getenv("FLASHGMM_DEVICE");
    fgmm_context *ctx = NULL;
    fgmm_device_info *list = NULL;
    int count = 0, found = 0;
    options.device = "auto"; /* opens nothing, and sees everything */
    if (kept && strcmp(kept, "cpu") == 0) return 0;
    if (fgmm_context_create(&ctx, &options) != FGMM_OK) return 0;
    if (fgmm_device_list(ctx, &list, &count, NULL, 0) != FGMM_OK) count = 0;
    for (int i = 0; i < count && found < most; i++)
        if (list[i].usable && !list[i].native && strcmp(list[i].kind, "cpu") != 0)
            memcpy(ids[found++], list[i].id, sizeof *ids);
    fgmm_device_list_free(ctx, list);
    fgmm_context_free(ctx);
    return found;
}

/* The CPU and all that OpenCL has beside it. */
static int add_all(const cli_command *self, cli_devices *d) {
    char ids[CLI_DEVICES_MAX - 1][32];
    int count = cli_list_gpus(ids, CLI_DEVICES_MAX - 1), rc = add_name(self, d, "cpu", 3);
    for (int i = 0; i < count && rc == CLI_GO_ON; i++) rc = add_name(self, d, ids[i], strlen(ids[i]));
    return rc;
}

static int parse_shares(const cli_command *self, cli_devices *d, const char *text) {
    double total = 0;
    const char *at = text;
    for (int i = 0; i < d->n; i++) {
        char *end;
        d->list[i].share = strtod(at, &end);
        if (end == at || *end != (i < d->n - 1 ? ',' : '\0') || !(d->list[i].share > 0 && d->list[i].share < 1e15))
            return cli_usage(self, "--shares: '%s' is not a list of %d positive numbers, one a device", text, d->n);
        total += d->list[i].share;
        at = end + 1;
    }
    for (int i = 0; i < d->n; i++) d->list[i].share /= total;
    d->given = 1;
    return CLI_GO_ON;
}

int cli_devices_parse(const cli_command *self, cli_devices *d, const char **device, const char *shares) {
    const char *text = *device ? *device : "";
    int rc = CLI_GO_ON, all = strcmp(text, "all") == 0;
    if (all) rc = add_all(self, d);
    for (const char *at = text; !all && strchr(text, ',') && rc == CLI_GO_ON;) {
        size_t length = strcspn(at, ",");
        rc = add_name(self, d, at, length);
        if (!at[length]) break;
        at += length + 1;
    }
    if (rc != CLI_GO_ON) return rc;
    if (shares && d->n == 0) return cli_usage(self, "--shares needs several devices: --device A,B or all");
    if (d->n > 0) *device = d->list[0].name;
    return shares ? parse_shares(self, d, shares) : CLI_GO_ON;
}

/* ---- opening ---- */

/* How many of the devices are the CPU. */
static int count_cpus(const cli_devices *d) {
    int count = 0;
    for (int i = 0; i < d->n; i++) count += strcmp(d->list[i].name, "cpu") == 0;
    return count;
}

/* Where the CPU is among the devices it gets all threads: for the others they do little. */
static int thread_sharers(const cli_devices *d, const cli_device *one) {
    int cpus = count_cpus(d);
    return cpus == 0 ? d->n : strcmp(one->name, "cpu") == 0 ? cpus : 1;
}

int cli_devices_threads(const cli_session *s, const cli_devices *d) {
    return d->n > 0 ? cli_threads_each(s, thread_sharers(d, &d->list[0])) : s->threads;
}

int cli_devices_open(const cli_command *self, cli_session *s, cli_devices *d, const cli_inputs *in, const char *data,
                     const char *format) {
    int rc = CLI_DONE;
    if (d->n == 0) return CLI_DONE;
    if (strcmp(data, "-") == 0) return cli_usage(self, "rows from a pipe are for one device");
    d->list[0].ctx = s->ctx;
    d->list[0].rows = in->rows;
    for (int i = 1; i < d->n && rc == CLI_DONE; i++) {
        cli_device *one = &d->list[i];
        rc = cli_open_another(self, s, one->name, thread_sharers(d, one), &one->ctx);
        if (rc != CLI_DONE) return rc;
        fgmm_status status = fgmm_rows_open(one->ctx, &one->rows, data, format);
        if (status == FGMM_OK && in->weights)
            status = fgmm_rows_set_weights(one->ctx, one->rows, in->weights, fgmm_rows_count(one->rows));
        if (status != FGMM_OK) return cli_say("%s: %s", one->name, fgmm_context_message(one->ctx)), CLI_FAILED;
    }
    return rc;
}

void cli_devices_close(cli_devices *d) {
    for (int i = 0; i < d->n; i++) {
        cli_device *one = &d->list[i];
        if (!one->ctx) continue;
        fgmm_rows_free(one->ctx, one->part);
        if (i == 0) continue; /* the session's */
        fgmm_rows_free(one->ctx, one->rows);
        fgmm_context_free(one->ctx);
    }
    d->n = 0;
}

/* ---- shares ---- */

enum { TRIAL_ROWS = 1 << 17, TRIALS = 4 };

/* Seconds that the device takes for the first rows at best; the first time, which builds kernels, does not count. */
static fgmm_status time_device(const cli_device *one, const fgmm_model *model, const fgmm_compute_options *compute,
                               double *seconds) {
    fgmm_rows *some = NULL;
    fgmm_stats *stats = NULL;
    int64_t n = fgmm_rows_count(one->rows);
    fgmm_status status = fgmm_rows_slice(one->ctx, &some, one->rows, 0, n < TRIAL_ROWS ? n : TRIAL_ROWS);
    if (status == FGMM_OK) status = fgmm_stats_create(one->ctx, &stats, model);
    for (int turn = 0; turn < TRIALS && status == FGMM_OK; turn++) {
        status = fgmm_stats_reset(one->ctx, stats, NULL);
        double began = cli_now();
        if (status == FGMM_OK) status = fgmm_stats_accumulate(one->ctx, stats, some, compute, NULL);
        double took = cli_now() - began;
        if (turn <= 1 || took < *seconds) *seconds = took;
    }
    fgmm_stats_free(one->ctx, stats);
    fgmm_rows_free(one->ctx, some);
    return status;
}

/* Devices of one name are alike, however they were timed: so their shares, and the model's bits, are the same each time. */
static void even_out(cli_devices *d) {
    double shares[CLI_DEVICES_MAX];
    for (int i = 0; i < d->n; i++) {
        double sum = 0;
        int alike = 0;
        for (int j = 0; j < d->n; j++) {
            if (strcmp(fgmm_context_device(d->list[i].ctx), fgmm_context_device(d->list[j].ctx)) != 0) continue;
            sum += d->list[j].share;
            alike++;
        }
        shares[i] = alike == d->n ? 1.0 / d->n : sum / alike;
    }
    for (int i = 0; i < d->n; i++) d->list[i].share = shares[i];
}

/* Shares in proportion to the devices' speeds. *culprit: the device that failed. */
static fgmm_status measure(const cli_session *s, cli_devices *d, const fgmm_rows *rows, const fgmm_fit_options *options,
                           int *culprit) {
    fgmm_model *model = NULL;
    fgmm_rows *some = NULL;
    double total = 0;
    int64_t n = fgmm_rows_count(rows);
    /* A start from the rows that are timed; all are read only where those few make none. */
    fgmm_status status = fgmm_rows_slice(s->ctx, &some, rows, 0, n < TRIAL_ROWS ? n : TRIAL_ROWS);
    if (status == FGMM_OK) status = fgmm_initial_model(s->ctx, &model, some, options);
    if (status != FGMM_OK && status != FGMM_ERR_CANCELLED) status = fgmm_initial_model(s->ctx, &model, rows, options);
    fgmm_rows_free(s->ctx, some);
    for (int i = 0; i < d->n && status == FGMM_OK; i++) {
        double seconds = 0;
        status = time_device(&d->list[i], model, &options->compute, &seconds);
        d->list[i].share = 1 / (seconds + 1e-9);
        total += d->list[i].share;
        *culprit = i;
    }
    for (int i = 0; i < d->n; i++) d->list[i].share /= total;
    if (status == FGMM_OK) even_out(d);
    fgmm_model_free(s->ctx, model);
    return status;
}

static fgmm_status share_out(const cli_session *s, cli_devices *d, const fgmm_rows *rows,
                             const fgmm_fit_options *options, int *culprit) {
    int64_t n = fgmm_rows_count(rows);
    double until = 0;
    fgmm_status status = d->given ? FGMM_OK : measure(s, d, rows, options, culprit);
    for (int i = 0; i < d->n && status == FGMM_OK; i++) {
        cli_device *one = &d->list[i];
        one->first = i ? d->list[i - 1].first + d->list[i - 1].n : 0;
        until += one->share;
        int64_t end = i == d->n - 1 ? n : (int64_t)(until * (double)n + 0.5), left = d->n - 1 - i;
        /* A row each at least. */
        if (end <= one->first) end = one->first + 1;
        if (end > n - left) end = n - left;
        one->n = end - one->first;
        *culprit = i;
        status = fgmm_rows_slice(one->ctx, &one->part, one->rows, one->first, one->n);
    }
    return status;
}

int cli_devices_fit(const cli_session *s, cli_devices *d, const cli_inputs *in, const fgmm_fit_options *options,
                    fgmm_model **out, fgmm_report *report, fgmm_status *status) {
    fgmm_context *contexts[CLI_DEVICES_MAX];
    const fgmm_rows *parts[CLI_DEVICES_MAX];
    fgmm_report reports[CLI_DEVICES_MAX];
    int culprit = 0;
    if (fgmm_rows_count(in->rows) < d->n) {
        cli_say("%lld rows are too few for %d devices", (long long)fgmm_rows_count(in->rows), d->n);
        return CLI_FAILED;
    }
    *status = share_out(s, d, in->rows, options, &culprit);
    if (*status != FGMM_OK && culprit > 0) {
        cli_say("%s: %s", d->list[culprit].name, fgmm_context_message(d->list[culprit].ctx));
        return CLI_FAILED;
    }
    if (*status != FGMM_OK) return CLI_DONE;
    for (int i = 0; i < d->n; i++) {
        contexts[i] = d->list[i].ctx;
        parts[i] = d->list[i].part;
        reports[i] = (fgmm_report)FGMM_REPORT_INIT;
    }
    *status = fgmm_fit_devices(contexts, d->n, out, parts, options, reports);
    for (int i = 0; i < d->n; i++) d->list[i].report = reports[i];
    *report = reports[0];
    return CLI_DONE;
}

/* ---- telling ---- */

void cli_devices_print(const cli_devices *d) {
    for (int i = 0; i < d->n; i++)
        printf("share       %.3f, %lld rows: %s\n", d->list[i].share, (long long)d->list[i].n,
               d->list[i].report.device);
}

void json_devices(json_out *j, const cli_devices *d) {
    if (d->n == 0) return;
    json_array(j, "devices");
    for (int i = 0; i < d->n; i++) {
        json_object(j);
        json_text(j, "device", d->list[i].report.device);
        json_real(j, "share", d->list[i].share);
        json_int(j, "n_rows", d->list[i].n);
        json_int(j, "peak_device_bytes", d->list[i].report.peak_device_bytes);
        json_close(j, '}');
    }
    json_close(j, ']');
}
