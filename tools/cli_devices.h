/* Several devices for one fit: --device A,B,... or all, each with its share of the rows. */
#ifndef FLASHGMM_TOOLS_CLI_DEVICES_H
#define FLASHGMM_TOOLS_CLI_DEVICES_H

#include "cli_fitting.h"

enum { CLI_DEVICES_MAX = 16, CLI_DEVICE_NAME = 64 };

typedef struct cli_device {
    char name[CLI_DEVICE_NAME];
    fgmm_context *ctx;
    fgmm_rows *rows, *part; /* all rows, and this device's */
    double share;           /* of 1 */
    int64_t first, n;
    fgmm_report report;
} cli_device;

/* Zero-initialise: n stays 0 where one device, or none, was named. The first is the session's. */
typedef struct cli_devices {
    int n, given; /* given: --shares said how much each takes */
    cli_device list[CLI_DEVICES_MAX];
} cli_devices;

/* The ids of the OpenCL devices that are no CPU and can be used, at most `most`: none where FLASHGMM_DEVICE keeps OpenCL
 * alone. @return how many. */
int cli_list_gpus(char (*ids)[32], int most);

/* Reads the values of --device and --shares, which may be NULL. *device becomes the first one's name, if there are
 * several. @return CLI_GO_ON, or an exit code after a message. */
int cli_devices_parse(const cli_command *self, cli_devices *d, const char **device, const char *shares);

/* Threads of the session where some of the devices share the CPU with it. */
int cli_devices_threads(const cli_session *s, const cli_devices *d);

/* Opens the others beside the session, with the data each. @return CLI_DONE, or an exit code after a message. */
int cli_devices_open(const cli_command *self, cli_session *s, cli_devices *d, const cli_inputs *in, const char *data,
                     const char *format);

/* Shares the rows out, as given, or by how fast each device takes a part of them under the fit's first model, and fits:
 * *status is fgmm_fit_devices'. @return CLI_DONE, or CLI_FAILED after a message. */
int cli_devices_fit(const cli_session *s, cli_devices *d, const cli_inputs *in, const fgmm_fit_options *options,
                    fgmm_model **out, fgmm_report *report, fgmm_status *status);

void cli_devices_print(const cli_devices *d);
void json_devices(json_out *j, const cli_devices *d);
void cli_devices_close(cli_devices *d);

#endif
