"""A C program: compiled on node 0 by the MPI's own compiler, brought to all nodes, and run on them.

    python examples/mpi/compiled.py run

Needs an MPI with its compiler, and gcc: `pip install mpich`, or Debian's libopenmpi-dev.
"""

import os

from metaflow import FlowSpec, current, mpi, step

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pi.c")


class Compiled(FlowSpec):
    @step
    def start(self):
        self.next(self.compute, num_parallel=2)

    @mpi
    @step
    def compute(self):
        program = f"pi-{current.run_id}"
        current.mpi.cc(["-O2", "-o", program, SOURCE])
        try:
            current.mpi.broadcast_file(program)
            current.mpi.exec(program=[f"./{program}", "2000000"])
        finally:
            os.unlink(program)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Compiled()
