"""Who listens on a port, as far as /proc lets this user see."""

from __future__ import annotations

import os

_LISTEN = "0A"
_LONGEST_COMMAND = 200


def listener_on(port: int) -> str | None:
    """``process 17 (python server.py)`` for the process that listens on a TCP port; None where it cannot be seen."""
    sockets = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    if not sockets:
        return None
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        if any(_link(f"/proc/{pid}/fd/{number}") in sockets for number in descriptors):
            return f"process {pid}{_command(pid)}"
    return None


def _listening(table: str, port: int) -> list[str]:
    """Inodes of the sockets that listen on the port."""
    try:
        with open(f"/proc/self/net/{table}", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _command(pid: str) -> str:
    """The command line in brackets, cut where it is long."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").split("\0")
    except OSError:
        return ""
    command = " ".join(filter(None, words)).strip()
    return f" ({command[:_LONGEST_COMMAND]})" if command else ""
