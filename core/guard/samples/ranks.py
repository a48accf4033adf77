"""What each process of a launch does: its state, CPU time and memory, with those of its children, and its last line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from ..processes import process_table

if TYPE_CHECKING:
    from ..loop.framing import Header

    class Rank(Protocol):
        """A process that runs."""

        pid: int
        rank: int | None
        title: str

        @property
        def alive(self) -> bool: ...

        def last_line(self) -> tuple[str, float]: ...


MOST_RANKS = 64
"""Of one node that a sample has."""

MOST_PROCESSES = 64
"""Below one rank that are looked at: workers that load data, for example."""

_UTIME, _RSS = 11, 21
"""Where proc(5)'s ``stat`` has the CPU times (user, system, and of children that are gone) and the pages in memory,
counted from the state on.
"""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def sample(ranks: Iterable[Rank]) -> list[Header]:
    """Of each that runs: ``rank``, ``title``, ``state`` (a letter of proc(5)), ``cpu_s`` (seconds of CPU), ``rss``
    (bytes), ``line`` (the last one that it wrote) and ``line_at`` (epoch; 0.0 where it wrote none).
    """
    found: list[Header] = []
    for rank in ranks:
        if len(found) >= MOST_RANKS:
            break
        if rank.alive and rank.pid > 0:
            state, cpu_s, rss = _usage(rank.pid)
            line, at = rank.last_line()
            record = {"rank": rank.rank, "title": rank.title[:100], "state": state, "cpu_s": round(cpu_s, 2)}
            found.append({**record, "rss": rss, "line": line, "line_at": round(at, 2)})
    return found


def _usage(root: int) -> tuple[str, float, int]:
    state, ticks, pages = "", 0, 0
    front, seen = [root], 0
    while front and seen < MOST_PROCESSES:
        pid = front.pop()
        seen += 1
        try:
            fields = process_table.fields(pid)
        except OSError:  # it has ended meanwhile
            continue
        if len(fields) > _RSS:
            state = state or fields[0].decode()
            ticks += sum(map(int, fields[_UTIME : _UTIME + 4]))
            pages += int(fields[_RSS])
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            front += map(int, file.read().split())
    return state, ticks / _TICKS, pages * _PAGE
