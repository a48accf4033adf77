"""Gangs as flows use them: several at once, in a foreach, in a branch, after a failed attempt, and what nodes exchange.

Few runs, each of which shows many things: a run of Metaflow takes a second for every task.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.flows import FlowRunner

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

SHAPES = """
import os, time
from metaflow import FlowSpec, current, gang, parallel, step

def all_up(names, mine):
    "All gangs of the foreach are up at once: none ends before the last has formed."
    open(mine, "w").close()
    deadline = time.monotonic() + 120
    while not all(os.path.exists(name) for name in names):
        assert time.monotonic() < deadline, "the gangs do not run at the same time"
        time.sleep(0.05)

def me():
    gang = current.gang
    nodes = [(node.index, node.address) for node in gang.nodes]
    assert nodes == [(index, "127.0.0.1") for index in range(gang.num_nodes)], nodes
    assert all(node.cpus >= 1 and node.hostname for node in gang.nodes)
    assert gang.main_address == "127.0.0.1" and gang.is_control == (gang.node_index == 0)
    told = current.parallel
    assert (told.num_nodes, told.node_index) == (gang.num_nodes, gang.node_index)
    assert told.main_ip == "127.0.0.1"
    assert current.is_parallel
    control = gang.broadcast(current.task_id)
    assert told.control_task_id == control
    assert current.task_id == control + (f"_node_{gang.node_index}" if gang.node_index else "")
    return gang.node_index

class Shapes(FlowSpec):
    @step
    def start(self):
        self.next(self.fan, self.branch, self.plain)

    @step
    def fan(self):
        self.letters = list("abc")
        self.next(self.item, foreach="letters")

    @step
    def item(self):
        self.letter = self.input
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        index = me()
        port = current.gang.free_port()
        all_up([f"up-{letter}-{node}" for letter in "abc" for node in range(2)], f"up-{self.letter}-{index}")
        self.seen = current.gang.all_gather((self.letter, index, port))
        self.own = (self.letter, index)
        self.next(self.work_join)

    @step
    def work_join(self, inputs):
        self.own = [one.own for one in inputs]
        self.seen = [one.seen for one in inputs]
        self.next(self.items_join)

    @step
    def items_join(self, inputs):
        self.own = sorted(one.own for one in inputs)
        self.seen = [seen for one in inputs for seen in one.seen]
        self.next(self.both)

    @step
    def branch(self):
        self.before = "kept"
        self.next(self.inside, num_parallel=2)

    @parallel
    @gang
    @step
    def inside(self):
        me()
        # Nobody's child any more, and without a mark in its environment: it has to end with the gang all the same.
        current.gang.run(["sh", "-c", "env -i setsid /bin/sh -c 'sleep 1000' &"])
        self.told = current.gang.broadcast(f"from {current.gang.node_index} {self.before}", source=1)
        self.next(self.inside_join)

    @step
    def inside_join(self, inputs):
        self.told = [one.told for one in inputs]
        self.next(self.both)

    @step
    def plain(self):
        self.next(self.stock, num_parallel=2)

    @parallel
    @step
    def stock(self):
        print("stock node", current.parallel.node_index, flush=True)
        self.number, self.gang_there = current.parallel.node_index, hasattr(current, "gang")
        self.next(self.stock_join)

    @step
    def stock_join(self, inputs):
        self.stock_seen = [(one.number, one.gang_there) for one in inputs]
        self.next(self.both)

    @step
    def both(self, inputs):
        self.own, self.seen = inputs.items_join.own, inputs.items_join.seen
        self.told, self.stock_seen = inputs.inside_join.told, inputs.stock_join.stock_seen
        self.next(self.before_solo)

    @step
    def before_solo(self):
        self.next(self.solo, num_parallel=1)

    @gang
    @parallel
    @step
    def solo(self):
        assert me() == 0
        current.gang.barrier()
        self.alone = current.gang.all_gather("me")
        current.gang.run(["sh", "-c", "echo from a command of the only node"])
        self.next(self.end_join)

    @step
    def end_join(self, inputs):
        self.alone = [one.alone for one in inputs]
        self.merge_artifacts(inputs, include=["own", "seen", "told", "stock_seen"])
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Shapes()
"""


@pytest.mark.slow
def test_gangs_in_a_foreach_in_branches_beside_parallel_and_one_after_the_other(flow_run: FlowRunner) -> None:
    # Metaflow's own @parallel starts the "python" of PATH.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    run = flow_run(SHAPES, env={"PATH": path}).ok(RUN_S)
    end = run.client()["end"].task.data
    assert end.own == [[(letter, node) for node in range(2)] for letter in "abc"], (
        "each node's artifacts reach the join"
    )
    assert len(end.seen) == 6
    ports = set()
    for seen in end.seen:
        assert [(letter, node) for letter, node, _ in seen] == [(seen[0][0], 0), (seen[0][0], 1)]
        ports |= {port for _, _, port in seen}
    assert len(ports) == 6, "gangs that run at once never get the same port"
    assert end.told == ["from 1 kept"] * 2
    assert end.stock_seen == [(0, False), (1, False)], "a step with @parallel alone is Metaflow's own"
    assert end.alone == [["me"]]
    assert "from a command of the only node" in run.node_log("solo", 0)
    assert {index: task.successful for index, task in run.node_tasks("inside").items()} == {0: True, 1: True}
    # As Metaflow has it: the output of a plain gang's nodes is control's.
    assert "stock node 1" in run.node_log("stock", 0)


VALUES = """
import math, os, sys, time
from metaflow import FlowSpec, Parameter, current, gang, step

class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

class Deceiver:
    "Can be pickled, and then not be read again."
    def __setstate__(self, state):
        raise RuntimeError("cannot be read")
    def __getstate__(self):
        return {"a": 1}

class Refuses:
    def __reduce__(self):
        raise KeyError("not me")

def strange():
    circle = []
    circle.append(circle)
    deep = []
    for _ in range(200):
        deep = [deep]
    return [
        None, True, 0, -1, 10**3000, 0.1, -0.0, math.inf, 1j, "", "\\x00", "\\ud800 \\U0001f600",
        b"", bytes(range(256)),
        (), [], {}, set(), frozenset({1}), {None: {(): [{}]}}, Point(Point(1)), Point, len, ValueError("x", 1), deep,
        range(3), ..., NotImplemented, slice(1, 2), bytearray(b"x"), memoryview,
    ], circle

def raised(kind, function):
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")

class Values(FlowSpec):
    mebibytes = Parameter("mebibytes", default=1)

    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang
    @step
    def work(self):
        gang, index = current.gang, current.gang.node_index

        started = time.monotonic()
        for _ in range(100):
            gang.barrier()
        self.barriers = time.monotonic() - started

        values, circle = strange()
        for number, theirs in enumerate(gang.all_gather(values)):
            for sent, got in zip(values, theirs, strict=True):
                assert repr(got) == repr(sent) or got == sent, (number, sent, got)
        for theirs in gang.all_gather(circle):
            assert theirs[0] is theirs

        # Of another size on each node, one of which gives nothing; and at the border where values leave the frames.
        started = time.monotonic()
        size = index * self.mebibytes << 20
        data = bytes([65 + index]) * size
        for node, theirs in enumerate(gang.all_gather(data)):
            assert theirs == bytes([65 + node]) * (node * self.mebibytes << 20), node
        border = (1 << 20) // 3
        for size in range(border - 40, border + 40, 8):
            assert [len(theirs) for theirs in gang.all_gather(b"x" * size)] == [size] * 3
        assert len(gang.broadcast(data if index == 2 else "not sent", source=2)) == 2 * self.mebibytes << 20
        self.large = time.monotonic() - started
        assert not [name for name in os.listdir(gang.folder) if name.startswith(("put-", "get-"))]

        # A value that cannot be sent is an error of its own node only, which may send another in its place.
        from metaflow_extensions.gang.core.exceptions import BadAttribute, GangException, ValueTooStrange
        if index == 1:
            for value in (lambda: None, Refuses(), open(os.devnull), (n for n in [])):
                told = raised(ValueTooStrange, lambda value=value: gang.all_gather(value))
                assert "cannot be sent to the other nodes, since it cannot be pickled" in told, told
            self.told = told
        assert gang.all_gather(f"in its place {index}") == [f"in its place {node}" for node in range(3)]
        # One that cannot be read again is an error of every node, and the next collective works.
        told = raised(Exception, lambda: gang.all_gather(Deceiver() if index == 2 else 1))
        assert "cannot be read" in told, told
        gang.barrier()
        for source in (-1, 3):
            assert "this gang has nodes 0 to 2" in raised(BadAttribute, lambda: gang.broadcast(1, source=source))

        # No node waits for what nobody types, nor does a program that it starts.
        raised(EOFError, input)
        assert gang.run(["sh", "-c", "read line"], check=False) == 1 and os.popen("cat").read() == ""

        # Ports are this node's until the gang ends; programs may be run one after the other, and fail if they may.
        ports = [gang.free_port() for _ in range(5)]
        self.ports = [port for theirs in gang.all_gather(ports) for port in theirs]
        assert len(set(self.ports)) == 15
        self.codes = [gang.run(["sh", "-c", f"exit {code}"], check=False) for code in (0, 7)]
        assert gang.run("true") == 0
        assert gang.run(["sh", "-c", 'test "$ADDED" = x && test "$PWD" = /'], env={"ADDED": "x"}, cwd="/") == 0
        assert "needs a program" in raised(BadAttribute, lambda: gang.run([]))
        gang.run(["sh", "-c", f"echo first of {index}"])
        gang.run(["sh", "-c", f"echo second of {index}"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.codes = [one.codes for one in inputs]
        self.ports = inputs[0].ports
        self.barriers = max(one.barriers for one in inputs)
        self.large = max(one.large for one in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Values()
"""


def test_what_nodes_exchange_in_two_runs_at_once_one_of_them_without_a_python_on_its_path(
    flow_run: FlowRunner, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "true"):
        found = next(
            os.path.join(folder, name) for folder in ("/bin", "/usr/bin") if os.path.exists(f"{folder}/{name}")
        )
        (tools / name).symlink_to(found)
    one = flow_run(VALUES, "--mebibytes", "10", env={"PATH": str(tools)})
    two = flow_run(VALUES)
    ports: list[int] = []
    for run in (one, two):
        run.ok(RUN_S)
        end = run.client()["end"].task.data
        assert end.codes == [[0, 7]] * 3
        ports += end.ports
        log = run.node_log("work", 1)
        assert log.index("first of 1") < log.index("second of 1")
        assert "of 0" not in log and "of 2" not in log
        print(f"100 barriers took {end.barriers:.2f} s, the large values {end.large:.2f} s")
    assert max(len(run.client()["end"].task.data.ports) for run in (one, two)) == 15


AGAIN = """
import os, time
from metaflow import FlowSpec, current, gang, retry, step

class Again(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @retry(times=2, minutes_between_retries=0)
    @gang
    @step
    def work(self):
        gang, attempt = current.gang, current.retry_count
        print(f"attempt {attempt} of node {gang.node_index}", flush=True)
        self.attempts = gang.all_gather((attempt, gang.folder))
        if attempt == 0:
            self.stale = True
            if gang.node_index == 1:
                raise ValueError("the first attempt fails")
            gang.run(["sleep", "1000"])
        if attempt == 1:
            if gang.node_index == 1:
                os.kill(os.getpid(), 9)
            gang.barrier()
        self.stale = hasattr(self, "stale")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.attempts = [one.attempts for one in inputs]
        self.stale = [one.stale for one in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Again()
"""


@pytest.mark.slow
def test_a_failed_attempt_is_tried_again_and_leaves_nothing_to_the_next(flow_run: FlowRunner) -> None:
    import metaflow

    run = flow_run(AGAIN).ok(RUN_S)
    end = run.client()["end"].task.data
    for seen in end.attempts:
        assert [attempt for attempt, _ in seen] == [2, 2]
        assert not any(os.path.exists(folder) for _, folder in seen)
    assert end.stale == [False, False]
    node = run.node_tasks("work")[1]
    assert node.stdout == "attempt 2 of node 1\n"
    for attempt in (0, 1):
        log = metaflow.Task(node.pathspec, attempt=attempt)
        assert log.stdout == f"attempt {attempt} of node 1\n"
    control = run.node_tasks("work")[0]
    first, second = (metaflow.Task(control.pathspec, attempt=attempt).stderr for attempt in (0, 1))
    assert "the step's body raised ValueError: the first attempt fails" in first
    assert "the node's task was killed by SIGKILL" in second
    assert "first attempt" not in second
