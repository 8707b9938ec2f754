#include "cl_tuning.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANY = 0x7fffffff, PATH_SIZE = 1024, LINE_SIZE = 512, ROWS_MAX = 256 };

/*
 * Built in. Few shapes, since each is a program to build. Rows for the user's device are measured by `flashgmm tune`;
 * these hold wherever nobody has. A GPU has the registers for a screen of 8 x 8, which halves the reads of local memory
 * a multiply-add takes, where it has the 33 KB for it; the dense engine's float-floats leave room for 8 x 4. With no more
 * components than a work-group is wide one a work-item is enough. Chosen on an NVIDIA H200, November 2026; the screen's DT
 * of 16 on PoCL.
 */
static const cl_tuning_row built_in[] = {
    {"*", CL_TUNED_SCREEN, 1, 16, 1, ANY, {16, 16, 4, 1, 16}},
    {"gpu", CL_TUNED_SCREEN, 65, ANY, 1, ANY, {16, 8, 8, 8, 8}},
    {"*", CL_TUNED_SCREEN, 17, ANY, 1, ANY, {16, 16, 4, 4, 16}},
    {"*", CL_TUNED_SCREEN, 1, 8, 1, ANY, {8, 8, 4, 1, 16}},
    {"*", CL_TUNED_SCREEN, 1, ANY, 1, ANY, {8, 8, 4, 4, 16}},
    {"*", CL_TUNED_DENSE, 1, 16, 1, ANY, {16, 16, 4, 1, 0}},
    {"gpu", CL_TUNED_DENSE, 17, ANY, 1, ANY, {16, 8, 8, 4, 0}},
    {"*", CL_TUNED_DENSE, 17, ANY, 1, ANY, {16, 16, 4, 4, 0}},
    {"*", CL_TUNED_DENSE, 1, 8, 1, ANY, {8, 8, 4, 1, 0}},
    {"*", CL_TUNED_DENSE, 1, ANY, 1, ANY, {8, 8, 4, 4, 0}},
    {"*", CL_TUNED_WHITEN, 1, ANY, 1, 8, {8, 8, 8, 1, 8}},
    {"*", CL_TUNED_WHITEN, 1, ANY, 9, 32, {8, 16, 4, 4, 8}},
    {"*", CL_TUNED_WHITEN, 1, ANY, 33, ANY, {16, 16, 4, 4, 16}},
    {"*", CL_TUNED_WHITEN, 1, ANY, 1, ANY, {8, 8, 4, 4, 8}},
    {"*", CL_TUNED_SCATTER, 1, ANY, 1, 16, {8, 8, 2, 2, 0}},
    {"*", CL_TUNED_SCATTER, 1, ANY, 17, 32, {8, 8, 4, 4, 0}},
    {"*", CL_TUNED_SCATTER, 1, ANY, 33, ANY, {16, 16, 4, 4, 0}},
    {"*", CL_TUNED_SCATTER, 1, ANY, 1, ANY, {8, 8, 4, 4, 0}},
};

static const char *const kernel_names[CL_TUNED_KERNELS] = {"screen", "dense", "whiten", "scatter"};

/* ---- which row ---- */

static int has_depth(cl_tuned kernel) {
    return kernel == CL_TUNED_SCREEN || kernel == CL_TUNED_WHITEN;
}

/* Local memory of the kernel's larger form. */
static size_t local_bytes(cl_tuned kernel, const cl_tile *t) {
    size_t rows = (size_t)(t->gy * t->rm), columns = (size_t)(t->gx * t->rn), group = (size_t)(t->gx * t->gy);
    size_t gx = (size_t)t->gx, dt = (size_t)t->dt;
    switch (kernel) {
    case CL_TUNED_SCREEN: return 4 * (2 * dt * (rows + 4 + 2 * columns) + 7 * rows + 3 * columns);
    case CL_TUNED_DENSE: {
        size_t step = 16 * (rows + 4 + 3 * (columns + 4)), end = 3 * rows * (gx + 1);
        return 4 * ((step > end ? step : end) + 2 * rows);
    }
    case CL_TUNED_WHITEN: return 8 * (dt * (rows + 1 + columns) + rows * (gx + 1));
    default: return 16 * (8 * columns + group);
    }
}

/* An eighth is left for what the compiler puts beside it. */
static int runs_on(const fgmm_device *device, const cl_tuning_row *row) {
    const cl_tile *t = &row->tile;
    return (size_t)(t->gx * t->gy) <= device->max_work_group &&
           local_bytes(row->kernel, t) / 8 * 9 <= device->local_bytes;
}

static int is_for(const fgmm_device *device, const char *pattern) {
    if (strcmp(pattern, "*") == 0) return 1;
    if (strcmp(pattern, "gpu") == 0) return device->type == CL_DEVICE_TYPE_GPU;
    if (strcmp(pattern, "cpu") == 0) return device->type == CL_DEVICE_TYPE_CPU;
    return strstr(device->name, pattern) != NULL;
}

static const cl_tuning_row *find(const fgmm_device *device, const cl_tuning_row *rows, size_t count, cl_tuned kernel,
                                 cl_uint k, cl_uint d) {
    for (size_t i = 0; i < count; i++) {
        const cl_tuning_row *row = &rows[i];
        if (row->kernel == kernel && row->k_from <= k && k <= row->k_to && row->d_from <= d && d <= row->d_to &&
            is_for(device, row->device) && runs_on(device, row))
            return row;
    }
    return NULL;
}

cl_tile cl_tuning_tile(const fgmm_device *device, cl_tuned kernel, cl_uint k, cl_uint d) {
    const cl_tuning_row *row = find(device, device->tuning, device->n_tuning, kernel, k, d);
    if (!row) row = find(device, built_in, sizeof built_in / sizeof *built_in, kernel, k, d);
    return row ? row->tile : (cl_tile){8, 8, 4, 4, has_depth(kernel) ? 8 : 0};
}

/* ---- the user's rows ---- */

static int is_power(int value, int least, int most) {
    return value >= least && value <= most && (value & (value - 1)) == 0;
}

/* What the kernels ask of a tile; NULL, or what is wrong. */
static const char *wrong_tile(cl_tuned kernel, const cl_tile *t) {
    if (!is_power(t->gx, 4, 64) || !is_power(t->gy, 4, 64) || !is_power(t->rm, 1, 16) || !is_power(t->rn, 1, 16))
        return "GX, GY, RM and RN must be powers of two, up to 64 and 16";
    if (kernel == CL_TUNED_WHITEN && (!is_power(t->dt, 4, 64) || t->gx * t->rn % t->dt != 0))
        return "DT must be a power of two that divides GX * RN";
    if (kernel == CL_TUNED_SCREEN && !is_power(t->dt, 4, 16)) return "DT must be 4, 8 or 16";
    if (!has_depth(kernel) && t->dt != 0) return "DT must be 0 for this kernel";
    if (kernel != CL_TUNED_SCATTER && kernel != CL_TUNED_DENSE && t->gx < t->rm) return "GX must be at least RM";
    if (kernel == CL_TUNED_SCATTER && t->gx * t->rn != t->gy * t->rm) return "the tile must be square";
    return NULL;
}

static int read_range(const char *text, cl_uint *from, cl_uint *to) {
    char end;
    if (strcmp(text, "*") == 0) {
        *from = 1;
        *to = ANY;
        return 1;
    }
    return sscanf(text, "%u-%u%c", from, to, &end) == 2 && *from <= *to;
}

/* DEVICE, KERNEL, K, D, GX, GY, RM, RN, DT, with tabs between. NULL, or what is wrong. */
static const char *read_row(char *line, cl_tuning_row *row) {
    char *field[9];
    int count = 0;
    for (char *at = line; at && count < 9; count++) {
        field[count] = at;
        at = strchr(at, '\t');
        if (at) *at++ = '\0';
        if (at && count == 8) return "more than nine fields";
    }
    if (count < 9) return "fewer than nine fields with tabs between";
    if (!field[0][0] || strlen(field[0]) >= sizeof row->device) return "no device, or too long a name";
    memset(row, 0, sizeof *row);
    memcpy(row->device, field[0], strlen(field[0]) + 1);
    int kernel = 0, *const numbers[] = {&row->tile.gx, &row->tile.gy, &row->tile.rm, &row->tile.rn, &row->tile.dt};
    while (kernel < CL_TUNED_KERNELS && strcmp(field[1], kernel_names[kernel]) != 0) kernel++;
    if (kernel == CL_TUNED_KERNELS) return "no kernel of that name";
    row->kernel = (cl_tuned)kernel;
    if (!read_range(field[2], &row->k_from, &row->k_to) || !read_range(field[3], &row->d_from, &row->d_to))
        return "K and D are ranges such as 17-64, or *";
    for (int i = 0; i < 5; i++) {
        char *end;
        long value = strtol(field[4 + i], &end, 10);
        if (end == field[4 + i] || *end || value < 0 || value > 1024) return "a tile's number is none";
        *numbers[i] = (int)value;
    }
    return wrong_tile(row->kernel, &row->tile);
}

static int tuning_path(const char *own, char *out, size_t size) {
    const char *xdg = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    int length;
    if (own)
        length = snprintf(out, size, "%s", own);
    else if (xdg && *xdg == '/')
        length = snprintf(out, size, "%s/flashgmm/tuning.tsv", xdg);
    else if (home && *home == '/')
        length = snprintf(out, size, "%s/.config/flashgmm/tuning.tsv", home);
    else
        return 0;
    return length > 0 && (size_t)length < size;
}

/* Keeps a line's row if it is for this device. NULL, or what is wrong. */
static const char *add_row(fgmm_device *device, char *line) {
    cl_tuning_row *row = &device->tuning[device->n_tuning];
    const char *wrong = read_row(line, row);
    if (wrong || !is_for(device, row->device)) return wrong;
    if (strstr(device->name, row->device) && !runs_on(device, row)) return "the device has no room for it";
    device->n_tuning++;
    return NULL;
}

fgmm_status cl_tuning_load(fgmm_device *device) {
    const fgmm_host *host = &device->host;
    const char *own = getenv("FLASHGMM_TUNING");
    char path[PATH_SIZE], line[LINE_SIZE];
    if (own && !*own) own = NULL;
    if (!tuning_path(own, path, sizeof path)) return FGMM_OK;
    FILE *file = fopen(path, "r");
    if (!file) {
        if (own || (errno != ENOENT && errno != ENOTDIR))
            host->log(host->user, FGMM_LOG_WARNING, "tuning: cannot read %s: %s", path, strerror(errno));
        return FGMM_OK;
    }
    device->tuning = host->alloc(host->user, ROWS_MAX * sizeof *device->tuning);
    if (!device->tuning) {
        fclose(file);
        return host->fail(host->user, FGMM_ERR_MEMORY, "no memory for tuning rows");
    }
    for (int number = 1; fgets(line, sizeof line, file); number++) {
        size_t length = strcspn(line, "\r\n");
        const char *wrong = line[length] || feof(file) ? NULL : "too long a line";
        line[length] = '\0';
        if (!wrong && (line[0] == '#' || line[0] == '\0')) continue;
        if (device->n_tuning == ROWS_MAX) {
            host->log(host->user, FGMM_LOG_WARNING, "%s: rows after the first %d are left out", path, ROWS_MAX);
            break;
        }
        if (!wrong) wrong = add_row(device, line);
        if (wrong) host->log(host->user, FGMM_LOG_WARNING, "%s, line %d is left out: %s", path, number, wrong);
    }
    if (ferror(file)) host->log(host->user, FGMM_LOG_WARNING, "tuning: cannot read %s: %s", path, strerror(errno));
    fclose(file);
    return FGMM_OK;
}

void cl_tuning_free(fgmm_device *device) {
    if (device->tuning) device->host.free(device->host.user, device->tuning);
    device->tuning = NULL;
    device->n_tuning = 0;
}
