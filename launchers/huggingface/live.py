"""Cards that follow a file while a step's body runs, in a thread of the task.

Metaflow makes a card in a process of its own, of which a card has one at a time; it drops silently what is asked for
meanwhile, and where the layout has changed ``refresh`` waits for that process in a busy loop. So the thread asks
Metaflow for one process at a time by itself.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, Protocol

from ...core.metaflow_compat import cards
from .card_file import CardFile, Training

POLL_S = 0.5
"""Seconds between two looks at the file: another process writes it, and the standard library has no notification."""

FULL_S = 60.0
"""How often the whole card is stored, for those who open it from the datastore; live viewers get what changed."""

_SHARE = 3
"""A card is made again when this many times the last making's duration has passed. Each starts an interpreter that
imports the flow, torch and all perhaps; thus a card never takes more than a quarter of a core from the training."""

_STOP_S = 1.0
_LAST_S = 10.0


class Content(Protocol):
    """What a card shows."""

    card_id: str
    refresh_interval: float
    components: list[Any]

    def update(self, training: Training) -> list[Any]:
        """Take this in; returns components to append."""


class LiveCard:
    """One card of the running task.

    Parameters
    ----------
    manager : CardComponentManager
        ``current.card[ID]``.
    uuid : str
        By which Metaflow knows the card.
    content : Content
    """

    def __init__(self, manager: Any, uuid: str, content: Content) -> None:
        self._manager, self._uuid, self._content = manager, uuid, content
        self._pending: list[str] = ["render_runtime"]
        self._started: float | None = None
        self._not_before = 0.0
        self._last_full = 0.0
        manager.extend(content.components)

    def update(self, training: Training, now: float) -> None:
        """Take in what is new; :meth:`step` shows it."""
        new = self._content.update(training)
        self._manager.extend(new)
        full = new or "render_runtime" in self._pending or now - self._last_full >= FULL_S
        # A whole card is followed by what changed: from that a live viewer learns that there is a new one.
        self._pending = ["render_runtime", "refresh"] if full else ["refresh"]

    def step(self, now: float) -> None:
        """Start making what is due, if anything is. Never waits."""
        if self._running() is not None:
            return
        if self._started is not None:
            took, self._started = now - self._started, None
            self._not_before = now + max(self._content.refresh_interval - took, _SHARE * took)
        if self._pending and now >= self._not_before:
            self._make(self._pending.pop(0), now)

    def start_last(self, deadline: float) -> None:
        """Begin the last making, which a failed step's card would not get from Metaflow."""
        self._wait(deadline)
        self._make("render_runtime", time.monotonic())

    def end_last(self, deadline: float) -> None:
        """Wait for what :meth:`start_last` began, and for the data of live viewers."""
        self._wait(deadline)
        self._make("refresh", time.monotonic())
        self._wait(deadline)

    def _make(self, mode: str, now: float) -> None:
        if mode == "render_runtime":
            self._last_full = now
        self._started = now
        cards.make(self._manager, mode)

    def _running(self) -> subprocess.Popen[bytes] | None:
        process = cards.process_of(self._uuid)
        return process if process is not None and process.poll() is None else None

    def _wait(self, deadline: float) -> None:
        process = self._running()
        if process is not None:
            process.wait(max(0.0, deadline - time.monotonic()))


class Follower:
    """Shows the file's content in the cards, from :meth:`start` to :meth:`stop`. No error of a card is raised."""

    def __init__(self, file: CardFile, cards: list[LiveCard]) -> None:
        self._file, self._cards = file, cards
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="huggingface_card", daemon=True)
        self._fed = False
        self._broken = False

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Read the file a last time. Metaflow makes the cards of a step that ends well from what they hold then."""
        self._stopping.set()
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._guarded(self._read)

    def show_last(self) -> None:
        """Make the cards of a step that failed, all at once; at most for some seconds."""
        if self._fed and not self._thread.is_alive():
            self._guarded(self._make_last)

    def _follow(self) -> None:
        # The first look comes after a while: a short step's cards are made by Metaflow at its end, and only then.
        while not self._stopping.wait(POLL_S) and not self._broken:
            self._guarded(self._look)

    def _look(self) -> None:
        self._read()
        for card in self._cards:
            card.step(time.monotonic())

    def _read(self) -> None:
        training = self._file.changed()
        if training is not None:
            self._fed = True
            for card in self._cards:
                card.update(training, time.monotonic())

    def _make_last(self) -> None:
        deadline = time.monotonic() + _LAST_S
        for card in self._cards:
            card.start_last(deadline)
        for card in self._cards:
            card.end_last(deadline)

    def _guarded(self, action: Any) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # whatever it is, the training is worth more than its cards
            self._broken = True
            print(f"The training's cards are no longer updated: {type(error).__name__}: {error}", file=sys.stderr)
