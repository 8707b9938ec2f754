/*
 * What is sent of parameters, formed from the doubles of fgmm_params: means and sum centres as two floats, and the screens' form of each component,
 * with constants that hold its error bounds (see screen.cl and screen_wgmma.cl). Threads share the components.
 */
#include "cl_forms.h"

#include "../lib/clones.h"

#include <math.h>

#ifdef _OPENMP
#include <omp.h>
#endif

void cl_split(double value, float *hi, float *lo) {
    *hi = (float)value;
    *lo = isfinite(*hi) ? (float)(value - (double)*hi) : 0.0f;
}

/* A row of doubles less `frame` (or NULL), as two floats each. */
static FGMM_INTO_CLONES void split_row(const double *row, const double *frame, size_t d, float *hi, float *lo) {
    float check = 0.0f; /* not finite where a value is beyond a float */
    for (size_t f = 0; f < d; f++) {
        double value = row[f] - (frame ? frame[f] : 0.0);
        hi[f] = (float)value;
        lo[f] = (float)(value - (double)hi[f]);
    }
#pragma omp simd reduction(+ : check)
    for (size_t f = 0; f < d; f++) check += lo[f];
    if (isfinite(check)) return;
    for (size_t f = 0; f < d; f++) cl_split(row[f] - (frame ? frame[f] : 0.0), &hi[f], &lo[f]);
}

/* The norm of what a component's upper floats leave of its mean. */
static FGMM_INTO_CLONES float norm_off(const cl_engine *engine, size_t i, const float *lo) {
    size_t c = (size_t)engine->ids[i], d = engine->d;
    const double *a = engine->params.half_inv_var + (engine->diag ? c * d : c);
    double sums[FGMM_LANES] = {0}, sum;
    size_t f = 0;
    for (; f + FGMM_LANES <= d; f += FGMM_LANES)
#pragma omp simd
        for (int l = 0; l < FGMM_LANES; l++) {
            double t = lo[f + l];
            sums[l] += (engine->diag ? a[f + l] : 1.0) * t * t;
        }
    for (; f < d; f++) sums[0] += (engine->diag ? a[f] : 1.0) * (double)lo[f] * (double)lo[f];
    sum = fgmm_add_lanes(sums);
    return (float)(sqrt(engine->diag ? sum : a[0] * sum) * (1.0 + 0x1p-20));
}

FGMM_CLONES static void split_component(const cl_engine *engine, const cl_split_values *split, size_t i) {
    size_t d = engine->d;
    float *lo = split->lo + i * d;
    split_row(split->values + (size_t)engine->ids[i] * d, split->frame, d, split->hi + i * d, lo);
    if (split->off) split->off[i] = norm_off(engine, i, lo);
}

void cl_split_all(fgmm_device *device, const cl_split_values *split) {
    const cl_engine *engine = device->engine;
#pragma omp parallel for num_threads(cl_threads(device, engine->k * engine->d))
    for (size_t i = 0; i < engine->k; i++) split_component(engine, split, i);
}

/* ---- the screens ---- */

/* What the screens know of a component: M = sum a m^2 of its scaled mean; the scaled a (the last, where there are several), their sums, and
 * of diagonal ones the largest of a and 2 a |m|, and that of the features that guesses go by. Of those that they leave out: their part of M, and
 * -1/2 sum log 2 a, with which the norm is that of the others alone, but for what all components have in common. */
typedef struct screen_component {
    double norm, log_w, m, a, most_a, sum_a, sum_am, most_guessed, left_m, left_norm;
    int sound; /* within what floats hold with room to spare */
} screen_component;

static const cl_screen_totals no_totals = {
    .sound = 1, .suits_matrix = 1, .top = -INFINITY, .bottom = INFINITY, .expected = 1};

static void add_totals(cl_screen_totals *to, const cl_screen_totals *from) {
    to->sound &= from->sound;
    to->suits_matrix &= from->suits_matrix;
    to->expected &= from->expected;
    to->slack = from->slack > to->slack ? from->slack : to->slack;
    to->m = from->m > to->m ? from->m : to->m;
    to->factor = from->factor > to->factor ? from->factor : to->factor;
    to->top = from->top > to->top ? from->top : to->top;
    to->bottom = from->bottom < to->bottom ? from->bottom : to->bottom;
}

/* Columns of the screens: where they lie, what they are scaled by, and 1 / scale^2. */
typedef struct screen_frame {
    double *centre, *scale, *inverse_square; /* [D] each */
} screen_frame;

/* Sums of squares and of sizes. */
static FGMM_INTO_CLONES void add_sizes(const double *values, size_t d, double *square, double *sum) {
    double squares[FGMM_LANES] = {0}, sums[FGMM_LANES] = {0};
    size_t f = 0;
    for (; f + FGMM_LANES <= d; f += FGMM_LANES)
#pragma omp simd
        for (int l = 0; l < FGMM_LANES; l++) {
            squares[l] += values[f + l] * values[f + l];
            sums[l] += fabs(values[f + l]);
        }
    for (; f < d; f++) {
        squares[0] += values[f] * values[f];
        sums[0] += fabs(values[f]);
    }
    *square = fgmm_add_lanes(squares);
    *sum = fgmm_add_lanes(sums);
}

/* What guesses take of a scaled mean. Diagonal: one logarithm of as many values as a double holds the product of. */
static FGMM_INTO_CLONES void leave_out(const cl_engine *engine, const screen_frame *frame, const double *inverse,
                                       const double *mean, screen_component *out) {
    size_t d = engine->d, guessed = engine->matrix.guessed;
    double product = 1.0, square, sum;
    if (!engine->diag) {
        add_sizes(mean + guessed, d - guessed, &square, &sum);
        out->left_m = out->a * square;
        out->left_norm = -0.5 * (double)(d - guessed) * log(2.0 * out->a);
        return;
    }
    out->most_guessed = 0.0;
    for (size_t f = 0; f < guessed; f++) {
        double a = inverse[f] * frame->inverse_square[f];
        out->most_guessed = fmax(out->most_guessed, fmax(a, 2.0 * a * fabs(mean[f])));
    }
    for (size_t f = guessed; f < d; f++) {
        double a = inverse[f] * frame->inverse_square[f];
        out->left_m += a * mean[f] * mean[f];
        product *= 2.0 * a;
        if (product > 1e-200 && product < 1e200) continue;
        out->left_norm -= 0.5 * log(product);
        product = 1.0;
    }
    out->left_norm -= 0.5 * log(product);
}

/* One component's rows of screen_rows, where there are any: its mean about the centre (whitened if tied) and scaled; diagonal: -a and 2 a m
 * of it. mean: room for [D]. */
FGMM_CLONES static screen_component form_component(const cl_engine *engine, const screen_frame *frame, size_t i,
                                                   double *mean, float *first, float *second) {
    const fgmm_params *params = &engine->params;
    int64_t c = engine->ids[i];
    size_t d = engine->d;
    const double *at = params->means + (size_t)c * d;
    const double *inverse = engine->diag ? params->half_inv_var + (size_t)c * d : NULL;
    screen_component out = {.norm = params->log_norm[c], .log_w = params->log_weights[c], .sound = 1};
    double square = 0.0, sum = 0.0, most = 0.0, least_a = INFINITY, largest_a = 0.0;
    for (size_t f = 0; f < d; f++) mean[f] = at[f] - frame->centre[f];
    if (engine->tied)
        for (size_t f = d; f-- > 0;) { /* from the last, since y_f needs t_0 .. t_f */
            double y = 0.0;
            for (size_t g = 0; g <= f; g++) y += params->whitening[f * d + g] * mean[g];
            mean[f] = y;
        }
    for (size_t f = 0; f < d; f++) mean[f] *= frame->scale[f];
    if (inverse) {
        for (size_t f = 0; f < d; f++) most = mean[f] > most ? mean[f] : -mean[f] > most ? -mean[f] : most;
        for (size_t f = 0; f < d; f++) {
            double a = inverse[f] * frame->inverse_square[f], am = 2.0 * a * mean[f], size = fabs(am);
            if (first) {
                first[f] = (float)-a;
                second[f] = (float)am;
            }
            square += am * mean[f];
            out.sum_a += a;
            sum += size;
            least_a = a < least_a ? a : least_a;
            largest_a = a > largest_a ? a : largest_a;
            out.most_a = size > out.most_a ? size : out.most_a;
            out.a = a;
        }
        out.m = 0.5 * square;
        out.sum_am = sum;
        out.most_a = fmax(out.most_a, largest_a);
    } else {
        double a = (params->half_inv_var ? params->half_inv_var[c] : 0.5) * frame->inverse_square[0];
        for (size_t f = 0; f < d && first; f++) first[f] = (float)mean[f];
        add_sizes(mean, d, &square, &sum);
        most = sqrt(square); /* at most */
        out.a = least_a = largest_a = a;
        out.m = a * square;
        out.sum_a = (double)d * a;
        out.sum_am = 2.0 * a * sum;
    }
    out.most_guessed = out.most_a;
    if (first && engine->matrix.guessed && engine->matrix.guessed < d) leave_out(engine, frame, inverse, mean, &out);
    /* Outside these a float's relative rounding no longer holds, or products overflow. */
    out.sound = least_a > 1e-30 && largest_a < 1e30 && most < 1e18 && out.m < 1e30 && fabs(out.norm) < 1e30;
    return out;
}

/* Rounding of the constants themselves. */
static double constant_error(const screen_component *c) {
    return 8.0 * 0x1p-24 * (fabs(c->norm) + fabs(c->log_w)) + 1e-6;
}

/* bounds of screen.cl and screen_mma.cl for a relative rounding g of each term. */
static cl_float4 bounds_of(const cl_engine *engine, double g) {
    double most = engine->params.log_norm_max;
    cl_float4 out;
    out.s[0] = engine->log_cut;
    out.s[1] = (float)(16.0 * g);
    out.s[2] = (float)most;
    out.s[3] = (float)(16.0 * 0x1p-24 * (fabs(most) + fabs((double)engine->log_cut)) + 1e-6);
    return out;
}

/* Tied: rows off by an error in norm, too, of which their square takes 2 P and the product with the means P + M. */
static double row_error(const cl_engine *engine) {
    return engine->tied ? 2.0 * cl_white_error(&engine->params) : 0.0;
}

static double screen_rounding(const cl_engine *engine) {
    return ((engine->diag ? 2.0 * engine->d : engine->d) + 16.0) * 0x1p-24 + row_error(engine);
}

int cl_screen_bounds(cl_engine *engine) {
    double g = screen_rounding(engine);
    engine->bounds = bounds_of(engine, g);
    return g < 0.05;
}

/* The f32 screen's constants c1, c2, a, M of a component. Returns whether they can be trusted. */
static int screen_constants(double g, const screen_component *c, float *out) {
    double error = 7.0 * g * c->m + constant_error(c);
    out[0] = (float)(c->norm + c->log_w - error);
    out[1] = (float)(c->norm + error);
    out[2] = (float)c->a;
    out[3] = (float)c->m;
    return c->sound && error < 1e30;
}

/*
 * The same for screen_mma.cl: multiplier, c1, c2 - c1 of each component, from which columns follow; and what a guess adds to c1, which has no use for
 * bounds and is of some features. f16 below 2^-14 is off by 2^-25: of the rows' terms that makes 2^-25 of the sum of the components' factors, of the
 * components' 2^-25 of the sum of the rows', which the norm that a row may have bounds. Spherical factors are as large as means, and 2 |x| <= 1 + |x|^2
 * brings the rows' under g; diagonal ones are brought to [2^14, 2^15) by a multiplier.
 */
static double matrix_rounding(const cl_engine *engine) {
    double depth = 16.0 * engine->matrix.steps;
    return 0x1.008p-10 + (1.25 * depth + 64.0) * 2.0 * 0x1p-24 + 0x1p-25 * sqrt((double)engine->d) + row_error(engine);
}

/* Of component i, to which *totals are set. */
static void matrix_constants(const cl_engine *engine, double g, const screen_component *c, size_t i,
                             cl_screen_totals *totals) {
    const double unit = 0x1p-24, tiny = 0x1p-25, d = engine->d, norm_most = 60000.0;
    double multiplier = engine->diag ? ldexp(1.0, ilogb(c->most_a) - 14) : 2.0 * c->a;
    double tail = engine->diag ? tiny * (c->sum_a + c->sum_am + multiplier * (1.5 * norm_most + 0.5 * d))
                               : tiny * (c->sum_am + c->a * sqrt(d));
    double error = (7.0 * g * c->m + 8.0 * unit * c->m + constant_error(c) + tail) * (1.0 + 8.0 * unit);
    float *out = engine->multipliers + 4 * i, *column = engine->tiled + 2 * i;
    out[0] = column[0] = (float)multiplier;
    out[1] = column[1] = (float)(c->norm + c->log_w - error - c->m);
    out[2] = (float)(2.0 * error - c->log_w);
    out[3] = (float)(c->left_m + c->left_norm + error);
    double most = engine->diag ? INFINITY : c->a * norm_most; /* of the mean's norm, as of a row's */
    totals->suits_matrix = c->sound && c->m < most && error < 1e15 && multiplier > 1e-15 && multiplier < 1e15;
    totals->slack = (double)out[2];
    totals->m = fmax(c->m - c->left_m, 0.0);
    totals->factor = engine->diag ? c->most_guessed : 2.0 * sqrt(c->a * totals->m);
    totals->top = totals->bottom = c->norm + c->log_w + c->left_norm;
}

/*
 * What brings the numbers of guess_wgmma.cl to the range of its formats: a logit near 0 where a component's own rows have theirs, and the
 * largest factor within FP8's 448 and the largest logit within f16's 65504, with room for rows that lie further out than means.
 */
static void guess_bounds(cl_engine *engine, const cl_screen_totals *totals) {
    cl_matrix *matrix = &engine->matrix;
    double d = matrix->guessed, largest = 2.0 * totals->m + d + (totals->top - totals->bottom);
    matrix->guess_shift = (float)(0.5 * d - totals->top);
    matrix->guess_factor = (float)fmin(256.0 / totals->factor, 8192.0 / largest);
}

int cl_matrix_bounds(cl_engine *engine) {
    const cl_screen_totals *totals = &engine->screen_totals;
    cl_matrix *matrix = &engine->matrix;
    double g = matrix_rounding(engine);
    size_t padded = (size_t)matrix->tiles * matrix->nt * 8;
    for (size_t i = engine->k; i < padded; i++) engine->tiled[2 * i] = 0.0f, engine->tiled[2 * i + 1] = -3e38f;
    matrix->slack = (float)(totals->slack + 1e-6 * totals->slack);
    matrix->bounds = bounds_of(engine, g);
    guess_bounds(engine, totals);
    return totals->suits_matrix && g < 0.05;
}

fgmm_status cl_form_components(fgmm_device *device, const double *frame, const cl_split_values *split, float *constants,
                               float *rows[2]) {
    cl_engine *engine = device->engine;
    const fgmm_params *params = &engine->params;
    size_t d = engine->d, from = engine->rows_from;
    int threads = cl_threads(device, engine->k * d * (engine->tied ? d : 1));
    size_t doubles = (3 + (size_t)threads) * d * sizeof(double);
    double *room = cl_alloc(device, doubles + (size_t)threads * sizeof(cl_screen_totals));
    if (!room) return FGMM_ERR_MEMORY;
    cl_screen_totals *parts = (cl_screen_totals *)(void *)((char *)room + doubles); /* of each thread */
    screen_frame columns = {room, room + d, room + 2 * d};
    double g = screen_rounding(engine), matrix_g = matrix_rounding(engine);
    for (size_t f = 0; f < d; f++) {
        columns.centre[f] = cl_screen_centre(params, frame, (int64_t)f) + (frame ? frame[f] : 0.0);
        columns.scale[f] = params->scale[f];
        columns.inverse_square[f] = 1.0 / (params->scale[f] * params->scale[f]);
    }
    for (int t = 0; t < threads; t++) parts[t] = no_totals;
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        int thread = omp_get_thread_num();
#else
        int thread = 0;
#endif
        double *mean = room + (3 + (size_t)thread) * d;
        cl_screen_totals own = no_totals;
#pragma omp for nowait
        for (size_t i = 0; i < engine->k; i++) {
            float *first = rows ? rows[0] + i * from : NULL, *second = rows && rows[1] ? rows[1] + i * from : NULL;
            if (split) split_component(engine, split, i);
            screen_component c = form_component(engine, &columns, i, mean, first, second);
            cl_screen_totals one = no_totals;
            if (first && engine->matrix.on) matrix_constants(engine, matrix_g, &c, i, &one);
            one.sound = constants ? screen_constants(g, &c, constants + 4 * i) : c.sound;
            if (constants && engine->ahead.told) one.expected = cl_ahead_matches(engine, i, constants + 4 * i);
            add_totals(&own, &one);
            for (size_t f = d; f < from && first; f++) {
                first[f] = 0.0f;
                if (second) second[f] = 0.0f;
            }
        }
        parts[thread] = own;
    }
    engine->screen_totals = parts[0];
    for (int t = 1; t < threads; t++) add_totals(&engine->screen_totals, &parts[t]);
    cl_release_memory(device, room);
    return FGMM_OK;
}
