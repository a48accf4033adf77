"""The preflight of one node: what it reports when it joins, and what is said and checked once all have joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..attributes import FULL, preflight_level
from ..gang.collectives import Member, gather_to_all
from ..logs import say_together
from ..version import VERSION
from .facts import facts_of, own_facts
from .network import check_network
from .report import warnings_of
from .unfit import unfit_nodes


@dataclass(frozen=True)
class Preflight:
    """What a step's attribute ``preflight`` wants.

    Parameters
    ----------
    is_on : bool
        Whether nodes compare themselves, and look at their machines.
    is_full : bool
        Whether they try the network between them, too.
    distributions : tuple of str
        See :func:`.facts.own_facts`.
    ranks : callable
        Of a node's GPUs and processors, how many ranks it will have.
    gpus : int or None
        How many GPUs the step asks for on each node.
    """

    is_on: bool
    is_full: bool
    distributions: tuple[str, ...]
    ranks: Callable[[int, int], int]
    gpus: int | None

    @classmethod
    def of(cls, decorator: Any) -> Preflight:
        """That of a step with this decorator, by its attribute or else the setting. Raises BadAttribute."""
        level = preflight_level(decorator)
        return cls(bool(level), level == FULL, decorator.distributions, decorator.ranks, decorator.gpus)

    def info(self, gpus: int, cpus: int) -> dict[str, str]:
        """What this node, which has so many GPUs and processors, adds to its request to join."""
        if not self.is_on:
            return {}
        return {"package": VERSION, "facts": own_facts(self.distributions, gpus, self.ranks(gpus, cpus)).as_text()}

    def check(
        self, gang: Member, facts: Sequence[Any], local: bool, may_leave_out: int, left_out: dict[int, str]
    ) -> None:
        """Say on node 0 what the ``facts`` of all nodes, by index, show; and try the network where that is wanted.

        Parameters
        ----------
        facts : sequence
            On node 0; others have none.
        local : bool
            Whether the nodes are processes of one machine.
        may_leave_out : int
            How many nodes the step can do without.
        left_out : dict of int to str
            Those that it does without, and why; others that fail are added, the same on each node.

        Raises
        ------
        Unreachable
            See :func:`.network.check_network`.
        """
        known = {node: found for node, text in enumerate(facts) if (found := facts_of(text)) is not None}
        present = {node: one for node, one in known.items() if node not in left_out}
        lines = warnings_of(present, self.gpus, local) if present else []
        if lines:
            say_together(lines)
        if may_leave_out:
            unfit = unfit_nodes(present, self.gpus, local, may_leave_out - len(left_out))
            left_out.update(gather_to_all(gang, "the preflight", unfit)[0])  # node 0 alone has facts
        if self.is_full:
            left_out.update(check_network(gang, may_leave_out - len(left_out), tuple(left_out)))
