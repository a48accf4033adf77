"""Waits for a pattern in the output of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

SEARCHED = 65_536
"""Bytes of a stream that are searched at a time."""


class Search:
    """Takes one stream, and calls ``found()`` once, when ``pattern`` is in it. On the thread that reads the stream."""

    def __init__(self, pattern: re.Pattern[bytes], found: Callable[[], None]) -> None:
        self._pattern = pattern
        self._found: Callable[[], None] | None = found
        self._data = b""

    def write(self, data: bytes) -> None:
        if self._found is None:
            return
        self._data += data
        if self._pattern.search(self._data):
            self._found()
            self._found, self._data = None, b""
        else:
            self._data = self._data[-SEARCHED:]

    def end(self) -> None:
        pass
