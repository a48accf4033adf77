"""The evidence of one process's end (its files, its output, its reports of ranks), and the failure record of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..failure_record import EVIDENCE, PEER, Failure
from ..rank_reports.complaints import distinct_lines, matches
from ..rank_reports.error_file import ErrorFile, read_error_file
from ..rank_reports.rank_end import LEFT_EARLY, how_a_rank_ended, left_by_ranks, marked_end, marked_ends
from ..rank_reports.tail import Tail
from ..text import last_lines, said_by
from ..tracebacks import exception_message, last_traceback

if TYPE_CHECKING:
    from ..rank_reports.rank_end import RankEnd
    from ..rank_reports.reports import Report, Reports

_STOPPED = (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""How a process ends that is stopped, or a shell whose program was stopped a moment before it."""


class ProcessEvidence:
    """Evidence of one process, which :class:`~.child.Child` collects while it runs. ``spec`` is the process's part of
    its plan.

    Attributes
    ----------
    asked_at : float
        When it was asked to end (epoch, by the clock of files): what its ranks leave from then on is no cause.
    exit_code : int or None
        None while it runs.
    ended_at, reported_at : float
        When it ended, and when it first reported that a rank failed (epoch); 0.0 where it did not.
    tail, errors : Tail
        The last output of both its streams, and of its stderr.
    reports : Reports or None
        What it has reported of ranks, where it is one that does.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.describe(spec)
        self.exit_code: int | None = None
        self.ended_at = 0.0
        self.reported_at = 0.0
        self.tail = Tail()
        self.errors = Tail()
        self.reports: Reports | None = None
        self._final_report: Report | None = None
        self._is_final = False

    def describe(self, spec: dict[str, Any]) -> None:
        """It is what ``spec`` says, and begins now."""
        self.title: str = spec["title"]
        self.rank: int | None = spec.get("rank")
        self.error_file: str | None = spec.get("error_file")
        self.peer_lost: list[str] = spec.get("peer_lost", [])
        self.is_foreign: bool = spec.get("is_foreign", False)
        self._records_exceptions: bool = spec.get("records_exceptions", False)
        self._leaves_ends: bool = spec.get("leaves_ends", False)
        self._started_at = time.time()
        self.asked_at = float("inf")

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def last_line(self) -> tuple[str, float]:
        """The last line that it wrote, and when (epoch)."""
        return self.tail.last_line()

    @property
    def has_ranks(self) -> bool:
        """Whether it is a rank, or starts some."""
        return self.rank is not None or "{rank}" in (self.error_file or "")

    def ranks_ended_well(self, stopped_at: float) -> Iterator[tuple[int, float]]:
        """The ranks that it is, or has started, which ended with code 0 before they were stopped, and when.

        ``stopped_at`` is when what is left of its launch was ended. A rank that ends with 0 after that has ended
        because of it, unless it had left its mark before.
        """
        if self.error_file and "{rank}" in self.error_file:
            yield from marked_ends(self.error_file, self._started_at, self.asked_at)
        elif self.rank is not None and self.exit_code == 0:
            marked = marked_end(self.error_file)
            if 0.0 < marked < self.asked_at or self.ended_at <= stopped_at:
                yield self.rank, marked or self.ended_at

    @property
    def starts_ranks(self) -> bool:
        """Whether it starts ranks itself, or is started by another node to do so."""
        return "{rank}" in (self.error_file or "") or self.is_foreign

    @property
    def serves_others(self) -> bool:
        """Whether it runs what another node starts: a command of it, or the gang's own sshd."""
        return self.is_foreign or self.title == "sshd"

    @property
    def has_failed(self) -> bool:
        """Whether it ended with anything but 0, or reported that a process it had started did."""
        return bool(self.exit_code) or self.reported_at > 0.0

    def _report(self) -> Report | None:
        """What is known of a rank of it that failed; the same from the first call of :meth:`failure` on."""
        if self.reports is None or self._is_final:
            return self._final_report
        from ..rank_reports.reports import chosen, with_files

        left: list[RankEnd] = []
        if self.exit_code != 0 and self.error_file and "{rank}" in self.error_file:
            # Where it has ended well, what a rank has left is of an attempt that has been made good.
            left = [end for end in left_by_ranks(self.error_file, self._started_at) if end.time < self.asked_at]
        return chosen(with_files(self.reports, left, self._leaves_ends), self._misses_a_peer)

    def _misses_a_peer(self, report: Report) -> bool:
        if report.rank is None:
            return False
        raised = self._error(report).text if self.error_file and "{rank}" in self.error_file else ""
        # A rank that raised may be ended by its launcher on its way out: what it raised comes first.
        if report.exit_code < 0 and report.exit_code != -signal.SIGABRT and not raised:
            return False
        if self._meant_to(report, raised):
            return False
        return matches(self.peer_lost, raised or report.numbered)

    def _meant_to(self, report: Report | None, raised: str) -> bool:
        """Whether a rank has exited by itself without an exception, whatever other ranks wrote."""
        has_left = report is not None and report.is_left and report.exit_code > 0
        return has_left and self._records_exceptions and not raised

    def failed_at(self) -> float:
        """When it, or a rank of it, wrote down why it failed (0.0 if unknown)."""
        report = self._report()
        return report.at if report is not None and report.is_left else self._traceback(report)[1]

    def result(self) -> dict[str, Any]:
        """Its record for the task; where it has failed, with the detail of :meth:`failure`."""
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
        exit_code, error = self.exit_code or 0, self._error(report)
        if exit_code in _STOPPED and error.exit_code is not None:
            exit_code = error.exit_code  # it was on its way out with that, and was stopped there
        return exit_code

    def _error_file(self, report: Report | None) -> str | None:
        """Its own error file, or that of the rank which it reports, with that rank's number in the name."""
        if self.error_file and "{rank}" in self.error_file:
            return self.error_file.replace("{rank}", str(report.rank)) if report else None
        # Its own file is about the rank that it calls the first.
        return self.error_file if report is None or report.is_first or report.rank is None else None

    def _error(self, report: Report | None) -> ErrorFile:
        """The error file of it, or of the rank that it reports."""
        return read_error_file(self._error_file(report))

    def traceback(self) -> str:
        """The traceback it left in its error file, else in its output."""
        return self._traceback(self._report())[0]

    def _traceback(self, report: Report | None) -> tuple[str, float]:
        error = self._error(report)
        if error.text:
            return self._with_what_it_printed(report, error), error.time
        if report is not None and report.exit_code <= 0 and report.exit_code != -signal.SIGABRT:
            return "", 0.0  # a killed rank has left none: what is there is another's
        if self._records_exceptions and self.reports is None and (self.exit_code or 0) < 0:
            return "", 0.0  # it raised none: one that it printed has been caught
        if self._records_exceptions and report is not None and report.is_left:
            return "", 0.0
        # Where stdout is shown too, its lines may stand in the middle of the traceback.
        texts = [self.errors.text(), self.tail.text()]
        if report is not None and report.rank is not None:
            texts = [said_by(report.rank, report.errors), said_by(report.rank, report.before)]
            texts.insert(0, report.numbered)
        return next(filter(None, map(last_traceback, texts)), ""), 0.0

    def _with_what_it_printed(self, report: Report | None, error: ErrorFile) -> str:
        """An error file's text; of a ``sys.exit()`` after what was printed before: argparse prints the reason there."""
        if not error.printed:
            return error.text
        if report is not None and report.rank is not None:
            printed = distinct_lines(said_by(report.rank, report.errors))
        else:
            printed = last_lines(self.errors.text())
        return f"{printed}\n{error.text}" if printed.strip() else error.text

    def _detail(self, report: Report | None) -> tuple[str, float]:
        """The detail of its end: a traceback, else last lines; and when that was written (0.0 if unknown)."""
        detail, at = self._traceback(report)
        if detail or report is None or report.rank is None:
            return detail or last_lines(self.tail.text()), at
        return distinct_lines(said_by(report.rank, report.before)), at

    def failure(self, node: int) -> Failure:
        """Why it failed, as a record. What it reports is settled by the first call."""
        report = self._final_report = self._report()
        self._is_final = self._is_final or report is not None
        exit_code = self._code(report)
        raised = self._traceback(report)[0]
        detail, at = self._detail(report)
        # A rank that exits otherwise has meant to; what starts ranks has codes of its own.
        may_miss = exit_code in (1, -signal.SIGABRT) or (self.reports is not None and exit_code > 0)
        may_miss = may_miss or (exit_code < 0 and bool(self._error(report).text))  # what it raised comes first
        may_miss = may_miss and not self._meant_to(report, self._error(report).text)
        misses_peer = may_miss and matches(self.peer_lost, self._complaints(report, raised, exit_code))
        ended = (report.at if report else 0.0) or self.reported_at or self.ended_at
        return Failure(
            node if report is None or report.node is None else report.node,
            "signal" if exit_code < 0 else "exit",
            f"{report.title if report else self.title} {self._how(report, exit_code, raised)}",
            min(ended, at or ended),
            detail,
            report.rank if report else self.rank,
            PEER if misses_peer else EVIDENCE,
            reporting_node=node,
            exit_code=exit_code,
            message=self._message(report, raised if exit_code > 0 else self._error(report).text),
        )

    def _message(self, report: Report | None, raised: str) -> str:
        """The exception's class and message in one line: as they are in the error file, else in the traceback."""
        return (self._error(report).message or exception_message(raised)) if raised else ""

    def _complaints(self, report: Report | None, raised: str, exit_code: int) -> str:
        """The text that may report that a peer was gone."""
        if report is not None and report.rank is not None:
            printed = f"{report.numbered}\n{said_by(report.rank, report.before)}"
        else:
            printed = self.tail.text()
        # C++ prints the reason of an abort; and a launcher of ranks prints that it has lost some.
        in_output = exit_code == -signal.SIGABRT or (self.reports is not None and report is None)
        return f"{raised}\n{printed}" if in_output else raised or printed

    def _how(self, report: Report | None, exit_code: int, detail: str) -> str:
        if report is not None and not exit_code:
            return LEFT_EARLY
        is_rank = self.reports is None or report is not None  # else a launcher of ranks has failed, as for an option
        return how_a_rank_ended(exit_code, self._error(report), detail, self._records_exceptions and is_rank)

    def evidence_before_end(self, node: int, since: float) -> Failure | None:
        """Evidence of a process that is about to fail but has not ended: what it, or a rank of it, left lately."""
        report = self._report()
        if report is not None and report.is_left:
            # However long ago: the launcher of ranks may wait for one that does not end before it reports.
            return self.failure(node) if self.alive and not self._misses_a_peer(report) else None
        detail, at = self._traceback(report)
        if not self.alive or not detail or matches(self.peer_lost, detail):
            return None
        is_last = any(tail.text().rstrip().endswith(detail) for tail in (self.errors, self.tail))
        if at < since and not (at == 0.0 and is_last):
            return None
        how = self._error(report).how or "raised"
        what = f"{self.title} {how}"
        said = self._message(report, detail)
        return Failure(node, "exception", what, at or time.time(), detail, self.rank, message=said)
