"""The accepting side of the channel: a listening socket, and the handshakes of those who come."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from .loop import Loop
from .session import (
    CHANNEL,
    PRE_AUTH_BYTES,
    PROOF_BYTES,
    PROTOCOL,
    ROLES,
    Connection,
    Identity,
    Seal,
    Transcript,
    is_nonce,
    new_nonce,
    peer_ip,
    protect,
    sentence,
    tune,
)
from .wire import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from .wire import Header

HANDSHAKE_SECONDS = 5.0
"""How long a socket may take to prove the secret."""

UNAUTHENTICATED_SOCKETS = 64
"""How many sockets may be in their handshake at once; the others wait in the kernel's queue."""

BACKLOG = 4096
"""How many may wait there (the kernel's own bound, net.core.somaxconn, may be lower: they then come again)."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_PAUSE = 0.1


class Acceptor:
    """Listens on ``host``, and hands out each connection that has proved the secret.

    Parameters
    ----------
    loop : Loop
        Where it runs.
    host : str
        Own IP address to listen on, IPv4 or IPv6; "" for all.
    secret : bytes
        The gang's secret, 16 bytes at least.
    identity : Identity
        The attempt of the gang; whoever comes with another is refused, with a sentence.
    on_connection : callable
        Called with each :class:`Connection`; set its ``on_frame`` and ``on_close`` there.
    check : callable, optional
        ``check(role, node)``: a sentence why an authenticated connection is refused, or None.
    port : int
        0 for a free one.
    node : int
        Index of the accepting node, which the other side gets as its connection's ``node``.
    handshake_seconds, unauthenticated_sockets :
        The limits above.

    Raises
    ------
    OSError
        When the address is not this machine's, or the port is taken.
    """

    def __init__(
        self,
        loop: Loop,
        host: str,
        secret: bytes,
        identity: Identity,
        on_connection: Callable[[Connection], None],
        check: Callable[[str, int], str | None] | None = None,
        port: int = 0,
        *,
        node: int = 0,
        handshake_seconds: float = HANDSHAKE_SECONDS,
        unauthenticated_sockets: int = UNAUTHENTICATED_SOCKETS,
    ) -> None:
        self.loop = loop
        self.secret = secret
        self.identity = identity
        self.on_connection = on_connection
        self.check = check
        self.node = node
        self.handshake_seconds = handshake_seconds
        self._limit = unauthenticated_sockets
        self._pending: set[_Handshake] = set()
        self._listening = False
        self._closed = False
        self._sock = _listen(host, port)
        name = self._sock.getsockname()
        self.address: str = name[0]
        self.port: int = name[1]
        self._resume()

    @property
    def pending(self) -> int:
        """How many sockets are in their handshake."""
        return len(self._pending)

    def close(self) -> None:
        """Accept nobody any more, and drop who is in the handshake. Connections that were handed out stay."""
        if self._closed:
            return
        self._closed = True
        self._pause()
        self._sock.close()
        for handshake in list(self._pending):
            handshake.drop()

    def forget(self, handshake: _Handshake) -> None:
        """A handshake is over, one way or the other: its place is free."""
        self._pending.discard(handshake)
        self._resume()

    def _resume(self) -> None:
        if not self._closed and not self._listening and len(self._pending) < self._limit:
            self._listening = True
            self.loop.add_reader(self._sock, self._on_readable)

    def _pause(self) -> None:
        if self._listening:
            self._listening = False
            self.loop.remove_reader(self._sock)

    def _on_readable(self) -> None:
        while self._listening:
            try:
                sock, peer = self._sock.accept()
            except OSError as error:
                if error.errno == errno.EMFILE and _more_descriptors():
                    continue
                if error.errno in _EXHAUSTED:
                    # Whoever waits keeps the socket readable, so looking again at once would take all of a core.
                    self._pause()
                    self.loop.call_later(_EXHAUSTED_PAUSE, self._resume)
                return
            try:
                tune(sock)
            except OSError:  # gone again
                sock.close()
                continue
            self._pending.add(_Handshake(self, sock, peer_ip(peer)))
            if len(self._pending) >= self._limit:
                self._pause()


class _Handshake:
    """One socket on its way from accepted to authenticated."""

    def __init__(self, acceptor: Acceptor, sock: socket.socket, address: str) -> None:
        self._acceptor = acceptor
        self._address = address
        self._hello: Header = {}
        self._transcript: Transcript | None = None
        self._asked_at = 0.0
        self._stream = Stream(acceptor.loop, sock, limit=PRE_AUTH_BYTES - PROOF_BYTES)
        self._stream.on_frame = self._on_hello
        self._stream.on_close = lambda reason: self.drop()
        self._timer = acceptor.loop.call_later(acceptor.handshake_seconds, self.drop)

    def drop(self) -> None:
        """End it without a word."""
        self._stream.close(flush=False)
        self._leave()

    def _leave(self) -> None:
        self._timer.cancel()
        self._acceptor.forget(self)

    def _refuse(self, why: str) -> None:
        # It keeps its place, and its time limit, until the sentence is out.
        self._stream.send({CHANNEL: "refused", "why": why})
        self._stream.close(flush=True, then=self._leave)

    def _on_hello(self, hello: Header, payload: bytes) -> None:
        role, node = hello.get("role"), hello.get("node")
        version, identity = hello.get("version"), hello.get("identity")
        info = hello.get("info")
        if (
            role not in ROLES
            or type(node) is not int
            or node < 0
            or payload
            or not is_nonce(hello.get("nonce"))
            or not isinstance(info, dict)
        ):
            self.drop()
            return
        if version != PROTOCOL:
            self._refuse(
                f"this gang speaks protocol {PROTOCOL}, node {node} speaks {sentence(version)}; "
                "install the same version of metaflow-gang on both"
            )
            return
        ours = self._acceptor.identity.as_list()
        if identity != ours:
            if isinstance(identity, list) and identity[:-1] == ours[:-1]:
                theirs = sentence(identity[-1])
                self._refuse(f"this gang runs attempt {ours[-1]}; node {node} belongs to attempt {theirs}")
            else:
                self._refuse(f"node {node} belongs to another gang than the one that listens here")
            return
        nonce = new_nonce()
        self._hello = hello
        self._transcript = Transcript(self._acceptor.secret, hello, nonce, self._acceptor.node)
        self._stream.decoder.limit = PROOF_BYTES
        self._stream.on_frame = self._on_proof
        self._asked_at = time.time()
        proof = self._transcript.proof("accepting")
        self._stream.send({"nonce": nonce, "node": self._acceptor.node, "proof": proof})

    def _on_proof(self, frame: Header, payload: bytes) -> None:
        now = time.time()
        clock, proof = frame.get("clock"), frame.get("proof")
        if not isinstance(clock, float) or self._transcript is None:
            self.drop()
            return
        if not self._transcript.proves("connecting", proof, clock):
            self._refuse("the proof of the gang's secret is wrong")
            return
        protect(self._stream, Seal(self._transcript.key("connecting")))
        hello = self._hello
        connection = Connection(
            self._stream,
            Seal(self._transcript.key("accepting")),
            hello["role"],
            hello["node"],
            hello["info"],
            self._address,
        )
        why = self._acceptor.check(connection.role, connection.node) if self._acceptor.check is not None else None
        if why is not None:
            connection.send_own({CHANNEL: "refused", "why": why})
            self._stream.close(flush=True, then=self._leave)
            return
        # The other clock was read between our two readings of ours.
        connection.offset = (self._asked_at + now) / 2 - clock
        connection.uncertainty = max(0.0, (now - self._asked_at) / 2)
        connection.send_own(
            {CHANNEL: "welcome", "offset": connection.offset, "uncertainty": connection.uncertainty},
        )
        self._leave()
        connection.take_over()
        self._acceptor.on_connection(connection)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, proto, _, name = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        where = f"{host or 'any address'} port {port}"
        raise OSError(error.errno, f"Cannot listen on {where}: {error.strerror}.") from error
    return sock


def _more_descriptors() -> bool:
    """Raise this process's own limit of open files to what it may be; whether that gave any more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True
