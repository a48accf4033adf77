"""A node's link to the hub: what every kind of it offers, and the one over the channel, of all nodes but node 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from ..channel.connect import ConnectError, Dial, connect
from ..channel.connection import Connection, Identity, cannot_understand
from ..channel.liveness import Liveness, Silent
from ..coordinator.joining import ENDING
from ..failure_record import CUT, DIED, LOST, Failure
from ..loop.framing import WireError
from ..loop.timeouts import SILENT, tune
from ..settings import use_settings
from .neighbour_watch import Ring

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.event_loop import Loop
    from ..loop.framing import Header

    UploadsReady = Callable[[str, int, bytes], None]

    class HubLink(Protocol):
        """What a node needs of its link to the hub."""

        all_left: bool
        """On control: whether every other node has stored its state and left."""

        control_done: bool
        """Elsewhere: whether control's body has ended well."""

        @property
        def secret(self) -> bytes:
            """The gang's."""

        @property
        def connected(self) -> bool:
            """Whether the hub receives what is sent."""

        def send(self, header: Header, payload: bytes = b"") -> None:
            """One message to the hub."""

        def with_uploads(self, ready: UploadsReady) -> None:
            """Call ``ready(address, port, secret)`` of node 0's server for uploads once it listens."""

        def has_left(self, node: int) -> bool:
            """On control: whether ``node`` has stored its state and left."""

        def has_joined(self, node: int) -> bool:
            """On control: whether ``node`` has joined."""

        def guards(self) -> dict[int, int]:
            """On control of a local gang: the processes of the other nodes' guards, as these report them."""

        def phases(self) -> Header:
            """On control: the first and the last node of each phase."""

        def phases_of_nodes(self) -> dict[int, tuple[float, dict[str, float]]]:
            """On control: when each node's task started (epoch), and the seconds from then to each phase."""

        def facts(self) -> list[object]:
            """On control: what each node has reported of its software and its machine, by index."""

        def stalled(self) -> Header | None:
            """On control: where all ranks stand, while the gang makes no progress."""

        def restarts(self) -> list[Header]:
            """On control: how often ranks were started again, and why."""

        def clock(self) -> tuple[float, float]:
            """Seconds by which node 0's clock is ahead of this node's, and by which that may be wrong."""

        def samples(self) -> Header:
            """On control: the newest sample of each node, by index."""

        def traces(self) -> dict[int, Header]:
            """On control: the profiler's traces that each node has."""

        def leave(self, then: Callable[[], None]) -> None:
            """Say that this node's task is stored; ``then`` when the hub has it."""

        def may_leave(self, reported: bool) -> bool:
            """Whether this guard may end: nobody needs it any more."""

        def close(self, then: Callable[[], None]) -> None:
            """Close everything; ``then`` when what was sent is out, or could not be."""


class RemoteHubLink:
    """A connection to control's guard, and one idle connection to the next node.

    Parameters
    ----------
    node : int
        This node's index.
    header : Header
        The task's request to join: where the hub is, and what the others are to know of this node.
    say : callable
        Takes a line for the user.
    on_message : callable
        Takes the hub's messages to this node: ``on_message(header, payload)``.
    on_lost : callable
        Called when the hub cannot be reached any more: ``on_lost(text, node)``, where ``node`` is the one at fault.
    fail : callable
        Takes a failure of the connections to the neighbours.
    debug : DebugLog or None
    """

    all_left = False

    def __init__(
        self,
        loop: Loop,
        node: int,
        header: Header,
        say: Callable[[str], None],
        on_message: Callable[[Header, bytes], None],
        on_lost: Callable[[str, int], None],
        fail: Callable[[Failure], None],
        debug: DebugLog | None = None,
    ) -> None:
        self.control_done = False
        self._debug = debug
        self._node, self._on_message, self._on_lost = node, on_message, on_lost
        self._liveness = Liveness(loop, lambda silent, answering: self._hub_silent(silent[0]))
        self._address: str = header["address"]
        self.secret = bytes.fromhex(header["secret"])
        self._port: int = header["port"]
        self._identity = Identity(*header["identity"])
        self._connection: Connection | None = None
        self._left = False
        self._uploads_waiting: list[UploadsReady] = []
        self.on_connected: Callable[[], None] = lambda: None
        self._ring = Ring(loop, node, self._identity, self.secret, header["host"], fail, say, debug)
        info = {**header["info"], "ring_port": self._ring.port}
        self._dial: Dial | None = connect(
            loop,
            self._address,
            self._port,
            self.secret,
            self._identity,
            "member",
            node,
            info,
            self._connected,
            self._failed,
            header["timeout"],
        )

    @property
    def connected(self) -> bool:
        """Whether the hub receives what is sent."""
        return self._connection is not None

    def _connected(self, connection: Connection) -> None:
        self._dial = None
        self._connection = connection
        if self._debug is not None:
            self._debug.write(f"link to the hub at {self._address}:{self._port} opened")
        connection.on_frame = lambda conn, header, payload: self._receive(header, payload)
        connection.on_close = lambda conn, reason: self._closed(reason)
        connection.on_fault = lambda conn, error: self._hub_failed(error)
        self._liveness.watch(connection, (self._address, self._port))
        self.on_connected()

    def _failed(self, error: ConnectError) -> None:
        self._dial = None
        if self._debug is not None:
            self._debug.write(f"no link to the hub at {self._address}:{self._port}: {error}")
        if error.refusal.startswith(ENDING):
            # This node has failed at nothing: it reports what the others report.
            first = error.refusal.removeprefix(ENDING)
            self._on_message({"op": "stop", "order": LOST, "preempted": False}, b"")
            self._on_message({"op": "failure-report", "report": first[:1].upper() + first[1:], "causes": []}, b"")
            return
        self._on_lost(f"could not join the gang: {error}", self._node)

    def _closed(self, reason: str) -> None:
        self._connection = None
        self._liveness.close()
        if self._debug is not None:
            self._debug.write(f"link to the hub closed: {reason or 'in order'}")
        if not self._left:
            why = CUT if reason in SILENT else DIED
            self._on_lost(f"the connection from node {self._node} to it was lost ({reason or 'closed'}): {why}", 0)

    def _hub_silent(self, silent: Silent) -> None:
        text = f"has not answered node {self._node} {silent.text}"
        if self._debug is not None:
            self._debug.write(f"link to the hub closed: it {text}")
        connection, self._connection = silent.connection, None
        # A guard that goes on later is to know why the others have left.
        connection.send({"op": "fail", "failure": Failure(0, "lost", text, time.time(), order=LOST).to_json()})
        connection.close()
        self._on_lost(text, 0)

    def _adopt(self, settings: dict[str, float]) -> None:
        """Use node 0's settings, which are those of the gang."""
        use_settings(settings)
        if self._connection is not None:
            with suppress(OSError):  # it may have been reset meanwhile, which is reported next
                tune(self._connection.sock)

    def _hub_failed(self, error: Exception) -> None:
        """What node 0 sends is the gang's own: a guard that fails over it has failed itself."""
        if not isinstance(error, WireError):
            raise error
        self._connection = None
        self._on_lost(cannot_understand(error), 0)

    def _receive(self, header: Header, payload: bytes) -> None:
        op = header["op"]
        if self._debug is not None:
            self._debug.write("from the hub:", header, payload)
        if op == "roster":
            self._adopt(header["settings"])
            self._ring.close_the(header["nodes"])
        elif op == "left":
            self._ring.next_has_left()
        elif op == "control-done":
            self.control_done = True
        elif op == "ping":
            self.send({**header, "op": "alive"})
        elif op == "uploads":
            waiting, self._uploads_waiting = self._uploads_waiting, []
            for ready in waiting:
                ready(self._address, header["port"], self.secret)
        self._on_message(header, payload)

    def send(self, header: Header, payload: bytes = b"") -> None:
        if self._connection is not None:
            self._connection.send(header, payload)

    def with_uploads(self, ready: UploadsReady) -> None:
        self._uploads_waiting.append(ready)
        self.send({"op": "uploads"})

    def has_left(self, node: int) -> bool:
        return False

    def has_joined(self, node: int) -> bool:
        return True

    def guards(self) -> dict[int, int]:
        return {}

    def phases(self) -> Header:
        return {}

    def samples(self) -> Header:
        return {}

    def traces(self) -> dict[int, Header]:
        return {}

    def facts(self) -> list[object]:
        return []

    def stalled(self) -> Header | None:
        return None

    def restarts(self) -> list[Header]:
        return []

    def clock(self) -> tuple[float, float]:
        connection = self._connection
        return (connection.offset, connection.uncertainty) if connection is not None else (0.0, 0.0)

    def phases_of_nodes(self) -> dict[int, tuple[float, dict[str, float]]]:
        return {}

    def leave(self, then: Callable[[], None]) -> None:
        if self._debug is not None:
            self._debug.write("link to the hub closed by this node")
        self._left = True
        self._liveness.close()
        self._ring.close()
        self.send({"op": "bye"})
        if self._connection is not None:
            self._connection.close(then)
            self._connection = None
        else:
            then()

    def may_leave(self, reported: bool) -> bool:
        return True

    def close(self, then: Callable[[], None]) -> None:
        if self._dial is not None:
            self._dial.cancel()
        if self._left:
            then()
        else:
            self.leave(then)
