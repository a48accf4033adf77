"""A gang that goes on without the nodes that it loses: which those are, and what is told of each.

The hub has one once control asks for it, after which a failure ends the gang only where it is control's. Elsewhere it
ends that node: its guard is told to stop as all are when a gang ends, while nobody else is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..channel.connection import Connection
from ..failure_record import Failure
from ..loop.event_loop import Loop
from .messages import stop_message
from .root_cause import REPORT_SETTLE_S, REPORT_WAIT_S, causes, failure_report

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..loop.framing import Header
    from .roster import Roster


class LostNode:
    """One node that is lost by ``failure``; ``on_told`` when node, user and log know why, as far as that can be known.

    Its connection, where one is left, is this object's: nothing that it says counts but what it says of its end.
    """

    def __init__(
        self,
        loop: Loop,
        failure: Failure,
        connection: Connection | None,
        hostname: str,
        say: Callable[[str], None],
        on_told: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.told = False
        self._node = failure.reporting_node
        self._hostname = hostname
        self._failures = [failure]
        self._since = time.monotonic()
        self._say = say
        self._on_told = on_told
        if connection is not None:
            connection.on_frame = lambda conn, header, payload: self._receive(conn, header)
            connection.on_close = lambda conn, reason: self._gone()
            connection.send(stop_message(failure))
        loop.call_later(REPORT_WAIT_S, self.tell)
        # As with a whole gang, several guards see a death, and the one that knows most may be second.
        loop.call_later(REPORT_SETTLE_S, self._maybe_tell)
        self._over = connection is None

    def add(self, failure: Failure) -> None:
        """More is known of its end."""
        self._failures.append(failure)

    def _receive(self, connection: Connection, header: Header) -> None:
        if header["op"] == "fail":
            self.add(Failure.from_json(header["failure"]).corrected(connection.offset, connection.uncertainty))
        elif header["op"] == "stopped":
            self._over = True
            self._maybe_tell()

    def _gone(self) -> None:
        self.connection = None
        self._over = True
        self._maybe_tell()

    def _maybe_tell(self) -> None:
        if self._over and time.monotonic() - self._since >= REPORT_SETTLE_S:
            self.tell()

    def tell(self) -> None:
        """Tell what is known by now, once."""
        if self.told:
            return
        self.told = True
        told = causes(self._failures) or self._failures
        name, text = _name(self._node, self._hostname), _clause(told[0])
        self._say(f"{name} was lost: {text}. The step goes on without it.")
        if self.connection is not None:
            said = failure_report(self._failures, {self._node: self._hostname})
            self.connection.send({"op": "failure-report", "report": said, "causes": [{"node": told[0].reporting_node}]})
        self._on_told()


def _name(node: int, hostname: str) -> str:
    return f"node {node}" + (f" ({hostname})" if hostname else "")


def _clause(failure: Failure) -> str:
    """What one line of control's log has room for; the node's own log has all of it."""
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
        Takes the index of a node that is lost, at once.
    on_told : callable
        Called when it is known, and told, why.

    Attributes
    ----------
    lost : dict of int to LostNode
    ending : bool
        Set by the hub once the gang ends: nobody else is lost from then on.
    """

    def __init__(
        self,
        loop: Loop,
        roster: Roster,
        say: Callable[[str], None],
        on_loss: Callable[[int], None],
        on_told: Callable[[], None],
    ) -> None:
        self.lost: dict[int, LostNode] = {}
        self.ending = False
        self._loop = loop
        self._roster = roster
        self._say = say
        self._on_loss = on_loss
        self._on_told = on_told
        self._cut: set[frozenset[int]] = set()

    @property
    def all_told(self) -> bool:
        return all(node.told for node in self.lost.values())

    def tell(self) -> None:
        """Tell what is known of every lost node."""
        for node in self.lost.values():
            node.tell()

    def connections(self) -> list[Connection]:
        """Those of lost nodes that have not ended."""
        return [node.connection for node in self.lost.values() if node.connection is not None]

    def takes(self, failure: Failure) -> bool:
        """Whether this failure is none of the gang's. The node that it ends, if any, is lost then."""
        if failure.peer is not None:
            return not self.lost.keys().isdisjoint((failure.node, failure.peer))
        # The node that ends is the one whose task is told of the failure, wherever the process ran.
        node = failure.reporting_node
        if node in self.lost:
            self.lost[node].add(failure)
            return True
        if self.ending or node == 0:
            return False
        if node not in self._roster.left:
            self._lose(failure, self._roster.members.pop(node, None))
        return True

    def _lose(self, failure: Failure, connection: Connection | None) -> None:
        node = failure.reporting_node
        hostname = self._roster.hostnames.get(node, "")
        self.lost[node] = LostNode(self._loop, failure, connection, hostname, self._say, self._on_told)
        self._on_loss(node)

    def cut(self, failure: Failure, peer: int) -> None:
        """A node lost its connection to ``peer``, while both answer node 0: that is said, once for both."""
        pair = frozenset((failure.node, peer))
        if not self.ending and pair not in self._cut and pair.isdisjoint(self.lost.keys()):
            self._cut.add(pair)
            name = _name(failure.node, self._roster.hostnames.get(failure.node, ""))
            self._say(f"{name} {_clause(failure)}. The step goes on.")
