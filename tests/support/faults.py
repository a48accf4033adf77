"""What goes wrong in the field, done on purpose to one process, or one port, at a time."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

from .processes import read_process, send_signal, wait_gone

HOLD_THE_GIL = "import ctypes; ctypes.PyDLL(None).sleep({seconds})"
"""Python source that sits in C for some seconds with the GIL held, as a badly written extension does."""


def kill_process(pid: int, number: int = signal.SIGKILL, timeout: float = 5.0) -> None:
    """Send ``number`` to one process; after SIGKILL also wait until it has ended.

    Raises AssertionError where there is no such process, so that a test never passes for a fault that did not happen.
    """
    process = read_process(pid)
    if process is None or process.zombie or not send_signal(process, number):
        raise AssertionError(f"pid {pid} had ended before it could be sent signal {number}")
    if number == signal.SIGKILL and wait_gone([pid], timeout):
        raise AssertionError(f"still there {timeout:g} s after SIGKILL: {process}")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process in state T (SIGSTOP) for the length of the block; it continues afterwards, if it still can."""
    process = read_process(pid)
    if process is None or not send_signal(process, signal.SIGSTOP):
        raise AssertionError(f"pid {pid} had ended before it could be stopped")
    try:
        yield
    finally:
        send_signal(process, signal.SIGCONT)


@contextlib.contextmanager
def squatter(port: int, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A foreign program that listens on a port, and that says nothing to those who connect."""
    with socket.create_server((address, port)) as server:
        yield server
