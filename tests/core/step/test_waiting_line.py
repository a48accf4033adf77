"""A gang that waits for nodes: on a terminal its line counts in its place, until something follows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import metaflow  # noqa: F401 - it loads the package by itself, and must not be asked to half-way
import pytest

from metaflow_extensions.gang.core.step import live_output
from metaflow_extensions.gang.core.step.live_output import WaitingLine

LIMIT_S = 30.0
COLUMNS = 60
HEAD = "2026-11-28 20:57:33.123 [17/train/2 (pid 4711)] [gang] "
TEXT = "3 of 4 nodes have joined, waiting for node 2 for {} s."


class Screen:
    """A terminal of a few columns: what it shows of what is written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.terminal: TextIO = os.fdopen(slave, "w", buffering=1)
        self.rows = [""]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        rest = ""
        while True:
            try:
                rest += os.read(self._master, 4096).decode()
            except OSError:  # the other end is closed
                return
            while found := re.match(r"\x1b\[(\d*)([A-Za-z])|[^\x1b]|\x1b(?!\[|$)", rest):
                rest = rest[found.end() :]
                if found[2] == "A":
                    self._up = int(found[1])
                elif found[2] == "J":
                    del self.rows[len(self.rows) - 1 - self._up :]
                    self.rows.append("")
                elif found[0] == "\n":
                    self.rows.append("")
                elif found[2] is None and found[0] != "\r":
                    if len(self.rows[-1]) == COLUMNS:
                        self.rows.append("")
                    self.rows[-1] += found[0]

    def shows(self, *lines: str) -> None:
        """Wait until these are the rows, from the first on."""
        wanted = [line[at : at + COLUMNS] for line in lines for at in range(0, len(line), COLUMNS)]
        deadline = time.monotonic() + LIMIT_S
        while [row for row in self.rows if row] != wanted:
            assert time.monotonic() < deadline, self.rows
            time.sleep(0.01)

    def close(self) -> None:
        self.terminal.close()
        self._thread.join()
        os.close(self._master)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setattr(live_output, "TICK_S", 0.05)
    found = Screen()
    yield found
    found.close()


def test_a_waiting_line_counts_in_its_place(screen: Screen) -> None:
    line = WaitingLine(screen.terminal)
    screen.terminal.write("before\n")
    for part in ("\x1b[35m" + HEAD, "\x1b[0m", TEXT.format(5) + "\n"):  # as Metaflow's logger writes it
        screen.terminal.write(part)
    screen.shows("before", HEAD + TEXT.format(6))
    # The guard's next line takes its place ...
    screen.terminal.write(HEAD + TEXT.format(10) + "\n")
    screen.shows("before", HEAD + TEXT.format(10))
    screen.shows("before", HEAD + TEXT.format(11))
    # ... that of another gang does not, and what follows ends it.
    other = HEAD.replace("train/2", "train/9")
    screen.terminal.write(other + TEXT.format(20) + "\n")
    screen.terminal.write("All nodes\n")
    screen.shows("before", HEAD + TEXT.format(11), other + TEXT.format(20), "All nodes")
    deadline = time.monotonic() + LIMIT_S
    while line._thread is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    screen.shows("before", HEAD + TEXT.format(11), other + TEXT.format(20), "All nodes")
