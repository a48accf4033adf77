"""The matrix of faults: its cheap part for the bare gang, and some cells of a launcher that changes from day to day.

`tests/faults/walk.py`, which `make test-all` runs, has all of it; `make chaos` walks through it at random.
"""

from __future__ import annotations

import datetime
import random
import shutil
from pathlib import Path

import pytest
from cell_run import run_cell
from cells import Cell, cells
from report import PAGE, load, page
from support.requirements import require_packages, require_tool
from table import ALIKE, IMPOSSIBLE, ROWS, SLOW

ROTATING = ("torchrun", "agent", "deepspeed", "mpi", "ray", "tensorflow", "jax")
"""One of them a day."""

ROTATING_CELLS = 3

NEEDS = {"torchrun": "torch", "agent": "torch", "mpi": "mpi4py"}
"""Packages whose names are not the launchers' own."""


TODAY = datetime.date.today().toordinal()


def green() -> list[Cell]:
    """Those that have been seen green. docs/reliability.md tells the others; `walk.py --left` runs them."""
    seen = load()
    return [cell for cell in cells(ROWS) if seen.get(cell.name, {}).get("green")]


def bare() -> list[Cell]:
    """All of the bare gang's that were once red, and one cell of each other fault and kind of victim, by the day."""
    those = [
        cell
        for cell in green()
        if cell.launcher == "gang" and cell.row.place == "local" and not cell.name.startswith(SLOW)
    ]
    chance, kinds = random.Random(TODAY), {}
    for cell in those:
        if cell.row.item is None:
            kinds.setdefault((ALIKE.get(cell.row.what, cell.row.what), cell.row.who.rstrip("012 ")), []).append(cell)
    return [cell for cell in those if cell.row.item is not None] + [chance.choice(some) for some in kinds.values()]


def of_today() -> list[Cell]:
    launcher = ROTATING[TODAY % len(ROTATING)]
    those = [cell for cell in green() if cell.launcher == launcher and cell.row.place == "local"]
    return random.Random(TODAY).sample(those, ROTATING_CELLS)


def stays(cell: Cell, folder: Path) -> None:
    result = run_cell(cell, folder / "cell")
    print(result)
    assert result.green, f"{result}\n{result.output[-8000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("cell", bare(), ids=lambda cell: cell.slug)
def test_the_bare_gang_ends_and_tells_the_cause(cell: Cell, tmp_path: Path) -> None:
    stays(cell, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cell", of_today(), ids=lambda cell: cell.slug)
def test_the_launcher_of_the_day_does_too(cell: Cell, tmp_path: Path) -> None:
    if cell.launcher == "mpi" and shutil.which("mpirun") is None:
        require_tool("mpirun", "openmpi-bin")
    require_packages(NEEDS.get(cell.launcher, cell.launcher))
    stays(cell, tmp_path)


def test_the_table_has_what_it_promises() -> None:
    all_cells = list(cells(ROWS))
    names = [cell.name for cell in all_cells]
    assert len(names) == len(set(names)), "no cell stands twice"
    assert len(names) >= 150
    assert len(IMPOSSIBLE) <= 0.15 * (len(names) + len(IMPOSSIBLE))
    assert not {each.name for each in IMPOSSIBLE} & set(names)
    red_first = [cell.row.item is not None for cell in all_cells]
    assert red_first == sorted(red_first, reverse=True), "what an audit had found red stands first"


def test_the_page_is_that_of_the_table() -> None:
    assert PAGE.read_text() == page(load()), "python tests/faults/report.py makes it anew"
