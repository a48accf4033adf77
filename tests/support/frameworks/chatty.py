"""Gangs in which one rank fails while the others write on and on: what each node then tells, under each launcher that
starts the ranks itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..flows import FlowRun

CAUSE = "THE REAL CAUSE"

FLOW = """
import os, time
from metaflow import FlowSpec, current, step, {launcher}

def train():
    rank = int(os.environ["RANK"])
    time.sleep(1)
    if rank == 1:
        raise ValueError("THE REAL CAUSE")
    line = "x" * 150
    for i in range(10**9):
        print(f"rank {{rank}} debug {{i}} {{line}}", flush=True)
        time.sleep(0.0005)

class Chatty(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @{launcher}
    @step
    def work(self):
        {call}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Chatty()
"""

MPI4PY = """
import sys, time
from mpi4py import MPI
rank = MPI.COMM_WORLD.Get_rank()
MPI.COMM_WORLD.Barrier()
if rank == 1:
    time.sleep(1)
    raise ValueError("THE REAL CAUSE")
i, line = 0, "x" * 150
while True:
    i += 1
    print(f"rank {rank} debug {i} {line}", file=sys.stderr, flush=True)
    time.sleep(0.0002)
"""

PROGRAM = """#!/bin/bash
rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
if [ "$rank" = 1 ]; then sleep 1; echo "rank 1: THE REAL CAUSE" >&2; exit 3; fi
trap "" TERM
line=$(printf 'x%.0s' {1..150})
while :; do echo "rank $rank debug $line" >&2; sleep 0.002; done
"""

TRAIN = """
import os, sys, time
rank = int(os.environ["RANK"])
time.sleep(1)
if rank == 1:
    raise ValueError("THE REAL CAUSE")
i, line = 0, "x" * 150
while True:
    i += 1
    print(f"rank {rank} debug {i} {line}", file=sys.stderr, flush=True)
    time.sleep(0.0002)
"""

CALLS = {
    "deepspeed": ("deepspeed", 'current.deepspeed.run(entrypoint=train, deepspeed_args={"num_gpus": 2})'),
    "deepspeed script": ("deepspeed", 'current.deepspeed.run(entrypoint="train.py", deepspeed_args={"num_gpus": 2})'),
    "mpi4py": ("mpi", 'current.mpi.run(args=["-n", "3"], program="python prog.py")'),
    "mpi program": ("mpi", 'current.mpi.run(args=["-n", "3"], program="./prog.sh")'),
    "torchrun agent": (
        "torchrun",
        'current.torch.run({"max_restarts": 0}, entrypoint="train.py", nproc_per_node=2)',
    ),
}
"""Launcher and call, by what is shown: rank 1, which fails, is on node 0 under each."""


def write(kind: str, folder: Path) -> Path:
    """The flow and what it runs, in ``folder``."""
    launcher, call = CALLS[kind]
    (folder / "flow.py").write_text(FLOW.format(launcher=launcher, call=call))
    for name, text in (("prog.py", MPI4PY), ("prog.sh", PROGRAM), ("train.py", TRAIN)):
        (folder / name).write_text(text)
    os.chmod(folder / "prog.sh", 0o755)
    return folder / "flow.py"


def round_of(kind: str, folder: Path, timeout: float, env: dict[str, str] | None = None) -> list[str]:
    """One run; what is wrong with what it told, nothing where each node tells rank, end and words of the cause."""
    run = FlowRun(write(kind, folder), folder=folder, env={"PYTHONUNBUFFERED": "1", **(env or {})})
    with run:
        output = run.fails(timeout)
    return problems(kind, output)


def problems(kind: str, output: str) -> list[str]:
    """What is wrong with the output of a run of ``kind``."""
    found = []
    code = 3 if kind == "mpi program" else 1
    lines = [re.sub(r"^\S+ \S+ \[\S+ \(pid \d+\)\] ", "", line) for line in output.splitlines()]
    told = {}
    for node in (0, 1):
        prefix = f"[node {node}] "
        own = [line.removeprefix(prefix) for line in lines if line.startswith(prefix) or not line.startswith("[node ")]
        if node:
            own = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        text = "\n".join(own)
        begins = rf"first failure was on node 0 \(.*\): rank 1 exited with code {code}$"
        if node == 0 and kind != "deepspeed":  # a function's own exception is raised as it is
            begins = rf"rank 1(?: on node 0)?, running .*, exited with code {code}:$"
        match = re.search(begins, text, re.MULTILINE)
        if node == 0 and kind == "deepspeed":
            if "ValueError: THE REAL CAUSE" not in text:
                found.append("node 0 does not raise the rank's own exception")
        elif match is None:
            found.append(f"node {node} does not name rank 1 and how it ended")
        else:
            after = text[match.end() :].lstrip("\n").splitlines()
            block = []
            for line in after:
                if not re.match(r"\s*\|", line):
                    break
                block.append(line.strip())
            told[node] = block
            if not any(CAUSE in line for line in block):
                found.append(f"node {node} does not show the rank's last words: {block[-8:]}")
            if kind != "mpi program" and (not block or "Traceback (most recent call last):" not in block[0]):
                found.append(f"node {node} does not show the rank's own traceback: {block[:4]}")
    if len(told) == 2 and told[0] != told[1]:
        found.append(f"the nodes tell different words: {told}")
    for wrong in ("out of memory", "guard process of this node", "guard failed", "AssertionError"):
        if wrong in output:
            found.append(f"the output has {wrong!r}")
    return found
