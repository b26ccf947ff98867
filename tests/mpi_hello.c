/* mpi_hello: does this MPI start ranks that know of each other?  Some distributions ship one whose
 * ranks each believe to be alone; make compiles this and runs it on two ranks before it trusts a
 * compiler wrapper and its launcher. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank = -1, size = 0, length = 0;
    long one = 1, sum = 0;
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&one, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    MPI_Get_library_version(version, &length);
    for (char *c = version; *c; c++)
        if (*c == '\n' || *c == '\t') *c = ' ';
    if (rank == 0) printf("hello from %d of %d: %.60s\n", (int)sum, size, version);
    MPI_Finalize();
    return sum == size ? 0 : 1;
}
