"""Notices that this node makes no progress, and reports that to node 0, which knows whether the whole gang makes none.

Cheap signs come first: output, ``gang_log``, and what /proc counts (:mod:`.usage`). CPU time of a rank, and a busy GPU,
may be work or a wait in a busy loop. So half-way through the timeout each process is asked once for an answer, which
only a main thread gives that gets back to Python's interpreter (:mod:`.stack_file`): one that computes does so before
the time is over, one that spins in a collective does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import usage
from .dumps import Dumps, answered
from .frames import same

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.event_loop import Loop, Timer
    from ..loop.framing import Header
    from .output import Output

    class Seen(Protocol):
        """What the guard sees of the node by itself."""

        def gpu(self) -> tuple[float, float]:
            """Percent of the time in which the busiest GPU computed, and in which it used its memory."""


PARTS = 12
"""Looks in the time of the timeout, which are ..."""

LEAST_S, MOST_S = 0.5, 15.0
"""... at least and at most so many seconds apart."""

PROMPT_S = 1.0
"""In which a main thread answers that runs Python, or waits in a function of Python that handles signals, as
time.sleep() does. One that answers later has returned from C code meanwhile: that is progress."""

MEMORY_BUSY = 3.0
"""Percent of the time: a GPU that computes uses its memory; a kernel of NCCL that waits for others polls a word."""


class StallWatch:
    """The watch of one node.

    Parameters
    ----------
    dumps : Dumps
    roots : callable
        Gives the processes whose trees count: the task, and those of its launches.
    body : int
        The task.
    output : Output
        What the gang runs here has written.
    send : callable
        Sends a message to the hub.
    """

    def __init__(
        self,
        loop: Loop,
        dumps: Dumps,
        roots: Callable[[], dict[int, str]],
        body: int,
        output: Output,
        seen: Seen,
        send: Callable[[Header], None],
        debug: Callable[[], DebugLog | None],
    ) -> None:
        self._loop, self._dumps, self._roots, self._body = loop, dumps, roots, body
        self._output, self._seen, self._send, self._debug = output, seen, send, debug
        self._timeout_s = 0.0
        self._may_ask = True
        self._timer: Timer | None = None
        self._before: dict[int, usage.Usage] = {}
        self._looked_at = 0.0
        self._forget()
        self._is_still = False
        self._is_collecting = False

    def _forget(self) -> None:
        self._quiet_since = time.monotonic()
        self._asked_at = 0.0
        self._prompt: set[int] | None = None  # who has answered at once; None before that is known
        self._stacks: dict[int, str] = {}  # of that moment
        self._burned: set[int] = set()

    def start(self, timeout_s: float, may_ask: bool = True) -> None:
        """Watch from now on; without ``may_ask`` no process is asked, and all CPU time counts as work."""
        self.end()
        self._timeout_s, self._may_ask = timeout_s, may_ask
        self._before, self._looked_at = {}, 0.0
        self._output.is_new()
        self._forget()
        self._look()

    def end(self) -> None:
        """Watch no more: the body is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def moved(self, why: str) -> None:
        """There was progress."""
        debug = self._debug()
        if debug is not None and (self._is_still or self._asked_at):
            debug.write(f"there is progress: {why}")
        self._forget()
        if self._is_still:
            self._is_still = False
            self._send({"op": "still", "still": False})

    def _look(self) -> None:
        every = min(max(self._timeout_s / PARTS, LEAST_S), MOST_S)
        self._timer = self._loop.call_later(every, self._look)
        now = time.monotonic()
        known = set(self._dumps.known()) if self._may_ask else set()
        current = usage.of_trees(self._roots(), os.getpid())
        before, since = self._before, now - self._looked_at
        self._before, self._looked_at = current, now
        if self._output.is_new():
            self.moved("output")
            return
        if not before:
            return
        signs = usage.signs(before, current, since, known, self._body, os.getpid())
        if self._is_collecting or (self._asked_at and self._prompt is None):
            pass  # what was written meanwhile are the stacks
        elif signs.work:
            self.moved(signs.work)
        elif not self._may_ask:
            self._stay(now)
        else:
            self._consider(signs.burning, known, now)

    def _consider(self, burning: set[int], known: set[int], now: float) -> None:
        """Nothing shows that work was done; what uses CPU may do some."""
        computes, uses_memory = self._seen.gpu()
        self._burned |= burning
        if uses_memory >= MEMORY_BUSY:
            self.moved("a GPU uses its memory")
        elif not self._asked_at:
            if now - self._quiet_since >= self._timeout_s / 2:
                self._ask(known, now)
        elif self._prompt is not None:
            texts = self._dumps.written()
            back = answered(texts)
            if late := back - self._prompt:
                self.moved(f"process {min(late)} has returned to Python")
            elif busy := back & burning:
                self.moved(f"process {min(busy)} runs Python")
            elif computes > 0 and (back or not known):
                self.moved("a GPU is busy")
            else:
                self._stay(now)

    def _ask(self, known: set[int], now: float) -> None:
        self._asked_at = now
        self._output.asked()
        self._dumps.ask(known)

        def note() -> None:
            if self._asked_at != now:
                return
            self._stacks = self._dumps.written()
            if not all(self._stacks.values()) and time.monotonic() - now < self._timeout_s / 4:
                wait()  # one of them gets no time on a busy machine
            else:
                self._prompt = answered(self._stacks)
                self._before = {}

        def wait() -> None:
            self._loop.call_later(min(PROMPT_S, self._timeout_s / 4), note)

        wait()

    def _stay(self, now: float) -> None:
        if now - self._quiet_since >= self._timeout_s and not self._is_still:
            self._is_still = True
            self._send({"op": "still", "still": True})

    def collecting(self) -> None:
        """All processes are asked for their stacks from now on, until :meth:`collected`."""
        if self._output.is_new():
            self.moved("output")
        self._output.asked()
        self._is_collecting = True

    def collected(self, texts: dict[int, str]) -> None:
        """All processes were asked: what they answered before is gone, and they may stand elsewhere now."""
        self._is_collecting = False
        self._before = {}  # what has been written are the stacks
        moved = {
            pid
            for pid, text in texts.items()
            if text and self._stacks.get(pid) and not same(text, self._stacks[pid], pid in self._burned)
        }
        if moved and self._asked_at:
            self.moved(f"process {min(moved)} stands elsewhere")
        elif self._asked_at and not self._is_still:
            self._asked_at, self._prompt, self._stacks = 0.0, None, {}  # ask again, in time

    def record(self) -> dict[str, Any]:
        """For tests and the debug log."""
        return {"quiet_s": time.monotonic() - self._quiet_since, "asked": bool(self._asked_at), "still": self._is_still}
