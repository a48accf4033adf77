"""The gang's failures: the first one stops the gang, and the records of all nodes make the failure report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel.liveness import FROZEN, kernel_state
from ..failure_record import CUT, DIED, LOST, PEER, PREEMPTED, Failure, extra_s
from ..loop.event_loop import Loop, Timer
from ..loop.timeouts import SILENT
from ..settings import settings
from .messages import stop_message
from .root_cause import REPORT_SETTLE_S, causes, failure_report, first_failure, ranks_that_left

if TYPE_CHECKING:
    from ..loop.framing import Header
    from .lost_nodes import LostNodes
    from .roster import Roster

SILENCE_WAIT_S = 1.5
"""How much longer it waits where all records are about a lost peer, and a node has sent nothing."""


class Failures:
    """The failures of a gang, from the first one to the report of all.

    Parameters
    ----------
    roster : Roster
        Its nodes are stopped, pinged and sent the report.
    on_stop : callable
        Called once, when the first failure stops the gang.
    told_before : callable
        What the report has besides: how often ranks were started again.

    Attributes
    ----------
    stopping : bool
        Whether a failure has stopped the gang.
    lost_nodes : LostNodes or None
        Set once the gang goes on without the nodes that it loses.
    ends_one_node : callable
        Whether a failure of before the gang begins has ended only its node (:class:`.joining.Joining`).
    ended_ranks : dict
        By node, its ranks of the last launch that ended with code 0, and when.
    save_s : float
        Seconds that a body may take to save when it is preempted, the longest of all nodes.
    """

    def __init__(
        self, loop: Loop, roster: Roster, on_stop: Callable[[], None], told_before: Callable[[], str] = str
    ) -> None:
        self.stopping = False
        self.lost_nodes: LostNodes | None = None
        self.ends_one_node: Callable[[Failure], bool] = lambda failure: False
        self.ended_ranks: dict[int, list[tuple[int, float]]] = {}
        self.save_s = 0.0
        self._loop = loop
        self._roster = roster
        self._on_stop = on_stop
        self._told_before = told_before
        self._records: list[Failure] = []
        self._since = 0.0
        self._saves = False  # whether the nodes stop for a preemption, and save
        self._deadline: Timer | None = None  # of the report
        self._report: Header | None = None  # once it is made
        self._stopped: set[int] = set()
        self._has_sent: set[int] = set()  # since the first failure
        self._last_ping = 0
        self._pings: dict[int, tuple[int, Failure]] = {}  # by number: the node, and the failure if it replies

    def add(self, failure: Failure) -> None:
        """Record a failure; the first one stops the gang, unless it tolerates it."""
        if self._report is not None or (not self.stopping and self.ends_one_node(failure)):
            return
        if self.lost_nodes is not None and self.lost_nodes.takes(failure):
            return
        if failure.peer is not None and not self.stopping:
            self._ping(failure, failure.peer)
        else:
            self.end_by(failure)

    def end_by(self, failure: Failure) -> None:
        """Record a failure that the gang does not tolerate."""
        self._records.append(failure)
        if self.stopping:
            # Ranks may act on a SIGTERM that all processes get before the first task does.
            if failure.kind == PREEMPTED and self.save_s and not self._saves:
                self._stop_nodes(failure)
            return
        self.stopping = True
        self._since = time.monotonic()
        self._on_stop()
        if self.lost_nodes is not None:
            self.lost_nodes.ending = True
        self._stop_nodes(failure)
        self._loop.call_later(REPORT_SETTLE_S, self._maybe_report)

    def _stop_nodes(self, failure: Failure) -> None:
        self._saves = failure.kind == PREEMPTED
        self._roster.broadcast(stop_message(failure))
        if self._deadline is not None:
            self._deadline.cancel()
        # A node ends after the report; a cluster that sees node 0 or a pod end, ends those that still save.
        saving = extra_s(self.save_s) if self._saves else 0.0
        self._deadline = self._loop.call_later(settings().report_wait + saving, self._report_what_is_known)

    def messages(self) -> list[Header]:
        """The messages for a node that joins while the gang ends: all that the others have received."""
        stop = stop_message(self._records[0])
        return [stop] if self._report is None else [stop, self._report]

    def first_line(self) -> str:
        """The first failure in one line, as a part of a sentence, for a node that was restarted."""
        short = [failure.replaced(detail="") for failure in self._records]
        line = failure_report(short, self._roster.hostnames).splitlines()[0]
        return line[:1].lower() + line[1:]

    # -- a node that lost another one --------------------------------------------------------------------------------

    def _ping(self, failure: Failure, peer: int) -> None:
        """Find out whether ``peer``, to which a node lost its connection, has only left: its messages come in order.

        One that does not reply is lost to node 0 too, which is a failure of its own.
        """
        if peer in self._roster.members:
            self._last_ping += 1
            self._pings[self._last_ping] = (peer, failure)
            self._roster.send(peer, {"op": "ping", "number": self._last_ping})

    def alive(self, node: int, number: int) -> None:
        """``node`` has replied to ping ``number``: it runs, so its network to the other node is cut."""
        if self._pings.get(number, (None, None))[0] != node:
            return
        peer, failure = self._pings.pop(number)
        if self._report is not None or not self._roster.left.isdisjoint((peer, failure.node)):
            return
        if self.lost_nodes is not None:
            self.lost_nodes.cut(failure, peer)
        else:
            self.end_by(failure)

    # -- events of nodes ---------------------------------------------------------------------------------------------

    def received(self, node: int, op: str) -> None:
        """Note that a message of ``node`` has come."""
        if self.stopping or op == "fail":
            self._has_sent.add(node)

    def stopped(self, node: int) -> None:
        """Note that nothing of ``node`` runs any more, or that it is not waited for."""
        self._stopped.add(node)
        self._maybe_report()

    def lost(self, node: int) -> None:
        """Note that the gang goes on without ``node``."""
        self._stopped.add(node)
        self._has_sent.add(node)

    def closed(self, node: int, reason: str) -> None:
        """The connection of ``node`` has ended: a failure, unless the node has left or has been stopped."""
        # A guard reports its stop before it closes. A lost node is a cause only where all others miss a peer.
        is_cause = not self.stopping or (node not in self._stopped and self._all_miss_a_peer())
        if node not in self._roster.left and is_cause:
            how = reason or "closed before its work was done"
            text = f"the connection from it to node 0 was lost ({how}): {CUT if reason in SILENT else DIED}"
            self.add(Failure(node, "lost", text, time.time(), order=LOST))
        self.ended(node)

    def ended(self, node: int) -> None:
        """There is no connection to ``node`` any more."""
        self.stopped(node)
        self._maybe_all_gone()

    # -- the report --------------------------------------------------------------------------------------------------

    def _maybe_report(self) -> None:
        if not self.stopping or time.monotonic() - self._since < REPORT_SETTLE_S:
            return
        if self._stopped >= set(self._roster.infos):
            self._send_report()

    def _report_what_is_known(self) -> None:
        if self._all_miss_a_peer() and self._quiet_nodes():
            # Where a node's silence would be the cause, a busy machine gets some more time.
            self._loop.call_later(SILENCE_WAIT_S, self._send_report)
        else:
            self._send_report()

    def _send_report(self) -> None:
        if self._report is not None:
            return
        if self.lost_nodes is not None:
            self.lost_nodes.report()
        self._add_the_quiet()
        first = causes(self._records)
        left = "\n".join(filter(None, (ranks_that_left(first, self.ended_ranks), self._told_before())))
        self._report = {
            "op": "failure-report",
            "report": failure_report(self._records, self._roster.hostnames, left),
            "causes": [{"node": failure.reporting_node} for failure in first],
            "left": left,
            "failure": first_failure(first, self._roster.hostnames),
        }
        self._roster.broadcast(self._report)
        self._maybe_all_gone()

    def _maybe_all_gone(self) -> None:
        if self.stopping and not self._roster.members_left:
            self._roster.deliver({"op": "all-gone"}, b"")

    def _add_the_quiet(self) -> None:
        """Where all records are about a lost peer, the cause is the node that does not even acknowledge the stop."""
        if not self._all_miss_a_peer():
            return
        # A guard acknowledges a stop within milliseconds, whatever its task does.
        for node in self._quiet_nodes():
            connection = self._roster.members.get(node)
            state = kernel_state(connection.sock) if connection is not None else None
            is_there = state is not None and state[1] == 0
            text = f"does not answer node 0, {FROZEN}" if is_there else f"answers node 0 no more: {CUT}"
            self._records.append(Failure(node, "lost", text, time.time(), order=LOST))

    def _quiet_nodes(self) -> list[int]:
        """The nodes that have sent nothing since the first failure."""
        return sorted(self._roster.infos.keys() - self._has_sent - self._roster.left - self._stopped)

    def _all_miss_a_peer(self) -> bool:
        """Whether all records are of nodes that report that another one was gone first."""
        return bool(self._records) and all(failure.order == PEER for failure in self._records)
