"""What a guard owns beside its private folder. It is written down there, and who finds that guard dead removes it.

The file is locked as long as its guard lives, which distinguishes a guard that was killed from one that is still busy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable

from ..processes import process_table
from . import file_clock
from .private_folder import remove_if_empty

_NAME = "owned"
"""Of the file in the private folder: a JSON array on each line, the process of the task first."""


class Owned:
    """Folders and files elsewhere, and patterns of files that killed processes leave, which go as the private folder
    does.
    """

    def __init__(self) -> None:
        self._entries: list[list[str | int]] = []
        self._left_by_tries: list[tuple[str, int]] = []
        self._fd = -1

    def keep(self, folder: str, task_pid: int) -> None:
        """Record in the private ``folder`` what is owned from now on. Where there is no room, others report that."""
        with contextlib.suppress(OSError):
            self._fd = os.open(os.path.join(folder, _NAME), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(["task", task_pid])

    def add_folder(self, path: str) -> None:
        self._add(["folder", path])

    def add_file(self, path: str) -> None:
        self._add(["file", path])

    def add_pattern(self, pattern: str) -> None:
        """Of files that are this user's, made from now on, and used by nobody in the end."""
        self._add(["pattern", pattern, file_clock.now_ns()])

    def add_left_by_tries(self, pattern: str) -> None:
        """Of files and folders in what is owned, which processes that were killed leave: they go before ranks are
        started again.
        """
        self._left_by_tries.append((pattern, file_clock.now_ns()))

    def remove(self) -> None:
        """Remove all of it."""
        _remove(self._entries)

    def remove_left_behind(self) -> None:
        """Remove the files of the patterns now: all that may have made some is gone. The patterns stay."""
        from .leftovers import remove_unused

        _remove([entry for entry in self._entries if entry[0] == "pattern"], are_gone=True)
        for pattern, since in self._left_by_tries:
            remove_unused(pattern, since, are_gone=True, may_be_foreign=False)

    def _add(self, entry: list[str | int]) -> None:
        self._entries.append(entry)
        with contextlib.suppress(OSError):  # it is only for the case that this guard is killed
            self._write(entry)

    def _write(self, entry: list[str | int]) -> None:
        if self._fd >= 0:
            os.write(self._fd, json.dumps(entry).encode() + b"\n")


def remove_folder(folder: str) -> None:
    """Remove a node's private folder, and the folders above it where they are empty then."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
        gangs = os.path.dirname(folder)
        remove_if_empty(gangs, os.path.dirname(gangs))


def remove_in_its_stead(folder: str) -> None:
    """The guard whose private ``folder`` this is has died: remove it, and what that guard owned, leases included."""
    with contextlib.suppress(OSError, ValueError):
        _remove(_read(os.path.join(folder, _NAME))[1:])
    with contextlib.suppress(OSError):
        from .ports import sweep

        sweep()
    remove_folder(folder)


def remove_abandoned(own: str, gang_id: str, before: Callable[[str], None]) -> None:
    """Do so for all nodes of the gang on this machine whose guard and task are dead; ``own`` is this node's folder.

    ``before(folder)`` is called for each, while its private folder is there.
    """
    gangs = os.path.dirname(own)
    with contextlib.suppress(OSError):
        for name in os.listdir(gangs):
            folder = os.path.join(gangs, name)
            if name.startswith(f"{gang_id}-") and folder != own and _is_abandoned(folder):
                before(folder)
                remove_in_its_stead(folder)


def is_owned_by_gang(own: str, path: str) -> bool:
    """Whether a node on this machine of the gang whose private folder is ``own`` owns the folder ``path``."""
    gangs, name = os.path.split(own)
    gang_id = name.partition("-")[0]
    for folder in os.listdir(gangs):
        if folder.startswith(f"{gang_id}-"):
            with contextlib.suppress(OSError, ValueError):
                if ["folder", path] in _read(os.path.join(gangs, folder, _NAME)):
                    return True
    return False


def _is_abandoned(folder: str) -> bool:
    path = os.path.join(folder, _NAME)
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            (_, task_pid), *_ = _read(path)
    except (OSError, ValueError):  # it is at work, has gone meanwhile, or was killed in the midst of its first line
        return False
    entry = process_table.lookup(int(task_pid))
    return entry is None or entry.state in "ZX"


def _read(path: str) -> list[list[str | int]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _remove(entries: list[list[str | int]], are_gone: bool = False) -> None:
    for kind, what, *_ in entries:
        if kind == "folder":
            shutil.rmtree(str(what), ignore_errors=True)
        elif kind == "file":
            with contextlib.suppress(OSError):
                os.unlink(str(what))
    for kind, what, *more in entries:
        if kind == "pattern":
            from .leftovers import remove_unused

            remove_unused(str(what), int(more[0]), are_gone)
