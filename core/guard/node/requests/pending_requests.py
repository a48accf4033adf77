"""The task's requests that wait for their reply; each has a number and gets exactly one reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...loop.stream import Stream

if TYPE_CHECKING:
    from ...debug_log import DebugLog
    from ...loop.framing import Header

ENDED_BY_STOP = frozenset(
    {
        "open",
        "start-nodes",
        "join",
        "joined",
        "gather",
        "lost-nodes",
        "upload-value",
        "serve-values",
        "send-values",
        "port",
        "own",
        "serve-commands",
        "forward-commands",
        "broadcast",
        "launch",
        "leave-out",
        "restarted",
        "tidy-up",
        "fail-launch",
        "start",
        "done",
        "hold",
        "finish",
    }
)
"""Requests that have no meaning once the gang stops. A launch gets its reply when its processes are gone."""


class PendingRequests:
    """Receives the requests of ``stream``, hands each to ``handle(op, header, payload)``, and keeps those pending."""

    def __init__(self, stream: Stream, handle: Callable[[str, Header, bytes], None]) -> None:
        self._stream = stream
        self._handle = handle
        self._waiting: dict[int, str] = {}
        self._stopped = False
        self.debug: DebugLog | None = None
        stream.on_frame = self._take

    def _take(self, header: Header, payload: bytes) -> None:
        number, op = header["id"], header["op"]
        if self.debug is not None:
            self.debug.write(f"request {number}:", header, payload)
        self._waiting[number] = op
        if self._stopped and op in ENDED_BY_STOP:
            self.reply(number, {"stopped": True})
        else:
            self._handle(op, header, payload)

    def reply(self, number: int, header: Header, payload: bytes = b"") -> None:
        """Send the reply to request ``number``; nothing happens when it has been sent."""
        op = self._waiting.pop(number, None)
        if op is not None:
            if self.debug is not None:
                self.debug.write(f"reply {number} ({op}):", header, payload)
            self._stream.send({"re": number, **header}, payload)

    def reply_all(self, op: str, header: Header) -> bool:
        """Send a reply to every request for ``op`` that waits; False where none did."""
        numbers = [number for number, waiting in self._waiting.items() if waiting == op]
        for number in numbers:
            self.reply(number, header)
        return bool(numbers)

    def rename(self, number: int, op: str) -> None:
        """Let a request wait for something else."""
        self._waiting[number] = op

    def stop(self) -> None:
        """The gang stops: reply ``stopped`` to requests that have no meaning any more, now and whenever one comes."""
        self._stopped = True
        for number, op in list(self._waiting.items()):
            if op in ENDED_BY_STOP and op != "launch":
                self.reply(number, {"stopped": True})

    def close(self) -> None:
        """Drop all pending requests: the task is gone."""
        self._waiting.clear()
        self._stream.close(flush=False)
