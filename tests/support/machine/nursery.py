"""Runs one command and adopts whatever it leaves behind. A script: ``python -I -S nursery.py STATUS_FD ARGV...``.

It is a child subreaper, so each orphan of the command becomes its child instead of vanishing to pid 1: what a test
leaves running is exactly what lives below the nursery. It writes one JSON line per event to STATUS_FD
(``{"pid": n}``, then ``{"exit": code}``, negative for a signal), ends when nothing is left below it, and when its
stdin reaches its end it kills everything below itself first: a killed pytest leaves nothing either.

Without ARGV it only reaps, until its stdin ends: the first process of a host in a namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def children_below(root: int) -> list[int]:
    """The pids of all living descendants of ``root``."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rsplit(b")", 1)[1].split()
                if fields[0] not in b"ZX":
                    parents.setdefault(int(fields[1]), []).append(int(name))
    found, generation = [], [root]
    while generation:
        generation = [child for pid in generation for child in parents.get(pid, [])]
        found += generation
    return found


def reap(status: int, main: int | None) -> bool:
    """Collect every child that has ended; False when no child is left."""
    while True:
        try:
            pid, state = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == main:
            report(status, {"exit": os.waitstatus_to_exitcode(state)})


def report(status: int, event: dict[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(status, json.dumps(event).encode() + b"\n")


def kill_all() -> None:
    """Kill every descendant; those that fork meanwhile are found in the next round."""
    while True:
        for pid in children_below(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def start(argv: list[str]) -> int:
    """Start the command in a session of its own, with the stdout and stderr that the nursery was given."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    null = os.open(os.devnull, os.O_WRONLY)
    # The readers of the command's output see its end only when no one else holds the pipes.
    os.dup2(null, 1)
    os.dup2(null, 2)
    return pid


def main() -> None:
    status, argv = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(status, False)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake[1], warn_on_full_buffer=False)
    child = start(argv) if argv else None
    report(status, {"pid": child or os.getpid()})
    while True:
        ready, _, _ = select.select([0, wake[0]], [], [])
        if wake[0] in ready:
            os.read(wake[0], 4096)
            if not reap(status, child) and argv:
                return
        if 0 in ready and not os.read(0, 4096):
            kill_all()
            return


if __name__ == "__main__":
    main()
