"""Processes that run beside the body until the gang ends: a server that other nodes use, for example."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..failure_record import Failure
from ..text import how_it_ended
from .output import Labelled

if TYPE_CHECKING:
    from ..loop.event_loop import Timer
    from ..loop.framing import Header
    from .launch import Launch
    from .launcher import Launcher
    from .output import Sink

SEARCHED = 65_536
"""Bytes of a stream that are searched at a time."""


class Search:
    """Takes one stream, and calls ``found()`` once, when ``pattern`` is in it. On the thread that reads the stream."""

    def __init__(self, pattern: re.Pattern[bytes], found: Callable[[], None]) -> None:
        self._pattern = pattern
        self._found: Callable[[], None] | None = found
        self._data = b""

    def write(self, data: bytes) -> None:
        if self._found is None:
            return
        self._data += data
        if self._pattern.search(self._data):
            self._found()
            self._found, self._data = None, b""
        else:
            self._data = self._data[-SEARCHED:]

    def end(self) -> None:
        pass


class Daemon:
    """One process of ``plan``: first expected to report that it is ready, then to run until the node ends it.

    ``answer(header)`` is called once: empty when it is ready, with ``failed`` (its record) when it ended before, with
    ``late`` (its record) when it was ended since it had not been ready for ``timeout`` seconds, with ``stopped`` when
    the gang or the body was over before. An end after it was ready, with whatever exit code, fails the gang.
    Where ``shown``, its output is the task's.
    """

    def __init__(
        self,
        launcher: Launcher,
        plan: Header,
        ready: str,
        timeout: float,
        answer: Callable[[Header], None],
        shown: bool = False,
    ) -> None:
        self._launcher = launcher
        self._answer = answer
        self._shown = shown
        self._pattern = re.compile(ready.encode())
        self._is_ready = self._is_late = False
        self._timer: Timer = launcher.loop.call_later(timeout, self._overdue)
        # Unchecked at first: whoever starts it may know what to do about one that cannot begin.
        unchecked = {**plan, "check": False, "lasting": True}
        self._launch: Launch = launcher.launch(unchecked, self._ended, self._sinks)

    def _sinks(self, stream: str) -> list[Sink]:
        search = Search(self._pattern, lambda: self._launcher.loop.call_soon_threadsafe(self._ready))
        # Shown first: who waits for the line may be gone a moment after it has come.
        return [Labelled(self._launcher.stream(stream), ""), search] if self._shown else [search]

    def _ready(self) -> None:
        if self._is_ready or self._is_late or self._over:
            return
        self._is_ready = True
        self._timer.cancel()
        self._launch.check = True
        self._answer({})

    def _overdue(self) -> None:
        self._is_late = True
        self._launch.end()

    @property
    def _over(self) -> bool:
        """Whether the node ends what it has started: no end of a process is a failure any more."""
        return bool(self._launcher.refusal())

    def _ended(self, launch: Launch) -> None:
        self._timer.cancel()
        child = launch.children[0]
        if self._is_ready:
            if launch.failed is None and not self._over:
                text = f"{child.title} {how_it_ended(child.exit_code or 0)}, though the gang still needs it"
                detail = child.failure(self._launcher.node).detail
                ended = child.ended_at or time.time()
                failure = Failure(self._launcher.node, "exit", text, ended, detail, exit_code=child.exit_code)
                self._launcher.fail(failure)
        elif self._over:
            self._answer({"stopped": True})
        else:
            record = {**child.result(), "traceback": child.traceback()}
            self._answer({"late" if self._is_late else "failed": record})
