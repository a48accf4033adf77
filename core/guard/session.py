"""What two guards share once they have proved the gang's secret to each other: identity, keys, the connection."""

from __future__ import annotations

import hmac
import json
import os
import socket
from collections.abc import Callable, Iterable

from .wire import MAX_FRAME, Stream, WireError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Any

    from .wire import Header

PROTOCOL = 1
"""Raised whenever two guards with different numbers could misunderstand each other."""

PRE_AUTH_BYTES = 4096
"""What a socket may send before it has proved the secret ..."""

PROOF_BYTES = 512
"""... and how much of that is for the proof itself."""

ROLES = ("member", "ring")

CHANNEL = "~"
"""The header key of the channel's own frames; no other frame may use it."""

_MAC_BYTES = 32
_SENTENCE = 400


class Identity:
    """Which attempt of which gang a guard belongs to. Immutable and comparable.

    (A dataclass would be shorter, but importing dataclasses takes the guard 8 ms of its 15.)
    """

    __slots__ = ("attempt", "control_task", "flow", "run", "step")

    flow: str
    run: str
    step: str
    control_task: str
    attempt: int

    def __init__(self, flow: str, run: str, step: str, control_task: str, attempt: int) -> None:
        put = object.__setattr__
        put(self, "flow", flow)
        put(self, "run", run)
        put(self, "step", step)
        put(self, "control_task", control_task)
        put(self, "attempt", attempt)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"An Identity does not change; {name} cannot be set.")

    def as_list(self) -> list[str | int]:
        """The fields in their order, as they travel and are signed."""
        return [self.flow, self.run, self.step, self.control_task, self.attempt]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.as_list() == other.as_list()

    def __hash__(self) -> int:
        return hash(tuple(self.as_list()))

    def __repr__(self) -> str:
        return f"Identity({', '.join(repr(value) for value in self.as_list())})"


class Transcript:
    """What both sides of a handshake said, and what can be derived from it with the secret."""

    def __init__(self, secret: bytes, hello: Header, acceptor_nonce: str, acceptor_node: int) -> None:
        if len(secret) < 16:
            raise ValueError(f"A gang's secret has at least 16 bytes; this one has {len(secret)}.")
        self._secret = secret
        said = [hello, acceptor_nonce, acceptor_node]
        self._text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    def proof(self, side: str, clock: float = 0.0) -> str:
        """What ``side`` ("accepting" or "connecting") shows to prove that it knows the secret."""
        return self._digest(f"gang proof {side} {clock!r} ").hex()

    def key(self, side: str) -> bytes:
        """The key for the frames that ``side`` sends."""
        return self._digest(f"gang frames {side} ")

    def proves(self, side: str, proof: object, clock: float = 0.0) -> bool:
        """Whether ``proof``, which may be anything, is what ``side`` has to show."""
        shown = proof.encode(errors="replace") if isinstance(proof, str) else b""
        return hmac.compare_digest(shown, self.proof(side, clock).encode())

    def _digest(self, label: str) -> bytes:
        return hmac.digest(self._secret, label.encode() + self._text, "sha256")


class Seal:
    """One direction's key and counter."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod="sha256")
        self._count = 0

    def mac(self, frame: bytes | memoryview) -> bytes:
        """The MAC of the next frame of this direction."""
        mac = self._keyed.copy()
        mac.update(self._count.to_bytes(8, "big"))
        mac.update(frame)
        self._count += 1
        return mac.digest()

    def check(self, frame: memoryview, trailer: memoryview) -> None:
        """Raise :class:`WireError` unless ``trailer`` is the MAC of the next frame."""
        if not hmac.compare_digest(self.mac(frame), trailer):
            raise WireError("bad MAC")


class Connection:
    """An authenticated connection to another guard.

    Attributes
    ----------
    role : str
        "member" or "ring", as the connecting side said.
    node : int
        Index of the node at the other end.
    info : dict
        What the connecting side's hello carried.
    address : str
        IP address of the other end.
    offset : float
        Seconds by which the accepting side's clock (``time.time()``) is ahead of the connecting side's; the same number
        at both ends.
    uncertainty : float
        Seconds by which ``offset`` may be wrong: half the round trip.
    on_frame : callable
        ``on_frame(connection, header, payload)``, for each frame. Set it where the connection is handed out.
    on_close : callable
        ``on_close(connection, reason)``, once, when the connection has ended without :meth:`close` or :meth:`abort`
        on this side. The reason is "" when the other side said goodbye, else a short phrase: "closed without a word",
        "reset", "timed out", "bad MAC" ...
    """

    def __init__(self, stream: Stream, seal: Seal, role: str, node: int, info: dict[str, Any], address: str) -> None:
        self.role = role
        self.node = node
        self.info = info
        self.address = address
        self.offset = 0.0
        self.uncertainty = 0.0
        self.on_frame: Callable[[Connection, dict[str, Any], bytes], None] = _drop_frame
        self.on_close: Callable[[Connection, str], None] = _drop_reason
        self._stream = stream
        self._seal = seal

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, or was closed on this side."""
        return self._stream.closed

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame; does nothing once the connection has ended.

        Raises
        ------
        WireError
            When header and payload are more than 16 MiB.
        """
        if CHANNEL in header:
            raise ValueError(f"The header key {CHANNEL!r} is the channel's own.")
        self.send_own(header, payload)

    def take_over(self) -> None:
        """Receive what arrives on the stream from now on, the handshake being over."""
        self._stream.on_frame = self._on_frame
        self._stream.on_close = self._on_close

    def send_own(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send a frame of the channel itself."""
        self.send_frame(encode(header, payload))

    def send_frame(self, frame: bytes) -> None:
        """Send a frame that is encoded already."""
        if not self._stream.closed:
            self._stream.send_bytes(frame, self._seal.mac(frame))

    def close(self, then: Callable[[], None] | None = None) -> None:
        """Say goodbye after what was sent, and close; ``on_close`` is called at the other end only.

        ``then`` is called when the socket is closed, in 2 s at most.
        """
        self.send_own({CHANNEL: "bye"})
        self._stream.close(flush=True, then=then)

    def abort(self) -> None:
        """Close at once, without a word."""
        self._stream.close(flush=False)

    def _on_frame(self, header: dict[str, Any], payload: bytes) -> None:
        if header.get(CHANNEL) == "bye":
            self._stream.close(flush=False)
            self.on_close(self, "")
        elif CHANNEL not in header:
            self.on_frame(self, header, payload)

    def _on_close(self, reason: str) -> None:
        self.on_close(self, reason)


def send_to_all(connections: Iterable[Connection], header: dict[str, Any], payload: bytes = b"") -> None:
    """Send one frame on many connections, as :meth:`Connection.send` does, but encode it once.

    A roster of 1,024 nodes takes some milliseconds to encode, and a thousand times that is seconds.
    """
    if CHANNEL in header:
        raise ValueError(f"The header key {CHANNEL!r} is the channel's own.")
    frame = encode(header, payload)
    for connection in connections:
        connection.send_frame(frame)


def protect(stream: Stream, incoming: Seal) -> None:
    """Expect a MAC behind every frame from now on, and take frames of full size."""
    stream.decoder.trailer = _MAC_BYTES
    stream.decoder.check = incoming.check
    stream.decoder.limit = MAX_FRAME


def tune(sock: socket.socket) -> None:
    """Make the kernel watch the connection: a lost host is noticed within 10 s, sent data or not."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Keep-alive watches an idle connection, TCP_USER_TIMEOUT one with data under way; neither does the other's work.
    for name, value in (("KEEPIDLE", 2), ("KEEPINTVL", 2), ("KEEPCNT", 3), ("USER_TIMEOUT", 8000)):
        option = getattr(socket, f"TCP_{name}", None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def new_nonce() -> str:
    return os.urandom(32).hex()


def is_nonce(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def peer_ip(name: tuple[Any, ...]) -> str:
    """The IP address in what ``getpeername`` gave, an IPv4 one always as such."""
    return str(name[0]).removeprefix("::ffff:")


def sentence(value: object) -> str:
    """What the other side says, cut and cleaned, since it goes to a terminal and is not authenticated."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[:_SENTENCE]).strip()
    return text or "no reason was given"


def _drop_frame(connection: Connection, header: dict[str, Any], payload: bytes) -> None:
    pass


def _drop_reason(connection: Connection, reason: str) -> None:
    pass
