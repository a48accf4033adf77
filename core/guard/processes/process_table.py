"""Whose child is whose: the processes of this machine, read from /proc, and ending a set of them for good.

A process group is not enough (a rank may start a session of its own) and neither is a parent's death signal (it is not
inherited): the guard walks its descendants, and finds those that slipped away by a marker in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import namedtuple
from collections.abc import Iterable

GANG_MARKER = "METAFLOW_GANG_ID"
"""Names the gang, attempt and node in the environment of everything that belongs to it. Not a secret."""

LAUNCH_MARKER = "METAFLOW_GANG_LAUNCH"
"""Names one launch within its gang."""

SESSION = "ssh"
"""Its value in what other nodes run here by the gang's ssh."""

_START = 19
"""Where proc(5)'s ``stat`` has the time of the start, counted from the state on."""

PS_S = 2.0
"""How long `ps` may take."""


Entry = namedtuple("Entry", ["parent", "state"])
"""A line of the process table: the parent's id (int) and the state (one letter) as in proc(5)."""

RANK_VARIABLES = (b"RANK", b"OMPI_COMM_WORLD_RANK", b"PMI_RANK")
"""Of which one has a rank's number in the environment of its process."""


def sees_all() -> bool:
    """Whether there is a /proc, which lists all processes. Without it the guard knows those that it has started."""
    return os.path.exists("/proc/self/stat")


def table() -> dict[int, Entry]:
    """Every process of this PID namespace; of `ps` where there is no /proc, and empty where that fails too."""
    entries: dict[int, Entry] = {}
    if not sees_all():
        return _listed_by_ps()
    for name in os.listdir("/proc"):
        if name.isdigit():
            entry = lookup(int(name))
            if entry is not None:
                entries[int(name)] = entry
    return entries


def _listed_by_ps() -> dict[int, Entry]:
    import subprocess

    try:
        output = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,state="],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PS_S,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = [line.split() for line in output.decode("ascii", "replace").splitlines()]
    return {
        int(line[0]): Entry(int(line[1]), line[2][0])
        for line in lines
        if len(line) == 3 and line[0].isdigit() and line[1].isdigit()
    }


def groups(leaders: Iterable[int]) -> set[int]:
    """The process groups that children of the guard lead, as negative numbers, which :func:`send` takes; those that
    still have a process. For where there is no /proc.
    """
    found = set()
    for pid in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(pid, 0)
            found.add(-pid)
    return found


def lookup(pid: int) -> Entry | None:
    """The line of ``pid``; None where there is none."""
    try:
        line = fields(pid)
    except OSError:
        return None
    return Entry(int(line[1]), line[0].decode()) if len(line) > 1 else None


def fields(pid: int) -> list[bytes]:
    """The fields of ``pid`` in proc(5)'s ``stat``, from the state on. Raises OSError where there is no such process."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The command may hold spaces and parentheses: the fields begin after the last one.
        return stat.read().rpartition(b")")[2].split()


def is_child(pid: int, parent: int) -> bool:
    """Whether ``pid`` is there, and ``parent`` is its parent."""
    entry = lookup(pid)
    return entry is not None and entry.parent == parent


def started(pid: int) -> int:
    """When process ``pid`` has started, in clock ticks since the machine's start; 0 where it is unknown."""
    try:
        return int(fields(pid)[_START])
    except (OSError, IndexError, ValueError):
        return 0


def descendants(roots: Iterable[int], entries: dict[int, Entry] | None = None) -> set[int]:
    """All living children of ``roots``, and theirs; the roots themselves are not among them."""
    entries = table() if entries is None else entries
    children: dict[int, list[int]] = {}
    for pid, entry in entries.items():
        children.setdefault(entry.parent, []).append(pid)
    found: set[int] = set()
    front = list(roots)
    while front:
        for child in children.get(front.pop(), ()):
            if child not in found:
                found.add(child)
                front.append(child)
    return {pid for pid in found if entries[pid].state not in "ZX"}


def marked(name: str, value: str, among: Iterable[int] | None = None) -> set[int]:
    """Processes whose starting environment has ``name=value``; those of other users cannot be read and do not count."""
    wanted = f"{name}={value}".encode()
    found = set()
    for pid in table() if among is None else among:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            if wanted in environ.read().split(b"\0"):
                found.add(pid)
    found.discard(os.getpid())
    return found


def variables(pid: int) -> dict[bytes, bytes]:
    """The environment with which ``pid`` has started its program; empty where it cannot be read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        found = (entry.partition(b"=") for entry in environ.read().split(b"\0"))
        return {name: value for name, _, value in found}
    return {}


def send(pids: Iterable[int], number: int) -> None:
    """Signal each, and a group where the number is negative; one that is gone already is what was wanted."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def terminate(pids: Iterable[int]) -> None:
    """Ask to end. A stopped process gets the request only once it is continued."""
    pids = list(pids)
    send(pids, signal.SIGTERM)
    send(pids, signal.SIGCONT)


def catches(pid: int, number: int) -> bool:
    """Whether ``pid`` has a handler for signal ``number``, which would end it otherwise."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            caught = next(line for line in status if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    except (OSError, StopIteration, ValueError, IndexError):
        return False


def described(pid: int) -> str:
    """A process that does not end, for the user: what it is, and what it waits for."""
    if pid < 0:
        return f"process group {-pid}"

    def read(name: str) -> str:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            return " ".join(file.read(300).replace(b"\0", b" ").decode("utf-8", "replace").split())  # one line
        return ""

    entry = lookup(pid)
    state = entry.state if entry is not None else "?"
    waits = read("wchan")
    user = ""
    with contextlib.suppress(OSError):
        owner = os.stat(f"/proc/{pid}").st_uid
        user = f", of user {owner}" if owner != os.geteuid() else ""
    waiting = f", waits in {waits}" if waits not in ("", "0") else ""
    return f"process {pid} ({(read('cmdline') or read('comm'))[:120]}), state {state}{waiting}{user}"


def become_subreaper(enabled: bool = True) -> bool:
    """Orphans among our descendants become our children instead of init's. False where the platform cannot."""
    try:
        import ctypes

        pr_set_child_subreaper = 36
        return bool(ctypes.CDLL(None).prctl(pr_set_child_subreaper, int(enabled), 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False
