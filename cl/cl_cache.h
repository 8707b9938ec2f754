/* Program binaries on disk. Everything here may fail quietly: that only costs the time of a build. Part of cl/ only. */
#ifndef FGMM_CL_CACHE_H
#define FGMM_CL_CACHE_H

#include "cl_runtime.h"

/* What an entry was made from, as 128 bits. */
typedef struct cl_cache_key {
    uint64_t word[2];
} cl_cache_key;

/* Key of a list of strings; ("ab", "c") and ("a", "bc") differ. */
cl_cache_key cl_cache_hash(const char *const *parts, int count);

/* Whether there is to be any: FLASHGMM_CACHE is not "off". */
int cl_cache_is_on(void);

/* The folder: $FLASHGMM_CACHE_DIR, else $XDG_CACHE_HOME/flashgmm, else ~/.cache/flashgmm.
 * @return 0 if there is none or it is off. */
int cl_cache_folder(char *out, size_t size);

/* An entry's content, freed with host->free. @return 0 if it is absent, damaged or not this user's own. */
int cl_cache_load(const fgmm_host *host, cl_cache_key key, unsigned char **bytes, size_t *size);

/* Writes an entry beside and renames it; makes the folder if need be. @return 0 if that failed. */
int cl_cache_store(const fgmm_host *host, cl_cache_key key, const unsigned char *bytes, size_t size);

void cl_cache_drop(cl_cache_key key);

#endif
