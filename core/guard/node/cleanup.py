"""The cleanup of a node when its guard ends: processes, ports and files that are left, and logs to store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Protocol

from ..children.launch import LEFT_S
from ..host.owned_files import Owned, remove_abandoned, remove_folder
from ..processes import process_table
from ..settings import settings

if TYPE_CHECKING:
    from ..card.access import CardAccess
    from ..children.supervisor import Work
    from ..children.user_log import UserLog
    from ..host.ports import PortLease
    from ..loop.framing import Header
    from ..phases import NodePhases
    from ..processes.task_children import TaskChildren
    from .identity import NodeIdentity
    from .meeting_notice import MeetingNotice
    from .node_failures import NodeFailures
    from .state import NodeState

    class Server(Protocol):
        """What can be closed."""

        def close(self) -> None:
            """Accept nothing more."""


_STEP_S = 0.01


class Cleanup:
    """Knows what a node has to remove, give back or end, and does so once its guard ends.

    Attributes
    ----------
    saver : Header or None
        On control of a local gang: how a process is started that stores the other nodes' logs.
    debug_saver : Header or None
        Where the guard keeps a debug log: how a process is started that stores it.
    notice : MeetingNotice or None
        On a cluster, until all nodes have joined: leaves a notice of the task's death where the nodes meet.
    leases : list of PortLease
        Ports to give back.
    servers : list
        Servers to close.
    owned : Owned
        Folders and files to remove.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        state: NodeState,
        work: Work,
        children: TaskChildren,
        failures: NodeFailures,
        phases: NodePhases,
        card: CardAccess,
        log: UserLog,
        err: int,
    ) -> None:
        self.saver: Header | None = None
        self.debug_saver: Header | None = None
        self.notice: MeetingNotice | None = None
        self.leases: list[PortLease] = []
        self.servers: list[Server] = []
        self.owned = Owned()
        self._identity, self._state = identity, state
        self._work, self._children = work, children
        self._failures, self._phases, self._card = failures, phases, card
        self._log, self._err = log, err

    def run(self) -> None:
        """End descendants and strays, store logs, give back ports, remove the private folder."""
        if self.notice is not None:
            self.notice.wait()  # before everything that descends from here is ended
        for server in self.servers:
            server.close()
        self._card.end_now()
        tasks = {task.pid for task in self._work.tasks.values()}
        self._end_strays(tasks)
        is_stored = self._state.has_left or self._state.is_failure_stored
        if self.saver is not None and tasks and not is_stored:
            self._leave_the_failure(self.saver["left"])
            self._store(self.saver, "The logs of the other nodes")
        if self.debug_saver is not None and not is_stored:
            self._store(self.debug_saver, "The guard's debug log")
        for lease in self.leases:
            lease.release()
        self.owned.remove()
        folder = self._identity.folder
        if tasks and folder:
            remove_abandoned(folder, self._identity.gang_id, self._store_debug_log_of)
        remove_folder(folder)
        self._log.finish()

    def _end_strays(self, tasks: set[int]) -> None:
        """End what is left of this node's processes, which may clean up: Open MPI's daemon of a task that imported
        mpi4py, for one, removes its folder below /tmp a moment after the task.
        """

        def left() -> set[int]:
            found = process_table.descendants([os.getpid()]) | self._strays(tasks)
            return found if process_table.sees_all() else found | process_table.groups(pid for pid in tasks if pid > 0)

        def left_after(seconds: float) -> set[int]:
            deadline = time.monotonic() + seconds
            while (strays := left()) and time.monotonic() < deadline:
                time.sleep(_STEP_S)
            return strays

        if self._state.has_left and not self._state.is_stopping:
            left_after(LEFT_S)  # as what a launch has left behind may finish by itself
        process_table.terminate(left())
        process_table.send(left_after(settings().kill_grace), signal.SIGKILL)

    def _strays(self, tasks: set[int]) -> set[int]:
        """What the task, or user code in it, had started by itself."""
        marked = process_table.marked(process_table.GANG_MARKER, self._identity.name)
        return (marked | self._children.living()) - {self._identity.task_pid, *tasks}

    def _store_debug_log_of(self, folder: str) -> None:
        """The guard and the task are dead whose private ``folder`` this is."""
        if self.debug_saver is not None:
            from ..debug_log import SAVER_SPEC

            *program, _ = self.debug_saver["argv"]
            self._store({**self.debug_saver, "argv": [*program, os.path.join(folder, SAVER_SPEC)]}, "A debug log")

    def _leave_the_failure(self, path: str) -> None:
        """Write what that process registers as metadata of the tasks that are dead."""
        failure = (self._failures.report or {}).get("failure")
        if failure is not None:
            nodes = [0, *(task.node for task in self._work.tasks.values() if task.cannot_report)]
            record = {**self._phases.record(), **self._failures.record()}
            with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
                json.dump({"nodes": nodes, "failure": failure, "record": record}, file)

    def _store(self, saver: Header, what: str) -> None:
        """The task is dead, so another process that has Metaflow stores the logs."""
        try:
            subprocess.run(
                saver["argv"],
                env=saver["env"],
                cwd=saver["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._err,
                timeout=settings().log_store_timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._log.say(f"{what} could not be stored: {error}")
