"""Who says nothing: a frozen node and a lost host are told in time, an interruption and lost packets end nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.remote import START_S, RemoteGang, RemoteTask, all_fail, remote_gang

pytestmark = pytest.mark.slow

FROZEN_S = 5.0
FREEZE = {"METAFLOW_GANG_FROZEN_NODE_TIMEOUT": f"{FROZEN_S:g}"}

END_S = 20.0
"""For tasks to end after a failure is told, on a machine that is busy."""

FLOW = """
import os, time
from metaflow import FlowSpec, current, gang, step

class Silence(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang(all_nodes_started_timeout=60)
    @step
    def work(self):
        gang, rounds = current.gang, 0
        if os.environ.get("HOW") == "wait":
            gang.barrier()
            print("ready", flush=True)
            gang.run(["sleep", "1000"])
        while not any(gang.all_gather(os.path.exists("finish"))):
            gang.broadcast(os.urandom(3_000_000) if gang.node_index == 1 else None, source=1)
            rounds += 1
            print(f"ready, round {rounds};", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Silence()
"""


def ready(tasks: list[RemoteTask]) -> None:
    for task in tasks:
        task.wait_for("ready")


def rounds(task: RemoteTask) -> int:
    return int(re.findall(r"round (\d+);", task.output)[-1])


def goes_on(gang: RemoteGang, tasks: list[RemoteTask]) -> None:
    """The bodies do more rounds, and then end well."""
    for task in tasks:
        task.wait_for(f"round {rounds(task) + 2};", START_S)
    (gang.folder / "finish").touch()
    for task in tasks:
        task.ok()


def test_a_frozen_node_is_told_and_hears_why_when_it_goes_on(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(HOW="wait", **FREEZE)
        ready(tasks)
        since = time.monotonic()
        gang.hosts.stop(1)
        told = all_fail([tasks[0], tasks[2]], since, FROZEN_S + END_S, "a frozen node")
        assert time.monotonic() - since > FROZEN_S - 1
        gang.hosts.go_on(1)
        told += all_fail([tasks[1]], time.monotonic(), END_S, "it goes on")
        sentence = "node 1 (gang1): has not answered node 0 for 5 s, while its host still does: it is frozen"
        for output in told:
            assert sentence in output, output


def test_a_frozen_node_0_is_told_by_the_others_and_knows_it_afterwards(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(HOW="wait", **FREEZE)
        ready(tasks)
        since = time.monotonic()
        gang.hosts.stop(0)
        told = all_fail(tasks[1:], since, FROZEN_S + END_S, "a frozen node 0")
        for node, output in enumerate(told, 1):
            sentence = rf"node 0.*: has not answered node {node} for 5 s, while its host still does: it is frozen"
            assert re.search(sentence, output), output
        gang.hosts.go_on(0)
        (output,) = all_fail([tasks[0]], time.monotonic(), END_S, "it goes on")
        assert re.search(r"node 0 \(gang0\): has not answered node \d for 5 s, while its host still does", output), (
            output
        )


def test_an_interruption_with_data_under_way_ends_nothing(tmp_path: Path) -> None:
    """Two thirds of ``lost_host_timeout``; a link takes up to a second to come up, and neighbours ask each second."""
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(METAFLOW_GANG_LOST_HOST_TIMEOUT="15")
        ready(tasks)
        gang.hosts.cut(1)
        time.sleep(10.0)
        gang.hosts.heal(1)
        goes_on(gang, tasks)


@pytest.mark.big
@pytest.mark.parametrize("index", [0, 1])
def test_an_interruption_of_20_s_ends_nothing_by_default(tmp_path: Path, index: int) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(METAFLOW_GANG_LOST_HOST_TIMEOUT="30")
        ready(tasks)
        gang.hosts.cut(index)
        time.sleep(20.0)
        gang.hosts.heal(index)
        goes_on(gang, tasks)


@pytest.mark.big
def test_a_lost_host_is_told_within_30_s_by_default(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(METAFLOW_GANG_LOST_HOST_TIMEOUT="30")
        ready(tasks)
        since = time.monotonic()
        gang.hosts.cut(1)
        tasks[0].wait_for(
            re.compile(r"node 1 \(gang1\): has not answered node 0 for 2\d s, and neither has its host"), 35.0
        )
        print(f"told after {time.monotonic() - since:.1f} s")
        all_fail(tasks, since, 35.0 + END_S, "a host cut off")


def test_lost_packets_end_nothing(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(METAFLOW_GANG_LOST_HOST_TIMEOUT="15", HOW="wait")
        ready(tasks)
        gang.hosts.lose(0.3)
        time.sleep(30.0)
        for task in tasks:
            assert "failure" not in task.output, task.dump()
        tasks[1].kill()
        all_fail([tasks[0], tasks[2]], time.monotonic(), 2 * END_S, "a killed task")


@pytest.mark.big
def test_a_guard_on_a_busy_machine_is_not_taken_for_frozen(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(**FREEZE)
        ready(tasks)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(16)]
        try:
            time.sleep(120.0)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        goes_on(gang, tasks)
