"""Processes that are stopped (SIGSTOP, a suspended job): a failure after a while, and no reason to wait at the end."""

from __future__ import annotations

import os
import signal
import time

from ..failure_record import Failure
from . import process_table

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..loop.event_loop import Timer
    from ..node.node import Node
    from .process_table import Entry

STOPPED_S = 10.0
"""How long a process may be stopped before that is a failure. A debugger's stop does not count."""

LOOK_S = 1.0
"""The kernel reports stops to parents only, and the guard is not the task's: the state is looked up this often."""

_MARK = b"METAFLOW_GANG_NUMBERED"
"""In the environment of a rank, and not in that of its wrapper; see ``core/ranks/rank_wrapper.py``."""

_RANK = (b"RANK", b"OMPI_COMM_WORLD_RANK", b"PMI_RANK")

GUARD_S = 3.0
"""How long after the gang's stop the guard of another local node has to see to its task."""


class Stopped:
    """Looks at what runs on ``node``: its task, its ranks, and in a local gang the other nodes' tasks and guards.

    One that is stopped for :data:`STOPPED_S` fails the gang. From the gang's stop on, a guard or a task that is stopped
    is continued, so that it comes to its end as the others do; one that is stopped again, or whose body had ended
    well, is killed: it has nothing to tell, and must not be stored as having succeeded.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: dict[int, float] = {}
        self._continued: set[int] = set()
        self._ending_from = 0.0
        self._timer: Timer = node.loop.call_later(LOOK_S, self._look)

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
        self._node.task_children.look()
        found = self._found()
        self._since = {pid: self._since.get(pid, now) for pid in found}
        for pid, (node, title) in found.items():
            if self._ending_from:
                self._see_to(pid, node)
            elif now - self._since[pid] >= STOPPED_S:
                self._node.fail(self._failure(pid, node, title))
        self._timer = self._node.loop.call_later(LOOK_S, self._look)

    def _failure(self, pid: int, node: int, title: str) -> Failure:
        now = time.monotonic()
        text = f"{title} (process {pid}) has been stopped (SIGSTOP) for {now - self._since.get(pid, now):.0f} s"
        return Failure(node, "stopped", text, time.time())

    def _found(self) -> dict[int, tuple[int, str]]:
        """What is stopped: pid to node and title."""
        watched = self._watched()
        entries = {pid: process_table.lookup(pid) for pid in watched}
        return {pid: watched[pid] for pid, entry in entries.items() if entry is not None and entry.state == "T"}

    def _watched(self) -> dict[int, tuple[int, str]]:
        """What is looked at: pid to node and title."""
        node = self._node
        watched = node.work.watched(node.index)
        watched.update({pid: (index, "its guard") for index, pid in self._guards().items()})
        if node.task_alive and not node.bye:
            watched[node.task_pid] = (node.index, "the node's task")
        return watched

    def _guards(self) -> dict[int, int]:
        """The guards of other nodes of a local gang, by node: control's sees all, and all see control's."""
        node = self._node
        if node.control_guard:
            # Once it is dead, the task is another's child.
            return {0: node.control_guard} if _is_child(node.task_pid, node.control_guard) else {}
        if node.uplink is None or not node.work.tasks:
            return {}
        found = node.uplink.guards()
        tasks = {index: task.pid for index, task in node.work.tasks.items() if task.alive}
        # What another node says of itself has to be true before it is signalled.
        return {index: pid for index, pid in found.items() if index in tasks and _is_child(pid, tasks[index])}

    def _see_to(self, pid: int, index: int) -> None:
        node = self._node
        if pid == node.task_pid:
            if node.body_done or pid in self._continued:
                node.ending.end_now()
            else:
                self._go_on(pid)
        elif index in node.work.tasks and node.work.tasks[index].pid == pid:
            if time.monotonic() - self._ending_from >= GUARD_S:
                node.work.kill_tasks([index])
        elif pid in self._guards().values():
            self._go_on(pid)

    def _go_on(self, pid: int) -> None:
        number = signal.SIGKILL if pid in self._continued else signal.SIGCONT
        self._continued.add(pid)
        process_table.send([pid], number)


def control_guard_of(task_pid: int) -> int:
    """In a local gang: the guard of node 0, which has started the task ``task_pid`` of another node; 0 if unknown."""
    entry = process_table.lookup(task_pid)
    return entry.parent if entry is not None and entry.parent > 1 and entry.parent != os.getpid() else 0


def _is_child(pid: int, parent: int) -> bool:
    entry = process_table.lookup(pid)
    return entry is not None and entry.parent == parent


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
            rank = next((own[name].decode("ascii", "replace") for name in _RANK if own.get(name)), "")
            found[pid] = f"rank {rank}" if _MARK in own else f"a process of {title}"
    return found
