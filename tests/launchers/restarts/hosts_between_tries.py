"""What is on each host of a gang at one moment: processes, files and ports; and what is left of an earlier moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from support.hosts import Host
from support.leaks import listening
from support.processes import Process, environment_of, own_pid
from support.remote import RemoteGang

LOOK_S = 0.01
"""Between two looks: processes that begin raise no event that could be waited for."""


MOST_SHOWN = 200
"""Characters of a command line."""

Moment = dict[tuple[object, ...], str]
"""A line for each thing on any host, by the host's name and a process's pid and start, a path, or a socket's inode."""


def now(gang: RemoteGang) -> Moment:
    """What is there now."""
    found: Moment = {}
    for index in range(len(gang.hosts)):
        host = gang.hosts[index]
        for process in host.processes():
            found[host.name, process.pid, process.start] = f"{host.name}: {_short(process)}"
        for path in _files(host, gang.folder / "tmp" / host.name):
            found[host.name, path] = f"{host.name}: {path}"
        for socket, port in listening(host.pid).items():
            found[host.name, socket] = f"{host.name}: {port}"
    return found


def _short(process: Process) -> str:
    """Its command line in one line, of which the middle is left out."""
    line = " ".join(" ".join(process.command).split())
    return line if len(line) < MOST_SHOWN else f"{line[: MOST_SHOWN // 2]} ... {line[-MOST_SHOWN // 2 :]}"


def _files(host: Host, temporary: Path) -> set[str]:
    """Shared memory, the temporary folder of the host's tasks, and the first level of /tmp, which all hosts share."""
    found = {os.path.join("/tmp", name) for name in os.listdir("/tmp")}
    for top in (Path(f"/proc/{host.pid}/root/dev/shm"), temporary):
        for folder, folders, files in os.walk(top):
            found |= {os.path.join(folder, name) for name in (*folders, *files)}
    return found


def process_on(host: Host, pid: int) -> Process:
    """The process that knows itself as ``pid`` on its host."""
    (found,) = (process for process in host.processes() if own_pid(process.pid) == pid)
    return found


def beginning_of_try(gang: RemoteGang, number: int, timeout: float, failed: Callable[[], str]) -> Moment:
    """All hosts at the moment when the first process of a try is there.

    Parameters
    ----------
    number : int
        Of the try, as the variable GANG_RESTART has it.
    timeout : float
        Seconds that it may take.
    failed : callable
        The text of the failure where it does not come.
    """
    deadline = time.monotonic() + timeout
    while True:
        for index in range(len(gang.hosts)):
            for process in gang.hosts[index].processes():
                if environment_of(process.pid).get("GANG_RESTART") == str(number):
                    return now(gang)
        assert time.monotonic() < deadline, failed()
        time.sleep(LOOK_S)
