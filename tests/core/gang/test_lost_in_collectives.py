"""Collectives of a gang whose bodies work together, and which goes on without nodes that it loses."""

from __future__ import annotations

from support.flows import FlowRunner

LIMIT_S = 120.0

FLOW = """
import json, os, subprocess, sys, time
from functools import partial
from metaflow import FlowSpec, current, step
from metaflow.decorators import _base_step_decorator
from metaflow_extensions.gang.core.exceptions import GangException
from metaflow_extensions.gang.core.step.decorator import GangDecorator

class Tolerant(GangDecorator):
    name = "tolerant"

    def tolerates_lost_nodes(self, num_nodes):
        return True

tolerant = partial(_base_step_decorator, Tolerant)

def end_soon(*pids):
    "Task and guard are killed at once, as with their host, while the task is in its next collective."
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {' '.join(map(str, pids))}"], start_new_session=True)

def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

class Losing(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=4)

    @tolerant(all_nodes_started_timeout=60)
    @step
    def work(self):
        gang = current.gang
        node = gang.node_index
        pids = gang.all_gather((os.getpid(), gang._link.guard_pid))
        large = bytes([node]) * (3 << 20)
        if node == 3:
            end_soon(*pids[3])
            gang.all_gather("the last word")
            time.sleep(1000)
        while any(map(is_there, pids[3])):
            time.sleep(0.01)
        found = {"last": gang.all_gather(node), "after": gang.all_gather(node)}
        gang.barrier()
        found["to 1"], found["to 3"] = gang.gather(node, root=1), gang.gather(node, root=3)
        found["from 1"] = gang.broadcast("one", source=1)
        try:
            gang.broadcast("three", source=3)
        except GangException as error:
            found["from 3"] = str(error)
        values = gang.all_gather(large)
        found["large"] = [None if value is None else [value[0], len(value)] for value in values]
        found["large to 2"] = [value and len(value) for value in gang.gather(large, root=2) or ()]
        found["large to 3"] = gang.gather(large, root=3)
        found["large from 2"] = len(gang.broadcast(large, source=2))
        self.found = found
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = [node.found for node in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Losing()
"""


def test_all_nodes_see_the_same_loss(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW).ok(LIMIT_S)
    all_found = run.artifact("join", "found")
    assert len(all_found) == 3
    for node, found in enumerate(all_found):
        assert found["last"] == [0, 1, 2, "the last word"], "what it has given before counts"
        assert found["after"] == [0, 1, 2, None]
        assert found["to 1"] == ([0, 1, 2, None] if node == 1 else None)
        assert found["to 3"] is None
        assert found["from 1"] == "one"
        assert found["from 3"] == "broadcast(): node 3, whose value it is, was lost before it gave one."
        assert found["large"] == [[0, 3 << 20], [1, 3 << 20], [2, 3 << 20], None]
        assert found["large to 2"] == ([3 << 20, 3 << 20, 3 << 20, None] if node == 2 else [])
        assert found["large to 3"] is None
        assert found["large from 2"] == 3 << 20


def test_an_exception_of_a_body_ends_the_gang_all_the_same(flow_run: FlowRunner) -> None:
    raises = FLOW.replace("            end_soon(*pids[3])", '            raise ValueError("not today")')
    run = flow_run(raises)
    run.fails(LIMIT_S)
    assert "was lost" not in run.output
    assert "ValueError: not today" in run.node_log("work", 1, "stderr")
