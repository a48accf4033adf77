"""A gang that goes on without the nodes that it loses: which nodes are lost, and the report of each.

The hub has one once control asks for it, after which a failure ends the gang only where it is control's, or, where the
nodes' bodies work together, none of a node as a whole. Else it ends that node alone: its guard is stopped as all are
when a gang ends. Before, a node that cannot take part is lost by the hub's own decision (:mod:`.joining`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel.connection import Connection
from ..failure_record import OF_NODES, PREEMPTED, Failure, extra_s
from ..loop.event_loop import Loop
from ..settings import settings
from .messages import stop_message
from .root_cause import REPORT_SETTLE_S, causes, failure_report

if TYPE_CHECKING:
    from ..loop.framing import Header
    from .roster import Roster


class LostNode:
    """One node that is lost by ``failure``; ``on_report`` gets the failure that explains it when the node and the user
    have the report.

    One that is preempted has ``save_s`` seconds to save before. Its connection, where one is left, belongs to this
    object, which takes only records about the node's end. ``what`` has become of it is a clause for the user, to which
    the failure is added.
    """

    def __init__(
        self,
        loop: Loop,
        failure: Failure,
        connection: Connection | None,
        hostname: str,
        say: Callable[[str], None],
        on_report: Callable[[Failure], None],
        save_s: float,
        what: str,
        then: str,
    ) -> None:
        self.connection = connection
        self.reported = False
        self._node = failure.reporting_node
        self._hostname = hostname
        self._failures = [failure]
        self._since = time.monotonic()
        self._say, self._what, self._then = say, what, then
        self._on_report = on_report
        if connection is not None:
            connection.on_frame = lambda conn, header, payload: self._receive(conn, header)
            connection.on_close = lambda conn, reason: self._gone()
            connection.send(stop_message(failure))
        loop.call_later(settings().report_wait + extra_s(save_s), self.report)
        # As with a whole gang, several guards see a death, and the one that knows most may be second.
        loop.call_later(REPORT_SETTLE_S, self._maybe_report)
        self._over = connection is None

    def add(self, failure: Failure) -> None:
        """Add a record about its end."""
        self._failures.append(failure)

    def _receive(self, connection: Connection, header: Header) -> None:
        if header["op"] == "fail":
            self.add(Failure.from_json(header["failure"]).corrected(connection.offset, connection.uncertainty))
        elif header["op"] == "stopped":
            self._over = True
            self._maybe_report()

    def _gone(self) -> None:
        self.connection = None
        self._over = True
        self._maybe_report()

    def _maybe_report(self) -> None:
        if self._over and time.monotonic() - self._since >= REPORT_SETTLE_S:
            self.report()

    def report(self) -> None:
        """Report what is known by now, once."""
        if self.reported:
            return
        self.reported = True
        first = (causes(self._failures) or self._failures)[0]
        name, text = _name(self._node, self._hostname), _clause(first)
        self._say(f"{name} {self._what}: {text}.{self._then}")
        if self.connection is not None:
            report = failure_report(self._failures, {self._node: self._hostname})
            self.connection.send({"op": "failure-report", "report": report, "causes": [{"node": first.reporting_node}]})
        self._on_report(first)


def _name(node: int, hostname: str) -> str:
    return f"node {node}" + (f" ({hostname})" if hostname else "")


def _clause(failure: Failure) -> str:
    """The first line of its text; the node's own log has all of it."""
    return (failure.text.splitlines() or [""])[0].rstrip(".")


class LostNodes:
    """Decides for the hub what a failure ends, and ends the node where it is only that.

    Parameters
    ----------
    roster : Roster
        A node that is lost leaves its members; one that has left cannot be lost.
    say : callable
        Takes a line for the user.
    on_loss : callable
        Takes the index of a node that is lost, at once. Node 0 has the message by then.
    on_report : callable
        Called when the user, and node 0, have the report of a lost node.
    save_s : callable
        Gives the seconds that a node which is preempted has to save.
    only_nodes : bool
        Whether only the loss of a node as a whole is tolerated.

    Attributes
    ----------
    lost : dict of int to LostNode
    ending : bool
        Set by the hub once the gang ends: nobody else is lost from then on.
    is_tolerant : bool
        Whether nodes may be lost; the gang ends by any failure once this is False.
    has_begun : bool
        Set once control has asked for it: only then failures lose nodes.
    """

    def __init__(
        self,
        loop: Loop,
        roster: Roster,
        say: Callable[[str], None],
        on_loss: Callable[[int], None],
        on_report: Callable[[], None],
        save_s: Callable[[], float],
        only_nodes: bool,
    ) -> None:
        self.lost: dict[int, LostNode] = {}
        self.ending = False
        self.is_tolerant = True
        self.has_begun = False
        self.only_nodes = only_nodes
        self._save_s = save_s
        self._loop = loop
        self._roster = roster
        self._say = say
        self._on_loss = on_loss
        self._on_report = on_report
        self._cut: set[frozenset[int]] = set()

    @property
    def all_reported(self) -> bool:
        return all(node.reported for node in self.lost.values())

    def report(self) -> None:
        """Report what is known of every lost node."""
        for node in self.lost.values():
            node.report()

    def connections(self) -> list[Connection]:
        """Those of lost nodes that have not ended."""
        return [node.connection for node in self.lost.values() if node.connection is not None]

    def takes(self, failure: Failure) -> bool:
        """Whether this failure is none of the gang's. The node that it ends, if any, is lost then."""
        if not self.is_tolerant:
            return False
        if failure.peer is not None:
            return not self.lost.keys().isdisjoint((failure.node, failure.peer))
        # The node that ends is the one whose task gets the failure, wherever the process ran.
        node = failure.reporting_node
        if node in self.lost:
            self.lost[node].add(failure)
            return True
        if self.ending or node == 0 or not self.has_begun or (self.only_nodes and failure.kind not in OF_NODES):
            return False
        if node not in self._roster.left:
            self.lose(failure, "was lost", "lost")
        return True

    def lose(self, failure: Failure, what: str, why: str) -> None:
        """The gang goes on without the node of this ``failure``, which comes after ``what`` has become of the node in
        the line for the user, and after ``why`` it is left out in the metadata.
        """
        node = failure.reporting_node
        connection, hostname = self._roster.members.pop(node, None), self._roster.hostnames.get(node, "")
        save_s = self._save_s() if failure.kind == PREEMPTED else 0.0
        then = "" if self.only_nodes else " The step goes on without it."
        report = (self._say, lambda first: self._reported(first, why))
        self.lost[node] = LostNode(self._loop, failure, connection, hostname, *report, save_s, what, then)
        self._roster.deliver({"op": "lost", "node": node, "save_s": save_s}, b"")
        self._on_loss(node)

    def _reported(self, failure: Failure, why: str) -> None:
        text = f"{why}: {failure.text}"
        self._roster.deliver({"op": "told-of-lost", "failure": failure.to_json(), "why": text}, b"")
        self._on_report()

    def cut(self, failure: Failure, peer: int) -> None:
        """A node lost its connection to ``peer``, while both reply to node 0: a line for the user, once for both."""
        pair = frozenset((failure.node, peer))
        if not self.ending and pair not in self._cut and pair.isdisjoint(self.lost.keys()):
            self._cut.add(pair)
            name = _name(failure.node, self._roster.hostnames.get(failure.node, ""))
            self._say(f"{name} {_clause(failure)}. The step goes on.")
