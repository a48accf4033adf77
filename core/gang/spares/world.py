"""Which nodes have the ranks of a launch, in their order, and which wait as spares: values, without side effects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...attributes import whole_number
from ...exceptions import BadAttribute

SPARES: dict[str, Any] = {"spares": 0, "min_nodes": None}
"""The attributes of a decorator whose gang goes on without nodes that it loses, with their defaults."""


@dataclass(frozen=True)
class SpareNodes:
    """What the user has said of nodes that are lost.

    Parameters
    ----------
    spares : int
        How many of the gang's nodes wait.
    min_nodes : int or None
        How few nodes may have ranks where no spare node is left; None for no fewer than at first.
    """

    spares: int = 0
    min_nodes: int | None = None

    @classmethod
    def of(cls, decorator: Any) -> SpareNodes | None:
        """That of a decorator's attributes; None where it has neither. Raises BadAttribute."""
        name, attributes = f"@{decorator.name}", decorator.attributes
        spares, least = whole_number(attributes["spares"]), attributes["min_nodes"]
        if spares is None or spares < 0:
            raise BadAttribute(
                f"{name}(spares={attributes['spares']!r}): spares is a whole number of nodes, 0 or more."
            )
        min_nodes = None if least is None else whole_number(least)
        if least is not None and (min_nodes is None or min_nodes < 1):
            raise BadAttribute(f"{name}(min_nodes={least!r}): min_nodes is a whole number of nodes, 1 or more.")
        return cls(spares, min_nodes) if spares or min_nodes else None

    def world(self, name: str, num_nodes: int) -> World:
        """The first world of a gang of ``num_nodes`` nodes. Raises BadAttribute where there is none.

        Parameters
        ----------
        name : str
            What the message calls the decorator: "@torchrun".
        """
        size = num_nodes - self.spares
        if size < 1:
            raise BadAttribute(
                f"{name}(spares={self.spares}) leaves no node for the ranks: num_parallel, which counts all nodes, is "
                f"{num_nodes}."
            )
        least = size if self.min_nodes is None else self.min_nodes
        if least > size:
            raise BadAttribute(
                f"{name}(min_nodes={least}): ranks run on {size} nodes at first (num_parallel={num_nodes}, spares="
                f"{self.spares}), so that min_nodes is {size} at most."
            )
        return World(tuple(range(size)), tuple(range(size, num_nodes)), least)

    def replacements(self, num_nodes: int) -> int:
        """How many nodes a gang of ``num_nodes`` can lose, each at the cost of a restart; 0 where there is no
        :meth:`world` of so few.
        """
        size = num_nodes - self.spares
        least = size if self.min_nodes is None else self.min_nodes
        return num_nodes - least if 1 <= least <= size else 0


@dataclass(frozen=True)
class World:
    """The nodes at one time.

    Parameters
    ----------
    nodes : tuple of int
        Those that have the ranks, by node rank. Node 0 is always the first.
    spares : tuple of int
        Those that wait, the next one first.
    min_nodes : int
        How few there may be.
    """

    nodes: tuple[int, ...]
    spares: tuple[int, ...]
    min_nodes: int

    @property
    def is_enough(self) -> bool:
        """Whether ranks may run on it."""
        return len(self.nodes) >= self.min_nodes

    def without(self, lost: Collection[int]) -> World:
        """Spares take the places of ``lost`` nodes; where none is left, the nodes after a lost one move up."""
        waiting = [node for node in self.spares if node not in lost]
        nodes = []
        for node in self.nodes:
            if node not in lost:
                nodes.append(node)
            elif waiting:
                nodes.append(waiting.pop(0))
        return replace(self, nodes=tuple(nodes), spares=tuple(waiting))

    def changes_from(self, before: World) -> str:
        """What has become of the places of the nodes that are in the world ``before`` and not in this one, as a clause
        for the log; "" where nothing has.
        """
        gone = [node for node in before.nodes if node not in self.nodes]
        came = [node for node in self.nodes if node not in before.nodes]
        parts = []
        if came:
            one = len(came) == 1
            places = (
                "its place" if len(gone) == 1 else f"the {'place' if one else 'places'} of {named(gone[: len(came)])}"
            )
            parts.append(f"{named(came)} {'takes' if one else 'take'} {places}")
        if len(gone) > len(came):
            parts.append(f"the ranks continue on {len(self.nodes)} {'node' if len(self.nodes) == 1 else 'nodes'}")
        return "; ".join(parts)

    def too_few(self) -> str:
        """Why ranks may not run on it, as a sentence."""
        left = len(self.nodes)
        return (
            f"The ranks were not started again: no spare node is left, and {left} "
            f"{'node is' if left == 1 else 'nodes are'} fewer than the {self.min_nodes} that they need (min_nodes)."
        )


def named(nodes: Sequence[int]) -> str:
    """ "node 2", "nodes 2 and 3"."""
    texts = [str(node) for node in nodes]
    if len(texts) == 1:
        return f"node {texts[0]}"
    return f"nodes {', '.join(texts[:-1])} and {texts[-1]}"
