"""What was started: command lines and the variables that a launcher has set, without secrets."""

from __future__ import annotations

from ..secret_values import without_secrets

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Mapping

    from ..loop.framing import Header

MOST = 8
"""Launches that the card shows: the first, and the latest of the others."""

_HIDDEN_VARIABLES = ("METAFLOW_", "MF_")
"""Beginnings of the names of variables that say nothing about a launch."""


class Launched:
    """The launches of node 0.

    Parameters
    ----------
    environ : dict
        The task's environment: a launcher has set what a rank has besides.

    Attributes
    ----------
    records : list of dict
        Each with ``what`` (a title), ``argv``, ``environment`` and ``hostfile`` (text or None).
    ranks : int
        World size of the latest launch, by the variables of its ranks.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.records: list[Header] = []
        self.ranks = 0

    def add(self, plan: Header) -> None:
        """Take a plan's first process of this node."""
        processes = plan.get("processes") or []
        if not processes:
            return
        first = processes[0]
        environ = self._environ
        given = {
            name: without_secrets(str(value), environ, name)
            for name, value in first.get("env", {}).items()
            if environ.get(name) != value and not name.startswith(_HIDDEN_VARIABLES)
        }
        argv = [without_secrets(str(word), environ) for word in first.get("argv", ())]
        world = str(first.get("env", {}).get("WORLD_SIZE", ""))
        self.ranks = int(world) if world.isdecimal() else max(self.ranks, len(processes))
        del self.records[MOST - 1 :]
        self.records.append({"what": str(first.get("title", "")), "argv": argv, "environment": given, "hostfile": None})
