"""What the processes of a cell do: say where they are, wait for the word, and, the one that is meant, do the fault.

Imported by the flow and by the ranks' program, so it needs nothing but Python. A process that has come to a moment
leaves a file ``at/WHO@MOMENT`` with its pid; the injector (:mod:`injector`) waits for these files. A fault that a
process does itself is done when the injector writes the file ``go``, so it is always the injector that sets the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import threading
import time

FOLDER = os.environ.get("FAULTS_FOLDER", ".")
WHAT, WHO, WHEN = (os.environ.get(f"FAULTS_{name}", "") for name in ("WHAT", "WHO", "WHEN"))
LAUNCHER = os.environ.get("FAULTS_LAUNCHER", "gang")
HOLDER = os.environ.get("FAULTS_HOLDER", "")
"""Who stays at the moment while something is done to another."""

IS_FIRST_TRY = os.environ.get("GANG_RESTART", "0") == "0"
"""Whether these ranks have not been started again."""

STEP_S = 0.02
"""Between two looks for a file, which raises no event."""

HOOK_S = 6.0
"""How long the end hook of another package takes, such as one that uploads a profile."""

TEXT = "no data for this one"
"""With which the fault ``sys.exit(text)`` leaves, and which the cause has to repeat."""

MESSAGE = "deliberate, by the injector"
"""Of the exception that the fault ``raise`` raises."""


CHATTER_LINES = 2500


class ReturnEarly(Exception):
    """Caught by the step's body, which then ends well although others wait for it."""


def mark(who: str, moment: str) -> None:
    """Say that ``who`` has come to ``moment``, and by which pid."""
    path = os.path.join(FOLDER, "at", f"{who}@{moment}")
    with open(f"{path}.{os.getpid()}", "w") as file:
        file.write(str(os.getpid()))
    os.replace(f"{path}.{os.getpid()}", path)


def is_there(name: str) -> bool:
    return os.path.exists(os.path.join(FOLDER, name))


def reached(who: str, moment: str) -> None:
    """Mark it, and do the fault, once the injector says so, where the cell means this process at this moment."""
    if not os.environ.get("FAULTS_FOLDER"):
        return
    mark(who, moment)
    if who == WHO and moment == WHEN:
        if WHAT in ACTS:
            wait_for("go")
            ACTS[WHAT]()
        elif moment not in ("body", "collective"):
            wait()  # it is struck from outside, here
    elif who == HOLDER and moment == WHEN:
        wait()


def wait_for(name: str) -> None:
    """Wait until the file ``name`` is there; nothing else ends this."""
    while not is_there(name):
        time.sleep(STEP_S)


def log_progress() -> None:
    """As ``gang_log`` does: what fails from here on is worth another try."""
    with open(os.environ.get("METAFLOW_GANG_LOG_FILE", os.devnull), "a") as file:
        file.write('{"rank": 0, "step": 1, "values": {"loss": 0.5}}\n')


def wait() -> None:
    """What a body or a rank does while something is done to it; the file ``finish`` ends it well."""
    wait_for("finish")


def _leave(code: object) -> None:
    sys.exit(code)


def _raise() -> None:
    raise ValueError(MESSAGE)


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _early() -> None:
    raise ReturnEarly


def _close_all() -> None:
    os.closerange(0, 4096)
    time.sleep(1000)


def _become_another() -> None:
    os.execvp("sleep", ["sleep", "1000"])


def _fill_memory() -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    held = []
    while True:
        held.append(bytearray(8 << 20))


def _use_up_time() -> None:
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1, resource.RLIM_INFINITY))
    while True:
        pass


def _leave_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(1000,)).start()
    _raise()


def _raise_much() -> None:
    raise ValueError("begin " + "x" * 9_000_000)


def _raise_lines() -> None:
    raise ValueError("begin\n" + "a line of some length that goes on and on\n" * 250_000)


def _raise_no_utf8() -> None:
    raise ValueError("a name \udcff that is no UTF-8")


def _collect_another() -> None:
    from metaflow import current

    current.gang.all_gather(1)


def _send_a_function() -> None:
    from metaflow import current

    current.gang.broadcast(lambda: None, source=current.gang.node_index)
    current.gang.barrier()


def _fail_with_a_chatty_neighbour() -> None:
    """The neighbours have been printing since ``go``; what this one says is soon far behind."""
    time.sleep(1.0)
    _raise()


ACTS = {
    "raise": _raise,
    "sys.exit(0)": lambda: _leave(0),
    "sys.exit(1)": lambda: _leave(1),
    "sys.exit(text)": lambda: _leave(TEXT),
    "os._exit(0)": lambda: os._exit(0),
    "os._exit(3)": lambda: os._exit(3),
    "C exit(4)": lambda: ctypes.CDLL(None).exit(4),
    "os.abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "return early": _early,
    "recursion": _recurse,
    "closes its descriptors": _close_all,
    "exec of another program": _become_another,
    "memory exhausted": _fill_memory,
    "processor time exhausted": _use_up_time,
    "thread left": _leave_a_thread,
    "message of 9 MB": _raise_much,
    "message of many lines": _raise_lines,
    "message that is no UTF-8": _raise_no_utf8,
    "another collective": _collect_another,
    "value that cannot be sent": _send_a_function,
    "raise beside chatty ranks": _fail_with_a_chatty_neighbour,
}
"""The faults that a process does itself; all others come from outside."""


def chatter() -> None:
    """Write as a rank that debugs does, from ``go`` on: far more than the guard keeps of a launcher's output, but no
    more than Metaflow's console can print in some seconds.
    """
    wait_for("go")
    line = "x" * 150
    with contextlib.suppress(BrokenPipeError):
        for _ in range(CHATTER_LINES):
            print("debug", line, flush=True)
            time.sleep(0.0005)
    wait()


class Slow:
    """An artifact that is at the moment ``storing`` while Metaflow pickles it."""

    def __init__(self, who: str) -> None:
        self.who = who

    def __reduce__(self) -> tuple[object, tuple[str]]:
        reached(self.who, "storing")
        return Slow, (self.who,)
