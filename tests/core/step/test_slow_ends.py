"""What comes after a body that has failed has its time on every node, and an end when that is over."""

from __future__ import annotations

import re
import signal

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner

pytestmark = pytest.mark.slow

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

END_S = 60.0
"""Tells an end from a hang."""

FLOW = """
import os, sys, threading, time
from metaflow import FlowSpec, current, gang, step, user_step_decorator

SECONDS = {int(node): float(seconds) for node, seconds in (pair.split("=") for pair in os.environ["HOOKS"].split())}

@user_step_decorator
def uploads(step_name, flow, inputs, attributes):
    node = int(os.environ.get("MF_PARALLEL_NODE_INDEX", "0"))
    try:
        yield
    except Exception:
        print(f"hook of node {node} begins", flush=True)
        time.sleep(SECONDS.get(node, 0.0))
        print(f"hook of node {node} has uploaded", flush=True)
        raise

class SlowEnds(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=3)

    @uploads
    @gang(end_timeout=float(os.environ.get("END_TIMEOUT", "30")))
    @step
    def work(self):
        node = current.gang.node_index
        print(f"ready {node} task={os.getpid()} guard={current.gang._link.guard_pid};", flush=True)
        if node == int(os.environ.get("THREAD_ON", "-1")):
            threading.Thread(target=time.sleep, args=(1000,), name="outlives").start()
        current.gang.barrier()
        if node == 1 and "WAITS" not in os.environ:
            raise ValueError("node 1 cannot read its shard")
        time.sleep(1000)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    SlowEnds()
"""


def pids(run: FlowRun) -> dict[int, dict[str, int]]:
    pattern = re.compile(r"ready (\d+) task=(\d+) guard=(\d+);")
    run.wait_for(pattern, START_S, count=3)
    return {int(m[1]): {"task": int(m[2]), "guard": int(m[3])} for m in pattern.finditer(run.output)}


def test_every_node_may_upload_at_its_end(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOOKS": "0=5 1=5.5 2=6"})
    run.fails(START_S + END_S)
    for node in range(3):
        assert f"hook of node {node} has uploaded" in run.output, run.dump()
    assert re.search(r"\[gang\] Nodes 1, 2 are still busy with the end of the step, which may take 30 s", run.output)
    assert "ValueError: node 1 cannot read its shard" in run.node_log("work", 1, "stderr")
    assert "SIGKILL" not in run.output and "is cut" not in run.output


def test_an_end_that_takes_too_long_is_cut_with_a_line_and_the_cause(flow_run: FlowRunner) -> None:
    """Node 1 is the cause, and has not come to print it; node 0's hook is cut as well."""
    run = flow_run(FLOW, env={"HOOKS": "0=1000 1=1000", "END_TIMEOUT": "3"})
    run.fails(START_S + END_S)
    own = run.node_log("work", 1, "stderr")
    cut = "node {}'s step did not end within 3 s after its body (end_timeout)"
    assert cut.format(1) in own and re.search(r'File ".*flow.py", line \d+ in uploads', own), run.dump()
    assert "ValueError: node 1 cannot read its shard" in own, "a node that is the cause says it, though it was killed"
    assert cut.format(0) in run.output and cut.format(2) not in run.output
    assert "out of memory" not in run.output


@pytest.mark.parametrize("node", [0, 2])
def test_a_thread_does_not_hold_up_the_end(flow_run: FlowRunner, node: int) -> None:
    run = flow_run(FLOW, env={"HOOKS": "", "THREAD_ON": str(node), "END_TIMEOUT": "18"})
    run.fails(START_S + END_S)
    assert f"node {node}'s task has stored its state and did not exit within 3 s" in run.output, run.dump()
    assert re.search(r"node 1 \(.*\): the step's body raised ValueError: node 1 cannot read its shard", run.output)
    assert "out of memory" not in run.output


def test_hooks_have_their_time_though_node_0_or_a_guard_is_dead(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOOKS": "1=6 2=6", "WAITS": "1"})
    found = pids(run)
    kill_process(found[2]["guard"])
    run.wait_for("hook of node 1 begins", END_S)
    kill_process(found[0]["task"], signal.SIGKILL)
    run.fails(END_S)
    for node in (1, 2):
        assert f"hook of node {node} has uploaded" in run.node_log("work", node), run.dump()


@pytest.mark.slow
def test_an_end_that_takes_too_long_is_cut_though_the_guard_is_dead(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOOKS": "2=1000", "WAITS": "1", "END_TIMEOUT": "3"})
    kill_process(pids(run)[2]["guard"])
    run.fails(END_S)
    cut = "node 2's task did not end within 8.7 s of the gang's stop (end_timeout is 3 s of that), and its guard"
    assert cut in run.output, run.dump()
    assert "The first failure was on node 2" in run.output and "node 1's task did not" not in run.output
