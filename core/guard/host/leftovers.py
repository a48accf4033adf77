"""Files that killed programs have left behind: known by the names that programs of their kind give them."""

from __future__ import annotations

import glob
import os
import shutil
import time
from contextlib import suppress

from ..processes import process_table

GONE_S = 1.0
"""How long our own processes, which have been killed, may take to let go of what they have mapped."""

_STEP_S = 0.02

_SECOND_LOOK_S = 0.25
"""For another program to map, or to pass to its children, a file that it had just made at the first look."""


def remove_unused(pattern: str, since: int, are_gone: bool = False, may_be_foreign: bool = True) -> None:
    """Remove files, and folders, whose paths match ``pattern``: this user's, made after ``since`` (nanoseconds since
    the epoch, by the clock of files), and used by no process.

    Another program of this user, of the same kind, may be at work on this machine. What a living process has mapped, or
    knows of by its environment, stays. ``are_gone`` is whether our own processes need not be waited for, and
    ``may_be_foreign`` whether programs of others may have made such files.
    """
    found = _made(pattern, since)
    if not found:
        return
    deadline = time.monotonic() + GONE_S
    while not are_gone and process_table.descendants([os.getpid()]) and time.monotonic() < deadline:
        time.sleep(_STEP_S)
    found -= _used(found)
    if found and may_be_foreign:
        time.sleep(_SECOND_LOOK_S)
        found -= _used(found)
    for path in found:
        with suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def _made(pattern: str, since: int) -> set[str]:
    found = set()
    for path in glob.glob(pattern):
        with suppress(OSError):
            status = os.lstat(path)
            if status.st_uid == os.geteuid() and status.st_ctime_ns >= since:
                found.add(path)
    return found


def _used(paths: set[str]) -> set[str]:
    """Those that a process has mapped or has in its environment, as far as we may look."""
    if not process_table.sees_all():
        return paths
    used = set()
    for pid in process_table.table() if paths else ():
        text = b""
        for name in ("maps", "environ"):
            with suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
                text += file.read()
        used |= {path for path in paths if os.fsencode(path) in text}
    return used
