"""Does a cell's fault, from outside: it waits until all are where the cell wants them, then strikes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import acts
from cells import Cell
from support.faults import kill_process
from support.flows import FlowRun
from support.processes import descendants

STEP_S = 0.02
"""Between two looks for a mark: a file raises no event."""


AGAIN = re.compile(r"\[gang\] restart \d")
"""What node 0's log says when ranks are started again."""

AGAIN_S = 45.0
"""For that: a process that is stopped counts as a failure after 10 s."""


class NotReached(AssertionError):
    """The flow did not come to the cell's moment."""


class Place:
    """Where a cell's processes say where they are; see :mod:`acts`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "at").mkdir()

    def pid(self, who: str, moment: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "at" / f"{who}@{moment}").read_text())
        return None

    def await_marks(self, wanted: list[tuple[str, str]], ended: Callable[[], bool], timeout: float) -> None:
        """Wait until all of ``wanted`` (who, moment) have come; NotReached where the run ends before, or time is up."""
        deadline = time.monotonic() + timeout
        while missing := [each for each in wanted if self.pid(*each) is None]:
            if ended() or time.monotonic() > deadline:
                raise NotReached(f"did not come to their place: {missing}")
            time.sleep(STEP_S)

    def say(self, name: str) -> None:
        (self.folder / name).touch()


def wanted(cell: Cell) -> list[tuple[str, str]]:
    """Who has to be where before the fault is done."""
    row, last = cell.row, cell.nodes - 1
    when = row.when
    if when in ("empty body", "start"):
        return []
    if "FAULTS_HOLDER" in row.env:
        return [(row.env["FAULTS_HOLDER"], when)]
    tasks = [(f"task {node}", when) for node in range(cell.nodes)]
    if when in ("importing", "before join", "end hook", "storing", "end"):
        if row.who.startswith("task"):
            return [(row.who, when)]
        return [("task 0", when)]
    if when == "forming":
        return [(f"task {last}", "late")]
    if cell.launcher in ("tensorflow", "jax"):
        return tasks  # which are the ranks
    if when in ("ranks", "ranks compute") or row.who.startswith(("rank", "child")):
        if cell.launcher == "ray":
            return [("task 0", when), *((f"rank {rank}", when) for rank in range(cell.ranks))]
        marks = [(f"rank {rank}", when) for rank in range(cell.ranks)]
        return marks if when != "rank imports" else [(row.who, when)]
    if cell.launcher == "ray":
        return [("task 0", when), ("rank 1", when)]
    return tasks


def await_forming(cell: Cell, place: Place, ended: Callable[[], bool], timeout: float) -> None:
    """Wait until each node but the late one has its guard, which joins at once."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(NotReached):
            for node in range(cell.nodes - 1):
                guard_of(task_of(node, place))
            return
        if ended() or time.monotonic() > deadline:
            raise NotReached("the nodes did not begin to form the gang")
        time.sleep(STEP_S)


def task_of(node: int, place: Place) -> int:
    """The process of a node's task, which says so when it begins."""
    pid = place.pid(f"task {node}", "importing")
    if pid is None:
        raise NotReached(f"task {node} has not begun")
    return pid


def guard_of(task: int) -> int:
    """The guard of a task: the isolated Python that it has started."""
    for process in descendants(task):
        if process.parent == task and process.command[1:4] == ("-I", "-S", "-c"):
            return process.pid
    raise NotReached(f"task {task} has no guard")


LAUNCHER_WORDS = {
    "agent": r"torch\.distributed\.run|torchrun|elastic",
    "deepspeed": r"deepspeed\.launcher\.runner|bin/deepspeed",
    "mpi": r"(^|/)(mpirun|mpiexec|prterun)",
}


def victim(cell: Cell, place: Place, run: FlowRun) -> int:
    """The pid of whom the cell means."""
    row = cell.row
    name, _, number = row.who.partition(" ")
    if name == "run":
        return run.pid
    if name == "task":
        return task_of(int(number), place)
    if name == "guard":
        return guard_of(task_of(int(number), place))
    if name in ("rank", "child"):
        pid = place.pid(row.who, row.when)
        if pid is None:
            raise NotReached(f"{row.who} has no pid")
        return pid
    if name == "launcher":
        pattern = LAUNCHER_WORDS.get(cell.launcher, r"(^|/)(torchrun|mpirun|deepspeed)\b")
        guard = guard_of(task_of(int(number), place))
        for process in descendants(guard):
            if re.search(pattern, " ".join(process.command[:4])) and "exec.py" not in " ".join(process.command[:4]):
                return process.pid
        below = "; ".join(" ".join(process.command)[:80] for process in descendants(guard))
        raise NotReached(f"no launcher below guard {guard}, which has: {below or 'nothing'}")
    if name in ("raylet", "gcs_server"):
        for process in run.below():
            if process.command and os.path.basename(process.command[0]) == name:
                index = re.search(r"/gang-ray-[0-9a-f]+-(\d+)\b", " ".join(process.command))
                if index and index[1] == number:
                    return process.pid
    raise NotReached(f"no {row.who}")


def strike(cell: Cell, place: Place, run: FlowRun) -> None:
    """Do the fault."""
    what = cell.row.what
    if what in acts.ACTS or what in ("slow end hook", "thread kept"):
        place.say("go")
    elif what == "SIGINT to all":
        run.signal(signal.SIGINT, group=True)
    elif what == "disk full":
        pass  # it has been since the start
    elif what.startswith("SIG"):
        kill_process(victim(cell, place, run), getattr(signal, what.split()[0]))
    if cell.row.restarts:
        run.wait_for(AGAIN, AGAIN_S)
    if cell.row.blames == "nobody" or cell.row.restarts:
        place.say("finish")


@contextlib.contextmanager
def surroundings(cell: Cell, folder: Path) -> Iterator[dict[str, str]]:
    """What has to be so before the flow starts; variables for it."""
    if cell.row.what != "disk full":
        yield {}
        return
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        yield {"TMPDIR": str(disk)}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
