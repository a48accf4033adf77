"""A seeded random walk over the matrix, and many short healthy gangs beside a load.

    chaos.py                       100 rounds with a fresh seed, which is printed
    chaos.py --rounds 200 --seed 7
    chaos.py --healthy             500 gangs of 4 nodes and 100 of 8 with an empty body, beside four busy processes

A round is one cell, struck at a random moment after its processes are in their places; the bare gang comes more often,
since its cells are cheap. The same seed gives the same cells and the same delays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

BARE_SHARE = 0.8
"""Of the rounds that are the bare gang's."""

LONGEST_DELAY_S = 1.0
"""Between the moment at which all are in place and the fault."""

HEALTHY = ((4, 500), (8, 100))
"""Nodes, and how many gangs of so many."""

BUSY = 4
"""Processes that compute beside the healthy gangs."""

PER_RUN = 25
"""Gangs in one run, one after the other, so that Metaflow's own start is not paid for each."""

RUN_S = 1800.0
"""For such a run: each of its tasks is a Python that imports Metaflow, and the load takes most of the machine."""

AT_ONCE = 2
"""Tasks that Metaflow runs at the same time, besides the nodes that control starts."""

GANGS = """
import os
from metaflow import FlowSpec, current, gang, step

class Gangs(FlowSpec):
    @step
    def start(self):
        self.gangs = list(range(int(os.environ["FAULTS_GANGS"])))
        self.next(self.each, foreach="gangs")

    @step
    def each(self):
        self.next(self.work, num_parallel=int(os.environ["FAULTS_NODES"]))

    @gang(all_nodes_started_timeout=300)
    @step
    def work(self):
        print("empty body of node", current.gang.node_index, flush=True)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.all)

    @step
    def all(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Gangs()
"""


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    busy = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def healthy(folder: Path, plan: tuple[tuple[int, int], ...] = HEALTHY) -> tuple[int, int]:
    """Many gangs with an empty body; how many there were, and how many of their runs failed."""
    from cell_run import Result, watched
    from support.flows import FlowRun

    gangs = red = 0
    with load(BUSY):
        for nodes, count in plan:
            for first in range(0, count, PER_RUN):
                steps = min(PER_RUN, count - first)
                result = Result(f"{steps} gangs of {nodes} nodes with an empty body")
                where = folder / f"healthy-{nodes}-{first}"
                where.mkdir(parents=True)
                started = time.monotonic()
                with watched(result, "gang"):
                    (where / "flow.py").write_text(GANGS)
                    env = {"FAULTS_NODES": str(nodes), "FAULTS_GANGS": str(steps)}
                    run = FlowRun(where / "flow.py", "--max-workers", str(AT_ONCE), folder=where, env=env)
                    try:
                        code = run.wait(RUN_S)
                        if code != 0 or run.output.count("empty body of node ") != nodes * steps:
                            result.problems.append(f"the run ended with {code}: {run.output[-4000:]}")
                    finally:
                        run.close()
                result.seconds = time.monotonic() - started
                gangs, red = gangs + steps, red + (not result.green)
                print(result, flush=True)
    return gangs, red


def walk(rounds: int, seed: int, folder: Path, only: str) -> tuple[int, dict[str, list[str]]]:
    """Rounds that were green, and what was wrong about the others, by cell."""
    import re

    from cell_run import run_cell
    from cells import cells
    from table import ROWS

    every = [cell for cell in cells(ROWS) if re.search(only, cell.name)]
    bare = [cell for cell in every if cell.launcher == "gang"]
    others = [cell for cell in every if cell.launcher != "gang"]
    chance = random.Random(seed)
    green, red = 0, {}
    for number in range(1, rounds + 1):
        some = bare if bare and (not others or chance.random() < BARE_SHARE) else others
        cell, delay = chance.choice(some), chance.uniform(0, LONGEST_DELAY_S)
        result = run_cell(cell, folder / f"{number}-{cell.slug}", delay)
        print(f"{number:4d} {result}", flush=True)
        if result.green:
            green += 1
        else:
            red[f"round {number}, {cell.name}, after {delay:.3f} s"] = result.problems
    return green, red


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--share", type=float, default=1.0, help="of the healthy gangs that are run")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args(words)
    import conftest  # Metaflow in folders of this session's own

    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    started = time.monotonic()
    try:
        if arguments.healthy:
            plan = tuple((nodes, max(1, round(count * arguments.share))) for nodes, count in HEALTHY)
            gangs, failed = healthy(folder, plan)
            what = f"{gangs} healthy gangs beside {BUSY} busy processes: {failed} red runs"
        else:
            print(f"seed {arguments.seed}", flush=True)
            green, red = walk(arguments.rounds, arguments.seed, folder, arguments.only)
            failed = len(red)
            what = f"seed {arguments.seed}: {arguments.rounds} rounds, {green} green, {failed} red"
            for name, problems in red.items():
                print(f"RED {name}: {problems[0]}")
    finally:
        conftest.pytest_unconfigure()
    print(f"{what}; {time.monotonic() - started:.0f} s" + (f"; see {folder}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
