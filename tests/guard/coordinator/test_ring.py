"""The ring tells a network that is cut, and nothing else: not a node that is done, that is slow, or that has died."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.paths import TESTS

from metaflow_extensions.gang.core.guard.channel.connection import Connection, Identity
from metaflow_extensions.gang.core.guard.failure_record import Failure
from metaflow_extensions.gang.core.guard.hub_link.neighbour_watch import Ring
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop

GANG = Identity("F", "1", "s", "2", 0)
SHORT_GANGS = TESTS / "support" / "guard" / "short_gangs.py"


class Neighbours:
    """The ring's ends of nodes 1 and 2, and what they tell."""

    def __init__(self, same_secret: bool = True) -> None:
        self.loop = Loop()
        self.told: list[Failure] = []
        secret = os.urandom(32)
        secrets = (secret, secret if same_secret else os.urandom(32))
        self.rings = [
            Ring(self.loop, index, GANG, secret, "127.0.0.1", self.told.append, print)
            for index, secret in enumerate(secrets, 1)
        ]

    def connect(self, port: int | None = None) -> None:
        ports = (0, self.rings[0].port, port or self.rings[1].port)
        self.rings[0].close_the([{"address": "127.0.0.1", "ring_port": port} for port in ports])

    def on_accepted(self, then: Callable[[Connection], None]) -> None:
        """Call ``then`` when node 2 has taken node 1's connection, which node 1 does not know yet."""
        add = self.rings[1]._acceptor.on_connection

        def accepted(connection: Connection) -> None:
            add(connection)
            then(connection)

        self.rings[1]._acceptor.on_connection = accepted

    def run(self, seconds: float) -> None:
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        for ring in self.rings:
            ring.close()
        self.loop.close()


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    one = Neighbours()
    yield one
    one.close()


def test_a_next_node_that_has_not_joined_is_not_looked_for(neighbours: Neighbours) -> None:
    nobody = {"hostname": "", "address": "", "cpus": 0, "gpus": 0}
    neighbours.rings[0].close_the([{"address": "127.0.0.1", "ring_port": 1}] * 2 + [nobody])
    neighbours.run(0.2)
    assert not neighbours.told


def test_a_next_node_that_does_not_take_the_connection_is_told_unless_it_has_left() -> None:
    for has_left in (True, False):
        # Of another secret, so that the connection fails for good.
        strangers = Neighbours(same_secret=False)
        strangers.connect()
        if has_left:
            strangers.rings[0].next_has_left()
        strangers.run(0.5)
        strangers.close()
        assert [failure.peer for failure in strangers.told] == ([] if has_left else [2])
        assert has_left or "cannot reach node 2" in strangers.told[0].text


def test_a_node_that_leaves_with_the_welcome_unread_is_not_cut_off(neighbours: Neighbours) -> None:
    """Its kernel resets the connection, which shows that it is there."""
    reasons: list[str] = []

    def accepted(connection: Connection) -> None:
        lost = connection.on_close
        connection.on_close = lambda conn, reason: (reasons.append(reason), lost(conn, reason))[0]
        neighbours.rings[0].close()
        neighbours.loop.call_later(0.2, neighbours.loop.stop)

    neighbours.on_accepted(accepted)
    neighbours.connect()
    neighbours.run(10.0)
    assert reasons == ["reset"]
    assert not neighbours.told


@pytest.mark.parametrize("reason", ["reset", "closed without a word", "", "bad MAC"])
def test_only_silence_is_a_cut(neighbours: Neighbours, reason: str) -> None:
    connections: list[Connection] = []
    neighbours.on_accepted(lambda connection: (connections.append(connection), neighbours.loop.stop())[1])
    neighbours.connect()
    neighbours.run(10.0)
    connections[0].on_close(connections[0], reason)
    assert not neighbours.told
    neighbours.rings[1]._connections.append(connections[0])
    connections[0].on_close(connections[0], "timed out")
    assert [(failure.node, failure.peer) for failure in neighbours.told] == [(2, 1)]


class BreaksOff:
    """Passes connections on to ``port``, but ends the first one where the other side has proved the secret."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._pass, args=(here, self.connections == 1), daemon=True).start()

    def _pass(self, here: socket.socket, breaks: bool) -> None:
        with here, socket.create_connection(("127.0.0.1", self._port)) as there:
            there.sendall(here.recv(4096))
            here.sendall(there.recv(4096))
            proof = here.recv(4096)
            if not breaks:
                there.sendall(proof)
                threading.Thread(target=_copy, args=(here, there), daemon=True).start()
                _copy(there, here)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(4096):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_a_handshake_that_is_broken_off_is_made_again(neighbours: Neighbours) -> None:
    """The other guard may be busy for longer than it lets a handshake last."""
    way = BreaksOff(neighbours.rings[1].port)
    neighbours.rings[0]._connected = _then(neighbours.rings[0]._connected, neighbours.loop.stop)  # type: ignore[method-assign]
    neighbours.connect(way.port)
    neighbours.run(20.0)
    assert way.connections == 2 and len(neighbours.rings[0]._connections) == 1
    assert not neighbours.told
    way.close()


def _then(call: Callable[[Any], None], after: Callable[[], None]) -> Callable[[Any], None]:
    def both(argument: Any) -> None:
        call(argument)
        after()

    return both


@pytest.mark.parametrize(("nodes", "rounds"), [(4, 25), (8, 10)])
def test_gangs_with_nothing_to_do_end_well(nodes: int, rounds: int) -> None:
    """Two processes keep the machine busy, so that the guards do not take turns."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        argv = [sys.executable, str(SHORT_GANGS), str(nodes), str(rounds), "7"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert re.fullmatch(rf"{rounds} gangs of {nodes} nodes: 0 failed\n", said), said
