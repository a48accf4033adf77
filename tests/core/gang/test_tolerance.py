"""A gang that goes on without the nodes that it loses, where its launcher tolerates that and the body is control's.

Deadlines here tell "goes on" from "hangs"; how long it really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from support.faults import kill_process
from support.flows import FlowRun, FlowRunner
from support.processes import read_process
from support.remote import RemoteGang, RemoteTask, remote_gang
from support.requirements import require_tool

START_S = 90.0
"""For a flow to be up, on a machine that is busy with other tests."""

TOLD_S = 15.0
"""For a lost host, or a cut link, to be noticed and told."""

END_S = 25.0
"""Tells an end from a hang."""

FLOW = """
import os, time
from functools import partial
from metaflow import FlowSpec, current, step
from metaflow.decorators import _base_step_decorator
from metaflow_extensions.gang.core.step.decorator import GangDecorator
from metaflow_extensions.gang.core.gang.launch_plan import Process

how = os.environ.get("HOW", "")

class Tolerant(GangDecorator):
    name = "tolerant"
    runs_on_control_only = True

    def tolerates_lost_nodes(self, num_nodes):
        return how != "strict"

    def form(self, gang):
        node = gang.node_index
        if node == 2 and how == "raises while forming":
            raise ValueError("not today")
        argv = ("sh", "-c", f"echo $$ > daemon-{node}; echo ready; exec sleep 1000")
        gang.start(Process(argv, dict(os.environ), title="the server"), ready="ready")
        gang.barrier()
        print(f"up {node} task={os.getpid()} guard={gang._link.guard_pid};", flush=True)
        return {}

    def task_finished(self, step_name, flow, *rest):
        super().task_finished(step_name, flow, *rest)
        print("to be joined:", getattr(flow, "_control_mapper_tasks", None), flush=True)

tolerant = partial(_base_step_decorator, Tolerant)

class Tolerating(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ.get("NODES", 3)))

    @tolerant(all_nodes_started_timeout=60)
    @step
    def work(self):
        print("body;", flush=True)
        while not os.path.exists("finish"):
            time.sleep(0.02)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.joined = [node.index for node in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Tolerating()
"""


def running(run: FlowRun) -> dict[int, dict[str, int]]:
    """Wait until control's body runs; pids of task, guard and daemon by node index."""
    pattern = re.compile(r"up (\d+) task=(\d+) guard=(\d+);")
    run.wait_for(pattern, START_S, count=3)
    run.wait_for("body;", START_S)
    return {
        int(m[1]): {
            "task": int(m[2]),
            "guard": int(m[3]),
            "daemon": int((run.folder / f"daemon-{m[1]}").read_text()),
        }
        for m in pattern.finditer(run.output)
    }


def alive(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and not process.zombie


def lost(text: str, node: int = 2, host: str = r"\S+") -> re.Pattern[str]:
    """The line on control."""
    return re.compile(rf"\[gang\] node {node} \({host}\) was lost: {text}.*\. The step goes on without it\.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number", "told"),
    [
        ("task", signal.SIGKILL, r"the node's task was killed by SIGKILL \(out of memory\?\)"),
        pytest.param(
            "task",
            signal.SIGSTOP,
            r"the node's task \(process \d+\) has been stopped \(SIGSTOP\) for",
            marks=pytest.mark.big,
        ),
        ("guard", signal.SIGKILL, r"the connection from it to node 0 was lost \("),
        ("daemon", signal.SIGKILL, "the server was killed by SIGKILL"),
    ],
)
def test_the_step_goes_on_without_a_node(flow_run: FlowRunner, victim: str, number: signal.Signals, told: str) -> None:
    run = flow_run(FLOW)
    pids = running(run)
    kill_process(pids[2][victim], number)
    run.wait_for(lost(told), END_S)
    assert all(alive(pid) for node in (0, 1) for pid in pids[node].values()), "nobody else is disturbed"
    struck = time.monotonic()
    (run.folder / "finish").touch()
    run.ok(END_S)
    print(f"{victim}, {number.name}: the run ended {time.monotonic() - struck:.1f} s after its body")
    assert run.artifact("join", "joined") == [0, 1]
    assert len(re.findall("was lost: ", run.output)) == 1, run.dump()
    # Control's own log has what the others' consoles show, too, each line with its node.
    assert "first failure" not in run.node_log("work", 1, "stderr")
    assert not re.search(r"^\[gang\] .*first failure", run.node_log("work", 0, "stderr"), re.MULTILINE)
    assert "up 2 " in run.node_log("work", 2), "its log is kept"
    if victim == "daemon":
        own = run.node_log("work", 2, "stderr")
        assert re.search(r"The first failure was on node 2 \(.*\): the server was killed by SIGKILL", own), own


@pytest.mark.slow
def test_the_last_other_node_may_be_lost_too(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW)
    pids = running(run)
    for node in (1, 2):
        kill_process(pids[node]["task"])
        run.wait_for(lost("the node's task was killed by SIGKILL", node), END_S)
    (run.folder / "finish").touch()
    run.ok(END_S)
    assert run.artifact("join", "joined") == [0]


@pytest.mark.slow
def test_a_run_with_a_lost_node_can_be_resumed(flow_run: FlowRunner) -> None:
    flow = FLOW.replace("[node.index for node in inputs]", "[node.index for node in inputs if not how or 1 / 0]")
    run = flow_run(flow, env={"HOW": "join fails"})
    pids = running(run)
    kill_process(pids[2]["task"])
    run.wait_for(lost("the node's task"), END_S)
    (run.folder / "finish").touch()
    run.fails(END_S)
    again = flow_run(flow, "--origin-run-id", run.run_id, folder=run.folder, command="resume").ok(START_S)
    assert "body;" not in again.output, "the gang's step is not run again"
    assert again.artifact("join", "joined") == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["task", "daemon"])
def test_control_is_never_tolerated(flow_run: FlowRunner, victim: str) -> None:
    run = flow_run(FLOW)
    pids = running(run)
    kill_process(pids[0][victim])
    run.fails(END_S)
    told = {"task": "the node's task", "daemon": "the server was killed by SIGKILL"}[victim]
    for node in (1, 2):
        log = run.node_log("work", node, "stderr")
        assert re.search(rf"The first failure was on node 0 \(.*\): {told}", log), log


def test_control_may_fail_once_a_node_is_lost(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW)
    pids = running(run)
    kill_process(pids[2]["task"])
    run.wait_for(lost("the node's task"), END_S)
    kill_process(pids[0]["daemon"])
    run.fails(END_S)
    log = run.node_log("work", 1, "stderr")
    assert re.search(r"The first failure was on node 0 \(.*\): the server was killed by SIGKILL", log), log


def test_a_failure_while_the_gang_forms_ends_it(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": "raises while forming"})
    run.fails(START_S)
    for node in (0, 1):
        log = run.node_log("work", node, "stderr")
        assert re.search(r"The first failure was on node 2 \(.*ValueError: not today", log, re.DOTALL), log
    assert "body;" not in run.output


def test_who_does_not_tolerate_it_fails(flow_run: FlowRunner) -> None:
    run = flow_run(FLOW, env={"HOW": "strict"})
    kill_process(running(run)[2]["task"])
    run.fails(END_S)
    assert "was lost:" not in run.output
    assert re.search(r"node 2 \(.*\): the node's task was killed by SIGKILL", run.node_log("work", 0, "stderr"))


def started(gang: RemoteGang) -> list[RemoteTask]:
    tasks = gang.start_all()
    for node, task in enumerate(tasks):
        task.wait_for(f"up {node} ")
    tasks[0].wait_for("body;")
    return tasks


def goes_on(gang: RemoteGang, tasks: list[RemoteTask], without: int, told: str, since: float) -> None:
    """Control says in time what it lost, and then control and the rest end well."""
    tasks[0].wait_for(lost(told, without, f"gang{without}"), max(0.0, since + TOLD_S - time.monotonic()))
    print(f"told after {time.monotonic() - since:.1f} s")
    ended = time.monotonic()
    (gang.folder / "finish").touch()
    control, *others = [task.ok(END_S) for node, task in enumerate(tasks) if node != without]
    print(f"the tasks ended {time.monotonic() - ended:.1f} s after the body")
    names = ["7/work/3", *(f"7/work/3_node_{node}" for node in range(1, gang.num_nodes) if node != without)]
    assert f"to be joined: {names}" in control
    assert len(re.findall("was lost: ", control)) == 1 and "lost its connection" not in control, control
    assert all("first failure" not in said for said in others)


@pytest.mark.parametrize("node", [1, 2])
def test_a_killed_host_is_done_without(tmp_path: Path, node: int) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = started(gang)
        since = time.monotonic()
        gang.kill_host(node)
        goes_on(gang, tasks, node, "the connection from it to node 0 was lost", since)


@pytest.mark.slow
def test_a_host_that_is_cut_off_is_done_without(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = started(gang)
        since = time.monotonic()
        gang.hosts.cut(1)
        goes_on(gang, tasks, 1, ".*or the network between them is cut", since)
        told = tasks[1].fails(END_S)
        assert re.search(r"The first failure was on node 0: .* or the network between them is cut", told), told


@pytest.mark.big
def test_two_nodes_that_are_cut_off_from_each_other_both_stay(tmp_path: Path) -> None:
    ip = require_tool("ip", "iproute2")
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = started(gang)
        for here, there in ((1, 2), (2, 1)):
            nobody = ["lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"]
            gang.hosts[here].run([ip, "neigh", "replace", gang.hosts[there].address, *nobody])
        said = re.compile(
            r"\[gang\] node (1|2) \(gang\1\) lost its connection to node (1|2) \(timed out\), while both still reach "
            r"node 0: the network between these two is cut\. The step goes on\."
        )
        tasks[0].wait_for(said, TOLD_S)
        (tmp_path / "finish").touch()
        control, *_ = [task.ok(END_S) for task in tasks]
        assert len(said.findall(control)) == 1 and "was lost: " not in control, control
        assert "to be joined: ['7/work/3', '7/work/3_node_1', '7/work/3_node_2']" in control
