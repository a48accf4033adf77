"""Processes run as a guard runs them, in the test's own process: a loop, the reaping of children, adopted orphans."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions

from metaflow_extensions.gang.core.guard.children.child import Child
from metaflow_extensions.gang.core.guard.children.launch import Launch
from metaflow_extensions.gang.core.guard.loop.event_loop import Loop
from metaflow_extensions.gang.core.guard.processes import process_table

END_S = 30.0
"""For threads and processes to end: tells "slow" from "hangs"."""


@dataclass
class Ended:
    """How a launch ended, as it was when its guard was told; ``ended_well`` is what :meth:`Launch.ended_well` gives."""

    results: list[dict[str, Any]]
    seconds: float
    failed: Child | None
    ended_well: dict[int, float] | None


def process(*argv: str, **options: Any) -> dict[str, Any]:
    """A process of a plan, as the guard gets it."""
    return {"argv": list(argv), "env": dict(os.environ), "title": "command", **options}


def run_launch(
    *specs: dict[str, Any], out: int | None = None, meanwhile: Callable[[Loop, Launch], None] | None = None, **plan: Any
) -> Ended:
    """Run a plan's processes to their end; output goes to ``out``, or nowhere.

    ``meanwhile`` is called once they have been started. A process that fails ends the others, as it does in a gang.
    """
    loop = Loop()
    null = os.open(os.devnull, os.O_WRONLY)
    process_table.become_subreaper()
    ended: list[Ended] = []
    try:
        fd = null if out is None else out
        started = time.monotonic()
        launch = Launch(loop, f"test.{os.getpid()}.{time.monotonic_ns()}", {**plan, "processes": list(specs)}, fd, fd)

        def done(launch: Launch) -> None:
            ended.append(Ended(launch.results(), time.monotonic() - started, launch.failed, launch.ended_well()))
            loop.stop()

        def reap() -> None:
            while launch.children:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                if not pid:
                    return
                child = launch.find(pid)
                if child is not None:
                    child.died(os.waitstatus_to_exitcode(status))
                    child.reaped()

        launch.on_done = done
        launch.on_failure = lambda launch, child: launch.end()
        loop.on_signal(signal.SIGCHLD, reap)
        loop.call_later(0, reap)  # one may have ended before its signal was awaited
        loop.call_later(END_S, loop.stop)
        if meanwhile is not None:
            meanwhile(loop, launch)
        loop.run()
        assert ended, f"still running after {END_S:g} s"
        for thread in threading.enumerate():
            if thread.name == "pump":  # of a descendant that was killed: its end is under way
                thread.join(2.0)
        return ended[0]
    finally:
        process_table.become_subreaper(False)
        loop.close()
        os.close(null)


@contextmanager
def collected() -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A pipe's writing end, and a function that closes it and gives all that was written."""
    read, write = os.pipe()
    found = bytearray()

    def collect() -> None:
        while data := os.read(read, 65536):
            found.extend(data)

    thread = threading.Thread(target=collect)
    thread.start()

    def finish() -> bytes:
        os.close(write)
        thread.join(END_S)
        assert not thread.is_alive()
        return bytes(found)

    try:
        yield write, finish
    finally:
        if thread.is_alive():
            os.close(write)
            thread.join(END_S)
        os.close(read)
