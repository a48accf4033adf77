"""Frames: how the task, its guard and the other guards write messages on a stream.

A frame is the length of the rest (4 bytes, big-endian), the length of the header (4 bytes), the header (a JSON object,
UTF-8) and the payload (any bytes).
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator

from .loop import Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Any

    Header = dict[str, Any]

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of header and payload together that one frame may carry."""

LINGER_SECONDS = 2.0
"""How long an orderly close waits for the other side to take what was sent."""

_LENGTHS = struct.Struct(">II")
_PREFIX = 4
_READ_SIZE = 256 * 1024
_IOV = 64


class WireError(Exception):
    """What arrived is not a frame, or is a larger one than is allowed; the message says which."""


def encode(header: Header, payload: bytes = b"") -> bytes:
    """Write ``header`` and ``payload`` as one frame.

    Raises
    ------
    WireError
        When the two are more than :data:`MAX_FRAME` bytes.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    size = len(text) + len(payload)
    if size > MAX_FRAME:
        raise WireError(f"A message of {size} bytes is too large: {MAX_FRAME} bytes is the limit.")
    return b"".join((_LENGTHS.pack(size + 4, len(text)), text, payload))


class Decoder:
    """Cuts a stream of bytes into frames.

    ``limit`` is the most bytes of header and payload a frame may have. Where ``check`` is given, each frame is followed
    by ``trailer`` bytes, and ``check(frame, trailer)`` raises what it has against them before the frame is looked
    into. The three may be changed between two frames, in the middle of a :meth:`feed` too.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
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
                raise WireError(f"A frame announces {length} bytes, and {self.limit} is the limit here.")
            end = _PREFIX + length
            if len(buffer) < end + self.trailer:
                return
            with memoryview(buffer) as view:
                if self.check is not None:
                    with view[:end] as frame, view[end : end + self.trailer] as trailer:
                        self.check(frame, trailer)
                header_end = 8 + int.from_bytes(view[4:8], "big")
                if header_end > end:
                    raise WireError(f"A frame of {length} bytes announces a header of {header_end - 8} bytes.")
                text = bytes(view[8:header_end])
                payload = bytes(view[header_end:end])
            # Cheap: a bytearray only moves its start, and moves its bytes once in a while.
            del buffer[: end + self.trailer]
            yield _header(text), payload


def _header(text: bytes) -> Header:
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"A frame's header is not JSON ({error}).") from None
    if not isinstance(header, dict):
        raise WireError(f"A frame's header is a JSON {type(header).__name__}, not an object.")
    return header


class Stream:
    """Frames over a socket that never blocks.

    ``on_frame(header, payload)`` is called for each frame, ``on_close(reason)`` once when the stream has ended without
    :meth:`close`, with a short phrase: "closed without a word", "reset", "timed out", or what the frame's fault was.
    Both must be set before the loop runs on, and may be changed at any time. Neither is called inside :meth:`send`.
    The stream owns ``sock`` and closes it.
    """

    def __init__(self, loop: Loop, sock: socket.socket, limit: int = MAX_FRAME) -> None:
        self.decoder = Decoder(limit)
        self.on_frame: Callable[[Header, bytes], None] = _drop_frame
        self.on_close: Callable[[str], None] = _drop_reason
        self._loop = loop
        self._sock = sock
        self._queue: deque[memoryview] = deque()
        self._write_fault = ""
        self._closing = False
        self._closed = False
        self._shut = False
        self._linger: Timer | None = None
        self._then: list[Callable[[], None]] = []
        sock.setblocking(False)
        loop.add_reader(sock, self._on_readable)

    @property
    def closed(self) -> bool:
        """Whether the stream has ended, or :meth:`close` was called: nothing more is delivered."""
        return self._closing or self._closed

    @property
    def queued(self) -> int:
        """Bytes that were given to :meth:`send` and that the kernel has not taken yet."""
        return sum(len(part) for part in self._queue)

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Send one frame. Raises :class:`WireError` when it is too large; does nothing once the stream has ended."""
        self.send_bytes(encode(header, payload))

    def send_bytes(self, *parts: bytes) -> None:
        """Send ``parts``, which are whole frames, in this order, as soon as the socket takes them."""
        if self.closed or self._write_fault:
            return
        idle = not self._queue
        self._queue.extend(memoryview(part) for part in parts if part)
        if idle:
            self._write()

    def close(self, flush: bool = True, then: Callable[[], None] | None = None) -> None:
        """End the stream from this side; ``on_close`` is not called any more.

        With ``flush`` what was sent goes out first, for at most :data:`LINGER_SECONDS`; without, it is dropped.
        ``then`` is called when the socket is closed (at once, where it is already).
        """
        if then is not None:
            self._then.append(then)
        if self._closed:
            self._tell_closed()
            return
        if not flush or self._write_fault:
            self._finish()
        elif not self._closing:
            self._closing = True
            self._linger = self._loop.call_later(LINGER_SECONDS, self._finish)
            if not self._queue:
                self._shutdown()

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(min(_READ_SIZE, self.decoder.limit + 8))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(self._write_fault or fault(error))
            return
        if not data:
            self._end(self._write_fault or "closed without a word")
            return
        if self._closing:
            # Read and dropped, because closing a socket with unread data would reset it and lose what we sent last.
            return
        try:
            for header, payload in self.decoder.feed(data):
                self.on_frame(header, payload)
                if self.closed:
                    return
        except WireError as error:
            self._end(str(error))

    def _on_writable(self) -> None:
        self._write()

    def _write(self) -> None:
        while self._queue:
            parts = [self._queue[i] for i in range(min(_IOV, len(self._queue)))]
            try:
                sent = self._sock.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._on_writable)
                return
            except OSError as error:
                # Not the end yet: the other side's last frames may wait to be read, and they say more than the error.
                self._write_fault = fault(error)
                self._queue.clear()
                break
            while sent:
                first = self._queue[0]
                if len(first) <= sent:
                    sent -= len(first)
                    self._queue.popleft()
                else:
                    self._queue[0] = first[sent:]
                    sent = 0
        self._loop.remove_writer(self._sock)
        if self._closing:
            self._shutdown()

    def _shutdown(self) -> None:
        if not self._shut:
            self._shut = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._finish()

    def _end(self, reason: str) -> None:
        tell = not self.closed
        self._finish()
        if tell:
            self.on_close(reason)

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._linger is not None:
            self._linger.cancel()
        self._queue.clear()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._tell_closed()

    def _tell_closed(self) -> None:
        calls, self._then = self._then, []
        for call in calls:
            call()


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
}


def _drop_frame(header: Header, payload: bytes) -> None:
    pass


def _drop_reason(reason: str) -> None:
    pass
