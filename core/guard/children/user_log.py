"""Writes to the task's own streams, Metaflow's log of it: the output of processes, and lines for the user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..debug_log import DebugLog

FINISH_S = 1.0
"""For lines that are under way when the guard ends; a reader that has stopped must not hold that up."""

READER_PATIENCE_S = 0.1
"""How long a line waits for the reader of the console to take those before it."""

_console_lock = threading.Lock()

_unfinished: set[int] = set()
"""Descriptors on which what was written last, as it came from a process, does not end its line."""


def write_all(fd: int, data: bytes, begins_line: bool = True) -> None:
    """Write to one of the task's own streams; one reader that has gone is not an error of ours.

    The last line goes alone, once what came before it has been read. Metaflow's runtime reads one line each time the
    pipe has something new, and a second line that came with it would wait there, unseen, until somebody prints again.

    Parameters
    ----------
    begins_line : bool
        Whether ``data`` begins a line: one that another process has left unfinished is ended before it.
    """
    last = data.rfind(b"\n", 0, len(data) - 1) + 1
    with contextlib.suppress(OSError), _console_lock:
        if begins_line:
            _end_line(fd)
        elif not data.endswith(b"\n"):
            _unfinished.add(fd)
        else:
            _unfinished.discard(fd)
        _put_lines(fd, data[:last])
        _wait_until_read(fd)
        _put(fd, data[last:])


def write_lines(fd: int, lines: list[bytes]) -> None:
    """Write whole lines, the last of them alone (:func:`write_all`)."""
    with contextlib.suppress(OSError), _console_lock:
        if len(lines) > 1:
            _end_line(fd)
        _put_lines(fd, b"".join(lines[:-1]))
    if lines:
        write_all(fd, lines[-1])


def _put_lines(fd: int, data: bytes) -> None:
    """Write whole lines in pieces that the kernel keeps whole, since the task itself writes to the same pipe."""
    start = 0
    while start < len(data):
        cut = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1
        if not cut:  # a line that no piece can hold
            cut = data.find(b"\n", start) + 1 or len(data)
        _put(fd, data[start:cut])
        start = cut


def _end_line(fd: int) -> None:
    """End the line that another process has left unfinished, as a progress bar or a prompt does."""
    if fd in _unfinished:
        _unfinished.discard(fd)
        _put(fd, b"\n")


def _put(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # user code made the stream, which it shares with us, non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def _wait_until_read(fd: int) -> None:
    """Wait until the pipe is empty, but not for a reader that is slow; the kernel has no event for it."""
    deadline = time.monotonic() + READER_PATIENCE_S
    with contextlib.suppress(OSError):  # not a pipe: nobody to wait for
        while int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder):
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)


class UserLog:
    """Writes to the descriptor ``fd``, each line on a thread: the log's reader may be stopped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._threads: list[threading.Thread] = []
        self.debug: DebugLog | None = None

    def say(self, text: str) -> None:
        if self.debug is not None:
            self.debug.write(f"said to the user: {text}")
        line = f"[gang] {text}\n".encode(errors="replace")
        thread = threading.Thread(target=write_all, args=(self._fd, line), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is left: as much as the reader takes at once
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if poll.poll(0):
                with contextlib.suppress(OSError):
                    os.write(self._fd, line[-select.PIPE_BUF :])
        else:
            self._threads.append(thread)

    def finish(self) -> None:
        """Wait for what is under way, for :data:`FINISH_S` each."""
        for thread in self._threads:
            thread.join(FINISH_S)
