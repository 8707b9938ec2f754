/* The processes that mpirun has started for one command: ranks. In a build without MPI there is always one. */
#ifndef FLASHGMM_TOOLS_CLI_RANKS_H
#define FLASHGMM_TOOLS_CLI_RANKS_H

#include "cli.h"

/* Zero-initialise: one rank alone. */
typedef struct cli_ranks {
    fgmm_ranks ranks;  /* for fgmm_fit_options */
    int local, locals; /* number of this rank on its machine, and how many are there */
    void *mpi;         /* what MPI needs, or NULL */
} cli_ranks;

/* Joins the other ranks where mpirun has started this process. @return CLI_DONE, or an exit code after a message. */
int cli_ranks_open(const cli_command *self, cli_ranks *r);

/* To be called by all at once. @return the largest exit code of all: where one has failed, all stop. */
int cli_ranks_agree(const cli_ranks *r, int rc);

void cli_ranks_close(cli_ranks *r);

/* 1 on the rank that writes and prints. */
int cli_ranks_is_root(const cli_ranks *r);
int cli_ranks_count(const cli_ranks *r);

/* This rank's share: rows *first .. *first + *n - 1 of `total`. @return CLI_DONE, or CLI_FAILED after a message. */
int cli_ranks_share(const cli_ranks *r, int64_t total, int64_t *first, int64_t *n);

/* Ranks that share a machine and ask for "opencl" take a GPU each. @param id room for its name.
 * @return id, or `device` where there is nothing to choose. */
const char *cli_ranks_device(const cli_ranks *r, const char *device, char id[32]);

#endif
