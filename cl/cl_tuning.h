/*
 * Tiles of the tiled kernels, as data: rows for device classes, the user's own before those built in. Part of cl/ only.
 */
#ifndef FGMM_CL_TUNING_H
#define FGMM_CL_TUNING_H

#include "cl_runtime.h"

/* Work-group and micro-tile of a tiled kernel; features a step of the screen and of those that whiten, else 0. */
typedef struct cl_tile {
    int gx, gy, rm, rn, dt;
} cl_tile;

typedef enum cl_tuned {
    CL_TUNED_SCREEN,  /* screen.cl */
    CL_TUNED_DENSE,   /* dense.cl */
    CL_TUNED_WHITEN,  /* whiten.cl and screen_full.cl */
    CL_TUNED_SCATTER, /* scatter.cl */
    CL_TUNED_KERNELS
} cl_tuned;

/* One row: the first that is for the device, K and D and that the device can run is taken. */
typedef struct cl_tuning_row {
    char device[96]; /* "*", "gpu", "cpu", or a part of the name */
    cl_tuned kernel;
    cl_uint k_from, k_to, d_from, d_to;
    cl_tile tile;
} cl_tuning_row;

/* Reads the user's rows for this device: the file FLASHGMM_TUNING, else flashgmm/tuning.tsv in the folder for configuration. A row that
 * is none, or that names this device and cannot run on it, is left out with a warning that names it. */
fgmm_status cl_tuning_load(fgmm_device *device);
void cl_tuning_free(fgmm_device *device);

cl_tile cl_tuning_tile(const fgmm_device *device, cl_tuned kernel, cl_uint k, cl_uint d);

#endif
