"""The connection between two guards that have proved the gang's secret to each other, and the gang's identity."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..loop.framing import MAX_FRAME, Nonsense, WireError, encode
from ..loop.stream import Stream
from ..loop.untrusted import parse, shown
from .proof import MAC_BYTES, Seal

if TYPE_CHECKING:
    from ..loop.framing import Header

PROTOCOL = 4
"""Raised whenever two guards with different numbers could misunderstand each other."""

PRE_AUTH_BYTES = 4096
"""What a socket may send before it has proved the secret ..."""

PROOF_BYTES = 512
"""... and how much of that is for the proof itself."""

ROLES = ("member", "ring")

LAST_NODE = 1 << 20
"""No node has a larger index."""

CHANNEL = "~"
"""The header key of the channel's own frames; no other frame may use it."""

PACKED_BYTES = 16 * 1024
"""Larger messages to all travel compressed: every byte is hashed, sent and hashed again for each node, and the list of
4,096 nodes has 0.4 MB."""

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


class Connection:
    """An authenticated connection to another guard.

    Attributes
    ----------
    role : str
        "member" or "ring", as the connecting side's hello has it.
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
        on this side. The reason is "" when the other side closed in order, else a short phrase: "closed without a
        word", "reset", "timed out", "bad MAC" ...
    on_fault : callable
        ``on_fault(connection, error)``, once, when the connection was ended because of what it brought, or because the
        other side does not read: a :class:`~.framing.WireError`, or whatever ``on_frame`` or ``on_close`` raised. Where
        it is not set, that is an ``on_close`` with a sentence.
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
        self.on_fault: Callable[[Connection, Exception], None] = _close_by_fault
        self._stream = stream
        self._seal = seal

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, or was closed on this side."""
        return self._stream.closed

    @property
    def received_at(self) -> float:
        """When the last bytes came, by ``time.monotonic()``."""
        return self._stream.received_at

    @property
    def sock(self) -> socket.socket:
        """For asking the kernel; not for sending or receiving."""
        return self._stream.sock

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
        self._stream.on_fault = lambda error: self.on_fault(self, error)

    def send_own(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send a frame of the channel itself."""
        self.send_frame(encode(header, payload))

    def send_frame(self, frame: bytes) -> None:
        """Send a frame that is encoded already."""
        if not self._stream.closed:
            self._stream.send_bytes(frame, self._seal.mac(frame))

    def close(self, then: Callable[[], None] | None = None) -> None:
        """Close after what was sent; ``on_close`` is called at the other end only.

        ``then`` is called when the socket is closed, in 2 s at most.
        """
        self.send_own({CHANNEL: "bye"})
        self._stream.close(flush=True, then=then)

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._stream.close(flush=False)

    def _on_frame(self, header: dict[str, Any], payload: bytes) -> None:
        if header.get(CHANNEL) == "bye":
            self._stream.close(flush=False)
            self.on_close(self, "")
        elif header.get(CHANNEL) == "packed":
            self.on_frame(self, _unpacked(payload), b"")
        elif CHANNEL not in header:
            self.on_frame(self, header, payload)
        else:
            raise Nonsense(f"{CHANNEL!r} is {shown(header[CHANNEL])}, which the channel does not know")

    def _on_close(self, reason: str) -> None:
        self.on_close(self, reason)


def send_to_all(connections: Iterable[Connection], header: dict[str, Any], payload: bytes = b"") -> None:
    """Send one frame on many connections, as :meth:`Connection.send` does, but encode it once.

    A roster of 1,024 nodes takes some milliseconds to encode, and a thousand times that is seconds.
    """
    if CHANNEL in header:
        raise ValueError(f"The header key {CHANNEL!r} is the channel's own.")
    frame = encode(header, payload)
    if not payload and len(frame) > PACKED_BYTES:
        import zlib

        frame = encode({CHANNEL: "packed"}, zlib.compress(frame[8:], 1))
    for connection in connections:
        connection.send_frame(frame)


def _unpacked(data: bytes) -> Header:
    import zlib

    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_FRAME)
    except zlib.error as error:
        raise Nonsense(f"A compressed message is none ({error}).") from None
    if not unpacker.eof:
        raise Nonsense(f"A compressed message has more than {MAX_FRAME} bytes, or not all of them.")
    return parse(text)


def protect(stream: Stream, incoming: Seal, limit: int = MAX_FRAME, header_limit: int = MAX_FRAME) -> None:
    """Expect a MAC behind every frame from now on, and take frames of at most ``limit`` bytes."""
    stream.decoder.trailer = MAC_BYTES
    stream.decoder.check = incoming.check
    stream.decoder.limit = limit
    stream.decoder.header_limit = header_limit


def peer_ip(name: tuple[Any, ...]) -> str:
    """The IP address in what ``getpeername`` gave, an IPv4 one always as such."""
    return str(name[0]).removeprefix("::ffff:")


def sentence(value: object) -> str:
    """Text of the other side, cut and cleaned, since it goes to a terminal and is not authenticated."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[:_SENTENCE]).strip()
    return text or "no reason was given"


def _drop_frame(connection: Connection, header: dict[str, Any], payload: bytes) -> None:
    pass


def _drop_reason(connection: Connection, reason: str) -> None:
    pass


def _close_by_fault(connection: Connection, error: Exception) -> None:
    connection.on_close(connection, cannot_understand(error))


def cannot_understand(error: Exception) -> str:
    """A clause for what :attr:`Connection.on_fault` is given. A fault of our own is named as such."""
    if isinstance(error, Nonsense):
        return f"sent what this gang cannot understand: {str(error).rstrip('.')}"
    if isinstance(error, WireError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f", {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
    return (
        f"sent what a guard failed over ({type(error).__name__}: {error}{where}). This is a fault of metaflow-gang; "
        "please report it"
    )
