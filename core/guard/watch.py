"""Events about processes that are not our children: the task's death, and its being stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from .loop import Loop, Timer
from .processes import lookup

STOPPED_S = 10.0
"""How long a process may be stopped (SIGSTOP, a suspended job) before that is a failure. A debugger's stop does not
count.
"""

LOOK_S = 1.0
"""The kernel reports stops to parents only, and the guard is not the task's: the state is looked up this often."""


class TaskWatch:
    """Calls once when process ``pid`` has died, by a descriptor that the kernel makes readable then.

    A closed socket does not suffice: a process that the task forked holds the task's end open. Where the kernel has no
    such descriptors, the socket is all there is.
    """

    def __init__(self, loop: Loop, pid: int, on_death: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = -1
        self._on_death = on_death
        self.works = True
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            loop.call_later(0, on_death)
        except (OSError, AttributeError):
            self.works = False
        else:
            loop.add_reader(self._fd, self._died)

    def _died(self) -> None:
        self.close()
        self._on_death()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


class StopWatch:
    """Calls ``on_stopped(pid, node, title, seconds)`` when a process has been stopped for :data:`STOPPED_S`.

    ``watched()`` gives what to look at: pid to node index and title.
    """

    def __init__(
        self,
        loop: Loop,
        watched: Callable[[], dict[int, tuple[int, str]]],
        on_stopped: Callable[[int, int, str, float], None],
    ) -> None:
        self._loop = loop
        self._watched = watched
        self._on_stopped = on_stopped
        self._since: dict[int, float] = {}
        self._timer: Timer = loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        stopped = {}
        for pid, (node, title) in self._watched().items():
            entry = lookup(pid)
            if entry is not None and entry.state == "T":
                since = stopped[pid] = self._since.get(pid, now)
                if now - since >= STOPPED_S:
                    self._on_stopped(pid, node, title, now - since)
        self._since = stopped
        self._timer = self._loop.call_later(LOOK_S, self._look)
