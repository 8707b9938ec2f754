/* CRC-32C (Castagnoli) of a file's bytes: against damage, not against malice. */
#ifndef FGMM_LIB_IO_CHECKSUM_H
#define FGMM_LIB_IO_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

typedef struct fgmm_checksum {
    uint32_t table[8][256];
    uint32_t value;
} fgmm_checksum;

void fgmm_checksum_begin(fgmm_checksum *sum);
void fgmm_checksum_add(fgmm_checksum *sum, const void *data, size_t bytes);
uint32_t fgmm_checksum_end(const fgmm_checksum *sum);

#endif
