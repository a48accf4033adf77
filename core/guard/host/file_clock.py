"""The clock by which the kernel dates files, for moments that are compared with the times of files.

The kernel dates a file by its last tick, which may be 10 ms old. So a file that is made just after a call of
:func:`time.time` may have an earlier time than that call has returned.
"""

from __future__ import annotations

import sys
import time

_REALTIME_COARSE = 5
"""The number of Linux's clock CLOCK_REALTIME_COARSE, which Python does not name."""


def now_ns() -> int:
    """The time that a file made now has, or an earlier one: nanoseconds since the epoch, as ``st_ctime_ns``."""
    return time.clock_gettime_ns(_REALTIME_COARSE) if sys.platform == "linux" else time.time_ns()


def now() -> float:
    """The same in seconds, rounded as ``st_mtime`` is."""
    seconds, nanoseconds = divmod(now_ns(), 10**9)
    return seconds + 1e-9 * nanoseconds
