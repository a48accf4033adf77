"""Processes that are stopped (SIGSTOP): a failure within seconds, whoever it is, and no reason to wait at the end."""

from __future__ import annotations

import re
import signal

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner

pytestmark = pytest.mark.slow

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

TOLD_S = 12.0
"""Ten seconds in which nothing counts as stopped, and two looks."""

END_S = 12.0
"""From there to the end of the run: far less than end_timeout, on a busy machine."""

FLOW = """
import os, time
from metaflow import FlowSpec, Parameter, current, gang, step

class Slow:
    def __reduce__(self):
        print(f"storing task={os.getpid()};", flush=True)
        time.sleep(1000)

class Stopped(FlowSpec):
    how = Parameter("how", default="")

    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @gang
    @step
    def work(self):
        node = current.gang.node_index
        current.gang.barrier()
        print(f"ready {node} task={os.getpid()} guard={current.gang._link.guard_pid};", flush=True)
        if self.how == "storing":
            self.slow = Slow() if node == 0 else None
        else:
            time.sleep(1000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Stopped()
"""


def pids(run: FlowRun) -> dict[int, dict[str, int]]:
    pattern = re.compile(r"ready (\d+) task=(\d+) guard=(\d+);")
    run.wait_for(pattern, START_S, count=3)
    return {int(m[1]): {"task": int(m[2]), "guard": int(m[3])} for m in pattern.finditer(run.output)}


def test_whoever_is_stopped_is_told_and_holds_nobody_up(flow_run: FlowRunner) -> None:
    """Gangs that wait at the same time: for a task in its body, node 0's task that is being stored, and two guards."""
    hows = {"task": 1, "guard": 1, "guard of control": 0, "storing": 0}
    runs = {how: flow_run(FLOW, "--how", how) for how in hows}
    for how, node in hows.items():
        if how == "storing":
            pid = int(runs[how].wait_for(re.compile(r"storing task=(\d+);"), START_S)[1])
        else:
            pid = pids(runs[how])[node][how.partition(" ")[0]]
        kill_process(pid, signal.SIGSTOP)
    for how, node in hows.items():
        who = "its guard" if how.startswith("guard") else "the node's task"
        told = rf"first failure was on node {node} \(.*\): {who} \(process \d+\) has been stopped \(SIGSTOP\) for 1\d s"
        output = runs[how].fails(TOLD_S + END_S)
        assert re.search(told, output), runs[how].dump()
        assert "SIGKILL" not in output and "out of memory" not in output, runs[how].dump()
