"""The end of the node's own task: how long each part of it may take, and what happens when a part takes longer.

A body that is interrupted has some seconds for its ``finally`` blocks. What comes after it is not ours: Metaflow stores
the task's state, and other decorators upload what they have gathered. Last, Python waits for threads that are no
daemons. Each part has a limit of its own, and a task that exceeds one is shown where it stands and killed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..processes import process_table
from ..settings import settings

if TYPE_CHECKING:
    from ..loop.event_loop import Loop, Timer
    from .identity import NodeIdentity

EXIT_PART = 6.0
"""Once its state is stored a task has nothing left to do but to exit: it gets the hooks' limit divided by this."""

STACKS_S = 0.2
"""Between asking a task for its stacks and SIGKILL; faulthandler writes them at once, without the GIL."""

REPORT_S = 3.0
"""What a task and its guard may take for the failure's report, beside what has a limit of its own."""


class TaskEnd:
    """Ends the task of a node where it does not end by itself.

    Parameters
    ----------
    say : callable
        Takes a line for the user.
    will_kill : callable
        Called when the task is about to be killed, :data:`STACKS_S` before.
    on_kill : callable
        Called when it is killed.
    """

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        say: Callable[[str], None],
        will_kill: Callable[[], None],
        on_kill: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._identity = identity
        self._say = say
        self._on_will_kill, self._on_kill = will_kill, on_kill
        self._timer: Timer | None = None
        self._killing = False

    @property
    def _index(self) -> int:
        return self._identity.index

    @property
    def hooks_s(self) -> float:
        """Seconds that what comes after the body may take."""
        return settings().end_timeout

    @property
    def exit_s(self) -> float:
        """Seconds that a task whose state is stored may take to exit."""
        return self.hooks_s / EXIT_PART

    def longest_s(self, grace: float) -> float:
        """Seconds from the stop in which a task with a guard is gone, whose processes have ``grace`` seconds."""
        return settings().body_grace + grace + REPORT_S + self.hooks_s + self.exit_s + STACKS_S

    def interrupt(self) -> None:
        """Interrupt the body; :meth:`limit_body` follows."""
        process_table.send([self._identity.task_pid], self._identity.interrupt_signal)

    def limit_body(self, grace: float, shown_grace: float, for_preemption: bool) -> None:
        """The interrupted body has ``body_grace`` and ``grace`` seconds from now on; the user reads ``shown_grace``."""
        body_s = settings().body_grace
        self._limit(
            body_s + grace,
            f"node {self._index}'s step did not end within {body_s + shown_grace:g} s of being interrupted"
            f"{' for a preemption' if for_preemption else ''}",
        )

    def body_over(self) -> None:
        """The gang stops, and the body is over: what comes after it begins, or has begun."""
        self._limit(
            self.hooks_s,
            f"node {self._index}'s step did not end within {self.hooks_s:g} s after its body (end_timeout): "
            "what Metaflow or a decorator does at the end of a step takes longer, and is cut",
        )

    def stored(self) -> None:
        """The task has failed, and Metaflow has stored that."""
        self._limit(
            self.exit_s,
            f"node {self._index}'s task has stored its state and did not exit within {self.exit_s:g} s (a sixth "
            "of end_timeout): a thread that is no daemon, or what is done at Python's exit, keeps it",
        )

    def end_now(self) -> None:
        """It does nothing any more that is worth waiting for."""
        if not self._killing:
            self.over()
            self._will_kill()

    def over(self) -> None:
        """The task is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _limit(self, seconds: float, text: str) -> None:
        """Let the part that begins now end within ``seconds``; ``text`` is for the user where it does not."""
        if not self._killing:
            self.over()
            self._timer = self._loop.call_later(seconds, lambda: self._show(text))

    def _show(self, text: str) -> None:
        self._say(f"{text}; where it stands is printed here, then it is killed.")
        process_table.send([self._identity.task_pid], self._identity.stacks_signal)
        self._will_kill()

    def _will_kill(self) -> None:
        self._killing = True
        self._on_will_kill()
        self._timer = self._loop.call_later(STACKS_S, self._kill)

    def _kill(self) -> None:
        process_table.send([self._identity.task_pid], signal.SIGKILL)
        self._on_kill()
