"""How processes end that are not the guard's children: their exit codes, and what they have become."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import metaflow  # noqa: F401
import pytest

from metaflow_extensions.gang.core.guard.processes import exit_status

WAIT_S = 30.0

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.readline()
child.stdin.close()
if sys.argv[2] == "collected":
    child.wait()
print("over", flush=True)
sys.stdin.readline()
child.wait()
"""

WAITS = "import os, sys, threading, time\nwait = sys.stdin.read\n"
ENDS = {
    "exit": ("wait(); sys.exit(3)", 3),
    "well": ("wait()", 0),
    "signal": ("wait(); os.kill(os.getpid(), 9)", -9),
    "in order, beside a thread": ("threading.Thread(target=time.sleep, args=(100,)).start(); wait(); os._exit(7)", 7),
    "by a thread": ("threading.Thread(target=lambda: (wait(), os._exit(9))).start(); time.sleep(100)", 9),
}


@contextmanager
def grandchild(program: str, collected: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of which this one is not the parent, and its parent, which lets it end by each line that it reads."""
    argv = [sys.executable, "-c", PARENT, WAITS + program, collected]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        yield parent, int(parent.stdout.readline())
        parent.communicate("\n\n", timeout=WAIT_S)


@pytest.mark.parametrize("collected", ["waits to be collected", "collected"])
@pytest.mark.parametrize("end", ENDS)
def test_the_exit_code_of_a_process_that_is_no_child(end: str, collected: str) -> None:
    program, code = ENDS[end]
    with grandchild(program, collected) as (parent, pid):
        descriptor = os.pidfd_open(pid)
        try:
            assert parent.stdin is not None and parent.stdout is not None
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert select.select([descriptor], [], [], WAIT_S)[0]
            assert parent.stdout.readline() == "over\n"
            found = exit_status.exit_code(pid, descriptor)
        finally:
            os.close(descriptor)
    # The kernel keeps the code of a process that is collected since Linux 6.15.
    assert found == code or (found is None and collected == "collected" and _release() < (6, 15))


def _release() -> tuple[int, ...]:
    return tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


AGAIN = """
import os, sys
sys.stdin.buffer.raw.read(1)
sys.stdout.write("before\\n"); sys.stdout.flush()
sys.stdin.buffer.raw.read(1)
code = "print('after', flush=True); import sys; sys.stdin.read()"
os.execv(sys.executable, [sys.executable, "-c", code])
"""


def test_the_same_interpreter_with_another_program_is_another() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", AGAIN], bufsize=0, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        os.write(process.stdin.fileno(), b"1")
        assert process.stdout.readline() == "before\n"
        program = exit_status.Program(process.pid)
        assert not program.is_another
        os.write(process.stdin.fileno(), b"1")
        assert process.stdout.readline() == "after\n"
        assert program.is_another
        process.communicate(timeout=WAIT_S)
