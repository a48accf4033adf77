"""The C frames of processes, by py-spy where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import IO

from ..loop.event_loop import Loop
from ..processes import process_table
from ..processes.watch import TaskWatch

TOTAL_S = 8.0
"""Seconds for all processes of a node, one after the other. For one that has loaded torch py-spy takes one or two,
since it reads the symbols of all libraries; :data:`..coordinator.gang_stall.COLLECT_S` is longer."""

SHOWN = 8
"""Innermost C frames that are kept."""

LOOK_S = 0.1
"""Seconds between two looks at whether the process that py-spy reads is alive: as long as it is traced, the kernel does
not tell the guard of its death."""

NAME = 80
"""Characters of a function's name; those of C++ templates are longer than a line."""


def program() -> str | None:
    """The path of py-spy: beside this interpreter, or on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    return beside if os.access(beside, os.X_OK) else shutil.which("py-spy")


def of_main_thread(text: bytes, pid: int) -> list[str]:
    """The C frames of the main thread of ``pid`` above its innermost Python frame, innermost first.

    Parameters
    ----------
    text : bytes
        What ``py-spy dump --native --json`` has printed.

    Returns
    -------
    list of str
        "sleep (libc.so.6)"; empty where the text is no such list, as when py-spy was refused.
    """
    try:
        thread = next(thread for thread in json.loads(text) if thread["os_thread_id"] == pid)
        found = []
        for frame in thread["frames"]:
            if frame["module"] is None:  # a frame of Python
                break
            if not frame["name"].startswith("0x"):
                found.append(f"{frame['name'][:NAME]} ({frame['short_filename']})")
        return found[:SHOWN]
    except (ValueError, TypeError, KeyError, StopIteration):
        return []


class CFrames:
    """Asks py-spy for the frames of several processes, and gives them all to ``then``, by pid."""

    def __init__(self, loop: Loop, pids: Iterable[int], then: Callable[[dict[int, list[str]]], None]) -> None:
        self._loop, self._left, self._then = loop, list(pids), then
        self._found: dict[int, list[str]] = {}
        self._program = program()
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = loop.call_later(TOTAL_S, self._late)
        self._next()

    def _late(self) -> None:
        self._left = []
        if self._process is not None:
            self._process.kill()  # what it looks at goes on when its tracer is gone

    def _next(self) -> None:
        if not self._left or self._program is None:
            self._deadline.cancel()
            self._then(self._found)
            return
        pid, file = self._left.pop(0), tempfile.TemporaryFile()  # noqa: SIM115 - closed by _ended
        argv = [self._program, "dump", "--native", "--json", "--pid", str(pid)]
        try:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL)
        except OSError:
            file.close()
            self._left = []
            self._next()
        else:
            TaskWatch(self._loop, self._process.pid, lambda: self._ended(pid, file))
            self._look(pid, self._process)

    def _look(self, pid: int, tracer: subprocess.Popen[bytes]) -> None:
        """Let go of a process that is dead, since the end of its launch waits for it."""
        if tracer is self._process:
            entry = process_table.lookup(pid)
            if entry is None or entry.state in "ZX":
                tracer.kill()
            else:
                self._loop.call_later(LOOK_S, lambda: self._look(pid, tracer))

    def _ended(self, pid: int, file: IO[bytes]) -> None:
        if self._process is not None:
            self._process.poll()
            self._process = None
        file.seek(0)
        self._found[pid] = of_main_thread(file.read(), pid)
        file.close()
        self._next()
