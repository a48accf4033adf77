"""The processes of a node that must not be stopped (SIGSTOP) for long, and how each of them is ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..processes.process_table import is_child
from ..processes.stopped import TASK

if TYPE_CHECKING:
    from ..children.supervisor import Work
    from ..hub_link.hub_access import HubAccess
    from ..processes.task_children import TaskChildren
    from .identity import NodeIdentity
    from .state import NodeState
    from .task_end import TaskEnd


class WatchedProcesses:
    """Its task, its ranks, and in a local gang the other nodes' tasks and guards; see :mod:`.stopped`."""

    def __init__(
        self,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        work: Work,
        children: TaskChildren,
        ending: TaskEnd,
    ) -> None:
        self._identity, self._state, self._hub = identity, state, hub
        self._work, self._ending = work, ending
        self.look = children.look

    @property
    def task_pid(self) -> int:
        return self._identity.task_pid

    @property
    def has_succeeded(self) -> bool:
        return self._state.has_succeeded

    def processes(self) -> dict[int, tuple[int, str]]:
        """All that runs, guards excepted: process id to node and title."""
        found = self._work.watched(self._identity.index)
        if self._state.task_alive and not self._state.has_left:
            found[self.task_pid] = (self._identity.index, TASK)
        return found

    def guards(self) -> dict[int, int]:
        """The guards of other nodes of a local gang, by node: control's sees all, and all see control's."""
        control = self._identity.control_guard
        if control:
            # Once it is dead, the task is another's child.
            return {0: control} if is_child(self.task_pid, control) else {}
        if not self._work.tasks:
            return {}
        tasks = {index: task.pid for index, task in self._work.tasks.items() if task.alive}
        # What another node reports of itself has to be true before it is signalled.
        return {
            index: pid
            for index, pid in self._hub.link.guards().items()
            if index in tasks and is_child(pid, tasks[index])
        }

    def tasks(self) -> dict[int, int]:
        """The tasks of other nodes of a local gang, by node."""
        return {index: task.pid for index, task in self._work.tasks.items()}

    def end_own_task(self) -> None:
        """End the own task at once."""
        self._ending.end_now()

    def end_task(self, node: int) -> None:
        """End the task of another node for good."""
        self._work.kill_tasks([node])
