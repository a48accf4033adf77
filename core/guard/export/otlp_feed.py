"""Hands a node's metrics to the program that exports them by OpenTelemetry (core/export/otlp.py), and starts it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..processes.watch import TaskWatch
from ..secret_values import without_secrets

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from ..loop.framing import Header

START_S = 5.0
"""After the gang's begin, as the card's program: importing OpenTelemetry takes half a second of a processor."""

LAST_S = 5.0
"""What the task waits at most for the last export: as for its card. It takes milliseconds where the collector answers;
where it does not, the program gives up after 2 s by itself."""

MOST_COMPLAINT = 400
"""Characters of the one line of the log."""


class OtlpFeed:
    """The program of one node.

    Parameters
    ----------
    program : dict
        Its ``argv``, ``env`` and ``cwd``.
    newest : callable
        Gives what is to be exported now.
    say : callable
        Takes a line for the user.
    """

    def __init__(self, loop: Loop, program: Header, newest: Callable[[], Header], say: Callable[[str], None]) -> None:
        self._loop, self._program, self._newest, self._say = loop, program, newest, say
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        self._complaint = b""
        self._has_complained = self._has_failed = False
        self._timer = loop.call_later(START_S, self._start)

    def send(self) -> None:
        """Hand over what is new, unless the program has not read what came before."""
        if self._process is not None:
            self._flush()
            if not self._unsent:
                self._unsent = _line(self._newest(), False)
                self._flush()

    def end(self, then: Callable[[], None]) -> None:
        """Have the last state exported; ``then`` once it is, at the latest after :data:`LAST_S`."""
        self._timer.cancel()
        self._start()
        process = self._process
        if process is None:
            then()
            return
        is_over = [False]

        def over(in_time: bool) -> None:
            if not is_over[0]:
                is_over[0] = True
                self._close(process, in_time)
                then()

        TaskWatch(self._loop, process.pid, lambda: over(True))
        self._loop.call_later(LAST_S, lambda: over(False))
        self._send_last(process)

    def end_now(self) -> None:
        """The guard ends: wait for the last export here."""
        self._timer.cancel()
        self._start()
        process = self._process
        if process is not None:
            self._send_last(process)
            try:
                process.wait(LAST_S)
            except subprocess.TimeoutExpired:
                self._close(process, False)
            else:
                self._close(process, True)

    def _start(self) -> None:
        if self._process is not None or self._has_failed:
            return
        try:
            self._process = process = subprocess.Popen(
                self._program["argv"],
                env=self._program["env"],
                cwd=self._program["cwd"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            self._has_failed = True
            self._complain(f"the program that exports them cannot be started: {error.strerror}")
            return
        assert process.stdin is not None and process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stderr.fileno(), False)
        self._loop.add_reader(process.stderr, self._listen)
        self.send()

    def _send_last(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._unsent += _line(self._newest(), True)
        self._flush()  # a pipe takes 64 KiB; what a stopped program does not take is lost
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _flush(self) -> None:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(process.stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # it has ended
            self._unsent = b""

    def _listen(self) -> None:
        """The program has written a complaint, or has ended."""
        process = self._process
        assert process is not None and process.stderr is not None
        try:
            data = os.read(process.stderr.fileno(), 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(process.stderr)
        if len(self._complaint) < 4096:
            self._complaint += data
        line, newline, _ = self._complaint.partition(b"\n")
        if newline and line.strip():
            self._complain(line.decode(errors="replace"))

    def _complain(self, text: str) -> None:
        """One line in all, whatever else happens."""
        if not self._has_complained:
            self._has_complained = True
            text = without_secrets(text[:MOST_COMPLAINT], self._program["env"])
            self._say(f"OpenTelemetry's export of this node's metrics: {text}")

    def _close(self, process: subprocess.Popen[bytes], in_time: bool) -> None:
        assert process.stderr is not None
        if in_time:
            self._listen()
        else:
            process.kill()
            self._complain(f"the last ones could not be exported within {LAST_S:g} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_S)
        self._loop.remove_reader(process.stderr)
        process.stderr.close()


def _line(what: Header, is_last: bool) -> bytes:
    return json.dumps({**what, "final": is_last}, separators=(",", ":")).encode() + b"\n"
