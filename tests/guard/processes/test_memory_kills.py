"""A kill for want of memory is told as a fact, where the kernel counts such kills: a real one, in a control group."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

END_S = 60.0
LIMIT_BYTES = 64 << 20

PROGRAM = """
import os, signal, subprocess, sys
import metaflow, metaflow_extensions.gang.core
with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))
from metaflow_extensions.gang.core.guard.text import how_it_ended
hog = "held = []\\nwhile True: held.append(bytearray(b'x') * (1 << 20))"
print(how_it_ended(-signal.SIGKILL), flush=True)
print(subprocess.run([sys.executable, "-c", "open('/proc/self/oom_score_adj', 'w').write('1000')\\n" + hog]).returncode)
print(how_it_ended(-signal.SIGKILL), flush=True)
"""


@contextlib.contextmanager
def small_group() -> Iterator[Path]:
    """A control group with little memory, below this process's own; skips where none can be made."""
    groups = [line.rstrip("\n").split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    places = [
        (Path(f"/sys/fs/cgroup/memory{group[2]}"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if "memory" in group[1].split(",")
        else (Path(f"/sys/fs/cgroup{group[2]}"), "memory.max", "memory.swap.max")
        for group in groups
        if "memory" in group[1].split(",") or not group[1]
    ]
    for parent, limit, swap in places:
        folder = parent / f"gang-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(LIMIT_BYTES))
        except OSError:  # no controller of memory there
            folder.rmdir()
            continue
        with contextlib.suppress(OSError):
            (folder / swap).write_text(str(LIMIT_BYTES) if "memsw" in swap else "0")
        try:
            yield folder
        finally:
            deadline = time.monotonic() + END_S
            while True:  # the kernel takes its time to forget the last process
                try:
                    folder.rmdir()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
        return
    pytest.skip("No control group for memory can be made here: that needs root and a writable /sys/fs/cgroup.")


def test_a_kill_for_want_of_memory_is_told_as_a_fact() -> None:
    with small_group() as group:
        argv = [sys.executable, "-c", PROGRAM, str(group / "cgroup.procs")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=END_S)
    before, code, after = done.stdout.splitlines()
    assert code == "-9", done.stdout + done.stderr
    assert before == "was killed by SIGKILL (out of memory?)"
    assert after == "was killed by SIGKILL: out of memory, as the kernel has counted such a kill here in the meantime"
