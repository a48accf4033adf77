"""Output of tasks in the run's process: every line is shown when it arrives, and a gang that waits shows for how long.

Metaflow's runtime reads one line of a task's output whenever the pipe has data. Further lines stay in a buffer until
the task prints again (Metaflow's issue #166): the last lines before a long computation are missing from the console,
and the step seems to hang.

While nodes are missing, node 0's guard names them after 5 s, 10 s, 20 s and so on. On a terminal such a line goes on
counting in its place until something else is printed; in a file there is one line each time.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from io import BufferedReader
from typing import Any, TextIO

from ..exceptions import MetaflowChanged
from ..logs import say
from ..metaflow_compat.runs import output_of, replace_line_reader

TICK_S = 1.0

_WAITING = re.compile(r"^(?P<head>.*\[gang\] )(?P<text>.* waiting for .* for )(?P<seconds>\d+) s\.")
"""What core/guard/coordinator/joining.py says, as a task's line on the console."""

_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Colours and the like, which take no column."""

_installed = False


def show_lines_at_once() -> None:
    """Have the runtime show all lines that it has read, once for the process."""
    global _installed
    if not _installed:
        _installed = True
        try:
            replace_line_reader(all_lines)
        except MetaflowChanged as error:  # lines come later, and all of them
            say(str(error))
        if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            line = WaitingLine(sys.stdout)
            if sys.stderr.isatty():
                line.heed(sys.stderr)


def all_lines(read_line: Callable[[Any, int], bool]) -> Callable[[Any, int], bool]:
    """Metaflow's reader of one line, made to go on until no whole line is buffered any more."""

    @wraps(read_line)
    def read_lines(worker: Any, fd: int) -> bool:
        has_read = read_line(worker, fd)
        reader = output_of(worker, fd)
        if reader is not None:
            # As many as there are now: others wait for their turn while this task prints on and on.
            for _ in range(buffered_lines(reader)):
                read_line(worker, fd)
        return has_read

    return read_lines


def buffered_lines(reader: BufferedReader) -> int:
    """How many whole lines can be read of a pipe without waiting; of what has not been read, at most a buffer full."""
    fd = reader.fileno()
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    # Where the buffer is empty, peek would wait for more.
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        return reader.peek().count(b"\n")
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


class WaitingLine:
    """The line of a gang that waits for nodes, counting in its place while it is the last line on the terminal.

    Parameters
    ----------
    terminal : TextIO
        All that is written to it from now on is looked at.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal, self._write = terminal, terminal.write
        self._lock = threading.RLock()
        self._begun = ""  # of the line that is being written
        self._shown: re.Match[str] | None = None
        """The last line, where that is one of a gang that waits, ..."""
        self._at = 0.0
        """... and when it came."""
        self._rows = 0
        self._thread: threading.Thread | None = None
        self.heed(terminal)

    def heed(self, stream: TextIO) -> None:
        """Look at what is written to a stream, too: it appears on the same terminal."""
        write = stream.write

        def written(text: str) -> int:
            with self._lock:
                count = write(text)
                self._take(text)
                return count

        stream.write = written  # type: ignore[method-assign]

    def _take(self, text: str) -> None:
        for piece in text.splitlines(keepends=True):
            self._begun += piece
            if piece.endswith("\n"):
                line, self._begun = self._begun.rstrip("\r\n"), ""
                self._line(line)

    def _line(self, line: str) -> None:
        before, self._shown = self._shown, _WAITING.match(line)
        if self._shown is None:
            return
        rows = self._height(line)
        if before is not None and _task(before) == _task(self._shown):
            self._replace(self._rows + rows, line)
        self._rows, self._at = rows, time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._count, name="waiting line", daemon=True)
            self._thread.start()

    def _count(self) -> None:
        while True:
            time.sleep(TICK_S)
            with self._lock:
                if self._shown is None:
                    self._thread = None
                    return
                if not self._begun:
                    line, said = self._shown.string, self._shown
                    seconds = int(said["seconds"]) + int(time.monotonic() - self._at)
                    line = f"{line[: said.start('seconds')]}{seconds}{line[said.end('seconds') :]}"
                    self._replace(self._rows, line)
                    self._rows = self._height(line)

    def _replace(self, rows: int, line: str) -> None:
        """Write ``line`` in the place of the last ``rows`` rows of the terminal."""
        try:
            self._write(f"\x1b[{rows}A\r\x1b[J{line}\n")
            self._terminal.flush()
        except (OSError, ValueError):  # the terminal is gone
            self._shown = None

    def _height(self, line: str) -> int:
        """Rows of the terminal that a line takes."""
        try:
            columns = os.get_terminal_size(self._terminal.fileno()).columns
        except OSError:
            columns = 0
        return max(1, -(-len(_CONTROL.sub("", line)) // (columns or 80)))


def _task(said: re.Match[str]) -> str:
    """Which task a line is of: what the console has before it, but the time."""
    return _CONTROL.sub("", said["head"]).partition("[")[2]
