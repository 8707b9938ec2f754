/* What the commands that fit share: starts, weights, reports. */
#ifndef FLASHGMM_TOOLS_CLI_FITTING_H
#define FLASHGMM_TOOLS_CLI_FITTING_H

#include "cli.h"

#define CLI_INIT_HELP "kmeans++ (default), kmeans, random, random_from_data, or a model to start from"

int cli_is_model(const char *init); /* the name of a model file */

/* The value of --init into *out, which is left alone for a model file. @return CLI_GO_ON, or an exit code after a
 * message. */
int cli_parse_init(const cli_command *self, const char *init, fgmm_init *out);

/* The interface's zero means "default"; on the command line a zero is a zero. NaN stands for "not given". */
double cli_zero_is_off(double value);

/* Rows with their weights and the model to start from. Zero-initialise; free with cli_inputs_free. */
typedef struct cli_inputs {
    fgmm_rows *rows;
    double *weights;
    fgmm_model *start;
} cli_inputs;

/* @param weights NULL, or an .npy. @param init what --init said. @return CLI_DONE, or an exit code after a message. */
int cli_inputs_open(const cli_session *s, cli_inputs *in, const char *data, const char *format, const char *weights,
                    const char *init);
void cli_inputs_free(const cli_session *s, cli_inputs *in);

/* The first and last lines of what a fit prints. */
void cli_print_data(const cli_inputs *in, const fgmm_report *r);
void cli_print_device(const fgmm_report *r);
void cli_print_iterations(const fgmm_report *r);
void cli_print_time(const fgmm_report *r);

/* device precision engine n_iter converged / seconds ... warnings, of a report. */
void json_run(json_out *j, const fgmm_report *r);
void json_cost(json_out *j, const fgmm_report *r);

#endif
