/* flashgmm devices: what this machine can compute on. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

static void print_bytes(const char *label, int64_t bytes) {
    if (bytes >= (int64_t)1 << 30) {
        printf("%s %.1f GiB", label, (double)bytes / (double)((int64_t)1 << 30));
    } else if (bytes > 0) {
        printf("%s %lld KiB", label, (long long)(bytes >> 10));
    }
}

static void print_device(const fgmm_device_info *d) {
    printf("%-12s %s%s%s\n", d->id, d->name, d->is_default ? "  [default]" : "", d->usable ? "" : "  [not usable]");
    printf("%-12s %s%s, %d %s", "", d->kind, d->native ? ", native" : "", d->compute_units,
           d->native ? "threads" : "compute units");
    print_bytes(", memory", d->memory_bytes);
    print_bytes(", local", d->local_bytes);
    printf("%s\n", d->fp64 ? ", fp64" : "");
    if (d->vendor[0]) printf("%-12s %s, driver %s\n", "", d->vendor, d->driver);
    if (d->note[0]) printf("%-12s note: %s\n", "", d->note);
}

static void print_json(const fgmm_device_info *list, int count, const char *note) {
    json_out j = json_begin(stdout);
    json_array(&j, "devices");
    for (int i = 0; i < count; i++) {
        const fgmm_device_info *d = &list[i];
        json_object(&j);
        json_text(&j, "id", d->id);
        json_text(&j, "name", d->name);
        json_text(&j, "vendor", d->vendor);
        json_text(&j, "driver", d->driver);
        json_text(&j, "kind", d->kind);
        json_bool(&j, "native", d->native);
        json_bool(&j, "usable", d->usable);
        json_bool(&j, "default", d->is_default);
        json_bool(&j, "fp64", d->fp64);
        json_int(&j, "compute_units", d->compute_units);
        json_int(&j, "memory_bytes", d->memory_bytes);
        json_int(&j, "max_alloc_bytes", d->max_alloc_bytes);
        json_int(&j, "local_bytes", d->local_bytes);
        json_text(&j, "note", d->note);
        json_close(&j, '}');
    }
    json_close(&j, ']');
    json_text(&j, "note", note);
    json_end(&j);
}

static int run(const cli_command *self, int argc, char **argv) {
    cli_session s = {0};
    const cli_option options[] = {
        {"json", 0, CLI_FLAG, &s.json, 0, 0, NULL, "print one JSON object on stdout"},
        {0},
    };
    int rc = cli_parse(self, options, argc, argv, NULL);
    if (rc != CLI_GO_ON) return rc;

    /* A device named in the environment may be absent, which is when this list is wanted; "cpu" keeps OpenCL alone. */
    const char *wish = getenv("FLASHGMM_DEVICE");
    s.device = wish && strcmp(wish, "cpu") == 0 ? NULL : "auto";
    rc = cli_open(self, &s);
    if (rc != CLI_DONE) return rc;

    fgmm_device_info *list = NULL;
    int count = 0;
    char note[1024] = "";
    fgmm_status status = fgmm_device_list(s.ctx, &list, &count, note, sizeof note);
    if (status != FGMM_OK) {
        rc = cli_failed(&s, status);
    } else if (s.json) {
        print_json(list, count, note);
    } else {
        for (int i = 0; i < count; i++) print_device(&list[i]);
        if (note[0]) printf("%s\n", note);
    }
    fgmm_device_list_free(s.ctx, list);
    cli_close(&s);
    return rc;
}

const cli_command cmd_devices = {
    .name = "devices",
    .summary = "list the CPU and the OpenCL devices",
    .usage = "[--json]",
    .example = "  flashgmm devices\n",
    .run = run,
};
