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
from support.remote import LOST_HOST_S, START_S, RemoteTask, all_fail, remote_gang
from support.requirements import require_packages, require_tool

LOST_S = LOST_HOST_S + 8.0
"""For a lost host to be noticed and told, and what a body and Metaflow take to end."""

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
            last = gang.num_nodes - 1
            large = gang.broadcast(os.urandom(20_000_000) if gang.node_index == last else None, source=last)
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
def struck(tasks: Sequence[RemoteTask], timeout: float, what: str) -> Iterator[list[str]]:
    """Strike inside; each of ``tasks`` then fails in time. Gives a list that holds their output afterwards."""
    outputs: list[str] = []
    started = time.monotonic()
    yield outputs
    outputs += all_fail(tasks, started, timeout, what)


def test_hosts_meet_talk_and_part(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3, main="gang0") as gang:
        tasks = gang.start_all(HOW="talk")
        ready(tasks)
        late = gang.start(1, HOW="talk").fails(END_S)
        assert "accepts no more nodes: this node came too late or was restarted" in late, "node 1 is there already"
        (tmp_path / "finish").touch()
        told = []
        for task in tasks:
            line = re.search(r"^told (.*)$", task.ok(), re.MULTILINE)
            assert line, task.dump()
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
        assert "The gang of attempt 0 accepts no more nodes: this node came too late or was restarted" in late
        assert str(tmp_path) in late, "it says where it looked"


def test_a_killed_host_is_named_by_the_others(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with struck([tasks[0], tasks[2]], END_S, "a host without power") as outputs:
            gang.kill_host(1)
        for output in outputs:
            # The guard of node 2 may see it a moment before node 0's does.
            assert re.search(
                r"The first failure was on node 1 \(gang1\): (the connection from it to node 0 was lost \(|"
                "answers neither node 0 nor node 2 any more)",
                output,
            ), output


@pytest.mark.slow
def test_a_killed_host_of_control_is_named_by_the_others(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with struck(tasks[1:], END_S, "control's host without power") as outputs:
            gang.kill_host(0)
        for node, output in enumerate(outputs, 1):
            assert f"The first failure was on node 0: the connection from node {node} to it was lost (" in output


@pytest.mark.slow
@pytest.mark.parametrize("how", ["silent", pytest.param("spoke last", marks=pytest.mark.big)])
def test_a_host_cut_off_is_named_on_both_sides(tmp_path: Path, how: str) -> None:
    """Whether the hub or the ring notices it first, which is a matter of who spoke last on their connections."""
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all(HOW=how)
        ready(tasks)
        with struck(tasks, LOST_S, f"host 2 cut off ({how})") as outputs:
            gang.hosts.cut(2)
        for output in outputs[:2]:
            assert re.search(
                r"The first failure was on node 2 \(gang2\): .* or the network between them is cut", output
            )
        assert re.search(r"The first failure was on node 0: .* or the network between them is cut", outputs[2])
        for output in outputs:
            assert "still reach" not in output, "nobody knows that of a node which answers nobody"


@pytest.mark.slow
def test_a_cut_off_control_is_named_by_the_others(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with struck(tasks, LOST_S, "control's host cut off") as outputs:
            gang.hosts.cut(0)
        for output in outputs[1:]:
            assert re.search(r"The first failure was on node 0: .* or the network between them is cut", output)
        assert re.search(
            r"The first failure was on node 0 \(gang0\): none of the 2 other nodes has answered it for \d+ s: its own "
            "network is cut",
            outputs[0],
        ), outputs[0]


@pytest.mark.slow
def test_two_nodes_cut_off_from_each_other_are_both_named(tmp_path: Path) -> None:
    ip = require_tool("ip", "iproute2")
    with remote_gang(tmp_path, FLOW, 3) as gang:
        tasks = gang.start_all()
        ready(tasks)
        with struck(tasks, LOST_S, "nodes 1 and 2 cut off from each other") as outputs:
            for here, there in ((1, 2), (2, 1)):
                nobody = ["lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"]
                gang.hosts[here].run([ip, "neigh", "replace", gang.hosts[there].address, *nobody])
        # On a busy machine the two may not have been connected yet.
        lost = r"lost its connection to node {} \(timed out\), while both still reach node 0"
        never = r"cannot reach node {}: Node \d cannot connect to \S+ port \d+: timed out"
        told = [
            rf"node {here} \(gang{here}\): (?:{lost.format(there)}|{never.format(there)})"
            for here, there in ((1, 2), (2, 1))
        ]
        for output in outputs:
            assert any(re.search(pattern, output) for pattern in told), output


@pytest.mark.slow
def test_a_node_that_cannot_come_says_why_and_the_others_name_it(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        gang.hosts.cut(2)
        with struck(gang.start_all(JOIN_S="6"), START_S, "a node that cannot come") as outputs:
            pass
        assert "2 of 3 nodes have joined, waiting for node 2 for 5 s." in outputs[0]
        for output in outputs[:2]:
            assert "The first failure was on node 2: did not join within 6 s (all_nodes_started_timeout)" in output
        where = rf"could not join the gang: Node 2 cannot connect to {re.escape(gang.hosts[0].address)} port \d+: "
        assert re.search(where + r"(timed out|no route to that host) \(\d+ attempts? in [56][.\d]* s\)", outputs[2])
        assert "security group, firewall or network policy" in outputs[2], "what to check"


@pytest.mark.slow
def test_control_under_an_unknown_name_is_said_when_the_time_is_over(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 2, hosts=1, main="nowhere") as gang:
        output = gang.start(1, on=0, JOIN_S="3").fails(START_S)
        assert re.search(
            r"Node 1 finds no way to node 0 \(MF_PARALLEL_MAIN_IP\). No such host: 'nowhere' \(.*\)\. It was tried for "
            r"[23] s\.",
            output,
        ), output
        assert "Traceback" not in output


@pytest.mark.slow
def test_a_node_that_comes_twice_in_one_attempt_ends_the_gang(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 3) as gang:
        with struck([gang.start(0), gang.start(1), gang.start(1, on=2)], START_S, "node 1 twice") as outputs:
            pass
        told = "node 1 (gang{}): was restarted: it joined twice in one attempt"
        assert told.format(1) in outputs[0] or told.format(2) in outputs[0]
        first, second = sorted(outputs[1:], key=lambda output: "refused" in output)
        assert "was restarted: it joined twice in one attempt" in first
        assert "refused by the gang: node 1 has joined already, and was restarted" in second


@pytest.mark.slow
def test_a_retry_does_not_meet_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 2, hosts=3) as gang:
        gang.start(0)
        deadline = time.monotonic() + START_S
        while not gang.meeting().startswith(b"mf.gang open"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        gang.kill_host(0)  # and so nobody takes back what it has published

        def attempt(number: int, **env: str) -> list[RemoteTask]:
            main = gang.hosts[1].address
            return [gang.start(n, on=n + 1, attempt=number, MF_PARALLEL_MAIN_IP=main, **env) for n in range(2)]

        late, tasks = gang.start(1, on=2, JOIN_S="4"), attempt(1)
        ready(tasks)
        assert f"Node 1 cannot connect to {gang.hosts[0].address} port " in late.fails(END_S)
        with struck([tasks[0]], END_S, "a killed task") as outputs:
            tasks[1].kill()
        assert "The first failure was on node 1 (gang2): the node's task was killed by SIGKILL" in outputs[0]

        tasks = attempt(2, HOW="talk")
        ready(tasks)
        (tmp_path / "finish").touch()
        for node, task in enumerate(tasks):
            assert f"ready {node} of attempt 2;" in task.ok()


TORCH = """
import os
from metaflow import FlowSpec, current, step, torchrun

class Ranks(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @torchrun
    @step
    def work(self):
        current.torch.run(entrypoint="ranks.py")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Ranks()
"""

RANKS = """
import os
import torch, torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"rank {os.environ['RANK']} is {os.getpid()} of {total.item():.0f};", flush=True)
while True:
    dist.all_reduce(torch.ones(1))
"""


@pytest.mark.slow
def test_ranks_train_over_the_network_and_a_killed_one_is_named(tmp_path: Path) -> None:
    require_packages("torch")
    (tmp_path / "ranks.py").write_text(RANKS)
    with remote_gang(tmp_path, TORCH, 2) as gang:
        tasks = gang.start_all(OMP_NUM_THREADS="1")
        pids = [task.wait_for(re.compile(rf"rank {n} is (\d+) of 2;"))[1] for n, task in enumerate(tasks)]
        for task in tasks:
            assert re.search(r"\[gang\] Set for the ranks, .*GLOO_SOCKET_IFNAME=eth0", task.output), task.dump()
        with struck(tasks, END_S, "a killed rank on host 1") as outputs:
            gang.hosts[1].run(["sh", "-c", f"kill -9 {pids[1]}"])
        assert "The first failure was on node 1 (gang1): rank 1 was killed by SIGKILL" in outputs[0]
        assert "rank 1 on node 1, running ranks.py, was killed by SIGKILL" in outputs[1]
