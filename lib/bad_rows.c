#include "bad_rows.h"

#include <math.h>
#include <string.h>

int64_t fgmm_bad_column(const void *row, fgmm_dtype type, int64_t d) {
    for (int64_t j = 0; j < d; j++) {
        switch (type) {
        case FGMM_F32:
            if (!isfinite(((const float *)row)[j])) return j;
            break;
        case FGMM_F64:
            if (!isfinite(((const double *)row)[j])) return j;
            break;
        case FGMM_F16:
            if ((((const uint16_t *)row)[j] & 0x7c00u) == 0x7c00u) return j;
            break;
        case FGMM_BF16:
            if ((((const uint16_t *)row)[j] & 0x7f80u) == 0x7f80u) return j;
            break;
        default: return -1;
        }
    }
    return -1;
}

fgmm_status fgmm_bad_rows_add(fgmm_context *ctx, fgmm_bad_rows *bad, int64_t row) {
    if (bad->count == bad->room) {
        int64_t room = bad->room ? 2 * bad->room : 64;
        int64_t *rows = fgmm_alloc(ctx, (size_t)room * sizeof *rows, "a list of rows with NaN or Inf");
        if (!rows) return FGMM_ERR_MEMORY;
        if (bad->count) memcpy(rows, bad->rows, (size_t)bad->count * sizeof *rows);
        fgmm_free(ctx, bad->rows);
        bad->rows = rows;
        bad->room = room;
    }
    bad->rows[bad->count++] = row;
    return FGMM_OK;
}

int64_t fgmm_bad_rows_before(const fgmm_bad_rows *bad, int64_t row) {
    int64_t low = 0, high = bad->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (bad->rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
