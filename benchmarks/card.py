"""What the card costs a step: the same gangs with it and without it, in turn.

    python benchmarks/card.py [--pairs 5] [--seconds 8]

Measured on node 0: from the last node's start of its task to the begin of the body, and from the end of the body until
Metaflow has ended the task. A body of 8 s has the program that writes the card; one of 1 s has its card from the task.
The sizes of pages for 2, 64 and 1,024 nodes follow. The exit code says whether the median kept the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "core" / "card")]

FLOW = Path(__file__).resolve().parent / "card_flow.py"
TIMEOUT_S = 300
LIMIT_S = 0.1
"""Seconds that the end of a step may take longer with the card."""


def measure(card: bool, seconds: float) -> tuple[float, float]:
    """Seconds to the body, and from its end to the end of node 0's task."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "BENCHMARK_FOLDER": folder,
            "BENCHMARK_CARD": str(card),
            "BENCHMARK_SECONDS": str(seconds),
            "METAFLOW_HOME": folder,
            "METAFLOW_USER": "benchmark",
        }
        command = [sys.executable, str(FLOW), "--datastore", "local", "--metadata", "local", "run"]
        with subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            output, ended = [], 0.0
            for line in run.stdout:
                output.append(line)
                if "/work/" in line and "Task finished successfully" in line:
                    ended = ended or time.time()
            if run.wait(TIMEOUT_S) or not ended:
                raise SystemExit("".join(output))
        cards = list(Path(folder).rglob("gang-*.html"))
        assert len(cards) == card, cards
        moments = json.loads((Path(folder) / "moments.json").read_text())
        return moments["begun"] - moments["started"], ended - moments["done"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs="*", default=[1.0, 8.0])
    arguments = parser.parse_args()
    good = True
    for seconds in arguments.seconds:
        print(f"body of {seconds:g} s\npair    to the body          from its end to the task's end")
        print("        without   with       without   with      more")
        rows = []
        for pair in range(1, arguments.pairs + 1):
            without, having = (measure(card, seconds) for card in (False, True))
            rows.append((*without, *having))
            print(
                f"{pair:<6}  {without[0]:6.2f} s  {having[0]:6.2f} s   {without[1]:6.2f} s  {having[1]:6.2f} s  "
                f"{having[1] - without[1]:+.2f} s",
                flush=True,
            )
        more = statistics.median(row[3] - row[1] for row in rows)
        start = statistics.median(row[2] - row[0] for row in rows)
        print(f"median  {start:+.2f} s to the body, {more:+.2f} s at the end (limit {LIMIT_S:g} s)")
        good &= more <= LIMIT_S
    import metaflow  # noqa: F401 - it loads the package by itself
    from card_sample import snapshot

    from metaflow_extensions.gang.core.card.html import page

    for nodes in (2, 64, 1024):
        print(f"page of {nodes} nodes with 8 ranks each: {len(page(snapshot(nodes, 8)).encode()) / 1000:.0f} kB")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
