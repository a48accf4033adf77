"""Frames: the encoding of messages on a stream between the task, its guard and the other guards.

A frame is the length of the rest (4 bytes, big-endian), the length of the header (4 bytes), the header (a JSON object,
UTF-8) and the payload (any bytes).
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Header = dict[str, Any]

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of header and payload together that one frame may carry."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_LENGTHS = struct.Struct(">II")
_PREFIX = 4
_KEPT = 4096


class WireError(Exception):
    """What arrived is not a frame, or is a larger one than is allowed; the text says which."""


class Nonsense(WireError):
    """The other side sent what is no message of ours; the text says what is wrong with it."""


def encode(header: Header, payload: bytes = b"") -> bytes:
    """Write ``header`` and ``payload`` as one frame.

    Raises
    ------
    WireError
        When the two are more than :data:`MAX_FRAME` bytes.
    """
    text = _ENCODER.encode(header).encode()
    size = len(text) + len(payload)
    if size > MAX_FRAME:
        raise WireError(f"A message of {size} bytes is too large: {MAX_FRAME} bytes is the limit.")
    return b"".join((_LENGTHS.pack(size + 4, len(text)), text, payload))


class Decoder:
    """Cuts a stream of bytes into frames.

    ``limit`` is the most bytes of header and payload a frame may have. Where ``check`` is given, each frame is followed
    by ``trailer`` bytes, and ``check(frame, trailer)`` raises what it has against them before the frame is looked
    into. ``header_limit`` is the most bytes of the header alone, which ``parse`` turns into an object; ``text`` is the
    last small one as it came. All may be changed between two frames, in the middle of a :meth:`feed` too.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self.header_limit = MAX_FRAME
        self.parse: Callable[[bytes], Header] = _header
        self.text = b""
        self.trailer = 0
        self.check: Callable[[memoryview, memoryview], None] | None = None
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that have arrived of a frame that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Header, bytes]]:
        """Take ``data`` and give each frame that is complete with it.

        Raises
        ------
        WireError
            When the bytes are no frame, or the frame is larger than the limit. The stream is of no use then.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _PREFIX:
            length = int.from_bytes(buffer[:_PREFIX], "big")
            if length < 4 or length - 4 > self.limit:
                raise Nonsense(f"A frame announces {length} bytes, and {self.limit} is the limit here.")
            end = _PREFIX + length
            if len(buffer) < end + self.trailer:
                return
            with memoryview(buffer) as view:
                if self.check is not None:
                    with view[:end] as frame, view[end : end + self.trailer] as trailer:
                        self.check(frame, trailer)
                header_end = 8 + int.from_bytes(view[4:8], "big")
                if header_end > end:
                    raise Nonsense(f"A frame of {length} bytes announces a header of {header_end - 8} bytes.")
                if header_end - 8 > self.header_limit:
                    raise Nonsense(f"A header has {header_end - 8} bytes, and {self.header_limit} is the limit here.")
                text = bytes(view[8:header_end])
                payload = bytes(view[header_end:end])
            # Cheap: a bytearray only moves its start, and moves its bytes once in a while.
            del buffer[: end + self.trailer]
            self.text = text if len(text) <= _KEPT else b""
            yield self.parse(text), payload


def _header(text: bytes) -> Header:
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise Nonsense(f"A frame's header is not JSON ({error}).") from None
    if not isinstance(header, dict):
        raise Nonsense(f"A frame's header is a JSON {type(header).__name__}, not an object.")
    return header


def fault(error: OSError) -> str:
    """A short phrase for what a socket reported: "reset", "timed out", "refused" ..., else the system's own words."""
    if error.errno is None:
        return str(error)
    return _FAULTS.get(error.errno) or (error.strerror or str(error)).lower()


_FAULTS = {
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timed out",
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "no route to that host",
    errno.ENETUNREACH: "no route to that network",
    errno.EHOSTDOWN: "host is down",
    errno.ENETDOWN: "network is down",
}
