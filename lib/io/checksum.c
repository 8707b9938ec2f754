/* Eight bytes at a time by tables. */
#include "checksum.h"

#include <string.h>

void fgmm_checksum_begin(fgmm_checksum *sum) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
        sum->table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) {
            uint32_t c = sum->table[t - 1][i];
            sum->table[t][i] = (c >> 8) ^ sum->table[0][c & 255];
        }
    sum->value = 0xffffffffu;
}

void fgmm_checksum_add(fgmm_checksum *sum, const void *data, size_t bytes) {
    const unsigned char *p = data;
    uint32_t c = sum->value;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint32_t low = c ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        c = sum->table[7][low & 255] ^ sum->table[6][low >> 8 & 255] ^ sum->table[5][low >> 16 & 255] ^
            sum->table[4][low >> 24] ^ sum->table[3][p[4]] ^ sum->table[2][p[5]] ^ sum->table[1][p[6]] ^
            sum->table[0][p[7]];
    }
    for (; bytes > 0; bytes--, p++) c = (c >> 8) ^ sum->table[0][(c ^ *p) & 255];
    sum->value = c;
}

uint32_t fgmm_checksum_end(const fgmm_checksum *sum) {
    return sum->value ^ 0xffffffffu;
}
