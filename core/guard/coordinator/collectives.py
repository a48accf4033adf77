"""The collectives under way: the part that each node has sent, and calls that do not match."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from ..loop.framing import Nonsense
from .messages import fits_all

if TYPE_CHECKING:
    from ..loop.framing import Header

    Whole = tuple[Header, bytes, int | None]


MOST_OPEN = 1024
"""Collectives under way at once. A thread has one at a time."""

MOST_BYTES = 8 << 20
"""Of one node, in all collectives that are under way."""


class Mismatch(Exception):
    """Node ``node`` makes another call than the others; the message is a clause that follows the node's name."""

    def __init__(self, node: int, text: str) -> None:
        super().__init__(text)
        self.node = node


class _Collective:
    def __init__(self, kind: str, root: int | None) -> None:
        self.kind = kind
        self.root = root
        self.entries: dict[int, tuple[Header, bytes]] = {}


class Collectives:
    """The open collectives of a gang of ``num_nodes`` nodes, by the number with which each node counts its calls.

    A node that is lost to a gang that goes on is not waited for. What it has sent before counts; in other collectives
    its entry is ``{"lost": True}``, the same for all nodes.
    """

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes
        self._open: dict[int, _Collective] = {}
        self._bytes: dict[int, int] = {}
        self._lost: set[int] = set()

    def add(self, node: int, header: Header, payload: bytes) -> Whole | None:
        """Add the part of ``node``. Returns, once every node has sent its own, the message with all parts, its payload,
        and the node that alone is to get the payload (None: all nodes). A payload that is too much for all goes to node
        0, whose task distributes it.

        Raises
        ------
        Mismatch
            Another node made another call at this place.
        Nonsense
            It has sent its part already, or more than a node may have under way.
        """
        number, kind = int(header["seq"]), str(header["kind"])
        if number in self._open:
            if node in self._open[number].entries:
                raise Nonsense(f"its part of collective {number} twice")
        elif len(self._open) >= MOST_OPEN:
            raise Nonsense(f"a collective beside {MOST_OPEN} that are under way")
        self._bytes[node] = self._bytes.get(node, 0) + len(payload)
        if self._bytes[node] > MOST_BYTES:
            raise Nonsense(f"more than {MOST_BYTES} bytes for collectives that are under way")
        root: int | None = header.get("root")
        gather = self._open.setdefault(number, _Collective(kind, root))
        if (gather.kind, gather.root) != (kind, root):
            raise Mismatch(
                node,
                f"called {kind} where node {min(gather.entries)} called {gather.kind}: every node must make the same "
                "collective calls in the same order",
            )
        gather.entries[node] = (header.get("entry", {}), payload)
        return self._whole(number, gather)

    def lose(self, node: int) -> list[Whole]:
        """``node`` is lost. Returns the collectives that waited for it alone, each as :meth:`add` does."""
        self._lost.add(node)
        found = [self._whole(number, self._open[number]) for number in sorted(self._open)]
        return [whole for whole in found if whole is not None]

    def _whole(self, number: int, gather: _Collective) -> Whole | None:
        if len(gather.entries.keys() | self._lost) < self._num_nodes:
            return None
        del self._open[number]
        for index, (_, data) in gather.entries.items():
            self._bytes[index] -= len(data)
        ordered = [gather.entries.get(index, ({"lost": True}, b"")) for index in range(self._num_nodes)]
        entries = [{**entry, "size": len(data)} for entry, data in ordered]
        whole = b"".join(data for _, data in ordered)
        root = gather.root
        if root is None and not fits_all(len(whole), self._num_nodes):
            root = 0
        return {"op": "gathered", "seq": number, "entries": entries}, whole, root

    def check_deserted(self, done: Set[int]) -> None:
        """Raises Mismatch for a node among those whose body is ``done``, which others still wait for."""
        for gather in self._open.values():
            for node in sorted(done - gather.entries.keys() - self._lost):
                waiting = min(gather.entries)
                raise Mismatch(node, f"finished its step while node {waiting} waits for it in {gather.kind}")
