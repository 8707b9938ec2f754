/* Ranks over MPI. An error within MPI ends all of them, as MPI does by itself; so does mpirun where a rank is killed. */
#include "cli_ranks.h"

#include <mpi.h>
#include <stdlib.h>

/* Numbers that are summed at a time: bounds the room, and fits MPI's int counts. */
enum { PIECE = 1 << 20 };

typedef struct ranks_mpi {
    int size, rank;
    int *counts, *places; /* [size] of the parts of a piece, one a rank */
    int *same, *rows;     /* [size] of what all ranks send of one part */
    double *room;         /* [size, longest part] */
} ranks_mpi;

static void free_mpi(ranks_mpi *m) {
    free(m->counts);
    free(m->room);
    free(m);
}

/*
 * Each rank adds up one part of the piece, in the order of ranks, and all get the parts: the traffic of a reduction, and
 * the same bits on every rank and in every run. MPI_Allreduce promises no order.
 */
static int sum_piece(ranks_mpi *m, double *values, int count) {
    int part = (count + m->size - 1) / m->size;
    for (int r = 0; r < m->size; r++) {
        m->places[r] = r * part < count ? r * part : count;
        m->counts[r] = count - m->places[r] < part ? count - m->places[r] : part;
    }
    int own = m->counts[m->rank];
    double *sums = values + m->places[m->rank];
    for (int r = 0; r < m->size; r++) {
        m->same[r] = own;
        m->rows[r] = r * own;
    }
    int code =
        MPI_Alltoallv(values, m->counts, m->places, MPI_DOUBLE, m->room, m->same, m->rows, MPI_DOUBLE, MPI_COMM_WORLD);
    if (code != MPI_SUCCESS) return code;
    for (int i = 0; i < own; i++) {
        double sum = 0;
        for (int r = 0; r < m->size; r++) sum += m->room[r * own + i];
        sums[i] = sum;
    }
    return MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values, m->counts, m->places, MPI_DOUBLE, MPI_COMM_WORLD);
}

static int sum(void *user, double *values, int64_t count) {
    for (int64_t from = 0; from < count; from += PIECE) {
        int code = sum_piece(user, values + from, count - from < PIECE ? (int)(count - from) : PIECE);
        if (code != MPI_SUCCESS) return code;
    }
    return 0;
}

static void look_around(cli_ranks *r) {
    MPI_Comm machine;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &r->local);
    MPI_Comm_size(machine, &r->locals);
    MPI_Comm_free(&machine);
}

int cli_ranks_open(const cli_command *self, cli_ranks *r) {
    (void)self;
    /* Without mpirun MPI is not started: it takes a while, and a daemon. Open MPI, then MPICH and its kin, then Slurm. */
    if (!getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMI_SIZE") && !getenv("PMIX_RANK")) return CLI_DONE;
    int provided;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        cli_say("MPI does not start");
        return CLI_FAILED;
    }
    ranks_mpi *m = calloc(1, sizeof *m);
    if (m) {
        MPI_Comm_size(MPI_COMM_WORLD, &m->size);
        MPI_Comm_rank(MPI_COMM_WORLD, &m->rank);
        m->counts = calloc((size_t)m->size * 4, sizeof *m->counts);
        m->room = calloc((size_t)PIECE + (size_t)m->size, sizeof *m->room);
    }
    if (!m || !m->counts || !m->room) {
        cli_say("no memory for MPI");
        MPI_Abort(MPI_COMM_WORLD, CLI_FAILED);
        return CLI_FAILED;
    }
    m->places = m->counts + m->size;
    m->same = m->places + m->size;
    m->rows = m->same + m->size;
    r->mpi = m;
    look_around(r);
    r->ranks = (fgmm_ranks){sum, m, m->rank, m->size};
    return CLI_DONE;
}

int cli_ranks_agree(const cli_ranks *r, int rc) {
    int worst = rc;
    if (r->mpi) MPI_Allreduce(&rc, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return worst;
}

void cli_ranks_close(cli_ranks *r) {
    if (r->mpi) {
        free_mpi(r->mpi);
        MPI_Finalize();
    }
    *r = (cli_ranks){0};
}
