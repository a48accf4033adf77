"""How a process says itself that it ended: its error file, and the mark of a rank that came to its end with code 0."""

from __future__ import annotations

import glob
import json
import os
import re
import signal

from ..text import how_it_ended, shortened, signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Iterator

    from ..children.child import Child

ENDED_SUFFIX = ".ended"
"""Added to a rank's error file: the name of an empty file which says that the rank came to its end with code 0."""

EXIT_SUFFIX, ASKED_SUFFIX = ".exit", ".asked"
"""The same of files with the code with which a rank ended, and of one that is made when it is first asked to end: see
``core/ranks/rank_wrapper.py``.
"""

ERROR_FILE_LIMIT = 64 << 20
"""Bytes of an error file that is read at all. Ours are cut where they are written; torch's ``@record`` cuts nothing."""

_NO_EXIT_OF_ITS_OWN = (120, 126, 127)
"""Codes of Python that cannot flush its output, and of a program that cannot be started."""


class Words:
    """What a process wrote into its error file: "" and 0.0 where there is none, or where it is not in torch's format.

    ``text`` is a traceback or message, ``time`` the file's modification time; ``exit_code`` the code that the process
    was about to end with, None where the file does not say; ``how`` a clause such as "called sys.exit(3)", "" for an
    exception; ``printed`` whether the reason, if any, is in what the process printed.
    """

    __slots__ = ("exit_code", "how", "printed", "text", "time")

    def __init__(
        self, text: str = "", time: float = 0.0, exit_code: int | None = None, how: str = "", printed: bool = False
    ) -> None:
        self.text = text
        self.time = time
        self.exit_code = exit_code
        self.how = how
        self.printed = printed


def read_words(error_file: str | None) -> Words:
    """What ``error_file`` says."""
    if not error_file:
        return Words()
    try:
        if os.stat(error_file).st_size > ERROR_FILE_LIMIT:
            return Words()
        with open(error_file, encoding="utf-8", errors="replace") as file:
            record = json.load(file)
        message = record["message"]
        written = os.stat(error_file).st_mtime
        if isinstance(message, str):
            return Words(shortened(message), written)
        text = shortened(str(message["extraInfo"]["py_callstack"] or message["message"]))
        ours = record.get("gang")
        if not isinstance(ours, dict):
            return Words(text, written)
        code = ours.get("exit_code")
        code = code if isinstance(code, int) else None
        return Words(text, written, code, str(ours.get("how", "")), bool(ours.get("printed")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Words()


def how_a_rank_ended(exit_code: int, words: Words, detail: str, records_exceptions: bool) -> str:
    """A clause for the end of a process, from its exit code and what it wrote down.

    Parameters
    ----------
    detail : str
        Its traceback, from the error file or from its output.
    records_exceptions : bool
        Whether it writes every exception into its error file, so that an exit without one was no exception.
    """
    if (exit_code == -signal.SIGABRT and detail) or (exit_code < 0 and words.text):
        # An exception in a rank may leave C++ threads behind, which then end the interpreter on its way out.
        fate = "aborted on its way out (SIGABRT)" if exit_code == -signal.SIGABRT else ""
        fate = fate or f"killed by {signal_name(-exit_code)} on its way out"
        return f"{words.how or 'raised an exception'}, and was {fate}"
    if words.how and exit_code == words.exit_code:
        return words.how
    if records_exceptions and exit_code > 0 and not detail and exit_code not in _NO_EXIT_OF_ITS_OWN:
        return f"{how_it_ended(exit_code)} without an exception, as by os._exit() or the exit() of a C library"
    return how_it_ended(exit_code)


LEFT_EARLY = "ended with code 0 while others still needed it, as by os._exit(0) or before MPI_Finalize"
"""A clause for a rank of which what has started it tells that."""


def has_ranks(child: Child) -> bool:
    """Whether ``child`` is a rank, or starts some."""
    return child.rank is not None or "{rank}" in (child.error_file or "")


class RankEnd:
    """How a rank that another process has started has failed, by what it left: ``time`` is when (epoch)."""

    __slots__ = ("exit_code", "rank", "time")

    def __init__(self, rank: int, exit_code: int, time: float) -> None:
        self.rank = rank
        self.exit_code = exit_code
        self.time = time


def left_by_ranks(error_file: str, since: float) -> list[RankEnd]:
    """Those of this node that have left anything after ``since``, and before they were asked to end.

    ``error_file`` has "{rank}" for the rank's number. One that has an exception but has not ended counts: it has left
    its program for good.
    """
    found = {}
    for rank, path in [*_files(error_file), *_files(error_file, EXIT_SUFFIX)]:
        base = path.removesuffix(EXIT_SUFFIX)
        words, ended_at = read_words(base), _moment(base + EXIT_SUFFIX)
        moments = [moment for moment in (words.time, ended_at) if moment >= since]
        asked_at = _moment(base + ASKED_SUFFIX)
        if moments and (not asked_at or min(moments) < asked_at):
            exit_code = (_number(base + EXIT_SUFFIX) if ended_at else None) or words.exit_code or 1
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


def ended_well(child: Child, stopped_at: float) -> Iterator[tuple[int, float]]:
    """The ranks that ``child`` is, or has started, which ended with code 0 before they were stopped, and when.

    ``stopped_at`` is when what is left of its launch was ended. A rank that ends with 0 after that has ended because of
    it, unless it had left its mark before.
    """
    if child.error_file and "{rank}" in child.error_file:
        for rank, path in _files(child.error_file, ENDED_SUFFIX):
            if 0.0 < _moment(path) <= stopped_at:
                yield rank, _moment(path)
    elif child.rank is not None and child.exit_code == 0:
        marked = _moment(child.error_file + ENDED_SUFFIX) if child.error_file else 0.0
        moment = marked or child.ended_at
        if moment <= stopped_at:
            yield child.rank, moment


def _moment(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
