"""A rank's report of its own failure: the traceback that it prints, and its error file.

The other half of ``rank_main.py``, which loads it by its path. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..guard.tracebacks import shortened as shortened
else:
    shortened = None  # set by rank_main.py, which loads it by its path

_RANK_PID = os.getpid()
"""Of the rank itself; what a process that it forks raises is not the rank's."""

_TEXT_LIMIT, _TEXT_LINES = 30_000, 600
"""Characters and lines of a traceback, its message included, that are printed and recorded."""

_PICKLE_LIMIT = 16 << 20
"""Bytes of a pickled exception that the error file has; the guard reads none that is much larger."""

_EXIT_TEXT_LIMIT = 200
"""Characters of what ``sys.exit()`` was called with that the failure's sentence has; the traceback has all of it."""


RECORD = "METAFLOW_GANG_RECORD"
"""Where an exception is written down besides the launcher's own error file; see ``rank_wrapper.py``."""

NUMBERED = "METAFLOW_GANG_NUMBERED"
"""Set where ranks share an output: the lines of a traceback bear the rank's number then, as torch's own do."""


OWN_FILES = {__file__}
"""The files whose frames a traceback leaves out at its start: this one and ``rank_main.py``, which adds itself."""


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


def keep_users_frames(error: BaseException) -> None:
    """Cut the frames of :data:`OWN_FILES`, which tell the user nothing, off the start of the traceback, and of those of
    the exceptions that it came of.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__]
        frames = one.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename in OWN_FILES:
            frames = frames.tb_next
        one.__traceback__ = frames


def words(value: object, show: Callable[[object], str] = str) -> str:
    """``value`` as text; as Python says it of an exception, where the user's class cannot tell it."""
    try:
        return show(value)
    except Exception:
        return f"<exception {show.__name__}() failed>"


def is_long(error: BaseException) -> bool:
    """Whether the message is longer than what is printed of a traceback."""
    text = words(error)
    return len(text) > _TEXT_LIMIT or text.count("\n") > _TEXT_LINES


def _text(error: BaseException) -> str:
    """The traceback, without its middle where it is long: Metaflow prints it line by line, which takes time."""
    keep_users_frames(error)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    text = text.replace("\n__mp_main__.", "\n")  # the flow file's other name; Python shows no module of its own
    return shortened(text, _TEXT_LIMIT, _TEXT_LINES)


def print_error(error: BaseException, prefix: str) -> None:
    """Write the traceback to stderr, ``prefix`` before each line."""
    # One write, so that the lines of several ranks do not mix.
    sys.stderr.write("".join(prefix + line for line in _text(error).splitlines(keepends=True)))
    sys.stderr.flush()


def show_error(error: BaseException, prefix: str = "") -> None:
    """Have the traceback shown as the interpreter does it, by the user's ``sys.excepthook`` where he has set one.

    Parameters
    ----------
    prefix : str
        Comes before each line of what is printed here.
    """
    keep_users_frames(error)
    # Kept as by the interpreter, so that what the frames hold lives as long as it would there.
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    if sys.excepthook is sys.__excepthook__ and (prefix or is_long(error)):
        print_error(error, prefix)
    else:
        sys.excepthook(type(error), error, error.__traceback__)


def show_no_more() -> None:
    """Have the interpreter show nothing of the exception that ends it: that has been done."""
    sys.excepthook = lambda kind, error, trace: None


def record_interrupt(error: KeyboardInterrupt) -> None:
    """Write the error file for a KeyboardInterrupt, by which Python ends itself as SIGINT does."""
    how = "was interrupted (KeyboardInterrupt, as by SIGINT)"
    record_error(error, {"exit_code": -signal.SIGINT, "how": how, "pickle": None}, replace=False)


def record_exit(end: SystemExit) -> None:
    """Write the error file for a ``sys.exit()`` with a code other than 0, or with a text, whose code is 1."""
    if end.code in (None, 0):
        return
    code = end.code & 0xFF if isinstance(end.code, int) else 1
    if code:
        how = f"called sys.exit({words(end.code, repr):.{_EXIT_TEXT_LIMIT}})"
        record_error(end, {"exit_code": code, "how": how, "printed": isinstance(end.code, int)})


def dump_return(name: str, value: Any) -> bytes:
    """What the function ``name`` returned, pickled. Raises BadReturn where it cannot be."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind = type(value)
        reason = words(error) or type(error).__name__
        keep_users_frames(error)
        raise BadReturn(
            f"{name}() returned a {kind.__module__}.{kind.__qualname__} that cannot be pickled ({reason}). Return "
            "plain data: numbers, strings, lists, dicts, arrays, or objects of classes at the top level of a module."
        ) from (error if error.__traceback__ else None)  # the sentence has its message


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
            "message": f"{kind.__name__}: {words(error)[:_TEXT_LIMIT]}",
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
    """The pickled exception in base64; None where it cannot be pickled and loaded, or is large."""
    if isinstance(error, BadReturn):
        error = TypeError(*error.args)
    try:
        data = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        if type(pickle.loads(data)) is not type(error):
            return None
    except Exception:
        return None
    return base64.b64encode(data).decode() if len(data) <= _PICKLE_LIMIT else None
