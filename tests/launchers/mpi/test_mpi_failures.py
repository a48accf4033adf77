"""Ranks and hosts of an MPI job that are lost: the step fails on every node that lives, with the cause, and in time."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support.frameworks.mpi import MPICH, OPEN_MPI_4, OPEN_MPI_5, path_with
from support.processes import Process, send_signal
from support.remote import RemoteGang, RemoteTask, all_fail, remote_gang
from support.requirements import require_tool

LOST_S = 15.0
"""For a host that is lost, or whose link is cut, to be noticed and told."""

END_S = 40.0
"""For a rank that failed: it takes about a second, on a machine that is not busy."""

FLOW = """
import os
from metaflow import FlowSpec, current, mpi, resources, step

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @resources(cpu=2)
    @mpi(transport=os.environ.get("TRANSPORT", "channel"))
    @step
    def work(self):
        current.mpi.run(program=["python", "ranks.py", os.environ["HOW"]])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Remote()
"""

RANKS = """
import os, sys, time
from mpi4py import MPI

world = MPI.COMM_WORLD
print(f"rank {world.rank} is process {os.getpid()};", flush=True)
world.Barrier()
if world.rank == 3:
    if sys.argv[1] == "exit":
        print("rank 3 has had enough", flush=True)
        os._exit(7)
    elif sys.argv[1] == "raise":
        raise ValueError("of rank 3")
while True:
    time.sleep(0.1)  # six ranks that wait in MPI keep six processors busy
    world.Barrier()
"""

BIG = pytest.mark.big


def started(gang: RemoteGang, kind: str, how: str, **env: str) -> list[RemoteTask]:
    """Every node's task, with all six ranks running."""
    tasks = gang.start_all(PATH=path_with(kind), HOW=how, PYTHONUNBUFFERED="1", **env)
    for rank in range(6):
        tasks[0].wait_for(f"rank {rank} is process ")
    return tasks


def rank_process(gang: RemoteGang, rank: int) -> Process:
    """The process of a rank, found on the host where it has to be."""
    pattern = re.compile(rf"(OMPI_COMM_WORLD_RANK|PMI_RANK)={rank}")
    for process in gang.hosts[rank // 2].processes():
        if "ranks.py" in process.command and process.command[0] != "sh":
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
            if any(pattern.fullmatch(entry) for entry in environ):
                return process
    raise AssertionError(f"rank {rank} is not on {gang.hosts[rank // 2].name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ranks.py").write_text(RANKS)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(OPEN_MPI_4, marks=BIG), pytest.param(OPEN_MPI_5, marks=BIG), MPICH])
def test_a_rank_that_exits(folder: Path, kind: str) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = started(gang, kind, "exit")
        control, *others = all_fail(tasks, time.monotonic(), END_S, f"exit 7 under {kind}")
        assert re.search(r"rank 3, running python ranks\.py exit, exited with code 7", control)
        assert "rank 3 has had enough" in control
        for said in others:
            assert re.search(r"first failure was on node 1 \(gang1\): rank 3 exited with code 7", said), said


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OPEN_MPI_4, pytest.param(OPEN_MPI_5, marks=BIG), pytest.param(MPICH, marks=BIG)])
def test_a_rank_that_raises(folder: Path, kind: str) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = started(gang, kind, "raise")
        control, *others = all_fail(tasks, time.monotonic(), END_S, f"an exception under {kind}")
        for said in (control, *others):
            assert "rank 3" in said and "ValueError: of rank 3" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OPEN_MPI_4, OPEN_MPI_5, MPICH])
def test_a_rank_that_is_killed(folder: Path, kind: str) -> None:
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = started(gang, kind, "wait")
        victim = rank_process(gang, 4)
        since = time.monotonic()
        assert send_signal(victim, 9)
        control, *others = all_fail(tasks, since, END_S, f"a killed rank under {kind}")
        assert "rank 4, running python ranks.py wait, was killed by SIGKILL" in control
        for said in others:
            assert re.search(r"first failure was on node 2 \(gang2\): rank 4 was killed by SIGKILL", said), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        (OPEN_MPI_4, "ssh"),
        pytest.param(OPEN_MPI_4, "channel", marks=BIG),
        pytest.param(OPEN_MPI_5, "channel", marks=BIG),
        (MPICH, "channel"),
    ],
)
def test_a_host_that_is_killed(folder: Path, kind: str, transport: str) -> None:
    if transport == "ssh":
        require_tool("sshd", "openssh-server")
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = started(gang, kind, "wait", TRANSPORT=transport)
        since = time.monotonic()
        gang.kill_host(2)
        for said in all_fail([tasks[0], tasks[1]], since, LOST_S, f"a killed host under {kind}, {transport}"):
            assert re.search(r"node 2 \(gang2\).*has died", said, re.IGNORECASE), said


@BIG
@pytest.mark.parametrize(
    ("kind", "transport"),
    [(OPEN_MPI_4, "ssh"), (OPEN_MPI_5, "channel"), (MPICH, "channel")],
)
def test_a_link_that_is_cut(folder: Path, kind: str, transport: str) -> None:
    if transport == "ssh":
        require_tool("sshd", "openssh-server")
    with remote_gang(folder, FLOW, 3) as gang:
        tasks = started(gang, kind, "wait", TRANSPORT=transport)
        since = time.monotonic()
        gang.hosts.cut(1)
        for said in all_fail([tasks[0], tasks[2]], since, LOST_S, f"a cut link under {kind}, {transport}"):
            assert re.search(r"node 1 \(gang1\).*network between them is cut", said, re.IGNORECASE), said
        tasks[1].fails(LOST_S)
