# ruff: noqa: E501 - the page is wrapped as the other pages are
"""Makes docs/reliability.md of the table and the last outcomes: ``python tests/faults/report.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from cells import LAUNCHERS, Row  # noqa: E402
from table import IMPOSSIBLE, ROWS  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "reliability.md"

HEAD = """# What has been tried

<!-- Made by tests/faults/report.py of tests/faults/table.py and the last outcomes: do not edit it by hand. -->

A fault injector starts a real run, waits until all its processes are where a cell of this matrix wants them, does one fault to one of
them, and looks at the end: the run has ended in time and with the right code, every node names the right node, the right rank and what
happened, in the same sentences, and no process, file, port, shared memory or namespace is left. What has to be reported follows from the
fault, which the injector knows, and from nothing that the gang says.

- `tests/faults/table.py` is the table, `acts.py` and `injector.py` do the faults, `oracle.py` knows what has to follow, and
  `cell_run.py` runs a cell.
- `make test` runs the cells of @gang that are cheap and a few of another launcher, which changes from day to day. `make test-all` runs
  all of them, and goes on where it was stopped; so does `python tests/faults/walk.py`, which takes `--only PATTERN`.
- `make chaos ROUNDS=200 SEED=7` is a random walk over the matrix: random cells, struck after random delays. Without SEED it takes
  another each time, and prints it.
- `make chaos HEALTHY=1` runs 500 gangs of 4 nodes and 100 of 8 with an empty body beside four processes that only compute: none may fail.
- FAULTS_FACTOR=3 makes all deadlines of the tests three times as long, for a machine that is busy.

`agent` is @torchrun with torchrun's own agent. A number is the time in seconds from the fault to the end of the whole run, on a machine
of two processors that did other things as well; of a run that has to end well it says nothing, so it says `green`. A dot: the row is not
run under that launcher, since the launcher takes no part in it.

"""

WHO = """The gang has three nodes under @gang and two under the others, of which each has two ranks under @torchrun, @deepspeed and @mpi, so that
rank 3 is on node 1. `collective` is one that the last node keeps from ending; `ranks` are commands, or ranks that work together; `ranks compute`
are ranks that do not; at `forming` the last node is late; at `storing` Metaflow stores a node's artifacts; an `end hook` is what another
package's decorator does after the body.
"""


def load() -> dict[str, dict[str, object]]:
    return dict(json.loads((HERE / "results.json").read_text()))


def said(row: Row, launcher: str, results: dict[str, dict[str, object]]) -> str:
    """What the table has for a cell."""
    if launcher not in row.launchers:
        return "."
    outcome = results.get(f"{row.name} | {launcher}")
    if outcome is None:
        return "not run"
    if not outcome["green"]:
        return "**red**"
    return "green" if row.blames == "nobody" or row.restarts else str(outcome["seconds"])


def page(results: dict[str, dict[str, object]]) -> str:
    """The whole page as text."""
    text = [HEAD, WHO]
    cells = [(row, launcher) for row in ROWS for launcher in row.launchers]
    outcomes = [said(row, launcher, results) for row, launcher in cells]
    red, unknown = outcomes.count("**red**"), outcomes.count("not run")
    text.append(
        f"{len(cells)} cells: {len(cells) - red - unknown} green, {red} red, {unknown} not run; "
        f"{len(IMPOSSIBLE)} more cannot occur.\n"
    )
    for title, some in (
        ("Once red", [row for row in ROWS if row.item is not None]),
        ("On one machine", [row for row in ROWS if row.item is None and row.place == "local" and not row.restarts]),
        ("With restarts=1: the ranks are started again, and the run ends well", [row for row in ROWS if row.restarts]),
        ("On hosts with a network between them", [row for row in ROWS if row.item is None and row.place == "hosts"]),
    ):
        text.append(f"\n## {title}\n")
        names = {"agent": "agent", "gang": "@gang", "ray": "@metaflow_ray"}
        heads = [names.get(launcher, f"@{launcher}") for launcher in LAUNCHERS]
        text.append("| what | to whom | when | " + " | ".join(heads) + " |")
        text.append("|---" * (3 + len(LAUNCHERS)) + "|")
        for row in some:
            when = row.when + (", hosts" if row.place == "hosts" and title == "Once red" else "")
            shown = [said(row, launcher, results) for launcher in LAUNCHERS]
            text.append(f"| {row.what} | {row.who} | {when} | " + " | ".join(shown) + " |")
    if IMPOSSIBLE:
        text.append("\n## What cannot occur\n")
        text.append("| cell | why | what shows it |")
        text.append("|---|---|---|")
        text += [f"| {each.name.replace('|', '/')} | {each.reason} | `{each.command}` |" for each in IMPOSSIBLE]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(load()))
