"""A rank of checkpoint_mpi.py: it trains some epochs, and rank 0 saves each with metaflow-checkpoint."""

import argparse
import json
import os
import tempfile

from metaflow import Checkpoint
from mpi4py import MPI

parser = argparse.ArgumentParser()
parser.add_argument("--begin", type=int)
parser.add_argument("--fails", action="store_true")
options = parser.parse_args()

world = MPI.COMM_WORLD
for epoch in range(options.begin, 4):
    if options.fails and epoch == 2 and world.rank == 1:
        raise RuntimeError("rank 1 fails on purpose in epoch 2 of the first attempt")
    total = world.allreduce(1)
    if world.rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "state.json"), "w") as file:
                json.dump({"epoch": epoch + 1, "saved_by": "a rank"}, file)
            Checkpoint().save(folder, name=f"epoch-{epoch}")
        print(f"epoch {epoch} of {total} ranks is saved", flush=True)
    world.Barrier()  # nobody is an epoch ahead of what is saved
