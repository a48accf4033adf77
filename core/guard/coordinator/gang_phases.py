"""The phases of all nodes, on node 0: what each has sent, on node 0's clock, and the first and the last of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..phases import NAMES

if TYPE_CHECKING:
    from ..loop.framing import Header


class GangPhases:
    """By node: when its task started (epoch, on node 0's clock), and the seconds from then to each phase.

    What shows the gang while it runs reads ``nodes``; it is complete when the last node has left.

    Attributes
    ----------
    nodes : dict of int to tuple of float and dict
        Node to ``(since, times)``; see :class:`~.phases.NodePhases`.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, tuple[float, dict[str, float]]] = {}

    def take(self, node: int, header: Header, offset: float) -> None:
        """Keep what ``node`` has sent, whose clock is ``offset`` seconds behind node 0's."""
        self.nodes[node] = (header["since"] + offset, dict(header["times"]))

    def summary(self) -> Header:
        """By phase: the first and the last node that had it, and when (epoch, node 0's clock). Of the same size
        whatever the number of nodes.
        """
        found: Header = {}
        for name in NAMES:
            at = sorted((since + times[name], node) for node, (since, times) in self.nodes.items() if name in times)
            if at:
                (first, first_node), (last, last_node) = at[0], at[-1]
                found[name] = {
                    "nodes": len(at),
                    "first": round(first, 3),
                    "first_node": first_node,
                    "last": round(last, 3),
                    "last_node": last_node,
                }
        return found
