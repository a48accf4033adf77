"""Processes that a body has left: an orphan without any variable of ours too.

They have the task's number (:mod:`.lineage`), or still write to its output. The pipes of a task's output are made for
this task alone. So whoever else can write to them, and has started later than the task, descends from it. It would keep
the log open, and whoever reads that would wait for it.
"""

from __future__ import annotations

import contextlib
import os

from . import process_table
from .lineage import has_number

_OUTPUTS = (1, 2)

_SIDECAR = b"sidecar_worker.py"
"""In the command line of Metaflow's own helpers beside a task, which end by themselves once it has ended."""


def pipes(pid: int) -> set[str]:
    """The pipes that are stdout and stderr of process ``pid``, by the names that /proc gives them, if any."""
    found = set()
    for number in _OUTPUTS:
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return {name for name in found if name.startswith("pipe:")}


def left_by_task(names: set[str], number: int, since: int) -> set[int]:
    """Living processes that started after ``since`` and have the ``number``, or one of the pipes ``names`` open for
    writing.

    Parameters
    ----------
    names : set of str
        As :func:`pipes` gives them.
    number : int
        As :func:`~.lineage.give_number` gave it to the task; 0 for none.
    since : int
        In clock ticks since the machine's start, as :func:`~.process_table.started` gives it.
    """
    found = set()
    for pid, entry in process_table.table().items() if names or number else ():
        # When it has started is one read, and leaves few whose descriptors have to be looked at.
        if entry.state in "ZX" or pid == os.getpid() or process_table.started(pid) <= since:
            continue
        if has_number(pid, number) or _writes(pid, names):
            found.add(pid)
    return {pid for pid in found if not _is_sidecar(pid)}


def _writes(pid: int, names: set[str]) -> bool:
    if not names:
        return False
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):
            if os.readlink(f"{folder}/{number}") in names and _is_for_writing(pid, number):
                return True
    return False


def _is_for_writing(pid: int, number: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
        for line in file:
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _is_sidecar(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return _SIDECAR in file.read()
    return False
