"""``preflight="full"`` on hosts: pairs that do not reach each other are named, and so is a link that is slow."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.flows import FlowRunner
from support.remote import LOST_HOST_S, START_S, all_fail, remote_gang

from metaflow_extensions.gang.core.preflight import links
from metaflow_extensions.gang.core.preflight.network import nodes_to_leave_out
from metaflow_extensions.gang.core.preflight.reach import Reach, listen

RUN_S = 120.0
"""For a flow to end, on a machine that is busy with other tests."""

FLOW = """
import os
from metaflow import FlowSpec, current, gang, step

class Full(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=int(os.environ["NODES"]))

    @gang(preflight="full")
    @step
    def work(self):
        print("the body runs", flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Full()
"""

NOWHERE = "02:00:00:00:00:99"
"""A hardware address that no host has: what is sent there is lost without a sound, as by a firewall."""


@pytest.mark.slow
def test_a_pair_that_a_firewall_parts_is_named_on_all_nodes(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 4) as gang:
        one, three = gang.hosts[1], gang.hosts[3]
        one.run(["ip", "neigh", "replace", three.address, "lladdr", NOWHERE, "dev", "eth0"])
        tasks = gang.start_all()
        tasks[0].wait_for("Preflight", START_S)
        for output in all_fail(tasks, time.monotonic(), LOST_HOST_S, "a pair that is parted"):
            pair = (
                f"node 1 (gang1, {one.address}) and node 3 (gang3, {three.address}) do not reach each other: no answer"
            )
            assert pair in output, output
            assert output.count("not reach") == 1, output
            assert "check the security group" in output and "the body runs" not in output, output


@pytest.mark.slow
def test_a_node_at_which_another_machine_answers_is_named(tmp_path: Path) -> None:
    """As where every machine has the same address for its containers."""
    with remote_gang(tmp_path, FLOW, 3) as gang:
        one, two = gang.hosts[1], gang.hosts[2]
        one.run(["ip", "addr", "add", f"{two.address}/32", "dev", "lo"])
        tasks = gang.start_all()
        tasks[0].wait_for("Preflight", START_S)
        for output in all_fail(tasks, time.monotonic(), LOST_HOST_S, "an address that two have"):
            told = f"node 1 (gang1, {one.address}) does not reach node 2 (gang2, {two.address}): Connection refused"
            assert told in output and "the body runs" not in output, output


@pytest.mark.slow
def test_the_links_of_a_slow_host_are_named_and_the_body_runs(tmp_path: Path) -> None:
    with remote_gang(tmp_path, FLOW, 5) as gang:
        for index in range(5):  # the network is the limit, and not a machine that is busy
            rate = 30 if index == 3 else 200
            gang.hosts[index].run(f"tc qdisc add dev eth0 root tbf rate {rate}mbit burst 64kb latency 50ms".split())
        tasks = gang.start_all()
        said, *others = [task.ok() for task in tasks]
    found = re.search(
        r"all 5 nodes reach each other \((\d+\.\d) s\)\. "
        r"These links have less than half of the median of 1\d\d Mbit/s:\n"
        r"((?:\[gang\]   node .*\n)+)",
        said,
    )
    assert found, said
    print(found[0])
    pairs = sorted(re.findall(r"node (\d) .* and node (\d) .*: (\d+)\.?\d* Mbit/s", found[2]))
    assert [pair[:2] for pair in pairs] == [("2", "3"), ("3", "4")], said
    assert all(15 <= int(rate) <= 45 for _, _, rate in pairs), said
    assert float(found[1]) < 30
    assert all("the body runs" in output for output in (said, *others))
    assert not any("Preflight" in output for output in others)


def test_a_network_without_faults_is_one_line(flow_run: FlowRunner) -> None:
    output = flow_run(FLOW, env={"NODES": "3"}).ok(RUN_S).output
    line = re.search(r"Preflight: all 3 nodes reach each other \(\d+\.\d s\)\. (Neighbours|These links) have", output)
    assert line, output
    output = flow_run(FLOW, env={"NODES": "1"}).ok(RUN_S).output
    assert "Preflight: the gang has one node, and needs no network" in output


def test_every_neighbour_is_measured_once_and_no_node_twice_at_a_time() -> None:
    for nodes in range(2, 12):
        parts = links.rounds(nodes)
        for part in parts:
            assert len({node for link in part for node in link}) == 2 * len(part)
        found = sorted(link for part in parts for link in part)
        assert found == ([(0, 1)] if nodes == 2 else sorted((node, (node + 1) % nodes) for node in range(nodes)))
    assert links.rounds(1) == []


def test_a_rate_is_that_of_what_comes_and_0_where_nothing_does() -> None:
    one, other = socket.socketpair()
    rates: list[float] = []
    thread = threading.Thread(target=lambda: rates.append(links.exchange(other)))
    thread.start()
    with one:
        rates.append(links.exchange(one))
    thread.join(10)
    other.close()
    assert len(rates) == 2 and min(rates) > 1e8
    silent, kept = socket.socketpair()
    with silent, kept:
        begun = time.monotonic()
        assert links.exchange(silent) == 0.0
        assert time.monotonic() - begun < links.MOST_S + links.REST_S + 1
    assert links.slow({(0, 1): 1e9, (1, 2): 1e8, (2, 0): 1e9}) == (1e9, {(1, 2): 1e8})
    assert links.slow({(0, 1): 90e9, (1, 2): 5e9, (2, 0): 90e9})[1] == {}, "faster than can be told apart"
    assert [links.shown(rate) for rate in (9.4e8, 2.44e9, 9e9)] == ["940 Mbit/s", "2.4 Gbit/s", "4 Gbit/s or more"]


def test_another_program_and_another_node_at_an_address_are_told_apart() -> None:
    def serve(answer: bytes) -> tuple[str, int]:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def once() -> None:
            guest, _ = server.accept()
            with guest:
                guest.recv(100)
                guest.sendall(answer)

        threads.append(threading.Thread(target=once))
        threads[-1].start()
        name = server.getsockname()
        return str(name[0]), int(name[1])

    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with listen("127.0.0.1") as listener, socket.create_server(("127.0.0.1", 0)) as closed:
        place = closed.getsockname()
        closed.close()
        others = {1: serve(b"\0\0\0\1"), 2: serve(b"\0\0\0\4"), 3: serve(b"SSH-2.0-x"), 4: place}
        reach = Reach(listener, 0, b"t" * 16, others)
        begun = time.monotonic()
        reach.run()
        assert time.monotonic() - begun < 12
    for thread in threads:
        thread.join(5)
    for server in servers:
        server.close()
    assert reach.failed == {
        2: "node 4 answers at its address",
        3: "another program answers at its address",
        4: "Connection refused",
    }


def test_the_nodes_in_the_most_pairs_are_left_out_and_never_node_0() -> None:
    assert nodes_to_leave_out([]) == []
    assert nodes_to_leave_out([(1, 3), (3, 1)]) == [3], "one pair, whichever way"
    assert nodes_to_leave_out([(2, 0)]) == [2]
    assert nodes_to_leave_out([(1, 2), (1, 3), (4, 1)]) == [1], "it explains all of them"
    assert nodes_to_leave_out([(0, 1), (0, 2), (1, 2)]) == [2, 1]
    assert nodes_to_leave_out([(1, 2), (3, 4)]) == [4, 2]
