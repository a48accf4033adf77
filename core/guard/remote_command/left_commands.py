"""Ends what commands of other nodes have left on this one, before ranks are started again.

A command that came by the gang's channel is a launch of this guard, which ends all of it. One that came by a session of
the gang's sshd goes on when its connection has ended: Open MPI's daemon for seconds, with its ranks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..processes import process_table
from ..settings import settings

if TYPE_CHECKING:
    from ..children.supervisor import Work
    from ..loop.event_loop import Loop

LOOK_S = 0.02
"""Between two looks at processes, of which the kernel reports only direct children."""


class LeftCommands:
    """What other nodes have run here."""

    def __init__(self, loop: Loop, work: Work) -> None:
        self._loop, self._work = loop, work

    def end(self, then: Callable[[], None]) -> None:
        """Call ``then`` when nothing of it runs any more, or cannot be ended. Who has run it has ended by now, or is
        about to: what still has a connection is waited for.
        """
        self._look(time.monotonic(), set(), then)

    def _look(self, since: float, asked: set[int], then: Callable[[], None]) -> None:
        foreign = any(child.is_foreign for launch in self._work.launches.values() for child in launch.children)
        connected, left = self._of_sessions()
        waited = time.monotonic() - since
        if not (foreign or connected or left) or waited >= settings().unkillable_timeout:
            then()
            return
        if waited >= settings().kill_grace:
            process_table.send(left, signal.SIGKILL)
        else:
            process_table.terminate(left - asked)
        self._loop.call_later(LOOK_S, lambda: self._look(since, asked | left, then))

    def _of_sessions(self) -> tuple[set[int], set[int]]:
        """The processes of sessions of our sshd, and those whose sessions have ended."""
        children = [child for launch in self._work.launches.values() for child in launch.children if child.alive]
        sshd = [child.pid for child in children if child.title == "sshd"]
        if not sshd:
            return set(), set()
        entries = process_table.table()
        connected = process_table.descendants(sshd, entries)
        mine = process_table.descendants([os.getpid()], entries) - connected
        marked = process_table.marked(process_table.LAUNCH_MARKER, process_table.SESSION, mine)
        return connected, marked | process_table.descendants(marked, entries)
