"""The death of the node's own task, and a task that lives but cannot be reached any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..processes.exit_status import Program, deserted, task_failure
from ..processes.watch import TaskWatch
from ..text import how_it_ended

if TYPE_CHECKING:
    from ..failure_record import Failure
    from ..hub_link.hub_access import HubAccess
    from ..loop.event_loop import Loop
    from .cleanup import Cleanup
    from .identity import NodeIdentity
    from .state import NodeState
    from .task_end import TaskEnd

CLOSED_S = 2.0
"""How long a task that has closed its end of the socket pair may take to be gone."""


class TaskDeath:
    """Watches the task of a node, and reports its death where that is a failure.

    Parameters
    ----------
    fail : callable
        Takes the failure.
    on_death : callable
        Called once when the task is dead; :meth:`report` is for afterwards.
    """

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        ending: TaskEnd,
        cleanup: Cleanup,
        fail: Callable[[Failure], None],
        on_death: Callable[[], None],
    ) -> None:
        self._loop, self._identity, self._state = loop, identity, state
        self._hub, self._ending, self._cleanup = hub, ending, cleanup
        self._fail, self._on_death = fail, on_death
        self._watch = TaskWatch(loop, identity.task_pid, self._died)
        self._program = Program(identity.task_pid)

    def closed(self) -> None:
        """The task has closed its end of the socket pair: in order, when it has nothing more to ask, or as it dies, or
        in the midst of its work.
        """
        self._watch.expect(CLOSED_S)
        if not self._state.is_end_expected:
            # It may just be ending, and how it does explains more than a signal of ours would.
            closed_at = time.time()
            self._loop.call_later(CLOSED_S, lambda: self._overdue(closed_at))

    def _overdue(self, closed_at: float) -> None:
        if self._state.task_alive:
            self._state.body_unreachable()
            index, pid = self._identity.index, self._identity.task_pid
            self._fail(deserted(index, pid, self._program, closed_at))
            self._ending.end_now()

    def _died(self) -> None:
        if self._state.task_alive:
            self._state.task_alive = False
            self._watch.close()
            self._ending.over()
            self._on_death()

    def report(self) -> None:
        """Report the death, unless the task had nothing left to do, or another guard knows more of it."""
        if not self._state.is_end_expected and self._is_to_report():
            code, after_body = self._watch.exit_code, self._state.has_succeeded
            notice = self._cleanup.notice
            if notice is not None and not self._state.is_stopping and not self._is_heard_by_all:
                how = "died" if code is None else how_it_ended(code)
                notice.leave(f"the node's task {how} before it joined")
            self._fail(task_failure(self._identity.index, code, after_body))

    def _is_to_report(self) -> bool:
        """Control's guard knows more of a task that it has started: how it ended, and whether for another one. The end
        by our own interrupt, which the task did not handle, is ours.
        """
        interrupt = self._identity.interrupt_signal
        if self._state.is_stopping and interrupt and self._watch.exit_code == -interrupt:
            return False
        return not self._identity.seen_by_control or self._hub.link.connected

    @property
    def _is_heard_by_all(self) -> bool:
        """Whether the hub reports a failure to all nodes. Node 0's own cannot reach those that have not come yet."""
        return self._identity.index > 0 and self._hub.link.connected
