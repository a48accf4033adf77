"""One process of the guard, from its start until it is gone and its output drained; the task of a local node is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..failure_record import Failure
from ..loop.event_loop import Loop, Timer
from ..processes import process_table
from ..settings import settings
from ..text import how_it_ended, last_lines
from ..tracebacks import last_traceback
from . import inherited
from .evidence import ProcessEvidence
from .output import Labelled, Log, Pump

if TYPE_CHECKING:
    from ..rank_reports.reports import Reports
    from .output import Sink

DRAIN_S = 0.5
"""How long a child's output may go on after its death: a grandchild that kept the pipe must not hold up the end."""

RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "exec.py")


class Child(ProcessEvidence):
    """One process, from its start until it is gone and its output drained."""

    def __init__(
        self,
        loop: Loop,
        spec: dict[str, Any],
        sinks: Callable[[str], list[Sink]],
        pass_fds: tuple[int, ...],
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        super().__init__(spec)
        self.on_end: Callable[[Child], None] = lambda child: None
        self.on_overdue: Callable[[Child], None] = lambda child: None
        self.on_output: Callable[[], None] = lambda: None  # once, when it first writes something
        self.tail.on_first = lambda: loop.call_soon_threadsafe(lambda: self.on_output())
        self._loop = loop
        self._pumps: list[Pump] = []
        self._open_streams = 2
        self._timer: Timer | None = None
        self._is_settled = False
        self.pid = -1
        streams = {name: [*sinks(name), self.tail.stream()] for name in ("stdout", "stderr")}
        streams["stderr"].append(self.errors)
        if spec.get("report"):
            self.reports = self._look_for_reports(spec["report"], spec.get("report_grace"))
            for sinks_of_stream in streams.values():
                sinks_of_stream.append(self.reports.stream())
        try:
            self._start(spec, streams, pass_fds, stdin)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # What the runner cannot report: too long a command line, a null byte in it, too many processes.
            self._could_not_start(spec["argv"][0], getattr(error, "strerror", None) or str(error), streams)

    def _start(
        self, spec: dict[str, Any], streams: dict[str, list[Sink]], pass_fds: tuple[int, ...], stdin: int
    ) -> None:
        cwd, delay = spec.get("cwd") or "", str(spec.get("delay", 0.0))
        runner = [sys.executable, "-I", "-S", RUNNER, str(os.getpid()), cwd, delay, str(inherited.open_files())]
        with inherited.signals_of_the_task():
            self._process = subprocess.Popen(
                [*runner, *spec["argv"]],
                env=spec["env"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.pid = self._process.pid
        for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            assert stream is not None
            fd = os.dup(stream.fileno())
            stream.close()
            ended = partial(self._loop.call_soon_threadsafe, self._stream_ended)
            self._pumps.append(Pump(fd, streams[name], ended))

    def _could_not_start(self, program: str, reason: str, streams: dict[str, list[Sink]]) -> None:
        if self.pid > 0:  # it runs, but there is no thread or descriptor left for its output
            process_table.send([self.pid], signal.SIGKILL)
        self.exit_code, self.ended_at = 126, time.time()
        for sink in streams["stderr"]:
            sink.write(f"[gang] {program!r} could not be started: {reason}.\n".encode(errors="replace"))
        for sinks in streams.values():
            for sink in sinks:
                sink.end()
        self._loop.call_later(0, self._settle)

    def died(self, exit_code: int) -> None:
        """Note that it is gone, as the kernel reports; :meth:`reaped` has to follow."""
        self.exit_code = self._process.returncode = exit_code
        self.ended_at = time.time()

    def reaped(self) -> None:
        """``on_end`` follows when its output has been drained."""
        if self._open_streams:
            goals = [(pump, pump.written()) for pump in self._pumps]
            self._drain(goals, time.monotonic() + settings().drain_timeout)
        else:
            self._settle()

    def _drain(self, goals: list[tuple[Pump, int]], deadline: float) -> None:
        def look() -> None:
            if time.monotonic() < deadline and any(pump.passed < goal for pump, goal in goals):
                self._drain(goals, deadline)
            else:
                self._settle()

        self._timer = self._loop.call_later(DRAIN_S, look)

    def _stream_ended(self) -> None:
        self._open_streams -= 1
        if not self._open_streams and not self.alive:
            self._settle()

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_settled:
            self._is_settled = True
            self.on_end(self)

    def give_up(self) -> None:
        """Count it as gone: it has been killed, and does not end."""
        if self.exit_code is None:
            self.exit_code, self.ended_at = -signal.SIGKILL, time.time()
        self._settle()

    @property
    def settled(self) -> bool:
        """Gone, and its output drained."""
        return self._is_settled

    def _look_for_reports(self, pattern: str, grace: float | None) -> Reports:
        import re

        from ..rank_reports.reports import Reports

        def found() -> None:
            if not self.reported_at:
                self.reported_at = time.time()
                self._loop.call_later(grace or 0.0, lambda: self.on_overdue(self))

        def seen() -> None:
            if grace is not None:
                self._loop.call_soon_threadsafe(found)

        return Reports(re.compile(pattern.encode(), re.DOTALL), seen)


class NodeTask(Child):
    """In a local gang: the task of another node, which control's guard starts and whose log it keeps."""

    def __init__(
        self, loop: Loop, node: int, spec: dict[str, Any], out: int, err: int, log_folder: str, meeting_fd: int
    ) -> None:
        self.node = node
        self.logs = {name: os.path.join(log_folder, f"node-{node}.{name}") for name in ("stdout", "stderr")}

        def sinks(stream: str) -> list[Sink]:
            # The log first: it has to be whole whatever becomes of the console.
            console = Labelled(out if stream == "stdout" else err, f"[node {node}] ", progress_period=1.0)

            def log_ends(error: OSError) -> None:
                console.write(f"[gang] The stored log of this node's {stream} ends here: {error.strerror}.\n".encode())

            return [Log(self.logs[stream], log_ends), console]

        super().__init__(loop, {**spec, "title": f"node {node}'s task"}, sinks, (meeting_fd,))

    @property
    def cannot_report(self) -> bool:
        """Whether it has ended otherwise than Metaflow ends a task: by a signal, or ``os._exit()``."""
        return self.exit_code not in (None, 0, 1)

    def failure(self, node: int) -> Failure:
        code = self.exit_code or 0
        tail = self.tail.text()
        return Failure(
            self.node,
            "task-signal" if code < 0 else "task-exit",
            f"the node's task {how_it_ended(code)}{'' if code else ' without finishing its step'}",
            self.ended_at,
            last_traceback(tail) or last_lines(tail) if code >= 0 else "",
            exit_code=code,
        )
