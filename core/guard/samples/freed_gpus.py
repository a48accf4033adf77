"""Waits until the GPUs have the memory back that processes had which are dead: the driver may take its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from .gpus import GpuReader

LOOK_S = 0.1
"""Between two looks, while it is waited for."""

MOST_LOOKS = 100
"""For what the driver says at first: without an answer by then there is none."""

SLACK = 256 << 20
"""Bytes more than before that count as none: other programs of this machine use GPUs too."""


class FreedGpus:
    """Made before the processes are started: what the GPUs' memory has then is not theirs.

    Parameters
    ----------
    gpus : GpuReader or None
        None on a node that has no GPU; there nothing is waited for.
    """

    def __init__(self, loop: Loop, gpus: GpuReader | None) -> None:
        self._loop, self._gpus = loop, gpus
        self._before: list[int] | None = None
        self._looks = 0
        if self._gpus is not None:
            self._note()

    def _note(self) -> None:
        """A driver takes a while for its first answer."""
        assert self._gpus is not None
        used = self._used()
        self._looks += 1
        if used:
            self._before = used
        elif self._looks < MOST_LOOKS:
            self._loop.call_later(LOOK_S, self._note)

    def _used(self) -> list[int]:
        """Bytes of each GPU, as they were when this was last asked for."""
        assert self._gpus is not None
        return [int(gpu.get("memory") or 0) for gpu in self._gpus.latest()]

    def wait(self, most_s: float, then: Callable[[str], None]) -> None:
        """Call ``then("")`` once the memory is free, or after ``most_s`` seconds with a sentence about what is not."""
        if self._gpus is None or self._before is None:
            then("")
            return
        self._used()  # the reading that begins now is looked at next
        self._loop.call_later(LOOK_S, lambda: self._look(time.monotonic() + most_s, most_s, then))

    def _look(self, deadline: float, most_s: float, then: Callable[[str], None]) -> None:
        assert self._before is not None
        more = [now - before for now, before in zip(self._used(), self._before, strict=False)]
        if all(bytes_ <= SLACK for bytes_ in more):
            then("")
        elif time.monotonic() < deadline:
            self._loop.call_later(LOOK_S, lambda: self._look(deadline, most_s, then))
        else:
            held = ", ".join(f"GPU {index} {b / (1 << 30):.1f} GiB" for index, b in enumerate(more) if b > SLACK)
            then(
                f"GPU memory of the ranks that have ended is still in use after {most_s:g} s: {held}. The ranks are "
                "started all the same."
            )
