"""One idle connection from each node to the next, so that a cut between two members is seen.

Ranks talk to each other directly, while every guard talks to control's only: the hub alone would never notice that
node 1 and node 2 cannot reach each other. Node 0 is left out, since all are connected to it anyway.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .accept import Acceptor
from .dial import ConnectError, Dial, connect
from .session import Connection, Identity, cannot_understand
from .verdict import LOST, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from .node import Node
    from .wire import Header

CONNECT_TIMEOUT_S = 30.0
"""How long the next node may take to answer; it has joined, so it runs, and only the network can be in the way."""


LEAVING_S = 1.0
"""How much later than the end of its listening we may hear that the next node is done: that comes by way of node 0."""


RING_BYTES = 4096
"""Of one frame: a connection of the ring is for its end alone."""


class Ring:
    """This node's two ends of the ring: it listens for the node before, and connects to the node after."""

    def __init__(self, node: Node, identity: Identity, secret: bytes, host: str) -> None:
        self._node = node
        self._identity = identity
        self._secret = secret
        self._closed = False
        self._next_has_left = False
        self._dial: Dial | None = None
        self._connections: list[Connection] = []
        self._acceptor = Acceptor(
            node.loop,
            host,
            secret,
            identity,
            self._add,
            self._refuse,
            node=node.index,
            frame_bytes=RING_BYTES,
            header_bytes=RING_BYTES,
            say=lambda line: node.say(line),
        )
        self.port = self._acceptor.port

    def _refuse(self, role: str, node: int) -> str | None:
        if role != "ring" or node != self._node.index - 1:
            return f"the ring of node {self._node.index} has no {role} {node}"
        return None

    def close_the(self, roster: Sequence[Header]) -> None:
        """Connect to the next node, where there is one beside control."""
        after = self._node.index + 1
        if after < len(roster):
            self._dial = connect(
                self._node.loop,
                roster[after]["address"],
                roster[after]["ring_port"],
                self._secret,
                self._identity,
                "ring",
                self._node.index,
                {},
                self._connected,
                self._failed,
                CONNECT_TIMEOUT_S,
            )

    def _connected(self, connection: Connection) -> None:
        self._dial = None
        self._add(connection)

    def _add(self, connection: Connection) -> None:
        self._connections.append(connection)
        connection.on_close = self._lost
        connection.on_fault = self._misbehaved

    def _misbehaved(self, connection: Connection, error: Exception) -> None:
        node, text = connection.node, f"{cannot_understand(error)} (to node {self._node.index})"
        self._node.fail(Failure(node, "nonsense", text, time.time()))

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
        # An orderly end, and a death, which the hub sees by itself, say nothing about the network.
        if not self._closed and reason not in ("", "closed without a word"):
            self._tell(
                connection.node,
                f"lost its connection to node {connection.node} ({reason}), while both still reach node 0: the network "
                "between these two is cut",
            )

    def _failed(self, error: ConnectError) -> None:
        self._dial = None
        text = f"cannot reach node {self._node.index + 1}: {error}"
        self._node.loop.call_later(LEAVING_S, lambda: self._tell_unless_over(text))

    def _tell_unless_over(self, text: str) -> None:
        if not self._closed and not self._next_has_left:
            self._tell(self._node.index + 1, text)

    def _tell(self, peer: int, text: str) -> None:
        self._node.fail(Failure(self._node.index, "ring", text, time.time(), order=LOST, peer=peer))

    def next_has_left(self) -> None:
        """The next node is done, maybe before this one has reached it."""
        self._next_has_left = True
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None

    def close(self) -> None:
        """Say goodbye to both neighbours."""
        self._closed = True
        self._acceptor.close()
        if self._dial is not None:
            self._dial.cancel()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
