"""Lines for the user, in the task's own log."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..debug_log import DebugLog

FINISH_S = 1.0
"""For lines that are under way when the guard ends; a reader that has stopped must not hold that up."""


class UserLog:
    """Writes to the descriptor ``fd``, each line on a thread: the log's reader may be stopped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._threads: list[threading.Thread] = []
        self.debug: DebugLog | None = None

    def say(self, text: str) -> None:
        from .output import write_all

        if self.debug is not None:
            self.debug.write(f"said to the user: {text}")
        line = f"[gang] {text}\n".encode(errors="replace")
        thread = threading.Thread(target=write_all, args=(self._fd, line), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is left: as much as the reader takes at once
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if poll.poll(0):
                with contextlib.suppress(OSError):
                    os.write(self._fd, line[-select.PIPE_BUF :])
        else:
            self._threads.append(thread)

    def finish(self) -> None:
        """Wait for what is under way, for :data:`FINISH_S` each."""
        for thread in self._threads:
            thread.join(FINISH_S)
