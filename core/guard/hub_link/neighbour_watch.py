"""One idle connection from each node to the next, so that a cut between two members is seen.

Ranks talk to each other directly, while every guard talks to control's only: the hub alone would never notice that
node 1 and node 2 cannot reach each other. Node 0 is left out, since all are connected to it anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..channel.accept import Acceptor
from ..channel.connect import LONGEST_PAUSE, ConnectError, Dial, connect
from ..channel.connection import Connection, Identity, cannot_understand
from ..failure_record import LOST, Failure
from ..loop.event_loop import Loop, Timer
from ..loop.timeouts import SILENT, tune
from ..settings import settings

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.framing import Header

RING_BYTES = 4096
"""Of one frame: a connection of the ring is for its end alone."""


class Ring:
    """This node's two ends of the ring: it listens for the node before, and connects to the node after.

    Parameters
    ----------
    node : int
        This node's index.
    host : str
        This node's address, on which it listens.
    fail, say : callable
        Take a failure of the ring, and a line for the user.
    debug : DebugLog or None
    """

    def __init__(
        self,
        loop: Loop,
        node: int,
        identity: Identity,
        secret: bytes,
        host: str,
        fail: Callable[[Failure], None],
        say: Callable[[str], None],
        debug: DebugLog | None = None,
    ) -> None:
        self._debug = debug
        self._loop = loop
        self._node = node
        self._fail = fail
        self._identity = identity
        self._secret = secret
        self._closed = False
        self._next_has_left = False
        self._dial: Dial | None = None
        self._again: Timer | None = None
        self._connections: list[Connection] = []
        self._acceptor = Acceptor(
            loop,
            host,
            secret,
            identity,
            self._add,
            self._refuse,
            node=node,
            frame_bytes=RING_BYTES,
            header_bytes=RING_BYTES,
            say=say,
        )
        self.port = self._acceptor.port

    def _refuse(self, role: str, node: int) -> str | None:
        if role != "ring" or node != self._node - 1:
            return f"the ring of node {self._node} has no {role} {node}"
        return None

    def close_the(self, roster: Sequence[Header]) -> None:
        """Connect to the next node, where there is one beside control."""
        after = self._node + 1
        if after < len(roster) and "ring_port" in roster[after]:  # one that did not join has none
            self._next = (roster[after]["address"], roster[after]["ring_port"])
            # The next node has joined, so it runs, and only the network can be in the way.
            self._deadline = time.monotonic() + settings().lost_host_timeout
            self._connect()

    def _connect(self) -> None:
        self._again = None
        self._dial = connect(
            self._loop,
            *self._next,
            self._secret,
            self._identity,
            "ring",
            self._node,
            {},
            self._connected,
            self._failed,
            max(1.0, self._deadline - time.monotonic()),
        )

    def _connected(self, connection: Connection) -> None:
        self._dial = None
        self._add(connection)

    def _add(self, connection: Connection) -> None:
        with suppress(OSError):  # the other side may have gone again
            tune(connection.sock, idle=True)
        self._connections.append(connection)
        if self._debug is not None:
            self._debug.write(f"link to neighbour {connection.node} opened")
        connection.on_close = self._lost
        connection.on_fault = self._misbehaved

    def _misbehaved(self, connection: Connection, error: Exception) -> None:
        node, text = connection.node, f"{cannot_understand(error)} (to node {self._node})"
        self._fail(Failure(node, "nonsense", text, time.time()))

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
        if self._debug is not None:
            self._debug.write(f"link to neighbour {connection.node} closed: {reason or 'in order'}")
        # Only silence is evidence about the network. Whatever else ends a connection was sent by the other kernel: a
        # reset, where the other guard closed with bytes unread; and a death is seen by the hub itself.
        if not self._closed and reason in SILENT:
            self._tell(
                connection.node,
                f"lost its connection to node {connection.node} ({reason}), while both still reach node 0: the network "
                "between these two is cut",
            )

    def _failed(self, error: ConnectError) -> None:
        self._dial = None
        if self._debug is not None:
            self._debug.write(f"no link to neighbour {self._node + 1}: {error}")
        if self._closed or self._next_has_left:
            return
        if error.interrupted and time.monotonic() < self._deadline:
            # The next node leaves, which node 0 reports; or it was busy, or packets were lost.
            self._again = self._loop.call_later(LONGEST_PAUSE, self._connect)
        else:
            self._tell(self._node + 1, f"cannot reach node {self._node + 1}: {error}")

    def _tell(self, peer: int, text: str) -> None:
        """Tell the hub, which asks the other node first whether it still takes part."""
        self._fail(Failure(self._node, "ring", text, time.time(), order=LOST, peer=peer))

    def next_has_left(self) -> None:
        """The next node is done, maybe before this one has reached it."""
        self._next_has_left = True
        self._cancel()

    def _cancel(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None

    def close(self) -> None:
        """Close the connections to both neighbours."""
        self._closed = True
        self._acceptor.close()
        self._cancel()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
