"""The nodes of the gang as the hub knows them: who has joined, is connected, is done or is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel.connection import Connection, send_to_all

if TYPE_CHECKING:
    from ..loop.framing import Header


FOR_NODE_0 = ("facts", "package")
"""What a node reports when it joins, for node 0 alone."""

ONE_VERSION = "all nodes need the same version, as a gang's step has where its nodes have one image"


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

    def nodes(self) -> list[Header]:
        """What all nodes get of each, by index: what it has joined with, but for what is for node 0 alone."""
        infos = [self.infos[node] for node in sorted(self.infos)]
        return [{name: value for name, value in info.items() if name not in FOR_NODE_0} for info in infos]

    def facts(self) -> list[object]:
        """What each node, by index, has reported of its software and its machine; None where nothing."""
        return [self.infos[node].get("facts") for node in sorted(self.infos)]

    def other_packages(self) -> dict[int, str]:
        """The nodes with another version of this package than node 0, and a clause that says so."""
        own = self.infos[0].get("package")
        found = {node: self.infos[node].get("package", own) for node in sorted(self.infos)}
        return {
            node: f"has metaflow-gang {version}, and node 0 has {own}: {ONE_VERSION}"
            for node, version in found.items()
            if own is not None and version != own
        }

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
