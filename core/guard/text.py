"""Text about the end of a process: a clause for its exit code, and the parts of its output that are shown."""

from __future__ import annotations

import signal

from .processes import memory_kills

_LIKELY = {"SIGKILL": " (out of memory?)", "SIGBUS": " (/dev/shm full?)"}
"""The most frequent reason for a signal of unknown origin."""

INDENT = "  | "
"""Before each line of a traceback or an output that a message shows."""

LAST_LINES = 40
"""Lines of last output that a failure without a traceback shows."""


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def how_it_ended(exit_code: int) -> str:
    """A clause for an exit code as :mod:`subprocess` spells it."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    name = signal_name(-exit_code)
    if exit_code == -signal.SIGABRT:
        return "was aborted (SIGABRT), as C++ code and os.abort() do when they give up"
    if exit_code == -signal.SIGKILL and memory_kills.ran_out():
        return f"was killed by {name}: out of memory, as the kernel has counted such a kill here in the meantime"
    return f"was killed by {name}" + _LIKELY.get(name, "")


def indent(text: str) -> str:
    return "\n".join(INDENT + line for line in text.rstrip("\n").splitlines())


def last_lines(output: str) -> str:
    """The end of ``output``: what is shown of a process that left no traceback."""
    return "\n".join(output.splitlines()[-LAST_LINES:])


def said_by(rank: int, text: str) -> str:
    """Several ranks' output without what bears the number of another rank: torch writes "[rank3]: " before each line
    of a traceback.
    """
    own, other = f"[rank{rank}]: ", "[rank"
    lines = text.splitlines(keepends=True)
    mine = own.rstrip()  # lines of C++ have no space there
    return "".join(line.removeprefix(own) for line in lines if line.startswith(mine) or not _is_of_a_rank(line, other))


def _is_of_a_rank(line: str, start: str) -> bool:
    number, bracket, _ = line.removeprefix(start).partition("]:")  # a space follows only in lines of Python's
    return line.startswith(start) and bool(bracket) and number.isdecimal()
