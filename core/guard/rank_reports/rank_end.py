"""How a rank ended, by the files that it left: its error file, its exit code, and the mark of an end with code 0."""

from __future__ import annotations

import glob
import os
import re
import signal
from collections.abc import Iterator

from ..text import how_it_ended, signal_name
from .error_file import ErrorFile, read_error_file

ENDED_SUFFIX = ".ended"
"""Added to a rank's error file: the name of an empty file which says that the rank came to its end with code 0."""

EXIT_SUFFIX, ASKED_SUFFIX = ".exit", ".asked"
"""The same of files with the code with which a rank ended, and of one that is made when it is first asked to end: see
``core/ranks/rank_wrapper.py``.
"""

_NO_EXIT_OF_ITS_OWN = (120, 126, 127)
"""Codes of Python that cannot flush its output, and of a program that cannot be started."""


def how_a_rank_ended(exit_code: int, error: ErrorFile, detail: str, records_exceptions: bool) -> str:
    """A clause for the end of a process, from its exit code and what it wrote down.

    Parameters
    ----------
    detail : str
        Its traceback, from the error file or from its output.
    records_exceptions : bool
        Whether it writes every exception into its error file, so that an exit without one was no exception.
    """
    if error.how and exit_code == error.exit_code:
        return error.how
    if (exit_code == -signal.SIGABRT and detail) or (exit_code < 0 and error.text):
        # An exception in a rank may leave C++ threads behind, which then end the interpreter on its way out.
        fate = "aborted on its way out (SIGABRT)" if exit_code == -signal.SIGABRT else ""
        fate = fate or f"killed by {signal_name(-exit_code)} on its way out"
        return f"{error.how or 'raised an exception'}, and was {fate}"
    if records_exceptions and exit_code > 0 and not detail and exit_code not in _NO_EXIT_OF_ITS_OWN:
        return f"{how_it_ended(exit_code)} without an exception, as by os._exit() or the exit() of a C library"
    return how_it_ended(exit_code)


LEFT_EARLY = "ended with code 0 while others still needed it, as by os._exit(0) or before MPI_Finalize"
"""A clause for a rank whose launcher reports such an end."""


class RankEnd:
    """How a rank that another process has started has failed, by its files: ``time`` is when (epoch)."""

    __slots__ = ("exit_code", "rank", "time")

    def __init__(self, rank: int, exit_code: int, time: float) -> None:
        self.rank = rank
        self.exit_code = exit_code
        self.time = time


def left_by_ranks(error_file: str, since: float) -> list[RankEnd]:
    """The failed ranks of this node, by files written after ``since``, and before they were asked to end.

    ``error_file`` has "{rank}" for the rank's number. One that has an exception but has not ended counts: it has left
    its program for good.
    """
    found = {}
    for rank, path in [*_files(error_file), *_files(error_file, EXIT_SUFFIX)]:
        base = path.removesuffix(EXIT_SUFFIX)
        error, ended_at = read_error_file(base), _moment(base + EXIT_SUFFIX)
        moments = [moment for moment in (error.time, ended_at) if moment >= since]
        asked_at = _moment(base + ASKED_SUFFIX)
        if moments and (not asked_at or min(moments) < asked_at):
            exit_code = (_number(base + EXIT_SUFFIX) if ended_at else None) or error.exit_code or 1
            found[rank] = RankEnd(rank, exit_code, min(moments))
    return sorted(found.values(), key=lambda end: end.time)


def _files(error_file: str, suffix: str = "") -> Iterator[tuple[int, str]]:
    """The files of ranks on this node: rank and path."""
    before, after = (re.escape(part) for part in error_file.split("{rank}", 1))
    for path in glob.glob(glob.escape(error_file).replace("{rank}", "*") + suffix):
        found = re.fullmatch(rf"{before}(\d+){after}{re.escape(suffix)}", path)
        if found:
            yield int(found[1]), path


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return None


def marked_ends(error_file: str, since: float, until: float) -> Iterator[tuple[int, float]]:
    """The ranks of this node that came to their end with code 0 between these two moments, and when; "{rank}" in
    ``error_file`` stands for the rank's number. A mark from before is that of an earlier launch.
    """
    for rank, path in _files(error_file, ENDED_SUFFIX):
        if since <= _moment(path) < until:
            yield rank, _moment(path)


def marked_end(error_file: str | None) -> float:
    """When the rank with this error file came to its end with code 0, by its mark; 0.0 where it left none."""
    return _moment(error_file + ENDED_SUFFIX) if error_file else 0.0


def _moment(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
