"""The process that serves the others of its run: it submits tasks as arrays, and asks Slurm about all jobs at once."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ..client.interface import Slurm
from ..exceptions import SlurmException
from ..states import JobState
from .batches import Batches, Request
from .meeting import Link

AGE_S = 1.0
"""How old an answer of Slurm's may be, and the shortest time between two questions."""

PAUSES = 10
"""A question that has taken a second is asked again after so many: the controller has other users, too."""


class States:
    """What Slurm has said last about this user's jobs."""

    def __init__(self, slurm: Slurm) -> None:
        self._slurm, self._lock = slurm, threading.Lock()
        self._states: dict[str, JobState] = {}
        self._silent = ""
        self._at, self._took_s = -float("inf"), 0.0

    def answer(self, job: str) -> dict[str, Any]:
        """What to tell the process that asks: the job's state, None where it has ended, or that nobody answers."""
        asked_at = time.monotonic()
        with self._lock:
            # Also what has come while this process waited for the lock, an answer or none.
            if self._at < asked_at - max(AGE_S, PAUSES * self._took_s):
                self._ask()
            if self._silent:
                return {"silent": self._silent}
            state = self._states.get(job)
        return {"state": dataclasses.asdict(state) if state else None}

    def _ask(self) -> None:
        began = time.monotonic()
        try:
            self._states, self._silent = self._slurm.states(), ""
        except SlurmException as error:
            self._silent = error.message
        self._at = time.monotonic()
        self._took_s = 0.0 if self._silent else self._at - began


class Server:
    """Serves in threads of its own until :meth:`close`, or until the process ends.

    Parameters
    ----------
    listener : socket
        What the others connect to.
    run, say
        As for :class:`.batches.Batches`.
    """

    def __init__(self, listener: socket.socket, slurm: Slurm, run: int, say: Callable[[str, str], None]) -> None:
        self._listener, self._states = listener, States(slurm)
        self._batches = Batches(slurm, run, say)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            link = Link(connection)
            if link.is_ours:
                threading.Thread(target=self._talk, args=(link,), daemon=True).start()
            else:
                link.close()

    def _talk(self, link: Link) -> None:
        while (asked := link.receive(None)) is not None:
            if "submit" in asked:
                self._batches.submit(Request(link, asked["submit"], tuple(asked["options"]), asked["folder"]))
            else:
                self._batches.knows(link.pid)
                link.send(**self._states.answer(str(asked.get("state"))))
        link.close()

    def close(self) -> None:
        """Leave the place to another process. Those that wait for this one learn it when this one ends."""
        # Closing alone would not end an accept() that waits, which keeps the socket's name.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._batches.close()
