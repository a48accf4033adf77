"""The hub, on node 0's guard: which nodes have joined, their collectives, and their failures.

It knows nothing of sockets beyond :class:`~.connection.Connection`; node 0's own guard gets the same messages as the
others, through ``deliver``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel.connection import Connection, cannot_understand
from ..channel.liveness import Liveness, Silent
from ..failure_record import LOST, Failure
from ..loop.event_loop import Loop
from .collectives import Collectives, Mismatch
from .failures import Failures
from .joining import Joining
from .messages import Checker, check_info, stop_message
from .node_reports import NodeReports
from .root_cause import failure_report
from .roster import Roster

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.framing import Header
    from .lost_nodes import LostNodes

CUT_OFF = "its own network is cut"
"""The reason when all other nodes are silent at once."""


class Hub:
    """The gang's roster, collectives and failures, for ``num_nodes`` nodes; node 0 is control's own.

    Parameters
    ----------
    timeout_s : float
        Seconds from now in which all must have joined, else the gang fails and names who is missing.
    deliver : callable
        Takes what control's own node is to receive.
    say : callable
        Takes a line for the user.
    start_uploads : callable
        Starts the server for uploads and returns its port; called at the first need.
    debug : DebugLog or None
    may_leave_out : int
        How many nodes that cannot take part the gang can do without.
    """

    def __init__(
        self,
        loop: Loop,
        num_nodes: int,
        timeout_s: float,
        deliver: Callable[[Header, bytes], None],
        say: Callable[[str], None],
        start_uploads: Callable[[], int],
        debug: DebugLog | None = None,
        may_leave_out: int = 0,
    ) -> None:
        self._debug, self._loop, self._num_nodes = debug, loop, num_nodes
        self._say, self._start_uploads = say, start_uploads
        roster = self.roster = Roster(deliver)
        self._collectives = Collectives(num_nodes)
        self.reports = NodeReports(loop, roster, num_nodes, self._stalls)
        self._liveness = Liveness(loop, self._not_answering)
        self.failures = Failures(loop, roster, lambda: self._joining.end(), self._told_before)
        self._joining = Joining(loop, roster, self.failures, num_nodes, timeout_s, may_leave_out, say, self._lost_nodes)

    def close(self, then: Callable[[], None]) -> None:
        """Close all connections, after what was sent; ``then`` is called when they are closed."""
        self._joining.end()
        self._liveness.close()
        lost = self.failures.lost_nodes.connections() if self.failures.lost_nodes is not None else []
        waiting = [*self.roster.members.values(), *lost]
        self.roster.members.clear()
        remaining = [len(waiting)]

        def one_closed() -> None:
            remaining[0] -= 1
            if remaining[0] == 0:
                then()

        for connection in waiting:
            connection.close(one_closed)
        if not waiting:
            then()

    def refuse(self, role: str, node: int) -> str | None:
        """Why ``node``, which has proved the secret, may not join; None where it may."""
        if role != "member" or not 0 < node < self._num_nodes:
            return f"this gang has nodes 0 to {self._num_nodes - 1}, no {role} {node}"
        return self._joining.refuse(node)

    def accept(self, connection: Connection) -> None:
        """Take a node that has proved the secret. A wrong message of it (:mod:`.messages`) ends that node only."""
        connection.on_fault = self._misbehaved
        node = connection.node
        if self._debug is not None:
            self._debug.write(f"link to node {node} at {connection.address} opened")
        checker = Checker(self._num_nodes)
        check_info(connection.info)

        def on_frame(connection: Connection, header: Header, payload: bytes) -> None:
            checker.check(header, payload)
            self.receive(node, header, payload)

        connection.on_frame = on_frame
        connection.on_close = lambda conn, reason: self._closed(conn, reason)
        self.roster.members[node] = connection
        port = connection.info.get("ring_port")
        self._liveness.watch(connection, (connection.address, port) if type(port) is int else None)
        self.join(node, {**connection.info, "address": connection.address})

    def join(self, node: int, info: Header) -> None:
        """Add ``node`` to the gang; the last one completes it."""
        self.roster.infos[node] = info
        if not self.failures.stopping:
            self._joining.look()
            return
        for message in self.failures.messages():  # it has failed at nothing, and is to show the report of the others
            self.roster.send(node, message)

    def receive(self, node: int, header: Header, payload: bytes) -> None:
        """Act on a message of a node, node 0 included."""
        op = header["op"]
        if self._debug is not None and node:
            self._debug.write(f"from node {node}:", header, payload)
        if self.reports.take(node, header):
            return
        self.failures.received(node, op)
        if op == "gather":
            self._gather(node, header, payload)
        elif op == "fail":
            failure = Failure.from_json(header["failure"])
            if (connection := self.roster.members.get(node)) is not None:
                failure = failure.corrected(connection.offset, connection.uncertainty)
            self.fail(failure)
        elif op == "ranks-ended":
            offset = connection.offset if (connection := self.roster.members.get(node)) is not None else 0.0
            self.failures.ended_ranks[node] = [(rank, moment + offset) for rank, moment in header["ranks"]]
        elif op == "stopped":
            self.failures.stopped(node)
        elif op == "ends-task":
            self.roster.deliver({"op": "ends-task", "node": node}, b"")
        elif op == "bye":
            self._leave(node)
        elif op == "done":
            self.roster.done.add(node)
            self._check_deserted()
            if node == 0:
                self.roster.broadcast({"op": "control-done"})
        elif op == "alive" and type(header.get("number")) is int:
            self.failures.alive(node, header["number"])
        elif op == "cancel":
            grace = {"grace": header["grace"]} if node == 0 and "grace" in header else {}
            self.roster.broadcast({"op": "cancel", "key": header["key"], **grace})
        elif op == "uploads":
            self._open_uploads(node)
        elif op == "watch-samples" and node == 0:
            self.roster.broadcast({"op": "watch-samples", "nodes": self._num_nodes})
        elif op == "tolerate" and node == 0:
            self._tolerate(header)
        elif op == "save-seconds":
            self.failures.save_s = max(self.failures.save_s, header["seconds"])
            self.roster.broadcast({"op": "save-seconds", "seconds": self.failures.save_s})

    def _tolerate(self, header: Header) -> None:
        """From here on the gang goes on without the nodes that it loses, or, with ``end``, does so no more."""
        if not self.failures.stopping and not header.get("end"):
            self._lost_nodes(header.get("only_nodes", False)).has_begun = True
        elif self.failures.lost_nodes is not None:
            self.failures.lost_nodes.is_tolerant = False

    def _lost_nodes(self, only_nodes: bool = True) -> LostNodes:
        if self.failures.lost_nodes is None:
            from .lost_nodes import LostNodes

            more = (self._lost, self._check_all_left, lambda: self.failures.save_s, only_nodes)
            self.failures.lost_nodes = LostNodes(self._loop, self.roster, self._say, *more)
            self.roster.broadcast({"op": "tolerate"})
        return self.failures.lost_nodes

    def _lost(self, node: int) -> None:
        self.failures.lost(node)
        for whole in self._collectives.lose(node):
            self.roster.broadcast(*whole)

    def _open_uploads(self, node: int) -> None:
        try:
            port = self._start_uploads()
        except (OSError, RuntimeError) as error:
            text = f"its guard could not start the server for large values: {error}"
            self.fail(Failure(0, "guard", text, time.time()))
        else:
            self.roster.send(node, {"op": "uploads", "port": port})

    def _gather(self, node: int, header: Header, payload: bytes) -> None:
        try:
            whole = self._collectives.add(node, header, payload)
        except Mismatch as mismatch:
            self._fail_mismatch(mismatch)
            return
        if whole is None:
            self._check_deserted()
        else:
            self.roster.broadcast(*whole)

    def _check_deserted(self) -> None:
        """End the gang where a collective waits for a node whose body is done."""
        try:
            self._collectives.check_deserted(self.roster.done)
        except Mismatch as mismatch:
            self._fail_mismatch(mismatch)

    def _fail_mismatch(self, mismatch: Mismatch) -> None:
        if not self.failures.stopping:  # a gang that is being stopped makes no more collectives
            self.fail(Failure(mismatch.node, "mismatch", str(mismatch), time.time()))

    def _leave(self, node: int) -> None:
        self.roster.send(node - 1, {"op": "left"})
        if node in self.roster.done:  # else its guard ends before its task has, and reports why
            self.roster.left.add(node)
            self._check_all_left()

    def _check_all_left(self) -> None:
        left, reported, lost_nodes = self.roster.left, True, self.failures.lost_nodes
        if lost_nodes is not None:
            left, reported = left | lost_nodes.lost.keys(), lost_nodes.all_reported
        if self._joining.is_complete and reported and len(left - {0}) == self._num_nodes - 1:
            self.roster.deliver({"op": "all-left"}, b"")

    def _told_before(self) -> str:
        return self.reports.told_of_restarts() if self._joining.is_complete else self._joining.told_of_left_out()

    def _misbehaved(self, connection: Connection, error: Exception) -> None:
        """A node sent what cannot be understood: that node ends, and gets the reason."""
        failure = Failure(connection.node, "nonsense", cannot_understand(error), time.time())
        if self._debug is not None:
            self._debug.write(f"link to node {failure.node} closed: it {failure.text}")
        self.roster.members.pop(failure.node, None)
        self._liveness.forget(connection)
        connection.send(stop_message(failure))
        report = failure_report([failure], self.roster.hostnames)
        data = failure.as_data(self.roster.hostnames.get(failure.node, ""))
        causes = [{"node": failure.node}]
        connection.send({"op": "failure-report", "report": report, "causes": causes, "failure": data})
        connection.close()
        if failure.node not in self.roster.left:
            self.fail(failure)
        self.failures.ended(failure.node)

    def _closed(self, connection: Connection, reason: str) -> None:
        node = connection.node
        if self._debug is not None:
            self._debug.write(f"link to node {node} closed: {reason or 'in order'}")
        self.roster.members.pop(node, None)
        self._liveness.forget(connection)
        self.failures.closed(node, reason)

    def _not_answering(self, silent: list[Silent], answering: int) -> None:
        """Nodes have sent nothing for too long. Their connections stay: one that goes on gets the reason to end."""
        nodes = [
            one.connection.node for one in silent if self.roster.members.get(one.connection.node) is one.connection
        ]
        if self._debug is not None:
            self._debug.write(f"no answer from nodes {nodes}")
        self.roster.silent.update(nodes)
        now = time.time()
        alone = len(nodes) > 1 and not answering and not any(one.frozen for one in silent)
        if alone:
            text = f"none of the {len(nodes)} other nodes has answered it {silent[0].text.partition(',')[0]}: {CUT_OFF}"
            self.fail(Failure(0, "lost", text, now, order=LOST))
        for one in silent:
            if one.connection.node in nodes and not alone:
                text = f"has not answered node 0 {one.text}"
                self.fail(Failure(one.connection.node, "lost", text, now, order=LOST))
        for node in nodes:
            self.failures.stopped(node)

    def _stalls(self, failure: Failure) -> None:
        if not self.failures.stopping:  # its node knows whether that ends the gang, or the launch of its ranks alone
            lost_nodes = self.failures.lost_nodes  # a node may have no ranks then, as a spare one
            node = 0 if lost_nodes is not None and lost_nodes.only_nodes else failure.node
            self.roster.send(node, {"op": "stalled", "failure": failure.to_json()})

    def fail(self, failure: Failure) -> None:
        """Record a failure; the first one stops the gang, unless it tolerates it."""
        self.failures.add(failure)
