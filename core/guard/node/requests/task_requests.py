"""Requests about the task itself: how it may be ended, how its body has ended, and what Metaflow has stored of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ...failure_record import EVIDENCE, Failure
from ...phases import FORMED, STORED
from ...processes import process_table
from ...processes.stopped import control_guard_of
from ...processes.watch import TaskWatch
from ...settings import use_settings

if TYPE_CHECKING:
    from ...card.access import CardAccess
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...phases import NodePhases
    from ...processes.task_children import TaskChildren
    from ..cleanup import Cleanup
    from ..identity import NodeIdentity
    from ..node_failures import NodeFailures
    from ..preemption import Preemption
    from ..state import NodeState
    from .dispatch import Method
    from .pending_requests import PendingRequests

    class TaskEvents(Protocol):
        """What a node does at the events of its task."""

        def keep_debug_log(self) -> None:
            """Write what the node does into a log."""

        def maybe_save(self) -> None:
            """The body may be about to save."""

        def task_unwound(self) -> None:
            """The body has ended badly."""

        def task_stored(self) -> None:
            """Metaflow has stored the task as failed."""

        def task_left(self) -> None:
            """Metaflow has stored the task as succeeded."""


NO_PROC = (
    "This system has no /proc. The gang works, and ends as a whole; but a process that leaves the process group of "
    "what the gang has started may outlive it, and one that is stopped (SIGSTOP) is not reported."
)


class TaskRequests:
    """Each method does what the request of its name asks for. ``err`` is the task's standard error, a descriptor."""

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        pending: PendingRequests,
        preemption: Preemption,
        children: TaskChildren,
        cleanup: Cleanup,
        card: CardAccess,
        failures: NodeFailures,
        phases: NodePhases,
        node: TaskEvents,
        say: Callable[[str], None],
        err: int,
    ) -> None:
        self._loop, self._identity, self._state, self._hub = loop, identity, state, hub
        self._pending, self._preemption = pending, preemption
        self._children, self._cleanup, self._failures = children, cleanup, failures
        self._phases, self._card, self._node, self._say, self._err = phases, card, node, say, err

    def methods(self) -> dict[str, Method]:
        return {
            "setup": self.setup,
            "formed": self.formed,
            "fail": self.fail,
            "save-seconds": self.save_seconds,
            "unwinding": self.unwinding,
            "unwound": self.unwound,
            "done": self.done,
            "traces": self.traces,
            "record": self.record,
            "stored": self.stored,
            "bye": self.bye,
        }

    def setup(self, number: int, header: Header, payload: bytes) -> None:
        """Who the task is and how it may be interrupted; must come first."""
        identity = self._identity
        identity.index = header["node"]
        identity.folder = header["folder"]
        self._cleanup.owned.keep(identity.folder, identity.task_pid)
        identity.gang_id = header["gang_id"]
        if header.get("debug_saver"):
            self._cleanup.debug_saver = header["debug_saver"]
            self._node.keep_debug_log()
        identity.interrupt_signal, identity.stacks_signal = header["interrupt_signal"], header["stacks_signal"]
        self._children.number = header.get("number", 0)
        self._phases.task_started(identity.index, identity.task_pid)
        identity.seen_by_control = header.get("seen_by_control", False)
        if identity.seen_by_control:
            identity.control_guard = control_guard_of(identity.task_pid)
            self._children.watch_output()
        elif not process_table.sees_all():
            self._say(NO_PROC)
        if header.get("notice_program"):
            from ..meeting_notice import MeetingNotice

            self._cleanup.notice = MeetingNotice(header["notice_program"], self._err)
        use_settings(header.get("settings", {}))
        if "sigterm" in header:
            self._preemption.listen(header["sigterm"])
        if header.get("notice"):
            self._preemption.watch(header["notice"], header["since"])
        if header.get("watch_parent"):
            TaskWatch(self._loop, header["watch_parent"], self._failures.run_gone)
            self._children.watch_output()
        self._pending.reply(number, {})

    def formed(self, number: int, header: Header, payload: bytes) -> None:
        """What the launcher gives is on ``current``, and the body begins."""
        self._phases.note(FORMED)
        self._pending.reply(number, {})

    def fail(self, number: int, header: Header, payload: bytes) -> None:
        """The body, or Metaflow around it, raised. The reply is the failure report."""
        if not self._state.is_stopping:
            raised = (header["kind"], header["text"], time.time(), header["detail"])
            order, names = header.get("order", EVIDENCE), {key: header.get(key, "") for key in ("exception", "message")}
            self._failures.fail(Failure(self._identity.index, *raised, order=order, **names))
        self.unwound(number, header, payload)

    def save_seconds(self, number: int, header: Header, payload: bytes) -> None:
        """How long what the body registered for a preemption may take."""
        self._hub.send({"op": "save-seconds", "seconds": header["seconds"]})
        self._pending.reply(number, {})

    def unwinding(self, number: int, header: Header, payload: bytes) -> None:
        """The body has ended badly, and would save. The reply is whether it is to."""
        self._preemption.settle(self._node.maybe_save)

    def unwound(self, number: int, header: Header, payload: bytes) -> None:
        """The interrupted body has ended. The reply is the failure report."""
        self._pending.rename(number, "failure-report")
        self._node.task_unwound()
        report = self._failures.report
        if report is not None:
            self._pending.reply(number, report)

    def done(self, number: int, header: Header, payload: bytes) -> None:
        """The body has ended well."""
        self._state.body_done()
        self._hub.send({"op": "done"})
        self._pending.reply(number, {})

    def traces(self, number: int, header: Header, payload: bytes) -> None:
        """The ranks of this node have left traces of torch's profiler; ``found`` is for node 0's card."""
        self._hub.send({"op": "traces", "found": header["found"]})
        self._pending.reply(number, {})

    def record(self, number: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the task. The reply has what is kept as its metadata, and the last snapshot for the card
        where the task is to store it.
        """
        self._phases.note(STORED)
        found = {**self._phases.record(), **self._failures.record()}
        self._card.end(lambda last: self._pending.reply(number, {**found, "card": last}))

    def stored(self, number: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the state of the task, which has failed."""
        self._node.task_stored()
        self._pending.reply(number, {})

    def bye(self, number: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the task's state: nothing can fail here any more. The reply comes when the hub has it."""
        self._node.task_left()
