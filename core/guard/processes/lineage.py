"""A number that marks all that a task starts, whatever becomes of environment, session, parent and descriptors.

Every child inherits its parent's limits, and so does every program that a child runs. One limit never counts, and has
room for a number: the CPU time that a process of real-time priority may take without a pause, in microseconds. It is
unlimited as a rule, and numbers from 2**62 on are 146,000 years. So what has the number of a task descends from it.
"""

from __future__ import annotations

import contextlib
import os

LEAST = 1 << 62
"""Of a number; the rest is random."""

_LINE = b"Max realtime timeout"
"""Begins the limit's line in proc(5)'s ``limits``."""


def give_number() -> int:
    """Mark this process, and all that it starts from now on. Returns the number, or 0 where the system has no such
    limit, or has one that is set.
    """
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        if hard != resource.RLIM_INFINITY:
            return 0
        number = LEAST | (int.from_bytes(os.urandom(8), "big") >> 3)
        resource.setrlimit(resource.RLIMIT_RTTIME, (number, hard))
    except (ImportError, AttributeError, OSError, ValueError, OverflowError):
        return 0
    return number


def has_number(pid: int, number: int) -> bool:
    """Whether process ``pid`` has the ``number``; False where it cannot be looked at, and for 0."""
    if not number:
        return False
    with contextlib.suppress(OSError), open(f"/proc/{pid}/limits", "rb") as file:
        for line in file:
            if line.startswith(_LINE):
                return line[len(_LINE) :].split()[0] == b"%d" % number
    return False
