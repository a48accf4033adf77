"""An exception of a task as a failure record: a clause, the traceback where it helps, and whether it is a cause."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ..exceptions import GangException
from ..guard.failure_record import EVIDENCE, EXCEPTION_LIMIT, PEER, TEXT_LIMIT
from ..guard.tracebacks import one_line, shortened
from ..logs import say

SHOWN_LIMIT = 30_000
"""Characters of an exception's message that a step raises; its lines are limited as those of a failure's details."""

_CHAIN = 100
"""How many exceptions of one chain are shortened."""

_WRAPPER = os.path.join(os.path.dirname(__file__), "lifecycle.py")
"""The file that calls the step's body."""


def exception_record(error: BaseException, who: str, peer_lost: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a failure record for ``error``.

    Parameters
    ----------
    who : str
        What raised it, as in "the step's body".
    peer_lost : sequence of str
        Regular expressions; where one is found, the exception is the consequence of another node's failure.
    """
    fields = _fields(error, who)
    text = f"{fields['text']}\n{fields['detail']}"
    return {**fields, "order": PEER if any(re.search(pattern, text) for pattern in peer_lost) else EVIDENCE}


def _fields(error: BaseException, who: str) -> dict[str, str]:
    name = type(error).__name__[:EXCEPTION_LIMIT]
    if isinstance(error, KeyboardInterrupt):
        return {"kind": "interrupted", "text": "was interrupted (Ctrl-C, SIGINT)", "detail": "", "exception": name}
    if isinstance(error, GangException):
        return {"kind": "exception", "text": str(error).strip()[: TEXT_LIMIT + 1], "detail": "", "exception": name}
    named = _named(error)
    text = f"{who} raised {named}"
    detail = "".join(traceback.format_exception(*_users_part(error)))
    # Cut here too: a message may be longer than the guard takes.
    fields = {"kind": "exception", "text": text[: TEXT_LIMIT + 1], "detail": shortened(detail), "exception": name}
    return {**fields, "message": one_line(named, "".join(traceback.format_exception_only(type(error), error)))}


def _named(error: BaseException) -> str:
    """The exception's name without its module, and the first line of its message, where there is one."""
    kind = type(error)
    for line in traceback.format_exception_only(kind, error):
        for prefix in (f"{kind.__module__}.{kind.__qualname__}", kind.__qualname__):
            if line.startswith(prefix):
                return kind.__name__ + line[len(prefix) :].partition("\n")[0]
    return kind.__name__


def _users_part(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """The exception with a traceback that begins in the step's body, not in what calls it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == _WRAPPER:
        trace = trace.tb_next
    return type(error), error, trace


def shorten(error: BaseException) -> None:
    """Cut the middle out of a message that is too long for a console, in ``error`` and in what it came of.

    Metaflow prints the exception that a step raises line by line, some thousand a second. Only the usual kind of
    exception is changed, whose message is its first argument.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen or len(seen) >= _CHAIN:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__]
        if one.args and isinstance(one.args[0], str):
            short = shortened(one.args[0], SHOWN_LIMIT)
            if short != one.args[0] and str(one) == one.args[0]:
                one.args = (short, *one.args[1:])


def with_sentences(error: BaseException, *sentences: str) -> BaseException:
    """Add ``sentences`` to the message of ``error`` where its class is ours; print them otherwise."""
    for sentence in filter(None, sentences):
        if isinstance(error, GangException):
            error.message = f"{error.message}\n{sentence}"
        else:
            say(sentence)
    return error
