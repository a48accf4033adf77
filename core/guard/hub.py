"""The hub, on control's guard: who has joined, what is being gathered, and what failed first.

It knows nothing of sockets beyond :class:`~.channel.Connection`, and talks to control's own node through ``deliver``,
with the same messages the other nodes get.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .gathers import Gathers, Mismatch
from .loop import Loop
from .messages import Checker, check_info
from .preemption import KIND, extra_s, stop_message
from .rollcall import RollCall
from .session import Connection, cannot_understand, send_to_all
from .verdict import CUT, LOST, PEER, Failure, causes, ranks_that_left, story

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from .tolerance import Tolerance
    from .wire import Header

STORY_WAIT_S = 1.0
"""How long the story waits for the other nodes' records after the first failure. Stopping does not wait for it."""

STORY_SETTLE_S = 0.1
"""The least wait: a death is seen by several guards, and the one that knows most may be second by milliseconds."""


class Hub:
    """Roster, collectives and the verdict for ``num_nodes`` nodes; node 0 is control's own.

    Parameters
    ----------
    timeout_s : float
        Seconds from now in which all must have joined, else the gang fails and names who is missing.
    deliver : callable
        Takes what control's own node is to receive.
    say : callable
        Takes a line for the user.
    start_bulk : callable
        Opens the bulk server and returns its port; called at the first need.
    """

    def __init__(
        self,
        loop: Loop,
        num_nodes: int,
        timeout_s: float,
        deliver: Callable[[Header, bytes], None],
        say: Callable[[str], None],
        start_bulk: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._num_nodes = num_nodes
        self._deliver = deliver
        self._say = say
        self._start_bulk = start_bulk
        self._infos: dict[int, Header] = {}
        self._members: dict[int, Connection] = {}
        self._gathers = Gathers(num_nodes)
        self._left: set[int] = set()
        self._stopped: set[int] = set()
        self._heard: set[int] = set()  # since the first failure
        self._failures: list[Failure] = []
        self._stop_time: float | None = None
        self._save_s = 0.0
        self._ended_ranks: dict[int, list[tuple[int, float]]] = {}
        self._told = False
        self._complete = False
        self._tolerance: Tolerance | None = None
        self._roll = RollCall(loop, num_nodes, timeout_s, self._infos, say, self.fail)

    # -- joining -----------------------------------------------------------------------------------------------------

    @property
    def hostnames(self) -> dict[int, str]:
        return {node: str(info.get("hostname", "")) for node, info in self._infos.items()}

    @property
    def members_left(self) -> bool:
        """Whether any other node is still connected."""
        return bool(self._members)

    def has_left(self, node: int) -> bool:
        """Whether ``node`` has stored its state and said goodbye."""
        return node in self._left

    def close(self, then: Callable[[], None]) -> None:
        """Say goodbye to whoever is still connected; ``then`` when that is out."""
        self._roll.end()
        lost = self._tolerance.connections() if self._tolerance is not None else []
        waiting = [*self._members.values(), *lost]
        self._members.clear()
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
        if self._stop_time is not None:
            return "this gang is ending"
        if node in self._infos:
            self.fail(Failure(node, "restarted", "was restarted: it joined twice in one attempt", time.time()))
            return f"node {node} has joined already, and was restarted; this attempt ends"
        return None

    def accept(self, connection: Connection) -> None:
        """A node that proved the secret. What it sends is checked (:mod:`.messages`): it can end its own node only."""
        connection.on_fault = self._misbehaved
        node = connection.node
        checker = Checker(self._num_nodes)
        check_info(connection.info)

        def on_frame(connection: Connection, header: Header, payload: bytes) -> None:
            checker.check(header, payload)
            self.receive(node, header, payload)

        connection.on_frame = on_frame
        connection.on_close = lambda conn, reason: self._closed(conn, reason)
        self._members[node] = connection
        self.join(node, {**connection.info, "address": connection.address})

    def join(self, node: int, info: Header) -> None:
        self._infos[node] = info
        if self._stop_time is not None:
            self._send(node, stop_message(self._failures[0]))
        elif len(self._infos) == self._num_nodes:
            self._complete = True
            self._roll.end()
            roster = [self._infos[index] for index in range(self._num_nodes)]
            self._broadcast({"op": "roster", "nodes": roster})

    # -- messages ----------------------------------------------------------------------------------------------------

    def receive(self, node: int, header: Header, payload: bytes) -> None:
        """One message of a node, control's own included."""
        op = header["op"]
        if self._stop_time is not None or op == "fail":
            self._heard.add(node)
        if self._tolerance is not None:
            self._tolerance.heard(node)
        if op == "gather":
            self._gather(node, header, payload)
        elif op == "fail":
            failure = Failure.from_json(header["failure"])
            connection = self._members.get(node)
            if connection is not None:
                failure = failure.corrected(connection.offset, connection.uncertainty)
            self.fail(failure)
        elif op == "ranks-ended":
            offset = connection.offset if (connection := self._members.get(node)) is not None else 0.0
            self._ended_ranks[node] = [(rank, moment + offset) for rank, moment in header["ranks"]]
        elif op == "stopped":
            self._stopped.add(node)
            self._maybe_tell()
        elif op == "bye":
            self._leave(node)
        elif op == "done":
            if node == 0:
                self._broadcast({"op": "control-done"})
        elif op == "cancel":
            self._broadcast({"op": "cancel", "key": header["key"]})
        elif op == "bulk":
            self._open_bulk(node)
        elif op == "tolerate" and node == 0:
            self._tolerate()
        elif op == "save-seconds":
            self._save_s = max(self._save_s, header["seconds"])
            self._broadcast({"op": "save-seconds", "seconds": self._save_s})

    def _tolerate(self) -> None:
        """From here on the gang goes on without the nodes that it loses."""
        if self._stop_time is None:
            from .tolerance import Tolerance

            self._tolerance = Tolerance(
                self._loop, self._members, self._left, self.hostnames, self._say, self._lost, self._check_all_left
            )
            self._broadcast({"op": "tolerate"})

    def _lost(self, node: int) -> None:
        self._stopped.add(node)
        self._heard.add(node)
        self._deliver({"op": "lost", "node": node}, b"")

    def _open_bulk(self, node: int) -> None:
        try:
            port = self._start_bulk()
        except (OSError, RuntimeError) as error:
            text = f"its guard could not open the way for large values: {error}"
            self.fail(Failure(0, "guard", text, time.time()))
        else:
            self._send(node, {"op": "bulk", "port": port})

    def _gather(self, node: int, header: Header, payload: bytes) -> None:
        try:
            whole = self._gathers.add(node, header, payload)
        except Mismatch as mismatch:
            self._blame(mismatch)
            return
        if whole is None:
            self._check_deserted()
        else:
            self._broadcast(*whole)

    def _check_deserted(self) -> None:
        """A collective that a node which has left can never take part in."""
        try:
            self._gathers.check_deserted(self._left)
        except Mismatch as mismatch:
            self._blame(mismatch)

    def _blame(self, mismatch: Mismatch) -> None:
        self.fail(Failure(mismatch.node, "mismatch", str(mismatch), time.time()))

    def _leave(self, node: int) -> None:
        self._left.add(node)
        self._send(node - 1, {"op": "left"})
        self._check_deserted()
        self._check_all_left()

    def _check_all_left(self) -> None:
        left, told = self._left, True
        if self._tolerance is not None:
            left, told = left | self._tolerance.lost.keys(), self._tolerance.all_told
        if self._complete and told and len(left - {0}) == self._num_nodes - 1:
            self._deliver({"op": "all-left"}, b"")

    def _misbehaved(self, connection: Connection, error: Exception) -> None:
        """A node sent what cannot be understood: that node ends, and is told why."""
        failure = Failure(connection.node, "nonsense", cannot_understand(error), time.time())
        self._members.pop(failure.node, None)
        self._stopped.add(failure.node)
        connection.send(stop_message(failure))
        connection.send({"op": "story", "story": story([failure], self.hostnames), "causes": [{"node": failure.node}]})
        connection.close()
        if failure.node not in self._left:
            self.fail(failure)
        self._after_an_end()

    def _closed(self, connection: Connection, reason: str) -> None:
        node = connection.node
        self._members.pop(node, None)
        # A guard that stops says so before it closes. That one is gone counts only where all others blame somebody.
        is_cause = self._stop_time is None or (node not in self._stopped and self._blames_a_peer())
        self._stopped.add(node)
        if node not in self._left and is_cause:
            text = f"the connection from it to node 0 was lost ({reason or 'closed before its work was done'}): {CUT}"
            self.fail(Failure(node, "lost", text, time.time(), order=LOST))
        self._after_an_end()

    def _after_an_end(self) -> None:
        """A member's connection is gone."""
        self._maybe_tell()
        if self._stop_time is not None and not self._members:
            self._deliver({"op": "all-gone"}, b"")

    # -- failing -----------------------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Record a failure; the first one stops the gang, unless it tolerates it."""
        if self._told or (self._tolerance is not None and self._tolerance.takes(failure)):
            return
        self._failures.append(failure)
        if self._stop_time is None:
            self._stop_time = time.monotonic()
            self._roll.end()
            if self._tolerance is not None:
                self._tolerance.ending = True
            self._broadcast(stop_message(failure))
            # Whoever tells the story ends, and with node 0, or a pod, a cluster ends those that still save.
            saving = extra_s(self._save_s) if failure.kind == KIND else 0.0
            self._loop.call_later(STORY_WAIT_S + saving, self._tell)
            self._loop.call_later(STORY_SETTLE_S, self._maybe_tell)

    def _maybe_tell(self) -> None:
        if self._stop_time is None or time.monotonic() - self._stop_time < STORY_SETTLE_S:
            return
        if self._stopped >= set(self._infos):
            self._tell()

    def _tell(self) -> None:
        if self._told:
            return
        self._told = True
        if self._tolerance is not None:
            self._tolerance.tell()
        self._blame_the_silent()
        told = causes(self._failures)
        left = ranks_that_left(told, self._ended_ranks)
        message: Header = {
            "op": "story",
            "story": story(self._failures, self.hostnames, left),
            "causes": [{"node": failure.teller} for failure in told],
            "left": left,
        }
        self._broadcast(message)
        if not self._members:
            self._deliver({"op": "all-gone"}, b"")

    def _blame_the_silent(self) -> None:
        """Where the ring lost a node that is silent here too, that node is lost, and not the network beside it."""
        silent = self._infos.keys() - self._heard - self._left
        for failure in list(self._failures):
            if failure.peer is not None and failure.peer in silent:
                text = f"answers neither node 0 nor node {failure.node} any more: {CUT}"
                self._failures.append(Failure(failure.peer, "lost", text, failure.time, order=LOST))
        if self._blames_a_peer():
            # What a guard has to say of a stop comes in milliseconds, whatever its task does.
            for node in sorted(silent - self._stopped):
                text = f"answers node 0 no more: {CUT}"
                self._failures.append(Failure(node, "lost", text, time.time(), order=LOST))

    def _blames_a_peer(self) -> bool:
        """Whether all that is known are failures of nodes that say themselves that another one went first."""
        return bool(self._failures) and all(failure.order == PEER for failure in self._failures)

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, node: int, header: Header, payload: bytes = b"") -> None:
        if node == 0:
            self._deliver(header, payload)
        elif node in self._members:
            self._members[node].send(header, payload)

    def _broadcast(self, header: Header, payload: bytes = b"") -> None:
        send_to_all(list(self._members.values()), header, payload)
        self._deliver(header, payload)
