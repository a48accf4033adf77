"""The world of one launcher's calls, from the first to the last: who is in it on all nodes, and how it changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...guard.failure_record import EVIDENCE, Failure
from ...logs import say
from ...metaflow_compat import environment
from ..collectives import LOST, Member
from .world import World, named

MOST_FIRST = 2
"""A node whose ranks have failed first so often is left out, where a spare one can take its place."""


def tell_the_limits(gang: Member) -> None:
    """Say on node 0, in one line, where this backend lets no gang go on without a node."""
    if gang.node_index == 0 and environment.ends_with_a_task():
        say(
            "This cluster ends the whole job when one of its pods is lost: a spare node takes the place of one whose "
            "ranks fail again and again, and not that of a lost pod."
        )


class Worlds:
    """The same on all nodes: it changes by what collectives have given to all of them.

    Parameters
    ----------
    gang : Member
    first : World

    Attributes
    ----------
    now : World
    """

    def __init__(self, gang: Member, first: World) -> None:
        self.now = first
        self._gang = gang
        self._failed_first: Counter[int] = Counter()  # on node 0

    @property
    def has_this_node(self) -> bool:
        """Whether this node has ranks now; otherwise it waits."""
        return self.now.is_enough and self._gang.node_index in self.now.nodes

    def begin_without(self, left_out: Mapping[int, str]) -> None:
        """Before the first call, which nodes are left out, for these reasons; every node makes this call."""
        self._tell()
        if not left_out:
            return
        if self._gang.node_index == 0:
            self._gang._link.request("leave-out", left_out=dict(left_out))
        before = self.now
        self.become(before.without(left_out))
        if self._gang.node_index == 0:
            what = f"{named(sorted(left_out))} {'is' if len(left_out) == 1 else 'are'} left out"
            say("; ".join(filter(None, (what, self.now.changes_from(before)))))

    def become(self, world: World) -> None:
        """This is the world from now on; every node makes this call."""
        if world != self.now:
            self.now = world
            self._tell()

    def _tell(self) -> None:
        """Have the card and the metadata know it."""
        if self._gang.node_index == 0:
            self._gang._link.request("world", nodes=self.now.nodes, spares=self.now.spares)

    def lose(self, answers: Sequence[Any]) -> None:
        """Go on without the nodes that have none of the ``answers``, which all nodes have got alike."""
        self.become(self.now.without([node for node, answer in enumerate(answers) if answer is None]))

    def has_failed(self, records: Sequence[Any]) -> bool:
        """On node 0, whether the end of a launch is no good one, by what each node has said of it: None where all of
        its ranks ended well, LOST where it was lost before it could.
        """
        said_nothing = any(records[node] is LOST for node in self.now.nodes)
        return said_nothing or not self.now.is_enough or any(record not in (None, LOST) for record in records)

    def losses(self) -> dict[int, Failure]:
        """On node 0: all nodes that are lost by now, and why."""
        found = self._gang._link.request("lost-nodes")[0]["failures"]
        failures = map(Failure.from_json, found)
        return {failure.reporting_node: failure.replaced(node=failure.reporting_node) for failure in failures}

    def after(self, lost: dict[int, Failure], first: Failure | None) -> tuple[World, dict[int, str]]:
        """On node 0, the world of the next try, and the nodes that are left out besides those ``lost``, and why.

        Parameters
        ----------
        first : Failure or None
            That of a rank, where no node is lost.
        """
        world = self.now.without(lost)
        if first is None or first.order != EVIDENCE or first.rank is None:
            return world, {}
        node = first.node
        self._failed_first[node] += 1
        count = self._failed_first[node]
        if count < MOST_FIRST or node == 0 or node not in world.nodes or not world.spares:
            return world, {}
        return world.without([node]), {node: f"its ranks failed first {count} times"}
