"""The end of a process whose finalization would hang in a framework: its open files are flushed, then it exits."""

from __future__ import annotations

import _io
import atexit
import contextlib
import ctypes
import gc
import io
import os
import sys
from collections.abc import Iterable
from typing import Any

_CLOSED = (
    ("gzip", "GzipFile"),
    ("bz2", "BZ2File"),
    ("lzma", "LZMAFile"),
    ("zipfile", "ZipFile"),
    ("shelve", "Shelf"),
    ("sqlite3", "Connection"),
    ("tempfile", "_TemporaryFileWrapper"),
)
"""What is whole, or gone as it has to be, only once it has been closed: module and class."""

_ended: list[int] = []


def at_exit(code: int) -> None:
    """Have this process end with ``code`` as soon as its threads that are no daemons have ended.

    Exit handlers that have been registered before are run, files are flushed and archives closed, and temporary files
    removed where their own handlers do that. Finalization, and with it ``__del__`` of what is still referenced, is left
    out. Who calls this unregisters the exit handlers that would wait for ever.
    """
    atexit.register(_end, code)


def _end(code: int) -> None:
    if _ended:
        return  # called once more by what follows
    _ended.append(code)
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    write_out()
    os._exit(code)


def write_out() -> None:
    """Flushes every open file of this process, closes its archives, and flushes C's streams.

    Garbage is not collected first, which takes as long as all the rest: what is open in a cycle is found as well, and
    other nodes may wait for this process to be gone.
    """
    kinds: set[Any] = {getattr(sys.modules[module], name) for module, name in _CLOSED if module in sys.modules}
    found = _open_ones(kinds)
    # What writes into another file comes before that one.
    _flush(file for file in found if isinstance(file, io.TextIOBase))
    for archive in found:
        if not kinds.isdisjoint(type(archive).__mro__):
            with contextlib.suppress(Exception):
                archive.close()
    _flush(file for file in found if not isinstance(file, io.TextIOBase | io.BufferedWriter | io.BufferedRandom))
    _flush(found)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


def _open_ones(kinds: set[Any]) -> list[Any]:
    """All files, and what is of one of ``kinds``. A process may have a million objects, but not of so many types."""
    wanted: dict[type, bool] = {}
    found: list[Any] = []
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in wanted:
            wanted[kind] = _io._IOBase in kind.__mro__ or not kinds.isdisjoint(kind.__mro__)
        if wanted[kind]:
            found.append(thing)
    return found


def _flush(files: Iterable[Any]) -> None:
    for file in files:
        with contextlib.suppress(Exception):
            if not file.closed and file.writable():
                file.flush()
