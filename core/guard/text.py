"""Text about the end of a process: a clause for its exit code, and the parts of its output that are shown."""

from __future__ import annotations

import re
import signal

from .processes import memory_kills

_LIKELY = {"SIGKILL": " (out of memory?)", "SIGBUS": " (/dev/shm full?)"}
"""The most frequent reason for a signal of unknown origin."""

DETAIL_LIMIT = 12_000
"""Characters of traceback or last output that travel in a record; beginning and end are what is kept."""

DETAIL_LINES = 400
"""Lines of it. Metaflow's console prints some thousand a second."""

_NOTE = 80
"""Characters reserved for the line that says how much is left out."""

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


def shortened(text: str, limit: int = DETAIL_LIMIT, lines: int = DETAIL_LINES) -> str:
    """``text``, without its middle where it has more than ``limit`` characters or ``lines`` lines; a line says how much
    is left out. An exception begins with where it was raised, and ends with its message.
    """
    if len(text) <= limit and text.count("\n") < lines:
        return text
    # Cut by characters first, so that the rest never works on more than that. The line between needs some itself.
    part, part_lines = limit // 3 - _NOTE, lines // 3 - 1
    start = "".join(text[:part].splitlines(keepends=True)[:part_lines])
    rest = text[max(len(start), len(text) - 2 * part) :]
    end = "".join(rest.splitlines(keepends=True)[-2 * part_lines :])
    start = start.rstrip("\n")
    left_out = len(text) - len(start) - len(end)
    return f"{start}\n[gang] ... {left_out} characters are left out here ...\n{end}"


def last_lines(output: str) -> str:
    """The end of ``output``: what is shown of a process that left no traceback."""
    return "\n".join(output.splitlines()[-LAST_LINES:])


def exception_name(trace: str) -> str:
    """The name of the exception that a Python traceback ends with, without its module; "" where there is none."""
    for line in reversed(trace.splitlines()):
        found = re.match(r"(?:\w+\.)*([A-Za-z_]\w*)(?::|$)", line)
        if found and not line.startswith("Traceback"):
            return found[1]
    return ""


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


def last_traceback(output: str) -> str:
    """The last Python traceback in ``output``, chained ones included, or ""."""
    begins = "Traceback (most recent call last):"
    at = output.rfind(begins)
    if at < 0:
        return ""
    start = output.rfind("\n", 0, at) + 1
    # "During handling of ..." and "The above exception ..." join tracebacks that belong together.
    while (at := output.rfind(begins, 0, start)) >= 0:
        between = output[at:start]
        if "During handling of the above exception" not in between and "direct cause of the following" not in between:
            break
        start = output.rfind("\n", 0, at) + 1
    return output[start:].rstrip()
