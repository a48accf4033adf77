"""The line by which a rank's wrapper tells that the rank has failed, where it is not the guard that started it.

What starts ranks (mpirun, DeepSpeed's launcher) may name no rank, or the one that it noticed first, or end with a code
of its own. So something small stands between it and each rank, and says on stderr how the rank ended.
"""

from __future__ import annotations

REPORT = (
    r"\[gang\] rank (?P<rank>\d+) \(node (?P<node>\d+)\) ended with "
    r"(?P<exit_code>-\d+|(?![\s\S]*\[gang\] rank \d+ \(node \d+\) ended with -)\d+)"
)
"""Finds the first rank that was killed in the output, else the first that exited: a rank that lost another may tell so
before the other's own line has come all the way.
"""
