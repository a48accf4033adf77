"""A rank's report of its own failure: the traceback that it prints, and its error file.

The other half of ``rank_main.py``, which loads it by its path. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import sys
import time
import traceback
from types import TracebackType
from typing import Any

_RANK_PID = os.getpid()
"""Of the rank itself; what a process that it forks raises is not the rank's."""

_TEXT_LIMIT, _TEXT_LINES = 30_000, 600
"""Characters and lines of a traceback, its message included, that are printed and recorded."""

_EXIT_TEXT_LIMIT = 200
"""Characters of what ``sys.exit()`` was called with that the failure's sentence has; the traceback has all of it."""


RECORD = "METAFLOW_GANG_RECORD"
"""Where an exception is written down besides the launcher's own error file; see ``rank_wrapper.py``."""

NUMBERED = "METAFLOW_GANG_NUMBERED"
"""Set where ranks share an output: the lines of a traceback bear the rank's number then, as torch's own do."""


OWN_FILE = ""
"""The file whose frames a traceback leaves out at its start: that of ``rank_main.py``, which sets it."""


class BadReturn(TypeError):
    """The function returned what cannot travel to the step."""

    __module__ = "__main__"  # a traceback then names it without a module


def rank_name() -> str:
    """The global rank, by the variables of those who start ranks; "" where there is none."""
    found = (os.environ.get(name, "") for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))
    return next((number for number in found if number.isdecimal()), "")


def rank() -> int:
    """The global rank; 0 where there is none."""
    return int(rank_name() or 0)


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback without the frames of :data:`OWN_FILE` at its start, which tell the user nothing."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == OWN_FILE:
        frames = frames.tb_next
    return frames


def is_long(error: BaseException) -> bool:
    """Whether the message is longer than what is printed of a traceback."""
    return len(str(error)) > _TEXT_LIMIT or str(error).count("\n") > _TEXT_LINES


def _text(error: BaseException) -> str:
    """The traceback, without its middle where it is long: Metaflow prints it line by line, which takes time."""
    text = "".join(traceback.format_exception(type(error), error, users_frames(error) or error.__traceback__))
    if len(text) <= _TEXT_LIMIT and text.count("\n") <= _TEXT_LINES:
        return text
    part, lines = _TEXT_LIMIT // 3, _TEXT_LINES // 3
    start = "".join(text[:part].splitlines(keepends=True)[:lines])
    rest = text[max(len(start), len(text) - 2 * part) :]
    end = "".join(rest.splitlines(keepends=True)[-2 * lines :])
    left_out = len(text) - len(start) - len(end)
    return f"{start.rstrip(chr(10))}\n[gang] ... {left_out} characters are left out here ...\n{end}"


def print_error(error: BaseException, prefix: str) -> None:
    """Write the traceback to stderr, ``prefix`` before each line."""
    # One write, so that the lines of several ranks do not mix.
    sys.stderr.write("".join(prefix + line for line in _text(error).splitlines(keepends=True)))
    sys.stderr.flush()


def record_exit(end: SystemExit) -> None:
    """Write the error file for a ``sys.exit()`` with a code other than 0, or with a text, whose code is 1."""
    if end.code in (None, 0):
        return
    end.__traceback__ = users_frames(end) or end.__traceback__
    code = end.code & 0xFF if isinstance(end.code, int) else 1
    if code:
        how = f"called sys.exit({end.code!r:.{_EXIT_TEXT_LIMIT}})"
        record_error(end, {"exit_code": code, "how": how, "printed": isinstance(end.code, int)})


def record_error(error: BaseException, more: dict[str, Any] | None = None, replace: bool = True) -> None:
    """Write the error file as torch's ``@record`` does, and under "gang" the exception itself and ``more``.

    Parameters
    ----------
    replace : bool
        Whether an existing error file is replaced.
    """
    paths = {os.environ.get("TORCHELASTIC_ERROR_FILE"), os.environ.get(RECORD)}
    wanted = [path for path in paths if path and (replace or not os.path.exists(path))]
    if not wanted or os.getpid() != _RANK_PID:
        return
    kind = type(error)
    now = time.time()
    record = {
        "message": {
            "message": f"{kind.__name__}: {error}",
            "extraInfo": {"py_callstack": _text(error), "timestamp": str(int(now))},
        },
        "gang": {
            "type": f"{kind.__module__}.{kind.__qualname__}",
            "time": now,
            "exit_code": 1,
            "pickle": _pickled(error) if isinstance(error, Exception) else None,
            **(more or {}),
        },
    }
    for path in wanted:
        # Whole or not at all: the guard may read it at any moment.
        partial = f"{path}.{_RANK_PID}"
        with contextlib.suppress(OSError):
            with open(partial, "w") as file:
                json.dump(record, file)
            os.replace(partial, path)


def _pickled(error: BaseException) -> str | None:
    """The pickled exception in base64; None where it cannot be pickled and loaded."""
    if isinstance(error, BadReturn):
        error = TypeError(*error.args)
    try:
        data = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        if type(pickle.loads(data)) is not type(error):
            return None
    except Exception:
        return None
    return base64.b64encode(data).decode()
