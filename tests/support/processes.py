"""The machine's processes as /proc shows them, and how to wait for and signal exactly one of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One process. ``start`` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    start: int
    parent: int
    state: str
    command: tuple[str, ...]

    @property
    def zombie(self) -> bool:
        """Ended, and only its parent's ``wait`` is missing."""
        return self.state in "ZX"

    def __str__(self) -> str:
        return f"pid {self.pid} (state {self.state}, parent {self.parent}): {' '.join(self.command) or '[no command]'}"


def read_process(pid: int) -> Process | None:
    """The process ``pid``, or None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses: the fields begin after the last one.
    fields = stat[stat.rindex(b")") + 2 :].split()
    argv = tuple(part.decode("utf-8", "replace") for part in command.rstrip(b"\0").split(b"\0")) if command else ()
    return Process(pid, int(fields[19]), int(fields[1]), fields[0].decode(), argv)


def all_processes() -> dict[int, Process]:
    """Every process of the machine by pid, kernel threads left out."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process and (process.command or process.zombie)}


def descendants(root: int, processes: dict[int, Process] | None = None) -> list[Process]:
    """All processes below ``root``, the nearest first; those that ended and await their parent are left out."""
    table = all_processes() if processes is None else processes
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    generation = [root]
    while generation:
        below = [child for pid in generation for child in children.get(pid, [])]
        found += below
        generation = [child.pid for child in below]
    return [process for process in found if not process.zombie]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that ``pid`` was started with; empty where it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode("utf-8", "replace").partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def own_pid(pid: int) -> int | None:
    """The pid by which ``pid`` knows itself, in a container or on a host of its own; None where it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return next((int(line.split()[-1]) for line in file if line.startswith("NSpid:")), None)
    except OSError:
        return None


def send_signal(process: Process, number: int) -> bool:
    """Signal this very process, never another that took over its pid; False where it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = read_process(process.pid)
        if now is None or now.start != process.start:
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def wait_gone(pids: Iterable[int], timeout: float) -> list[Process]:
    """Wait up to ``timeout`` seconds for the processes to end; return those that still run (zombies have ended)."""
    deadline = time.monotonic() + timeout
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        poll = select.poll()
        waiting = {handle: pid for pid, handle in handles.items()}
        for handle in waiting:
            poll.register(handle, select.POLLIN)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for handle, _ in poll.poll(left * 1000):
                poll.unregister(handle)
                del waiting[handle]
        return [process for pid in waiting.values() if (process := read_process(pid)) and not process.zombie]
    finally:
        for handle in handles.values():
            os.close(handle)
