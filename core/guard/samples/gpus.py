"""The GPUs of a node, read on a thread of their own: a driver may take seconds for its first answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from . import nvml
from .amd import Amd

if TYPE_CHECKING:
    from ..loop.framing import Header

    class Gpus(Protocol):
        """The GPUs of one maker."""

        def sample(self) -> list[Header]: ...


MOST_GPUS = 32
"""Of one node that a sample has."""


class GpuReader:
    """Reads the GPUs that ``open_gpus()`` gives each time it is asked; where that fails there are none."""

    def __init__(self, open_gpus: Callable[[], Gpus]) -> None:
        self._open = open_gpus
        self._found: list[Header] = []
        self._wanted = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)
        self._thread.start()

    def latest(self) -> list[Header]:
        """What was read last; the next reading begins."""
        self._wanted.set()
        return self._found

    def close(self) -> None:
        """Read nothing more."""
        self._is_closed = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            gpus = self._open()
            while not self._is_closed:
                self._found = gpus.sample()[:MOST_GPUS]
                self._wanted.wait()
                self._wanted.clear()
        except Exception:  # no library, or whatever a driver does: that is no reason to end a gang
            self._found = []


def found_gpus() -> GpuReader | None:
    """A reader of this node's GPUs; None where it has none, and nothing is loaded or started then."""
    try:
        if nvml.is_there():
            return GpuReader(nvml.Nvml)
        amd = Amd()
        return GpuReader(lambda: amd) if amd.folders else None
    except RuntimeError:  # no thread is left
        return None
