"""The folder in which ranks build torch's C++ and CUDA extensions: one for all ranks of a node, kept between runs.

torch lets one process build and the others wait for its lock, a file that stays when the builder is killed: then all
later ranks wait for ever. So each node says by a lock of the kernel's that it uses the folder, and the first to come
removes what a killed builder left. What torch's own folder has at hand, as that of an image, is copied first.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Mapping

FOLDER = "TORCH_EXTENSIONS_DIR"

_held: dict[str, int] = {}
"""The folders that this process uses, each with the descriptor of its lock."""


def hold_extensions(environ: Mapping[str, str], otherwise: str) -> dict[str, str]:
    """TORCH_EXTENSIONS_DIR for this node's ranks, used until this process ends; empty where the user has set one.

    Parameters
    ----------
    environ : mapping
        The task's.
    otherwise : str
        A folder for a user without a home to write to; extensions are built anew for each attempt there.
    """
    if FOLDER in environ:
        return {}
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in (os.path.join(cache, "metaflow-gang", "torch_extensions"), os.path.join(otherwise, "extensions")):
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _use(folder, os.path.join(cache, "torch_extensions"))
            return {FOLDER: folder}
    return {}


def _use(folder: str, usual: str) -> None:
    """Raises OSError where the folder cannot be written to. ``usual`` is torch's own."""
    fd = os.open(os.path.join(folder, "in-use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # others are at it: a lock that is there may be a living builder's
    else:
        _remove_locks(folder)
        _copy(usual, folder)
    fcntl.flock(fd, fcntl.LOCK_SH)
    _held[folder] = fd


def _locks(folder: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(folder), "**", "lock"), recursive=True)


def _remove_locks(folder: str) -> None:
    for lock in _locks(folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(lock)


def let_go() -> bool:
    """This node has no ranks now. Returns whether a killed builder may have left a lock: :func:`hold_again` then."""
    for fd in _held.values():
        fcntl.flock(fd, fcntl.LOCK_UN)
    return any(map(_locks, _held))


def hold_again() -> None:
    """Use the folders again, before ranks are started; no node of the gang has some, so what no other gang uses has
    the locks of killed builders alone.
    """
    for folder, fd in _held.items():
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_locks(folder)
        fcntl.flock(fd, fcntl.LOCK_SH)


def _copy(usual: str, folder: str) -> None:
    """Copy each extension that torch's own folder has whole and this one lacks: an image need not have a compiler."""
    for built in glob.glob(os.path.join(glob.escape(usual), "*", "*", "*.so")):
        extension = os.path.dirname(built)
        own = os.path.join(folder, os.path.relpath(extension, usual))
        if os.path.exists(os.path.join(extension, "lock")) or os.path.exists(own):
            continue
        with contextlib.suppress(OSError, shutil.Error):  # it is built anew
            # With its files' times, by which ninja sees that there is nothing to do; whole, or not at all.
            shutil.copytree(extension, f"{own}.copied")
            os.rename(f"{own}.copied", own)
