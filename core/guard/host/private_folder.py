"""The folder that a user's gangs share on one machine, and that nobody else may enter."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    _Made = TypeVar("_Made")


def base_folder() -> str:
    """The folder of this user for leases and gangs, below the temporary folder; made where it is not there.

    Only this user may enter it. Where another user has put something at its place, the next name of a short series is
    taken, by every process of this user alike. A process that removes empty folders may remove it again at any time:
    :func:`in_base` makes things in it safely.

    Raises
    ------
    PermissionError
        Every name of the series is taken by something that is not a private folder of this user.
    """
    user = os.geteuid()
    first = os.path.join(temporary_folder(), f"metaflow-gang-{user}")
    for candidate in (first, *(f"{first}.{number}" for number in range(1, 10))):
        with contextlib.suppress(FileExistsError):
            os.mkdir(candidate, 0o700)
        try:
            if is_private(candidate):
                return candidate
        except FileNotFoundError:
            # Removed as empty between the two calls: it may be made again, and in_base makes it.
            return candidate
    raise PermissionError(
        f"{first} and its nine alternatives are not private folders of user {user}: each must be a folder owned by "
        "this user with mode 0700. Remove them, or set TMPDIR to a folder of your own."
    )


def is_private(folder: str) -> bool:
    """Whether it is a folder, no link to one, that this user alone may enter."""
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def in_base(kind: str, make: Callable[[str], _Made]) -> _Made:
    """Calls ``make`` with the folder ``<base>/<kind>``, and again where another process removed it in between.

    ``make`` creates something in the folder, which from then on cannot be removed as empty, and raises
    FileNotFoundError where the folder is gone. Raises what :func:`base_folder` and ``make`` raise.

    Example
    -------
    ``in_base("gangs", lambda folder: tempfile.mkdtemp(dir=folder))``
    """
    attempts_left = 1000
    while True:
        try:
            base = base_folder()
            folder = os.path.join(base, kind)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            made = make(folder)
            # Between the look and the use the folder may have been removed as empty and planted by another user. Now
            # that something is in it, it stays, so this look holds.
            if not is_private(base):
                raise PermissionError(f"{base} was taken by another user while it was in use. Set TMPDIR to your own.")
            return made
        except FileNotFoundError:
            attempts_left -= 1
            if not attempts_left:
                raise


def remove_if_empty(*folders: str) -> None:
    """Removes the folders, in this order, that are there and empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def temporary_folder() -> str:
    """What tempfile.gettempdir() answers, whose import would take the guard a third of its start-up time."""
    for name in (*map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp", "/usr/tmp"):
        if name and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):
            return os.path.abspath(name)
    return os.getcwd()
