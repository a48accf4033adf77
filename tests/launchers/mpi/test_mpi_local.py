"""@mpi where all nodes are processes of this machine."""

from __future__ import annotations

import re

import pytest
from support.flows import FlowRunner
from support.frameworks.mpi import MPICH, OPEN_MPI_4, path_with

END_S = 60.0
"""Tells an end from a hang, on a machine that is busy."""

FLOW = """
import os
from metaflow import FlowSpec, current, mpi, step
from metaflow.exception import MetaflowException

class Local(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @mpi
    @step
    def work(self):
        print("own", os.environ["CUDA_VISIBLE_DEVICES"])
        # By way of rank 0: lines of two ranks may mix on their way.
        show = "from mpi4py import MPI; import os; seen = MPI.COMM_WORLD.gather(os.environ['CUDA_VISIBLE_DEVICES']); "
        show = ["python", "-c", show + "print(*('rank sees ' + one for one in seen or ()), sep=chr(10), flush=True)"]
        current.mpi.run(["-n", "2"], show)
        current.mpi.run(["-n", "2"], show, env={"CUDA_VISIBLE_DEVICES": "9"})
        try:
            current.gang.barrier()
        except MetaflowException as error:
            print("refused:", error)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Local()
"""


@pytest.mark.parametrize("kind", [OPEN_MPI_4, MPICH])
def test_ranks_see_all_nodes_gpus_and_collectives_of_the_body_are_refused(flow_run: FlowRunner, kind: str) -> None:
    run = flow_run(FLOW, env={"PATH": path_with(kind), "CUDA_VISIBLE_DEVICES": "4,7"}).ok(END_S)
    assert re.search(r"\bown 4$", run.output, re.MULTILINE), "the nodes share them out"
    assert re.findall(r"rank sees (\d\S*)", run.output) == ["4,7", "4,7", "9", "9"]
    assert "needs all nodes, but the body of a step with @mpi runs on node 0 alone" in run.output
