"""Whether this node reaches every other one over TCP, while it answers those that try to reach it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Mapping

CONNECT_S = 5.0
"""For one connection: a packet that was lost is sent again after 1 and 3 s."""

_LATE_S = 1.0
"""By which another node may begin later than this one."""

AT_ONCE = 64
"""Connections that one node has under way."""

TOKEN_BYTES = 16

_WORD = struct.Struct("!I")


def listen(host: str) -> socket.socket:
    """A socket on a free port of ``host``, this node's address, on which the others try to reach it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.bind((host, 0))
    sock.listen(4096)
    return sock


class Reach:
    """One try of all connections, on one node.

    Parameters
    ----------
    listener : socket
        From :func:`listen`.
    node : int
        This node's index. Each connection brings the token and gets this number: another machine at the same address,
        or a proxy, does not answer so.
    token : bytes
    others : mapping
        By node, the address and the port of each other node.
    """

    def __init__(self, listener: socket.socket, node: int, token: bytes, others: Mapping[int, tuple[str, int]]) -> None:
        self._listener, self._node, self._token = listener, node, token
        self._others = dict(others)
        self._waiting = list(others)
        self._selector = selectors.DefaultSelector()
        self._deadlines: dict[socket.socket, tuple[int, float]] = {}
        self._accepted: set[socket.socket] = set()
        self._answered = 0
        self.failed: dict[int, str] = {}
        """By node that was not reached: why."""

    def run(self) -> None:
        """Try all, until each has answered, or failed, and each other node has had its answer, or its time for it."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        end = time.monotonic() + CONNECT_S + _LATE_S
        try:
            while self._waiting or self._deadlines or (self._answered < len(self._others) and time.monotonic() < end):
                while self._waiting and len(self._deadlines) < AT_ONCE:
                    self._connect(self._waiting.pop(0))
                for key, _ in self._selector.select(0.1):
                    key.data()
                for sock, (node, deadline) in list(self._deadlines.items()):
                    if time.monotonic() > deadline:
                        self._drop(sock, node, f"no answer within {CONNECT_S:g} s")
        finally:
            for sock in (*self._deadlines, *self._accepted):
                sock.close()
            self._selector.close()

    def _connect(self, node: int) -> None:
        host, port = self._others[node]
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        self._deadlines[sock] = (node, time.monotonic() + CONNECT_S)
        self._selector.register(sock, selectors.EVENT_WRITE, lambda: self._connected(sock, node))
        try:
            with contextlib.suppress(BlockingIOError):
                sock.connect((host, port))
        except OSError as error:
            self._drop(sock, node, str(error.strerror or error))

    def _connected(self, sock: socket.socket, node: int) -> None:
        try:
            sock.send(self._token)  # raises what the connection has failed by
        except OSError as error:
            self._drop(sock, node, str(error.strerror or error))
            return
        self._selector.modify(sock, selectors.EVENT_READ, lambda: self._heard(sock, node))

    def _heard(self, sock: socket.socket, node: int) -> None:
        try:
            answer = sock.recv(_WORD.size)
        except OSError as error:
            self._drop(sock, node, str(error.strerror or error))
            return
        number = _WORD.unpack(answer)[0] if len(answer) == _WORD.size else -1
        other = f"node {number}" if number in self._others or number == self._node else "another program"
        self._drop(sock, node, "" if number == node else f"{other} answers at its address")

    def _drop(self, sock: socket.socket, node: int, why: str) -> None:
        """The try of ``node`` is over; ``why`` it has failed, or ""."""
        del self._deadlines[sock]
        self._selector.unregister(sock)
        sock.close()
        if why:
            self.failed[node] = why

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        connection.setblocking(False)
        self._accepted.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._answer(connection))

    def _answer(self, connection: socket.socket) -> None:
        # The token is one segment; whatever else comes is of no node of this gang.
        with contextlib.suppress(OSError):
            if connection.recv(TOKEN_BYTES) == self._token:
                connection.send(_WORD.pack(self._node))
                self._answered += 1
        self._selector.unregister(connection)
        self._accepted.discard(connection)
        connection.close()
