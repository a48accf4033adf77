"""Error files, in which a process writes why it ended: the format of torch's ``@record``, with a part of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..tracebacks import one_line, shortened

ERROR_FILE_LIMIT = 64 << 20
"""Bytes of an error file that the guard reads at all. Ours are cut where they are written; torch's ``@record`` cuts
nothing.
"""

LINE = 2_000
"""Characters of a message in which its first line is looked for."""


def error_record(error_file: str | None, most_bytes: int | None = None) -> dict[str, Any]:
    """The record in ``error_file``; empty where there is none, or it is not whole, or has more than ``most_bytes``."""
    if not error_file:
        return {}
    try:
        if most_bytes is not None and os.stat(error_file).st_size > most_bytes:
            return {}
        with open(error_file, encoding="utf-8", errors="replace") as file:
            record = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def error_text(record: Mapping[str, Any]) -> str:
    """The traceback in an error file's record, else its message, else nothing."""
    message = record.get("message", "")
    if not isinstance(message, dict):
        return str(message)
    extra = message.get("extraInfo")
    callstack = extra.get("py_callstack") if isinstance(extra, dict) else None
    return str(callstack or message.get("message", ""))


class ErrorFile:
    """The content of a process's error file: "" and 0.0 where there is none, or where it is not in torch's format.

    ``text`` is a traceback or message, ``time`` the file's modification time; ``exit_code`` the code that the process
    was about to end with, None where the file does not say; ``how`` a clause such as "called sys.exit(3)", "" for an
    exception; ``printed`` whether the reason, if any, is in what the process printed; ``message`` the class of the
    exception and the first line of its message, "" where the file does not have them by themselves.
    """

    __slots__ = ("exit_code", "how", "message", "printed", "text", "time")

    def __init__(
        self,
        text: str = "",
        time: float = 0.0,
        exit_code: int | None = None,
        how: str = "",
        printed: bool = False,
        message: str = "",
    ) -> None:
        self.text = text
        self.time = time
        self.exit_code = exit_code
        self.how = how
        self.printed = printed
        self.message = message


def read_error_file(error_file: str | None) -> ErrorFile:
    """Read ``error_file``; see :class:`ErrorFile`."""
    record = error_record(error_file, ERROR_FILE_LIMIT)
    message, ours = record.get("message"), record.get("gang")
    text = shortened(error_text(record))
    if not error_file or not (isinstance(message, str) or (isinstance(message, dict) and text)):
        return ErrorFile()
    try:
        written = os.stat(error_file).st_mtime
    except OSError:
        return ErrorFile()
    if not isinstance(message, dict):
        return ErrorFile(text, written)
    whole = str(message.get("message", ""))
    said = one_line(whole[:LINE].partition("\n")[0], whole[:LINE])
    if not isinstance(ours, dict):
        return ErrorFile(text, written, message=said)
    code = ours.get("exit_code")
    code = code if isinstance(code, int) else None
    return ErrorFile(text, written, code, str(ours.get("how", "")), bool(ours.get("printed")), said)
