"""The preflight of one node: what it tells when it joins, and what is said and checked once all have joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..attributes import FULL, preflight_level
from ..gang.collectives import Member
from ..logs import say_together
from ..version import VERSION
from .facts import facts_of, own_facts
from .network import check_network
from .report import warnings_of


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

    def check(self, gang: Member, facts: Sequence[Any], local: bool, may_leave_out: int) -> dict[int, str]:
        """Say on node 0 what the ``facts`` of all nodes, by index, show; and try the network where that is wanted.

        Returns
        -------
        dict of int to str
            The nodes that are left out, and why: at most ``may_leave_out``.

        Raises
        ------
        Unreachable
            See :func:`.network.check_network`.
        """
        known = {node: found for node, text in enumerate(facts) if (found := facts_of(text)) is not None}
        lines = warnings_of(known, self.gpus, local) if known else []
        if lines:
            say_together(lines)
        return check_network(gang, may_leave_out) if self.is_full else {}
