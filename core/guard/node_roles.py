"""What node 0 knows of nodes that have no ranks, or another node's: spares that wait, their new places, lost nodes.

The launcher's world of nodes comes from node 0's task, and the reasons why nodes are left out from it and the hub. The
card, Metaflow's metadata and ``metaflow-gang why`` have the words of :meth:`NodeRoles.records`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop.framing import Header

SPARE, RANKS, OUT = "spare", "ranks", "left out"
"""The ``state`` of a node: it waits as a spare one; it has the ranks of another place than at first; it is left out."""

MOST = 64
"""Of records in one report: 64 of them have 25 kB at most."""

WIDTH = 300
"""Characters of a reason."""

_ORDER = {OUT: 0, RANKS: 1, SPARE: 2}


class NodeRoles:
    """The nodes of one gang that have a record.

    Attributes
    ----------
    left_out : dict of int to str
        The nodes without which the gang goes on, and why.
    waited_until : dict of int to float or None
        By spare node: when it took a place (epoch), None while it waits.
    """

    def __init__(self) -> None:
        self.left_out: dict[int, str] = {}
        self.waited_until: dict[int, float | None] = {}
        self._nodes: Sequence[int] = ()
        self._told: dict[int, tuple[float, str, str]] = {}  # by node: since when (epoch), its state, and the text

    def world(self, nodes: Sequence[int], spares: Sequence[int], now: float) -> None:
        """These nodes have the ranks from now on, by node rank, and those wait.

        Parameters
        ----------
        now : float
            Seconds since the epoch.
        """
        before, self._nodes = self._nodes, nodes
        for node in spares:
            self.waited_until.setdefault(node, None)
            self._told.setdefault(node, (now, SPARE, "spare, waits"))
        if not before:
            return
        for rank, node in enumerate(nodes):
            if node in before and before.index(node) != rank:
                self._told[node] = (now, RANKS, f"has become node rank {rank}")
            elif node not in before:
                self.waited_until[node] = now
                self._told[node] = (now, RANKS, f"spare, took the place of node {before[rank]} (node rank {rank})")

    def leave_out(self, node: int, why: str, at: float) -> None:
        """The gang goes on without ``node`` since ``at`` (epoch)."""
        self.left_out[node] = why
        line = (why.splitlines() or [""])[0].rstrip(".")
        self._told[node] = (at, OUT, f"left out: {line if len(line) <= WIDTH else line[:WIDTH] + '...'}")

    def left_out_at(self) -> dict[int, float]:
        """By node that is left out: since when (epoch)."""
        return {node: at for node, (at, state, _) in self._told.items() if state == OUT}

    def records(self) -> list[Header]:
        """The records, each with ``node``, ``at`` (epoch), ``state`` and ``text``; of more than
        :data:`MOST` first those that are left out.
        """
        chosen = sorted(self._told, key=lambda node: (_ORDER[self._told[node][1]], node))[:MOST]
        names = ("at", "state", "text")
        return [{"node": node, **dict(zip(names, self._told[node], strict=True))} for node in sorted(chosen)]

    def __len__(self) -> int:
        """How many nodes have a record."""
        return len(self._told)


def without_ranks(roles: NodeRoles, since: float) -> Mapping[int, Header]:
    """By node, for the timeline of the card: ``out``, when it was left out, and ``waited``, until when it has waited
    as a spare one, None while it does; both in seconds after ``since`` (epoch).
    """
    found: dict[int, Header] = {}
    for node, until in roles.waited_until.items():
        found.setdefault(node, {})["waited"] = None if until is None else round(max(0.0, until - since), 2)
    for node, at in roles.left_out_at().items():
        found.setdefault(node, {})["out"] = round(max(0.0, at - since), 2)
    return found
