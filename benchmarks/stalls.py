"""Whether a stall is noticed every time, and work never taken for one.

    python benchmarks/stalls.py [TIMES [TOGETHER]]

Runs gangs of two nodes, real guards and ranks, TIMES (20) each, TOGETHER (2) at a time: one whose ranks wait each in
another way, which has to be told with the place of every rank; and for each kind of work one with a rank that does it
without output for three times ``stall_timeout`` while the other waits, which has to end well.
"""

from __future__ import annotations

import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import metaflow  # noqa: F401 - before any import of the extension
from support.guard.stalls import STALLS, TIMEOUT_S, TRAINS_S, WORK, Outcome, run_cases


def told(outcome: Outcome) -> list[str]:
    """The cases whose place is in the report."""
    if outcome.failure is None or outcome.failure["kind"] != "stall":
        return []
    return [case for case, function in STALLS.items() if f" in {function} at stalls.py:" in outcome.report]


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    together = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    is_good = True
    with ThreadPoolExecutor(together) as pool:
        stalls = list(pool.map(lambda _: run_cases(*STALLS), range(times)))
        for case in STALLS:
            count = sum(case in told(outcome) for outcome in stalls)
            is_good &= count == times
            print(f"{case}: told {count} of {times}", flush=True)
        seconds = [outcome.seconds for outcome in stalls]
        print(
            f"stall_timeout is {TIMEOUT_S:g} s; from the start of the ranks to the report: median "
            f"{statistics.median(seconds):.1f} s, most {max(seconds):.1f} s"
        )
        for case in WORK:
            work = list(pool.map(lambda _, case=case: run_cases(case, "waits_for_another"), range(times)))
            count = sum(outcome.failure is None for outcome in work)
            is_good &= count == times
            print(f"{case} for {TRAINS_S:g} s: not told {count} of {times}", flush=True)
            for outcome in work:
                if outcome.failure is not None:
                    print(outcome.report)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
