"""What is kept of a launcher's reports: the first words of each, whatever is written afterwards, in bounded time."""

from __future__ import annotations

import re
import time

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.guard.rank_reports.complaints import distinct_lines, matches
from metaflow_extensions.gang.core.guard.rank_reports.reports import KEPT, NUMBERED_RANKS, Reports, chosen
from metaflow_extensions.gang.core.guard.text import said_by
from metaflow_extensions.gang.core.guard.tracebacks import DETAIL_LIMIT, DETAIL_LINES, last_traceback, shortened
from metaflow_extensions.gang.core.ranks.peer_lost import RANK_PEER_LOST, port_taken
from metaflow_extensions.gang.core.ranks.rank_report import REPORT
from metaflow_extensions.gang.launchers.mpi.peer_lost import PEER_LOST as MPI_PEER_LOST
from metaflow_extensions.gang.launchers.ray.plan import REPORT as RAY_REPORT
from metaflow_extensions.gang.launchers.torchrun.agent_report import AGENT_REPORT

CHAT = b"".join(b"rank 0 debug %d %s\n" % (number, b"x" * 150) for number in range(400))

SLOW_S = 1.0
"""For 32 kB: a linear search takes milliseconds, what was quadratic took 3.6 s and more."""


def reports(pattern: str = REPORT) -> Reports:
    return Reports(re.compile(pattern.encode(), re.DOTALL))


def test_a_report_keeps_what_was_before_it_however_much_comes_after() -> None:
    seen = reports()
    stream = seen.stream()
    stream.write(b"[rank1]: Traceback (most recent call last):\n[rank1]: ValueError: its own\n" + CHAT * 4)
    stream.write(b"rank 1: last words\n[gang] rank 1 (node 0) ended ")
    stream.write(b"with 137\n" + CHAT * 4)
    (report,) = seen.seen()
    assert (report.rank, report.node, report.exit_code) == (1, 0, 137), "not 1 or 13: the line came in two parts"
    assert report.before.endswith("rank 1: last words\n")
    assert report.numbered == "Traceback (most recent call last):\nValueError: its own\n"
    assert "rank 1: last words" in distinct_lines(report.before).splitlines()


def test_several_reports_are_kept_but_not_without_end() -> None:
    seen = reports()
    stream = seen.stream()
    for number in range(10 * NUMBERED_RANKS):
        stream.write(b"[rank%d]: word\n[gang] rank %d (node 0) ended with 1\n" % (number, number))
    assert [report.rank for report in seen.seen()] == list(range(KEPT))
    peer = chosen(seen.seen(), lambda report: report.rank != 5)
    assert peer is not None and peer.rank == 5
    assert len(seen._numbered) == NUMBERED_RANKS


def test_what_was_under_way_on_the_other_stream_counts_as_before() -> None:
    seen = reports()
    out, err = seen.stream(), seen.stream()
    err.write(b"[gang] rank 3 (node 1) ended with 7\n")
    out.write(b"rank 3 has had enough\n" + CHAT * 4)
    (report,) = seen.seen()
    assert "rank 3 has had enough" in report.before and len(report.before) < 20_000


@pytest.mark.parametrize(
    "lines",
    [
        # Open MPI 4.1 and 5.0
        (b"mpirun has exited due to process rank 3 with PID 0 on\n", b"node vm exiting improperly. There are three\n"),
        (
            b"prterun has exited due to process rank 3 with PID 89 on node vm exiting\n",
            b"improperly. There are three\n",
        ),
    ],
)
def test_what_mpirun_tells_of_a_rank_that_left_is_a_report_of_it(lines: tuple[bytes, bytes]) -> None:
    seen = reports()
    stream = seen.stream()
    stream.write(lines[0])
    assert not seen.seen()
    stream.write(lines[1])
    (report,) = seen.seen()
    assert (report.rank, report.exit_code, report.title) == (3, 0, "rank 3")


HOSTILE = [
    "has exited due to process rank 1 with PID 0 on " * 680,
    "[rank1]: " * 3_600,
    "[gang] rank 1 (node 0) ended with " * 1_000,
    "[gang] rank 1 (node 0) ended with 1 " * 900,
    "Root Cause (first observed failure):\n" * 900,
    " " * 32_000,
    "  rank      : 1 (" * 1_800,
    "exited unexpectedly:" + "raylet " * 4_600,
    "exited unexpectedly: " * 1_500,
    "a" * 32_000,
    "gloo/transport/tcp/pair.cc:1] Read error [" * 780,
    "NCCL error " * 3_000,
    "The server socket has failed to listen on any local network address. port: 1 " * 420,
    "Traceback (most recent call last):" * 1_000,
    "Traceback (most recent call last):\nDuring handling of the above exception\n" * 430,
    "\n" * 32_000,
    "\r" * 32_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_output_makes_reading_it_slow(text: str) -> None:
    began = time.process_time()
    for pattern in (REPORT, AGENT_REPORT, RAY_REPORT):
        stream = reports(pattern).stream()
        stream.write(text.encode() + b"\n")
        stream.end()
    for patterns in (RANK_PEER_LOST, MPI_PEER_LOST, (port_taken(1),)):
        matches(list(patterns), text)
    said_by(0, text)
    last_traceback(text)
    distinct_lines(text)
    assert time.process_time() - began < SLOW_S


@pytest.mark.parametrize("line", ["word", "word\n", "x" * 1_000 + "\n"])
def test_a_long_text_is_cut_in_its_middle_once(line: str) -> None:
    text = "begin\n" + line * (10_000_000 // len(line)) + "end"
    cut = shortened(text)
    assert len(cut) <= DETAIL_LIMIT and cut.count("\n") < DETAIL_LINES
    assert cut.startswith("begin\n") and cut.endswith("end")
    assert re.search(r"\[gang\] \.\.\. \d{7} characters are left out here \.\.\.", cut)
    assert shortened(cut) == cut
    assert shortened("short\n") == "short\n"
