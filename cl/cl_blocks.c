/* The engine's memory, on the device and pinned on the host. */
#include "cl_engine.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

void *cl_alloc(fgmm_device *device, size_t bytes) {
    void *pointer = device->host.alloc(device->host.user, bytes ? bytes : 1);
    if (!pointer) device->host.fail(device->host.user, FGMM_ERR_MEMORY, "no memory for %zu bytes", bytes);
    return pointer;
}

void cl_release_memory(fgmm_device *device, void *pointer) {
    if (pointer) device->host.free(device->host.user, pointer);
}

/* One or all, as fgmm_threads_over in lib/context.c, which says why. */
int cl_threads(const fgmm_device *device, size_t cells) {
#ifdef _OPENMP
    enum { LEAST_CELLS = 1 << 15 };
    if (cells < LEAST_CELLS) return 1;
    return device->host.threads > 0 ? device->host.threads : omp_get_max_threads();
#else
    (void)device;
    (void)cells;
    return 1;
#endif
}

size_t cl_round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

int64_t cl_power_of_two(int64_t least) {
    int64_t power = 1;
    while (power < least) power *= 2;
    return power;
}

fgmm_status cl_room_fit(fgmm_device *device, cl_room *room, size_t bytes, const char *what) {
    if (room->mem && room->bytes >= bytes) return FGMM_OK;
    cl_room_free(device, room);
    CL_TRY(cl_buffer(device, &room->mem, bytes, what));
    room->bytes = bytes;
    return FGMM_OK;
}

void cl_room_free(fgmm_device *device, cl_room *room) {
    cl_buffer_free(device, room->mem);
    room->mem = NULL;
    room->bytes = 0;
}

fgmm_status cl_fill(fgmm_device *device, cl_mem buffer, cl_uint word, size_t bytes, const char *what) {
    CL_CHECK(device, clEnqueueFillBuffer(device->queue, buffer, &word, sizeof word, 0, bytes, 0, NULL, NULL), what);
    return FGMM_OK;
}

/* Large pages where there are any, touched by all threads: a driver that makes such memory of its own takes pages one by one. NULL: there is none. */
static void *new_pages(fgmm_device *device, size_t bytes) {
    enum { PAGE = 4096 };
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    (void)madvise(at, bytes, MADV_HUGEPAGE);
#endif
#pragma omp parallel for num_threads(cl_threads(device, bytes / sizeof(double)))
    for (size_t i = 0; i < bytes; i += PAGE) at[i] = 0;
    return at;
}

/* Pages pinned by a buffer over them, which is not used: see cl_pin_rows. */
static int open_pages(fgmm_device *device, cl_pinned *pinned, size_t bytes) {
    void *at = new_pages(device, bytes);
    cl_mem mem = at ? cl_pin_rows(device, at, bytes) : NULL;
    if (at && !mem) munmap(at, bytes);
    if (!mem) return 0;
    *pinned = (cl_pinned){.mem = mem, .at = at, .bytes = bytes, .pages = 1};
    return 1;
}

void cl_pinned_open(fgmm_device *device, cl_pinned *pinned, size_t bytes) {
    enum { PAGES_BYTES = 1 << 20 };
    *pinned = (cl_pinned){0};
    if (bytes > device->max_alloc) return;
    if (device->pins && bytes >= PAGES_BYTES && open_pages(device, pinned, bytes)) return;
    cl_int code = CL_SUCCESS;
    cl_mem mem = clCreateBuffer(device->context, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, bytes, NULL, &code);
    if (code != CL_SUCCESS) return;
    void *at =
        clEnqueueMapBuffer(device->queue, mem, CL_TRUE, CL_MAP_READ | CL_MAP_WRITE, 0, bytes, 0, NULL, NULL, &code);
    if (code != CL_SUCCESS)
        clReleaseMemObject(mem);
    else
        *pinned = (cl_pinned){.mem = mem, .at = at, .bytes = bytes};
}

void cl_pinned_close(fgmm_device *device, cl_pinned *pinned) {
    if (!pinned->mem) return;
    if (!pinned->pages) clEnqueueUnmapMemObject(device->queue, pinned->mem, pinned->at, 0, NULL, NULL);
    clFinish(device->queue);
    clReleaseMemObject(pinned->mem);
    if (pinned->pages) munmap(pinned->at, pinned->bytes);
    *pinned = (cl_pinned){0};
}

/* What is no large part of the memory that a system pins, nor of the device's, with which it counts, for it may come from there. The host's limit
 * does not know of it. */
static int64_t most_pinned(const fgmm_device *device) {
    enum { LEAST_BYTES = 64 << 20, PART = 64, DEVICE_PART = 16 };
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    int64_t most = pages > 0 && page > 0 ? (int64_t)pages / PART * page : 0, room = device->limit_bytes - device->bytes;
    if (most > room / DEVICE_PART) most = room / DEVICE_PART;
    if (most < LEAST_BYTES || device->host.memory_limited) most = LEAST_BYTES;
    return most < room ? most : room;
}

static void try_pinned(fgmm_device *device, cl_pinned *pinned, size_t bytes) {
    if ((int64_t)bytes > most_pinned(device)) return;
    cl_pinned_open(device, pinned, bytes);
    if (!pinned->mem) return;
    device->bytes += (int64_t)bytes;
    if (device->peak_bytes < device->bytes) device->peak_bytes = device->bytes;
}

fgmm_status cl_pin(fgmm_device *device, cl_pinned *pinned, size_t bytes) {
    pinned->used = 0;
    if (pinned->at && pinned->bytes >= bytes) return FGMM_OK;
    cl_pinned_free(device, pinned);
    try_pinned(device, pinned, bytes);
    if (pinned->mem) return FGMM_OK;
    pinned->at = cl_alloc(device, bytes);
    if (!pinned->at) return FGMM_ERR_MEMORY;
    pinned->bytes = bytes;
    return FGMM_OK;
}

void cl_pinned_free(fgmm_device *device, cl_pinned *pinned) {
    if (pinned->mem) {
        device->bytes -= (int64_t)pinned->bytes;
        cl_pinned_close(device, pinned);
    } else if (pinned->at) {
        clFinish(device->queue); /* transfers from it may be under way */
        cl_release_memory(device, pinned->at);
    }
    *pinned = (cl_pinned){0};
}

fgmm_status cl_read_at(fgmm_device *device, cl_mem buffer, size_t at, size_t bytes, void *out, const char *what) {
    if (device->asking) {
        memset(out, 0, bytes);
        return FGMM_OK;
    }
    CL_CHECK(device, clEnqueueReadBuffer(device->queue, buffer, CL_TRUE, at, bytes, out, 0, NULL, NULL), what);
    return FGMM_OK;
}

fgmm_status cl_read(fgmm_device *device, cl_mem buffer, size_t bytes, void *out, const char *what) {
    return cl_read_at(device, buffer, 0, bytes, out, what);
}

fgmm_status cl_read_begin(fgmm_device *device, cl_arrival *arrival, cl_mem buffer, size_t at, size_t bytes,
                          const char *what) {
    CL_TRY(cl_read_end(device, arrival, what));
    CL_TRY(cl_pin(device, &arrival->pinned, bytes));
    if (device->asking) {
        memset(arrival->pinned.at, 0, bytes);
        return FGMM_OK;
    }
    CL_CHECK(
        device,
        clEnqueueReadBuffer(device->queue, buffer, CL_FALSE, at, bytes, arrival->pinned.at, 0, NULL, &arrival->event),
        what);
    clFlush(device->queue);
    return FGMM_OK;
}

fgmm_status cl_read_pieces(fgmm_device *device, size_t count, size_t ahead, cl_piece_asked *ask, cl_piece_taken *take,
                           void *user, const char *what) {
    cl_arrival *pieces = device->engine->pieces;
    for (size_t i = 0, asked = 0; i < count; i++) {
        for (; asked < count && asked < i + ahead; asked++) {
            fgmm_status status = ask(device, user, asked, &pieces[asked % ahead]);
            if (status == FGMM_ERR_MEMORY && asked > i) { /* those that are on their way leave room */
                cl_forget(device);
                break;
            }
            CL_TRY(status);
        }
        CL_TRY(cl_read_end(device, &pieces[i % ahead], what));
        take(device, user, i, pieces[i % ahead].pinned.at);
    }
    return FGMM_OK;
}

enum { FETCH_BYTES = 2 << 20 /* a piece */, SHARE = 128 << 10 /* of a thread, at a time */ };

static size_t fetch_pieces(const cl_fetch *fetch) {
    return (fetch->bytes + FETCH_BYTES - 1) / FETCH_BYTES;
}

/* The transfer that a piece of all is of, and what it has: *at, and how many bytes from there on. */
static const cl_fetch *piece_of(const cl_fetch *fetch, size_t piece, size_t *at, size_t *bytes) {
    for (; piece >= fetch_pieces(fetch); fetch++) piece -= fetch_pieces(fetch);
    *at = piece * FETCH_BYTES;
    *bytes = fetch->bytes - *at < FETCH_BYTES ? fetch->bytes - *at : FETCH_BYTES;
    return fetch;
}

static fgmm_status ask_piece(fgmm_device *device, void *user, size_t piece, cl_arrival *out) {
    size_t at, bytes;
    const cl_fetch *fetch = piece_of(user, piece, &at, &bytes);
    return cl_read_begin(device, out, fetch->buffer, at, bytes, fetch->what);
}

static void take_piece(fgmm_device *device, void *user, size_t piece, const void *from) {
    size_t start, bytes;
    const cl_fetch *fetch = piece_of(user, piece, &start, &bytes);
#pragma omp parallel for num_threads(cl_threads(device, bytes / 8)) if (bytes > SHARE)
    for (size_t at = 0; at < bytes; at += SHARE) {
        size_t share = bytes - at < SHARE ? bytes - at : SHARE;
        if (fetch->take)
            fetch->take(fetch->out, (const char *)from + at, start + at, share);
        else
            memcpy((char *)fetch->out + start + at, (const char *)from + at, share);
    }
}

fgmm_status cl_fetch_all(fgmm_device *device, cl_fetch *fetches, size_t count) {
    size_t pieces = 0;
    for (size_t i = 0; i < count; i++) pieces += fetch_pieces(&fetches[i]);
    return cl_read_pieces(device, pieces, CL_PIECES, ask_piece, take_piece, fetches, "reading results");
}

cl_int cl_arrival_wait(cl_arrival *arrival) {
    if (!arrival->event) return CL_SUCCESS;
    cl_int code = clWaitForEvents(1, &arrival->event);
    clReleaseEvent(arrival->event);
    arrival->event = NULL;
    return code;
}

fgmm_status cl_read_end(fgmm_device *device, cl_arrival *arrival, const char *what) {
    CL_CHECK(device, cl_arrival_wait(arrival), what);
    return FGMM_OK;
}

void cl_arrival_free(fgmm_device *device, cl_arrival *arrival) {
    (void)cl_arrival_wait(arrival);
    cl_pinned_free(device, &arrival->pinned);
}

fgmm_status cl_write_at(fgmm_device *device, cl_mem buffer, size_t at, size_t bytes, const void *data,
                        const char *what) {
    CL_CHECK(device, clEnqueueWriteBuffer(device->queue, buffer, CL_TRUE, at, bytes, data, 0, NULL, NULL), what);
    return FGMM_OK;
}

fgmm_status cl_write(fgmm_device *device, cl_mem buffer, size_t bytes, const void *data, const char *what) {
    return cl_write_at(device, buffer, 0, bytes, data, what);
}

fgmm_status cl_send(fgmm_device *device, cl_room *room, size_t bytes, const void *data, const char *what) {
    CL_TRY(cl_room_fit(device, room, bytes, what));
    return bytes ? cl_write(device, room->mem, bytes, data, what) : FGMM_OK;
}
