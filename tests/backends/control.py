"""What a backend does by itself: it has machines, starts containers on them, and looks at these again and again."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from support.hosts import Host, Hosts

from .container import Container
from .image import Image

# A container that ends raises no event here; and to look and act, again and again, is how the real ones work, too.
_STEP_S = 0.05

_KILLED_S = 10.0

_Kind = TypeVar("_Kind", bound="Control")


class Control(ABC):
    """A loop over machines, each of which holds one container at a time. It runs within its ``with`` block, at whose
    end all containers are ended; AssertionError there where it met what it does not know.

    Parameters
    ----------
    hosts, indices : Hosts, sequence of int
        The machines, and which of them are the backend's.
    folder : path
        For the containers' logs.
    image : Image
        What every container runs, whatever the backend was told of it.
    env : mapping
        Variables of every container, as an image or the backend's operators would set.
    apart : float
        Seconds between the starts of two containers.
    """

    def __init__(
        self,
        hosts: Hosts,
        indices: Sequence[int],
        folder: Path,
        image: Image,
        env: Mapping[str, str],
        apart: float = 0.0,
    ) -> None:
        self.folder, self.image, self.env, self.apart = folder, image, dict(env), apart
        self.free = [hosts[index] for index in indices]
        self.lock = threading.RLock()
        self.problems: list[str] = []
        self._hosts = hosts
        self._last_start = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=type(self).__name__)

    def __enter__(self: _Kind) -> _Kind:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for container in self.containers():
            container.kill()
            container.wait(_KILLED_S)
        assert not self.problems, f"{type(self).__name__} failed:\n" + "\n".join(self.problems)

    @abstractmethod
    def look(self) -> None:
        """One round of the loop, in which ``lock`` is held."""

    @abstractmethod
    def containers(self) -> Iterator[Container]:
        """All that there have been on machines that are not lost."""

    def may_start(self) -> bool:
        """Whether the last start is long enough ago; if so, the next one counts from now."""
        if time.monotonic() - self._last_start < self.apart:
            return False
        self._last_start = time.monotonic()
        return True

    def kill_machine(self, host: Host) -> None:
        """It goes, all at once, and tells nobody."""
        self._hosts.cut(host.index)  # first, or its kernel would still close its connections
        self._hosts.kill(host.index)

    def _loop(self) -> None:
        while not self._stop.wait(_STEP_S):
            try:
                with self.lock:
                    self.look()
            except Exception as error:
                self.problems.append(repr(error))
                raise
