"""Stores the card of a gang while its step runs, and its last state; run as a program beside the guard of node 0.

A program, since what it needs of Metaflow takes a second to import and a datastore may be slow: neither the task nor
its guard waits for it. It lives on when the task is killed, and stores what it got from the guard last.

    python writer.py '{"flow": ..., "datastore": "local", "root": ..., "pathspec": ..., "card": ...}'

Each line of its standard input is a snapshot as JSON. The last one has ``"final": true``; so does, for the writer, the
last line before the input ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from ..metaflow_compat.cards import card_store
from .html import FINAL, LIVE, live_data, page

CARD_TYPE = "gang"

DATA_S = 2.0
"""Seconds between two stores of the data that a live page asks for; Metaflow's viewers ask every five seconds."""

PAGE_S = 60.0
"""Seconds between two stores of the whole page, for who opens it from the datastore while the step runs."""


class Writer:
    """Keeps the card in the datastore up to date.

    Parameters
    ----------
    store : CardDatastore
    card : str
        By which Metaflow tells this card from others of the task.
    card_id : str or None
        The user's name of it: ``@card(type="gang", id=...)``.
    """

    def __init__(self, store: Any, card: str, card_id: str | None = None) -> None:
        self._store, self._card, self._id = store, card, card_id
        self._page_at = float("-inf")

    def write(self, snapshot: dict[str, Any], last: bool, now: float) -> None:
        """Store the data, and the page where it is due."""
        token = FINAL if last else LIVE
        if last or now - self._page_at >= PAGE_S:
            self._store.save_card(self._card, CARD_TYPE, page(snapshot, LIVE), card_id=self._id)
            self._page_at = now
        # After the page: a viewer that finds data asks for the page next.
        self._store.save_data(self._card, CARD_TYPE, live_data(snapshot, token), card_id=self._id)


class Latest:
    """The latest line that comes by a descriptor, read by a thread; older ones that nobody took are dropped.

    A descriptor and no file: Python waits at its end for the lock of a buffered file that a thread reads.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._line: bytes | None = None
        self._ended = False
        threading.Thread(target=self._read, name="snapshots", daemon=True).start()

    def take(self, seconds: float | None) -> tuple[bytes | None, bool]:
        """The latest line that was not taken yet, or None, and whether no other will come. Waits for either."""
        with self._changed:
            self._changed.wait_for(lambda: self._line is not None or self._ended, seconds)
            line, self._line = self._line, None
            return line, self._ended

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._descriptor, 1 << 20):
            *lines, rest = (rest + piece).split(b"\n")
            if lines:
                with self._changed:
                    self._line = lines[-1]
                    self._changed.notify()
        with self._changed:
            self._ended = True
            self._changed.notify()


def follow(writer: Writer, lines: Latest) -> None:
    """Write each snapshot, one in :data:`DATA_S` at most, until the input ends. The last one is written as final."""
    newest: dict[str, Any] = {}
    while True:
        line, ended = lines.take(None)
        if line is not None:
            newest = json.loads(line)
        if ended or newest.get("final"):
            _end(writer, newest)
            return
        writer.write(newest, False, time.monotonic())
        until = time.monotonic() + DATA_S
        # Nothing is written before its time, but for the last.
        while (left := until - time.monotonic()) > 0:
            line, ended = lines.take(left)
            if line is not None:
                newest = json.loads(line)
            if ended or newest.get("final"):
                _end(writer, newest)
                return


def _end(writer: Writer, newest: dict[str, Any]) -> None:
    """Write the last state. Where the guard did not say that it is the last one, the guard is gone."""
    if newest:
        if not newest.get("final"):
            newest["state"] = "lost"
        writer.write(newest, True, time.monotonic())


def main(spec: str) -> None:
    """Follow the standard input."""
    lines = Latest(sys.stdin.fileno())
    what = json.loads(spec)
    store = card_store(what["flow"], what["datastore"], what["root"], what["pathspec"])
    follow(Writer(store, what["card"], what.get("id")), lines)


if __name__ == "__main__":
    main(sys.argv[1])
