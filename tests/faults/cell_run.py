"""Runs one cell: the flow, the fault, and what the oracle and the leak check have to say about the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import injector
import oracle
from cells import Cell
from support.flows import FlowRun
from support.leaks import DEADLINE, MARK, Before
from support.processes import send_signal

HERE = Path(__file__).parent

FACTOR = float(os.environ.get("FAULTS_FACTOR", "1"))
"""By which all deadlines are multiplied, on a machine that does other things as well."""

START_S = 120.0 * FACTOR
"""For a cell's processes to come to their places: the slowest import torch or TensorFlow four times."""

END_S = 45.0 * FACTOR
"""For the run to end after the fault; a stopped process counts as one after 10 s. Tells "stopped" from "hangs"."""

SILENCE = {
    "METAFLOW_GANG_LOST_HOST_TIMEOUT": str(int(10 * FACTOR)),
    "METAFLOW_GANG_FROZEN_NODE_TIMEOUT": str(int(10 * FACTOR)),
}
"""The cells do not wait as long as users may want to for a host that is silent."""

GONE_S = 20.0 * FACTOR
"""For what a killed run leaves to be ended by the guards."""

QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Variables for every flow: processors are enough, whatever the machine has, and one thread for each rank."""


@dataclass
class Result:
    """How a cell went: ``problems`` is empty where it is green; ``seconds`` from the fault to the run's end.

    Where the run has not ``ended`` by itself and was killed, what it left says nothing. The fault was not ``done``
    where its victim, or its moment, did not come.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    total: float = 0.0
    output: str = ""
    ended: bool = True
    done: bool = True

    @property
    def green(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self.green:
            return f"green  {self.name}  (ended after {self.seconds:.1f} s, {self.total:.0f} s in all)"
        return f"RED    {self.name}\n" + "\n".join(f"         {problem}" for problem in self.problems)


def environment(cell: Cell, folder: Path) -> dict[str, str]:
    """The variables by which the flow and its ranks know the cell."""
    row = cell.row
    told = {
        "WHAT": row.what,
        "WHO": row.who,
        "WHEN": row.when,
        "LAUNCHER": cell.launcher,
        "NODES": str(cell.nodes),
        "FOLDER": str(folder),
        "JOIN_S": str(int(60 * FACTOR)),
    }
    if row.restarts:
        told["RESTARTS"] = "1"
    return {**QUIET, **SILENCE, **{f"FAULTS_{name}": value for name, value in told.items()}, **row.env}


@contextlib.contextmanager
def watched(result: Result, launcher: str) -> Iterator[None]:
    """What the block leaves behind, or raises, becomes a problem of the result."""
    mark = uuid.uuid4().hex
    outer = os.environ.get(MARK)
    os.environ[MARK] = mark
    before = Before(mark)
    others = _scratch(launcher)
    started = time.monotonic()
    try:
        yield
    except Exception as error:  # of the matrix itself, too: the cells after it are run all the same
        result.ended = False
        result.problems.append(f"{type(error).__name__}: {error}"[:4000])
    finally:
        if outer is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = outer
        end = time.monotonic() + DEADLINE * FACTOR
        while (left := before.remains() + sorted(_scratch(launcher) - others)) and time.monotonic() < end:
            time.sleep(injector.STEP_S)
        if result.ended:
            result.problems += [f"left behind: {line}" for line in left]
        for process in before.processes():
            send_signal(process, signal.SIGKILL)
        result.total = time.monotonic() - started


SCRATCH = {"mpi": ("ompi.*", "pmix-*", "prte.*", "openmpi-sessions-*"), "ray": ("gang-ray-*",)}
"""Patterns of what the framework of a launcher keeps in /tmp. Tests of others may run at the same time."""


def _scratch(launcher: str) -> set[str]:
    """What the launcher's framework keeps in /tmp by names of its own, of which nothing may stay."""
    return {f"file {path}" for kind in SCRATCH.get(launcher, ()) for path in Path("/tmp").glob(kind)}


def run_cell(cell: Cell, folder: Path, delay: float = 0.2) -> Result:
    """Run a cell in ``folder``, which becomes its own; the fault comes ``delay`` seconds after all are in place."""
    result = Result(cell.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with watched(result, cell.launcher):
        if cell.row.place == "hosts":
            import hosts_run

            hosts_run.run(cell, folder, delay, result)
        else:
            _local(cell, folder, delay, result)
    if result.green:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "problems").write_text(f"{result}\n{result.output}")
    return result


def _local(cell: Cell, folder: Path, delay: float, result: Result) -> None:
    place = injector.Place(folder)
    with injector.surroundings(cell, folder) as more:
        run = FlowRun(HERE / "flow.py", folder=folder, env={**environment(cell, folder), **more})
        try:
            place.await_marks(injector.wanted(cell), lambda: run.exit_code is not None, START_S)
            if cell.row.when == "forming":
                injector.await_forming(cell, place, lambda: run.exit_code is not None, START_S)
            time.sleep(delay)
            struck = time.monotonic()
            injector.strike(cell, place, run)
            code = run.wait(END_S)
            result.seconds = time.monotonic() - struck
            left = run.left(GONE_S if code < 0 else DEADLINE * FACTOR)
            result.problems += [f"left running: {process}" for process in left]
            if cell.row.what == "slow end hook" and place.pid(cell.row.who, "hook ended") is None:
                result.problems.append("the end hook was cut")
            result.problems += oracle.problems(cell, code, node_logs(cell, run), run.output)
        except AssertionError as error:
            result.ended = False
            result.done = not isinstance(error, injector.NotReached)
            result.problems.append(str(error)[:300])
        finally:
            result.output = run.output
            run.close()


def node_logs(cell: Cell, run: FlowRun) -> dict[int, str]:
    """What each node has told: its own log, and what its guard said on the console where the task could not."""
    logs = {}
    for node in range(cell.nodes):
        with contextlib.suppress(Exception):  # a task that never came to Metaflow has none
            logs[node] = run.node_log("work", node, "stderr") + run.node_log("work", node)
        # A guard whose task is dead says it in the task's place.
        said = re.findall(rf"Node {node}'s task is dead\. (.*)", run.output)
        logs[node] = logs.get(node, "") + "".join(said)
    return logs
