"""Processes that the task's body leaves, found also where they have cleared their environment.

When the task ends its children go to a process that is none of ours, and nothing would mark them as its own: so the
guard remembers them while the task lives. The task is no subreaper, since its own ``os.wait()`` would then get
children that it does not know: one that was an orphan before is found by the task's number, or where it still writes to
the task's output.
"""

from __future__ import annotations

import contextlib
import os

from . import process_table
from .pipe_writers import left_by_task, pipes

_BOOT_WORDS = 6
"""How many words of their command line all guards have in common: an interpreter, its options, program and folder."""


class TaskChildren:
    """What the main thread of process ``task_pid`` has started, as a body does, and what that has started.

    Attributes
    ----------
    number : int
        What :func:`~.lineage.give_number` gave the task; 0 for none.
    """

    def __init__(self, task_pid: int) -> None:
        self._list = f"/proc/{task_pid}/task/{task_pid}/children"
        self._guards: list[bytes] = []
        with contextlib.suppress(OSError):
            self._guards = _command(os.getpid())
        self._started: dict[int, int] = {}
        self._task_pid, self._since = task_pid, process_table.started(task_pid)
        self._pipes: set[str] = set()
        self.number = 0

    def watch_output(self) -> None:
        """The pipes of the task's output were made for this task alone, as a run and control's guard make them."""
        self._pipes = pipes(self._task_pid)

    def look(self) -> None:
        """Remember who is there now. There is nobody where a kernel has no such lists."""
        try:
            with open(self._list, "rb") as file:
                children = [int(word) for word in file.read().split()]
        except OSError:
            return
        for pid in children:
            if pid not in self._started:
                with contextlib.suppress(OSError):  # it has just ended
                    if _command(pid) != self._guards:  # of which each sees to its own end
                        start = process_table.started(pid)
                        if start:
                            self._started[pid] = start

    def living(self) -> set[int]:
        """Those of them that have not ended, and their descendants."""
        found = set()
        for pid, start in self._started.items():
            entry = process_table.lookup(pid)
            if entry is not None and entry.state not in "ZX" and process_table.started(pid) == start:
                found.add(pid)
        for pid in left_by_task(self._pipes, self.number, self._since):
            with contextlib.suppress(OSError):
                if _command(pid) != self._guards:
                    found.add(pid)
        return found | (process_table.descendants(found) if found else set())


def _command(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")[:_BOOT_WORDS]
