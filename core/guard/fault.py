"""A fault of the guard itself: it is reported as such, and the gang is ended, before the process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .processes import process_table

if TYPE_CHECKING:
    from .loop.event_loop import Loop

EXIT_CODE = 70
"""Of a guard that has failed by a fault of its own: EX_SOFTWARE of sysexits.h. Its task knows it by that."""

LAST_S = 10.0
"""How long a guard goes on after a fault, to report it and to end what runs: longer than the whole end of a gang whose
bodies let themselves be interrupted. What is left then is ended by force.
"""

BUG = "This is a bug of metaflow-gang, and none of your flow: please report it with this traceback."


def serve(loop: Loop, report: Callable[[str, str], None], tidy: Callable[[], None]) -> int:
    """Run ``loop`` to its end; the exit code: 0, or :data:`EXIT_CODE` where a callback raised.

    After the first fault ``report(text, traceback)`` is called once, which has to begin the end, and the loop goes on.
    A descriptor whose callback raises again is left alone. ``tidy()`` is called where that end does not come. What
    another thread does not handle counts as a callback that raised.
    """
    _watch_threads(loop)
    deadline = 0.0
    while True:
        try:
            loop.run()
            if not deadline or time.monotonic() < deadline:
                return EXIT_CODE if deadline else 0
        except BaseException as error:
            if deadline:
                loop.drop()
            else:
                deadline = time.monotonic() + LAST_S
                loop.call_later(LAST_S, loop.stop)
                with contextlib.suppress(BaseException):
                    import traceback

                    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
                    report(f"its guard failed: {type(error).__name__}: {error}", f"{trace}{BUG}")
        if deadline and time.monotonic() >= deadline:
            with contextlib.suppress(BaseException):
                tidy()
            process_table.send(process_table.descendants([os.getpid()]), signal.SIGKILL)
            return EXIT_CODE


def _watch_threads(loop: Loop) -> None:
    """Have the loop raise what ends another thread, which nobody would notice."""

    def ended(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        if error is None or isinstance(error, SystemExit):
            return

        def fail() -> None:
            raise error

        loop.call_soon_threadsafe(fail)

    threading.excepthook = ended
