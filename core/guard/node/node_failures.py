"""What has failed on a node: reports to the hub, and the failure report that comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..coordinator.root_cause import causes, failure_report, first_failure
from ..failure_record import CUT, LOST, PREEMPTED, Failure
from ..node_roles import NodeRoles

if TYPE_CHECKING:
    from ..hub_link.hub_access import HubAccess
    from ..loop.event_loop import Loop, Timer
    from ..loop.framing import Header
    from .identity import NodeIdentity
    from .state import NodeState

REPORT_DEADLINE_S = 3.0
"""How long the hub may take for the failure report; it needs a second at most, so then the hub is lost."""

_AFTERTHOUGHTS = ("task", "task-signal", "task-exit", "task-output", PREEMPTED)
"""Kinds of records that may still come once the node is stopping: how a task died that is known to be dead, and that
the node was told to end, which its ranks may have been told before it.
"""


class NodeFailures:
    """Reports the failures of a node.

    Parameters
    ----------
    stop : callable
        Stops the node: ``stop(order, preempted)``, as a message of the hub does.
    on_report : callable
        Called when the failure report is there.

    Attributes
    ----------
    report : Header or None
        The failure report: what the hub, or this node where it has none, has found to be the cause of the gang's end.
    is_tolerant : bool
        Whether the gang goes on without nodes that it loses.
    roles : NodeRoles
        On control: the nodes that it goes on without, and why, and the spare ones.
    """

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        stop: Callable[[int, bool], None],
        on_report: Callable[[], None],
    ) -> None:
        self.report: Header | None = None
        self.is_tolerant = False
        self.roles = NodeRoles()
        self._loop, self._identity, self._state, self._hub = loop, identity, state, hub
        self._deadline: Timer | None = None  # of the report
        self._has_reported_ranks = False
        self._stop, self._on_report = stop, on_report
        self._failures: list[Failure] = []  # of this node, and of its connection to the hub

    def fail(self, failure: Failure) -> None:
        """Something failed here first: report it to the hub, which stops all nodes, this one included."""
        if self._state.is_stopping and failure.kind not in _AFTERTHOUGHTS:
            return
        if not self._hub.link.connected:
            self._fail_alone(failure)  # there is no gang yet, and so no hub that would report
        elif failure.peer is not None or (
            failure.reporting_node != self._identity.index and (self.is_tolerant or self._identity.index == 0)
        ):
            # Which may end another node and not this one, or none: the hub knows whether the peer has only left, and
            # without which nodes the gang can begin.
            self._hub.send({"op": "fail", "failure": failure.to_json()})
        else:
            self.report_to_hub(failure)
            self._stop(failure.order, failure.kind == PREEMPTED)

    def guard_failed(self, text: str, trace: str = "") -> None:
        """This guard itself has failed."""
        self.fail(Failure(self._identity.index, "guard", text, time.time(), trace))

    def run_gone(self) -> None:
        """The process of the run has ended, and with it all nodes have to end."""
        self.fail(Failure(self._identity.index, "run", "the process of the run itself has ended", time.time()))

    def hub_lost(self, text: str, node: int) -> None:
        """The hub cannot be reached any more: this node makes its own failure report."""
        if not self._state.has_left:
            self._fail_alone(Failure(node, "lost", text, time.time(), order=LOST))

    def await_report(self, more_s: float) -> None:
        """The node stops: the hub has to report within :data:`REPORT_DEADLINE_S` and ``more_s`` seconds from now on."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(REPORT_DEADLINE_S + more_s, self._hub_silent)

    def _hub_silent(self) -> None:
        if self.report is None:
            index = self._identity.index
            self.hub_lost(f"has not answered node {index} for {REPORT_DEADLINE_S:g} s: {CUT}", 0)

    def ranks_ended(self, ranks: dict[int, float] | None) -> None:
        """Of the latest launch, those that ended with code 0. The hub names them where other ranks miss them."""
        if ranks or (self._has_reported_ranks and ranks is not None):  # what the hub knows is of an earlier launch
            self._has_reported_ranks = bool(ranks)
            self._hub.send({"op": "ranks-ended", "ranks": list(ranks.items())})

    def report_to_hub(self, failure: Failure) -> None:
        """Report one failure, whether or not the node is stopping."""
        self._failures.append(failure)
        self._hub.send({"op": "fail", "failure": failure.to_json()})

    def _fail_alone(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._stop(failure.order, failure.kind == PREEMPTED)
        if self.report is None:
            found = causes(self._failures)
            self.received(
                {
                    "report": failure_report(found, {}),
                    "causes": [{"node": cause.reporting_node} for cause in found],
                    "failure": first_failure(found, {}),
                }
            )

    def record(self) -> Header:
        """What control's task keeps as metadata: ``left_out``, and ``nodes``, the records of :class:`.NodeRoles`."""
        return {"left_out": self.roles.left_out, "nodes": self.roles.records()}

    def received(self, header: Header) -> None:
        """The failure report has come."""
        self.report = {name: header[name] for name in ("report", "causes", "left", "failure") if name in header}
        self._on_report()
