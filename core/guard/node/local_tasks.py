"""The tasks of the other nodes of a local gang, which control's guard has started: their deaths, and their ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..failure_record import extra_s

if TYPE_CHECKING:
    from ..children.child import NodeTask
    from ..children.supervisor import Work
    from ..failure_record import Failure
    from ..hub_link.hub_access import HubAccess
    from ..loop.event_loop import Loop, Timer
    from .requests.pending_requests import PendingRequests
    from .state import NodeState
    from .task_end import TaskEnd

ABSENT_S = 3.5
"""How long a local node's task that has not joined may take to do so once the gang stops: it has no end to come to."""

WAITING_S = 4.0
"""Node 0's task waits for the others' ends before it raises: a line names them when that takes longer."""


class LocalTasks:
    """On control; on other nodes, and in a gang of several machines, there are no such tasks.

    Parameters
    ----------
    pending : PendingRequests
        Of control's task, which waits for these tasks.
    ending : TaskEnd
        Of control's task.
    fail, say : callable
        Take a failure, and a line for the user.

    Attributes
    ----------
    lost : set of int
        Nodes without which the gang goes on.
    """

    def __init__(
        self,
        loop: Loop,
        state: NodeState,
        hub: HubAccess,
        work: Work,
        pending: PendingRequests,
        ending: TaskEnd,
        fail: Callable[[Failure], None],
        say: Callable[[str], None],
    ) -> None:
        self.lost: set[int] = set()
        self._loop, self._state, self._hub, self._work = loop, state, hub, work
        self._pending, self._ending = pending, ending
        self._fail, self._say = fail, say
        self._timers: list[Timer] = []  # from the stop on

    # -- their deaths ------------------------------------------------------------------------------------------------

    def ended(self, task: NodeTask) -> None:
        """The process of a task has ended: report that where it is a failure, or explains one."""
        died = task.exit_code or 0
        failure = task.failure(task.node)
        if not self._hub.link.has_joined(task.node):
            failure = failure.replaced(text=f"{failure.text} before it joined")
        if not self._state.is_stopping and task.node not in self.lost:
            if died or not self._hub.link.has_left(task.node):
                self._fail(failure)
        elif died and task.node not in self._work.killed:
            # No cause by itself any more, but it may explain how and why a task died that is known to be dead.
            self._fail(failure if died < 0 else failure.replaced(kind="task-output"))
        self.maybe_finish()
        self.maybe_gone()

    # -- their ends --------------------------------------------------------------------------------------------------

    def lose(self, node: int, save_s: float) -> None:
        """The gang goes on without ``node``, whose guard ends its task, which has ``save_s`` seconds to save."""
        self.lost.add(node)
        self._kill_in(self._longest_s(save_s), [node])

    def gang_stops(self, save_s: float) -> None:
        """Each of the other nodes has a guard that sees to its end: end those whose guard is dead. Called again where
        it turns out that they save.
        """
        for timer in self._timers:
            timer.cancel()
        tasks = self._work.tasks
        if tasks:
            longest_s = self._longest_s(save_s)
            # What has stored its state is only to exit.
            self._kill_in(self._ending.exit_s, [node for node in tasks if self._hub.link.has_left(node)])
            self._timers = [
                self._loop.call_later(longest_s, lambda: self._kill_overdue(longest_s)),
                self._loop.call_later(ABSENT_S + extra_s(save_s), self._kill_the_absent),
            ]

    def _kill_overdue(self, seconds: float) -> None:
        for task in self._work.tasks.values():
            if task.alive:
                self._say(
                    f"node {task.node}'s task did not end within {seconds:.3g} s of the gang's stop (end_timeout is "
                    f"{self._ending.hooks_s:g} s of that), and its guard did not end it: it is killed."
                )
        self._work.kill_tasks(list(self._work.tasks))

    def _kill_the_absent(self) -> None:
        self._work.kill_tasks([node for node in self._work.tasks if not self._hub.link.has_joined(node)])

    def _longest_s(self, save_s: float) -> float:
        """Seconds from the stop in which the tasks of a local gang are gone, where their guards are alive."""
        return self._ending.longest_s(max(self._work.longest_grace(), save_s) + extra_s(save_s))

    def _kill_in(self, seconds: float, nodes: list[int]) -> None:
        if nodes:
            self._loop.call_later(seconds, lambda: self._work.kill_tasks(nodes))

    # -- control's task waits for them -------------------------------------------------------------------------------

    def maybe_finish(self) -> None:
        """Control may go on once all others have left."""
        if self._hub.link.all_left and self._work.tasks_settled:
            self._pending.reply_all("finish", {"lost": sorted(self.lost)})

    def maybe_gone(self) -> None:
        """Control gets the other nodes' logs once their tasks are gone."""
        if (
            self._work.tasks_settled
            and self._pending.reply_all("tasks-gone", {"logs": self._work.logs(), "dead": self._dead()})
            and self._state.is_stopping
        ):
            self._ending.body_over()

    def _dead(self) -> list[int]:
        """The nodes whose tasks have ended in the midst of something."""
        return [task.node for task in self._work.tasks.values() if task.cannot_report]

    def await_gone(self) -> None:
        """Control's task, whose body is over, waits for the other nodes' tasks: that is not its own time."""
        self._ending.over()
        self._loop.call_later(WAITING_S, self._say_who_is_waited_for)
        self.maybe_gone()

    def _say_who_is_waited_for(self) -> None:
        """Control's task waits until the other nodes' tasks are gone: name those that take their time."""
        late = [str(task.node) for task in self._work.tasks.values() if task.alive]
        if late and self._state.task_alive:
            one = len(late) == 1
            self._say(
                f"{'Node' if one else 'Nodes'} {', '.join(late)} {'is' if one else 'are'} still busy with the end of "
                f"the step, which may take {self._ending.hooks_s:g} s (end_timeout)."
            )
