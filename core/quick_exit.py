"""The end of a process that cannot be finalized, since a framework's own end would wait for ever: what it has open is
written out all the same.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import os
import sys
from collections.abc import Callable

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
    """Flushes every open file of this process, closes its archives, and flushes C's streams."""
    gc.collect()
    # What writes into another file comes before that one.
    _flush(lambda file: isinstance(file, io.TextIOBase))
    kinds: tuple[type, ...] = tuple(
        getattr(sys.modules[module], name) for module, name in _CLOSED if module in sys.modules
    )
    for found in [found for found in gc.get_objects() if isinstance(found, kinds)]:
        with contextlib.suppress(Exception):
            found.close()
    _flush(lambda file: not isinstance(file, io.TextIOBase | io.BufferedWriter | io.BufferedRandom))
    _flush(lambda file: True)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


def _flush(wanted: Callable[[io.IOBase], bool]) -> None:
    for found in [found for found in gc.get_objects() if isinstance(found, io.IOBase)]:
        with contextlib.suppress(Exception):
            if wanted(found) and not found.closed and found.writable():
                found.flush()
