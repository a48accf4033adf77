"""The last output of a process, kept for the report of its failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TAIL_LIMIT = 32_768
"""Bytes of a process's last output kept for the failure report: a deep traceback has about 10 kB."""

LINE_LIMIT = 200
"""Characters of a last line that are shown of a process that runs."""

_SEARCHED = 1_000
"""Bytes in which the last line is looked for."""


class Tail:
    """The last bytes of one process: of one stream, or of both, their whole lines in the order of arrival.

    ``on_first``, where set, is called once, on the thread that writes the first bytes.
    """

    def __init__(self, limit: int = TAIL_LIMIT) -> None:
        self._limit = limit
        self._data = bytearray()
        self._streams: list[TailStream] = []
        self._lock = threading.Lock()
        self.on_first: Callable[[], None] | None = None
        self._written_at = 0.0
        self.count = 0
        """Bytes of whole lines by now."""

    def stream(self) -> TailStream:
        """A sink for one of the streams that share this tail."""
        self._streams.append(TailStream(self))
        return self._streams[-1]

    def write(self, data: bytes) -> None:
        with self._lock:
            self._append(data)

    def write_lines(self, stream: TailStream, data: bytes) -> None:
        """What came on one stream of several: the line that is not over yet stays with the stream."""
        if self.on_first is not None:
            first, self.on_first = self.on_first, None
            first()
        with self._lock:
            whole, newline, rest = (stream.held + data).rpartition(b"\n")
            self._append(whole + newline)
            stream.held = rest[-self._limit :]
            self._written_at = time.time()

    def _append(self, data: bytes) -> None:
        self.count += len(data)
        self._data += data[-self._limit :]
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]

    def end(self) -> None:
        pass

    @property
    def written_at(self) -> float:
        """When output came last (epoch); 0.0 where none did."""
        return self._written_at

    def last_line(self) -> tuple[str, float]:
        """The last line that is not empty, its first :data:`LINE_LIMIT` characters, and when output came last (epoch;
        0.0 where none did).
        """
        with self._lock:
            held = [stream.held for stream in self._streams if stream.held.strip()]
            data = held[-1][-_SEARCHED:] if held else bytes(self._data[-_SEARCHED:])
        lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
        return (lines[-1].strip()[:LINE_LIMIT] if lines else ""), self._written_at

    def lines_since(self, count: int) -> str:
        """The whole lines that came after the first ``count`` bytes of them, as far as they are kept."""
        with self._lock:
            new = self.count - count
            return bytes(self._data[-new:] if new > 0 else b"").decode("utf-8", "replace")

    def text(self) -> str:
        with self._lock:
            data = bytes(self._data) + b"".join(stream.held for stream in self._streams)
        return data[-self._limit :].decode("utf-8", "replace")


class TailStream:
    """One stream of a :class:`Tail`: its whole lines, so that the other stream never cuts one in two."""

    def __init__(self, tail: Tail) -> None:
        self.held = b""
        self._tail = tail

    def write(self, data: bytes) -> None:
        self._tail.write_lines(self, data)

    def end(self) -> None:
        pass
