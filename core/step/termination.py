"""SIGTERM in the step's process: it is passed on to the guard, and the functions of ``on_preemption`` are called.

A body may be in C code for as long as a collective of its framework takes, and Python calls no handler then. So SIGTERM
is handled in C, by faulthandler, whose output goes into a pipe that the guard reads.
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
"""When this process began, approximately: an older notice on the machine concerns another one."""

_POINTER = 8
"""Bytes of a C function's address, with which a struct sigaction begins."""

_listening: SigtermHandler | None = None


class SigtermHandler:
    """The handler of SIGTERM in one task, and the functions to call before a preempted gang ends."""

    def __init__(self) -> None:
        self.save_functions: list[Callable[[], object]] = []
        self.module = ""
        self._pipe = -1
        self._handler = b""

    def listen(self, pipe: int) -> None:
        """Have SIGTERM end the gang and not this process alone, unless the process has a handler already.

        Parameters
        ----------
        pipe : int
            Descriptor of a pipe's writing end; the guard has the other one.
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
        # The handler that Python's signal module shows; it runs where faulthandler's does not.
        signal.signal(signal.SIGTERM, _on_sigterm)
        self._take()

    def keep(self, module: str = "") -> None:
        """Install our handler again where a framework's C code has replaced it, which Python does not notice.

        This is checked at each garbage collection; a framework's start causes many. A handler that user code has
        installed by Python's ``signal`` stays, unless it is of ``module``, the framework's.
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

    def pass_on(self) -> None:
        """Report a SIGTERM to the guard. Raises nothing: the guard interrupts the body, as for any failure."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"SIGTERM")

    def save(self) -> None:
        """Call all functions in the order of their registration; print what one raises and go on."""
        started = time.monotonic()
        for save in self.save_functions:
            try:
                save()
            except BaseException:
                name = getattr(save, "__qualname__", repr(save))
                say(f"on_preemption: {name} failed, and what it was to save may be missing.\n{traceback.format_exc()}")
        say(f"on_preemption: called {len(self.save_functions)}, which took {time.monotonic() - started:.1f} s.")

    def end(self) -> None:
        """Restore SIGTERM's default at the end of the gang, unless user code has installed a handler."""
        if self._pipe >= 0:
            _forget()
            with contextlib.suppress(ValueError):
                gc.callbacks.remove(self._look)
            self._pipe = -1


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _listening is not None:
        _listening.pass_on()


def _is_ours() -> bool:
    """Whether the handler that Python knows for SIGTERM is ours, or a framework's that ours replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is _on_sigterm:
        return True
    module = _listening.module if _listening is not None else ""
    return bool(module) and getattr(handler, "__module__", None) == module


def _in_c(number: int) -> bytes:
    """The address of the C function that handles a signal; empty where it cannot be found."""
    try:
        import ctypes

        found = ctypes.create_string_buffer(1024)
        # PyDLL keeps the GIL: this takes no time.
        return found.raw[:_POINTER] if ctypes.PyDLL(None).sigaction(int(number), None, found) == 0 else b""
    except (ImportError, OSError, AttributeError):
        return b""


def _forget() -> None:
    if _is_ours():
        with contextlib.suppress(AttributeError):
            faulthandler.unregister(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# A process that the body forks is no node; multiprocessing, for example, ends its processes by SIGTERM. The signal is
# blocked until the inherited handler is removed, since Python loses one that arrives during a fork.

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
