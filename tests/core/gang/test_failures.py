"""A gang of processes that wait, one of which is struck: the run ends, names the cause on every node, and leaves
nothing.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

END_S = 20.0
"""For a run to end after it was struck: what it is meant to take is 5 s, on a machine that is not busy."""

WAITING = """
import ctypes, os, signal, sys, time
from metaflow import FlowSpec, Parameter, current, gang, step

class Waiting(FlowSpec):
    how = Parameter("how", default="wait")
    node = Parameter("node", default=1)

    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        index = current.gang.node_index
        current.gang.barrier()
        print(f"ready {index} task={os.getpid()} guard={current.gang._link.guard_pid};", flush=True)
        if self.how == "gil" and index != self.node:
            # Locked twice by one thread, a mutex waits for ever; no signal ends that, and PyDLL keeps the GIL.
            mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
            lock(mutex), lock(mutex)
        if self.how == "deaf" and index != self.node:
            while True:
                try:
                    time.sleep(1000)
                except BaseException:
                    pass
        if self.how == "raise" and index == self.node:
            raise ValueError("deliberate on node 1")
        current.gang.run(["sh", "-c", "setsid sleep 1000 & echo child $$; sleep 1000"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Waiting()
"""


def ready(run: FlowRun, nodes: int = 3) -> dict[int, dict[str, int]]:
    """Wait until every body runs; pids of task and guard by node index."""
    pattern = re.compile(r"ready (\d+) task=(\d+) guard=(\d+);")
    run.wait_for(pattern, START_S, count=nodes)
    return {int(m[1]): {"task": int(m[2]), "guard": int(m[3])} for m in pattern.finditer(run.output)}


@contextmanager
def ends_in_time(run: FlowRun, what: str) -> Iterator[None]:
    """Strike inside; the run then fails before the deadline."""
    started = time.monotonic()
    yield
    run.fails(END_S)
    print(f"{what}: the run ended after {time.monotonic() - started:.1f} s")


def the_report_on(run: FlowRun, *nodes: int) -> None:
    """Each of ``nodes`` shows the same failure report, in the log of its own task."""
    for node in nodes:
        assert "The first failure was on node" in run.node_log("work", node, "stderr"), run.dump()


def test_a_killed_task_ends_all_and_is_named_everywhere(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING)
    pids = ready(run)
    with ends_in_time(run, "SIGKILL of node 1's task"):
        kill_process(pids[1]["task"])
    the_report_on(run, 0, 2)
    for node in (0, 2):
        assert re.search(r"node 1 \(.*\): the node's task was killed by SIGKILL", run.node_log("work", node, "stderr"))
    assert "ready 1" in run.node_log("work", 1)


@pytest.mark.slow
def test_control_killed_is_told_by_the_others(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING)
    pids = ready(run)
    with ends_in_time(run, "SIGKILL of control's task"):
        kill_process(pids[0]["task"])
    the_report_on(run, 1, 2)
    for node in (1, 2):
        assert re.search(r"node 0 \(.*\): the node's task was killed by SIGKILL", run.node_log("work", node, "stderr"))
        assert f"ready {node}" in run.node_log("work", node)
    assert "Node 0's task is dead" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_killed_guard_ends_all(flow_run: FlowRunner, node: int) -> None:
    run = flow_run(WAITING)
    pids = ready(run)
    with ends_in_time(run, f"SIGKILL of node {node}'s guard"):
        kill_process(pids[node]["guard"])
    assert "guard process of this node" in run.node_log("work", node, "stderr")
    assert "ready 2" in run.node_log("work", 2)
    if node:
        the_report_on(run, 0, 2)
        assert "node 1 " in run.node_log("work", 2, "stderr")


def test_a_body_that_raises_is_the_cause(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING, "--how", "raise")
    run.fails(START_S)
    the_report_on(run, 0, 2)
    for node in (0, 2):
        log = run.node_log("work", node, "stderr")
        assert "the step's body raised ValueError: deliberate on node 1" in log
        assert 'raise ValueError("deliberate on node 1")' in log, "the traceback travels"
    own = run.node_log("work", 1, "stderr")
    assert "ValueError: deliberate on node 1" in own
    assert "The first failure" not in own, "the node that failed raises its own exception"


def test_a_process_of_a_node_killed(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING)
    ready(run)
    child = run.wait_for(re.compile(r"\[node 1\] child (\d+)\n"), START_S)
    with ends_in_time(run, "SIGKILL of a command of node 1"):
        kill_process(int(child[1]))
    for node in (0, 2):
        assert re.search(r"node 1 \(.*\): sh was killed by SIGKILL", run.node_log("work", node, "stderr"))
    assert "sh was killed by SIGKILL" in run.node_log("work", 1, "stderr")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gil", "deaf"])
def test_a_body_that_cannot_be_interrupted_shows_its_stacks_and_is_killed(flow_run: FlowRunner, how: str) -> None:
    run = flow_run(WAITING, "--how", how)
    pids = ready(run)
    with ends_in_time(run, f"node 1 killed beside bodies that are {how}"):
        kill_process(pids[1]["task"])
    log = run.node_log("work", 2, "stderr")
    assert "did not end within" in log
    assert re.search(r'File ".*flow.py", line \d+ in work', log), "where it stood"


def test_ctrl_c_ends_all(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING)
    ready(run)
    with ends_in_time(run, "Ctrl-C"):
        run.signal(signal.SIGINT, group=True)
    for node in (1, 2):
        assert "was interrupted (Ctrl-C, SIGINT)" in run.node_log("work", node, "stderr")


@pytest.mark.slow
def test_an_interrupt_of_the_runs_process_alone_ends_all(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING)
    ready(run)
    with ends_in_time(run, "SIGINT of the run's process alone"):
        run.signal(signal.SIGINT)
    for node in (1, 2):
        assert "was interrupted (Ctrl-C, SIGINT)" in run.node_log("work", node, "stderr")


@pytest.mark.slow
def test_the_runs_process_killed_ends_all(flow_run: FlowRunner) -> None:
    run = flow_run(WAITING)
    pids = ready(run)
    started = time.monotonic()
    run.signal(signal.SIGKILL)
    assert run.wait(END_S) == -signal.SIGKILL
    assert not run.left(END_S), run.dump()
    print(f"SIGKILL of the run's process alone: all gone after {time.monotonic() - started:.1f} s")
    for node in (1, 2):
        assert "the process of the run itself has ended" in run.node_log("work", node, "stderr")
    assert len(pids) == 3


BRANCHES = (
    WAITING.replace("self.next(self.work, num_parallel=3)", "self.next(self.split, self.other)")
    .replace(
        "    @gang(",
        """    @step
    def split(self):
        self.next(self.work, num_parallel=3)

    @step
    def other(self):
        while not os.path.exists("fail-now"):
            time.sleep(0.05)
        raise RuntimeError("the other branch")
        self.next(self.both)

    @step
    def both(self, inputs):
        self.next(self.end)

    @gang(""",
    )
    .replace(
        "def join(self, inputs):\n        self.next(self.end)", "def join(self, inputs):\n        self.next(self.both)"
    )
)


@pytest.mark.slow
def test_another_branch_that_fails_ends_the_gang(flow_run: FlowRunner) -> None:
    run = flow_run(BRANCHES)
    ready(run)
    (run.folder / "fail-now").touch()
    run.wait_for("Killing 1 remaining tasks", START_S)  # Metaflow's own five seconds are over
    with ends_in_time(run, "SIGKILL of control's task by Metaflow, since another branch failed"):
        pass
    assert not run.left(END_S), "Metaflow does not wait for what it kills; the guard still has to put it in order"
    for node in (1, 2):
        assert re.search(r"node 0 \(.*\): the node's task was killed by SIGKILL", run.node_log("work", node, "stderr"))


NEVER = """
import os, time
from metaflow import FlowSpec, current, gang, step

class Never(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang(all_nodes_started_timeout=6)
    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    if os.environ.get("MF_PARALLEL_NODE_INDEX") == "2":
        time.sleep(1000)
    Never()
"""


@pytest.mark.slow
def test_a_node_that_never_comes_is_named_at_the_timeout(flow_run: FlowRunner) -> None:
    run = flow_run(NEVER)
    run.wait_for("2 of 3 nodes have joined, waiting for node 2 for 5 s.", START_S)
    run.fails(END_S)
    for node in (0, 1):
        log = run.node_log("work", node, "stderr")
        assert "did not join within 6 s (all_nodes_started_timeout)" in log
        assert "node 2" in log


COLLECTIVES = """
from metaflow import FlowSpec, Parameter, current, gang, step

class Collectives(FlowSpec):
    how = Parameter("how", default="")

    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang
    @step
    def work(self):
        if current.gang.node_index == 1:
            if self.how == "other":
                current.gang.all_gather(1)
            elif self.how == "strange":
                current.gang.all_gather(lambda: None)
            elif self.how == "leave":
                self.next(self.join)
                return
        current.gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Collectives()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        # Which of two nodes called the wrong one cannot be known, nor which of the others was there first.
        (
            "other",
            r"called (all_gather\(\) where node [02] called barrier|barrier\(\) where node 1 called all_gather)\(\): "
            "every node must make the same",
        ),
        ("leave", r"finished its step while node [02] waits for it in barrier\(\)"),
        ("strange", "a function cannot be sent to the other nodes, since it cannot be pickled"),
    ],
)
def test_collectives_that_do_not_match_are_told(flow_run: FlowRunner, how: str, told: str) -> None:
    run = flow_run(COLLECTIVES, "--how", how)
    run.fails(START_S)
    assert re.search(told, run.node_log("work", 2, "stderr"))
