"""Whether the processes of a node have written something, but for what the guard's own signal has made them write.

The signal that asks a process for its stack ends a wait in the kernel with EINTR. A client of torch's store that waits
for rank 0 reports that as a failed attempt, with C frames, and tries again: a gang in which rank 0 never opens the
store would seem to make progress each time it is asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..rank_reports.tail import Tail

_LABEL = re.compile(r"^\[[^\]\s]{1,40}\]:", re.MULTILINE)
"""Which a program that starts ranks puts before their lines, as torchrun's agent does."""

_INTERRUPTED = re.compile(
    r"\b(?:Interrupted system call|EINTR)\b"
    # How torch (2.13) goes on after it: the C frames.
    r"|^(?:Exception raised from \w+ at |frame #\d+: |<omitting python frames>$)"
)


def reports_interruption(text: str) -> bool:
    """Whether each line of ``text`` is of a report that a signal has interrupted a call into the kernel."""
    lines = [line for line in _LABEL.sub("", text).splitlines() if line.strip()]
    return bool(lines) and all(_INTERRUPTED.search(line) for line in lines)


class Output:
    """What the processes of a node's launches have written, and the lines of ``gang_log``.

    Parameters
    ----------
    tails : callable
        Gives the last output of each process, by pid.
    log : callable
        Gives the path of the file to which ``gang_log`` writes.
    """

    def __init__(self, tails: Callable[[], Mapping[int, Tail]], log: Callable[[], str]) -> None:
        self._tails, self._log = tails, log
        self._logged = (0, 0.0)
        self._written: dict[int, tuple[int, float]] = {}
        self._has_asked = False
        self.is_new()

    def asked(self) -> None:
        """Processes are sent the signal from now on."""
        self._has_asked = True

    def is_new(self) -> bool:
        """Whether there is some since the last call, or a process was started."""
        before, logged = self._written, self._logged
        self._logged = _size(self._log())
        tails = self._tails()
        # The count first: what is written just now is then seen with all of its lines, at the latest by the next call.
        self._written = {pid: (tail.count, tail.written_at) for pid, tail in tails.items()}
        is_new = logged != self._logged or before.keys() != self._written.keys()
        for pid, (count, written_at) in before.items():
            if pid in tails and written_at != self._written[pid][1]:
                is_new |= not (self._has_asked and reports_interruption(tails[pid].lines_since(count)))
        return is_new


def _size(path: str) -> tuple[int, float]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime
