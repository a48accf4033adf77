"""Shows the output of Ray's workers on this node as it comes: ``python -I -S follow.py FOLDER``, until it is ended.

Ray itself shows it to the program on the head alone. Standard library only, and nothing of this package.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import select
import signal
import struct
import sys

PATTERNS = ("worker-*.out", "worker-*.err")

READY = "the output of Ray's workers on this node follows"

_CREATED, _MODIFIED, _MOVED_TO = 0x100, 0x2, 0x80
_EVENT = struct.Struct("iIII")  # inotify_event: watch, mask, cookie, length of the name
_CHUNK = 1 << 16

_FOR_THE_DRIVER = (b":job_id:", b":actor_name:", b":task_name:")
"""Lines by which Ray's own driver knows whose the next ones are."""


class File:
    """One log: what came since the last look, whole lines only, each with the file's name before it."""

    def __init__(self, folder: str, name: str) -> None:
        self._prefix = f"[RAY:{name}] ".encode()
        self._fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""

    def show(self, last: bool = False) -> None:
        """Write the new lines to stdout; with ``last`` the unfinished one, too."""
        while data := os.read(self._fd, _CHUNK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._write(lines)
        if last and self._rest:
            self._write([self._rest])
            self._rest = b""

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(self._prefix + line + b"\n" for line in lines if not line.startswith(_FOR_THE_DRIVER))
        while data:
            data = data[os.write(1, data) :]

    def close(self) -> None:
        """Show what is left of it."""
        self.show(last=True)
        os.close(self._fd)


def follow(folder: str) -> None:
    """Show every log in ``folder``, those to come included. Raises OSError where the kernel cannot watch it."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(folder), _CREATED | _MODIFIED | _MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}", folder)
    files: dict[str, File] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    print(f"[gang] {READY}", file=sys.stderr, flush=True)
    for name in sorted(os.listdir(folder)):
        _changed(files, folder, name, is_new=True)
    while ended not in (ready := select.select([watch, ended], [], [])[0]):
        if ready:
            for name, mask in _events(os.read(watch, _CHUNK)):
                _changed(files, folder, name, is_new=bool(mask & ~_MODIFIED))
    for name in sorted(os.listdir(folder)):
        _changed(files, folder, name, is_new=name not in files)
    for file in files.values():
        file.close()


def _changed(files: dict[str, File], folder: str, name: str, is_new: bool) -> None:
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS):
        return
    if is_new and name in files:  # the old one has become NAME.1
        files.pop(name).close()
    if name not in files:
        try:
            files[name] = File(folder, name)
        except FileNotFoundError:
            return
    files[name].show()


def _events(data: bytes) -> list[tuple[str, int]]:
    found = []
    while data:
        _, mask, _, length = _EVENT.unpack_from(data)
        name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
        found.append((os.fsdecode(name), mask))
        data = data[_EVENT.size + length :]
    return found


if __name__ == "__main__":
    follow(sys.argv[1])
