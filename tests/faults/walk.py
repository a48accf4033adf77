"""Runs cells one after the other and keeps what came out, so that what passed on this tree is not run again.

walk.py                        every cell that has not passed
walk.py --only 'rank 1'        those whose name holds a match of the regular expression
walk.py --list                 the names
walk.py --again                also those that have passed
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

STATE = ROOT / ".test-all" / "faults.json"
"""What has passed, and on what."""

RESULTS = HERE / "results.json"
"""The last outcome of each cell: docs/reliability.md is made of it."""


def tree_hash() -> str:
    """Names what the cells see: the installed package, and what of the matrix takes part in a cell."""
    import metaflow_extensions.gang as installed

    (package,) = installed.__path__
    files = [*Path(package).rglob("*.py"), *HERE.parent.joinpath("support").rglob("*.py")]
    files += [
        file for file in HERE.glob("*.py") if file.stem not in ("table", "chaos", "report", "walk", "test_matrix")
    ]
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(file.read_bytes())
    return whole.hexdigest()[:12]


def load(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def update(path: Path, change: Callable[[dict], dict]) -> None:
    """Change what a file keeps; another walk may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(change(load(path)), indent=1, sort_keys=True) + "\n")
        new.replace(path)


def walk(cells: Iterable, folder: Path, again: bool = False, record: bool = True) -> tuple[int, int, int]:
    """Run them; how many were green, red, and had passed before."""
    from cell_run import run_cell

    tree = tree_hash()
    green = red = before = 0
    for cell in cells:
        passed = load(STATE).get(tree, [])
        if cell.name in passed and not again:
            before += 1
            continue
        result = run_cell(cell, folder / cell.slug)
        print(result, flush=True)
        green, red = green + result.green, red + (not result.green)
        if result.green:
            update(STATE, lambda old, name=cell.name: {tree: sorted({*old.get(tree, []), name})})
        if record:
            kept = {"green": result.green, "seconds": round(result.seconds, 1), "problems": result.problems[:3]}
            update(RESULTS, lambda old, name=cell.name, kept=kept: {**old, name: kept})
    return green, red, before


def show(some: list, folder: Path) -> int:
    """Try what cannot occur, and print why it has not; how many have occurred all the same."""
    from cell_run import run_cell

    occurred = 0
    for cell in some:
        result = run_cell(cell, folder / cell.slug)
        occurred += result.done and result.ended
        missed = f"{'not ended' if result.done else 'not done'}: {(result.problems or ['-'])[0].splitlines()[0]}"
        print(f"{cell.name}: {'it has occurred' if result.done and result.ended else missed}", flush=True)
    return occurred


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--record", action="store_true", help="write results.json")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--without", default="^$", help="leave out those whose name holds a match of this")
    parser.add_argument("--left", action="store_true", help="only those that results.json does not have as green")
    parser.add_argument("--part", default="1/1", help="2/3: the second of three parts")
    parser.add_argument("--new", action="store_true", help="leave out what an audit had found red")
    parser.add_argument("--impossible", help="a part of the name of cells that cannot occur")
    arguments = parser.parse_args(words)
    import conftest  # Metaflow in folders of this session's own
    from cells import cells
    from table import IMPOSSIBLE, ROWS

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    if arguments.impossible is not None:
        try:
            return show([each.cell for each in IMPOSSIBLE if arguments.impossible in each.cell.slug], folder)
        finally:
            conftest.pytest_unconfigure()
    some = [cell for cell in cells(ROWS) if re.search(arguments.only, cell.name)]
    some = [cell for cell in some if not re.search(arguments.without, cell.name)]
    some = [cell for cell in some if not (arguments.new and cell.row.item is not None)]
    if arguments.left:
        last = load(RESULTS)
        some = [cell for cell in some if not last.get(cell.name, {}).get("green")]
        some.sort(key=lambda cell: cell.name in last)  # those first that have never been run
    part, parts = map(int, arguments.part.split("/"))
    some = some[part - 1 :: parts]
    if arguments.list:
        for cell in some:
            print(cell.name)
        print(len(some), "cells")
        return 0
    try:
        green, red, before = walk(some, folder, arguments.again, arguments.record)
    finally:
        conftest.pytest_unconfigure()
    print(f"{green} green, {red} red, {before} passed before")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
