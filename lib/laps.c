#include "laps.h"

#include <stdlib.h>

void fgmm_laps_add(fgmm_laps *laps, double seconds) {
    laps->seconds[laps->n++ % FGMM_LAPS_KEPT] = seconds;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double fgmm_laps_median(fgmm_laps *laps) {
    int n = laps->n < FGMM_LAPS_KEPT ? laps->n : FGMM_LAPS_KEPT;
    if (n == 0) return 0;
    qsort(laps->seconds, (size_t)n, sizeof *laps->seconds, by_value);
    return laps->seconds[n / 2];
}
