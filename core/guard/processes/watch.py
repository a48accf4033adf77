"""The death of a process that is not our child: the task's."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from ..loop.event_loop import Loop, Timer
from . import process_table
from .exit_status import exit_code

LOOK_S = 1.0
"""Between two looks at a process whose death the kernel does not report."""

LOOK_OFTEN_S = 0.05
"""The same for a process that is about to end."""


class TaskWatch:
    """Calls once when process ``pid`` has died, by a descriptor that the kernel makes readable then.

    A closed socket does not suffice: a process that the task forked holds the task's end open. Where the kernel has no
    such descriptors, or a filter of system calls refuses them, the process is looked at from time to time.

    Attributes
    ----------
    exit_code : int or None
        Of the process, once it is dead; None where it is unknown.
    """

    def __init__(self, loop: Loop, pid: int, on_death: Callable[[], None]) -> None:
        self.exit_code: int | None = None
        self._loop = loop
        self._pid = pid
        self._is_parent = os.getppid() == pid
        self._fd = -1
        self._timer: Timer | None = None
        self._on_death = on_death
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._timer = loop.call_later(0, self._died)
        except (OSError, AttributeError):
            self._look()
        else:
            loop.add_reader(self._fd, self._died)

    def _look(self, often_until: float = 0.0) -> None:
        if self._is_gone():
            self._died()
        else:
            pause = LOOK_OFTEN_S if time.monotonic() < often_until else LOOK_S
            self._timer = self._loop.call_later(pause, lambda: self._look(often_until))

    def _is_gone(self) -> bool:
        if self._is_parent:
            return os.getppid() != self._pid  # the children of a dead process go to another at once
        entry = process_table.lookup(self._pid)
        if entry is not None:
            return entry.state in "ZX"
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def expect(self, seconds: float) -> None:
        """It is about to end, within ``seconds`` probably."""
        if self._fd < 0 and self._timer is not None:
            self._timer.cancel()
            self._look(time.monotonic() + seconds)

    def _died(self) -> None:
        self.exit_code = exit_code(self._pid, self._fd)
        self.close()
        self._on_death()

    def close(self) -> None:
        """Call no more. Harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
