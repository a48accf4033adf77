"""The channel between guards: who gets in, who does not, and what happens to bytes on the way. Real TCP throughout."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from support.hosts import Hosts
from support.paths import ROOT

from metaflow_extensions.gang.core.guard.channel.accept import Acceptor
from metaflow_extensions.gang.core.guard.channel.connect import ConnectError, Dial, connect
from metaflow_extensions.gang.core.guard.channel.connection import (
    PRE_AUTH_BYTES,
    PROTOCOL,
    Connection,
    Identity,
    send_to_all,
)
from metaflow_extensions.gang.core.guard.channel.proof import Seal, Transcript
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.loop.framing import MAX_FRAME, Decoder, WireError, encode

SECRET = os.urandom(32)
GANG = Identity("TrainFlow", "17", "train", "4", 1)
MAC = 32


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def until(loop: Loop, done: Callable[[], bool], seconds: float = 30.0) -> None:
    """Run the loop until ``done``; fail when it takes longer than any machine should."""
    end = time.monotonic() + seconds

    def look() -> None:
        if done():
            loop.stop()
        elif time.monotonic() > end:
            raise AssertionError(f"not done after {seconds} s")
        else:
            loop.call_later(0.005, look)

    look()
    loop.run()


def settle(loop: Loop, seconds: float = 0.1) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run()


@dataclass
class Side:
    """All that one side was told."""

    connections: list[Connection] = field(default_factory=list)
    frames: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    on_connection: Callable[[Connection], None] | None = None

    def take(self, connection: Connection) -> None:
        self.connections.append(connection)
        connection.on_frame = lambda conn, header, payload: self.frames.append((header, payload))
        connection.on_close = lambda conn, reason: self.closed.append(reason)
        if self.on_connection is not None:
            self.on_connection(connection)

    def fail(self, error: ConnectError) -> None:
        self.errors.append(str(error))

    @property
    def only(self) -> Connection:
        assert len(self.connections) == 1
        return self.connections[0]


class Bench:
    """An acceptor, and members that come to it, in one loop."""

    def __init__(self, loop: Loop, host: str = "127.0.0.1", identity: Identity = GANG, **options: Any) -> None:
        self.loop = loop
        self.hub = Side()
        self.acceptor = Acceptor(loop, host, SECRET, identity, self.hub.take, **options)

    def dial(self, side: Side, timeout: float = 20.0, **changes: Any) -> Dial:
        arguments: dict[str, Any] = {
            "address": self.acceptor.address,
            "port": self.acceptor.port,
            "secret": SECRET,
            "identity": GANG,
            "role": "member",
            "node": 2,
            "info": {},
            **changes,
        }
        return connect(self.loop, **arguments, on_connection=side.take, on_error=side.fail, timeout=timeout)

    def join(self, **changes: Any) -> Side:
        """A member that is in."""
        side = Side()
        before = len(self.hub.connections)
        self.dial(side, **changes)
        until(self.loop, lambda: bool(side.connections or side.errors) and len(self.hub.connections) > before)
        assert not side.errors
        return side

    def refused(self, **changes: Any) -> str:
        """What a member is told that does not get in."""
        side = Side()
        self.dial(side, **changes)
        until(self.loop, lambda: bool(side.connections or side.errors))
        settle(self.loop, 0.02)
        assert not side.connections and not self.hub.connections
        return side.errors[0]

    def raw(self) -> socket.socket:
        """A socket that speaks for itself."""
        sock = socket.create_connection((self.acceptor.address, self.acceptor.port), 10)
        sock.setblocking(False)
        return sock

    def read_to_end(self, sock: socket.socket, seconds: float = 30.0) -> bytes:
        """What the acceptor says to a raw socket before it closes."""
        got = bytearray()

        def ended() -> bool:
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            got.extend(data)
            return not data

        until(self.loop, ended, seconds)
        sock.close()
        return bytes(got)

    def close(self) -> None:
        self.acceptor.close()
        for connection in self.hub.connections:
            connection.abort()


@pytest.fixture
def bench(loop: Loop) -> Iterator[Bench]:
    bench = Bench(loop)
    yield bench
    bench.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_member_joins_and_both_talk(loop: Loop, host: str) -> None:
    bench = Bench(loop, host, node=7)
    member = bench.join(info={"cpus": 8, "name": "größe", "10": 1, "9": [1.5, None]}, node=2)
    hub, mine = bench.hub.only, member.only
    assert (hub.role, hub.node, hub.address) == ("member", 2, host)
    assert (mine.role, mine.node, mine.address) == ("member", 7, host)
    assert hub.info == mine.info == {"cpus": 8, "name": "größe", "10": 1, "9": [1.5, None]}
    for index in range(100):
        mine.send({"to hub": index}, bytes([index]) * index)
        hub.send({"to member": index}, bytes([index]) * index)
    until(loop, lambda: len(bench.hub.frames) == len(member.frames) == 100)
    assert bench.hub.frames == [({"to hub": index}, bytes([index]) * index) for index in range(100)]
    assert member.frames == [({"to member": index}, bytes([index]) * index) for index in range(100)]
    mine.abort()
    bench.close()


def test_frames_right_behind_the_handshake_are_not_lost(bench: Bench) -> None:
    def talk(connection: Connection) -> None:
        for n in range(50):
            connection.send({"n": n})

    bench.hub.on_connection = talk
    member = Side(on_connection=talk)
    bench.dial(member)
    until(bench.loop, lambda: len(member.frames) == len(bench.hub.frames) == 50)
    member.only.abort()


def test_a_host_name_is_resolved(bench: Bench) -> None:
    member = bench.join(address="localhost")
    assert member.only.address == "127.0.0.1"
    member.only.abort()


def test_the_ring_uses_the_same_port(bench: Bench) -> None:
    bench.join(role="ring", node=5).only.abort()
    assert (bench.hub.only.role, bench.hub.only.node) == ("ring", 5)


def test_clocks_are_compared(bench: Bench) -> None:
    member = bench.join()
    hub, mine = bench.hub.only, member.only
    assert (hub.offset, hub.uncertainty) == (mine.offset, mine.uncertainty)
    assert 0 <= mine.uncertainty < 5
    assert abs(mine.offset) <= mine.uncertainty + 0.001  # both read the same clock here
    mine.abort()


def test_the_largest_frame_passes_and_a_larger_one_is_refused_here(bench: Bench) -> None:
    member = bench.join()
    payload = os.urandom(MAX_FRAME - 2)
    member.only.send({}, payload)
    bench.hub.only.send({}, payload)
    with pytest.raises(WireError, match="too large"):
        member.only.send({}, payload + b"x")
    member.only.send({"after": 1})
    until(bench.loop, lambda: len(bench.hub.frames) == 2 and len(member.frames) == 1)
    assert bench.hub.frames[0][1] == member.frames[0][1] == payload
    assert bench.hub.frames[1] == ({"after": 1}, b"")
    member.only.abort()


def test_the_channels_own_header_key_is_not_for_others(bench: Bench) -> None:
    member = bench.join()
    with pytest.raises(ValueError, match="channel's own"):
        member.only.send({"~": "bye"})
    with pytest.raises(ValueError, match="channel's own"):
        send_to_all([member.only], {"~": "bye"})
    member.only.abort()


# Who does not get in


def test_another_attempt_is_refused(bench: Bench) -> None:
    told = bench.refused(identity=Identity("TrainFlow", "17", "train", "4", 0))
    assert told == (
        f"Node 2 cannot connect to 127.0.0.1 port {bench.acceptor.port}: "
        "refused by the gang: this gang runs attempt 1; node 2 belongs to attempt 0."
    )


@pytest.mark.parametrize(
    "other",
    [
        Identity("OtherFlow", "17", "train", "4", 1),
        Identity("TrainFlow", "18", "train", "4", 1),
        Identity("TrainFlow", "17", "evaluate", "4", 1),
        Identity("TrainFlow", "17", "train", "5", 1),
    ],
)
def test_another_gang_is_refused(bench: Bench, other: Identity) -> None:
    told = bench.refused(identity=other)
    assert "refused by the gang: node 2 belongs to another gang than the one that listens here" in told
    # Nobody who has not proved the secret is told whose gang it is.
    assert "TrainFlow" not in told


def test_another_secret_is_noticed_by_the_member(bench: Bench) -> None:
    assert "does not know this gang's secret" in bench.refused(secret=os.urandom(32))


def test_an_authenticated_member_may_be_refused(loop: Loop) -> None:
    asked = []

    def check(role: str, node: int) -> str:
        asked.append((role, node))
        return f"node {node} has joined before"

    bench = Bench(loop, check=check)
    assert "refused by the gang: node 2 has joined before." in bench.refused()
    assert "does not know" in bench.refused(secret=os.urandom(32))
    assert asked == [("member", 2)]
    bench.close()


def hello(**changes: Any) -> dict[str, Any]:
    return {
        "version": PROTOCOL,
        "identity": GANG.as_list(),
        "role": "member",
        "node": 2,
        "nonce": "ab" * 32,
        "info": {},
        **changes,
    }


def decoded(data: bytes) -> list[dict[str, Any]]:
    return [header for header, _ in Decoder().feed(data)]


def test_another_version_is_refused_with_a_sentence(bench: Bench) -> None:
    sock = bench.raw()
    sock.send(encode(hello(version=99)))
    (answer,) = decoded(bench.read_to_end(sock))
    assert answer["why"] == (
        f"this gang speaks protocol {PROTOCOL}, node 2 speaks 99; install the same version of metaflow-gang on both"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "hub"},
        {"role": ["member"]},
        {"node": -1},
        {"node": True},
        {"node": "2"},
        {"nonce": "short"},
        {"nonce": None},
        {"info": [1]},
    ],
)
def test_a_malformed_hello_gets_no_answer(bench: Bench, changes: dict[str, Any]) -> None:
    sock = bench.raw()
    sock.send(encode(hello(**changes)))
    assert bench.read_to_end(sock) == b""
    assert bench.acceptor.pending == 0


@pytest.mark.parametrize(
    "proof",
    [
        {"clock": 1.0, "proof": "00" * 32},
        {"clock": 1.0, "proof": "\udcff"},
        {"clock": 1.0, "proof": None},
        {"clock": "now", "proof": "00" * 32},
        {},
    ],
)
def test_a_wrong_proof_gets_nobody_in(bench: Bench, proof: dict[str, Any]) -> None:
    sock = bench.raw()
    sock.send(encode(hello()))
    sock.send(encode(proof))
    answers = decoded(bench.read_to_end(sock))
    assert answers[0].keys() == {"nonce", "node", "proof"}
    assert [answer["why"] for answer in answers[1:]] in ([], ["the proof of the gang's secret is wrong"])
    assert not bench.hub.connections


def test_the_acceptors_own_proof_sent_back_is_no_proof(bench: Bench) -> None:
    sock = bench.raw()
    sock.send(encode(hello()))
    got = bytearray()

    def answered() -> bool:
        try:
            got.extend(sock.recv(4096))
        except BlockingIOError:
            return False
        return True

    until(bench.loop, answered)
    (challenge,) = decoded(bytes(got))
    sock.send(encode({"clock": 0.0, "proof": challenge["proof"]}))
    (answer,) = decoded(bench.read_to_end(sock))
    assert "proof of the gang's secret is wrong" in answer["why"]
    assert not bench.hub.connections


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", PRE_AUTH_BYTES + 1),
        struct.pack(">I", 2**32 - 1) + bytes(1000),
        b"GET / HTTP/1.1\r\nHost: gang\r\n\r\n",
        bytes(100),
        struct.pack(">II", 3000, 2996) + b"[" * 2996,
        encode(hello(info={"x": "y" * PRE_AUTH_BYTES})),
        encode(hello()) + encode({"clock": 1.0, "proof": "0" * 1000}),
    ],
)
def test_an_unauthenticated_socket_gets_four_kilobytes(bench: Bench, data: bytes) -> None:
    sock = bench.raw()
    sock.send(data)
    answers = decoded(bench.read_to_end(sock))
    assert all("proof" in answer for answer in answers)
    assert bench.acceptor.pending == 0 and not bench.hub.connections


def test_a_hello_that_would_be_too_large_is_not_sent(bench: Bench) -> None:
    with pytest.raises(ValueError, match="hello of node 2"):
        bench.dial(Side(), info={"x": "y" * PRE_AUTH_BYTES})


def test_a_short_secret_is_no_secret() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Transcript(b"", b"{}", "", 0)


def test_who_dribbles_is_dropped_in_time(loop: Loop) -> None:
    bench = Bench(loop, handshake_seconds=0.4)
    sock = bench.raw()
    data = iter(encode(hello()))
    begun = time.monotonic()

    def dribble() -> None:
        try:
            sock.send(bytes([next(data)]))
        except OSError:
            return
        loop.call_later(0.05, dribble)

    dribble()
    assert bench.read_to_end(sock) == b""
    assert 0.3 < time.monotonic() - begun < 5
    assert bench.acceptor.pending == 0
    bench.close()


def test_the_unauthenticated_are_counted_and_the_others_wait(loop: Loop) -> None:
    bench = Bench(loop, handshake_seconds=15, unauthenticated_sockets=4)
    silent = [bench.raw() for _ in range(10)]
    member = Side()
    bench.dial(member)
    most = 0

    def joined() -> bool:
        nonlocal most
        most = max(most, bench.acceptor.pending)
        return bool(member.connections)

    begun = time.monotonic()
    until(loop, joined)
    assert most == 4
    # Ten silent ones before it, of which four may stay, each safe for a tenth of a second.
    assert 0.1 < time.monotonic() - begun < 10, "not the deadline of 15 seconds"
    for sock in silent:
        sock.close()
    member.only.abort()
    bench.close()


def test_a_node_behind_a_crowd_does_not_wait_for_all_of_it(bench: Bench) -> None:
    """They are there before it, say hello as a node does, and nothing more."""
    crowd = [bench.raw() for _ in range(600)]
    for sock in crowd:
        sock.send(encode(hello()))
    latest = crowd[-1]
    until(bench.loop, lambda: bool(select.select([latest], [], [], 0)[0]))
    assert bench.acceptor.pending < len(crowd) / 2, "it has its answer before most of those who came before it"
    until(bench.loop, lambda: bench.acceptor.pending == len(crowd))
    assert bench.acceptor.pending == len(crowd), "and then the others are served"
    for sock in crowd:
        sock.close()


def test_a_node_behind_a_full_house_does_not_wait_until_all_places_have_changed_hands(loop: Loop) -> None:
    """All places are taken, and as many wait for one, when it comes: only some have to be dropped before its turn."""
    bench = Bench(loop, handshake_seconds=30, unauthenticated_sockets=300)
    house = [bench.raw() for _ in range(300)]
    until(loop, lambda: bench.acceptor.pending == 300)
    settle(loop, 0.2)  # each has had its moment, and may be dropped
    queue = [bench.raw() for _ in range(300)]
    latest = bench.raw()
    latest.send(encode(hello()))
    until(loop, lambda: bool(select.select([latest], [], [], 0)[0]))
    dropped = len(select.select(house, [], [], 0)[0])
    assert 0 < dropped < 200
    for sock in (*house, *queue, latest):
        sock.close()
    bench.close()


def test_who_is_slow_to_prove_itself_in_a_crowd_is_asked_to_come_again(loop: Loop) -> None:
    bench = Bench(loop, handshake_seconds=0.5, unauthenticated_sockets=2)
    crowd = [bench.raw(), bench.raw()]
    for sock in crowd:
        sock.send(encode(hello()))
    for sock in crowd:  # a node that gets no word in its handshake fails for good
        assert b'{"~":"busy"}' in bench.read_to_end(sock)
    assert bench.acceptor.pending == 0
    bench.close()


def test_a_closed_acceptor_keeps_whom_it_let_in(bench: Bench) -> None:
    member = bench.join()
    pending = bench.raw()
    until(bench.loop, lambda: bench.acceptor.pending == 1)
    bench.acceptor.close()
    bench.acceptor.close()
    assert bench.read_to_end(pending) == b""
    member.only.send({"still": "here"})
    until(bench.loop, lambda: bool(bench.hub.frames))
    with pytest.raises(ConnectionRefusedError):
        bench.raw()
    member.only.abort()


# What happens on the way


class Proxy:
    """Someone in the middle, who does to each frame what ``change(direction, number, frame)`` says.

    Directions are "up" (to the acceptor) and "down"; the frames of each are numbered from 0. ``recorded`` has all that
    passed, as it was sent.
    """

    PLAIN = {"up": 2, "down": 1}  # frames of the handshake, which have no MAC

    def __init__(self, loop: Loop, port: int, change: Callable[[str, int, bytes], list[bytes] | None]) -> None:
        self._loop, self._target, self._change = loop, port, change
        self._sockets: list[socket.socket] = []
        self.recorded: dict[str, list[bytes]] = {"up": [], "down": []}
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets.append(self._server)
        loop.add_reader(self._server, self._accept)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        server = socket.create_connection(("127.0.0.1", self._target), 10)
        self._sockets += [client, server]
        self._carry("up", client, server)
        self._carry("down", server, client)

    def _carry(self, direction: str, source: socket.socket, target: socket.socket) -> None:
        buffer = bytearray()

        def on_read() -> None:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(source)
                self._end(target)
                return
            buffer.extend(data)
            seen = self.recorded[direction]
            while len(buffer) >= 4:
                size = 4 + int.from_bytes(buffer[:4], "big") + (MAC if len(seen) >= self.PLAIN[direction] else 0)
                if len(buffer) < size:
                    return
                frame = bytes(buffer[:size])
                del buffer[:size]
                seen.append(frame)
                changed = self._change(direction, len(seen) - 1, frame)
                if changed is None:  # cut the wire
                    self._loop.remove_reader(source)
                    self._end(target)
                    return
                for part in changed:
                    target.sendall(part)

        self._loop.add_reader(source, on_read)

    @staticmethod
    def _end(sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            assert error.errno == errno.ENOTCONN

    def close(self) -> None:
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                sock.close()


def flipped(frame: bytes, at: int) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


def deliver(bench: Bench, change: Callable[[str, int, bytes], list[bytes] | None], frames: int = 4) -> Side:
    """Join through a proxy and send some frames up; what the member saw of it."""
    proxy = Proxy(bench.loop, bench.acceptor.port, change)
    member = Side()
    bench.dial(member, port=proxy.port, timeout=1.0)
    until(bench.loop, lambda: bool(member.connections or member.errors))
    if member.connections:
        for index in range(frames):
            member.only.send({"index": index}, b"payload")
        settle(bench.loop)
        member.only.abort()
    settle(bench.loop)
    proxy.close()
    return member


def test_an_honest_proxy_changes_nothing(bench: Bench) -> None:
    deliver(bench, lambda direction, number, frame: [frame])
    assert [header["index"] for header, _ in bench.hub.frames] == [0, 1, 2, 3]
    assert bench.hub.closed == ["closed without a word"]


# Frame 3 going up is the second after the handshake. Positions: both lengths, header, payload, MAC.
@pytest.mark.parametrize("at", [3, 7, 9, -MAC - 1, -MAC, -1])
def test_a_flipped_bit_ends_the_connection(bench: Bench, at: int) -> None:
    deliver(bench, lambda direction, number, frame: [flipped(frame, at) if (direction, number) == ("up", 3) else frame])
    assert [header["index"] for header, _ in bench.hub.frames] == [0]
    assert bench.hub.closed == ["bad MAC"]


def test_a_flipped_bit_on_the_way_down_is_noticed_too(bench: Bench) -> None:
    proxy = Proxy(
        bench.loop,
        bench.acceptor.port,
        lambda direction, number, frame: [flipped(frame, -MAC - 1) if (direction, number) == ("down", 2) else frame],
    )
    member = bench.join(port=proxy.port)
    bench.hub.only.send({"n": 1}, b"payload")
    until(bench.loop, lambda: bool(member.closed))
    assert member.closed == ["bad MAC"] and not member.frames
    proxy.close()


def test_a_repeated_frame_ends_the_connection(bench: Bench) -> None:
    deliver(bench, lambda direction, number, frame: [frame] * (2 if (direction, number) == ("up", 3) else 1))
    assert [header["index"] for header, _ in bench.hub.frames] == [0, 1]
    assert bench.hub.closed == ["bad MAC"]


def test_a_frame_that_is_left_out_ends_the_connection(bench: Bench) -> None:
    deliver(bench, lambda direction, number, frame: [] if (direction, number) == ("up", 3) else [frame])
    assert [header["index"] for header, _ in bench.hub.frames] == [0]
    assert bench.hub.closed == ["bad MAC"]


def test_frames_in_another_order_end_the_connection(bench: Bench) -> None:
    held: list[bytes] = []

    def swap(direction: str, number: int, frame: bytes) -> list[bytes]:
        if (direction, number) == ("up", 3):
            held.append(frame)
            return []
        return [frame, *held] if (direction, number) == ("up", 4) else [frame]

    deliver(bench, swap)
    assert [header["index"] for header, _ in bench.hub.frames] == [0]
    assert bench.hub.closed == ["bad MAC"]


def test_a_frame_sent_back_to_its_sender_ends_the_connection(bench: Bench) -> None:
    proxy = Proxy(bench.loop, bench.acceptor.port, lambda direction, number, frame: [frame])
    member = bench.join(port=proxy.port)
    member.only.send({"n": 1})
    until(bench.loop, lambda: bool(bench.hub.frames))
    # The member's own first frame, where the acceptor's second is due: same content, other key.
    frame = proxy.recorded["up"][2]
    proxy._sockets[1].sendall(frame)
    until(bench.loop, lambda: bool(member.closed))
    assert member.closed == ["bad MAC"]
    proxy.close()


@pytest.mark.parametrize("keep", [1, 20, -1, None])
def test_a_cut_is_not_taken_for_a_goodbye(bench: Bench, keep: int | None) -> None:
    held: list[bytes] = []

    def cut(direction: str, number: int, frame: bytes) -> list[bytes] | None:
        if direction == "up" and number == 3:
            held.append(frame)
            return [frame[:keep]] if keep is not None else []
        return None if direction == "up" and number == 4 else [frame]

    deliver(bench, cut)
    assert [header["index"] for header, _ in bench.hub.frames] == [0]
    assert bench.hub.closed == ["closed without a word"]


@pytest.mark.parametrize(
    ("direction", "number", "old", "new", "told"),
    [
        ("up", 0, b'"node":2', b'"node":3', "does not know this gang's secret"),
        ("up", 0, b'"cpus":1', b'"cpus":9', "does not know this gang's secret"),
        ("up", 0, b'"role":"member"', b'"role":"ring"  ', "does not know this gang's secret"),
        ("down", 0, b'"node":0', b'"node":1', "does not know this gang's secret"),
        ("down", 0, b'"nonce":"', b'"nonce":"0', "does not know this gang's secret"),
        ("up", 1, b'"clock":', b'"clock":1', "closed without a word in the handshake"),
        ("down", 1, b'"offset":', b'"offset":1', "bad MAC in the handshake"),
    ],
)
def test_nothing_of_the_handshake_can_be_changed(
    bench: Bench, direction: str, number: int, old: bytes, new: bytes, told: str
) -> None:
    def change(way: str, index: int, frame: bytes) -> list[bytes]:
        if (way, index) != (direction, number):
            return [frame]
        assert old in frame
        text = frame[8:].replace(old, new)
        if b'"nonce":"0' in new:
            text = text.replace(b'","node"', b'","node"', 1)
            start = text.index(new) + len(new)
            text = text[: start + 62] + text[start + 63 :]
        grown = len(text) - len(frame) + 8
        lengths = struct.unpack(">II", frame[:8])
        return [struct.pack(">II", lengths[0] + grown, lengths[1] + grown) + text]

    proxy = Proxy(bench.loop, bench.acceptor.port, change)
    member = Side()
    bench.dial(member, port=proxy.port, info={"cpus": 1})
    until(bench.loop, lambda: bool(member.connections or member.errors))
    settle(bench.loop)
    assert not member.connections and told in member.errors[0]
    assert len(bench.hub.connections) == (1 if (direction, number) == ("down", 1) else 0)
    proxy.close()


def test_a_recorded_session_cannot_be_replayed_to_the_acceptor(bench: Bench) -> None:
    proxy = Proxy(bench.loop, bench.acceptor.port, lambda direction, number, frame: [frame])
    member = bench.join(port=proxy.port)
    member.only.send({"pay": "100"})
    until(bench.loop, lambda: bool(bench.hub.frames))
    member.only.abort()
    proxy.close()
    sock = bench.raw()
    sock.send(b"".join(proxy.recorded["up"]))
    bench.read_to_end(sock)
    assert len(bench.hub.connections) == len(bench.hub.frames) == 1


def test_a_recorded_session_cannot_be_replayed_to_a_member(bench: Bench) -> None:
    proxy = Proxy(bench.loop, bench.acceptor.port, lambda direction, number, frame: [frame])
    bench.join(port=proxy.port).only.abort()
    proxy.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        member = Side()
        bench.dial(member, port=server.getsockname()[1])
        accepted: list[socket.socket] = []
        bench.loop.add_reader(server, lambda: accepted.append(server.accept()[0]))
        until(bench.loop, lambda: bool(accepted))
        accepted[0].sendall(b"".join(proxy.recorded["down"]))
        until(bench.loop, lambda: bool(member.errors))
        bench.loop.remove_reader(server)
        accepted[0].close()
    assert "does not know this gang's secret" in member.errors[0]
    assert not member.connections


def test_an_unauthenticated_refusal_is_only_a_cleaned_sentence(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        member = Side()
        bench.dial(member, port=server.getsockname()[1])
        accepted: list[socket.socket] = []
        bench.loop.add_reader(server, lambda: accepted.append(server.accept()[0]))
        until(bench.loop, lambda: bool(accepted))
        accepted[0].sendall(encode({"~": "refused", "why": "\x1b[2Jfoo\n" + "x" * 3000}))
        until(bench.loop, lambda: bool(member.errors))
        bench.loop.remove_reader(server)
        accepted[0].close()
    assert "refused by the gang: [2Jfoo x" in member.errors[0]
    assert member.errors[0].isprintable() and len(member.errors[0]) < 600


def test_the_two_directions_have_keys_of_their_own() -> None:
    said = encode(hello())[8:]
    transcript = Transcript(SECRET, said, "cd" * 32, 0)
    assert transcript.key("accepting") != transcript.key("connecting")
    assert Seal(transcript.key("accepting")).mac(b"x") != Seal(transcript.key("connecting")).mac(b"x")
    assert transcript.proof("accepting") != transcript.proof("connecting")
    assert Transcript(SECRET, said, "ce" * 32, 0).key("accepting") != transcript.key("accepting")


# How connections end


def test_a_goodbye_is_told_apart_from_a_death(bench: Bench) -> None:
    polite = bench.join(node=1)
    dead = bench.join(node=2)
    gone: list[str] = []
    polite.only.send({"last": "words"}, bytes(5_000_000))
    polite.only.close(then=lambda: gone.append("polite"))
    until(bench.loop, lambda: bool(gone))
    assert bench.hub.closed == [""]
    assert bench.hub.frames[0][0] == {"last": "words"}
    dead.only.abort()
    until(bench.loop, lambda: len(bench.hub.closed) == 2)
    assert bench.hub.closed == ["", "closed without a word"]
    assert polite.closed == dead.closed == []
    assert all(connection.closed for connection in bench.hub.connections)
    for connection in bench.hub.connections:
        connection.send({"into": "the void"})
        connection.close()


def test_a_goodbye_arrives_though_the_other_side_is_writing(bench: Bench) -> None:
    member = bench.join()
    for _ in range(10):
        bench.hub.only.send({}, bytes(1_000_000))
    member.only.close()
    until(bench.loop, lambda: bool(bench.hub.closed))
    assert bench.hub.closed == [""]


def test_a_reset_is_called_so(bench: Bench) -> None:
    member = bench.join()
    sock = member.only._stream._sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    member.only.abort()
    until(bench.loop, lambda: bool(bench.hub.closed))
    assert bench.hub.closed == ["reset"]


MEMBER = """
import sys
sys.path.insert(0, {folder!r})
from guard.channel.connection import Identity
from guard.channel.connect import connect
from guard.loop.event_loop import Loop

def joined(connection):
    connection.send({{"joined": True}})

def failed(error):
    print(error, flush=True)
    loop.stop()

loop = Loop()
secret = bytes.fromhex(sys.stdin.readline())
connect(loop, {address!r}, {port}, secret, Identity("TrainFlow", "17", "train", "4", 1), "member", 2, {{}},
        joined, failed, 30)
loop.run()
"""


def member_process(bench: Bench, start: Callable[..., subprocess.Popen[str]] = subprocess.Popen) -> Any:
    """A member in a process of its own, that has joined."""
    source = sys.modules[Loop.__module__].__file__
    assert source is not None
    folder = str(Path(source).resolve().parents[2])
    code = MEMBER.format(folder=folder, address=bench.acceptor.address, port=bench.acceptor.port)
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    if start is subprocess.Popen:
        options["text"] = True
    process = start([sys.executable, "-I", "-S", "-c", code], **options)
    assert process.stdin is not None
    process.stdin.write(SECRET.hex() + "\n")
    process.stdin.close()
    until(bench.loop, lambda: bool(bench.hub.frames))
    return process


def test_a_killed_process_closes_without_a_word(bench: Bench) -> None:
    process = member_process(bench)
    process.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    until(bench.loop, lambda: bool(bench.hub.closed))
    assert bench.hub.closed == ["closed without a word"]
    assert time.monotonic() - begun < 10
    process.wait(10)


def test_a_stopped_process_stays_connected(bench: Bench) -> None:
    """Liveness is the kernel's: user code, or a guard, that does not run for a while is not dead."""
    process = member_process(bench)
    process.send_signal(signal.SIGSTOP)
    settle(bench.loop, 1.0)
    assert bench.hub.closed == []
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(10)
    until(bench.loop, lambda: bool(bench.hub.closed))


@pytest.mark.slow
@pytest.mark.parametrize("sends", [False, True], ids=["idle", "sending"])
def test_the_kernel_ends_the_connection_of_a_lost_host(sends: bool) -> None:
    """The acceptor runs on one host, the member on another whose cable is cut without a sound.

    With a lost_host of 5 s the kernel alone takes twice as long; a gang has liveness.py besides.
    """
    with Hosts(2) as hosts:
        code = HUB.format(folder=_guard_folder(), address=hosts[0].address, sends=sends)
        hub = hosts[0].popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert hub.stdin is not None and hub.stdout is not None
        hub.stdin.write(SECRET.hex() + "\n")
        hub.stdin.close()
        port = int(hub.stdout.readline())
        code = MEMBER.format(folder=_guard_folder(), address=hosts[0].address, port=port)
        member = hosts[1].popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE)
        assert member.stdin is not None
        member.stdin.write(SECRET.hex() + "\n")
        member.stdin.close()
        assert hub.stdout.readline() == "joined\n"
        hosts.cut(1)
        begun = time.monotonic()
        reason = hub.stdout.readline().strip()
        took = time.monotonic() - begun
        hub.stdout.close()
    hub.wait(10)
    member.wait(10)
    assert reason in ("timed out", "no route to that host")
    assert took < 12


HUB = """
import sys
sys.path.insert(0, {folder!r})
from guard.channel.accept import Acceptor
from guard.channel.connection import Identity
from guard.loop.event_loop import Loop
from guard.settings import use_settings

use_settings({{"lost_host_timeout": 5.0}})

def joined(connection):
    def closed(connection, reason):
        print(reason, flush=True)
        loop.stop()

    def on_frame(connection, header, payload):
        print("joined", flush=True)
        if {sends}:
            loop.call_later(0.5, lambda: connection.send({{}}, bytes(100000)))

    connection.on_close = closed
    connection.on_frame = on_frame

loop = Loop()
secret = bytes.fromhex(sys.stdin.readline())
acceptor = Acceptor(loop, {address!r}, secret, Identity("TrainFlow", "17", "train", "4", 1), joined)
print(acceptor.port, flush=True)
loop.run()
"""


def _guard_folder() -> str:
    source = sys.modules[Loop.__module__].__file__
    assert source is not None
    return str(Path(source).resolve().parents[2])


def test_the_kernel_watches_both_ends(bench: Bench) -> None:
    member = bench.join()
    for connection in (member.only, bench.hub.only):
        sock = connection._stream._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in (
            ("NODELAY", 1),
            ("KEEPIDLE", 3),
            ("KEEPINTVL", 1),
            ("KEEPCNT", 57),
            ("USER_TIMEOUT", 60_000),
        ):
            if hasattr(socket, f"TCP_{name}"):
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}")) == value
    member.only.abort()


# Connecting


def failure(loop: Loop, address: str, port: int, timeout: float = 0.5) -> str:
    side = Side()
    connect(loop, address, port, SECRET, GANG, "member", 3, {}, side.take, side.fail, timeout)
    begun = time.monotonic()
    until(loop, lambda: bool(side.errors))
    assert timeout - 0.1 <= time.monotonic() - begun < timeout + 5
    settle(loop, 0.02)
    assert len(side.errors) == 1 and not side.connections
    return side.errors[0]


def test_nobody_listens(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = failure(loop, "127.0.0.1", port)
    assert told.startswith(f"Node 3 cannot connect to 127.0.0.1 port {port}: refused (")
    assert " attempts in 0.5" in told
    assert "security group" in told and "network policy" in told and "on all ports" in told


def test_nobody_listens_there_either(loop: Loop) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
    assert failure(loop, "::1", port).startswith(f"Node 3 cannot connect to [::1] port {port}: refused (")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "x" * 300, "é" * 80, "a..b"])
def test_no_such_host(loop: Loop, name: str) -> None:
    # A name service may take its time to say no; then the time runs out first.
    told = failure(loop, name, 1234, timeout=2.0)
    assert told.startswith(f"Node 3 cannot connect to {name} port 1234: ")
    assert "no such host" in told or "its name has not been resolved" in told
    assert "Check the host's name" in told


def test_a_listener_that_never_answers(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = failure(loop, "127.0.0.1", server.getsockname()[1])
    assert "connected, but nothing answered (1 attempt" in told and "security group" in told


def test_packets_that_vanish(loop: Loop) -> None:
    """A full queue of a listening socket: the kernel drops what comes, as a firewall would."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        fill = [socket.socket() for _ in range(3)]
        for sock in fill:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        told = failure(loop, "127.0.0.1", port, timeout=0.5)
        for sock in fill:
            sock.close()
    assert f"port {port}: timed out (1 attempt in 0.5" in told


def test_another_program_that_answers(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def answer() -> None:
            accepted.append(server.accept()[0])
            accepted[-1].send(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        loop.add_reader(server, answer)
        told = failure(loop, "127.0.0.1", server.getsockname()[1])
        loop.remove_reader(server)
        for sock in accepted:
            sock.close()
    assert "something that is no gang answered" in told


def test_a_program_that_answers_in_frames(loop: Loop) -> None:
    side = Side()
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def answer() -> None:
            accepted.append(server.accept()[0])
            accepted[-1].send(encode({"hello": "world"}))

        loop.add_reader(server, answer)
        port = server.getsockname()[1]
        connect(loop, "127.0.0.1", port, SECRET, GANG, "member", 3, {}, side.take, side.fail, 20)
        until(loop, lambda: bool(side.errors))
        loop.remove_reader(server)
        accepted[0].close()
    assert "something that is no gang answered there" in side.errors[0]


def test_who_comes_early_waits(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    side, hub = Side(), Side()
    connect(loop, "127.0.0.1", port, SECRET, GANG, "member", 3, {}, side.take, side.fail, 20)
    settle(loop, 0.3)
    acceptor = Acceptor(loop, "127.0.0.1", SECRET, GANG, hub.take, port=port)
    begun = time.monotonic()
    until(loop, lambda: bool(hub.connections and side.connections))
    assert time.monotonic() - begun < 3
    side.only.abort()
    hub.only.abort()
    acceptor.close()


def test_a_cancelled_dial_calls_nobody(bench: Bench) -> None:
    side = Side()
    for address in ("127.0.0.1", "localhost", "no-such-host.invalid"):
        dial = bench.dial(side, address=address, timeout=0.3)
        dial.cancel()
        dial.cancel()
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = bench.dial(side, port=server.getsockname()[1])
        settle(bench.loop)
        sock, _ = server.accept()
        started.cancel()
        assert decoded(sock.recv(65536))[0]["node"] == 2
        assert sock.recv(65536) == b""
        sock.close()
    settle(bench.loop, 0.5)
    assert not side.connections and not side.errors


def test_an_address_of_another_machine_cannot_be_listened_on(loop: Loop) -> None:
    with pytest.raises(OSError, match=r"Cannot listen on 192\.0\.2\.1 port 0"):
        Acceptor(loop, "192.0.2.1", SECRET, GANG, lambda connection: None)


def test_two_hundred_join_at_once(bench: Bench) -> None:
    members = [Side() for _ in range(200)]
    begun = time.monotonic()
    for node, side in enumerate(members):
        bench.dial(side, node=node, info={"node": node})
    until(bench.loop, lambda: all(side.connections or side.errors for side in members))
    assert [error for side in members for error in side.errors] == []
    assert sorted(connection.node for connection in bench.hub.connections) == list(range(200))
    assert all(connection.info == {"node": connection.node} for connection in bench.hub.connections)
    for connection in bench.hub.connections:
        connection.send({"roster": connection.node})
    send_to_all(bench.hub.connections, {"all": 200}, b"payload")
    until(bench.loop, lambda: all(len(side.frames) == 2 for side in members))
    assert [side.frames[0][0]["roster"] for side in members] == list(range(200))
    assert all(side.frames[1] == ({"all": 200}, b"payload") for side in members)
    assert time.monotonic() - begun < 20
    for side in members:
        side.only.close()
    until(bench.loop, lambda: len(bench.hub.closed) == 200)
    assert set(bench.hub.closed) == {""}


def test_the_benchmark_of_joining_works() -> None:
    benchmark = ROOT / "benchmarks" / "channel.py"
    done = subprocess.run([sys.executable, benchmark, "300"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| 300 | ")


FEW_FILES = """
import json, os, resource, sys
sys.path.insert(0, {folder!r})
from guard.channel.accept import Acceptor
from guard.channel.connection import Identity
from guard.loop.event_loop import Loop

hard = {hard}
resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))
loop = Loop()
joined = []

def take(connection):
    joined.append(connection)
    connection.on_close = lambda connection, reason: joined.remove(connection)
    print(len(joined), flush=True)

acceptor = Acceptor(loop, "127.0.0.1", {secret!r}, Identity("TrainFlow", "17", "train", "4", 1), take)
print(acceptor.port, flush=True)
loop.call_later(2, lambda: (print("cpu", sum(os.times()[:2]), flush=True), loop.call_later(20, loop.stop)))
loop.run()
"""


def hub_with_few_files(hard: int) -> tuple[subprocess.Popen[str], int]:
    code = FEW_FILES.format(folder=_guard_folder(), hard=hard, secret=SECRET)
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_low_limit_of_open_files_is_raised(loop: Loop) -> None:
    process, port = hub_with_few_files(hard=200)
    sides = [Side() for _ in range(60)]
    for node, side in enumerate(sides):
        connect(loop, "127.0.0.1", port, SECRET, GANG, "member", node, {}, side.take, side.fail, 20)
    until(loop, lambda: all(side.connections for side in sides))
    process.kill()
    process.communicate()
    for side in sides:
        side.only.abort()


def test_without_free_descriptors_it_waits_and_does_not_spin(loop: Loop) -> None:
    process, port = hub_with_few_files(hard=24)
    assert process.stdout is not None
    sides = [Side() for _ in range(40)]
    for node, side in enumerate(sides):
        connect(loop, "127.0.0.1", port, SECRET, GANG, "member", node, {}, side.take, side.fail, 30)
    lines = []
    until(loop, lambda: sum(len(side.connections) for side in sides) >= 10)
    settle(loop, 2.5)
    early = [side for side in sides if side.connections]
    assert len(early) < 24
    for line in process.stdout:
        lines.append(line)
        if line.startswith("cpu"):
            break
    assert float(lines[-1].split()[1]) < 1.0
    for side in early:
        side.only.close()
    until(loop, lambda: any(side.connections for side in sides if side not in early))
    process.kill()
    process.communicate()
    for side in sides:
        for connection in side.connections:
            connection.abort()
    # Those that are still trying end with their loop.


def test_an_identity_is_a_value() -> None:
    same = Identity(flow="TrainFlow", run="17", step="train", control_task="4", attempt=1)
    assert same == GANG and hash(same) == hash(GANG)
    assert same != Identity("TrainFlow", "17", "train", "4", 2) and same != json.dumps(same.as_list())
    assert repr(same) == "Identity('TrainFlow', '17', 'train', '4', 1)"
    with pytest.raises(AttributeError, match="does not change"):
        same.attempt = 2
