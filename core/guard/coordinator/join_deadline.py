"""The deadline until which all nodes must have joined: late nodes are named from time to time, then fail the gang."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ..failure_record import Failure
from ..loop.event_loop import Loop, Timer

PROGRESS_S = 5.0
"""When a late node is first named; then at twice the time, and so on: 5, 10, 20, 40 s."""


class JoinDeadline:
    """Waits ``timeout_s`` seconds for all of ``num_nodes`` nodes; ``joined`` has those that have joined by now.

    ``say`` takes a line for the user, ``fail`` the failure when the deadline has passed.
    """

    def __init__(
        self,
        loop: Loop,
        num_nodes: int,
        timeout_s: float,
        joined: Collection[int],
        say: Callable[[str], None],
        fail: Callable[[Failure], None],
    ) -> None:
        self._loop = loop
        self._num_nodes = num_nodes
        self._timeout_s = timeout_s
        self._joined = joined
        self._say = say
        self._fail = fail
        self._started = time.monotonic()
        self._has_said = False
        self._timers: list[Timer] = [loop.call_later(timeout_s, self._overdue)]
        self._progress(PROGRESS_S)

    def end(self) -> None:
        """Wait for no node any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._has_said and not self._late():
            self._has_said = False
            waited = time.monotonic() - self._started
            self._say(f"All {self._num_nodes} nodes have joined after {waited:.0f} s.")

    def _late(self) -> list[int]:
        return [index for index in range(self._num_nodes) if index not in self._joined]

    def _missing(self) -> str:
        missing = self._late()
        names = ", ".join(str(index) for index in missing[:8])
        names += f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return f"node {names}" if len(missing) == 1 else f"nodes {names}"

    def _progress(self, at_s: float) -> None:
        def say_progress() -> None:
            self._has_said = True
            waited = time.monotonic() - self._started
            self._say(
                f"{len(self._joined)} of {self._num_nodes} nodes have joined, waiting for {self._missing()} "
                f"for {waited:.0f} s."
            )
            self._progress(2 * at_s)

        self._timers.append(self._loop.call_later(self._started + at_s - time.monotonic(), say_progress))

    def _overdue(self) -> None:
        text = (
            f"did not join within {self._timeout_s:g} s (all_nodes_started_timeout): {len(self._joined)} of "
            f"{self._num_nodes} nodes had joined, {self._missing()} had not. Look at that node's own log and "
            "whether the cluster had room for it"
        )
        self._fail(Failure(self._late()[0], "timeout", text, time.time()))
