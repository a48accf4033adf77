"""Reads the output of children to its end, and passes it on as bytes, as it comes.

One thread per stream reads a pipe and passes what it gets to a *sink*; a full pipe beyond slows the child down, as it
would without us, and never blocks the guard's loop. Nothing is decoded on the way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import sys
import termios
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .user_log import write_all, write_lines

if TYPE_CHECKING:

    class Sink(Protocol):
        """Where a pump leaves what it reads. ``write`` runs on the pump's thread; ``end`` once, after the last
        write.
        """

        def write(self, data: bytes) -> None: ...

        def end(self) -> None: ...


HELD_LIMIT = 1 << 20
"""Bytes of an unfinished line held back before it is passed on in pieces all the same."""

PROGRESS_PERIOD_S = 1.0
"""A progress bar redrawn with carriage returns is shown this often on the console."""

LINE_PATIENCE_S = 0.05
"""How long a pump waits for the rest of a line. Python without buffers, as Metaflow sets it, writes each argument of
``print()`` by itself, and another node's line would come between two of them.
"""

_READ_SIZE = 65536


class Raw:
    """Byte for byte, at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        write_all(self._fd, data, begins_line=False)

    def end(self) -> None:
        pass


class Labelled:
    """Each line with a label before it, whole lines only, so that streams never mix within one.

    A segment that ends in a carriage return is a progress bar's state. With ``progress_period`` it becomes a line of
    its own, at most one per period, and the last before a newline always: a reader of lines (Metaflow's runtime is one)
    would otherwise see nothing until the bar is full. Without it, carriage returns pass as they are.
    """

    def __init__(self, fd: int, label: str, progress_period: float | None = None) -> None:
        self._fd = fd
        self._label = label.encode()
        self._period = progress_period
        self._held = bytearray()
        self._shown_at = float("-inf")

    def relabel(self, label: str) -> None:
        """Have what is written from now on another label."""
        self._label = label.encode()

    def write(self, data: bytes) -> None:
        self._held += data
        out: list[bytes] = []
        start = 0
        while True:
            cut = self._next_terminator(start)
            if cut is None:
                break
            segment, start = bytes(self._held[start:cut]), cut
            out.append(self._render(segment))
        del self._held[:start]
        if len(self._held) > HELD_LIMIT:
            out.append(self._label + self._held + b"\n")
            self._held.clear()
        write_lines(self._fd, out)

    def _next_terminator(self, start: int) -> int | None:
        """Index behind the next line or progress segment that is complete."""
        newline = self._held.find(b"\n", start)
        carriage = self._held.find(b"\r", start, newline if newline >= 0 else len(self._held))
        if carriage < 0:
            return newline + 1 if newline >= 0 else None
        if carriage + 1 == len(self._held):
            return None  # it may be the first half of "\r\n"
        return carriage + (2 if self._held[carriage + 1 : carriage + 2] == b"\n" else 1)

    def _render(self, segment: bytes) -> bytes:
        if self._period is None or not segment.endswith(b"\r"):
            return self._label + segment
        if len(segment) == 1 or time.monotonic() - self._shown_at < self._period:
            return b""
        self._shown_at = time.monotonic()
        return self._label + segment[:-1] + b"\n"

    def end(self) -> None:
        rest = bytes(self._held) if self._period is None else self._held.rstrip(b"\r")
        if rest:
            write_all(self._fd, self._label + rest + b"\n")
        self._held.clear()


class Log:
    """A file with a line ``<UTC time> <line>`` for each line, from which the node's own Metaflow log is made.

    Where it cannot be written it ends, and ``on_fault`` is called once.
    """

    def __init__(self, path: str, on_fault: Callable[[OSError], None] = lambda error: None) -> None:
        self._on_fault = on_fault
        self._at_start = True
        self._file: BinaryIO | None = None
        try:
            self._file = open(path, "wb")  # noqa: SIM115 - closed by end()
        except OSError as error:  # no room on the disk, or no descriptor
            on_fault(error)

    def write(self, data: bytes) -> None:
        if self._file is None or self._file.closed:
            return
        try:
            self._write(self._file, data)
        except OSError as error:  # the disk is full: the process and the console go on
            self.end()
            self._on_fault(error)

    def _write(self, file: BinaryIO, data: bytes) -> None:
        stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f").encode() + b" "
        for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
            file.write(stamp + line if self._at_start else line)
            self._at_start = line.endswith(b"\n")
        file.flush()

    def end(self) -> None:
        with contextlib.suppress(OSError):  # what did not get written before does not now
            if self._file is not None:
                self._file.close()


class Pump:
    """Reads one stream of one child on a thread of its own until its end, into every sink."""

    def __init__(self, fd: int, sinks: list[Sink], on_end: Callable[[], None]) -> None:
        self.passed = 0
        """Bytes that every sink has."""
        self._fd = fd
        self._rest = b""
        self._taken = 0
        self._lock = threading.Lock()
        self._sinks = sinks
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)
        self._thread.start()

    def written(self) -> int:
        """Bytes that have been written into the pipe by now, those included that still wait in it."""
        with self._lock:
            if self._fd < 0:
                return self._taken
            waiting = fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4))
            return self._taken + int.from_bytes(waiting, sys.byteorder)

    def _read(self) -> bytes:
        data, self._rest = self._rest, b""
        if not data:
            # Not read at once: what is in this thread's hands, and not in the pipe any more, has to be counted.
            self._poll.poll()
            data = self._take()
        deadline = time.monotonic() + LINE_PATIENCE_S
        while data and not data.endswith((b"\n", b"\r")):
            if len(data) >= _READ_SIZE:
                # A process that writes without a pause: its last line goes with what follows.
                whole = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
                if whole or len(data) > HELD_LIMIT:
                    data, self._rest = data[: whole or None], data[whole:] if whole else b""
                    break
            left_ms = max(0, int(1000 * (deadline - time.monotonic())))
            more = self._take() if self._poll.poll(left_ms) else b""
            if not more:  # none in time, or its end, which the next read finds again
                break
            data += more
        return data

    def _take(self) -> bytes:
        with self._lock:
            data = os.read(self._fd, _READ_SIZE)
            self._taken += len(data)
            return data

    def _run(self) -> None:
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        try:
            while data := self._read():
                for sink in list(self._sinks):
                    try:
                        sink.write(data)
                    except Exception as error:
                        # Whatever one of them lacks, the process goes on, and the others have its output.
                        self._sinks.remove(sink)
                        print(
                            f"[gang] A part of the output is kept no more: {type(error).__name__}: {error}",
                            file=sys.stderr,
                        )
                self.passed += len(data)
        except OSError:
            pass
        finally:
            with self._lock:
                os.close(self._fd)
                self._fd = -1
            for sink in self._sinks:
                with contextlib.suppress(OSError, ValueError):
                    sink.end()
            self._on_end()
