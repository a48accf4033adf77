"""What this guard has running: launches of its task, and, on control of a local gang, the other nodes' tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ..failure_record import Failure
from ..loop.event_loop import Loop
from ..processes import process_table
from ..processes.stopped import TASK, stopped_below
from ..settings import settings
from .child import Child, NodeTask
from .launch import LATELY_S, Launch

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.framing import Header
    from .output import Sink
    from .paused import PausedRanks


LOOK_S = 1.0
"""Between two looks at the children for which no signal has come."""

_SHOWN = 8
"""Processes that cannot be ended which one line names."""


class Work:
    """Every child of this guard, from its start until it is gone and its output drained.

    ``on_failure(failure)`` is called when a process of a launch has failed; ``end_everywhere(key)`` when that ends the
    launch on all nodes, and not the gang: it could not have its port, or is restartable; ``on_task_end(task)`` when a
    node's task has ended; ``on_ranks_ended(ranks)``, before the launch is ``done``, of its ranks that ended with code
    0, and when.
    """

    def __init__(
        self,
        loop: Loop,
        out: int,
        err: int,
        on_failure: Callable[[Failure], None],
        end_everywhere: Callable[[str], None],
        on_task_end: Callable[[NodeTask], None],
    ) -> None:
        self.launches: dict[str, Launch] = {}
        self.tasks: dict[int, NodeTask] = {}
        self.killed: set[int] = set()  # nodes whose tasks we have ended for good
        self._loop = loop
        self._out = out
        self._err = err
        self._on_failure = on_failure
        self._end_everywhere = end_everywhere
        self._on_task_end = on_task_end
        self._launched = 0
        self.on_ranks_ended: Callable[[dict[int, float] | None], None] = lambda ranks: None
        self._cancelled: set[str] = set()
        self._paused: PausedRanks | None = None
        self.say: Callable[[str], None] = lambda text: None  # a line for the user
        self.debug: DebugLog | None = None
        loop.on_signal(signal.SIGCHLD, self._reap)
        self._look()

    def launch(
        self,
        owner: str,
        node: int,
        plan: Header,
        done: Callable[[Launch], None],
        sinks: Callable[[str], list[Sink]] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Launch:
        """Start a plan's processes; ``done`` when nothing of them is left. Their streams: see :class:`Launch`."""
        self._launched += 1
        name = f"{owner}.{self._launched}"
        launch = Launch(self._loop, name, plan, self._out, self._err, sinks, stdin, node, self._paused)
        self.launches[launch.name] = launch
        if launch.restartable and plan.get("warm"):
            self._pause_ranks(owner).prepare(plan)
        if self.debug is not None:
            for spec, child in zip(plan["processes"], launch.children, strict=True):
                self.debug.started(f"{child.title} of launch {name}", child.pid, spec["argv"])

        def failed(launch: Launch, child: Child) -> None:
            if launch.restartable or launch.port_is_taken():
                launch.give_up()
                self._end_everywhere(launch.key)
            else:
                self._on_failure(child.failure(node))
                launch.end()

        def ended(launch: Launch) -> None:
            del self.launches[launch.name]
            if self.debug is not None:
                self.debug.write(f"launch {name} is gone")
            if self._paused is not None and launch.restartable and not launch.has_been_given_up:
                self._paused.end()
            self.on_ranks_ended(launch.ended_well())
            done(launch)

        launch.on_failure = failed
        launch.on_done = ended
        launch.on_unkillable = self.say_unkillable
        return launch

    def pause(self, owner: str, plan: Header | None) -> None:
        """This node waits to run ``plan``, whose interpreters wait with it; None where it does not wait any more."""
        if plan is not None:
            self._pause_ranks(owner).prepare(plan)
        elif self._paused is not None:
            self._paused.end()

    def _pause_ranks(self, owner: str) -> PausedRanks:
        if self._paused is None:
            from .paused import PausedRanks

            self._paused = PausedRanks(self._loop, owner, self._out, self._err)
        return self._paused

    def say_unkillable(self, pids: list[int]) -> None:
        """Tell the user of processes that go on, though they were killed."""
        shown = "; ".join(map(process_table.described, pids[:_SHOWN]))
        more = f"; and {len(pids) - _SHOWN} more" if len(pids) > _SHOWN else ""
        self.say(
            f"Could not be ended within {settings().unkillable_timeout:g} s of SIGKILL, and is not waited for any "
            f"more: {shown}{more}."
        )

    def stream(self, name: str) -> int:
        """The task's own "stdout" or "stderr", where what runs here writes for the user."""
        return self._out if name == "stdout" else self._err

    def is_cancelled(self, key: str) -> bool:
        """Whether the launch that all nodes call ``key`` has ended elsewhere, perhaps before it began here."""
        return key in self._cancelled

    def cancel(self, key: str, grace: float = 0.0) -> None:
        """End the launch that all nodes call ``key``, without that being a failure of the gang. Its processes have
        ``grace`` seconds to do so, or their plan's where that is longer.
        """
        self._cancelled.add(key)
        for launch in list(self.launches.values()):
            if launch.key == key:
                launch.cancelled = True
                launch.give_up(grace=grace)

    def ends_launch(self, failure: Failure) -> bool:
        """Whether ``failure``, of processes that have not ended, ends a restartable launch, on all nodes, and not the
        gang.
        """
        for launch in list(self.launches.values()):
            if launch.restartable:
                if not launch.has_been_given_up:
                    launch.cancelled = True
                    launch.give_up(failure)
                    self._end_everywhere(launch.key)
                return True
        return False

    @property
    def children(self) -> list[Child]:
        """The processes of all launches, those that have ended included."""
        return [child for launch in self.launches.values() for child in launch.children]

    @property
    def runs_ranks_of_others(self) -> bool:
        """Whether another node's launcher may have started ranks here, by the gang's channel or by its ssh."""
        return any(child.serves_others for child in self.children if child.alive)

    def end_launches(self, lasting: bool = True, grace: float = 0.0) -> None:
        """End all of them, or only those that need not outlive the body; each one's ``done`` follows.

        Their processes have ``grace`` seconds to do so, or their plan's where that is longer.
        """
        if self._paused is not None:
            self._paused.end()
        for launch in list(self.launches.values()):
            if lasting or not launch.lasting:
                launch.end(grace)

    def longest_grace(self) -> float:
        """Seconds that the launches may take to end."""
        return max((launch.grace for launch in self.launches.values()), default=0.0)

    def unreported_deaths(self, node: int) -> Iterator[Failure]:
        """Evidence of processes that have failed, but whose output has not ended: it may take its time."""
        for launch in self.launches.values():
            for child in launch.undrained():
                yield child.failure(node)

    def evidence_before_end(self, node: int) -> Iterator[Failure]:
        """Evidence of processes that have lately failed, but not ended."""
        since = time.time() - LATELY_S
        for child in self.children:
            evidence = child.evidence_before_end(node, since)
            if evidence is not None:
                yield evidence

    def start_task(self, spec: Header, variable: str, announcement: bytes, folder: str) -> None:
        """Start another node's task; it reads ``announcement`` from the descriptor that ``variable`` names."""
        read, write = os.pipe()
        env = {**spec["env"], variable: str(read)}
        task = NodeTask(self._loop, spec["node"], {**spec, "env": env}, self._out, self._err, folder, read)
        # Some hundred bytes always fit an empty pipe; and it has a reader as long as this end is open.
        os.write(write, announcement)
        os.close(write)
        os.close(read)
        if self.debug is not None:
            self.debug.started(f"task of node {task.node}", task.pid, spec["argv"])
        task.on_end = lambda child: self._on_task_end(task)
        self.tasks[task.node] = task

    def kill_tasks(self, nodes: Iterable[int]) -> None:
        """End the tasks of ``nodes`` that run here for good; from here on their deaths are ours."""
        self.killed.update(nodes)
        tasks = [task for task in self.tasks.values() if task.alive and task.node in self.killed]
        process_table.send([task.pid for task in tasks], signal.SIGKILL)
        if tasks:
            self._loop.call_later(settings().unkillable_timeout, lambda: self._give_up(tasks))

    def _give_up(self, tasks: list[NodeTask]) -> None:
        left = [task for task in tasks if task.alive]
        if left:
            self.say_unkillable([task.pid for task in left])
        for task in left:
            task.give_up()

    @property
    def tasks_settled(self) -> bool:
        """Whether all other nodes' tasks are gone, and their logs whole."""
        return all(task.settled for task in self.tasks.values())

    def logs(self) -> dict[str, dict[str, str]]:
        """Where the other nodes' output is, by node index and stream."""
        return {str(task.node): task.logs for task in self.tasks.values()}

    def watched(self, node: int) -> dict[int, tuple[int, str]]:
        """What runs: pid to node and title."""
        children = self.children
        found = {child.pid: (node, child.title) for child in children if child.alive}
        starters = [child for child in children if child.starts_ranks or child.serves_others]
        entries = process_table.table() if any(child.alive for child in starters) else {}
        for child in starters:
            found.update({pid: (node, title) for pid, title in stopped_below(child.pid, child.title, entries).items()})
        found.update({task.pid: (task.node, TASK) for task in self.tasks.values() if task.alive})
        return found

    def _look(self) -> None:
        """A death whose signal is lost is seen all the same."""
        self._reap()
        self._loop.call_later(LOOK_S, self._look)

    def _reap(self) -> None:
        dead: list[Child] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            code = os.waitstatus_to_exitcode(status)
            if self.debug is not None:
                self.debug.ended(pid, code)
            child = self._find(pid)
            if child is not None:
                child.died(code)
                dead.append(child)
        # All deaths are noted before the first is reported, since the report may end the others.
        for child in dead:
            child.reaped()

    def _find(self, pid: int) -> Child | None:
        for launch in self.launches.values():
            child = launch.find(pid)
            if child is not None:
                return child
        if self._paused is not None and (paused := self._paused.find(pid)) is not None:
            return paused
        return next((task for task in self.tasks.values() if task.pid == pid and task.alive), None)
