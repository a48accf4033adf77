"""Ends what commands of other nodes have left on this one, before ranks are started again.

A command that came by the gang's channel is a launch of this guard, which ends all of it. One that came by a session of
the gang's sshd goes on when its connection has ended: Open MPI's daemon for seconds, with its ranks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..processes import process_table
from ..settings import settings

if TYPE_CHECKING:
    from ..children.supervisor import Work
    from ..loop.event_loop import Loop

LOOK_S, MOST_S = 0.02, 1.0
"""Between two looks at processes, of which the kernel reports only direct children; and at most, where they have been
looked at for long: a look reads the whole process table.
"""


class Asked(NamedTuple):
    """When a process has started (clock ticks), and when it was asked to end (monotonic)."""

    started: int
    at: float


class LeftCommands:
    """What other nodes have run here."""

    def __init__(self, loop: Loop, work: Work) -> None:
        self._loop, self._work = loop, work

    def end(self, then: Callable[[], None]) -> None:
        """Call ``then`` when nothing of it runs any more, or cannot be ended. Who has run it has ended by now, or is
        about to: what still has a connection is waited for.
        """
        self._look(time.monotonic(), {}, then)

    def _look(self, since: float, asked: dict[int, Asked], then: Callable[[], None]) -> None:
        foreign = any(child.is_foreign for child in self._work.children)
        connected, left = self._of_sessions(asked)
        now = time.monotonic()
        if not (foreign or connected or left):
            then()
            return
        if now >= since + settings().unkillable_timeout:
            if left:
                self._work.say_unkillable(sorted(left))
            then()
            return
        process_table.send(
            [pid for pid in left & asked.keys() if now >= asked[pid].at + settings().kill_grace], signal.SIGKILL
        )
        new = left - asked.keys()
        process_table.terminate(new)
        asked = {**asked, **{pid: Asked(process_table.started(pid), now) for pid in new}}
        pause = min(max(LOOK_S, (now - since) / 10), MOST_S)
        self._loop.call_later(pause, lambda: self._look(since, asked, then))

    def _of_sessions(self, asked: dict[int, Asked]) -> tuple[set[int], set[int]]:
        """The processes of sessions of our sshd, and those whose sessions have ended.

        What was ``asked`` to end is still one of them when that which had started it is gone: it need not have the
        session's environment.
        """
        sshd = [child.pid for child in self._work.children if child.alive and child.title == "sshd"]
        if not sshd:
            return set(), set()
        entries = process_table.table()
        connected = process_table.descendants(sshd, entries)
        mine = process_table.descendants([os.getpid()], entries) - connected
        left = process_table.marked(process_table.LAUNCH_MARKER, process_table.SESSION, mine)
        left |= {pid for pid in asked.keys() & mine if process_table.started(pid) == asked[pid].started}
        return connected, left | process_table.descendants(left, entries)
