"""Threads for tasks that block: a limited number at once, tried again where none can be started."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ..loop.event_loop import Loop, Timer

RETRY_SECONDS = 0.1
"""After which it is tried again to start a thread."""


class Workers:
    """Does each of the tasks it is given in a thread of its own; one for which there is no thread waits.

    Its methods are for the loop's thread.

    Parameters
    ----------
    loop : Loop
        Where it is noticed that a thread has ended.
    most : int
        How many threads there may be at once.
    complain : callable
        Gets the RuntimeError that says that a thread cannot be started; it is tried again then.
    """

    def __init__(self, loop: Loop, most: int, complain: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._most = most
        self._complain = complain
        self._tasks: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()
        self._again: Timer | None = None
        self._closed = False

    def put(self, task: Callable[[], None]) -> None:
        """Do ``task``, now or when there is a thread for it. What it raises ends its own thread only."""
        self._tasks.append(task)
        self._start()

    def close(self) -> list[Callable[[], None]]:
        """Start nothing more; the tasks that were not begun."""
        self._closed = True
        tasks = list(self._tasks)
        self._tasks.clear()
        if self._again is not None:
            self._again.cancel()
        return tasks

    def join(self, seconds: float) -> bool:
        """Wait for all threads, so long at most; whether all have ended. After :meth:`close`."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        while self._tasks and not self._closed and len(self._threads) < self._most:
            task = self._tasks[0]
            thread = threading.Thread(target=self._run, args=(task,), name="serve", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._complain(error)
                if self._again is None:
                    self._again = self._loop.call_later(RETRY_SECONDS, self._start_again)
                return
            self._tasks.popleft()
            self._threads.add(thread)

    def _start_again(self) -> None:
        self._again = None
        self._start()

    def _run(self, task: Callable[[], None]) -> None:
        thread = threading.current_thread()
        try:
            task()
        finally:
            self._loop.call_soon_threadsafe(lambda: self._ended(thread))

    def _ended(self, thread: threading.Thread) -> None:
        self._threads.discard(thread)
        self._start()
