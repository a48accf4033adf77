"""Output of tasks in the run's process: every line is shown when it arrives.

Metaflow's runtime reads one line of a task's output whenever the pipe has data. Further lines stay in a buffer until
the task prints again (Metaflow's issue #166): the last lines before a long computation are missing from the console,
and the step seems to hang.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from functools import wraps
from io import BufferedReader
from typing import Any

from ..exceptions import MetaflowChanged
from ..logs import say
from ..metaflow_compat.runs import output_of, replace_line_reader

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
