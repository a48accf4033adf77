"""A command's streams over one connection: the frames of :mod:`.client` and :mod:`.server`, and how they wait.

OpenSSL lets one thread at a time into a connection, so one thread at each end does all reading and writing, and waits
for its descriptors together. A sender may have :data:`WINDOW` bytes of each stream under way that the receiver has not
passed on. So both ends read at all times: that the other side has gone is seen while a slow reader holds up the data,
and the kernel, which gives up a connection whose other end does not read for a minute, does not take one for a lost
host.
"""

from __future__ import annotations

import os
import select
import ssl
import stat
from collections import deque
from collections.abc import Iterator

from ..tls.link import BulkError, Link

STDIN, STDOUT, STDERR = 0, 1, 2
"""Kinds of frames: data of a stream. An empty frame ends the stream."""

TAKEN, COMMAND, ENDED, REFUSED = 3, 4, 5, 6
"""Kinds of frames: how much of a stream was passed on; what to run; its exit code; why it is not run."""

WINDOW = 64 * 1024
"""Bytes of one stream that may be under way: about what the kernel takes for a caller that is stopped."""

PIECE = 16 * 1024
"""Bytes of a stream in one frame, at most."""

LONGEST_COMMAND = 128 * 1024
"""The kernel takes no longer argument."""

_PREFIX = 5


class Exchange:
    """Frames over ``link``, without ever blocking. Only one thread may use it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._sock = link._sock  # what a link offers waits
        self._unsent: deque[bytes] = deque()
        self._arrived = bytearray()
        self._fault: BulkError | None = None
        link.timeout(0.0)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def send(self, kind: int, data: bytes = b"") -> None:
        """Send a frame with the next :meth:`transfer`."""
        self._unsent.append(bytes((kind,)) + len(data).to_bytes(4, "big") + data)

    def transfer(self) -> Iterator[tuple[int, bytes]]:
        """Send and receive what is possible at once; the frames that arrived.

        Raises
        ------
        BulkError
            The connection is over; every frame that came before that has been given.
        """
        if self._fault is None:
            self._write()
        if self._fault is None:
            self._read()
        while (frame := self._next()) is not None:
            yield frame
        if self._fault is not None:
            raise self._fault

    def _write(self) -> None:
        try:
            while self._unsent:
                # After "want write" OpenSSL must be given the very same bytes again: so it gets the frame as a whole.
                sent = self._sock.send(self._unsent[0])
                if sent == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][sent:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except (OSError, ValueError):
            self._unsent.clear()  # the other side's last frame may wait to be read, and explains more than this error

    def _read(self) -> None:
        try:
            while data := self._sock.recv(2 * PIECE):
                self._arrived += data
            self._fault = BulkError(f"{self._link._peer} closed the connection too early.")
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except (OSError, ValueError) as error:
            self._fault = self._link._broken(error)

    def _next(self) -> tuple[int, bytes] | None:
        if len(self._arrived) < _PREFIX:
            return None
        end = _PREFIX + int.from_bytes(self._arrived[1:_PREFIX], "big")
        if end > _PREFIX + LONGEST_COMMAND:
            raise BulkError(f"{self._link._peer} announces a frame of {end - _PREFIX} bytes.")
        if len(self._arrived) < end:
            return None
        kind, data = self._arrived[0], bytes(self._arrived[_PREFIX:end])
        del self._arrived[:end]
        return kind, data


class Outlet:
    """A stream's way from the connection into the descriptor ``fd``, whose reader may be slow, or gone."""

    def __init__(self, exchange: Exchange, stream: int, fd: int) -> None:
        self.fd = fd
        self._exchange, self._stream = exchange, stream
        self._held = bytearray()
        self._ended = False
        self._unreported = 0
        # Of a pipe that is ready the kernel reports only that so much fits. The descriptor is the user's too, and must
        # not be made one that does not wait.
        waits = os.get_blocking(fd) and not stat.S_ISREG(os.fstat(fd).st_mode)
        self._piece = select.PIPE_BUF if waits else PIECE

    @property
    def waiting(self) -> bool:
        """Whether there is something to write."""
        return bool(self._held)

    @property
    def over(self) -> bool:
        """Whether the stream has ended and all of it is written."""
        return self._ended and not self._held

    def put(self, data: bytes) -> None:
        """The next bytes; none is the end."""
        self._held += data
        self._ended |= not data
        if len(self._held) > WINDOW:
            raise BulkError("The other side sent more than it may.")

    def write(self) -> None:
        """Write a piece; call it when the descriptor is ready. Raises OSError where its reader has gone."""
        try:
            written = os.write(self.fd, self._held[: self._piece])
        except BlockingIOError:
            return
        del self._held[:written]
        self._unreported += written
        if self._unreported >= WINDOW // 4:
            self._exchange.send(TAKEN, bytes((self._stream,)) + self._unreported.to_bytes(4, "big"))
            self._unreported = 0


def taken(data: bytes) -> tuple[int, int]:
    """The stream and the number of bytes of a :data:`TAKEN` frame."""
    if len(data) != _PREFIX:
        raise BulkError("A frame has the wrong size.")
    return data[0], int.from_bytes(data[1:], "big")
