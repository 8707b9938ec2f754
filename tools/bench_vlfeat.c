/* VLFeat's vl_gmm (diagonal, float) as a peer. It tells of each E-step through its printf, which is where the time is
 * taken: from one E-step's end to the next lies one M-step and one E-step. It stops by itself when the likelihood
 * settles. */
#include "bench_peer.h"

#include <stdarg.h>
#include <string.h>
#include <vl/gmm.h>

static peer_ticks ticks; /* VLFeat's printf has no place for a user's pointer */

static int on_print(const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    const char *value = strstr(line, "loglikelihood = ");
    if (value) peer_tick(&ticks, atof(value + strlen("loglikelihood = ")));
    return length;
}

static float *filled(size_t count, float value) {
    float *out = (float *)malloc(count * sizeof *out);
    if (!out) exit(1);
    for (size_t i = 0; i < count; i++) out[i] = value;
    return out;
}

int main(int argc, char **argv) {
    peer_job job = peer_start(argc, argv);
    float *variances = filled(job.k * job.d, 1.0f), *weights = filled(job.k, 1.0f / (float)job.k);
    VlGMM *gmm = vl_gmm_new(VL_TYPE_FLOAT, job.d, job.k);
    vl_gmm_set_initialization(gmm, VlGMMCustom);
    vl_gmm_set_means(gmm, job.means);
    vl_gmm_set_covariances(gmm, variances);
    vl_gmm_set_priors(gmm, weights);
    vl_gmm_set_max_num_iterations(gmm, (vl_size)job.iterations);
    vl_set_printf_func(on_print);
    vl_gmm_set_verbosity(gmm, 2);
    vl_gmm_em(gmm, job.rows, job.n);
    for (int i = 0; i < ticks.n; i++) ticks.value[i] /= (double)job.n;
    peer_print("VLFeat " VL_VERSION_STRING, NULL, &ticks);
    vl_gmm_delete(gmm);
    free(weights);
    free(variances);
    free(job.means);
    free(job.rows);
    return 0;
}
