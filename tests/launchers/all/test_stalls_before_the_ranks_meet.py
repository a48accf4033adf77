"""Rank 0 hangs before the ranks have met, and all others wait for it in their framework: the gang is told to stall."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from support.flows import FlowRunner
from support.frameworks.mpi import MPICH, OPEN_MPI_4, path_with
from support.requirements import require_packages

pytestmark = pytest.mark.slow

STALL_S = 5.0

MORE_S = 15.0
"""From ``stall_timeout`` to the report, for the stacks of all processes, on a machine that is busy with other tests."""

START_S = 120.0
"""For two nodes, and ranks that import their framework, on a machine that is busy with other tests."""

FLOW = """
import sys
from metaflow import FlowSpec, current, step, LAUNCHER as launcher

import ranks

class Waits(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @launcher(stall_timeout=STALL)
    @step
    def work(self):
        if "LAUNCHER" == "jax":
            ranks.jax(current.gang.node_index)
        elif "LAUNCHER" == "mpi":
            current.mpi.run(["-n", "2"], [sys.executable, "ranks.py", "mpi"])
        else:
            current.LAUNCHER.run(entrypoint="ranks.py", entrypoint_args=["LAUNCHER"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Waits()
"""

RANKS = """
import json, os, sys, time

def hang():
    print("rank 0 hangs;", flush=True)
    time.sleep(1000)

def meets():
    print("another rank comes to the meeting;", flush=True)

def jax(node):
    import jax
    if node == 0:
        hang()
    meets()
    jax.distributed.initialize()

def mpi():
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])
    if rank == 0:
        hang()
    meets()
    from mpi4py import MPI
    MPI.COMM_WORLD.Barrier()

def deepspeed():
    import torch.distributed as dist  # deepspeed.init_distributed() compiles its own extension before, which is work
    if os.environ["RANK"] == "0":
        hang()
    meets()
    dist.init_process_group("gloo")

def tensorflow():
    import tensorflow as tf
    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
        hang()
    meets()
    tf.distribute.MultiWorkerMirroredStrategy()

if __name__ == "__main__":
    globals()[[name for name in sys.argv[1:] if not name.startswith("-")][0]]()
"""


@pytest.mark.parametrize(
    ("launcher", "package", "kind"),
    [
        ("deepspeed", "deepspeed", None),
        ("jax", "jax", None),
        ("tensorflow", "tensorflow", None),
        ("mpi", "mpi4py", OPEN_MPI_4),
        ("mpi", "mpi4py", MPICH),
    ],
)
def test_a_rank_that_never_comes_is_told_in_time(flow_run: FlowRunner, launcher: str, package: str, kind: Any) -> None:
    require_packages(package)
    env = {"PATH": path_with(kind)} if kind is not None else {}
    text = FLOW.replace("LAUNCHER", launcher).replace("STALL", f"{STALL_S:g}")
    run = flow_run(text, env=env, files={"ranks.py": RANKS})
    run.wait_for("rank 0 hangs;", START_S)
    run.wait_for("another rank comes to the meeting;", START_S)
    since = time.monotonic()
    found = run.wait_for(re.compile(r"has made no progress for 5 s \(stall_timeout\).*"), STALL_S + MORE_S)
    print(f"{launcher} {kind or ''}: told after {time.monotonic() - since:.1f} s: {found[0]}")
    run.fails(START_S)
    assert " in hang at ranks.py:" in found[0], found[0]
