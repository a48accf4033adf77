"""The end of the node's own task: how long each part of it may take, and what is said where a part takes longer.

A body that is interrupted has some seconds for its ``finally`` blocks. What comes after it is not ours: Metaflow stores
the task's state, and other decorators upload what they have gathered. Last, Python waits for threads that are no
daemons. Each part has a limit of its own, and a task that exceeds one is shown where it stands and killed.
"""

from __future__ import annotations

import signal

from ..processes import process_table

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..loop.event_loop import Timer
    from .node import Node

BODY_GRACE_S = 2.0
"""How long an interrupted body's own ``finally`` blocks may take before its stacks are printed and it is killed."""

END_S = 30.0
"""How long the hooks after the body may take where the task has not said (``end_timeout``)."""

EXIT_PART = 6.0
"""Once its state is stored a task has nothing left to do but to exit: it gets the hooks' limit divided by this."""

STACKS_S = 0.2
"""Between asking a task for its stacks and SIGKILL; faulthandler writes them at once, without the GIL."""

REPORT_S = 3.0
"""What a task and its guard may take for the failure's report, beside what has a limit of its own."""


class TaskEnd:
    """Ends the task of ``node`` where it does not end by itself.

    Attributes
    ----------
    hooks_s : float
        Seconds that what comes after the body may take.
    """

    def __init__(self, node: Node) -> None:
        self.hooks_s = END_S
        self._node = node
        self._timer: Timer | None = None
        self._killing = False

    @property
    def exit_s(self) -> float:
        """Seconds that a task whose state is stored may take to exit."""
        return self.hooks_s / EXIT_PART

    def longest_s(self, grace: float) -> float:
        """Seconds from the stop in which a task with a guard is gone, whose processes have ``grace`` seconds."""
        return BODY_GRACE_S + grace + REPORT_S + self.hooks_s + self.exit_s + STACKS_S

    def interrupt(self, grace: float, told_grace: float) -> None:
        """Interrupt the body. It has :data:`BODY_GRACE_S` and ``grace`` seconds; a line says ``told_grace`` of them."""
        node = self._node
        process_table.send([node.task_pid], node.signals[0])
        self._limit(
            BODY_GRACE_S + grace,
            f"node {node.index}'s step did not end within {BODY_GRACE_S + told_grace:g} s of being interrupted"
            f"{' for a preemption' if node.preemption.stops else ''}",
        )

    def body_over(self) -> None:
        """The gang stops, and the body is over: what comes after it begins, or has begun."""
        self._limit(
            self.hooks_s,
            f"node {self._node.index}'s step did not end within {self.hooks_s:g} s after its body (end_timeout): "
            "what Metaflow or a decorator does at the end of a step takes longer, and is cut",
        )

    def stored(self) -> None:
        """The task has failed, and Metaflow has stored that."""
        self._limit(
            self.exit_s,
            f"node {self._node.index}'s task has stored its state and did not exit within {self.exit_s:g} s (a sixth "
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

    def _limit(self, seconds: float, told: str) -> None:
        """Let the part that begins now end within ``seconds``."""
        if not self._killing:
            self.over()
            self._timer = self._node.loop.call_later(seconds, lambda: self._show(told))

    def _show(self, told: str) -> None:
        node = self._node
        node.say(f"{told}; where it stands is printed here, then it is killed.")
        process_table.send([node.task_pid], node.signals[1])
        self._will_kill()

    def _will_kill(self) -> None:
        self._killing = True
        self._node.send({"op": "ends-task"})  # to who may be its parent, and would take our signal for a cause
        self._timer = self._node.loop.call_later(STACKS_S, self._kill)

    def _kill(self) -> None:
        node = self._node
        told = node.stored  # what a task has stored, it has told
        node.unwound = True  # its death is ours from here on
        process_table.send([node.task_pid], signal.SIGKILL)
        if node.told is not None and not told:
            node.say(node.told["report"])  # it cannot tell it itself any more
