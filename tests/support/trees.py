"""One command and everything that comes of it: its output as it arrives, its end, and what it leaves running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from .processes import Process, descendants, read_process, send_signal

_NURSERY = Path(__file__).with_name("machine") / "nursery.py"


class Tree:
    """A command in a session of its own, started under the nursery that adopts its orphans.

    Parameters
    ----------
    argv : sequence of str
        Program and arguments.
    env : mapping of str to str, optional
        The complete environment; this process's own where None.
    cwd : path, optional
        Working folder.

    The command runs until it ends or :meth:`close` is called, which kills what is left of it. Output is kept as bytes
    and read as text, so that a character split over two writes is whole.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> None:
        self.argv = tuple(argv)
        self._changed = threading.Condition()
        self._streams = {"stdout": bytearray(), "stderr": bytearray()}
        self._open = set(self._streams)
        self._exit: int | None = None
        self._closed = False
        status, status_end = os.pipe()
        try:
            self._nursery = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_NURSERY), str(status_end), *argv],
                env=env,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(status_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(status_end)
        events = open(status, "rb")  # noqa: SIM115 - closed by the thread that reads it
        self.pid = int(json.loads(events.readline())["pid"])
        assert self._nursery.stdout is not None and self._nursery.stderr is not None
        self._threads = [
            threading.Thread(target=self._watch, args=(events,), name="tree-events"),
            threading.Thread(target=self._pump, args=("stdout", self._nursery.stdout), name="tree-stdout"),
            threading.Thread(target=self._pump, args=("stderr", self._nursery.stderr), name="tree-stderr"),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _watch(self, events: IO[bytes]) -> None:
        with events:
            for line in events:
                with self._changed:
                    self._exit = int(json.loads(line)["exit"])
                    self._changed.notify_all()

    def _pump(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                with self._changed:
                    self._streams[name] += chunk
                    self._changed.notify_all()
        with self._changed:
            self._open.discard(name)
            self._changed.notify_all()

    @property
    def stdout_bytes(self) -> bytes:
        """What has arrived on stdout so far."""
        with self._changed:
            return bytes(self._streams["stdout"])

    @property
    def stderr_bytes(self) -> bytes:
        """What has arrived on stderr so far."""
        with self._changed:
            return bytes(self._streams["stderr"])

    @property
    def stdout(self) -> str:
        """Stdout so far as text."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Stderr so far as text."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def output(self) -> str:
        """Stdout, then stderr, so far."""
        return self.stdout + self.stderr

    @property
    def exit_code(self) -> int | None:
        """Of the command, negative for a signal; None while it runs."""
        with self._changed:
            return self._exit

    def dump(self) -> str:
        """The end of both streams, for an assertion's message."""
        return (
            f"{' '.join(self.argv)}\nexit code: {self.exit_code}\n--- stdout\n{self.stdout[-8000:]}\n"
            f"--- stderr\n{self.stderr[-8000:]}"
        )

    def wait(self, timeout: float) -> int:
        """The command's exit code, at the latest after ``timeout`` seconds; AssertionError where it still runs."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: self._exit is not None, timeout)
            code = self._exit
        if code is None:
            raise AssertionError(f"still running after {timeout:g} s: {self.dump()}")
        # All output that was written before the end is read before this returns, unless something keeps the pipe open.
        with self._changed:
            self._changed.wait_for(lambda: not self._open, min(1.0, max(0.0, deadline - time.monotonic())))
        return code

    def wait_for(self, text: str | re.Pattern[str], timeout: float, count: int = 1) -> re.Match[str]:
        """Wait until ``text``, or a match of the pattern, has appeared ``count`` times; return that match.

        A line arrives in pieces: a pattern that captures a number also names what follows it.
        Raises AssertionError when the output ends, or ``timeout`` seconds pass, without it.
        """
        pattern = text if isinstance(text, re.Pattern) else re.compile(re.escape(text))
        found: list[re.Match[str]] = []

        def appeared() -> bool:
            found.clear()
            for stream in self._streams.values():
                found.extend(pattern.finditer(stream.decode("utf-8", "replace")))
            return len(found) >= count or not self._open

        with self._changed:
            self._changed.wait_for(lambda: appeared() or self._exit is not None, timeout)
            # What the command wrote before its end may be under way still; what it left running may hold the pipes.
            self._changed.wait_for(appeared, min(timeout, 1.0))
        if len(found) < count:
            raise AssertionError(f"{pattern.pattern!r} appeared {len(found)} of {count} times: {self.dump()}")
        return found[count - 1]

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the command alone, or, as a terminal's Ctrl-C does, to its whole process group."""
        if group:
            os.killpg(self.pid, number)
        else:
            process = read_process(self.pid)
            if process is None or not send_signal(process, number):
                raise AssertionError(f"the command has ended already: {self.dump()}")

    def below(self) -> list[Process]:
        """Everything that came of the command and runs: itself, its descendants and the orphans among them."""
        return descendants(self._nursery.pid)

    def find(self, pattern: str) -> list[Process]:
        """Those of :meth:`below` whose command line holds a match of the regular expression."""
        return [process for process in self.below() if re.search(pattern, " ".join(process.command))]

    def left(self, timeout: float) -> list[Process]:
        """What still runs ``timeout`` seconds after the command's end at the latest; empty where all has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._nursery.wait(timeout)
        return self.below()

    def close(self) -> None:
        """Kill whatever is left, and wait for it."""
        if self._closed:
            return
        self._closed = True
        assert self._nursery.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._nursery.stdin.close()
        try:
            self._nursery.wait(20)
        except subprocess.TimeoutExpired:
            left = self.below()
            self._nursery.kill()
            self._nursery.wait()
            for process in left:
                send_signal(process, signal.SIGKILL)
            raise AssertionError("could not be killed:\n" + "\n".join(map(str, left))) from None
        finally:
            for thread in self._threads:
                thread.join(10)
