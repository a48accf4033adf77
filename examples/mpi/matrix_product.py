"""One rank of matrix.py: `matrix_product.py SIZE FILE`. Rank 0 compares with numpy's product and writes the file."""

import sys

import numpy
from mpi4py import MPI

world = MPI.COMM_WORLD
size, file = int(sys.argv[1]), sys.argv[2]

a = b = None
if world.rank == 0:
    random = numpy.random.default_rng(seed=1)
    a, b = random.random((size, size)), random.random((size, size))
b = world.bcast(b)
rows = world.scatter(None if a is None else numpy.array_split(a, world.size))
parts = world.gather(rows @ b)
if world.rank == 0:
    product = numpy.concatenate(parts)
    error = numpy.abs(product - a @ b).max()
    print(f"{world.size} ranks, largest error {error:.1e}", flush=True)
    assert error < 1e-9
    numpy.save(file, product)
