"""What the step's process does when it is told to end: it passes that on to its guard, and saves once it may."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

from .guard.preemption import TOLD
from .logs import say

LOADED = time.time()
"""About when this process began: what is older on the machine is not about it."""

_listening: Preemption | None = None


class Preemption:
    """SIGTERM in one task, and the functions that its body wants called before the gang ends."""

    def __init__(self) -> None:
        self.saves: list[Callable[[], object]] = []
        self._told = False
        self._guard_pid = 0

    def listen(self, guard_pid: int) -> None:
        """From here on a SIGTERM ends the gang, and not this process alone; a handler that is there already stays."""
        global _listening
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        self._guard_pid = guard_pid
        if _listening is None:
            os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget_in_child)
        _listening = self
        signal.signal(signal.SIGTERM, _on_sigterm)

    def told(self) -> None:
        """A SIGTERM has come. Raises nothing: the guard interrupts the body, as it does for any failure."""
        self._told = True
        self.tell()

    def tell(self) -> None:
        """Pass on to the guard what has come so far; one that was just starting has not heard it the first time."""
        if self._told:
            with contextlib.suppress(OSError):
                os.kill(self._guard_pid, TOLD)

    def save(self) -> None:
        """Call what was registered, in this order; what one raises is shown, and does not keep the next from it."""
        started = time.monotonic()
        for save in self.saves:
            try:
                save()
            except BaseException:
                name = getattr(save, "__qualname__", repr(save))
                say(f"on_preemption: {name} failed, and what it was to save may be missing.\n{traceback.format_exc()}")
        say(f"on_preemption: called {len(self.saves)}, which took {time.monotonic() - started:.1f} s.")

    def end(self) -> None:
        """The gang is over: SIGTERM means again what it means to any process, unless user code has a handler now."""
        if self._guard_pid:
            _forget()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _listening is not None:
        _listening.told()


def _forget() -> None:
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# A process that the body forks is no node: multiprocessing, for one, ends its processes by SIGTERM. Until the handler
# that it inherits is gone the signal waits, since Python forgets what comes in the moment of a fork.

_forking = threading.local()


def _hold() -> None:
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _release() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _forget_in_child() -> None:
    _forget()
    _release()
