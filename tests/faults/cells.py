"""What a cell is, and how the table's rows become cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

LAUNCHERS = ("gang", "torchrun", "agent", "deepspeed", "mpi", "ray", "tensorflow", "jax")
"""All of them; "agent" is @torchrun with torchrun's own agent."""

NODES = {"gang": 3}
"""Nodes of a cell's gang; 2 where it is not said."""

RANKS = {"gang": 3, "torchrun": 4, "agent": 4, "deepspeed": 4, "mpi": 4}
"""Ranks of a cell's gang; 2 where it is not said."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a fault, by its launchers.

    Parameters
    ----------
    what : str
        The fault: a signal's name, or one of :data:`acts.ACTS`, or one of the injector's own.
    who : str
        "task 1", "guard 0", "rank 1", "child of rank 1", "launcher 0", "run", "host 1", "link 1" and so on.
    when : str
        A moment of the flow.
    launchers : sequence of str
        Under which it is done.
    item : int, optional
        The item of the issue that had it red.
    told : str, optional
        A regular expression of the cause's words where the oracle's general rule does not know it.
    blames : str, optional
        "node 1", or "nobody" where the run ends well, or "none" where it fails without a cause to be told.
    silent : sequence of int
        Nodes that cannot tell.
    place : str
        "local", or "hosts" for nodes that are hosts with a network between them.
    env : mapping
        More variables of the flow.
    restarts : bool
        Whether ranks that fail are started again, once; the run then ends well.
    """

    what: str
    who: str
    when: str
    launchers: tuple[str, ...] = ("gang",)
    item: int | None = None
    told: str = ""
    blames: str = ""
    silent: tuple[int, ...] = ()
    place: str = "local"
    env: dict[str, str] = field(default_factory=dict, hash=False)
    restarts: bool = False

    @property
    def name(self) -> str:
        more = (" | hosts" if self.place == "hosts" else "") + (" | with restarts" if self.restarts else "")
        return f"{self.what} | {self.who} | {self.when}{more}"


@dataclass(frozen=True)
class Cell:
    """A row under one launcher."""

    row: Row
    launcher: str

    @property
    def name(self) -> str:
        return f"{self.row.name} | {self.launcher}"

    @property
    def slug(self) -> str:
        """The name as pytest's ids and files like it."""
        return re.sub(r"[^A-Za-z0-9_.]+", "-", self.name).strip("-")

    @property
    def nodes(self) -> int:
        return NODES.get(self.launcher, 2)

    @property
    def node(self) -> int:
        """The node that the fault hits; 0 for the run."""
        number = re.search(r"\d+$", self.row.who)
        index = int(number[0]) if number else 0
        if "rank" not in self.row.who:
            return index
        # Where all nodes are this machine, the one mpirun, which is node 0's, starts all ranks itself.
        return 0 if self.launcher == "mpi" and self.row.place == "local" else index * self.nodes // self.ranks

    @property
    def ranks(self) -> int:
        return RANKS.get(self.launcher, 2)


@dataclass(frozen=True)
class Impossible:
    """A cell that cannot occur, and why; the injector looks for its victim or its moment in vain."""

    cell: Cell
    reason: str

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def command(self) -> str:
        """What shows it."""
        return f"python tests/faults/walk.py --impossible {self.cell.slug}"


def cells(rows: tuple[Row, ...]) -> Iterator[Cell]:
    """All of them, in the table's order."""
    for row in rows:
        for launcher in row.launchers:
            yield Cell(row, launcher)
