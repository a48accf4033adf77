"""Resolves host names to addresses without blocking the loop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .event_loop import Loop

if TYPE_CHECKING:
    Target = tuple[int, Any]
    """Address family, and what :meth:`socket.socket.connect` takes."""


def resolve(loop: Loop, address: str, port: int, on_resolved: Callable[[list[Target], str], None]) -> bool:
    """Find where ``address`` can be reached by TCP; calls ``on_resolved(targets, why)`` once, in the loop.

    Where there are no targets, ``why`` is a phrase that says so. Returns whether ``address`` is a number, for which no
    slow name service has to be asked: then the call comes before this returns.
    """
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        import threading

        look_up = threading.Thread(
            target=_look_up, args=(loop, address, port, on_resolved), name="resolve", daemon=True
        )
        try:
            look_up.start()
        except RuntimeError as error:
            on_resolved([], f"no thread is left to look up the host's name ({error})")
        return False
    on_resolved(_targets(found), "")
    return True


def _look_up(loop: Loop, address: str, port: int, on_resolved: Callable[[list[Target], str], None]) -> None:
    found: list[Any] = []
    why = ""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        why = f"no such host ({error.strerror if isinstance(error, OSError) else error})"
    loop.call_soon_threadsafe(lambda: on_resolved(_targets(found), why))


def _targets(found: list[Any]) -> list[Target]:
    return [(family, name) for family, _, _, _, name in found]
