"""What the step's process does when it is told to end: it passes that on to its guard, and saves once it may.

A body may sit in C for as long as a collective of its framework takes, and Python calls no handler then. So SIGTERM is
taken in C, by faulthandler: what it writes for a signal goes into a pipe whose other end the guard reads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..logs import say

LOADED = time.time()
"""About when this process began: what is older on the machine is not about it."""

_POINTER = 8
"""Bytes of a C function's address, with which a struct sigaction begins."""

_listening: Preemption | None = None


class Preemption:
    """SIGTERM in one task, and the functions that its body wants called before the gang ends."""

    def __init__(self) -> None:
        self.saves: list[Callable[[], object]] = []
        self.module = ""
        self._pipe = -1
        self._handler = b""

    def listen(self, pipe: int) -> None:
        """From here on a SIGTERM ends the gang, and not this process alone; a handler that is there already stays.

        Parameters
        ----------
        pipe : int
            Descriptor of the end that is written into; its other end is the guard's.
        """
        global _listening
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        self._pipe = pipe
        if _listening is None:
            os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget_in_child)
        _listening = self
        # By this handler user code, and this file, see whose the signal is; it runs where faulthandler's does not.
        signal.signal(signal.SIGTERM, _on_sigterm)
        self._take()

    def keep(self, module: str = "") -> None:
        """Take SIGTERM back where a framework's C code has put a handler of its own in the place of ours, of which
        Python learns nothing. Looked for whenever Python looks for garbage, which a framework's start makes plenty of.

        A handler that user code has installed by Python's ``signal`` stays, unless it is of ``module``, the
        framework's.
        """
        if self._pipe >= 0:
            self.module = module
            gc.callbacks.append(self._look)

    def _take(self) -> None:
        with contextlib.suppress(AttributeError, ValueError, OSError, RuntimeError):
            faulthandler.unregister(signal.SIGTERM)
            faulthandler.register(signal.SIGTERM, file=self._pipe, all_threads=False)
            self._handler = _in_c(signal.SIGTERM)

    def _look(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start" and _is_ours() and _in_c(signal.SIGTERM) != self._handler:
            self._take()

    def told(self) -> None:
        """A SIGTERM has come. Raises nothing: the guard interrupts the body, as it does for any failure."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"SIGTERM")

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
        if self._pipe >= 0:
            _forget()
            with contextlib.suppress(ValueError):
                gc.callbacks.remove(self._look)
            self._pipe = -1


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _listening is not None:
        _listening.told()


def _is_ours() -> bool:
    """Whether the handler of SIGTERM, as Python knows it, is ours, or that of a framework whose place we take."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is _on_sigterm:
        return True
    module = _listening.module if _listening is not None else ""
    return bool(module) and getattr(handler, "__module__", None) == module


def _in_c(number: int) -> bytes:
    """The address of the C function that handles a signal; empty where it cannot be known."""
    try:
        import ctypes

        found = ctypes.create_string_buffer(1024)
        # PyDLL: another thread need not have its turn for this.
        return found.raw[:_POINTER] if ctypes.PyDLL(None).sigaction(int(number), None, found) == 0 else b""
    except (ImportError, OSError, AttributeError):
        return b""


def _forget() -> None:
    if _is_ours():
        with contextlib.suppress(AttributeError):
            faulthandler.unregister(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# A process that the body forks is no node: multiprocessing, for one, ends its processes by SIGTERM. Until the handler
# that it inherits is gone the signal waits, since Python forgets what comes in the moment of a fork.

_forking = threading.local()


def _hold() -> None:
    if _is_ours():
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _release() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _forget_in_child() -> None:
    _forget()
    _release()
