"""The guard's event loop: readiness, timers, signals and calls from other threads, all in one thread.

asyncio would cost the guard more than its whole start-up time; this is the part of it that the guard needs.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


Callback = Callable[[], None]


class Timer:
    """A call that is due at a moment of the monotonic clock, unless it is cancelled before."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callback) -> None:
        self._callback: Callback | None = callback

    def cancel(self) -> None:
        """Make sure that the call does not happen. Harmless when it has happened, or when repeated."""
        self._callback = None

    def _fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class _Watch:
    __slots__ = ("reader", "registered", "writer")

    def __init__(self) -> None:
        self.reader: Callback | None = None
        self.writer: Callback | None = None
        self.registered = 0  # the events that the selector knows of

    @property
    def events(self) -> int:
        return (selectors.EVENT_READ if self.reader else 0) | (selectors.EVENT_WRITE if self.writer else 0)


class Loop:
    """Calls back when descriptors are ready, time has passed, a signal has come, or another thread asks.

    Every callback takes no argument and runs in the thread that called :meth:`run`. What one raises leaves
    :meth:`run`: a guard that goes on after a fault of its own would be a guard nobody can rely on.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watches: dict[int, _Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = 0
        self._posted: deque[Callback] = deque()
        self._signals: dict[int, Callback] = {}
        self._old_handlers: dict[int, Any] = {}
        self._old_wakeup = -1
        self._stopping = False
        self._served = -1
        # Two pipes: a thread that posts much must not leave a signal without room for its byte.
        self._posts = self._pipe(self._on_posts)
        self._signal_bytes: tuple[int, int] | None = None

    def add_reader(self, fileobj: int | HasFileno, callback: Callback) -> None:
        """Call ``callback`` whenever ``fileobj`` has something to read (or is at its end). Replaces an earlier one."""
        self._watch(fileobj).reader = callback
        self._update(fileobj)

    def remove_reader(self, fileobj: int | HasFileno) -> None:
        """Stop watching for reading. Call it before the descriptor is closed; harmless when nothing was watched."""
        watch = self._watches.get(_fd(fileobj))
        if watch is not None and watch.reader is not None:
            watch.reader = None
            self._update(fileobj)

    def add_writer(self, fileobj: int | HasFileno, callback: Callback) -> None:
        """Call ``callback`` whenever ``fileobj`` takes more data. Replaces an earlier one."""
        self._watch(fileobj).writer = callback
        self._update(fileobj)

    def remove_writer(self, fileobj: int | HasFileno) -> None:
        """Stop watching for writing. Call it before the descriptor is closed; harmless when nothing was watched."""
        watch = self._watches.get(_fd(fileobj))
        if watch is not None and watch.writer is not None:
            watch.writer = None
            self._update(fileobj)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call ``callback`` once, ``seconds`` from now. Returns a :class:`Timer` that can be cancelled."""
        timer = Timer(callback)
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count, timer))
        return timer

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Have the loop call ``callback``; the only method that another thread may use.

        Does nothing after :meth:`close`: a thread may end later than the loop.
        """
        self._posted.append(callback)
        try:
            os.write(self._posts[1], b"\0")
        except BlockingIOError:
            pass  # the pipe is full, so the loop wakes anyway
        except OSError:
            pass  # closed

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call ``callback`` in the loop when signal ``signum`` comes; several that come together may be one call.

        Only in the main thread. :meth:`close` restores what was there before.

        Raises
        ------
        ValueError
            When called in another thread.
        """
        if self._signal_bytes is None:
            pipe = self._pipe(self._on_signals)
            self._old_wakeup = signal.set_wakeup_fd(pipe[1], warn_on_full_buffer=False)
            self._signal_bytes = pipe
        # The kernel-level handler writes the number into the pipe; Python's own has nothing left to do.
        old = signal.signal(signum, _ignore)
        self._old_handlers.setdefault(signum, old)
        self._signals[signum] = callback

    def run(self) -> None:
        """Serve callbacks until :meth:`stop`. May be called again. Raises whatever a callback raises."""
        while not self._stopping:
            for key, mask in self._selector.select(self._until_next_timer()):
                watch: _Watch = key.data
                self._served = key.fd
                # An earlier callback of this round may have removed this one, or closed it and reused its number.
                if mask & selectors.EVENT_READ and watch.reader and self._watches.get(key.fd) is watch:
                    watch.reader()
                if self._stopping:
                    break
                if mask & selectors.EVENT_WRITE and watch.writer and self._watches.get(key.fd) is watch:
                    watch.writer()
                if self._stopping:
                    break
            self._served = -1
            # Timers come after what was ready: a guard that was stopped for a while must see first what arrived.
            now = time.monotonic()
            while not self._stopping and self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]._fire()
        self._stopping = False

    def stop(self) -> None:
        """Make :meth:`run` return after the callback that is running."""
        self._stopping = True

    def drop(self) -> None:
        """Watch the descriptor no more whose callback has raised out of :meth:`run`; the loop's own it keeps."""
        fd, self._served = self._served, -1
        if fd in self._watches and fd not in (self._posts[0], (self._signal_bytes or (-1,))[0]):
            self.remove_reader(fd)
            self.remove_writer(fd)

    def close(self) -> None:
        """Give back the descriptors and the signal handlers. The loop cannot be used afterwards."""
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        self._old_handlers.clear()
        if self._signal_bytes is not None:
            signal.set_wakeup_fd(self._old_wakeup)
        self._selector.close()
        self._watches.clear()
        self._timers.clear()
        for fd in (*self._posts, *(self._signal_bytes or ())):
            if fd >= 0:
                os.close(fd)
        self._posts, self._signal_bytes = (-1, -1), None

    def _pipe(self, callback: Callback) -> tuple[int, int]:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self.add_reader(read, callback)
        return read, write

    def _watch(self, fileobj: int | HasFileno) -> _Watch:
        fd = _fd(fileobj)
        watch = self._watches.get(fd)
        if watch is None:
            watch = self._watches[fd] = _Watch()
        return watch

    def _update(self, fileobj: int | HasFileno) -> None:
        fd = _fd(fileobj)
        watch = self._watches[fd]
        events, before = watch.events, watch.registered
        watch.registered = events
        if not events:
            del self._watches[fd]
            if before:
                self._selector.unregister(fd)
        elif not before:
            try:
                self._selector.register(fd, events, watch)
            except OSError:
                watch.registered = 0
                raise
        elif events != before:
            self._selector.modify(fd, events, watch)

    def _until_next_timer(self) -> float | None:
        while self._timers and self._timers[0][2]._callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _on_signals(self) -> None:
        assert self._signal_bytes is not None
        for signum in sorted(set(os.read(self._signal_bytes[0], 65536))):
            callback = self._signals.get(signum)
            if callback is not None:
                callback()

    def _on_posts(self) -> None:
        os.read(self._posts[0], 65536)
        try:
            # Only what is here now: a callback that posts another must not keep the descriptors waiting.
            for _ in range(len(self._posted)):
                if self._stopping:
                    break
                self._posted.popleft()()
        finally:
            if self._posted:
                os.write(self._posts[1], b"\0")


def _fd(fileobj: int | HasFileno) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _ignore(signum: int, frame: FrameType | None) -> None:
    pass
