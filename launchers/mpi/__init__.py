"""@mpi: mpirun over the nodes of a gang."""
