#include <stdlib.h>

#include "parallel/transport.h"

/* What launchers leave in the environment, the innermost first: an mpirun inside a Slurm step
 * counts, the step does not. Slurm's own count is that of the step; in a batch script, which is no
 * step, it is absent. */
static const struct {
    const char *by, *size, *rank;
} traces[] = {
    {"Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
    {"MVAPICH's mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"},
    {"mpirun", "PMI_SIZE", "PMI_RANK"},
    {"PALS", NULL, "PALS_RANKID"},
    {"jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"},
    {"flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"},
    {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"},
    {"a PMIx launcher", NULL, "PMIX_RANK"},
    {"mpirun", NULL, "PMI_RANK"},
    {"mpirun", NULL, "MPI_LOCALRANKID"},
};

/* The number in this variable, or -1. */
static int number(const char *variable) {
    const char *text = variable ? getenv(variable) : NULL;
    if (!text || *text == '\0') return -1;
    char *end;
    long n = strtol(text, &end, 10);
    return *end != '\0' || n < 0 || n > INT32_MAX ? -1 : (int)n;
}

void launch_find(struct launch *l) {
    for (size_t i = 0; i < sizeof traces / sizeof traces[0]; i++) {
        int size = number(traces[i].size), rank = number(traces[i].rank);
        if (rank < 0 || (traces[i].size && size < 1)) continue;
        *l = (struct launch){traces[i].size ? size : 0, rank, traces[i].by};
        return;
    }
    *l = (struct launch){1, 0, NULL};
}
