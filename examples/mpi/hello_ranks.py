"""One rank of hello.py: rank 0 gathers everybody's greeting and prints them in order."""

import socket

from mpi4py import MPI

world = MPI.COMM_WORLD
greetings = world.gather(f"rank {world.rank} of {world.size} on {socket.gethostname()}")
if world.rank == 0:
    print("\n".join(greetings), flush=True)
