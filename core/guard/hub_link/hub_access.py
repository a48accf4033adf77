"""The place where all parts of a node find its link to the hub, and what is there before the node has joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.framing import Header
    from .hub_link import HubLink, UploadsReady


class NotJoined:
    """The link of a node that has no gang yet: nothing is sent, and nobody is known."""

    all_left = False
    control_done = False
    connected = False

    @property
    def secret(self) -> bytes:
        raise RuntimeError("this node has not joined its gang")

    def send(self, header: Header, payload: bytes = b"") -> None:
        """There is nobody to send to."""

    def with_uploads(self, ready: UploadsReady) -> None:
        raise RuntimeError("this node has not joined its gang")

    def has_left(self, node: int) -> bool:
        return False

    def has_joined(self, node: int) -> bool:
        return False

    def guards(self) -> dict[int, int]:
        return {}

    def phases(self) -> Header:
        return {}

    def samples(self) -> Header:
        return {}

    def traces(self) -> dict[int, Header]:
        return {}

    def facts(self) -> list[object]:
        return []

    def stalled(self) -> Header | None:
        return None

    def restarts(self) -> list[Header]:
        return []

    def clock(self) -> tuple[float, float]:
        return 0.0, 0.0

    def phases_of_nodes(self) -> dict[int, tuple[float, dict[str, float]]]:
        return {}

    def leave(self, then: Callable[[], None]) -> None:
        then()

    def may_leave(self, reported: bool) -> bool:
        return True

    def close(self, then: Callable[[], None]) -> None:
        then()


class HubAccess:
    """Holds the ``link`` of one node, which replaces :class:`NotJoined` once the node joins."""

    def __init__(self) -> None:
        self.link: HubLink = NotJoined()
        self.debug: DebugLog | None = None

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Send one message to the hub, where there is one."""
        if self.debug is not None:
            self.debug.write("to the hub:", header, payload)
        self.link.send(header, payload)
