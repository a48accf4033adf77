"""The hub: who has joined, what is gathered, and what failed first. In memory, and over real connections."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.guard.channel.accept import Acceptor
from metaflow_extensions.gang.core.guard.channel.connect import ConnectError, connect
from metaflow_extensions.gang.core.guard.channel.connection import Connection, Identity
from metaflow_extensions.gang.core.guard.coordinator.hub import Hub
from metaflow_extensions.gang.core.guard.coordinator.messages import inline_bytes
from metaflow_extensions.gang.core.guard.coordinator.root_cause import REPORT_SETTLE_S
from metaflow_extensions.gang.core.guard.failure_record import EVIDENCE, LOST, PEER, PREEMPTED, Failure
from metaflow_extensions.gang.core.guard.hub_link.hub_link import RemoteHubLink
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.settings import Settings

SECRET = os.urandom(32)
GANG = Identity("TrainFlow", "17", "train", "4", 0)
END_S = 30.0
NOW = f"{Settings.__module__}._now"
"""The settings that count in this process."""


def until(loop: Loop, done: Callable[[], bool], seconds: float = END_S) -> None:
    """Run the loop until ``done``; fail when it takes longer than any machine should."""
    end = time.monotonic() + seconds

    def look() -> None:
        if done():
            loop.stop()
        else:
            assert time.monotonic() < end, f"not done after {seconds:g} s"
            loop.call_later(0.005, look)

    look()
    loop.run()


class Member:
    """Another node: a real connection, and what the hub said on it."""

    def __init__(self, bench: Bench, node: int, **info: Any) -> None:
        self.bench, self.node = bench, node
        self.heard: list[tuple[dict[str, Any], bytes]] = []
        self.closed: list[str] = []
        self.errors: list[str] = []
        self.connection: Connection | None = None
        self.answers = True  # whether its guard runs
        connect(
            bench.loop, bench.acceptor.address, bench.acceptor.port, SECRET, GANG, "member", node,
            {"hostname": f"host-{node}", "cpus": 1, "gpus": 0, "ring_port": 1, **info}, self._connected, self._failed,
            END_S,
        )  # fmt: skip

    def _connected(self, connection: Connection) -> None:
        self.connection = connection
        connection.on_frame = lambda conn, header, payload: self._take(header, payload)
        connection.on_close = lambda conn, reason: self.closed.append(reason)

    def _take(self, header: dict[str, Any], payload: bytes) -> None:
        self.heard.append((header, payload))
        if header["op"] == "ping" and self.answers:
            self.say(**{**header, "op": "alive"})

    def _failed(self, error: ConnectError) -> None:
        self.errors.append(str(error))

    def say(self, op: str, payload: bytes = b"", **fields: Any) -> None:
        assert self.connection is not None
        self.connection.send({"op": op, **fields}, payload)

    def fails(self, text: str, order: int = EVIDENCE, after: float = 0.0, kind: str = "exit") -> None:
        self.say("fail", failure=Failure(self.node, kind, text, time.time() + after, order=order).to_json())

    def die(self) -> None:
        assert self.connection is not None
        self.connection.abort()

    def leaves(self) -> None:
        self.say("done")
        self.say("bye")

    def got(self, op: str) -> list[dict[str, Any]]:
        return [header for header, _ in self.heard if header["op"] == op]


class Bench:
    """A hub of ``nodes`` nodes, of which this process is node 0."""

    def __init__(self, loop: Loop, nodes: int, timeout: float = END_S, may_leave_out: int = 0) -> None:
        self.loop = loop
        self.heard: list[tuple[dict[str, Any], bytes]] = []
        self.said: list[str] = []
        self.upload_starts = 0
        self.members: dict[int, Member] = {}
        streams = (self._deliver, self.said.append, self._start_uploads)
        self.hub = Hub(loop, nodes, timeout, *streams, may_leave_out=may_leave_out)
        self.acceptor = Acceptor(loop, "127.0.0.1", SECRET, GANG, self.hub.accept, self.hub.refuse)

    def _deliver(self, header: dict[str, Any], payload: bytes) -> None:
        self.heard.append((header, payload))

    def _start_uploads(self) -> int:
        self.upload_starts += 1
        return 4711

    def got(self, op: str) -> list[dict[str, Any]]:
        return [header for header, _ in self.heard if header["op"] == op]

    def join(self, *nodes: int, **info: Any) -> None:
        """Node 0 joins, and then the others, one after the other; all tell the same ``info`` of themselves."""
        self.hub.join(0, {"hostname": "host-0", "address": "127.0.0.1", **info})
        for node in nodes:
            self.joins(node, **info)

    def joins(self, node: int, **info: Any) -> Member:
        self.members[node] = Member(self, node, **info)
        until(self.loop, lambda: self.members[node].connection is not None and node in self.hub.roster.infos)
        return self.members[node]

    def report(self) -> str:
        until(self.loop, lambda: bool(self.got("failure-report")))
        (told,) = self.got("failure-report")
        for member in self.members.values():
            if member.connection is not None and not member.connection.closed:
                until(self.loop, lambda member=member: bool(member.got("failure-report")))
                assert [header["report"] for header in member.got("failure-report")] == [told["report"]], (
                    "every node, once"
                )
        return str(told["report"])

    def close(self) -> None:
        self.acceptor.close()
        over: list[bool] = []
        self.hub.close(lambda: over.append(True))
        until(self.loop, lambda: bool(over))
        for member in self.members.values():
            if member.connection is not None:
                member.connection.abort()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    loop = Loop()
    made: list[Bench] = []

    def make(nodes: int = 3, **options: Any) -> Bench:
        made.append(Bench(loop, nodes, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    loop.close()


# -- joining -----------------------------------------------------------------------------------------------------------


def test_the_roster_comes_when_the_last_has_joined_with_all_in_order(bench: Callable[..., Bench]) -> None:
    gang = bench(4)
    gang.join(3, 1)
    assert not gang.got("roster")
    gang.members[2] = Member(gang, 2)
    until(gang.loop, lambda: all(member.got("roster") for member in gang.members.values()))
    (roster,) = gang.got("roster")
    assert [node["hostname"] for node in roster["nodes"]] == ["host-0", "host-1", "host-2", "host-3"]
    assert [node["address"] for node in roster["nodes"]] == ["127.0.0.1"] * 4, "as this machine sees each of them"
    assert all(member.got("roster") == [roster] for member in gang.members.values())
    assert gang.hub.roster.hostnames == {node: f"host-{node}" for node in range(4)}


def test_one_node_is_a_gang_at_once(bench: Callable[..., Bench]) -> None:
    gang = bench(1)
    gang.join()
    assert len(gang.got("roster")) == 1
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"x")
    assert gang.heard[-1] == ({"op": "gathered", "seq": 0, "entries": [{"size": 1}]}, b"x")


@pytest.mark.parametrize(("role", "node"), [("member", 0), ("member", 3), ("ring", 1)])
def test_who_has_no_place_is_refused(bench: Callable[..., Bench], role: str, node: int) -> None:
    assert bench(3).hub.refuse(role, node) == f"this gang has nodes 0 to 2, no {role} {node}"


def test_a_node_that_joins_twice_was_restarted_and_ends_the_gang(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1)
    gang.members[9] = Member(gang, 1)
    assert "node 1 (host-1): was restarted: it joined twice in one attempt" in gang.report()
    late = Member(gang, 1)
    until(gang.loop, lambda: bool(late.errors))
    assert "this gang is ending: the first failure was on node 1 (host-1): was restarted" in late.errors[0]


def test_late_nodes_are_named_and_fail_the_gang_at_the_timeout(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaflow_extensions.gang.core.guard.coordinator.joining.PROGRESS_S", 0.1)
    gang = bench(12, timeout=0.6)
    gang.join(1)
    report = gang.report()
    assert gang.said[:2] == [
        "2 of 12 nodes have joined, waiting for nodes 2, 3, 4, 5, 6, 7, 8, 9 and 2 more for 0 s.",
        "2 of 12 nodes have joined, waiting for nodes 2, 3, 4, 5, 6, 7, 8, 9 and 2 more for 0 s.",
    ]
    assert (
        "node 2: did not join within 0.6 s (all_nodes_started_timeout): 2 of 12 nodes had joined, nodes 2, 3" in report
    )
    assert gang.got("stop") == [{"op": "stop", "order": EVIDENCE, "preempted": False}]
    said = len(gang.said)
    gang.loop.call_later(0.3, gang.loop.stop)
    gang.loop.run()
    assert len(gang.said) == said, "nobody is waited for any more"


# -- nodes that cannot take part -------------------------------------------------------------------------------------

NO_TORCH = "PyTorch is missing"


def ends_its_node(member: Member, text: str) -> None:
    """A node is stopped for ``text``, and has the report, once nothing of it runs any more."""
    until(member.bench.loop, lambda: bool(member.got("stop")))
    member.say("stopped")
    until(member.bench.loop, lambda: bool(member.got("failure-report")))
    (told,) = member.got("failure-report")
    assert text in told["report"], told
    assert told["causes"] == [{"node": member.node}], "its task raises its own exception"


@pytest.mark.parametrize("is_last", [False, True])
def test_an_unfit_node_is_left_out_where_the_step_can_do_without_it(bench: Callable[..., Bench], is_last: bool) -> None:
    gang = bench(4, may_leave_out=1)
    gang.join(*((1, 2) if is_last else (1,)))
    unfit = gang.joins(3, unfit=True)
    wait(gang, 0.2)
    assert not gang.got("roster") and not gang.got("stop"), "it has not said why yet"
    unfit.fails(NO_TORCH, kind="exception")
    if not is_last:
        until(gang.loop, lambda: bool(gang.got("lost")))
        assert not gang.got("roster")
        gang.joins(2)
    others = [gang.members[1], gang.members[2]]
    until(gang.loop, lambda: all(member.got("roster") for member in others) and bool(gang.got("roster")))
    ends_its_node(unfit, NO_TORCH)
    assert not unfit.got("roster")
    (roster,) = gang.got("roster")
    assert roster["left_out"] == {"3": f"its preflight failed: {NO_TORCH}"} and len(roster["nodes"]) == 4
    assert all(member.got("roster") == [roster] and not member.got("stop") for member in others)
    assert gang.said == [f"node 3 (host-3) cannot take part: {NO_TORCH}."]
    (told,) = gang.got("told-of-lost")
    assert told["why"] == f"its preflight failed: {NO_TORCH}"
    assert others[1].got("left") and not others[0].got("left"), "its neighbour does not wait for it"
    for node in (0, 1, 2):
        gang.hub.receive(node, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"")
    assert gang.got("gathered")[0]["entries"] == [{"size": 0}, {"size": 0}, {"size": 0}, {"lost": True, "size": 0}]
    others[0].fails("exited with code 1", kind="task")
    until(gang.loop, lambda: bool(gang.got("failure-report")))
    report = gang.got("failure-report")[0]["report"]
    assert report == "The first failure was on node 1 (host-1): exited with code 1", "control has not asked for more"


def test_more_unfit_nodes_than_the_step_can_do_without_end_the_gang_with_all_their_reasons(
    bench: Callable[..., Bench],
) -> None:
    gang = bench(4, may_leave_out=1)
    gang.join()
    unfit = [gang.joins(node, unfit=True) for node in (2, 1)]
    unfit[0].fails("has no torch")
    until(gang.loop, lambda: bool(gang.got("lost")))
    unfit[1].fails("has no Python")
    until(gang.loop, lambda: bool(gang.got("failure-report")))
    report = gang.got("failure-report")[0]["report"]
    assert report.startswith("The first failure was on node 1 (host-1): has no Python"), report
    assert "Before, node 2 (host-2) could not take part: has no torch" in report, report
    assert not gang.got("roster")


def test_a_step_that_can_do_without_no_node_ends_by_the_first_unfit_one(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1)
    gang.joins(2, unfit=True).fails(NO_TORCH)
    assert f"node 2 (host-2): {NO_TORCH}" in gang.report()
    assert not gang.got("tolerate") and not gang.got("lost") and not gang.got("roster")


NO_MODULE = "its flow file could not be loaded: ModuleNotFoundError: No module named 'wandb'"


def begins_without(gang: Bench, node: int, why: str) -> None:
    """The gang begins without this node, of which the others know nothing but the reason."""
    others = [member for index, member in gang.members.items() if index != node]
    until(gang.loop, lambda: all(member.got("roster") for member in others) and bool(gang.got("roster")))
    (roster,) = gang.got("roster")
    assert roster["left_out"] == {str(node): why} and len(roster["nodes"]) == len(others) + 2
    assert all(member.got("roster") == [roster] and not member.got("stop") for member in others)
    until(gang.loop, lambda: bool(gang.got("told-of-lost")))
    assert [told["why"] for told in gang.got("told-of-lost")] == [why]
    assert not gang.got("stop")


@pytest.mark.parametrize("is_last", [False, True])
def test_a_node_that_has_ended_before_it_joined_is_left_out_where_the_step_can_do_without_it(
    bench: Callable[..., Bench], is_last: bool
) -> None:
    gang = bench(4, may_leave_out=1)
    gang.join(*((1, 3) if is_last else (1,)))
    for _ in range(2):  # node 0's task may find the report again
        gang.hub.receive(0, {"op": "fail", "failure": Failure(2, "absent", NO_MODULE, time.time()).to_json()}, b"")
    if not is_last:
        assert not gang.got("roster")
        gang.joins(3)
    begins_without(gang, 2, f"it did not join: {NO_MODULE}")
    nobody = {"hostname": "", "address": "", "cpus": 0, "gpus": 0}
    assert gang.got("roster")[0]["nodes"][2] == nobody and len(gang.hub.roster.facts()) == 4
    assert gang.said == [f"node 2 did not join: {NO_MODULE}."]
    assert gang.members[1].got("left"), "its neighbour does not wait for it"
    late = Member(gang, 2)
    until(gang.loop, lambda: bool(late.errors))
    assert "this gang goes on without node 2, which was lost before, or did not join in time" in late.errors[0]
    for node in (0, 1, 3):
        gang.hub.receive(node, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"")
    assert gang.got("gathered")[0]["entries"] == [{"size": 0}, {"size": 0}, {"lost": True, "size": 0}, {"size": 0}]
    assert not gang.got("stop")


def test_more_nodes_that_have_ended_than_the_step_can_do_without_end_the_gang(bench: Callable[..., Bench]) -> None:
    gang = bench(4, may_leave_out=1)
    gang.join(1)
    gang.hub.fail(Failure(2, "absent", NO_MODULE, time.time()))
    gang.hub.fail(Failure(3, "task-exit", "the node's task exited with code 1", time.time()))
    report = gang.report()
    assert report.startswith("The first failure was on node 3: the node's task exited with code 1"), report
    assert f"Before, node 2 did not join: {NO_MODULE}" in report, report
    assert not gang.got("roster")


def test_a_local_task_that_has_ended_is_told_with_the_last_line_of_its_traceback(bench: Callable[..., Bench]) -> None:
    gang = bench(3, may_leave_out=1)
    gang.join(1)
    text, trace = (
        "the node's task exited with code 1 before it joined",
        "Traceback:\n  import wandb\nNo module 'wandb'\n",
    )
    gang.hub.fail(Failure(2, "task-exit", text, time.time(), trace))
    begins_without(gang, 2, f"it did not join: {text}: No module 'wandb'")


def test_the_gang_begins_at_the_deadline_without_those_that_are_missing(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaflow_extensions.gang.core.guard.coordinator.joining.PROGRESS_S", 0.1)
    gang = bench(4, timeout=0.5, may_leave_out=1)
    gang.join(1, 3)
    begins_without(gang, 2, "it did not join: not within 0.5 s (all_nodes_started_timeout)")
    *waiting, last = gang.said
    assert waiting[0] == "3 of 4 nodes have joined, waiting for node 2 for 0 s."
    assert all("waiting for node 2" in line for line in waiting), waiting
    assert last == "node 2 did not join: not within 0.5 s (all_nodes_started_timeout)."


@pytest.mark.parametrize("missing", [(2, 3), (0,)])
def test_a_gang_that_lacks_too_many_nodes_at_the_deadline_or_node_0_ends(
    bench: Callable[..., Bench], missing: tuple[int, ...]
) -> None:
    gang = bench(4, timeout=0.5, may_leave_out=1)
    for node in range(4):
        if node not in missing:
            gang.joins(node) if node else gang.join()
    until(gang.loop, lambda: bool(gang.got("failure-report")))
    assert f"node {missing[0]}: did not join within 0.5 s" in gang.got("failure-report")[0]["report"]
    assert not gang.got("roster") and not gang.got("lost")


@pytest.mark.parametrize("how", ["dies", "is restarted"])
def test_a_node_that_is_lost_while_it_waits_for_others_is_left_out(bench: Callable[..., Bench], how: str) -> None:
    gang = bench(4, may_leave_out=1)
    gang.join(1)
    waiting = gang.joins(2)
    if how == "dies":
        waiting.die()
        why = "the connection from it to node 0 was lost (closed without a word)"
    else:
        again = Member(gang, 2)
        until(gang.loop, lambda: bool(again.errors))
        assert "this gang goes on without node 2" in again.errors[0]
        ends_its_node(waiting, "it joined twice")
        why = "was restarted: it joined twice in one attempt"
    until(gang.loop, lambda: bool(gang.got("lost")))
    gang.joins(3)
    until(gang.loop, lambda: bool(gang.got("roster")))
    assert gang.got("roster")[0]["left_out"]["2"].startswith(f"lost: {why}")
    assert gang.got("roster")[0]["nodes"][2]["hostname"] == "host-2"
    assert not gang.got("stop")


@pytest.mark.parametrize(
    ("versions", "may_leave_out", "left_out"),
    [
        ("11121", 1, [3]),
        ("11221", 2, [2, 3]),
        ("11221", 1, None),  # more than the step can do without
        ("1122", 2, None),  # no majority has what node 0 has
        ("2111", 3, None),  # node 0 has what most have not
        ("1112", 0, None),
    ],
)
def test_nodes_with_another_version_of_this_package_are_left_out_where_most_have_that_of_node_0(
    bench: Callable[..., Bench], versions: str, may_leave_out: int, left_out: list[int] | None
) -> None:
    gang = bench(len(versions), may_leave_out=may_leave_out)
    gang.join(package=versions[0])
    for node in range(1, len(versions)):
        gang.joins(node, package=versions[node])
    if left_out is None:
        first = next(node for node, version in enumerate(versions) if version != versions[0])
        assert f"node {first} (host-{first}): has metaflow-gang " in gang.report() and not gang.got("roster")
        return
    until(gang.loop, lambda: bool(gang.got("roster")))
    assert [int(node) for node in gang.got("roster")[0]["left_out"]] == left_out
    for node in left_out:
        ends_its_node(gang.members[node], "has metaflow-gang 2, and node 0 has 1: all nodes need the same version")
    assert not gang.got("stop")


# -- collectives -------------------------------------------------------------------------------------------------------


def test_a_collective_gives_everybody_s_values_to_all_by_index(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    # Node 2 is one ahead of the others.
    gang.members[2].say("gather", b"two", seq=0, kind="all_gather()", entry={"blob": "0-2"})
    gang.members[2].say("gather", b"next", seq=1, kind="barrier()", entry={})
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "all_gather()", "entry": {}}, b"")
    assert not gang.got("gathered")
    gang.members[1].say("gather", b"one", seq=0, kind="all_gather()", entry={})
    until(gang.loop, lambda: all(member.got("gathered") for member in gang.members.values()))
    expected = {"op": "gathered", "seq": 0, "entries": [{"size": 0}, {"size": 3}, {"blob": "0-2", "size": 3}]}
    assert [pair for pair in gang.heard if pair[0]["op"] == "gathered"] == [(expected, b"onetwo")]
    for member in gang.members.values():
        assert (expected, b"onetwo") in member.heard


@pytest.mark.parametrize("root", [0, 2])
def test_a_collective_with_a_root_gives_the_values_to_that_node_alone(bench: Callable[..., Bench], root: int) -> None:
    gang = bench(3)
    gang.join(1, 2)
    for node in (2, 1):
        part = f"from {node}".encode()
        gang.members[node].say("gather", part, seq=0, kind="gather()", entry={"large": node == 2}, root=root)
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "gather()", "entry": {}, "root": root}, b"from 0")
    until(gang.loop, lambda: all(member.got("gathered") for member in gang.members.values()))
    heard = {0: gang.heard, **{node: member.heard for node, member in gang.members.items()}}
    entries = [{"size": 6}, {"large": False, "size": 6}, {"large": True, "size": 6}]
    for node, messages in heard.items():
        got = [(header["entries"], payload) for header, payload in messages if header["op"] == "gathered"]
        assert got == [(entries, b"from 0from 1from 2" if node == root else b"")], node


def test_small_values_that_are_much_together_go_to_node_0_alone(bench: Callable[..., Bench]) -> None:
    """Each fits a message to one node, and all of them none to every node; node 0's task passes them on."""
    gang = bench(3)
    gang.join(1, 2)
    size = inline_bytes(3)
    for number, sizes in enumerate(((size, size, size), (10, size - 30, 20))):
        for node in (1, 2):
            gang.members[node].say("gather", bytes(sizes[node]), seq=number, kind="all_gather()", entry={})
        gang.hub.receive(0, {"op": "gather", "seq": number, "kind": "all_gather()", "entry": {}}, bytes(sizes[0]))
        until(gang.loop, lambda n=number: all(len(m.got("gathered")) > n for m in gang.members.values()))
        for node, heard in ((0, gang.heard), *((node, member.heard) for node, member in gang.members.items())):
            header, payload = [pair for pair in heard if pair[0]["op"] == "gathered"][-1]
            assert [entry["size"] for entry in header["entries"]] == list(sizes)
            assert len(payload) == (sum(sizes) if number or node == 0 else 0)


def test_a_collective_has_one_root(bench: Callable[..., Bench]) -> None:
    gang = bench(2)
    gang.join(1)
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "gather(root=0)", "root": 0}, b"")
    gang.members[1].say("gather", seq=0, kind="gather(root=1)", root=1)
    assert "node 1 (host-1): called gather(root=1) where node 0 called gather(root=0): every node" in gang.report()


def test_different_collectives_at_the_same_place_end_the_gang(bench: Callable[..., Bench]) -> None:
    gang = bench(2)
    gang.join(1)
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"")
    gang.members[1].say("gather", seq=0, kind="all_gather()")
    assert "node 1 (host-1): called all_gather() where node 0 called barrier(): every node must make" in gang.report()


@pytest.mark.parametrize("node", [0, 2])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_node_whose_body_is_done_deserts_a_collective_at_once(
    bench: Callable[..., Bench], node: int, is_first: bool
) -> None:
    """Node 0 leaves last, so nobody may wait until it has left."""
    gang = bench(3)
    gang.join(1, 2)

    def done() -> None:
        if node == 0:
            gang.hub.receive(0, {"op": "done"}, b"")
        else:
            gang.members[node].say("done")

    if is_first:
        done()
    gang.members[1].say("gather", seq=0, kind="barrier()")
    if not is_first:
        done()
    assert f"node {node} (host-{node}): finished its step while node 1 waits for it in barrier()" in gang.report()


def test_a_node_that_has_given_its_part_may_be_done(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"")
    gang.members[1].say("gather", seq=0, kind="barrier()")
    gang.members[1].say("done")
    wait(gang, 0.3)
    assert not gang.got("stop")
    gang.members[2].say("gather", seq=0, kind="barrier()")
    until(gang.loop, lambda: bool(gang.got("gathered")))


def test_a_guard_that_leaves_without_its_step_s_end_has_not_finished_it(bench: Callable[..., Bench]) -> None:
    """Its task has exited by itself; how is in a record that another guard may bring."""
    gang = bench(3)
    gang.join(1, 2)
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"")
    record = Failure(1, "task", "the node's task died in the middle of its work", time.time())
    gang.members[1].say("fail", failure=record.to_json())
    gang.members[1].say("stopped")
    gang.members[1].say("bye")
    until(gang.loop, lambda: bool(gang.got("stop")))
    wait(gang, 0.05)
    how = record.replaced(kind="task-exit", text="the node's task exited with code 3", time=time.time())
    gang.hub.receive(0, {"op": "fail", "failure": how.to_json()}, b"")
    assert gang.report() == "The first failure was on node 1 (host-1): the node's task exited with code 3"
    assert 1 not in gang.hub.roster.left


def test_a_guard_that_leaves_before_its_step_s_end_and_says_nothing_is_lost(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].say("bye")
    connection = gang.members[1].connection
    assert connection is not None
    connection.close()
    told = "node 1 (host-1): the connection from it to node 0 was lost (closed before its work was done): its container"
    assert told in gang.report()


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_node_that_has_left_deserts_a_collective(bench: Callable[..., Bench], leaves_first: bool) -> None:
    gang = bench(3)
    gang.join(1, 2)
    if leaves_first:
        gang.members[2].leaves()
        until(gang.loop, lambda: 2 in gang.hub.roster.left)
    gang.members[1].say("gather", seq=0, kind="barrier()")
    if not leaves_first:
        gang.members[2].leaves()
    assert "node 2 (host-2): finished its step while node 1 waits for it in barrier()" in gang.report()


def test_the_server_for_uploads_is_asked_for_when_it_is_needed(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    assert gang.upload_starts == 0
    gang.members[1].say("uploads")
    until(gang.loop, lambda: bool(gang.members[1].got("uploads")))
    assert gang.members[1].got("uploads") == [{"op": "uploads", "port": 4711}]
    assert not gang.members[2].got("uploads")


def test_a_cancelled_launch_and_the_end_of_control_s_body_are_told_to_all(bench: Callable[..., Bench]) -> None:
    gang = bench(2)
    gang.join(1)
    gang.members[1].say("cancel", key="torchrun-1-0")
    gang.members[1].say("done")
    until(gang.loop, lambda: bool(gang.got("cancel")))
    gang.hub.receive(0, {"op": "done"}, b"")
    until(gang.loop, lambda: bool(gang.members[1].got("control-done")))
    assert gang.members[1].got("cancel") == gang.got("cancel") == [{"op": "cancel", "key": "torchrun-1-0"}]
    assert len(gang.got("control-done")) == 1, "another node's body that is done means nothing"


# -- leaving and failing -----------------------------------------------------------------------------------------------


def test_all_have_left_when_every_other_node_has(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].leaves()
    until(gang.loop, lambda: 1 in gang.hub.roster.left)
    assert not gang.got("all-left")
    gang.members[2].leaves()
    until(gang.loop, lambda: bool(gang.got("all-left")))
    # A connection that ends after its bye is in order.
    gang.members[1].die()
    gang.loop.call_later(0.2, gang.loop.stop)
    gang.loop.run()
    assert not gang.got("stop")
    assert gang.hub.roster.members_left


def test_stopping_begins_at_once_and_the_failure_report_waits_for_all_but_a_second_at_most(
    bench: Callable[..., Bench],
) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].fails("rank 1 exited with code 3")
    until(gang.loop, lambda: bool(gang.members[2].got("stop")))
    started = time.monotonic()
    assert not gang.got("failure-report")
    # Node 2 never says that it has stopped: its body hangs in C, say.
    gang.hub.receive(0, {"op": "stopped"}, b"")
    gang.members[1].say("stopped")
    report = gang.report()
    assert 0.5 * Settings.report_wait < time.monotonic() - started < Settings.report_wait + 5.0
    assert report == "The first failure was on node 1 (host-1): rank 1 exited with code 3"
    (told,) = gang.got("failure-report")
    assert [cause["node"] for cause in told["causes"]] == [1]


def test_the_failure_report_of_a_preemption_waits_for_those_who_save(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].say("save-seconds", seconds=20.0)
    gang.members[2].say("save-seconds", seconds=10.0)
    until(gang.loop, lambda: len(gang.members[1].got("save-seconds")) == 2)
    assert gang.members[1].got("save-seconds")[-1] == {"op": "save-seconds", "seconds": 20.0}, "the largest counts"
    gang.members[1].fails("was told to end", kind=PREEMPTED)
    until(gang.loop, lambda: bool(gang.got("stop")))
    assert gang.got("stop") == [{"op": "stop", "order": EVIDENCE, "preempted": True}]
    gang.members[1].say("stopped")
    gang.hub.receive(0, {"op": "stopped"}, b"")
    end = time.monotonic() + Settings.report_wait + 0.5
    until(gang.loop, lambda: time.monotonic() > end)
    assert not gang.got("failure-report"), "node 2 still saves"
    gang.members[2].say("stopped")
    assert gang.report() == "The first failure was on node 1 (host-1): was told to end"


def test_a_preemption_that_a_rank_was_told_of_first_is_one_for_all_nodes(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].say("save-seconds", seconds=20.0)
    until(gang.loop, lambda: bool(gang.members[1].got("save-seconds")))
    gang.members[2].fails("rank 2 exited with code 3")
    until(gang.loop, lambda: bool(gang.got("stop")))
    gang.members[1].fails("was told to end", kind=PREEMPTED, after=0.01)
    gang.members[2].fails("was told to end as well", kind=PREEMPTED, after=0.1)
    until(gang.loop, lambda: len(gang.got("stop")) > 1)
    assert [stop["preempted"] for stop in gang.got("stop")] == [False, True]
    for node in (0, 2):
        gang.hub.receive(node, {"op": "stopped"}, b"")
    end = time.monotonic() + Settings.report_wait + 0.5
    until(gang.loop, lambda: time.monotonic() > end)
    assert not gang.got("failure-report"), "node 1 still saves"
    assert len(gang.got("stop")) == 2, "all save already"
    gang.members[1].say("stopped")
    assert gang.report() == "The first failure was on node 1 (host-1): was told to end"


def test_the_failure_report_comes_as_soon_as_all_have_stopped_and_receives_them_before(
    bench: Callable[..., Bench],
) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].fails("lost its peer", order=PEER)
    until(gang.loop, lambda: bool(gang.got("stop")))
    assert gang.got("stop") == [{"op": "stop", "order": PEER, "preempted": False}]
    started = time.monotonic()
    gang.members[2].fails("raised ValueError", after=0.01)
    for member in gang.members.values():
        member.say("stopped")
    gang.hub.receive(0, {"op": "stopped"}, b"")
    assert gang.report() == "The first failure was on node 2 (host-2): raised ValueError"
    assert time.monotonic() - started < Settings.report_wait
    # What comes later changes nothing: the report has been sent.
    gang.hub.fail(Failure(0, "exit", "too late", time.time() - 100))
    assert len(gang.got("failure-report")) == len(gang.got("stop")) == 1
    assert Settings.report_wait > REPORT_SETTLE_S


def test_a_record_is_put_on_the_hub_s_clock(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    # Node 1's clock is 50 s slow. What it calls 49 s ago was a second after node 2's failure.
    for node, member in gang.hub.roster.members.items():
        member.offset = 50.0 if node == 1 else 0.0
    gang.members[1].fails("second", after=-49.0)
    gang.members[2].fails("first")
    assert gang.report() == "The first failure was on node 2 (host-2): first"


def test_a_connection_that_ends_is_a_lost_node_unless_somebody_knows_better(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].die()
    until(gang.loop, lambda: bool(gang.got("stop")))
    assert gang.got("stop") == [{"op": "stop", "order": LOST, "preempted": False}]
    gang.members[2].fails("rank 2 was killed by SIGKILL")
    assert "node 2 (host-2): rank 2 was killed by SIGKILL" in gang.report()


def test_a_lost_node_is_told_with_what_the_network_said(bench: Callable[..., Bench]) -> None:
    gang = bench(2)
    gang.join(1)
    gang.members[1].die()
    report = gang.report()
    assert "node 1 (host-1): the connection from it to node 0 " in report
    # Its end was sent, so the network is not cut.
    assert report.endswith(
        "(closed without a word): its container ran out of memory, which can kill all of its processes at once, or its "
        "host, its container or its guard process has died"
    )
    until(gang.loop, lambda: bool(gang.got("all-gone")))
    assert not gang.hub.roster.members_left


def test_who_is_gone_is_the_cause_where_all_others_blame_a_peer(bench: Callable[..., Bench]) -> None:
    gang = bench(4)
    gang.join(1, 2, 3)
    gang.members[1].fails("lost its peer", order=PEER)
    until(gang.loop, lambda: bool(gang.got("stop")))
    gang.members[3].say("stopped")
    gang.members[2].die()
    report = gang.report()
    assert re.search(r"first failure was on node 2 \(host-2\).*the connection from it to node 0 was lost", report), (
        report
    )


def test_who_is_silent_is_the_cause_where_all_others_blame_a_peer(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[2].answers = False
    gang.members[1].fails("lost its peer", order=PEER)
    until(gang.loop, lambda: bool(gang.got("stop")))
    gang.members[1].say("stopped")
    gang.hub.receive(0, {"op": "stopped"}, b"")
    assert re.search(
        r"first failure was on node 2 \(host-2\).*does not answer node 0, while its host still does", gang.report()
    )


def test_a_death_after_the_stop_is_no_cause_where_one_is_known(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1, 2)
    gang.members[1].fails("raised")
    until(gang.loop, lambda: bool(gang.got("stop")))
    gang.members[2].die()
    report = gang.report()
    assert "first failure was on node 1 (host-1): raised" in report and "host-2" not in report


def test_a_node_that_is_lost_before_all_have_joined_ends_the_gang_at_once(bench: Callable[..., Bench]) -> None:
    gang = bench(3)
    gang.join(1)
    gang.members[1].die()
    assert "node 1 (host-1): the connection from it to node 0" in gang.report()


@pytest.mark.parametrize("told_before", [False, True])
def test_a_node_that_comes_while_the_gang_ends_tells_what_the_others_tell(
    bench: Callable[..., Bench], told_before: bool
) -> None:
    gang = bench(3)
    gang.join(1)
    record = Failure(1, "exit", "raised ValueError", time.time(), detail="Traceback: line 7")
    gang.members[1].say("fail", failure=record.to_json())
    until(gang.loop, lambda: bool(gang.got("failure-report" if told_before else "stop")))
    told: list[dict[str, Any]] = []
    failed: list[str] = []
    where = {"address": gang.acceptor.address, "port": gang.acceptor.port, "secret": SECRET.hex(), "host": "127.0.0.1"}
    info = {"hostname": "host-2", "cpus": 1, "gpus": 0}
    link = RemoteHubLink(
        gang.loop,
        2,
        {**where, "identity": GANG.as_list(), "info": info, "timeout": END_S},
        print,
        lambda header, payload: told.append(header),
        lambda text, node: failed.append(text),
        lambda failure: failed.append(failure.text),
    )
    until(gang.loop, lambda: bool(failed) or any(header["op"] == "failure-report" for header in told))
    stop, ending = (header for header in told if header["op"] != "ping")
    assert stop["op"] == "stop" and not failed
    (report,) = {gang.report(), ending["report"]}
    assert report == "The first failure was on node 1 (host-1): raised ValueError\n  | Traceback: line 7"
    over: list[bool] = []
    link.close(lambda: over.append(True))
    until(gang.loop, lambda: bool(over))


# -- who does not answer -----------------------------------------------------------------------------------------------


def test_a_node_that_lost_another_which_answers_is_believed_and_one_that_lost_who_has_left_is_not(
    bench: Callable[..., Bench],
) -> None:
    gang = bench(4)
    gang.join(1, 2, 3)
    gang.members[2].leaves()  # which the hub hears only after what node 1 has to tell
    text = "lost its connection to node 2 (timed out), while both still reach node 0"
    record = Failure(1, "ring", text, time.time(), order=LOST, peer=2)
    gang.hub.receive(1, {"op": "fail", "failure": record.to_json()}, b"")
    wait(gang, 0.3)
    assert not gang.got("stop")
    record = record.replaced(peer=3, text=text.replace("2", "3"))
    gang.members[1].say("fail", failure=record.to_json())
    assert gang.report() == f"The first failure was on node 1 (host-1): {record.text}"


@pytest.mark.parametrize("frozen", [1, 2])
def test_a_guard_that_does_not_run_is_told_while_its_host_answers(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, frozen: int
) -> None:
    monkeypatch.setattr(NOW, Settings({"frozen_node_timeout": 2.0}))
    gang = bench(4)
    gang.join(1, 2, 3)
    for node in range(1, frozen + 1):
        gang.members[node].answers = False
    began = time.monotonic()
    until(gang.loop, lambda: bool(gang.got("stop")))
    assert 1.9 < time.monotonic() - began < 10.0
    for node in (0, *range(1 + frozen, 4)):
        gang.hub.receive(node, {"op": "stopped"}, b"")
    report = gang.report()  # which those that are frozen get, too, when they go on
    assert time.monotonic() - began < 10.0, "nobody waits for who is frozen"
    for node in range(1, 4):
        told = f"node {node} (host-{node}): has not answered node 0 for 2 s, while its host still does: it is frozen"
        assert (told in report) == (node <= frozen), report
    assert gang.hub.roster.members_left == (frozen < 3)


def test_nodes_that_froze_together_are_told_together_though_one_had_spoken_later(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NOW, Settings({"frozen_node_timeout": 2.0}))
    gang = bench(4)
    gang.join(1, 2, 3)
    for node in (1, 2):
        gang.members[node].answers = False
    wait(gang, 0.2)
    gang.members[2].say("gather", seq=0, kind="barrier()")  # less than the 0.33 s later in which each node speaks
    until(gang.loop, lambda: bool(gang.got("stop")))
    for node in (0, 3):
        gang.hub.receive(node, {"op": "stopped"}, b"")
    report = gang.report()
    assert "node 1 (host-1): has not answered" in report and "node 2 (host-2): has not answered" in report, report
    assert "node 3" not in report


@pytest.mark.slow
def test_any_byte_is_an_answer_and_the_hub_s_own_sleep_does_not_count(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NOW, Settings({"frozen_node_timeout": 4.0}))
    gang = bench(2)
    gang.join(1)
    gang.members[1].answers = False
    until(gang.loop, lambda: bool(gang.members[1].got("ping")))
    gang.members[1].say("gather", seq=0, kind="barrier()")
    wait(gang, 1.5)
    time.sleep(4.0)  # the hub's process is stopped, or its machine
    wait(gang, 0.3)
    gang.members[1].answers = True
    wait(gang, 2.0)
    assert not gang.got("stop")


# -- going on without a node -------------------------------------------------------------------------------------------


def lost_line(node: int, text: str) -> str:
    return f"node {node} (host-{node}) was lost: {text}. The step goes on without it."


def tolerant(bench: Callable[..., Bench], nodes: int = 3) -> Bench:
    gang = bench(nodes)
    gang.join(*range(1, nodes))
    gang.hub.receive(0, {"op": "tolerate"}, b"")
    until(gang.loop, lambda: all(member.got("tolerate") for member in gang.members.values()))
    return gang


def wait(gang: Bench, seconds: float) -> None:
    gang.loop.call_later(seconds, gang.loop.stop)
    gang.loop.run()


def test_a_node_that_fails_is_stopped_and_told_and_nobody_else_is(bench: Callable[..., Bench]) -> None:
    gang = tolerant(bench)
    gang.members[2].fails("rank 2 raised ValueError.\nsecond line")
    until(gang.loop, lambda: bool(gang.members[2].got("stop")))
    assert gang.got("lost") == [{"op": "lost", "node": 2, "save_s": 0.0}]
    gang.members[2].say("stopped")
    until(gang.loop, lambda: bool(gang.members[2].got("failure-report")))
    assert gang.said == [lost_line(2, "rank 2 raised ValueError")], "one line"
    (told,) = gang.members[2].got("failure-report")
    assert told["report"] == "The first failure was on node 2 (host-2): rank 2 raised ValueError.\nsecond line"
    assert told["causes"] == [{"node": 2}]
    # What it says afterwards means nothing: it has stored nothing.
    gang.members[2].leaves()
    gang.members[2].die()
    wait(gang, 0.2)
    assert 2 not in gang.hub.roster.left
    for who in (gang, gang.members[1]):
        assert not who.got("stop") and not who.got("failure-report") and not who.got("all-left")


def test_the_guard_that_knows_most_is_believed(bench: Callable[..., Bench]) -> None:
    gang = tolerant(bench)
    record = Failure(2, "task", "the node's task died in the middle of its work", time.time())
    gang.members[2].say("fail", failure=record.to_json())
    gang.members[2].say("stopped")
    until(gang.loop, lambda: bool(gang.got("lost")))
    killed = Failure(2, "task-signal", "the node's task was killed by SIGKILL", time.time())
    gang.hub.receive(0, {"op": "fail", "failure": killed.to_json()}, b"")
    until(gang.loop, lambda: bool(gang.said))
    assert gang.said == [lost_line(2, "the node's task was killed by SIGKILL")]
    assert not gang.got("stop")


def test_all_have_left_when_the_rest_is_lost_and_told(bench: Callable[..., Bench]) -> None:
    gang = tolerant(bench, 4)
    gang.members[1].leaves()
    until(gang.loop, lambda: 1 in gang.hub.roster.left)
    gang.members[2].die()
    gang.members[3].fails("rank 3 raised")  # and never says that it has stopped
    started = time.monotonic()
    until(gang.loop, lambda: bool(gang.got("all-left")))
    assert time.monotonic() - started < Settings.report_wait + 5.0
    assert sorted(header["node"] for header in gang.got("lost")) == [2, 3]
    assert len(gang.said) == 2 and gang.said[-1] == lost_line(3, "rank 3 raised")
    assert gang.said[0].startswith("node 2 (host-2) was lost: the connection from it to node 0 was lost (")


def test_who_has_left_is_not_lost(bench: Callable[..., Bench]) -> None:
    gang = tolerant(bench)
    gang.members[2].leaves()
    until(gang.loop, lambda: 2 in gang.hub.roster.left)
    gang.hub.receive(0, {"op": "fail", "failure": Failure(2, "task-exit", "ended", time.time()).to_json()}, b"")
    gang.members[2].die()
    wait(gang, 0.3)
    assert not gang.got("lost") and not gang.got("stop") and not gang.said


def test_a_node_whose_neighbour_lost_it_is_lost_where_it_does_not_answer(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NOW, Settings({"frozen_node_timeout": 2.0}))
    gang = tolerant(bench, 4)
    gang.members[2].answers = False
    record = Failure(1, "ring", "lost its connection to node 2 (timed out)", time.time(), order=LOST, peer=2)
    gang.members[1].say("fail", failure=record.to_json())
    until(gang.loop, lambda: bool(gang.got("lost")))
    assert gang.members[2].got("ping") and gang.got("lost") == [{"op": "lost", "node": 2, "save_s": 0.0}]
    until(gang.loop, lambda: bool(gang.said))
    assert gang.said[0].startswith("node 2 (host-2) was lost: has not answered node 0 for 2 s, while its host still")
    # The other neighbour's word adds nothing.
    gang.members[3].say("fail", failure=record.replaced(node=3, reporting_node=3).to_json())
    wait(gang, 0.2)
    assert len(gang.said) == 1 and not gang.got("stop")


def test_two_nodes_that_lost_each_other_but_answer_are_named_once(bench: Callable[..., Bench]) -> None:
    gang = tolerant(bench)
    for node, peer in ((1, 2), (2, 1)):
        record = Failure(node, "ring", f"lost its connection to node {peer}.", time.time(), order=LOST, peer=peer)
        gang.members[node].say("fail", failure=record.to_json())
    until(gang.loop, lambda: bool(gang.said))
    wait(gang, 0.3)
    assert gang.said in [
        [f"node {node} (host-{node}) lost its connection to node {3 - node}. The step goes on."] for node in (1, 2)
    ]
    assert not gang.got("lost") and not gang.got("stop")


def test_a_failure_of_control_ends_the_rest(bench: Callable[..., Bench]) -> None:
    gang = tolerant(bench)
    gang.members[2].fails("rank 2 raised")
    until(gang.loop, lambda: bool(gang.got("lost")))
    gang.hub.receive(0, {"op": "fail", "failure": Failure(0, "exit", "the head raised", time.time()).to_json()}, b"")
    until(gang.loop, lambda: bool(gang.members[1].got("stop")))
    gang.members[1].fails("was torn away", after=0.01)
    gang.members[1].say("stopped")
    gang.hub.receive(0, {"op": "stopped"}, b"")
    until(gang.loop, lambda: bool(gang.got("failure-report") and gang.members[1].got("failure-report")))
    assert gang.got("failure-report")[0]["report"] == "The first failure was on node 0 (host-0): the head raised"
    assert gang.said == [lost_line(2, "rank 2 raised")], "what was lost before is told before"
    assert not gang.members[1].got("lost")


@pytest.mark.parametrize("when", ["asked by another node", "asked when the gang ends"])
def test_only_control_may_ask_for_it_and_in_time(bench: Callable[..., Bench], when: str) -> None:
    gang = bench(3)
    gang.join(1, 2)
    if when == "asked by another node":
        gang.members[1].say("tolerate")
        gang.members[1].fails("rank 1 raised")
    else:
        gang.hub.fail(Failure(1, "exit", "rank 1 raised", time.time()))
        gang.hub.receive(0, {"op": "tolerate"}, b"")
    assert gang.report() == "The first failure was on node 1 (host-1): rank 1 raised"
    assert not gang.got("tolerate") and not gang.said


def of_nodes(bench: Callable[..., Bench], nodes: int = 3) -> Bench:
    """A gang that goes on without nodes that it loses, and whose bodies work together."""
    gang = bench(nodes)
    gang.join(*range(1, nodes))
    gang.hub.receive(0, {"op": "tolerate", "only_nodes": True}, b"")
    until(gang.loop, lambda: all(member.got("tolerate") for member in gang.members.values()))
    return gang


def entries_of(who: Bench | Member) -> list[list[dict[str, Any]]]:
    return [header["entries"] for header in who.got("gathered")]


LOST_ENTRY = {"lost": True, "size": 0}


@pytest.mark.parametrize("when", ["after all others", "before", "in the midst"])
def test_a_collective_completes_without_a_lost_node(bench: Callable[..., Bench], when: str) -> None:
    gang = of_nodes(bench)
    if when == "before":
        gang.members[2].die()
        until(gang.loop, lambda: bool(gang.got("lost")))
    gang.members[1].say("gather", b"one", seq=0, kind="all_gather()", entry={})
    if when == "in the midst":
        gang.members[2].die()
        until(gang.loop, lambda: bool(gang.got("lost")))
        assert not gang.got("gathered"), "node 0 has not come yet"
    gang.hub.receive(0, {"op": "gather", "seq": 0, "kind": "all_gather()", "entry": {}}, b"zero")
    if when == "after all others":
        assert not gang.got("gathered")
        gang.members[2].die()
    until(gang.loop, lambda: bool(gang.members[1].got("gathered")))
    expected = [{"size": 4}, {"size": 3}, LOST_ENTRY]
    assert entries_of(gang) == entries_of(gang.members[1]) == [expected]
    assert [payload for header, payload in gang.heard if header["op"] == "gathered"] == [b"zeroone"]
    # The loss is told to node 0 before what completes by it.
    assert [header["op"] for header, _ in gang.heard if header["op"] in ("lost", "gathered")] == ["lost", "gathered"]


def test_what_a_node_has_sent_before_it_was_lost_counts(bench: Callable[..., Bench]) -> None:
    gang = of_nodes(bench)
    gang.members[2].say("gather", b"two", seq=0, kind="all_gather()", entry={"large": 7})
    gang.members[2].say("gather", b"next", seq=1, kind="barrier()", entry={})
    gang.members[2].die()
    until(gang.loop, lambda: bool(gang.got("lost")))
    for number, kind in enumerate(("all_gather()", "barrier()", "barrier()")):
        gang.members[1].say("gather", seq=number, kind=kind, entry={})
        gang.hub.receive(0, {"op": "gather", "seq": number, "kind": kind, "entry": {}}, b"")
    until(gang.loop, lambda: len(gang.members[1].got("gathered")) == 3)
    nothing = {"size": 0}
    assert entries_of(gang) == entries_of(gang.members[1])
    assert entries_of(gang) == [
        [nothing, nothing, {"large": 7, "size": 3}],
        [nothing, nothing, {"size": 4}],
        [nothing, nothing, LOST_ENTRY],
    ]


def test_a_lost_node_whose_body_was_done_deserts_nobody(bench: Callable[..., Bench]) -> None:
    gang = of_nodes(bench)
    gang.members[2].say("done")
    until(gang.loop, lambda: 2 in gang.hub.roster.done)
    gang.members[2].die()
    until(gang.loop, lambda: bool(gang.got("lost")))
    for node in (0, 1):
        gang.hub.receive(node, {"op": "gather", "seq": 0, "kind": "barrier()"}, b"")
    assert entries_of(gang) == [[{"size": 0}, {"size": 0}, LOST_ENTRY]]
    assert not gang.got("stop")


@pytest.mark.parametrize("kind", ["exit", "exception", "mismatch"])
def test_where_bodies_work_together_only_a_whole_node_may_be_lost(bench: Callable[..., Bench], kind: str) -> None:
    gang = of_nodes(bench)
    gang.members[2].fails("rank 2 raised", kind=kind)
    assert gang.report() == "The first failure was on node 2 (host-2): rank 2 raised"
    assert not gang.got("lost")


def test_node_0_is_told_who_is_lost_and_then_why(bench: Callable[..., Bench]) -> None:
    gang = of_nodes(bench)
    gang.members[2].fails("the node's task died in the middle of its work", kind="task")
    until(gang.loop, lambda: bool(gang.got("lost")))
    killed = Failure(2, "task-signal", "the node's task was killed by SIGKILL", time.time())
    gang.hub.receive(0, {"op": "fail", "failure": killed.to_json()}, b"")
    until(gang.loop, lambda: bool(gang.got("told-of-lost")))
    assert gang.got("lost") == [{"op": "lost", "node": 2, "save_s": 0.0}]
    (told,) = gang.got("told-of-lost")
    assert told["failure"]["text"] == "the node's task was killed by SIGKILL"
    assert gang.said == ["node 2 (host-2) was lost: the node's task was killed by SIGKILL."]


def test_node_0_ends_the_gang_by_a_loss_that_is_one_too_many(bench: Callable[..., Bench]) -> None:
    gang = of_nodes(bench)
    gang.members[2].fails("the node's task was killed by SIGKILL", kind="task-signal")
    until(gang.loop, lambda: bool(gang.got("told-of-lost")))
    failure = gang.got("told-of-lost")[0]["failure"]
    gang.hub.receive(0, {"op": "tolerate", "end": True}, b"")
    gang.hub.receive(0, {"op": "fail", "failure": failure}, b"")
    gang.hub.receive(0, {"op": "stopped"}, b"")
    gang.members[1].say("stopped")
    until(gang.loop, lambda: bool(gang.got("failure-report")))
    assert gang.got("failure-report")[0]["report"].startswith(
        "The first failure was on node 2 (host-2): the node's task was killed by SIGKILL"
    )
    until(gang.loop, lambda: bool(gang.members[1].got("failure-report")))


def test_a_node_that_is_preempted_is_explained_when_it_has_saved(bench: Callable[..., Bench]) -> None:
    gang = of_nodes(bench)
    gang.members[2].say("save-seconds", seconds=20.0)
    until(gang.loop, lambda: bool(gang.got("save-seconds")))
    gang.members[2].fails("was told to end (SIGTERM)", kind=PREEMPTED)
    until(gang.loop, lambda: bool(gang.members[2].got("stop")))
    assert gang.got("lost") == [{"op": "lost", "node": 2, "save_s": 20.0}]
    wait(gang, Settings.report_wait + 0.5)
    assert not gang.got("told-of-lost"), "it saves"
    gang.members[2].say("stopped")
    until(gang.loop, lambda: bool(gang.got("told-of-lost")))


def test_only_node_0_gives_a_launch_time_to_end(bench: Callable[..., Bench]) -> None:
    gang = bench(2)
    gang.join(1)
    gang.members[1].say("cancel", key="run-1-0", grace=99.0)
    gang.hub.receive(0, {"op": "cancel", "key": "run-1-1", "grace": 5.0}, b"")
    until(gang.loop, lambda: len(gang.members[1].got("cancel")) == 2)
    given = {header["key"]: header.get("grace") for header in gang.members[1].got("cancel")}
    assert given == {"run-1-0": None, "run-1-1": 5.0}


def test_a_stall_ends_a_launch_that_node_0_knows(bench: Callable[..., Bench]) -> None:
    gang = of_nodes(bench)
    gang.hub._stalls(Failure(2, "stall", "has made no progress", time.time()))
    assert [header["failure"]["node"] for header in gang.got("stalled")] == [2]
    assert not gang.members[2].got("stalled")
