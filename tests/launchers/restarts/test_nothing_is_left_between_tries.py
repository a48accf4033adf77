"""@mpi and @deepspeed on three hosts, over ssh and without: nothing is left of a try when the next one begins."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from hosts_between_tries import beginning_of_try, now, process_on
from restart_flow import lines_about_restarts
from support.frameworks.mpi import MPICH, OPEN_MPI_4, OPEN_MPI_5, path_with
from support.processes import send_signal
from support.remote import RemoteGang, RemoteTask, remote_gang
from support.requirements import require_packages, require_tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRY_S = 240.0
"""For all ranks of a try to begin, and for a stall to be seen, on a machine that is busy: ranks of MPICH that wait in a
collective leave no processor to others.
"""

STALL_S = 12.0

LASTING = re.compile(r"/metrics\.jsonl$|/deepspeed-2-run-2-0(-hostfile|\.json)$|/ports/\d+\.\d+\.lock$")
"""What gang_log writes, which the gang reads to its end; the files of a call of DeepSpeed, which go with the call; and
leases of ports, which nobody else is to have before the gang ends.
"""

FLOW = """
import os, sys, time
from metaflow import FlowSpec, LAUNCHER, current, resources, step

def nothing():
    pass

class Tries(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(cpu=2)
    @LAUNCHER(restarts=1, stall_timeout=STALL, transport=os.environ.get("TRANSPORT", "auto"))
    @step
    def work(self):
        if "LAUNCHER" == "deepspeed":
            current.deepspeed.run(entrypoint=nothing)  # the first call starts what lasts, sshd for example
        print("the body has begun;", flush=True)
        while not os.path.exists("begin"):
            time.sleep(0.01)
        if "LAUNCHER" == "mpi":
            current.mpi.run(program="python ranks.py")
        else:
            current.deepspeed.run(entrypoint="ranks.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Tries()
"""

RANKS = """
import os, sys, time
from metaflow import gang_log

def tell(rank):
    gang_log(1, loss=0.5)
    print(f"rank {rank} on {os.uname().nodename} in try {os.environ['GANG_RESTART']} is {os.getpid()};", flush=True)

def until(together, rank):
    while not together(os.path.exists("finish")):
        while os.path.exists(f"hang-{rank}"):
            time.sleep(1000)
        time.sleep(0.05)
"""

MPI_RANKS = """
from mpi4py import MPI
world = MPI.COMM_WORLD
world.barrier()
tell(world.rank)
until(world.bcast, world.rank)
"""

TORCH_RANKS = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")

def together(has_come):
    value = torch.tensor(int(has_come))
    dist.broadcast(value, 0)
    return bool(value)

dist.barrier()
tell(dist.get_rank())
until(together, dist.get_rank())
dist.destroy_process_group()
"""

TOLD = {
    "killed": r"rank 5 on node 2 \(gang2\) was killed by SIGKILL",
    "stopped": r".*rank 5.* on node 2 \(gang2\).*stopped",
    "hung": r".*no progress.*rank 5",
}


def act(gang: RemoteGang, how: str, pid: int) -> None:
    """What happens to the rank on the last host."""
    if how == "hung":
        (gang.folder / "hang-5").touch()
    else:
        process = process_on(gang.hosts[2], pid)
        assert send_signal(process, signal.SIGKILL if how == "killed" else signal.SIGSTOP)


def ranks_of(task: RemoteTask, number: int) -> dict[int, int]:
    """By rank, the pid that each has on its host, once all ranks of a try have told it."""
    found = {}
    for rank in range(6):
        line = rf"rank {rank} on gang{rank // 2} in try {number} is (\d+);"
        found[rank] = int(task.wait_for(re.compile(line), TRY_S)[1])
    return found


def check(folder: Path, launcher: str, ranks: str, transport: str, how: str, **env: str) -> None:
    """One gang whose rank 5 fails; it prints what had come with the first try, and when the second one began."""
    if transport == "ssh":
        require_tool("sshd", "openssh-server")
    (folder / "ranks.py").write_text(RANKS + ranks)
    flow = FLOW.replace("LAUNCHER", launcher).replace("STALL", str(STALL_S if how == "hung" else 0))
    with remote_gang(folder, flow, 3) as gang:
        # The program that stores the card would begin in the middle.
        tasks = gang.start_all(TRANSPORT=transport, METAFLOW_GANG_CARD="0", **env)
        for task in tasks if launcher == "deepspeed" else tasks[:1]:
            task.wait_for("the body has begun;", TRY_S)
        before = now(gang)
        (folder / "begin").touch()
        pids = ranks_of(tasks[0], 0)
        first = now(gang)
        since = time.monotonic()
        act(gang, how, pids[5])
        second = beginning_of_try(gang, 1, TRY_S, tasks[0].dump)
        print(f"{launcher} {transport}, {how}: the next try began after {time.monotonic() - since:.1f} s")
        (folder / "hang-5").unlink(missing_ok=True)
        came = {key: line for key, line in first.items() if key not in before}
        print("with the first try there came:", *sorted(came.values()), sep="\n    ")
        for index in range(3):
            assert any(line.startswith(f"gang{index}: ") and "ranks.py" in line for line in came.values()), came
        left = sorted(line for key, line in came.items() if key in second and not LASTING.search(line))
        assert not left, "left of the first try: {}\n{}".format("\n    ".join(left), tasks[0].dump())
        ranks_of(tasks[0], 1)
        (folder / "finish").touch()
        for task in tasks:
            task.ok(TRY_S)
        (line,) = lines_about_restarts(tasks[0].output, 1)
        assert re.match(f"restart 1 of 1: {TOLD[how]}", line), line


OFTEN = {
    (OPEN_MPI_4, "ssh", "killed"),
    (OPEN_MPI_4, "channel", "stopped"),
    (OPEN_MPI_5, "channel", "killed"),
    (MPICH, "ssh", "hung"),
    (MPICH, "channel", "stopped"),
    ("DeepSpeed", "ssh", "killed"),
    ("DeepSpeed", "channel", "stopped"),
}
"""The others take their turn where there is time for the tests marked "big"."""


def cases(*kinds: str) -> list[object]:
    found = [(kind, transport, how) for kind in kinds for transport in ("ssh", "channel") for how in TOLD]
    return [case if case in OFTEN else pytest.param(*case, marks=pytest.mark.big) for case in found]


@pytest.mark.parametrize(("kind", "transport", "how"), cases(OPEN_MPI_4, OPEN_MPI_5, MPICH))
def test_mpi(tmp_path: Path, kind: str, transport: str, how: str) -> None:
    require_packages("mpi4py")
    check(tmp_path, "mpi", MPI_RANKS, transport, how, PATH=path_with(kind))


@pytest.mark.parametrize(("kind", "transport", "how"), cases("DeepSpeed"))
def test_deepspeed(tmp_path: Path, kind: str, transport: str, how: str) -> None:
    require_packages("deepspeed")
    require_tool("pdsh", "pdsh")
    check(tmp_path, "deepspeed", TORCH_RANKS, transport, how)
