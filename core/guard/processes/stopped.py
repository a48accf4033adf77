"""Processes that are stopped (SIGSTOP, a suspended job): a failure after a while, and no reason to wait at the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..failure_record import Failure
from ..settings import settings
from . import process_table

if TYPE_CHECKING:
    from ..loop.event_loop import Loop, Timer
    from .process_table import Entry

    class Watched(Protocol):
        """What is looked at on one node, and how it is ended."""

        def look(self) -> None:
            """Called before each look."""

        def processes(self) -> dict[int, tuple[int, str]]:
            """All that runs, guards excepted: process id to node and title."""

        def guards(self) -> dict[int, int]:
            """The guards of other nodes of a local gang, by node."""

        @property
        def task_pid(self) -> int:
            """The process of the node's own task."""

        @property
        def has_succeeded(self) -> bool:
            """Whether the body of the own task has ended well."""

        def end_own_task(self) -> None:
            """End the own task at once."""

        def tasks(self) -> dict[int, int]:
            """The tasks of other nodes of a local gang, by node."""

        def end_task(self, node: int) -> None:
            """End the task of another node for good."""


LOOK_S = 1.0
"""The kernel reports stops to parents only, and the guard is not the task's: the state is looked up this often."""

_MARK = b"METAFLOW_GANG_NUMBERED"
"""In the environment of a rank, and not in that of its wrapper; see ``core/ranks/rank_wrapper.py``."""

TASK, ITS_GUARD = "the node's task", "its guard"
"""What these are called; everything else that is watched a launch has started."""

STOPPED = "stopped"
"""The kind of such a failure."""

GUARD_S = 3.0
"""How long after the gang's stop the guard of another local node has to see to its task."""


class Stopped:
    """Looks at what runs on a node: its task, its ranks, and in a local gang the other nodes' tasks and guards.

    One that is stopped for ``stopped_timeout`` fails the gang. From the gang's stop on, a guard or a task that is
    stopped is continued, so that it comes to its end as the others do; one that is stopped again, or whose body had
    ended well, is killed: it has nothing to report, and must not be stored as having succeeded.

    ``fail(failure, is_of_launch)`` takes the failure, and whether a launch has started the process.
    """

    def __init__(self, loop: Loop, watched: Watched, fail: Callable[[Failure, bool], None]) -> None:
        self._loop = loop
        self._watched = watched
        self._fail = fail
        self._since: dict[int, float] = {}
        self._continued: set[int] = set()
        self._ending_from = 0.0
        self._timer: Timer = loop.call_later(LOOK_S, self._look)

    def gang_stops(self) -> None:
        """From here on nothing that is stopped is a cause."""
        self._ending_from = time.monotonic()
        self._timer.cancel()
        self._look()

    def failures(self) -> list[Failure]:
        """What is stopped at this moment, however short."""
        return [self._failure(pid, *what) for pid, what in self._found().items()]

    def _look(self) -> None:
        now = time.monotonic()
        self._watched.look()
        found = self._found()
        self._since = {pid: self._since.get(pid, now) for pid in found}
        for pid, (node, title) in found.items():
            if self._ending_from:
                self._see_to(pid, node)
            elif now - self._since[pid] >= settings().stopped_timeout:
                self._fail(self._failure(pid, node, title), title not in (TASK, ITS_GUARD))
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _failure(self, pid: int, node: int, title: str) -> Failure:
        now = time.monotonic()
        text = f"{title} (process {pid}) has been stopped (SIGSTOP) for {now - self._since.get(pid, now):.0f} s"
        return Failure(node, STOPPED, text, time.time())

    def _found(self) -> dict[int, tuple[int, str]]:
        """What is stopped: pid to node and title."""
        watched = self._watched.processes()
        watched.update({pid: (index, ITS_GUARD) for index, pid in self._watched.guards().items()})
        entries = {pid: process_table.lookup(pid) for pid in watched}
        return {pid: watched[pid] for pid, entry in entries.items() if entry is not None and entry.state == "T"}

    def _see_to(self, pid: int, index: int) -> None:
        watched = self._watched
        if pid == watched.task_pid:
            if watched.has_succeeded or pid in self._continued:
                watched.end_own_task()
            else:
                self._go_on(pid)
        elif watched.tasks().get(index) == pid:
            if time.monotonic() - self._ending_from >= GUARD_S:
                watched.end_task(index)
        elif pid in watched.guards().values():
            self._go_on(pid)

    def _go_on(self, pid: int) -> None:
        number = signal.SIGKILL if pid in self._continued else signal.SIGCONT
        self._continued.add(pid)
        process_table.send([pid], number)


def control_guard_of(task_pid: int) -> int:
    """In a local gang: the guard of node 0, which has started the task ``task_pid`` of another node; 0 if unknown."""
    entry = process_table.lookup(task_pid)
    return entry.parent if entry is not None and entry.parent > 1 and entry.parent != os.getpid() else 0


def stopped_below(root: int, title: str, entries: dict[int, Entry]) -> dict[int, str]:
    """What is stopped of that which ``root`` has started: ranks, and what stands between it and them.

    A rank's wrapper has marked it; what the rank has started itself may be stopped as it likes.

    Parameters
    ----------
    title : str
        What ``root`` is called.
    entries : mapping
        The process table.

    Returns
    -------
    dict
        Process id to title: "rank 3".
    """
    found = {}
    for pid in process_table.descendants([root], entries):
        if entries[pid].state != "T":
            continue
        own = process_table.variables(pid)
        if _MARK not in process_table.variables(entries[pid].parent):
            rank = next(
                (own[name].decode("ascii", "replace") for name in process_table.RANK_VARIABLES if own.get(name)), ""
            )
            found[pid] = f"rank {rank}" if _MARK in own else f"a process of {title}"
    return found
