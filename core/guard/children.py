"""One process of the guard: its start, its output, its end, and what it tells of a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from . import processes
from .loop import Loop, Timer
from .output import Pump
from .rank_ends import Words, how_a_rank_ended, read_words
from .tail import Tail
from .verdict import EVIDENCE, PEER, Failure, last_lines, last_traceback, said_by

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    import re
    from typing import Any

    from .output import Sink

DRAIN_S = 0.5
"""How long a child's output may go on after its death: a grandchild that kept the pipe must not hold up the end."""

DRAIN_LIMIT_S = 5.0
"""How long a slow reader of the child's output may take; Metaflow's runtime needs a second for 10,000 lines."""

RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runner.py")


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
        self.report: str | None = spec.get("report")
        self.peer_lost: list[str] = spec.get("peer_lost", [])
        self._records_exceptions: bool = spec.get("records_exceptions", False)
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
        if self.report and spec.get("report_grace") is not None:
            streams["stderr"].append(self._look_for_report(self.report, spec["report_grace"]))
        try:
            self._start(spec, streams, pass_fds, stdin)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # What the runner cannot tell: too long a command line, a null byte in it, too many processes.
            self._could_not_start(spec["argv"][0], getattr(error, "strerror", None) or str(error), streams)

    def _start(
        self, spec: dict[str, Any], streams: dict[str, list[Sink]], pass_fds: tuple[int, ...], stdin: int
    ) -> None:
        cwd, delay = spec.get("cwd") or "", str(spec.get("delay", 0.0))
        runner = [sys.executable, "-I", "-S", RUNNER, str(os.getpid()), cwd, delay]
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
            processes.send([self.pid], signal.SIGKILL)
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

    @property
    def settled(self) -> bool:
        """Gone, and its output drained."""
        return self._told

    def _look_for_report(self, report: str, grace: float) -> Sink:
        import re

        from .search import Search

        def found() -> None:
            self.reported_at = time.time()
            self._loop.call_later(grace, lambda: self.on_overdue(self))

        return Search(re.compile(report.encode()), lambda: self._loop.call_soon_threadsafe(found))

    def _first_to_fail(self) -> tuple[str, int | None, int, int | None]:
        """Title, rank, exit code and, where known, node: its own, or those it reports of one that it had started."""
        found = self._found_report()
        if found:
            groups = found.groupdict()
            node, rank = groups.get("node"), _rank_in(found)
            title = groups.get("title") or f"rank {rank}"
            return title, rank, int(found["exit_code"]), int(node) if node else None
        assert self.exit_code is not None
        exit_code, words = self.exit_code, self._own_words()
        if exit_code in (-signal.SIGTERM, -signal.SIGKILL) and words.exit_code is not None:
            exit_code = words.exit_code  # it was on its way out with that, and was stopped there
        return self.title, self.rank, exit_code, None

    def _found_report(self) -> re.Match[str] | None:
        """What it has told, so far, of a rank that it had started: the first that does not say itself that a peer of it
        is gone, which may be told a moment before the peer.
        """
        if not self.report:
            return None
        import re

        first = None
        for report in re.finditer(self.report, self.tail.text(), re.DOTALL):
            if not self._lost_its_peer(report):
                return report
            first = first or report
        return first

    def _lost_its_peer(self, report: re.Match[str]) -> bool:
        rank, exit_code = _rank_in(report), int(report["exit_code"])
        if rank is None or exit_code < 0 or not self.error_file:
            return False
        return matches(self.peer_lost, read_words(self.error_file.replace("{rank}", str(rank))).text)

    def _until_the_report(self, tail: str) -> str:
        """What came after it is about the end of the others, and so are their own lines before it."""
        found = self._found_report()
        if found is None:
            return tail
        rank = _rank_in(found)
        words = tail[: found.end()] if self.reported_at else tail
        return words if rank is None else said_by(rank, words)

    def result(self) -> dict[str, Any]:
        """What the task learns of it."""
        title, rank, exit_code, _ = self._first_to_fail()
        return {
            "title": title,
            "rank": rank,
            "exit_code": exit_code,
            "ended": self._how(exit_code),
            "tail": self.tail.text(),
            "error_file": self._error_file(),
        }

    def _error_file(self) -> str | None:
        """Its own, or that of the rank which it reports, whose number then belongs into the name."""
        if not self.error_file or "{rank}" not in self.error_file:
            return self.error_file
        found = self._found_report()
        return self.error_file.replace("{rank}", found["rank"]) if found else None

    def traceback(self) -> tuple[str, float]:
        """The traceback it left in its error file, else in its output, and when it was written (0.0 if unknown)."""
        words = self._words()
        if words.text:
            return self._with_what_it_printed(words), words.time
        if self._records_exceptions and not self.report and (self.exit_code or 0) < 0:
            return "", 0.0  # it raised none: one that it printed has been caught
        # Where stdout is shown too, its lines may stand in the middle of the traceback.
        texts = [self._errors.text(), self.tail.text()]
        found = self._found_report()
        rank = _rank_in(found) if found else None
        if rank is not None:
            texts = [said_by(rank, text) for text in texts]
        return last_traceback(texts[0]) or last_traceback(texts[1]), 0.0

    def failure(self, node: int) -> Failure:
        """Why it failed, as a record."""
        title, rank, exit_code, elsewhere = self._first_to_fail()
        tail = self.tail.text()
        detail, written = self.traceback()
        if self.report and exit_code < 0 and exit_code != -signal.SIGABRT and not self._own_words().text:
            detail = ""  # a killed rank has left none: what is there is another's
        words = self._until_the_report(tail) if self.report else detail or tail
        if exit_code == -signal.SIGABRT and not self.report:
            words = f"{detail}\n{tail}"  # C++ says in the output why it aborts
        # A rank that exits otherwise has meant to; what starts ranks has codes of its own.
        by_peer = exit_code in (1, -signal.SIGABRT) or (bool(self.report) and exit_code > 0)
        by_peer = by_peer or (exit_code < 0 and bool(self._own_words().text))  # what it raised comes first
        lost_peer = by_peer and matches(self.peer_lost, words)
        ended = self.reported_at or self.ended_at
        return Failure(
            node if elsewhere is None else elsewhere,
            "signal" if exit_code < 0 else "exit",
            f"{title} {self._how(exit_code, detail)}",
            min(ended, written or ended),
            detail or last_lines(tail),
            rank,
            PEER if lost_peer else EVIDENCE,
            teller=node,
        )

    def _words(self) -> Words:
        """What it, or the rank that it reports, wrote down of its end."""
        return read_words(self._error_file())

    def _own_words(self) -> Words:
        """The same, but for torchrun's agent, whose file is about whichever rank it blames."""
        return Words() if self.report and "{rank}" not in (self.error_file or "") else self._words()

    def _with_what_it_printed(self, words: Words) -> str:
        """Where ``sys.exit()`` was called, after what was printed before that, which may say why: argparse does so."""
        if not words.printed:
            return words.text
        printed = last_lines(self._until_the_report(self._errors.text()))
        return f"{printed}\n{words.text}" if printed.strip() else words.text

    def _how(self, exit_code: int, detail: str | None = None) -> str:
        detail = self.traceback()[0] if detail is None else detail
        return how_a_rank_ended(exit_code, self._own_words(), detail, self._records_exceptions)

    def dying_words(self, node: int, since: float) -> Failure | None:
        """Evidence of a process that is about to fail but has not ended: what it wrote into its error file lately."""
        detail, written = self.traceback()
        if not self.alive or not detail or matches(self.peer_lost, detail):
            return None
        last_words = any(tail.text().rstrip().endswith(detail) for tail in (self._errors, self.tail))
        if written < since and not (written == 0.0 and last_words):
            return None
        how = self._words().how or "raised"
        return Failure(node, "exception", f"{self.title} {how}", written or time.time(), detail, self.rank)


def _rank_in(report: re.Match[str]) -> int | None:
    number = report.groupdict().get("rank")
    return int(number) if number else None


def matches(patterns: list[str], text: str) -> bool:
    if not patterns:
        return False
    import re

    return any(re.search(pattern, text) for pattern in patterns)
