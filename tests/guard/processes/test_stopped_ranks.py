"""A stopped rank is told within seconds, also where another program has started it."""

from __future__ import annotations

import re
import signal
import time

import pytest
from support.faults import kill_process
from support.flows import FlowRunner

pytestmark = pytest.mark.slow

END_S = 60.0

TOLD_S = 25.0
"""A process may be stopped for 10 s; the rest is the run's end on a machine that is busy."""

FLOW = """
import os, sys
from metaflow import FlowSpec, Parameter, current, step, deepspeed, mpi, torchrun

class Stopped(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @{launcher}
    @step
    def train(self):
        {call}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Stopped()
"""

TRAIN = """
import os, subprocess, sys, time
rank = os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK")
if rank == "3":
    stopped = subprocess.Popen(["sleep", "100"])
    os.kill(stopped.pid, 19)  # its own, which may be stopped as long as it likes
    print(f"to be stopped: {os.getpid()}.", flush=True)
time.sleep(100)
"""

CALLS = {
    "agent": ("torchrun", 'current.torch.run({"max_restarts": 0}, "train.py", nproc_per_node=2)'),
    "deepspeed": ("deepspeed", 'current.deepspeed.run({"num_gpus": 2}, "train.py")'),
    "mpi": ("mpi", 'current.mpi.run(args=["-n", "4"], program="python train.py")'),
}


@pytest.mark.parametrize(
    "kind", ["agent", pytest.param("deepspeed", marks=pytest.mark.big), pytest.param("mpi", marks=pytest.mark.big)]
)
def test_a_stopped_rank_is_told_by_its_number(flow_run: FlowRunner, kind: str) -> None:
    launcher, call = CALLS[kind]
    source = FLOW.replace("{launcher}", launcher).replace("{call}", call)
    run = flow_run(source, files={"train.py": TRAIN})
    pid = run.wait_for(re.compile(r"to be stopped: (\d+)\."), END_S)[1]
    kill_process(int(pid), signal.SIGSTOP)
    since = time.monotonic()
    run.fails(END_S)
    assert time.monotonic() - since < TOLD_S
    node = 0 if kind == "mpi" else 1  # which starts all ranks of one machine
    said = re.findall(rf"first failure was on node {node} \(.*\): rank 3 \(process \d+\) has been stopped", run.output)
    assert len(said) == 2, run.dump()
