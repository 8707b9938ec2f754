/*
 * Programs in Hopper's own instructions (wgmma.clh). NVIDIA's OpenCL compiler writes PTX for the target sm_90, which has none of them,
 * but its assembler knows sm_90a. So they stand in the source behind a mark that makes them comments; here the marks are taken out of
 * the PTX, which is what the driver gives as a program's binary, and the target is renamed. What is cached is made by this: a change here
 * raises CACHE_FORMAT.
 */
#include "cl_program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char mark[] = "//SM90A ", target[] = ".target sm_90";
static const char group[] = ".reqntid", resident_option[] = "-DRESIDENT=";

int cl_sm90a_marked(const char *source) {
    return strstr(source, mark) != NULL;
}

/* Copies PTX without the marks and with the target renamed. @param resident so many work-groups are to have room in a compute
 * unit, for which OpenCL has no word; 0: as the compiler likes. @param to room for `size` more than that adds. @return its size, 0 if it is not such PTX */
static size_t unmark(char *to, const char *from, size_t size, int resident) {
    size_t length = 0, marks = 0, targets = 0;
    char bound[32];
    int bound_size = snprintf(bound, sizeof bound, ".minnctapersm %d\n", resident);
    for (size_t i = 0; i < size;) {
        if (resident && size - i >= sizeof group - 1 && memcmp(from + i, group, sizeof group - 1) == 0) {
            memcpy(to + length, bound, (size_t)bound_size);
            length += (size_t)bound_size;
            memcpy(to + length, group, sizeof group - 1);
            length += sizeof group - 1;
            i += sizeof group - 1;
        } else if (size - i >= sizeof mark - 1 && memcmp(from + i, mark, sizeof mark - 1) == 0) {
            i += sizeof mark - 1;
            marks++;
        } else if (size - i >= sizeof target - 1 && memcmp(from + i, target, sizeof target - 1) == 0 && !targets) {
            memcpy(to + length, target, sizeof target - 1);
            i += sizeof target - 1;
            length += sizeof target - 1;
            to[length++] = 'a';
            if (i < size && from[i] == 'a') i++;
            targets++;
        } else {
            to[length++] = from[i++];
        }
    }
    return marks && targets ? length : 0;
}

cl_int cl_sm90a(fgmm_device *device, cl_program *program, const char *options) {
    const fgmm_host *host = &device->host;
    size_t size = 0;
    cl_int code = clGetProgramInfo(*program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL), accepted = CL_SUCCESS;
    if (code != CL_SUCCESS) return code;
    unsigned char *binary = host->alloc(host->user, 3 * size + 256), *text = binary + size;
    if (!binary) return CL_OUT_OF_HOST_MEMORY;
    code = clGetProgramInfo(*program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL);
    clReleaseProgram(*program);
    *program = NULL;
    const char *resident = strstr(options, resident_option);
    int count = resident ? atoi(resident + sizeof resident_option - 1) : 0;
    size_t length = code == CL_SUCCESS ? unmark((char *)text, (const char *)binary, size, count) : 0;
    if (code == CL_SUCCESS && !length) code = CL_INVALID_BINARY;
    if (code == CL_SUCCESS)
        *program = clCreateProgramWithBinary(device->context, 1, &device->id, &length, (const unsigned char *[]){text},
                                             &accepted, &code);
    if (code == CL_SUCCESS) code = accepted;
    if (code == CL_SUCCESS) code = clBuildProgram(*program, 1, &device->id, options, NULL, NULL);
    host->free(host->user, binary);
    return code;
}
