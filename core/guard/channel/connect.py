"""The connecting side of the channel: find the address, and try until it answers."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..loop.event_loop import Loop, Timer
from ..loop.framing import encode, fault
from ..loop.resolver import resolve
from ..loop.stream import Stream
from ..loop.timeouts import tune
from ..loop.untrusted import parse
from .connecting_handshake import CHECK_NETWORK, ConnectingHandshake
from .connection import (
    PRE_AUTH_BYTES,
    PROOF_BYTES,
    PROTOCOL,
    Connection,
    Identity,
)

if TYPE_CHECKING:
    from ..loop.framing import Header
    from ..loop.resolver import Target

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
"""Seconds between two attempts: doubled from the first to the second."""

ATTEMPT_SECONDS = 10.0
"""How long one attempt waits for TCP. The kernel doubles its own pauses, so a fresh attempt is answered sooner."""


class ConnectError(Exception):
    """A connection could not be made; the message says where to, what came back and what to check.

    ``interrupted``: the other side ended a handshake that had gone well so far; ``refusal`` is why the gang,
    which has proved the secret, does not take this node, or "".
    """

    interrupted = False
    refusal = ""


def connect(
    loop: Loop,
    address: str,
    port: int,
    secret: bytes,
    identity: Identity,
    role: str,
    node: int,
    info: dict[str, Any],
    on_connection: Callable[[Connection], None],
    on_error: Callable[[ConnectError], None],
    timeout: float,
) -> Dial:
    """Connect to an :class:`Acceptor` and prove the gang's secret to it, without blocking.

    A name that does not resolve, an address that does not answer and a gang to which too many connect at once are tried
    again until ``timeout``; a refusal by the gang is final. Exactly one of the callbacks is called, later and in the
    loop, unless the dial is cancelled.

    Parameters
    ----------
    address : str
        IP address or host name; resolved in a thread.
    role : str
        "member" or "ring".
    node : int
        Index of this node.
    info : dict
        What the other side shall know; JSON, 3 kB at most.
    on_connection, on_error : callable
        Called with the :class:`Connection`, or with a :class:`ConnectError`.
    timeout : float
        Seconds for everything together.

    Returns
    -------
    Dial
        ``cancel()`` ends it without a call.

    Raises
    ------
    ValueError
        When ``info`` is too large.
    """
    hello = {
        "version": PROTOCOL,
        "identity": identity.as_list(),
        "role": role,
        "node": node,
        "nonce": "0" * 64,  # of the size of those that follow, one for each attempt
        "info": info,
    }
    size, limit = len(encode(hello)), PRE_AUTH_BYTES - PROOF_BYTES
    if size > limit:
        raise ValueError(f"The hello of node {node} has {size} bytes, and {limit} is the limit.")
    hello["info"] = parse(encode(info)[8:])  # as the other side will read it
    return Dial(loop, address, port, secret, hello, on_connection, on_error, timeout)


class Dial:
    """A connection in the making."""

    def __init__(
        self,
        loop: Loop,
        address: str,
        port: int,
        secret: bytes,
        hello: Header,
        on_connection: Callable[[Connection], None],
        on_error: Callable[[ConnectError], None],
        timeout: float,
    ) -> None:
        self._loop = loop
        self._address = address
        self._port = port
        self._secret = secret
        self._hello = hello
        self._on_connection = on_connection
        self._on_error = on_error
        self._timeout = timeout
        self._started = time.monotonic()
        self._pause = FIRST_PAUSE
        self._attempts = 0
        self._last = ""
        self._targets: list[Target] = []
        self._sock: socket.socket | None = None
        self._stream: Stream | None = None
        self._handshake: ConnectingHandshake | None = None
        self._over = False
        self._deadline = loop.call_later(timeout, self._on_deadline)
        self._timer: Timer = loop.call_later(0, self._resolve)

    def cancel(self) -> None:
        """End it; neither callback is called. Harmless when it is over."""
        self._over = True
        self._deadline.cancel()
        self._drop()

    # Finding the address

    def _resolve(self) -> None:
        if not resolve(self._loop, self._address, self._port, self._on_resolved):
            self._last = self._last or "its name has not been resolved"

    def _on_resolved(self, found: list[Target], why: str) -> None:
        if self._over:
            return
        if not found:
            self._retry(why)
            return
        self._targets = found
        self._next_target()

    # Reaching it

    def _next_target(self) -> None:
        family, name = self._targets.pop(0)
        self._attempts += 1
        try:
            self._sock = sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            code = sock.connect_ex(name)
        except OSError as error:
            self._retry(fault(error))
            return
        if code not in (0, errno.EINPROGRESS):
            self._retry(fault(OSError(code, os.strerror(code))))
            return
        self._timer = self._loop.call_later(ATTEMPT_SECONDS, lambda: self._retry("timed out"))
        self._loop.add_writer(sock, self._on_connected)

    def _on_connected(self) -> None:
        sock = self._sock
        if sock is None:
            return
        self._loop.remove_writer(sock)
        self._timer.cancel()
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._retry(fault(OSError(code, os.strerror(code))))
            return
        try:
            # The kernel may join a socket to itself when it draws the very port that it is to connect to.
            to_itself = sock.getsockname() == sock.getpeername()
            tune(sock)
            stream = Stream(self._loop, sock, limit=PRE_AUTH_BYTES)
        except OSError as error:
            self._retry(fault(error))
            return
        self._stream = stream
        if to_itself:
            self._retry("refused")
            return
        self._handshake = ConnectingHandshake(stream, self._secret, self._hello, self._proved, self._retry, self._fail)
        self._handshake.begin()

    def _proved(self, connection: Connection) -> None:
        self._stream = self._sock = self._handshake = None
        self.cancel()
        self._on_connection(connection)

    # Ending

    def _retry(self, why: str) -> None:
        if self._over:
            return
        self._last = why
        self._drop()
        if self._targets:
            self._next_target()
            return
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        self._timer = self._loop.call_later(pause, self._resolve)

    def _on_deadline(self) -> None:
        took = time.monotonic() - self._started
        tries = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
        got = self._handshake.state if self._handshake is not None else self._last or "timed out"
        if self._sock is not None and self._stream is None:
            got = "timed out"
        check = CHECK_NETWORK if self._attempts else "Check the host's name, and the name service of this node."
        self._fail(f"{got} ({tries} in {took:.3g} s). {check}")

    def _fail(self, got: str, interrupted: bool = False, refusal: str = "") -> None:
        if self._over:
            return
        self.cancel()
        where = f"[{self._address}]" if ":" in self._address else self._address
        me = self._hello["node"]
        error = ConnectError(f"Node {me} cannot connect to {where} port {self._port}: {got}")
        error.interrupted, error.refusal = interrupted, refusal
        self._on_error(error)

    def _drop(self) -> None:
        self._timer.cancel()
        stream, sock = self._stream, self._sock
        self._stream = self._sock = self._handshake = None
        if stream is not None:
            stream.close(flush=False)
        elif sock is not None:
            self._loop.remove_writer(sock)
            sock.close()
