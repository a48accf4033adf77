"""Proof that a test left nothing behind: processes, threads, ports, files, shared memory, namespaces and mounts."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .processes import Process, all_processes, descendants, environment_of, send_signal

MARK = "GANG_TEST_MARK"
"""Variable that every process of a test inherits; its value tells tests that run on one machine at once apart."""

GANG_ID = "METAFLOW_GANG_ID"
"""Variable that every process of a gang carries."""

DEADLINE = 5.0
"""Seconds that a test's remains have to vanish."""

_STEP = 0.05  # A file, a mount or a socket that vanishes raises no event that could be waited for.


def base_folder() -> Path:
    """Where the gangs of this user keep their private folders and port leases."""
    return Path(tempfile.gettempdir()) / f"metaflow-gang-{os.getuid()}"


def _below(folder: Path) -> set[str]:
    """The folder and all in it; what vanishes during the walk is not in it (pathlib's ``rglob`` would raise)."""
    found = set()
    for parent, _, files in os.walk(folder):
        found |= {parent, *(os.path.join(parent, name) for name in files)}
    return found


def _files() -> set[str]:
    return _below(base_folder())


def _shared_memory() -> set[str]:
    return _below(Path("/dev/shm")) - {"/dev/shm"}


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    named = Path("/run/netns")
    return {" ".join(line.split()[3:5]) for line in lines} | (
        {f"network namespace {path.name}" for path in named.iterdir()} if named.is_dir() else set()
    )


def listening(of: int | str = "self") -> dict[str, str]:
    """Inode of each listening TCP socket in the network namespace of a process, with its address and port."""
    found = {}
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{of}/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                found[fields[9]] = f"port {int(port, 16)} on {address}"
    return found


def _sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return set()
    found = set()
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


class Before:
    """How the machine looks now; :meth:`remains` says later what came since and belongs to this test.

    Tests that run at the same time on one machine do not accuse each other's processes: each has its own mark.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._processes = {(process.pid, process.start) for process in all_processes().values()}
        self._threads = set(threading.enumerate())
        self._sets: tuple[tuple[str, Callable[[], set[str]], set[str]], ...] = (
            ("file", _files, _files()),
            ("shared memory", _shared_memory, _shared_memory()),
            ("mount", _mounts, _mounts()),
        )
        self._own_sockets = _sockets(os.getpid())

    def processes(self) -> list[Process]:
        """Processes that came since: below this one, with this test's mark, or a gang's orphan with no mark."""
        table = all_processes()
        below = {process.pid for process in descendants(os.getpid(), table)}
        found = []
        for process in table.values():
            if process.zombie or process.pid == os.getpid() or (process.pid, process.start) in self._processes:
                continue
            environment = environment_of(process.pid)
            orphan = process.parent == 1 and GANG_ID in environment and MARK not in environment
            if process.pid in below or environment.get(MARK) == self._mark or orphan:
                found.append(process)
        return found

    def remains(self) -> list[str]:
        """One line for each thing that is there and was not before."""
        open_ports = listening()
        lines = []
        for process in self.processes():
            ports = [open_ports[inode] for inode in sorted(_sockets(process.pid)) if inode in open_ports]
            lines.append(f"process {process}" + (f", listening on {', '.join(ports)}" if ports else ""))
        for thread in threading.enumerate():
            if thread not in self._threads:
                lines.append(f"thread {thread.name!r} of the test process")
        for inode in sorted((_sockets(os.getpid()) - self._own_sockets) & open_ports.keys()):
            lines.append(f"listening socket of the test process: {open_ports[inode]}")
        for kind, look, before in self._sets:
            lines += [f"{kind} {name}" for name in sorted(look() - before)]
        return lines


@contextmanager
def no_leaks(deadline: float = DEADLINE) -> Iterator[str]:
    """Fail when the block leaves anything behind for ``deadline`` seconds, and end the processes that it left.

    Gives the mark, which is in ``os.environ`` for the length of the block and so in every process started meanwhile.
    """
    mark = uuid.uuid4().hex
    outer = os.environ.get(MARK)
    os.environ[MARK] = mark
    before = Before(mark)
    try:
        yield mark
    finally:
        if outer is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = outer
        end = time.monotonic() + deadline
        while (remains := before.remains()) and time.monotonic() < end:
            time.sleep(_STEP)
        for process in before.processes():
            send_signal(process, signal.SIGKILL)
    if remains:
        pytest.fail(f"left behind {deadline:g} s after the end:\n  " + "\n  ".join(remains), pytrace=False)
