/* xoshiro256++ seeded by splitmix64 (Blackman and Vigna): the same numbers on every machine. */
#ifndef FGMM_LIB_RNG_H
#define FGMM_LIB_RNG_H

#include <math.h>
#include <stdint.h>

typedef struct fgmm_rng {
    uint64_t s[4];
} fgmm_rng;

static inline fgmm_rng fgmm_rng_seed(uint64_t seed, uint64_t stream) {
    fgmm_rng rng;
    uint64_t x = seed ^ (stream * 0xd1342543de82ef95u);
    for (int i = 0; i < 4; i++) {
        x += 0x9e3779b97f4a7c15u;
        uint64_t z = x;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        rng.s[i] = z ^ (z >> 31);
    }
    return rng;
}

static inline uint64_t fgmm_rng_next(fgmm_rng *rng) {
    uint64_t *s = rng->s, sum = s[0] + s[3], out = ((sum << 23) | (sum >> 41)) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return out;
}

/* Uniform in [0, 1), 53 bits. */
static inline double fgmm_rng_uniform(fgmm_rng *rng) {
    return (double)(fgmm_rng_next(rng) >> 11) * 0x1p-53;
}

/* Uniform in 0 .. n-1; the bias of at most n / 2^64 is beyond notice. */
__extension__ typedef unsigned __int128 fgmm_wide;
static inline int64_t fgmm_rng_below(fgmm_rng *rng, int64_t n) {
    return (int64_t)(((fgmm_wide)fgmm_rng_next(rng) * (fgmm_wide)(uint64_t)n) >> 64);
}

/* A pair of standard normals by Marsaglia's polar method. */
static inline void fgmm_rng_normals(fgmm_rng *rng, double out[2]) {
    double u, v, s;
    do {
        u = 2 * fgmm_rng_uniform(rng) - 1;
        v = 2 * fgmm_rng_uniform(rng) - 1;
        s = u * u + v * v;
    } while (s >= 1 || s == 0);
    double factor = sqrt(-2 * log(s) / s);
    out[0] = u * factor;
    out[1] = v * factor;
}

#endif
