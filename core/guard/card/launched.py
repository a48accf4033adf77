"""What was started: command lines and the variables that a launcher has set, without secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..secret_values import without_secrets

if TYPE_CHECKING:
    from ..loop.framing import Header

MOST = 8
"""Launches that the card shows: the first, and the latest of the others."""

HOSTFILE_BYTES = 20_000
"""Of a hostfile that the card has: some 500 hosts."""

_HOSTFILES = ("hostfile", "machinefile")
"""Options of launchers that name one."""

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
        hostfile = _hostfile([str(word) for word in first.get("argv", ())])
        self.records.append(
            {
                "what": without_secrets(str(first.get("title", "")), environ),
                "argv": argv,
                "environment": given,
                "hostfile": None if hostfile is None else without_secrets(hostfile, environ),
            }
        )


def _hostfile(argv: list[str]) -> str | None:
    """The hostfile that a command line names; None where there is none."""
    names = _HOSTFILES + (("f",) if argv and os.path.basename(argv[0]).startswith("mpi") else ())
    for index, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in names:
            try:
                path = value if equals else argv[index + 1]
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read(HOSTFILE_BYTES + 1)
            except (IndexError, OSError, ValueError):
                return None
            return text if len(text) <= HOSTFILE_BYTES else text[:HOSTFILE_BYTES].rpartition("\n")[0] + "\n..."
    return None
