"""Settings that the guard changes for itself at its start, and that its children get as the task had them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

MOST_OPEN_FILES = 1 << 16
"""To which the soft limit of open files is raised at most: some programs look at each number below it."""

_blocked: set[int] | None = None
_open_files = 0


def take_over() -> None:
    """The guard's first act: no signal is blocked, and as many files may be open as the hard limit allows."""
    global _blocked, _open_files
    with contextlib.suppress(AttributeError):
        _blocked = set(signal.pthread_sigmask(signal.SIG_SETMASK, ()))
    from ..loop.limits import raise_open_files

    _open_files = raise_open_files(MOST_OPEN_FILES)


def open_files() -> int:
    """The task's soft limit of open files; 0 where the guard has the same."""
    return _open_files


@contextlib.contextmanager
def signals_of_the_task() -> Iterator[None]:
    """Within it, signals are blocked as they were where the task started the guard."""
    if not _blocked:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_SETMASK, _blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
