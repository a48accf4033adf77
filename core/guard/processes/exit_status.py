"""How a process that is no child of the guard has ended: only its parent can wait for it, but the kernel shows more."""

from __future__ import annotations

import os
import time

from ..failure_record import Failure
from ..text import how_it_ended
from . import process_table

_GET_INFO = 0xC040FF0B
"""ioctl(2) PIDFD_GET_INFO of <linux/pidfd.h>, with the first version of its structure, which has 64 bytes."""

_INFO_EXIT = 1 << 3
"""PIDFD_INFO_EXIT: since Linux 6.15, once the parent has collected the process."""

_INFO_CODE = slice(60, 64)
"""Where the structure has the exit status."""

_LOOKS = 3
"""Between looking for a process that waits to be collected and asking about one that was, its parent may collect it."""

_STACK = 25
"""Where the start of the stack stands among the fields of /proc/PID/stat after the name: exec(2) changes it."""


def exit_code(pid: int, pidfd: int = -1) -> int | None:
    """The exit code of process ``pid``, which is dead, as :mod:`subprocess` spells it; None where it is unknown."""
    for _ in range(_LOOKS):
        status = _of_zombie(pid)
        if status is None and pidfd >= 0:
            status = _of_descriptor(pidfd)
        if status is not None:
            try:
                return os.waitstatus_to_exitcode(status)
            except ValueError:
                return None
    return None


def _of_zombie(pid: int) -> int | None:
    """The status that waits for the parent of ``pid``; it is shown to the same user only, to others it is 0."""
    try:
        if os.geteuid() not in (0, os.stat(f"/proc/{pid}").st_uid):
            return None
        fields = process_table.fields(pid)
    except OSError:
        return None
    return int(fields[-1]) if fields and fields[0] in (b"Z", b"X") else None


def _of_descriptor(pidfd: int) -> int | None:
    import fcntl
    import sys

    info = bytearray(64)
    info[:8] = _INFO_EXIT.to_bytes(8, sys.byteorder)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    if not int.from_bytes(info[:8], sys.byteorder) & _INFO_EXIT:
        return None
    return int.from_bytes(info[_INFO_CODE], sys.byteorder)


class Program:
    """The program that process ``pid`` runs, to know later whether it still does; its title may change."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen = self._look()

    def _look(self) -> tuple[str, bytes]:
        try:
            path, fields = os.readlink(f"/proc/{self._pid}/exe"), process_table.fields(self._pid)
        except OSError:
            return "", b""
        return path, fields[_STACK] if len(fields) > _STACK else b""

    @property
    def is_another(self) -> bool:
        now = self._look()
        return bool(now[0] and self._seen[0]) and now != self._seen


def task_failure(node: int, code: int | None, after_body: bool) -> Failure:
    """The end of the task of node ``node``, which had not finished its step, as its own guard sees it.

    ``code`` is its exit code, None where unknown; ``after_body`` says whether its body had ended well.
    """
    how = "died" if code is None else how_it_ended(code)
    kind = "task" if code is None else "task-signal" if code < 0 else "task-exit"
    if after_body:
        when = " after its body, while Metaflow stored its state"
    elif code is None:
        when = " in the middle of its work"
    else:
        when = " without finishing its step" if code >= 0 else ""
    return Failure(node, kind, f"the node's task {how}{when}", time.time(), exit_code=code)


def deserted(node: int, task_pid: int, program: Program, since: float) -> Failure:
    """The task ``task_pid`` of node ``node`` lives, and has closed its end of the socket pair at ``since`` (seconds
    since the epoch), which the guard's client never does. ``program`` is what it ran at first.
    """
    if program.is_another:
        now = process_table.described(task_pid)
        text = f"the step's body replaced its own process by another program (exec): {now}"
    else:
        text = (
            "the step's body closed descriptors that it had not opened (as os.closerange() can), and with them the "
            "connection to its guard"
        )
    return Failure(node, "deserted", text, since)
