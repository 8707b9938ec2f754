/* Row elements as doubles: exact for every row type. */
#ifndef FGMM_LIB_CONVERT_H
#define FGMM_LIB_CONVERT_H

#include <flashgmm/flashgmm.h>
#include <string.h>

static inline float fgmm_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float fgmm_from_bf16(uint16_t bits) {
    return fgmm_float_from_bits((uint32_t)bits << 16);
}

static inline float fgmm_from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24 */
        float magnitude = (float)fraction * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    if (exponent == 31) return fgmm_float_from_bits(sign | 0x7f800000u | (fraction << 13));
    return fgmm_float_from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

static inline void fgmm_widen(fgmm_dtype type, const void *from, int64_t n, double *to) {
    switch (type) {
    case FGMM_F32:
        for (int64_t i = 0; i < n; i++) to[i] = ((const float *)from)[i];
        break;
    case FGMM_F64: memcpy(to, from, (size_t)n * sizeof *to); break;
    case FGMM_F16:
        for (int64_t i = 0; i < n; i++) to[i] = fgmm_from_f16(((const uint16_t *)from)[i]);
        break;
    case FGMM_BF16:
        for (int64_t i = 0; i < n; i++) to[i] = fgmm_from_bf16(((const uint16_t *)from)[i]);
        break;
    case FGMM_U8:
        for (int64_t i = 0; i < n; i++) to[i] = ((const uint8_t *)from)[i];
        break;
    case FGMM_I8:
        for (int64_t i = 0; i < n; i++) to[i] = ((const int8_t *)from)[i];
        break;
    default: break;
    }
}

#endif
