#include "cli_ranks.h"

#include "cli_devices.h"

#include <stdlib.h>
#include <string.h>

int cli_ranks_is_root(const cli_ranks *r) {
    return r->ranks.rank == 0;
}

int cli_ranks_count(const cli_ranks *r) {
    return r->ranks.size > 0 ? r->ranks.size : 1;
}

int cli_ranks_share(const cli_ranks *r, int64_t total, int64_t *first, int64_t *n) {
    int64_t size = cli_ranks_count(r), rank = r->ranks.rank, each = total / size, rest = total % size;
    if (each == 0) {
        cli_say("%lld rows are too few for %lld ranks", (long long)total, (long long)size);
        return CLI_FAILED;
    }
    *first = rank * each + (rank < rest ? rank : rest);
    *n = each + (rank < rest);
    return CLI_DONE;
}

const char *cli_ranks_device(const cli_ranks *r, const char *device, char id[32]) {
    enum { MOST = 64 };
    char ids[MOST][32];
    if (cli_ranks_count(r) == 1 || !device || strcmp(device, "opencl") != 0) return device;
    int count = cli_list_gpus(ids, MOST);
    if (count == 0) return device;
    return memcpy(id, ids[r->local % count], sizeof ids[0]);
}

#ifndef FLASHGMM_HAVE_MPI

int cli_ranks_open(const cli_command *self, cli_ranks *r) {
    /* Open MPI, then MPICH and its kin, then Slurm's own. */
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    (void)r;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *size = getenv(names[i]);
        if (!size || atoi(size) < 2) continue;
        return cli_usage(self,
                         "this flashgmm was built without MPI: %s copies of it would do the same work each. "
                         "Build with meson -Dmpi=enabled",
                         size);
    }
    return CLI_DONE;
}

int cli_ranks_agree(const cli_ranks *r, int rc) {
    (void)r;
    return rc;
}

void cli_ranks_close(cli_ranks *r) {
    *r = (cli_ranks){0};
}

#endif
