"""What nobody sensible sends: to a hub before the proof and, by a member that has gone wrong, after it."""

from __future__ import annotations

import fcntl
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.guard.hostile import OPERATIONS, Grammar, bomb
from test_hub import GANG, Bench, Member, until

from metaflow_extensions.gang.core.guard.channel.connection import CHANNEL, PROTOCOL
from metaflow_extensions.gang.core.guard.coordinator import hub as hub_module
from metaflow_extensions.gang.core.guard.coordinator.messages import _FIELDS, MOST
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.loop.framing import Nonsense
from metaflow_extensions.gang.core.guard.loop.untrusted import MAX_DEPTH, MAX_DIGITS, parse
from metaflow_extensions.gang.core.guard.tracebacks import DETAIL_LIMIT

TEXTS = st.text('ab01e"\\[]{}é\n\ud800', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)

TRACES: dict[str, Any] = {"where": "", "left_out": "", "files": []}

FAILURE = {"node": 1, "kind": "exit", "text": "x", "time": 1.0}

quickly = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def hub() -> Iterator[Bench]:
    """One that waits for node 1, and gets everything else."""
    loop = Loop()
    bench = Bench(loop, 2, timeout=600)
    bench.hub.join(0, {"hostname": "host-0", "address": "127.0.0.1"})
    yield bench
    bench.close()
    loop.close()


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def digits(value: object) -> int:
    if isinstance(value, (dict, list)):
        return max(map(digits, value.values() if isinstance(value, dict) else value), default=0)
    return len(str(value)) if type(value) is int else 0


# -- JSON within bounds ------------------------------------------------------------------------------------------------


@quickly
@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.booleans())
@example({"a": '"[' * 40}, True)
@example({"a": '\\"[[' * 40, "b": "\\", "c": [[]]}, False)
@example({"a": ["", '"', "[{", "", "}]", ""] * 9}, True)
@example({"a": 10**MAX_DIGITS, "b": "1e5"}, True)
def test_what_is_within_bounds_is_read_as_json_reads_it(value: dict[str, Any], short: bool) -> None:
    text = json.dumps(value, ensure_ascii=short).encode(errors="surrogatepass")
    try:
        expected: Any = json.loads(text.decode())
    except ValueError:
        expected = None  # a surrogate alone is no UTF-8
    try:
        read = parse(text)
    except Nonsense:
        assert expected is None or depth(value) > MAX_DEPTH or digits(value) > MAX_DIGITS
    else:
        assert read == expected and depth(value) <= 2 * MAX_DEPTH


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' + b"[" * 985 + b"]" * 985 + b"}",
        b'{"a":' * 100_000,
        b'{"a":"' + b"\\" * 99_999,
        b'{"a":' + b"9" * 100_000 + b"}",
        b'{"a":1e999}',
        b'{"a":1E+999}',
        b'{"a":-1.5e400}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\xff"}',
        b"[]",
        b"",
    ],
)
def test_what_is_not_is_refused_at_once(text: bytes) -> None:
    begun = time.monotonic()
    with pytest.raises(Nonsense):
        parse(text)
    assert time.monotonic() - begun < 10


# -- before the proof --------------------------------------------------------------------------------------------------


def send(bench: Bench, data: bytes) -> None:
    """On a connection of its own; until the hub has read all of it, or has closed."""
    sock = socket.create_connection((bench.acceptor.address, bench.acceptor.port), 20)
    sock.setblocking(False)
    over = time.monotonic() + 20
    closed = False
    while not closed and time.monotonic() < over:
        bench.loop.call_later(0, bench.loop.stop)
        bench.loop.run()
        try:
            if data:
                data = data[sock.send(data) :]
            elif not unread(sock):
                sock.shutdown(socket.SHUT_WR)
                break
            closed = not sock.recv(65536)
        except BlockingIOError:
            pass
        except OSError:
            closed = True
    until(bench.loop, lambda: bench.acceptor.pending == 0)
    sock.close()


def unread(sock: socket.socket) -> int:
    """Bytes that the other end has not acknowledged."""
    return int(struct.unpack("i", fcntl.ioctl(sock, 0x5411, bytes(4)))[0])


@quickly
@given(st.randoms(use_true_random=False))
def test_a_hub_survives_whatever_comes_before_the_proof(hub: Bench, random: Random) -> None:
    send(hub, b"".join(Grammar(random, GANG.as_list(), PROTOCOL).connection()))
    assert not hub.got("stop") and set(hub.hub.roster.infos) == {0}


def test_and_then_a_node_joins(hub: Bench) -> None:
    hub.join(1)
    until(hub.loop, lambda: bool(hub.members[1].got("roster")))


# -- a member that has gone wrong --------------------------------------------------------------------------------------


@pytest.fixture
def gang() -> Iterator[Callable[[], Bench]]:
    loops: list[Bench] = []

    def make() -> Bench:
        bench = Bench(Loop(), 3)
        loops.append(bench)
        bench.join(1, 2)
        return bench

    yield make
    for bench in loops:
        bench.close()
        bench.loop.close()


def nonsense(bench: Bench, member: Member) -> str:
    """The report that all nodes get, the one that has gone wrong included: it has no connection any more."""
    until(bench.loop, lambda: bool(bench.got("failure-report") and member.closed))
    (told,) = bench.got("failure-report")
    other = next(one for one in bench.members.values() if one is not member)
    until(bench.loop, lambda: bool(other.got("failure-report")))
    assert [one["report"] for one in other.got("failure-report")] == [told["report"]]
    assert told["causes"] == [{"node": member.node}]
    assert member.got("stop") and "sent what this gang cannot understand" in member.got("failure-report")[0]["report"]
    assert not other.closed
    return str(told["report"])


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"op": "launch"}, "the operation 'launch'"),
        ({"op": ["gather"]}, "the operation of type list"),
        ({}, "the operation None"),
        ({"op": "gather", "seq": -1, "kind": "x"}, "'seq' is -1"),
        ({"op": "gather", "seq": 0, "kind": "x", "root": 9999}, "'root' is 9999"),
        ({"op": "gather", "seq": 0, "kind": "x", "root": []}, "'root' is"),
        ({"op": "gather", "seq": 0, "kind": "x", "entry": {"a": [[]]}}, "'a' in 'entry' is of type list"),
        ({"op": "fail", "failure": {"node": 7}}, "'node' is 7, and not an integer from 0 to 2"),
        ({"op": "fail", "failure": 5}, "'failure' is 5"),
        ({"op": "ranks-ended", "ranks": [[1]]}, "'ranks' has of type list"),
        ({"op": "save-seconds", "seconds": 1e9}, "'seconds' is 1000000000.0"),
        ({"op": "traces", "found": []}, "'found' is of type list"),
        ({"op": "traces", "found": {**TRACES, "files": [{}] * 33}}, "'files' is of type list"),
        ({"op": "traces", "found": {**TRACES, "files": [{"name": "x" * 201}]}}, "'name' is 'xxx"),
        ({CHANNEL: "packed"}, "A compressed message has more than"),
        ({CHANNEL: "welcome"}, "'welcome', which the channel does not know"),
        ({"op": "done", "deep": json.loads("[" * 40 + "]" * 40)}, "nested deeper than"),
        ({"op": "fail", "failure": {**FAILURE, "detail": "x" * DETAIL_LIMIT * 2}}, "'detail' is 'xxx"),
    ],
)
def test_a_member_that_misbehaves_ends_its_own_node(
    gang: Callable[[], Bench], message: dict[str, Any], why: str
) -> None:
    bench = gang()
    member = bench.members[1]
    assert member.connection is not None
    member.connection.send_own(message, bomb() if message.get(CHANNEL) == "packed" else b"")
    report = nonsense(bench, member)
    assert report.startswith("The first failure was on node 1 (host-1): sent what this gang cannot understand: "), (
        report
    )
    assert why in report


@pytest.mark.parametrize("op", sorted(MOST))
def test_a_member_that_does_not_stop_talking_ends_its_own_node(
    gang: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setitem(MOST, op, 50)
    bench = gang()
    member = bench.members[1]
    bench.hub.failures.add = lambda failure: None  # type: ignore[method-assign]  # they are many, and none is the point
    fields: dict[str, Any] = {
        "cancel": {"key": "k"},
        "save-seconds": {"seconds": 1.0},
        "want-stacks": {"number": 1},
    }.get(op, {})
    if op == "phases":
        fields = {"since": 1.0, "times": {}}
    if op == "traces":
        fields = {"found": TRACES}
    if op in ("fail", "ranks-failed"):
        fields = {"failure": FAILURE}
    for _ in range(MOST[op] + 1):
        member.say(op, **fields)
    until(bench.loop, lambda: bool(member.got("stop")) and bool(member.closed))
    assert f"the operation '{op}' more than {MOST[op]} times" in member.got("failure-report")[0]["report"]


@settings(quickly, max_examples=60)
@given(st.randoms(use_true_random=False))
def test_a_hub_survives_whatever_a_member_sends(random: Random) -> None:
    bench = Bench(Loop(), 3, timeout=600)
    bench.join(1, 2)
    member, other = bench.members[1], bench.members[2]
    assert member.connection is not None
    grammar = Grammar(random, GANG.as_list(), PROTOCOL)
    for _ in range(random.randint(1, 6)):
        member.connection.send_own(*grammar.message())
    other.say("gather", b"x", seq=0, kind="barrier()")
    until(bench.loop, lambda: bool(member.closed or member.connection.closed) or bench.hub._collectives._open != {})
    assert not other.closed and 2 in bench.hub.roster.members, "whoever else is there stays"
    for report in bench.got("failure-report"):
        assert "fault of metaflow-gang" not in report["report"], report["report"]
    bench.close()
    bench.loop.close()


# -- the list of what a node may send ----------------------------------------------------------------------------------


def test_every_operation_that_the_hub_acts_on_is_checked() -> None:
    source = Path(str(hub_module.__file__)).read_text()
    receive = source[source.index("def receive(") :].partition("\n    def _")[0]
    acted_on = set(re.findall(r'op == "([a-z-]+)"', receive))
    assert {"gather", "fail", "bye", "done"} <= acted_on
    assert acted_on <= set(_FIELDS), "a new operation needs its line in messages._FIELDS"


def test_every_operation_that_a_guard_sends_to_the_hub_is_checked() -> None:
    """By the sources: whatever any ``send`` of the guard's modules passes on."""
    sent = set()
    of_the_hub = ("hub.py", "roster.py", "failures.py", "lost_nodes.py")  # what it sends to the nodes
    for path in Path(str(hub_module.__file__)).parents[1].rglob("*.py"):
        if path.name in of_the_hub:
            continue
        sent.update(re.findall(r'\.send\(\s*\{[^}]*"op": "([a-z-]+)"', path.read_text()))
    assert {"gather", "fail", "bye", "done", "stopped"} <= sent, sent
    assert sent <= set(_FIELDS), "a new operation needs its line in messages._FIELDS"


def test_the_grammar_has_every_operation() -> None:
    assert set(OPERATIONS) == set(_FIELDS)
