/*
 * Parameters on the device, from the doubles of fgmm_params: in the screen's form (rows and means centred and scaled,
 * constants with their error bounds, see screen.cl) and in the exact form (means and sum centres as two floats).
 */
#include "cl_engine.h"

#include <math.h>
#include <string.h>

void cl_split(double value, float *hi, float *lo) {
    *hi = (float)value;
    *lo = isfinite(*hi) ? (float)(value - (double)*hi) : 0.0f;
}

static double inverse_at(const fgmm_params *params, int64_t component, int64_t feature) {
    if (!params->half_inv_var) return 0.5; /* of whitened rows */
    return params->covariance_type == FGMM_DIAG ? params->half_inv_var[component * params->d + feature]
                                                : params->half_inv_var[component];
}

/* The screen's means before they are scaled, [k, D]: about its centre, and whitened if tied. */
static void centre_means(const cl_engine *engine, const double *frame, double *out) {
    const fgmm_params *params = &engine->params;
    size_t d = engine->d;
    for (size_t i = 0; i < engine->k; i++, out += d) {
        const double *mean = params->means + (size_t)engine->ids[i] * d;
        for (size_t f = 0; f < d; f++)
            out[f] = mean[f] - (cl_screen_centre(params, frame, (int64_t)f) + (frame ? frame[f] : 0.0));
        if (!engine->tied) continue;
        for (size_t f = d; f-- > 0;) { /* from the last, since y_f needs t_0 .. t_f */
            double y = 0.0;
            for (size_t g = 0; g <= f; g++) y += params->whitening[f * d + g] * out[g];
            out[f] = y;
        }
    }
}

float cl_screen_centre(const fgmm_params *params, const double *frame, int64_t feature) {
    return (float)(params->centre[feature] - (frame ? frame[feature] : 0.0));
}

/* Few shapes, since each is a program to build. A GPU has the registers for a screen of 8 x 8, which halves the reads of local
 * memory a multiply-add takes, where it has the 33 KB for it; the dense engine's float-floats leave room for 4 x 4. */
static void choose_tile(const fgmm_device *device, cl_engine *engine) {
    int side = device->max_work_group >= 256 ? 16 : 8;
    int roomy = device->type == CL_DEVICE_TYPE_GPU && side == 16 && device->local_bytes >= 40960;
    int wide = roomy && engine->k > 64 ? 8 : 4;
    engine->tile = (cl_tile){.gx = side, .gy = side, .rm = wide, .rn = engine->k > (cl_uint)side ? wide : 1};
    engine->dense_tile = (cl_tile){.gx = side, .gy = side, .rm = 4, .rn = engine->k > (cl_uint)side ? 4 : 1};
    cl_white_tiles(device, engine);
    engine->batch_budget = (int64_t)200000000 * (device->compute_units ? device->compute_units : 1);
}

/* Sends `count` floats made by the caller in `from`. */
static fgmm_status send(fgmm_device *device, cl_room *room, const float *from, size_t count, const char *what) {
    CL_TRY(cl_room_fit(device, room, count * sizeof(float), what));
    return cl_write(device, room->mem, count * sizeof(float), from, what);
}

/* Two floats a cell of values [., D] less the frame, for the components in use. */
static fgmm_status send_split(fgmm_device *device, const double *values, const double *frame, cl_room *hi, cl_room *lo,
                              float *scratch, const char *what) {
    const cl_engine *engine = device->engine;
    size_t d = engine->d, cells = engine->k * d;
    for (int part = 0; part < 2; part++) {
        for (size_t i = 0; i < engine->k; i++)
            for (size_t f = 0; f < d; f++) {
                float two[2];
                cl_split(values[(size_t)engine->ids[i] * d + f] - (frame ? frame[f] : 0.0), &two[0], &two[1]);
                scratch[i * d + f] = two[part];
            }
        CL_TRY(send(device, part ? lo : hi, scratch, cells, what));
    }
    return FGMM_OK;
}

/* The screen's constants c1, c2, a, M of each component, and its bounds. Returns whether the screen can be trusted. */
static int screen_constants(cl_engine *engine, const double *means, float *out) {
    const fgmm_params *params = &engine->params;
    const double unit = 0x1p-24;
    double depth = engine->diag ? 2.0 * engine->d : engine->d;
    /* Tied: rows off by an error in norm, too, of which their square takes 2 P and the product with the means P + M. */
    double g = (depth + 16.0) * unit + (engine->tied ? 2.0 * cl_white_error(params) : 0.0);
    double most = -INFINITY;
    int sound = g < 0.05;
    memset(out, 0, (size_t)engine->kp * 4 * sizeof *out);
    for (size_t i = 0; i < engine->kp; i++) out[4 * i] = out[4 * i + 1] = -3e38f;
    for (size_t i = 0; i < engine->k; i++) {
        int64_t c = engine->ids[i];
        double norm = params->log_norm[c], log_w = params->log_weights[c], m = 0.0, a = 0.0;
        for (int64_t f = 0; f < params->d; f++) {
            double scale = params->scale[f], mean = means[i * engine->d + (size_t)f] * scale;
            a = inverse_at(params, c, f) / (scale * scale);
            m += a * mean * mean;
            /* Outside these a float's relative rounding no longer holds, or products overflow. */
            if (!(a > 1e-30 && a < 1e30 && fabs(mean) < 1e18)) sound = 0;
        }
        double error = 7.0 * g * m + 8.0 * unit * (fabs(norm) + fabs(log_w)) + 1e-6;
        if (!(m < 1e30 && error < 1e30 && fabs(norm) < 1e30)) sound = 0;
        out[4 * i] = (float)(norm + log_w - error);
        out[4 * i + 1] = (float)(norm + error);
        out[4 * i + 2] = (float)a;
        out[4 * i + 3] = (float)m;
        if (norm > most) most = norm;
    }
    engine->bounds.s[0] = engine->log_cut;
    engine->bounds.s[1] = (float)(16.0 * g);
    engine->bounds.s[2] = (float)most;
    engine->bounds.s[3] = (float)(16.0 * unit * (fabs(most) + fabs((double)engine->log_cut)) + 1e-6);
    return sound;
}

/* [dp, kp] of m (spherical), or of -a and 2 a m (diagonal). */
static fgmm_status send_screen(fgmm_device *device, const double *means, float *scratch) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t cells = (size_t)engine->dp * engine->kp;
    for (int part = 0; part < (engine->diag ? 2 : 1); part++) {
        memset(scratch, 0, cells * sizeof *scratch);
        for (size_t i = 0; i < engine->k; i++) {
            int64_t c = engine->ids[i];
            for (int64_t f = 0; f < params->d; f++) {
                double scale = params->scale[f], mean = means[i * engine->d + (size_t)f] * scale;
                double a = inverse_at(params, c, f) / (scale * scale);
                scratch[(size_t)f * engine->kp + i] = (float)(!engine->diag ? mean : part ? 2.0 * a * mean : -a);
            }
        }
        CL_TRY(send(device, part ? &engine->screen_b : &engine->screen_a, scratch, cells, "the screen's parameters"));
    }
    return FGMM_OK;
}

/* Constants of the exact form: L_hi, L_lo, log w, w of each component; and 1 / (2 var). */
static fgmm_status send_exact(fgmm_device *device, float *scratch) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    for (size_t i = 0; i < engine->k; i++) {
        int64_t c = engine->ids[i];
        cl_split(params->log_norm[c] + params->log_weights[c], &scratch[4 * i], &scratch[4 * i + 1]);
        scratch[4 * i + 2] = (float)params->log_weights[c];
        scratch[4 * i + 3] = (float)params->weights[c];
    }
    CL_TRY(send(device, &engine->constants, scratch, (size_t)engine->k * 4, "the components' constants"));
    size_t count = 0;
    if (engine->tied || engine->full) return FGMM_OK;
    for (size_t i = 0; i < engine->k; i++) {
        int64_t c = engine->ids[i];
        if (engine->diag)
            for (int64_t f = 0; f < params->d; f++) scratch[count++] = (float)inverse_at(params, c, f);
        else {
            cl_split(inverse_at(params, c, 0), &scratch[count], &scratch[count + 1]);
            count += 2;
        }
    }
    return send(device, &engine->inverse, scratch, count, "the inverse variances");
}

static fgmm_status keep_frame(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    cl_release_memory(device, engine->frame);
    engine->frame = NULL;
    if (!frame) return FGMM_OK;
    size_t bytes = engine->d * sizeof(double);
    engine->frame = cl_alloc(device, bytes);
    if (!engine->frame) return FGMM_ERR_MEMORY;
    memcpy(engine->frame, frame, bytes);
    return FGMM_OK;
}

static size_t largest(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Of spherical, diagonal and (about whitened rows) tied covariances. *sound: whether the screen can be trusted. */
static fgmm_status prepare_screen(fgmm_device *device, const double *frame, float *scratch, int *sound) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t d = engine->d;
    fgmm_status status = FGMM_OK;
    double *means = cl_alloc(device, engine->k * d * sizeof *means);
    if (!means) return FGMM_ERR_MEMORY;
    centre_means(engine, frame, means);
    if (!screen_constants(engine, means, scratch)) *sound = 0;
    if (!*sound) goto done;
    CL_GO(send(device, &engine->screen_c, scratch, (size_t)engine->kp * 4, "the screen's constants"));
    CL_GO(send_screen(device, means, scratch));
    for (size_t f = 0; f < d; f++)
        scratch[f] = engine->tied ? 0.0f : cl_screen_centre(params, frame, (int64_t)f); /* whitened rows are about it */
    CL_GO(send(device, &engine->centre, scratch, d, "the screen's centre"));
    for (size_t f = 0; f < d; f++) scratch[f] = (float)params->scale[f];
    CL_GO(send(device, &engine->scale, scratch, d, "the screen's scale"));
done:
    cl_release_memory(device, means);
    return status;
}

fgmm_status cl_prepare(fgmm_device *device, const double *frame) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    fgmm_status status = FGMM_OK;
    if (engine->prepared && !frame == !engine->frame &&
        (!frame || memcmp(frame, engine->frame, engine->d * sizeof(double)) == 0))
        return FGMM_OK;
    engine->prepared = 0;

    choose_tile(device, engine);
    engine->kp = (cl_uint)cl_round_up(engine->k, (size_t)(engine->tile.gx * engine->tile.rn));
    engine->dp = (cl_uint)cl_round_up(engine->d, CL_DEPTH_TILE);
    size_t cells = largest((size_t)engine->dp * engine->kp, (size_t)engine->kp * 4);
    float *scratch = cl_alloc(device, cells * sizeof *scratch);
    if (!scratch) return FGMM_ERR_MEMORY;

    int sound = params->engine != FGMM_ENGINE_DENSE && engine->log_cut > -1e30f;
    if (engine->tied || engine->full) CL_GO(cl_prepare_white(device, frame, &sound));
    if (sound && !engine->full) CL_GO(prepare_screen(device, frame, scratch, &sound));
    engine->all_dense = !sound;
    CL_GO(send_exact(device, scratch));
    CL_GO(send_split(device, params->means, frame, &engine->mean_hi, &engine->mean_lo, scratch, "the means"));
    engine->sum_hi_at = engine->mean_hi.mem;
    engine->sum_lo_at = engine->mean_lo.mem;
    if (params->sum_centres != params->means) {
        CL_GO(send_split(device, params->sum_centres, frame, &engine->sum_hi, &engine->sum_lo, scratch,
                         "the sums' centres"));
        engine->sum_hi_at = engine->sum_hi.mem;
        engine->sum_lo_at = engine->sum_lo.mem;
    }
    CL_GO(keep_frame(device, frame));
    engine->prepared = 1;
done:
    cl_release_memory(device, scratch);
    return status;
}
