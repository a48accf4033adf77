"""The table of all requests that a task may send, and what happens where the guard cannot do what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ...loop.framing import WireError

if TYPE_CHECKING:
    from ...loop.framing import Header
    from .pending_requests import PendingRequests

    Method = Callable[[int, Header, bytes], None]
    """Does what a request asks for: ``method(number, header, payload)``."""

    class Group(Protocol):
        """Requests that belong together."""

        def methods(self) -> dict[str, Method]:
            """What does each of them, by the name of the request."""


class Requests:
    """Hands each request of the task to its method, which replies at once, or when what it waits for has happened.

    Parameters
    ----------
    groups : list of Group
        All requests that there are.
    fail : callable
        Takes the text of a failure of this guard.
    """

    def __init__(self, pending: PendingRequests, groups: list[Group], fail: Callable[[str], None]) -> None:
        self._pending = pending
        self._fail = fail
        self._methods: dict[str, Method] = {}
        for group in groups:
            self._methods.update(group.methods())

    def handle(self, op: str, header: Header, payload: bytes) -> None:
        """Do what one request asks for. What the guard cannot do ends the gang."""
        number: int = header["id"]
        try:
            self._methods[op](number, header, payload)
        except (OSError, RuntimeError, ValueError, WireError) as error:
            # No descriptor, thread or room on the disk is left.
            self._fail(f"its guard could not do what the task asked for ({op}): {type(error).__name__}: {error}")
            self._pending.reply(number, {"stopped": True})
