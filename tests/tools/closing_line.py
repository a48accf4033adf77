#!/usr/bin/env python3
"""Adds pytest's closing lines up to one: reads them from stdin, one for each part of the suite."""

from __future__ import annotations

import re
import sys
from collections import Counter
from datetime import timedelta

ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")


def total(lines: list[str]) -> str:
    """Counts and seconds of all lines, in the form of pytest's own closing line."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    for line in lines:
        for number, what in re.findall(r"(\d+) ([a-z]+)", line):
            if what.rstrip("s") in ORDER or what in ORDER:
                counts[what if what in ORDER else what.rstrip("s")] += int(number)
        found = re.search(r"in ([0-9.]+)s", line)
        seconds += float(found[1]) if found else 0.0
    parts = []
    for what in ORDER:
        if counts[what]:
            many = what in ("warning", "error") and counts[what] > 1
            parts.append(f"{counts[what]} {what}{'s' if many else ''}")
    clock = f" ({timedelta(seconds=int(seconds))})" if seconds >= 60 else ""
    return f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s{clock} ".center(80, "=")


if __name__ == "__main__":
    print(total(sys.stdin.read().splitlines()))
