"""The output of a node's processes: all of it, in order, byte for byte, in the node's own log; labelled on the console.

Real pipes, children and flows throughout; what the sinks do to bytes is also searched with Hypothesis.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.flows import FlowRunner

from metaflow_extensions.gang.core.guard import output
from metaflow_extensions.gang.core.guard.children import Child, Launch
from metaflow_extensions.gang.core.guard.loop import Loop
from metaflow_extensions.gang.core.guard.output import HELD_LIMIT, Labelled, Log, Pump, Raw, Tail, write_all
from metaflow_extensions.gang.core.logs import to_mflog

RUN_S = 90.0
"""For a flow to end, on a machine that is busy with other tests."""

SPEAKER = r'''
import os, sys, time

def lines(fd, count):
    block = b"".join(b"%06d " % n + bytes((n + k) % 94 + 32 for k in range(92)) + b"\n" for n in range(count))
    while block:
        block = block[os.write(fd, block):]

what = sys.argv[1]
if what == "stdout":
    lines(1, 20_972)  # 2 MiB
elif what == "stderr":
    lines(2, 20_972)
elif what == "split":
    for byte in "grün 10 € 😀\n".encode():
        os.write(1, bytes([byte]))
        sys.stdout.flush()
        time.sleep(0.01)
elif what == "bar":
    for percent in range(0, 101, 2):
        os.write(2, b"\rbar %3d%%" % percent)
        time.sleep(0.03)
    os.write(2, b"\r\nbar is full\n")
elif what == "last":
    os.write(1, b"\x00\xff not text\r\n\n[MFLOG|0|2000-01-01T00:00:00.000000Z|x|y]looks like a log's own line\n")
    sys.stdout.write("last " + "x" * 100_000)
'''

FLOW = """
import sys
from metaflow import FlowSpec, current, gang, step

class Output(FlowSpec):
    @step
    def start(self):
        self.next(self.work, num_parallel=2)

    @gang
    @step
    def work(self):
        if current.gang.node_index == 1:
            for what in ("stdout", "stderr", "split", "bar", "last"):
                current.gang.run([sys.executable, "speaker.py", what])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Output()
"""


def numbered() -> list[bytes]:
    return [b"%06d " % n + bytes((n + k) % 94 + 32 for k in range(92)) for n in range(20_972)]
