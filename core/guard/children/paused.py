"""Interpreters that have imported a framework and wait, which take the places of ranks that are started again: with
torch the import takes longer than all the rest of a restart.

Each is a process of the guard's like any rank, with the rank's own environment; nothing is forked from it. They are
started one after the other, once the ranks have had time to start themselves, and only where memory is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from ..processes import process_table
from ..samples.container import Container
from .child import Child
from .output import Labelled, Raw

if TYPE_CHECKING:
    from ..loop.event_loop import Loop, Timer
    from .output import Sink

AFTER_S = 10.0
"""After the start of the ranks, which import the same."""

FREE_BYTES = 2 << 30
"""Of memory that have to be free for one more: torch takes some hundred MB of its own."""

_F_SETPIPE_SZ, _PIPE_BYTES = 1031, 1 << 20
"""So that a job fits the pipe, and the guard never waits for its reader."""

_COMMAND = 3
"""Words of a rank's command line: Python, its option, and ``rank_main.py``."""


class PausedRank(Child):
    """One that waits for the job of a rank.

    Attributes
    ----------
    mark : str
        What its environment has of a launch's name.
    """

    def __init__(self, loop: Loop, spec: dict[str, Any], module: str, mark: str, out: int, err: int) -> None:
        self.mark = mark
        self._place = place_of(spec)
        read, self._job = os.pipe()
        self.ready, told = os.pipe()
        label = spec.get("label", "")
        self._labelled = [Labelled(out, label), Labelled(err, label)] if label else []

        def console(stream: str) -> list[Sink]:
            number = 0 if stream == "stdout" else 1
            return [self._labelled[number] if label else Raw((out, err)[number])]

        paused = {
            **spec,
            "argv": [*spec["argv"][:_COMMAND], "--paused", module, str(told)],
            "env": {**spec["env"], process_table.LAUNCH_MARKER: mark},
            "delay": 0.0,
            "error_file": None,
        }
        try:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._job, _F_SETPIPE_SZ, _PIPE_BYTES)
            super().__init__(loop, paused, console, (told,), read)
        finally:
            os.close(read)
            os.close(told)

    def fits(self, spec: dict[str, Any]) -> bool:
        """Whether it can be the rank of ``spec``."""
        return self.alive and self.pid > 0 and self._place == place_of(spec)

    def begin(self, spec: dict[str, Any]) -> bool:
        """Become the rank of ``spec``; False where it cannot get its job."""
        for sink in self._labelled:
            sink.relabel(spec["label"])
        job = json.dumps({"arguments": spec["argv"][_COMMAND:], "env": spec["env"]}).encode()
        os.set_blocking(self._job, False)
        try:
            return os.write(self._job, job) == len(job)
        except OSError:
            return False
        finally:
            self.forget()

    def forget(self) -> None:
        """Close its pipes: it ends by itself where it has got no job."""
        for fd in (self._job, self.ready):
            if fd >= 0:
                os.close(fd)
        self._job = self.ready = -1


def place_of(spec: dict[str, Any]) -> tuple[object, ...]:
    """What a paused interpreter cannot change any more; it may be another rank than the one before."""
    return tuple(spec["argv"][:_COMMAND]), spec.get("cwd"), bool(spec.get("label"))


class PausedRanks:
    """Those of one node. ``owner`` begins the names of its launches; ``out`` and ``err`` are the task's streams."""

    def __init__(self, loop: Loop, owner: str, out: int, err: int) -> None:
        self._loop, self._owner, self._out, self._err = loop, owner, out, err
        self._waiting: list[PausedRank] = []
        self._ending: list[PausedRank] = []
        self._to_come: list[dict[str, Any]] = []
        self._module = ""
        self._count = 0
        self._container: Container | None = None
        self._timer: Timer | None = None

    def prepare(self, plan: dict[str, Any]) -> None:
        """The ranks of ``plan`` have been started, or are those that this node may get: have interpreters for the next
        try, a while from now.
        """
        self.end()
        self._module, self._to_come = plan["warm"], list(plan["processes"])
        self._timer = self._loop.call_later(AFTER_S, self._next)

    def take(self, spec: dict[str, Any]) -> PausedRank | None:
        """The one for the rank of ``spec``, which begins at once; None where there is none."""
        found = next((rank for rank in self._waiting if rank.fits(spec)), None)
        if found is None:
            return None
        self._waiting.remove(found)
        if found.ready >= 0:
            self._loop.remove_reader(found.ready)
        if not found.begin(spec):
            self._kill(found)
            return None
        found.describe(spec)
        return found

    def find(self, pid: int) -> Child | None:
        """The one of this process id."""
        return next((rank for rank in (*self._waiting, *self._ending) if rank.pid == pid and rank.alive), None)

    def end(self) -> None:
        """They are not needed."""
        if self._timer is not None:
            self._timer.cancel()
        self._to_come = []
        for rank in self._waiting:
            if rank.ready >= 0:
                self._loop.remove_reader(rank.ready)
            rank.forget()
            self._kill(rank)
        self._waiting = []

    def _kill(self, rank: PausedRank) -> None:
        self._ending = [one for one in self._ending if one.alive]
        if rank.alive and rank.pid > 0:
            self._ending.append(rank)
            process_table.send([rank.pid], signal.SIGKILL)

    def _next(self) -> None:
        """Start the next one, unless memory is short."""
        if not self._to_come:
            return
        if self._container is None:
            self._container = Container()
        used, limit = self._container.memory()
        if limit and limit - used < FREE_BYTES:
            self._to_come = []
            return
        self._count += 1
        spec, mark = self._to_come.pop(0), f"{self._owner}.paused.{self._count}"
        try:
            rank = PausedRank(self._loop, spec, self._module, mark, self._out, self._err)
        except OSError:  # no descriptor or process is left: ranks are started as ever
            self._to_come = []
            return
        self._waiting.append(rank)
        self._loop.add_reader(rank.ready, partial(self._is_ready, rank))

    def _is_ready(self, rank: PausedRank) -> None:
        """It has imported the module, or has ended."""
        self._loop.remove_reader(rank.ready)
        os.close(rank.ready)
        rank.ready = -1
        self._next()
