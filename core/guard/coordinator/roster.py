"""The nodes of the gang as the hub knows them: who has joined, is connected, is done or is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel.connection import Connection, send_to_all

if TYPE_CHECKING:
    from ..loop.framing import Header


class Roster:
    """State that the parts of the hub share. ``deliver(header, payload)`` takes what node 0 is to receive.

    Attributes
    ----------
    infos : dict of int to Header
        Of each node that has joined: what its hello carried, and its address.
    members : dict of int to Connection
        The connections to the other nodes.
    done : set of int
        Nodes whose body has ended well ...
    left : set of int
        ... and whose state is stored besides, so that they cannot be lost.
    silent : set of int
        Nodes that do not answer, for which nobody waits.
    """

    def __init__(self, deliver: Callable[[Header, bytes], None]) -> None:
        self.deliver = deliver
        self.infos: dict[int, Header] = {}
        self.members: dict[int, Connection] = {}
        self.done: set[int] = set()
        self.left: set[int] = set()
        self.silent: set[int] = set()

    @property
    def hostnames(self) -> dict[int, str]:
        """By node, as far as they have joined."""
        return {node: str(info.get("hostname", "")) for node, info in self.infos.items()}

    @property
    def members_left(self) -> bool:
        """Whether any other node is still connected, and answers."""
        return not self.silent.issuperset(self.members)

    def send(self, node: int, header: Header, payload: bytes = b"") -> None:
        """Send a message to one node; to one that is not connected, nothing."""
        if node == 0:
            self.deliver(header, payload)
        elif node in self.members:
            self.members[node].send(header, payload)

    def broadcast(self, header: Header, payload: bytes = b"", root: int | None = None) -> None:
        """Send a message to all nodes that are connected, and to node 0; the payload to ``root`` alone, if given."""
        if root is not None:
            self.send(root, header, payload)
            payload = b""
        send_to_all([self.members[node] for node in self.members if node != root], header, payload)
        if root != 0:
            self.deliver(header, payload)
