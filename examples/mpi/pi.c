/* The number pi as the area under 4 / (1 + x^2), each rank adding up some of its strips. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    int rank, size;
    long strips = argc > 1 ? atol(argv[1]) : 1000000;
    double part = 0.0, pi = 0.0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (long strip = rank; strip < strips; strip += size) {
        double x = (strip + 0.5) / strips;
        part += 4.0 / (1.0 + x * x) / strips;
    }
    MPI_Reduce(&part, &pi, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("pi is %.10f by %d ranks\n", pi, size);
    MPI_Finalize();
    return 0;
}
