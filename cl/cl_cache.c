/* Program binaries on disk: one file a program, named by what it was made from. */
#include "cl_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Raise it when the entry's layout or what its key covers changes. */
enum { CACHE_FORMAT = 2 };
static const char cache_magic[8] = "FGMMCLB";
static const uint64_t entry_limit = (uint64_t)1 << 28;

enum { PATH_SIZE = 1024 };

typedef struct entry_header {
    char magic[8];
    uint64_t format;
    uint64_t key[2]; /* the file's name once more: a renamed entry is not taken */
    uint64_t length, checksum;
} entry_header;

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ (x >> 32);
}

/* Two lanes that differ in how they stir, not only in where they start. */
static void hash_bytes(cl_cache_key *key, const void *data, size_t size) {
    const unsigned char *byte = data;
    uint64_t a = key->word[0], b = key->word[1];
    for (size_t i = 0; i < size; i++) {
        a = (a ^ byte[i]) * UINT64_C(0x100000001b3); /* FNV-1a */
        b = (b + byte[i] + 1) * UINT64_C(0x9e3779b97f4a7c15);
        b ^= b >> 29;
    }
    key->word[0] = a;
    key->word[1] = b;
}

static const cl_cache_key hash_start = {{UINT64_C(0xcbf29ce484222325), UINT64_C(0x243f6a8885a308d3)}};

cl_cache_key cl_cache_hash(const char *const *parts, int count) {
    cl_cache_key key = hash_start;
    const uint64_t format = CACHE_FORMAT;
    hash_bytes(&key, &format, sizeof format);
    for (int i = 0; i < count; i++) hash_bytes(&key, parts[i], strlen(parts[i]) + 1); /* the NUL parts them */
    key.word[0] = mix(key.word[0]);
    key.word[1] = mix(key.word[1]);
    return key;
}

static uint64_t checksum(const unsigned char *bytes, size_t size) {
    cl_cache_key key = hash_start;
    hash_bytes(&key, bytes, size);
    return mix(key.word[0] ^ mix(key.word[1]));
}

int cl_cache_is_on(void) {
    const char *off = getenv("FLASHGMM_CACHE");
    return !off || strcmp(off, "off") != 0;
}

int cl_cache_folder(char *out, size_t size) {
    if (!cl_cache_is_on()) return 0;
    const char *own = getenv("FLASHGMM_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length;
    if (own && *own)
        length = snprintf(out, size, "%s", own);
    else if (xdg && *xdg == '/') /* a relative one is to be ignored, says the XDG specification */
        length = snprintf(out, size, "%s/flashgmm", xdg);
    else if (home && *home == '/')
        length = snprintf(out, size, "%s/.cache/flashgmm", home);
    else
        return 0;
    return length > 0 && (size_t)length < size;
}

/* Makes the folder and those above it. */
static int make_folder(const char *path) {
    char part[PATH_SIZE];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part) return 0;
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(part, 0700) != 0 && errno != EEXIST) return 0;
        *slash = '/';
    }
    return mkdir(part, 0700) == 0 || errno == EEXIST;
}

/* A binary runs with the user's rights, so it must come from a folder that none but the user can write to. */
static int is_own_folder(const char *path) {
    struct stat facts;
    return stat(path, &facts) == 0 && S_ISDIR(facts.st_mode) && facts.st_uid == geteuid() &&
           (facts.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

static int entry_path(char *out, size_t size, cl_cache_key key) {
    char folder[PATH_SIZE];
    if (!cl_cache_folder(folder, sizeof folder) || !is_own_folder(folder)) return 0;
    int length = snprintf(out, size, "%s/%016" PRIx64 "%016" PRIx64 ".clbin", folder, key.word[0], key.word[1]);
    return length > 0 && (size_t)length < size;
}

static int read_all(int file, void *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t got = read(file, (char *)data + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        done += (size_t)got;
    }
    return 1;
}

static int write_all(int file, const void *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t put = write(file, (const char *)data + done, size - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return 0;
        done += (size_t)put;
    }
    return 1;
}

int cl_cache_load(const fgmm_host *host, cl_cache_key key, unsigned char **bytes, size_t *size) {
    char path[PATH_SIZE + 64];
    entry_header header;
    struct stat facts;
    unsigned char *content = NULL;
    int whole = 0;
    if (!entry_path(path, sizeof path, key)) return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0) return 0;
    if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode) || facts.st_uid != geteuid()) goto done;
    if (!read_all(file, &header, sizeof header) || memcmp(header.magic, cache_magic, sizeof cache_magic) != 0 ||
        header.format != CACHE_FORMAT || header.key[0] != key.word[0] || header.key[1] != key.word[1] ||
        header.length == 0 || header.length > entry_limit || (uint64_t)facts.st_size != sizeof header + header.length)
        goto done;
    content = host->alloc(host->user, (size_t)header.length);
    whole = content && read_all(file, content, (size_t)header.length) &&
            checksum(content, (size_t)header.length) == header.checksum;
done:
    close(file);
    if (whole) {
        *bytes = content;
        *size = (size_t)header.length;
        return 1;
    }
    if (content) host->free(host->user, content);
    host->log(host->user, FGMM_LOG_DEBUG, "not taking the cached program %s: it is damaged or not ours", path);
    return 0;
}

int cl_cache_store(const fgmm_host *host, cl_cache_key key, const unsigned char *bytes, size_t size) {
    char folder[PATH_SIZE], path[PATH_SIZE + 64], beside[PATH_SIZE + 96];
    entry_header header = {
        .format = CACHE_FORMAT, .key = {key.word[0], key.word[1]}, .length = size, .checksum = checksum(bytes, size)};
    memcpy(header.magic, cache_magic, sizeof header.magic);
    if (size == 0 || size > entry_limit || !cl_cache_folder(folder, sizeof folder)) return 0;
    if (!make_folder(folder) || !entry_path(path, sizeof path, key)) {
        host->log(host->user, FGMM_LOG_DEBUG, "programs are not cached: %s cannot be made, or others may write to it",
                  folder);
        return 0;
    }
    snprintf(beside, sizeof beside, "%s.XXXXXX", path);
    int file = mkstemp(beside); /* mode 0600 */
    int stored = 0;
    if (file >= 0) {
        stored = write_all(file, &header, sizeof header) && write_all(file, bytes, size);
        stored = close(file) == 0 && stored;
        stored = stored && rename(beside, path) == 0;
        if (!stored) unlink(beside);
    }
    if (!stored) host->log(host->user, FGMM_LOG_DEBUG, "a program is not cached: %s: %s", path, strerror(errno));
    return stored;
}

void cl_cache_drop(cl_cache_key key) {
    char path[PATH_SIZE + 64];
    if (entry_path(path, sizeof path, key)) unlink(path);
}
