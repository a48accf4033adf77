"""One process of the guard: its start, its output, its end, and what it tells of a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from ..failure_record import EVIDENCE, PEER, Failure
from ..loop.event_loop import Loop, Timer
from ..processes import process_table
from ..rank_reports.complaints import matches, telling_lines
from ..rank_reports.rank_end import LEFT_EARLY, Words, how_a_rank_ended, left_by_ranks, read_words
from ..text import last_lines, last_traceback, said_by
from . import inherited
from .output import Pump
from .tail import Tail

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Any

    from ..rank_reports.rank_end import RankEnd
    from ..rank_reports.reports import Report, Reports
    from .output import Sink

DRAIN_S = 0.5
"""How long a child's output may go on after its death: a grandchild that kept the pipe must not hold up the end."""

DRAIN_LIMIT_S = 5.0
"""How long a slow reader of the child's output may take; Metaflow's runtime needs a second for 10,000 lines."""

_STOPPED = (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""How a process ends that is stopped, or a shell whose program was stopped a moment before it."""

RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "exec.py")


class Child:
    """One process, from its start until it is gone and its output drained."""

    def __init__(
        self,
        loop: Loop,
        spec: dict[str, Any],
        sinks: Callable[[str], list[Sink]],
        pass_fds: tuple[int, ...],
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.title: str = spec["title"]
        self.rank: int | None = spec.get("rank")
        self.error_file: str | None = spec.get("error_file")
        self.peer_lost: list[str] = spec.get("peer_lost", [])
        self._records_exceptions: bool = spec.get("records_exceptions", False)
        self._leaves_ends: bool = spec.get("leaves_ends", False)
        self.is_foreign: bool = spec.get("is_foreign", False)
        self._started_at = time.time()
        self.asked_at = float("inf")
        """When it was asked to end: what its ranks leave from then on is no cause."""
        self.tail = Tail()
        self._errors = Tail()
        self.exit_code: int | None = None
        self.ended_at = 0.0
        self.reported_at = 0.0
        self.on_end: Callable[[Child], None] = lambda child: None
        self.on_overdue: Callable[[Child], None] = lambda child: None
        self._loop = loop
        self._pumps: list[Pump] = []
        self._open_streams = 2
        self._timer: Timer | None = None
        self._told = False
        self.pid = -1
        streams = {name: [*sinks(name), self.tail.stream()] for name in ("stdout", "stderr")}
        streams["stderr"].append(self._errors)
        self._reports: Reports | None = None
        self._told_report: Report | None = None
        self._has_told = False
        if spec.get("report"):
            self._reports = self._look_for_reports(spec["report"], spec.get("report_grace"))
            for sinks_of_stream in streams.values():
                sinks_of_stream.append(self._reports.stream())
        try:
            self._start(spec, streams, pass_fds, stdin)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # What the runner cannot tell: too long a command line, a null byte in it, too many processes.
            self._could_not_start(spec["argv"][0], getattr(error, "strerror", None) or str(error), streams)

    def _start(
        self, spec: dict[str, Any], streams: dict[str, list[Sink]], pass_fds: tuple[int, ...], stdin: int
    ) -> None:
        cwd, delay = spec.get("cwd") or "", str(spec.get("delay", 0.0))
        runner = [sys.executable, "-I", "-S", RUNNER, str(os.getpid()), cwd, delay, str(inherited.open_files())]
        with inherited.signals_of_the_task():
            self._process = subprocess.Popen(
                [*runner, *spec["argv"]],
                env=spec["env"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.pid = self._process.pid
        for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            assert stream is not None
            fd = os.dup(stream.fileno())
            stream.close()
            ended = partial(self._loop.call_soon_threadsafe, self._stream_ended)
            self._pumps.append(Pump(fd, streams[name], ended))

    def _could_not_start(self, program: str, reason: str, streams: dict[str, list[Sink]]) -> None:
        if self.pid > 0:  # it runs, but there is no thread or descriptor left for its output
            process_table.send([self.pid], signal.SIGKILL)
        self.exit_code, self.ended_at = 126, time.time()
        for sink in streams["stderr"]:
            sink.write(f"[gang] {program!r} could not be started: {reason}.\n".encode(errors="replace"))
        for sinks in streams.values():
            for sink in sinks:
                sink.end()
        self._loop.call_later(0, self._tell)

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    @property
    def starts_ranks(self) -> bool:
        """Whether it starts ranks itself, or is started by another node to do so."""
        return "{rank}" in (self.error_file or "") or self.is_foreign

    @property
    def has_failed(self) -> bool:
        """Whether it ended with anything but 0, or told that a process it had started did."""
        return bool(self.exit_code) or self.reported_at > 0.0

    def died(self, exit_code: int) -> None:
        """The kernel told that it is gone; :meth:`reaped` has to follow."""
        self.exit_code = self._process.returncode = exit_code
        self.ended_at = time.time()

    def reaped(self) -> None:
        """``on_end`` follows when its output has been drained."""
        if self._open_streams:
            goals = [(pump, pump.written()) for pump in self._pumps]
            self._drain(goals, time.monotonic() + DRAIN_LIMIT_S)
        else:
            self._tell()

    def _drain(self, goals: list[tuple[Pump, int]], deadline: float) -> None:
        def look() -> None:
            if time.monotonic() < deadline and any(pump.passed < goal for pump, goal in goals):
                self._drain(goals, deadline)
            else:
                self._tell()

        self._timer = self._loop.call_later(DRAIN_S, look)

    def _stream_ended(self) -> None:
        self._open_streams -= 1
        if not self._open_streams and not self.alive:
            self._tell()

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._told:
            self._told = True
            self.on_end(self)

    def give_up(self) -> None:
        """It does not end, although it has been killed: from here on it counts as gone."""
        if self.exit_code is None:
            self.exit_code, self.ended_at = -signal.SIGKILL, time.time()
        self._tell()

    @property
    def settled(self) -> bool:
        """Gone, and its output drained."""
        return self._told

    def _look_for_reports(self, pattern: str, grace: float | None) -> Reports:
        import re

        from ..rank_reports.reports import Reports

        def found() -> None:
            if not self.reported_at:
                self.reported_at = time.time()
                self._loop.call_later(grace or 0.0, lambda: self.on_overdue(self))

        def seen() -> None:
            if grace is not None:
                self._loop.call_soon_threadsafe(found)

        return Reports(re.compile(pattern.encode(), re.DOTALL), seen)

    def _report(self) -> Report | None:
        """What is known of one that it had started and that failed; the same from the first time that is told on."""
        if self._reports is None or self._has_told:
            return self._told_report
        from ..rank_reports.reports import chosen, with_files

        left: list[RankEnd] = []
        if self.exit_code != 0 and self.error_file and "{rank}" in self.error_file:
            # Where it has ended well, what a rank has left is of an attempt that has been made good.
            left = [end for end in left_by_ranks(self.error_file, self._started_at) if end.time < self.asked_at]
        return chosen(with_files(self._reports, left, self._leaves_ends), self._blames_a_peer)

    def _blames_a_peer(self, report: Report) -> bool:
        if report.rank is None or (report.exit_code < 0 and report.exit_code != -signal.SIGABRT):
            return False
        words = self._words(report).text if self.error_file and "{rank}" in self.error_file else ""
        if self._meant_to(report, words):
            return False
        return matches(self.peer_lost, words or report.numbered)

    def _meant_to(self, report: Report | None, words: str) -> bool:
        """Whether a rank has exited by itself without an exception, whatever others have said."""
        has_left = report is not None and report.is_left and report.exit_code > 0
        return has_left and self._records_exceptions and not words

    def told_at(self) -> float:
        """When it, or a rank of it, wrote down why it failed (0.0 if unknown)."""
        report = self._report()
        return report.at if report is not None and report.is_left else self._traceback(report)[1]

    def result(self) -> dict[str, Any]:
        """What the task learns of it; where it has failed, in the words of :meth:`failure`."""
        report = self._report()
        exit_code = self._code(report)
        record = {
            "title": report.title if report else self.title,
            "rank": report.rank if report else self.rank,
            "exit_code": exit_code,
            "ended": self._how(report, exit_code, self._traceback(report)[0]),
            "tail": report.before if report else self.tail.text(),
            "error_file": self._error_file(report),
        }
        if self.has_failed:
            record["detail"] = self._detail(report)[0]
        return record

    def _code(self, report: Report | None) -> int:
        """The exit code that counts: a reported rank's, else its own, or the one that it was about to end with."""
        if report is not None:
            return report.exit_code
        exit_code, words = self.exit_code or 0, self._words(report)
        if exit_code in _STOPPED and words.exit_code is not None:
            exit_code = words.exit_code  # it was on its way out with that, and was stopped there
        return exit_code

    def _error_file(self, report: Report | None) -> str | None:
        """Its own, or that of the rank which it reports, whose number then belongs into the name."""
        if self.error_file and "{rank}" in self.error_file:
            return self.error_file.replace("{rank}", str(report.rank)) if report else None
        # Its own is about the rank that it calls the first.
        return self.error_file if report is None or report.is_first or report.rank is None else None

    def _words(self, report: Report | None) -> Words:
        """What it, or the rank that it reports, wrote down of its end."""
        return read_words(self._error_file(report))

    def traceback(self) -> str:
        """The traceback it left in its error file, else in its output."""
        return self._traceback(self._report())[0]

    def _traceback(self, report: Report | None) -> tuple[str, float]:
        words = self._words(report)
        if words.text:
            return self._with_what_it_printed(report, words), words.time
        if report is not None and report.exit_code <= 0 and report.exit_code != -signal.SIGABRT:
            return "", 0.0  # a killed rank has left none: what is there is another's
        if self._records_exceptions and self._reports is None and (self.exit_code or 0) < 0:
            return "", 0.0  # it raised none: one that it printed has been caught
        if self._records_exceptions and report is not None and report.is_left:
            return "", 0.0
        # Where stdout is shown too, its lines may stand in the middle of the traceback.
        texts = [self._errors.text(), self.tail.text()]
        if report is not None and report.rank is not None:
            texts = [said_by(report.rank, report.errors), said_by(report.rank, report.before)]
            texts.insert(0, report.numbered)
        return next(filter(None, map(last_traceback, texts)), ""), 0.0

    def _with_what_it_printed(self, report: Report | None, words: Words) -> str:
        """Where ``sys.exit()`` was called, after what was printed before that, which may say why: argparse does so."""
        if not words.printed:
            return words.text
        if report is not None and report.rank is not None:
            printed = telling_lines(said_by(report.rank, report.errors))
        else:
            printed = last_lines(self._errors.text())
        return f"{printed}\n{words.text}" if printed.strip() else words.text

    def _detail(self, report: Report | None) -> tuple[str, float]:
        """What is told of its end: a traceback, else last lines; and when that was written (0.0 if unknown)."""
        detail, at = self._traceback(report)
        if detail or report is None or report.rank is None:
            return detail or last_lines(self.tail.text()), at
        return telling_lines(said_by(report.rank, report.before)), at

    def failure(self, node: int) -> Failure:
        """Why it failed, as a record. What it reports is settled by the first call."""
        report = self._told_report = self._report()
        self._has_told = self._has_told or report is not None
        exit_code = self._code(report)
        raised = self._traceback(report)[0]
        detail, at = self._detail(report)
        # A rank that exits otherwise has meant to; what starts ranks has codes of its own.
        by_peer = exit_code in (1, -signal.SIGABRT) or (self._reports is not None and exit_code > 0)
        by_peer = by_peer or (exit_code < 0 and bool(self._words(report).text))  # what it raised comes first
        by_peer = by_peer and not self._meant_to(report, self._words(report).text)
        lost_peer = by_peer and matches(self.peer_lost, self._complaints(report, raised, exit_code))
        ended = (report.at if report else 0.0) or self.reported_at or self.ended_at
        return Failure(
            node if report is None or report.node is None else report.node,
            "signal" if exit_code < 0 else "exit",
            f"{report.title if report else self.title} {self._how(report, exit_code, raised)}",
            min(ended, at or ended),
            detail,
            report.rank if report else self.rank,
            PEER if lost_peer else EVIDENCE,
            teller=node,
        )

    def _complaints(self, report: Report | None, raised: str, exit_code: int) -> str:
        """Where it may say that another went first."""
        if report is not None and report.rank is not None:
            said = f"{report.numbered}\n{said_by(report.rank, report.before)}"
        else:
            said = self.tail.text()
        # C++ says in the output why it aborts; and what starts ranks says there that it has lost some.
        also_said = exit_code == -signal.SIGABRT or (self._reports is not None and report is None)
        return f"{raised}\n{said}" if also_said else raised or said

    def _how(self, report: Report | None, exit_code: int, detail: str) -> str:
        if report is not None and not exit_code:
            return LEFT_EARLY
        return how_a_rank_ended(exit_code, self._words(report), detail, self._records_exceptions)

    def dying_words(self, node: int, since: float) -> Failure | None:
        """Evidence of a process that is about to fail but has not ended: what it, or a rank of it, left lately."""
        report = self._report()
        if report is not None and report.is_left:
            # However long ago: who starts the ranks may wait for one that does not end before it tells.
            return self.failure(node) if self.alive and not self._blames_a_peer(report) else None
        detail, at = self._traceback(report)
        if not self.alive or not detail or matches(self.peer_lost, detail):
            return None
        last_words = any(tail.text().rstrip().endswith(detail) for tail in (self._errors, self.tail))
        if at < since and not (at == 0.0 and last_words):
            return None
        how = self._words(report).how or "raised"
        return Failure(node, "exception", f"{self.title} {how}", at or time.time(), detail, self.rank)
