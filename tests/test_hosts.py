"""A gang over hosts with a network between them: how it meets, what it tells when a host, a link or a node is lost.

Deadlines here tell "stopped" from "hangs"; how long an end really took is printed, and shown by ``pytest -rP``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.remote import RemoteGang, RemoteTask, remote_gang
from support.requirements import require_tool

LOST_S = 13.0
"""For a lost host to be noticed and told: 10 s by keep-alive, and what a body and Metaflow take to end."""

END_S = 15.0
"""For tasks to end after a failure that is seen at once: what it is meant to take is 3 s, on a machine not busy."""

FLOW = """
import hashlib, json, os, time
from metaflow import FlowSpec, current, gang, step

class Remote(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang(all_nodes_started_timeout=float(os.environ.get("JOIN_S", "60")))
    @step
    def work(self):
        gang = current.gang
        if os.environ.get("HOW") == "talk":
            gang.barrier()
            large = gang.broadcast(os.urandom(20_000_000) if gang.node_index == 2 else None, source=2)
            print("told " + json.dumps({
                "nodes": [[node.index, node.address, node.hostname] for node in gang.nodes],
                "main": gang.main_address,
                "gathered": gang.all_gather({"node": gang.node_index}),
                "large": [len(large), hashlib.sha256(large).hexdigest()],
            }))
        if os.environ.get("HOW") == "spoke last":
            time.sleep(1.5)
            gang.barrier()
        print(f"ready {gang.node_index} of attempt {current.retry_count};")
        if os.environ.get("HOW") == "talk":
            while not os.path.exists("finish"):
                time.sleep(0.02)
        else:
            gang.run(["sleep", "1000"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Remote()
"""


def ready(tasks: Sequence[RemoteTask]) -> None:
    """Wait until every body runs."""
    for task in tasks:
        task.wait_for("ready ")


@contextmanager
def all_fail(tasks: Sequence[RemoteTask], timeout: float, what: str) -> Iterator[list[str]]:
    """Strike inside; each of ``tasks`` then fails in time. Gives a list that holds their output afterwards."""
    outputs: list[str] = []
    started = time.monotonic()
    yield outputs
    for task in tasks:
        outputs.append(task.fails(started + timeout - time.monotonic()))
        print(f"{what}: {task.host.name} had ended after {time.monotonic() - started:.1f} s")


def test_hosts_meet_talk_and_part(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3, main="gang0") as gang:
        tasks = gang.start_all(HOW="talk")
        ready(tasks)
        late = gang.start(1, HOW="talk").fails(END_S)
        assert "has closed its doors: this node came too late or was restarted" in late, "node 1 is there already"
        (tmp_path / "finish").touch()
        told = []
        for task in tasks:
            line = re.search(r"^told (.*)$", task.ok(), re.MULTILINE)
            assert line, task.story()
            told.append(json.loads(line[1]))
        assert told[0] == told[1] == told[2]
        assert told[0]["nodes"] == [[index, gang.hosts[index].address, f"gang{index}"] for index in range(3)]
        assert told[0]["main"] == gang.hosts[0].address
        assert told[0]["gathered"] == [{"node": node} for node in range(3)]
        assert told[0]["large"][0] == 20_000_000

        tombstone = gang.meeting()
        assert tombstone.startswith(b"mf.gang closed 0 ")
        assert b"secret" not in tombstone and tombstone.endswith(b"\n")
        late = gang.start(2, HOW="talk").fails(END_S)
        assert "The gang of attempt 0 has closed its doors: this node came too late or was restarted" in late
        assert str(tmp_path) in late, "it says where it looked"


def test_a_killed_host_is_named_by_the_others(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with all_fail([tasks[0], tasks[2]], END_S, "a host without power") as outputs:
            gang.kill_host(1)
        for output in outputs:
            assert "The first failure was on node 1 (gang1): the connection from it to node 0 " in output


def test_a_killed_host_of_control_is_named_by_the_others(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with all_fail(tasks[1:], END_S, "control's host without power") as outputs:
            gang.kill_host(0)
        for node, output in enumerate(outputs, 1):
            assert f"The first failure was on node 0: the connection from node {node} to it " in output


@pytest.mark.parametrize("node", [0, 2])
@pytest.mark.parametrize("how", ["silent", "spoke last"])
def test_a_host_cut_off_is_named_on_both_sides(tmp_path: Path, node: int, how: str) -> None:
    """Whether the hub's connections or the ring's notice it first, which is a matter of who spoke last on them."""
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(HOW=how)
        ready(tasks)
        with all_fail(tasks, LOST_S, f"host {node} cut off") as outputs:
            gang.hosts.cut(node)
        for index, output in enumerate(outputs):
            print(index, output)
            assert "while both still reach node 0" not in output


def test_two_nodes_cut_off_from_each_other_are_both_named(tmp_path: Path) -> None:
    ip = require_tool("ip", "iproute2")
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with all_fail(tasks, LOST_S, "node 1 cut off from node 2 alone") as outputs:
            for here, there in ((1, 2), (2, 1)):
                nobody = ["lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"]
                gang.hosts[here].run([ip, "neigh", "replace", gang.hosts[there].address, *nobody])
        for output in outputs:
            print(output)
