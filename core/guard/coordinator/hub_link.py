"""A node's way to the hub: in this very process on control, over the channel everywhere else.

Both kinds offer the same to :class:`~.node.Node`; what the hub answers arrives at ``node.from_hub``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from ..channel.accept import Acceptor
from ..channel.connect import ConnectError, Dial, connect
from ..channel.connection import Connection, Identity, cannot_understand
from ..channel.liveness import Liveness, Silent
from ..failure_record import CUT, DIED, LOST, Failure
from ..loop.framing import WireError
from ..loop.limits import Complaint
from ..loop.timeouts import SILENT, TIMEOUTS, tune
from .hub import ENDING, Hub
from .messages import HEADER_BYTES, inline_bytes
from .neighbour_watch import Ring

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Protocol

    from ..loop.framing import Header
    from ..node.node import Node
    from ..tls.values import BulkServer

    BulkReady = Callable[[str, int, bytes], None]

    class Uplink(Protocol):
        """What a node needs of its way to the hub."""

        all_left: bool
        """On control: whether every other node has stored its state and left."""

        control_done: bool
        """Elsewhere: whether control's body has ended well."""

        secret: bytes
        """The gang's."""

        @property
        def connected(self) -> bool:
            """Whether the hub hears what is sent."""

        def send(self, header: Header, payload: bytes = b"") -> None:
            """One message to the hub."""

        def with_bulk(self, ready: BulkReady) -> None:
            """Call ``ready(address, port, secret)`` of control's bulk server once it listens."""

        def has_left(self, node: int) -> bool:
            """On control: whether ``node`` has stored its state and left."""

        def has_joined(self, node: int) -> bool:
            """On control: whether ``node`` has joined."""

        def guards(self) -> dict[int, int]:
            """On control of a local gang: the processes of the other nodes' guards, as these tell them."""

        def leave(self, then: Callable[[], None]) -> None:
            """Say that this node's task is stored; ``then`` when the hub has it."""

        def may_leave(self, told: bool) -> bool:
            """Whether this guard may end: nobody needs it any more."""

        def close(self, then: Callable[[], None]) -> None:
            """Close everything; ``then`` when what was sent is out, or could not be."""


class LocalUplink:
    """Control's: the hub itself, the socket on which the others reach it, and the bulk server."""

    control_done = False
    connected = True

    def __init__(
        self,
        node: Node,
        num_nodes: int,
        timeout_s: float,
        identity: list[str | int],
        host: str,
        timeouts: list[float] | None = None,
    ) -> None:
        self.secret = os.urandom(32)
        self.all_left = num_nodes == 1
        self._node = node
        self._bulk: BulkServer | None = None
        self._left: set[int] = set()
        TIMEOUTS.take(timeouts)
        self._hub = Hub(node.loop, num_nodes, timeout_s, self._deliver, node.say, self._start_bulk)
        self._acceptor = Acceptor(
            node.loop,
            host,
            self.secret,
            Identity(*identity),  # type: ignore[arg-type]
            self._hub.accept,
            self._hub.refuse,
            frame_bytes=HEADER_BYTES + inline_bytes(num_nodes),
            header_bytes=HEADER_BYTES,
            say=node.say,
        )
        self.address = self._acceptor.address
        self.port = self._acceptor.port

    def join(self, info: Header) -> None:
        self._hub.join(0, info)

    def _deliver(self, header: Header, payload: bytes) -> None:
        if header["op"] == "all-left":
            self.all_left = True
        self._node.from_hub(header, payload)

    def _start_bulk(self) -> int:
        if self._bulk is None:
            from ..tls.values import BulkServer

            folder = os.path.join(self._node.folder, "bulk")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            complain = Complaint(self._node.say, "node 0", "for large values")
            self._bulk = BulkServer(self.address, self.secret, folder, complain=complain)
        return self._bulk.port

    def send(self, header: Header, payload: bytes = b"") -> None:
        self._hub.receive(0, header, payload)

    def with_bulk(self, ready: BulkReady) -> None:
        ready(self.address, self._start_bulk(), self.secret)

    def has_left(self, node: int) -> bool:
        return node in self._hub.roster.left

    def has_joined(self, node: int) -> bool:
        return node in self._hub.roster.infos

    def guards(self) -> dict[int, int]:
        found = {
            node: self._hub.roster.infos[node].get("guard")
            for node in self._hub.roster.members
            if node in self._hub.roster.infos
        }
        return {node: pid for node, pid in found.items() if type(pid) is int and pid > 1}

    def leave(self, then: Callable[[], None]) -> None:
        then()

    def may_leave(self, told: bool) -> bool:
        return told and not self._hub.roster.members_left

    def close(self, then: Callable[[], None]) -> None:
        self._acceptor.close()
        if self._bulk is not None:
            self._bulk.close()
        self._hub.close(then)


class RemoteUplink:
    """Every other node's: a connection to control's guard, and one idle connection to the next node."""

    all_left = False

    def __init__(self, node: Node, header: Header) -> None:
        self.control_done = False
        TIMEOUTS.take(header.get("timeouts"))
        self._node = node
        self._liveness = Liveness(node.loop, lambda silent, answering: self._hub_silent(silent[0]))
        self._address: str = header["address"]
        self.secret = bytes.fromhex(header["secret"])
        self._port: int = header["port"]
        self._identity = Identity(*header["identity"])
        self._connection: Connection | None = None
        self._left = False
        self._bulk_waiting: list[BulkReady] = []
        self.on_connected: Callable[[], None] = lambda: None
        self._ring = Ring(node, self._identity, self.secret, header["host"])
        info = {**header["info"], "ring_port": self._ring.port}
        self._dial: Dial | None = connect(
            node.loop,
            self._address,
            self._port,
            self.secret,
            self._identity,
            "member",
            node.index,
            info,
            self._connected,
            self._failed,
            header["timeout"],
        )

    @property
    def connected(self) -> bool:
        """Whether the hub hears what is sent."""
        return self._connection is not None

    def _connected(self, connection: Connection) -> None:
        self._dial = None
        self._connection = connection
        connection.on_frame = lambda conn, header, payload: self._receive(header, payload)
        connection.on_close = lambda conn, reason: self._closed(reason)
        connection.on_fault = lambda conn, error: self._hub_failed(error)
        self._liveness.watch(connection, (self._address, self._port))
        self.on_connected()

    def _failed(self, error: ConnectError) -> None:
        self._dial = None
        if error.refusal.startswith(ENDING):
            # This node has failed at nothing: it tells what the others tell.
            first = error.refusal.removeprefix(ENDING)
            self._node.from_hub({"op": "stop", "order": LOST, "preempted": False}, b"")
            self._node.from_hub({"op": "story", "story": first[:1].upper() + first[1:], "causes": []}, b"")
            return
        self._node.hub_lost(f"could not join the gang: {error}", self._node.index)

    def _closed(self, reason: str) -> None:
        self._connection = None
        self._liveness.close()
        if not self._left:
            why = CUT if reason in SILENT else DIED
            self._node.hub_lost(
                f"the connection from node {self._node.index} to it was lost ({reason or 'closed'}): {why}"
            )

    def _hub_silent(self, silent: Silent) -> None:
        text = f"has not answered node {self._node.index} {silent.text}"
        connection, self._connection = silent.connection, None
        # A guard that goes on later is to know why the others have left.
        connection.send({"op": "fail", "failure": Failure(0, "lost", text, time.time(), order=LOST).to_json()})
        connection.close()
        self._node.hub_lost(text)

    def _adopt(self, timeouts: list[float]) -> None:
        """Node 0's times are those of the gang."""
        TIMEOUTS.take(timeouts)
        if self._connection is not None:
            with suppress(OSError):  # it may have been reset meanwhile, which is told next
                tune(self._connection.sock)

    def _hub_failed(self, error: Exception) -> None:
        """What node 0 says is the gang's own: a guard that fails over it has failed itself."""
        if not isinstance(error, WireError):
            raise error
        self._connection = None
        self._node.hub_lost(cannot_understand(error))

    def _receive(self, header: Header, payload: bytes) -> None:
        op = header["op"]
        if op == "roster":
            self._adopt(header["timeouts"])
            self._ring.close_the(header["nodes"])
        elif op == "left":
            self._ring.next_has_left()
        elif op == "control-done":
            self.control_done = True
        elif op == "ask":
            self.send({**header, "op": "heard"})
        elif op == "bulk":
            waiting, self._bulk_waiting = self._bulk_waiting, []
            for ready in waiting:
                ready(self._address, header["port"], self.secret)
        self._node.from_hub(header, payload)

    def send(self, header: Header, payload: bytes = b"") -> None:
        if self._connection is not None:
            self._connection.send(header, payload)

    def with_bulk(self, ready: BulkReady) -> None:
        self._bulk_waiting.append(ready)
        self.send({"op": "bulk"})

    def has_left(self, node: int) -> bool:
        return False

    def has_joined(self, node: int) -> bool:
        return True

    def guards(self) -> dict[int, int]:
        return {}

    def leave(self, then: Callable[[], None]) -> None:
        self._left = True
        self._liveness.close()
        self._ring.close()
        self.send({"op": "bye"})
        if self._connection is not None:
            self._connection.close(then)
            self._connection = None
        else:
            then()

    def may_leave(self, told: bool) -> bool:
        return True

    def close(self, then: Callable[[], None]) -> None:
        if self._dial is not None:
            self._dial.cancel()
        if self._left:
            then()
        else:
            self.leave(then)
