"""Which processes of a run will submit a task soon: those that it has just started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ....core.guard.processes.process_table import started

SOON_S = 60.0
"""How long after its start a process is expected to submit its task. One of a @retry may sleep for minutes before."""

_TICKS = os.sysconf("SC_CLK_TCK")


def starting(run: int, steps: set[str]) -> set[int]:
    """Pids of the run's young processes ``slurm step STEP`` of these steps; none where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/uptime") as file:
            uptime_s = float(file.read().split()[0])
        # The start of a process that has ended is 0, so that it counts as an old one.
        return {pid for pid in _children(run) if _step(pid) in steps and uptime_s - started(pid) / _TICKS < SOON_S}
    return set()


def _children(pid: int) -> Iterator[int]:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
            yield from map(int, file.read().split())


def _step(pid: int) -> str:
    """The step whose task a process is for; "" for another process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().decode("utf-8", "replace").split("\0")
        for index in range(len(words) - 2):
            if words[index : index + 2] == ["slurm", "step"]:
                return words[index + 2]
    return ""
