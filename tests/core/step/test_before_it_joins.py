"""A node that ends before it has joined: all nodes tell what it failed at, within seconds, and nobody waits for it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.flows import FlowRunner
from support.remote import START_S, all_fail, remote_gang

pytestmark = pytest.mark.slow

END_S = 15.0
"""For all tasks to end once the last of them is there: what it is meant to take is 5 s, on a machine not busy."""

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

FLOW = """
import os, sys
from metaflow import FlowSpec, current, mpi, step, user_step_decorator

HOW, NODE = os.environ.get("HOW", ""), os.environ.get("MF_PARALLEL_NODE_INDEX")
WHO = NODE is not None and NODE == os.environ.get("WHO")
if WHO and HOW == "import error":
    import a_module_that_is_not_there
if WHO and HOW == "exit while loaded":
    sys.exit(0)

@user_step_decorator
def around(step_name, flow, inputs, attributes):
    print("at the step's decorators", flush=True)
    if WHO and HOW == "raise":
        raise RuntimeError("no token for the tracker")
    if WHO and HOW == "exit":
        sys.exit(0)
    if WHO and HOW == "skip":
        yield {}
    else:
        yield

class Begins(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @around
    @mpi(all_nodes_started_timeout=60)
    @step
    def work(self):
        print("the body runs", flush=True)
        current.mpi.run(program="true")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Begins()
"""


NO_MPIRUN = "This step needs an MPI, and there is no mpirun on the PATH"
NOT_LOADED = "its flow file could not be loaded: ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
ENDED = "its process ended before it joined"
ENDED_LOADING = "its process ended while its flow file was loaded"
RAISED = "Metaflow or a decorator, before the step's body, raised RuntimeError: no token for the tracker"
SKIPPED = "A step decorator took the place of the step's body"

USUAL = [(1, "no mpirun", NO_MPIRUN), (1, "import error", NOT_LOADED), (1, "skip", SKIPPED)]
RARE = [
    (0, "no mpirun", NO_MPIRUN),
    (0, "import error", NOT_LOADED),
    (1, "exit while loaded", ENDED_LOADING),
    (1, "raise", RAISED),
    (0, "raise", RAISED),
    (1, "exit", ENDED),
]


@pytest.mark.parametrize("cases", [USUAL, pytest.param(RARE, marks=pytest.mark.big)])
def test_a_node_that_ends_before_it_has_joined_is_told_by_all(
    tmp_path: Path, cases: list[tuple[int, str, str]]
) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        lacking = without_mpirun(tmp_path / "bin")
        for attempt, (who, how, told) in enumerate(cases):
            path = {"PATH": lacking} if how == "no mpirun" else {}
            tasks = [gang.start(who, attempt=attempt, WHO=str(who), HOW=how, **path)]
            tasks += [gang.start(node, attempt=attempt) for node in range(3) if node != who]
            for task in tasks[1:]:
                task.wait_for("at the step's decorators", START_S)
            _, *others = all_fail(
                tasks, time.monotonic(), END_S, f"{how} on node {who}", may_end_well=tasks[: how.startswith("exit")]
            )
            for output in others:
                assert re.search(rf"The first failure was on node {who}\b[^:]*: .*{told}", output), (how, output)
                assert "did not join" not in output and "the body runs" not in output, output


@pytest.mark.parametrize("who", [1, 0])
def test_a_task_that_is_killed_before_it_has_joined_is_told_by_its_guard(tmp_path: Path, who: int) -> None:
    """Node 1 while node 0 is not there yet, node 0 while node 2 is not: by who was there, and by who comes then."""
    with remote_gang(tmp_path, FLOW.replace("mpi(", "gang(").replace(" mpi,", " gang,"), 3) as gang:
        killed, early = gang.start(who), [gang.start(1)] if who == 0 else []
        folders = gang.folder / "tmp" / killed.host.name
        wait_for(lambda: list(folders.glob("metaflow-gang-*/gangs/*/owned")))
        for task in early:
            task.wait_for("at the step's decorators", START_S)
        killed.kill()
        told_at = time.monotonic()
        late = [gang.start(node) for node in ((2,) if who == 0 else (0, 2))]
        outputs = all_fail([*early, *late], told_at, START_S, f"SIGKILL of node {who}", may_crash=True)
        killed.wait(END_S)
        for output in outputs:
            told = rf"The first failure was on node {who}\b[^:]*: the node's task was killed by SIGKILL"
            assert re.search(told, output), output
            assert "did not join" not in output and "the body runs" not in output, output


def wait_for(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_S
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def without_mpirun(folder: Path) -> str:
    """A PATH in which everything is found but what starts MPI's programs."""
    folder.mkdir()
    for known in os.environ["PATH"].split(os.pathsep):
        for program in Path(known).glob("*"):
            if not re.search("mpi|orte|prte|hydra", program.name) and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def test_a_local_node_that_skips_its_step_is_told(flow_run: FlowRunner) -> None:
    run = flow_run(
        FLOW.replace("mpi(", "gang(").replace(" mpi,", " gang,"), env={"NODES": "2", "WHO": "1", "HOW": "skip"}
    )
    run.fails(RUN_S)
    for node in (0, 1):
        assert SKIPPED in run.node_log("work", node, "stderr"), run.dump()
