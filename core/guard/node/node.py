"""One node's guard: it connects the parts of a node, passes on the hub's messages, and stops the node.

When the gang stops, all pending requests get their replies (:mod:`.pending_requests`), the task's body is interrupted
by a signal (:mod:`.task_end`), and everything that runs is ended (:mod:`.supervisor`). The guard itself ends when its
task is gone (:mod:`.cleanup`). What the node is doing is one value (:mod:`.state`).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ..card.access import CardAccess
from ..children.child import NodeTask
from ..children.launcher import Launcher
from ..children.supervisor import Work
from ..children.user_log import UserLog
from ..failure_record import PEER, extra_s
from ..hub_link.hub_access import HubAccess
from ..loop.event_loop import Loop
from ..loop.stream import Stream
from ..phases import NodePhases
from ..processes.stopped import Stopped
from ..processes.task_children import TaskChildren
from .cleanup import Cleanup
from .identity import NodeIdentity
from .local_tasks import LocalTasks
from .node_failures import NodeFailures
from .preemption import Preemption
from .requests.dispatch import Requests
from .requests.export_requests import ExportRequests
from .requests.gang_requests import GangRequests
from .requests.pending_requests import PendingRequests
from .requests.port_and_file_requests import PortAndFileRequests
from .requests.process_requests import ProcessRequests
from .requests.restart_requests import RestartRequests
from .requests.sample_requests import SampleRequests
from .requests.stall_requests import StallRequests
from .requests.task_requests import TaskRequests
from .requests.value_requests import ValueRequests
from .state import NodeState
from .task_death import TaskDeath
from .task_end import TaskEnd
from .watched_processes import WatchedProcesses

if TYPE_CHECKING:
    from ..loop.framing import Header
    from .requests.dispatch import Group

GONE_GRACE_S = 5.0
"""How long control's guard waits for the other guards once its own task is dead; the tasks that it has started itself
have longer: what they may do after their bodies is theirs (:mod:`.task_end`)."""


class Node:
    """The guard of the task ``task_pid``, joined to it by ``sock``; ``out`` and ``err`` are the task's own streams."""

    def __init__(self, loop: Loop, sock: socket.socket, task_pid: int, out: int = 1, err: int = 2) -> None:
        self._awaits_report = False  # the task died while the gang stopped for something else, and cannot report that
        self._is_leaving = False  # this node has reported to the hub that it has left
        self._has_waited = False  # long enough for the other guards, after the task's death
        self._loop = loop
        self._identity = identity = NodeIdentity(task_pid)
        self._state = state = NodeState()
        self._hub = hub = HubAccess()
        self._failures = failures = NodeFailures(loop, identity, state, hub, self._stop, self._reported)
        self._log = log = UserLog(err)
        self._say = say = log.say
        phases = NodePhases(loop, hub, say)
        state.on_event = phases.event
        self._children = children = TaskChildren(task_pid)
        cancel = lambda key: hub.send({"op": "cancel", "key": key})  # noqa: E731
        self._work = work = Work(loop, out, err, failures.fail, cancel, self._node_task_ended)
        work.say, work.on_ranks_ended = say, failures.ranks_ended
        launcher = Launcher(loop, identity, work, state.refusal, failures.fail, self._work_gone)
        self._card = card = CardAccess(loop, hub, failures, err)
        self._cleanup = cleanup = Cleanup(identity, state, work, children, failures, phases, card, log, err)
        self.tidy = cleanup.run  # the guard ends by force
        will_kill = lambda: hub.send({"op": "ends-task"})  # noqa: E731 - or its parent would take our signal for a cause
        self._ending = ending = TaskEnd(loop, identity, say, will_kill, self._task_killed)
        self._preemption = Preemption(loop, identity, failures.fail, lambda: state.is_end_expected)
        stream = Stream(loop, sock)
        self._pending = pending = PendingRequests(stream, lambda *request: self._requests.handle(*request))
        self._local_tasks = local_tasks = LocalTasks(loop, state, hub, work, pending, ending, failures.fail, say)
        self._gang = GangRequests(
            loop, identity, state, hub, pending, work, local_tasks, cleanup, failures, phases, card, self.from_hub, say
        )
        of_task = (self._preemption, children, cleanup, card)
        groups: list[Group] = [
            TaskRequests(loop, identity, state, hub, pending, *of_task, failures, phases, self, say, err),
            self._gang,
            restarts := RestartRequests(loop, identity, state, hub, pending, work, cleanup, failures, local_tasks, say),
            ProcessRequests(loop, identity, state, hub, pending, work, launcher, cleanup, phases, card, restarts, say),
            PortAndFileRequests(loop, identity, hub, pending, cleanup, say),
            ValueRequests(loop, identity, hub, pending, cleanup, say),
            samples := SampleRequests(loop, identity, state, hub, pending, work),
            ExportRequests(loop, pending, samples, cleanup, failures, phases, say),
            stalls := StallRequests(loop, identity, hub, pending, work, phases, samples, say),
        ]
        card.samples, self._stalls, self._restarts = samples, stalls, restarts
        self._requests = Requests(pending, groups, failures.guard_failed)
        self._death = TaskDeath(loop, identity, state, hub, ending, cleanup, failures.fail, self._task_gone)
        stream.on_close = lambda reason: self._death.closed()
        self._stopped = Stopped(loop, WatchedProcesses(identity, state, hub, work, children, ending), restarts.fail)

    # -- the hub -----------------------------------------------------------------------------------------------------

    def from_hub(self, header: Header, payload: bytes) -> None:
        """One message of the hub."""
        op = header["op"]
        if op == "roster":
            self._gang.all_joined(header)
        elif op == "gathered":
            self._gang.gathered(header, payload)
        elif op == "stop":
            self._hub.send({"op": "alive"})
            self._stop(header["order"], header["preempted"])
        elif op == "failure-report":
            self._failures.received(header)
        elif op == "cancel":
            self._work.cancel(header["key"], header.get("grace", 0.0))
        elif op == "tolerate":
            self._failures.is_tolerant = True
        elif op == "save-seconds":
            self._preemption.save_s = header["seconds"]
        elif op == "control-done":
            self._pending.reply_all("hold", {})
        elif op == "ends-task":
            self._work.killed.add(header["node"])
        elif op in ("watch-samples", "stacks", "stacks-found"):
            self._stalls.from_hub(header)
        elif op in ("tidy-up", "tidied", "stalled", "ranks-failed", "lost", "told-of-lost"):
            self._restarts.from_hub(header)
        elif op == "all-left":
            self._local_tasks.maybe_finish()
        elif op == "all-gone":
            self._maybe_exit()

    def _reported(self) -> None:
        """The failure report is there."""
        report = self._failures.report
        if report is not None:
            self._pending.reply_all("failure-report", report)
            if not self._state.task_alive:
                self._say(f"Node {self._identity.index}'s task is dead. {report['report']}")
        self._maybe_exit()

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self, order: int, preempted: bool) -> None:
        """From here on no death on this node is a cause."""
        if not self._state.stop():
            if preempted and not self._preemption.stops:
                self._end_within_limits(preempted)
                self.maybe_save()
            return
        self._report_evidence(order)
        for launch in self._work.launches.values():  # now: what is left of it may take longer than the report waits
            self._failures.ranks_ended(launch.ended_well())
        # Before the reply to a launch: an interrupt that comes after it would hide the body's own exception.
        if self._state.task_alive and self._state.is_body_over:
            self._ending.body_over()
        elif self._state.task_alive:
            self._ending.interrupt()
        self._end_within_limits(preempted)
        self._pending.stop()
        self._stopped.gang_stops()
        self._maybe_stopped()

    def _end_within_limits(self, preempted: bool) -> None:
        """End what this node runs. Where it turns out to be a preemption, all of it has more time from then on."""
        self._preemption.stops = preempted
        save_s = self._preemption.save_s if preempted else 0.0
        self._failures.await_report(extra_s(save_s))
        if self._state.task_alive and not self._state.is_body_over:
            grace = max(self._work.longest_grace(), save_s) + save_s
            self._ending.limit_body(grace, grace if preempted else 0.0, preempted)
        self._work.end_launches(lasting=False, grace=save_s)
        self._local_tasks.gang_stops(save_s)

    def _report_evidence(self, order: int) -> None:
        """Report what is known here of a cause, and has not been a failure yet."""
        for failure in self._work.unreported_deaths(self._identity.index):
            self._failures.report_to_hub(failure)
        if order == PEER:
            # A node that reports a lost peer may have waited for less time than a process may be stopped.
            for failure in self._stopped.failures():
                self._failures.report_to_hub(failure)
            # The cause may be a process here that has raised but not yet ended: what it wrote is evidence.
            for failure in self._work.evidence_before_end(self._identity.index):
                self._failures.report_to_hub(failure)

    def maybe_save(self) -> None:
        """A body that has ended badly saves where that is for a preemption, once what it ran has ended."""
        saves = self._preemption.stops
        have_ended = all(launch.lasting for launch in self._work.launches.values())
        if have_ended if saves else self._preemption.is_settled:
            self._pending.reply_all("unwinding", {"preempted": saves})

    def _maybe_stopped(self) -> None:
        """What served the body ends after it, and when all that this node ran has ended, the node has stopped."""
        if self._state.is_stopping and (self._state.is_body_over or not self._state.task_alive):
            self._work.end_launches()
            if not self._work.launches:
                self._hub.send({"op": "stopped"})
                self._maybe_exit()

    def _work_gone(self) -> None:
        """Something that ran has ended, for which the node may have waited."""
        self.maybe_save()
        self._maybe_stopped()
        self._maybe_leave()
        self._maybe_exit()

    # -- the task ----------------------------------------------------------------------------------------------------

    def keep_debug_log(self) -> None:
        """From here on the parts of this node write what they do into a file in its private folder."""
        from ..debug_log import keep

        keep(self._identity, (self._pending, self._state, self._hub, self._work, self._log))

    def task_unwound(self) -> None:
        """The task's body has failed, or has ended as an interrupted one, and the task has reported that."""
        self._state.unwound()
        self._ending.body_over()
        self._maybe_stopped()

    def task_stored(self) -> None:
        """Metaflow has stored the state of the task, which has failed."""
        self._state.failure_stored()
        self._children.look()
        self._ending.stored()

    def task_left(self) -> None:
        """Metaflow has stored the state of the task, which has succeeded: nothing can fail here any more."""
        self._state.left()
        self._children.look()
        self._work.end_launches()  # a thread of the body may have left one
        self._maybe_leave()

    def _maybe_leave(self) -> None:
        """Leave the hub once Metaflow has stored the task's state and nothing runs any more."""
        if self._state.has_left and not self._is_leaving and not self._work.launches:
            self._is_leaving = True
            self._hub.link.leave(self._may_go)

    def _may_go(self) -> None:
        self._pending.reply_all("bye", {})

    def _task_killed(self) -> None:
        """The task did not end by itself. What it has stored, it has reported; else it cannot any more."""
        has_reported = self._state.is_failure_stored
        self._state.killed()
        if self._failures.report is not None and not has_reported:
            self._say(self._failures.report["report"])

    def _task_gone(self) -> None:
        """The task is dead."""
        state = self._state
        self._pending.close()
        if self._failures.report is not None and not state.is_body_over:
            self._say(self._failures.report["report"])  # it did not get it: something was faster, as JAX's own abort is
        self._awaits_report = state.is_stopping and not state.has_left
        self._death.report()
        if not state.has_left:
            self._loop.call_later(GONE_GRACE_S, self._gone_long_enough)
        self._maybe_stopped()
        self._maybe_exit()

    def _node_task_ended(self, task: NodeTask) -> None:
        self._local_tasks.ended(task)
        self._maybe_exit()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _maybe_exit(self) -> None:
        if self._has_waited and self._work.tasks_settled:
            self._exit()
        if self._state.task_alive or self._work.launches or not self._work.tasks_settled:
            return
        if self._awaits_report and self._failures.report is None:
            return
        if self._state.has_left or self._hub.link.may_leave(self._failures.report is not None):
            self._exit()

    def _gone_long_enough(self) -> None:
        """The task is dead, and nobody waits for the other guards any more, but for the tasks that run here."""
        self._has_waited = True
        self._maybe_exit()

    def _exit(self) -> None:
        if self._state.finished():
            self._cleanup.run()
            self._hub.link.close(self._loop.stop)

    def has_fault(self, text: str, trace: str) -> None:
        """A callback of this guard has raised: the gang ends, as far as this guard can still see to that."""
        self._say(f"{text}\n{trace}")
        self._failures.guard_failed(text, trace)
