"""What processes have used by now, of /proc, and which of it is a sign of work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ..processes import process_table

CPU_SHARE = 0.05
"""Of a core, in one process. A rank that waits in a collective of gloo uses 0.004 to 0.014, since threads of it look
around a hundred times a second."""

WANTED_SHARE = 0.5
"""Of the time in which a process's main thread runs or waits for a processor: one that works on a machine where others
have the processors gets little of :data:`CPU_SHARE`."""

BYTES_S = 32 * 1024
"""Read or written in a second, by all processes of a node. The same wait moves 0.4 KiB."""

GUARD_BYTES_S = 256 * 1024
"""Written in a second by the guard: a file or a value on its way. What the guard writes for a card of 1,024 nodes is
less, and what it reads of /proc grows with the processes of the machine and says nothing."""

FAULTS_S = 50.0
"""Page faults in a second, of all processes of a node: 200 KiB of new memory. The same wait has none."""

MOST = 2000
"""Processes of a node that are looked at."""

TINY = 8
"""Bytes of a write that is no output: it wakes another thread (eventfd)."""

_MINFLT, _MAJFLT, _UTIME, _STIME, _CUTIME, _CSTIME = 7, 9, 11, 12, 13, 14
"""Where proc(5)'s ``stat`` has them, counted from the state on."""

_TICKS = float(os.sysconf("SC_CLK_TCK"))


class Usage:
    """What one process has used since its start: seconds of CPU (its own, and of children that are gone), page faults,
    bytes read and written, bytes of writes beyond :data:`TINY` each, and the seconds in which its main thread ran or
    waited for a processor.
    """

    __slots__ = ("bytes", "children_s", "cpu_s", "faults", "output", "wanted_s")

    def __init__(
        self,
        cpu_s: float = 0.0,
        children_s: float = 0.0,
        faults: int = 0,
        read_and_written: int = 0,
        output: int = 0,
        wanted_s: float = 0.0,
    ) -> None:
        self.cpu_s, self.children_s, self.faults, self.wanted_s = cpu_s, children_s, faults, wanted_s
        self.bytes, self.output = read_and_written, output


NOTHING = Usage()


def of_process(pid: int) -> Usage | None:
    """What ``pid`` has used; None where there is no such process."""
    try:
        fields = process_table.fields(pid)
        cpu = (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS
        children = (int(fields[_CUTIME]) + int(fields[_CSTIME])) / _TICKS
        faults = int(fields[_MINFLT]) + int(fields[_MAJFLT])
    except (OSError, ValueError, IndexError):
        return None
    counts: dict[bytes, int] = {}
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            for line in file:
                name, _, count = line.partition(b":")
                counts[name] = int(count)
    except (OSError, ValueError):  # of another user
        pass
    written = counts.get(b"wchar", 0)
    output = written - TINY * counts.get(b"syscw", 0)
    return Usage(cpu, children, faults, counts.get(b"rchar", 0) + written, output, _wanted(pid))


def _wanted(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            ran, waited = file.read().split()[:2]
        return (int(ran) + int(waited)) / 1e9
    except (OSError, ValueError):  # a kernel without this count
        return 0.0


def of_trees(roots: Iterable[int], guard: int) -> dict[int, Usage]:
    """What ``roots`` and all that descends from them have used, but for the ``guard`` and what it has started; of it
    only what it writes counts, since it carries files and large values for bodies that wait for them.
    """
    entries = process_table.table()
    children: dict[int, list[int]] = {}
    for pid, entry in entries.items():
        children.setdefault(entry.parent, []).append(pid)
    found: dict[int, Usage] = {}
    front = [pid for pid in roots if pid in entries]
    while front and len(found) < MOST:
        pid = front.pop()
        usage = of_process(pid) if pid != guard and pid not in found else None
        if usage is not None:
            found[pid] = usage
            front += children.get(pid, ())
    own = of_process(guard)
    if own is not None:
        found[guard] = Usage(read_and_written=own.output)
    return found


class Signs:
    """What happened between two looks.

    Attributes
    ----------
    work : str
        What shows that work was done, for the debug log; "" where nothing does.
    burning : set of int
        Processes that have used CPU, of those of which that says nothing: it may be a wait in a busy loop.
    """

    __slots__ = ("burning", "work")

    def __init__(self, work: str, burning: set[int]) -> None:
        self.work, self.burning = work, burning


def signs(
    before: Mapping[int, Usage],
    now: Mapping[int, Usage],
    seconds: float,
    known: Iterable[int],
    body: int,
    guard: int = 0,
) -> Signs:
    """Compare two looks that are ``seconds`` apart.

    Parameters
    ----------
    known : iterable of int
        Processes that can be asked for their stacks: CPU time of these is no sure sign.
    body : int
        The step's own process, whose output goes past the guard.
    """
    known = set(known)
    burning: set[int] = set()
    work = ""
    moved = faults = 0
    for pid, usage in now.items():
        old = before.get(pid, NOTHING)
        if pid == guard:
            if (usage.bytes - old.bytes) / seconds >= GUARD_BYTES_S:
                work = f"the guard has carried {usage.bytes - old.bytes} bytes"
            continue
        moved += max(0, usage.bytes - old.bytes)
        faults += max(0, usage.faults - old.faults)
        used = (usage.cpu_s - old.cpu_s) / seconds >= CPU_SHARE
        wants = pid in before and (usage.wanted_s - old.wanted_s) / seconds >= WANTED_SHARE
        if (usage.children_s - old.children_s) / seconds >= CPU_SHARE or ((used or wants) and pid not in known):
            work = f"process {pid} has used CPU"
        elif used or wants:
            burning.add(pid)
    if moved / seconds >= BYTES_S:
        work = f"{moved} bytes were read and written"
    if faults / seconds >= FAULTS_S:
        work = f"{faults} page faults"
    if body in before and body in now and now[body].output > before[body].output:
        work = f"the body has written {now[body].output - before[body].output} bytes"
    return Signs(work, burning)
