"""Frames over a socket that never blocks: one end of a connection in the guard's loop."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .event_loop import Loop, Timer
from .framing import MAX_FRAME, Decoder, Nonsense, WireError, encode, fault

if TYPE_CHECKING:
    from .framing import Header

LINGER_SECONDS = 2.0
"""How long an orderly close waits for the other side to take what was sent."""

FRAMES_AT_ONCE = 64
"""Frames of one stream that are delivered before the loop's other callbacks have their turn: a stream that sends
without a pause must not hold up the others."""

MAX_UNSENT_BYTES = 4 * MAX_FRAME
MAX_UNSENT_FRAMES = 20_000
"""What may wait for a connection whose other side does not read; more ends it (see :attr:`Stream.on_fault`)."""

_READ_SIZE = 256 * 1024
_IOV = 64


class Stream:
    """Frames over a socket that never blocks.

    ``on_frame(header, payload)`` is called for each frame, ``on_close(reason)`` once when the stream has ended without
    :meth:`close`, with a short phrase: "closed without a word", "reset", "timed out", or what the frame's fault was.
    Both must be set before the loop runs on, and may be changed at any time. Neither is called inside :meth:`send`.
    The stream owns ``sock`` and closes it.

    Where ``on_fault`` is set, as on every connection between machines, no exception of these callbacks leaves them: the
    stream reads no more, ``on_fault(error)`` is called instead of ``on_close``, and may send a last frame and close;
    then the stream is closed. It is also called where the other side does not read what it is sent.
    """

    def __init__(self, loop: Loop, sock: socket.socket, limit: int = MAX_FRAME) -> None:
        self.decoder = Decoder(limit)
        self.on_frame: Callable[[Header, bytes], None] = _drop_frame
        self.on_close: Callable[[str], None] = _drop_reason
        self.on_fault: Callable[[Exception], None] | None = None
        self._loop = loop
        self._sock = sock
        self._queue: deque[memoryview] = deque()
        self._unsent = 0
        self._write_fault = ""
        self._faulty = False
        self._inside = False  # a callback of the loop
        self._closing = False
        self._closed = False
        self._shut = False
        self._linger: Timer | None = None
        self._then: list[Callable[[], None]] = []
        self.received_at = time.monotonic()
        sock.setblocking(False)
        loop.add_reader(sock, self._guarded(self._read))

    @property
    def closed(self) -> bool:
        """Whether the stream has ended, or :meth:`close` was called: nothing more is delivered."""
        return self._closing or self._closed

    @property
    def sock(self) -> socket.socket:
        """For its options; the stream alone sends and receives."""
        return self._sock

    @property
    def queued(self) -> int:
        """Bytes that were given to :meth:`send` and that the kernel has not taken yet."""
        return self._unsent

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Send one frame. Raises :class:`WireError` when it is too large; does nothing once the stream has ended."""
        self.send_bytes(encode(header, payload))

    def send_bytes(self, *parts: bytes) -> None:
        """Send ``parts``, which are whole frames, in this order, as soon as the socket takes them."""
        if self.closed or self._write_fault:
            return
        idle = not self._queue
        for part in parts:
            if part:
                self._queue.append(memoryview(part))
                self._unsent += len(part)
        if idle:
            self._write()
        elif self.on_fault is not None and (self._unsent > MAX_UNSENT_BYTES or len(self._queue) > MAX_UNSENT_FRAMES):
            self._forget_unsent()
            self._write_fault = "does not read what it is sent"
            self._loop.call_later(0, self._guarded(self._end_unread))

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
            self._linger = self._loop.call_later(LINGER_SECONDS, self._guarded(self._finish))
            if not self._queue:
                self._shutdown()

    def read(self) -> None:
        """Deliver what has arrived, without waiting for the loop."""
        if not self._closed:
            self._guarded(self._read)()

    def _guarded(self, callback: Callable[[], None]) -> Callable[[], None]:
        """``callback`` in such a way that nothing which it raises leaves it, where :attr:`on_fault` takes it."""

        def call() -> None:
            outermost, self._inside = not self._inside, True
            try:
                callback()
            except Exception as error:
                if self.on_fault is None:
                    raise
                self._then.clear()  # one of them may be what has raised
                self._faulty = True
                self.on_fault(error)
                if not self._closing:
                    self._finish()
            finally:
                if outermost:
                    self._inside = False
                    if self._closed:
                        self._let_go()

        return call

    def _read(self) -> None:
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
        self.received_at = time.monotonic()
        if self._closing or self._faulty:
            # Read and dropped, because closing a socket with unread data would reset it and lose what we sent last.
            return
        self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        """Deliver the frames that are complete with ``data``, at most so many; the rest after the others' turn."""
        count = 0
        frames = self.decoder.feed(data)
        while True:
            try:
                header, payload = next(frames)
            except StopIteration:
                return
            except WireError as error:
                if isinstance(error, Nonsense) and self.on_fault is not None:
                    raise
                self._end(str(error))
                return
            try:
                self.on_frame(header, payload)
            except WireError as error:
                if self.on_fault is not None:
                    raise
                self._end(str(error))
            if self.closed:
                return
            count += 1
            if count == FRAMES_AT_ONCE:
                self._loop.remove_reader(self._sock)
                self._loop.call_later(0, self._guarded(self._go_on))
                return

    def _go_on(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._guarded(self._read))
            if not self._closing and not self._faulty:
                self._deliver(b"")

    def _write(self) -> None:
        while self._queue:
            parts = [self._queue[i] for i in range(min(_IOV, len(self._queue)))]
            try:
                sent = self._sock.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._guarded(self._write))
                return
            except OSError as error:
                # Not the end yet: the other side's last frames may wait to be read, and they say more than the error.
                self._write_fault = fault(error)
                self._forget_unsent()
                break
            self._unsent -= sent
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

    def _end_unread(self) -> None:
        if not self._closed:
            raise WireError(self._write_fault)

    def _end(self, reason: str) -> None:
        tell, on_close = not self.closed, self.on_close
        self._finish()
        if tell:
            on_close(reason)

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._linger is not None:
            self._linger.cancel()
        self._forget_unsent()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._tell_closed()
        if not self._inside:
            self._let_go()

    def _let_go(self) -> None:
        """Forget the callbacks: whose they are has this stream in turn, and of thousands that come and go the memory
        would wait for Python's search for such circles."""
        self.on_frame, self.on_close = _drop_frame, _drop_reason
        self.on_fault = None if self.on_fault is None else _drop_fault

    def _forget_unsent(self) -> None:
        self._queue.clear()
        self._unsent = 0

    def _tell_closed(self) -> None:
        calls, self._then = self._then, []
        for call in calls:
            call()


def _drop_frame(header: Header, payload: bytes) -> None:
    pass


def _drop_reason(reason: str) -> None:
    pass


def _drop_fault(error: Exception) -> None:
    pass
