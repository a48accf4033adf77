"""The failed ranks that a process has started: its reports about them, and the files that the ranks have left.

Other ranks may write on after the report, and push it out of the last output. So a report is a record: when it came,
what had been written before it, and what its own rank had written under its number ("[rank3]: "). All of it is read
once, as it comes, on the threads that read the output; what is kept is bounded, whatever is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .tail import TAIL_LIMIT, Tail

if TYPE_CHECKING:
    import re

    from .rank_end import RankEnd

OVERLAP = 2_048
"""Bytes before new output that are searched again: no report is longer."""

KEPT = 32
"""Reports that are kept. A rank that fails after so many others explains nothing any more."""

NUMBERED_LIMIT = 16_384
"""Bytes that are kept of what one rank has written under its number: a traceback."""

NUMBERED_RANKS = 64
"""Ranks of which that is kept; a rank more takes the place of the one that wrote first."""

LATE_LIMIT = 8_192
"""Bytes of the other stream that still count as written before a report: they may have been under way."""


class Report:
    """One report. ``title``, ``rank``, ``node`` and ``exit_code`` are the failed process's, as far as they are known.

    ``at`` is when it was seen (epoch), ``before`` what both streams had before it, ``errors`` the same of the stream
    that has it, ``numbered`` the rank's own lines. ``is_first``: the reporter itself calls it the first;
    ``is_left``: it, or its time, is from a file (see :func:`with_files`).
    """

    __slots__ = (
        "_late",
        "_stream",
        "at",
        "before",
        "errors",
        "exit_code",
        "is_first",
        "is_left",
        "node",
        "numbered",
        "rank",
        "title",
    )

    def __init__(self, rank: int | None, exit_code: int, at: float, before: str, errors: str, numbered: str) -> None:
        self.rank, self.exit_code, self.at = rank, exit_code, at
        self.before, self.errors, self.numbered = before, errors, numbered
        self.node: int | None = None
        self.title = f"rank {rank}"
        self.is_first = self.is_left = False
        self._stream: ReportStream | None = None
        self._late = 0

    @classmethod
    def read(cls, found: re.Match[bytes], stream: ReportStream, before: str, errors: str, numbered: str) -> Report:
        """That of one line, or of some, of ``stream``."""
        groups = {name: text.decode("utf-8", "replace") for name, text in found.groupdict().items() if text is not None}
        number = groups.get("rank") or groups.get("left")
        rank = int(number) if number else None
        report = cls(rank, int(groups.get("exit_code", "0")), time.time(), before, errors, numbered)
        report.node = int(groups["node"]) if groups.get("node") else None
        report.title = groups.get("title") or report.title
        report.is_first = "first" in groups
        report._stream, report._late = stream, LATE_LIMIT
        return report

    def add_late(self, stream: ReportStream, data: bytes) -> None:
        """What came on another stream, and may have been written before."""
        if stream is not self._stream and self._late:
            self.before += data[: self._late].decode("utf-8", "replace")
            self._late = max(0, self._late - len(data))


class Reports:
    """Finds ``pattern`` in the streams of one process and keeps what it finds; ``on_report()`` at each.

    The pattern has the groups ``exit_code`` and ``rank`` or ``title``, or ``left`` for the number of a rank that ended
    with code 0 while others needed it; ``node``, and ``first`` where the reporter says
    which one was the first, are optional. Where it has ``mark`` instead, it is no report, but what follows it is about
    the end of the others: a later report has what was before the first mark.
    """

    def __init__(self, pattern: re.Pattern[bytes], on_report: Callable[[], None] = lambda: None) -> None:
        self.pattern = pattern
        self.lock = threading.Lock()
        self.tail = Tail()
        self._on_report = on_report
        self._found: list[Report] = []
        self._numbered: dict[int, bytearray] = {}
        self._mark: tuple[str, str] | None = None

    def stream(self) -> ReportStream:
        """A sink for one of the process's streams."""
        return ReportStream(self)

    def seen(self) -> list[Report]:
        """All so far, the earliest first."""
        with self.lock:
            return list(self._found)

    def of_rank(self, rank: int, exit_code: int, at: float) -> Report:
        """One of a rank of which nothing has been reported, with what it has written so far."""
        with self.lock:
            before, errors = self._mark or (self.tail.text(), self.tail.text())
            numbered = bytes(self._numbered.get(rank, b"")).decode("utf-8", "replace")
            return Report(rank, exit_code, at, before, errors, numbered)

    def text(self, stream: ReportStream, data: bytes) -> None:
        """Whole lines of ``stream``."""
        self.tail.write(data)
        stream.tail.write(data)
        for report in self._found:
            report.add_late(stream, data)
        self._keep_numbered(data)

    def found(self, stream: ReportStream, match: re.Match[bytes]) -> None:
        """``pattern`` was in ``stream``."""
        before, errors = self._mark or (self.tail.text(), stream.tail.text())
        if match.groupdict().get("mark") is not None:
            self._mark = before, errors
        elif len(self._found) < KEPT:
            rank = match.groupdict().get("rank") or match.groupdict().get("left")
            numbered = self._numbered.get(int(rank), b"") if rank else b""
            self._found.append(Report.read(match, stream, before, errors, bytes(numbered).decode("utf-8", "replace")))
            self._on_report()

    def _keep_numbered(self, data: bytes) -> None:
        at = data.find(b"[rank")
        while at >= 0:
            newline = data.find(b"\n", at)
            end = len(data) if newline < 0 else newline + 1
            number, closed, _ = data[at + 5 : at + 16].partition(b"]:")
            if closed and number.isdigit():
                start = at + 7 + len(number)
                start += data[start : start + 1] == b" "  # lines of C++ have none
                self._numbered_line(int(number), data[start:end])
                at = data.find(b"[rank", end)
            else:
                at = data.find(b"[rank", at + 5)

    def _numbered_line(self, rank: int, line: bytes) -> None:
        kept = self._numbered.get(rank)
        if kept is None:
            if len(self._numbered) >= NUMBERED_RANKS:
                del self._numbered[next(iter(self._numbered))]
            kept = self._numbered[rank] = bytearray()
        kept += line[-NUMBERED_LIMIT:]
        if len(kept) > 2 * NUMBERED_LIMIT:
            del kept[:-NUMBERED_LIMIT]


class ReportStream:
    """One stream of :class:`Reports`: its whole lines are read once, and its last part again with the next."""

    def __init__(self, reports: Reports) -> None:
        self.tail = Tail()
        self._reports = reports
        self._held = b""
        self._old = b""

    def write(self, data: bytes) -> None:
        whole, newline, rest = (self._held + data).rpartition(b"\n")
        self._held = rest[-TAIL_LIMIT:]
        if newline:
            with self._reports.lock:
                self._read(whole + newline)

    def end(self) -> None:
        if self._held:
            with self._reports.lock:
                self._read(self._held)
            self._held = b""

    def _read(self, new: bytes) -> None:
        old, text = len(self._old), self._old + new
        done = old
        for match in self._reports.pattern.finditer(text):
            if match.end() > old:
                # The lines of a report are no output before it.
                start = max(done, text.rfind(b"\n", 0, match.start() + 1) + 1)
                self._reports.text(self, text[done:start])
                self._reports.found(self, match)
                done = start
        self._reports.text(self, text[done:])
        self._old = text[-OVERLAP:]


def with_files(reports: Reports, left: list[RankEnd], all_leave: bool) -> list[Report]:
    """What has been reported and what ranks have left, the earliest first, each rank once.

    ``all_leave``: every rank that fails leaves a file, unless it has been ended because of another one.
    """
    lines = reports.seen()
    seen = {report.rank: report for report in reversed(lines)}
    found = []
    for end in left:
        report = seen.pop(end.rank, None)
        if report is None:
            report = reports.of_rank(end.rank, end.exit_code, end.time)
        else:
            report.at = min(report.at, end.time)
        report.is_first, report.is_left = False, True
        found.append(report)
    if not (all_leave and found):
        found += seen.values()
    # Files of the same moment have the same time, as the kernel's clock ticks every few milliseconds.
    return sorted(found, key=lambda report: (report.at, lines.index(report) if report in lines else len(lines)))


def chosen(reports: list[Report], blames_a_peer: Callable[[Report], bool]) -> Report | None:
    """The report that explains the rest, of those whose rank does not itself report that a peer was gone: one that a
    signal killed, else one that the reporter calls the first, else the earliest.

    The report of a rank that lost a peer may come before that peer's own report.
    """
    candidates = [report for report in reports if not blames_a_peer(report)] or reports
    killed = [report for report in candidates if report.exit_code < 0]
    first = [report for report in candidates if report.is_first]
    return next(iter(killed or first or candidates), None)
