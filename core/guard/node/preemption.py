"""Notices that this node has to end, by a SIGTERM or since its machine is taken away, and reports it as a preemption.

It is a failure like any other, but that bodies may save before the gang is gone (``current.gang.on_preemption``).

The notice of a machine that is taken away is a file of one line: the moment of the end ("2026-01-01T00:02:00Z"), and
where it is no spot instance's, a blank and the reason, for the user ("2026-01-01T00:02:00Z Slurm's time limit").
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..failure_record import PREEMPTED, Failure

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from .identity import NodeIdentity

TOLD = signal.SIGURG
"""Says that there is a file :data:`NESTED`; this signal harms no guard that is not ready for it."""

NESTED = "nested"
"""A file of the private folder: the task's command was started again inside of its body; its text is for the user."""

LOOK_S = 1.0
"""A notice comes minutes before the end, as a file: it is looked for this often."""

SETTLE_S = 0.5
"""Seconds in which a node may still be told to end, once a body has ended badly: Slurm sends SIGTERM to the ranks and
to the tasks of all nodes, and some ranks act on it before the first task does.
"""

SPOT = "spot termination notice"
"""The reason where the notice names none, as that of AWS."""

BY_SIGNAL = "was told to end (SIGTERM): a preemption, or somebody ended its task"


class Preemption:
    """Of one node: whether it has to end, and how long saving may take.

    Parameters
    ----------
    fail : callable
        Takes the failure of this node that has to end.
    is_end_expected : callable
        Whether the task has reported all that it had to: telling it to end is no failure any more.

    Attributes
    ----------
    save_s : float
        Seconds, the longest that any node of the gang asked for; 0 where nobody did.
    stops : bool
        Whether it is for a preemption that this node stops.
    is_settled : bool
        Whether it is too late for that: :data:`SETTLE_S` have passed since a body that ended badly asked.
    """

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        fail: Callable[[Failure], None],
        is_end_expected: Callable[[], bool],
    ) -> None:
        self.save_s = 0.0
        self.stops = False
        self.is_settled = False
        self._loop, self._identity = loop, identity
        self._fail, self._is_end_expected = fail, is_end_expected
        loop.on_signal(TOLD, self._nested)

    def listen(self, pipe: int) -> None:
        """Read ``pipe``, a descriptor, into which the task's handler of SIGTERM writes."""

        def read() -> None:
            if os.read(pipe, 65536):
                self._report(BY_SIGNAL)
            else:
                self._loop.remove_reader(pipe)
                os.close(pipe)

        self._loop.add_reader(pipe, read)

    def watch(self, path: str, since: float) -> None:
        """Look for a notice at ``path`` that was written after ``since`` (seconds since the epoch)."""
        try:
            noticed = os.stat(path).st_mtime >= since
        except OSError:
            noticed = False
        if noticed:
            moment, reason = _notice(path)
            when = f" at {moment}" if moment else ""
            self._report(f"is to lose its machine{when}: a preemption ({reason or SPOT})")
        else:
            self._loop.call_later(LOOK_S, partial(self.watch, path, since))

    def settle(self, then: Callable[[], None]) -> None:
        """Call ``then`` now, and once more when it is too late for a preemption."""

        def settled() -> None:
            self.is_settled = True
            then()

        self._loop.call_later(SETTLE_S, settled)
        then()

    def _nested(self) -> None:
        path = os.path.join(self._identity.folder, NESTED)
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            self._fail(Failure(self._identity.index, "nested", file.read(), time.time()))

    def _report(self, text: str) -> None:
        if not self._is_end_expected():
            self._fail(Failure(self._identity.index, PREEMPTED, text, time.time()))


def _notice(path: str) -> tuple[str, str]:
    """The moment and the reason that a notice names; "" for each that it does not."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            line = file.read(200).strip()
    except OSError:
        return "", ""
    moment, _, reason = line.partition(" ") if line.isprintable() else ("", "", "")
    return moment, reason
