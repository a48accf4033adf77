"""The accepting side of the channel: a listening socket, and the handshakes of new connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..loop.event_loop import Loop
from ..loop.framing import MAX_FRAME, Nonsense
from ..loop.limits import Complaint
from ..loop.stream import Stream
from ..loop.timeouts import tune
from ..loop.untrusted import integer, number, parse
from ..settings import settings
from .connection import (
    CHANNEL,
    LAST_NODE,
    PRE_AUTH_BYTES,
    PROOF_BYTES,
    PROTOCOL,
    ROLES,
    Connection,
    Identity,
    protect,
    sentence,
)
from .listener import BACKLOG, Listener
from .proof import Seal, Transcript, is_nonce, new_nonce
from .unproven import Place, Waiting

if TYPE_CHECKING:
    from ..loop.framing import Header

UNAUTHENTICATED_SOCKETS = 2048
"""How many sockets may be in their handshake at once; beyond that some are dropped, see :mod:`.unproven`. Each takes
some 5 kB.
"""


class Acceptor:
    """Listens on ``host``, and hands out each connection that has proved the secret.

    Nothing that comes over the network leaves a callback as an exception, neither here nor in what ``on_connection``
    and the connection's callbacks do: see :attr:`~.stream.Stream.on_fault`.

    Parameters
    ----------
    loop : Loop
        Where it runs.
    host : str
        Own IP address to listen on, IPv4 or IPv6; "" for all.
    secret : bytes
        The gang's secret, 16 bytes at least.
    identity : Identity
        The attempt of the gang; a connection of another one is refused, with a sentence.
    on_connection : callable
        Called with each :class:`Connection`; set its callbacks there.
    check : callable, optional
        ``check(role, node)``: a sentence why an authenticated connection is refused, or None.
    port : int
        0 for a free one.
    node : int
        Index of the accepting node, which the other side gets as its connection's ``node``.
    handshake_seconds, unauthenticated_sockets :
        The limits above.
    frame_bytes, header_bytes : int
        The most that a frame, and its header alone, may have once the secret is proved.
    say : callable
        Gets a line for the user when descriptors or memory run out.

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
        handshake_seconds: float | None = None,
        unauthenticated_sockets: int = UNAUTHENTICATED_SOCKETS,
        frame_bytes: int = MAX_FRAME,
        header_bytes: int = MAX_FRAME,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.loop = loop
        self.secret = secret
        self.identity = identity
        self.on_connection = on_connection
        self.check = check
        self.node = node
        self.frame_bytes = frame_bytes
        self.header_bytes = header_bytes
        self.waiting = Waiting(unauthenticated_sockets, handshake_seconds or settings().handshake_timeout)
        sock = _listen(host, port)
        name = sock.getsockname()
        self.address: str = name[0]
        self.port: int = name[1]
        complain = Complaint(say, f"node {node}", "which other nodes connect to")
        self._listener = Listener(loop, sock, self.waiting, self._begin, complain)

    @property
    def pending(self) -> int:
        """How many sockets are in their handshake."""
        return len(self.waiting)

    def close(self) -> None:
        """Accept no more connections, and drop those in their handshake. Connections that were handed out stay."""
        self._listener.close()

    def forget(self, place: Place) -> None:
        """A handshake is over, one way or the other: its place is free."""
        self._listener.leave(place)

    def _begin(self, sock: socket.socket, address: str) -> None:
        _Handshake(self, sock, address)


class _Handshake:
    """One socket on its way from accepted to authenticated."""

    def __init__(self, acceptor: Acceptor, sock: socket.socket, address: str) -> None:
        self._acceptor = acceptor
        self._address = address
        self._hello: Header = {}
        self._transcript: Transcript | None = None
        self._asked_at = 0.0
        self._stream = Stream(acceptor.loop, sock, limit=PRE_AUTH_BYTES - PROOF_BYTES)
        self._stream.decoder.parse = parse
        self._stream.on_frame = self._on_hello
        self._stream.on_close = lambda reason: self._leave()
        self._stream.on_fault = lambda error: self._leave()
        self._place = acceptor.waiting.enter(address, self._drop)

    def _drop(self, overdue: bool) -> bool:
        """End it silently; or, once it has been asked for its proof, with "busy", so that a node connects again."""
        if not self._stream.closed:
            moved = self._place.moved
            self._stream.read()  # the loop may not have come to it yet
            if self._stream.closed or self._stream.decoder.check is not None:
                return True
            if self._place.moved != moved and not overdue:
                return False
            if self._transcript is not None:
                seal, busy = Seal(self._transcript.key("accepting")), {CHANNEL: "busy"}
                Connection(self._stream, seal, "", 0, {}, "").send_own(busy)
        self._stream.close(flush=False)
        return True

    def _leave(self) -> None:
        self._acceptor.forget(self._place)

    def _refuse(self, why: str) -> None:
        # It keeps its place, and its time limit, until the sentence is out.
        self._stream.send({CHANNEL: "refused", "why": why})
        self._stream.close(flush=True, then=self._leave)

    def _on_hello(self, hello: Header, payload: bytes) -> None:
        role, node = hello.get("role"), integer(hello, "node", 0, LAST_NODE)
        if role not in ROLES or payload or not is_nonce(hello.get("nonce")) or not isinstance(hello.get("info"), dict):
            raise Nonsense("no hello of a gang")
        version, identity = hello.get("version"), hello.get("identity")
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
        self._transcript = Transcript(self._acceptor.secret, self._stream.decoder.text, nonce, self._acceptor.node)
        self._stream.decoder.limit = PROOF_BYTES
        self._stream.on_frame = self._on_proof
        self._place.goes_on()
        self._asked_at = time.time()
        proof = self._transcript.proof("accepting")
        self._stream.send({"nonce": nonce, "node": self._acceptor.node, "proof": proof})

    def _on_proof(self, frame: Header, payload: bytes) -> None:
        now = time.time()
        clock = number(frame, "clock", 0.0, 1e12)
        if self._transcript is None or payload:
            raise Nonsense("no proof of a gang")
        if not self._transcript.proves("connecting", frame.get("proof"), clock):
            self._refuse("the proof of the gang's secret is wrong")
            return
        acceptor = self._acceptor
        tune(self._stream.sock)  # now and not before: most of a crowd proves nothing
        seal = Seal(self._transcript.key("connecting"))
        protect(self._stream, seal, acceptor.frame_bytes, acceptor.header_bytes)
        hello = self._hello
        connection = Connection(
            self._stream,
            Seal(self._transcript.key("accepting")),
            hello["role"],
            hello["node"],
            hello["info"],
            self._address,
        )
        why = acceptor.check(connection.role, connection.node) if acceptor.check is not None else None
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
        acceptor.on_connection(connection)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, proto, _, name = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        where = f"{host or 'any address'} port {port}"
        raise OSError(error.errno, f"Cannot listen on {where}: {error.strerror}.") from error
    return sock
