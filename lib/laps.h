/* Times of iterations, for the median that reports give. */
#ifndef FGMM_LIB_LAPS_H
#define FGMM_LIB_LAPS_H

/* The last so many count. */
enum { FGMM_LAPS_KEPT = 1024 };

typedef struct fgmm_laps {
    double seconds[FGMM_LAPS_KEPT];
    int n; /* added so far, also those no longer kept */
} fgmm_laps;

void fgmm_laps_add(fgmm_laps *laps, double seconds);
/* 0 if there are none. Their order is lost. */
double fgmm_laps_median(fgmm_laps *laps);

#endif
