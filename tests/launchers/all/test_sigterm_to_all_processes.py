"""SIGTERM to all processes of a gang, ranks first, as Slurm may send it: the bodies save and the report is of a
preemption, whatever the ranks make of the signal.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import pytest
from support.flows import FlowRunner
from support.frameworks.tensorflow import END_S, QUIET, START_S
from support.requirements import require_packages

BIG = pytest.mark.big

BETWEEN_S = 0.02
"""Seconds between the ranks' signal and the tasks': guards have seen some ranks' ends by then."""

RANKS = """
import os, signal, sys, time

def raises(number, frame):
    raise RuntimeError("this rank was told to end")

how = os.environ["HOW"]
if how == "exits":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
if how == "raises":
    signal.signal(signal.SIGTERM, raises)
if how == "waits":
    import torch
    torch.distributed.init_process_group("gloo")
    torch.distributed.all_reduce(torch.ones(1))
print("a rank is ready", flush=True)
if how == "waits" and torch.distributed.get_rank() == 0:
    torch.distributed.all_reduce(torch.ones(1))
time.sleep(1000)
"""

FLOW = """
import os, sys
from metaflow import FlowSpec, current, step
import metaflow

LAUNCHER, _, agent = os.environ["LAUNCHER"].partition("-")

class Ranks(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @getattr(metaflow, LAUNCHER)
    @step
    def work(self):
        me = current.gang.node_index
        current.gang.on_preemption(lambda: open(f"saved-{me}", "w").close(), seconds=3.0)
        if LAUNCHER == "mpi":
            current.mpi.run(args=["-n", "2"], program=[sys.executable, "ranks.py"])
        elif LAUNCHER == "deepspeed":
            current.deepspeed.run(entrypoint="ranks.py", deepspeed_args=["--num_gpus", "1"])
        elif LAUNCHER == "torchrun":
            needs_agent = {"monitor_interval": 1} if agent else {}
            current.torch.run({"nproc_per_node": 1, **needs_agent}, entrypoint="ranks.py")
        else:
            current.gang.run_together([sys.executable, "ranks.py"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Ranks()
"""

IN_CI = {("gang", "dies"), ("gang", "exits"), ("torchrun", "raises"), ("mpi", "raises")}

CASES = [
    pytest.param(launcher, how, marks=[] if (launcher, how) in IN_CI else BIG)
    for launcher in ("gang", "torchrun", "torchrun-agent", "deepspeed", "mpi")
    for how in ("dies", "exits", "raises", "waits")
    if how != "waits" or launcher not in ("gang", "mpi")
]


def told(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "how"), CASES)
def test_it_is_a_preemption(flow_run: FlowRunner, launcher: str, how: str) -> None:
    packages = {"gang": (), "mpi": ("mpi4py",), "deepspeed": ("deepspeed", "torch")}
    require_packages(*packages.get(launcher, ("torch",)))
    run = flow_run(FLOW, files={"ranks.py": RANKS}, env={**QUIET, "LAUNCHER": launcher, "HOW": how})
    run.wait_for("a rank is ready", START_S, count=2)
    tasks = list(run.tasks("work").values())
    others = [process.pid for process in run.below() if "run" not in process.command]
    for pid in reversed(others):
        if pid not in tasks:
            told(pid)
    time.sleep(BETWEEN_S)
    for pid in tasks:
        told(pid)
    output = run.fails(END_S)
    reports = re.findall(r"The first failure was on (.*)|These failed within the same moment:\n.*- (.*)", output)
    assert reports and all("was told to end (SIGTERM)" in report for report in map("".join, reports)), run.dump()
    assert "killed by" not in output and "exited with" not in output and "running ranks.py" not in output, run.dump()
    saved = {"saved-0"} if launcher == "mpi" else {"saved-0", "saved-1"}  # the body of @mpi runs on node 0 alone
    assert {path.name for path in run.folder.glob("saved-*")} == saved, run.dump()
